/** The NIC at its registers, rings and interrupts. */
import { describe, expect, test } from 'vitest';
import { Nic } from '../../src/hardware/devices/nic.js';
import {
  NIC_CTRL,
  NIC_DESCRIPTOR,
  NIC_DEVICE,
  NIC_DMA_ERRORS,
  NIC_MODERATION,
  NIC_QUEUE,
  NIC_RX_DROPS,
  NIC_RX_FRAMES,
  NIC_TX_FRAMES,
  NIC_VENDOR,
  nicQueueOffset,
} from '../../src/uapi/nic.js';
import { x86Like } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const BDF = '0000:01:00.0';
const RING = 0x200000;
const BUFFERS = 0x210000;
const DESCRIPTORS = 4;

/** A NIC with one ring a queue of pair 0 and vectors 0x40 and 0x41. */
class NicMachine extends BoardMachine {
  readonly nic: Nic;

  constructor() {
    super(
      x86Like({
        iommus: [],
        functions: [{ bdf: BDF, model: 'nic', vendor: NIC_VENDOR, device: NIC_DEVICE, classCode: 0x020000 }],
      }),
    );
    const fn = this.enabled(BDF);
    if (!(fn.model instanceof Nic)) throw new Error('no NIC');
    this.nic = fn.model;
    for (const queue of [0, 1]) {
      fn.barWrite(2, queue * 16, 4, 0xfee00000);
      fn.barWrite(2, queue * 16 + 8, 4, 0x40 + queue);
      fn.barWrite(2, queue * 16 + 12, 4, 0);
      this.queue(queue, 'BASE_LO', RING + queue * 4096);
      this.queue(queue, 'SIZE', DESCRIPTORS);
      this.queue(queue, 'CTRL', 1);
    }
    fn.configWrite(fn.findCapability(0x11), 4, 0x80000000);
    fn.barWrite(0, NIC_CTRL.offset, 4, 3);
  }

  queue(queue: number, name: keyof typeof NIC_QUEUE, value: number): void {
    this.function(BDF).barWrite(0, nicQueueOffset(queue, NIC_QUEUE[name]), 4, value);
  }

  readQueue(queue: number, name: keyof typeof NIC_QUEUE): number {
    return this.function(BDF).barRead(0, nicQueueOffset(queue, NIC_QUEUE[name]), 4);
  }

  count(register: { readonly offset: number }): number {
    return this.function(BDF).barRead(0, register.offset, 4);
  }

  post(queue: number, index: number, address: number, lengthBytes: number): void {
    const descriptor = NIC_DESCRIPTOR.make({ ADDRESS_LO: address, LENGTH: lengthBytes });
    this.board.memory.write(RING + queue * 4096 + index * 16, new Uint8Array(descriptor.buffer));
  }

  descriptor(queue: number, index: number): ReturnType<typeof NIC_DESCRIPTOR.decode> {
    const bytes = this.board.memory.read(RING + queue * 4096 + index * 16, 16) ?? new Uint8Array(16);
    return NIC_DESCRIPTOR.decode(new Uint32Array(bytes.slice().buffer));
  }

  get vectors(): number[] {
    return this.interrupts.map(({ intid }) => intid);
  }
}

describe('a NIC', () => {
  test('sends a frame and receives it in loopback: payload, write-back, vectors', () => {
    const machine = new NicMachine();
    machine.post(0, 0, BUFFERS, 2048);
    machine.queue(0, 'TAIL', 1);
    machine.board.memory.write(BUFFERS + 4096, Uint8Array.of(1, 2, 3, 4, 5));
    machine.post(1, 0, BUFFERS + 4096, 5);
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    expect([...(machine.board.memory.read(BUFFERS, 6) ?? [])]).toEqual([1, 2, 3, 4, 5, 0]);
    expect(machine.descriptor(0, 0)).toMatchObject({ DONE: 1, ERROR: 0, LENGTH: 5 });
    expect(machine.descriptor(1, 0)).toMatchObject({ DONE: 1, ERROR: 0 });
    expect([machine.readQueue(0, 'HEAD'), machine.readQueue(1, 'HEAD')]).toEqual([1, 1]);
    expect([machine.count(NIC_TX_FRAMES), machine.count(NIC_RX_FRAMES)]).toEqual([1, 1]);
    expect(machine.vectors.sort()).toEqual([0x40, 0x41]);
  });

  test('goes round its ring', () => {
    const machine = new NicMachine();
    for (let frame = 0; frame < 11; frame++) {
      machine.post(0, frame % DESCRIPTORS, BUFFERS, 64);
      machine.post(1, frame % DESCRIPTORS, BUFFERS + 4096, 64);
      machine.queue(0, 'TAIL', (frame + 1) % DESCRIPTORS);
      machine.queue(1, 'TAIL', (frame + 1) % DESCRIPTORS);
      machine.settle();
    }
    expect([machine.count(NIC_TX_FRAMES), machine.count(NIC_RX_FRAMES)]).toEqual([11, 11]);
  });

  test('drops what arrives while no descriptor is free', () => {
    const machine = new NicMachine();
    machine.post(0, 0, BUFFERS, 64);
    machine.queue(0, 'TAIL', 1);
    machine.nic.receive(0, new Uint8Array(64));
    machine.nic.receive(0, new Uint8Array(64));
    machine.settle();
    expect([machine.count(NIC_RX_FRAMES), machine.count(NIC_RX_DROPS)]).toEqual([1, 1]);
  });

  test('stops a queue whose buffer cannot be reached, says so in the descriptor, and starts again when enabled', () => {
    const machine = new NicMachine();
    machine.post(1, 0, 0xf000_0000, 64);
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    expect(machine.descriptor(1, 0)).toMatchObject({ DONE: 1, ERROR: 1 });
    expect([machine.readQueue(1, 'CTRL'), machine.count(NIC_DMA_ERRORS), machine.vectors]).toEqual([3, 1, [0x41]]);
    machine.queue(1, 'TAIL', 2);
    machine.settle();
    expect(machine.count(NIC_TX_FRAMES), 'nothing is sent by a stopped queue').toBe(0);
    machine.queue(1, 'CTRL', 1);
    machine.post(1, 0, BUFFERS, 64);
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    expect(machine.count(NIC_TX_FRAMES)).toBe(1);
  });

  test('moderation joins interrupts; frames leave by the wire when loopback is off', () => {
    const machine = new NicMachine();
    const frames: Uint8Array[] = [];
    machine.nic.onTransmit = (frame) => void frames.push(frame);
    machine.function(BDF).barWrite(0, NIC_CTRL.offset, 4, 1);
    machine.function(BDF).barWrite(0, NIC_MODERATION.offset, 4, 1_000_000);
    for (let i = 0; i < 3; i++) machine.post(1, i, BUFFERS, 64);
    machine.queue(1, 'TAIL', 3);
    machine.settle();
    expect([frames.length, machine.vectors]).toEqual([3, [0x41]]);
  });

  test('forgets everything over a reset', () => {
    const machine = new NicMachine();
    machine.post(1, 0, BUFFERS, 64);
    machine.queue(1, 'TAIL', 1);
    machine.runtime.scheduler.callAt(machine.runtime.now + 150, () => machine.function(BDF).reset());
    machine.settle();
    expect([machine.count(NIC_TX_FRAMES), machine.readQueue(1, 'SIZE'), machine.vectors]).toEqual([0, 0, []]);
  });
});
