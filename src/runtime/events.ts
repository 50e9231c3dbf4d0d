/**
 * The history of a run: events, their canonical text and its digest.
 *
 * Every node numbers its own events; the conductor merges them by (time, node, number) into the run's history. The digest
 * is SHA-256 over the canonical lines, so two runs are the same exactly when their texts are. An event says what happened
 * in the words of the specifications; it carries no wall-clock time, no host name of the machine and no object identity.
 */
import { createHash, type Hash } from 'node:crypto';

/** What a field of an event may hold. Numbers are printed in decimal, bigints as addresses in hexadecimal. */
export type EventValue = string | number | bigint | boolean;

/** One thing that happened. `kind` is `component.what`, e.g. `smmu.event`, `vfio.attach`. */
export interface RunEvent {
  readonly timeNs: number;
  readonly node: string;
  /** Position among the events of its node. */
  readonly number: number;
  /** The task that was running, `-` for none. */
  readonly task: string;
  readonly kind: string;
  readonly data: Readonly<Record<string, EventValue>>;
}

function valueText(value: EventValue): string {
  if (typeof value === 'bigint') return `0x${value.toString(16)}`;
  if (typeof value === 'string') return /^[\w.:@/+-]+$/.test(value) ? value : JSON.stringify(value);
  return String(value);
}

/** The canonical line of an event: what the digest is made of and what `replay` compares. */
export function eventLine(event: RunEvent): string {
  let line = `${event.timeNs} ${event.node} ${event.task.replaceAll(' ', '_')} ${event.kind}`;
  for (const key of Object.keys(event.data)) {
    const value = event.data[key];
    if (value !== undefined) line += ` ${key}=${valueText(value)}`;
  }
  return line;
}

/** Order of the merged history. `nodeOrder` gives each node's place among nodes with events at the same time. */
export function compareEvents(nodeOrder: ReadonlyMap<string, number>): (a: RunEvent, b: RunEvent) => number {
  const place = (event: RunEvent): number => nodeOrder.get(event.node) ?? Number.MAX_SAFE_INTEGER;
  return (a, b) => a.timeNs - b.timeNs || place(a) - place(b) || a.number - b.number;
}

/** SHA-256 of a growing history. */
export class HistoryDigest {
  readonly #hash: Hash = createHash('sha256');

  /** Adds an event; its line. */
  add(event: RunEvent): string {
    const line = eventLine(event);
    this.#hash.update(`${line}\n`);
    return line;
  }

  /** Hexadecimal digest of everything added so far. */
  value(): string {
    return this.#hash.copy().digest('hex');
  }
}
