/**
 * The migration side of a VFIO device as a VMM uses it: capabilities, states, data_fd, DMA log.
 *
 * A client of src/uapi only. One data_fd at most is open; a state change that gives a new one closes the old one, one that ends saving
 * or resuming closes it, too. Every method that fails throws KernelError.
 *
 * Source: Linux include/uapi/linux/vfio.h; QEMU hw/vfio/migration.c; domain.md A2.3, A2.4, A3.10, A3.11.
 */
import type { FieldSpecs, Struct, StructValue } from '../layout/struct.js';
import { u64 } from '../layout/struct.js';
import type { Task } from '../runtime/task.js';
import { ENOMSG, ENOTTY, KernelError } from '../uapi/errno.js';
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  VFIO_DEVICE_FEATURE_MIGRATION,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_DEVICE_STATE_ERROR,
  VFIO_DEVICE_STATE_PRE_COPY,
  VFIO_DEVICE_STATE_PRE_COPY_P2P,
  VFIO_DEVICE_STATE_RESUMING,
  VFIO_DEVICE_STATE_RUNNING,
  VFIO_DEVICE_STATE_RUNNING_P2P,
  VFIO_DEVICE_STATE_STOP,
  VFIO_DEVICE_STATE_STOP_COPY,
  VFIO_MIG_GET_PRECOPY_INFO,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_dma_logging_report,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
} from '../uapi/vfio.js';
import { lengthOf, type Range } from './ranges.js';
import type { VfioDevice } from './vfio-device.js';

/** States by the names of the uAPI. */
export const MIG_STATE = {
  ERROR: VFIO_DEVICE_STATE_ERROR,
  STOP: VFIO_DEVICE_STATE_STOP,
  RUNNING: VFIO_DEVICE_STATE_RUNNING,
  STOP_COPY: VFIO_DEVICE_STATE_STOP_COPY,
  RESUMING: VFIO_DEVICE_STATE_RESUMING,
  RUNNING_P2P: VFIO_DEVICE_STATE_RUNNING_P2P,
  PRE_COPY: VFIO_DEVICE_STATE_PRE_COPY,
  PRE_COPY_P2P: VFIO_DEVICE_STATE_PRE_COPY_P2P,
} as const;

export type MigState = keyof typeof MIG_STATE;

/** What pre-copy still has to give (struct vfio_precopy_info). */
interface PreCopyInfo {
  readonly initialBytes: number;
  readonly dirtyBytes: number;
}

/** States whose descriptor stays open when one goes to the other. */
const SAVING: readonly MigState[] = ['PRE_COPY', 'PRE_COPY_P2P', 'STOP_COPY'];

/** A device that can migrate. */
export class VfioMigration {
  readonly device: VfioDevice;
  readonly hasP2p: boolean;
  readonly hasPreCopy: boolean;
  /** Whether the device logs its own writes. */
  readonly hasDmaLogging: boolean;
  #dataFd = -1;
  #logPageBytes = 0n;

  private constructor(device: VfioDevice, flags: bigint, hasDmaLogging: boolean) {
    this.device = device;
    this.hasP2p = (flags & BigInt(VFIO_MIGRATION_P2P)) !== 0n;
    this.hasPreCopy = (flags & BigInt(VFIO_MIGRATION_PRE_COPY)) !== 0n;
    this.hasDmaLogging = hasDmaLogging;
  }

  /** Undefined when the device or its driver cannot migrate. */
  static *of(device: VfioDevice): Task<VfioMigration | undefined> {
    try {
      const { flags } = yield* feature(device, VFIO_DEVICE_FEATURE_MIGRATION, 'GET', vfio_device_feature_migration, {});
      const hasLog = yield* probes(device, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_SET);
      return new VfioMigration(device, flags, hasLog);
    } catch (error) {
      if (error instanceof KernelError && error.errno === ENOTTY) return undefined;
      throw error;
    }
  }

  /** The state the device is in. */
  *state(): Task<MigState> {
    const struct = vfio_device_feature_mig_state;
    const { device_state } = yield* feature(this.device, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'GET', struct, {});
    return nameOf(device_state);
  }

  /** Goes to a state. */
  *setState(state: MigState): Task<void> {
    const struct = vfio_device_feature_mig_state;
    const wanted = { device_state: MIG_STATE[state], data_fd: -1 };
    const { data_fd } = yield* feature(this.device, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'SET', struct, wanted);
    const isKept = SAVING.includes(state) || state === 'RESUMING';
    if (data_fd >= 0 || !isKept) yield* this.closeData();
    if (data_fd >= 0) this.#dataFd = data_fd;
  }

  /** Puts a device that failed back on its feet, if it can be: into `state`, else by a reset, which loses its state. */
  *recover(state: MigState): Task<'recovered' | 'reset'> {
    yield* this.closeData();
    try {
      yield* this.setState(state);
      return 'recovered';
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      yield* this.device.reset();
      return 'reset';
    }
  }

  /** Up to `maxBytes` of the device's state: empty at the end of STOP_COPY, undefined when pre-copy has nothing at the moment. */
  *read(maxBytes: number): Task<Uint8Array | undefined> {
    try {
      return yield* this.device.process.read(this.#dataFd, maxBytes);
    } catch (error) {
      if (error instanceof KernelError && error.errno === ENOMSG) return undefined;
      throw error;
    }
  }

  *write(bytes: Uint8Array): Task<void> {
    for (let at = 0; at < bytes.length;) at += yield* this.device.process.write(this.#dataFd, bytes.subarray(at));
  }

  *preCopyInfo(): Task<PreCopyInfo> {
    const { value } = yield* this.device.process.ioctl(this.#dataFd, VFIO_MIG_GET_PRECOPY_INFO, {});
    return { initialBytes: Number(value.initial_bytes), dirtyBytes: Number(value.dirty_bytes) };
  }

  /** Bytes that STOP_COPY would give now (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE). */
  *stopCopyBytes(): Task<number> {
    const struct = vfio_device_feature_mig_data_size;
    const { stop_copy_length } = yield* feature(this.device, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, 'GET', struct, {});
    return Number(stop_copy_length);
  }

  *closeData(): Task<void> {
    if (this.#dataFd < 0) return;
    yield* this.device.process.close(this.#dataFd);
    this.#dataFd = -1;
  }

  // --- DMA log ---

  /** Starts the log for ranges of whole pages; they cannot change until it stops. */
  *startLog(ranges: readonly Range[], pageBytes: bigint): Task<void> {
    const { process } = this.device;
    const size = vfio_device_feature_dma_logging_range.sizeBytes;
    const bytes = new Uint8Array(ranges.length * size);
    ranges.forEach((range, i) => {
      bytes.set(vfio_device_feature_dma_logging_range.encode({ iova: range.start, length: lengthOf(range) }), i * size);
    });
    const length = 4096n * BigInt(Math.max(1, Math.ceil(bytes.length / 4096)));
    const va = yield* process.mmap({ length });
    try {
      yield* process.store(va, bytes);
      const control = { page_size: pageBytes, num_ranges: ranges.length, ranges: va };
      const struct = vfio_device_feature_dma_logging_control;
      const { page_size } = yield* feature(this.device, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, 'SET', struct, control);
      this.#logPageBytes = page_size;
    } finally {
      yield* process.munmap(va, length);
    }
  }

  *stopLog(): Task<void> {
    this.#logPageBytes = 0n;
    const request = { flags: VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP };
    yield* this.device.process.ioctl(this.device.fd, VFIO_DEVICE_FEATURE, request);
  }

  get isLogging(): boolean {
    return this.#logPageBytes !== 0n;
  }

  /** A bit for each page of `pageBytes` in a range that was written since the last report. */
  *reportLog(range: Range, pageBytes: bigint): Task<Uint8Array> {
    const { process } = this.device;
    const words = Number((lengthOf(range) + pageBytes * 64n - 1n) / (pageBytes * 64n));
    const length = BigInt(Math.ceil((words * u64.sizeBytes) / 4096) * 4096);
    const bitmap = yield* process.mmap({ length });
    try {
      const report = { iova: range.start, length: lengthOf(range), page_size: pageBytes, bitmap };
      const struct = vfio_device_feature_dma_logging_report;
      yield* feature(this.device, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, 'GET', struct, report);
      return yield* process.load(bitmap, words * u64.sizeBytes);
    } finally {
      yield* process.munmap(bitmap, length);
    }
  }
}

function nameOf(state: number): MigState {
  const names = Object.keys(MIG_STATE) as MigState[];
  const name = names.find((candidate) => MIG_STATE[candidate] === state);
  if (name === undefined) throw new RangeError(`migration state ${state}`);
  return name;
}

/** VFIO_DEVICE_FEATURE with a struct behind the header; the struct as the kernel left it. @throws KernelError */
export function* feature<F extends FieldSpecs>(
  device: VfioDevice,
  number: number,
  operation: 'GET' | 'SET',
  struct: Struct<F>,
  value: Partial<StructValue<F>>,
): Task<StructValue<F>> {
  const flags = number | (operation === 'GET' ? VFIO_DEVICE_FEATURE_GET : VFIO_DEVICE_FEATURE_SET);
  const { tail } = yield* device.process.ioctl(
    device.fd,
    VFIO_DEVICE_FEATURE,
    { flags },
    { tail: struct.encode(value) },
  );
  return struct.decode(tail);
}

/** Whether a device has a feature. */
function* probes(device: VfioDevice, number: number, operation: number): Task<boolean> {
  const flags = number | operation | VFIO_DEVICE_FEATURE_PROBE;
  const { result } = yield* device.process.tryIoctl(device.fd, VFIO_DEVICE_FEATURE, { flags });
  return result >= 0;
}
