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

/** The task, or time, that a deviation names. */
export function namedBy(deviation: Deviation): string {
  return isHeldBack(deviation) ? deviation.hold : deviation.to;
}

/**
 * Whether a deviation of a program's schedule names somebody there may be: one of the program's tasks, or one of the kernel's or the board's
 * own, which have a slash in their names. Time can go on, but not be held back.
 */
export function namesSomebody(deviation: Deviation, tasks: readonly string[]): boolean {
  const name = namedBy(deviation);
  return name.includes('/') || tasks.includes(name) || (name === TIME && !isHeldBack(deviation));
}
