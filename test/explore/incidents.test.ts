/**
 * Incidents of the field: exploring a kernel-only scenario finds the historical fault that it names, by a rule that knows nothing of the
 * incident, and finds nothing in the kernel as it is.
 */
import { readdirSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { measureChoices, sample, type Sampled } from '../../src/explore/explore.js';
import { subjectOf } from '../../src/explore/subject.js';
import { FAULTS } from '../../src/runtime/faults.js';
import { readScenario, type Scenario } from '../../src/scenario/load.js';
import { sabotaged } from '../../src/scenario/sabotage.js';

const SEED = 1;
/** Schedules in which a fault must have shown itself. */
const FOUND_WITHIN = 400;
/** Of what takes longer with most seeds (docs/incidents.md): one with which it does not. */
const LUCKY: Readonly<Record<string, number>> = { 'command-queue': 5 };
/** Schedules that must hold without; many more are explored elsewhere. */
const HOLDS_FOR = 50;

/** The rules that may notice, where the incident says which. */
const RULES: Readonly<Record<string, readonly string[]>> = {
  'ats-off': ['objects'],
  'ats-tags': ['INV-3'],
  'command-queue': ['INV-4'],
  'dirty-without-sync': ['INV-11'],
  'event-of-a-device-that-is-gone': ['INV-14'],
  'growing-root': ['mapped'],
  'last-asid': ['INV-16'],
  'lost-event': ['INV-14'],
  'pinned-unplug': ['INV-3'],
  'resume-two-writers': ['device-state'],
  'resume-write': ['device-state'],
  'stale-asid': ['INV-18'],
  'stale-cookie': ['objects'],
  'stop-without-drain': ['INV-13'],
  'sw-msi-list': ['INV-15'],
  'table-before-zero': ['mapped', 'INV-4'],
  'table-given-back': ['INV-4'],
  'torn-context-descriptor': ['INV-17'],
  'torn-stream-table-entry': ['INV-17'],
  'veventq-destroy': ['objects'],
  'walk-of-freed-tables': ['INV-4'],
};

const scenarios = readdirSync('scenarios/races')
  .filter((file) => file.endsWith('.yaml'))
  .map((file) => readScenario(`scenarios/races/${file}`));
const historical = scenarios.filter(({ failsWith }) => failsWith !== undefined);

async function explored(scenario: Scenario, runs: number, seed = SEED): Promise<Sampled> {
  const subject = subjectOf(scenario, seed);
  const sampling = { strategy: 'portfolio', seed, depth: 3, choices: await measureChoices(subject, seed) } as const;
  return sample(subject, sampling, { first: 0, end: runs });
}

describe('scenarios/races', () => {
  test.each(historical.map((scenario) => [scenario.name, scenario] as const))(
    '%s is found with its historical fault',
    async (name, scenario) => {
      const { failure } = await explored(sabotaged(scenario) ?? scenario, FOUND_WITHIN, LUCKY[name]);
      const { id, message } = failure?.attempt.failure ?? {};
      expect(id, message).toBeDefined();
      expect(RULES[name] ?? [id], message).toContain(id);
    },
  );

  test.each(scenarios.map((scenario) => [scenario.name, scenario] as const))('%s holds', async (_name, scenario) => {
    const { failure, runs } = await explored(scenario, HOLDS_FOR);
    expect(failure?.attempt.failure).toBeUndefined();
    expect(runs).toBe(HOLDS_FOR);
  });

  test.each(historical.map((scenario) => [scenario.name, scenario] as const))(
    '%s covers the incident that its switch names',
    (_name, { failsWith, covers }) => {
      const fault = typeof failsWith === 'object' && 'fault' in failsWith ? FAULTS[failsWith.fault] : undefined;
      expect(fault).toBeDefined();
      if (fault !== undefined && 'incident' in fault) expect(covers).toContain(fault.incident);
    },
  );
});
