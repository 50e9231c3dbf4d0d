/**
 * The offline checker: judges the histories that threads recorded (history.ts), merged by their stamps.
 *
 * Every buffer is in the order of its stamps, so the earliest event is the next one of some buffer. What is in memory at a
 * time are the open operations and the MAPs in force; explanations read the buffers again.
 */
import { HistoryCursor } from './history.js';
import { Linearization, type CheckOptions, type Exhaustion, type Verdict } from './linearization.js';
import type { Operation } from './operation.js';
import { RangeIndex, type PageRange } from './range-index.js';
import type { Violation } from './violation.js';

/** What a check found. */
export interface HistoryResult {
  readonly verdict: Verdict;
  readonly violations: readonly Violation[];
  readonly exhaustions: readonly Exhaustion[];
  readonly operations: number;
  /** Pages that some MAP named. */
  readonly pages: number;
  /** Configurations that searches visited. */
  readonly configurations: number;
}

/** One event: `isResponse` tells the two of an operation apart. */
interface Event {
  readonly operation: Operation;
  readonly isResponse: boolean;
}

/** All events in the order of their stamps. Operations are numbered by their invocations. */
function* eventsOf(history: readonly SharedArrayBuffer[]): Generator<Event> {
  const cursors = history.map((buffer) => new HistoryCursor(buffer));
  const open = new Map<HistoryCursor, Operation>();
  for (let number = 0; ;) {
    let next: HistoryCursor | undefined;
    for (const cursor of cursors) if (cursor.stamp < (next?.stamp ?? Infinity)) next = cursor;
    if (next === undefined) return;
    if (next.isResponse) {
      const operation = open.get(next);
      next.takeResponse();
      if (operation !== undefined) yield { operation, isResponse: true };
    } else {
      const operation = next.takeInvocation(number++);
      open.set(next, operation);
      yield { operation, isResponse: false };
    }
  }
}

function* operationsOf(history: readonly SharedArrayBuffer[]): Generator<Operation> {
  for (const { operation, isResponse } of eventsOf(history)) if (!isResponse) yield operation;
}

/** A growing set of pages. */
class PageSet {
  readonly #ranges = new RangeIndex<PageRange>();
  pages = 0;

  add(first: number, last: number): void {
    const range = this.#ranges.find(first);
    if (range !== undefined && range.last >= last) return;
    const met = this.#ranges.overlapping(first - 1, last + 1);
    const union = { first: Math.min(first, met[0]?.first ?? first), last: Math.max(last, met.at(-1)?.last ?? last) };
    for (const gone of met) {
      this.#ranges.remove(gone);
      this.pages -= gone.last - gone.first + 1;
    }
    this.#ranges.insert(union);
    this.pages += union.last - union.first + 1;
  }
}

/** Checks one address space's history: the buffers of all threads that worked on it. */
export function checkHistory(history: readonly SharedArrayBuffer[], options: CheckOptions = {}): HistoryResult {
  const linearization = new Linearization(options, () => operationsOf(history));
  const mapped = new PageSet();
  let operations = 0;
  for (const { operation, isResponse } of eventsOf(history)) {
    if (isResponse) {
      linearization.respond(operation);
      continue;
    }
    operations++;
    if (operation.kind === 'map') mapped.add(operation.first, operation.last);
    linearization.invoke(operation);
  }
  const { verdict, violations, exhaustions, configurations } = linearization;
  return { verdict, violations, exhaustions, operations, pages: mapped.pages, configurations };
}
