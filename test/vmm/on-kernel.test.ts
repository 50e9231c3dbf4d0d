/** The VMM and the orchestrator on whole hosts: kernel, SMMU, devices (test/fixtures/hosts.ts). */
import { describe, expect, test } from 'vitest';
import type { HostDescription } from '../../src/hardware/description.js';
import { migrate } from '../../src/migration/migrate.js';
import type { Task } from '../../src/runtime/task.js';
import type { Lab } from '../../src/testbed/lab.js';
import { run } from '../../src/testbed/run.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import { Guest, type GuestSpec } from '../../src/vmm/guest.js';
import { addMemory, plugDevice, unplugDevice } from '../../src/vmm/hotplug.js';
import { GIB, MIB } from '../../src/vmm/ranges.js';
import type { VfioDevice } from '../../src/vmm/vfio-device.js';
import { ampereLike, d05Like, x86Like } from '../fixtures/hosts.js';

/** Runs a task on hosts connected to each other; throws what it throws. */
async function onHosts<T>(hosts: readonly HostDescription[], body: (lab: Lab) => Task<T>): Promise<T> {
  let outcome: { readonly value: T } | { readonly error: unknown } | undefined;
  function* main(lab: Lab): Task<void> {
    try {
      outcome = { value: yield* body(lab) };
    } catch (error) {
      outcome = { error };
    }
  }
  const links = hosts.flatMap((a, i) =>
    hosts.slice(i + 1).map((b) => ({
      between: [a.name, b.name] as const,
      bandwidthBitsPerSecond: 10e9,
      latencyNs: 50_000,
    })),
  );
  const finished = await run({ seed: 1, placement: 'inline', strategy: 'in-order', hosts, links, main });
  if (finished.failure !== undefined) throw new Error(`${finished.failure.kind}: ${finished.failure.message}`);
  if (outcome === undefined) throw new Error('the task did not end');
  if ('error' in outcome) throw outcome.error;
  return outcome.value;
}

/** The doorbell's host with a kernel that lets devices with both kinds of MSI region in, as type1 does. */
const d05 = (): HostDescription => d05Like({ allowMixedMsi: true });

const virt: GuestSpec = { name: 'vm', machine: 'qemu-virt', memoryBytes: 4n * GIB };

function plugged(result: { readonly device?: VfioDevice }): VfioDevice {
  if (result.device === undefined) throw new Error(`not plugged: ${JSON.stringify(result, bigintText)}`);
  return result.device;
}

function bigintText(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `0x${value.toString(16)}` : value;
}

describe('a device in a guest', () => {
  test('copies guest memory by DMA and interrupts', async () => {
    await onHosts([ampereLike()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('ampere'), virt);
      const driver = yield* DmaEngineDriver.start(plugged(yield* plugDevice(guest, { bdf: '0000:01:00.0' })));
      const text = new TextEncoder().encode('through the SMMU');
      yield* guest.store(0x50000ff8n, text);
      const copy = { op: 'COPY', from: 0x50000ff8n, to: 0x13ffff000n, lengthBytes: text.length } as const;
      expect(yield* driver.run(copy, 1)).toMatchObject({ status: 'done', error: 'NONE', isInterrupted: true });
      expect(yield* guest.load(0x13ffff000n, text.length)).toEqual(text);
      const transactions = yield* guest.host.transactions();
      const write = transactions.find((t) => t.direction === 'write' && t.iova === 0x13ffff000n);
      expect(write?.ends.map((end) => end.kind)).toEqual(['memory']);
      expect(transactions.some((t) => t.direction === 'msi')).toBe(true);
    });
  });

  test('cannot reach what is not RAM of the guest', async () => {
    await onHosts([ampereLike()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('ampere'), virt);
      const driver = yield* DmaEngineDriver.start(plugged(yield* plugDevice(guest, { bdf: '0000:01:00.0' })));
      const fill = { op: 'FILL', to: 0x30000000n, lengthBytes: 8, pattern: 0 } as const;
      expect(yield* driver.run(fill)).toMatchObject({ status: 'error', error: 'WRITE_ABORTED', isInterrupted: true });
    });
  });

  test('two devices share an address space; unplugging both leaves nothing behind', async () => {
    await onHosts([ampereLike()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('ampere'), virt);
      const before = yield* guest.host.command({ lab: 'counters' });
      plugged(yield* plugDevice(guest, { bdf: '0000:01:00.0' }));
      plugged(yield* plugDevice(guest, { bdf: '0000:02:00.0' }));
      const [first, second] = guest.devices;
      if (first === undefined || second === undefined) throw new Error('not plugged');
      expect(guest.vmm.backend?.containers).toHaveLength(1);
      yield* unplugDevice(guest, first);
      const driver = yield* DmaEngineDriver.start(second);
      const sum = { op: 'SUM', from: 0x40000000n, lengthBytes: 4096 } as const;
      expect(yield* driver.run(sum)).toMatchObject({ status: 'done' });
      yield* unplugDevice(guest, second);
      const { counters } = yield* guest.host.command({ lab: 'counters' });
      expect(counters?.['pinnedPages']).toEqual(before.counters?.['pinnedPages']);
    });
  });
});

describe('a doorbell inside guest RAM (RR-15)', () => {
  test('migrates, then the plug is refused; the guest runs on', async () => {
    await onHosts([ampereLike(), d05()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('ampere'), virt);
      const moved = yield* migrate(guest, { to: lab.host('d05') });
      expect(moved).toMatchObject({ outcome: 'completed', runsOn: 'd05', memory: { differingPages: 0 } });
      const result = yield* plugDevice(guest, { bdf: '0000:7d:00.1' });
      expect(result).toMatchObject({
        verdict: 'refused',
        code: 'EADDRINUSE',
        conflicts: [
          { start: 0xc6010000n, last: 0xc601ffffn, type: 'msi', kind: 'hardware-msi', owner: 'its@c6000000' },
        ],
      });
      expect(guest.state).toBe('running');
    });
  });

  test('mainline refuses a device with both kinds of MSI region whatever the guest, and nothing is in the way', async () => {
    await onHosts([d05Like()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('d05'), { ...virt, memoryBytes: 2n * GIB });
      const result = yield* plugDevice(guest, { bdf: '0000:7d:00.1' });
      expect(result).toMatchObject({ verdict: 'refused', code: 'EINVAL', conflicts: [] });
    });
  });

  test('attach first: IOAS_MAP is what is refused', async () => {
    await onHosts([d05()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('d05'), virt);
      const result = yield* plugDevice(guest, { bdf: '0000:7d:00.1', order: 'attach-first' });
      expect(result).toMatchObject({ verdict: 'refused', code: 'EINVAL', call: 'IOMMU_IOAS_MAP' });
    });
  });

  test('a 2 GiB guest takes the device; growing over the doorbell then ends the VM', async () => {
    await onHosts([d05()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('d05'), { ...virt, memoryBytes: 2n * GIB });
      expect(yield* plugDevice(guest, { bdf: '0000:7d:00.1' })).toMatchObject({ verdict: 'ok', conflicts: [] });
      const grown = yield* addMemory(guest, 'dimm0', 0xc0000000n, 512n * MIB);
      expect(grown).toMatchObject({ verdict: 'killed', code: 'EINVAL' });
      expect(guest.state).toBe('killed');
    });
  });

  test.each(['ignore', 'unmap-conflicts'] as const)(
    '%s: DMA works around the hole and aborts in it',
    async (policy) => {
      await onHosts([d05()], function* (lab) {
        const guest = yield* Guest.boot(lab.host('d05'), virt);
        const result = yield* plugDevice(guest, { bdf: '0000:7d:00.1', policy });
        expect(result).toMatchObject({
          verdict: policy === 'ignore' ? 'silent' : 'ok',
          lost: [{ start: 0xc6010000n, last: 0xc601ffffn, block: 'mach-virt.ram' }],
        });
        const driver = yield* DmaEngineDriver.start(plugged(result));
        const fill = (to: bigint) => driver.run({ op: 'FILL', to, lengthBytes: 64, pattern: 0x5a5a5a5a });
        expect(yield* fill(0xc600f000n)).toMatchObject({ status: 'done' });
        expect(yield* guest.load(0xc600f000n, 2)).toEqual(Uint8Array.of(0x5a, 0x5a));
        // 0xc6011000 is in the doorbell's frame, but no doorbell register.
        yield* fill(0xc6011000n);
        expect(yield* guest.load(0xc6011000n, 2)).not.toEqual(Uint8Array.of(0x5a, 0x5a));
      });
    },
  );
});

describe('migration between hosts', () => {
  test('a guest that writes arrives with its memory', async () => {
    await onHosts([ampereLike(), x86Like()], function* (lab) {
      const workload = { bytesPerSecond: 200e6, workingSetBytes: 64n * MIB };
      const guest = yield* Guest.boot(lab.host('ampere'), { ...virt, memoryBytes: 256n * MIB, workload });
      yield* guest.store(0x40001234n, Uint8Array.of(1, 2, 3));
      const result = yield* migrate(guest, { to: lab.host('x86'), limits: { downtimeLimitNs: 5_000_000 } });
      expect(result).toMatchObject({ outcome: 'completed', memory: { pages: 65536, differingPages: 0 } });
      expect(result.statistics.rounds.length).toBeGreaterThan(2);
      expect(yield* guest.load(0x40001234n, 3)).toEqual(Uint8Array.of(1, 2, 3));
    });
  });

  test('what a device writes during pre-copy arrives, told by the dirty bits of its page table', async () => {
    await onHosts([ampereLike(), x86Like()], function* (lab) {
      const guest = yield* Guest.boot(lab.host('ampere'), { ...virt, memoryBytes: 256n * MIB });
      const driver = yield* DmaEngineDriver.start(plugged(yield* plugDevice(guest, { bdf: '0000:01:00.0' })));
      const to = lab.host('x86');
      const migration = lab.spawn('migration', migrate(guest, { to, attachedDevices: 'unplug-at-stop' }));
      yield 100_000_000;
      const fill = { op: 'FILL', to: 0x40003000n, lengthBytes: 8192, pattern: 0x01020304 } as const;
      expect(yield* driver.run(fill)).toMatchObject({ status: 'done' });
      const result = yield* migration.join();
      expect(result).toMatchObject({
        outcome: 'completed',
        memory: { differingPages: 0 },
        unplugged: ['0000:01:00.0'],
      });
      expect(yield* guest.load(0x40003000n, 4)).toEqual(Uint8Array.of(4, 3, 2, 1));
    });
  });

  test('a TiB costs little', async () => {
    const memory = [{ start: 0x10000000000n, last: 0x3ffffffffffn }];
    const hosts = [ampereLike({ memory }), x86Like({ memory })];
    await onHosts(hosts, function* (lab) {
      const guest = yield* Guest.boot(lab.host('ampere'), { ...virt, memoryBytes: 1024n * GIB });
      const result = yield* migrate(guest, { to: lab.host('x86') });
      expect(result).toMatchObject({ outcome: 'completed', memory: { pages: 1024 * 262144, differingPages: 0 } });
    });
  });
});
