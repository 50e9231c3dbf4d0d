/** A guest's life: boot, memory, vCPUs, pause, end. */
import { expect, test } from 'vitest';
import { migrate } from '../../src/migration/migrate.js';
import type { Task } from '../../src/runtime/task.js';
import type { Lab } from '../../src/testbed/lab.js';
import { Guest, type GuestSpec } from '../../src/vmm/guest.js';
import { addMemory } from '../../src/vmm/hotplug.js';
import { GIB, MIB } from '../../src/vmm/ranges.js';
import { inLab, type FakeHost } from './fake-host.js';

const spec: GuestSpec = { name: 'vm', machine: 'qemu-q35', memoryBytes: 16n * MIB };

function onHosts<T>(body: (lab: Lab, fake: Readonly<Record<string, FakeHost>>) => Task<T>): Promise<T> {
  const hosts = [
    { name: 'a', memoryBytes: GIB },
    { name: 'b', memoryBytes: GIB },
  ];
  return inLab(hosts, body, [{ between: ['a', 'b'], bandwidthBitsPerSecond: 1e10, latencyNs: 1000 }]);
}

test('RAM is addressed by guest-physical address, block by block', async () => {
  await onHosts(function* (lab) {
    const guest = yield* Guest.boot(lab.host('a'), spec);
    yield* guest.store(0x9fffen, Uint8Array.of(1, 2));
    yield* guest.store(0xc0000n, Uint8Array.of(3));
    expect(yield* guest.load(0x9fffen, 2)).toEqual(Uint8Array.of(1, 2));
    expect(yield* guest.load(0xc0000n, 1)).toEqual(Uint8Array.of(3));
    expect(guest.vaOf(0xc0000n) - guest.vaOf(0n)).toBe(0xc0000n);
    expect(() => guest.vaOf(0xa0000n)).toThrow(RangeError);
    expect(() => guest.load(0x9ffffn, 2).next()).toThrow(RangeError);
  });
});

test('every page of a booted guest holds something else', async () => {
  await onHosts(function* (lab) {
    const guest = yield* Guest.boot(lab.host('a'), spec);
    const [first, second] = [yield* guest.load(0n, 64), yield* guest.load(0x1000n, 64)];
    expect(first).not.toEqual(second);
    expect(first.some((byte) => byte !== 0)).toBe(true);
  });
});

test('the dirty log has the pages that were written, across page boundaries, and is cleared when taken', async () => {
  await onHosts(function* (lab) {
    const guest = yield* Guest.boot(lab.host('a'), spec);
    yield* guest.store(0x5000n, Uint8Array.of(1));
    guest.setDirtyLogging(true);
    yield* guest.store(0x1fffn, Uint8Array.of(1, 2));
    expect([...guest.takeDirty().ranges()]).toEqual([{ firstPage: 1, pages: 2 }]);
    expect(guest.takeDirty().isEmpty).toBe(true);
  });
});

test('the workload dirties memory at its rate, inside its working set', async () => {
  await onHosts(function* (lab) {
    const workload = { bytesPerSecond: 100e6, workingSetBytes: 4n * MIB };
    const guest = yield* Guest.boot(lab.host('a'), { ...spec, workload });
    guest.setDirtyLogging(true);
    yield 10_000_000;
    const dirty = guest.takeDirty();
    // 244 page writes in 10 ms; some places are hit twice.
    expect(dirty.count).toBeGreaterThan(150);
    expect(dirty.count).toBeLessThanOrEqual(250);
    for (const range of dirty.ranges()) {
      expect(range.firstPage).toBeGreaterThanOrEqual(0xc0);
      expect(range.firstPage + range.pages).toBeLessThanOrEqual(0xc0 + 1024);
    }
  });
});

test('a paused guest writes nothing until it resumes', async () => {
  await onHosts(function* (lab) {
    const guest = yield* Guest.boot(lab.host('a'), spec);
    yield* guest.pause();
    const store = lab.spawn('store', guest.store(0n, Uint8Array.of(9)));
    yield 1_000_000;
    expect(store.isDone).toBe(false);
    guest.resume();
    yield* store.join();
    expect(yield* guest.load(0n, 1)).toEqual(Uint8Array.of(9));
  });
});

test('a guest that ends gives its host everything back, also under its vCPUs', async () => {
  await onHosts(function* (lab, fake) {
    const workload = { bytesPerSecond: 1e9, workingSetBytes: 4n * MIB };
    const guest = yield* Guest.boot(lab.host('a'), { ...spec, workload });
    yield 2_000_000;
    yield* guest.kill('test');
    yield 5_000_000;
    expect([guest.state, guest.killReason]).toEqual(['killed', 'test']);
    expect(fake['a']?.freeBytes).toBe(GIB);
    yield* guest.shutdown();
    expect(guest.state).toBe('killed');
  });
});

test('added memory migrates too', async () => {
  await onHosts(function* (lab) {
    const guest = yield* Guest.boot(lab.host('a'), { ...spec, hotplugMemoryBytes: GIB });
    expect(yield* addMemory(guest, 'dimm0', 4n * GIB, 4n * MIB)).toMatchObject({ verdict: 'ok' });
    yield* guest.store(4n * GIB + 0x1000n, Uint8Array.of(0x77));
    expect(yield* addMemory(guest, 'dimm1', 5n * GIB, 4n * MIB)).toMatchObject({ verdict: 'refused' });
    const result = yield* migrate(guest, { to: lab.host('b') });
    expect(result).toMatchObject({ outcome: 'completed', memory: { pages: 4096 + 1024, differingPages: 0 } });
    expect(yield* guest.load(4n * GIB + 0x1000n, 1)).toEqual(Uint8Array.of(0x77));
  });
});

test('two runs with one seed write the same pages', async () => {
  const writes = () =>
    onHosts(function* (lab) {
      const workload = { bytesPerSecond: 100e6, workingSetBytes: 4n * MIB };
      const guest = yield* Guest.boot(lab.host('a'), { ...spec, workload });
      guest.setDirtyLogging(true);
      yield 5_000_000;
      return [...guest.takeDirty().ranges()];
    });
  expect(await writes()).toEqual(await writes());
});
