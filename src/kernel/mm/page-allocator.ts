/**
 * Physical pages of a host, and who has pinned them.
 *
 * Free memory is a sorted list of runs, so a mapping of a TiB takes a few entries. Pages that are pinned when their owner
 * lets go of them are *orphans*: they return to the free list when the last pin goes, never before (domain.md INV-3).
 */
import type { PhysicalMemory } from '../../hardware/memory.js';
import { invariant } from '../../runtime/task.js';
import type { Contiguity } from '../../uapi/syscall.js';

/** A run of physically contiguous 4 KiB pages. */
export interface PageExtent {
  readonly pfn: number;
  readonly pages: number;
}

const ALIGN_PAGES: Readonly<Record<Contiguity, number>> = { scattered: 1, pages: 1, 'huge-2m': 512, 'huge-1g': 262144 };

/** Pins as a difference list over PFNs: `count(pfn)` is the sum of the steps at or below it. */
class PinCounts {
  readonly #steps = new Map<number, number>();
  #pages = 0;

  get pages(): number {
    return this.#pages;
  }

  add(extent: PageExtent, times: 1 | -1): void {
    this.#step(extent.pfn, times);
    this.#step(extent.pfn + extent.pages, -times);
    this.#pages += times * extent.pages;
  }

  count(pfn: number): number {
    let sum = 0;
    for (const [at, step] of this.#steps) if (at <= pfn) sum += step;
    return sum;
  }

  /** The extent cut where the count changes. */
  uniformPieces(extent: PageExtent): PageExtent[] {
    const end = extent.pfn + extent.pages;
    const cuts = [...this.#steps.keys()].filter((at) => at > extent.pfn && at < end).sort((a, b) => a - b);
    return [extent.pfn, ...cuts].map((pfn, i) => ({ pfn, pages: (cuts[i] ?? end) - pfn }));
  }

  #step(pfn: number, by: number): void {
    const after = (this.#steps.get(pfn) ?? 0) + by;
    if (after === 0) this.#steps.delete(pfn);
    else this.#steps.set(pfn, after);
  }
}

/** The page allocator of a host. */
export class PageAllocator {
  readonly #memory: PhysicalMemory;
  #free: PageExtent[];
  readonly #pins = new PinCounts();
  #orphans: PageExtent[] = [];

  /** `free`: runs of RAM the kernel may hand out, disjoint. */
  constructor(memory: PhysicalMemory, free: readonly PageExtent[]) {
    this.#memory = memory;
    this.#free = [...free].sort((a, b) => a.pfn - b.pfn);
  }

  get freePages(): number {
    return this.#free.reduce((sum, run) => sum + run.pages, 0);
  }

  /** Pins held now, in pages, each pin counted. */
  get pinnedPages(): number {
    return this.#pins.pages;
  }

  /** How often a page is pinned. */
  pinCount(pfn: number): number {
    return this.#pins.count(pfn);
  }

  /** Zeroed pages in mapping order, laid out as `contiguity` says; undefined when there is not enough memory. */
  alloc(pages: number, contiguity: Contiguity): PageExtent[] | undefined {
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
    return contiguity === 'scattered' ? scatter(taken) : taken;
  }

  /** Lets go of pages; pinned ones stay until they are unpinned. */
  release(extents: readonly PageExtent[]): void {
    const free: PageExtent[] = [];
    for (const piece of extents.flatMap((extent) => this.#pins.uniformPieces(extent)))
      (this.#pins.count(piece.pfn) > 0 ? this.#orphans : free).push(piece);
    this.#giveBack(free);
  }

  pin(extent: PageExtent): void {
    this.#pins.add(extent, 1);
  }

  unpin(extent: PageExtent): void {
    invariant(this.#pins.count(extent.pfn) > 0, `unpin of page ${extent.pfn} that is not pinned`);
    this.#pins.add(extent, -1);
    const end = extent.pfn + extent.pages;
    const isTouched = (orphan: PageExtent): boolean => orphan.pfn < end && orphan.pfn + orphan.pages > extent.pfn;
    const touched = this.#orphans.filter(isTouched);
    if (touched.length === 0) return;
    this.#orphans = this.#orphans.filter((orphan) => !isTouched(orphan));
    this.release(touched);
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

/** Single pages in an order in which none follows its physical neighbour (from four pages on, in neither direction). */
function scatter(extents: readonly PageExtent[]): PageExtent[] {
  const pfns = extents.flatMap((extent) => Array.from({ length: extent.pages }, (_, i) => extent.pfn + i));
  if (pfns.length < 4) return pfns.reverse().map((pfn) => ({ pfn, pages: 1 }));
  const half = Math.ceil(pfns.length / 2);
  const order = pfns.map((_, i) => (i % 2 === 0 ? half - 1 - i / 2 : pfns.length - 1 - (i - 1) / 2));
  return order.map((slot) => ({ pfn: pfns[slot] ?? 0, pages: 1 }));
}
