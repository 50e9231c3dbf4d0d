import { describe, expect, it } from 'vitest';
import { FRAME_BYTES } from '../../src/core/arena.js';
import {
  GITS_BASER,
  GITS_CBASER,
  GITS_CREADR,
  GITS_CTLR,
  GITS_CWRITER,
  GITS_TRANSLATER,
  GITS_TYPER,
  ITS_COMMAND,
  ITS_FRAME_BYTES,
  ITS_OP,
} from '../../src/hardware/msi/its.js';
import { FIRST_LPI, GICR_PENDBASER, GICR_PROPBASER, LPI_ENABLE } from '../../src/hardware/msi/redistributor.js';
import {
  GCMD_REG,
  GSTS_REG,
  IRTA_REG,
  IRTE,
  REMAPPABLE_ADDRESS,
  REMAPPING_BASE,
  V2M_FIRST_SPI,
} from '../../src/hardware/msi/simple.js';
import type { DmaResult, PciFunction } from '../../src/hardware/pcie/function.js';
import { ampereLike, d05Like, dmaEngineAt, x86Like } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const ITS = 0x100100040000;
const DOORBELL = BigInt(ITS + GITS_TRANSLATER);
const DEVICE = 0x0100;
type Command = Parameters<typeof ITS_COMMAND.make>[0];

/** A board and a driver of its ITS that writes real commands. */
class ItsMachine extends BoardMachine {
  readonly base: number;
  readonly queue: number;
  readonly table: number;
  readonly devices: number;
  readonly collections: number;
  readonly configuration: number;
  readonly pending: number;
  #writer = 0;

  constructor(description = ampereLike(), base = ITS) {
    super(description);
    this.base = base;
    this.queue = this.page();
    this.table = this.page();
    this.write64(GITS_CBASER.offset, GITS_CBASER.make({ Valid: 1, Physical_Address: this.queue / FRAME_BYTES }));
    this.devices = this.page(8);
    this.write64(
      GITS_BASER.offset,
      GITS_BASER.make({ Valid: 1, Size: 255, Physical_Address: this.devices / FRAME_BYTES }),
    );
    this.collections = this.page();
    this.write64(
      GITS_BASER.offset + 8,
      GITS_BASER.make({ Valid: 1, Physical_Address: this.collections / FRAME_BYTES }),
    );
    this.configuration = this.page();
    const redistributor = ITS_FRAME_BYTES;
    const table = { IDbits: 13, Physical_Address: this.configuration / FRAME_BYTES };
    this.write64(redistributor + GICR_PROPBASER.offset, GICR_PROPBASER.make(table));
    this.pending = this.page(4);
    this.write64(
      redistributor + GICR_PENDBASER.offset,
      GICR_PENDBASER.make({ Physical_Address: this.pending / 65536 }),
    );
    this.board.bus.mmioWrite32(base + redistributor, 1);
    this.board.bus.mmioWrite32(base + GITS_CTLR.offset, 1);
    this.configure(8200, LPI_ENABLE);
  }

  write64(offset: number, [lo = 0, hi = 0]: Uint32Array): void {
    this.board.bus.mmioWrite32(this.base + offset, lo);
    this.board.bus.mmioWrite32(this.base + offset + 4, hi);
  }

  /** An LPI's configuration byte; the redistributor reads it when it first needs it, or after INV. */
  configure(intid: number, byte: number): void {
    this.board.memory.write(this.configuration + intid - FIRST_LPI, Uint8Array.of(byte));
  }

  page(order = 0): number {
    return this.board.arena.frameToPfn(this.board.arena.allocKernel(order)) * FRAME_BYTES;
  }

  issue(...commands: Command[]): void {
    for (const command of commands) {
      const bytes = new Uint8Array(ITS_COMMAND.make(command).buffer);
      this.board.memory.write(this.queue + this.#writer, bytes);
      this.#writer = (this.#writer + bytes.length) % FRAME_BYTES;
    }
    this.board.bus.mmioWrite32(this.base + GITS_CWRITER.offset, this.#writer);
    this.settle();
    expect(this.board.bus.mmioRead32(this.base + GITS_CREADR.offset)).toBe(this.#writer);
  }

  /** Maps DEVICE with 4 EventIDs, EventID 1 to LPI 8200. */
  mapOne(device = DEVICE): void {
    this.issue(
      { OP: ITS_OP.MAPC, ICID: 3, Valid: 1 },
      { OP: ITS_OP.MAPD, DeviceID: device, Size: 1, ITT_address: this.table / 256, Valid: 1 },
      { OP: ITS_OP.MAPTI, DeviceID: device, EventID: 1, pINTID: 8200, ICID: 3 },
      { OP: ITS_OP.SYNC },
    );
  }

  ring(fn: PciFunction, address: bigint, data: number): DmaResult {
    const bytes = new Uint8Array(Uint32Array.of(data).buffer);
    return this.run(fn.dmaWrite(address, bytes));
  }

  get errors(): unknown[] {
    return this.eventsOf('its.command-error').map((data) => data['why']);
  }

  get dropped(): unknown[] {
    return this.eventsOf('its.dropped').map((data) => data['why']);
  }
}

describe('ITS', () => {
  it('turns DeviceID and EventID into an LPI', () => {
    const its = new ItsMachine();
    its.mapOne();
    expect(its.ring(its.enabled('0000:01:00.0'), DOORBELL, 1).ok).toBe(true);
    expect(its.interrupts).toEqual([{ controller: 'its0', intid: 8200, from: '0000:01:00.0' }]);
    expect(its.board.analyser.records.at(-1)?.ends).toEqual([
      { kind: 'doorbell', iova: DOORBELL, lengthBytes: 4, address: DOORBELL, where: 'its0', hop: 'system bus' },
    ]);
  });

  it('says in GITS_TYPER how large an entry of a translation table is, and keeps the table in memory', () => {
    const its = new ItsMachine();
    const typer = [its.board.bus.mmioRead32(ITS + GITS_TYPER.offset) ?? 0, 0];
    const entryBytes = GITS_TYPER.get(typer, 'ITT_entry_size') + 1;
    its.mapOne();
    its.board.memory.write(its.table + entryBytes, new Uint8Array(entryBytes));
    its.ring(its.enabled('0000:01:00.0'), DOORBELL, 1);
    expect(its.interrupts).toEqual([]);
    expect(its.dropped).toEqual(['no mapping']);
  });

  it('isolates devices: another DeviceID does not reach the mapping', () => {
    const its = new ItsMachine();
    its.mapOne();
    its.ring(its.enabled('0000:01:00.1'), DOORBELL, 1);
    expect(its.interrupts).toEqual([]);
    its.board.bus.mmioWrite32(Number(DOORBELL), 1);
    its.settle();
    expect(its.dropped).toEqual(['no mapping', 'write without a DeviceID']);
  });

  it('moves, discards and unmaps', () => {
    const its = new ItsMachine();
    const fn = its.enabled('0000:01:00.0');
    its.mapOne();
    its.issue({ OP: ITS_OP.MOVI, DeviceID: DEVICE, EventID: 1, ICID: 4 });
    its.issue({ OP: ITS_OP.MAPC, ICID: 4, Valid: 1 }, { OP: ITS_OP.MOVI, DeviceID: DEVICE, EventID: 1, ICID: 4 });
    its.issue({ OP: ITS_OP.MAPC, ICID: 3, Valid: 0 }, { OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toHaveLength(1);
    its.issue({ OP: ITS_OP.MAPC, ICID: 4, Valid: 0 });
    its.ring(fn, DOORBELL, 1);
    its.issue({ OP: ITS_OP.MAPC, ICID: 4, Valid: 1 }, { OP: ITS_OP.DISCARD, DeviceID: DEVICE, EventID: 1 });
    its.ring(fn, DOORBELL, 1);
    its.issue({ OP: ITS_OP.MAPD, DeviceID: DEVICE, Valid: 0 }, { OP: ITS_OP.MAPI, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toHaveLength(1);
    expect(its.dropped).toEqual(['collection is not mapped', 'no mapping']);
    expect(its.errors).toEqual(['the other collection is not mapped', 'unmapped device or event beyond its table']);
  });

  it('ignores commands that cannot be, and goes round its queue', () => {
    const its = new ItsMachine();
    its.mapOne();
    its.issue(
      { OP: ITS_OP.MAPD, DeviceID: 5, Size: 4, ITT_address: 0x1000 / 256, Valid: 1 },
      { OP: ITS_OP.MAPD, DeviceID: 0x20000, Size: 4, ITT_address: its.table / 256, Valid: 1 },
      { OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 4, pINTID: 8201, ICID: 3 },
      { OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 2, pINTID: 40, ICID: 3 },
      { OP: ITS_OP.MAPC, ICID: 600, Valid: 1 },
      { OP: ITS_OP.INV, DeviceID: DEVICE, EventID: 3 },
      { OP: 0xff },
    );
    expect(its.errors).toEqual([
      'the translation table is not in memory',
      'DeviceID beyond the device table',
      'unmapped device or event beyond its table',
      'the interrupt is no LPI',
      'ICID beyond the collection table',
      'unmapped event',
      'unknown command',
    ]);
    for (let i = 0; i < 130; i++) its.issue({ OP: ITS_OP.SYNC });
    its.issue({ OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toHaveLength(1);
  });

  it('leaves an LPI pending that is not enabled, and delivers it after INV', () => {
    const its = new ItsMachine();
    const fn = its.enabled('0000:01:00.0');
    its.mapOne();
    its.configure(8200, 0);
    its.ring(fn, DOORBELL, 1);
    const bit = (): number => its.board.memory.read(its.pending + (8200 >> 3), 1)?.[0] ?? 0;
    expect([its.interrupts.length, bit()]).toEqual([0, 1]);
    its.configure(8200, LPI_ENABLE);
    its.ring(fn, DOORBELL, 1);
    expect(its.interrupts, 'the old configuration is cached').toEqual([]);
    its.issue({ OP: ITS_OP.INV, DeviceID: DEVICE, EventID: 1 });
    expect([its.interrupts.length, bit()]).toEqual([1, 0]);
    its.configure(8200, 0);
    its.issue({ OP: ITS_OP.INVALL, ICID: 3 });
    its.ring(fn, DOORBELL, 1);
    its.issue({ OP: ITS_OP.CLEAR, DeviceID: DEVICE, EventID: 1 });
    its.configure(8200, LPI_ENABLE);
    its.issue({ OP: ITS_OP.INV, DeviceID: DEVICE, EventID: 1 });
    expect([its.interrupts.length, bit()]).toEqual([1, 0]);
  });

  it('walks a two-level device table, and only where there is a second level', () => {
    const its = new ItsMachine();
    const level1 = its.page();
    const level2 = its.page();
    const valid = { Valid: 1, Indirect: 1, Physical_Address: level1 / FRAME_BYTES };
    its.write64(GITS_BASER.offset, GITS_BASER.make(valid));
    its.board.memory.store64(level1, level2 % 2 ** 32, 0x8000_0000 + Math.floor(level2 / 2 ** 32));
    its.mapOne();
    its.ring(its.enabled('0000:01:00.0'), DOORBELL, 1);
    expect(its.interrupts).toHaveLength(1);
    its.issue({ OP: ITS_OP.MAPD, DeviceID: 0x200, Size: 1, ITT_address: its.table / 256, Valid: 1 });
    expect(its.errors).toEqual(['DeviceID beyond the device table']);
  });

  it('loses interrupts when told to, and while it is disabled', () => {
    const its = new ItsMachine();
    its.mapOne();
    const fn = its.enabled('0000:01:00.0');
    its.runtime.faults.arm('its.drop', { count: 1 });
    its.ring(fn, DOORBELL, 1);
    its.board.bus.mmioWrite32(ITS + GITS_CTLR.offset, 0);
    its.ring(fn, DOORBELL, 1);
    its.board.bus.mmioWrite32(ITS + GITS_CTLR.offset, 1);
    its.ring(fn, DOORBELL, 1);
    expect(its.dropped).toEqual(['fault', 'the ITS is disabled']);
    expect(its.interrupts).toHaveLength(1);
  });

  it('is reached without the SMMU on hip07, in its whole doorbell page', () => {
    const base = 0xc6000000;
    const its = new ItsMachine(d05Like(), base);
    its.board.bus.mmioWrite32(0xa0040000 + 0x20, 1);
    its.settle();
    its.mapOne(0x7d00);
    const fn = its.enabled('0000:7d:00.0');
    expect(its.ring(fn, BigInt(base + GITS_TRANSLATER), 1).ok).toBe(true);
    expect(its.ring(fn, BigInt(base + 0x1fffc), 1).ok, 'swallowed').toBe(true);
    expect(its.ring(fn, BigInt(base + 0x30000), 1).ok, 'translated, and aborted').toBe(false);
    expect(its.interrupts).toEqual([{ controller: 'its@c6000000', intid: 8200, from: '0000:7d:00.0' }]);
    expect(its.board.analyser.records.map((record) => record.ends[0]?.kind)).toEqual([
      'doorbell',
      'doorbell',
      'aborted',
    ]);
  });
});

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
    expect(machine.eventsOf('v2m.dropped')).toHaveLength(1);
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
    const [lo = 0, hi = 0] = IRTA_REG.make({ S: 7, IRTA: table / FRAME_BYTES });
    board.bus.mmioWrite32(REMAPPING_BASE + IRTA_REG.offset, lo);
    board.bus.mmioWrite32(REMAPPING_BASE + IRTA_REG.offset + 4, hi);
    board.bus.mmioWrite32(REMAPPING_BASE + GCMD_REG.offset, GCMD_REG.make({ IRE: 1 })[0] ?? 0);
    expect(board.bus.mmioRead32(REMAPPING_BASE + GSTS_REG.offset)).toBe(1 << 25);
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
    expect(machine.eventsOf('in-rc-msi.swallowed')).toHaveLength(1);
    expect(machine.board.analyser.records.map((record) => record.ends[0]?.kind)).toEqual([
      'doorbell',
      'doorbell',
      'nowhere',
    ]);
  });
});
