/** Record pools and sharded indices. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { IntervalIndex } from '../../src/core/interval-index.js';
import { RecordPool } from '../../src/core/record-pool.js';
import { ShardedIndex, shardsOf } from '../../src/core/sharded-index.js';
import { made, smallArena } from './fixtures.js';

describe('record pool', () => {
  test('gives every record once, remembers whose it is, and takes it back once', () => {
    const arena = smallArena();
    const pool = RecordPool.create(arena, 64, 64, 1);
    if (pool === undefined) throw new Error('no pool');
    const other = RecordPool.open(arena, pool.handle, 2);
    const claimed = Array.from({ length: 64 }, (_, i) => (i % 2 === 0 ? pool.claim(1) : other.claim(2)));
    expect(new Set(claimed).size).toBe(64);
    expect([pool.claim(1), other.claimant(claimed[1] ?? 0), [...pool.taken()].length]).toEqual([0, 2, 64]);
    other.free(claimed[0] ?? 0);
    expect(other.claim(2)).toBe(claimed[0]);
    pool.free(claimed[5] ?? 0);
    expect(() => pool.free(claimed[5] ?? 0)).toThrow('twice');
  });
});

describe('sharded index', () => {
  const sharding = { count: 4, windowShift: 8 };

  test('a range touches the trees of its windows', () => {
    expect(shardsOf(sharding, 0n, 255n)).toBe(0b0001);
    expect(shardsOf(sharding, 255n, 256n)).toBe(0b0011);
    expect(shardsOf(sharding, 0x3ffn, 0x400n)).toBe(0b1001);
    expect(shardsOf(sharding, 0n, 2n ** 64n - 1n)).toBe(0b1111);
  });

  test('finds what one tree finds', () => {
    const range = fc.tuple(fc.integer({ min: 0, max: 4000 }), fc.integer({ min: 1, max: 700 }));
    const step = fc.tuple(fc.constantFrom('insert', 'remove', 'find'), range);
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const arena = smallArena();
        const one = made(IntervalIndex.create(arena));
        const many = made(ShardedIndex.create(arena, sharding));
        const again = ShardedIndex.open(arena, sharding, many.handles);
        let value = 0;
        for (const [what, [first, length]] of steps) {
          const [start, last] = [BigInt(first), BigInt(first + length - 1)];
          if (what === 'insert') expect(many.insert(start, last, ++value)).toBe(one.insert(start, last, value));
          const found = one.find(start);
          expect(again.firstOverlap(start, last)).toBe(one.firstOverlap(start, last));
          if (what !== 'remove' || found === undefined) continue;
          expect(many.remove(found.start, found.last)).toBe(one.remove(found.start));
        }
      }),
      { numRuns: 60 },
    );
  });
});
