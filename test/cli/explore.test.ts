/** `iovaduct explore` as a user has it: exit statuses, one document on standard output, the same answer whatever the threads. */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import { afterAll, describe, expect, test } from 'vitest';
import { readScenario } from '../../src/scenario/load.js';
import { iovaduct } from '../e2e/cli.js';

const folder = mkdtempSync(join(tmpdir(), 'iovaduct-explore-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

const MACHINE = 'kernel-only: { iommu: mock }\n';
const FAULTY = `${MACHINE}fails-with: { fault: iommufd.change-process-unchecked }\n`;
const TASK_B = '  b:\n    - change-process: {}\n';

/** The map must be interrupted at one gate, the later the more calls come first. */
function race(calls: number): string {
  const lead = Array.from({ length: calls }, (_, i) => `    - ioas: { as: x${i} }\n`).join('');
  return `title: A map that is interrupted <b>\n${FAULTY}tasks:\n  a:\n${lead}    - map: { iova: 0x1000000, length: 4 KiB }\n${TASK_B}`;
}

const GOOD = file('good.yaml', `title: t\n${MACHINE}tasks:\n  a:\n    - ioas: { as: x }\n${TASK_B}`);
const BAD = file('bad.yaml', race(1));
const RARE = file('rare.yaml', race(8));
const UNMAP = '    - unmap: { iova: 0x1000, length: 4 KiB }\n      expect: [ok]\n';
const WRONG = file('wrong.yaml', `title: t\n${MACHINE}tasks:\n  a:\n${UNMAP}`);
const LIMIT = file(
  'limit.yaml',
  'title: t\nlimit: 1 ms\nhosts:\n  a: { profile: arm-generic }\nsteps:\n  - wait: 2 s\n',
);
const BROKEN = file('broken.yaml', `title: t\n${MACHINE}tasks:\n  a:\n    - jump: high\n`);

/** Either of the two maps may come first. */
const TWO_MAPS = file(
  'two-maps.yaml',
  `title: t
hosts:
  a: { profile: arm-generic }
processes:
  p: { on: a, ioas: [x] }
steps:
  - parallel:
      - - map: { process: p, ioas: x, iova: 0x10000000, length: 2 MiB, as: m }
      - - map: { process: p, ioas: x, iova: 0x10000000, length: 2 MiB, as: n }
  - expect: { of: m, verdict: ok }
  - expect: { of: n, verdict: refused }
`,
);
const TINY = file(
  'tiny.yaml',
  'title: t\nhosts:\n  a: { profile: arm-generic, memory: [{ start: 0, size: 1 MiB }] }\nsteps:\n  - wait: 1 ms\n',
);

type Schedule = Readonly<Record<string, readonly { readonly at: number; readonly to: string }[]>>;

interface Found {
  readonly name: string;
  readonly verdict: string;
  readonly runs: number;
  readonly tasks: number;
  readonly distinct_schedules: number;
  readonly distinct_states: number;
  readonly invariants: readonly { readonly id: string; readonly looks: number }[];
  readonly bounds: readonly { readonly preemptions: number | null; readonly complete: boolean }[];
  readonly guarantees: readonly { readonly depth: number; readonly runs: number; readonly chance: number }[];
  readonly failure?: {
    readonly run: number;
    readonly rule: string | null;
    readonly message: string;
    readonly task: string;
    readonly signature: string;
    readonly schedule: Schedule;
  };
  readonly shrunk?: { readonly scenario: string; readonly schedule: Schedule };
}

function exploreJson(...args: string[]): { status: number | null; stderr: string; scenarios: readonly Found[] } {
  const { status, stdout, stderr } = iovaduct('explore', '--json', '-', ...args);
  return { status, stderr, scenarios: (JSON.parse(stdout) as { scenarios: readonly Found[] }).scenarios };
}

/** Without what depends on the clock. */
function timeless(found: Found | undefined): unknown {
  return { ...found, schedules_per_second: undefined };
}

describe('exit status', () => {
  test.each<[string, string[], number]>([
    ['all held', [GOOD, '--runs', '20', '--jobs', '1'], 0],
    ['one of two broke', [GOOD, WRONG, '--runs', '20', '--jobs', '1', '--no-shrink'], 1],
    ['no such strategy', [GOOD, '--strategy', 'lucky'], 64],
    ['no runs', [GOOD, '--runs', '0'], 64],
    ['no path', [], 64],
    ['no such file', [join(folder, 'nope.yaml')], 64],
    ['failures in turn, all held', [GOOD, '--fail-nth'], 0],
    ['PCT for no depth', [GOOD, '--strategy', 'pct', '--depth', '0'], 64],
    ['a run that does not end in time', [LIMIT, '--runs', '2', '--jobs', '1'], 2],
    ['failures in turn, and none of the runs ends in time', [LIMIT, '--fail-nth'], 2],
    ['no fault to put back', [GOOD, '--history'], 64],
    ['another way to fail than a fault', ['scenarios/migration/links/link-lost.yaml', '--history'], 64],
    ['no fault to measure', [GOOD, '--table'], 64],
    ['a document that cannot be written', [GOOD, '--json', join(folder, 'none', 'x.json')], 64],
    ['a directory that cannot be made', [GOOD, '--corpus', join(GOOD, 'corpus')], 64],
    ['a case over the scenario itself', [BAD, '--history', '--corpus', folder], 64],
    ['a case of a table over the scenario itself', [BAD, '--table', '1', '--corpus', folder], 64],
    ...[['--strategy', 'pct'], ['--runs', '9'], ['--depth', '2'], ['--history'], ['--no-shrink']].map(
      (args): [string, string[], number] => [
        `failures in turn with ${args.join(' ')}`,
        [GOOD, '--fail-nth', ...args],
        64,
      ],
    ),
    ['failures in turn with a corpus', [GOOD, '--fail-nth', '--corpus', folder], 64],
    ['failures in turn with pages', [GOOD, '--fail-nth', '--report', folder], 64],
  ])('%s', (_what, args, status) => expect(iovaduct('explore', ...args).status).toBe(status));
});

/** Whole hosts: a map, and what it is expected to come to. */
function mapping(profile: string, verdict: string): string {
  const steps = `  - wait: 1 ms\n  - map: { process: p, ioas: x, length: 4 KiB, as: m }\n  - expect: { of: m, verdict: ${verdict} }\n`;
  return `title: t\nhosts:\n  a: { profile: ${profile} }\n  b: { profile: arm-generic }\nprocesses:\n  p: { on: a, ioas: [x] }\nsteps:\n${steps}`;
}

test('an exhaustive search of whole hosts is never called complete', () => {
  const { scenarios } = exploreJson(
    file('hosts.yaml', mapping('arm-generic', 'ok')),
    '--strategy',
    'exhaustive',
    '--runs',
    '20',
  );
  expect(scenarios[0]?.bounds.length).toBeGreaterThan(0);
  expect(scenarios[0]?.bounds.map(({ complete }) => complete)).not.toContain(true);
});

test("whole hosts are shrunk, too, and a case in another directory still finds its hosts' files", () => {
  copyFileSync('scenarios/hosts/arm-generic.yaml', join(folder, 'own.yaml'));
  const corpus = join(folder, 'cases', 'deep');
  const args = [file('relative.yaml', mapping('own.yaml', 'refused')), '--strategy', 'in-order', '--corpus', corpus];
  expect(iovaduct('explore', ...args).status).toBe(1);
  const written = readScenario(join(corpus, 'relative.yaml'));
  expect([written.hosts.length, written.steps.length]).toEqual([1, 2]);
  expect(iovaduct('run', written.file).status).toBe(0);
});

test('a bad scenario is named with line and column', () => {
  const { status, stdout, stderr } = iovaduct('explore', BROKEN);
  expect([status, stdout]).toEqual([64, '']);
  expect(stderr).toContain(`${BROKEN}:5:7: `);
});

test.each([[[]], [['--fail-nth']], [['--table', '1']]])(
  'a bad second file is found before the first is run %j',
  (args) => {
    const { status, stdout, stderr } = iovaduct('explore', BAD, BROKEN, ...args);
    expect([status, stdout]).toEqual([64, '']);
    expect(stderr).toContain(`${BROKEN}:5:7: `);
  },
);

describe('hints', () => {
  test.each<[string, string[], string]>([
    ['a path after --table', ['--table', GOOD], 'paths go before --table'],
    ['a strategy as an option', [GOOD, '--exhaustive'], 'did you mean --strategy exhaustive?'],
    ['the help of the command', [GOOD, '--fast'], '(try iovaduct explore --help)'],
  ])('%s', (_what, args, hint) => expect(iovaduct('explore', ...args).stderr).toContain(hint));
});

test('n counts the tasks of runs that pass, not those that clean up behind them', () => {
  const [found] = exploreJson(GOOD, '--runs', '20', '--jobs', '1').scenarios;
  expect(found?.tasks).toBe(2);
  expect(found?.guarantees.find(({ depth }) => depth === 2)?.chance).toBeLessThan(1);
});

test('one of a kind is said in the singular, and several scenarios end with a total', () => {
  const { stdout } = iovaduct('explore', GOOD, '--strategy', 'in-order');
  expect(stdout).toMatch(/^✔ good {2}1 schedule, 1 distinct, 1 final state, /);
  const two = iovaduct('explore', GOOD, WRONG, '--runs', '2', '--no-shrink');
  expect(two.stdout).toMatch(/\n2 scenarios, 1 failed\n$/);
  const answer = 'unexpected answer in task a: unmap answered ENOENT, expected ok';
  expect(two.stdout).toContain(`run 0, task a: ${answer} at ${WRONG}:5\n`);
});

test('cases of scenarios with one name do not overwrite each other', () => {
  const other = join(folder, 'other');
  const out = join(folder, 'twice');
  mkdirSync(other);
  copyFileSync(BAD, join(other, 'bad.yaml'));
  iovaduct('explore', BAD, other, '--history', '--corpus', out, '--report', out, '--runs', '500');
  const names = ['bad-2.schedule.html', 'bad-2.yaml', 'bad.schedule.html', 'bad.yaml'];
  expect(readdirSync(out).sort()).toEqual(names);
});

test('whole hosts: the promise is of one host, and there is no page', () => {
  const head = 'title: t\nhosts:\n  h: { profile: arm-generic }\nprocesses:\n  p: { on: h }\nsteps:\n';
  const map = '  - map: { process: p, iova: 0x1000, length: 4 KiB }\n';
  const whole = file('whole.yaml', head + map);
  const options = ['--runs', '12', '--jobs', '1'];
  expect(iovaduct('explore', whole, ...options).stdout).toMatch(
    /d = 2: .*any bug of that depth in one host in the first/,
  );
  expect(iovaduct('explore', GOOD, ...options).stdout).toMatch(/d = 2: .*any bug of that depth in the first/);
  const failing = file('failing.yaml', `${head}${map}${map}`);
  const { stdout } = iovaduct('explore', failing, ...options, '--no-shrink', '--report', join(folder, 'no-pages'));
  expect(stdout).toMatch(/\n {2}run 0: map ok: /);
  expect(stdout).toContain('no page: pages are for kernel-only scenarios');
});

test('--json - prints one document: what was made, what it is worth, what was looked at', () => {
  const { status, stderr, scenarios } = exploreJson(GOOD, BAD, '--history', '--runs', '100', '--jobs', '1');
  expect([status, scenarios.map(({ name }) => name)]).toEqual([1, ['bad']]);
  expect(stderr).toContain('bad');
  const plain = exploreJson(GOOD, '--runs', '100', '--jobs', '1').scenarios;
  expect(plain).toHaveLength(1);
  expect(plain[0]).toMatchObject({
    file: GOOD,
    name: 'good',
    strategy: 'portfolio',
    seed: 1,
    verdict: 'pass',
    runs: 100,
    self_tests: 1,
  });
  expect(plain[0]?.failure).toBeUndefined();
  expect(plain[0]?.guarantees.map(({ depth }) => depth)).toEqual([2, 3, 4]);
  expect(plain[0]?.guarantees.every(({ runs, chance }) => runs === 23 && chance > 0 && chance <= 1)).toBe(true);
  expect(plain[0]?.invariants.find(({ id }) => id === 'no-deadlock')?.looks).toBeGreaterThan(100);
});

test('the schedule in --json is one of the file it names; the smaller case is there with its own', () => {
  const corpus = join(folder, 'as-found');
  const [found] = exploreJson(BAD, '--history', '--corpus', corpus).scenarios;
  const { schedule = {} } = found?.failure ?? {};
  expect(found?.shrunk?.schedule['kernel']?.length).toBeLessThan(schedule['kernel']?.length ?? 0);
  const deviations = JSON.stringify(schedule['kernel']);
  const faulty = race(1).replace(/fails-with: (.*)/, 'faults: [$1]');
  const replayed = file(
    'replayed.yaml',
    `${faulty}schedule: ${deviations}\nfails: ${JSON.stringify(found?.failure?.signature)}\n`,
  );
  expect(iovaduct('run', replayed).status).toBe(0);
  expect(readFileSync(join(corpus, 'bad.yaml'), 'utf8')).toBe(found?.shrunk?.scenario);
  // Without shrinking, the case is written as it was found.
  const { stdout } = iovaduct('explore', BAD, '--history', '--no-shrink', '--corpus', corpus);
  expect(stdout).toMatch(/\n {2}written as it was found: .*bad\.yaml\n/);
  expect(iovaduct('run', join(corpus, 'bad.yaml')).status).toBe(0);
});

test('a table writes the case that its row tells of, whatever later seeds find', () => {
  const corpus = join(folder, 'of-table');
  const { stdout } = iovaduct('explore', BAD, '--table', '3', '--corpus', corpus);
  const { kernelOnly, deviations } = readScenario(join(corpus, 'bad.yaml'));
  const calls = kernelOnly?.program.tasks.reduce((sum, task) => sum + task.calls.length, 0);
  expect(stdout).toContain(`| ${calls} × ${deviations?.['kernel']?.length ?? 0} `);
});

test('whoever stops reading does not make a success of it', () => {
  const command = `"${process.execPath}" dist/src/cli/main.js explore "${WRONG}" "${GOOD}" | true; exit \${PIPESTATUS[0]}`;
  expect(spawnSync('bash', ['-c', command]).status).toBe(141);
});

test('--history puts the fault back: the race is found, shrunk, explained and written down', () => {
  const corpus = join(folder, 'corpus');
  const pages = join(folder, 'pages');
  const args = ['--history', '--strategy', 'exhaustive', '--corpus', corpus, '--report', pages];
  const { status, stdout } = iovaduct('explore', RARE, ...args);
  expect(status).toBe(1);
  expect(stdout).toMatch(/shrunk to 2 tasks, 2 calls after 0 to set up, \d switch(es)? in \d+ runs: .*rare\.yaml/);
  expect(stdout).toContain('BUG: objects');
  const [page] = readdirSync(pages);
  const html = readFileSync(join(pages, page ?? ''), 'utf8');
  expect(html).toMatch(/^<!doctype html>/i);
  expect(html).not.toMatch(/<(link|img|iframe)\b|<script[^>]*\bsrc=|@import|url\(["']?https?:/);
  expect(html).not.toContain('interrupted <b>');
  // The shrunk case says which fault, which schedule and how it fails; it passes while it does.
  const kept = join(corpus, 'rare.yaml');
  expect(iovaduct('run', kept).status).toBe(0);
  writeFileSync(kept, readFileSync(kept, 'utf8').replace(/^faults:\n( .*\n)+/m, ''));
  expect(iovaduct('run', kept).status).toBe(1);
});

test('a host that cannot be built is of no schedule: nothing is shrunk or written', () => {
  const corpus = join(folder, 'unbuildable');
  const { status, stdout } = iovaduct('explore', TINY, '--strategy', 'random', '--corpus', corpus);
  expect(stdout).toContain('host a cannot be built: no memory bank has 64 MiB below 2^52 for the kernel\n');
  expect(stdout).not.toContain('shrunk');
  expect([status, existsSync(corpus)]).toEqual([64, false]);
});

describe('threads', () => {
  const random = ['--strategy', 'random', '--no-shrink', '--runs', '4000'];

  test('the first failure is the same with 1 and 2', () => {
    const [one, two] = ['1', '2'].map((jobs) =>
      exploreJson(RARE, '--history', ...random, '--seed', '18', '--jobs', jobs),
    );
    // Not in the first chunk.
    expect(one?.scenarios[0]?.failure?.run).toBeGreaterThan(1024);
    expect(one?.scenarios[0]?.failure?.message).toContain('NULL dereference');
    expect(two?.scenarios[0]?.failure).toEqual(one?.scenarios[0]?.failure);
    expect([one?.status, two?.status]).toEqual([1, 1]);
  });

  test('where every chunk has failures, the lowest counts: of whole hosts, whose first runs are made in threads, too', () => {
    const [one, two] = ['1', '2'].map(
      (jobs) =>
        exploreJson(TWO_MAPS, '--strategy', 'random', '--no-shrink', '--runs', '40', '--seed', '7', '--jobs', jobs)
          .scenarios[0],
    );
    expect(one?.failure?.run).toBe(2);
    expect(timeless(two)).toEqual(timeless(one));
  });

  test('what was seen is the same where nothing fails', () => {
    const [one, two] = ['1', '2'].map((jobs) => exploreJson(GOOD, '--runs', '1300', '--jobs', jobs).scenarios[0]);
    expect(one?.runs).toBe(1300);
    expect(timeless(two)).toEqual(timeless(one));
  });
});

describe('--strategy exhaustive', () => {
  test('says that everything was seen', () => {
    const { stdout, status } = iovaduct('explore', GOOD, '--strategy', 'exhaustive', '--runs', '5000');
    expect(status).toBe(0);
    expect(stdout).toMatch(/0 pre-emptions at most: every order that matters was seen, \d+ runs/);
    expect(stdout).toMatch(/(\d+ pre-emptions at most|any number of pre-emptions): every order [^\n]*\n$/);
    expect(stdout).not.toContain('not finished');
  });

  test('says how far it got where the runs did not do', () => {
    const { scenarios, stderr } = exploreJson(RARE, '--strategy', 'exhaustive', '--runs', '12');
    expect(scenarios[0]?.runs).toBe(12);
    expect(scenarios[0]?.bounds.at(-1)?.complete).toBe(false);
    expect(stderr).toMatch(/pre-emptions? at most: not finished, \d+ runs?/);
  });

  test('finds the race under few pre-emptions, without a seed', () => {
    const { scenarios } = exploreJson(RARE, '--history', '--strategy', 'exhaustive', '--no-shrink');
    expect(scenarios[0]?.failure).toMatchObject({ rule: 'objects', task: 'b' });
    expect(scenarios[0]?.bounds.at(-1)?.preemptions).toBe(1);
  });
});

describe('--fail-nth', () => {
  const QUEUE = 'tasks:\n  a:\n    - fault-queue: { as: q }\n    - close: { file: q }\n';
  const LEAKS = file('leaks.yaml', `title: t\n${MACHINE}faults:\n  - { fault: iommufd.fault-put-twice }\n${QUEUE}`);

  test('counts what failed, by kind', () => {
    const { status, stdout } = iovaduct('explore', BAD, '--fail-nth');
    expect(status).toBe(0);
    expect(stdout).toMatch(/^✔ bad {2}7 failures injected, one a run: 4 of kernel\.kmalloc, 3 of mm\.copy-to-user\n$/);
  });

  test('names the call whose failure does harm, in words and as JSON', () => {
    const { status, stdout, stderr } = iovaduct('explore', LEAKS, '--fail-nth', '--json', '-');
    expect(status).toBe(1);
    expect(stderr).toMatch(/✖ leaks[^\n]*\n {2}kernel\.kmalloc, call \d+: objects: /);
    const { scenarios } = JSON.parse(stdout) as { scenarios: { injected: { fault: string; failure?: object }[] }[] };
    const failed = scenarios[0]?.injected.filter(({ failure }) => failure !== undefined);
    expect(failed?.map(({ fault }) => fault)).toEqual(['kernel.kmalloc']);
  });
});
