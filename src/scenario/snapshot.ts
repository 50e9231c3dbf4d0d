/**
 * Snapshots of real hosts → {@link HostDescription}.
 *
 * A snapshot is what a booted kernel said about itself: /proc/iomem, the PCI functions with their configuration space, firmware
 * tables, the command line (domain.md F1, IF-1 to IF-8). From it this module makes a host with the recorded memory and
 * functions; its groups and reserved regions are for the emulated kernel to find, the printed ones are not looked at. What a
 * snapshot cannot say is chosen here:
 *   - IOMMUs other than the SMMUv3 translate through an SMMUv3 of the same address width;
 *   - functions have the recorded configuration space and BARs but move no data (model `generic`).
 *
 * Pasted reserved_regions text alone (`grep -h .` or `grep .` over /sys/kernel/iommu_groups) is read by
 * {@link parseReservedRegions}.
 */
import { z } from 'zod';
import type {
  AcsFlag,
  AddressRange,
  BridgeWindow,
  FunctionType,
  HostBridgeDescription,
  HostDescription,
  MsiControllerDescription,
  PciFunctionDescription,
  ReservedRegionDescription,
  ReservedRegionType,
  SmmuDescription,
} from '../hardware/description.js';
import { FirmwareError } from '../firmware/table.js';
import { doorbellPage, readFirmware, type FirmwareView, type FoundController } from './snapshot-firmware.js';
import {
  configRead,
  expressType,
  findExtendedCapability,
  PCI_ACS,
  PCI_ACS_CAP,
  PCI_EXP_TYPE,
  PCI_EXT_CAP_ID_ACS,
  PCI_SECONDARY_BUS,
  PCI_SUBORDINATE_BUS,
} from '../uapi/pci-regs.js';
import { InputError, SourceText } from './text.js';

const HEX_BYTES = /^(?:[0-9a-f]{2})*$/i;

const iommuClass = z.object({
  path: z.string().default(''),
  devices: z.array(z.string()).default([]),
  address: z.string().optional(),
  cap: z.string().optional(),
  features: z.string().optional(),
});

const pciEntry = z.object({
  class: z.string(),
  vendor: z.string(),
  device: z.string(),
  config: z.string().regex(HEX_BYTES, 'configuration space is not hexadecimal').default(''),
  resource: z.string().default(''),
  driver: z.string().optional(),
  physfn: z.string().optional(),
  path: z.string().default(''),
});

const snapshotFile = z.object({
  name: z.string(),
  arch: z.enum(['arm64', 'amd64']),
  release: z.string(),
  cmdline: z.string().default(''),
  iomem: z.string(),
  iommuClass: z.record(z.string(), iommuClass).default({}),
  pci: z.record(z.string(), pciEntry).default({}),
  acpi: z.record(z.string(), z.string()).optional(),
  deviceTree: z.record(z.string(), z.record(z.string(), z.union([z.string(), z.array(z.string())]))).optional(),
  dmesg: z.union([z.string(), z.array(z.string())]).default([]),
});

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

/** Register base of an IOMMU of /sys/class/iommu; undefined for a virtio-iommu on PCI. */
function iommuBase(snapshot: Snapshot, iomem: readonly IomemEntry[], name: string): bigint | undefined {
  const smmu = /^smmu3?\.0x([0-9a-f]+)$/.exec(name);
  if (smmu !== null) return BigInt(`0x${smmu[1] ?? '0'}`);
  const address = snapshot.iommuClass[name]?.address;
  if (address !== undefined) return BigInt(`0x${address}`);
  return name.startsWith('ivhd') ? iomem.find((entry) => entry.name === 'amd_iommu')?.start : undefined;
}

/** NpCache in the capability header of an AMD IOMMU; HTRangeIgnore in its second feature register. */
const AMD_NP_CACHE = 1n << 26n;
const AMD_HT_RANGE_IGNORE = 1n << 11n;
const VTD_CACHING_MODE = 1n << 7n;

function describeIommu(
  snapshot: Snapshot,
  iomem: readonly IomemEntry[],
  name: string,
  controllers: readonly FoundController[],
): SmmuDescription {
  const given = snapshot.iommuClass[name];
  const base = iommuBase(snapshot, iomem, name);
  const cap = BigInt(`0x${given?.cap ?? '0'}`);
  if (name.startsWith('smmu')) {
    const widths = matchDmesg(snapshot, /ias (\d+)-bit, oas (\d+)-bit/);
    const oas = Number(widths?.[2] ?? 48);
    return {
      ...standIn(name, base ?? 0n, 48),
      kind: name.startsWith('smmu3.') ? 'arm-smmu-v3' : 'arm-smmu',
      outputBits: OUTPUT_SIZES.includes(oas) ? oas : 48,
      softwareMsi: { start: 0x0800_0000n, last: 0x080f_ffffn },
    };
  }
  if (name.startsWith('dmar')) {
    const bits = given?.cap === undefined ? 48 : vtdBits(given.cap);
    const cachesNotPresent = (cap & VTD_CACHING_MODE) !== 0n;
    return { ...standIn(name, base ?? freeFrame(iomem), bits), kind: 'intel-vtd', cachesNotPresent };
  }
  if (name.startsWith('ivhd')) {
    // Until 6.6 sysfs printed the second register first.
    const registers = given?.features?.split(':') ?? [];
    const efr2 = registers[/^[0-5]\.|^6\.[0-6]\D/.test(snapshot.release) ? 0 : 1] ?? '0';
    return {
      ...standIn(name, base ?? freeFrame(iomem), 48),
      kind: 'amd-vi',
      cachesNotPresent: (cap & AMD_NP_CACHE) !== 0n,
      ignoresHtRange: (BigInt(`0x${efr2}`) & AMD_HT_RANGE_IGNORE) !== 0n,
    };
  }
  const virtio = matchDmesg(snapshot, /virtio_iommu \S+: input address: (\d+) bits/);
  const inputBits = Math.min(Number(virtio?.[1] ?? 48), 48);
  return {
    ...standIn(name, freeFrame(iomem), inputBits),
    kind: 'virtio-iommu',
    probedRegions: [probedMsi(controllers)],
  };
}

/** What a virtual machine monitor lets its virtio-iommu say: the doorbell page of the machine's MSI controller. */
function probedMsi(controllers: readonly FoundController[]): ReservedRegionDescription {
  const [controller] = controllers;
  const owner = 'virtio-iommu RESV_MEM';
  if (controller === undefined) return { start: 0xfee0_0000n, last: 0xfeef_ffffn, type: 'msi', owner };
  return { ...doorbellPage(controller), type: 'msi', owner };
}

function hexBytes(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, 'hex'));
}

function describeMsi(
  snapshot: Snapshot,
  view: FirmwareView,
  iommus: readonly SmmuDescription[],
): MsiControllerDescription[] {
  if (snapshot.arch !== 'arm64') {
    const remapping = matchDmesg(snapshot, /DMAR-IR: Enabled IRQ remapping|AMD-Vi: Interrupt remapping enabled/);
    const isolated = remapping !== undefined;
    return [{ name: 'x86-msi', kind: 'x86', base: 0xfee0_0000n, bypassesIommu: true, isolated }];
  }
  return view.controllers.map(({ name, kind, base }) => ({
    name,
    kind,
    base,
    // A virtio-iommu lets messages to the doorbell it reports through untranslated.
    bypassesIommu: view.bypassing.has(name) || iommus.some((iommu) => iommu.kind === 'virtio-iommu'),
    isolated: kind === 'its',
  }));
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
  view: FirmwareView,
  msi: string | undefined,
): HostBridgeDescription[] {
  const roots = rootBuses(snapshot);
  const ecam = iomem.find((entry) => entry.name.startsWith('PCI ECAM'));
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
      iommuMap: view.iommuMap(root.segment),
      ...(msi === undefined ? {} : { msi }),
      ...(view.msiMap(root.segment).length === 0 ? {} : { msiMap: view.msiMap(root.segment) }),
      ...(view.requesterIdMask === undefined ? {} : { requesterIdMask: view.requesterIdMask }),
      ...(view.inbound === undefined ? {} : { inbound: view.inbound }),
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

const TYPE_NAMES: readonly (readonly [number, FunctionType])[] = [
  [PCI_EXP_TYPE.ENDPOINT, 'endpoint'],
  [PCI_EXP_TYPE.LEG_END, 'endpoint'],
  [PCI_EXP_TYPE.ROOT_PORT, 'root-port'],
  [PCI_EXP_TYPE.UPSTREAM, 'upstream-port'],
  [PCI_EXP_TYPE.DOWNSTREAM, 'downstream-port'],
  [PCI_EXP_TYPE.PCI_BRIDGE, 'pcie-to-pci-bridge'],
  [PCI_EXP_TYPE.RC_END, 'rc-integrated-endpoint'],
];

/** What configuration space says of a function's place on the fabric, in the words of a profile. */
function describeFromConfig(config: Uint8Array, classCode: number): Partial<PciFunctionDescription> {
  if (config.length < 64) return {};
  const isBridge = classCode >> 8 === 0x0604;
  const express = expressType(config);
  const type = TYPE_NAMES.find(([code]) => code === express)?.[1];
  const acsAt = findExtendedCapability(config, PCI_EXT_CAP_ID_ACS);
  const capability = PCI_ACS_CAP.get([configRead(config, acsAt + PCI_ACS_CAP.offset, 4)], 'CAP');
  const flags = (Object.keys(PCI_ACS) as AcsFlag[]).filter((flag) => (capability & PCI_ACS[flag]) !== 0);
  return {
    type: type ?? (isBridge ? 'conventional-bridge' : 'conventional'),
    acs: acsAt === 0 ? 'none' : flags,
    ...(isBridge
      ? {
          bridge: {
            secondaryBus: configRead(config, PCI_SECONDARY_BUS, 1),
            subordinateBus: configRead(config, PCI_SUBORDINATE_BUS, 1),
          },
        }
      : {}),
  };
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
    ...describeFromConfig(config, classCode),
    ...(entry.driver === undefined ? {} : { driver: entry.driver }),
    ...(entry.physfn === undefined ? {} : { physfn: entry.physfn }),
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

/** @throws InputError naming the table that is broken */
function readTables(source: SourceText, snapshot: Snapshot, iomem: readonly IomemEntry[]): FirmwareView {
  const acpi = Object.fromEntries(Object.entries(snapshot.acpi ?? {}).map(([name, hex]) => [name, hexBytes(hex)]));
  const functions = new Map(Object.entries(snapshot.pci).map(([bdf, { config }]) => [bdf, hexBytes(config)]));
  const iommus = Object.keys(snapshot.iommuClass).map((name) => {
    const base = iommuBase(snapshot, iomem, name);
    return base === undefined ? { name } : { name, base };
  });
  try {
    return readFirmware({ acpi, deviceTree: snapshot.deviceTree ?? {}, functions, iommus });
  } catch (error) {
    if (!(error instanceof FirmwareError)) throw error;
    const name = Object.keys(acpi).includes(error.table) ? ['acpi', error.table] : ['acpi'];
    throw new InputError([source.problem(name, error.message)]);
  }
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
  const view = readTables(source, snapshot, iomem);
  const iommus = Object.keys(snapshot.iommuClass).map((iommu) =>
    describeIommu(snapshot, iomem, iommu, view.controllers),
  );
  const msiControllers = describeMsi(snapshot, view, iommus);
  return {
    name,
    title: `snapshot ${snapshot.name}`,
    sources: [snapshot.name],
    arch: snapshot.arch === 'arm64' ? 'arm64' : 'x86',
    kernelRelease: snapshot.release,
    firmware: view.kind,
    commandLine: snapshot.cmdline,
    pageShift: 12,
    memory,
    iommus,
    msiControllers,
    hostBridges: describeBridges(snapshot, iomem, view, msiControllers[0]?.name),
    functions: Object.entries(snapshot.pci).map(([bdf, entry]) => describeFunction(bdf, entry)),
    reservedRegions: view.regions,
    allowUnsafeInterrupts: false,
  };
}
