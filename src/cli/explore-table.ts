/** `iovaduct explore --table`: how many schedules it takes until each historical fault is found, over a row of seeds. */
import { faulty, type Shrunk } from '../explore/shrink.js';
import { historicalFault, incidentRow, median, type IncidentRow } from '../explore/incidents.js';
import type { Exploration } from '../explore/campaign.js';
import type { FaultId } from '../runtime/faults.js';
import type { Scenario } from '../scenario/load.js';
import { UsageError } from './exit-codes.js';
import { checkCorpus, exploreOne, fileNames, LOST, type ExploreOptions } from './explore-one.js';
import { ofSeveral } from './progress.js';

const HEADINGS = ['incident', 'fault', 'scenario', 'rule', 'strategy', 'median', 'range', 'calls × switches'];

/** A scenario with the historical fault that it names switched on. */
interface Historical {
  readonly fault: FaultId;
  readonly scenario: Scenario;
}

/** Those that name a fault under `fails-with`, with that fault. @throws UsageError when none does */
export function withHistory(scenarios: readonly Scenario[]): Historical[] {
  const wanted = scenarios.flatMap((scenario) => {
    const fault = historicalFault(scenario);
    return fault === undefined ? [] : [{ fault, scenario: faulty(scenario) }];
  });
  if (wanted.length === 0) throw new UsageError('nothing to explore: no scenario names a fault under fails-with');
  return wanted;
}

/** A row, and the seeds whose failure did not come again under its own schedule. */
interface Measured {
  readonly row: IncidentRow;
  readonly lost: readonly number[];
}

/** Looks for the fault of one scenario with each seed; what is found first is made small. */
async function rowOf(
  { fault, scenario }: Historical,
  fileName: string,
  options: ExploreOptions,
  seeds: number,
  show: (progress: string) => void,
  signal: AbortSignal,
): Promise<Measured> {
  const later: ExploreOptions = { ...options, shrink: false, corpus: undefined };
  const explorations: Exploration[] = [];
  const lost: number[] = [];
  let small: Shrunk | undefined;
  for (let i = 0; i < seeds && !signal.aborted; i++) {
    const one = { ...(small === undefined ? options : later), seed: options.seed + i };
    const tell = (text: string): void => show(`${text}, seed ${i + 1} of ${seeds}`);
    const { exploration, shrunk, isLost } = await exploreOne(scenario, fileName, one, tell, signal);
    explorations.push(exploration);
    if (isLost) lost.push(one.seed);
    small ??= shrunk;
  }
  const row = incidentRow({ fault, scenario: scenario.name, strategy: options.strategy }, explorations, small);
  return { row, lost };
}

function cellsOf(
  { incident, fault, scenario, rules, strategy, schedules, shrunk }: IncidentRow,
  runs: number,
): string[] {
  // In order there is one run, however many there might be.
  const missed = strategy === 'in-order' ? '-' : `> ${runs}`;
  const text = (count: number): string => (Number.isFinite(count) ? String(count) : missed);
  const [least, most] = [text(Math.min(...schedules)), text(Math.max(...schedules))];
  return [
    incident ?? '-',
    fault,
    scenario,
    rules.join(', ') || '-',
    strategy,
    text(median(schedules)),
    most === '-' ? '-' : `${least}..${most}`,
    shrunk === undefined ? '-' : `${shrunk.calls} × ${shrunk.deviations}`,
  ];
}

/** Rows as a Markdown table with aligned columns. */
function tableText(rows: readonly IncidentRow[], runs: number): string {
  const cells = [HEADINGS, ...rows.map((row) => cellsOf(row, runs))];
  const widths = HEADINGS.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  const lineOf = (row: readonly string[]): string =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(' | ')} |`;
  const [head = [], ...body] = cells;
  return [lineOf(head), lineOf(widths.map((width) => '-'.repeat(width))), ...body.map(lineOf), ''].join('\n');
}

function rowJson({ incident, fault, scenario, rules, strategy, schedules, shrunk }: IncidentRow): object {
  const orNull = (count: number): number | null => (Number.isFinite(count) ? count : null);
  return {
    incident: incident ?? null,
    fault,
    scenario,
    rules,
    strategy,
    median: orNull(median(schedules)),
    schedules: schedules.map(orNull),
    shrunk: shrunk ?? null,
  };
}

/** A table of incidents. */
export interface IncidentTable {
  readonly text: string;
  readonly json: object;
  /** Whether each fault was found with more than half of the seeds, and every case failed again under its schedule. */
  readonly isComplete: boolean;
}

/** Measures every scenario that names a historical fault, in the order of the incidents. @throws UsageError when none does */
export async function incidentTable(
  scenarios: readonly Scenario[],
  options: ExploreOptions,
  seeds: number,
  show: (progress: string) => void,
  signal: AbortSignal,
): Promise<IncidentTable> {
  const wanted = withHistory(scenarios);
  const found = wanted.map(({ scenario }) => scenario);
  checkCorpus(found, options);
  const names = fileNames(found);
  const rows: IncidentRow[] = [];
  const lost: string[] = [];
  for (const [i, one] of wanted.entries()) {
    const tell = (text: string): void => show(ofSeveral(i, wanted.length, text));
    const measured = await rowOf(one, names[i] ?? '', options, seeds, tell, signal);
    // Some of its seeds were not tried.
    if (signal.aborted) break;
    rows.push(measured.row);
    for (const seed of measured.lost) lost.push(`not shrunk: ${one.scenario.name}, seed ${seed}: ${LOST}\n`);
  }
  const numberOf = ({ incident }: IncidentRow): number => Number(incident?.slice('IN-'.length) ?? Infinity);
  rows.sort((a, b) => (numberOf(a) === numberOf(b) ? 0 : numberOf(a) - numberOf(b)));
  const { seed, runs, depth } = options;
  return {
    text: tableText(rows, runs) + lost.join(''),
    json: { interrupted: signal.aborted, seed, seeds, runs, depth, incidents: rows.map(rowJson) },
    isComplete: lost.length === 0 && rows.every(({ schedules }) => Number.isFinite(median(schedules))),
  };
}
