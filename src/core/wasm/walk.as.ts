/**
 * The hardware's side of the tables: walks and descriptor accesses by physical address.
 *
 * A table may lie in the kernel window or in any page the physical directory has a frame for. A page known only by its
 * stamp, or not at all, ends the walk with the page's number: the caller materialises it, or reports an external abort.
 * Every descriptor is read by one 64-bit atomic load. Permissions, access flag and dirty state are the SMMU's business.
 */
import {
  FRAME_BYTES,
  FRAME_SHIFT,
  SCRATCH_DESC_HI,
  SCRATCH_DESC_LO,
  SCRATCH_DESC_OFFSET,
  SCRATCH_DESC_PFN,
  SCRATCH_LEVEL,
  SCRATCH_OUT_PFN,
  SCRATCH_TABLE_ATTRS,
  WALK_ABSENT,
  WALK_BEYOND,
  WALK_INVALID,
  WALK_LEAF,
  WALK_STAMP,
} from './layout';
import { frameOffset, kernelOffset, scratch } from './arena.as';
import { entryOf, resolvePage } from './directory.as';
import { LAST_LEVEL, descAddress, isLeaf, isTable } from './descriptor.as';

const PAGE_OFFSET: u64 = FRAME_BYTES - 1;
const TABLE_ATTRS_SHIFT: u64 = 59;

// @ts-ignore: decorator
@inline
function putDescriptor(desc: u64): void {
  store<u64>(scratch, desc, SCRATCH_DESC_LO);
}

// @ts-ignore: decorator
@inline
function putAddress(address: u64): void {
  store<f64>(scratch, <f64>(<i64>(address >> FRAME_SHIFT)), SCRATCH_DESC_PFN);
  store<u32>(scratch, <u32>(address & PAGE_OFFSET), SCRATCH_DESC_OFFSET);
}

/**
 * Walks tables from `rootAddress` (bytes; 2^concatenation tables side by side at the start level) for the 4 KiB page
 * `inputPfn` of the input address. Answers a WALK_* code; details in the scratch slot.
 */
export function table_walk(
  rootAddress: f64,
  concatenation: i32,
  startLevel: i32,
  granuleShift: i32,
  inputPfn: f64,
): i32 {
  const granule = <u64>granuleShift;
  const bits = granule - 3;
  const input = (<u64>(<i64>inputPfn)) << FRAME_SHIFT;
  let shift = granule + bits * <u64>(LAST_LEVEL - startLevel);
  let indexBits = bits + <u64>concatenation;
  let table = <u64>(<i64>rootAddress);
  let level = startLevel;
  let attrs: u64 = 0;
  if (input >> (shift + indexBits) != 0) return WALK_BEYOND;
  while (true) {
    const address = table + (((input >> shift) & (((<u64>1) << indexBits) - 1)) << 3);
    let at = kernelOffset(address);
    if (at == 0) {
      const entry = entryOf(address >> FRAME_SHIFT);
      if (entry <= 0) {
        store<i32>(scratch, level, SCRATCH_LEVEL);
        putAddress(address);
        return entry == 0 ? WALK_ABSENT : WALK_STAMP;
      }
      at = frameOffset(<u32>entry) + <usize>(address & PAGE_OFFSET);
    }
    const desc = atomic.load<u64>(at);
    if (isTable(desc, level)) {
      attrs |= desc >> TABLE_ATTRS_SHIFT;
      table = descAddress(desc, granule);
      level++;
      shift -= bits;
      indexBits = bits;
      continue;
    }
    store<i32>(scratch, level, SCRATCH_LEVEL);
    store<u32>(scratch, <u32>attrs, SCRATCH_TABLE_ATTRS);
    putDescriptor(desc);
    putAddress(address);
    if (!isLeaf(desc, level)) return WALK_INVALID;
    const within = ((<u64>1) << shift) - 1;
    const output = (descAddress(desc, granule) & ~within) | (input & within);
    store<f64>(scratch, <f64>(<i64>(output >> FRAME_SHIFT)), SCRATCH_OUT_PFN);
    return WALK_LEAF;
  }
}

/** Offset of a descriptor in the arena, or 0 with nothing there (`resolvePage` says why). */
// @ts-ignore: decorator
@inline
function descriptorOffset(pfn: f64, byteOffset: u32): usize {
  const frame = resolvePage(<u64>(<i64>pfn));
  return frame > 0 ? frameOffset(<u32>frame) + <usize>byteOffset : 0;
}

// @ts-ignore: decorator
@inline
function whyNowhere(pfn: f64): i32 {
  return resolvePage(<u64>(<i64>pfn)) == 0 ? WALK_ABSENT : WALK_STAMP;
}

/** Loads 8 bytes of physical memory into DESC_LO and DESC_HI: WALK_LEAF when done, WALK_ABSENT or WALK_STAMP. */
export function desc_load(pfn: f64, byteOffset: u32): i32 {
  const at = descriptorOffset(pfn, byteOffset);
  if (at == 0) return whyNowhere(pfn);
  putDescriptor(atomic.load<u64>(at));
  return WALK_LEAF;
}

/**
 * Replaces 8 bytes of physical memory if they still are what was expected: WALK_LEAF when they were, WALK_INVALID when
 * not (what is there now in DESC_LO and DESC_HI), WALK_ABSENT or WALK_STAMP.
 */
export function desc_cas(
  pfn: f64,
  byteOffset: u32,
  expectedLo: u32,
  expectedHi: u32,
  newLo: u32,
  newHi: u32,
): i32 {
  const at = descriptorOffset(pfn, byteOffset);
  if (at == 0) return whyNowhere(pfn);
  const expected = (<u64>expectedLo) | ((<u64>expectedHi) << 32);
  const found = atomic.cmpxchg<u64>(at, expected, (<u64>newLo) | ((<u64>newHi) << 32));
  putDescriptor(found);
  return found == expected ? WALK_LEAF : WALK_INVALID;
}
