/**
 * `struct io_pagetable`: which IOVAs of an address space show which memory, and every domain that says so to hardware.
 *
 * Three kinds of range: *areas* (mapped), *reserved* (attached devices cannot use them, or lie outside a domain's aperture)
 * and *allowed* (user space wants them kept mappable). MAP inserts an area without pages first, so that its IOVAs are
 * taken, fills the domains without holding `iova_rwsem`, and publishes the pages at the end. UNMAP does the reverse. While
 * any area has no pages, `domains_rwsem` is held for reading: no domain comes or goes.
 *
 * The same code runs as tasks of a host's node and in free-running threads (src/stress): what differs is in {@link IoptParts}.
 * Threads have an object each over the same areas and locks; what only objects of this thread know (domains, accesses, reserved
 * and allowed ranges, options) must be the same in all of them and stay so while they run. `iova_rwsem` is told which
 * IOVAs a caller means: one semaphore ignores that, one for each window of IOVAs (area-lock.ts) takes those that are touched.
 *
 * With a *flush queue*, which Linux has for the DMA API only, UNMAP does not invalidate: the area keeps its IOVAs and its pins and waits in
 * the queue of its thread until {@link IoPageTable.flush_unmapped} has invalidated everything at once.
 *
 * Lock order: `domains_rwsem` -> `iova_rwsem` -> `pages.mutex`.
 * Invariants: areas are disjoint; no area overlaps a reserved range; no allowed range overlaps a reserved range; every area
 * with pages is mapped in every domain; areas are pinned exactly while there is a domain (INV-4, INV-6, INV-7).
 *
 * Source: Linux drivers/iommu/iommufd/io_pagetable.c; domain.md A1.3 to A1.8, A1.36, A6.1 to A6.4.
 */
import type { Arena } from '../../core/arena.js';
import { RwSemaphore, type Holdable, type RwLock } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
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
import {
  IOMMU_CACHE,
  IOMMU_MMIO,
  IOMMU_WRITE,
  type DirtyOps,
  type DirtyRecorder,
  type FlushOps,
  type PagingDomain,
} from '../iommu/domain.js';
import { MappingCheck, type WatchedCall } from '../iommu/mapping-check.js';
import type { ResvRegion } from '../iommu/resv-regions.js';
import type { PinnedRun } from '../mm/mm.js';
import { AreaTree, type IoptArea } from './area.js';
import { silentSink, type FailureSink } from './failure.js';
import { NO_INSTRUMENTS, type Instruments } from './instruments.js';
import { IntervalList, type Range } from './interval-list.js';
import { PAGE_BYTES, PAGE_SIZE, type IoptPages } from './pages.js';

/** Class of the lock under which the `iova_rwsem` of every address space may be held. */
export const IOAS_CREATION_LOCK = 'iommufd:ioas_creation_lock';
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
  /** Its number in the list of the address space that it was added to last. */
  iopt_access_list_id: number;
  /** Must let go of everything in the range before the task ends. */
  notify_unmap(iova: bigint, lengthBytes: bigint): Task<void>;
}

/** `iova_rwsem`, held for start..last; for everything where no range is given. A range is let go as it was taken. */
export interface IovaRwsem extends Holdable {
  readonly isHeldForWrite: boolean;
  down_read(start?: bigint, last?: bigint): Task<void>;
  up_read(start?: bigint, last?: bigint): void;
  down_write(start?: bigint, last?: bigint): Task<void>;
  up_write(start?: bigint, last?: bigint): void;
  /**
   * How far from 0 on to look for a free IOVA in turn, ascending; the last one is {@link IOVA_MAX}. Absent: everything at once.
   */
  readonly reaches?: readonly bigint[];
}

/** What an address space is built over: of one thread, or shared by several. */
export interface IoptParts {
  readonly areas: AreaTree;
  readonly domainsRwsem: RwLock;
  readonly iovaRwsem: IovaRwsem;
  /** How many unmapped areas wait for one invalidation of everything; absent or 0: every unmap invalidates. */
  readonly flushBatch?: number;
  /** Watches what is mapped; absent: nobody does. */
  readonly check?: MappingCheck;
}

/** An area that is out of every table, but not out of IOTLBs. */
interface Unflushed {
  readonly area: IoptArea;
  readonly pages: IoptPages;
}

/** What IOTLBs must be synced for (`struct iommu_iotlb_gather`): one range around everything that was added, length 0 for nothing. */
class DirtyGather {
  #start = Infinity;
  #end = 0;

  get start(): number {
    return this.#end === 0 ? 0 : this.#start;
  }

  get lengthBytes(): number {
    return this.#end - this.start;
  }

  add(start: number, lengthBytes: number): void {
    this.#start = Math.min(this.#start, start);
    this.#end = Math.max(this.#end, start + lengthBytes);
  }
}

function* readDirty(ops: DirtyOps, first: bigint, last: bigint, noClear: boolean, record: DirtyRecorder): Task<number> {
  const start = Number(first);
  const length = Number(last - first) + 1;
  invariant(Number.isSafeInteger(start + length), 'iommufd: a mapped area reaches beyond any aperture');
  return yield* ops.read_and_clear_dirty(start, length, noClear, record);
}

function alignUp(value: bigint, alignment: bigint): bigint {
  return (value + alignment - 1n) & ~(alignment - 1n);
}

/** In 64 bits, as `ALIGN()`. */
function alignUpWrapping(value: bigint, alignment: bigint): bigint {
  return BigInt.asUintN(64, alignUp(value, alignment));
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

function flushOpsOf({ driver, flushOps }: PagingDomain): FlushOps {
  invariant(flushOps !== undefined, () => `io_pagetable: a domain of ${driver.name} has no flush queue`);
  return flushOps;
}

/** First IOVA >= span.start with the wanted alignment and offset at which `length` bytes fit; undefined for none. */
function fitIn(
  span: Range,
  length: bigint,
  alignment: bigint,
  offset: bigint,
  align: typeof alignUp,
): bigint | undefined {
  if (span.last - span.start < length - 1n) return undefined;
  const start = align(span.start, alignment) | offset;
  // The last IOVA of a span is never a start (`__alloc_iova_check_range`).
  return start >= span.last || span.last - start < length - 1n ? undefined : start;
}

/** One address space's mappings. */
export class IoPageTable {
  readonly domainsRwsem: RwLock;
  readonly iovaRwsem: IovaRwsem;
  readonly areas: AreaTree;
  readonly #flushBatch: number;
  #unflushed: Unflushed[] = [];
  readonly #reserved = new IntervalList<ReservedRange>();
  #allowed = new IntervalList<Range>();
  readonly #domainList: PagingDomain[] = [];
  /** Accesses by their number in the list (`access_list`). */
  readonly #accessList: (IoptAccess | undefined)[] = [];
  readonly #instruments: Instruments;
  readonly #check: MappingCheck | undefined;
  #isDestroyed = false;
  #alignment = 1n;
  #usesSmallPages = false;

  /** An empty table, or -ENOMEM. */
  static create(arena: Arena, instruments = NO_INSTRUMENTS): IoPageTable | number {
    const areas = AreaTree.create(arena);
    if (typeof areas === 'number') return areas;
    const domainsRwsem = new RwSemaphore('iopt:domains_rwsem');
    const iovaRwsem = new RwSemaphore('iopt:iova_rwsem', IOAS_CREATION_LOCK);
    const check = instruments.keepsHistory ? { check: new MappingCheck(instruments) } : {};
    return new IoPageTable({ areas, domainsRwsem, iovaRwsem, ...check }, instruments);
  }

  /** A table over parts, which may be shared. */
  constructor({ areas, domainsRwsem, iovaRwsem, flushBatch = 0, check }: IoptParts, instruments = NO_INSTRUMENTS) {
    this.areas = areas;
    this.domainsRwsem = domainsRwsem;
    this.iovaRwsem = iovaRwsem;
    this.#flushBatch = flushBatch;
    this.#instruments = instruments;
    this.#check = check;
  }

  #allocFails(): boolean {
    return this.#instruments.fires('kernel.kmalloc');
  }

  #checkAlive(): void {
    invariant(!this.#isDestroyed, 'use of an io_pagetable that is destroyed', 'objects');
  }

  /** What addresses and lengths must be multiples of; 1 without domains and accesses. */
  get iovaAlignment(): bigint {
    return this.#iovaAlignment;
  }

  get #iovaAlignment(): bigint {
    sharedRead(this, 'alignment', this.#alignment);
    return this.#alignment;
  }

  set #iovaAlignment(alignment: bigint) {
    if (alignment !== this.#alignment) sharedWrite(this, 'alignment', this.#alignment, alignment);
    this.#alignment = alignment;
  }

  get disableLargePages(): boolean {
    return this.#disableLargePages;
  }

  get #disableLargePages(): boolean {
    sharedRead(this, 'large pages', !this.#usesSmallPages);
    return this.#usesSmallPages;
  }

  set #disableLargePages(isDisabled: boolean) {
    sharedWrite(this, 'large pages', !this.#usesSmallPages, !isDisabled);
    this.#usesSmallPages = isDisabled;
  }

  get domains(): readonly PagingDomain[] {
    return this.#domains;
  }

  get #domains(): PagingDomain[] {
    sharedRead(this, 'domains');
    return this.#domainList;
  }

  /** Everything that is reserved, and what user space wants kept: to look at, not to hold on to. */
  get ranges(): { readonly reserved: readonly ReservedRange[]; readonly allowed: readonly Range[] } {
    return { reserved: [...this.#reserved], allowed: [...this.#allowed] };
  }

  get accesses(): readonly IoptAccess[] {
    return this.#accesses.filter((access) => access !== undefined);
  }

  get #accesses(): (IoptAccess | undefined)[] {
    sharedRead(this, 'accesses');
    return this.#accessList;
  }

  /** Frees the table: everything must be unmapped, every domain and access gone. */
  destroy(): void {
    this.#checkAlive();
    const isIdle = this.#domains.length === 0 && this.accesses.length === 0 && this.#unflushed.length === 0;
    invariant(isIdle, 'an io_pagetable is destroyed in use', 'objects');
    this.judgeHistory();
    this.areas.destroy();
    this.#isDestroyed = true;
  }

  /** Nothing is at work: what was watched so far is judged. @throws InvariantError */
  judgeHistory(): void {
    this.#check?.finish();
  }

  // --- ranges ---

  /** Ranges nobody reserved: what IOMMU_IOAS_IOVA_RANGES lists. Hold `iova_rwsem`. */
  *iovaRanges(): Generator<Range> {
    sharedRead(this, 'reserved');
    yield* this.#reserved.holes(0n, IOVA_MAX);
  }

  /** Replaces the list of allowed ranges; -EADDRINUSE if one is reserved already. */
  *set_allow_iova(allowed: IntervalList<Range>, sink: FailureSink = silentSink): Task<number> {
    yield* this.iovaRwsem.down_write();
    try {
      sharedRead(this, 'reserved');
      for (const range of allowed) {
        const hit = this.#reserved.firstOverlap(range.start, range.last);
        if (hit !== undefined) {
          return sink.fail(EADDRINUSE, { ...hit.detail, allowedStart: range.start, allowedLast: range.last });
        }
      }
      sharedWrite(this, 'allowed');
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
    sharedRead(this, 'allowed');
    const allowed = this.#allowed.firstOverlap(start, last);
    if (allowed !== undefined) {
      return sink.fail(EADDRINUSE, { ...detail, allowedStart: allowed.start, allowedLast: allowed.last });
    }
    if (this.#allocFails()) return -ENOMEM;
    sharedWrite(this, 'reserved', undefined, { start, last });
    this.#reserved.insert({ start, last, owner, detail });
    return 0;
  }

  /** Gives back everything an owner reserved. */
  *remove_reserved_iova(owner: object | undefined): Task<void> {
    yield* this.iovaRwsem.down_write();
    this.#unreserve(owner);
    this.iovaRwsem.up_write();
  }

  #unreserve(owner: object | undefined): void {
    sharedWrite(this, 'reserved');
    this.#reserved.removeIf((range) => range.owner === owner);
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
        this.#unreserve(device);
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
    this.#checkAlive();
    const areas: IoptArea[] = [];
    const watched: WatchedCall[] = iova === undefined ? [] : this.#beginMaps(slices, iova, prot);
    const end = (rc: number): void => {
      // A call that makes several areas and fails is told as one that might have been there for a while.
      for (const call of watched) this.#check?.endMap(call, rc < 0 && slices.length > 1 ? -ENOMEM : rc);
    };
    const start = yield* this.#takeIovas(slices, iova, prot, areas, sink, (made) => {
      if (iova === undefined) watched.push(...this.#beginMaps(slices, made, prot));
      if (watched.includes(undefined)) this.#check?.stop();
      for (const [i, area] of areas.entries()) area.watched = watched[i];
    });
    if (typeof start === 'number') {
      yield* this.#abortAreas(areas);
      end(start);
      return start;
    }
    yield 'iommufd:map-inserted';
    this.#checkAlive();

    yield* this.domainsRwsem.down_read();
    const rc = yield* this.#fillAreas(areas, slices);
    if (rc === 0) {
      yield 'iommufd:map-filled';
      const last = areas.at(-1)?.last;
      yield* this.iovaRwsem.down_write(start, last);
      for (const [i, area] of areas.entries()) {
        slices[i]?.pages.get();
        area.pages = slices[i]?.pages;
      }
      this.iovaRwsem.up_write(start, last);
    }
    this.domainsRwsem.up_read();
    if (rc < 0) {
      yield* this.#abortAreas(areas);
      end(rc);
      return rc;
    }
    end(0);
    return start;
  }

  #beginMaps(slices: readonly PagesSlice[], start: bigint, prot: number): WatchedCall[] {
    let iova = start;
    return slices.map(({ lengthBytes }) => {
      const call = this.#check?.beginMap(iova, lengthBytes, prot);
      iova += lengthBytes;
      return call;
    });
  }

  /** Takes the IOVAs for all slices; the IOVA or -errno (then `areas` holds what is to be taken back). */
  *#takeIovas(
    slices: readonly PagesSlice[],
    wanted: bigint | undefined,
    prot: number,
    areas: IoptArea[],
    sink: FailureSink,
    onTaken: (start: bigint) => void,
  ): Task<bigint | number> {
    const length = slices.reduce((sum, slice) => sum + slice.lengthBytes, 0n);
    if (wanted !== undefined) {
      const last = length === 0n ? wanted : wanted + length - 1n;
      yield* this.iovaRwsem.down_write(wanted, last);
      const start = this.#insertAreas(slices, length, wanted, prot, areas, sink);
      if (typeof start === 'bigint') onTaken(start);
      this.iovaRwsem.up_write(wanted, last);
      return start;
    }
    let start: bigint | number = -ENOSPC;
    for (const reach of this.iovaRwsem.reaches ?? [IOVA_MAX]) {
      yield* this.iovaRwsem.down_write(0n, reach);
      start = this.#insertAreas(slices, length, undefined, prot, areas, sink, reach);
      if (typeof start === 'bigint') onTaken(start);
      this.iovaRwsem.up_write(0n, reach);
      if (start !== -ENOSPC) break;
    }
    return start;
  }

  #insertAreas(
    slices: readonly PagesSlice[],
    length: bigint,
    wanted: bigint | undefined,
    prot: number,
    areas: IoptArea[],
    sink: FailureSink,
    reach = IOVA_MAX,
  ): bigint | number {
    const first = slices[0];
    invariant(first !== undefined, 'io_pagetable: nothing to map');
    if (length % this.#iovaAlignment !== 0n || length === 0n) {
      return sink.fail(EINVAL, { why: 'length', alignment: this.#iovaAlignment });
    }
    const start = wanted ?? this.#allocIova(first.pages.source.startByte + first.startByte, length, reach, sink);
    if (typeof start === 'number') return start;
    // Only a kernel that is built with the selftest looks at what it has found itself.
    const isTrusted = wanted === undefined && this.#instruments.fires('iommufd.align-wraps');
    const rc = isTrusted ? 0 : this.#checkIova(start, length, sink);
    if (rc < 0) return rc;
    let iova = start;
    for (const slice of slices) {
      if ((prot & IOMMU_WRITE) !== 0 && !slice.pages.writable) return sink.fail(EPERM, { why: 'read-only memory' });
      if ((slice.startByte % PAGE_SIZE) % this.#iovaAlignment !== 0n) {
        return sink.fail(EINVAL, { why: 'page offset', alignment: this.#iovaAlignment });
      }
      if (this.#allocFails()) return -ENOMEM;
      this.#checkUnreserved(iova, iova + slice.lengthBytes - 1n);
      const area = this.areas.make(iova, slice.lengthBytes, slice.startByte, prot, slice.pages);
      if (area === undefined) return -ENOMEM;
      const inserted = this.areas.insert(area);
      if (inserted < 0) return inserted;
      areas.push(area);
      iova += slice.lengthBytes;
    }
    return start;
  }

  #checkUnreserved(start: bigint, last: bigint): void {
    const reserved = this.#reserved.firstOverlap(start, last);
    const where = `0x${start.toString(16)}-0x${last.toString(16)}`;
    invariant(reserved === undefined, () => `${where} is mapped or allowed, and reserved`, 'INV-7');
    this.#instruments.held('INV-7');
  }

  #checkIova(iova: bigint, length: bigint, sink: FailureSink): number {
    if (iova % this.#iovaAlignment !== 0n) return sink.fail(EINVAL, { why: 'iova', alignment: this.#iovaAlignment });
    const last = iova + length - 1n;
    if (last > IOVA_MAX) return -EOVERFLOW;
    sharedRead(this, 'reserved');
    const reserved = this.#reserved.firstOverlap(iova, last);
    if (reserved !== undefined) return sink.fail(EINVAL, { ...reserved.detail, areaStart: iova, areaLast: last });
    const area = this.areas.firstOverlap(iova, last);
    if (area !== undefined) return sink.fail(EEXIST, areaDetail(area));
    return 0;
  }

  /** A free IOVA up to `reach` with the alignment the source address has, so that large pages fit; never 0. */
  #allocIova(sourceByte: bigint, length: bigint, reach: bigint, sink: FailureSink): bigint | number {
    if (length >= IOVA_MAX / 2n) return -EOVERFLOW;
    const lowestBit = sourceByte & -sourceByte;
    let alignment = roundUpToPowerOfTwo(length);
    if (sourceByte !== 0n && lowestBit < alignment) alignment = lowestBit;
    if (alignment > MAX_AUTO_ALIGNMENT) alignment = MAX_AUTO_ALIGNMENT;
    if (alignment < this.#iovaAlignment) return sink.fail(EINVAL, { why: 'user_va', alignment: this.#iovaAlignment });
    const offset = sourceByte % PAGE_SIZE;
    sharedRead(this, 'reserved');
    sharedRead(this, 'allowed');
    const align = this.#instruments.fires('iommufd.align-wraps') ? alignUpWrapping : alignUp;
    const everything: Range = { start: PAGE_SIZE, last: reach < IOVA_MAX ? reach : IOVA_MAX - PAGE_SIZE };
    const spans = this.#allowed.size === 0 ? [everything] : this.#allowed.usedSpans(everything.start, everything.last);
    for (const span of spans) {
      const start = fitIn(span, length, alignment, offset, align);
      if (start === undefined) continue;
      for (const hole of this.#freeSpans(start, span.last)) {
        const iova = fitIn(hole, length, alignment, offset, align);
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
    for (const area of areas) {
      const { iova, last } = area;
      yield* this.iovaRwsem.down_write(iova, last);
      this.areas.remove(area);
      this.iovaRwsem.up_write(iova, last);
    }
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
    const wasRevoked = pages.isRevoked;
    yield* pages.mutex.lock();
    const isRevoked = this.#instruments.fires('iommufd.dmabuf-revoke-unlocked') ? wasRevoked : pages.isRevoked;
    try {
      let rc = yield* pages.use(area.firstPage, area.lastPage);
      if (rc < 0) return rc;
      const runs = pages.runs(area.firstPage, area.lastPage);
      this.#tellFrames(area, pages, runs);
      const done: PagingDomain[] = [];
      for (const domain of this.#domains) {
        rc = isRevoked ? 0 : yield* this.#mapArea(domain, area, pages, runs);
        if (rc < 0) break;
        done.push(domain);
      }
      yield 'iommufd:area-mapped';
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

  /** Whoever watches learns which frames the area shows. */
  #tellFrames(area: IoptArea, pages: IoptPages, runs: readonly PinnedRun[]): void {
    if (area.watched === undefined || area.watched.extents.length > 0) return;
    // A dma-buf can be taken away at any time.
    if (pages.source.isDmaBuf) this.#check?.stop();
    let iova = Number(area.iova);
    const offset = Number(area.startByte % PAGE_SIZE);
    if (offset !== 0) this.#check?.stop();
    for (const { pfn, pages: count } of runs) {
      this.#check?.shows(area.watched, iova, pfn * PAGE_BYTES, count * PAGE_BYTES);
      iova += count * PAGE_BYTES;
    }
  }

  /** Unmaps an area from every domain, then unpins it. Hold `domains_rwsem`. */
  *#unfillArea(area: IoptArea, pages: IoptPages): Task<void> {
    yield* pages.mutex.lock();
    if (area.isFilled) {
      for (const domain of this.#domains) yield* this.#unmapArea(domain, area, pages);
      yield 'iommufd:unmap-invalidated';
      area.isFilled = false;
      pages.release(area.firstPage, area.lastPage);
    }
    pages.mutex.unlock();
  }

  /** Maps an area in a domain. Hold the pages' mutex. */
  *#mapArea(domain: PagingDomain, area: IoptArea, pages: IoptPages, runs: readonly PinnedRun[]): Task<number> {
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

  *#unmapArea(
    domain: PagingDomain,
    area: IoptArea,
    pages: IoptPages,
    via: Pick<PagingDomain, 'unmap'> = domain,
  ): Task<void> {
    if (pages.isRevoked) return;
    pages.untrack(domain, area);
    const length = Number(area.lengthBytes);
    const unmapped = yield* via.unmap(Number(area.iova), length);
    domain.onLeave?.(area.iova, area.lengthBytes);
    invariant(
      unmapped === length,
      () => `io_pagetable: ${unmapped} of ${length} bytes were mapped in a domain`,
      'mapped',
    );
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
    const runs = pages.runs(area.firstPage, area.lastPage);
    this.#tellFrames(area, pages, runs);
    let rc = pages.isRevoked ? 0 : yield* this.#mapArea(domain, area, pages, runs);
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
    yield* this.iovaRwsem.down_read(iova, last);
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
      this.iovaRwsem.up_read(iova, last);
    }
  }

  // --- dirty state ---

  /**
   * Reports what was written in a range and, unless `noClear`, makes it clean (`iopt_read_and_clear_dirty_data`): 0, -EOPNOTSUPP, -ENOMEM. As
   * in Linux, the walk stops at the first hole and the caller is not told (domain.md A1.14). IOTLBs are synced once, after the walk, for
   * what lies between the first and the last that was dirty.
   */
  *read_and_clear_dirty(
    domain: PagingDomain,
    iova: bigint,
    last: bigint,
    noClear: boolean,
    record: DirtyRecorder,
  ): Task<number> {
    yield* this.iovaRwsem.down_read(iova, last);
    try {
      const ops = domain.dirtyOps;
      if (ops === undefined) return -EOPNOTSUPP;
      if (this.#allocFails()) return -ENOMEM;
      const gather = new DirtyGather();
      const note: DirtyRecorder = (start, lengthBytes) => {
        record(start, lengthBytes);
        gather.add(start, lengthBytes);
      };
      let at = iova;
      for (const area of this.areas.overlapping(iova, last)) {
        if (area.iova > at || area.pages === undefined) break;
        const end = area.last < last ? area.last : last;
        if ((yield* readDirty(ops, at, end, noClear, note)) < 0) break;
        at = end + 1n;
      }
      if (!noClear) yield* domain.iotlb_sync(gather.start, gather.lengthBytes);
      return 0;
    } finally {
      this.iovaRwsem.up_read(iova, last);
    }
  }

  /**
   * Switches the recording of writes on or off (`iopt_set_dirty_tracking`): 0, -EOPNOTSUPP, what the driver says. Before it is on everything is
   * made clean, so that nothing from before is reported; where that fails it stays off.
   */
  *set_dirty_tracking(domain: PagingDomain, enable: boolean): Task<number> {
    const ops = domain.dirtyOps;
    if (ops === undefined) return -EOPNOTSUPP;
    yield* this.iovaRwsem.down_read();
    try {
      const rc = enable ? yield* this.#clearDirty(domain, ops) : 0;
      return rc < 0 ? rc : yield* ops.set_dirty_tracking(enable);
    } finally {
      this.iovaRwsem.up_read();
    }
  }

  *#clearDirty(domain: PagingDomain, ops: DirtyOps): Task<number> {
    const gather = new DirtyGather();
    let rc = 0;
    for (const area of this.areas.overlapping()) {
      if (area.pages === undefined) continue;
      rc = yield* readDirty(ops, area.iova, area.last, false, (...run) => gather.add(...run));
      if (rc < 0) break;
    }
    yield* domain.iotlb_sync(gather.start, gather.lengthBytes);
    return rc;
  }

  // --- unmap ---

  /**
   * Unmaps every area in start..last, lowest first. Stops with -ENOENT at one that the range covers only in part, -EBUSY at
   * one that somebody is mapping or unmapping or has locked, -EDEADLK when accesses do not let go: those before it are gone.
   */
  *unmap_iova_range(start: bigint, last: bigint, sink: FailureSink = silentSink): Task<Unmapped> {
    this.#checkAlive();
    let unmappedBytes = 0n;
    let from = start;
    let tries = 0;
    let asked: IoptArea | undefined;
    const watched = this.#check?.beginUnmap(start, last);
    yield* this.domainsRwsem.down_read();
    yield* this.iovaRwsem.down_write(start, last);
    for (;;) {
      const area = from > last ? undefined : this.areas.firstOverlap(from, last);
      const rc = area === undefined ? 0 : this.#checkUnmap(area, from, last, sink);
      if (area === undefined || rc < 0) {
        this.iovaRwsem.up_write(start, last);
        this.domainsRwsem.up_read();
        this.#check?.endUnmap(watched, rc, unmappedBytes, rc === -EBUSY && area?.pages !== undefined);
        return { rc, unmappedBytes };
      }
      if (area.numAccesses === 0) {
        const isOfRange = area.iova >= start && area.last <= last;
        invariant(isOfRange, () => `an unmap takes 0x${area.iova.toString(16)}, which it was not given`, 'ranges');
        this.#instruments.held('ranges');
        this.#check?.takes(watched, area.iova, area.lengthBytes);
        yield* this.#unmapOne(area, start, last);
        unmappedBytes += area.lengthBytes;
        from = area.last + 1n;
        if (this.#instruments.fires('iommufd.unmap-wraps')) from = BigInt.asUintN(64, from);
      } else {
        tries = area === asked ? tries : 0;
        asked = area;
        // What others map below it meanwhile is not this call's.
        from = area.iova;
        yield* this.#evictAccesses(area, start, last);
        if (++tries > MAX_UNMAP_TRIES) {
          this.#check?.endUnmap(watched, -EDEADLK, unmappedBytes, true);
          return { rc: -EDEADLK, unmappedBytes };
        }
        yield* this.domainsRwsem.down_read();
      }
      yield* this.iovaRwsem.down_write(start, last);
    }
  }

  #checkUnmap(area: IoptArea, start: bigint, last: bigint, sink: FailureSink): number {
    if (area.pages === undefined || area.numLocks > 0) return sink.fail(EBUSY, areaDetail(area));
    if (area.iova < start || area.last > last) return sink.fail(ENOENT, { ...areaDetail(area), why: 'split' });
    return 0;
  }

  /** Asks every access to let go of an area. Drops both semaphores, which the caller holds. */
  *#evictAccesses(area: IoptArea, start: bigint, last: bigint): Task<void> {
    area.preventAccess = true;
    this.iovaRwsem.up_write(start, last);
    this.domainsRwsem.up_read();
    // Looked up anew each time: one that has gone or moved while another was asked is not asked (iommufd_access_notify_unmap).
    for (let index = 0; index < this.#accesses.length; index++) {
      const access = this.#accesses[index];
      if (access !== undefined) yield* access.notify_unmap(area.iova, area.lengthBytes);
    }
  }

  /** Unmaps an area that may go. The caller holds `domains_rwsem` for reading and `iova_rwsem`, which is dropped. */
  *#unmapOne(area: IoptArea, start: bigint, last: bigint): Task<void> {
    const pages = area.pages;
    invariant(pages !== undefined, 'io_pagetable: unmap of an area without pages');
    area.pages = undefined;
    for (const { onLeave } of this.#domainList) onLeave?.(area.iova, area.lengthBytes);
    this.iovaRwsem.up_write(start, last);
    yield 'iommufd:unmap-hidden';
    if (this.#flushBatch > 0 && area.isFilled) {
      yield* this.#queueUnmapped(area, pages);
      return;
    }
    yield* this.#unfillArea(area, pages);
    yield 'iommufd:unmap-unfilled';
    yield* this.#abortAreas([area]);
    yield* pages.put();
    yield 'iommufd:unmap-freed';
  }

  /** Takes an area out of the tables and leaves the rest to a flush. Hold `domains_rwsem`. */
  *#queueUnmapped(area: IoptArea, pages: IoptPages): Task<void> {
    yield* pages.mutex.lock();
    for (const domain of this.#domains) yield* this.#unmapArea(domain, area, pages, flushOpsOf(domain));
    pages.mutex.unlock();
    this.#unflushed.push({ area, pages });
    yield 'iommufd:unmap-queued';
    if (this.#unflushed.length >= this.#flushBatch) yield* this.#flush();
  }

  /** Invalidates everything and lets go of what waited for that: its pins, its IOVAs. Hold `domains_rwsem`. */
  *#flush(): Task<void> {
    const flushed = this.#unflushed;
    if (flushed.length === 0) return;
    this.#unflushed = [];
    for (const domain of this.#domains) yield* flushOpsOf(domain).flush_iotlb_all();
    yield 'iommufd:flushed';
    for (const { area, pages } of flushed) {
      yield* pages.mutex.lock();
      area.isFilled = false;
      pages.release(area.firstPage, area.lastPage);
      pages.mutex.unlock();
      yield* this.#abortAreas([area]);
      yield* pages.put();
    }
  }

  /** Ends the wait of what this object unmapped with a flush queue. */
  *flush_unmapped(): Task<void> {
    yield* this.domainsRwsem.down_read();
    yield* this.#flush();
    this.domainsRwsem.up_read();
  }

  // --- domains, accesses, options ---

  /** Adds a domain and maps every area in it; -errno with nothing changed (domain.md A1.36). */
  *add_domain(domain: PagingDomain, sink: FailureSink = silentSink): Task<number> {
    this.#checkAlive();
    yield* this.domainsRwsem.down_write();
    yield* this.#flush();
    yield* this.iovaRwsem.down_write();
    const rc = yield* this.#addDomainLocked(domain, sink);
    if (rc < 0) this.#unreserve(domain);
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
    sharedWrite(this, 'domains');
    this.#domains.push(domain);
    sharedWrite(domain, 'check');
    domain.check = this.#check;
    return 0;
  }

  /** Takes a domain out, unmapping everything from it. */
  *remove_domain(domain: PagingDomain): Task<void> {
    yield* this.domainsRwsem.down_write();
    yield* this.#flush();
    yield* this.iovaRwsem.down_write();
    const index = this.#domains.indexOf(domain);
    invariant(index >= 0, 'io_pagetable: removed domain is not there');
    sharedWrite(domain, 'check');
    domain.check = undefined;
    sharedWrite(this, 'domains');
    const tail = this.#domains.pop();
    if (tail !== undefined && tail !== domain) this.#domains[index] = tail;
    for (const area of this.areas.overlapping()) yield* this.#unfillDomainArea(domain, area);
    this.#unreserve(domain);
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
      ...this.accesses.map((access) => access.iova_alignment),
    ];
    for (const want of wanted) if (want > alignment) alignment = want;
    if (alignment > this.#iovaAlignment) {
      const rc = this.#checkAlignment(alignment, sink);
      if (rc < 0) return rc;
    }
    this.#iovaAlignment = alignment;
    return 0;
  }

  /** Adds an access and gives it its number; -EADDRINUSE when an existing mapping does not have its alignment, -ENOMEM. */
  *add_access(access: IoptAccess, sink: FailureSink = silentSink): Task<number> {
    return yield* this.#withDomains(() => {
      if (this.#allocFails()) return -ENOMEM;
      sharedWrite(this, 'accesses');
      const free = this.#accesses.indexOf(undefined);
      const number = free < 0 ? this.#accesses.length : free;
      this.#accesses[number] = access;
      const rc = this.#recalculateAlignment(sink);
      if (rc === 0 || this.#instruments.fires('iommufd.access-id-overwritten')) access.iopt_access_list_id = number;
      if (rc < 0) this.#accesses[number] = undefined;
      return rc;
    });
  }

  /** Removes an access by the number that it was given here. */
  *remove_access(access: IoptAccess, number: number): Task<void> {
    yield* this.#withDomains(() => {
      sharedWrite(this, 'accesses');
      const removed = this.#accesses[number];
      this.#accesses[number] = undefined;
      invariant(
        removed === access,
        () => `another access than the one that leaves is number ${number} of its list`,
        'INV-16',
      );
      this.#instruments.held('INV-16');
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
      if (area !== undefined) rc = yield* this.#split(area, iova);
      if (rc < 0) break;
    }
    this.iovaRwsem.up_write();
    return rc;
  }

  /** `iopt_area_split`: the area ends at `iova`, another has the rest. */
  *#split(area: IoptArea, iova: bigint): Task<number> {
    const { pages } = area;
    const next = iova + 1n;
    if (iova === area.iova || iova === area.last) return 0;
    if (pages === undefined || area.preventAccess) return -EBUSY;
    if (pages.source.isDmaBuf) return -EOPNOTSUPP;
    const alignment = this.#iovaAlignment;
    if (next % alignment !== 0n || (area.byteAt(next) % PAGE_SIZE) % alignment !== 0n) return -EINVAL;
    if (this.#allocFails()) return -ENOMEM;
    yield* pages.mutex.lock();
    const rc = this.#splitLocked(area, pages, iova);
    pages.mutex.unlock();
    return rc;
  }

  #splitLocked(area: IoptArea, pages: IoptPages, iova: bigint): number {
    if (area.numAccesses > 0 || (area.isFilled && !this.#disableLargePages)) return -EINVAL;
    this.#check?.stop();
    const { isFilled } = area;
    const whole: Range = { start: area.iova, last: area.last };
    const insert = (start: bigint, last: bigint): IoptArea | undefined => {
      const part = this.areas.make(start, last - start + 1n, area.byteAt(start), area.prot, pages);
      if (part === undefined) return undefined;
      part.pages = pages;
      part.isFilled = isFilled;
      return this.areas.insert(part) === 0 ? part : undefined;
    };
    this.areas.remove(area);
    const lower = insert(whole.start, iova);
    const upper = lower === undefined ? undefined : insert(iova + 1n, whole.last);
    if (lower !== undefined && upper !== undefined) {
      pages.get();
      pages.replaceArea(area, [lower, upper]);
      return 0;
    }
    if (lower !== undefined) this.areas.remove(lower);
    const again = insert(whole.start, whole.last);
    invariant(again !== undefined, 'io_pagetable: an area that was taken out has its room');
    pages.replaceArea(area, [again]);
    return -ENOMEM;
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
    yield* this.#flush();
    yield* this.iovaRwsem.down_write();
    const rc = change();
    this.iovaRwsem.up_write();
    this.domainsRwsem.up_write();
    return rc;
  }
}
