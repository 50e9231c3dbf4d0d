/**
 * What a snapshot's firmware says about its IOMMUs: which requester IDs come to which IOMMU and MSI controller under which IDs,
 * and which memory is reserved for whom.
 *
 * DMAR, IVRS, IORT, VIOT or the device tree are read (src/firmware) and brought into the terms of a host description. Nothing here
 * looks at the groups or reserved_regions that the snapshot's kernel printed.
 */
import { cells, idMap, isCompatible, pciRanges, regBase, type DeviceTreeNode } from '../firmware/device-tree.js';
import { parseDmar, type DmarScope } from '../firmware/dmar.js';
import { Iort, type IortRootComplex } from '../firmware/iort.js';
import { parseIvrs } from '../firmware/ivrs.js';
import { parseMadt } from '../firmware/madt.js';
import { parseViot } from '../firmware/viot.js';
import type { IdMapping, InboundWindow, ReservedRegionDescription } from '../hardware/description.js';
import { configRead, PCI_SECONDARY_BUS, PCI_SUBORDINATE_BUS } from '../uapi/pci-regs.js';

/** What is needed of a snapshot. */
export interface FirmwareInput {
  readonly acpi: Readonly<Record<string, Uint8Array>>;
  readonly deviceTree: Readonly<Record<string, DeviceTreeNode>>;
  /** Configuration space by BDF; only the header is looked at. */
  readonly functions: ReadonlyMap<string, Uint8Array>;
  /** Names of the IOMMUs the kernel had a driver for, with the register base where it is known. */
  readonly iommus: readonly { readonly name: string; readonly base?: bigint }[];
}

/** A controller that takes interrupt messages. */
export interface FoundController {
  readonly name: string;
  readonly kind: 'its' | 'gicv2m';
  readonly base: bigint;
}

/** What firmware says, by segment. */
export interface FirmwareView {
  readonly kind: 'acpi' | 'device-tree';
  readonly controllers: readonly FoundController[];
  /** ITSs that HiSilicon's hip06/07 decodes before the SMMU. */
  readonly bypassing: ReadonlySet<string>;
  readonly iommuMap: (segment: number) => IdMapping[];
  readonly msiMap: (segment: number) => IdMapping[];
  readonly requesterIdMask?: number;
  readonly inbound?: readonly InboundWindow[];
  readonly regions: readonly ReservedRegionDescription[];
}

const ALL_IDS = 0x1_0000;
const HIP_MODEL = 1;
const DOORBELL_PAGE: Readonly<Record<FoundController['kind'], readonly [offset: bigint, length: bigint]>> = {
  its: [0x1_0000n, 0x1_0000n],
  gicv2m: [0n, 0x1000n],
};

/** The page with a controller's doorbell, as Linux reserves it. */
export function doorbellPage({ kind, base }: FoundController): { readonly start: bigint; readonly last: bigint } {
  const [offset, length] = DOORBELL_PAGE[kind];
  return { start: base + offset, last: base + offset + length - 1n };
}

function bdfOf(segment: number, requesterId: number): string {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
  return `${hex(segment, 4)}:${hex(requesterId >> 8, 2)}:${hex((requesterId >> 3) & 31, 2)}.${requesterId & 7}`;
}

interface FunctionId {
  readonly bdf: string;
  readonly segment: number;
  readonly requesterId: number;
}

function idOf(bdf: string): FunctionId {
  const [segment = '0', bus = '0', rest = '0'] = bdf.split(':');
  const [device = '0', fn = '0'] = rest.split('.');
  const requesterId = (parseInt(bus, 16) << 8) | (parseInt(device, 16) << 3) | Number(fn);
  return { bdf, segment: parseInt(segment, 16), requesterId };
}

const NONE: FirmwareView = {
  kind: 'acpi',
  controllers: [],
  bypassing: new Set(),
  iommuMap: () => [],
  msiMap: () => [],
  regions: [],
};

/** @throws FirmwareError when a table contradicts itself */
export function readFirmware(input: FirmwareInput): FirmwareView {
  const { acpi } = input;
  if (acpi['IORT'] !== undefined) return readIort(input, acpi['IORT']);
  if (acpi['DMAR'] !== undefined) return readDmar(input, acpi['DMAR']);
  if (acpi['IVRS'] !== undefined) return readIvrs(input, acpi['IVRS']);
  const controllers = acpi['APIC'] === undefined ? [] : acpiControllers(acpi['APIC']).map(({ found }) => found);
  if (acpi['VIOT'] !== undefined) return readViot(input, acpi['VIOT'], controllers);
  if (Object.keys(input.deviceTree).length > 0) return readDeviceTree(input);
  return { ...NONE, controllers };
}

function controllerName(kind: FoundController['kind'], base: bigint): string {
  return `${kind}@${base.toString(16)}`;
}

function acpiControllers(madt: Uint8Array): { readonly id: number; readonly found: FoundController }[] {
  return parseMadt(madt).map(({ kind, id, base }) => ({ id, found: { kind, base, name: controllerName(kind, base) } }));
}

// --- VT-d ---

function readDmar({ iommus, functions }: FirmwareInput, bytes: Uint8Array): FirmwareView {
  const dmar = parseDmar(bytes);
  const ids = [...functions.keys()].map(idOf);
  const scopeIds = (segment: number, scope: DmarScope): FunctionId[] => idsInScope(functions, ids, segment, scope);
  const iommuMap = (segment: number): IdMapping[] => {
    const units = dmar.drhds.flatMap((drhd) => {
      const target = iommus.find((iommu) => iommu.base === drhd.base)?.name;
      return target === undefined || drhd.segment !== segment ? [] : [{ drhd, target }];
    });
    const named = units.flatMap(({ drhd, target }) =>
      drhd.scopes
        .flatMap((scope) => scopeIds(segment, scope))
        .map(({ requesterId: id }) => ({ firstRequesterId: id, count: 1, target, firstId: id })),
    );
    const rest = units.find(({ drhd }) => drhd.includesAll);
    return rest === undefined ? named : [...named, wholeMap(rest.target)];
  };
  const regions = dmar.rmrrs.filter(isForward).map(({ segment, start, last, scopes }): ReservedRegionDescription => {
    const devices = scopes.flatMap((scope) => scopeIds(segment, scope)).map(({ bdf }) => bdf);
    return { start, last, type: 'direct', table: 'rmrr', owner: `RMRR of ${devices.join(', ')}`, devices };
  });
  return { ...NONE, iommuMap, regions };
}

/** Not reversed: firmware that gets an RMRR wrong is ignored, as Linux warns about it (rmrr_sanity_check). */
function isForward({ start, last }: { readonly start: bigint; readonly last: bigint }): boolean {
  return start <= last;
}

function wholeMap(target: string): IdMapping {
  return { firstRequesterId: 0, count: ALL_IDS, target, firstId: 0 };
}

/** Functions a scope names: the end of its path, and with a bridge everything on the buses behind it. */
function idsInScope(
  functions: ReadonlyMap<string, Uint8Array>,
  ids: readonly FunctionId[],
  segment: number,
  { startBus, path, isSubtree }: DmarScope,
): FunctionId[] {
  let bus = startBus;
  let found: FunctionId | undefined;
  for (const { device, fn } of path) {
    found = ids.find((id) => id.segment === segment && id.requesterId === ((bus << 8) | (device << 3) | fn));
    const config = found === undefined ? undefined : functions.get(found.bdf);
    bus = config === undefined ? bus : configRead(config, PCI_SECONDARY_BUS, 1);
  }
  const end = found;
  if (end === undefined) return [];
  const config = functions.get(end.bdf);
  if (!isSubtree || config === undefined) return [end];
  const [first, last] = [configRead(config, PCI_SECONDARY_BUS, 1), configRead(config, PCI_SUBORDINATE_BUS, 1)];
  const below = ids.filter(
    (id) => id.segment === segment && id.requesterId >> 8 >= first && id.requesterId >> 8 <= last,
  );
  return [end, ...below];
}

// --- AMD-Vi ---

function readIvrs({ iommus, functions }: FirmwareInput, bytes: Uint8Array): FirmwareView {
  const { ivhds, ivmds } = parseIvrs(bytes);
  const iommuMap = (segment: number): IdMapping[] =>
    ivhds.flatMap((ivhd, index) => {
      const target = iommus.find(({ name }) => name === `ivhd${index}`)?.name;
      if (target === undefined || ivhd.segment !== segment) return [];
      return ivhd.devices
        .flatMap(({ first, last }) => cutOut(first, last, ivhd.deviceId))
        .map(([first, last]) => ({ firstRequesterId: first, count: last - first + 1, target, firstId: first }));
    });
  const ids = [...functions.keys()].map(idOf);
  const regions = ivmds
    .filter(({ lengthBytes }) => lengthBytes > 0n)
    .map(({ first, last, start, lengthBytes, kind }): ReservedRegionDescription => {
      const devices = ids.filter(({ requesterId: id }) => id >= first && id <= last).map(({ bdf }) => bdf);
      const type = kind === 'unity' ? 'direct' : 'reserved';
      return { start, last: start + lengthBytes - 1n, type, owner: `IVMD of ${devices.join(', ')}`, devices };
    });
  return { ...NONE, iommuMap, regions };
}

/** A range without one number: the IOMMU's own function is not translated. */
function cutOut(first: number, last: number, hole: number): [number, number][] {
  if (hole < first || hole > last) return [[first, last]];
  const pieces: [number, number][] = [
    [first, hole - 1],
    [hole + 1, last],
  ];
  return pieces.filter(([from, to]) => from <= to);
}

// --- virtio-iommu ---

function readViot({ iommus }: FirmwareInput, bytes: Uint8Array, controllers: readonly FoundController[]): FirmwareView {
  const ranges = parseViot(bytes);
  const iommuMap = (segment: number): IdMapping[] =>
    ranges.flatMap(({ firstSegment, lastSegment, firstId, lastId, firstEndpoint, iommu }) => {
      const name = 'base' in iommu ? undefined : bdfOf(iommu.segment, iommu.id);
      const target = iommus.find(
        (known) => known.name === name || ('base' in iommu && known.base === iommu.base),
      )?.name;
      if (target === undefined || segment < firstSegment || segment > lastSegment) return [];
      const own = 'base' in iommu ? -1 : iommu.id;
      return cutOut(firstId, lastId, own).map(([first, last]) => ({
        firstRequesterId: first,
        count: last - first + 1,
        target,
        firstId: firstEndpoint + first - firstId,
      }));
    });
  return { ...NONE, controllers, iommuMap };
}

// --- IORT ---

function readIort({ acpi, iommus, functions }: FirmwareInput, bytes: Uint8Array): FirmwareView {
  const iort = new Iort(bytes);
  const controllers = acpi['APIC'] === undefined ? [] : acpiControllers(acpi['APIC']);
  const complexes = (segment: number): IortRootComplex[] =>
    iort.nodes.filter((node): node is IortRootComplex => node.kind === 'root-complex' && node.segment === segment);
  const smmuName = (base: bigint): string | undefined => iommus.find((iommu) => iommu.base === base)?.name;
  const itsName = (itsIds: readonly number[]): string | undefined =>
    controllers.find(({ id, found }) => found.kind === 'its' && itsIds.includes(id))?.found.name;
  const bypassing = new Set<string>();
  const regions: ReservedRegionDescription[] = [];
  const ids = [...functions.keys()].map(idOf);
  for (const id of ids) {
    for (const complex of complexes(id.segment)) {
      const stream = iort.smmuOf(complex, id.requesterId);
      if (stream === undefined) continue;
      if (stream.node.kind === 'smmu-v3' && stream.node.model === HIP_MODEL) {
        const its = controllers.find(
          ({ found }) => found.name === itsName(iort.itsOf(complex, id.requesterId)?.node.itsIds ?? []),
        );
        if (its !== undefined) {
          bypassing.add(its.found.name);
          addRegion(regions, { ...doorbellPage(its.found), type: 'msi', owner: its.found.name }, id.bdf);
        }
      }
      for (const rmr of iort.nodes) {
        if (rmr.kind !== 'rmr' || !iort.rmrCovers(rmr, stream.node, stream.id)) continue;
        const type = rmr.remapPermitted ? 'direct-relaxable' : 'direct';
        for (const range of rmr.ranges) addRegion(regions, { ...range, type, owner: 'IORT RMR' }, id.bdf);
      }
    }
  }
  const mapAll = (
    segment: number,
    targetOf: (complex: IortRootComplex, id: number) => [string, number] | undefined,
  ): IdMapping[] => {
    const found: IdMapping[] = [];
    for (const complex of complexes(segment)) {
      for (const first of edges(complex)) {
        const target = targetOf(complex, first);
        if (target === undefined) continue;
        const next = edges(complex).find((edge) => edge > first) ?? ALL_IDS;
        found.push({ firstRequesterId: first, count: next - first, target: target[0], firstId: target[1] });
      }
    }
    return found;
  };
  /** Requester IDs at which any mapping of the table begins or ends. */
  const edges = (complex: IortRootComplex): number[] => {
    const marks = new Set<number>();
    for (const { inputBase, count } of complex.mappings)
      [inputBase, inputBase + count].forEach((mark) => marks.add(mark));
    for (const node of iort.nodes) {
      if (node.kind !== 'smmu' && node.kind !== 'smmu-v3') continue;
      for (const { inputBase, count, outputBase, reference } of complex.mappings) {
        if (reference !== node.offset) continue;
        for (const inner of node.mappings) {
          for (const mark of [inner.inputBase, inner.inputBase + inner.count]) {
            const at = inputBase + mark - outputBase;
            if (at >= inputBase && at < inputBase + count) marks.add(at);
          }
        }
      }
    }
    return [...marks].filter((mark) => mark < ALL_IDS).sort((a, b) => a - b);
  };
  return {
    ...NONE,
    controllers: controllers.map(({ found }) => found),
    bypassing,
    regions,
    iommuMap: (segment) =>
      mapAll(segment, (complex, id) => {
        const stream = iort.smmuOf(complex, id);
        const name = stream === undefined ? undefined : smmuName(stream.node.base);
        return stream === undefined || name === undefined ? undefined : [name, stream.id];
      }),
    msiMap: (segment) =>
      mapAll(segment, (complex, id) => {
        const its = iort.itsOf(complex, id);
        const name = its === undefined ? undefined : itsName(its.node.itsIds);
        return its === undefined || name === undefined ? undefined : [name, its.id];
      }),
  };
}

/** Adds a device to a region that others have already, or the region. */
function addRegion(regions: ReservedRegionDescription[], region: ReservedRegionDescription, bdf: string): void {
  const at = regions.findIndex((r) => r.start === region.start && r.last === region.last && r.type === region.type);
  const known = regions[at];
  if (known === undefined) regions.push({ ...region, devices: [bdf] });
  else if (known.devices?.includes(bdf) !== true) regions[at] = { ...known, devices: [...(known.devices ?? []), bdf] };
}

// --- device tree ---

function readDeviceTree({ deviceTree, iommus }: FirmwareInput): FirmwareView {
  const nodes = Object.values(deviceTree);
  const controllers = nodes.flatMap((node): { phandle: number; found: FoundController }[] => {
    const kind = isCompatible(node, 'arm,gic-v3-its')
      ? 'its'
      : isCompatible(node, 'arm,gic-v2m-frame')
        ? 'gicv2m'
        : undefined;
    if (kind === undefined) return [];
    const base = regBase(node);
    return [{ phandle: cells(node, 'phandle')[0] ?? 0, found: { kind, base, name: controllerName(kind, base) } }];
  });
  const bridge =
    nodes.find((node) => node['iommu-map'] !== undefined) ?? nodes.find((node) => node['msi-map'] !== undefined);
  /** A phandle that no node of the snapshot has is the one IOMMU on the bus itself: a virtio-iommu. */
  const iommuName = (phandle: number): string | undefined => {
    const node = nodes.find((candidate) => cells(candidate, 'phandle')[0] === phandle);
    if (node !== undefined) return iommus.find((iommu) => iommu.base === regBase(node))?.name;
    return iommus.find((iommu) => iommu.base === undefined)?.name;
  };
  const view = { ...NONE, kind: 'device-tree' as const, controllers: controllers.map(({ found }) => found) };
  if (bridge === undefined) return view;
  const inbound = pciRanges(bridge, 'dma-ranges').map(({ bus, cpu, lengthBytes }) => ({
    start: bus,
    last: bus + lengthBytes - 1n,
    cpuStart: cpu,
  }));
  const mask = cells(bridge, 'iommu-map-mask')[0];
  const named =
    (property: 'iommu-map' | 'msi-map', nameOf: (phandle: number) => string | undefined) => (): IdMapping[] =>
      idMap(bridge, property).flatMap(({ firstRequesterId, phandle, firstId, count }) => {
        const target = nameOf(phandle);
        return target === undefined ? [] : [{ firstRequesterId, count, target, firstId }];
      });
  return {
    ...view,
    iommuMap: named('iommu-map', iommuName),
    msiMap: named('msi-map', (phandle) => controllers.find((controller) => controller.phandle === phandle)?.found.name),
    ...(mask === undefined ? {} : { requesterIdMask: mask }),
    ...(inbound.length === 0 ? {} : { inbound }),
  };
}
