/**
 * The page table of the selftest's mock IOMMU.
 *
 * Entries have any size out of the domain's list (powers of two from 2048 up), the largest that IOVA, physical address and
 * length allow, and one dirty bit each. Unmapping takes whole entries.
 *
 * As AMDv1's, the table grows: it begins with as many levels as low addresses need, and a mapping above what the root reaches puts a
 * new root on top, of which the old one is the first entry. Walkers take no lock, so root and level are published as one word
 * (`top_of_table`).
 *
 * Source: Linux drivers/iommu/iommufd/selftest.c, drivers/iommu/generic_pt/fmt/iommu_mock.c, iommu_pt.h (increase_top).
 */
import type { FaultSwitches } from '../../../runtime/faults.js';
import { invariant, type Task } from '../../../runtime/task.js';
import { sharedRange, sharedRead, sharedWrite } from '../../../runtime/watch.js';
import { EEXIST, EINVAL, ERANGE } from '../../../uapi/errno.js';
import {
  MOCK_APERTURE_LAST,
  MOCK_APERTURE_START,
  MOCK_HUGE_PAGE_SIZE,
  MOCK_PAGE_SIZE,
} from '../../../uapi/iommufd-test.js';
import {
  IOMMU_READ,
  IOMMU_WRITE,
  type DirtyOps,
  type DirtyRecorder,
  type IommuDriver,
  type PagingDomain,
} from '../../iommu/domain.js';
import { PAGE_BYTES } from '../pages.js';

/** What a kind of mock page table can do. */
export interface MockFormat {
  readonly apertureStart: bigint;
  readonly apertureLast: bigint;
  readonly pageSizes: readonly number[];
}

/** Up to this the default format has entries; no memory of a mock is contiguous beyond. */
const LARGEST_ENTRY_LOG2 = 36;

/** MOCK_IOMMUPT_DEFAULT: like AMDv1, entries of every power of two. */
export const MOCK_FORMAT_DEFAULT: MockFormat = {
  apertureStart: BigInt(MOCK_APERTURE_START),
  apertureLast: BigInt(MOCK_APERTURE_LAST),
  pageSizes: Array.from(
    { length: LARGEST_ENTRY_LOG2 - Math.log2(MOCK_PAGE_SIZE) + 1 },
    (_, i) => MOCK_PAGE_SIZE * 2 ** i,
  ),
};

/** MOCK_IOMMUPT_HUGE: pages and 1 MiB blocks only. */
export const MOCK_FORMAT_HUGE: MockFormat = {
  apertureStart: 0n,
  apertureLast: 0x3f_ffff_ffffn,
  pageSizes: [PAGE_BYTES, MOCK_HUGE_PAGE_SIZE],
};

/** log2 of what a root reaches, by level. */
const REACH_LOG2 = [29, 38, 47, 56, 64];

interface Entry {
  readonly iova: number;
  readonly pa: number;
  readonly sizeBytes: number;
  isDirty: boolean;
}

/** A root: what lies above the reach of the one below it. */
class Root {
  readonly below: Root | undefined;
  readonly #entries = new Map<number, Entry>();
  /** How many entries of each size there are, sizes that have none left out. */
  readonly #countBySize = new Map<number, number>();

  constructor(below?: Root) {
    this.below = below;
  }

  get isEmpty(): boolean {
    return this.#entries.size === 0 && this.below?.isEmpty !== false;
  }

  /** Every entry, in no order. */
  *entries(): Generator<Entry> {
    yield* this.#entries.values();
    if (this.below !== undefined) yield* this.below.entries();
  }

  add(entry: Entry): void {
    this.#entries.set(entry.iova, entry);
    this.#countBySize.set(entry.sizeBytes, (this.#countBySize.get(entry.sizeBytes) ?? 0) + 1);
  }

  delete(entry: Entry): void {
    this.#entries.delete(entry.iova);
    const left = (this.#countBySize.get(entry.sizeBytes) ?? 0) - 1;
    if (left === 0) this.#countBySize.delete(entry.sizeBytes);
    else this.#countBySize.set(entry.sizeBytes, left);
  }

  /** The entry that shows an address. */
  find(iova: number): Entry | undefined {
    for (const sizeBytes of this.#countBySize.keys()) {
      const entry = this.#entries.get(iova - (iova % sizeBytes));
      if (entry?.sizeBytes === sizeBytes) return entry;
    }
    return undefined;
  }
}

/** `struct mock_iommu_domain` */
export class MockDomain implements PagingDomain {
  readonly type = 'unmanaged';
  readonly driver: IommuDriver;
  readonly apertureStart: bigint;
  readonly apertureLast: bigint;
  readonly pageSizes: readonly number[];
  readonly dirtyOps: DirtyOps | undefined;
  #tracksDirty = false;
  readonly #faults: FaultSwitches | undefined;
  #root = new Root();
  #level = 0;

  constructor(driver: IommuDriver, format: MockFormat, hasDirtyTracking: boolean, faults?: FaultSwitches) {
    this.#faults = faults;
    this.driver = driver;
    this.apertureStart = format.apertureStart;
    this.apertureLast = format.apertureLast;
    this.pageSizes = format.pageSizes;
    this.dirtyOps = hasDirtyTracking ? this.#makeDirtyOps() : undefined;
  }

  /** Whether writes are recorded now (MOCK_DIRTY_TRACK). */
  get tracksDirty(): boolean {
    sharedRead(this, 'tracksDirty', this.#tracksDirty);
    return this.#tracksDirty;
  }

  set tracksDirty(value: boolean) {
    sharedWrite(this, 'tracksDirty', this.#tracksDirty, value);
    this.#tracksDirty = value;
  }

  *map(iova: number, pa: number, lengthBytes: number, prot: number, maxPageBytes = Infinity): Task<number> {
    if ((prot & (IOMMU_READ | IOMMU_WRITE)) === 0) return -EINVAL;
    if (iova < Number(this.apertureStart) || iova + lengthBytes - 1 > Number(this.apertureLast)) return -ERANGE;
    const end = iova + lengthBytes;
    sharedRead(this, 'level', this.#level);
    while (end > 2 ** (REACH_LOG2[this.#level] ?? Infinity)) yield* this.#grow();
    let at = iova;
    while (at < end) {
      const sizeBytes = this.#entrySize(at, pa + at - iova, Math.min(end - at, maxPageBytes));
      if (sizeBytes === undefined || this.#find(at) !== undefined) {
        this.#unmap(iova, at - iova);
        return sizeBytes === undefined ? -EINVAL : -EEXIST;
      }
      sharedRange(this, '', at, sizeBytes, true, undefined, pa + at - iova);
      this.#rootOf(at)?.add({ iova: at, pa: pa + at - iova, sizeBytes, isDirty: false });
      at += sizeBytes;
    }
    return 0;
  }

  /** A new root on top (`increase_top`). */
  *#grow(): Task<void> {
    sharedWrite(this, 'root', this.#level, this.#level + 1);
    this.#root = new Root(this.#root);
    // Root and level were two words once: whoever walks in between takes the new root for one of the old level.
    if (this.#faults?.fires('mock.top-in-two-steps') === true) yield 'mock:root-published';
    sharedWrite(this, 'level', this.#level, this.#level + 1);
    this.#level++;
  }

  /** The root that an address is below, as a walker finds it; undefined beyond the reach of the table. */
  #rootOf(iova: number): Root | undefined {
    sharedRead(this, 'root', this.#level);
    sharedRead(this, 'level', this.#level);
    if (iova >= 2 ** (REACH_LOG2[this.#level] ?? Infinity)) return undefined;
    let root: Root | undefined = this.#root;
    for (let level = this.#level; level > 0 && iova < 2 ** (REACH_LOG2[level - 1] ?? Infinity); level--)
      root = root?.below;
    return root;
  }

  *unmap(iova: number, lengthBytes: number): Task<number> {
    return this.#unmap(iova, lengthBytes);
  }

  #unmap(iova: number, lengthBytes: number): number {
    const end = iova + lengthBytes;
    let at = iova;
    while (at < end) {
      sharedRange(this, '', at, 1, false);
      const entry = this.#find(at);
      if (entry?.iova !== at || at + entry.sizeBytes > end) break;
      sharedRange(this, '', at, entry.sizeBytes, true, entry.pa, undefined);
      this.#rootOf(at)?.delete(entry);
      at += entry.sizeBytes;
    }
    return at - iova;
  }

  *iotlb_sync(_iova: number, _lengthBytes: number): Task<void> {
    // The mock has no IOTLB.
  }

  iova_to_phys(iova: number): number | undefined {
    const entry = this.#find(iova);
    return entry === undefined ? undefined : entry.pa + iova - entry.iova;
  }

  /** What it maps, ascending, for those who look at a machine. */
  contents(): readonly Readonly<Entry>[] {
    return [...this.#root.entries()].sort((a, b) => a.iova - b.iova);
  }

  /** A device wrote: marks the entry that shows the address. False where nothing is mapped. */
  set_dirty(iova: number): boolean {
    const entry = this.#find(iova);
    if (entry !== undefined) {
      sharedRange(this, 'dirty ', iova, 1, true, entry.isDirty, true);
      entry.isDirty = true;
    }
    return entry !== undefined;
  }

  *free(): Task<void> {
    invariant(this.#root.isEmpty, 'mock domain: freed with mappings in it');
  }

  #makeDirtyOps(): DirtyOps {
    const setTracking = (enable: boolean): number => {
      this.tracksDirty = enable;
      return 0;
    };
    const read = (iova: number, lengthBytes: number, noClear: boolean, record: DirtyRecorder): number =>
      this.#readAndClearDirty(iova, lengthBytes, noClear, record);
    return {
      *set_dirty_tracking(enable): Task<number> {
        return setTracking(enable);
      },
      *read_and_clear_dirty(iova, lengthBytes, noClear, record): Task<number> {
        return read(iova, lengthBytes, noClear, record);
      },
    };
  }

  #readAndClearDirty(iova: number, lengthBytes: number, noClear: boolean, record: DirtyRecorder): number {
    const end = iova + lengthBytes;
    for (let at = iova; at < end;) {
      const entry = this.#find(at);
      if (entry === undefined) {
        at += MOCK_PAGE_SIZE;
        continue;
      }
      sharedRange(this, 'dirty ', entry.iova, entry.sizeBytes, !noClear, entry.isDirty, entry.isDirty && noClear);
      if (entry.isDirty) {
        record(entry.iova, entry.sizeBytes);
        if (!noClear) entry.isDirty = false;
      }
      at = entry.iova + entry.sizeBytes;
    }
    return 0;
  }

  /** The entry that shows an address. */
  #find(iova: number): Entry | undefined {
    sharedRange(this, '', iova, 1, false);
    return this.#rootOf(iova)?.find(iova);
  }

  /** The largest size that fits; undefined when not even the smallest does. */
  #entrySize(iova: number, pa: number, lengthBytes: number): number | undefined {
    let best: number | undefined;
    for (const size of this.pageSizes) {
      if (size > lengthBytes || iova % size !== 0 || pa % size !== 0) break;
      best = size;
    }
    return best;
  }
}
