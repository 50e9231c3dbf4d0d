/** What devices reach at the end is compared where the order of plugging decides who is refused. */
import { expect, test } from 'vitest';
import { explore } from '../../src/explore/campaign.js';
import { loadScenario } from '../../src/scenario/load.js';

async function reachesOf(text: string): Promise<number> {
  const scenario = loadScenario('plug.yaml', text);
  const found = await explore({ scenario, strategy: 'portfolio', runs: 60, depth: 3, seed: 1, jobs: 1 });
  expect(found.failure).toBeUndefined();
  return found.reaches;
}

const limited = (memlock: string): string => `
title: two devices come at the same time
kernel-only: { iommu: mock }
processes: { p: { uid: 1000, memlock: ${memlock} } }
setup:
  - ioas: { as: one }
  - ioas: { as: two }
  - map: { ioas: one, iova: 0x1000000, length: 16 KiB }
  - map: { ioas: two, iova: 0x2000000, length: 16 KiB, from: { offset: 0x8000 } }
tasks:
  nic:
    - device: { as: nic, to: one }
  disk:
    - device: { as: disk, to: two }
`;

test('whoever is plugged first has the memory: more than one way it ends', async () => {
  expect(await reachesOf(limited('20 KiB'))).toBeGreaterThan(1);
});

test('where there is room for both the order does not matter', async () => {
  expect(await reachesOf(limited('64 KiB'))).toBe(1);
});

test('addresses that differ above their low 32 bits are different memory', async () => {
  const replaced = `
title: two tasks move a device
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - device: { as: nic }
  - ioas: { as: one }
  - ioas: { as: two }
  - map: { ioas: one, iova: 0x1000000, length: 16 KiB }
  - map: { ioas: two, iova: 0x101000000, length: 16 KiB }
tasks:
  a:
    - replace: { device: nic, to: one }
  b:
    - replace: { device: nic, to: two }
`;
  expect(await reachesOf(replaced)).toBe(2);
});

test('a device goes only when it has been moved', async () => {
  const scenario = loadScenario(
    'move.yaml',
    `
title: a device is moved by one task while another unplugs it
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - device: { as: nic }
  - ioas: { as: second }
tasks:
  a:
    - replace: { device: nic, to: second }
  b:
    - unplug: { device: nic }
`,
  );
  const found = await explore({ scenario, strategy: 'portfolio', runs: 300, depth: 3, seed: 1, jobs: 1 });
  expect(found.failure).toBeUndefined();
});
