/**
 * Address spaces: what is mapped where, copying to and from user memory, pinning.
 *
 * A VMA is a range of user addresses with a protection and a backing: physical pages (its own or a file's) or a device's
 * BAR (PFNMAP). Pages are allocated when a mapping is made; their contents are stamps until somebody writes bytes, so this
 * costs nothing. A user address is never a physical one: every access goes through the VMA.
 *
 * Source: Linux mm/mmap.c, mm/gup.c (pin_user_pages_fast: EFAULT for holes, PFNMAP, and writes to read-only memory).
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { EEXIST, EFAULT, EINVAL, ENOMEM, EOVERFLOW } from '../../uapi/errno.js';
import { PROT_READ, PROT_WRITE, movedRun, type Contiguity, type PageRun } from '../../uapi/syscall.js';
import { PIN_PAGE_NS, PIN_RUN_NS } from '../costs.js';
import type { PageAllocator, PageExtent, PageMemory } from './page-allocator.js';

/** Physically contiguous pinned pages, in order of the addresses they were pinned for. */
export type PinnedRun = PageExtent;

/** Access to memory that is not RAM: a device's BAR. */
export interface DeviceWindow {
  read(offset: number, lengthBytes: number): Uint8Array | undefined;
  write(offset: number, bytes: Uint8Array): boolean;
}

/** What a mapping of a file shows: pages, or a device's registers. `unmapped` is called when the mapping goes. */
export type FileMapping = ({ readonly extents: readonly PageExtent[] } | { readonly window: DeviceWindow }) & {
  readonly unmapped?: () => void;
};

interface Vma {
  readonly start: bigint;
  readonly last: bigint;
  readonly prot: number;
  /** Its pages are compound (hugetlb). */
  readonly isHuge: boolean;
  /** Page i of the mapping by extents with their first page; empty for a device window. */
  readonly pieces: readonly { readonly firstPage: number; readonly extent: PageExtent }[];
  readonly window: DeviceWindow | undefined;
  readonly close: () => void;
}

export const PAGE_BYTES = 4096;
const PAGE = 4096n;
/** Where the kernel places mappings when the caller does not care. */
const MMAP_BASE = 0x2000_0000_0000n;
const TASK_SIZE = 1n << 47n;
const GAP = 0x10_0000n;

function placed(extents: readonly PageExtent[]): Vma['pieces'] {
  let firstPage = 0;
  return extents.map((extent) => {
    const piece = { firstPage, extent };
    firstPage += extent.pages;
    return piece;
  });
}

/** Index of the piece that has a page of the mapping, if any has. */
function pieceAt(pieces: Vma['pieces'], page: number): number {
  let low = 0;
  for (let high = pieces.length; high - low > 1;) {
    const middle = (low + high) >>> 1;
    if ((pieces[middle]?.firstPage ?? 0) <= page) low = middle;
    else high = middle;
  }
  return low;
}

/** One address space (`struct mm_struct`). */
export class MmStruct {
  readonly #runtime: NodeRuntime;
  /** Physical memory of the host. */
  readonly memory: PageMemory;
  readonly #pages: PageAllocator;
  /** Sorted by start, disjoint. */
  #vmaList: Vma[] = [];
  #nextAddress = MMAP_BASE;
  #isReleased = false;
  /** Pages pinned on behalf of this address space, limited or not. */
  pinnedVm = 0;
  /** Pages charged against RLIMIT_MEMLOCK of this address space. */
  lockedVm = 0;

  constructor(runtime: NodeRuntime, memory: PageMemory, pages: PageAllocator) {
    this.#runtime = runtime;
    this.memory = memory;
    this.#pages = pages;
  }

  get #vmas(): Vma[] {
    sharedRead(this, 'mappings');
    return this.#vmaList;
  }

  set #vmas(vmas: Vma[]) {
    sharedWrite(this, 'mappings');
    this.#vmaList = vmas;
  }

  /** Maps fresh zeroed memory; its address or -errno. */
  mmapAnonymous(addr: bigint, length: bigint, prot: number, contiguity: Contiguity): bigint | number {
    const at = this.#place(addr, length);
    if (typeof at === 'number') return at;
    const extents = this.#pages.alloc(Number((length + PAGE - 1n) / PAGE), contiguity);
    if (extents === undefined) return -ENOMEM;
    this.#insert({
      start: at,
      last: at + roundUp(length) - 1n,
      prot,
      isHuge: contiguity === 'huge-2m' || contiguity === 'huge-1g',
      pieces: placed(extents),
      window: undefined,
      close: () => this.#pages.release(extents),
    });
    return at;
  }

  /** Maps part of a file; its address or -errno. */
  mmapFile(addr: bigint, length: bigint, prot: number, mapping: FileMapping): bigint | number {
    const at = this.#place(addr, length);
    if (typeof at === 'number') return at;
    const isDevice = 'window' in mapping;
    this.#insert({
      start: at,
      last: at + roundUp(length) - 1n,
      prot,
      isHuge: false,
      pieces: isDevice ? [] : placed(mapping.extents),
      window: isDevice ? mapping.window : undefined,
      close: mapping.unmapped ?? (() => undefined),
    });
    return at;
  }

  /** Changes the protection of the mapping that begins at an address; EINVAL when none does. */
  mprotect(addr: bigint, prot: number): number {
    const index = this.#vmas.findIndex((vma) => vma.start === addr);
    const vma = this.#vmas[index];
    if (vma === undefined) return -EINVAL;
    sharedWrite(this, 'mappings');
    this.#vmas[index] = { ...vma, prot };
    return 0;
  }

  /** Removes whole mappings inside the range; EINVAL when it would cut one (nothing here splits mappings). */
  munmap(addr: bigint, length: bigint): number {
    if (addr % PAGE !== 0n || length === 0n) return -EINVAL;
    const last = addr + roundUp(length) - 1n;
    const hit = this.#vmas.filter((vma) => vma.start <= last && vma.last >= addr);
    if (hit.some((vma) => vma.start < addr || vma.last > last)) return -EINVAL;
    this.#vmas = this.#vmas.filter((vma) => !hit.includes(vma));
    for (const vma of hit) vma.close();
    return 0;
  }

  /** Its process has not exited (`mmget_not_zero`). */
  get isAlive(): boolean {
    sharedRead(this, 'mappings');
    return !this.#isReleased;
  }

  /** Everything goes: the process exits. */
  release(): void {
    sharedWrite(this, 'mappings');
    this.#isReleased = true;
    for (const vma of this.#vmas.splice(0)) vma.close();
  }

  copy_from_user(address: bigint, lengthBytes: number): Uint8Array | undefined {
    const whole = this.#reach(address, lengthBytes, PROT_READ);
    if (whole === undefined && lengthBytes > 0) return undefined;
    if (whole?.lengthBytes === lengthBytes) return whole.read();
    const out = new Uint8Array(lengthBytes);
    let done = 0;
    while (done < lengthBytes) {
      const piece = this.#reach(address + BigInt(done), lengthBytes - done, PROT_READ);
      const bytes = piece?.read();
      if (bytes === undefined) return undefined;
      out.set(bytes, done);
      done += bytes.length;
    }
    return out;
  }

  copy_to_user(address: bigint, bytes: Uint8Array): boolean {
    let done = 0;
    while (done < bytes.length) {
      const piece = this.#reach(address + BigInt(done), bytes.length - done, PROT_WRITE);
      if (piece === undefined) return false;
      const isWhole = piece.lengthBytes === bytes.length;
      if (!piece.write(isWhole ? bytes : bytes.subarray(done, done + piece.lengthBytes))) return false;
      done += piece.lengthBytes;
    }
    return true;
  }

  /** Contents of whole pages, page numbers relative to `address`; -errno. */
  loadPages(address: bigint, pages: number): PageRun[] | number {
    const runs: PageRun[] = [];
    const rc = this.#forEachExtent(address, pages, PROT_READ, (extent, firstPage) => {
      for (const run of this.memory.pageContents(extent.pfn, extent.pages, firstPage)) runs.push(run);
    });
    return rc < 0 ? rc : runs;
  }

  /** Replaces whole pages; page numbers relative to `address`. 0 or -errno. */
  storePages(address: bigint, runs: readonly PageRun[]): number {
    for (const run of runs) {
      const rc = this.#forEachExtent(
        address + BigInt(run.firstPage) * PAGE,
        run.pages,
        PROT_WRITE,
        (extent, firstPage) => {
          const stored: PageRun =
            'bytes' in run
              ? movedRun(run, -run.firstPage)
              : { firstPage: 0, pages: extent.pages, stamp: run.stamp + firstPage * run.step, step: run.step };
          this.memory.setPageContents(extent.pfn, [stored]);
        },
      );
      if (rc < 0) return rc;
    }
    return 0;
  }

  /**
   * Pins pages for DMA. EFAULT where nothing is mapped, for device memory, and for a write to read-only memory; then
   * nothing stays pinned.
   */
  *pin_user_pages(address: bigint, pages: number, write: boolean): Task<PinnedRun[] | number> {
    yield 'mm:pin';
    const runs: PinnedRun[] = [];
    const fault = this.#runtime.faults.fires('mm.pin');
    const rc = fault
      ? -EFAULT
      : this.#forEachExtent(address, pages, write ? PROT_WRITE : PROT_READ, (extent) => void runs.push(extent));
    if (rc < 0) return rc;
    const merged = mergeRuns(runs);
    for (const run of merged) this.#pages.pin(run);
    yield merged.length * PIN_RUN_NS + pages * PIN_PAGE_NS;
    return merged;
  }

  /** Frame number of the page an address is in, without pinning it (`get_user_pages_fast`); -errno as for pinning. */
  get_user_page(address: bigint, write: boolean): number {
    const page = address - (address % PAGE);
    if (page + PAGE >= 1n << 64n) return -EOVERFLOW;
    let pfn = -EFAULT;
    const rc = this.#forEachExtent(page, 1, write ? PROT_WRITE : PROT_READ, (extent) => void (pfn = extent.pfn));
    return rc < 0 ? rc : pfn;
  }

  /** Whether the page at an address is part of a huge one. */
  isHugePage(address: bigint): boolean {
    return this.#find(address)?.isHuge ?? false;
  }

  /** How often a page is pinned by anybody. */
  pinCount(pfn: number): number {
    return this.#pages.pinCount(pfn);
  }

  unpin_user_pages(runs: readonly PinnedRun[]): void {
    for (const run of runs) this.#pages.unpin(run);
  }

  #find(address: bigint): Vma | undefined {
    return this.#vmas.find((vma) => vma.start <= address && address <= vma.last);
  }

  #insert(vma: Vma): void {
    sharedWrite(this, 'mappings');
    this.#vmas.push(vma);
    this.#vmas.sort((a, b) => (a.start < b.start ? -1 : 1));
  }

  #place(addr: bigint, length: bigint): bigint | number {
    if (length <= 0n || addr % PAGE !== 0n) return -EINVAL;
    const size = roundUp(length);
    if (addr === 0n) {
      sharedWrite(this, 'next address');
      const align = size >= 1n << 30n ? 1n << 30n : size >= 1n << 21n ? 1n << 21n : PAGE;
      const at = ((this.#nextAddress + align - 1n) / align) * align;
      if (at + size > TASK_SIZE) return -ENOMEM;
      this.#nextAddress = at + size + GAP;
      return at;
    }
    if (addr + size > TASK_SIZE) return -ENOMEM;
    const isTaken = this.#vmas.some((vma) => vma.start < addr + size && vma.last >= addr);
    return isTaken ? -EEXIST : addr;
  }

  /** The longest piece from `address` on that lies in one page extent or window. */
  #reach(
    address: bigint,
    lengthBytes: number,
    prot: number,
  ): { readonly lengthBytes: number; read(): Uint8Array | undefined; write(bytes: Uint8Array): boolean } | undefined {
    const vma = this.#find(address);
    if (vma === undefined || (vma.prot & prot) === 0) return undefined;
    const offset = Number(address - vma.start);
    const { window } = vma;
    if (window !== undefined) {
      const length = Math.min(lengthBytes, Number(vma.last - address) + 1);
      return {
        lengthBytes: length,
        read: () => window.read(offset, length),
        write: (bytes) => window.write(offset, bytes),
      };
    }
    const page = Math.floor(offset / PAGE_BYTES);
    const piece = vma.pieces[pieceAt(vma.pieces, page)];
    if (piece === undefined || page >= piece.firstPage + piece.extent.pages) return undefined;
    const within = offset - piece.firstPage * PAGE_BYTES;
    const length = Math.min(lengthBytes, piece.extent.pages * PAGE_BYTES - within);
    const pa = piece.extent.pfn * PAGE_BYTES + within;
    return {
      lengthBytes: length,
      read: () => this.memory.read(pa, length),
      write: (bytes) => this.memory.write(pa, bytes),
    };
  }

  /** Visits the physical runs behind whole pages, in order, with the page number relative to `address`. */
  #forEachExtent(
    address: bigint,
    pages: number,
    prot: number,
    visit: (extent: PageExtent, firstPage: number) => void,
  ): number {
    if (address % PAGE !== 0n) return -EINVAL;
    let done = 0;
    while (done < pages) {
      const at = address + BigInt(done) * PAGE;
      const vma = this.#find(at);
      if (vma === undefined || vma.window !== undefined || (vma.prot & prot) === 0) return -EFAULT;
      const first = Number((at - vma.start) / PAGE);
      const inVma = Math.min(pages - done, Number((vma.last + 1n - at) / PAGE));
      for (let index = pieceAt(vma.pieces, first); ; index++) {
        const piece = vma.pieces[index];
        if (piece === undefined || piece.firstPage >= first + inVma) break;
        const { firstPage, extent } = piece;
        const from = Math.max(first, firstPage);
        const end = Math.min(first + inVma, firstPage + extent.pages);
        if (from < end) visit({ pfn: extent.pfn + from - firstPage, pages: end - from }, done + from - first);
      }
      done += inVma;
    }
    return 0;
  }
}

function roundUp(length: bigint): bigint {
  return ((length + PAGE - 1n) / PAGE) * PAGE;
}

function mergeRuns(runs: readonly PinnedRun[]): PinnedRun[] {
  const merged: PinnedRun[] = [];
  for (const run of runs) {
    const last = merged.at(-1);
    if (last !== undefined && last.pfn + last.pages === run.pfn)
      merged[merged.length - 1] = { pfn: last.pfn, pages: last.pages + run.pages };
    else merged.push(run);
  }
  return merged;
}
