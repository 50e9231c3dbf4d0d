/** Plug policies, container selection and failure policy, against a host of rules (fake-host.ts). */
import { describe, expect, test } from 'vitest';
import type { Task } from '../../src/runtime/task.js';
import { Guest, type GuestSpec } from '../../src/vmm/guest.js';
import { addMemory, plugDevice, unplugDevice, type PlugRequest, type PlugResult } from '../../src/vmm/hotplug.js';
import { GIB, MIB } from '../../src/vmm/ranges.js';
import { inLab, type FakeDevice, type FakeHost } from './fake-host.js';

const SW_MSI = '0x0000000008000000 0x00000000080fffff msi\n';
/** A doorbell inside the RAM of the 64 MiB guest below. */
const DOORBELL = '0x0000000041000000 0x000000004100ffff msi\n';

const clean: FakeDevice = { bdf: '0000:01:00.0', reserved: SW_MSI, dirtyTracking: true };
const second: FakeDevice = { bdf: '0000:02:00.0', reserved: SW_MSI };
const picky: FakeDevice = { bdf: '0000:03:00.0', reserved: SW_MSI, isPicky: true };
const doorbell: FakeDevice = { bdf: '0000:7d:00.1', reserved: SW_MSI + DOORBELL, owner: 'its@41000000' };
const narrow: FakeDevice = { bdf: '0000:04:00.0', reserved: SW_MSI, aperture: { start: 0n, last: 0x41ffffffn } };

const spec: GuestSpec = { name: 'vm', machine: 'qemu-virt', memoryBytes: 64n * MIB, content: 'zero' };

function withGuest<T>(body: (guest: Guest, host: FakeHost) => Task<T>, guestSpec = spec): Promise<T> {
  const devices = [clean, second, picky, doorbell, narrow];
  return inLab([{ name: 'a', memoryBytes: GIB, devices }], function* (lab, hosts) {
    const host = hosts['a'];
    if (host === undefined) throw new Error('no host');
    return yield* body(yield* Guest.boot(lab.host('a'), guestSpec), host);
  });
}

/** Plugs devices one after another; results, and what is mapped at the end. */
function plugged(...requests: PlugRequest[]) {
  return withGuest(function* (guest, host) {
    const results: PlugResult[] = [];
    for (const request of requests) results.push(yield* plugDevice(guest, request));
    const containers = guest.vmm.backend?.containers ?? [];
    const process = [...host.processes.values()][0];
    return {
      results,
      guest,
      process,
      mapped: containers.map((c) => c.mappings.map((m) => `${m.start.toString(16)}-${m.last.toString(16)}`)),
    };
  });
}

describe('reject', () => {
  test('a clean device: RAM is mapped, the device attached', async () => {
    const { results, mapped, guest } = await plugged({ bdf: clean.bdf });
    expect(results[0]).toMatchObject({ verdict: 'ok', conflicts: [], lost: [], attempts: [] });
    expect(mapped).toEqual([['40000000-43ffffff']]);
    expect(guest.devices.map((device) => device.bdf)).toEqual([clean.bdf]);
  });

  test('a doorbell in RAM: EADDRINUSE, with the range, its owner and the RAM block; nothing is left behind', async () => {
    const { results, process, guest } = await plugged({ bdf: doorbell.bdf });
    expect(results[0]).toMatchObject({
      verdict: 'refused',
      code: 'EADDRINUSE',
      call: 'VFIO_DEVICE_ATTACH_IOMMUFD_PT',
      conflicts: [
        {
          start: 0x41000000n,
          last: 0x4100ffffn,
          type: 'msi',
          kind: 'hardware-msi',
          owner: 'its@41000000',
          block: 'mach-virt.ram',
        },
      ],
    });
    expect(guest.state).toBe('running');
    expect(guest.devices).toEqual([]);
    expect(process?.ioases.size).toBe(0);
    expect([...(process?.fds.values() ?? [])].map((file) => file.path)).toEqual(['/dev/iommu']);
  });

  test('attach first: the map is what is refused', async () => {
    const { results } = await plugged({ bdf: doorbell.bdf, order: 'attach-first' });
    expect(results[0]).toMatchObject({ verdict: 'refused', code: 'EINVAL', call: 'IOMMU_IOAS_MAP' });
  });

  test('an aperture that ends inside RAM is found although sysfs does not speak of it', async () => {
    const { results } = await plugged({ bdf: narrow.bdf });
    expect(results[0]).toMatchObject({
      verdict: 'refused',
      code: 'EADDRINUSE',
      conflicts: [{ kind: 'aperture', start: 0x42000000n, ramLast: 0x43ffffffn }],
    });
  });

  test('a second device shares the page table; one that does not fit gets its own in the same container', async () => {
    const { results, mapped, process } = await plugged({ bdf: clean.bdf }, { bdf: second.bdf }, { bdf: picky.bdf });
    expect(results.map((result) => result.verdict)).toEqual(['ok', 'ok', 'ok']);
    expect(mapped).toHaveLength(1);
    expect([...(process?.hwpts.values() ?? [])].map((hwpt) => [...hwpt.devices])).toEqual([
      [clean.bdf, second.bdf],
      [picky.bdf],
    ]);
  });

  test('a second device with a doorbell in RAM is refused by both containers, the first keeps working', async () => {
    const { results, mapped } = await plugged({ bdf: clean.bdf }, { bdf: doorbell.bdf });
    expect(results[1]).toMatchObject({
      verdict: 'refused',
      attempts: [
        { container: 'existing', code: 'EADDRINUSE' },
        { container: 'new', code: 'EADDRINUSE' },
      ],
    });
    expect(mapped).toEqual([['40000000-43ffffff']]);
  });

  test('kvmtool aborts when a reserved region lies over memory', async () => {
    const kvmtool: GuestSpec = { ...spec, machine: 'kvmtool-arm64', memoryBytes: 64n * MIB };
    const device: FakeDevice = { bdf: '0000:09:00.0', reserved: '0x80000000 0x8000ffff msi\n' };
    const [result, state] = await inLab([{ name: 'a', memoryBytes: GIB, devices: [device] }], function* (lab) {
      const guest = yield* Guest.boot(lab.host('a'), kvmtool);
      return [yield* plugDevice(guest, { bdf: device.bdf }), guest.state] as const;
    });
    expect(result.verdict).toBe('killed');
    expect(state).toBe('killed');
  });
});

describe('ignore', () => {
  test('attaches, maps what it may, and tells nobody', async () => {
    const { results, mapped } = await plugged({ bdf: doorbell.bdf, policy: 'ignore' });
    expect(results[0]).toMatchObject({
      verdict: 'silent',
      lost: [{ start: 0x41000000n, last: 0x4100ffffn, block: 'mach-virt.ram' }],
    });
    expect(mapped).toEqual([['40000000-40ffffff', '41010000-43ffffff']]);
  });

  test('is no different where nothing is in the way', async () => {
    const { results } = await plugged({ bdf: clean.bdf, policy: 'ignore' });
    expect(results[0]).toMatchObject({ verdict: 'ok', lost: [] });
  });

  test('leaves the address space of other devices alone', async () => {
    const { mapped } = await plugged({ bdf: clean.bdf }, { bdf: doorbell.bdf, policy: 'ignore' });
    expect(mapped).toEqual([['40000000-43ffffff'], ['40000000-40ffffff', '41010000-43ffffff']]);
  });
});

describe('unmap-conflicts', () => {
  test('lists what the guest loses, and takes it from the devices that were there', async () => {
    const { results, mapped } = await plugged({ bdf: clean.bdf }, { bdf: doorbell.bdf, policy: 'unmap-conflicts' });
    expect(results[1]).toMatchObject({
      verdict: 'ok',
      lost: [{ start: 0x41000000n, last: 0x4100ffffn, block: 'mach-virt.ram' }],
      conflicts: [{ start: 0x41000000n, kind: 'hardware-msi' }],
    });
    expect(mapped).toEqual([['40000000-40ffffff', '41010000-43ffffff']]);
  });

  test('also knows apertures, from a probe address space', async () => {
    const { results, mapped } = await plugged({ bdf: narrow.bdf, policy: 'unmap-conflicts' });
    expect(results[0]).toMatchObject({ verdict: 'ok', lost: [{ start: 0x42000000n, last: 0x43ffffffn }] });
    expect(mapped).toEqual([['40000000-41ffffff']]);
  });
});

test('unplug takes everything back', async () => {
  const left = await withGuest(function* (guest, host) {
    yield* plugDevice(guest, { bdf: clean.bdf });
    const [device] = guest.devices;
    if (device === undefined) throw new Error('not plugged');
    yield* unplugDevice(guest, device);
    const process = [...host.processes.values()][0];
    return { devices: guest.devices.length, ioases: process?.ioases.size, hwpts: process?.hwpts.size };
  });
  expect(left).toEqual({ devices: 0, ioases: 0, hwpts: 0 });
});

describe('memory hot-add', () => {
  test('is mapped in every container', async () => {
    const mapped = await withGuest(function* (guest) {
      yield* plugDevice(guest, { bdf: clean.bdf });
      const result = yield* addMemory(guest, 'dimm0', 0x80000000n, 64n * MIB);
      expect(result.verdict).toBe('ok');
      yield* guest.store(0x80000000n, Uint8Array.of(7));
      expect(yield* guest.load(0x80000000n, 2)).toEqual(Uint8Array.of(7, 0));
      return guest.vmm.backend?.containers[0]?.mappings.map((mapping) => mapping.start);
    });
    expect(mapped).toEqual([0x40000000n, 0x80000000n]);
  });

  test('into a reserved region ends the VM', async () => {
    const far: FakeDevice = { bdf: '0000:7e:00.0', reserved: '0x80010000 0x8001ffff msi\n' };
    const result = await inLab([{ name: 'a', memoryBytes: GIB, devices: [far] }], function* (lab) {
      const guest = yield* Guest.boot(lab.host('a'), spec);
      yield* plugDevice(guest, { bdf: far.bdf });
      return { grown: yield* addMemory(guest, 'dimm0', 0x80000000n, 64n * MIB), state: guest.state };
    });
    expect(result).toMatchObject({ grown: { verdict: 'killed', code: 'EINVAL' }, state: 'killed' });
  });

  test('over something else is refused, and so is more than the host has', async () => {
    const results = await withGuest(function* (guest) {
      return [
        yield* addMemory(guest, 'dimm0', 0x43000000n, 64n * MIB),
        yield* addMemory(guest, 'dimm1', 0x80000000n, 8n * GIB),
      ];
    });
    expect(results).toMatchObject([{ verdict: 'refused' }, { verdict: 'refused', code: 'ENOMEM' }]);
  });
});
