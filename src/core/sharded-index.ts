/**
 * An interval index in several trees, by window of the address space, so that each window can have a lock of its own.
 *
 * Window w is the addresses w * 2^shift and up; the tree of window w is w modulo the number of trees. An interval that
 * crosses windows has a piece with the same value for each window it touches, so whoever holds the lock of one window sees
 * everything in it. A search looks only into the trees of the windows it spans: hold their locks ({@link shardsOf}), in
 * ascending order of trees.
 *
 * Invariant: the pieces of an interval cover it; every tree holds disjoint pieces.
 */
import type { Arena } from './arena.js';
import { IntervalIndex, type Intervals } from './interval-index.js';

/** How addresses are divided: `count` trees (a power of two, at most 32), windows of 2^`windowShift` bytes. */
export interface Sharding {
  readonly count: number;
  readonly windowShift: number;
}

/** The trees an inclusive range touches, as bits. */
export function shardsOf({ count, windowShift }: Sharding, start: bigint, last: bigint): number {
  const first = start >> BigInt(windowShift);
  const windows = Number((last >> BigInt(windowShift)) - first) + 1;
  if (windows >= count) return 2 ** count - 1;
  let shards = 0;
  for (let i = 0; i < windows; i++) shards |= 1 << ((Number(first % BigInt(count)) + i) % count);
  return shards >>> 0;
}

interface Piece {
  readonly tree: number;
  readonly start: bigint;
  readonly last: bigint;
}

/** Disjoint intervals in several trees. */
export class ShardedIndex implements Intervals {
  readonly sharding: Sharding;
  readonly #trees: readonly IntervalIndex[];

  private constructor(sharding: Sharding, trees: readonly IntervalIndex[]) {
    this.sharding = sharding;
    this.#trees = trees;
  }

  /** An empty index, or -ENOMEM. */
  static create(arena: Arena, sharding: Sharding): ShardedIndex | number {
    const trees: IntervalIndex[] = [];
    for (let i = 0; i < sharding.count; i++) {
      const tree = IntervalIndex.create(arena);
      if (typeof tree === 'number') {
        for (const made of trees) made.destroy();
        return tree;
      }
      trees.push(tree);
    }
    return new ShardedIndex(sharding, trees);
  }

  /** The index another thread created. */
  static open(arena: Arena, sharding: Sharding, handles: readonly number[]): ShardedIndex {
    return new ShardedIndex(
      sharding,
      handles.map((handle) => IntervalIndex.open(arena, handle)),
    );
  }

  /** What another thread passes to {@link open}. */
  get handles(): readonly number[] {
    return this.#trees.map(({ handle }) => handle);
  }

  /** Pieces in all trees: more than there are intervals when some cross windows. */
  get size(): number {
    return this.#trees.reduce((sum, tree) => sum + tree.size, 0);
  }

  /** 0, -EEXIST or -ENOMEM, then nothing has changed. Hold the locks of all trees the interval touches. */
  insert(start: bigint, last: bigint, value: number): number {
    const done: Piece[] = [];
    for (const piece of this.#pieces(start, last)) {
      const rc = this.#tree(piece).insert(piece.start, piece.last, value);
      if (rc < 0) {
        for (const undo of done) this.#tree(undo).remove(undo.start);
        return rc;
      }
      done.push(piece);
    }
    return 0;
  }

  /** Removes the interval {start, last}: its value, or undefined when it is not there. */
  remove(start: bigint, last: bigint): number | undefined {
    let value: number | undefined;
    for (const piece of this.#pieces(start, last)) {
      const removed = this.#tree(piece).remove(piece.start);
      if (removed === undefined) return undefined;
      value = removed;
    }
    return value;
  }

  /** The value of the lowest interval that overlaps {start, last}. */
  firstOverlap(start: bigint, last: bigint): number | undefined {
    const shards = shardsOf(this.sharding, start, last);
    let lowest: { readonly start: bigint; readonly value: number } | undefined;
    for (const [i, tree] of this.#trees.entries()) {
      if (((shards >>> i) & 1) === 0) continue;
      const found = tree.findFirstAtOrAfter(start);
      if (found === undefined || found.start > last) continue;
      if (lowest === undefined || found.start < lowest.start) lowest = found;
    }
    return lowest?.value;
  }

  /** Frees the trees with everything in them. */
  destroy(): void {
    for (const tree of this.#trees) tree.destroy();
  }

  #tree({ tree }: Piece): IntervalIndex {
    const found = this.#trees[tree];
    if (found === undefined) throw new RangeError(`no tree ${tree}`);
    return found;
  }

  *#pieces(start: bigint, last: bigint): Generator<Piece> {
    const { count, windowShift } = this.sharding;
    const shift = BigInt(windowShift);
    for (let at = start; at <= last;) {
      const window = at >> shift;
      const end = ((window + 1n) << shift) - 1n;
      yield { tree: Number(window % BigInt(count)), start: at, last: end < last ? end : last };
      at = end + 1n;
    }
  }
}
