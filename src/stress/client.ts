/**
 * A client: a thread that maps, unmaps, copies and reads dirty state as fast as the kernel lets it.
 *
 * What it does comes from its seeded stream; what that meets is up to the other threads. The windows are shared, so maps run
 * into other threads' areas (EEXIST), unmaps into areas that somebody is mapping or unmapping (EBUSY), into parts of areas
 * (ENOENT) and into nothing. Clients tell each other what they mapped on a *board* in the arena, and unmap what they find
 * there, whoever mapped it. Bursts fill and empty one table of the last level from several threads at once.
 *
 * An operation is noted in the thread's block while it is under way, so that its death in the middle can be told.
 */
import { PAGE_BYTES, PAGE_SIZE } from '../kernel/iommufd/pages.js';
import { RandomStream } from '../runtime/random.js';
import { AddressSpace, type Buffer } from './address-space.js';
import { ACCESS, OP } from './history.js';
import { BLOCK, BOARD_SLOTS } from './spec.js';
import type { StressThread } from './thread.js';
import { BLOCK_PAGES, blockWindow, pickWindow, type IovaWindow } from './windows.js';

/** Pages of a map, by how often. */
const SIZES: readonly { readonly weight: number; readonly most: number }[] = [
  { weight: 10, most: 1 },
  { weight: 12, most: 16 },
  { weight: 5, most: 128 },
  { weight: 2, most: 700 },
];
/** Largest range that is unmapped or read without knowing what is there. */
const MAX_BLIND_PAGES = 600;
/** Larger maps take contiguous memory only: a pages record has room for so many runs. */
const MOST_RUNS = 32;
/** First page of what is to be mapped wherever there is room. */
const ANYWHERE = -1;
const BURST = 6;
/** How often a free slot of the board is looked for before a taken one is overwritten. */
const BOARD_TRIES = 6;

type Action = 'map' | 'block' | 'auto' | 'unmap-known' | 'unmap-blind' | 'copy' | 'dirty' | 'burst';

/** What a client does next, by how often. */
const ACTIONS: readonly { readonly weight: number; readonly action: Action }[] = [
  { weight: 30, action: 'map' },
  { weight: 9, action: 'block' },
  { weight: 8, action: 'auto' },
  { weight: 34, action: 'unmap-known' },
  { weight: 5, action: 'unmap-blind' },
  { weight: 6, action: 'copy' },
  { weight: 8, action: 'dirty' },
  { weight: 4, action: 'burst' },
];

function weighted<T extends { readonly weight: number }>(random: RandomStream, items: readonly T[]): T {
  let left = random.below(items.reduce((sum, { weight }) => sum + weight, 0));
  for (const item of items) {
    left -= item.weight;
    if (left < 0) return item;
  }
  throw new RangeError('no items');
}

/** What a MAP or COPY asks for besides its place: the page it is a copy of (-1: none), and bits of ACCESS. */
interface Asked {
  readonly source: number;
  readonly access: number;
}

function asked(write: boolean, source = -1): Asked {
  return { source, access: ACCESS.read | (write ? ACCESS.write : 0) };
}

/** One client. */
export class Client {
  readonly space: AddressSpace;
  readonly #thread: StressThread;
  readonly #random: RandomStream;
  readonly #board: Int32Array<SharedArrayBuffer>;
  /** Pushed off the board, to be unmapped next. */
  readonly #evicted: [page: number, pages: number][] = [];
  #operations = 0;

  constructor(thread: StressThread) {
    this.#thread = thread;
    this.space = new AddressSpace(thread);
    this.#random = new RandomStream(thread.options.seed, `stress/client/${thread.number - 2}`);
    this.#board = thread.board;
    this.space.attach();
  }

  /** Works until it is told to stop, or has done what it was to do. */
  run(): void {
    const thread = this.#thread;
    while (!thread.isStopping && this.#operations < thread.options.operations) {
      if (thread.history.isNearlyFull) thread.pauseAll();
      if (thread.isPausing) {
        thread.run(this.space.iopt.flush_unmapped());
        thread.park();
      } else if (thread.options.workload === 'pairs') this.#pair();
      else this.#act();
    }
    thread.run(this.space.iopt.flush_unmapped());
  }

  #act(): void {
    const random = this.#random;
    const evicted = this.#evicted.pop();
    if (evicted !== undefined) {
      this.#unmap(...evicted);
      return;
    }
    const window = pickWindow(random, this.#thread.number);
    const pages = random.between(1, weighted(random, SIZES).most);
    const blind = random.between(1, MAX_BLIND_PAGES);
    switch (weighted(random, ACTIONS).action) {
      case 'map':
        this.#map(window.first + random.below(window.pages - pages), pages);
        break;
      case 'block':
        this.#mapBlock(random.chance(3, 4) ? blockWindow() : window);
        break;
      case 'auto':
        this.#map(undefined, pages);
        break;
      case 'unmap-known':
        this.#withKnown((page, known) => this.#unmap(page, known), true);
        break;
      case 'unmap-blind':
        this.#unmap(window.first + random.below(window.pages - blind), blind);
        break;
      case 'copy':
        this.#withKnown((page, known) => this.#copy(page, known, window));
        break;
      case 'dirty':
        this.#withKnown((page, known) => this.#readDirty(page, known));
        break;
      case 'burst':
        this.#burst(window);
        break;
    }
  }

  /** Map and unmap one page of a window of its own: what locks cost, and nothing else. */
  #pair(): void {
    const page = (64 + this.#thread.number) * 2 ** 18 + (this.#operations % BLOCK_PAGES);
    const buffer = this.#buffer(1);
    this.space.map(buffer, this.#operations % buffer.pages, 1, BigInt(page) * PAGE_SIZE, true);
    this.space.unmap(BigInt(page) * PAGE_SIZE, BigInt(page + 1) * PAGE_SIZE - 1n);
    this.#operations++;
    this.#thread.count();
    this.#thread.history.reset();
  }

  #buffer(pages: number): Buffer {
    const fitting = this.space.buffers.filter(
      (buffer) => buffer.pages >= pages && (pages <= MOST_RUNS || buffer.pages > 256),
    );
    const [first] = fitting;
    return first === undefined || this.#random.chance(1, 4) ? this.#random.pick(fitting) : first;
  }

  /** Maps some pages; whether that worked. */
  #map(page: number | undefined, pages: number, from = this.#buffer(pages), firstPage?: number): boolean {
    const at = firstPage ?? this.#random.below(from.pages - pages + 1);
    const write = this.#random.chance(3, 4);
    let mapped: bigint | number = 0;
    this.#operation(OP.MAP, page ?? ANYWHERE, pages, asked(write), (record) => {
      const iova = page === undefined ? undefined : BigInt(page) * PAGE_SIZE;
      mapped = this.space.map(from, at, pages, iova, write);
      this.#mapped(record, pages, mapped);
    });
    return typeof mapped === 'bigint';
  }

  /**
   * Whole 2 MiB regions. Aligned in memory as well the table gets a block, where an empty table may be in the way; else a table
   * of its own, which is taken out when it goes. Where there is no room, room is made.
   */
  #mapBlock(window: IovaWindow): void {
    const random = this.#random;
    const first = Math.ceil(window.first / BLOCK_PAGES);
    const blocks = random.between(1, 2);
    const page = (first + random.below(window.pages / BLOCK_PAGES - blocks)) * BLOCK_PAGES;
    const buffer = this.#buffer(blocks * BLOCK_PAGES);
    const at = random.below(buffer.pages / BLOCK_PAGES - blocks) * BLOCK_PAGES;
    const memoryPage = random.chance(1, 3) ? at : at + random.below(BLOCK_PAGES);
    if (!this.#map(page, blocks * BLOCK_PAGES, buffer, memoryPage)) this.#unmap(page, blocks * BLOCK_PAGES);
  }

  #unmap(page: number, pages: number): void {
    this.#operation(OP.UNMAP, page, pages, { source: -1, access: 0 }, (record) => {
      const { rc, pages: unmapped } = this.space.unmap(BigInt(page) * PAGE_SIZE, BigInt(page + pages) * PAGE_SIZE - 1n);
      this.#thread.history.end(record, rc < 0 ? rc : unmapped);
    });
  }

  #copy(from: number, pages: number, window: IovaWindow): void {
    const random = this.#random;
    const skipped = random.below(pages);
    const length = Math.min(window.pages - 1, random.between(1, pages - skipped));
    const page = random.chance(1, 4) ? undefined : window.first + random.below(window.pages - length);
    const source = from + skipped;
    const write = random.chance(3, 4);
    this.#operation(OP.COPY, page ?? ANYWHERE, length, asked(write, source), (record) => {
      const iova = page === undefined ? undefined : BigInt(page) * PAGE_SIZE;
      this.#mapped(record, length, this.space.copy(BigInt(source) * PAGE_SIZE, length, iova, write));
    });
  }

  #readDirty(page: number, pages: number): void {
    this.#begin(OP.READ_DIRTY, page, pages);
    this.space.readDirty(BigInt(page) * PAGE_SIZE, BigInt(page + pages) * PAGE_SIZE - 1n);
    this.#done();
  }

  /** Single pages of one 2 MiB table, mapped, then unmapped. */
  #burst(window: IovaWindow): void {
    const pages = Array.from({ length: BURST }, () => window.first + this.#random.below(BLOCK_PAGES));
    for (const page of pages) this.#map(page, 1);
    for (const page of pages) this.#unmap(page, 1);
  }

  // --- what an operation leaves behind ---

  #operation(op: number, page: number, pages: number, asked: Asked, body: (record: number) => void): void {
    this.#begin(op, Math.max(0, page), pages);
    body(this.#thread.history.begin(op, page, pages, asked.source, asked.access));
    this.#done();
  }

  #begin(op: number, page: number, pages: number): void {
    this.#thread.note(BLOCK.firstPage, page);
    this.#thread.note(BLOCK.pages, pages);
    this.#thread.note(BLOCK.gate, 0);
    this.#thread.note(BLOCK.operation, op);
  }

  #done(): void {
    this.#thread.note(BLOCK.operation, 0);
    this.#operations++;
    this.#thread.count();
  }

  #mapped(record: number, pages: number, iova: bigint | number): void {
    if (typeof iova === 'number') {
      this.#thread.history.end(record, iova);
      return;
    }
    const page = Number(iova) / PAGE_BYTES;
    this.#thread.history.endAt(record, 0, page);
    this.#publish(page, pages);
  }

  /** Writes on the board what is mapped. Where that is full, what stood there has to go, or nobody would ever unmap it. */
  #publish(page: number, pages: number): void {
    let slot = 0;
    for (let tries = 0; tries < BOARD_TRIES; tries++) {
      slot = this.#random.below(BOARD_SLOTS) * 2;
      if (Atomics.load(this.#board, slot + 1) === 0) break;
    }
    const beforePages = Atomics.exchange(this.#board, slot + 1, 0);
    const before = Atomics.exchange(this.#board, slot, page);
    Atomics.store(this.#board, slot + 1, pages);
    if (beforePages > 0) this.#evicted.push([before, beforePages]);
  }

  /** Does something to pages that somebody mapped and that may be mapped still; `takes` them from the board. */
  #withKnown(act: (page: number, pages: number) => void, takes = false): void {
    const slot = this.#random.below(BOARD_SLOTS) * 2;
    const page = Atomics.load(this.#board, slot);
    const pages = takes ? Atomics.exchange(this.#board, slot + 1, 0) : Atomics.load(this.#board, slot + 1);
    if (pages > 0) act(page, pages);
  }
}
