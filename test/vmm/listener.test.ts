/** The listener's filter and failure policy (domain.md A3.1, A3.2). */
import { describe, expect, test } from 'vitest';
import { decideSection, mapFailurePolicy, type MemorySection } from '../../src/vmm/listener.js';

const PAGE = 4096n;

function section(change: Partial<MemorySection>): MemorySection {
  return { name: 's', kind: 'ram', start: 0x40000000n, last: 0x4fffffffn, va: 0x7f0000000000n, ...change };
}

function ruleFor(change: Partial<MemorySection>, pageBytes = PAGE): string {
  const decision = decideSection(section(change), pageBytes);
  return decision.action === 'map' ? 'map' : `${decision.action}: ${decision.rule}`;
}

describe('filter', () => {
  test.each([
    ['RAM', {}, 'map'],
    ['MMIO', { kind: 'mmio' }, 'skip: not-ram'],
    ['a vIOMMU region', { kind: 'iommu' }, 'notify: viommu'],
    ['memory of a confidential guest', { isProtected: true }, 'skip: protected'],
    [
      'a 64-bit BAR being sized',
      { kind: 'ram-device', start: 0xffffffff00000000n, last: 0xffffffff00003fffn },
      'skip: bar-sizing',
    ],
    ['an address out of step with its page', { va: 0x7f0000000800n }, 'error: misaligned'],
    ['the TPM CRB', { va: 0x7f0000000800n, isKnownSafeMisaligned: true }, 'skip: known-safe-misalignment'],
    ['half a page', { last: 0x400007ffn }, 'skip: no-whole-page'],
    ['a whole-page BAR', { kind: 'ram-device' }, 'map'],
    ['a BAR of one and a half pages', { kind: 'ram-device', last: 0x400017ffn }, 'skip: no-dma-map'],
  ] as const)('%s', (_what, change, expected) => {
    expect(ruleFor(change)).toBe(expected);
  });

  test('a page-sized BAR is not mappable on a host with 64 KiB pages', () => {
    expect(ruleFor({ kind: 'ram-device', last: 0x40000fffn }, 65536n)).toBe('skip: no-whole-page');
  });

  test('RAM shrinks to whole pages, and its address moves along', () => {
    const decision = decideSection(section({ start: 0x40000800n, last: 0x400027ffn, va: 0x7f0000000800n }), PAGE);
    expect(decision).toMatchObject({
      action: 'map',
      mapping: { start: 0x40001000n, last: 0x40001fffn, va: 0x7f0000001000n, writable: true },
    });
  });

  test('ROM is mapped read-only', () => {
    expect(decideSection(section({ kind: 'rom' }), PAGE)).toMatchObject({ mapping: { writable: false } });
  });
});

test('a map that fails: RAM fails the plug, later it kills; a BAR only warns', () => {
  expect(mapFailurePolicy('ram', false)).toBe('fail-plug');
  expect(mapFailurePolicy('ram', true)).toBe('kill');
  expect(mapFailurePolicy('ram-device', true)).toBe('warn');
});
