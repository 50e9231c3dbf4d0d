/** Lays out the arena of a run: everything that threads share, before there are threads. */
import { Arena } from '../core/arena.js';
import { IntervalIndex } from '../core/interval-index.js';
import { PageTable, pageSizesOf } from '../core/page-table.js';
import { ShardedIndex } from '../core/sharded-index.js';
import { SharedRecords } from '../kernel/iommufd/shared-records.js';
import { invariant } from '../runtime/task.js';
import { QUEUE_ORDER } from './command-queue.js';
import { DEVICE_CACHE_BYTES } from './device-walker.js';
import { historyBytes } from './history.js';
import type { StressOptions } from './options.js';
import {
  CACHE_STRIDE,
  CONTROL_ORDER,
  MAIN_THREAD,
  SHARDING,
  clientThreads,
  deviceThreads,
  type StressLayout,
} from './spec.js';

const GRANULE_SHIFT = 12;
const INPUT_BITS = 48;
/** RAM of the host: translation tables and the clients' memory. */
const KERNEL_FRAMES = 24_576;
const STORAGE_FRAMES = 8192;
const KERNEL_BASE_PFN = 0x80000;
/** User memory is so many runs of 2^12 pages. */
const MEMORY_RUNS = 2;
const MEMORY_ORDER = 12;
const RECORDS = 4096;
const CLIENT_RECORDS = 49_152;
const DEVICE_RECORDS = 65_536;

function storage(arena: Arena, order: number): number {
  const frame = arena.allocFrame(order);
  invariant(frame !== 0, 'stress: the arena is too small');
  return arena.frameOffset(frame);
}

function createIndex(arena: Arena, { locks }: StressOptions): readonly number[] {
  const index = locks === 'sharded' ? ShardedIndex.create(arena, SHARDING) : IntervalIndex.create(arena);
  invariant(typeof index !== 'number', 'stress: no memory for the area index');
  return 'handles' in index ? index.handles : [index.handle];
}

function createMemory(arena: Arena): StressLayout['memory'] {
  const pages = 2 ** MEMORY_ORDER;
  return Array.from({ length: MEMORY_RUNS }, () => {
    const frame = arena.allocKernel(MEMORY_ORDER);
    invariant(frame !== 0, 'stress: no memory for the clients');
    return { pfn: arena.frameToPfn(frame), pages };
  });
}

function createHistories(options: StressOptions): SharedArrayBuffer[] {
  const histories = [0, MAIN_THREAD].map(() => new SharedArrayBuffer(historyBytes(CLIENT_RECORDS)));
  for (const thread of clientThreads(options)) histories[thread] = new SharedArrayBuffer(historyBytes(CLIENT_RECORDS));
  for (const thread of deviceThreads(options)) histories[thread] = new SharedArrayBuffer(historyBytes(DEVICE_RECORDS));
  return histories;
}

/** A new arena and where things lie in it. */
export function buildLayout(options: StressOptions): { readonly arena: Arena; readonly layout: StressLayout } {
  const arena = Arena.create({
    kernelFrames: KERNEL_FRAMES,
    storageFrames: STORAGE_FRAMES,
    kernelBasePfn: KERNEL_BASE_PFN,
  });
  const memory = createMemory(arena);
  const table = PageTable.create(arena, {
    stage: 1,
    granuleShift: GRANULE_SHIFT,
    inputBits: INPUT_BITS,
    outputBits: INPUT_BITS,
    pageSizes: pageSizesOf(GRANULE_SHIFT),
  });
  const records = SharedRecords.allocate(arena, RECORDS, MAIN_THREAD);
  invariant(typeof table !== 'number' && records !== undefined, 'stress: the arena is too small');
  invariant(DEVICE_CACHE_BYTES <= CACHE_STRIDE, "stress: a device's caches have no room");
  const layout: StressLayout = {
    arena: arena.handle,
    table: table.handle,
    index: createIndex(arena, options),
    records,
    memory,
    control: storage(arena, CONTROL_ORDER),
    queue: storage(arena, QUEUE_ORDER),
    pins: storage(arena, Math.ceil(Math.log2(KERNEL_FRAMES / 1024))),
    caches: storage(arena, Math.ceil(Math.log2((Math.max(1, options.devices) * CACHE_STRIDE) / 4096))),
    histories: createHistories(options),
  };
  return { arena, layout };
}
