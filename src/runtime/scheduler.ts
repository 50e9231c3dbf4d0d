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
import { LockOrder, setLockHolder, type HeldLock, type LockHolder } from './lock-order.js';
import { inOrderPolicy, type Candidates, type SchedulingPolicy } from './policies.js';
import { InvariantError, WaitQueue, type Task, type Wait, type Waiter } from './task.js';
import { TimerHeap } from './timer-heap.js';
import { sharedRead, sharedWrite, watching, type Watcher } from './watch.js';

/** A task in the hands of the scheduler. */
export interface TaskHandle<T> {
  readonly name: string;
  /** Place in the order of starting, from 0: the same in every run with the same schedule up to then. */
  readonly number: number;
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

/** Is told what a scheduler does. Looks on, never changes a run. */
export interface SchedulerObserver extends Watcher {
  /** One of the ready tasks was chosen, or time (`ready.length`). */
  chosen(candidates: Candidates, index: number): void;
  started(task: TaskHandle<unknown>, by: TaskHandle<unknown> | undefined): void;
  resumed(task: TaskHandle<unknown>): void;
  /** `wait` is undefined when the task has ended. */
  suspended(task: TaskHandle<unknown>, wait: Wait | undefined): void;
  /** A task became ready: woken by another, or by time. */
  woken(task: TaskHandle<unknown>, by: TaskHandle<unknown> | undefined): void;
}

class RunningTask<T> implements TaskHandle<T>, Waiter, LockHolder {
  readonly name: string;
  readonly number: number;
  readonly held: HeldLock[] = [];
  /** Since when the task has been ready, for how long it may be stalled. */
  readySinceNs = 0;
  readonly isDaemon: boolean;
  readonly body: Task<T>;
  readonly finished: WaitQueue;
  isDone = false;
  isJoined = false;
  waitsFor: string | undefined;
  result: T | undefined;
  error: Error | undefined;
  readonly #scheduler: Scheduler;

  constructor(scheduler: Scheduler, name: string, number: number, body: Task<T>, isDaemon: boolean) {
    this.#scheduler = scheduler;
    this.name = name;
    this.number = number;
    this.body = body;
    this.isDaemon = isDaemon;
    this.finished = new WaitQueue(`end of ${name}`);
  }

  get lockOrder(): LockOrder {
    return this.#scheduler.lockOrder;
  }

  makeReady(): void {
    this.waitsFor = undefined;
    this.#scheduler.enqueue(this);
  }

  *join(): Task<T> {
    this.isJoined = true;
    while (!this.isDone) yield this.finished;
    sharedRead(this.finished, 'done');
    if (this.error !== undefined) throw this.error;
    return this.result as T;
  }
}

/** A node that takes this many task steps without time moving is caught in a loop. */
const MAX_STEPS_WITHOUT_TIME = 20_000_000;
/** A ready task is kept off its CPU by a stalling policy for no longer than this: far below any time-out. */
const MAX_STALL_NS = 10_000;

/** One node's tasks and virtual time (nanoseconds, exact integers below 2^53). */
export class Scheduler {
  #policy: SchedulingPolicy;
  readonly lockOrder = new LockOrder();
  /** Every choice among two or more candidates, in order: the schedule. */
  readonly choices: number[] = [];
  /** Whether {@link lockOrder} is told. */
  ordersLocks = true;
  /** Looks on. */
  observer: SchedulerObserver | undefined;
  /** Delays are gates: time does not matter where nothing but work costs any. */
  isTimeless = false;
  #now = 0;
  #stepsNow = 0;
  #current: RunningTask<unknown> | undefined;
  readonly #ready: RunningTask<unknown>[] = [];
  readonly #timers = new TimerHeap();
  readonly #live = new Set<RunningTask<unknown>>();
  #spawned = 0;
  #tasksSeen = 0;
  #last: RunningTask<unknown> | undefined;
  #horizonNs = 0;
  /** The task that ran last, while it is ready. */
  #offering: RunningTask<unknown> | undefined;

  constructor(policy: SchedulingPolicy = inOrderPolicy) {
    this.#policy = policy;
  }

  /** Another policy from now on; the choices begin anew. */
  usePolicy(policy: SchedulingPolicy): void {
    this.#policy = policy;
    this.choices.length = 0;
    this.#tasksSeen = this.#live.size;
  }

  get now(): number {
    return this.#now;
  }

  /** Name of the task that is running, for events. */
  get currentTask(): string {
    return this.#current?.name ?? '-';
  }

  /** Name of the task that is running or ran last. */
  get lastTask(): string {
    return this.#last?.name ?? '-';
  }

  /** Tasks that the policy had to do with: those that were there when it came, and all that were started since. */
  get tasksSeen(): number {
    return this.#tasksSeen;
  }

  /**
   * Starts a task; it becomes ready now, behind those that are ready already. A task that fails and that nobody joins
   * ends the run with its error.
   */
  spawn<T>(name: string, body: Task<T>, options: TaskOptions = {}): TaskHandle<T> {
    const task = new RunningTask(this, name, this.#spawned++, body, options.daemon ?? false);
    this.#live.add(task);
    this.#tasksSeen++;
    this.observer?.started(task, this.#current);
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
    this.#horizonNs = horizonNs;
    if (this.observer === undefined) this.#run(horizonNs);
    else watching(this.observer, () => this.#run(horizonNs));
  }

  #run(horizonNs: number): void {
    for (;;) {
      while (this.#ready.length > 0) {
        const task = this.#take();
        if (task === undefined) break;
        this.#step(task);
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
    task.readySinceNs = this.#now;
    this.#ready.push(task);
    this.observer?.woken(task, this.#current);
  }

  /** Whether time may pass although tasks are ready. */
  #canStall(): boolean {
    if (!this.#policy.stalls) return false;
    const next = this.#timers.nextTime();
    if (next >= this.#horizonNs) return false;
    return this.#ready.every(({ readySinceNs }) => next - readySinceNs <= MAX_STALL_NS);
  }

  /** The task that goes on; undefined when time does. */
  #take(): RunningTask<unknown> | undefined {
    const ready = this.#ready;
    const running = this.#offering;
    this.#offering = undefined;
    let index = 0;
    const canStall = this.#canStall();
    if (ready.length > 1 || canStall) {
      const candidates: Candidates = { ready, canStall, running };
      index = this.#policy.choose(candidates);
      this.choices.push(index);
      this.observer?.chosen(candidates, index);
      if (index === ready.length && canStall) return undefined;
    }
    const task = ready[index];
    if (task === undefined) throw new InvariantError('policy chose a task that is not ready');
    for (let i = index + 1; i < ready.length; i++) ready[i - 1] = ready[i] as RunningTask<unknown>;
    ready.pop();
    return task;
  }

  #step(task: RunningTask<unknown>): void {
    this.#current = this.#last = task;
    if (this.ordersLocks) setLockHolder(task);
    this.observer?.resumed(task);
    try {
      for (;;) {
        const step = task.body.next();
        if (step.done === true) {
          task.result = step.value;
          this.#finish(task);
          this.observer?.suspended(task, undefined);
          return;
        }
        if (this.#suspend(task, step.value)) return;
      }
    } catch (error) {
      if (error instanceof InvariantError) throw error;
      task.error = error instanceof Error ? error : new Error(String(error));
      this.#finish(task);
      // An error that nobody waits for ends the run in the middle of a step.
      if (!task.isJoined) throw task.error;
      this.observer?.suspended(task, undefined);
    } finally {
      this.#current = undefined;
      setLockHolder(undefined);
    }
  }

  /** Puts the task where `wait` says; false when it may go straight on. */
  #suspend(task: RunningTask<unknown>, wait: Wait): boolean {
    if (typeof wait === 'string' || (this.isTimeless && typeof wait === 'number')) {
      if (!this.#policy.preemptsAtGates || (this.#ready.length === 0 && !this.#canStall())) return false;
      task.readySinceNs = this.#now;
      this.#ready.push(task);
      this.#offering = task;
    } else if (typeof wait === 'number') {
      task.waitsFor = 'time';
      this.#timers.add(this.#now + wait, () => task.makeReady());
    } else {
      task.waitsFor = wait.name;
      wait.park(task);
    }
    this.observer?.suspended(task, wait);
    return true;
  }

  #finish(task: RunningTask<unknown>): void {
    task.isDone = true;
    sharedWrite(task.finished, 'done');
    this.#live.delete(task);
    task.finished.wakeAll();
  }
}
