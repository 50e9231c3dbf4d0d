/**
 * A thread that hammers the structures of a shared arena; started by threads.test.ts.
 *
 * Every thread has IOVA pages, physical pages and intervals of its own, but next to those of the others: in each
 * round all of them meet at a barrier and then need the same new tables, directory nodes and bitmap words at the same
 * moment. A thread checks what it reads after its own changes and posts the number of surprises.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { ArenaHandle } from '../../src/core/arena.js';
import { Arena } from '../../src/core/arena.js';
import { Bitmap } from '../../src/core/bitmap.js';
import { IntervalIndex } from '../../src/core/interval-index.js';
import { PageTable } from '../../src/core/page-table.js';
import { PhysicalDirectory } from '../../src/core/physical-directory.js';
import { SharedLock } from '../../src/core/shared-lock.js';
import { TableWalker, WALK_LEAF } from '../../src/core/table-walk.js';

/** What the test passes to each thread. */
export interface HammerTask {
  readonly arena: ArenaHandle;
  readonly table: number;
  readonly index: number;
  readonly bitmapOffset: number;
  /** A shared frame: the lock, a word that is 1 once the main thread gave the lock away, and the barrier's counter. */
  readonly sharedOffset: number;
  readonly thread: number;
  readonly threads: number;
  readonly rounds: number;
}

/** Words of the shared frame. */
export const SHARED = { lock: 0, opened: 1, arrived: 2 } as const;

/** Physical pages all threads materialise, one a round; their stamps are the round. */
export const COMMON_PFN = 2 ** 30;

function run(task: HammerTask): number {
  const arena = Arena.attach(task.arena);
  const table = PageTable.open(arena, task.table);
  const directory = new PhysicalDirectory(arena);
  const index = IntervalIndex.open(arena, task.index);
  const bitmap = Bitmap.at(arena, task.bitmapOffset, 32768);
  const walker = new TableWalker(arena);
  const shared = task.sharedOffset >>> 2;
  const lock = new SharedLock(arena, task.sharedOffset + 4 * SHARED.lock);
  const gather = { head: 0 };
  let surprises = 0;

  const expectEqual = (found: number, expected: number): void => {
    if (found !== expected) surprises++;
  };

  const meet = (round: number): void => {
    const everyone = (round + 1) * task.threads;
    Atomics.add(arena.words, shared + SHARED.arrived, 1);
    while (Atomics.load(arena.words, shared + SHARED.arrived) < everyone);
  };

  /** A new gibibyte each round: two new tables, wanted by all threads at once. */
  const hammerPageTable = (round: number): void => {
    const page = round * 2 ** 18 + task.thread;
    expectEqual(table.mapStep(page, round + 1, 1, 0x400, 0, gather), 1);
    for (let n = 1; n < 8; n++) expectEqual(table.mapStep(page + n * task.threads, n, 1, 0x400, 0, gather), 1);
    expectEqual(walker.walk(table.rootAddress, 0, table.startLevel, 12, page), WALK_LEAF);
    expectEqual(walker.outPfn, round + 1);
    for (let n = 0; n < 8; n++) expectEqual(table.unmapStep(page + n * task.threads, 1, gather), 1);
    expectEqual(table.translate(page), -1);
    const own = 2 ** 30 + task.thread * 512;
    for (const pa of [1, 512]) {
      for (let done = 0; done < 512;) done += table.mapStep(own + done, pa + done, 512 - done, 0x400, 0, gather);
      expectEqual(table.translate(own + 511), pa + 511);
      expectEqual(table.unmapStep(own, 512, gather), 512);
      table.freeGathered(gather);
    }
  };

  const hammerDirectory = (round: number): void => {
    const own = 2 ** 32 + round * 512 + task.thread;
    directory.setStamp(own, round + 1);
    const common = directory.materialise(COMMON_PFN + round);
    const frame = directory.materialise(own);
    expectEqual(arena.frameHash(frame) === arena.stampHash(round + 1) ? 1 : 0, 1);
    expectEqual(directory.clear(own), frame);
    arena.freeFrame(frame);
    expectEqual(directory.get(COMMON_PFN + round), common);
  };

  /** Only the lock keeps the index whole. */
  const hammerIndex = (round: number): void => {
    for (let n = 0; n < 10; n++) {
      const start = BigInt(((n * 37 + round) % 300) * task.threads + task.thread) * 16n;
      lock.acquire();
      expectEqual(index.insert(start, start + 15n, round), 0);
      lock.release();
      bitmap.setRange((round * 10 + n) * task.threads + task.thread, 1);
      lock.acquire();
      expectEqual(index.remove(start) ?? -1, round);
      lock.release();
    }
  };

  lock.acquire();
  expectEqual(Atomics.load(arena.words, shared + SHARED.opened), 1);
  lock.release();
  for (let round = 0; round < task.rounds; round++) {
    meet(round);
    hammerPageTable(round);
    hammerDirectory(round);
    hammerIndex(round);
  }
  arena.detach();
  return surprises;
}

parentPort?.postMessage(run(workerData as HammerTask));
