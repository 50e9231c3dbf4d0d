/**
 * A finished run → the data of the page.
 *
 * Here everything is worked out that needs the words of the testbed: which ranges lie over each other, which transactions did
 * not end where they should, when a migration was in which phase, and which check, step, range and transaction belong
 * together. The page only draws. Pure, and a function of the outcome alone: the same run gives the same page, byte by byte.
 */
import { basename, dirname } from 'node:path';
import type { ScenarioOutcome } from '../scenario/execute.js';
import { conflictText, endText, wayText, type StepResult } from '../scenario/results.js';
import { hexText } from '../scenario/units.js';
import { deviceStatesOf, migrationsOf, staysOf } from './movements.js';
import type {
  PageCheck,
  PageEvent,
  PageLane,
  PageRun,
  PageScenario,
  PageSpan,
  PageStep,
  PageTransaction,
  PageWay,
} from './page/data.js';
import { rulesOf } from './rules.js';
import { runDigest, type FinishedRun } from './summary.js';
import { headline, totalsLine } from './terminal.js';

type Transaction = ScenarioOutcome['transactions'][number]['records'][number];
type End = Transaction['ends'][number];
type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** The order of verdicts in lists. */
const ORDER = ['fail', 'inconclusive', 'pass'];

function byVerdict(a: { readonly verdict: string }, b: { readonly verdict: string }): number {
  return ORDER.indexOf(a.verdict) - ORDER.indexOf(b.verdict);
}

function span(range: { readonly start: bigint; readonly last: bigint }, label: string, kind: string): PageSpan {
  return { start: hexText(range.start), last: hexText(range.last), label, kind };
}

/** Ranges that are the same but for their owners, once. */
function united(spans: readonly PageSpan[]): PageSpan[] {
  const found = new Map<string, PageSpan>();
  for (const one of spans) {
    const key = `${one.kind} ${one.start} ${one.last}`;
    const known = found.get(key);
    found.set(key, known === undefined ? one : { ...one, label: `${known.label}, ${one.label}` });
  }
  return [...found.values()];
}

interface Range {
  readonly start: bigint;
  readonly last: bigint;
}

/** What of a range lies in none of others. */
function without(range: Range, others: readonly Range[]): Range[] {
  let start = range.start;
  const found: Range[] = [];
  for (const other of others.toSorted((a, b) => (a.start < b.start ? -1 : 1))) {
    if (other.last < start || other.start > range.last) continue;
    if (other.start > start) found.push({ start, last: other.start - 1n });
    start = other.last + 1n;
  }
  return start > range.last ? found : [...found, { start, last: range.last }];
}

/** Guest RAM that a root complex with `dma-ranges` does not let its devices reach. */
function unreachable(host: ScenarioOutcome['hosts'][number], guests: ScenarioOutcome['guests']): PageSpan[] {
  const inbound = host.reservedRegions.filter(({ type }) => type === 'dma-range');
  return [...new Set(inbound.map(({ owner }) => owner))].flatMap((owner) => {
    const own = inbound.filter((region) => region.owner === owner);
    return guests.flatMap(({ name, ram }) =>
      ram.flatMap((block) => without(block, own).map((hole) => span(hole, `${name}, not in ${owner}`, 'outside'))),
    );
  });
}

function lanesOf(outcome: ScenarioOutcome): PageLane[] {
  const guests = outcome.guests.map((guest) => ({
    title: `${guest.name} (${guest.machine})`,
    spans: guest.ram.map((block) => span(block, block.name, 'ram')),
  }));
  const hosts = outcome.hosts.map((host) => {
    const regions = host.reservedRegions.map((region) => {
      const devices = region.devices === undefined ? '' : ` (${region.devices.join(', ')})`;
      return span(region, `${region.owner}${devices}`, region.type);
    });
    const beyond = { start: 1n << BigInt(host.apertureBits), last: (1n << 64n) - 1n };
    const aperture = host.apertureBits < 48 ? [span(beyond, 'beyond the aperture', 'aperture')] : [];
    return {
      title: `host ${host.name}`,
      spans: united([...regions, ...aperture, ...unreachable(host, outcome.guests)]),
    };
  });
  return [...guests, ...hosts].filter((lane) => lane.spans.length > 0);
}

/** Ranges at which something went wrong, each once; `add` returns the index. */
class MarkedRanges {
  readonly all: (PageSpan & { readonly step?: number })[] = [];
  readonly #places = new Map<string, number>();

  add(found: PageSpan, step: number | undefined): number {
    const key = `${found.kind} ${found.start} ${found.last} ${found.label}`;
    const known = this.#places.get(key);
    if (known !== undefined) return known;
    this.#places.set(key, this.all.length);
    return this.all.push(step === undefined ? found : { ...found, step }) - 1;
  }
}

function rangesOfStep(result: StepResult, step: number, marked: MarkedRanges): number[] {
  const conflicts = (result.conflicts ?? []).map((conflict) => span(conflict, conflictText(conflict), 'conflict'));
  const lost = (result.lost ?? []).map((range) => span(range, 'given up', 'lost'));
  return [...conflicts, ...lost].map((found) => marked.add(found, step));
}

/** What is wrong with DMA that did reach memory: the step says so, its analyser knows whose memory that is. */
function wrongMemory(result: StepResult | undefined, end: End): string | undefined {
  if (result?.verdict !== 'silent' || result.ends === undefined || end.kind !== 'memory') return undefined;
  const isOfStep = result.ends.some(({ kind, iova }) => kind === end.kind && iova === end.iova);
  return isOfStep && result.ends.every(({ kind }) => kind === 'memory') ? result.text : undefined;
}

/** The ways of all transactions, the ones that ended elsewhere first. */
class Ways {
  readonly #found = new Map<string, { way: Mutable<PageWay>; number: number }>();
  readonly #steps: ScenarioOutcome['steps'];
  readonly #marked: MarkedRanges;

  constructor(steps: ScenarioOutcome['steps'], marked: MarkedRanges) {
    this.#steps = steps;
    this.#marked = marked;
  }

  /** The key of a piece's way; counts it. */
  add(host: string, transaction: Transaction, end: End): string {
    const { device, direction, timeNs } = transaction;
    const at = this.#steps.findIndex(({ startNs, endNs }) => startNs <= timeNs && timeNs <= endNs);
    const key = [host, device, direction, end.kind, end.where, end.hop, at].join('|');
    const known = this.#found.get(key);
    if (known !== undefined) {
      known.way.count++;
      return key;
    }
    const step = at < 0 ? undefined : at;
    const goal = direction === 'msi' ? 'doorbell' : 'memory';
    const wrong = step === undefined ? undefined : wrongMemory(this.#steps[step]?.result, end);
    const isStray = end.kind !== goal || wrong !== undefined;
    const last = end.iova + BigInt(Math.max(end.lengthBytes, 1)) - 1n;
    const explanation = wrong ?? wayText(device, [end], goal);
    const way: PageWay = {
      ...{ host, device, direction, hop: end.hop, kind: end.kind, where: end.where, iova: hexText(end.iova), goal },
      ...(end.address === undefined ? {} : { address: hexText(end.address) }),
      count: 1,
      ...(step === undefined ? {} : { step }),
      ...(isStray
        ? { explanation, range: this.#marked.add(span({ start: end.iova, last }, explanation, 'stray'), step) }
        : {}),
    };
    this.#found.set(key, { way, number: this.#found.size });
    return key;
  }

  /** Ways in the order they are shown, and where each key went. */
  sorted(): { readonly ways: PageWay[]; readonly placeOf: (key: string) => number } {
    const isRight = (way: PageWay): number => (way.explanation === undefined ? 1 : 0);
    const sorted = [...this.#found].sort(([, a], [, b]) => isRight(a.way) - isRight(b.way) || a.number - b.number);
    const places = new Map(sorted.map(([key], index) => [key, index]));
    return { ways: sorted.map(([, { way }]) => way), placeOf: (key) => places.get(key) ?? 0 };
  }
}

function checksOf(outcome: ScenarioOutcome): PageCheck[] {
  return outcome.checks
    .map(({ name, verdict, detail, at }, index) => {
      const step = outcome.subjects[index];
      return {
        ...{ name, verdict, detail },
        ...(at === undefined ? {} : { line: at.line, column: at.column }),
        ...(step === undefined ? {} : { step }),
      };
    })
    .sort(byVerdict);
}

function stepsOf(outcome: ScenarioOutcome, marked: MarkedRanges): Omit<PageStep, 'ways'>[] {
  return outcome.steps.map(({ kind, at, startNs, endNs, result }, index) => ({
    ...{ kind, line: at.line, startNs, endNs, verdict: result.verdict, text: result.text },
    ...(result.explanation === undefined || result.explanation === '' ? {} : { explanation: result.explanation }),
    conflicts: (result.conflicts ?? []).map(conflictText),
    ranges: rangesOfStep(result, index, marked),
  }));
}

function eventsOf({ timeline }: ScenarioOutcome): PageEvent[] {
  return timeline.events.map(({ timeNs, node, kind, data }) => ({
    ...{ timeNs, node, kind },
    data: Object.fromEntries(
      Object.entries(data).map(([key, value]) => [key, typeof value === 'bigint' ? hexText(value) : value]),
    ),
  }));
}

function scenarioOf(outcome: ScenarioOutcome, id: string): PageScenario {
  const marked = new MarkedRanges();
  const steps = stepsOf(outcome, marked);
  const found = new Ways(outcome.steps, marked);
  const keyed = outcome.transactions.map(({ host, records, leftOut }) => ({
    ...{ host, leftOut },
    records: records.map((record) => ({ record, keys: record.ends.map((end) => found.add(host, record, end)) })),
  }));
  const { ways, placeOf } = found.sorted();
  const stray = (step: number): number[] =>
    ways.flatMap((way, index) => (way.step === step && way.explanation !== undefined ? [index] : []));
  return {
    id,
    ...{ name: outcome.name, family: familyOf(outcome.file), file: outcome.file, source: outcome.text },
    ...{ title: outcome.title, covers: outcome.covers, verdict: outcome.verdict, headline: headline(outcome) },
    ...{ digest: outcome.digest, virtualNs: outcome.virtualNs },
    checks: checksOf(outcome),
    rules: rulesOf(outcome),
    steps: steps.map((step, index) => ({ ...step, ways: stray(index) })),
    lanes: lanesOf(outcome),
    marked: marked.all,
    hosts: outcome.hosts.map((host) => host.name),
    events: eventsOf(outcome),
    leftOut: outcome.timeline.leftOut,
    migrations: migrationsOf(outcome.timeline.events, outcome.virtualNs),
    stays: staysOf(outcome.timeline.events, outcome.virtualNs),
    deviceStates: deviceStatesOf(outcome.timeline.events, outcome.virtualNs),
    ways,
    transactions: keyed
      .filter(({ records }) => records.length > 0)
      .map(({ host, records, leftOut }) => ({
        ...{ host, leftOut },
        records: records.map(({ record, keys }): PageTransaction => ({
          ...{ timeNs: record.timeNs, device: record.device, direction: record.direction },
          ...{ iova: hexText(record.iova), bytes: record.lengthBytes },
          ways: keys.map(placeOf),
          ends: record.ends.map(endText),
        })),
      })),
  };
}

/** The directory a scenario's file lies in. */
function familyOf(file: string): string {
  const family = basename(dirname(file));
  return family === '.' || family === '' ? 'files' : family;
}

/** Hands out identifiers that can stand in an address: the name, with its family or a number where it occurs twice. */
function identifiers(): (outcome: ScenarioOutcome) => string {
  const taken = new Set<string>();
  return ({ name, file }) => {
    const clean = (text: string): string => text.replace(/[^\w.-]+/g, '-');
    const plain = clean(name) || 'scenario';
    const candidates = [plain, `${clean(familyOf(file))}-${plain}`];
    let id = candidates.find((candidate) => !taken.has(candidate)) ?? plain;
    for (let number = 2; taken.has(id); number++) id = `${plain}-${number}`;
    taken.add(id);
    return id;
  };
}

/** The data of the page of a run. */
export function pageRun(run: FinishedRun): PageRun {
  const identify = identifiers();
  const scenarios = run.scenarios.map(({ outcome }) => scenarioOf(outcome, identify(outcome)));
  return {
    ...{ seed: run.seed, placement: run.placement, digest: runDigest(run), totals: totalsLine(run) },
    scenarios: scenarios.sort(byVerdict),
  };
}
