/**
 * The iommufd backend of a VMM: address spaces, page tables, mappings, dirty bitmaps.
 *
 * One descriptor of /dev/iommu a VMM process. A *container* is an IOAS that holds the guest's RAM at IOVA = GPA, with the
 * page tables (HWPTs) its devices use: as QEMU does (backends/iommufd.c, hw/vfio/iommufd.c; domain.md A3.3, A3.5, A3.8)
 * a device first tries the existing page tables, then gets one of its own, with dirty tracking where the hardware can.
 *
 * Invariant: `Container.mappings` is what is mapped in the kernel; it changes only after the ioctl succeeded. Methods that
 * fail throw KernelError and leave the container as the kernel left it.
 */
import { u64 } from '../../layout/struct.js';
import { invariant, type Task } from '../../runtime/task.js';
import type { Process } from '../../testbed/process.js';
import { EINVAL, EMSGSIZE, KernelError } from '../../uapi/errno.js';
import {
  IOMMU_DESTROY,
  IOMMU_GET_HW_INFO,
  IOMMU_HW_CAP_DIRTY_TRACKING,
  IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  iommu_hw_info_arm_smmuv3,
  iommu_iova_range,
} from '../../uapi/iommufd.js';
import { O_RDWR } from '../../uapi/syscall.js';
import type { DmaMapping } from '../listener.js';
import type { PageSet } from '../page-set.js';
import { lengthOf, PAGE_BYTES, type Range } from '../ranges.js';
import type { VfioDevice } from '../vfio-device.js';

/** A page table of a container. */
interface Hwpt {
  readonly id: number;
  readonly hasDirtyTracking: boolean;
  readonly devices: VfioDevice[];
}

/** An IOAS with the guest's RAM. */
export interface Container {
  readonly ioasId: number;
  readonly hwpts: Hwpt[];
  /** Sorted by start. */
  readonly mappings: DmaMapping[];
  /** Guest RAM that is not mapped here because the host cannot map it. */
  readonly lost: Range[];
}

/** Usable ranges of an IOAS. */
export interface UsableRanges {
  readonly ranges: readonly Range[];
  readonly alignmentBytes: bigint;
}

/** Half of the address space: a whole one has a length that a u64 cannot say (domain.md A3.5). */
const HALF = 1n << 63n;
/** Bits of one dirty bitmap: 256 KiB of bitmap, 8 GiB of guest memory. */
const BITMAP_PAGES = 1 << 21;
const FIRST_RANGE_COUNT = 16;

/** The VMM's descriptor of /dev/iommu. */
export class IommufdBackend {
  readonly process: Process;
  readonly fd: number;
  readonly containers: Container[] = [];

  private constructor(process: Process, fd: number) {
    this.process = process;
    this.fd = fd;
  }

  static *open(process: Process): Task<IommufdBackend> {
    return new IommufdBackend(process, yield* process.open('/dev/iommu', O_RDWR));
  }

  /** A new, empty address space. It becomes a container of the backend by {@link adopt}. */
  *createContainer(): Task<Container> {
    const { value } = yield* this.process.ioctl(this.fd, IOMMU_IOAS_ALLOC, {});
    return { ioasId: value.out_ioas_id, hwpts: [], mappings: [], lost: [] };
  }

  /** Keeps a container that is complete. */
  adopt(container: Container): void {
    this.containers.push(container);
  }

  /** Unmaps and destroys an address space that no device is attached to any more. */
  *destroyContainer(container: Container): Task<void> {
    invariant(container.hwpts.length === 0, 'a container in use is not destroyed');
    yield* this.unmapAll(container);
    yield* this.#destroy(container.ioasId);
    const index = this.containers.indexOf(container);
    if (index >= 0) this.containers.splice(index, 1);
  }

  *map(container: Container, mapping: DmaMapping): Task<void> {
    const access = IOMMU_IOAS_MAP_READABLE | (mapping.writable ? IOMMU_IOAS_MAP_WRITEABLE : 0);
    yield* this.process.ioctl(this.fd, IOMMU_IOAS_MAP, {
      flags: IOMMU_IOAS_MAP_FIXED_IOVA | access,
      ioas_id: container.ioasId,
      user_va: mapping.va,
      length: lengthOf(mapping),
      iova: mapping.start,
    });
    container.mappings.push(mapping);
    container.mappings.sort((a, b) => (a.start < b.start ? -1 : 1));
  }

  /** Unmaps one mapping as it was mapped: iommufd does not split areas. */
  *unmap(container: Container, mapping: DmaMapping): Task<void> {
    const range = { ioas_id: container.ioasId, iova: mapping.start, length: lengthOf(mapping) };
    yield* this.process.ioctl(this.fd, IOMMU_IOAS_UNMAP, range);
    container.mappings.splice(container.mappings.indexOf(mapping), 1);
  }

  /** Unmaps everything, each half that holds something. */
  *unmapAll(container: Container): Task<void> {
    for (const iova of [0n, HALF]) {
      const inHalf = container.mappings.filter((mapping) => mapping.start >= iova && mapping.start - iova < HALF);
      if (inHalf.length === 0) continue;
      yield* this.process.ioctl(this.fd, IOMMU_IOAS_UNMAP, { ioas_id: container.ioasId, iova, length: HALF });
    }
    container.mappings.length = 0;
  }

  /**
   * Attaches a bound device: each existing page table in turn (EINVAL means not compatible, try the next), then one of
   * its own. A page table that could not be attached is destroyed again.
   */
  *attach(container: Container, device: VfioDevice): Task<void> {
    for (const hwpt of container.hwpts) {
      try {
        yield* device.attach(hwpt.id);
        hwpt.devices.push(device);
        return;
      } catch (error) {
        if (!(error instanceof KernelError) || error.errno !== EINVAL) throw error;
      }
    }
    const hwpt = yield* this.#allocateHwpt(container, device);
    try {
      yield* device.attach(hwpt.id);
    } catch (error) {
      yield* this.#destroy(hwpt.id);
      throw error;
    }
    hwpt.devices.push(device);
    container.hwpts.push(hwpt);
  }

  /** Detaches a device; its page table goes with the last one, its container with the last page table. */
  *detach(device: VfioDevice): Task<void> {
    const container = this.containerOf(device);
    invariant(container !== undefined, `${device.bdf} is not attached`);
    yield* this.detachFrom(container, device);
    if (container.hwpts.length === 0) yield* this.destroyContainer(container);
  }

  /** Detaches a device from a container that may stay without devices. */
  *detachFrom(container: Container, device: VfioDevice): Task<void> {
    const hwpt = container.hwpts.find((candidate) => candidate.devices.includes(device));
    invariant(hwpt !== undefined, `${device.bdf} is not attached to IOAS ${container.ioasId}`);
    yield* device.detach();
    hwpt.devices.splice(hwpt.devices.indexOf(device), 1);
    if (hwpt.devices.length > 0) return;
    yield* this.#destroy(hwpt.id);
    container.hwpts.splice(container.hwpts.indexOf(hwpt), 1);
  }

  containerOf(device: VfioDevice): Container | undefined {
    return this.containers.find((container) => container.hwpts.some((hwpt) => hwpt.devices.includes(device)));
  }

  /** What can be mapped in an address space with the devices that are attached to it now. */
  *usableRanges(container: Container): Task<UsableRanges> {
    return yield* readUsableRanges(this.process, this.fd, container.ioasId);
  }

  /** Devices whose page table cannot tell which pages they wrote (domain.md A3.9). */
  untrackedDevices(): VfioDevice[] {
    const hwpts = this.containers.flatMap((container) => container.hwpts);
    return hwpts.flatMap((hwpt) => (hwpt.hasDirtyTracking ? [] : hwpt.devices));
  }

  /** Switches dirty tracking of every page table on or off. */
  *setDirtyTracking(isOn: boolean): Task<void> {
    const flags = isOn ? IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0;
    for (const container of this.containers) {
      for (const hwpt of container.hwpts) {
        if (hwpt.hasDirtyTracking)
          yield* this.process.ioctl(this.fd, IOMMU_HWPT_SET_DIRTY_TRACKING, { flags, hwpt_id: hwpt.id });
      }
    }
  }

  /**
   * Reads and clears the dirty bits of every page table into `into`. `pageOf` gives the page of the guest's backing for
   * an IOVA. One query never spans two mappings: the kernel reports nothing behind a hole (domain.md A1.14).
   */
  *collectDirty(into: PageSet, pageOf: (iova: bigint) => number): Task<void> {
    for (const container of this.containers) {
      for (const hwpt of container.hwpts) {
        if (!hwpt.hasDirtyTracking) continue;
        for (const mapping of container.mappings) yield* this.#collectMapping(hwpt, mapping, into, pageOf);
      }
    }
  }

  *close(): Task<void> {
    yield* this.process.close(this.fd);
  }

  *#collectMapping(hwpt: Hwpt, mapping: DmaMapping, into: PageSet, pageOf: (iova: bigint) => number): Task<void> {
    const pages = Number(lengthOf(mapping) / PAGE_BYTES);
    for (let done = 0; done < pages; done += BITMAP_PAGES) {
      const count = Math.min(BITMAP_PAGES, pages - done);
      const iova = mapping.start + BigInt(done) * PAGE_BYTES;
      const lengthBytes = Math.ceil(count / 64) * u64.sizeBytes;
      const { buffers } = yield* this.process.ioctl(
        this.fd,
        IOMMU_HWPT_GET_DIRTY_BITMAP,
        { hwpt_id: hwpt.id, iova, length: BigInt(count) * PAGE_BYTES, page_size: PAGE_BYTES },
        { pointers: { data: { lengthBytes } } },
      );
      into.addBitmap(pageOf(iova), buffers['data'] ?? new Uint8Array(), count);
    }
  }

  /** ID registers IDR0..IDR5 of the SMMUv3 a bound device is behind; undefined behind something else. */
  *smmuv3Info(device: VfioDevice): Task<readonly number[] | undefined> {
    const { value, buffers } = yield* this.process.ioctl(
      this.fd,
      IOMMU_GET_HW_INFO,
      { dev_id: device.devId, data_len: iommu_hw_info_arm_smmuv3.sizeBytes },
      { pointers: { data_uptr: { lengthBytes: iommu_hw_info_arm_smmuv3.sizeBytes } } },
    );
    if (value.out_data_type !== IOMMU_HW_INFO_TYPE_ARM_SMMUV3) return undefined;
    return iommu_hw_info_arm_smmuv3.decode(buffers['data_uptr'] ?? new Uint8Array()).idr;
  }

  *#allocateHwpt(container: Container, device: VfioDevice): Task<Hwpt> {
    const info = yield* this.process.ioctl(this.fd, IOMMU_GET_HW_INFO, { dev_id: device.devId });
    const hasDirtyTracking = (info.value.out_capabilities & BigInt(IOMMU_HW_CAP_DIRTY_TRACKING)) !== 0n;
    const { value } = yield* this.process.ioctl(this.fd, IOMMU_HWPT_ALLOC, {
      flags: hasDirtyTracking ? IOMMU_HWPT_ALLOC_DIRTY_TRACKING : 0,
      dev_id: device.devId,
      pt_id: container.ioasId,
    });
    return { id: value.out_hwpt_id, hasDirtyTracking, devices: [] };
  }

  *#destroy(id: number): Task<void> {
    yield* this.process.ioctl(this.fd, IOMMU_DESTROY, { id });
  }
}

/** IOMMU_IOAS_IOVA_RANGES, asked again with more room when there are more ranges than expected. @throws KernelError */
export function* readUsableRanges(process: Process, iommufd: number, ioasId: number): Task<UsableRanges> {
  let count = FIRST_RANGE_COUNT;
  for (;;) {
    const { result, value, buffers, reply } = yield* process.tryIoctl(
      iommufd,
      IOMMU_IOAS_IOVA_RANGES,
      { ioas_id: ioasId, num_iovas: count },
      { pointers: { allowed_iovas: { lengthBytes: count * iommu_iova_range.sizeBytes } } },
    );
    if (result === -EMSGSIZE && value.num_iovas > count) {
      count = value.num_iovas;
      continue;
    }
    if (result < 0) throw new KernelError(result, IOMMU_IOAS_IOVA_RANGES.name, reply.detail);
    const bytes = buffers['allowed_iovas'] ?? new Uint8Array();
    const ranges = Array.from({ length: value.num_iovas }, (_, i) =>
      iommu_iova_range.decode(bytes.subarray(i * iommu_iova_range.sizeBytes)),
    );
    return { ranges, alignmentBytes: value.out_iova_alignment };
  }
}
