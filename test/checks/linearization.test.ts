/** What the checker accepts and what it does not, case by case, online and recorded. */
import { describe, expect, test } from 'vitest';
import { UNANSWERED } from '../../src/checks/operation.js';
import { EBUSY, EEXIST, ENOENT, ENOMEM } from '../../src/uapi/errno.js';
import { access, checkOnline, checkRecorded, map, unmap, viewChange, type Told } from './told.js';

const FAULT = -1;

function verdictOf(history: readonly Told[]): string {
  const online = checkOnline(history);
  const recorded = checkRecorded(history);
  expect(recorded.verdict).toBe(online.verdict);
  expect(recorded.violations.map(({ operation, page }) => [operation.number, page])).toEqual(
    online.violations.map(({ operation, page }) => [operation.number, page]),
  );
  return online.verdict;
}

/** A title, a history, and whether it is right. */
type Case = readonly [string, boolean, readonly Told[]];

function holds(cases: readonly Case[]): void {
  test.each(cases)('%s: %s', (_title, isRight, history) => {
    expect(verdictOf(history)).toBe(isRight ? 'pass' : 'fail');
  });
}

describe('translations', () => {
  holds([
    ['a mapped page shows its frame', true, [map(0, 1, 4, 7, 100), access(2, 3, 6, 102)]],
    ['another frame', false, [map(0, 1, 4, 7, 100), access(2, 3, 6, 103)]],
    ['a page beside it faults', true, [map(0, 1, 4, 7, 100), access(2, 3, 8, FAULT)]],
    ['a page beside it shows something', false, [map(0, 1, 4, 7, 100), access(2, 3, 8, 104)]],
    ['a mapped page faults', false, [map(0, 1, 4, 7, 100), access(2, 3, 4, FAULT)]],
    ['before the MAP', false, [access(0, 1, 4, 100), map(2, 3, 4, 7, 100)]],
    ['while the MAP runs, seen', true, [map(0, 3, 4, 7, 100), access(1, 2, 4, 100)]],
    ['while the MAP runs, not seen', true, [map(0, 3, 4, 7, 100), access(1, 2, 4, FAULT)]],
    ['while the MAP runs, one page of two', true, [map(0, 5, 4, 5, 100), access(1, 2, 4, 100), access(3, 4, 5, FAULT)]],
    ['seen, then not', false, [map(0, 5, 4, 5, 100), access(1, 2, 4, 100), access(3, 4, 4, FAULT)]],
    [
      'seen by one view, then not by another',
      true,
      [map(0, 5, 4, 5, 100), access(1, 2, 4, 100, 1), access(3, 4, 4, FAULT, 2)],
    ],
    ['after the UNMAP', false, [map(0, 1, 4, 7, 100), unmap(2, 3, 4, 7, [[4, 7]]), access(4, 5, 4, 100)]],
    ['after the UNMAP, fault', true, [map(0, 1, 4, 7, 100), unmap(2, 3, 4, 7, [[4, 7]]), access(4, 5, 4, FAULT)]],
    ['issued before the UNMAP ended', true, [map(0, 1, 4, 7, 100), unmap(2, 4, 4, 7, [[4, 7]]), access(3, 5, 4, 100)]],
    [
      'a failed MAP seen while it ran',
      true,
      [map(0, 5, 4, 7, 100, -ENOMEM), access(1, 2, 4, 100), access(3, 4, 4, FAULT)],
    ],
    [
      'a failed MAP seen twice',
      false,
      [map(0, 7, 4, 7, 100, -ENOMEM), access(1, 2, 4, 100), access(3, 4, 4, FAULT), access(5, 6, 4, 100)],
    ],
    ['a failed MAP seen afterwards', false, [map(0, 1, 4, 7, 100, -ENOMEM), access(2, 3, 4, 100)]],
    ['a refused MAP seen', false, [map(0, 1, 4, 7, 100), map(2, 5, 4, 7, 200, -EEXIST), access(3, 4, 4, 200)]],
    [
      'a long access sees the old or the new frame',
      true,
      [map(0, 1, 4, 4, 100), access(2, 7, 4, 200), unmap(3, 4, 4, 4, [[4, 4]]), map(5, 6, 4, 4, 200)],
    ],
    [
      'a long access sees a frame that went before',
      false,
      [map(0, 1, 4, 4, 100), unmap(2, 3, 4, 4, [[4, 4]]), access(4, 7, 4, 100), map(5, 6, 4, 4, 200)],
    ],
  ]);
});

describe('views', () => {
  const mapped = map(0, 1, 4, 4, 100);
  holds([
    ['detached: fault', true, [mapped, viewChange('detach', 2, 3), access(4, 5, 4, FAULT)]],
    ['detached: frame', false, [mapped, viewChange('detach', 2, 3), access(4, 5, 4, 100)]],
    ['detached: other views see it', true, [mapped, viewChange('detach', 2, 3), access(4, 5, 4, 100, 1)]],
    [
      'while it is detached, both',
      true,
      [mapped, viewChange('detach', 2, 7), access(3, 4, 4, FAULT), access(5, 6, 4, 100)],
    ],
    ['issued before', true, [mapped, access(2, 6, 4, 100), viewChange('detach', 3, 5)]],
    ['issued before, fault', true, [mapped, access(2, 6, 4, FAULT), viewChange('detach', 3, 5)]],
    [
      'attached again: fault',
      false,
      [mapped, viewChange('detach', 2, 3), viewChange('attach', 4, 5), access(6, 7, 4, FAULT)],
    ],
    [
      'attach failed: frame',
      false,
      [mapped, viewChange('detach', 2, 3), viewChange('attach', 4, 5, 0, -ENOMEM), access(6, 7, 4, 100)],
    ],
    ['mapped only after the detach', false, [access(0, 7, 4, 100), viewChange('detach', 1, 2), map(3, 4, 4, 4, 100)]],
    [
      'mapped after the detach, then attached',
      true,
      [access(0, 9, 4, 100), viewChange('detach', 1, 2), map(3, 4, 4, 4, 100), viewChange('attach', 5, 6)],
    ],
    ['the MAP ran before the detach', true, [map(0, 7, 4, 4, 100), access(1, 6, 4, 100), viewChange('detach', 2, 3)]],
    [
      'gone before it was attached',
      false,
      [
        mapped,
        viewChange('detach', 2, 3),
        access(4, 9, 4, 100),
        unmap(5, 6, 4, 4, [[4, 4]]),
        viewChange('attach', 7, 8),
      ],
    ],
  ]);
});

describe('answers of calls', () => {
  holds([
    ['two MAPs side by side', true, [map(0, 1, 0, 3, 100), map(2, 3, 4, 7, 200)]],
    ['two MAPs that overlap', false, [map(0, 1, 0, 4, 100), map(2, 3, 4, 7, 200)]],
    ['two MAPs at once that overlap', false, [map(0, 2, 0, 4, 100), map(1, 3, 4, 7, 200)]],
    ['one refused', true, [map(0, 2, 0, 4, 100), map(1, 3, 4, 7, 200, -EEXIST)]],
    ['both refused', false, [map(0, 2, 0, 4, 100, -EEXIST), map(1, 3, 4, 7, 200, -EEXIST)]],
    ['refused by one that failed', true, [map(0, 3, 0, 4, 100, -ENOMEM), map(1, 2, 4, 7, 200, -EEXIST)]],
    ['refused by one that had failed', false, [map(0, 1, 0, 4, 100, -ENOMEM), map(2, 3, 4, 7, 200, -EEXIST)]],
    [
      'refused by what an UNMAP frees',
      true,
      [map(0, 1, 0, 4, 100), unmap(2, 5, 0, 4, [[0, 4]]), map(3, 4, 4, 7, 200, -EEXIST)],
    ],
    ['two areas at once', true, [map(0, 1, 0, 3, 100), map(2, 3, 4, 7, 200), unmap(4, 5, 0, 9, [[0, 7]])]],
    ['half an area', false, [map(0, 1, 0, 3, 100), unmap(2, 3, 0, 1, [[0, 1]])]],
    ['half an area, refused', true, [map(0, 1, 0, 3, 100), unmap(2, 3, 0, 1, [], -ENOENT)]],
    ['partial progress', true, [map(0, 1, 0, 3, 100), map(2, 3, 4, 7, 200), unmap(4, 5, 0, 5, [[0, 3]], -ENOENT)]],
    ['an area left behind', false, [map(0, 1, 0, 3, 100), map(2, 3, 4, 7, 200), unmap(4, 5, 0, 9, [[0, 3]])]],
    ['the lower area left behind', false, [map(0, 1, 0, 3, 100), map(2, 3, 4, 7, 200), unmap(4, 5, 0, 9, [[4, 7]])]],
    ['nothing there', true, [unmap(0, 1, 0, 9, [], -ENOENT)]],
    ['nothing there, all asked for', true, [unmap(0, 1, 0, 2 ** 52, [])]],
    ['ENOENT at a whole area', false, [map(0, 1, 0, 3, 100), unmap(2, 3, 0, 9, [], -ENOENT)]],
    ['EBUSY while it is mapped', true, [map(0, 3, 0, 3, 100), unmap(1, 2, 0, 3, [], -EBUSY)]],
    ['EBUSY afterwards', false, [map(0, 1, 0, 3, 100), unmap(2, 3, 0, 3, [], -EBUSY)]],
    [
      'EBUSY while another unmaps',
      true,
      [map(0, 1, 0, 3, 100), unmap(2, 5, 0, 3, [[0, 3]]), unmap(3, 4, 0, 3, [], -EBUSY)],
    ],
    ['both unmapped it', false, [map(0, 1, 0, 3, 100), unmap(2, 4, 0, 3, [[0, 3]]), unmap(3, 5, 0, 3, [[0, 3]])]],
    ['unmapped before the MAP returned', true, [map(0, 3, 0, 3, 100), unmap(1, 2, 0, 3, [[0, 3]])]],
    [
      'its range taken again while the UNMAP goes on',
      true,
      [map(0, 1, 0, 3, 100), map(2, 3, 4, 7, 200), unmap(4, 9, 0, 7, [[0, 7]]), map(5, 6, 0, 3, 300)],
    ],
    [
      'the later area taken before the earlier is free',
      false,
      [
        map(0, 1, 0, 3, 100),
        map(2, 3, 4, 7, 200),
        unmap(4, 11, 0, 7, [[0, 7]]),
        map(5, 6, 4, 7, 300),
        map(7, 8, 0, 3, 400, -EEXIST),
      ],
    ],
  ]);
  test('a count that is not what went', () => {
    const wrong = { ...unmap(2, 3, 0, 3, [[0, 3]]), answeredPages: 3 };
    expect(verdictOf([map(0, 1, 0, 3, 100), wrong])).toBe('fail');
  });
});

describe('operations that never returned', () => {
  holds([
    ['a MAP seen much later', true, [map(0, 0, 0, 3, 100, UNANSWERED), access(5, 6, 0, FAULT), access(7, 8, 0, 100)]],
    [
      'a MAP undone by nobody else',
      true,
      [map(0, 0, 0, 3, 100, UNANSWERED), access(5, 6, 0, 100), access(7, 8, 0, FAULT)],
    ],
    [
      'a MAP seen again',
      false,
      [map(0, 0, 0, 3, 100, UNANSWERED), access(5, 6, 0, 100), access(7, 8, 0, FAULT), access(9, 10, 0, 100)],
    ],
    ['a MAP seen before it began', false, [access(0, 1, 0, 100), map(2, 0, 0, 3, 100, UNANSWERED)]],
    ['a MAP in the way', true, [map(0, 0, 0, 3, 100, UNANSWERED), map(1, 2, 3, 4, 200, -EEXIST)]],
    ['a MAP that somebody unmaps', true, [map(0, 0, 0, 3, 100, UNANSWERED), unmap(1, 2, 0, 3, [[0, 3]])]],
    [
      'a MAP that an UNMAP finds busy for ever',
      true,
      [map(0, 0, 0, 3, 100, UNANSWERED), unmap(1, 2, 0, 3, [], -EBUSY)],
    ],
    [
      'an UNMAP that went on',
      true,
      [
        map(0, 1, 0, 3, 100),
        unmap(2, 0, 0, 3, [], UNANSWERED),
        access(3, 4, 0, 100),
        access(5, 6, 0, FAULT),
        map(7, 8, 0, 3, 200),
      ],
    ],
    [
      'an UNMAP that brings nothing back',
      false,
      [map(0, 1, 0, 3, 100), unmap(2, 0, 0, 3, [], UNANSWERED), access(3, 4, 0, FAULT), access(5, 6, 0, 100)],
    ],
    ['an access asks for nothing', true, [{ ...access(0, 1, 0, 100), rc: UNANSWERED, end: Infinity }]],
  ]);
});

describe('reports', () => {
  test('a stale access names the UNMAP that returned, and what it might have seen', () => {
    const history = [
      map(0, 1, 0x10, 0x1f, 0x123),
      unmap(2, 3, 0x10, 0x1f, [[0x10, 0x1f]]),
      access(4, 5, 0x10, 0x123, 2),
    ];
    const [violation] = checkOnline(history).violations;
    expect(violation?.sentence).toBe(
      "device 2's access at op 2 reached frame 0x123 at page 0x10, but UNMAP (op 1) of it returned before the access " +
        'was issued; it might have seen a fault',
    );
    expect(violation).toMatchObject({ rule: 'translation', page: 0x10, allowed: [FAULT], overlapping: [] });
  });
  test('a fault names the MAP that had returned', () => {
    const [violation] = checkOnline([map(0, 1, 0x10, 0x1f, 0x123), access(2, 3, 0x11, FAULT, 1)]).violations;
    expect(violation?.sentence).toBe(
      "device 1's access at op 1 faulted at page 0x11, but MAP (op 0) of it to frame 0x124 had returned and no UNMAP of " +
        'it was invoked before the access ended; it might have seen frame 0x124',
    );
  });
  test('a call names the areas it met and the calls it overlapped', () => {
    const [violation] = checkOnline([map(0, 2, 0, 4, 100), map(1, 3, 4, 7, 200)]).violations;
    expect(violation?.sentence).toBe(
      'MAP (op 1) of pages 0x4-0x7 by 0: ok: no order of the calls that overlap explains that answer; ' +
        'what was there is pages 0x0-0x4 of MAP (op 0)',
    );
    expect(violation?.overlapping.map(({ number }) => number)).toEqual([0]);
  });
  test('checking goes on after a violation', () => {
    const stale = [0, 10, 20].flatMap((at) => [
      map(at, at + 1, 0, 3, 100),
      unmap(at + 2, at + 3, 0, 3, [[0, 3]]),
      access(at + 4, at + 5, 2, 102),
    ]);
    const check = checkOnline(stale);
    expect(check.violations.map(({ operation }) => operation.number)).toEqual([2, 5, 8]);
    expect(checkOnline(stale, { maxViolations: 1 }).violations).toHaveLength(1);
  });
});

describe('cost', () => {
  test('what overlaps nothing is judged without a search', () => {
    const quiet = [map(0, 1, 0, 2 ** 40, 100), access(2, 3, 77, 177), unmap(4, 5, 0, 2 ** 41, [[0, 2 ** 40]])];
    const check = checkOnline(quiet);
    expect(check.verdict).toBe('pass');
    expect(check.configurations).toBe(0);
  });
  test('a search beyond the budget makes the verdict inconclusive, not wrong', () => {
    const maps = [...Array(4).keys()].flatMap((n) => [
      map(n, 100 + n, 0, 3, 100 * n),
      unmap(20 + n, 200 + n, 0, 3, [[0, 3]]),
    ]);
    expect(checkOnline(maps).verdict).toBe('pass');
    const poor = checkOnline(maps, { budget: 4 });
    expect(poor.verdict).toBe('inconclusive');
    expect(poor.exhaustions[0]).toMatchObject({ first: 0, last: 3 });
  });
});
