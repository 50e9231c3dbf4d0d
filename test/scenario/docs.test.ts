/** Every example in docs/scenarios.md is a scenario that passes, and together they use all there is; tables of other pages are complete. */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { FAULTS, type FaultDescription } from '../../src/runtime/faults.js';
import { INVARIANTS } from '../../src/runtime/invariants.js';
import { executeScenario } from '../../src/scenario/execute.js';
import { operations } from '../../src/scenario/kernel-only.js';
import { loadScenario, readScenario } from '../../src/scenario/load.js';
import { scenarioJsonSchema, STEP_KINDS } from '../../src/scenario/schema.js';
import { ALARMS } from '../../src/stress/alarms.js';
import { STRESS_FAULTS } from '../../src/stress/options.js';

const page = readFileSync('docs/scenarios.md', 'utf8');
const examples = [...page.matchAll(/```yaml\n([\s\S]*?)```/g)].map((match) => match[1] ?? '');

type Mapping = Readonly<Record<string, unknown>>;

/** Every step of an example, those inside `parallel` too. */
function stepsOf(steps: readonly Mapping[]): Mapping[] {
  return steps.flatMap((step) => [
    step,
    ...(Array.isArray(step['parallel']) ? (step['parallel'] as Mapping[][]).flatMap(stepsOf) : []),
  ]);
}

const steps = examples.flatMap((text) => stepsOf((parse(text) as { steps?: Mapping[] }).steps ?? []));

type Calls = readonly Mapping[];

/** Every call of the kernel-only examples. */
const calls = examples.flatMap((text): Calls => {
  const { setup = [], tasks = {} } = parse(text) as {
    setup?: Calls;
    tasks?: Record<string, Calls | { calls: Calls }>;
  };
  return [...setup, ...Object.values(tasks).flatMap((task) => ('calls' in task ? task.calls : task))];
});

/** Operations and their arguments, as `map.iova`. */
const callArguments = Object.entries(operations).flatMap(([op, { shape }]) => [
  op,
  ...Object.keys(shape).map((key) => `${op}.${key}`),
]);

/** Keys of an `expect`, from the exported JSON Schema. */
function expectationKeys(node: unknown): string[] {
  if (typeof node !== 'object' || node === null) return [];
  const properties = (node as { properties?: Mapping }).properties;
  const own = properties?.['expect'] as { properties?: Mapping } | undefined;
  return [...Object.keys(own?.properties ?? {}), ...Object.values(node).flatMap(expectationKeys)];
}

describe('docs/scenarios.md', () => {
  test.each(examples.map((text) => [/^title: (.*)$/m.exec(text)?.[1] ?? text, text]))('%s', async (_title, text) => {
    const { outcome } = await executeScenario(loadScenario('docs/scenarios.md', text), {
      seed: 1,
      placement: 'inline',
    });
    expect(outcome.checks.filter((check) => check.verdict !== 'pass')).toEqual([]);
    expect(outcome.checks.length).toBeGreaterThan(0);
  });
  test('the examples use every kind of step', () => {
    expect(new Set(steps.flatMap((step) => Object.keys(step)))).toEqual(new Set(STEP_KINDS));
  });
  test('the examples use every call of kernel-only scenarios with every argument', () => {
    const used = new Set(
      calls.flatMap((call) =>
        Object.entries(call).flatMap(([op, given]) => [
          op,
          ...Object.keys((op in operations && given) || {}).map((key) => `${op}.${key}`),
        ]),
      ),
    );
    expect(callArguments.filter((argument) => !used.has(argument))).toEqual([]);
  });
  test('the table of calls has every call with every argument', () => {
    const rows = new Map(
      [...page.matchAll(/^\| `([a-z-]+): (\{.*?\})` \|/gm)].map(([, op = '', shape = '']) => [op, shape]),
    );
    const told = Object.entries(operations).map(([op, { shape }]) => [
      op,
      Object.keys(shape).filter((key) => !new RegExp(`\\b${key}\\b`).test(rows.get(op) ?? '')),
    ]);
    expect(told.filter(([, missing]) => missing?.length !== 0)).toEqual([]);
  });
  test('the examples use every expectation', () => {
    const keys = new Set(expectationKeys(scenarioJsonSchema()));
    expect(keys.size).toBeGreaterThan(10);
    const used = new Set(steps.flatMap((step) => Object.keys((step['expect'] ?? {}) as Mapping)));
    expect([...keys].filter((key) => !used.has(key))).toEqual([]);
  });
});

/** Cells of the rows of a table whose first cell says which row it is. */
function tableRows(file: string): ReadonlyMap<string, readonly string[]> {
  const rows = readFileSync(file, 'utf8').match(/^\| .* \|$/gm) ?? [];
  return new Map(
    rows.map((row) => {
      const [first = '', ...cells] = row
        .slice(1, -1)
        .split('|')
        .map((cell) => cell.trim());
      return [first, cells];
    }),
  );
}

test('docs/exploring.md says of every rule what it says', () => {
  const rows = tableRows('docs/exploring.md');
  for (const [id, text] of Object.entries(INVARIANTS)) expect([id, rows.get(id)?.[0]]).toEqual([id, text]);
});

describe('docs/incidents.md', () => {
  const rows = (readFileSync('docs/incidents.md', 'utf8').match(/^\| .* \|$/gm) ?? []).map((row) =>
    row
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim()),
  );
  const faults: readonly (readonly [string, FaultDescription])[] = Object.entries(FAULTS);

  test('has every fault that is of an incident, under that incident', () => {
    const missing = faults.filter(
      ([id, { incident }]) => incident !== undefined && !rows.some((cells) => cells[0] === incident && cells[1] === id),
    );
    expect(missing).toEqual([]);
    const wrong = rows.filter(([incident = '', id]) =>
      faults.some(([other, description]) => id === other && incident !== (description.incident ?? '-')),
    );
    expect(wrong).toEqual([]);
  });
  test('says of every fault in what it differs from its incident', () => {
    const told = rows.filter((cells) => cells.length === 3).map(([, id, text]) => [id, text]);
    for (const [id, { differs }] of faults) if (differs !== undefined) expect(told).toContainEqual([id, differs]);
  });
});

test('docs/stress.md has every fault and every alarm', () => {
  const rows = tableRows('docs/stress.md');
  const told = [...rows.keys()].flatMap((cell) => cell.split(', '));
  for (const alarm of ALARMS) expect(told).toContain(`\`${alarm}\``);
  for (const fault of Object.keys(STRESS_FAULTS)) expect(rows.has(`\`${fault}\``)).toBe(true);
});

test('scenarios/races/README.md has every scenario, its fault and its incident', () => {
  const rows = tableRows('scenarios/races/README.md');
  for (const file of readdirSync('scenarios/races').filter((name) => name.endsWith('.yaml'))) {
    const { name, title, failsWith } = readScenario(`scenarios/races/${file}`);
    const [what = '', switched, incident] = rows.get(`[${name}](${file})`) ?? [];
    const fault = typeof failsWith === 'object' && 'fault' in failsWith ? failsWith.fault : undefined;
    const description: FaultDescription | undefined = fault === undefined ? undefined : FAULTS[fault];
    expect([file, what.replace(/ \(SMMU\)$/, ''), switched, incident]).toEqual([
      file,
      title,
      fault === undefined ? '' : `\`${fault}\``,
      description?.incident ?? '',
    ]);
  }
});
