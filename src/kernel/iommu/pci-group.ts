/**
 * The group of a PCI function: whom it cannot be kept apart from.
 *
 * A function shares its group with those whose requester ID its DMA may carry, with those that lie on a part of its way where
 * ACS does not send requests upstream, and with functions of its device that are not isolated. Only groups that exist already
 * are found, so the order in which devices arrive matters, as in Linux.
 *
 * Source: Linux drivers/iommu/iommu.c (pci_device_group).
 */
import type { Device } from '../device.js';
import { pci_acs_enabled, pci_acs_path_enabled, REQ_ACS_FLAGS } from '../pci/acs.js';
import { dmaAliases } from '../pci/dma-alias.js';
import type { IommuGroup } from './group.js';

/** Functions of the same slot that are not isolated, and whoever has a group among them. */
function functionAliasGroup(device: Device, all: readonly Device[]): IommuGroup | undefined {
  if (!device.isMultifunction || pci_acs_enabled(device, REQ_ACS_FLAGS)) return undefined;
  const sibling = all.find(
    (other) =>
      other !== device &&
      other.group !== undefined &&
      isSameSlot(other, device) &&
      !pci_acs_enabled(other, REQ_ACS_FLAGS),
  );
  return sibling?.group;
}

function isSameSlot(a: Device, b: Device): boolean {
  return a.name.slice(0, -1) === b.name.slice(0, -1);
}

/** An existing group that a function belongs to; undefined when it needs a new one. */
export function pci_device_group(device: Device, all: readonly Device[]): IommuGroup | undefined {
  const aliases = dmaAliases(device);
  const owner = aliases.find((alias) => alias.device.group !== undefined);
  if (owner !== undefined) return owner.device.group;
  let at = aliases.at(-1)?.device ?? device;
  for (let bridge = at.parent; bridge !== undefined; bridge = bridge.parent) {
    if (pci_acs_path_enabled(bridge, REQ_ACS_FLAGS)) break;
    at = bridge;
    if (at.group !== undefined) return at.group;
  }
  return at.group ?? functionAliasGroup(at, all);
}
