/** What the page of a schedule is given. */
import type { Race } from '../../explore/race.js';
import type { Trace } from '../../explore/trace.js';

export interface SchedulePageData {
  readonly trace: Trace;
  readonly race: Race;
  /** The report as a terminal shows it. */
  readonly text: string;
  /** The rule that was broken, as a sentence. */
  readonly rule: string;
}
