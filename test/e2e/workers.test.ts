/** Whose worker a host gets: one that another host has left well, or one of its own. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import type * as Execute from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';

const scenario = (steps: string): string => `
title: Two hosts
hosts:
  a: { profile: ampere-altra }
  b: { profile: ampere-altra }
links:
  - { between: [a, b], bandwidth: 10 Gbit/s, latency: 50 us }
guests:
  vm: { on: a, vmm: qemu-virt, memory: 1 GiB }
steps:
  - boot: vm
${steps}  - migrate: { guest: vm, to: b }
`;

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
  const first = await digestOf(scenario(''));
  expect(first.verdict).toBe('pass');
  expect(started).toBe(2);
  expect(await digestOf(scenario(''))).toEqual(first);
  expect(started).toBe(2);
  expect((await digestOf(scenario('  - fault: { host: b, fault: host.killed }\n'))).verdict).toBe('fail');
  expect(started).toBe(2);
  expect(await digestOf(scenario(''))).toEqual(first);
  expect(started).toBe(3);
});
