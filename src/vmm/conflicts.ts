/**
 * Conflicts between a guest's RAM and what a host's IOMMU can serve, from facts a VMM really has.
 *
 * Two sources exist: the group's `reserved_regions` file in sysfs, which names a type but neither tells the two kinds of
 * `msi` apart nor mentions apertures (domain.md B1), and IOMMU_IOAS_IOVA_RANGES, which is exact but has no reasons and
 * only speaks of devices that are attached. Together they explain a refusal. Kind and owner are filled in where the
 * kernel's error detail has them (that is the testbed's knowledge, for reports). Pure.
 */
import type { ErrorDetail } from '../uapi/errno.js';
import type { GuestMemoryMap } from './machines.js';
import { byStart, complement, intersection, overlaps, subtract, type Range } from './ranges.js';

/** The types sysfs prints (iommu_group_resv_type_string in drivers/iommu/iommu.c). */
type SysfsRegionType = 'direct' | 'direct-relaxable' | 'reserved' | 'msi';

/** One line of /sys/kernel/iommu_groups/N/reserved_regions. */
export interface SysfsRegion extends Range {
  readonly type: SysfsRegionType;
}

/** Why a range cannot be mapped. */
type ConflictKind = SysfsRegionType | 'hardware-msi' | 'software-msi' | 'aperture';

/** A range of the host that lies over guest RAM. */
export interface Conflict extends Range {
  readonly type: SysfsRegionType | 'aperture';
  readonly kind: ConflictKind;
  /** Who reserved it, where the kernel's error said so; else empty. */
  readonly owner: string;
  /** Name of the RAM block it lies in. */
  readonly block: string;
  /** The part of it that is RAM of that block. */
  readonly ramStart: bigint;
  readonly ramLast: bigint;
}

/** The driver's own window for doorbells on every Arm SMMU host (MSI_IOVA_BASE, domain.md RR-1). */
const SOFTWARE_MSI: Range = { start: 0x08000000n, last: 0x080fffffn };

const REGION_LINE = /^(0x[0-9a-f]+) (0x[0-9a-f]+) (direct|direct-relaxable|reserved|msi)$/;

/**
 * Reads a `reserved_regions` file.
 *
 * @throws RangeError for a line that is not `0x<start> 0x<last> <type>`.
 */
export function parseReservedRegions(text: string): SysfsRegion[] {
  const lines = text.split('\n').filter((line) => line !== '');
  return lines.map((line) => {
    const match = REGION_LINE.exec(line);
    if (match === null) throw new RangeError(`not a reserved region: ${line}`);
    return { start: BigInt(match[1] ?? ''), last: BigInt(match[2] ?? ''), type: match[3] as SysfsRegionType };
  });
}

/** Regions that stop a mapping: all but the relaxable ones, which assignment ignores (domain.md B1). */
export function blockingRegions(regions: readonly SysfsRegion[]): SysfsRegion[] {
  return regions.filter((region) => region.type !== 'direct-relaxable');
}

function kindOf(region: SysfsRegion): ConflictKind {
  if (region.type !== 'msi') return region.type;
  return region.start === SOFTWARE_MSI.start && region.last === SOFTWARE_MSI.last ? 'software-msi' : 'hardware-msi';
}

function conflictsOf(range: Range, type: Conflict['type'], kind: ConflictKind, map: GuestMemoryMap): Conflict[] {
  return map.ram.flatMap((block) => {
    const common = intersection(range, block);
    if (common === undefined) return [];
    const { start, last } = range;
    return [{ start, last, type, kind, owner: '', block: block.name, ramStart: common.start, ramLast: common.last }];
  });
}

/** Adds kind and owner of the kernel's error detail to the conflict it speaks of. */
function annotate(conflict: Conflict, detail: ErrorDetail | undefined): Conflict {
  if (detail === undefined) return conflict;
  const { start, last, kind, owner } = detail;
  if (typeof start !== 'bigint' || typeof last !== 'bigint' || !overlaps(conflict, { start, last })) return conflict;
  return {
    ...conflict,
    ...(isConflictKind(kind) ? { kind } : {}),
    ...(typeof owner === 'string' ? { owner } : {}),
  };
}

const KINDS: readonly string[] = [
  'direct',
  'direct-relaxable',
  'reserved',
  'msi',
  'hardware-msi',
  'software-msi',
  'aperture',
];

function isConflictKind(kind: unknown): kind is ConflictKind {
  return typeof kind === 'string' && KINDS.includes(kind);
}

/** What is known about a device before or after it was refused. */
export interface ReservationFacts {
  readonly regions: readonly SysfsRegion[];
  /** IOMMU_IOAS_IOVA_RANGES of an address space that only this device is attached to; absent when it was not asked. */
  readonly usable?: readonly Range[];
  readonly detail?: ErrorDetail;
}

/**
 * Every conflict between a guest's RAM and a device, sorted by start.
 *
 * Ranges that are unusable without a region in sysfs are the aperture's: address bits the IOMMU does not have.
 */
export function findConflicts(map: GuestMemoryMap, facts: ReservationFacts): Conflict[] {
  const regions = blockingRegions(facts.regions);
  const reserved = regions.flatMap((region) => conflictsOf(region, region.type, kindOf(region), map));
  const unusable = facts.usable === undefined ? [] : complement(facts.usable);
  const beyond = unusable.flatMap((range) => subtract(range, regions));
  const aperture = beyond.flatMap((range) => conflictsOf(range, 'aperture', 'aperture', map));
  return [...reserved, ...aperture].sort(byStart).map((conflict) => annotate(conflict, facts.detail));
}
