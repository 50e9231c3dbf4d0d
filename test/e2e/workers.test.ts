/** Whose worker a host gets: one that another host has left well, or one of its own. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import type * as Execute from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';
import { B_IS_KILLED, twoHosts } from '../fixtures/two-hosts.js';

/** As built: workers are. */
const BUILT = new URL('../../dist/src/scenario/execute.js', import.meta.url).href;

let started = 0;
const count = (): void => {
  started++;
};
beforeEach(() => {
  started = 0;
  process.on('worker', count);
});
afterEach(() => {
  process.off('worker', count);
});

async function digestOf(text: string): Promise<{ readonly verdict: string; readonly digest: string }> {
  const { executeScenario } = (await import(BUILT)) as typeof Execute;
  const { outcome } = await executeScenario(loadScenario('two.yaml', text), { seed: 1, placement: 'workers' });
  return { verdict: outcome.verdict, digest: outcome.digest };
}

test('hosts of the next run live in the workers of the last one, and have the same history; a worker whose host died is not used again', async () => {
  const first = await digestOf(twoHosts('Two hosts'));
  expect(first.verdict).toBe('pass');
  expect(started).toBe(2);
  expect(await digestOf(twoHosts('Two hosts'))).toEqual(first);
  expect(started).toBe(2);
  expect((await digestOf(twoHosts('Two hosts', B_IS_KILLED))).verdict).toBe('fail');
  expect(started).toBe(2);
  expect(await digestOf(twoHosts('Two hosts'))).toEqual(first);
  expect(started).toBe(3);
});
