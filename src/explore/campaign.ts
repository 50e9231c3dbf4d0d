/**
 * An exploration from beginning to end: runs side by side, the first failure, what all of it is worth.
 *
 * Sampled runs are dealt out in chunks of consecutive numbers. When a chunk finds a failure, only chunks before it go on: the failure
 * with the lowest number is the one that counts, whatever the threads did. An exhaustive search is one sequence and runs here.
 */
import { Piscina } from 'piscina';
import type { Scenario } from '../scenario/load.js';
import { BoundedSearch, isPruned, type BoundReport } from './exhaustive.js';
import { goesOn } from './between-runs.js';
import { Collector, measureChoices, sample, type Sampled } from './explore.js';
import { record, type Deviations } from './record.js';
import { guarantee, scheduleOf, type Sampling, type StrategyName } from './strategies.js';
import { subjectOf, type Attempt, type AttemptFailure, type Subject } from './subject.js';

/** What to explore, and how. */
export interface Campaign {
  readonly scenario: Scenario;
  readonly strategy: StrategyName;
  /** Runs at most, those included that an exhaustive search gives up. */
  readonly runs: number;
  /** d of PCT; the most pre-emptions of an exhaustive search, beyond which it is not bounded. */
  readonly depth: number;
  readonly seed: number;
  /** Threads. */
  readonly jobs: number;
  readonly onProgress?: (runs: number) => void;
  /** Is told of the runs that are made beforehand, to see how long they are. */
  readonly onMeasured?: (runs: number) => void;
  /** Ends the exploration with what it has. */
  readonly signal?: AbortSignal;
}

/** A run that failed, and the schedule that made it. */
export interface CampaignFailure extends AttemptFailure {
  /** Number of the run, from 0. */
  readonly run: number;
  readonly deviations: Deviations;
}

/** What an exploration came to. */
export interface Exploration {
  readonly runs: number;
  readonly distinctSchedules: number;
  readonly distinctStates: number;
  /** n: most tasks that a node had in a run, from first to last. */
  readonly tasks: number;
  /** Most choices in a run. */
  readonly choices: number;
  /** k: among how many of the first choices PCT's change points are drawn. */
  readonly changePoints: number;
  /** What the PCT runs are worth, for bugs within the first k choices. */
  readonly guarantees: readonly { readonly depth: number; readonly runs: number; readonly chance: number }[];
  /** How far an exhaustive search got, by bound. */
  readonly bounds: readonly BoundReport[];
  readonly invariants: Sampled['invariants'];
  /** Sets of memory that devices reach at the end, where only plugging went on: more than one breaks INV-10, a fact of the design. */
  readonly reaches: number;
  readonly inconclusive: number;
  /** Runs that were made twice, to see that they are the same. */
  readonly selfTests: number;
  readonly failure: CampaignFailure | undefined;
  /** It was told to end before it had. */
  readonly isInterrupted: boolean;
}

/** A piece of a campaign for a thread. Plain data. */
export interface ExploreJob {
  readonly file: string;
  readonly text: string;
  readonly seed: number;
  readonly sampling: Sampling;
  readonly first: number;
  readonly end: number;
}

/** Runs in a chunk. */
const CHUNK = { kernelOnly: 256, whole: 8 };
/** Runs that are made here before it is worth while to start threads. */
const ALONE = { kernelOnly: 1024, whole: 0 };
/** Pre-emptions of the bounded searches that come before the unbounded one. */
const BOUNDS = [0, 1, 2, 3];

/** Makes a campaign. */
export async function explore(campaign: Campaign): Promise<Exploration> {
  const subject = subjectOf(campaign.scenario, campaign.seed);
  return campaign.strategy === 'exhaustive' ? await exhaust(campaign, subject) : await sampleAll(campaign, subject);
}

async function failureOf(
  subject: Subject,
  seed: number,
  run: number,
  attempt: Attempt,
  schedule: Parameters<typeof record>[2],
): Promise<CampaignFailure | undefined> {
  if (attempt.failure === undefined) return undefined;
  // A failure of the self-test is of no single schedule.
  const deviations = attempt.failure.id === 'INV-20' ? {} : (await record(subject, seed, schedule)).deviations;
  return { ...attempt.failure, run, deviations };
}

// --- sampling ---

async function sampleAll(campaign: Campaign, subject: Subject): Promise<Exploration> {
  const { seed, depth, strategy, scenario } = campaign;
  if (strategy === 'exhaustive') throw new RangeError('an exhaustive search is not sampled');
  // Only PCT has to know before how long a run is.
  const isMeasured = strategy === 'pct' || strategy === 'portfolio';
  const measured = async (runs: number): Promise<boolean> => {
    campaign.onMeasured?.(runs);
    return await goesOn(campaign.signal);
  };
  const choices = isMeasured ? await measureChoices(subject, seed, measured) : 1;
  const sampling: Sampling = { strategy, seed, depth, choices };
  const kind = subject.isKernelOnly ? 'kernelOnly' : 'whole';
  const wanted = strategy === 'in-order' ? 1 : campaign.runs;
  const hasThreads = campaign.jobs > 1 && wanted > Math.max(CHUNK[kind], ALONE[kind]) && scenario.text !== '';
  const here = await sample(subject, sampling, {
    first: 0,
    end: campaign.signal?.aborted === true ? 0 : hasThreads ? ALONE[kind] : wanted,
    onProgress: (done) => report(campaign, done),
  });
  const isOver = !hasThreads || here.failure !== undefined || campaign.signal?.aborted === true;
  const total = merge(isOver ? [here] : [here, ...(await sampleInPool(campaign, sampling, CHUNK[kind], ALONE[kind]))]);
  const { failure } = total;
  return {
    runs: total.runs,
    distinctSchedules: total.schedules.size,
    distinctStates: total.states.size,
    tasks: total.tasks,
    choices: total.choices,
    changePoints: isMeasured ? choices : total.choices,
    guarantees: Object.entries(total.pctRuns).map(([d, runs]) => ({
      depth: Number(d),
      runs,
      // Time has a priority like a task.
      chance: guarantee(total.tasks + 1, sampling.choices, Number(d), runs),
    })),
    bounds: [],
    invariants: total.invariants,
    reaches: total.reaches.size,
    inconclusive: total.inconclusive,
    selfTests: total.selfTests,
    isInterrupted: campaign.signal?.aborted === true,
    failure:
      failure &&
      (await failureOf(subject, seed, failure.run, failure.attempt, () => scheduleOf(sampling, failure.run))),
  };
}

async function report({ onProgress, signal }: Campaign, runs: number): Promise<boolean> {
  onProgress?.(runs);
  return await goesOn(signal);
}

/** Chunks of the runs from `start` on, up to the one with the first failure, in order. */
async function sampleInPool(campaign: Campaign, sampling: Sampling, chunk: number, start: number): Promise<Sampled[]> {
  const { scenario, seed, signal, runs: wanted } = campaign;
  const pool = new Piscina<ExploreJob, Sampled>({
    filename: new URL('../../workers/explore.js', import.meta.url).href,
    maxThreads: campaign.jobs,
    // Runs leave nothing behind: a larger nursery copies less.
    resourceLimits: { maxYoungGenerationSizeMb: 64 },
  });
  const end = (): void => void pool.destroy();
  signal?.addEventListener('abort', end);
  const parts = new Map<number, Sampled>();
  let next = 0;
  let done = start;
  let failing = Infinity;
  const work = async (): Promise<void> => {
    while (start + next * chunk < wanted && next < failing && signal?.aborted !== true) {
      const index = next++;
      const first = start + index * chunk;
      const last = Math.min(wanted, first + chunk);
      const part = await pool.run({ file: scenario.file, text: scenario.text, seed, sampling, first, end: last });
      parts.set(index, part);
      done += part.runs;
      if (part.failure !== undefined) failing = Math.min(failing, index);
      campaign.onProgress?.(done);
    }
  };
  try {
    await Promise.all(Array.from({ length: campaign.jobs }, work));
  } catch (error) {
    // A chunk that was under way counts for nothing.
    if (signal?.aborted !== true) throw error;
  } finally {
    signal?.removeEventListener('abort', end);
    await pool.destroy();
  }
  const counted = [...parts].filter(([index]) => index <= failing).sort(([a], [b]) => a - b);
  return counted.map(([, part]) => part);
}

function merge(parts: readonly Sampled[]): Sampled {
  const collector = new Collector();
  for (const part of parts) collector.merge(part);
  return collector.result(parts.find(({ failure }) => failure !== undefined)?.failure);
}

// --- exhaustive ---

async function exhaust(campaign: Campaign, subject: Subject): Promise<Exploration> {
  const collector = new Collector();
  const bounds: BoundReport[] = [];
  let failure: CampaignFailure | undefined;
  let isInterrupted = false;
  let started = 0;
  for (const bound of [...BOUNDS.filter((preemptions) => preemptions <= campaign.depth), Infinity]) {
    const search = new BoundedSearch(bound);
    while (!search.isDone && failure === undefined && started < campaign.runs && !isInterrupted) {
      started++;
      const schedule = search.next();
      const attempt = await subject.attempt({ scheduleOf: schedule });
      const wasPruned = isPruned(attempt.failure?.message ?? '');
      search.ended(wasPruned);
      const isTold = started % 64 === 0 || !subject.isKernelOnly;
      if (isTold && !(await report(campaign, started))) isInterrupted = true;
      if (wasPruned) continue;
      collector.add(attempt, undefined);
      if (attempt.failure !== undefined) {
        const { choices } = attempt;
        failure = await failureOf(subject, campaign.seed, collector.runs - 1, attempt, (node) => ({
          strategy: 'recorded',
          of: 'explored',
          choices: choices[node] ?? [],
        }));
      }
    }
    const reached = search.report();
    bounds.push(reached);
    if (failure !== undefined || isInterrupted || !reached.isComplete || !reached.isBounded) break;
  }
  const total = collector.result(undefined);
  return {
    runs: total.runs,
    distinctSchedules: total.schedules.size,
    distinctStates: total.states.size,
    tasks: total.tasks,
    choices: total.choices,
    changePoints: total.choices,
    guarantees: [],
    bounds,
    invariants: total.invariants,
    reaches: total.reaches.size,
    inconclusive: total.inconclusive,
    selfTests: 0,
    failure,
    isInterrupted,
  };
}
