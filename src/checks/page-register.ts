/**
 * What one page may show, while operations on it overlap: a register with the states *free* and *shown by a MAP*.
 *
 * A MAP turns free into shown, an UNMAP that took the page turns shown into free; a MAP that failed may do the first and
 * must have undone it when it returns. A translation reads. Translating agents (views) see the effects of one call at
 * different instants, because every domain has tables and every agent a cache of its own: order between views is
 * kept only where calls return. So a {@link Register} belongs to one view; the views that have not yet told anything of
 * interest share one.
 *
 * All pages of a contended range saw the same operations; a range with accesses that wait to be explained is one page.
 * Invariant: a register has at least one configuration, and all of them agree with everything answered so far.
 */
import { FAULT, isAnswerOf, mayPublish, mayWithdraw, seenBy, type Operation } from './operation.js';
import { ConfigurationSet, mix, type Configuration, type Search } from './search.js';

/** Operations that may be open on one page at a time: bits of a number. */
const MAX_SLOTS = 31;

/** The state of a page, and which open operations have had their effect. */
class PageState implements Configuration<PageState> {
  /** The MAP that shows the page; undefined while it is free. */
  readonly holder: Operation | undefined;
  /** Slots of writers that have had their effect, and of accesses that are explained. */
  readonly writers: number;
  readonly accesses: number;
  readonly hash: number;

  constructor(holder: Operation | undefined, writers: number, accesses: number) {
    this.holder = holder;
    this.writers = writers;
    this.accesses = accesses;
    this.hash = mix(mix(mix(0, holder === undefined ? -1 : holder.number), writers), accesses);
  }

  equals(other: PageState): boolean {
    return this.holder === other.holder && this.writers === other.writers && this.accesses === other.accesses;
  }
}

/** An access nobody could explain when it came, and the frames that it might have seen so far. */
interface WaitingAccess {
  readonly operation: Operation;
  readonly allowed: Set<number>;
}

/** What the views of one page that share it may see. */
class Register {
  states: readonly PageState[];
  readonly accesses: (WaitingAccess | undefined)[] = [];
  /** False while the view is detached: no access sees a frame. */
  isVisible = true;

  constructor(states: readonly PageState[]) {
    this.states = states;
  }

  /** The state with every access that it explains marked. */
  state(holder: Operation | undefined, writers: number, accesses: number): PageState {
    let marked = accesses;
    for (const [slot, access] of this.accesses.entries()) {
      if (access === undefined) continue;
      const frame = seenBy(access.operation, holder);
      if (!this.isVisible && frame !== FAULT) continue;
      access.allowed.add(frame);
      if (isAnswerOf(holder, access.operation)) marked |= 1 << slot;
    }
    return new PageState(holder, writers, marked);
  }

  /** Makes all states anew. */
  update(change: (state: PageState) => PageState): void {
    const next = new ConfigurationSet<PageState>();
    for (const state of this.states) next.add(change(state));
    this.states = next.items;
  }
}

/** How a response went with a register. `exhausted`: the search had no budget left, nothing is known any more. */
export type Outcome = 'explained' | 'unexplained' | 'exhausted';

/** A range of pages, all alike, on which operations are open or in more than one possible order. */
export class Contention {
  readonly #search: Search;
  readonly #writers: (Operation | undefined)[] = [];
  #shared: Register;
  readonly #own = new Map<number, Register>();

  constructor(search: Search, holder: Operation | undefined) {
    this.#search = search;
    this.#shared = new Register([new PageState(holder, 0, 0)]);
  }

  /** The same for another part of the range. No access may be waiting. */
  copy(): Contention {
    const copy = new Contention(this.#search, undefined);
    copy.#writers.push(...this.#writers);
    copy.#shared.states = this.#shared.states;
    for (const [view, register] of this.#own) copy.#own.set(view, new Register(register.states));
    return copy;
  }

  /** Opens a MAP or UNMAP; false when there are too many. */
  addWriter(operation: Operation): boolean {
    const free = this.#writers.indexOf(undefined);
    const slot = free < 0 ? this.#writers.length : free;
    this.#writers[slot] = operation;
    return slot < MAX_SLOTS;
  }

  /** A MAP or UNMAP returned; after 'unexplained' its effect is taken for granted. */
  endWriter(operation: Operation): Outcome {
    const slot = this.#writers.indexOf(operation);
    let outcome: Outcome = 'explained';
    for (const [view, register] of [[undefined, this.#shared] as const, ...this.#own]) {
      const ended = this.#endWriterIn(register, operation, slot);
      if (ended === undefined) return 'exhausted';
      if (ended) continue;
      outcome = 'unexplained';
      if (view !== undefined) this.#own.delete(view);
      else register.states = [new PageState(operation.kind === 'map' ? operation : undefined, 0, 0)];
    }
    this.#writers[slot] = undefined;
    return outcome;
  }

  /** False when nothing explains the answer; undefined without budget. */
  #endWriterIn(register: Register, operation: Operation, slot: number): boolean | undefined {
    const bit = 1 << slot;
    const isOptional = operation.kind === 'map' && operation.rc !== 0;
    // A MAP that left nothing behind must be looked at only if an access is still to be explained by it.
    const isWanted = register.accesses.some(
      (access) => access !== undefined && isAnswerOf(operation, access.operation),
    );
    if (!isOptional || isWanted) {
      const reached = this.#reach(register, (state) => (state.writers & bit) !== 0);
      if (reached === undefined) return undefined;
      if (!isOptional && reached.length === 0) return false;
      register.states = isOptional ? [...register.states, ...reached] : reached;
    }
    register.update(({ holder, writers, accesses }) =>
      register.state(isOptional && holder === operation ? undefined : holder, writers & ~bit, accesses),
    );
    return true;
  }

  /** Whether every possible state explains the access at once. */
  explains(access: Operation, isVisible: boolean): boolean {
    if (!isVisible && access.frame !== FAULT) return false;
    const register = this.#own.get(access.agent) ?? this.#shared;
    return register.states.every(({ holder }) => isAnswerOf(holder, access));
  }

  /** An access that is not explained yet waits; false when too many do. */
  addAccess(access: Operation, isVisible: boolean): boolean {
    let register = this.#own.get(access.agent);
    if (register === undefined) {
      register = new Register(this.#shared.states);
      this.#own.set(access.agent, register);
    }
    register.isVisible = isVisible;
    const free = register.accesses.indexOf(undefined);
    const slot = free < 0 ? register.accesses.length : free;
    register.accesses[slot] = { operation: access, allowed: new Set() };
    if (slot >= MAX_SLOTS) return false;
    this.#markAgain(register);
    return true;
  }

  /** An access that waited has ended. `allowed`: the frames it might have seen. */
  endAccess(access: Operation): { readonly outcome: Outcome; readonly allowed: readonly number[] } {
    const register = this.#own.get(access.agent);
    const slot = register?.accesses.findIndex((waiting) => waiting?.operation === access) ?? -1;
    if (register === undefined || slot < 0) return { outcome: 'explained', allowed: [] };
    const bit = 1 << slot;
    const reached = this.#reach(register, (state) => (state.accesses & bit) !== 0);
    const allowed = [...(register.accesses[slot]?.allowed ?? [])].sort((a, b) => a - b);
    register.accesses[slot] = undefined;
    if (reached === undefined) return { outcome: 'exhausted', allowed };
    if (reached.length > 0) register.states = reached;
    register.update(({ holder, writers, accesses }) => new PageState(holder, writers, accesses & ~bit));
    return { outcome: reached.length > 0 ? 'explained' : 'unexplained', allowed };
  }

  /**
   * The view of a waiting access comes into or goes out of sight. Before it goes, accesses may have seen what they can see
   * now; `faults`: from now on a fault needs no reason. False without budget.
   */
  setVisible(view: number, isVisible: boolean, faults: boolean): boolean {
    const register = this.#own.get(view);
    if (register === undefined) return true;
    if (register.isVisible && !isVisible) {
      const everything = this.#reach(register, () => false, true);
      if (everything === undefined) return false;
      register.states = everything;
    }
    register.isVisible = isVisible;
    let explained = 0;
    for (const [slot, access] of register.accesses.entries()) {
      if (faults && access?.operation.frame === FAULT) explained |= 1 << slot;
    }
    register.update((state) => new PageState(state.holder, state.writers, state.accesses | explained));
    this.#markAgain(register);
    return true;
  }

  /** The one holder when nothing is open and nothing in doubt; 'open' otherwise. */
  settled(): Operation | undefined | 'open' {
    if (this.#writers.some((writer) => writer !== undefined) || this.#shared.states.length !== 1) return 'open';
    for (const register of this.#own.values()) {
      if (register.accesses.some((access) => access !== undefined)) return 'open';
    }
    return this.#shared.states[0]?.holder;
  }

  #markAgain(register: Register): void {
    register.update(({ holder, writers, accesses }) => register.state(holder, writers, accesses));
  }

  /** States reached that satisfy the goal; all of them when `keepsAll`. Undefined without budget. */
  #reach(
    register: Register,
    isGoal: (state: PageState) => boolean,
    keepsAll = false,
  ): readonly PageState[] | undefined {
    const all: PageState[] = [...register.states];
    const goals = this.#search.reach(register.states, isGoal, (state, visit) => {
      this.#expand(register, state, (next) => {
        if (keepsAll) all.push(next);
        visit(next);
      });
    });
    if (goals === undefined || !keepsAll) return goals;
    const distinct = new ConfigurationSet<PageState>();
    for (const state of all) distinct.add(state);
    return distinct.items;
  }

  #expand(register: Register, state: PageState, visit: (next: PageState) => void): void {
    const { holder, writers, accesses } = state;
    if (holder !== undefined && mayWithdraw(holder)) visit(register.state(undefined, writers, accesses));
    for (const [slot, writer] of this.#writers.entries()) {
      if (writer === undefined || (writers & (1 << slot)) !== 0) continue;
      if (writer.kind === 'map') {
        if (holder === undefined) visit(register.state(writer, writers | (1 << slot), accesses));
      } else if (holder !== undefined && mayPublish(holder)) {
        visit(register.state(undefined, writers | (1 << slot), accesses));
      }
    }
  }
}
