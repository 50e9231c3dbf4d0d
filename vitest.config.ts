import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Files and rooms that take longest. */
const LONG = [
  'test/cli/explore',
  'test/scenario/migration',
  'test/scenario/',
  'test/e2e/',
  'test/explore/',
  'test/cli/',
  'test/stress/',
  'test/property/',
  'test/conformance/',
];

/** Long files first: one that begins last would run alone. */
class LongFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification): number => {
      const found = LONG.findIndex((part) => moduleId.includes(part));
      return found < 0 ? LONG.length : found;
    };
    return (await super.sort(files)).sort((a, b) => rank(a) - rank(b));
  }
}

/** A test that takes this long hangs; no machine is so slow. */
const HANGS_AFTER_MS = process.env['IOVADUCT_SWEEP'] === undefined ? 300_000 : 1_800_000;

/** Workers are always loaded as built JavaScript, so the build runs once before any test (test/setup/build.ts). */
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/setup/build.ts'],
    testTimeout: HANGS_AFTER_MS,
    hookTimeout: 300_000,
    maxWorkers: 2,
    // Files share their process's modules: loading them anew for each takes a sixth of the time. What a test replaces is put back.
    isolate: false,
    restoreMocks: true,
    sequence: { sequencer: LongFirst },
  },
});
