import { describe, expect, it } from 'vitest';
import { Bitmap } from '../../src/core/bitmap.js';
import { PageTable, pageSizesOf } from '../../src/core/page-table.js';
import { ERRNO } from '../../src/uapi/errno.js';
import { AF, BIT7, DBM_HI, made, mapAll, newTable, smallArena, unmapAll } from './fixtures.js';

const GRANULES = [12, 14, 16];

describe('shape of a page table', () => {
  // Start level and log2 of concatenated tables: Arm ARM D8.2 (R_DXBSH, R_SRKBC), as Linux 6.14 and later chooses them.
  it.each([
    { stage: 1, granuleShift: 12, inputBits: 48, outputBits: 48, startLevel: 0, concatenation: 0 },
    { stage: 1, granuleShift: 12, inputBits: 39, outputBits: 40, startLevel: 1, concatenation: 0 },
    { stage: 1, granuleShift: 14, inputBits: 48, outputBits: 48, startLevel: 0, concatenation: 0 },
    { stage: 1, granuleShift: 16, inputBits: 48, outputBits: 48, startLevel: 1, concatenation: 0 },
    { stage: 1, granuleShift: 16, inputBits: 52, outputBits: 52, startLevel: 1, concatenation: 0 },
    { stage: 2, granuleShift: 12, inputBits: 40, outputBits: 40, startLevel: 1, concatenation: 1 },
    { stage: 2, granuleShift: 12, inputBits: 42, outputBits: 42, startLevel: 1, concatenation: 3 },
    { stage: 2, granuleShift: 12, inputBits: 44, outputBits: 44, startLevel: 0, concatenation: 0 },
    { stage: 2, granuleShift: 12, inputBits: 48, outputBits: 48, startLevel: 0, concatenation: 0 },
    { stage: 2, granuleShift: 14, inputBits: 40, outputBits: 40, startLevel: 2, concatenation: 4 },
    { stage: 2, granuleShift: 14, inputBits: 48, outputBits: 48, startLevel: 1, concatenation: 1 },
    { stage: 2, granuleShift: 16, inputBits: 48, outputBits: 48, startLevel: 1, concatenation: 0 },
  ] as const)('stage $stage, granule 2^$granuleShift, $inputBits in, $outputBits out', (shape) => {
    const arena = smallArena();
    const table = newTable(arena, shape);
    expect(table).toMatchObject(shape);
    const rootBytes = 2 ** (Math.max(12, shape.granuleShift) + shape.concatenation);
    expect(table.rootAddress % Math.min(rootBytes, 2 ** 16)).toBe(0);
    expect(PageTable.open(arena, table.handle).rootPfn).toBe(table.rootPfn);
    table.destroy();
    expect([arena.kernelFramesInUse, arena.storageFramesInUse]).toEqual([0, 0]);
  });

  it.each([
    { inputBits: 49 },
    { inputBits: 12 },
    { outputBits: 52 },
    { outputBits: 31 },
    { granuleShift: 13 },
    { pageSizes: [2 ** 21] },
    { pageSizes: [4096, 2 ** 14] },
    { pageSizes: [] },
    { stage: 2 as const, inputBits: 48, outputBits: 40 },
  ])('refuses %j', (wrong) => {
    const options = { stage: 1 as const, granuleShift: 12, inputBits: 48, outputBits: 48, pageSizes: [4096], ...wrong };
    const arena = smallArena();
    expect(PageTable.create(arena, options)).toBe(-ERRNO.EINVAL);
    expect([arena.kernelFramesInUse, arena.storageFramesInUse]).toEqual([0, 0]);
  });

  it('answers ENOMEM without leaking when kernel frames run out', () => {
    const arena = smallArena(1, 8);
    arena.allocKernel();
    const options = { stage: 1 as const, granuleShift: 12, inputBits: 48, outputBits: 48, pageSizes: [4096] };
    expect(PageTable.create(arena, options)).toBe(-ERRNO.ENOMEM);
    expect(arena.storageFramesInUse).toBe(0);
  });
});

describe.each(GRANULES)('leaves with granule 2^%i', (granuleShift) => {
  const bits = granuleShift - 3;
  const blockPages = 2 ** bits;

  it('writes bit-exact page descriptors', () => {
    const table = newTable(smallArena(), { granuleShift });
    expect(mapAll(table, 5, 0x1234, 2, AF | BIT7, DBM_HI)).toBe(0);
    const address = BigInt(0x1235) << BigInt(granuleShift);
    const expected = address | (1n << 51n) | BigInt(AF | BIT7 | 3);
    const leaf = table.nextLeaf(6);
    expect(leaf).toMatchObject({ firstPage: 6, pageCount: 1, paPage: 0x1235, level: 3 });
    expect((BigInt(leaf?.descHi ?? 0) << 32n) | BigInt(leaf?.descLo ?? 0)).toBe(expected);
  });

  it('uses a block where input and output are aligned to it, pages elsewhere', () => {
    const table = newTable(smallArena(), { granuleShift });
    expect(mapAll(table, blockPages - 1, 3 * blockPages - 1, blockPages + 2)).toBe(0);
    expect([...table.leaves()].map(({ firstPage, pageCount, level }) => [firstPage, pageCount, level])).toEqual([
      [blockPages - 1, 1, 3],
      [blockPages, blockPages, 2],
      [2 * blockPages, 1, 3],
    ]);
    expect(table.nextLeaf(blockPages)?.descLo).toBe(((3 * blockPages * 2 ** granuleShift) | AF | 1) >>> 0);
    expect(table.translate(2 * blockPages - 1)).toBe(4 * blockPages - 1);
    expect(mapAll(table, 4 * blockPages, 1, blockPages)).toBe(0);
    expect(table.nextLeaf(4 * blockPages)?.level).toBe(3);
  });

  it('uses no block size that is not allowed', () => {
    const table = newTable(smallArena(), { granuleShift, pageSizes: pageSizesOf(granuleShift).slice(0, 1) });
    expect(mapAll(table, 0, 0, blockPages)).toBe(0);
    expect(table.nextLeaf(0)).toMatchObject({ level: 3, pageCount: 1 });
  });
});

describe('mapping', () => {
  it('uses 1 GiB blocks with the 4 KiB granule, also from a concatenated root', () => {
    const table = newTable(smallArena(), { stage: 2, inputBits: 40, outputBits: 40 });
    const gib = 2 ** 18;
    expect(mapAll(table, 511 * gib, 2 * gib, 3 * gib)).toBe(0);
    expect([...table.leaves()].map(({ firstPage, level }) => [firstPage / gib, level])).toEqual([
      [511, 1],
      [512, 1],
      [513, 1],
    ]);
    expect(table.translate(513 * gib + 7)).toBe(4 * gib + 7);
  });

  it('keeps address bits 51..48 of the 64 KiB granule in descriptor bits 15..12', () => {
    const table = newTable(smallArena(), { granuleShift: 16, inputBits: 52, outputBits: 52 });
    const paPage = 2 ** 36 - 1;
    expect(mapAll(table, 2 ** 36 - 1, paPage, 1)).toBe(0);
    const leaf = table.nextLeaf(0);
    expect(leaf).toMatchObject({ firstPage: 2 ** 36 - 1, paPage });
    expect(leaf?.descLo).toBe(0xfffff000 + AF + 3);
    expect(leaf?.descHi).toBe(0xffff);
    expect(table.translate(2 ** 36 - 1)).toBe(paPage);
  });

  it('carries the address into bits 51..48 within one run', () => {
    const table = newTable(smallArena(), { granuleShift: 16, inputBits: 48, outputBits: 52 });
    expect(mapAll(table, 0, 2 ** 32 - 3, 6)).toBe(0);
    expect([...table.leaves()].map((leaf) => leaf.paPage - 2 ** 32)).toEqual([-3, -2, -1, 0, 1, 2]);
    expect([2, 3].map((page) => table.nextLeaf(page)?.descLo)).toEqual([0xffff0000 + AF + 3, 0x1000 + AF + 3]);
    expect(unmapAll(table, 0, 6)).toBe(6);
    expect(mapAll(table, 2 ** 13, 2 ** 32 - 2 ** 13, 2 ** 14)).toBe(0);
    expect([...table.leaves()].map((leaf) => [leaf.level, leaf.paPage - 2 ** 32])).toEqual([
      [2, -(2 ** 13)],
      [2, 0],
    ]);
  });

  it('refuses to map over a leaf, under a block or over a table in use', () => {
    const table = newTable(smallArena());
    const gather = { head: 0 };
    mapAll(table, 512, 512, 512);
    mapAll(table, 1029, 9, 1);
    expect(table.mapStep(512, 512, 512, AF, 0, gather)).toBe(-ERRNO.EEXIST);
    expect(table.mapStep(600, 1, 1, AF, 0, gather)).toBe(-ERRNO.EEXIST);
    expect(table.mapStep(1024, 1024, 512, AF, 0, gather)).toBe(-ERRNO.EEXIST);
    expect(table.mapStep(1027, 1, 4, AF, 0, gather)).toBe(2);
    expect(table.mapStep(1029, 3, 2, AF, 0, gather)).toBe(-ERRNO.EEXIST);
    expect(gather.head).toBe(0);
    expect(table.translate(1029)).toBe(9);
  });

  it('takes an empty table out of the way of a block, in two steps', () => {
    const arena = smallArena();
    const table = newTable(arena);
    const gather = { head: 0 };
    mapAll(table, 3, 3, 1);
    unmapAll(table, 3, 1);
    const before = arena.kernelFramesInUse;
    expect(table.mapStep(0, 512, 512, AF, 0, gather)).toBe(0);
    expect(table.tableCleared).toBe(true);
    expect(gather.head).not.toBe(0);
    expect(arena.kernelFramesInUse).toBe(before);
    table.freeGathered(gather);
    expect(arena.kernelFramesInUse).toBe(before - 1);
    expect(table.mapStep(0, 512, 512, AF, 0, gather)).toBe(512);
    expect(table.tableCleared).toBe(false);
    expect(table.nextLeaf(0)).toMatchObject({ level: 2, paPage: 512 });
  });

  it('stops a step at the end of a table', () => {
    const table = newTable(smallArena());
    expect(table.mapStep(500, 1, 100, AF, 0, { head: 0 })).toBe(12);
  });

  it('checks its arguments', () => {
    const table = newTable(smallArena(), { inputBits: 39, outputBits: 40 });
    const gather = { head: 0 };
    expect(table.mapStep(2 ** 27, 0, 1, AF, 0, gather)).toBe(-ERRNO.ERANGE);
    expect(table.mapStep(2 ** 27 - 1, 0, 2, AF, 0, gather)).toBe(-ERRNO.ERANGE);
    expect(table.mapStep(-1, 0, 1, AF, 0, gather)).toBe(-ERRNO.ERANGE);
    expect(table.mapStep(0, 2 ** 28, 1, AF, 0, gather)).toBe(-ERRNO.ERANGE);
    expect(table.mapStep(0, 0, 0, AF, 0, gather)).toBe(-ERRNO.EINVAL);
    expect(table.mapStep(0, 0, 1, AF | 1, 0, gather)).toBe(-ERRNO.EINVAL);
    expect(table.mapStep(0, 0, 1, AF, 1, gather)).toBe(-ERRNO.EINVAL);
    expect(table.mapStep(2 ** 27 - 1, 2 ** 28 - 1, 1, AF, 0, gather)).toBe(1);
    expect(table.translate(2 ** 27)).toBe(-1);
    expect(table.unmapStep(2 ** 27 - 1, 2, gather)).toBe(-ERRNO.ERANGE);
    expect(table.unmapStep(0, 0, gather)).toBe(-ERRNO.EINVAL);
  });

  it('answers ENOMEM when a table cannot be had, and can go on later', () => {
    const arena = smallArena(8, 8);
    const table = newTable(arena);
    let calls = 0;
    arena.setKernelAllocFault(() => ++calls === 2);
    expect(mapAll(table, 0, 0, 1)).toBe(-ERRNO.ENOMEM);
    expect(mapAll(table, 0, 0, 1)).toBe(0);
    table.destroy();
    expect(arena.kernelFramesInUse).toBe(0);
  });
});

describe('unmapping', () => {
  it('reports holes with their size', () => {
    const table = newTable(smallArena());
    const gather = { head: 0 };
    mapAll(table, 10, 0, 2);
    expect(table.unmapStep(12, 5, gather)).toBe(0);
    expect(table.holePages).toBe(1);
    expect(table.unmapStep(512, 2000, gather)).toBe(0);
    expect(table.holePages).toBe(512);
    expect(table.unmapStep(2 ** 27 + 1, 2 ** 28, gather)).toBe(0);
    expect(table.holePages).toBe(2 ** 27 - 1);
    expect(table.unmapStep(10, 5, gather)).toBe(2);
    expect(table.unmappedPages).toBe(2);
    expect(gather.head).toBe(0);
  });

  it('does not split a block', () => {
    const table = newTable(smallArena());
    const gather = { head: 0 };
    mapAll(table, 512, 512, 1024);
    expect(table.unmapStep(512, 511, gather)).toBe(-ERRNO.EINVAL);
    expect(table.unmapStep(513, 511, gather)).toBe(-ERRNO.EINVAL);
    expect(table.unmapStep(512, 1023, gather)).toBe(512);
    expect(table.translate(512)).toBe(-1);
    expect(table.translate(1024)).toBe(1024);
    expect(table.unmapStep(1024, 511, gather)).toBe(-ERRNO.EINVAL);
  });

  it('keeps a table whose range is not wholly owned, frees it when it is', () => {
    const arena = smallArena();
    const table = newTable(arena);
    const gather = { head: 0 };
    mapAll(table, 0, 1, 512);
    const withTable = arena.kernelFramesInUse;
    expect(table.unmapStep(0, 511, gather)).toBe(511);
    expect(table.tableCleared).toBe(false);
    expect(table.unmapStep(0, 512, gather)).toBe(512);
    expect([table.tableCleared, table.unmappedPages]).toEqual([true, 1]);
    expect(arena.kernelFramesInUse).toBe(withTable);
    table.freeGathered(gather);
    expect(arena.kernelFramesInUse).toBe(withTable - 1);
  });

  it('leaves the contents of gathered tables alone until they are freed', () => {
    const arena = smallArena();
    const table = newTable(arena);
    const gather = { head: 0 };
    mapAll(table, 0, 1, 512);
    const before = table.nextLeaf(3)?.descLo;
    table.unmapStep(0, 512, gather);
    expect(arena.word(gather.head * 4096 + 3 * 8) >>> 0).toBe(before);
  });

  it('takes out a whole gibibyte of tables in one step', () => {
    const arena = smallArena();
    const table = newTable(arena);
    const before = arena.kernelFramesInUse;
    for (const iova of [0, 600, 2 ** 18 - 1, 2 ** 18]) mapAll(table, iova, 1, 1);
    const gather = { head: 0 };
    expect(table.unmapStep(0, 2 ** 18 + 1, gather)).toBe(2 ** 18);
    expect(table.unmappedPages).toBe(3);
    table.freeGathered(gather);
    expect(table.unmapStep(2 ** 18, 1, gather)).toBe(1);
    // Left: the level-1 table, and the two below it for the last page.
    expect(arena.kernelFramesInUse).toBe(before + 3);
    table.destroy();
    expect(arena.kernelFramesInUse).toBe(0);
  });
});

describe('dirty state', () => {
  const STAGES = [
    { stage: 1 as const, dirty: 0, clean: BIT7 },
    { stage: 2 as const, dirty: BIT7, clean: 0 },
  ];

  it.each(STAGES)('of stage $stage is read, and cleaned unless told not to', ({ stage, dirty, clean }) => {
    const arena = smallArena();
    const table = newTable(arena, { stage });
    const bitmap = made(Bitmap.create(arena, 4096));
    mapAll(table, 100, 1, 1, AF | dirty, DBM_HI);
    mapAll(table, 101, 3, 1, AF | clean, DBM_HI);
    mapAll(table, 102, 5, 1, AF | dirty);
    mapAll(table, 103, 7, 1, AF | dirty, DBM_HI);
    const dirtyBits = (noClear: boolean): number[] => {
      bitmap.clear();
      expect(table.readDirty(100, 4, bitmap.offset, 100, 12, noClear)).toBe(4);
      return [0, 1, 2, 3].filter((bit) => bitmap.count(bit, 1) === 1);
    };
    expect(dirtyBits(true)).toEqual([0, 3]);
    expect(dirtyBits(false)).toEqual([0, 3]);
    expect(dirtyBits(true)).toEqual([]);
    expect(table.nextLeaf(100)?.descLo).toBe(4096 + AF + clean + 3);
    expect(table.nextLeaf(102)?.descLo).toBe(5 * 4096 + AF + dirty + 3);
  });

  it('stops at the first hole', () => {
    const arena = smallArena();
    const table = newTable(arena);
    const bitmap = made(Bitmap.create(arena, 4096));
    mapAll(table, 0, 1, 700, AF, DBM_HI);
    mapAll(table, 701, 1, 10, AF, DBM_HI);
    expect(table.readDirty(0, 711, bitmap.offset, 0, 12, false)).toBe(700);
    expect(bitmap.count()).toBe(700);
    expect(table.setClean(701, 20)).toBe(10);
    expect(table.readDirty(701, 10, bitmap.offset, 0, 12, false)).toBe(10);
    expect(bitmap.count()).toBe(700);
    expect(table.readDirty(5000, 1, bitmap.offset, 0, 12, false)).toBe(0);
    expect(table.setClean(0, 0)).toBe(-ERRNO.EINVAL);
    expect(table.setClean(2 ** 36, 1)).toBe(-ERRNO.ERANGE);
  });

  it('sets every bit of a dirty block, cut to the range, at any bitmap page size', () => {
    const arena = smallArena();
    const table = newTable(arena);
    const bitmap = made(Bitmap.create(arena, 4096));
    mapAll(table, 512, 512, 512, AF, DBM_HI);
    expect(table.readDirty(520, 600, bitmap.offset, 500, 12, true)).toBe(504);
    expect([bitmap.nextSet(0), bitmap.count()]).toEqual([20, 504]);
    bitmap.clear();
    table.readDirty(512, 512, bitmap.offset, 0, 14, true);
    expect([bitmap.nextSet(0), bitmap.count()]).toEqual([128, 128]);
    bitmap.clear();
    table.readDirty(512, 512, bitmap.offset, 512, 11, false);
    expect([bitmap.nextSet(0), bitmap.count()]).toEqual([0, 1024]);
    expect(table.nextLeaf(512)?.descLo).toBe((512 * 4096) | AF | BIT7 | 1);
  });
});
