/** How soon exploration finds historical faults: one row for each, over a row of seeds. */
import { FAULTS, type FaultDescription, type FaultId } from '../runtime/faults.js';
import type { InvariantId } from '../runtime/invariants.js';
import type { Scenario } from '../scenario/load.js';
import type { Exploration } from './campaign.js';
import { countDeviations } from './record.js';
import type { Shrunk } from './shrink.js';
import type { StrategyName } from './strategies.js';

/** A fault as it was looked for. Plain data. */
export interface IncidentRow {
  /** Row of the incidents; a fault may be of none. */
  readonly incident: string | undefined;
  readonly fault: FaultId;
  readonly scenario: string;
  readonly strategy: StrategyName;
  /** Rules that saw it, the one that did so most often first. */
  readonly rules: readonly InvariantId[];
  /** Schedules until it was found, by seed; Infinity where it was not. */
  readonly schedules: readonly number[];
  /** What is left of the case: calls (steps of a scenario with hosts) and deviations from the default schedule. */
  readonly shrunk: { readonly calls: number; readonly deviations: number } | undefined;
}

/** The historical fault that a scenario names. */
export function historicalFault({ failsWith }: Scenario): FaultId | undefined {
  return typeof failsWith === 'object' && 'fault' in failsWith ? failsWith.fault : undefined;
}

function incidentOf(fault: FaultId): string | undefined {
  const { incident }: FaultDescription = FAULTS[fault];
  return incident;
}

function sizeOf({ scenario: { kernelOnly, steps }, deviations }: Shrunk): IncidentRow['shrunk'] {
  const calls = kernelOnly?.program.tasks.reduce((sum, task) => sum + task.calls.length, 0) ?? steps.length;
  return { calls, deviations: countDeviations(deviations) };
}

/** The row of a fault that was looked for once with each seed. */
export function incidentRow(
  { fault, scenario, strategy }: Pick<IncidentRow, 'fault' | 'scenario' | 'strategy'>,
  explorations: readonly Exploration[],
  shrunk: Shrunk | undefined,
): IncidentRow {
  const seen = new Map<InvariantId, number>();
  for (const { failure } of explorations)
    if (failure?.id !== undefined) seen.set(failure.id, (seen.get(failure.id) ?? 0) + 1);
  return {
    incident: incidentOf(fault),
    fault,
    scenario,
    strategy,
    rules: [...seen].sort((a, b) => b[1] - a[1]).map(([id]) => id),
    schedules: explorations.map(({ failure }) => (failure === undefined ? Infinity : failure.run + 1)),
    shrunk: shrunk && sizeOf(shrunk),
  };
}

/** The middle of some numbers; of an even count the higher of the two. */
export function median(numbers: readonly number[]): number {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1] ?? Number.NaN;
}
