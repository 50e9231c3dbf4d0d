/** What `iovaduct explore` says of a schedule that failed: the race report, and a page to go through it step by step. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { explain } from '../explore/explain.js';
import { scheduleHtml } from '../report/schedule-html.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { Scenario } from '../scenario/load.js';

/** The race report, and the page's file where one was written. */
export interface ExplainedFailure {
  readonly text: string;
  readonly page: string | undefined;
}

/**
 * Runs the schedule again with somebody looking on. With `page`, `<name>.schedule.html` is written to its directory. Scenarios of whole
 * hosts have no trace: undefined.
 */
export function explainFailure(
  scenario: Scenario,
  seed: number,
  schedule: ScheduleSpec,
  page?: { readonly directory: string; readonly name: string },
): ExplainedFailure | undefined {
  const explained = explain(scenario, seed, schedule);
  if (explained === undefined) return undefined;
  const { trace, race, raceText } = explained;
  if (page === undefined) return { text: raceText, page: undefined };
  mkdirSync(page.directory, { recursive: true });
  const file = join(page.directory, `${page.name}.schedule.html`);
  writeFileSync(file, scheduleHtml(trace, race));
  return { text: raceText, page: file };
}
