/** `iovaduct explore`: its options. */
import { availableParallelism } from 'node:os';
import { Option, type Command } from 'commander';
import { STRATEGIES } from '../explore/strategies.js';
import { DEFAULT_SEED } from '../scenario/load.js';
import type { ExploreOptions } from './explore-one.js';
import { wholeNumber } from './options.js';

const STRATEGY_AS_OPTION = new RegExp(`unknown option '--(${STRATEGIES.join('|')})'`);

/** Adds the command. What it does is loaded only here: no other command has the kernel in its main thread. */
export function addExploreCommand(program: Command): void {
  program
    .command('explore')
    .configureOutput({
      outputError: (text, write) => write(text.replace(STRATEGY_AS_OPTION, '$&; did you mean --strategy $1?')),
    })
    .description('run scenarios under many schedules and look for one that breaks a rule')
    .argument('<path...>', 'scenario files, or directories of them')
    .addOption(
      new Option('--strategy <name>', 'how schedules are chosen').choices([...STRATEGIES]).default('portfolio'),
    )
    .option('--runs <n>', 'schedules at most, for each scenario', wholeNumber(1), 1000)
    .option(
      '--depth <d>',
      'depth of the bugs that PCT looks for; pre-emptions of an exhaustive search',
      wholeNumber(0),
      3,
    )
    .option('--seed <n>', 'seed of the scenario and of the schedules', wholeNumber(0), DEFAULT_SEED)
    .option('--jobs <n>', 'threads', wholeNumber(1), availableParallelism())
    .option('--history', 'with the historical fault that each scenario names under fails-with')
    .addOption(
      new Option('--table [seeds]', 'how many schedules it takes to find each historical fault, over so many seeds')
        .argParser(wholeNumber(1, '; paths go before --table'))
        .preset('20')
        .conflicts(['failNth', 'report']),
    )
    .addOption(
      new Option(
        '--fail-nth',
        'in order, while each allocation, pin, invalidation and send fails in turn: nothing may leak',
      ).conflicts(['strategy', 'runs', 'depth', 'history', 'shrink', 'corpus', 'report']),
    )
    .option('--no-shrink', 'report a failing run as it was found')
    .option('--corpus <dir>', 'write each failing case, shrunk, as a scenario there')
    .option('--report <dir>', 'write a page for each schedule that fails there')
    .option('--json <file>', 'write a JSON document; - is standard output')
    .action(async (paths: readonly string[], options: ExploreOptions) => {
      const { exploreCommand } = await import('./explore-command.js');
      await exploreCommand(paths, options);
    });
}
