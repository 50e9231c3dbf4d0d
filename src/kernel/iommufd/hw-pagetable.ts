/**
 * Hardware page tables: a domain that shows an address space to devices; HWPT_ALLOC and the dirty-tracking ioctls.
 *
 * An *automatic* page table is made by attaching a device to an address space and goes with the last device; one made by
 * IOMMU_HWPT_ALLOC lives until it is destroyed. Either is filled with all present mappings before anybody can see it.
 *
 * Source: Linux drivers/iommu/iommufd/hw_pagetable.c, io_pagetable.c (dirty tracking); domain.md A1.11 to A1.14, A6.13.
 */
import { invariant, type Task } from '../../runtime/task.js';
import { EFAULT, EINVAL, ENOENT, EOPNOTSUPP, EOVERFLOW } from '../../uapi/errno.js';
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
  type iommu_hwpt_set_dirty_tracking,
} from '../../uapi/iommufd.js';
import type { DirtyOps, PagingDomain, UserDomainData } from '../iommu/domain.js';
import { getDevice, type IommufdDevice } from './device.js';
import { DirtyBitmap } from './dirty-bitmap.js';
import type { FailureSink } from './failure.js';
import { IOVA_MAX } from './io-pagetable.js';
import { Ioas, type CommandOf } from './ioas.js';
import type { IommufdContext } from './main.js';
import { IommufdObject } from './object.js';

/** `struct iommufd_hwpt_paging` */
export class HwptPaging extends IommufdObject {
  override readonly type = 'hwpt-paging';
  readonly ioas: Ioas;
  readonly domain: PagingDomain;
  readonly isNestParent: boolean;
  /** Made by an attach, goes with the last device. */
  isAuto = false;
  /** Software MSI pages that are mapped in the domain, by their number in the context. */
  readonly presentSwMsi = new Set<number>();

  constructor(ioas: Ioas, domain: PagingDomain, isNestParent: boolean) {
    super();
    this.ioas = ioas;
    this.domain = domain;
    this.isNestParent = isNestParent;
  }

  override *destroy(): Task<void> {
    const { ioas } = this;
    yield* ioas.mutex.lock();
    const index = ioas.hwpts.indexOf(this);
    if (index >= 0) ioas.hwpts.splice(index, 1);
    ioas.mutex.unlock();
    if (index >= 0) yield* ioas.iopt.remove_domain(this.domain);
    yield* this.domain.free();
    ioas.users--;
  }
}

/** Type guard for {@link ObjectTable.get}. */
export function isHwptPaging(object: IommufdObject): object is HwptPaging {
  return object instanceof HwptPaging;
}

/** Gives a reference to a page table back (`iommufd_hw_pagetable_put`). */
export function* hwptPut(ictx: IommufdContext, hwpt: HwptPaging): Task<void> {
  if (hwpt.isAuto) yield* ictx.objects.putAndTryDestroy(hwpt);
  else hwpt.users--;
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
  const domain = yield* driver.domain_alloc_paging_flags(idev.device, flags & ~IOMMU_HWPT_FAULT_ID_VALID, data);
  if (typeof domain === 'number') return domain;
  const hwpt = new HwptPaging(ioas, domain, isNestParent);
  ictx.objects.alloc(hwpt);
  ioas.users++;

  const attached = spec.attach === undefined ? 0 : yield* spec.attach(hwpt);
  let rc = attached;
  if (rc === 0) rc = yield* ioas.iopt.add_domain(domain, sink);
  if (rc < 0) {
    if (attached === 0) yield* spec.detach?.(hwpt) ?? nothing();
    ictx.objects.abort(hwpt);
    yield* domain.free();
    ioas.users--;
    return rc;
  }
  ioas.hwpts.push(hwpt);
  return hwpt;
}

function* nothing(): Task<void> {
  // A page table that was not attached needs no detach.
}

/** Takes back a page table that {@link hwptPagingAlloc} made and nobody has seen. */
export function* hwptAbort(ictx: IommufdContext, hwpt: HwptPaging): Task<void> {
  const index = hwpt.ioas.hwpts.indexOf(hwpt);
  if (index >= 0) hwpt.ioas.hwpts.splice(index, 1);
  ictx.objects.abort(hwpt);
  yield* hwpt.ioas.iopt.remove_domain(hwpt.domain);
  yield* hwpt.domain.free();
  hwpt.ioas.users--;
}

/** IOMMU_HWPT_ALLOC */
export function* hwptAlloc(ucmd: CommandOf<typeof iommu_hwpt_alloc>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.__reserved !== 0) return -EOPNOTSUPP;
  if ((cmd.data_type === IOMMU_HWPT_DATA_NONE) !== (cmd.data_len === 0)) return -EINVAL;
  const idev = getDevice(ictx, cmd.dev_id);
  if (idev === undefined) return -ENOENT;
  try {
    const parent = ictx.objects.get(cmd.pt_id, (object): object is IommufdObject => object instanceof IommufdObject);
    if (parent === undefined) return -EINVAL;
    try {
      // User page tables are made through a vIOMMU on this hardware; without data there is nothing to make one from.
      if (parent instanceof HwptPaging) return -EOPNOTSUPP;
      if (!(parent instanceof Ioas)) return -EINVAL;
      return yield* hwptAllocOnIoas(ucmd, idev, parent);
    } finally {
      ictx.objects.put(parent);
    }
  } finally {
    ictx.objects.put(idev);
  }
}

function* hwptAllocOnIoas(ucmd: CommandOf<typeof iommu_hwpt_alloc>, idev: IommufdDevice, ioas: Ioas): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  let data: UserDomainData | undefined;
  if (cmd.data_len > 0) {
    const bytes = ctx.copy_from_user(cmd.data_uptr, cmd.data_len);
    if (bytes === undefined) return -EFAULT;
    data = { type: cmd.data_type, bytes };
  }
  yield* ioas.mutex.lock();
  try {
    const hwpt = yield* hwptPagingAlloc(ictx, ioas, idev, { flags: cmd.flags, data }, ctx);
    if (typeof hwpt === 'number') return hwpt;
    // There are no fault queues, so no number can be one's.
    let rc = (cmd.flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0 ? -ENOENT : 0;
    if (rc === 0) {
      cmd.out_hwpt_id = hwpt.id;
      rc = ucmd.respond();
    }
    if (rc < 0) {
      yield* hwptAbort(ictx, hwpt);
      return rc;
    }
    ictx.objects.finalize(hwpt);
    return 0;
  } finally {
    ioas.mutex.unlock();
  }
}

/** Runs `body` with a paging page table, -ENOENT when there is none. */
function* withHwpt(ictx: IommufdContext, id: number, body: (hwpt: HwptPaging) => Task<number>): Task<number> {
  const hwpt = ictx.objects.get(id, isHwptPaging);
  if (hwpt === undefined) return -ENOENT;
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
  return yield* withHwpt(ictx, cmd.hwpt_id, function* ({ domain, ioas: { iopt } }) {
    const ops = domain.dirtyOps;
    if (ops === undefined) return -EOPNOTSUPP;
    const enable = (cmd.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0;
    yield* iopt.iovaRwsem.down_read();
    try {
      if (enable) yield* clearDirty(domain, ops, iopt.areas.overlapping());
      return yield* ops.set_dirty_tracking(enable);
    } finally {
      iopt.iovaRwsem.up_read();
    }
  });
}

/** Makes everything clean, so that nothing from before is reported. */
function* clearDirty(
  domain: PagingDomain,
  ops: DirtyOps,
  areas: Iterable<{ readonly iova: bigint; readonly lengthBytes: bigint; readonly pages: object | undefined }>,
): Task<void> {
  for (const area of areas) {
    if (area.pages === undefined) continue;
    const start = Number(area.iova);
    const length = Number(area.lengthBytes);
    yield* ops.read_and_clear_dirty(start, length, false, () => undefined);
    yield* domain.iotlb_sync(start, length);
  }
}

/** Checks a bitmap's range against the alignments: 0, -EINVAL, -EOVERFLOW. */
function checkBitmapRange(iova: bigint, length: bigint, pageSize: bigint, alignment: bigint): number {
  if (length === 0n && iova !== 0n) return -EINVAL;
  const last = length === 0n ? IOVA_MAX : iova + length - 1n;
  if (last > IOVA_MAX) return -EOVERFLOW;
  const end = (last + 1n) & IOVA_MAX;
  if (iova % alignment !== 0n || end % alignment !== 0n || pageSize === 0n) return -EINVAL;
  const mask = pageSize - 1n;
  return (iova & mask) !== 0n || (end & mask) !== 0n ? -EINVAL : 0;
}

/**
 * IOMMU_HWPT_GET_DIRTY_BITMAP. As in Linux, the walk stops at the first hole and the caller is not told (domain.md A1.14).
 */
export function* hwptGetDirtyBitmap(ucmd: CommandOf<typeof iommu_hwpt_get_dirty_bitmap>): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  if ((cmd.flags & ~IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0 || cmd.__reserved !== 0) return -EOPNOTSUPP;
  return yield* withHwpt(ictx, cmd.hwpt_id, function* ({ domain, ioas: { iopt } }) {
    const rc = checkBitmapRange(cmd.iova, cmd.length, cmd.page_size, iopt.iovaAlignment);
    if (rc < 0) return rc;
    yield* iopt.iovaRwsem.down_read();
    try {
      const ops = domain.dirtyOps;
      if (ops === undefined) return -EOPNOTSUPP;
      const bitmap = new DirtyBitmap(ctx, cmd.data, cmd.iova, cmd.length, cmd.page_size);
      const last = cmd.iova + cmd.length - 1n;
      const noClear = (cmd.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0;
      let at = cmd.iova;
      for (const area of iopt.areas.overlapping(cmd.iova, last)) {
        if (area.iova > at || area.pages === undefined) break;
        const end = area.last < last ? area.last : last;
        const start = Number(at);
        const length = Number(end - at) + 1;
        invariant(Number.isSafeInteger(start + length), 'iommufd: a mapped area reaches beyond any aperture');
        const walked = yield* ops.read_and_clear_dirty(start, length, noClear, (iova, bytes) =>
          bitmap.mark(iova, bytes),
        );
        if (!noClear) yield* domain.iotlb_sync(start, length);
        if (walked < 0) break;
        at = end + 1n;
      }
      return 0;
    } finally {
      iopt.iovaRwsem.up_read();
    }
  });
}
