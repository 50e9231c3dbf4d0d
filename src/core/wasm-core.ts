/**
 * The WebAssembly module of the core: compiled once a thread, instantiated once an arena and thread.
 *
 * What the functions do is documented where they are written, in wasm/*.as.ts. Page numbers and sizes are f64 at this
 * edge, 64-bit addresses of the interval index bigint; 32-bit results that are counts or frames are read with `>>> 0`
 * where they could exceed 2^31.
 */
import { wasmBase64 } from './wasm/module.generated.js';

/** Exports of the module, by source file. */
export interface CoreExports {
  // arena.as.ts
  arena_attach(scratchOffset: number): number;
  arena_forsake(scratchOffset: number): number;
  lock_acquire(offset: number): void;
  lock_try_acquire(offset: number): number;
  lock_release(offset: number): void;
  // frames.as.ts
  arena_init(kernelFirst: number, kernelFrames: number, storageFrames: number, kernelBasePfn: number): void;
  kernel_alloc(order: number): number;
  kernel_free(frame: number, order: number): number;
  storage_alloc(order: number): number;
  storage_free(frame: number, order: number): number;
  // contents.as.ts
  frame_fill_stamp(frame: number, stamp: number): void;
  frame_equal(a: number, b: number): number;
  frame_is_zero(frame: number): number;
  frame_hash(frame: number): bigint;
  stamp_hash(stamp: number): bigint;
  // directory.as.ts
  directory_get(pfn: number): number;
  directory_resolve(pfn: number): number;
  directory_set(pfn: number, entry: number): number;
  directory_replace(pfn: number, expected: number, entry: number): number;
  directory_clear(pfn: number): number;
  directory_materialise(pfn: number): number;
  directory_next(pfn: number): number;
  directory_trim(): void;
  // walk.as.ts
  table_walk(
    rootAddress: number,
    concatenation: number,
    startLevel: number,
    granuleShift: number,
    inputPfn: number,
  ): number;
  desc_load(pfn: number, byteOffset: number): number;
  desc_cas(
    pfn: number,
    byteOffset: number,
    expectedLo: number,
    expectedHi: number,
    newLo: number,
    newHi: number,
  ): number;
  // pagetable.as.ts
  pt_create(stage: number, granuleShift: number, inputBits: number, outputBits: number, leafLevels: number): number;
  pt_destroy(handle: number): void;
  pt_map_step(
    handle: number,
    iovaPage: number,
    paPage: number,
    nPages: number,
    attrLo: number,
    attrHi: number,
    gather: number,
  ): number;
  pt_unmap_step(handle: number, iovaPage: number, nPages: number, gather: number): number;
  pt_free_gathered(handle: number, gather: number): void;
  pt_translate(handle: number, iovaPage: number): number;
  pt_next_leaf(handle: number, fromPage: number): number;
  pt_read_dirty(
    handle: number,
    iovaPage: number,
    nPages: number,
    bitmap: number,
    bitmapFirstPage: number,
    bitmapPageShift: number,
    noClear: number,
  ): number;
  // intervals.as.ts
  interval_create(): number;
  interval_destroy(handle: number): void;
  interval_size(handle: number): number;
  interval_insert(handle: number, start: bigint, last: bigint, value: number): number;
  interval_remove(handle: number, start: bigint): number;
  interval_seek(handle: number, address: bigint): number;
  interval_set_value(handle: number, start: bigint, value: number): number;
  // bitmap.as.ts
  bitmap_set(bitmap: number, first: number, count: number): void;
  bitmap_clear(bitmap: number, first: number, count: number): void;
  bitmap_next_set(bitmap: number, from: number, end: number): number;
  bitmap_count(bitmap: number, first: number, count: number): number;
  bitmap_or(target: number, source: number, count: number): void;
}

let compiled: WebAssembly.Module | undefined;

/** Instantiates the module over a memory. `kernelAllocFails` is asked (1 = fail) before each kernel allocation. */
export function instantiateCore(memory: WebAssembly.Memory, kernelAllocFails: () => number): CoreExports {
  compiled ??= new WebAssembly.Module(Buffer.from(wasmBase64, 'base64'));
  const instance = new WebAssembly.Instance(compiled, { env: { memory }, host: { kernelAllocFails } });
  return instance.exports as unknown as CoreExports;
}
