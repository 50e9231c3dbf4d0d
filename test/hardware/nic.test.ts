/** The NIC at its registers, rings and interrupts. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Nic } from '../../src/hardware/devices/nic.js';
import {
  NIC_BAR_BYTES,
  NIC_CTRL,
  NIC_DESCRIPTOR,
  NIC_DEVICE,
  NIC_DMA_ERRORS,
  NIC_ID,
  NIC_ID_VALUE,
  NIC_LINK,
  NIC_LINK_VECTOR,
  NIC_MAX_FRAME,
  NIC_MODERATION,
  NIC_QUEUE,
  NIC_QUEUE_CAUSE,
  NIC_RX_BYTES,
  NIC_RX_DROPS,
  NIC_RX_FRAMES,
  NIC_TX_BYTES,
  NIC_TX_FRAMES,
  NIC_VECTORS,
  NIC_VENDOR,
  nicQueueOffset,
} from '../../src/uapi/nic.js';
import { PCI_COMMAND, PCI_COMMAND_MEMORY } from '../../src/uapi/pci-regs.js';
import { x86Like } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const BDF = '0000:01:00.0';
const RING = 0x200000;
const BUFFERS = 0x210000;
const DESCRIPTORS = 4;

/** A NIC with a ring for each queue of pair 0 and vectors 0x40 to 0x44. */
class NicMachine extends BoardMachine {
  readonly nic: Nic;
  readonly descriptors: number;

  constructor(descriptors = DESCRIPTORS) {
    super(
      x86Like({
        iommus: [],
        functions: [{ bdf: BDF, model: 'nic', vendor: NIC_VENDOR, device: NIC_DEVICE, classCode: 0x020000 }],
      }),
    );
    const fn = this.enabled(BDF);
    if (!(fn.model instanceof Nic)) throw new Error('no NIC');
    this.nic = fn.model;
    this.descriptors = descriptors;
    this.setUp();
  }

  /** What a driver does to a function after its reset. */
  setUp(): void {
    const fn = this.enabled(BDF);
    for (let vector = 0; vector < NIC_VECTORS; vector++) {
      fn.barWrite(2, vector * 16, 4, 0xfee00000);
      fn.barWrite(2, vector * 16 + 8, 4, 0x40 + vector);
      fn.barWrite(2, vector * 16 + 12, 4, 0);
    }
    for (const queue of [0, 1]) {
      this.queue(queue, 'BASE_LO', ringOf(queue));
      this.queue(queue, 'SIZE', this.descriptors);
      this.queue(queue, 'CTRL', 1);
    }
    fn.configWrite(fn.findCapability(0x11), 4, 0x80000000);
    this.write(NIC_CTRL, 3);
  }

  write(register: { readonly offset: number }, value: number): void {
    this.function(BDF).barWrite(0, register.offset, 4, value);
  }

  queue(queue: number, name: keyof typeof NIC_QUEUE, value: number): void {
    this.write({ offset: nicQueueOffset(queue, NIC_QUEUE[name]) }, value);
  }

  readQueue(queue: number, name: keyof typeof NIC_QUEUE): number {
    return this.count({ offset: nicQueueOffset(queue, NIC_QUEUE[name]) });
  }

  /** Why a queue stopped. */
  causeOf(queue: number): string | undefined {
    const { ERROR, CAUSE } = NIC_QUEUE.CTRL.decode([this.readQueue(queue, 'CTRL')]);
    return ERROR === 0 ? undefined : Object.entries(NIC_QUEUE_CAUSE).find(([, code]) => code === CAUSE)?.[0];
  }

  count(register: { readonly offset: number }): number {
    return this.function(BDF).barRead(0, register.offset, 4);
  }

  post(queue: number, index: number, address: number, lengthBytes: number, isLast = queue % 2 === 1): void {
    const descriptor = NIC_DESCRIPTOR.make({ ADDRESS_LO: address, LENGTH: lengthBytes, EOP: Number(isLast) });
    this.board.memory.write(ringOf(queue) + index * 16, new Uint8Array(descriptor.buffer));
  }

  descriptor(queue: number, index: number): ReturnType<typeof NIC_DESCRIPTOR.decode> {
    return NIC_DESCRIPTOR.decode(new Uint32Array(this.load(ringOf(queue) + index * 16, 16).slice().buffer));
  }

  load(address: number, lengthBytes: number): Uint8Array {
    return this.board.memory.read(address, lengthBytes) ?? new Uint8Array(lengthBytes);
  }

  get vectors(): number[] {
    return this.interrupts.map(({ intid }) => intid);
  }
}

function ringOf(queue: number): number {
  return RING + queue * 4096;
}

function pattern(lengthBytes: number, seed = 0): Uint8Array {
  return Uint8Array.from({ length: lengthBytes }, (_, i) => (i * 3 + seed * 41 + 1) & 0xff);
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
    expect([machine.causeOf(1), machine.count(NIC_DMA_ERRORS), machine.vectors]).toEqual(['BUFFER', 1, [0x41]]);
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
    machine.write(NIC_CTRL, 1);
    machine.write(NIC_MODERATION, 1_000_000);
    for (let i = 0; i < 3; i++) machine.post(1, i, BUFFERS, 64);
    machine.queue(1, 'TAIL', 3);
    machine.settle();
    expect([frames.length, machine.vectors]).toEqual([3, [0x41]]);
  });

  test('sends a frame from several buffers and receives one into several', () => {
    const machine = new NicMachine();
    const frame = pattern(250);
    machine.board.memory.write(BUFFERS + 4096, frame.subarray(0, 100));
    machine.board.memory.write(BUFFERS + 8192, frame.subarray(100));
    machine.post(1, 0, BUFFERS + 4096, 100, false);
    machine.post(1, 1, BUFFERS + 8192, 150);
    for (let i = 0; i < 3; i++) machine.post(0, i, BUFFERS + i * 512, 96);
    machine.queue(0, 'TAIL', 3);
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    expect([machine.count(NIC_TX_FRAMES), machine.readQueue(1, 'HEAD')], 'waits for the end').toEqual([0, 0]);
    machine.queue(1, 'TAIL', 2);
    machine.settle();
    const pieces = [0, 1, 2].map((i) => machine.descriptor(0, i));
    expect(pieces.map(({ DONE, EOP, LENGTH }) => [DONE, EOP, LENGTH])).toEqual([
      [1, 0, 96],
      [1, 0, 96],
      [1, 1, 58],
    ]);
    expect(pieces.flatMap(({ LENGTH }, i) => [...machine.load(BUFFERS + i * 512, LENGTH)])).toEqual([...frame]);
    expect([machine.count(NIC_TX_BYTES), machine.count(NIC_RX_BYTES)]).toEqual([250, 250]);
    expect(machine.vectors.sort(), 'one interrupt a frame').toEqual([0x40, 0x41]);
  });

  test('drops a frame that does not fit into the free descriptors and leaves them free', () => {
    const machine = new NicMachine();
    for (let i = 0; i < 2; i++) machine.post(0, i, BUFFERS + i * 512, 100);
    machine.queue(0, 'TAIL', 2);
    machine.nic.receive(0, pattern(201));
    machine.nic.receive(0, pattern(200));
    machine.nic.receive(0, pattern(NIC_MAX_FRAME + 1));
    machine.settle();
    expect([machine.count(NIC_RX_FRAMES), machine.count(NIC_RX_DROPS)]).toEqual([1, 2]);
    expect([machine.descriptor(0, 1).LENGTH, machine.causeOf(0)]).toEqual([100, undefined]);
  });

  test('a stopped queue leaves the others alone', () => {
    const machine = new NicMachine();
    machine.nic.onTransmit = () => undefined;
    machine.write(NIC_CTRL, 1);
    machine.post(0, 0, 0xf000_0000, 64);
    machine.queue(0, 'TAIL', 1);
    machine.nic.receive(0, pattern(64));
    machine.nic.receive(0, pattern(64));
    machine.post(1, 0, BUFFERS, 64);
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    expect([machine.causeOf(0), machine.causeOf(1)]).toEqual(['BUFFER', undefined]);
    expect([machine.count(NIC_TX_FRAMES), machine.count(NIC_RX_DROPS)]).toEqual([1, 2]);
  });

  test.each([
    ['FETCH', (machine: NicMachine) => machine.queue(1, 'BASE_LO', 0xf000_0000)],
    ['RING', (machine: NicMachine) => machine.queue(1, 'BASE_LO', RING + 8)],
    ['RING', (machine: NicMachine) => machine.queue(1, 'SIZE', 3)],
    ['RING', (machine: NicMachine) => machine.queue(1, 'SIZE', 0)],
    ['RING', (machine: NicMachine) => machine.queue(1, 'SIZE', 2)],
    ['DESCRIPTOR', (machine: NicMachine) => machine.post(1, 0, BUFFERS, 0)],
    ['DESCRIPTOR', (machine: NicMachine) => machine.post(1, 0, BUFFERS, NIC_MAX_FRAME + 1)],
  ])('stops a queue with cause %s, once and for all', (cause, spoil) => {
    const machine = new NicMachine();
    for (let i = 0; i < 2; i++) machine.post(1, i, BUFFERS, 64);
    machine.queue(1, 'CTRL', 0);
    spoil(machine);
    machine.queue(1, 'CTRL', 1);
    machine.queue(1, 'TAIL', 2);
    machine.settle();
    const transactions = machine.board.analyser.records.length;
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    expect(machine.causeOf(1)).toBe(cause);
    expect([machine.count(NIC_TX_FRAMES), machine.vectors]).toEqual([0, [0x41]]);
    expect(machine.board.analyser.records.length, 'nothing more is done').toBe(transactions);
  });

  test('without bus mastering nothing leaves, and the queue stops', () => {
    const machine = new NicMachine();
    machine.post(1, 0, BUFFERS, 64);
    machine.function(BDF).configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    expect([machine.causeOf(1), machine.count(NIC_TX_FRAMES), machine.vectors]).toEqual(['FETCH', 0, []]);
  });

  test('raises the vector a queue was given, and none that does not exist', () => {
    const machine = new NicMachine();
    machine.write(NIC_CTRL, 1);
    machine.queue(1, 'VECTOR', 3);
    for (let i = 0; i < 2; i++) machine.post(1, i, BUFFERS, 64);
    machine.queue(1, 'TAIL', 1);
    machine.settle();
    machine.queue(1, 'VECTOR', 0xffff);
    machine.queue(1, 'TAIL', 2);
    machine.settle();
    expect([machine.count(NIC_TX_FRAMES), machine.vectors]).toEqual([2, [0x43]]);
  });

  test('the link goes down: no frame passes, the driver is told; loopback does not need it', () => {
    const machine = new NicMachine();
    const frames: Uint8Array[] = [];
    machine.nic.onTransmit = (frame) => void frames.push(frame);
    machine.write(NIC_CTRL, 1);
    machine.nic.setLink(false);
    machine.nic.setLink(false);
    for (let i = 0; i < 2; i++) machine.post(1, i, BUFFERS, 64);
    machine.post(0, 0, BUFFERS + 4096, 64);
    machine.queue(0, 'TAIL', 1);
    machine.queue(1, 'TAIL', 1);
    machine.nic.receive(0, pattern(64));
    machine.settle();
    expect(NIC_LINK.decode([machine.count(NIC_LINK)])).toEqual({ UP: 0, CHANGES: 1 });
    expect([frames.length, machine.count(NIC_RX_FRAMES)]).toEqual([0, 0]);
    expect(machine.vectors.filter((vector) => vector === 0x40 + NIC_LINK_VECTOR)).toHaveLength(1);
    machine.write(NIC_CTRL, 3);
    machine.queue(1, 'TAIL', 2);
    machine.settle();
    expect(machine.count(NIC_RX_FRAMES)).toBe(1);
  });

  test('two NICs are joined by their wires', () => {
    const [left, right] = [new NicMachine(), new NicMachine()];
    left.write(NIC_CTRL, 1);
    left.nic.onTransmit = (frame, pair) => right.nic.receive(pair, frame);
    left.board.memory.write(BUFFERS, pattern(64));
    left.post(1, 0, BUFFERS, 64);
    right.post(0, 0, BUFFERS, 2048);
    right.queue(0, 'TAIL', 1);
    left.queue(1, 'TAIL', 1);
    left.settle();
    right.settle();
    expect([...right.load(BUFFERS, 64)]).toEqual([...pattern(64)]);
    expect(() => right.nic.receive(2, pattern(64))).toThrow(RangeError);
  });

  test.each(['function-level', 'RESET'])(
    'a %s reset at any time forgets everything, and the NIC works again',
    (kind) => {
      for (let resetNs = 0; resetNs <= 3_000; resetNs += 50) {
        const machine = new NicMachine();
        const untouched = new NicMachine();
        untouched.write(NIC_CTRL, 1 << 31);
        const transfer = (): void => {
          machine.post(0, 0, BUFFERS, 2048);
          machine.queue(0, 'TAIL', 1);
          machine.post(1, 0, BUFFERS + 4096, 64);
          machine.queue(1, 'TAIL', 1);
        };
        transfer();
        let vectorsBefore = 0;
        machine.runtime.scheduler.callAt(machine.runtime.now + resetNs, () => {
          if (kind === 'RESET') machine.write(NIC_CTRL, 1 << 31);
          else machine.function(BDF).reset();
          vectorsBefore = machine.vectors.length;
        });
        machine.settle();
        for (let offset = 0; offset < 0x200; offset += 4)
          expect(machine.count({ offset }), `register ${offset}`).toBe(untouched.count({ offset }));
        // A message that was on its way when the reset came may still arrive.
        expect(machine.vectors.length - vectorsBefore).toBeLessThanOrEqual(1);
        machine.setUp();
        transfer();
        machine.settle();
        expect([machine.count(NIC_TX_FRAMES), machine.count(NIC_RX_FRAMES)]).toEqual([1, 1]);
      }
    },
  );

  test('a queue that is enabled anew at any time starts with an empty ring', () => {
    for (let restartNs = 0; restartNs <= 3_000; restartNs += 50) {
      const machine = new NicMachine();
      machine.write(NIC_CTRL, 1);
      for (let i = 0; i < 3; i++) machine.post(1, i, BUFFERS, 64);
      machine.queue(1, 'TAIL', 3);
      let before = 0;
      machine.runtime.scheduler.callAt(machine.runtime.now + restartNs, () => {
        before = machine.count(NIC_TX_FRAMES);
        machine.queue(1, 'CTRL', 1);
      });
      machine.settle();
      expect([machine.readQueue(1, 'HEAD'), machine.readQueue(1, 'TAIL')]).toEqual([0, 0]);
      expect(machine.count(NIC_TX_FRAMES)).toBe(before);
    }
  });

  test('any frames through any buffers: each arrives as it was sent or is counted as dropped', () => {
    const frames = fc.array(
      fc.record({ pieces: fc.array(fc.integer({ min: 1, max: 700 }), { minLength: 1, maxLength: 7 }) }),
      { minLength: 1, maxLength: 12 },
    );
    fc.assert(
      fc.property(frames, fc.constantFrom(8, 16), fc.integer({ min: 40, max: 1500 }), (sent, descriptors, room) => {
        const machine = new NicMachine(descriptors);
        let [posted, sentAt, taken, bytes, rxBytes] = [0, 0, 0, 0, 0];
        const received: number[][] = [];
        const wanted: number[][] = [];
        const refill = (): void => {
          for (; posted - taken < descriptors - 1; posted++) {
            const slot = posted % descriptors;
            machine.post(0, slot, BUFFERS + slot * 2048, room);
          }
          machine.queue(0, 'TAIL', posted % descriptors);
        };
        for (const [number, { pieces }] of sent.entries()) {
          refill();
          const length = pieces.reduce((sum, piece) => sum + piece, 0);
          const frame = pattern(length, number);
          let at = 0;
          for (const [i, piece] of pieces.entries()) {
            const address = BUFFERS + 0x20000 + at;
            machine.board.memory.write(address, frame.subarray(at, at + piece));
            machine.post(1, sentAt++ % descriptors, address, piece, i === pieces.length - 1);
            at += piece;
          }
          machine.queue(1, 'TAIL', sentAt % descriptors);
          machine.settle();
          bytes += length;
          if (length <= (descriptors - 1) * room) wanted.push([...frame]);
          const content: number[] = [];
          for (; taken % descriptors !== machine.readQueue(0, 'HEAD'); taken++) {
            const slot = taken % descriptors;
            content.push(...machine.load(BUFFERS + slot * 2048, machine.descriptor(0, slot).LENGTH));
          }
          rxBytes += content.length;
          if (content.length > 0) received.push(content);
        }
        expect(received).toEqual(wanted);
        expect([machine.count(NIC_TX_FRAMES), machine.count(NIC_TX_BYTES)]).toEqual([sent.length, bytes]);
        expect(machine.count(NIC_RX_BYTES)).toBe(rxBytes);
        expect(machine.count(NIC_RX_FRAMES) + machine.count(NIC_RX_DROPS)).toBe(sent.length);
      }),
      { numRuns: 60 },
    );
  });

  test('whatever is written to its registers, it comes to rest', () => {
    const value = fc.oneof(fc.integer({ min: 0, max: 8 }), fc.constantFrom(RING, RING + 4096, 0xffff, 1 << 31));
    const write = fc.record({ word: fc.integer({ min: 0, max: 0x200 / 4 }), value, pauseNs: fc.constantFrom(0, 700) });
    fc.assert(
      fc.property(fc.array(write, { maxLength: 40 }), (writes) => {
        const machine = new NicMachine();
        for (let i = 0; i < DESCRIPTORS; i++) {
          machine.post(0, i, BUFFERS, 64);
          machine.post(1, i, BUFFERS + 4096, 32);
        }
        for (const { word, value, pauseNs } of writes) {
          machine.write({ offset: 4 * word }, value);
          machine.runtime.scheduler.runUntil(machine.runtime.now + pauseNs);
        }
        machine.queue(0, 'TAIL', 3);
        machine.queue(1, 'TAIL', 3);
        // Beyond the longest moderation.
        machine.runtime.scheduler.runUntil(machine.runtime.now + 2 ** 33);
        expect(machine.runtime.scheduler.nextTime()).toBe(Infinity);
        expect(machine.count(NIC_ID)).toBe(NIC_ID_VALUE);
      }),
      { numRuns: 200 },
    );
  });

  test('has its registers in one BAR and its vectors in another', () => {
    const fn = new NicMachine().function(BDF);
    expect(fn.bars.map(({ index, sizeBytes, is64 }) => [index, sizeBytes, is64])).toEqual([
      [0, NIC_BAR_BYTES, true],
      [2, NIC_BAR_BYTES, true],
    ]);
    expect([fn.msixVectors, fn.msixBar]).toEqual([NIC_VECTORS, 2]);
  });
});
