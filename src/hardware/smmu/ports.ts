/**
 * What an SMMU sees of the machine around it: physical memory and its interrupt wires. PhysicalMemory of the board
 * satisfies {@link SmmuMemory} structurally; tests bring a map.
 *
 * Physical addresses are exact numbers (at most 52 bits). Every access is single-copy atomic in units of 8 bytes.
 */

/** Physical memory as the SMMU's walker, queues and configuration fetches use it. */
export interface SmmuMemory {
  /** Fills `out` (an even number of words, low first) from 8-byte aligned `pa`; false: external abort. */
  loadWords(pa: number, out: Uint32Array): boolean;
  /** Stores one aligned doubleword; false: external abort. */
  store64(pa: number, lo: number, hi: number): boolean;
  /** Replaces an aligned doubleword if it still holds the expected value; false: it does not, or nothing answers. */
  compareAndSwap64(pa: number, oldLo: number, oldHi: number, newLo: number, newHi: number): boolean;
  /** Whether an address lies in memory that belongs to the kernel's tables and that nobody has allocated. Not hardware's to ask: a check's. */
  isGivenBack?(pa: number): boolean;
}

/** Wired interrupts of an SMMU without MSIs of its own. */
export type SmmuIrqLine = 'eventq' | 'gerror' | 'priq' | 'cmdq-sync';

/** Words in which a TLB keeps its entries: a piece of the arena, or an array of its own. */
export interface TlbStorage {
  readonly words: Int32Array;
  /** Index of the first word; {@link TLB_ENTRY_WORDS} words an entry from there belong to the TLB and are zero at the start. */
  readonly base: number;
  /** A power of two, at least {@link TLB_WAYS}; {@link TLB_ENTRIES} when not given. */
  readonly entries?: number;
}

/** Entries of a TLB; sets are {@link TLB_WAYS} entries wide. */
export const TLB_ENTRIES = 4096;
export const TLB_WAYS = 4;
export const TLB_ENTRY_WORDS = 8;
/** 32-bit words of storage a TLB needs. */
export const TLB_WORDS = TLB_ENTRIES * TLB_ENTRY_WORDS;
