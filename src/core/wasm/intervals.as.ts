/**
 * Interval index: a B+tree of disjoint {start, last} intervals of the 64-bit space, each with a 32-bit value.
 *
 * A node is one storage frame: entries of 24 bytes {start, last, value}. In an inner node `value` is a child and
 * `last` the largest last below it, `start` is not used; disjoint intervals sorted by start are sorted by last too,
 * so one search by `last` serves every level. The handle is the root, which never moves: when it is full it hands its
 * entries to a child. Nodes but the root hold at least MINIMUM entries; on removal they borrow from a sibling or
 * merge with it.
 *
 * An index has no lock of its own: callers hold theirs (Linux: iova_rwsem).
 */
import {
  EEXIST,
  EINVAL,
  ENOENT,
  ENOMEM,
  FRAME_BYTES,
  SCRATCH_INTERVAL_LAST,
  SCRATCH_INTERVAL_START,
  SCRATCH_INTERVAL_VALUE,
  SCRATCH_PATH,
  SCRATCH_SPARE_NODES,
} from './layout';
import { frameOffset, scratch } from './arena.as';
import { storage_alloc, storage_free } from './frames.as';

/** Words of a node, then its entries. LEVEL is 0 in a leaf; SIZE counts all intervals and is kept in the root only. */
const NODE_COUNT: usize = 0;
const NODE_LEVEL: usize = 4;
const NODE_SIZE: usize = 8;
const NODE_ENTRIES: usize = 16;
const ENTRY_BYTES: usize = 24;
const ENTRY_START: usize = NODE_ENTRIES;
const ENTRY_LAST: usize = NODE_ENTRIES + 8;
const ENTRY_VALUE: usize = NODE_ENTRIES + 16;
const CAPACITY: i32 = (FRAME_BYTES - 16) / 24;
const MINIMUM: i32 = CAPACITY / 4;

// @ts-ignore: decorator
@inline
function countOf(node: usize): i32 {
  return load<i32>(node, NODE_COUNT);
}

// @ts-ignore: decorator
@inline
function levelOf(node: usize): i32 {
  return load<i32>(node, NODE_LEVEL);
}

/** Offset to add to the ENTRY_* constants for entry i of a node. */
// @ts-ignore: decorator
@inline
function entryAt(node: usize, index: i32): usize {
  return node + <usize>index * ENTRY_BYTES;
}

// @ts-ignore: decorator
@inline
function childAt(node: usize, index: i32): usize {
  return frameOffset(load<u32>(entryAt(node, index), ENTRY_VALUE));
}

// @ts-ignore: decorator
@inline
function largestLast(node: usize): u64 {
  return load<u64>(entryAt(node, countOf(node) - 1), ENTRY_LAST);
}

/** The path of the descent in progress: node and index at each depth. */
// @ts-ignore: decorator
@inline
function pathAt(depth: i32): usize {
  return scratch + SCRATCH_PATH + ((<usize>depth) << 3);
}

// @ts-ignore: decorator
@inline
function pathNode(depth: i32): usize {
  return <usize>load<u32>(pathAt(depth));
}

// @ts-ignore: decorator
@inline
function pathIndex(depth: i32): i32 {
  return load<i32>(pathAt(depth), 4);
}

// @ts-ignore: decorator
@inline
function setPath(depth: i32, node: usize, index: i32): void {
  store<u32>(pathAt(depth), <u32>node);
  store<i32>(pathAt(depth), index, 4);
}

/** First entry whose last is at or after the key; the count when there is none. */
function search(node: usize, key: u64): i32 {
  let low = 0;
  let high = countOf(node);
  while (low < high) {
    const middle = (low + high) >> 1;
    if (load<u64>(entryAt(node, middle), ENTRY_LAST) < key) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Records the path to the leaf where `key` belongs and answers the leaf's depth. */
function descend(root: usize, key: u64): i32 {
  let node = root;
  let depth = 0;
  while (levelOf(node) > 0) {
    const index = min<i32>(search(node, key), countOf(node) - 1);
    setPath(depth, node, index);
    node = childAt(node, index);
    depth++;
  }
  setPath(depth, node, search(node, key));
  return depth;
}

function insertEntry(node: usize, index: i32, start: u64, last: u64, value: u32): void {
  const count = countOf(node);
  const entry = entryAt(node, index);
  memory.copy(
    entry + NODE_ENTRIES + ENTRY_BYTES,
    entry + NODE_ENTRIES,
    <usize>(count - index) * ENTRY_BYTES,
  );
  store<u64>(entry, start, ENTRY_START);
  store<u64>(entry, last, ENTRY_LAST);
  store<u32>(entry, value, ENTRY_VALUE);
  store<i32>(node, count + 1, NODE_COUNT);
}

function removeEntry(node: usize, index: i32): void {
  const count = countOf(node) - 1;
  const entry = entryAt(node, index) + NODE_ENTRIES;
  memory.copy(entry, entry + ENTRY_BYTES, <usize>(count - index) * ENTRY_BYTES);
  store<i32>(node, count, NODE_COUNT);
}

/** Moves `count` entries from `from` of one node to the end (or, `toFront`, the beginning) of another. */
function moveEntries(source: usize, from: i32, count: i32, target: usize, toFront: bool): void {
  const there = countOf(target);
  const here = countOf(source);
  const bytes = <usize>count * ENTRY_BYTES;
  const first = target + NODE_ENTRIES;
  if (toFront) memory.copy(first + bytes, first, <usize>there * ENTRY_BYTES);
  memory.copy(toFront ? first : entryAt(target, there) + NODE_ENTRIES, entryAt(source, from) + NODE_ENTRIES, bytes);
  memory.copy(
    entryAt(source, from) + NODE_ENTRIES,
    entryAt(source, from + count) + NODE_ENTRIES,
    <usize>(here - from - count) * ENTRY_BYTES,
  );
  store<i32>(target, there + count, NODE_COUNT);
  store<i32>(source, here - count, NODE_COUNT);
}

/** Brings `last` of the ancestors of the node at `depth` up to date. */
function updateAncestors(depth: i32): void {
  for (let above = depth - 1; above >= 0; above--) {
    const node = pathNode(above);
    store<u64>(entryAt(node, pathIndex(above)), largestLast(pathNode(above + 1)), ENTRY_LAST);
  }
}

/** Allocates nodes into SPARE_NODES: all of them or none. */
function allocateSpares(count: i32): bool {
  for (let n = 0; n < count; n++) {
    const frame = storage_alloc(0);
    if (frame == 0) {
      while (n-- > 0) storage_free(load<u32>(scratch + SCRATCH_SPARE_NODES + ((<usize>n) << 2)), 0);
      return false;
    }
    store<u32>(scratch + SCRATCH_SPARE_NODES + ((<usize>n) << 2), frame);
  }
  return true;
}

// @ts-ignore: decorator
@inline
function spare(n: i32): u32 {
  return load<u32>(scratch + SCRATCH_SPARE_NODES + ((<usize>n) << 2));
}

/** Gives the full root a single child that takes over its entries; the recorded path gets one step longer. */
function deepenRoot(root: usize, depth: i32, frame: u32): void {
  const child = frameOffset(frame);
  const level = levelOf(root);
  store<i32>(child, level, NODE_LEVEL);
  const last = largestLast(root);
  moveEntries(root, 0, countOf(root), child, false);
  store<i32>(root, level + 1, NODE_LEVEL);
  insertEntry(root, 0, 0, last, frame);
  for (let d = depth; d > 0; d--) setPath(d + 1, pathNode(d), pathIndex(d));
  setPath(1, child, pathIndex(0));
  setPath(0, root, 0);
}

/** Inserts at the recorded path, splitting full nodes; enough spare nodes are at hand. */
function insertAlong(root: usize, leafDepth: i32, start: u64, last: u64, value: u32): void {
  let used = 0;
  let depth = leafDepth;
  while (true) {
    const node = pathNode(depth);
    const index = pathIndex(depth);
    if (countOf(node) < CAPACITY) {
      insertEntry(node, index, start, last, value);
      updateAncestors(depth);
      return;
    }
    if (depth == 0) {
      deepenRoot(root, leafDepth, spare(used++));
      leafDepth++;
      depth++;
      continue;
    }
    const frame = spare(used++);
    const right = frameOffset(frame);
    const half = CAPACITY / 2;
    store<i32>(right, levelOf(node), NODE_LEVEL);
    moveEntries(node, half, CAPACITY - half, right, false);
    if (index <= half) insertEntry(node, index, start, last, value);
    else insertEntry(right, index - half, start, last, value);
    const parent = pathNode(depth - 1);
    const parentIndex = pathIndex(depth - 1);
    store<u64>(entryAt(parent, parentIndex), largestLast(node), ENTRY_LAST);
    setPath(depth - 1, parent, parentIndex + 1);
    start = 0;
    last = largestLast(right);
    value = frame;
    depth--;
  }
}

/** An empty index: its handle, or -ENOMEM. */
export function interval_create(): i32 {
  const frame = storage_alloc(0);
  return frame == 0 ? -ENOMEM : <i32>frame;
}

function destroyNode(frame: u32): void {
  const node = frameOffset(frame);
  if (levelOf(node) > 0) {
    for (let index = 0; index < countOf(node); index++) destroyNode(load<u32>(entryAt(node, index), ENTRY_VALUE));
  }
  storage_free(frame, 0);
}

/** Frees every node, and the handle. */
export function interval_destroy(handle: u32): void {
  destroyNode(handle);
}

/** Number of intervals. */
export function interval_size(handle: u32): u32 {
  return load<u32>(frameOffset(handle), NODE_SIZE);
}

/** Adds an interval: 0, -EEXIST when it overlaps one, -EINVAL when start > last, -ENOMEM. */
export function interval_insert(handle: u32, start: u64, last: u64, value: u32): i32 {
  if (start > last) return -EINVAL;
  const root = frameOffset(handle);
  const depth = descend(root, start);
  const leaf = pathNode(depth);
  const index = pathIndex(depth);
  if (index < countOf(leaf) && load<u64>(entryAt(leaf, index), ENTRY_START) <= last) return -EEXIST;
  let spares = 0;
  let full = depth;
  while (full >= 0 && countOf(pathNode(full)) == CAPACITY) {
    spares++;
    full--;
  }
  if (full < 0) spares++;
  if (!allocateSpares(spares)) return -ENOMEM;
  insertAlong(root, depth, start, last, value);
  store<u32>(root, load<u32>(root, NODE_SIZE) + 1, NODE_SIZE);
  return 0;
}

/** Evens out an underfull node at `depth` with a sibling, or merges the two. */
function rebalance(depth: i32): void {
  const parent = pathNode(depth - 1);
  const index = pathIndex(depth - 1);
  const leftIndex = index > 0 ? index - 1 : index;
  const left = childAt(parent, leftIndex);
  const right = childAt(parent, leftIndex + 1);
  const total = countOf(left) + countOf(right);
  if (total <= CAPACITY) {
    moveEntries(right, 0, countOf(right), left, false);
    storage_free(load<u32>(entryAt(parent, leftIndex + 1), ENTRY_VALUE), 0);
    removeEntry(parent, leftIndex + 1);
  } else {
    const excess = countOf(left) - total / 2;
    if (excess > 0) moveEntries(left, countOf(left) - excess, excess, right, true);
    else moveEntries(right, 0, -excess, left, false);
    store<u64>(entryAt(parent, leftIndex + 1), largestLast(right), ENTRY_LAST);
  }
  store<u64>(entryAt(parent, leftIndex), largestLast(left), ENTRY_LAST);
  // A merge may have removed the entry the path points to; what lies above only needs the parent's largest last.
  setPath(depth - 1, parent, leftIndex);
}

/** While the root has a single child it takes over that child's entries. */
function flattenRoot(root: usize): void {
  while (levelOf(root) > 0 && countOf(root) == 1) {
    const frame = load<u32>(entryAt(root, 0), ENTRY_VALUE);
    const child = frameOffset(frame);
    store<i32>(root, levelOf(child), NODE_LEVEL);
    store<i32>(root, 0, NODE_COUNT);
    moveEntries(child, 0, countOf(child), root, false);
    storage_free(frame, 0);
  }
}

/** Removes the interval that starts at `start`: 0 (its value in INTERVAL_VALUE) or -ENOENT. */
export function interval_remove(handle: u32, start: u64): i32 {
  const root = frameOffset(handle);
  const leafDepth = descend(root, start);
  const leaf = pathNode(leafDepth);
  const index = pathIndex(leafDepth);
  if (index == countOf(leaf) || load<u64>(entryAt(leaf, index), ENTRY_START) != start) return -ENOENT;
  store<u32>(scratch, load<u32>(entryAt(leaf, index), ENTRY_VALUE), SCRATCH_INTERVAL_VALUE);
  removeEntry(leaf, index);
  for (let depth = leafDepth; depth > 0; depth--) {
    const node = pathNode(depth);
    if (countOf(node) < MINIMUM) {
      rebalance(depth);
    } else {
      updateAncestors(depth);
      break;
    }
  }
  flattenRoot(root);
  store<u32>(root, load<u32>(root, NODE_SIZE) - 1, NODE_SIZE);
  return 0;
}

/** Finds the first interval whose last is at or after `address`: 1 with INTERVAL_START, _LAST and _VALUE, or 0. */
export function interval_seek(handle: u32, address: u64): i32 {
  let node = frameOffset(handle);
  while (true) {
    const index = search(node, address);
    if (index == countOf(node)) return 0;
    if (levelOf(node) == 0) {
      const entry = entryAt(node, index);
      store<u64>(scratch, load<u64>(entry, ENTRY_START), SCRATCH_INTERVAL_START);
      store<u64>(scratch, load<u64>(entry, ENTRY_LAST), SCRATCH_INTERVAL_LAST);
      store<u32>(scratch, load<u32>(entry, ENTRY_VALUE), SCRATCH_INTERVAL_VALUE);
      return 1;
    }
    node = childAt(node, index);
  }
}

/** Changes the value of the interval that starts at `start`: 0 or -ENOENT. */
export function interval_set_value(handle: u32, start: u64, value: u32): i32 {
  const depth = descend(frameOffset(handle), start);
  const leaf = pathNode(depth);
  const index = pathIndex(depth);
  if (index == countOf(leaf) || load<u64>(entryAt(leaf, index), ENTRY_START) != start) return -ENOENT;
  store<u32>(entryAt(leaf, index), value, ENTRY_VALUE);
  return 0;
}
