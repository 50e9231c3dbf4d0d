/** Processes, memory and files at the system-call boundary. */
import { describe, expect, test } from 'vitest';
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
} from '../../src/uapi/iommufd.js';
import { EFD_NONBLOCK, EFD_SEMAPHORE, O_RDWR, PROT_READ } from '../../src/uapi/syscall.js';
import { VfioDevice } from '../../src/vmm/vfio-device.js';
import { errorOf, onHost } from './on-host.js';

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
  test('memory that is pinned outlives its mapping and is free after the last pin', () =>
    onHost(function* (p, host) {
      const free = (yield* host.command({ lab: 'counters' })).counters?.['freePages'] ?? 0;
      const va = yield* p.mmap({ length: 16n * PAGE, contiguity: 'scattered' });
      const device = '/sys/bus/pci/devices/0000:01:00.0';
      yield* p.writeFile(`${device}/driver_override`, 'vfio-pci');
      yield* p.writeFile('/sys/bus/pci/drivers_probe', '0000:01:00.0');
      const fd = yield* p.open('/dev/iommu', O_RDWR);
      const { value } = yield* p.ioctl(fd, IOMMU_IOAS_ALLOC, {});
      yield* p.ioctl(fd, IOMMU_IOAS_MAP, {
        flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        ioas_id: value.out_ioas_id,
        user_va: va,
        length: 16n * PAGE,
      });
      const opened = yield* VfioDevice.open(p, '0000:01:00.0');
      yield* opened.bind(fd);
      yield* opened.attach(value.out_ioas_id);
      yield* p.munmap(va, 16n * PAGE);
      const pinned = (yield* host.command({ lab: 'counters' })).counters;
      expect(pinned?.['pinnedPages']).toBe(16);
      expect(pinned?.['freePages']).toBe(free - 16);
      yield* opened.close();
      yield* p.close(fd);
      const after = (yield* host.command({ lab: 'counters' })).counters;
      expect(after?.['pinnedPages']).toBe(0);
      expect(after?.['freePages']).toBe(free);
    }));
});

describe('descriptors', () => {
  test('the lowest free number is handed out; a closed one is EBADF', () =>
    onHost(function* (p) {
      const [a, b, c] = [yield* p.eventfd(), yield* p.eventfd(), yield* p.eventfd()];
      expect([a, b, c]).toEqual([0, 1, 2]);
      yield* p.close(b);
      expect(yield* errorOf(p.read(b, 8))).toBe('EBADF');
      expect(yield* p.eventfd()).toBe(b);
      expect(yield* errorOf(p.ioctlValue(a, 'ioctl', 0x1234, 0n))).toBe('ENOTTY');
    }));
  test('a bad pointer is EFAULT, an unknown path ENOENT, a directory EISDIR', () =>
    onHost(function* (p) {
      const fd = yield* p.open('/dev/iommu', O_RDWR);
      expect(yield* errorOf(p.ioctlValue(fd, 'IOMMU_IOAS_ALLOC', IOMMU_IOAS_ALLOC.number, 0x1000n))).toBe('EFAULT');
      expect(yield* errorOf(p.open('/dev/nothing', O_RDWR))).toBe('ENOENT');
      expect(yield* errorOf(p.open('/sys/kernel', O_RDWR))).toBe('EISDIR');
    }));
  test('memfds share their pages between mappings', () =>
    onHost(function* (p) {
      const fd = yield* p.memfd('m', 4n * PAGE);
      const one = yield* p.mmapFile(fd, 0n, 4n * PAGE);
      const two = yield* p.mmapFile(fd, PAGE, PAGE);
      yield* p.close(fd);
      yield* p.store(one + PAGE, Uint8Array.of(42));
      expect([...(yield* p.load(two, 1))]).toEqual([42]);
    }));
});

describe('eventfds', () => {
  const word = (n: bigint): Uint8Array => new Uint8Array(new BigUint64Array([n]).buffer);
  const number = (bytes: Uint8Array): bigint => new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);

  test('count, semaphore, nonblocking', () =>
    onHost(function* (p) {
      const plain = yield* p.eventfd(3);
      yield* p.write(plain, word(4n));
      expect(number(yield* p.read(plain, 8))).toBe(7n);
      const semaphore = yield* p.eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
      expect(number(yield* p.read(semaphore, 8))).toBe(1n);
      expect(number(yield* p.read(semaphore, 8))).toBe(1n);
      expect(yield* errorOf(p.read(semaphore, 8))).toBe('EAGAIN');
      expect(yield* errorOf(p.read(plain, 4))).toBe('EINVAL');
    }));
  test('a reader waits for the writer', () =>
    onHost(function* (p, host) {
      const fd = yield* p.eventfd();
      const { lab } = host;
      const reader = lab.spawn('reader', p.read(fd, 8));
      yield 1_000_000;
      expect(reader.isDone).toBe(false);
      yield* p.write(fd, word(9n));
      expect(number(yield* reader.join())).toBe(9n);
    }));
});
