/**
 * GICv3 Interrupt Translation Service: (DeviceID, EventID) → LPI.
 *
 * Software gives commands through a queue in memory (GITS_CBASER, GITS_CWRITER, GITS_CREADR); each command is 32 bytes.
 * Events are looked up in the interrupt translation table in memory that MAPD names, 8 bytes an event as GITS_TYPER says;
 * what memory holds counts. Devices and collections are held inside (GITS_TYPER.HCC, no GITS_BASER). A write to GITS_TRANSLATER is translated with the DeviceID of its writer; what
 * cannot be translated is dropped, and the history says why. LPIs are delivered to CPUs at once.
 *
 * Source: Arm IHI 0069 (GICv3) 5.2, 5.3, 12.19; domain.md A4.50.
 */
import { bit, bits, defineRecord, reg32, reg64 } from '../../layout/bits.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import type { MmioFrame, Origin } from '../bus.js';
import type { MsiControllerDescription } from '../description.js';
import type { PhysicalMemory } from '../memory.js';
import { deviceIdOf, messageWord, type Interrupt, type MsiController } from './controller.js';

export const GITS_CTLR = reg32('GITS_CTLR', 0x0000, { Enabled: bit(0), Quiescent: bit(31) });
/** Read-only: physical LPIs, 8-byte table entries, 16 bits of EventID, DeviceIDs of 32 bits, collections held inside. */
export const GITS_TYPER = reg64('GITS_TYPER', 0x0008, {
  Physical: bit(0),
  ITT_entry_size: bits(4, 4),
  ID_bits: bits(8, 5),
  Devbits: bits(13, 5),
  HCC: bits(24, 8),
});
export const GITS_CBASER = reg64('GITS_CBASER', 0x0080, {
  Size: bits(0, 8),
  Physical_Address: bits(12, 40),
  Valid: bit(63),
});
export const GITS_CWRITER = reg64('GITS_CWRITER', 0x0088, { Offset: bits(5, 15) });
export const GITS_CREADR = reg64('GITS_CREADR', 0x0090, { Offset: bits(5, 15), Stalled: bit(0) });
/** Offset of GITS_TRANSLATER in the ITS's two 64 KiB pages. */
export const GITS_TRANSLATER = 0x10040;
export const ITS_FRAME_BYTES = 0x20000;
/** First LPI INTID. */
export const FIRST_LPI = 8192;

/** An ITS command (IHI 0069 5.3); fields a command does not have read as zero. */
export const ITS_COMMAND = defineRecord('ITS_COMMAND', 32, {
  OP: bits(0, 8),
  DeviceID: bits(32, 32),
  /** MAPD: EventID bits minus one. The same doubleword is EventID of the others. */
  Size: bits(64, 5),
  EventID: bits(64, 32),
  pINTID: bits(96, 32),
  ICID: bits(128, 16),
  ITT_address: bits(136, 44),
  Valid: bit(191),
});
export const ITS_OP = {
  MOVI: 0x01,
  INT: 0x03,
  CLEAR: 0x04,
  SYNC: 0x05,
  MAPD: 0x08,
  MAPC: 0x09,
  MAPTI: 0x0a,
  MAPI: 0x0b,
  INV: 0x0c,
  INVALL: 0x0d,
  DISCARD: 0x0f,
} as const;

/** One entry of the table that MAPD names, indexed by EventID. The layout is this ITS's own (IHI 0069 5.2.4). */
const ITT_ENTRY = defineRecord('ITT_ENTRY', 8, { ICID: bits(0, 16), INTID: bits(16, 32), Valid: bit(63) });

const EVENT_ID_BITS = 16;
const TYPER = GITS_TYPER.make({
  Physical: 1,
  ITT_entry_size: ITT_ENTRY.sizeBytes - 1,
  ID_bits: EVENT_ID_BITS - 1,
  Devbits: 31,
  HCC: 255,
});

/** Virtual time of one command. */
const COMMAND_NS = 100;

interface DeviceEntry {
  readonly eventLimit: number;
  /** Physical address of its table of events. */
  readonly table: number;
}

/** One ITS: a register frame and a doorbell. */
export class Its implements MsiController, MmioFrame {
  readonly name: string;
  readonly kind = 'doorbell';
  readonly isolated: boolean;
  readonly sizeBytes = ITS_FRAME_BYTES;
  readonly #runtime: NodeRuntime;
  readonly #memory: PhysicalMemory;
  readonly #base: number;
  readonly #bypasses: boolean;
  readonly #deliver: (interrupt: Interrupt) => void;
  readonly #devices = new Map<number, DeviceEntry>();
  readonly #collections = new Set<number>();
  /** GITS_CTLR, then CBASER, CWRITER, CREADR as word pairs. */
  #ctlr = 0;
  readonly #cbaser = new Uint32Array(2);
  #cwriter = 0;
  #creadr = 0;
  #isConsuming = false;

  constructor(
    runtime: NodeRuntime,
    memory: PhysicalMemory,
    description: MsiControllerDescription,
    deliver: (interrupt: Interrupt) => void,
  ) {
    this.#runtime = runtime;
    this.#memory = memory;
    this.#deliver = deliver;
    this.#base = Number(description.base);
    this.#bypasses = description.bypassesIommu;
    this.name = description.name;
    this.isolated = description.isolated;
  }

  base(): number {
    return this.#base;
  }

  get doorbell(): number {
    return this.#base + GITS_TRANSLATER;
  }

  /** hip06/07: the whole 64 KiB page with the doorbell is decoded before the SMMU. */
  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const first = BigInt(this.#base + 0x10000);
    return this.#bypasses && address >= first && address + BigInt(lengthBytes) <= first + 0x10000n;
  }

  read(offset: number): number {
    switch (offset) {
      case GITS_CTLR.offset:
        return this.#ctlr | (this.#isConsuming ? 0 : 0x8000_0000);
      case GITS_TYPER.offset:
        return TYPER[0] ?? 0;
      case GITS_TYPER.offset + 4:
        return TYPER[1] ?? 0;
      case GITS_CBASER.offset:
        return this.#cbaser[0] ?? 0;
      case GITS_CBASER.offset + 4:
        return this.#cbaser[1] ?? 0;
      case GITS_CWRITER.offset:
        return this.#cwriter;
      case GITS_CREADR.offset:
        return this.#creadr;
      default:
        return 0;
    }
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    const word = messageWord(bytes);
    if (word !== undefined && Number(address) === this.doorbell) this.#translate(word, origin);
    else this.#drop('not a doorbell write', { address });
  }

  /** Register write on the system bus: by a CPU, or by a device whose address was translated to here. */
  write(offset: number, sizeBytes: number, value: number, origin: Origin): void {
    if (sizeBytes !== 4) return;
    switch (offset) {
      case GITS_TRANSLATER:
        this.#translate(value, origin);
        return;
      case GITS_CTLR.offset:
        this.#ctlr = value & 1;
        break;
      case GITS_CBASER.offset:
      case GITS_CBASER.offset + 4:
        this.#cbaser[(offset - GITS_CBASER.offset) / 4] = value;
        this.#creadr = 0;
        break;
      case GITS_CWRITER.offset:
        this.#cwriter = value & 0xfffe0;
        break;
      default:
        return;
    }
    this.#consume();
  }

  #consume(): void {
    if (this.#isConsuming || (this.#ctlr & 1) === 0 || GITS_CBASER.get(this.#cbaser, 'Valid') === 0) return;
    if (this.#creadr === this.#cwriter) return;
    this.#isConsuming = true;
    this.#runtime.spawn(`${this.name}/commands`, this.#run());
  }

  *#run(): Task<void> {
    const address = GITS_CBASER.get(this.#cbaser, 'Physical_Address') * 4096;
    const sizeBytes = (GITS_CBASER.get(this.#cbaser, 'Size') + 1) * 4096;
    const command = new Uint32Array(8);
    while (this.#creadr !== this.#cwriter && (this.#ctlr & 1) !== 0) {
      yield COMMAND_NS;
      if (!this.#memory.loadWords(address + this.#creadr, command)) {
        this.#drop('command queue not in memory', { address: BigInt(address + this.#creadr) });
        break;
      }
      this.#execute(command);
      this.#creadr = (this.#creadr + ITS_COMMAND.sizeBytes) % sizeBytes;
    }
    this.#isConsuming = false;
  }

  #execute(command: Uint32Array): void {
    const { OP, DeviceID, EventID, pINTID, ICID, Size, ITT_address, Valid } = ITS_COMMAND.decode(command);
    const slot = this.#slot(DeviceID, EventID);
    const named = { device: DeviceID, event: EventID };
    switch (OP) {
      case ITS_OP.MAPD:
        if (Valid === 0) this.#devices.delete(DeviceID);
        else this.#mapDevice(DeviceID, ITT_address * 256, Size + 1);
        return;
      case ITS_OP.MAPC:
        if (Valid === 1) this.#collections.add(ICID);
        else this.#collections.delete(ICID);
        return;
      case ITS_OP.MAPTI:
      case ITS_OP.MAPI: {
        const intid = OP === ITS_OP.MAPI ? EventID : pINTID;
        if (slot === undefined) this.#drop('MAPTI of an unmapped device or event', named);
        else if (intid < FIRST_LPI) this.#drop('MAPTI to an interrupt that is no LPI', named);
        else this.#store(slot, ITT_ENTRY.make({ ICID, INTID: intid, Valid: 1 }));
        return;
      }
      case ITS_OP.MOVI: {
        const entry = this.#load(slot);
        if (slot === undefined || entry === undefined) this.#drop('MOVI of an unmapped event', named);
        else this.#store(slot, ITT_ENTRY.make({ ICID, INTID: ITT_ENTRY.get(entry, 'INTID'), Valid: 1 }));
        return;
      }
      case ITS_OP.DISCARD:
        if (slot === undefined || this.#load(slot) === undefined) this.#drop('DISCARD of an unmapped event', named);
        else this.#store(slot, ITT_ENTRY.make({}));
        return;
      case ITS_OP.INT:
        this.#translateEvent(DeviceID, EventID);
        return;
      case ITS_OP.CLEAR:
      case ITS_OP.INV:
      case ITS_OP.INVALL:
      case ITS_OP.SYNC:
        // Nothing is cached and LPIs are never left pending here.
        return;
      default:
        this.#drop('unknown command', { op: OP });
    }
  }

  #translate(eventId: number, origin: Origin): void {
    const deviceId = deviceIdOf(origin);
    if (deviceId === undefined) this.#drop('write without a DeviceID', { event: eventId });
    else this.#translateEvent(deviceId, eventId);
  }

  #translateEvent(deviceId: number, eventId: number): void {
    if (this.#runtime.faults.fires('its.drop')) {
      this.#drop('fault', { device: deviceId, event: eventId });
      return;
    }
    const entry = this.#load(this.#slot(deviceId, eventId));
    if ((this.#ctlr & 1) === 0) this.#drop('the ITS is disabled', { device: deviceId, event: eventId });
    else if (entry === undefined) this.#drop('no mapping', { device: deviceId, event: eventId });
    else if (!this.#collections.has(ITT_ENTRY.get(entry, 'ICID')))
      this.#drop('collection is not mapped', { device: deviceId, event: eventId });
    else this.#deliver({ controller: this.name, intid: ITT_ENTRY.get(entry, 'INTID') });
  }

  #mapDevice(deviceId: number, table: number, eventBits: number): void {
    const eventLimit = 2 ** eventBits;
    if (eventBits > EVENT_ID_BITS) this.#drop('MAPD: more EventID bits than there are', { device: deviceId });
    else if (!this.#memory.contains(table, eventLimit * ITT_ENTRY.sizeBytes))
      this.#drop('MAPD: the translation table is not in memory', { device: deviceId });
    else this.#devices.set(deviceId, { eventLimit, table });
  }

  /** Physical address of an event's entry; undefined for a device that is not mapped or an event beyond its table. */
  #slot(deviceId: number, eventId: number): number | undefined {
    const device = this.#devices.get(deviceId);
    if (device === undefined || eventId >= device.eventLimit) return undefined;
    return device.table + eventId * ITT_ENTRY.sizeBytes;
  }

  /** A valid entry. */
  #load(slot: number | undefined): Uint32Array | undefined {
    const entry = new Uint32Array(2);
    if (slot === undefined || !this.#memory.loadWords(slot, entry)) return undefined;
    return ITT_ENTRY.get(entry, 'Valid') === 1 ? entry : undefined;
  }

  #store(slot: number, entry: Uint32Array): void {
    this.#memory.store64(slot, entry[0] ?? 0, entry[1] ?? 0);
  }

  #drop(why: string, data: Readonly<Record<string, number | bigint>>): void {
    this.#runtime.emit('its.dropped', { its: this.name, why, ...data });
  }
}
