/**
 * Worker entry of runs in which a thread breaks by itself; `IOVADUCT_BREAKS` in the environment says which one, and how.
 *
 * `client-throws`: client 0, by an error in the middle of a map, of which main hears late; `client-goes`: there, without a word;
 * `client-hangs`: there, for ever. `device-throws`, `device-goes`, `device-hangs`: device 0, at a translation; `device-runs`: it never stands still.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { IoPageTable } from '../../src/kernel/iommufd/io-pagetable.js';
import { InvariantError } from '../../src/runtime/task.js';
import { DeviceWalker } from '../../src/stress/device-walker.js';
import { History } from '../../src/stress/history.js';
import { runThread } from '../../src/stress/run-thread.js';
import { clientThread, deviceThreads, type ThreadSpec } from '../../src/stress/spec.js';
import { StressThread } from '../../src/stress/thread.js';

const CALLS_BEFORE = 20;
/** Several times as long as main needs to look at its threads. */
const LATE_MS = 60;

const spec = workerData as ThreadSpec;
const nowhere = new Int32Array(new SharedArrayBuffer(4));
const [who, what] = (process.env['IOVADUCT_BREAKS'] ?? '').split('-');
let calls = 0;

function breaks(place: string): void {
  if (++calls <= CALLS_BEFORE) return;
  if (what === 'goes') process.exit(0);
  if (what === 'hangs') Atomics.wait(nowhere, 0, 0);
  throw new InvariantError(`planted in the middle of a ${place}`);
}

if (who === 'client' && spec.thread === clientThread(0)) {
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its object below
  const { map_pages } = IoPageTable.prototype;
  IoPageTable.prototype.map_pages = function* (...call) {
    breaks('map');
    return yield* map_pages.apply(this, call);
  };
}

if (who === 'device' && what !== 'runs' && spec.thread === deviceThreads(spec.options)[0]) {
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its object below
  const { takeReadFreed } = DeviceWalker.prototype;
  DeviceWalker.prototype.takeReadFreed = function () {
    breaks('translation');
    return takeReadFreed.call(this);
  };
}

if (who === 'device' && what === 'runs' && spec.thread === deviceThreads(spec.options)[0]) {
  Object.defineProperty(StressThread.prototype, 'isPausing', { value: false });
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its object below
  const { dma } = History.prototype;
  History.prototype.dma = function (...told) {
    if (!this.isNearlyFull) dma.apply(this, told);
  };
}

runThread(spec, (end) => {
  if (end.end === 'broke') Atomics.wait(nowhere, 0, 0, LATE_MS);
  parentPort?.postMessage(end);
});
