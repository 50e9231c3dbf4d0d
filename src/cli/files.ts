/** Scenario files on disk: what a PATH on the command line means. */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
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

/** Every scenario under the given paths, in the order given and sorted below. @throws UsageError for a path that is not there */
export function scenarioFiles(paths: readonly string[]): string[] {
  const found = paths.flatMap((path) => {
    const stat = statSync(path, { throwIfNoEntry: false });
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
