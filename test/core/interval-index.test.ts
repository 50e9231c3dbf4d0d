import { describe, expect, it } from 'vitest';
import { IntervalIndex } from '../../src/core/interval-index.js';
import { ERRNO } from '../../src/uapi/errno.js';
import { made, smallArena } from './fixtures.js';

const TOP = 2n ** 64n - 1n;

describe('IntervalIndex', () => {
  it('covers the whole 64-bit space', () => {
    const arena = smallArena(1, 16);
    const index = made(IntervalIndex.create(arena));
    expect(index.findFirstAtOrAfter(0n)).toBeUndefined();
    expect(index.insert(0n, TOP, 4_000_000_000)).toBe(0);
    expect(index.find(TOP)).toEqual({ start: 0n, last: TOP, value: 4_000_000_000 });
    expect(index.insert(5n, 5n, 1)).toBe(-ERRNO.EEXIST);
    expect(index.remove(0n)).toBe(4_000_000_000);
    expect(index.insert(TOP, TOP, 1)).toBe(0);
    expect(index.insert(0n, 0n, 2)).toBe(0);
    expect([...index.intervals()].map(({ value }) => value)).toEqual([2, 1]);
    expect(index.next({ start: TOP, last: TOP, value: 1 })).toBeUndefined();
    expect(index.find(1n)).toBeUndefined();
    expect(index.findFirstAtOrAfter(1n)?.start).toBe(TOP);
  });

  it('refuses overlaps and inverted intervals', () => {
    const index = made(IntervalIndex.create(smallArena(1, 16)));
    index.insert(100n, 199n, 1);
    for (const [start, last] of [
      [50n, 100n],
      [199n, 300n],
      [120n, 130n],
      [0n, TOP],
    ] as const) {
      expect(index.insert(start, last, 2)).toBe(-ERRNO.EEXIST);
    }
    expect(index.insert(3n, 2n, 2)).toBe(-ERRNO.EINVAL);
    expect(index.insert(200n, 300n, 2)).toBe(0);
    expect(index.insert(0n, 99n, 3)).toBe(0);
    expect(index.size).toBe(3);
    expect([...index.intervals(199n, 200n)].map(({ value }) => value)).toEqual([1, 2]);
  });

  it('changes values and removes only by exact start', () => {
    const index = made(IntervalIndex.create(smallArena(1, 16)));
    index.insert(16n, 31n, 1);
    expect(index.setValue(16n, 2 ** 32 - 1)).toBe(0);
    expect(index.setValue(17n, 5)).toBe(-ERRNO.ENOENT);
    expect(index.remove(17n)).toBeUndefined();
    expect(index.remove(16n)).toBe(2 ** 32 - 1);
    expect(index.remove(16n)).toBeUndefined();
  });

  it('answers ENOMEM without changing anything when a split cannot be had', () => {
    const arena = smallArena(1, 1);
    const index = made(IntervalIndex.create(arena));
    let count = 0n;
    while (index.insert(count * 16n, count * 16n + 7n, Number(count)) === 0) count++;
    expect(count).toBeGreaterThan(100n);
    expect(index.insert(count * 16n, count * 16n, 0)).toBe(-ERRNO.ENOMEM);
    expect(index.size).toBe(Number(count));
    expect([...index.intervals()].map(({ value }) => value)).toEqual([...Array(Number(count)).keys()]);
  });

  it('gives frames back as it empties, and all of them when destroyed', () => {
    const arena = smallArena(1, 2048);
    const index = made(IntervalIndex.create(arena));
    const count = 60_000;
    for (let n = 0; n < count; n++) expect(index.insert(BigInt(n) << 12n, (BigInt(n) << 12n) | 0xfffn, n)).toBe(0);
    const full = arena.storageFramesInUse;
    // 7919 is coprime to the count: every interval once, in an order far from sorted.
    for (let n = 0; n < count; n++) {
      const at = (n * 7919) % count;
      expect(index.remove(BigInt(at) << 12n)).toBe(at);
    }
    expect(full).toBeGreaterThan(300);
    expect([index.size, arena.storageFramesInUse]).toEqual([0, 1]);
    for (let n = 0; n < 1000; n++) index.insert(BigInt(n), BigInt(n), n);
    index.destroy();
    expect(arena.storageFramesInUse).toBe(0);
  });
});
