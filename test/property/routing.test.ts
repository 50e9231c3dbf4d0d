/**
 * Routing of requests below a root complex, against a decode written here from the rules of PCIe alone: bytes of configuration
 * space in, one answer an address out. Topologies, windows, ACS controls and switches are random.
 *
 * Sources: PCIe 5.0 1.3 (routing by address), 6.12.3 (ACS), 7.5.1.3 (base and limit), bridge specification 2.3 (requester IDs).
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Board } from '../../src/hardware/board.js';
import type { AcsFlag, AddressRange, HostDescription, PciFunctionDescription } from '../../src/hardware/description.js';
import type { Route } from '../../src/hardware/pcie/fabric.js';
import type { PciFunction } from '../../src/hardware/pcie/function.js';
import { NodeRuntime } from '../../src/runtime/node-runtime.js';

const RAM: AddressRange = { start: 0x8000_0000n, last: 0xbfff_ffffn };
const WINDOW = { start: 0x1000_0000n, last: 0x2fff_ffffn };
const EVERY_ACS: AcsFlag[] = ['SV', 'TB', 'RR', 'CR', 'UF', 'EC', 'DT'];

// --- random machines ---

interface Leaf {
  readonly bars: readonly number[];
  readonly acs: number;
  readonly isInternal: boolean;
}
interface Below {
  readonly kind: 'endpoint' | 'two-functions' | 'switch' | 'conventional';
  readonly leaves: readonly Leaf[];
  readonly portAcs: readonly number[];
}
interface Plan {
  readonly integrated: readonly Leaf[];
  readonly ports: readonly { readonly below: Below; readonly acs: number }[];
  readonly abort: boolean;
  readonly inbound: boolean;
  readonly peerToPeer: boolean;
}

const leaf = fc.record({
  bars: fc.array(fc.constantFrom(0x100, 0x1000, 0x4000, 0x10_0000), { minLength: 0, maxLength: 2 }),
  acs: fc.nat(0x7f),
  isInternal: fc.boolean(),
});
const below: fc.Arbitrary<Below> = fc.record({
  kind: fc.constantFrom('endpoint', 'two-functions', 'switch', 'conventional'),
  leaves: fc.array(leaf, { minLength: 2, maxLength: 3 }),
  portAcs: fc.array(fc.nat(0x7f), { minLength: 3, maxLength: 3 }),
});
const plan: fc.Arbitrary<Plan> = fc.record({
  integrated: fc.array(leaf, { maxLength: 2 }),
  ports: fc.array(fc.record({ below, acs: fc.nat(0x7f) }), { minLength: 1, maxLength: 3 }),
  abort: fc.boolean(),
  inbound: fc.boolean(),
  peerToPeer: fc.boolean(),
});

function flags(bits: number): AcsFlag[] {
  return EVERY_ACS.filter((_, i) => (bits & (1 << i)) !== 0);
}

function bdf(bus: number, device: number, fn = 0): string {
  return `0000:${bus.toString(16).padStart(2, '0')}:${device.toString(16).padStart(2, '0')}.${fn}`;
}

function card(
  at: string,
  { bars, acs, isInternal }: Leaf,
  extra: Partial<PciFunctionDescription> = {},
): PciFunctionDescription {
  return {
    bdf: at,
    model: 'generic',
    vendor: 0x1234,
    device: 0x1111,
    classCode: 0x058000,
    acs: flags(acs),
    internalPeerToPeer: isInternal,
    bars: bars.map((sizeBytes, i) => ({ index: 2 * i, sizeBytes, is64: true })),
    ...extra,
  };
}

function port(
  at: string,
  first: number,
  last: number,
  acs: number,
  type?: PciFunctionDescription['type'],
): PciFunctionDescription {
  return {
    bdf: at,
    model: 'bridge',
    vendor: 0x1234,
    device: 0x2222,
    classCode: 0x060400,
    acs: flags(acs),
    bridge: { secondaryBus: first, subordinateBus: last },
    ...(type === undefined ? {} : { type }),
  };
}

function functionsOf({ integrated, ports }: Plan): PciFunctionDescription[] {
  const found = integrated.map((given, i) => card(bdf(0, i + 1), given));
  let bus = 1;
  ports.forEach(({ below: { kind, leaves, portAcs }, acs }, i) => {
    const at = bdf(0, 8 + i);
    const [one, two] = leaves;
    if (one === undefined || two === undefined) return;
    if (kind === 'endpoint') found.push(port(at, bus, bus, acs), card(bdf(bus++, 0), one));
    else if (kind === 'two-functions') {
      found.push(port(at, bus, bus, acs), card(bdf(bus, 0), one), card(bdf(bus++, 0, 1), two));
    } else if (kind === 'conventional') {
      found.push(port(at, bus, bus + 1, acs), port(bdf(bus, 0), bus + 1, bus + 1, 0, 'pcie-to-pci-bridge'));
      leaves.forEach((given, slot) => found.push(card(bdf(bus + 1, slot + 1), given, { type: 'conventional' })));
      bus += 2;
    } else {
      const last = bus + 1 + leaves.length;
      found.push(port(at, bus, last, acs), port(bdf(bus, 0), bus + 1, last, 0, 'upstream-port'));
      leaves.forEach((given, slot) => {
        found.push(port(bdf(bus + 1, slot), bus + 2 + slot, bus + 2 + slot, portAcs[slot] ?? 0, 'downstream-port'));
        found.push(card(bdf(bus + 2 + slot, 0), given));
      });
      bus = last + 1;
    }
  });
  return found;
}

function hostOf(given: Plan): HostDescription {
  return {
    name: 'h',
    title: 'random',
    sources: [],
    arch: 'arm64',
    kernelRelease: '7.3.4',
    pageShift: 12,
    memory: [RAM],
    iommus: [],
    msiControllers: [],
    hostBridges: [
      {
        name: 'rc',
        segment: 0,
        firstBus: 0,
        lastBus: 255,
        windows: [{ ...WINDOW, cpuStart: WINDOW.start, prefetchable: false }],
        streamIdBase: 0,
        peerToPeer: given.peerToPeer,
        ...(given.abort ? { abortRanges: [{ start: 0x9000_0000n, last: 0x9000_0fffn }] } : {}),
        ...(given.inbound
          ? {
              inbound: [
                { start: 0x8000_0000n, last: 0x9fff_ffffn, cpuStart: 0x8000_0000n },
                { start: 0xe000_0000n, last: 0xe0ff_ffffn, cpuStart: 0xa000_0000n },
              ],
            }
          : {}),
      },
    ],
    functions: functionsOf(given),
    reservedRegions: [],
    allowUnsafeInterrupts: false,
  };
}

// --- the naive decode: registers only ---

type Answer =
  | { readonly to: 'iommu'; readonly requesterId: number; readonly address: number }
  | { readonly to: 'bar'; readonly who: string; readonly bar: number; readonly offset: number }
  | { readonly to: 'nowhere' | 'aborted' };

const NOWHERE: Answer = { to: 'nowhere' };
const ABORTED: Answer = { to: 'aborted' };
const ROOT_PORT = 4;
const UPSTREAM = 5;
const DOWNSTREAM = 6;
const PCI_BRIDGE = 7;

/** The rules, read off configuration space. */
class Naive {
  readonly #all: readonly PciFunction[];
  readonly #plan: Plan;

  constructor(all: readonly PciFunction[], given: Plan) {
    this.#all = all;
    this.#plan = given;
  }

  answer(from: PciFunction, address: number, isTranslated = false): Answer {
    // Table 6-11: E and R together redirect what the vector names; R alone everything; E alone makes an error of what it names.
    const redirects = (fn: PciFunction, target?: number): boolean => {
      const isOn = (this.#acs(fn) & 0x04) !== 0 && !(isTranslated && (this.#acs(fn) & 0x40) !== 0);
      const isSelective = (this.#acs(fn) & 0x20) !== 0;
      return isOn && (!isSelective || (target !== undefined && this.#isForbidden(fn, target)));
    };
    if (from.description.internalPeerToPeer === true) {
      const mates = this.#all.filter((fn) => fn !== from && fn.requesterId >> 3 === from.requesterId >> 3);
      const hit = mates.find((fn) => this.#claims(fn, address));
      if (hit !== undefined && !redirects(from, hit.requesterId & 7))
        return this.#isForbidden(from, hit.requesterId & 7) ? ABORTED : this.#down(hit, address);
    }
    let id = from.requesterId;
    let goesUp = false;
    let below = from;
    for (;;) {
      const above = this.#all.find((fn) => this.#isBridge(fn) && fn.configRead(0x19, 1) === below.bus);
      if (above === undefined) break;
      const kind = type(above);
      const others = this.#all.filter((fn) => fn.bus === below.bus && fn !== below);
      const hit = others.find((fn) => this.#claims(fn, address));
      if (kind === PCI_BRIDGE && hit !== undefined) return this.#down(hit, address);
      if (kind === UPSTREAM && hit !== undefined) {
        if (redirects(below, hit.requesterId >> 3)) goesUp = true;
        else if (this.#isForbidden(below, hit.requesterId >> 3)) return ABORTED;
        else return this.#down(hit, address);
      }
      if ((above.configRead(0x04, 2) & 4) === 0) return ABORTED;
      const isAcsPort = kind === ROOT_PORT || kind === DOWNSTREAM;
      const control = isAcsPort ? this.#acs(above) : 0;
      const isForeign = id >> 8 < above.configRead(0x19, 1) || id >> 8 > above.configRead(0x1a, 1);
      if ((control & 0x01) !== 0 && isForeign) return ABORTED;
      if ((control & 0x02) !== 0 && isTranslated) return ABORTED;
      if (this.#inWindow(above, address)) {
        if (isAcsPort ? (control & 0x10) === 0 : !goesUp) return NOWHERE;
        goesUp = true;
      }
      if (kind === PCI_BRIDGE) id = above.configRead(0x19, 1) << 8;
      below = above;
    }
    return this.#root(below, id, (target) => goesUp || redirects(below, target), address);
  }

  #root(below: PciFunction, requesterId: number, goesUp: (target?: number) => boolean, address: number): Answer {
    if (this.#plan.abort && address >= 0x9000_0000 && address <= 0x9000_0fff) return NOWHERE;
    const hit = this.#all.find((fn) => fn !== below && fn.bus === 0 && this.#claims(fn, address));
    if (this.#plan.peerToPeer && !goesUp(hit && hit.requesterId >> 3)) {
      if (hit !== undefined) return this.#isForbidden(below, hit.requesterId >> 3) ? ABORTED : this.#down(hit, address);
      if (address >= Number(WINDOW.start) && address <= Number(WINDOW.last)) return NOWHERE;
    }
    if (!this.#plan.inbound) return { to: 'iommu', requesterId, address };
    if (address >= 0x8000_0000 && address <= 0x9fff_ffff) return { to: 'iommu', requesterId, address };
    if (address >= 0xe000_0000 && address <= 0xe0ff_ffff)
      return { to: 'iommu', requesterId, address: address - 0x4000_0000 };
    return NOWHERE;
  }

  #down(fn: PciFunction, address: number): Answer {
    const bar = this.#barAt(fn, address);
    if (bar !== undefined) return { to: 'bar', who: fn.bdf, ...bar };
    const next = this.#all.find((other) => other.bus === fn.configRead(0x19, 1) && this.#claims(other, address));
    return next === undefined ? NOWHERE : this.#down(next, address);
  }

  #claims(fn: PciFunction, address: number): boolean {
    return this.#barAt(fn, address) !== undefined || (this.#isBridge(fn) && this.#inWindow(fn, address));
  }

  #barAt(fn: PciFunction, address: number): { bar: number; offset: number } | undefined {
    if ((fn.configRead(0x04, 2) & 2) === 0) return undefined;
    for (const { index, sizeBytes } of fn.bars) {
      const low = fn.configRead(0x10 + 4 * index, 4) & 0xffff_fff0;
      const base = (low >>> 0) + fn.configRead(0x14 + 4 * index, 4) * 2 ** 32;
      if (address >= base && address < base + sizeBytes) return { bar: index, offset: address - base };
    }
    return undefined;
  }

  #isBridge(fn: PciFunction): boolean {
    return (fn.configRead(0x0e, 1) & 0x7f) === 1;
  }

  #inWindow(fn: PciFunction, address: number): boolean {
    if ((fn.configRead(0x04, 2) & 2) === 0) return false;
    const base = (fn.configRead(0x20, 2) & 0xfff0) * 0x1_0000;
    const limit = (fn.configRead(0x22, 2) & 0xfff0) * 0x1_0000 + 0xf_ffff;
    const prefBase = (fn.configRead(0x24, 2) & 0xfff0) * 0x1_0000 + fn.configRead(0x28, 4) * 2 ** 32;
    const prefLimit = (fn.configRead(0x26, 2) & 0xfff0) * 0x1_0000 + 0xf_ffff + fn.configRead(0x2c, 4) * 2 ** 32;
    return (address >= base && address <= limit) || (address >= prefBase && address <= prefLimit);
  }

  /** Extended capability 0x0d: its offset; 0 without one. */
  #acsAt(fn: PciFunction): number {
    for (let at = 0x100; at !== 0; at = fn.configRead(at, 4) >>> 20) {
      const header = fn.configRead(at, 4);
      if (header === 0) return 0;
      if ((header & 0xffff) === 0x0d) return at;
    }
    return 0;
  }

  #acs(fn: PciFunction): number {
    const at = this.#acsAt(fn);
    return at === 0 ? 0 : fn.configRead(at + 6, 2) & 0x7f;
  }

  #isForbidden(fn: PciFunction, target: number): boolean {
    if ((this.#acs(fn) & 0x20) === 0) return false;
    return ((fn.configRead(this.#acsAt(fn) + 8, 4) >>> (target & 31)) & 1) !== 0;
  }
}

function type(fn: PciFunction): number | undefined {
  for (let at = fn.configRead(0x34, 1); at !== 0; at = fn.configRead(at + 1, 1)) {
    if (fn.configRead(at, 1) === 0x10) return (fn.configRead(at + 2, 2) >> 4) & 0xf;
  }
  return undefined;
}

function answerOf(route: Route): Answer {
  switch (route.kind) {
    case 'upstream':
      return { to: 'iommu', requesterId: route.requesterId, address: route.address };
    case 'peer':
      return { to: 'bar', who: route.target.bdf, bar: route.bar.index, offset: route.offset };
    case 'doorbell':
      throw new Error('there is no doorbell in these machines');
    default:
      return { to: route.kind };
  }
}

// --- what is switched on ---

interface Switches {
  readonly seed: number;
}

/** A small generator of its own: which switches are on follows from a number. */
function* numbers(seed: number): Generator<number, never> {
  let state = seed >>> 0 || 1;
  for (;;) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    yield state >>> 0;
  }
}

function build(given: Plan, { seed }: Switches): { board: Board; all: readonly PciFunction[]; runtime: NodeRuntime } {
  const runtime = new NodeRuntime('h', 1);
  const board = new Board(runtime, hostOf(given));
  const random = numbers(seed);
  const all = [...board.functions.values()];
  for (const fn of all) {
    const acs = fn.findExtendedCapability(0x0d);
    if (acs !== 0) {
      fn.configWrite(acs + 6, 2, random.next().value & 0x7f);
      fn.configWrite(acs + 8, 4, random.next().value);
    }
    const roll = random.next().value % 16;
    if (!fn.isBridge) fn.configWrite(0x04, 2, roll === 0 ? 0x4 : 0x6);
    else if (roll === 1) fn.configWrite(0x04, 2, 0x2);
    else if (roll === 2) fn.configWrite(0x04, 2, 0x4);
    // Software that gave a bridge too few bus numbers: requesters from outside.
    else if (roll < 5) fn.configWrite(0x1a, 1, fn.configRead(0x19, 1));
  }
  return { board, all, runtime };
}

/** Addresses at which something begins or ends, and their neighbours. */
function interesting(all: readonly PciFunction[]): number[] {
  const edges = [
    0, 0x1000_0000, 0x3000_0000, 0x8000_0000, 0x9000_0000, 0x9000_1000, 0xa000_0000, 0xe000_0000, 0xe100_0000,
  ];
  for (const fn of all) {
    for (const bar of fn.bars) edges.push(fn.barAddress(bar), fn.barAddress(bar) + bar.sizeBytes);
    for (const window of fn.windows) edges.push(window.start, window.last + 1);
  }
  return edges.flatMap((edge) => [edge - 1, edge, edge + 1, edge + 0x80]).filter((address) => address >= 0);
}

/** IOVADUCT_SWEEP makes four times as many. */
const SHARE = process.env['IOVADUCT_SWEEP'] === undefined ? 0.25 : 1;
const RUNS = { numRuns: 60 * SHARE, seed: 20_261_121 };

describe('routing equals the rules', () => {
  test('for every function and every address of interest, and as far as a decision says it holds', () => {
    const seen = new Map<string, number>();
    fc.assert(
      fc.property(plan, fc.nat(2 ** 31 - 1), (given, seed) => {
        const { board, all } = build(given, { seed });
        const naive = new Naive(all, given);
        const { fabric } = board.hostBridges[0] ?? { fabric: undefined };
        if (fabric === undefined) throw new Error('no host bridge');
        const addresses = interesting(all);
        for (const from of all.filter((fn) => !fn.isBridge)) {
          for (const address of addresses) {
            const isTranslated = (address & 0x80) !== 0 && seed % 2 === 0;
            const route = fabric.route({ from, address, addressType: isTranslated ? 'translated' : 'untranslated' });
            const expected = naive.answer(from, address, isTranslated);
            expect(answerOf(route), `${from.bdf} at 0x${address.toString(16)}`).toEqual(expected);
            seen.set(expected.to, (seen.get(expected.to) ?? 0) + 1);
            expect(route.last).toBeGreaterThanOrEqual(address);
            for (const later of addresses.filter((other) => other > address && other <= route.last)) {
              const there = naive.answer(from, later, isTranslated);
              const isSame =
                there.to === expected.to && [later - address, undefined].includes(distance(expected, there));
              expect(isSame, `${from.bdf}: 0x${address.toString(16)} holds to 0x${route.last.toString(16)}`).toBe(true);
            }
          }
        }
      }),
      RUNS,
    );
    expect([...seen.keys()].sort()).toEqual(['aborted', 'bar', 'iommu', 'nowhere']);
    for (const count of seen.values()) expect(count).toBeGreaterThan(100);
  });

  test('every byte of a DMA is accounted for once, where the rules say', () => {
    fc.assert(
      fc.property(
        plan,
        fc.nat(2 ** 31 - 1),
        fc.nat(9999),
        fc.integer({ min: 1, max: 12_288 }),
        (given, seed, pick, length) => {
          const { board, all, runtime } = build(given, { seed });
          const naive = new Naive(all, given);
          const cards = all.filter((fn) => !fn.isBridge);
          const from = cards[pick % cards.length];
          const addresses = interesting(all);
          const address = addresses[pick % addresses.length];
          if (from === undefined || address === undefined) return;
          from.configWrite(0x04, 2, 0x6);
          const bytes = Uint8Array.from({ length }, (_, i) => (i * 13 + 5) & 0xff);
          let isDone = false;
          const write = function* () {
            yield* from.dmaWrite(BigInt(address), bytes);
            isDone = true;
          };
          runtime.spawn('dma', write());
          runtime.scheduler.runUntil(1e9);
          expect(isDone).toBe(true);
          const { ends = [] } = board.analyser.records.at(-1) ?? {};
          let done = 0;
          for (const end of ends) {
            expect(end.iova).toBe(BigInt(address + done));
            for (const offset of [0, 1, end.lengthBytes >> 1, end.lengthBytes - 1]) {
              if (offset < 0 || offset >= end.lengthBytes) continue;
              const at = address + done + offset;
              const expected = naive.answer(from, at);
              // What left the root complex may come back down: then the system bus sent it.
              if (end.kind === 'peer' && end.hop === 'system bus') {
                expect(expected).toMatchObject({ to: 'iommu', address: Number(end.address) + offset });
                continue;
              }
              if (end.kind === 'peer') {
                expect(expected).toMatchObject({ to: 'bar' });
                const { who, bar } = expected as Extract<Answer, { to: 'bar' }>;
                expect(end.where).toBe(`${who} BAR ${bar}`);
                continue;
              }
              if (end.kind === 'memory') {
                const pa = Number(end.address) + offset;
                expect(expected).toEqual({ to: 'iommu', requesterId: expect.any(Number) as number, address: pa });
                expect(board.memory.read(pa, 1)?.[0]).toBe(bytes[done + offset]);
                continue;
              }
              const isBeyondFabric = expected.to === 'iommu' && !isRam(expected.address);
              expect(isBeyondFabric ? 'nowhere' : expected.to, `0x${at.toString(16)}`).toBe(end.kind);
            }
            done += end.lengthBytes;
          }
          expect(done).toBe(length);
        },
      ),
      { ...RUNS, numRuns: 400 * SHARE },
    );
  });
});

function isRam(address: number): boolean {
  return BigInt(address) >= RAM.start && BigInt(address) <= RAM.last;
}

/** How far the second answer's place lies behind the first's; -1 for places of different things, undefined for no places. */
function distance(a: Answer, b: Answer): number | undefined {
  if (a.to === 'iommu' && b.to === 'iommu') return a.requesterId === b.requesterId ? b.address - a.address : -1;
  if (a.to === 'bar' && b.to === 'bar') return a.who === b.who && a.bar === b.bar ? b.offset - a.offset : -1;
  return undefined;
}
