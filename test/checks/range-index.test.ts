/** The range index behaves like a sorted list. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RangeIndex, type PageRange } from '../../src/checks/range-index.js';

test('finds what a list finds, through growth and shrinking', () => {
  const step = fc.record({
    isInsert: fc.boolean(),
    first: fc.nat({ max: 1500 }),
    pages: fc.integer({ min: 1, max: 6 }),
  });
  fc.assert(
    fc.property(fc.array(step, { minLength: 100, maxLength: 600, size: 'max' }), (steps) => {
      const index = new RangeIndex<PageRange>();
      let list: PageRange[] = [];
      for (const { isInsert, first, pages } of steps) {
        const last = first + pages - 1;
        const met = list.filter((range) => range.first <= last && first <= range.last);
        expect(index.overlapping(first, last)).toEqual(met);
        expect(index.firstOverlap(first, last)).toBe(met[0]);
        expect(index.find(first)).toBe(met.find((range) => range.first <= first));
        if (isInsert && met.length === 0) {
          const range = { first, last };
          index.insert(range);
          list = [...list, range].sort((a, b) => a.first - b.first);
        } else if (!isInsert) {
          for (const range of met) index.remove(range);
          list = list.filter((range) => !met.includes(range));
        }
      }
      expect(index.overlapping(0, Infinity)).toEqual(list);
    }),
    { numRuns: 12 },
  );
});
