/** DMA on a whole host is held against what is mapped, access by access: a translation that outlives its unmap is seen. */
import { afterEach, expect, test, vi } from 'vitest';
import { PageAllocator } from '../../src/kernel/mm/page-allocator.js';
import { FaultSwitches } from '../../src/runtime/faults.js';
import { executeScenario } from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';
import { LOST_INVALIDATION, onHost } from '../fixtures/on-host.js';

const SCENARIO = onHost('An invalidation gets lost', LOST_INVALIDATION);

afterEach(() => {
  vi.restoreAllMocks();
});

test('a stale translation breaks INV-2, whoever has pinned the page', async () => {
  vi.spyOn(PageAllocator.prototype, 'pinCount').mockReturnValue(1);
  // Hardware that is broken on purpose is not judged; here it stands for a driver that forgets.
  vi.spyOn(FaultSwitches.prototype, 'isHardwareBroken', 'get').mockReturnValue(false);
  const { outcome } = await executeScenario(loadScenario('lost.yaml', SCENARIO), { seed: 1, placement: 'inline' });
  expect([outcome.verdict, outcome.brokenRule]).toEqual(['fail', 'INV-2']);
});
