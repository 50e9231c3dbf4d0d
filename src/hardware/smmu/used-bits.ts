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

const STE_USED = {
  invalid: fieldMask(STE, ['V']),
  abort: fieldMask(STE, STE_USED_ALWAYS),
  bypass: fieldMask(STE, [...STE_USED_ALWAYS, 'SHCFG']),
  stage1: fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S1]),
  stage1OrBypass: fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S1, 'SHCFG']),
  stage2: fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S2]),
  nested: fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S1, ...STE_USED_S2]),
} as const;

/** Bits of a stream table entry that the SMMU looks at, given what the entry says. Not to be changed. */
export function steUsedBits(words: Uint32Array): Uint32Array {
  if (STE.get(words, 'V') === 0) return STE_USED.invalid;
  switch (STE.get(words, 'Config')) {
    case STE_CONFIG.ABORT:
      return STE_USED.abort;
    case STE_CONFIG.BYPASS:
      return STE_USED.bypass;
    case STE_CONFIG.S1_TRANS:
      return bypassesStage1(words) ? STE_USED.stage1OrBypass : STE_USED.stage1;
    case STE_CONFIG.S2_TRANS:
      return STE_USED.stage2;
    default:
      return STE_USED.nested;
  }
}

const STE_SAFE = { eatsToo: fieldMask(STE, ['MEV', 'EATS']), mevOnly: fieldMask(STE, ['MEV']) } as const;

/**
 * Bits that the SMMU looks at and that may change before or after the others all the same. MEV merges events or does not. While
 * EATS changes between abort and full ATS the device has ATS switched off, so nobody asks; with stalls at stage 2 (S2S) full ATS is
 * illegal, and with split-stage ATS one bit of EATS is half of something else. Not to be changed.
 */
export function steSafeBits(words: Uint32Array, target: Uint32Array): Uint32Array {
  const either = (name: 'EATS' | 'S2S'): number => STE.get(words, name) | STE.get(target, name);
  const isEatsSafe = (either('EATS') & STE_EATS.SPLIT) === 0 && either('S2S') === 0;
  return isEatsSafe ? STE_SAFE.eatsToo : STE_SAFE.mevOnly;
}

const CD_SAFE = new Uint32Array(ENTRY_WORDS);

/** The same for a context descriptor: none. */
export function cdSafeBits(): Uint32Array {
  return CD_SAFE;
}

/** What a half of the input range is made of; without walks there (EPDx) nobody looks. */
const CD_HALF0 = ['T0SZ', 'TG0', 'IR0', 'OR0', 'SH0', 'TTB0'] as const;
const CD_HALF1 = ['T1SZ', 'TG1', 'IR1', 'OR1', 'SH1', 'TTB1'] as const;
const CD_USED_INVALID = fieldMask(CD, ['V']);
/** By EPD0 + 2 * EPD1. */
const CD_USED = [[], CD_HALF0, CD_HALF1, [...CD_HALF0, ...CD_HALF1]].map((ignored) =>
  fieldMask(CD, ignored).map((mask) => ~mask),
);

/** Bits of a context descriptor that the SMMU looks at. Not to be changed. */
export function cdUsedBits(words: Uint32Array): Uint32Array {
  const used = CD_USED[CD.get(words, 'EPD0') + 2 * CD.get(words, 'EPD1')];
  return used === undefined || CD.get(words, 'V') === 0 ? CD_USED_INVALID : used;
}
