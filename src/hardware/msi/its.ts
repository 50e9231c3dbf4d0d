/**
 * GICv3 Interrupt Translation Service: (DeviceID, EventID) → LPI.
 *
 * Software gives tables in memory (GITS_BASER0 devices, GITS_BASER1 collections, flat or two-level) and commands through a queue
 * (GITS_CBASER, GITS_CWRITER, GITS_CREADR), 32 bytes each. MAPD names a device's interrupt translation table, 8 bytes an event;
 * what memory holds counts, nothing is held inside. A write to GITS_TRANSLATER is translated with the DeviceID of its writer and
 * makes an LPI pending at the redistributor.
 *
 * A message that cannot be translated is dropped. A command that cannot be carried out is ignored and the queue goes on
 * (GITS_TYPER.SEIS is 0, GITS_CREADR.Stalled never set). The history says which and why in both cases; commands have the names of
 * their errors from the architecture, `EXTERNAL_ABORT` where a table lies outside memory.
 *
 * The layouts of table entries are this ITS's own, as the architecture leaves them (IHI 0069 5.2.4). There is one CPU: a
 * collection leads to processor 0.
 *
 * Source: Arm IHI 0069 (GICv3) 5.2, 5.3, 12.19; domain.md A4.50.
 */
import { bit, bits, defineRecord, reg32, reg64 } from '../../layout/bits.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import type { MmioFrame, Origin } from '../bus.js';
import type { MsiControllerDescription } from '../description.js';
import type { PhysicalMemory } from '../memory.js';
import { deviceIdOf, fromField, messageWord, type Interrupt, type MsiController } from './controller.js';
import { GITS_BASER_OFFSET, GITS_BASER_TYPE, ItsTable } from './its-table.js';
import { Redistributor, type LpiOutcome } from './redistributor.js';

export const GITS_CTLR = reg32('GITS_CTLR', 0x0000, { Enabled: bit(0), Quiescent: bit(31) });
/** Read-only: who made the ITS. */
export const GITS_IIDR = reg32('GITS_IIDR', 0x0004, {
  Implementer: bits(0, 12),
  Revision: bits(12, 4),
  Variant: bits(16, 4),
  ProductID: bits(24, 8),
});
/** Read-only: physical LPIs, 8-byte table entries, 16 bits of EventID, 20 of DeviceID, no collection held inside. */
export const GITS_TYPER = reg64('GITS_TYPER', 0x0008, {
  Physical: bit(0),
  ITT_entry_size: bits(4, 4),
  ID_bits: bits(8, 5),
  Devbits: bits(13, 5),
  SEIS: bit(18),
  /** RDbase is a processor number (0), or an address. */
  PTA: bit(19),
  HCC: bits(24, 8),
});
export const GITS_CBASER = reg64('GITS_CBASER', 0x0080, {
  Size: bits(0, 8),
  Physical_Address: bits(12, 40),
  Valid: bit(63),
});
export const GITS_CWRITER = reg64('GITS_CWRITER', 0x0088, { Retry: bit(0), Offset: bits(5, 15) });
export const GITS_CREADR = reg64('GITS_CREADR', 0x0090, { Stalled: bit(0), Offset: bits(5, 15) });
/** Offset of GITS_TRANSLATER in the ITS's two 64 KiB pages. */
export const GITS_TRANSLATER = 0x10040;
export const ITS_FRAME_BYTES = 0x20000;
const TRANSLATION_PAGE = 0x10000;

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
  /** MAPC, SYNC; RDbase1 of MOVALL. */
  RDbase: bits(144, 35),
  Valid: bit(191),
  RDbase2: bits(208, 35),
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
const OP_NAMES = new Map<number, string>(Object.entries(ITS_OP).map(([name, op]) => [op, name]));

/** One entry of the table that MAPD names, indexed by EventID. */
const ITT_ENTRY = defineRecord('ITT_ENTRY', 8, { ICID: bits(0, 16), INTID: bits(16, 32), Valid: bit(63) });
/** One entry of the device table: EventID bits minus one, and the translation table in units of 256 bytes. */
const DEVICE_ENTRY = defineRecord('DEVICE_ENTRY', 8, { Size: bits(0, 5), ITT_address: bits(8, 44), Valid: bit(63) });
const COLLECTION_ENTRY = defineRecord('COLLECTION_ENTRY', 8, { RDbase: bits(0, 16), Valid: bit(63) });

const EVENT_ID_BITS = 16;
const COLLECTION_ID_BITS = 16;
/** Width of DeviceIDs. */
export const ITS_DEVICE_ID_BITS = 20;
const TYPER = GITS_TYPER.make({
  Physical: 1,
  ITT_entry_size: ITT_ENTRY.sizeBytes - 1,
  ID_bits: EVENT_ID_BITS - 1,
  Devbits: ITS_DEVICE_ID_BITS - 1,
});
/** JEP106 code of Arm in GITS_IIDR, and the identification block at the end of the control page. */
const IIDR = GITS_IIDR.make({ Implementer: 0x43b });
const IDENTIFICATION_OFFSET = 0xffd0;
/** PIDR4 to PIDR7, PIDR0 to PIDR3 (PIDR2.ArchRev is 3: GICv3), CIDR0 to CIDR3. */
const IDENTIFICATION = [0x44, 0, 0, 0, 0x94, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];

/** Virtual time of one command. */
const COMMAND_NS = 100;

type ItsCommand = ReturnType<typeof ITS_COMMAND.decode>;

/** An event that is mapped: its entry's address and what it holds. */
interface Mapping {
  readonly slot: number;
  readonly intid: number;
  readonly icid: number;
}

/** Why there is no mapping: the endings of the architecture's command errors. */
type NoMapping = 'DEVICE_OOR' | 'UNMAPPED_DEVICE' | 'ID_OOR' | 'UNMAPPED_INTERRUPT';
type CommandError =
  | NoMapping
  | 'ITTSIZE_OOR'
  | 'PROCNUM_OOR'
  | 'COLLECTION_OOR'
  | 'PHYSICALID_OOR'
  | 'UNMAPPED_COLLECTION'
  | 'EXTERNAL_ABORT';

const DROP_TEXT: Readonly<Record<NoMapping, string>> = {
  DEVICE_OOR: 'DeviceID is beyond the device table',
  UNMAPPED_DEVICE: 'device is not mapped',
  ID_OOR: 'EventID is beyond the translation table',
  UNMAPPED_INTERRUPT: 'event is not mapped',
};
const LOST_TEXT: Readonly<Partial<Record<LpiOutcome, string>>> = {
  off: 'LPIs are off',
  'out-of-range': 'the LPI is beyond the configuration table',
};
const PENDED_TEXT: Readonly<Partial<Record<LpiOutcome, string>>> = {
  pending: 'the LPI is disabled',
  merged: 'the LPI is disabled and pending already',
};

/** One ITS: a register frame and a doorbell. */
export class Its implements MsiController, MmioFrame {
  readonly name: string;
  readonly kind = 'doorbell';
  readonly isolated: boolean;
  readonly sizeBytes = ITS_FRAME_BYTES;
  readonly redistributor: Redistributor;
  readonly #runtime: NodeRuntime;
  readonly #memory: PhysicalMemory;
  readonly #base: number;
  readonly #bypasses: boolean;
  readonly #devices: ItsTable;
  readonly #collections: ItsTable;
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
    this.#devices = new ItsTable(memory, GITS_BASER_TYPE.DEVICES, ITS_DEVICE_ID_BITS);
    this.#collections = new ItsTable(memory, GITS_BASER_TYPE.COLLECTIONS, COLLECTION_ID_BITS);
    this.name = description.name;
    this.isolated = description.isolated;
    this.redistributor = new Redistributor(memory, (intid, from) =>
      deliver({ controller: this.name, intid, ...(from === undefined ? {} : { from }) }),
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
    const first = BigInt(this.#base + TRANSLATION_PAGE);
    return this.#bypasses && address >= first && address + BigInt(lengthBytes) <= first + 0x10000n;
  }

  /** Registers that are not there read as zero. */
  read(offset: number): number {
    switch (offset) {
      case GITS_CTLR.offset:
        return (this.#ctlr | (this.#isConsuming ? 0 : 0x8000_0000)) >>> 0;
      case GITS_IIDR.offset:
        return IIDR[0] ?? 0;
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
        if (offset >= IDENTIFICATION_OFFSET) return IDENTIFICATION[(offset - IDENTIFICATION_OFFSET) / 4] ?? 0;
        return this.#tableAt(offset)?.readBaser(halfAt(offset)) ?? 0;
    }
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    const word = messageWord(bytes);
    if (word !== undefined && Number(address) === this.doorbell) this.#translate(word, origin);
    else this.#dropStray(Number(address) - this.#base, origin);
  }

  /** Register write on the system bus: by a CPU, or by a device whose address was translated to here. */
  write(offset: number, sizeBytes: number, value: number, origin: Origin): void {
    if (offset >= TRANSLATION_PAGE) {
      // GITS_TRANSLATER takes 16-bit writes too (IHI 0069 12.19).
      if (offset === GITS_TRANSLATER && sizeBytes >= 2) this.#translate(value, origin);
      else this.#dropStray(offset, origin);
      return;
    }
    if (sizeBytes !== 4) return;
    switch (offset) {
      case GITS_CTLR.offset:
        this.#ctlr = value & 1;
        break;
      case GITS_CBASER.offset:
      case GITS_CBASER.offset + 4:
        this.#cbaser[halfAt(offset)] = value;
        this.#creadr = 0;
        break;
      case GITS_CWRITER.offset:
        this.#cwriter = value & 0xfffe0;
        break;
      default:
        this.#tableAt(offset)?.writeBaser(halfAt(offset), value);
        return;
    }
    this.#consume();
  }

  #tableAt(offset: number): ItsTable | undefined {
    if (offset < GITS_BASER_OFFSET) return undefined;
    return [this.#devices, this.#collections][(offset - GITS_BASER_OFFSET) >> 3];
  }

  // --- commands ---

  #consume(): void {
    if (this.#isConsuming || (this.#ctlr & 1) === 0 || GITS_CBASER.get(this.#cbaser, 'Valid') === 0) return;
    if (this.#creadr === this.#cwriter) return;
    if (this.#cwriter >= this.#queueBytes) {
      this.#runtime.emit('its.queue-error', { its: this.name, why: 'GITS_CWRITER is beyond the queue' });
      return;
    }
    this.#isConsuming = true;
    this.#runtime.spawn(`${this.name}/commands`, this.#run());
  }

  get #queueBytes(): number {
    return (GITS_CBASER.get(this.#cbaser, 'Size') + 1) * 4096;
  }

  *#run(): Task<void> {
    const address = GITS_CBASER.get(this.#cbaser, 'Physical_Address') * 4096;
    const command = new Uint32Array(8);
    while (this.#creadr !== this.#cwriter && (this.#ctlr & 1) !== 0 && this.#cwriter < this.#queueBytes) {
      yield COMMAND_NS;
      if (!this.#memory.loadWords(address + this.#creadr, command)) {
        this.#runtime.emit('its.queue-error', { its: this.name, why: 'the queue is not in memory' });
        break;
      }
      this.#execute(ITS_COMMAND.decode(command));
      this.#creadr = (this.#creadr + ITS_COMMAND.sizeBytes) % this.#queueBytes;
    }
    this.#isConsuming = false;
  }

  #execute(fields: ItsCommand): void {
    const command = OP_NAMES.get(fields.OP);
    const error = command === undefined ? 'UNKNOWN' : this.#carryOut(fields);
    if (error === undefined) return;
    this.#runtime.emit('its.command-error', {
      its: this.name,
      command: command ?? `0x${fields.OP.toString(16)}`,
      why: command === undefined ? 'unknown command' : `${command}_${error}`,
      device: fields.DeviceID,
      event: fields.EventID,
    });
  }

  /** Carries a command out; its error, if any (IHI 0069 5.3). */
  #carryOut(fields: ItsCommand): CommandError | undefined {
    const { OP, DeviceID, EventID, ICID, RDbase, Size, ITT_address, Valid } = fields;
    switch (OP) {
      case ITS_OP.MAPD: {
        if (Valid === 1 && Size >= EVENT_ID_BITS) return 'ITTSIZE_OOR';
        const entry = Valid === 1 ? DEVICE_ENTRY.make({ Size, ITT_address, Valid }) : DEVICE_ENTRY.make({});
        return this.#devices.store(DeviceID, entry) ? undefined : 'DEVICE_OOR';
      }
      case ITS_OP.MAPC: {
        if (Valid === 1 && RDbase !== 0) return 'PROCNUM_OOR';
        return this.#collections.store(ICID, COLLECTION_ENTRY.make({ Valid })) ? undefined : 'COLLECTION_OOR';
      }
      case ITS_OP.MAPTI:
      case ITS_OP.MAPI:
        return this.#mapEvent(fields);
      case ITS_OP.MOVALL:
        // There is one processor: from it to itself nothing moves.
        return RDbase === 0 && fields.RDbase2 === 0 ? undefined : 'PROCNUM_OOR';
      case ITS_OP.SYNC:
        return RDbase === 0 ? undefined : 'PROCNUM_OOR';
      case ITS_OP.INVALL:
        if (!this.#hasCollection(ICID)) return 'UNMAPPED_COLLECTION';
        this.redistributor.invalidateAll();
        return undefined;
      default: {
        const mapping = this.#mapping(DeviceID, EventID);
        if (typeof mapping === 'string') return mapping === 'UNMAPPED_DEVICE' ? 'UNMAPPED_INTERRUPT' : mapping;
        if (!this.#hasCollection(mapping.icid)) return 'UNMAPPED_COLLECTION';
        return this.#ofEvent(OP, mapping, ICID);
      }
    }
  }

  #mapEvent({ OP, DeviceID, EventID, pINTID, ICID }: ItsCommand): CommandError | undefined {
    const slot = this.#slot(DeviceID, EventID);
    if (typeof slot === 'string') return slot;
    const intid = OP === ITS_OP.MAPI ? EventID : pINTID;
    if (!this.redistributor.hasLpi(intid)) return 'PHYSICALID_OOR';
    if (this.#collections.load(ICID) === undefined) return 'COLLECTION_OOR';
    return this.#store(slot, ITT_ENTRY.make({ ICID, INTID: intid, Valid: 1 }));
  }

  /** MOVI, DISCARD, INT, CLEAR, INV: commands about an event that is mapped. */
  #ofEvent(op: number, { slot, intid }: Mapping, icid: number): CommandError | undefined {
    switch (op) {
      case ITS_OP.MOVI:
        // Pending state need not move: both collections are of the one processor.
        if (!this.#hasCollection(icid)) return 'UNMAPPED_COLLECTION';
        return this.#store(slot, ITT_ENTRY.make({ ICID: icid, INTID: intid, Valid: 1 }));
      case ITS_OP.DISCARD:
        this.redistributor.clearPending(intid);
        return this.#store(slot, ITT_ENTRY.make({}));
      case ITS_OP.INT:
        this.#raise(intid, undefined, {});
        return undefined;
      case ITS_OP.CLEAR:
        this.redistributor.clearPending(intid);
        return undefined;
      default:
        this.redistributor.invalidate(intid);
        return undefined;
    }
  }

  // --- messages ---

  #translate(eventId: number, origin: Origin): void {
    const deviceId = deviceIdOf(origin);
    const why = deviceId === undefined ? 'write without a DeviceID' : this.#translateEvent(deviceId, eventId, origin);
    if (why === undefined) return;
    const device = deviceId === undefined ? {} : { device: deviceId };
    this.#runtime.emit('its.dropped', { its: this.name, why, ...device, event: eventId, ...fromField(origin) });
  }

  #translateEvent(deviceId: number, eventId: number, origin: Origin): string | undefined {
    if (this.#runtime.faults.fires('its.drop')) return 'fault';
    if ((this.#ctlr & 1) === 0) return 'the ITS is disabled';
    const mapping = this.#mapping(deviceId, eventId);
    if (typeof mapping === 'string') return DROP_TEXT[mapping];
    if (!this.#hasCollection(mapping.icid)) return 'collection is not mapped';
    this.#raise(mapping.intid, origin, { device: deviceId, event: eventId });
    return undefined;
  }

  /** Makes an LPI pending; the history says so when the CPU does not take it now. */
  #raise(intid: number, origin: Origin | undefined, named: { device?: number; event?: number }): void {
    const from = origin === undefined ? {} : fromField(origin);
    const outcome = this.redistributor.setPending(intid, from.from);
    const lost = LOST_TEXT[outcome];
    const pended = PENDED_TEXT[outcome];
    if (lost !== undefined) this.#runtime.emit('its.dropped', { its: this.name, why: lost, intid, ...named, ...from });
    if (pended !== undefined)
      this.#runtime.emit('its.pended', { its: this.name, why: pended, intid, ...named, ...from });
  }

  #dropStray(offset: number, origin: Origin): void {
    const why = 'not a doorbell write';
    this.#runtime.emit('its.dropped', { its: this.name, why, offset, ...fromField(origin) });
  }

  // --- tables ---

  #hasCollection(icid: number): boolean {
    const entry = this.#collections.load(icid);
    return entry !== undefined && COLLECTION_ENTRY.get(entry, 'Valid') === 1;
  }

  /** Physical address of an event's entry, or why there is none. */
  #slot(deviceId: number, eventId: number): number | NoMapping {
    const device = this.#devices.load(deviceId);
    if (device === undefined) return 'DEVICE_OOR';
    const { Valid, Size, ITT_address } = DEVICE_ENTRY.decode(device);
    if (Valid === 0) return 'UNMAPPED_DEVICE';
    if (eventId >= 2 ** (Size + 1)) return 'ID_OOR';
    return ITT_address * 256 + eventId * ITT_ENTRY.sizeBytes;
  }

  #mapping(deviceId: number, eventId: number): Mapping | NoMapping {
    const slot = this.#slot(deviceId, eventId);
    if (typeof slot === 'string') return slot;
    const entry = new Uint32Array(2);
    if (!this.#memory.loadWords(slot, entry) || ITT_ENTRY.get(entry, 'Valid') === 0) return 'UNMAPPED_INTERRUPT';
    return { slot, intid: ITT_ENTRY.get(entry, 'INTID'), icid: ITT_ENTRY.get(entry, 'ICID') };
  }

  #store(slot: number, entry: Uint32Array): CommandError | undefined {
    return this.#memory.store64(slot, entry[0] ?? 0, entry[1] ?? 0) ? undefined : 'EXTERNAL_ABORT';
  }
}

/** Which half of a 64-bit register an offset names. */
function halfAt(offset: number): 0 | 1 {
  return (offset & 4) === 0 ? 0 : 1;
}
