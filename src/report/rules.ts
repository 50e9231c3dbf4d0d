/** How the rules that every run is held against fared in one, as reports show it. */
import { INVARIANTS, type InvariantId } from '../runtime/invariants.js';
import type { ScenarioOutcome } from '../scenario/execute.js';
import type { CheckVerdict } from '../scenario/results.js';

/** One rule of a run. */
export interface RuleReport {
  readonly id: InvariantId;
  readonly text: string;
  /** `inconclusive`: nothing in the run put it to the test, or it was given up. */
  readonly verdict: CheckVerdict;
  /** How often it was looked at. */
  readonly looks: number;
}

/** All rules, in the order of the catalogue. */
export function rulesOf({ invariants, brokenRule }: ScenarioOutcome): RuleReport[] {
  const reportOf = new Map(invariants.map((report) => [report.id, report]));
  return (Object.keys(INVARIANTS) as InvariantId[]).map((id) => {
    const { looks = 0, givenUp } = reportOf.get(id) ?? {};
    const isJudged = looks > 0 && givenUp === undefined;
    const verdict = brokenRule === id ? 'fail' : isJudged ? 'pass' : 'inconclusive';
    return { id, text: INVARIANTS[id], verdict, looks };
  });
}
