/** The exhaustive search on scenarios: it sees what random schedules see, finds faults of the past or says what it left out, and its finds replay. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { explore, type Campaign, type Exploration } from '../../src/explore/campaign.js';
import { BoundedSearch, isPruned } from '../../src/explore/exhaustive.js';
import { deviating, record } from '../../src/explore/record.js';
import { faulty, shrink } from '../../src/explore/shrink.js';
import { KERNEL_NODE, subjectOf, type Attempt } from '../../src/explore/subject.js';
import { randomPolicy } from '../../src/runtime/policies.js';
import { RandomStream } from '../../src/runtime/random.js';

import { readScenario, type Scenario } from '../../src/scenario/load.js';

const FOLDER = join(import.meta.dirname, '../../scenarios/races');

function plain(name: string): Scenario {
  return readScenario(join(FOLDER, `${name}.yaml`));
}

function broken(name: string): Scenario {
  return faulty(plain(name));
}

function exhaust(scenario: Scenario, more: Partial<Campaign> = {}): Promise<Exploration> {
  return explore({ scenario, strategy: 'exhaustive', runs: 1000, depth: 3, seed: 1, jobs: 1, ...more });
}

/** What a run came to, for whoever compares. */
function outcome({ failure, stateHash }: Attempt): string {
  return failure === undefined ? String(stateHash) : failure.signature;
}

describe('what random schedules without stalls come to, the exhaustive search comes to, too', () => {
  test.each([
    'access-list',
    'access-moves',
    'auto-iova-top',
    'cut-mapping',
    'dma-buf-map',
    'dma-buf-unmap',
    'fault-queue-enomem',
    'hwpt-list',
    'last-asid',
    'page-request-replace',
    'pinned-unplug',
    'resume-write',
    'stop-without-drain',
    'sw-msi-list',
    'vevent-short-read',
    'viommu-mmap',
  ])('%s', async (name) => {
    const subject = subjectOf(plain(name), 1);
    const search = new BoundedSearch(Infinity);
    const reached = new Set<string>();
    while (!search.isDone) {
      const attempt = await subject.attempt({ scheduleOf: search.next() });
      const wasPruned = isPruned(attempt.failure?.message ?? '');
      search.ended(wasPruned);
      if (!wasPruned) reached.add(outcome(attempt));
    }
    for (let seed = 0; seed < 30; seed++) {
      const policy = randomPolicy(new RandomStream(seed, 'subset'));
      const attempt = await subject.attempt({ scheduleOf: () => ({ strategy: 'policy', policy }) });
      expect([...reached], `seed ${seed}`).toContain(outcome(attempt));
    }
  });
});

const FAULTY = readdirSync(FOLDER)
  .filter((file) => file.endsWith('.yaml'))
  .map((file) => readScenario(join(FOLDER, file)))
  .filter(({ kernelOnly, failsWith }) => kernelOnly !== undefined && failsWith !== undefined)
  .map(({ name }) => name);

/** Those that take more runs than these tests make, or a stall, which the search never tries. */
const BEYOND = [
  'ats-off',
  'ats-tags',
  'command-queue',
  'dirty-without-sync',
  'event-of-a-device-that-is-gone',
  'growing-root',
  'lost-event',
  'stale-asid',
  'sw-msi-list',
  'walk-of-freed-tables',
];

describe('with the fault of the past the exhaustive search finds it, or does not say that everything was seen', () => {
  test.each(FAULTY)('%s', async (name) => {
    const { failure, bounds } = await exhaust(broken(name), { runs: 80 });
    const { isComplete, isBounded, hasStalls } = bounds.at(-1) ?? {};
    const claimsAll = isComplete === true && isBounded === false && hasStalls === false;
    expect({ name, found: failure !== undefined, claimsAll: failure === undefined && claimsAll }).toEqual({
      name,
      found: !BEYOND.includes(name),
      claimsAll: false,
    });
  });

  /** What is found without stalls must be found: marks that are missing would hide it. */
  test.each(['resume-write', 'stop-without-drain', 'table-before-zero', 'cut-mapping', 'hwpt-list', 'queue-abort'])(
    '%s fails',
    async (name) => expect((await exhaust(broken(name))).failure).toBeDefined(),
  );
});

describe('schedules of the search are like any others', () => {
  test('what it finds behind an SMMU fails again under its deviations, and is shrunk', async () => {
    const scenario = broken('table-before-zero');
    const { failure } = await exhaust(scenario);
    const signature = failure?.signature ?? '';
    const deviations = failure?.deviations ?? {};
    const again = await subjectOf(scenario, 1).attempt({ scheduleOf: deviating(deviations) });
    expect(again.failure?.signature).toBe(signature);
    const failing = { file: scenario.file, text: scenario.text, seed: 1, signature, deviations };
    const shrunk = await shrink(failing, { attempts: 50, schedules: 0 });
    expect(shrunk?.attempt.failure?.signature).toBe(signature);
  });

  test.each(['table-before-zero', 'stale-asid'])('every run of %s is repeated by its deviations', async (name) => {
    const subject = subjectOf(plain(name), 1);
    const search = new BoundedSearch(1);
    for (let run = 0; run < 20 && !search.isDone; run++) {
      const attempt = await subject.attempt({ scheduleOf: search.next(), isTraced: true });
      search.ended(isPruned(attempt.failure?.message ?? ''));
      const choices = attempt.choices[KERNEL_NODE] ?? [];
      const { deviations } = await record(subject, 1, () => ({ strategy: 'recorded', of: 'explored', choices }));
      const again = await subject.attempt({ scheduleOf: deviating(deviations), isTraced: true });
      expect(again.choices).toEqual(attempt.choices);
      expect(again.lines).toEqual(attempt.lines);
    }
  });
});

test('runs that are given up are told, and end the search as others do', async () => {
  const told: number[] = [];
  const { bounds } = await exhaust(plain('growing-root'), {
    runs: 192,
    // No bounded search comes first: nothing sleeps in those.
    depth: -1,
    onProgress: (runs) => void told.push(runs),
  });
  const [{ runs, pruned, isComplete } = { runs: 0, pruned: 0, isComplete: true }] = bounds;
  expect(pruned).toBeGreaterThan(0);
  expect({ made: runs + pruned, isComplete }).toEqual({ made: 192, isComplete: false });
  expect(told).toEqual([64, 128, 192]);
});
