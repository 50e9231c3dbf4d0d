import { describe, expect, it } from 'vitest';
import { Bitmap } from '../../src/core/bitmap.js';
import { ERRNO } from '../../src/uapi/errno.js';
import { made, smallArena } from './fixtures.js';

describe('Bitmap', () => {
  it('has the bit order of the uAPI', () => {
    const bitmap = made(Bitmap.create(smallArena(1, 4), 100));
    bitmap.setRange(9, 1);
    bitmap.setRange(62, 4);
    expect([...bitmap.bytes()]).toEqual([0, 2, 0, 0, 0, 0, 0, 0xc0, 3, 0, 0, 0, 0]);
  });

  it('finds, counts and clears across words, and leaves neighbours alone', () => {
    const arena = smallArena(1, 4);
    const whole = made(Bitmap.create(arena, 32768));
    const part = Bitmap.at(arena, whole.offset + 64, 200);
    whole.setRange(0, 32768);
    part.clear();
    expect(whole.count()).toBe(32768 - 200);
    expect(part.nextSet(0)).toBe(-1);
    part.setRange(199, 1);
    expect([part.nextSet(0), part.nextSet(199), part.count(0, 199)]).toEqual([199, 199, 0]);
    part.setRange(63, 66);
    part.clear(64, 64);
    expect([part.nextSet(0), part.nextSet(64), part.nextSet(129)]).toEqual([63, 128, 199]);
    part.setRange(5, 0);
    part.clear(63, 0);
    expect(part.count()).toBe(3);
  });

  it('ors only its own bits', () => {
    const arena = smallArena(1, 4);
    const [target, source] = [made(Bitmap.create(arena, 70)), made(Bitmap.create(arena, 128))];
    source.setRange(60, 68);
    target.setRange(0, 1);
    target.or(source);
    expect([target.count(), target.nextSet(1)]).toEqual([11, 60]);
    expect(Bitmap.at(arena, target.offset, 128).count()).toBe(11);
  });

  it('owns just the frames it needs', () => {
    const arena = smallArena(1, 8);
    const bitmap = made(Bitmap.create(arena, 32768 + 1));
    expect(arena.storageFramesInUse).toBe(2);
    expect(Bitmap.create(arena, 32768 * 8)).toBe(-ERRNO.ENOMEM);
    expect(Bitmap.create(arena, 0)).toBe(-ERRNO.EINVAL);
    expect(Bitmap.create(arena, 2 ** 28)).toBe(-ERRNO.EINVAL);
    bitmap.destroy();
    expect(arena.storageFramesInUse).toBe(0);
  });
});
