/**
 * What devices have written in domains that track dirty pages, and what reports of dirty pages must therefore say (domain.md INV-11):
 * every page that was written before a report began, and that no earlier one had, unless it was unmapped meanwhile.
 *
 * A domain tells which areas leave it, whoever unmaps them: when one is hidden, from when on reports end before it, and when it is out of the
 * tables. Only then are writes to it forgotten. A write that ends while a report is made may be in it or in the next. Where two reports of
 * a domain overlap, each may have what the other lacks, and nothing is checked; nor where one overlaps a call that switches tracking, which makes
 * leaves clean when it switches on. A report ends at the first hole: at its beginning what is not mapped or at work, and whatever leaves while it is made.
 *
 * A report may have pages that were not written: a leaf is dirty as a whole, and a translation that was asked for to write is.
 *
 * Those who explore orders are told: a write and a report of its page, or its leaving, do not come to the same in either order.
 */
import type { PagingDomain, IommuDomain } from '../kernel/iommu/domain.js';
import type { AreaTree } from '../kernel/iommufd/area.js';
import { IOVA_MAX } from '../kernel/iommufd/io-pagetable.js';
import { PAGE_BYTES, PAGE_SIZE } from '../kernel/iommufd/pages.js';
import type { InvariantLedger } from '../runtime/invariants.js';
import { invariant } from '../runtime/task.js';
import { sharedRange, sharedRead, sharedWrite } from '../runtime/watch.js';

/** What is longer than this is one shared word with every write. */
const MARKED_BYTES = 512n * PAGE_SIZE;

/** A domain whose tracking was ever switched. */
interface Tracked {
  isOn: boolean;
  /** By page: the number of the last write that no report has had. */
  readonly writes: Map<number, number>;
  readonly reports: Set<DirtyReport>;
  /** Calls that switch it on or off now, and what those wanted that have overlapped since nobody did. */
  switching: number;
  readonly wanted: Set<boolean>;
}

/** A report that is being made. */
export interface DirtyReport {
  readonly domain: PagingDomain;
  readonly first: number;
  /** Behind the last page that was asked for. */
  readonly asked: number;
  /** The first page of a hole, or {@link asked}. */
  end: number;
  /** Number of the first write that came after it began. */
  readonly began: number;
  /** Whether no other report was being made at any time. */
  isAlone: boolean;
}

/** Where a walk over areas that are mapped ends. */
function firstHole(areas: AreaTree, iova: bigint, end: bigint): bigint {
  let at = iova;
  for (const area of iova < end && end <= IOVA_MAX ? areas.overlapping(iova, end - 1n) : []) {
    if (area.iova > at || area.pages === undefined || area.pages.isRevoked) break;
    at = area.last + 1n;
  }
  return at < end ? at : end;
}

/** The writes of a machine. */
export class DirtyWrites {
  readonly #tracked = new Map<IommuDomain, Tracked>();
  readonly #looks: InvariantLedger;
  #next = 0;

  constructor(looks: InvariantLedger) {
    this.#looks = looks;
  }

  /** Tracking is about to be switched. */
  beginSwitch(domain: IommuDomain, on: boolean): void {
    sharedWrite(this, 'tracked');
    const tracked = this.#tracked.get(domain) ?? {
      isOn: false,
      writes: new Map<number, number>(),
      reports: new Set<DirtyReport>(),
      switching: 0,
      wanted: new Set<boolean>(),
    };
    this.#tracked.set(domain, tracked);
    tracked.switching++;
    tracked.wanted.add(on);
    for (const report of tracked.reports) report.isAlone = false;
  }

  /**
   * That has ended. What was written before and meanwhile is owed no more: leaves were made clean. Where calls overlapped that wanted it on and
   * off, nobody can tell which was last, and nothing is owed until it is switched again.
   */
  endSwitch(domain: IommuDomain, hasWorked: boolean): void {
    sharedWrite(this, 'tracked');
    const tracked = this.#tracked.get(domain);
    invariant(tracked !== undefined, 'dirty writes: the end of a switch that never began');
    tracked.switching--;
    tracked.writes.clear();
    const [on = false] = tracked.wanted;
    if (tracked.wanted.size > 1) tracked.isOn = false;
    else if (hasWorked) tracked.isOn = on;
    if (tracked.switching === 0) tracked.wanted.clear();
    domain.onLeave = !tracked.isOn
      ? undefined
      : (iova, lengthBytes) => {
          markRange(tracked, iova, lengthBytes, true);
          sharedRead(tracked, 'reports', tracked.reports.size);
          forget(tracked, Number(iova) / PAGE_BYTES, Number(iova + lengthBytes) / PAGE_BYTES);
        };
  }

  /** A device has written to an address of a domain. */
  wrote(domain: IommuDomain, iova: bigint, pa: number): void {
    const tracked = this.#of(domain);
    if (tracked !== undefined) markRange(tracked, iova, 1n, true);
    if (tracked?.isOn !== true || (domain as PagingDomain).iova_to_phys(Number(iova)) !== pa) return;
    tracked.writes.set(Math.floor(Number(iova) / PAGE_BYTES), this.#next++);
  }

  /** A report of a range of an address space begins; undefined where nothing was ever tracked. */
  begin(domain: PagingDomain, areas: AreaTree, iova: bigint, lengthBytes: bigint): DirtyReport | undefined {
    const tracked = this.#of(domain);
    if (tracked === undefined) return undefined;
    markRange(tracked, iova, lengthBytes, false);
    sharedWrite(tracked, 'reports', tracked.reports.size, tracked.reports.size + 1);
    const first = Number(iova) / PAGE_BYTES;
    const asked = first + Number(lengthBytes) / PAGE_BYTES;
    const end = Number(firstHole(areas, iova, iova + lengthBytes)) / PAGE_BYTES;
    const isAlone = tracked.isOn && tracked.reports.size === 0 && tracked.switching === 0;
    for (const other of tracked.reports) other.isAlone = false;
    const report = { domain, first, asked, end, began: this.#next, isAlone };
    tracked.reports.add(report);
    return report;
  }

  /**
   * It ends; `has` says of a page whether it is in it. One that failed has none and owes none: the next does.
   * @throws InvariantError for a page that is missing
   */
  end(report: DirtyReport, clears: boolean, has: ((page: number) => boolean) | undefined): void {
    const { domain, first, asked, end, began, isAlone } = report;
    const tracked = this.#of(domain);
    if (tracked === undefined) return;
    markRange(tracked, BigInt(first) * PAGE_SIZE, BigInt(asked - first) * PAGE_SIZE, true);
    sharedWrite(tracked, 'reports', tracked.reports.size, tracked.reports.size - 1);
    if (!tracked.reports.delete(report) || has === undefined) return;
    for (const [page, number] of tracked.writes) {
      if (page < first || page >= asked) continue;
      const isDue = page < end && number < began && isAlone;
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

/** Pages from `first` to before `end` leave a domain. */
function forget({ writes, reports }: Tracked, first: number, end: number): void {
  for (const page of writes.keys()) if (page >= Math.floor(first) && page < end) writes.delete(page);
  for (const report of reports)
    if (first < report.end && end > report.first) report.end = Math.max(report.first, first);
}
