import { describe, expect, it } from 'vitest';
import type { Arena } from '../../src/core/arena.js';
import { PhysicalDirectory } from '../../src/core/physical-directory.js';
import type { PageTable } from '../../src/core/page-table.js';
import {
  TableWalker,
  WALK_ABSENT,
  WALK_BEYOND,
  WALK_INVALID,
  WALK_LEAF,
  WALK_STAMP,
} from '../../src/core/table-walk.js';
import { AF, mapAll, newTable, smallArena } from './fixtures.js';

function walkTable(walker: TableWalker, table: PageTable, inputPfn: number): number {
  const { rootAddress, concatenation, startLevel, granuleShift } = table;
  return walker.walk(rootAddress, concatenation, startLevel, granuleShift, inputPfn);
}

/** Writes a descriptor into memory the way a guest would: at a physical byte address the directory has a frame for. */
function poke(arena: Arena, address: number, desc: bigint): void {
  const frame = new PhysicalDirectory(arena).materialise(Math.floor(address / 4096));
  arena.longs[(frame * 4096 + (address % 4096)) / 8] = desc;
}

describe('TableWalker over tables of the kernel', () => {
  it.each([
    { stage: 1 as const, granuleShift: 12, inputBits: 48, outputBits: 48 },
    { stage: 2 as const, granuleShift: 12, inputBits: 42, outputBits: 42 },
    { stage: 2 as const, granuleShift: 14, inputBits: 40, outputBits: 40 },
    { stage: 1 as const, granuleShift: 16, inputBits: 52, outputBits: 52 },
  ])('agrees with translate: %j', (shape) => {
    const arena = smallArena();
    const walker = new TableWalker(arena);
    const table = newTable(arena, shape);
    const scale = 2 ** (shape.granuleShift - 12);
    const block = 2 ** (shape.granuleShift - 3);
    const top = 2 ** (shape.inputBits - shape.granuleShift);
    mapAll(table, 7, 1000, 3);
    mapAll(table, top - block, block, block);
    for (const page of [6, 7, 9, 10, top - block - 1, top - block, top - 1]) {
      const pa = table.translate(page);
      for (const part of new Set([0, scale - 1])) {
        expect(walkTable(walker, table, page * scale + part)).toBe(pa < 0 ? WALK_INVALID : WALK_LEAF);
        if (pa >= 0) expect(walker.outPfn).toBe(pa * scale + part);
      }
    }
    const { granuleShift, startLevel, concatenation } = table;
    const reach = 2 ** (granuleShift + (4 - startLevel) * (granuleShift - 3) + concatenation - 12);
    expect(walkTable(walker, table, reach)).toBe(WALK_BEYOND);
  });

  it('says which descriptor a walk ended at', () => {
    const arena = smallArena();
    const walker = new TableWalker(arena);
    const table = newTable(arena);
    mapAll(table, 0x12345, 99, 1);
    expect(walkTable(walker, table, 0x12345)).toBe(WALK_LEAF);
    expect(walker.level).toBe(3);
    expect(walker.descLo).toBe(99 * 4096 + AF + 3);
    expect(walker.descOffset).toBe((0x12345 % 512) * 8);
    const { descPfn, descOffset } = walker;
    expect(walkTable(walker, table, 2 ** 27)).toBe(WALK_INVALID);
    expect([walker.level, walker.descPfn, walker.descOffset]).toEqual([0, table.rootPfn, 8]);

    expect(walker.load(descPfn, descOffset)).toBe(WALK_LEAF);
    const { descLo, descHi } = walker;
    expect(walker.cas(descPfn, descOffset, descLo, descHi, descLo | 0x80, 0x80000)).toBe(WALK_LEAF);
    expect(walker.cas(descPfn, descOffset, descLo, descHi, 0, 0)).toBe(WALK_INVALID);
    expect([walker.descLo, walker.descHi]).toEqual([(descLo | 0x80) >>> 0, 0x80000]);
  });
});

describe('TableWalker over tables in other memory', () => {
  it('follows them through the directory, and says which page is missing or a stamp', () => {
    const arena = smallArena();
    const directory = new PhysicalDirectory(arena);
    const walker = new TableWalker(arena);
    const [root, middle, last] = [0x100000, 0x100005, 0x200007];
    directory.setStamp(root, 0);
    poke(arena, root * 4096 + 8, (BigInt(middle) << 12n) | 3n | (1n << 61n));
    expect(walker.walk(root * 4096, 0, 1, 12, 2 ** 18)).toBe(WALK_ABSENT);
    expect([walker.level, walker.descPfn]).toEqual([2, middle]);
    directory.setStamp(middle, 1);
    expect(walker.walk(root * 4096, 0, 1, 12, 2 ** 18)).toBe(WALK_STAMP);
    expect([walker.level, walker.descPfn]).toEqual([2, middle]);
    poke(arena, middle * 4096, (BigInt(last) << 12n) | 3n | (1n << 59n));
    directory.setStamp(last, 0);
    poke(arena, last * 4096 + 16, (0xabcden << 12n) | 3n | (1n << 54n));
    expect(walker.walk(root * 4096, 0, 1, 12, 2 ** 18 + 2)).toBe(WALK_LEAF);
    expect([walker.outPfn, walker.tableAttrs, walker.descHi]).toEqual([0xabcde, 0b101, 1 << 22]);
    expect(walker.load(last, 24)).toBe(WALK_LEAF);
    expect(walker.load(last + 1, 0)).toBe(WALK_ABSENT);
    directory.setStamp(last + 1, 3);
    expect(walker.cas(last + 1, 0, 0, 0, 1, 1)).toBe(WALK_STAMP);
  });

  it('takes reserved types as invalid and reports blocks at any level', () => {
    const arena = smallArena();
    const walker = new TableWalker(arena);
    new PhysicalDirectory(arena).setStamp(16, 0);
    poke(arena, 16 * 4096, 0x8000_0000_0001n);
    expect(walker.walk(16 * 4096, 0, 3, 12, 0)).toBe(WALK_INVALID);
    expect(walker.walk(16 * 4096, 0, 0, 12, 5)).toBe(WALK_LEAF);
    expect([walker.level, walker.outPfn]).toEqual([0, 0x800000005]);
    poke(arena, 16 * 4096, 0x1000n | 2n);
    expect(walker.walk(16 * 4096, 0, 3, 12, 0)).toBe(WALK_INVALID);
  });

  it('starts at a root smaller than a page', () => {
    const arena = smallArena();
    const walker = new TableWalker(arena);
    new PhysicalDirectory(arena).setStamp(16, 0);
    poke(arena, 16 * 4096 + 64 + 8, (5n << 12n) | 1n);
    expect(walker.walk(16 * 4096 + 64, 0, 2, 12, 512 + 3)).toBe(WALK_LEAF);
    expect(walker.descOffset).toBe(72);
  });
});
