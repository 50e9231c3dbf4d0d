/**
 * Areas: mapped ranges of an address space, and the tree that holds them.
 *
 * The tree is the B+tree of src/core in the host's arena, so that free-running threads see the same intervals; its 32-bit
 * values are slots of this table. Covered by the `iova_rwsem` of the address space: changes need it for writing, searches
 * for reading. Bounds are bytes, not pages: a domain's page may be smaller than PAGE_SIZE.
 */
import type { Arena } from '../../core/arena.js';
import { IntervalIndex } from '../../core/interval-index.js';
import { invariant } from '../../runtime/task.js';
import { ENOMEM } from '../../uapi/errno.js';
import type { WatchedCall } from '../iommu/mapping-check.js';
import { PAGE_SIZE, type IoptPages } from './pages.js';

/** `struct iopt_area`: iova..last shows bytes startByte.. of a pages object. */
export class IoptArea {
  readonly iova: bigint;
  readonly last: bigint;
  /** Byte of the pages object, counted from the start of its page 0, that `iova` shows. */
  readonly startByte: bigint;
  readonly prot: number;
  /** Undefined while the area is being mapped or unmapped: its IOVAs are taken, nobody may use it (domain.md A6.2). */
  pages: IoptPages | undefined;
  /** True while the pages are pinned for at least one domain (`storage_domain`). */
  isFilled = false;
  /** No new access may pin: an unmap is waiting for the present ones. */
  preventAccess = false;
  /** Pinned accesses. */
  numAccesses = 0;
  /** The MAP that made it, for whoever watches. */
  watched: WatchedCall;
  /** Objects that forbid unmapping (hardware queues). */
  numLocks = 0;

  constructor(iova: bigint, lengthBytes: bigint, startByte: bigint, prot: number) {
    this.iova = iova;
    this.last = iova + lengthBytes - 1n;
    this.startByte = startByte;
    this.prot = prot;
  }

  get lengthBytes(): bigint {
    return this.last - this.iova + 1n;
  }

  /** First and last page of the pages object. */
  get firstPage(): number {
    return Number(this.startByte / PAGE_SIZE);
  }

  get lastPage(): number {
    return Number((this.startByte + this.lengthBytes - 1n) / PAGE_SIZE);
  }

  /** The byte of the pages object behind an IOVA of the area. */
  byteAt(iova: bigint): bigint {
    return this.startByte + (iova - this.iova);
  }
}

const TOP = 2n ** 64n - 1n;

/** The areas of one address space. */
export class AreaTree {
  readonly #index: IntervalIndex;
  readonly #slots: (IoptArea | undefined)[] = [];
  readonly #freeSlots: number[] = [];

  /** An empty tree, or -ENOMEM. */
  static create(arena: Arena): AreaTree | number {
    const index = IntervalIndex.create(arena);
    return typeof index === 'number' ? index : new AreaTree(index);
  }

  private constructor(index: IntervalIndex) {
    this.#index = index;
  }

  get size(): number {
    return this.#index.size;
  }

  /** 0 or -ENOMEM. The range must be free. */
  insert(area: IoptArea): number {
    const slot = this.#freeSlots.pop() ?? this.#slots.length;
    const rc = this.#index.insert(area.iova, area.last, slot);
    if (rc < 0) {
      invariant(rc === -ENOMEM, `area tree: insert failed with ${rc}`);
      this.#freeSlots.push(slot);
      return rc;
    }
    this.#slots[slot] = area;
    return 0;
  }

  remove(area: IoptArea): void {
    const slot = this.#index.remove(area.iova);
    invariant(slot !== undefined && this.#slots[slot] === area, 'area tree: removed area is not there');
    this.#slots[slot] = undefined;
    this.#freeSlots.push(slot);
  }

  /** The lowest area that overlaps start..last. */
  firstOverlap(start: bigint, last: bigint): IoptArea | undefined {
    const found = this.#index.findFirstAtOrAfter(start);
    if (found === undefined || found.start > last) return undefined;
    return this.#slots[found.value];
  }

  /** Areas that overlap start..last, ascending. The tree may change between steps. */
  *overlapping(start = 0n, last = TOP): Generator<IoptArea> {
    let area = this.firstOverlap(start, last);
    while (area !== undefined) {
      yield area;
      if (area.last >= last) return;
      area = this.firstOverlap(area.last + 1n, last);
    }
  }

  /** Frees the tree; it must be empty. */
  destroy(): void {
    invariant(this.size === 0, 'area tree: destroyed with areas in it');
    this.#index.destroy();
  }
}
