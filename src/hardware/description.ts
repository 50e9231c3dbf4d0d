/**
 * What a host is: plain data from which a board and its kernel are built.
 *
 * Comes from a profile (scenarios/hosts/*.yaml) or from an imported snapshot; crosses into the host's worker as it is.
 * Addresses are bigints, ranges inclusive. This is data about a machine, nothing here is state.
 */

/** An inclusive range. */
export interface AddressRange {
  readonly start: bigint;
  readonly last: bigint;
}

/** The four types Linux prints, with the two kinds of `msi` kept apart (domain.md B1). */
export type ReservedRegionType = 'direct' | 'direct-relaxable' | 'reserved' | 'msi' | 'software-msi';

/** A region that firmware or a driver reserves for some devices. */
export interface ReservedRegionDescription extends AddressRange {
  readonly type: ReservedRegionType;
  /** Who wants it, for reports: `its@c6000000`, `RMRR of 00:1f.2`, `HyperTransport`. */
  readonly owner: string;
  /** BDFs it applies to; all devices when not given. */
  readonly devices?: readonly string[];
}

/** One SMMUv3 (or, until their boards exist, a stand-in for another IOMMU with its address width). */
export interface SmmuDescription {
  readonly name: string;
  readonly base: bigint;
  readonly stage1: boolean;
  readonly stage2: boolean;
  /** Input address size of stage 1 in bits; the aperture of an ordinary domain is 0..2^bits-1. */
  readonly inputBits: number;
  /** Output address size (IDR5.OAS): 32, 36, 40, 42, 44, 48 or 52. */
  readonly outputBits: number;
  /** IDR0.HTTU: none, access flag, access flag and dirty state. */
  readonly httu: 'none' | 'access' | 'dirty';
  readonly granules: readonly ('4k' | '16k' | '64k')[];
  /** Width of StreamIDs (IDR1.SIDSIZE). */
  readonly streamIdBits: number;
  readonly rangeInvalidation: boolean;
  /** The driver's IOVA window for doorbells (MSI_IOVA_BASE/LENGTH); absent where doorbells need no mapping. */
  readonly softwareMsi?: AddressRange;
}

/** Something that turns a write into an interrupt. */
export interface MsiControllerDescription {
  readonly name: string;
  readonly kind: 'its' | 'gicv2m' | 'x86';
  /** ITS: base of the ITS frame (GITS_TRANSLATER at +0x10040). GICv2m: base of the frame (SETSPI_NS at +0x40). x86: 0xfee00000. */
  readonly base: bigint;
  /** True where the doorbell is decoded before the IOMMU (HiSilicon hip06/07 ITS, x86). */
  readonly bypassesIommu: boolean;
  /** Interrupt remapping or ITS DeviceIDs: IRQ_DOMAIN_FLAG_ISOLATED_MSI. */
  readonly isolated: boolean;
}

/** A window of a host bridge: bus addresses that are routed to devices below. */
export interface BridgeWindow extends AddressRange {
  /** CPU address of the first byte; equals `start` where bus and CPU addresses agree. */
  readonly cpuStart: bigint;
  readonly prefetchable: boolean;
}

/** A PCIe host bridge (root complex). */
export interface HostBridgeDescription {
  readonly name: string;
  readonly segment: number;
  readonly firstBus: number;
  readonly lastBus: number;
  readonly ecam?: AddressRange;
  readonly windows: readonly BridgeWindow[];
  /** IOMMU behind which the bridge's devices sit; absent: DMA is not translated. */
  readonly iommu?: string;
  readonly msi?: string;
  /** StreamID = streamIdBase + requester ID. */
  readonly streamIdBase: number;
}

/** A PCI function present at power-on, or one that can be plugged. */
export interface PciFunctionDescription {
  /** `0000:7d:00.1` */
  readonly bdf: string;
  readonly model: 'dma-engine' | 'nic' | 'generic' | 'bridge';
  readonly vendor: number;
  readonly device: number;
  /** 24-bit class code. */
  readonly classCode: number;
  /** Driver bound at boot, absent for none. */
  readonly driver?: string;
  /** Sizes of memory BARs by index (a power of two). Generic functions only; the device models bring their own. */
  readonly bars?: readonly {
    readonly index: number;
    readonly sizeBytes: number;
    readonly is64: boolean;
    readonly start?: bigint;
  }[];
  /** MSI controller, where it is not the host bridge's. */
  readonly msi?: string;
  /** Not there at boot: plugged later. */
  readonly absent?: boolean;
  /** Real configuration space of an imported function. */
  readonly config?: Uint8Array;
}

/** A whole host. */
export interface HostDescription {
  readonly name: string;
  readonly title: string;
  /** domain.md rows or files it is made from. */
  readonly sources: readonly string[];
  readonly arch: 'arm64' | 'x86';
  /** `uname -r`: decides version-dependent kernel behaviour. */
  readonly kernelRelease: string;
  readonly pageShift: 12 | 16;
  readonly memory: readonly AddressRange[];
  readonly iommus: readonly SmmuDescription[];
  readonly msiControllers: readonly MsiControllerDescription[];
  readonly hostBridges: readonly HostBridgeDescription[];
  readonly functions: readonly PciFunctionDescription[];
  readonly reservedRegions: readonly ReservedRegionDescription[];
  /** IOMMU groups as lists of BDFs, where they are known from outside; a function in no list has a group of its own. */
  readonly groups?: readonly (readonly string[])[];
  /** Type of the groups' default domains (`iommu.passthrough`, `iommu.strict`); `DMA` when not given. */
  readonly defaultDomain?: 'DMA' | 'DMA-FQ' | 'identity';
  /** vfio_iommu_type1/iommufd `allow_unsafe_interrupts`. */
  readonly allowUnsafeInterrupts: boolean;
  /**
   * Whether iommufd lets a device in that reports a hardware and a software MSI region, as the hip07 does. Linux 7.3 warns and
   * answers EINVAL (domain.md A1.37), type1 never asked; a kernel for such a machine has to.
   */
  readonly allowMixedMsi?: boolean;
}
