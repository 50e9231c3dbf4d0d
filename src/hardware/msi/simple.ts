/**
 * Doorbells without an ITS: GICv2m, the x86 interrupt window, frames inside a root complex.
 *
 * GICv2m and in-RC frames take the number from whoever writes it: any device can raise any interrupt of the frame, so they are
 * not isolated (domain.md A4.51, A4.52). The x86 window 0xfee00000-0xfeefffff is decoded in the root complex (A4.54); whether it is
 * isolated depends on interrupt remapping. AMD's remapping is modelled by Intel's: it isolates alike, its tables differ.
 *
 * Sources: Arm GICv2m (SBSA appendix); Intel VT-d specification 5.1, 7.1, 9.10, 11.4; Linux irq-gic-v2m.c.
 */
import { bit, bits, defineRecord, reg32, reg64 } from '../../layout/bits.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { MmioFrame, Origin } from '../bus.js';
import { UnbuildableError, type MsiControllerDescription } from '../description.js';
import type { PhysicalMemory } from '../memory.js';
import { deviceIdOf, fromField, interruptFrom, messageWord, type Interrupt, type MsiController } from './controller.js';

/** Registers of a GICv2m frame: what it has, and where an SPI is written. */
export const V2M_MSI_TYPER = reg32('MSI_TYPER', 0x008, { Number: bits(0, 10), Base: bits(16, 10) });
const SETSPI_NS = 0x40;
const V2M_FRAME_BYTES = 0x1000;
/** First SPI of the first frame and the SPIs of each, where descriptions do not say. */
export const V2M_FIRST_SPI = 80;
export const V2M_SPIS = 64;
/** INTIDs of SPIs: 32 to 1019. */
const MIN_SPI = 32;
const MAX_SPI = 1019;

/** Numbers that a doorbell takes. */
export interface SpiRange {
  readonly first: number;
  readonly count: number;
}

/**
 * SPIs of a GICv2m frame among all of a host: a frame whose description gives no first one follows the frames before it.
 * @throws UnbuildableError when numbers are no SPIs, or another frame's
 */
export function spisOf(frame: MsiControllerDescription, all: readonly MsiControllerDescription[]): SpiRange {
  let end = V2M_FIRST_SPI;
  const known: SpiRange[] = [];
  for (const other of all) {
    if (other.kind !== 'gicv2m') continue;
    const { firstSpi: first = end, spiCount: count = V2M_SPIS } = other;
    if (first < MIN_SPI || count < 1 || first + count - 1 > MAX_SPI)
      throw new UnbuildableError(`${other.name}: ${first} to ${first + count - 1} are no SPIs`);
    if (known.some((range) => first < range.first + range.count && range.first < first + count))
      throw new UnbuildableError(`${other.name}: SPIs ${first} to ${first + count - 1} are another frame's too`);
    if (other === frame) return { first, count };
    known.push({ first, count });
    end = Math.max(end, first + count);
  }
  throw new UnbuildableError(`${frame.name} is no GICv2m frame of this host`);
}

/** A GICv2m frame. */
export class Gicv2m implements MsiController, MmioFrame {
  readonly name: string;
  readonly kind = 'doorbell';
  readonly isolated: boolean;
  readonly sizeBytes = V2M_FRAME_BYTES;
  readonly #runtime: NodeRuntime;
  readonly #base: number;
  readonly #bypasses: boolean;
  readonly #spis: SpiRange;
  readonly #deliver: (interrupt: Interrupt) => void;

  constructor(
    runtime: NodeRuntime,
    description: MsiControllerDescription,
    spis: SpiRange,
    deliver: (interrupt: Interrupt) => void,
  ) {
    this.#runtime = runtime;
    this.#spis = spis;
    this.#base = Number(description.base);
    this.#bypasses = description.bypassesIommu;
    this.#deliver = deliver;
    this.name = description.name;
    this.isolated = description.isolated;
  }

  base(): number {
    return this.#base;
  }

  get doorbell(): number {
    return this.#base + SETSPI_NS;
  }

  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const base = BigInt(this.#base);
    return this.#bypasses && address >= base && address + BigInt(lengthBytes) <= base + BigInt(V2M_FRAME_BYTES);
  }

  read(offset: number): number {
    if (offset !== V2M_MSI_TYPER.offset) return 0;
    return V2M_MSI_TYPER.make({ Base: this.#spis.first, Number: this.#spis.count })[0] ?? 0;
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    this.#raise(Number(address) - this.#base, messageWord(bytes), origin);
  }

  write(offset: number, sizeBytes: number, value: number, origin: Origin): void {
    this.#raise(offset, sizeBytes === 4 ? value : undefined, origin);
  }

  #raise(offset: number, spi: number | undefined, origin: Origin): void {
    if (offset === SETSPI_NS && spi !== undefined && isIn(this.#spis, spi)) {
      this.#deliver(interruptFrom(this.name, spi, origin));
    } else {
      const why = strayText(offset === SETSPI_NS, spi);
      this.#runtime.emit('v2m.dropped', { frame: this.name, why, offset, ...fromField(origin) });
    }
  }
}

function isIn({ first, count }: SpiRange, number: number): boolean {
  return number >= first && number < first + count;
}

/** Why a write to a doorbell's frame raised nothing. */
function strayText(isDoorbell: boolean, number: number | undefined): string {
  if (!isDoorbell) return 'not the doorbell register';
  return number === undefined ? 'not a doubleword' : `${number} is no interrupt of the frame`;
}

const X86_WINDOW_BYTES = 0x10_0000;
const X86_FIRST_VECTOR = 32;
/** A message of the compatibility format: delivery mode, vector. Fixed and lowest priority are interrupts. */
const X86_MESSAGE_DATA = defineRecord('X86_MESSAGE_DATA', 4, { VECTOR: bits(0, 8), DELIVERY_MODE: bits(8, 3) });
const LOWEST_PRIORITY = 1;

/** Registers of the interrupt remapping unit, and where they are. */
export const REMAPPING_BASE = 0xfedb_0000;
const REMAPPING_FRAME_BYTES = 0x1000;
/** Global Command (VT-d 11.4.4): CFI compatibility format passes, SIRTP takes the table pointer, IRE remapping on. */
export const GCMD_REG = reg32('GCMD_REG', 0x18, { CFI: bit(23), SIRTP: bit(24), IRE: bit(25) });
/** Global Status: the same bits. */
export const GSTS_REG = reg32('GSTS_REG', 0x1c, { CFIS: bit(23), IRTPS: bit(24), IRES: bit(25) });
/** IRTA_REG: table address, and 2^(S+1) entries (VT-d 11.4.9.1). */
export const IRTA_REG = reg64('IRTA_REG', 0xb8, { S: bits(0, 4), EIME: bit(11), IRTA: bits(12, 40) });
/** Interrupt Remapping Table Entry, remapped format (VT-d 9.10). */
export const IRTE = defineRecord('IRTE', 16, {
  P: bit(0),
  FPD: bit(1),
  DM: bit(2),
  RH: bit(3),
  TM: bit(4),
  DLM: bits(5, 3),
  AVAIL: bits(8, 4),
  Vector: bits(16, 8),
  Destination: bits(32, 32),
  SID: bits(64, 16),
  SQ: bits(80, 2),
  SVT: bits(82, 2),
});
/** IRTE.SVT: no validation, requester ID as SQ says, bus number in SID[15:8] to SID[7:0]. */
export const IRTE_SVT = { NONE: 0, SID_SQ: 1, BUS: 2 } as const;
/** Function bits that are not compared, by IRTE.SQ. */
const SQ_IGNORES = [0, 0b100, 0b110, 0b111] as const;
/** Address of a remappable interrupt request (VT-d 5.1.2.2), above 0xfee00000. */
export const REMAPPABLE_ADDRESS = defineRecord('REMAPPABLE_ADDRESS', 4, {
  HANDLE_15: bit(2),
  SHV: bit(3),
  FORMAT: bit(4),
  HANDLE: bits(5, 15),
});
/** Fault reasons of interrupt remapping (VT-d 7.1). */
export const REMAPPING_FAULT = {
  RESERVED_IN_REQUEST: 0x20,
  BEYOND_TABLE: 0x21,
  NOT_PRESENT: 0x22,
  TABLE_ACCESS: 0x23,
  RESERVED_IN_ENTRY: 0x24,
  COMPATIBILITY_FORMAT: 0x25,
  SOURCE: 0x26,
} as const;

/**
 * The interrupt window of x86, with or without remapping.
 *
 * Without it (or before software has switched it on), the vector is in the data's low byte and anybody can raise any. With it,
 * a message names an entry of a table in memory that says which requester may use it and which vector it becomes; what does
 * not pass is blocked, messages of the compatibility format included unless GCMD.CFI lets them pass. Entries are read for
 * every message, nothing is cached.
 */
export class X86Msi implements MsiController, MmioFrame {
  readonly name: string;
  readonly kind = 'registers';
  readonly isolated: boolean;
  readonly doorbell: number;
  readonly sizeBytes = REMAPPING_FRAME_BYTES;
  readonly #runtime: NodeRuntime;
  readonly #memory: PhysicalMemory;
  readonly #deliver: (interrupt: Interrupt) => void;
  readonly #irta = new Uint32Array(2);
  /** What SIRTP took; undefined before. */
  #table: { readonly address: number; readonly entries: number } | undefined;
  #gcmd = 0;

  constructor(
    runtime: NodeRuntime,
    memory: PhysicalMemory,
    description: MsiControllerDescription,
    deliver: (interrupt: Interrupt) => void,
  ) {
    this.#runtime = runtime;
    this.#memory = memory;
    this.#deliver = deliver;
    this.name = description.name;
    this.isolated = description.isolated;
    this.doorbell = Number(description.base);
  }

  /** Registers of the remapping unit; there is none without remapping. */
  base(): number | undefined {
    return this.isolated ? REMAPPING_BASE : undefined;
  }

  read(offset: number): number {
    if (offset === GSTS_REG.offset) {
      const { CFI, IRE } = GCMD_REG.decode([this.#gcmd]);
      return GSTS_REG.make({ CFIS: CFI, IRTPS: this.#table === undefined ? 0 : 1, IRES: IRE })[0] ?? 0;
    }
    const isIrta = (offset & ~4) === IRTA_REG.offset;
    return isIrta ? (this.#irta[(offset >> 2) & 1] ?? 0) : 0;
  }

  write(offset: number, sizeBytes: number, value: number): void {
    if (sizeBytes !== 4) return;
    if (offset === GCMD_REG.offset) {
      this.#gcmd = value;
      if (GCMD_REG.get([value], 'SIRTP') === 1) {
        const { IRTA, S } = IRTA_REG.decode(this.#irta);
        this.#table = { address: IRTA * 4096, entries: 2 ** (S + 1) };
      }
    } else if (offset === IRTA_REG.offset || offset === IRTA_REG.offset + 4) {
      this.#irta[(offset - IRTA_REG.offset) / 4] = value;
    }
  }

  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const base = BigInt(this.doorbell);
    return address >= base && address + BigInt(lengthBytes) <= base + BigInt(X86_WINDOW_BYTES);
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    const word = messageWord(bytes);
    if (word === undefined) this.#block(origin, 'not a message: no doubleword');
    else if (GCMD_REG.get([this.#gcmd], 'IRE') === 1) this.#remap(Number(address & 0xf_ffffn), word, origin);
    else this.#raiseMessage(word, origin);
  }

  #remap(address: number, word: number, origin: Origin): void {
    const { FORMAT, SHV, HANDLE, HANDLE_15 } = REMAPPABLE_ADDRESS.decode([address]);
    if (FORMAT === 0) {
      if (GCMD_REG.get([this.#gcmd], 'CFI') === 1) this.#raiseMessage(word, origin);
      else this.#block(origin, 'compatibility format', REMAPPING_FAULT.COMPATIBILITY_FORMAT);
      return;
    }
    if (SHV === 1 && word > 0xffff) {
      this.#block(origin, 'reserved bits of the data are set', REMAPPING_FAULT.RESERVED_IN_REQUEST);
      return;
    }
    const index = HANDLE + HANDLE_15 * 0x8000 + (SHV === 1 ? word : 0);
    const entry = new Uint32Array(4);
    if (this.#table === undefined || index >= this.#table.entries)
      this.#block(origin, `no entry ${index}`, REMAPPING_FAULT.BEYOND_TABLE);
    else if (!this.#memory.loadWords(this.#table.address + index * IRTE.sizeBytes, entry))
      this.#block(origin, `entry ${index} is not in memory`, REMAPPING_FAULT.TABLE_ACCESS);
    else if (IRTE.get(entry, 'P') === 0)
      this.#block(origin, `entry ${index} is not present`, REMAPPING_FAULT.NOT_PRESENT);
    else if (IRTE.hasUndeclaredBits(entry) || IRTE.get(entry, 'SVT') > IRTE_SVT.BUS)
      this.#block(origin, `entry ${index} has reserved bits set`, REMAPPING_FAULT.RESERVED_IN_ENTRY);
    else if (!isSource(entry, deviceIdOf(origin)))
      this.#block(origin, `entry ${index} is another requester's`, REMAPPING_FAULT.SOURCE);
    else this.#raise(IRTE.get(entry, 'Vector'), origin);
  }

  #raiseMessage(word: number, origin: Origin): void {
    const { VECTOR, DELIVERY_MODE } = X86_MESSAGE_DATA.decode([word]);
    if (DELIVERY_MODE > LOWEST_PRIORITY) this.#block(origin, `delivery mode ${DELIVERY_MODE} is no interrupt`);
    else this.#raise(VECTOR, origin);
  }

  #raise(vector: number, origin: Origin): void {
    if (vector < X86_FIRST_VECTOR) this.#block(origin, `vector ${vector} is reserved`);
    else this.#deliver(interruptFrom(this.name, vector, origin));
  }

  #block(origin: Origin, why: string, reason?: number): void {
    const device = origin.kind === 'device' ? origin.bdf : 'cpu';
    const fault = reason === undefined ? {} : { reason: BigInt(reason) };
    this.#runtime.emit('irq.blocked', { controller: this.name, device, why, ...fault });
  }
}

/** Source validation of an entry whose SVT is not reserved. */
function isSource(entry: Uint32Array, requesterId: number | undefined): boolean {
  const { SVT, SQ, SID } = IRTE.decode(entry);
  if (SVT === IRTE_SVT.NONE) return true;
  if (requesterId === undefined) return false;
  const source = requesterId & 0xffff;
  if (SVT === IRTE_SVT.BUS) return source >>> 8 >= SID >>> 8 && source >>> 8 <= (SID & 0xff);
  const ignored = SQ_IGNORES[SQ] ?? 0;
  return (SID & ~ignored) === (source & ~ignored);
}

const IN_RC_FRAME_BYTES = 4096;
/** Message numbers of a doorbell inside a root complex, where its description does not say (DesignWare: 8 groups of 32). */
const IN_RC_NUMBERS = { first: 0, count: 256 };

/**
 * A doorbell inside the root complex (DesignWare iMSI-RX, X-Gene, Alpine; domain.md A4.52): every access from below to its frame
 * is taken, a 32-bit write to its start raises the interrupt of its data, reads return zeros. It is not on the system bus: a write
 * that was translated to its address ends nowhere.
 */
export class InRcMsi implements MsiController {
  readonly name: string;
  readonly isolated: boolean;
  readonly doorbell: number;
  readonly numbers: SpiRange;
  readonly #runtime: NodeRuntime;
  readonly #sizeBytes: number;
  readonly #deliver: (interrupt: Interrupt) => void;

  constructor(runtime: NodeRuntime, description: MsiControllerDescription, deliver: (interrupt: Interrupt) => void) {
    this.#runtime = runtime;
    this.#deliver = deliver;
    this.#sizeBytes = description.sizeBytes ?? IN_RC_FRAME_BYTES;
    const { firstSpi: first = IN_RC_NUMBERS.first, spiCount: count = IN_RC_NUMBERS.count } = description;
    this.numbers = { first, count };
    this.name = description.name;
    this.isolated = description.isolated;
    this.doorbell = Number(description.base);
  }

  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const base = BigInt(this.doorbell);
    return address >= base && address + BigInt(lengthBytes) <= base + BigInt(this.#sizeBytes);
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    const offset = Number(address) - this.doorbell;
    const number = messageWord(bytes);
    if (offset === 0 && number !== undefined && isIn(this.numbers, number)) {
      this.#deliver(interruptFrom(this.name, number, origin));
    } else {
      const why = strayText(offset === 0, number);
      this.#runtime.emit('in-rc-msi.swallowed', { controller: this.name, why, offset, ...fromField(origin) });
    }
  }
}
