/**
 * Operations on one I/O address space, as the linearizability checker sees them.
 *
 * A page is a number in the unit of whoever records (usually IOVA >> 12), a frame likewise (PA >> 12); both are exact
 * integers below 2^53. Ranges are {first, last}, both inclusive. An operation is made at its invocation and filled in until
 * its response; a checker looks at it only after that, or never finds a response (`rc` stays {@link UNANSWERED}).
 *
 * Source: Linux drivers/iommu/iommufd/io_pagetable.c; domain.md A6.2, A6.3, INV-1, INV-2.
 */
import { EBUSY, EEXIST, ENOENT, errnoText } from '../uapi/errno.js';

/** What a translation answers, and what a page shows, when nothing is mapped there. */
export const FAULT = -1;
/** `rc` of an operation whose response never came: it may have taken effect at any time since, or never. */
export const UNANSWERED = 1;

export type OperationKind = 'map' | 'unmap' | 'translate' | 'attach' | 'detach';

/** Consecutive pages. `frame`: what `first` shows, the pages behind it the frames behind it; 0 where there is none to tell. */
export interface Extent {
  readonly first: number;
  readonly last: number;
  readonly frame: number;
}

/** One call, or one access of a device. */
export class Operation {
  readonly kind: OperationKind;
  /** Counted from 0 in the order of invocations: how reports call it. */
  readonly number: number;
  /** Who did it: a thread or task of MAP and UNMAP, the view (translating agent) of the others. */
  readonly agent: number;
  /** Pages the call names; the one page of a translation; nothing (0) for attach and detach. */
  readonly first: number;
  readonly last: number;
  /** Place of the invocation in the order of all invocations and responses. */
  readonly invokedAt: number;
  /** Place of the response; Infinity while there is none. */
  respondedAt = Infinity;
  /** 0 or a negative errno as the kernel answers; {@link UNANSWERED}. */
  rc = UNANSWERED;
  #extents: Extent[] = [];
  /** UNMAP that ended well: pages it says went. */
  answeredPages = 0;
  /** TRANSLATE: the frame, or {@link FAULT}. */
  frame = FAULT;
  /** MAP: whether devices may read there, and write. */
  isReadable = true;
  isWritable = true;
  /** TRANSLATE: whether it is a write. */
  isWrite = false;

  constructor(kind: OperationKind, number: number, agent: number, first: number, last: number, invokedAt: number) {
    this.kind = kind;
    this.number = number;
    this.agent = agent;
    this.first = first;
    this.last = last;
    this.invokedAt = invokedAt;
  }

  /** MAP: the frames of its pages (a page in none shows FAULT). UNMAP: the pages that went, whether or not it ended well. */
  get extents(): readonly Extent[] {
    return this.#extents;
  }

  set extents(extents: readonly Extent[]) {
    this.#extents = [...extents];
  }

  /** Whether some page of first..last is one the call names. */
  overlaps(first: number, last: number): boolean {
    return this.first <= last && first <= this.last;
  }

  /** Adds pages to {@link extents}. Those of a MAP are joined where they continue the ones before; areas that an UNMAP takes stay apart. */
  tell(first: number, last: number, frame: number): void {
    const before = this.#extents.at(-1);
    const isContinued =
      this.kind === 'map' && before?.last === first - 1 && before.frame + (first - before.first) === frame;
    if (before !== undefined && isContinued) this.#extents[this.#extents.length - 1] = { ...before, last };
    else this.#extents.push({ first, last, frame });
  }

  /** What the page shows while this MAP is visible. */
  frameAt(page: number): number {
    for (const extent of this.extents) {
      if (page >= extent.first && page <= extent.last) return extent.frame + (page - extent.first);
    }
    return FAULT;
  }

  /** Whether the page is in one of the extents: shown by a MAP, taken away by an UNMAP. */
  tells(page: number): boolean {
    return this.extents.some((extent) => page >= extent.first && page <= extent.last);
  }

  /** Pages in all extents. */
  get toldPages(): number {
    return this.extents.reduce((sum, extent) => sum + (extent.last - extent.first + 1), 0);
  }
}

/**
 * Whether an access of a page that this MAP shows (undefined: that is free) may end as it did. A write where only reads are allowed is
 * refused. A read where only writes are allowed may be: stage 1 of VMSAv8-64 cannot say that (io-pgtable-arm.c, arm_lpae_prot_to_pte).
 */
export function isAnswerOf(holder: Operation | undefined, access: Operation): boolean {
  if (holder === undefined) return access.frame === FAULT;
  if (access.isWrite && !holder.isWritable) return access.frame === FAULT;
  if (access.frame === FAULT && !access.isWrite && !holder.isReadable) return true;
  return access.frame === holder.frameAt(access.first);
}

/** What an access of a page that this MAP shows sees, where there is a choice the frame. */
export function seenBy(access: Operation, holder: Operation | undefined): number {
  return holder === undefined || (access.isWrite && !holder.isWritable) ? FAULT : holder.frameAt(access.first);
}

/** Whether a MAP was refused because something is there: it never touched a page. */
export function isRefused(operation: Operation): boolean {
  return operation.rc === -EEXIST;
}

/** Whether a MAP may have been visible for a while and gone again by itself: it failed, or nobody knows. */
export function mayWithdraw(operation: Operation): boolean {
  return operation.rc !== 0;
}

/** Whether a MAP may have been published, so that an UNMAP can take it away: it ended well, or nobody knows. */
export function mayPublish(operation: Operation): boolean {
  return operation.rc === 0 || operation.rc === UNANSWERED;
}

/** How an UNMAP may end once everything it tells has gone and its search goes on at `cursor`, where `lowest` comes next. */
export function mayEndUnmap(
  unmap: Operation,
  cursor: number,
  lowest: Operation | undefined,
  isLowestBusy: boolean,
): boolean {
  switch (unmap.rc) {
    case 0:
      return lowest === undefined;
    case -ENOENT:
      if (lowest === undefined) return cursor === unmap.first;
      return !isLowestBusy && (lowest.first < cursor || lowest.last > unmap.last);
    case -EBUSY:
      return lowest !== undefined && isLowestBusy;
    default:
      return true;
  }
}

/** The extent in which the pages an UNMAP tells go on at or after `cursor`, cut to that; undefined when there are no more. */
export function nextTold(unmap: Operation, cursor: number): Extent | undefined {
  let next: Extent | undefined;
  for (const extent of unmap.extents) {
    if (extent.last >= cursor && (next === undefined || extent.first < next.first)) next = extent;
  }
  return next === undefined || next.first >= cursor ? next : { ...next, first: cursor };
}

function pagesText(first: number, last: number): string {
  return first === last ? `page ${hex(first)}` : `pages ${hex(first)}-${hex(last)}`;
}

/** A page or frame number as reports print it. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

/** A frame or the word for none. */
export function frameText(frame: number): string {
  return frame === FAULT ? 'a fault' : `frame ${hex(frame)}`;
}

function answerText(operation: Operation): string {
  if (operation.rc === UNANSWERED) return 'never returned';
  if (operation.kind === 'translate') return frameText(operation.frame);
  if (operation.rc !== 0) return errnoText(operation.rc);
  return operation.kind === 'unmap' ? `ok, ${operation.answeredPages} pages` : 'ok';
}

/** One line: `UNMAP (op 12) of pages 0x10-0x1f by 1: ok, 16 pages`. */
export function operationText(operation: Operation): string {
  const { kind, number, agent, first, last } = operation;
  const what = kind === 'attach' || kind === 'detach' ? '' : ` of ${pagesText(first, last)}`;
  return `${kind.toUpperCase()} (op ${number})${what} by ${agent}: ${answerText(operation)}`;
}

/** `MAP (op 3)` */
export function operationName(operation: Operation): string {
  return `${operation.kind.toUpperCase()} (op ${operation.number})`;
}

/** `pages 0x10-0x1f` of an operation. */
export function operationPages(operation: Operation): string {
  return pagesText(operation.first, operation.last);
}
