/**
 * Who touches which shared word: what race reports and partial-order reduction are made of.
 *
 * Code that reads or changes something other tasks see says so where it does it ({@link sharedRead}, {@link sharedWrite}); locks and
 * wait queues say it by themselves. Nobody listens in ordinary runs, and then it costs a comparison. A word is an object
 * and the name of a field. Listening never changes a run.
 *
 * One listener a thread: nodes of one thread take turns, and whoever steps one sets it ({@link watching}).
 */

/** Is told of every access while it listens. */
export interface Watcher {
  /** `before` and `after` are for people: what the word held, where the code at hand knows. */
  access(object: object, field: string, isWrite: boolean, before: unknown, after: unknown): void;
  /** The running task has taken (or given back) a lock. */
  lock(lock: object, lockClass: string, isAcquired: boolean, isShared: boolean): void;
}

let watcher: Watcher | undefined;

/** Runs `body` with a listener; what listened before listens again afterwards. */
export function watching<T>(listener: Watcher | undefined, body: () => T): T {
  const before = watcher;
  watcher = listener;
  try {
    return body();
  } finally {
    watcher = before;
  }
}

/** The running task reads a shared word. */
export function sharedRead(object: object, field: string, value?: unknown): void {
  if (watcher !== undefined) watcher.access(object, field, false, value, value);
}

/** The running task changes a shared word. */
export function sharedWrite(object: object, field: string, before?: unknown, after?: unknown): void {
  if (watcher !== undefined) watcher.access(object, field, true, before, after);
}

/** For the locks of this room only. */
export function lockChanged(lock: object, lockClass: string, isAcquired: boolean, isShared: boolean): void {
  if (watcher === undefined) return;
  watcher.access(lock, 'lock', true, undefined, undefined);
  watcher.lock(lock, lockClass, isAcquired, isShared);
}
