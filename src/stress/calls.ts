/**
 * Whether what the address space answered is what it did, and what it could do: MAP, COPY and UNMAP against the periods of their pages.
 *
 * The records of a thread are in its order, so what lies between the invocation and the response of a call is the call's own work. Two
 * kinds of rule:
 *
 *   - *Its own work.* A MAP or COPY that succeeded showed exactly its pages, for the accesses it was asked for, and took none of them out again; one that failed took
 *     out all it had shown. An UNMAP took out as many pages as it says, all of them in its range.
 *   - *The others.* An answer needs a moment of the call at which it was true. EEXIST: somebody's pages, or an operation that had
 *     taken the IOVAs. EBUSY of an UNMAP: an area that somebody maps or unmaps. ENOENT of an UNMAP: an area that reaches out
 *     of the range. ENOENT of a COPY: a page of the source that was not certainly mapped all the while. And an UNMAP goes from the
 *     lowest area up until one stops it: no area below that one, none at all if nothing stopped it, was certainly there from
 *     before the call until after it. A copy shows the frames that its source showed.
 *
 * Sound: an area takes its IOVAs from some moment of the call that made it to some moment of the call that took it out, or with a
 * flush queue of the one that flushed; these calls' edges bound it ({@link Period}). What is not known counts as possible: a call without an
 * answer goes on for ever, and a MAP that failed before it was told a place may have been anywhere. What a MAP shows is one area, while a COPY may be several, one
 * beside the other. A call that could not have inserted anything (EEXIST, ENOENT) excuses nobody.
 */
import { many } from '../scenario/units.js';
import { EBUSY, EEXIST, ENOENT, errnoText } from '../uapi/errno.js';
import { OP, PENDING, type HistoryCursor } from './history.js';
import type { Complain } from './alarms.js';
import type { Period, Periods } from './periods.js';
import { iovaText } from './words.js';

/** Pages that a call asked to have mapped or unmapped, between two moments; Infinity is "not yet". */
export interface Call {
  readonly op: number;
  /** -1: anywhere. */
  readonly page: number;
  readonly pages: number;
  /** Of a COPY: the page it is a copy of. */
  readonly source: number;
  /** Of a MAP and a COPY: bits of ACCESS. */
  readonly access: number;
  readonly result: number;
  readonly invoked: number;
  readonly responded: number;
}

/** A call and what its thread did in it. */
interface OpenCall extends Call {
  entered: number;
  left: number;
  /** Of an UNMAP: the page behind what it took out last, where it looks for more. */
  cursor: number;
  /** Pages outside its range, out of order, or for other accesses than were asked for. */
  isAstray: boolean;
  readonly runs: { readonly page: number; readonly pages: number; readonly frame: number }[];
}

const NAMES = new Map<number, string>(Object.entries(OP).map(([name, op]) => [op, name]));
/** What an UNMAP's answer says although it cannot be. */
const WITHOUT_REASON: ReadonlyMap<number, string> = new Map([
  [EBUSY, 'where nobody mapped or unmapped anything'],
  [ENOENT, 'where no area reached out of its range'],
]);

/** The calls of a segment. */
export class Calls {
  readonly #periods: Periods;
  readonly #complain: Complain;
  #calls: OpenCall[] = [];
  /** The call each thread made last. */
  readonly #last = new Map<number, OpenCall>();

  constructor(periods: Periods, complain: Complain) {
    this.#periods = periods;
    this.#complain = complain;
  }

  /** Takes in the record a cursor is at; records of one thread in their order. Answers the call it is a part of. */
  add(record: HistoryCursor): Call | undefined {
    const { op } = record;
    if (op === OP.MAP || op === OP.COPY || op === OP.UNMAP) {
      const { page, pages, result, invoked, frame: source, extra: access } = record;
      const responded = record.responded === PENDING ? Infinity : record.responded;
      const work = { entered: 0, left: 0, cursor: page, isAstray: false, runs: [] };
      const call: OpenCall = { op, page, pages, source, access, result, invoked, responded, ...work };
      this.#calls.push(call);
      this.#last.set(record.thread, call);
      return call;
    }
    const call = this.#last.get(record.thread);
    if (call === undefined || record.invoked > call.responded) return undefined;
    if (op === OP.ENTER && record.result >= 0) enter(call, record);
    else if (op === OP.LEAVE || op === OP.LEAVE_DEFERRED) leave(call, record);
    return call;
  }

  /** Checks every call; after the periods settled. */
  check(): void {
    const unplaced = this.#calls.filter((call) => mayHaveTaken(call));
    const dying = this.#calls.filter(({ op, responded }) => op === OP.UNMAP && responded === Infinity);
    for (const call of this.#calls) {
      if (call.responded === Infinity) continue;
      if (call.op === OP.UNMAP) this.#checkUnmap(call, [...unplaced, ...dying]);
      else this.#checkMap(call, unplaced, dying);
    }
  }

  endSegment(): void {
    this.#calls = [];
    this.#last.clear();
  }

  // --- MAP and COPY ---

  #checkMap(call: OpenCall, unplaced: readonly Call[], dying: readonly Call[]): void {
    const { op, page, pages, result, entered, left, isAstray } = call;
    if (result < 0) {
      if (entered !== left) this.#wrong(call, `and ${entered - left} of ${entered} pages it had shown are left`);
      if (result === -EEXIST && !this.#isTaken(call, unplaced)) this.#wrong(call, 'where nobody had anything');
      if (op === OP.COPY && result === -ENOENT && this.#isWhole(call, dying)) {
        this.#wrong(call, `although every page from ${iovaText(call.source)} on was mapped all the while`);
      }
      return;
    }
    if (entered !== pages || left !== 0 || isAstray) {
      this.#wrong(
        call,
        `after ${entered} pages were shown and ${left} taken out again${isAstray ? ', elsewhere or for other accesses' : ''}`,
      );
    } else if (op === OP.COPY) {
      const other = this.#otherThanSource(call);
      if (other >= 0)
        this.#complain('answer', other, `COPY shows a page that ${iovaText(call.source + other - page)} never did`);
    }
  }

  /** EEXIST: somebody else may have had one of the IOVAs at a moment of the call. */
  #isTaken(call: Call, unplaced: readonly Call[]): boolean {
    // Where there is no room for a MAP that may be anywhere it gets ENOSPC.
    if (call.page < 0) return false;
    if (unplaced.some((other) => other !== call && meets(call, other))) return true;
    return this.#periods
      .overlapping(call.page, call.pages)
      .some((period) => period.made.invoked <= call.responded && period.released >= call.invoked);
  }

  /** Every page of a COPY's source was certainly in an area that could be used, all the while. */
  #isWhole({ source, pages, invoked, responded }: Call, dying: readonly Call[]): boolean {
    const from: Call = { op: OP.UNMAP, page: source, pages, source: -1, access: 0, result: 0, invoked, responded };
    if (dying.some((other) => meets(from, other))) return false;
    const usable = this.#periods
      .overlapping(source, pages)
      .filter(({ made, hiding }) => made.responded < invoked && hiding > responded);
    return usable.reduce((sum, period) => sum + pagesIn(period, from), 0) === pages;
  }

  /** The first page of a COPY that shows a frame which its source did not show at any moment of the call; -1 for none. */
  #otherThanSource({ page, source, runs, invoked, responded }: OpenCall): number {
    for (const run of runs) {
      for (let i = 0; i < run.pages; i++) {
        const from = source + run.page - page + i;
        const isShown = this.#periods.at(from).some((period) => {
          const offset = from - period.page;
          if (offset < 0 || offset >= period.pages || period.frame + offset !== run.frame + i) return false;
          return period.entering <= responded && period.leaving >= invoked;
        });
        if (!isShown) return run.page + i;
      }
    }
    return -1;
  }

  // --- UNMAP ---

  #checkUnmap(call: OpenCall, others: readonly Call[]): void {
    const { page, pages, result, left, isAstray } = call;
    if (isAstray) this.#wrong(call, 'and took out pages that are not in its range');
    if (result >= 0 && result !== left) this.#wrong(call, `after it took out ${left}`);
    const there = this.#periods.overlapping(page, pages);
    const stop = this.#stop(call, there, others);
    if (stop === undefined) {
      this.#wrong(call, WITHOUT_REASON.get(-result) ?? 'which it never does');
      return;
    }
    for (const { made, entered, leaving, page: first } of there) {
      if (entered >= call.invoked || leaving <= call.responded) continue;
      // Nothing in the way: nothing may be left. Else only of what lies in the range from end to end it is sure that it comes first.
      if (stop !== Infinity && (made.page < page || made.page + made.pages > stop)) continue;
      this.#wrong(call, `but the pages from ${iovaText(first)} on were there before, and still are`);
      return;
    }
  }

  /**
   * The lowest page at which something may have stopped an UNMAP as it says; Infinity when nothing did, undefined when
   * nothing can have.
   */
  #stop(call: OpenCall, there: readonly Period[], others: readonly Call[]): number | undefined {
    const { page, pages, cursor, result, invoked, responded } = call;
    if (result >= 0) return Infinity;
    if (result === -ENOENT) {
      const reachingOut = (at: number): boolean =>
        there.some(
          ({ made, entering, leaving }) =>
            made.page < at && made.page + made.pages > at && entering <= responded && leaving >= invoked,
        );
      if (reachingOut(page)) return page;
      // What it took out is free while it goes on: another MAP may lie there and beyond, and is cut where it looks next.
      if (reachingOut(cursor)) return cursor;
      return reachingOut(page + pages) ? page + pages : undefined;
    }
    if (result !== -EBUSY) return undefined;
    const stops = others.filter((other) => other !== call && meets(call, other)).map((other) => other.page);
    for (const { made, hiding, released, leftBy } of there) {
      const isMapped = made.invoked <= responded && made.responded >= invoked;
      const isUnmapped = leftBy !== call && hiding <= responded && released >= invoked;
      if (isMapped || isUnmapped) stops.push(made.page);
    }
    return stops.length === 0 ? undefined : Math.min(...stops);
  }

  #wrong({ op, page, pages, result }: Call, why: string): void {
    const answer = result < 0 ? errnoText(-result) : op === OP.UNMAP ? many(result, 'page') : 'success';
    this.#complain('answer', page, `${NAMES.get(op) ?? op} of ${many(pages, 'page')} answered ${answer} ${why}`);
  }
}

function enter(call: OpenCall, { page, pages, frame, extra }: HistoryCursor): void {
  if (extra !== call.access) call.isAstray = true;
  if (call.op === OP.UNMAP || (call.page >= 0 && page !== call.page + call.entered)) call.isAstray = true;
  if (call.op === OP.COPY) call.runs.push({ page, pages, frame });
  call.entered += pages;
}

function leave(call: OpenCall, { page, pages, result }: HistoryCursor): void {
  if (call.page >= 0 && (page < call.page || page + pages > call.page + call.pages)) call.isAstray = true;
  call.left += result;
  call.cursor = page + pages;
}

/** Whether a MAP or COPY may have had IOVAs for a while of which no period speaks. */
function mayHaveTaken({ op, result, responded }: Call): boolean {
  if (op === OP.UNMAP) return false;
  return responded === Infinity || (result < 0 && result !== -EEXIST && result !== -ENOENT);
}

/** Whether two calls share pages and a moment. */
function meets(a: Call, b: Call): boolean {
  if (a.invoked > b.responded || b.invoked > a.responded) return false;
  return b.page < 0 || (b.page < a.page + a.pages && a.page < b.page + b.pages);
}

function pagesIn(period: Period, { page, pages }: Call): number {
  return Math.min(period.page + period.pages, page + pages) - Math.max(period.page, page);
}
