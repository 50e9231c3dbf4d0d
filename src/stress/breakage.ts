/**
 * Kernel parts that are broken on purpose, one for each fault of a client ({@link STRESS_FAULTS}).
 *
 * They stand in for the right parts in a thread's {@link AddressSpace}; no other code knows of them. A checker that does not find a run
 * with one of these wrong is not worth its name: test/stress/breakages.test.ts holds them against each other.
 */
import { PageTable, type Gather } from '../core/page-table.js';
import type { Arena } from '../core/arena.js';
import type { IovaRwsem } from '../kernel/iommufd/io-pagetable.js';
import type { Gate, Task } from '../runtime/task.js';

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
  readonly isHeldForWrite = true;
  readonly #lockClass: Gate = 'iopt:iova_rwsem';

  *down_read(): Task<void> {
    yield this.#lockClass;
  }

  up_read(): void {
    // Nothing was taken.
  }

  *down_write(): Task<void> {
    yield this.#lockClass;
  }

  up_write(): void {
    // Nothing was taken.
  }
}
