/** A host as text for people: what is where, what is reserved for whom. */
import type { HostDescription } from '../hardware/description.js';
import type { ShownGroup } from '../scenario/booted-host.js';
import { rangeText } from '../scenario/results.js';
import { hexText, sizeText } from '../scenario/units.js';

/** What the IOMMU writes into page-table entries by itself (SMMU_IDR0.HTTU). */
const HARDWARE_UPDATES = {
  none: 'no dirty tracking',
  access: 'access flags but no dirty tracking',
  dirty: 'dirty tracking',
} as const;

/** Describes a host; `groups` are those that its kernel made when it was booted. */
export function hostText(host: HostDescription, groups: readonly ShownGroup[] = []): string {
  const memory = host.memory.reduce((sum, bank) => sum + (bank.last - bank.start + 1n), 0n);
  const lines = [
    `${host.name}: ${host.title}`,
    `  ${host.arch}, Linux ${host.kernelRelease}, pages of ${sizeText(1n << BigInt(host.pageShift))}`,
    `  memory ${sizeText(memory)}`,
    ...host.memory.map((bank) => `    ${rangeText(bank)}`),
  ];
  for (const smmu of host.iommus) {
    const sizes = `${smmu.inputBits}-bit input, ${smmu.outputBits}-bit output`;
    lines.push(`  IOMMU ${smmu.name} at ${hexText(smmu.base)}: ${sizes}, ${HARDWARE_UPDATES[smmu.httu]}`);
    if (smmu.softwareMsi !== undefined) lines.push(`    ${rangeText(smmu.softwareMsi)} software MSI window`);
  }
  for (const msi of host.msiControllers) {
    const way = msi.bypassesIommu ? 'reached without the IOMMU' : 'behind the IOMMU';
    lines.push(`  ${msi.name} (${msi.kind}) at ${hexText(msi.base)}, ${way}${msi.isolated ? '' : ', not isolated'}`);
  }
  for (const bridge of host.hostBridges) {
    lines.push(`  host bridge ${bridge.name}, buses ${bridge.firstBus}-${bridge.lastBus}`);
    for (const window of bridge.windows) lines.push(`    ${rangeText(window)} window`);
    for (const window of bridge.inbound ?? []) lines.push(`    ${rangeText(window)} dma-range`);
    for (const range of bridge.abortRanges ?? []) lines.push(`    ${rangeText(range)} aborted`);
  }
  for (const region of host.reservedRegions) {
    const devices = region.devices === undefined ? 'all devices' : region.devices.join(', ');
    lines.push(`  ${rangeText(region)} ${region.type} (${region.owner}) for ${devices}`);
  }
  for (const fn of host.functions) {
    const id = `${fn.vendor.toString(16).padStart(4, '0')}:${fn.device.toString(16).padStart(4, '0')}`;
    lines.push(
      `  ${fn.bdf} ${id} ${fn.model}${fn.driver === undefined ? '' : `, ${fn.driver}`}${fn.absent === true ? ', absent' : ''}`,
    );
  }
  for (const { number, devices, regions } of groups) {
    lines.push(`  IOMMU group ${number}: ${devices.join(', ')}`);
    for (const region of regions.split('\n')) if (region !== '') lines.push(`    ${region}`);
  }
  return `${lines.join('\n')}\n`;
}
