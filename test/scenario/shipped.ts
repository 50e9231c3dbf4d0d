/** Runs the scenarios that are shipped: as they are, and with what they are about switched off. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { executeScenario, type ScenarioOutcome } from '../../src/scenario/execute.js';
import { readScenario, type Scenario } from '../../src/scenario/load.js';
import { judgeSabotage, sabotaged } from '../../src/scenario/sabotage.js';

function filesBelow(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.yaml') && !file.startsWith('hosts'))
    .map((file) => join(directory, file))
    .sort();
}

async function outcomeOf(scenario: Scenario): Promise<ScenarioOutcome> {
  return (await executeScenario(scenario, { seed: 1, placement: 'inline' })).outcome;
}

/** Scenarios of terabytes and of long migrations: broken, they run in the sweep. */
const LONG = ['large/1-tib.yaml', 'dirty-sources/unplug-at-stop.yaml'];

function isLeftToSweep(file: string): boolean {
  return process.env['IOVADUCT_SWEEP'] === undefined && LONG.some((long) => file.endsWith(long));
}

/** Tests of all scenarios below a directory that `isWanted`. */
export function shippedScenarios(directory: string, isWanted: (file: string) => boolean = () => true): void {
  describe.each(filesBelow(directory).filter(isWanted))('%s', (file) => {
    const scenario = readScenario(file);
    test('passes', async () => {
      const outcome = await outcomeOf(scenario);
      expect(outcome.checks.filter(({ verdict }) => verdict !== 'pass')).toEqual([]);
      expect(outcome.checks).not.toEqual([]);
    });
    // What a kernel-only scenario is about shows in some schedules only: test/explore/incidents.test.ts looks for one.
    const broken = scenario.kernelOnly === undefined ? sabotaged(scenario) : undefined;
    test.skipIf(broken === undefined || isLeftToSweep(file))('fails with what it is about switched off', async () => {
      if (broken === undefined) return;
      const outcome = await outcomeOf(broken);
      expect(judgeSabotage(scenario, outcome).checks).toMatchObject([{ verdict: 'pass' }]);
    });
  });
}
