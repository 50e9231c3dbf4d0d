/** The iommufd backend's use of the uAPI, against a host of rules (fake-host.ts). */
import { expect, test } from 'vitest';
import type { Task } from '../../src/runtime/task.js';
import { IommufdBackend } from '../../src/vmm/backends/iommufd.js';
import type { DmaMapping } from '../../src/vmm/listener.js';
import { PageSet } from '../../src/vmm/page-set.js';
import { complement, GIB } from '../../src/vmm/ranges.js';
import { VfioDevice } from '../../src/vmm/vfio-device.js';
import { inLab, type FakeDevice, type FakeHost } from './fake-host.js';

/** More regions than the first IOVA_RANGES call has room for. */
const MANY = Array.from(
  { length: 40 },
  (_, i) => `0x${(0x1000000 * (i + 1)).toString(16)} 0x${(0x1000000 * (i + 1) + 0xfff).toString(16)} reserved\n`,
);
const crowded: FakeDevice = { bdf: '0000:01:00.0', reserved: MANY.join('') };
const tracked: FakeDevice = { bdf: '0000:02:00.0', reserved: '', dirtyTracking: true };

function withBackend<T>(body: (backend: IommufdBackend, host: FakeHost) => Task<T>): Promise<T> {
  return inLab([{ name: 'a', memoryBytes: GIB, devices: [crowded, tracked] }], function* (lab, hosts) {
    const host = hosts['a'];
    if (host === undefined) throw new Error('no host');
    const process = yield* lab.host('a').spawn({ name: 'vmm', uid: 0, capabilities: [] });
    return yield* body(yield* IommufdBackend.open(process), host);
  });
}

function* bound(backend: IommufdBackend, bdf: string): Task<VfioDevice> {
  const device = yield* VfioDevice.open(backend.process, bdf);
  yield* device.bind(backend.fd);
  return device;
}

const mapping = (start: bigint, pages: bigint): DmaMapping => ({
  section: 'ram',
  kind: 'ram',
  start,
  last: start + pages * 4096n - 1n,
  va: 0x7f0000000000n + start,
  writable: true,
});

test('unmaps everything in two halves', async () => {
  await withBackend(function* (backend, host) {
    const container = yield* backend.createContainer();
    yield* backend.map(container, mapping(0x1000n, 1n));
    yield* backend.map(container, mapping(1n << 63n, 1n));
    yield* backend.destroyContainer(container);
    expect(host.calls.filter((call) => call === 'IOMMU_IOAS_UNMAP')).toHaveLength(2);
    expect(container.mappings).toEqual([]);
  });
});

test('asks again for usable ranges when there are more than it had room for', async () => {
  await withBackend(function* (backend) {
    const container = yield* backend.createContainer();
    yield* backend.attach(container, yield* bound(backend, crowded.bdf));
    const { ranges } = yield* backend.usableRanges(container);
    expect(ranges).toHaveLength(41);
    expect(complement(ranges)).toHaveLength(40);
  });
});

test('dirty pages: each mapping is asked for on its own, and translated to pages of the backing', async () => {
  await withBackend(function* (backend, host) {
    const container = yield* backend.createContainer();
    backend.adopt(container);
    yield* backend.map(container, mapping(0x10000n, 16n));
    yield* backend.map(container, mapping(0x100000n, 16n));
    yield* backend.attach(container, yield* bound(backend, tracked.bdf));
    for (const iova of [0x11000n, 0x1f000n, 0x100000n]) host.dirty.add(iova);
    const dirty = new PageSet();
    yield* backend.collectDirty(dirty, (iova) => (iova < 0x100000n ? Number((iova - 0x10000n) / 4096n) : 100));
    expect([...dirty.ranges()].map((range) => range.firstPage)).toEqual([1, 15, 100]);
    expect(host.calls.filter((call) => call === 'IOMMU_HWPT_GET_DIRTY_BITMAP')).toHaveLength(2);
    expect(backend.untrackedDevices()).toEqual([]);
  });
});
