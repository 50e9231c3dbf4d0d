/**
 * The translation lookaside buffer: 4096 entries (or as many as there is storage for), four ways, in words that may lie in the shared arena.
 *
 * An entry holds a translation of one page or block for (stages, ASID, VMID, granule, half of the range). Nothing
 * removes it but an invalidation or the replacement of its way, so software that forgets an invalidation keeps using
 * what was there: that is the point. Stage 1 entries and combined entries carry ASID and VMID; stage 2 entries carry
 * the VMID and are tagged by IPA. Combined entries are not tagged by IPA: CMD_TLBI_S2_IPA leaves them, as the
 * architecture allows (IHI 0070 4.4.4). Global pages are tagged by ASID like others. Invalidation by address ignores
 * Leaf and TTL and removes whatever overlaps: never too little.
 *
 * Replacement is round robin within a set, driven by a counter in the TLB itself: the same history gives the same
 * entries. One Tlb object owns the words. A writer clears word 0, fills the rest, then sets word 0, and a lookup loads
 * word 0 before and after: a reader of the same words in another thread can tell a torn entry.
 *
 * Words of an entry: 0 state (0 is free, else valid bit and sequence); 1 ASID and VMID; 2 input page, low; 3 input
 * page, high, with shift, granule, kind and half; 4 and 5 output page; 6 permissions; 7 unused.
 */
import { sharedRange, sharedRead, sharedWrite } from '../../runtime/watch.js';
import { TLB_ENTRIES, TLB_ENTRY_WORDS, TLB_WAYS, type TlbStorage } from './ports.js';
import type { Permissions, Translation } from './walk.js';

/** Which stages an entry combines. */
export const TLB_KIND = { STAGE1: 1, STAGE2: 2, NESTED: 3 } as const;

/** What a translation is looked up by, besides its address. */
export interface TlbTag {
  /** One of {@link TLB_KIND}. */
  readonly kind: number;
  readonly asid: number;
  readonly vmid: number;
  /** 1 for addresses translated by TTB1. */
  readonly half: number;
  /** Granule of the first stage that translates. */
  readonly granuleShift: number;
}

/** A hit. */
export interface TlbHit {
  readonly address: number;
  readonly shift: number;
  readonly stage1: Permissions;
  readonly stage2: Permissions;
  readonly clean: boolean;
}

/** An entry as it is told to people. */
export interface TlbEntry {
  readonly kind: 'stage 1' | 'stage 2' | 'nested';
  readonly asid: number;
  readonly vmid: number;
  readonly input: number;
  readonly address: number;
  readonly sizeBytes: number;
  /** A write has yet to set dirty state. */
  readonly clean: boolean;
}

/** Which entries an invalidation is about; a part that is not given matches everything. */
export interface TlbSelection {
  /** Kinds, as bits 1 << kind. */
  readonly kinds: number;
  readonly asid?: number;
  readonly vmid?: number;
  /** Inclusive range of addresses within a half; `half` must be given with it. */
  readonly range?: { readonly start: number; readonly last: number; readonly half: number };
}

const VALID = 1;
/** What translates more than this is one shared word with all others that do. */
const MARKED_BYTES = 2 ** 21;
const TWO_32 = 2 ** 32;

/** Translations that the SMMU remembers. */
export class Tlb {
  readonly #words: Int32Array;
  readonly #base: number;
  readonly #entries: number;
  /** Entries by page shift, so that a lookup probes only sizes in use. */
  readonly #population = new Uint32Array(64);
  #shiftsInUse: number[] = [];
  #replacement = 0;
  #sequence = 0;
  #invalidations = 0;

  constructor(storage: TlbStorage) {
    this.#words = storage.words;
    this.#base = storage.base;
    this.#entries = storage.entries ?? TLB_ENTRIES;
  }

  /** Number of valid entries. */
  get size(): number {
    let total = 0;
    for (const shift of this.#shiftsInUse) total += this.#population[shift] ?? 0;
    return total;
  }

  /** Counts invalidations: a walk during which it moved may have read what was to be forgotten. */
  get invalidations(): number {
    sharedRead(this, 'invalidations', this.#invalidations);
    return this.#invalidations;
  }

  /** Finds the translation of `input` (an address within its half): the smallest, where there are several. */
  lookup(tag: TlbTag, input: number): TlbHit | undefined {
    sharedRead(this, 'invalidations', this.#invalidations);
    const hit = this.#lookup(tag, input, 0);
    sharedRange(this, '', input, 1, false, hit?.address, hit?.address);
    sharedRead(this, 'large entries');
    return hit;
  }

  /** Whether a larger entry translates the same address. */
  hasLarger(tag: TlbTag, input: number, { shift }: TlbHit): boolean {
    return this.#lookup(tag, input, shift + 1) !== undefined;
  }

  #lookup(tag: TlbTag, input: number, leastShift: number): TlbHit | undefined {
    const words = this.#words;
    const ids = tagIds(tag);
    for (const shift of this.#shiftsInUse) {
      if (shift < leastShift) continue;
      const page = Math.floor(input / 2 ** shift);
      const low = (page % TWO_32) | 0;
      const high = packHigh(tag, shift, page);
      const set = this.#setOf(ids, low, high);
      for (let way = 0; way < TLB_WAYS; way++) {
        const at = set + way * TLB_ENTRY_WORDS;
        const state = Atomics.load(words, at);
        if (state === 0 || words[at + 1] !== ids || words[at + 2] !== low || words[at + 3] !== high) continue;
        const outputPage = ((words[at + 5] ?? 0) >>> 0) * TWO_32 + ((words[at + 4] ?? 0) >>> 0);
        const permissions = words[at + 6] ?? 0;
        if (Atomics.load(words, at) !== state) continue;
        return {
          address: outputPage * 2 ** shift + (input % 2 ** shift),
          shift,
          stage1: permissions & 0x3f,
          stage2: (permissions >> 6) & 0x3f,
          clean: (permissions & 0x1000) !== 0,
        };
      }
    }
    return undefined;
  }

  /** Remembers a translation of `input`; an entry for the same page is replaced. */
  insert(tag: TlbTag, input: number, translation: Translation): void {
    const words = this.#words;
    const ids = tagIds(tag);
    const { shift } = translation;
    const page = Math.floor(input / 2 ** shift);
    const low = (page % TWO_32) | 0;
    const high = packHigh(tag, shift, page);
    const at = this.#victim(this.#setOf(ids, low, high), ids, low, high);
    this.#remove(at);
    if (2 ** shift > MARKED_BYTES) sharedWrite(this, 'large entries');
    else sharedRange(this, '', page * 2 ** shift, 2 ** shift, true, undefined, translation.address);
    const outputPage = Math.floor(translation.address / 2 ** shift);
    words[at + 1] = ids;
    words[at + 2] = low;
    words[at + 3] = high;
    words[at + 4] = (outputPage % TWO_32) | 0;
    words[at + 5] = Math.floor(outputPage / TWO_32);
    words[at + 6] = translation.stage1 | (translation.stage2 << 6) | (Number(translation.clean) << 12);
    this.#sequence = (this.#sequence + 1) & 0x3fffffff;
    Atomics.store(words, at, VALID | (this.#sequence << 1));
    this.#count(shift, 1);
  }

  /** Removes what is selected; returns how many entries. */
  invalidate(selection: TlbSelection): number {
    sharedWrite(this, 'invalidations', this.#invalidations, this.#invalidations + 1);
    this.#invalidations++;
    let removed = 0;
    for (const at of this.#selected(selection)) {
      this.#remove(at);
      removed++;
    }
    return removed;
  }

  /** Whether anything of what is selected is there. */
  holds(selection: TlbSelection): boolean {
    return this.#selected(selection).next().done !== true;
  }

  /** Every valid entry, in the order of the words. */
  *entries(): Generator<TlbEntry> {
    for (const at of this.#selected({ kinds: -1 })) {
      const word = (i: number): number => (this.#words[at + i] ?? 0) >>> 0;
      const kind = (word(3) >>> 23) & 3;
      const sizeBytes = 2 ** shiftOf(word(3));
      yield {
        kind: kind === TLB_KIND.STAGE1 ? 'stage 1' : kind === TLB_KIND.STAGE2 ? 'stage 2' : 'nested',
        asid: word(1) >>> 16,
        vmid: word(1) & 0xffff,
        input: ((word(3) & 0xffff) * TWO_32 + word(2)) * sizeBytes,
        address: (word(5) * TWO_32 + word(4)) * sizeBytes,
        sizeBytes,
        clean: (word(6) & 0x1000) !== 0,
      };
    }
  }

  /** Where the entries are that match. */
  *#selected(selection: TlbSelection): Generator<number, void> {
    const words = this.#words;
    let left = this.size;
    for (let entry = 0; entry < this.#entries && left > 0; entry++) {
      const at = this.#base + entry * TLB_ENTRY_WORDS;
      if (words[at] === 0) continue;
      left--;
      if (matches(selection, words[at + 1] ?? 0, words[at + 2] ?? 0, words[at + 3] ?? 0)) yield at;
    }
  }

  #setOf(ids: number, low: number, high: number): number {
    let hash = Math.imul(ids ^ Math.imul(high, 0x85ebca6b), 0xc2b2ae35) ^ Math.imul(low, 0x9e3779b1);
    hash ^= hash >>> 15;
    return this.#base + (hash & (this.#entries / TLB_WAYS - 1)) * TLB_WAYS * TLB_ENTRY_WORDS;
  }

  /** The way that holds this page already, else a free one, else the next in turn. */
  #victim(set: number, ids: number, low: number, high: number): number {
    const words = this.#words;
    let free = -1;
    for (let way = 0; way < TLB_WAYS; way++) {
      const at = set + way * TLB_ENTRY_WORDS;
      if (words[at] === 0) {
        if (free < 0) free = at;
      } else if (words[at + 1] === ids && words[at + 2] === low && words[at + 3] === high) {
        return at;
      }
    }
    if (free >= 0) return free;
    this.#replacement = (this.#replacement + 1) % TLB_WAYS;
    return set + this.#replacement * TLB_ENTRY_WORDS;
  }

  #remove(at: number): void {
    if (this.#words[at] === 0) return;
    Atomics.store(this.#words, at, 0);
    this.#count(shiftOf(this.#words[at + 3] ?? 0), -1);
  }

  #count(shift: number, change: 1 | -1): void {
    const now = (this.#population[shift] ?? 0) + change;
    this.#population[shift] = now;
    const known = this.#shiftsInUse.includes(shift);
    if (now > 0 && !known) this.#shiftsInUse = [...this.#shiftsInUse, shift].sort((a, b) => a - b);
    if (now === 0) this.#shiftsInUse = this.#shiftsInUse.filter((other) => other !== shift);
  }
}

function tagIds(tag: TlbTag): number {
  return (tag.asid << 16) | tag.vmid;
}

/** Word 3: input page bits 47..32 in 15..0, shift in 21..16, half in 22, kind in 24..23, granule in 29..25. */
function packHigh(tag: TlbTag, shift: number, page: number): number {
  return Math.floor(page / TWO_32) | (shift << 16) | (tag.half << 22) | (tag.kind << 23) | (tag.granuleShift << 25);
}

function shiftOf(high: number): number {
  return (high >>> 16) & 0x3f;
}

function matches(selection: TlbSelection, ids: number, low: number, high: number): boolean {
  const kind = (high >>> 23) & 3;
  if ((selection.kinds & (1 << kind)) === 0) return false;
  if (selection.vmid !== undefined && (ids & 0xffff) !== selection.vmid) return false;
  if (selection.asid !== undefined && ids >>> 16 !== selection.asid) return false;
  const { range } = selection;
  if (range === undefined) return true;
  if (((high >>> 22) & 1) !== range.half) return false;
  const size = 2 ** shiftOf(high);
  const start = ((high & 0xffff) * TWO_32 + (low >>> 0)) * size;
  return start <= range.last && start + size - 1 >= range.start;
}
