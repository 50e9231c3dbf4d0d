/** Worker entry of `run --jobs`: one whole scenario a task, with its hosts in workers of their own or in this thread. */
import { runJob, type ScenarioJob, type ScenarioJobResult } from '../src/cli/run-one.js';

/** Carries out a job. */
export default function scenarioWorker(job: ScenarioJob): Promise<ScenarioJobResult> {
  return runJob(job);
}
