/** Doorbells without an ITS: who may raise what, and what becomes of the rest. */
import { describe, expect, it } from 'vitest';
import { FRAME_BYTES } from '../../src/core/arena.js';
import { UnbuildableError, type MsiControllerDescription } from '../../src/hardware/description.js';
import {
  GCMD_REG,
  GSTS_REG,
  IRTA_REG,
  IRTE,
  IRTE_SVT,
  REMAPPABLE_ADDRESS,
  REMAPPING_BASE,
  spisOf,
  V2M_FIRST_SPI,
  V2M_MSI_TYPER,
  V2M_SPIS,
} from '../../src/hardware/msi/simple.js';
import type { PciFunction } from '../../src/hardware/pcie/function.js';
import { ampereLike, dmaEngineAt, x86Like } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const CARDS = { functions: [dmaEngineAt('0000:01:00.0'), dmaEngineAt('0000:01:00.1')] };
const WINDOW = 0xfee00000;

/** Switches interrupt remapping on, with a table of 256 entries. */
function remapping({ board }: BoardMachine, table: number, command: { CFI?: number } = {}): void {
  const [lo = 0, hi = 0] = IRTA_REG.make({ S: 7, IRTA: table / FRAME_BYTES });
  board.bus.mmioWrite32(REMAPPING_BASE + IRTA_REG.offset, lo);
  board.bus.mmioWrite32(REMAPPING_BASE + IRTA_REG.offset + 4, hi);
  for (const fields of [{ SIRTP: 1 }, { IRE: 1, ...command }])
    board.bus.mmioWrite32(REMAPPING_BASE + GCMD_REG.offset, GCMD_REG.make(fields)[0] ?? 0);
  const status = GSTS_REG.decode([board.bus.mmioRead32(REMAPPING_BASE + GSTS_REG.offset) ?? 0]);
  expect(status).toEqual({ CFIS: command.CFI ?? 0, IRTPS: 1, IRES: 1 });
}

function wordBytes(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function frame(name: string, base: bigint, extra: Partial<MsiControllerDescription> = {}): MsiControllerDescription {
  return { name, kind: 'gicv2m', base, bypassesIommu: false, isolated: false, ...extra };
}

describe('doorbells without translation', () => {
  it('GICv2m takes an SPI of its frame from anybody', () => {
    const machine = new BoardMachine(
      ampereLike({
        msiControllers: [{ name: 'its0', kind: 'gicv2m', base: 0x8020000n, bypassesIommu: false, isolated: false }],
      }),
    );
    const spi = (fn: PciFunction, value: number): unknown =>
      machine.run(fn.dmaWrite(0x8020040n, new Uint8Array(Uint32Array.of(value).buffer)));
    spi(machine.enabled('0000:01:00.0'), V2M_FIRST_SPI);
    spi(machine.enabled('0000:02:00.0'), V2M_FIRST_SPI + 1);
    spi(machine.enabled('0000:02:00.0'), 5);
    expect(machine.interrupts.map(({ intid }) => intid)).toEqual([V2M_FIRST_SPI, V2M_FIRST_SPI + 1]);
    expect(machine.eventsOf('v2m.dropped').map(({ why, from }) => [why, from])).toEqual([
      ['5 is no interrupt of the frame', '0000:02:00.0'],
    ]);
  });

  it('x86 decodes its window before the IOMMU; without remapping anybody raises anything', () => {
    const machine = new BoardMachine(x86Like());
    const fn = machine.enabled('0000:01:00.0');
    const write = (address: bigint, bytes: Uint8Array): unknown => machine.run(fn.dmaWrite(address, bytes));
    write(0xfee00000n, new Uint8Array(Uint32Array.of(0x41).buffer));
    write(0xfee00000n, Uint8Array.of(0x41));
    write(0xfee00000n, new Uint8Array(Uint32Array.of(0x01).buffer));
    expect(machine.interrupts).toEqual([{ controller: 'x86-msi', intid: 0x41, from: fn.bdf }]);
    expect(machine.eventsOf('irq.blocked').map((data) => data['why'])).toEqual([
      'not a message: no doubleword',
      'vector 1 is reserved',
    ]);
  });

  it('x86 with remapping lets a requester use its own entries only', () => {
    const machine = new BoardMachine(
      x86Like({ functions: [dmaEngineAt('0000:01:00.0'), dmaEngineAt('0000:01:00.1')] }),
    );
    const { board } = machine;
    const table = board.arena.frameToPfn(board.arena.allocKernel()) * FRAME_BYTES;
    remapping(machine, table);
    const [own, other] = [machine.enabled('0000:01:00.0'), machine.enabled('0000:01:00.1')];
    const entry = new Uint8Array(IRTE.make({ P: 1, Vector: 0x55, SID: own.requesterId, SVT: 1 }).buffer);
    board.memory.write(table + 5 * 16, entry);
    const message = (fn: PciFunction, handle: number, fields: { SHV?: number } = {}, data = 0): unknown => {
      const bits = REMAPPABLE_ADDRESS.make({ FORMAT: 1, HANDLE: handle, ...fields })[0] ?? 0;
      return machine.run(fn.dmaWrite(BigInt(0xfee00000 + bits), new Uint8Array(Uint32Array.of(data).buffer)));
    };
    message(own, 5);
    message(own, 3, { SHV: 1 }, 2);
    message(other, 5);
    message(own, 6);
    message(own, 300);
    machine.run(own.dmaWrite(0xfee00000n, new Uint8Array(Uint32Array.of(0x55).buffer)));
    const vector = { controller: 'x86-msi', intid: 0x55, from: own.bdf };
    expect(machine.interrupts).toEqual([vector, vector]);
    expect(machine.eventsOf('irq.blocked').map((data) => data['why'])).toEqual([
      "entry 5 is another requester's",
      'entry 6 is not present',
      'no entry 300',
      'compatibility format',
    ]);
  });

  it('a frame inside the root complex takes every access, whoever makes it', () => {
    const machine = new BoardMachine(
      ampereLike({
        msiControllers: [
          { name: 'its0', kind: 'in-rc', base: 0x79000000n, sizeBytes: 0x2000, bypassesIommu: true, isolated: false },
        ],
      }),
    );
    const write = (bdf: string, address: bigint, value: number): unknown =>
      machine.run(machine.enabled(bdf).dmaWrite(address, new Uint8Array(Uint32Array.of(value).buffer)));
    write('0000:01:00.0', 0x79000000n, 7);
    write('0000:02:00.0', 0x79001ffcn, 7);
    write('0000:02:00.0', 0x79002000n, 7);
    expect(machine.interrupts).toEqual([{ controller: 'its0', intid: 7, from: '0000:01:00.0' }]);
    expect(machine.eventsOf('in-rc-msi.swallowed').map(({ why, offset, from }) => [why, offset, from])).toEqual([
      ['not the doorbell register', 0x1ffc, '0000:02:00.0'],
    ]);
    expect(machine.board.analyser.records.map((record) => record.ends[0]?.kind)).toEqual([
      'doorbell',
      'doorbell',
      'nowhere',
    ]);
  });

  it('an entry that validates nothing, some function bits or the bus takes who it says; reserved bits make it a fault', () => {
    const machine = new BoardMachine(x86Like(CARDS));
    const { board } = machine;
    const table = board.arena.frameToPfn(board.arena.allocKernel()) * FRAME_BYTES;
    remapping(machine, table);
    const fn = machine.enabled('0000:01:00.1');
    const entries = [
      { SVT: IRTE_SVT.NONE },
      { SVT: IRTE_SVT.SID_SQ, SQ: 3, SID: 0x0106 },
      { SVT: IRTE_SVT.SID_SQ, SQ: 1, SID: 0x0105 },
      { SVT: IRTE_SVT.SID_SQ, SQ: 1, SID: 0x0103 },
      { SVT: IRTE_SVT.BUS, SID: 0x0001 },
      { SVT: IRTE_SVT.BUS, SID: 0x0203 },
      { SVT: 3 },
    ];
    for (const [index, fields] of entries.entries()) {
      const entry = IRTE.make({ P: 1, Vector: 0x60 + index, ...fields });
      board.memory.write(table + index * IRTE.sizeBytes, new Uint8Array(entry.buffer));
    }
    for (const index of entries.keys()) {
      const address = REMAPPABLE_ADDRESS.make({ FORMAT: 1, HANDLE: index })[0] ?? 0;
      machine.run(fn.dmaWrite(BigInt(WINDOW + address), wordBytes(0)));
    }
    const shared = REMAPPABLE_ADDRESS.make({ FORMAT: 1, SHV: 1 })[0] ?? 0;
    machine.run(fn.dmaWrite(BigInt(WINDOW + shared), wordBytes(0x10000)));
    expect(machine.interrupts.map(({ intid }) => intid)).toEqual([0x60, 0x61, 0x62, 0x64]);
    expect(machine.eventsOf('irq.blocked').map(({ device, reason }) => [device, reason])).toEqual([
      [fn.bdf, 0x26n],
      [fn.bdf, 0x26n],
      [fn.bdf, 0x24n],
      [fn.bdf, 0x20n],
    ]);
  });

  it('messages of the compatibility format pass remapping only where software says so', () => {
    const passing = new BoardMachine(x86Like(CARDS));
    const { arena } = passing.board;
    remapping(passing, arena.frameToPfn(arena.allocKernel()) * FRAME_BYTES, { CFI: 1 });
    const fn = passing.enabled('0000:01:00.0');
    passing.run(fn.dmaWrite(BigInt(WINDOW), wordBytes(0x41)));
    passing.run(fn.dmaWrite(BigInt(WINDOW), wordBytes(0x441)));
    expect(passing.interrupts.map(({ intid }) => intid)).toEqual([0x41]);
    expect(passing.eventsOf('irq.blocked').map(({ why }) => why)).toEqual(['delivery mode 4 is no interrupt']);
  });

  it('GICv2m frames have SPIs of their own, by order or as described, and say which', () => {
    const controllers = [
      frame('a', 0x8020000n),
      frame('b', 0x8021000n),
      frame('c', 0x8022000n, { firstSpi: 300, spiCount: 8 }),
    ];
    const { board } = new BoardMachine(ampereLike({ msiControllers: controllers }));
    const typers = controllers.map(({ base }) =>
      V2M_MSI_TYPER.decode([board.bus.mmioRead32(Number(base) + V2M_MSI_TYPER.offset) ?? 0]),
    );
    expect(typers).toEqual([
      { Base: V2M_FIRST_SPI, Number: V2M_SPIS },
      { Base: V2M_FIRST_SPI + V2M_SPIS, Number: V2M_SPIS },
      { Base: 300, Number: 8 },
    ]);
    const sharing = [frame('a', 0x8020000n), frame('b', 0x8021000n, { firstSpi: V2M_FIRST_SPI + V2M_SPIS - 1 })];
    expect(() => sharing.map((one) => spisOf(one, sharing))).toThrow(UnbuildableError);
    const beyond = [frame('a', 0x8020000n, { firstSpi: 1000, spiCount: 21 })];
    expect(() => beyond.map((one) => spisOf(one, beyond))).toThrow(UnbuildableError);
  });

  it('a doorbell in a root complex swallows data too, reads zeros, and takes the numbers of its description', () => {
    const inRc = frame('its0', 0x79000000n, { kind: 'in-rc', firstSpi: 96, spiCount: 2 });
    const machine = new BoardMachine(ampereLike({ msiControllers: [inRc] }));
    const fn = machine.enabled('0000:01:00.0');
    for (const number of [95, 96, 98]) machine.run(fn.dmaWrite(0x79000000n, wordBytes(number)));
    machine.run(fn.dmaWrite(0x79000000n, new Uint8Array(64).fill(1)));
    expect(machine.run(fn.dmaRead(0x79000000n, 8)).bytes).toEqual(new Uint8Array(8));
    expect(machine.interrupts.map(({ intid }) => intid)).toEqual([96]);
    expect(machine.eventsOf('in-rc-msi.swallowed').map(({ why }) => why)).toEqual([
      '95 is no interrupt of the frame',
      '98 is no interrupt of the frame',
      'not a doubleword',
    ]);
    expect(machine.board.analyser.records.map(({ ends }) => ends[0]?.kind)).toEqual(Array(5).fill('doorbell'));
    expect(machine.board.bus.mmioRead32(0x79000000), 'nothing on the bus').toBeUndefined();
  });
});
