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
import type { DmaBufFile, DmaBufImporter } from '../dma-buf.js';
import type { OpenFile } from '../files.js';
import { MemfdFile } from '../mm/memfd.js';
import type { FileMapping, MmStruct, PinnedRun } from '../mm/mm.js';
import type { Process } from '../mm/process.js';
import type { AccountMode } from './main.js';
import { PAGE_BYTES, PAGE_SIZE, type PageSource, type PinAccount } from './pages.js';

function startOfPage(address: bigint): bigint {
  return address - (address % PAGE_SIZE);
}

class UserPages implements PageSource {
  readonly startByte: bigint;
  readonly isDmaBuf = false;
  readonly mm: MmStruct;

  constructor(mm: MmStruct, address: bigint) {
    this.mm = mm;
    this.startByte = startOfPage(address);
  }

  pin(firstPage: number, pages: number, write: boolean): Task<PinnedRun[] | number> {
    return this.mm.pin_user_pages(this.startByte + BigInt(firstPage) * PAGE_SIZE, pages, write);
  }

  unpin(runs: readonly PinnedRun[]): void {
    this.mm.unpin_user_pages(runs);
  }

  isLive(): boolean {
    return true;
  }

  *close(): Task<void> {
    // The address space is the process's.
  }
}

/** Pages of a process from the page of `address` on. */
export function userPages({ mm }: Process, address: bigint): PageSource {
  return new UserPages(mm, address);
}

class FilePages implements PageSource {
  readonly startByte: bigint;
  readonly isDmaBuf = false;
  readonly mm = undefined;
  readonly #memfd: MemfdFile | undefined;
  readonly #reference: FileMapping | number | undefined;

  constructor(file: OpenFile, offset: bigint) {
    this.startByte = startOfPage(offset);
    this.#memfd = file instanceof MemfdFile ? file : undefined;
    this.#reference = this.#memfd?.map(0n, this.#memfd.sizeBytes);
  }

  *pin(firstPage: number, pages: number): Task<PinnedRun[] | number> {
    if (this.#memfd === undefined) return -EINVAL;
    return yield* this.#memfd.memfd_pin_folios(Number(this.startByte / PAGE_SIZE) + firstPage, pages);
  }

  unpin(runs: readonly PinnedRun[]): void {
    this.#memfd?.unpin_folios(runs);
  }

  isLive(): boolean {
    return true;
  }

  *close(): Task<void> {
    if (typeof this.#reference === 'object') this.#reference.unmapped?.();
  }
}

/**
 * Pages of a file from the page of `offset` on. Pinning finds out whether it is a memfd: -EINVAL for other files. The source
 * keeps the file alive as a mapping of it would, whatever becomes of the descriptor.
 */
export function filePages(file: OpenFile, offset: bigint): PageSource {
  return new FilePages(file, offset);
}

class DmaBufPages implements PageSource {
  readonly startByte: bigint;
  readonly isDmaBuf = true;
  readonly mm = undefined;
  readonly #file: DmaBufFile;
  readonly #importer: DmaBufImporter;
  readonly #firstPfn: number;

  /** `address`: where the buffer begins in physical memory. */
  constructor(file: DmaBufFile, importer: DmaBufImporter, address: number, offset: bigint) {
    this.startByte = startOfPage(offset);
    this.#file = file;
    this.#importer = importer;
    this.#firstPfn = (address + Number(this.startByte)) / PAGE_BYTES;
  }

  *pin(firstPage: number, pages: number): Task<PinnedRun[] | number> {
    return [{ pfn: this.#firstPfn + firstPage, pages }];
  }

  unpin(): void {
    // A device's frames are not pinned.
  }

  isLive(): boolean {
    return this.#file.serves(this.#importer);
  }

  close(): Task<void> {
    return this.#file.detach(this.#importer);
  }
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
  return address < 0 ? address : new DmaBufPages(file, importer, address, offset);
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
        invariant(pages >= 0, () => `${payer.lockedVm - pages} pages are uncharged of ${payer.lockedVm}`, 'INV-5');
        sharedUpdate(payer, 'locked_vm', payer.lockedVm, pages);
        payer.lockedVm = pages;
      },
    );
  const pinned = ownCounter(
    () => mm.pinnedVm,
    (pages) => {
      invariant(pages >= 0, () => `${mm.pinnedVm - pages} pages are uncharged of ${mm.pinnedVm}`, 'INV-5');
      sharedUpdate(mm, 'pinned_vm', mm.pinnedVm, pages);
      mm.pinnedVm = pages;
    },
  );
  return countingAccount({ locked, pinned, limitPages }, (other) => {
    const paysAlready = other.mm === mm && (mode === 'mm' || other.user === process.user);
    return mode === 'none' || paysAlready ? undefined : accountOf(other, mode);
  });
}
