/**
 * The shared arena of a host: one shared WebAssembly memory of fixed size, seen by every thread of that host.
 *
 * It holds what the deterministic engine and free-running threads work on together: host RAM the kernel allocates from
 * (the kernel window), and storage for everything else the emulated host needs to remember. wasm/layout.ts declares its
 * layout. Memory is committed by the operating system as it is touched.
 *
 * Frames are 4 KiB and numbered from the start of the arena; frame 0 is the header, so 0 says "none". A kernel frame
 * is a page of host RAM: physical page kernelBasePfn + i is kernel frame i, so a table's physical address becomes an
 * arena offset by subtraction. Allocation is thread-safe, and in one thread the same calls give the same frames.
 *
 * An Arena object belongs to one thread. It owns a scratch slot in the arena, for results that do not fit a return
 * value; `detach` gives it back.
 */
import { invariant } from '../runtime/task.js';
import {
  DIRECTORY_PFN_BITS,
  FRAME_BYTES,
  FRAME_INFO,
  FRAME_INFO_SHIFT,
  FRAME_SHIFT,
  HEADER_KERNEL_BASE_PFN,
  HEADER_KERNEL_REGION,
  HEADER_STORAGE_REGION,
  INFO_STATE,
  MAX_ORDER,
  REGION_COUNT,
  REGION_FIRST,
  REGION_IN_USE,
  SCRATCH_BYTES,
  SCRATCH_FIRST,
  SCRATCH_SLOTS,
  STATE_USED,
} from './wasm/layout.js';
import type { CoreExports } from './wasm-core.js';
import { instantiateCore } from './wasm-core.js';

export { FRAME_BYTES, FRAME_SHIFT, MAX_ORDER } from './wasm/layout.js';
/** Tables and directories cannot name pages from this number on. */
export const PFN_END = 2 ** DIRECTORY_PFN_BITS;

/** Sizes of a new arena, in 4 KiB frames. */
export interface ArenaOptions {
  /** Host RAM the kernel allocates from; 16384 (64 MiB) when not given. */
  readonly kernelFrames?: number;
  /** Frames for all other purposes; 49152 (192 MiB) when not given. */
  readonly storageFrames?: number;
  /** Physical page of the first kernel frame; a multiple of 4096 (16 MiB). */
  readonly kernelBasePfn: number;
}

/** An arena in which nothing is allocated: header, directory, scratch slots and frame info. */
export type ArenaState = Uint8Array;

/** What another thread needs to attach; structured-cloneable. */
export interface ArenaHandle {
  readonly memory: WebAssembly.Memory;
}

const DEFAULT_KERNEL_FRAMES = 16384;
const DEFAULT_STORAGE_FRAMES = 49152;
const WASM_PAGE_FRAMES = 16;
const MAX_FRAMES = 2 ** 20;
const OWNED = 1;
/** A frame's info: its third word is 0 inside a block, else whether the block it heads is free, and its order. */
const FRAME_STATE = 8;
const FRAME_FREE = 0x80;
const FRAME_ORDER_MASK = 0x3f;
const FREE = 0;

function checkOptions(kernelFrames: number, storageFrames: number, kernelBasePfn: number): void {
  const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;
  if (!isCount(kernelFrames) || !isCount(storageFrames)) throw new RangeError('an arena needs whole frames');
  if (!isCount(kernelBasePfn) || kernelBasePfn % 2 ** MAX_ORDER !== 0) {
    throw new RangeError(`kernelBasePfn ${kernelBasePfn} is not a multiple of ${2 ** MAX_ORDER}`);
  }
  if (kernelBasePfn + kernelFrames > PFN_END) throw new RangeError('kernel window ends above 2^52');
}

/** One thread's access to a host's shared arena. */
export class Arena {
  readonly memory: WebAssembly.Memory;
  /** The WebAssembly functions, for the other files of this room. */
  readonly core: CoreExports;
  /** The whole arena as bytes. */
  readonly bytes: Uint8Array<SharedArrayBuffer>;
  /** The whole arena as 32-bit words. */
  readonly words: Int32Array<SharedArrayBuffer>;
  /** The whole arena as 64-bit words: only for cold paths, bigint arithmetic is slow. */
  readonly longs: BigUint64Array<SharedArrayBuffer>;
  /** Byte offset of this thread's scratch slot. */
  readonly scratchOffset: number;
  /** First kernel frame, and how many there are. */
  readonly kernelFirst: number;
  readonly kernelFrames: number;
  /** Physical page of the first kernel frame. */
  readonly kernelBasePfn: number;
  readonly storageFrames: number;
  readonly #floats: Float64Array<SharedArrayBuffer>;
  #kernelAllocFault: (() => boolean) | undefined;

  private constructor(memory: WebAssembly.Memory, prepare?: (core: CoreExports) => void) {
    this.memory = memory;
    this.core = instantiateCore(memory, () => (this.#kernelAllocFault?.() === true ? 1 : 0));
    prepare?.(this.core);
    this.bytes = new Uint8Array(memory.buffer);
    this.words = new Int32Array(memory.buffer);
    this.longs = new BigUint64Array(memory.buffer);
    this.#floats = new Float64Array(memory.buffer);
    this.scratchOffset = this.#claimScratch();
    invariant(this.core.arena_attach(this.scratchOffset) === 1, 'not an arena of this version');
    this.kernelFirst = this.word(HEADER_KERNEL_REGION + REGION_FIRST);
    this.kernelFrames = this.word(HEADER_KERNEL_REGION + REGION_COUNT);
    this.storageFrames = this.word(HEADER_STORAGE_REGION + REGION_COUNT);
    this.kernelBasePfn = Number(this.longs[HEADER_KERNEL_BASE_PFN >>> 3] ?? 0n);
  }

  /** A new arena. Throws RangeError for sizes that cannot be: at most 2^20 frames in all. */
  static create(options: ArenaOptions): Arena {
    const { kernelFrames = DEFAULT_KERNEL_FRAMES, storageFrames = DEFAULT_STORAGE_FRAMES, kernelBasePfn } = options;
    checkOptions(kernelFrames, storageFrames, kernelBasePfn);
    const infoPerFrame = FRAME_BYTES >>> FRAME_INFO_SHIFT;
    const headerFrames = FRAME_INFO >>> FRAME_SHIFT;
    const rest = headerFrames + kernelFrames + storageFrames;
    const infoFrames = Math.ceil(rest / (infoPerFrame - 1));
    const total = rest + infoFrames;
    if (total >= MAX_FRAMES) throw new RangeError(`an arena of ${total} frames does not fit 4 GiB`);
    const pages = Math.ceil(total / WASM_PAGE_FRAMES);
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    return new Arena(memory, (core) => {
      core.arena_init(headerFrames + infoFrames, kernelFrames, storageFrames, kernelBasePfn);
    });
  }

  /** Access from another thread. Throws RangeError when 256 threads are attached already. */
  static attach(handle: ArenaHandle): Arena {
    return new Arena(handle.memory);
  }

  /** What another thread passes to {@link Arena.attach}. */
  get handle(): ArenaHandle {
    return { memory: this.memory };
  }

  /** Gives the scratch slot back. The object must not be used afterwards. */
  detach(): void {
    Atomics.store(this.words, this.scratchOffset >>> 2, FREE);
  }

  /**
   * A thread that was attached died without detaching; `scratchOffset` was its own. True when it died inside the allocator:
   * from then on every allocation of this arena fails, and what is freed is lost.
   */
  forsake(scratchOffset: number): boolean {
    return this.core.arena_forsake(scratchOffset) === 1;
  }

  #claimScratch(): number {
    for (let slot = 0; slot < SCRATCH_SLOTS; slot++) {
      const offset = SCRATCH_FIRST + slot * SCRATCH_BYTES;
      if (Atomics.compareExchange(this.words, offset >>> 2, FREE, OWNED) === FREE) return offset;
    }
    throw new RangeError(`more than ${SCRATCH_SLOTS} threads attached to one arena`);
  }

  /** 2^order zeroed frames of host RAM, aligned to their size physically: the first frame, or 0 when there are none. */
  allocKernel(order = 0): number {
    return this.core.kernel_alloc(order);
  }

  /** Gives kernel frames back; `order` as allocated. */
  freeKernel(frame: number, order = 0): void {
    const result = this.core.kernel_free(frame, order);
    invariant(result === 0, () => `freeKernel(${frame}, ${order}): not allocated`);
  }

  /** 2^order zeroed storage frames side by side: the first frame, or 0 when there are none. */
  allocFrame(order = 0): number {
    return this.core.storage_alloc(order);
  }

  /** Gives storage frames back; `order` as allocated. */
  freeFrame(frame: number, order = 0): void {
    const result = this.core.storage_free(frame, order);
    invariant(result === 0, () => `freeFrame(${frame}, ${order}): not allocated`);
  }

  /**
   * Sets what is asked before each kernel allocation of this thread, page tables included; true makes it fail as if
   * memory had run out. For the fault switch `core.kernel-alloc`.
   */
  setKernelAllocFault(fires: (() => boolean) | undefined): void {
    this.#kernelAllocFault = fires;
  }

  /** Whether a frame is the first of an allocated block now. */
  isAllocated(frame: number): boolean {
    return (Atomics.load(this.words, (FRAME_INFO + (frame << FRAME_INFO_SHIFT) + INFO_STATE) >>> 2) & STATE_USED) !== 0;
  }

  /** Byte offset of a frame. */
  frameOffset(frame: number): number {
    return frame * FRAME_BYTES;
  }

  /** Kernel frame of a physical page, or -1 outside the kernel window. */
  pfnToFrame(pfn: number): number {
    const index = pfn - this.kernelBasePfn;
    return index >= 0 && index < this.kernelFrames ? this.kernelFirst + index : -1;
  }

  /** Physical page of a kernel frame, or -1 for any other frame. */
  frameToPfn(frame: number): number {
    const index = frame - this.kernelFirst;
    return index >= 0 && index < this.kernelFrames ? this.kernelBasePfn + index : -1;
  }

  /** Whether a physical page is a kernel frame that nobody has. Another thread may change that at any time. */
  isFreeKernelPage(pfn: number): boolean {
    const index = pfn - this.kernelBasePfn;
    if (index < 0 || index >= this.kernelFrames) return false;
    for (let order = 0; order <= MAX_ORDER; order++) {
      const head = this.kernelFirst + index - (index % 2 ** order);
      const state = this.word(FRAME_INFO + (head << FRAME_INFO_SHIFT) + FRAME_STATE);
      // The first head at or below the page that stands for a block large enough is the block it lies in.
      if (state !== 0 && (state & FRAME_ORDER_MASK) >= order) return (state & FRAME_FREE) !== 0;
    }
    return false;
  }

  /** Kernel frames allocated now. */
  get kernelFramesInUse(): number {
    return Atomics.load(this.words, (HEADER_KERNEL_REGION + REGION_IN_USE) >>> 2);
  }

  /** Storage frames allocated now, nodes of the physical directory included. */
  get storageFramesInUse(): number {
    return Atomics.load(this.words, (HEADER_STORAGE_REGION + REGION_IN_USE) >>> 2);
  }

  /** What to {@link restore} later. Nothing may be allocated, and no other thread may use the arena, now or then. */
  save(): ArenaState {
    invariant(this.kernelFramesInUse === 0 && this.storageFramesInUse === 0, 'arena: saved with frames in use');
    const head = new Uint8Array(this.kernelFirst * FRAME_BYTES);
    head.set(this.bytes.subarray(0, head.length));
    return head;
  }

  /** The arena is as it was: what was allocated since is gone, without being freed. */
  restore(state: ArenaState): void {
    this.bytes.set(state);
  }

  /** Bytes of a frame. */
  frameBytes(frame: number): Uint8Array<SharedArrayBuffer> {
    return this.bytes.subarray(frame * FRAME_BYTES, (frame + 1) * FRAME_BYTES);
  }

  /**
   * Fills a frame with the page a stamp stands for: zeroes for 0, else the splitmix64 stream seeded with the stamp, 512
   * little-endian words, the first after one step. `stamp` from 0 to 2^52 - 1.
   */
  fillStamp(frame: number, stamp: number): void {
    this.core.frame_fill_stamp(frame, stamp);
  }

  /** True when two frames hold the same bytes. */
  framesEqual(a: number, b: number): boolean {
    return this.core.frame_equal(a, b) === 1;
  }

  /** True when a frame holds only zeroes. */
  frameIsZero(frame: number): boolean {
    return this.core.frame_is_zero(frame) === 1;
  }

  /** 64-bit hash of a frame's contents (not cryptographic; wasm/contents.as.ts defines it). */
  frameHash(frame: number): bigint {
    return BigInt.asUintN(64, this.core.frame_hash(frame));
  }

  /** {@link frameHash} of the page a stamp stands for. */
  stampHash(stamp: number): bigint {
    return BigInt.asUintN(64, this.core.stamp_hash(stamp));
  }

  /** The 32-bit word at a byte offset, signed. */
  word(offset: number): number {
    return this.words[offset >>> 2] ?? 0;
  }

  /** The f64 at a byte offset. */
  float(offset: number): number {
    return this.#floats[offset >>> 3] ?? 0;
  }
}
