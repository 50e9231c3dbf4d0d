/**
 * Snapshots of real hosts → {@link HostDescription}.
 *
 * A snapshot is what a booted kernel said about itself: /proc/iomem, the IOMMU groups with their reserved_regions, the PCI
 * functions with their configuration space, firmware tables (domain.md F1, IF-1 to IF-7). From it this module makes a host
 * whose groups, reserved regions, memory and functions are the recorded ones. What a snapshot cannot say is chosen here:
 *   - IOMMUs other than the SMMUv3 are stood in for by an SMMUv3 of the same address width;
 *   - functions have the recorded configuration space and BARs but move no data (model `generic`).
 *
 * Pasted reserved_regions text alone (`grep -h .` or `grep .` over /sys/kernel/iommu_groups) is read by
 * {@link parseReservedRegions}.
 */
import { z } from 'zod';
import type {
  AddressRange,
  BridgeWindow,
  HostBridgeDescription,
  HostDescription,
  MsiControllerDescription,
  PciFunctionDescription,
  ReservedRegionDescription,
  ReservedRegionType,
  SmmuDescription,
} from '../hardware/description.js';
import { InputError, SourceText } from './text.js';

const HEX_BYTES = /^(?:[0-9a-f]{2})*$/i;

const group = z.object({
  devices: z.array(z.string()),
  reserved_regions: z.string().default(''),
  type: z.string().default('DMA'),
});

const iommuClass = z.object({
  path: z.string().default(''),
  devices: z.array(z.string()).default([]),
  address: z.string().optional(),
  cap: z.string().optional(),
});

const pciEntry = z.object({
  class: z.string(),
  vendor: z.string(),
  device: z.string(),
  config: z.string().regex(HEX_BYTES, 'configuration space is not hexadecimal').default(''),
  resource: z.string().default(''),
  driver: z.string().optional(),
  path: z.string().default(''),
});

const snapshotFile = z.object({
  name: z.string(),
  arch: z.enum(['arm64', 'amd64']),
  release: z.string(),
  iomem: z.string(),
  iommuGroups: z.record(z.string(), group).default({}),
  iommuClass: z.record(z.string(), iommuClass).default({}),
  pci: z.record(z.string(), pciEntry).default({}),
  acpi: z.record(z.string(), z.string()).optional(),
  deviceTree: z.record(z.string(), z.record(z.string(), z.union([z.string(), z.array(z.string())]))).optional(),
  dmesg: z.union([z.string(), z.array(z.string())]).default([]),
});

const DEFAULT_DOMAINS = ['DMA', 'DMA-FQ', 'identity'] as const;

type Snapshot = z.output<typeof snapshotFile>;

/** A line of /proc/iomem. */
interface IomemEntry extends AddressRange {
  readonly depth: number;
  readonly name: string;
}

const IOMEM_LINE = /^( *)([0-9a-f]{8,16})-([0-9a-f]{8,16}) : (.*)$/;

function parseIomem(text: string): IomemEntry[] {
  return text.split('\n').flatMap((line) => {
    const match = IOMEM_LINE.exec(line);
    if (match === null) return [];
    const [, indent = '', start = '', last = '', name = ''] = match;
    return [{ depth: indent.length / 2, start: BigInt(`0x${start}`), last: BigInt(`0x${last}`), name }];
  });
}

const PAGE = 4096n;
const roundUp = (value: bigint): bigint => ((value + PAGE - 1n) / PAGE) * PAGE;
const roundDown = (value: bigint): bigint => (value / PAGE) * PAGE;

/** Whole pages of System RAM; neighbours are joined. */
function memoryBanks(iomem: readonly IomemEntry[]): AddressRange[] {
  const banks: AddressRange[] = [];
  for (const entry of iomem) {
    if (entry.depth !== 0 || entry.name !== 'System RAM') continue;
    const start = roundUp(entry.start);
    const last = roundDown(entry.last + 1n) - 1n;
    if (last < start) continue;
    const before = banks.at(-1);
    if (before?.last === start - 1n) banks[banks.length - 1] = { start: before.start, last };
    else banks.push({ start, last });
  }
  return banks;
}

/** Bytes of an SMMUv3's two register pages. */
const SMMU_FRAME_BYTES = 0x20000n;

/** Lowest aligned place for an SMMU's registers that nothing in /proc/iomem covers. */
function freeFrame(iomem: readonly IomemEntry[]): bigint {
  const top = iomem.filter((entry) => entry.depth === 0).sort((a, b) => (a.start < b.start ? -1 : 1));
  let base = 0x0100_0000n;
  for (const entry of top) {
    if (entry.start > base + SMMU_FRAME_BYTES - 1n) break;
    if (entry.last >= base) base = ((entry.last + SMMU_FRAME_BYTES) / SMMU_FRAME_BYTES) * SMMU_FRAME_BYTES;
  }
  return base;
}

function dmesgLines(snapshot: Snapshot): readonly string[] {
  return typeof snapshot.dmesg === 'string' ? snapshot.dmesg.split('\n') : snapshot.dmesg;
}

function matchDmesg(snapshot: Snapshot, pattern: RegExp): RegExpExecArray | undefined {
  for (const line of dmesgLines(snapshot)) {
    const match = pattern.exec(line);
    if (match !== null) return match;
  }
  return undefined;
}

const OUTPUT_SIZES = [32, 36, 40, 42, 44, 48, 52];

/** What every stand-in has in common. */
function standIn(name: string, base: bigint, inputBits: number): SmmuDescription {
  return {
    name,
    base,
    stage1: true,
    stage2: true,
    inputBits,
    outputBits: 48,
    httu: 'none',
    granules: ['4k'],
    streamIdBits: 16,
    rangeInvalidation: false,
  };
}

/** Address width of a VT-d unit: MGAW (bits 21:16) limited by the largest SAGAW level (bits 12:8). */
function vtdBits(cap: string): number {
  const value = BigInt(`0x${cap}`);
  const mgaw = Number((value >> 16n) & 0x3fn) + 1;
  const sagaw = Number((value >> 8n) & 0x1fn);
  const levels = (sagaw & 8) !== 0 ? 57 : (sagaw & 4) !== 0 ? 48 : (sagaw & 2) !== 0 ? 39 : 30;
  return Math.min(mgaw, levels, 52);
}

function describeIommu(snapshot: Snapshot, iomem: readonly IomemEntry[], name: string): SmmuDescription {
  const given = snapshot.iommuClass[name];
  const smmu = /^smmu3\.0x([0-9a-f]+)$/.exec(name);
  if (smmu !== null) {
    const widths = matchDmesg(snapshot, /ias (\d+)-bit, oas (\d+)-bit/);
    const oas = Number(widths?.[2] ?? 48);
    return {
      ...standIn(name, BigInt(`0x${smmu[1] ?? '0'}`), 48),
      outputBits: OUTPUT_SIZES.includes(oas) ? oas : 48,
      softwareMsi: { start: 0x0800_0000n, last: 0x080f_ffffn },
    };
  }
  if (given?.address !== undefined) {
    return standIn(name, BigInt(`0x${given.address}`), given.cap === undefined ? 48 : vtdBits(given.cap));
  }
  const amd = iomem.find((entry) => entry.name === 'amd_iommu');
  if (amd !== undefined) return standIn(name, amd.start, 48);
  const virtio = matchDmesg(snapshot, /virtio_iommu \S+: input address: (\d+) bits/);
  return standIn(name, freeFrame(iomem), Math.min(Number(virtio?.[1] ?? 48), 48));
}

function littleEndian(bytes: Uint8Array, offset: number, length: number): bigint {
  let value = 0n;
  for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[offset + i] ?? 0);
  return value;
}

function hexBytes(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, 'hex'));
}

/** GIC ITS (type 15) and GICv2m (type 13) entries of the ACPI MADT: base addresses at offset 8. */
function madtControllers(table: string): { readonly kind: 'its' | 'gicv2m'; readonly base: bigint }[] {
  const bytes = hexBytes(table);
  const found: { kind: 'its' | 'gicv2m'; base: bigint }[] = [];
  for (let offset = 44; offset + 2 <= bytes.length;) {
    const type = bytes[offset] ?? 0;
    const length = bytes[offset + 1] ?? 0;
    if (length < 2) break;
    if (type === 15) found.push({ kind: 'its', base: littleEndian(bytes, offset + 8, 8) });
    if (type === 13) found.push({ kind: 'gicv2m', base: littleEndian(bytes, offset + 8, 8) });
    offset += length;
  }
  return found;
}

/** First address of a device-tree `reg` of two address and two size cells. */
function regBase(node: Readonly<Record<string, string | readonly string[]>>): bigint {
  const reg = node['reg'];
  return typeof reg === 'string' && reg.length >= 16 ? BigInt(`0x${reg.slice(0, 16)}`) : 0n;
}

function deviceTreeControllers(snapshot: Snapshot): { readonly kind: 'its' | 'gicv2m'; readonly base: bigint }[] {
  return Object.values(snapshot.deviceTree ?? {}).flatMap((node): { kind: 'its' | 'gicv2m'; base: bigint }[] => {
    const compatible = node['compatible'] ?? [];
    if (compatible.includes('arm,gic-v3-its')) return [{ kind: 'its', base: regBase(node) }];
    if (compatible.includes('arm,gic-v2m-frame')) return [{ kind: 'gicv2m', base: regBase(node) }];
    return [];
  });
}

/** Offset and size of the page range that Linux reserves around a doorbell. */
const DOORBELL: Readonly<Record<'its' | 'gicv2m', readonly [bigint, bigint]>> = {
  its: [0x1_0000n, 0x1_0000n],
  gicv2m: [0n, 0x1000n],
};

function describeMsi(snapshot: Snapshot, regions: readonly ReservedRegionDescription[]): MsiControllerDescription[] {
  if (snapshot.arch !== 'arm64') {
    const remapping = matchDmesg(snapshot, /DMAR-IR: Enabled IRQ remapping|AMD-Vi: Interrupt remapping enabled/);
    const isolated = remapping !== undefined;
    return [{ name: 'x86-msi', kind: 'x86', base: 0xfee0_0000n, bypassesIommu: true, isolated }];
  }
  const madt = snapshot.acpi?.['APIC'];
  const found = madt === undefined ? deviceTreeControllers(snapshot) : madtControllers(madt);
  return found.map(({ kind, base }) => {
    const [offset, length] = DOORBELL[kind];
    const start = base + offset;
    const last = start + length - 1n;
    return {
      name: `${kind}@${base.toString(16)}`,
      kind,
      base,
      bypassesIommu: regions.some((region) => region.type === 'msi' && region.start <= start && last <= region.last),
      isolated: kind === 'its',
    };
  });
}

interface RootBus {
  readonly segment: number;
  readonly bus: number;
}

/** Root buses by their `pciSSSS:BB` in sysfs paths, sorted. */
function rootBuses(snapshot: Snapshot): RootBus[] {
  const seen = new Map<string, RootBus>();
  for (const entry of Object.values(snapshot.pci)) {
    const match = /\/pci([0-9a-f]{4}):([0-9a-f]{2})\//.exec(entry.path);
    if (match === null) continue;
    const [key = '', segment = '', bus = ''] = match;
    seen.set(key, { segment: parseInt(segment, 16), bus: parseInt(bus, 16) });
  }
  return [...seen.values()].sort((a, b) => a.segment - b.segment || a.bus - b.bus);
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, '0');
}

function bridgeWindows(iomem: readonly IomemEntry[], root: RootBus, isFirst: boolean): BridgeWindow[] {
  const name = `PCI Bus ${hex(root.segment, 4)}:${hex(root.bus, 2)}`;
  return iomem
    .filter((entry) => entry.depth === 0 && (entry.name === name || (isFirst && entry.name.startsWith('pcie@'))))
    .filter((entry) => entry.start !== 0xa_0000n)
    .map(({ start, last }) => ({ start, last, cpuStart: start, prefetchable: start >= 1n << 32n }));
}

function describeBridges(
  snapshot: Snapshot,
  iomem: readonly IomemEntry[],
  msi: string | undefined,
): HostBridgeDescription[] {
  const roots = rootBuses(snapshot);
  const ecam = iomem.find((entry) => entry.name.startsWith('PCI ECAM'));
  const [iommu] = Object.keys(snapshot.iommuClass);
  return roots.map((root, index): HostBridgeDescription => {
    const next = roots[index + 1];
    return {
      name: `pci${hex(root.segment, 4)}:${hex(root.bus, 2)}`,
      segment: root.segment,
      firstBus: root.bus,
      lastBus: next?.segment === root.segment ? next.bus - 1 : 0xff,
      windows: bridgeWindows(iomem, root, index === 0),
      streamIdBase: 0,
      ...(ecam === undefined || index > 0 ? {} : { ecam: { start: ecam.start, last: ecam.last } }),
      ...(iommu === undefined ? {} : { iommu }),
      ...(msi === undefined ? {} : { msi }),
    };
  });
}

const IORESOURCE_MEM = 0x200n;
const IORESOURCE_MEM_64 = 0x10_0000n;

type Bar = NonNullable<PciFunctionDescription['bars']>[number];

/** Memory BARs from the first six lines of sysfs `resource`. */
function describeBars(resource: string): Bar[] {
  return resource
    .split('\n')
    .slice(0, 6)
    .flatMap((line, index): Bar[] => {
      const fields = line.split(' ');
      if (fields.length !== 3 || !fields.every((field) => /^0x[0-9a-f]{1,16}$/.test(field))) return [];
      const [start = 0n, last = 0n, flags = 0n] = fields.map((field) => BigInt(field));
      if ((flags & IORESOURCE_MEM) === 0n || last <= start) return [];
      return [{ index, sizeBytes: Number(last - start + 1n), is64: (flags & IORESOURCE_MEM_64) !== 0n, start }];
    });
}

function describeFunction(bdf: string, entry: z.output<typeof pciEntry>): PciFunctionDescription {
  const classCode = Number(entry.class);
  const config = hexBytes(entry.config);
  return {
    bdf,
    model: classCode >> 8 === 0x0604 ? 'bridge' : 'generic',
    vendor: Number(entry.vendor),
    device: Number(entry.device),
    classCode,
    bars: describeBars(entry.resource),
    ...(entry.driver === undefined ? {} : { driver: entry.driver }),
    ...(config.length === 0 ? {} : { config }),
  };
}

/** A line of a reserved_regions file; `path` where the paste came from `grep .` over several files. */
export interface ReservedRegionLine extends AddressRange {
  readonly type: ReservedRegionType;
  readonly path?: string;
}

const REGION_LINE = /^(?:(\S+?):)?0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) (\S+)$/i;

/**
 * Reads reserved_regions text: one file, or a paste of `grep -h .` or `grep .` over many. Equal lines are kept once for each
 * path. @throws InputError for a line that is none, an unknown type or a reversed range
 */
export function parseReservedRegions(file: string, text: string): ReservedRegionLine[] {
  const found = new Map<string, ReservedRegionLine>();
  text.split('\n').forEach((line, index) => {
    const trimmed = line.trim();
    if (trimmed === '') return;
    const refuse = (message: string): InputError =>
      new InputError([{ file, line: index + 1, column: line.length - line.trimStart().length + 1, message }]);
    const match = REGION_LINE.exec(trimmed);
    if (match === null) throw refuse(`not a reserved_regions line: ${JSON.stringify(trimmed.slice(0, 80))}`);
    const [, path, startText = '', lastText = '', type = ''] = match;
    const start = BigInt(`0x${startText}`);
    const last = BigInt(`0x${lastText}`);
    if (!(['direct', 'direct-relaxable', 'reserved', 'msi'] as string[]).includes(type))
      throw refuse(`unknown type of reserved region: ${type}`);
    if (last < start) throw refuse('range is reversed');
    found.set(trimmed, { start, last, type: type as ReservedRegionType, ...(path === undefined ? {} : { path }) });
  });
  return [...found.values()];
}

function regionOwner(region: AddressRange & { readonly type: ReservedRegionType }): string {
  if (region.start === 0xfee0_0000n && region.type === 'msi') return 'x86 MSI window';
  if (region.start === 0xfd_0000_0000n && region.type === 'reserved') return 'HyperTransport';
  if (region.type === 'msi') return `MSI doorbell at 0x${region.start.toString(16)}`;
  if (region.type === 'direct-relaxable' && region.start === 0n) return 'ISA bridge';
  return region.type === 'reserved' ? 'IOMMU driver' : 'firmware';
}

/** The recorded regions with the devices they were listed for, less the windows the SMMU's driver adds by itself. */
function describeRegions(file: string, snapshot: Snapshot): ReservedRegionDescription[] {
  const byText = new Map<string, { region: ReservedRegionLine; devices: string[] }>();
  const hasSmmu = Object.keys(snapshot.iommuClass).some((name) => name.startsWith('smmu3.'));
  const all = Object.values(snapshot.iommuGroups).flatMap((entry) => entry.devices);
  for (const entry of Object.values(snapshot.iommuGroups)) {
    for (const region of parseReservedRegions(file, entry.reserved_regions)) {
      if (hasSmmu && region.type === 'msi' && region.start === 0x0800_0000n) continue;
      const key = `${region.start} ${region.last} ${region.type}`;
      const known = byText.get(key) ?? { region, devices: [] };
      known.devices.push(...entry.devices);
      byText.set(key, known);
    }
  }
  return [...byText.values()].map(({ region: { start, last, type }, devices }) => {
    const owner = regionOwner({ start, last, type });
    return { start, last, type, owner, ...(devices.length === all.length ? {} : { devices: devices.sort() }) };
  });
}

/**
 * Makes a host of a snapshot file's text.
 *
 * @throws InputError when the text is no snapshot, or when its /proc/iomem was read without privileges (all zeros)
 */
export function snapshotToHost(file: string, text: string, name: string): HostDescription {
  const source = SourceText.parse(file, text);
  const snapshot = source.as(snapshotFile);
  const refuse = (path: string, message: string): InputError => new InputError([source.problem([path], message)]);
  const iomem = parseIomem(snapshot.iomem);
  if (iomem.length > 0 && iomem.every((entry) => entry.last === 0n))
    throw refuse('iomem', 'all addresses of /proc/iomem are zero: it was not read as root');
  const memory = memoryBanks(iomem);
  if (memory.length === 0) throw refuse('iomem', 'no System RAM in /proc/iomem');
  const regions = describeRegions(file, snapshot);
  const msiControllers = describeMsi(snapshot, regions);
  const groups = Object.values(snapshot.iommuGroups).map((entry) => entry.devices);
  const [first] = Object.values(snapshot.iommuGroups);
  const defaultDomain = DEFAULT_DOMAINS.find((type) => type === first?.type);
  return {
    name,
    title: `snapshot ${snapshot.name}`,
    sources: [snapshot.name],
    arch: snapshot.arch === 'arm64' ? 'arm64' : 'x86',
    kernelRelease: snapshot.release,
    pageShift: 12,
    memory,
    iommus: Object.keys(snapshot.iommuClass).map((iommu) => describeIommu(snapshot, iomem, iommu)),
    msiControllers,
    hostBridges: describeBridges(snapshot, iomem, msiControllers[0]?.name),
    functions: Object.entries(snapshot.pci).map(([bdf, entry]) => describeFunction(bdf, entry)),
    reservedRegions: regions,
    groups,
    ...(defaultDomain === undefined ? {} : { defaultDomain }),
    allowUnsafeInterrupts: false,
  };
}
