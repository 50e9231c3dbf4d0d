/**
 * A driver for the DMA engine (src/uapi/dma-engine.ts), as a guest or a user-space program has one.
 *
 * It reaches the registers through the device's VFIO region and waits for the MSI-X vector; then it looks at STATUS. An
 * interrupt that does not come within the time-out is reported as missing, not waited for: real drivers have time-outs
 * for the same reason. One transfer at a time.
 */
import type { BitFields, Register } from '../layout/bits.js';
import { u32 } from '../layout/struct.js';
import { invariant, type Task } from '../runtime/task.js';
import {
  DMA_COMMAND,
  DMA_DST,
  DMA_ENGINE_ID,
  DMA_ENGINE_REGISTER_BAR,
  DMA_ENGINE_VECTORS,
  DMA_ERROR,
  DMA_ERROR_CODE,
  DMA_ID,
  DMA_LENGTH,
  DMA_OP,
  DMA_PATTERN,
  DMA_SRC,
  DMA_STATUS,
  DMA_SUM,
} from '../uapi/dma-engine.js';
import { ENODEV, KernelError } from '../uapi/errno.js';
import { VFIO_PCI_BAR0_REGION_INDEX } from '../uapi/vfio.js';
import type { DriverDevice } from './vfio-device.js';

/** What the engine said about a transfer. */
export interface DmaOutcome {
  /** `stuck`: still busy when the time was up. */
  readonly status: 'done' | 'error' | 'stuck';
  readonly error: keyof typeof DMA_ERROR_CODE;
  /** FNV-1a of the bytes read; meaningful for COPY and SUM. */
  readonly sum: number;
  /** Whether the MSI-X vector was signalled, and how often. */
  readonly isInterrupted: boolean;
  readonly interrupts: bigint;
}

/** A transfer. Addresses are bus addresses: IOVAs, for a guest its guest-physical addresses. */
export type DmaTransfer =
  | { readonly op: 'FILL'; readonly to: bigint; readonly lengthBytes: number; readonly pattern: number }
  | { readonly op: 'COPY'; readonly from: bigint; readonly to: bigint; readonly lengthBytes: number }
  | { readonly op: 'SUM'; readonly from: bigint; readonly lengthBytes: number };

/** Longest wait for an interrupt, whatever the transfer. */
const TIMEOUT_NS = 20_000_000;
const ALL_ONES = 0xffff_ffff;
const REGION = VFIO_PCI_BAR0_REGION_INDEX + DMA_ENGINE_REGISTER_BAR;

/** A started DMA engine. */
export class DmaEngineDriver {
  readonly device: DriverDevice;

  private constructor(device: DriverDevice) {
    this.device = device;
  }

  /** Switches bus mastering and MSI-X on. @throws KernelError (ENODEV) when the function is no DMA engine. */
  static *start(device: DriverDevice): Task<DmaEngineDriver> {
    const driver = new DmaEngineDriver(device);
    yield* device.setBusMaster(true);
    if ((yield* driver.#read(DMA_ID)) !== DMA_ENGINE_ID) throw new KernelError(ENODEV, `probe ${device.bdf}`);
    yield* device.enableMsix(DMA_ENGINE_VECTORS);
    return driver;
  }

  /** Runs one transfer to its end and takes its interrupt; after starting it the driver does something else for `busyNs`. @throws KernelError (ENODEV) when the card is gone: its registers read as ones */
  *run(transfer: DmaTransfer, vector = 0, busyNs = 0): Task<DmaOutcome> {
    if ('from' in transfer) yield* this.#writeAddress(DMA_SRC, transfer.from);
    if ('to' in transfer) yield* this.#writeAddress(DMA_DST, transfer.to);
    if (transfer.op === 'FILL') yield* this.#write(DMA_PATTERN.offset, transfer.pattern);
    yield* this.#write(DMA_LENGTH.offset, transfer.lengthBytes);
    const command = DMA_COMMAND.make({ OP: DMA_OP[transfer.op], IRQ: 1, VECTOR: vector });
    yield* this.#write(DMA_COMMAND.offset, command[0] ?? 0);
    if (busyNs > 0) yield busyNs;
    const interrupts = yield* this.device.waitMsix(vector, TIMEOUT_NS);
    return yield* this.#outcome(interrupts);
  }

  *#outcome(interrupts: bigint): Task<DmaOutcome> {
    const word = yield* this.#read(DMA_STATUS);
    if (word === ALL_ONES) throw new KernelError(ENODEV, `status of ${this.device.bdf}`);
    const status = DMA_STATUS.decode([word]);
    const code = yield* this.#read(DMA_ERROR);
    const sum = yield* this.#read(DMA_SUM);
    const error = (Object.keys(DMA_ERROR_CODE) as DmaOutcome['error'][]).find((name) => DMA_ERROR_CODE[name] === code);
    invariant(error !== undefined, `DMA engine error code ${code}`);
    const end = status.ERROR === 1 ? 'error' : 'done';
    return { status: status.BUSY === 1 ? 'stuck' : end, error, sum, isInterrupted: interrupts > 0n, interrupts };
  }

  *#read<F extends BitFields>(register: Register<F>): Task<number> {
    const bytes = yield* this.device.readRegion(REGION, BigInt(register.offset), u32.sizeBytes);
    return u32.read(new DataView(bytes.buffer, bytes.byteOffset), 0);
  }

  *#writeAddress<F extends BitFields>(register: Register<F>, address: bigint): Task<void> {
    yield* this.#write(register.offset, Number(address & 0xffffffffn));
    yield* this.#write(register.offset + u32.sizeBytes, Number(address >> 32n));
  }

  *#write(offset: number, value: number): Task<void> {
    const bytes = new Uint8Array(u32.sizeBytes);
    u32.write(new DataView(bytes.buffer), 0, value);
    yield* this.device.writeRegion(REGION, BigInt(offset), bytes);
  }
}
