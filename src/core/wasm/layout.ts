/**
 * Byte layout of an arena, and the codes its functions answer with: the one declaration, compiled twice.
 *
 * This file is both TypeScript (imported by the facade in src/core) and AssemblyScript (imported by the *.as.ts
 * beside it), so it may hold nothing but integer constants below 2^31.
 *
 *     header         1 frame    magic, version, sizes, the two allocator regions
 *     directory root 2 frames   first level of the physical directory
 *     scratch       16 frames   one slot for each thread: results that do not fit a return value
 *     frame info                16 bytes for each frame of the arena: allocator links, never inside the frames, because
 *                               frames are memory a stray DMA may reach
 *     kernel window             host RAM the kernel allocates from; physical pages kernelBasePfn...
 *     storage                   everything else: materialised pages, directory nodes, interval nodes, bitmaps, handles
 */

/** Frames are 4 KiB whatever the translation granule: log2 of their size. */
export const FRAME_SHIFT = 12;
export const FRAME_BYTES = 4096;

/** "IOVA", and the version of this layout. */
export const ARENA_MAGIC = 0x41564f49;
export const ARENA_VERSION = 1;

/** Header words (byte offsets; 32 bits unless said otherwise). KERNEL_BASE_PFN is a u64. */
export const HEADER_MAGIC = 0;
export const HEADER_VERSION = 4;
export const HEADER_TOTAL_FRAMES = 8;
export const HEADER_DIRECTORY_NODES = 12;
export const HEADER_KERNEL_BASE_PFN = 16;
/** Not 0 once a thread died while it held the lock of a region. */
export const HEADER_FORSAKEN = 24;
export const HEADER_KERNEL_REGION = 64;
export const HEADER_STORAGE_REGION = 192;

/** Words of an allocator region, from its start. FREE_HEADS has one word for each order 0..MAX_ORDER. */
export const REGION_LOCK = 0;
export const REGION_FIRST = 4;
export const REGION_COUNT = 8;
export const REGION_IN_USE = 12;
export const REGION_FREE_HEADS = 16;

/** Largest allocation: 2^12 frames, 16 MiB. */
export const MAX_ORDER = 12;

/** Physical directory: 2048 words of 32 bits. PFNs have 40 bits: 11 here, 10 and 10 in nodes, 9 in leaf nodes. */
export const DIRECTORY_ROOT = 0x1000;
export const DIRECTORY_PFN_BITS = 40;

/**
 * Scratch slots. The first word of a slot is 1 while a thread owns it; the second is only ever exchanged, as a
 * barrier.
 */
export const SCRATCH_FIRST = 0x3000;
export const SCRATCH_BYTES = 256;
export const SCRATCH_SLOTS = 256;

/** Info of frame n at FRAME_INFO + 16 n. */
export const FRAME_INFO = 0x13000;
export const FRAME_INFO_SHIFT = 4;
/** The info word of a frame that says what it is, and its bit for "heads an allocated block". */
export const INFO_STATE = 8;
export const STATE_USED = 0x40;

/** Results of table_walk, descriptor access and pt_next_leaf in the scratch slot. *_PFN and *_PAGE are f64. */
export const SCRATCH_LEVEL = 8;
export const SCRATCH_DESC_LO = 12;
export const SCRATCH_DESC_HI = 16;
export const SCRATCH_DESC_OFFSET = 20;
export const SCRATCH_TABLE_ATTRS = 24;
export const SCRATCH_DESC_PFN = 32;
export const SCRATCH_OUT_PFN = 40;
/** Results of pt_map_step, pt_unmap_step and pt_next_leaf. *_PAGES are f64. */
export const SCRATCH_HOLE_PAGES = 48;
export const SCRATCH_LEAF_PAGES = 56;
export const SCRATCH_TABLE_CLEARED = 64;
export const SCRATCH_GATHER = 68;
/** Results of interval_seek (u64, u64, u32); the path of a B+tree descent (8 pairs of 32-bit words); spare nodes. */
export const SCRATCH_INTERVAL_START = 80;
export const SCRATCH_INTERVAL_LAST = 88;
export const SCRATCH_INTERVAL_VALUE = 96;
export const SCRATCH_PATH = 128;
export const SCRATCH_SPARE_NODES = 192;

/** Words of a page table's handle, a storage frame. LEAF_LEVELS has bit n set when level n may hold leaves. */
export const PT_STAGE = 0;
export const PT_GRANULE_SHIFT = 4;
export const PT_INPUT_BITS = 8;
export const PT_OUTPUT_BITS = 12;
export const PT_START_LEVEL = 16;
export const PT_LEAF_LEVELS = 20;
export const PT_ROOT_FRAME = 24;
export const PT_ROOT_ORDER = 28;
export const PT_ROOT_ENTRIES = 32;

/** What a walk, or an access to one descriptor, ended in. */
export const WALK_LEAF = 0;
export const WALK_INVALID = 1;
export const WALK_ABSENT = 2;
export const WALK_STAMP = 3;
export const WALK_BEYOND = 4;

/** Linux error numbers used by the core (checked against src/uapi by a test). */
export const ENOENT = 2;
export const ENOMEM = 12;
export const EEXIST = 17;
export const EINVAL = 22;
export const ERANGE = 34;
