/**
 * Violations planted in histories of a correct address space. Each kind is planted only where it breaks the history for
 * certain: frames name their MAPs, and a fault is planted where no UNMAP can be at work. Every one of them must be found.
 */
import { expect, test } from 'vitest';
import { FAULT, UNANSWERED, type Extent } from '../../src/checks/operation.js';
import { RandomStream } from '../../src/runtime/random.js';
import { EBUSY, EEXIST } from '../../src/uapi/errno.js';
import { simulate } from './simulated.js';
import { access, checkOnline, checkRecorded, map, unmap, type Told } from './told.js';

const HISTORIES = 120;
const PAGES = 12;
/** Nobody's frame, nobody's page. */
const NOBODYS = 0x7000_0000;

/** Everything that is wrong in one way about a history; each entry is a whole history with one violation. */
type Planter = (history: readonly Told[]) => Told[][];

const isAnswered = (told: Told): boolean => told.rc !== UNANSWERED;
const isOkMap = (told: Told): boolean => told.kind === 'map' && told.rc === 0;

/** Whether an UNMAP may be at work on the page at an instant, or may have been since `since`. */
function mayGo(history: readonly Told[], page: number, since: number, at: number): boolean {
  return history.some(
    (told) =>
      told.kind === 'unmap' &&
      told.begin < at &&
      told.end > since &&
      (isAnswered(told) ? told.extents : [told]).some(({ first, last }) => first <= page && page <= last),
  );
}

function frameOf(told: Told, page: number): number {
  return (told.extents[0]?.frame ?? 0) + page - told.first;
}

/** A history once for every operation that is wanted, with what breaks it there. */
function each(
  history: readonly Told[],
  isWanted: (told: Told) => boolean,
  broken: (told: Told) => readonly Told[],
): Told[][] {
  return history.filter(isWanted).map((told) => [...history, ...broken(told)]);
}

function replaced(history: readonly Told[], isWanted: (told: Told) => boolean, change: (told: Told) => Told): Told[][] {
  return history.filter(isWanted).map((wanted) => history.map((told) => (told === wanted ? change(told) : told)));
}

/** MAPs whose last page is mapped for certain just after they returned. */
function stays(history: readonly Told[]): (told: Told) => boolean {
  return (told) => isOkMap(told) && !mayGo(history, told.last, told.begin, told.end + 0.3);
}

/** Whether, while an area was there, no call but its MAP and `unmap` had to do with its first page. */
function isOnlyTaker(history: readonly Told[], unmap: Told, area: Extent): boolean {
  const mapped = history.find((told) => told.kind === 'map' && told.extents[0]?.frame === area.frame);
  return history.every(
    (told) =>
      told === unmap ||
      told === mapped ||
      (told.kind !== 'map' && told.kind !== 'unmap') ||
      told.begin > unmap.end ||
      told.end < (mapped?.begin ?? 0) ||
      told.first > area.first ||
      told.last < area.first,
  );
}

const PLANTERS: Readonly<Record<string, Planter>> = {
  'stale translation after UNMAP returned': (history) =>
    history
      .filter((told) => told.kind === 'unmap' && isAnswered(told))
      .flatMap((told) => told.extents.map((extent) => ({ told, extent })))
      .filter(({ told, extent }) => isOnlyTaker(history, told, extent))
      .map(({ told, extent }) => [...history, access(told.end + 0.1, told.end + 0.2, extent.first, extent.frame)]),
  'fault on a mapped page': (history) =>
    each(history, stays(history), (told) => [access(told.end + 0.1, told.end + 0.2, told.last, FAULT)]),
  'half a range mapped': (history) =>
    each(
      history,
      (told) => told.last > told.first && stays(history)(told),
      (told) => [
        access(told.end + 0.1, told.end + 0.2, told.first, frameOf(told, told.first)),
        access(told.end + 0.21, told.end + 0.29, told.last, FAULT),
      ],
    ),
  'wrong frame': (history) =>
    replaced(
      history,
      (told) => told.kind === 'translate' && told.frame !== FAULT,
      (told) => ({ ...told, frame: NOBODYS }),
    ),
  "neighbour's frame": (history) =>
    each(
      history,
      (told) => told.last > told.first && stays(history)(told),
      (told) => [access(told.end + 0.1, told.end + 0.2, told.last, frameOf(told, told.first))],
    ),
  'translation before the MAP': (history) =>
    each(history, isOkMap, (told) => [
      access(told.begin - 0.2, told.begin - 0.1, told.first, frameOf(told, told.first)),
    ]),
  'two overlapping MAPs ok': (history) =>
    each(history, stays(history), (told) => [map(told.end + 0.1, told.end + 0.2, told.last, told.last + 1, NOBODYS)]),
  'failed MAP left visible': (history) =>
    each(
      history,
      (told) => told.kind === 'map' && told.rc !== 0 && isAnswered(told),
      (told) => [access(told.end + 0.1, told.end + 0.2, told.last, frameOf(told, told.last))],
    ),
  'UNMAP count wrong': (history) =>
    replaced(
      history,
      (told) => told.kind === 'unmap' && told.rc === 0,
      (told) => ({ ...told, answeredPages: told.answeredPages - 1 }),
    ),
  'half an area unmapped': (history) =>
    replaced(
      history,
      (told) => told.kind === 'unmap' && told.rc === 0 && told.extents.some(({ first, last }) => last > first),
      (told) => {
        const extents = told.extents.map((extent) => ({ ...extent, last: Math.max(extent.first, extent.last - 1) }));
        const answeredPages = extents.reduce((sum, { first, last }) => sum + last - first + 1, 0);
        return { ...told, extents, answeredPages };
      },
    ),
  'lost mapping': (history) =>
    each(history, stays(history), (told) => [unmap(told.end + 0.1, told.end + 0.2, told.first, told.last, [])]),
  'EEXIST over nothing': (history) =>
    each(history, isAnswered, (told) => [map(told.begin + 0.1, told.begin + 0.2, NOBODYS, NOBODYS, 0, -EEXIST)]),
  'EBUSY where nobody works': (history) =>
    each(history, stays(history), (told) => [unmap(told.end + 0.1, told.end + 0.2, told.first, told.last, [], -EBUSY)]),
  'a detached view sees a frame': (history) =>
    history
      .filter((told) => told.kind === 'detach' && isAnswered(told))
      .map((told) => [
        ...history,
        map(told.end + 0.1, told.end + 0.2, NOBODYS, NOBODYS, NOBODYS),
        access(told.end + 0.3, told.end + 0.4, NOBODYS, NOBODYS, told.agent),
      ]),
};

const histories = [...Array(HISTORIES).keys()].map((seed) =>
  simulate(new RandomStream(seed, 'mutations'), {
    threads: 3,
    views: 3,
    pages: PAGES,
    operations: 60,
    killOneIn: seed % 4 === 0 ? 60 : 0,
    movesViews: true,
  }),
);

test('simulated histories pass, online and recorded', () => {
  let configurations = 0;
  for (const history of histories) {
    const online = checkOnline(history);
    expect(online.violations.map(({ sentence }) => sentence)).toEqual([]);
    expect(online.verdict).toBe('pass');
    expect(checkRecorded(history)).toMatchObject({ verdict: 'pass', operations: history.length });
    configurations += online.configurations;
  }
  expect(configurations).toBeGreaterThan(0);
});

test.each(Object.keys(PLANTERS))('%s: every one that is planted is found', (kind) => {
  const random = new RandomStream(1, kind);
  let planted = 0;
  for (const history of histories) {
    const broken = PLANTERS[kind]?.(history) ?? [];
    if (broken.length === 0) continue;
    planted++;
    const check = checkOnline(random.pick(broken));
    expect(check.verdict).toBe('fail');
    expect(check.violations[0]?.sentence).toMatch(/op \d+/);
  }
  process.stdout.write(`${kind}: ${planted} planted, all found\n`);
  expect(planted).toBeGreaterThan(40);
});
