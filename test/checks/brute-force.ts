/**
 * The reference: tries every order. Each operation is a little program of atomic steps; a step may be taken when every
 * operation that had returned before this one was invoked has finished. No sets of configurations, no sharing, no time.
 */
import { FAULT, UNANSWERED, type Extent } from '../../src/checks/operation.js';
import { EBUSY, EEXIST, ENOENT } from '../../src/uapi/errno.js';
import type { Told } from './told.js';

/** A program in some state: the states it may be in after one more step in a world, each with the world then. */
interface Program<World> {
  readonly begin: number;
  readonly end: number;
  readonly isDone: boolean;
  next(world: World): (readonly [Program<World>, World])[];
}

function isOrderable<World>(programs: readonly Program<World>[], world: World): boolean {
  if (programs.every(({ isDone, end }) => isDone || end === Infinity)) return true;
  return programs.some((program, slot) => {
    const mustWait = programs.some((other) => other.end < program.begin && !other.isDone);
    if (mustWait) return false;
    return program.next(world).some(([after, changed]) => isOrderable(programs.with(slot, after), changed));
  });
}

/** A program that is one of several sequences of steps; a step says the world afterwards, or undefined: impossible now. */
function sequence<World>(
  told: { readonly begin: number; readonly end: number },
  sequences: readonly (readonly ((world: World) => World | undefined)[])[],
): Program<World> {
  return {
    begin: told.begin,
    end: told.end,
    isDone: sequences.some((steps) => steps.length === 0),
    next: (world) =>
      sequences.flatMap((steps) => {
        const after = steps[0]?.(world);
        return after === undefined ? [] : [[sequence(told, [steps.slice(1)]), after] as const];
      }),
  };
}

/** The step of who has no effect: taken before those begin that came after its end, as any other. */
function keep<World>(world: World): World {
  return world;
}

interface Page {
  readonly map: Told | undefined;
  readonly view: 'attached' | 'changing' | 'detached';
}

function covers(extents: readonly Extent[], page: number): boolean {
  return extents.some(({ first, last }) => first <= page && page <= last);
}

function isPageRight(history: readonly Told[], page: number, view: number): boolean {
  const programs = history.flatMap((told): Program<Page>[] => {
    const show = (world: Page): Page | undefined => (world.map === undefined ? { ...world, map: told } : undefined);
    const hide = (world: Page): Page | undefined => (world.map === told ? { ...world, map: undefined } : undefined);
    const isHere = told.first <= page && page <= told.last;
    switch (told.kind) {
      case 'map': {
        if (!isHere || told.rc === -EEXIST) return [];
        if (told.rc === 0) return [sequence(told, [[show]])];
        return [sequence(told, told.rc === UNANSWERED ? [[], [show], [show, hide]] : [[keep], [show, hide]])];
      }
      case 'unmap': {
        const take = (world: Page): Page | undefined =>
          world.map?.rc === 0 || world.map?.rc === UNANSWERED ? { ...world, map: undefined } : undefined;
        if (told.rc === UNANSWERED) return isHere ? [sequence(told, [[], [take]])] : [];
        return covers(told.extents, page) ? [sequence(told, [[take]])] : [];
      }
      case 'translate': {
        const see = (world: Page): Page | undefined => {
          const extent = world.map?.extents.find(({ first, last }) => first <= page && page <= last);
          const frame = extent === undefined ? FAULT : extent.frame + page - extent.first;
          const isSeen = told.frame === frame && world.view !== 'detached';
          return isSeen || (told.frame === FAULT && world.view !== 'attached') ? world : undefined;
        };
        return isHere && told.agent === view ? [sequence(told, [[see]])] : [];
      }
      case 'attach':
      case 'detach': {
        if (told.agent !== view) return [];
        const state = (told.kind === 'attach') === (told.rc === 0) ? 'attached' : 'detached';
        const begin = { begin: told.begin, end: told.begin };
        const end = { begin: told.end, end: told.end };
        return [
          sequence<Page>(begin, [[(world) => ({ ...world, view: 'changing' })]]),
          sequence<Page>(end, told.end === Infinity ? [[]] : [[(world) => ({ ...world, view: state })]]),
        ];
      }
    }
  });
  return isOrderable(programs, { map: undefined, view: 'attached' });
}

interface TakenRange {
  readonly first: number;
  readonly last: number;
  readonly owner: Told;
  readonly isBusy: boolean;
}
type Ranges = readonly TakenRange[];

function lowest(ranges: Ranges, first: number, last: number): TakenRange | undefined {
  return [...ranges].sort((a, b) => a.first - b.first).find((range) => range.last >= first && range.first <= last);
}

function unmapProgram(told: Told, cursor: number, gone: readonly number[], held?: TakenRange): Program<Ranges> {
  const toldPages = told.extents.flatMap(({ first, last }) =>
    Array.from({ length: last - first + 1 }, (_, n) => first + n),
  );
  const done = { begin: told.begin, end: told.end, isDone: true, next: () => [] };
  return {
    begin: told.begin,
    end: told.end,
    isDone: false,
    next: (ranges) => {
      if (held !== undefined) {
        return [[unmapProgram(told, cursor, gone), ranges.filter((range) => range !== held)]];
      }
      const met = lowest(ranges, cursor, told.last);
      const isWhole = met !== undefined && met.first >= cursor && met.last <= told.last;
      if (met !== undefined && !met.isBusy && isWhole) {
        const pages = Array.from({ length: met.last - met.first + 1 }, (_, n) => met.first + n);
        const isInOne = told.extents.some(({ first, last }) => first <= met.first && met.last <= last);
        const isTold = told.rc === UNANSWERED || isInOne;
        if (isTold) {
          const hidden = { ...met, isBusy: true };
          const after = ranges.map((range) => (range === met ? hidden : range));
          return [[unmapProgram(told, met.last + 1, [...gone, ...pages], hidden), after]];
        }
      }
      if (gone.length !== toldPages.length || told.rc === UNANSWERED) return [];
      const answers =
        met === undefined
          ? [0, ...(gone.length === 0 ? [-ENOENT] : [])]
          : met.isBusy
            ? [-EBUSY]
            : isWhole
              ? []
              : [-ENOENT];
      const isOther = ![0, -ENOENT, -EBUSY].includes(told.rc);
      return isOther || answers.includes(told.rc) ? [[done, ranges]] : [];
    },
  };
}

function areRangesRight(history: readonly Told[]): boolean {
  const programs = history.flatMap((told): Program<Ranges>[] => {
    if (told.kind === 'unmap') return [unmapProgram(told, told.first, [])];
    if (told.kind !== 'map') return [];
    const { first, last } = told;
    const meet = (ranges: Ranges): Ranges | undefined =>
      lowest(ranges, first, last) === undefined ? undefined : ranges;
    const take = (ranges: Ranges): Ranges | undefined =>
      lowest(ranges, first, last) === undefined ? [...ranges, { first, last, owner: told, isBusy: true }] : undefined;
    const publish = (ranges: Ranges): Ranges =>
      ranges.map((range) => (range.owner === told ? { ...range, isBusy: false } : range));
    const drop = (ranges: Ranges): Ranges => ranges.filter((range) => range.owner !== told);
    if (told.rc === 0) return [sequence(told, [[take, publish]])];
    if (told.rc === -EEXIST) return [sequence(told, [[meet]])];
    const failed = [[keep], [take, drop]];
    return [sequence(told, told.rc === UNANSWERED ? [...failed, [take], [take, publish]] : failed)];
  });
  return isOrderable(programs, []);
}

/** Whether some order of every page and view, and some order of the ranges, explains the history. */
export function isExplainable(history: readonly Told[]): boolean {
  const counted = history.every(({ kind, rc, extents, answeredPages }) => {
    const pages = extents.reduce((sum, { first, last }) => sum + last - first + 1, 0);
    return kind !== 'unmap' || rc !== 0 || answeredPages === pages;
  });
  if (!counted || !areRangesRight(history)) return false;
  const pages = new Set(
    history.flatMap(({ first, last }) => Array.from({ length: last - first + 1 }, (_, n) => first + n)),
  );
  const views = new Set(history.filter(({ kind }) => kind === 'translate').map(({ agent }) => agent));
  return [...pages].every((page) => [...views, -1].every((view) => isPageRight(history, page, view)));
}
