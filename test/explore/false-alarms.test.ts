/** Orders in which something was once told that is no bug: nothing is found in any schedule. */
import { expect, test } from 'vitest';
import { explore } from '../../src/explore/campaign.js';
import { failNth } from '../../src/explore/fail-nth.js';
import { loadScenario } from '../../src/scenario/load.js';

const TRACKED = `  - device: { as: nic }
  - map: { iova: 0x1000000, length: 8 KiB }
  - hwpt: { as: t, device: nic, dirty: true }
  - replace: { device: nic, to: t }
  - track-dirty: { hwpt: t, on: true }
`;

/** A task that switches tracking on again, writes, and asks what was written. */
const SWITCHED_ON = `  on:
    - track-dirty: { hwpt: t, on: true }
    - dma: { device: nic, iova: 0x1000000, length: 4 KiB }
    - read-dirty: { hwpt: t, iova: 0x1000000, length: 4 KiB }
`;

const SCENARIOS = {
  'an access that is closed while an unmap asks another one': `title: t
kernel-only: { iommu: mock }
setup:
  - map: { iova: 0x1000000, length: 8 KiB }
  - access: { as: a }
  - access: { as: b }
  - pin: { access: a, iova: 0x1000000, length: 4 KiB, as: pa }
  - pin: { access: b, iova: 0x1001000, length: 4 KiB, as: pb }
tasks:
  unmapper:
    - unmap: { iova: 0x1000000, length: 8 KiB }
      expect: [ok]
  closer:
    - close: { file: b }
      expect: [ok, EBADF]
`,
  'an access that moves and is closed while an unmap asks another one': `title: t
kernel-only: { iommu: mock }
setup:
  - ioas: { as: main }
  - ioas: { as: other }
  - map: { iova: 0x1000000, length: 4 KiB }
  - access: { as: a }
  - access: { as: b }
  - pin: { access: a, iova: 0x1000000, length: 4 KiB, as: pa }
tasks:
  unmapper:
    - unmap: { iova: 0x1000000, length: 4 KiB }
  closer:
    - access-replace: { access: b, ioas: other }
    - close: { file: b }
`,
  'tracking that is switched on again, which makes leaves clean, while a report is made': `title: t
kernel-only: { iommu: arm-smmu-v3 }
setup:
${TRACKED}  - dma: { device: nic, iova: 0x1000000, length: 8 KiB }
tasks:
  again:
    - track-dirty: { hwpt: t, on: true }
      expect: ok
  reader:
    - read-dirty: { hwpt: t, iova: 0x1000000, length: 8 KiB }
      expect: ok
`,
  'tracking that is switched on and off at once': `title: t
kernel-only: { iommu: mock }
setup:
${TRACKED}tasks:
${SWITCHED_ON}  off:
    - track-dirty: { hwpt: t, on: false }
`,
};

test.each(Object.entries(SCENARIOS))('%s', async (_what, text) => {
  const scenario = loadScenario('t.yaml', text);
  const { failure } = await explore({ scenario, strategy: 'portfolio', runs: 300, depth: 3, seed: 1, jobs: 1 });
  expect(failure?.message).toBeUndefined();
});

test('a lost write is still told after tracking was switched on again', async () => {
  const text = `title: t
kernel-only: { iommu: arm-smmu-v3 }
setup:
${TRACKED}tasks:
${SWITCHED_ON}faults: [{ fault: smmu.dirty-lost }]
`;
  const scenario = loadScenario('t.yaml', text);
  const { failure } = await explore({ scenario, strategy: 'in-order', runs: 1, depth: 3, seed: 1, jobs: 1 });
  expect(failure?.id).toBe('INV-11');
});

test('a doorbell that a failed replace has mapped stays, as in Linux (iommufd_sw_msi_install)', async () => {
  const text = `title: t
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - device: { as: disk }
  - hwpt: { as: parent, device: disk, nesting: true }
  - msi: { device: disk }
tasks:
  disk:
    - replace: { device: disk, to: parent }
`;
  const { injected } = await failNth(loadScenario('t.yaml', text), 1);
  expect(injected.flatMap(({ failure }) => failure?.message ?? [])).toEqual([]);
});
