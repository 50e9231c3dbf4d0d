/**
 * Programs: system calls of several tasks that run on a host's kernel itself, without messages and without a guest.
 *
 * What a kernel-only scenario says, as plain data. `setup` runs first, in order; then the tasks run side by side. A call has one
 * operation and names: what it makes is known by the name it is given, to all tasks; a name that is not known yet, because
 * another task has yet to make it, stands for number 0, which nothing has.
 */
import type { FaultId } from '../runtime/faults.js';
import type { Contiguity } from '../uapi/syscall.js';

/** Memory of a process: `name` alone, or bytes of it from an offset on. */
export interface BufferRef {
  readonly buffer: string;
  readonly offset: bigint;
}

/** What a guest's stream table entry does. */
export type GuestSte = 'bypass' | 'abort';

/** States of VFIO's migration state machine. */
export type CardState = 'running' | 'stop' | 'stop-copy' | 'resuming';

/** Operations and what they are given. Names of things are strings, addresses and lengths bigints. */
export interface Operations {
  /** IOMMU_IOAS_ALLOC */
  readonly ioas: { readonly as: string };
  /** IOMMU_IOAS_MAP; the kernel chooses the IOVA where none is given. */
  readonly map: {
    readonly ioas: string;
    readonly iova?: bigint;
    readonly length: bigint;
    readonly from: BufferRef;
    readonly prot: 'r' | 'w' | 'rw';
    readonly as?: string;
  };
  /** IOMMU_IOAS_MAP_FILE of a memfd or a dma-buf */
  readonly 'map-file': {
    readonly ioas: string;
    readonly iova?: bigint;
    readonly length: bigint;
    readonly file: string;
    readonly offset: bigint;
    readonly prot: 'r' | 'w' | 'rw';
  };
  /** IOMMU_IOAS_UNMAP; everything where no range is given. */
  readonly unmap: { readonly ioas: string; readonly iova?: bigint; readonly length?: bigint };
  /** IOMMU_IOAS_COPY */
  readonly copy: {
    readonly from: { readonly ioas: string; readonly iova: bigint };
    readonly to: { readonly ioas: string; readonly iova: bigint };
    readonly length: bigint;
  };
  /** IOMMU_IOAS_ALLOW_IOVAS */
  readonly allow: {
    readonly ioas: string;
    readonly ranges: readonly { readonly start: bigint; readonly last: bigint }[];
  };
  /** IOMMU_TEST_OP_ADD_RESERVED */
  readonly reserve: { readonly ioas: string; readonly start: bigint; readonly last: bigint };
  /** IOMMU_VFIO_IOAS_SET: what VFIO's ioctls work on. */
  readonly 'vfio-ioas': { readonly ioas: string };
  /** VFIO_IOMMU_UNMAP_DMA: without large pages it cuts mappings. */
  readonly 'vfio-unmap': { readonly iova: bigint; readonly length: bigint };
  /** IOMMU_OPTION_HUGE_PAGES */
  readonly 'huge-pages': { readonly ioas: string; readonly on: boolean };
  /** IOMMU_IOAS_CHANGE_PROCESS */
  readonly 'change-process': Record<string, never>;
  /** IOMMU_DESTROY */
  readonly destroy: { readonly object: string };
  /** A device, bound and attached: to an address space or a page table. */
  readonly device: {
    readonly as: string;
    readonly to: string;
    readonly dirty: boolean;
    /** A mock device that has PASIDs. */
    readonly pasids: boolean;
    /** A device whose slot and group it shares; only behind an SMMU. */
    readonly beside?: string | undefined;
  };
  /** Attaches a device to another address space or page table. */
  readonly replace: { readonly device: string; readonly to: string };
  /** The device is detached and given back. */
  readonly unplug: { readonly device: string };
  /** A PASID of a mock device: brought to a page table, to another, to none. */
  readonly 'attach-pasid': { readonly device: string; readonly pasid: number; readonly to: string };
  readonly 'replace-pasid': { readonly device: string; readonly pasid: number; readonly to: string };
  readonly 'detach-pasid': { readonly device: string; readonly pasid: number };
  /** IOMMU_HWPT_ALLOC */
  readonly hwpt: {
    readonly as: string;
    readonly device: string;
    readonly on: string;
    readonly dirty: boolean;
    readonly nesting: boolean;
    /** For devices that use PASIDs. */
    readonly pasids: boolean;
    readonly 'fault-queue'?: string;
    /** A nested page table's data: what its IOTLB holds first. */
    readonly iotlb?: number;
    /** A nested page table's data behind an SMMU: what the guest's stream table entry does with addresses before the parent translates them. */
    readonly 'guest-ste'?: GuestSte;
    /** So many of them, one after the other, up to the first error; the name is the last one's. */
    readonly times: number;
  };
  /** IOMMU_HWPT_SET_DIRTY_TRACKING */
  readonly 'track-dirty': { readonly hwpt: string; readonly on: boolean };
  /** IOMMU_HWPT_GET_DIRTY_BITMAP */
  readonly 'read-dirty': {
    readonly hwpt: string;
    readonly iova: bigint;
    readonly length: bigint;
    readonly clear: boolean;
  };
  /** A device reads or writes a byte of each page of a range. */
  readonly dma: { readonly device: string; readonly iova: bigint; readonly length: bigint; readonly write: boolean };
  /** A device sends an interrupt message to one of the machine's two doorbells, which the kernel makes reachable first. */
  readonly msi: { readonly device: string; readonly doorbell: number };
  /** A card that can be migrated, open by its driver. */
  readonly card: { readonly as: string };
  /** VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE of a card */
  readonly 'set-state': { readonly card: string; readonly state: CardState };
  /** A card writes to memory. */
  readonly 'card-dma': { readonly card: string };
  /** Reads all that the data descriptor of a card gives. */
  readonly save: { readonly card: string; readonly as: string };
  /** Writes what was read from another to the data descriptor of a card. */
  readonly load: { readonly card: string; readonly from: string };
  /** An access: a device that is emulated, with a descriptor. */
  readonly access: { readonly as: string; readonly ioas: string; readonly pins: boolean };
  /** `syz`: the low 32 bits of the IOVA count areas, the others are an offset into that one. */
  readonly pin: {
    readonly access: string;
    readonly iova: bigint;
    readonly length: bigint;
    readonly as: string;
    readonly syz: boolean;
  };
  readonly unpin: { readonly access: string; readonly pin: string };
  readonly 'access-rw': {
    readonly access: string;
    readonly iova: bigint;
    readonly length: bigint;
    readonly write: boolean;
    readonly syz: boolean;
  };
  readonly 'access-replace': { readonly access: string; readonly ioas: string };
  /** IOMMU_FAULT_QUEUE_ALLOC: an object and a descriptor. */
  readonly 'fault-queue': { readonly as: string };
  /** A device asks for a page. */
  readonly 'page-request': {
    readonly device: string;
    readonly iova: bigint;
    readonly group: number;
    readonly pasid: number;
  };
  /** Reads all page requests a queue has. */
  readonly 'read-faults': { readonly queue: string; readonly as?: string };
  /** Answers every page request that was read. */
  readonly respond: { readonly queue: string; readonly to: string; readonly success: boolean };
  /** IOMMU_VIOMMU_ALLOC */
  readonly viommu: { readonly as: string; readonly device: string; readonly on: string };
  /** IOMMU_VDEVICE_ALLOC */
  readonly vdevice: { readonly as: string; readonly viommu: string; readonly device: string; readonly id: bigint };
  /** IOMMU_VEVENTQ_ALLOC: an object and a descriptor. */
  readonly veventq: { readonly as: string; readonly viommu: string; readonly depth: number };
  /** A device's event for its guest. */
  readonly vevent: { readonly device: string };
  /** Reads the events a queue has, into `length` bytes. */
  readonly 'read-events': { readonly queue: string; readonly length: number };
  /** Maps the page a vIOMMU offers. */
  readonly mmap: { readonly as: string; readonly viommu: string };
  readonly munmap: { readonly mapping: string };
  /** A dma-buf of a device. */
  readonly 'dma-buf': { readonly as: string; readonly length: bigint };
  readonly revoke: { readonly file: string; readonly revoked: boolean };
  /** Closes a descriptor. */
  readonly close: { readonly file: string };
}

export type OperationName = keyof Operations;

/** A call: one operation, what it is given, and what it may answer. */
export interface Call<K extends OperationName = OperationName> {
  readonly op: K;
  readonly args: Operations[K];
  /** Errors it may end with, `ok` among them; anything where nothing is said. */
  readonly expect?: readonly string[];
  /** Line of the scenario file, for reports. */
  readonly line?: number;
}

/** Calls that run one behind the other. */
export interface ProgramTask {
  readonly name: string;
  readonly process: string;
  readonly calls: readonly Call[];
}

/** What runs, and on what. */
export interface Program {
  /** `mock`: the kernel's selftest devices, whose IOMMU has page tables and no TLB. */
  readonly iommu: 'mock' | 'arm-smmu-v3';
  /** Devices keep translations (ATS); with hardware only. */
  readonly ats: boolean;
  readonly processes: readonly {
    readonly name: string;
    readonly uid: number;
    readonly capabilities: readonly string[];
    readonly memlockBytes?: bigint;
  }[];
  /** Memory of every process, at the same address in each. */
  readonly buffers: readonly { readonly name: string; readonly lengthBytes: bigint; readonly contiguity: Contiguity }[];
  /** memfd files, open in every process. */
  readonly files: readonly { readonly name: string; readonly lengthBytes: bigint }[];
  readonly faults: readonly { readonly fault: FaultId; readonly skip?: number; readonly count?: number }[];
  readonly setup: readonly Call[];
  readonly tasks: readonly ProgramTask[];
}
