/**
 * Interval index: disjoint intervals of the 64-bit space with a 32-bit value each, in an arena (engineering.md D4).
 *
 * A B+tree over storage frames, seen by every thread of the host. It has no lock of its own: whoever owns the index
 * says which lock covers it (Linux: iova_rwsem of the IOAS). Searches start afresh from an address, so the tree may
 * change between two steps of an enumeration. An empty index takes one frame.
 */
import type { Arena } from './arena.js';
import { SCRATCH_INTERVAL_LAST, SCRATCH_INTERVAL_START, SCRATCH_INTERVAL_VALUE } from './wasm/layout.js';

/** An interval {start, last}, both inclusive, and its value (0 to 2^32 - 1). */
export interface Interval {
  readonly start: bigint;
  readonly last: bigint;
  readonly value: number;
}

/** What the owner of intervals needs of whatever keeps them: one tree, or one for each lock ({@link ShardedIndex}). */
export interface Intervals {
  readonly size: number;
  insert(start: bigint, last: bigint, value: number): number;
  remove(start: bigint, last: bigint): number | undefined;
  firstOverlap(start: bigint, last: bigint): number | undefined;
  destroy(): void;
}

const TOP = 2n ** 64n - 1n;

/** An interval index; `handle` opens the same one in another thread. */
export class IntervalIndex implements Intervals {
  readonly arena: Arena;
  readonly handle: number;

  private constructor(arena: Arena, handle: number) {
    this.arena = arena;
    this.handle = handle;
  }

  /** An empty index, or -ENOMEM. */
  static create(arena: Arena): IntervalIndex | number {
    const handle = arena.core.interval_create();
    return handle < 0 ? handle : new IntervalIndex(arena, handle);
  }

  /** The index another thread created. */
  static open(arena: Arena, handle: number): IntervalIndex {
    return new IntervalIndex(arena, handle);
  }

  /** Frees the index with everything in it. */
  destroy(): void {
    this.arena.core.interval_destroy(this.handle);
  }

  /** Number of intervals. */
  get size(): number {
    return this.arena.core.interval_size(this.handle) >>> 0;
  }

  /** Adds an interval: 0, -EEXIST when it overlaps one that is there, -EINVAL when start > last, -ENOMEM. */
  insert(start: bigint, last: bigint, value: number): number {
    return this.arena.core.interval_insert(this.handle, start, last, value);
  }

  /** Removes the interval that starts at `start`: its value, or undefined when none does. */
  remove(start: bigint, _last?: bigint): number | undefined {
    if (this.arena.core.interval_remove(this.handle, start) !== 0) return undefined;
    return this.#value();
  }

  /** Changes the value of the interval that starts at `start`: 0 or -ENOENT. */
  setValue(start: bigint, value: number): number {
    return this.arena.core.interval_set_value(this.handle, start, value);
  }

  /** The first interval whose last is at or after `address`: the one that holds it, or else the next one. */
  findFirstAtOrAfter(address: bigint): Interval | undefined {
    if (this.arena.core.interval_seek(this.handle, address) === 0) return undefined;
    const slot = this.arena.scratchOffset;
    return {
      start: this.arena.longs[(slot + SCRATCH_INTERVAL_START) >>> 3] ?? 0n,
      last: this.arena.longs[(slot + SCRATCH_INTERVAL_LAST) >>> 3] ?? 0n,
      value: this.#value(),
    };
  }

  /** The value of the lowest interval that overlaps {start, last}. */
  firstOverlap(start: bigint, last: bigint): number | undefined {
    const found = this.findFirstAtOrAfter(start);
    return found === undefined || found.start > last ? undefined : found.value;
  }

  /** The interval that holds `address`. */
  find(address: bigint): Interval | undefined {
    const interval = this.findFirstAtOrAfter(address);
    return interval !== undefined && interval.start <= address ? interval : undefined;
  }

  /** The interval after this one. */
  next(interval: Interval): Interval | undefined {
    return interval.last === TOP ? undefined : this.findFirstAtOrAfter(interval.last + 1n);
  }

  /** Intervals that overlap {start, last}, ascending; all of them when not given. */
  *intervals(start = 0n, last = TOP): Generator<Interval> {
    let interval = this.findFirstAtOrAfter(start);
    while (interval !== undefined && interval.start <= last) {
      yield interval;
      interval = this.next(interval);
    }
  }

  #value(): number {
    return this.arena.word(this.arena.scratchOffset + SCRATCH_INTERVAL_VALUE) >>> 0;
  }
}
