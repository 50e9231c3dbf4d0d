/**
 * The mock IOMMU of the selftest and its devices: what a driver under drivers/iommu would be.
 *
 * It translates nothing; tests look into its page tables instead. One instance serves all mock devices of a kernel, each of
 * which is in a group of its own and has no reserved regions.
 *
 * Source: Linux drivers/iommu/iommufd/selftest.c (mock_ops).
 */
import type { FaultSwitches } from '../../../runtime/faults.js';
import { RwSemaphore } from '../../../runtime/locks.js';
import { InvariantError, type Task } from '../../../runtime/task.js';
import { sharedRead, sharedTest, sharedWrite } from '../../../runtime/watch.js';
import { EEXIST, EFAULT, EINVAL, EIO, ENOENT, ENOMEM, EOPNOTSUPP } from '../../../uapi/errno.js';
import {
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_HW_INFO_TYPE_DEFAULT,
} from '../../../uapi/iommufd.js';
import {
  IOMMU_HWPT_DATA_SELFTEST,
  IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
  IOMMU_HW_INFO_SELFTEST_REGVAL,
  IOMMU_HW_INFO_TYPE_SELFTEST,
  IOMMU_HW_QUEUE_TYPE_SELFTEST,
  IOMMU_TEST_DEV_CACHE_DEFAULT,
  IOMMU_TEST_HW_QUEUE_MAX,
  IOMMU_TEST_INVALIDATE_FLAG_ALL,
  IOMMU_TEST_PASID_RESERVED,
  IOMMU_VEVENTQ_TYPE_SELFTEST,
  IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
  IOMMU_VIOMMU_TYPE_SELFTEST,
  MOCK_DEV_CACHE_NUM,
  MOCK_FLAGS_DEVICE_NO_DIRTY,
  MOCK_FLAGS_DEVICE_PASID,
  MOCK_IOMMUPT_DEFAULT,
  MOCK_IOMMUPT_HUGE,
  MOCK_NESTED_DOMAIN_IOTLB_NUM,
  MOCK_PASID_WIDTH,
  iommu_hwpt_invalidate_selftest,
  iommu_hwpt_selftest,
  iommu_test_hw_info,
  iommu_viommu_event_selftest,
  iommu_viommu_invalidate_selftest,
  iommu_viommu_selftest,
} from '../../../uapi/iommufd-test.js';
import type { Device } from '../../device.js';
import { IommuGroup } from '../../iommu/group.js';
import type {
  HwInfo,
  HwQueueDriver,
  IommuCapability,
  IommuDomain,
  IommuDriver,
  NestedDomain,
  PagingDomain,
  UserArray,
  UserArrayOutcome,
  UserDomainData,
  ViommuDriver,
  ViommuHost,
} from '../../iommu/domain.js';
import { PAGE_BYTES } from '../pages.js';
import { MOCK_FORMAT_DEFAULT, MOCK_FORMAT_HUGE, MockDomain, type MockFormat } from './mock-domain.js';

/** `struct mock_dev`: a device on no bus. */
export class MockDevice implements Device {
  readonly name: string;
  /** MOCK_FLAGS_DEVICE_*. */
  readonly flags: number;
  readonly parent = undefined;
  readonly isMultifunction = false;
  readonly streamIds: readonly number[] = [];
  readonly iommu = 'mock';
  readonly msiController = undefined;
  readonly msiDeviceId = 0;
  readonly busMates = (): readonly Device[] => [];
  driver: string | undefined;
  driverOverride: string | undefined;
  group: IommuGroup | undefined;
  readonly cache = new Uint32Array(MOCK_DEV_CACHE_NUM).fill(IOMMU_TEST_DEV_CACHE_DEFAULT);
  /** Covers {@link viommu} and {@link virtId}; whoever tells of the device holds it for reading. */
  readonly viommu_rwsem = new RwSemaphore('mock:viommu_rwsem');
  /** The vIOMMU its nested page table goes through, and its ID there. */
  viommu: MockViommu | undefined;
  virtId = 0n;
  /** The next attach of IOMMU_TEST_PASID_RESERVED fails, once. */
  failsNextPasid = false;

  constructor(name: string, flags: number) {
    this.name = name;
    this.flags = flags;
  }

  get function(): never {
    throw new InvariantError(`${this.name} is not a PCI device`);
  }
}

/** Kernel memory of a mock. */
export interface MockPages {
  readonly pa: number;
  free(): void;
}

/**
 * Where mocks get memory from: zeroed, physically contiguous, aligned to its length rounded up to a power of two, the first four bytes as given;
 * undefined without memory.
 */
export type MockPageSource = (pages: number, firstWord: number) => MockPages | undefined;

/** A nested page table's IOTLB. */
export class MockNested implements NestedDomain {
  readonly type = 'nested';
  readonly driver: IommuDriver;
  readonly viommu: MockViommu | undefined;
  readonly iotlb: Uint32Array;

  constructor(driver: IommuDriver, viommu: MockViommu | undefined, iotlb: number) {
    this.driver = driver;
    this.viommu = viommu;
    this.iotlb = new Uint32Array(MOCK_NESTED_DOMAIN_IOTLB_NUM).fill(iotlb);
  }

  *cache_invalidate_user(array: UserArray): Task<UserArrayOutcome> {
    if (array.type !== IOMMU_HWPT_INVALIDATE_DATA_SELFTEST) return { rc: -EINVAL, done: 0 };
    const { sizeBytes } = iommu_hwpt_invalidate_selftest;
    for (let done = 0; done < array.entries; done++) {
      const bytes = array.entry(done, sizeBytes, sizeBytes);
      if (typeof bytes === 'number') return { rc: bytes, done };
      const { flags, iotlb_id } = iommu_hwpt_invalidate_selftest.decode(bytes);
      if ((flags & ~IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) return { rc: -EOPNOTSUPP, done };
      if (iotlb_id >= this.iotlb.length) return { rc: -EINVAL, done };
      sharedWrite(this, 'iotlb');
      if ((flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) this.iotlb.fill(0);
      else this.iotlb[iotlb_id] = 0;
    }
    return { rc: 0, done: array.entries };
  }

  *free(): Task<void> {
    // Nothing but an object.
  }
}

function nestedOf(driver: IommuDriver, viommu: MockViommu | undefined, data: UserDomainData): MockNested | number {
  if (data.type !== IOMMU_HWPT_DATA_SELFTEST) return -EOPNOTSUPP;
  const bytes = data.copy(IOMMU_HWPT_DATA_SELFTEST, HWPT_DATA_MINIMUM_BYTES, iommu_hwpt_selftest.sizeBytes);
  return typeof bytes === 'number' ? bytes : new MockNested(driver, viommu, iommu_hwpt_selftest.decode(bytes).iotlb);
}

/** A vIOMMU of the mock IOMMU. */
export class MockViommu implements ViommuDriver {
  readonly host: ViommuHost;
  readonly hw_queue: HwQueueDriver;
  readonly #iommu: MockIommu;
  readonly #queues: (object | undefined)[] = new Array<object | undefined>(IOMMU_TEST_HW_QUEUE_MAX).fill(undefined);
  readonly #page: MockPages | undefined;

  constructor(iommu: MockIommu, host: ViommuHost, page: MockPages | undefined) {
    this.#iommu = iommu;
    this.host = host;
    this.#page = page;
    this.hw_queue = {
      supports: (type) => type === IOMMU_HW_QUEUE_TYPE_SELFTEST,
      init: (queue, index, iova, pa) => this.#initQueue(queue, index, iova, pa),
      // The driver never notes a queue's index: whichever goes, it is the first one's place that is free (selftest.c).
      destroy: () => {
        sharedWrite(this, 'hardware queues');
        this.#queues[0] = undefined;
      },
    };
  }

  *alloc_domain_nested(flags: number, data: UserDomainData): Task<NestedDomain | number> {
    return (flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0 ? -EOPNOTSUPP : nestedOf(this.#iommu, this, data);
  }

  *cache_invalidate(array: UserArray): Task<UserArrayOutcome> {
    const { sizeBytes } = iommu_viommu_invalidate_selftest;
    const isType = array.type === IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST;
    // Without entries it only says whether there is such a type.
    if (isType && array.entries === 0) return { rc: 0, done: 0 };
    const all = isType ? array.all(sizeBytes) : -EINVAL;
    if (typeof all === 'number') return { rc: all, done: 0 };
    for (const [done, bytes] of all.entries()) {
      const { flags, vdev_id, cache_id } = iommu_viommu_invalidate_selftest.decode(bytes);
      if ((flags & ~IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) return { rc: -EOPNOTSUPP, done };
      if (cache_id >= MOCK_DEV_CACHE_NUM) return { rc: -EINVAL, done };
      const device = this.host.find_dev(BigInt(vdev_id));
      if (!(device instanceof MockDevice)) return { rc: -EINVAL, done };
      sharedWrite(device, 'cache');
      if ((flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) device.cache.fill(0);
      else device.cache[cache_id] = 0;
    }
    return { rc: 0, done: all.length };
  }

  /** An event that names a device by its virtual ID. */
  *report(virtId: bigint): Task<number> {
    const bytes = iommu_viommu_event_selftest.encode({ virt_id: Number(virtId & 0xffff_ffffn) });
    return yield* this.host.report_event(IOMMU_VEVENTQ_TYPE_SELFTEST, bytes);
  }

  *destroy(): Task<void> {
    this.#page?.free();
  }

  #initQueue(
    queue: object,
    index: number,
    iova: bigint,
    pa: number,
  ): number | { readonly previous: object | undefined } {
    if (index >= IOMMU_TEST_HW_QUEUE_MAX) return -EINVAL;
    sharedWrite(this, 'hardware queues');
    if (this.#queues[index] !== undefined) return -EEXIST;
    const previous = index === 0 ? undefined : this.#queues[index - 1];
    if (index > 0 && previous === undefined) return -EIO;
    if (this.host.parent.iova_to_phys(Number(iova)) !== pa) return -EFAULT;
    this.#queues[index] = queue;
    return { previous };
  }
}

function isMock(device: Device): device is MockDevice {
  return device instanceof MockDevice;
}

const PAGING_FLAGS = IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_PASID;
const HWPT_DATA_MINIMUM_BYTES = iommu_hwpt_selftest.endOf('iotlb');

/** `mock_ops`, and the making of devices. */
export class MockIommu implements IommuDriver {
  readonly name = 'mock';
  readonly identityDomain: IommuDomain = { type: 'identity', driver: this };
  readonly blockedDomain: IommuDomain = { type: 'blocked', driver: this };
  readonly viommu: NonNullable<IommuDriver['viommu']>;
  readonly #pages: MockPageSource;
  readonly #faults: FaultSwitches | undefined;
  #nextDevice = 0;

  constructor(pages: MockPageSource, faults?: FaultSwitches) {
    this.#pages = pages;
    this.#faults = faults;
    this.viommu = {
      supports: (_device, type) => type === IOMMU_VIOMMU_TYPE_SELFTEST,
      init: (_device, host, data) => this.#initViommu(host, data),
    };
  }

  /** A device with a group of its own, blocked until it is attached (`mock_dev_create`). */
  createDevice(flags: number): MockDevice {
    sharedWrite(this, 'devices', this.#nextDevice, this.#nextDevice + 1);
    const number = this.#nextDevice++;
    const device = new MockDevice(`iommufd_mock${number}`, flags);
    const group = new IommuGroup(number, 'DMA');
    group.add({ device, driver: this, resvRegions: [], hasIsolatedMsi: true });
    group.defaultDomain = group.domain = this.blockedDomain;
    device.group = group;
    return device;
  }

  /** Memory for a test. */
  allocPages(pages: number): MockPages | undefined {
    return this.#pages(pages, 0);
  }

  capable(device: Device, capability: IommuCapability): boolean {
    return capability === 'DIRTY_TRACKING' ? !lacksDirty(device) : capability === 'CACHE_COHERENCY';
  }

  *domain_alloc_default(_device: Device): Task<PagingDomain | number> {
    return -EOPNOTSUPP;
  }

  *domain_alloc_paging_flags(
    device: Device,
    flags: number,
    data: UserDomainData | undefined,
  ): Task<PagingDomain | number> {
    const wantsDirty = (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0;
    if ((flags & ~PAGING_FLAGS) !== 0 || (wantsDirty && lacksDirty(device))) return -EOPNOTSUPP;
    const format = data === undefined ? MOCK_FORMAT_DEFAULT : formatOf(data);
    return typeof format === 'number' ? format : new MockDomain(this, format, wantsDirty, this.#faults);
  }

  *domain_alloc_nested(
    _device: Device,
    _parent: PagingDomain,
    flags: number,
    data: UserDomainData,
  ): Task<NestedDomain | number> {
    return (flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0 ? -EOPNOTSUPP : nestedOf(this, undefined, data);
  }

  *attach_dev(domain: IommuDomain, device: Device): Task<number> {
    if (domain instanceof MockDomain && domain.dirtyOps !== undefined && lacksDirty(device)) return -EINVAL;
    if (!isMock(device)) return -EINVAL;
    const viommu = domain instanceof MockNested ? domain.viommu : undefined;
    const virtId = viommu?.host.vdevId(device) ?? 0n;
    if (typeof virtId === 'number') return virtId;
    // A device that stays behind its vIOMMU keeps the ID it was attached with.
    sharedRead(device, 'virtual self', device.virtId);
    if (device.viommu === viommu) return 0;
    yield* device.viommu_rwsem.down_write();
    sharedWrite(device, 'virtual self', device.virtId, virtId);
    device.viommu = viommu;
    device.virtId = virtId;
    device.viommu_rwsem.up_write();
    return 0;
  }

  *set_dev_pasid(domain: IommuDomain, device: Device, pasid: number): Task<number> {
    if (!isMock(device) || pasid !== IOMMU_TEST_PASID_RESERVED) return 0;
    sharedTest(device, 'fails next', device.failsNextPasid);
    const fails = device.failsNextPasid && domain.type !== 'blocked';
    device.failsNextPasid = domain.type !== 'blocked' && !fails;
    return fails ? -ENOMEM : 0;
  }

  maxPasidLog2(device: Device): number {
    return isMock(device) && (device.flags & MOCK_FLAGS_DEVICE_PASID) !== 0 ? MOCK_PASID_WIDTH : 0;
  }

  /** Makes a device's vIOMMU tell of it: -ENOENT when it is behind none. */
  *triggerVevent(device: MockDevice): Task<number> {
    yield* device.viommu_rwsem.down_read();
    const { viommu, virtId } = device;
    sharedRead(device, 'virtual self', virtId);
    const rc = viommu === undefined || virtId === 0n ? -ENOENT : yield* viommu.report(virtId);
    device.viommu_rwsem.up_read();
    return rc;
  }

  *#initViommu(host: ViommuHost, data: UserDomainData | undefined): Task<ViommuDriver | number> {
    if (data === undefined) return new MockViommu(this, host, undefined);
    const { sizeBytes } = iommu_viommu_selftest;
    const bytes = data.copy(IOMMU_VIOMMU_TYPE_SELFTEST, iommu_viommu_selftest.endOf('out_data'), sizeBytes);
    if (typeof bytes === 'number') return bytes;
    const { in_data } = iommu_viommu_selftest.decode(bytes);
    // Two pages that show the number to whoever maps them.
    const pages = this.#pages(2, in_data);
    if (pages === undefined) return -ENOMEM;
    const lengthBytes = 2 * PAGE_BYTES;
    const offset = host.alloc_mmap(pages.pa, lengthBytes);
    const answer = {
      in_data,
      out_data: in_data,
      out_mmap_offset: BigInt(offset),
      out_mmap_length: BigInt(lengthBytes),
    };
    const rc = host.copyToUser(iommu_viommu_selftest.encode(answer));
    if (rc === 0) return new MockViommu(this, host, pages);
    pages.free();
    return rc;
  }

  *probe_device(_device: Device): Task<number> {
    return 0;
  }

  *release_device(_device: Device): Task<void> {
    // There is nothing a mock knows of its devices.
  }

  hw_info(_device: Device, type: number): HwInfo | number {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_SELFTEST) return -EOPNOTSUPP;
    return {
      type: IOMMU_HW_INFO_TYPE_SELFTEST,
      bytes: iommu_test_hw_info.encode({ test_reg: IOMMU_HW_INFO_SELFTEST_REGVAL }),
    };
  }
}

function lacksDirty(device: Device): boolean {
  return isMock(device) && (device.flags & MOCK_FLAGS_DEVICE_NO_DIRTY) !== 0;
}

/** The kind of page table a caller wants: -EINVAL data of another kind or size, -EOPNOTSUPP no such kind. */
function formatOf(data: UserDomainData): MockFormat | number {
  if (data.type !== IOMMU_HWPT_DATA_SELFTEST) return -EOPNOTSUPP;
  const bytes = data.copy(IOMMU_HWPT_DATA_SELFTEST, HWPT_DATA_MINIMUM_BYTES, iommu_hwpt_selftest.sizeBytes);
  if (typeof bytes === 'number') return bytes;
  switch (iommu_hwpt_selftest.decode(bytes).pagetable_type) {
    case MOCK_IOMMUPT_DEFAULT:
      return MOCK_FORMAT_DEFAULT;
    case MOCK_IOMMUPT_HUGE:
      return MOCK_FORMAT_HUGE;
    default:
      return -EOPNOTSUPP;
  }
}
