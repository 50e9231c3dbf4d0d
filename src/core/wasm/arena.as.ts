/**
 * What every other file needs of the arena: the constants of this instance, locks, error answers.
 *
 * An instance belongs to one thread. Its globals only cache header words that never change after arena_init, and the
 * offset of the thread's scratch slot.
 */
import {
  ARENA_MAGIC,
  ARENA_VERSION,
  FRAME_SHIFT,
  HEADER_FORSAKEN,
  HEADER_KERNEL_BASE_PFN,
  HEADER_KERNEL_REGION,
  HEADER_MAGIC,
  HEADER_STORAGE_REGION,
  HEADER_TOTAL_FRAMES,
  HEADER_VERSION,
  REGION_COUNT,
  REGION_FIRST,
  REGION_LOCK,
} from './layout';

/**
 * Physical page number of the first kernel frame, their count, and what to add to a physical address to get an
 * offset.
 */
export let kernelBase: u64 = 0;
export let kernelCount: u64 = 0;
export let kernelFirst: u32 = 0;
export let kernelDelta: u64 = 0;
/** The kernel window in bytes. */
let kernelStart: u64 = 0;
let kernelBytes: u64 = 0;
/** Byte offset of this thread's scratch slot. */
export let scratch: usize = 0;

/** Caches the header of an initialised arena. 1 when it is one, of this version. */
export function arena_attach(scratchOffset: u32): i32 {
  if (atomic.load<u32>(HEADER_MAGIC) != ARENA_MAGIC || load<u32>(HEADER_VERSION) != ARENA_VERSION) return 0;
  kernelBase = load<u64>(HEADER_KERNEL_BASE_PFN);
  kernelFirst = load<u32>(HEADER_KERNEL_REGION + REGION_FIRST);
  kernelCount = <u64>load<u32>(HEADER_KERNEL_REGION + REGION_COUNT);
  kernelDelta = ((<u64>kernelFirst) - kernelBase) << FRAME_SHIFT;
  kernelStart = kernelBase << FRAME_SHIFT;
  kernelBytes = kernelCount << FRAME_SHIFT;
  scratch = <usize>scratchOffset;
  return 1;
}

/** Publishes the header; the allocator regions are ready by now. */
export function publishHeader(totalFrames: u32, kernelBasePfn: u64): void {
  store<u32>(HEADER_TOTAL_FRAMES, totalFrames);
  store<u64>(HEADER_KERNEL_BASE_PFN, kernelBasePfn);
  store<u32>(HEADER_VERSION, ARENA_VERSION);
  atomic.store<u32>(HEADER_MAGIC, ARENA_MAGIC);
}

/** Byte offset of a frame. */
// @ts-ignore: decorator
@inline
export function frameOffset(frame: u32): usize {
  return (<usize>frame) << FRAME_SHIFT;
}

/** Arena offset of a physical byte address in the kernel window, or 0 outside it. */
// @ts-ignore: decorator
@inline
export function kernelOffset(address: u64): usize {
  return address - kernelStart < kernelBytes ? <usize>(address + kernelDelta) : 0;
}

const UNLOCKED: i32 = 0;
/** A lock word holds its owner (a scratch slot's offset, never 0) and this bit while somebody sleeps on it. */
const CONTENDED: i32 = 1;
const SPINS: i32 = 200;
/** Sleepers look again after this long: the owner may have died, see {@link arena_forsake}. */
const SLEEP_NS: i64 = 20_000_000;

/** Takes the lock word at `offset`: spins a little, then sleeps on it. In a forsaken arena it returns without the lock. */
export function lock_acquire(offset: u32): void {
  const word = <usize>offset;
  const owner = <i32>scratch;
  for (let spin = 0; spin < SPINS; spin++) {
    if (atomic.load<i32>(word) == UNLOCKED && atomic.cmpxchg<i32>(word, UNLOCKED, owner) == UNLOCKED) return;
  }
  while (!isForsaken()) {
    const seen = atomic.load<i32>(word);
    if (seen == UNLOCKED) {
      if (atomic.cmpxchg<i32>(word, UNLOCKED, owner | CONTENDED) == UNLOCKED) return;
    } else if ((seen & CONTENDED) != 0 || atomic.cmpxchg<i32>(word, seen, seen | CONTENDED) == seen) {
      atomic.wait<i32>(word, seen | CONTENDED, SLEEP_NS);
    }
  }
}

/** Takes the lock word if it is free: 1 when taken. */
export function lock_try_acquire(offset: u32): i32 {
  return atomic.cmpxchg<i32>(<usize>offset, UNLOCKED, <i32>scratch) == UNLOCKED ? 1 : 0;
}

/** Gives the lock word back and wakes one sleeper if there may be one. */
export function lock_release(offset: u32): void {
  if ((atomic.xchg<i32>(<usize>offset, UNLOCKED) & CONTENDED) != 0) atomic.notify(<usize>offset, 1);
}

/** True once a thread died inside the allocator: what its lists say is not to be trusted any more. */
export function isForsaken(): bool {
  return atomic.load<u32>(HEADER_FORSAKEN) != 0;
}

/**
 * A thread died: 1 if it held the lock of an allocator region, which makes every later allocation of the arena fail and
 * nobody wait for that lock any more.
 */
export function arena_forsake(scratchOffset: u32): i32 {
  const kernel = atomic.load<u32>(HEADER_KERNEL_REGION + REGION_LOCK);
  const storage = atomic.load<u32>(HEADER_STORAGE_REGION + REGION_LOCK);
  if ((kernel & ~CONTENDED) != scratchOffset && (storage & ~CONTENDED) != scratchOffset) return 0;
  atomic.store<u32>(HEADER_FORSAKEN, 1);
  return 1;
}
