/** Run-length coded contents against page-by-page models. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  compareRuns,
  countPages,
  countZeroPages,
  pageOfStamp,
  restrictRuns,
  withZeroPages,
} from '../../src/migration/page-runs.js';
import type { PageRun } from '../../src/uapi/syscall.js';
import { smallArena } from '../core/fixtures.js';

const stampRun = (firstPage: number, pages: number, stamp: number, step: 0 | 1): PageRun => ({
  firstPage,
  pages,
  stamp,
  step,
});

/** Contents of 40 pages as runs: cut at random places, stamps small so that they often coincide. */
const contents = fc
  .array(
    fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 0, max: 6 }), fc.constantFrom(0 as const, 1 as const)),
    {
      minLength: 40,
      maxLength: 40,
    },
  )
  .map((parts) => {
    const runs: PageRun[] = [];
    let page = 0;
    for (const [length, stamp, step] of parts) {
      if (page >= 40) break;
      const pages = Math.min(length, 40 - page);
      runs.push(stampRun(page, pages, stamp, step));
      page += pages;
    }
    return runs;
  });

function stampsOf(runs: readonly PageRun[]): Map<number, number> {
  const stamps = new Map<number, number>();
  for (const run of runs) {
    if ('bytes' in run) continue;
    for (let i = 0; i < run.pages; i++) stamps.set(run.firstPage + i, run.stamp + i * run.step);
  }
  return stamps;
}

describe('property', () => {
  test('comparison finds exactly the pages that differ', () => {
    fc.assert(
      fc.property(contents, contents, (a, b) => {
        const left = stampsOf(a);
        const right = stampsOf(b);
        const expected = [...left.keys()].filter((page) => left.get(page) !== right.get(page));
        const found = compareRuns(a, b).flatMap((r) => Array.from({ length: r.pages }, (_, i) => r.firstPage + i));
        expect(found).toEqual(expected);
      }),
    );
  });

  test('restriction keeps exactly the pages of the ranges, with their contents', () => {
    const ranges = fc
      .uniqueArray(fc.integer({ min: 0, max: 19 }), { maxLength: 8 })
      .map((pages) => pages.sort((x, y) => x - y).map((page) => ({ firstPage: page * 2, pages: 1 })));
    fc.assert(
      fc.property(contents, ranges, (runs, wanted) => {
        const all = stampsOf(runs);
        const kept = restrictRuns(runs, wanted);
        expect([...stampsOf(kept)]).toEqual(wanted.map((r) => [r.firstPage, all.get(r.firstPage)]));
        expect(countPages(kept)).toBe(wanted.length);
      }),
    );
  });
});

test('zero pages: stamp 0, one of a rising run that starts at 0, bytes that are all zero', () => {
  const bytes = new Uint8Array(4096);
  const runs: PageRun[] = [stampRun(0, 5, 0, 0), stampRun(5, 5, 0, 1), { firstPage: 10, pages: 1, bytes }];
  expect(countZeroPages(runs)).toBe(7);
  expect(withZeroPages(runs)[2]).toEqual(stampRun(10, 1, 0, 0));
});

test.each([0, 1, 77, 2 ** 48 + 5])('the page of stamp %d is the one the hosts make', (stamp) => {
  const arena = smallArena(16, 16);
  const frame = arena.allocFrame();
  arena.fillStamp(frame, stamp);
  expect(pageOfStamp(stamp)).toEqual(new Uint8Array(arena.frameBytes(frame)));
});

describe('bytes against stamps', () => {
  const bytesRun = (bytes: Uint8Array): PageRun => ({ firstPage: 0, pages: 1, bytes });

  test('a page that was only read equals its stamp', () => {
    expect(compareRuns([bytesRun(pageOfStamp(77))], [stampRun(0, 1, 77, 1)])).toEqual([]);
  });

  test('one changed byte differs', () => {
    const bytes = pageOfStamp(77);
    bytes[4000] = (bytes[4000] ?? 0) ^ 1;
    expect(compareRuns([bytesRun(bytes)], [stampRun(0, 1, 77, 0)])).toEqual([{ firstPage: 0, pages: 1 }]);
  });
});

test('lists that do not cover the same pages are a mistake', () => {
  expect(() => compareRuns([stampRun(0, 2, 1, 0)], [stampRun(0, 1, 1, 0)])).toThrow(RangeError);
});
