/**
 * What must be true whenever every thread stands still: the books of the address space agree with each other.
 *
 *   - Pages that are pinned = pages that pages objects say they have pinned = pages charged (INV-3, INV-5).
 *   - Every leaf of the translation table belongs to an area that can be used, and shows the page the area has pinned
 *     there (INV-4); every such area is in the table from end to end.
 *   - No area is hidden; every table frame hangs in the tree.
 *   - Memory holds what devices wrote last.
 *
 * Main does this with a view of its own, between two segments.
 */
import { FRAME_BYTES, type Arena } from '../core/arena.js';
import type { PageTable } from '../core/page-table.js';
import { PAGE_BYTES } from '../kernel/iommufd/pages.js';
import type { AddressSpace } from './address-space.js';
import type { HistoryChecker } from './check.js';
import { slotOf } from './device.js';
import { deviceThreads } from './spec.js';

const VALID = 1;
const TABLE = 3;
const LAST_LEVEL = 3;
const ENTRIES = 512;

/** Frames of a translation table's tree, the root included. 4 KiB granule. */
export function tableFrames(arena: Arena, table: PageTable): number {
  const below = (frame: number, level: number): number => {
    let frames = 1;
    if (level === LAST_LEVEL) return frames;
    const words = arena.words.subarray((frame * FRAME_BYTES) >>> 2, ((frame + 1) * FRAME_BYTES) >>> 2);
    for (let entry = 0; entry < ENTRIES; entry++) {
      const lo = words[entry * 2] ?? 0;
      if ((lo & TABLE) !== TABLE || (lo & VALID) === 0) continue;
      const pfn = ((words[entry * 2 + 1] ?? 0) & 0xffff) * 2 ** 20 + (lo >>> 12);
      frames += below(arena.pfnToFrame(pfn), level + 1);
    }
    return frames;
  };
  return below(arena.pfnToFrame(table.rootPfn), table.startLevel);
}

/** Pages of a table's leaves. */
function leafPages(table: PageTable): number {
  let pages = 0;
  for (const leaf of table.leaves()) pages += leaf.pageCount;
  return pages;
}

/** Compares the books. `otherFrames`: kernel frames in use that are no translation tables. */
export function audit(space: AddressSpace, checker: HistoryChecker, otherFrames: number): void {
  const { iopt, table, records, thread } = space;
  const complain = (detail: string, page = -1): void => checker.complain('audit', page, detail);
  let mapped = 0;
  let behind = -1;
  for (const area of iopt.areas.overlapping()) {
    const first = Number(area.iova) / PAGE_BYTES;
    if (first <= behind) {
      complain('the area index is not in order', first);
      return;
    }
    behind = first;
    const { pages } = area;
    if (pages === undefined) {
      complain('an area is hidden although nobody is at work', first);
      continue;
    }
    let page = first;
    for (const run of pages.runs(area.firstPage, area.lastPage)) {
      for (let i = 0; i < run.pages; i++) {
        const shown = table.translate(page + i);
        if (shown === run.pfn + i) continue;
        complain(`the table shows page ${shown} where page ${run.pfn + i} is pinned`, page + i);
        break;
      }
      page += run.pages;
    }
    mapped += page - first;
  }
  const leaves = leafPages(table);
  if (leaves !== mapped) complain(`the table has leaves for ${leaves} pages, areas for ${mapped}`);

  let held = 0;
  for (const pages of records.allPages()) held += pages.npinned;
  const books = {
    pins: space.pins.pages,
    pinned: held,
    pinnedVm: space.pinnedVm.value,
    lockedVm: space.lockedVm.value,
  };
  if (new Set(Object.values(books)).size !== 1) complain(`pages pinned and charged differ: ${JSON.stringify(books)}`);

  const tables = tableFrames(thread.arena, table);
  const others = thread.arena.kernelFramesInUse - tables;
  if (others !== otherFrames) {
    complain(`${others - otherFrames} table frames are neither in the tree nor free`);
  }
  auditMemory(space, checker);
}

function auditMemory({ thread: { arena, options } }: AddressSpace, checker: HistoryChecker): void {
  for (const [index, device] of deviceThreads(options).entries()) {
    for (const [pfn, tag] of checker.lastTags.get(device) ?? []) {
      const found = arena.word(arena.frameOffset(arena.pfnToFrame(pfn)) + slotOf(index));
      if (found === tag) continue;
      checker.complain(
        'memory',
        -1,
        `page ${pfn} holds tag ${found} of device ${index}, which wrote ${tag} there last`,
      );
    }
  }
}
