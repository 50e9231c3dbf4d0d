/** Host descriptions as profile files: the way back of hosts.ts, for `host import`. */
import { stringify } from 'yaml';
import type { AddressRange, HostDescription, PciFunctionDescription } from '../hardware/description.js';
import { hexText, sizeText } from './units.js';

/** Addresses are written as hexadecimal integers: a string here, unquoted in the text. */
const HEX = /"(0x[0-9a-f]+)"/g;

function range(value: AddressRange): object {
  return { start: hexText(value.start), last: hexText(value.last) };
}

function pciFunction(fn: PciFunctionDescription): object {
  return {
    bdf: fn.bdf,
    model: fn.model,
    vendor: `0x${fn.vendor.toString(16).padStart(4, '0')}`,
    device: `0x${fn.device.toString(16).padStart(4, '0')}`,
    class: `0x${fn.classCode.toString(16).padStart(6, '0')}`,
    ...(fn.driver === undefined ? {} : { driver: fn.driver }),
    ...(fn.msi === undefined ? {} : { msi: fn.msi }),
    ...(fn.absent === undefined ? {} : { absent: fn.absent }),
    ...(fn.bars === undefined || fn.bars.length === 0
      ? {}
      : {
          bars: fn.bars.map((bar) => ({
            index: bar.index,
            size: sizeText(BigInt(bar.sizeBytes)),
            is64: bar.is64,
            ...(bar.start === undefined ? {} : { start: hexText(bar.start) }),
          })),
        }),
  };
}

/** The profile of a host. Configuration space of imported functions is not part of a profile and is left out. */
export function hostProfileText(host: HostDescription): string {
  const profile = {
    title: host.title,
    sources: host.sources,
    arch: host.arch,
    kernel: host.kernelRelease,
    'page-size': host.pageShift === 12 ? '4 KiB' : '64 KiB',
    memory: host.memory.map(range),
    iommus: host.iommus.map((smmu) => ({
      name: smmu.name,
      base: hexText(smmu.base),
      stage1: smmu.stage1,
      stage2: smmu.stage2,
      'input-bits': smmu.inputBits,
      'output-bits': smmu.outputBits,
      httu: smmu.httu,
      granules: smmu.granules,
      'stream-id-bits': smmu.streamIdBits,
      'range-invalidation': smmu.rangeInvalidation,
      ...(smmu.softwareMsi === undefined ? {} : { 'software-msi': range(smmu.softwareMsi) }),
    })),
    'msi-controllers': host.msiControllers.map((msi) => ({
      name: msi.name,
      kind: msi.kind,
      base: hexText(msi.base),
      'bypasses-iommu': msi.bypassesIommu,
      isolated: msi.isolated,
    })),
    'host-bridges': host.hostBridges.map((bridge) => ({
      name: bridge.name,
      segment: bridge.segment,
      buses: [bridge.firstBus, bridge.lastBus],
      ...(bridge.ecam === undefined ? {} : { ecam: range(bridge.ecam) }),
      windows: bridge.windows.map((window) => ({
        ...range(window),
        ...(window.cpuStart === window.start ? {} : { 'cpu-start': hexText(window.cpuStart) }),
        prefetchable: window.prefetchable,
      })),
      ...(bridge.iommu === undefined ? {} : { iommu: bridge.iommu }),
      ...(bridge.msi === undefined ? {} : { msi: bridge.msi }),
      'stream-id-base': bridge.streamIdBase,
    })),
    functions: host.functions.map(pciFunction),
    'reserved-regions': host.reservedRegions.map((region) => ({
      ...range(region),
      type: region.type,
      owner: region.owner,
      ...(region.devices === undefined ? {} : { devices: region.devices }),
    })),
    ...(host.groups === undefined ? {} : { groups: host.groups.filter((group) => group.length > 0) }),
    ...(host.defaultDomain === undefined ? {} : { 'default-domain': host.defaultDomain }),
    'allow-unsafe-interrupts': host.allowUnsafeInterrupts,
    ...(host.allowMixedMsi === undefined ? {} : { 'allow-mixed-msi': host.allowMixedMsi }),
  };
  return stringify(profile, { defaultStringType: 'QUOTE_DOUBLE', defaultKeyType: 'PLAIN' }).replace(HEX, '$1');
}
