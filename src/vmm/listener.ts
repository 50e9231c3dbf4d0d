/**
 * The memory listener: which sections of a guest's address space a VMM maps for DMA, and what it does when that fails.
 *
 * The rules are QEMU's (hw/vfio/listener.c: vfio_listener_skipped_section, vfio_listener_valid_section,
 * vfio_listener_region_add; domain.md A3.1, A3.2), kept as data so that another VMM's filter is another list. Pure: the
 * backend (backends/iommufd.ts) does the mapping.
 */
import { alignDown, alignUp, type Range } from './ranges.js';
import type { GuestMemoryMap } from './machines.js';

/** What a section is to the VMM. `ram-device`: a BAR of an assigned device mapped into the VMM (P2P). */
export type SectionKind = 'ram' | 'rom' | 'ram-device' | 'mmio' | 'iommu';

/** A section of the guest's address space, as a VMM's flat view has it. */
export interface MemorySection extends Range {
  readonly name: string;
  readonly kind: SectionKind;
  /** VMM address of the first byte; for everything that has memory behind it. */
  readonly va?: bigint;
  /** Memory of a confidential guest that nobody else may map. */
  readonly isProtected?: boolean;
  /** Misaligned, but known to be harmless (TPM CRB). */
  readonly isKnownSafeMisaligned?: boolean;
}

/** A rule of the filter. */
interface ListenerRule {
  readonly name: string;
  readonly matches: (section: MemorySection, pageBytes: bigint) => boolean;
  readonly action: 'skip' | 'error' | 'notify';
}

/** A section of a 64-bit BAR that is being sized has this bit set in its address. */
const SIZING_BIT = 1n << 63n;

function hasMemory(section: MemorySection): boolean {
  return section.kind === 'ram' || section.kind === 'rom' || section.kind === 'ram-device';
}

function isMisaligned(section: MemorySection, pageBytes: bigint): boolean {
  return section.va !== undefined && section.start % pageBytes !== section.va % pageBytes;
}

function isNotWholePages(section: MemorySection, pageBytes: bigint): boolean {
  return section.start % pageBytes !== 0n || (section.last + 1n) % pageBytes !== 0n;
}

function holdsNoWholePage(section: MemorySection, pageBytes: bigint): boolean {
  return alignUp(section.start, pageBytes) >= alignDown(section.last + 1n, pageBytes);
}

/** QEMU's filter, in its order. The first rule that matches decides; a section no rule matches is mapped. */
const QEMU_LISTENER_RULES: readonly ListenerRule[] = [
  { name: 'not-ram', matches: (section) => !hasMemory(section) && section.kind !== 'iommu', action: 'skip' },
  { name: 'protected', matches: (section) => section.isProtected === true, action: 'skip' },
  { name: 'bar-sizing', matches: (section) => (section.start & SIZING_BIT) !== 0n, action: 'skip' },
  {
    name: 'known-safe-misalignment',
    matches: (section, page) => isMisaligned(section, page) && section.isKnownSafeMisaligned === true,
    action: 'skip',
  },
  { name: 'misaligned', matches: isMisaligned, action: 'error' },
  { name: 'no-whole-page', matches: holdsNoWholePage, action: 'skip' },
  { name: 'viommu', matches: (section) => section.kind === 'iommu', action: 'notify' },
  {
    name: 'no-dma-map',
    matches: (section, page) => section.kind === 'ram-device' && isNotWholePages(section, page),
    action: 'skip',
  },
];

/** A mapping the backend is to make. */
export interface DmaMapping extends Range {
  readonly section: string;
  readonly kind: SectionKind;
  readonly va: bigint;
  readonly writable: boolean;
}

/** What the listener does with a section. */
export type ListenerDecision =
  | { readonly action: 'map'; readonly mapping: DmaMapping }
  | { readonly action: 'skip' | 'error' | 'notify'; readonly rule: string };

/** Decides about one section on a host whose IOMMU pages are `pageBytes` large. */
export function decideSection(section: MemorySection, pageBytes: bigint): ListenerDecision {
  const rule = QEMU_LISTENER_RULES.find((candidate) => candidate.matches(section, pageBytes));
  if (rule !== undefined) return { action: rule.action, rule: rule.name };
  if (section.va === undefined) return { action: 'error', rule: 'no-address' };
  const start = alignUp(section.start, pageBytes);
  const last = alignDown(section.last + 1n, pageBytes) - 1n;
  const va = section.va + (start - section.start);
  const mapping: DmaMapping = {
    section: section.name,
    kind: section.kind,
    start,
    last,
    va,
    writable: section.kind !== 'rom',
  };
  return { action: 'map', mapping };
}

/** What becomes of a VM when a mapping fails (domain.md A3.2). */
export type MapFailure = 'fail-plug' | 'kill' | 'warn';

/**
 * QEMU's policy: a BAR only costs peer-to-peer DMA; RAM fails the plug while the container is being set up and ends the
 * VM afterwards, because a guest cannot be told that its memory stopped being reachable.
 */
export function mapFailurePolicy(kind: SectionKind, isInitialised: boolean): MapFailure {
  if (kind === 'ram-device') return 'warn';
  return isInitialised ? 'kill' : 'fail-plug';
}

/** The sections of a guest's RAM. `ramVa`: VMM address of the backing's first byte. */
export function ramSections(map: GuestMemoryMap, ramVa: bigint): MemorySection[] {
  return map.ram.map((block) => ({
    name: block.name,
    kind: 'ram',
    start: block.start,
    last: block.last,
    va: ramVa + block.offset,
  }));
}

/** Everything the listener maps of `sections`, in order; sections it may not map are left out. */
export function dmaMappings(sections: readonly MemorySection[], pageBytes: bigint): DmaMapping[] {
  return sections.flatMap((section) => {
    const decision = decideSection(section, pageBytes);
    return decision.action === 'map' ? [decision.mapping] : [];
  });
}
