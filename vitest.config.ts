import { defineConfig } from 'vitest/config';

/** Workers are always loaded as built JavaScript, so the build runs once before any test (test/setup/build.ts). */
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/setup/build.ts'],
    testTimeout: 120_000,
    hookTimeout: 300_000,
    maxWorkers: 2,
  },
});
