/**
 * Which bits of a stream table entry or context descriptor the SMMU looks at, given what the entry says: all others may
 * change at any time. Source: Arm IHI 0070 3.21.3, 5.2, 5.4.
 */
import { setField, type BitFields, type BitRecord } from '../../layout/bits.js';
import { CD, STE, STE_CONFIG, STE_EATS, STE_S1DSS, STE_STAGE1_FIELDS } from './records.js';

/** 32-bit words of either. */
const ENTRY_WORDS = 16;

/** Ones in every bit of the named fields. */
function fieldMask<F extends BitFields>(record: BitRecord<F>, names: readonly (keyof F & string)[]): Uint32Array {
  const mask = new Uint32Array(ENTRY_WORDS);
  for (const name of names) {
    const field = record.fields[name];
    if (field !== undefined) setField(mask, 0, field, 2 ** field.width - 1);
  }
  return mask;
}

const STE_USED_ALWAYS = ['V', 'Config'] as const;
const STE_USED_S1 = [...STE_STAGE1_FIELDS, 'STRW', 'EATS', 'MEV', 'S2VMID'] as const;
const STE_USED_S2 = [
  'EATS',
  'MEV',
  'SHCFG',
  'S2FWB',
  'S2VMID',
  'S2T0SZ',
  'S2SL0',
  'S2IR0',
  'S2OR0',
  'S2SH0',
  'S2TG',
  'S2PS',
  'S2AA64',
  'S2ENDI',
  'S2AFFD',
  'S2PTW',
  'S2HD',
  'S2HA',
  'S2S',
  'S2R',
  'S2TTB',
] as const;

/** Transactions without a SubstreamID bypass stage 1 (S1DSS): of stage 1 only they have a shareability of their own (13.5). */
function bypassesStage1(words: Uint32Array): boolean {
  return STE.get(words, 'S1DSS') === STE_S1DSS.BYPASS;
}

/** Bits of a stream table entry that the SMMU looks at, given what the entry says. */
export function steUsedBits(words: Uint32Array): Uint32Array {
  if (STE.get(words, 'V') === 0) return fieldMask(STE, ['V']);
  switch (STE.get(words, 'Config')) {
    case STE_CONFIG.ABORT:
      return fieldMask(STE, STE_USED_ALWAYS);
    case STE_CONFIG.BYPASS:
      return fieldMask(STE, [...STE_USED_ALWAYS, 'SHCFG']);
    case STE_CONFIG.S1_TRANS:
      return fieldMask(STE, [
        ...STE_USED_ALWAYS,
        ...STE_USED_S1,
        ...(bypassesStage1(words) ? (['SHCFG'] as const) : []),
      ]);
    case STE_CONFIG.S2_TRANS:
      return fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S2]);
    default:
      return fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S1, ...STE_USED_S2]);
  }
}

/**
 * Bits that the SMMU looks at and that may change before or after the others all the same. MEV merges events or does not. While
 * EATS changes between abort and full ATS the device has ATS switched off, so nobody asks; with stalls at stage 2 (S2S) full ATS is
 * illegal, and with split-stage ATS one bit of EATS is half of something else.
 */
export function steSafeBits(words: Uint32Array, target: Uint32Array): Uint32Array {
  const either = (name: 'EATS' | 'S2S'): number => STE.get(words, name) | STE.get(target, name);
  const isEatsSafe = (either('EATS') & STE_EATS.SPLIT) === 0 && either('S2S') === 0;
  return fieldMask(STE, isEatsSafe ? ['MEV', 'EATS'] : ['MEV']);
}

/** The same for a context descriptor: none. */
export function cdSafeBits(): Uint32Array {
  return new Uint32Array(ENTRY_WORDS);
}

/** What a half of the input range is made of; without walks there (EPDx) nobody looks. */
const CD_HALVES = [
  { disable: 'EPD0', fields: ['T0SZ', 'TG0', 'IR0', 'OR0', 'SH0', 'TTB0'] },
  { disable: 'EPD1', fields: ['T1SZ', 'TG1', 'IR1', 'OR1', 'SH1', 'TTB1'] },
] as const;

/** Bits of a context descriptor that the SMMU looks at. */
export function cdUsedBits(words: Uint32Array): Uint32Array {
  if (CD.get(words, 'V') === 0) return fieldMask(CD, ['V']);
  const ignored = fieldMask(
    CD,
    CD_HALVES.flatMap(({ disable, fields }) => (CD.get(words, disable) === 0 ? [] : fields)),
  );
  return ignored.map((mask) => ~mask);
}
