/** Small arenas and tables for the tests of this room. */
import { Arena } from '../../src/core/arena.js';
import type { PageTableOptions } from '../../src/core/page-table.js';
import { PageTable, pageSizesOf } from '../../src/core/page-table.js';

export const KERNEL_BASE_PFN = 0x80000;

export function smallArena(kernelFrames = 2048, storageFrames = 2048): Arena {
  return Arena.create({ kernelFrames, storageFrames, kernelBasePfn: KERNEL_BASE_PFN });
}

/** Unwraps a constructor that may answer an errno. */
export function made<T>(value: T | number): T {
  if (typeof value === 'number') throw new Error(`errno ${value}`);
  return value;
}

export function newTable(arena: Arena, options: Partial<PageTableOptions> = {}): PageTable {
  const granuleShift = options.granuleShift ?? 12;
  const pageSizes = options.pageSizes ?? pageSizesOf(granuleShift);
  return made(
    PageTable.create(arena, { stage: 1, inputBits: 48, outputBits: 48, ...options, granuleShift, pageSizes }),
  );
}

/** Stage 1: DBM, AF, AP read-write and clean or dirty. */
export const DBM_HI = 1 << (51 - 32);
export const AF = 1 << 10;
export const BIT7 = 1 << 7;

/** Maps a whole range, as a caller without anything to invalidate does. The first errno, or 0. */
export function mapAll(table: PageTable, iova: number, pa: number, pages: number, attrLo = AF, attrHi = 0): number {
  const gather = { head: 0 };
  for (let done = 0; done < pages;) {
    const step = table.mapStep(iova + done, pa + done, pages - done, attrLo, attrHi, gather);
    if (step < 0) return step;
    table.freeGathered(gather);
    done += step;
  }
  return 0;
}

/** Unmaps a whole range, skipping holes: pages that were mapped, or the first errno. */
export function unmapAll(table: PageTable, iova: number, pages: number): number {
  const gather = { head: 0 };
  let unmapped = 0;
  for (let done = 0; done < pages;) {
    const step = table.unmapStep(iova + done, pages - done, gather);
    if (step < 0) return step;
    unmapped += step === 0 ? 0 : table.unmappedPages;
    done += step === 0 ? table.holePages : step;
  }
  table.freeGathered(gather);
  return unmapped;
}
