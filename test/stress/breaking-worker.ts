/**
 * Worker entry of runs in which kernel code fails in the middle of an operation of client 0: by an error, of which main hears late, or
 * (runs with an even seed) without a word.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { IoPageTable } from '../../src/kernel/iommufd/io-pagetable.js';
import { InvariantError } from '../../src/runtime/task.js';
import { runThread } from '../../src/stress/run-thread.js';
import { clientThread, type ThreadSpec } from '../../src/stress/spec.js';

const MAPS_BEFORE = 20;
/** Several times as long as main needs to look at its threads. */
const LATE_MS = 60;

const spec = workerData as ThreadSpec;
const nowhere = new Int32Array(new SharedArrayBuffer(4));

if (spec.thread === clientThread(0)) {
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its object below
  const { map_pages } = IoPageTable.prototype;
  let maps = 0;
  IoPageTable.prototype.map_pages = function* (...call) {
    if (++maps > MAPS_BEFORE) {
      if (spec.options.seed % 2 === 0) process.exit(0);
      throw new InvariantError('planted in the middle of a map');
    }
    return yield* map_pages.apply(this, call);
  };
}

runThread(spec, (end) => {
  if (end.end === 'broke') Atomics.wait(nowhere, 0, 0, LATE_MS);
  parentPort?.postMessage(end);
});
