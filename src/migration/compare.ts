/**
 * Is the memory of two VMM processes the same, page by page? (domain.md INV-12.) The guest must stand still meanwhile.
 */
import type { Task } from '../runtime/task.js';
import type { GuestMemory } from '../vmm/guest-memory.js';
import { CHUNK_PAGES, type PageRange } from '../vmm/page-set.js';
import { PAGE_BYTES } from '../vmm/ranges.js';
import { compareRuns } from './page-runs.js';

/** What a comparison found. Page numbers are those of the guest's backing. */
export interface MemoryComparison {
  readonly pages: number;
  readonly differingPages: number;
  /** The first differing ranges, at most 16. */
  readonly differences: readonly PageRange[];
}

const REPORTED_RANGES = 16;
/** Pages loaded from each side at a time: 8 GiB of guest memory, which is runs, not bytes. */
const STEP_PAGES = 64 * CHUNK_PAGES;

/** Compares every page of two mappings of one guest's backing. */
export function* compareMemory(a: GuestMemory, b: GuestMemory): Task<MemoryComparison> {
  let pages = 0;
  let differingPages = 0;
  const differences: PageRange[] = [];
  for (const segment of a.segments) {
    const first = Number(segment.offset / PAGE_BYTES);
    const end = first + Number(segment.lengthBytes / PAGE_BYTES);
    for (let page = first; page < end; page += STEP_PAGES) {
      const count = Math.min(STEP_PAGES, end - page);
      const found = compareRuns(yield* a.loadPages(page, count), yield* b.loadPages(page, count));
      pages += count;
      differingPages += found.reduce((sum, range) => sum + range.pages, 0);
      differences.push(...found.slice(0, REPORTED_RANGES - differences.length));
    }
  }
  return { pages, differingPages, differences };
}
