/** `iovaduct bench`: what things cost here and now, as ratios within one run. No figure is a promise, none is a test. */
import type { Command } from 'commander';
import type { PageTableTimes } from './bench/reference.js';
import { shippedScenarios, writeJson } from './files.js';

const PAGES = 1 << 20;
const REPEATS = 4;
const HISTORY_OPERATIONS = 1_000_000;
const SCENARIO = 'flagship/loud.yaml';
const EXPLORED = 'races/map-unmap.yaml';

/** One figure. `ratio` compares with the row's own reference, named in `against`. */
interface Row {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly ratio?: number;
  readonly against?: string;
}

const CORE_ROWS: readonly (readonly [keyof PageTableTimes, string])[] = [
  ['walk', 'walk, 4 levels'],
  ['mapRange', 'map a range'],
  ['unmapRange', 'unmap a range'],
  ['mapEach', 'map, one call a page'],
  ['unmapEach', 'unmap, one call a page'],
  ['dirtyScan', 'read and clear dirty, all dirty'],
];

/** Loaded only here: no other command has the arena in its main thread. */
async function coreRows(): Promise<Row[]> {
  const { measureCore } = await import('./bench/core.js');
  const { measureReference } = await import('./bench/reference.js');
  const ours = measureCore(PAGES, REPEATS);
  const reference = measureReference(PAGES, REPEATS);
  if (reference === undefined) process.stderr.write('SKIP: gcc is not here, no ratios against C\n');
  return CORE_ROWS.map(([key, name]) => ({
    name,
    value: ours[key],
    unit: 'ns/page',
    ...(reference === undefined
      ? {}
      : { ratio: ours[key] / reference[key], against: `C ${reference[key].toFixed(2)} ns` }),
  }));
}

async function systemRows(): Promise<Row[]> {
  const { measureScenario, measureSyscalls } = await import('./bench/system.js');
  const rows: Row[] = [];
  for (const clients of [1, 16]) {
    const inline = await measureSyscalls('inline', clients);
    const workers = await measureSyscalls('workers', clients);
    rows.push({ name: `system calls, ${clients} at a time, inline`, value: inline, unit: 'calls/s' });
    rows.push({
      name: `system calls, ${clients} at a time, workers`,
      value: workers,
      unit: 'calls/s',
      ratio: workers / inline,
      against: 'inline',
    });
  }
  const file = `${shippedScenarios()}/${SCENARIO}`;
  const inlineMs = await measureScenario(file, 'inline');
  const workersMs = await measureScenario(file, 'workers');
  rows.push({ name: `${SCENARIO}, inline`, value: inlineMs, unit: 'ms' });
  rows.push({
    name: `${SCENARIO}, workers`,
    value: workersMs,
    unit: 'ms',
    ratio: workersMs / inlineMs,
    against: 'inline',
  });
  return rows;
}

/** The checker of recorded and running histories (src/checks). */
async function checkRows(): Promise<Row[]> {
  const { measureOffline, measureOnline } = await import('./bench/history.js');
  const online = measureOnline(HISTORY_OPERATIONS / 100);
  const rows: Row[] = [{ name: 'check a run, alone', value: online, unit: 'ns/op' }];
  for (const areas of [256, 65_536]) {
    const value = measureOffline(HISTORY_OPERATIONS, areas);
    const name = `check a history of 10^6, ${areas} areas`;
    rows.push({ name, value, unit: 'ns/op', ratio: value / online, against: 'a run' });
  }
  return rows;
}

/** Schedules of four tasks that map, unmap and write in one address space. */
async function explorationRows(): Promise<Row[]> {
  const { measureExploration } = await import('./bench/exploration.js');
  const { perSecond, perSecondUnchecked, points } = measureExploration(`${shippedScenarios()}/${EXPLORED}`);
  const what = `schedules, 4 tasks, ${points.toFixed(0)} points`;
  return [
    { name: `${what}, not checked`, value: perSecondUnchecked, unit: 'runs/s' },
    { name: what, value: perSecond, unit: 'runs/s', ratio: perSecond / perSecondUnchecked, against: 'not checked' },
  ];
}

/** One address space, one and two threads: what a lock for each window is worth. */
async function stressRows(): Promise<Row[]> {
  const { measurePairs } = await import('./bench/stress.js');
  const rows: Row[] = [];
  for (const locks of ['kernel', 'sharded'] as const) {
    const alone = await measurePairs(1, locks);
    const together = await measurePairs(2, locks);
    rows.push({ name: `map + unmap, 1 thread, ${locks} locks`, value: alone, unit: 'pairs/s' });
    rows.push({
      name: `map + unmap, 2 threads, ${locks} locks`,
      value: together,
      unit: 'pairs/s',
      ratio: together / alone,
      against: '1 thread',
    });
  }
  return rows;
}

function rowText(row: Row): string {
  const value = row.value >= 100 ? row.value.toFixed(0) : row.value.toFixed(2);
  const ratio = row.ratio === undefined ? '' : `  ${row.ratio.toFixed(2)} x ${row.against ?? ''}`;
  return `${row.name.padEnd(42)} ${value.padStart(9)} ${row.unit.padEnd(8)}${ratio}`.trimEnd();
}

async function bench(json: string | undefined): Promise<void> {
  process.stderr.write(`${PAGES} pages of 4 KiB, best of ${REPEATS}; this machine may be busy: read the ratios\n`);
  const rows: Row[] = [];
  for (const part of [coreRows, checkRows, explorationRows, systemRows, stressRows]) {
    const measured = await part();
    rows.push(...measured);
    if (json !== '-') for (const row of measured) process.stdout.write(`${rowText(row)}\n`);
  }
  writeJson({ pages: PAGES, rows }, json);
}

/** Adds `bench`. */
export function addBenchCommand(program: Command): void {
  program
    .command('bench')
    .description(
      'measure page tables against C, history checks, system calls, scenarios and threads, as ratios in one run',
    )
    .option('--json <file>', 'write the rows as JSON; - for standard output')
    .action(async (options: { readonly json?: string }) => bench(options.json));
}
