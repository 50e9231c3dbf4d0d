import { describe, expect, it } from 'vitest';
import type { Register, BitFields } from '../../src/layout/bits.js';
import type { PciFunction } from '../../src/hardware/pcie/function.js';
import {
  DMA_COMMAND,
  DMA_COMPLETED,
  DMA_DST,
  DMA_ENGINE_ID,
  DMA_ENGINE_MAX_LENGTH,
  DMA_ERROR,
  DMA_ERROR_CODE,
  DMA_ID,
  DMA_LENGTH,
  DMA_OP,
  DMA_PATTERN,
  DMA_SRC,
  DMA_STATUS,
  DMA_SUM,
  fnv1a32,
} from '../../src/uapi/dma-engine.js';
import { ampereLike, x86Like } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const RAM = 0x80000000;
const BDF = '0000:01:00.0';

interface Transfer {
  readonly op: number;
  readonly from?: number;
  readonly to?: number;
  readonly length: number;
  readonly pattern?: number;
  readonly vector?: number;
}

class EngineMachine extends BoardMachine {
  readonly fn: PciFunction;

  constructor(description = ampereLike()) {
    super(description);
    this.fn = this.enabled(BDF);
  }

  read(register: Register<BitFields>): number {
    return this.fn.barRead(0, register.offset, 4);
  }

  write(register: Register<BitFields>, value: number): void {
    this.fn.barWrite(0, register.offset, 4, value % 2 ** 32);
    if (register.sizeBytes === 8) this.fn.barWrite(0, register.offset + 4, 4, Math.floor(value / 2 ** 32));
  }

  start({ op, from = 0, to = 0, length, pattern = 0, vector }: Transfer): void {
    this.write(DMA_SRC, from);
    this.write(DMA_DST, to);
    this.write(DMA_LENGTH, length);
    this.write(DMA_PATTERN, pattern);
    const irq = vector === undefined ? {} : { IRQ: 1, VECTOR: vector };
    this.write(DMA_COMMAND, DMA_COMMAND.make({ OP: op, ...irq })[0] ?? 0);
  }

  get status(): Record<string, number> {
    return DMA_STATUS.decode([this.read(DMA_STATUS)]);
  }
}

const DONE = { BUSY: 0, DONE: 1, ERROR: 0 };
const FAILED = { BUSY: 0, DONE: 0, ERROR: 1 };

describe('DMA engine', () => {
  it('names itself, also to narrow reads', () => {
    const { fn } = new EngineMachine();
    expect(fn.barRead(0, DMA_ID.offset, 4)).toBe(DMA_ENGINE_ID);
    expect([0, 1, 2, 3].map((i) => fn.barRead(0, i, 1))).toEqual([...Buffer.from('DMA1')]);
  });

  it('fills, copies and sums', () => {
    const engine = new EngineMachine();
    engine.start({ op: DMA_OP.FILL, to: RAM + 4094, length: 5000, pattern: 0x04030201 });
    expect(engine.status).toEqual({ BUSY: 1, DONE: 0, ERROR: 0 });
    engine.settle();
    const filled = engine.board.memory.read(RAM + 4094, 5001);
    expect(filled?.[0]).toBe(1);
    expect(filled?.[4999]).toBe(4);
    expect(filled?.[5000]).toBe(0);
    engine.start({ op: DMA_OP.COPY, from: RAM + 4094, to: 0x8000000000, length: 5000 });
    engine.settle();
    const copied = engine.board.memory.read(0x8000000000, 5000) ?? new Uint8Array();
    expect(copied).toEqual(filled?.subarray(0, 5000));
    engine.start({ op: DMA_OP.SUM, from: 0x8000000000, length: 5000 });
    engine.settle();
    expect(engine.read(DMA_SUM)).toBe(fnv1a32(copied));
    expect(engine.status).toEqual(DONE);
    expect(engine.read(DMA_COMPLETED)).toBe(3);
  });

  it('says which side was aborted', () => {
    const engine = new EngineMachine();
    engine.start({ op: DMA_OP.COPY, from: 0x1000, to: RAM, length: 8 });
    engine.settle();
    expect([engine.status, engine.read(DMA_ERROR)]).toEqual([FAILED, DMA_ERROR_CODE.READ_ABORTED]);
    engine.start({ op: DMA_OP.COPY, from: RAM, to: 0x1000, length: 8 });
    engine.settle();
    expect([engine.status, engine.read(DMA_ERROR)]).toEqual([FAILED, DMA_ERROR_CODE.WRITE_ABORTED]);
  });

  it.each([
    { op: 0, length: 8 },
    { op: DMA_OP.FILL, to: RAM, length: 0 },
    { op: DMA_OP.FILL, to: RAM, length: DMA_ENGINE_MAX_LENGTH + 1 },
  ])('refuses a command that makes no sense: $op of $length bytes', (transfer) => {
    const engine = new EngineMachine();
    engine.start(transfer);
    engine.settle();
    expect([engine.status, engine.read(DMA_ERROR)]).toEqual([FAILED, DMA_ERROR_CODE.BAD_COMMAND]);
    expect(engine.board.analyser.records).toEqual([]);
  });

  it('ignores a command while busy', () => {
    const engine = new EngineMachine();
    engine.start({ op: DMA_OP.FILL, to: RAM, length: 4096, pattern: 1 });
    engine.start({ op: DMA_OP.FILL, to: RAM + 8192, length: 4096, pattern: 2 });
    engine.settle();
    expect(engine.read(DMA_COMPLETED)).toBe(1);
  });

  it('interrupts when done, with the vector it was given', () => {
    const engine = new EngineMachine(x86Like());
    const { fn } = engine;
    fn.barWrite(2, 2 * 16, 4, 0xfee00000);
    fn.barWrite(2, 2 * 16 + 8, 4, 0x55);
    fn.barWrite(2, 2 * 16 + 12, 4, 0);
    fn.configWrite(fn.findCapability(0x11), 4, 0x80000000);
    engine.start({ op: DMA_OP.FILL, to: 0x200000, length: 64, vector: 2 });
    engine.settle();
    expect(engine.interrupts).toEqual([{ controller: 'x86-msi', intid: 0x55, from: fn.bdf }]);
    expect(engine.board.analyser.records.map((record) => record.direction)).toEqual(['write', 'msi']);
  });

  it('interrupts by MSI, one address and consecutive data; a masked vector waits', () => {
    const engine = new EngineMachine(x86Like());
    const { fn } = engine;
    const msi = fn.findCapability(0x05);
    expect(fn.configRead(msi + 2, 2) & 0xe, 'four vectors').toBe(2 << 1);
    fn.configWrite(msi + 4, 4, 0xfee00000);
    fn.configWrite(msi + 12, 2, 0x50);
    fn.configWrite(msi + 16, 4, 1 << 3);
    fn.configWrite(msi + 2, 2, (2 << 4) | 1);
    for (const vector of [2, 3]) {
      engine.start({ op: DMA_OP.FILL, to: 0x200000, length: 64, vector });
      engine.settle();
    }
    expect(engine.interrupts.map(({ intid }) => intid)).toEqual([0x52]);
    expect(fn.configRead(msi + 20, 4), 'pending').toBe(1 << 3);
    fn.configWrite(msi + 16, 4, 0);
    engine.settle();
    expect(engine.interrupts.map(({ intid }) => intid)).toEqual([0x52, 0x53]);
    fn.reset();
    expect([fn.configRead(msi + 2, 2) & 0x71, fn.configRead(msi + 4, 4)]).toEqual([0, 0]);
  });

  it('forgets a transfer over a reset', () => {
    const engine = new EngineMachine();
    engine.start({ op: DMA_OP.FILL, to: RAM, length: 16 * 4096, pattern: 0xffffffff });
    engine.runtime.scheduler.callAt(1000, () => engine.fn.reset());
    engine.settle();
    expect([engine.read(DMA_STATUS), engine.read(DMA_COMPLETED), engine.read(DMA_LENGTH)]).toEqual([0, 0, 0]);
    expect(engine.board.memory.read(RAM + 15 * 4096, 1)).toEqual(Uint8Array.of(0));
  });
});
