/**
 * Software MSI: doorbells that sit behind the IOMMU get a page in a window the IOMMU's driver reserves.
 *
 * The list of doorbell pages belongs to the descriptor: the n-th doorbell of a window is at window start + n pages for
 * every device of that descriptor, so an address programmed into a device stays right when it moves to another page table.
 * A page is mapped in a page table when the first device there needs it, and again wherever its group goes.
 *
 * Lock: `mutex`, innermost: devices of different groups come here under different locks of their own, which were all that type1's list had (IN-32). Source: Linux drivers/iommu/iommufd/driver.c, device.c; domain.md A1.37.
 */
import type { FaultSwitches } from '../../runtime/faults.js';
import { Mutex } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { EOVERFLOW } from '../../uapi/errno.js';
import { IOMMU_MMIO, IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.js';
import type { HwptPaging } from './hw-pagetable.js';
import { PAGE_BYTES } from './pages.js';

/** Doorbell pages a descriptor can have: the kernel keeps them in one 64-bit word. */
const MAX_PAGES = 64;

interface SwMsiPage {
  readonly id: number;
  readonly windowStart: number;
  readonly doorbellPage: number;
  readonly pageOffset: number;
}

/** The doorbell pages of one iommufd. */
export class SwMsiPages {
  readonly #mutex = new Mutex('iommufd:sw_msi_lock');
  readonly #pages: SwMsiPage[] = [];
  readonly #faults: FaultSwitches | undefined;

  constructor(faults?: FaultSwitches) {
    this.#faults = faults;
  }

  /**
   * Maps a doorbell for a group's page table; its IOVA, or -errno. Notes the page in `required`. Without a window the
   * doorbell is reached at its own address.
   */
  *prepare(
    hwpt: HwptPaging,
    windowStart: bigint | undefined,
    doorbellPa: number,
    required: Set<number>,
  ): Task<bigint | number> {
    if (windowStart === undefined) return BigInt(doorbellPa);
    const isLocked = this.#faults?.fires('iommufd.sw-msi-unlocked') !== true;
    if (isLocked) yield* this.#mutex.lock();
    try {
      const offset = doorbellPa % PAGE_BYTES;
      const page = yield* this.#find(Number(windowStart), doorbellPa - offset);
      if (page === undefined) return -EOVERFLOW;
      const rc = yield* this.#install(hwpt, page);
      if (rc < 0) return rc;
      sharedWrite(required, 'doorbells', required.size);
      required.add(page.id);
      const iova = page.windowStart + page.pageOffset * PAGE_BYTES + offset;
      this.#check(hwpt, iova, doorbellPa);
      return BigInt(iova);
    } finally {
      if (isLocked) this.#mutex.unlock();
    }
  }

  /** Maps every page a group has been using into the page table it moves to: 0 or -errno. */
  *installAll(hwpt: HwptPaging, windowStart: bigint, required: ReadonlySet<number>): Task<number> {
    yield* this.#mutex.lock();
    try {
      sharedRead(required, 'doorbells', required.size);
      sharedRead(this, 'pages', this.#pages.length);
      for (const page of this.#pages) {
        if (BigInt(page.windowStart) !== windowStart || !required.has(page.id)) continue;
        const rc = yield* this.#install(hwpt, page);
        if (rc < 0) return rc;
      }
      return 0;
    } finally {
      this.#mutex.unlock();
    }
  }

  *#find(windowStart: number, doorbellPage: number): Task<SwMsiPage | undefined> {
    sharedRead(this, 'pages', this.#pages.length);
    const ofWindow = this.#pages.filter((page) => page.windowStart === windowStart);
    const known = ofWindow.find((page) => page.doorbellPage === doorbellPage);
    if (known !== undefined || this.#pages.length >= MAX_PAGES) return known;
    const page = { id: this.#pages.length, windowStart, doorbellPage, pageOffset: ofWindow.length };
    yield 'iommufd:sw-msi-page';
    sharedWrite(this, 'pages', this.#pages.length, this.#pages.length + 1);
    this.#pages.push(page);
    return page;
  }

  /** What a device is told to write to must be its doorbell, and a doorbell have one page of a window. */
  #check(hwpt: HwptPaging, iova: number, doorbellPa: number): void {
    const pa = hwpt.domain.iova_to_phys(iova);
    invariant(
      pa === doorbellPa,
      () =>
        `an interrupt message for 0x${doorbellPa.toString(16)} goes to ${pa === undefined ? 'nowhere' : `0x${pa.toString(16)}`}`,
      'INV-15',
    );
    sharedRead(this, 'pages', this.#pages.length);
    const keys = this.#pages.map((page) => `${page.windowStart}/${page.doorbellPage}`);
    invariant(new Set(keys).size === keys.length, 'an MSI doorbell has two pages of one window', 'INV-15');
  }

  *#install(hwpt: HwptPaging, page: SwMsiPage): Task<number> {
    sharedRead(hwpt, 'MSI doorbells', hwpt.presentSwMsi.size);
    if (hwpt.presentSwMsi.has(page.id)) return 0;
    const iova = page.windowStart + page.pageOffset * PAGE_BYTES;
    const rc = yield* hwpt.domain.map(iova, page.doorbellPage, PAGE_BYTES, IOMMU_READ | IOMMU_WRITE | IOMMU_MMIO);
    if (rc < 0) return rc;
    sharedWrite(hwpt, 'MSI doorbells', hwpt.presentSwMsi.size, hwpt.presentSwMsi.size + 1);
    hwpt.presentSwMsi.add(page.id);
    return 0;
  }
}
