/** Scheduling policies: what PCT promises, and what a schedule that does not fit comes to. */
import { describe, expect, test } from 'vitest';
import { guarantee, scheduleOf } from '../../src/explore/strategies.js';
import { NodeRuntime, type ScheduleSpec } from '../../src/runtime/node-runtime.js';
import type { Deviation } from '../../src/runtime/deviations.js';
import type { Candidates, SchedulingPolicy } from '../../src/runtime/policies.js';
import { Scheduler } from '../../src/runtime/scheduler.js';
import type { Task } from '../../src/runtime/task.js';

/** Steps of each task before and after what is watched. */
const LEAD = 6;

/** Puts tasks to work side by side; each is a list of actions with a gate in front of every one. */
function sideBySide(schedule: ScheduleSpec, tasks: Readonly<Record<string, readonly (() => void)[]>>): NodeRuntime {
  const runtime = new NodeRuntime('n', 1, schedule);
  function* body(actions: readonly (() => void)[]): Task<void> {
    for (const action of actions) {
      yield 'test:gate';
      action();
    }
  }
  for (const [name, actions] of Object.entries(tasks)) runtime.spawn(name, body(actions));
  runtime.scheduler.runUntil(Infinity);
  return runtime;
}

const idle = Array.from({ length: LEAD }, () => (): void => undefined);

/** A word is read, added to and written; another writes to it in between: a bug of depth 2. */
function losesUpdate(schedule: ScheduleSpec): { readonly isHit: boolean; readonly choices: number } {
  let word = 0;
  let seen = 0;
  let isHit = false;
  const { scheduler } = sideBySide(schedule, {
    a: [...idle, () => (seen = word), () => (isHit = word !== seen), ...idle],
    b: [...idle, () => word++, ...idle],
    c: [...idle, ...idle],
  });
  return { isHit, choices: scheduler.choices.length };
}

/** One task must see two writes of the other one apart: a bug of depth 3. */
function seesBetween(schedule: ScheduleSpec): boolean {
  let [first, second, seen] = [false, false, 0];
  sideBySide(schedule, {
    a: [...idle, () => (seen += Number(first && !second)), () => (seen += Number(second)), ...idle],
    b: [...idle, () => (first = true), () => (second = true), ...idle],
  });
  return seen === 2;
}

/** How many of so many seeds find it. */
function found(seeds: number, find: (seed: number) => boolean): number {
  return Array.from({ length: seeds }, (_, seed) => find(seed)).filter(Boolean).length;
}

describe('PCT', () => {
  const SEEDS = 3000;
  const TASKS = 3;
  const longest = Math.max(
    ...Array.from({ length: 8 }, (_, seed) => losesUpdate({ strategy: 'explored', seed }).choices),
  );
  const pct = (depth: number): number =>
    found(SEEDS, (seed) => losesUpdate({ strategy: 'pct', seed, depth, choices: longest }).isHit);

  test('finds a bug of depth 2 at least as often as is promised', () => {
    const each = guarantee(TASKS, longest, 2, 1);
    expect(each).toBeCloseTo(1 / (TASKS * longest), 12);
    expect(pct(2)).toBeGreaterThanOrEqual(each * SEEDS);
  });

  test('finds none of depth 2 with no change of priorities: every task runs to its end', () => {
    expect(pct(1)).toBe(0);
  });

  test('finds a bug of depth 3 with two changes, and not with one', () => {
    const runs = 60_000;
    const choices = 2 * (2 * LEAD + 2);
    const at = (depth: number): number => found(runs, (seed) => seesBetween({ strategy: 'pct', seed, depth, choices }));
    const promised = guarantee(2, choices, 3, 1) * runs;
    // The promise is tight here: what is found lies around it, by so much of chance.
    expect(at(3)).toBeGreaterThanOrEqual(promised - 3 * Math.sqrt(promised));
    expect(at(2)).toBe(0);
  });

  test('finds what only comes when one task waits for all of another, where random schedules do not', () => {
    const long = Array.from({ length: 40 }, () => (): void => undefined);
    const isLate = (schedule: ScheduleSpec): boolean => {
      let [isDone, isHit] = [false, false];
      sideBySide(schedule, { early: [() => (isHit = isDone)], late: [...long, () => (isDone = true)] });
      return isHit;
    };
    expect(found(200, (seed) => isLate({ strategy: 'explored', seed }))).toBe(0);
    expect(found(200, (seed) => isLate({ strategy: 'pct', seed, depth: 1, choices: 42 }))).toBeGreaterThanOrEqual(80);
  });

  test('counts every task of a run for n, not only those there are at a time', () => {
    const scheduler = new Scheduler();
    const chain = function* (left: number): Task<void> {
      yield 'chain:link';
      if (left > 0) scheduler.spawn(`task ${left}`, chain(left - 1));
    };
    scheduler.spawn('first', chain(19));
    scheduler.runUntil(Infinity);
    expect(scheduler.tasksSeen).toBe(20);
  });

  test('gives the runs of every seed schedules of their own', () => {
    for (const seed of [0, 1, 10 ** 9, Number.MAX_SAFE_INTEGER]) {
      const schedules = Array.from({ length: 200 }, (_, run) => {
        const schedule = scheduleOf({ strategy: 'random', seed, depth: 1, choices: 1 }, run);
        return sideBySide(schedule, { a: idle, b: idle, c: idle, d: idle }).scheduler.choices.join('');
      });
      expect(new Set(schedules).size, String(seed)).toBe(200);
    }
  });

  test('a chance grows with the runs, never above 1, and is smaller for deeper bugs', () => {
    expect(guarantee(2, 10, 2, 1)).toBeCloseTo(1 / 20, 12);
    expect(guarantee(2, 10, 2, 20)).toBeCloseTo(1 - (19 / 20) ** 20, 12);
    expect(guarantee(2, 10, 3, 20)).toBeLessThan(guarantee(2, 10, 2, 20));
    expect(guarantee(1, 1, 1, 1000)).toBeLessThanOrEqual(1);
  });
});

function logged(schedule: ScheduleSpec, names: readonly string[] = ['a', 'b', 'c']): string {
  const log: string[] = [];
  const runtime = new NodeRuntime('n', 1, schedule);
  function* body(mark: string): Task<void> {
    for (let i = 0; i < 3; i++) {
      log.push(`${mark}${i}`);
      yield 'test:step';
    }
  }
  names.forEach((name, i) => void runtime.spawn(name, body('abc'[i] ?? '')));
  runtime.scheduler.runUntil(Infinity);
  return log.join(' ');
}

describe('deviations', () => {
  const DEFAULT = 'a0 a1 a2 b0 b1 b2 c0 c1 c2';
  const deviating = (...deviations: readonly Deviation[]): ScheduleSpec => ({
    strategy: 'deviating',
    deviations,
  });

  test('none: the running task runs on', () => expect(logged(deviating())).toBe(DEFAULT));

  test('one: another goes on there, and runs on', () => {
    expect(logged(deviating({ at: 1, to: 'c' }))).toBe('a0 c0 c1 c2 b0 b1 b2 a1 a2');
  });

  test('of tasks with one name it says the number', () => {
    expect(logged(deviating({ at: 1, to: 'w#2' }), ['w', 'w', 'w'])).toBe('a0 c0 c1 c2 b0 b1 b2 a1 a2');
    expect(logged(deviating({ at: 1, to: 'w' }), ['w', 'w', 'w'])).toBe(DEFAULT);
  });

  test('a task that is held back is passed over while another can go on, and up to a choice', () => {
    expect(logged(deviating({ at: 1, until: 3, hold: 'a' }))).toBe('a0 b0 b1 b2 c0 c1 c2 a1 a2');
    expect(logged(deviating({ at: 1, until: 1000, hold: 'a' }))).toBe('a0 b0 b1 b2 c0 c1 c2 a1 a2');
    expect(logged(deviating({ at: 0, until: 5, hold: 'b' }))).toBe('a0 a1 a2 c0 c1 c2 b0 b1 b2');
    const both = [
      { at: 0, until: 1000, hold: 'a' },
      { at: 0, until: 3, hold: 'b' },
    ];
    expect(logged(deviating(...both))).toBe('c0 c1 c2 b0 b1 b2 a0 a1 a2');
  });

  test('of tasks with one name all are held back, or one by its number, whoever else is ready', () => {
    const names = ['w', 'w', 'c'];
    expect(logged(deviating({ at: 0, until: 1000, hold: 'w' }), names)).toBe('c0 c1 c2 a0 a1 a2 b0 b1 b2');
    expect(logged(deviating({ at: 0, until: 1000, hold: 'w#1' }), names)).toBe('a0 a1 a2 c0 c1 c2 b0 b1 b2');
  });

  test('a switch goes before what is held back', () => {
    const switched = [
      { at: 0, until: 1000, hold: 'a' },
      { at: 2, to: 'a' },
    ];
    expect(logged(deviating(...switched))).toBe('b0 b1 a0 c0 c1 c2 b2 a1 a2');
  });

  test('time passes sooner than that a task goes on which is held back', () => {
    const log: string[] = [];
    const runtime = new NodeRuntime('n', 1, deviating({ at: 0, until: 1000, hold: 'held' }));
    function* sleeper(): Task<void> {
      yield 100;
      log.push(`sleeper ${runtime.now}`);
    }
    function* held(): Task<void> {
      log.push(`held ${runtime.now}`);
      yield 'test:step';
      log.push(`held ${runtime.now}`);
    }
    runtime.spawn('sleeper', sleeper());
    runtime.spawn('held', held());
    runtime.scheduler.runUntil(Infinity);
    expect(log).toEqual(['sleeper 100', 'held 100', 'held 100']);
  });

  test.each([
    ['a task that there is not', [{ at: 1, to: 'nobody' }]],
    ['time, where it cannot pass', [{ at: 1, to: 'time' }]],
    ['a task that has ended', [{ at: 4, to: 'a' }]],
    ['a choice that never comes', [{ at: 1000, to: 'b' }]],
    ['a task held back that there is not', [{ at: 0, until: 9, hold: 'nobody' }]],
  ])('passed over: %s', (_what, deviations) => expect(logged(deviating(...deviations))).toBe(DEFAULT));

  test('what is passed over keeps none of those behind it from coming', () => {
    const deviations = [
      { at: 0, to: 'nobody' },
      { at: 1, to: 'c' },
    ];
    expect(logged(deviating(...deviations))).toBe('a0 c0 c1 c2 b0 b1 b2 a1 a2');
  });
});

describe('a recorded schedule', () => {
  const recorded = (...choices: number[]): ScheduleSpec => ({ strategy: 'recorded', of: 'random', choices });

  test('too short: the choice that is missing is named', () => {
    expect(() => logged(recorded(0, 1))).toThrow('recorded schedule does not fit: choice 3 of 2 among 3 tasks');
  });

  test('a task that there is not: the number of candidates is named', () => {
    expect(() => logged(recorded(0, 3))).toThrow('recorded schedule does not fit: choice 2 of 2 among 3 tasks');
  });
});

describe('stalls', () => {
  /** Lets time pass wherever it may. */
  class Staller implements SchedulingPolicy {
    readonly name = 'staller';
    readonly preemptsAtGates = true;
    readonly stalls = true;
    stalled = 0;

    choose({ ready, canStall }: Candidates): number {
      if (canStall) this.stalled++;
      return canStall ? ready.length : 0;
    }
  }

  /** A task that is ready from `ns` on while timers go off every microsecond; when it runs. */
  function runsAt(policy: SchedulingPolicy, horizonNs = Infinity): { readonly at: number | undefined } {
    const runtime = new NodeRuntime('n', 1, { strategy: 'policy', policy });
    let at: number | undefined;
    function* worker(): Task<void> {
      at = runtime.now;
      yield 'test:end';
    }
    for (let us = 1; us <= 40; us++) runtime.scheduler.callAt(1000 * us, () => undefined);
    runtime.spawn('worker', worker());
    runtime.scheduler.runUntil(horizonNs);
    return { at };
  }

  test('a ready task is kept waiting, and for no longer than 10 us', () => {
    const policy = new Staller();
    expect(runsAt(policy).at).toBe(10_000);
    expect(policy.stalled).toBeGreaterThanOrEqual(10);
  });

  test('time does not pass the horizon', () => expect(runsAt(new Staller(), 5000).at).toBe(4000));

  test('a long way to the next timer is no stall', () => {
    const runtime = new NodeRuntime('n', 1, { strategy: 'policy', policy: new Staller() });
    const at: number[] = [];
    function* sleeper(ns: number): Task<void> {
      yield ns;
      at.push(runtime.now);
    }
    runtime.spawn('long', sleeper(50_000));
    runtime.spawn('short', sleeper(10));
    runtime.scheduler.runUntil(Infinity);
    expect(at).toEqual([10, 50_000]);
  });

  test('every strategy that stalls ends: PCT and random alike', () => {
    for (let seed = 0; seed < 50; seed++) {
      for (const schedule of [
        { strategy: 'explored', seed } as const,
        { strategy: 'pct', seed, depth: 3, choices: 20 } as const,
      ]) {
        const runtime = new NodeRuntime('n', 1, schedule);
        const late: number[] = [];
        function* worker(): Task<void> {
          for (let i = 0; i < 5; i++) {
            const wakeNs = runtime.now + 3000;
            yield 3000;
            late.push(runtime.now - wakeNs);
          }
        }
        for (const name of ['a', 'b', 'c']) runtime.spawn(name, worker());
        runtime.scheduler.runUntil(Infinity);
        expect(late).toHaveLength(15);
        expect(Math.max(...late)).toBeLessThanOrEqual(10_000);
      }
    }
  });
});
