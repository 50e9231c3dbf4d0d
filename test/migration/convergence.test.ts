/** When a pre-copy stops. */
import { describe, expect, test } from 'vitest';
import { decide, DEFAULT_LIMITS, expectedDowntimeNs, type Progress } from '../../src/migration/convergence.js';

/** 10 Gbit/s: 1.25 bytes a nanosecond. */
const progress = (remainingBytes: number, rounds = 1): Progress => ({
  rounds,
  remainingBytes,
  sentBytes: 1_250_000_000,
  elapsedNs: 1_000_000_000,
});

test('the rest would take its size over the measured bandwidth', () => {
  expect(expectedDowntimeNs(progress(1_250_000))).toBe(1_000_000);
  expect(expectedDowntimeNs(progress(0))).toBe(0);
  expect(expectedDowntimeNs({ ...progress(1), sentBytes: 0 })).toBe(Infinity);
});

describe('decision', () => {
  test('stops exactly at the downtime limit', () => {
    expect(decide(progress(375_000_000), DEFAULT_LIMITS)).toBe('stop');
    expect(decide(progress(375_000_002), DEFAULT_LIMITS)).toBe('iterate');
  });

  test('gives up, or stops the guest, when rounds run out', () => {
    const late = progress(1e12, DEFAULT_LIMITS.maxRounds);
    expect(decide(late, DEFAULT_LIMITS)).toBe('cancel');
    expect(decide(late, { ...DEFAULT_LIMITS, onNoConvergence: 'stop' })).toBe('stop');
    expect(decide(progress(1e12, DEFAULT_LIMITS.maxRounds - 1), DEFAULT_LIMITS)).toBe('iterate');
  });
});

test('a given switchover bandwidth counts instead of the one measured', () => {
  expect(expectedDowntimeNs(progress(1_250_000), 1e9)).toBe(10_000_000);
  expect(decide(progress(375_000_000), { ...DEFAULT_LIMITS, switchoverBandwidth: 1e9 })).toBe('iterate');
  expect(decide(progress(375_000_002), { ...DEFAULT_LIMITS, switchoverBandwidth: 100e9 })).toBe('stop');
});
