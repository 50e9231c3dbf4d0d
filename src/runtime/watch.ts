/**
 * Who touches which shared word: what race reports and partial-order reduction are made of.
 *
 * Code that reads or changes something other tasks see says so where it does it ({@link sharedRead}, {@link sharedWrite}); locks and
 * wait queues say it by themselves. Nobody listens in ordinary runs, and then it costs a comparison. A word is an object
 * and the name of a field; pages are words by their address ({@link sharedRange}). Listening never changes a run.
 *
 * The promise: two steps of different tasks of which no access conflicts (same word, one of the two a write) come to the same in either
 * order. Counts that are only added to and taken from commute with each other; they are told as reads ({@link sharedUpdate}), and who
 * decides by such a count as a write ({@link sharedTest}). What the promise leaves out is which number something new gets of
 * memory (frames, addresses of pages): runs that differ in nothing else are the same run.
 *
 * One listener a thread: nodes of one thread take turns, and whoever steps one sets it ({@link watching}).
 */

/** Is told of every access while it listens. */
export interface Watcher {
  /**
   * `before` and `after` are for people: what the word held, where the code at hand knows. A read with two values is an update of a
   * count, a write with one value the test of one.
   */
  access(object: object, field: string, isWrite: boolean, before: unknown, after: unknown): void;
  /** The running task has taken (or given back) a lock. */
  lock(lock: object, lockClass: string, isAcquired: boolean, isShared: boolean): void;
}

let watcher: Watcher | undefined;
let isChecking = false;

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

/**
 * What a checker reads in `body`: the order of steps matters to what it finds, so it is told like any other access, but it is none of the
 * machine that is emulated.
 */
export function asChecker<T>(body: () => T): T {
  const before = isChecking;
  isChecking = true;
  try {
    return body();
  } finally {
    isChecking = before;
  }
}

/** Whether the access that is being told is a checker's. */
export function isOfChecker(): boolean {
  return isChecking;
}

/** The running task reads a shared word. */
export function sharedRead(object: object, field: string, value?: unknown): void {
  if (watcher !== undefined) watcher.access(object, field, false, value, value);
}

/** The running task changes a shared word. */
export function sharedWrite(object: object, field: string, before?: unknown, after?: unknown): void {
  if (watcher !== undefined) watcher.access(object, field, true, before, after);
}

/** The running task adds to a count, or takes from it: in which order does not matter to others that do. */
export function sharedUpdate(object: object, field: string, before?: unknown, after?: unknown): void {
  if (watcher !== undefined) watcher.access(object, field, false, before, after);
}

/** The running task decides by a count that others update. */
export function sharedTest(object: object, field: string, value?: unknown): void {
  if (watcher !== undefined) watcher.access(object, field, true, value, value);
}

/** A reference more or fewer; the one that is the last decides what becomes of the object. */
export function sharedCount(object: object, field: string, before: number, after: number): void {
  if (watcher !== undefined) watcher.access(object, field, after === 0, before, after);
}

const PAGE_BYTES = 4096;

/** A word for each page that a range of addresses touches. `kind` tells several words of one page apart. */
export function sharedRange(
  object: object,
  kind: string,
  start: number,
  lengthBytes: number,
  isWrite: boolean,
  before?: unknown,
  after?: unknown,
): void {
  if (watcher === undefined) return;
  const end = start + lengthBytes;
  for (let page = start - (start % PAGE_BYTES); page < end; page += PAGE_BYTES)
    watcher.access(object, `${kind}0x${page.toString(16)}`, isWrite, before, after);
}

/** Whether anybody listens: for marks that would cost more than a comparison to make. */
export function isWatched(): boolean {
  return watcher !== undefined;
}

/** For the locks of this room only. Readers do not exclude each other. */
export function lockChanged(lock: object, lockClass: string, isAcquired: boolean, isShared: boolean): void {
  if (watcher === undefined) return;
  watcher.access(lock, 'lock', !isShared, undefined, undefined);
  watcher.lock(lock, lockClass, isAcquired, isShared);
}
