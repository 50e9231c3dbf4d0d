/**
 * Physical directory: which physical pages a host has outside its kernel window, and where their contents are.
 *
 * An entry is one number. 0: no such page. n > 0: the contents are in storage frame n. -(s + 1): nobody wrote to the
 * page yet, its contents are those of *stamp* s (Arena.fillStamp), so that gigabytes of guest memory cost a number a
 * page until they are touched. Every thread of a host may read and write at any time; entries change atomically. A
 * frame in an entry belongs to whoever put it there: clearing or replacing an entry frees nothing.
 */
import type { Arena } from './arena.js';
import { HEADER_DIRECTORY_NODES } from './wasm/layout.js';

/** The stamp of an entry below 0. */
export function entryStamp(entry: number): number {
  return -entry - 1;
}

/** The entry that says "contents of this stamp". `stamp` from 0 (zeroes) to 2^52 - 1. */
export function stampEntry(stamp: number): number {
  return -stamp - 1;
}

/** The physical directory of an arena; any number of these objects stand for the same one. */
export class PhysicalDirectory {
  readonly arena: Arena;

  constructor(arena: Arena) {
    this.arena = arena;
  }

  /** The entry of a page: 0 absent, a frame, or -(stamp + 1). Pages of the kernel window have no entry. */
  get(pfn: number): number {
    return this.arena.core.directory_get(pfn);
  }

  /** Like {@link get}, but a page of the kernel window answers its kernel frame. */
  resolve(pfn: number): number {
    return this.arena.core.directory_resolve(pfn);
  }

  /** Makes `frame` the contents of a page: 0, -ENOMEM, or -ERANGE at and above page 2^40. */
  setFrame(pfn: number, frame: number): number {
    return this.arena.core.directory_set(pfn, frame);
  }

  /** Makes a stamp the contents of a page: 0, -ENOMEM or -ERANGE. */
  setStamp(pfn: number, stamp: number): number {
    return this.arena.core.directory_set(pfn, stampEntry(stamp));
  }

  /** Replaces an entry if it still is `expected`; true when it was. Neither may be 0. */
  replace(pfn: number, expected: number, entry: number): boolean {
    return this.arena.core.directory_replace(pfn, expected, entry) === 1;
  }

  /** Makes a page absent and answers the entry it had, for the caller to free its frame. */
  clear(pfn: number): number {
    return this.arena.core.directory_clear(pfn);
  }

  /**
   * The frame of a page, for writing: a stamp is expanded into a fresh frame first. The frame (a kernel frame within
   * the kernel window), 0 when the page is absent, or -ENOMEM. Threads racing for a page get the same frame.
   */
  materialise(pfn: number): number {
    return this.arena.core.directory_materialise(pfn);
  }

  /** First page at or after `pfn` that has an entry, or -1. */
  nextEntry(pfn: number): number {
    return this.arena.core.directory_next(pfn);
  }

  /** Pages with entries from `first` to `last`, ascending. */
  *pages(first: number, last: number): Generator<number> {
    let pfn = this.nextEntry(first);
    while (pfn !== -1 && pfn <= last) {
      yield pfn;
      pfn = this.nextEntry(pfn + 1);
    }
  }

  /** Storage frames used by the directory itself. */
  get nodeCount(): number {
    return Atomics.load(this.arena.words, HEADER_DIRECTORY_NODES >>> 2);
  }

  /** Frees nodes that hold no entry any more. Only while no other thread uses the directory. */
  trim(): void {
    this.arena.core.directory_trim();
  }
}
