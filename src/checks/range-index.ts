/**
 * Range index: disjoint ranges of pages in ascending order, searched by page.
 *
 * A list of short sorted arrays, so that a change moves little however many ranges there are: a run has tens, a recorded
 * history may have a hundred thousand at a time. Whoever changes the bounds of a range that is in the index keeps the
 * ranges disjoint and in order. Invariant: no block is empty.
 */

/** Pages first..last, both inclusive. */
export interface PageRange {
  readonly first: number;
  readonly last: number;
}

/** A block that grows beyond this is cut in two. */
const BLOCK_LENGTH = 64;

/** Ranges of one kind. */
export class RangeIndex<T extends PageRange> {
  readonly #blocks: T[][] = [];

  /** The range that holds `page`. */
  find(page: number): T | undefined {
    return this.firstOverlap(page, page);
  }

  /** The lowest range with a page in first..last. */
  firstOverlap(first: number, last: number): T | undefined {
    const block = this.#blocks[this.#blockAt(first)];
    const range = block?.[positionIn(block, first)];
    return range !== undefined && range.first <= last ? range : undefined;
  }

  /** The ranges with a page in first..last, ascending. */
  overlapping(first: number, last: number): T[] {
    const found: T[] = [];
    let blockAt = this.#blockAt(first);
    let block = this.#blocks[blockAt];
    let position = block === undefined ? 0 : positionIn(block, first);
    while (block !== undefined) {
      for (; position < block.length; position++) {
        const range = block[position];
        if (range === undefined || range.first > last) return found;
        found.push(range);
      }
      block = this.#blocks[++blockAt];
      position = 0;
    }
    return found;
  }

  /** Adds a range that overlaps none. */
  insert(range: T): void {
    const at = Math.min(this.#blockAt(range.first), this.#blocks.length - 1);
    const block = this.#blocks[at];
    if (block === undefined) {
      this.#blocks.push([range]);
      return;
    }
    block.splice(positionIn(block, range.first), 0, range);
    if (block.length > BLOCK_LENGTH) this.#blocks.splice(at + 1, 0, block.splice(BLOCK_LENGTH / 2));
  }

  /** Removes the range that is there. */
  remove(range: T): void {
    const at = this.#blockAt(range.first);
    const block = this.#blocks[at];
    block?.splice(positionIn(block, range.first), 1);
    if (block?.length === 0) this.#blocks.splice(at, 1);
  }

  /** Position of the first block with a range that ends at or behind `page`. */
  #blockAt(page: number): number {
    const blocks = this.#blocks;
    let low = 0;
    let high = blocks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const block = blocks[middle];
      const range = block?.[block.length - 1];
      if (range !== undefined && range.last < page) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Position of the first range of a block that ends at or behind `page`. */
function positionIn(block: readonly PageRange[], page: number): number {
  let low = 0;
  let high = block.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const range = block[middle];
    if (range !== undefined && range.last < page) low = middle + 1;
    else high = middle;
  }
  return low;
}
