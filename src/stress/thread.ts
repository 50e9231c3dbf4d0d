/**
 * What every thread of a run has: its number, its locks' view, its block of words, its way to run kernel tasks.
 *
 * Kernel code is written as tasks. In a thread a task is run to its end at once: a gate is a place to pause at random (and
 * to note, for the case of death), virtual time is nothing, and waiting happens inside locks and queues that block the
 * thread. A task that yields a wait queue would be one of the deterministic engine's: that is a mistake of ours.
 */
import { Arena } from '../core/arena.js';
import { LockThread } from '../core/robust-lock.js';
import { InvariantError, invariant, type Task } from '../runtime/task.js';
import { History } from './history.js';
import { Pauses } from './pauses.js';
import type { StressOptions } from './options.js';
import { BLOCK, BOARD_SLOTS, STATE, WORDS, blockWord, type StressLayout, type ThreadSpec } from './spec.js';

/** Every gate a task of a thread comes to: their numbers are what a block remembers. */
export const GATES: readonly string[] = [
  '-',
  'iopt:domains_rwsem',
  'iopt:iova_rwsem',
  'iopt:pages_mutex',
  'iommufd:map-inserted',
  'iommufd:map-filled',
  'iommufd:unmap-hidden',
  'iommufd:unmap-invalidated',
  'iommufd:unmap-unfilled',
  'iommufd:unmap-freed',
  'iommufd:unmap-queued',
  'iommufd:flushed',
  'iommufd:pages-pinned',
  'iommufd:area-mapped',
  'mm:pin',
  'smmu:map-step',
  'smmu:unmap-step',
  'smmu:dirty-step',
  'smmu:cmdq-issue',
  'smmu:cmdq-sync',
  'smmu:walk',
];
const GATE_NUMBERS = new Map(GATES.map((gate, number) => [gate, number]));

/** One thread's access to the run. */
export class StressThread {
  readonly number: number;
  readonly options: StressOptions;
  readonly layout: StressLayout;
  readonly arena: Arena;
  readonly locks: LockThread;
  readonly history: History;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #control: number;
  readonly #block: number;
  readonly #pauses: Pauses | undefined;
  readonly #planned: { readonly gate: string; readonly pass: number } | undefined;
  #passes = 0;

  constructor({ options, layout, thread }: ThreadSpec, arena = Arena.attach(layout.arena)) {
    this.number = thread;
    this.options = options;
    this.layout = layout;
    this.arena = arena;
    this.#words = arena.words;
    this.#control = layout.control >>> 2;
    this.#block = blockWord(layout, thread);
    this.locks = new LockThread(arena, thread, layout.control + WORDS.poison * 4);
    const buffer = layout.histories[thread];
    invariant(buffer !== undefined, `no history of thread ${thread}`);
    this.history = new History(thread, buffer, arena.words, this.#control + WORDS.stamp);
    this.#pauses = options.pauses ? new Pauses(options.seed, thread) : undefined;
    for (const kill of options.kills) {
      if (kill.at === 'gate' && kill.client + 2 === thread) this.#planned = kill;
    }
    this.note(BLOCK.scratch, arena.scratchOffset);
  }

  /** Where clients tell everybody what they mapped: first page and number of pages, {@link BOARD_SLOTS} times. */
  get board(): Int32Array<SharedArrayBuffer> {
    const first = this.#control + WORDS.board;
    return this.#words.subarray(first, first + BOARD_SLOTS * 2);
  }

  /** Runs a task to its end. */
  run<T>(task: Task<T>): T {
    for (;;) {
      const step = task.next();
      if (step.done === true) return step.value;
      if (typeof step.value === 'string') this.#gate(step.value);
      else if (typeof step.value !== 'number') throw new InvariantError(`thread waits for ${step.value.name}`);
    }
  }

  /** Stands where a race could be: pauses now and then. */
  pause(): void {
    this.#pauses?.maybe();
  }

  /** Notes something about this thread where others see it. */
  note(field: number, value: number): void {
    Atomics.store(this.#words, this.#block + field, value);
  }

  /** One more operation is done. */
  count(): void {
    Atomics.add(this.#words, this.#block + BLOCK.done, 1);
  }

  get isPausing(): boolean {
    return Atomics.load(this.#words, this.#control + WORDS.pause) !== 0;
  }

  get isStopping(): boolean {
    return Atomics.load(this.#words, this.#control + WORDS.stop) !== 0;
  }

  /** Asks everybody to stand still. */
  pauseAll(): void {
    Atomics.store(this.#words, this.#control + WORDS.pause, 1);
  }

  /** Stands still until main lets everybody go on, which also makes its state `running` again. */
  park(): void {
    const generation = Atomics.load(this.#words, this.#control + WORDS.generation);
    this.note(BLOCK.state, STATE.parked);
    while (Atomics.load(this.#words, this.#control + WORDS.generation) === generation) {
      this.locks.check('standing still');
      Atomics.wait(this.#words, this.#control + WORDS.generation, generation, 50);
    }
  }

  stateOf(thread: number): number {
    return Atomics.load(this.#words, blockWord(this.layout, thread) + BLOCK.state);
  }

  /** DMAs done by all devices so far. */
  dmas(devices: readonly number[]): number {
    return devices.reduce(
      (sum, device) => sum + Atomics.load(this.#words, blockWord(this.layout, device) + BLOCK.done),
      0,
    );
  }

  #gate(gate: string): void {
    const number = GATE_NUMBERS.get(gate);
    invariant(number !== undefined, `gate ${gate} has no number in GATES`);
    this.#words[this.#block + BLOCK.gate] = number;
    if (this.#planned?.gate === gate && this.stateOf(this.number) === STATE.running) {
      if (++this.#passes === this.#planned.pass) this.#die();
    }
    this.#pauses?.maybe();
  }

  /** The planned end: main terminates a thread that says it is at its gate. */
  #die(): never {
    this.note(BLOCK.state, STATE.doomed);
    for (;;) Atomics.wait(this.#words, this.#block + BLOCK.state, STATE.doomed);
  }
}
