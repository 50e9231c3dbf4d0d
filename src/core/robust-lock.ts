/**
 * Sleeping locks in the arena for free-running threads: the mutex and the rw_semaphore of kernel code that blocks its thread.
 *
 * They have the interface of the task locks (src/runtime/locks.ts), so the same kernel functions take either. A lock is a
 * gate of its class first, then spins a little, then sleeps on a futex word. As in the kernel a newcomer may take a lock
 * that was just released, and a waiting writer holds back later readers.
 *
 * **Robust**: every word says *which* threads it is about, one bit or number for each, so the state of a lock is never a
 * count that a dead thread has left too high. Whoever supervises the threads asks each lock after a death what the dead thread
 * held (`heldBy`). A thread that dies holding a lock for itself may have left what the lock covers torn; then the supervisor
 * *poisons* the lock space, and every present and later attempt to lock ends in {@link OwnerDiedError}; the lock stays shut. Sleepers
 * look for that themselves every {@link SLEEP_MS}: no missed wake-up can hang one. Else `forget` takes the dead thread's claims back.
 *
 * Words of a lock (a cache line of its own): 0 state, 1 sleepers, 2 sequence (the futex word, moved by every release that
 * sleepers may wait for), 3 waiting writers. State of a mutex: the owner's number. State of an rw_semaphore: bit n - 1 for
 * reader n, the writer's number above. Thread numbers are 1 to {@link MAX_THREADS}.
 *
 * Invariants: a writer excludes everybody; sequence moves after the state did, so who saw the old state sees it move.
 */
import type { MutexLock, RwLock } from '../runtime/locks.js';
import { invariant, type Gate, type Task } from '../runtime/task.js';
import { EOWNERDEAD } from '../uapi/errno.js';
import type { Arena } from './arena.js';

/** Bytes of a lock in the arena; zeroed is unlocked. */
export const LOCK_BYTES = 64;
/** Most threads that share locks. */
export const MAX_THREADS = 24;

const STATE = 0;
const SLEEPERS = 1;
const SEQUENCE = 2;
const WRITERS = 3;
const FREE = 0;
const READERS = 2 ** MAX_THREADS - 1;
const WRITER_SHIFT = MAX_THREADS;
const SPINS = 200;
/** Longest sleep before a waiter looks again, milliseconds. */
const SLEEP_MS = 20;

/** A thread died while it held a lock: what it covers is given up, and so is this attempt. */
export class OwnerDiedError extends Error {
  override readonly name = 'OwnerDiedError';
  readonly errno = EOWNERDEAD;

  constructor(what: string) {
    super(`${what}: a thread died holding a lock of this address space`);
  }
}

/** How a thread holds a lock. */
export type Held = 'write' | 'read';

/** One thread among those that share locks: its number, and the word that gives all of them up. */
export class LockThread {
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly number: number;
  readonly #poison: number;

  /** `number` from 1 to {@link MAX_THREADS}; `poisonOffset`: byte offset of a word that is 0 while all is well. */
  constructor(arena: Arena, number: number, poisonOffset: number) {
    invariant(number >= 1 && number <= MAX_THREADS, () => `thread ${number} of ${MAX_THREADS}`);
    this.words = arena.words;
    this.number = number;
    this.#poison = poisonOffset >>> 2;
  }

  /** Ends every wait of every thread, now and later. */
  poison(): void {
    Atomics.store(this.words, this.#poison, 1);
  }

  get isPoisoned(): boolean {
    return Atomics.load(this.words, this.#poison) !== 0;
  }

  /** @throws OwnerDiedError once the locks are poisoned. */
  check(what: string): void {
    if (this.isPoisoned) throw new OwnerDiedError(what);
  }
}

function bitOf(thread: number): number {
  return 1 << (thread - 1);
}

/** What both kinds of lock are made of. */
class LockWords {
  readonly lockClass: Gate;
  protected readonly words: Int32Array<SharedArrayBuffer>;
  protected readonly at: number;
  protected readonly self: LockThread;

  constructor(self: LockThread, offset: number, lockClass: Gate) {
    this.words = self.words;
    this.at = offset >>> 2;
    this.self = self;
    this.lockClass = lockClass;
  }

  protected get state(): number {
    return Atomics.load(this.words, this.at + STATE);
  }

  /** Tries until `attempt` succeeds: spins, then sleeps. */
  protected acquire(attempt: () => boolean): void {
    const { words, at, self } = this;
    for (let spin = 0; spin < SPINS; spin++) {
      if (attempt()) return;
    }
    const bit = bitOf(self.number);
    Atomics.or(words, at + SLEEPERS, bit);
    try {
      for (;;) {
        const sequence = Atomics.load(words, at + SEQUENCE);
        self.check(this.lockClass);
        if (attempt()) return;
        Atomics.wait(words, at + SEQUENCE, sequence, SLEEP_MS);
      }
    } finally {
      Atomics.and(words, at + SLEEPERS, ~bit);
    }
  }

  /** The state changed in favour of sleepers. */
  protected wake(): void {
    if (Atomics.load(this.words, this.at + SLEEPERS) === 0) return;
    Atomics.add(this.words, this.at + SEQUENCE, 1);
    Atomics.notify(this.words, this.at + SEQUENCE);
  }
}

/** A mutex at a byte offset of the arena. */
export class RobustMutex extends LockWords implements MutexLock {
  get isHeld(): boolean {
    return this.state !== FREE;
  }

  *lock(): Task<void> {
    yield this.lockClass;
    this.self.check(this.lockClass);
    this.acquire(() => Atomics.compareExchange(this.words, this.at + STATE, FREE, this.self.number) === FREE);
  }

  unlock(): void {
    const before = Atomics.compareExchange(this.words, this.at + STATE, this.self.number, FREE);
    invariant(before === this.self.number, () => `${this.lockClass}: unlock of a mutex that thread ${before} holds`);
    this.wake();
  }

  /** How a thread holds the lock. */
  heldBy(thread: number): Held | undefined {
    return this.state === thread ? 'write' : undefined;
  }

  /** A thread is dead: it neither holds the lock nor waits for it any more. */
  forget(thread: number): void {
    Atomics.and(this.words, this.at + SLEEPERS, ~bitOf(thread));
    if (Atomics.compareExchange(this.words, this.at + STATE, thread, FREE) === thread) this.wake();
  }
}

/** An rw_semaphore at a byte offset of the arena. */
export class RobustRwSemaphore extends LockWords implements RwLock {
  get isHeld(): boolean {
    return this.state !== FREE;
  }

  get isHeldForWrite(): boolean {
    return this.state > READERS;
  }

  *down_read(): Task<void> {
    yield this.lockClass;
    this.self.check(this.lockClass);
    const { words, at } = this;
    const bit = bitOf(this.self.number);
    this.acquire(() => {
      const state = Atomics.load(words, at + STATE);
      if (state > READERS || Atomics.load(words, at + WRITERS) !== 0) return false;
      return Atomics.compareExchange(words, at + STATE, state, state | bit) === state;
    });
  }

  up_read(): void {
    const bit = bitOf(this.self.number);
    const before = Atomics.and(this.words, this.at + STATE, ~bit);
    invariant((before & bit) !== 0, () => `${this.lockClass}: up_read of a thread that does not read`);
    if (before === bit) this.wake();
  }

  *down_write(): Task<void> {
    yield this.lockClass;
    this.self.check(this.lockClass);
    const { words, at } = this;
    const writer = this.self.number << WRITER_SHIFT;
    const bit = bitOf(this.self.number);
    if (Atomics.compareExchange(words, at + STATE, FREE, writer) === FREE) return;
    Atomics.or(words, at + WRITERS, bit);
    try {
      this.acquire(() => Atomics.compareExchange(words, at + STATE, FREE, writer) === FREE);
    } finally {
      Atomics.and(words, at + WRITERS, ~bit);
    }
  }

  up_write(): void {
    const writer = this.self.number << WRITER_SHIFT;
    const before = Atomics.compareExchange(this.words, this.at + STATE, writer, FREE);
    invariant(before === writer, () => `${this.lockClass}: up_write of a thread that does not write`);
    this.wake();
  }

  /** How a thread holds the lock. */
  heldBy(thread: number): Held | undefined {
    const { state } = this;
    if (state === thread << WRITER_SHIFT) return 'write';
    return state <= READERS && (state & bitOf(thread)) !== 0 ? 'read' : undefined;
  }

  /** A thread is dead: it neither holds the lock nor waits for it any more. */
  forget(thread: number): void {
    const { words, at } = this;
    const bit = bitOf(thread);
    Atomics.and(words, at + SLEEPERS, ~bit);
    Atomics.and(words, at + WRITERS, ~bit);
    Atomics.compareExchange(words, at + STATE, thread << WRITER_SHIFT, FREE);
    Atomics.and(words, at + STATE, ~bit);
    this.wake();
  }
}
