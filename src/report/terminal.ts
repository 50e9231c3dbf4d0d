/**
 * A finished run for a terminal: one block a scenario, the failed checks with their places, a line of totals.
 *
 * Colours carry nothing that the signs do not say as well; without them the text is the same.
 */
import type { ScenarioOutcome } from '../scenario/execute.js';
import { conflictText, EXPECTED_FAILURE, type CheckVerdict, type StepResult } from '../scenario/results.js';
import { many } from '../scenario/units.js';
import { checkDetail, countVerdict, runDigest, type FinishedRun } from './summary.js';

/** How to colour; the identity where colours are off. */
export interface Palette {
  readonly good: (text: string) => string;
  readonly bad: (text: string) => string;
  readonly unsure: (text: string) => string;
  readonly faint: (text: string) => string;
}

const SIGNS: Readonly<Record<CheckVerdict, string>> = { pass: '✔', fail: '✖', inconclusive: '?' };

/** Steps whose results say what a scenario is about; the others are preparation. */
const TELLING = new Set(['plug', 'migrate', 'dma', 'nic', 'place-bar', 'interrupt', 'grow', 'replace']);

function isTelling(kind: string, result: StepResult): boolean {
  return TELLING.has(kind) || result.verdict !== 'ok';
}

/** One sentence about what happened. */
export function headline(outcome: ScenarioOutcome): string {
  const failed = outcome.checks.find(({ name, verdict }) => name === EXPECTED_FAILURE && verdict === 'pass');
  if (failed !== undefined) return `${failed.name}: ${failed.detail}`;
  const telling = outcome.steps.filter(({ kind, result }) => isTelling(kind, result));
  const texts = (telling.length > 0 ? telling : outcome.steps).map(({ result }) => result.text);
  return texts.slice(-4).join('; ');
}

/** Lines under the headline: what lies over what, and where transactions left their way. */
export function noteLines(outcome: ScenarioOutcome): string[] {
  return outcome.steps.flatMap(({ result }) => {
    if (result.verdict === 'ok') return [];
    const way = result.explanation === undefined || result.explanation === '' ? [] : [result.explanation];
    return [...(result.conflicts ?? []).map(conflictText), ...way];
  });
}

function scenarioLines(outcome: ScenarioOutcome, width: number, palette: Palette): string[] {
  const paint = { pass: palette.good, fail: palette.bad, inconclusive: palette.unsure }[outcome.verdict];
  const indent = ' '.repeat(width + 3);
  const lines = [`${paint(SIGNS[outcome.verdict])} ${outcome.name.padEnd(width)} ${headline(outcome)}`];
  for (const note of noteLines(outcome)) lines.push(palette.faint(`${indent}${note}`));
  for (const check of outcome.checks) {
    if (check.verdict === 'pass') continue;
    lines.push(`${indent}${paint(check.name)}: ${checkDetail(outcome, check)}`);
  }
  return lines;
}

/** `3 scenarios, 1 failed · seed 1 · digest 5f0c…`. */
export function totalsLine(run: FinishedRun): string {
  const failed = countVerdict(run, 'fail');
  const inconclusive = countVerdict(run, 'inconclusive');
  const parts = [many(run.scenarios.length, 'scenario')];
  if (failed > 0) parts.push(`${failed} failed`);
  if (inconclusive > 0) parts.push(`${inconclusive} inconclusive`);
  return `${parts.join(', ')} · seed ${run.seed} · digest ${runDigest(run).slice(0, 16)}`;
}

/** The final table. */
export function terminalReport(run: FinishedRun, palette: Palette): string {
  const width = Math.max(...run.scenarios.map(({ outcome }) => outcome.name.length), 0);
  const blocks = run.scenarios.flatMap(({ outcome }) => scenarioLines(outcome, width, palette));
  return `${[...blocks, totalsLine(run)].join('\n')}\n`;
}
