/** One scenario explored, and what fails made small: what `explore` does for each of its files. */
import { existsSync, mkdirSync, realpathSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { explore, type Exploration } from '../explore/campaign.js';
import { shrink, withSchedule, type ShrinkBudget, type Shrunk } from '../explore/shrink.js';
import type { StrategyName } from '../explore/strategies.js';
import type { Scenario } from '../scenario/load.js';
import { relocated } from '../scenario/relocate.js';
import { many } from '../scenario/units.js';
import { UsageError } from './exit-codes.js';
import { distinctNames } from './files.js';

/** Options of `explore` as they were given. */
export interface ExploreOptions {
  readonly strategy: StrategyName;
  readonly runs: number;
  readonly depth: number;
  readonly seed: number;
  readonly jobs: number;
  readonly history?: boolean;
  /** Seeds for each row of a table. */
  readonly table?: number;
  readonly failNth?: boolean;
  readonly shrink: boolean;
  readonly corpus?: string | undefined;
  readonly report?: string;
  readonly json?: string;
}

/** A scenario that was explored. */
export interface Explored {
  readonly scenario: Scenario;
  readonly exploration: Exploration;
  readonly seconds: number;
  readonly shrunk: Shrunk | undefined;
  /** It failed, and did not again when it was to be shrunk: {@link LOST}. */
  readonly isLost: boolean;
  /** Where the case was written, shrunk if that was wanted. */
  readonly corpusFile: string | undefined;
}

/** Why a failure was not shrunk. */
export const LOST = 'under the recorded schedule it does not fail again';

/** Runs that shrinking may take. */
const KERNEL_ONLY_BUDGET: ShrinkBudget = { attempts: 20_000, schedules: 60 };

/** Of whole hosts the more, the fewer choices a run has: that is how long it takes, whatever the machine. */
function wholeBudget({ choices }: Exploration): ShrinkBudget {
  return { attempts: Math.min(2000, Math.max(150, Math.floor(400_000 / choices))), schedules: 2 };
}

/** What files of a scenario are called where files of all of them are written. */
export function fileNames(scenarios: readonly Scenario[]): string[] {
  return distinctNames(scenarios.map(({ name }) => name.replaceAll(/[^\w.-]+/g, '-')));
}

/** @throws UsageError where a case would be written over a scenario that is explored */
export function checkCorpus(scenarios: readonly Scenario[], { corpus }: ExploreOptions): void {
  if (corpus === undefined) return;
  const files = new Set(scenarios.map(({ file }) => realpathSync(file)));
  for (const name of fileNames(scenarios)) {
    const path = join(corpus, `${name}.yaml`);
    if (existsSync(path) && files.has(realpathSync(path)))
      throw new UsageError(`--corpus: a case would be written over the scenario ${path}`);
  }
}

/**
 * Explores a scenario; what is written of it is called `fileName`, and `show` is told how far that is. `signal` ends it with what
 * there is by then.
 */
export async function exploreOne(
  scenario: Scenario,
  fileName: string,
  options: ExploreOptions,
  show: (progress: string) => void,
  signal: AbortSignal,
): Promise<Explored> {
  const { strategy, runs, depth, seed, jobs } = options;
  const start = performance.now();
  const exploration = await explore({
    scenario,
    strategy,
    runs,
    depth,
    seed,
    jobs,
    signal,
    onMeasured: (done) => show(`${scenario.name}: measuring, ${many(done, 'run')}`),
    onProgress: (done) => show(`${scenario.name}: ${done} of ${runs} schedules`),
  });
  const seconds = (performance.now() - start) / 1000;
  const { file, text } = scenario;
  // A failure of the self-test is of no single schedule.
  const isOfSchedule = exploration.failure?.id !== 'INV-20' && exploration.failure?.isUnbuildable !== true;
  const found = isOfSchedule && !signal.aborted ? exploration.failure : undefined;
  const shrunk =
    found !== undefined && options.shrink
      ? await shrink(
          { file, text, seed, signature: found.signature, deviations: found.deviations },
          scenario.kernelOnly === undefined ? wholeBudget(exploration) : KERNEL_ONLY_BUDGET,
          { signal, onProgress: (attempts) => show(`${scenario.name}: shrinking, ${many(attempts, 'run')}`) },
        )
      : undefined;
  const written = options.shrink ? shrunk?.text : found && withSchedule(text, found.deviations, seed, found.signature);
  let corpusFile: string | undefined;
  if (written !== undefined && options.corpus !== undefined) {
    const path = join(options.corpus, `${fileName}.yaml`);
    // A case that might be smaller is not worth one that is there.
    if (!signal.aborted || !existsSync(path)) {
      mkdirSync(options.corpus, { recursive: true });
      writeFileSync(path, relocated(written, file, options.corpus));
      corpusFile = path;
    }
  }
  const isLost = found !== undefined && options.shrink && shrunk === undefined;
  return { scenario, exploration, seconds, shrunk, isLost, corpusFile };
}
