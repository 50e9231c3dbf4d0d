/** The checker's verdict is the brute-force reference's, on histories that are right, nearly right, and nonsense. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { UNANSWERED, type Extent } from '../../src/checks/operation.js';
import { RandomStream } from '../../src/runtime/random.js';
import { EBUSY, EEXIST, ENOENT, ENOMEM } from '../../src/uapi/errno.js';
import { isExplainable } from './brute-force.js';
import { simulate } from './simulated.js';
import { checkOnline, checkRecorded, type Told } from './told.js';

const ANSWERS = [0, 0, -EEXIST, -EBUSY, -ENOENT, -ENOMEM, UNANSWERED];

/** One field of one operation changed. */
function damage(random: RandomStream, history: readonly Told[]): Told[] {
  const victim = random.below(history.length);
  const another = random.pick(history);
  return history.map((told, position): Told => {
    if (position !== victim) return told;
    switch (random.below(6)) {
      case 0:
        return { ...told, frame: another.extents[0]?.frame ?? another.frame };
      case 1:
        return { ...told, first: another.first, last: told.kind === 'translate' ? another.first : another.last };
      case 2: {
        const rc = told.kind === 'translate' ? told.rc : random.pick(ANSWERS);
        return { ...told, rc, end: rc === UNANSWERED ? Infinity : Math.min(told.end, 1e6) };
      }
      case 3:
        return { ...told, answeredPages: told.answeredPages + 1 };
      case 4:
        return { ...told, extents: told.kind === 'unmap' ? another.extents : told.extents };
      default:
        return { ...told, end: told.end === Infinity ? told.end : told.begin + 0.5 };
    }
  });
}

function isSame(history: readonly Told[]): boolean {
  const expected = isExplainable(history) ? 'pass' : 'fail';
  expect(checkOnline(history).verdict).toBe(expected);
  expect(checkRecorded(history).verdict).toBe(expected);
  return expected === 'pass';
}

function sample(seed: number, operations: number): Told[] {
  const options = { threads: 3, views: 2, pages: 3, operations, killOneIn: seed % 3 === 0 ? 12 : 0, movesViews: true };
  return simulate(new RandomStream(seed, 'sample'), options);
}

test('simulated histories are right by the reference and by the checker', () => {
  fc.assert(
    fc.property(fc.nat(), fc.integer({ min: 2, max: 8 }), (seed, operations) => {
      expect(isSame(sample(seed, operations))).toBe(true);
    }),
    { numRuns: 800 },
  );
});

test('damaged histories are right or wrong by both', () => {
  const counts = { right: 0, wrong: 0 };
  fc.assert(
    fc.property(fc.nat(), fc.integer({ min: 2, max: 8 }), fc.integer({ min: 1, max: 3 }), (seed, operations, times) => {
      const random = new RandomStream(seed, 'damage');
      let history = sample(seed, operations);
      for (let n = 0; n < times; n++) history = damage(random, history);
      if (isSame(history)) counts.right++;
      else counts.wrong++;
    }),
    { numRuns: 2000 },
  );
  expect(Math.min(counts.right, counts.wrong)).toBeGreaterThan(200);
});

test('areas that an unmap takes one by one are not taken for one area', () => {
  const call = { agent: 0, rc: 0, frame: -1, answeredPages: 0 };
  const map = (first: number, last: number, begin: number): Told => {
    const extents = [{ first, last, frame: 0x1000 + first }];
    return { ...call, kind: 'map', first, last, begin, end: begin + 1, extents };
  };
  const page = (first: number): Extent => ({ first, last: first, frame: 0x1000 + first });
  const extents = [page(1), page(2)];
  const unmap: Told = { ...call, kind: 'unmap', first: 1, last: 2, begin: 10, end: 11, answeredPages: 2, extents };
  expect(isSame([map(1, 1, 0), map(2, 2, 2), unmap])).toBe(true);
  expect(isSame([map(1, 2, 0), unmap])).toBe(false);
});

test('a MAP that failed has no effect on what begins after it has returned', () => {
  const call = { agent: 0, first: 0, last: 0, answeredPages: 0, frame: 0 };
  const failed = {
    ...call,
    kind: 'map',
    begin: 0,
    end: 1,
    rc: -ENOMEM,
    extents: [{ first: 0, last: 0, frame: 7 }],
  } as const;
  const seen = { ...call, kind: 'translate', rc: 0, extents: [], frame: 7 } as const;
  expect(isSame([failed, { ...seen, begin: 0.5, end: 2 }])).toBe(true);
  expect(isSame([failed, { ...seen, begin: 2, end: 3 }])).toBe(false);
  const refused = { ...call, kind: 'map', rc: -EEXIST, extents: [] } as const;
  expect(isSame([failed, { ...refused, begin: 0.5, end: 2 }])).toBe(true);
  expect(isSame([failed, { ...refused, begin: 2, end: 3 }])).toBe(false);
});
