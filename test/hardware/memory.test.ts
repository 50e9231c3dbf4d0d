import { describe, expect, it } from 'vitest';
import { Arena } from '../../src/core/arena.js';
import { PhysicalMemory } from '../../src/hardware/memory.js';

const GIB_PAGES = 2 ** 18;

function machine(): { arena: Arena; memory: PhysicalMemory } {
  const arena = Arena.create({ kernelFrames: 64, storageFrames: 512, kernelBasePfn: 0x80000 });
  const memory = new PhysicalMemory(arena, [
    { start: 0x80000000n, last: 0xffffffffn },
    { start: 0x8000000000n, last: 0x1ffffffffffn },
    { start: 0x20000000000n, last: 0x2ffffffffffn },
  ]);
  return { arena, memory };
}

describe('physical memory', () => {
  it('does not answer outside its banks, and answers across banks that touch', () => {
    const { memory } = machine();
    expect(memory.read(0x7fffffff, 1)).toBeUndefined();
    expect(memory.read(0xffffffff, 2)).toBeUndefined();
    expect(memory.write(0x100000000, new Uint8Array(1))).toBe(false);
    expect(memory.store64(0x70000000, 1, 2)).toBe(false);
    expect(memory.load64(0x80000004)).toBeUndefined();
    expect(memory.write(0x20000000000 - 2, Uint8Array.of(1, 2, 3, 4))).toBe(true);
    expect(memory.read(0x20000000000 - 1, 2)).toEqual(Uint8Array.of(2, 3));
  });

  it('is the arena where the kernel window is', () => {
    const { arena, memory } = machine();
    const frame = arena.allocKernel();
    const pa = arena.frameToPfn(frame) * 4096;
    arena.words[arena.frameOffset(frame) / 4 + 2] = 0x12345678;
    expect(memory.load64(pa + 8)).toEqual([0x12345678, 0]);
    memory.store64(pa + 16, 5, 6);
    expect(arena.word(arena.frameOffset(frame) + 20)).toBe(6);
  });

  it('describes a TiB in one run and materialises what is written only', () => {
    const { arena, memory } = machine();
    const first = 0x8000000;
    const pages = 1024 * GIB_PAGES;
    const before = arena.storageFramesInUse;
    memory.setPageStamps(first, pages, 7, 1);
    expect(arena.storageFramesInUse).toBe(before);
    expect(memory.pageContents(first, pages)).toEqual([{ firstPage: 0, pages, stamp: 7, step: 1 }]);
    const expected = memory.read((first + 5) * 4096, 16);
    memory.write((first + 5) * 4096 + 100, Uint8Array.of(1));
    const runs = memory.pageContents(first, pages);
    expect(runs.map((run) => [run.firstPage, run.pages, 'bytes' in run])).toEqual([
      [0, 5, false],
      [5, 1, true],
      [6, pages - 6, false],
    ]);
    expect(memory.read((first + 5) * 4096, 16)).toEqual(expected);
    memory.clearPages(first, pages);
    memory.directory.trim();
    expect(arena.storageFramesInUse).toBe(before);
  });

  it('compares and swaps doublewords', () => {
    const { memory } = machine();
    expect(memory.compareAndSwap64(0x90000000, 0, 0, 1, 2)).toBe(true);
    expect(memory.compareAndSwap64(0x90000000, 0, 0, 3, 4)).toBe(false);
    expect(memory.load64(0x90000000)).toEqual([1, 2]);
    expect(memory.compareAndSwap64(0x90000000, 1, 2, 0xffffffff, 0xffffffff)).toBe(true);
    expect(memory.load64(0x90000000)).toEqual([0xffffffff, 0xffffffff]);
  });
});
