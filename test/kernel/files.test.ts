/** Descriptors, eventfds and memfds at the system-call boundary. */
import { describe, expect, test } from 'vitest';
import { IOMMU_IOAS_ALLOC } from '../../src/uapi/iommufd.js';
import { EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, O_RDWR } from '../../src/uapi/syscall.js';
import { countersOf, errorOf, onHost } from './on-host.js';

const PAGE = 4096n;

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
  test('what is not open is EBADF for every call', () =>
    onHost(function* (p) {
      const calls = [
        p.read(7, 8),
        p.write(7, new Uint8Array(8)),
        p.pread(7, 8, 0n),
        p.pwrite(7, new Uint8Array(8), 0n),
        p.ioctlValue(7, 'ioctl', 0, 0n),
        p.ioctlValue(-1, 'ioctl', 0, 0n),
        p.close(7),
        p.mmapFile(7, 0n, PAGE),
      ];
      for (const call of calls) expect(yield* errorOf(call)).toBe('EBADF');
      expect((yield* p.syscall({ call: 'ftruncate', fd: 7, length: 1n })).result).toBe(-9);
    }));
  test('what a file cannot do is EINVAL, ENOTTY or ENODEV', () =>
    onHost(function* (p) {
      const fd = yield* p.open('/dev/iommu', O_RDWR);
      expect(yield* errorOf(p.read(fd, 8))).toBe('EINVAL');
      expect(yield* errorOf(p.pwrite(fd, new Uint8Array(8), 0n))).toBe('EINVAL');
      expect(yield* errorOf(p.ioctlValue(fd, 'ioctl', 0x1234, 0n))).toBe('ENOTTY');
      expect(yield* errorOf(p.mmapFile(yield* p.eventfd(), 0n, PAGE))).toBe('ENODEV');
    }));
  test('the 1025th descriptor is EMFILE', () =>
    onHost(function* (p) {
      for (let i = 0; i < 1024; i++) yield* p.eventfd();
      expect(yield* errorOf(p.eventfd())).toBe('EMFILE');
      yield* p.close(512);
      expect(yield* p.eventfd()).toBe(512);
    }));
  test('exit closes everything; the process is ESRCH afterwards', () =>
    onHost(function* (p, host) {
      const before = yield* countersOf(host);
      const other = yield* host.spawn({ name: 'q', uid: 7, capabilities: [] });
      yield* other.memfd('m', 8n * PAGE);
      yield* other.mmap({ length: 8n * PAGE, contiguity: 'scattered' });
      expect(yield* countersOf(host)).not.toEqual(before);
      yield* other.exit();
      expect(yield* countersOf(host)).toEqual(before);
      expect(yield* errorOf(other.eventfd())).toBe('ESRCH');
      expect(yield* errorOf(p.eventfd())).toBe('ok');
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
  test('pages of a memfd live until descriptor and mappings are gone', () =>
    onHost(function* (p, host) {
      const { freePages: before = 0 } = yield* countersOf(host);
      const fd = yield* p.memfd('m', 4n * PAGE);
      const va = yield* p.mmapFile(fd, 0n, 2n * PAGE);
      expect((yield* countersOf(host))['freePages']).toBe(before - 4);
      yield* p.close(fd);
      expect((yield* countersOf(host))['freePages']).toBe(before - 4);
      yield* p.munmap(va, 2n * PAGE);
      expect((yield* countersOf(host))['freePages']).toBe(before);
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
  test('a full counter makes the writer wait, or EAGAIN', () =>
    onHost(function* (p, host) {
      const most = (1n << 64n) - 2n;
      const fd = yield* p.eventfd();
      yield* p.write(fd, word(most));
      const writer = host.lab.spawn('writer', p.write(fd, word(1n)));
      yield 1_000_000;
      expect(writer.isDone).toBe(false);
      expect(number(yield* p.read(fd, 8))).toBe(most);
      expect(yield* writer.join()).toBe(8);
      expect(number(yield* p.read(fd, 8))).toBe(1n);
      const busy = yield* p.eventfd(1, EFD_NONBLOCK);
      expect(yield* errorOf(p.write(busy, word(most)))).toBe('EAGAIN');
    }));
  test('wrong sizes, values and flags are EINVAL', () =>
    onHost(function* (p) {
      const fd = yield* p.eventfd(0, EFD_CLOEXEC);
      expect(yield* errorOf(p.write(fd, word((1n << 64n) - 1n)))).toBe('EINVAL');
      expect(yield* errorOf(p.write(fd, new Uint8Array(4)))).toBe('EINVAL');
      expect(yield* errorOf(p.write(fd, new Uint8Array(16)))).toBe('EINVAL');
      expect(yield* errorOf(p.eventfd(0, 2))).toBe('EINVAL');
    }));
});
