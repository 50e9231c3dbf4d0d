/**
 * A finished run as data: outcomes of scenarios, their counts and the digest of the whole.
 *
 * `run --json` prints exactly {@link runJson}; the shape is a contract for scripts (design.md).
 */
import { createHash } from 'node:crypto';
import type { ScenarioOutcome } from '../scenario/execute.js';
import type { Check, CheckVerdict } from '../scenario/results.js';
import { rulesOf } from './rules.js';

/** A scenario's outcome and how long it took on the wall. */
export interface FinishedScenario {
  readonly outcome: ScenarioOutcome;
  readonly wallMs: number;
}

/** A finished `iovaduct run`. */
export interface FinishedRun {
  readonly seed: number;
  readonly placement: string;
  /** In the order of their files, whatever order they ended in. */
  readonly scenarios: readonly FinishedScenario[];
}

/** How many scenarios came to a verdict. */
export function countVerdict(run: FinishedRun, verdict: CheckVerdict): number {
  return run.scenarios.filter(({ outcome }) => outcome.verdict === verdict).length;
}

/** SHA-256 over the digests of all scenarios, in order. */
export function runDigest(run: FinishedRun): string {
  const hash = createHash('sha256');
  for (const { outcome } of run.scenarios) hash.update(`${outcome.name} ${outcome.digest}\n`);
  return hash.digest('hex');
}

/** What a check says, with the place in the file when it failed. */
export function checkDetail(outcome: ScenarioOutcome, check: Check): string {
  if (check.verdict === 'pass' || check.at === undefined) return check.detail;
  return `${check.detail} at ${outcome.file}:${check.at.line}:${check.at.column}`;
}

/** The document of `run --json`. */
export function runJson(run: FinishedRun): object {
  return {
    seed: run.seed,
    placement: run.placement,
    digest: runDigest(run),
    passed: countVerdict(run, 'pass'),
    failed: countVerdict(run, 'fail'),
    inconclusive: countVerdict(run, 'inconclusive'),
    scenarios: run.scenarios.map(({ outcome, wallMs }) => ({
      file: outcome.file,
      name: outcome.name,
      covers: outcome.covers,
      verdict: outcome.verdict,
      digest: outcome.digest,
      virtual_ns: outcome.virtualNs,
      wall_ms: Math.round(wallMs),
      checks: outcome.checks.map((check) => ({
        name: check.name,
        verdict: check.verdict,
        detail: checkDetail(outcome, check),
      })),
      rules: rulesOf(outcome).map(({ id, verdict, looks }) => ({ id, verdict, looks })),
    })),
  };
}
