/** What a schedule of a kernel-only scenario costs in this thread, with the rules looked at and without. */
import type { Program } from '../../host/program.js';
import { runProgram } from '../../host/run-program.js';
import { invariant } from '../../runtime/task.js';
import { readScenario } from '../../scenario/load.js';

/** Scheduling points a run has at least, on average. */
const POINTS = 200;
const WARM_UP = 3000;
const RUNS = 1000;
const REPEATS = 4;

export interface ExplorationFigures {
  /** Schedules per second of one thread. */
  readonly perSecond: number;
  readonly perSecondUnchecked: number;
  /** Choices among tasks that a run has, on average. */
  readonly points: number;
}

/** Runs schedules from `first` on: seconds a run, and choices of all. */
function explore(program: Program, first: number, runs: number, checks: boolean): { seconds: number; choices: number } {
  let choices = 0;
  const start = performance.now();
  for (let seed = first; seed < first + runs; seed++) {
    const ran = runProgram(program, { seed: 1, schedule: { strategy: 'explored', seed }, checks });
    invariant(ran.failure === undefined, `bench: ${ran.failure?.message ?? ''}`);
    choices += ran.choices.length;
  }
  return { seconds: (performance.now() - start) / 1000 / runs, choices };
}

/** The scenario with its tasks' calls repeated until runs have enough points. */
function longProgram(program: Program): Program {
  for (let times = 1; ; times++) {
    const tasks = program.tasks.map((task) => ({
      ...task,
      calls: Array.from({ length: times }, () => task.calls).flat(),
    }));
    const long = { ...program, tasks };
    if (explore(long, 0, 100, true).choices >= POINTS * 100) return long;
  }
}

/** Measures the kernel-only scenario of a file; the best of several turns each, turn by turn. */
export function measureExploration(file: string): ExplorationFigures {
  const { kernelOnly } = readScenario(file);
  invariant(kernelOnly !== undefined, 'bench: a kernel-only scenario is wanted');
  const program = longProgram(kernelOnly.program);
  for (const checks of [true, false]) explore(program, 0, WARM_UP, checks);
  const best = { checked: Infinity, unchecked: Infinity };
  let choices = 0;
  for (let turn = 0; turn < REPEATS; turn++) {
    best.unchecked = Math.min(best.unchecked, explore(program, turn * RUNS, RUNS, false).seconds);
    const checked = explore(program, turn * RUNS, RUNS, true);
    best.checked = Math.min(best.checked, checked.seconds);
    choices += checked.choices;
  }
  return {
    perSecond: 1 / best.checked,
    perSecondUnchecked: 1 / best.unchecked,
    points: choices / (REPEATS * RUNS),
  };
}
