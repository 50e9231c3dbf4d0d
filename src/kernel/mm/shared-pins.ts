/**
 * Pins of a run of physical pages as one word a page in the arena: what free-running threads count in, and devices can see.
 *
 * Every change is one atomic addition, so threads pin and unpin the same pages at once. Pages outside the run cannot be
 * pinned here.
 */
import type { Arena } from '../../core/arena.js';
import { invariant } from '../../runtime/task.js';
import type { PageExtent, PinCounts } from './page-allocator.js';

/** Pin counts in the arena, zero at first. */
export class SharedPins implements PinCounts {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #first: number;
  readonly #run: PageExtent;

  /** `offset`: byte offset of one 32-bit word for each page of `run`. */
  constructor(arena: Arena, offset: number, run: PageExtent) {
    this.#words = arena.words;
    this.#first = offset >>> 2;
    this.#run = run;
  }

  get pages(): number {
    let sum = 0;
    for (let i = 0; i < this.#run.pages; i++) sum += Atomics.load(this.#words, this.#first + i);
    return sum;
  }

  add({ pfn, pages }: PageExtent, times: 1 | -1): void {
    const at = this.#wordOf(pfn);
    invariant(pfn + pages <= this.#run.pfn + this.#run.pages, () => `pin of page ${pfn + pages - 1}: not shared`);
    for (let i = 0; i < pages; i++) {
      const before = Atomics.add(this.#words, at + i, times);
      invariant(before + times >= 0, () => `unpin of page ${pfn + i} that is not pinned`);
    }
  }

  count(pfn: number): number {
    return Atomics.load(this.#words, this.#wordOf(pfn));
  }

  uniformPieces({ pfn, pages }: PageExtent): PageExtent[] {
    const pieces: PageExtent[] = [];
    for (let at = pfn; at < pfn + pages; at++) {
      const before = pieces.at(-1);
      if (before === undefined || this.count(before.pfn) !== this.count(at)) pieces.push({ pfn: at, pages: 1 });
      else pieces[pieces.length - 1] = { pfn: before.pfn, pages: before.pages + 1 };
    }
    return pieces;
  }

  #wordOf(pfn: number): number {
    const index = pfn - this.#run.pfn;
    invariant(index >= 0 && index < this.#run.pages, () => `pin of page ${pfn}: not shared`);
    return this.#first + index;
  }
}
