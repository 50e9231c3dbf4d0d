/** The command line as a user has it: exit statuses, what goes where, reports. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { iovaduct, runJson } from '../e2e/cli.js';

const folder = mkdtempSync(join(tmpdir(), 'iovaduct-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function scenario(name: string, steps: string): string {
  const file = join(folder, `${name}.yaml`);
  const head = 'title: <t> & "t"\nhosts:\n  a: { profile: arm-generic }\nprocesses:\n  p: { on: a }\nsteps:\n';
  writeFileSync(file, head + steps);
  return file;
}

const GOOD = scenario('good', '  - map: { process: p, iova: 0x1000, length: 4 KiB }\n');
const BAD = scenario('bad', '  - unmap: { process: p, iova: 0x1000, length: 4 KiB }\n');
const SLOW = scenario('slow', '  - wait: 2 s\n');
writeFileSync(SLOW, readFileSync(SLOW, 'utf8').replace('steps:', 'limit: 1 ms\nsteps:'));
const TINY = scenario('tiny', '  - wait: 1 ms\n');
writeFileSync(TINY, readFileSync(TINY, 'utf8').replace('generic', 'generic, memory: [{ start: 0, size: 1 MiB }]'));
const BROKEN = join(folder, 'broken.yaml');
writeFileSync(BROKEN, 'title: t\nhosts: {}\nsteps:\n  - jump: high\n');

const INLINE = ['--placement', 'inline'];

describe('exit status', () => {
  test.each<[string, string[], number]>([
    ['all held', ['run', GOOD, ...INLINE], 0],
    ['something failed', ['run', GOOD, BAD, ...INLINE], 1],
    ['not decided', ['run', GOOD, SLOW, ...INLINE], 2],
    ['bad input file', ['run', BROKEN], 64],
    ['a machine that cannot be', ['run', TINY, ...INLINE], 64],
    ['no such file', ['run', join(folder, 'nope')], 64],
    ['unknown option', ['run', '--fast'], 64],
    ['unknown command', ['fly'], 64],
    ['option without sense', ['run', GOOD, '--shard', '3/2'], 64],
    ['replay of no recording', ['replay', GOOD], 64],
    ['a document that cannot be written', ['run', GOOD, '--json', join(folder, 'none', 'x.json')], 64],
    ['nothing left in a shard, with a pool', ['run', GOOD, '--shard', '2/3', '--jobs', '2'], 0],
    ['nothing left to sabotage, with a pool', ['run', GOOD, '--sabotage', '--jobs', '2'], 0],
    ['unknown host', ['host', 'show', 'nobody'], 64],
    ['table for no number of seeds', ['explore', 'scenarios/races', '--table', '0'], 64],
    ['table of what has no schedules', ['explore', 'scenarios/races', '--table', '--fail-nth'], 64],
    ['help', ['--help'], 0],
  ])('%s', (_what, args, status) => expect(iovaduct(...args).status).toBe(status));
});

test.each(['inline', 'workers'])('a host that cannot be built is named, %s; the other scenarios run', (placement) => {
  const { status, stdout } = iovaduct('run', TINY, GOOD, '--placement', placement);
  expect(status).toBe(64);
  expect(stdout).toContain('host a cannot be built: no memory bank has 64 MiB below 2^52 for the kernel\n');
  expect(stdout).toContain('2 scenarios, 1 failed');
  expect(stdout).not.toContain(' at ');
});

test('an empty shard says so', () => {
  const { stdout, stderr } = iovaduct('run', GOOD, '--shard', '2/2', '--jobs', '2');
  expect(stderr).toBe('no scenario is left to run\n');
  expect(stdout).toMatch(/^0 scenarios · /);
});

test('replay says what is wrong with its file', () => {
  const recordings = join(folder, 'recordings');
  iovaduct('run', GOOD, ...INLINE, '--record', recordings);
  const half = join(folder, 'half.iovarun');
  const whole = readFileSync(join(recordings, 'good.iovarun'));
  writeFileSync(half, whole.subarray(0, whole.length >> 1));
  const nowhere = join(folder, 'nowhere');
  expect(iovaduct('replay', nowhere).stderr).toBe(`${nowhere}: no such file\n`);
  expect(iovaduct('replay', folder).stderr).toBe(`${folder}: is a directory\n`);
  expect(iovaduct('replay', half).stderr).toContain('not a recorded run');
});

describe('a kernel-only scenario', () => {
  const GROWING = 'scenarios/corpus/growing-root.yaml';
  const corpus = (name: string, edit: (text: string) => string): string => {
    const file = join(folder, `${name}.yaml`);
    writeFileSync(file, edit(readFileSync(GROWING, 'utf8')));
    return file;
  };
  const lines = (file: string): string[] => iovaduct('run', file).stdout.split('\n');

  test('that fails as it must says how', () => {
    expect(lines(GROWING)[0]).toMatch(/^✔ growing-root fails as it should: mapped: io_pagetable: 0 of 4096 bytes /);
  });

  test('that does not fail, or in another way, says what was expected', () => {
    const healthy = corpus('healthy', (text) => text.replace(/^schedule:\n( .*\n)+/m, ''));
    expect(lines(healthy)[1]).toMatch(/^ +expected failure did not occur: mapped: io_pagetable: # of # bytes /);
    const other = corpus('other', (text) => text.replace(/^fails: .*$/m, 'fails: "x: #"'));
    expect(lines(other)[1]).toMatch(/^ +another failure than expected: mapped: .*; expected x: #$/);
  });

  test('says which calls were made, and which answer was not expected', () => {
    const calls = '    - map: { length: 4 KiB }\n      expect: EINVAL\n';
    const file = join(folder, 'surprise.yaml');
    writeFileSync(file, `title: t\nkernel-only: {}\ntasks:\n  a:\n${calls}`);
    expect(lines(file).slice(0, 2)).toEqual([
      '✖ surprise a: map ok',
      `           unexpected answer in task a: map answered ok, expected EINVAL at ${file}:5`,
    ]);
  });
});

test('a bad file is named with line and column, and nothing runs', () => {
  const { stdout, stderr } = iovaduct('run', GOOD, BROKEN, '--json', '-');
  expect(stdout).toBe('');
  expect(stderr).toContain(`${BROKEN}:4:5: a step has one of these keys`);
});

test('--json - prints one document; a failed check says where its step stands', () => {
  const { json, stderr } = runJson(GOOD, BAD, SLOW, ...INLINE, '--seed', '3');
  expect(json).toMatchObject({ seed: 3, placement: 'inline', passed: 1, failed: 1, inconclusive: 1 });
  expect(json.scenarios.map((s) => [s.name, s.verdict])).toEqual([
    ['good', 'pass'],
    ['bad', 'fail'],
    ['slow', 'inconclusive'],
  ]);
  expect(json.scenarios[1]?.checks[0]?.detail).toContain(`ENOENT`);
  expect(json.scenarios[1]?.checks[0]?.detail).toContain(`${BAD}:7:5`);
  expect(stderr).toContain('[3/3] inconclusive slow');
});

test('shards are disjoint and complete', () => {
  const names = [1, 2].map((index) =>
    runJson(GOOD, BAD, SLOW, ...INLINE, '--shard', `${index}/2`).json.scenarios.map((s) => s.name),
  );
  expect(names).toEqual([['good', 'slow'], ['bad']]);
});

test('JUnit and HTML say the same, escaped and without external resources', () => {
  const junit = join(folder, 'junit.xml');
  iovaduct('run', GOOD, BAD, ...INLINE, '--junit', junit, '--report', folder);
  const xml = readFileSync(junit, 'utf8');
  expect(xml).toContain('tests="2" failures="1"');
  expect(xml).toMatch(/<testcase [^>]*name="bad"[^>]*>\s*<failure message="unmap ok">[^<]*ENOENT/);
  const html = readFileSync(join(folder, 'report.html'), 'utf8');
  const data = /<script id="run" type="application\/json">([^<]*)<\/script>/.exec(html)?.[1] ?? '';
  const { scenarios } = JSON.parse(data) as { scenarios: { title: string; verdict: string }[] };
  expect(scenarios.map(({ title, verdict }) => [title, verdict])).toEqual([
    ['<t> & "t"', 'fail'],
    ['<t> & "t"', 'pass'],
  ]);
  expect(html).not.toContain('<t>');
  expect(html).not.toMatch(/<(link|img|iframe)\b|<script[^>]*\bsrc=|@import|url\(["']?https?:/);
});

test('host import makes a profile that a scenario can use', () => {
  const profile = join(folder, 'pasted.yaml');
  const text = join(folder, 'regions.txt');
  writeFileSync(text, '/sys/kernel/iommu_groups/0/reserved_regions:0x0000000000001000 0x0000000000001fff reserved\n');
  expect(iovaduct('host', 'import', text, '-o', profile).status).toBe(0);
  expect(iovaduct('host', 'show', profile).stdout).toContain('0x1000-0x1fff reserved');
});

test('the schema is JSON', () => {
  expect(JSON.parse(iovaduct('schema').stdout)).toMatchObject({
    type: 'object',
    required: ['title', 'hosts', 'steps'],
  });
});

describe('explore --table', () => {
  const table = (...args: string[]): ReturnType<typeof iovaduct> =>
    iovaduct('explore', 'scenarios/races/dma-buf-map.yaml', 'scenarios/races/map-unmap.yaml', '--table', '3', ...args);

  test('has a row for each historical fault, as text and as data', () => {
    const { status, stdout, stderr } = table('--json', '-');
    expect(status).toBe(0);
    const { incidents } = JSON.parse(stdout) as { incidents: { schedules: number[]; median: number }[] };
    expect(incidents).toMatchObject([
      { incident: 'IN-9', fault: 'iommufd.dmabuf-revoke-unlocked', rules: ['INV-4'], shrunk: { calls: 2 } },
    ]);
    const [row] = incidents;
    expect(row?.schedules.sort((a, b) => a - b)[1]).toBe(row?.median);
    expect(stderr).toContain(`| ${row?.median} `);
  });

  test('fails when a fault is not found', () => {
    const { status, stdout } = table('--strategy', 'in-order');
    expect(status).toBe(1);
    // One run in order is no thousand.
    expect(stdout).toMatch(/\| in-order +\| - +\| - +\|/);
  });
});
