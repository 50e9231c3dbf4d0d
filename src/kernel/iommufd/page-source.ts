/**
 * Where mapped pages come from, and who pays for pinning them.
 *
 * The process that maps is remembered, not the one that later attaches: a page pinned by an attach is charged to the
 * mapper and comes from the mapper's address space.
 *
 * Source: Linux drivers/iommu/iommufd/pages.c (iopt_alloc_pages, do_update_pinned); domain.md A1.7, A1.9.
 */
import { invariant, type Task } from '../../runtime/task.js';
import { sharedTest, sharedUpdate } from '../../runtime/watch.js';
import { EINVAL, ENOMEM } from '../../uapi/errno.js';
import type { DmaBufFile } from '../dma-buf.js';
import type { OpenFile } from '../files.js';
import { MemfdFile } from '../mm/memfd.js';
import type { PinnedRun } from '../mm/mm.js';
import type { Process } from '../mm/process.js';
import type { AccountMode } from './main.js';
import { PAGE_BYTES, PAGE_SIZE, type PageSource, type PinAccount } from './pages.js';

/** Pages of a process from the page of `address` on. */
export function userPages(process: Process, address: bigint): PageSource {
  const { mm } = process;
  const startByte = address - (address % PAGE_SIZE);
  return {
    startByte,
    isDmaBuf: false,
    mm,
    *pin(firstPage, pages, write): Task<PinnedRun[] | number> {
      return yield* mm.pin_user_pages(startByte + BigInt(firstPage) * PAGE_SIZE, pages, write);
    },
    unpin: (runs) => mm.unpin_user_pages(runs),
    isLive: () => true,
    *close() {},
  };
}

/**
 * Pages of a file from the page of `offset` on. Pinning finds out whether it is a memfd: -EINVAL for other files. The source
 * keeps the file alive as a mapping of it would, whatever becomes of the descriptor.
 */
export function filePages(file: OpenFile, offset: bigint): PageSource {
  const startByte = offset - (offset % PAGE_SIZE);
  const first = Number(startByte / PAGE_SIZE);
  const memfd = file instanceof MemfdFile ? file : undefined;
  const reference = memfd?.map(0n, memfd.sizeBytes);
  return {
    startByte,
    isDmaBuf: false,
    mm: undefined,
    *pin(firstPage, pages): Task<PinnedRun[] | number> {
      return memfd === undefined ? -EINVAL : yield* memfd.memfd_pin_folios(first + firstPage, pages);
    },
    unpin: (runs) => memfd?.unpin_folios(runs),
    isLive: () => true,
    *close() {
      if (typeof reference === 'object') reference.unmapped?.();
    },
  };
}

/**
 * The part of a dma-buf from the page of `offset` on, attached; `revoked` runs when the buffer is taken away. -EINVAL when it
 * is not `lengthBytes` long there, -ENODEV while it is revoked, -EOPNOTSUPP where the exporter serves no IOMMU.
 */
export function* dmaBufPages(
  file: DmaBufFile,
  offset: bigint,
  lengthBytes: bigint,
  revoked: () => Task<void>,
): Task<PageSource | number> {
  if (offset + lengthBytes > file.sizeBytes) return -EINVAL;
  const importer = { invalidate: revoked };
  const address = yield* file.attach(importer);
  if (address < 0) return address;
  const startByte = offset - (offset % PAGE_SIZE);
  const firstPfn = (address + Number(startByte)) / PAGE_BYTES;
  return {
    startByte,
    isDmaBuf: true,
    mm: undefined,
    *pin(firstPage, pages): Task<PinnedRun[] | number> {
      return [{ pfn: firstPfn + firstPage, pages }];
    },
    unpin: () => undefined,
    isLive: () => file.serves(importer),
    close: () => file.detach(importer),
  };
}

/** A number of pages that several may charge at once. */
export interface PageCounter {
  /** Adds pages unless that makes more than `limit`; whether it did. */
  add(pages: number, limit: number): boolean;
  subtract(pages: number): void;
}

/** Where charges are counted, and up to how many. */
export interface PinCounters {
  /** What RLIMIT_MEMLOCK limits; undefined with CAP_IPC_LOCK. */
  readonly locked: PageCounter | undefined;
  readonly pinned: PageCounter;
  limitPages(): number;
}

/** A counter that only this thread sees. */
function ownCounter(read: () => number, write: (pages: number) => void): PageCounter {
  return {
    add(pages, limit): boolean {
      if (read() + pages > limit) return false;
      write(read() + pages);
      return true;
    },
    subtract: (pages) => write(read() - pages),
  };
}

/** An account that counts there. */
export function countingAccount(counters: PinCounters, of: PinAccount['of']): PinAccount {
  const { locked, pinned } = counters;
  return {
    charge(pages): number {
      if (locked?.add(pages, counters.limitPages()) === false) return -ENOMEM;
      pinned.add(pages, Infinity);
      return 0;
    },
    uncharge(pages): void {
      locked?.subtract(pages);
      pinned.subtract(pages);
    },
    of,
  };
}

/** The account of a process that maps now. */
export function pinAccount(process: Process, mode: AccountMode): PinAccount {
  return accountOf(process, process.capable('CAP_IPC_LOCK') ? 'none' : mode);
}

function accountOf(process: Process, mode: AccountMode | 'none'): PinAccount {
  const { mm } = process;
  const payer = mode === 'none' ? undefined : mode === 'mm' ? mm : process.user;
  const limitPages = (): number => {
    const limit = process.rlimits.memlockBytes;
    return limit === undefined ? Infinity : Number(limit / BigInt(PAGE_BYTES));
  };
  const isLimited = (): boolean => process.rlimits.memlockBytes !== undefined;
  const locked =
    payer &&
    ownCounter(
      () => {
        // Who is limited decides by what others have charged.
        (isLimited() ? sharedTest : sharedUpdate)(payer, 'locked_vm', payer.lockedVm);
        return payer.lockedVm;
      },
      (pages) => {
        invariant(pages >= 0, `${payer.lockedVm - pages} pages are uncharged of ${payer.lockedVm}`, 'INV-5');
        sharedUpdate(payer, 'locked_vm', payer.lockedVm, pages);
        payer.lockedVm = pages;
      },
    );
  const pinned = ownCounter(
    () => mm.pinnedVm,
    (pages) => {
      invariant(pages >= 0, `${mm.pinnedVm - pages} pages are uncharged of ${mm.pinnedVm}`, 'INV-5');
      sharedUpdate(mm, 'pinned_vm', mm.pinnedVm, pages);
      mm.pinnedVm = pages;
    },
  );
  return countingAccount({ locked, pinned, limitPages }, (other) => {
    const paysAlready = other.mm === mm && (mode === 'mm' || other.user === process.user);
    return mode === 'none' || paysAlready ? undefined : accountOf(other, mode);
  });
}
