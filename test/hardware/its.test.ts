/** The ITS and its redistributor: tables and commands as a driver writes them, messages as devices do. */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FRAME_BYTES } from '../../src/core/arena.js';
import {
  GITS_CBASER,
  GITS_CREADR,
  GITS_CTLR,
  GITS_CWRITER,
  GITS_TRANSLATER,
  GITS_IIDR,
  GITS_TYPER,
  Its,
  ITS_COMMAND,
  ITS_OP,
} from '../../src/hardware/msi/its.js';
import {
  GITS_BASER,
  GITS_BASER_OFFSET,
  GITS_BASER_TYPE,
  GITS_LVL1_ENTRY,
  GITS_PAGE_BYTES,
} from '../../src/hardware/msi/its-table.js';
import {
  FIRST_LPI,
  GICR_CTLR,
  GICR_PENDBASER,
  GICR_PROPBASER,
  GICR_TYPER,
  LPI_ENABLE,
  type Redistributor,
} from '../../src/hardware/msi/redistributor.js';
import type { DmaResult, PciFunction } from '../../src/hardware/pcie/function.js';
import { ampereLike, d05Like } from '../fixtures/hosts.js';
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

  constructor(description = ampereLike(), base = ITS, lpis: 'on' | 'off' = 'on') {
    super(description);
    this.base = base;
    this.queue = this.page();
    this.table = this.page();
    this.write64(GITS_CBASER.offset, GITS_CBASER.make({ Valid: 1, Physical_Address: this.queue / FRAME_BYTES }));
    this.devices = this.page(8);
    this.write64(
      GITS_BASER_OFFSET,
      GITS_BASER.make({ Valid: 1, Size: 255, Physical_Address: this.devices / FRAME_BYTES }),
    );
    this.collections = this.page();
    this.write64(
      GITS_BASER_OFFSET + 8,
      GITS_BASER.make({ Valid: 1, Physical_Address: this.collections / FRAME_BYTES }),
    );
    this.configuration = this.page();
    this.pending = this.page(4);
    this.configure(8200, LPI_ENABLE);
    if (lpis === 'on') this.enableLpis();
    this.board.bus.mmioWrite32(base + GITS_CTLR.offset, 1);
  }

  get redistributor(): Redistributor {
    const its = [...this.board.msiControllers.values()].find((controller) => controller instanceof Its);
    if (its === undefined) throw new Error('no ITS');
    return its.redistributor;
  }

  /** Gives the redistributor its tables, with room for INTIDs of 14 bits, and switches LPIs on. */
  enableLpis(): void {
    const { redistributor } = this;
    const table = GICR_PROPBASER.make({ IDbits: 13, Physical_Address: this.configuration / FRAME_BYTES });
    const pending = GICR_PENDBASER.make({ Physical_Address: this.pending / 65536 });
    for (const half of [0, 1]) {
      redistributor.write(GICR_PROPBASER.offset + 4 * half, table[half] ?? 0);
      redistributor.write(GICR_PENDBASER.offset + 4 * half, pending[half] ?? 0);
    }
    redistributor.write(GICR_CTLR.offset, 1);
  }

  read(offset: number): number {
    return this.board.bus.mmioRead32(this.base + offset) ?? -1;
  }

  write64(offset: number, [lo = 0, hi = 0]: Uint32Array): void {
    this.board.bus.mmioWrite32(this.base + offset, lo);
    this.board.bus.mmioWrite32(this.base + offset + 4, hi);
  }

  /** An LPI's configuration byte in memory; the redistributor reads it when LPIs are switched on, and after INV. */
  configure(intid: number, byte: number): void {
    this.board.memory.write(this.configuration + intid - FIRST_LPI, Uint8Array.of(byte));
  }

  /** From the pending table in memory. */
  get pendingLpis(): number[] {
    const bytes = this.board.memory.read(this.pending + FIRST_LPI / 8, 512) ?? new Uint8Array(0);
    const bits = [...bytes].flatMap((byte) => Array.from({ length: 8 }, (_, bit) => (byte >> bit) & 1));
    return bits.flatMap((isSet, index) => (isSet === 1 ? [FIRST_LPI + index] : []));
  }

  configureAll(byte: number): void {
    this.board.memory.write(this.configuration, new Uint8Array(FRAME_BYTES).fill(byte));
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

  get pended(): unknown[] {
    return this.eventsOf('its.pended').map(({ why, from }) => ({ why, from }));
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
    expect(its.dropped).toEqual(['event is not mapped']);
  });

  it('isolates devices: another DeviceID does not reach the mapping', () => {
    const its = new ItsMachine();
    its.mapOne();
    its.ring(its.enabled('0000:01:00.1'), DOORBELL, 1);
    expect(its.interrupts).toEqual([]);
    its.board.bus.mmioWrite32(Number(DOORBELL), 1);
    its.settle();
    expect(its.dropped).toEqual(['device is not mapped', 'write without a DeviceID']);
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
    expect(its.dropped).toEqual(['collection is not mapped', 'event is not mapped']);
    expect(its.errors).toEqual(['MOVI_UNMAPPED_COLLECTION', 'MAPI_UNMAPPED_DEVICE']);
  });

  it('ignores commands that cannot be, and goes round its queue', () => {
    const its = new ItsMachine();
    its.mapOne();
    its.issue(
      { OP: ITS_OP.MAPD, DeviceID: 5, Size: 4, ITT_address: 0x1000 / 256, Valid: 1 },
      { OP: ITS_OP.MAPTI, DeviceID: 5, EventID: 0, pINTID: 8201, ICID: 3 },
      { OP: ITS_OP.MAPD, DeviceID: 0x20000, Size: 4, ITT_address: its.table / 256, Valid: 1 },
      { OP: ITS_OP.MAPD, DeviceID: DEVICE, Size: 16, ITT_address: its.table / 256, Valid: 1 },
      { OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 4, pINTID: 8201, ICID: 3 },
      { OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 2, pINTID: 40, ICID: 3 },
      { OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 2, pINTID: 8201, ICID: 600 },
      { OP: ITS_OP.MAPC, ICID: 600, Valid: 1 },
      { OP: ITS_OP.MAPC, ICID: 1, RDbase: 1, Valid: 1 },
      { OP: ITS_OP.MOVALL, RDbase: 0, RDbase2: 1 },
      { OP: ITS_OP.SYNC, RDbase: 1 },
      { OP: ITS_OP.INV, DeviceID: DEVICE, EventID: 3 },
      { OP: ITS_OP.CLEAR, DeviceID: 6, EventID: 0 },
      { OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 9 },
      { OP: ITS_OP.DISCARD, DeviceID: DEVICE, EventID: 0 },
      { OP: ITS_OP.INVALL, ICID: 9 },
      { OP: 0xff },
    );
    expect(its.errors).toEqual([
      'MAPTI_EXTERNAL_ABORT',
      'MAPD_DEVICE_OOR',
      'MAPD_ITTSIZE_OOR',
      'MAPTI_ID_OOR',
      'MAPTI_PHYSICALID_OOR',
      'MAPTI_COLLECTION_OOR',
      'MAPC_COLLECTION_OOR',
      'MAPC_PROCNUM_OOR',
      'MOVALL_PROCNUM_OOR',
      'SYNC_PROCNUM_OOR',
      'INV_UNMAPPED_INTERRUPT',
      'CLEAR_UNMAPPED_INTERRUPT',
      'INT_ID_OOR',
      'DISCARD_UNMAPPED_INTERRUPT',
      'INVALL_UNMAPPED_COLLECTION',
      'unknown command',
    ]);
    expect(
      its
        .eventsOf('its.command-error')
        .map((data) => data['command'])
        .slice(0, 2),
    ).toEqual(['MAPTI', 'MAPD']);
    expect(GITS_CREADR.get([its.read(GITS_CREADR.offset)], 'Stalled')).toBe(0);
    for (let i = 0; i < 130; i++) its.issue({ OP: ITS_OP.SYNC });
    its.issue({ OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toHaveLength(1);
  });

  it('leaves an LPI pending that is not enabled, and delivers it after INV, with who raised it', () => {
    const its = new ItsMachine();
    const fn = its.enabled('0000:01:00.0');
    const inv = { OP: ITS_OP.INV, DeviceID: DEVICE, EventID: 1 };
    const bit = (): number => its.board.memory.read(its.pending + (8200 >> 3), 1)?.[0] ?? 0;
    its.mapOne();
    its.configure(8200, 0);
    its.ring(fn, DOORBELL, 1);
    expect([its.interrupts.length, bit()], 'without INV the old configuration holds').toEqual([1, 0]);
    its.issue(inv);
    its.ring(fn, DOORBELL, 1);
    its.ring(fn, DOORBELL, 1);
    expect([its.interrupts.length, bit()]).toEqual([1, 1]);
    expect(its.pended).toEqual([
      { why: 'the LPI is disabled', from: fn.bdf },
      { why: 'the LPI is disabled and pending already', from: fn.bdf },
    ]);
    its.configure(8200, LPI_ENABLE);
    expect(its.interrupts, 'without INV still the old').toHaveLength(1);
    its.issue(inv);
    expect([its.interrupts.length, bit()]).toEqual([2, 0]);
    expect(its.interrupts.at(-1)).toEqual({ controller: 'its0', intid: 8200, from: fn.bdf });
  });

  it('forgets a pending LPI with CLEAR and with DISCARD', () => {
    const its = new ItsMachine();
    its.configure(8200, 0);
    its.mapOne();
    its.issue(
      { OP: ITS_OP.INVALL, ICID: 3 },
      { OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 },
      { OP: ITS_OP.CLEAR, DeviceID: DEVICE, EventID: 1 },
    );
    its.configure(8200, LPI_ENABLE);
    its.issue({ OP: ITS_OP.INVALL, ICID: 3 });
    expect(its.pended).toHaveLength(1);
    its.configure(8200, 0);
    its.issue(
      { OP: ITS_OP.INVALL, ICID: 3 },
      { OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 },
      { OP: ITS_OP.DISCARD, DeviceID: DEVICE, EventID: 1 },
    );
    its.configure(8200, LPI_ENABLE);
    its.issue({ OP: ITS_OP.INVALL, ICID: 3 });
    expect(its.interrupts).toEqual([]);
  });

  it('takes what is pending in the order of priority when all are read again', () => {
    const its = new ItsMachine();
    its.mapOne();
    const lpis = [8192, 8200, 8201, 8300];
    for (const [event, pINTID] of lpis.entries()) {
      its.configure(pINTID, 0);
      its.issue({ OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: event, pINTID, ICID: 3 });
    }
    its.issue({ OP: ITS_OP.INVALL, ICID: 3 });
    for (const event of lpis.keys()) its.issue({ OP: ITS_OP.INT, DeviceID: DEVICE, EventID: event });
    for (const [lpi, priority] of [
      [8192, 0xa0],
      [8200, 0x20],
      [8201, 0xa0],
      [8300, 0x10],
    ] as const)
      its.configure(lpi, priority | LPI_ENABLE);
    its.issue({ OP: ITS_OP.INVALL, ICID: 3 });
    expect(its.interrupts.map(({ intid }) => intid)).toEqual([8300, 8200, 8192, 8201]);
  });

  it('takes LPIs that memory says are pending when they are switched on; tables are fixed from then on', () => {
    const its = new ItsMachine();
    const { redistributor } = its;
    redistributor.write(GICR_PROPBASER.offset, 0);
    redistributor.write(GICR_CTLR.offset, 0);
    expect(redistributor.read(GICR_PROPBASER.offset)).not.toBe(0);
    expect(redistributor.read(GICR_CTLR.offset)).toBe(1);
    expect(GICR_TYPER.get([redistributor.read(GICR_TYPER.offset)], 'PLPIS')).toBe(1);
    const later = new BoardMachine(ampereLike());
    const page = (order = 0): number =>
      later.board.arena.frameToPfn(later.board.arena.allocKernel(order)) * FRAME_BYTES;
    const controller = later.board.msiControllers.get('its0');
    if (!(controller instanceof Its)) throw new Error('no ITS');
    const [configuration, pending] = [page(), page(4)];
    later.board.memory.write(configuration + 8, Uint8Array.of(LPI_ENABLE));
    later.board.memory.write(pending + 8200 / 8, Uint8Array.of(0b11));
    const propbaser = GICR_PROPBASER.make({ IDbits: 13, Physical_Address: configuration / FRAME_BYTES });
    const pendbaser = GICR_PENDBASER.make({ Physical_Address: pending / 65536, PTZ: 0 });
    for (const half of [0, 1]) {
      controller.redistributor.write(GICR_PROPBASER.offset + 4 * half, propbaser[half] ?? 0);
      controller.redistributor.write(GICR_PENDBASER.offset + 4 * half, pendbaser[half] ?? 0);
    }
    controller.redistributor.write(GICR_CTLR.offset, 1);
    expect(later.interrupts).toEqual([{ controller: 'its0', intid: 8200 }]);
    expect(later.board.memory.read(pending + 8200 / 8, 1)).toEqual(Uint8Array.of(0b10));
  });

  it('loses an LPI beyond the configuration table, and all while LPIs are off', () => {
    const its = new ItsMachine(ampereLike(), ITS, 'off');
    const fn = its.enabled('0000:01:00.0');
    its.mapOne();
    its.issue({ OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 2, pINTID: 0x4000, ICID: 3 });
    its.ring(fn, DOORBELL, 1);
    its.enableLpis();
    its.ring(fn, DOORBELL, 2);
    expect(its.dropped).toEqual(['LPIs are off', 'the LPI is beyond the configuration table']);
  });

  it('finds entries wherever a flat or a two-level table has them, and none beyond', () => {
    fc.assert(
      fc.property(
        fc.record({
          Indirect: fc.constantFrom(0, 1),
          Page_Size: fc.constantFrom(0, 1, 2),
          Size: fc.nat(3),
          DeviceID: fc.nat(2 ** 17),
        }),
        ({ Indirect, Page_Size, Size, DeviceID }) => {
          const its = new ItsMachine();
          const pageBytes = GITS_PAGE_BYTES[Page_Size];
          const perPage = pageBytes / 8;
          const order = Math.log2(pageBytes / FRAME_BYTES);
          const [table, level2] = [its.page(order + 2), its.page(order)];
          const baser = GITS_BASER.make({ Valid: 1, Indirect, Page_Size, Size, Physical_Address: table / FRAME_BYTES });
          its.write64(GITS_BASER_OFFSET, baser);
          const index = Math.floor(DeviceID / perPage);
          const isThere = Indirect === 1 ? index < (Size + 1) * perPage : DeviceID < (Size + 1) * perPage;
          if (Indirect === 1 && isThere) {
            const [lo = 0, hi = 0] = GITS_LVL1_ENTRY.make({ Physical_Address: level2 / FRAME_BYTES, Valid: 1 });
            its.board.memory.store64(table + 8 * index, lo, hi);
          }
          its.issue({ OP: ITS_OP.MAPD, DeviceID, Size: 1, ITT_address: its.table / 256, Valid: 1 });
          expect(its.errors).toEqual(isThere ? [] : ['MAPD_DEVICE_OOR']);
          const at = Indirect === 1 ? level2 + 8 * (DeviceID % perPage) : table + 8 * DeviceID;
          if (isThere)
            expect((its.board.memory.load64(at)?.[1] ?? 0) >>> 31, 'the valid bit is where it should be').toBe(1);
        },
      ),
      { numRuns: 40 },
    );
  });

  it('has no entry where level 1 has no page', () => {
    const its = new ItsMachine();
    const level1 = its.page();
    its.write64(GITS_BASER_OFFSET, GITS_BASER.make({ Valid: 1, Indirect: 1, Physical_Address: level1 / FRAME_BYTES }));
    its.mapOne();
    its.ring(its.enabled('0000:01:00.0'), DOORBELL, 1);
    expect(its.errors).toEqual(['MAPD_DEVICE_OOR', 'MAPTI_DEVICE_OOR']);
    expect(its.dropped).toEqual(['DeviceID is beyond the device table']);
  });

  it('says what it is: types and entry sizes of its tables, identification', () => {
    const its = new ItsMachine();
    its.write64(GITS_BASER_OFFSET, Uint32Array.of(0xffffffff, 0xffffffff));
    const baser = (n: number): number[] => [0, 4].map((half) => its.read(GITS_BASER_OFFSET + 8 * n + half));
    const types = [0, 1, 2].map((n) => GITS_BASER.get(baser(n), 'Type'));
    expect(types).toEqual([GITS_BASER_TYPE.DEVICES, GITS_BASER_TYPE.COLLECTIONS, 0]);
    expect([0, 1].map((n) => GITS_BASER.get(baser(n), 'Entry_Size') + 1)).toEqual([8, 8]);
    expect(GITS_BASER.get(baser(0), 'Indirect'), 'two-level tables can be had').toBe(1);
    expect((its.read(0xffe8) >> 4) & 0xf, 'GITS_PIDR2.ArchRev').toBe(3);
    expect([0xfff0, 0xfff4, 0xfff8, 0xfffc].map((offset) => its.read(offset))).toEqual([0x0d, 0xf0, 0x05, 0xb1]);
    expect(GITS_IIDR.get([its.read(GITS_IIDR.offset)], 'Implementer')).toBe(0x43b);
    const typer = [its.read(GITS_TYPER.offset), its.read(GITS_TYPER.offset + 4)];
    expect(GITS_TYPER.decode(typer)).toEqual({
      Physical: 1,
      ITT_entry_size: 7,
      ID_bits: 15,
      Devbits: 19,
      SEIS: 0,
      PTA: 0,
      HCC: 0,
    });
  });

  it('does not run after a GITS_CWRITER beyond its queue, and goes on with the next', () => {
    const its = new ItsMachine();
    its.board.bus.mmioWrite32(ITS + GITS_CWRITER.offset, FRAME_BYTES);
    its.settle();
    expect(its.eventsOf('its.queue-error')).toHaveLength(1);
    its.mapOne();
    its.issue({ OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toEqual([{ controller: 'its0', intid: 8200 }]);
  });

  it('may have another ITS right behind it', () => {
    const behind = {
      name: 'its1',
      kind: 'its',
      base: BigInt(ITS + 0x20000),
      bypassesIommu: false,
      isolated: true,
    } as const;
    const its = new ItsMachine(ampereLike({ msiControllers: [...ampereLike().msiControllers, behind] }));
    expect((its.read(0x20000 + 0xffe8) >> 4) & 0xf).toBe(3);
  });

  it('takes 16-bit messages; what else comes to the page of the doorbell is lost, and the history says from whom', () => {
    const its = new ItsMachine();
    its.mapOne();
    const fn = its.enabled('0000:01:00.0');
    its.run(fn.dmaWrite(DOORBELL, Uint8Array.of(1, 0)));
    expect(its.interrupts).toHaveLength(1);
    its.run(fn.dmaWrite(DOORBELL, Uint8Array.of(1)));
    its.ring(fn, DOORBELL + 4n, 1);
    expect(its.eventsOf('its.dropped').map(({ why, from }) => [why, from])).toEqual([
      ['not a doorbell write', fn.bdf],
      ['not a doorbell write', fn.bdf],
    ]);
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
    expect(its.ring(fn, BigInt(base + 0x20000), 1).ok, 'translated, and aborted').toBe(false);
    expect(its.interrupts).toEqual([{ controller: 'its@c6000000', intid: 8200, from: '0000:7d:00.0' }]);
    expect(its.board.analyser.records.map((record) => record.ends[0]?.kind)).toEqual([
      'doorbell',
      'doorbell',
      'aborted',
    ]);
  });
});

interface RecordedMapping {
  readonly deviceId: number;
  readonly events: readonly { readonly eventId: number; readonly lpi: number }[];
}
interface RecordedCase {
  readonly id: string;
  readonly steps: readonly {
    readonly op: string;
    readonly deviceId?: number;
    readonly data?: string;
    readonly result?: {
      readonly status: string;
      readonly segs?: readonly { readonly pa: string }[];
      readonly lpisPended?: readonly number[];
    };
  }[];
  readonly its?: { readonly enabled: boolean; readonly doorbell: string; readonly map: readonly RecordedMapping[] };
}

describe('against a recorded ITS', () => {
  const sample = gunzipSync(readFileSync(new URL('../conformance/smmuv3/sample.jsonl.gz', import.meta.url)));
  const cases = sample
    .toString()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as RecordedCase)
    .filter((recorded) => recorded.its !== undefined);

  it('the sample has cases', () => {
    expect(cases.length).toBeGreaterThan(0);
  });

  it.each(cases)('$id: the same LPIs become pending', ({ its: recorded, steps }) => {
    if (recorded === undefined) return;
    const its = new ItsMachine();
    // LPIs were not enabled there: one that is pending does not become it again.
    its.configureAll(0);
    its.issue({ OP: ITS_OP.MAPC, ICID: 0, Valid: 1 }, { OP: ITS_OP.INVALL, ICID: 0 });
    for (const { deviceId, events } of recorded.map) {
      its.issue({ OP: ITS_OP.MAPD, DeviceID: deviceId, Size: 5, ITT_address: its.page() / 256, Valid: 1 });
      for (const { eventId, lpi } of events)
        its.issue({ OP: ITS_OP.MAPTI, DeviceID: deviceId, EventID: eventId, pINTID: lpi, ICID: 0 });
    }
    its.board.bus.mmioWrite32(ITS + GITS_CTLR.offset, recorded.enabled ? 1 : 0);
    for (const { op, deviceId = 0, data = '', result } of steps) {
      const pa = result?.segs?.[0]?.pa;
      if (result?.status !== 'its' || pa === undefined) continue;
      const offset = Number(BigInt(pa) - BigInt(recorded.doorbell));
      const bytes = new Uint8Array(Buffer.from(data, 'hex'));
      // Plain writes came without a DeviceID there, as DeviceID 0 (tag dev.dma-write-has-no-device-id).
      const origin = { kind: 'device', bdf: '0000:01:00.0', deviceId: op === 'msi' ? deviceId : 0 } as const;
      const before = its.pendingLpis;
      its.board.bus.writeFor(origin, Number(DOORBELL) + offset, bytes);
      expect(its.pendingLpis.filter((lpi) => !before.includes(lpi))).toEqual(result.lpisPended ?? []);
    }
  });
});
