/**
 * vIOMMUs: the slice of a physical IOMMU that a VM sees, devices with virtual IDs on it, queues it has in hardware.
 *
 * A vIOMMU refers to its nesting parent; vDEVICEs, queues and nested page tables refer to the vIOMMU. A vDEVICE belongs to its device:
 * when the device is unbound first, the vDEVICE goes and its number stays taken (a tombstone) until user space destroys it.
 *
 * Locks: `igroup.lock` covers a device's vDEVICE, `veventqs_rwsem` the queues of events. Source: Linux drivers/iommu/iommufd/viommu.c; domain.md A1.17, A1.18, A1.21.
 */
import { RwSemaphore, type Holdable } from '../../runtime/locks.js';
import type { Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW, ERANGE } from '../../uapi/errno.js';
import {
  IOMMU_HW_QUEUE_TYPE_DEFAULT,
  IOMMU_VIOMMU_TYPE_DEFAULT,
  type iommu_hw_queue_alloc,
  type iommu_vdevice_alloc,
  type iommu_viommu_alloc,
} from '../../uapi/iommufd.js';
import type { IommuDriver, UserDomainData, ViommuDriver, ViommuHost } from '../iommu/domain.js';
import {
  iommufd_access_attach_internal,
  iommufd_access_create_internal,
  iommufd_access_destroy,
  iommufd_access_pin_pages,
  iommufd_access_unpin_pages,
  type IommufdAccess,
} from './access.js';
import { getDevice, type IommufdDevice } from './device.js';
import type { IommufdVeventq } from './eventq.js';
import { isHwptPaging, type HwptPaging } from './hw-pagetable.js';
import { IOVA_MAX } from './io-pagetable.js';
import type { CommandOf } from './ioas.js';
import type { IommufdContext } from './main.js';
import { IommufdObject } from './object.js';
import { PAGE_BYTES, PAGE_SIZE } from './pages.js';
import { userData } from './user-data.js';

/** `struct iommufd_viommu` */
export class IommufdViommu extends IommufdObject {
  override readonly type = 'viommu';
  readonly ictx: IommufdContext;
  readonly hwpt: HwptPaging;
  /** The physical IOMMU it is a slice of. */
  readonly iommu: IommuDriver;
  readonly vdevs = new Map<bigint, IommufdVdevice>();
  readonly veventqs: IommufdVeventq[] = [];
  readonly veventqs_rwsem = new RwSemaphore('iommufd:veventqs_rwsem');
  driver: ViommuDriver = {};
  readonly #mmaps: number[] = [];

  constructor(ictx: IommufdContext, hwpt: HwptPaging, iommu: IommuDriver) {
    super();
    this.ictx = ictx;
    this.hwpt = hwpt;
    this.iommu = iommu;
  }

  override get locks(): readonly Holdable[] {
    return [this.veventqs_rwsem];
  }

  /** What its driver is given. */
  host(copyToUser: (bytes: Uint8Array) => number): ViommuHost {
    return {
      parent: this.hwpt.domain,
      vdevId: (device) => {
        sharedRead(this, 'virtual devices');
        return [...this.vdevs].find(([, vdev]) => vdev.idev.device === device)?.[0] ?? -ENOENT;
      },
      find_dev: (virtId) => {
        sharedRead(this, 'virtual devices');
        return this.vdevs.get(virtId)?.idev.device;
      },
      alloc_mmap: (pa, lengthBytes) => {
        const offset = this.ictx.mmaps.alloc(this, pa, lengthBytes);
        this.#mmaps.push(offset);
        return offset;
      },
      copyToUser,
      report_event: (type, bytes) => this.#reportEvent(type, bytes),
    };
  }

  /** `iommufd_viommu_report_event` */
  *#reportEvent(type: number, bytes: Uint8Array): Task<number> {
    yield* this.veventqs_rwsem.down_read();
    sharedRead(this, 'event queues');
    const queue = this.veventqs.find((candidate) => candidate.eventType === type);
    const isLost = queue !== undefined && this.ictx.allocFails();
    queue?.report(isLost ? undefined : bytes);
    this.veventqs_rwsem.up_read();
    if (queue === undefined) return -EOPNOTSUPP;
    return isLost ? -ENOMEM : 0;
  }

  override *destroy(): Task<void> {
    for (const offset of this.#mmaps) this.ictx.mmaps.free(offset);
    yield* this.driver.destroy?.() ?? nothing();
    this.hwpt.refcountDec();
  }
}

function* nothing(): Task<void> {
  // Some drivers keep nothing.
}

function isViommu(object: IommufdObject): object is IommufdViommu {
  return object instanceof IommufdViommu;
}

/** The vIOMMU with this number, to be given back with `objects.put`. */
export function getViommu(ictx: IommufdContext, id: number): IommufdViommu | undefined {
  return ictx.objects.get(id, isViommu);
}

/** IOMMU_VIOMMU_ALLOC */
export function* viommuAlloc(ucmd: CommandOf<typeof iommu_viommu_alloc>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.flags !== 0 || cmd.type === IOMMU_VIOMMU_TYPE_DEFAULT) return -EOPNOTSUPP;
  const idev = getDevice(ictx, cmd.dev_id);
  if (idev === undefined) return -ENOENT;
  try {
    const { driver } = idev.igroup.group;
    if (driver.viommu?.supports(idev.device, cmd.type) !== true) return -EOPNOTSUPP;
    const hwpt = ictx.objects.get(cmd.hwpt_id, isHwptPaging);
    if (hwpt === undefined) return -ENOENT;
    yield 'iommufd:object-found';
    try {
      return hwpt.isNestParent ? yield* makeViommu(ucmd, idev, hwpt) : -EINVAL;
    } finally {
      ictx.objects.put(hwpt);
    }
  } finally {
    ictx.objects.put(idev);
  }
}

function* makeViommu(
  ucmd: CommandOf<typeof iommu_viommu_alloc>,
  { device, igroup }: IommufdDevice,
  hwpt: HwptPaging,
): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  const { driver } = igroup.group;
  let data: UserDomainData | undefined;
  if (cmd.data_len > 0) {
    data = userData(ctx, cmd.type, cmd.data_uptr, cmd.data_len);
  }
  const viommu = new IommufdViommu(ictx, hwpt, driver);
  const allocated = ictx.objects.alloc(viommu);
  if (allocated < 0) return allocated;
  hwpt.refcountInc();
  const copyToUser = (bytes: Uint8Array): number =>
    ctx.copy_to_user(cmd.data_uptr, bytes.subarray(0, cmd.data_len)) ? 0 : -EFAULT;
  const made = yield* driver.viommu?.init(device, viommu.host(copyToUser), data) ?? noDriver();
  let rc = typeof made === 'number' ? made : 0;
  if (typeof made !== 'number') viommu.driver = made;
  if (rc === 0) {
    cmd.out_viommu_id = viommu.id;
    rc = ucmd.respond();
  }
  if (rc < 0) {
    yield* viommu.destroy();
    ictx.objects.abort(viommu);
    return rc;
  }
  ictx.objects.finalize(viommu);
  return 0;
}

function* noDriver(): Task<number> {
  return -EOPNOTSUPP;
}

/** `struct iommufd_vdevice` */
export class IommufdVdevice extends IommufdObject {
  override readonly type = 'vdevice';
  readonly viommu: IommufdViommu;
  readonly idev: IommufdDevice;
  readonly virtId: bigint;

  constructor(viommu: IommufdViommu, idev: IommufdDevice, virtId: bigint) {
    super();
    this.viommu = viommu;
    this.idev = idev;
    this.virtId = virtId;
  }

  override *destroy(): Task<void> {
    const { idev, viommu, virtId } = this;
    yield* idev.igroup.lock.lock();
    sharedWrite(viommu, 'virtual devices');
    if (viommu.vdevs.get(virtId) === this) {
      viommu.vdevs.delete(virtId);
      viommu.driver.vdevice_destroy?.(idev.device, virtId);
    }
    viommu.refcountDec();
    sharedWrite(idev, 'virtual self', this.id, undefined);
    idev.vdev = undefined;
    idev.igroup.lock.unlock();
    idev.ictx.objects.put(idev);
  }
}

/** IOMMU_VDEVICE_ALLOC */
export function* vdeviceAlloc(ucmd: CommandOf<typeof iommu_vdevice_alloc>): Task<number> {
  const { cmd, ictx } = ucmd;
  const viommu = getViommu(ictx, cmd.viommu_id);
  if (viommu === undefined) return -ENOENT;
  try {
    const idev = getDevice(ictx, cmd.dev_id);
    if (idev === undefined) return -ENOENT;
    yield 'iommufd:object-found';
    // The reference stays while the vDEVICE does.
    const rc = yield* makeVdevice(ucmd, viommu, idev);
    if (rc < 0) ictx.objects.put(idev);
    return rc;
  } finally {
    ictx.objects.put(viommu);
  }
}

function* makeVdevice(
  ucmd: CommandOf<typeof iommu_vdevice_alloc>,
  viommu: IommufdViommu,
  idev: IommufdDevice,
): Task<number> {
  const { cmd, ictx } = ucmd;
  if (viommu.iommu !== idev.igroup.group.driver) return -EINVAL;
  const { lock } = idev.igroup;
  yield* lock.lock();
  try {
    sharedRead(idev, 'virtual self', idev.vdev?.id);
    if (idev.isDestroying) return -ENOENT;
    if (idev.vdev !== undefined || viommu.vdevs.has(cmd.virt_id)) return -EEXIST;
    const vdev = new IommufdVdevice(viommu, idev, cmd.virt_id);
    const allocated = ictx.objects.alloc(vdev);
    if (allocated < 0) return allocated;
    sharedWrite(viommu, 'virtual devices');
    viommu.vdevs.set(cmd.virt_id, vdev);
    let rc = yield* viommu.driver.vdevice_init?.(idev.device, cmd.virt_id) ?? ready();
    if (rc === 0) {
      cmd.out_vdevice_id = vdev.id;
      rc = ucmd.respond();
    }
    if (rc < 0) {
      sharedWrite(viommu, 'virtual devices');
      viommu.vdevs.delete(cmd.virt_id);
      ictx.objects.abort(vdev);
      return rc;
    }
    viommu.refcountInc();
    sharedWrite(idev, 'virtual self', undefined, vdev.id);
    idev.vdev = vdev;
    ictx.objects.finalize(vdev);
    return 0;
  } finally {
    lock.unlock();
  }
}

function* ready(): Task<number> {
  return 0;
}

/** A device is about to be unbound: its vDEVICE goes, its number stays taken (`iommufd_device_remove_vdev`). */
export function* iommufd_device_remove_vdev(idev: IommufdDevice): Task<void> {
  yield* idev.igroup.lock.lock();
  sharedWrite(idev, 'virtual self', idev.vdev?.id, idev.vdev?.id);
  idev.isDestroying = true;
  const { vdev } = idev;
  const { objects } = idev.ictx;
  // One that IOMMU_DESTROY is destroying waits for this lock; the device waits for the reference that it gives back then.
  const isAlive = vdev !== undefined && objects.tryHold(vdev);
  if (isAlive) {
    vdev.refcountInc();
    objects.put(vdev);
  }
  idev.igroup.lock.unlock();
  if (isAlive) yield* objects.tombstone(vdev);
}

// --- queues in hardware ---

/** The most pages the kernel can list: kvmalloc gives INT_MAX bytes of pointers at most. */
const MAX_QUEUE_PAGES = (2n ** 31n - 1n) / 8n;

/** `struct iommufd_hw_queue` */
class IommufdHwQueue extends IommufdObject {
  override readonly type = 'hw-queue';
  readonly viommu: IommufdViommu;
  readonly pages: QueuePages;
  /** What keeps the pages pinned. */
  access: IommufdAccess | undefined;
  isInHardware = false;
  /** The queue before it, which it needs. */
  previous: IommufdHwQueue | undefined;

  constructor(viommu: IommufdViommu, pages: QueuePages) {
    super();
    this.viommu = viommu;
    this.pages = pages;
  }

  override *destroy(): Task<void> {
    const { viommu, access, previous, pages } = this;
    if (this.isInHardware) viommu.driver.hw_queue?.destroy(this);
    if (previous !== undefined) previous.refcountDec();
    if (access === undefined) return;
    yield* iommufd_access_unpin_pages(access, pages.start, pages.length);
    yield* iommufd_access_destroy(access);
    viommu.refcountDec();
  }
}

/** IOMMU_HW_QUEUE_ALLOC */
export function* hwQueueAlloc(ucmd: CommandOf<typeof iommu_hw_queue_alloc>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.flags !== 0 || cmd.type === IOMMU_HW_QUEUE_TYPE_DEFAULT) return -EOPNOTSUPP;
  if (cmd.length === 0n) return -EINVAL;
  if (cmd.nesting_parent_iova + cmd.length - 1n > IOVA_MAX) return -EOVERFLOW;
  const viommu = getViommu(ictx, cmd.viommu_id);
  if (viommu === undefined) return -ENOENT;
  try {
    if (viommu.driver.hw_queue?.supports(cmd.type) !== true) return -EOPNOTSUPP;
    return yield* makeHwQueue(ucmd, viommu);
  } finally {
    ictx.objects.put(viommu);
  }
}

/** Pins a queue's pages for good and finds where they lie: the physical address of its first byte, or -errno. */
function* pinQueue(access: IommufdAccess, { start, length, offset }: QueuePages): Task<number> {
  const runs = yield* iommufd_access_pin_pages(access, start, length, false);
  if (typeof runs === 'number') return runs;
  const [first] = runs;
  if (first === undefined || BigInt(first.pages) * PAGE_SIZE !== length) {
    yield* iommufd_access_unpin_pages(access, start, length);
    return -EFAULT;
  }
  return first.pfn * PAGE_BYTES + offset;
}

/** Whole pages that a queue lies in, and where in the first it begins. */
interface QueuePages {
  readonly start: bigint;
  readonly length: bigint;
  readonly offset: number;
}

function pagesOf(iova: bigint, length: bigint): QueuePages {
  const offset = iova % PAGE_SIZE;
  const whole = ((offset + length + PAGE_SIZE - 1n) / PAGE_SIZE) * PAGE_SIZE;
  return { start: iova - offset, length: whole, offset: Number(offset) };
}

function* makeHwQueue(ucmd: CommandOf<typeof iommu_hw_queue_alloc>, viommu: IommufdViommu): Task<number> {
  const { cmd, ictx } = ucmd;
  const pages = pagesOf(cmd.nesting_parent_iova, cmd.length);
  if (pages.length > IOVA_MAX) return -ERANGE;
  if (pages.length / PAGE_SIZE > MAX_QUEUE_PAGES) return -ENOMEM;
  const queue = new IommufdHwQueue(viommu, pages);
  const allocated = ictx.objects.alloc(queue);
  if (allocated < 0) return allocated;
  const access = iommufd_access_create_internal(ictx);
  if (typeof access === 'number') {
    ictx.objects.abort(queue);
    return access;
  }
  const attached = yield* iommufd_access_attach_internal(access, viommu.hwpt.ioas);
  const basePa = attached < 0 ? attached : yield* pinQueue(access, pages);
  if (basePa < 0) {
    yield* iommufd_access_destroy(access);
    ictx.objects.abort(queue);
    return basePa;
  }
  queue.access = access;
  viommu.refcountInc();
  const set = viommu.driver.hw_queue?.init(queue, cmd.index, cmd.nesting_parent_iova, basePa) ?? -EOPNOTSUPP;
  let rc = typeof set === 'number' ? set : 0;
  if (typeof set !== 'number') {
    queue.isInHardware = true;
    queue.previous = set.previous as IommufdHwQueue | undefined;
    if (queue.previous !== undefined) queue.previous.refcountInc();
    cmd.out_hw_queue_id = queue.id;
    rc = ucmd.respond();
  }
  if (rc < 0) {
    yield* queue.destroy();
    ictx.objects.abort(queue);
    return rc;
  }
  ictx.objects.finalize(queue);
  return 0;
}
