/**
 * Incidents of the field: exploring a kernel-only scenario finds the historical fault that it names, by a rule that is looked at in every
 * run, and finds nothing in the kernel as it is.
 */
import { readdirSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { measureChoices, sample, type Sampled } from '../../src/explore/explore.js';
import { subjectOf } from '../../src/explore/subject.js';
import { readScenario, type Scenario } from '../../src/scenario/load.js';
import { sabotaged } from '../../src/scenario/sabotage.js';

const SEED = 1;
/** Schedules in which a fault must have shown itself. */
const FOUND_WITHIN = 400;
/** Those that take longer. */
const HARD: Readonly<Record<string, number>> = { 'command-queue': 2500 };
/** Schedules that must hold without. */
const HOLDS_FOR = 300;

const scenarios = readdirSync('scenarios/races')
  .filter((file) => file.endsWith('.yaml'))
  .map((file) => readScenario(`scenarios/races/${file}`));

async function explored(scenario: Scenario, runs: number): Promise<Sampled> {
  const subject = subjectOf(scenario, SEED);
  const sampling = {
    strategy: 'portfolio',
    seed: SEED,
    depth: 3,
    choices: await measureChoices(subject, SEED),
  } as const;
  return sample(subject, sampling, { first: 0, end: runs });
}

describe('scenarios/races', () => {
  test.each(scenarios.filter(({ failsWith }) => failsWith !== undefined).map((scenario) => [scenario.name, scenario]))(
    '%s is found with its historical fault',
    async (_name, scenario) => {
      const { failure } = await explored(sabotaged(scenario) ?? scenario, HARD[scenario.name] ?? FOUND_WITHIN);
      expect(failure?.attempt.failure?.id).toBeDefined();
    },
  );
  test.each(scenarios.map((scenario) => [scenario.name, scenario]))('%s holds', async (_name, scenario) => {
    const { failure, runs } = await explored(scenario, HOLDS_FOR);
    expect(failure?.attempt.failure).toBeUndefined();
    expect(runs).toBe(HOLDS_FOR);
  });
});
