/** The order of locks: a circle is reported by whoever closes it, whether the tasks meet or not. Locks that are freed. */
import { describe, expect, test } from 'vitest';
import { freeLocks, Mutex, RwSemaphore, type MutexLock } from '../../src/runtime/locks.js';
import { NodeRuntime } from '../../src/runtime/node-runtime.js';
import { InvariantError, type Task } from '../../src/runtime/task.js';

/** Takes mutexes in this order and gives them back. */
function* taking(locks: readonly MutexLock[]): Task<void> {
  for (const lock of locks) yield* lock.lock();
  for (const lock of locks.toReversed()) lock.unlock();
}

/** Runs tasks one after another, in order; the error that ends the run. */
function errorOf(tasks: Readonly<Record<string, Task<void>>>): { error: InvariantError | undefined; looks: number } {
  const runtime = new NodeRuntime('n', 1);
  try {
    for (const [name, body] of Object.entries(tasks)) {
      runtime.spawn(name, body);
      runtime.scheduler.runUntil(Infinity);
    }
  } catch (error) {
    if (!(error instanceof InvariantError)) throw error;
    return { error, looks: runtime.scheduler.lockOrder.looks };
  }
  return { error: undefined, looks: runtime.scheduler.lockOrder.looks };
}

const mutexes = (): Mutex[] => ['test:a', 'test:b', 'test:c', 'test:d'].map((name) => new Mutex(name as 'test:a'));

describe('a circle', () => {
  test('of two: both chains are told, though the tasks never meet', () => {
    const [a, b] = mutexes() as [Mutex, Mutex];
    const { error } = errorOf({ first: taking([a, b]), second: taking([b, a]) });
    expect(error?.id).toBe('lock-order');
    expect(error?.message).toBe(
      'lock-order: locks in both orders: second takes test:a holding test:b; first took test:b holding test:a',
    );
  });

  test('of three, each by another task: every chain is told', () => {
    const [a, b, c] = mutexes() as [Mutex, Mutex, Mutex];
    const { error } = errorOf({ one: taking([a, b]), two: taking([b, c]), three: taking([c, a]) });
    expect(error?.message).toContain('three takes test:a holding test:c');
    expect(error?.message).toContain('one took test:b holding test:a; two took test:c holding test:b');
  });

  test('through a lock that was held further out', () => {
    const [a, b, c] = mutexes() as [Mutex, Mutex, Mutex];
    const { error } = errorOf({ one: taking([a, b, c]), two: taking([c, a]) });
    expect(error?.message).toContain('one took test:c holding test:a, test:b');
  });

  test('between classes, not between locks: other locks of the same classes close it', () => {
    const [a, b] = mutexes() as [Mutex, Mutex];
    const [otherA, otherB] = mutexes() as [Mutex, Mutex];
    expect(errorOf({ one: taking([a, b]), two: taking([otherB, otherA]) }).error?.id).toBe('lock-order');
  });

  test('of a semaphore read by one: readers count', () => {
    const rwsem = new RwSemaphore('test:rwsem');
    const [a] = mutexes() as [Mutex];
    function* reading(): Task<void> {
      yield* rwsem.down_read();
      yield* a.lock();
      a.unlock();
      rwsem.up_read();
    }
    function* writing(): Task<void> {
      yield* a.lock();
      yield* rwsem.down_write();
      rwsem.up_write();
      a.unlock();
    }
    expect(errorOf({ one: reading(), two: writing() }).error?.id).toBe('lock-order');
  });
});

describe('no circle', () => {
  test('one order by many tasks, with gaps', () => {
    const [a, b, c, d] = mutexes() as [Mutex, Mutex, Mutex, Mutex];
    const { error, looks } = errorOf({
      one: taking([a, b, c, d]),
      two: taking([a, d]),
      three: taking([b, d]),
      four: taking([a, c]),
    });
    expect(error).toBeUndefined();
    expect(looks).toBe(6);
  });

  test('a lock that was given back is not held', () => {
    const [a, b] = mutexes() as [Mutex, Mutex];
    function* oneByOne(): Task<void> {
      yield* taking([a]);
      yield* taking([b]);
      yield* taking([a]);
    }
    expect(errorOf({ one: oneByOne() })).toEqual({ error: undefined, looks: 0 });
  });

  test('given back in the order in which they were taken', () => {
    const [a, b, c] = mutexes() as [Mutex, Mutex, Mutex];
    function* crabwise(): Task<void> {
      yield* a.lock();
      yield* b.lock();
      a.unlock();
      yield* c.lock();
      b.unlock();
      c.unlock();
    }
    const { error } = errorOf({ one: crabwise(), two: taking([a, c]), three: taking([b, c]) });
    expect(error).toBeUndefined();
  });

  test('two nodes have nothing to do with each other', () => {
    const [a, b] = mutexes() as [Mutex, Mutex];
    expect(errorOf({ one: taking([a, b]) }).error).toBeUndefined();
    expect(errorOf({ two: taking([b, a]) }).error).toBeUndefined();
  });
});

describe('locks of one class', () => {
  const pair = (nest?: 'test:outer'): RwSemaphore[] => [
    new RwSemaphore('test:inner', nest),
    new RwSemaphore('test:inner', nest),
  ];
  function* bothUnder(outer: Mutex | undefined, inner: readonly RwSemaphore[]): Task<void> {
    if (outer !== undefined) yield* outer.lock();
    for (const lock of inner) yield* lock.down_write();
    for (const lock of inner) lock.up_write();
    outer?.unlock();
  }

  test('are not held together', () => {
    const { error } = errorOf({ one: bothUnder(undefined, pair()) });
    expect(error?.message).toBe('lock-order: one takes test:inner while it holds a lock of that class');
  });

  test('are held together under the lock that covers it', () => {
    expect(errorOf({ one: bothUnder(new Mutex('test:outer'), pair('test:outer')) }).error).toBeUndefined();
  });

  test('are not held together without it, or where nothing was declared', () => {
    expect(errorOf({ one: bothUnder(undefined, pair('test:outer')) }).error?.id).toBe('lock-order');
    expect(errorOf({ one: bothUnder(new Mutex('test:outer'), pair()) }).error?.id).toBe('lock-order');
  });
});

describe('a lock that goes with what it belongs to', () => {
  const rwsem = (): RwSemaphore => new RwSemaphore('test:rwsem');
  test.each<[string, (lock: Mutex & RwSemaphore) => Task<void>, () => Mutex | RwSemaphore]>([
    ['a mutex', (lock) => lock.lock(), () => new Mutex('test:a')],
    ['a semaphore, for reading', (lock) => lock.down_read(), rwsem],
    ['a semaphore, for writing', (lock) => lock.down_write(), rwsem],
  ])('is held by nobody then, and by nobody later: %s', (_name, take, make) => {
    const held = make();
    const freedWhileHeld = errorOf({
      first: take(held as Mutex & RwSemaphore),
      second: (function* () {
        freeLocks([held]);
      })(),
    });
    expect(freedWhileHeld.error?.message).toMatch(/^objects: test:\w+ is freed while it is held$/);
    const freed = make();
    freeLocks([freed]);
    const takenLater = errorOf({ first: take(freed as Mutex & RwSemaphore) });
    expect(takenLater.error?.message).toMatch(/^objects: test:\w+ is taken, which was freed$/);
  });
});
