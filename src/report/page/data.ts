/**
 * What the page is given: a finished run as JSON, in the words a reader sees.
 *
 * Written by `../model.ts`, read by the page in the browser, so it may import nothing of either side. Addresses are `0x`
 * strings, times nanoseconds. Things point at each other by index within their scenario; an index that is absent means that
 * there is nothing to point at.
 */

export type Verdict = 'pass' | 'fail' | 'inconclusive';

/** A range in the drawing of addresses. */
export interface PageSpan {
  readonly start: string;
  readonly last: string;
  readonly label: string;
  /** Decides colour and pattern: `ram`, `window`, `msi`, `conflict`, `stray`, ... */
  readonly kind: string;
}

/** A row of the drawing of addresses. */
export interface PageLane {
  readonly title: string;
  readonly spans: readonly PageSpan[];
}

export interface PageCheck {
  readonly name: string;
  readonly verdict: Verdict;
  readonly detail: string;
  readonly line?: number;
  readonly column?: number;
  /** The step it is about. */
  readonly step?: number;
}

export interface PageStep {
  readonly kind: string;
  readonly line: number;
  readonly startNs: number;
  readonly endNs: number;
  readonly verdict: string;
  readonly text: string;
  readonly explanation?: string;
  /** What lies over what, as sentences. */
  readonly conflicts: readonly string[];
  /** Its ranges in {@link PageScenario.marked}. */
  readonly ranges: readonly number[];
  /** Its entries in {@link PageScenario.ways} that did not end where they should. */
  readonly ways: readonly number[];
}

/** A tick on the time axis. */
export interface PageEvent {
  readonly timeNs: number;
  readonly node: string;
  readonly kind: string;
  readonly data: Readonly<Record<string, string | number | boolean>>;
}

/** A bar on the time axis. */
export interface PagePhase {
  readonly name: string;
  readonly startNs: number;
  readonly endNs: number;
}

export interface PageRound {
  readonly startNs: number;
  readonly endNs: number;
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  /** Dirty pages left after it; absent when nobody counted them. */
  readonly dirtyPages?: number;
  /** Of them, what the guest's processors and what its devices wrote; a page may be both. */
  readonly memoryPages?: number;
  readonly devicePages?: number;
  /** State of devices that went over with it. */
  readonly deviceBytes?: number;
}

export interface PageMigration {
  readonly guest: string;
  readonly from: string;
  readonly to: string;
  readonly startNs: number;
  readonly endNs: number;
  /** `completed`, `refused`, `failed`; `unfinished` when the run ended before it did. */
  readonly outcome: string;
  readonly reason?: string;
  readonly downtimeNs: number;
  readonly phases: readonly PagePhase[];
  readonly rounds: readonly PageRound[];
}

/** Time a guest spent on a host. */
export interface PageStay {
  readonly guest: string;
  readonly host: string;
  readonly startNs: number;
  readonly endNs: number;
}

/** Time a device spent in a state of the VFIO migration protocol. */
export interface PageDeviceState {
  readonly host: string;
  readonly device: string;
  /** `RUNNING`, `PRE_COPY`, ... */
  readonly state: string;
  readonly startNs: number;
  readonly endNs: number;
}

/** A transaction and where it ended. */
export interface PageTransaction {
  readonly timeNs: number;
  readonly device: string;
  readonly direction: string;
  readonly iova: string;
  readonly bytes: number;
  /** Indices into {@link PageScenario.ways}, one for each piece. */
  readonly ways: readonly number[];
  /** Where each piece ended. */
  readonly ends: readonly string[];
}

/** A way that transactions of a device took: all that were sent to the same place by the same component. */
export interface PageWay {
  readonly host: string;
  readonly device: string;
  readonly direction: string;
  readonly hop: string;
  readonly kind: string;
  readonly where: string;
  /** The first transaction's address as the device said it, and as the place it ended in decoded it. */
  readonly iova: string;
  readonly address?: string;
  readonly count: number;
  /** Where such a transaction should end: `memory`, or `doorbell` for an interrupt message. */
  readonly goal: string;
  /** Set when it ended elsewhere: one sentence that names the hop. */
  readonly explanation?: string;
  readonly step?: number;
  /** In {@link PageScenario.marked}. */
  readonly range?: number;
}

/** A rule, and how often it was looked at; `inconclusive` where nothing put it to the test. */
export interface PageRule {
  readonly id: string;
  readonly text: string;
  readonly verdict: Verdict;
  readonly looks: number;
}

export interface PageScenario {
  /** Unique in the page; the scenario's name where that is unique. */
  readonly id: string;
  readonly name: string;
  /** The directory it came from. */
  readonly family: string;
  readonly file: string;
  readonly source: string;
  readonly title: string;
  readonly covers: readonly string[];
  readonly verdict: Verdict;
  readonly headline: string;
  readonly digest: string;
  readonly virtualNs: number;
  /** Failed ones first. */
  readonly checks: readonly PageCheck[];
  /** Rules that every run is held against. */
  readonly rules: readonly PageRule[];
  readonly steps: readonly PageStep[];
  readonly lanes: readonly PageLane[];
  /** Ranges that something went wrong at: rows of their own below the lanes. */
  readonly marked: readonly (PageSpan & { readonly step?: number })[];
  readonly hosts: readonly string[];
  readonly events: readonly PageEvent[];
  readonly leftOut: readonly { readonly kind: string; readonly count: number }[];
  readonly migrations: readonly PageMigration[];
  readonly stays: readonly PageStay[];
  /** Of devices that left RUNNING at least once. */
  readonly deviceStates: readonly PageDeviceState[];
  /** The ones that ended elsewhere first. */
  readonly ways: readonly PageWay[];
  readonly transactions: readonly {
    readonly host: string;
    readonly records: readonly PageTransaction[];
    /** Transactions that are not in this page. */
    readonly leftOut: number;
  }[];
}

export interface PageRun {
  readonly seed: number;
  readonly placement: string;
  readonly digest: string;
  /** The line of totals of the terminal. */
  readonly totals: string;
  /** Failed ones first, then in the order of their files. */
  readonly scenarios: readonly PageScenario[];
}
