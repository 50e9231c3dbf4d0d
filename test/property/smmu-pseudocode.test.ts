/**
 * The SMMU's walk against one written straight from the Arm ARM's pseudocode (AArch64.S1Walk, AArch64.S2Walk,
 * AArch64.S1Translate, AArch64.S2Translate), over tables that are drawn as the naive walk needs them: descriptors of every
 * kind, tables that point back at themselves, outputs beyond the address size, tables where no memory answers.
 */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { CMD_OP, CMD_TLBI, EVENT_CLASS } from '../../src/hardware/smmu/records.js';
import { EVENTQ_CONS } from '../../src/uapi/smmuv3-registers.js';
import { Machine } from '../hardware/smmu/machine.js';

const IPS_BITS = [32, 36, 40, 42, 44, 48];
const TG0 = { 12: 0, 14: 2, 16: 1 } as const;
const TG1 = { 12: 2, 14: 1, 16: 3 } as const;
type Granule = keyof typeof TG0;

interface Fault {
  readonly event: string;
  readonly s2: boolean;
  readonly class?: number;
  readonly ipa?: bigint;
}
interface Output {
  readonly address: bigint;
}
type Reached = Fault | Output;
const isFault = (reached: Reached): reached is Fault => 'event' in reached;

interface Access {
  readonly write: boolean;
  readonly instruction: boolean;
  readonly privileged: boolean;
}

interface Stage {
  readonly granule: Granule;
  readonly inputBits: number;
  readonly outputBits: number;
  readonly accessFlagFaultDisabled: boolean;
  readonly ha: boolean;
  readonly hd: boolean;
}
interface Stage1 extends Stage {
  readonly upper: boolean;
  readonly tbi: boolean;
  readonly epd: boolean;
  readonly had: boolean;
  readonly wxn: boolean;
  readonly pan: boolean;
  readonly table: bigint;
}
interface Stage2 extends Stage {
  readonly startLevel: number;
  readonly ptw: boolean;
  readonly table: bigint;
}

const bitOf = (value: bigint, bit: number): boolean => ((value >> BigInt(bit)) & 1n) === 1n;
const field = (value: bigint, msb: number, lsb: number): bigint =>
  (value >> BigInt(lsb)) & ((1n << BigInt(msb - lsb + 1)) - 1n);

/** The descriptor at an address; undefined where no memory answers. */
type Fetch = (pa: bigint, level: number, granule: Granule, stage: 1 | 2) => bigint | undefined;

/** The pseudocode. Descriptors it would write are collected and not written; its own later fetches see them. */
class Naive {
  readonly updates = new Map<bigint, bigint>();

  readonly fetch: Fetch;
  readonly s1: Stage1 | undefined;
  readonly s2: Stage2 | undefined;

  constructor(fetch: Fetch, s1: Stage1 | undefined, s2: Stage2 | undefined) {
    this.fetch = fetch;
    this.s1 = s1;
    this.s2 = s2;
  }

  full(va: bigint, access: Access): Reached {
    if (this.s1 === undefined) return this.stage2(va, access, EVENT_CLASS.IN);
    const first = this.stage1(this.s1, va, access);
    return isFault(first) || this.s2 === undefined ? first : this.stage2(first.address, access, EVENT_CLASS.IN);
  }

  stage1(s1: Stage1, va: bigint, access: Access): Reached {
    const fault = (event: string): Fault => ({ event, s2: false });
    const top = s1.tbi ? 55 : 63;
    const sign = s1.upper ? (1n << BigInt(top - s1.inputBits + 1)) - 1n : 0n;
    if (field(va, top, s1.inputBits) !== sign || s1.epd) return fault('F_TRANSLATION');
    const stride = s1.granule - 3;
    let level = 3 - Math.floor((s1.inputBits - 1 - s1.granule) / stride);
    let base = s1.table;
    let msb = s1.inputBits - 1;
    let [apReadOnly, apNoUser, xn, pxn] = [false, false, false, false];
    for (; ; level++) {
      const lsb = (3 - level) * stride + s1.granule;
      let pa = base + 8n * field(va, msb, lsb);
      if (this.s2 !== undefined) {
        const through = this.stage2(pa, { write: false, instruction: false, privileged: true }, EVENT_CLASS.TT);
        if (isFault(through)) return through;
        pa = through.address;
      }
      const descriptor = this.fetch(pa, level, s1.granule, 1);
      if (descriptor === undefined) return { event: 'F_WALK_EABT', s2: false, class: EVENT_CLASS.TT };
      const kind = decode(descriptor, level, s1.granule);
      if (kind === 'invalid') return fault('F_TRANSLATION');
      const low = kind === 'table' ? s1.granule : lsb;
      const address = field(descriptor, 47, low) << BigInt(low);
      if (address >> BigInt(s1.outputBits) !== 0n) return fault('F_ADDR_SIZE');
      if (kind === 'table') {
        base = address;
        msb = lsb - 1;
        if (!s1.had) {
          apReadOnly ||= bitOf(descriptor, 62);
          apNoUser ||= bitOf(descriptor, 61);
          xn ||= bitOf(descriptor, 60);
          pxn ||= bitOf(descriptor, 59);
        }
        continue;
      }
      const accessed = bitOf(descriptor, 10);
      if (!accessed && !s1.ha && !s1.accessFlagFaultDisabled) return fault('F_ACCESS');
      const dirtyable = s1.hd && bitOf(descriptor, 51);
      const writable = (!bitOf(descriptor, 7) || dirtyable) && !apReadOnly;
      const user = bitOf(descriptor, 6) && !apNoUser;
      const userWrites = user && writable;
      const allowed = access.privileged
        ? access.instruction
          ? !(bitOf(descriptor, 53) || pxn || userWrites || (s1.wxn && writable))
          : !(s1.pan && user) && (!access.write || writable)
        : access.instruction
          ? !(bitOf(descriptor, 54) || xn || (s1.wxn && userWrites))
          : user && (!access.write || writable);
      if (!allowed) return fault('F_PERMISSION');
      let updated = descriptor;
      if (!accessed && s1.ha) updated |= 1n << 10n;
      if (access.write && dirtyable && bitOf(descriptor, 7)) updated &= ~(1n << 7n);
      if (updated !== descriptor) this.updates.set(pa, updated);
      return { address: address | field(va, lsb - 1, 0) };
    }
  }

  stage2(ipa: bigint, access: Access, faultClass: number): Reached {
    const s2 = this.s2;
    if (s2 === undefined) throw new Error('no stage 2');
    const fault = (event: string): Fault => ({ event, s2: true, class: faultClass, ipa });
    if (ipa >> BigInt(s2.inputBits) !== 0n) return fault('F_TRANSLATION');
    const stride = s2.granule - 3;
    let base = s2.table;
    let msb = s2.inputBits - 1;
    for (let level = s2.startLevel; ; level++) {
      const lsb = (3 - level) * stride + s2.granule;
      const pa = base + 8n * field(ipa, msb, lsb);
      const descriptor = this.fetch(pa, level, s2.granule, 2);
      if (descriptor === undefined) return fault('F_WALK_EABT');
      const kind = decode(descriptor, level, s2.granule);
      if (kind === 'invalid') return fault('F_TRANSLATION');
      const low = kind === 'table' ? s2.granule : lsb;
      const address = field(descriptor, 47, low) << BigInt(low);
      if (address >> BigInt(s2.outputBits) !== 0n) return fault('F_ADDR_SIZE');
      if (kind === 'table') {
        base = address;
        msb = lsb - 1;
        continue;
      }
      const accessed = bitOf(descriptor, 10);
      if (!accessed && !s2.ha && !s2.accessFlagFaultDisabled) return fault('F_ACCESS');
      const dirtyable = s2.hd && bitOf(descriptor, 51);
      const writable = bitOf(descriptor, 7) || dirtyable;
      const xn = field(descriptor, 54, 53);
      const executable = bitOf(descriptor, 6) && (access.privileged ? xn === 0n || xn === 3n : xn < 2n);
      const allowed = access.instruction ? executable : access.write ? writable : bitOf(descriptor, 6);
      const isDevice = field(descriptor, 5, 2) < 4n;
      if (!allowed || (faultClass === EVENT_CLASS.TT && s2.ptw && isDevice)) return fault('F_PERMISSION');
      let updated = descriptor;
      if (!accessed && s2.ha) updated |= 1n << 10n;
      if (access.write && dirtyable) updated |= 1n << 7n;
      if (updated !== descriptor) this.updates.set(pa, updated);
      return { address: address | field(ipa, lsb - 1, 0) };
    }
  }
}

function decode(descriptor: bigint, level: number, granule: Granule): 'invalid' | 'table' | 'leaf' {
  if (!bitOf(descriptor, 0)) return 'invalid';
  if (level === 3) return bitOf(descriptor, 1) ? 'leaf' : 'invalid';
  if (bitOf(descriptor, 1)) return 'table';
  return level >= (granule === 12 ? 1 : 2) ? 'leaf' : 'invalid';
}

/** Every (S2SL0, inputBits) that IHI 0070 5.2 allows: at most 16 tables side by side. */
function stage2Shapes(granule: Granule): { sl0: number; startLevel: number; inputBits: number }[] {
  const startLevels = granule === 12 ? [2, 1, 0] : [3, 2, 1];
  return startLevels.flatMap((startLevel, sl0) => {
    const stride = granule - 3;
    const shapes = [];
    for (let inputBits = 25; inputBits <= 48; inputBits++) {
      const startBits = inputBits - granule - stride * (3 - startLevel);
      if (startBits >= 1 && startBits <= stride + 4) shapes.push({ sl0, startLevel, inputBits });
    }
    return shapes;
  });
}

type Drawn<A> = A extends fc.Arbitrary<infer T> ? T : never;

const granules = fc.constantFrom<Granule>(12, 14, 16);
const rarely = fc.nat(15).map((n) => n === 0);
const any64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
const stageFields = { ips: fc.constantFrom(0, 2, 5, 5, 5), affd: fc.boolean(), ha: fc.boolean(), hd: fc.boolean() };
const stage1s = fc.record({
  ...stageFields,
  granule: granules,
  inputBits: fc.integer({ min: 25, max: 48 }),
  upper: fc.boolean(),
  tbi: fc.boolean(),
  epd: rarely,
  had: fc.boolean(),
  wxn: fc.boolean(),
  pan: fc.boolean(),
});
const stage2s = fc.record({ ...stageFields, granule: granules, shape: fc.nat(1000), ptw: fc.boolean() });
/** What one descriptor is made of. */
const descriptors = fc.record({
  kind: fc.constantFrom('table', 'table', 'table', 'table', 'leaf', 'leaf', 'noise', 'invalid'),
  target: fc.constantFrom('fresh', 'fresh', 'fresh', 'fresh', 'fresh', 'again', 'anywhere', 'nowhere'),
  plain: fc.nat(3).map((n) => n > 0),
  bits: any64,
});
const probes = fc.record({
  va: any64,
  outside: rarely,
  near: fc.boolean(),
  access: fc.record({ write: fc.boolean(), instruction: fc.boolean(), privileged: fc.boolean() }),
});
const stages = { s1: stage1s, s2: stage2s };
const drawn = {
  draws: fc.array(descriptors, { minLength: 4, maxLength: 60 }),
  probes: fc.array(probes, { minLength: 1, maxLength: 6 }),
};

const ATTRIBUTES = ~(((1n << 48n) - 1n) & ~0xfffn) & ~3n;
/** AF, readable and writable by everybody at stage 2 and Normal memory; at stage 1 AP[1] alone. */
const PLAIN = { 1: (1n << 10n) | (1n << 6n), 2: (1n << 10n) | (3n << 6n) | (0xfn << 2n) };

interface Input {
  readonly s1?: Drawn<typeof stage1s>;
  readonly s2?: Drawn<typeof stage2s>;
  readonly draws: readonly Drawn<typeof descriptors>[];
}

class World {
  readonly machine = new Machine();
  readonly naive: Naive;
  #drawn = new Set<bigint>();
  #count = 0;
  #forced = false;
  readonly #tables: Record<1 | 2, bigint[]> = { 1: [], 2: [] };

  readonly input: Input;

  constructor(input: Input) {
    this.input = input;
    const { s1, s2 } = input;
    const { machine } = this;
    const nested = s1 !== undefined && s2 !== undefined;
    let stage2: Stage2 | undefined;
    let ste: Parameters<Machine['writeSte']>[0] = { Config: nested ? 7 : s1 === undefined ? 6 : 5, S2VMID: 3 };
    if (s2 !== undefined) {
      const outputBits = IPS_BITS[s2.ips] ?? 48;
      const shapes = stage2Shapes(s2.granule).filter((shape) => shape.inputBits <= outputBits);
      const shape = shapes[s2.shape % shapes.length];
      if (shape === undefined) throw new Error('no shape');
      const table = BigInt(machine.allocate(2 ** (s2.granule + 4)));
      stage2 = { ...s2, ...shape, outputBits, accessFlagFaultDisabled: s2.affd, hd: s2.hd && s2.ha, table };
      ste = {
        ...ste,
        S2T0SZ: 64 - shape.inputBits,
        S2SL0: shape.sl0,
        S2TG: TG0[s2.granule],
        S2PS: s2.ips,
        S2AA64: 1,
        S2AFFD: Number(s2.affd),
        S2HA: Number(s2.ha),
        S2HD: Number(s2.hd),
        S2PTW: Number(s2.ptw),
        S2R: 1,
        S2TTB: Number(table / 16n),
      };
    }
    let stage1: Stage1 | undefined;
    if (s1 !== undefined) {
      const inputs = stage2?.inputBits ?? 32;
      const table = nested ? 1n << BigInt(Math.min(inputs, 32) - 1) : BigInt(machine.allocate(2 ** s1.granule));
      // Where stage 2 has to agree to the update as well, its order against the access is the implementation's choice.
      const ha = s1.ha && !nested;
      const hd = s1.hd && ha;
      stage1 = { ...s1, outputBits: IPS_BITS[s1.ips] ?? 48, accessFlagFaultDisabled: s1.affd, ha, hd, table };
    }
    this.naive = new Naive(this.#fetch.bind(this), stage1, stage2);
    if (s1 !== undefined && stage1 !== undefined) {
      const ttb = Number(stage1.table / 16n);
      const size = 64 - s1.inputBits;
      const half = s1.upper
        ? {
            T1SZ: size,
            TG1: TG1[s1.granule],
            TTB1: ttb,
            EPD1: Number(s1.epd),
            TBI1: Number(s1.tbi),
            HAD1: Number(s1.had),
            EPD0: 1,
            TTB0: 0,
          }
        : {
            T0SZ: size,
            TG0: TG0[s1.granule],
            TTB0: ttb,
            EPD0: Number(s1.epd),
            TBI0: Number(s1.tbi),
            HAD0: Number(s1.had),
            EPD1: 1,
          };
      let at = machine.allocate(4096);
      let pointer = at;
      if (nested) {
        pointer = 0x10000;
        this.#forced = true;
        const where = this.naive.stage2(
          BigInt(pointer),
          { write: false, instruction: false, privileged: true },
          EVENT_CLASS.CD,
        );
        this.#forced = false;
        if (isFault(where)) throw new Error(`the CD is not mapped: ${where.event}`);
        at = Number(where.address);
      }
      const flags = {
        AFFD: Number(s1.affd),
        HA: Number(stage1.ha),
        HD: Number(stage1.hd),
        WXN: Number(s1.wxn),
        PAN: Number(s1.pan),
      };
      machine.writeCd(0, { IPS: s1.ips, ...flags, ...half }, at);
      ste = { ...ste, S1ContextPtr: pointer / 64 };
    }
    machine.writeSte(ste);
  }

  /** Where the naive walk goes; the TLB is empty afterwards. */
  expected(va: bigint, access: Access): Reached {
    this.machine.command(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NSNH_ALL }));
    this.naive.updates.clear();
    return this.naive.full(va, access);
  }

  found(va: bigint, { write, ...signalled }: Access): Reached {
    const { machine } = this;
    const result = machine.translate(va, write, signalled);
    if (result.ok) return { address: BigInt(result.pa) };
    const event = machine.event((machine.eventProducer - 1) & 15);
    machine.smmu.writeRegister(EVENTQ_CONS.offset, 4, machine.eventProducer);
    const ipa = BigInt(event.IPA) << 12n;
    return { event: result.event ?? 'abort', s2: event.S2 !== 0, class: event.CLASS, ipa };
  }

  descriptorAt(pa: bigint): bigint {
    const [lo, hi] = this.machine.descriptor(Number(pa));
    return (BigInt(hi) << 32n) | BigInt(lo);
  }

  #fetch(pa: bigint, level: number, granule: Granule, stage: 1 | 2): bigint | undefined {
    const { memory } = this.machine;
    if (!memory.answers(Number(pa), 8)) return undefined;
    if (!this.#drawn.has(pa)) {
      this.#drawn.add(pa);
      const value = this.#draw(level, granule, stage);
      memory.store64(Number(pa), Number(value & 0xffffffffn), Number(value >> 32n));
    }
    return this.naive.updates.get(pa) ?? this.descriptorAt(pa);
  }

  #draw(level: number, granule: Granule, stage: 1 | 2): bigint {
    const { draws } = this.input;
    const next = draws[this.#count++ % draws.length];
    if (next === undefined) throw new Error('nothing to draw from');
    const { bits } = next;
    if (this.#forced) {
      const target = BigInt(this.machine.allocate(2 ** granule));
      return target | 3n | (level === 3 ? PLAIN[2] : 0n);
    }
    if (next.kind === 'noise') return bits;
    if (next.kind === 'invalid') return bits & ~1n;
    const isTable = next.kind === 'table' && level < 3;
    const shift = isTable ? granule : granule + (granule - 3) * (3 - level);
    const known = this.#tables[stage];
    let target = ((bits >> 12n) & ((1n << 36n) - 1n)) << 12n;
    const { s2 } = this.naive;
    if (next.target === 'again' && isTable && known.length > 0)
      target = known[Number(bits % BigInt(known.length))] ?? 0n;
    else if (next.target === 'nowhere') target = 0x10000000n;
    else if (next.target !== 'anywhere') {
      target =
        stage === 1 && s2 !== undefined
          ? target & ((1n << BigInt(Math.min(s2.inputBits, 32))) - 1n)
          : BigInt(this.machine.allocate(2 ** Math.min(shift, 30)));
    }
    target = (target >> BigInt(shift)) << BigInt(shift);
    if (isTable) known.push(target);
    // A table's attributes are at the top; anything but the address and the type is ignored.
    const attributes = next.plain ? (isTable ? 0n : PLAIN[stage]) : bits & ATTRIBUTES;
    return target | attributes | (isTable || level === 3 ? 3n : 1n);
  }
}

function check(input: Input, wanted: readonly Drawn<typeof probes>[]): string[] {
  const world = new World(input);
  const { s1, s2 } = world.naive;
  const seen: string[] = [];
  let before = 0n;
  for (const { va: raw, outside, near, access: asked } of wanted) {
    const inputBits = BigInt(s1?.inputBits ?? s2?.inputBits ?? 48);
    const low = (near ? before ^ (raw & 0xffffn) : raw) & ((1n << inputBits) - 1n);
    before = low;
    let va = low;
    if (s1?.upper === true) va |= ((1n << 64n) - 1n) & ~((1n << inputBits) - 1n);
    if (s1?.tbi === true) va = (va & ((1n << 56n) - 1n)) | ((raw >> 56n) << 56n);
    if (outside) va = s1 === undefined ? raw & ((1n << 48n) - 1n) : raw;
    const access = { ...asked, write: asked.write && !asked.instruction };
    const naive = world.expected(va, access);
    const updates = new Map(world.naive.updates);
    const smmu = world.found(va, access);
    const context = `va ${va.toString(16)} ${JSON.stringify(access)}`;
    if (isFault(naive)) {
      expect({ ...smmu, context }).toMatchObject({ event: naive.event, s2: naive.s2, context });
      if (naive.class !== undefined) expect(smmu).toHaveProperty('class', naive.class);
      if (naive.ipa !== undefined && naive.event !== 'F_WALK_EABT')
        expect(smmu).toHaveProperty('ipa', (naive.ipa >> 12n) << 12n);
      seen.push(`${naive.event}${naive.s2 ? '.s2' : ''}`);
    } else {
      expect({ ...smmu, context }).toEqual({ ...naive, context });
      for (const [pa, value] of updates) expect(world.descriptorAt(pa), context).toBe(value);
      seen.push(updates.size > 0 ? 'ok.updated' : 'ok');
      // Once more, now by way of the TLB.
      expect({ ...world.found(va, access), context }).toEqual({ ...naive, context });
    }
  }
  return seen;
}

const cases = [
  [
    'stage 1',
    fc.record({ s1: stages.s1, ...drawn }),
    ['ok', 'ok.updated', 'F_TRANSLATION', 'F_ADDR_SIZE', 'F_ACCESS', 'F_PERMISSION', 'F_WALK_EABT'],
  ],
  [
    'stage 2',
    fc.record({ s2: stages.s2, ...drawn }),
    ['ok', 'ok.updated', 'F_TRANSLATION.s2', 'F_ADDR_SIZE.s2', 'F_ACCESS.s2', 'F_PERMISSION.s2', 'F_WALK_EABT.s2'],
  ],
  [
    'nested',
    fc.record({ ...stages, ...drawn }),
    [
      'ok',
      'F_TRANSLATION',
      'F_PERMISSION',
      'F_TRANSLATION.s2',
      'F_ADDR_SIZE.s2',
      'F_ACCESS.s2',
      'F_PERMISSION.s2',
      'F_WALK_EABT.s2',
    ],
  ],
] as const;

test.each(cases)(
  '%s: the SMMU goes where the pseudocode goes, and every outcome occurs',
  (_name, arbitrary, outcomes) => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(
        arbitrary as fc.Arbitrary<Input & { probes: Drawn<typeof probes>[] }>,
        ({ probes: wanted, ...input }) => {
          for (const outcome of check(input, wanted)) seen.add(outcome);
        },
      ),
      { numRuns: 1000 },
    );
    expect(outcomes.filter((outcome) => !seen.has(outcome))).toEqual([]);
  },
);
