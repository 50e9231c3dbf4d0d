/**
 * A NIC: descriptor rings in memory, an MSI-X vector a queue (src/uapi/nic.ts).
 *
 * A queue has a task while there is work. DMA goes through the function, so descriptors, payloads and write-backs all pass the
 * fabric and the SMMU. Frames leave by `onTransmit` and arrive by `receive`; loopback joins the two inside, carrier or not.
 *
 * The model owns its registers and the frames that wait in a receive queue. What a queue is doing is a `Queue` object; a reset or a
 * write to its CTRL replaces the object, and a task that finds its object replaced ends without touching anything. What a migration
 * interrupts is done again, from its descriptor, by the card that gets the state.
 *
 * Invariants: HEAD moves only after the write-back of its descriptor was acknowledged, and the vector is raised only after that; a
 * queue that stopped does no DMA; every frame that arrived since the reset is in NIC_RX_FRAMES, in NIC_RX_DROPS, or waits.
 */
import { pack, unpack } from '../../layout/msgpack.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import {
  NIC_CTRL,
  NIC_DESCRIPTOR,
  NIC_DMA_ERRORS,
  NIC_ID,
  NIC_ID_VALUE,
  NIC_LINK,
  NIC_LINK_VECTOR,
  NIC_MAX_FRAME,
  NIC_MODERATION,
  NIC_QUEUE,
  NIC_QUEUE_CAUSE,
  NIC_QUEUES,
  NIC_REGISTER_BAR,
  NIC_RX_BYTES,
  NIC_RX_DROPS,
  NIC_RX_FRAMES,
  NIC_TX_BYTES,
  NIC_TX_FRAMES,
  nicQueueAt,
  nicQueueOffset,
} from '../../uapi/nic.js';
import type { PciFunction } from '../pcie/function.js';
import { DeviceStateError } from './migration-state.js';
import type { MigratableModel } from './migration-unit.js';

const REGISTER_WORDS = nicQueueOffset(NIC_QUEUES, NIC_QUEUE.BASE_LO) / 4;

/** One life of a queue: from reset or CTRL to the next. */
interface Queue {
  readonly number: number;
  /** A task works on it. */
  isBusy: boolean;
  /** An interrupt is on its way, delayed by moderation. */
  isInterruptPending: boolean;
  /** Received frames that are not in memory yet; the first may be on its way. */
  readonly arrived: Uint8Array[];
}

/** A descriptor as it was fetched. */
interface Fetched {
  readonly index: number;
  readonly words: Uint32Array;
}

/** What {@link Nic.saveState} packs. */
interface NicState {
  readonly registers: readonly number[];
  readonly queues: readonly Pick<Queue, 'isInterruptPending' | 'arrived'>[];
}

type Cause = keyof typeof NIC_QUEUE_CAUSE;

/** The device behind one function. */
export class Nic implements MigratableModel {
  /** Where transmitted frames go when loopback is off and the link is up; nowhere by default. */
  onTransmit: (frame: Uint8Array, pair: number) => void = () => undefined;
  readonly #runtime: NodeRuntime;
  readonly #fn: PciFunction;
  readonly #registers = new Uint32Array(REGISTER_WORDS);
  readonly #queues: Queue[] = [];
  /** The cable's, not the device's: it survives a reset. */
  #isLinkUp = true;

  constructor(runtime: NodeRuntime, fn: PciFunction) {
    this.#runtime = runtime;
    this.#fn = fn;
    this.reset();
  }

  reset(): void {
    this.#registers.fill(0);
    this.#set(NIC_ID.offset, NIC_ID_VALUE);
    this.#set(NIC_LINK.offset, Number(this.#isLinkUp));
    for (let number = 0; number < NIC_QUEUES; number++) {
      this.#queues[number] = newQueue(number);
      this.#setQueue(number, 'VECTOR', number);
    }
  }

  /** Registers; of each queue the frames that wait, and whether an interrupt is due. The cable is not the device's. */
  saveState(): Uint8Array {
    const state: NicState = {
      registers: [...this.#registers],
      queues: this.#queues.map(({ isInterruptPending, arrived }) => ({ isInterruptPending, arrived })),
    };
    return pack(state);
  }

  loadState(bytes: Uint8Array): void {
    const state = unpackState(bytes);
    if (state?.registers.length !== REGISTER_WORDS || state.queues.length !== NIC_QUEUES)
      throw new DeviceStateError('not the state of a NIC');
    this.#registers.set(state.registers);
    for (const [number, { isInterruptPending, arrived }] of state.queues.entries())
      this.#queues[number] = {
        number,
        isBusy: false,
        isInterruptPending,
        arrived: arrived.map((frame) => frame.slice()),
      };
    const { CHANGES, UP } = NIC_LINK.decode([this.#get(NIC_LINK.offset)]);
    if ((UP === 1) !== this.#isLinkUp)
      this.#set(NIC_LINK.offset, NIC_LINK.make({ UP: Number(this.#isLinkUp), CHANGES: CHANGES + 1 })[0] ?? 0);
  }

  resume(): void {
    for (const queue of this.#queues) {
      if (queue.isInterruptPending) {
        queue.isInterruptPending = false;
        this.#interrupt(queue);
      }
      this.#work(queue);
    }
  }

  barRead(bar: number, offset: number, sizeBytes: number): number {
    if (bar !== NIC_REGISTER_BAR) return 0;
    const value = this.#get(offset & ~3) >>> (8 * (offset & 3));
    return sizeBytes >= 4 ? value : value & (2 ** (8 * sizeBytes) - 1);
  }

  /** Registers take whole words; narrower writes are ignored. */
  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void {
    if (bar !== NIC_REGISTER_BAR || sizeBytes !== 4) return;
    if (offset === NIC_CTRL.offset) this.#writeControl(value);
    else if (offset === NIC_MODERATION.offset) this.#set(offset, value);
    const place = nicQueueAt(offset);
    const queue = place === undefined ? undefined : this.#queues[place.queue];
    if (place !== undefined && queue !== undefined) this.#writeQueue(queue, place.offset, value);
  }

  /** A frame arrives by the wire for a pair of queues. @throws RangeError when there is no such pair */
  receive(pair: number, frame: Uint8Array): void {
    if (this.#queues[2 * pair] === undefined) throw new RangeError(`${this.#fn.bdf} has no pair ${pair} of queues`);
    if (this.#isLinkUp) this.#arrive(pair, frame.slice());
  }

  /** The cable is plugged in or pulled out: without it no frame leaves or arrives. */
  setLink(isUp: boolean): void {
    if (isUp === this.#isLinkUp) return;
    this.#isLinkUp = isUp;
    const { CHANGES } = NIC_LINK.decode([this.#get(NIC_LINK.offset)]);
    this.#set(NIC_LINK.offset, NIC_LINK.make({ UP: Number(isUp), CHANGES: CHANGES + 1 })[0] ?? 0);
    this.#raise(NIC_LINK_VECTOR);
  }

  // --- what the driver writes ---

  #writeControl(value: number): void {
    const { ENABLE, LOOPBACK, RESET } = NIC_CTRL.decode([value]);
    if (RESET === 1) {
      this.reset();
      return;
    }
    this.#set(NIC_CTRL.offset, NIC_CTRL.make({ ENABLE, LOOPBACK })[0] ?? 0);
    for (const queue of this.#queues) this.#work(queue);
  }

  #writeQueue(queue: Queue, offset: number, value: number): void {
    const { number } = queue;
    switch (offset) {
      case NIC_QUEUE.BASE_LO.offset:
      case NIC_QUEUE.BASE_HI.offset:
        if (!this.#isEnabled(number)) this.#set(nicQueueOffset(number, NIC_QUEUE.BASE_LO) + offset, value);
        return;
      case NIC_QUEUE.SIZE.offset:
        if (!this.#isEnabled(number)) this.#setQueue(number, 'SIZE', value & 0xffff);
        return;
      case NIC_QUEUE.VECTOR.offset:
        this.#setQueue(number, 'VECTOR', value & 0xffff);
        return;
      case NIC_QUEUE.TAIL.offset:
        this.#ring(queue, value & 0xffff);
        return;
      case NIC_QUEUE.CTRL.offset:
        this.#control(queue, NIC_QUEUE.CTRL.get([value], 'ENABLE') === 1);
    }
  }

  #control(old: Queue, isEnabled: boolean): void {
    const { number } = old;
    const queue = newQueue(number);
    this.#queues[number] = queue;
    for (const frame of old.arrived) this.#drop(number, frame);
    this.#setQueue(number, 'CTRL', Number(isEnabled));
    this.#setQueue(number, 'HEAD', 0);
    this.#setQueue(number, 'TAIL', 0);
    const size = this.#queueRegister(number, 'SIZE');
    const isPowerOfTwo = size >= 2 && (size & (size - 1)) === 0;
    const isAligned = this.#queueRegister(number, 'BASE_LO') % NIC_DESCRIPTOR.sizeBytes === 0;
    if (isEnabled && !(isPowerOfTwo && isAligned)) this.#stop(queue, 'RING');
  }

  /** The doorbell. A queue that is off or stopped does not hear it. */
  #ring(queue: Queue, tail: number): void {
    if (!this.#isEnabled(queue.number) || !this.#isLive(queue)) return;
    if (tail >= this.#queueRegister(queue.number, 'SIZE')) {
      this.#stop(queue, 'RING');
      return;
    }
    this.#setQueue(queue.number, 'TAIL', tail);
    this.#work(queue);
  }

  // --- work of a queue ---

  /** Starts the task of a queue that has something to do and none. */
  #work(queue: Queue): void {
    const isReceiver = queue.number % 2 === 0;
    const hasWork = isReceiver ? queue.arrived.length > 0 : this.#isRunning(queue) && this.#hasDescriptor(queue.number);
    if (queue.isBusy || !hasWork) return;
    queue.isBusy = true;
    const work = isReceiver ? this.#receiveAll(queue) : this.#transmitAll(queue);
    const run = function* (): Task<void> {
      yield* work;
      queue.isBusy = false;
    };
    this.#runtime.spawn(`${this.#fn.bdf}/queue${queue.number}`, run());
  }

  *#transmitAll(queue: Queue): Task<void> {
    while (this.#isRunning(queue) && this.#hasDescriptor(queue.number)) {
      if (!(yield* this.#transmit(queue))) return;
    }
  }

  /** Sends the frame at HEAD; false when it is not all there or the queue stopped. */
  *#transmit(queue: Queue): Task<boolean> {
    const { number } = queue;
    const descriptors = yield* this.#fetchWhile(queue, (fetched) => NIC_DESCRIPTOR.get(fetched.words, 'EOP') === 0);
    if (descriptors === undefined) return false;
    const frame = new Uint8Array(lengthOf(descriptors));
    let at = 0;
    for (const { words } of descriptors) {
      const length = NIC_DESCRIPTOR.get(words, 'LENGTH');
      const bytes = yield* this.#dmaRead(queue, addressOf(words), length);
      if (bytes === undefined) {
        yield* this.#fail(queue, descriptors[0], 'BUFFER');
        return false;
      }
      frame.set(bytes, at);
      at += length;
    }
    if (!(yield* this.#complete(queue, descriptors))) return false;
    this.#count(NIC_TX_FRAMES.offset, NIC_TX_BYTES.offset, frame.length);
    const pair = (number - 1) / 2;
    if (NIC_CTRL.get([this.#get(NIC_CTRL.offset)], 'LOOPBACK') === 1) this.#arrive(pair, frame);
    else if (this.#isLinkUp) this.onTransmit(frame, pair);
    return true;
  }

  #arrive(pair: number, frame: Uint8Array): void {
    const queue = this.#queues[2 * pair];
    if (queue === undefined) return;
    queue.arrived.push(frame);
    this.#work(queue);
  }

  *#receiveAll(queue: Queue): Task<void> {
    for (let frame = queue.arrived[0]; frame !== undefined; frame = queue.arrived[0]) {
      const isReceived = yield* this.#receiveOne(queue, frame);
      if (!this.#isCurrent(queue)) return;
      queue.arrived.shift();
      if (isReceived) this.#count(NIC_RX_FRAMES.offset, NIC_RX_BYTES.offset, frame.length);
      else this.#drop(queue.number, frame);
    }
  }

  /** Puts a frame into as many buffers as it needs; false when there are not enough or the queue stopped. */
  *#receiveOne(queue: Queue, frame: Uint8Array): Task<boolean> {
    if (!this.#isRunning(queue) || frame.length === 0 || frame.length > NIC_MAX_FRAME) return false;
    let room = 0;
    const descriptors = yield* this.#fetchWhile(queue, ({ words }) => {
      room += NIC_DESCRIPTOR.get(words, 'LENGTH');
      return room < frame.length;
    });
    if (descriptors === undefined) return false;
    let at = 0;
    for (const { words } of descriptors) {
      const piece = frame.subarray(at, at + NIC_DESCRIPTOR.get(words, 'LENGTH'));
      if (!(yield* this.#dmaWrite(queue, addressOf(words), piece))) {
        yield* this.#fail(queue, descriptors[0], 'BUFFER');
        return false;
      }
      at += piece.length;
      NIC_DESCRIPTOR.set(words, 'LENGTH', piece.length);
      NIC_DESCRIPTOR.set(words, 'EOP', Number(at === frame.length));
    }
    return yield* this.#complete(queue, descriptors);
  }

  /**
   * The descriptors from HEAD on, up to and with the first for which `isMoreNeeded` is false; undefined when TAIL comes first or
   * the queue stopped. HEAD stays: what was fetched in vain is fetched again.
   */
  *#fetchWhile(queue: Queue, isMoreNeeded: (fetched: Fetched) => boolean): Task<readonly Fetched[] | undefined> {
    const { number } = queue;
    const descriptors: Fetched[] = [];
    const size = this.#queueRegister(number, 'SIZE');
    // TAIL is read anew each time: a doorbell that rings meanwhile starts no task.
    for (
      let index = this.#queueRegister(number, 'HEAD');
      index !== this.#queueRegister(number, 'TAIL');
      index = (index + 1) % size
    ) {
      const bytes = yield* this.#dmaRead(queue, this.#descriptorAddress(number, index), NIC_DESCRIPTOR.sizeBytes);
      if (bytes === undefined) {
        this.#stop(queue, 'FETCH');
        return undefined;
      }
      const fetched = { index, words: new Uint32Array(bytes.slice().buffer) };
      descriptors.push(fetched);
      const isEmpty = NIC_DESCRIPTOR.get(fetched.words, 'LENGTH') === 0;
      const isTooLong = number % 2 === 1 && lengthOf(descriptors) > NIC_MAX_FRAME;
      if (isEmpty || isTooLong) {
        yield* this.#fail(queue, descriptors[0], 'DESCRIPTOR');
        return undefined;
      }
      if (!isMoreNeeded(fetched)) return descriptors;
    }
    return undefined;
  }

  /** Writes descriptors back as done, moves HEAD and interrupts; false when that failed or the queue began anew. */
  *#complete(queue: Queue, descriptors: readonly Fetched[]): Task<boolean> {
    const { number } = queue;
    for (const { index, words } of descriptors) {
      NIC_DESCRIPTOR.set(words, 'DONE', 1);
      if (!(yield* this.#writeBack(queue, index, words))) {
        this.#stop(queue, 'WRITE_BACK');
        return false;
      }
      this.#setQueue(number, 'HEAD', (index + 1) % this.#queueRegister(number, 'SIZE'));
    }
    this.#interrupt(queue);
    return true;
  }

  /** The descriptor of a frame that failed says so if it can be written, and the queue stops. */
  *#fail(queue: Queue, descriptor: Fetched | undefined, cause: Cause): Task<void> {
    if (descriptor === undefined || !this.#isLive(queue)) return;
    NIC_DESCRIPTOR.set(descriptor.words, 'DONE', 1);
    NIC_DESCRIPTOR.set(descriptor.words, 'ERROR', 1);
    yield* this.#writeBack(queue, descriptor.index, descriptor.words);
    this.#stop(queue, cause);
  }

  #stop(queue: Queue, cause: Cause): void {
    if (!this.#isLive(queue)) return;
    const { number } = queue;
    const control = NIC_QUEUE.CTRL.make({ ENABLE: 1, ERROR: 1, CAUSE: NIC_QUEUE_CAUSE[cause] });
    this.#setQueue(number, 'CTRL', control[0] ?? 0);
    this.#runtime.emit('nic.queue-stopped', { device: this.#fn.bdf, queue: number, cause });
    this.#raise(this.#queueRegister(number, 'VECTOR'));
  }

  #drop(queue: number, frame: Uint8Array): void {
    this.#set(NIC_RX_DROPS.offset, this.#get(NIC_RX_DROPS.offset) + 1);
    this.#runtime.emit('nic.rx-drop', { device: this.#fn.bdf, queue, length: frame.length });
  }

  // --- towards memory ---

  /** Undefined when the read was aborted, which is counted, or the queue stopped or began anew meanwhile. */
  *#dmaRead(queue: Queue, address: bigint, lengthBytes: number): Task<Uint8Array | undefined> {
    const { ok, bytes } = yield* this.#fn.dmaRead(address, lengthBytes);
    return this.#judged(queue, ok) ? bytes : undefined;
  }

  /** False when the write was aborted, which is counted, or the queue stopped or began anew meanwhile. */
  *#dmaWrite(queue: Queue, address: bigint, bytes: Uint8Array): Task<boolean> {
    const { ok } = yield* this.#fn.dmaWrite(address, bytes);
    return this.#judged(queue, ok);
  }

  *#writeBack(queue: Queue, index: number, words: Uint32Array): Task<boolean> {
    return yield* this.#dmaWrite(queue, this.#descriptorAddress(queue.number, index), new Uint8Array(words.buffer));
  }

  #judged(queue: Queue, isOk: boolean): boolean {
    if (!this.#isLive(queue)) return false;
    if (!isOk) this.#set(NIC_DMA_ERRORS.offset, this.#get(NIC_DMA_ERRORS.offset) + 1);
    return isOk;
  }

  #interrupt(queue: Queue): void {
    if (queue.isInterruptPending) return;
    queue.isInterruptPending = true;
    const delayNs = this.#get(NIC_MODERATION.offset);
    this.#runtime.scheduler.callAt(this.#runtime.now + delayNs, () => {
      queue.isInterruptPending = false;
      if (this.#isCurrent(queue)) this.#raise(this.#queueRegister(queue.number, 'VECTOR'));
    });
  }

  #raise(vector: number): void {
    this.#runtime.spawn(`${this.#fn.bdf}/msi`, this.#fn.raise(vector));
  }

  // --- registers ---

  #isCurrent(queue: Queue): boolean {
    return this.#queues[queue.number] === queue;
  }

  #isEnabled(queue: number): boolean {
    return NIC_QUEUE.CTRL.get([this.#queueRegister(queue, 'CTRL')], 'ENABLE') === 1;
  }

  /** Neither replaced nor stopped. */
  #isLive(queue: Queue): boolean {
    const control = this.#queueRegister(queue.number, 'CTRL');
    return this.#isCurrent(queue) && NIC_QUEUE.CTRL.get([control], 'ERROR') === 0;
  }

  #isRunning(queue: Queue): boolean {
    const isOn = NIC_CTRL.get([this.#get(NIC_CTRL.offset)], 'ENABLE') === 1;
    return isOn && this.#isEnabled(queue.number) && this.#isLive(queue);
  }

  #hasDescriptor(queue: number): boolean {
    return this.#queueRegister(queue, 'HEAD') !== this.#queueRegister(queue, 'TAIL');
  }

  #descriptorAddress(queue: number, index: number): bigint {
    const base = (BigInt(this.#queueRegister(queue, 'BASE_HI')) << 32n) | BigInt(this.#queueRegister(queue, 'BASE_LO'));
    return base + BigInt(index * NIC_DESCRIPTOR.sizeBytes);
  }

  #queueRegister(queue: number, name: keyof typeof NIC_QUEUE): number {
    return this.#get(nicQueueOffset(queue, NIC_QUEUE[name]));
  }

  #setQueue(queue: number, name: keyof typeof NIC_QUEUE, value: number): void {
    this.#set(nicQueueOffset(queue, NIC_QUEUE[name]), value);
  }

  /** One more frame of so many bytes. */
  #count(frames: number, bytes: number, lengthBytes: number): void {
    this.#set(frames, this.#get(frames) + 1);
    const low = this.#get(bytes) + lengthBytes;
    this.#set(bytes, low);
    if (low >= 2 ** 32) this.#set(bytes + 4, this.#get(bytes + 4) + 1);
  }

  #get(offset: number): number {
    return this.#registers[offset >> 2] ?? 0;
  }

  #set(offset: number, value: number): void {
    this.#registers[offset >> 2] = value;
  }
}

function newQueue(number: number): Queue {
  return { number, isBusy: false, isInterruptPending: false, arrived: [] };
}

function addressOf(words: Uint32Array): bigint {
  return (BigInt(NIC_DESCRIPTOR.get(words, 'ADDRESS_HI')) << 32n) | BigInt(NIC_DESCRIPTOR.get(words, 'ADDRESS_LO'));
}

/** Bytes in the buffers of descriptors. */
function lengthOf(descriptors: readonly Fetched[]): number {
  return descriptors.reduce((sum, { words }) => sum + NIC_DESCRIPTOR.get(words, 'LENGTH'), 0);
}

function unpackState(bytes: Uint8Array): NicState | undefined {
  let state: unknown;
  try {
    state = unpack(bytes);
  } catch {
    return undefined;
  }
  return isState(state) ? state : undefined;
}

function isState(value: unknown): value is NicState {
  const isQueue = (queue: unknown): boolean =>
    typeof queue === 'object' &&
    queue !== null &&
    'isInterruptPending' in queue &&
    typeof queue.isInterruptPending === 'boolean' &&
    'arrived' in queue &&
    Array.isArray(queue.arrived) &&
    queue.arrived.every((frame) => frame instanceof Uint8Array);
  return (
    typeof value === 'object' &&
    value !== null &&
    'registers' in value &&
    Array.isArray(value.registers) &&
    value.registers.every((word) => typeof word === 'number') &&
    'queues' in value &&
    Array.isArray(value.queues) &&
    value.queues.every(isQueue)
  );
}
