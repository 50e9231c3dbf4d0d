/**
 * The LPI side of a GICv3 redistributor: which LPIs are enabled, which are pending.
 *
 * Both tables are in memory that software gives: a byte of configuration for each LPI (GICR_PROPBASER) and a pending bit for
 * each INTID (GICR_PENDBASER). Configuration is cached: a change counts only after INV or INVALL of the ITS. A pending LPI that is
 * enabled is delivered at once and pending no longer; one that is not waits.
 *
 * Source: Arm IHI 0069 5.1.1, 5.1.2, 12.11.
 */
import { bit, bits, reg32, reg64 } from '../../layout/bits.js';
import type { MmioFrame } from '../bus.js';
import type { PhysicalMemory } from '../memory.js';

export const GICR_CTLR = reg32('GICR_CTLR', 0x0000, { EnableLPIs: bit(0) });
export const GICR_PROPBASER = reg64('GICR_PROPBASER', 0x0070, { IDbits: bits(0, 5), Physical_Address: bits(12, 40) });
export const GICR_PENDBASER = reg64('GICR_PENDBASER', 0x0078, { Physical_Address: bits(16, 36), PTZ: bit(62) });
export const GICR_FRAME_BYTES = 0x10000;
/** First LPI INTID. */
export const FIRST_LPI = 8192;
/** Enable bit of an LPI's configuration byte; priority is in bits 7:2. */
export const LPI_ENABLE = 1;

const WORDS = [
  GICR_CTLR.offset,
  GICR_PROPBASER.offset,
  GICR_PROPBASER.offset + 4,
  GICR_PENDBASER.offset,
  GICR_PENDBASER.offset + 4,
];

/** One redistributor, for the one CPU of a host. */
export class Redistributor implements MmioFrame {
  readonly name: string;
  readonly kind = 'registers';
  readonly sizeBytes = GICR_FRAME_BYTES;
  readonly #base: number;
  readonly #memory: PhysicalMemory;
  readonly #deliver: (intid: number, from: string | undefined) => void;
  readonly #registers = new Map<number, number>(WORDS.map((offset) => [offset, 0]));
  /** Configuration bytes as last read. */
  readonly #cached = new Map<number, number>();
  /** Who made an LPI pending that is not delivered yet. */
  readonly #writers = new Map<number, string | undefined>();

  constructor(
    name: string,
    base: number,
    memory: PhysicalMemory,
    deliver: (intid: number, from: string | undefined) => void,
  ) {
    this.name = name;
    this.#base = base;
    this.#memory = memory;
    this.#deliver = deliver;
  }

  base(): number {
    return this.#base;
  }

  read(offset: number): number {
    return this.#registers.get(offset) ?? 0;
  }

  write(offset: number, sizeBytes: number, value: number): void {
    if (sizeBytes === 4 && this.#registers.has(offset)) this.#registers.set(offset, value >>> 0);
  }

  /** Whether an INTID is an LPI that the tables have room for. */
  hasLpi(intid: number): boolean {
    const idBits = GICR_PROPBASER.get(this.#pair(GICR_PROPBASER.offset), 'IDbits') + 1;
    return intid >= FIRST_LPI && intid < 2 ** idBits;
  }

  /** Makes an LPI pending, and delivers it when it is enabled. False when there is no such LPI or LPIs are off. */
  setPending(intid: number, from: string | undefined): boolean {
    if (!this.#isOn || !this.hasLpi(intid)) return false;
    this.#writers.set(intid, from);
    this.#setPendingBit(intid, true);
    this.#deliverIfEnabled(intid);
    return true;
  }

  clearPending(intid: number): void {
    if (this.#isOn && this.hasLpi(intid)) this.#setPendingBit(intid, false);
  }

  isPending(intid: number): boolean {
    const byte = this.#memory.read(this.#pendingTable + (intid >> 3), 1);
    return (((byte?.[0] ?? 0) >> (intid & 7)) & 1) === 1;
  }

  /** INV: the configuration of one LPI is read again. */
  invalidate(intid: number): void {
    this.#cached.delete(intid);
    if (this.#isOn && this.hasLpi(intid) && this.isPending(intid)) this.#deliverIfEnabled(intid);
  }

  /** INVALL: of all. */
  invalidateAll(): void {
    const known = [...this.#cached.keys()];
    this.#cached.clear();
    for (const intid of known) this.invalidate(intid);
  }

  get #isOn(): boolean {
    return GICR_CTLR.get([this.read(GICR_CTLR.offset)], 'EnableLPIs') === 1;
  }

  get #pendingTable(): number {
    return GICR_PENDBASER.get(this.#pair(GICR_PENDBASER.offset), 'Physical_Address') * 0x10000;
  }

  #pair(offset: number): [number, number] {
    return [this.read(offset), this.read(offset + 4)];
  }

  #configuration(intid: number): number {
    const known = this.#cached.get(intid);
    if (known !== undefined) return known;
    const table = GICR_PROPBASER.get(this.#pair(GICR_PROPBASER.offset), 'Physical_Address') * 4096;
    const byte = this.#memory.read(table + intid - FIRST_LPI, 1)?.[0] ?? 0;
    this.#cached.set(intid, byte);
    return byte;
  }

  #deliverIfEnabled(intid: number): void {
    if ((this.#configuration(intid) & LPI_ENABLE) === 0) return;
    this.#setPendingBit(intid, false);
    const from = this.#writers.get(intid);
    this.#writers.delete(intid);
    this.#deliver(intid, from);
  }

  #setPendingBit(intid: number, isPending: boolean): void {
    const at = this.#pendingTable + (intid >> 3);
    const byte = this.#memory.read(at, 1)?.[0] ?? 0;
    const mask = 1 << (intid & 7);
    this.#memory.write(at, Uint8Array.of(isPending ? byte | mask : byte & ~mask));
  }
}
