/**
 * Axes that show a nanosecond beside a second and a page beside a tebibyte: only places where something is get room.
 *
 * Between neighbouring edges the width grows with the logarithm of the distance, so an axis says what comes before what and
 * what lies in what, not how much larger one thing is than another; labels say that. Pure.
 */

/** Values to pixels. */
export interface Scale<T> {
  readonly at: (value: T) => number;
  /** Values that have a place of their own, in order. */
  readonly edges: readonly T[];
}

function compressed<T extends bigint | number>(
  values: Iterable<T>,
  weight: (before: T, after: T) => number,
  from: number,
  width: number,
): Scale<T> {
  const edges = [...new Set(values)].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  const places = new Map<T, number>();
  let sum = 0;
  edges.forEach((edge, index) => {
    const before = edges[index - 1];
    if (before !== undefined) sum += weight(before, edge);
    places.set(edge, sum);
  });
  const scale = sum === 0 ? 0 : width / sum;
  return { at: (value) => from + (places.get(value) ?? 0) * scale, edges };
}

/** An axis of addresses; `at` knows the values it was made of. */
export function addressScale(values: Iterable<bigint>, from: number, width: number): Scale<bigint> {
  return compressed(values, (a, b) => Math.max(Math.log2(Number(b - a)) - 8, 3), from, width);
}

/** The last edge that is not behind a value. */
function placeBefore(edges: readonly number[], value: number): number {
  let low = 0;
  let high = edges.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if ((edges[middle] ?? 0) <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** An axis of virtual time; a value between two that it was made of lies between their places. */
export function timeScale(values: Iterable<number>, from: number, width: number): Scale<number> {
  const { at, edges } = compressed(values, (a, b) => Math.max(Math.log2(b - a) - 4, 1), from, width);
  const known = new Set(edges);
  const between = (value: number): number => {
    const place = placeBefore(edges, value);
    const [a = 0, b = a] = edges.slice(place, place + 2);
    const share = b === a ? 0 : Math.min(Math.max((value - a) / (b - a), 0), 1);
    return at(a) + (at(b) - at(a)) * share;
  };
  return { at: (value) => (known.has(value) ? at(value) : between(value)), edges };
}

/** An axis of virtual time on which twice as long is twice as wide. */
export function linearTimeScale(endNs: number, from: number, width: number): Scale<number> {
  const edges = [...Array(7).keys()].map((index) => Math.round((endNs * index) / 6));
  return { at: (value) => from + (endNs === 0 ? 0 : (value / endNs) * width), edges };
}

/** A label under an axis. */
export interface AxisLabel<T> {
  readonly edge: T;
  readonly x: number;
  readonly text: string;
  readonly anchor: 'start' | 'middle' | 'end';
}

/** Pixels of a letter of a label, and between labels. */
const LETTER = 6.4;
const BETWEEN = 10;

/** The edges whose labels fit beside each other: the last, the first, and what has room between, from the left. */
export function axisLabels<T>({ at, edges }: Scale<T>, textOf: (edge: T, before?: T) => string): AxisLabel<T>[] {
  const [first] = edges;
  const last = edges.at(-1);
  if (first === undefined || last === undefined) return [];
  const end: AxisLabel<T> = { edge: last, x: at(last), text: textOf(last), anchor: 'end' };
  const limit = end.x - end.text.length * LETTER - BETWEEN;
  const found: AxisLabel<T>[] = [];
  let free = at(first);
  for (const edge of edges.slice(0, -1)) {
    const x = at(edge);
    const text = textOf(edge, found.at(-1)?.edge);
    const width = text.length * LETTER;
    const isStart = found.length === 0;
    const from = isStart ? x : x - width / 2;
    if (from < free || from + width > limit) continue;
    found.push({ edge, x, text, anchor: isStart ? 'start' : 'middle' });
    free = from + width + BETWEEN;
  }
  return [...found, end];
}

/** Something between two places, packed by {@link packed}. */
export interface Extent {
  readonly from: number;
  readonly to: number;
}

/** Puts what would overlap into different rows; the fewest rows that do. */
export function packed<T extends Extent>(items: readonly T[], gap = 0): T[][] {
  const rows: { end: number; items: T[] }[] = [];
  for (const item of [...items].sort((a, b) => a.from - b.from || a.to - b.to)) {
    const row = rows.find(({ end }) => end + gap <= item.from);
    if (row === undefined) rows.push({ end: item.to, items: [item] });
    else {
      row.items.push(item);
      row.end = item.to;
    }
  }
  return rows.map((row) => row.items);
}

interface Range {
  readonly start: string;
  readonly last: string;
}

function meets(a: readonly Range[], b: readonly Range[]): boolean {
  return a.some((one) =>
    b.some((other) => BigInt(one.start) <= BigInt(other.last) && BigInt(other.start) <= BigInt(one.last)),
  );
}

/**
 * Rows in which no range hides another. Groups that come first get the upper rows, and a group shares a row with those above
 * it only as a whole, so that its ranges stay beside each other.
 */
export function layered<T extends Range>(groups: readonly (readonly T[])[]): T[][] {
  const rows: T[][] = [];
  for (const group of groups) {
    const own: T[][] = [];
    for (const item of group) {
      const row = own.find((found) => !meets(found, [item]));
      if (row === undefined) own.push([item]);
      else row.push(item);
    }
    for (const items of own) {
      const row = rows.find((found) => !meets(found, items));
      if (row === undefined) rows.push(items);
      else row.push(...items);
    }
  }
  const byAddress = (a: T, b: T): number => (BigInt(a.start) < BigInt(b.start) ? -1 : 1);
  return rows.map((row) => row.sort(byAddress));
}

/** Joins ticks that are closer than `gap` pixels to the first of their group. */
export function clustered<T extends { readonly x: number }>(ticks: readonly T[], gap: number): T[][] {
  const groups: T[][] = [];
  for (const tick of [...ticks].sort((a, b) => a.x - b.x)) {
    const group = groups.at(-1);
    if (group?.[0] !== undefined && tick.x - group[0].x < gap) group.push(tick);
    else groups.push([tick]);
  }
  return groups;
}
