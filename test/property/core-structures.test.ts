import fc from 'fast-check';
import { expect, it } from 'vitest';
import { Bitmap } from '../../src/core/bitmap.js';
import type { Interval } from '../../src/core/interval-index.js';
import { IntervalIndex } from '../../src/core/interval-index.js';
import { PhysicalDirectory, stampEntry } from '../../src/core/physical-directory.js';
import { ERRNO } from '../../src/uapi/errno.js';
import { made, smallArena } from '../core/fixtures.js';

const TOP = 2n ** 64n - 1n;
const address = fc.oneof(
  fc.bigInt({ min: 0n, max: 400n }),
  fc.bigInt({ min: TOP - 400n, max: TOP }),
  fc.bigInt({ min: 2n ** 63n - 200n, max: 2n ** 63n + 200n }),
);

it('interval index: behaves like a sorted array, and frees every node', () => {
  const step = fc.record({ insert: fc.boolean(), start: address, length: fc.bigInt({ min: 0n, max: 12n }) });
  const arena = smallArena(1, 512);
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), fc.array(address, { maxLength: 20 }), (steps, probes) => {
      const index = made(IntervalIndex.create(arena));
      let model: Interval[] = [];
      steps.forEach(({ insert, start, length }, value) => {
        if (insert) {
          const last = start + length > TOP ? TOP : start + length;
          const overlaps = model.some((other) => other.start <= last && start <= other.last);
          expect(index.insert(start, last, value)).toBe(overlaps ? -ERRNO.EEXIST : 0);
          if (!overlaps) model.push({ start, last, value });
        } else {
          const victim = model.find((other) => other.start === start);
          expect(index.remove(start)).toBe(victim?.value);
          model = model.filter((other) => other !== victim);
        }
      });
      const byStart = (a: Interval, b: Interval): number => (a.start < b.start ? -1 : 1);
      expect([...index.intervals()]).toEqual(model.toSorted(byStart));
      for (const probe of probes) {
        const expected = model.toSorted(byStart).find((interval) => interval.last >= probe);
        expect(index.findFirstAtOrAfter(probe)).toEqual(expected);
      }
      index.destroy();
      expect(arena.storageFramesInUse).toBe(0);
    }),
    { numRuns: 100 },
  );
});

it('interval index: stays sound through growth and shrinking over three levels', () => {
  const arena = smallArena(1, 2048);
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 2 ** 30 }), fc.integer({ min: 20_000, max: 30_000 }), (seed, size) => {
      const index = made(IntervalIndex.create(arena));
      const starts = new Set<number>();
      let state = seed;
      const random = (): number => (state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff);
      const grow = (goal: number): void => {
        while (starts.size < goal) {
          const start = random() >>> 3;
          if (starts.has(start)) continue;
          starts.add(start);
          if (index.insert(BigInt(start) * 4n, BigInt(start) * 4n + 3n, start) !== 0) throw new Error('insert failed');
        }
      };
      const shrink = (goal: number): void => {
        for (const start of [...starts].slice(0, starts.size - goal)) {
          if (index.remove(BigInt(start) * 4n) !== start) throw new Error('remove failed');
          starts.delete(start);
        }
      };
      grow(size);
      shrink(300);
      grow(2000);
      shrink(700);
      const sorted = [...starts].sort((a, b) => a - b);
      expect([...index.intervals()].map(({ value }) => value)).toEqual(sorted);
      for (let n = 0; n < 500; n++) {
        const probe = random() >>> 3;
        const expected = sorted.find((start) => start >= probe);
        expect(index.findFirstAtOrAfter(BigInt(probe) * 4n)?.value).toBe(expected);
      }
      expect(arena.storageFramesInUse).toBeLessThan(20);
      index.destroy();
      expect(arena.storageFramesInUse).toBe(0);
    }),
    { numRuns: 4 },
  );
});

it('bitmap: set, clear, find and count like a set of numbers', () => {
  const bits = 300;
  const bitmap = made(Bitmap.create(smallArena(1, 4), bits));
  const range = fc.record({
    set: fc.boolean(),
    first: fc.integer({ min: 0, max: bits - 1 }),
    length: fc.integer({ min: 0, max: bits }),
  });
  fc.assert(
    fc.property(fc.array(range, { maxLength: 20 }), fc.integer({ min: 0, max: bits - 1 }), (ranges, probe) => {
      bitmap.clear();
      const model = new Set<number>();
      for (const { set, first, length } of ranges) {
        const count = Math.min(length, bits - first);
        if (set) bitmap.setRange(first, count);
        else bitmap.clear(first, count);
        for (let bit = first; bit < first + count; bit++)
          if (set) model.add(bit);
          else model.delete(bit);
      }
      const sorted = [...model].sort((a, b) => a - b);
      expect(bitmap.nextSet(probe)).toBe(sorted.find((bit) => bit >= probe) ?? -1);
      expect(bitmap.count(0, probe)).toBe(sorted.filter((bit) => bit < probe).length);
      expect(bitmap.count()).toBe(sorted.length);
      const inBytes = [...bitmap.bytes()].flatMap((byte, n) =>
        [...Array(8).keys()].filter((k) => (byte >> k) & 1).map((k) => n * 8 + k),
      );
      expect(inBytes).toEqual(sorted);
    }),
  );
});

it('frame allocator: blocks never overlap, are aligned, and merge back', () => {
  const frames = 200;
  const step = fc.record({ order: fc.integer({ min: 0, max: 5 }), free: fc.boolean(), pick: fc.nat() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
      const arena = smallArena(frames, 1);
      const owner = new Map<number, number>();
      const blocks: { frame: number; order: number }[] = [];
      for (const { order, free, pick } of steps) {
        const victim = free ? blocks.splice(pick % Math.max(1, blocks.length), 1)[0] : undefined;
        if (victim !== undefined) {
          for (let n = 0; n < 2 ** victim.order; n++) owner.delete(victim.frame + n);
          arena.freeKernel(victim.frame, victim.order);
          continue;
        }
        const frame = arena.allocKernel(order);
        if (frame === 0) continue;
        expect((frame - arena.kernelFirst) % 2 ** order).toBe(0);
        for (let n = 0; n < 2 ** order; n++) {
          expect(owner.has(frame + n)).toBe(false);
          expect(arena.frameToPfn(frame + n)).not.toBe(-1);
          owner.set(frame + n, frame);
        }
        blocks.push({ frame, order });
      }
      expect(arena.kernelFramesInUse).toBe(owner.size);
      for (const { frame, order } of blocks) arena.freeKernel(frame, order);
      // 200 = 128 + 64 + 8: all free again means these blocks can be had again.
      for (const order of [7, 6, 3]) expect(arena.allocKernel(order)).not.toBe(0);
      expect(arena.allocKernel()).toBe(0);
    }),
    { numRuns: 80 },
  );
});

it('physical directory: behaves like a map from page to entry', () => {
  const pfn = fc.oneof(fc.integer({ min: 0, max: 1100 }), fc.integer({ min: 2 ** 40 - 600, max: 2 ** 40 - 1 }));
  const step = fc.record({ pfn, stamp: fc.option(fc.integer({ min: 0, max: 9 })) });
  const arena = smallArena(1, 256);
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const directory = new PhysicalDirectory(arena);
      const model = new Map<number, number>();
      for (const { pfn: page, stamp } of steps) {
        if (stamp === null) {
          expect(directory.clear(page)).toBe(model.get(page) ?? 0);
          model.delete(page);
        } else {
          expect(directory.setStamp(page, stamp)).toBe(0);
          model.set(page, stampEntry(stamp));
        }
      }
      const pages = [...directory.pages(0, 2 ** 40 - 1)];
      expect(pages).toEqual([...model.keys()].sort((a, b) => a - b));
      for (const page of pages) expect(directory.clear(page)).toBe(model.get(page));
      directory.trim();
      expect(arena.storageFramesInUse).toBe(0);
    }),
    { numRuns: 80 },
  );
});
