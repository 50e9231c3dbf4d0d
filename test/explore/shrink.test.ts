/** What shrinking may not take away, and what it joins. */
import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { runJob } from '../../src/cli/run-one.js';
import { explore } from '../../src/explore/campaign.js';
import { countDeviations, deviating } from '../../src/explore/record.js';
import { faulty, shrink, withSchedule, type ShrinkBudget, type Shrunk } from '../../src/explore/shrink.js';
import { KERNEL_NODE, subjectOf } from '../../src/explore/subject.js';
import { isHeldBack } from '../../src/runtime/deviations.js';
import { invariant } from '../../src/runtime/task.js';
import type { ScenarioOutcome } from '../../src/scenario/execute.js';
import { loadScenario, readScenario } from '../../src/scenario/load.js';

/** What `run` says of a file without a `--seed`. */
async function outcomeOf(file: string, text: string): Promise<ScenarioOutcome> {
  const job = { file, text, seed: 1, placement: 'inline', isRecorded: false, isSabotaged: false } as const;
  return (await runJob(job)).outcome;
}

const FILE = 'slip.yaml';
const TEXT = `title: Somebody else unmaps
kernel-only: { iommu: mock }
setup:
  - map: { iova: 0x2000000, length: 4 KiB }
tasks:
  a:
    - unmap: { iova: 0x2000000, length: 4 KiB }
      expect: [ok, EBUSY]
  b:
    - unmap: { iova: 0x2000000, length: 4 KiB }
      expect: [ok, ENOENT, EBUSY]
`;

/** What is left of a scenario that fails while nobody is pre-empted. */
async function shrunkInOrder(text: string, budget: ShrinkBudget, file = FILE): Promise<Shrunk | undefined> {
  const scenario = loadScenario(file, text);
  const { failure } = await explore({ scenario, strategy: 'in-order', runs: 1, depth: 3, seed: 1, jobs: 1 });
  invariant(failure !== undefined, 'it fails in order');
  return await shrink({ file, text, seed: 1, ...failure }, budget);
}

const BUDGET: ShrinkBudget = { attempts: 2000, schedules: 20 };

test('a race that shows in an answer keeps what makes the answer right without it', async () => {
  const scenario = loadScenario(FILE, TEXT);
  const { failure } = await explore({ scenario, strategy: 'portfolio', runs: 200, depth: 3, seed: 1, jobs: 1 });
  invariant(failure !== undefined, 'b can come first');
  const failing = { file: FILE, text: TEXT, seed: 1, ...failure };
  const shrunk = await shrink(failing, BUDGET);
  const program = shrunk?.scenario.kernelOnly?.program;
  expect(program?.tasks.map(({ name }) => name)).toEqual(['a', 'b']);
  expect(program?.setup.map(({ op }) => op)).toEqual(['ioas', 'map']);
  invariant(shrunk !== undefined, 'it fails again');
  const inOrder = await subjectOf(shrunk.scenario, 1).attempt({ scheduleOf: deviating({}) });
  expect(inOrder.failure).toBeUndefined();
});

test('a task that got an unexpected answer keeps what it did before: between two of its calls is not before the first', async () => {
  const range = '{ iova: 0x2000000, length: 4 KiB }';
  const text = `title: b maps between the calls of a
kernel-only: { iommu: mock }
setup:
  - map: ${range}
tasks:
  a:
    - ioas: { as: own }
    - unmap: ${range}
    - map: ${range}
      expect: ok
    - unmap: ${range}
  b:
    - map: ${range}
      expect: [ok, EEXIST]
    - ioas: { as: other }
`;
  const scenario = loadScenario(FILE, text);
  const { failure } = await explore({ scenario, strategy: 'portfolio', runs: 400, depth: 3, seed: 1, jobs: 1 });
  invariant(failure?.message.includes('map answered EEXIST') === true, 'b can map in between');
  const shrunk = await shrink({ file: FILE, text, seed: 1, ...failure }, BUDGET);
  const tasks = shrunk?.scenario.kernelOnly?.program.tasks ?? [];
  expect(tasks.map(({ name, calls }) => [name, ...calls.map(({ op }) => op)])).toEqual([
    ['a', 'ioas', 'unmap', 'map'],
    ['b', 'map'],
  ]);
});

test('an answer that is wrong in every order is made as small as it can be', async () => {
  const text = TEXT.replace('expect: [ok, EBUSY]', 'expect: EINVAL');
  const shrunk = await shrunkInOrder(text, BUDGET);
  expect(shrunk?.scenario.kernelOnly?.program.tasks.map(({ name }) => name)).toEqual(['a']);
});

test('a length that cannot be a page is as short as it can be', async () => {
  const text = `title: The second page is taken
kernel-only: { iommu: mock }
setup:
  - map: { iova: 0x2000000, length: 64 KiB }
tasks:
  a:
    - map: { iova: 0x2001000, length: 4 KiB }
      expect: ok
`;
  const shrunk = await shrunkInOrder(text, BUDGET);
  expect(shrunk?.text).toContain('length: 8 KiB');
});

test('a schedule that stays long is looked for anew, and what is found is made as small', async () => {
  const file = 'scenarios/races/sw-msi-list.yaml';
  const scenario = faulty(readScenario(file));
  const { text } = scenario;
  const { failure } = await explore({ scenario, strategy: 'portfolio', runs: 400, depth: 3, seed: 1, jobs: 1 });
  invariant(failure !== undefined, 'the fault is found');
  const shrunk = await shrink({ file, text, seed: 1, ...failure }, BUDGET);
  invariant(shrunk !== undefined, 'it fails again');
  expect(countDeviations(shrunk.deviations)).toBeLessThan(4);
  const again = await subjectOf(shrunk.scenario, 1).attempt({ scheduleOf: deviating(shrunk.deviations) });
  expect(again.failure?.signature).toBe(failure.signature);
});

test('a task is held back as many choices earlier as a call that is left out had', async () => {
  const file = 'scenarios/corpus/dirty-without-sync.yaml';
  const text = readFileSync(file, 'utf8').replace('  nic:\n', '  nic:\n    - ioas: { as: spare }\n');
  const { fails: signature = '' } = readScenario(file);
  const deviations = { [KERNEL_NODE]: [{ at: 1, until: 11, hold: 'reader' }] };
  const shrunk = await shrink({ file, text, seed: 1, signature, deviations }, { attempts: 2000, schedules: 0 });
  expect(shrunk?.text).not.toContain('spare');
});

test('a race of whole hosts is left with the hosts it needs, and one switch that makes it', async () => {
  const map = (as: string): string =>
    `      - - map: { process: p, ioas: x, iova: 0x10000000, length: 2 MiB, as: ${as} }\n`;
  const text = `title: Two maps of one IOVA
hosts:
  a: { profile: arm-generic }
  b: { profile: arm-generic }
links:
  - { between: [a, b], bandwidth: 10 Gbit/s, latency: 50 us }
processes:
  p: { on: a, ioas: [x] }
steps:
  - parallel:
${map('m')}${map('n')}  - expect: { of: m, verdict: ok }
  - expect: { of: n, verdict: refused }
`;
  const scenario = loadScenario('hosts.yaml', text);
  const { failure } = await explore({ scenario, strategy: 'portfolio', runs: 60, depth: 3, seed: 5, jobs: 1 });
  invariant(failure !== undefined, 'n can come first');
  const shrunk = await shrink({ file: 'hosts.yaml', text, seed: 5, ...failure }, { attempts: 1500, schedules: 2 });
  invariant(shrunk !== undefined, 'it fails again');
  expect(shrunk.scenario.hosts.map(({ name }) => name)).toEqual(['a']);
  expect(countDeviations(shrunk.deviations)).toBe(1);
  const outcome = await outcomeOf('hosts.yaml', shrunk.text);
  expect(outcome.verdict).toBe('pass');
});

test('the schedule that a file has keeps nobody in it', async () => {
  const text = TEXT.replace('expect: [ok, EBUSY]', 'expect: EINVAL') + 'schedule:\n  - { at: 1, to: b }\n';
  const shrunk = await shrunkInOrder(text, BUDGET);
  expect(shrunk?.scenario.kernelOnly?.program.tasks.map(({ name }) => name)).toEqual(['a']);
});

test('steps that need not be side by side come one after the other', async () => {
  const text = `title: Nothing is mapped there
hosts:
  a: { profile: arm-generic }
processes:
  p: { on: a, ioas: [x] }
steps:
  - parallel:
      - - map: { process: p, ioas: x, iova: 0x10000000, length: 4 KiB }
      - - unmap: { process: p, ioas: x, iova: 0x20000000, length: 4 KiB }
`;
  const shrunk = await shrunkInOrder(text, { attempts: 200, schedules: 0 }, 'hosts.yaml');
  expect(shrunk?.scenario.steps.map((step) => Object.keys('step' in step ? step.step : step))).toEqual([['unmap']]);
});

test.each(readdirSync('scenarios/corpus').filter((file) => file.endsWith('.yaml')))(
  '%s: a task that is held back is held back once, not twice side by side',
  (file) => {
    const holds = (readScenario(`scenarios/corpus/${file}`).deviations?.[KERNEL_NODE] ?? []).filter(isHeldBack);
    for (const { at, until, hold } of holds)
      expect(holds.filter((other) => other.hold === hold && other.at > at && other.at <= until)).toEqual([]);
  },
);

test('a case is written with its seed, and run with it', async () => {
  const text = readFileSync('scenarios/concurrency/two-clients.yaml', 'utf8');
  const written = withSchedule(text, { main: [{ at: 0, to: 'time' }] }, 7, 'INV-1: never');
  expect(withSchedule(written, {}, 1, 'INV-1: never')).toContain('seed: 1\n');
  expect(withSchedule(TEXT, {}, 1, 'INV-1: never')).not.toContain('seed:');
  const outcome = await outcomeOf('two-clients.yaml', written);
  expect(outcome.seed).toBe(7);
});
