/**
 * Reserved regions: IOVAs that a device cannot, or must not, use for DMA.
 *
 * A device's regions come from its IOMMU's driver (the software MSI window) and from firmware (RMRR, IVMD, RMR, the MSI
 * window of an interrupt controller that sits before the IOMMU). A group's list is what sysfs prints: sorted, with
 * overlapping or touching regions of one type merged. The two kinds of `msi` are kept apart here and printed alike.
 *
 * Source: Linux drivers/iommu/iommu.c (iommu_insert_resv_region, iommu_get_group_resv_regions), domain.md B1.
 */
import type { ReservedRegionType } from '../../hardware/description.js';

/** `struct iommu_resv_region`, with who wants it. */
export interface ResvRegion {
  readonly start: bigint;
  readonly last: bigint;
  readonly type: ReservedRegionType;
  readonly owner: string;
}

/** `enum iommu_resv_type`: the order of regions that start at the same address. */
const typeOrder: Readonly<Record<ReservedRegionType, number>> = {
  direct: 0,
  'direct-relaxable': 1,
  reserved: 2,
  msi: 3,
  'software-msi': 4,
};

const sysfsName: Readonly<Record<ReservedRegionType, string>> = {
  direct: 'direct',
  'direct-relaxable': 'direct-relaxable',
  reserved: 'reserved',
  msi: 'msi',
  'software-msi': 'msi',
};

/** Adds a region to a sorted list as `iommu_insert_resv_region` does, and returns the new list. */
export function iommu_insert_resv_region(added: ResvRegion, regions: readonly ResvRegion[]): ResvRegion[] {
  const sorted = [...regions];
  const place = sorted.findIndex(
    (r) => added.start < r.start || (added.start === r.start && typeOrder[added.type] <= typeOrder[r.type]),
  );
  sorted.splice(place < 0 ? sorted.length : place, 0, added);
  const merged: ResvRegion[] = [];
  for (const region of sorted) {
    const below = region.type === added.type ? merged.findLastIndex((r) => r.type === region.type) : -1;
    const under = merged[below];
    if (under === undefined || region.start > under.last + 1n) {
      merged.push(region);
      continue;
    }
    const owner = under.owner === region.owner ? under.owner : `${under.owner}, ${region.owner}`;
    merged[below] = { ...under, last: region.last > under.last ? region.last : under.last, owner };
  }
  return merged;
}

/** The merged list of several devices' regions (`iommu_get_group_resv_regions`). */
export function mergeResvRegions(lists: readonly (readonly ResvRegion[])[]): ResvRegion[] {
  let regions: ResvRegion[] = [];
  for (const list of lists) for (const region of list) regions = iommu_insert_resv_region(region, regions);
  return regions;
}

/** The text of /sys/kernel/iommu_groups/N/reserved_regions. */
export function reservedRegionsText(regions: readonly ResvRegion[]): string {
  const address = (value: bigint): string => `0x${value.toString(16).padStart(16, '0')}`;
  return regions.map((r) => `${address(r.start)} ${address(r.last)} ${sysfsName[r.type]}\n`).join('');
}
