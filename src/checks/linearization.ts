/**
 * The judgement over one address space: every MAP, UNMAP and TRANSLATE explained by an order, page by page and range by range.
 *
 * Operations are told in the order of their invocations and responses, with their answers known (address-space-check.ts and
 * check-history.ts see to that): so an access needs no guessing, and only writers are searched for an order. The partitions
 * are judged apart (every page, per view, and the allocation of ranges), as P-compositionality allows (Horn and
 * Kroening 2015): an order found for one page need not be the order found for another.
 *
 * The verdict is `fail` as soon as one answer is unexplained, `inconclusive` when a search used up its budget and
 * nothing else failed. After a violation the answer is taken for true and checking goes on.
 */
import type { Operation } from './operation.js';
import { PageRegisters, type Findings } from './page-registers.js';
import { RangeAllocation } from './range-allocation.js';
import { Search } from './search.js';
import { countViolation, pageViolation, rangeViolation, translationViolation, type Violation } from './violation.js';

export type Verdict = 'pass' | 'fail' | 'inconclusive';

/** Bounds of a check. */
export interface CheckOptions {
  /** Configurations one search may visit before its pages are given up; 20,000 unless told. */
  readonly budget?: number;
  /** Violations explained in full; 10 unless told. Others still make the verdict `fail`. */
  readonly maxViolations?: number;
}

const DEFAULT_BUDGET = 20_000;
const DEFAULT_MAX_VIOLATIONS = 10;

/** Pages that are not checked any more, and the operation whose search was too long. */
export interface Exhaustion {
  readonly operation: Operation;
  readonly first: number;
  readonly last: number;
}

/** Whether an UNMAP took pages of its range only, and, if it ended well, says how many. */
function isCountRight(unmap: Operation): boolean {
  if (unmap.rc === 0 && unmap.answeredPages !== unmap.toldPages) return false;
  return unmap.extents.every(({ first, last }) => first >= unmap.first && last <= unmap.last);
}

/** One address space. */
export class Linearization implements Findings {
  readonly violations: Violation[] = [];
  readonly exhaustions: Exhaustion[] = [];
  readonly #search: Search;
  readonly #maxViolations: number;
  readonly #log: () => Iterable<Operation>;
  readonly #pages: PageRegisters;
  readonly #ranges: RangeAllocation;
  #lastUnexplained: Operation | undefined;

  /** `log`: the operations that explanations may speak of. */
  constructor(options: CheckOptions, log: () => Iterable<Operation>) {
    this.#search = new Search(options.budget ?? DEFAULT_BUDGET);
    this.#maxViolations = options.maxViolations ?? DEFAULT_MAX_VIOLATIONS;
    this.#log = log;
    this.#pages = new PageRegisters(this.#search, this);
    this.#ranges = new RangeAllocation(this.#search, this);
  }

  get verdict(): Verdict {
    if (this.#lastUnexplained !== undefined) return 'fail';
    return this.exhaustions.length > 0 ? 'inconclusive' : 'pass';
  }

  /** Configurations that searches visited; 0 when nothing that matters overlapped. */
  get configurations(): number {
    return this.#search.configurations;
  }

  invoke(operation: Operation): void {
    if (operation.kind === 'map' || operation.kind === 'unmap') this.#ranges.invoke(operation);
    this.#pages.invoke(operation);
  }

  respond(operation: Operation): void {
    const { kind } = operation;
    if (kind === 'unmap' && !isCountRight(operation)) {
      this.#add(operation, (log) => countViolation(operation, log));
    }
    if (kind === 'map' || kind === 'unmap') this.#ranges.respond(operation);
    this.#pages.respond(operation);
  }

  translationUnexplained(access: Operation, allowed: readonly number[]): void {
    this.#add(access, (log) => translationViolation(access, allowed, log));
  }

  pageUnexplained(operation: Operation, page: number): void {
    this.#add(operation, (log) => pageViolation(operation, page, log));
  }

  rangeUnexplained(operation: Operation, areas: readonly Operation[]): void {
    this.#add(operation, (log) => rangeViolation(operation, areas, log));
  }

  exhausted(operation: Operation, first: number, last: number): void {
    this.exhaustions.push({ operation, first, last });
  }

  /** The first thing found about an operation is told, what follows from it is not. */
  #add(operation: Operation, explain: (log: Iterable<Operation>) => Violation): void {
    if (this.#lastUnexplained === operation) return;
    this.#lastUnexplained = operation;
    if (this.violations.length < this.#maxViolations) this.violations.push(explain(this.#log()));
  }
}
