/**
 * Pinned memory behind mappings: `struct iopt_pages`.
 *
 * A pages object stands for a run of pages of a process's address space or of a memfd. Areas (of one or several address
 * spaces: IOAS_COPY shares the object) take slices of it. A page is pinned while at least one domain or access uses it,
 * once, however many do; nothing is pinned while nobody does. Pins are kept as extents {first, last, users, runs}, so a
 * terabyte of contiguous memory is a handful of records.
 *
 * Accounting: pages that are pinned are charged to the user's `locked_vm` (against RLIMIT_MEMLOCK), or to the process's,
 * or to nobody with CAP_IPC_LOCK; the process's `pinned_vm` counts in any case. Charged after pinning and mapping, whose
 * errors win over ENOMEM, as in Linux.
 *
 * The pages know each area and domain they are mapped in: a dma-buf, which is neither pinned nor charged, can be revoked at any time.
 *
 * Lock order: `domains_rwsem` -> `iova_rwsem` -> `pages.mutex`. Whoever changes the extents holds the mutex.
 * Invariants: extents are disjoint, sorted, users >= 1; charged pages = pages in extents (domain.md INV-3, INV-5).
 *
 * Source: Linux drivers/iommu/iommufd/pages.c; domain.md A1.8, A1.9, A6.5.
 */
import { freeLocks, Mutex, type MutexLock } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedCount, sharedRead, sharedWrite } from '../../runtime/watch.js';
import { EFAULT, EINVAL, ENOMEM, EPERM } from '../../uapi/errno.js';
import type { PagingDomain } from '../iommu/domain.js';
import type { MmStruct, PinnedRun } from '../mm/mm.js';
import type { Process } from '../mm/process.js';
import { NO_INSTRUMENTS, type Instruments } from './instruments.js';

/** The kernel's PAGE_SIZE for iommufd. */
export const PAGE_BYTES = 4096;
/** The same for 64-bit arithmetic. */
export const PAGE_SIZE = 4096n;

/** Where pages come from: an address space, a file or a dma-buf. */
export interface PageSource {
  /** Address (or file offset) of page 0, page aligned: what automatic IOVAs are aligned like. */
  readonly startByte: bigint;
  /** Not memory but a device's frames: nothing is pinned, and only devices may use it. */
  readonly isDmaBuf: boolean;
  /** The address space the pages come from; undefined for files. */
  readonly mm: MmStruct | undefined;
  /** Pins pages of the object; the runs in order, or -errno with nothing pinned. */
  pin(firstPage: number, pages: number, write: boolean): Task<PinnedRun[] | number>;
  unpin(runs: readonly PinnedRun[]): void;
  /** Whether the pages may be shown to devices: not those of a dma-buf that was revoked. */
  isLive(): boolean;
  /** Nobody maps the pages any more: lets go of the file or address space. */
  close(): Task<void>;
}

/** Who pays for pinned pages. */
export interface PinAccount {
  /** Adds to what is counted; -ENOMEM over the limit, with nothing added. */
  charge(pages: number): number;
  uncharge(pages: number): void;
  /** The same kind of account of another process; undefined when that pays the same way already. */
  of(process: Process): PinAccount | undefined;
}

/** The account of what is not memory. */
export const NO_ACCOUNT: PinAccount = { charge: () => 0, uncharge: () => undefined, of: () => undefined };

/** An area that shows pages. */
export interface PagesUser {
  readonly iova: bigint;
  readonly lengthBytes: bigint;
}

/** Pages first..last, pinned, with as many users each. */
export interface Extent {
  readonly first: number;
  readonly last: number;
  readonly users: number;
  readonly runs: readonly PinnedRun[];
}

/**
 * What changes about a pages object. Everything but the references is covered by the mutex. In the arena (shared-records.ts) where
 * threads share pages objects.
 */
export interface PagesState {
  readonly mutex: MutexLock;
  /** Seen by other threads through objects of their own. */
  readonly isShared: boolean;
  /** Sorted, disjoint. Never changed in place. */
  extents: readonly Extent[];
  /** Whether there is memory to keep so many. Taking users away never needs more. */
  hasRoomFor(extents: readonly Extent[]): boolean;
  npinned: number;
  /** Pages the account has been charged for. */
  charged: number;
  /** Adds a reference, or takes one away; how many there are then. */
  refer(change: 1 | -1): number;
  /** Nobody refers to the object any more. */
  free(): void;
}

/** The state of a pages object of one thread; the creator holds a reference. */
class HeapPagesState implements PagesState {
  readonly mutex = new Mutex('iopt:pages_mutex');
  readonly isShared = false;
  extents: readonly Extent[] = [];
  npinned = 0;
  charged = 0;
  #references = 1;

  hasRoomFor(): boolean {
    return true;
  }

  refer(change: 1 | -1): number {
    return (this.#references += change);
  }

  free(): void {
    // The heap is collected.
  }
}

/** The part of `runs` (which begin at page `base`) that covers first..last. */
function sliceRuns(runs: readonly PinnedRun[], base: number, first: number, last: number): PinnedRun[] {
  const slice: PinnedRun[] = [];
  let at = base;
  for (const run of runs) {
    const from = Math.max(at, first);
    const end = Math.min(at + run.pages, last + 1);
    if (end > from) slice.push({ pfn: run.pfn + (from - at), pages: end - from });
    at += run.pages;
    if (at > last) break;
  }
  return slice;
}

/** Copies between `data` and physical memory from byte `offset` of the first run on: 0 or -EFAULT. */
function copyRuns(
  memory: MmStruct['memory'],
  runs: readonly PinnedRun[],
  offset: number,
  data: Uint8Array,
  write: boolean,
): number {
  let skip = offset;
  let done = 0;
  for (const { pfn, pages } of runs) {
    const length = Math.min(pages * PAGE_BYTES - skip, data.length - done);
    const piece = data.subarray(done, done + length);
    const pa = pfn * PAGE_BYTES + skip;
    const bytes = write ? undefined : memory.read(pa, length);
    if (write ? !memory.write(pa, piece) : bytes === undefined) return -EFAULT;
    if (bytes !== undefined) piece.set(bytes);
    done += length;
    skip = 0;
  }
  return 0;
}

/** Physical runs behind each other as one where they touch. */
export function appendRuns(into: PinnedRun[], runs: readonly PinnedRun[]): void {
  for (const run of runs) {
    const before = into.at(-1);
    if (before !== undefined && before.pfn + before.pages === run.pfn) {
      into[into.length - 1] = { pfn: before.pfn, pages: before.pages + run.pages };
    } else {
      into.push(run);
    }
  }
}

function isWithin(extent: Extent, first: number, last: number): boolean {
  return extent.first >= first && extent.last <= last;
}

function part(extent: Extent, first: number, last: number): Extent {
  return { first, last, users: extent.users, runs: sliceRuns(extent.runs, extent.first, first, last) };
}

/** The same extents split so that none crosses a border of first..last. */
function cutExtents(extents: readonly Extent[], first: number, last: number): Extent[] {
  const cut: Extent[] = [];
  for (const extent of extents) {
    let from = extent.first;
    for (const border of [first, last + 1]) {
      if (border <= from || border > extent.last) continue;
      cut.push(part(extent, from, border - 1));
      from = border;
    }
    cut.push(from === extent.first ? extent : part(extent, from, extent.last));
  }
  return cut;
}

/** The same extents, neighbours with the same number of users as one. */
function joinExtents(extents: readonly Extent[]): Extent[] {
  const joined: Extent[] = [];
  for (const extent of extents) {
    const before = joined.at(-1);
    if (before === undefined || before.last + 1 !== extent.first || before.users !== extent.users) {
      joined.push(extent);
      continue;
    }
    const runs = [...before.runs];
    appendRuns(runs, extent.runs);
    joined[joined.length - 1] = { first: before.first, last: extent.last, users: before.users, runs };
  }
  return joined;
}

/**
 * What is unpinned too much where the end of a batch is reckoned from where it is read on in the domain (`start`) and not from where
 * unpinning goes on (`start_index`): pages behind a hole in the accesses, as many as were carried over into it because they had been
 * unmapped together with those before the access, and only if the hole has others. `extents`: those of an area that a domain showed.
 */
function carriedTwice(extents: readonly Extent[]): PinnedRun | undefined {
  const runs: PinnedRun[] = [];
  for (const extent of extents) appendRuns(runs, extent.runs);
  let unmappedEnd = 0;
  for (const hole of extents) {
    if (hole.users > 1) continue;
    const carried = unmappedEnd - hole.first;
    if (carried > 0 && unmappedEnd <= hole.last) {
      const last = hole.runs.at(-1);
      return last && { pfn: last.pfn + last.pages, pages: carried };
    }
    let end = extents[0]?.first ?? 0;
    for (const run of runs) if (end <= hole.last) end += run.pages;
    unmappedEnd = Math.max(unmappedEnd, end);
  }
  return undefined;
}

/** Memory that areas map: pins, users, accounting. */
export class IoptPages {
  readonly source: PageSource;
  readonly npages: number;
  readonly writable: boolean;
  readonly state: PagesState;
  readonly #instruments: Instruments;
  #account: PinAccount;
  /** Who pays from the end of an IOMMU_IOAS_CHANGE_PROCESS on. */
  #nextAccount: PinAccount | undefined;
  #isFreed = false;
  /** In which domains an area shows the pages (`domains_itree`; of dma-bufs `struct iopt_pages_dmabuf_track`). */
  readonly #domainsOf = new Map<PagesUser, PagingDomain[]>();
  #isRevoked = false;

  /** The first `lengthBytes` bytes of a source, rounded up to pages; the creator holds a reference. */
  constructor(
    source: PageSource,
    lengthBytes: bigint,
    writable: boolean,
    account: PinAccount,
    instruments = NO_INSTRUMENTS,
    state: PagesState = new HeapPagesState(),
  ) {
    this.state = state;
    this.#instruments = instruments;
    this.source = source;
    this.npages = Number((lengthBytes + PAGE_SIZE - 1n) / PAGE_SIZE);
    this.writable = writable;
    this.#account = account;
    instruments.countPages(1);
  }

  get mutex(): MutexLock {
    return this.state.mutex;
  }

  /** Charges another process for what is pinned, beside the one that pays now; 0 or -ENOMEM. */
  chargeTo(process: Process): number {
    const next = this.#account.of(process);
    sharedWrite(this, 'account');
    sharedRead(this, 'charged', this.state.charged);
    const rc = next?.charge(this.state.charged) ?? 0;
    if (rc === 0) this.#nextAccount = next;
    return rc;
  }

  /** Takes {@link chargeTo} back. */
  keepPayer(): void {
    sharedWrite(this, 'account');
    this.#nextAccount?.uncharge(this.state.charged);
    this.#nextAccount = undefined;
  }

  /** The one that was charged last pays alone. */
  changePayer(): void {
    if (this.#nextAccount === undefined) return;
    sharedWrite(this, 'account');
    sharedRead(this, 'charged', this.state.charged);
    this.#account.uncharge(this.state.charged);
    this.#account = this.#nextAccount;
    this.#nextAccount = undefined;
  }

  /** One more area (or call that makes one) refers to the pages. */
  get(): void {
    this.#checkAlive();
    const references = this.state.refer(1);
    sharedCount(this, 'references', references - 1, references);
  }

  /** One fewer; the last one lets go of the source. */
  *put(): Task<void> {
    this.#checkAlive();
    const references = this.state.refer(-1);
    sharedCount(this, 'references', references + 1, references);
    if (references > 0) return;
    invariant(this.state.npinned === 0, 'nobody maps pages that are still pinned', 'INV-3');
    invariant(this.#domainsOf.size === 0, 'pages are freed that an area shows in a domain', 'objects');
    if (this.source.isDmaBuf && this.#instruments.fires('iommufd.dmabuf-freed-attached')) {
      this.#isFreed = true;
      yield 'iommufd:pages-freed';
    }
    yield* this.source.close();
    if (!this.state.isShared) freeLocks([this.mutex]);
    this.#isFreed = true;
    this.state.free();
    this.#instruments.countPages(-1);
    this.#instruments.held('INV-3');
  }

  #checkAlive(): void {
    invariant(!this.#isFreed, 'use of an iopt_pages that was freed', 'objects');
  }

  /** Pages pinned now. */
  get npinned(): number {
    return this.state.npinned;
  }

  /** The dma-buf was taken away: these pages show nothing, for good. */
  get isRevoked(): boolean {
    sharedRead(this, 'revoked', this.#isRevoked);
    return this.#isRevoked;
  }

  /** An area is in a domain's tables now. */
  track(domain: PagingDomain, area: PagesUser): void {
    sharedWrite(this, 'tracks');
    if (this.state.isShared) return;
    this.#checkAlive();
    invariant(this.source.isLive(), 'pages of a dma-buf that was revoked are in the tables of a domain', 'INV-4');
    this.#instruments.held('INV-4');
    const domains = this.#domainsOf.get(area);
    if (domains === undefined) this.#domainsOf.set(area, [domain]);
    else domains.push(domain);
  }

  untrack(domain: PagingDomain, area: PagesUser): void {
    sharedWrite(this, 'tracks');
    if (this.state.isShared) return;
    this.#checkAlive();
    const domains = this.#domainsOf.get(area) ?? [];
    const index = domains.indexOf(domain);
    invariant(index >= 0, 'an area leaves a domain in which its pages do not have it', 'objects');
    domains.splice(index, 1);
    if (domains.length === 0) this.#domainsOf.delete(area);
  }

  /** An area was cut. */
  replaceArea(area: PagesUser, parts: readonly PagesUser[]): void {
    const domains = this.#domainsOf.get(area);
    if (domains === undefined || this.#instruments.fires('iommufd.split-stale-tree')) return;
    this.#domainsOf.delete(area);
    for (const part of parts) this.#domainsOf.set(part, [...domains]);
  }

  /** Takes the pages of a dma-buf out of every domain; the areas stay (`iopt_revoke_notify`). */
  *revoke(): Task<void> {
    this.#checkAlive();
    yield* this.mutex.lock();
    this.#checkAlive();
    for (const [area, domains] of this.#domainsOf)
      for (const domain of domains) {
        yield* domain.unmap(Number(area.iova), Number(area.lengthBytes));
        domain.onLeave?.(area.iova, area.lengthBytes);
      }
    sharedWrite(this, 'tracks');
    sharedWrite(this, 'revoked', this.#isRevoked, true);
    this.#domainsOf.clear();
    this.#isRevoked = true;
    this.mutex.unlock();
  }

  /**
   * Adds a user to every page of first..last and pins those that had none; 0 or -errno with nothing changed. What is pinned
   * is charged by {@link charge}, after it was mapped.
   */
  *use(first: number, last: number): Task<number> {
    this.#checkAlive();
    invariant(this.mutex.isHeld, 'iopt_pages: use without the mutex');
    invariant(first <= last && last < this.npages, 'iopt_pages: use beyond the object');
    const added: Extent[] = [];
    let rc = 0;
    for (const [from, to] of this.#gaps(first, last)) {
      if (this.#instruments.fires('kernel.kmalloc')) {
        rc = -ENOMEM;
        break;
      }
      const runs = yield* this.source.pin(from, to - from + 1, this.writable);
      if (typeof runs === 'number') {
        rc = runs;
        break;
      }
      added.push({ first: from, last: to, users: 0, runs });
    }
    yield 'iommufd:pages-pinned';
    const extents = [...this.state.extents, ...added].sort((a, b) => a.first - b.first);
    const used = cutExtents(extents, first, last).map((extent) =>
      isWithin(extent, first, last) ? { ...extent, users: extent.users + 1 } : extent,
    );
    if (rc === 0 && !this.state.hasRoomFor(used)) rc = -ENOMEM;
    if (rc < 0) {
      for (const extent of added) this.source.unpin(extent.runs);
      return rc;
    }
    const before = this.state.npinned;
    this.state.npinned += added.reduce((sum, e) => sum + e.last - e.first + 1, 0);
    sharedWrite(this, 'pins', before, this.state.npinned);
    this.state.extents = used;
    this.#checkPins();
    return 0;
  }

  /** Charges for what has been pinned since; -ENOMEM with nothing charged. */
  charge(): number {
    sharedRead(this, 'account');
    const { state } = this;
    const more = state.npinned - state.charged;
    const rc = more === 0 ? 0 : this.#account.charge(more);
    if (rc === 0) this.#setCharged(state.npinned);
    return rc;
  }

  /**
   * Takes a user from every page of first..last and unpins those that have none left. `user`: whether domains showed the pages or an access
   * had them. What a domain showed has been unmapped: the kernel reads from the domain what there is to unpin, up to the next page that an
   * access has, and unmaps to the end of the physical run that it reads in.
   */
  release(first: number, last: number, user: 'domain' | 'access' = 'domain'): void {
    this.#checkAlive();
    invariant(this.mutex.isHeld, 'iopt_pages: release without the mutex');
    const { state } = this;
    const kept: Extent[] = [];
    sharedRead(this, 'account');
    const before = state.npinned;
    const cut = cutExtents(state.extents, first, last);
    let freed = 0;
    let released = 0;
    for (const extent of cut) {
      const isGone = isWithin(extent, first, last);
      const pages = extent.last - extent.first + 1;
      const users = isGone ? extent.users - 1 : extent.users;
      if (isGone) released += pages;
      if (users > 0) kept.push({ ...extent, users });
      if (users > 0) continue;
      this.source.unpin(extent.runs);
      freed += pages;
    }
    if (user === 'domain' && this.#instruments.fires('iommufd.unpin-in-use')) {
      const behind = carriedTwice(cut.filter((extent) => isWithin(extent, first, last)));
      if (behind !== undefined) this.source.unpin([behind]);
      freed += behind?.pages ?? 0;
    }
    invariant(released === last - first + 1, 'pages are unpinned that nobody has pinned', 'INV-3');
    state.npinned -= freed;
    sharedWrite(this, 'pins', before, state.npinned);
    const less = state.charged - state.npinned;
    if (less > 0) {
      this.#account.uncharge(less);
      this.#setCharged(state.npinned);
    }
    state.extents = joinExtents(kept);
    this.#checkPins();
  }

  #setCharged(pages: number): void {
    sharedWrite(this, 'charged', this.state.charged, pages);
    this.state.charged = pages;
  }

  /** Pinned is what somebody uses, no more and no less. */
  #checkPins(): void {
    const { extents, npinned } = this.state;
    const used = extents.reduce((sum, { first, last }) => sum + last - first + 1, 0);
    invariant(used === npinned, () => `${npinned} pages are pinned and ${used} are used`, 'INV-3');
    this.#instruments.held('INV-3');
  }

  /** The physical runs behind pages first..last, all of which must be in use. */
  runs(first: number, last: number): PinnedRun[] {
    sharedRead(this, 'pins', this.state.npinned);
    const runs: PinnedRun[] = [];
    for (const extent of this.state.extents) {
      if (extent.last < first || extent.first > last) continue;
      appendRuns(runs, sliceRuns(extent.runs, extent.first, first, last));
    }
    invariant(
      runs.reduce((sum, run) => sum + run.pages, 0) === last - first + 1,
      'use of pages that are not pinned',
      'INV-3',
    );
    return runs;
  }

  /**
   * Copies between `data` and bytes startByte.. (`iopt_pages_rw_access`): 0, -EPERM writing to read-only pages, -EINVAL for a
   * dma-buf, -EFAULT. The
   * process that mapped the pages copies through its address space, which pins nothing and does not ask whether the
   * mapping may be written: bytes before a fault are copied. Others (`isSlow`) pin everything first.
   *
   * A single page of an address space that still lives is looked up there anew, whatever is pinned already and without the mutex
   * (`iopt_pages_rw_page`): it can be another than the one that devices see.
   */
  *rw(process: Process, startByte: bigint, data: Uint8Array, write: boolean, isSlow: boolean): Task<number> {
    this.#checkAlive();
    if (write && !this.writable) return -EPERM;
    if (this.source.isDmaBuf) return -EINVAL;
    const { mm } = this.source;
    if (mm !== undefined && mm === process.mm && !isSlow) {
      const address = this.source.startByte + startByte;
      if (write) return mm.copy_to_user(address, data) ? 0 : -EFAULT;
      const bytes = mm.copy_from_user(address, data.length);
      if (bytes === undefined) return -EFAULT;
      data.set(bytes);
      return 0;
    }
    const first = Number(startByte / PAGE_SIZE);
    const last = Number((startByte + BigInt(data.length) - 1n) / PAGE_SIZE);
    const offset = Number(startByte % PAGE_SIZE);
    if (mm?.isAlive === true && first === last) {
      // Pinned for what is done with it, not for what the mapping allows.
      const page = yield* this.source.pin(first, 1, write);
      if (typeof page === 'number') return page;
      const rc = copyRuns(process.mm.memory, page, offset, data, write);
      this.source.unpin(page);
      return rc;
    }
    yield* this.mutex.lock();
    const pinned: PinnedRun[][] = [];
    const runs: PinnedRun[] = [];
    let rc = 0;
    sharedRead(this, 'pins', this.state.npinned);
    for (let page = first; page <= last && rc === 0; page++) {
      const own = this.#gaps(page, page).length === 0 ? undefined : yield* this.source.pin(page, 1, this.writable);
      if (typeof own === 'number') rc = own;
      else {
        if (own !== undefined) pinned.push(own);
        appendRuns(runs, own ?? this.runs(page, page));
      }
    }
    if (rc === 0) rc = copyRuns(process.mm.memory, runs, offset, data, write);
    for (const own of pinned) this.source.unpin(own);
    this.mutex.unlock();
    return rc;
  }

  /** Ranges of first..last that no extent covers. */
  #gaps(first: number, last: number): [number, number][] {
    const gaps: [number, number][] = [];
    let at = first;
    for (const extent of this.state.extents) {
      if (extent.last < at) continue;
      if (extent.first > last) break;
      if (extent.first > at) gaps.push([at, extent.first - 1]);
      at = extent.last + 1;
    }
    if (at <= last) gaps.push([at, last]);
    return gaps;
  }
}
