/**
 * Which bits of a stream table entry or context descriptor the SMMU looks at, given what the entry says: all others may
 * change at any time. Source: Arm IHI 0070 3.21.3, 5.2, 5.4.
 */
import { setField, type BitFields, type BitRecord } from '../../layout/bits.js';
import { CD, STE, STE_CONFIG } from './records.js';

/** 32-bit words of either. */
const ENTRY_WORDS = 16;

const allOnes = (): Uint32Array => new Uint32Array(ENTRY_WORDS).fill(0xffffffff);

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
const STE_USED_S1 = [
  'S1Fmt',
  'S1ContextPtr',
  'S1CDMax',
  'S1DSS',
  'S1CIR',
  'S1COR',
  'S1CSH',
  'S1STALLD',
  'STRW',
  'EATS',
  'MEV',
  'SHCFG',
] as const;
const STE_USED_S2 = [
  'EATS',
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

/** Bits of a stream table entry that the SMMU looks at, given what the entry says. */
export function steUsedBits(words: Uint32Array): Uint32Array {
  if (STE.get(words, 'V') === 0) return fieldMask(STE, ['V']);
  switch (STE.get(words, 'Config')) {
    case STE_CONFIG.ABORT:
      return fieldMask(STE, STE_USED_ALWAYS);
    case STE_CONFIG.BYPASS:
      return fieldMask(STE, [...STE_USED_ALWAYS, 'SHCFG']);
    case STE_CONFIG.S1_TRANS:
      return fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S1]);
    case STE_CONFIG.S2_TRANS:
      return fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S2]);
    default:
      return fieldMask(STE, [...STE_USED_ALWAYS, ...STE_USED_S1, ...STE_USED_S2]);
  }
}

/** The same for a context descriptor. */
export function cdUsedBits(words: Uint32Array): Uint32Array {
  return CD.get(words, 'V') === 0 ? fieldMask(CD, ['V']) : allOnes();
}
