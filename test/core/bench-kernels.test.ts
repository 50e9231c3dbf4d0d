import { expect, it } from 'vitest';
import * as bench from '../../src/core/bench-kernels.js';
import { smallArena } from './fixtures.js';

it('runs every loop on pages of 4 KiB and leaves nothing behind', () => {
  const arena = smallArena();
  const setup = bench.prepareBench(arena, 5000);
  for (const [map, unmap] of [
    [bench.mapRange, bench.unmapRange],
    [bench.mapEach, bench.unmapEach],
  ] as const) {
    map(setup, 5000);
    expect(setup.table.nextLeaf(0)).toMatchObject({ level: 3, paPage: 1 });
    bench.walkSequential(setup, 5000);
    setup.bitmap.clear();
    expect(bench.dirtyScan(setup, 5000)).toBe(0);
    bench.dirtyPages(setup, 5000, 100);
    expect(bench.dirtyScan(setup, 5000)).toBe(50);
    unmap(setup, 5000);
    expect(setup.table.nextLeaf(0)).toBeUndefined();
  }
  expect(() => bench.unmapEach(setup, 1)).toThrow(/unmapEach/);
  bench.finishBench(setup);
  expect([arena.kernelFramesInUse, arena.storageFramesInUse]).toEqual([0, 0]);
});
