/**
 * Checks a segment of the history: sound, so that whatever it complains of is wrong.
 *
 *   - A DMA that reached frame F through page P overlaps a period in which P was translated to F (INV-1, INV-2). One that
 *     begins after the period was over used a *stale* translation; one that fits no period at all used a *wrong* one, e.g. of a table
 *     that was given away. With a flush queue a stale translation is exposure until the flush returned, and counted.
 *   - A DMA that found no translation does not lie within the certain part of a period.
 *   - A DMA was let through only by a period that allows it, and refused only by one that does not: never within the certain
 *     part of one that does.
 *   - MAP, COPY and UNMAP answered what they did and could do (calls.ts).
 *   - No DMA reached a page that nobody pins (INV-3), no walk read a table that had been given back.
 *   - Two periods of a page do not overlap; an unmap ends what it says it ends.
 *   - Dirty state (INV-11): a write that was over before a read-and-clear of its page began was reported by that read, or
 *     by one that ended after the write began. That counts only where the page stayed mapped all the while.
 *   - Memory: the last tag each device wrote to a frame is what is there (`lastTags`, looked at by the audit).
 *
 * Records of dead threads may be pending; what they say counts as "may have happened".
 */
import type { Alarm, Complain } from './alarms.js';
import { Calls } from './calls.js';
import { ACCESS, DMA, OP, PENDING, type History, type HistoryCursor } from './history.js';
import { Periods, type Period } from './periods.js';
import { ReportedPages } from './reported-pages.js';

/** Something that must not be. */
export interface Violation {
  readonly kind: Alarm;
  /** IOVA page, or -1. */
  readonly page: number;
  readonly detail: string;
}

/** How often what happened. */
export interface HistoryCounts {
  maps: number;
  copies: number;
  unmaps: number;
  pagesUnmapped: number;
  dirtyReads: number;
  /** Operations that failed, by errno. */
  readonly failed: Map<number, number>;
  dmas: number;
  dmaWrites: number;
  dmaFaults: number;
  /** DMAs through a translation whose unmap had returned (flush queue). */
  exposed: number;
}

interface Dma {
  readonly op: number;
  readonly page: number;
  readonly frame: number;
  readonly result: number;
  readonly invoked: number;
  readonly responded: number;
}

function emptyCounts(): HistoryCounts {
  return {
    maps: 0,
    copies: 0,
    unmaps: 0,
    pagesUnmapped: 0,
    dirtyReads: 0,
    failed: new Map(),
    dmas: 0,
    dmaWrites: 0,
    dmaFaults: 0,
    exposed: 0,
  };
}

/** Complaints that are kept; more are only counted. */
const MAX_VIOLATIONS = 20;

/** Checks the segments of one run in order. */
export class HistoryChecker {
  readonly violations: Violation[] = [];
  violationCount = 0;
  readonly counts = emptyCounts();
  /** By thread, the tag each frame (kernel frame number by pfn) got last. */
  readonly lastTags = new Map<number, Map<number, number>>();
  readonly #periods: Periods;
  readonly #dirty: ReportedPages;
  readonly #calls: Calls;

  constructor() {
    const complain: Complain = (...about) => this.complain(...about);
    this.#periods = new Periods(complain);
    this.#dirty = new ReportedPages(this.#periods, complain);
    this.#calls = new Calls(this.#periods, complain);
  }

  complain(kind: Alarm, page: number, detail: string): void {
    this.violationCount++;
    if (this.violations.length < MAX_VIOLATIONS) this.violations.push({ kind, page, detail });
  }

  /** Checks what the threads did since the last call. */
  check(clients: readonly History[], devices: readonly History[]): void {
    for (const history of clients) {
      const cursor = history.read();
      while (cursor.next()) {
        this.#countOperation(cursor);
        this.#periods.add(cursor, this.#calls.add(cursor));
        this.#dirty.addRead(cursor);
      }
    }
    this.#periods.settle();
    this.#calls.check();
    for (const history of devices) {
      const tags = this.#tagsOf(history.thread);
      const cursor = history.read();
      while (cursor.next()) {
        this.#checkDma(cursor);
        if (cursor.op !== OP.DMA_WRITE || cursor.result !== DMA.done) continue;
        tags.set(cursor.frame, cursor.extra);
        this.#dirty.addWrite(cursor.page, cursor.invoked, cursor.responded);
      }
    }
    this.#dirty.check();
    this.#dirty.endSegment();
    this.#calls.endSegment();
    this.#periods.endSegment();
  }

  #tagsOf(thread: number): Map<number, number> {
    const tags = this.lastTags.get(thread) ?? new Map<number, number>();
    this.lastTags.set(thread, tags);
    return tags;
  }

  #countOperation({ op, result, responded }: HistoryCursor): void {
    const { counts } = this;
    if (responded === PENDING) return;
    if (op === OP.READ_DIRTY) counts.dirtyReads++;
    if (op !== OP.MAP && op !== OP.COPY && op !== OP.UNMAP) return;
    if (result < 0) counts.failed.set(-result, (counts.failed.get(-result) ?? 0) + 1);
    else if (op === OP.MAP) counts.maps++;
    else if (op === OP.COPY) counts.copies++;
    else {
      counts.unmaps++;
      counts.pagesUnmapped += result;
    }
  }

  #checkDma(dma: HistoryCursor): void {
    const { counts } = this;
    counts.dmas++;
    if (dma.op === OP.DMA_WRITE) counts.dmaWrites++;
    const { page, result } = dma;
    if (result === DMA.done) this.#checkAccess(dma);
    else if (result === DMA.unpinned) {
      this.complain('unpinned', page, `DMA reached frame ${hex(dma.frame)} that nobody pins`);
    } else if (result === DMA.freed) this.complain('freed-table', page, 'a walk read a table that had been given back');
    else if (result === DMA.other) this.complain('fault', page, 'DMA ended in a fault that no mapping here can cause');
    else {
      counts.dmaFaults++;
      if (result === DMA.translation) this.#checkFault(dma);
      else this.#checkRefusal(dma);
    }
  }

  #checkAccess(dma: Dma): void {
    const { page, frame, invoked, responded } = dma;
    let stale: Period | undefined;
    let exposed = false;
    let isForbidden = false;
    for (const period of this.#periods.at(page)) {
      const offset = page - period.page;
      if (offset < 0 || offset >= period.pages || period.frame + offset !== frame) continue;
      if (period.entering > responded) continue;
      if (!allows(period, dma)) isForbidden ||= period.gone >= invoked;
      else if (period.gone < invoked) stale = period;
      else if (period.left < invoked) exposed = true;
      else return;
    }
    if (exposed) this.counts.exposed++;
    else if (isForbidden) {
      const what = dma.op === OP.DMA_WRITE ? 'wrote to' : 'read';
      this.complain(
        'forbidden-access',
        page,
        `DMA ${what} frame ${hex(frame)} through a mapping that does not allow it`,
      );
    } else if (stale !== undefined) {
      const when = `${invoked - stale.gone} stamps after its unmap had returned`;
      this.complain('stale-translation', page, `DMA reached frame ${hex(frame)} ${when}`);
    } else this.complain('wrong-translation', page, `DMA reached frame ${hex(frame)}, which the page never showed`);
  }

  #checkFault({ page, invoked, responded }: Dma): void {
    for (const period of this.#periods.at(page)) {
      if (page < period.page || page >= period.page + period.pages) continue;
      if (period.entered >= invoked || period.leaving <= responded) continue;
      this.complain(
        'lost-translation',
        page,
        `DMA found nothing where frame ${hex(period.frame + page - period.page)} was`,
      );
      return;
    }
  }

  #checkRefusal(dma: Dma): void {
    const { page, invoked, responded } = dma;
    let isRefused = false;
    for (const period of this.#periods.at(page)) {
      if (page < period.page || page >= period.page + period.pages) continue;
      if (!allows(period, dma)) isRefused ||= period.entering <= responded && period.gone >= invoked;
      else if (period.entered < invoked && period.leaving > responded) {
        const where = `frame ${hex(period.frame + page - period.page)}`;
        this.complain('lost-permission', page, `DMA was refused where ${where} was mapped for it`);
        return;
      }
    }
    if (!isRefused) this.complain('lost-permission', page, 'DMA was refused by a mapping that nobody had made');
  }
}

function allows({ access }: Period, { op }: Dma): boolean {
  return (access & (op === OP.DMA_WRITE ? ACCESS.write : ACCESS.read)) !== 0;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
