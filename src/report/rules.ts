/** How the rules that every run is held against fared in one, as reports show it. */
import { INVARIANTS, type InvariantId } from '../runtime/invariants.js';
import type { ScenarioOutcome } from '../scenario/execute.js';
import type { CheckVerdict } from '../scenario/results.js';

/** One rule of a run. */
export interface RuleReport {
  readonly id: InvariantId;
  readonly text: string;
  /** `inconclusive`: nothing in the run put it to the test. */
  readonly verdict: CheckVerdict;
  /** How often it was looked at. */
  readonly looks: number;
}

/** All rules, in the order of the catalogue. */
export function rulesOf({ invariants, brokenRule }: ScenarioOutcome): RuleReport[] {
  const looksOf = new Map(invariants.map(({ id, looks }) => [id, looks]));
  return (Object.keys(INVARIANTS) as InvariantId[]).map((id) => {
    const looks = looksOf.get(id) ?? 0;
    const verdict = brokenRule === id ? 'fail' : looks > 0 ? 'pass' : 'inconclusive';
    return { id, text: INVARIANTS[id], verdict, looks };
  });
}
