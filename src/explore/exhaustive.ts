/**
 * Exhaustive exploration: every order that matters, depth first, within a bound on pre-emptions.
 *
 * A run is a sequence of *transitions*, a task from where it was chosen to where it yields. Two transitions depend on each other when they
 * touch a word of which at least one changes it; only the order of such pairs matters. After each run, for every pair that depends
 * and that nothing orders, the search goes back to before the first and lets the second's task go on there (dynamic partial-order
 * reduction); what was tried already and depends on nothing that happened since is asleep and is not tried again (sleep sets).
 *
 * What a sleeping task would touch is known from another run, and objects have no names that outlive a run. They are numbered in the order
 * in which a run meets them, and so are words. Two runs that made the same choices up to a branch have met the same things there, in the same
 * order: numbers given before the branch mean the same in both. Of a word met later the number says nothing; it goes by its field and its
 * object's number, or, where the object was met later as well, by the kind of the object. Such names may be one for several words, so a
 * task may be woken for nothing (it costs a run), but two names of one word are never different: none sleeps on that should not.
 *
 * Under a bound of c pre-emptions a reduction may not be the plain one: going back is also tried where the first task's stretch
 * began, which costs no pre-emption, and nothing sleeps. Bounds are tried in turn, 0, 1, 2, …, so that the simplest failure comes first; a bound under which
 * nothing had to be left out ends the search: everything was seen.
 *
 * What code touches it says itself (runtime/watch.ts). Time passes only when nothing is ready; so it orders all that came before it and
 * all that comes after. Choices are numbered as if it could pass, as in every other strategy's schedules: what this search finds is
 * replayed, shrunk and kept like the rest.
 *
 * Source: Flanagan, Godefroid, POPL 2005; Godefroid 1996 (sleep sets); Abdulla et al., POPL 2014 (which task to go back with); Coons,
 * Musuvathi, McKinley, OOPSLA 2013 (bounded).
 */
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { Candidates, SchedulingPolicy } from '../runtime/policies.js';
import type { SchedulerObserver, TaskHandle } from '../runtime/scheduler.js';

/** Which words a transition touched: true for those it changed. */
type Footprint = ReadonlyMap<number, boolean>;

function depends(a: Footprint, b: Footprint): boolean {
  const [small, large] = a.size < b.size ? [a, b] : [b, a];
  for (const [word, changes] of small) {
    const other = large.get(word);
    if (other !== undefined && (changes || other)) return true;
  }
  return false;
}

/** How many words and objects a run has met somewhere. */
interface Met {
  readonly words: number;
  readonly objects: number;
}

/** What a transition touched, as runs can tell that made the same choices before it. */
interface TriedFootprint {
  /** What was met before it. */
  readonly met: Met;
  /** Words met before it, by number. */
  readonly known: Footprint;
  /** Others, by name. */
  readonly later: ReadonlyMap<string, boolean>;
}

/** A choice on the way that is being explored. Tasks go by number. */
interface Branch {
  readonly ready: readonly number[];
  /** The task that could have run on. */
  readonly running: number | undefined;
  /** Pre-emptions before this choice. */
  readonly preemptions: number;
  /** What the way here has met. */
  readonly met: Met;
  /** Tasks that were asleep already: they need not be tried. */
  readonly asleep: ReadonlySet<number>;
  chosen: number;
  /** Tasks to try. */
  readonly wanted: Set<number>;
  /** Tasks tried, with what their transition touched. */
  readonly tried: Map<number, TriedFootprint>;
}

/** A transition of the run under way. */
interface Transition {
  readonly task: number;
  /** Place among the transitions of its task, from 1. */
  readonly nth: number;
  /** The choice it began with; -1 where there was none. */
  readonly branch: number;
  /** The choice with which its task's stretch began. */
  readonly stretch: number;
  readonly footprint: Map<number, boolean>;
  /** What its task knew when it ended: by task, how many transitions came before. */
  clock: ReadonlyMap<number, number>;
}

/** Whether one transition comes before another because of what they touch, wake or start. */
function isBefore(a: Transition, b: Transition): boolean {
  return (b.clock.get(a.task) ?? 0) >= a.nth;
}

/** Who touched a word last. */
interface LastTouches {
  write: Transition | undefined;
  /** By task, since the last write. */
  readonly reads: Map<number, Transition>;
}

/** Ends a run that would repeat one seen before. */
class Pruned extends Error {
  override readonly name = 'Pruned';
}

/** Whether a run ended with this search's own error. */
export function isPruned(message: string): boolean {
  return message.includes('Pruned: ');
}

/** How far a search under one bound got. */
export interface BoundReport {
  readonly preemptions: number;
  /** Whole runs, and runs given up because they would have repeated one. */
  readonly runs: number;
  readonly pruned: number;
  /** Every order within the bound was seen. */
  readonly isComplete: boolean;
  /** Something was left out for the bound's sake. */
  readonly isBounded: boolean;
  /** Time could have passed while a task was ready; such stalls are left out, always. */
  readonly hasStalls: boolean;
}

/** A depth-first search under one bound. */
export class BoundedSearch {
  readonly #bound: number;
  readonly #stack: Branch[] = [];
  #run: ExploringRun | undefined;
  #isBounded = false;
  #hasStalls = false;
  #isDone = false;
  #runs = 0;
  #pruned = 0;

  constructor(preemptions: number) {
    this.#bound = preemptions;
  }

  get isDone(): boolean {
    return this.#isDone;
  }

  /** The schedule of the next run, by node. Nodes take turns in one order, so their choices are one sequence. */
  next(): (node: string) => ScheduleSpec {
    const run = new ExploringRun(this.#stack, this.#bound, {
      bounded: () => (this.#isBounded = true),
      stall: () => (this.#hasStalls = true),
    });
    this.#run = run;
    let nodes = 0;
    return () => {
      const view = new NodeView(run, TASKS_OF_A_NODE * nodes++);
      return { strategy: 'policy', policy: view, observer: view };
    };
  }

  /** The run is over; goes on to the next one that is needed. */
  ended(wasPruned: boolean): void {
    if (wasPruned) this.#pruned++;
    else this.#runs++;
    this.#run?.finish();
    const stack = this.#stack;
    for (;;) {
      const branch = stack.at(-1);
      if (branch === undefined) {
        this.#isDone = true;
        return;
      }
      const next = [...branch.wanted].find((task) => !branch.tried.has(task) && !branch.asleep.has(task));
      if (next !== undefined) {
        branch.chosen = next;
        return;
      }
      stack.pop();
    }
  }

  report(): BoundReport {
    return {
      preemptions: this.#bound,
      runs: this.#runs,
      pruned: this.#pruned,
      isComplete: this.#isDone,
      isBounded: this.#isBounded,
      hasStalls: this.#hasStalls,
    };
  }
}

/** Numbers of tasks are made different for different nodes by adding so many. */
const TASKS_OF_A_NODE = 2 ** 24;

/** A node's part of a run. */
class NodeView implements SchedulingPolicy, SchedulerObserver {
  readonly name = 'exhaustive';
  readonly preemptsAtGates = true;
  /** Time is never chosen, but it is a candidate: see above. */
  readonly stalls = true;
  readonly #run: ExploringRun;
  readonly #offset: number;

  constructor(run: ExploringRun, offset: number) {
    this.#run = run;
    this.#offset = offset;
  }

  choose({ ready, running, canStall }: Candidates): number {
    if (canStall) this.#run.stallLeftOut();
    if (ready.length === 1) return 0;
    const numbers = ready.map(({ number }) => this.#offset + number);
    return this.#run.choose(numbers, running === undefined ? undefined : this.#offset + running.number);
  }

  chosen(): void {
    // Noted in choose.
  }

  started(task: TaskHandle<unknown>, by: TaskHandle<unknown> | undefined): void {
    this.woken(task, by);
  }

  woken({ number }: TaskHandle<unknown>, by: TaskHandle<unknown> | undefined): void {
    if (by === undefined) this.#run.wokenByTime(this.#offset + number, this.#offset);
    else this.#run.woken(this.#offset + number);
  }

  resumed({ number }: TaskHandle<unknown>): void {
    this.#run.resumed(this.#offset + number);
  }

  suspended(): void {
    this.#run.suspended();
  }

  lock(): void {
    // Locks are words like others.
  }

  access(object: object, field: string, isWrite: boolean): void {
    this.#run.access(object, field, isWrite);
  }
}

/** Is told what is left out. */
interface LeftOut {
  bounded(): void;
  stall(): void;
}

/** One run of a search: chooses, looks on, and notes where to go back to. */
class ExploringRun {
  readonly #stack: Branch[];
  readonly #bound: number;
  readonly #leftOut: LeftOut;
  /** Choices made so far in this run. */
  #depth = 0;
  #preemptions = 0;
  /** Tasks that need not go on until something they depend on happened. */
  #asleep = new Map<number, TriedFootprint>();
  readonly #words = new Words();
  readonly #last = new Map<number, LastTouches>();
  /** What each task knows of the others: by task, how many of its transitions came before. */
  readonly #clocks = new Map<number, Map<number, number>>();
  readonly #counts = new Map<number, number>();
  readonly #trace: Transition[] = [];
  #current: Transition | undefined;
  /** Transitions that the current one depends on. */
  readonly #conflicts = new Set<Transition>();
  /** Tasks that the current transition has woken or started. */
  readonly #woken = new Set<number>();
  #nextBranch = -1;
  #lastTask: number | undefined;
  #stretch = -1;

  constructor(stack: Branch[], bound: number, leftOut: LeftOut) {
    this.#stack = stack;
    this.#bound = bound;
    this.#leftOut = leftOut;
  }

  /** Index of the task that goes on. */
  choose(ready: readonly number[], running: number | undefined): number {
    const depth = this.#depth++;
    let branch = this.#stack[depth];
    if (branch === undefined) {
      const chosen = this.#fresh(ready, running);
      branch = {
        ready,
        running,
        preemptions: this.#preemptions,
        met: this.#words.met,
        asleep: new Set(this.#asleep.keys()),
        chosen,
        wanted: new Set([chosen]),
        tried: new Map(),
      };
      this.#stack.push(branch);
    }
    // What was tried here before is asleep for what follows.
    if (this.#bound === Infinity) for (const [task, footprint] of branch.tried) this.#asleep.set(task, footprint);
    this.#asleep.delete(branch.chosen);
    if (branch.running !== undefined && branch.chosen !== branch.running) this.#preemptions++;
    this.#nextBranch = depth;
    return ready.indexOf(branch.chosen);
  }

  /** Of a choice that is new: the running task, if there is nothing against it. */
  #fresh(ready: readonly number[], running: number | undefined): number {
    const awake = ready.filter((task) => !this.#asleep.has(task));
    if (running !== undefined && awake.includes(running)) return running;
    const [first] = awake;
    if (first === undefined) throw new Pruned('every task is asleep');
    if (running !== undefined && this.#preemptions >= this.#bound) {
      this.#leftOut.bounded();
      return running;
    }
    return first;
  }

  // --- looking on ---

  stallLeftOut(): void {
    this.#leftOut.stall();
  }

  woken(task: number): void {
    this.#woken.add(task);
  }

  /** Time has passed, so nothing was ready: everything of this node comes before what the task does now. */
  wokenByTime(task: number, firstOfNode: number): void {
    for (const [other, clock] of this.#clocks)
      if (other >= firstOfNode && other < firstOfNode + TASKS_OF_A_NODE) this.#learn(task, clock);
  }

  resumed(number: number): void {
    this.suspended();
    if (this.#nextBranch < 0 && this.#asleep.has(number)) throw new Pruned('the only task is asleep');
    if (this.#lastTask !== number) this.#stretch = this.#nextBranch;
    this.#lastTask = number;
    const nth = (this.#counts.get(number) ?? 0) + 1;
    this.#counts.set(number, nth);
    const clock = this.#clockOf(number);
    clock.set(number, nth);
    this.#current = {
      task: number,
      nth,
      branch: this.#nextBranch,
      stretch: this.#stretch,
      footprint: new Map(),
      clock,
    };
    this.#nextBranch = -1;
  }

  /** The transition has ended: what races with it is to be tried the other way round. */
  suspended(): void {
    const current = this.#current;
    if (current === undefined) return;
    this.#current = undefined;
    const races = this.#racesWith(current);
    for (const before of this.#conflicts) this.#learn(current.task, before.clock);
    this.#conflicts.clear();
    current.clock = new Map(this.#clockOf(current.task));
    for (const task of this.#woken) this.#learn(task, current.clock);
    this.#woken.clear();
    for (const before of races) this.#reverse(before, current);
    this.#trace.push(current);
    for (const [task, tried] of this.#asleep) if (this.#wakes(tried, current.footprint)) this.#asleep.delete(task);
    const branch = this.#stack[current.branch];
    if (branch !== undefined) branch.tried.set(current.task, this.#words.since(branch.met, current.footprint));
  }

  /** Whether what a sleeping task would touch depends on a transition of this run. */
  #wakes({ met, known, later }: TriedFootprint, footprint: Footprint): boolean {
    if (depends(known, footprint)) return true;
    if (later.size === 0) return false;
    for (const [word, changes] of footprint) {
      if (word < met.words) continue;
      const other = later.get(this.#words.nameOf(word, met));
      if (other !== undefined && (changes || other)) return true;
    }
    return false;
  }

  access(object: object, field: string, isWrite: boolean): void {
    const current = this.#current;
    if (current === undefined) return;
    const word = this.#words.numberOf(object, field);
    const { footprint, task } = current;
    const known = footprint.get(word);
    if (known === true || known === isWrite) return;
    footprint.set(word, isWrite);
    const last = this.#last.get(word) ?? { write: undefined, reads: new Map<number, Transition>() };
    this.#last.set(word, last);
    if (last.write !== undefined && last.write.task !== task) this.#conflicts.add(last.write);
    if (!isWrite) {
      last.reads.set(task, current);
      return;
    }
    for (const read of last.reads.values()) if (read.task !== task) this.#conflicts.add(read);
    last.reads.clear();
    last.write = current;
  }

  /** Transitions that depend on this one and come before it for no reason but the schedule. */
  #racesWith({ task }: Transition): Transition[] {
    const known = this.#clockOf(task);
    const conflicts = [...this.#conflicts];
    return conflicts.filter(
      (before) =>
        (known.get(before.task) ?? 0) < before.nth &&
        !conflicts.some((other) => other !== before && isBefore(before, other)),
    );
  }

  /** Goes back to before the first of two racing transitions. */
  #reverse(before: Transition, current: Transition): void {
    if (this.#bound < Infinity) {
      this.#want(before.branch, [current.task]);
      if (before.stretch !== before.branch) this.#want(before.stretch, [current.task]);
      return;
    }
    // What comes after the first and not because of it, up to the second, can come before it: whoever begins that goes on there.
    const at = this.#trace.lastIndexOf(before);
    const moved = [...this.#trace.slice(at + 1).filter((later) => !isBefore(before, later)), current];
    const seen = new Set<number>();
    const initials = moved.filter((transition, i) => {
      const isFirst = !seen.has(transition.task);
      seen.add(transition.task);
      return isFirst && !moved.slice(0, i).some((earlier) => isBefore(earlier, transition));
    });
    this.#want(
      before.branch,
      initials.map(({ task }) => task),
    );
  }

  /** At a choice, one of these tasks is to go on (if none is wanted there already); where none could, all that could are. */
  #want(index: number, tasks: readonly number[]): void {
    const branch = this.#stack[index];
    if (branch === undefined) return;
    const able = tasks.filter((task) => branch.ready.includes(task));
    if (this.#bound === Infinity && able.some((task) => branch.wanted.has(task) || branch.asleep.has(task))) return;
    for (const wanted of able.length > 0 ? able.slice(-1) : branch.ready) {
      const isPreemption = branch.running !== undefined && wanted !== branch.running;
      if (isPreemption && branch.preemptions >= this.#bound) this.#leftOut.bounded();
      else branch.wanted.add(wanted);
    }
  }

  /** A task that ended a run in the middle of a transition has tried it, too. */
  finish(): void {
    this.suspended();
  }

  #learn(task: number, from: ReadonlyMap<number, number>): void {
    const clock = this.#clockOf(task);
    for (const [other, nth] of from) if ((clock.get(other) ?? 0) < nth) clock.set(other, nth);
  }

  #clockOf(task: number): Map<number, number> {
    const clock = this.#clocks.get(task) ?? new Map<number, number>();
    this.#clocks.set(task, clock);
    return clock;
  }
}

/** The words of a run. */
class Words {
  readonly #objects = new Map<object, { readonly number: number; readonly fields: Map<string, number> }>();
  /** By word: number and kind of its object, and its field. */
  readonly #list: { readonly object: number; readonly kind: string; readonly field: string }[] = [];

  get met(): Met {
    return { words: this.#list.length, objects: this.#objects.size };
  }

  numberOf(object: object, field: string): number {
    let known = this.#objects.get(object);
    if (known === undefined) {
      known = { number: this.#objects.size, fields: new Map() };
      this.#objects.set(object, known);
    }
    let word = known.fields.get(field);
    if (word === undefined) {
      word = this.#list.push({ object: known.number, kind: object.constructor.name, field }) - 1;
      known.fields.set(field, word);
    }
    return word;
  }

  /** The name of a word that was met later. */
  nameOf(word: number, met: Met): string {
    const { object, kind, field } = this.#list[word] ?? NO_WORD;
    return object < met.objects ? `${object} ${field}` : `${kind} ${field}`;
  }

  /** A footprint in words that runs can tell that had met the same. */
  since(met: Met, footprint: Footprint): TriedFootprint {
    const known = new Map<number, boolean>();
    const later = new Map<string, boolean>();
    for (const [word, changes] of footprint) {
      if (word < met.words) known.set(word, changes);
      else {
        const name = this.nameOf(word, met);
        later.set(name, changes || later.get(name) === true);
      }
    }
    return { met, known, later };
  }
}

const NO_WORD = { object: -1, kind: '', field: '' };
