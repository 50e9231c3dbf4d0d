/**
 * The promise of the marks: steps of two tasks that touch no word in conflict come to the same in either order.
 *
 * Random schedules are run; wherever two such steps lie side by side, the run is repeated with them swapped. Answers and final state must be
 * the same. A word that somebody touches without saying so shows here.
 */
import { expect, test } from 'vitest';
import { runProgram, type ProgramOutcome } from '../../src/host/run-program.js';
import type { Program } from '../../src/host/program.js';
import type { Candidates, SchedulingPolicy } from '../../src/runtime/policies.js';
import type { SchedulerObserver, TaskHandle } from '../../src/runtime/scheduler.js';
import { RandomStream } from '../../src/runtime/random.js';
import { loadScenario } from '../../src/scenario/load.js';

interface Step {
  readonly task: number;
  /** Tasks that could have gone on instead. */
  readonly ready: readonly number[];
  /** By object and field: whether it was changed. */
  readonly words: Map<object, Map<string, boolean>>;
}

class Steps implements SchedulerObserver {
  readonly steps: Step[] = [];
  #ready: readonly number[] = [];

  chosen({ ready }: Candidates): void {
    this.#ready = ready.map(({ number }) => number);
  }

  resumed({ number }: TaskHandle<unknown>): void {
    this.steps.push({ task: number, ready: this.#ready, words: new Map() });
    this.#ready = [];
  }

  access(object: object, field: string, isWrite: boolean): void {
    const words = this.steps.at(-1)?.words;
    if (words === undefined) return;
    const fields = words.get(object) ?? new Map<string, boolean>();
    words.set(object, fields.set(field, isWrite || fields.get(field) === true));
  }

  lock(): void {
    // Locks tell of themselves by access, too.
  }

  started(): void {
    // Every task is there from the start.
  }

  suspended(): void {
    // Steps end where the next begins.
  }

  woken(): void {
    // Whoever wakes another changes its wait queue.
  }
}

function isConflict(a: Step, b: Step): boolean {
  for (const [object, fields] of a.words) {
    const others = b.words.get(object);
    if (others === undefined) continue;
    for (const [field, isWrite] of fields) {
      const other = others.get(field);
      if (other !== undefined && (isWrite || other)) return true;
    }
  }
  return false;
}

/** Lets tasks go on in this order, at random behind its end. */
function run(
  program: Program,
  order: readonly number[],
  seed: number,
): { ran: ProgramOutcome; steps: readonly Step[] } {
  const looker = new Steps();
  const random = new RandomStream(seed, 'commute');
  const policy: SchedulingPolicy = {
    name: 'order',
    preemptsAtGates: true,
    stalls: false,
    choose({ ready }) {
      const wanted = order[looker.steps.length];
      const index = ready.findIndex(({ number }) => number === wanted);
      return index >= 0 ? index : random.below(ready.length);
    },
  };
  const ran = runProgram(program, { seed: 1, schedule: { strategy: 'policy', policy }, observer: looker });
  return { ran, steps: looker.steps };
}

const SCENARIOS = {
  mappings: `
kernel-only: {}
setup:
  - device: { as: dev }
  - map: { iova: 0x1000000, length: 16 KiB, from: { offset: 0 }, prot: rw }
tasks:
  a:
    - unmap: { iova: 0x1000000, length: 16 KiB }
    - map: { iova: 0x1000000, length: 16 KiB, from: { offset: 16384 }, prot: rw }
  b:
    - dma: { device: dev, iova: 0x1000000, length: 8 KiB }
    - map: { iova: 0x2000000, length: 16 KiB, from: { offset: 0 }, prot: r }
  c:
    - unmap: {}
    - copy: { from: { ioas: main, iova: 0x2000000 }, to: { ioas: main, iova: 0x3000000 }, length: 16 KiB }`,
  objects: `
kernel-only: {}
setup:
  - device: { as: dev }
  - ioas: { as: second }
  - access: { as: acc, ioas: main }
  - fault-queue: { as: queue }
  - map: { iova: 0x1000000, length: 16 KiB, from: { offset: 0 }, prot: rw }
tasks:
  a:
    - replace: { device: dev, to: second }
    - destroy: { object: main }
  b:
    - pin: { access: acc, iova: 0x1000000, length: 8 KiB, as: pinned }
    - access-replace: { access: acc, ioas: second }
  c:
    - hwpt: { as: table, device: dev, dirty: true, fault-queue: queue }
    - track-dirty: { hwpt: table, on: true }
    - close: { file: queue }
  d:
    - unmap: { iova: 0x1000000, length: 16 KiB }
    - ioas: { as: third }`,
  hardware: `
kernel-only: { iommu: arm-smmu-v3, ats: true }
setup:
  - device: { as: dev }
  - device: { as: other }
  - map: { iova: 0x1000000, length: 16 KiB, from: { offset: 0 }, prot: rw }
tasks:
  a:
    - unmap: { iova: 0x1000000, length: 16 KiB }
    - map: { iova: 0x1000000, length: 16 KiB, from: { offset: 16384 }, prot: rw }
  b:
    - dma: { device: dev, iova: 0x1000000, length: 8 KiB }
  c:
    - dma: { device: other, iova: 0x1000000, length: 8 KiB }
    - map: { iova: 0x2000000, length: 8 KiB, from: { offset: 0 }, prot: rw }`,
  cards: `
kernel-only: { iommu: mock }
setup:
  - card: { as: source }
  - set-state: { card: source, state: stop-copy }
  - save: { card: source, as: state }
  - set-state: { card: source, state: running }
  - card: { as: target }
  - set-state: { card: target, state: resuming }
tasks:
  a:
    - card-dma: { card: source }
    - card-dma: { card: source }
  b:
    - load: { card: target, from: state }
  c:
    - set-state: { card: target, state: stop }
  d:
    - set-state: { card: source, state: stop }
    - set-state: { card: source, state: running }`,
  reports: `
kernel-only: { iommu: mock }
setup:
  - device: { as: dev, dirty: true }
  - map: { iova: 0x1000000, length: 8 KiB }
  - hwpt: { as: table, device: dev, dirty: true }
  - replace: { device: dev, to: table }
  - track-dirty: { hwpt: table, on: true }
tasks:
  a:
    - dma: { device: dev, iova: 0x1000000, length: 8 KiB }
    - dma: { device: dev, iova: 0x1000000, length: 4 KiB }
  b:
    - read-dirty: { hwpt: table, iova: 0x1000000, length: 8 KiB }
    - unmap: { iova: 0x1001000, length: 4 KiB }
  c:
    - map: { iova: 0x2000000, length: 8 KiB }
    - track-dirty: { hwpt: table, on: false }`,
};

test.each(Object.entries(SCENARIOS))('steps without a conflict can be swapped: %s', (name, text) => {
  const scenario = loadScenario(`${name}.yaml`, `title: ${name}${text}\n`);
  const program = scenario.kernelOnly?.program;
  expect(program).toBeDefined();
  if (program === undefined) return;
  let swaps = 0;
  for (let seed = 0; seed < 12; seed++) {
    const { ran, steps } = run(program, [], seed);
    const order = steps.map(({ task }) => task);
    for (let at = 0; at + 1 < steps.length; at++) {
      const [a, b] = [steps[at], steps[at + 1]];
      if (a === undefined || b === undefined || a.task === b.task || !a.ready.includes(b.task) || isConflict(a, b))
        continue;
      const swapped = run(program, order.with(at, b.task).with(at + 1, a.task), seed);
      const where = `seed ${seed}, steps ${at} (task ${a.task}) and ${at + 1} (task ${b.task})`;
      const answers = ({ results }: ProgramOutcome): string[] =>
        results.map(({ task, call, text: answer }) => `${task} ${call.op} ${answer}`).sort();
      expect(answers(swapped.ran), where).toEqual(answers(ran));
      expect(swapped.ran.stateHash, where).toBe(ran.stateHash);
      expect(swapped.ran.failure?.signature, where).toBe(ran.failure?.signature);
      swaps++;
    }
  }
  expect(swaps).toBeGreaterThan(40);
});
