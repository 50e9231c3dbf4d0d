/** Devices that keep translations: nothing of them outlives an unmap, a move to another address space or a detach. */
import { describe, expect, test } from 'vitest';
import type { HostDescription } from '../../src/hardware/description.js';
import type { Task } from '../../src/runtime/task.js';
import type { Process } from '../../src/testbed/process.js';
import { IOMMU_IOAS_ALLOC, IOMMU_IOAS_UNMAP } from '../../src/uapi/iommufd.js';
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from '../../src/kernel/iommu/domain.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import { ampereLike, dmaEngineAt } from '../fixtures/hosts.js';
import { hostDescription, Machine } from './machine.js';
import { BDF, IOVA, deviceWithMemory, mapAt, onHost } from './on-host.js';

const RW = IOMMU_READ | IOMMU_WRITE | IOMMU_CACHE;

function atsHost(): HostDescription {
  const host = ampereLike();
  return {
    ...host,
    iommus: host.iommus.map((smmu) => ({ ...smmu, ats: true })),
    functions: [dmaEngineAt(BDF, { ats: true })],
  };
}

function* fill(engine: DmaEngineDriver, to: bigint, pattern: number): Task<string> {
  return (yield* engine.run({ op: 'FILL', to, lengthBytes: 4, pattern })).status;
}

function* word(p: Process, va: bigint): Task<number> {
  const bytes = yield* p.load(va, 4);
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
}

describe('ATS', () => {
  test('a device reaches memory by what it keeps, and not after the unmap returned', () =>
    onHost(function* (p) {
      const { device, fd, ioas, va } = yield* deviceWithMemory(p);
      const engine = yield* DmaEngineDriver.start(device);
      expect(yield* fill(engine, IOVA, 1)).toBe('done');
      expect(yield* fill(engine, IOVA, 2)).toBe('done');
      expect(yield* word(p, va)).toBe(2);
      yield* p.ioctl(fd, IOMMU_IOAS_UNMAP, { ioas_id: ioas, iova: IOVA, length: 4096n });
      expect(yield* fill(engine, IOVA, 3)).toBe('error');
      expect(yield* word(p, va)).toBe(2);
    }, atsHost()));

  test('a move to another address space takes it along with nothing of the old one', () =>
    onHost(function* (p) {
      const { device, fd, va } = yield* deviceWithMemory(p);
      const engine = yield* DmaEngineDriver.start(device);
      expect(yield* fill(engine, IOVA, 1)).toBe('done');
      const other = (yield* p.ioctl(fd, IOMMU_IOAS_ALLOC, {})).value.out_ioas_id;
      const elsewhere = yield* p.mmap({ length: 4096n });
      yield* mapAt(p, fd, other, elsewhere, 4096n);
      yield* device.attach(other);
      expect(yield* fill(engine, IOVA, 7)).toBe('done');
      expect([yield* word(p, va), yield* word(p, elsewhere)]).toEqual([1, 7]);
      yield* device.detach();
      expect(yield* fill(engine, IOVA, 8)).toBe('error');
    }, atsHost()));

  test('in the middle of a move the unmaps of either address space reach it', () => {
    const m = new Machine(hostDescription({ ats: true }));
    const device = m.addDevice(BDF, 0x100, false, true);
    const { driver } = m.group(device);
    const [one, other] = [m.domain(device), m.domain(device)];
    expect(m.run(driver.attach_dev(one, device))).toBe(0);
    for (const domain of [one, other]) expect(m.run(domain.map(0x10000, 0x90000000, 0x2000, RW))).toBe(0);
    const move = driver.attach_dev(other, device);
    for (let step = move.next(); step.done !== true && step.value !== 'smmu:entry-store'; step = move.next());
    m.atcInvalidations.length = 0;
    m.run(other.unmap(0x10000, 0x1000));
    m.run(one.unmap(0x11000, 0x1000));
    expect(m.atcInvalidations.map(({ start }) => start)).toEqual([0x10000n, 0x11000n]);
    expect(m.run(move)).toBe(0);
    m.atcInvalidations.length = 0;
    m.run(one.unmap(0x10000, 0x1000));
    expect(m.atcInvalidations).toEqual([]);
  });

  test('a device that leaves has ATS off and keeps nothing', () => {
    const m = new Machine(hostDescription({ ats: true }));
    const device = m.addDevice(BDF, 0x100, false, true);
    expect(m.configWrites).toEqual([{ offset: 0x106, value: 0x8000 }]);
    m.atcInvalidations.length = 0;
    m.run(m.core.removeDevice(device));
    expect(m.configWrites.at(-1)).toEqual({ offset: 0x106, value: 0 });
    expect(m.atcInvalidations).toHaveLength(1);
  });
});
