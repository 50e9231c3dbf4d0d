/** `iovaduct run`: scenarios → verdicts, reports, recordings. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { Option, type Command } from 'commander';
import { createColors } from 'picocolors';
import { Piscina } from 'piscina';
import type { ScenarioOutcome } from '../scenario/execute.js';
import { DEFAULT_SEED, type Scenario } from '../scenario/load.js';
import { many } from '../scenario/units.js';
import type { Placement } from '../testbed/run.js';
import { EXIT } from './exit-codes.js';
import { checkOutputs, distinctNames, readScenarios, scenarioFiles, shippedScenarios } from './files.js';
import { shard, takeShard, wholeNumber, type Shard } from './options.js';
import { Progress } from './progress.js';
import { runJob, type ScenarioJob, type ScenarioJobResult } from './run-one.js';
import { htmlReport } from '../report/html.js';
import { junitXml } from '../report/junit.js';
import { runJson, type FinishedRun } from '../report/summary.js';
import { terminalReport, type Palette } from '../report/terminal.js';

interface RunOptions {
  readonly seed: number;
  readonly placement: Placement;
  readonly jobs: number;
  readonly shard?: Shard;
  readonly json?: string;
  readonly junit?: string;
  readonly report?: string;
  readonly record?: string;
  readonly sabotage?: boolean;
}

/** Every host is a thread of its own with placement `workers`, so half of the processors run scenarios. */
const DEFAULT_JOBS = Math.max(1, Math.floor(availableParallelism() / 2));

async function runAll(scenarios: readonly Scenario[], options: RunOptions): Promise<ScenarioJobResult[]> {
  const progress = new Progress(process.stderr, scenarios.length);
  const jobs = scenarios.map((scenario): ScenarioJob => ({
    file: scenario.file,
    text: scenario.text,
    seed: options.seed,
    placement: options.placement,
    isRecorded: options.record !== undefined,
    isSabotaged: options.sabotage === true,
  }));
  const finish = (result: ScenarioJobResult): ScenarioJobResult => {
    progress.finish(result.outcome);
    return result;
  };
  try {
    if (options.jobs === 1 || jobs.length <= 1) {
      const results: ScenarioJobResult[] = [];
      for (const [index, job] of jobs.entries()) {
        const name = scenarios[index]?.name ?? job.file;
        results.push(finish(await runJob(job, (virtualNs) => progress.advance(name, virtualNs))));
      }
      return results;
    }
    return await runInPool(jobs, options.jobs, finish);
  } finally {
    progress.end();
  }
}

/** Whole scenarios side by side; `atomics` off because a scenario's worker listens to its hosts' workers. */
async function runInPool(
  jobs: readonly ScenarioJob[],
  threads: number,
  finish: (result: ScenarioJobResult) => ScenarioJobResult,
): Promise<ScenarioJobResult[]> {
  const pool = new Piscina<ScenarioJob, ScenarioJobResult>({
    filename: new URL('../../workers/scenario.js', import.meta.url).href,
    maxThreads: Math.min(threads, jobs.length),
    atomics: 'disabled',
  });
  try {
    return await Promise.all(jobs.map(async (job) => finish(await pool.run(job))));
  } finally {
    await pool.destroy();
  }
}

/** Writes one recording a scenario. */
function writeRecordings(directory: string, results: readonly ScenarioJobResult[]): void {
  mkdirSync(directory, { recursive: true });
  const names = distinctNames(results.map(({ outcome }) => outcome.name));
  for (const [i, { recording }] of results.entries())
    if (recording !== undefined) writeFileSync(join(directory, `${names[i] ?? ''}.iovarun`), recording);
}

/** Whether to colour: NO_COLOR wins, then FORCE_COLOR, then whether it is a terminal. */
export function palette(isTerminal: boolean): Palette {
  const { env } = process;
  const isOn = (env['NO_COLOR'] ?? '') === '' && ((env['FORCE_COLOR'] ?? '') !== '' || isTerminal);
  const colours = createColors(isOn);
  return { good: colours.cyan, bad: colours.magenta, unsure: colours.yellow, faint: colours.dim };
}

function writeReports(run: FinishedRun, options: RunOptions): void {
  const document = JSON.stringify(runJson(run), undefined, 2);
  if (options.junit !== undefined) writeFileSync(options.junit, junitXml(run));
  if (options.json !== undefined && options.json !== '-') writeFileSync(options.json, `${document}\n`);
  const out = options.json === '-' ? process.stderr : process.stdout;
  let text = terminalReport(run, palette(out.isTTY));
  if (options.report !== undefined) {
    mkdirSync(options.report, { recursive: true });
    const path = join(options.report, 'report.html');
    writeFileSync(path, htmlReport(run));
    text = text.replace(/\n$/, ` · report: ${path}\n`);
  }
  out.write(text);
  if (options.json === '-') process.stdout.write(`${document}\n`);
}

function exitCode(outcomes: readonly ScenarioOutcome[]): number {
  if (outcomes.some(({ failureKind }) => failureKind === 'broken')) return EXIT.broken;
  if (outcomes.some(({ failureKind }) => failureKind === 'unbuildable')) return EXIT.usage;
  if (outcomes.some((outcome) => outcome.verdict === 'fail')) return EXIT.failed;
  return outcomes.some((outcome) => outcome.verdict === 'inconclusive') ? EXIT.inconclusive : EXIT.ok;
}

/** Kernel-only scenarios fail under some schedules: to find one is what exploring is for. */
function failsInOneRun({ failsWith, kernelOnly }: Scenario): boolean {
  return failsWith !== undefined && kernelOnly === undefined;
}

async function runCommand(paths: readonly string[], options: RunOptions): Promise<void> {
  checkOutputs([options.json, options.junit], [options.report, options.record]);
  const read = readScenarios(scenarioFiles(paths.length === 0 ? [shippedScenarios()] : paths));
  const wanted = options.sabotage === true ? read.filter(failsInOneRun) : read;
  if (wanted.length < read.length)
    process.stderr.write(
      `left out: ${many(read.length - wanted.length, 'scenario')} without fails-with, or kernel-only (explore --history is for those)\n`,
    );
  const scenarios = takeShard(wanted, options.shard);
  if (scenarios.length === 0) process.stderr.write('no scenario is left to run\n');
  const results = await runAll(scenarios, options);
  if (options.record !== undefined) writeRecordings(options.record, results);
  const run: FinishedRun = { seed: options.seed, placement: options.placement, scenarios: results };
  writeReports(run, options);
  process.exitCode = exitCode(results.map((result) => result.outcome));
}

/** Adds the command. */
export function addRunCommand(program: Command): void {
  program
    .command('run')
    .description('run scenarios and say whether what they expect is what happens')
    .argument('[path...]', 'scenario files, or directories of them (default: the shipped ones)')
    .option('--seed <n>', 'seed of everything random', wholeNumber(0), DEFAULT_SEED)
    .addOption(
      new Option('--placement <where>', 'where hosts live: each in a worker, or all in one thread')
        .choices(['workers', 'inline'])
        .default('workers'),
    )
    .option('--jobs <n>', 'scenarios side by side', wholeNumber(1), DEFAULT_JOBS)
    .option('--shard <i/n>', 'only every n-th scenario, from the i-th', shard)
    .option('--json <file>', 'write a JSON document; - is standard output')
    .option('--junit <file>', 'write JUnit XML')
    .option('--report <dir>', 'write report.html there')
    .option('--record <dir>', 'write <name>.iovarun there for each scenario, for replay')
    .option('--sabotage', 'switch off what each scenario is about (its fails-with): it must fail then')
    .action(runCommand);
}
