/** What `explore` does: schedules of a scenario, one after another, until one breaks a rule; and what it prints of that. */
import { writeFileSync } from 'node:fs';
import type { Exploration } from '../explore/campaign.js';
import { failNth, type Sweep } from '../explore/fail-nth.js';
import { countDeviations } from '../explore/record.js';
import type { Shrunk } from '../explore/shrink.js';
import { KERNEL_NODE } from '../explore/subject.js';
import { givenUpIn, INVARIANTS } from '../runtime/invariants.js';
import { readScenario } from '../scenario/load.js';
import { EXIT } from './exit-codes.js';
import { explainFailure } from './explain-failure.js';
import { exploreOne, type Explored, type ExploreOptions } from './explore-one.js';
import { incidentTable } from './explore-table.js';
import { scenarioFiles } from './files.js';
import { LiveLine } from './progress.js';
import { palette } from './run.js';
import type { Palette } from '../report/terminal.js';

function percent(chance: number): string {
  if (chance > 0.9999) return '99.99 %';
  return `${chance < 0.0001 ? (100 * chance).toPrecision(1) : (100 * chance).toFixed(2)} %`;
}

type Bound = Exploration['bounds'][number];

/** Hosts as a whole do not tell of all that tasks share. */
function boundText({ preemptions, runs, pruned, isComplete, hasStalls }: Bound, isKernelOnly: boolean): string {
  const within = preemptions === Infinity ? 'any number of pre-emptions' : `${preemptions} pre-emptions at most`;
  const orders = isKernelOnly ? 'every order that matters' : 'every order that matters to what hosts tell of';
  const seen = `${orders} was seen${hasStalls ? ', but for stalls' : ''}`;
  const how = isComplete ? seen : 'not finished';
  return `  ${within}: ${how}, ${runs} runs${pruned === 0 ? '' : `, ${pruned} given up as repetitions`}`;
}

function sizeText({ scenario, deviations }: Shrunk): string {
  const { kernelOnly, steps, hosts } = scenario;
  const switches = `${countDeviations(deviations)} switches`;
  if (kernelOnly === undefined) return `${hosts.length} hosts, ${steps.length} steps, ${switches}`;
  const { tasks, setup } = kernelOnly.program;
  const calls = tasks.reduce((sum, task) => sum + task.calls.length, 0);
  return `${tasks.length} tasks, ${calls} calls after ${setup.length} to set up, ${switches}`;
}

function exploredText(
  { scenario, exploration, seconds, shrunk, isLost, corpusFile }: Explored,
  colours: Palette,
): string {
  const { runs, tasks, choices, changePoints, distinctSchedules, distinctStates, failure, guarantees, bounds } =
    exploration;
  const mark =
    failure !== undefined ? colours.bad('✖') : exploration.inconclusive > 0 ? colours.unsure('?') : colours.good('✔');
  const speed = seconds > 0 ? `, ${(runs / seconds).toFixed(0)} a second` : '';
  const lines = [
    `${mark} ${scenario.name}  ${runs} schedules, ${distinctSchedules} distinct, ${distinctStates} final states${speed}`,
    colours.faint(`  n = ${tasks} tasks and time, k = ${changePoints} choices, at most ${choices} in a run`),
    ...(failure === undefined ? guarantees : []).map(({ depth, runs: count, chance }) =>
      colours.faint(
        `  d = ${depth}: ${count} runs find any bug of that depth in the first k choices with a chance of at least ${percent(chance)}`,
      ),
    ),
    ...bounds.map((bound) => colours.faint(boundText(bound, scenario.kernelOnly !== undefined))),
  ];
  if (exploration.reaches > 1)
    lines.push(`  INV-10: what devices reach depends on the order of plugging: ${exploration.reaches} ways it ends`);
  const givenUp = givenUpIn(exploration.invariants);
  if (exploration.inconclusive > 0) {
    const why = givenUp === undefined ? '' : `: ${givenUp.id}: ${givenUp.why}`;
    lines.push(`  ${exploration.inconclusive} of them inconclusive${why}`);
  }
  if (failure !== undefined) {
    lines.push(`  run ${failure.run}, task ${failure.task}: ${failure.message.split('\n')[0] ?? ''}`);
    if (failure.id !== undefined) lines.push(colours.faint(`  ${failure.id}: ${INVARIANTS[failure.id]}`));
  }
  if (shrunk !== undefined) {
    const where = corpusFile === undefined ? '' : `: ${corpusFile}`;
    lines.push(`  shrunk to ${sizeText(shrunk)} in ${shrunk.attempts} runs${where}`);
  }
  if (isLost) lines.push('  not shrunk: under the recorded schedule it does not fail again');
  return `${lines.join('\n')}\n`;
}

/** The race report, in full where one scenario was asked for, and where its page was written. */
function explanationText({ scenario, exploration, shrunk }: Explored, options: ExploreOptions, asked: number): string {
  const { failure } = exploration;
  if (failure === undefined || failure.id === 'INV-20') return '';
  const deviations = (shrunk?.deviations ?? failure.deviations)[KERNEL_NODE] ?? [];
  const schedule = { strategy: 'deviating', deviations } as const;
  const explained = explainFailure(shrunk?.scenario ?? scenario, options.seed, schedule, options.report);
  if (explained === undefined) return '';
  const page = explained.page === undefined ? '' : `  page: ${explained.page}\n`;
  return asked === 1 ? `\n${explained.text}${page}` : page;
}

function exploredJson(
  { scenario, exploration, seconds, shrunk, corpusFile }: Explored,
  options: ExploreOptions,
): object {
  const { failure } = exploration;
  return {
    file: scenario.file,
    name: scenario.name,
    strategy: options.strategy,
    seed: options.seed,
    verdict: failure !== undefined ? 'fail' : exploration.inconclusive > 0 ? 'inconclusive' : 'pass',
    runs: exploration.runs,
    distinct_schedules: exploration.distinctSchedules,
    distinct_states: exploration.distinctStates,
    tasks: exploration.tasks,
    choices: exploration.choices,
    change_points: exploration.changePoints,
    guarantees: exploration.guarantees,
    bounds: exploration.bounds.map(({ preemptions, runs, pruned, isComplete, hasStalls }) => ({
      preemptions: preemptions === Infinity ? null : preemptions,
      runs,
      pruned,
      complete: isComplete && scenario.kernelOnly !== undefined,
      stalls_left_out: hasStalls,
    })),
    self_tests: exploration.selfTests,
    reaches: exploration.reaches,
    schedules_per_second: Math.round(exploration.runs / seconds),
    invariants: exploration.invariants,
    ...(failure === undefined
      ? {}
      : {
          failure: {
            run: failure.run,
            rule: failure.id ?? null,
            signature: failure.signature,
            message: failure.message,
            task: failure.task,
            schedule: shrunk?.deviations ?? failure.deviations,
            ...(corpusFile === undefined ? {} : { corpus: corpusFile }),
          },
        }),
  };
}

function sweepText(name: string, { injected }: Sweep, colours: Palette): string {
  const failed = injected.filter(({ failure }) => failure !== undefined);
  const total = injected.reduce((sum, { calls }) => sum + calls, 0);
  const kinds = injected
    .filter(({ calls }) => calls > 0)
    .map(({ fault, node, calls }) => `${calls} of ${fault}${node === KERNEL_NODE ? '' : ` in ${node}`}`);
  const mark = failed.length === 0 ? colours.good('✔') : colours.bad('✖');
  const lines = [`${mark} ${name}  ${total} failures, one a run${kinds.length === 0 ? '' : `: ${kinds.join(', ')}`}`];
  for (const { fault, failure } of failed)
    lines.push(`  ${fault}, call ${failure?.nth ?? 0}: ${failure?.message.split('\n')[0] ?? ''}`);
  return `${lines.join('\n')}\n`;
}

/** Every failure in turn. */
async function sweepCommand(files: readonly string[], options: ExploreOptions): Promise<void> {
  const out = options.json === '-' ? process.stderr : process.stdout;
  const live = new LiveLine(process.stderr);
  const all: object[] = [];
  for (const file of files) {
    const scenario = readScenario(file);
    const sweep = await failNth(scenario, options.seed, (runs) => live.show(`${scenario.name}: ${runs} runs`));
    live.clear();
    out.write(sweepText(scenario.name, sweep, palette(out.isTTY)));
    if (sweep.injected.some(({ failure }) => failure !== undefined)) process.exitCode = EXIT.failed;
    all.push({ file, name: scenario.name, injected: sweep.injected, invariants: sweep.invariants });
  }
  writeJson({ scenarios: all }, options);
}

/** How soon historical faults are found. */
async function tableCommand(files: readonly string[], options: ExploreOptions, seeds: number): Promise<void> {
  const live = new LiveLine(process.stderr);
  const table = await incidentTable(files, options, seeds, (text) => live.show(text));
  live.clear();
  (options.json === '-' ? process.stderr : process.stdout).write(table.text);
  writeJson(table.json, options);
  if (!table.isComplete) process.exitCode = EXIT.failed;
}

function writeJson(document: object, { json }: ExploreOptions): void {
  const text = `${JSON.stringify(document, undefined, 2)}\n`;
  if (json === '-') process.stdout.write(text);
  else if (json !== undefined) writeFileSync(json, text);
}

/** Carries the command out. */
export async function exploreCommand(paths: readonly string[], options: ExploreOptions): Promise<void> {
  const files = scenarioFiles(paths);
  if (options.failNth === true) {
    await sweepCommand(files, options);
    return;
  }
  if (options.table !== undefined) {
    await tableCommand(files, options, options.table);
    return;
  }
  const wanted = options.history === true ? files.filter((file) => readScenario(file).failsWith !== undefined) : files;
  if (wanted.length < files.length)
    process.stderr.write(`${files.length - wanted.length} scenarios name nothing under fails-with and are left out\n`);
  const out = options.json === '-' ? process.stderr : process.stdout;
  const live = new LiveLine(process.stderr);
  const all: Explored[] = [];
  for (const file of wanted) {
    const explored = await exploreOne(file, options, (text) => live.show(text));
    live.clear();
    all.push(explored);
    out.write(exploredText(explored, palette(out.isTTY)));
    if (wanted.length === 1 || options.report !== undefined)
      out.write(explanationText(explored, options, wanted.length));
  }
  writeJson({ scenarios: all.map((explored) => exploredJson(explored, options)) }, options);
  if (all.some(({ exploration }) => exploration.failure !== undefined)) process.exitCode = EXIT.failed;
  else if (all.some(({ exploration }) => exploration.inconclusive > 0)) process.exitCode = EXIT.inconclusive;
}
