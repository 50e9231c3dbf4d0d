/**
 * A driver for the NIC (src/uapi/nic.ts), as a guest or a user-space program has one.
 *
 * Rings and buffers lie in memory that the device reaches at the addresses its owner uses: a page with a ring for each queue, then
 * a buffer for each descriptor of each ring. Receive rings are kept full. The driver waits for a queue's interrupt and then looks at
 * the ring; when the interrupt does not come in time it looks all the same, so that a frame that came without its interrupt is
 * told from one that never came.
 *
 * Every interrupt of a queue has a cause, a frame that ended or the queue that stopped, and one cause makes at most one interrupt.
 * So a vector on which more interrupts than causes came got somebody else's.
 *
 * Invariants: in a ring, descriptors from `seen` to `tail` are posted and not known to be done; a slot is posted again only after
 * its frame was taken.
 */
import { sameBytes } from '../layout/bytes.js';
import { joinWords, type BitFields, type Register } from '../layout/bits.js';
import { u32 } from '../layout/struct.js';
import type { Task } from '../runtime/task.js';
import { EINVAL, ENODEV, KernelError } from '../uapi/errno.js';
import {
  NIC_CTRL,
  NIC_DESCRIPTOR,
  NIC_DMA_ERRORS,
  NIC_ID,
  NIC_ID_VALUE,
  NIC_LINK,
  NIC_LINK_VECTOR,
  NIC_MAX_FRAME,
  NIC_PAIRS,
  NIC_QUEUE,
  NIC_QUEUE_CAUSE,
  NIC_QUEUES,
  NIC_REGISTER_BAR,
  NIC_RX_BYTES,
  NIC_RX_DROPS,
  NIC_RX_FRAMES,
  NIC_TX_BYTES,
  NIC_TX_FRAMES,
  NIC_VECTORS,
  nicQueueOffset,
} from '../uapi/nic.js';
import { VFIO_PCI_BAR0_REGION_INDEX } from '../uapi/vfio.js';
import type { DriverDevice } from './vfio-device.js';

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
  /** Frames whose descriptors say done. */
  readonly received: number;
  /** The device stopped a queue of the pair: a DMA of its was aborted. */
  readonly isStopped: boolean;
  /** No frame ended without its interrupt. */
  readonly isInterrupted: boolean;
}

/** The device's own counters since its reset. */
export interface NicStatistics {
  readonly txFrames: number;
  readonly txBytes: number;
  readonly rxFrames: number;
  readonly rxBytes: number;
  readonly rxDrops: number;
  readonly dmaErrors: number;
}

/** A queue that stopped and why. */
export interface StoppedQueue {
  readonly queue: number;
  readonly cause: string;
}

/** What the driver lived through since its start. */
export interface NicExperience {
  /** Frames whose transmission the device reported without error. */
  readonly sent: number;
  /** Frames taken from the receive rings. */
  readonly received: number;
  /** Frames given to the device that it never reported as sent. */
  readonly lost: number;
  /** Completions with ERROR. */
  readonly errors: number;
  /** Waits that ended with a completion in the ring but without an interrupt. */
  readonly missingInterrupts: number;
  /** Waits that ended with nothing. */
  readonly timeouts: number;
  /** Vectors on which more interrupts came than there were causes. */
  readonly strayVectors: readonly number[];
  readonly stopped: readonly StoppedQueue[];
  readonly device: NicStatistics;
}

/** A buffer of a frame: its slot in the ring and the bytes used. */
interface Piece {
  readonly slot: number;
  readonly lengthBytes: number;
}

/** A frame that the device is done with. */
interface EndedFrame {
  readonly pieces: readonly Piece[];
  readonly isError: boolean;
}

/** What the driver knows of a queue. */
interface Ring {
  readonly queue: number;
  /** Next slot to post: the device's TAIL. */
  tail: number;
  /** First posted slot that was not seen done. */
  seen: number;
  /** Descriptors posted whose frames were not taken. */
  used: number;
  /** Done descriptors of a frame whose end is yet to come. */
  pieces: Piece[];
  readonly ended: EndedFrame[];
  /** Frames handed over, or seen to have ended without error. */
  posted: number;
  completed: number;
  interrupts: number;
  isStopped: boolean;
}

const RING_DESCRIPTORS = 32;
const RING_STRIDE_BYTES = 4096;
const BUFFER_BYTES = 2048;
/** Longest wait for an interrupt. */
const TIMEOUT_NS = 20_000_000;
const ALL_ONES = 0xffff_ffff;
const REGION = VFIO_PCI_BAR0_REGION_INDEX + NIC_REGISTER_BAR;
/** Memory the driver needs at its base: a ring a queue and a buffer a descriptor. */
export const NIC_DRIVER_BYTES = NIC_QUEUES * (RING_STRIDE_BYTES + RING_DESCRIPTORS * BUFFER_BYTES);

/** A started NIC in loopback. */
export class NicDriver {
  readonly device: DriverDevice;
  readonly #memory: DmaMemory;
  readonly #base: bigint;
  readonly #rings: readonly Ring[] = Array.from({ length: NIC_QUEUES }, (_, queue) => newRing(queue));
  #linkInterrupts = 0;
  #received = 0;
  #errors = 0;
  #missingInterrupts = 0;
  #timeouts = 0;

  private constructor(device: DriverDevice, memory: DmaMemory, base: bigint) {
    this.device = device;
    this.#memory = memory;
    this.#base = base;
  }

  /**
   * Resets the NIC, gives every queue its ring in the {@link NIC_DRIVER_BYTES} at `base` (a multiple of 16), fills the receive rings
   * and switches loopback on.
   * @throws KernelError (ENODEV) when the function is no NIC
   */
  static *start(device: DriverDevice, memory: DmaMemory, base: bigint): Task<NicDriver> {
    const driver = new NicDriver(device, memory, base);
    yield* device.setBusMaster(true);
    if ((yield* driver.#read(NIC_ID.offset)) !== NIC_ID_VALUE) throw new KernelError(ENODEV, `probe ${device.bdf}`);
    yield* device.enableMsix(NIC_VECTORS);
    yield* driver.#write(NIC_CTRL, { RESET: 1 });
    yield* driver.#write(NIC_CTRL, { ENABLE: 1, LOOPBACK: 1 });
    for (const ring of driver.#rings) yield* driver.#startQueue(ring);
    return driver;
  }

  /**
   * Hands a frame over; waits for interrupts only while the ring is full. False when the queue stopped or stays full.
   * @throws KernelError (EINVAL) for a pair that does not exist or a frame the NIC cannot send; (ENODEV) when the card is gone
   */
  *send(pair: number, payload: Uint8Array): Task<boolean> {
    const ring = this.#ring(pair, 1);
    const count = Math.ceil(payload.length / BUFFER_BYTES);
    if (count === 0 || payload.length > NIC_MAX_FRAME)
      throw new KernelError(EINVAL, `send ${payload.length} bytes by ${this.device.bdf}`);
    while (ring.used + count >= RING_DESCRIPTORS) {
      if (!(yield* this.#waitEnd(ring, TIMEOUT_NS))) return false;
      this.#reap(ring);
    }
    if (ring.isStopped) return false;
    for (let i = 0; i < count; i++) {
      const bytes = payload.subarray(i * BUFFER_BYTES, (i + 1) * BUFFER_BYTES);
      yield* this.#memory.store(this.#buffer(ring, ring.tail), bytes);
      yield* this.#post(ring, bytes.length, i === count - 1);
    }
    ring.posted++;
    yield* this.#writeQueue(ring.queue, 'TAIL', ring.tail);
    return true;
  }

  /**
   * Waits until the device has reported every frame of a pair as sent; false when it did not in time, or stopped.
   * @throws KernelError (EINVAL, ENODEV) as {@link send}
   */
  *flush(pair: number): Task<boolean> {
    const ring = this.#ring(pair, 1);
    while (ring.used > 0) {
      if (!(yield* this.#waitEnd(ring, TIMEOUT_NS))) return false;
      this.#reap(ring);
    }
    return !ring.isStopped;
  }

  /**
   * The next frame of a pair; undefined when none came in time or the queue stopped.
   * @throws KernelError (EINVAL, ENODEV) as {@link send}
   */
  *receive(pair: number, timeoutNs = TIMEOUT_NS): Task<Uint8Array | undefined> {
    const ring = this.#ring(pair, 0);
    if (!(yield* this.#waitEnd(ring, timeoutNs))) return undefined;
    const ended = ring.ended.shift();
    if (ended === undefined || ended.isError) return undefined;
    const frame = new Uint8Array(ended.pieces.reduce((sum, piece) => sum + piece.lengthBytes, 0));
    let at = 0;
    for (const { slot, lengthBytes } of ended.pieces) {
      const bytes = yield* this.#memory.load(this.#buffer(ring, slot), lengthBytes);
      if (bytes !== undefined) frame.set(bytes, at);
      at += lengthBytes;
    }
    ring.used -= ended.pieces.length;
    for (let i = 0; i < ended.pieces.length; i++) yield* this.#post(ring, BUFFER_BYTES, false);
    yield* this.#writeQueue(ring.queue, 'TAIL', ring.tail);
    this.#received++;
    return frame;
  }

  /**
   * Sends frames through a pair of queues and takes them as they come back, as many at a time as a receive ring holds. Gives up
   * when frames of such a round are missing. Frames hold their number and a pattern.
   * @throws KernelError (EINVAL, ENODEV) as {@link send}
   */
  *exchange(pair: number, frames: number, lengthBytes: number): Task<NicOutcome> {
    const [rx, tx] = [this.#ring(pair, 0), this.#ring(pair, 1)];
    const round = Math.floor((RING_DESCRIPTORS - 1) / Math.max(1, Math.ceil(lengthBytes / BUFFER_BYTES)));
    const unsignalled = this.#missingInterrupts + this.#timeouts;
    let [sent, received, intact, next] = [0, 0, 0, 0];
    let isComplete = true;
    while (sent < frames && isComplete) {
      const completedBefore = tx.completed;
      const end = Math.min(frames, sent + round);
      for (; sent < end && isComplete; sent++) isComplete = yield* this.send(pair, frameBytes(sent, lengthBytes));
      isComplete = (yield* this.flush(pair)) && isComplete;
      for (let due = tx.completed - completedBefore; due > 0; due--) {
        const frame = yield* this.receive(pair);
        if (frame === undefined) {
          isComplete = false;
          break;
        }
        received++;
        const number = numberOf(frame, next, sent, lengthBytes);
        if (number === undefined) continue;
        intact++;
        next = number + 1;
      }
    }
    const stopped = yield* this.#stoppedQueues();
    const isStopped = stopped.some(
      ({ queue, cause }) => (queue === rx.queue || queue === tx.queue) && ABORT_CAUSES.includes(cause),
    );
    const isInterrupted = this.#missingInterrupts + this.#timeouts === unsignalled;
    return { sent, received, intact, damaged: received - intact, isStopped, isInterrupted };
  }

  /** What happened since the start. Looks at every vector and ring. @throws KernelError (ENODEV) when the card is gone */
  *experience(): Task<NicExperience> {
    for (const ring of this.#rings) {
      ring.interrupts += Number(yield* this.device.waitMsix(ring.queue, 0));
      yield* this.#look(ring);
      if (ring.queue % 2 === 1) this.#reap(ring);
    }
    this.#linkInterrupts += Number(yield* this.device.waitMsix(NIC_LINK_VECTOR, 0));
    // Causes are counted after their effects: what happens meanwhile must not look like an interrupt without a cause.
    const stopped = yield* this.#stoppedQueues();
    const strayVectors = this.#rings
      .filter((ring) => ring.interrupts > ring.completed + Number(stopped.some(({ queue }) => queue === ring.queue)))
      .map(({ queue }) => queue);
    const link = yield* this.#read(NIC_LINK.offset);
    if (this.#linkInterrupts > NIC_LINK.get([link], 'CHANGES')) strayVectors.push(NIC_LINK_VECTOR);
    const senders = this.#rings.filter(({ queue }) => queue % 2 === 1);
    const sent = senders.reduce((sum, ring) => sum + ring.completed, 0);
    return {
      sent,
      received: this.#received,
      lost: senders.reduce((sum, ring) => sum + ring.posted, 0) - sent,
      errors: this.#errors,
      missingInterrupts: this.#missingInterrupts,
      timeouts: this.#timeouts,
      strayVectors,
      stopped,
      device: yield* this.#statistics(),
    };
  }

  /** Resets the NIC, frees its vectors and takes bus mastering away: the memory at `base` is the owner's again. */
  *stop(): Task<void> {
    yield* this.#write(NIC_CTRL, { RESET: 1 });
    yield* this.device.disableMsix();
    yield* this.device.setBusMaster(false);
  }

  // --- rings ---

  #ring(pair: number, direction: 0 | 1): Ring {
    const ring = this.#rings[2 * pair + direction];
    if (ring === undefined || pair < 0 || pair >= NIC_PAIRS) throw new KernelError(EINVAL, `pair ${pair} of queues`);
    return ring;
  }

  *#startQueue(ring: Ring): Task<void> {
    const isReceiver = ring.queue % 2 === 0;
    const base = this.#descriptor(ring, 0);
    const bytes = new Uint8Array(RING_DESCRIPTORS * NIC_DESCRIPTOR.sizeBytes);
    for (let slot = 0; isReceiver && slot < RING_DESCRIPTORS; slot++)
      bytes.set(this.#descriptorBytes(ring, slot, BUFFER_BYTES, false), slot * NIC_DESCRIPTOR.sizeBytes);
    yield* this.#memory.store(base, bytes);
    yield* this.#writeQueue(ring.queue, 'BASE_LO', Number(base & 0xffff_ffffn));
    yield* this.#writeQueue(ring.queue, 'BASE_HI', Number(base >> 32n));
    yield* this.#writeQueue(ring.queue, 'SIZE', RING_DESCRIPTORS);
    yield* this.#writeQueue(ring.queue, 'CTRL', 1);
    if (!isReceiver) return;
    ring.used = RING_DESCRIPTORS - 1;
    ring.tail = RING_DESCRIPTORS - 1;
    yield* this.#writeQueue(ring.queue, 'TAIL', ring.tail);
  }

  /** Writes the descriptor of the slot at TAIL; the doorbell is the caller's. */
  *#post(ring: Ring, lengthBytes: number, isLast: boolean): Task<void> {
    const bytes = this.#descriptorBytes(ring, ring.tail, lengthBytes, isLast);
    yield* this.#memory.store(this.#descriptor(ring, ring.tail), bytes);
    ring.tail = (ring.tail + 1) % RING_DESCRIPTORS;
    ring.used++;
  }

  /** Waits for the end of a frame in a ring; false when there is none and none will come, or the time is up. */
  *#waitEnd(ring: Ring, timeoutNs: number): Task<boolean> {
    const deadlineNs = this.device.clockNs + timeoutNs;
    while (ring.ended.length === 0) {
      if (ring.isStopped) return false;
      const interrupts = yield* this.device.waitMsix(ring.queue, Math.max(0, deadlineNs - this.device.clockNs));
      ring.interrupts += Number(interrupts);
      const isEnd = yield* this.#look(ring);
      if (interrupts === 0n) {
        if (isEnd) this.#missingInterrupts++;
        else this.#timeouts++;
      }
      const control = yield* this.#readQueue(ring.queue, 'CTRL');
      ring.isStopped = NIC_QUEUE.CTRL.get([control], 'ERROR') === 1;
      if (interrupts === 0n) return isEnd;
    }
    return true;
  }

  /** Looks at the posted descriptors; whether frames ended since the last look. */
  *#look(ring: Ring): Task<boolean> {
    const bytes = yield* this.#memory.load(this.#descriptor(ring, 0), RING_DESCRIPTORS * NIC_DESCRIPTOR.sizeBytes);
    if (bytes === undefined) return false;
    const words = new Uint32Array(bytes.slice().buffer);
    const before = ring.ended.length;
    for (; ring.seen !== ring.tail; ring.seen = (ring.seen + 1) % RING_DESCRIPTORS) {
      const base = (ring.seen * NIC_DESCRIPTOR.sizeBytes) / u32.sizeBytes;
      const { DONE, ERROR, EOP, LENGTH } = NIC_DESCRIPTOR.decode(words, base);
      if (DONE === 0) break;
      ring.pieces.push({ slot: ring.seen, lengthBytes: LENGTH });
      if (ERROR === 0 && EOP === 0) continue;
      ring.ended.push({ pieces: ring.pieces, isError: ERROR === 1 });
      ring.pieces = [];
      if (ERROR === 1) {
        ring.isStopped = true;
        this.#errors++;
      } else ring.completed++;
    }
    return ring.ended.length > before;
  }

  /** Takes the ended frames of a transmit ring: their slots are free. */
  #reap(ring: Ring): void {
    for (const { pieces } of ring.ended.splice(0)) ring.used -= pieces.length;
  }

  *#stoppedQueues(): Task<StoppedQueue[]> {
    const stopped: StoppedQueue[] = [];
    for (const { queue } of this.#rings) {
      const { ERROR, CAUSE } = NIC_QUEUE.CTRL.decode([yield* this.#readQueue(queue, 'CTRL')]);
      const cause = Object.entries(NIC_QUEUE_CAUSE).find(([, code]) => code === CAUSE)?.[0] ?? `${CAUSE}`;
      if (ERROR === 1) stopped.push({ queue, cause });
    }
    return stopped;
  }

  #descriptorBytes(ring: Ring, slot: number, lengthBytes: number, isLast: boolean): Uint8Array {
    const address = this.#buffer(ring, slot);
    const words = NIC_DESCRIPTOR.make({
      ADDRESS_LO: Number(address & 0xffff_ffffn),
      ADDRESS_HI: Number(address >> 32n),
      LENGTH: lengthBytes,
      EOP: Number(isLast),
    });
    return new Uint8Array(words.buffer);
  }

  #descriptor(ring: Ring, slot: number): bigint {
    return this.#base + BigInt(ring.queue * RING_STRIDE_BYTES + slot * NIC_DESCRIPTOR.sizeBytes);
  }

  #buffer(ring: Ring, slot: number): bigint {
    const index = ring.queue * RING_DESCRIPTORS + slot;
    return this.#base + BigInt(NIC_QUEUES * RING_STRIDE_BYTES + index * BUFFER_BYTES);
  }

  // --- registers ---

  *#statistics(): Task<NicStatistics> {
    return {
      txFrames: yield* this.#read(NIC_TX_FRAMES.offset),
      txBytes: yield* this.#read64(NIC_TX_BYTES.offset),
      rxFrames: yield* this.#read(NIC_RX_FRAMES.offset),
      rxBytes: yield* this.#read64(NIC_RX_BYTES.offset),
      rxDrops: yield* this.#read(NIC_RX_DROPS.offset),
      dmaErrors: yield* this.#read(NIC_DMA_ERRORS.offset),
    };
  }

  *#write<F extends BitFields>(register: Register<F>, fields: Partial<Record<keyof F & string, number>>): Task<void> {
    yield* this.#store(register.offset, register.make(fields)[0] ?? 0);
  }

  *#writeQueue(queue: number, name: keyof typeof NIC_QUEUE, value: number): Task<void> {
    yield* this.#store(nicQueueOffset(queue, NIC_QUEUE[name]), value);
  }

  /** @throws KernelError (ENODEV) when the register reads as ones: the card is gone */
  *#readQueue(queue: number, name: keyof typeof NIC_QUEUE): Task<number> {
    const word = yield* this.#read(nicQueueOffset(queue, NIC_QUEUE[name]));
    if (word === ALL_ONES) throw new KernelError(ENODEV, `registers of ${this.device.bdf}`);
    return word;
  }

  *#read64(offset: number): Task<number> {
    const low = yield* this.#read(offset);
    return joinWords(low, yield* this.#read(offset + u32.sizeBytes));
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

/** Causes that are an aborted DMA. The others are a device that read what no driver wrote. */
const ABORT_CAUSES: readonly string[] = ['FETCH', 'BUFFER', 'WRITE_BACK'] satisfies (keyof typeof NIC_QUEUE_CAUSE)[];

function newRing(queue: number): Ring {
  const counters = { tail: 0, seen: 0, used: 0, posted: 0, completed: 0, interrupts: 0 };
  return { queue, ...counters, pieces: [], ended: [], isStopped: false };
}

/** Contents of frame `number`: every byte depends on the frame and its place in it. */
function frameBytes(number: number, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = (i * 7 + number * 31 + 1) & 0xff;
  return bytes;
}

/** Which of the frames from `first` to `end`-1 arrived; undefined when it is none of them. */
function numberOf(frame: Uint8Array, first: number, end: number, lengthBytes: number): number | undefined {
  if (frame.length !== lengthBytes) return undefined;
  for (let number = first; number < end; number++) {
    if (sameBytes(frame, frameBytes(number, lengthBytes))) return number;
  }
  return undefined;
}
