/** Failures of one kind have one signature, whatever their numbers. */
import { expect, test } from 'vitest';
import { signatureOf } from '../../src/runtime/signature.js';

test('a fraction is a number like any other', () => {
  expect(signatureOf('expected below 11.06 ms, got 11 ms')).toBe(signatureOf('expected below 7 ms, got 11.1 ms'));
});

test('rules keep their number; what has several numbers keeps its shape', () => {
  expect(signatureOf('INV-14: smmu0: an event of 0000:00:00.0 at 0x1f')).toBe(
    'INV-14: smmu#: an event of #:#:#.# at #',
  );
});
