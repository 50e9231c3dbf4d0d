/**
 * What the drawing is made of: lanes, bars of held locks, arrows, and who is where at a step. Pure functions of the trace.
 *
 * Steps are named by their index in `trace.steps` (`at`), rows by their place among the steps that are shown. A failure outside of all
 * steps has a row of its own after them; its `at` is the number of steps.
 */
import { sectionsOf, type Section } from '../../explore/race.js';
import { callsAt, isDeviating, type AccessKind, type Trace, type TraceStep } from '../../explore/trace.js';

/** A column of the drawing. */
export interface Lane {
  readonly task: number;
  readonly name: string;
  /** A task of the scenario; others are hardware and daemons. */
  readonly isProgram: boolean;
}

/** Lanes, those of the scenario first. Tasks that never ran have none. */
export function lanesOf({ tasks, steps }: Trace): Lane[] {
  const ran = new Set(steps.map(({ task }) => task));
  const lanes = tasks.filter(({ number }) => ran.has(number)).map(({ number, ...lane }) => ({ task: number, ...lane }));
  return [...lanes.filter(({ isProgram }) => isProgram), ...lanes.filter(({ isProgram }) => !isProgram)];
}

/** A lock that is held, as a bar: `depth` bars of the same task lie beside it. */
export interface HoldBar extends Section {
  readonly depth: number;
}

export function holdBars(trace: Trace): HoldBar[] {
  const open = new Map<number, (number | undefined)[]>();
  return sectionsOf(trace).map((section) => {
    const ends = open.get(section.task) ?? [];
    open.set(section.task, ends);
    const free = ends.findIndex((end) => end !== undefined && end < section.from);
    const depth = free < 0 ? ends.length : free;
    ends[depth] = section.to ?? Infinity;
    return { ...section, depth };
  });
}

/** What a lock is called beside its bar, by its index: its class's number, and a letter where the class has several. */
export function lockTags({ locks }: Pick<Trace, 'locks'>): string[] {
  const classes = [...new Set(locks.map(({ lockClass }) => lockClass))];
  const counts = new Map<string, number>();
  return locks.map(({ lockClass }) => {
    const place = counts.get(lockClass) ?? 0;
    counts.set(lockClass, place + 1);
    const number = String(classes.indexOf(lockClass) + 1);
    const isOnly = locks.filter((other) => other.lockClass === lockClass).length === 1;
    return isOnly ? number : `${number}${letters(place)}`;
  });
}

/** a … z, aa, ab, … */
function letters(place: number): string {
  const last = String.fromCharCode('a'.charCodeAt(0) + (place % 26));
  return place < 26 ? last : `${letters(Math.floor(place / 26) - 1)}${last}`;
}

/** What is written on a block. A gate says what comes next; having waited for time says nothing, so it is where the step got to. */
export function blockText({ from, to }: TraceStep): string {
  if (from !== 'time' && from !== 'waiting') return from;
  return to === 'time' ? '…' : `→ ${to.replace('waits for ', '')}`;
}

/** Which calls a step is part of, as the end of a sentence. */
export function callsText(trace: Trace, step: TraceStep): string {
  const isFailure = step.to === 'failure';
  return callsAt(trace, step)
    .map(({ op, answer }) => {
      const how =
        answer !== undefined ? `which answers ${answer}` : isFailure ? 'which fails here' : 'which does not return';
      return `in ${op}, ${how}`;
    })
    .join('; then ');
}

export type ArrowKind = 'wake' | 'start' | 'hand-over';

/** What one step did for a later one of another task. */
export interface Arrow {
  readonly kind: ArrowKind;
  readonly from: number;
  readonly to: number;
}

export function arrowsOf({ steps }: Trace): Arrow[] {
  const arrows: Arrow[] = [];
  const base = steps[0]?.index ?? 0;
  const starts = new Map<number, number>();
  const released = new Map<number, number>();
  for (const [at, { task, wokenBy, locks, starts: started }] of steps.entries()) {
    if (wokenBy !== undefined && wokenBy >= base) arrows.push({ kind: 'wake', from: wokenBy - base, to: at });
    const start = starts.get(task);
    if (start !== undefined) arrows.push({ kind: 'start', from: start, to: at });
    starts.delete(task);
    for (const other of started) starts.set(other, at);
    for (const { op, lock } of locks) {
      const before = released.get(lock);
      if (op === 'release') released.set(lock, at);
      else if (before !== undefined && steps[before]?.task !== task)
        arrows.push({ kind: 'hand-over', from: before, to: at });
    }
  }
  return arrows;
}

/** Where a task is. */
export interface TaskState {
  readonly lane: Lane;
  readonly words: string;
  readonly isWaiting: boolean;
  /** Locks held after the step: indices, and whether with others. */
  readonly holds: readonly { readonly lock: number; readonly shared: boolean }[];
}

function whereabouts(step: TraceStep | undefined, at: number, cursor: number, wokenAt: number | undefined): string {
  if (step === undefined) return 'has not run yet';
  if (at === cursor) return step.to === 'failure' ? 'fails here' : `runs; stops at ${step.to}`;
  if (step.to === 'end') return 'has ended';
  const isParked = step.to.startsWith('waits for') || step.to === 'time';
  if (wokenAt !== undefined) return 'ready: was woken';
  if (step.to === 'time') return 'waits until a set time, which may have come';
  return isParked ? step.to : `ready at ${step.to}`;
}

/** All tasks after a step. */
export function statesAt({ steps }: Trace, lanes: readonly Lane[], cursor: number): TaskState[] {
  const last = new Map<number, number>();
  const woken = new Map<number, number>();
  const holds = new Map<number, { lock: number; shared: boolean }[]>();
  for (const [at, { task, locks, wakes }] of steps.entries()) {
    if (at > cursor) break;
    last.set(task, at);
    woken.delete(task);
    for (const other of wakes) woken.set(other, at);
    const held = holds.get(task) ?? [];
    holds.set(task, held);
    for (const { op, lock, shared } of locks) {
      if (op === 'acquire') held.push({ lock, shared });
      else {
        const place = held.findLastIndex((one) => one.lock === lock);
        if (place >= 0) held.splice(place, 1);
      }
    }
  }
  return lanes.map((lane) => {
    const at = last.get(lane.task) ?? -1;
    const words = whereabouts(steps[at], at, cursor, woken.get(lane.task));
    return { lane, words, isWaiting: words.startsWith('waits '), holds: holds.get(lane.task) ?? [] };
  });
}

/** How a step touches a word, if it does. */
export function touch({ accesses }: TraceStep, word: number | undefined): AccessKind | undefined {
  return word === undefined ? undefined : accesses.find((access) => access.word === word)?.kind;
}

/** Which steps are shown. */
export interface Filter {
  readonly hidden: ReadonlySet<number>;
  readonly word: number | undefined;
  readonly lock: number | undefined;
  /** Only steps that touch the word or the lock that is chosen. */
  readonly isOnly: boolean;
}

export function rowsOf({ steps, end }: Trace, { hidden, word, lock, isOnly }: Filter): number[] {
  const isShown = (step: TraceStep): boolean => {
    if (step.to === 'failure') return true;
    if (hidden.has(step.task)) return false;
    if (!isOnly || (word === undefined && lock === undefined)) return true;
    return touch(step, word) !== undefined || step.locks.some((event) => event.lock === lock);
  };
  return [...steps.flatMap((step, at) => (isShown(step) ? [at] : [])), ...(end === undefined ? [] : [steps.length])];
}

/** Where the run failed, or ended. */
export function lastAt({ steps, end }: Trace): number {
  return end === undefined ? steps.length - 1 : steps.length;
}

/** The first row whose step is not before `at`. */
export function rowAt(rows: readonly number[], at: number): number {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((rows[middle] ?? 0) < at) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Whether a step was not what would have gone on by itself. */
export function isDeviation({ choices }: TraceStep): boolean {
  return choices.some(isDeviating);
}
