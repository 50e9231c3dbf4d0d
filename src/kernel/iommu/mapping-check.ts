/**
 * The linearizability of one address space, watched while a run goes on (src/checks).
 *
 * The address space tells its MAPs and UNMAPs, whoever carries a device's DMA tells where it went. Pages are 4 KiB. What the checker does
 * not speak of ends the watch for good: mappings that are no whole pages (not those that are refused), areas that are split, dma-bufs that are revoked. A
 * DMA during which its device moved between domains is not judged, nor one that ends at a doorbell.
 *
 * Answers are judged when nothing is open, and at {@link MappingCheck.finish} whatever is: rules are counted as looked at only then, and no
 * more once a search was too long, which makes the run inconclusive.
 *
 * Those who explore orders are told of each operation: which of two comes first matters where one ends before the other begins and both
 * have a page in common (that says which of them may be explained before the other); two that begin, or have no page in common, may
 * be swapped. Left out: two operations that have none in common with each other and both with a third.
 *
 * Ownership: the address space has the check, its domains point to it while they show everything that is mapped.
 */
import { AddressSpaceCheck } from '../../checks/address-space-check.js';
import { FAULT, operationText, UNANSWERED, type Operation } from '../../checks/operation.js';
import type { InvariantId } from '../../runtime/invariants.js';
import { InvariantError } from '../../runtime/task.js';
import { asChecker, isWatched, sharedRange, sharedRead, sharedUpdate, sharedWrite } from '../../runtime/watch.js';
import { EDEADLK, ENOENT } from '../../uapi/errno.js';
import { settledMoves, type IommuGroup } from './group.js';
import { IOMMU_READ, IOMMU_WRITE, type IommuDomain } from './domain.js';

const PAGE = 4096n;
const PAGE_BYTES = 4096;

/** What has more pages than this is one shared word with everything else. */
const MARKED_PAGES = 64;

/** A MAP or UNMAP under way; undefined when nobody watches any more. */
export type WatchedCall = Operation | undefined;

/** Where looks at rules are counted. */
interface Ledger {
  held(rule: InvariantId, looks?: number): void;
  gaveUp(rule: InvariantId, why: string): void;
}

function allowedBy(prot: number): 'r' | 'w' | 'rw' {
  if ((prot & IOMMU_WRITE) === 0) return 'r';
  return (prot & IOMMU_READ) === 0 ? 'w' : 'rw';
}

/** One address space's check. */
export class MappingCheck {
  readonly #ledger: Ledger;
  #check: AddressSpaceCheck | undefined = new AddressSpaceCheck();
  readonly #inexact = new Set<Operation>();
  #calls = 0;

  constructor(ledger: Ledger) {
    this.#ledger = ledger;
  }

  /** Something happened that the checker does not speak of. */
  stop(): void {
    if (this.#check === undefined) {
      sharedRead(this, 'watch', false);
      return;
    }
    sharedWrite(this, 'watch', true, false);
    this.#check = undefined;
  }

  /**
   * Nothing is to come, or nothing is known to be at work: what has been told is judged. What is open then never returns, and the watch ends.
   * @throws InvariantError
   */
  finish(): void {
    const check = this.#check;
    if (check === undefined) return;
    check.finish();
    this.#judge();
    if (check.open > 0) this.stop();
  }

  /** A MAP at a known place begins; `prot` is what it allows devices. One of no whole pages is not followed: {@link stop} when it takes its range. */
  beginMap(iova: bigint, lengthBytes: bigint, prot: number): WatchedCall {
    if (iova % PAGE !== 0n || lengthBytes % PAGE !== 0n || lengthBytes === 0n) return undefined;
    const pages = Number(lengthBytes / PAGE);
    this.#begins(Number(iova / PAGE), pages);
    return this.#check?.beginMap(this.#calls++, Number(iova / PAGE), pages, allowedBy(prot));
  }

  /** Pages of a MAP go into tables. */
  shows(call: WatchedCall, iova: number, pa: number, lengthBytes: number): void {
    if (call === undefined || this.#check === undefined) return;
    if (iova % PAGE_BYTES !== 0 || pa % PAGE_BYTES !== 0 || lengthBytes % PAGE_BYTES !== 0) this.stop();
    else this.#check.shows(call, iova / PAGE_BYTES, lengthBytes / PAGE_BYTES, pa / PAGE_BYTES);
  }

  /** A MAP returns. @throws InvariantError when nothing explains its answer, or an earlier one's */
  endMap(call: WatchedCall, rc: number): void {
    if (call === undefined || this.#check === undefined) return;
    this.#ends(call);
    this.#check.end(call, rc);
    this.#judge();
  }

  /** An UNMAP begins. Of one whose range is no whole pages only what it takes is judged, not what it answers. */
  beginUnmap(iova: bigint, last: bigint): WatchedCall {
    const first = iova / PAGE;
    const pages = Number(last / PAGE - first + 1n);
    this.#begins(Number(first), pages);
    const call = this.#check?.beginUnmap(this.#calls++, Number(first), pages);
    if (call !== undefined && (iova % PAGE !== 0n || last % PAGE !== PAGE - 1n)) this.#inexact.add(call);
    return call;
  }

  /** An UNMAP has hidden an area. */
  takes(call: WatchedCall, iova: bigint, lengthBytes: bigint): void {
    if (call !== undefined) this.#check?.takes(call, Number(iova / PAGE), Number(lengthBytes / PAGE));
  }

  /** An UNMAP returns. `isLocked`: it met an area that may not be unmapped at all. */
  endUnmap(call: WatchedCall, rc: number, unmappedBytes: bigint, isLocked: boolean): void {
    if (call === undefined || this.#check === undefined) return;
    const isUnjudged = isLocked || this.#inexact.delete(call);
    const answer = isUnjudged ? -EDEADLK : rc === 0 && unmappedBytes === 0n ? -ENOENT : rc;
    this.#ends(call);
    this.#check.endUnmap(call, answer, Number(unmappedBytes / PAGE));
    this.#judge();
  }

  /** A device's access begins. */
  beginAccess(view: number, iova: bigint, isWrite: boolean): WatchedCall {
    this.#begins(Number(iova / PAGE), 1);
    return this.#check?.beginTranslate(view, Number(iova / PAGE), isWrite);
  }

  /** An access ends at a physical address, in a fault (-1), or nobody can say (undefined). */
  endAccess(call: WatchedCall, pa: number | undefined): void {
    if (call === undefined || this.#check === undefined) return;
    this.#ends(call);
    if (pa === undefined) this.#check.end(call, UNANSWERED);
    else this.#check.endTranslate(call, pa < 0 ? FAULT : Math.floor(pa / PAGE_BYTES));
    this.#judge();
  }

  /** An operation begins: it sees which have ended. */
  #begins(first: number, pages: number): void {
    if (!isWatched()) return;
    asChecker(() => {
      sharedRead(this, 'watch');
      sharedRead(this, 'ends of long ones');
      if (pages <= MARKED_PAGES) sharedRange(this, '', first * PAGE_BYTES, pages * PAGE_BYTES, false);
      else sharedWrite(this, 'ends of short ones');
    });
  }

  /** It ends: those that begin now see that. */
  #ends({ first, last }: Operation): void {
    if (!isWatched()) return;
    asChecker(() => {
      sharedRead(this, 'watch');
      const pages = last - first + 1;
      if (pages <= MARKED_PAGES) {
        sharedRange(this, '', first * PAGE_BYTES, pages * PAGE_BYTES, true);
        sharedUpdate(this, 'ends of short ones');
      } else {
        sharedWrite(this, 'ends of long ones');
        sharedWrite(this, 'ends of short ones');
      }
    });
  }

  #judge(): void {
    const check = this.#check;
    if (check === undefined) return;
    const [violation] = check.violations;
    if (violation === undefined) {
      this.#count(check);
      return;
    }
    const { rule, operation, sentence } = violation;
    const id = rule !== 'translation' ? 'linearizability' : operation.frame === FAULT ? 'INV-1' : 'INV-2';
    throw new InvariantError(sentence, id);
  }

  #count(check: AddressSpaceCheck): void {
    const { calls, accesses } = check.takeJudged();
    const [exhausted] = check.exhaustions;
    if (exhausted !== undefined) {
      const { operation } = exhausted;
      this.#ledger.gaveUp(
        'linearizability',
        `too many orders to look through of what overlaps ${operationText(operation)}`,
      );
    } else if (calls + accesses > 0) {
      this.#ledger.held('linearizability', calls + accesses);
      if (accesses === 0) return;
      this.#ledger.held('INV-1', accesses);
      this.#ledger.held('INV-2', accesses);
    }
  }
}

/** A DMA of a device in a group. */
export interface WatchedAccess {
  readonly check: MappingCheck;
  readonly call: WatchedCall;
  readonly group: IommuGroup;
  readonly domain: IommuDomain | undefined;
  readonly moves: number;
}

/** The check a domain points to. */
function checkOf(domain: IommuDomain | undefined): MappingCheck | undefined {
  if (domain !== undefined) sharedRead(domain, 'check');
  return domain?.check;
}

/** A device of a group issues an access; undefined where nobody could judge it. */
export function beginAccess(
  group: IommuGroup | undefined,
  view: number,
  iova: bigint,
  isWrite: boolean,
): WatchedAccess | undefined {
  return asChecker(() => {
    const check = checkOf(group?.domain);
    const moves = group && settledMoves(group);
    if (group === undefined || check === undefined || moves === undefined) return undefined;
    return { check, call: check.beginAccess(view, iova, isWrite), group, domain: group.domain, moves };
  });
}

/**
 * The access ended at a physical address, in a fault of translation or permission (-1), or somewhere that is not judged (undefined): at a
 * doorbell, which no MAP shows.
 */
export function endAccess(access: WatchedAccess | undefined, pa: number | undefined): void {
  if (access === undefined) return;
  const { check, call, group, domain, moves } = access;
  asChecker(() => {
    const hasStayed = settledMoves(group) === moves && group.domain === domain && checkOf(domain) === check;
    check.endAccess(call, hasStayed ? pa : undefined);
  });
}
