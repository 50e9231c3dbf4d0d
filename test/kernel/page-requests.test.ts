/** Page requests that nobody answers are missed when their queue goes. */
import { afterEach, expect, test, vi } from 'vitest';
import { runProgram, type ProgramFailure } from '../../src/host/run-program.js';
import { IommufdFault } from '../../src/kernel/iommufd/eventq.js';
import { loadScenario } from '../../src/scenario/load.js';

afterEach(() => {
  vi.restoreAllMocks();
});

function failure(): ProgramFailure | undefined {
  const program = loadScenario(
    'requests.yaml',
    `title: a page request and no answer
kernel-only: { iommu: mock }
setup:
  - device: { as: nic }
  - fault-queue: { as: queue }
  - hwpt: { as: paged, device: nic, fault-queue: queue }
  - replace: { device: nic, to: paged }
tasks:
  a:
    - page-request: { device: nic, iova: 0x1000 }
      expect: [ok]
`,
  ).kernelOnly?.program;
  if (program === undefined) throw new Error('kernel-only');
  return runProgram(program, { seed: 1, schedule: { strategy: 'in-order' } }).failure;
}

test('a request that is still unread when its device goes is answered by the kernel', () => {
  expect(failure()).toBeUndefined();
});

test('a request that gets lost on its way to user space breaks INV-14', () => {
  vi.spyOn(IommufdFault.prototype, 'respondAll').mockImplementation(function* (this: IommufdFault) {
    this.deliver = [];
  });
  expect(failure()?.message).toMatch(/1 page requests of queue \d+ were never answered/);
  expect(failure()?.id).toBe('INV-14');
});
