/** Files on disk: what a PATH on the command line means, and whether what is to be written can be. */
import {
  accessSync,
  constants,
  existsSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
  type Stats,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readScenario, type Scenario } from '../scenario/load.js';
import { InputError } from '../scenario/text.js';
import { UsageError } from './exit-codes.js';

/** Directories that hold parts of scenarios, not scenarios. */
const NOT_SCENARIOS = new Set(['hosts', 'guests', 'fleets']);

function walk(directory: string): string[] {
  const entries = readdirSync(directory, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  return entries.flatMap((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return NOT_SCENARIOS.has(entry.name) ? [] : walk(path);
    return entry.isFile() && /\.ya?ml$/.test(entry.name) ? [path] : [];
  });
}

function statOf(path: string): Stats | undefined {
  return existsSync(path) ? statSync(path) : undefined;
}

/** Every scenario under the given paths, in the order given and sorted below. @throws UsageError for a path that is not there */
export function scenarioFiles(paths: readonly string[]): string[] {
  const found = paths.flatMap((path) => {
    const stat = statOf(path);
    if (stat === undefined) throw new UsageError(`${path}: no such file or directory`);
    return stat.isDirectory() ? walk(path) : [path];
  });
  const unique = [...new Set(found)];
  if (unique.length === 0) throw new UsageError(`no scenarios under ${paths.join(', ')}`);
  return unique;
}

/** The shipped scenarios, wherever the package is installed. */
export function shippedScenarios(): string {
  return fileURLToPath(new URL('../../../scenarios', import.meta.url));
}

/** Reads every file before anything runs: a bad file is found at once. @throws InputError with the problems of all files */
export function readScenarios(files: readonly string[]): Scenario[] {
  const problems: InputError['problems'][number][] = [];
  const scenarios: Scenario[] = [];
  for (const file of files) {
    try {
      scenarios.push(readScenario(file));
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      problems.push(...error.problems);
    }
  }
  if (problems.length > 0) throw new InputError(problems);
  return scenarios;
}

/** The bytes of a file. @throws UsageError when it cannot be read */
export function readInput(file: string): Buffer {
  const stat = statOf(file);
  if (stat === undefined) throw new UsageError(`${file}: no such file`);
  if (stat.isDirectory()) throw new UsageError(`${file}: is a directory`);
  try {
    return readFileSync(file);
  } catch (error) {
    throw new UsageError(`${file}: cannot be read (${codeOf(error)})`);
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : String(error);
}

function checkWritable(path: string, shown: string): void {
  try {
    accessSync(path, constants.W_OK);
  } catch (error) {
    throw new UsageError(`${shown}: cannot be written (${codeOf(error)})`);
  }
}

/**
 * Files and directories that a command will write at its end, looked at before it begins. Nothing is opened: a pipe's reader would take
 * that for all it gets. Directories are made when they are needed. @throws UsageError for what cannot be written
 */
export function checkOutputs(
  files: readonly (string | undefined)[],
  directories: readonly (string | undefined)[] = [],
): void {
  for (const file of files) {
    if (file === undefined || file === '-') continue;
    const stat = statOf(file);
    if (stat?.isDirectory() === true) throw new UsageError(`${file}: is a directory`);
    const folder = dirname(resolve(file));
    if (stat === undefined && statOf(folder)?.isDirectory() !== true)
      throw new UsageError(`${file}: there is no directory ${dirname(file)}`);
    checkWritable(stat === undefined ? folder : file, file);
  }
  for (const directory of directories) {
    if (directory === undefined) continue;
    let above = resolve(directory);
    while (!existsSync(above)) above = dirname(above);
    if (!statSync(above).isDirectory()) throw new UsageError(`${directory}: ${above} is no directory`);
    checkWritable(above, directory);
  }
}

/** Writes a document where `--json` says: a file, `-` for standard output, nowhere when it was not given. */
export function writeJson(document: object, path: string | undefined): void {
  const text = `${JSON.stringify(document, undefined, 2)}\n`;
  if (path === '-') process.stdout.write(text);
  else if (path !== undefined) writeFileSync(path, text);
}

/** Names for files, each its own: one that was there before gets a number. */
export function distinctNames(names: readonly string[]): string[] {
  const taken = new Set<string>();
  return names.map((name) => {
    let own = name;
    for (let i = 2; taken.has(own); i++) own = `${name}-${i}`;
    taken.add(own);
    return own;
  });
}
