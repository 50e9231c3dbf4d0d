/** What a stress run can be asked for. Data alone: the command line reads it without loading an arena or a kernel. */

/** Most threads and devices of one run together: a lock knows each by a bit, and main is one. */
export const MAX_RUNNING = 23;

/** Ways to break what the run is about: each must be found. */
export const STRESS_FAULTS = {
  'drop-tlbi': 'a device consumes an invalidation command and forgets nothing',
  'skip-sync': 'an unmap publishes its invalidations and does not wait for CMD_SYNC',
  'free-tables-early': 'a translation table is given back before it was invalidated',
  'drop-lock': 'iova_rwsem is not taken: threads change the areas at once',
  'dirty-lost': 'a write does not set the dirty state of its descriptor',
  'dirty-torn': 'dirty state is set by a load and a store: what others changed in between is undone',
  'leaf-writable': 'a leaf of the translation table lets devices write, although its area is mapped for reading alone',
  'unmap-nothing': 'an unmap answers success now and then, and does nothing',
  'map-nothing': 'a map answers success now and then, and does nothing',
  'map-exists': 'a map answers EEXIST now and then, whatever is there',
  'unmap-busy': 'an unmap answers EBUSY now and then, whatever is there',
} as const;

export type StressFault = keyof typeof STRESS_FAULTS;

/** A client thread dies: the n-th time it comes to a gate, or after it has run for so many milliseconds (and a few more). */
export type Kill =
  | { readonly at: 'gate'; readonly client: number; readonly gate: string; readonly pass: number }
  | { readonly at: 'time'; readonly client: number; readonly afterMs: number };

/** What is to be run. */
export interface StressOptions {
  readonly seed: number;
  /** Client threads, devices; together at most 23. */
  readonly threads: number;
  readonly devices: number;
  /** Wall time, and operations of each client after which to stop earlier; either may be Infinity. */
  readonly seconds: number;
  readonly operations: number;
  readonly locks: 'kernel' | 'sharded';
  readonly invalidation: 'strict' | 'deferred';
  readonly faults: readonly StressFault[];
  readonly kills: readonly Kill[];
  /** Whether threads pause at random places to widen races. */
  readonly pauses: boolean;
  /** What clients do: the mixture, or map and unmap a page of their own over and over. */
  readonly workload: 'mixed' | 'pairs';
}

/** A run with everything at its usual value. */
export const DEFAULT_OPTIONS: StressOptions = {
  seed: 1,
  threads: 2,
  devices: 2,
  seconds: 10,
  operations: Infinity,
  locks: 'kernel',
  invalidation: 'strict',
  faults: [],
  kills: [],
  pauses: true,
  workload: 'mixed',
};
