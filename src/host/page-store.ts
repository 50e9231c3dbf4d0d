/** Physical memory of a kernel-only machine: pages that somebody wrote bytes to; the rest is zero. */
import type { PageMemory } from '../kernel/mm/page-allocator.js';
import { invariant } from '../runtime/task.js';
import { sharedRange } from '../runtime/watch.js';
import type { PageRun } from '../uapi/syscall.js';

const PAGE_BYTES = 4096;
const SHORT_BYTES = 128;

/** Pages that nobody uses now: making new ones would keep the collector busy, run after run. */
const spare: Uint8Array[] = [];

/** Pages by number. */
export class PageStore implements PageMemory {
  readonly #pages = new Map<number, Uint8Array>();

  read(pa: number, lengthBytes: number): Uint8Array {
    const pfn = Math.floor(pa / PAGE_BYTES);
    const from = pa % PAGE_BYTES;
    sharedRange(this, '', pa, lengthBytes, false);
    const page = this.#pages.get(pfn);
    if (from + lengthBytes <= PAGE_BYTES)
      return page === undefined ? new Uint8Array(lengthBytes) : page.slice(from, from + lengthBytes);
    const out = new Uint8Array(lengthBytes);
    for (let done = 0; done < lengthBytes;) {
      const length = Math.min(lengthBytes - done, PAGE_BYTES - ((pa + done) % PAGE_BYTES));
      out.set(this.read(pa + done, length), done);
      done += length;
    }
    return out;
  }

  write(pa: number, bytes: Uint8Array): boolean {
    sharedRange(this, '', pa, bytes.length, true);
    for (let done = 0; done < bytes.length;) {
      const from = (pa + done) % PAGE_BYTES;
      const length = Math.min(bytes.length - done, PAGE_BYTES - from);
      const page = this.#page(Math.floor((pa + done) / PAGE_BYTES));
      // Structs are short: a view of them would cost more than copying.
      if (length > SHORT_BYTES) page.set(bytes.subarray(done, done + length), from);
      else for (let i = 0; i < length; i++) page[from + i] = bytes[done + i] ?? 0;
      done += length;
    }
    return true;
  }

  pageContents(pfn: number, pages: number, firstPage = 0): PageRun[] {
    return Array.from({ length: pages }, (_, i) => ({
      firstPage: firstPage + i,
      pages: 1,
      bytes: this.read((pfn + i) * PAGE_BYTES, PAGE_BYTES),
    }));
  }

  setPageContents(): void {
    invariant(false, 'kernel-only machine: nobody stores whole pages');
  }

  clearPages(pfn: number, pages: number): void {
    sharedRange(this, '', pfn * PAGE_BYTES, pages * PAGE_BYTES, true);
    for (let i = 0; i < pages; i++) {
      const page = this.#pages.get(pfn + i);
      if (page === undefined) continue;
      this.#pages.delete(pfn + i);
      spare.push(page);
    }
  }

  /** Gives every page back; the store must not be used afterwards. */
  dispose(): void {
    spare.push(...this.#pages.values());
    this.#pages.clear();
  }

  #page(pfn: number): Uint8Array {
    let page = this.#pages.get(pfn);
    if (page === undefined) {
      page = spare.pop()?.fill(0) ?? new Uint8Array(PAGE_BYTES);
      this.#pages.set(pfn, page);
    }
    return page;
  }
}
