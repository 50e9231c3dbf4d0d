/**
 * Who knows which pages a device has written.
 *
 *     iommu       dirty bits of the page tables (IOMMU_HWPT_GET_DIRTY_BITMAP)
 *     device      the devices' own logs (VFIO_DEVICE_FEATURE_DMA_LOGGING_*)
 *     union       both, wherever they exist: every device must be covered by one of them
 *     at-unmap    the dirty bits, read once, when the devices stand still and before their memory is unmapped
 *     all-dirty   nobody: every page a device can reach counts as written each time (QEMU: enable-migration=on)
 *     auto        device, else iommu, else union, else nothing fits and the migration is refused (QEMU: enable-migration=auto)
 *
 * A device's log covers the ranges that were mapped when it started; a report that fails makes everything dirty (domain.md A2.3).
 *
 * Source: QEMU hw/vfio/listener.c, hw/vfio/container-base.c; domain.md A3.7-A3.9.
 */
import { invariant, type Task } from '../runtime/task.js';
import { KernelError } from '../uapi/errno.js';
import type { Container } from '../vmm/backends/iommufd.js';
import type { Guest } from '../vmm/guest.js';
import { PageSet } from '../vmm/page-set.js';
import { GIB, lengthOf, PAGE_BYTES, type Range } from '../vmm/ranges.js';
import type { VfioDevice } from '../vmm/vfio-device.js';
import type { VfioMigration } from '../vmm/vfio-migration.js';
import { MigrationStopped } from './request.js';

export const DIRTY_SOURCES = ['auto', 'iommu', 'device', 'union', 'at-unmap', 'all-dirty'] as const;
export type DirtySource = (typeof DIRTY_SOURCES)[number];

/** A device of the guest and what it can do for a migration. */
export interface TrackedDevice {
  readonly vfio: VfioDevice;
  /** Undefined for one without migration support. */
  readonly migration: VfioMigration | undefined;
}

const FOUR_GIB = 4n * GIB;
/** One report: 256 KiB of bitmap. */
const REPORT_BYTES = 8n * GIB;

/** The sources of one migration. */
export class DirtySources {
  readonly source: Exclude<DirtySource, 'auto'>;
  readonly #guest: Guest;
  readonly #logs: readonly VfioMigration[];
  readonly #usesIommu: boolean;

  private constructor(guest: Guest, source: Exclude<DirtySource, 'auto'>, devices: readonly TrackedDevice[]) {
    this.#guest = guest;
    this.source = source;
    const migrations = devices.flatMap(({ migration }) => migration ?? []);
    const usesLogs = source === 'device' || source === 'union';
    this.#logs = usesLogs ? migrations.filter((migration) => migration.hasDmaLogging) : [];
    this.#usesIommu = source === 'iommu' || source === 'union' || source === 'at-unmap';
  }

  /** Chooses. @throws MigrationStopped (no-dirty-tracking) when a device would write unseen */
  static choose(guest: Guest, devices: readonly TrackedDevice[], wanted: DirtySource): DirtySources {
    const untracked = new Set(guest.vmm.backend?.untrackedDevices() ?? []);
    const isLogged = ({ migration }: TrackedDevice): boolean => migration?.hasDmaLogging === true;
    const isTracked = ({ vfio }: TrackedDevice): boolean => !untracked.has(vfio);
    const covers: Readonly<Record<Exclude<DirtySource, 'auto'>, (device: TrackedDevice) => boolean>> = {
      device: isLogged,
      iommu: isTracked,
      union: (device) => isLogged(device) || isTracked(device),
      'at-unmap': isTracked,
      'all-dirty': () => true,
    };
    const candidates = wanted === 'auto' ? (['device', 'iommu', 'union'] as const) : [wanted];
    const source = candidates.find((candidate) => devices.every(covers[candidate]));
    if (source !== undefined) return new DirtySources(guest, source, devices);
    const last = candidates.at(-1) ?? 'iommu';
    const names = devices.filter((device) => !covers[last](device)).map(({ vfio }) => vfio.bdf);
    if (guest.runtime.faults.fires('vmm.blockers-ignored')) return new DirtySources(guest, last, devices);
    const who = { device: 'the device itself', union: 'neither IOMMU nor device', iommu: 'the IOMMU' }[
      last === 'at-unmap' || last === 'all-dirty' ? 'iommu' : last
    ];
    const words = last === 'union' ? `${who} can` : `${who} cannot`;
    throw new MigrationStopped('no-dirty-tracking', `${words} track pages written by ${names.join(', ')}`);
  }

  *start(): Task<void> {
    const { backend } = this.#guest.vmm;
    if (backend === undefined) return;
    if (this.#usesIommu) yield* backend.setDirtyTracking(true);
    for (const log of this.#logs) yield* log.startLog(this.#logRanges(log.device), PAGE_BYTES);
  }

  /** Ends tracking. A device that failed meanwhile has no log any more; that is no error. */
  *stop(): Task<void> {
    try {
      if (this.#usesIommu) yield* this.#guest.vmm.backend?.setDirtyTracking(false) ?? nothing();
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
    }
    for (const log of this.#logs.filter((candidate) => candidate.isLogging)) {
      try {
        yield* log.stopLog();
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
      }
    }
  }

  /** Takes what devices wrote since the last time. `isStopped`: they stand still. */
  *collect(into: PageSet, isStopped: boolean): Task<void> {
    const found = new PageSet();
    yield* this.#collect(found, isStopped);
    if (!this.#guest.runtime.faults.fires('vmm.dirty-bitmap-lost')) into.addAll(found);
  }

  *#collect(into: PageSet, isStopped: boolean): Task<void> {
    const { backend } = this.#guest.vmm;
    if (backend === undefined) return;
    const pageOf = (iova: bigint): number => this.#guest.pageOf(iova);
    if (this.source === 'all-dirty') {
      for (const mapping of backend.containers.flatMap((container) => container.mappings))
        addAll(into, mapping, pageOf);
      return;
    }
    if (this.#usesIommu && (isStopped || this.source !== 'at-unmap')) yield* backend.collectDirty(into, pageOf);
    for (const log of this.#logs) yield* this.#collectLog(log, into, pageOf);
  }

  *#collectLog(log: VfioMigration, into: PageSet, pageOf: (iova: bigint) => number): Task<void> {
    for (const mapping of this.#containerOf(log.device).mappings) {
      for (let start = mapping.start; start <= mapping.last; start += REPORT_BYTES) {
        const end = start + REPORT_BYTES - 1n;
        const piece = { start, last: end < mapping.last ? end : mapping.last };
        try {
          const bitmap = yield* log.reportLog(piece, PAGE_BYTES);
          into.addBitmap(pageOf(start), bitmap, Number(lengthOf(piece) / PAGE_BYTES));
        } catch (error) {
          if (!(error instanceof KernelError)) throw error;
          addAll(into, piece, pageOf);
        }
      }
    }
  }

  /** What QEMU asks devices to log: what is mapped below 4 GiB as one range, what is mapped above as another. */
  #logRanges(device: VfioDevice): Range[] {
    const { mappings } = this.#containerOf(device);
    return [
      mappings.filter(({ start }) => start < FOUR_GIB),
      mappings.filter(({ start }) => start >= FOUR_GIB),
    ].flatMap((part) => {
      const [first, last] = [part[0], part.at(-1)];
      return first === undefined || last === undefined ? [] : [{ start: first.start, last: last.last }];
    });
  }

  #containerOf(device: VfioDevice): Container {
    const container = this.#guest.vmm.backend?.containerOf(device);
    invariant(container !== undefined, `${device.bdf} is attached`);
    return container;
  }
}

function addAll(into: PageSet, range: Range, pageOf: (iova: bigint) => number): void {
  into.addRange(pageOf(range.start), Number(lengthOf(range) / PAGE_BYTES));
}

function* nothing(): Task<void> {
  // Nobody has a backend to ask.
}
