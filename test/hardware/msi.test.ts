import { describe, expect, it } from 'vitest';
import { FRAME_BYTES } from '../../src/core/arena.js';
import {
  GITS_CBASER,
  GITS_CREADR,
  GITS_CTLR,
  GITS_CWRITER,
  GITS_TRANSLATER,
  GITS_TYPER,
  ITS_COMMAND,
  ITS_OP,
} from '../../src/hardware/msi/its.js';
import { V2M_FIRST_SPI } from '../../src/hardware/msi/simple.js';
import type { DmaResult, PciFunction } from '../../src/hardware/pcie/function.js';
import { ampereLike, d05Like, x86Like } from '../fixtures/hosts.js';
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
  #writer = 0;

  constructor(description = ampereLike(), base = ITS) {
    super(description);
    this.base = base;
    this.queue = this.page();
    this.table = this.page();
    const [lo = 0, hi = 0] = GITS_CBASER.make({ Valid: 1, Physical_Address: this.queue / FRAME_BYTES });
    this.board.bus.mmioWrite32(base + GITS_CBASER.offset, lo);
    this.board.bus.mmioWrite32(base + GITS_CBASER.offset + 4, hi);
    this.board.bus.mmioWrite32(base + GITS_CTLR.offset, 1);
  }

  page(): number {
    return this.board.arena.frameToPfn(this.board.arena.allocKernel()) * FRAME_BYTES;
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

  get dropped(): unknown[] {
    return this.eventsOf('its.dropped').map((data) => data['why']);
  }
}

describe('ITS', () => {
  it('turns DeviceID and EventID into an LPI', () => {
    const its = new ItsMachine();
    its.mapOne();
    expect(its.ring(its.enabled('0000:01:00.0'), DOORBELL, 1).ok).toBe(true);
    expect(its.interrupts).toEqual([{ controller: 'its0', intid: 8200 }]);
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
    its.ring(fn, DOORBELL, 1);
    its.issue({ OP: ITS_OP.MAPC, ICID: 4, Valid: 1 }, { OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toHaveLength(1);
    its.issue({ OP: ITS_OP.DISCARD, DeviceID: DEVICE, EventID: 1 });
    its.ring(fn, DOORBELL, 1);
    its.issue({ OP: ITS_OP.MAPD, DeviceID: DEVICE, Valid: 0 }, { OP: ITS_OP.MAPI, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toHaveLength(1);
    expect(its.dropped).toEqual(['collection is not mapped', 'no mapping', 'MAPTI of an unmapped device or event']);
  });

  it('ignores commands that cannot be, and goes round its queue', () => {
    const its = new ItsMachine();
    its.mapOne();
    its.issue(
      { OP: ITS_OP.MAPD, DeviceID: 5, Size: 4, ITT_address: 0x1000 / 256, Valid: 1 },
      { OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 4, pINTID: 8201, ICID: 3 },
      { OP: ITS_OP.MAPTI, DeviceID: DEVICE, EventID: 2, pINTID: 40, ICID: 3 },
      { OP: 0xff },
    );
    expect(its.dropped).toHaveLength(4);
    for (let i = 0; i < 130; i++) its.issue({ OP: ITS_OP.SYNC });
    its.issue({ OP: ITS_OP.INT, DeviceID: DEVICE, EventID: 1 });
    expect(its.interrupts).toHaveLength(1);
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
    expect(its.interrupts).toEqual([{ controller: 'its@c6000000', intid: 8200 }]);
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

  it('x86 decodes its window before the IOMMU', () => {
    const machine = new BoardMachine(x86Like());
    const fn = machine.enabled('0000:01:00.0');
    const write = (address: bigint, bytes: Uint8Array): unknown => machine.run(fn.dmaWrite(address, bytes));
    write(0xfee00000n, new Uint8Array(Uint32Array.of(0x41).buffer));
    write(0xfee00000n, Uint8Array.of(0x41));
    expect(machine.interrupts).toEqual([{ controller: 'x86-msi', intid: 0x41 }]);
    expect(machine.eventsOf('x86-msi.dropped')).toHaveLength(1);
  });
});
