/**
 * Sets of guest pages: the dirty log a VMM keeps, and what is left to send during a migration.
 *
 * Page numbers count 4 KiB pages of the guest's RAM backing (RamBlock.offset), whatever the host's page size. Chunks of
 * 32768 pages hold either a bitmap or the word `full`, so that "all of a TiB" costs 8192 entries and a sparse set costs
 * what it holds. Iteration goes up by page number.
 */

/** The unit of the dirty log and of migration, on hosts of any page size. */
export const GUEST_PAGE_BYTES = 4096;

/** Pages in one chunk: 128 MiB of guest memory. */
export const CHUNK_PAGES = 32768;

/** Consecutive pages. */
export interface PageRange {
  readonly firstPage: number;
  readonly pages: number;
}

const WORD_BITS = 32;
const CHUNK_WORDS = CHUNK_PAGES / WORD_BITS;

interface Chunk {
  /** Absent when every page of the chunk is in the set. */
  bits: Uint32Array | undefined;
  count: number;
}

/** Mask of bits `first`..`last` of one word. */
function wordMask(first: number, last: number): number {
  const upTo = last === 31 ? 0xffffffff : (1 << (last + 1)) - 1;
  return (upTo & ~((1 << first) - 1)) >>> 0;
}

function popcount(word: number): number {
  let v = word - ((word >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return (((v + (v >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

/** A set of page numbers. */
export class PageSet {
  #chunks = new Map<number, Chunk>();
  #count = 0;

  /** Number of pages in the set. */
  get count(): number {
    return this.#count;
  }

  get isEmpty(): boolean {
    return this.#count === 0;
  }

  has(page: number): boolean {
    const chunk = this.#chunks.get(Math.floor(page / CHUNK_PAGES));
    if (chunk === undefined) return false;
    if (chunk.bits === undefined) return true;
    const bit = page % CHUNK_PAGES;
    return (((chunk.bits[bit >>> 5] ?? 0) >>> (bit & 31)) & 1) === 1;
  }

  addRange(firstPage: number, pages: number): void {
    let page = firstPage;
    const end = firstPage + pages;
    while (page < end) {
      const index = Math.floor(page / CHUNK_PAGES);
      const from = page - index * CHUNK_PAGES;
      const to = Math.min(end - index * CHUNK_PAGES, CHUNK_PAGES);
      this.#addToChunk(index, from, to);
      page = index * CHUNK_PAGES + to;
    }
  }

  /** Adds `firstPage + i` for every bit i set in a little-endian bitmap, as IOMMU_HWPT_GET_DIRTY_BITMAP fills one. */
  addBitmap(firstPage: number, bitmap: Uint8Array, pages: number): void {
    for (let byte = 0; byte * 8 < pages; byte++) {
      const value = bitmap[byte] ?? 0;
      if (value === 0) continue;
      for (let bit = 0; bit < 8 && byte * 8 + bit < pages; bit++) {
        if (((value >>> bit) & 1) === 1) this.addRange(firstPage + byte * 8 + bit, 1);
      }
    }
  }

  /** Adds every page of another set. */
  addAll(other: PageSet): void {
    for (const range of other.ranges()) this.addRange(range.firstPage, range.pages);
  }

  /** Empties the set into a new one: a log is read and cleared in one step. */
  take(): PageSet {
    const taken = new PageSet();
    taken.#chunks = this.#chunks;
    taken.#count = this.#count;
    this.#chunks = new Map();
    this.#count = 0;
    return taken;
  }

  /** Numbers of the chunks that hold a page of the set, ascending. */
  chunks(): number[] {
    return [...this.#chunks.keys()].sort((a, b) => a - b);
  }

  /** Maximal runs of pages inside one chunk, ascending. */
  rangesOfChunk(index: number): PageRange[] {
    const chunk = this.#chunks.get(index);
    if (chunk === undefined) return [];
    const base = index * CHUNK_PAGES;
    if (chunk.bits === undefined) return [{ firstPage: base, pages: CHUNK_PAGES }];
    const runs: PageRange[] = [];
    let start = -1;
    for (let word = 0; word < CHUNK_WORDS; word++) {
      const value = chunk.bits[word] ?? 0;
      if (value === 0 && start < 0) continue;
      if (value === 0xffffffff && start >= 0) continue;
      for (let bit = 0; bit < WORD_BITS; bit++) {
        const isSet = ((value >>> bit) & 1) === 1;
        const page = base + word * WORD_BITS + bit;
        if (isSet && start < 0) start = page;
        if (!isSet && start >= 0) {
          runs.push({ firstPage: start, pages: page - start });
          start = -1;
        }
      }
    }
    if (start >= 0) runs.push({ firstPage: start, pages: base + CHUNK_PAGES - start });
    return runs;
  }

  /** Runs of pages, ascending; neighbouring runs of two chunks are not joined. */
  *ranges(): Generator<PageRange> {
    for (const index of this.chunks()) yield* this.rangesOfChunk(index);
  }

  #addToChunk(index: number, from: number, to: number): void {
    let chunk = this.#chunks.get(index);
    if (chunk === undefined) {
      chunk = { bits: new Uint32Array(CHUNK_WORDS), count: 0 };
      this.#chunks.set(index, chunk);
    }
    if (chunk.bits === undefined) return;
    let added = 0;
    for (let word = from >>> 5; word * WORD_BITS < to; word++) {
      const mask = wordMask(Math.max(from - word * WORD_BITS, 0), Math.min(to - word * WORD_BITS, WORD_BITS) - 1);
      const before = chunk.bits[word] ?? 0;
      added += popcount((mask & ~before) >>> 0);
      chunk.bits[word] = (before | mask) >>> 0;
    }
    chunk.count += added;
    this.#count += added;
    if (chunk.count === CHUNK_PAGES) chunk.bits = undefined;
  }
}
