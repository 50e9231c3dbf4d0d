/**
 * Sleeping locks for tasks, as the kernel's mutex and rw_semaphore: waiters are woken in the order they came, a newcomer
 * that runs first may take the lock (as the kernel's lock stealing does), a waiting writer holds back later readers. Each lock has a class name (`iopt:domains_rwsem`) so that reports and order checkers can speak of it.
 * Every acquisition is a gate of that name.
 *
 * Kernel code that free-running threads execute as well takes its locks as {@link MutexLock} and {@link RwLock}: the classes
 * here park a task, those of src/core/robust-lock.ts block a thread.
 */
import { invariant, WaitQueue, type Gate, type Task } from './task.js';

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

/** Mutual exclusion between tasks. Not recursive. */
export class Mutex implements MutexLock {
  readonly lockClass: Gate;
  readonly #queue: WaitQueue;
  #held = false;

  constructor(lockClass: Gate) {
    this.lockClass = lockClass;
    this.#queue = new WaitQueue(lockClass);
  }

  get isHeld(): boolean {
    return this.#held;
  }

  *lock(): Task<void> {
    yield this.lockClass;
    while (this.#held) yield this.#queue;
    this.#held = true;
  }

  unlock(): void {
    invariant(this.#held, `${this.lockClass}: unlock of a mutex that nobody holds`);
    this.#held = false;
    this.#queue.wakeOne();
  }
}

/** Many readers or one writer. */
export class RwSemaphore implements RwLock {
  readonly lockClass: Gate;
  readonly #readersQueue: WaitQueue;
  readonly #writersQueue: WaitQueue;
  #readers = 0;
  #hasWriter = false;
  #waitingWriters = 0;

  constructor(lockClass: Gate) {
    this.lockClass = lockClass;
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
    while (this.#hasWriter || this.#waitingWriters > 0) yield this.#readersQueue;
    this.#readers++;
  }

  up_read(): void {
    invariant(this.#readers > 0, `${this.lockClass}: up_read without a reader`);
    this.#readers--;
    if (this.#readers === 0) this.#release();
  }

  *down_write(): Task<void> {
    yield this.lockClass;
    this.#waitingWriters++;
    while (this.#hasWriter || this.#readers > 0) yield this.#writersQueue;
    this.#waitingWriters--;
    this.#hasWriter = true;
  }

  up_write(): void {
    invariant(this.#hasWriter, `${this.lockClass}: up_write without a writer`);
    this.#hasWriter = false;
    this.#release();
  }

  #release(): void {
    if (this.#waitingWriters > 0) this.#writersQueue.wakeOne();
    else this.#readersQueue.wakeAll();
  }
}
