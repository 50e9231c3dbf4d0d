/**
 * What is explored: a scenario that can be run again and again under one schedule after another.
 *
 * A kernel-only scenario runs on its own machine in this thread, in microseconds; any other runs whole, all hosts inline. To the strategies
 * they look the same: a schedule goes in, an {@link Attempt} comes out, and the same schedule gives the same attempt.
 */
import type { Program } from '../host/program.js';
import { runProgram } from '../host/run-program.js';
import { eventLine } from '../runtime/events.js';
import { FAULTS, type FaultId, type FaultRule } from '../runtime/faults.js';
import { givenUpIn, INVARIANTS, type InvariantId, type InvariantReport } from '../runtime/invariants.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { SchedulerObserver } from '../runtime/scheduler.js';
import { signatureOf } from '../runtime/signature.js';
import { executeScenario, verdictOf } from '../scenario/execute.js';
import type { Scenario } from '../scenario/load.js';
import { RUN_ENDS } from '../scenario/results.js';
import { MAIN_NODE } from '../testbed/node.js';

/** How a run failed. */
export interface AttemptFailure {
  /** What failed, without numbers: runs with the same signature failed for the same reason. */
  readonly signature: string;
  readonly id: InvariantId | undefined;
  readonly message: string;
  readonly task: string;
  /** Line of the scenario file, where one call is to blame. */
  readonly line?: number;
  /** A host of the scenario cannot be built: that is of no schedule. */
  readonly isUnbuildable?: true;
}

/** One run under one schedule. */
export interface Attempt {
  readonly verdict: 'pass' | 'fail' | 'inconclusive';
  readonly failure: AttemptFailure | undefined;
  /** It was ended at the time limit of its scenario. */
  readonly isUnfinished: boolean;
  /** Choices of each node. */
  readonly choices: Readonly<Record<string, readonly number[]>>;
  /** Tasks that the schedule had to do with; of several nodes the one with the most. */
  readonly tasks: number;
  /** Of what the run came to. */
  readonly stateHash: number;
  /** Of what devices reach at the end, where only plugging went on (INV-10). */
  readonly reachHash: number | undefined;
  readonly invariants: readonly InvariantReport[];
  /** What was left when everybody had gone, by node and kind; only where a fault was injected. */
  readonly leftover: Readonly<Record<string, number>>;
  /** Events line by line, where they were asked for. */
  readonly lines: readonly string[];
}

/** How to run once. */
export interface AttemptOptions {
  /** The schedule of a node. */
  readonly scheduleOf: (node: string) => ScheduleSpec;
  /** A fault that strikes one node, once it has booted. Then only rules and the run's end count, not what the scenario expects, and nothing may leak. */
  readonly inject?: { readonly fault: FaultId; readonly node: string; readonly rule: FaultRule };
  /** Whether the history is wanted. */
  readonly isTraced?: boolean;
  /** Looks on; kernel-only scenarios only. */
  readonly observer?: SchedulerObserver;
}

/** A scenario to explore. */
export interface Subject {
  readonly scenario: Scenario;
  readonly isKernelOnly: boolean;
  /** Nodes in which this fault can be injected. */
  nodesOf(fault: FaultId): readonly string[];
  /** Runs once; at once for kernel-only scenarios. */
  attempt(options: AttemptOptions): Attempt | Promise<Attempt>;
}

/** The node of a kernel-only machine. */
export const KERNEL_NODE = 'kernel';

function kernelOnlySubject(scenario: Scenario, program: Program, seed: number): Subject {
  return {
    scenario,
    isKernelOnly: true,
    nodesOf: (fault) => (FAULTS[fault].layer === 'link' ? [] : [KERNEL_NODE]),
    attempt({ scheduleOf, observer, isTraced, inject }) {
      const ran = runProgram(program, {
        seed,
        schedule: scheduleOf(KERNEL_NODE),
        ...(inject === undefined ? {} : { inject }),
        ...(observer === undefined ? {} : { observer }),
      });
      return {
        verdict: ran.failure !== undefined ? 'fail' : givenUpIn(ran.invariants) === undefined ? 'pass' : 'inconclusive',
        failure: ran.failure,
        isUnfinished: false,
        choices: { [KERNEL_NODE]: ran.choices },
        tasks: ran.tasks,
        stateHash: ran.stateHash,
        reachHash: ran.reachHash,
        invariants: ran.invariants,
        leftover: ran.leftover,
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
    nodesOf(fault) {
      // A VMM takes an answer it did not get for a call that did nothing.
      if (fault === 'mm.copy-to-user') return [];
      if (FAULTS[fault].layer !== 'link') return scenario.hosts.map(({ name }) => name);
      return scenario.links.length > 0 ? [MAIN_NODE] : [];
    },
    async attempt({ scheduleOf, inject, isTraced = false }) {
      const { outcome, trace } = await executeScenario(scenario, {
        seed,
        placement: 'inline',
        scheduleOf,
        keepsHistory: isTraced,
        ...(inject === undefined ? {} : { inject }),
      });
      // What a scenario expects may not come where a call fails; a rule holds, and a run comes to its end.
      const checks = outcome.checks.filter(
        ({ name }) => inject === undefined || name in INVARIANTS || name === RUN_ENDS,
      );
      const failed = checks.find(({ verdict }) => verdict === 'fail');
      const message = failed === undefined ? '' : `${failed.name}: ${failed.detail}`;
      return {
        verdict: verdictOf(checks),
        failure:
          failed === undefined
            ? undefined
            : {
                signature: signatureOf(message),
                id: outcome.brokenRule,
                message,
                task: '-',
                ...(outcome.failureKind === 'unbuildable' ? { isUnbuildable: true } : {}),
              },
        isUnfinished: checks.some(({ name, verdict }) => name === RUN_ENDS && verdict === 'inconclusive'),
        choices: trace.choices,
        tasks: outcome.tasks,
        stateHash: hashOf(outcome.checks.map(({ name, verdict }) => `${name} ${verdict}`).join('\n')),
        reachHash: undefined,
        invariants: outcome.invariants,
        leftover: trace.leftover,
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
