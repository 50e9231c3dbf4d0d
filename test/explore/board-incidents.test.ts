/**
 * Incidents behind IOMMUs, as Linux really had them: with the switch on, exploration finds a schedule in which a rule that knows nothing of
 * the incident is broken; with it off, none is.
 */
import { describe, expect, test } from 'vitest';
import { measureChoices, sample } from '../../src/explore/explore.js';
import { subjectOf } from '../../src/explore/subject.js';
import { readScenario } from '../../src/scenario/load.js';
import { sabotaged } from '../../src/scenario/sabotage.js';
import { FAULTS } from '../../src/runtime/faults.js';

const SEED = 1;
const DEPTH = 3;

/** The rules that may notice, and how many schedules that may take. */
const INCIDENTS: Readonly<Record<string, readonly [rule: string, runs: number]>> = {
  'ats-off': ['objects', 600],
  'ats-tags': ['INV-3', 600],
  'command-queue': ['INV-4', 2500],
  'dirty-without-sync': ['INV-11', 600],
  'event-of-a-device-that-is-gone': ['INV-14', 600],
  'growing-root': ['mapped', 600],
  'last-asid': ['INV-16', 20],
  'lost-event': ['INV-14', 1500],
  'resume-two-writers': ['device-state', 300],
  'resume-write': ['device-state', 300],
  'stale-asid': ['INV-18', 300],
  'stop-without-drain': ['INV-13', 300],
  'sw-msi-list': ['INV-15', 300],
  'table-before-zero': ['mapped INV-4', 300],
  'table-given-back': ['INV-4', 20],
  'torn-context-descriptor': ['INV-17', 20],
  'torn-stream-table-entry': ['INV-17', 20],
  'walk-of-freed-tables': ['INV-4', 2000],
};

/** Runs that must hold without the fault; more of them are explored elsewhere. */
const CLEAN_RUNS = 40;

describe.each(Object.entries(INCIDENTS))('%s', (name, [rule, runs]) => {
  const scenario = readScenario(`scenarios/races/${name}.yaml`);

  test('is found by a general rule when it is in the kernel', async () => {
    const subject = subjectOf(sabotaged(scenario) ?? scenario, SEED);
    const choices = await measureChoices(subject, SEED);
    const { failure } = await sample(
      subject,
      { strategy: 'portfolio', seed: SEED, depth: DEPTH, choices },
      { first: 0, end: runs },
    );
    expect(rule.split(' '), failure?.attempt.failure?.message).toContain(failure?.attempt.failure?.id);
  });

  test('no rule is broken without it', async () => {
    const subject = subjectOf(scenario, SEED);
    const choices = await measureChoices(subject, SEED);
    const { failure } = await sample(
      subject,
      { strategy: 'portfolio', seed: SEED, depth: DEPTH, choices },
      { first: 0, end: CLEAN_RUNS },
    );
    expect(failure?.attempt.failure?.message).toBeUndefined();
  });

  test('its row of the incidents is what its switch says', () => {
    const { failsWith } = scenario;
    const fault = typeof failsWith === 'object' && 'fault' in failsWith ? FAULTS[failsWith.fault] : undefined;
    expect(fault).toBeDefined();
    if (fault !== undefined && 'incident' in fault) expect(scenario.covers).toContain(fault.incident);
  });
});
