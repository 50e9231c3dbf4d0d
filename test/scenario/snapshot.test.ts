import { describe, expect, test } from 'vitest';
import { hostFlaws, shippedHosts, shippedSnapshot } from '../../src/scenario/hosts.js';
import { parseReservedRegions, snapshotToHost } from '../../src/scenario/snapshot.js';
import { InputError } from '../../src/scenario/text.js';

function shipped(name: string): ReturnType<typeof snapshotToHost> {
  const host = shippedSnapshot(name);
  if (host === undefined) throw new Error(`no snapshot ${name}`);
  return host;
}

describe('shipped snapshots', () => {
  test.each(shippedHosts().snapshots)('%s makes a host without flaws', (name) => {
    const host = shipped(name);
    expect(hostFlaws(host)).toEqual([]);
    expect(host.functions.length).toBeGreaterThan(4);
    expect(host.iommus).toHaveLength(1);
    expect(host.hostBridges[0]?.iommuMap?.length).toBeGreaterThan(0);
  });

  test('SMMUv3: the MSI window is the driver’s own, not a region of the hardware', () => {
    const host = shipped('arm64-smmuv3-gicv3-flat-6.12');
    expect(host.reservedRegions).toEqual([]);
    expect(host.iommus[0]).toMatchObject({
      base: 0x9050000n,
      outputBits: 44,
      softwareMsi: { start: 0x8000000n, last: 0x80fffffn },
    });
    expect(host.msiControllers).toMatchObject([{ kind: 'its', base: 0x8080000n, bypassesIommu: false }]);
    expect(host.memory).toEqual([{ start: 0x40000000n, last: 0x7fffffffn }]);
  });

  test('virtio-iommu: the region is the true doorbell, which bypasses the IOMMU', () => {
    const host = shipped('arm64-viommu-gicv3-flat-6.12');
    expect(host.msiControllers).toMatchObject([{ kind: 'its', bypassesIommu: true }]);
    expect(host.iommus[0]?.probedRegions).toMatchObject([{ start: 0x8090000n, last: 0x809ffffn, type: 'msi' }]);
    expect(host.iommus[0]?.inputBits).toBe(48);
    // The virtio-iommu's own function, 00:01.0, is not translated.
    expect(host.hostBridges[0]?.iommuMap).toEqual([
      { firstRequesterId: 0, count: 8, target: '0000:00:01.0', firstId: 0 },
      { firstRequesterId: 9, count: 0xfff7, target: '0000:00:01.0', firstId: 9 },
    ]);
  });

  test('Intel: VT-d width and caching mode from its capability register, the devices of its scope', () => {
    const host = shipped('x86-intel-flat-7.3');
    const unit = { name: 'dmar0', kind: 'intel-vtd', base: 0xfed90000n, inputBits: 48, cachesNotPresent: true };
    expect(host.iommus[0]).toMatchObject(unit);
    expect(host.msiControllers[0]).toMatchObject({ kind: 'x86', isolated: true });
    const scope = { firstRequesterId: 0x20, count: 1, target: 'dmar0', firstId: 0x20 };
    expect(host.hostBridges[0]?.iommuMap).toContainEqual(scope);
  });

  test('AMD: the devices of its IVHD, and interrupts that are not isolated', () => {
    const host = shipped('x86-amd-flat-6.12');
    expect(host.iommus[0]).toMatchObject({ kind: 'amd-vi', ignoresHtRange: false, cachesNotPresent: true });
    expect(host.hostBridges[0]?.iommuMap?.map((entry) => entry.firstRequesterId)).toEqual([
      0, 0x18, 0x20, 0x28, 0x30, 0xf8, 0xfa, 0xfb,
    ]);
    expect(host.msiControllers[0]?.isolated).toBe(false);
  });

  test('bridges and BARs', () => {
    const host = shipped('arm64-smmuv3-gicv3-rootports-7.3');
    expect(host.hostBridges).toMatchObject([{ segment: 0, firstBus: 0, lastBus: 255 }]);
    expect(host.hostBridges[0]?.windows.map((w) => w.start)).toEqual([0x10000000n, 0x8000000000n]);
    expect(host.functions.find((fn) => fn.bdf === '0000:00:02.0')?.model).toBe('bridge');
    expect(host.functions.find((fn) => fn.bdf === '0000:02:00.0')?.bars).toEqual([
      { index: 0, sizeBytes: 0x4000, is64: true, start: 0x10200000n },
    ]);
  });
});

describe('input that is no snapshot', () => {
  const minimal = { name: 'x', arch: 'amd64', release: '6.1', iomem: '00001000-0009ffff : System RAM' };
  const refusal = (value: object): string => {
    try {
      snapshotToHost('x.json', JSON.stringify(value), 'x');
    } catch (error) {
      if (error instanceof InputError) return error.message;
      throw error;
    }
    return 'accepted';
  };
  test.each([
    ['a snapshot of nothing but memory', minimal, 'accepted'],
    [
      '/proc/iomem read without privileges',
      { ...minimal, iomem: '00000000-00000000 : System RAM' },
      'not read as root',
    ],
    ['no memory', { ...minimal, iomem: '' }, 'no System RAM'],
    ['another architecture', { ...minimal, arch: 's390' }, 'x.json:1:'],
    ['no release', { ...minimal, release: undefined }, 'x.json:1:'],
  ])('%s', (_what, value, message) => {
    expect(refusal(value)).toContain(message);
  });
});

describe('reserved_regions text', () => {
  test('both styles of pasting', () => {
    const plain = '0x0000000008000000 0x00000000080fffff msi\n0x00000000c6010000 0x00000000c601ffff msi\n';
    expect(parseReservedRegions('r', plain + plain)).toEqual([
      { start: 0x8000000n, last: 0x80fffffn, type: 'msi' },
      { start: 0xc6010000n, last: 0xc601ffffn, type: 'msi' },
    ]);
    const [region] = parseReservedRegions(
      'r',
      '/sys/kernel/iommu_groups/3/reserved_regions:0x0000000000000000 0x0000000000ffffff direct-relaxable',
    );
    expect(region).toEqual({
      start: 0n,
      last: 0xffffffn,
      type: 'direct-relaxable',
      path: '/sys/kernel/iommu_groups/3/reserved_regions',
    });
  });
  test.each([
    ['0x1000 0x1fff fancy', 'r:1:1: unknown type'],
    ['0x2000 0x1fff msi', 'r:1:1: range is reversed'],
    ['\n  hello', 'r:2:3: not a reserved_regions line'],
  ])('%j is refused', (text, message) => {
    expect(() => parseReservedRegions('r', text)).toThrow(message);
  });
});
