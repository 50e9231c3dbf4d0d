/** Every uAPI struct, constant and ioctl declared here agrees with the ones compiled from the kernel's headers. */
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { checkLayouts, UNDECLARED, type RecordedLayouts } from '../../src/conformance/layouts.js';

const recorded = JSON.parse(
  readFileSync(new URL('../conformance/linux/layouts.json', import.meta.url), 'utf8'),
) as RecordedLayouts;
const checks = checkLayouts(recorded);

describe('declarations', () => {
  test.each(checks.map((check) => [check.name, check.difference]))('%s', (_name, difference) => {
    expect(difference).toBeUndefined();
  });
  test('there are enough of them to mean something', () => {
    expect(checks.filter((check) => check.kind === 'struct').length).toBeGreaterThan(55);
    expect(checks.filter((check) => check.kind === 'number').length).toBeGreaterThan(150);
  });
  test('what is missing of iommufd has a reason, and every reason something that is missing', () => {
    const missing = checks.filter((check) => check.kind === 'undeclared').map(({ name }) => name);
    for (const { names, reason } of UNDECLARED)
      expect(
        missing.some((name) => names.test(name)),
        reason,
      ).toBe(true);
    const more = structuredClone(recorded) as unknown as { structs: Record<string, unknown> };
    more.structs['iommu_ioas_new'] = { size: 8, fields: [] };
    const wrong = checkLayouts(more as unknown as RecordedLayouts).filter((check) => check.difference !== undefined);
    expect(wrong).toEqual([{ name: 'iommu_ioas_new', kind: 'undeclared', difference: 'declared nowhere in src/uapi' }]);
  });
  test('a field that moved, a size, a value and a name that is not there are noticed', () => {
    const moved = structuredClone(recorded) as unknown as {
      structs: Record<string, { size: number; fields: { offset: number }[] }>;
      constants: Record<string, number>;
    };
    const map = moved.structs['iommu_ioas_map'];
    if (map?.fields[1] === undefined) throw new Error('no iommu_ioas_map in the sample');
    map.fields[1].offset += 4;
    moved.constants['IOMMU_IOAS_MAP'] = 1;
    delete moved.structs['iommu_destroy'];
    const wrong = checkLayouts(moved as unknown as RecordedLayouts).filter((check) => check.difference !== undefined);
    expect(wrong.map((check) => check.name).sort()).toEqual(['IOMMU_IOAS_MAP', 'iommu_destroy', 'iommu_ioas_map']);
  });
});
