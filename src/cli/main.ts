#!/usr/bin/env node
/**
 * The command line: one file a command, exit statuses in exit-codes.ts.
 *
 * Errors end here: a bad input file or wrong usage is 64, anything unforeseen 70 with its stack.
 */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { InputError } from '../scenario/text.js';
import { addBenchCommand } from './bench.js';
import { addConformCommand } from './conform.js';
import { EXIT, UsageError } from './exit-codes.js';
import { addExploreCommand } from './explore.js';
import { addHostCommand } from './host.js';
import { addReplayCommand } from './replay.js';
import { addRunCommand } from './run.js';
import { addSchemaCommand } from './schema.js';
import { addStressCommand } from './stress.js';

function packageVersion(): string {
  const file = new URL('../../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(file, 'utf8')) as { readonly version: string }).version;
}

/** After an error, each command names its own help. */
function pointToHelp(command: Command, name: string): void {
  command.showHelpAfterError(`(try ${name} --help)`);
  for (const inner of command.commands) pointToHelp(inner, `${name} ${inner.name()}`);
}

function createProgram(): Command {
  const program = new Command('iovaduct')
    .description('Will this VM still be able to take that passthrough device after it has migrated?')
    .version(packageVersion())
    .exitOverride();
  addRunCommand(program);
  addReplayCommand(program);
  addExploreCommand(program);
  addHostCommand(program);
  addStressCommand(program);
  addSchemaCommand(program);
  addBenchCommand(program);
  addConformCommand(program);
  pointToHelp(program, 'iovaduct');
  return program;
}

/** What cannot be written ends the command; that the reader has seen enough (`| head`) is nothing to speak of. */
function endWithReader(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(EXIT.unread);
    process.stderr.write(`standard output: ${error.message}\n`);
    process.exit(EXIT.broken);
  });
}

async function main(): Promise<void> {
  endWithReader();
  try {
    await createProgram().parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    else if (error instanceof InputError || error instanceof UsageError) {
      process.stderr.write(`${error.message}\n`);
      process.exitCode = EXIT.usage;
    } else {
      process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
      process.exitCode = EXIT.broken;
    }
  }
}

await main();
