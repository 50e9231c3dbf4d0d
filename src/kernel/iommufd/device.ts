/**
 * Devices bound to an iommufd and the page tables they use; GET_HW_INFO.
 *
 * A group is attached as a whole: the first device brings the group to the page table, later ones only add their reserved
 * regions, a replace by any of them moves all. A failed attach or replace leaves everything as it was.
 *
 * Lock order: `ioas.mutex` -> `igroup.lock` -> `domains_rwsem` -> `iova_rwsem`; `group.mutex` inside `igroup.lock`.
 * Invariants: `igroup.hwpt` is set exactly while `igroup.attached` is not empty; every attached device's regions are
 * reserved in the address space of that page table (INV-6, INV-8).
 *
 * Source: Linux drivers/iommu/iommufd/device.c; domain.md A1.12, A1.30 to A1.37.
 */
import { Mutex } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { EFAULT, EINVAL, ENOENT, EOPNOTSUPP, EPERM } from '../../uapi/errno.js';
import {
  IOMMU_HW_CAP_DIRTY_TRACKING,
  IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
  IOMMU_HW_INFO_FLAG_INPUT_TYPE,
  IOMMU_HW_INFO_TYPE_DEFAULT,
  type iommu_hw_info,
} from '../../uapi/iommufd.js';
import type { Device } from '../device.js';
import type { ResvRegion } from '../iommu/resv-regions.js';
import {
  iommu_attach_group_handle,
  iommu_detach_group_handle,
  iommu_device_claim_dma_owner,
  iommu_device_release_dma_owner,
  iommu_get_resv_regions,
  iommu_group_has_isolated_msi,
  iommu_replace_group_handle,
  type AttachHandle,
  type IommuGroup,
} from '../iommu/group.js';
import { silentSink, type FailureSink } from './failure.js';
import { hwptAbort, hwptPagingAlloc, hwptPut, HwptPaging } from './hw-pagetable.js';
import { Ioas, type CommandOf } from './ioas.js';
import type { IommufdContext, IommufdFile } from './main.js';
import { IommufdObject } from './object.js';

/** What an iommufd keeps for an IOMMU group of which it has devices. */
class IommufdGroup {
  readonly ictx: IommufdContext;
  readonly group: IommuGroup;
  readonly lock = new Mutex('iommufd:igroup_lock');
  /** Attached devices, in order. */
  readonly attached: IommufdDevice[] = [];
  hwpt: HwptPaging | undefined;
  /** Start of the software MSI window of the group's devices. */
  swMsiStart: bigint | undefined;
  /** Software MSI pages the group's devices have been given. */
  readonly requiredSwMsi = new Set<number>();
  users = 0;

  constructor(ictx: IommufdContext, group: IommuGroup) {
    this.ictx = ictx;
    this.group = group;
  }

  /** How the group's devices get their doorbells while they use a page table. */
  handle(hwpt: HwptPaging): AttachHandle {
    const { ictx, requiredSwMsi } = this;
    return {
      prepare_msi: (_device, doorbellPa) => ictx.swMsi.prepare(hwpt, this.swMsiStart, doorbellPa, requiredSwMsi),
    };
  }
}

/** The groups of one iommufd. */
export class IommufdGroups {
  readonly #groups = new Map<IommuGroup, IommufdGroup>();

  has(group: IommuGroup): boolean {
    return this.#groups.has(group);
  }

  get(ictx: IommufdContext, group: IommuGroup): IommufdGroup {
    const igroup = this.#groups.get(group) ?? new IommufdGroup(ictx, group);
    this.#groups.set(group, igroup);
    igroup.users++;
    return igroup;
  }

  put(igroup: IommufdGroup): void {
    if (--igroup.users === 0) this.#groups.delete(igroup.group);
  }
}

/** `struct iommufd_device`: a device under the control of an iommufd. */
export class IommufdDevice extends IommufdObject {
  override readonly type = 'device';
  readonly ictx: IommufdContext;
  readonly device: Device;
  readonly igroup: IommufdGroup;

  constructor(ictx: IommufdContext, device: Device, igroup: IommufdGroup) {
    super();
    this.ictx = ictx;
    this.device = device;
    this.igroup = igroup;
  }

  override *destroy(): Task<void> {
    yield* iommu_device_release_dma_owner(this.device);
    this.ictx.groups.put(this.igroup);
    yield* this.ictx.put();
  }
}

function isDevice(object: IommufdObject): object is IommufdDevice {
  return object instanceof IommufdDevice;
}

/** The bound device with this number, to be given back with `objects.put`. */
export function getDevice(ictx: IommufdContext, id: number): IommufdDevice | undefined {
  return ictx.objects.get(id, isDevice);
}

/** Whether any device of the group is bound to this iommufd. */
export function iommufd_ctx_has_group(file: IommufdFile, group: IommuGroup): boolean {
  return file.ictx.groups.has(group);
}

/**
 * Puts a device under the control of an iommufd (VFIO_DEVICE_BIND_IOMMUFD). -errno: EINVAL no IOMMU or not cache coherent,
 * EPERM interrupts not isolated or the group has another owner, EBUSY.
 */
export function* iommufd_device_bind(
  file: IommufdFile,
  device: Device,
  sink: FailureSink = silentSink,
): Task<{ readonly idev: IommufdDevice; readonly id: number } | number> {
  const { ictx } = file;
  const group = device.group;
  if (group === undefined) return -EINVAL;
  if (!group.member(device).driver.capable(device, 'CACHE_COHERENCY')) return -EINVAL;
  if (!iommu_group_has_isolated_msi(group) && !ictx.allowUnsafeInterrupts) {
    return sink.fail(EPERM, { why: 'MSI interrupts are not isolated', group: group.id });
  }
  const igroup = ictx.groups.get(ictx, group);
  const rc = yield* iommu_device_claim_dma_owner(device, ictx);
  if (rc < 0) {
    ictx.groups.put(igroup);
    return sink.fail(-rc, { why: 'DMA ownership', group: group.id });
  }
  const idev = new IommufdDevice(ictx, device, igroup);
  ictx.get();
  ictx.objects.alloc(idev);
  idev.users++;
  ictx.objects.finalize(idev);
  return { idev, id: idev.id };
}

/** Undoes {@link iommufd_device_bind}. The device must not be attached. */
export function* iommufd_device_unbind(idev: IommufdDevice): Task<void> {
  yield* idev.ictx.objects.destroyUser(idev);
}

// --- attach, replace, detach ---

/** How a device is brought to a page table; the page table it left (to be put by the caller), undefined, or -errno. */
type AttachFunction = (
  idev: IommufdDevice,
  hwpt: HwptPaging,
  sink: FailureSink,
) => Task<HwptPaging | undefined | number>;

/** What must not be mapped while the device is attached. */
function enforcedRegions({ faults }: IommufdContext, device: Device): readonly ResvRegion[] {
  const regions = iommu_get_resv_regions(device);
  return faults?.fires('iommu.resv-ignored') === true
    ? regions.filter((region) => region.type === 'software-msi')
    : regions;
}

/** Reserves a device's regions and, for the first device, maps its group's MSI pages. 0 or -errno. Hold `igroup.lock`. */
function* attachReservedIova(idev: IommufdDevice, hwpt: HwptPaging, sink: FailureSink): Task<number> {
  const { igroup } = idev;
  const { iopt } = hwpt.ioas;
  const reserved = yield* iopt.enforce_dev_resv_regions(
    idev.device,
    enforcedRegions(igroup.ictx, idev.device),
    sink,
    igroup.ictx.allowMixedMsi,
  );
  if (typeof reserved === 'number') return reserved;
  igroup.swMsiStart = reserved.swMsiStart ?? igroup.swMsiStart;
  if (igroup.attached.length > 0) return 0;
  const rc = yield* setupMsi(igroup, hwpt);
  if (rc < 0) yield* iopt.remove_reserved_iova(idev.device);
  return rc;
}

function* setupMsi(igroup: IommufdGroup, hwpt: HwptPaging): Task<number> {
  if (igroup.swMsiStart === undefined) return 0;
  return yield* igroup.ictx.swMsi.installAll(hwpt, igroup.swMsiStart, igroup.requiredSwMsi);
}

/** `iommufd_hw_pagetable_attach`: 0 or -errno with nothing changed. */
function* hwptAttach(idev: IommufdDevice, hwpt: HwptPaging, sink: FailureSink): Task<number> {
  const { igroup } = idev;
  yield* igroup.lock.lock();
  try {
    if (igroup.hwpt !== undefined && igroup.hwpt !== hwpt) return -EINVAL;
    let rc = yield* attachReservedIova(idev, hwpt, sink);
    if (rc < 0) return rc;
    if (igroup.attached.length === 0) {
      yield 'iommufd:attach-reserved';
      rc = yield* iommu_attach_group_handle(hwpt.domain, igroup.group, igroup.handle(hwpt));
      if (rc < 0) {
        yield* hwpt.ioas.iopt.remove_reserved_iova(idev.device);
        return rc;
      }
      igroup.hwpt = hwpt;
    }
    hwpt.users++;
    igroup.attached.push(idev);
    return 0;
  } finally {
    igroup.lock.unlock();
  }
}

/** `iommufd_hw_pagetable_detach`: the page table, with the reference the caller must put. */
function* hwptDetach(idev: IommufdDevice): Task<HwptPaging> {
  const { igroup } = idev;
  yield* igroup.lock.lock();
  const hwpt = igroup.hwpt;
  invariant(hwpt !== undefined && igroup.attached.includes(idev), 'iommufd: detach of a device that is not attached');
  igroup.attached.splice(igroup.attached.indexOf(idev), 1);
  if (igroup.attached.length === 0) {
    yield* iommu_detach_group_handle(igroup.group);
    igroup.hwpt = undefined;
  }
  yield* hwpt.ioas.iopt.remove_reserved_iova(idev.device);
  igroup.lock.unlock();
  return hwpt;
}

function* doAttach(idev: IommufdDevice, hwpt: HwptPaging, sink: FailureSink): Task<undefined | number> {
  const rc = yield* hwptAttach(idev, hwpt, sink);
  return rc < 0 ? rc : undefined;
}

/** Reserves the regions of all attached devices in the new page table's address space. 0 or -errno. */
function* replaceReservedIova(
  igroup: IommufdGroup,
  hwpt: HwptPaging,
  old: HwptPaging,
  sink: FailureSink,
): Task<number> {
  let rc = 0;
  if (hwpt.ioas !== old.ioas) {
    for (const { device } of igroup.attached) {
      const reserved = yield* hwpt.ioas.iopt.enforce_dev_resv_regions(
        device,
        enforcedRegions(igroup.ictx, device),
        sink,
        igroup.ictx.allowMixedMsi,
      );
      rc = typeof reserved === 'number' ? reserved : 0;
      if (rc < 0) break;
    }
  }
  if (rc === 0) rc = yield* setupMsi(igroup, hwpt);
  if (rc < 0 && hwpt.ioas !== old.ioas) yield* removeReservedIova(igroup, hwpt);
  return rc;
}

function* removeReservedIova(igroup: IommufdGroup, hwpt: HwptPaging): Task<void> {
  for (const { device } of igroup.attached) yield* hwpt.ioas.iopt.remove_reserved_iova(device);
}

/** `iommufd_device_do_replace`: moves the whole group; the old page table, undefined if it is the same, or -errno. */
function* doReplace(idev: IommufdDevice, hwpt: HwptPaging, sink: FailureSink): Task<HwptPaging | undefined | number> {
  const { igroup } = idev;
  yield* igroup.lock.lock();
  try {
    const old = igroup.hwpt;
    if (old === undefined || !igroup.attached.includes(idev)) return -EINVAL;
    if (old === hwpt) return undefined;
    let rc = yield* replaceReservedIova(igroup, hwpt, old, sink);
    if (rc < 0) return rc;
    rc = yield* iommu_replace_group_handle(igroup.group, hwpt.domain, igroup.handle(hwpt));
    if (rc < 0) {
      if (hwpt.ioas !== old.ioas) yield* removeReservedIova(igroup, hwpt);
      return rc;
    }
    if (hwpt.ioas !== old.ioas) yield* removeReservedIova(igroup, old);
    igroup.hwpt = hwpt;
    hwpt.users += igroup.attached.length;
    old.users -= igroup.attached.length - 1;
    return old;
  } finally {
    igroup.lock.unlock();
  }
}

/** Finds or makes an automatic page table of an address space; its number and what {@link AttachFunction} answered. */
function* autoGetDomain(
  idev: IommufdDevice,
  ioas: Ioas,
  attach: AttachFunction,
  sink: FailureSink,
): Task<{ readonly ptId: number; readonly old: HwptPaging | undefined } | number> {
  const { ictx } = idev;
  yield* ioas.mutex.lock();
  try {
    for (const hwpt of [...ioas.hwpts]) {
      if (!hwpt.isAuto || !ictx.objects.tryHold(hwpt)) continue;
      const old = yield* attach(idev, hwpt, sink);
      ictx.objects.put(hwpt);
      if (old === -EINVAL) continue;
      return typeof old === 'number' ? old : { ptId: hwpt.id, old };
    }
    // A first attach comes before the domain is filled: drivers may only then know its aperture.
    const isImmediate = attach === doAttach;
    const hwpt = yield* hwptPagingAlloc(
      ictx,
      ioas,
      idev,
      {
        flags: 0,
        data: undefined,
        ...(isImmediate && {
          attach: (made: HwptPaging) => hwptAttach(idev, made, sink),
          detach: (made: HwptPaging) => undoAttach(idev, made),
        }),
      },
      sink,
    );
    if (typeof hwpt === 'number') return hwpt;
    const old = isImmediate ? undefined : yield* attach(idev, hwpt, sink);
    if (typeof old === 'number') {
      yield* hwptAbort(ictx, hwpt);
      return old;
    }
    hwpt.isAuto = true;
    ictx.objects.finalize(hwpt);
    return { ptId: hwpt.id, old };
  } finally {
    ioas.mutex.unlock();
  }
}

function* undoAttach(idev: IommufdDevice, hwpt: HwptPaging): Task<void> {
  yield* hwptDetach(idev);
  hwpt.users--;
}

function* changePt(idev: IommufdDevice, ptId: number, attach: AttachFunction, sink: FailureSink): Task<number> {
  const { ictx } = idev;
  const target = ictx.objects.get(ptId, (object): object is IommufdObject => object instanceof IommufdObject);
  if (target === undefined) return -ENOENT;
  let attachedId = ptId;
  let old: HwptPaging | undefined | number;
  if (target instanceof HwptPaging) {
    old = yield* attach(idev, target, sink);
  } else if (target instanceof Ioas) {
    const result = yield* autoGetDomain(idev, target, attach, sink);
    if (typeof result === 'number') old = result;
    else ({ ptId: attachedId, old } = result);
  } else {
    old = -EINVAL;
  }
  ictx.objects.put(target);
  if (typeof old === 'number') return old;
  if (old !== undefined) yield* hwptPut(ictx, old);
  return attachedId;
}

/**
 * Attaches a device that is not attached to an address space or page table; the number of the page table it got, or
 * -errno: EADDRINUSE a reserved region or the aperture is in conflict with what is mapped or allowed, EINVAL, ENOENT, EFAULT
 * and ENOMEM from pinning.
 */
export function* iommufd_device_attach(
  idev: IommufdDevice,
  ptId: number,
  sink: FailureSink = silentSink,
): Task<number> {
  const result = yield* changePt(idev, ptId, doAttach, sink);
  if (result >= 0) idev.users++;
  return result;
}

/** Moves an attached device, and its group, to another address space or page table; as attach, nothing changes on error. */
export function* iommufd_device_replace(
  idev: IommufdDevice,
  ptId: number,
  sink: FailureSink = silentSink,
): Task<number> {
  return yield* changePt(idev, ptId, doReplace, sink);
}

/** Detaches a device; the last of a group leaves it blocked. */
export function* iommufd_device_detach(idev: IommufdDevice): Task<void> {
  const hwpt = yield* hwptDetach(idev);
  yield* hwptPut(idev.ictx, hwpt);
  idev.users--;
}

// --- IOMMU_GET_HW_INFO ---

/** IOMMU_GET_HW_INFO */
export function* getHwInfo(ucmd: CommandOf<typeof iommu_hw_info>): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  if ((cmd.flags & ~IOMMU_HW_INFO_FLAG_INPUT_TYPE) !== 0 || cmd.__reserved.some((byte) => byte !== 0)) {
    return -EOPNOTSUPP;
  }
  const idev = getDevice(ictx, cmd.dev_id);
  if (idev === undefined) return -ENOENT;
  try {
    const hasInputType = (cmd.flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE) !== 0;
    const { driver } = idev.igroup.group;
    const info = driver.hw_info(idev.device, hasInputType ? cmd.in_data_type : IOMMU_HW_INFO_TYPE_DEFAULT);
    if (typeof info === 'number') return info;
    const { bytes } = info;
    const answer = new Uint8Array(cmd.data_len);
    answer.set(bytes.subarray(0, cmd.data_len));
    if (cmd.data_len > 0 && !ctx.copy_to_user(cmd.data_uptr, answer)) return -EFAULT;
    cmd.data_len = bytes.length;
    cmd.in_data_type = cmd.out_data_type = info.type;
    cmd.out_max_pasid_log2 = 0;
    cmd.out_capabilities = BigInt(
      IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED |
        (driver.capable(idev.device, 'DIRTY_TRACKING') ? IOMMU_HW_CAP_DIRTY_TRACKING : 0),
    );
    return ucmd.respond();
  } finally {
    ictx.objects.put(idev);
  }
}
