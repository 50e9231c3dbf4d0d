/**
 * A correct concurrent address space, as slow and plain as possible, that writes down what its clients saw.
 *
 * Calls and accesses are generators; a seeded stream says which goes on. Every view sees a page come and go at an instant of
 * its own. Every MAP has frames nobody else has, so that a frame names its MAP; an UNMAP's extents keep the frames that went.
 */
import type { RandomStream } from '../../src/runtime/random.js';
import { FAULT, UNANSWERED, type Extent } from '../../src/checks/operation.js';
import { EBUSY, EEXIST, ENOENT, ENOMEM } from '../../src/uapi/errno.js';
import type { Told } from './told.js';

export interface SimulationOptions {
  readonly threads: number;
  readonly views: number;
  readonly pages: number;
  readonly operations: number;
  /** One in so many calls never returns; 0 for none. */
  readonly killOneIn?: number;
  /** Whether views 1.. are attached and detached; view 0 always stays. */
  readonly movesViews?: boolean;
}

type Draft = { -readonly [Field in keyof Told]: Told[Field] };
type Steps = Generator<undefined, void, void>;

interface Area extends Extent {
  isBusy: boolean;
}

class Simulation {
  readonly history: Draft[] = [];
  readonly #random: RandomStream;
  readonly #options: SimulationOptions;
  readonly #areas: Area[] = [];
  readonly #visible: Map<number, number>[];
  readonly #views: ('attached' | 'changing' | 'detached')[];
  #clock = 0;
  #nextFrame = 0x1000;

  constructor(random: RandomStream, options: SimulationOptions) {
    this.#random = random;
    this.#options = options;
    this.#visible = Array.from({ length: options.views }, () => new Map<number, number>());
    this.#views = Array.from({ length: options.views }, () => 'attached');
  }

  /** Lets everybody work until enough has begun. A slot is a thread or a view. */
  run(): void {
    const { threads, views, operations } = this.#options;
    const running: (Steps | undefined)[] = Array.from({ length: threads + views }, () => undefined);
    for (;;) {
      const isOver = this.history.length >= operations;
      const choices = [...running.keys()].filter((slot) => !isOver || running[slot] !== undefined);
      if (choices.length === 0) return;
      const slot = this.#random.pick(choices);
      running[slot] ??= slot < threads ? this.#call(slot) : this.#device(slot - threads);
      if (running[slot].next().done === true) running[slot] = undefined;
    }
  }

  #call(thread: number): Steps {
    return this.#random.chance(1, 2) ? this.#map(thread) : this.#unmap(thread);
  }

  #device(view: number): Steps {
    if (view > 0 && this.#options.movesViews === true && this.#random.chance(1, 8)) return this.#move(view);
    return this.#access(view);
  }

  #begin(fields: Pick<Told, 'kind' | 'agent' | 'first' | 'last'>): Draft {
    const told = { ...fields, begin: this.#clock++, end: Infinity, rc: UNANSWERED };
    const draft: Draft = { ...told, extents: [], answeredPages: 0, frame: FAULT };
    this.history.push(draft);
    return draft;
  }

  #end(draft: Draft, rc: number): void {
    draft.rc = rc;
    draft.end = this.#clock++;
  }

  #isKilled(): boolean {
    const oneIn = this.#options.killOneIn ?? 0;
    return oneIn > 0 && this.#random.chance(1, oneIn);
  }

  #range(): { first: number; last: number } {
    const first = this.#random.below(this.#options.pages);
    return { first, last: Math.min(this.#options.pages - 1, first + this.#random.below(4)) };
  }

  #shuffled<T>(items: readonly T[]): T[] {
    return items
      .map((item) => ({ item, key: this.#random.below(1 << 30) }))
      .sort((a, b) => a.key - b.key)
      .map(({ item }) => item);
  }

  /** Every page of an area for every view, in any order. */
  #places(area: Extent): { page: number; visible: Map<number, number> }[] {
    const pages = Array.from({ length: area.last - area.first + 1 }, (_, n) => area.first + n);
    return this.#shuffled(pages.flatMap((page) => this.#visible.map((visible) => ({ page, visible }))));
  }

  *#map(thread: number): Steps {
    const range = this.#range();
    const frame = this.#nextFrame;
    this.#nextFrame += 16;
    const draft = this.#begin({ kind: 'map', agent: thread, ...range });
    draft.extents = [{ ...range, frame }];
    yield;
    if (this.#areas.some((area) => area.first <= range.last && range.first <= area.last)) {
      yield;
      this.#end(draft, -EEXIST);
      return;
    }
    const area: Area = { ...range, frame, isBusy: true };
    this.#areas.push(area);
    const fails = this.#random.chance(1, 5);
    const places = this.#places(area);
    const shown = fails ? places.slice(0, this.#random.below(places.length + 1)) : places;
    for (const { page, visible } of shown) {
      visible.set(page, frame + page - range.first);
      if (this.#random.chance(1, 2)) yield;
      if (this.#isKilled()) return;
    }
    if (fails) {
      for (const { page, visible } of this.#shuffled(shown)) {
        visible.delete(page);
        if (this.#random.chance(1, 2)) yield;
      }
      this.#areas.splice(this.#areas.indexOf(area), 1);
    }
    area.isBusy = false;
    yield;
    this.#end(draft, fails ? -ENOMEM : 0);
  }

  *#unmap(thread: number): Steps {
    const draft = this.#begin({ kind: 'unmap', agent: thread, ...this.#range() });
    let from = draft.first;
    for (;;) {
      yield;
      const inRange = this.#areas.filter((area) => area.last >= from && area.first <= draft.last);
      const area = inRange.sort((a, b) => a.first - b.first)[0];
      if (area === undefined) break;
      if (area.isBusy) {
        this.#end(draft, -EBUSY);
        return;
      }
      if (area.first < from || area.last > draft.last) {
        this.#end(draft, -ENOENT);
        return;
      }
      area.isBusy = true;
      if (this.#isKilled()) return;
      for (const { page, visible } of this.#places(area)) {
        if (this.#random.chance(1, 2)) yield;
        visible.delete(page);
      }
      this.#areas.splice(this.#areas.indexOf(area), 1);
      draft.extents = [...draft.extents, { first: area.first, last: area.last, frame: area.frame }];
      draft.answeredPages += area.last - area.first + 1;
      from = area.last + 1;
    }
    yield;
    this.#end(draft, draft.answeredPages === 0 ? -ENOENT : 0);
  }

  *#access(view: number): Steps {
    const page = this.#random.below(this.#options.pages);
    const draft = this.#begin({ kind: 'translate', agent: view, first: page, last: page });
    for (let steps = this.#random.below(4); steps > 0; steps--) yield;
    const state = this.#views[view];
    const sees = state === 'attached' || (state === 'changing' && this.#random.chance(1, 2));
    draft.frame = (sees ? this.#visible[view]?.get(page) : undefined) ?? FAULT;
    for (let steps = this.#random.below(4); steps > 0; steps--) yield;
    this.#end(draft, 0);
  }

  *#move(view: number): Steps {
    const isAttached = this.#views[view] === 'attached';
    const draft = this.#begin({ kind: isAttached ? 'detach' : 'attach', agent: view, first: 0, last: 0 });
    this.#views[view] = 'changing';
    for (let steps = this.#random.below(4); steps > 0; steps--) yield;
    const fails = !isAttached && this.#random.chance(1, 4);
    this.#views[view] = isAttached || fails ? 'detached' : 'attached';
    this.#end(draft, fails ? -ENOMEM : 0);
  }
}

/** A history that is right. */
export function simulate(random: RandomStream, options: SimulationOptions): Told[] {
  const simulation = new Simulation(random, options);
  simulation.run();
  return simulation.history;
}
