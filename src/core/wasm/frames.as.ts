/**
 * Frame allocator: a buddy system over each of the two regions, kernel window and storage.
 *
 * Blocks of 2^order frames, aligned to their size within the region (and physically, since the window starts at a
 * multiple of the largest block). All state is in frame info words, so a stray write into a free frame breaks nothing.
 * One lock a region; zeroing happens outside it. Lists are last-in first-out and splitting keeps the lower half, so the
 * same calls give the same frames.
 */
import {
  FRAME_BYTES,
  FRAME_INFO,
  FRAME_INFO_SHIFT,
  HEADER_KERNEL_REGION,
  HEADER_STORAGE_REGION,
  INFO_STATE,
  MAX_ORDER,
  EINVAL,
  REGION_COUNT,
  REGION_FIRST,
  REGION_FREE_HEADS,
  REGION_IN_USE,
  REGION_LOCK,
  STATE_USED,
} from './layout';
import { frameOffset, isForsaken, lock_acquire, lock_release, publishHeader } from './arena.as';

/** Asks the embedder whether the fault switch for kernel memory fires on this allocation. */
@external("host", "kernelAllocFails")
declare function kernelAllocFails(): i32;

const INFO_NEXT: usize = 0;
const INFO_PREVIOUS: usize = 4;
/** States: 0 inside a block; otherwise one of these plus the order of the block this frame heads. */
const STATE_FREE: u32 = 0x80;

// @ts-ignore: decorator
@inline
function infoOf(frame: u32): usize {
  return <usize>FRAME_INFO + ((<usize>frame) << FRAME_INFO_SHIFT);
}

// @ts-ignore: decorator
@inline
function headOf(region: usize, order: i32): usize {
  return region + <usize>REGION_FREE_HEADS + ((<usize>order) << 2);
}

function pushFree(region: usize, frame: u32, order: i32): void {
  const head = headOf(region, order);
  const first = load<u32>(head);
  const info = infoOf(frame);
  store<u32>(info, first, INFO_NEXT);
  store<u32>(info, 0, INFO_PREVIOUS);
  store<u32>(info, STATE_FREE | order, INFO_STATE);
  if (first != 0) store<u32>(infoOf(first), frame, INFO_PREVIOUS);
  store<u32>(head, frame);
}

function unlinkFree(region: usize, frame: u32, order: i32): void {
  const info = infoOf(frame);
  const next = load<u32>(info, INFO_NEXT);
  const previous = load<u32>(info, INFO_PREVIOUS);
  if (previous == 0) store<u32>(headOf(region, order), next);
  else store<u32>(infoOf(previous), next, INFO_NEXT);
  if (next != 0) store<u32>(infoOf(next), previous, INFO_PREVIOUS);
  store<u32>(info, 0, INFO_STATE);
}

/** Fills the free lists of a region, the largest blocks first and the lowest on top. */
function regionInit(region: usize, first: u32, count: u32): void {
  store<u32>(region, first, REGION_FIRST);
  store<u32>(region, count, REGION_COUNT);
  let end = count;
  while (end > 0) {
    let order = 0;
    while (order < MAX_ORDER && (end & ((2 << order) - 1)) == 0) order++;
    end -= 1 << order;
    pushFree(region, first + end, order);
  }
}

/** Lays out a zeroed memory as an arena. */
export function arena_init(kernelFirst: u32, kernelFrames: u32, storageFrames: u32, kernelBasePfn: f64): void {
  regionInit(HEADER_KERNEL_REGION, kernelFirst, kernelFrames);
  regionInit(HEADER_STORAGE_REGION, kernelFirst + kernelFrames, storageFrames);
  publishHeader(kernelFirst + kernelFrames + storageFrames, <u64>kernelBasePfn);
}

function takeBlock(region: usize, order: i32): u32 {
  let from = order;
  while (from <= MAX_ORDER && load<u32>(headOf(region, from)) == 0) from++;
  if (from > MAX_ORDER) return 0;
  const frame = load<u32>(headOf(region, from));
  unlinkFree(region, frame, from);
  while (from > order) {
    from--;
    pushFree(region, frame + (1 << from), from);
  }
  store<u32>(infoOf(frame), STATE_USED | order, INFO_STATE);
  atomic.store<u32>(region, load<u32>(region, REGION_IN_USE) + (1 << order), REGION_IN_USE);
  return frame;
}

function regionAlloc(region: usize, order: i32): u32 {
  if (order < 0 || order > MAX_ORDER) return 0;
  lock_acquire(<u32>region + REGION_LOCK);
  if (isForsaken()) return 0;
  const frame = takeBlock(region, order);
  lock_release(<u32>region + REGION_LOCK);
  if (frame != 0) memory.fill(frameOffset(frame), 0, (<usize>FRAME_BYTES) << order);
  return frame;
}

function giveBlock(region: usize, frame: u32, order: i32): i32 {
  const first = load<u32>(region, REGION_FIRST);
  const count = load<u32>(region, REGION_COUNT);
  let index = frame - first;
  if (order < 0 || order > MAX_ORDER || index >= count) return -EINVAL;
  if (load<u32>(infoOf(frame), INFO_STATE) != (STATE_USED | order)) return -EINVAL;
  atomic.store<u32>(region, load<u32>(region, REGION_IN_USE) - (1 << order), REGION_IN_USE);
  store<u32>(infoOf(frame), 0, INFO_STATE);
  while (order < MAX_ORDER) {
    const buddy = index ^ (1 << order);
    if (buddy + (1 << order) > count) break;
    if (load<u32>(infoOf(first + buddy), INFO_STATE) != (STATE_FREE | order)) break;
    unlinkFree(region, first + buddy, order);
    index &= ~(1 << order);
    order++;
  }
  pushFree(region, first + index, order);
  return 0;
}

function regionFree(region: usize, frame: u32, order: i32): i32 {
  lock_acquire(<u32>region + REGION_LOCK);
  if (isForsaken()) return 0;
  const result = giveBlock(region, frame, order);
  lock_release(<u32>region + REGION_LOCK);
  return result;
}

/** 2^order zeroed frames of host RAM, or 0. */
export function kernel_alloc(order: i32): u32 {
  return kernelAllocFails() ? 0 : regionAlloc(HEADER_KERNEL_REGION, order);
}

/** Gives kernel frames back: 0, or -EINVAL when no such block is allocated. */
export function kernel_free(frame: u32, order: i32): i32 {
  return regionFree(HEADER_KERNEL_REGION, frame, order);
}

/** 2^order zeroed storage frames, or 0. */
export function storage_alloc(order: i32): u32 {
  return regionAlloc(HEADER_STORAGE_REGION, order);
}

/** Gives storage frames back: 0, or -EINVAL when no such block is allocated. */
export function storage_free(frame: u32, order: i32): i32 {
  return regionFree(HEADER_STORAGE_REGION, frame, order);
}

/** Puts an allocated block on a private list and answers the new head. The block's contents stay untouched. */
export function gatherPush(head: u32, frame: u32): u32 {
  store<u32>(infoOf(frame), head, INFO_NEXT);
  return frame;
}

/** The block gathered before this one, or 0. */
export function gatherNext(frame: u32): u32 {
  return load<u32>(infoOf(frame), INFO_NEXT);
}
