/**
 * Every allocation, pin, invalidation and send fails in turn, and nothing may leak.
 *
 * For each fault the scenario runs again and again while the first, the second, the third, … call of it fails, until a run has
 * fewer calls than that. What the scenario expects is not asked: a call that could not be served answers an error. But no
 * rule may be broken, a failed call changes nothing (INV-9; one whose answer could not be copied out may have done its work, as in Linux),
 * and when everybody has left nothing is kept.
 *
 * Source: Linux tools/testing/selftests/iommu/iommufd_fail_nth.c.
 */
import type { FaultId } from '../runtime/faults.js';
import { InvariantLedger, type InvariantReport } from '../runtime/invariants.js';
import { SETUP_TASK } from '../runtime/kernel-only.js';
import type { Scenario } from '../scenario/load.js';
import { goesOn } from './between-runs.js';
import { KERNEL_NODE, subjectOf, type Attempt, type AttemptFailure, type Subject } from './subject.js';

/** What fails. */
export const INJECTED = [
  'kernel.kmalloc',
  'core.kernel-alloc',
  'mm.pin',
  'mm.copy-to-user',
  'device.atc-timeout',
  'link.lost',
] as const satisfies readonly FaultId[];

/** How one kind of failure went. */
export interface Injected {
  readonly fault: FaultId;
  /** Node whose switch it was. */
  readonly node: string;
  /** Calls that failed, one a run. */
  readonly calls: number;
  /** The first run that broke a rule; without `nth` it was the one in which nothing failed. */
  readonly failure: (AttemptFailure & { readonly nth?: number }) | undefined;
  /** Runs that were ended at the scenario's time limit. Where the one in which nothing failed was, no call failed at all. */
  readonly unfinished: number;
}

/** What a sweep came to. */
export interface Sweep {
  readonly injected: readonly Injected[];
  /** The last of them was not finished, and those after it not begun. */
  readonly isInterrupted: boolean;
  readonly invariants: readonly InvariantReport[];
}

/** A scenario that calls more often than this is left there. */
const MAX_CALLS = 10_000;

/** What a device that does not answer may do: reach what it was told to forget. */
function isOfDeafDevice(fault: FaultId, { failure }: Attempt): boolean {
  return fault === 'device.atc-timeout' && failure?.id === 'INV-3' && failure.message.includes('a device reached');
}

/** What is left beyond what a run leaves in which nothing failed. */
function leakOf({ leftover }: Attempt, clean: Attempt): AttemptFailure | undefined {
  const kept = Object.entries(leftover).flatMap(([what, count]) => {
    const more = count - (clean.leftover[what] ?? 0);
    return more > 0 ? [`${more} ${what}`] : [];
  });
  if (kept.length === 0) return undefined;
  const message = `objects: left behind: ${kept.join(', ')}`;
  return { signature: 'objects: left behind', id: 'objects', message, task: '-' };
}

/** Whether a line of the history tells that a fault struck in a node. */
function isStrike(line: string, fault: FaultId, node: string): boolean {
  const [, where, , kind, what] = line.split(' ');
  return where === node && kind === 'fault.strikes' && what === `fault=${fault}`;
}

/** A program whose setup does not work, though nothing fails: there is nothing to sweep. */
async function brokenSetup(subject: Subject): Promise<Injected | undefined> {
  if (!subject.isKernelOnly) return undefined;
  const { failure } = await subject.attempt({ scheduleOf: () => ({ strategy: 'in-order' }) });
  if (failure?.task !== SETUP_TASK) return undefined;
  return { fault: INJECTED[0], node: KERNEL_NODE, calls: 0, failure, unfinished: 0 };
}

/** Sweeps a scenario. `onProgress` is told how many runs were made; `signal` ends the sweep with what it has. */
export async function failNth(
  scenario: Scenario,
  seed: number,
  onProgress?: (runs: number) => void,
  signal?: AbortSignal,
): Promise<Sweep> {
  const subject = subjectOf(scenario, seed);
  const ledger = new InvariantLedger();
  const injected: Injected[] = [];
  let runs = 0;
  const broken = await brokenSetup(subject);
  if (broken !== undefined) return { injected: [broken], isInterrupted: false, invariants: ledger.report() };
  for (const fault of INJECTED) {
    for (const node of subject.nodesOf(fault)) {
      if (signal?.aborted === true) break;
      const once = async (skip: number): Promise<Attempt> =>
        await subject.attempt({
          scheduleOf: () => ({ strategy: 'in-order' }),
          inject: { fault, node, rule: { skip, count: 1 } },
          isTraced: true,
        });
      const clean = await once(Number.MAX_SAFE_INTEGER);
      let calls = 0;
      let failure: Injected['failure'] = clean.failure;
      let unfinished = clean.isUnfinished ? 1 : 0;
      const isSwept = clean.failure === undefined && !clean.isUnfinished;
      while (isSwept && calls < MAX_CALLS && failure === undefined && (await goesOn(signal))) {
        const attempt = await once(calls);
        onProgress?.(++runs);
        for (const report of attempt.invariants) ledger.add(report);
        if (!attempt.lines.some((line) => isStrike(line, fault, node))) break;
        if (attempt.isUnfinished) unfinished++;
        else {
          const found = isOfDeafDevice(fault, attempt) ? undefined : (attempt.failure ?? leakOf(attempt, clean));
          if (found !== undefined) failure = { ...found, nth: calls };
        }
        calls++;
      }
      injected.push({ fault, node, calls, failure, unfinished });
      // It is the scenario's own, whatever is injected.
      if (!isSwept) return { injected, isInterrupted: false, invariants: ledger.report() };
    }
  }
  return { injected, isInterrupted: signal?.aborted === true, invariants: ledger.report() };
}
