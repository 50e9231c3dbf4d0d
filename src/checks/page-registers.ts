/**
 * The registers of all pages of an address space: which translations are right.
 *
 * Pages that saw the same operations share one {@link Segment}; it is split where an operation covers only a part, and joined
 * again when nothing is open and nothing in doubt. Pages outside of all segments are free. A segment goes through three
 * stages: quiet (a holder); one open writer, which costs no search because its effect can wait for its response; and
 * contended (page-register.ts). An access that finds what it saw leaves no trace.
 *
 * A view that is not attached sees faults only; while an attach or detach is at work, either.
 */
import { FAULT, UNANSWERED, isAnswerOf, isRefused, type Extent, type Operation } from './operation.js';
import { Contention, type Outcome } from './page-register.js';
import { RangeIndex } from './range-index.js';
import type { Search } from './search.js';

/** What the checker does with what a partition finds. */
export interface Findings {
  /** Nothing explains what the access saw; it might have seen `allowed`. */
  translationUnexplained(access: Operation, allowed: readonly number[]): void;
  /** The answer of a MAP or UNMAP fits no order of what happened to the page. */
  pageUnexplained(operation: Operation, page: number): void;
  /** The answer of a MAP or UNMAP fits no order of the MAPs and UNMAPs it overlaps; `areas` is what it met. */
  rangeUnexplained(operation: Operation, areas: readonly Operation[]): void;
  /** The search for the operation used up its budget: these pages are not checked from now on. */
  exhausted(operation: Operation, first: number, last: number): void;
}

type ViewState = 'attached' | 'changing' | 'detached';

class Segment {
  readonly first: number;
  last: number;
  /** The MAP that shows the pages; undefined while free. Not meaningful when contended. */
  holder: Operation | undefined;
  /** The only open operation of the pages. */
  writer: Operation | undefined;
  contention: Contention | undefined;
  /** The budget did not suffice: anything goes. */
  isAbandoned = false;

  constructor(first: number, last: number, holder: Operation | undefined) {
    this.first = first;
    this.last = last;
    this.holder = holder;
  }

  get isQuiet(): boolean {
    return this.writer === undefined && this.contention === undefined && !this.isAbandoned;
  }

  /** Cuts the segment off before `page` and returns the rest. */
  split(page: number): Segment {
    const rest = new Segment(page, this.last, this.holder);
    rest.writer = this.writer;
    rest.contention = this.contention?.copy();
    rest.isAbandoned = this.isAbandoned;
    this.last = page - 1;
    return rest;
  }
}

/** Pages on which an operation has an effect that translations may see. */
function effects(operation: Operation): readonly Extent[] {
  const { kind, rc, first, last } = operation;
  if (kind === 'unmap' && rc !== UNANSWERED) return operation.extents;
  return kind === 'map' && isRefused(operation) ? [] : [{ first, last, frame: 0 }];
}

/** One address space's pages. Operations are told with their answers, at their invocations and again at their responses. */
export class PageRegisters {
  readonly #search: Search;
  readonly #findings: Findings;
  readonly #segments = new RangeIndex<Segment>();
  readonly #views = new Map<number, ViewState>();
  /** Accesses that were not explained when they came. */
  readonly #waiting: Operation[] = [];

  constructor(search: Search, findings: Findings) {
    this.#search = search;
    this.#findings = findings;
  }

  invoke(operation: Operation): void {
    switch (operation.kind) {
      case 'map':
      case 'unmap':
        for (const { first, last } of effects(operation)) {
          for (const segment of this.#tile(first, last)) this.#addWriter(segment, operation);
        }
        break;
      case 'translate':
        if (operation.rc !== UNANSWERED) this.#addAccess(operation);
        break;
      case 'attach':
      case 'detach':
        this.#setView(operation.agent, 'changing');
    }
  }

  respond(operation: Operation): void {
    switch (operation.kind) {
      case 'map':
      case 'unmap':
        for (const { first, last } of effects(operation)) {
          for (const segment of this.#segments.overlapping(first, last)) this.#endWriter(segment, operation);
          this.#tidy(first, last);
        }
        break;
      case 'translate':
        this.#endAccess(operation);
        break;
      case 'attach':
      case 'detach':
        this.#setView(
          operation.agent,
          (operation.kind === 'attach') === (operation.rc === 0) ? 'attached' : 'detached',
        );
    }
  }

  // --- writers ---

  #addWriter(segment: Segment, operation: Operation): void {
    if (segment.isAbandoned) return;
    if (segment.contention === undefined && segment.writer === undefined) {
      segment.writer = operation;
      return;
    }
    if (!this.#contend(segment).addWriter(operation)) this.#abandon(segment, operation);
  }

  #endWriter(segment: Segment, operation: Operation): void {
    if (segment.isAbandoned) return;
    if (segment.contention !== undefined) {
      this.#judge(segment, operation, segment.contention.endWriter(operation), segment.first);
      return;
    }
    segment.writer = undefined;
    const isMap = operation.kind === 'map';
    if (isMap && operation.rc !== 0) return;
    if (isMap === (segment.holder !== undefined)) this.#findings.pageUnexplained(operation, segment.first);
    segment.holder = isMap ? operation : undefined;
  }

  /** The segment's contention, begun with what is open on it. */
  #contend(segment: Segment): Contention {
    if (segment.contention === undefined) {
      segment.contention = new Contention(this.#search, segment.holder);
      if (segment.writer !== undefined) segment.contention.addWriter(segment.writer);
      segment.writer = undefined;
    }
    return segment.contention;
  }

  #judge(segment: Segment, operation: Operation, outcome: Outcome, page: number): void {
    if (outcome === 'exhausted') this.#abandon(segment, operation);
    else if (outcome === 'unexplained') this.#findings.pageUnexplained(operation, page);
    const holder = segment.contention?.settled();
    if (holder === 'open') return;
    segment.contention = undefined;
    segment.holder = holder;
  }

  #abandon(segment: Segment, operation: Operation): void {
    segment.isAbandoned = true;
    segment.contention = undefined;
    this.#findings.exhausted(operation, segment.first, segment.last);
  }

  // --- accesses ---

  #addAccess(access: Operation): void {
    const view = this.#views.get(access.agent) ?? 'attached';
    if (access.frame === FAULT && view !== 'attached') return;
    const page = access.first;
    const isVisible = view !== 'detached';
    const found = this.#segments.find(page);
    if (found?.isAbandoned === true) return;
    if (found?.contention === undefined) {
      if (isVisible && isAnswerOf(found?.holder, access)) return;
    } else if (found.contention.explains(access, isVisible)) return;
    for (const segment of this.#tile(page, page)) {
      if (this.#contend(segment).addAccess(access, isVisible)) this.#waiting.push(access);
      else this.#abandon(segment, access);
    }
  }

  #endAccess(access: Operation): void {
    if (!this.#stopWaiting(access)) return;
    const segment = this.#segments.find(access.first);
    if (segment?.contention === undefined) return;
    const { outcome, allowed } = segment.contention.endAccess(access);
    if (outcome === 'unexplained') this.#findings.translationUnexplained(access, allowed);
    this.#judge(segment, access, outcome === 'exhausted' ? outcome : 'explained', access.first);
    this.#tidy(access.first, access.first);
  }

  #stopWaiting(access: Operation): boolean {
    const position = this.#waiting.indexOf(access);
    if (position >= 0) this.#waiting.splice(position, 1);
    return position >= 0;
  }

  // --- views ---

  #setView(view: number, state: ViewState): void {
    this.#views.set(view, state);
    const pages = new Set(this.#waiting.filter(({ agent }) => agent === view).map(({ first }) => first));
    for (const page of pages) {
      const segment = this.#segments.find(page);
      const isKnown = segment?.contention?.setVisible(view, state !== 'detached', state !== 'attached');
      const access = this.#waiting.find(({ agent, first }) => agent === view && first === page);
      if (isKnown === false && segment !== undefined && access !== undefined) this.#abandon(segment, access);
    }
  }

  // --- segments ---

  /** Segments that cover exactly first..last: those at the ends are split, holes are filled. */
  #tile(first: number, last: number): readonly Segment[] {
    const tiles: Segment[] = [];
    const add = (segment: Segment): void => {
      this.#segments.insert(segment);
      tiles.push(segment);
    };
    let page = first;
    for (const segment of this.#segments.overlapping(first, last)) {
      if (segment.first > page) add(new Segment(page, segment.first - 1, undefined));
      const rest = segment.last > last ? segment.split(last + 1) : undefined;
      if (segment.first < page) add(segment.split(page));
      else tiles.push(segment);
      if (rest !== undefined) this.#segments.insert(rest);
      page = (tiles.at(-1)?.last ?? last) + 1;
    }
    if (page <= last) add(new Segment(page, last, undefined));
    return tiles;
  }

  /** Drops free segments in and beside first..last, and joins quiet ones that show the same MAP. */
  #tidy(first: number, last: number): void {
    let before: Segment | undefined;
    for (const segment of this.#segments.overlapping(first - 1, last + 1)) {
      if (!segment.isQuiet) {
        before = undefined;
      } else if (segment.holder === undefined) {
        this.#segments.remove(segment);
      } else if (before?.last === segment.first - 1 && before.holder === segment.holder) {
        this.#segments.remove(segment);
        before.last = segment.last;
      } else {
        before = segment;
      }
    }
  }
}
