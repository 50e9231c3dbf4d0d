/**
 * Memory the kernel shares with hardware: queues, stream tables, context descriptors, translation tables' neighbours.
 *
 * It comes from the kernel window, so its physical address is its place in RAM and the device sees what is stored here.
 * 64-bit stores are single-copy atomic, as the architecture promises for aligned doublewords.
 */
import { isWatched, sharedRead, sharedWrite } from '../../runtime/watch.js';
import { FRAME_BYTES, type Arena } from '../../core/arena.js';

const LINE_BYTES = 64;

/** What the shared word is called that holds an address: entries and records are no longer than a line. */
export function memoryWord(address: number): string {
  return `line 0x${(address - (address % LINE_BYTES)).toString(16)}`;
}

/** A naturally aligned, zeroed run of pages (`dma_alloc_coherent`). */
export class DmaMemory {
  readonly arena: Arena;
  readonly address: number;
  readonly sizeBytes: number;
  readonly #frame: number;
  readonly #order: number;
  readonly #base: number;
  /** Sees every doubleword before it is stored: who checks that hardware never reads half an entry. */
  watch: ((offset: number, lo: number, hi: number) => void) | undefined;

  /** At least `sizeBytes` bytes, or undefined when there is no memory. */
  static alloc(arena: Arena, sizeBytes: number): DmaMemory | undefined {
    const order = Math.max(0, Math.ceil(Math.log2(sizeBytes / FRAME_BYTES)));
    const frame = arena.allocKernel(order);
    return frame === 0 ? undefined : new DmaMemory(arena, frame, order);
  }

  private constructor(arena: Arena, frame: number, order: number) {
    this.arena = arena;
    this.#frame = frame;
    this.#order = order;
    this.#base = arena.frameOffset(frame);
    this.address = arena.frameToPfn(frame) * FRAME_BYTES;
    this.sizeBytes = FRAME_BYTES * 2 ** order;
  }

  get frames(): number {
    return 2 ** this.#order;
  }

  free(): void {
    this.arena.freeKernel(this.#frame, this.#order);
  }

  /** Frames of several that are each its own. */
  static framesOf(memories: Iterable<DmaMemory>): number {
    let frames = 0;
    for (const memory of memories) frames += memory.frames;
    return frames;
  }

  /** Index of the 32-bit word at a byte offset, in `arena.words`. */
  wordIndex(offset: number): number {
    return (this.#base + offset) >>> 2;
  }

  /** Copies words out. */
  read(offset: number, words: number): Uint32Array {
    if (isWatched()) sharedRead(this.arena, memoryWord(this.address + offset));
    const first = this.wordIndex(offset);
    return Uint32Array.from(this.arena.words.subarray(first, first + words));
  }

  /** Stores words; not atomic beyond 32 bits. */
  write(offset: number, words: Uint32Array): void {
    if (isWatched()) sharedWrite(this.arena, memoryWord(this.address + offset));
    this.arena.words.set(words, this.wordIndex(offset));
  }

  /** Stores one aligned doubleword in a single access. */
  store64(offset: number, lo: number, hi: number): void {
    if (isWatched()) sharedWrite(this.arena, memoryWord(this.address + offset));
    const index = (this.#base + offset) >>> 3;
    this.watch?.(offset, lo, hi);
    Atomics.store(this.arena.longs, index, (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0));
  }
}
