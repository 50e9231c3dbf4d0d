/** A schedule that fails: an invalidation is lost, so a device reaches a page that was given back. */
import { explain, type Explanation } from '../../src/explore/explain.js';
import { loadScenario, readScenario } from '../../src/scenario/load.js';
import { sabotaged } from '../../src/scenario/sabotage.js';
import type { Scenario } from '../../src/scenario/load.js';
import type { ScheduleSpec } from '../../src/runtime/node-runtime.js';

const LOST = `title: A lost invalidation </script><script>window.broken = 1</script>
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - device: { as: dev }
  - map: { iova: 0x1000000, length: 16 KiB, from: { offset: 0 }, prot: rw }
fails-with: { fault: smmu.drop-tlbi }
tasks:
  dma:
    - dma: { device: dev, iova: 0x1000000, length: 4 KiB }
    - dma: { device: dev, iova: 0x1000000, length: 4 KiB }
    - dma: { device: dev, iova: 0x1000000, length: 4 KiB }
    - dma: { device: dev, iova: 0x1000000, length: 4 KiB }
  unmapper:
    - unmap: { iova: 0x1000000, length: 16 KiB }
    - map: { iova: 0x2000000, length: 16 KiB, from: { offset: 32768 }, prot: rw }
`;

/** The scenario, with its fault in the hardware. */
export function lostInvalidation(): Scenario {
  const scenario = sabotaged(loadScenario('lost.yaml', LOST));
  if (scenario === undefined) throw new Error('the scenario names its fault');
  return scenario;
}

/** A case of the corpus, under the schedule it holds. */
export function corpusFailure(name: string): Explanation {
  return underOwnSchedule(`scenarios/corpus/${name}.yaml`);
}

/** The page table grows under a mapper's feet, and its own unmap finds out. */
export function growingRoot(): Explanation {
  return underOwnSchedule('test/fixtures/growing-root-in-unmap.yaml');
}

function underOwnSchedule(file: string): Explanation {
  const scenario = readScenario(file);
  return explained(scenario, { strategy: 'deviating', deviations: scenario.deviations?.['kernel'] ?? [] });
}

/** A text of a kernel-only scenario, nobody pre-empted. */
export function inOrder(text: string): Explanation {
  return explained(loadScenario('case.yaml', text), { strategy: 'deviating', deviations: [] });
}

/** Explains a run under a schedule. */
export function explained(scenario: Scenario, schedule: ScheduleSpec): Explanation {
  const explanation = explain(scenario, 1, schedule);
  if (explanation === undefined) throw new Error('a kernel-only scenario can be explained');
  return explanation;
}

/** The first schedule of a row of random ones that fails. */
export function firstFailure(scenario: Scenario): Explanation {
  for (let seed = 0; seed < 100; seed++) {
    const found = explained(scenario, { strategy: 'explored', seed });
    if (found.trace.failure !== undefined) return found;
  }
  throw new Error('no schedule of a hundred fails');
}
