/**
 * What devices have written in domains that track dirty pages, and what reports of dirty pages must therefore say (domain.md INV-11):
 * every page that was written before a report began, and that no earlier one had, unless it was unmapped meanwhile.
 *
 * A write that ends while a report is made may be in it or in the next. Where two reports of a domain overlap, each may have what the
 * other lacks, and nothing is checked. A report ends at the first hole.
 *
 * Those who explore orders are told: a write and a report of its page, or an unmap of it, do not come to the same in either order.
 */
import type { PagingDomain, IommuDomain } from '../kernel/iommu/domain.js';
import type { InvariantLedger } from '../runtime/invariants.js';
import { invariant } from '../runtime/task.js';
import { sharedRange, sharedRead, sharedWrite } from '../runtime/watch.js';

const PAGE_BYTES = 4096;

/** What is longer than this is one shared word with every write. */
const MARKED_BYTES = 512n * 4096n;

interface Tracked {
  /** By page: the number of the last write that no report has had. */
  readonly writes: Map<number, number>;
  reports: number;
}

/** A report that is being made. */
export interface DirtyReport {
  readonly domain: PagingDomain;
  readonly first: number;
  /** The first page of a hole, or the end of the range. */
  readonly end: number;
  /** Number of the first write that came after it began. */
  readonly began: number;
  /** Whether another report was being made then. */
  readonly isAlone: boolean;
}

function firstHole(domain: PagingDomain, first: number, end: number): number {
  let page = first;
  while (page < end && domain.iova_to_phys(page * PAGE_BYTES) !== undefined) page++;
  return page;
}

/** The writes of a machine. */
export class DirtyWrites {
  readonly #tracked = new Map<IommuDomain, Tracked>();
  readonly #looks: InvariantLedger;
  #next = 0;

  constructor(looks: InvariantLedger) {
    this.#looks = looks;
  }

  /** Tracking was switched on: what comes now counts. */
  start(domain: IommuDomain): void {
    sharedWrite(this, 'tracked');
    this.#tracked.set(domain, { writes: new Map(), reports: 0 });
  }

  stop(domain: IommuDomain): void {
    sharedWrite(this, 'tracked');
    this.#tracked.delete(domain);
  }

  /** A device has written to an address of a domain. */
  wrote(domain: IommuDomain, iova: bigint, pa: number): void {
    const tracked = this.#of(domain);
    if (tracked !== undefined) markRange(tracked, iova, 1n, true);
    if (tracked === undefined || (domain as PagingDomain).iova_to_phys(Number(iova)) !== pa) return;
    tracked.writes.set(Math.floor(Number(iova) / PAGE_BYTES), this.#next++);
  }

  /** A range of some domains is unmapped, or about to be. */
  forget(domains: readonly IommuDomain[], iova: bigint, lengthBytes: bigint): void {
    for (const domain of domains) {
      const tracked = this.#of(domain);
      if (tracked !== undefined) markRange(tracked, iova, lengthBytes, true);
      const writes = tracked?.writes;
      for (const page of writes?.keys() ?? []) {
        const at = BigInt(page * PAGE_BYTES);
        if (at >= iova && at < iova + lengthBytes) writes?.delete(page);
      }
    }
  }

  /** A report of a range begins; undefined where nothing is tracked. */
  begin(domain: PagingDomain, iova: bigint, lengthBytes: bigint): DirtyReport | undefined {
    const tracked = this.#of(domain);
    if (tracked === undefined) return undefined;
    markRange(tracked, iova, lengthBytes, false);
    sharedWrite(tracked, 'reports', tracked.reports, tracked.reports + 1);
    const first = Number(iova) / PAGE_BYTES;
    const end = firstHole(domain, first, first + Number(lengthBytes) / PAGE_BYTES);
    return { domain, first, end, began: this.#next, isAlone: tracked.reports++ === 0 };
  }

  /**
   * It ends; `has` says of a page whether it is in it. One that failed has none and owes none: the next does.
   * @throws InvariantError for a page that is missing
   */
  end(report: DirtyReport, clears: boolean, has: ((page: number) => boolean) | undefined): void {
    const { domain, first, began } = report;
    const tracked = this.#of(domain);
    if (tracked === undefined) return;
    markRange(tracked, BigInt(first) * 4096n, BigInt(report.end - first) * 4096n, true);
    sharedWrite(tracked, 'reports', tracked.reports, tracked.reports - 1);
    tracked.reports--;
    if (has === undefined) return;
    const end = firstHole(domain, first, report.end);
    const isAlone = report.isAlone && tracked.reports === 0;
    for (const [page, number] of tracked.writes) {
      if (page < first || page >= end) continue;
      const isDue = number < began && isAlone;
      invariant(
        !isDue || has(page),
        () => `page 0x${page.toString(16)} was written and is not reported as dirty`,
        'INV-11',
      );
      if (has(page) && clears) tracked.writes.delete(page);
    }
    if (isAlone) this.#looks.held('INV-11');
  }

  #of(domain: IommuDomain): Tracked | undefined {
    sharedRead(this, 'tracked');
    return this.#tracked.get(domain);
  }
}

/** Says that writes to a range are looked at, or changed. */
function markRange(tracked: Tracked, iova: bigint, lengthBytes: bigint, isWrite: boolean): void {
  if (lengthBytes > MARKED_BYTES) {
    sharedWrite(tracked, 'all pages');
    return;
  }
  sharedRead(tracked, 'all pages');
  sharedRange(tracked, '', Number(iova), Number(lengthBytes), isWrite);
}
