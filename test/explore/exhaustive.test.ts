/** The exhaustive search against naive enumeration of every interleaving: the same final states, with fewer runs. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BoundedSearch } from '../../src/explore/exhaustive.js';
import { Mutex } from '../../src/runtime/locks.js';
import { NodeRuntime, type ScheduleSpec } from '../../src/runtime/node-runtime.js';
import type { SchedulingPolicy } from '../../src/runtime/policies.js';
import type { Task } from '../../src/runtime/task.js';
import { sharedRead, sharedWrite } from '../../src/runtime/watch.js';

/**
 * A step of a task: it looks at a word and keeps what it saw to itself, adds to a word, copies one to another, adds up several in an order of its own and stores the sum, works under a lock,
 * or has to do with cells: objects that tasks make, in places where others find them.
 */
type Action =
  | { readonly kind: 'add'; readonly word: number; readonly value: number }
  | { readonly kind: 'see'; readonly word: number }
  | { readonly kind: 'copy'; readonly from: number; readonly to: number }
  | { readonly kind: 'sum'; readonly from: readonly number[]; readonly to: number }
  | { readonly kind: 'locked-double'; readonly word: number }
  | { readonly kind: 'make-cell'; readonly place: number; readonly value: number }
  | { readonly kind: 'double-cell'; readonly place: number }
  | { readonly kind: 'read-cell'; readonly place: number; readonly to: number };
type TaskProgram = readonly (readonly Action[])[];

const WORDS = 5;
const PLACES = 2;

class Cell {
  #value: number;

  constructor(value: number) {
    sharedWrite(this, 'value');
    this.#value = value;
  }

  get value(): number {
    sharedRead(this, 'value');
    return this.#value;
  }

  set value(value: number) {
    sharedWrite(this, 'value');
    this.#value = value;
  }
}

class Memory {
  readonly words = new Array<number>(WORDS).fill(1);
  readonly cells = Array.from({ length: PLACES }, (_, i) => new Cell(i + 1));
  readonly lock = new Mutex('test:lock');
  /** By task. Nobody else looks. */
  readonly seen: number[][] = [];

  read(word: number): number {
    sharedRead(this, `word ${word}`);
    return this.words[word] ?? 0;
  }

  write(word: number, value: number): void {
    sharedWrite(this, `word ${word}`);
    this.words[word] = value;
  }

  cell(place: number): Cell {
    sharedRead(this, `place ${place}`);
    return this.cells[place] ?? new Cell(0);
  }

  place(place: number, cell: Cell): void {
    sharedWrite(this, `place ${place}`);
    this.cells[place] = cell;
  }
}

function* act(memory: Memory, steps: readonly Action[], seen: number[]): Task<void> {
  for (const action of steps) {
    yield 'test:gate';
    switch (action.kind) {
      case 'see':
        seen.push(memory.read(action.word));
        break;
      case 'add':
        memory.write(action.word, memory.read(action.word) + action.value);
        break;
      case 'copy':
        memory.write(action.to, memory.read(action.from));
        break;
      case 'sum':
        memory.write(
          action.to,
          action.from.reduce((sum, from) => 2 * sum + memory.read(from), 0),
        );
        break;
      case 'locked-double': {
        yield* memory.lock.lock();
        const value = memory.read(action.word);
        yield 'test:inside';
        memory.write(action.word, 2 * value);
        memory.lock.unlock();
        break;
      }
      case 'make-cell':
        memory.place(action.place, new Cell(action.value));
        break;
      case 'double-cell':
        memory.cell(action.place).value *= 2;
        break;
      case 'read-cell':
        memory.write(action.to, memory.cell(action.place).value);
    }
  }
}

function finalState(program: TaskProgram, schedule: ScheduleSpec): string {
  const runtime = new NodeRuntime('n', 1, schedule);
  const memory = new Memory();
  program.forEach((steps, i) => void runtime.spawn(`t${i}`, act(memory, steps, (memory.seen[i] = []))));
  runtime.scheduler.runUntil(Infinity);
  return [...memory.words, ...memory.cells.map(({ value }) => value), ...memory.seen.flat()].join(',');
}

/** Every interleaving of gates, by counting through the choices like an odometer; with each state the fewest pre-emptions it takes. */
function enumerate(program: TaskProgram): { states: Set<string>; fewest: Map<string, number>; runs: number } {
  const fewest = new Map<string, number>();
  let choices: number[] = [];
  for (let runs = 0; ;) {
    const widths: number[] = [];
    let preemptions = 0;
    const policy: SchedulingPolicy = {
      name: 'odometer',
      preemptsAtGates: true,
      stalls: false,
      choose: ({ ready, running }) => {
        widths.push(ready.length);
        const choice = (choices[widths.length - 1] ??= 0);
        if (running !== undefined && ready[choice] !== running) preemptions++;
        return choice;
      },
    };
    const state = finalState(program, { strategy: 'policy', policy });
    fewest.set(state, Math.min(preemptions, fewest.get(state) ?? Infinity));
    runs++;
    choices = choices.slice(0, widths.length);
    while (choices.length > 0 && (choices.at(-1) ?? 0) + 1 >= (widths[choices.length - 1] ?? 0)) choices.pop();
    if (choices.length === 0) return { states: new Set(fewest.keys()), fewest, runs };
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
const place = fc.nat({ max: PLACES - 1 });
const action: fc.Arbitrary<Action> = fc.oneof(
  fc.record({ kind: fc.constant('add' as const), word, value: fc.integer({ min: 1, max: 5 }) }),
  fc.record({ kind: fc.constant('see' as const), word }),
  fc.record({ kind: fc.constant('copy' as const), from: word, to: word }),
  fc.record({ kind: fc.constant('sum' as const), from: fc.array(word, { minLength: 2, maxLength: 3 }), to: word }),
  fc.record({ kind: fc.constant('locked-double' as const), word }),
  fc.record({ kind: fc.constant('make-cell' as const), place, value: fc.integer({ min: 6, max: 9 }) }),
  fc.record({ kind: fc.constant('double-cell' as const), place }),
  fc.record({ kind: fc.constant('read-cell' as const), place, to: word }),
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
      { numRuns: 300, seed: 7 },
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

  test('under a bound every final state is reached that takes no more pre-emptions', () => {
    fc.assert(
      fc.property(programs, fc.nat({ max: 2 }), (program, bound) => {
        const { states } = search(program, bound);
        for (const [state, preemptions] of enumerate(program).fewest)
          if (preemptions <= bound) expect(states).toContain(state);
      }),
      { numRuns: 200, seed: 13 },
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
    expect(search(program, 0).states).toEqual(new Set(['5,1,1,1,1,1,2', '5,5,1,1,1,1,2']));
  });

  test('a sleeping task wakes for a word that another run met in another place', () => {
    // One task reads X. The other reads Y before it changes X: what is the second word of one run is the first of the other.
    const program: TaskProgram = [
      [
        { kind: 'see', word: 0 },
        { kind: 'see', word: 4 },
      ],
      [
        { kind: 'sum', from: [1, 1], to: 0 },
        { kind: 'see', word: 4 },
      ],
    ];
    expect(search(program, Infinity).states).toEqual(enumerate(program).states);
    expect(enumerate(program).states.size).toBe(2);
  });

  test('a task that ends in an error for whoever joins it is one more step, not a search without an end', () => {
    function* fails(): Task<void> {
      yield 'test:gate';
      throw new Error('as it should');
    }
    function* waits(): Task<void> {
      yield 'test:gate';
    }
    const bounded = new BoundedSearch(Infinity);
    let runs = 0;
    for (; !bounded.isDone && runs < 100; runs++) {
      const runtime = new NodeRuntime('n', 1, bounded.next()('n'));
      runtime.spawn(
        'parent',
        (function* (): Task<void> {
          const [failing, other] = [runtime.spawn('failing', fails()), runtime.spawn('other', waits())];
          try {
            yield* failing.join();
          } catch {
            // What it is made for.
          }
          yield* other.join();
        })(),
      );
      runtime.scheduler.runUntil(Infinity);
      bounded.ended(false);
    }
    expect(runs).toBeLessThan(10);
  });
});
