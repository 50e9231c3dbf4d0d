/** A program on a kernel-only machine, in this thread or in a worker of its own: the outcome is the same. */
import type { Program } from '../host/program.js';
import type { ProgramOutcome } from '../host/run-program.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import { RemoteHostNode } from './remote-node.js';
import type { Placement } from './run.js';

/** What a worker is asked to run; plain data. */
export interface ProgramRequest {
  readonly program: Program;
  readonly seed: number;
  readonly schedule: ScheduleSpec;
}

/** Runs a program. @throws NodeFailure when the worker dies */
export async function runProgramAt(placement: Placement, request: ProgramRequest): Promise<ProgramOutcome> {
  if (placement === 'workers') return await RemoteHostNode.runProgram(request);
  const { runProgram } = await import('../host/run-program.js');
  const { program, ...options } = request;
  return runProgram(program, options);
}
