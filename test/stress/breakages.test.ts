/** Whatever is broken on purpose is found: the run ends with the first segment that shows it. */
import { expect, test } from 'vitest';
import { DEFAULT_OPTIONS, STRESS_FAULTS, type StressFault } from '../../src/stress/options.js';
import { runStress } from './run.js';

/** Kinds of complaint that tell a breakage from noise; the others follow from it. */
const EXPECTED: Readonly<Record<StressFault, RegExp>> = {
  'drop-tlbi': /stale-translation|unpinned|wrong-translation|freed-table/,
  'skip-sync': /stale-translation|unpinned|freed-table/,
  'free-tables-early': /freed-table|wrong-translation/,
  'drop-lock': /answer|audit|mapped-twice|unmapped-other|kernel-bug|split|stuck|lost-translation/,
  'dirty-lost': /dirty-lost/,
  'dirty-torn': /stale-translation|unpinned|dirty-lost|audit|mapped-twice|kernel-bug|answer/,
  'leaf-writable': /forbidden-access/,
  'unmap-nothing': /answer/,
  'map-nothing': /answer/,
  'map-exists': /answer/,
  'unmap-busy': /answer/,
};

test.each(Object.keys(STRESS_FAULTS) as StressFault[])(
  '%s',
  async (fault) => {
    const report = await runStress({ ...DEFAULT_OPTIONS, seconds: 100, faults: [fault] });
    expect(report.verdict).toBe('violated');
    expect(report.violations.map(({ kind }) => kind).join(' ')).toMatch(EXPECTED[fault]);
  },
  150_000,
);
