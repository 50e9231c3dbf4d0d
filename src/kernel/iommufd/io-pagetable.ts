/**
 * `struct io_pagetable`: which IOVAs of an address space show which memory, and every domain that says so to hardware.
 *
 * Three kinds of range: *areas* (mapped), *reserved* (attached devices cannot use them, or lie outside a domain's aperture)
 * and *allowed* (user space wants them kept mappable). MAP inserts an area without pages first, so that its IOVAs are
 * taken, fills the domains without holding `iova_rwsem`, and publishes the pages at the end. UNMAP does the reverse. While
 * any area has no pages, `domains_rwsem` is held for reading: no domain comes or goes.
 *
 * Lock order: `domains_rwsem` -> `iova_rwsem` -> `pages.mutex`.
 * Invariants: areas are disjoint; no area overlaps a reserved range; no allowed range overlaps a reserved range; every area
 * with pages is mapped in every domain; areas are pinned exactly while there is a domain (INV-4, INV-6, INV-7).
 *
 * Source: Linux drivers/iommu/iommufd/io_pagetable.c; domain.md A1.3 to A1.8, A1.36, A6.1 to A6.4.
 */
import type { Arena } from '../../core/arena.js';
import { RwSemaphore } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import {
  EADDRINUSE,
  EBUSY,
  EDEADLK,
  EEXIST,
  EINVAL,
  ENOENT,
  ENOSPC,
  EOPNOTSUPP,
  EOVERFLOW,
  EPERM,
  type ErrorDetail,
  ENOMEM,
} from '../../uapi/errno.js';
import { IOMMU_CACHE, IOMMU_MMIO, IOMMU_WRITE, type PagingDomain } from '../iommu/domain.js';
import type { ResvRegion } from '../iommu/resv-regions.js';
import type { PinnedRun } from '../mm/mm.js';
import { AreaTree, IoptArea } from './area.js';
import { silentSink, type FailureSink } from './failure.js';
import { IntervalList, type Range } from './interval-list.js';
import { PAGE_BYTES, PAGE_SIZE, type IoptPages } from './pages.js';

/** The last address of the IOVA space. */
export const IOVA_MAX = 2n ** 64n - 1n;
/** Automatic IOVAs are aligned to at most this (HPAGE_PMD_SIZE). */
const MAX_AUTO_ALIGNMENT = 2n ** 21n;
/** How often UNMAP asks accesses to let go before it gives up. */
const MAX_UNMAP_TRIES = 100;

/** A slice of a pages object that is to be mapped. */
export interface PagesSlice {
  readonly pages: IoptPages;
  readonly startByte: bigint;
  readonly lengthBytes: bigint;
}

interface ReservedRange extends Range {
  /** Device, domain or test that wants it reserved. */
  readonly owner: object | undefined;
  /** How reports call the range. */
  readonly detail: ErrorDetail;
}

/** How an unmap ended: 0 or -errno, and what is gone in either case. */
export interface Unmapped {
  readonly rc: number;
  readonly unmappedBytes: bigint;
}

/** Somebody other than a device who reads and writes the address space (`struct iommufd_access`). */
export interface IoptAccess {
  readonly iova_alignment: bigint;
  /** Must let go of everything in the range before the task ends. */
  notify_unmap(iova: bigint, lengthBytes: bigint): Task<void>;
}

function alignUp(value: bigint, alignment: bigint): bigint {
  return (value + alignment - 1n) & ~(alignment - 1n);
}

function roundUpToPowerOfTwo(value: bigint): bigint {
  return value <= 1n ? 1n : 1n << BigInt((value - 1n).toString(2).length);
}

/** How a reserved region of a device is told in an error's detail. */
export function regionDetail(region: ResvRegion): ErrorDetail {
  const isMsi = region.type === 'msi' || region.type === 'software-msi';
  return {
    start: region.start,
    last: region.last,
    type: isMsi ? 'msi' : region.type,
    kind: region.type === 'msi' ? 'hardware-msi' : region.type,
    owner: region.owner,
  };
}

function areaDetail(area: IoptArea): ErrorDetail {
  return { areaStart: area.iova, areaLast: area.last };
}

/** First IOVA >= span.start with the wanted alignment and offset at which `length` bytes fit; undefined for none. */
function fitIn(span: Range, length: bigint, alignment: bigint, offset: bigint): bigint | undefined {
  if (span.last - span.start < length - 1n) return undefined;
  const start = alignUp(span.start, alignment) | offset;
  // The last IOVA of a span is never a start (`__alloc_iova_check_range`).
  return start >= span.last || span.last - start < length - 1n ? undefined : start;
}

/** One address space's mappings. */
export class IoPageTable {
  readonly domainsRwsem = new RwSemaphore('iopt:domains_rwsem');
  readonly iovaRwsem = new RwSemaphore('iopt:iova_rwsem');
  readonly areas: AreaTree;
  readonly #reserved = new IntervalList<ReservedRange>();
  #allowed = new IntervalList<Range>();
  readonly #domains: PagingDomain[] = [];
  readonly #accesses: IoptAccess[] = [];
  readonly #allocFails: () => boolean;
  #iovaAlignment = 1n;
  #disableLargePages = false;

  /** An empty table, or -ENOMEM. `allocFails`: whether the next allocation of a record fails. */
  static create(arena: Arena, allocFails: () => boolean = () => false): IoPageTable | number {
    const areas = AreaTree.create(arena);
    return typeof areas === 'number' ? areas : new IoPageTable(areas, allocFails);
  }

  private constructor(areas: AreaTree, allocFails: () => boolean) {
    this.areas = areas;
    this.#allocFails = allocFails;
  }

  /** What addresses and lengths must be multiples of; 1 without domains and accesses. */
  get iovaAlignment(): bigint {
    return this.#iovaAlignment;
  }

  get disableLargePages(): boolean {
    return this.#disableLargePages;
  }

  get domains(): readonly PagingDomain[] {
    return this.#domains;
  }

  /** Everything that is reserved, and what user space wants kept: to look at, not to hold on to. */
  get ranges(): { readonly reserved: readonly ReservedRange[]; readonly allowed: readonly Range[] } {
    return { reserved: [...this.#reserved], allowed: [...this.#allowed] };
  }

  get accesses(): readonly IoptAccess[] {
    return this.#accesses;
  }

  /** Frees the table: everything must be unmapped, every domain and access gone. */
  destroy(): void {
    invariant(this.#domains.length === 0 && this.#accesses.length === 0, 'io_pagetable: destroyed in use');
    this.areas.destroy();
  }

  // --- ranges ---

  /** Ranges nobody reserved: what IOMMU_IOAS_IOVA_RANGES lists. Hold `iova_rwsem`. */
  *iovaRanges(): Generator<Range> {
    yield* this.#reserved.holes(0n, IOVA_MAX);
  }

  /** Replaces the list of allowed ranges; -EADDRINUSE if one is reserved already. */
  *set_allow_iova(allowed: IntervalList<Range>, sink: FailureSink = silentSink): Task<number> {
    yield* this.iovaRwsem.down_write();
    try {
      for (const range of allowed) {
        const hit = this.#reserved.firstOverlap(range.start, range.last);
        if (hit !== undefined) {
          return sink.fail(EADDRINUSE, { ...hit.detail, allowedStart: range.start, allowedLast: range.last });
        }
      }
      this.#allowed = allowed;
      return 0;
    } finally {
      this.iovaRwsem.up_write();
    }
  }

  /** Reserves a range; -EADDRINUSE over an area or an allowed range, -ENOMEM. Hold `iova_rwsem` for writing. */
  reserve_iova(
    start: bigint,
    last: bigint,
    owner: object | undefined,
    detail: ErrorDetail,
    sink: FailureSink = silentSink,
  ): number {
    invariant(this.iovaRwsem.isHeldForWrite, 'io_pagetable: reserve without iova_rwsem');
    const area = this.areas.firstOverlap(start, last);
    if (area !== undefined) return sink.fail(EADDRINUSE, { ...detail, ...areaDetail(area) });
    const allowed = this.#allowed.firstOverlap(start, last);
    if (allowed !== undefined) {
      return sink.fail(EADDRINUSE, { ...detail, allowedStart: allowed.start, allowedLast: allowed.last });
    }
    if (this.#allocFails()) return -ENOMEM;
    this.#reserved.insert({ start, last, owner, detail });
    return 0;
  }

  /** Gives back everything an owner reserved. */
  *remove_reserved_iova(owner: object | undefined): Task<void> {
    yield* this.iovaRwsem.down_write();
    this.#reserved.removeIf((range) => range.owner === owner);
    this.iovaRwsem.up_write();
  }

  /**
   * Reserves a device's regions. Answers the start of its software MSI window (undefined for none), or -errno with nothing
   * reserved: EADDRINUSE, EINVAL when the device has a hardware and a software window (domain.md A1.37), unless this kernel
   * lets such devices in.
   */
  *enforce_dev_resv_regions(
    device: object,
    regions: readonly ResvRegion[],
    sink: FailureSink = silentSink,
    allowMixedMsi = false,
  ): Task<{ readonly swMsiStart: bigint | undefined } | number> {
    yield* this.iovaRwsem.down_write();
    try {
      const counted = regions.filter((region) => region.type !== 'direct-relaxable');
      const software = counted.filter((region) => region.type === 'software-msi');
      let rc = 0;
      for (const region of counted) {
        rc = this.reserve_iova(region.start, region.last, device, regionDetail(region), sink);
        if (rc < 0) break;
      }
      const isMixed = software.length > 0 && counted.some((region) => region.type === 'msi');
      if (rc === 0 && (software.length > 1 || (isMixed && !allowMixedMsi))) {
        rc = sink.fail(EINVAL, { why: 'hardware and software MSI regions on one device' });
      }
      if (rc < 0) {
        this.#reserved.removeIf((range) => range.owner === device);
        return rc;
      }
      return { swMsiStart: software[0]?.start };
    } finally {
      this.iovaRwsem.up_write();
    }
  }

  // --- map ---

  /**
   * Maps slices one behind the other: at `iova`, or where there is room when it is undefined. The areas take references of
   * their own to the pages. Answers the IOVA, or -errno with nothing mapped and nothing pinned: EINVAL misaligned or reserved, EEXIST, ENOSPC, EOVERFLOW, EPERM writing to
   * read-only memory, and what pinning and the domains answer.
   */
  *map_pages(
    slices: readonly PagesSlice[],
    iova: bigint | undefined,
    prot: number,
    sink: FailureSink = silentSink,
  ): Task<bigint | number> {
    const areas: IoptArea[] = [];
    yield* this.iovaRwsem.down_write();
    const start = this.#insertAreas(slices, iova, prot, areas, sink);
    this.iovaRwsem.up_write();
    if (typeof start === 'number') {
      yield* this.#abortAreas(areas);
      return start;
    }
    yield 'iommufd:map-inserted';

    yield* this.domainsRwsem.down_read();
    const rc = yield* this.#fillAreas(areas, slices);
    if (rc === 0) {
      yield 'iommufd:map-filled';
      yield* this.iovaRwsem.down_write();
      for (const [i, area] of areas.entries()) {
        area.pages = slices[i]?.pages;
        area.pages?.get();
      }
      this.iovaRwsem.up_write();
    }
    this.domainsRwsem.up_read();
    if (rc < 0) {
      yield* this.#abortAreas(areas);
      return rc;
    }
    return start;
  }

  /** Takes the IOVAs for all slices; the IOVA or -errno (then `areas` holds what is to be taken back). */
  #insertAreas(
    slices: readonly PagesSlice[],
    wanted: bigint | undefined,
    prot: number,
    areas: IoptArea[],
    sink: FailureSink,
  ): bigint | number {
    const first = slices[0];
    invariant(first !== undefined, 'io_pagetable: nothing to map');
    const length = slices.reduce((sum, slice) => sum + slice.lengthBytes, 0n);
    if (length % this.#iovaAlignment !== 0n || length === 0n) {
      return sink.fail(EINVAL, { why: 'length', alignment: this.#iovaAlignment });
    }
    const start = wanted ?? this.#allocIova(first.pages.source.startByte + first.startByte, length, sink);
    if (typeof start === 'number') return start;
    const rc = this.#checkIova(start, length, sink);
    if (rc < 0) return rc;
    let iova = start;
    for (const slice of slices) {
      if ((prot & IOMMU_WRITE) !== 0 && !slice.pages.writable) return sink.fail(EPERM, { why: 'read-only memory' });
      if ((slice.startByte % PAGE_SIZE) % this.#iovaAlignment !== 0n) {
        return sink.fail(EINVAL, { why: 'page offset', alignment: this.#iovaAlignment });
      }
      if (this.#allocFails()) return -ENOMEM;
      const area = new IoptArea(iova, slice.lengthBytes, slice.startByte, prot);
      const inserted = this.areas.insert(area);
      if (inserted < 0) return inserted;
      areas.push(area);
      iova += slice.lengthBytes;
    }
    return start;
  }

  #checkIova(iova: bigint, length: bigint, sink: FailureSink): number {
    if (iova % this.#iovaAlignment !== 0n) return sink.fail(EINVAL, { why: 'iova', alignment: this.#iovaAlignment });
    const last = iova + length - 1n;
    if (last > IOVA_MAX) return -EOVERFLOW;
    const reserved = this.#reserved.firstOverlap(iova, last);
    if (reserved !== undefined) return sink.fail(EINVAL, { ...reserved.detail, areaStart: iova, areaLast: last });
    const area = this.areas.firstOverlap(iova, last);
    if (area !== undefined) return sink.fail(EEXIST, areaDetail(area));
    return 0;
  }

  /** A free IOVA with the alignment the source address has, so that large pages fit; never 0. */
  #allocIova(sourceByte: bigint, length: bigint, sink: FailureSink): bigint | number {
    if (length >= IOVA_MAX / 2n) return -EOVERFLOW;
    const lowestBit = sourceByte & -sourceByte;
    let alignment = roundUpToPowerOfTwo(length);
    if (sourceByte !== 0n && lowestBit < alignment) alignment = lowestBit;
    if (alignment > MAX_AUTO_ALIGNMENT) alignment = MAX_AUTO_ALIGNMENT;
    if (alignment < this.#iovaAlignment) return sink.fail(EINVAL, { why: 'user_va', alignment: this.#iovaAlignment });
    const offset = sourceByte % PAGE_SIZE;
    const everything: Range = { start: PAGE_SIZE, last: IOVA_MAX - PAGE_SIZE };
    const spans = this.#allowed.size === 0 ? [everything] : this.#allowed.usedSpans(everything.start, everything.last);
    for (const span of spans) {
      const start = fitIn(span, length, alignment, offset);
      if (start === undefined) continue;
      for (const hole of this.#freeSpans(start, span.last)) {
        const iova = fitIn(hole, length, alignment, offset);
        if (iova !== undefined) return iova;
      }
    }
    return -ENOSPC;
  }

  /** What neither an area nor a reserved range covers within start..last, ascending. */
  *#freeSpans(start: bigint, last: bigint): Generator<Range> {
    for (const hole of this.#reserved.holes(start, last)) {
      let at = hole.start;
      for (const area of this.areas.overlapping(hole.start, hole.last)) {
        if (area.iova > at) yield { start: at, last: area.iova - 1n };
        at = area.last + 1n;
      }
      if (at <= hole.last) yield { start: at, last: hole.last };
    }
  }

  *#abortAreas(areas: readonly IoptArea[]): Task<void> {
    if (areas.length === 0) return;
    yield* this.iovaRwsem.down_write();
    for (const area of areas) this.areas.remove(area);
    this.iovaRwsem.up_write();
  }

  *#fillAreas(areas: readonly IoptArea[], slices: readonly PagesSlice[]): Task<number> {
    for (const [i, area] of areas.entries()) {
      const pages = slices[i]?.pages;
      invariant(pages !== undefined, 'io_pagetable: area without pages');
      const rc = yield* this.#fillArea(area, pages);
      if (rc === 0) continue;
      for (const [j, filled] of areas.slice(0, i).entries()) {
        const filledPages = slices[j]?.pages;
        if (filledPages !== undefined) yield* this.#unfillArea(filled, filledPages);
      }
      return rc;
    }
    return 0;
  }

  // --- domains' contents ---

  /** Pins an area and maps it in every domain. Hold `domains_rwsem`. */
  *#fillArea(area: IoptArea, pages: IoptPages): Task<number> {
    if (this.#domains.length === 0) return 0;
    yield* pages.mutex.lock();
    try {
      let rc = yield* pages.use(area.firstPage, area.lastPage);
      if (rc < 0) return rc;
      const runs = pages.runs(area.firstPage, area.lastPage);
      const done: PagingDomain[] = [];
      for (const domain of this.#domains) {
        rc = yield* this.#mapArea(domain, area, pages, runs);
        if (rc < 0) break;
        done.push(domain);
      }
      if (rc === 0) rc = pages.charge();
      if (rc < 0) {
        for (const domain of done) yield* this.#unmapArea(domain, area, pages);
        pages.release(area.firstPage, area.lastPage);
        return rc;
      }
      area.isFilled = true;
      return 0;
    } finally {
      pages.mutex.unlock();
    }
  }

  /** Unmaps an area from every domain, then unpins it. Hold `domains_rwsem`. */
  *#unfillArea(area: IoptArea, pages: IoptPages): Task<void> {
    if (!area.isFilled) return;
    yield* pages.mutex.lock();
    for (const domain of this.#domains) yield* this.#unmapArea(domain, area, pages);
    yield 'iommufd:unmap-invalidated';
    area.isFilled = false;
    pages.release(area.firstPage, area.lastPage);
    pages.mutex.unlock();
  }

  /** Maps an area in a domain; a revoked dma-buf is passed over. Hold the pages' mutex. */
  *#mapArea(domain: PagingDomain, area: IoptArea, pages: IoptPages, runs: readonly PinnedRun[]): Task<number> {
    if (pages.isRevoked) return 0;
    const prot = pages.source.isDmaBuf ? (area.prot & ~IOMMU_CACHE) | IOMMU_MMIO : area.prot;
    const start = Number(area.iova);
    const end = start + Number(area.lengthBytes);
    const maxPageBytes = this.#disableLargePages ? PAGE_BYTES : undefined;
    let iova = start;
    let offset = Number(area.startByte % PAGE_SIZE);
    for (const run of runs) {
      const length = Math.min(run.pages * PAGE_BYTES - offset, end - iova);
      const pa = run.pfn * PAGE_BYTES + offset;
      const rc = this.#allocFails() ? -ENOMEM : yield* domain.map(iova, pa, length, prot, maxPageBytes);
      if (rc < 0) {
        if (iova > start) yield* domain.unmap(start, iova - start);
        return rc;
      }
      iova += length;
      offset = 0;
    }
    pages.track(domain, area);
    return 0;
  }

  *#unmapArea(domain: PagingDomain, area: IoptArea, pages: IoptPages): Task<void> {
    if (pages.isRevoked) return;
    pages.untrack(domain, area);
    const length = Number(area.lengthBytes);
    const unmapped = yield* domain.unmap(Number(area.iova), length);
    invariant(unmapped === length, `io_pagetable: ${unmapped} of ${length} bytes were mapped in a domain`, 'mapped');
  }

  /** Maps every area in a new domain; on failure the domain is left empty. Hold both semaphores for writing. */
  *#fillDomain(domain: PagingDomain): Task<number> {
    const filled: IoptArea[] = [];
    for (const area of this.areas.overlapping()) {
      const pages = area.pages;
      if (pages === undefined) continue;
      yield* pages.mutex.lock();
      const rc = yield* this.#fillDomainArea(domain, area, pages);
      pages.mutex.unlock();
      if (rc < 0) {
        for (const undo of filled) yield* this.#unfillDomainArea(domain, undo);
        return rc;
      }
      filled.push(area);
    }
    return 0;
  }

  *#fillDomainArea(domain: PagingDomain, area: IoptArea, pages: IoptPages): Task<number> {
    if (!area.isFilled) {
      const pinned = yield* pages.use(area.firstPage, area.lastPage);
      if (pinned < 0) return pinned;
    }
    let rc = yield* this.#mapArea(domain, area, pages, pages.runs(area.firstPage, area.lastPage));
    if (rc === 0) {
      rc = pages.charge();
      if (rc < 0) yield* this.#unmapArea(domain, area, pages);
    }
    if (rc < 0) {
      if (!area.isFilled) pages.release(area.firstPage, area.lastPage);
      return rc;
    }
    area.isFilled = true;
    return 0;
  }

  /** Takes an area out of a domain that is not in the list (any more); unpins it if no domain is left. */
  *#unfillDomainArea(domain: PagingDomain, area: IoptArea): Task<void> {
    const pages = area.pages;
    if (pages === undefined) return;
    yield* pages.mutex.lock();
    yield* this.#unmapArea(domain, area, pages);
    if (this.#domains.length === 0) {
      area.isFilled = false;
      pages.release(area.firstPage, area.lastPage);
    }
    pages.mutex.unlock();
  }

  // --- copy ---

  /**
   * The memory behind a range that is mapped without holes, with a reference to each pages object for the caller to put;
   * -ENOENT otherwise, -EINVAL, -EOVERFLOW, -ENOMEM.
   */
  *get_pages(iova: bigint, length: bigint): Task<PagesSlice[] | number> {
    if (length === 0n) return -EINVAL;
    const last = iova + length - 1n;
    if (last > IOVA_MAX) return -EOVERFLOW;
    yield* this.iovaRwsem.down_read();
    try {
      const slices: PagesSlice[] = [];
      let at = iova;
      for (const area of this.areas.overlapping(iova, last)) {
        if (area.iova > at || area.pages === undefined) return -ENOENT;
        if (this.#allocFails()) return -ENOMEM;
        const end = area.last < last ? area.last : last;
        slices.push({ pages: area.pages, startByte: area.byteAt(at), lengthBytes: end - at + 1n });
        at = end + 1n;
      }
      if (at <= last) return -ENOENT;
      for (const { pages } of slices) pages.get();
      return slices;
    } finally {
      this.iovaRwsem.up_read();
    }
  }

  // --- unmap ---

  /**
   * Unmaps every area in start..last, lowest first. Stops with -ENOENT at one that the range covers only in part, -EBUSY at
   * one that somebody is mapping or unmapping or has locked, -EDEADLK when accesses do not let go: those before it are gone.
   */
  *unmap_iova_range(start: bigint, last: bigint, sink: FailureSink = silentSink): Task<Unmapped> {
    let unmappedBytes = 0n;
    let from = start;
    let tries = 0;
    let asked: IoptArea | undefined;
    yield* this.domainsRwsem.down_read();
    yield* this.iovaRwsem.down_write();
    for (;;) {
      const area = from > last ? undefined : this.areas.firstOverlap(from, last);
      const rc = area === undefined ? 0 : this.#checkUnmap(area, from, last, sink);
      if (area === undefined || rc < 0) {
        this.iovaRwsem.up_write();
        this.domainsRwsem.up_read();
        return { rc, unmappedBytes };
      }
      if (area.numAccesses === 0) {
        yield* this.#unmapOne(area);
        unmappedBytes += area.lengthBytes;
        from = area.last + 1n;
      } else {
        tries = area === asked ? tries : 0;
        asked = area;
        yield* this.#evictAccesses(area);
        if (++tries > MAX_UNMAP_TRIES) return { rc: -EDEADLK, unmappedBytes };
        yield* this.domainsRwsem.down_read();
      }
      yield* this.iovaRwsem.down_write();
    }
  }

  #checkUnmap(area: IoptArea, start: bigint, last: bigint, sink: FailureSink): number {
    if (area.pages === undefined || area.numLocks > 0) return sink.fail(EBUSY, areaDetail(area));
    if (area.iova < start || area.last > last) return sink.fail(ENOENT, { ...areaDetail(area), why: 'split' });
    return 0;
  }

  /** Asks every access to let go of an area. Drops both semaphores, which the caller holds. */
  *#evictAccesses(area: IoptArea): Task<void> {
    area.preventAccess = true;
    this.iovaRwsem.up_write();
    this.domainsRwsem.up_read();
    for (const access of [...this.#accesses]) yield* access.notify_unmap(area.iova, area.lengthBytes);
  }

  /** Unmaps an area that may go. The caller holds `domains_rwsem` for reading and `iova_rwsem`, which is dropped. */
  *#unmapOne(area: IoptArea): Task<void> {
    const pages = area.pages;
    invariant(pages !== undefined, 'io_pagetable: unmap of an area without pages');
    area.pages = undefined;
    this.iovaRwsem.up_write();
    yield 'iommufd:unmap-hidden';
    yield* this.#unfillArea(area, pages);
    yield 'iommufd:unmap-unfilled';
    yield* this.#abortAreas([area]);
    pages.put();
    yield 'iommufd:unmap-freed';
  }

  // --- domains, accesses, options ---

  /** Adds a domain and maps every area in it; -errno with nothing changed (domain.md A1.36). */
  *add_domain(domain: PagingDomain, sink: FailureSink = silentSink): Task<number> {
    yield* this.domainsRwsem.down_write();
    yield* this.iovaRwsem.down_write();
    const rc = yield* this.#addDomainLocked(domain, sink);
    if (rc < 0) this.#reserved.removeIf((range) => range.owner === domain);
    this.iovaRwsem.up_write();
    this.domainsRwsem.up_write();
    return rc;
  }

  *#addDomainLocked(domain: PagingDomain, sink: FailureSink): Task<number> {
    const smallest = BigInt(domain.pageSizes[0] ?? PAGE_BYTES);
    const alignment = smallest > this.#iovaAlignment ? smallest : this.#iovaAlignment;
    if (alignment > PAGE_SIZE) return sink.fail(EINVAL, { why: 'io page size', alignment });
    if (alignment !== this.#iovaAlignment) {
      const rc = this.#checkAlignment(alignment, sink);
      if (rc < 0) return rc;
    }
    const aperture = (start: bigint, last: bigint): number => {
      const detail = { start, last, type: 'aperture', kind: 'aperture', owner: domain.driver.name };
      return this.reserve_iova(start, last, domain, detail, sink);
    };
    let rc = domain.apertureStart === 0n ? 0 : aperture(0n, domain.apertureStart - 1n);
    if (rc === 0 && domain.apertureLast !== IOVA_MAX) rc = aperture(domain.apertureLast + 1n, IOVA_MAX);
    if (rc === 0) rc = yield* this.#fillDomain(domain);
    if (rc < 0) return rc;
    this.#iovaAlignment = alignment;
    this.#domains.push(domain);
    return 0;
  }

  /** Takes a domain out, unmapping everything from it. */
  *remove_domain(domain: PagingDomain): Task<void> {
    yield* this.domainsRwsem.down_write();
    yield* this.iovaRwsem.down_write();
    const index = this.#domains.indexOf(domain);
    invariant(index >= 0, 'io_pagetable: removed domain is not there');
    const tail = this.#domains.pop();
    if (tail !== undefined && tail !== domain) this.#domains[index] = tail;
    for (const area of this.areas.overlapping()) yield* this.#unfillDomainArea(domain, area);
    this.#reserved.removeIf((range) => range.owner === domain);
    invariant(this.#recalculateAlignment() === 0, 'io_pagetable: alignment rose when a domain left');
    this.iovaRwsem.up_write();
    this.domainsRwsem.up_write();
  }

  #checkAlignment(alignment: bigint, sink: FailureSink): number {
    for (const area of this.areas.overlapping()) {
      const isAligned = [area.iova, area.lengthBytes, area.startByte % PAGE_SIZE].every((x) => x % alignment === 0n);
      if (!isAligned) return sink.fail(EADDRINUSE, { ...areaDetail(area), kind: 'alignment', alignment });
    }
    return 0;
  }

  #recalculateAlignment(sink: FailureSink = silentSink): number {
    let alignment = this.#disableLargePages ? PAGE_SIZE : 1n;
    const wanted = [
      ...this.#domains.map((domain) => BigInt(domain.pageSizes[0] ?? PAGE_BYTES)),
      ...this.#accesses.map((access) => access.iova_alignment),
    ];
    for (const want of wanted) if (want > alignment) alignment = want;
    if (alignment > this.#iovaAlignment) {
      const rc = this.#checkAlignment(alignment, sink);
      if (rc < 0) return rc;
    }
    this.#iovaAlignment = alignment;
    return 0;
  }

  /** Adds an access; -EADDRINUSE when an existing mapping does not have its alignment, -ENOMEM. */
  *add_access(access: IoptAccess, sink: FailureSink = silentSink): Task<number> {
    return yield* this.#withDomains(() => {
      if (this.#allocFails()) return -ENOMEM;
      this.#accesses.push(access);
      const rc = this.#recalculateAlignment(sink);
      if (rc < 0) this.#accesses.pop();
      return rc;
    });
  }

  *remove_access(access: IoptAccess): Task<void> {
    yield* this.#withDomains(() => {
      const index = this.#accesses.indexOf(access);
      invariant(index >= 0, 'io_pagetable: removed access is not there');
      this.#accesses.splice(index, 1);
      return this.#recalculateAlignment();
    });
  }

  /**
   * Cuts the areas that reach beyond one of these IOVAs behind it (`iopt_cut_iova`): 0, -EBUSY while one is mapped or unmapped, -EOPNOTSUPP of a dma-buf, -EINVAL
   * where a cut would not be aligned, an access has pages pinned, or a domain may have a large entry there, -ENOMEM.
   */
  *cut_iova(iovas: readonly bigint[]): Task<number> {
    yield* this.iovaRwsem.down_write();
    let rc = 0;
    for (const iova of iovas) {
      const area = this.areas.firstOverlap(iova, iova);
      if (area !== undefined) rc = this.#split(area, iova);
      if (rc < 0) break;
    }
    this.iovaRwsem.up_write();
    return rc;
  }

  /** `iopt_area_split`: the area ends at `iova`, another has the rest. */
  #split(area: IoptArea, iova: bigint): number {
    const { pages } = area;
    const next = iova + 1n;
    if (iova === area.iova || iova === area.last) return 0;
    if (pages === undefined || area.preventAccess) return -EBUSY;
    if (pages.source.isDmaBuf) return -EOPNOTSUPP;
    const alignment = this.#iovaAlignment;
    if (next % alignment !== 0n || (area.byteAt(next) % PAGE_SIZE) % alignment !== 0n) return -EINVAL;
    if (area.numAccesses > 0 || (area.isFilled && !this.#disableLargePages)) return -EINVAL;
    if (this.#allocFails()) return -ENOMEM;
    const parts = [
      new IoptArea(area.iova, next - area.iova, area.startByte, area.prot),
      new IoptArea(next, area.last - iova, area.byteAt(next), area.prot),
    ];
    this.areas.remove(area);
    for (const part of parts) {
      part.pages = pages;
      part.isFilled = area.isFilled;
      if (this.areas.insert(part) === 0) continue;
      for (const done of parts) if (this.areas.firstOverlap(done.iova, done.last) === done) this.areas.remove(done);
      invariant(this.areas.insert(area) === 0, 'io_pagetable: an area that was taken out has its room');
      return -ENOMEM;
    }
    pages.get();
    return 0;
  }

  /**
   * The IOVA that a fuzzer means (`__iommufd_test_syz_conv_iova`): the low 32 bits count areas, the high ones are an offset into that
   * one; 0 when there are not so many.
   */
  syzIova(wanted: bigint): bigint {
    let skip = Number(wanted & 0xffff_ffffn);
    for (const area of this.areas.overlapping()) if (skip-- === 0) return area.iova + (wanted >> 32n);
    return 0n;
  }

  /** Bytes a page of every domain can have, as a bitmap of their logarithms. */
  get pageSizes(): bigint {
    let bitmap = IOVA_MAX;
    for (const domain of this.#domains) bitmap &= domain.pageSizes.reduce((bits, size) => bits | BigInt(size), 0n);
    return bitmap;
  }

  /** IOMMU_OPTION_HUGE_PAGES 0: -EINVAL while domains have mappings, -EADDRINUSE if a mapping is not page aligned. */
  *disable_large_pages(sink: FailureSink = silentSink): Task<number> {
    return yield* this.#withDomains(() => {
      if (this.#disableLargePages) return 0;
      if (this.#domains.length > 0 && this.areas.size > 0) return sink.fail(EINVAL, { why: 'mapped already' });
      this.#disableLargePages = true;
      const rc = this.#recalculateAlignment(sink);
      if (rc < 0) this.#disableLargePages = false;
      return rc;
    });
  }

  /** IOMMU_OPTION_HUGE_PAGES 1. */
  *enable_large_pages(): Task<void> {
    yield* this.#withDomains(() => {
      this.#disableLargePages = false;
      return this.#recalculateAlignment();
    });
  }

  /** Runs an atomic change with both semaphores held for writing. */
  *#withDomains(change: () => number): Task<number> {
    yield* this.domainsRwsem.down_write();
    yield* this.iovaRwsem.down_write();
    const rc = change();
    this.iovaRwsem.up_write();
    this.domainsRwsem.up_write();
    return rc;
  }
}
