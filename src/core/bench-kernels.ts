/**
 * The loops `iovaduct bench` measures and compares with C: page-table operations over the first n 4 KiB pages
 * (engineering.md D2, D3). They hold no clock and check what they do, so that a fast wrong answer cannot pass for a
 * fast one.
 *
 * Input page i maps to page i + 1: never aligned to a block, so every leaf is a page. All leaves have DBM and are
 * clean.
 */
import { invariant } from '../runtime/task.js';
import type { Arena } from './arena.js';
import { Bitmap } from './bitmap.js';
import type { Gather } from './page-table.js';
import { PageTable, pageSizesOf } from './page-table.js';
import { TableWalker, WALK_LEAF } from './table-walk.js';

/** What the loops work on: a 48-bit, 4-level stage-1 table, a walker, a bitmap of one bit for each page. */
export interface BenchSetup {
  readonly table: PageTable;
  readonly walker: TableWalker;
  readonly bitmap: Bitmap;
}

const GRANULE_SHIFT = 12;
const PA_SKEW = 1;
const AF = 1 << 10;
const AP_RDONLY = 1 << 7;
const DBM_HI = 1 << (51 - 32);
const ATTR_LO = AF | AP_RDONLY;

/** Prepares for loops over up to `n` pages. Throws when the arena is too small: n / 512 kernel frames and some. */
export function prepareBench(arena: Arena, n: number): BenchSetup {
  const pageSizes = pageSizesOf(GRANULE_SHIFT);
  const table = PageTable.create(arena, {
    stage: 1,
    granuleShift: GRANULE_SHIFT,
    inputBits: 48,
    outputBits: 48,
    pageSizes,
  });
  const bitmap = Bitmap.create(arena, n);
  if (typeof table === 'number' || typeof bitmap === 'number') throw new RangeError('arena too small');
  return { table, walker: new TableWalker(arena), bitmap };
}

/** Frees what {@link prepareBench} made. */
export function finishBench({ table, bitmap }: BenchSetup): void {
  table.destroy();
  bitmap.destroy();
}

/** Maps n pages, one call for each table. */
export function mapRange({ table }: BenchSetup, n: number): void {
  const gather: Gather = { head: 0 };
  for (let done = 0; done < n;) {
    const step = table.mapStep(done, done + PA_SKEW, n - done, ATTR_LO, DBM_HI, gather);
    invariant(step > 0, () => `mapRange: ${step} at page ${done}`);
    done += step;
  }
}

/** Unmaps n pages, one call for each table, and frees the tables. */
export function unmapRange({ table }: BenchSetup, n: number): void {
  const gather: Gather = { head: 0 };
  for (let done = 0; done < n;) {
    const step = table.unmapStep(done, n - done, gather);
    invariant(step > 0, () => `unmapRange: ${step} at page ${done}`);
    done += step;
  }
  table.freeGathered(gather);
}

/** Maps n pages, one call for each page. */
export function mapEach({ table }: BenchSetup, n: number): void {
  const gather: Gather = { head: 0 };
  for (let page = 0; page < n; page++) {
    const step = table.mapStep(page, page + PA_SKEW, 1, ATTR_LO, DBM_HI, gather);
    invariant(step === 1, 'mapEach');
  }
}

/** Unmaps n pages, one call for each page. Tables stay. */
export function unmapEach({ table }: BenchSetup, n: number): void {
  const gather: Gather = { head: 0 };
  for (let page = 0; page < n; page++) {
    const step = table.unmapStep(page, 1, gather);
    invariant(step === 1, 'unmapEach');
  }
}

/** Walks n mapped pages in ascending order as hardware does, one call for each page. */
export function walkSequential({ table, walker }: BenchSetup, n: number): void {
  const { rootAddress, concatenation, startLevel, granuleShift } = table;
  for (let page = 0; page < n; page++) {
    const status = walker.walk(rootAddress, concatenation, startLevel, granuleShift, page);
    invariant(status === WALK_LEAF && walker.outPfn === page + PA_SKEW, 'walkSequential');
  }
}

/** Makes every `interval`-th of n mapped pages dirty, as hardware does: by compare-and-swap of its descriptor. */
export function dirtyPages({ table, walker }: BenchSetup, n: number, interval: number): void {
  const { rootAddress, concatenation, startLevel, granuleShift } = table;
  for (let page = 0; page < n; page += interval) {
    walker.walk(rootAddress, concatenation, startLevel, granuleShift, page);
    const { descPfn, descOffset, descLo, descHi } = walker;
    const status = walker.cas(descPfn, descOffset, descLo, descHi, descLo & ~AP_RDONLY, descHi);
    invariant(status === WALK_LEAF, 'dirtyPages');
  }
}

/** Reads and clears the dirty state of n mapped pages in one call: how many bits the bitmap has now. */
export function dirtyScan({ table, bitmap }: BenchSetup, n: number): number {
  const walked = table.readDirty(0, n, bitmap.offset, 0, GRANULE_SHIFT, false);
  invariant(walked === n, () => `dirtyScan: ${walked} of ${n} pages`);
  return bitmap.count(0, n);
}
