/**
 * The iommufd selftest (CONFIG_IOMMUFD_TEST): mock devices behind an ordinary iommufd, driven by IOMMU_TEST_CMD.
 *
 * Everything below the mock IOMMU's boundary is the same code that real boards run through; this is how sequences that a
 * Linux kernel answered are put to it.
 */
import type { FaultSwitches } from '../../../runtime/faults.js';
import type { CommandRow } from '../command.js';
import { accessRows } from './access.js';
import { testCommandRow } from './command.js';
import { deviceRows } from './devices.js';
import { dmaBufRows } from './dma-buf.js';
import { MockIommu, type MockPageSource } from './mock-iommu.js';
import { objectRows } from './objects.js';

/** IOMMU_TEST_CMD with a mock IOMMU of its own. */
export function selftestCommand(pages: MockPageSource, faults?: FaultSwitches): CommandRow {
  return testCommandRow([...deviceRows, ...accessRows, ...objectRows, ...dmaBufRows], new MockIommu(pages, faults));
}
