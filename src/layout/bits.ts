/**
 * Bit fields of registers and of descriptors, declared once.
 *
 * A register or descriptor is declared as a set of named fields, each `bits(lsb, width)`. From that follow accessors, the
 * mask of defined bits (to spot reserved ones), a decoder for people and a markdown table for documentation.
 *
 * Inside the testbed a 64-bit quantity is never a bigint in a hot path: descriptors are arrays of 32-bit words, low word
 * first, and a field of up to 53 bits is read as an exact `number` whichever words it lies in. `Record` fields are
 * addressed by their bit position from the start of the record, as the Arm and PCI specifications print them
 * (STE[511:0], CMD[127:0]).
 */

/** Position of a field: `lsb` counted from bit 0 of the register or of the record's first word. Width 1..53. */
export interface BitField {
  readonly lsb: number;
  readonly width: number;
}

/** A field of `width` bits starting at `lsb`. */
export function bits(lsb: number, width: number): BitField {
  if (width < 1 || width > 53) throw new RangeError(`bit field of ${width} bits`);
  return { lsb, width };
}

/** A single bit. */
export function bit(lsb: number): BitField {
  return bits(lsb, 1);
}

/** Anything holding 32-bit words: a typed array view of an arena, a register file, a copied descriptor. */
export type Words = { [index: number]: number } & { readonly length: number };

const TWO_32 = 2 ** 32;

/** Reads `field` of the record whose first word is `words[base]`. */
export function getField(words: Words, base: number, field: BitField): number {
  const inWord = field.lsb & 31;
  if (inWord + field.width <= 32)
    return ((words[base + (field.lsb >>> 5)] ?? 0) << (32 - inWord - field.width)) >>> (32 - field.width);
  let value = 0;
  let scale = 1;
  let position = field.lsb;
  let left = field.width;
  while (left > 0) {
    const shift = position & 31;
    const take = Math.min(32 - shift, left);
    const word = (words[base + (position >>> 5)] ?? 0) >>> shift;
    value += (take === 32 ? word >>> 0 : (word & (2 ** take - 1)) >>> 0) * scale;
    scale *= 2 ** take;
    position += take;
    left -= take;
  }
  return value;
}

/** Writes `field` of the record whose first word is `words[base]`; bits of `value` beyond the width are dropped. */
export function setField(words: Words, base: number, field: BitField, value: number): void {
  const inWord = field.lsb & 31;
  if (inWord + field.width <= 32) {
    const index = base + (field.lsb >>> 5);
    const mask = (0xffffffff >>> (32 - field.width)) << inWord;
    words[index] = (((words[index] ?? 0) & ~mask) | ((value << inWord) & mask)) >>> 0;
    return;
  }
  let rest = value;
  let position = field.lsb;
  let left = field.width;
  while (left > 0) {
    const shift = position & 31;
    const take = Math.min(32 - shift, left);
    const mask = take === 32 ? 0xffffffff : ((2 ** take - 1) << shift) >>> 0;
    const part = ((rest % 2 ** take) * 2 ** shift) % TWO_32;
    const index = base + (position >>> 5);
    words[index] = (((words[index] ?? 0) & ~mask) | part) >>> 0;
    rest = Math.floor(rest / 2 ** take);
    position += take;
    left -= take;
  }
}

export type BitFields = Readonly<Record<string, BitField>>;

/** A declared record of 32-bit words (descriptor, command, event, table entry). */
export interface BitRecord<F extends BitFields> {
  readonly name: string;
  readonly sizeBytes: number;
  readonly fields: F;
  get(words: Words, field: keyof F & string, base?: number): number;
  set(words: Words, field: keyof F & string, value: number, base?: number): void;
  /** A fresh record with the given fields set, the rest zero. */
  make(values: Partial<Record<keyof F & string, number>>): Uint32Array;
  /** Every field by name. */
  decode(words: Words, base?: number): Record<keyof F & string, number>;
  /** True when a bit outside every declared field is set. */
  hasUndeclaredBits(words: Words, base?: number): boolean;
}

/** Declares a record of `sizeBytes` bytes (a multiple of 4) with the given fields. */
export function defineRecord<const F extends BitFields>(name: string, sizeBytes: number, fields: F): BitRecord<F> {
  const wordCount = sizeBytes / 4;
  const declared = new Uint32Array(wordCount);
  const entries = Object.entries(fields);
  for (const [key, field] of entries) {
    if (field.lsb + field.width > sizeBytes * 8) throw new RangeError(`${name}.${key} lies outside ${sizeBytes} bytes`);
    setField(declared, 0, field, 2 ** field.width - 1);
  }
  const field = (key: string): BitField => {
    const found = fields[key];
    if (found === undefined) throw new Error(`${name} has no field ${key}`);
    return found;
  };
  return {
    name,
    sizeBytes,
    fields,
    get: (words, key, base = 0) => getField(words, base, field(key)),
    set: (words, key, value, base = 0) => setField(words, base, field(key), value),
    make: (values) => {
      const words = new Uint32Array(wordCount);
      for (const key in values) setField(words, 0, field(key), values[key] as number);
      return words;
    },
    decode: (words, base = 0) => {
      const values: Record<string, number> = {};
      for (const [key, f] of entries) values[key] = getField(words, base, f);
      return values;
    },
    hasUndeclaredBits: (words, base = 0) => declared.some((mask, i) => ((words[base + i] ?? 0) & ~mask) >>> 0 !== 0),
  };
}

/** A declared register: its offset in the register frame, its width and fields. */
export interface Register<F extends BitFields> extends BitRecord<F> {
  readonly offset: number;
}

/** Declares a 32-bit register at `offset` of its frame. */
export function reg32<const F extends BitFields>(name: string, offset: number, fields: F): Register<F> {
  return { ...defineRecord(name, 4, fields), offset };
}

/** Declares a 64-bit register at `offset` of its frame; its value is two words, low first. */
export function reg64<const F extends BitFields>(name: string, offset: number, fields: F): Register<F> {
  return { ...defineRecord(name, 8, fields), offset };
}

/** A 64-bit value as an exact number; RangeError above 2^53-1. For addresses (at most 52 bits) and sizes. */
export function exactNumber(value: bigint, what: string): number {
  if (value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER))
    throw new RangeError(`${what} 0x${value.toString(16)} is not exact as a number`);
  return Number(value);
}

/** Low and high 32-bit words of an exact non-negative number below 2^53. */
export function splitWords(value: number): readonly [lo: number, hi: number] {
  return [(value % TWO_32) >>> 0, Math.floor(value / TWO_32) >>> 0];
}

/** The number made of a low and a high word; exact when the high word is below 2^21. */
export function joinWords(lo: number, hi: number): number {
  return (hi >>> 0) * TWO_32 + (lo >>> 0);
}

/** `0x` and lower-case hexadecimal: how every address is printed. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
