/**
 * VMSAv8-64 descriptors (Arm ARM D8.3), as far as a table walk needs them.
 *
 * Output and table addresses lie in bits 47..granule; with the 64 KiB granule bits 15..12 hold address bits 51..48. The
 * 52-bit format of the small granules (LPA2) is not used, as in Linux's io-pgtable-arm.
 */

export const DESC_VALID: u64 = 1;
export const DESC_TYPE: u64 = 3;
export const DESC_BLOCK: u64 = 1;
export const DESC_TABLE_OR_PAGE: u64 = 3;
/** Attribute bits a leaf may carry: 11..2 and 63..50. */
export const DESC_LEAF_ATTRS: u64 = 0xfffc000000000ffc;
/** Dirty state modifier; AP[2] of stage 1 (1 = read-only or clean); S2AP[1] of stage 2 (1 = writable or dirty). */
export const DESC_DBM: u64 = 1 << 51;
export const DESC_BIT7: u64 = 1 << 7;

const ADDRESS_47_12: u64 = 0x0000fffffffff000;
const ADDRESS_51_48: u64 = 0xf000;
const HIGH_ADDRESS_SHIFT: u64 = 36;
const GRANULE_64K: u64 = 16;
export const LAST_LEVEL: i32 = 3;

/** Address held by a descriptor. */
// @ts-ignore: decorator
@inline
export function descAddress(desc: u64, granuleShift: u64): u64 {
  const low = desc & ADDRESS_47_12 & ~(((<u64>1) << granuleShift) - 1);
  return granuleShift == GRANULE_64K ? low | ((desc & ADDRESS_51_48) << HIGH_ADDRESS_SHIFT) : low;
}

/** The descriptor bits that hold an address. */
// @ts-ignore: decorator
@inline
export function descFromAddress(address: u64, granuleShift: u64): u64 {
  const low = address & ADDRESS_47_12;
  return granuleShift == GRANULE_64K ? low | ((address >> HIGH_ADDRESS_SHIFT) & ADDRESS_51_48) : low;
}

/** True when the descriptor maps something at this level. */
// @ts-ignore: decorator
@inline
export function isLeaf(desc: u64, level: i32): bool {
  return (desc & DESC_TYPE) == (level == LAST_LEVEL ? DESC_TABLE_OR_PAGE : DESC_BLOCK);
}

/** True when the descriptor points to a table of the next level. */
// @ts-ignore: decorator
@inline
export function isTable(desc: u64, level: i32): bool {
  return level != LAST_LEVEL && (desc & DESC_TYPE) == DESC_TABLE_OR_PAGE;
}
