/** Every failure in turn: nothing leaks in the kernel as it is, and what is planted is seen. */
import { readdirSync, readFileSync } from 'node:fs';
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { AddressSpaceCheck } from '../../src/checks/address-space-check.js';
import { Operation } from '../../src/checks/operation.js';
import { Arena } from '../../src/core/arena.js';
import { failNth, type Injected, type Sweep } from '../../src/explore/fail-nth.js';
import { runProgram } from '../../src/host/run-program.js';
import { IoPageTable } from '../../src/kernel/iommufd/io-pagetable.js';
import { IntervalList } from '../../src/kernel/iommufd/interval-list.js';
import { ObjectTable } from '../../src/kernel/iommufd/object.js';
import { FaultSwitches, type FaultId } from '../../src/runtime/faults.js';
import { givenUpIn } from '../../src/runtime/invariants.js';
import { WaitQueue } from '../../src/runtime/task.js';
import { EADDRINUSE, ENOMEM } from '../../src/uapi/errno.js';
import { loadScenario, readScenario } from '../../src/scenario/load.js';
import { sabotaged } from '../../src/scenario/sabotage.js';

/** Setups of hundreds of calls: `iovaduct explore scenarios/races --fail-nth` sweeps them. */
const LONG = ['last-asid.yaml', 'table-given-back.yaml'];

const files = readdirSync('scenarios/races').filter((file) => file.endsWith('.yaml') && !LONG.includes(file));

function failuresOf({ injected }: Sweep): NonNullable<Injected['failure']>[] {
  return injected.flatMap(({ failure }) => failure ?? []);
}

function callsOf({ injected }: Sweep, wanted: FaultId): number {
  return injected.reduce((sum, { fault, calls }) => (fault === wanted ? sum + calls : sum), 0);
}

const SMMU = `title: a device and a mapping
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - device: { as: nic }
tasks:
  a:
    - map: { iova: 0x1000000, length: 16 KiB }
    - hwpt: { as: table, device: nic }
    - replace: { device: nic, to: table }
  b:
    - unmap: {}
`;

/** Of which neither waits for the other, and each would see what the other changes. */
const TWO = `title: two devices come at the same time
kernel-only: { iommu: arm-smmu-v3 }
setup: []
tasks:
  a:
    - device: { as: nic }
    - map: { iova: 0x1000000, length: 16 KiB }
    - hwpt: { as: table, device: nic }
  b:
    - device: { as: disk }
    - hwpt: { as: other, device: disk }
    - map: { iova: 0x2000000, length: 16 KiB }
`;

afterEach(() => {
  vi.restoreAllMocks();
});

/** The first call of a method after a failure struck is forgotten. */
function forgetAfterStrike<T extends Record<K, (...args: never[]) => void>, K extends string>(
  prototype: T,
  method: K,
  matters: (self: T) => boolean = () => true,
): void {
  let isDue = false;
  const { arm, fires } = Object.getOwnPropertyDescriptors(FaultSwitches.prototype);
  vi.spyOn(FaultSwitches.prototype, 'arm').mockImplementation(function (this: FaultSwitches, id, rule) {
    isDue = false;
    arm.value?.call(this, id, rule);
  });
  vi.spyOn(FaultSwitches.prototype, 'fires').mockImplementation(function (this: FaultSwitches, id) {
    const strikes = fires.value?.call(this, id) ?? false;
    isDue ||= strikes;
    return strikes;
  });
  const real = prototype[method];
  prototype[method] = function (this: T, ...args: never[]) {
    if (isDue && matters(this)) isDue = false;
    else real.apply(this, args);
  } as T[K];
  onTestFinished(() => {
    prototype[method] = real;
  });
}

describe('the kernel as it is', () => {
  test.each(files)('%s', async (file) => {
    const sweep = await failNth(readScenario(`scenarios/races/${file}`), 1);
    expect(failuresOf(sweep)).toEqual([]);
    expect(callsOf(sweep, 'kernel.kmalloc')).toBeGreaterThan(0);
  });

  // Of the last one some failures make the guest use the device on a host that nobody uses it on otherwise.
  test.each(['concurrency/one-ioas', 'dma/write', 'kernel-paths/map-then-attach', 'silent/juno-hole'])(
    '%s: whole hosts',
    async (name) => {
      const sweep = await failNth(readScenario(`scenarios/${name}.yaml`), 1);
      expect(failuresOf(sweep)).toEqual([]);
      expect(callsOf(sweep, 'core.kernel-alloc')).toBeGreaterThan(0);
    },
  );

  test('failures strike what a program does, not the boot before it; every call that fails is held against INV-9', async () => {
    const scenario = loadScenario('two.yaml', TWO);
    const sweep = await failNth(scenario, 1);
    expect(failuresOf(sweep)).toEqual([]);
    expect(callsOf(sweep, 'core.kernel-alloc')).toBeGreaterThan(3);
    const { program } = scenario.kernelOnly ?? {};
    if (program === undefined) throw new Error('kernel-only');
    const failedCalls = (fault: FaultId, nth: number): number => {
      const inject = { fault, rule: { skip: nth, count: 1 } };
      const ran = runProgram(program, { seed: 1, schedule: { strategy: 'in-order' }, inject });
      return ran.results.filter(({ rc }) => rc < 0).length;
    };
    // What a call did whose answer could not be copied out may stay done.
    const judged = sweep.injected.filter(({ fault }) => fault !== 'mm.copy-to-user');
    const failed = judged.flatMap(({ fault, calls }) =>
      Array.from({ length: calls }, (_, nth) => failedCalls(fault, nth)),
    );
    expect(Math.min(...failed)).toBeGreaterThan(0);
    const held = sweep.invariants.find(({ id }) => id === 'INV-9')?.looks;
    expect(held).toBe(failed.reduce((sum, count) => sum + count, 0));
  });

  test("a scenario's own failures of the same kind give way to those of the sweep", async () => {
    const sweep = await failNth(readScenario('scenarios/races/fault-queue-enomem.yaml'), 1);
    expect(callsOf(sweep, 'kernel.kmalloc')).toBeLessThan(20);
  });

  test('sends over a link fail in turn; the link that a scenario breaks itself gives way', async () => {
    const text = readFileSync('scenarios/migration/links/link-lost.yaml', 'utf8').replace('1 GiB', '64 MiB');
    const sweep = await failNth(loadScenario('link-lost.yaml', text), 1);
    expect(failuresOf(sweep)).toEqual([]);
    expect(callsOf(sweep, 'link.lost')).toBeGreaterThan(2);
    expect(callsOf(sweep, 'link.lost')).toBeLessThan(20);
  });

  test.each(['ats-off', 'ats-tags'])('%s: invalidations that a device answers fail in turn', async (name) => {
    const sweep = await failNth(readScenario(`scenarios/races/${name}.yaml`), 1);
    expect(callsOf(sweep, 'device.atc-timeout')).toBeGreaterThan(0);
  });
});

test('a rule that is given up stops no sweep, and nothing else from being held', async () => {
  const operation = new Operation('map', 0, 0, 0, 0, 0);
  vi.spyOn(AddressSpaceCheck.prototype, 'exhaustions', 'get').mockReturnValue([{ operation, first: 0, last: 0 }]);
  const scenario = loadScenario('two.yaml', TWO);
  const sweep = await failNth(scenario, 1);
  expect(givenUpIn(sweep.invariants)?.id).toBe('linearizability');
  expect(callsOf(sweep, 'kernel.kmalloc')).toBeGreaterThan(5);
  forgetAfterStrike(IntervalList.prototype, 'removeIf');
  expect(failuresOf(await failNth(scenario, 1))).not.toEqual([]);
});

describe('with nothing injected', () => {
  test('a scenario that breaks a rule is told once, and not swept', async () => {
    const { injected } = await failNth(readScenario('scenarios/corpus/torn-context-descriptor.yaml'), 1);
    expect(injected).toMatchObject([{ calls: 0, failure: { id: 'INV-17' } }]);
    expect(injected[0]?.failure).not.toHaveProperty('nth');
  });

  test('a setup that does not work is told, and not swept', async () => {
    const text =
      'title: t\nkernel-only: { iommu: mock }\nsetup:\n  - map: { length: 0 KiB }\ntasks:\n  a: [{ ioas: { as: x } }]\n';
    const { injected } = await failNth(loadScenario('setup.yaml', text), 1);
    expect(injected).toMatchObject([{ calls: 0, failure: { task: 'setup', line: 4 } }]);
  });

  test('a scenario that does not end leaks nothing: nothing follows', async () => {
    const text = `title: a wait beyond the limit
limit: 1 ms
hosts:
  a: { profile: arm-generic }
steps:
  - wait: 2 s
`;
    const { injected } = await failNth(loadScenario('limit.yaml', text), 1);
    expect(injected).toMatchObject([{ calls: 0, failure: undefined, unfinished: 1 }]);
  });
});

describe('what is planted is seen', () => {
  test('references that a failed call gives back twice (IN-7)', async () => {
    const scenario = readScenario('scenarios/races/fault-queue-enomem.yaml');
    const [failure] = failuresOf(await failNth(sabotaged(scenario) ?? scenario, 1));
    expect(failure?.id).toBe('objects');
  });

  test('a frame that is forgotten on the way back', async () => {
    forgetAfterStrike(Arena.prototype, 'freeKernel');
    const [failure] = failuresOf(await failNth(loadScenario('smmu.yaml', SMMU), 1));
    expect(failure?.message).toMatch(/^objects: left behind: \d+ kernelFrames$/);
  });

  test('a task that is never woken: whole hosts', async () => {
    forgetAfterStrike(WaitQueue.prototype, 'wakeAll', ({ length }) => length > 0);
    const [failure] = failuresOf(await failNth(readScenario('scenarios/concurrency/one-ioas.yaml'), 1));
    expect(failure?.message).toMatch(/^the run ends by itself: stuck /);
  });

  test('a number that stays taken', async () => {
    forgetAfterStrike(ObjectTable.prototype, 'abort');
    const [failure] = failuresOf(await failNth(loadScenario('smmu.yaml', SMMU), 1));
    expect(failure?.message).toMatch(/numbers of iommufd objects are still taken|objects are left/);
  });

  test('reserved ranges of a device that was not attached', async () => {
    forgetAfterStrike(IntervalList.prototype, 'removeIf');
    const [failure] = failuresOf(await failNth(loadScenario('smmu.yaml', SMMU), 1));
    expect(failure).toMatchObject({ id: 'INV-9', message: 'INV-9: setup: device failed and changed something' });
  });

  test('dirty bits that a report cleared and did not give', async () => {
    vi.spyOn(IoPageTable.prototype, 'read_and_clear_dirty').mockImplementation(function* (domain, iova, last, noClear) {
      const lengthBytes = Number(last - iova) + 1;
      yield* domain.dirtyOps?.read_and_clear_dirty(Number(iova), lengthBytes, noClear, () => undefined) ?? [];
      return -ENOMEM;
    });
    const text = `title: a report that fails
kernel-only: { iommu: mock }
setup:
  - device: { as: nic, dirty: true }
  - map: { iova: 0x1000000, length: 4 KiB }
  - hwpt: { as: tracked, device: nic, dirty: true }
  - replace: { device: nic, to: tracked }
  - track-dirty: { hwpt: tracked, on: true }
tasks:
  a:
    - ioas: { as: other }
    - dma: { device: nic, iova: 0x1000000, length: 4 KiB }
    - read-dirty: { hwpt: tracked, iova: 0x1000000, length: 4 KiB }
`;
    const failure = failuresOf(await failNth(loadScenario('report.yaml', text), 1)).at(-1);
    expect(failure?.message).toBe('INV-9: a: read-dirty failed and changed something');
  });

  test('allowed ranges that a failed call has exchanged', async () => {
    // Called with the table as `this`.
    // eslint-disable-next-line @typescript-eslint/unbound-method
    const { set_allow_iova: real } = IoPageTable.prototype;
    vi.spyOn(IoPageTable.prototype, 'set_allow_iova').mockImplementation(function* (this: IoPageTable, allowed) {
      const isFirst = this.ranges.allowed.length === 0;
      const rc = yield* real.call(this, allowed);
      return isFirst ? rc : -EADDRINUSE;
    });
    const text = `title: other ranges
kernel-only: { iommu: mock }
setup:
  - allow: { ranges: [{ start: 0x1000000, last: 0x1ffffff }] }
tasks:
  a:
    - ioas: { as: other }
    - allow: { ranges: [{ start: 0x3000000, last: 0x3ffffff }] }
`;
    const failure = failuresOf(await failNth(loadScenario('allow.yaml', text), 1)).at(-1);
    expect(failure?.message).toBe('INV-9: a: allow failed and changed something');
  });
});
