/**
 * Bitmaps at 8-byte aligned offsets of the arena, in the bit order of the uAPI: bit n is bit n % 8 of byte n / 8.
 *
 * Setting and clearing are atomic in each 64-bit word, so threads may work on the same bitmap. Bit numbers are f64 at
 * the edge; a bitmap may have up to 2^35 bits.
 */

const ALL: u64 = 0xffffffffffffffff;

// @ts-ignore: decorator
@inline
function wordAt(bitmap: u32, bit: u64): usize {
  return <usize>bitmap + ((<usize>(bit >> 6)) << 3);
}

/** Bits `from % 64` and up. */
// @ts-ignore: decorator
@inline
function maskFrom(from: u64): u64 {
  return ALL << (from & 63);
}

/** Bits `last % 64` and down. */
// @ts-ignore: decorator
@inline
function maskTo(last: u64): u64 {
  return ALL >> (63 - (last & 63));
}

/** Sets the bits from..last. */
export function setBits(bitmap: u32, from: u64, last: u64): void {
  let at = wordAt(bitmap, from);
  const lastAt = wordAt(bitmap, last);
  if (at == lastAt) {
    atomic.or<u64>(at, maskFrom(from) & maskTo(last));
    return;
  }
  atomic.or<u64>(at, maskFrom(from));
  for (at += 8; at < lastAt; at += 8) atomic.store<u64>(at, ALL);
  atomic.or<u64>(lastAt, maskTo(last));
}

function clearBits(bitmap: u32, from: u64, last: u64): void {
  let at = wordAt(bitmap, from);
  const lastAt = wordAt(bitmap, last);
  if (at == lastAt) {
    atomic.and<u64>(at, ~(maskFrom(from) & maskTo(last)));
    return;
  }
  atomic.and<u64>(at, ~maskFrom(from));
  for (at += 8; at < lastAt; at += 8) atomic.store<u64>(at, 0);
  atomic.and<u64>(lastAt, ~maskTo(last));
}

/** Sets `count` bits from `first`. */
export function bitmap_set(bitmap: u32, first: f64, count: f64): void {
  if (count > 0) setBits(bitmap, <u64>(<i64>first), <u64>(<i64>(first + count)) - 1);
}

/** Clears `count` bits from `first`. */
export function bitmap_clear(bitmap: u32, first: f64, count: f64): void {
  if (count > 0) clearBits(bitmap, <u64>(<i64>first), <u64>(<i64>(first + count)) - 1);
}

/** First set bit of from..end-1, or -1. */
export function bitmap_next_set(bitmap: u32, from: f64, end: f64): f64 {
  let bit = <u64>(<i64>from);
  const limit = <u64>(<i64>end);
  let mask = maskFrom(bit);
  while (bit < limit) {
    const word = atomic.load<u64>(wordAt(bitmap, bit)) & mask;
    if (word != 0) {
      const found = (bit & ~63) + ctz<u64>(word);
      return found < limit ? <f64>(<i64>found) : -1;
    }
    bit = (bit & ~63) + 64;
    mask = ALL;
  }
  return -1;
}

/** Number of set bits among `count` bits from `first`. */
export function bitmap_count(bitmap: u32, first: f64, count: f64): f64 {
  if (count <= 0) return 0;
  const from = <u64>(<i64>first);
  const last = <u64>(<i64>(first + count)) - 1;
  const lastAt = wordAt(bitmap, last);
  let at = wordAt(bitmap, from);
  let mask = maskFrom(from);
  let total: u64 = 0;
  for (; at < lastAt; at += 8) {
    total += popcnt<u64>(atomic.load<u64>(at) & mask);
    mask = ALL;
  }
  return <f64>(<i64>(total + popcnt<u64>(atomic.load<u64>(at) & mask & maskTo(last))));
}

/** Ors bits 0..count-1 of `source` into `target`. */
export function bitmap_or(target: u32, source: u32, count: f64): void {
  if (count <= 0) return;
  const last = <u64>(<i64>count) - 1;
  const words = last >> 6;
  for (let index: u64 = 0; index <= words; index++) {
    const bits = atomic.load<u64>(wordAt(source, index << 6));
    const wanted = index == words ? bits & maskTo(last) : bits;
    if (wanted != 0) atomic.or<u64>(wordAt(target, index << 6), wanted);
  }
}
