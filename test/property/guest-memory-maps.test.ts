/** Invariants of guest memory maps, over machines, sizes and options. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { guestMemoryMap, MACHINES, type MachineName, type MachineOptions } from '../../src/vmm/machines.js';
import { GIB, lengthOf, MIB, overlaps, TIB } from '../../src/vmm/ranges.js';

const machines = Object.keys(MACHINES) as MachineName[];

const sizes = fc.oneof(
  fc.bigInt({ min: 512n, max: 1n << 20n }).map((pages) => pages * 4096n),
  fc.bigInt({ min: 1n, max: 1200n }).map((gib) => gib * GIB),
  fc.bigInt({ min: 1n, max: 8192n }).map((mib) => 2n * MIB + mib * MIB),
  fc.constantFrom(2n * GIB, 2816n * MIB, 3n * GIB, 3584n * MIB, 4n * GIB, 978n * GIB, 1009n * GIB, TIB),
);

const options = fc.record(
  {
    memoryBytes: sizes,
    vcpuVendor: fc.constantFrom('intel' as const, 'amd' as const),
    enforce_amd_1tb_hole: fc.boolean(),
    hotplugMemoryBytes: fc.bigInt({ min: 1n, max: 4096n }).map((mib) => mib * MIB),
    vcpus: fc.integer({ min: 1, max: 255 }),
    maxRamBelow4gBytes: fc.bigInt({ min: 1n, max: 0xfecn }).map((mib) => mib * MIB),
  },
  { requiredKeys: ['memoryBytes'] },
) as fc.Arbitrary<MachineOptions>;

test('RAM blocks are disjoint, sorted, clear of fixed ranges, and add up to the memory size', () => {
  fc.assert(
    fc.property(fc.constantFrom(...machines), options, (machine, given) => {
      const map = guestMemoryMap(machine, given);
      let sum = map.hiddenBytes;
      let cursor = -1n;
      for (const block of map.ram) {
        expect(block.start > cursor).toBe(true);
        expect(block.last >= block.start).toBe(true);
        cursor = block.last;
        sum += lengthOf(block);
        for (const fixed of map.fixed) expect([block, fixed, overlaps(block, fixed)]).toEqual([block, fixed, false]);
      }
      expect(sum).toBe(given.memoryBytes);
    }),
    { numRuns: 500 },
  );
});

test('blocks use disjoint parts of the backing, inside it', () => {
  fc.assert(
    fc.property(fc.constantFrom(...machines), options, (machine, given) => {
      const used = guestMemoryMap(machine, given)
        .ram.map((block) => ({ start: block.offset, last: block.offset + lengthOf(block) - 1n }))
        .sort((a, b) => (a.start < b.start ? -1 : 1));
      used.forEach((range, i) => {
        expect(range.last < given.memoryBytes).toBe(true);
        const next = used[i + 1];
        if (next !== undefined) expect(next.start > range.last).toBe(true);
      });
    }),
  );
});
