/**
 * The IOVAs a run works in: few enough pages that threads meet on them all the time.
 *
 * Window 0 is where automatic IOVAs go, from the lowest address up. The others are at different gibibytes, so that sharded locks have something to
 * shard, and one lies across the border of two. The last is for maps of whole 2 MiB regions, which find little room where smaller ones
 * are: there tables of the last level come and go.
 */
import type { RandomStream } from '../runtime/random.js';

/** Pages from `first` on. */
export interface IovaWindow {
  readonly first: number;
  readonly pages: number;
}

const GIB_PAGES = 2 ** 18;
const WINDOW_PAGES = 2048;

export const WINDOWS: readonly IovaWindow[] = [
  { first: 0, pages: WINDOW_PAGES },
  { first: 1 * GIB_PAGES + 512, pages: WINDOW_PAGES },
  { first: 3 * GIB_PAGES - WINDOW_PAGES / 2, pages: WINDOW_PAGES },
  { first: 5 * GIB_PAGES, pages: WINDOW_PAGES },
  { first: 18 * GIB_PAGES, pages: WINDOW_PAGES },
  { first: 20 * GIB_PAGES, pages: 2 * WINDOW_PAGES },
];

/** Pages of a 2 MiB block. */
export const BLOCK_PAGES = 512;

/** Where whole regions are mapped. */
export function blockWindow(): IovaWindow {
  const window = WINDOWS.at(-1);
  if (window === undefined) throw new RangeError('no windows');
  return window;
}

/** One of the windows; thread `number` prefers its own, so that threads are sometimes alone. */
export function pickWindow(random: RandomStream, number: number): IovaWindow {
  const small = WINDOWS.length - 1;
  const index = random.chance(1, 2) ? number % small : random.below(small);
  return WINDOWS[index] ?? random.pick(WINDOWS);
}
