import { describe, expect, it } from 'vitest';
import { PhysicalDirectory, entryStamp, stampEntry } from '../../src/core/physical-directory.js';
import { ERRNO } from '../../src/uapi/errno.js';
import { KERNEL_BASE_PFN, smallArena } from './fixtures.js';

const TOP = 2 ** 40 - 1;

describe('PhysicalDirectory', () => {
  it('says absent, frame or stamp of each page up to 2^40', () => {
    const directory = new PhysicalDirectory(smallArena(1, 64));
    expect(directory.setFrame(0, 77)).toBe(0);
    expect(directory.setStamp(TOP, 0)).toBe(0);
    expect(directory.setStamp(5, 2 ** 52 - 1)).toBe(0);
    expect(directory.get(0)).toBe(77);
    expect(directory.get(1)).toBe(0);
    expect(entryStamp(directory.get(TOP))).toBe(0);
    expect(entryStamp(directory.get(5))).toBe(2 ** 52 - 1);
    expect(directory.setStamp(TOP + 1, 1)).toBe(-ERRNO.ERANGE);
    expect(directory.get(TOP + 1)).toBe(0);
    expect(directory.clear(TOP + 1)).toBe(0);
  });

  it('enumerates entries in ascending order across nodes', () => {
    const directory = new PhysicalDirectory(smallArena(1, 64));
    const pfns = [0, 1, 511, 512, 2 ** 19 - 1, 2 ** 19, 2 ** 29, 2 ** 29 + 513, TOP];
    for (const pfn of [...pfns].reverse()) directory.setStamp(pfn, pfn);
    expect([...directory.pages(0, TOP)]).toEqual(pfns);
    expect([...directory.pages(2, 2 ** 19)]).toEqual([511, 512, 2 ** 19 - 1, 2 ** 19]);
    expect(directory.nextEntry(2 ** 29 + 514)).toBe(TOP);
    directory.clear(TOP);
    expect(directory.nextEntry(2 ** 29 + 514)).toBe(-1);
  });

  it('replaces an entry only while it is the expected one', () => {
    const directory = new PhysicalDirectory(smallArena(1, 64));
    directory.setStamp(9, 3);
    expect(directory.replace(9, stampEntry(4), 50)).toBe(false);
    expect(directory.replace(9, stampEntry(3), 50)).toBe(true);
    expect(directory.clear(9)).toBe(50);
    expect(directory.replace(9, 50, 51)).toBe(false);
  });

  it('materialises a stamped page once', () => {
    const arena = smallArena(4, 64);
    const directory = new PhysicalDirectory(arena);
    directory.setStamp(123, 99);
    const frame = directory.materialise(123);
    expect(frame).toBeGreaterThan(0);
    expect(arena.frameHash(frame)).toBe(arena.stampHash(99));
    expect(directory.get(123)).toBe(frame);
    expect(directory.materialise(123)).toBe(frame);
    expect(directory.materialise(124)).toBe(0);
    expect(directory.materialise(KERNEL_BASE_PFN + 1)).toBe(arena.kernelFirst + 1);
    expect(directory.resolve(KERNEL_BASE_PFN + 1)).toBe(arena.kernelFirst + 1);
    expect(directory.resolve(KERNEL_BASE_PFN + 4)).toBe(0);
    expect(directory.get(KERNEL_BASE_PFN + 1)).toBe(0);
  });

  it('runs out of storage with ENOMEM and changes nothing', () => {
    const directory = new PhysicalDirectory(smallArena(1, 3));
    expect(directory.setStamp(7, 1)).toBe(0);
    expect(directory.setStamp(2 ** 30, 1)).toBe(-ERRNO.ENOMEM);
    expect(directory.materialise(7)).toBe(-ERRNO.ENOMEM);
    expect(entryStamp(directory.get(7))).toBe(1);
  });

  it('gives all its nodes back once empty', () => {
    const arena = smallArena(1, 256);
    const directory = new PhysicalDirectory(arena);
    for (const pfn of [0, 600, 2 ** 20, 2 ** 33]) directory.setStamp(pfn, 1);
    directory.clear(600);
    directory.trim();
    expect([0, 2 ** 20, 2 ** 33].map((pfn) => entryStamp(directory.get(pfn)))).toEqual([1, 1, 1]);
    expect(arena.storageFramesInUse).toBe(directory.nodeCount);
    for (const pfn of [0, 2 ** 20, 2 ** 33]) directory.clear(pfn);
    directory.trim();
    expect(directory.nodeCount).toBe(0);
    expect(arena.storageFramesInUse).toBe(0);
  });
});
