/**
 * Sleeping locks for tasks, as the kernel's mutex and rw_semaphore: waiters are woken in the order they came, a newcomer
 * that runs first may take the lock (as the kernel's lock stealing does), a waiting writer holds back later readers. Each lock has a class name (`iopt:domains_rwsem`) so that reports and order checkers can speak of it.
 * Every acquisition is a gate of that name, and is held against the order of locks (lock-order.ts).
 *
 * Kernel code that free-running threads execute as well takes its locks as {@link MutexLock} and {@link RwLock}: the classes
 * here park a task, those of src/core/robust-lock.ts block a thread.
 */
import { noteAcquired, noteReleased } from './lock-order.js';
import { invariant, WaitQueue, type Gate, type Task } from './task.js';
import { lockChanged, sharedRead, sharedWrite } from './watch.js';

/** Mutual exclusion, whoever waits. Not recursive. */
export interface MutexLock {
  readonly lockClass: Gate;
  readonly isHeld: boolean;
  lock(): Task<void>;
  unlock(): void;
}

/** Many readers or one writer, whoever waits. */
export interface RwLock {
  readonly lockClass: Gate;
  readonly isHeld: boolean;
  readonly isHeldForWrite: boolean;
  down_read(): Task<void>;
  up_read(): void;
  down_write(): Task<void>;
  up_write(): void;
}

/** What somebody may hold. */
export interface Holdable extends Pick<MutexLock, 'lockClass' | 'isHeld'> {
  /** What it belongs to is freed: nobody takes it any more. */
  free?(): void;
}

/** Locks go with what they belong to: nobody holds them then (`debug_check_no_locks_freed`), or takes them later. @throws InvariantError */
export function freeLocks(locks: readonly Holdable[]): void {
  for (const lock of locks) {
    sharedWrite(lock, 'lock');
    invariant(!lock.isHeld, () => `${lock.lockClass} is freed while it is held`, 'objects');
    lock.free?.();
  }
}

/** What all locks of tasks have. */
abstract class TaskLock {
  readonly lockClass: Gate;
  #isFreed = false;

  constructor(lockClass: Gate) {
    this.lockClass = lockClass;
  }

  free(): void {
    this.#isFreed = true;
  }

  /** The running task has it from now on. */
  protected acquired(nest?: Gate): void {
    invariant(!this.#isFreed, () => `${this.lockClass} is taken, which was freed`, 'objects');
    noteAcquired(this, this.lockClass, nest);
  }
}

/** Mutual exclusion between tasks. Not recursive. */
export class Mutex extends TaskLock implements MutexLock {
  readonly #queue: WaitQueue;
  #held = false;

  constructor(lockClass: Gate) {
    super(lockClass);
    this.#queue = new WaitQueue(lockClass);
  }

  get isHeld(): boolean {
    return this.#held;
  }

  *lock(): Task<void> {
    yield this.lockClass;
    while (this.#held) {
      sharedRead(this, 'lock');
      yield this.#queue;
    }
    this.acquired();
    this.#held = true;
    lockChanged(this, this.lockClass, true, false);
  }

  unlock(): void {
    invariant(this.#held, () => `${this.lockClass}: unlock of a mutex that nobody holds`);
    this.#held = false;
    noteReleased(this);
    lockChanged(this, this.lockClass, false, false);
    this.#queue.wakeOne();
  }
}

/** Many readers or one writer. */
export class RwSemaphore extends TaskLock implements RwLock {
  readonly #nest: Gate | undefined;
  readonly #readersQueue: WaitQueue;
  readonly #writersQueue: WaitQueue;
  #readers = 0;
  #hasWriter = false;
  #waitingWriters = 0;

  /** `nest`: the class of a lock under which several of this class may be held (`down_write_nest_lock`). */
  constructor(lockClass: Gate, nest?: Gate) {
    super(lockClass);
    this.#nest = nest;
    this.#readersQueue = new WaitQueue(`${lockClass} (read)`);
    this.#writersQueue = new WaitQueue(`${lockClass} (write)`);
  }

  get isHeldForWrite(): boolean {
    return this.#hasWriter;
  }

  get isHeld(): boolean {
    return this.#hasWriter || this.#readers > 0;
  }

  *down_read(): Task<void> {
    yield this.lockClass;
    while (this.#hasWriter || this.#waitingWriters > 0) {
      sharedRead(this, 'lock');
      yield this.#readersQueue;
    }
    this.acquired();
    this.#readers++;
    lockChanged(this, this.lockClass, true, true);
  }

  up_read(): void {
    invariant(this.#readers > 0, () => `${this.lockClass}: up_read without a reader`);
    this.#readers--;
    noteReleased(this);
    lockChanged(this, this.lockClass, false, true);
    if (this.#readers === 0) this.#release();
  }

  *down_write(): Task<void> {
    yield this.lockClass;
    this.#waitingWriters++;
    while (this.#hasWriter || this.#readers > 0) {
      // Readers that come now wait: others see that a writer waits.
      sharedWrite(this, 'lock');
      yield this.#writersQueue;
    }
    this.#waitingWriters--;
    this.acquired(this.#nest);
    this.#hasWriter = true;
    lockChanged(this, this.lockClass, true, false);
  }

  up_write(): void {
    invariant(this.#hasWriter, () => `${this.lockClass}: up_write without a writer`);
    this.#hasWriter = false;
    noteReleased(this);
    lockChanged(this, this.lockClass, false, false);
    this.#release();
  }

  #release(): void {
    if (this.#waitingWriters > 0) this.#writersQueue.wakeOne();
    else this.#readersQueue.wakeAll();
  }
}
