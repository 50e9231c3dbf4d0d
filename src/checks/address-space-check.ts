/**
 * The online checker: told of every operation on one address space as it happens, inside a deterministic run.
 *
 * An operation that overlaps no other is judged at its response. Otherwise the events wait until nothing is open, because
 * then every answer is known and no search has to guess one; what is still open at {@link AddressSpaceCheck.finish}
 * counts as unanswered. A run that never comes to rest is judged there. Costs of a run: this object, and one
 * {@link Operation} a call.
 *
 * Ownership: whoever holds the address space calls the checker in the order in which things happen; it has no clock but the
 * order of the calls.
 */
import { Linearization, type CheckOptions, type Exhaustion, type Verdict } from './linearization.js';
import { Operation, UNANSWERED, type OperationKind } from './operation.js';
import type { Violation } from './violation.js';

/** Operations kept for explanations: at least this many, at most twice as many. */
const LOG_LENGTH = 4096;

/** Checks one address space while it runs. Pages and frames are numbers in the caller's unit. */
export class AddressSpaceCheck {
  readonly #linearization: Linearization;
  #log: Operation[] = [];
  /** Operations in the order of events since nothing was open: first for the invocation, then for the response. */
  readonly #events: Operation[] = [];
  #open = 0;
  #operations = 0;
  #judgedCalls = 0;
  #judgedAccesses = 0;
  #clock = 0;

  constructor(options: CheckOptions = {}) {
    this.#linearization = new Linearization(options, () => this.#log);
  }

  /** Operations begun so far. */
  get operations(): number {
    return this.#operations;
  }

  /** Operations begun and not ended. */
  get open(): number {
    return this.#open;
  }

  /** Operations that were answered and judged, since this was asked last. */
  takeJudged(): { readonly calls: number; readonly accesses: number } {
    const judged = { calls: this.#judgedCalls, accesses: this.#judgedAccesses };
    this.#judgedCalls = 0;
    this.#judgedAccesses = 0;
    return judged;
  }

  /** Meaningful while nothing is open, and after {@link finish}. */
  get verdict(): Verdict {
    return this.#linearization.verdict;
  }

  get violations(): readonly Violation[] {
    return this.#linearization.violations;
  }

  /** Pages that were given up, with the operation whose search was too long. */
  get exhaustions(): readonly Exhaustion[] {
    return this.#linearization.exhaustions;
  }

  get configurations(): number {
    return this.#linearization.configurations;
  }

  /**
   * A MAP begins. Tell what it shows by {@link shows} before {@link end}. A call that makes several areas (COPY of several)
   * is one MAP for each when it ends well, and one of the whole range when it does not. `allows`: what devices may do there.
   */
  beginMap(agent: number, first: number, pages: number, allows: 'r' | 'w' | 'rw' = 'rw'): Operation {
    const map = this.#begin('map', agent, first, first + pages - 1);
    map.isReadable = allows !== 'w';
    map.isWritable = allows !== 'r';
    return map;
  }

  /** An UNMAP begins. Tell what goes by {@link takes} before {@link endUnmap}. */
  beginUnmap(agent: number, first: number, pages: number): Operation {
    return this.#begin('unmap', agent, first, first + pages - 1);
  }

  /** A device (`view`) issues an access of one page. */
  beginTranslate(view: number, page: number, isWrite = false): Operation {
    const access = this.#begin('translate', view, page, page);
    access.isWrite = isWrite;
    return access;
  }

  /** A view begins to be attached; from here on it may see what is mapped. Views nobody attaches are attached. */
  beginAttach(view: number): Operation {
    return this.#begin('attach', view, 0, 0);
  }

  /** A view begins to be detached; from here on it may fault. */
  beginDetach(view: number): Operation {
    return this.#begin('detach', view, 0, 0);
  }

  /** Pages of an open MAP show consecutive frames. Pages nobody tells fault. */
  shows(map: Operation, first: number, pages: number, frame: number): void {
    map.tell(first, first + pages - 1, frame);
  }

  /** An open UNMAP has taken an area, or several side by side, away. */
  takes(unmap: Operation, first: number, pages: number): void {
    unmap.tell(first, first + pages - 1, 0);
  }

  /** A MAP, attach or detach returns 0 or a negative errno. -EEXIST: the range was taken; any other: nothing is left of it. */
  end(operation: Operation, rc: number): void {
    operation.rc = rc;
    this.#end(operation);
  }

  /**
   * An UNMAP returns 0 or a negative errno; `pages`: how many it says went (looked at when it ended well). -EBUSY says
   * that it met an area at work, -ENOENT one that it would cut or none at all; tell any other reason by another errno.
   */
  endUnmap(unmap: Operation, rc: number, pages: number): void {
    unmap.answeredPages = pages;
    this.end(unmap, rc);
  }

  /** An access ends: in a frame, or in `FAULT`. */
  endTranslate(access: Operation, frame: number): void {
    access.frame = frame;
    this.end(access, 0);
  }

  /** The run is over: what is open never returned. The verdict. */
  finish(): Verdict {
    this.#drain();
    return this.verdict;
  }

  #begin(kind: OperationKind, agent: number, first: number, last: number): Operation {
    const operation = new Operation(kind, this.#operations++, agent, first, last, this.#clock++);
    if (this.#log.length >= 2 * LOG_LENGTH) this.#log = this.#log.slice(-LOG_LENGTH);
    this.#log.push(operation);
    this.#events.push(operation);
    this.#open++;
    return operation;
  }

  #end(operation: Operation): void {
    operation.respondedAt = this.#clock++;
    this.#events.push(operation);
    if (--this.#open === 0) this.#drain();
  }

  #respond(operation: Operation): void {
    this.#linearization.respond(operation);
    if (operation.rc === UNANSWERED) return;
    if (operation.kind === 'translate') this.#judgedAccesses++;
    else this.#judgedCalls++;
  }

  #drain(): void {
    const start = this.#clock - this.#events.length;
    for (const [position, operation] of this.#events.entries()) {
      if (operation.invokedAt === start + position) this.#linearization.invoke(operation);
      else this.#respond(operation);
    }
    this.#events.length = 0;
  }
}
