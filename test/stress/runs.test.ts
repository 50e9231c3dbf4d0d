/** Whole runs with real threads: with everything right there is nothing to find, whatever the mode. */
import { describe, expect, test } from 'vitest';
import { DEFAULT_OPTIONS, type StressOptions } from '../../src/stress/options.js';
import { runStress } from './run.js';

/** Ends by operations, not by time; the time is for machines that are very busy. */
const SHORT: StressOptions = { ...DEFAULT_OPTIONS, seconds: 90, operations: 400 };

describe('nothing wrong, nothing found', () => {
  test.each<[string, Partial<StressOptions>]>([
    ["the kernel's locks, strict", {}],
    ['sharded locks, strict', { locks: 'sharded' }],
    ["the kernel's locks, deferred", { invalidation: 'deferred' }],
    ['sharded locks, deferred, no pauses', { locks: 'sharded', invalidation: 'deferred', pauses: false }],
    ['four clients, one device', { threads: 4, devices: 1, operations: 150 }],
    ['nobody to invalidate', { devices: 0 }],
  ])('%s', async (_what, changes) => {
    const options = { ...SHORT, ...changes };
    const report = await runStress(options);
    expect(report.violations).toEqual([]);
    expect(report.verdict).toBe('held');
    // A burst is a dozen operations: a client may end a little later than it was told to.
    expect(report.operations).toBeGreaterThanOrEqual(options.threads * options.operations);
    expect(report.counts.maps).toBeGreaterThan(0);
    expect(report.counts.unmaps).toBeGreaterThan(0);
    if (options.devices > 0) expect(report.counts.dmas).toBeGreaterThan(0);
    if (options.invalidation === 'strict') expect(report.counts.exposed).toBe(0);
    else expect(report.window.unmaps).toBeGreaterThan(0);
  });
});

test('a run of which the threads never got to anything is not decided', async () => {
  const report = await runStress({ ...SHORT, operations: 0, devices: 0 });
  expect([report.verdict, report.reason]).toEqual(['inconclusive', 'no client did anything']);
});

test('a run that is interrupted in the middle of a segment ends there', async () => {
  const interrupt = new AbortController();
  // These histories never fill: no segment ends by itself.
  const options = { ...DEFAULT_OPTIONS, seconds: 1000, workload: 'pairs', devices: 0 } as const;
  setTimeout(() => interrupt.abort(), 1500);
  const report = await runStress(options, undefined, { signal: interrupt.signal });
  expect(report.verdict).toBe('held');
  expect(report.operations).toBeGreaterThan(0);
});

test('a run that is interrupted is checked to where it got', async () => {
  const interrupt = new AbortController();
  const options = { ...DEFAULT_OPTIONS, seconds: 1000 };
  const report = await runStress(options, undefined, { tell: () => interrupt.abort(), signal: interrupt.signal });
  expect(report.verdict).toBe('held');
  expect(report.counts.maps).toBeGreaterThan(0);
});
