/** What a stress run has to say: plain data. */
import type { HistoryCounts, Violation } from './check.js';
import type { ExposureWindow } from './recorded-domain.js';
import type { StressOptions } from './options.js';
import { errnoText } from '../uapi/errno.js';
import { iovaText } from './words.js';

/** A client that died, what it was at, and what became of that. */
export interface Death {
  readonly client: number;
  /** Operation under way, `-` between operations. */
  readonly operation: string;
  readonly firstPage: number;
  readonly pages: number;
  /** The gate of kernel code it came to last. */
  readonly gate: string;
  /** Locks it held, `class (read)` or `class (write)`; `allocator`, `command queue`. */
  readonly held: readonly string[];
  /**
   * `repaired`: what it left half done was taken back, the others went on. `given-up`: it held what it may have torn; the others were told
   * (EOWNERDEAD) and the run ended.
   */
  readonly outcome: 'repaired' | 'given-up';
  /** Areas taken back, pages objects and table frames that nobody refers to any more. */
  readonly areas: number;
  readonly pagesObjects: number;
  readonly tableFrames: number;
}

export type Verdict = 'held' | 'violated' | 'inconclusive';

/** How a run went. Wall-clock figures are for reading, no verdict depends on them. */
export interface StressReport {
  readonly options: StressOptions;
  readonly verdict: Verdict;
  /** Why a run that found nothing wrong is inconclusive. */
  readonly reason: string | undefined;
  readonly wallMs: number;
  /** Of that, time in which threads ran. */
  readonly runningMs: number;
  readonly segments: number;
  /** Operations of clients, failed ones included. */
  readonly operations: number;
  readonly counts: HistoryCounts;
  readonly violations: readonly Violation[];
  readonly violationCount: number;
  readonly deaths: readonly Death[];
  /** Threads that an error ended because the address space was given up under them, by errno. */
  readonly gaveUp: ReadonlyMap<number, number>;
  readonly window: ExposureWindow;
}

/** How far a run is. */
export interface StressProgress {
  readonly elapsedMs: number;
  readonly segments: number;
  readonly operations: number;
  readonly dmas: number;
  readonly violations: number;
}

/** The document of `--json`. */
export function reportJson(report: StressReport): object {
  const { counts, window, options } = report;
  const { failed, ...happened } = counts;
  return {
    seed: options.seed,
    threads: options.threads,
    devices: options.devices,
    locks: options.locks,
    invalidation: options.invalidation,
    faults: options.faults,
    verdict: report.verdict,
    ...(report.reason === undefined ? {} : { reason: report.reason }),
    wall_ms: Math.round(report.wallMs),
    running_ms: Math.round(report.runningMs),
    segments: report.segments,
    operations: report.operations,
    ...Object.fromEntries(Object.entries(happened).map(([key, value]) => [snake(key), value])),
    failed: byName(failed),
    ...(options.invalidation === 'deferred' ? { exposure_window: windowJson(window) } : {}),
    violation_count: report.violationCount,
    violations: report.violations.map(({ kind, page, detail }) => ({
      kind,
      ...(page < 0 ? {} : { iova: iovaText(page) }),
      detail,
    })),
    deaths: report.deaths.map(({ firstPage, pagesObjects, tableFrames, ...death }) => ({
      ...death,
      iova: iovaText(firstPage),
      pages_objects: pagesObjects,
      table_frames: tableFrames,
    })),
    gave_up: byName(report.gaveUp),
  };
}

function byName(counts: ReadonlyMap<number, number>): object {
  const named = [...counts].map(([errno, count]) => [errnoText(errno), count] as const);
  return Object.fromEntries(named.sort());
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function windowJson(window: ExposureWindow): object {
  const mean = (total: number): number => (window.unmaps === 0 ? 0 : Math.round(total / window.unmaps));
  return {
    unmaps: window.unmaps,
    mean_ns: mean(window.totalNs),
    max_ns: Math.round(window.maxNs),
    mean_dmas: mean(window.totalDmas),
    max_dmas: window.maxDmas,
  };
}
