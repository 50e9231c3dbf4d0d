/**
 * Physical directory: what lies at each physical page outside the kernel window.
 *
 * A radix tree. Root and inner nodes hold 32-bit frame numbers of their children (11, 10 and 10 bits of the PFN),
 * leaf nodes 64-bit entries (9 bits): 0 absent, n > 0 frame n, -(s + 1) a page whose contents are stamp s. Nodes are
 * installed by compare-and-swap and stay until directory_trim, so readers take no lock; entries change by atomic
 * exchange.
 */
import {
  DIRECTORY_PFN_BITS,
  DIRECTORY_ROOT,
  ENOMEM,
  ERANGE,
  FRAME_BYTES,
  HEADER_DIRECTORY_NODES,
} from './layout';
import { frameOffset, kernelBase, kernelCount, kernelFirst } from './arena.as';
import { storage_alloc, storage_free } from './frames.as';
import { frame_fill_stamp } from './contents.as';

const TOP_SHIFT: u64 = 29;
const MIDDLE_SHIFT: u64 = 19;
const LEAF_SHIFT: u64 = 9;
const INNER_MASK: u64 = 1023;
const LEAF_MASK: u64 = 511;
const ROOT_BYTES: usize = 8192;
const NODE_BYTES: usize = FRAME_BYTES;

// @ts-ignore: decorator
@inline
function topSlot(pfn: u64): usize {
  return <usize>DIRECTORY_ROOT + ((<usize>(pfn >> TOP_SHIFT)) << 2);
}

// @ts-ignore: decorator
@inline
function middleSlot(node: u32, pfn: u64): usize {
  return frameOffset(node) + ((<usize>((pfn >> MIDDLE_SHIFT) & INNER_MASK)) << 2);
}

// @ts-ignore: decorator
@inline
function lowSlot(node: u32, pfn: u64): usize {
  return frameOffset(node) + ((<usize>((pfn >> LEAF_SHIFT) & INNER_MASK)) << 2);
}

// @ts-ignore: decorator
@inline
function entrySlot(node: u32, pfn: u64): usize {
  return frameOffset(node) + ((<usize>(pfn & LEAF_MASK)) << 3);
}

// @ts-ignore: decorator
@inline
function inRange(pfn: u64): bool {
  return pfn >> DIRECTORY_PFN_BITS == 0;
}

/** Slot of an entry, or 0 when a node on the way does not exist. */
function findSlot(pfn: u64): usize {
  const middle = atomic.load<u32>(topSlot(pfn));
  if (middle == 0) return 0;
  const low = atomic.load<u32>(middleSlot(middle, pfn));
  if (low == 0) return 0;
  const leaf = atomic.load<u32>(lowSlot(low, pfn));
  return leaf == 0 ? 0 : entrySlot(leaf, pfn);
}

/** The child in a slot, installed if there is none; 0 when out of storage. */
function childAt(slot: usize): u32 {
  const child = atomic.load<u32>(slot);
  if (child != 0) return child;
  const fresh = storage_alloc(0);
  if (fresh == 0) return 0;
  const other = atomic.cmpxchg<u32>(slot, 0, fresh);
  if (other == 0) {
    atomic.add<u32>(HEADER_DIRECTORY_NODES, 1);
    return fresh;
  }
  storage_free(fresh, 0);
  return other;
}

function makeSlot(pfn: u64): usize {
  const middle = childAt(topSlot(pfn));
  if (middle == 0) return 0;
  const low = childAt(middleSlot(middle, pfn));
  if (low == 0) return 0;
  const leaf = childAt(lowSlot(low, pfn));
  return leaf == 0 ? 0 : entrySlot(leaf, pfn);
}

/** The entry of a page in the form of the leaf nodes. */
export function entryOf(pfn: u64): i64 {
  if (!inRange(pfn)) return 0;
  const slot = findSlot(pfn);
  return slot == 0 ? 0 : atomic.load<i64>(slot);
}

/** Like entryOf, for pages of the kernel window too: those are always their frame. */
// @ts-ignore: decorator
@inline
export function resolvePage(pfn: u64): i64 {
  const index = pfn - kernelBase;
  return index < kernelCount ? <i64>(index + <u64>kernelFirst) : entryOf(pfn);
}

/** resolvePage at the edge. */
export function directory_resolve(pfn: f64): f64 {
  return <f64>resolvePage(<u64>(<i64>pfn));
}

/** The entry of a page: 0, a frame, or -(stamp + 1). */
export function directory_get(pfn: f64): f64 {
  return <f64>entryOf(<u64>(<i64>pfn));
}

/** Sets an entry (in the form of directory_get, not 0): 0, -ENOMEM or -ERANGE. */
export function directory_set(pfn: f64, entry: f64): i32 {
  const page = <u64>(<i64>pfn);
  if (!inRange(page)) return -ERANGE;
  const slot = makeSlot(page);
  if (slot == 0) return -ENOMEM;
  atomic.store<i64>(slot, <i64>entry);
  return 0;
}

/** Replaces an entry if it still is `expected` (neither may be 0): 1 when it did. */
export function directory_replace(pfn: f64, expected: f64, entry: f64): i32 {
  const page = <u64>(<i64>pfn);
  const slot = inRange(page) ? findSlot(page) : 0;
  return slot != 0 && atomic.cmpxchg<i64>(slot, <i64>expected, <i64>entry) == <i64>expected ? 1 : 0;
}

/** Removes an entry and answers what it was. */
export function directory_clear(pfn: f64): f64 {
  const page = <u64>(<i64>pfn);
  const slot = inRange(page) ? findSlot(page) : 0;
  return slot == 0 ? 0 : <f64>atomic.xchg<i64>(slot, 0);
}

/** The frame of a page, filled in first if only its stamp is held: the frame, 0 when absent, -ENOMEM. */
export function directory_materialise(pfn: f64): f64 {
  const page = <u64>(<i64>pfn);
  while (true) {
    const entry = resolvePage(page);
    if (entry >= 0) return <f64>entry;
    const frame = storage_alloc(0);
    if (frame == 0) return -ENOMEM;
    frame_fill_stamp(frame, <f64>(-entry - 1));
    if (atomic.cmpxchg<i64>(findSlot(page), entry, <i64>frame) == entry) return frame;
    storage_free(frame, 0);
  }
}

/** First page at or after `pfn` that has an entry, or -1. */
export function directory_next(pfn: f64): f64 {
  let page = <u64>(<i64>pfn);
  while (inRange(page)) {
    const middle = atomic.load<u32>(topSlot(page));
    if (middle == 0) {
      page = ((page >> TOP_SHIFT) + 1) << TOP_SHIFT;
      continue;
    }
    const low = atomic.load<u32>(middleSlot(middle, page));
    if (low == 0) {
      page = ((page >> MIDDLE_SHIFT) + 1) << MIDDLE_SHIFT;
      continue;
    }
    const leaf = atomic.load<u32>(lowSlot(low, page));
    if (leaf == 0) {
      page = ((page >> LEAF_SHIFT) + 1) << LEAF_SHIFT;
      continue;
    }
    do {
      if (atomic.load<i64>(entrySlot(leaf, page)) != 0) return <f64>(<i64>page);
      page++;
    } while ((page & LEAF_MASK) != 0);
  }
  return -1;
}

function isEmptyNode(node: u32): bool {
  const base = frameOffset(node);
  for (let at: usize = 0; at < NODE_BYTES; at += 8) {
    if (load<u64>(base + at) != 0) return false;
  }
  return true;
}

/**
 * Frees the empty nodes below a table of child slots; `depth` levels of inner nodes lie between it and the leaf
 * nodes.
 */
function trimBelow(first: usize, end: usize, depth: i32): void {
  for (let slot = first; slot < end; slot += 4) {
    const child = load<u32>(slot);
    if (child == 0) continue;
    if (depth > 0) trimBelow(frameOffset(child), frameOffset(child) + NODE_BYTES, depth - 1);
    if (!isEmptyNode(child)) continue;
    store<u32>(slot, 0);
    storage_free(child, 0);
    atomic.sub<u32>(HEADER_DIRECTORY_NODES, 1);
  }
}

/** Frees nodes that hold nothing. No other thread may use the directory meanwhile. */
export function directory_trim(): void {
  const root: usize = DIRECTORY_ROOT;
  trimBelow(root, root + ROOT_BYTES, 2);
}
