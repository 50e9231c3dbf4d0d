/**
 * Which step a check is about, so that a reader of a failed check can go to what happened.
 *
 * An `expect` about a step's name is about that step. One about a guest or a process is about what was last done with it; where
 * the guest runs and whether its memory is intact was decided by its last migration. Pure: file positions identify steps.
 */
import type { LocatedStep, Scenario } from './load.js';
import type { Check } from './results.js';
import type { Expectation } from './schema.js';
import type { StepLog } from './runner.js';
import type { Position } from './text.js';

function isAt(a: Position, b: Position): boolean {
  return a.line === b.line && a.column === b.column;
}

/** What a step says of itself under `key`; `boot` names its guest without one. */
function wordOf({ step }: LocatedStep, key: 'as' | 'guest' | 'process'): string | undefined {
  if ('boot' in step) return key === 'guest' ? step.boot : undefined;
  const body: unknown = Object.values(step)[0];
  if (typeof body !== 'object' || body === null) return undefined;
  const value = (body as Readonly<Record<string, unknown>>)[key];
  return typeof value === 'string' ? value : undefined;
}

function subjectOf(expectation: Expectation, before: readonly LocatedStep[]): LocatedStep | undefined {
  const { of } = expectation;
  const named = before.findLast((step) => wordOf(step, 'as') === of);
  if (named !== undefined) return named;
  const about = before.filter((step) => wordOf(step, 'guest') === of || wordOf(step, 'process') === of);
  const isAboutMoving = expectation['runs-on'] !== undefined || expectation.memory !== undefined;
  const moved = isAboutMoving ? about.findLast(({ step }) => 'migrate' in step) : undefined;
  return moved ?? about.at(-1) ?? before.at(-1);
}

/** For every check the index of the step it is about; undefined where there is none. */
export function subjectsOf(
  scenario: Scenario,
  checks: readonly Check[],
  steps: readonly StepLog[],
): (number | undefined)[] {
  const inFile = scenario.steps.flatMap((step) => ('parallel' in step ? step.parallel.flat() : [step]));
  return checks.map(({ at }) => {
    const place = at === undefined ? -1 : inFile.findIndex((step) => isAt(step.at, at));
    const located = inFile[place];
    if (located === undefined) return undefined;
    const before = inFile.slice(0, place).filter(({ step }) => !('expect' in step));
    const subject = 'expect' in located.step ? subjectOf(located.step.expect, before) : located;
    const index = subject === undefined ? -1 : steps.findIndex((step) => isAt(step.at, subject.at));
    return index < 0 ? undefined : index;
  });
}
