/** Host descriptions as profile files: the way back of hosts.ts, for `host import`. */
import { stringify } from 'yaml';
import type {
  AddressRange,
  HostBridgeDescription,
  HostDescription,
  IdMapping,
  PciFunctionDescription,
  ReservedRegionDescription,
  SmmuDescription,
} from '../hardware/description.js';
import { hexText, sizeText } from './units.js';

/** Addresses are written as hexadecimal integers: a string here, unquoted in the text. */
const HEX = /"(0x[0-9a-f]+)"/g;

function range(value: AddressRange): object {
  return { start: hexText(value.start), last: hexText(value.last) };
}

function hex(value: number, digits: number): string {
  return `0x${value.toString(16).padStart(digits, '0')}`;
}

function pciFunction(fn: PciFunctionDescription): object {
  const { bridge, sriov, bars } = fn;
  return {
    bdf: fn.bdf,
    model: fn.model,
    vendor: hex(fn.vendor, 4),
    device: hex(fn.device, 4),
    class: hex(fn.classCode, 6),
    driver: fn.driver,
    msi: fn.msi,
    absent: fn.absent,
    type: fn.type,
    bridge: bridge && {
      buses: [bridge.secondaryBus, bridge.subordinateBus],
      memory: bridge.memory && range(bridge.memory),
      prefetchable: bridge.prefetchable && range(bridge.prefetchable),
    },
    slot: fn.slot,
    acs: fn.acs,
    'internal-peer-to-peer': fn.internalPeerToPeer,
    ats: fn.ats,
    sriov: sriov && {
      total: sriov.totalVfs,
      enabled: sriov.numVfs,
      offset: sriov.offset,
      stride: sriov.stride,
      device: sriov.deviceId,
    },
    physfn: fn.physfn,
    bars:
      bars === undefined || bars.length === 0
        ? undefined
        : bars.map((bar) => ({
            index: bar.index,
            size: sizeText(BigInt(bar.sizeBytes)),
            is64: bar.is64,
            start: bar.start === undefined ? undefined : hexText(bar.start),
          })),
  };
}

function region(value: ReservedRegionDescription): object {
  return { ...range(value), type: value.type, table: value.table, owner: value.owner, devices: value.devices };
}

function iommu(smmu: SmmuDescription): object {
  return {
    name: smmu.name,
    kind: smmu.kind,
    base: hexText(smmu.base),
    stage1: smmu.stage1,
    stage2: smmu.stage2,
    'input-bits': smmu.inputBits,
    'output-bits': smmu.outputBits,
    httu: smmu.httu,
    granules: smmu.granules,
    'stream-id-bits': smmu.streamIdBits,
    'range-invalidation': smmu.rangeInvalidation,
    'forced-write-back': smmu.forcedWriteBack,
    ats: smmu.ats,
    pri: smmu.pri,
    'substream-id-bits': smmu.substreamIdBits,
    'break-before-make-level': smmu.breakBeforeMakeLevel,
    'fully-coherent-masters': smmu.fullyCoherentMasters,
    'caches-not-present': smmu.cachesNotPresent,
    'ignores-ht-range': smmu.ignoresHtRange,
    'probed-regions': smmu.probedRegions?.map(region),
    'software-msi': smmu.softwareMsi && range(smmu.softwareMsi),
  };
}

function idMap(entries: readonly IdMapping[] | undefined): object[] | undefined {
  return entries?.map((entry) => ({
    first: hex(entry.firstRequesterId, 4),
    count: hex(entry.count, 1),
    target: entry.target,
    id: hex(entry.firstId, 4),
  }));
}

function hostBridge(bridge: HostBridgeDescription): object {
  return {
    name: bridge.name,
    segment: bridge.segment,
    buses: [bridge.firstBus, bridge.lastBus],
    ecam: bridge.ecam && range(bridge.ecam),
    windows: bridge.windows.map((window) => ({
      ...range(window),
      'cpu-start': window.cpuStart === window.start ? undefined : hexText(window.cpuStart),
      prefetchable: window.prefetchable,
    })),
    iommu: bridge.iommu,
    msi: bridge.msi,
    'stream-id-base': bridge.streamIdBase,
    'iommu-map': idMap(bridge.iommuMap),
    'msi-map': idMap(bridge.msiMap),
    'requester-id-mask': bridge.requesterIdMask,
    'dma-ranges': bridge.inbound?.map((w) => ({ ...range(w), 'cpu-start': hexText(w.cpuStart) })),
    'abort-ranges': bridge.abortRanges?.map(range),
    'peer-to-peer': bridge.peerToPeer,
  };
}

/** The profile of a host. Configuration space of imported functions is not part of a profile and is left out. */
export function hostProfileText(host: HostDescription): string {
  const profile = {
    title: host.title,
    sources: host.sources,
    arch: host.arch,
    kernel: host.kernelRelease,
    firmware: host.firmware,
    'command-line': host.commandLine,
    'page-size': host.pageShift === 12 ? '4 KiB' : '64 KiB',
    memory: host.memory.map(range),
    iommus: host.iommus.map(iommu),
    'msi-controllers': host.msiControllers.map((msi) => ({
      name: msi.name,
      kind: msi.kind,
      base: hexText(msi.base),
      size: msi.sizeBytes === undefined ? undefined : sizeText(BigInt(msi.sizeBytes)),
      'bypasses-iommu': msi.bypassesIommu,
      isolated: msi.isolated,
    })),
    'host-bridges': host.hostBridges.map(hostBridge),
    functions: host.functions.map(pciFunction),
    'reserved-regions': host.reservedRegions.map(region),
    'allow-unsafe-interrupts': host.allowUnsafeInterrupts,
    'allow-mixed-msi': host.allowMixedMsi,
  };
  const text = stringify(profile, { defaultStringType: 'QUOTE_DOUBLE', defaultKeyType: 'PLAIN', keepUndefined: false });
  return text.replace(HEX, '$1');
}
