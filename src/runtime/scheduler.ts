/**
 * The scheduler of one node: a virtual clock, timers and ready tasks.
 *
 * Nothing here reads a clock of the machine. `runUntil(horizon)` runs everything whose time lies before the horizon and
 * returns; the conductor (src/testbed) then exchanges messages and calls again. Whenever more than one task could go on,
 * the policy chooses, and the choice is recorded: the list of choices is the *schedule* of the node, and feeding it back
 * (`recordedPolicy`) repeats the run.
 *
 * Invariants: `now` never goes back; a task is in exactly one of {running, ready, timer heap, one wait queue, done}; with
 * the same policy and the same inputs the same steps are taken in the same order.
 */
import { InvariantError, WaitQueue, type Task, type Wait, type Waiter } from './task.js';
import { TimerHeap } from './timer-heap.js';
import type { RandomStream } from './random.js';

/** Decides which ready task goes on. */
export interface SchedulingPolicy {
  readonly name: string;
  /** Whether a task that reaches a gate offers the others a turn. */
  readonly preemptsAtGates: boolean;
  /** Index into `ready` (length >= 2), which is ordered by the moment of becoming ready. */
  choose(ready: readonly TaskHandle<unknown>[]): number;
}

/** First come, first served; gates do not pre-empt. */
export const inOrderPolicy: SchedulingPolicy = { name: 'in-order', preemptsAtGates: false, choose: () => 0 };

/** Uniformly random among the ready tasks, at every gate. */
export function randomPolicy(random: RandomStream): SchedulingPolicy {
  return { name: 'random', preemptsAtGates: true, choose: (ready) => random.below(ready.length) };
}

/** Repeats recorded choices; InvariantError when they do not fit the run. */
export function recordedPolicy(choices: readonly number[], preemptsAtGates: boolean): SchedulingPolicy {
  let next = 0;
  return {
    name: 'recorded',
    preemptsAtGates,
    choose: (ready) => {
      const choice = choices[next++];
      if (choice === undefined || choice >= ready.length) {
        throw new InvariantError(
          `recorded schedule does not fit: choice ${next} of ${choices.length} among ${ready.length} tasks`,
        );
      }
      return choice;
    },
  };
}

/** A task in the hands of the scheduler. */
export interface TaskHandle<T> {
  readonly name: string;
  readonly isDaemon: boolean;
  readonly isDone: boolean;
  /** Where the task waits, for reports; undefined while it is ready or running. */
  readonly waitsFor: string | undefined;
  /** Yields until the task is done and returns its result; rethrows its error. */
  join(): Task<T>;
}

interface TaskOptions {
  /** A daemon may wait for ever: it does not count as stuck when a run ends. */
  readonly daemon?: boolean;
}

class RunningTask<T> implements TaskHandle<T>, Waiter {
  readonly name: string;
  readonly isDaemon: boolean;
  readonly body: Task<T>;
  readonly finished: WaitQueue;
  isDone = false;
  isJoined = false;
  waitsFor: string | undefined;
  result: T | undefined;
  error: Error | undefined;
  readonly #scheduler: Scheduler;

  constructor(scheduler: Scheduler, name: string, body: Task<T>, isDaemon: boolean) {
    this.#scheduler = scheduler;
    this.name = name;
    this.body = body;
    this.isDaemon = isDaemon;
    this.finished = new WaitQueue(`end of ${name}`);
  }

  makeReady(): void {
    this.waitsFor = undefined;
    this.#scheduler.enqueue(this);
  }

  *join(): Task<T> {
    this.isJoined = true;
    while (!this.isDone) yield this.finished;
    if (this.error !== undefined) throw this.error;
    return this.result as T;
  }
}

/** A node that takes this many task steps without time moving is caught in a loop. */
const MAX_STEPS_WITHOUT_TIME = 20_000_000;

/** One node's tasks and virtual time (nanoseconds, exact integers below 2^53). */
export class Scheduler {
  readonly policy: SchedulingPolicy;
  /** Every choice among two or more ready tasks, in order: the schedule. */
  readonly choices: number[] = [];
  #now = 0;
  #stepsNow = 0;
  #current: RunningTask<unknown> | undefined;
  readonly #ready: RunningTask<unknown>[] = [];
  readonly #timers = new TimerHeap();
  readonly #live = new Set<RunningTask<unknown>>();

  constructor(policy: SchedulingPolicy = inOrderPolicy) {
    this.policy = policy;
  }

  get now(): number {
    return this.#now;
  }

  /** Name of the task that is running, for events. */
  get currentTask(): string {
    return this.#current?.name ?? '-';
  }

  /**
   * Starts a task; it becomes ready now, behind those that are ready already. A task that fails and that nobody joins
   * ends the run with its error.
   */
  spawn<T>(name: string, body: Task<T>, options: TaskOptions = {}): TaskHandle<T> {
    const task = new RunningTask(this, name, body, options.daemon ?? false);
    this.#live.add(task);
    this.enqueue(task);
    return task;
  }

  /** Calls `action` at virtual time `atNs` (not before now), before any task that becomes ready then. */
  callAt(atNs: number, action: () => void): void {
    this.#timers.add(Math.max(atNs, this.#now), action);
  }

  /** Earliest time at which this node has something to do; Infinity when it only waits for messages. */
  nextTime(): number {
    return this.#ready.length > 0 ? this.#now : this.#timers.nextTime();
  }

  /** Runs everything that happens before `horizonNs`. */
  runUntil(horizonNs: number): void {
    for (;;) {
      while (this.#ready.length > 0) {
        this.#step(this.#take());
        if (++this.#stepsNow > MAX_STEPS_WITHOUT_TIME) {
          throw new InvariantError(`no progress: ${MAX_STEPS_WITHOUT_TIME} steps at ${this.#now} ns`);
        }
      }
      const next = this.#timers.nextTime();
      if (next >= horizonNs) return;
      if (next > this.#now) this.#stepsNow = 0;
      this.#now = next;
      this.#timers.fireAt(next);
    }
  }

  /** Tasks that are neither done nor daemons, with what they wait for. Meaningful when nothing is left to run. */
  unfinished(): TaskHandle<unknown>[] {
    return [...this.#live].filter((task) => !task.isDaemon);
  }

  /** For {@link RunningTask.makeReady} only. */
  enqueue(task: RunningTask<unknown>): void {
    this.#ready.push(task);
  }

  #take(): RunningTask<unknown> {
    const ready = this.#ready;
    let index = 0;
    if (ready.length > 1) {
      index = this.policy.choose(ready);
      this.choices.push(index);
    }
    const [task] = ready.splice(index, 1);
    if (task === undefined) throw new InvariantError('policy chose a task that is not ready');
    return task;
  }

  #step(task: RunningTask<unknown>): void {
    this.#current = task;
    try {
      for (;;) {
        const step = task.body.next();
        if (step.done === true) {
          task.result = step.value;
          this.#finish(task);
          return;
        }
        if (this.#suspend(task, step.value)) return;
      }
    } catch (error) {
      if (error instanceof InvariantError) throw error;
      task.error = error instanceof Error ? error : new Error(String(error));
      this.#finish(task);
      if (!task.isJoined) throw task.error;
    } finally {
      this.#current = undefined;
    }
  }

  /** Puts the task where `wait` says; false when it may go straight on. */
  #suspend(task: RunningTask<unknown>, wait: Wait): boolean {
    if (typeof wait === 'string') {
      if (!this.policy.preemptsAtGates || this.#ready.length === 0) return false;
      this.#ready.push(task);
    } else if (typeof wait === 'number') {
      task.waitsFor = 'time';
      this.#timers.add(this.#now + wait, () => task.makeReady());
    } else {
      task.waitsFor = wait.name;
      wait.park(task);
    }
    return true;
  }

  #finish(task: RunningTask<unknown>): void {
    task.isDone = true;
    this.#live.delete(task);
    task.finished.wakeAll();
  }
}
