/** `iovaduct replay`: a recorded run again, from its file alone. */
import type { Command } from 'commander';
import { executeScenario } from '../scenario/execute.js';
import { decodeRecording, firstDifference, type Difference } from '../scenario/recording.js';
import { EXIT } from './exit-codes.js';
import { readInput } from './files.js';

function differenceText(difference: Difference): string {
  const { index, recorded, now } = difference;
  return [
    `differs first at event ${index}:`,
    `  recorded  ${recorded ?? '(the recorded history has ended)'}`,
    `  now       ${now ?? '(this history has ended)'}`,
    '',
  ].join('\n');
}

async function replay(file: string): Promise<void> {
  const { recording, scenario } = decodeRecording(file, readInput(file));
  const { outcome, trace } = await executeScenario(scenario, {
    seed: recording.seed,
    placement: 'inline',
    recordedChoices: recording.choices,
  });
  const difference = firstDifference(recording.lines, trace.lines);
  if (difference !== undefined) {
    process.stdout.write(`${scenario.name} ${differenceText(difference)}`);
    process.exitCode = EXIT.failed;
    return;
  }
  const count = trace.lines.length;
  process.stdout.write(`${scenario.name}: identical, ${count} events, digest ${outcome.digest.slice(0, 16)}\n`);
}

/** Adds the command. */
export function addReplayCommand(program: Command): void {
  program
    .command('replay')
    .description('run a recorded run again and say where it first differs')
    .argument('<file>', 'a file written by run --record')
    .action(replay);
}
