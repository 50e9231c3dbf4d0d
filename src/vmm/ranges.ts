/**
 * Inclusive address ranges and the little algebra a VMM needs on them.
 *
 * Lists given and returned are sorted by start and disjoint unless said otherwise; `last` is inclusive so that the top of
 * the 64-bit space can be said. Everything is pure.
 */

/** An inclusive range of addresses. */
export interface Range {
  readonly start: bigint;
  readonly last: bigint;
}

/** The smallest page of any IOMMU here. */
export const PAGE_BYTES = 4096n;
export const KIB = 1n << 10n;
export const MIB = 1n << 20n;
export const GIB = 1n << 30n;
export const TIB = 1n << 40n;
export const U64_LAST = (1n << 64n) - 1n;

export function lengthOf(range: Range): bigint {
  return range.last - range.start + 1n;
}

export function alignDown(value: bigint, unit: bigint): bigint {
  return value - (value % unit);
}

export function alignUp(value: bigint, unit: bigint): bigint {
  return alignDown(value + unit - 1n, unit);
}

export function overlaps(a: Range, b: Range): boolean {
  return a.start <= b.last && b.start <= a.last;
}

/** The common part of two ranges; undefined when they are disjoint. */
export function intersection(a: Range, b: Range): Range | undefined {
  if (!overlaps(a, b)) return undefined;
  return { start: a.start > b.start ? a.start : b.start, last: a.last < b.last ? a.last : b.last };
}

/** What is left of `range` without `holes` (in any order, they may overlap). */
export function subtract(range: Range, holes: readonly Range[]): Range[] {
  const left: Range[] = [];
  let cursor = range.start;
  for (const hole of [...holes].sort(byStart)) {
    if (hole.last < cursor) continue;
    if (hole.start > range.last) break;
    if (hole.start > cursor) left.push({ start: cursor, last: hole.start - 1n });
    cursor = hole.last + 1n;
  }
  if (cursor <= range.last) left.push({ start: cursor, last: range.last });
  return left;
}

/** What lies in 0..2^64-1 outside `usable`: the exact complement of IOMMU_IOAS_IOVA_RANGES. */
export function complement(usable: readonly Range[]): Range[] {
  return subtract({ start: 0n, last: U64_LAST }, usable);
}

/** The smallest range of whole units that holds `range`. */
export function widenTo(range: Range, unit: bigint): Range {
  return { start: alignDown(range.start, unit), last: alignUp(range.last + 1n, unit) - 1n };
}

/** Order by start, then by last. */
export function byStart(a: Range, b: Range): number {
  if (a.start !== b.start) return a.start < b.start ? -1 : 1;
  return a.last === b.last ? 0 : a.last < b.last ? -1 : 1;
}
