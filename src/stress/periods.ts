/**
 * Which pages were translated to which frames, and when: what ENTER and LEAVE records say, put together.
 *
 * A *period* is one run of pages from the ENTER that made it to the LEAVE that ended it. It has two edges on each side, since a record says
 * only between which moments something happened: certainly there between `entered` and `leaving`, possibly from `entering`
 * to `gone`. With a flush queue `left` (the unmap returned) comes before `gone` (the flush returned): in between TLBs may still
 * use it, which is that mode's exposure. Around these edges lie those of the calls that made and ended it (calls.ts): the area has its
 * IOVAs from a moment of the one to a moment of the other. Moments of earlier segments are before 0; Infinity is "not yet".
 *
 * Periods are found by 2 MiB chunk.
 */
import type { Complain } from './alarms.js';
import type { Call } from './calls.js';
import { OP, PENDING, type HistoryCursor } from './history.js';
import { iovaText } from './words.js';

/** Stamp of what was entered in an earlier segment; dirty state written in an earlier one is EARLIER_WRITE. */
const EARLIER = -2;
const CHUNK_SHIFT = 9;

/** One run of pages, translated for a while. */
export interface Period {
  readonly page: number;
  readonly pages: number;
  readonly frame: number;
  /** Bits of ACCESS. */
  readonly access: number;
  /** The call that made it, which may have made more; its own ENTER where nobody called. */
  made: Pick<Call, 'page' | 'pages' | 'invoked' | 'responded'>;
  entering: number;
  /** Infinity for an ENTER that failed or never ended: it may have been there. */
  entered: number;
  leaving: number;
  left: number;
  gone: number;
  /** The call that ended it, and when that was invoked: from then on the area may have been hidden. */
  leftBy: Call | undefined;
  hiding: number;
  /** Its IOVAs are free. */
  released: number;
}

interface Change {
  readonly kind: 'enter' | 'leave';
  readonly page: number;
  readonly pages: number;
  readonly frame: number;
  readonly access: number;
  readonly result: number;
  readonly invoked: number;
  readonly responded: number;
  readonly call: Call | undefined;
  gone: number;
  released: number;
}

function changeOf(kind: Change['kind'], record: HistoryCursor, call: Call | undefined): Change {
  const { page, pages, frame, result, invoked, extra } = record;
  const responded = moment(record.responded);
  // What is done outside of a call (a flush before standing still, taking back what a dead thread left) is over with the segment.
  const released = call?.responded ?? Infinity;
  return { kind, page, pages, frame, access: extra, result, invoked, responded, call, gone: responded, released };
}

/** The area of a call that was never told its place may reach from anywhere to anywhere. */
function placed(call: Call): Period['made'] {
  return call.page >= 0 ? call : { ...call, page: 0, pages: Number.MAX_SAFE_INTEGER };
}

function moment(stamp: number): number {
  return stamp === PENDING ? Infinity : stamp;
}

/** Periods of a run. */
export class Periods {
  readonly #chunks = new Map<number, Period[]>();
  readonly #complain: Complain;
  #changes: Change[] = [];
  /** Unmapped and not flushed, by thread. */
  readonly #unflushed = new Map<number, Change[]>();

  constructor(complain: Complain) {
    this.#complain = complain;
  }

  /** Takes in the record a cursor is at, a part of `call`; records of one thread in their order. */
  add(record: HistoryCursor, call: Call | undefined): void {
    const { op, thread } = record;
    switch (op) {
      case OP.ENTER:
        this.#changes.push(changeOf('enter', record, call));
        break;
      case OP.LEAVE:
        this.#changes.push(changeOf('leave', record, call));
        break;
      case OP.LEAVE_DEFERRED: {
        const change = changeOf('leave', record, call);
        change.gone = Infinity;
        change.released = Infinity;
        this.#changes.push(change);
        this.#unflushed.set(thread, [...(this.#unflushed.get(thread) ?? []), change]);
        break;
      }
      case OP.FLUSH:
        for (const change of this.#unflushed.get(thread) ?? []) {
          change.gone = moment(record.responded);
          change.released = call?.responded ?? Infinity;
        }
        this.#unflushed.delete(thread);
        break;
      default:
        break;
    }
  }

  /** Puts the changes of the segment together. */
  settle(): void {
    const changes = this.#changes.sort((a, b) => a.invoked - b.invoked);
    this.#changes = [];
    for (const change of changes) {
      if (change.kind === 'enter') this.#enter(change);
      else this.#leave(change);
    }
  }

  /** Periods that may have a page. */
  at(page: number): readonly Period[] {
    return this.#chunks.get(page >> CHUNK_SHIFT) ?? NONE;
  }

  /** Periods of some of these pages, each once. */
  overlapping(page: number, pages: number): Period[] {
    const found: Period[] = [];
    const end = page + pages;
    const firstChunk = page >> CHUNK_SHIFT;
    for (let chunk = firstChunk; chunk <= (end - 1) >> CHUNK_SHIFT; chunk++) {
      for (const period of this.#chunks.get(chunk) ?? NONE) {
        if (period.page >= end || period.page + period.pages <= page) continue;
        // Of the chunks that have it, the first that is looked at tells it.
        if (Math.max(period.page >> CHUNK_SHIFT, firstChunk) === chunk) found.push(period);
      }
    }
    return found;
  }

  /** Forgets what is over; what goes on began before. */
  endSegment(): void {
    for (const [chunk, periods] of this.#chunks) {
      const open = periods.filter(({ gone }) => gone === Infinity);
      if (open.length === 0) this.#chunks.delete(chunk);
      else this.#chunks.set(chunk, open);
      for (const period of open) {
        const { page, pages } = period.made;
        period.made = { page, pages, invoked: EARLIER, responded: EARLIER };
        if (period.hiding !== Infinity) period.hiding = EARLIER;
        period.entering = EARLIER;
        if (period.entered !== Infinity) period.entered = EARLIER;
        if (period.leaving !== Infinity) period.leaving = EARLIER;
        if (period.left !== Infinity) period.left = EARLIER;
      }
    }
  }

  #enter({ page, pages, frame, access, result, invoked, responded, call, released }: Change): void {
    const failed = result < 0 || responded === Infinity;
    for (const other of this.overlapping(page, pages)) {
      if (other.gone <= invoked || other.entered === Infinity || failed) continue;
      this.#complain(
        'mapped-twice',
        page,
        `${pages} pages entered while ${other.pages} from ${iovaText(other.page)} on were still there`,
      );
      break;
    }
    const end = result < 0 ? responded : Infinity;
    const entered = failed ? Infinity : responded;
    const period: Period = {
      page,
      pages,
      frame,
      access,
      made: call === undefined ? { page, pages, invoked, responded: Infinity } : placed(call),
      entering: invoked,
      entered,
      leaving: result < 0 ? invoked : end,
      left: end,
      gone: end,
      leftBy: undefined,
      hiding: result < 0 ? invoked : end,
      released: result < 0 ? released : end,
    };
    const last = (page + pages - 1) >> CHUNK_SHIFT;
    for (let chunk = page >> CHUNK_SHIFT; chunk <= last; chunk++) {
      const periods = this.#chunks.get(chunk);
      if (periods === undefined) this.#chunks.set(chunk, [period]);
      else periods.push(period);
    }
  }

  #leave({ page, pages, result, invoked, responded, call, gone, released }: Change): void {
    let found = 0;
    let isCertain = responded !== Infinity;
    for (const period of this.overlapping(page, pages)) {
      if (period.gone !== Infinity) continue;
      if (period.page < page || period.page + period.pages > page + pages) {
        this.#complain(
          'split',
          page,
          `a part of the ${period.pages} pages from ${iovaText(period.page)} on was unmapped`,
        );
      }
      // A dead thread was mapping or unmapping it: how much of it was there nobody knows.
      if (period.entered === Infinity || period.leaving !== Infinity) isCertain = false;
      period.leaving = Math.min(period.leaving, invoked);
      period.left = responded;
      period.gone = gone;
      period.leftBy = call;
      period.hiding = Math.min(period.hiding, call?.invoked ?? invoked);
      period.released = released;
      found += period.pages;
    }
    if (isCertain && result !== found) {
      this.#complain('unmapped-other', page, `${result} pages were unmapped where ${found} were mapped`);
    }
  }
}

const NONE: readonly Period[] = [];
