import { describe, expect, it } from 'vitest';
import { STRTAB_BASE } from '../../src/uapi/smmuv3-registers.js';
import { EBUSY, ENODEV } from '../../src/uapi/errno.js';
import { ampereLike, d05Like, dmaEngineAt, x86Like } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const RAM = 0x80000000;
const SMMU = 0x3bffe0000000;
const SMMU_CR0 = SMMU + 0x20;

describe('board', () => {
  it.each([ampereLike(), d05Like(), x86Like()])('lays the kernel window on top of a bank of $name', (description) => {
    const { board } = new BoardMachine(description);
    const { start, last } = board.kernelWindow;
    expect(board.arena.kernelBasePfn * 4096).toBe(start);
    const bank = description.memory.find((range) => Number(range.start) <= start && last <= Number(range.last));
    expect(bank).toBeDefined();
    expect(Number(bank?.last) - last).toBeLessThan(16 * 1024 * 1024);
  });

  it('refuses a description without room for a kernel or with a function nobody leads to', () => {
    const tiny = ampereLike({ memory: [{ start: 0n, last: 0xffffffn }] });
    expect(() => new BoardMachine(tiny)).toThrow(/no memory bank/);
    const lost = d05Like({ functions: [dmaEngineAt('0000:01:00.0')] });
    expect(() => new BoardMachine(lost)).toThrow(/below no host bridge/);
  });

  it('has the SMMU registers at their place, word by word', () => {
    const { board } = new BoardMachine(ampereLike());
    expect(board.bus.mmioWrite32(SMMU + STRTAB_BASE.offset, 0x80000040)).toBe(true);
    expect(board.bus.mmioRead32(SMMU + STRTAB_BASE.offset)).toBe(0x80000040);
    expect(board.bus.mmioRead32(SMMU - 4)).toBeUndefined();
    expect(board.bus.mmioWrite32(SMMU + 0x20000, 1)).toBe(false);
    expect(board.bus.mmioRead32(RAM), 'RAM is no register').toBeUndefined();
  });

  it('fails kernel allocations when told to', () => {
    const machine = new BoardMachine(ampereLike());
    machine.runtime.faults.arm('core.kernel-alloc', { skip: 1, count: 1 });
    const frames = [0, 1, 2].map(() => machine.board.arena.allocKernel());
    expect(frames.map((frame) => frame === 0)).toEqual([false, true, false]);
  });
});

describe('a transaction', () => {
  it('reaches memory across pages and banks as one record', () => {
    const machine = new BoardMachine(ampereLike());
    const fn = machine.enabled('0000:01:00.0');
    const bytes = Uint8Array.from({ length: 10_000 }, (_, i) => i & 0xff);
    expect(machine.run(fn.dmaWrite(BigInt(RAM + 100), bytes))).toEqual({ ok: true });
    expect(machine.board.memory.read(RAM + 100, bytes.length)).toEqual(bytes);
    expect(machine.run(fn.dmaRead(BigInt(RAM + 100), bytes.length)).bytes).toEqual(bytes);
    expect(machine.board.analyser.records.map(({ timeNs: _time, ...record }) => record)).toEqual(
      (['write', 'read'] as const).map((direction, number) => ({
        number,
        device: '0000:01:00.0',
        direction,
        iova: BigInt(RAM + 100),
        lengthBytes: bytes.length,
        ends: [
          {
            kind: 'memory',
            iova: BigInt(RAM + 100),
            lengthBytes: bytes.length,
            address: BigInt(RAM + 100),
            where: 'RAM',
            hop: 'system bus',
          },
        ],
      })),
    );
    expect(machine.eventsOf('dma')).toHaveLength(2);
  });

  it('needs bus mastering', () => {
    const machine = new BoardMachine(ampereLike());
    const fn = machine.function('0000:01:00.0');
    expect(machine.run(fn.dmaRead(BigInt(RAM), 8))).toEqual({ ok: false, bytes: new Uint8Array(8) });
    expect(machine.board.analyser.records[0]?.ends[0]).toMatchObject({ kind: 'aborted', where: /bus mastering/ });
  });

  it('ends nowhere where nothing answers, all that is posted after it too', () => {
    const machine = new BoardMachine(ampereLike());
    const fn = machine.enabled('0000:01:00.0');
    const start = 0x100000000 - 4096;
    expect(machine.run(fn.dmaWrite(BigInt(start), new Uint8Array(3 * 4096))).ok).toBe(false);
    expect(machine.board.analyser.records[0]?.ends.map(({ kind, lengthBytes }) => [kind, lengthBytes])).toEqual([
      ['memory', 4096],
      ['nowhere', 8192],
    ]);
  });

  it('ends in the BAR of a peer when it is translated there', () => {
    const machine = new BoardMachine(ampereLike());
    const fn = machine.enabled('0000:01:00.0');
    const peer = machine.enabled('0000:02:00.0');
    const [bar] = peer.bars;
    if (bar === undefined) throw new Error('no BAR');
    const address = BigInt(peer.barAddress(bar));
    machine.run(fn.dmaWrite(address + 8n, Uint8Array.of(1, 2, 3, 4)));
    expect(machine.run(fn.dmaRead(address + 8n, 4)).bytes).toEqual(Uint8Array.of(1, 2, 3, 4));
    expect(machine.board.analyser.records[1]?.ends[0]).toMatchObject({ kind: 'peer', where: '0000:02:00.0 BAR 0' });
  });

  it('is terminated by an SMMU that knows no such stream', () => {
    const machine = new BoardMachine(ampereLike());
    const fn = machine.enabled('0000:01:00.0');
    machine.board.bus.mmioWrite32(SMMU_CR0, 1);
    expect(machine.run(fn.dmaWrite(BigInt(RAM), Uint8Array.of(1))).ok).toBe(false);
    expect(machine.board.analyser.records[0]?.ends).toEqual([
      { kind: 'aborted', iova: BigInt(RAM), lengthBytes: 1, where: 'C_BAD_STREAMID', hop: 'smmu0' },
    ]);
  });
});

describe('hot-plug', () => {
  const BDF = '0000:03:00.0';

  it('tells the kernel, and keeps the card until the kernel lets go of it', () => {
    const machine = new BoardMachine(ampereLike());
    const seen: string[] = [];
    machine.board.onHotplug((bdf, what) => seen.push(`${bdf} ${what}`));
    expect(machine.board.unplug(BDF)).toBe(-ENODEV);
    expect(machine.board.plug('0000:09:00.0')).toBe(-ENODEV);
    expect(machine.board.plug(BDF)).toBe(0);
    expect(machine.board.plug(BDF)).toBe(-EBUSY);
    const fn = machine.enabled(BDF);
    expect(fn.configRead(0, 2)).toBe(0x1d0f);
    expect(machine.board.unplug(BDF)).toBe(0);
    expect(fn.isPresent).toBe(true);
    machine.board.remove(BDF);
    expect(fn.configRead(0, 2)).toBe(0xffff);
    expect(seen).toEqual([`${BDF} present`, `${BDF} absent`]);
  });

  it('gives a card that comes back its addresses, and its reset state', () => {
    const machine = new BoardMachine(ampereLike());
    const addresses = [0, 1, 2].map(() => {
      machine.board.plug(BDF);
      const fn = machine.function(BDF);
      expect(fn.isBusMaster).toBe(false);
      machine.enabled(BDF);
      const [bar] = fn.bars;
      const address = bar === undefined ? 0 : fn.barCpuAddress(bar);
      machine.board.remove(BDF);
      return address;
    });
    expect(addresses[0]).toBeGreaterThan(0);
    expect(new Set(addresses).size).toBe(1);
  });

  it('aborts what a card had under way when it was taken out', () => {
    const machine = new BoardMachine(ampereLike());
    machine.board.plug(BDF);
    const fn = machine.enabled(BDF);
    machine.runtime.scheduler.callAt(400, () => machine.board.remove(BDF));
    expect(machine.run(fn.dmaWrite(BigInt(RAM), new Uint8Array(4 * 4096))).ok).toBe(false);
    expect(machine.board.analyser.records[0]?.ends.map(({ kind }) => kind)).toEqual(['memory', 'aborted']);
  });
});
