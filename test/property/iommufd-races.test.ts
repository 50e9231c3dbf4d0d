/**
 * Random programs side by side on one iommufd, each under a few random schedules: no rule is broken, nothing waits for ever, nothing is
 * left. IOVADUCT_SWEEP=N makes it 2 N times as many.
 */
import { expect, test } from 'vitest';
import { runProgram } from '../../src/host/run-program.js';
import { RandomStream } from '../../src/runtime/random.js';
import { randomProgram } from '../fixtures/random-programs.js';

const PROGRAMS = 300 * Number(process.env['IOVADUCT_SWEEP'] ?? 0.5);
const SCHEDULES = 4;

test(`${PROGRAMS} random programs hold under ${SCHEDULES} schedules each`, () => {
  for (let number = 0; number < PROGRAMS; number++) {
    const program = randomProgram(new RandomStream(number, 'program'));
    for (let i = 0; i < SCHEDULES; i++) {
      const schedule = { strategy: 'explored', seed: number * SCHEDULES + i } as const;
      const { failure } = runProgram(program, { seed: 1, schedule });
      expect([number, i, failure?.message]).toEqual([number, i, undefined]);
    }
  }
});
