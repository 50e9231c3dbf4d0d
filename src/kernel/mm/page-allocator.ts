/**
 * Physical pages of a host, and who has pinned them.
 *
 * Free memory is a sorted list of runs, so a mapping of a TiB takes a few entries. Pages that are pinned when their owner
 * lets go of them are *orphans*: they return to the free list when the last pin goes, never before (domain.md INV-3).
 */
import type { PhysicalMemory } from '../../hardware/memory.js';
import { invariant } from '../../runtime/task.js';
import { isWatched, sharedRange, sharedRead, sharedWrite } from '../../runtime/watch.js';
import type { Contiguity } from '../../uapi/syscall.js';

const PAGE_BYTES = 4096;

/** A run of physically contiguous 4 KiB pages. */
export interface PageExtent {
  readonly pfn: number;
  readonly pages: number;
}

const ALIGN_PAGES: Readonly<Record<Contiguity, number>> = {
  scattered: 1,
  'short-runs': 1,
  pages: 1,
  'huge-2m': 512,
  'huge-1g': 262144,
};
/** Pages of a run of `short-runs`: few, and enough for one to have a neighbour on both sides. */
const SHORT_RUN_PAGES = 3;

/** What the kernel does with the contents of pages. */
export type PageMemory = Pick<PhysicalMemory, 'read' | 'write' | 'pageContents' | 'setPageContents' | 'clearPages'>;

/** How often pages are pinned. */
export interface PinCounts {
  /** Pins held now, in pages. */
  readonly pages: number;
  add(extent: PageExtent, times: 1 | -1): void;
  count(pfn: number): number;
  /** The extent cut where the count changes. */
  uniformPieces(extent: PageExtent): PageExtent[];
}

interface PinnedPiece {
  readonly pfn: number;
  readonly pages: number;
  readonly pins: number;
}

/** Pins as disjoint pieces sorted by PFN, neighbours with the same count are one. */
class PinnedPieces implements PinCounts {
  #pieces: PinnedPiece[] = [];
  #pages = 0;

  get pages(): number {
    return this.#pages;
  }

  add(extent: PageExtent, times: 1 | -1): void {
    this.#pages += times * extent.pages;
    const end = extent.pfn + extent.pages;
    // Neighbours that only touch are looked at, too: they may become one piece with what changes.
    let first = this.#firstEndingAt(extent.pfn);
    let at = extent.pfn;
    const changed: PinnedPiece[] = [];
    let index = first;
    for (; index < this.#pieces.length; index++) {
      const piece = this.#pieces[index];
      if (piece === undefined || piece.pfn > end) break;
      const pieceEnd = piece.pfn + piece.pages;
      const from = Math.max(piece.pfn, extent.pfn);
      const to = Math.min(pieceEnd, end);
      if (piece.pfn < extent.pfn) push(changed, piece.pfn, Math.min(pieceEnd, extent.pfn), piece.pins);
      if (from > at) push(changed, at, Math.min(from, end), times);
      if (to > from) push(changed, from, to, piece.pins + times);
      at = Math.max(at, to);
      if (pieceEnd > end) {
        if (at < end) push(changed, at, end, times);
        at = end;
        push(changed, Math.max(piece.pfn, end), pieceEnd, piece.pins);
      }
    }
    if (at < end) push(changed, at, end, times);
    first = Math.min(first, this.#pieces.length);
    this.#pieces.splice(first, index - first, ...changed);
  }

  count(pfn: number): number {
    const piece = this.#pieces[this.#firstEndingAt(pfn + 1)];
    return piece !== undefined && piece.pfn <= pfn ? piece.pins : 0;
  }

  uniformPieces(extent: PageExtent): PageExtent[] {
    const end = extent.pfn + extent.pages;
    const cuts = new Set<number>();
    for (let i = this.#firstEndingAt(extent.pfn); i < this.#pieces.length; i++) {
      const piece = this.#pieces[i];
      if (piece === undefined || piece.pfn >= end) break;
      for (const at of [piece.pfn, piece.pfn + piece.pages]) if (at > extent.pfn && at < end) cuts.add(at);
    }
    const sorted = [...cuts].sort((a, b) => a - b);
    return [extent.pfn, ...sorted].map((pfn, i) => ({ pfn, pages: (sorted[i] ?? end) - pfn }));
  }

  /** Index of the first piece that ends at `pfn` or later. */
  #firstEndingAt(pfn: number): number {
    let low = 0;
    let high = this.#pieces.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const piece = this.#pieces[middle];
      if (piece !== undefined && piece.pfn + piece.pages < pfn) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

function push(pieces: PinnedPiece[], pfn: number, end: number, pins: number): void {
  if (end <= pfn || pins === 0) return;
  const before = pieces.at(-1);
  if (before?.pins === pins && before.pfn + before.pages === pfn) {
    pieces[pieces.length - 1] = { pfn: before.pfn, pages: before.pages + end - pfn, pins };
  } else {
    pieces.push({ pfn, pages: end - pfn, pins });
  }
}

/** The page allocator of a host. */
export class PageAllocator {
  readonly #memory: PageMemory;
  #free: PageExtent[];
  readonly #pins: PinCounts;
  #orphans: PageExtent[] = [];

  /** `free`: runs of RAM the kernel may hand out, disjoint. `pins` is given where threads share it. */
  constructor(memory: PageMemory, free: readonly PageExtent[], pins: PinCounts = new PinnedPieces()) {
    this.#memory = memory;
    this.#pins = pins;
    this.#free = [...free].sort((a, b) => a.pfn - b.pfn);
  }

  get freePages(): number {
    return this.#free.reduce((sum, run) => sum + run.pages, 0);
  }

  /** Pins held now, in pages, each pin counted. */
  get pinnedPages(): number {
    return this.#pins.pages;
  }

  /** Whether a page is nobody's. */
  isFree(pfn: number): boolean {
    sharedRead(this, 'free');
    return this.#free.some((run) => run.pfn <= pfn && pfn < run.pfn + run.pages);
  }

  /** How often a page is pinned. */
  pinCount(pfn: number): number {
    sharedRange(this, 'pins of ', pfn * PAGE_BYTES, 1, false);
    return this.#pins.count(pfn);
  }

  /** The first page of a run that nobody has pinned. */
  firstUnpinned(extent: PageExtent): number | undefined {
    sharedRange(this, 'pins of ', extent.pfn * PAGE_BYTES, extent.pages * PAGE_BYTES, false);
    return this.#pins.uniformPieces(extent).find(({ pfn }) => this.#pins.count(pfn) === 0)?.pfn;
  }

  /** Zeroed pages in mapping order, laid out as `contiguity` says; undefined when there is not enough memory. */
  alloc(pages: number, contiguity: Contiguity): PageExtent[] | undefined {
    sharedWrite(this, 'free');
    const align = ALIGN_PAGES[contiguity];
    const before = this.#free;
    const taken: PageExtent[] = [];
    let left = pages;
    while (left > 0) {
      const extent = this.#take(left, align);
      if (extent === undefined) {
        this.#free = before;
        return undefined;
      }
      taken.push(extent);
      left -= extent.pages;
    }
    if (contiguity === 'short-runs') return shortRuns(taken);
    return contiguity === 'scattered' ? scatter(taken) : taken;
  }

  /** Lets go of pages; pinned ones stay until they are unpinned. */
  release(extents: readonly PageExtent[]): void {
    sharedWrite(this, 'free');
    for (const extent of extents) this.#notePins(extent, 0);
    const free: PageExtent[] = [];
    for (const piece of extents.flatMap((extent) => this.#pins.uniformPieces(extent)))
      (this.#pins.count(piece.pfn) > 0 ? this.#orphans : free).push(piece);
    this.#giveBack(free);
  }

  pin(extent: PageExtent): void {
    this.#notePins(extent, 1);
    this.#pins.add(extent, 1);
  }

  unpin(extent: PageExtent): void {
    const isPinned = this.#pins.uniformPieces(extent).every(({ pfn }) => this.#pins.count(pfn) > 0);
    invariant(isPinned, () => `unpin of page ${extent.pfn} that is not pinned`, 'INV-3');
    this.#notePins(extent, -1);
    this.#pins.add(extent, -1);
    const end = extent.pfn + extent.pages;
    const isTouched = (orphan: PageExtent): boolean => orphan.pfn < end && orphan.pfn + orphan.pages > extent.pfn;
    const touched = this.#orphans.filter(isTouched);
    if (touched.length === 0) return;
    this.#orphans = this.#orphans.filter((orphan) => !isTouched(orphan));
    this.release(touched);
  }

  #notePins({ pfn, pages }: PageExtent, change: number): void {
    if (!isWatched()) return;
    const pins = this.#pins.count(pfn);
    sharedRange(this, 'pins of ', pfn * PAGE_BYTES, pages * PAGE_BYTES, true, pins, pins + change);
  }

  /** First fit, at most `pages`, aligned; a run too short for an aligned piece is passed over. */
  #take(pages: number, align: number): PageExtent | undefined {
    for (const [index, run] of this.#free.entries()) {
      const pfn = Math.ceil(run.pfn / align) * align;
      const room = Math.floor((run.pfn + run.pages - pfn) / align) * align;
      if (room <= 0) continue;
      const count = Math.min(pages, room);
      const rest = [
        { pfn: run.pfn, pages: pfn - run.pfn },
        { pfn: pfn + count, pages: run.pfn + run.pages - pfn - count },
      ].filter((piece) => piece.pages > 0);
      this.#free = [...this.#free.slice(0, index), ...rest, ...this.#free.slice(index + 1)];
      return { pfn, pages: count };
    }
    return undefined;
  }

  #giveBack(extents: readonly PageExtent[]): void {
    for (const extent of extents) this.#memory.clearPages(extent.pfn, extent.pages);
    const runs = [...this.#free, ...extents].sort((a, b) => a.pfn - b.pfn);
    const merged: PageExtent[] = [];
    for (const run of runs) {
      const last = merged.at(-1);
      if (last !== undefined && last.pfn + last.pages === run.pfn) {
        merged[merged.length - 1] = { pfn: last.pfn, pages: last.pages + run.pages };
      } else {
        merged.push(run);
      }
    }
    this.#free = merged;
  }
}

/** Runs of three pages, the highest first, so that none goes on where the one before it ends. */
function shortRuns(extents: readonly PageExtent[]): PageExtent[] {
  const runs: PageExtent[] = [];
  for (const { pfn, pages } of extents.toReversed()) {
    for (let end = pfn + pages; end > pfn; end -= SHORT_RUN_PAGES) {
      const first = Math.max(pfn, end - SHORT_RUN_PAGES);
      runs.push({ pfn: first, pages: end - first });
    }
  }
  return runs;
}

/** Single pages in an order in which none follows its physical neighbour (from four pages on, in neither direction). */
function scatter(extents: readonly PageExtent[]): PageExtent[] {
  const pfns = extents.flatMap((extent) => Array.from({ length: extent.pages }, (_, i) => extent.pfn + i));
  if (pfns.length < 4) return pfns.reverse().map((pfn) => ({ pfn, pages: 1 }));
  const half = Math.ceil(pfns.length / 2);
  const order = pfns.map((_, i) => (i % 2 === 0 ? half - 1 - i / 2 : pfns.length - 1 - (i - 1) / 2));
  return order.map((slot) => ({ pfn: pfns[slot] ?? 0, pages: 1 }));
}
