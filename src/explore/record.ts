/**
 * A run's schedule as a person can read it and a file can keep it: the choices that were not the default, by node.
 *
 * The wrapped policy decides; this only writes down what it chose among which tasks.
 */
import { policyFor, type ScheduleSpec } from '../runtime/node-runtime.js';
import { TIME, type Deviation, type Switch } from '../runtime/deviations.js';
import { candidateName, defaultChoice, type Candidates, type SchedulingPolicy } from '../runtime/policies.js';
import type { Attempt, Subject } from './subject.js';

/** Deviations from the default, by node. */
export type Deviations = Readonly<Record<string, readonly Deviation[]>>;

/** A switch, and the task that would have gone on, `time` for time. */
interface RecordedSwitch extends Switch {
  readonly instead: string;
}

class RecordingPolicy implements SchedulingPolicy {
  readonly name = 'recording';
  readonly preemptsAtGates: boolean;
  readonly stalls: boolean;
  readonly switches: RecordedSwitch[] = [];
  readonly #inner: SchedulingPolicy;
  #at = 0;

  constructor(inner: SchedulingPolicy) {
    this.#inner = inner;
    this.preemptsAtGates = inner.preemptsAtGates;
    this.stalls = inner.stalls;
  }

  choose(candidates: Candidates): number {
    const at = this.#at++;
    const index = this.#inner.choose(candidates);
    const usual = defaultChoice(candidates);
    if (index === usual) return index;
    const instead = candidates.ready[usual]?.name ?? TIME;
    this.switches.push({ at, to: candidateName(candidates.ready, index), instead });
    return index;
  }
}

/** A run, and its schedule. */
interface Recorded {
  readonly attempt: Attempt;
  /** Every choice that was not the default, by node. */
  readonly switches: Readonly<Record<string, readonly RecordedSwitch[]>>;
  /** The same, as a schedule. */
  readonly deviations: Deviations;
}

/** Runs once and writes the schedule down. */
export async function record(
  subject: Subject,
  seed: number,
  scheduleOf: (node: string) => ScheduleSpec,
): Promise<Recorded> {
  const policies = new Map<string, RecordingPolicy>();
  const attempt = await subject.attempt({
    scheduleOf: (node) => {
      const policy = new RecordingPolicy(policyFor(scheduleOf(node), seed, node));
      policies.set(node, policy);
      return { strategy: 'policy', policy };
    },
  });
  const made = [...policies];
  return {
    attempt,
    switches: Object.fromEntries(made.map(([node, { switches }]) => [node, switches])),
    deviations: Object.fromEntries(
      made.map(([node, { switches }]) => [node, switches.map(({ at, to }) => ({ at, to }))]),
    ),
  };
}

/** The schedule that deviations describe. */
export function deviating(deviations: Deviations): (node: string) => ScheduleSpec {
  return (node) => ({ strategy: 'deviating', deviations: deviations[node] ?? [] });
}

/** How many there are, in all nodes. */
export function countDeviations(deviations: Deviations): number {
  return Object.values(deviations).reduce((sum, list) => sum + list.length, 0);
}
