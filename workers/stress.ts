/** Worker entry of `stress`: one client or one device, over the arena it shares with the others. */
import { parentPort, workerData } from 'node:worker_threads';
import { runThread } from '../src/stress/run-thread.js';
import type { ThreadSpec } from '../src/stress/spec.js';

runThread(workerData as ThreadSpec, (end) => parentPort?.postMessage(end));
