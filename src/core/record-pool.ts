/**
 * Records of fixed size in the arena, claimed and given back by any thread without a lock.
 *
 * Word 0 of a record says who has it: 0 nobody, else the number of the thread that claimed it. A claim is one
 * compare-and-swap, so a thread that dies leaves records that still say whose they were: nothing is ever torn, at worst
 * leaked. Records are numbered from 1; 0 says "none". Every thread looks for free records from a place of its own.
 */
import { invariant } from '../runtime/task.js';
import { FRAME_BYTES, MAX_ORDER, type Arena } from './arena.js';

/** What another thread needs to open a pool; structured-cloneable. */
export interface PoolHandle {
  readonly offset: number;
  readonly records: number;
  readonly recordBytes: number;
}

/** A pool of records, as one thread sees it. */
export class RecordPool {
  readonly handle: PoolHandle;
  readonly #words: Int32Array<SharedArrayBuffer>;
  #next: number;

  private constructor(arena: Arena, handle: PoolHandle, thread: number) {
    this.handle = handle;
    this.#words = arena.words;
    this.#next = Math.imul(thread, 0x9e3779b1) >>> 0;
  }

  /** At least `records` records of `recordBytes` bytes (a multiple of 8); undefined when there is no room. */
  static create(arena: Arena, records: number, recordBytes: number, thread: number): RecordPool | undefined {
    const order = Math.max(0, Math.ceil(Math.log2((records * recordBytes) / FRAME_BYTES)));
    const frame = order > MAX_ORDER ? 0 : arena.allocFrame(order);
    if (frame === 0) return undefined;
    const all = Math.floor((FRAME_BYTES * 2 ** order) / recordBytes);
    return new RecordPool(arena, { offset: arena.frameOffset(frame), records: all, recordBytes }, thread);
  }

  /** The pool another thread made. */
  static open(arena: Arena, handle: PoolHandle, thread: number): RecordPool {
    return new RecordPool(arena, handle, thread);
  }

  /** Claims a record for a thread: its number, or 0 when all are taken. What is in it is left from before, but word 0. */
  claim(thread: number): number {
    const { records } = this.handle;
    for (let tried = 0; tried < records; tried++) {
      const number = (this.#next++ % records) + 1;
      if (Atomics.compareExchange(this.#words, this.wordOf(number), 0, thread) === 0) return number;
    }
    return 0;
  }

  /** Gives a record back. */
  free(number: number): void {
    const before = Atomics.exchange(this.#words, this.wordOf(number), 0);
    invariant(before !== 0, () => `record ${number} is given back twice`);
  }

  /** The thread that claimed a record; 0 when it is free. */
  claimant(number: number): number {
    return Atomics.load(this.#words, this.wordOf(number));
  }

  /** Index of a record's word 0 in `arena.words`. */
  wordOf(number: number): number {
    return (this.handle.offset + (number - 1) * this.handle.recordBytes) >>> 2;
  }

  /** Records that are taken, ascending. */
  *taken(): Generator<number> {
    for (let number = 1; number <= this.handle.records; number++) if (this.claimant(number) !== 0) yield number;
  }
}
