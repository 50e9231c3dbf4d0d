/** Page-table work of src/core against the C reference: nanoseconds per page, side by side. */
import { Arena } from '../../core/arena.js';
import {
  dirtyPages,
  dirtyScan,
  finishBench,
  mapEach,
  mapRange,
  prepareBench,
  unmapEach,
  unmapRange,
  walkSequential,
} from '../../core/bench-kernels.js';
import type { PageTableTimes } from './reference.js';

const KERNEL_FRAMES = 16384;

/** Best of `repeats` rounds over `pages` pages. Every page is dirty when the scan starts, as in the reference. */
export function measureCore(pages: number, repeats: number): PageTableTimes {
  const arena = Arena.create({ kernelFrames: KERNEL_FRAMES, kernelBasePfn: 0x80000 });
  const best = {
    mapEach: Infinity,
    unmapEach: Infinity,
    mapRange: Infinity,
    unmapRange: Infinity,
    walk: Infinity,
    dirtyScan: Infinity,
  };
  const note = (row: keyof PageTableTimes, work: () => void): void => {
    const start = performance.now();
    work();
    best[row] = Math.min(best[row], ((performance.now() - start) * 1e6) / pages);
  };
  for (let round = 0; round < repeats; round++) {
    const setup = prepareBench(arena, pages);
    note('mapEach', () => mapEach(setup, pages));
    note('walk', () => walkSequential(setup, pages));
    dirtyPages(setup, pages, 1);
    note('dirtyScan', () => dirtyScan(setup, pages));
    note('unmapEach', () => unmapEach(setup, pages));
    note('mapRange', () => mapRange(setup, pages));
    note('unmapRange', () => unmapRange(setup, pages));
    finishBench(setup);
  }
  return best;
}
