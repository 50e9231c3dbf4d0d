/** Random mappings through the whole SMMU: a transaction ends exactly where a plain list of the mappings says. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { levelShift, stage1StartLevel } from '../../src/hardware/smmu/walk.js';
import { Machine, PAGE_BITS, type Leaf } from '../hardware/smmu/machine.js';

const granules = [
  { TG0: 0, shift: 12, levels: [1, 2, 3] },
  { TG0: 2, shift: 14, levels: [2, 3] },
  { TG0: 1, shift: 16, levels: [2, 3] },
] as const;

const cases = fc.record({
  granule: fc.constantFrom(...granules),
  inputBits: fc.integer({ min: 25, max: 48 }),
  picks: fc.array(
    fc.record({
      level: fc.nat(2),
      page: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
      pa: fc.nat(0x3ff),
    }),
    { minLength: 1, maxLength: 12 },
  ),
  probe: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
});

test('stage 1, every granule and input size', () => {
  fc.assert(
    fc.property(cases, ({ granule, inputBits, picks, probe }) => {
      const machine = new Machine();
      const root = machine.allocate(2 ** granule.shift);
      const context = machine.writeCd(root, { TG0: granule.TG0, T0SZ: 64 - inputBits });
      machine.writeSte({ Config: 5, S1ContextPtr: context / 64 });
      const start = stage1StartLevel(granule.shift, inputBits);
      const mapped: (Leaf & { size: number })[] = [];
      for (const pick of picks) {
        const level = granule.levels[pick.level % granule.levels.length] ?? 3;
        const size = 2 ** levelShift(granule.shift, level);
        if (level < start || size > 2 ** inputBits) continue;
        const address = Math.floor((pick.page * 2 ** inputBits) / size) * size;
        const touches = mapped.some((other) => address < other.address + other.size && other.address < address + size);
        if (touches) continue;
        const leaf = { address, pa: pick.pa * size, level, bits: PAGE_BITS.readWrite, size };
        if (leaf.pa >= 2 ** 48) continue;
        machine.map(root, granule.shift, inputBits, start, leaf);
        mapped.push(leaf);
      }
      const probes = [
        ...mapped.flatMap((leaf) => [leaf.address, leaf.address + leaf.size - 1]),
        Math.floor(probe * 2 ** inputBits),
      ];
      for (const input of [...probes, ...probes]) {
        const leaf = mapped.find((m) => input >= m.address && input < m.address + m.size);
        expect(machine.outcome(BigInt(input), true)).toBe(
          leaf === undefined ? 'F_TRANSLATION' : leaf.pa + input - leaf.address,
        );
      }
      expect(machine.outcome(1n << BigInt(inputBits))).toBe('F_TRANSLATION');
    }),
    { numRuns: 120 },
  );
});
