import { describe, expect, test } from 'vitest';
import { identificationOf } from '../../src/hardware/smmu/identification.js';
import { hostProfileText } from '../../src/scenario/host-profile-text.js';
import { parseHostProfile, shippedHosts, shippedProfile, shippedSnapshot } from '../../src/scenario/hosts.js';
import { IDR0, IDR1, IDR3 } from '../../src/uapi/smmuv3-registers.js';

const { profiles, snapshots } = shippedHosts();

describe('profiles', () => {
  test.each(profiles)('%s is a host, and survives being written and read', (name) => {
    const host = shippedProfile(name);
    if (host === undefined) throw new Error(`no profile ${name}`);
    expect(host.name).toBe(name);
    expect(parseHostProfile('again.yaml', hostProfileText(host), name)).toEqual(host);
  });
  test.each(snapshots)('%s becomes a profile that says the same, but for configuration space', (name) => {
    const host = shippedSnapshot(name);
    if (host === undefined) throw new Error(`no snapshot ${name}`);
    const functions = host.functions.map((fn) => {
      const { config, bars, ...rest } = fn;
      expect(config?.length).toBeGreaterThan(0);
      return bars === undefined || bars.length === 0 ? rest : { ...rest, bars };
    });
    const again = parseHostProfile('again.yaml', hostProfileText(host), name);
    expect(again).toEqual({ ...host, functions, allowMixedMsi: false });
  });
  test('an SMMU says in its identification registers what the profile says of it', () => {
    const keys = `output-bits: 48, httu: none, substream-id-bits: 8, ats: true, pri: true, break-before-make-level: 1`;
    const text = `title: t\narch: arm64\nmemory: [{ start: 0, size: 1 GiB }]\niommus: [{ name: s, base: 0, ${keys} }]\n`;
    const host = parseHostProfile('p.yaml', text, 'p');
    expect(parseHostProfile('again.yaml', hostProfileText(host), 'p')).toEqual(host);
    const [smmu] = host.iommus;
    if (smmu === undefined) throw new Error('no SMMU');
    const registers = identificationOf(smmu);
    expect(IDR0.decode([registers.IDR0])).toMatchObject({ HTTU: 0, ATS: 1, PRI: 1 });
    expect(IDR1.decode([registers.IDR1])).toMatchObject({ SSIDSIZE: 8 });
    expect(IDR3.decode([registers.IDR3])).toMatchObject({ BBML: 1 });
  });
  test('a name that is none', () => expect(shippedProfile('../../package')).toBeUndefined());
});

describe('what cannot be', () => {
  const base = `title: t\narch: arm64\nmemory: [{ start: 0, size: 1 GiB }]\n`;
  test.each([
    [
      'two banks in one place',
      base.replace(']', ', { start: 0x1000, last: 0x1fff }]'),
      'memory bank overlaps 0x0-0x3fffffff',
    ],
    ['a bridge behind no IOMMU', `${base}host-bridges: [{ name: b, iommu: x }]\n`, 'p.yaml:4:34: no iommu x'],
    [
      'a reversed window',
      `${base}host-bridges: [{ name: b, windows: [{ start: 2, last: 1 }] }]\n`,
      'range is reversed',
    ],
    ['reversed buses', `${base}host-bridges: [{ name: b, buses: [2, 1] }]\n`, 'bus numbers are reversed'],
    [
      'a function nowhere',
      `${base}functions: [{ bdf: "0000:00:01.0", vendor: 1, device: 1, class: 1 }]\n`,
      'no host bridge leads',
    ],
    [
      'an address size that does not exist',
      `${base}iommus: [{ name: s, base: 0, output-bits: 47 }]\n`,
      'p.yaml:4:43: output-bits is one of',
    ],
  ])('%s', (_what, text, message) => {
    expect(() => parseHostProfile('p.yaml', text, 'p')).toThrow(message);
  });
});
