/**
 * A plain user-space driver: a process with I/O address spaces, mappings of its own memory, and devices.
 *
 * Lives in the main node and on system calls only. Mappings are remembered so that a device's writes can be compared with
 * what the memory behind an IOVA holds. Methods throw KernelError; what a refusal means is the runner's business.
 */
import type { Task } from '../runtime/task.js';
import type { HostClient } from '../testbed/lab.js';
import type { Process } from '../testbed/process.js';
import { EFAULT, EINVAL, KernelError } from '../uapi/errno.js';
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  iommu_iova_range,
} from '../uapi/iommufd.js';
import { O_RDWR, type Contiguity } from '../uapi/syscall.js';
import { parseReservedRegions, type SysfsRegion } from '../vmm/conflicts.js';
import { readUsableRanges } from '../vmm/backends/iommufd.js';
import type { Range } from '../vmm/ranges.js';
import { bindToVfio, VfioDevice } from '../vmm/vfio-device.js';
import type { ProcessEntry } from './schema.js';

/** A device the process holds, and the address space it is attached to. */
interface HeldDevice {
  readonly device: VfioDevice;
  ioas: string;
}

/** Memory of the process, in one piece. */
interface Piece {
  readonly va: bigint;
  readonly lengthBytes: number;
}

/** Memory of the process behind a range of IOVAs. */
interface ClientMapping extends Range {
  readonly ioas: string;
  readonly va: bigint;
}

/** A mapping as a scenario asks for it. */
export interface MapRequest {
  readonly ioas: string;
  readonly iova?: bigint;
  readonly lengthBytes: bigint;
  /** Memory the process has already; fresh memory when not given. */
  readonly va?: bigint;
  readonly access: 'r' | 'w' | 'rw';
  readonly contiguity: Contiguity;
}

function mapFlags(access: MapRequest['access'], isFixed: boolean): number {
  return (
    (isFixed ? IOMMU_IOAS_MAP_FIXED_IOVA : 0) |
    (access.includes('r') ? IOMMU_IOAS_MAP_READABLE : 0) |
    (access.includes('w') ? IOMMU_IOAS_MAP_WRITEABLE : 0)
  );
}

function encodeRanges(ranges: readonly Range[]): Uint8Array {
  const bytes = new Uint8Array(ranges.length * iommu_iova_range.sizeBytes);
  ranges.forEach((range, index) => bytes.set(iommu_iova_range.encode(range), index * iommu_iova_range.sizeBytes));
  return bytes;
}

/** A process of a scenario. */
export class Client {
  readonly name: string;
  readonly host: HostClient;
  readonly process: Process;
  readonly #iommufd: number;
  readonly #ioas: ReadonlyMap<string, number>;
  readonly #mappings: ClientMapping[] = [];
  readonly #devices = new Map<string, HeldDevice>();

  private constructor(name: string, process: Process, iommufd: number, ioas: ReadonlyMap<string, number>) {
    this.name = name;
    this.host = process.host;
    this.process = process;
    this.#iommufd = iommufd;
    this.#ioas = ioas;
  }

  /** Starts the process, opens /dev/iommu and allocates its address spaces. */
  static *start(host: HostClient, name: string, entry: ProcessEntry): Task<Client> {
    const process = yield* host.spawn({
      name,
      uid: entry.uid,
      capabilities: entry.capabilities,
      ...(entry.memlock === undefined ? {} : { memlockBytes: entry.memlock }),
    });
    const iommufd = yield* process.open('/dev/iommu', O_RDWR);
    const ioas = new Map<string, number>();
    for (const space of entry.ioas) {
      const { value } = yield* process.ioctl(iommufd, IOMMU_IOAS_ALLOC, {});
      ioas.set(space, value.out_ioas_id);
    }
    return new Client(name, process, iommufd, ioas);
  }

  /** Name of the address space meant when a step names none. */
  get defaultIoas(): string {
    return [...this.#ioas.keys()][0] ?? 'main';
  }

  /** A device the process holds. @throws KernelError (EINVAL) when it does not */
  device(bdf: string): VfioDevice {
    return this.#held(bdf).device;
  }

  #held(bdf: string): HeldDevice {
    const held = this.#devices.get(bdf);
    if (held === undefined) throw new KernelError(EINVAL, `${this.name} does not hold ${bdf}`);
    return held;
  }

  /** Allocates memory and maps it; returns the IOVA. The memory goes again when the mapping is refused. */
  *map(request: MapRequest): Task<bigint> {
    const { lengthBytes: length, contiguity, ioas, iova } = request;
    const va = request.va ?? (yield* this.process.mmap({ length, contiguity }));
    try {
      const { value } = yield* this.process.ioctl(this.#iommufd, IOMMU_IOAS_MAP, {
        flags: mapFlags(request.access, iova !== undefined),
        ioas_id: this.#id(ioas),
        user_va: va,
        length,
        iova: iova ?? 0n,
      });
      this.#mappings.push({ ioas, va, start: value.iova, last: value.iova + length - 1n });
      return value.iova;
    } catch (error) {
      yield* this.process.munmap(va, length);
      throw error;
    }
  }

  /** Unmaps a range; returns how many bytes were unmapped. */
  *unmap(ioas: string, iova: bigint, length: bigint): Task<bigint> {
    const { value } = yield* this.process.ioctl(this.#iommufd, IOMMU_IOAS_UNMAP, {
      ioas_id: this.#id(ioas),
      iova,
      length,
    });
    const last = iova + length - 1n;
    for (let i = this.#mappings.length - 1; i >= 0; i--) {
      const mapping = this.#mappings[i];
      if (mapping?.ioas === ioas && mapping.start >= iova && mapping.last <= last) this.#mappings.splice(i, 1);
    }
    return value.length;
  }

  /** Maps what one address space maps at `from` into another at `to`. */
  *copy(
    from: { readonly ioas: string; readonly iova: bigint },
    to: { readonly ioas: string; readonly iova: bigint },
    length: bigint,
  ): Task<void> {
    yield* this.process.ioctl(this.#iommufd, IOMMU_IOAS_COPY, {
      flags: mapFlags('rw', true),
      src_ioas_id: this.#id(from.ioas),
      dst_ioas_id: this.#id(to.ioas),
      src_iova: from.iova,
      dst_iova: to.iova,
      length,
    });
    let start = to.iova;
    for (const { va, lengthBytes } of this.#pieces(from.ioas, from.iova, Number(length)) ?? []) {
      this.#mappings.push({ ioas: to.ioas, va, start, last: start + BigInt(lengthBytes) - 1n });
      start += BigInt(lengthBytes);
    }
  }

  /** IOMMU_IOAS_ALLOW_IOVAS: the ranges that must stay mappable. */
  *allow(ioas: string, ranges: readonly Range[]): Task<void> {
    yield* this.process.ioctl(
      this.#iommufd,
      IOMMU_IOAS_ALLOW_IOVAS,
      { ioas_id: this.#id(ioas), num_iovas: ranges.length },
      ranges.length === 0 ? {} : { pointers: { allowed_iovas: { bytes: encodeRanges(ranges) } } },
    );
  }

  /** Takes a device: vfio-pci, cdev, bind, attach. When the attach is refused the device is given back. */
  *plug(bdf: string, ioas: string): Task<void> {
    yield* bindToVfio(this.process, bdf);
    const device = yield* VfioDevice.open(this.process, bdf);
    try {
      yield* device.bind(this.#iommufd);
      yield* device.attach(this.#id(ioas));
    } catch (error) {
      yield* device.close();
      throw error;
    }
    this.#devices.set(bdf, { device, ioas });
  }

  /** Attaches a device the process holds to another address space. */
  *replace(bdf: string, ioas: string): Task<void> {
    const held = this.#held(bdf);
    yield* held.device.attach(this.#id(ioas));
    held.ioas = ioas;
  }

  /** Gives a device back. */
  *unplug(bdf: string): Task<void> {
    const device = this.device(bdf);
    yield* device.detach();
    yield* device.close();
    this.#devices.delete(bdf);
  }

  /** IOMMU_IOAS_IOVA_RANGES. */
  *usableRanges(ioas: string): Task<readonly Range[]> {
    return (yield* readUsableRanges(this.process, this.#iommufd, this.#id(ioas))).ranges;
  }

  /** The reserved_regions file of a device's group. */
  *reservedRegions(bdf: string): Task<SysfsRegion[]> {
    const path = `/sys/bus/pci/devices/${bdf}/iommu_group/reserved_regions`;
    return parseReservedRegions(yield* this.process.readFile(path));
  }

  /** Maps a BAR of a device it holds into the process, as a VMM does; its address. */
  *mapBar(bdf: string, index: number, length: bigint): Task<bigint> {
    return yield* this.device(bdf).mmapRegion(index, length);
  }

  /** Stores to the memory a device it holds has at an IOVA. @throws KernelError (EFAULT) where nothing is mapped */
  *store(bdf: string, iova: bigint, bytes: Uint8Array): Task<void> {
    const pieces = this.#pieces(this.#held(bdf).ioas, iova, bytes.length);
    if (pieces === undefined) throw new KernelError(EFAULT, `${this.name} has nothing at 0x${iova.toString(16)}`);
    let from = 0;
    for (const { va, lengthBytes } of pieces) {
      yield* this.process.store(va, bytes.subarray(from, from + lengthBytes));
      from += lengthBytes;
    }
  }

  /** What the memory holds that a device it holds has at an IOVA; undefined where nothing is mapped. */
  *load(bdf: string, iova: bigint, lengthBytes: number): Task<Uint8Array | undefined> {
    const pieces = this.#pieces(this.#held(bdf).ioas, iova, lengthBytes);
    if (pieces === undefined) return undefined;
    const bytes = new Uint8Array(lengthBytes);
    let from = 0;
    for (const piece of pieces) {
      bytes.set(yield* this.process.load(piece.va, piece.lengthBytes), from);
      from += piece.lengthBytes;
    }
    return bytes;
  }

  /** The memory behind a range of an address space, mapping by mapping; undefined where some of it is not mapped. */
  #pieces(ioas: string, iova: bigint, lengthBytes: number): Piece[] | undefined {
    const pieces: Piece[] = [];
    const end = iova + BigInt(lengthBytes);
    for (let at = iova; at < end;) {
      const mapping = this.#mappings.find((one) => one.ioas === ioas && one.start <= at && at <= one.last);
      if (mapping === undefined) return undefined;
      const next = mapping.last < end ? mapping.last + 1n : end;
      pieces.push({ va: mapping.va + (at - mapping.start), lengthBytes: Number(next - at) });
      at = next;
    }
    return pieces;
  }

  #id(ioas: string): number {
    const id = this.#ioas.get(ioas);
    if (id === undefined) throw new RangeError(`process ${this.name} has no ioas ${ioas}`);
    return id;
  }
}
