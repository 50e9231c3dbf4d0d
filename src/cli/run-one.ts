/**
 * One scenario as a task: the same function in the main thread and in a pool's worker.
 *
 * Input and output are plain data. The file was read and checked before; its text travels, so a file that changes meanwhile
 * does no harm.
 */
import { executeScenario, type ScenarioOutcome } from '../scenario/execute.js';
import { loadScenario } from '../scenario/load.js';
import { encodeRecording } from '../scenario/recording.js';
import { judgeSabotage, sabotaged } from '../scenario/sabotage.js';
import type { Placement } from '../testbed/run.js';

/** What to run. */
export interface ScenarioJob {
  readonly file: string;
  readonly text: string;
  /** Unless the scenario has one of its own. */
  readonly seed: number;
  readonly placement: Placement;
  /** Whether the bytes of a recording are wanted. */
  readonly isRecorded: boolean;
  /** Whether it runs with the mechanism it is about switched off, and must fail. */
  readonly isSabotaged: boolean;
}

/** What came of it. */
export interface ScenarioJobResult {
  readonly outcome: ScenarioOutcome;
  readonly wallMs: number;
  readonly recording?: Uint8Array;
}

/** Runs a job; `onProgress` is told the virtual time reached. */
export async function runJob(job: ScenarioJob, onProgress?: (virtualNs: number) => void): Promise<ScenarioJobResult> {
  const startMs = performance.now();
  const loaded = loadScenario(job.file, job.text);
  const scenario = job.isSabotaged ? (sabotaged(loaded) ?? loaded) : loaded;
  const { outcome: plain, trace } = await executeScenario(scenario, {
    seed: scenario.seed ?? job.seed,
    placement: job.placement,
    ...(onProgress === undefined ? {} : { onProgress }),
  });
  const outcome = job.isSabotaged ? judgeSabotage(loaded, plain) : plain;
  const wallMs = performance.now() - startMs;
  return job.isRecorded
    ? { outcome, wallMs, recording: encodeRecording(scenario, outcome, trace) }
    : { outcome, wallMs };
}
