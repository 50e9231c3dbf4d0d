/**
 * Whether every write of a device was reported by a read of dirty state: no write is lost (INV-11).
 *
 * For a read R of a page and a write W to it that was over before R began: either R reports the page, or a read that ended
 * after W began (and began before R ended) does, since only reads make a page clean. So of all writes before R only the one
 * that began last matters, and of all reports only the one that ended last. Both are looked at only if the page stayed
 * mapped from W to R.
 *
 * A block has one dirty state for all of its pages. A read of a part of it makes the whole block clean and speaks of that part
 * alone, as in Linux (io-pgtable-arm's visit_dirty); for the block's other pages such a read counts as a report. What no read has reported when a segment ends is remembered as long as its mapping lasts.
 */
import { OP, PENDING, type HistoryCursor } from './history.js';
import type { Complain } from './alarms.js';
import type { Period, Periods } from './periods.js';
import { BLOCK_PAGES } from './windows.js';
import { errnoText } from '../uapi/errno.js';

/** Stamp of a write of an earlier segment: after everything was entered in it, before anything of this one. */
const EARLIER_WRITE = -1;

interface Read {
  readonly page: number;
  readonly pages: number;
  readonly invoked: number;
  readonly responded: number;
}

interface Interval {
  readonly invoked: number;
  readonly responded: number;
}

/** Writes, reads and reports of a segment. */
export class ReportedPages {
  readonly #periods: Periods;
  readonly #complain: Complain;
  readonly #writes = new Map<number, Interval[]>();
  readonly #reports = new Map<number, Interval[]>();
  #reads: Read[] = [];
  /** Reads of threads that died in them. */
  #unended: Read[] = [];
  /** The read whose reports come next, by thread. */
  readonly #reading = new Map<number, Read>();
  /** Pages written in earlier segments and not reported since, with the mapping they were written through. */
  readonly #carried = new Map<number, Period>();

  constructor(periods: Periods, complain: Complain) {
    this.#periods = periods;
    this.#complain = complain;
  }

  /** Takes in the record a cursor is at, if it is about dirty state; records of one thread in their order. */
  addRead(record: HistoryCursor): void {
    const { op, page, pages, thread } = record;
    if (op === OP.READ_DIRTY) {
      const responded = record.responded === PENDING ? Infinity : record.responded;
      const read = { page, pages, invoked: record.invoked, responded };
      this.#reading.set(thread, read);
      if (record.result < 0)
        this.#complain('hole', page, `reading dirty state of a mapped area ended with ${errnoText(-record.result)}`);
      else if (responded !== Infinity) this.#reads.push(read);
      else {
        // A dead thread made pages clean and told nobody.
        this.#unended.push(read);
        for (let at = page; at < page + pages; at++) push(this.#reports, at, read);
      }
    } else if (op === OP.DIRTY) {
      const read = this.#reading.get(thread);
      if (read !== undefined) for (let at = page; at < page + pages; at++) push(this.#reports, at, read);
    }
  }

  addWrite(page: number, invoked: number, responded: number): void {
    push(this.#writes, page, { invoked, responded });
  }

  /** Checks every read of the segment. */
  check(): void {
    for (const read of [...this.#reads, ...this.#unended]) {
      this.#cutBlock(read, read.page);
      this.#cutBlock(read, read.page + read.pages);
    }
    for (const read of this.#reads) {
      for (let page = read.page; page < read.page + read.pages; page++) this.#checkPage(page, read);
    }
  }

  /** Forgets the segment but for writes that nobody has reported; before the periods do. */
  endSegment(): void {
    for (const [page, period] of this.#carried) {
      if (this.#reports.has(page) || period.leaving !== Infinity) this.#carried.delete(page);
    }
    for (const [page, writes] of this.#writes) {
      const last = lastInvoked(writes, Infinity);
      if (last === undefined || lastReport(this.#reports.get(page), Infinity) > last) continue;
      const goesOn = (period: Period): boolean => period.entered < last && period.leaving === Infinity;
      const period = this.#periods.at(page).find((other) => covers(other, page) && goesOn(other));
      if (period !== undefined) this.#carried.set(page, period);
    }
    this.#writes.clear();
    this.#reports.clear();
    this.#reads = [];
    this.#unended = [];
    this.#reading.clear();
  }

  /** A read begins or ends at a page: if that is within a block, the rest of the block is clean now, too. */
  #cutBlock(read: Read, page: number): void {
    const first = page - (page % BLOCK_PAGES);
    if (first === page || !this.#periods.at(page).some((period) => hasBlock(period, first))) return;
    for (let at = first; at < first + BLOCK_PAGES; at++) {
      if (at < read.page || at >= read.page + read.pages) push(this.#reports, at, read);
    }
  }

  #checkPage(page: number, read: Read): void {
    const carried = this.#carried.get(page);
    const began = lastInvoked(this.#writes.get(page), read.invoked) ?? (carried && EARLIER_WRITE);
    if (began === undefined || lastReport(this.#reports.get(page), read.responded) > began) return;
    const stayed = this.#periods.at(page).some((period) => {
      if (began === EARLIER_WRITE && period !== carried) return false;
      return covers(period, page) && period.entered < began && period.leaving > read.responded;
    });
    if (stayed) this.#complain('dirty-lost', page, 'a device wrote, and no read of dirty state since has said so');
  }
}

function covers(period: Period, page: number): boolean {
  return page >= period.page && page < period.page + period.pages;
}

/** Whether the 2 MiB from page `first` on may be a block of a period. */
function hasBlock({ page, pages, frame }: Period, first: number): boolean {
  const isWithin = first >= page && first + BLOCK_PAGES <= page + pages;
  return isWithin && (frame + first - page) % BLOCK_PAGES === 0;
}

function push(map: Map<number, Interval[]>, page: number, interval: Interval): void {
  const there = map.get(page);
  if (there === undefined) map.set(page, [interval]);
  else there.push(interval);
}

/** When the last of those writes began that were over before a moment. */
function lastInvoked(writes: readonly Interval[] | undefined, before: number): number | undefined {
  let last: number | undefined;
  for (const { invoked, responded } of writes ?? []) {
    if (responded < before && (last === undefined || invoked > last)) last = invoked;
  }
  return last;
}

/** When the last of those reports ended that began before a moment; -Infinity when there is none. */
function lastReport(reports: readonly Interval[] | undefined, before: number): number {
  let last = -Infinity;
  for (const { invoked, responded } of reports ?? []) if (invoked < before) last = Math.max(last, responded);
  return last;
}
