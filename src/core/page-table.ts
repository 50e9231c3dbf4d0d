/**
 * A VMSAv8-64 translation table as the kernel builds it: bit-exact descriptors in the kernel window of an arena.
 *
 * Semantics are those of Linux's io-pgtable-arm (domain.md A1.45, A4.4 to A4.6, A6.7, A6.8). Page numbers count
 * granules, not 4 KiB pages. Every long operation is a *step*: callers loop and may yield in between. Threads may
 * work on disjoint ranges of one table at the same time.
 *
 * Tables that leave the tree (unmap of all they span, or an empty one in the way of a block) go on a {@link Gather}:
 * first invalidate, then `freeGathered`. One gather serves one operation, as a struct iommu_iotlb_gather does.
 */
import { ERRNO } from '../uapi/errno.js';
import type { Arena } from './arena.js';
import {
  FRAME_BYTES,
  PT_GRANULE_SHIFT,
  PT_INPUT_BITS,
  PT_OUTPUT_BITS,
  PT_ROOT_ENTRIES,
  PT_ROOT_FRAME,
  PT_STAGE,
  PT_START_LEVEL,
  SCRATCH_DESC_HI,
  SCRATCH_DESC_LO,
  SCRATCH_GATHER,
  SCRATCH_HOLE_PAGES,
  SCRATCH_LEAF_PAGES,
  SCRATCH_LEVEL,
  SCRATCH_OUT_PFN,
  SCRATCH_TABLE_CLEARED,
} from './wasm/layout.js';

/** Shape of a table. */
export interface PageTableOptions {
  readonly stage: 1 | 2;
  /** 12, 14 or 16: 4, 16 or 64 KiB. */
  readonly granuleShift: number;
  /** Width of input addresses: IAS, at most 48 (52 with the 64 KiB granule). */
  readonly inputBits: number;
  /** Width of output addresses: OAS, at most 48 (52 with the 64 KiB granule). */
  readonly outputBits: number;
  /** Leaf sizes in bytes that may be used; the granule must be among them. */
  readonly pageSizes: readonly number[];
}

/** Tables taken out by one operation and not freed yet: the frame on top of the list, 0 when empty. */
export interface Gather {
  head: number;
}

/** One leaf, in granule pages. */
export interface Leaf {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly paPage: number;
  readonly level: number;
  readonly descLo: number;
  readonly descHi: number;
}

const LAST_LEVEL = 3;
const GRANULE_SHIFTS: readonly number[] = [12, 14, 16];
/** First level that may hold blocks, by granule (Arm ARM D8.3.1 without LPA2). */
const FIRST_BLOCK_LEVEL: Readonly<Record<number, number>> = { 12: 1, 14: 2, 16: 2 };

/** Leaf sizes the architecture has for a granule, ascending, in bytes. */
export function pageSizesOf(granuleShift: number): number[] {
  const sizes: number[] = [];
  for (let level = LAST_LEVEL; level >= (FIRST_BLOCK_LEVEL[granuleShift] ?? LAST_LEVEL); level--) {
    sizes.push(2 ** (granuleShift + (LAST_LEVEL - level) * (granuleShift - 3)));
  }
  return sizes;
}

/** Bit n set: level n may hold leaves. 0 when the sizes are not ones the granule has, or lack the granule itself. */
function leafLevels({ granuleShift, pageSizes }: PageTableOptions): number {
  const known = pageSizesOf(granuleShift);
  const indices = pageSizes.map((size) => known.indexOf(size));
  if (!indices.includes(0) || indices.includes(-1)) return 0;
  return indices.reduce((mask, index) => mask | (1 << (LAST_LEVEL - index)), 0);
}

function isValid(options: PageTableOptions): boolean {
  const { granuleShift, inputBits, outputBits } = options;
  if (!GRANULE_SHIFTS.includes(granuleShift)) return false;
  const widest = granuleShift === 16 ? 52 : 48;
  const isWidth = (value: number, least: number): boolean =>
    Number.isInteger(value) && value >= least && value <= widest;
  return isWidth(inputBits, granuleShift + 1) && isWidth(outputBits, 32);
}

/** A translation table of one thread's arena; `handle` opens the same one in another thread. */
export class PageTable {
  readonly arena: Arena;
  readonly handle: number;
  readonly stage: number;
  readonly granuleShift: number;
  readonly inputBits: number;
  readonly outputBits: number;
  /** Level of the root. Stage 2 uses concatenated tables where Arm requires it, as Linux does. */
  readonly startLevel: number;
  /** log2 of how many tables the root concatenates. */
  readonly concatenation: number;
  /** Physical 4 KiB page of the root. */
  readonly rootPfn: number;

  protected constructor(arena: Arena, handle: number) {
    const word = (offset: number): number => arena.word(arena.frameOffset(handle) + offset);
    this.arena = arena;
    this.handle = handle;
    this.stage = word(PT_STAGE);
    this.granuleShift = word(PT_GRANULE_SHIFT);
    this.inputBits = word(PT_INPUT_BITS);
    this.outputBits = word(PT_OUTPUT_BITS);
    this.startLevel = word(PT_START_LEVEL);
    this.concatenation = Math.max(0, Math.log2(word(PT_ROOT_ENTRIES)) - (this.granuleShift - 3));
    this.rootPfn = arena.frameToPfn(word(PT_ROOT_FRAME));
  }

  /**
   * A new empty table, or a negative errno: EINVAL for a shape the architecture or Linux does not have, ENOMEM.
   */
  static create(arena: Arena, options: PageTableOptions): PageTable | number {
    const levels = leafLevels(options);
    if (!isValid(options) || levels === 0) return -ERRNO.EINVAL;
    const { stage, granuleShift, inputBits, outputBits } = options;
    const handle = arena.core.pt_create(stage, granuleShift, inputBits, outputBits, levels);
    return handle < 0 ? handle : new PageTable(arena, handle);
  }

  /** The table another thread created. */
  static open(arena: Arena, handle: number): PageTable {
    return new PageTable(arena, handle);
  }

  /** Frees every table at once. Nothing may walk or use it any more. */
  destroy(): void {
    this.arena.core.pt_destroy(this.handle);
  }

  /** Physical byte address of the root, for TTB0 or S2TTB. */
  get rootAddress(): number {
    return this.rootPfn * FRAME_BYTES;
  }

  /**
   * Maps the beginning of a range, as many of the largest allowed leaves as lie side by side in one table. `attrLo`
   * and `attrHi` are the attribute bits of the descriptor (11..2 and 63..50), type bits excluded. Answers the pages
   * mapped; 0 when an empty table was in the way of a block and has been taken out (invalidate walk caches, free the
   * gather, call again); -EEXIST, -ENOMEM, -ERANGE (input or output address too wide), -EINVAL (no pages, or foreign
   * bits in attr).
   */
  mapStep(iovaPage: number, paPage: number, nPages: number, attrLo: number, attrHi: number, gather: Gather): number {
    const core = this.arena.core;
    const result = core.pt_map_step(this.handle, iovaPage, paPage, nPages, attrLo, attrHi, gather.head);
    gather.head = this.#scratchWord(SCRATCH_GATHER);
    return result;
  }

  /**
   * Unmaps the beginning of a range: leaves side by side in one table, or one whole table when the range owns every
   * input address of it and its span is an allowed leaf size. Answers the pages covered; 0 for a hole ({@link
   * holePages} says how much of the range it takes); -EINVAL when the range has only a part of a block; -ERANGE.
   */
  unmapStep(iovaPage: number, nPages: number, gather: Gather): number {
    const result = this.arena.core.pt_unmap_step(this.handle, iovaPage, nPages, gather.head);
    gather.head = this.#scratchWord(SCRATCH_GATHER);
    return result;
  }

  /** After unmapStep answered 0: pages of the range up to the end of the unmapped entry it begins in. */
  get holePages(): number {
    return this.arena.float(this.arena.scratchOffset + SCRATCH_HOLE_PAGES);
  }

  /** After unmapStep: pages that really were mapped; less than covered when a sparse table went as a whole. */
  get unmappedPages(): number {
    return this.arena.float(this.arena.scratchOffset + SCRATCH_LEAF_PAGES);
  }

  /** After mapStep or unmapStep: a table entry was cleared, so walk caches must be invalidated too. */
  get tableCleared(): boolean {
    return this.#scratchWord(SCRATCH_TABLE_CLEARED) === 1;
  }

  /** Frees the tables on a gather list. Only after the invalidation that makes sure nobody walks them any more. */
  freeGathered(gather: Gather): void {
    this.arena.core.pt_free_gathered(this.handle, gather.head);
    gather.head = 0;
  }

  /** Page a page is mapped to, or -1. */
  translate(iovaPage: number): number {
    return this.arena.core.pt_translate(this.handle, iovaPage);
  }

  /** The first leaf that covers or follows a page. */
  nextLeaf(fromPage: number): Leaf | undefined {
    const firstPage = this.arena.core.pt_next_leaf(this.handle, fromPage);
    if (firstPage < 0) return undefined;
    return {
      firstPage,
      pageCount: this.arena.float(this.arena.scratchOffset + SCRATCH_LEAF_PAGES),
      paPage: this.arena.float(this.arena.scratchOffset + SCRATCH_OUT_PFN),
      level: this.#scratchWord(SCRATCH_LEVEL),
      descLo: this.#scratchWord(SCRATCH_DESC_LO) >>> 0,
      descHi: this.#scratchWord(SCRATCH_DESC_HI) >>> 0,
    };
  }

  /** Every leaf from a page on, ascending. */
  *leaves(fromPage = 0): Generator<Leaf> {
    let leaf = this.nextLeaf(fromPage);
    while (leaf !== undefined) {
      yield leaf;
      leaf = this.nextLeaf(leaf.firstPage + leaf.pageCount);
    }
  }

  /**
   * Reads dirty state up to the first hole and answers the pages walked, or -EINVAL, -ERANGE. A dirty leaf (DBM, and
   * stage 1: AP[2] = 0, stage 2: S2AP[1] = 1) sets the bits of all its pages within the range in the bitmap at arena
   * offset `bitmapOffset` (8-byte aligned), whose bit 0 stands for `bitmapFirstPage` and each bit for
   * 2^bitmapPageShift bytes. Unless `noClear`, dirty leaves become writable-clean, atomically against hardware that
   * sets them.
   */
  readDirty(
    iovaPage: number,
    nPages: number,
    bitmapOffset: number,
    bitmapFirstPage: number,
    bitmapPageShift: number,
    noClear: boolean,
  ): number {
    const core = this.arena.core;
    const keep = noClear ? 1 : 0;
    return core.pt_read_dirty(this.handle, iovaPage, nPages, bitmapOffset, bitmapFirstPage, bitmapPageShift, keep);
  }

  /** Makes dirty leaves writable-clean up to the first hole: pages walked, -EINVAL or -ERANGE. */
  setClean(iovaPage: number, nPages: number): number {
    return this.arena.core.pt_read_dirty(this.handle, iovaPage, nPages, 0, 0, this.granuleShift, 0);
  }

  #scratchWord(offset: number): number {
    return this.arena.word(this.arena.scratchOffset + offset);
  }
}
