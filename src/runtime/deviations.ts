/** Where a schedule is not the default one: plain data, as a corpus file holds it and a page shows it. Numbers of choices count from 0 in a run. */

/** A choice that is not the default. */
export interface Switch {
  /** Number of the choice in the run, from 0. */
  readonly at: number;
  /** Name of the task that goes on, `time` for time. */
  readonly to: string;
}

/** A task that is passed over as long as anybody else, or time, can go on. */
export interface HeldBack {
  /** Number of the first choice of which that is true, and of the first of which it is not any more. */
  readonly at: number;
  readonly until: number;
  /** Name of the task. */
  readonly hold: string;
}

/** Where a schedule is not the default one. */
export type Deviation = Switch | HeldBack;

export function isHeldBack(deviation: Deviation): deviation is HeldBack {
  return 'hold' in deviation;
}

/** How a deviation calls time. */
export const TIME = 'time';
