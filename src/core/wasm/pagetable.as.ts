/**
 * The kernel's side of the tables: create, map, unmap, read dirty state. Semantics of Linux's io-pgtable-arm.
 *
 * Callers guarantee that operations running at the same time work on disjoint ranges; those ranges may share tables. So
 * next-level tables are installed by compare-and-swap, and a table is taken out only when the range owns all of it. A
 * table taken out goes on the caller's private gather list and is freed after the caller has invalidated: a walker may
 * still hold it, so its contents stay untouched.
 *
 * Leaves are written by 64-bit atomic stores: the only ones WebAssembly promises not to tear, and a walker on another
 * thread that sees a leaf also sees the table it lies in.
 *
 * Page numbers are in units of the translation granule.
 */
import {
  EEXIST,
  EINVAL,
  ENOMEM,
  ERANGE,
  FRAME_SHIFT,
  PT_GRANULE_SHIFT,
  PT_INPUT_BITS,
  PT_LEAF_LEVELS,
  PT_OUTPUT_BITS,
  PT_ROOT_ENTRIES,
  PT_ROOT_FRAME,
  PT_ROOT_ORDER,
  PT_STAGE,
  PT_START_LEVEL,
  SCRATCH_DESC_LO,
  SCRATCH_GATHER,
  SCRATCH_HOLE_PAGES,
  SCRATCH_LEAF_PAGES,
  SCRATCH_LEVEL,
  SCRATCH_OUT_PFN,
  SCRATCH_TABLE_CLEARED,
} from './layout';
import { frameOffset, kernelBase, kernelDelta, kernelFirst, scratch } from './arena.as';
import { gatherNext, gatherPush, kernel_alloc, kernel_free, storage_alloc, storage_free } from './frames.as';
import {
  DESC_BIT7,
  DESC_BLOCK,
  DESC_DBM,
  DESC_LEAF_ATTRS,
  DESC_TABLE_OR_PAGE,
  DESC_TYPE,
  DESC_VALID,
  LAST_LEVEL,
  descAddress,
  descFromAddress,
  isLeaf,
  isTable,
} from './descriptor.as';
import { setBits } from './bitmap.as';

const MAX_CONCATENATION: i32 = 4;
const ADDRESS_48: u64 = 1 << 48;

// @ts-ignore: decorator
@inline
function granuleOf(handle: usize): u64 {
  return <u64>load<u32>(handle, PT_GRANULE_SHIFT);
}

/** log2 of the granule pages one entry of a level spans. */
// @ts-ignore: decorator
@inline
function spanShift(level: i32, granule: u64): u64 {
  return (granule - 3) * <u64>(LAST_LEVEL - level);
}

// @ts-ignore: decorator
@inline
function rootTable(handle: usize): usize {
  return frameOffset(load<u32>(handle, PT_ROOT_FRAME));
}

/** Arena offset of the table a descriptor points to; tables lie in the kernel window. */
// @ts-ignore: decorator
@inline
function nextTable(desc: u64, granule: u64): usize {
  return <usize>(descAddress(desc, granule) + kernelDelta);
}

// @ts-ignore: decorator
@inline
function frameOfTable(table: usize): u32 {
  return <u32>(table >> FRAME_SHIFT);
}

/** Entries of a table of this level: the root may hold fewer than a full table, or several side by side. */
// @ts-ignore: decorator
@inline
function entriesAt(handle: usize, level: i32, granule: u64): u64 {
  return level == load<i32>(handle, PT_START_LEVEL)
    ? <u64>load<u32>(handle, PT_ROOT_ENTRIES)
    : (<u64>1) << (granule - 3);
}

/** Index of a page at a level. Pages are below the input limit, so the root index needs no mask. */
// @ts-ignore: decorator
@inline
function indexAt(handle: usize, page: u64, level: i32, granule: u64): u64 {
  return (page >> spanShift(level, granule)) & (entriesAt(handle, level, granule) - 1);
}

/**
 * True when Arm requires (R_DXBSH, R_SRKBC of DDI 0487), and so Linux uses, concatenated tables one level further
 * down.
 */
function mustConcatenate(granule: i32, level: i32, inputBits: i32, outputBits: i32): bool {
  if (granule == 14 && level == 0) return outputBits == 48 || inputBits == 48;
  if (granule == 12 && level == 0) return outputBits == 40 || outputBits == 42;
  return granule == 14 && level == 1 && outputBits == 40;
}

/** Allocates a root and a handle: the handle (a storage frame), -EINVAL or -ENOMEM. */
export function pt_create(stage: i32, granuleShift: i32, inputBits: i32, outputBits: i32, leafLevels: i32): i32 {
  const bits = granuleShift - 3;
  const below = inputBits - granuleShift - 1;
  let startLevel = LAST_LEVEL - below / bits;
  let rootBits = (below % bits) + 1;
  if (startLevel < 0) return -EINVAL;
  if (stage == 2 && mustConcatenate(granuleShift, startLevel, inputBits, outputBits)) {
    startLevel++;
    rootBits += bits;
    if (rootBits - bits > MAX_CONCATENATION) return -EINVAL;
  }
  const rootOrder = rootBits + 3 > FRAME_SHIFT ? rootBits + 3 - FRAME_SHIFT : 0;
  const frame = storage_alloc(0);
  if (frame == 0) return -ENOMEM;
  const root = kernel_alloc(rootOrder);
  if (root == 0) {
    storage_free(frame, 0);
    return -ENOMEM;
  }
  const handle = frameOffset(frame);
  store<i32>(handle, stage, PT_STAGE);
  store<i32>(handle, granuleShift, PT_GRANULE_SHIFT);
  store<i32>(handle, inputBits, PT_INPUT_BITS);
  store<i32>(handle, outputBits, PT_OUTPUT_BITS);
  store<i32>(handle, startLevel, PT_START_LEVEL);
  store<i32>(handle, leafLevels, PT_LEAF_LEVELS);
  store<u32>(handle, root, PT_ROOT_FRAME);
  store<i32>(handle, rootOrder, PT_ROOT_ORDER);
  store<i32>(handle, 1 << rootBits, PT_ROOT_ENTRIES);
  return frame;
}

/** Number of leaves in a table of the last level. */
function countPages(table: usize, end: usize): u64 {
  let leaves: u64 = 0;
  for (let at = table; at < end; at += 8) leaves += atomic.load<u64>(at) & DESC_VALID;
  return leaves;
}

/** Puts the tables below a table (not itself) on a gather list, adding the pages they map to LEAF_PAGES. */
function gatherBelow(handle: usize, table: usize, level: i32, head: u32): u32 {
  const granule = granuleOf(handle);
  const end = table + ((<usize>entriesAt(handle, level, granule)) << 3);
  let leaves: u64 = 0;
  if (level == LAST_LEVEL) {
    leaves = countPages(table, end);
  } else {
    for (let at = table; at < end; at += 8) {
      const desc = atomic.load<u64>(at);
      if (isTable(desc, level)) {
        const child = nextTable(desc, granule);
        head = gatherPush(gatherBelow(handle, child, level + 1, head), frameOfTable(child));
      } else {
        leaves += desc & DESC_VALID;
      }
    }
  }
  const pages = <f64>(<i64>(leaves << spanShift(level, granule)));
  store<f64>(scratch, load<f64>(scratch, SCRATCH_LEAF_PAGES) + pages, SCRATCH_LEAF_PAGES);
  return head;
}

/** Frees the tables on a gather list. */
export function pt_free_gathered(handleFrame: u32, head: u32): void {
  const order = <i32>granuleOf(frameOffset(handleFrame)) - FRAME_SHIFT;
  while (head != 0) {
    const frame = head;
    head = gatherNext(frame);
    kernel_free(frame, order);
  }
}

/** Frees every table, and the handle. */
export function pt_destroy(handleFrame: u32): void {
  const handle = frameOffset(handleFrame);
  pt_free_gathered(handleFrame, gatherBelow(handle, rootTable(handle), load<i32>(handle, PT_START_LEVEL), 0));
  kernel_free(load<u32>(handle, PT_ROOT_FRAME), load<i32>(handle, PT_ROOT_ORDER));
  storage_free(handleFrame, 0);
}

/** Installs a fresh table in an empty entry, or finds that another thread did: the descriptor, 0 when out of memory. */
function installTable(entry: usize, seen: u64, granule: u64): u64 {
  const order = <i32>granule - FRAME_SHIFT;
  const frame = kernel_alloc(order);
  if (frame == 0) return 0;
  const address = (kernelBase + <u64>(frame - kernelFirst)) << FRAME_SHIFT;
  const desc = descFromAddress(address, granule) | DESC_TABLE_OR_PAGE;
  const found = atomic.cmpxchg<u64>(entry, seen, desc);
  if (found == seen) return desc;
  kernel_free(frame, order);
  return found;
}

// @ts-ignore: decorator
@inline
function inLimits(first: i64, count: i64, bits: u64): bool {
  return first >= 0 && count <= (<i64>1) << bits && first <= ((<i64>1) << bits) - count;
}

/** Level of the largest leaf that fits at the start of the range. */
// @ts-ignore: decorator
@inline
function leafLevel(handle: usize, addresses: u64, pages: u64, granule: u64): i32 {
  const allowed = load<u32>(handle, PT_LEAF_LEVELS);
  let level = load<i32>(handle, PT_START_LEVEL);
  let shift = spanShift(level, granule);
  for (; level < LAST_LEVEL; level++) {
    const span = (<u64>1) << shift;
    if (pages >= span && ((allowed >> level) & 1) != 0 && (addresses & (span - 1)) == 0) break;
    shift -= granule - 3;
  }
  return level;
}

/** Takes an empty table out of the way of a block: 0 (invalidate, then try again), -EEXIST when it maps something. */
function removeEmptyTable(handle: usize, entry: usize, desc: u64, level: i32, head: u32): f64 {
  const table = nextTable(desc, granuleOf(handle));
  store<f64>(scratch, 0, SCRATCH_LEAF_PAGES);
  const gathered = gatherBelow(handle, table, level + 1, head);
  if (load<f64>(scratch, SCRATCH_LEAF_PAGES) != 0) return -EEXIST;
  atomic.store<u64>(entry, 0);
  store<u32>(scratch, gatherPush(gathered, frameOfTable(table)), SCRATCH_GATHER);
  store<i32>(scratch, 1, SCRATCH_TABLE_CLEARED);
  return 0;
}

/**
 * Maps the beginning of a range: as many of the largest allowed leaves as lie side by side in one table. Answers the
 * pages mapped; 0 when an empty table was taken out first (TABLE_CLEARED: invalidate, free what was gathered, call
 * again); -EEXIST, -ENOMEM, -ERANGE, -EINVAL. The gather list goes in by `gather` and comes out in GATHER.
 */
export function pt_map_step(
  handleFrame: u32,
  iovaPage: f64,
  paPage: f64,
  nPages: f64,
  attrLo: u32,
  attrHi: u32,
  gather: u32,
): f64 {
  const handle = frameOffset(handleFrame);
  const granule = granuleOf(handle);
  const iova = <i64>iovaPage;
  const pa = <i64>paPage;
  const pages = <i64>nPages;
  const attrs = (<u64>attrLo) | ((<u64>attrHi) << 32);
  store<u32>(scratch, gather, SCRATCH_GATHER);
  store<i32>(scratch, 0, SCRATCH_TABLE_CLEARED);
  if (pages <= 0 || (attrs & ~DESC_LEAF_ATTRS) != 0) return -EINVAL;
  if (!inLimits(iova, pages, <u64>load<u32>(handle, PT_INPUT_BITS) - granule)) return -ERANGE;
  if (!inLimits(pa, pages, <u64>load<u32>(handle, PT_OUTPUT_BITS) - granule)) return -ERANGE;

  const target = leafLevel(handle, iova | pa, pages, granule);
  const bits = granule - 3;
  let level = load<i32>(handle, PT_START_LEVEL);
  let shift = spanShift(level, granule);
  let entries = <u64>load<u32>(handle, PT_ROOT_ENTRIES);
  let index = (<u64>iova) >> shift;
  let table = rootTable(handle);
  while (level < target) {
    const entry = table + ((<usize>index) << 3);
    let desc = atomic.load<u64>(entry);
    if ((desc & DESC_VALID) == 0) desc = installTable(entry, desc, granule);
    if (desc == 0) return -ENOMEM;
    if ((desc & DESC_TYPE) == DESC_BLOCK) return -EEXIST;
    table = nextTable(desc, granule);
    level++;
    shift -= bits;
    entries = (<u64>1) << bits;
    index = ((<u64>iova) >> shift) & (entries - 1);
  }

  const type = level == LAST_LEVEL ? DESC_TABLE_OR_PAGE : DESC_BLOCK;
  const address = (<u64>pa) << granule;
  const step = (<u64>1) << (shift + granule);
  // Adding `step` to a descriptor is right up to the next 2^48: beyond it other bits change (64 KiB granule).
  const linear = (ADDRESS_48 - (address & (ADDRESS_48 - 1))) >> (shift + granule);
  const run = min<u64>(min<u64>((<u64>pages) >> shift, entries - index), linear);
  let desc = descFromAddress(address, granule) | attrs | type;
  let at = table + ((<usize>index) << 3);
  const end = at + ((<usize>run) << 3);
  for (; at < end; at += 8) {
    if ((atomic.load<u64>(at) & DESC_VALID) != 0) break;
    atomic.store<u64>(at, desc);
    desc += step;
  }
  const mapped = (<u64>((at - table) >> 3) - index) << shift;
  if (mapped != 0) return <f64>(<i64>mapped);
  const found = atomic.load<u64>(at);
  return isTable(found, level) ? removeEmptyTable(handle, at, found, level, gather) : -EEXIST;
}

/** Clears leaves side by side from `at`: how many. */
// @ts-ignore: decorator
@inline
function clearLeaves(at: usize, run: u64, level: i32): u64 {
  const first = at;
  const end = at + ((<usize>run) << 3);
  for (; at < end; at += 8) {
    if (!isLeaf(atomic.load<u64>(at), level)) break;
    atomic.store<u64>(at, 0);
  }
  return <u64>((at - first) >> 3);
}

/** Takes a table out with everything below it: pages its entry spans. */
function detachTable(handle: usize, entry: usize, level: i32, head: u32): u64 {
  const granule = granuleOf(handle);
  const table = nextTable(atomic.xchg<u64>(entry, 0), granule);
  const gathered = gatherBelow(handle, table, level + 1, head);
  store<u32>(scratch, gatherPush(gathered, frameOfTable(table)), SCRATCH_GATHER);
  store<i32>(scratch, 1, SCRATCH_TABLE_CLEARED);
  return (<u64>1) << spanShift(level, granule);
}

/**
 * Unmaps the beginning of a range: leaves side by side in one table, or one whole table if the range owns all its input
 * addresses and its span is a leaf size. Answers the pages covered; 0 for a hole, whose extent within the range is in
 * HOLE_PAGES; -EINVAL when the range has only a part of a block; -ERANGE. LEAF_PAGES: pages that were mapped.
 * TABLE_CLEARED: walk caches must be invalidated too. The gather list goes in by `gather` and comes out in GATHER.
 */
export function pt_unmap_step(handleFrame: u32, iovaPage: f64, nPages: f64, gather: u32): f64 {
  const handle = frameOffset(handleFrame);
  const granule = granuleOf(handle);
  const iova = <i64>iovaPage;
  const pages = <i64>nPages;
  store<u32>(scratch, gather, SCRATCH_GATHER);
  store<i32>(scratch, 0, SCRATCH_TABLE_CLEARED);
  store<f64>(scratch, 0, SCRATCH_LEAF_PAGES);
  if (pages <= 0) return -EINVAL;
  if (!inLimits(iova, pages, <u64>load<u32>(handle, PT_INPUT_BITS) - granule)) return -ERANGE;
  const allowed = load<u32>(handle, PT_LEAF_LEVELS);
  const bits = granule - 3;
  let level = load<i32>(handle, PT_START_LEVEL);
  let shift = spanShift(level, granule);
  let entries = <u64>load<u32>(handle, PT_ROOT_ENTRIES);
  let index = (<u64>iova) >> shift;
  let table = rootTable(handle);
  while (true) {
    const span = (<u64>1) << shift;
    const offset = (<u64>iova) & (span - 1);
    const entry = table + ((<usize>index) << 3);
    const desc = atomic.load<u64>(entry);
    if ((desc & DESC_VALID) == 0) {
      store<f64>(scratch, <f64>(<i64>min<u64>(pages, span - offset)), SCRATCH_HOLE_PAGES);
      return 0;
    }
    const whole = offset == 0 && <u64>pages >= span;
    if (isLeaf(desc, level)) {
      if (!whole) return -EINVAL;
      const run = min<u64>((<u64>pages) >> shift, entries - index);
      const cleared = <f64>(<i64>(clearLeaves(entry, run, level) << shift));
      store<f64>(scratch, cleared, SCRATCH_LEAF_PAGES);
      return cleared;
    }
    if (whole && ((allowed >> level) & 1) != 0) return <f64>(<i64>detachTable(handle, entry, level, gather));
    table = nextTable(desc, granule);
    level++;
    shift -= bits;
    entries = (<u64>1) << bits;
    index = ((<u64>iova) >> shift) & (entries - 1);
  }
}

/** Offset of the leaf that maps a page, its level in SCRATCH_LEVEL; 0 when there is none. */
function findLeaf(handle: usize, page: u64, granule: u64): usize {
  const bits = granule - 3;
  let level = load<i32>(handle, PT_START_LEVEL);
  let shift = spanShift(level, granule);
  let index = page >> shift;
  let table = rootTable(handle);
  while (true) {
    const entry = table + ((<usize>index) << 3);
    const desc = atomic.load<u64>(entry);
    if ((desc & DESC_VALID) == 0) return 0;
    if (!isTable(desc, level)) {
      store<i32>(scratch, level, SCRATCH_LEVEL);
      return entry;
    }
    table = nextTable(desc, granule);
    level++;
    shift -= bits;
    index = (page >> shift) & (((<u64>1) << bits) - 1);
  }
}

/** Granule page a page is mapped to, or -1. */
export function pt_translate(handleFrame: u32, iovaPage: f64): f64 {
  const handle = frameOffset(handleFrame);
  const granule = granuleOf(handle);
  const page = <i64>iovaPage;
  if (!inLimits(page, 1, <u64>load<u32>(handle, PT_INPUT_BITS) - granule)) return -1;
  const entry = findLeaf(handle, page, granule);
  const desc = entry == 0 ? 0 : atomic.load<u64>(entry);
  if ((desc & DESC_VALID) == 0) return -1;
  const within = ((<u64>1) << spanShift(load<i32>(scratch, SCRATCH_LEVEL), granule)) - 1;
  return <f64>(<i64>(((descAddress(desc, granule) >> granule) & ~within) | (page & within)));
}

/**
 * First page of the first leaf that covers or follows `fromPage`, or -1. LEVEL, DESC_LO, DESC_HI and LEAF_PAGES
 * describe it; OUT_PFN is the granule page it maps to.
 */
export function pt_next_leaf(handleFrame: u32, fromPage: f64): f64 {
  const handle = frameOffset(handleFrame);
  const granule = granuleOf(handle);
  const limit = (<u64>1) << (<u64>load<u32>(handle, PT_INPUT_BITS) - granule);
  let page = <u64>(<i64>fromPage);
  while (page < limit) {
    let table = rootTable(handle);
    for (let level = load<i32>(handle, PT_START_LEVEL); ; level++) {
      const shift = spanShift(level, granule);
      const entries = entriesAt(handle, level, granule);
      let index = indexAt(handle, page, level, granule);
      let desc = atomic.load<u64>(table + ((<usize>index) << 3));
      while ((desc & DESC_VALID) == 0 && ++index < entries) {
        page = ((page >> shift) + 1) << shift;
        desc = atomic.load<u64>(table + ((<usize>index) << 3));
      }
      if (index == entries) {
        page = ((page >> shift) + 1) << shift;
        break;
      }
      if (isLeaf(desc, level)) {
        const span = (<u64>1) << shift;
        store<i32>(scratch, level, SCRATCH_LEVEL);
        store<u64>(scratch, desc, SCRATCH_DESC_LO);
        store<f64>(scratch, <f64>(<i64>span), SCRATCH_LEAF_PAGES);
        store<f64>(scratch, <f64>(<i64>((descAddress(desc, granule) >> granule) & ~(span - 1))), SCRATCH_OUT_PFN);
        return <f64>(<i64>(page & ~(span - 1)));
      }
      table = nextTable(desc, granule);
    }
  }
  return -1;
}

/** Makes a dirty leaf writable-clean unless it changes under our hands (it was unmapped). */
// @ts-ignore: decorator
@inline
function makeClean(at: usize, desc: u64): void {
  while (atomic.cmpxchg<u64>(at, desc, desc ^ DESC_BIT7) != desc) {
    const now = atomic.load<u64>(at);
    if (((now ^ desc) & (DESC_VALID | DESC_DBM | DESC_BIT7)) != 0) return;
    desc = now;
  }
}

/**
 * Reads the dirty state of a range up to its first hole and answers the pages walked. A dirty leaf (stage 1: AP[2] = 0,
 * stage 2: S2AP[1] = 1, both with DBM) sets the bits of every page of it within the range, in a bitmap at byte offset
 * `bitmap` (0: none) whose bit 0 stands for `bitmapFirstPage` and whose bits stand for 2^bitmapPageShift bytes each.
 * Unless `noClear` it becomes writable-clean.
 */
export function pt_read_dirty(
  handleFrame: u32,
  iovaPage: f64,
  nPages: f64,
  bitmap: u32,
  bitmapFirstPage: f64,
  bitmapPageShift: i32,
  noClear: i32,
): f64 {
  const handle = frameOffset(handleFrame);
  const granule = granuleOf(handle);
  const first = <i64>iovaPage;
  const count = <i64>nPages;
  if (count <= 0) return -EINVAL;
  if (!inLimits(first, count, <u64>load<u32>(handle, PT_INPUT_BITS) - granule)) return -ERANGE;
  const dirty = DESC_DBM | (load<i32>(handle, PT_STAGE) == 2 ? DESC_BIT7 : 0);
  const origin = <u64>(<i64>bitmapFirstPage);
  const end = <u64>(first + count);
  let page = <u64>first;
  while (page < end) {
    const firstAt = findLeaf(handle, page, granule);
    if (firstAt == 0) break;
    const level = load<i32>(scratch, SCRATCH_LEVEL);
    const leafType = level == LAST_LEVEL ? DESC_TABLE_OR_PAGE : DESC_BLOCK;
    const shift = spanShift(level, granule);
    const base = (page >> shift) << shift;
    const inTable = entriesAt(handle, level, granule) - indexAt(handle, page, level, granule);
    const inRange = (end - base + ((<u64>1) << shift) - 1) >> shift;
    const stop = firstAt + ((<usize>min<u64>(inTable, inRange)) << 3);
    let at = firstAt;
    for (; at < stop; at += 8) {
      const desc = atomic.load<u64>(at);
      if ((desc & DESC_TYPE) != leafType) break;
      if ((desc & (DESC_DBM | DESC_BIT7)) != dirty) continue;
      if (noClear == 0) makeClean(at, desc);
      if (bitmap == 0) continue;
      const leaf = base + ((<u64>((at - firstAt) >> 3)) << shift);
      const from = max<u64>(leaf, page) - origin;
      const to = min<u64>(leaf + ((<u64>1) << shift), end) - origin;
      setBits(bitmap, (from << granule) >> bitmapPageShift, ((to << granule) - 1) >> bitmapPageShift);
    }
    if (at == firstAt) break;
    page = min<u64>(end, base + ((<u64>((at - firstAt) >> 3)) << shift));
  }
  return <f64>(<i64>(page - <u64>first));
}
