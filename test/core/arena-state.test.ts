/** Putting an arena back: what comes after finds what a new arena has. */
import { expect, test } from 'vitest';
import { Arena } from '../../src/core/arena.js';
import { IntervalIndex } from '../../src/core/interval-index.js';
import { runProgram, type ProgramOutcome } from '../../src/host/run-program.js';
import { eventLine } from '../../src/runtime/events.js';
import { readScenario } from '../../src/scenario/load.js';
import { sabotaged } from '../../src/scenario/sabotage.js';

function small(): Arena {
  return Arena.create({ kernelFrames: 32, storageFrames: 32, kernelBasePfn: 0x80000 });
}

/** Takes frames of both kinds and several sizes, writes all over them, and gives some back. */
function use(arena: Arena): number[] {
  const kernel = [0, 2, 0, 1].map((order) => arena.allocKernel(order));
  const storage = [1, 0, 0].map((order) => arena.allocFrame(order));
  for (const frame of [...kernel, ...storage]) arena.frameBytes(frame).fill(0xa5);
  arena.freeKernel(kernel[1] ?? 0, 2);
  arena.freeFrame(storage[1] ?? 0);
  return [...kernel, ...storage];
}

test('the same frames are given out again, zeroed, and nothing is in use', () => {
  const arena = small();
  const state = arena.save();
  const first = use(arena);
  expect([arena.kernelFramesInUse, arena.storageFramesInUse]).toEqual([4, 3]);
  arena.restore(state);
  expect([arena.kernelFramesInUse, arena.storageFramesInUse]).toEqual([0, 0]);
  expect(first.every((frame) => !arena.isAllocated(frame))).toBe(true);
  const fresh = arena.allocKernel(3);
  for (let i = 0; i < 8; i++) expect(arena.frameIsZero(fresh + i)).toBe(true);
  arena.restore(state);
  expect(use(arena)).toEqual(first);
});

test('everything can be taken once more: nothing is lost by what was not freed', () => {
  const arena = small();
  const state = arena.save();
  const takeAll = (): number => {
    let taken = 0;
    while (arena.allocKernel() !== 0) taken++;
    while (arena.allocFrame() !== 0) taken++;
    return taken;
  };
  const all = takeAll();
  expect(all).toBe(64);
  for (let i = 0; i < 3; i++) {
    arena.restore(state);
    expect(takeAll()).toBe(all);
  }
});

test('a tree made after it is empty', () => {
  const arena = small();
  const state = arena.save();
  const made = (): IntervalIndex => {
    const index = IntervalIndex.create(arena);
    if (typeof index === 'number') throw new Error('no memory');
    return index;
  };
  const tree = made();
  for (let i = 0n; i < 40n; i++) tree.insert(i * 16n, i * 16n + 7n, Number(i));
  arena.restore(state);
  const again = made();
  expect(again.size).toBe(0);
  expect(again.firstOverlap(0n, 2n ** 64n - 1n)).toBeUndefined();
});

test('an arena with frames in use is not saved', () => {
  const arena = small();
  const frame = arena.allocKernel();
  expect(() => arena.save()).toThrow('saved with frames in use');
  arena.freeKernel(frame);
  expect(() => arena.save()).not.toThrow();
});

test.each(['stale-asid', 'growing-root'])('%s: a run after one that broke off is as the first', (name) => {
  const scenario = readScenario(`scenarios/races/${name}.yaml`);
  const broken = sabotaged(scenario)?.kernelOnly?.program;
  const whole = scenario.kernelOnly?.program;
  if (broken === undefined || whole === undefined) throw new Error('a kernel-only scenario that names its fault');
  const run = (program: typeof whole, seed: number): ProgramOutcome =>
    runProgram(program, { seed: 1, schedule: { strategy: 'explored', seed } });
  const first = run(whole, 5);
  const seeds = Array.from({ length: 200 }, (_, seed) => seed);
  expect(seeds.some((seed) => run(broken, seed).failure !== undefined)).toBe(true);
  const again = run(whole, 5);
  expect(again.events.map(eventLine)).toEqual(first.events.map(eventLine));
  expect([again.choices, again.stateHash]).toEqual([first.choices, first.stateHash]);
});
