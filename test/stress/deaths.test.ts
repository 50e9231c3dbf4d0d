/**
 * Clients that die in the middle of an operation: what they left is taken back, or the address space is given up; the run ends
 * with a report either way, and no check complains. A death that nobody ordered is a bug of the kernel, whatever it left.
 */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { EOWNERDEAD } from '../../src/uapi/errno.js';
import { DEFAULT_OPTIONS, type StressOptions } from '../../src/stress/options.js';
import { STATE } from '../../src/stress/spec.js';
import { runStress } from './run.js';

const SHORT: StressOptions = { ...DEFAULT_OPTIONS, seconds: 90, operations: 300, devices: 1 };

/** Where two outcomes are named it depends on what the command was for. */
describe('at a gate', () => {
  test.each<[gate: string, pass: number, operation: RegExp, outcome: string, changes?: Partial<StressOptions>]>([
    ['iopt:domains_rwsem', 5, /^(MAP|UNMAP|COPY)$/, 'repaired'],
    ['iommufd:map-inserted', 4, /^(MAP|COPY)$/, 'repaired'],
    ['iopt:pages_mutex', 4, /^(MAP|UNMAP|COPY)$/, 'repaired'],
    ['iommufd:pages-pinned', 4, /^(MAP|COPY)$/, 'given-up'],
    ['smmu:map-step', 4, /^(MAP|COPY)$/, 'given-up'],
    ['iommufd:map-filled', 4, /^(MAP|COPY)$/, 'repaired'],
    ['iommufd:unmap-hidden', 4, /^UNMAP$/, 'repaired'],
    ['smmu:cmdq-issue', 2, /^(UNMAP|MAP|READ_DIRTY)$/, 'repaired|given-up'],
    ['smmu:cmdq-sync', 2, /^(UNMAP|MAP|READ_DIRTY)$/, 'repaired|given-up'],
    ['iommufd:unmap-invalidated', 2, /^UNMAP$/, 'given-up'],
    ['iommufd:unmap-unfilled', 3, /^UNMAP$/, 'repaired'],
    ['iommufd:unmap-freed', 3, /^UNMAP$/, 'repaired'],
    ['smmu:dirty-step', 1, /^READ_DIRTY$/, 'repaired'],
    ['iommufd:unmap-queued', 3, /^UNMAP$/, 'repaired', { invalidation: 'deferred' }],
    ['iommufd:flushed', 1, /^(UNMAP|-)$/, 'repaired', { invalidation: 'deferred', locks: 'sharded' }],
    ['iommufd:map-filled', 4, /^(MAP|COPY)$/, 'repaired', { locks: 'sharded' }],
  ])('%s, time %i', async (gate, pass, operation, outcome, changes = {}) => {
    const report = await runStress({ ...SHORT, ...changes, kills: [{ at: 'gate', client: 0, gate, pass }] });
    expect(report.violations).toEqual([]);
    const [death] = report.deaths;
    expect(report.deaths.length).toBe(1);
    expect(death?.gate).toBe(gate);
    expect(death?.operation).toMatch(operation);
    expect(outcome.split('|')).toContain(death?.outcome);
    expect(report.verdict).toBe(death?.outcome === 'repaired' ? 'held' : 'inconclusive');
    if (death?.outcome === 'given-up') expect([...report.gaveUp.keys()]).toEqual([EOWNERDEAD]);
    // The other client went on to its end where it could.
    if (death?.outcome === 'repaired') expect(report.operations).toBeGreaterThanOrEqual(SHORT.operations);
  });
});

test.each([1, 2, 3, 4, 5, 6])('at a moment nobody chose (%i)', async (seed) => {
  const afterMs = (seed * 29) % 70;
  const report = await runStress({
    ...SHORT,
    seed,
    operations: Infinity,
    seconds: 1,
    locks: seed % 2 === 0 ? 'sharded' : 'kernel',
    kills: [{ at: 'time', client: seed % 2, afterMs }],
  });
  expect(report.violations).toEqual([]);
  expect(report.deaths.length).toBe(1);
});

test('two deaths, one after the other', async () => {
  const kills = [0, 1].map((client) => ({
    at: 'gate' as const,
    client,
    gate: 'iommufd:map-inserted',
    pass: 3 + client * 20,
  }));
  const report = await runStress({ ...SHORT, threads: 3, kills });
  expect(report.violations).toEqual([]);
  expect(report.deaths.map(({ outcome }) => outcome)).toEqual(['repaired', 'repaired']);
  expect(report.verdict).toBe('held');
});

describe('a death that nobody ordered', () => {
  const entry = new URL('../../dist/test/stress/breaking-worker.js', import.meta.url);
  /** The entry of workers that start from now on. */
  const breaking = (how: string): URL => {
    vi.stubEnv('IOVADUCT_BREAKS', how);
    return entry;
  };

  afterEach(() => {
    vi.unstubAllEnvs();
  });

  test('of an error is told as a bug of the kernel, however late the thread says so', async () => {
    const report = await runStress(SHORT, breaking('client-throws'));
    expect(report.verdict).toBe('violated');
    expect(report.violations[0]).toMatchObject({ kind: 'kernel-bug' });
    expect(report.violations[0]?.detail).toContain('client 0: InvariantError: planted in the middle of a map');
    expect(report.deaths).toEqual([]);
  });

  test('is never told as one that was, although the client was to die later', async () => {
    const kills = [{ at: 'gate' as const, client: 0, gate: 'iommufd:map-inserted', pass: 1_000_000 }];
    const report = await runStress({ ...SHORT, kills }, breaking('client-throws'));
    expect([report.verdict, report.violations[0]?.kind]).toEqual(['violated', 'kernel-bug']);
  });

  test.each([
    ['client-goes', 'kernel-bug', 'client 0 ended without a word'],
    ['device-throws', 'kernel-bug', 'device 0: InvariantError: planted in the middle of a translation'],
    ['device-goes', 'device-died', 'device 0 died'],
  ])('%s: ends the run, as %s', async (how, kind, detail) => {
    const report = await runStress(SHORT, breaking(how));
    expect([report.verdict, report.violations[0]?.kind]).toEqual(['violated', kind]);
    expect(report.violations[0]?.detail).toContain(detail);
  });

  test('a client that stands still for ever is told as stuck, although devices go on', async () => {
    const report = await runStress(SHORT, breaking('client-hangs'), { stuckMs: 1000 });
    expect([report.verdict, report.violations[0]?.kind]).toEqual(['violated', 'stuck']);
    expect(report.violations.map(({ detail }) => detail)).toEqual([
      expect.stringMatching(/^no client has moved for 1000 ms: thread 2 in state \d+/),
    ]);
    expect(report.counts.dmas).toBeGreaterThan(0);
  });

  test.each([
    // The clients wait for its invalidations.
    ['device-hangs', 'no client has moved'],
    ['device-runs', 'not every device stands still'],
  ])('%s: is told once, as stuck', async (how, what) => {
    const report = await runStress(SHORT, breaking(how), { stuckMs: 1000 });
    expect(report.violations.map(({ kind, detail }) => `${kind}: ${detail}`)).toEqual([
      expect.stringMatching(`^stuck: ${what} for 1000 ms: .*thread 4 in state ${STATE.running}`),
    ]);
  });
});
