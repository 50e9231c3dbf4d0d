/** Two clients that map and unmap side by side: another schedule is another history, the same schedule the same one. */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { executeScenario } from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';

const file = 'scenarios/concurrency/two-clients.yaml';
const text = readFileSync(file, 'utf8');

/** The history but for the line that names the seed, and the schedule it came from. */
async function history(schedule: 'in-order' | 'random', seed: number) {
  const scenario = loadScenario(file, text.replace(/^schedule: .*$/m, `schedule: ${schedule}`));
  const { outcome, trace } = await executeScenario(scenario, { seed, placement: 'inline' });
  expect(outcome.verdict).toBe('pass');
  return { lines: trace.lines.filter((line) => !line.includes('run.start')), choices: trace.choices };
}

test('histories differ by schedule and by nothing else', async () => {
  const inOrder = await history('in-order', 1);
  const one = await history('random', 1);
  const two = await history('random', 2);
  expect(one.lines).not.toEqual(inOrder.lines);
  expect(two.lines).not.toEqual(one.lines);
  expect(await history('in-order', 1)).toEqual(inOrder);
  expect(await history('random', 1)).toEqual(one);
});

test('recorded choices repeat a random schedule under another seed', async () => {
  const one = await history('random', 1);
  const scenario = loadScenario(file, text);
  const { trace } = await executeScenario(scenario, { seed: 99, placement: 'inline', recordedChoices: one.choices });
  expect(trace.lines.filter((line) => !line.includes('run.start'))).toEqual(one.lines);
});

test('a schedule by node is repeated by its recorded choices', async () => {
  const by = 'schedule: { main: [{ at: 3, to: time }] }';
  const scenario = loadScenario(file, text.replace(/^schedule: .*$/m, by));
  const one = await executeScenario(scenario, { seed: 1, placement: 'inline' });
  expect(Object.values(one.trace.choices).flat().length).toBeGreaterThan(4);
  const recordedChoices = one.trace.choices;
  const two = await executeScenario(scenario, { seed: 1, placement: 'inline', recordedChoices });
  expect(two.trace.lines).toEqual(one.trace.lines);
});
