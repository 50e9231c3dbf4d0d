/**
 * What the rest of the kernel knows of an IOMMU: domains, and the driver that makes them.
 *
 * A domain is one set of translations. iommufd fills domains without knowing what kind of IOMMU is behind them; a driver
 * (arm-smmu-v3 here, a mock in conformance tests) implements both interfaces. All lengths and addresses of a domain are
 * exact numbers: no aperture reaches beyond 2^53 (VMSAv8-64 input addresses have at most 52 bits).
 *
 * Ownership: whoever allocated a domain frees it, after detaching every device and unmapping everything.
 * `map`, `unmap` and the dirty calls are tasks: between their steps others run. Callers never map or unmap overlapping
 * ranges of one domain at the same time (iommufd's areas guarantee it), but disjoint ranges they may.
 *
 * Source: Linux include/linux/iommu.h, drivers/iommu/iommu.c.
 */
import type { MappingCheck } from './mapping-check.js';
import type { Task } from '../../runtime/task.js';
import type { Device } from '../device.js';

/** `IOMMU_READ`: the device may read. */
export const IOMMU_READ = 1;
/** `IOMMU_WRITE`: the device may write. */
export const IOMMU_WRITE = 2;
/** `IOMMU_CACHE`: accesses are coherent with the CPU's caches. */
export const IOMMU_CACHE = 4;
/** `IOMMU_MMIO`: the target is a device frame, e.g. an MSI doorbell. */
export const IOMMU_MMIO = 16;

/** `IOMMU_DOMAIN_*`: what a domain is for. */
export type DomainType = 'unmanaged' | 'dma' | 'identity' | 'blocked' | 'nested';

/** A caller-supplied place for dirty bits: called once for each run of dirty bytes. */
export type DirtyRecorder = (iova: number, lengthBytes: number) => void;

/** `struct iommu_dirty_ops`: a domain whose tables record writes. */
export interface DirtyOps {
  /** Switches recording on or off; 0 or -errno. */
  set_dirty_tracking(enable: boolean): Task<number>;
  /**
   * Reports every dirty part of iova..iova+lengthBytes-1 to `record`, and makes it clean unless `noClear`. The caller syncs
   * the IOTLB afterwards with {@link PagingDomain.iotlb_sync}. 0, or -EINVAL at the first address that is not mapped.
   */
  read_and_clear_dirty(iova: number, lengthBytes: number, noClear: boolean, record: DirtyRecorder): Task<number>;
}

/** A domain that can leave invalidations for later (`IOMMU_DOMAIN_DMA_FQ`). */
export interface FlushOps {
  /**
   * Unmaps without invalidating: what the IOTLB holds stays usable, and tables that fell empty are kept, until
   * {@link flush_iotlb_all}. Returns bytes unmapped.
   */
  unmap(iova: number, lengthBytes: number): Task<number>;
  /** Removes everything of the domain from the IOTLB, then frees the tables that were kept. */
  flush_iotlb_all(): Task<void>;
}

/** What a domain of any type remembers of who made it. */
export interface IommuInstance {
  /** As in /sys/class/iommu. */
  readonly name: string;
}

/** A domain of any type. */
export interface IommuDomain {
  /** Watches an address space while this shows everything that is mapped in it. */
  check?: MappingCheck | undefined;
  /** Is told of what leaves: an area when it is hidden, and again when it is out of the tables. */
  onLeave?: ((iova: bigint, lengthBytes: bigint) => void) | undefined;
  readonly type: DomainType;
  /** The driver that made it: only its devices can be attached. */
  readonly driver: IommuInstance;
}

/** `struct iommu_domain` of type unmanaged or dma: one that can be mapped. */
export interface PagingDomain extends IommuDomain {
  readonly type: 'unmanaged' | 'dma';
  /** `geometry`: first and last IOVA. */
  readonly apertureStart: bigint;
  readonly apertureLast: bigint;
  /** `pgsize_bitmap` as the sizes of its bits in bytes, smallest first. */
  readonly pageSizes: readonly number[];
  readonly dirtyOps: DirtyOps | undefined;
  readonly flushOps?: FlushOps;
  /**
   * Maps iova.. to pa..; all three aligned to the smallest page size. 0 or -errno; on failure nothing of the range stays
   * mapped. `maxPageBytes` forbids larger leaves.
   *
   * Errors: EEXIST something is mapped there, ENOMEM no memory for tables, ERANGE outside the aperture.
   */
  map(iova: number, pa: number, lengthBytes: number, prot: number, maxPageBytes?: number): Task<number>;
  /** Unmaps whole mappings inside the range and invalidates the IOTLB before it returns; returns bytes unmapped. */
  unmap(iova: number, lengthBytes: number): Task<number>;
  /** Removes what the IOTLB holds of the range, which may be empty; done when the task ends. */
  iotlb_sync(iova: number, lengthBytes: number): Task<void>;
  /** Physical address behind an IOVA; undefined when it is not mapped. */
  iova_to_phys(iova: number): number | undefined;
  /** Everything its tables show, ascending, for those who look at it while nobody changes it. */
  leaves?(): Iterable<DomainLeaf>;
  /** Frees the tables. Nothing may be attached. */
  free(): Task<void>;
}

/** Consecutive addresses that a domain shows as one. */
export interface DomainLeaf {
  readonly iova: number;
  readonly pa: number;
  readonly lengthBytes: number;
  /** 32 bits for what is allowed and whether it is dirty: other ones say that something changed. */
  readonly state: number;
}

/** `struct iommu_user_data_array`: entries in user memory, one command each. */
export interface UserArray {
  readonly type: number;
  readonly entryBytes: number;
  readonly entries: number;
  /**
   * Entry `index` as a struct of `sizeBytes` of which `minimumBytes` must be given (`iommu_copy_struct_from_user_array`): -EINVAL for
   * another length, -EFAULT.
   */
  entry(index: number, minimumBytes: number, sizeBytes: number): Uint8Array | number;
  /** All of them (`iommu_copy_struct_from_full_user_array`): -EINVAL when there are none, -E2BIG for an unknown tail, -EFAULT. */
  all(sizeBytes: number): Uint8Array[] | number;
}

/** How far an array was worked through, and with what result. */
export interface UserArrayOutcome {
  readonly rc: number;
  readonly done: number;
}

/** `struct iommu_domain` of type nested: user space's own tables, under a nesting parent. */
export interface NestedDomain extends IommuDomain {
  readonly type: 'nested';
  /** Absent: invalidations go through the vIOMMU, or not at all. */
  cache_invalidate_user?(array: UserArray): Task<UserArrayOutcome>;
  free(): Task<void>;
}

/** What the driver does of a vIOMMU (`struct iommufd_viommu_ops`). */
export interface ViommuDriver {
  /** A nested domain whose tables the guest owns; -errno. */
  alloc_domain_nested?(flags: number, data: UserDomainData): Task<NestedDomain | number>;
  cache_invalidate?(array: UserArray): Task<UserArrayOutcome>;
  /** Absent: any type. */
  supports_veventq?(type: number): boolean;
  /** A device got a virtual ID; 0 or -errno. */
  vdevice_init?(device: Device, virtId: bigint): Task<number>;
  vdevice_destroy?(device: Device, virtId: bigint): void;
  hw_queue?: HwQueueDriver;
  destroy?(): Task<void>;
}

/** A vIOMMU's queues in hardware. */
export interface HwQueueDriver {
  supports(type: number): boolean;
  /** `basePa`: physical address of the queue's first byte. -errno: EINVAL, EEXIST, EIO, EFAULT. Gives what must outlive the queue. */
  init(
    queue: object,
    index: number,
    baseIova: bigint,
    basePa: number,
  ): number | { readonly previous: object | undefined };
  destroy(queue: object): void;
}

/** What the core gives a driver that makes a vIOMMU. */
export interface ViommuHost {
  /** The parent of its nested domains. */
  readonly parent: PagingDomain;
  /** The virtual ID of a device on this vIOMMU; -ENOENT. */
  vdevId(device: Device): bigint | number;
  /** The device with a virtual ID. */
  find_dev(virtId: bigint): Device | undefined;
  /** Offers pages to be mapped from /dev/iommu; the offset to map them at. -errno */
  alloc_mmap(pa: number, lengthBytes: number): number;
  /** Writes back into the caller's data (`iommu_copy_struct_to_user`). -errno */
  copyToUser(bytes: Uint8Array): number;
  /** Puts an event into a queue: 0, -EOPNOTSUPP when there is none of that type. */
  report_event(type: number, bytes: Uint8Array): Task<number>;
}

/** A page request of a device (`struct iommu_fault_page_request`). */
export interface PageRequest {
  readonly flags: number;
  readonly pasid: number;
  readonly grpid: number;
  readonly perm: number;
  readonly addr: bigint;
}

/** Whether a domain can be mapped. */
export function isPagingDomain(domain: IommuDomain): domain is PagingDomain {
  return domain.type === 'unmanaged' || domain.type === 'dma';
}

/** `enum iommu_cap` */
export type IommuCapability = 'CACHE_COHERENCY' | 'DIRTY_TRACKING' | 'ENFORCE_CACHE_COHERENCY';

/** What user space says about the domain it wants (`IOMMU_HWPT_ALLOC`). */
export interface UserDomainData {
  readonly type: number;
  /**
   * The data as a struct of `sizeBytes`, of which the caller may have left out what comes after `minimumBytes`
   * (`iommu_copy_struct_from_user`). -EINVAL for another type or length, -EFAULT.
   */
  copy(type: number, minimumBytes: number, sizeBytes: number): Uint8Array | number;
}

/** Hardware information for `IOMMU_GET_HW_INFO`. */
export interface HwInfo {
  readonly type: number;
  readonly bytes: Uint8Array;
}

/** `struct iommu_ops` of one IOMMU instance. */
export interface IommuDriver extends IommuInstance {
  readonly identityDomain: IommuDomain;
  readonly blockedDomain: IommuDomain;
  /** Frames of tables that it makes when a device first needs them and keeps when nobody uses the device any more; none when absent. */
  readonly keptFrames?: number;
  capable(device: Device, capability: IommuCapability): boolean;
  /** A domain with the kernel's own choice of format. -errno on failure. */
  domain_alloc_default(device: Device): Task<PagingDomain | number>;
  /** `domain_alloc_paging_flags`: `flags` are IOMMU_HWPT_ALLOC_*. -EOPNOTSUPP for what the IOMMU cannot do. */
  domain_alloc_paging_flags(
    device: Device,
    flags: number,
    data: UserDomainData | undefined,
  ): Task<PagingDomain | number>;
  /** A nested domain without a vIOMMU; absent: -EOPNOTSUPP. */
  domain_alloc_nested?(
    device: Device,
    parent: PagingDomain,
    flags: number,
    data: UserDomainData,
  ): Task<NestedDomain | number>;
  /** Whether a vIOMMU of that type can be made, then makes it. `data` is undefined when the caller gave none. */
  viommu?: {
    supports(device: Device, type: number): boolean;
    init(device: Device, host: ViommuHost, data: UserDomainData | undefined): Task<ViommuDriver | number>;
  };
  /** Whether a device may keep translations here (ATS). */
  supportsAts?(device: Device): boolean;
  /** log2 of the PASIDs a device has; 0 for none. */
  maxPasidLog2?(device: Device): number;
  /** `set_dev_pasid`: a PASID of a device uses the domain from now on; the blocked domain ends it. 0 or -errno. */
  set_dev_pasid?(domain: IommuDomain, device: Device, pasid: number): Task<number>;
  /** The answer to a page request. */
  page_response?(device: Device, request: PageRequest, code: number): void;
  /** Makes the device use the domain from now on; 0 or -errno, -EINVAL for a domain of another instance. */
  attach_dev(domain: IommuDomain, device: Device): Task<number>;
  /** Looks whether a device really uses a domain, as what the hardware reads says. @throws InvariantError INV-8 */
  checkAttached?(domain: IommuDomain, device: Device): void;
  /** Prepares for a device that appears; 0 or -errno. It is left blocked or bypassed until attached. */
  probe_device(device: Device): Task<number>;
  /** Forgets a device that leaves. */
  release_device(device: Device): Task<void>;
  /** `type` is IOMMU_HW_INFO_TYPE_DEFAULT or what the caller wants; -EOPNOTSUPP for a type it cannot give. */
  hw_info(device: Device, type: number): HwInfo | number;
}
