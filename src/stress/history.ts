/**
 * The history of a run: what was done to which pages, between which two moments.
 *
 * Every thread writes fixed-size records into a buffer of its own; main reads them while all threads stand still, and empties the
 * buffers. A record is begun before the thing it is about and ended after it: a thread that dies leaves it pending, which says
 * that it may or may not have happened. Stamps come from one counter of the arena: when the response of one record is
 * smaller than the invocation of another, the first was over before the second began. Nothing is allocated while recording.
 *
 * Two levels: what a client asked of the address space (MAP, COPY, UNMAP), and what that did to the translations
 * (ENTER, LEAVE: one for each physical run and area, exact to the page). DMA and dirty reads are of the second level.
 *
 * Words of a record: operation, first IOVA page (-1: wherever the kernel finds room; until it has), pages, first physical page (-1:
 * not one run; of a COPY the first IOVA page of its source), result, invocation, response, extra.
 */
import { invariant } from '../runtime/task.js';

export const OP = {
  /** Extra of a MAP and of a COPY: the {@link ACCESS} that was asked for. */
  MAP: 1,
  COPY: 2,
  /** Result: pages unmapped, or -errno. */
  UNMAP: 3,
  /** Pages became translated to a run of physical pages; extra: {@link ACCESS} they were to be given. */
  ENTER: 4,
  /** Pages are not translated any more; result: how many were. */
  LEAVE: 5,
  /** Descriptors are gone, TLBs may still have them until this thread's next FLUSH. */
  LEAVE_DEFERRED: 6,
  FLUSH: 7,
  /** A DMA of one page; result: one of {@link DMA}; extra of a write: the tag it left in memory. */
  DMA_READ: 8,
  DMA_WRITE: 9,
  /** Dirty state read and cleared, IOTLB synced; its reports follow. */
  READ_DIRTY: 10,
  /** Pages that the READ_DIRTY before it, of the same thread, reported. */
  DIRTY: 11,
} as const;

/** What a translation lets devices do; bits. */
export const ACCESS = { read: 1, write: 2 } as const;

/** How a DMA ended. */
export const DMA = {
  done: 0,
  /** No translation; no permission. */
  translation: 1,
  permission: 2,
  /** It reached a page that nobody pins. */
  unpinned: 3,
  /** Any other fault. */
  other: 4,
  /** Its walk read a table that had been given back. */
  freed: 5,
} as const;

/** The response stamp of what was never ended. */
export const PENDING = 0x7fffffff;

const RECORD_WORDS = 8;
/** Word 0 of a buffer counts its records. */
const HEADER_WORDS = 8;
/** Room that must be left when a client begins an operation, or a device a DMA. */
const RESERVE = 4096;

/** Bytes of a buffer for so many records. */
export function historyBytes(records: number): number {
  return (HEADER_WORDS + records * RECORD_WORDS) * 4;
}

/** Goes through the records of a buffer; the properties are those of the record it is at. */
export class HistoryCursor {
  readonly thread: number;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #end: number;
  #at = HEADER_WORDS - RECORD_WORDS;

  constructor(thread: number, words: Int32Array<SharedArrayBuffer>) {
    this.thread = thread;
    this.#words = words;
    this.#end = HEADER_WORDS + Atomics.load(words, 0) * RECORD_WORDS;
  }

  /** Goes to the next record; false when there is none. */
  next(): boolean {
    this.#at += RECORD_WORDS;
    return this.#at < this.#end;
  }

  get op(): number {
    return this.#words[this.#at] ?? 0;
  }

  get page(): number {
    return this.#words[this.#at + 1] ?? 0;
  }

  get pages(): number {
    return this.#words[this.#at + 2] ?? 0;
  }

  get frame(): number {
    return this.#words[this.#at + 3] ?? 0;
  }

  get result(): number {
    return this.#words[this.#at + 4] ?? 0;
  }

  get invoked(): number {
    return this.#words[this.#at + 5] ?? 0;
  }

  get responded(): number {
    return this.#words[this.#at + 6] ?? 0;
  }

  get extra(): number {
    return this.#words[this.#at + 7] ?? 0;
  }
}

/** The buffer of one thread. */
export class History {
  readonly thread: number;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #capacity: number;
  readonly #clock: Int32Array<SharedArrayBuffer>;
  readonly #stamp: number;

  /** `stamp`: index in `clock` of the counter that all threads share. */
  constructor(thread: number, buffer: SharedArrayBuffer, clock: Int32Array<SharedArrayBuffer>, stamp: number) {
    this.thread = thread;
    this.#words = new Int32Array(buffer);
    this.#capacity = Math.floor((this.#words.length - HEADER_WORDS) / RECORD_WORDS);
    this.#clock = clock;
    this.#stamp = stamp;
  }

  get length(): number {
    return Atomics.load(this.#words, 0);
  }

  /** Whether the next operation might not fit. */
  get isNearlyFull(): boolean {
    return (this.#words[0] ?? 0) + RESERVE > this.#capacity;
  }

  /** The moment now. */
  now(): number {
    return Atomics.add(this.#clock, this.#stamp, 1);
  }

  /** Begins a record: its number, for {@link end}. */
  begin(op: number, page: number, pages: number, frame = -1, extra = 0): number {
    return this.#append(op, page, pages, frame, 0, this.now(), PENDING, extra);
  }

  /** Ends a record. */
  end(number: number, result: number): void {
    const at = HEADER_WORDS + number * RECORD_WORDS;
    this.#words[at + 4] = result;
    Atomics.store(this.#words, at + 6, this.now());
  }

  /** Ends a record of which the place was not known when it began. */
  endAt(number: number, result: number, page: number): void {
    this.#words[HEADER_WORDS + number * RECORD_WORDS + 1] = page;
    this.end(number, result);
  }

  /** A DMA that is over. */
  dma(op: number, page: number, frame: number, result: number, invoked: number, tag: number): void {
    this.#append(op, page, 1, frame, result, invoked, this.now(), tag);
  }

  /** Pages that a READ_DIRTY reported. */
  dirty(page: number, pages: number): void {
    this.#append(OP.DIRTY, page, pages, -1, 0, 0, 0, 0);
  }

  /** A cursor before the first record. Only while the thread stands still. */
  read(): HistoryCursor {
    return new HistoryCursor(this.thread, this.#words);
  }

  /** Empties the buffer. Only while the thread stands still. */
  reset(): void {
    Atomics.store(this.#words, 0, 0);
  }

  #append(
    op: number,
    page: number,
    pages: number,
    frame: number,
    result: number,
    invoked: number,
    responded: number,
    extra: number,
  ): number {
    const words = this.#words;
    const number = words[0] ?? 0;
    invariant(number < this.#capacity, `history of thread ${this.thread} is full`);
    const at = HEADER_WORDS + number * RECORD_WORDS;
    words[at] = op;
    words[at + 1] = page;
    words[at + 2] = pages;
    words[at + 3] = frame;
    words[at + 4] = result;
    words[at + 5] = invoked;
    words[at + 6] = responded;
    words[at + 7] = extra;
    Atomics.store(words, 0, number + 1);
    return number;
  }
}
