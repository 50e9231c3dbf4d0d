import { describe, expect, test } from 'vitest';
import { Mutex, RwSemaphore } from '../../src/runtime/locks.js';
import { NodeRuntime, type ScheduleSpec } from '../../src/runtime/node-runtime.js';
import { InvariantError, WaitQueue, type Task } from '../../src/runtime/task.js';

function* steps(log: string[], name: string, count: number): Task<string> {
  for (let i = 0; i < count; i++) {
    log.push(`${name}${i}`);
    yield 'test:step';
  }
  return name;
}

function interleaving(schedule: ScheduleSpec, seed = 1): { log: string[]; choices: number[] } {
  const runtime = new NodeRuntime('n', seed, schedule);
  const log: string[] = [];
  for (const name of ['a', 'b', 'c']) runtime.spawn(name, steps(log, name, 4));
  runtime.scheduler.runUntil(Infinity);
  return { log, choices: [...runtime.scheduler.choices] };
}

describe('scheduling policies', () => {
  test('in order, a task keeps running through its gates', () => {
    expect(interleaving({ strategy: 'in-order' }).log.join(' ')).toBe('a0 a1 a2 a3 b0 b1 b2 b3 c0 c1 c2 c3');
  });
  test('random differs by seed and repeats with the same seed', () => {
    const one = interleaving({ strategy: 'random' }, 1).log;
    expect(interleaving({ strategy: 'random' }, 1).log).toEqual(one);
    expect(interleaving({ strategy: 'random' }, 2).log).not.toEqual(one);
  });
  test('recorded choices repeat a random run under another seed', () => {
    const one = interleaving({ strategy: 'random' }, 1);
    expect(interleaving({ strategy: 'recorded', of: 'random', choices: one.choices }, 99).log).toEqual(one.log);
  });
  test('choices that do not fit are an invariant error, not a wrong run', () => {
    expect(() => interleaving({ strategy: 'recorded', of: 'random', choices: [0, 7] })).toThrow(InvariantError);
  });
});

describe('time', () => {
  test('delays order tasks, equal times keep the order of arming, and nothing runs at or after the horizon', () => {
    const runtime = new NodeRuntime('n', 1);
    const log: string[] = [];
    function* wait(name: string, ns: number): Task<void> {
      yield ns;
      log.push(`${name}@${runtime.now}`);
    }
    runtime.spawn('late', wait('late', 30));
    runtime.spawn('first', wait('first', 10));
    runtime.spawn('second', wait('second', 10));
    runtime.scheduler.runUntil(30);
    expect(log).toEqual(['first@10', 'second@10']);
    expect(runtime.scheduler.nextTime()).toBe(30);
    runtime.scheduler.runUntil(31);
    expect(log).toEqual(['first@10', 'second@10', 'late@30']);
    expect(runtime.scheduler.nextTime()).toBe(Infinity);
  });
});

describe('joining', () => {
  test('a joined task hands over its result and its error', () => {
    const runtime = new NodeRuntime('n', 1);
    const log: string[] = [];
    function* failing(): Task<void> {
      yield 1;
      throw new Error('boom');
    }
    function* parent(): Task<void> {
      log.push(yield* runtime.spawn('child', steps([], 'child', 1)).join());
      const child = runtime.spawn('failing', failing());
      try {
        yield* child.join();
      } catch (error) {
        log.push(String(error));
      }
    }
    runtime.spawn('parent', parent());
    runtime.scheduler.runUntil(Infinity);
    expect(log).toEqual(['child', 'Error: boom']);
  });
  test('a failure that nobody joins ends the run', () => {
    const runtime = new NodeRuntime('n', 1);
    function* failing(): Task<void> {
      yield 1;
      throw new Error('boom');
    }
    runtime.spawn('failing', failing());
    expect(() => runtime.scheduler.runUntil(Infinity)).toThrow('boom');
  });
  test('what waits for ever is named, daemons are not', () => {
    const runtime = new NodeRuntime('n', 1);
    const queue = new WaitQueue('godot');
    function* waiter(): Task<void> {
      yield queue;
    }
    runtime.spawn('vladimir', waiter());
    runtime.spawn('daemon', waiter(), { daemon: true });
    runtime.scheduler.runUntil(Infinity);
    expect(runtime.scheduler.unfinished().map((task) => `${task.name}: ${task.waitsFor ?? ''}`)).toEqual([
      'vladimir: godot',
    ]);
  });
});

describe('locks', () => {
  test('a mutex excludes under every schedule tried', () => {
    for (let seed = 0; seed < 50; seed++) {
      const runtime = new NodeRuntime('n', seed, { strategy: 'random' });
      const mutex = new Mutex('test:mutex');
      let inside = 0;
      let turns = 0;
      function* worker(): Task<void> {
        for (let i = 0; i < 3; i++) {
          yield* mutex.lock();
          expect(++inside).toBe(1);
          yield 'test:inside';
          yield 5;
          inside--;
          turns++;
          mutex.unlock();
        }
      }
      for (let i = 0; i < 3; i++) runtime.spawn(`w${i}`, worker());
      runtime.scheduler.runUntil(Infinity);
      expect(turns).toBe(9);
    }
  });
  test('readers share, a writer is alone, and a waiting writer is not starved by new readers', () => {
    let mostReaders = 0;
    for (let seed = 0; seed < 50; seed++) {
      const runtime = new NodeRuntime('n', seed, { strategy: 'random' });
      const lock = new RwSemaphore('test:rwsem');
      let readers = 0;
      let writers = 0;
      let done = 0;
      function* reader(): Task<void> {
        for (let i = 0; i < 4; i++) {
          yield* lock.down_read();
          readers++;
          mostReaders = Math.max(mostReaders, readers);
          expect(writers).toBe(0);
          yield 3;
          readers--;
          lock.up_read();
        }
        done++;
      }
      function* writer(): Task<void> {
        for (let i = 0; i < 4; i++) {
          yield* lock.down_write();
          expect(readers + writers).toBe(0);
          writers++;
          yield 3;
          writers--;
          lock.up_write();
        }
        done++;
      }
      for (let i = 0; i < 3; i++) runtime.spawn(`r${i}`, reader());
      for (let i = 0; i < 2; i++) runtime.spawn(`w${i}`, writer());
      runtime.scheduler.runUntil(Infinity);
      expect(done).toBe(5);
    }
    expect(mostReaders).toBeGreaterThan(1);
  });
});
