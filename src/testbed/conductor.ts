/**
 * The conductor: rounds of virtual time over all nodes of a run.
 *
 * Each round, the horizon is the earliest time at which any node has something to do plus the smallest latency of a
 * message; nothing sent inside the round can arrive before it. So all nodes may run to the horizon in parallel, and what
 * they sent is sorted by stamp and delivered in later rounds. The horizon depends on nothing but virtual times, so the
 * history is the same wherever the nodes live.
 *
 * The merged history is complete up to the horizon after each round; it is sorted by (time, node, number) and fed to the
 * digest there.
 */
import type { InvariantId } from '../runtime/invariants.js';
import { InvariantError } from '../runtime/task.js';
import { compareEvents, HistoryDigest, type RunEvent } from '../runtime/events.js';
import {
  compareMessages,
  MESSAGE_LATENCY_NS,
  NodeFailure,
  type Node,
  type NodeMessage,
  type NodeResult,
} from './node.js';

/** Why a run ended before its main task did. */
export interface RunFailure {
  readonly kind: 'host-died' | 'broken' | 'invariant' | 'stuck' | 'time-limit';
  readonly node: string;
  readonly message: string;
  /** The rule that was broken, of kind `invariant`. */
  readonly rule?: InvariantId;
}

/** The history of a run and how it ended. */
export interface Conducted {
  readonly events: readonly RunEvent[];
  readonly digest: string;
  readonly virtualNs: number;
  readonly rounds: number;
  readonly failure?: RunFailure;
}

/** When to stop, and who wants to know. */
export interface ConductOptions {
  /** True when the main task is done; asked after each round. */
  readonly isDone: () => boolean;
  /** Names what the run waits for when nothing can happen any more. */
  readonly describeStuck: () => string;
  readonly limitNs: number;
  /** Called after each round with the virtual time reached. */
  readonly onProgress?: (virtualNs: number) => void;
}

interface Seat {
  readonly node: Node;
  nextNs: number;
  pending: NodeMessage[];
}

function failureOf(error: unknown, node: string): RunFailure {
  if (error instanceof NodeFailure) return failureOfNode(error);
  if (error instanceof InvariantError && error.id !== undefined)
    return { kind: 'invariant', node, message: error.message, rule: error.id };
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { kind: 'broken', node, message: text };
}

/** A node's failure as a run's. */
export function failureOfNode({ kind, node, message, rule }: NodeFailure): RunFailure {
  return { kind, node, message, ...(rule === undefined ? {} : { rule }) };
}

/** Runs rounds until the main task is done, nothing is left to do, the time limit is reached, or a node fails. */
export async function conduct(nodes: readonly Node[], options: ConductOptions): Promise<Conducted> {
  const seats: Seat[] = nodes.map((node) => ({ node, nextNs: 0, pending: [] }));
  const seatByName = new Map(seats.map((seat) => [seat.node.name, seat]));
  const order = compareEvents(new Map(nodes.map((node, index) => [node.name, index])));
  const digest = new HistoryDigest();
  const events: RunEvent[] = [];
  let virtualNs = 0;
  let rounds = 0;

  const end = (failure?: RunFailure): Conducted => ({
    events,
    digest: digest.value(),
    virtualNs,
    rounds,
    ...(failure === undefined ? {} : { failure }),
  });

  for (;;) {
    const earliest = Math.min(...seats.map((seat) => Math.min(seat.nextNs, seat.pending[0]?.deliverNs ?? Infinity)));
    if (earliest === Infinity) return end({ kind: 'stuck', node: 'main', message: options.describeStuck() });
    if (earliest > options.limitNs) {
      return end({
        kind: 'time-limit',
        node: 'main',
        message: `virtual time limit of ${options.limitNs} ns reached: ${options.describeStuck()}`,
      });
    }
    const horizonNs = earliest + MESSAGE_LATENCY_NS;
    const turns = await takeTurns(seats, horizonNs);
    const failed = turns.find((turn) => turn.failure !== undefined);
    if (failed?.failure !== undefined) return end(failed.failure);
    collect(turns, events, digest, order);
    for (const { result } of turns) for (const message of result?.outbox ?? []) post(seatByName, message);
    for (const seat of seats) seat.pending.sort(compareMessages);
    virtualNs = earliest;
    rounds++;
    options.onProgress?.(virtualNs);
    if (options.isDone()) return end();
  }
}

interface Turn {
  readonly result?: NodeResult;
  readonly failure?: RunFailure;
}

/** Lets every node with something to do before the horizon run to it, in parallel where they live in workers. */
function takeTurns(seats: readonly Seat[], horizonNs: number): Promise<Turn[]> {
  return Promise.all(
    seats.map(async (seat): Promise<Turn> => {
      const due = seat.pending.filter((message) => message.deliverNs < horizonNs);
      if (due.length === 0 && seat.nextNs >= horizonNs) return {};
      seat.pending = seat.pending.slice(due.length);
      try {
        const result = await seat.node.advance({ horizonNs, inbox: due });
        seat.nextNs = result.nextNs;
        return { result };
      } catch (error) {
        return { failure: failureOf(error, seat.node.name) };
      }
    }),
  );
}

function collect(
  turns: readonly Turn[],
  events: RunEvent[],
  digest: HistoryDigest,
  order: (a: RunEvent, b: RunEvent) => number,
): void {
  const happened = turns.flatMap((turn) => turn.result?.events ?? []).sort(order);
  for (const event of happened) {
    digest.add(event);
    events.push(event);
  }
}

function post(seats: ReadonlyMap<string, Seat>, message: NodeMessage): void {
  const seat = seats.get(message.to);
  if (seat === undefined) throw new NodeFailure(message.from, 'broken', `message to unknown node ${message.to}`);
  seat.pending.push(message);
}
