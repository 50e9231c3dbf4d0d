/**
 * What user space asks to find the right VFIO driver for a device: the kernel's release, and the aliases of its modules.
 *
 * Variant drivers announce themselves with `vfio_pci:` aliases; a management program compares them with the device's modalias and
 * binds the best match, plain vfio-pci where there is none (libvirt: virPCIDeviceFindBestVFIOVariant).
 *
 * Source: Linux scripts/mod/file2alias.c (do_pci_entry), drivers/pci/pci-sysfs.c (modalias_show).
 */
import type { PciFunction } from '../hardware/pcie/function.js';
import { VARIANT_VFIO_PCI } from './pci/pci-core.js';

export const OSRELEASE_PATH = '/proc/sys/kernel/osrelease';

function hex(value: number, digits: number): string {
  return value.toString(16).toUpperCase().padStart(digits, '0');
}

/** `/lib/modules/7.3.4/modules.alias` */
export function modulesAliasPath(release: string): string {
  return `/lib/modules/${release}/modules.alias`;
}

/** Text of modules.alias, as far as VFIO's variant drivers are concerned. */
export function modulesAlias(functions: Iterable<PciFunction>): string {
  const ids = new Set<string>();
  for (const { description } of functions)
    if (description.migration !== undefined) ids.add(`v${hex(description.vendor, 8)}d${hex(description.device, 8)}`);
  const module = VARIANT_VFIO_PCI.replaceAll('-', '_');
  return [...ids]
    .sort()
    .map((id) => `alias vfio_pci:${id}sv*sd*bc*sc*i* ${module}\n`)
    .join('');
}

/** Content of a device's `modalias` file. */
export function modalias(fn: PciFunction): string {
  const word = (offset: number): string => hex(fn.configRead(offset, 2), 8);
  const [base, sub, programming] = [0x0b, 0x0a, 0x09].map((offset) => hex(fn.configRead(offset, 1), 2));
  return `pci:v${word(0)}d${word(2)}sv${word(0x2c)}sd${word(0x2e)}bc${base}sc${sub}i${programming}\n`;
}
