/**
 * Run-length coded page contents: cutting, counting, comparing.
 *
 * A run (PageRun of src/uapi/syscall.ts) says what consecutive pages hold without holding it: a stamp names a page's
 * content. Everything here costs what the runs cost, never what the pages would. Lists are sorted by page and disjoint.
 * Pure.
 */
import { sameBytes } from '../layout/bytes.js';
import type { PageRun } from '../uapi/syscall.js';
import { GUEST_PAGE_BYTES, type PageRange } from '../vmm/page-set.js';

type StampRun = Extract<PageRun, { readonly stamp: number }>;

const MASK_64 = (1n << 64n) - 1n;

function endOf(range: PageRange): number {
  return range.firstPage + range.pages;
}

/** The part of a run from `firstPage` on, `pages` long; it must lie inside the run. */
function sliceRun(run: PageRun, firstPage: number, pages: number): PageRun {
  if ('bytes' in run) return run;
  const stamp = run.stamp + run.step * (firstPage - run.firstPage);
  return { firstPage, pages, stamp, step: run.step };
}

/** The parts of `runs` that lie in `ranges`. */
export function restrictRuns(runs: readonly PageRun[], ranges: readonly PageRange[]): PageRun[] {
  const parts: PageRun[] = [];
  let next = 0;
  for (const range of ranges) {
    for (let i = next; i < runs.length; i++) {
      const run = runs[i];
      if (run === undefined || run.firstPage >= endOf(range)) break;
      if (endOf(run) <= range.firstPage) {
        next = i + 1;
        continue;
      }
      const first = Math.max(run.firstPage, range.firstPage);
      parts.push(sliceRun(run, first, Math.min(endOf(run), endOf(range)) - first));
    }
  }
  return parts;
}

function isZeroBytes(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

/** A page written with zeroes becomes the zero stamp: what a sender of migration streams looks for (zero pages). */
export function withZeroPages(runs: readonly PageRun[]): PageRun[] {
  return runs.map((run) =>
    'bytes' in run && isZeroBytes(run.bytes) ? { firstPage: run.firstPage, pages: 1, stamp: 0, step: 0 } : run,
  );
}

/** Pages of `runs` that are all zeroes. */
export function countZeroPages(runs: readonly PageRun[]): number {
  let zero = 0;
  for (const run of runs) {
    if ('bytes' in run) zero += isZeroBytes(run.bytes) ? 1 : 0;
    else if (run.stamp === 0) zero += run.step === 0 ? run.pages : 1;
  }
  return zero;
}

export function countPages(runs: readonly PageRun[]): number {
  return runs.reduce((sum, run) => sum + run.pages, 0);
}

/**
 * The page a stamp stands for: zeroes for 0, else 512 little-endian words of the splitmix64 stream seeded with it (the
 * contract of stamps, src/core/wasm/contents.as.ts).
 */
export function pageOfStamp(stamp: number): Uint8Array {
  const bytes = new Uint8Array(GUEST_PAGE_BYTES);
  if (stamp === 0) return bytes;
  const view = new DataView(bytes.buffer);
  let state = BigInt(stamp);
  for (let offset = 0; offset < GUEST_PAGE_BYTES; offset += 8) {
    state = (state + 0x9e3779b97f4a7c15n) & MASK_64;
    let word = ((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK_64;
    word = ((word ^ (word >> 27n)) * 0x94d049bb133111ebn) & MASK_64;
    view.setBigUint64(offset, word ^ (word >> 31n), true);
  }
  return bytes;
}

function bytesOf(run: PageRun): Uint8Array {
  return 'bytes' in run ? run.bytes : pageOfStamp(run.stamp);
}

/** Pages of two stamp runs over the same range that differ: all, none, or all but the one page where they cross. */
function differingStamps(a: StampRun, b: StampRun): PageRange[] {
  const { firstPage, pages } = a;
  if (a.step === b.step || pages === 1) return a.stamp === b.stamp ? [] : [{ firstPage, pages }];
  const crossing = (b.stamp - a.stamp) / (a.step - b.step);
  if (!Number.isInteger(crossing) || crossing < 0 || crossing >= pages) return [{ firstPage, pages }];
  const around = [
    { firstPage, pages: crossing },
    { firstPage: firstPage + crossing + 1, pages: pages - crossing - 1 },
  ];
  return around.filter((range) => range.pages > 0);
}

function differingPages(a: PageRun, b: PageRun): PageRange[] {
  if (!('bytes' in a) && !('bytes' in b)) return differingStamps(a, b);
  return sameBytes(bytesOf(a), bytesOf(b)) ? [] : [{ firstPage: a.firstPage, pages: 1 }];
}

/**
 * Pages that differ between two lists of runs over the same pages.
 *
 * @throws RangeError when the lists do not cover the same pages.
 */
export function compareRuns(a: readonly PageRun[], b: readonly PageRun[]): PageRange[] {
  const differences: PageRange[] = [];
  let i = 0;
  let j = 0;
  let page = a[0]?.firstPage ?? 0;
  for (;;) {
    const left = a[i];
    const right = b[j];
    if (left === undefined && right === undefined) return differences;
    if (left === undefined || right === undefined) throw new RangeError('the two lists end at different pages');
    page = Math.max(page, left.firstPage);
    if (left.firstPage > page || right.firstPage > page || endOf(left) <= page || endOf(right) <= page)
      throw new RangeError(`the two lists do not both have page ${page}`);
    const pages = Math.min(endOf(left), endOf(right)) - page;
    differences.push(...differingPages(sliceRun(left, page, pages), sliceRun(right, page, pages)));
    page += pages;
    if (endOf(left) === page) i++;
    if (endOf(right) === page) j++;
  }
}
