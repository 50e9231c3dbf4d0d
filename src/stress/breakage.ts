/**
 * Kernel parts that are broken on purpose, one for each fault of a client ({@link STRESS_FAULTS}).
 *
 * They stand in for the right parts in a thread's {@link AddressSpace}; no other code knows of them. A checker that does not find a run
 * with one of these wrong is not worth its name: test/stress/breakages.test.ts holds them against each other.
 */
import { PageTable, type Gather } from '../core/page-table.js';
import type { Arena } from '../core/arena.js';
import { ArmSmmuDomain } from '../kernel/iommu/arm-smmu-v3/domain.js';
import { IOMMU_WRITE } from '../kernel/iommu/domain.js';
import {
  IoPageTable,
  type IoptParts,
  type IovaRwsem,
  type PagesSlice,
  type Unmapped,
} from '../kernel/iommufd/io-pagetable.js';
import type { Gate, Task } from '../runtime/task.js';
import { EBUSY, EEXIST } from '../uapi/errno.js';
import type { StressFault } from './options.js';

/** A translation table that gives tables back as soon as they are out of the tree: nobody was told to forget them. */
export class HastyPageTable extends PageTable {
  static override open(arena: Arena, handle: number): HastyPageTable {
    return new HastyPageTable(arena, handle);
  }

  override unmapStep(iovaPage: number, nPages: number, gather: Gather): number {
    const covered = super.unmapStep(iovaPage, nPages, gather);
    this.freeGathered(gather);
    return covered;
  }
}

/** A semaphore that nobody has to wait for. Its gate stays. */
export class NoRwsem implements IovaRwsem {
  readonly lockClass: Gate = 'iopt:iova_rwsem';
  readonly isHeld = true;
  readonly isHeldForWrite = true;

  *down_read(): Task<void> {
    yield this.lockClass;
  }

  up_read(): void {
    // Nothing was taken.
  }

  *down_write(): Task<void> {
    yield this.lockClass;
  }

  up_write(): void {
    // Nothing was taken.
  }
}

/** A domain of which every leaf can be written. */
export class WritableDomain extends ArmSmmuDomain {
  override *map(iova: number, pa: number, lengthBytes: number, prot: number, maxPageBytes?: number): Task<number> {
    return yield* super.map(iova, pa, lengthBytes, prot | IOMMU_WRITE, maxPageBytes);
  }
}

/** One in so many calls gets a false answer: few enough that the address space fills and empties as it does without. */
const MAPS_PER_LIE = 10;
const UNMAPS_PER_LIE = 5;

/** An address space that answers some calls without doing anything. */
export class LyingIoPageTable extends IoPageTable {
  readonly #faults: readonly StressFault[];
  #maps = 0;
  #unmaps = 0;

  constructor(parts: IoptParts, faults: readonly StressFault[]) {
    super(parts);
    this.#faults = faults;
  }

  override *map_pages(slices: readonly PagesSlice[], iova: bigint | undefined, prot: number): Task<bigint | number> {
    if (iova !== undefined && ++this.#maps % MAPS_PER_LIE === 0) {
      if (this.#faults.includes('map-exists')) return -EEXIST;
      if (this.#faults.includes('map-nothing')) return iova;
    }
    return yield* super.map_pages(slices, iova, prot);
  }

  override *unmap_iova_range(start: bigint, last: bigint): Task<Unmapped> {
    if (++this.#unmaps % UNMAPS_PER_LIE === 0) {
      if (this.#faults.includes('unmap-nothing')) return { rc: 0, unmappedBytes: 0n };
      if (this.#faults.includes('unmap-busy')) return { rc: -EBUSY, unmappedBytes: 0n };
    }
    return yield* super.unmap_iova_range(start, last);
  }
}
