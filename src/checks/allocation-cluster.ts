/**
 * MAPs and UNMAPs that overlap in pages and in time, directly or through others, and the orders in which their answers are right.
 *
 * A configuration is a list of areas with whoever is at work on each, and how far every open operation is. Steps are: a MAP
 * takes its range; publishes it; gives it back (it failed); an UNMAP hides the lowest area left; frees it. What an answer
 * only witnesses (EEXIST, EBUSY, nothing left) changes nothing, so it is noted as soon as it is true.
 *
 * Areas that reach out of the cluster's pages are shared with others and never change while it lasts: only an UNMAP that
 * covers one whole could take it, and that would belong to the cluster.
 */
import { EBUSY, EEXIST } from '../uapi/errno.js';
import { UNANSWERED, isRefused, mayEndUnmap, mayPublish, mayWithdraw, nextTold, type Operation } from './operation.js';
import type { RangeIndex } from './range-index.js';
import { ConfigurationSet, mix, type Configuration, type Search } from './search.js';

/** Progress of a MAP: nothing yet; has taken its range, or has met what it was refused for. */
const WAITING = 0;
const TAKEN = 1;
/** Progress of an UNMAP that has nothing left to do; before that it is the page at which its search goes on. */
const ENDED = -1;

class Allocation implements Configuration<Allocation> {
  /** Ascending. */
  readonly areas: readonly Operation[];
  /** The open operation at work on each area: its MAP, until published, or the UNMAP that has hidden it. */
  readonly workers: readonly (Operation | undefined)[];
  /** One number for every open operation of the cluster. */
  readonly progress: readonly number[];
  #hash: number | undefined;

  constructor(areas: readonly Operation[], workers: readonly (Operation | undefined)[], progress: readonly number[]) {
    this.areas = areas;
    this.workers = workers;
    this.progress = progress;
  }

  /** Only large sets ask for it. */
  get hash(): number {
    if (this.#hash === undefined) {
      this.#hash = 0;
      for (const area of this.areas) this.#hash = mix(this.#hash, area.number);
      for (const worker of this.workers) this.#hash = mix(this.#hash, worker?.number ?? -1);
      for (const step of this.progress) this.#hash = mix(this.#hash, step);
    }
    return this.#hash;
  }

  equals(other: Allocation): boolean {
    return (
      isEqual(this.areas, other.areas) && isEqual(this.workers, other.workers) && isEqual(this.progress, other.progress)
    );
  }

  /** Position of the first area that ends at or behind `page`. */
  position(page: number): number {
    let position = 0;
    for (const area of this.areas) {
      if (area.last >= page) break;
      position++;
    }
    return position;
  }

  /** The same with another worker on an area, and perhaps other progress. */
  withWorker(position: number, worker: Operation | undefined, progress = this.progress): Allocation {
    return new Allocation(this.areas, this.workers.with(position, worker), progress);
  }

  without(position: number): Allocation {
    return new Allocation(this.areas.toSpliced(position, 1), this.workers.toSpliced(position, 1), this.progress);
  }

  withArea(area: Operation, worker: Operation | undefined, progress = this.progress): Allocation {
    const position = this.position(area.first);
    const areas = this.areas.toSpliced(position, 0, area);
    return new Allocation(areas, this.workers.toSpliced(position, 0, worker), progress);
  }

  withProgress(progress: readonly number[]): Allocation {
    return new Allocation(this.areas, this.workers, progress);
  }
}

function isEqual(a: readonly unknown[], b: readonly unknown[]): boolean {
  if (a === b) return true;
  if (a.length !== b.length) return false;
  for (let position = 0; position < a.length; position++) if (a[position] !== b[position]) return false;
  return true;
}

function distinct(allocations: Iterable<Allocation>): readonly Allocation[] {
  const set = new ConfigurationSet<Allocation>();
  for (const allocation of allocations) set.add(allocation);
  return set.items;
}

/** One cluster. Its pages first..last are the union of its operations' ranges. */
export class AllocationCluster {
  readonly #search: Search;
  #first: number;
  #last: number;
  readonly #open: Operation[] = [];
  /** The settled areas it started from. */
  readonly #origin = new Set<Operation>();
  #allocations: readonly Allocation[] = [new Allocation([], [], [])];
  #isAbandoned = false;

  /** `first`, `last`: the range of its first operation, which is to be added next. */
  constructor(search: Search, first: number, last: number) {
    this.#search = search;
    this.#first = first;
    this.#last = last;
  }

  get first(): number {
    return this.#first;
  }

  get last(): number {
    return this.#last;
  }

  has(operation: Operation): boolean {
    return this.#open.includes(operation);
  }

  /** One cluster of two, because an operation overlaps both. */
  static join(a: AllocationCluster, b: AllocationCluster): AllocationCluster {
    const joined = new AllocationCluster(a.#search, Math.min(a.first, b.first), Math.max(a.last, b.last));
    joined.#open.push(...a.#open, ...b.#open);
    for (const area of [...a.#origin, ...b.#origin]) joined.#origin.add(area);
    const isTooMuch = a.#allocations.length * b.#allocations.length > a.#search.budget;
    joined.#isAbandoned = a.#isAbandoned || b.#isAbandoned || isTooMuch;
    if (joined.#isAbandoned) return joined;
    joined.#allocations = a.#allocations.flatMap((left) =>
      b.#allocations.map((right) => {
        let both = left;
        for (const [position, area] of right.areas.entries()) {
          if (!left.areas.includes(area)) both = both.withArea(area, right.workers[position]);
        }
        return both.withProgress([...left.progress, ...right.progress]);
      }),
    );
    return joined;
  }

  /** An operation of, or next to, the cluster's pages; `settled` has the areas that the cluster does not know yet. */
  add(operation: Operation, settled: RangeIndex<Operation>): void {
    this.#first = Math.min(this.#first, operation.first);
    this.#last = Math.max(this.#last, operation.last);
    this.#open.push(operation);
    const areas = settled.overlapping(operation.first, operation.last).filter((area) => !this.#origin.has(area));
    for (const area of areas) this.#origin.add(area);
    const start = operation.kind === 'unmap' ? operation.first : WAITING;
    this.#allocations = this.#allocations.map((allocation) => {
      let next = allocation;
      for (const area of areas) next = next.withArea(area, undefined);
      return this.#witnessed(next.withProgress([...next.progress, start]));
    });
  }

  /** An operation returned. When nothing explains its answer: the areas it met in one order; its effect is taken for granted. */
  end(operation: Operation): 'explained' | 'exhausted' | { readonly areas: readonly Operation[] } {
    const slot = this.#open.indexOf(operation);
    let outcome: ReturnType<AllocationCluster['end']> = 'explained';
    if (!this.#isAbandoned) {
      const reached = this.#reach(operation, slot);
      if (reached === undefined) {
        outcome = 'exhausted';
        this.#isAbandoned = true;
      } else if (reached.length === 0) {
        outcome = this.#force(operation);
      } else {
        this.#allocations = reached;
      }
    }
    this.#open.splice(slot, 1);
    const ended = this.#allocations.map((allocation) => this.#ended(allocation, operation, slot));
    this.#allocations = ended.length > 1 ? distinct(ended) : ended;
    return outcome;
  }

  /**
   * The allocations in which an operation is through; undefined without budget. That a range was taken for a while can only
   * be missed by somebody who must have met it: without such an open operation, a failed MAP need not have taken anything, and
   * it does not matter what happened between a MAP's taking its range and publishing it.
   */
  #reach(operation: Operation, slot: number): readonly Allocation[] | undefined {
    const isFailed = operation.kind === 'map' && operation.rc !== 0 && !isRefused(operation);
    const isMet = this.#open.some(({ rc }) => rc === -EEXIST || rc === -EBUSY);
    if (isFailed && !isMet) return this.#allocations;
    const goal = operation.kind === 'unmap' ? ENDED : TAKEN;
    const reached = this.#search.reach(
      this.#allocations,
      ({ progress, workers }) => progress[slot] === goal && !(isMet && workers.includes(operation)),
      (allocation, visit) => this.#expand(allocation, (next) => visit(this.#witnessed(next))),
    );
    if (reached === undefined || !isFailed) return reached;
    return [...this.#allocations, ...reached];
  }

  /** Writes the areas back when nothing is open and nothing in doubt; true then: the cluster is over. */
  settle(settled: RangeIndex<Operation>): boolean {
    const [only] = this.#allocations;
    if (this.#open.length > 0 || this.#allocations.length !== 1 || only === undefined || this.#isAbandoned)
      return false;
    for (const area of this.#origin) if (!only.areas.includes(area)) settled.remove(area);
    for (const area of only.areas) if (!this.#origin.has(area)) settled.insert(area);
    return true;
  }

  #ended(allocation: Allocation, operation: Operation, slot: number): Allocation {
    const position = allocation.workers.indexOf(operation);
    let next = allocation;
    if (position >= 0) {
      const keepsArea = operation.kind === 'map' && operation.rc === 0;
      next = keepsArea ? next.withWorker(position, undefined) : next.without(position);
    }
    return this.#witnessed(next.withProgress(next.progress.toSpliced(slot, 1)));
  }

  /** After an answer that nothing explains: one order, with the effect that the answer claims. */
  #force(operation: Operation): { readonly areas: readonly Operation[] } {
    const [any] = this.#allocations;
    if (any === undefined) return { areas: [] };
    const areas = any.areas.filter((area) => area.overlaps(operation.first, operation.last));
    let next = any;
    for (const area of areas) {
      const isGone =
        operation.kind === 'map' ? operation.rc === 0 : operation.tells(area.first) && operation.tells(area.last);
      if (isGone) next = next.without(next.areas.indexOf(area));
    }
    if (operation.kind === 'map' && operation.rc === 0) next = next.withArea(operation, undefined);
    this.#allocations = [next];
    return { areas };
  }

  /** Notes everything that open operations only have to see once. */
  #witnessed(allocation: Allocation): Allocation {
    let progress: number[] | undefined;
    for (const [slot, operation] of this.#open.entries()) {
      const step = allocation.progress[slot] ?? WAITING;
      if (operation.kind === 'map') {
        if (operation.rc !== -EEXIST || step !== WAITING) continue;
        const met = allocation.areas[allocation.position(operation.first)];
        if (met === undefined || met.first > operation.last) continue;
        (progress ??= [...allocation.progress])[slot] = TAKEN;
      } else if (step !== ENDED && this.#mayEnd(allocation, operation, step)) {
        (progress ??= [...allocation.progress])[slot] = ENDED;
      }
    }
    return progress === undefined ? allocation : allocation.withProgress(progress);
  }

  #mayEnd(allocation: Allocation, unmap: Operation, cursor: number): boolean {
    if (unmap.rc === UNANSWERED || allocation.workers.includes(unmap)) return false;
    if (nextTold(unmap, cursor) !== undefined) return false;
    const position = allocation.position(cursor);
    const area = allocation.areas[position];
    const lowest = area !== undefined && area.first <= unmap.last ? area : undefined;
    return mayEndUnmap(unmap, cursor, lowest, allocation.workers[position] !== undefined);
  }

  #expand(allocation: Allocation, visit: (next: Allocation) => void): void {
    for (const [position, worker] of allocation.workers.entries()) {
      if (worker === undefined) continue;
      if (worker.kind === 'unmap' || mayWithdraw(worker)) visit(allocation.without(position));
      if (worker.kind === 'map' && mayPublish(worker)) visit(allocation.withWorker(position, undefined));
    }
    for (const [slot, operation] of this.#open.entries()) {
      const step = allocation.progress[slot] ?? WAITING;
      if (operation.kind === 'map') {
        if (step === WAITING && !isRefused(operation)) this.#take(allocation, operation, slot, visit);
      } else if (step !== ENDED && !allocation.workers.includes(operation)) {
        this.#hide(allocation, operation, slot, step, visit);
      }
    }
  }

  #take(allocation: Allocation, map: Operation, slot: number, visit: (next: Allocation) => void): void {
    const met = allocation.areas[allocation.position(map.first)];
    if (met !== undefined && met.first <= map.last) return;
    visit(allocation.withArea(map, map, allocation.progress.with(slot, TAKEN)));
  }

  #hide(
    allocation: Allocation,
    unmap: Operation,
    slot: number,
    cursor: number,
    visit: (next: Allocation) => void,
  ): void {
    const position = allocation.position(cursor);
    const area = allocation.areas[position];
    if (area === undefined || allocation.workers[position] !== undefined) return;
    if (unmap.rc === UNANSWERED) {
      if (area.first < cursor || area.last > unmap.last) return;
    } else {
      const told = nextTold(unmap, cursor);
      if (area.first !== told?.first || area.last > told.last) return;
    }
    visit(allocation.withWorker(position, unmap, allocation.progress.with(slot, area.last + 1)));
  }
}
