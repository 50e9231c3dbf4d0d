/**
 * Requester IDs under which a function's DMA may arrive.
 *
 * Its own, and those of the bridges on its way that put their own ID on requests from below. Source: Linux drivers/pci/search.c
 * (pci_for_each_dma_alias); PCI Express to PCI/PCI-X Bridge Specification 2.3.
 */
import { PCI_EXP_TYPE } from '../../uapi/pci-regs.js';
import type { Device } from '../device.js';
import { pci_pcie_type } from './acs.js';

/** An ID, and the function that owns it. */
export interface DmaAlias {
  readonly device: Device;
  readonly requesterId: number;
}

/** Aliases from the function up to its root bus, its own ID first. */
export function dmaAliases(device: Device): DmaAlias[] {
  const aliases: DmaAlias[] = [{ device, requesterId: device.function.requesterId }];
  for (let bridge = device.parent; bridge !== undefined; bridge = bridge.parent) {
    switch (pci_pcie_type(bridge)) {
      case PCI_EXP_TYPE.ROOT_PORT:
      case PCI_EXP_TYPE.UPSTREAM:
      case PCI_EXP_TYPE.DOWNSTREAM:
        break;
      case PCI_EXP_TYPE.PCI_BRIDGE:
        aliases.push({ device: bridge, requesterId: bridge.function.secondaryBus << 8 });
        break;
      default:
        aliases.push({ device: bridge, requesterId: bridge.function.requesterId });
    }
  }
  return aliases;
}
