/**
 * What main hands to the threads of a run: who is who, and where things lie in the arena.
 *
 * One arena stands for one host. Main (the host's worker of law 5) lays it out once, before any thread runs: a translation
 * table, the records and locks of one address space, user memory, a command queue, and for every thread a block of words
 * others may look at. After that threads reach each other through the arena alone; a {@link StressLayout} is all they are
 * told.
 *
 * Thread numbers: 1 is main, then clients, then devices. They are what locks and records remember.
 */
import type { ArenaHandle } from '../core/arena.js';
import { LOCK_BYTES } from '../core/robust-lock.js';
import type { Sharding } from '../core/sharded-index.js';
import type { SharedRecordsHandle } from '../kernel/iommufd/shared-records.js';
import type { StressOptions } from './options.js';

export const MAIN_THREAD = 1;

/** Number of client `index`, of device `index`, both from 0. */
export function clientThread(index: number): number {
  return MAIN_THREAD + 1 + index;
}

export function deviceThread(options: StressOptions, index: number): number {
  return MAIN_THREAD + 1 + options.threads + index;
}

/** All thread numbers of a kind. */
export function clientThreads({ threads }: StressOptions): number[] {
  return Array.from({ length: threads }, (_, i) => clientThread(i));
}

export function deviceThreads(options: StressOptions): number[] {
  return Array.from({ length: options.devices }, (_, i) => deviceThread(options, i));
}

/** The address space's ASID. */
export const ASID = 1;

/** Sharding of the area index: 1 GiB windows. */
export const SHARDING: Sharding = { count: 16, windowShift: 30 };

/** Where things lie; structured-cloneable. Offsets are bytes in the arena. */
export interface StressLayout {
  readonly arena: ArenaHandle;
  /** Handle of the translation table, and of the tree or trees of the area index. */
  readonly table: number;
  readonly index: readonly number[];
  readonly records: SharedRecordsHandle;
  /** A frame of {@link WORDS}, then of locks, then the block of each thread. */
  readonly control: number;
  readonly queue: number;
  /** Pins of every page of the kernel window. */
  readonly pins: number;
  /** User memory: physical runs in the order of their buffers. */
  readonly memory: readonly { readonly pfn: number; readonly pages: number }[];
  /** TLBs and walk caches of the devices: {@link cacheOffset}. */
  readonly caches: number;
  /** A history buffer for each thread number, from 0. */
  readonly histories: readonly SharedArrayBuffer[];
}

/** What a thread is started with. */
export interface ThreadSpec {
  readonly options: StressOptions;
  readonly layout: StressLayout;
  readonly thread: number;
}

/** Words of the control frame, in words from its start. Each of the first has a cache line to itself. */
export const WORDS = {
  /** Not 0: locks are given up, everybody ends. */
  poison: 0,
  /** Not 0: clients park at their next operation, devices when no client runs. */
  pause: 16,
  /** Not 0: threads end where they would park. */
  stop: 32,
  /** Moves when parked threads may go on (futex). */
  generation: 48,
  /** The counter all stamps come from. */
  stamp: 64,
  /** Charged pages: locked_vm and pinned_vm. */
  lockedVm: 80,
  pinnedVm: 81,
  /** Where clients tell each other what they mapped: page and length, {@link BOARD_SLOTS} times. */
  board: 128,
} as const;
export const BOARD_SLOTS = 128;

/** Byte offset of lock n in the control area: 0 is domains_rwsem, the others are iova_rwsem's. */
export function lockOffset(layout: StressLayout, lock: number): number {
  return layout.control + 4096 + lock * LOCK_BYTES;
}

/** Bytes of a device's caches. */
export const CACHE_STRIDE = 12_288;

/** Byte offset of the caches of a device, by index. */
export function cacheOffset(layout: StressLayout, device: number): number {
  return layout.caches + device * CACHE_STRIDE;
}

/** Words of a thread's block. */
export const BLOCK = {
  /** One of {@link STATE}. */
  state: 0,
  /** Offset of its scratch slot in the arena. */
  scratch: 1,
  /** Operations (clients) or DMAs (devices) done. */
  done: 2,
  /** What a client is at: an OP of history.ts (0: between operations), its first page and length, the gate it came to last. */
  operation: 4,
  firstPage: 5,
  pages: 6,
  gate: 7,
  /** Not 0 from before a client claims slots of the command queue until they are published. */
  publishing: 8,
  /** A device's commands consumed. */
  consumed: 16,
} as const;
const BLOCK_BYTES = 256;

/** `doomed`: stands at the gate where it was planned to die, until main ends it. `dead`: ended by an error, or gone. */
export const STATE = { starting: 0, running: 1, parked: 2, ended: 3, dead: 4, doomed: 5 } as const;

/** Index of word 0 of a thread's block in `arena.words`. */
export function blockWord(layout: StressLayout, thread: number): number {
  return (layout.control + 8192 + thread * BLOCK_BYTES) >>> 2;
}

/** Frames of control, locks and blocks together, as an allocation order. */
export const CONTROL_ORDER = 2;
