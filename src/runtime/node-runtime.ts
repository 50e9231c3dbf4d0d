/**
 * What every component of a node is given: time, tasks, events, randomness and fault switches.
 *
 * One `NodeRuntime` per node (one for the main process, one per host). It owns no hardware and no kernel; it is the only
 * way for code inside a run to know the time, to make something happen later, or to be random.
 */
import type { EventValue, RunEvent } from './events.js';
import { FaultSwitches } from './faults.js';
import { InvariantLedger, type InvariantReport } from './invariants.js';
import type { Deviation } from './deviations.js';
import {
  deviatingPolicy,
  inOrderPolicy,
  pctPolicy,
  randomPolicy,
  recordedPolicy,
  type GateMode,
  type SchedulingPolicy,
} from './policies.js';
import { RandomStream } from './random.js';
import { Scheduler, type SchedulerObserver, type TaskHandle } from './scheduler.js';
import type { Task } from './task.js';

/**
 * How a node's schedule is decided. `recorded` repeats the choices of an earlier run; those with a `seed` of their own draw from that,
 * so that the run's other randomness stays as it is, `run` telling apart those of one seed; `policy` is one made by the caller that looks on as well, for nodes of this thread.
 */
export type ScheduleSpec =
  | { readonly strategy: 'in-order' }
  | { readonly strategy: 'random' }
  | { readonly strategy: 'explored'; readonly seed: number; readonly run?: number }
  | {
      readonly strategy: 'pct';
      readonly seed: number;
      readonly run?: number;
      readonly depth: number;
      readonly choices: number;
    }
  | { readonly strategy: 'deviating'; readonly deviations: readonly Deviation[] }
  | { readonly strategy: 'recorded'; readonly of: GateMode; readonly choices: readonly number[] }
  | { readonly strategy: 'policy'; readonly policy: SchedulingPolicy; readonly observer?: SchedulerObserver };

/** The policy that a schedule means in a node. */
export function policyFor(spec: ScheduleSpec, seed: number, node: string): SchedulingPolicy {
  const random = (of: number, run = 0): RandomStream => new RandomStream(of, `schedule/${run}/${node}`);
  switch (spec.strategy) {
    case 'in-order':
      return inOrderPolicy;
    case 'random':
      return randomPolicy(random(seed));
    case 'explored':
      return randomPolicy(random(spec.seed, spec.run), true);
    case 'pct':
      return pctPolicy(random(spec.seed, spec.run), spec);
    case 'deviating':
      return deviatingPolicy(spec.deviations);
    case 'recorded':
      return recordedPolicy(spec.choices, spec.of);
    case 'policy':
      return spec.policy;
  }
}

/** Time, tasks, events, randomness and faults of one node. */
export class NodeRuntime {
  readonly node: string;
  readonly seed: number;
  readonly scheduler: Scheduler;
  /** Every call that a fault strikes is an event. */
  readonly faults = new FaultSwitches((fault) => this.emit('fault.strikes', { fault }));
  readonly invariants = new InvariantLedger();
  #events: RunEvent[] = [];
  #eventCount = 0;

  constructor(node: string, seed: number, schedule: ScheduleSpec = { strategy: 'in-order' }) {
    this.node = node;
    this.seed = seed;
    this.scheduler = new Scheduler(policyFor(schedule, seed, node));
    if (schedule.strategy === 'policy') this.scheduler.observer = schedule.observer;
  }

  /** From now on the schedule is decided like this; what was chosen before is forgotten. */
  useSchedule(schedule: ScheduleSpec): void {
    this.scheduler.usePolicy(policyFor(schedule, this.seed, this.node));
    this.scheduler.observer = schedule.strategy === 'policy' ? schedule.observer : undefined;
  }

  /** Virtual nanoseconds since the start of the run. */
  get now(): number {
    return this.scheduler.now;
  }

  /** Starts a task; a daemon may wait for ever. */
  spawn<T>(name: string, body: Task<T>, options: { readonly daemon?: boolean } = {}): TaskHandle<T> {
    return this.scheduler.spawn(name, body, options);
  }

  /** A random stream of this node; the same name gives the same numbers in every run with this seed. */
  random(name: string): RandomStream {
    return new RandomStream(this.seed, `${this.node}/${name}`);
  }

  /** Records an event. Keys keep their order in the history. */
  emit(kind: string, data: Readonly<Record<string, EventValue>> = {}): void {
    this.#events.push({
      timeNs: this.now,
      node: this.node,
      number: this.#eventCount++,
      task: this.scheduler.currentTask,
      kind,
      data,
    });
  }

  /** How often each rule was looked at. */
  invariantReport(): InvariantReport[] {
    const { looks } = this.scheduler.lockOrder;
    return [...this.invariants.report(), ...(looks === 0 ? [] : [{ id: 'lock-order' as const, looks }])];
  }

  /** Events recorded so far: the number that the next one gets. */
  get eventCount(): number {
    return this.#eventCount;
  }

  /** Takes the events recorded since the last call. */
  drainEvents(): RunEvent[] {
    const events = this.#events;
    this.#events = [];
    return events;
  }
}
