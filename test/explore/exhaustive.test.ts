/** The exhaustive search against naive enumeration of every interleaving: the same final states, with fewer runs. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BoundedSearch } from '../../src/explore/exhaustive.js';
import { Mutex } from '../../src/runtime/locks.js';
import { NodeRuntime, type ScheduleSpec } from '../../src/runtime/node-runtime.js';
import type { SchedulingPolicy } from '../../src/runtime/policies.js';
import type { Task } from '../../src/runtime/task.js';
import { sharedRead, sharedWrite } from '../../src/runtime/watch.js';

/** A step of a task: it adds to a word, copies one to another, or works under a lock. */
type Action =
  | { readonly kind: 'add'; readonly word: number; readonly value: number }
  | { readonly kind: 'copy'; readonly from: number; readonly to: number }
  | { readonly kind: 'locked-double'; readonly word: number };
type TaskProgram = readonly (readonly Action[])[];

const WORDS = 3;

class Memory {
  readonly words = new Array<number>(WORDS).fill(1);
  readonly lock = new Mutex('test:lock');

  read(word: number): number {
    sharedRead(this, `word ${word}`);
    return this.words[word] ?? 0;
  }

  write(word: number, value: number): void {
    sharedWrite(this, `word ${word}`);
    this.words[word] = value;
  }
}

function* act(memory: Memory, steps: readonly Action[]): Task<void> {
  for (const action of steps) {
    yield 'test:gate';
    if (action.kind === 'add') memory.write(action.word, memory.read(action.word) + action.value);
    else if (action.kind === 'copy') memory.write(action.to, memory.read(action.from));
    else {
      yield* memory.lock.lock();
      const value = memory.read(action.word);
      yield 'test:inside';
      memory.write(action.word, 2 * value);
      memory.lock.unlock();
    }
  }
}

function finalState(program: TaskProgram, schedule: ScheduleSpec): string {
  const runtime = new NodeRuntime('n', 1, schedule);
  const memory = new Memory();
  program.forEach((steps, i) => void runtime.spawn(`t${i}`, act(memory, steps)));
  runtime.scheduler.runUntil(Infinity);
  return memory.words.join(',');
}

/** Every interleaving of gates, by counting through the choices like an odometer. */
function enumerate(program: TaskProgram): { states: Set<string>; runs: number } {
  const states = new Set<string>();
  let choices: number[] = [];
  for (let runs = 0; ;) {
    const widths: number[] = [];
    const policy: SchedulingPolicy = {
      name: 'odometer',
      preemptsAtGates: true,
      stalls: false,
      choose: ({ ready }) => {
        widths.push(ready.length);
        return (choices[widths.length - 1] ??= 0);
      },
    };
    states.add(finalState(program, { strategy: 'policy', policy }));
    runs++;
    choices = choices.slice(0, widths.length);
    while (choices.length > 0 && (choices.at(-1) ?? 0) + 1 >= (widths[choices.length - 1] ?? 0)) choices.pop();
    if (choices.length === 0) return { states, runs };
    choices[choices.length - 1] = (choices.at(-1) ?? 0) + 1;
  }
}

function search(program: TaskProgram, bound: number): { states: Set<string>; runs: number; isBounded: boolean } {
  const states = new Set<string>();
  const bounded = new BoundedSearch(bound);
  while (!bounded.isDone) {
    const scheduleOf = bounded.next();
    try {
      states.add(finalState(program, scheduleOf('n')));
      bounded.ended(false);
    } catch (error) {
      expect(String(error)).toContain('Pruned');
      bounded.ended(true);
    }
  }
  const { runs, isBounded } = bounded.report();
  return { states, runs, isBounded };
}

const word = fc.nat({ max: WORDS - 1 });
const action: fc.Arbitrary<Action> = fc.oneof(
  fc.record({ kind: fc.constant('add' as const), word, value: fc.integer({ min: 1, max: 5 }) }),
  fc.record({ kind: fc.constant('copy' as const), from: word, to: word }),
  fc.record({ kind: fc.constant('locked-double' as const), word }),
);
const programs = fc
  .array(fc.array(action, { minLength: 1, maxLength: 2 }), { minLength: 2, maxLength: 3 })
  .filter((tasks) => tasks.flat().reduce((sum, { kind }) => sum + (kind === 'locked-double' ? 3 : 1), 0) <= 5);

describe('exhaustive search', () => {
  test('reaches every final state that there is', () => {
    fc.assert(
      fc.property(programs, (program) => {
        const { states } = enumerate(program);
        expect([...search(program, Infinity).states].sort()).toEqual([...states].sort());
      }),
      { numRuns: 60, seed: 7 },
    );
  });

  test('a bound that leaves nothing out has seen everything', () => {
    fc.assert(
      fc.property(programs, fc.nat({ max: 3 }), (program, bound) => {
        const found = search(program, bound);
        const { states } = enumerate(program);
        for (const state of found.states) expect(states).toContain(state);
        if (!found.isBounded) expect(found.states.size).toBe(states.size);
      }),
      { numRuns: 40, seed: 11 },
    );
  });

  test('tasks that touch different words are run in one order only', () => {
    const program: TaskProgram = [0, 1, 2].map((w) => [
      { kind: 'add', word: w, value: 1 },
      { kind: 'add', word: w, value: 2 },
    ]);
    expect(enumerate(program).runs).toBeGreaterThan(50);
    expect(search(program, Infinity).runs).toBe(1);
  });

  test('no pre-emption is needed for what only the order of tasks decides', () => {
    const program: TaskProgram = [[{ kind: 'copy', from: 0, to: 1 }], [{ kind: 'add', word: 0, value: 4 }]];
    expect(search(program, 0).states).toEqual(new Set(['5,1,1', '5,5,1']));
  });
});
