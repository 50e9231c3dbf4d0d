/**
 * Hardware page tables: a domain that shows an address space to devices; HWPT_ALLOC and the dirty-tracking ioctls.
 *
 * An *automatic* page table is made by attaching a device to an address space and goes with the last device; one made by
 * IOMMU_HWPT_ALLOC lives until it is destroyed. Either is filled with all present mappings before anybody can see it.
 *
 * Source: Linux drivers/iommu/iommufd/hw_pagetable.c, io_pagetable.c (dirty tracking); domain.md A1.11 to A1.14, A6.13.
 */
import type { Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { E2BIG, EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW } from '../../uapi/errno.js';
import {
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_HWPT_DATA_NONE,
  IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
  IOMMU_HWPT_FAULT_ID_VALID,
  IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
  type iommu_hwpt_alloc,
  type iommu_hwpt_get_dirty_bitmap,
  type iommu_hwpt_invalidate,
  type iommu_hwpt_set_dirty_tracking,
} from '../../uapi/iommufd.js';
import type { SyscallContext } from '../files.js';
import type {
  IommuDomain,
  NestedDomain,
  PagingDomain,
  UserArray,
  UserArrayOutcome,
  UserDomainData,
} from '../iommu/domain.js';
import { getDevice, type IommufdDevice } from './device.js';
import { DirtyBitmap } from './dirty-bitmap.js';
import { isFault, type IommufdFault } from './eventq.js';
import type { FailureSink } from './failure.js';
import { IOVA_MAX } from './io-pagetable.js';
import { Ioas, type CommandOf } from './ioas.js';
import type { IommufdContext } from './main.js';
import { IommufdObject } from './object.js';
import { PAGE_SIZE } from './pages.js';
import { userData } from './user-data.js';
import { IommufdViommu } from './viommu.js';

/** `struct iommufd_hw_pagetable` */
export abstract class Hwpt extends IommufdObject {
  abstract readonly domain: IommuDomain;
  /** The page table whose address space its devices' reserved regions are in; undefined for none. */
  abstract readonly paging: HwptPaging | undefined;
  /** Devices may use it beside others by PASID (IOMMU_HWPT_ALLOC_PASID). */
  isPasidCompat = false;
  #fault: IommufdFault | undefined;
  #isAuto = false;

  /** Where page requests of its devices go. */
  get fault(): IommufdFault | undefined {
    sharedRead(this, 'fault', this.#fault);
    return this.#fault;
  }

  set fault(value: IommufdFault | undefined) {
    sharedWrite(this, 'fault', this.#fault, value);
    this.#fault = value;
  }

  /** Made by an attach, goes with the last device. */
  get isAuto(): boolean {
    sharedRead(this, 'isAuto', this.#isAuto);
    return this.#isAuto;
  }

  set isAuto(value: boolean) {
    sharedWrite(this, 'isAuto', this.#isAuto, value);
    this.#isAuto = value;
  }

  /** Ends the reference to the fault queue, once the domain is free (__iommufd_hwpt_destroy). */
  dropFault(): void {
    if (this.fault !== undefined) this.fault.refcountDec();
    this.fault = undefined;
  }
}

/** `struct iommufd_hwpt_nested`: user space's own tables over a nesting parent. */
export class HwptNested extends Hwpt {
  override readonly type = 'hwpt-nested';
  override readonly domain: NestedDomain;
  readonly parent: HwptPaging;
  readonly viommu: IommufdViommu | undefined;

  constructor(domain: NestedDomain, parent: HwptPaging, viommu: IommufdViommu | undefined) {
    super();
    this.domain = domain;
    this.parent = parent;
    this.viommu = viommu;
  }

  override get paging(): HwptPaging {
    return this.parent;
  }

  override *destroy(): Task<void> {
    yield* this.domain.free();
    this.dropFault();
    (this.viommu ?? this.parent).refcountDec();
  }
}

/** `struct iommufd_hwpt_paging` */
export class HwptPaging extends Hwpt {
  override readonly type = 'hwpt-paging';
  readonly ioas: Ioas;
  override readonly domain: PagingDomain;
  readonly isNestParent: boolean;
  /** Software MSI pages that are mapped in the domain, by their number in the context. */
  readonly presentSwMsi = new Set<number>();

  constructor(ioas: Ioas, domain: PagingDomain, isNestParent: boolean) {
    super();
    this.ioas = ioas;
    this.domain = domain;
    this.isNestParent = isNestParent;
  }

  override get paging(): this {
    return this;
  }

  override *destroy(): Task<void> {
    const { ioas } = this;
    yield* ioas.mutex.lock();
    ioas.removeHwpt(this);
    ioas.mutex.unlock();
    yield* ioas.iopt.remove_domain(this.domain);
    yield* this.domain.free();
    this.dropFault();
    ioas.refcountDec();
  }
}

/** Type guard for {@link ObjectTable.get}. */
export function isHwptPaging(object: IommufdObject): object is HwptPaging {
  return object instanceof HwptPaging;
}

/** Gives a reference to a page table back (`iommufd_hw_pagetable_put`). */
export function* hwptPut(ictx: IommufdContext, hwpt: Hwpt): Task<void> {
  if (hwpt.isAuto) yield* ictx.objects.putAndTryDestroy(hwpt);
  else hwpt.refcountDec();
}

const PAGING_FLAGS =
  IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;

/** What a page table is to be. */
export interface HwptSpec {
  readonly flags: number;
  readonly data: UserDomainData | undefined;
  /** Done between allocating the domain and filling it; undone by `detach`. */
  readonly attach?: (hwpt: HwptPaging) => Task<number>;
  readonly detach?: (hwpt: HwptPaging) => Task<void>;
}

/**
 * A page table of an address space for a device, filled but not yet visible (`iommufd_hwpt_paging_alloc`). Hold
 * `ioas.mutex`. -errno on failure: EOPNOTSUPP, EADDRINUSE, EINVAL, ENOMEM, and what attaching answers.
 */
export function* hwptPagingAlloc(
  ictx: IommufdContext,
  ioas: Ioas,
  idev: IommufdDevice,
  spec: HwptSpec,
  sink: FailureSink,
): Task<HwptPaging | number> {
  const { flags, data } = spec;
  const { driver } = idev.igroup.group;
  if ((flags & ~PAGING_FLAGS) !== 0) return -EOPNOTSUPP;
  const wantsDirty = (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0;
  if (wantsDirty && !driver.capable(idev.device, 'DIRTY_TRACKING')) return -EOPNOTSUPP;
  const isNestParent = (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0;
  if (isNestParent && (flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0) return -EOPNOTSUPP;
  if (ictx.allocFails()) return -ENOMEM;
  const domain = yield* driver.domain_alloc_paging_flags(idev.device, flags & ~IOMMU_HWPT_FAULT_ID_VALID, data);
  if (typeof domain === 'number') return domain;
  const hwpt = new HwptPaging(ioas, domain, isNestParent);
  hwpt.isPasidCompat = (flags & IOMMU_HWPT_ALLOC_PASID) !== 0;
  const allocated = ictx.objects.alloc(hwpt);
  if (allocated < 0) {
    yield* domain.free();
    return allocated;
  }
  ioas.refcountInc();

  const attached = spec.attach === undefined ? 0 : yield* spec.attach(hwpt);
  let rc = attached;
  if (rc === 0) rc = yield* ioas.iopt.add_domain(domain, sink);
  if (rc < 0) {
    if (attached === 0) yield* spec.detach?.(hwpt) ?? nothing();
    yield* domain.free();
    ioas.refcountDec();
    ictx.objects.abort(hwpt);
    return rc;
  }
  ioas.addHwpt(hwpt);
  return hwpt;
}

function* nothing(): Task<void> {
  // A page table that was not attached needs no detach.
}

/** Takes back a page table that {@link hwptPagingAlloc} made and nobody has seen. */
export function* hwptAbort(ictx: IommufdContext, hwpt: HwptPaging): Task<void> {
  hwpt.ioas.removeHwpt(hwpt);
  yield* hwpt.ioas.iopt.remove_domain(hwpt.domain);
  yield* hwpt.domain.free();
  hwpt.dropFault();
  hwpt.ioas.refcountDec();
  ictx.objects.abort(hwpt);
}

/** Takes back any page table nobody has seen. */
function* abortAny(ictx: IommufdContext, hwpt: HwptPaging | HwptNested): Task<void> {
  if (hwpt instanceof HwptPaging) {
    yield* hwptAbort(ictx, hwpt);
    return;
  }
  yield* hwpt.destroy();
  ictx.objects.abort(hwpt);
}

type AllocCommand = CommandOf<typeof iommu_hwpt_alloc>;

/** IOMMU_HWPT_ALLOC */
export function* hwptAlloc(ucmd: AllocCommand): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.__reserved !== 0) return -EOPNOTSUPP;
  if ((cmd.data_type === IOMMU_HWPT_DATA_NONE) !== (cmd.data_len === 0)) return -EINVAL;
  const idev = getDevice(ictx, cmd.dev_id);
  if (idev === undefined) return -ENOENT;
  try {
    const parent = ictx.objects.get(cmd.pt_id, (object): object is IommufdObject => object instanceof IommufdObject);
    if (parent === undefined) return -EINVAL;
    yield 'iommufd:object-found';
    try {
      if (parent instanceof Ioas) return yield* hwptAllocOnIoas(ucmd, idev, parent);
      const hwpt = yield* nestedAlloc(ucmd, idev, parent);
      return typeof hwpt === 'number' ? hwpt : yield* answerAlloc(ucmd, hwpt);
    } finally {
      ictx.objects.put(parent);
    }
  } finally {
    ictx.objects.put(idev);
  }
}

/** The caller's description of a page table; undefined when there is none. */
function allocData({ cmd, ctx }: AllocCommand): UserDomainData | undefined {
  return cmd.data_len === 0 ? undefined : userData(ctx, cmd.data_type, cmd.data_uptr, cmd.data_len);
}

/** Gives the page table its fault queue and its number; takes it back when that fails. */
function* answerAlloc(ucmd: AllocCommand, hwpt: HwptPaging | HwptNested): Task<number> {
  const { cmd, ictx } = ucmd;
  let rc = 0;
  if ((cmd.flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0) {
    const fault = ictx.objects.get(cmd.fault_id, isFault);
    if (fault === undefined) rc = -ENOENT;
    else {
      hwpt.fault = fault;
      fault.refcountInc();
      ictx.objects.put(fault);
    }
  }
  if (rc === 0) {
    cmd.out_hwpt_id = hwpt.id;
    rc = ucmd.respond();
  }
  if (rc < 0) {
    yield* abortAny(ictx, hwpt);
    return rc;
  }
  ictx.objects.finalize(hwpt);
  return 0;
}

const NESTED_FLAGS = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;

/** A nested page table over a parent or through a vIOMMU (`iommufd_hwpt_nested_alloc`, `iommufd_viommu_alloc_hwpt_nested`). */
function* nestedAlloc(ucmd: AllocCommand, idev: IommufdDevice, over: IommufdObject): Task<HwptNested | number> {
  const { cmd, ictx } = ucmd;
  const { driver } = idev.igroup.group;
  const viommu = over instanceof IommufdViommu ? over : undefined;
  const parent = viommu?.hwpt ?? over;
  if (!(parent instanceof HwptPaging)) return -EINVAL;
  if (viommu !== undefined && viommu.iommu !== driver) return -EINVAL;
  const canNest =
    viommu === undefined ? driver.domain_alloc_nested !== undefined : viommu.driver.alloc_domain_nested !== undefined;
  if ((cmd.flags & ~NESTED_FLAGS) !== 0 || cmd.data_len === 0 || !canNest) return -EOPNOTSUPP;
  if (viommu === undefined && (parent.isAuto || !parent.isNestParent || parent.domain.driver !== driver))
    return -EINVAL;
  const data = allocData(ucmd);
  if (data === undefined) return -EOPNOTSUPP;
  const flags = cmd.flags & ~IOMMU_HWPT_FAULT_ID_VALID;
  const domain =
    viommu === undefined
      ? yield* driver.domain_alloc_nested?.(idev.device, parent.domain, flags, data) ?? cannotNest()
      : yield* viommu.driver.alloc_domain_nested?.(flags, data) ?? cannotNest();
  if (typeof domain === 'number') return domain;
  const hwpt = new HwptNested(domain, parent, viommu);
  hwpt.isPasidCompat = (cmd.flags & IOMMU_HWPT_ALLOC_PASID) !== 0;
  const allocated = ictx.objects.alloc(hwpt);
  if (allocated < 0) {
    yield* domain.free();
    return allocated;
  }
  (viommu ?? parent).refcountInc();
  return hwpt;
}

function* cannotNest(): Task<number> {
  return -EOPNOTSUPP;
}

function* hwptAllocOnIoas(ucmd: AllocCommand, idev: IommufdDevice, ioas: Ioas): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  const data = allocData(ucmd);
  yield* ioas.mutex.lock();
  try {
    const hwpt = yield* hwptPagingAlloc(ictx, ioas, idev, { flags: cmd.flags, data }, ctx);
    return typeof hwpt === 'number' ? hwpt : yield* answerAlloc(ucmd, hwpt);
  } finally {
    ioas.mutex.unlock();
  }
}

// --- IOMMU_HWPT_INVALIDATE ---

/** Entries of one call; beyond them the array is not looked at. */
const MAX_INVALIDATE_ENTRIES = 1 << 19;

/** IOMMU_HWPT_INVALIDATE. `entry_num` comes back as the number of entries done, on failure, too. */
export function* hwptInvalidate(ucmd: CommandOf<typeof iommu_hwpt_invalidate>): Task<number> {
  const { cmd } = ucmd;
  const { rc, done } = yield* invalidate(ucmd);
  cmd.entry_num = done;
  const responded = ucmd.respond();
  return responded < 0 ? responded : rc;
}

function* invalidate(ucmd: CommandOf<typeof iommu_hwpt_invalidate>): Task<UserArrayOutcome> {
  const { cmd, ctx, ictx } = ucmd;
  const failed = (errno: number): UserArrayOutcome => ({ rc: -errno, done: 0 });
  if (cmd.__reserved !== 0) return failed(EOPNOTSUPP);
  const isLengthBad = cmd.entry_len === 0 || cmd.entry_len > Number(PAGE_SIZE);
  if (cmd.entry_num > 0 && (cmd.data_uptr === 0n || isLengthBad)) return failed(EINVAL);
  if (cmd.entry_num > MAX_INVALIDATE_ENTRIES) return failed(EINVAL);
  const target = ictx.objects.get(cmd.hwpt_id, (object): object is IommufdObject => object instanceof IommufdObject);
  if (target === undefined) return failed(ENOENT);
  try {
    const array = new UserEntries(ctx, cmd.data_uptr, cmd.data_type, cmd.entry_len, cmd.entry_num);
    if (target instanceof HwptNested) return yield* target.domain.cache_invalidate_user?.(array) ?? cannotInvalidate();
    if (target instanceof IommufdViommu) return yield* target.driver.cache_invalidate?.(array) ?? cannotInvalidate();
    return failed(EINVAL);
  } finally {
    ictx.objects.put(target);
  }
}

function* cannotInvalidate(): Task<UserArrayOutcome> {
  return { rc: -EOPNOTSUPP, done: 0 };
}

/** Entries in the caller's memory. */
class UserEntries implements UserArray {
  readonly type: number;
  readonly entryBytes: number;
  readonly entries: number;
  readonly #ctx: SyscallContext;
  readonly #address: bigint;

  constructor(ctx: SyscallContext, address: bigint, type: number, entryBytes: number, entries: number) {
    this.#ctx = ctx;
    this.#address = address;
    this.type = type;
    this.entryBytes = entryBytes;
    this.entries = entries;
  }

  entry(index: number, minimumBytes: number, sizeBytes: number): Uint8Array | number {
    if (this.entryBytes < minimumBytes || this.entryBytes > sizeBytes) return -EINVAL;
    return this.#copy(index, sizeBytes);
  }

  all(sizeBytes: number): Uint8Array[] | number {
    if (this.entries === 0) return -EINVAL;
    const copied: Uint8Array[] = [];
    for (let index = 0; index < this.entries; index++) {
      const bytes = this.#copy(index, sizeBytes);
      if (typeof bytes === 'number') return bytes;
      copied.push(bytes);
    }
    return copied;
  }

  /** `copy_struct_from_user` */
  #copy(index: number, sizeBytes: number): Uint8Array | number {
    const bytes = this.#ctx.copy_from_user(this.#address + BigInt(index * this.entryBytes), this.entryBytes);
    if (bytes === undefined) return -EFAULT;
    if (bytes.subarray(sizeBytes).some((byte) => byte !== 0)) return -E2BIG;
    const out = new Uint8Array(sizeBytes);
    out.set(bytes.subarray(0, sizeBytes));
    return out;
  }
}

/** Runs `body` with a paging page table, -ENOENT when there is none. */
function* withHwpt(ictx: IommufdContext, id: number, body: (hwpt: HwptPaging) => Task<number>): Task<number> {
  const hwpt = ictx.objects.get(id, isHwptPaging);
  if (hwpt === undefined) return -ENOENT;
  yield 'iommufd:object-found';
  try {
    return yield* body(hwpt);
  } finally {
    ictx.objects.put(hwpt);
  }
}

/** IOMMU_HWPT_SET_DIRTY_TRACKING */
export function* hwptSetDirtyTracking(ucmd: CommandOf<typeof iommu_hwpt_set_dirty_tracking>): Task<number> {
  const { cmd, ictx } = ucmd;
  if ((cmd.flags & ~IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0) return -EOPNOTSUPP;
  const enable = (cmd.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0;
  return yield* withHwpt(ictx, cmd.hwpt_id, ({ domain, ioas }) => ioas.iopt.set_dirty_tracking(domain, enable));
}

/** Checks a bitmap's range against the alignments: 0, -EINVAL, -EOVERFLOW. */
function checkBitmapRange(iova: bigint, length: bigint, pageSize: bigint, alignment: bigint): number {
  if (length === 0n) return -EINVAL;
  const last = iova + length - 1n;
  if (last > IOVA_MAX) return -EOVERFLOW;
  const end = (last + 1n) & IOVA_MAX;
  if (iova % alignment !== 0n || end % alignment !== 0n || pageSize === 0n) return -EINVAL;
  const mask = pageSize - 1n;
  return (iova & mask) !== 0n || (end & mask) !== 0n ? -EINVAL : 0;
}

/** IOMMU_HWPT_GET_DIRTY_BITMAP */
export function* hwptGetDirtyBitmap(ucmd: CommandOf<typeof iommu_hwpt_get_dirty_bitmap>): Task<number> {
  const { cmd, ictx } = ucmd;
  if ((cmd.flags & ~IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0 || cmd.__reserved !== 0) return -EOPNOTSUPP;
  return yield* withHwpt(ictx, cmd.hwpt_id, (hwpt) => readDirtyBitmap(ucmd, hwpt));
}

function* readDirtyBitmap(
  { cmd, ctx }: CommandOf<typeof iommu_hwpt_get_dirty_bitmap>,
  { domain, ioas: { iopt } }: HwptPaging,
): Task<number> {
  const rc = checkBitmapRange(cmd.iova, cmd.length, cmd.page_size, iopt.iovaAlignment);
  if (rc < 0) return rc;
  const bitmap = new DirtyBitmap(ctx, cmd.data, cmd.iova, cmd.length, cmd.page_size);
  const last = cmd.iova + cmd.length - 1n;
  const noClear = (cmd.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0;
  return yield* iopt.read_and_clear_dirty(domain, cmd.iova, last, noClear, (iova, bytes) => bitmap.mark(iova, bytes));
}
