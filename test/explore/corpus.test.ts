/**
 * The corpus: each file is a shrunk case that fails under the schedule it holds, for the reason it states, and only while its fault is in
 * the kernel. And the way there: a failure that is explored, shrunk, written and loaded again stays the same failure.
 */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { parseDocument } from 'yaml';
import { explore } from '../../src/explore/campaign.js';
import { isHeldBack } from '../../src/runtime/deviations.js';
import { deviating } from '../../src/explore/record.js';
import { faulty, shrink } from '../../src/explore/shrink.js';
import { KERNEL_NODE, subjectOf, type Attempt } from '../../src/explore/subject.js';
import { executeScenario } from '../../src/scenario/execute.js';
import { invariant } from '../../src/runtime/task.js';
import { loadScenario, readScenario, type Scenario } from '../../src/scenario/load.js';

const SEED = 1;
const folder = mkdtempSync(join(tmpdir(), 'iovaduct-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function namesIn(directory: string): string[] {
  return readdirSync(directory).filter((file) => file.endsWith('.yaml'));
}

function replay(scenario: Scenario): Attempt | Promise<Attempt> {
  return subjectOf(scenario, SEED).attempt({ scheduleOf: deviating(scenario.deviations ?? {}) });
}

async function run(scenario: Scenario): Promise<string> {
  return (await executeScenario(scenario, { seed: SEED, placement: 'inline' })).outcome.verdict;
}

/** A case with nothing in the kernel that makes it fail. */
function withoutFault({ file, text }: Scenario): Scenario {
  const document = parseDocument(text, { intAsBigInt: true });
  document.delete('faults');
  return loadScenario(file, String(document));
}

const cases = namesIn('scenarios/corpus').map((name) => readScenario(`scenarios/corpus/${name}`));

describe('scenarios/corpus', () => {
  test('has a case of each incident', () => {
    const incidents = namesIn('scenarios/races').filter(
      (name) => readScenario(`scenarios/races/${name}`).failsWith !== undefined,
    );
    expect(namesIn('scenarios/corpus')).toEqual(incidents);
  });

  describe.each(cases.map((scenario) => [scenario.name, scenario]))('%s', (_name, scenario) => {
    test('fails as it says', async () => {
      expect(scenario.fails).toBeDefined();
      expect((await replay(scenario)).failure?.signature).toBe(scenario.fails);
      expect(await run(scenario)).toBe('pass');
    });

    test('is a failed check once its fault is gone', async () => {
      const mended = withoutFault(scenario);
      expect((await replay(mended)).failure?.signature).not.toBe(scenario.fails);
      expect(await run(mended)).toBe('fail');
    });
  });
});

test.each(['dma-buf-map', 'sw-msi-list'])(
  '%s: what is found, shrunk, written and loaded fails as it did',
  async (name) => {
    const file = `scenarios/races/${name}.yaml`;
    const scenario = faulty(readScenario(file));
    const { failure } = await explore({ scenario, strategy: 'portfolio', runs: 400, depth: 3, seed: SEED, jobs: 1 });
    expect(failure).toBeDefined();
    if (failure === undefined) return;
    const { signature, deviations } = failure;
    const { text } = scenario;
    const shrunk = await shrink({ file, text, seed: SEED, signature, deviations }, { attempts: 2000, schedules: 20 });
    invariant(shrunk !== undefined, 'it fails again');
    const written = join(folder, `${name}.yaml`);
    writeFileSync(written, shrunk.text);
    const loaded = readScenario(written);
    expect(loaded.fails).toBe(signature);
    expect(loaded.deviations?.[KERNEL_NODE] ?? []).toEqual(shrunk.deviations[KERNEL_NODE]);
    expect((await replay(loaded)).failure).toEqual(shrunk.attempt.failure);
    expect(await run(loaded)).toBe('pass');
  },
);

test('a failure that does not come again is not shrunk, and nothing is thrown', async () => {
  const file = 'scenarios/races/map-unmap.yaml';
  const { text } = readScenario(file);
  const lost = { file, text, seed: SEED, signature: 'INV-2: nowhere to be seen', deviations: {} };
  expect(await shrink(lost, { attempts: 20, schedules: 5 })).toBeUndefined();
});

test('many switches away from one task become one: it is held back', async () => {
  const file = 'scenarios/races/ats-off.yaml';
  const { text } = faulty(readScenario(file));
  const [tlb, atc] = ['smmu0/commands', 'smmu0/atc-inv'];
  const switches: readonly (readonly [number, string])[] = [
    ...([
      [13, tlb],
      [14, 'time'],
      [15, tlb],
      [17, 'time'],
      [18, tlb],
      [39, tlb],
      [85, tlb],
      [95, tlb],
    ] as const),
    ...([
      [97, atc],
      [103, tlb],
      [123, atc],
      [124, tlb],
      [125, 'leaver'],
    ] as const),
  ];
  const deviations = { [KERNEL_NODE]: switches.map(([at, to]) => ({ at, to })) };
  const signature = 'objects: a device is on the list of a domain that was freed';
  const shrunk = await shrink({ file, text, seed: SEED, signature, deviations }, { attempts: 400, schedules: 0 });
  expect(shrunk?.attempt.failure?.signature).toBe(signature);
  const left = shrunk?.deviations[KERNEL_NODE] ?? [];
  expect(left.length).toBeLessThan(4);
  expect(left.some(isHeldBack)).toBe(true);
  invariant(shrunk !== undefined, 'it fails again');
  expect((await replay(shrunk.scenario)).failure?.signature).toBe(signature);
});
