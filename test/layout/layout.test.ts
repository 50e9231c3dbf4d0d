import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bits, defineRecord, getField, joinWords, reg32, setField, splitWords } from '../../src/layout/bits.js';
import { arrayOf, defineStruct, nested, overlay, u16, u32, u64, u8 } from '../../src/layout/struct.js';

describe('structs', () => {
  const inner = defineStruct('inner', { a: u8, b: u32 });
  const outer = defineStruct('outer', {
    tag: u8,
    wide: u64,
    list: arrayOf(u16, 3),
    in: nested(inner),
    other: overlay('wide', u32),
  });

  test('fields are placed as the C ABI places them', () => {
    expect(Object.fromEntries(outer.fields.map((f) => [f.name, f.offset]))).toEqual({
      tag: 0,
      wide: 8,
      list: 16,
      in: 24,
      other: 8,
    });
    expect(outer.sizeBytes).toBe(32);
    expect(outer.endOf('list')).toBe(22);
  });
  test('what is encoded is decoded', () => {
    const value = { tag: 7, wide: 0x1122334455667788n, list: [1, 2, 0xffff], in: { a: 1, b: 0xdeadbeef } };
    expect(outer.decode(outer.encode(value))).toEqual({ ...value, other: 0x55667788 });
  });
  test('a union member is written over the field it lies on only when it is given', () => {
    expect(outer.decode(outer.encode({ wide: 1n << 40n, other: 5 })).wide).toBe((1n << 40n) + 5n);
  });
  test('an array of the wrong length is refused', () => {
    expect(() => outer.encode({ list: [1, 2] })).toThrow(RangeError);
  });
  test('a union member on a field that does not exist is refused', () => {
    expect(() => defineStruct('bad', { a: u8, b: overlay('c', u8) })).toThrow(/unknown field c/);
  });
});

describe('bit fields', () => {
  test('a field reads back what was written and leaves the rest alone', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 127 }),
        fc.integer({ min: 1, max: 53 }),
        fc.array(fc.nat(0xffffffff), { minLength: 6, maxLength: 6 }),
        fc.bigInt({ min: 0n, max: (1n << 53n) - 1n }),
        (lsb, width, initial, raw) => {
          const field = bits(lsb, width);
          const value = BigInt.asUintN(width, raw);
          const words = Uint32Array.from(initial);
          setField(words, 0, field, Number(value));
          const whole = (array: ArrayLike<number>): bigint =>
            Array.from(array).reduceRight((sum, word) => (sum << 32n) | BigInt(word), 0n);
          const mask = ((1n << BigInt(width)) - 1n) << BigInt(lsb);
          expect(whole(words)).toBe((whole(initial) & ~mask) | (value << BigInt(lsb)));
          expect(BigInt(getField(words, 0, field))).toBe(value);
        },
      ),
    );
  });
  test('values wider than the field are cut, signed words are read as unsigned', () => {
    const words = new Int32Array(2);
    setField(words, 0, bits(28, 8), 0x1ff);
    expect([(words[0] ?? 0) >>> 0, words[1]]).toEqual([0xf0000000, 0xf]);
    expect(getField(words, 0, bits(28, 8))).toBe(0xff);
  });
  test('records know their reserved bits', () => {
    const record = defineRecord('CMD', 16, { OP: bits(0, 8), SID: bits(32, 32) });
    expect(record.hasUndeclaredBits(record.make({ OP: 0xff, SID: 0xffffffff }))).toBe(false);
    expect(record.hasUndeclaredBits(Uint32Array.of(0x100, 0, 0, 0))).toBe(true);
    expect(() => defineRecord('X', 4, { A: bits(30, 4) })).toThrow(RangeError);
  });
  test('registers carry their offset', () => {
    const CR0 = reg32('CR0', 0x20, { SMMUEN: bits(0, 1), EVENTQEN: bits(2, 1) });
    expect(CR0.offset).toBe(0x20);
    expect(CR0.decode(Uint32Array.of(4))).toEqual({ SMMUEN: 0, EVENTQEN: 1 });
  });
  test('words split and join exactly below 2^53', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }), (value) => {
        expect(joinWords(...splitWords(value))).toBe(value);
      }),
    );
  });
});
