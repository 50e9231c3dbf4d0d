import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { expect, it } from 'vitest';
import { Bitmap } from '../../src/core/bitmap.js';
import { IntervalIndex } from '../../src/core/interval-index.js';
import { PhysicalDirectory } from '../../src/core/physical-directory.js';
import { SharedLock } from '../../src/core/shared-lock.js';
import type { HammerTask } from './hammer-worker.js';
import { COMMON_PFN, SHARED } from './hammer-worker.js';
import { made, newTable, smallArena } from './fixtures.js';

const WORKER = new URL('../../dist/test/core/hammer-worker.js', import.meta.url);
const THREADS = 2;
const ROUNDS = 1200;

function result(worker: Worker): Promise<number> {
  return new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
    worker.once('exit', (code) => code !== 0 && reject(new Error(`worker ended with ${code}`)));
  });
}

it('keeps one arena whole while threads work on neighbouring parts of it', async () => {
  const arena = smallArena(8192, 8192);
  const table = newTable(arena);
  const index = made(IntervalIndex.create(arena));
  const bitmap = made(Bitmap.create(arena, 32768));
  const directory = new PhysicalDirectory(arena);
  for (let round = 0; round < ROUNDS; round++) directory.setStamp(COMMON_PFN + round, round);
  const sharedOffset = arena.frameOffset(arena.allocFrame());
  const lock = new SharedLock(arena, sharedOffset + 4 * SHARED.lock);
  const task = {
    arena: arena.handle,
    table: table.handle,
    index: index.handle,
    bitmapOffset: bitmap.offset,
    sharedOffset,
    threads: THREADS,
    rounds: ROUNDS,
  };

  expect(lock.tryAcquire()).toBe(true);
  expect(lock.tryAcquire()).toBe(false);
  const workers = Array.from({ length: THREADS }, (_, thread) => {
    return new Worker(WORKER, { workerData: { ...task, thread } satisfies HammerTask });
  });
  try {
    const surprises = Promise.all(workers.map(result));
    // Long enough for the threads to give up spinning and sleep on the lock.
    await sleep(150);
    Atomics.store(arena.words, (sharedOffset >>> 2) + SHARED.opened, 1);
    lock.release();
    expect(await surprises).toEqual(Array(THREADS).fill(0));
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }

  expect(table.nextLeaf(0)).toBeUndefined();
  expect(index.size).toBe(0);
  expect(bitmap.count()).toBe(THREADS * ROUNDS * 10);
  for (let round = 0; round < ROUNDS; round++) {
    const frame = directory.clear(COMMON_PFN + round);
    expect(arena.frameHash(frame)).toBe(arena.stampHash(round));
    arena.freeFrame(frame);
  }
  expect(directory.nextEntry(0)).toBe(-1);
  directory.trim();
  table.destroy();
  index.destroy();
  bitmap.destroy();
  arena.freeFrame(sharedOffset / 4096);
  expect([arena.kernelFramesInUse, arena.storageFramesInUse]).toEqual([0, 0]);
});
