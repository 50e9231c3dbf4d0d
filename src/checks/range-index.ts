/**
 * Range index: disjoint ranges of pages in ascending order, searched by page.
 *
 * A sorted array: in a run there are tens of ranges, in a recorded history some thousands at a time. Whoever changes the
 * bounds of a range that is in the index keeps the ranges disjoint and in order.
 */

/** Pages first..last, both inclusive. */
export interface PageRange {
  readonly first: number;
  readonly last: number;
}

/** Ranges of one kind. */
export class RangeIndex<T extends PageRange> {
  readonly #ranges: T[] = [];

  get size(): number {
    return this.#ranges.length;
  }

  /** The range at a position; undefined behind the end. */
  at(position: number): T | undefined {
    return this.#ranges[position];
  }

  /** Position of the first range that ends at or behind `page`. */
  position(page: number): number {
    const ranges = this.#ranges;
    let low = 0;
    let high = ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const range = ranges[middle];
      if (range !== undefined && range.last < page) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The range that holds `page`. */
  find(page: number): T | undefined {
    const range = this.#ranges[this.position(page)];
    return range !== undefined && range.first <= page ? range : undefined;
  }

  /** The lowest range with a page in first..last. */
  firstOverlap(first: number, last: number): T | undefined {
    const range = this.#ranges[this.position(first)];
    return range !== undefined && range.first <= last ? range : undefined;
  }

  /** The ranges with a page in first..last, ascending. */
  overlapping(first: number, last: number): T[] {
    const found: T[] = [];
    for (let position = this.position(first); ; position++) {
      const range = this.#ranges[position];
      if (range === undefined || range.first > last) return found;
      found.push(range);
    }
  }

  /** Adds a range that overlaps none. */
  insert(range: T): void {
    this.replace(this.position(range.first), 0, range);
  }

  /** Removes the range that is there. */
  remove(range: T): void {
    this.replace(this.position(range.first), 1);
  }

  /** Puts ranges, or none, in the place of `count` ranges from a position on. */
  replace(position: number, count: number, ...ranges: T[]): void {
    this.#ranges.splice(position, count, ...ranges);
  }
}
