/**
 * Migration of a VFIO device: its state machine, the data_fd through which its state travels, and the DMA log.
 *
 * This is the part a variant driver adds to vfio-pci (mlx5-vfio-pci, hisi-acc-vfio-pci and others do the same for their cards); here the
 * cards' own migration units do the work. One data_fd at most is alive: entering PRE_COPY or STOP_COPY from a state that is not
 * saving gives a readable one, entering RESUMING a writable one, and leaving the saving or resuming states kills it. Going from
 * pre-copy to STOP_COPY keeps the descriptor.
 *
 * An arc that fails leaves the device in the state before it, and the request ends there; a card that broke is in ERROR until it is reset.
 *
 * Lock order: the caller holds the device's lock for everything but reads and writes of the data_fd, which only touch its own buffer
 * and the card.
 *
 * Source: Linux include/uapi/linux/vfio.h, drivers/vfio/vfio_main.c, drivers/vfio/pci/mlx5/main.c; domain.md A2.3, A2.4.
 */
import type { Activity, MigrationUnit } from '../../hardware/devices/migration-unit.js';
import { DeviceStateError } from '../../hardware/devices/migration-state.js';
import { u32 } from '../../layout/struct.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { EFAULT, EINVAL, EIO, ENODEV, ENOMEM, ENOMSG, ENOTTY } from '../../uapi/errno.js';
import {
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
  VFIO_MIGRATION_STOP_COPY,
  vfio_precopy_info,
} from '../../uapi/vfio.js';
import { CONTEXT_RECORD_BYTES } from '../../hardware/devices/migration-state.js';
import { MIG_ARC_NS, MIG_READ_NS } from '../costs.js';
import { OpenFile, type SyscallContext } from '../files.js';
import { migrationStateName, vfio_mig_get_next_state } from './migration-states.js';

const PRE_COPY_STATES: readonly number[] = [VFIO_DEVICE_STATE_PRE_COPY, VFIO_DEVICE_STATE_PRE_COPY_P2P];

/** How active a card is in a state. */
const ACTIVITY: ReadonlyMap<number, Activity> = new Map([
  [VFIO_DEVICE_STATE_RUNNING, 'running'],
  [VFIO_DEVICE_STATE_PRE_COPY, 'running'],
  [VFIO_DEVICE_STATE_RUNNING_P2P, 'no-dma'],
  [VFIO_DEVICE_STATE_PRE_COPY_P2P, 'no-dma'],
  [VFIO_DEVICE_STATE_STOP, 'stopped'],
  [VFIO_DEVICE_STATE_STOP_COPY, 'stopped'],
  [VFIO_DEVICE_STATE_RESUMING, 'stopped'],
]);

/** What a request for a state came to. */
export interface MigrationStateResult {
  /** 0 or -errno. */
  readonly rc: number;
  /** The new data_fd, where the last hop made one. */
  readonly file?: OpenFile;
}

/** The migration side of one open VFIO device. */
export class VfioMigration {
  readonly flags: number;
  readonly unit: MigrationUnit;
  readonly #runtime: NodeRuntime;
  readonly #name: string;
  readonly #isPresent: () => boolean;
  readonly #resumeBytes: number;
  #state = VFIO_DEVICE_STATE_RUNNING;
  #saving: SavingFile | undefined;
  #resuming: ResumingFile | undefined;

  /** `isPresent`: whether the card is still there. `resumeBytes`: room for what is written to a data_fd, with a driver that keeps it. */
  constructor(
    runtime: NodeRuntime,
    name: string,
    unit: MigrationUnit,
    isPresent: () => boolean,
    resumeBytes = Infinity,
  ) {
    const { p2p, preCopy } = unit.description;
    this.#runtime = runtime;
    this.#name = name;
    this.unit = unit;
    this.#isPresent = isPresent;
    this.#resumeBytes = resumeBytes;
    this.flags = VFIO_MIGRATION_STOP_COPY | (p2p ? VFIO_MIGRATION_P2P : 0) | (preCopy ? VFIO_MIGRATION_PRE_COPY : 0);
  }

  get state(): number {
    sharedRead(this, 'state', this.#state);
    return this.#state;
  }

  /** The card was reset: it runs, and no data_fd is good any more. */
  wasReset(): void {
    this.#disable();
    this.#enter(VFIO_DEVICE_STATE_RUNNING);
  }

  /** Walks to a state, hop by hop: EINVAL when there is no way, EIO or what a hop said when one failed. */
  *setState(to: number): Task<MigrationStateResult> {
    let file: OpenFile | undefined;
    // A request for the state the device is in still has to be one it has.
    if (vfio_mig_get_next_state(this.flags, this.state, to) === undefined) return { rc: -EINVAL };
    while (this.state !== to) {
      const next = vfio_mig_get_next_state(this.flags, this.state, to);
      if (next === undefined) return { rc: -EINVAL };
      const hop = yield* this.#hop(this.#state, next);
      if (typeof hop === 'number' && hop < 0) return { rc: hop };
      file = typeof hop === 'number' ? undefined : hop;
      this.#enter(next);
    }
    return { rc: 0, ...(file === undefined ? {} : { file }) };
  }

  /** Bytes that STOP_COPY would give if the device went there now. */
  stopCopyBytes(): number {
    sharedRead(this, 'data descriptor');
    return this.unit.stopCopyBytes(this.#saving !== undefined) + (this.#saving?.bufferedBytes ?? 0);
  }

  #enter(state: number): void {
    sharedWrite(this, 'state', this.#state, state);
    if (state === this.#state) return;
    this.#runtime.emit('vfio.mig-state', {
      device: this.#name,
      from: migrationStateName(this.#state),
      to: migrationStateName(state),
    });
    this.#state = state;
  }

  /** One arc: 0, a new data_fd, or -errno. */
  *#hop(from: number, to: number): Task<OpenFile | number> {
    yield MIG_ARC_NS;
    // The card does not answer its driver's command.
    if (!this.#isPresent() || this.#runtime.faults.fires('vfio.mig-arc')) return -EIO;
    if (this.#runtime.faults.fires('vfio.mig-error')) {
      this.#disable();
      this.#enter(VFIO_DEVICE_STATE_ERROR);
      return -EIO;
    }
    if (from === VFIO_DEVICE_STATE_RESUMING) {
      const rc = this.#load();
      if (rc < 0) return rc;
    }
    const activity = ACTIVITY.get(to) ?? 'stopped';
    yield 'vfio:mig-arc';
    if (activity !== this.unit.activity) yield* this.unit.setActivity(activity);
    yield 'vfio:mig-arc-done';
    // The descriptor is only made and ended under the device's lock; that one is there is told to whoever asks for sizes.
    sharedWrite(this, 'data descriptor');
    const wasSaving = this.#saving !== undefined;
    const isSaving = PRE_COPY_STATES.includes(to) || to === VFIO_DEVICE_STATE_STOP_COPY;
    if (isSaving && !wasSaving) {
      this.#saving = new SavingFile(this.unit);
      if (to === VFIO_DEVICE_STATE_STOP_COPY) this.#saving.finish();
      return this.#saving;
    }
    if (to === VFIO_DEVICE_STATE_STOP_COPY) this.#saving?.finish();
    if (wasSaving && !isSaving) this.#disable();
    if (to === VFIO_DEVICE_STATE_RESUMING) {
      this.unit.beginLoad();
      this.#resuming = new ResumingFile(this.unit, this.#runtime, this.#resumeBytes);
      return this.#resuming;
    }
    return 0;
  }

  /** RESUMING ends: the stream must have been whole. What was refused can be written again from the start after another RESUMING. */
  #load(): number {
    const file = this.#resuming;
    try {
      if (file?.error !== undefined) throw file.error;
      this.unit.finishLoad(file?.isEmpty !== false);
    } catch (error) {
      if (!(error instanceof DeviceStateError)) throw error;
      this.#runtime.emit('kernel.log', { text: `${this.#name}: migration state refused: ${error.message}` });
      return -EINVAL;
    }
    this.#disable();
    return 0;
  }

  #disable(): void {
    sharedWrite(this, 'data descriptor');
    this.#saving?.disable();
    this.#resuming?.disable();
    this.#saving = undefined;
    this.#resuming = undefined;
  }
}

/** A data_fd that is read: pre-copy data while the device runs, the rest once it is stopped. */
class SavingFile extends OpenFile {
  readonly #unit: MigrationUnit;
  /** Records that were taken from the card and not read yet. */
  #buffer: Uint8Array = new Uint8Array();
  #isFinal = false;
  #isDisabled = false;
  /** Of what the card had at the start of pre-copy, still to be read. */
  #initialBytes: number;

  constructor(unit: MigrationUnit) {
    super();
    this.#unit = unit;
    this.#buffer = unit.identity();
    unit.markContext();
    this.#initialBytes = this.#buffer.length + unit.dirtyPages * CONTEXT_RECORD_BYTES;
  }

  get bufferedBytes(): number {
    sharedRead(this, 'data', this.#buffer.length);
    return this.#buffer.length;
  }

  /** The device has stopped: what is left of its context, then its state, then the end. */
  finish(): void {
    sharedWrite(this, 'data', this.#buffer.length);
    this.#isFinal = true;
    const records = [this.#buffer];
    for (let page = this.#unit.takeContext(); page !== undefined; page = this.#unit.takeContext()) records.push(page);
    records.push(...this.#unit.state());
    this.#buffer = concatenate(records);
  }

  disable(): void {
    sharedWrite(this, 'isDisabled', this.#isDisabled, true);
    this.#isDisabled = true;
  }

  /** Empty at the end of STOP_COPY; -ENOMSG when pre-copy has nothing at the moment; -ENODEV when the state was left. */
  override *read(_ctx: SyscallContext, lengthBytes: number): Task<Uint8Array | number> {
    yield MIG_READ_NS;
    sharedRead(this, 'isDisabled', this.#isDisabled);
    if (this.#isDisabled) return -ENODEV;
    sharedWrite(this, 'data', this.#buffer.length);
    if (!this.#isFinal) this.#fill(lengthBytes);
    if (this.#buffer.length === 0 && !this.#isFinal) return -ENOMSG;
    const bytes = this.#buffer.slice(0, lengthBytes);
    this.#buffer = this.#buffer.subarray(bytes.length);
    this.#initialBytes = Math.max(0, this.#initialBytes - bytes.length);
    return bytes;
  }

  override *ioctl(ctx: SyscallContext, cmd: number, arg: bigint): Task<number> {
    if (cmd !== VFIO_MIG_GET_PRECOPY_INFO.number) return -ENOTTY;
    const bytes = ctx.copy_from_user(arg, vfio_precopy_info.sizeBytes);
    if (bytes === undefined) return -EFAULT;
    const argsz = u32.read(new DataView(bytes.buffer, bytes.byteOffset), 0);
    if (argsz < VFIO_MIG_GET_PRECOPY_INFO.minimumBytes) return -EINVAL;
    sharedRead(this, 'isDisabled', this.#isDisabled);
    sharedRead(this, 'data', this.#buffer.length);
    if (this.#isDisabled) return -ENODEV;
    if (this.#isFinal) return -EINVAL;
    const available = this.#buffer.length + this.#unit.dirtyPages * CONTEXT_RECORD_BYTES;
    const initial_bytes = Math.min(this.#initialBytes, available);
    const info = {
      argsz,
      flags: 0,
      initial_bytes: BigInt(initial_bytes),
      dirty_bytes: BigInt(available - initial_bytes),
    };
    return ctx.copy_to_user(arg, vfio_precopy_info.encode(info)) ? 0 : -EFAULT;
  }

  #fill(lengthBytes: number): void {
    const records = [this.#buffer];
    for (let total = this.#buffer.length; total < lengthBytes;) {
      const page = this.#unit.takeContext();
      if (page === undefined) break;
      records.push(page);
      total += page.length;
    }
    if (records.length > 1) this.#buffer = concatenate(records);
  }
}

/**
 * A data_fd that is written. What is wrong with the bytes is said when RESUMING is left, as the card looks at them then. Where the file
 * stands, what there is room for and whether it is still good are looked at in one step with the copy, as under the file's lock.
 */
class ResumingFile extends OpenFile {
  readonly #unit: MigrationUnit;
  readonly #runtime: NodeRuntime;
  readonly #capacity: number;
  #position = 0;
  #isDisabled = false;
  error: DeviceStateError | undefined;

  /** `capacity`: bytes there is room for. */
  constructor(unit: MigrationUnit, runtime: NodeRuntime, capacity: number) {
    super();
    this.#unit = unit;
    this.#runtime = runtime;
    this.#capacity = capacity;
  }

  get isEmpty(): boolean {
    sharedRead(this, 'position', this.#position);
    return this.#position === 0;
  }

  disable(): void {
    sharedWrite(this, 'isDisabled', this.#isDisabled, true);
    this.#isDisabled = true;
  }

  /** -ENODEV when the state was left; -ENOMEM for more than there is room for. */
  override *write(_ctx: SyscallContext, bytes: Uint8Array): Task<number> {
    // What is looked at before the wait says nothing about what is there after it.
    sharedRead(this, 'isDisabled', this.#isDisabled);
    const isUnlocked = !this.#isDisabled && this.#runtime.faults.fires('vfio.resume-unlocked');
    const isMeasured = this.#runtime.faults.fires('vfio.resume-bounds-unlocked') && this.#hasRoomFor(bytes);
    yield MIG_READ_NS;
    yield 'vfio:resume-write';
    sharedRead(this, 'isDisabled', this.#isDisabled);
    if (this.#isDisabled && !isUnlocked) return -ENODEV;
    if (!isMeasured && !this.#hasRoomFor(bytes)) return -ENOMEM;
    sharedWrite(this, 'position', this.#position, this.#position + bytes.length);
    this.#position += bytes.length;
    try {
      invariant(!this.#isDisabled, 'migration data is loaded into a device that is not resuming', 'device-state');
      invariant(
        this.#position <= this.#capacity,
        () => `migration data is copied to byte ${this.#position} of a buffer of ${this.#capacity}`,
        'device-state',
      );
      this.#runtime.invariants.held('device-state');
      if (this.error === undefined) this.#unit.load(bytes);
    } catch (error) {
      if (!(error instanceof DeviceStateError)) throw error;
      this.error = error;
    }
    return bytes.length;
  }

  #hasRoomFor({ length }: Uint8Array): boolean {
    sharedRead(this, 'position', this.#position);
    return this.#position + length <= this.#capacity;
  }
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
