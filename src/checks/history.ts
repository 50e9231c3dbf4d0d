/**
 * Recorded histories: what free-running threads write while they work, without allocation and without waiting.
 *
 * Every thread has a buffer of its own in shared memory: records of eight 64-bit floats (exact integers), behind a header
 * word that counts them. One atomic counter, shared by all, gives the stamps: an invocation takes its stamp before the
 * call begins, a response after it has ended. The record is there before the call begins and without a response stamp, so
 * that a thread that dies in the middle leaves an operation that never returned. A thread has one operation open at a time;
 * one that plays several agents (a device with accesses in flight) has a buffer for each. *Extent* records follow the
 * operation they belong to: pages of a MAP with their frames, pages an UNMAP took.
 */
import { Operation, type Extent, type OperationKind } from './operation.js';

const KINDS: readonly OperationKind[] = ['map', 'unmap', 'translate', 'attach', 'detach'];
const EXTENT = KINDS.length;

/** 64-bit words of a record. */
const RECORD_WORDS = 8;
const OPCODE = 0;
const AGENT = 1;
const FIRST = 2;
const PAGES = 3;
/** Frame of a translation or an extent; pages that an UNMAP says went. */
const VALUE = 4;
const RESULT = 5;
const INVOKED = 6;
/** 0: no response yet. Stamps begin at 1. */
const RESPONDED = 7;

const HEADER_BYTES = 8;

/** The counter all buffers of one history take their stamps from: 2^32 - 1 of them. */
export function createStampCounter(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(4));
}

/** Shared memory for one thread's records. */
export function createHistoryBuffer(records: number): SharedArrayBuffer {
  return new SharedArrayBuffer(HEADER_BYTES + records * RECORD_WORDS * 8);
}

/** One thread's end of its buffer. */
export class HistoryWriter {
  readonly #stamps: Int32Array;
  readonly #count: Int32Array;
  readonly #words: Float64Array;
  #next = 0;
  #open = 0;

  /** `buffer` from {@link createHistoryBuffer}, `stamps` from {@link createStampCounter}: both may come from another thread. */
  constructor(buffer: SharedArrayBuffer, stamps: Int32Array) {
    this.#stamps = stamps;
    this.#count = new Int32Array(buffer, 0, 1);
    this.#words = new Float64Array(buffer, HEADER_BYTES);
  }

  /** Whether `records` more fit (an operation takes one, and one for every extent). Nothing may be written that does not. */
  hasRoom(records: number): boolean {
    return (this.#next + records) * RECORD_WORDS <= this.#words.length;
  }

  beginMap(agent: number, first: number, pages: number): void {
    this.#begin('map', agent, first, pages);
  }

  beginUnmap(agent: number, first: number, pages: number): void {
    this.#begin('unmap', agent, first, pages);
  }

  beginTranslate(view: number, page: number): void {
    this.#begin('translate', view, page, 1);
  }

  beginAttach(view: number): void {
    this.#begin('attach', view, 0, 1);
  }

  beginDetach(view: number): void {
    this.#begin('detach', view, 0, 1);
  }

  /** The open MAP shows consecutive frames from `frame` on; the open UNMAP has taken these pages (no frame). */
  extent(first: number, pages: number, frame = 0): void {
    const at = this.#append(EXTENT, 0, first, pages);
    this.#words[at + VALUE] = frame;
    this.#publish();
  }

  /**
   * The open operation has returned 0 or a negative errno. `value`: the frame of a translation (or FAULT), the pages an
   * UNMAP says went.
   */
  end(rc: number, value = 0): void {
    this.#words[this.#open + VALUE] = value;
    this.#words[this.#open + RESULT] = rc;
    this.#words[this.#open + RESPONDED] = this.#stamp();
  }

  #begin(kind: OperationKind, agent: number, first: number, pages: number): void {
    this.#open = this.#append(KINDS.indexOf(kind), agent, first, pages);
    this.#words[this.#open + INVOKED] = this.#stamp();
    this.#publish();
  }

  #append(opcode: number, agent: number, first: number, pages: number): number {
    const at = this.#next * RECORD_WORDS;
    if (!this.hasRoom(1)) throw new RangeError(`history: ${this.#next} records are all the buffer holds`);
    this.#words[at + OPCODE] = opcode;
    this.#words[at + AGENT] = agent;
    this.#words[at + FIRST] = first;
    this.#words[at + PAGES] = pages;
    return at;
  }

  #publish(): void {
    Atomics.store(this.#count, 0, ++this.#next);
  }

  #stamp(): number {
    return (Atomics.add(this.#stamps, 0, 1) + 1) >>> 0;
  }
}

/** Reads one thread's records, operation by operation. */
export class HistoryCursor {
  readonly #records: number;
  readonly #words: Float64Array;
  #next = 0;
  #stamp = Infinity;
  #isOpen = false;

  constructor(buffer: SharedArrayBuffer) {
    this.#records = Atomics.load(new Int32Array(buffer, 0, 1), 0);
    this.#words = new Float64Array(buffer, HEADER_BYTES, this.#records * RECORD_WORDS);
    this.#peek();
  }

  /** Stamp of the next event; Infinity when there are no more (the last operation may never have returned). */
  get stamp(): number {
    return this.#stamp;
  }

  /** Whether the next event is the response of the operation taken last. */
  get isResponse(): boolean {
    return this.#isOpen;
  }

  /** Takes the next event, an invocation: its operation, with its answer, under a number of the reader's. */
  takeInvocation(number: number): Operation {
    const at = this.#next * RECORD_WORDS;
    const first = this.#word(at + FIRST);
    const kind = KINDS[this.#word(at + OPCODE)];
    if (kind === undefined) throw new RangeError('history: an extent without an operation');
    const last = first + this.#word(at + PAGES) - 1;
    const operation = new Operation(kind, number, this.#word(at + AGENT), first, last, this.#word(at + INVOKED));
    const responded = this.#word(at + RESPONDED);
    if (responded !== 0) {
      operation.respondedAt = responded;
      operation.rc = this.#word(at + RESULT);
      if (kind === 'unmap') operation.answeredPages = this.#word(at + VALUE);
      else operation.frame = this.#word(at + VALUE);
    }
    this.#next++;
    if (this.#isExtent()) operation.extents = this.#extents();
    this.#isOpen = true;
    this.#stamp = operation.respondedAt;
    return operation;
  }

  /** Takes the next event, a response. */
  takeResponse(): void {
    this.#isOpen = false;
    this.#peek();
  }

  #isExtent(): boolean {
    return this.#next < this.#records && this.#word(this.#next * RECORD_WORDS + OPCODE) === EXTENT;
  }

  #extents(): readonly Extent[] {
    const extents: Extent[] = [];
    for (; this.#isExtent(); this.#next++) {
      const at = this.#next * RECORD_WORDS;
      const first = this.#word(at + FIRST);
      extents.push({ first, last: first + this.#word(at + PAGES) - 1, frame: this.#word(at + VALUE) });
    }
    return extents;
  }

  #peek(): void {
    this.#stamp = this.#next < this.#records ? this.#word(this.#next * RECORD_WORDS + INVOKED) : Infinity;
  }

  #word(at: number): number {
    return this.#words[at] ?? 0;
  }
}
