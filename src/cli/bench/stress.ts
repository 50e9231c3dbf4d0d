/** Map-and-unmap pairs of free-running threads on one address space: the kernel's own code, by locks and number of threads. */
import { DEFAULT_OPTIONS, type StressOptions } from '../../stress/options.js';
import { runStress } from '../../stress/supervisor.js';

const SECONDS = 2;

/** Pairs per second of all threads together; every thread has a page of its own in a window of its own. */
export async function measurePairs(threads: number, locks: StressOptions['locks']): Promise<number> {
  const options: StressOptions = {
    ...DEFAULT_OPTIONS,
    workload: 'pairs',
    threads,
    devices: 0,
    locks,
    seconds: SECONDS,
    pauses: false,
  };
  const report = await runStress(options);
  if (report.verdict !== 'held')
    throw new Error(`pairs with ${locks} locks: ${report.violations[0]?.detail ?? report.verdict}`);
  return (report.operations * 1000) / report.runningMs;
}
