/** Which SMMU can keep what a virtual one promised. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { IDR0, IDR1, IDR3, IDR5 } from '../../src/uapi/smmuv3-registers.js';
import { vsmmuMismatches, vsmmuProperties } from '../../src/vmm/vsmmu.js';

const one = (words: { readonly [index: number]: number }): number => words[0] ?? 0;

const idr = fc
  .record({
    TTF: fc.nat(3),
    ATS: fc.nat(1),
    TTENDIAN: fc.nat(3),
    ST_LEVEL: fc.nat(1),
    SIDSIZE: fc.nat(32),
    SSIDSIZE: fc.nat(20),
    RIL: fc.nat(1),
    OAS: fc.nat(6),
    GRAN4K: fc.nat(1),
    GRAN16K: fc.nat(1),
    GRAN64K: fc.nat(1),
  })
  .map(({ TTF, ATS, TTENDIAN, ST_LEVEL, SIDSIZE, SSIDSIZE, RIL, OAS, ...granules }) => [
    one(IDR0.make({ TTF, ATS, TTENDIAN, ST_LEVEL })),
    one(IDR1.make({ SIDSIZE, SSIDSIZE })),
    0,
    one(IDR3.make({ RIL })),
    0,
    one(IDR5.make({ OAS, ...granules })),
  ]);

describe('property', () => {
  test('an SMMU keeps what it promised itself', () => {
    fc.assert(
      fc.property(idr, (words) => {
        expect(vsmmuMismatches(vsmmuProperties(words), vsmmuProperties(words))).toEqual([]);
      }),
    );
  });

  test('what fits both ways is the same for the guest; what fits is kept along a chain of hosts', () => {
    fc.assert(
      fc.property(idr, idr, idr, (x, y, z) => {
        const [a, b, c] = [vsmmuProperties(x), vsmmuProperties(y), vsmmuProperties(z)];
        const fits = (promised: typeof a, host: typeof a): boolean => vsmmuMismatches(promised, host).length === 0;
        if (fits(a, b) && fits(b, a)) expect(a).toEqual(b);
        if (fits(a, b) && fits(b, c)) expect(fits(a, c)).toBe(true);
      }),
    );
  });
});

test.each([
  ['range invalidation (RIL)', { RIL: 1 }, { RIL: 0 }],
  ['output address size (OAS)', { OAS: 5 }, { OAS: 4 }],
  ['SubstreamID bits (SSIDSIZE)', { SSIDSIZE: 16 }, { SSIDSIZE: 5 }],
  ['16 KiB granule (GRAN16K)', { GRAN16K: 1 }, { GRAN16K: 0 }],
  ['stream table levels (ST_LEVEL)', { ST_LEVEL: 0 }, { ST_LEVEL: 1 }],
])('names what is missing: %s', (words, promised, has) => {
  const base = vsmmuProperties([0, 0, 0, 0, 0, 0]);
  const found = vsmmuMismatches({ ...base, ...promised }, { ...base, ...has });
  expect(found).toHaveLength(1);
  expect(found[0]).toContain(words);
});
