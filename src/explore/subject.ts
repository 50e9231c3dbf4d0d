/**
 * What is explored: a scenario that can be run again and again under one schedule after another.
 *
 * A kernel-only scenario runs on its own machine in this thread, in microseconds; any other runs whole, all hosts inline. To the strategies
 * they look the same: a schedule goes in, an {@link Attempt} comes out, and the same schedule gives the same attempt.
 */
import type { Program } from '../host/program.js';
import { runProgram } from '../host/run-program.js';
import { eventLine } from '../runtime/events.js';
import type { InvariantId, InvariantReport } from '../runtime/invariants.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { SchedulerObserver } from '../runtime/scheduler.js';
import { signatureOf } from '../runtime/signature.js';
import { executeScenario } from '../scenario/execute.js';
import type { Scenario } from '../scenario/load.js';

/** How a run failed. */
export interface AttemptFailure {
  /** What failed, without numbers: runs with the same signature failed for the same reason. */
  readonly signature: string;
  readonly id: InvariantId | undefined;
  readonly message: string;
  readonly task: string;
}

/** One run under one schedule. */
export interface Attempt {
  readonly verdict: 'pass' | 'fail' | 'inconclusive';
  readonly failure: AttemptFailure | undefined;
  /** Choices of each node. */
  readonly choices: Readonly<Record<string, readonly number[]>>;
  /** Most tasks there were at a time. */
  readonly tasks: number;
  /** Of what the run came to. */
  readonly stateHash: number;
  readonly invariants: readonly InvariantReport[];
  /** Events line by line, where they were asked for. */
  readonly lines: readonly string[];
}

/** How to run once. */
export interface AttemptOptions {
  /** The schedule of a node. */
  readonly scheduleOf: (node: string) => ScheduleSpec;
  /** Whether the history is wanted. */
  readonly isTraced?: boolean;
  /** Looks on; kernel-only scenarios only. */
  readonly observer?: SchedulerObserver;
}

/** A scenario to explore. */
export interface Subject {
  readonly scenario: Scenario;
  readonly isKernelOnly: boolean;
  /** Runs once; at once for kernel-only scenarios. */
  attempt(options: AttemptOptions): Attempt | Promise<Attempt>;
}

/** The node of a kernel-only machine. */
export const KERNEL_NODE = 'kernel';

function kernelOnlySubject(scenario: Scenario, program: Program, seed: number): Subject {
  return {
    scenario,
    isKernelOnly: true,
    attempt({ scheduleOf, observer, isTraced }) {
      const ran = runProgram(program, {
        seed,
        schedule: scheduleOf(KERNEL_NODE),
        ...(observer === undefined ? {} : { observer }),
      });
      return {
        verdict: ran.failure === undefined ? 'pass' : 'fail',
        failure: ran.failure,
        choices: { [KERNEL_NODE]: ran.choices },
        tasks: ran.tasks,
        stateHash: ran.stateHash,
        invariants: ran.invariants,
        lines: isTraced === true ? ran.events.map(eventLine) : [],
      };
    },
  };
}

/** A scenario with a seed of its own randomness, ready to be run under schedules. */
export function subjectOf(scenario: Scenario, seed: number): Subject {
  if (scenario.kernelOnly !== undefined) return kernelOnlySubject(scenario, scenario.kernelOnly.program, seed);
  return {
    scenario,
    isKernelOnly: false,
    async attempt({ scheduleOf }) {
      const { outcome, trace } = await executeScenario(scenario, { seed, placement: 'inline', scheduleOf });
      const failed = outcome.checks.find(({ verdict }) => verdict === 'fail');
      const message = failed === undefined ? '' : `${failed.name}: ${failed.detail}`;
      return {
        verdict: outcome.verdict,
        failure:
          failed === undefined
            ? undefined
            : { signature: signatureOf(message), id: outcome.brokenRule, message, task: '-' },
        choices: trace.choices,
        tasks: outcome.tasks,
        stateHash: hashOf(outcome.checks.map(({ name, verdict }) => `${name} ${verdict}`).join('\n')),
        invariants: outcome.invariants,
        lines: trace.lines,
      };
    },
  };
}

/** FNV-1a, 32 bits. */
export function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}
