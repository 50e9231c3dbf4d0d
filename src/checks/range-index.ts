/**
 * Range index: disjoint ranges of pages in ascending order, searched by page.
 *
 * A list of short sorted blocks, so that a change moves little however many ranges there are: a run has tens, a recorded
 * history may have a hundred thousand at a time. Searches go by where ranges begin, kept apart from the ranges because
 * touching a range costs a cache miss. Whoever moves the end of a range that is in the index keeps the ranges disjoint.
 * Invariant: no block is empty.
 */

/** Pages first..last, both inclusive. `first` never changes. */
export interface PageRange {
  readonly first: number;
  readonly last: number;
}

interface Block<T> {
  readonly firsts: number[];
  readonly ranges: T[];
}

/** A block that grows beyond this is cut in two. */
const BLOCK_LENGTH = 64;

/** Position of the last of the ascending numbers that is not above `page`; -1 when all are. */
function lastAtOrBelow(firsts: readonly number[], page: number): number {
  let low = 0;
  let high = firsts.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((firsts[middle] ?? Infinity) <= page) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Ranges of one kind. */
export class RangeIndex<T extends PageRange> {
  readonly #blocks: Block<T>[] = [];
  /** Where the blocks begin. */
  readonly #heads: number[] = [];

  /** The range that holds `page`. */
  find(page: number): T | undefined {
    const block = this.#blocks[lastAtOrBelow(this.#heads, page)];
    if (block === undefined) return undefined;
    const range = block.ranges[lastAtOrBelow(block.firsts, page)];
    return range !== undefined && range.last >= page ? range : undefined;
  }

  /** The lowest range with a page in first..last. */
  firstOverlap(first: number, last: number): T | undefined {
    return this.#overlapping(first, last, 1)[0];
  }

  /** The ranges with a page in first..last, ascending. */
  overlapping(first: number, last: number): T[] {
    return this.#overlapping(first, last, Infinity);
  }

  /** Adds a range that overlaps none. */
  insert(range: T): void {
    const at = Math.max(0, lastAtOrBelow(this.#heads, range.first));
    const block = this.#blocks[at];
    if (block === undefined) {
      this.#blocks.push({ firsts: [range.first], ranges: [range] });
      this.#heads.push(range.first);
      return;
    }
    const position = lastAtOrBelow(block.firsts, range.first) + 1;
    block.firsts.splice(position, 0, range.first);
    block.ranges.splice(position, 0, range);
    this.#heads[at] = block.firsts[0] ?? range.first;
    if (block.firsts.length > BLOCK_LENGTH) this.#cut(at, block);
  }

  /** Removes the range that is there. */
  remove(range: T): void {
    const at = lastAtOrBelow(this.#heads, range.first);
    const block = this.#blocks[at];
    if (block === undefined) return;
    const position = lastAtOrBelow(block.firsts, range.first);
    block.firsts.splice(position, 1);
    block.ranges.splice(position, 1);
    const [head] = block.firsts;
    if (head !== undefined) {
      this.#heads[at] = head;
      return;
    }
    this.#blocks.splice(at, 1);
    this.#heads.splice(at, 1);
  }

  #overlapping(first: number, last: number, atMost: number): T[] {
    const found: T[] = [];
    let at = Math.max(0, lastAtOrBelow(this.#heads, first));
    let block = this.#blocks[at];
    let position = block === undefined ? 0 : Math.max(0, lastAtOrBelow(block.firsts, first));
    while (block !== undefined) {
      for (; position < block.ranges.length; position++) {
        const range = block.ranges[position];
        if (range === undefined || range.first > last || found.length === atMost) return found;
        if (range.last >= first) found.push(range);
      }
      block = this.#blocks[++at];
      position = 0;
    }
    return found;
  }

  #cut(at: number, block: Block<T>): void {
    const firsts = block.firsts.splice(BLOCK_LENGTH / 2);
    this.#blocks.splice(at + 1, 0, { firsts, ranges: block.ranges.splice(BLOCK_LENGTH / 2) });
    this.#heads.splice(at + 1, 0, firsts[0] ?? 0);
  }
}
