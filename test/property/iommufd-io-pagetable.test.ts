import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Arena } from '../../src/core/arena.js';
import type { DirtyOps, IommuDriver, PagingDomain } from '../../src/kernel/iommu/domain.js';
import { IntervalList } from '../../src/kernel/iommufd/interval-list.js';
import { IOVA_MAX, IoPageTable, type IoptAccess } from '../../src/kernel/iommufd/io-pagetable.js';
import { IoptPages, type PageSource, type PinAccount } from '../../src/kernel/iommufd/pages.js';
import { Scheduler } from '../../src/runtime/scheduler.js';
import type { Task } from '../../src/runtime/task.js';
import { EADDRINUSE, EEXIST, EINVAL, ENOENT } from '../../src/uapi/errno.js';

const PAGE = 4096;
const SUB = 2048;
/** The model's IOVA space: small enough for one flag per 2 KiB. */
const UNITS = 256;
const BASE_PFN = 0x100000;

/** Runs a task to its end on a scheduler of its own. */
function run<T>(task: Task<T>): T {
  const scheduler = new Scheduler();
  let result: { value: T } | undefined;
  scheduler.spawn(
    'test',
    (function* (): Task<void> {
      result = { value: yield* task };
    })(),
  );
  scheduler.runUntil(Infinity);
  if (result === undefined) throw new Error('the task did not end');
  return result.value;
}

/** A domain that maps byte-wise into a Map of 2 KiB units. */
class ModelDomain implements PagingDomain {
  readonly type = 'unmanaged';
  readonly driver = { name: 'model' } as IommuDriver;
  readonly pageSizes = [SUB];
  readonly dirtyOps: DirtyOps | undefined = undefined;
  readonly units = new Map<number, number>();
  readonly apertureStart: bigint;
  readonly apertureLast: bigint;

  constructor(apertureStart: bigint, apertureLast: bigint) {
    this.apertureStart = apertureStart;
    this.apertureLast = apertureLast;
  }

  *map(iova: number, pa: number, lengthBytes: number): Task<number> {
    for (let offset = 0; offset < lengthBytes; offset += SUB) {
      if (this.units.has((iova + offset) / SUB)) return -EEXIST;
      this.units.set((iova + offset) / SUB, pa + offset);
    }
    return 0;
  }

  *unmap(iova: number, lengthBytes: number): Task<number> {
    let unmapped = 0;
    for (let offset = 0; offset < lengthBytes; offset += SUB) {
      if (this.units.delete((iova + offset) / SUB)) unmapped += SUB;
    }
    return unmapped;
  }

  *iotlb_sync(_iova = 0, _lengthBytes = 0): Task<void> {
    // Nothing is cached.
  }

  iova_to_phys(iova: number): number | undefined {
    return this.units.get(iova / SUB);
  }

  *free(): Task<void> {
    // Nothing is held.
  }
}

/** Memory whose page n is at BASE_PFN + 2n, so that no two pages are adjacent; counts pins. */
function memory(pins: Map<number, number>): PageSource {
  return {
    isDmaBuf: false,
    mm: undefined,
    startByte: 0x10000000n,
    *pin(firstPage, pages) {
      return Array.from({ length: pages }, (_, i) => {
        const pfn = BASE_PFN + 2 * (firstPage + i);
        pins.set(pfn, (pins.get(pfn) ?? 0) + 1);
        return { pfn, pages: 1 };
      });
    },
    unpin(runs) {
      for (const { pfn } of runs) {
        const count = (pins.get(pfn) ?? 0) - 1;
        if (count < 0) throw new Error('unpinned too often');
        if (count === 0) pins.delete(pfn);
        else pins.set(pfn, count);
      }
    },
    isLive: () => true,
    *close() {},
  };
}

class CountingAccount implements PinAccount {
  of(): this {
    return this;
  }

  charged = 0;
  charge(pages: number): number {
    this.charged += pages;
    return 0;
  }
  uncharge(pages: number): void {
    this.charged -= pages;
  }
}

function newTable(): { arena: Arena; iopt: IoPageTable } {
  const arena = Arena.create({ kernelFrames: 64, storageFrames: 256, kernelBasePfn: 4096 });
  const iopt = IoPageTable.create(arena);
  if (typeof iopt === 'number') throw new Error('no table');
  return { arena, iopt };
}

type Operation =
  | { op: 'map'; start: number; length: number; offset: number }
  | { op: 'auto'; length: number; offset: number }
  | { op: 'unmap'; start: number; length: number }
  | { op: 'reserve'; start: number; length: number }
  | { op: 'unreserve' }
  | { op: 'attach'; first: number }
  | { op: 'detach' };

const unit = fc.integer({ min: 0, max: UNITS - 1 });
const length = fc.integer({ min: 1, max: 12 });
const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ op: fc.constant('map' as const), start: unit, length, offset: length }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('auto' as const), length, offset: length }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('unmap' as const), start: unit, length: fc.nat({ max: 40 }) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('reserve' as const), start: unit, length }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('unreserve' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('attach' as const), first: fc.nat({ max: 40 }) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('detach' as const) }) },
);

interface ModelArea {
  readonly start: number;
  readonly length: number;
  readonly offset: number;
}

/** The naive truth: a list of areas, reserved units and domains in 2 KiB units. */
class Model {
  areas: ModelArea[] = [];
  reserved: { start: number; length: number }[] = [];
  domains: { domain: ModelDomain; first: number }[] = [];

  isReserved(start: number, count: number): boolean {
    return (
      this.reserved.some((r) => r.start < start + count && r.start + r.length > start) ||
      this.domains.some((d) => start < d.first)
    );
  }

  overlapping(start: number, count: number): ModelArea[] {
    return this.areas.filter((a) => a.start < start + count && a.start + a.length > start);
  }
}

describe('io_pagetable against a naive model', () => {
  it('agrees on every result, on the contents of every domain and on pins', () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
        const { arena, iopt } = newTable();
        const framesBefore = arena.storageFramesInUse;
        const pins = new Map<number, number>();
        const account = new CountingAccount();
        const model = new Model();
        const reservedOwner = {};
        const map = (start: number | undefined, count: number, offset: number): bigint | number => {
          const startByte = BigInt(offset * SUB);
          const pages = new IoptPages(memory(pins), startByte + BigInt(count * SUB), true, account);
          const slice = { pages, startByte, lengthBytes: BigInt(count * SUB) };
          const iova = run(iopt.map_pages([slice], start === undefined ? undefined : BigInt(start * SUB), 7));
          run(pages.put());
          return iova;
        };
        for (const o of operations) {
          if (o.op === 'map') {
            let expected: bigint | number = BigInt(o.start * SUB);
            if (model.isReserved(o.start, o.length)) expected = -EINVAL;
            else if (model.overlapping(o.start, o.length).length > 0) expected = -EEXIST;
            expect(map(o.start, o.length, o.offset)).toBe(expected);
            if (expected >= 0) model.areas.push(o);
          } else if (o.op === 'auto') {
            const iova = map(undefined, o.length, o.offset);
            const start = Number(iova) / SUB;
            expect(iova).toBeGreaterThanOrEqual(BigInt(PAGE));
            if (o.length > 1) expect(start % 2).toBe(o.offset % 2);
            expect(model.isReserved(start, o.length)).toBe(false);
            expect(model.overlapping(start, o.length)).toEqual([]);
            model.areas.push({ start, length: o.length, offset: o.offset });
          } else if (o.op === 'unmap') {
            const start = o.start;
            const count = Math.max(1, o.length);
            const hit = model.overlapping(start, count).sort((a, b) => a.start - b.start);
            const stop = hit.findIndex((a) => a.start < start || a.start + a.length > start + count);
            const gone = stop < 0 ? hit : hit.slice(0, stop);
            const bytes = gone.reduce((sum, a) => sum + a.length * SUB, 0);
            const got = run(iopt.unmap_iova_range(BigInt(start * SUB), BigInt((start + count) * SUB) - 1n));
            expect(got).toEqual({ rc: stop < 0 ? 0 : -ENOENT, unmappedBytes: BigInt(bytes) });
            model.areas = model.areas.filter((a) => !gone.includes(a));
          } else if (o.op === 'reserve') {
            const rc = run(
              (function* (): Task<number> {
                yield* iopt.iovaRwsem.down_write();
                const last = BigInt((o.start + o.length) * SUB) - 1n;
                const result = iopt.reserve_iova(BigInt(o.start * SUB), last, reservedOwner, {});
                iopt.iovaRwsem.up_write();
                return result;
              })(),
            );
            const isFree = model.overlapping(o.start, o.length).length === 0;
            expect(rc).toBe(isFree ? 0 : -EADDRINUSE);
            if (isFree) model.reserved.push(o);
          } else if (o.op === 'unreserve') {
            run(iopt.remove_reserved_iova(reservedOwner));
            model.reserved = [];
          } else if (o.op === 'attach') {
            const domain = new ModelDomain(BigInt(o.first * SUB), 2n ** 48n - 1n);
            const isFree = model.areas.every((a) => a.start >= o.first);
            expect(run(iopt.add_domain(domain))).toBe(isFree ? 0 : -EADDRINUSE);
            if (isFree) model.domains.push({ domain, first: o.first });
            else expect(domain.units.size).toBe(0);
          } else {
            const gone = model.domains.shift();
            if (gone !== undefined) {
              run(iopt.remove_domain(gone.domain));
              expect(gone.domain.units.size).toBe(0);
            }
          }
          const truth = new Map<number, number>();
          const pages = new Map<number, number>();
          for (const a of model.areas) {
            for (let i = 0; i < a.length; i++) {
              const byte = (a.offset + i) * SUB;
              truth.set(a.start + i, (BASE_PFN + 2 * Math.floor(byte / PAGE)) * PAGE + (byte % PAGE));
            }
            const last = Math.floor(((a.offset + a.length) * SUB - 1) / PAGE);
            for (let p = Math.floor((a.offset * SUB) / PAGE); p <= last; p++) {
              pages.set(BASE_PFN + 2 * p, (pages.get(BASE_PFN + 2 * p) ?? 0) + 1);
            }
          }
          for (const { domain } of model.domains) {
            expect([...domain.units].sort((a, b) => a[0] - b[0])).toEqual([...truth].sort((a, b) => a[0] - b[0]));
          }
          const expectedPins = model.domains.length > 0 ? pages : new Map<number, number>();
          expect([...pins].sort()).toEqual([...expectedPins].sort());
          expect(account.charged).toBe([...expectedPins.values()].reduce((sum, n) => sum + n, 0));
          expect(iopt.iovaAlignment).toBe(model.domains.length > 0 ? BigInt(SUB) : 1n);
        }
        for (const { domain } of model.domains) run(iopt.remove_domain(domain));
        run(iopt.unmap_iova_range(0n, IOVA_MAX));
        expect(pins.size).toBe(0);
        iopt.destroy();
        expect(arena.storageFramesInUse).toBeLessThan(framesBefore);
      }),
      { numRuns: 60 },
    );
  });
});

/** A domain that has every second page dirty, and writes down who asks it what. */
class DirtyDomain extends ModelDomain {
  readonly asked: string[] = [];
  rc = 0;
  override readonly dirtyOps: DirtyOps;

  constructor() {
    super(0n, IOVA_MAX);
    const { asked } = this;
    const rc = (): number => this.rc;
    this.dirtyOps = {
      *set_dirty_tracking(enable) {
        asked.push(enable ? 'on' : 'off');
        return 0;
      },
      *read_and_clear_dirty(iova, lengthBytes, _noClear, record) {
        asked.push(`read ${iova / PAGE}+${lengthBytes / PAGE}`);
        for (let at = iova; at < iova + lengthBytes; at += PAGE) if ((at / PAGE) % 2 === 1) record(at, PAGE);
        return rc();
      },
    };
  }

  override *iotlb_sync(iova = 0, lengthBytes = 0): Task<void> {
    this.asked.push(`sync ${iova / PAGE}+${lengthBytes / PAGE}`);
  }
}

describe('dirty state of several areas', () => {
  function withAreas(): { iopt: IoPageTable; domain: DirtyDomain } {
    const { iopt } = newTable();
    for (const page of [8, 12]) {
      const pages = new IoptPages(memory(new Map()), BigInt(4 * PAGE), true, new CountingAccount());
      run(iopt.map_pages([{ pages, startByte: 0n, lengthBytes: BigInt(4 * PAGE) }], BigInt(page * PAGE), 7));
    }
    return { iopt, domain: new DirtyDomain() };
  }
  const read = (noClear: boolean, pages: number): string[] => {
    const { iopt, domain } = withAreas();
    const last = BigInt((8 + pages) * PAGE - 1);
    expect(run(iopt.read_and_clear_dirty(domain, BigInt(8 * PAGE), last, noClear, () => undefined))).toBe(0);
    return domain.asked;
  };

  it('is synced once behind the walk, for what was dirty, and not at all where nothing is cleared', () => {
    expect(read(false, 8)).toEqual(['read 8+4', 'read 12+4', 'sync 9+7']);
    expect(read(false, 1)).toEqual(['read 8+1', 'sync 0+0']);
    expect(read(true, 8)).toEqual(['read 8+4', 'read 12+4']);
  });

  it('is cleared before recording begins, which does not where that fails', () => {
    const { iopt, domain } = withAreas();
    expect(run(iopt.set_dirty_tracking(domain, true))).toBe(0);
    expect(domain.asked.splice(0)).toEqual(['read 8+4', 'read 12+4', 'sync 9+7', 'on']);
    domain.rc = -EINVAL;
    expect(run(iopt.set_dirty_tracking(domain, true))).toBe(-EINVAL);
    expect(domain.asked.splice(0)).toEqual(['read 8+4', 'sync 9+3']);
    expect(run(iopt.set_dirty_tracking(domain, false))).toBe(0);
  });
});

describe('unmapping what an access has pinned', () => {
  it('leaves alone what is mapped below it while the access lets go', () => {
    const { iopt } = newTable();
    const map = (iova: number): Task<bigint | number> => {
      const pages = new IoptPages(memory(new Map()), BigInt(PAGE), true, new CountingAccount());
      return iopt.map_pages([{ pages, startByte: 0n, lengthBytes: BigInt(PAGE) }], BigInt(iova), 7);
    };
    expect(run(map(8 * PAGE))).toBe(BigInt(8 * PAGE));
    const pinned = iopt.areas.firstOverlap(0n, IOVA_MAX);
    if (pinned === undefined) throw new Error('nothing is mapped');
    const access: IoptAccess = {
      iova_alignment: 1n,
      iopt_access_list_id: 0,
      *notify_unmap() {
        expect(yield* map(2 * PAGE)).toBe(BigInt(2 * PAGE));
        pinned.numAccesses = 0;
      },
    };
    pinned.numAccesses = 1;
    expect(run(iopt.add_access(access))).toBe(0);
    expect(run(iopt.unmap_iova_range(0n, BigInt(16 * PAGE - 1)))).toEqual({ rc: 0, unmappedBytes: BigInt(PAGE) });
    expect([...iopt.areas.overlapping()].map((area) => area.iova)).toEqual([BigInt(2 * PAGE)]);
  });
});

describe('IntervalList', () => {
  it('lists exactly the holes between ranges', () => {
    const range = fc.tuple(fc.nat({ max: 60 }), fc.nat({ max: 9 }));
    fc.assert(
      fc.property(fc.array(range, { maxLength: 12 }), (ranges) => {
        const list = new IntervalList<{ start: bigint; last: bigint }>();
        const used = new Set<number>();
        for (const [start, more] of ranges) {
          list.insert({ start: BigInt(start), last: BigInt(start + more) });
          for (let i = start; i <= start + more; i++) used.add(i);
        }
        const free: number[] = [];
        for (const hole of list.holes(0n, 79n)) {
          for (let i = hole.start; i <= hole.last; i++) free.push(Number(i));
        }
        expect(free).toEqual(Array.from({ length: 80 }, (_, i) => i).filter((i) => !used.has(i)));
      }),
    );
  });
});
