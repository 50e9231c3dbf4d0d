/** Runs with the workers that were built. */
import type { StressOptions } from '../../src/stress/options.js';
import type { StressReport } from '../../src/stress/report.js';
import { runStress as runWith, type StressSurroundings } from '../../src/stress/supervisor.js';

const WORKER = new URL('../../dist/workers/stress.js', import.meta.url);

/** A run of the options given, workers from dist/. */
export function runStress(
  options: StressOptions,
  worker = WORKER,
  around: Omit<StressSurroundings, 'worker'> = {},
): Promise<StressReport> {
  return runWith(options, { ...around, worker });
}
