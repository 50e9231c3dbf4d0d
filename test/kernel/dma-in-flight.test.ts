/**
 * DMA in flight against unmap, on a whole board: after an unmap has returned, no transaction ends in the old page
 * (domain.md INV-2), although the access comes later than its translation. Every schedule that a seed gives must hold.
 */
import { expect, it } from 'vitest';
import type { Device } from '../../src/kernel/device.js';
import { ArmSmmuDomain } from '../../src/kernel/iommu/arm-smmu-v3/domain.js';
import { IOMMU_READ, IOMMU_WRITE } from '../../src/kernel/iommu/domain.js';
import { setGroupDomain } from '../../src/kernel/iommu/group.js';
import { IommuCore } from '../../src/kernel/iommu/iommu.js';
import type { FaultId } from '../../src/runtime/faults.js';
import type { Task } from '../../src/runtime/task.js';
import { ampereLike } from '../fixtures/hosts.js';
import { BoardMachine } from '../hardware/machine.js';

const IOVA = 0x100000;
const PA = 0x90000000;
const BDF = '0000:01:00.0';

interface Outcome {
  /** Writes that ended in memory, before and after the unmap returned. */
  readonly before: number;
  readonly after: number;
  readonly aborted: number;
}

function race(seed: number, fault?: FaultId): Outcome {
  const description = ampereLike();
  const machine = new BoardMachine(description, seed, { strategy: 'random' });
  const core = new IommuCore(machine.runtime, machine.board, description);
  const fn = machine.enabled(BDF);
  const device: Device = {
    name: BDF,
    function: fn,
    parent: undefined,
    busMates: () => [],
    isMultifunction: false,
    streamIds: [fn.requesterId],
    msiDeviceId: fn.requesterId,
    iommu: 'smmu0',
    msiController: 'its0',
    driver: undefined,
    driverOverride: undefined,
    group: undefined,
  };
  let recordsAtReturn = -1;
  const unmapper = function* (domain: ArmSmmuDomain): Task<void> {
    yield 1000 + (seed % 7) * 40;
    expect(yield* domain.unmap(IOVA, 4096)).toBe(4096);
    recordsAtReturn = machine.board.analyser.records.length;
  };
  const writer = function* (): Task<void> {
    for (let i = 0; i < 20; i++) yield* fn.dmaWrite(BigInt(IOVA), Uint8Array.of(i + 1));
  };
  const main = function* (): Task<void> {
    yield* core.probe();
    expect(yield* core.addDevice(device)).toBe(0);
    if (device.group === undefined) throw new Error('no group');
    const domain = yield* device.group.driver.domain_alloc_paging_flags(device, 0, undefined);
    if (!(domain instanceof ArmSmmuDomain)) throw new Error('no domain');
    expect(yield* domain.map(IOVA, PA, 4096, IOMMU_READ | IOMMU_WRITE)).toBe(0);
    expect(yield* setGroupDomain(device.group, domain)).toBe(0);
    if (fault !== undefined) machine.runtime.faults.arm(fault);
    machine.runtime.spawn('writer', writer());
    machine.runtime.spawn('unmapper', unmapper(domain));
  };
  machine.run(main());
  const records = machine.board.analyser.records;
  const inMemory = records.filter((record) => record.ends[0]?.kind === 'memory');
  return {
    before: inMemory.filter((record) => record.number < recordsAtReturn).length,
    after: inMemory.filter((record) => record.number >= recordsAtReturn).length,
    aborted: records.length - inMemory.length,
  };
}

it('nothing reaches the old page once unmap has returned', () => {
  const outcomes = Array.from({ length: 20 }, (_, seed) => race(seed + 1));
  expect(outcomes.map(({ after }) => after)).toEqual(outcomes.map(() => 0));
  expect(outcomes.some(({ before }) => before > 0)).toBe(true);
  expect(outcomes.every(({ aborted }) => aborted > 0)).toBe(true);
});

it('only the invalidation sees to that', () => {
  expect(race(1, 'smmu.drop-tlbi').after).toBeGreaterThan(0);
});
