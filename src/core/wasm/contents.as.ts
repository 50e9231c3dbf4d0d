/**
 * Contents of frames: stamps, comparison, hashing.
 *
 * The page of stamp 0 is all zeroes. The page of stamp s > 0 is the splitmix64 stream seeded with s: 512 little-endian
 * words, the first after one step. The hash reads a page as 512 words w: h = (h xor w) * PRIME; h ^= h >> 32, from
 * FNV-1a's 64-bit offset basis, and ends with one more multiplication and shift.
 */
import { FRAME_BYTES } from './layout';
import { frameOffset } from './arena.as';

const BYTES: usize = FRAME_BYTES;
const GOLDEN: u64 = 0x9e3779b97f4a7c15;
const HASH_BASIS: u64 = 0xcbf29ce484222325;
const HASH_PRIME: u64 = 0x9fb21c651e98df25;

// @ts-ignore: decorator
@inline
function mix(state: u64): u64 {
  let z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// @ts-ignore: decorator
@inline
function hashStep(hash: u64, word: u64): u64 {
  const h = (hash ^ word) * HASH_PRIME;
  return h ^ (h >> 32);
}

// @ts-ignore: decorator
@inline
function hashEnd(hash: u64): u64 {
  const h = hash * HASH_PRIME;
  return h ^ (h >> 29);
}

/** Writes the page of a stamp into a frame. */
export function frame_fill_stamp(frame: u32, stamp: f64): void {
  const base = frameOffset(frame);
  if (stamp == 0) {
    memory.fill(base, 0, FRAME_BYTES);
    return;
  }
  let state = <u64>stamp;
  for (let at: usize = 0; at < BYTES; at += 8) {
    state += GOLDEN;
    store<u64>(base + at, mix(state));
  }
}

/** 1 when both frames hold the same bytes. */
export function frame_equal(a: u32, b: u32): i32 {
  const left = frameOffset(a);
  const right = frameOffset(b);
  for (let at: usize = 0; at < BYTES; at += 8) {
    if (load<u64>(left + at) != load<u64>(right + at)) return 0;
  }
  return 1;
}

/** 1 when the frame holds only zeroes. */
export function frame_is_zero(frame: u32): i32 {
  const base = frameOffset(frame);
  for (let at: usize = 0; at < BYTES; at += 8) {
    if (load<u64>(base + at) != 0) return 0;
  }
  return 1;
}

/** Hash of a frame's contents. */
export function frame_hash(frame: u32): u64 {
  const base = frameOffset(frame);
  let hash = HASH_BASIS;
  for (let at: usize = 0; at < BYTES; at += 8) hash = hashStep(hash, load<u64>(base + at));
  return hashEnd(hash);
}

/** Hash of the page of a stamp: what frame_hash answers once it is filled in. */
export function stamp_hash(stamp: f64): u64 {
  let hash = HASH_BASIS;
  let state = <u64>stamp;
  for (let at: usize = 0; at < BYTES; at += 8) {
    state += GOLDEN;
    hash = hashStep(hash, stamp == 0 ? 0 : mix(state));
  }
  return hashEnd(hash);
}
