/**
 * Scheduling policies: who goes on where several could.
 *
 * A policy is asked only where there is a choice. Candidates are the ready tasks, in the order in which they became ready, and,
 * for policies that stall, *time*: letting it pass keeps every ready task off its CPU until the next timer, as a long
 * pre-emption does. Answers are indices, `ready.length` standing for time; the list of answers is the schedule.
 *
 * The *default* choice is to let the running task run on; a schedule can therefore be written as its deviations from that
 * ({@link Deviation}), which is what shrinking makes small and what a corpus file holds.
 */
import { isHeldBack, TIME, type Deviation, type HeldBack, type Switch } from './deviations.js';
import type { RandomStream } from './random.js';
import type { TaskHandle } from './scheduler.js';
import { InvariantError } from './task.js';

/** What a policy chooses from. */
export interface Candidates {
  /** In the order of becoming ready; a task that offers its turn at a gate is the last. */
  readonly ready: readonly TaskHandle<unknown>[];
  /** Time may pass instead: there is a timer and no ready task has been kept waiting for too long. */
  readonly canStall: boolean;
  /** The task that ran last, if it could run on. */
  readonly running: TaskHandle<unknown> | undefined;
}

/** Decides which ready task goes on. */
export interface SchedulingPolicy {
  readonly name: string;
  /** Whether a task that reaches a gate offers the others a turn. */
  readonly preemptsAtGates: boolean;
  /** Whether time may pass while tasks are ready. */
  readonly stalls: boolean;
  /** Index into `ready`, or `ready.length` for time where `canStall`. There are at least two candidates. */
  choose(candidates: Candidates): number;
}

/** What a schedule was made with, so that it can be repeated. */
export type GateMode = 'in-order' | 'random' | 'explored';

/** How a deviation calls a candidate: by its name, with its number where several have that. */
export function candidateName(ready: readonly TaskHandle<unknown>[], index: number): string {
  const task = ready[index];
  if (task === undefined) return TIME;
  const isAlone = ready.filter(({ name }) => name === task.name).length === 1;
  return isAlone ? task.name : `${task.name}#${task.number}`;
}

/** First come, first served; gates do not pre-empt. */
export const inOrderPolicy: SchedulingPolicy = {
  name: 'in-order',
  preemptsAtGates: false,
  stalls: false,
  choose: () => 0,
};

/** Uniformly random among the ready tasks, at every gate; with `stalls`, time is one more candidate. */
export function randomPolicy(random: RandomStream, stalls = false): SchedulingPolicy {
  return {
    name: 'random',
    preemptsAtGates: true,
    stalls,
    choose: ({ ready, canStall }) => random.below(ready.length + (canStall ? 1 : 0)),
  };
}

/** What is chosen where nothing else is wanted: the running task runs on, else the one that has been ready longest. */
export function defaultChoice({ ready, running }: Candidates): number {
  return running === undefined ? 0 : Math.max(0, ready.indexOf(running));
}

/** Repeats recorded choices; InvariantError when they do not fit the run. */
export function recordedPolicy(choices: readonly number[], mode: GateMode): SchedulingPolicy {
  let next = 0;
  return {
    name: 'recorded',
    preemptsAtGates: mode !== 'in-order',
    stalls: mode === 'explored',
    choose: ({ ready, canStall }) => {
      const choice = choices[next++];
      const candidates = ready.length + (canStall ? 1 : 0);
      if (choice === undefined || choice >= candidates) {
        throw new InvariantError(
          `recorded schedule does not fit: choice ${next} of ${choices.length} among ${candidates} tasks`,
        );
      }
      return choice;
    },
  };
}

/** Whether a task is held back by that name: of several with one name all are, unless the number is said. */
function isHeld({ name, number }: TaskHandle<unknown>, { hold }: HeldBack): boolean {
  return hold === name || hold === `${name}#${number}`;
}

/** The default among those that are not held back. */
function choiceWithout(candidates: Candidates, held: readonly HeldBack[]): number {
  const { ready, canStall } = candidates;
  const usual = defaultChoice(candidates);
  const isFree = (task: TaskHandle<unknown> | undefined): boolean =>
    task !== undefined && !held.some((one) => isHeld(task, one));
  if (isFree(ready[usual])) return usual;
  const free = ready.findIndex(isFree);
  if (free >= 0) return free;
  return canStall ? ready.length : usual;
}

/**
 * The default but for the deviations. A switch to a task that cannot go on then is passed over: a schedule that is being shrunk, or
 * an old one on newer code, still says something.
 */
export function deviatingPolicy(deviations: readonly Deviation[]): SchedulingPolicy {
  const switches = deviations.filter((deviation): deviation is Switch => !isHeldBack(deviation));
  const holds = deviations.filter(isHeldBack);
  let at = 0;
  let next = 0;
  return {
    name: 'deviating',
    preemptsAtGates: true,
    stalls: true,
    choose: (candidates) => {
      const number = at++;
      const usual = (): number =>
        choiceWithout(
          candidates,
          holds.filter((one) => one.at <= number && number < one.until),
        );
      const wanted = switches[next];
      if (wanted?.at !== number) return usual();
      next++;
      const { ready, canStall } = candidates;
      if (wanted.to === TIME) return canStall ? ready.length : usual();
      const index = ready.findIndex((_, i) => candidateName(ready, i) === wanted.to);
      return index < 0 ? usual() : index;
    },
  };
}

/** What PCT needs to know beforehand. */
export interface PctOptions {
  /** d: a bug of this depth is found with probability at least 1 / (n * k^(d-1)). */
  readonly depth: number;
  /** k: choices in a run, as seen in an earlier one. */
  readonly choices: number;
}

/** Priorities below this belong to tasks that a change point demoted. */
const DEMOTED = 2 ** 16;

/**
 * Probabilistic concurrency testing: tasks have random priorities, the highest runs, and at the i-th of d-1 random choices the one
 * that would run gets priority i, below all that nobody demoted. Time has a priority like a task.
 *
 * Source: Burckhardt et al., A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010.
 */
export function pctPolicy(random: RandomStream, { depth, choices }: PctOptions): SchedulingPolicy {
  const priorities: number[] = [];
  const timePriority = { value: random.between(DEMOTED, 2 ** 32) };
  /** Choice by number: the priority that the task gets there, which says nothing about the order of the choices. */
  const changes = new Map<number, number>();
  const wanted = Math.min(depth - 1, choices, DEMOTED - 1);
  while (changes.size < wanted) {
    const choice = random.below(choices);
    if (!changes.has(choice)) changes.set(choice, changes.size + 1);
  }
  let at = 0;
  const priorityOf = ({ number }: TaskHandle<unknown>): number =>
    (priorities[number] ??= random.between(DEMOTED, 2 ** 32));
  const highest = ({ ready, canStall }: Candidates): number => {
    let best = 0;
    let bestPriority = -1;
    for (const [i, task] of ready.entries()) {
      const priority = priorityOf(task);
      if (priority > bestPriority) [best, bestPriority] = [i, priority];
    }
    return canStall && timePriority.value > bestPriority ? ready.length : best;
  };
  return {
    name: 'pct',
    preemptsAtGates: true,
    stalls: true,
    choose: (candidates) => {
      const chosen = highest(candidates);
      const demoted = changes.get(at++);
      if (demoted === undefined) return chosen;
      const task = candidates.ready[chosen];
      if (task === undefined) timePriority.value = demoted;
      else priorities[task.number] = demoted;
      return highest(candidates);
    },
  };
}
