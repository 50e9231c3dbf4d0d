/** Everything the WebAssembly module exports; src/core/wasm-core.ts has the types of it. */
export { arena_attach, arena_forsake, lock_acquire, lock_release, lock_try_acquire } from './arena.as';
export { arena_init, kernel_alloc, kernel_free, storage_alloc, storage_free } from './frames.as';
export { frame_equal, frame_fill_stamp, frame_hash, frame_is_zero, stamp_hash } from './contents.as';
export {
  directory_clear,
  directory_get,
  directory_materialise,
  directory_next,
  directory_replace,
  directory_resolve,
  directory_set,
  directory_trim,
} from './directory.as';
export { desc_cas, desc_load, table_walk } from './walk.as';
export {
  pt_create,
  pt_destroy,
  pt_free_gathered,
  pt_map_step,
  pt_next_leaf,
  pt_read_dirty,
  pt_translate,
  pt_unmap_step,
} from './pagetable.as';
export {
  interval_create,
  interval_destroy,
  interval_insert,
  interval_remove,
  interval_seek,
  interval_set_value,
  interval_size,
} from './intervals.as';
export { bitmap_clear, bitmap_count, bitmap_next_set, bitmap_or, bitmap_set } from './bitmap.as';
