/**
 * GICv3 Interrupt Translation Service: (DeviceID, EventID) → LPI.
 *
 * Software gives tables in memory (GITS_BASER0 devices, flat or two-level; GITS_BASER1 collections) and commands through a queue
 * (GITS_CBASER, GITS_CWRITER, GITS_CREADR), 32 bytes each. MAPD names a device's interrupt translation table, 8 bytes an event;
 * what memory holds counts, nothing is held inside. A write to GITS_TRANSLATER is translated with the DeviceID of its writer and
 * makes an LPI pending at the redistributor. A message that cannot be translated is dropped, and a command that cannot be carried
 * out is ignored (GITS_TYPER has no SEIS); the history says why in both cases.
 *
 * The layouts of table entries are this ITS's own, as the architecture leaves them (IHI 0069 5.2.4). There is one CPU: every
 * collection leads to its redistributor.
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
import { Redistributor } from './redistributor.js';

export const GITS_CTLR = reg32('GITS_CTLR', 0x0000, { Enabled: bit(0), Quiescent: bit(31) });
/** Read-only: physical LPIs, 8-byte table entries, 16 bits of EventID, 20 of DeviceID, no collection held inside. */
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
/** Where a table lies. Type and Entry_Size are read-only: 1 devices, 4 collections; 8 bytes. */
export const GITS_BASER = reg64('GITS_BASER', 0x0100, {
  Size: bits(0, 8),
  Page_Size: bits(8, 2),
  Physical_Address: bits(12, 36),
  Entry_Size: bits(48, 5),
  Type: bits(56, 3),
  Indirect: bit(62),
  Valid: bit(63),
});
/** Offset of GITS_TRANSLATER in the ITS's two 64 KiB pages. */
export const GITS_TRANSLATER = 0x10040;
export const ITS_FRAME_BYTES = 0x20000;

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
  MOVALL: 0x0e,
  DISCARD: 0x0f,
} as const;

/** One entry of the table that MAPD names, indexed by EventID. */
const ITT_ENTRY = defineRecord('ITT_ENTRY', 8, { ICID: bits(0, 16), INTID: bits(16, 32), Valid: bit(63) });
/** One entry of the device table: EventID bits minus one, and the translation table in units of 256 bytes. */
const DEVICE_ENTRY = defineRecord('DEVICE_ENTRY', 8, { Size: bits(0, 5), ITT_address: bits(8, 44), Valid: bit(63) });
const COLLECTION_ENTRY = defineRecord('COLLECTION_ENTRY', 8, { Valid: bit(63) });
/** First level of an indirect table: a page of the second level. */
const L1_ENTRY = defineRecord('L1_ENTRY', 8, { Physical_Address: bits(12, 36), Valid: bit(63) });
const ENTRY_BYTES = 8;
const PAGE_SIZES = [4096, 16384, 65536, 65536];

const EVENT_ID_BITS = 16;
/** Width of DeviceIDs. */
export const ITS_DEVICE_ID_BITS = 20;
const TYPER = GITS_TYPER.make({
  Physical: 1,
  ITT_entry_size: ITT_ENTRY.sizeBytes - 1,
  ID_bits: EVENT_ID_BITS - 1,
  Devbits: ITS_DEVICE_ID_BITS - 1,
  HCC: 0,
});
const BASER_TYPES = [1, 4];
/** The two BASERs' read-only fields, high words. */
const BASER_FIXED = BASER_TYPES.map((Type) => GITS_BASER.make({ Type, Entry_Size: ENTRY_BYTES - 1 })[1] ?? 0);
const BASER_WRITABLE_HIGH = 0xc000_ffff;

/** Virtual time of one command. */
const COMMAND_NS = 100;

/** Why a command or a message came to nothing. */
type Trouble = string;

type ItsCommand = ReturnType<typeof ITS_COMMAND.decode>;
/** Indices of the BASERs. */
const DEVICES = 0;
const COLLECTIONS = 1;

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
  readonly redistributor: Redistributor;
  /** GITS_BASER0 and GITS_BASER1 as word pairs. */
  readonly #basers = BASER_FIXED.map((high) => Uint32Array.of(0, high));
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
    this.#base = Number(description.base);
    this.#bypasses = description.bypassesIommu;
    this.name = description.name;
    this.isolated = description.isolated;
    this.redistributor = new Redistributor(
      `${description.name} GICR`,
      this.#base + ITS_FRAME_BYTES,
      memory,
      (intid, from) => deliver({ controller: this.name, intid, ...(from === undefined ? {} : { from }) }),
    );
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
        return this.#basers[(offset - GITS_BASER.offset) >> 3]?.[(offset >> 2) & 1] ?? 0;
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
        this.#writeBaser(offset, value);
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

  #writeBaser(offset: number, value: number): void {
    const index = (offset - GITS_BASER.offset) >> 3;
    const baser = this.#basers[index];
    if (offset < GITS_BASER.offset || baser === undefined) return;
    const isHigh = (offset & 4) !== 0;
    if (isHigh) baser[1] = ((value & BASER_WRITABLE_HIGH) | (BASER_FIXED[index] ?? 0)) >>> 0;
    else baser[0] = value;
  }

  #execute(command: Uint32Array): void {
    const fields = ITS_COMMAND.decode(command);
    const why = this.#carryOut(fields);
    if (why === undefined) return;
    const { OP: op, DeviceID: device, EventID: event } = fields;
    this.#runtime.emit('its.command-error', { its: this.name, op, device, event, why });
  }

  /** Carries a command out; what is wrong with it, if anything (IHI 0069 5.3). */
  #carryOut({ OP, DeviceID, EventID, pINTID, ICID, Size, ITT_address, Valid }: ItsCommand): Trouble | undefined {
    switch (OP) {
      case ITS_OP.MAPD:
        return this.#mapDevice(DeviceID, Valid === 1, ITT_address * 256, Size + 1);
      case ITS_OP.MAPC: {
        const slot = this.#tableSlot(COLLECTIONS, ICID);
        if (slot === undefined) return 'ICID beyond the collection table';
        this.#store(slot, COLLECTION_ENTRY.make({ Valid }));
        return undefined;
      }
      case ITS_OP.MAPTI:
      case ITS_OP.MAPI: {
        const intid = OP === ITS_OP.MAPI ? EventID : pINTID;
        const slot = this.#slot(DeviceID, EventID);
        if (slot === undefined) return 'unmapped device or event beyond its table';
        if (!this.redistributor.hasLpi(intid)) return 'the interrupt is no LPI';
        this.#store(slot, ITT_ENTRY.make({ ICID, INTID: intid, Valid: 1 }));
        return undefined;
      }
      case ITS_OP.MOVALL:
      case ITS_OP.SYNC:
        return undefined;
      case ITS_OP.INVALL:
        if (!this.#hasCollection(ICID)) return 'collection is not mapped';
        this.redistributor.invalidateAll();
        return undefined;
      case ITS_OP.MOVI:
      case ITS_OP.DISCARD:
      case ITS_OP.INT:
      case ITS_OP.CLEAR:
      case ITS_OP.INV:
        return this.#ofEvent(OP, DeviceID, EventID, ICID);
      default:
        return 'unknown command';
    }
  }

  /** Commands about an event that is mapped. */
  #ofEvent(op: number, deviceId: number, eventId: number, icid: number): Trouble | undefined {
    const slot = this.#slot(deviceId, eventId);
    const entry = this.#load(slot, ITT_ENTRY);
    if (slot === undefined || entry === undefined) return 'unmapped event';
    const intid = ITT_ENTRY.get(entry, 'INTID');
    if (!this.#hasCollection(ITT_ENTRY.get(entry, 'ICID'))) return 'collection is not mapped';
    switch (op) {
      case ITS_OP.MOVI:
        if (!this.#hasCollection(icid)) return 'the other collection is not mapped';
        this.#store(slot, ITT_ENTRY.make({ ICID: icid, INTID: intid, Valid: 1 }));
        return undefined;
      case ITS_OP.DISCARD:
        this.redistributor.clearPending(intid);
        this.#store(slot, ITT_ENTRY.make({}));
        return undefined;
      case ITS_OP.INT:
        return this.redistributor.setPending(intid, undefined) ? undefined : 'LPIs are off';
      case ITS_OP.CLEAR:
        this.redistributor.clearPending(intid);
        return undefined;
      default:
        this.redistributor.invalidate(intid);
        return undefined;
    }
  }

  #translate(eventId: number, origin: Origin): void {
    const deviceId = deviceIdOf(origin);
    const named = { device: deviceId ?? -1, event: eventId };
    const why = deviceId === undefined ? 'write without a DeviceID' : this.#translateEvent(deviceId, eventId, origin);
    if (why !== undefined) this.#drop(why, deviceId === undefined ? { event: eventId } : named);
  }

  #translateEvent(deviceId: number, eventId: number, origin: Origin): Trouble | undefined {
    if (this.#runtime.faults.fires('its.drop')) return 'fault';
    if ((this.#ctlr & 1) === 0) return 'the ITS is disabled';
    const entry = this.#load(this.#slot(deviceId, eventId), ITT_ENTRY);
    if (entry === undefined) return 'no mapping';
    if (!this.#hasCollection(ITT_ENTRY.get(entry, 'ICID'))) return 'collection is not mapped';
    const from = origin.kind === 'device' ? origin.bdf : undefined;
    return this.redistributor.setPending(ITT_ENTRY.get(entry, 'INTID'), from) ? undefined : 'LPIs are off';
  }

  #mapDevice(deviceId: number, isValid: boolean, table: number, eventBits: number): Trouble | undefined {
    const slot = this.#tableSlot(DEVICES, deviceId);
    if (slot === undefined) return 'DeviceID beyond the device table';
    if (!isValid) {
      this.#store(slot, DEVICE_ENTRY.make({}));
      return undefined;
    }
    if (eventBits > EVENT_ID_BITS) return 'more EventID bits than there are';
    if (!this.#memory.contains(table, 2 ** eventBits * ITT_ENTRY.sizeBytes))
      return 'the translation table is not in memory';
    this.#store(slot, DEVICE_ENTRY.make({ Size: eventBits - 1, ITT_address: table / 256, Valid: 1 }));
    return undefined;
  }

  #hasCollection(icid: number): boolean {
    return this.#load(this.#tableSlot(COLLECTIONS, icid), COLLECTION_ENTRY) !== undefined;
  }

  /** Physical address of an event's entry; undefined for a device that is not mapped or an event beyond its table. */
  #slot(deviceId: number, eventId: number): number | undefined {
    const device = this.#load(this.#tableSlot(DEVICES, deviceId), DEVICE_ENTRY);
    if (device === undefined || eventId >= 2 ** (DEVICE_ENTRY.get(device, 'Size') + 1)) return undefined;
    return DEVICE_ENTRY.get(device, 'ITT_address') * 256 + eventId * ITT_ENTRY.sizeBytes;
  }

  /** Physical address of an entry of a table that a BASER names; undefined beyond it. */
  #tableSlot(index: number, id: number): number | undefined {
    const baser = this.#basers[index];
    if (baser === undefined || GITS_BASER.get(baser, 'Valid') === 0) return undefined;
    const pageBytes = PAGE_SIZES[GITS_BASER.get(baser, 'Page_Size')] ?? 4096;
    const base = GITS_BASER.get(baser, 'Physical_Address') * 4096;
    const tableBytes = (GITS_BASER.get(baser, 'Size') + 1) * pageBytes;
    if (GITS_BASER.get(baser, 'Indirect') === 0)
      return (id + 1) * ENTRY_BYTES <= tableBytes ? base + id * ENTRY_BYTES : undefined;
    const perPage = pageBytes / ENTRY_BYTES;
    const first = Math.floor(id / perPage) * ENTRY_BYTES;
    const level2 = first < tableBytes ? this.#load(base + first, L1_ENTRY) : undefined;
    if (level2 === undefined) return undefined;
    return L1_ENTRY.get(level2, 'Physical_Address') * 4096 + (id % perPage) * ENTRY_BYTES;
  }

  /** A valid entry. */
  #load(
    slot: number | undefined,
    layout: typeof ITT_ENTRY | typeof DEVICE_ENTRY | typeof COLLECTION_ENTRY | typeof L1_ENTRY,
  ): Uint32Array | undefined {
    const entry = new Uint32Array(2);
    if (slot === undefined || !this.#memory.loadWords(slot, entry)) return undefined;
    return layout.get(entry, 'Valid') === 1 ? entry : undefined;
  }

  #store(slot: number, entry: Uint32Array): void {
    this.#memory.store64(slot, entry[0] ?? 0, entry[1] ?? 0);
  }

  #drop(why: string, data: Readonly<Record<string, number | bigint>>): void {
    this.#runtime.emit('its.dropped', { its: this.name, why, ...data });
  }
}
