/** `iovaduct explore`: schedules of a scenario, one after another, until one breaks a rule. */
import { Option, type Command } from 'commander';
import { measureChoices, sample, type Sampled } from '../explore/explore.js';
import { guarantee, STRATEGIES, type Sampling, type StrategyName } from '../explore/strategies.js';
import { subjectOf } from '../explore/subject.js';
import { readScenario } from '../scenario/load.js';
import { sabotaged } from '../scenario/sabotage.js';
import { EXIT } from './exit-codes.js';
import { scenarioFiles } from './files.js';
import { wholeNumber } from './options.js';

interface ExploreOptions {
  readonly strategy: StrategyName;
  readonly runs: number;
  readonly depth: number;
  readonly seed: number;
  readonly history?: boolean;
}

function percent(chance: number): string {
  return chance > 0.9999 ? '> 99.99 %' : `${(100 * chance).toFixed(2)} %`;
}

function reportText(name: string, sampled: Sampled, seconds: number): string {
  const { runs, tasks, choices, schedules, states, failure, pctRuns } = sampled;
  const lines = [
    `${name}: ${runs} schedules (${schedules.size} distinct), ${states.size} final states, ${(runs / seconds).toFixed(0)}/s`,
    `  n = ${tasks} tasks, k = ${choices} choices at most`,
    ...Object.entries(pctRuns).map(
      ([d, count]) =>
        `  d = ${d}: ${count} runs by PCT find any bug of that depth with a chance of at least ${percent(guarantee(tasks, choices, Number(d), count))}`,
    ),
  ];
  if (failure !== undefined)
    lines.push(
      `  run ${failure.run} failed: ${failure.attempt.failure?.task ?? ''}: ${failure.attempt.failure?.message ?? ''}`,
    );
  return `${lines.join('\n')}\n`;
}

async function exploreCommand(paths: readonly string[], options: ExploreOptions): Promise<void> {
  for (const file of scenarioFiles(paths)) {
    const read = readScenario(file);
    const scenario = options.history === true ? (sabotaged(read) ?? read) : read;
    const subject = subjectOf(scenario, options.seed);
    const { strategy, seed, depth } = options;
    if (strategy === 'exhaustive') throw new Error('not yet');
    const sampling: Sampling = { strategy, seed, depth, choices: await measureChoices(subject, seed) };
    const start = performance.now();
    const sampled = await sample(subject, sampling, { first: 0, end: options.runs });
    process.stdout.write(reportText(scenario.name, sampled, (performance.now() - start) / 1000));
    if (sampled.failure !== undefined) process.exitCode = EXIT.failed;
  }
}

/** Adds the command. */
export function addExploreCommand(program: Command): void {
  program
    .command('explore')
    .description('run scenarios under many schedules and look for one that breaks a rule')
    .argument('<path...>', 'scenario files, or directories of them')
    .addOption(
      new Option('--strategy <name>', 'how schedules are chosen').choices([...STRATEGIES]).default('portfolio'),
    )
    .option('--runs <n>', 'schedules at most', wholeNumber(1), 1000)
    .option('--depth <d>', 'depth of the bugs that PCT looks for', wholeNumber(1), 3)
    .option('--seed <n>', 'seed of the schedules', wholeNumber(0), 1)
    .option('--history', 'with the historical fault that each scenario names under fails-with')
    .action(exploreCommand);
}
