/**
 * A NIC: descriptor rings in memory, an MSI-X vector a queue (src/uapi/nic.ts).
 *
 * Each transmit queue has a task while there is work; receiving is a task a frame, one after the other in a queue. DMA goes
 * through the function, so descriptors, payloads and write-backs all pass the fabric and the SMMU. Frames leave by `onTransmit`
 * and arrive by `receive`; loopback joins the two inside.
 *
 * Invariants: HEAD moves only after the write-back of its descriptor was acknowledged; a queue with an error does no DMA; a reset
 * abandons what was under way.
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import {
  NIC_BAR_BYTES,
  NIC_CTRL,
  NIC_DESCRIPTOR,
  NIC_DMA_ERRORS,
  NIC_ID,
  NIC_ID_VALUE,
  NIC_MAX_FRAME,
  NIC_MODERATION,
  NIC_QUEUE,
  NIC_QUEUES,
  NIC_REGISTER_BAR,
  NIC_RX_DROPS,
  NIC_RX_FRAMES,
  NIC_TX_FRAMES,
  nicQueueAt,
  nicQueueOffset,
} from '../../uapi/nic.js';
import type { DeviceModel, PciFunction } from '../pcie/function.js';

const READ_ONLY = [NIC_ID, NIC_TX_FRAMES, NIC_RX_FRAMES, NIC_RX_DROPS, NIC_DMA_ERRORS].map(({ offset }) => offset);

interface Queue {
  /** A task works on it. */
  isBusy: boolean;
  /** An interrupt is on its way, delayed by moderation. */
  isInterruptPending: boolean;
  /** Received frames that wait for their turn. */
  readonly arrived: Uint8Array[];
}

/** The device behind one function. */
export class Nic implements DeviceModel {
  /** Where transmitted frames go when loopback is off; nowhere by default. */
  onTransmit: (frame: Uint8Array, queue: number) => void = () => undefined;
  readonly #runtime: NodeRuntime;
  readonly #fn: PciFunction;
  readonly #registers = new Uint32Array(NIC_BAR_BYTES / 4);
  #queues: readonly Queue[] = [];
  /** Grows with every reset: work of an earlier life stops. */
  #life = 0;

  constructor(runtime: NodeRuntime, fn: PciFunction) {
    this.#runtime = runtime;
    this.#fn = fn;
    this.reset();
  }

  reset(): void {
    this.#life++;
    this.#registers.fill(0);
    this.#set(NIC_ID.offset, NIC_ID_VALUE);
    this.#queues = Array.from({ length: NIC_QUEUES }, () => ({
      isBusy: false,
      isInterruptPending: false,
      arrived: [],
    }));
  }

  barRead(bar: number, offset: number, sizeBytes: number): number {
    if (bar !== NIC_REGISTER_BAR) return 0;
    const value = this.#get(offset & ~3) >>> (8 * (offset & 3));
    return sizeBytes >= 4 ? value : value & (2 ** (8 * sizeBytes) - 1);
  }

  /** Registers take whole words; narrower writes are ignored. */
  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void {
    if (bar !== NIC_REGISTER_BAR || sizeBytes !== 4 || READ_ONLY.includes(offset)) return;
    if (offset === NIC_CTRL.offset && NIC_CTRL.get([value], 'RESET') === 1) {
      this.reset();
      return;
    }
    const place = nicQueueAt(offset);
    if (place === undefined) this.#set(offset, value);
    else this.#writeQueue(place.queue, place.offset, value);
  }

  /** A frame arrives from outside for a pair of queues. */
  receive(pair: number, frame: Uint8Array): void {
    const number = 2 * pair;
    const queue = this.#queues[number];
    if (queue === undefined) return;
    queue.arrived.push(frame);
    this.#work(number);
  }

  #writeQueue(queue: number, offset: number, value: number): void {
    if (offset === NIC_QUEUE.HEAD.offset) return;
    if (offset === NIC_QUEUE.CTRL.offset) {
      const isEnabled = NIC_QUEUE.CTRL.get([value], 'ENABLE') === 1;
      this.#setQueue(queue, 'CTRL', isEnabled ? 1 : 0);
      if (isEnabled) this.#setQueue(queue, 'HEAD', 0);
      return;
    }
    this.#set(nicQueueOffset(queue, NIC_QUEUE.BASE_LO) + offset, value);
    if (offset === NIC_QUEUE.TAIL.offset) this.#work(queue);
  }

  #work(number: number): void {
    const queue = this.#queues[number];
    if (queue === undefined || queue.isBusy) return;
    queue.isBusy = true;
    const life = this.#life;
    const isReceiver = number % 2 === 0;
    const work = isReceiver ? this.#receiveAll(number, queue, life) : this.#transmitAll(number, life);
    const run = function* (): Task<void> {
      yield* work;
      queue.isBusy = false;
    };
    this.#runtime.spawn(`${this.#fn.bdf}/queue${number}`, run());
  }

  #isRunning(queue: number, life: number): boolean {
    const isEnabled = NIC_CTRL.get([this.#get(NIC_CTRL.offset)], 'ENABLE') === 1;
    return life === this.#life && isEnabled && this.#queueRegister(queue, 'CTRL') === 1;
  }

  #hasDescriptor(queue: number): boolean {
    return this.#queueRegister(queue, 'HEAD') !== this.#queueRegister(queue, 'TAIL');
  }

  *#transmitAll(queue: number, life: number): Task<void> {
    while (this.#isRunning(queue, life) && this.#hasDescriptor(queue)) {
      const descriptor = yield* this.#fetch(queue);
      if (descriptor === undefined) return;
      const length = Math.min(NIC_DESCRIPTOR.get(descriptor, 'LENGTH'), NIC_MAX_FRAME);
      const { ok, bytes } = yield* this.#fn.dmaRead(addressOf(descriptor), length);
      if (life !== this.#life) return;
      if (!ok || bytes === undefined) {
        yield* this.#fail(queue, descriptor);
        return;
      }
      if (!(yield* this.#complete(queue, descriptor, life))) return;
      this.#count(NIC_TX_FRAMES.offset);
      if (NIC_CTRL.get([this.#get(NIC_CTRL.offset)], 'LOOPBACK') === 1) this.receive((queue - 1) / 2, bytes);
      else this.onTransmit(bytes, queue);
    }
  }

  *#receiveAll(number: number, queue: Queue, life: number): Task<void> {
    for (let frame = queue.arrived.shift(); frame !== undefined; frame = queue.arrived.shift()) {
      if (life !== this.#life) return;
      if (!this.#isRunning(number, life) || !this.#hasDescriptor(number)) {
        this.#count(NIC_RX_DROPS.offset);
        this.#runtime.emit('nic.rx-drop', { device: this.#fn.bdf, queue: number, length: frame.length });
        continue;
      }
      const descriptor = yield* this.#fetch(number);
      if (descriptor === undefined) continue;
      const room = NIC_DESCRIPTOR.get(descriptor, 'LENGTH');
      const { ok } = yield* this.#fn.dmaWrite(addressOf(descriptor), frame.subarray(0, room));
      if (life !== this.#life) return;
      if (!ok) {
        yield* this.#fail(number, descriptor);
        continue;
      }
      NIC_DESCRIPTOR.set(descriptor, 'LENGTH', Math.min(frame.length, room));
      if (yield* this.#complete(number, descriptor, life)) this.#count(NIC_RX_FRAMES.offset);
    }
  }

  /** The descriptor at HEAD; undefined when it cannot be read, which stops the queue. */
  *#fetch(queue: number): Task<Uint32Array | undefined> {
    const { ok, bytes } = yield* this.#fn.dmaRead(this.#descriptorAddress(queue), NIC_DESCRIPTOR.sizeBytes);
    if (ok && bytes !== undefined) return new Uint32Array(bytes.slice().buffer);
    yield* this.#stop(queue);
    return undefined;
  }

  /** Writes the descriptor back as done and moves on; false when that failed or the device was reset meanwhile. */
  *#complete(queue: number, descriptor: Uint32Array, life: number): Task<boolean> {
    NIC_DESCRIPTOR.set(descriptor, 'DONE', 1);
    const { ok } = yield* this.#fn.dmaWrite(this.#descriptorAddress(queue), new Uint8Array(descriptor.buffer));
    if (life !== this.#life) return false;
    if (!ok) {
      yield* this.#stop(queue);
      return false;
    }
    this.#setQueue(queue, 'HEAD', (this.#queueRegister(queue, 'HEAD') + 1) % this.#queueRegister(queue, 'SIZE'));
    this.#interrupt(queue);
    return true;
  }

  /** A buffer could not be reached: the descriptor says so if it can be written, and the queue stops. */
  *#fail(queue: number, descriptor: Uint32Array): Task<void> {
    NIC_DESCRIPTOR.set(descriptor, 'DONE', 1);
    NIC_DESCRIPTOR.set(descriptor, 'ERROR', 1);
    yield* this.#fn.dmaWrite(this.#descriptorAddress(queue), new Uint8Array(descriptor.buffer));
    yield* this.#stop(queue);
  }

  *#stop(queue: number): Task<void> {
    this.#count(NIC_DMA_ERRORS.offset);
    this.#setQueue(queue, 'CTRL', NIC_QUEUE.CTRL.make({ ENABLE: 1, ERROR: 1 })[0] ?? 0);
    this.#runtime.emit('nic.queue-stopped', { device: this.#fn.bdf, queue });
    yield* this.#fn.raise(queue);
  }

  #interrupt(number: number): void {
    const queue = this.#queues[number];
    if (queue === undefined || queue.isInterruptPending) return;
    queue.isInterruptPending = true;
    const delayNs = this.#get(NIC_MODERATION.offset);
    const life = this.#life;
    this.#runtime.scheduler.callAt(this.#runtime.now + delayNs, () => {
      queue.isInterruptPending = false;
      if (life === this.#life) this.#runtime.spawn(`${this.#fn.bdf}/msi`, this.#fn.raise(number));
    });
  }

  // --- registers ---

  #descriptorAddress(queue: number): bigint {
    const base = (BigInt(this.#queueRegister(queue, 'BASE_HI')) << 32n) | BigInt(this.#queueRegister(queue, 'BASE_LO'));
    return base + BigInt(this.#queueRegister(queue, 'HEAD') * NIC_DESCRIPTOR.sizeBytes);
  }

  #queueRegister(queue: number, name: keyof typeof NIC_QUEUE): number {
    return this.#get(nicQueueOffset(queue, NIC_QUEUE[name]));
  }

  #setQueue(queue: number, name: keyof typeof NIC_QUEUE, value: number): void {
    this.#set(nicQueueOffset(queue, NIC_QUEUE[name]), value);
  }

  #count(offset: number): void {
    this.#set(offset, this.#get(offset) + 1);
  }

  #get(offset: number): number {
    return this.#registers[offset >> 2] ?? 0;
  }

  #set(offset: number, value: number): void {
    this.#registers[offset >> 2] = value;
  }
}

function addressOf(descriptor: Uint32Array): bigint {
  return (
    (BigInt(NIC_DESCRIPTOR.get(descriptor, 'ADDRESS_HI')) << 32n) | BigInt(NIC_DESCRIPTOR.get(descriptor, 'ADDRESS_LO'))
  );
}
