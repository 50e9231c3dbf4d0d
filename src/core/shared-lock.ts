/**
 * A mutex in the arena for free-running threads: one 32-bit word, taken by compare-and-swap, slept on when contended.
 *
 * Tasks of the deterministic engine use src/runtime/locks.ts instead: they must never block their thread. Not
 * recursive, not fair, no owner check.
 */
import type { Arena } from './arena.js';

/** A mutex at byte offset `offset` (4-byte aligned, initially 0) of an arena. */
export class SharedLock {
  readonly arena: Arena;
  readonly offset: number;

  constructor(arena: Arena, offset: number) {
    this.arena = arena;
    this.offset = offset;
  }

  /** Waits until the lock is ours. Blocks the thread. */
  acquire(): void {
    this.arena.core.lock_acquire(this.offset);
  }

  /** Takes the lock if it is free; true when taken. */
  tryAcquire(): boolean {
    return this.arena.core.lock_try_acquire(this.offset) === 1;
  }

  /** Gives the lock back and wakes a waiter. */
  release(): void {
    this.arena.core.lock_release(this.offset);
  }
}
