/** Which writes a dirty report owes: those to pages that have left are forgotten, whoever unmapped them, and no others. */
import { afterEach, expect, test, vi } from 'vitest';
import { runProgram, type ProgramOutcome } from '../../src/host/run-program.js';
import { MockDomain } from '../../src/kernel/iommufd/selftest/mock-domain.js';
import { loadScenario } from '../../src/scenario/load.js';

afterEach(() => {
  vi.restoreAllMocks();
});

/** Runs calls of one task, or of two, over two pages that are mapped and tracked. */
function ran(tasks: Readonly<Record<string, string>>, seed?: number): ProgramOutcome {
  const text = Object.entries(tasks).map(([name, calls]) => `  ${name}:\n${calls.trim().replace(/^\s*-/gm, '    -')}`);
  const program = loadScenario(
    'dirty.yaml',
    `title: dirty pages and unmaps
kernel-only: { iommu: mock }
setup:
  - ioas: { as: main }
  - device: { as: nic, to: main, dirty: true }
  - vfio-ioas: { ioas: main }
  - map: { iova: 0x1000000, length: 4 KiB }
  - map: { iova: 0x1001000, length: 8 KiB, from: { offset: 0x1000 } }
  - hwpt: { as: tracked, device: nic, on: main, dirty: true }
  - replace: { device: nic, to: tracked }
  - track-dirty: { hwpt: tracked, on: true }
tasks:
${text.join('\n')}
`,
  ).kernelOnly?.program;
  if (program === undefined) throw new Error('kernel-only');
  const schedule = seed === undefined ? ({ strategy: 'in-order' } as const) : ({ strategy: 'explored', seed } as const);
  return runProgram(program, { seed: 1, schedule });
}

/** Devices write, and the table does not note it. */
function loseDirtyBits(): void {
  vi.spyOn(MockDomain.prototype, 'set_dirty').mockReturnValue(true);
}

const WRITE = '- dma: { device: nic, iova: 0x1000000, length: 8 KiB }';
const READ = '- read-dirty: { hwpt: tracked, iova: 0x1000000, length: 12 KiB }';

test('an unmap through VFIO takes the writes with it', () => {
  const { failure } = ran({
    a: `
- dma: { device: nic, iova: 0x1000000, length: 4 KiB }
- vfio-unmap: { iova: 0x1000000, length: 4 KiB }
- map: { iova: 0x1000000, length: 4 KiB }
${READ}`,
  });
  expect(failure).toBeUndefined();
});

test.each([
  ['an unmap that is refused', '- unmap: { iova: 0x1001000, length: 4 KiB }'],
  [
    'an unmap of another page',
    '- unmap: { iova: 0x1000000, length: 4 KiB }\n- map: { iova: 0x1000000, length: 4 KiB }',
  ],
])('%s leaves the writes to be reported', (_what, calls) => {
  const tasks = { a: `- dma: { device: nic, iova: 0x1001000, length: 4 KiB }\n${calls}\n${READ}` };
  expect(ran(tasks).failure).toBeUndefined();
  loseDirtyBits();
  expect(ran(tasks).failure?.id).toBe('INV-11');
});

test('what leaves while a report is made ends it, and what it has had the next one does not owe', () => {
  const tasks = {
    nic: `${WRITE}\n${WRITE}`,
    reader: `${READ}\n${READ}\n${READ}`,
    other: `
- unmap: { iova: 0x1000000, length: 4 KiB }
- map: { iova: 0x1000000, length: 4 KiB }
- unmap: { iova: 0x1001000, length: 8 KiB }`,
  };
  for (let seed = 0; seed < 300; seed++) expect(ran(tasks, seed).failure, `seed ${seed}`).toBeUndefined();
});

test('a write is owed although an interrupt is prepared meanwhile, which holds the lock of the group and moves nothing', () => {
  const { kernelOnly } = loadScenario(
    'interrupt.yaml',
    `title: a write without dirty state
kernel-only: { iommu: arm-smmu-v3 }
faults: [{ fault: smmu.dirty-lost }]
setup:
  - device: { as: nic }
  - map: { iova: 0x1000000, length: 8 KiB }
  - hwpt: { as: tracked, device: nic, dirty: true }
  - replace: { device: nic, to: tracked }
  - track-dirty: { hwpt: tracked, on: true }
tasks:
  a:
    - dma: { device: nic, iova: 0x1000000, length: 4 KiB }
    - read-dirty: { hwpt: tracked, iova: 0x1000000, length: 8 KiB }
  b:
    - msi: { device: nic }
`,
  );
  if (kernelOnly === undefined) throw new Error('it is kernel-only');
  const { failure } = runProgram(kernelOnly.program, { seed: 1, schedule: { strategy: 'deviating', deviations: [] } });
  expect(failure?.id).toBe('INV-11');
});
