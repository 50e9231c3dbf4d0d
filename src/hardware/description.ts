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
  /** `rmrr`: a `direct` region that Linux relaxes for USB and graphics functions (ACPI DMAR). */
  readonly table?: 'rmrr';
  /** Who wants it, for reports: `its@c6000000`, `RMRR of 00:1f.2`, `HyperTransport`. */
  readonly owner: string;
  /** BDFs it applies to; all devices when not given. */
  readonly devices?: readonly string[];
}

/**
 * Which IOMMU the kernel finds. It decides the kernel's driver: when devices get their groups, which regions it reserves. DMA
 * is translated by an SMMUv3 whatever the kind, with the address width given, until the other kinds have boards of their own.
 */
export type IommuKind = 'arm-smmu-v3' | 'arm-smmu' | 'intel-vtd' | 'amd-vi' | 'virtio-iommu';

/** One IOMMU. */
export interface SmmuDescription {
  readonly name: string;
  /** `arm-smmu-v3` when not given. */
  readonly kind?: IommuKind;
  /** AMD-Vi: the IOMMU leaves the HyperTransport hole to DMA (EFR2.HTRangeIgnore). */
  readonly ignoresHtRange?: boolean;
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
  /** IDR1.SSIDSIZE: width of SubstreamIDs (PASIDs); none when not given. */
  readonly substreamIdBits?: number;
  /** Answers ATS translation requests (IDR0.ATS). */
  readonly ats?: boolean;
  /** Has a PRI queue (IDR0.PRI). */
  readonly pri?: boolean;
  /** IDR3.BBML: 0, 1 or 2; 2 when not given. */
  readonly breakBeforeMakeLevel?: number;
  /** Stage 2 forces write-back (IDR3.FWB): a guest's stage 1 may lie under it. */
  readonly forcedWriteBack?: boolean;
  /** 16 where nothing is said. */
  readonly asidBits?: 8 | 16;
  /** All masters are coherent whatever the memory type (IORT's CANWBS): the same without IDR3.FWB. */
  readonly fullyCoherentMasters?: boolean;
  /** VT-d caching mode, AMD-Vi NpCache: a virtual IOMMU that must be told of every mapping; its kernel does not defer flushes. */
  readonly cachesNotPresent?: boolean;
  /** virtio-iommu: what it tells about its endpoints (PROBE, RESV_MEM). */
  readonly probedRegions?: readonly ReservedRegionDescription[];
  /** The driver's IOVA window for doorbells (MSI_IOVA_BASE/LENGTH); absent where doorbells need no mapping. */
  readonly softwareMsi?: AddressRange;
}

/** Something that turns a write into an interrupt. */
export interface MsiControllerDescription {
  readonly name: string;
  readonly kind: 'its' | 'gicv2m' | 'x86' | 'in-rc';
  /** ITS: base of the ITS frame (GITS_TRANSLATER at +0x10040). GICv2m: base of the frame (SETSPI_NS at +0x40). x86: 0xfee00000. */
  readonly base: bigint;
  /** `in-rc`: bytes of the frame inside the root complex; 4096 when not given. */
  readonly sizeBytes?: number;
  /**
   * `gicv2m`, `in-rc`: the first interrupt number that may be written, and how many (`arm,msi-base-spi`, `arm,msi-num-spis`). When
   * not given, GICv2m frames have 64 SPIs each, one frame after the other from 80 on, and doorbells in a root complex 0 to 255.
   */
  readonly firstSpi?: number;
  readonly spiCount?: number;
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

/** Requester IDs to the IDs an IOMMU or an interrupt controller sees (`iommu-map`, `msi-map`, IORT ID mappings). */
export interface IdMapping {
  readonly firstRequesterId: number;
  readonly count: number;
  /** Name of the IOMMU or the MSI controller. */
  readonly target: string;
  readonly firstId: number;
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
  /** StreamID = streamIdBase + requester ID, where there is no `iommuMap`. */
  readonly streamIdBase: number;
  /** Instead of `iommu` and `streamIdBase`; requester IDs in no mapping are not translated. */
  readonly iommuMap?: readonly IdMapping[];
  /** Instead of `msi`, with the DeviceIDs the controller sees. */
  readonly msiMap?: readonly IdMapping[];
  /** Bits of the requester ID that leave the root complex (`iommu-map-mask`); 0: all functions look alike (Juno). */
  readonly requesterIdMask?: number;
  /** `dma-ranges`: bus addresses that leave the root complex upwards, `cpuStart` where the first one comes out. All when not given. */
  readonly inbound?: readonly InboundWindow[];
  /** Bus addresses at which the root complex aborts whatever comes from below. */
  readonly abortRanges?: readonly AddressRange[];
  /** Whether requests from below to another root port or to a function of the root bus are routed there. True when not given. */
  readonly peerToPeer?: boolean;
}

/** Bus addresses that reach memory, and the CPU address of the first. */
export interface InboundWindow extends AddressRange {
  readonly cpuStart: bigint;
}

/** What a function is on the fabric: a PCI Express device/port type (PCIe 5.0 7.5.3.2), or conventional PCI. */
export type FunctionType =
  | 'endpoint'
  | 'rc-integrated-endpoint'
  | 'root-port'
  | 'upstream-port'
  | 'downstream-port'
  | 'pcie-to-pci-bridge'
  | 'conventional'
  | 'conventional-bridge';

/** Access Control Services a function implements (PCIe 5.0 7.7.8.2). */
export type AcsFlag = 'SV' | 'TB' | 'RR' | 'CR' | 'UF' | 'EC' | 'DT';

/** What a bridge leads to. Windows are chosen by firmware where they are not given. */
export interface BridgeDescription {
  readonly secondaryBus: number;
  readonly subordinateBus: number;
  /** Non-prefetchable window, 1 MiB granules below 4 GiB. */
  readonly memory?: AddressRange;
  /** Prefetchable window, 1 MiB granules. */
  readonly prefetchable?: AddressRange;
}

/** A slot of a root or downstream port. */
export interface SlotDescription {
  readonly number: number;
  /** Slot Capabilities HPS: a card may leave without a word. */
  readonly surprise: boolean;
}

/** A physical function's virtual functions (PCIe 5.0 9.3.3). */
export interface SriovDescription {
  readonly totalVfs: number;
  /** VFs enabled by the driver at boot (`sriov_numvfs`). */
  readonly numVfs: number;
  readonly offset: number;
  readonly stride: number;
  readonly deviceId: number;
}

/** How a card takes part in migration (vfio.h: VFIO_MIGRATION_*). */
export interface MigrationDescription {
  readonly p2p: boolean;
  readonly preCopy: boolean;
  /** Bytes of on-card context memory, in pages of 4 KiB. */
  readonly contextBytes: number;
  /** The card can log which pages it wrote. */
  readonly dmaLogging: boolean;
}

/** A PCI function present at power-on, or one that can be plugged. */
export interface PciFunctionDescription {
  /** `0000:7d:00.1` */
  readonly bdf: string;
  readonly model: 'dma-engine' | 'nic' | 'generic' | 'bridge';
  /** By its place when not given: on a root bus a root port or an integrated endpoint, else a downstream port or an endpoint. */
  readonly type?: FunctionType;
  readonly bridge?: BridgeDescription;
  readonly slot?: SlotDescription;
  /** ACS capability: `none`, or what it implements. Root and downstream ports have all but EC, others one without peer-to-peer. */
  readonly acs?: 'none' | readonly AcsFlag[];
  /** A function of this device decodes requests to its siblings' BARs itself, without ACS redirection. */
  readonly internalPeerToPeer?: boolean;
  readonly ats?: boolean;
  readonly sriov?: SriovDescription;
  /** The physical function of a virtual one. */
  readonly physfn?: string;
  readonly vendor: number;
  readonly device: number;
  /** 24-bit class code. */
  readonly classCode: number;
  /** Absent: it cannot migrate. DMA engines and NICs only. */
  readonly migration?: MigrationDescription;
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
  /** How the machine describes itself to its kernel: decides when ACS is asked for. ACPI on x86, else device tree, when not given. */
  readonly firmware?: 'acpi' | 'device-tree';
  /** /proc/cmdline: `iommu.passthrough=1`, `iommu.strict=0`, `pci=disable_acs_redir=…`, `intremap=off`, … */
  readonly commandLine?: string;
  /** vfio_iommu_type1/iommufd `allow_unsafe_interrupts`. */
  readonly allowUnsafeInterrupts: boolean;
  /**
   * Whether iommufd lets a device in that reports a hardware and a software MSI region, as the hip07 does. Linux 7.3 warns and
   * answers EINVAL (domain.md A1.37), type1 never asked; a kernel for such a machine has to.
   */
  readonly allowMixedMsi?: boolean;
}

/** The machine that is described cannot be built. */
export class UnbuildableError extends Error {
  override readonly name = 'UnbuildableError';
}
