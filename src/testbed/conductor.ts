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
  readonly kind: NodeFailure['kind'] | 'stuck' | 'time-limit';
  readonly node: string;
  readonly message: string;
  /** The rule that was broken, of kind `invariant`. */
  readonly rule?: InvariantId;
}

/** The history of a run and how it ended. */
export interface Conducted {
  readonly events: readonly RunEvent[];
  /** The events' canonical lines. */
  readonly lines: readonly string[];
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
  /** False: events are forgotten as they come, and there are no lines and a digest of nothing. */
  readonly keepsHistory?: boolean;
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
  const lines: string[] = [];
  let virtualNs = 0;
  let rounds = 0;
  const { keepsHistory = true } = options;

  const end = (failure?: RunFailure): Conducted => ({
    events,
    lines,
    digest: digest.value(),
    virtualNs,
    rounds,
    ...(failure === undefined ? {} : { failure }),
  });

  for (;;) {
    const earliest = seats.reduce(
      (ns, { nextNs, pending }) => Math.min(ns, nextNs, pending[0]?.deliverNs ?? ns),
      Infinity,
    );
    if (earliest === Infinity) return end({ kind: 'stuck', node: 'main', message: options.describeStuck() });
    if (earliest > options.limitNs) {
      return end({
        kind: 'time-limit',
        node: 'main',
        message: `virtual time limit of ${options.limitNs} ns reached: ${options.describeStuck()}`,
      });
    }
    const horizonNs = earliest + MESSAGE_LATENCY_NS;
    const answers: (Turn | Promise<Turn>)[] = [];
    for (const seat of seats) {
      const answer = takeTurn(seat, horizonNs);
      if (answer !== undefined) answers.push(answer);
    }
    // A run of some ten thousand rounds in this thread need not wait for promises in each.
    const taken = answers.filter(isTaken);
    const turns =
      taken.length === answers.length ? taken : await Promise.all(answers.map((answer) => Promise.resolve(answer)));
    const happened: RunEvent[] = [];
    for (const { result, failure } of turns) {
      if (failure !== undefined) return end(failure);
      for (const event of result?.events ?? []) happened.push(event);
    }
    if (keepsHistory) {
      if (happened.length > 1) happened.sort(order);
      for (const event of happened) {
        lines.push(digest.add(event));
        events.push(event);
      }
    }
    for (const { result } of turns) for (const message of result?.outbox ?? []) post(seatByName, message);
    virtualNs = earliest;
    rounds++;
    options.onProgress?.(virtualNs);
    if (options.isDone()) return end();
  }
}

interface Turn {
  readonly result: NodeResult | undefined;
  readonly failure: RunFailure | undefined;
}

function isTaken(turn: Turn | Promise<Turn>): turn is Turn {
  return !(turn instanceof Promise);
}

/** Lets a node that has something to do before the horizon run to it; those that live in workers run in parallel. */
function takeTurn(seat: Seat, horizonNs: number): Turn | Promise<Turn> | undefined {
  const due = seat.pending.filter((message) => message.deliverNs < horizonNs);
  if (due.length === 0 && seat.nextNs >= horizonNs) return undefined;
  seat.pending = seat.pending.slice(due.length);
  const taken = (result: NodeResult): Turn => {
    seat.nextNs = result.nextNs;
    return { result, failure: undefined };
  };
  const broken = (error: unknown): Turn => ({ result: undefined, failure: failureOf(error, seat.node.name) });
  try {
    const answer = seat.node.advance({ horizonNs, inbox: due });
    return answer instanceof Promise ? answer.then(taken, broken) : taken(answer);
  } catch (error) {
    return broken(error);
  }
}

function post(seats: ReadonlyMap<string, Seat>, message: NodeMessage): void {
  const seat = seats.get(message.to);
  if (seat === undefined) throw new NodeFailure(message.from, 'broken', `message to unknown node ${message.to}`);
  seat.pending.push(message);
  if (seat.pending.length > 1) seat.pending.sort(compareMessages);
}
