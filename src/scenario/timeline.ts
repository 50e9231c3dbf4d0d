/**
 * What a reader of a run wants to see on a time axis: a selection of its history, as plain data.
 *
 * The history has everything and may be long; a report must stay small. Kinds of events are therefore ranked: what says why
 * something went wrong or moved comes first, what only says that something was done comes last, and what other parts of the
 * outcome already hold (steps, transactions) or every boot repeats is not taken. Over the limit the last rank gives way
 * first, later events before earlier ones, and the number left out is kept by kind. The order of the history is preserved.
 * Transactions are selected likewise: those that went astray before those that ended where they should.
 */
import type { TransactionRecord } from '../host/protocol.js';
import type { EventValue, RunEvent } from '../runtime/events.js';

/** An event as it is shown. */
export interface TimelineEvent {
  readonly timeNs: number;
  readonly node: string;
  readonly kind: string;
  readonly data: Readonly<Record<string, EventValue>>;
}

/** The events of a run that are worth a mark. */
export interface Timeline {
  readonly events: readonly TimelineEvent[];
  /** Events that found no room, by kind. */
  readonly leftOut: readonly { readonly kind: string; readonly count: number }[];
}

/** Events kept of one scenario. */
export const TIMELINE_LIMIT = 4000;

/** In `steps`, in `transactions`, or the same in every run. */
const ELSEWHERE = new Set(['scenario.step', 'dma', 'run.start', 'iommu.add-device']);
/** Kinds that every device has once while its host boots. */
const OF_BOOTING = new Set(['iommu.attach', 'pci.bind']);

/** From the most telling down. A prefix stands for all kinds that begin with it; what is not named is in the last rank. */
const RANKS: readonly (readonly string[])[] = [
  [
    ...[
      'migration.',
      'vmm.',
      'link.',
      'fault.',
      'smmu.',
      'its.',
      'v2m.',
      'in-rc-msi.',
      'pciehp.',
      'pci.no-iommu-group',
    ],
    'vfio.mig-state',
  ],
  ['irq.spurious', 'irq.foreign', 'irq.blocked', 'nic.', 'vfio.', 'slot.', 'pci.reset', 'pci.sriov', 'pci.unbind'],
];

function rankOf({ kind, task }: RunEvent): number | undefined {
  if (ELSEWHERE.has(kind) || (task === 'boot' && OF_BOOTING.has(kind))) return undefined;
  const rank = RANKS.findIndex((kinds) => kinds.some((name) => kind === name || kind.startsWith(name)));
  return rank < 0 ? RANKS.length : rank;
}

/** Selects from a history. */
export function timelineOf(history: readonly RunEvent[], limit: number = TIMELINE_LIMIT): Timeline {
  const ranked: RunEvent[][] = [...RANKS.map(() => []), []];
  for (const event of history) {
    const rank = rankOf(event);
    if (rank !== undefined) ranked[rank]?.push(event);
  }
  const wanted = ranked.flat();
  const kept = new Set(wanted.slice(0, limit));
  const leftOut = new Map<string, number>();
  for (const { kind } of wanted.slice(limit)) leftOut.set(kind, (leftOut.get(kind) ?? 0) + 1);
  return {
    events: history
      .filter((event) => kept.has(event))
      .map(({ timeNs, node, kind, data }) => ({ timeNs, node, kind, data })),
    leftOut: [...leftOut].map(([kind, count]) => ({ kind, count })),
  };
}

/** Transactions kept of one host. */
const TRANSACTION_LIMIT = 1000;

/** Transactions that did not end in memory or a doorbell, and the latest of the others, in their order. */
export function reportedTransactions(
  records: readonly TransactionRecord[],
  limit = TRANSACTION_LIMIT,
): readonly TransactionRecord[] {
  if (records.length <= limit) return records;
  const plain: TransactionRecord[] = [];
  const others: TransactionRecord[] = [];
  for (const record of records) {
    const wanted = record.direction === 'msi' ? 'doorbell' : 'memory';
    (record.ends.every(({ kind }) => kind === wanted) ? plain : others).push(record);
  }
  const kept = new Set(others.slice(0, limit));
  for (const record of kept.size < limit ? plain.slice(kept.size - limit) : []) kept.add(record);
  return records.filter((record) => kept.has(record));
}
