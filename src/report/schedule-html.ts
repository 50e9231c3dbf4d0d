/** A failing schedule as one HTML file: lanes of tasks, a cursor that goes both ways, and the machine as it was at each step. */
import { INVARIANTS, type InvariantId } from '../runtime/invariants.js';
import { findRace, type Race } from '../explore/race.js';
import { raceReport } from '../explore/race-report.js';
import type { Trace } from '../explore/trace.js';
import { pageDocument } from './document.js';
import { escapeXml } from './junit.js';
import { pageScript, pageStyle } from './schedule-page.generated.js';
import type { SchedulePageData } from './schedule-page/data.js';

/** The schedule as one HTML document. */
export function scheduleHtml(trace: Trace, race: Race = findRace(trace)): string {
  const text = raceReport(trace, race);
  const id = trace.failure?.id;
  const rule = id !== undefined && id in INVARIANTS ? INVARIANTS[id as InvariantId] : '';
  const data: SchedulePageData = { trace, race, text, rule };
  return pageDocument({
    title: `${trace.scenario}: ${trace.failure?.message ?? 'a schedule'}`,
    data,
    style: pageStyle,
    script: pageScript,
    withoutScript: `<h1>${escapeXml(trace.title)}</h1><pre>${escapeXml(text)}</pre>`,
  });
}
