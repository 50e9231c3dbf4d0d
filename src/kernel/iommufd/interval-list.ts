/**
 * A small sorted list of ranges that may overlap: reserved and allowed IOVAs of an address space.
 *
 * There are as many entries as attached devices have regions, so a sorted array is enough; areas, of which there may be
 * very many, live in the B+tree of src/core. Covered by the `iova_rwsem` of its address space.
 */

/** An inclusive range. */
export interface Range {
  readonly start: bigint;
  readonly last: bigint;
}

/** Ranges sorted by start. */
export class IntervalList<T extends Range> {
  #ranges: T[] = [];

  get size(): number {
    return this.#ranges.length;
  }

  insert(range: T): void {
    const place = this.#ranges.findIndex((r) => r.start > range.start);
    this.#ranges.splice(place < 0 ? this.#ranges.length : place, 0, range);
  }

  /** The first range that overlaps start..last. */
  firstOverlap(start: bigint, last: bigint): T | undefined {
    return this.#ranges.find((r) => r.start <= last && r.last >= start);
  }

  removeIf(condition: (range: T) => boolean): void {
    this.#ranges = this.#ranges.filter((range) => !condition(range));
  }

  [Symbol.iterator](): Iterator<T> {
    return this.#ranges[Symbol.iterator]();
  }

  /** The union of all ranges within start..last; touching ones are one. */
  *usedSpans(start: bigint, last: bigint): Generator<Range> {
    let span: Range | undefined;
    for (const range of this.#ranges) {
      if (range.last < start || range.start > last) continue;
      const cut = { start: range.start > start ? range.start : start, last: range.last < last ? range.last : last };
      if (span !== undefined && cut.start <= span.last + 1n) {
        if (cut.last > span.last) span = { start: span.start, last: cut.last };
        continue;
      }
      if (span !== undefined) yield span;
      span = cut;
    }
    if (span !== undefined) yield span;
  }

  /** What no range covers within start..last. */
  *holes(start: bigint, last: bigint): Generator<Range> {
    let at = start;
    for (const span of this.usedSpans(start, last)) {
      if (span.start > at) yield { start: at, last: span.start - 1n };
      at = span.last + 1n;
    }
    if (at <= last) yield { start: at, last };
  }
}
