import { describe, expect, it } from 'vitest';
import { Arena, FRAME_BYTES, MAX_ORDER } from '../../src/core/arena.js';
import * as layout from '../../src/core/wasm/layout.js';
import { ERRNO } from '../../src/uapi/errno.js';
import { KERNEL_BASE_PFN, smallArena } from './fixtures.js';

describe('Arena', () => {
  it('maps kernel frames to physical pages one to one', () => {
    const arena = smallArena(64, 64);
    expect(arena.pfnToFrame(KERNEL_BASE_PFN)).toBe(arena.kernelFirst);
    expect(arena.pfnToFrame(KERNEL_BASE_PFN + 63)).toBe(arena.kernelFirst + 63);
    expect(arena.pfnToFrame(KERNEL_BASE_PFN + 64)).toBe(-1);
    expect(arena.pfnToFrame(KERNEL_BASE_PFN - 1)).toBe(-1);
    expect(arena.frameToPfn(arena.kernelFirst + 5)).toBe(KERNEL_BASE_PFN + 5);
    expect(arena.frameToPfn(arena.kernelFirst + 64)).toBe(-1);
  });

  it('allocates zeroed, physically aligned blocks and merges them again when freed', () => {
    const arena = smallArena(64, 64);
    const single = arena.allocKernel();
    const block = arena.allocKernel(4);
    expect(arena.frameToPfn(block) % 16).toBe(0);
    expect(arena.kernelFramesInUse).toBe(17);
    arena.frameBytes(block).fill(0xff);
    arena.freeKernel(block, 4);
    arena.freeKernel(single);
    expect(arena.kernelFramesInUse).toBe(0);
    const whole = arena.allocKernel(6);
    expect(whole).toBe(arena.kernelFirst);
    expect(arena.bytes.subarray(whole * FRAME_BYTES, (whole + 64) * FRAME_BYTES).every((byte) => byte === 0)).toBe(
      true,
    );
  });

  it('answers 0 when it has no block of that size, and keeps working', () => {
    const arena = smallArena(3, 1);
    expect(arena.allocKernel(2)).toBe(0);
    expect(arena.allocKernel(1)).not.toBe(0);
    expect(arena.allocKernel(0)).not.toBe(0);
    expect(arena.allocKernel(0)).toBe(0);
    const frame = arena.allocFrame();
    expect(arena.allocFrame()).toBe(0);
    arena.freeFrame(frame);
    expect(arena.allocFrame()).toBe(frame);
    expect(arena.allocFrame(MAX_ORDER + 1)).toBe(0);
  });

  it('refuses to free what is not allocated like that', () => {
    const arena = smallArena(16, 16);
    const block = arena.allocKernel(1);
    expect(() => arena.freeKernel(block, 0)).toThrow(/not allocated/);
    expect(() => arena.freeKernel(block + 1, 0)).toThrow(/not allocated/);
    arena.freeKernel(block, 1);
    expect(() => arena.freeKernel(block, 1)).toThrow(/not allocated/);
    expect(() => arena.freeFrame(arena.kernelFirst)).toThrow(/not allocated/);
  });

  it('does not depend on the contents of free frames', () => {
    const arena = smallArena(16, 16);
    const first = arena.allocKernel(2);
    arena.freeKernel(first, 2);
    arena.bytes.fill(0xee, arena.kernelFirst * FRAME_BYTES, (arena.kernelFirst + 16) * FRAME_BYTES);
    for (let n = 0; n < 16; n++) expect(arena.frameIsZero(arena.allocKernel())).toBe(true);
    expect(arena.allocKernel()).toBe(0);
  });

  it('hands out the same frames for the same calls', () => {
    const history = (): number[] => {
      const arena = smallArena(256, 16);
      const frames = [0, 3, 1, 0, 5, 2].map((order) => arena.allocKernel(order));
      arena.freeKernel(frames[1] ?? 0, 3);
      return [...frames, arena.allocKernel(1), arena.allocKernel(2)];
    };
    expect(history()).toEqual(history());
  });

  it('fails kernel allocations when the fault switch fires', () => {
    const arena = smallArena(16, 16);
    let calls = 0;
    arena.setKernelAllocFault(() => ++calls === 2);
    expect(arena.allocKernel()).not.toBe(0);
    expect(arena.allocKernel()).toBe(0);
    expect(arena.allocKernel()).not.toBe(0);
    arena.setKernelAllocFault(undefined);
    expect(arena.allocKernel()).not.toBe(0);
    expect(calls).toBe(3);
  });

  it('is seen alike by everyone attached, each with a scratch slot', () => {
    const arena = smallArena(16, 16);
    const other = Arena.attach(arena.handle);
    expect(other.scratchOffset).not.toBe(arena.scratchOffset);
    const frame = arena.allocFrame();
    expect(other.storageFramesInUse).toBe(1);
    other.freeFrame(frame);
    expect(arena.storageFramesInUse).toBe(0);
    other.detach();
    expect(Arena.attach(arena.handle).scratchOffset).toBe(other.scratchOffset);
  });

  it('rejects sizes and memories that cannot be', () => {
    expect(() => Arena.create({ kernelBasePfn: 1 })).toThrow(RangeError);
    expect(() => Arena.create({ kernelBasePfn: 0, kernelFrames: 2 ** 20 })).toThrow(RangeError);
    expect(() => Arena.create({ kernelBasePfn: 2 ** 40, kernelFrames: 1 })).toThrow(RangeError);
    const memory = new WebAssembly.Memory({ initial: 16, maximum: 16, shared: true });
    expect(() => Arena.attach({ memory })).toThrow(/not an arena/);
  });
});

describe('contents of frames', () => {
  it('expands stamp 0 to zeroes and others to their splitmix64 stream', () => {
    const arena = smallArena(1, 4);
    const frame = arena.allocFrame();
    arena.fillStamp(frame, 1234567);
    // First outputs of splitmix64 with seed 1234567, from the reference implementation.
    const words = [...arena.longs.subarray(frame * 512, frame * 512 + 3)];
    expect(words).toEqual([6457827717110365317n, 3203168211198807973n, 9817491932198370423n]);
    arena.fillStamp(frame, 0);
    expect(arena.frameIsZero(frame)).toBe(true);
  });

  it('compares and hashes pages', () => {
    const arena = smallArena(1, 4);
    const [a, b] = [arena.allocFrame(), arena.allocFrame()];
    for (const stamp of [0, 7, 2 ** 52 - 1]) {
      arena.fillStamp(a, stamp);
      arena.fillStamp(b, stamp);
      expect(arena.framesEqual(a, b)).toBe(true);
      expect(arena.frameHash(a)).toBe(arena.stampHash(stamp));
      const last = (b + 1) * FRAME_BYTES - 1;
      arena.bytes[last] = (arena.bytes[last] ?? 0) ^ 0x80;
      expect(arena.framesEqual(a, b)).toBe(false);
      expect(arena.frameHash(b)).not.toBe(arena.frameHash(a));
      expect(arena.frameIsZero(b)).toBe(false);
    }
  });
});

it('uses the error numbers of the uAPI', () => {
  const { ENOENT, ENOMEM, EEXIST, EINVAL, ERANGE } = layout;
  expect(ERRNO).toMatchObject({ ENOENT, ENOMEM, EEXIST, EINVAL, ERANGE });
});
