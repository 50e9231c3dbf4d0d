/**
 * What the searches of the checker share: sets of configurations, and the budget that bounds them.
 *
 * Checking is just-in-time linearization (Lowe, "Testing for linearizability", 2017; Wing and Gong 1993): a partition keeps
 * every *configuration* its history allows so far, a state plus which open operations have taken effect. Effects are
 * linearized as late as possible: only a response makes the search look for orders of open operations in which that
 * response is right. Configurations are immutable, so that sets may share them.
 */

/** A configuration can be told from another. */
export interface Configuration<C> {
  /** 32 bits; equal for equal configurations. */
  readonly hash: number;
  equals(other: C): boolean;
}

/** Sets of this many configurations are searched from end to end: cheaper than hashing. */
const SMALL = 8;

/** A set of configurations in the order they came. */
export class ConfigurationSet<C extends Configuration<C>> {
  readonly items: C[] = [];
  #positions: Map<number, number> | undefined;

  /** False when an equal configuration is there. */
  add(configuration: C): boolean {
    if (this.items.length < SMALL) {
      for (const item of this.items) if (item.equals(configuration)) return false;
      this.items.push(configuration);
      return true;
    }
    if (this.#positions === undefined) {
      this.#positions = new Map();
      for (const [position, item] of this.items.entries()) this.#positions.set(this.#slot(item), position);
    }
    const slot = this.#slot(configuration);
    if (this.#positions.has(slot)) return false;
    this.#positions.set(slot, this.items.length);
    this.items.push(configuration);
    return true;
  }

  /** Key of an equal configuration, or the free key where this one belongs. */
  #slot(configuration: C): number {
    for (let slot = configuration.hash; ; slot = (slot + 1) | 0) {
      const position = this.#positions?.get(slot);
      if (position === undefined || this.items[position]?.equals(configuration) === true) return slot;
    }
  }
}

/** Mixes a number (of any size below 2^53) into a hash. */
export function mix(hash: number, value: number): number {
  return Math.imul(hash ^ (value | 0) ^ Math.imul(value / 0x1_0000_0000, 0x27d4eb2f), 0x9e3779b1) ^ (hash >>> 15);
}

/** Counts configurations, and says when one search has had enough of them. */
export class Search {
  /** Configurations one search may visit before its partition is given up. */
  readonly budget: number;
  /** Configurations visited by all searches. */
  configurations = 0;

  constructor(budget: number) {
    this.budget = budget;
  }

  /**
   * The configurations reached from `from` that satisfy `isGoal`, each by an order of effects that has none to spare;
   * undefined when the budget is used up.
   */
  reach<C extends Configuration<C>>(
    from: readonly C[],
    isGoal: (configuration: C) => boolean,
    expand: (configuration: C, visit: (next: C) => void) => void,
  ): C[] | undefined {
    const visited = new ConfigurationSet<C>();
    const goals: C[] = [];
    const open: C[] = [];
    const visit = (configuration: C): void => {
      if (!visited.add(configuration)) return;
      if (isGoal(configuration)) goals.push(configuration);
      else open.push(configuration);
    };
    for (const configuration of from) visit(configuration);
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      if (visited.items.length > this.budget) break;
      expand(next, visit);
    }
    this.configurations += visited.items.length;
    return visited.items.length > this.budget ? undefined : goals;
  }
}
