/** PageSet against a set of numbers. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { CHUNK_PAGES, PageSet } from '../../src/vmm/page-set.js';

const range = fc.tuple(fc.integer({ min: 0, max: 3 * CHUNK_PAGES }), fc.integer({ min: 1, max: 200 }));
const wide = fc.tuple(fc.integer({ min: 0, max: CHUNK_PAGES }), fc.integer({ min: CHUNK_PAGES, max: 2 * CHUNK_PAGES }));

test('holds the pages that were added, once, in order', () => {
  fc.assert(
    fc.property(fc.array(fc.oneof({ weight: 5, arbitrary: range }, wide), { maxLength: 12 }), (ranges) => {
      const set = new PageSet();
      const model = new Set<number>();
      for (const [first, pages] of ranges) {
        set.addRange(first, pages);
        for (let i = 0; i < pages; i++) model.add(first + i);
      }
      const listed = [...set.ranges()].flatMap((r) => Array.from({ length: r.pages }, (_, i) => r.firstPage + i));
      expect(listed).toEqual([...model].sort((a, b) => a - b));
      expect(set.count).toBe(model.size);
      for (const [first] of ranges) expect(set.has(first + 5)).toBe(model.has(first + 5));
    }),
    { numRuns: 60 },
  );
});

test('runs of a chunk are maximal', () => {
  const set = new PageSet();
  for (const page of [3, 4, 5, 31, 32, 33, 64]) set.addRange(page, 1);
  expect(set.rangesOfChunk(0)).toEqual([
    { firstPage: 3, pages: 3 },
    { firstPage: 31, pages: 3 },
    { firstPage: 64, pages: 1 },
  ]);
});

test('a bitmap counts from the lowest bit of its first byte, up to its page count', () => {
  const set = new PageSet();
  set.addBitmap(100, Uint8Array.of(0b1000_0001, 0, 0xff), 18);
  expect([...set.ranges()]).toEqual([
    { firstPage: 100, pages: 1 },
    { firstPage: 107, pages: 1 },
    { firstPage: 116, pages: 2 },
  ]);
});

test('a TiB of pages costs a chunk list, and taking empties', () => {
  const set = new PageSet();
  set.addRange(0, 2 ** 28);
  const taken = set.take();
  expect(set.isEmpty).toBe(true);
  expect(taken.count).toBe(2 ** 28);
  expect(taken.chunks().length).toBe(2 ** 28 / CHUNK_PAGES);
  set.addAll(taken);
  expect(set.count).toBe(2 ** 28);
});
