/**
 * Accesses: use of an address space by somebody who is no device (`struct iommufd_access`), e.g. an emulated or mediated one.
 *
 * An access pins pages by IOVA and works on them itself. It has no domain, so nothing is reserved for it. When a mapping it
 * has pinned is unmapped, its `unmap` operation is called and must unpin before it returns.
 *
 * Lock order: `access.ioasLock` -> `iova_rwsem` -> `pages.mutex`; the `unmap` operation runs without any of them.
 * Invariant: every pin_pages is undone by one unpin_pages with the same range.
 *
 * Source: Linux drivers/iommu/iommufd/device.c (iommufd_access_*), pages.c (iopt_area_add_access); domain.md A1.38, A6.4.
 */
import { Mutex, type Holdable } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { EBUSY, EINVAL, ENOENT, EOVERFLOW, EPERM } from '../../uapi/errno.js';
import { IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.js';
import type { PinnedRun } from '../mm/mm.js';
import type { Process } from '../mm/process.js';
import type { IoptArea } from './area.js';
import { silentSink, type FailureSink } from './failure.js';
import { dereference } from './instruments.js';
import { IOVA_MAX, type IoptAccess } from './io-pagetable.js';
import { getIoas, type Ioas } from './ioas.js';
import type { IommufdContext, IommufdFile } from './main.js';
import { IommufdObject } from './object.js';
import { appendRuns, PAGE_SIZE } from './pages.js';

/** What the owner of an access does (`struct iommufd_access_ops`). */
export interface AccessOps {
  /** Whether it will pin pages: mappings must then be page aligned. */
  readonly needsPinPages: boolean;
  /** Lets go of every pin that overlaps the range. */
  unmap(iova: bigint, lengthBytes: bigint): Task<void>;
}

/** One access. Made by {@link iommufd_access_create}. */
export class IommufdAccess extends IommufdObject implements IoptAccess {
  override readonly type = 'access';
  readonly ictx: IommufdContext;
  readonly iova_alignment: bigint;
  readonly ops: AccessOps;
  readonly ioasLock = new Mutex('iommufd:access_ioas_lock');
  iopt_access_list_id = 0;
  isInternal = false;
  #ioas: Ioas | undefined;
  #ioasUnpin: Ioas | undefined;

  constructor(ictx: IommufdContext, ops: AccessOps) {
    super();
    this.ictx = ictx;
    this.ops = ops;
    this.iova_alignment = ops.needsPinPages ? PAGE_SIZE : 1n;
  }

  /** Where new pins go; undefined while detached or moving. */
  get ioas(): Ioas | undefined {
    sharedRead(this, 'ioas', this.#ioas);
    return this.#ioas;
  }

  set ioas(value: Ioas | undefined) {
    sharedWrite(this, 'ioas', this.#ioas, value);
    this.#ioas = value;
  }

  /** Where pins are given back. */
  get ioasUnpin(): Ioas | undefined {
    sharedRead(this, 'ioasUnpin', this.#ioasUnpin);
    return this.#ioasUnpin;
  }

  set ioasUnpin(value: Ioas | undefined) {
    sharedWrite(this, 'ioasUnpin', this.#ioasUnpin, value);
    this.#ioasUnpin = value;
  }

  override get locks(): readonly Holdable[] {
    return [this.ioasLock];
  }

  *notify_unmap(iova: bigint, lengthBytes: bigint): Task<void> {
    if (!this.ictx.objects.tryHold(this)) return;
    yield 'iommufd:access-notified';
    yield* this.ops.unmap(iova, lengthBytes);
    this.ictx.objects.put(this);
  }

  override *destroy(): Task<void> {
    yield* this.ioasLock.lock();
    if (this.ioas !== undefined) yield* changeIoas(this, undefined, silentSink);
    this.ioasLock.unlock();
    if (!this.isInternal) yield* this.ictx.put();
  }
}

/** An access of its own number that uses no address space yet; -ENOMEM. */
export function iommufd_access_create({ ictx }: Pick<IommufdFile, 'ictx'>, ops: AccessOps): IommufdAccess | number {
  const access = new IommufdAccess(ictx, ops);
  const allocated = ictx.objects.alloc(access);
  if (allocated < 0) return allocated;
  access.refcountInc();
  ictx.get();
  ictx.objects.finalize(access);
  return access;
}

/** An access of the kernel's own (`iommufd_access_create_internal`): what it pins cannot be unmapped at all. */
export function iommufd_access_create_internal(ictx: IommufdContext): IommufdAccess | number {
  const access = new IommufdAccess(ictx, { needsPinPages: true, *unmap() {} });
  access.isInternal = true;
  const allocated = ictx.objects.alloc(access);
  if (allocated < 0) return allocated;
  access.refcountInc();
  ictx.objects.finalize(access);
  return access;
}

/** Its address space. */
export function* iommufd_access_attach_internal(access: IommufdAccess, ioas: Ioas): Task<number> {
  yield* access.ioasLock.lock();
  const rc = yield* changeIoas(access, ioas, silentSink);
  access.ioasLock.unlock();
  return rc;
}

/** Ends an access; its owner must have stopped using it. */
export function* iommufd_access_destroy(access: IommufdAccess): Task<void> {
  yield* access.ictx.objects.destroyUser(access);
}

/** Moves an access from its address space (if any) to another (if any). Hold `ioasLock`, which is dropped meanwhile. */
function* changeIoas(access: IommufdAccess, next: Ioas | undefined, sink: FailureSink): Task<number> {
  const current = access.ioas;
  if (current === next) return 0;
  const listId = access.iopt_access_list_id;
  access.ioas = undefined;
  if (next !== undefined) {
    const rc = yield* next.iopt.add_access(access, sink);
    if (rc < 0) {
      access.ioas = current;
      return rc;
    }
    next.refcountInc();
  }
  if (current !== undefined) {
    access.ioasLock.unlock();
    yield* access.ops.unmap(0n, IOVA_MAX);
    yield* access.ioasLock.lock();
    yield* current.iopt.remove_access(access, listId);
    current.refcountDec();
  }
  access.ioas = next;
  access.ioasUnpin = next;
  return 0;
}

function* changeIoasId(access: IommufdAccess, ioasId: number, sink: FailureSink): Task<number> {
  const ioas = getIoas(access.ictx, ioasId);
  if (ioas === undefined) return -ENOENT;
  const rc = yield* changeIoas(access, ioas, sink);
  access.ictx.objects.put(ioas);
  return rc;
}

/** First address space of an access: 0, -ENOENT, -EINVAL when it has one, -EADDRINUSE when mappings are not aligned. */
export function* iommufd_access_attach(
  access: IommufdAccess,
  ioasId: number,
  sink: FailureSink = silentSink,
): Task<number> {
  yield* access.ioasLock.lock();
  const rc = access.ioas === undefined ? yield* changeIoasId(access, ioasId, sink) : -EINVAL;
  access.ioasLock.unlock();
  return rc;
}

/** Another address space for an access that has one; on failure it keeps the old. 0, -ENOENT, -EADDRINUSE. */
export function* iommufd_access_replace(
  access: IommufdAccess,
  ioasId: number,
  sink: FailureSink = silentSink,
): Task<number> {
  yield* access.ioasLock.lock();
  const rc = access.ioas === undefined ? -ENOENT : yield* changeIoasId(access, ioasId, sink);
  access.ioasLock.unlock();
  return rc;
}

/** Whether the part of an area that an access wants begins and ends at pages of memory. */
function isPageAligned(area: IoptArea, from: bigint, isLastPart: boolean): boolean {
  if (area.byteAt(from) % PAGE_SIZE !== 0n) return false;
  return isLastPart || area.byteAt(area.last) % PAGE_SIZE === PAGE_SIZE - 1n;
}

interface PinnedPart {
  readonly area: IoptArea;
  readonly first: number;
  readonly last: number;
}

function* unpinParts(parts: readonly PinnedPart[], isInternal: boolean): Task<void> {
  for (const { area, first, last } of parts) {
    const { pages } = area;
    invariant(pages !== undefined, 'an access has pages pinned of an area that has none', 'INV-3');
    yield* pages.mutex.lock();
    area.numAccesses--;
    if (isInternal) area.numLocks--;
    invariant(area.numAccesses >= 0 && area.numLocks >= 0, 'an area is unpinned more often than pinned', 'INV-3');
    pages.release(first, last, 'access');
    pages.mutex.unlock();
  }
}

/** Pins one part: 0, -EINVAL, -EPERM, -EFAULT, -ENOMEM. */
function* pinPart(access: IommufdAccess, part: PinnedPart, write: boolean, runs: PinnedRun[]): Task<number> {
  const { area } = part;
  const { pages } = area;
  if (pages === undefined) return -ENOENT;
  if ((area.prot & (write ? IOMMU_WRITE : IOMMU_READ)) === 0 || (write && !pages.writable)) return -EPERM;
  if (pages.source.isDmaBuf) return -EINVAL;
  yield* pages.mutex.lock();
  let rc = yield* pages.use(part.first, part.last);
  if (rc === 0) {
    rc = pages.charge();
    if (rc < 0) pages.release(part.first, part.last, 'access');
  }
  if (rc === 0) {
    appendRuns(runs, pages.runs(part.first, part.last));
    area.numAccesses++;
    if (access.isInternal) area.numLocks++;
  }
  pages.mutex.unlock();
  return rc;
}

interface Part {
  readonly part: PinnedPart;
  readonly from: bigint;
  readonly isLast: boolean;
}

/** The parts of a range up to its end or to the first hole. */
function partsOf(
  ioas: Ioas,
  iova: bigint,
  last: bigint,
): { readonly parts: readonly Part[]; readonly isWhole: boolean } {
  const parts: Part[] = [];
  let at = iova;
  for (const area of ioas.iopt.areas.overlapping(iova, last)) {
    if (area.iova > at || area.pages === undefined) break;
    const end = area.last < last ? area.last : last;
    const part = { area, first: Number(area.byteAt(at) / PAGE_SIZE), last: Number(area.byteAt(end) / PAGE_SIZE) };
    parts.push({ part, from: at, isLast: end === last });
    at = end + 1n;
  }
  return { parts, isWhole: at > last };
}

/** Takes the lock of the access and its address space's, for reading: undefined, and none taken, when it has none. */
function* lockAreas(access: IommufdAccess): Task<IommufdAccess['ioas']> {
  yield* access.ioasLock.lock();
  const { ioas } = access;
  if (ioas === undefined) access.ioasLock.unlock();
  else yield* ioas.iopt.iovaRwsem.down_read();
  return ioas;
}

function unlockAreas(access: IommufdAccess, ioas: NonNullable<IommufdAccess['ioas']>): void {
  ioas.iopt.iovaRwsem.up_read();
  access.ioasLock.unlock();
}

/**
 * Pins the pages behind a range for the access: physical runs in order, or -errno with nothing pinned. ENOENT no address
 * space or a hole, EINVAL not page aligned or being unmapped, EPERM not mapped for that, EOVERFLOW.
 */
export function* iommufd_access_pin_pages(
  access: IommufdAccess,
  iova: bigint,
  length: bigint,
  write: boolean,
): Task<PinnedRun[] | number> {
  if (length === 0n || !access.ops.needsPinPages) return -EINVAL;
  const last = iova + length - 1n;
  if (last > IOVA_MAX) return -EOVERFLOW;
  const ioas = yield* lockAreas(access);
  if (ioas === undefined) return -ENOENT;
  const runs: PinnedRun[] = [];
  const pinned: PinnedPart[] = [];
  const { parts, isWhole } = partsOf(ioas, iova, last);
  let rc = 0;
  for (const { part, from, isLast } of parts) {
    if (part.area.preventAccess || !isPageAligned(part.area, from, isLast)) rc = -EINVAL;
    else rc = yield* pinPart(access, part, write, runs);
    if (rc < 0) break;
    pinned.push(part);
  }
  if (rc === 0 && !isWhole) rc = -ENOENT;
  if (rc < 0) yield* unpinParts(pinned, access.isInternal);
  unlockAreas(access, ioas);
  return rc < 0 ? rc : runs;
}

/** Undoes {@link iommufd_access_pin_pages} with the same range. */
export function* iommufd_access_unpin_pages(access: IommufdAccess, iova: bigint, length: bigint): Task<void> {
  yield* access.ioasLock.lock();
  const ioas = access.ioasUnpin;
  invariant(ioas !== undefined, 'iommufd: unpin by an access without an address space');
  yield* ioas.iopt.iovaRwsem.down_read();
  const { parts, isWhole } = partsOf(ioas, iova, iova + length - 1n);
  invariant(isWhole, 'iommufd: unpin of a range that is not mapped');
  yield* unpinParts(
    parts.map(({ part }) => part),
    access.isInternal,
  );
  unlockAreas(access, ioas);
}

/** How {@link iommufd_access_rw} copies. */
export interface AccessRwFlags {
  readonly write: boolean;
  /** Not through the caller's address space, even where that could be. */
  readonly isSlow: boolean;
}

/**
 * Copies `data` to a range, or from it into `data`, on behalf of a process: 0, or -errno with the bytes before the fault
 * copied. EINVAL nothing to copy, ENOENT no address space or a hole, EBUSY being unmapped, EPERM, EFAULT, EOVERFLOW.
 */
export function* iommufd_access_rw(
  access: IommufdAccess,
  process: Process,
  iova: bigint,
  data: Uint8Array,
  { write, isSlow }: AccessRwFlags,
): Task<number> {
  if (data.length === 0) return -EINVAL;
  const last = iova + BigInt(data.length) - 1n;
  if (last > IOVA_MAX) return -EOVERFLOW;
  const ioas = yield* lockAreas(access);
  if (ioas === undefined) return -ENOENT;
  let rc = 0;
  let at = iova;
  for (const area of ioas.iopt.areas.overlapping(iova, last)) {
    if (area.iova > at || area.pages === undefined) break;
    const end = area.last < last ? area.last : last;
    const piece = data.subarray(Number(at - iova), Number(end - iova) + 1);
    if (area.preventAccess) rc = -EBUSY;
    else if ((area.prot & (write ? IOMMU_WRITE : IOMMU_READ)) === 0) rc = -EPERM;
    else rc = yield* area.pages.rw(process, area.byteAt(at), piece, write, isSlow);
    if (rc < 0) break;
    at = end + 1n;
  }
  if (rc === 0 && at <= last) rc = -ENOENT;
  unlockAreas(access, ioas);
  return rc;
}

/** The IOVA a fuzzer means in the address space of an access, 0 where it has none ({@link IoPageTable.syzIova}). */
export function* iommufd_access_syz_iova(access: IommufdAccess, wanted: bigint): Task<bigint> {
  if (access.ictx.instruments.fires('iommufd.access-ioas-unlocked'))
    return dereference(access.ioas, 'access->ioas').iopt.syzIova(wanted);
  yield* access.ioasLock.lock();
  const iova = access.ioas?.iopt.syzIova(wanted) ?? 0n;
  access.ioasLock.unlock();
  return iova;
}
