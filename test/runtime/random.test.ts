import { expect, test } from 'vitest';
import { RandomStream } from '../../src/runtime/random.js';

test('a stream is a function of seed and name, and streams do not disturb each other', () => {
  const draw = (seed: number, name: string): number[] => {
    const stream = new RandomStream(seed, name);
    return Array.from({ length: 8 }, () => stream.below(1000));
  };
  expect(draw(1, 'a')).toEqual(draw(1, 'a'));
  expect(draw(1, 'a')).not.toEqual(draw(2, 'a'));
  expect(draw(1, 'a')).not.toEqual(draw(1, 'b'));
});

test('bounds hold and every value comes', () => {
  const stream = new RandomStream(7, 'bounds');
  const seen = new Set(Array.from({ length: 500 }, () => stream.between(3, 6)));
  expect([...seen].sort()).toEqual([3, 4, 5, 6]);
});

test('ids are seeded, of the given length and differ from each other', () => {
  const ids = (seed: number): string[] => {
    const stream = new RandomStream(seed, 'ids');
    return [stream.id(), stream.id(), stream.id(20)];
  };
  expect(ids(1)).toEqual(ids(1));
  expect(ids(1)).not.toEqual(ids(2));
  expect(new Set(ids(1)).size).toBe(3);
  expect(ids(1).map((id) => id.length)).toEqual([12, 12, 20]);
});
