/**
 * Stream table entries and context descriptors: what they are to say, and how a live one is changed.
 *
 * The SMMU may read an entry at any moment and keeps what it read, so a change is a sequence of 64-bit stores with
 * invalidations between. If all bits that must change together lie in one doubleword, the change is hitless: first the
 * bits the present meaning ignores and those whose moment does not matter, then that doubleword, then the rest. Otherwise the entry is made invalid first
 * (word 0, V = 0), then words 1-7 are written, then word 0 (domain.md A4.2, A6.11, INV-17).
 *
 * Source: Arm IHI 0070 5.2, 5.4, 3.21; Linux arm-smmu-v3.c (arm_smmu_write_entry describes the same idea).
 */
import type { Task } from '../../../runtime/task.js';
import {
  CD,
  STE,
  STE_CONFIG,
  STE_EATS,
  STE_S1DSS,
  STE_SHCFG_INCOMING,
  TG0_SHIFTS,
  ADDRESS_SIZE_BITS,
} from '../../../hardware/smmu/records.js';
import type { PageTable } from '../../../core/page-table.js';
import type { DmaMemory } from '../dma-memory.js';

/** Bytes of a stream table entry and of a context descriptor. */
export const ENTRY_BYTES = 64;
const ENTRY_WORDS = ENTRY_BYTES / 4;
const WRITE_BACK = 1;
const INNER_SHAREABLE = 3;
/** MAIR: non-cacheable, write-back, device, inner-cacheable only; the index is what descriptors say. */
const MAIR0 = 0xf404ff44;

/** An entry in memory that hardware reads. */
export interface LiveEntry {
  readonly memory: DmaMemory;
  readonly offset: number;
  /** Which bits the hardware looks at. */
  usedBits(words: Uint32Array): Uint32Array;
  /** Which of them may change before the others. */
  safeBits(words: Uint32Array, target: Uint32Array): Uint32Array;
  /** Mask of the V bit in word 0. */
  readonly validBit: number;
  /** Invalidates what hardware has cached of the entry, and waits for it. */
  sync(): Task<void>;
  /** The fault `smmu.entry-not-hitless`: whether this change is made as if nobody could look at it. */
  isTorn?(): boolean;
}

/** Stores those doublewords first..7 that differ; true if any did. */
function* storeWords(entry: LiveEntry, target: Uint32Array, doublewords: readonly number[]): Task<boolean> {
  let changed = false;
  for (const i of doublewords) {
    const now = entry.memory.read(entry.offset + i * 8, 2);
    const lo = target[i * 2] ?? 0;
    const hi = target[i * 2 + 1] ?? 0;
    if (now[0] === lo && now[1] === hi) continue;
    entry.memory.store64(entry.offset + i * 8, lo, hi);
    changed = true;
    yield 'smmu:entry-store';
  }
  return changed;
}

/** Changes a live entry to `target`, hitless where that is possible. */
export function* writeEntry(entry: LiveEntry, target: Uint32Array): Task<void> {
  const all = [0, 1, 2, 3, 4, 5, 6, 7];
  if (entry.isTorn?.() === true) {
    yield* storeWords(entry, target, all);
    yield* entry.sync();
    return;
  }
  const current = entry.memory.read(entry.offset, ENTRY_WORDS);
  const usedThen = entry.usedBits(target);
  const safe = entry.safeBits(current, target).map((mask, i) => mask & (usedThen[i] ?? 0));
  const usedNow = entry.usedBits(current).map((mask, i) => mask & ~(safe[i] ?? 0));
  const prepared = current.map((word, i) => {
    const used = usedNow[i] ?? 0;
    return ((word & used) | ((target[i] ?? 0) & ~used)) >>> 0;
  });
  const critical = all.filter((i) =>
    [i * 2, i * 2 + 1].some((w) => (((prepared[w] ?? 0) ^ (target[w] ?? 0)) & (usedThen[w] ?? 0)) !== 0),
  );
  const others = all.filter((i) => !critical.includes(i));
  if (critical.length > 1) {
    const invalid = Uint32Array.from(prepared);
    invalid[0] = ((invalid[0] ?? 0) & ~entry.validBit) >>> 0;
    yield* storeWords(entry, invalid, [0]);
    yield* entry.sync();
    yield* storeWords(entry, target, all.slice(1));
    yield* entry.sync();
    yield* storeWords(entry, target, [0]);
    yield* entry.sync();
    return;
  }
  if (yield* storeWords(entry, prepared, others)) yield* entry.sync();
  if (yield* storeWords(entry, target, critical)) yield* entry.sync();
  if (yield* storeWords(entry, target, others)) yield* entry.sync();
}

/** Every transaction is aborted without an event. */
export function abortSte(): Uint32Array {
  return STE.make({ V: 1, Config: STE_CONFIG.ABORT });
}

/** Every transaction goes through untranslated. */
export function bypassSte(): Uint32Array {
  return STE.make({ V: 1, Config: STE_CONFIG.BYPASS, SHCFG: STE_SHCFG_INCOMING });
}

/** Stage 1 through the context descriptor at `cdAddress`. */
export function stage1Ste(cdAddress: number, canStall: boolean, usesAts = false): Uint32Array {
  return STE.make({
    V: 1,
    Config: STE_CONFIG.S1_TRANS,
    S1ContextPtr: cdAddress / 64,
    S1DSS: STE_S1DSS.SSID0,
    S1CIR: WRITE_BACK,
    S1COR: WRITE_BACK,
    S1CSH: INNER_SHAREABLE,
    S1STALLD: canStall ? 1 : 0,
    EATS: usesAts ? STE_EATS.FULL : STE_EATS.ABORT,
  });
}

/** Encoding of an output address width. */
function addressSize(bits: number): number {
  return ADDRESS_SIZE_BITS.indexOf(bits);
}

/** S2SL0 by granule and start level (Arm IHI 0070 5.2, S2SL0). */
function startLevelField(granuleShift: number, startLevel: number): number {
  return granuleShift === 12 ? 2 - startLevel : 3 - startLevel;
}

/** Stage 2 through a table; `forcesWriteBack`: its leaves are those of S2FWB. */
export function stage2Ste(table: PageTable, vmid: number, forcesWriteBack = false, usesAts = false): Uint32Array {
  return STE.make({
    V: 1,
    Config: STE_CONFIG.S2_TRANS,
    SHCFG: STE_SHCFG_INCOMING,
    S2FWB: forcesWriteBack ? 1 : 0,
    EATS: usesAts ? STE_EATS.FULL : STE_EATS.ABORT,
    S2VMID: vmid,
    S2T0SZ: 64 - table.inputBits,
    S2SL0: startLevelField(table.granuleShift, table.startLevel),
    S2IR0: WRITE_BACK,
    S2OR0: WRITE_BACK,
    S2SH0: INNER_SHAREABLE,
    S2TG: TG0_SHIFTS.indexOf(table.granuleShift),
    S2PS: addressSize(table.outputBits),
    S2AA64: 1,
    S2PTW: 1,
    S2R: 1,
    S2TTB: table.rootAddress / 16,
  });
}

/** A context descriptor for a stage 1 table. */
export function contextDescriptor(table: PageTable, asid: number, recordsDirty: boolean): Uint32Array {
  return CD.make({
    T0SZ: 64 - table.inputBits,
    TG0: TG0_SHIFTS.indexOf(table.granuleShift),
    IR0: WRITE_BACK,
    OR0: WRITE_BACK,
    SH0: INNER_SHAREABLE,
    EPD1: 1,
    V: 1,
    IPS: addressSize(table.outputBits),
    AA64: 1,
    HD: recordsDirty ? 1 : 0,
    HA: recordsDirty ? 1 : 0,
    R: 1,
    A: 1,
    ASET: 1,
    ASID: asid,
    TTB0: table.rootAddress / 16,
    MAIR0,
  });
}
