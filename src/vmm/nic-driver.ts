/**
 * A driver for the NIC (src/uapi/nic.ts), as a guest or a user-space program has one.
 *
 * Rings and buffers lie in memory that the device reaches at the addresses its owner uses: a page of descriptors a queue, then
 * the buffers. Frames are sent and awaited by interrupts, with a time-out; afterwards the ring is looked at, so that a frame that
 * came without its interrupt is told from one that never came.
 */
import type { BitFields, Register } from '../layout/bits.js';
import { u32 } from '../layout/struct.js';
import type { Task } from '../runtime/task.js';
import { EINVAL, ENODEV, KernelError } from '../uapi/errno.js';
import {
  NIC_CTRL,
  NIC_DESCRIPTOR,
  NIC_ID,
  NIC_ID_VALUE,
  NIC_MAX_FRAME,
  NIC_QUEUE,
  NIC_QUEUES,
  NIC_REGISTER_BAR,
  NIC_VECTORS,
  nicQueueOffset,
} from '../uapi/nic.js';
import { VFIO_PCI_BAR0_REGION_INDEX } from '../uapi/vfio.js';
import type { VfioDevice } from './vfio-device.js';

/** Memory of the owner, by the addresses the device uses. */
export interface DmaMemory {
  readonly load: (address: bigint, lengthBytes: number) => Task<Uint8Array | undefined>;
  readonly store: (address: bigint, bytes: Uint8Array) => Task<void>;
}

/** What came of sending frames to oneself. */
export interface NicOutcome {
  readonly sent: number;
  /** Frames that came back as they were sent. */
  readonly intact: number;
  readonly damaged: number;
  /** Frames whose descriptor says done. */
  readonly received: number;
  /** The device stopped a queue: a DMA of its was aborted. */
  readonly isStopped: boolean;
  /** Interrupts of the transmit and the receive queue came. */
  readonly isInterrupted: boolean;
}

const RING_DESCRIPTORS = 64;
const RING_BYTES = 4096;
const BUFFER_BYTES = 2048;
const TIMEOUT_NS = 20_000_000;
const REGION = VFIO_PCI_BAR0_REGION_INDEX + NIC_REGISTER_BAR;
/** Memory the driver needs: a ring a queue, and buffers for one pair in both directions. */
export const NIC_DRIVER_BYTES = NIC_QUEUES * RING_BYTES + 2 * RING_DESCRIPTORS * BUFFER_BYTES;

/** A started NIC in loopback. */
export class NicDriver {
  readonly device: VfioDevice;
  readonly #memory: DmaMemory;
  readonly #base: bigint;
  readonly #tails = new Uint16Array(NIC_QUEUES);

  private constructor(device: VfioDevice, memory: DmaMemory, base: bigint) {
    this.device = device;
    this.#memory = memory;
    this.#base = base;
  }

  /** Resets the NIC, gives every queue its ring at `base` and switches loopback on. @throws KernelError (ENODEV) when it is none */
  static *start(device: VfioDevice, memory: DmaMemory, base: bigint): Task<NicDriver> {
    const driver = new NicDriver(device, memory, base);
    yield* device.setBusMaster(true);
    if ((yield* driver.#read(NIC_ID.offset)) !== NIC_ID_VALUE) throw new KernelError(ENODEV, `probe ${device.bdf}`);
    yield* device.enableMsix(NIC_VECTORS);
    yield* driver.#write(NIC_CTRL, { RESET: 1 });
    yield* driver.#write(NIC_CTRL, { ENABLE: 1, LOOPBACK: 1 });
    for (let queue = 0; queue < NIC_QUEUES; queue++) yield* driver.#startQueue(queue);
    return driver;
  }

  /**
   * Sends frames through a pair of queues and waits until they came back or the time is up. Frames hold their number and a pattern.
   * @throws KernelError (EINVAL) for frames longer than a buffer or more frames than a ring holds
   */
  *exchange(pair: number, frames: number, lengthBytes: number): Task<NicOutcome> {
    if (lengthBytes > Math.min(BUFFER_BYTES, NIC_MAX_FRAME) || frames >= RING_DESCRIPTORS)
      throw new KernelError(EINVAL, `${frames} frames of ${lengthBytes} bytes`);
    const [rx, tx] = [2 * pair, 2 * pair + 1];
    const first = this.#tails[rx] ?? 0;
    for (let i = 0; i < frames; i++)
      yield* this.#post(rx, (first + i) % RING_DESCRIPTORS, this.#buffer(0, i), BUFFER_BYTES);
    for (let i = 0; i < frames; i++) {
      yield* this.#memory.store(this.#buffer(1, i), frameBytes(i, lengthBytes));
      yield* this.#post(tx, (first + i) % RING_DESCRIPTORS, this.#buffer(1, i), lengthBytes);
    }
    const tail = (first + frames) % RING_DESCRIPTORS;
    for (const queue of [rx, tx]) {
      this.#tails[queue] = tail;
      yield* this.#writeQueue(queue, 'TAIL', tail);
    }
    const sentInterrupt = yield* this.device.waitMsix(tx, TIMEOUT_NS);
    const receivedInterrupt = yield* this.#waitReceived(rx, tail);
    const isInterrupted = sentInterrupt > 0n && receivedInterrupt;
    return yield* this.#collect(rx, tx, first, frames, lengthBytes, isInterrupted);
  }

  /** Waits for interrupts of a receive queue until its HEAD is at `tail`; false when none came in time. */
  *#waitReceived(queue: number, tail: number): Task<boolean> {
    for (;;) {
      if ((yield* this.device.waitMsix(queue, TIMEOUT_NS)) === 0n) return false;
      const head = yield* this.#readQueue(queue, 'HEAD');
      const control = yield* this.#readQueue(queue, 'CTRL');
      if (head === tail || control !== 1) return true;
    }
  }

  *#collect(
    rx: number,
    tx: number,
    first: number,
    frames: number,
    lengthBytes: number,
    isInterrupted: boolean,
  ): Task<NicOutcome> {
    let [received, intact, damaged] = [0, 0, 0];
    for (let i = 0; i < frames; i++) {
      const bytes = yield* this.#memory.load(
        this.#descriptor(rx, (first + i) % RING_DESCRIPTORS),
        NIC_DESCRIPTOR.sizeBytes,
      );
      const words = bytes === undefined ? new Uint32Array(4) : new Uint32Array(bytes.slice().buffer);
      const { DONE, ERROR, LENGTH } = NIC_DESCRIPTOR.decode(words);
      if (DONE === 0 || ERROR === 1) continue;
      received++;
      const frame = yield* this.#memory.load(this.#buffer(0, i), LENGTH);
      const wanted = frameBytes(i, lengthBytes);
      const isIntact = frame?.length === wanted.length && frame.every((byte, at) => byte === wanted[at]);
      if (isIntact) intact++;
      else damaged++;
    }
    const controls = [yield* this.#readQueue(rx, 'CTRL'), yield* this.#readQueue(tx, 'CTRL')];
    const isStopped = controls.some((word) => NIC_QUEUE.CTRL.get([word], 'ERROR') === 1);
    return { sent: frames, received, intact, damaged, isStopped, isInterrupted };
  }

  *#startQueue(queue: number): Task<void> {
    const base = this.#descriptor(queue, 0);
    yield* this.#memory.store(base, new Uint8Array(RING_DESCRIPTORS * NIC_DESCRIPTOR.sizeBytes));
    yield* this.#writeQueue(queue, 'BASE_LO', Number(base & 0xffff_ffffn));
    yield* this.#writeQueue(queue, 'BASE_HI', Number(base >> 32n));
    yield* this.#writeQueue(queue, 'SIZE', RING_DESCRIPTORS);
    yield* this.#writeQueue(queue, 'CTRL', 1);
  }

  *#post(queue: number, index: number, address: bigint, lengthBytes: number): Task<void> {
    const descriptor = NIC_DESCRIPTOR.make({
      ADDRESS_LO: Number(address & 0xffff_ffffn),
      ADDRESS_HI: Number(address >> 32n),
      LENGTH: lengthBytes,
    });
    yield* this.#memory.store(this.#descriptor(queue, index), new Uint8Array(descriptor.buffer));
  }

  #descriptor(queue: number, index: number): bigint {
    return this.#base + BigInt(queue * RING_BYTES + index * NIC_DESCRIPTOR.sizeBytes);
  }

  /** Buffers to receive into (0) and to send from (1). */
  #buffer(direction: 0 | 1, index: number): bigint {
    return this.#base + BigInt(NIC_QUEUES * RING_BYTES + (direction * RING_DESCRIPTORS + index) * BUFFER_BYTES);
  }

  *#write<F extends BitFields>(register: Register<F>, fields: Partial<Record<keyof F & string, number>>): Task<void> {
    yield* this.#store(register.offset, register.make(fields)[0] ?? 0);
  }

  *#writeQueue(queue: number, name: keyof typeof NIC_QUEUE, value: number): Task<void> {
    yield* this.#store(nicQueueOffset(queue, NIC_QUEUE[name]), value);
  }

  *#readQueue(queue: number, name: keyof typeof NIC_QUEUE): Task<number> {
    return yield* this.#read(nicQueueOffset(queue, NIC_QUEUE[name]));
  }

  *#read(offset: number): Task<number> {
    const bytes = yield* this.device.readRegion(REGION, BigInt(offset), u32.sizeBytes);
    return u32.read(new DataView(bytes.buffer, bytes.byteOffset), 0);
  }

  *#store(offset: number, value: number): Task<void> {
    const bytes = new Uint8Array(u32.sizeBytes);
    u32.write(new DataView(bytes.buffer), 0, value);
    yield* this.device.writeRegion(REGION, BigInt(offset), bytes);
  }
}

/** Contents of frame `number`: every byte depends on the frame and its place in it. */
function frameBytes(number: number, lengthBytes: number): Uint8Array {
  return Uint8Array.from({ length: lengthBytes }, (_, i) => (i * 7 + number * 31 + 1) & 0xff);
}
