import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { durationText, parseBandwidth, parseDurationNs, parseSize, sizeText } from '../../src/scenario/units.js';

describe('quantities', () => {
  test.each([
    ['4 GiB', 4n << 30n],
    ['4GiB', 4n << 30n],
    ['1.5 MiB', 3n << 19n],
    ['0 B', 0n],
    ['3054 MiB', 3054n << 20n],
    ['0.3 B', undefined],
    ['4 GB', undefined],
    ['4', undefined],
    ['-1 B', undefined],
    ['1e3 B', undefined],
    ['4 constructor', undefined],
  ])('size %s', (text, bytes) => expect(parseSize(text)).toBe(bytes));
  test.each([
    ['50 us', 50_000],
    ['1.5 s', 1_500_000_000],
    ['0.5 ns', undefined],
    ['99999999999 s', undefined],
  ])('duration %s', (text, ns) => expect(parseDurationNs(text)).toBe(ns));
  test.each([
    ['10 Gbit/s', 10e9],
    ['2.5 Gbit/s', 2.5e9],
    ['0 bit/s', undefined],
    ['10 GB/s', undefined],
  ])('bandwidth %s', (text, rate) => expect(parseBandwidth(text)).toBe(rate));
  test('sizes survive being written and read', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: (1n << 49n) - 1n }), (bytes) => parseSize(sizeText(bytes)) === bytes),
    );
  });
  test('durations for people', () => {
    expect([71_234_567, 3_613_000_000, 12, 4_800].map(durationText)).toEqual(['71.2 ms', '3.61 s', '12 ns', '4.8 us']);
  });
});
