import { describe, expect, it } from 'vitest';
import type { PciFunctionDescription } from '../../src/hardware/description.js';
import { PciFunction, requesterIdOf, type UpstreamPort } from '../../src/hardware/pcie/function.js';
import {
  CONFIG_BYTES,
  PCI_MSIX_FLAGS,
  PCI_BAR0,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_PM,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_EXP_DEVCTL,
} from '../../src/uapi/pci-regs.js';
import { NodeRuntime } from '../../src/runtime/node-runtime.js';
import { ampereLike, d05Like, dmaEngineAt } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const BDF = '0000:01:00.1';

/** A function alone, and the messages it sends. */
function alone(
  bars: ConstructorParameters<typeof PciFunction>[2],
  extra: Partial<PciFunctionDescription> = {},
): { fn: PciFunction; messages: [bigint, number][]; settle: () => void } {
  const runtime = new NodeRuntime('a', 1);
  const messages: [bigint, number][] = [];
  const upstream: UpstreamPort = {
    *dmaRead() {
      return { ok: true };
    },

    *dmaWrite() {
      return { ok: true };
    },

    *msi(_fn, address, data) {
      messages.push([address, data]);
      return { ok: true };
    },
  };
  const fn = new PciFunction(runtime, dmaEngineAt(BDF, { model: 'generic', ...extra }), bars, upstream);
  return { fn, messages, settle: () => runtime.scheduler.runUntil(1e9) };
}

describe('configuration space', () => {
  it('has a type 0 header and a capability list that ends', () => {
    const { fn } = alone([{ index: 0, sizeBytes: 8192, is64: true }]);
    expect(fn.configRead(0, 4)).toBe(0xda011d0f);
    expect(fn.configRead(8, 4)).toBe(0x08800001);
    expect(fn.configRead(0x0e, 1)).toBe(0);
    const ids: number[] = [];
    for (let at = fn.configRead(0x34, 1); at !== 0; at = fn.configRead(at + 1, 1)) ids.push(fn.configRead(at, 1));
    expect(ids).toEqual([PCI_CAP_ID_EXP, PCI_CAP_ID_PM]);
    fn.addMsix(0, 4);
    expect(PCI_MSIX_FLAGS.get([fn.configRead(fn.findCapability(PCI_CAP_ID_MSIX), 4)], 'QSIZE')).toBe(3);
    fn.configWrite(0, 4, 0);
    expect(fn.configRead(0, 4), 'read-only').toBe(0xda011d0f);
  });

  it.each([
    ['32-bit', 4096, false, 0xfffff000, undefined],
    ['64-bit', 1 << 20, true, 0xfff0000c, 0xffffffff],
    ['64-bit of 8 GiB', 2 ** 33, true, 0x0000000c, 0xfffffffe],
  ])('sizes a %s BAR', (_name, sizeBytes, is64, low, high) => {
    const { fn } = alone([{ index: 2, sizeBytes, is64 }]);
    fn.configWrite(PCI_BAR0 + 8, 4, 0xffffffff);
    expect(fn.configRead(PCI_BAR0 + 8, 4)).toBe(low);
    fn.configWrite(PCI_BAR0 + 12, 4, 0xffffffff);
    expect(fn.configRead(PCI_BAR0 + 12, 4)).toBe(high ?? 0);
  });

  it('answers all ones where no function is', () => {
    const { fn } = alone([], { absent: true });
    expect(fn.configRead(0, 2)).toBe(0xffff);
    expect(fn.configRead(0, 4)).toBe(0xffffffff);
  });

  it('resets through Device Control, and only by the reset bit', () => {
    const { fn } = alone([]);
    fn.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    const control = fn.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL.offset;
    fn.configWrite(control, 2, 0x2810);
    expect(fn.isBusMaster).toBe(true);
    fn.configWrite(control, 2, 0xa810);
    expect(fn.isBusMaster).toBe(false);
  });

  it('makes a requester ID of an address', () => {
    expect(requesterIdOf('0000:7d:1f.3')).toBe(0x7dfb);
    expect(() => requesterIdOf('7d:00.0')).toThrow(RangeError);
  });
});

describe('MSI-X', () => {
  const control = (fn: PciFunction, value: number): void =>
    fn.configWrite(fn.findCapability(PCI_CAP_ID_MSIX), 4, value);
  const ENABLE = 0x80000000;
  const FUNCTION_MASK = 0x40000000;

  const withVectors = (): ReturnType<typeof alone> & { raise: (vector: number) => void; program: () => void } => {
    const machine = alone([{ index: 2, sizeBytes: 4096, is64: true }]);
    machine.fn.addMsix(2, 4);
    return {
      ...machine,
      raise: (vector) => [...machine.fn.raise(vector)],
      program: () => {
        machine.fn.barWrite(2, 16, 4, 0x8000040);
        machine.fn.barWrite(2, 20, 4, 1);
        machine.fn.barWrite(2, 24, 4, 77);
        machine.fn.barWrite(2, 28, 4, 0);
      },
    };
  };

  it('sends the message of the table when enabled, nothing when not', () => {
    const { fn, messages, raise, program } = withVectors();
    program();
    raise(1);
    expect(messages).toEqual([]);
    control(fn, ENABLE);
    raise(1);
    expect(messages).toEqual([[0x108000040n, 77]]);
  });

  it('keeps masked vectors pending and sends them once when unmasked', () => {
    const { fn, messages, raise, program, settle } = withVectors();
    control(fn, ENABLE);
    raise(1);
    raise(1);
    expect(messages).toEqual([]);
    expect(fn.barRead(2, 2048, 4), 'pending bits').toBe(2);
    program();
    settle();
    expect(messages).toEqual([[0x108000040n, 77]]);
    expect(fn.barRead(2, 2048, 4)).toBe(0);
  });

  it('honours the function mask', () => {
    const { fn, messages, raise, program, settle } = withVectors();
    program();
    control(fn, (ENABLE | FUNCTION_MASK) >>> 0);
    raise(1);
    settle();
    expect(messages).toEqual([]);
    control(fn, ENABLE);
    settle();
    expect(messages).toHaveLength(1);
  });

  it('is found in the recorded configuration space of an imported function', () => {
    const config = new Uint8Array(CONFIG_BYTES);
    config.set([0x34, 0x12, 0x78, 0x56]);
    config[0x06] = 0x10;
    config[0x10] = 0x0c;
    config[0x34] = 0x70;
    config.set([PCI_CAP_ID_MSIX, 0, 0x07, 0x80, 0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0], 0x70);
    const { fn } = alone([{ index: 0, sizeBytes: 16384, is64: true }], { config });
    expect([fn.msixVectors, fn.msixBar, fn.isMsixEnabled]).toEqual([8, 0, false]);
    expect(fn.barRead(0, 0x2000 + 12, 4), 'masked at reset').toBe(1);
    expect(fn.configRead(0, 4)).toBe(0x56781234);
  });
});

describe('firmware', () => {
  it('gives every BAR an aligned place of its own in a window, the same in every run', () => {
    const places = (): number[][] => {
      const { board } = new BoardMachine(ampereLike());
      return [...board.functions.values()].map((fn) => fn.bars.map((bar) => fn.barAddress(bar)));
    };
    const all = places().flat();
    const given = all.filter((address) => address !== 0);
    expect(given).toHaveLength(8);
    expect(new Set(given).size).toBe(8);
    for (const address of given) expect(address % 4096).toBe(0);
    expect(Math.min(...given)).toBe(0x20000000);
    expect(places().flat()).toEqual(all);
  });

  it('refuses a machine without room', () => {
    const host = d05Like();
    const [bridge] = host.hostBridges;
    if (bridge === undefined) throw new Error('no bridge');
    const windows = [{ start: 0xa8000000n, last: 0xa8000fffn, cpuStart: 0xa8000000n, prefetchable: false }];
    expect(() => new BoardMachine(d05Like({ hostBridges: [{ ...bridge, windows }] }))).toThrow(/no window/);
  });

  it('maps bus addresses to where the CPU finds them', () => {
    const host = d05Like();
    const [bridge] = host.hostBridges;
    if (bridge === undefined) throw new Error('no bridge');
    const windows = [{ start: 0x40000000n, last: 0x4fffffffn, cpuStart: 0x8a8000000n, prefetchable: false }];
    const machine = new BoardMachine(d05Like({ hostBridges: [{ ...bridge, windows }] }));
    const fn = machine.function('0000:7d:00.0');
    const [bar] = fn.bars;
    if (bar === undefined) throw new Error('no BAR');
    expect(fn.barAddress(bar)).toBe(0x40000000);
    expect(machine.board.bus.mmioRead32(0x8a8000000), 'memory decode is off').toBeUndefined();
    fn.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    expect(machine.board.bus.mmioRead32(0x8a8000000)).toBe(0x31414d44);
  });
});
