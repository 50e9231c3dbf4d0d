/** Pre-copy between two hosts of rules (test/vmm/fake-host.ts): what moves, what stays, what it costs. */
import { describe, expect, test } from 'vitest';
import { migrate } from '../../src/migration/migrate.js';
import type { MigrationRequest, MigrationResult } from '../../src/migration/request.js';
import type { Task } from '../../src/runtime/task.js';
import type { Lab } from '../../src/testbed/lab.js';
import type { LinkSpec } from '../../src/testbed/link.js';
import { Guest, type GuestSpec } from '../../src/vmm/guest.js';
import { plugDevice } from '../../src/vmm/hotplug.js';
import { GIB, MIB } from '../../src/vmm/ranges.js';
import { inLab, type FakeDevice, type FakeHost, type FakeHostSpec } from '../vmm/fake-host.js';

const tracked: FakeDevice = { bdf: '0000:01:00.0', reserved: '', dirtyTracking: true };
const untracked: FakeDevice = { bdf: '0000:02:00.0', reserved: '' };
const hosts: FakeHostSpec[] = [
  { name: 'a', memoryBytes: GIB, devices: [tracked, untracked] },
  { name: 'b', memoryBytes: GIB },
];
const link: LinkSpec = { between: ['a', 'b'], bandwidthBitsPerSecond: 10e9, latencyNs: 50_000 };
const spec: GuestSpec = { name: 'vm', machine: 'qemu-virt', memoryBytes: 16n * MIB };
const PAGES = 4096;

interface Setting {
  readonly lab: Lab;
  readonly guest: Guest;
  readonly fake: Readonly<Record<string, FakeHost>>;
  readonly go: (request?: Partial<MigrationRequest>) => Task<MigrationResult>;
}

function setting<T>(
  body: (setting: Setting) => Task<T>,
  guestSpec = spec,
  specs = hosts,
  between: LinkSpec = link,
): Promise<T> {
  return inLab(
    specs,
    function* (lab, fake) {
      const guest = yield* Guest.boot(lab.host('a'), guestSpec);
      const go = (request: Partial<MigrationRequest> = {}) => migrate(guest, { to: lab.host('b'), ...request });
      return yield* body({ lab, guest, fake, go });
    },
    [between],
  );
}

const busy: GuestSpec = { ...spec, workload: { bytesPerSecond: 200e6, workingSetBytes: 2n * MIB } };

describe('a guest that runs', () => {
  test('moves with its memory, and the source has nothing left', async () => {
    await setting(function* ({ guest, fake, go }) {
      yield* guest.store(0x40000ffen, Uint8Array.of(1, 2, 3, 4));
      const result = yield* go();
      expect(result).toMatchObject({
        outcome: 'completed',
        from: 'a',
        runsOn: 'b',
        memory: { pages: PAGES, differingPages: 0 },
        unplugged: [],
      });
      expect(guest.state).toBe('running');
      expect(yield* guest.load(0x40000ffen, 4)).toEqual(Uint8Array.of(1, 2, 3, 4));
      expect(fake['a']?.processes.size).toBe(0);
      expect(fake['a']?.freeBytes).toBe(GIB);
    });
  });

  test('dirties memory meanwhile: more rounds, the same memory, a bounded downtime', async () => {
    await setting(function* ({ go, lab }) {
      yield 20_000_000;
      const result = yield* go({ limits: { downtimeLimitNs: 1_000_000 } });
      expect(result).toMatchObject({ outcome: 'completed', memory: { differingPages: 0 } });
      const { rounds, pages, downtimeNs, totalNs } = result.statistics;
      expect(rounds.length).toBeGreaterThan(1);
      expect(pages).toBeGreaterThan(PAGES);
      expect(rounds.at(-1)?.pages).toBeGreaterThan(0);
      expect(downtimeNs).toBeLessThan(3_000_000);
      expect(totalNs).toBeGreaterThan(result.statistics.wireBytes * 0.8);
      expect(lab.link('a', 'b')?.sentBytes).toBeGreaterThan(result.statistics.wireBytes);
    }, busy);
  });

  test('goes on writing where it runs now', async () => {
    await setting(function* ({ guest, go }) {
      yield* go();
      guest.setDirtyLogging(true);
      yield 10_000_000;
      expect(guest.takeDirty().count).toBeGreaterThan(100);
    }, busy);
  });

  test('has a write on its way at every moment, also when it is stopped', async () => {
    const fast: LinkSpec = { between: ['a', 'b'], bandwidthBitsPerSecond: 1e12, latencyNs: 1000 };
    await setting(
      function* ({ lab, guest, go }) {
        function* writer(): Task<void> {
          for (let page = 0n; guest.host.name === 'a'; page = (page + 7n) % BigInt(PAGES))
            yield* guest.store(0x40000000n + page * 4096n, Uint8Array.of(1 + Number(page % 200n)));
        }
        lab.spawn('writer', writer(), { daemon: true });
        expect(yield* go()).toMatchObject({ outcome: 'completed', memory: { differingPages: 0 } });
      },
      spec,
      hosts,
      fast,
    );
  });

  test('dirties faster than the link carries: cancelled, it stays', async () => {
    await setting(
      function* ({ guest, fake, go }) {
        const result = yield* go({ limits: { downtimeLimitNs: 1000, maxRounds: 4 } });
        expect(result).toMatchObject({ outcome: 'failed', reason: 'not-converging', runsOn: 'a' });
        expect(result.statistics.rounds).toHaveLength(4);
        expect(guest.state).toBe('running');
        expect(fake['b']?.processes.size).toBe(0);
      },
      { ...spec, workload: { bytesPerSecond: 4e9, workingSetBytes: 8n * MIB } },
    );
  });

  test('the same, but stopped by force', async () => {
    await setting(
      function* ({ go }) {
        const limits = { downtimeLimitNs: 1000, maxRounds: 3, onNoConvergence: 'stop' as const };
        expect(yield* go({ limits })).toMatchObject({ outcome: 'completed', memory: { differingPages: 0 } });
      },
      { ...spec, workload: { bytesPerSecond: 4e9, workingSetBytes: 8n * MIB } },
    );
  });
});

describe('what it costs', () => {
  test('zero pages cost their headers', async () => {
    await setting(
      function* ({ go }) {
        const { statistics } = yield* go();
        expect(statistics.rounds[0]).toMatchObject({ pages: PAGES, zeroPages: PAGES });
        expect(statistics.wireBytes).toBeLessThan(PAGES * 9);
      },
      { ...spec, content: 'zero' },
    );
  });

  test('the first round takes the time its bytes take on the link', async () => {
    await setting(function* ({ go }) {
      const { statistics } = yield* go();
      const first = statistics.rounds[0];
      const transferNs = ((PAGES * 4104 + 16) * 8) / 10;
      expect(first?.elapsedNs).toBeGreaterThan(transferNs);
      expect(first?.elapsedNs).toBeLessThan(transferNs + 200_000);
    });
  });

  test('comparing memory costs no downtime', async () => {
    const downtime = (verify: boolean) =>
      setting(function* ({ go }) {
        return (yield* go({ verify })).statistics.downtimeNs;
      });
    expect(await downtime(true)).toBe(await downtime(false));
  });
});

describe('failures leave the guest where it was', () => {
  test('the link goes down in the middle', async () => {
    await setting(function* ({ lab, guest, fake, go }) {
      const migration = lab.spawn('migration', go());
      yield 5_000_000;
      lab.link('a', 'b')?.lose();
      const result = yield* migration.join();
      expect(result).toMatchObject({ outcome: 'failed', reason: 'link-lost', runsOn: 'a' });
      expect(guest.state).toBe('running');
      expect(guest.isLogging).toBe(false);
      expect(fake['b']?.processes.size).toBe(0);
      lab.link('a', 'b')?.repair();
      expect(yield* go()).toMatchObject({ outcome: 'completed', runsOn: 'b' });
    }, busy);
  });

  test('the link goes down while the guest stands still', async () => {
    await setting(function* ({ lab, guest, go }) {
      const migration = lab.spawn('migration', go({ limits: { downtimeLimitNs: 1e9 } }));
      while (guest.state === 'running') yield 1000;
      lab.link('a', 'b')?.lose();
      expect(yield* migration.join()).toMatchObject({ outcome: 'failed', reason: 'link-lost', runsOn: 'a' });
      expect(guest.state).toBe('running');
    }, busy);
  });

  test('the destination has too little memory', async () => {
    const small = [hosts[0], { name: 'b', memoryBytes: 8n * MIB }] as FakeHostSpec[];
    await setting(
      function* ({ guest, fake, go }) {
        expect(yield* go()).toMatchObject({ outcome: 'refused', reason: 'destination-refused', code: 'ENOMEM' });
        expect(guest.state).toBe('running');
        expect(fake['b']?.processes.size).toBe(0);
      },
      spec,
      small,
    );
  });

  test('a guest that is off, a host without a link', async () => {
    await setting(function* ({ lab, guest, go }) {
      expect(yield* migrate(guest, { to: lab.host('a') })).toMatchObject({ outcome: 'refused', reason: 'no-link' });
      yield* guest.shutdown();
      expect(yield* go()).toMatchObject({ outcome: 'refused', reason: 'guest-not-running' });
    });
  });

  test.each([1_000_000, 5_000_000, 13_500_000])(
    'a guest that is switched off while it moves, nobody comparing (%i ns)',
    async (atNs) => {
      await setting(function* ({ lab, guest, fake, go }) {
        const migration = lab.spawn('migration', go({ verify: false }));
        yield atNs;
        yield* guest.shutdown();
        expect(yield* migration.join()).toMatchObject({ reason: 'guest-not-running' });
        expect(guest.isMigrating).toBe(false);
        expect(fake['b']?.processes.size).toBe(0);
      });
    },
  );

  test('a guest that is killed while it moves', async () => {
    await setting(function* ({ lab, guest, fake, go }) {
      const migration = lab.spawn('migration', go());
      yield 5_000_000;
      yield* guest.kill('test');
      expect(yield* migration.join()).toMatchObject({ outcome: 'failed', reason: 'guest-not-running' });
      expect(fake['b']?.processes.size).toBe(0);
    });
  });
});

describe('passthrough devices', () => {
  test('block a migration', async () => {
    await setting(function* ({ guest, go }) {
      yield* plugDevice(guest, { bdf: tracked.bdf });
      expect(yield* go()).toMatchObject({ outcome: 'refused', reason: 'device-attached', runsOn: 'a' });
      expect(guest.devices).toHaveLength(1);
    });
  });

  test('unplug-first: the guest arrives without them', async () => {
    await setting(function* ({ guest, go }) {
      yield* plugDevice(guest, { bdf: tracked.bdf });
      const result = yield* go({ attachedDevices: 'unplug-first' });
      expect(result).toMatchObject({ outcome: 'completed', unplugged: [tracked.bdf] });
      expect(guest.devices).toEqual([]);
    });
  });

  test('unplug-first: a migration that fails gives them back', async () => {
    await setting(function* ({ lab, guest, go }) {
      yield* plugDevice(guest, { bdf: tracked.bdf });
      const migration = lab.spawn('migration', go({ attachedDevices: 'unplug-first' }));
      yield 5_000_000;
      lab.link('a', 'b')?.lose();
      expect(yield* migration.join()).toMatchObject({ outcome: 'failed', unplugged: [] });
      expect(guest.devices.map((device) => device.bdf)).toEqual([tracked.bdf]);
    });
  });

  test('unplug-at-stop: what the device writes during pre-copy arrives', async () => {
    await setting(function* ({ lab, guest, fake, go }) {
      yield* plugDevice(guest, { bdf: tracked.bdf });
      const migration = lab.spawn('migration', go({ attachedDevices: 'unplug-at-stop' }));
      yield 8_000_000;
      // The device writes: memory changes behind the vCPUs' log, only the page table's dirty bit tells.
      yield* guest.vmm.process.store(guest.vaOf(0x40123000n), Uint8Array.of(0x5a));
      fake['a']?.dirty.add(0x40123000n);
      const result = yield* migration.join();
      expect(result).toMatchObject({ outcome: 'completed', unplugged: [tracked.bdf], memory: { differingPages: 0 } });
      expect(yield* guest.load(0x40123000n, 1)).toEqual(Uint8Array.of(0x5a));
    });
  });

  test('a dirty bit that is lost shows up as a page that differs', async () => {
    await setting(function* ({ lab, guest, go }) {
      yield* plugDevice(guest, { bdf: tracked.bdf });
      const migration = lab.spawn('migration', go({ attachedDevices: 'unplug-at-stop' }));
      yield 8_000_000;
      yield* guest.vmm.process.store(guest.vaOf(0x40000000n), Uint8Array.of(0x5a));
      const result = yield* migration.join();
      expect(result.statistics.rounds[0]?.elapsedNs).toBeGreaterThan(8_000_000);
      expect(result.memory).toEqual({ pages: PAGES, differingPages: 1, differences: [{ firstPage: 0, pages: 1 }] });
    });
  });

  test('unplug-at-stop needs dirty tracking', async () => {
    await setting(function* ({ guest, go }) {
      yield* plugDevice(guest, { bdf: untracked.bdf });
      const result = yield* go({ attachedDevices: 'unplug-at-stop' });
      expect(result).toMatchObject({ outcome: 'refused', reason: 'no-dirty-tracking' });
    });
  });

  test('cannot be plugged while the guest moves', async () => {
    await setting(function* ({ lab, guest, go }) {
      const migration = lab.spawn('migration', go());
      yield 5_000_000;
      expect(yield* plugDevice(guest, { bdf: tracked.bdf })).toMatchObject({ verdict: 'refused', code: 'EBUSY' });
      expect((yield* migration.join()).outcome).toBe('completed');
    });
  });
});
