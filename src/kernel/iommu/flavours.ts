/**
 * What differs between the kernel's IOMMU drivers besides translation: which regions they reserve, when devices come to them,
 * who shares a group, how default domains invalidate.
 *
 * Sources: Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, arm-smmu.c, intel/iommu.c, amd/iommu.c, virtio-iommu.c,
 * of_iommu.c, iommu.c (iommu_subsys_init); domain.md B1, RR-1 to RR-4.
 */
import type { AddressRange, HostDescription, IommuKind, SmmuDescription } from '../../hardware/description.js';
import { HT_RANGE, MSI_IOVA, X86_MSI_RANGE } from '../../uapi/iommu-ranges.js';
import { CommandLine, isAtLeast } from '../command-line.js';
import type { Device } from '../device.js';
import type { DefaultDomainType } from './group.js';
import type { ResvRegion } from './resv-regions.js';

const X86_MSI: ResvRegion = { ...X86_MSI_RANGE, type: 'msi', owner: 'x86 MSI window' };
const HYPER_TRANSPORT: ResvRegion = { ...HT_RANGE, type: 'reserved', owner: 'HyperTransport' };
/** Drivers of floppy controllers behind the ISA bridge program ISA DMA by hand (CONFIG_INTEL_IOMMU_FLOPPY_WA). */
const ISA_DMA: ResvRegion = { start: 0n, last: 0xff_ffffn, type: 'direct-relaxable', owner: 'ISA bridge' };

const CLASS_BRIDGE_ISA = 0x0601;
const CLASS_DISPLAY = 0x03;
const CLASS_SERIAL_USB = 0x0c03;

export function kindOf(iommu: SmmuDescription): IommuKind {
  return iommu.kind ?? 'arm-smmu-v3';
}

/** Regions of a device: its driver's own, and firmware's for it as this driver takes them. */
export function driverRegions(iommu: SmmuDescription, device: Device, host: HostDescription): ResvRegion[] {
  const { classCode } = device.function.description;
  const firmware = host.reservedRegions.filter((region) => region.devices?.includes(device.name) ?? true);
  const plain = firmware.map(({ start, last, type, owner, table }): ResvRegion => {
    const isRelaxed = table === 'rmrr' && (classCode >> 16 === CLASS_DISPLAY || classCode >> 8 === CLASS_SERIAL_USB);
    return { start, last, type: isRelaxed ? 'direct-relaxable' : type, owner };
  });
  const { softwareMsi } = iommu;
  const window = (range: AddressRange): ResvRegion => ({ ...range, type: 'software-msi', owner: iommu.name });
  switch (kindOf(iommu)) {
    case 'arm-smmu-v3':
    case 'arm-smmu':
      return [...(softwareMsi === undefined ? [] : [window(softwareMsi)]), ...plain];
    case 'intel-vtd':
      return [...plain, ...(classCode >> 8 === CLASS_BRIDGE_ISA ? [ISA_DMA] : []), X86_MSI];
    case 'amd-vi': {
      const isOpen = iommu.ignoresHtRange === true && isAtLeast(host.kernelRelease, 6, 16);
      return [...plain, X86_MSI, ...(isOpen ? [] : [HYPER_TRANSPORT])];
    }
    case 'virtio-iommu': {
      const probed = (iommu.probedRegions ?? []).map(({ start, last, type, owner }) => ({ start, last, type, owner }));
      return [...(probed.some((region) => region.type === 'msi') ? [] : [window(MSI_IOVA)]), ...probed, ...plain];
    }
  }
}

/**
 * Whether devices get their groups only when a driver is bound to them. So it was where firmware describes the IOMMU per
 * device (device tree, IORT, VIOT) until the core took that into device_add.
 */
export function groupsAtBind(iommu: SmmuDescription, host: HostDescription): boolean {
  const kind = kindOf(iommu);
  return kind !== 'intel-vtd' && kind !== 'amd-vi' && !isAtLeast(host.kernelRelease, 6, 15);
}

/** Whether devices with the same StreamID are in one group for that alone (arm_smmu_device_group). */
export function groupsByStream(iommu: SmmuDescription): boolean {
  return kindOf(iommu) === 'arm-smmu';
}

/** Whether two devices may have the same StreamID, as behind one bridge. The SMMUv3's driver turns the second away. */
export function sharesStreams(iommu: SmmuDescription): boolean {
  return kindOf(iommu) !== 'arm-smmu-v3';
}

/** Type of default domains (`iommu.passthrough`, `iommu.strict` and their older spellings). */
export function defaultDomainType(iommu: SmmuDescription, host: HostDescription): DefaultDomainType {
  const line = new CommandLine(host.commandLine ?? '');
  const passthrough = line.flag('iommu.passthrough') ?? line.has('iommu', 'pt');
  if (passthrough) return 'identity';
  const isStrict =
    line.flag('iommu.strict') ??
    (line.has('intel_iommu', 'strict') || host.arch === 'arm64' || iommu.cachesNotPresent === true);
  return isStrict || iommu.cachesNotPresent === true ? 'DMA' : 'DMA-FQ';
}
