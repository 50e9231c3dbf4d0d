/**
 * A virtual SMMUv3 that the host's SMMU carries: what it promises the guest, and which host can keep that.
 *
 * The guest reads the virtual SMMU's ID registers once, when it boots; so they are frozen by the first device the VMM attaches (its
 * `auto` properties resolve to what that device's SMMU has) and every device that comes later must be behind an SMMU that
 * can do as much. The destination of a migration may refuse a hot-plug for that although it took the guest.
 *
 * Source: QEMU hw/arm/smmuv3-accel.c (accel=on, 11.0); openvmm Guide, smmuv3.md; domain.md A3.19, RR-48. Arm IHI 0070 6.3.1-6.3.6.
 */
import type { BitFields, Register } from '../layout/bits.js';
import { IDR0, IDR1, IDR3, IDR5 } from '../uapi/smmuv3-registers.js';

/** What must fit, and how: the host has exactly that, or at least that. */
const RULES = {
  ST_LEVEL: { register: IDR0, index: 0, rule: 'equal', words: 'stream table levels' },
  TTENDIAN: { register: IDR0, index: 0, rule: 'at-most', words: 'endianness of table walks' },
  TTF: { register: IDR0, index: 0, rule: 'all-bits', words: 'translation table formats' },
  SIDSIZE: { register: IDR1, index: 1, rule: 'at-least', words: 'StreamID bits' },
  SSIDSIZE: { register: IDR1, index: 1, rule: 'at-least', words: 'SubstreamID bits' },
  RIL: { register: IDR3, index: 3, rule: 'at-least', words: 'range invalidation' },
  OAS: { register: IDR5, index: 5, rule: 'at-least', words: 'output address size' },
  ATS: { register: IDR0, index: 0, rule: 'at-least', words: 'ATS' },
  GRAN4K: { register: IDR5, index: 5, rule: 'equal', words: '4 KiB granule' },
  GRAN16K: { register: IDR5, index: 5, rule: 'equal', words: '16 KiB granule' },
  GRAN64K: { register: IDR5, index: 5, rule: 'equal', words: '64 KiB granule' },
} as const satisfies Readonly<
  Record<
    string,
    { register: Register<BitFields>; index: number; rule: 'equal' | 'at-least' | 'at-most' | 'all-bits'; words: string }
  >
>;

type Property = keyof typeof RULES;

/** Fields of the ID registers, as encoded there. */
export type VsmmuProperties = Readonly<Record<Property, number>>;

/** Takes the properties out of IDR0..IDR5 (IOMMU_GET_HW_INFO, iommu_hw_info_arm_smmuv3). */
export function vsmmuProperties(idr: readonly number[]): VsmmuProperties {
  const values = Object.entries(RULES).map(([name, { register, index }]) => {
    const fields: Readonly<Record<string, number>> = (register as Register<BitFields>).decode([idr[index] ?? 0]);
    return [name, fields[name] ?? 0];
  });
  return Object.fromEntries(values) as VsmmuProperties;
}

const FITS = {
  equal: (has: number, wanted: number) => has === wanted,
  'at-least': (has: number, wanted: number) => has >= wanted,
  'at-most': (has: number, wanted: number) => has <= wanted,
  'all-bits': (has: number, wanted: number) => (has & wanted) === wanted,
} as const;

/** What a host's SMMU lacks of what the guest was promised, one sentence each; empty when it has everything. */
export function vsmmuMismatches(promised: VsmmuProperties, host: VsmmuProperties): string[] {
  return (Object.keys(RULES) as Property[]).flatMap((name) => {
    const [wanted, has] = [promised[name], host[name]];
    const { rule, words } = RULES[name];
    const fits = FITS[rule](has, wanted);
    return fits ? [] : [`${words} (${name}): the guest was promised ${wanted}, the host has ${has}`];
  });
}
