/**
 * Bitmaps in an arena, in the uAPI's bit order (bit n is bit n % 8 of byte n / 8), so their bytes can be copied to a
 * user.
 *
 * Setting and clearing are atomic in each 64-bit word: hardware and kernel threads may work on the same bitmap.
 */
import { ERRNO } from '../uapi/errno.js';
import type { Arena } from './arena.js';
import { FRAME_BYTES, MAX_ORDER } from './arena.js';

/** A bitmap of `bits` bits at byte offset `offset` (8-byte aligned) of an arena. */
export class Bitmap {
  readonly arena: Arena;
  readonly offset: number;
  readonly bits: number;
  /** Order of the storage frames this object owns, or -1 when the memory is somebody else's. */
  readonly #order: number;

  private constructor(arena: Arena, offset: number, bits: number, order: number) {
    this.arena = arena;
    this.offset = offset;
    this.bits = bits;
    this.#order = order;
  }

  /** A cleared bitmap in storage frames of its own: at most 2^27 bits; -EINVAL or -ENOMEM. */
  static create(arena: Arena, bits: number): Bitmap | number {
    const order = Math.max(0, Math.ceil(Math.log2(bits / (FRAME_BYTES * 8))));
    if (bits < 1 || order > MAX_ORDER) return -ERRNO.EINVAL;
    const frame = arena.allocFrame(order);
    return frame === 0 ? -ERRNO.ENOMEM : new Bitmap(arena, arena.frameOffset(frame), bits, order);
  }

  /** A bitmap in memory that belongs to the caller. */
  static at(arena: Arena, offset: number, bits: number): Bitmap {
    return new Bitmap(arena, offset, bits, -1);
  }

  /** Frees the frames of a bitmap made by {@link create}. */
  destroy(): void {
    if (this.#order >= 0) this.arena.freeFrame(this.offset / FRAME_BYTES, this.#order);
  }

  /** Sets `count` bits from `first`. */
  setRange(first: number, count: number): void {
    this.arena.core.bitmap_set(this.offset, first, count);
  }

  /** Clears `count` bits from `first`; all bits when not given. */
  clear(first = 0, count = this.bits - first): void {
    this.arena.core.bitmap_clear(this.offset, first, count);
  }

  /** First set bit at or after `from`, or -1. */
  nextSet(from: number): number {
    return this.arena.core.bitmap_next_set(this.offset, from, this.bits);
  }

  /** Number of set bits among `count` bits from `first`; among all when not given. */
  count(first = 0, count = this.bits - first): number {
    return this.arena.core.bitmap_count(this.offset, first, count);
  }

  /** Sets every bit that is set in `other`, a bitmap of the same arena at least as long as this one. */
  or(other: Bitmap): void {
    this.arena.core.bitmap_or(this.offset, other.offset, this.bits);
  }

  /** The bitmap's bytes. */
  bytes(): Uint8Array<SharedArrayBuffer> {
    return this.arena.bytes.subarray(this.offset, this.offset + Math.ceil(this.bits / 8));
  }
}
