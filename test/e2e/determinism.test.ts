/** One seed, one history: whatever the placement and the number of jobs, and twice in a row. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { pack, unpack } from '../../src/layout/msgpack.js';
import { iovaduct, runJson } from './cli.js';

const folder = mkdtempSync(join(tmpdir(), 'iovaduct-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SUITE = ['scenarios/flagship', 'scenarios/concurrency'];
/** Those of them that are run in workers, too: turns between threads take longer than all else here. */
const IN_WORKERS = ['scenarios/flagship/loud.yaml', 'scenarios/flagship/horrible-union.yaml', 'scenarios/concurrency'];

describe('digest', () => {
  const digestsOf = (paths: readonly string[], placement: string, jobs: string): [string, string][] =>
    runJson(...paths, '--seed', '7', '--placement', placement, '--jobs', jobs).json.scenarios.map(
      ({ name, digest }) => [name, digest],
    );
  const reference = new Map(digestsOf(SUITE, 'inline', '1'));
  test.each([
    ['inline', SUITE],
    ['workers', IN_WORKERS],
  ])('placement %s, 2 jobs: the same digests', (placement, paths) => {
    const digests = digestsOf(paths, placement, '2');
    expect(digests.length).toBeGreaterThan(paths.length);
    expect(digests).toEqual(digests.map(([name]) => [name, reference.get(name)]));
  });
  test('another seed gives another digest', () => {
    const digest = (seed: string): string =>
      runJson('scenarios/concurrency/two-clients.yaml', '--seed', seed, '--placement', 'inline').json.digest;
    expect(digest('8')).not.toBe(digest('7'));
  });
});

describe('replay', () => {
  const scenario = 'scenarios/flagship/loud.yaml';
  iovaduct('run', scenario, '--seed', '7', '--record', folder);
  const file = join(folder, readdirSync(folder).find((name) => name.startsWith('loud')) ?? 'missing');

  test('a recorded run repeats', () => {
    const { status, stdout } = iovaduct('replay', file);
    expect(stdout).toMatch(/identical|same/i);
    expect(status).toBe(0);
  });
  test('a tampered event is named', () => {
    const recorded = unpack(readFileSync(file)) as { lines: string[] };
    const index = Math.floor(recorded.lines.length / 2);
    recorded.lines[index] = `${recorded.lines[index] ?? ''} tampered=1`;
    const tampered = join(folder, 'tampered.iovarun');
    writeFileSync(tampered, pack(recorded));
    const { status, stdout, stderr } = iovaduct('replay', tampered);
    expect(status).toBe(1);
    expect(stdout + stderr).toContain(`event ${index}`);
    expect(stdout + stderr).toContain('tampered=1');
  });
});
