/** Locks in the arena, as far as one thread can see them: who holds what, what a death leaves, what poison does. */
import { describe, expect, test } from 'vitest';
import { LockThread, OwnerDiedError, RobustMutex, RobustRwSemaphore } from '../../src/core/robust-lock.js';
import type { Arena } from '../../src/core/arena.js';
import { InvariantError, type Task } from '../../src/runtime/task.js';
import { smallArena } from './fixtures.js';

function finish<T>(task: Task<T>): T {
  for (;;) {
    const step = task.next();
    if (step.done === true) return step.value;
  }
}

function threads(arena: Arena): { readonly offset: number; readonly one: LockThread; readonly two: LockThread } {
  const offset = arena.frameOffset(arena.allocFrame());
  return { offset, one: new LockThread(arena, 1, offset + 1024), two: new LockThread(arena, 2, offset + 1024) };
}

describe('mutex', () => {
  test('says who holds it, and is given back by nobody else', () => {
    const { offset, one, two } = threads(smallArena());
    const [mine, theirs] = [one, two].map((thread) => new RobustMutex(thread, offset, 'test:mutex')) as [
      RobustMutex,
      RobustMutex,
    ];
    finish(mine.lock());
    expect([theirs.isHeld, theirs.heldBy(1), theirs.heldBy(2)]).toEqual([true, 'write', undefined]);
    expect(() => theirs.unlock()).toThrow(InvariantError);
    mine.unlock();
    finish(theirs.lock());
    mine.forget(2);
    expect(mine.isHeld).toBe(false);
  });

  test('a waiter of a dead owner gets an error once the locks are given up', () => {
    const { offset, one, two } = threads(smallArena());
    finish(new RobustMutex(one, offset, 'test:mutex').lock());
    two.poison();
    expect(() => finish(new RobustMutex(two, offset, 'test:mutex').lock())).toThrow(OwnerDiedError);
    expect(() => one.check('anything')).toThrow(OwnerDiedError);
  });
});

describe('rw_semaphore', () => {
  test('readers share it; a writer is alone; the dead leave it', () => {
    const { offset, one, two } = threads(smallArena());
    const mine = new RobustRwSemaphore(one, offset, 'test:rwsem');
    const theirs = new RobustRwSemaphore(two, offset, 'test:rwsem');
    finish(mine.down_read());
    finish(theirs.down_read());
    expect([mine.heldBy(1), mine.heldBy(2), mine.isHeldForWrite]).toEqual(['read', 'read', false]);
    mine.forget(2);
    mine.up_read();
    expect(() => mine.up_read()).toThrow(InvariantError);
    finish(mine.down_write());
    expect([mine.isHeldForWrite, theirs.heldBy(1)]).toEqual([true, 'write']);
    expect(() => theirs.up_write()).toThrow(InvariantError);
    mine.up_write();
    finish(theirs.down_write());
    mine.forget(2);
    expect(mine.isHeld).toBe(false);
  });
});

test('an allocator whose lock somebody died with gives nothing any more, and nobody waits', () => {
  const arena = smallArena();
  expect(arena.forsake(arena.scratchOffset)).toBe(false);
  expect(arena.allocKernel()).not.toBe(0);
  // The lock word of the kernel region (wasm/layout.ts), as a thread leaves it that dies within.
  const [lock, owner] = [64, 0x3000 + 7 * 256];
  Atomics.store(arena.words, lock >>> 2, owner);
  expect(arena.forsake(owner)).toBe(true);
  expect([arena.allocKernel(), arena.allocFrame()]).toEqual([0, 0]);
});
