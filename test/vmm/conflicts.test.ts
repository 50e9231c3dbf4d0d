/** Conflicts from sysfs, usable ranges and error details. */
import { describe, expect, test } from 'vitest';
import { findConflicts, parseReservedRegions } from '../../src/vmm/conflicts.js';
import { guestMemoryMap } from '../../src/vmm/machines.js';
import { complement, GIB, subtract, U64_LAST } from '../../src/vmm/ranges.js';

const virt4g = guestMemoryMap('qemu-virt', { memoryBytes: 4n * GIB });

const D05 = parseReservedRegions(
  '0x0000000008000000 0x00000000080fffff msi\n0x00000000c6010000 0x00000000c601ffff msi\n',
);

test('reads what sysfs prints and nothing else', () => {
  expect(D05[1]).toEqual({ start: 0xc6010000n, last: 0xc601ffffn, type: 'msi' });
  expect(parseReservedRegions('')).toEqual([]);
  expect(() => parseReservedRegions('0x0 0x1 software-msi\n')).toThrow(RangeError);
});

describe('conflicts', () => {
  test('a doorbell inside RAM, named by the kernel', () => {
    const detail = { start: 0xc6010000n, last: 0xc601ffffn, type: 'msi', kind: 'hardware-msi', owner: 'its@c6000000' };
    expect(findConflicts(virt4g, { regions: D05, detail })).toEqual([
      {
        start: 0xc6010000n,
        last: 0xc601ffffn,
        type: 'msi',
        kind: 'hardware-msi',
        owner: 'its@c6000000',
        block: 'mach-virt.ram',
        ramStart: 0xc6010000n,
        ramLast: 0xc601ffffn,
      },
    ]);
  });

  test('a 2 GiB guest ends below the doorbell', () => {
    expect(findConflicts(guestMemoryMap('qemu-virt', { memoryBytes: 2n * GIB }), { regions: D05 })).toEqual([]);
  });

  test('relaxable regions do not count', () => {
    const regions = parseReservedRegions('0x40000000 0x4fffffff direct-relaxable\n0x50000000 0x50000fff direct');
    expect(findConflicts(virt4g, { regions }).map((conflict) => conflict.kind)).toEqual(['direct']);
  });

  test('the window for doorbells of an Arm SMMU is told apart from a hardware one by its address', () => {
    const q35 = guestMemoryMap('qemu-q35', { memoryBytes: GIB });
    expect(findConflicts(q35, { regions: D05 }).map((conflict) => conflict.kind)).toEqual(['software-msi']);
  });

  test('what is unusable without a region is the aperture', () => {
    const map = guestMemoryMap('qemu-q35', { memoryBytes: 600n * GIB });
    const msi = { start: 0xfee00000n, last: 0xfeefffffn };
    const usable = subtract({ start: 0n, last: (1n << 39n) - 1n }, [msi]);
    const conflicts = findConflicts(map, { regions: parseReservedRegions('0xfee00000 0xfeefffff msi'), usable });
    expect(conflicts).toEqual([
      {
        start: 1n << 39n,
        last: U64_LAST,
        type: 'aperture',
        kind: 'aperture',
        owner: '',
        block: 'ram-above-4g',
        ramStart: 1n << 39n,
        ramLast: map.ram.at(-1)?.last,
      },
    ]);
  });
});

test('complement of usable ranges', () => {
  expect(complement([{ start: 0n, last: U64_LAST }])).toEqual([]);
  expect(complement([{ start: 0x1000n, last: 0x1fffn }])).toEqual([
    { start: 0n, last: 0xfffn },
    { start: 0x2000n, last: U64_LAST },
  ]);
});
