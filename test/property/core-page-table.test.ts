import fc from 'fast-check';
import { expect, it } from 'vitest';
import { Bitmap } from '../../src/core/bitmap.js';
import { TableWalker, WALK_LEAF } from '../../src/core/table-walk.js';
import { ERRNO } from '../../src/uapi/errno.js';
import { AF, BIT7, DBM_HI, made, mapAll, newTable, smallArena } from '../core/fixtures.js';

/**
 * Random histories against a plain model: a Map from page to {pa, leaf}, where a leaf says how large its descriptor
 * is. The window is small and holds a block boundary, so that blocks, tables and pages meet.
 */
interface Mapping {
  readonly pa: number;
  readonly leafFirst: number;
  readonly leafPages: number;
}

const SHAPES = [
  { stage: 1 as const, granuleShift: 12, inputBits: 48, outputBits: 48 },
  { stage: 2 as const, granuleShift: 12, inputBits: 40, outputBits: 40 },
  { stage: 1 as const, granuleShift: 14, inputBits: 48, outputBits: 48 },
  { stage: 2 as const, granuleShift: 16, inputBits: 48, outputBits: 48 },
];

const action = (block: number): fc.Arbitrary<{ map: boolean; iova: number; pages: number; skew: number }> => {
  const nearBlock = fc.oneof(
    fc.constantFrom(0, block, 2 * block),
    fc.integer({ min: 0, max: 3 * block - 1 }),
    fc.integer({ min: block - 3, max: block + 3 }),
  );
  return fc.record({
    map: fc.boolean(),
    iova: nearBlock,
    pages: fc.oneof(fc.constantFrom(1, block, 2 * block), fc.integer({ min: 1, max: 20 })),
    skew: fc.constantFrom(0, 0, 1),
  });
};

/** What the model says of mapping a range: undefined when it must fail. */
function modelMap(model: Map<number, Mapping>, iova: number, pa: number, pages: number, block: number): boolean {
  for (let page = iova; page < iova + pages; page++) if (model.has(page)) return false;
  for (let page = iova; page < iova + pages;) {
    const p = pa + page - iova;
    const leafPages = page % block === 0 && p % block === 0 && iova + pages - page >= block ? block : 1;
    for (let n = 0; n < leafPages; n++) model.set(page + n, { pa: p + n, leafFirst: page, leafPages });
    page += leafPages;
  }
  return true;
}

/** True when no block of the model straddles an end of the range. */
function isWholeLeaves(model: Map<number, Mapping>, iova: number, pages: number): boolean {
  const inside = (leaf: Mapping | undefined): boolean =>
    leaf === undefined || (leaf.leafFirst >= iova && leaf.leafFirst + leaf.leafPages <= iova + pages);
  return inside(model.get(iova)) && inside(model.get(iova + pages - 1));
}

it.each(SHAPES)('maps, unmaps and walks like a map from page to page: %j', (shape) => {
  const arena = smallArena(4096, 64);
  const walker = new TableWalker(arena);
  const block = 2 ** (shape.granuleShift - 3);
  const scale = 2 ** (shape.granuleShift - 12);
  const base = 2 ** (shape.inputBits - shape.granuleShift - 1);
  fc.assert(
    fc.property(fc.array(action(block), { maxLength: 25 }), (actions) => {
      const table = newTable(arena, shape);
      const gather = { head: 0 };
      const model = new Map<number, Mapping>();
      for (const { map, iova, pages, skew } of actions) {
        const first = base + iova;
        if (map) {
          const pa = 8 * block + iova + skew;
          if (modelMap(model, first, pa, pages, block)) expect(mapAll(table, first, pa, pages)).toBe(0);
          continue;
        }
        if (!isWholeLeaves(model, first, pages)) {
          if ((model.get(first)?.leafFirst ?? first) < first) {
            expect(table.unmapStep(first, pages, gather)).toBe(-ERRNO.EINVAL);
          }
          continue;
        }
        for (let done = 0; done < pages;) {
          const step = table.unmapStep(first + done, pages - done, gather);
          const length = step === 0 ? table.holePages : step;
          const mapped = [...Array(length).keys()].filter((n) => model.delete(first + done + n)).length;
          expect(step === 0 ? 0 : table.unmappedPages).toBe(mapped);
          done += length;
        }
        table.freeGathered(gather);
      }
      const leaves = [...table.leaves()];
      const expected = [...model].filter(([page, leaf]) => page === leaf.leafFirst).sort(([a], [b]) => a - b);
      expect(leaves.map((l) => [l.firstPage, l.pageCount, l.paPage])).toEqual(
        expected.map(([page, leaf]) => [page, leaf.leafPages, leaf.pa]),
      );
      for (const page of [base - 1, base, base + block - 1, base + block, base + 2 * block, base + 3 * block]) {
        const pa = model.get(page)?.pa ?? -1;
        expect(table.translate(page)).toBe(pa);
        const { rootAddress, concatenation, startLevel, granuleShift } = table;
        const status = walker.walk(rootAddress, concatenation, startLevel, granuleShift, page * scale + scale - 1);
        expect(status === WALK_LEAF ? walker.outPfn : -1).toBe(pa < 0 ? -1 : pa * scale + scale - 1);
      }
      table.destroy();
      expect([arena.kernelFramesInUse, arena.storageFramesInUse]).toEqual([0, 0]);
    }),
    { numRuns: 60 },
  );
});

it('maps over something with EEXIST, whatever is there, and leaves it as it was', () => {
  const arena = smallArena(512, 64);
  const range = fc.record({ iova: fc.integer({ min: 0, max: 1500 }), pages: fc.integer({ min: 1, max: 700 }) });
  fc.assert(
    fc.property(range, range, (a, b) => {
      const table = newTable(arena);
      mapAll(table, a.iova, a.iova, a.pages);
      const overlap = a.iova < b.iova + b.pages && b.iova < a.iova + a.pages;
      expect(mapAll(table, b.iova, b.iova + 2 ** 20, b.pages)).toBe(overlap ? -ERRNO.EEXIST : 0);
      for (const page of [a.iova, a.iova + a.pages - 1]) expect(table.translate(page)).toBe(page);
      table.destroy();
    }),
    { numRuns: 60 },
  );
});

it('reports exactly the dirty leaves of a range, once', () => {
  const arena = smallArena(512, 64);
  const bitmap = made(Bitmap.create(arena, 2048));
  const run = fc.record({ pages: fc.integer({ min: 1, max: 600 }), dirty: fc.boolean(), skew: fc.constantFrom(0, 1) });
  fc.assert(
    fc.property(
      fc.constantFrom(1 as const, 2 as const),
      fc.array(run, { minLength: 1, maxLength: 5 }),
      (stage, runs) => {
        const table = newTable(arena, { stage });
        const expected = new Set<number>();
        let page = 0;
        for (const { pages, dirty, skew } of runs) {
          const count = Math.min(pages, 2048 - page);
          const bit7 = (stage === 1) === dirty ? 0 : BIT7;
          if (count > 0) expect(mapAll(table, page, page + 2048 + skew, count, AF | bit7, DBM_HI)).toBe(0);
          for (let n = 0; n < count && dirty; n++) expected.add(page + n);
          page += Math.max(0, count);
        }
        bitmap.clear();
        expect(table.readDirty(0, 2048, bitmap.offset, 0, 12, false)).toBe(page);
        const found = [...Array(2048).keys()].filter((bit) => bitmap.count(bit, 1) === 1);
        expect(found).toEqual([...expected]);
        bitmap.clear();
        table.readDirty(0, 2048, bitmap.offset, 0, 12, false);
        expect(bitmap.count()).toBe(0);
        table.destroy();
      },
    ),
    { numRuns: 60 },
  );
});
