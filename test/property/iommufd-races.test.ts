/**
 * Random programs side by side on one iommufd, each under a few random schedules: no rule is broken, nothing waits for ever, nothing is
 * left. IOVADUCT_SWEEP=N makes it 2 N times as many.
 */
import { expect, test } from 'vitest';
import { runProgram } from '../../src/host/run-program.js';
import { RandomStream } from '../../src/runtime/random.js';
import { randomProgram } from '../fixtures/random-programs.js';

const FACTOR = Number(process.env['IOVADUCT_SWEEP'] ?? 0.5);
const SCHEDULES = 4;

test.each([
  ['mock', 300 * FACTOR],
  ['arm-smmu-v3', 60 * FACTOR],
] as const)(`%s: %i random programs hold under ${SCHEDULES} schedules each`, (iommu, programs) => {
  for (let number = 0; number < programs; number++) {
    const program = randomProgram(new RandomStream(number, 'program'), iommu);
    for (let i = 0; i < SCHEDULES; i++) {
      const schedule = { strategy: 'explored', seed: number * SCHEDULES + i } as const;
      const { failure } = runProgram(program, { seed: 1, schedule });
      expect([number, i, failure?.message]).toEqual([number, i, undefined]);
    }
  }
});
