/** Ctrl-C: what works for long ends with what it has. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { interruptible } from '../../src/cli/interrupt.js';
import { explore } from '../../src/explore/campaign.js';
import { failNth } from '../../src/explore/fail-nth.js';
import { faulty, shrink } from '../../src/explore/shrink.js';
import { readScenario } from '../../src/scenario/load.js';

const SCENARIO = readScenario('scenarios/races/hwpt-list.yaml');
const status = process.exitCode;
afterEach(() => {
  process.exitCode = status;
});

describe('an exploration that is interrupted', () => {
  test.each(['random', 'portfolio', 'exhaustive'] as const)('counts the runs that were made, %s', async (strategy) => {
    const interrupt = new AbortController();
    const exploration = await explore({
      scenario: SCENARIO,
      strategy,
      runs: 100_000,
      depth: 3,
      seed: 1,
      jobs: 1,
      signal: interrupt.signal,
      onProgress: () => interrupt.abort(),
    });
    expect(exploration).toMatchObject({ isInterrupted: true, failure: undefined, runs: 64 });
  });

  test('makes no run of its own where it is interrupted while it measures', async () => {
    const interrupt = new AbortController();
    const exploration = await explore({
      scenario: SCENARIO,
      strategy: 'portfolio',
      runs: 1000,
      depth: 3,
      seed: 1,
      jobs: 1,
      signal: interrupt.signal,
      onMeasured: () => interrupt.abort(),
    });
    expect(exploration).toMatchObject({ isInterrupted: true, runs: 0 });
  });

  test('has the smaller case that shrinking had come to', async () => {
    const { file } = SCENARIO;
    const scenario = faulty(SCENARIO);
    const { failure } = await explore({ scenario, strategy: 'random', runs: 1000, depth: 3, seed: 1, jobs: 1 });
    if (failure === undefined) throw new Error('the fault was not found');
    const failing = { file, text: scenario.text, seed: 1, ...failure };
    const interrupt = new AbortController();
    const onProgress = (runs: number): void => {
      if (runs === 10) interrupt.abort();
    };
    const watch = { signal: interrupt.signal, onProgress };
    const small = await shrink(failing, { attempts: 1000, schedules: 20 }, watch);
    expect(small).toMatchObject({ attempts: 10, isInterrupted: true });
    expect(small?.attempt.failure?.signature).toBe(failure.signature);
  });

  test('leaves the rest of a sweep of failures', async () => {
    const interrupt = new AbortController();
    const onProgress = (runs: number): void => {
      if (runs === 3) interrupt.abort();
    };
    const sweep = await failNth(SCENARIO, 1, onProgress, interrupt.signal);
    expect(sweep).toMatchObject({ isInterrupted: true, injected: [{ calls: 3 }] });
  });
});

describe('Ctrl-C', () => {
  test('is told to the command and to whoever waits for its exit status', async () => {
    await interruptible(async (signal) => {
      expect(signal.aborted).toBe(false);
      await Promise.resolve(process.emit('SIGINT'));
      expect(signal.aborted).toBe(true);
    });
    expect(process.exitCode).toBe(130);
    expect(process.listenerCount('SIGINT')).toBe(0);
  });

  test('a second time ends the process', async () => {
    const exit = vi.spyOn(process, 'exit').mockImplementation(() => undefined as never);
    await interruptible(async () => {
      process.emit('SIGINT');
      expect(exit).not.toHaveBeenCalled();
      await Promise.resolve(process.emit('SIGINT'));
    });
    expect(exit).toHaveBeenCalledWith(130);
    exit.mockRestore();
  });

  test('does not hide a failure that was found before', async () => {
    await interruptible(async () => {
      process.exitCode = 1;
      await Promise.resolve(process.emit('SIGINT'));
    });
    expect(process.exitCode).toBe(1);
  });
});
