/** A failing schedule once more, with somebody looking on: its trace, and what explains the failure. */
import { runProgram } from '../host/run-program.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { Scenario } from '../scenario/load.js';
import { findRace, type Race } from './race.js';
import { raceReport } from './race-report.js';
import { TraceRecorder } from './recorder.js';
import type { Trace } from './trace.js';

/** What is known of a failing schedule. */
export interface Explanation {
  readonly trace: Trace;
  readonly race: Race;
  /** For a terminal. */
  readonly raceText: string;
}

/** Runs a kernel-only scenario under a schedule; undefined for scenarios of whole hosts, of which nobody keeps every step. */
export function explain(scenario: Scenario, seed: number, schedule: ScheduleSpec): Explanation | undefined {
  const program = scenario.kernelOnly?.program;
  if (program === undefined) return undefined;
  const recorder = new TraceRecorder();
  const { failure, events } = runProgram(program, {
    seed,
    schedule,
    observer: recorder,
    onMachine: (machine) => recorder.attach(machine),
  });
  const trace = recorder.trace({
    scenario: scenario.name,
    title: scenario.title,
    program,
    failure,
    events,
    schedule: schedule.strategy === 'deviating' ? schedule.deviations : [],
  });
  const race = findRace(trace);
  return { trace, race, raceText: raceReport(trace, race) };
}
