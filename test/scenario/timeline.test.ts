/** What of a history a reader is shown, and what gives way when there is too much. */
import { describe, expect, test } from 'vitest';
import type { TransactionRecord } from '../../src/host/protocol.js';
import type { RunEvent } from '../../src/runtime/events.js';
import { reportedTransactions, timelineOf } from '../../src/scenario/timeline.js';

function history(...kinds: readonly (string | readonly [kind: string, task: string])[]): RunEvent[] {
  return kinds.map((entry, number) => {
    const [kind, task] = typeof entry === 'string' ? [entry, 'main'] : entry;
    return { timeNs: number * 10, node: 'a', number, task, kind, data: { iova: 0x1000n } };
  });
}

describe('timeline', () => {
  test('has no event that is elsewhere or belongs to every boot', () => {
    const events = history(
      'run.start',
      'dma',
      'scenario.step',
      ['iommu.attach', 'boot'],
      'iommu.attach',
      'vfio.attach',
    );
    const { events: kept, leftOut } = timelineOf(events);
    expect(kept.map(({ kind }) => kind)).toEqual(['iommu.attach', 'vfio.attach']);
    expect(leftOut).toEqual([]);
  });

  test('over the limit the least telling give way, later ones first, and are counted by kind', () => {
    const events = history('iommufd.map', 'irq', 'iommufd.map', 'vfio.attach', 'smmu.fault', 'irq', 'unheard-of.kind');
    const { events: kept, leftOut } = timelineOf(events, 4);
    expect(kept.map(({ kind, timeNs }) => [kind, timeNs])).toEqual([
      ['iommufd.map', 0],
      ['irq', 10],
      ['vfio.attach', 30],
      ['smmu.fault', 40],
    ]);
    expect(leftOut).toEqual([
      { kind: 'iommufd.map', count: 1 },
      { kind: 'irq', count: 1 },
      { kind: 'unheard-of.kind', count: 1 },
    ]);
  });

  test('states of a device say why a migration went as it did: they stay when attachments give way', () => {
    const { events } = timelineOf(history('vfio.attach', 'vfio.mig-state', 'migration.phase'), 2);
    expect(events.map(({ kind }) => kind)).toEqual(['vfio.mig-state', 'migration.phase']);
  });

  test('is plain data', () => {
    const { events } = timelineOf(history('smmu.fault'));
    expect(structuredClone(events)).toEqual(events);
    expect(events).toEqual([{ timeNs: 0, node: 'a', kind: 'smmu.fault', data: { iova: 0x1000n } }]);
  });
});

test('of many transactions those that went astray are kept, and the latest of the others', () => {
  const records = ['memory', 'nowhere', 'memory', 'memory', 'peer', 'memory'].map((kind, number) => ({
    ...{ number, timeNs: number, device: 'd', direction: 'write', iova: 0n, lengthBytes: 1 },
    ends: [{ kind, where: '', hop: '', iova: 0n, lengthBytes: 1 }],
  })) as unknown as TransactionRecord[];
  const kept = (limit: number): number[] => reportedTransactions(records, limit).map(({ number }) => number);
  expect(kept(6)).toEqual([0, 1, 2, 3, 4, 5]);
  expect(kept(4)).toEqual([1, 3, 4, 5]);
  expect(kept(2)).toEqual([1, 4]);
  expect(kept(1)).toEqual([1]);
});
