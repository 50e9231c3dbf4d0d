/** The TLB against a model that remembers everything: it may forget, it may never invent, and it forgets what it is told to. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { TLB_WORDS } from '../../src/hardware/smmu/ports.js';
import { Tlb, TLB_KIND, type TlbTag } from '../../src/hardware/smmu/tlb.js';

const SHIFTS = [12, 16, 21, 30];

interface Insert {
  readonly tag: TlbTag;
  readonly page: number;
  readonly shift: number;
  readonly outputPage: number;
}

const tags = fc.record({
  kind: fc.constantFrom(TLB_KIND.STAGE1, TLB_KIND.STAGE2, TLB_KIND.NESTED),
  asid: fc.constantFrom(0, 1, 0xffff),
  vmid: fc.constantFrom(0, 2, 0xffff),
  half: fc.constantFrom(0, 1),
  granuleShift: fc.constantFrom(12, 16),
});

const inserts: fc.Arbitrary<Insert> = fc
  .record({
    tag: tags,
    shift: fc.constantFrom(...SHIFTS),
    page: fc.integer({ min: 0, max: 40 }),
    outputPage: fc.integer({ min: 0, max: 2 ** 31 }),
  })
  .map((insert) => ({ ...insert, outputPage: Math.floor(insert.outputPage / 2 ** (insert.shift - 12)) }));

const steps = fc.array(
  fc.oneof(
    { weight: 5, arbitrary: inserts.map((insert) => ({ op: 'insert' as const, insert })) },
    {
      weight: 1,
      arbitrary: fc.record({
        op: fc.constant('invalidate' as const),
        asid: fc.option(fc.constantFrom(0, 1, 0xffff), { nil: undefined }),
        vmid: fc.option(fc.constantFrom(0, 2, 0xffff), { nil: undefined }),
        start: fc.option(fc.integer({ min: 0, max: 2 ** 22 }), { nil: undefined }),
        half: fc.constantFrom(0, 1),
      }),
    },
  ),
  { maxLength: 60 },
);

function translationOf({ outputPage, shift }: Insert) {
  return { ok: true as const, address: outputPage * 2 ** shift, shift, stage1: 0x3f, stage2: 0x3f, clean: false };
}

test('hits are what was inserted last, and nothing selected survives an invalidation', () => {
  fc.assert(
    fc.property(steps, fc.nat(1000), (sequence, offset) => {
      const tlb = new Tlb({ words: new Int32Array(offset + TLB_WORDS), base: offset });
      let model: Insert[] = [];
      for (const step of sequence) {
        if (step.op === 'insert') {
          const { tag, page, shift } = step.insert;
          tlb.insert(tag, page * 2 ** shift, translationOf(step.insert));
          const same = (other: Insert): boolean =>
            JSON.stringify([other.tag, other.page, other.shift]) === JSON.stringify([tag, page, shift]);
          model = [...model.filter((other) => !same(other)), step.insert];
        } else {
          const range =
            step.start === undefined
              ? undefined
              : { start: step.start * 4096, last: step.start * 4096 + 4095, half: step.half };
          tlb.invalidate({
            kinds: 0b1110,
            ...(step.asid === undefined ? {} : { asid: step.asid }),
            ...(step.vmid === undefined ? {} : { vmid: step.vmid }),
            ...(range === undefined ? {} : { range }),
          });
          model = model.filter(({ tag, page, shift }) => {
            const overlaps =
              range === undefined ||
              (tag.half === range.half && page * 2 ** shift <= range.last && (page + 1) * 2 ** shift > range.start);
            return !((step.asid ?? tag.asid) === tag.asid && (step.vmid ?? tag.vmid) === tag.vmid && overlaps);
          });
        }
      }
      // So few entries never fill a set beyond its ways often enough to matter; what is missing was replaced, not lost by tag.
      expect(tlb.size).toBeLessThanOrEqual(model.length);
      for (const { tag, page, shift } of model) {
        const input = page * 2 ** shift + 5;
        const hit = tlb.lookup(tag, input);
        if (hit === undefined) continue;
        const possible = model.filter(
          (m) => JSON.stringify(m.tag) === JSON.stringify(tag) && Math.floor(input / 2 ** m.shift) === m.page,
        );
        expect(possible.map((m) => m.outputPage * 2 ** m.shift + (input % 2 ** m.shift))).toContain(hit.address);
      }
      tlb.invalidate({ kinds: 0b1110 });
      expect(tlb.size).toBe(0);
    }),
    { numRuns: 150 },
  );
});

test('a full set replaces its ways in turn and stays bounded', () => {
  const tlb = new Tlb({ words: new Int32Array(TLB_WORDS), base: 0 });
  const tag: TlbTag = { kind: TLB_KIND.STAGE1, asid: 1, vmid: 0, half: 0, granuleShift: 12 };
  for (let page = 0; page < 20000; page++) {
    tlb.insert(tag, page * 4096, {
      ok: true,
      address: page * 4096,
      shift: 12,
      stage1: 0x3f,
      stage2: 0x3f,
      clean: false,
    });
    expect(tlb.lookup(tag, page * 4096)?.address).toBe(page * 4096);
  }
  expect(tlb.size).toBeLessThanOrEqual(4096);
  expect(tlb.size).toBeGreaterThan(3500);
});
