import { describe, expect, test } from 'vitest';
import { checkExpectation, unexpectedCheck, type Facts, type StepResult } from '../../src/scenario/results.js';
import { firstDifference } from '../../src/scenario/recording.js';
import type { Expectation } from '../../src/scenario/schema.js';

const AT = { line: 7, column: 5 };
const CONFLICT = {
  start: 0xc6010000n,
  last: 0xc601ffffn,
  type: 'msi',
  kind: 'hardware-msi',
  owner: 'its@c6000000',
  block: 'vm RAM',
};
const REFUSED: StepResult = { verdict: 'refused', text: 'no', errno: 'EADDRINUSE', conflicts: [CONFLICT] };

function verdict(expectation: Partial<Expectation>, result: StepResult | undefined, facts: Facts = {}): string {
  return checkExpectation({ of: 'x', ...expectation }, result, facts, AT).verdict;
}

describe('expectations', () => {
  test.each<[string, Partial<Expectation>, string]>([
    [
      'all that is said',
      { verdict: 'refused', errno: 'EADDRINUSE', conflict: { start: 0xc6010000n, kind: 'hardware-msi' } },
      'pass',
    ],
    ['another verdict', { verdict: 'ok' }, 'fail'],
    ['another errno', { errno: 'EINVAL' }, 'fail'],
    ['another range', { conflict: { start: 0xc6010000n, last: 0xc602ffffn } }, 'fail'],
    ['another kind', { conflict: { kind: 'software-msi' } }, 'fail'],
    ['another owner', { conflict: { owner: 'its@4c000000' } }, 'fail'],
    ['a transaction that was not', { landed: { kind: 'memory' } }, 'fail'],
    ['something lost', { lost: [{ start: 0n, last: 1n }] }, 'fail'],
    ['nothing lost', { lost: [] }, 'pass'],
  ])('of a refusal: %s', (_what, expectation, expected) => {
    expect(verdict(expectation, REFUSED)).toBe(expected);
  });
  test('every piece must have landed there', () => {
    const memory = { kind: 'memory' as const, iova: 0n, lengthBytes: 8, where: 'memory', hop: 'system bus' };
    const doorbell = { kind: 'doorbell' as const, iova: 8n, lengthBytes: 8, where: 'its@c6000000', hop: 'system bus' };
    const landed = { kind: 'memory' as const };
    expect(verdict({ landed }, { verdict: 'ok', text: '', ends: [memory] })).toBe('pass');
    expect(verdict({ landed }, { verdict: 'ok', text: '', ends: [memory, doorbell] })).toBe('fail');
    const where = { kind: 'doorbell' as const, where: 'its@4c' };
    expect(verdict({ landed: where }, { verdict: 'ok', text: '', ends: [doorbell] })).toBe('fail');
  });
  test('of a guest', () => {
    const facts: Facts = { runsOn: 'b', state: 'running', differingPages: 0 };
    expect(verdict({ 'runs-on': 'b', memory: 'intact', state: 'running' }, undefined, facts)).toBe('pass');
    expect(verdict({ 'runs-on': 'a' }, undefined, facts)).toBe('fail');
    expect(verdict({ memory: 'intact' }, undefined, { ...facts, differingPages: 1 })).toBe('fail');
    expect(verdict({ memory: 'intact' }, undefined, { ...facts, state: 'killed' })).toBe('fail');
    expect(verdict({ verdict: 'ok' }, undefined, facts)).toBe('fail');
  });
  test('usable means all of it, unusable none of it', () => {
    const facts: Facts = { usable: [{ start: 0x1000n, last: 0x1fffn }] };
    const range = (start: bigint, last: bigint): { range: { start: bigint; last: bigint } } => ({
      range: { start, last },
    });
    expect(verdict({ usable: range(0x1000n, 0x1fffn) }, undefined, facts)).toBe('pass');
    expect(verdict({ usable: range(0x1000n, 0x2000n) }, undefined, facts)).toBe('fail');
    expect(verdict({ unusable: range(0x2000n, 0x2fffn) }, undefined, facts)).toBe('pass');
    expect(verdict({ unusable: range(0x1fffn, 0x2fffn) }, undefined, facts)).toBe('fail');
  });
  test('a failed check says what was wanted and what was got', () => {
    const check = checkExpectation({ of: 'x', errno: 'EINVAL' }, REFUSED, {}, AT);
    expect(check).toMatchObject({ name: 'x: errno EINVAL', at: AT });
    expect(check.detail).toContain('expected errno EINVAL, got EADDRINUSE');
  });
  test('what nobody expected fails', () => {
    expect(unexpectedCheck({ boot: 'vm' }, REFUSED, AT)).toMatchObject({ name: 'boot ok', verdict: 'fail', at: AT });
  });
});

test('the first difference of two histories', () => {
  expect(firstDifference(['a', 'b'], ['a', 'b'])).toBeUndefined();
  expect(firstDifference(['a', 'b'], ['a', 'c', 'd'])).toEqual({ index: 1, recorded: 'b', now: 'c' });
  expect(firstDifference(['a'], ['a', 'b'])).toEqual({ index: 1, recorded: undefined, now: 'b' });
});
