/**
 * The LPI side of a GICv3 redistributor: which LPIs are enabled, which are pending.
 *
 * Configuration (a byte an LPI: priority and enable) and pending state (a bit an INTID) are tables in memory that software
 * names in GICR_PROPBASER and GICR_PENDBASER before it sets GICR_CTLR.EnableLPIs. The whole configuration is cached from that
 * moment on, as the architecture allows: a change has no effect until INV or INVALL, so a forgotten one shows. Pending bits
 * are kept in memory. A pending LPI that is enabled is taken by the CPU at once, several in the order of priority, INTID.
 *
 * Simplifications: every ITS has a redistributor of its own (processor 0 as that ITS sees it), so LPI numbers are an ITS's own too;
 * and it has no place on the bus, because host descriptions name none and the addresses after an ITS are often the next
 * ITS's. Software reaches its registers through the ITS.
 *
 * Source: Arm IHI 0069 (GICv3) 5.1, 12.11 (GICR_*).
 */
import { bit, bits, reg32, reg64, type BitFields, type Register } from '../../layout/bits.js';
import type { PhysicalMemory } from '../memory.js';

export const GICR_CTLR = reg32('GICR_CTLR', 0x0000, { EnableLPIs: bit(0), CES: bit(1), IR: bit(2), RWP: bit(3) });
/** Read-only: physical LPIs, no direct LPI registers, the last redistributor, processor 0. */
export const GICR_TYPER = reg64('GICR_TYPER', 0x0008, {
  PLPIS: bit(0),
  VLPIS: bit(1),
  DirectLPI: bit(3),
  Last: bit(4),
  Processor_Number: bits(8, 16),
  Affinity_Value: bits(32, 32),
});
/** LPI configuration table; IDbits is the number of INTID bits minus one. */
export const GICR_PROPBASER = reg64('GICR_PROPBASER', 0x0070, {
  IDbits: bits(0, 5),
  InnerCache: bits(7, 3),
  Shareability: bits(10, 2),
  Physical_Address: bits(12, 40),
  OuterCache: bits(56, 3),
});
/** LPI pending table, 64 KiB aligned; PTZ (reads as zero): software says that the table is zero, which it is read for anyway. */
export const GICR_PENDBASER = reg64('GICR_PENDBASER', 0x0078, {
  InnerCache: bits(7, 3),
  Shareability: bits(10, 2),
  Physical_Address: bits(16, 36),
  OuterCache: bits(56, 3),
  PTZ: bit(62),
});

/** First LPI INTID. */
export const FIRST_LPI = 8192;
/** INTID bits of this GIC (GICD_TYPER.IDbits + 1). */
export const LPI_ID_BITS = 16;
/** A byte of the configuration table: the LPI is enabled; RES1; the priority is bits 7:2. */
export const LPI_ENABLE = 0x01;
export const LPI_RES1 = 0x02;
const LPI_PRIORITY = 0xfc;

const TYPER = GICR_TYPER.make({ PLPIS: 1, Last: 1 });
/** Bits of GICR_PENDBASER that read as zero: PTZ. */
const PTZ_HIGH = 0x4000_0000;

/**
 * What became of an LPI: the CPU took it; it waits because it is disabled; it waited already, and this one is merged with it;
 * it is lost because LPIs are off or the number is beyond the tables.
 */
export type LpiOutcome = 'taken' | 'pending' | 'merged' | 'off' | 'out-of-range';

/** One redistributor. */
export class Redistributor {
  readonly #memory: PhysicalMemory;
  readonly #take: (intid: number, from: string | undefined) => void;
  readonly #propbaser = new Uint32Array(2);
  readonly #pendbaser = new Uint32Array(2);
  #isOn = false;
  /** The cached configuration, by INTID from {@link FIRST_LPI} on. */
  #configuration: Uint8Array = new Uint8Array(0);
  /** Who raised what is pending. */
  readonly #writers = new Map<number, string>();

  /** `take` is the CPU: it acknowledges an LPI at once. */
  constructor(memory: PhysicalMemory, take: (intid: number, from: string | undefined) => void) {
    this.#memory = memory;
    this.#take = take;
  }

  /** A 32-bit register, or half of a 64-bit one; registers that are not there read as zero. */
  read(offset: number): number {
    switch (offset) {
      case GICR_CTLR.offset:
        return this.#isOn ? 1 : 0;
      case GICR_TYPER.offset:
      case GICR_TYPER.offset + 4:
        return TYPER[halfOf(GICR_TYPER, offset)] ?? 0;
      case GICR_PROPBASER.offset:
      case GICR_PROPBASER.offset + 4:
        return this.#propbaser[halfOf(GICR_PROPBASER, offset)] ?? 0;
      case GICR_PENDBASER.offset:
        return this.#pendbaser[0] ?? 0;
      case GICR_PENDBASER.offset + 4:
        return (this.#pendbaser[1] ?? 0) & ~PTZ_HIGH;
      default:
        return 0;
    }
  }

  /** The table registers are fixed while LPIs are on; EnableLPIs cannot be cleared again (CES = 0). */
  write(offset: number, value: number): void {
    if (this.#isOn) return;
    switch (offset) {
      case GICR_CTLR.offset:
        if ((value & 1) !== 0) this.#enable();
        return;
      case GICR_PROPBASER.offset:
      case GICR_PROPBASER.offset + 4:
        this.#propbaser[halfOf(GICR_PROPBASER, offset)] = value;
        return;
      case GICR_PENDBASER.offset:
      case GICR_PENDBASER.offset + 4:
        this.#pendbaser[halfOf(GICR_PENDBASER, offset)] = value;
    }
  }

  /** Whether an INTID is an LPI that this GIC and, once LPIs are on, the tables have room for. */
  hasLpi(intid: number): boolean {
    return intid >= FIRST_LPI && intid < (this.#isOn ? this.#idEnd : 2 ** LPI_ID_BITS);
  }

  /** An LPI becomes pending. */
  setPending(intid: number, from: string | undefined): LpiOutcome {
    if (!this.#isOn) return 'off';
    if (!this.hasLpi(intid)) return 'out-of-range';
    if (this.#isEnabled(intid)) {
      this.#take(intid, from);
      return 'taken';
    }
    const wasPending = this.#isPending(intid);
    this.#setPendingBit(intid, true);
    if (from === undefined) this.#writers.delete(intid);
    else this.#writers.set(intid, from);
    return wasPending ? 'merged' : 'pending';
  }

  /** An LPI is no longer pending (CLEAR, DISCARD). */
  clearPending(intid: number): void {
    if (this.#isOn && this.hasLpi(intid) && this.#isPending(intid)) this.#setPendingBit(intid, false);
    this.#writers.delete(intid);
  }

  /** The configuration of one LPI is read again (INV). */
  invalidate(intid: number): void {
    if (!this.#isOn || !this.hasLpi(intid)) return;
    const index = intid - FIRST_LPI;
    this.#configuration[index] = this.#memory.read(this.#tableAddress + index, 1)?.[0] ?? 0;
    if (this.#isPending(intid) && this.#isEnabled(intid)) this.#takePending(intid);
  }

  /** All configurations are read again (INVALL). */
  invalidateAll(): void {
    if (!this.#isOn) return;
    const lengthBytes = Math.max(this.#idEnd - FIRST_LPI, 0);
    this.#configuration = this.#memory.read(this.#tableAddress, lengthBytes) ?? new Uint8Array(lengthBytes);
    const pending = this.#memory.read(this.#pendingByte(FIRST_LPI), lengthBytes / 8) ?? new Uint8Array(0);
    const ready: number[] = [];
    for (const [index, byte] of pending.entries()) {
      for (let at = 0; byte >>> at !== 0; at++) {
        const intid = FIRST_LPI + index * 8 + at;
        if (((byte >>> at) & 1) !== 0 && this.#isEnabled(intid)) ready.push(intid);
      }
    }
    ready.sort((a, b) => this.#priority(a) - this.#priority(b) || a - b);
    for (const intid of ready) this.#takePending(intid);
  }

  /** End of the INTIDs that the tables have room for. */
  get #idEnd(): number {
    return 2 ** (Math.min(GICR_PROPBASER.get(this.#propbaser, 'IDbits'), LPI_ID_BITS - 1) + 1);
  }

  get #tableAddress(): number {
    return GICR_PROPBASER.get(this.#propbaser, 'Physical_Address') * 4096;
  }

  #enable(): void {
    this.#isOn = true;
    this.invalidateAll();
  }

  #isEnabled(intid: number): boolean {
    return ((this.#configuration[intid - FIRST_LPI] ?? 0) & LPI_ENABLE) !== 0;
  }

  #priority(intid: number): number {
    return (this.#configuration[intid - FIRST_LPI] ?? 0) & LPI_PRIORITY;
  }

  #pendingByte(intid: number): number {
    return GICR_PENDBASER.get(this.#pendbaser, 'Physical_Address') * 0x10000 + (intid >>> 3);
  }

  #isPending(intid: number): boolean {
    const byte = this.#memory.read(this.#pendingByte(intid), 1)?.[0] ?? 0;
    return ((byte >>> (intid & 7)) & 1) !== 0;
  }

  #setPendingBit(intid: number, isSet: boolean): void {
    const at = this.#pendingByte(intid);
    const byte = this.#memory.read(at, 1)?.[0] ?? 0;
    const mask = 1 << (intid & 7);
    this.#memory.write(at, Uint8Array.of(isSet ? byte | mask : byte & ~mask));
  }

  #takePending(intid: number): void {
    const from = this.#writers.get(intid);
    this.clearPending(intid);
    this.#take(intid, from);
  }
}

function halfOf(register: Register<BitFields>, offset: number): 0 | 1 {
  return offset === register.offset ? 0 : 1;
}
