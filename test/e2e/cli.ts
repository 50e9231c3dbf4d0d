/** Runs the built command line as a user would. */
import { spawnSync, type SpawnSyncReturns } from 'node:child_process';

/** The parts of `run --json` that tests look at. */
export interface RunJson {
  readonly seed: number;
  readonly placement: string;
  readonly digest: string;
  readonly passed: number;
  readonly failed: number;
  readonly inconclusive: number;
  readonly scenarios: readonly {
    readonly file: string;
    readonly name: string;
    readonly verdict: string;
    readonly digest: string;
    readonly checks: readonly { readonly name: string; readonly verdict: string; readonly detail: string }[];
  }[];
}

export function iovaduct(...args: string[]): SpawnSyncReturns<string> {
  return spawnSync(process.execPath, ['dist/src/cli/main.js', ...args], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env: { ...process.env, NO_COLOR: '1' },
  });
}

/** `run --json -` with more arguments; fails the test when standard output is not one JSON document. */
export function runJson(...args: string[]): {
  readonly status: number | null;
  readonly json: RunJson;
  readonly stderr: string;
} {
  const { status, stdout, stderr } = iovaduct('run', ...args, '--json', '-');
  return { status, json: JSON.parse(stdout) as RunJson, stderr };
}
