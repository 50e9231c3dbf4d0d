/**
 * A domain that writes down what happens to it: every run that is mapped and for which accesses, every area that is unmapped,
 * every dirty read.
 *
 * It stands between iommufd and the SMMU's domain and changes nothing. What it records is exact to the page, and brackets the moment at
 * which descriptors and TLBs change: that is what translations are checked against. With a flush queue it measures how long
 * a translation outlives its unmap, in nanoseconds and in DMAs; these figures are reported, nothing is decided by them.
 */
import {
  IOMMU_READ,
  IOMMU_WRITE,
  type DirtyOps,
  type FlushOps,
  type IommuInstance,
  type PagingDomain,
} from '../kernel/iommu/domain.js';
import type { ArmSmmuDomain } from '../kernel/iommu/arm-smmu-v3/domain.js';
import { PAGE_BYTES } from '../kernel/iommufd/pages.js';
import { invariant, type Task } from '../runtime/task.js';
import { ACCESS, OP, type History } from './history.js';

/** How long translations outlived their unmaps. */
export interface ExposureWindow {
  unmaps: number;
  totalNs: number;
  maxNs: number;
  totalDmas: number;
  maxDmas: number;
}

export const NO_WINDOW: Readonly<ExposureWindow> = { unmaps: 0, totalNs: 0, maxNs: 0, totalDmas: 0, maxDmas: 0 };

/** Two measurements as one. */
export function joinWindows(a: ExposureWindow, b: ExposureWindow): ExposureWindow {
  return {
    unmaps: a.unmaps + b.unmaps,
    totalNs: a.totalNs + b.totalNs,
    maxNs: Math.max(a.maxNs, b.maxNs),
    totalDmas: a.totalDmas + b.totalDmas,
    maxDmas: Math.max(a.maxDmas, b.maxDmas),
  };
}

interface Moment {
  readonly ms: number;
  readonly dmas: number;
}

/** A domain and its history. */
export class RecordedDomain implements PagingDomain {
  readonly type: 'unmanaged' | 'dma';
  readonly driver: IommuInstance;
  readonly apertureStart: bigint;
  readonly apertureLast: bigint;
  readonly pageSizes: readonly number[];
  readonly dirtyOps: DirtyOps | undefined;
  readonly flushOps: FlushOps;
  readonly window: ExposureWindow = { ...NO_WINDOW };
  readonly #inner: ArmSmmuDomain;
  readonly #history: History;
  readonly #dmas: () => number;
  /** What READ_DIRTYs that their iotlb_sync will end came to; undefined for one at work. */
  readonly #readings = new Map<number, number | undefined>();
  readonly #unflushed: Moment[] = [];

  /** `dmas`: DMAs done so far, for measuring. */
  constructor(inner: ArmSmmuDomain, history: History, dmas: () => number) {
    this.type = inner.type;
    this.driver = inner.driver;
    this.apertureStart = inner.apertureStart;
    this.apertureLast = inner.apertureLast;
    this.pageSizes = inner.pageSizes;
    this.#inner = inner;
    this.#history = history;
    this.#dmas = dmas;
    this.flushOps = {
      unmap: (iova, length) => this.#unmapDeferred(iova, length),
      flush_iotlb_all: () => this.#flush(),
    };
    this.dirtyOps = inner.dirtyOps && this.#recordDirty(inner.dirtyOps);
  }

  *map(iova: number, pa: number, lengthBytes: number, prot: number, maxPageBytes?: number): Task<number> {
    const [page, pages, frame] = [iova / PAGE_BYTES, lengthBytes / PAGE_BYTES, pa / PAGE_BYTES];
    const access = ((prot & IOMMU_READ) !== 0 ? ACCESS.read : 0) | ((prot & IOMMU_WRITE) !== 0 ? ACCESS.write : 0);
    const record = this.#history.begin(OP.ENTER, page, pages, frame, access);
    const rc = yield* this.#inner.map(iova, pa, lengthBytes, prot, maxPageBytes);
    this.#history.end(record, rc);
    return rc;
  }

  *unmap(iova: number, lengthBytes: number): Task<number> {
    const record = this.#history.begin(OP.LEAVE, iova / PAGE_BYTES, lengthBytes / PAGE_BYTES);
    const unmapped = yield* this.#inner.unmap(iova, lengthBytes);
    this.#history.end(record, unmapped / PAGE_BYTES);
    return unmapped;
  }

  *iotlb_sync(iova: number, lengthBytes: number): Task<void> {
    yield* this.#inner.iotlb_sync(iova, lengthBytes);
    for (const [reading, rc] of this.#readings) this.#history.end(reading, rc ?? 0);
    this.#readings.clear();
  }

  iova_to_phys(iova: number): number | undefined {
    return this.#inner.iova_to_phys(iova);
  }

  *free(): Task<void> {
    yield* this.#inner.free();
  }

  *#unmapDeferred(iova: number, lengthBytes: number): Task<number> {
    const record = this.#history.begin(OP.LEAVE_DEFERRED, iova / PAGE_BYTES, lengthBytes / PAGE_BYTES);
    const unmapped = yield* this.#inner.flushOps.unmap(iova, lengthBytes);
    this.#history.end(record, unmapped / PAGE_BYTES);
    this.#unflushed.push({ ms: performance.now(), dmas: this.#dmas() });
    return unmapped;
  }

  *#flush(): Task<void> {
    const record = this.#history.begin(OP.FLUSH, 0, 0);
    yield* this.#inner.flushOps.flush_iotlb_all();
    this.#history.end(record, 0);
    const now: Moment = { ms: performance.now(), dmas: this.#dmas() };
    const { window } = this;
    for (const { ms, dmas } of this.#unflushed.splice(0)) {
      const ns = (now.ms - ms) * 1e6;
      window.unmaps++;
      window.totalNs += ns;
      window.maxNs = Math.max(window.maxNs, ns);
      window.totalDmas += now.dmas - dmas;
      window.maxDmas = Math.max(window.maxDmas, now.dmas - dmas);
    }
  }

  #recordDirty(ops: DirtyOps): DirtyOps {
    const history = this.#history;
    const readings = this.#readings;
    const begin = (iova: number, length: number): number => {
      invariant(![...readings.values()].includes(undefined), 'a dirty read within another');
      const reading = history.begin(OP.READ_DIRTY, iova / PAGE_BYTES, length / PAGE_BYTES);
      readings.set(reading, undefined);
      return reading;
    };
    return {
      set_dirty_tracking: (enable) => ops.set_dirty_tracking(enable),
      *read_and_clear_dirty(iova, length, noClear, record): Task<number> {
        const reading = noClear ? undefined : begin(iova, length);
        const rc = yield* ops.read_and_clear_dirty(iova, length, noClear, (start, bytes) => {
          if (!noClear) history.dirty(start / PAGE_BYTES, bytes / PAGE_BYTES);
          record(start, bytes);
        });
        if (reading !== undefined) readings.set(reading, rc);
        return rc;
      },
    };
  }
}
