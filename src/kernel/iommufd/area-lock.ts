/**
 * `iova_rwsem` as one lock for each part of the IOVA space.
 *
 * The areas lie in a {@link ShardedIndex}: each of its trees has a semaphore. A range is locked by taking the semaphores of the
 * trees it touches, in ascending order, so two callers never wait for each other in a circle. To change an area takes all
 * semaphores of its range; to read it, one of them is enough: that is why whoever finds an area that reaches out of the
 * range it has locked may still look at it.
 *
 * A free IOVA is looked for in steps ({@link reaches}): first in one window, then in two, then in all there are. The lowest fit of a
 * step is the lowest of all, since a larger step only adds what lies above; so the answer is the one a single lock gives.
 *
 * Lock order: semaphores of lower trees before those of higher ones, all of them where `iova_rwsem` stands.
 */
import { shardsOf, type Sharding } from '../../core/sharded-index.js';
import type { RwLock } from '../../runtime/locks.js';
import { invariant, type Gate, type Task } from '../../runtime/task.js';
import { IOVA_MAX, type IovaRwsem } from './io-pagetable.js';

/** One semaphore for each tree of a sharded index. */
export class ShardedIovaRwsem implements IovaRwsem {
  readonly reaches: readonly bigint[];
  readonly #sharding: Sharding;
  readonly #locks: readonly RwLock[];

  constructor(sharding: Sharding, locks: readonly RwLock[]) {
    invariant(locks.length === sharding.count, 'one lock for each tree');
    this.#sharding = sharding;
    this.#locks = locks;
    const reaches: bigint[] = [];
    for (let windows = 1n; windows < BigInt(sharding.count); windows *= 2n) {
      reaches.push((windows << BigInt(sharding.windowShift)) - 1n);
    }
    this.reaches = [...reaches, IOVA_MAX];
  }

  get lockClass(): Gate {
    return this.#locks[0]?.lockClass ?? 'iopt:iova_rwsem';
  }

  get isHeld(): boolean {
    return this.#locks.some((lock) => lock.isHeld);
  }

  get isHeldForWrite(): boolean {
    return this.#locks.every((lock) => lock.isHeldForWrite);
  }

  *down_read(start = 0n, last = IOVA_MAX): Task<void> {
    for (const lock of this.#of(start, last)) yield* lock.down_read();
  }

  up_read(start = 0n, last = IOVA_MAX): void {
    for (const lock of this.#of(start, last)) lock.up_read();
  }

  *down_write(start = 0n, last = IOVA_MAX): Task<void> {
    for (const lock of this.#of(start, last)) yield* lock.down_write();
  }

  up_write(start = 0n, last = IOVA_MAX): void {
    for (const lock of this.#of(start, last)) lock.up_write();
  }

  #of(start: bigint, last: bigint): RwLock[] {
    const shards = shardsOf(this.#sharding, start, last < start ? start : last);
    return this.#locks.filter((_, i) => ((shards >>> i) & 1) !== 0);
  }
}
