/**
 * Exploration by sampling: run after run under a strategy until one fails or the budget is spent.
 *
 * Runs are numbered; each is a pure function of (scenario, seed, strategy, number). The failure that is reported is the one with the
 * lowest number, whoever made which run, so it is the same however many threads there are. Every {@link SELF_TEST_EVERY}-th run is made
 * twice and its two histories are compared: a difference is a flaw of the testbed (INV-20), reported with the first event in which
 * they differ.
 */
import { InvariantLedger, type InvariantReport } from '../runtime/invariants.js';
import { firstDifference } from '../scenario/recording.js';
import { hashOf, type Attempt, type Subject } from './subject.js';
import { depthOf, scheduleOf, WARM_UP_RUNS, type Sampling } from './strategies.js';

/** One run in so many is made twice. */
export const SELF_TEST_EVERY = 256;

/** A run that failed. */
export interface FoundFailure {
  /** Number of the run. */
  readonly run: number;
  readonly attempt: Attempt;
}

/** What runs came to. Plain data. */
export interface Sampled {
  /** Runs made, from the first. */
  readonly runs: number;
  /** By depth: PCT runs of that depth. */
  readonly pctRuns: Readonly<Record<number, number>>;
  /** Most tasks and choices a run had. */
  readonly tasks: number;
  readonly choices: number;
  /** One number for each schedule and each final state that was seen. */
  readonly schedules: ReadonlySet<number>;
  readonly states: ReadonlySet<number>;
  /** What devices could reach at the end, where only plugging went on: more than one says that the order matters (INV-10). */
  readonly reaches: ReadonlySet<number>;
  readonly invariants: readonly InvariantReport[];
  readonly inconclusive: number;
  readonly selfTests: number;
  readonly failure: FoundFailure | undefined;
}

/** A number for a schedule: 53 bits of two hashes. */
function scheduleHash(choices: Attempt['choices']): number {
  let high = 0x811c9dc5;
  let low = 0x9e3779b9;
  for (const node of Object.keys(choices)) {
    high = Math.imul(high ^ hashOf(node), 0x01000193);
    for (const choice of choices[node] ?? []) {
      high = Math.imul(high ^ choice, 0x01000193);
      low = Math.imul(low + choice + 1, 0x85ebca6b) ^ (low >>> 13);
    }
  }
  return (high >>> 0) * 2 ** 21 + ((low >>> 0) & 0x1fffff);
}

function lengthOf(choices: Attempt['choices']): number {
  return Math.max(0, ...Object.values(choices).map((list) => list.length));
}

/** Collects what runs came to. */
export class Collector {
  readonly schedules = new Set<number>();
  readonly states = new Set<number>();
  readonly reaches = new Set<number>();
  readonly pctRuns: Record<number, number> = {};
  readonly #ledger = new InvariantLedger();
  #runs = 0;
  #tasks = 0;
  #choices = 0;
  #inconclusive = 0;
  selfTests = 0;

  /** A run was made twice and was the same. */
  selfTested(): void {
    this.selfTests++;
    this.#ledger.held('INV-20');
  }

  /** Runs so far. */
  get runs(): number {
    return this.#runs;
  }

  /** What another thread collected. */
  merge(part: Sampled): void {
    this.#runs += part.runs;
    this.#tasks = Math.max(this.#tasks, part.tasks);
    this.#choices = Math.max(this.#choices, part.choices);
    this.#inconclusive += part.inconclusive;
    this.selfTests += part.selfTests;
    for (const schedule of part.schedules) this.schedules.add(schedule);
    for (const state of part.states) this.states.add(state);
    for (const reach of part.reaches) this.reaches.add(reach);
    for (const [depth, runs] of Object.entries(part.pctRuns))
      this.pctRuns[Number(depth)] = (this.pctRuns[Number(depth)] ?? 0) + runs;
    for (const report of part.invariants) this.#ledger.add(report);
  }

  /** A run, and the depth it had under PCT. */
  add(attempt: Attempt, depth: number | undefined): void {
    this.#runs++;
    this.#tasks = Math.max(this.#tasks, attempt.tasks);
    this.#choices = Math.max(this.#choices, lengthOf(attempt.choices));
    this.schedules.add(scheduleHash(attempt.choices));
    this.states.add(attempt.stateHash);
    if (attempt.reachHash !== undefined) {
      this.reaches.add(attempt.reachHash);
      this.#ledger.held('INV-10');
    }
    if (attempt.verdict === 'inconclusive') this.#inconclusive++;
    if (depth !== undefined) this.pctRuns[depth] = (this.pctRuns[depth] ?? 0) + 1;
    for (const report of attempt.invariants) this.#ledger.add(report);
  }

  result(failure: FoundFailure | undefined): Sampled {
    return {
      runs: this.#runs,
      pctRuns: this.pctRuns,
      tasks: this.#tasks,
      choices: this.#choices,
      schedules: this.schedules,
      states: this.states,
      reaches: this.reaches,
      invariants: this.#ledger.report(),
      inconclusive: this.#inconclusive,
      selfTests: this.selfTests,
      failure,
    };
  }
}

/** k for PCT: the longest of the first runs, which are random. `onProgress` is told how many were made; false ends measuring. */
export async function measureChoices(
  subject: Subject,
  seed: number,
  onProgress?: (runs: number) => Promise<boolean>,
): Promise<number> {
  let longest = 1;
  for (let index = 0; index < WARM_UP_RUNS; index++) {
    const schedule = scheduleOf({ strategy: 'random', seed, depth: 1, choices: 1 }, index);
    const { choices } = await subject.attempt({ scheduleOf: () => schedule });
    longest = Math.max(longest, lengthOf(choices));
    if ((await onProgress?.(index + 1)) === false) break;
  }
  return longest;
}

/** The same run twice, with histories. */
async function selfTest(subject: Subject, sampling: Sampling, index: number): Promise<Attempt | undefined> {
  const run = (): Attempt | Promise<Attempt> =>
    subject.attempt({ scheduleOf: () => scheduleOf(sampling, index), isTraced: true });
  const [first, second] = [await run(), await run()];
  const difference = firstDifference(first.lines, second.lines);
  if (difference === undefined && first.stateHash === second.stateHash) return undefined;
  const where =
    difference === undefined
      ? 'the same events, another state at the end'
      : `event ${difference.index}: ${difference.recorded ?? '(ended)'} | ${difference.now ?? '(ended)'}`;
  const message = `INV-20: the same schedule gave two histories: ${where}`;
  return { ...second, verdict: 'fail', failure: { signature: 'INV-20', id: 'INV-20', message, task: '-' } };
}

/** Which runs to make. */
export interface SampleRange {
  readonly first: number;
  readonly end: number;
  /** Told now and then how many runs are done; false ends sampling there. */
  readonly onProgress?: (done: number) => Promise<boolean>;
}

/** Runs first..end-1 in order, up to the first that fails. */
export async function sample(subject: Subject, sampling: Sampling, range: SampleRange): Promise<Sampled> {
  const collector = new Collector();
  for (let index = range.first; index < range.end; index++) {
    const schedule = scheduleOf(sampling, index);
    const ran = subject.attempt({ scheduleOf: () => schedule });
    const attempt = ran instanceof Promise ? await ran : ran;
    collector.add(attempt, depthOf(sampling, index));
    if (attempt.failure !== undefined) return collector.result({ run: index, attempt });
    if (index % SELF_TEST_EVERY === 0) {
      const flaw = await selfTest(subject, sampling, index);
      collector.selfTested();
      if (flaw !== undefined) return collector.result({ run: index, attempt: flaw });
    }
    const isTold = index % 64 === 63 || !subject.isKernelOnly;
    if (isTold && (await range.onProgress?.(index + 1 - range.first)) === false) break;
  }
  return collector.result(undefined);
}
