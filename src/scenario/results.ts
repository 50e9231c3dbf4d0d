/**
 * What a step came to, and whether that is what the scenario expected.
 *
 * Every step but `expect` leaves one {@link StepResult}. An `expect` compares it, field by field, and becomes a check. A
 * result with a verdict other than `ok` that no `expect` spoke of is a failed check of its own: nothing unexpected passes
 * in silence. Pure: what needs the running hosts (memory, usable ranges) is put into {@link Facts} by the runner.
 */
import type { TransactionEnd } from '../host/protocol.js';
import type { Expectation, PlainStep } from './schema.js';
import type { Position } from './text.js';
import { durationText, hexText } from './units.js';

/** domain.md 0.4: an errno; the VMM aborted; a DMA or interrupt ended where nobody wanted it. */
export type StepVerdict = 'ok' | 'refused' | 'killed' | 'silent';

/** Name of the check that a run did not come to its end: stuck, out of time, a host that died. */
export const RUN_ENDS = 'the run ends by itself';

/** A range of the host that lies over guest memory. */
export interface ConflictFact {
  readonly start: bigint;
  readonly last: bigint;
  readonly type: string;
  readonly kind: string;
  readonly owner: string;
  /** The part of guest RAM that is concerned, by the name of its block. */
  readonly block: string;
}

/** A range given up. */
interface LostFact {
  readonly start: bigint;
  readonly last: bigint;
}

/** What a step came to. Plain data. */
export interface StepResult {
  readonly verdict: StepVerdict;
  /** For people, without the step's name: `guest vm a → b in 3.6 s, 71 ms down`. */
  readonly text: string;
  /** Symbolic, e.g. `EADDRINUSE`. */
  readonly errno?: string;
  readonly call?: string;
  readonly reason?: string;
  readonly conflicts?: readonly ConflictFact[];
  readonly lost?: readonly LostFact[];
  readonly ends?: readonly TransactionEnd[];
  /** Why a transaction did not end in memory: one sentence that names the hop. */
  readonly explanation?: string;
  readonly downtimeNs?: number;
}

/** What can be known about a guest or process at the moment of an `expect`. */
export interface Facts {
  readonly runsOn?: string;
  readonly state?: string;
  /** Pages that differed when the guest last moved; absent when it never did. */
  readonly differingPages?: number;
  /** IOMMU_IOAS_IOVA_RANGES by IOAS asked for. */
  readonly usable?: readonly LostFact[];
  /** Whether the machine's device asked for lies in a reserved region. */
  readonly clashes?: boolean;
  /** Lines of the reserved_regions file asked for. */
  readonly reserved?: readonly LostFact[];
}

export type CheckVerdict = 'pass' | 'fail' | 'inconclusive';

/** A line of the verdict on a scenario. */
export interface Check {
  readonly name: string;
  readonly verdict: CheckVerdict;
  readonly detail: string;
  /** Where in the file the step stands that this is about. */
  readonly at?: Position;
}

/** The check that a scenario passes which says under `fails` how it must fail. */
export const EXPECTED_FAILURE = 'fails as it should';

/** `0xc6010000-0xc601ffff`. */
export function rangeText(range: { readonly start: bigint; readonly last: bigint }): string {
  return `${hexText(range.start)}-${hexText(range.last)}`;
}

/** What a kind of region is called in a sentence. */
const KIND_WORDS: Readonly<Record<string, string>> = {
  'hardware-msi': 'hardware MSI',
  'software-msi': 'software MSI window',
  reserved: 'reserved region',
  direct: 'direct region',
  'direct-relaxable': 'relaxable direct region',
  aperture: 'beyond the aperture',
};

/** `0xc6010000-0xc601ffff  hardware MSI of its@c6000000  lies in  mach-virt.ram`. */
export function conflictText(conflict: ConflictFact): string {
  const owner = conflict.owner === '' ? '' : ` of ${conflict.owner}`;
  return `${rangeText(conflict)}  ${KIND_WORDS[conflict.kind] ?? conflict.kind}${owner}  lies in  ${conflict.block}`;
}

/** `vm RAM: memory 0x50001000-0x50001fff`: where a DMA ended. */
export function endText(end: TransactionEnd): string {
  const address = end.address === undefined ? '' : ` ${hexText(end.address)}`;
  return `${end.kind}${address} (${end.where})`;
}

/** Pieces that ended alike, said once. */
export function endsText(ends: readonly TransactionEnd[]): string {
  const kinds = new Map<string, TransactionEnd>();
  for (const end of ends) if (!kinds.has(`${end.kind} ${end.where}`)) kinds.set(`${end.kind} ${end.where}`, end);
  return [...kinds.values()].map(endText).join(', ');
}

/** One sentence about the first piece of a transaction that did not end where it should: in memory, or a message in a doorbell. */
export function wayText(
  device: string,
  ends: readonly TransactionEnd[],
  goal: 'memory' | 'doorbell' = 'memory',
): string {
  const end = ends.find((candidate) => candidate.kind !== goal);
  if (end === undefined)
    return ends.length === 0 || goal === 'memory'
      ? ''
      : `the messages of ${device} reached ${ends[0]?.where ?? 'a doorbell'}, and no interrupt came of them`;
  const what = `at ${hexText(end.iova)} the transaction of ${device}`;
  switch (end.kind) {
    case 'peer':
      return `${what} was turned away from memory at ${end.hop}, which sent it to ${end.where}`;
    case 'memory':
      return `${what} ended in memory (${end.where})`;
    case 'doorbell':
      return `${what} was caught at ${end.hop}, where the doorbell of ${end.where} swallowed it`;
    case 'nowhere':
      return `${what} was lost at ${end.hop}: ${end.where}`;
    default:
      return `${what} was stopped at ${end.hop}: ${end.where}`;
  }
}

function isWithin(inner: LostFact, outer: LostFact): boolean {
  return outer.start <= inner.start && inner.last <= outer.last;
}

function overlap(a: LostFact, b: LostFact): boolean {
  return a.start <= b.last && b.start <= a.last;
}

/** One comparison of an expectation: what was wanted, and what is wrong, if anything. */
interface Comparison {
  readonly wanted: string;
  readonly mismatch?: string;
}

function compare<T>(label: string, wanted: T | undefined, actual: T | undefined): Comparison[] {
  if (wanted === undefined) return [];
  const text = `${label} ${String(wanted)}`;
  if (wanted === actual) return [{ wanted: text }];
  return [{ wanted: text, mismatch: `expected ${text}, got ${actual === undefined ? 'none' : String(actual)}` }];
}

function compareConflict(wanted: Expectation['conflict'], result: StepResult): Comparison[] {
  if (wanted === undefined) return [];
  const parts = [
    wanted.start === undefined ? '' : hexText(wanted.start),
    wanted.last === undefined ? '' : `-${hexText(wanted.last)}`,
    wanted.kind === undefined ? '' : ` ${wanted.kind}`,
    wanted.owner === undefined ? '' : ` of ${wanted.owner}`,
  ];
  const text = `conflict ${parts.join('').trim()}`;
  const conflicts = result.conflicts ?? [];
  const isThere = conflicts.some(
    (conflict) =>
      (wanted.start === undefined || wanted.start === conflict.start) &&
      (wanted.last === undefined || wanted.last === conflict.last) &&
      (wanted.kind === undefined || wanted.kind === conflict.kind) &&
      (wanted.owner === undefined || wanted.owner === conflict.owner),
  );
  if (isThere) return [{ wanted: text }];
  const got = conflicts.length === 0 ? 'none' : conflicts.map(conflictText).join('; ');
  return [{ wanted: text, mismatch: `expected ${text}, got ${got}` }];
}

function compareLanded(wanted: Expectation['landed'], result: StepResult): Comparison[] {
  if (wanted === undefined) return [];
  const { where, hop } = wanted;
  const by = hop === undefined ? '' : ` by ${hop}`;
  const text = `landed in ${wanted.kind}${where === undefined ? '' : ` (${where})`}${by}`;
  const ends = result.ends ?? [];
  const isRight = (end: TransactionEnd): boolean =>
    end.kind === wanted.kind &&
    (where === undefined || end.where.includes(where)) &&
    (hop === undefined || end.hop.includes(hop));
  if (ends.length > 0 && ends.every(isRight)) return [{ wanted: text }];
  const got = ends.length === 0 ? 'no transaction' : endsText(ends);
  return [{ wanted: text, mismatch: `expected that it ${text}, got ${got}` }];
}

function compareLost(wanted: Expectation['lost'], result: StepResult): Comparison[] {
  if (wanted === undefined) return [];
  const text = wanted.length === 0 ? 'nothing lost' : `lost ${wanted.map(rangeText).join(', ')}`;
  const got = (result.lost ?? []).map(rangeText).join(', ');
  if (wanted.map(rangeText).join(', ') === got) return [{ wanted: text }];
  return [{ wanted: text, mismatch: `expected ${text}, got ${got === '' ? 'nothing lost' : got}` }];
}

function compareDowntime(limitNs: number | undefined, result: StepResult): Comparison[] {
  if (limitNs === undefined) return [];
  const text = `downtime below ${durationText(limitNs)}`;
  const actual = result.downtimeNs;
  if (actual !== undefined && actual < limitNs) return [{ wanted: text }];
  return [{ wanted: text, mismatch: `expected ${text}, got ${actual === undefined ? 'none' : durationText(actual)}` }];
}

function compareUsable(expectation: Expectation, facts: Facts): Comparison[] {
  const usable = facts.usable ?? [];
  const found: Comparison[] = [];
  const got = usable.map(rangeText).join(', ');
  if (expectation.usable !== undefined) {
    const { range } = expectation.usable;
    const wanted = `usable ${rangeText(range)}`;
    const isRight = usable.some((candidate) => isWithin(range, candidate));
    found.push(isRight ? { wanted } : { wanted, mismatch: `expected ${wanted}, usable is ${got}` });
  }
  if (expectation.unusable !== undefined) {
    const { range } = expectation.unusable;
    const wanted = `unusable ${rangeText(range)}`;
    const isRight = !usable.some((candidate) => overlap(range, candidate));
    found.push(isRight ? { wanted } : { wanted, mismatch: `expected ${wanted}, usable is ${got}` });
  }
  return found;
}

function compareReserved(expectation: Expectation, facts: Facts): Comparison[] {
  const reserved = facts.reserved ?? [];
  const got = reserved.length === 0 ? 'nothing' : reserved.map(rangeText).join(', ');
  const found: Comparison[] = [];
  const isThere = expectation.reserved;
  if (isThere !== undefined) {
    const wanted = `${isThere.device} reserves ${rangeText(isThere.range)}`;
    const isRight = reserved.some((region) => rangeText(region) === rangeText(isThere.range));
    found.push(isRight ? { wanted } : { wanted, mismatch: `expected that ${wanted}, it reserves ${got}` });
  }
  const isNotThere = expectation['not-reserved'];
  if (isNotThere !== undefined) {
    const wanted = `${isNotThere.device} leaves ${rangeText(isNotThere.range)} alone`;
    const isRight = !reserved.some((region) => overlap(region, isNotThere.range));
    found.push(isRight ? { wanted } : { wanted, mismatch: `expected that ${wanted}, it reserves ${got}` });
  }
  return found;
}

function compareMachine(wanted: Expectation['machine-device'], facts: Facts): Comparison[] {
  if (wanted === undefined) return [];
  const text = (clashes: boolean): string =>
    `the machine's ${wanted.name} lies ${clashes ? 'in' : 'outside'} what ${wanted.device} reserves`;
  if (facts.clashes === wanted.clashes) return [{ wanted: text(wanted.clashes) }];
  const got = facts.clashes === undefined ? `the machine has no ${wanted.name}` : text(facts.clashes);
  return [{ wanted: text(wanted.clashes), mismatch: `expected that ${text(wanted.clashes)}, but ${got}` }];
}

function compareMemory(expectation: Expectation, facts: Facts): Comparison[] {
  if (expectation.memory === undefined) return [];
  const differing = facts.differingPages ?? 0;
  if (facts.state === 'killed')
    return [{ wanted: 'memory intact', mismatch: 'expected memory intact, the guest is gone' }];
  if (differing === 0) return [{ wanted: 'memory intact' }];
  return [{ wanted: 'memory intact', mismatch: `expected memory intact, ${differing} pages differ` }];
}

/** Turns an expectation into a check. `result` belongs to a step's name, `facts` to a guest's or process's. */
export function checkExpectation(
  expectation: Expectation,
  result: StepResult | undefined,
  facts: Facts,
  at: Position,
): Check {
  const empty: StepResult = { verdict: 'ok', text: '' };
  const actual = result ?? empty;
  const comparisons = [
    ...compare('verdict', expectation.verdict, result?.verdict),
    ...compare('errno', expectation.errno, actual.errno),
    ...compare('reason', expectation.reason, actual.reason),
    ...compareConflict(expectation.conflict, actual),
    ...compareLanded(expectation.landed, actual),
    ...compareLost(expectation.lost, actual),
    ...compareDowntime(expectation['downtime-below'], actual),
    ...compare('runs-on', expectation['runs-on'], facts.runsOn),
    ...compare('state', expectation.state, facts.state),
    ...compareMemory(expectation, facts),
    ...compareUsable(expectation, facts),
    ...compareReserved(expectation, facts),
    ...compareMachine(expectation['machine-device'], facts),
  ];
  const name = `${expectation.of}: ${comparisons.map((c) => c.wanted).join(', ')}`;
  const mismatches = comparisons.flatMap((c) => c.mismatch ?? []);
  const said = actual.text === '' ? '' : ` (${actual.text})`;
  if (mismatches.length > 0) return { name, verdict: 'fail', detail: `${mismatches.join('; ')}${said}`, at };
  return { name, verdict: 'pass', detail: actual.text, at };
}

/** The check that a step makes fail whose verdict nobody expected. */
export function unexpectedCheck(step: PlainStep, result: StepResult, at: Position): Check {
  const kind = Object.keys(step)[0] ?? 'step';
  const errno = result.errno === undefined ? '' : `: ${result.errno}`;
  return {
    name: `${kind} ok`,
    verdict: 'fail',
    detail: `expected ok, got ${result.verdict}${errno} (${result.text})`,
    at,
  };
}
