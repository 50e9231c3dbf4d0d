/**
 * Strategies: which schedule the i-th run gets. Pure: (strategy, seed, i) says all, so runs can be made in any order and on any thread.
 *
 * Source: Burckhardt et al., ASPLOS 2010 (PCT); engineering.md A1.
 */
import type { ScheduleSpec } from '../runtime/node-runtime.js';

export const STRATEGIES = ['in-order', 'random', 'pct', 'exhaustive', 'portfolio'] as const;
export type StrategyName = (typeof STRATEGIES)[number];

/** A strategy whose runs do not depend on each other. */
export type SampledStrategy = Exclude<StrategyName, 'exhaustive'>;

/** What sampling needs to know. */
export interface Sampling {
  readonly strategy: SampledStrategy;
  readonly seed: number;
  /** d of PCT. */
  readonly depth: number;
  /** k of PCT, as {@link WARM_UP_RUNS} random runs had it. */
  readonly choices: number;
}

/** The first runs are random, so that PCT knows how long runs are. */
export const WARM_UP_RUNS = 8;

/** Depths that a portfolio tries in turn beside random schedules. */
function portfolioDepth(index: number, depth: number): number | undefined {
  const lane = index % 4;
  if (lane === 0) return undefined;
  return lane === 1 ? 2 : lane === 2 ? 3 : Math.max(depth, 4);
}

/** PCT's depth of a run; undefined where it is another kind. */
export function depthOf({ strategy, depth }: Pick<Sampling, 'strategy' | 'depth'>, index: number): number | undefined {
  if (index < WARM_UP_RUNS || strategy === 'in-order' || strategy === 'random') return undefined;
  return strategy === 'pct' ? depth : portfolioDepth(index, depth);
}

/** The schedule of the `index`-th run. */
export function scheduleOf(sampling: Sampling, index: number): ScheduleSpec {
  const { strategy, choices } = sampling;
  if (strategy === 'in-order' || (strategy === 'portfolio' && index === 0))
    return { strategy: 'deviating', deviations: [] };
  const from = { seed: sampling.seed, run: index };
  const depth = depthOf(sampling, index);
  return depth === undefined ? { strategy: 'explored', ...from } : { strategy: 'pct', ...from, depth, choices };
}

/**
 * The chance that a bug of depth d would have been found: 1 - (1 - 1/(n k^(d-1)))^runs, for `runs` PCT runs of at least that depth
 * with n tasks and k choices.
 */
export function guarantee(n: number, k: number, d: number, runs: number): number {
  const each = 1 / (n * Math.max(k, 1) ** (d - 1));
  return -Math.expm1(runs * Math.log1p(-Math.min(each, 1 - 1e-12)));
}
