/**
 * What the conductor knows of a node: state and ordered inputs in, ordered outputs out.
 *
 * A node is deterministic. It is told to run to a horizon with the messages that reach it before then, and answers with
 * what it sent, what happened, and when it next has something to do. Where it lives (this thread, a worker) is the
 * placement's business; only plain data crosses.
 */
import type { RunEvent } from '../runtime/events.js';
import type { InvariantId, InvariantReport } from '../runtime/invariants.js';

/** Name of the main process's node. Hosts are named by the scenario. */
export const MAIN_NODE = 'main';

/**
 * Virtual time a message needs between the main process and a host, each way: the price of entering and leaving the
 * kernel. It is also the conductor's lookahead, so it must be positive.
 */
export const MESSAGE_LATENCY_NS = 500;

/** A message between nodes, stamped (time, sender, number). `body` is a HostRequest or a HostReply. */
export interface NodeMessage {
  readonly from: string;
  readonly to: string;
  readonly deliverNs: number;
  /** Position among the messages of its sender. */
  readonly number: number;
  readonly body: unknown;
}

/** One turn of a node. */
export interface NodeTurn {
  /** Run everything that happens before this virtual time. */
  readonly horizonNs: number;
  /** Messages due before the horizon, in order of their stamps. */
  readonly inbox: readonly NodeMessage[];
}

/** What a turn produced. */
export interface NodeResult {
  readonly outbox: readonly NodeMessage[];
  readonly events: readonly RunEvent[];
  /** Earliest time at which the node has something to do; Infinity when it waits for messages. */
  readonly nextNs: number;
}

/** A node as the conductor sees it. A promise that rejects with {@link NodeFailure} ends the run. */
export interface Node {
  readonly name: string;
  advance(turn: NodeTurn): NodeResult | Promise<NodeResult>;
  /** The schedule so far: choices among ready tasks. */
  choices(): readonly number[] | Promise<readonly number[]>;
  /** Tasks that the schedule had to do with. */
  tasks(): number | Promise<number>;
  /** How often each rule was looked at. */
  invariants(): readonly InvariantReport[] | Promise<readonly InvariantReport[]>;
  close(): void | Promise<void>;
}

/** A node broke, its worker died, or its host is a machine that cannot be built. */
export class NodeFailure extends Error {
  override readonly name = 'NodeFailure';
  readonly node: string;
  readonly kind: 'host-died' | 'broken' | 'invariant' | 'unbuildable';
  /** The rule that was broken, of kind `invariant`. */
  readonly rule: InvariantId | undefined;

  constructor(node: string, kind: NodeFailure['kind'], message: string, rule?: InvariantId) {
    super(message);
    this.node = node;
    this.kind = kind;
    this.rule = rule;
  }
}

/** Order of delivery. */
export function compareMessages(a: NodeMessage, b: NodeMessage): number {
  return a.deliverNs - b.deliverNs || (a.from < b.from ? -1 : a.from > b.from ? 1 : 0) || a.number - b.number;
}
