/** `iovaduct stress` as a user has it: exit statuses, what is printed, one document on standard output. */
import { describe, expect, test } from 'vitest';
import { iovaduct } from '../e2e/cli.js';

interface Document {
  readonly verdict: string;
  readonly reason?: string;
  readonly seed: number;
  readonly operations: number;
  readonly violations: readonly { readonly kind: string; readonly iova?: string }[];
  readonly deaths: readonly { readonly outcome: string }[];
}

function stressJson(...args: string[]): { readonly status: number | null; readonly document: Document } {
  const { status, stdout } = iovaduct('stress', '--json', '-', ...args);
  return { status, document: JSON.parse(stdout) as Document };
}

test('what was found is an alarm a line, with its place', () => {
  const { status, stdout } = iovaduct('stress', '--seconds', '100', '--fault', 'map-exists');
  expect(status).toBe(1);
  expect(stdout).toMatch(
    /^violated\n\d+ operations of 2 clients, .*, kernel locks, strict invalidation, fault map-exists on\n/,
  );
  expect(stdout).toMatch(
    /^ALARM answer at IOVA 0x[0-9a-f]+000: (MAP|COPY) of \d+ pages? answered EEXIST where nobody had anything$/m,
  );
});

test('modes are those that were asked for; deferred invalidation has a window', () => {
  const args = ['--seconds', '2', '--locks', 'sharded', '--invalidation', 'deferred', '--no-pauses'];
  const { status, stdout } = iovaduct('stress', ...args);
  expect(status).toBe(0);
  expect(stdout).toMatch(/; seed 1, sharded locks, deferred invalidation\n/);
  expect(stdout).toMatch(
    /^exposure: \d+ DMAs went through translations whose unmap had returned; from there to the flush \d/m,
  );
});

describe('exit status', () => {
  test.each<[string, string[]]>([
    ['no threads', ['--threads', '0']],
    ['too many threads', ['--threads', '20', '--devices', '9']],
    ['no such lock', ['--locks', 'none']],
    ['no such fault', ['--fault', 'rain']],
    ['no such directory', ['--json', 'nowhere/report.json']],
  ])('%s: 64', (_what, args) => expect(iovaduct('stress', ...args).status).toBe(64));

  test('0 when all held, in words', () => {
    const { status, stdout, stderr } = iovaduct('stress', '--seconds', '2', '--devices', '1', '--seed', '5');
    expect(status).toBe(0);
    expect(stdout).toMatch(/^held\n\d+ operations of 2 clients, \d+ DMAs of 1 device in .* seed 5/);
    expect(stderr).not.toContain('Error');
  });

  test('2 when what was asked for did not happen: it is named', () => {
    // Without devices nobody sees a write.
    const torn = iovaduct('stress', '--seconds', '2', '--devices', '0', '--fault', 'dirty-torn');
    expect(torn.status).toBe(2);
    expect(torn.stdout).toMatch(/^inconclusive: fault dirty-torn was on and was not found\n.*, fault dirty-torn on\n/);
    const alive = iovaduct('stress', '--seconds', '2', '--kill-after', '99999');
    expect([alive.status, alive.stdout.split('\n')[0]]).toEqual([2, 'inconclusive: no client was killed']);
  });

  test('1 when something is found: it is named', () => {
    const { status, document } = stressJson('--seconds', '100', '--fault', 'drop-tlbi', '--seed', '3');
    expect([status, document.verdict, document.seed]).toEqual([1, 'violated', 3]);
    expect(document.violations[0]?.iova).toMatch(/^0x/);
    expect(document.reason).toBeUndefined();
  });

  test('0 or 2 after a death, never a hang', () => {
    const { status, document } = stressJson('--seconds', '2', '--kill-after', '20');
    expect(document.violations).toEqual([]);
    const [death] = document.deaths;
    expect([death?.outcome, status]).toEqual(death?.outcome === 'repaired' ? ['repaired', 0] : ['given-up', 2]);
  });
});
