/** Recorded hosts of the committed sample: groups and reserved regions as the real kernels printed them. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { bootedGroups, compareGroups, judgeHost, recordedGroups } from '../../src/conformance/hosts.js';
import type { ShownGroup } from '../../src/scenario/booted-host.js';
import { snapshotToHost } from '../../src/scenario/snapshot.js';
import { defaultDomainType } from '../../src/kernel/iommu/flavours.js';

const SHIPPED = 'scenarios/hosts/snapshots';
const SAMPLE = 'test/conformance/hosts';

function textOf(path: string): string {
  const bytes = readFileSync(path);
  return path.endsWith('.gz') ? gunzipSync(bytes).toString('utf8') : bytes.toString('utf8');
}

const files = [SHIPPED, SAMPLE].flatMap((directory) => readdirSync(directory).map((name) => join(directory, name)));

interface SnapshotJson {
  cmdline: string;
  release: string;
  pci: Record<string, { config: string; driver?: string }>;
  acpi: Record<string, string>;
  iommuGroups: Record<string, { type: string }>;
}

function load(name: string): SnapshotJson {
  return JSON.parse(textOf(join(SAMPLE, `${name}.json.gz`))) as SnapshotJson;
}

async function groupsOf(snapshot: SnapshotJson): Promise<readonly ShownGroup[]> {
  return (await bootedGroups('changed.json', JSON.stringify(snapshot))).groups;
}

describe('recorded hosts', () => {
  test.each(files)('%s', async (file) => {
    expect(await judgeHost(file, textOf(file))).toEqual([]);
  });

  test.each(files)('%s: type of default domains', (file) => {
    const text = textOf(file);
    const host = snapshotToHost(file, text, 'host');
    const printed = new Set(Object.values((JSON.parse(text) as SnapshotJson).iommuGroups).map((group) => group.type));
    const ours = printed.size === 0 ? [] : host.iommus.map((iommu) => defaultDomainType(iommu, host));
    expect(ours).toEqual([...printed]);
  });
});

describe('what the groups follow from', () => {
  test('without ACS on its root port a function shares the port’s group', async () => {
    const snapshot = load('x86-intel-scalable-6.12');
    expect(await groupsOf(snapshot)).toHaveLength(9);
    const port = snapshot.pci['0000:00:07.0'];
    if (port === undefined) throw new Error('no root port');
    // The ACS capability becomes one that nobody knows.
    port.config = port.config.replace(/0d000100/, '23000100');
    const shared = (await groupsOf(snapshot)).find((group) => group.devices.includes('0000:03:00.0'));
    expect(shared?.devices).toEqual(['0000:00:07.0', '0000:03:00.0']);
  });

  test('pci=disable_acs_redir takes redirection back and merges the same way', async () => {
    const snapshot = load('x86-intel-scalable-6.12');
    snapshot.cmdline += ' pci=disable_acs_redir=00:07.0';
    const shared = (await groupsOf(snapshot)).find((group) => group.devices.includes('0000:03:00.0'));
    expect(shared?.devices).toEqual(['0000:00:07.0', '0000:03:00.0']);
  });

  test('an RMRR is direct, but relaxable for USB controllers, and applies to its scope only', async () => {
    const snapshot = load('x86-intel-multifn-6.12');
    const dmar = Buffer.from(snapshot.acpi['DMAR'] ?? '', 'hex');
    const rmrr = Buffer.alloc(24 + 8);
    rmrr.writeUInt16LE(1, 0);
    rmrr.writeUInt16LE(rmrr.length, 2);
    rmrr.writeBigUInt64LE(0xbdf83000n, 8);
    rmrr.writeBigUInt64LE(0xbdf84fffn, 16);
    // Endpoint 01:00.1: root port 04.0, then 00.1.
    rmrr.set([1, 10, 0, 0, 0, 0], 24);
    const scope = Buffer.from([1, 10, 0, 0, 0, 0, 4, 0, 0, 1]);
    const structure = Buffer.concat([rmrr.subarray(0, 24), scope]);
    structure.writeUInt16LE(structure.length, 2);
    const table = Buffer.concat([dmar, structure]);
    table.writeUInt32LE(table.length, 4);
    snapshot.acpi['DMAR'] = table.toString('hex');
    const region = '0x00000000bdf83000 0x00000000bdf84fff direct';
    const withRegion = (await groupsOf(snapshot)).filter((group) => group.regions.includes(region));
    expect(withRegion.map((group) => group.devices)).toEqual([['0000:01:00.0', '0000:01:00.1']]);
  });

  test('functions behind a PCIe-to-PCI bridge share its group; an SMMUv3 takes only the first of one requester ID', async () => {
    const drivers = (snapshot: SnapshotJson): SnapshotJson => {
      for (const bdf of ['0000:02:01.0', '0000:02:02.0']) {
        const fn = snapshot.pci[bdf];
        if (fn !== undefined) fn.driver = 'driver';
      }
      return snapshot;
    };
    const groupOf = async (name: string): Promise<readonly string[] | undefined> =>
      (await groupsOf(drivers(load(name)))).find((group) => group.devices.includes('0000:01:00.0'))?.devices;
    expect(await groupOf('x86-viommu-bridge-6.12')).toEqual(['0000:01:00.0', '0000:02:01.0', '0000:02:02.0']);
    expect(await groupOf('arm64-smmuv3-gicv3-bridge-7.3')).toEqual(['0000:01:00.0', '0000:02:01.0']);
  });

  test('until 6.14 a function without a driver has no group on Arm', async () => {
    const snapshot = load('arm64-smmuv3-gicv3-passthrough-6.12');
    delete snapshot.pci['0000:00:04.0']?.driver;
    const devices = (await groupsOf(snapshot)).flatMap((group) => group.devices);
    expect(devices).not.toContain('0000:00:04.0');
    snapshot.release = '7.3.4';
    expect((await groupsOf(snapshot)).flatMap((group) => group.devices)).toContain('0000:00:04.0');
  });
});

describe('the comparison', () => {
  const text = textOf(join(SHIPPED, 'x86-intel-flat-7.3.json'));
  const recorded = recordedGroups(JSON.parse(text)) ?? [];
  const swapped = recorded.map((group) => ({ ...group, number: 5 - group.number }));
  test.each<[string, readonly ShownGroup[], number]>([
    ['agreement', recorded, 0],
    ['numbers', swapped, 6],
    ['a group missing', recorded.slice(1), 1],
    ['a group too many', [...recorded, { number: 9, devices: ['0000:09:00.0'], regions: '' }], 1],
    ['regions', recorded.map((group, i) => (i === 0 ? { ...group, regions: '' } : group)), 1],
  ])('%s', (_what, found, differences) => {
    expect(compareGroups(recorded, found, true)).toHaveLength(differences);
  });
  test('numbers count only where bus order decides them', () => {
    expect(compareGroups(recorded, swapped, false)).toEqual([]);
  });
});
