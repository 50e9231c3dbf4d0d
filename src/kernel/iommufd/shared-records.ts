/**
 * Areas and pages objects as records in the arena: what free-running threads share, where the deterministic engine has objects.
 *
 * An {@link IoptArea} or {@link IoptPages} of this file is a view of a record; every thread makes its own views, as often as it likes. What never changes about an
 * area is copied into the view, so a view outlives its record (UNMAP asks an area for its end after it was freed). Fields
 * are written plainly: the locks of the address space order them, as they order the heap's in a kernel. References and
 * counters of pages are atomic: they change without a lock.
 *
 * An area that is hidden (mapped or unmapped right now) still says which pages it belongs to and which thread hides it: nobody but
 * a supervisor asks, after that thread has died.
 *
 * Ownership: an area's record belongs to its tree from `insert` to `remove`; a pages record to its references.
 */
import type { Arena } from '../../core/arena.js';
import { LOCK_BYTES, RobustMutex, type LockThread } from '../../core/robust-lock.js';
import { RecordPool, type PoolHandle } from '../../core/record-pool.js';
import { invariant } from '../../runtime/task.js';
import type { PinnedRun } from '../mm/mm.js';
import { IoptArea, type AreaStore } from './area.js';
import type { PageCounter } from './page-source.js';
import { IoptPages, type Extent, type PageSource, type PagesState, type PinAccount } from './pages.js';

/** Words of an area's record. 64-bit fields take two. */
const AREA = {
  prot: 1,
  iova: 2,
  last: 4,
  startByte: 6,
  pages: 8,
  hiddenBy: 9,
  filled: 10,
  prevent: 11,
  accesses: 12,
  locks: 13,
} as const;
const AREA_BYTES = 64;

/** Words of a pages object's record; its mutex and its extents follow. */
const PAGES = { references: 1, npinned: 2, charged: 3, writable: 4, startByte: 6, lengthBytes: 8 } as const;
const PAGES_BYTES = 1024;
const HEADER_BYTES = 64;
const EXTENTS = (HEADER_BYTES + LOCK_BYTES) / 4;
const EXTENT_WORDS = PAGES_BYTES / 4 - EXTENTS - 1;

/** Where a thread finds the records; structured-cloneable. */
export interface SharedRecordsHandle {
  readonly areas: PoolHandle;
  readonly pages: PoolHandle;
}

/** What pages are made of besides their record: this thread's way to the memory, and who pays. */
export interface PagesOrigin {
  source(startByte: bigint): PageSource;
  readonly account: PinAccount;
}

/** A counter of pages in the arena that all threads charge. */
export class SharedPageCounter implements PageCounter {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #at: number;

  constructor(arena: Arena, offset: number) {
    this.#words = arena.words;
    this.#at = offset >>> 2;
  }

  get value(): number {
    return Atomics.load(this.#words, this.#at);
  }

  add(pages: number, limit: number): boolean {
    for (;;) {
      const seen = this.value;
      if (seen + pages > limit) return false;
      if (Atomics.compareExchange(this.#words, this.#at, seen, seen + pages) === seen) return true;
    }
  }

  subtract(pages: number): void {
    const before = Atomics.sub(this.#words, this.#at, pages);
    invariant(before >= pages, () => `${pages} pages uncharged of ${before}`);
  }
}

/** The state of a pages object in its record. */
class SharedPagesState implements PagesState {
  readonly number: number;
  readonly isShared = true;
  readonly mutex: RobustMutex;
  readonly #pool: RecordPool;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #at: number;

  constructor(pool: RecordPool, number: number, thread: LockThread) {
    this.number = number;
    this.#pool = pool;
    this.#words = thread.words;
    this.#at = pool.wordOf(number);
    this.mutex = new RobustMutex(thread, this.#at * 4 + HEADER_BYTES, 'iopt:pages_mutex');
  }

  get npinned(): number {
    return this.#words[this.#at + PAGES.npinned] ?? 0;
  }

  set npinned(pages: number) {
    this.#words[this.#at + PAGES.npinned] = pages;
  }

  get charged(): number {
    return this.#words[this.#at + PAGES.charged] ?? 0;
  }

  set charged(pages: number) {
    this.#words[this.#at + PAGES.charged] = pages;
  }

  get extents(): readonly Extent[] {
    const words = this.#words;
    const extents: Extent[] = [];
    let at = this.#at + EXTENTS;
    const next = (): number => words[at++] ?? 0;
    for (let left = next(); left > 0; left--) {
      const [first, last, users] = [next(), next(), next()];
      const runs: PinnedRun[] = [];
      for (let run = next(); run > 0; run--) runs.push({ pfn: next(), pages: next() });
      extents.push({ first, last, users, runs });
    }
    return extents;
  }

  set extents(extents: readonly Extent[]) {
    invariant(this.hasRoomFor(extents), 'iopt_pages: too many extents for a record');
    const words = this.#words;
    let at = this.#at + EXTENTS;
    words[at++] = extents.length;
    for (const { first, last, users, runs } of extents) {
      for (const value of [first, last, users, runs.length]) words[at++] = value;
      for (const { pfn, pages } of runs) {
        words[at++] = pfn;
        words[at++] = pages;
      }
    }
  }

  hasRoomFor(extents: readonly Extent[]): boolean {
    return extents.reduce((sum, { runs }) => sum + 4 + 2 * runs.length, 0) <= EXTENT_WORDS;
  }

  refer(change: 1 | -1): number {
    return Atomics.add(this.#words, this.#at + PAGES.references, change) + change;
  }

  free(): void {
    this.#pool.free(this.number);
  }
}

function numberOf({ state }: IoptPages): number {
  invariant(state instanceof SharedPagesState, 'area: pages that are not shared');
  return state.number;
}

/** An area in its record. */
class SharedArea extends IoptArea {
  readonly #records: SharedRecords;
  readonly #at: number;

  constructor(
    records: SharedRecords,
    slot: number,
    iova: bigint,
    lengthBytes: bigint,
    startByte: bigint,
    prot: number,
  ) {
    super(slot, iova, lengthBytes, startByte, prot);
    this.#records = records;
    this.#at = records.areaWord(slot);
  }

  override get pages(): IoptPages | undefined {
    return this.#get(AREA.hiddenBy) === 0 ? this.#records.pagesAt(this.#get(AREA.pages)) : undefined;
  }

  override set pages(pages: IoptPages | undefined) {
    if (pages === undefined) this.#set(AREA.hiddenBy, this.#records.thread.number);
    else {
      this.#set(AREA.pages, numberOf(pages));
      this.#set(AREA.hiddenBy, 0);
    }
  }

  override get isFilled(): boolean {
    return this.#get(AREA.filled) !== 0;
  }

  override set isFilled(isFilled: boolean) {
    this.#set(AREA.filled, isFilled ? 1 : 0);
  }

  override get preventAccess(): boolean {
    return this.#get(AREA.prevent) !== 0;
  }

  override set preventAccess(prevent: boolean) {
    this.#set(AREA.prevent, prevent ? 1 : 0);
  }

  override get numAccesses(): number {
    return this.#get(AREA.accesses);
  }

  override set numAccesses(count: number) {
    this.#set(AREA.accesses, count);
  }

  override get numLocks(): number {
    return this.#get(AREA.locks);
  }

  override set numLocks(count: number) {
    this.#set(AREA.locks, count);
  }

  #get(field: number): number {
    return this.#records.thread.words[this.#at + field] ?? 0;
  }

  #set(field: number, value: number): void {
    this.#records.thread.words[this.#at + field] = value;
  }
}

/** An area as a supervisor sees it: hidden ones, too. */
export interface AreaRecord {
  readonly slot: number;
  readonly iova: bigint;
  readonly last: bigint;
  /** The thread that is mapping or unmapping it; 0 for an area that can be used. */
  readonly hiddenBy: number;
  /** Number of the pages object it shows or is to show. */
  readonly pages: number;
  readonly isFilled: boolean;
}

/** The areas and pages objects of an address space that threads share, as one of them sees them. */
export class SharedRecords implements AreaStore {
  readonly thread: LockThread;
  readonly #longs: BigUint64Array<SharedArrayBuffer>;
  readonly #areas: RecordPool;
  readonly #pages: RecordPool;
  readonly #origin: PagesOrigin;

  private constructor(arena: Arena, areas: RecordPool, pages: RecordPool, thread: LockThread, origin: PagesOrigin) {
    this.thread = thread;
    this.#longs = arena.longs;
    this.#areas = areas;
    this.#pages = pages;
    this.#origin = origin;
  }

  /** Room for so many areas and as many pages objects; undefined when the arena has none. */
  static allocate(arena: Arena, records: number, thread: number): SharedRecordsHandle | undefined {
    const areas = RecordPool.create(arena, records, AREA_BYTES, thread);
    const pages = RecordPool.create(arena, records, PAGES_BYTES, thread);
    return areas && pages && { areas: areas.handle, pages: pages.handle };
  }

  static open(arena: Arena, handle: SharedRecordsHandle, thread: LockThread, origin: PagesOrigin): SharedRecords {
    const areas = RecordPool.open(arena, handle.areas, thread.number);
    const pages = RecordPool.open(arena, handle.pages, thread.number);
    return new SharedRecords(arena, areas, pages, thread, origin);
  }

  // --- areas ---

  make(iova: bigint, lengthBytes: bigint, startByte: bigint, prot: number, pages: IoptPages): IoptArea | undefined {
    const slot = this.#areas.claim(this.thread.number);
    if (slot === 0) return undefined;
    const at = this.areaWord(slot);
    this.thread.words.fill(0, at + 1, at + AREA_BYTES / 4);
    this.thread.words[at + AREA.prot] = prot;
    this.thread.words[at + AREA.hiddenBy] = this.thread.number;
    this.thread.words[at + AREA.pages] = numberOf(pages);
    this.#longs[(at + AREA.iova) >>> 1] = iova;
    this.#longs[(at + AREA.last) >>> 1] = iova + lengthBytes - 1n;
    this.#longs[(at + AREA.startByte) >>> 1] = startByte;
    return new SharedArea(this, slot, iova, lengthBytes, startByte, prot);
  }

  at(slot: number): IoptArea {
    const at = this.areaWord(slot);
    const long = (field: number): bigint => this.#longs[(at + field) >>> 1] ?? 0n;
    const iova = long(AREA.iova);
    const prot = this.thread.words[at + AREA.prot] ?? 0;
    return new SharedArea(this, slot, iova, long(AREA.last) - iova + 1n, long(AREA.startByte), prot);
  }

  free({ slot }: IoptArea): void {
    this.#areas.free(slot);
  }

  /** Word 0 of an area's record, in `arena.words`. */
  areaWord(slot: number): number {
    return this.#areas.wordOf(slot);
  }

  /** Every area there is. Only while no thread runs. */
  *areaRecords(): Generator<AreaRecord> {
    for (const slot of this.#areas.taken()) {
      const { iova, last } = this.at(slot);
      const word = (field: number): number => this.thread.words[this.areaWord(slot) + field] ?? 0;
      yield {
        slot,
        iova,
        last,
        hiddenBy: word(AREA.hiddenBy),
        pages: word(AREA.pages),
        isFilled: word(AREA.filled) !== 0,
      };
    }
  }

  // --- pages ---

  /** A pages object over `lengthBytes` bytes of memory from page `startByte` on; undefined when there is no room. */
  makePages(startByte: bigint, lengthBytes: bigint, writable: boolean): IoptPages | undefined {
    const number = this.#pages.claim(this.thread.number);
    if (number === 0) return undefined;
    const at = this.#pages.wordOf(number);
    const { words } = this.thread;
    words.fill(0, at + 1, at + EXTENTS + 1);
    words[at + PAGES.writable] = writable ? 1 : 0;
    this.#longs[(at + PAGES.startByte) >>> 1] = startByte;
    this.#longs[(at + PAGES.lengthBytes) >>> 1] = lengthBytes;
    Atomics.store(words, at + PAGES.references, 1);
    return this.pagesAt(number);
  }

  /** The pages object with this number. */
  pagesAt(number: number): IoptPages {
    const at = this.#pages.wordOf(number);
    const state = new SharedPagesState(this.#pages, number, this.thread);
    const long = (field: number): bigint => this.#longs[(at + field) >>> 1] ?? 0n;
    const source = this.#origin.source(long(PAGES.startByte));
    const writable = this.thread.words[at + PAGES.writable] !== 0;
    return new IoptPages(source, long(PAGES.lengthBytes), writable, this.#origin.account, undefined, state);
  }

  /** The pages an area shows or is to show, also while it is hidden. */
  pagesOf({ slot }: IoptArea): IoptPages {
    return this.pagesAt(this.thread.words[this.areaWord(slot) + AREA.pages] ?? 0);
  }

  /** Pages objects that somebody refers to. Only while no thread runs. */
  *allPages(): Generator<IoptPages> {
    for (const number of this.#pages.taken()) yield this.pagesAt(number);
  }

  /**
   * Dead threads took their references with them: pages objects are referred to by areas alone. Answers how many objects
   * nobody refers to, which are freed. Only while no thread is in the middle of an operation.
   */
  recountReferences(): number {
    const areas = new Map<number, number>();
    for (const { pages } of this.areaRecords()) areas.set(pages, (areas.get(pages) ?? 0) + 1);
    let freed = 0;
    for (const number of [...this.#pages.taken()]) {
      const references = areas.get(number) ?? 0;
      Atomics.store(this.thread.words, this.#pages.wordOf(number) + PAGES.references, references);
      if (references > 0) continue;
      invariant(this.pagesAt(number).npinned === 0, 'iopt_pages: nobody maps pages that are still pinned');
      this.#pages.free(number);
      freed++;
    }
    return freed;
  }

  /** The mutexes of all pages objects, for whoever has to look what a dead thread held. */
  *mutexes(): Generator<RobustMutex> {
    for (const number of this.#pages.taken()) yield new SharedPagesState(this.#pages, number, this.thread).mutex;
  }
}
