/** What `explore` does: schedules of a scenario, one after another, until one breaks a rule; and what it prints of that. */
import type { Exploration } from '../explore/campaign.js';
import { failNth, type Sweep } from '../explore/fail-nth.js';
import { countDeviations } from '../explore/record.js';
import type { Shrunk } from '../explore/shrink.js';
import { KERNEL_NODE, type Attempt } from '../explore/subject.js';
import { givenUpIn, INVARIANTS } from '../runtime/invariants.js';
import type { Scenario } from '../scenario/load.js';
import { many } from '../scenario/units.js';
import { EXIT, UsageError } from './exit-codes.js';
import { explainFailure } from './explain-failure.js';
import { checkCorpus, exploreOne, fileNames, LOST, type Explored, type ExploreOptions } from './explore-one.js';
import { incidentTable, withHistory } from './explore-table.js';
import { interruptible } from './interrupt.js';
import { checkOutputs, readScenarios, scenarioFiles, writeJson } from './files.js';
import { LiveLine, ofSeveral } from './progress.js';
import { palette } from './run.js';
import type { Palette } from '../report/terminal.js';

/** The least chance that is told as a figure. */
const LEAST_CHANCE = 1e-6;

function percent(chance: number): string {
  if (chance > 0.9999) return '99.99 %';
  return `${chance < 0.0001 ? (100 * chance).toPrecision(1) : (100 * chance).toFixed(2)} %`;
}

function guaranteeText({ kernelOnly }: Scenario, { depth, runs, chance }: Exploration['guarantees'][number]): string {
  const what = `any bug of that depth${kernelOnly === undefined ? ' in one host' : ''} in the first k choices`;
  const made = `  d = ${depth}: ${many(runs, 'run')}`;
  const s = runs === 1 ? 's' : '';
  return chance < LEAST_CHANCE
    ? `${made} promise${s} less than ${percent(LEAST_CHANCE)} for ${what}`
    : `${made} find${s} ${what} with a chance of at least ${percent(chance)}`;
}

type Bound = Exploration['bounds'][number];

/** Hosts as a whole do not tell of all that tasks share. */
function boundText({ preemptions, runs, pruned, isComplete, hasStalls }: Bound, isKernelOnly: boolean): string {
  const within =
    preemptions === Infinity ? 'any number of pre-emptions' : `${many(preemptions, 'pre-emption')} at most`;
  const orders = isKernelOnly ? 'every order that matters' : 'every order that matters to what hosts tell of';
  const seen = `${orders} was seen${hasStalls ? ', but for stalls' : ''}`;
  const how = isComplete ? seen : 'not finished';
  return `  ${within}: ${how}, ${many(runs, 'run')}${pruned === 0 ? '' : `, ${pruned} given up as repetitions`}`;
}

function sizeText({ scenario, deviations }: Shrunk): string {
  const { kernelOnly, steps, hosts } = scenario;
  const switches = many(countDeviations(deviations), 'switch');
  if (kernelOnly === undefined) return `${many(hosts.length, 'host')}, ${many(steps.length, 'step')}, ${switches}`;
  const { tasks, setup } = kernelOnly.program;
  const calls = tasks.reduce((sum, task) => sum + task.calls.length, 0);
  // The address space that is made when nothing makes it has no line.
  const own = setup.filter(({ line }) => line !== undefined).length;
  return `${many(tasks.length, 'task')}, ${many(calls, 'call')} after ${own} to set up, ${switches}`;
}

function verdictOf({ failure, inconclusive, isInterrupted }: Exploration): Attempt['verdict'] {
  if (failure !== undefined) return 'fail';
  return inconclusive > 0 || isInterrupted ? 'inconclusive' : 'pass';
}

function markOf(exploration: Exploration, colours: Palette): string {
  const marks = { pass: colours.good('✔'), fail: colours.bad('✖'), inconclusive: colours.unsure('?') };
  return marks[verdictOf(exploration)];
}

function exploredText(
  { scenario, exploration, seconds, shrunk, isLost, corpusFile }: Explored,
  { history }: ExploreOptions,
  colours: Palette,
): string {
  const {
    runs,
    tasks,
    choices,
    changePoints,
    distinctSchedules,
    distinctStates,
    failure,
    guarantees,
    bounds,
    isInterrupted,
  } = exploration;
  if (runs === 0)
    return `${markOf(exploration, colours)} ${scenario.name}  interrupted before the first schedules were made\n`;
  const rate = runs / seconds;
  const speed = seconds > 0 ? `, ${rate.toFixed(rate < 10 ? 1 : 0)} a second` : '';
  const lines = [
    `${markOf(exploration, colours)} ${scenario.name}  ${many(runs, 'schedule')}, ${distinctSchedules} distinct, ${many(distinctStates, 'final state')}${speed}`,
    colours.faint(
      `  n = ${many(tasks, 'task')} and time, k = ${many(changePoints, 'choice')}, at most ${choices} in a run`,
    ),
    ...(failure === undefined ? guarantees : []).map((one) => colours.faint(guaranteeText(scenario, one))),
    ...bounds.map((bound) => colours.faint(boundText(bound, scenario.kernelOnly !== undefined))),
  ];
  if (isInterrupted) lines.push('  interrupted');
  if (history === true && failure === undefined) lines.push('  the fault that was put back was not found');
  if (exploration.reaches > 1)
    lines.push(`  INV-10: what devices reach depends on the order of plugging: ${exploration.reaches} ways it ends`);
  const givenUp = givenUpIn(exploration.invariants);
  if (exploration.inconclusive > 0) {
    const why = givenUp === undefined ? '' : `: ${givenUp.id}: ${givenUp.why}`;
    lines.push(`  ${exploration.inconclusive} of them inconclusive${why}`);
  }
  if (failure !== undefined) {
    const task = failure.task === '-' ? '' : `, task ${failure.task}`;
    const place = failure.line === undefined ? '' : ` at ${scenario.file}:${failure.line}`;
    lines.push(`  run ${failure.run}${task}: ${failure.message.split('\n')[0] ?? ''}${place}`);
    if (failure.id !== undefined) lines.push(colours.faint(`  ${failure.id}: ${INVARIANTS[failure.id]}`));
  }
  const where = corpusFile === undefined ? '' : `: ${corpusFile}`;
  if (shrunk !== undefined) {
    const end = shrunk.isInterrupted ? ', interrupted' : '';
    lines.push(`  shrunk to ${sizeText(shrunk)} in ${many(shrunk.attempts, 'run')}${end}${where}`);
  } else if (corpusFile !== undefined) lines.push(`  written as it was found${where}`);
  if (isLost) lines.push(`  not shrunk: ${LOST}`);
  return `${lines.join('\n')}\n`;
}

/** The race report, in full where one scenario was asked for, and where its page was written. */
function explanationText(
  { scenario, exploration, shrunk }: Explored,
  fileName: string,
  options: ExploreOptions,
  asked: number,
): string {
  const { failure } = exploration;
  if (failure === undefined || failure.id === 'INV-20') return '';
  const deviations = (shrunk?.deviations ?? failure.deviations)[KERNEL_NODE] ?? [];
  const schedule = { strategy: 'deviating', deviations } as const;
  const wanted = options.report === undefined ? undefined : { directory: options.report, name: fileName };
  const explained = explainFailure(shrunk?.scenario ?? scenario, options.seed, schedule, wanted);
  if (explained === undefined) return wanted === undefined ? '' : '  no page: pages are for kernel-only scenarios\n';
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
    verdict: verdictOf(exploration),
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
    interrupted: exploration.isInterrupted,
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
            schedule: failure.deviations,
            ...(corpusFile === undefined ? {} : { corpus: corpusFile }),
          },
        }),
    ...(shrunk === undefined
      ? {}
      : {
          shrunk: {
            runs: shrunk.attempts,
            interrupted: shrunk.isInterrupted,
            scenario: shrunk.text,
            schedule: shrunk.deviations,
          },
        }),
  };
}

/** Why a sweep does not say that all is well where nothing failed. */
function openIn({ injected, invariants, isInterrupted }: Sweep): string[] {
  const unfinished = injected.reduce((sum, one) => sum + one.unfinished, 0);
  const givenUp = givenUpIn(invariants);
  return [
    ...(unfinished > 0 ? [`${many(unfinished, 'run')} inconclusive: ended at the time limit`] : []),
    ...(givenUp === undefined ? [] : [`some inconclusive: ${givenUp.id}: ${givenUp.why}`]),
    ...(isInterrupted ? ['interrupted'] : []),
  ];
}

function nodeText(node: string): string {
  return node === KERNEL_NODE ? '' : ` in ${node}`;
}

function sweepText(name: string, sweep: Sweep, colours: Palette): string {
  const { injected } = sweep;
  const failed = injected.filter(({ failure }) => failure !== undefined);
  const total = injected.reduce((sum, { calls }) => sum + calls, 0);
  const kinds = injected
    .filter(({ calls }) => calls > 0)
    .map(({ fault, node, calls }) => `${calls} of ${fault}${nodeText(node)}`);
  const open = openIn(sweep);
  const held = open.length > 0 ? colours.unsure('?') : colours.good('✔');
  const mark = failed.length === 0 ? held : colours.bad('✖');
  const lines = [
    `${mark} ${name}  ${many(total, 'failure')} injected, one a run${kinds.length === 0 ? '' : `: ${kinds.join(', ')}`}`,
  ];
  for (const { fault, node, failure } of failed) {
    const when = failure?.nth === undefined ? 'nothing injected' : `${fault}, call ${failure.nth}${nodeText(node)}`;
    lines.push(`  ${when}: ${failure?.message.split('\n')[0] ?? ''}`);
  }
  lines.push(...open.map((why) => `  ${why}`));
  return `${lines.join('\n')}\n`;
}

/** `3 scenarios, 1 failed`: what comes after more than one. `made` is less than `total` after Ctrl-C. */
function totalText(total: number, made: number, failed: number, inconclusive = 0): string {
  if (total === 1) return '';
  const left = made < total ? `interrupted at scenario ${made} of ${total}` : many(total, 'scenario');
  return `${left}, ${failed} failed${inconclusive === 0 ? '' : `, ${inconclusive} inconclusive`}\n`;
}

/** The exit status of so many scenarios that failed, and of which nothing follows. */
function exitWith(failed: number, inconclusive: number): void {
  if (failed > 0) process.exitCode = EXIT.failed;
  else if (inconclusive > 0) process.exitCode = EXIT.inconclusive;
}

/** Every failure in turn. */
async function sweepCommand(
  scenarios: readonly Scenario[],
  options: ExploreOptions,
  signal: AbortSignal,
): Promise<void> {
  const out = options.json === '-' ? process.stderr : process.stdout;
  const live = new LiveLine(process.stderr);
  const all: object[] = [];
  let failed = 0;
  let inconclusive = 0;
  for (const [i, scenario] of scenarios.entries()) {
    const { file, name } = scenario;
    const tell = (runs: number): void => live.show(ofSeveral(i, scenarios.length, `${name}: ${many(runs, 'run')}`));
    const sweep = await failNth(scenario, options.seed, tell, signal);
    live.clear();
    out.write(sweepText(name, sweep, palette(out.isTTY)));
    if (sweep.injected.some(({ failure }) => failure !== undefined)) failed++;
    else if (openIn(sweep).length > 0) inconclusive++;
    const { injected, isInterrupted, invariants } = sweep;
    all.push({ file, name, interrupted: isInterrupted, injected, invariants });
    if (isInterrupted) break;
  }
  out.write(totalText(scenarios.length, all.length, failed, inconclusive));
  writeJson({ scenarios: all }, options.json);
  exitWith(failed, inconclusive);
}

/** How soon historical faults are found. */
async function tableCommand(
  scenarios: readonly Scenario[],
  options: ExploreOptions,
  seeds: number,
  signal: AbortSignal,
): Promise<void> {
  const live = new LiveLine(process.stderr);
  const table = await incidentTable(scenarios, options, seeds, (text) => live.show(text), signal);
  live.clear();
  const out = options.json === '-' ? process.stderr : process.stdout;
  out.write(`${table.text}${signal.aborted ? 'interrupted: rows are missing\n' : ''}`);
  writeJson(table.json, options.json);
  if (!table.isComplete) process.exitCode = EXIT.failed;
}

/** Those that name a historical fault, with it; says how many do not. @throws UsageError when none does */
function onlyWithHistory(read: readonly Scenario[]): Scenario[] {
  const wanted = withHistory(read);
  if (wanted.length < read.length)
    process.stderr.write(
      `left out: ${many(read.length - wanted.length, 'scenario')} without a fault under fails-with\n`,
    );
  return wanted.map(({ scenario }) => scenario);
}

/** Explores scenarios one after another. */
async function exploreAll(scenarios: readonly Scenario[], options: ExploreOptions, signal: AbortSignal): Promise<void> {
  const out = options.json === '-' ? process.stderr : process.stdout;
  const live = new LiveLine(process.stderr);
  checkCorpus(scenarios, options);
  const names = fileNames(scenarios);
  const all: Explored[] = [];
  for (const [i, scenario] of scenarios.entries()) {
    const fileName = names[i] ?? scenario.name;
    if (signal.aborted) break;
    const tell = (text: string): void => live.show(ofSeveral(i, scenarios.length, text));
    const explored = await exploreOne(scenario, fileName, options, tell, signal);
    live.clear();
    all.push(explored);
    out.write(exploredText(explored, options, palette(out.isTTY)));
    if (scenarios.length === 1 || options.report !== undefined)
      out.write(explanationText(explored, fileName, options, scenarios.length));
  }
  const verdicts = all.map(({ exploration }) => verdictOf(exploration));
  const failed = verdicts.filter((verdict) => verdict === 'fail').length;
  const inconclusive = verdicts.filter((verdict) => verdict === 'inconclusive').length;
  out.write(totalText(scenarios.length, all.length, failed, inconclusive));
  writeJson(
    { interrupted: signal.aborted, scenarios: all.map((explored) => exploredJson(explored, options)) },
    options.json,
  );
  exitWith(failed, inconclusive);
  if (all.some(({ exploration }) => exploration.failure?.isUnbuildable === true)) process.exitCode = EXIT.usage;
}

/** Carries the command out. Every file is read, and what is to be written looked at, before anything runs. */
export async function exploreCommand(paths: readonly string[], options: ExploreOptions): Promise<void> {
  if (options.strategy === 'pct' && options.depth === 0)
    throw new UsageError('--depth: PCT looks for bugs of depth 1 at least');
  if (options.table !== undefined && options.corpus !== undefined && !options.shrink)
    throw new UsageError('--no-shrink: a table writes shrunk cases to --corpus');
  checkOutputs([options.json], [options.corpus, options.report]);
  const read = readScenarios(scenarioFiles(paths));
  const { failNth: isSweep, table, history } = options;
  await interruptible(async (signal) => {
    if (isSweep === true) await sweepCommand(read, options, signal);
    else if (table !== undefined) await tableCommand(read, options, table, signal);
    else await exploreAll(history === true ? onlyWithHistory(read) : read, options, signal);
  });
}
