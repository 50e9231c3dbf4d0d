/**
 * Which ranges are taken: whether the answers of MAP and UNMAP fit each other.
 *
 * A MAP takes its whole range at one instant, as an *area*, and publishes it at a later one; a failed MAP may take its range
 * for a while; a MAP answered EEXIST met an area, published or not. An UNMAP goes through its range, lowest area first:
 * it hides a published area and frees it before it looks for the next; it ends where nothing is left, at an area that
 * is being mapped or unmapped (EBUSY), at one that reaches out of its range (ENOENT), or for a reason of its own.
 *
 * Operations whose ranges do not touch have nothing to do with each other. Those that overlap while they are open form a
 * *cluster* (allocation-cluster.ts); one that overlaps nobody is judged against the areas at its response, without search.
 *
 * Source: Linux drivers/iommu/iommufd/io_pagetable.c; domain.md A6.2, A6.3.
 */
import { AllocationCluster } from './allocation-cluster.js';
import { isRefused, mayEndUnmap, nextTold, type Operation } from './operation.js';
import type { Findings } from './page-registers.js';
import { RangeIndex } from './range-index.js';
import type { Search } from './search.js';

/** The areas of one address space; an area is named by the MAP that made it. */
export class RangeAllocation {
  readonly #search: Search;
  readonly #findings: Findings;
  /** What is taken in every possible order. Clusters change it when they settle. */
  readonly #areas = new RangeIndex<Operation>();
  /** Open operations that overlap no other. */
  readonly #alone = new Set<Operation>();
  readonly #clusters = new Set<AllocationCluster>();

  constructor(search: Search, findings: Findings) {
    this.#search = search;
    this.#findings = findings;
  }

  /** A MAP or UNMAP begins; its answer is known. */
  invoke(operation: Operation): void {
    const { first, last } = operation;
    let cluster: AllocationCluster | undefined;
    for (const other of this.#clusters) {
      if (!operation.overlaps(other.first, other.last)) continue;
      this.#clusters.delete(other);
      cluster = cluster === undefined ? other : AllocationCluster.join(cluster, other);
    }
    for (const other of this.#alone) {
      if (!other.overlaps(first, last)) continue;
      this.#alone.delete(other);
      cluster ??= new AllocationCluster(this.#search, other.first, other.last);
      cluster.add(other, this.#areas);
    }
    if (cluster === undefined) {
      this.#alone.add(operation);
    } else {
      cluster.add(operation, this.#areas);
      this.#clusters.add(cluster);
    }
  }

  /** It returns. */
  respond(operation: Operation): void {
    if (this.#alone.delete(operation)) {
      this.#applyAlone(operation);
      return;
    }
    for (const cluster of this.#clusters) {
      if (!cluster.has(operation)) continue;
      const outcome = cluster.end(operation);
      if (outcome === 'exhausted') this.#findings.exhausted(operation, cluster.first, cluster.last);
      else if (outcome !== 'explained') this.#findings.rangeUnexplained(operation, outcome.areas);
      if (cluster.settle(this.#areas)) this.#clusters.delete(cluster);
      return;
    }
  }

  /** The answer of an operation that overlapped no other, and its effect. */
  #applyAlone(operation: Operation): void {
    const { kind, rc, first, last } = operation;
    if (kind === 'unmap') {
      this.#unmapAlone(operation);
      return;
    }
    if (rc !== 0 && !isRefused(operation)) return;
    const met = this.#areas.firstOverlap(first, last);
    if ((met === undefined) === isRefused(operation)) {
      this.#findings.rangeUnexplained(operation, this.#areas.overlapping(first, last));
    }
    if (rc !== 0) return;
    for (const area of this.#areas.overlapping(first, last)) this.#areas.remove(area);
    this.#areas.insert(operation);
  }

  #unmapAlone(unmap: Operation): void {
    const met = this.#areas.overlapping(unmap.first, unmap.last);
    let cursor = unmap.first;
    let seen = 0;
    for (let told = nextTold(unmap, cursor); told !== undefined; told = nextTold(unmap, cursor)) {
      const area = met[seen];
      if (area?.first !== told.first || area.last > told.last) break;
      this.#areas.remove(area);
      cursor = area.last + 1;
      seen++;
    }
    if (nextTold(unmap, cursor) === undefined && mayEndUnmap(unmap, cursor, met[seen], false)) return;
    this.#findings.rangeUnexplained(unmap, met);
    for (const area of met.slice(seen)) {
      if (unmap.tells(area.first) && unmap.tells(area.last)) this.#areas.remove(area);
    }
  }
}
