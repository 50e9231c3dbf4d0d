/**
 * Which two accesses of a trace explain its failure.
 *
 * A race is a pair of accesses to one word by two tasks, at least one of them a write, that nothing orders: no lock that both hold, no
 * chain of wake-ups, starts, lock hand-overs or register accesses from one to the other. Orders are vector clocks. Of all such pairs the
 * last one of each word counts, and of those the ones nearest to the failure: of words that its message names, in the step that failed.
 *
 * A failure without a race may be a matter of order: every access was protected, and the critical sections came in an order that
 * nobody had thought of. Then the sections are told ({@link Section}). It may as well be one task's own fault, or about words
 * that nobody records.
 */
import { LOCK_EVENTS, type Trace, type TraceAccess, type TraceStep, type TraceWord } from './trace.js';

/** One side of a race. */
export interface RaceAccess {
  /** Index in `trace.steps`. */
  readonly at: number;
  readonly access: TraceAccess;
}

/** Two accesses that nothing orders, the earlier one first. */
export interface RacePair {
  readonly word: number;
  readonly first: RaceAccess;
  readonly second: RaceAccess;
}

/** A task held a lock from one step to another. */
export interface Section {
  readonly lock: number;
  readonly task: number;
  readonly shared: boolean;
  /** Indices in `trace.steps`; the lock was still held at the end where `to` is undefined. */
  readonly from: number;
  readonly to: number | undefined;
}

/** What explains a failure. */
export interface Race {
  /** The best first. */
  readonly pairs: readonly RacePair[];
  /** Critical sections of locks that several tasks took, the last ones; where there is no pair. */
  readonly sections: readonly Section[];
}

/** How words take part: counts are atomic, so two changes of one are no race; some words order tasks, some are the testbed's own. */
type Role = 'data' | 'count' | 'orders' | 'ignored';

/** By what objects are called; the first that fits. */
const ROLES: readonly (readonly [RegExp, Role])[] = [
  [/^(mutex|rwsem|waiters|checks of|table checks|fault|name|machine)/, 'ignored'],
  [/^(SMMU register|transactions|command queue|event queue)/, 'orders'],
  [/^(objects of|\/dev\/iommu|groups of|ASIDs|descriptors)/, 'count'],
];

function roleOf({ object, field }: TraceWord): Role {
  if (field === 'invalidations') return 'orders';
  if (field === 'free' || field === 'numbers' || field === 'next address') return 'ignored';
  if (/^(pins of |locked_vm|pinned_vm)| in flight$/.test(field)) return 'count';
  const found = ROLES.find(([pattern]) => pattern.test(object))?.[1];
  return found ?? (field === 'users' || field === 'references' ? 'count' : 'data');
}

type Clock = Map<number, number>;

function join(into: Clock, from: Clock | undefined): void {
  if (from !== undefined) for (const [task, at] of from) if (at > (into.get(task) ?? 0)) into.set(task, at);
}

function clockOf<K>(clocks: Map<K, Clock>, key: K): Clock {
  const known = clocks.get(key);
  if (known !== undefined) return known;
  const made: Clock = new Map();
  clocks.set(key, made);
  return made;
}

/** When an access was, among those of its task: a number that grows with steps and, within a step, with its lock events. */
function momentOf({ at, access }: RaceAccess): number {
  return at * LOCK_EVENTS + access.locksBefore;
}

/** Goes through the steps and knows, at each access, what came before it. */
class Order {
  readonly #tasks = new Map<number, Clock>();
  /** What a lock hands over: from writers, and from readers to writers. */
  readonly #written = new Map<number, Clock>();
  readonly #readers = new Map<number, Clock>();
  readonly #words = new Map<number, Clock>();
  readonly #pending = new Map<number, Clock>();

  /** The clock of a step, once its predecessors are known. */
  enter({ task }: TraceStep, at: number): Clock {
    const clock = clockOf(this.#tasks, task);
    join(clock, this.#pending.get(task));
    this.#pending.delete(task);
    clock.set(task, at * LOCK_EVENTS + 1);
    return clock;
  }

  /** A step takes or gives back a lock: its `index`-th lock event. */
  pass({ task, locks }: TraceStep, at: number, index: number): void {
    const event = locks[index];
    if (event === undefined) return;
    const { op, lock, shared } = event;
    const clock = clockOf(this.#tasks, task);
    if (op === 'acquire') {
      join(clock, this.#written.get(lock));
      if (!shared) join(clock, this.#readers.get(lock));
    } else join(clockOf(shared ? this.#readers : this.#written, lock), clock);
    clock.set(task, at * LOCK_EVENTS + index + 2);
  }

  /** What a step hands over to those it woke or started. */
  leave({ task, wakes, starts }: TraceStep): void {
    const clock = clockOf(this.#tasks, task);
    for (const other of [...wakes, ...starts]) join(clockOf(this.#pending, other), clock);
  }

  /** A word that orders: who reads it comes after who wrote it. */
  through({ word, kind }: TraceAccess, clock: Clock): void {
    join(clock, this.#words.get(word));
    if (kind !== 'read') join(clockOf(this.#words, word), clock);
  }
}

/** What of two accesses to a count is no race: each is atomic and leaves it right. */
function isCounting({ kind }: TraceAccess): boolean {
  return kind === 'write' || kind === 'update';
}

function isChange({ kind }: TraceAccess): boolean {
  return kind === 'write' || kind === 'test';
}

/** Whether a lock that both held excludes them from each other. */
function isLocked(a: TraceAccess, b: TraceAccess): boolean {
  return a.held.some((lock) => {
    const index = lock < 0 ? -1 - lock : lock;
    return b.held.some((other) => (other < 0 ? -1 - other : other) === index && (lock >= 0 || other >= 0));
  });
}

/** The last unordered pair of each word. */
function pairsOf(trace: Trace): RacePair[] {
  const order = new Order();
  const roles = trace.words.map(roleOf);
  /** By word, then by task: the last read and the last change. */
  const last = new Map<number, Map<number, { read?: RaceAccess; change?: RaceAccess }>>();
  const found = new Map<number, RacePair>();
  for (const [at, step] of trace.steps.entries()) {
    const clock = order.enter(step, at);
    let passed = 0;
    for (const access of step.accesses) {
      while (passed < access.locksBefore) order.pass(step, at, passed++);
      const { word } = access;
      const role = roles[word];
      if (role === 'orders') order.through(access, clock);
      if (role === 'ignored' || role === 'orders') continue;
      const byTask = last.get(word) ?? new Map<number, { read?: RaceAccess; change?: RaceAccess }>();
      last.set(word, byTask);
      for (const [task, { read, change }] of byTask) {
        if (task === step.task) continue;
        for (const before of isChange(access) ? [read, change] : [change]) {
          if (before === undefined || (clock.get(task) ?? 0) > momentOf(before) || isLocked(before.access, access))
            continue;
          if (role === 'count' && isCounting(before.access) && isCounting(access)) continue;
          found.set(word, { word, first: before, second: { at, access } });
        }
      }
      const own = byTask.get(step.task) ?? {};
      byTask.set(step.task, own);
      own[isChange(access) ? 'change' : 'read'] = { at, access };
    }
    while (passed < step.locks.length) order.pass(step, at, passed++);
    order.leave(step);
  }
  return [...found.values()];
}

/** Addresses and numbers a message names; page numbers as addresses, too. */
function namedIn(message: string): string[] {
  const addresses = message.match(/0x[0-9a-f]+/g) ?? [];
  return addresses.flatMap((text) => [text, `0x${(Number(text) * 4096).toString(16)}`]);
}

function scoreOf(trace: Trace, pair: RacePair, named: readonly string[]): number {
  const { failure, words, steps, tasks } = trace;
  const word = words[pair.word];
  if (word === undefined) return 0;
  const ends = [`${word.object} `, `${word.field} `, `${word.object}.`];
  const isNamed = named.some((name) => ends.some((end) => end.includes(`${name} `)));
  const tasksOf = [pair.first, pair.second].map(({ at }) => tasks.find(({ number }) => number === steps[at]?.task));
  const nearness = pair.second.at / Math.max(1, steps.length - 1);
  const hasChange = [pair.first, pair.second].some(
    ({ access }) => access.before !== access.after && access.kind === 'write',
  );
  return (
    (isNamed ? 100 : 0) +
    (pair.second.at === steps.length - 1 ? 50 : 0) +
    (tasksOf.some((task) => task?.name === failure?.task) ? 30 : 0) +
    (tasksOf.every((task) => task?.isProgram) ? 15 : 0) +
    (roleOf(word) === 'data' ? 20 : 0) +
    (hasChange ? 10 : 0) +
    20 * nearness
  );
}

/** How many pairs are told. */
const MOST_PAIRS = 3;
/** How many critical sections are told. */
const MOST_SECTIONS = 10;

/** Critical sections, in the order in which they began. */
export function sectionsOf({ steps }: Pick<Trace, 'steps'>): Section[] {
  const sections: { lock: number; task: number; shared: boolean; from: number; to: number | undefined }[] = [];
  for (const [at, { task, locks }] of steps.entries()) {
    for (const { op, lock, shared } of locks) {
      if (op === 'acquire') sections.push({ lock, task, shared, from: at, to: undefined });
      else {
        const open = sections.findLast(
          (section) => section.lock === lock && section.task === task && section.to === undefined,
        );
        if (open !== undefined) open.to = at;
      }
    }
  }
  return sections;
}

/** What explains the failure of a trace. */
export function findRace(trace: Trace): Race {
  if (trace.failure === undefined) return { pairs: [], sections: [] };
  const named = namedIn(trace.failure.message);
  const pairs = pairsOf(trace)
    .map((pair) => ({ pair, score: scoreOf(trace, pair, named) }))
    .sort((a, b) => b.score - a.score || b.pair.second.at - a.pair.second.at || a.pair.word - b.pair.word)
    .slice(0, MOST_PAIRS)
    .map(({ pair }) => pair);
  if (pairs.length > 0) return { pairs, sections: [] };
  const all = sectionsOf(trace);
  const isShared = (lock: number): boolean => new Set(all.filter((s) => s.lock === lock).map((s) => s.task)).size > 1;
  return { pairs, sections: all.filter(({ lock }) => isShared(lock)).slice(-MOST_SECTIONS) };
}
