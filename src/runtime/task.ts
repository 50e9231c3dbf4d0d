/**
 * Tasks: everything that happens inside a node is a generator.
 *
 * A task yields where the real thing could be pre-empted or would wait:
 *   - a **gate** (a string `layer:point`): a scheduling point; the task stays ready and the scheduler may prefer another;
 *   - a **delay** (a number of virtual nanoseconds): the task is ready again that much later;
 *   - a {@link WaitQueue}: the task is parked until somebody wakes the queue.
 * Code calls other code with `yield*`, so a stack of kernel functions is a stack of generators. Between two yields a task
 * is atomic. Tasks never see promises: virtual time, not the platform's job queue, orders them.
 */

import type { InvariantId } from './invariants.js';
import { sharedRead, sharedWrite } from './watch.js';

/** A scheduling point by name, `layer:point`, e.g. `iommufd:map-inserted`. */
export type Gate = `${string}:${string}`;

/** What a task may yield. */
export type Wait = Gate | number | WaitQueue;

/** A task that returns `T`. */
export type Task<T> = Generator<Wait, T, void>;

/** What a wait queue needs of whoever waits in it. */
export interface Waiter {
  readonly name: string;
  makeReady(): void;
}

/** Parked tasks, woken first come first served. A woken task re-checks its condition: wake-ups may be spurious. */
export class WaitQueue {
  readonly name: string;
  readonly #waiters: Waiter[] = [];

  constructor(name: string) {
    this.name = name;
  }

  get length(): number {
    return this.#waiters.length;
  }

  park(waiter: Waiter): void {
    sharedWrite(this, 'waiters', undefined, waiter.name);
    this.#waiters.push(waiter);
  }

  wakeOne(): void {
    this.#noteWake();
    this.#waiters.shift()?.makeReady();
  }

  wakeAll(): void {
    this.#noteWake();
    for (const waiter of this.#waiters.splice(0)) waiter.makeReady();
  }

  /** Waking nobody changes nothing, but whoever parks before or after it sees the difference. */
  #noteWake(): void {
    if (this.#waiters.length > 0) sharedWrite(this, 'waiters', this.#waiters[0]?.name, undefined);
    else sharedRead(this, 'waiters');
  }
}

/** A rule of the model was broken: not a guest's or a client's mistake but ours. Ends the run. */
export class InvariantError extends Error {
  override readonly name = 'InvariantError';
  /** Which of {@link INVARIANTS} it is, where it is one of those. */
  readonly id: InvariantId | undefined;

  constructor(message: string, id?: InvariantId) {
    super(id === undefined ? message : `${id}: ${message}`);
    this.id = id;
  }
}

/** Throws {@link InvariantError} unless `condition` holds. A message that says numbers is made only when it is needed. */
export function invariant(condition: boolean, message: string | (() => string), id?: InvariantId): asserts condition {
  if (!condition) throw new InvariantError(typeof message === 'string' ? message : message(), id);
}
