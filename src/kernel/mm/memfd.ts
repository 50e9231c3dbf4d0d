/**
 * memfd files: memory with a descriptor.
 *
 * Pages exist as far as ftruncate said; they live until the file is closed and no mapping shows them. Pinning through the
 * file (memfd_pin_folios) needs no address space.
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import { sharedCount } from '../../runtime/watch.js';
import { EFAULT, EINVAL, ENOMEM, ENXIO } from '../../uapi/errno.js';
import type { Contiguity } from '../../uapi/syscall.js';
import { PIN_PAGE_NS, PIN_RUN_NS } from '../costs.js';
import { OpenFile } from '../files.js';
import { PAGE_BYTES, type FileMapping, type PinnedRun } from './mm.js';
import type { PageAllocator, PageExtent } from './page-allocator.js';

/** An anonymous memory file. */
export class MemfdFile extends OpenFile {
  readonly #runtime: NodeRuntime;
  readonly #pages: PageAllocator;
  readonly #contiguity: Contiguity;
  #extents: PageExtent[] = [];
  #sizeBytes = 0n;
  /** The descriptor and each mapping. */
  #users = 1;

  constructor(runtime: NodeRuntime, pages: PageAllocator, contiguity: Contiguity = 'pages') {
    super();
    this.#contiguity = contiguity;
    this.#runtime = runtime;
    this.#pages = pages;
  }

  get sizeBytes(): bigint {
    return this.#sizeBytes;
  }

  /** Grows the file with zeroed pages; shrinking is refused (EINVAL). */
  override ftruncate(length: bigint): number {
    if (length < this.#sizeBytes) return -EINVAL;
    const pages = Math.ceil(Number(length) / PAGE_BYTES) - this.#pageCount();
    if (pages > 0) {
      const added = this.#pages.alloc(pages, this.#contiguity);
      if (added === undefined) return -ENOMEM;
      this.#extents.push(...added);
    }
    this.#sizeBytes = length;
    return 0;
  }

  override *mmap(offset: bigint, length: bigint): Task<FileMapping | number> {
    return this.map(offset, length);
  }

  /** Pages of the file, which a mapping keeps: -ENXIO beyond its end. */
  map(offset: bigint, length: bigint): FileMapping | number {
    const extents = this.#slice(Number(offset) / PAGE_BYTES, Math.ceil(Number(length) / PAGE_BYTES));
    if (extents === undefined) return -ENXIO;
    sharedCount(this, 'users', this.#users, this.#users + 1);
    this.#users++;
    return { extents, unmapped: () => this.#put() };
  }

  /** Pins pages of the file: runs, or -errno (EINVAL beyond its end). */
  *memfd_pin_folios(firstPage: number, pages: number): Task<PinnedRun[] | number> {
    yield 'mm:pin';
    if (this.#runtime.faults.fires('mm.pin')) return -EFAULT;
    const runs = this.#slice(firstPage, pages);
    if (runs === undefined) return -EINVAL;
    for (const run of runs) this.#pages.pin(run);
    yield runs.length * PIN_RUN_NS + pages * PIN_PAGE_NS;
    return runs;
  }

  unpin_folios(runs: readonly PinnedRun[]): void {
    for (const run of runs) this.#pages.unpin(run);
  }

  override *release(): Task<void> {
    this.#put();
  }

  #put(): void {
    sharedCount(this, 'users', this.#users, this.#users - 1);
    if (--this.#users > 0) return;
    this.#pages.release(this.#extents);
    this.#extents = [];
  }

  #pageCount(): number {
    return this.#extents.reduce((sum, extent) => sum + extent.pages, 0);
  }

  #slice(firstPage: number, pages: number): PageExtent[] | undefined {
    if (!Number.isInteger(firstPage) || firstPage + pages > this.#pageCount()) return undefined;
    const out: PageExtent[] = [];
    let start = 0;
    for (const extent of this.#extents) {
      const from = Math.max(firstPage, start);
      const end = Math.min(firstPage + pages, start + extent.pages);
      if (from < end) out.push({ pfn: extent.pfn + from - start, pages: end - from });
      start += extent.pages;
    }
    return out;
  }
}
