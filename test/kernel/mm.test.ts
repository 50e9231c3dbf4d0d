/** Address spaces and physical pages at the system-call boundary. */
import { describe, expect, test } from 'vitest';
import type { Task } from '../../src/runtime/task.js';
import type { HostClient } from '../../src/testbed/lab.js';
import type { Process } from '../../src/testbed/process.js';
import { fnv1a32 } from '../../src/uapi/dma-engine.js';
import { IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_UNMAP } from '../../src/uapi/iommufd.js';
import { PROT_READ, type Contiguity } from '../../src/uapi/syscall.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import { countersOf, deviceWithMemory, errorOf, mapAt, onHost } from './on-host.js';

const PAGE = 4096n;

describe('memory', () => {
  test('what is stored is loaded, across pages, and zero before', () =>
    onHost(function* (p) {
      const va = yield* p.mmap({ length: 4n * PAGE, contiguity: 'scattered' });
      const bytes = Uint8Array.from({ length: 9000 }, (_, i) => (i * 7) & 0xff);
      yield* p.store(va + 100n, bytes);
      expect(new Uint8Array(yield* p.load(va + 100n, 9000))).toEqual(bytes);
      expect((yield* p.load(va + 9100n, 100)).every((byte) => byte === 0)).toBe(true);
    }));
  test('holes, ends and read-only memory are EFAULT', () =>
    onHost(function* (p) {
      const va = yield* p.mmap({ length: PAGE, prot: PROT_READ });
      expect(yield* errorOf(p.load(va, 16))).toBe('ok');
      expect(yield* errorOf(p.store(va, Uint8Array.of(1)))).toBe('EFAULT');
      expect(yield* errorOf(p.load(va + PAGE - 8n, 16))).toBe('EFAULT');
      expect(yield* errorOf(p.load(0x1000n, 1))).toBe('EFAULT');
    }));
  test('a fixed address that is taken is EEXIST; unmapping makes it free again', () =>
    onHost(function* (p) {
      const va = yield* p.mmap({ length: 2n * PAGE });
      expect(yield* errorOf(p.mmap({ length: PAGE, addr: va + PAGE }))).toBe('EEXIST');
      yield* p.munmap(va, 2n * PAGE);
      expect(yield* errorOf(p.load(va, 1))).toBe('EFAULT');
      expect(yield* p.mmap({ length: PAGE, addr: va })).toBe(va);
    }));
  test('pages keep stamps without costing memory, and bytes win over them', () =>
    onHost(function* (p) {
      const va = yield* p.mmap({ length: 1n << 30n });
      yield* p.storePages(va, [{ firstPage: 0, pages: 1 << 18, stamp: 1000, step: 1 }]);
      yield* p.store(va + 5n * PAGE, Uint8Array.of(1, 2, 3));
      const runs = yield* p.loadPages(va, 1 << 18);
      expect(
        runs.map((run) => ('bytes' in run ? [run.firstPage, 'bytes'] : [run.firstPage, run.pages, run.stamp])),
      ).toEqual([
        [0, 5, 1000],
        [5, 'bytes'],
        [6, (1 << 18) - 6, 1006],
      ]);
    }));
  test('no memory is ENOMEM and leaves nothing behind', () =>
    onHost(function* (p, host) {
      const before = (yield* host.command({ lab: 'counters' })).counters;
      expect(yield* errorOf(p.mmap({ length: 1n << 45n }))).toBe('ENOMEM');
      expect((yield* host.command({ lab: 'counters' })).counters).toEqual(before);
    }));
  test('munmap takes whole mappings, a range with several at once; cutting one is EINVAL', () =>
    onHost(function* (p) {
      const va = yield* p.mmap({ length: 2n * PAGE });
      const above = yield* p.mmap({ length: PAGE, addr: va + 4n * PAGE });
      expect(yield* errorOf(p.munmap(va, PAGE))).toBe('EINVAL');
      expect(yield* errorOf(p.munmap(va + 1n, PAGE))).toBe('EINVAL');
      expect(yield* errorOf(p.munmap(va, 0n))).toBe('EINVAL');
      expect(yield* errorOf(p.load(above, 1))).toBe('ok');
      yield* p.munmap(va, 5n * PAGE);
      expect(yield* errorOf(p.load(va, 1))).toBe('EFAULT');
      expect(yield* errorOf(p.load(above, 1))).toBe('EFAULT');
    }));
  test('mappings that cannot be are EINVAL or ENOMEM', () =>
    onHost(function* (p) {
      expect(yield* errorOf(p.mmap({ length: 0n }))).toBe('EINVAL');
      expect(yield* errorOf(p.mmap({ length: PAGE, addr: 0x1234n }))).toBe('EINVAL');
      expect(yield* errorOf(p.mmap({ length: PAGE, addr: 1n << 47n }))).toBe('ENOMEM');
    }));
  test('bytes go across neighbouring mappings, not across a hole; a store that fails half way has stored the half', () =>
    onHost(function* (p) {
      const va = yield* p.mmap({ length: PAGE });
      yield* p.mmap({ length: PAGE, addr: va + PAGE });
      yield* p.store(va + PAGE - 2n, Uint8Array.of(1, 2, 3, 4));
      expect([...(yield* p.load(va + PAGE - 2n, 4))]).toEqual([1, 2, 3, 4]);
      expect(yield* errorOf(p.store(va + 2n * PAGE - 2n, Uint8Array.of(5, 6, 7)))).toBe('EFAULT');
      expect([...(yield* p.load(va + 2n * PAGE - 2n, 2))]).toEqual([5, 6]);
    }));
  test('memory is zero again for the next owner', () =>
    onHost(function* (p) {
      for (let round = 0; round < 2; round++) {
        const va = yield* p.mmap({ length: 16n * PAGE });
        expect((yield* p.load(va, 65536)).every((byte) => byte === 0)).toBe(true);
        yield* p.store(va, new Uint8Array(65536).fill(0xee));
        yield* p.munmap(va, 16n * PAGE);
      }
    }));
});

describe('physical pages', () => {
  /** Physical page numbers behind a mapping, as a device's transactions meet them. */
  function* physicalPages(p: Process, host: HostClient, pages: number, contiguity: Contiguity): Task<number[]> {
    const { device, fd, ioas } = yield* deviceWithMemory(p);
    const va = yield* p.mmap({ length: BigInt(pages) * PAGE, contiguity });
    yield* mapAt(p, fd, ioas, va, BigInt(pages) * PAGE, 0x80000000n);
    const driver = yield* DmaEngineDriver.start(device);
    yield* driver.run({ op: 'SUM', from: 0x80000000n, lengthBytes: pages * 4096 });
    const records = (yield* host.transactions()).filter((record) => record.direction === 'read');
    return records.map((record) => Number((record.ends[0]?.address ?? 0n) / PAGE));
  }

  test.each([2, 3, 4, 5, 16, 33])('%i scattered pages: none follows its physical neighbour', (pages) =>
    onHost(function* (p, host) {
      const pfns = yield* physicalPages(p, host, pages, 'scattered');
      expect(new Set(pfns).size).toBe(pages);
      expect(pfns.filter((pfn, i) => pfn === (pfns[i - 1] ?? 0) + 1)).toEqual([]);
    }),
  );
  test('short runs have three pages, none going on where the one before ends', () =>
    onHost(function* (p, host) {
      const pfns = yield* physicalPages(p, host, 8, 'short-runs');
      expect(new Set(pfns).size).toBe(8);
      const ends = pfns.flatMap((pfn, i) => (pfns[i + 1] === pfn + 1 ? [] : [i]));
      expect(ends).toEqual([2, 5, 7]);
    }));
  test('a 2 MiB huge page is contiguous and aligned', () =>
    onHost(function* (p, host) {
      const [first = 0, ...rest] = yield* physicalPages(p, host, 512, 'huge-2m');
      expect(first % 512).toBe(0);
      expect(rest).toEqual(rest.map((_, i) => first + 1 + i));
    }));
  test('what is pinned outlives its mapping and is free after the last pin, the rest of the mapping at once', () =>
    onHost(function* (p, host) {
      const { device, fd, ioas } = yield* deviceWithMemory(p);
      const before = yield* countersOf(host);
      const va = yield* p.mmap({ length: 16n * PAGE });
      yield* p.store(va + 4n * PAGE, Uint8Array.of(0x77));
      yield* mapAt(p, fd, ioas, va + 4n * PAGE, 3n * PAGE, 0x80000000n);
      yield* mapAt(p, fd, ioas, va + 4n * PAGE, PAGE, 0x90000000n);
      yield* p.munmap(va, 16n * PAGE);
      const free = function* (): Task<number> {
        return (yield* countersOf(host))['freePages'] ?? 0;
      };
      expect(yield* free()).toBe((before['freePages'] ?? 0) - 3);
      const reuse = yield* p.mmap({ length: 64n * PAGE });
      yield* p.store(reuse, new Uint8Array(64 * 4096).fill(0x11));
      const driver = yield* DmaEngineDriver.start(device);
      const { sum } = yield* driver.run({ op: 'SUM', from: 0x80000000n, lengthBytes: 1 });
      expect(sum).toBe(fnv1a32(Uint8Array.of(0x77)));
      yield* p.munmap(reuse, 64n * PAGE);
      yield* p.ioctl(fd, IOMMU_IOAS_UNMAP, { ioas_id: ioas, iova: 0x80000000n, length: 3n * PAGE });
      expect(yield* free()).toBe((before['freePages'] ?? 0) - 1);
      yield* p.ioctl(fd, IOMMU_IOAS_UNMAP, { ioas_id: ioas, iova: 0x90000000n, length: PAGE });
      expect(yield* free()).toBe(before['freePages']);
    }));
  test('pinning holes and read-only memory for writing is EFAULT and pins nothing', () =>
    onHost(function* (p, host) {
      const { fd, ioas } = yield* deviceWithMemory(p);
      const { pinnedPages } = yield* countersOf(host);
      const va = yield* p.mmap({ length: PAGE });
      const ro = yield* p.mmap({ length: PAGE, prot: PROT_READ });
      expect(yield* errorOf(mapAt(p, fd, ioas, va, 2n * PAGE, 0x80000000n))).toBe('EFAULT');
      expect(yield* errorOf(mapAt(p, fd, ioas, ro, PAGE, 0x80000000n))).toBe('EFAULT');
      expect((yield* countersOf(host))['pinnedPages']).toBe(pinnedPages);
      const readable = { flags: IOMMU_IOAS_MAP_READABLE, ioas_id: ioas, user_va: ro, length: PAGE };
      expect(yield* errorOf(p.ioctl(fd, IOMMU_IOAS_MAP, readable))).toBe('ok');
    }));
});
