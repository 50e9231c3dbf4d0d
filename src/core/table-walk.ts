/**
 * Translation table walks as hardware makes them: by physical address, through the kernel window or the physical
 * directory.
 *
 * A walker reads descriptors with single 64-bit atomic loads and interprets only what leads on: type, next table
 * address, level. Permissions, access flag and dirty state are the SMMU's business, which updates descriptors by
 * `cas` (HTTU). Physical pages are 4 KiB here whatever the granule. Source: Arm ARM D8.2 and D8.3, domain.md A4.4 to
 * A4.6.
 */
import type { Arena } from './arena.js';
import {
  SCRATCH_DESC_HI,
  SCRATCH_DESC_LO,
  SCRATCH_DESC_OFFSET,
  SCRATCH_DESC_PFN,
  SCRATCH_LEVEL,
  SCRATCH_OUT_PFN,
  SCRATCH_TABLE_ATTRS,
} from './wasm/layout.js';

/**
 * What a walk ended in. LEAF: a block or page. INVALID: a descriptor that is not valid. ABSENT: the table's page does
 * not exist. STAMP: the page exists but is not materialised. BEYOND: the input address is wider than the tables. For
 * `load` and `cas`, LEAF says done; for `cas`, INVALID says the descriptor had changed.
 */
export { WALK_ABSENT, WALK_BEYOND, WALK_INVALID, WALK_LEAF, WALK_STAMP } from './wasm/layout.js';

/** A walker of one thread. Its result properties hold until the next call on the same arena object. */
export class TableWalker {
  readonly arena: Arena;

  constructor(arena: Arena) {
    this.arena = arena;
  }

  /**
   * Walks for 4 KiB page `inputPfn` of the input address, from 2^concatenation tables at physical byte address
   * `rootAddress` and `startLevel`. Answers a WALK_* code. WALK_BEYOND means wider than full tables: when TnSZ makes
   * the root smaller than that, checking the input address against it is up to the caller.
   */
  walk(rootAddress: number, concatenation: number, startLevel: number, granuleShift: number, inputPfn: number): number {
    return this.arena.core.table_walk(rootAddress, concatenation, startLevel, granuleShift, inputPfn);
  }

  /** Loads the descriptor at a physical page and byte offset into {@link descLo} and {@link descHi}: a WALK_* code. */
  load(pfn: number, byteOffset: number): number {
    return this.arena.core.desc_load(pfn, byteOffset);
  }

  /**
   * Replaces a descriptor if it still is what was expected: WALK_LEAF when it was, WALK_INVALID when not (what was
   * found is in {@link descLo} and {@link descHi}), WALK_ABSENT or WALK_STAMP.
   */
  cas(pfn: number, byteOffset: number, expectedLo: number, expectedHi: number, newLo: number, newHi: number): number {
    return this.arena.core.desc_cas(pfn, byteOffset, expectedLo, expectedHi, newLo, newHi);
  }

  /** Level the walk ended at; not set by WALK_BEYOND. */
  get level(): number {
    return this.#word(SCRATCH_LEVEL);
  }

  /** Bits 31..0 of the last descriptor, after WALK_LEAF and WALK_INVALID; unsigned. */
  get descLo(): number {
    return this.#word(SCRATCH_DESC_LO) >>> 0;
  }

  /** Bits 63..32 of the last descriptor; unsigned. */
  get descHi(): number {
    return this.#word(SCRATCH_DESC_HI) >>> 0;
  }

  /** Physical page of the last descriptor, also after WALK_ABSENT and WALK_STAMP. */
  get descPfn(): number {
    return this.arena.float(this.arena.scratchOffset + SCRATCH_DESC_PFN);
  }

  /** Byte offset of the last descriptor in that page. */
  get descOffset(): number {
    return this.#word(SCRATCH_DESC_OFFSET);
  }

  /**
   * Bits 63..59 of all table descriptors passed, ored: PXNTable bit 0, UXNTable or XNTable bit 1, APTable bits 3..2,
   * NSTable bit 4. After WALK_LEAF and WALK_INVALID.
   */
  get tableAttrs(): number {
    return this.#word(SCRATCH_TABLE_ATTRS);
  }

  /** After WALK_LEAF: the 4 KiB page the input page is mapped to. */
  get outPfn(): number {
    return this.arena.float(this.arena.scratchOffset + SCRATCH_OUT_PFN);
  }

  #word(offset: number): number {
    return this.arena.word(this.arena.scratchOffset + offset);
  }
}
