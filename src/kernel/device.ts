/** A PCI device as the kernel's subsystems share it (`struct pci_dev` with its `struct device`). */
import type { PciFunction } from '../hardware/pcie/function.js';
import type { IommuGroup } from './iommu/group.js';

/** One device. The PCI core creates and destroys it; kernel/iommu sets `group`; the driver core sets `driver`. */
export interface Device {
  /** `0000:7d:00.1` */
  readonly name: string;
  readonly function: PciFunction;
  /** The bridge above; undefined on a root bus. */
  readonly parent: Device | undefined;
  /** Other functions may be in its slot. False for virtual functions. */
  readonly isMultifunction: boolean;
  /** Other devices on its bus. */
  readonly busMates: () => readonly Device[];
  /** What the IOMMU sees of its transactions, its own ID first, then those of bridges that alias it. */
  readonly streamIds: readonly number[];
  /** Name of the IOMMU in front of it; undefined where DMA is not translated. */
  readonly iommu: string | undefined;
  /** Name of the controller its MSIs go to. */
  readonly msiController: string | undefined;
  /** What the controller sees of its messages. */
  readonly msiDeviceId: number;
  driver: string | undefined;
  /** Text of `driver_override`. */
  driverOverride: string | undefined;
  group: IommuGroup | undefined;
}
