/**
 * Devices bound to an iommufd and the page tables they use; GET_HW_INFO.
 *
 * A group is attached as a whole: the first device brings the group to the page table, later ones only add their reserved
 * regions, a replace by any of them moves all. A failed attach or replace leaves everything as it was.
 *
 * Lock order: `ioas.mutex` -> `igroup.lock` -> `domains_rwsem` -> `iova_rwsem`; `group.mutex` inside `igroup.lock`.
 * Invariants: an attachment exists exactly while it has devices; the regions of every device attached without a PASID are
 * reserved in the address space of that page table (INV-6, INV-8).
 *
 * Source: Linux drivers/iommu/iommufd/device.c; domain.md A1.12, A1.30 to A1.37.
 */
import { freeLocks, Mutex } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { EBUSY, EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EPERM } from '../../uapi/errno.js';
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
  iommu_attach_device_pasid,
  iommu_attach_group_handle,
  iommu_detach_device_pasid,
  iommu_detach_group_handle,
  iommu_device_claim_dma_owner,
  iommu_device_release_dma_owner,
  iommu_get_resv_regions,
  iommu_group_has_isolated_msi,
  iommu_replace_device_pasid,
  iommu_replace_group_handle,
  type AttachHandle,
  type IommuGroup,
} from '../iommu/group.js';
import type { FaultSource } from './eventq.js';
import { silentSink, type FailureSink } from './failure.js';
import { Hwpt, hwptAbort, HwptPaging, hwptPagingAlloc, hwptPut } from './hw-pagetable.js';
import { Ioas, type CommandOf } from './ioas.js';
import type { IommufdContext, IommufdFile } from './main.js';
import { IommufdObject } from './object.js';
import { iommufd_device_remove_vdev, type IommufdVdevice } from './viommu.js';

/** PASID of what a device does without one. */
export const IOMMU_NO_PASID = 0;

/** `struct iommufd_attach_handle` */
type IommufdAttachHandle = AttachHandle & FaultSource;

/** A page table and the devices of a group that use it, by one PASID (`struct iommufd_attach`). */
interface Attachment {
  hwpt: Hwpt;
  handle: IommufdAttachHandle;
  /** In order. */
  readonly devices: IommufdDevice[];
}

/** What an iommufd keeps for an IOMMU group of which it has devices. */
class IommufdGroup {
  readonly ictx: IommufdContext;
  readonly group: IommuGroup;
  readonly lock = new Mutex('iommufd:igroup_lock');
  readonly attachments = new Map<number, Attachment>();
  /** Start of the software MSI window of the group's devices. */
  swMsiStart: bigint | undefined;
  /** Software MSI pages the group's devices have been given. */
  readonly requiredSwMsi = new Set<number>();
  users = 0;

  constructor(ictx: IommufdContext, group: IommuGroup) {
    this.ictx = ictx;
    this.group = group;
  }

  /** Devices attached without a PASID. */
  get attached(): readonly IommufdDevice[] {
    sharedRead(this, 'attachments');
    return this.attachments.get(IOMMU_NO_PASID)?.devices ?? [];
  }

  /** How the group's devices reach their doorbells and their fault queue while they use a page table through a device. */
  handle(idev: IommufdDevice, hwpt: Hwpt): IommufdAttachHandle {
    const { ictx, requiredSwMsi } = this;
    const handle: IommufdAttachHandle = {
      idev,
      isOver: false,
      domain: hwpt.domain,
      prepare_msi: (_device, doorbellPa) => {
        const { paging } = hwpt;
        invariant(paging !== undefined, 'iommufd: every page table has a paging one under it');
        return ictx.swMsi.prepare(paging, this.swMsiStart, doorbellPa, requiredSwMsi);
      },
      ...(hwpt.fault === undefined ? {} : { handle_fault: (_device, request) => hwpt.fault?.add(request, handle) }),
    };
    return handle;
  }
}

/** The groups of one iommufd. */
export class IommufdGroups {
  readonly #groups = new Map<IommuGroup, IommufdGroup>();

  has(group: IommuGroup): boolean {
    sharedRead(this, 'groups');
    return this.#groups.has(group);
  }

  /** To look at, without keeping it. */
  find(group: IommuGroup): IommufdGroup | undefined {
    return this.#groups.get(group);
  }

  list(): readonly IommuGroup[] {
    return [...this.#groups.keys()];
  }

  get(ictx: IommufdContext, group: IommuGroup): IommufdGroup {
    sharedWrite(this, 'groups');
    const igroup = this.#groups.get(group) ?? new IommufdGroup(ictx, group);
    this.#groups.set(group, igroup);
    igroup.users++;
    return igroup;
  }

  put(igroup: IommufdGroup): void {
    sharedWrite(this, 'groups');
    invariant(igroup.users > 0, 'an iommufd group was put once too often', 'objects');
    if (--igroup.users > 0) return;
    freeLocks([igroup.lock]);
    this.#groups.delete(igroup.group);
  }
}

/** `struct iommufd_device`: a device under the control of an iommufd. */
export class IommufdDevice extends IommufdObject {
  override readonly type = 'device';
  readonly ictx: IommufdContext;
  readonly device: Device;
  readonly igroup: IommufdGroup;
  /** Its virtual self on a vIOMMU. */
  vdev: IommufdVdevice | undefined;
  isDestroying = false;

  readonly #keepsContext: boolean;

  constructor(ictx: IommufdContext, device: Device, igroup: IommufdGroup, keepsContext: boolean) {
    super();
    this.#keepsContext = keepsContext;
    this.ictx = ictx;
    this.device = device;
    this.igroup = igroup;
  }

  override *destroy(): Task<void> {
    yield* iommu_device_release_dma_owner(this.device);
    this.ictx.groups.put(this.igroup);
    if (this.#keepsContext) yield* this.ictx.put();
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
 * EPERM interrupts not isolated or the group has another owner, EBUSY. `keepsContext`: the device keeps the iommufd when its descriptor
 * is closed, as a driver's does and a selftest's does not.
 */
export function* iommufd_device_bind(
  { ictx }: Pick<IommufdFile, 'ictx'>,
  device: Device,
  sink: FailureSink = silentSink,
  keepsContext = true,
): Task<{ readonly idev: IommufdDevice; readonly id: number } | number> {
  const group = device.group;
  if (group === undefined) return -EINVAL;
  if (!group.member(device).driver.capable(device, 'CACHE_COHERENCY')) return -EINVAL;
  if (!iommu_group_has_isolated_msi(group) && !ictx.allowUnsafeInterrupts) {
    return sink.fail(EPERM, { why: 'MSI interrupts are not isolated', group: group.id });
  }
  if (!ictx.groups.has(group) && ictx.allocFails()) return -ENOMEM;
  const igroup = ictx.groups.get(ictx, group);
  const rc = yield* iommu_device_claim_dma_owner(device, ictx);
  if (rc < 0) {
    ictx.groups.put(igroup);
    return sink.fail(-rc, { why: 'DMA ownership', group: group.id });
  }
  const idev = new IommufdDevice(ictx, device, igroup, keepsContext);
  const allocated = ictx.objects.alloc(idev);
  if (allocated < 0) {
    yield* iommu_device_release_dma_owner(device);
    ictx.groups.put(igroup);
    return allocated;
  }
  if (keepsContext) ictx.get();
  idev.refcountInc();
  ictx.objects.finalize(idev);
  return { idev, id: idev.id };
}

/** Undoes {@link iommufd_device_bind}. The device must not be attached. */
export function* iommufd_device_unbind(idev: IommufdDevice): Task<void> {
  yield* iommufd_device_remove_vdev(idev);
  yield* idev.ictx.objects.destroyUser(idev);
}

// --- attach, replace, detach ---

/** How a device is brought to a page table; the page table it left (to be put by the caller), undefined, or -errno. */
type AttachFunction = (
  idev: IommufdDevice,
  pasid: number,
  hwpt: Hwpt,
  sink: FailureSink,
) => Task<Hwpt | undefined | number>;

/** What must not be mapped while the device is attached. */
function enforcedRegions({ instruments }: IommufdContext, device: Device): readonly ResvRegion[] {
  const regions = iommu_get_resv_regions(device);
  return instruments.fires('iommu.resv-ignored') ? regions.filter((region) => region.type === 'software-msi') : regions;
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

/** Page tables a group uses by PASID and without must all be made for that: 0 or -EINVAL (`iommufd_hwpt_pasid_compat`). */
function checkPasidCompat({ attachments }: IommufdGroup, hwpt: Hwpt, pasid: number): number {
  if (pasid === IOMMU_NO_PASID) {
    const usesPasids = [...attachments.keys()].some((key) => key !== IOMMU_NO_PASID);
    return !hwpt.isPasidCompat && usesPasids ? -EINVAL : 0;
  }
  const plain = attachments.get(IOMMU_NO_PASID);
  return hwpt.isPasidCompat && plain?.hwpt.isPasidCompat !== false ? 0 : -EINVAL;
}

/** Brings the hardware to a page table: the new handle, or -errno. */
function* attachHardware(idev: IommufdDevice, pasid: number, hwpt: Hwpt): Task<IommufdAttachHandle | number> {
  const { igroup } = idev;
  let rc = checkPasidCompat(igroup, hwpt, pasid);
  if (rc < 0) return rc;
  if (igroup.ictx.allocFails()) return -ENOMEM;
  const handle = igroup.handle(idev, hwpt);
  if (pasid === IOMMU_NO_PASID) rc = yield* iommu_attach_group_handle(hwpt.domain, igroup.group, handle);
  else rc = yield* iommu_attach_device_pasid(hwpt.domain, idev.device, pasid, handle);
  return rc < 0 ? rc : handle;
}

/** `iommufd_hw_pagetable_attach`: 0 or -errno with nothing changed. */
function* hwptAttach(idev: IommufdDevice, pasid: number, hwpt: Hwpt, sink: FailureSink): Task<number> {
  const { igroup } = idev;
  const reserving = pasid === IOMMU_NO_PASID ? hwpt.paging : undefined;
  yield* igroup.lock.lock();
  try {
    const attachment = igroup.attachments.get(pasid);
    if (attachment?.devices.includes(idev) === true) return -EBUSY;
    if (attachment !== undefined && attachment.hwpt !== hwpt) return -EINVAL;
    if (attachment === undefined && igroup.ictx.allocFails()) return -ENOMEM;
    if (reserving !== undefined) {
      const rc = yield* attachReservedIova(idev, reserving, sink);
      if (rc < 0) return rc;
    }
    if (attachment === undefined) {
      yield 'iommufd:attach-reserved';
      const handle = yield* attachHardware(idev, pasid, hwpt);
      if (typeof handle === 'number') {
        if (reserving !== undefined) yield* reserving.ioas.iopt.remove_reserved_iova(idev.device);
        return handle;
      }
      sharedWrite(igroup, 'attachments', undefined, hwpt);
      igroup.attachments.set(pasid, { hwpt, handle, devices: [idev] });
    } else {
      sharedWrite(igroup, 'attachments', hwpt, hwpt);
      attachment.devices.push(idev);
    }
    hwpt.refcountInc();
    return 0;
  } finally {
    igroup.lock.unlock();
  }
}

/** `iommufd_hw_pagetable_detach`: the page table, with the reference the caller must put; undefined when nothing is attached. */
function* hwptDetach(idev: IommufdDevice, pasid: number): Task<Hwpt | undefined> {
  const { igroup } = idev;
  yield* igroup.lock.lock();
  try {
    const attachment = igroup.attachments.get(pasid);
    if (attachment === undefined) return undefined;
    const { hwpt, handle, devices } = attachment;
    const index = devices.indexOf(idev);
    sharedWrite(igroup, 'attachments', hwpt, devices.length > 1 ? hwpt : undefined);
    if (index >= 0) devices.splice(index, 1);
    if (devices.length === 0) {
      if (pasid === IOMMU_NO_PASID) yield* iommu_detach_group_handle(igroup.group);
      else yield* iommu_detach_device_pasid(idev.device, pasid);
      yield* endAttachment(hwpt, handle);
      igroup.attachments.delete(pasid);
    }
    if (pasid === IOMMU_NO_PASID) yield* hwpt.paging?.ioas.iopt.remove_reserved_iova(idev.device) ?? nothingReserved();
    return hwpt;
  } finally {
    igroup.lock.unlock();
  }
}

/** The hardware does not use a page table through an attachment any more: what is in the page table's queue of it is answered. */
function* endAttachment(hwpt: Hwpt, handle: IommufdAttachHandle): Task<void> {
  if (hwpt.fault !== undefined) yield* hwpt.fault.respondAll(handle);
  sharedWrite(handle, 'isOver', handle.isOver, true);
  handle.isOver = true;
}

function* nothingReserved(): Task<void> {
  // A page table without an address space of its own.
}

function* doAttach(idev: IommufdDevice, pasid: number, hwpt: Hwpt, sink: FailureSink): Task<undefined | number> {
  const rc = yield* hwptAttach(idev, pasid, hwpt, sink);
  return rc < 0 ? rc : undefined;
}

/** Reserves the regions of all attached devices in the new page table's address space. 0 or -errno. */
function* replaceReservedIova(
  igroup: IommufdGroup,
  hwpt: HwptPaging,
  old: HwptPaging | undefined,
  sink: FailureSink,
): Task<number> {
  let rc = 0;
  if (hwpt.ioas !== old?.ioas) {
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
  if (rc < 0 && hwpt.ioas !== old?.ioas) yield* removeReservedIova(igroup, hwpt);
  return rc;
}

function* removeReservedIova(igroup: IommufdGroup, hwpt: HwptPaging): Task<void> {
  for (const { device } of igroup.attached) yield* hwpt.ioas.iopt.remove_reserved_iova(device);
}

/** Moves the hardware from one page table to another: the new handle, or -errno with nothing changed. */
function* replaceHardware(idev: IommufdDevice, pasid: number, hwpt: Hwpt): Task<IommufdAttachHandle | number> {
  const { igroup } = idev;
  let rc = checkPasidCompat(igroup, hwpt, pasid);
  if (rc < 0) return rc;
  if (igroup.ictx.allocFails()) return -ENOMEM;
  const handle = igroup.handle(idev, hwpt);
  if (pasid === IOMMU_NO_PASID) rc = yield* iommu_replace_group_handle(igroup.group, hwpt.domain, handle);
  else rc = yield* iommu_replace_device_pasid(hwpt.domain, idev.device, pasid, handle);
  return rc < 0 ? rc : handle;
}

/** `iommufd_device_do_replace`: moves the whole group; the old page table, undefined if it is the same, or -errno. */
function* doReplace(
  idev: IommufdDevice,
  pasid: number,
  hwpt: Hwpt,
  sink: FailureSink,
): Task<Hwpt | undefined | number> {
  const { igroup } = idev;
  yield* igroup.lock.lock();
  try {
    const attachment = igroup.attachments.get(pasid);
    if (attachment?.devices.includes(idev) !== true) return -EINVAL;
    const { hwpt: old, handle: oldHandle } = attachment;
    if (old === hwpt) return undefined;
    const isPlain = pasid === IOMMU_NO_PASID;
    const [paging, oldPaging] = isPlain ? [hwpt.paging, old.paging] : [undefined, undefined];
    const isMoving = paging?.ioas !== oldPaging?.ioas;
    if (paging !== undefined) {
      const rc = yield* replaceReservedIova(igroup, paging, oldPaging, sink);
      if (rc < 0) return rc;
    }
    const handle = yield* replaceHardware(idev, pasid, hwpt);
    if (typeof handle === 'number') {
      if (paging !== undefined && isMoving) yield* removeReservedIova(igroup, paging);
      return handle;
    }
    const asked = igroup.ictx.instruments.fires('iommufd.auto-response-wrong-queue') ? hwpt : old;
    yield* endAttachment(asked, oldHandle);
    if (oldPaging !== undefined && isMoving) yield* removeReservedIova(igroup, oldPaging);
    sharedWrite(igroup, 'attachments', old, hwpt);
    attachment.hwpt = hwpt;
    attachment.handle = handle;
    hwpt.refcountInc(attachment.devices.length);
    old.refcountDec(attachment.devices.length - 1);
    return old;
  } finally {
    igroup.lock.unlock();
  }
}

/** Finds or makes an automatic page table of an address space; its number and what {@link AttachFunction} answered. */
function* autoGetDomain(
  idev: IommufdDevice,
  pasid: number,
  ioas: Ioas,
  attach: AttachFunction,
  sink: FailureSink,
): Task<{ readonly ptId: number; readonly old: Hwpt | undefined } | number> {
  const { ictx } = idev;
  yield* ioas.mutex.lock();
  try {
    for (const hwpt of [...ioas.hwpts]) {
      if (!hwpt.isAuto || !ictx.objects.tryHold(hwpt)) continue;
      const old = yield* attach(idev, pasid, hwpt, sink);
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
          attach: (made: HwptPaging) => hwptAttach(idev, pasid, made, sink),
          detach: (made: HwptPaging) => undoAttach(idev, pasid, made),
        }),
      },
      sink,
    );
    if (typeof hwpt === 'number') return hwpt;
    const old = isImmediate ? undefined : yield* attach(idev, pasid, hwpt, sink);
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

function* undoAttach(idev: IommufdDevice, pasid: number, hwpt: Hwpt): Task<void> {
  yield* hwptDetach(idev, pasid);
  hwpt.refcountDec();
}

/** A page table is put on the list of its address space, where it has been since it was made. */
function* listAgain(hwpt: Hwpt): Task<void> {
  if (!(hwpt instanceof HwptPaging)) return;
  yield* hwpt.ioas.mutex.lock();
  hwpt.ioas.addHwpt(hwpt);
  hwpt.ioas.mutex.unlock();
}

function* changePt(
  idev: IommufdDevice,
  pasid: number,
  ptId: number,
  attach: AttachFunction,
  sink: FailureSink,
): Task<number> {
  const { ictx } = idev;
  const target = ictx.objects.get(ptId, (object): object is IommufdObject => object instanceof IommufdObject);
  if (target === undefined) return -ENOENT;
  yield 'iommufd:object-found';
  let attachedId = ptId;
  let old: Hwpt | undefined | number;
  if (target instanceof Hwpt) {
    old = yield* attach(idev, pasid, target, sink);
    if (typeof old !== 'number' && ictx.instruments.fires('iommufd.hwpt-listed-twice')) yield* listAgain(target);
  } else if (target instanceof Ioas) {
    const result = yield* autoGetDomain(idev, pasid, target, attach, sink);
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
 * Attaches a device (or one PASID of it) that is not attached to an address space or page table; the number of the page table it got,
 * or -errno: EADDRINUSE a reserved region or the aperture is in conflict with what is mapped or allowed, EBUSY attached already, EINVAL,
 * ENOENT, EFAULT and ENOMEM from pinning.
 */
export function* iommufd_device_attach(
  idev: IommufdDevice,
  ptId: number,
  sink: FailureSink = silentSink,
  pasid = IOMMU_NO_PASID,
): Task<number> {
  const result = yield* changePt(idev, pasid, ptId, doAttach, sink);
  if (result >= 0) idev.refcountInc();
  return result;
}

/** Moves an attached device, and its group, to another address space or page table; as attach, nothing changes on error. */
export function* iommufd_device_replace(
  idev: IommufdDevice,
  ptId: number,
  sink: FailureSink = silentSink,
  pasid = IOMMU_NO_PASID,
): Task<number> {
  return yield* changePt(idev, pasid, ptId, doReplace, sink);
}

/** Detaches a device; the last of a group leaves it blocked. Nothing happens when it is not attached. */
export function* iommufd_device_detach(idev: IommufdDevice, pasid = IOMMU_NO_PASID): Task<void> {
  const hwpt = yield* hwptDetach(idev, pasid);
  if (hwpt === undefined) return;
  yield* hwptPut(idev.ictx, hwpt);
  idev.refcountDec();
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
    cmd.out_max_pasid_log2 = driver.maxPasidLog2?.(idev.device) ?? 0;
    cmd.out_capabilities = BigInt(
      (driver.supportsAts?.(idev.device) === true ? 0 : IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED) |
        (driver.capable(idev.device, 'DIRTY_TRACKING') ? IOMMU_HW_CAP_DIRTY_TRACKING : 0),
    );
    return ucmd.respond();
  } finally {
    ictx.objects.put(idev);
  }
}
