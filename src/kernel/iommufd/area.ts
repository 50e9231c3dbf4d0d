/**
 * Areas: mapped ranges of an address space, and the tree that holds them.
 *
 * The tree is the B+tree of src/core in the host's arena, so that free-running threads see the same intervals; its 32-bit
 * values are slots of a store of records: objects of this thread's heap in the deterministic engine, records of the arena
 * (shared-records.ts) where threads share the areas as well. Covered by the `iova_rwsem` of the address space: changes need it for writing, searches
 * for reading. Bounds are bytes, not pages: a domain's page may be smaller than PAGE_SIZE.
 */
import type { Arena } from '../../core/arena.js';
import { IntervalIndex, type Intervals } from '../../core/interval-index.js';
import { invariant } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { ENOMEM } from '../../uapi/errno.js';
import type { WatchedCall } from '../iommu/mapping-check.js';
import { PAGE_SIZE, type IoptPages } from './pages.js';

/** `struct iopt_area`: iova..last shows bytes startByte.. of a pages object. */
export abstract class IoptArea {
  /** What the tree holds for it: its number in the store it was made by. */
  readonly slot: number;
  readonly iova: bigint;
  readonly last: bigint;
  /** Byte of the pages object, counted from the start of its page 0, that `iova` shows. */
  readonly startByte: bigint;
  readonly prot: number;
  /** Undefined while the area is being mapped or unmapped: its IOVAs are taken, nobody may use it (domain.md A6.2). */
  abstract pages: IoptPages | undefined;
  /** True while the pages are pinned for at least one domain (`storage_domain`). */
  abstract isFilled: boolean;
  /** No new access may pin: an unmap is waiting for the present ones. */
  abstract preventAccess: boolean;
  /** Pinned accesses. */
  abstract numAccesses: number;
  /** The MAP that made it, for whoever watches. */
  watched: WatchedCall;
  /** Objects that forbid unmapping (hardware queues). */
  abstract numLocks: number;

  constructor(slot: number, iova: bigint, lengthBytes: bigint, startByte: bigint, prot: number) {
    this.slot = slot;
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

/** An area of one thread. */
class HeapArea extends IoptArea {
  #pages: IoptPages | undefined;
  #isFilled = false;
  #preventAccess = false;
  #numAccesses = 0;
  #numLocks = 0;

  override get pages(): IoptPages | undefined {
    sharedRead(this, 'pages', this.#pages);
    return this.#pages;
  }

  override set pages(value: IoptPages | undefined) {
    sharedWrite(this, 'pages', this.#pages, value);
    this.#pages = value;
  }

  override get isFilled(): boolean {
    sharedRead(this, 'isFilled', this.#isFilled);
    return this.#isFilled;
  }

  override set isFilled(value: boolean) {
    sharedWrite(this, 'isFilled', this.#isFilled, value);
    this.#isFilled = value;
  }

  override get preventAccess(): boolean {
    sharedRead(this, 'preventAccess', this.#preventAccess);
    return this.#preventAccess;
  }

  override set preventAccess(value: boolean) {
    sharedWrite(this, 'preventAccess', this.#preventAccess, value);
    this.#preventAccess = value;
  }

  override get numAccesses(): number {
    sharedRead(this, 'numAccesses', this.#numAccesses);
    return this.#numAccesses;
  }

  override set numAccesses(value: number) {
    sharedWrite(this, 'numAccesses', this.#numAccesses, value);
    this.#numAccesses = value;
  }

  override get numLocks(): number {
    sharedRead(this, 'numLocks', this.#numLocks);
    return this.#numLocks;
  }

  override set numLocks(value: number) {
    sharedWrite(this, 'numLocks', this.#numLocks, value);
    this.#numLocks = value;
  }
}

/** Where the areas of a tree are kept. */
export interface AreaStore {
  /** A new area in no tree yet, hidden, that is to show these pages; undefined when there is no room for one. */
  make(iova: bigint, lengthBytes: bigint, startByte: bigint, prot: number, pages: IoptPages): IoptArea | undefined;
  at(slot: number): IoptArea | undefined;
  /** The area is in no tree (any more). */
  free(area: IoptArea): void;
}

/** Areas of one thread. */
class HeapAreas implements AreaStore {
  readonly #slots: (IoptArea | undefined)[] = [];
  readonly #freeSlots: number[] = [];

  make(iova: bigint, lengthBytes: bigint, startByte: bigint, prot: number): IoptArea {
    const slot = this.#freeSlots.pop() ?? this.#slots.length;
    return (this.#slots[slot] = new HeapArea(slot, iova, lengthBytes, startByte, prot));
  }

  at(slot: number): IoptArea | undefined {
    return this.#slots[slot];
  }

  free({ slot }: IoptArea): void {
    this.#slots[slot] = undefined;
    this.#freeSlots.push(slot);
  }
}

const TOP = 2n ** 64n - 1n;

/** The areas of one address space. */
export class AreaTree {
  readonly #index: Intervals;
  readonly #store: AreaStore;

  /** An empty tree of areas of this thread, or -ENOMEM. */
  static create(arena: Arena): AreaTree | number {
    const index = IntervalIndex.create(arena);
    return typeof index === 'number' ? index : new AreaTree(index, new HeapAreas());
  }

  /** A tree over intervals and records that may be shared. */
  constructor(index: Intervals, store: AreaStore) {
    this.#index = index;
    this.#store = store;
  }

  get size(): number {
    sharedRead(this, 'areas');
    return this.#index.size;
  }

  /** A new area in no tree yet, to be inserted, that is to show these pages one day; undefined when there is no memory. */
  make(iova: bigint, lengthBytes: bigint, startByte: bigint, prot: number, pages: IoptPages): IoptArea | undefined {
    return this.#store.make(iova, lengthBytes, startByte, prot, pages);
  }

  /** 0 or -ENOMEM (the area is freed then). The range must be free. */
  insert(area: IoptArea): number {
    const rc = this.#index.insert(area.iova, area.last, area.slot);
    if (rc < 0) {
      invariant(rc === -ENOMEM, () => `area tree: insert failed with ${rc}`);
      this.#store.free(area);
    }
    if (rc === 0) sharedWrite(this, 'areas', undefined, area);
    return rc;
  }

  /** Takes an area out and frees it. */
  remove(area: IoptArea): void {
    const slot = this.#index.remove(area.iova, area.last);
    invariant(slot === area.slot, 'area tree: removed area is not there');
    sharedWrite(this, 'areas', area, undefined);
    this.#store.free(area);
  }

  /** The lowest area that overlaps start..last. */
  firstOverlap(start: bigint, last: bigint): IoptArea | undefined {
    sharedRead(this, 'areas');
    const slot = this.#index.firstOverlap(start, last);
    return slot === undefined ? undefined : this.#store.at(slot);
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
