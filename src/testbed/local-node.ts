/** A host's node in this thread: the `inline` placement, and what the worker of the `workers` placement wraps. */
import { UnbuildableError } from '../hardware/description.js';
import { HostKilledError, HostNode, type HostNodeSpec } from '../host/host-node.js';
import type { HostRequest } from '../host/protocol.js';
import type { InvariantReport } from '../runtime/invariants.js';
import { InvariantError } from '../runtime/task.js';
import { MAIN_NODE, MESSAGE_LATENCY_NS, NodeFailure, type Node, type NodeResult, type NodeTurn } from './node.js';

/** @throws NodeFailure when the description is of a machine that cannot be */
function built(spec: HostNodeSpec): HostNode {
  try {
    return new HostNode(spec);
  } catch (error) {
    if (error instanceof UnbuildableError) throw new NodeFailure(spec.description.name, 'unbuildable', error.message);
    throw error;
  }
}

/** Adapts a {@link HostNode} to the conductor. */
export class LocalHostNode implements Node {
  readonly name: string;
  readonly #host: HostNode;
  #sent = 0;

  constructor(spec: HostNodeSpec) {
    this.name = spec.description.name;
    this.#host = built(spec);
  }

  advance(turn: NodeTurn): NodeResult {
    try {
      for (const message of turn.inbox) this.#host.receive(message.deliverNs, message.body as HostRequest);
      const { outputs, events, nextNs } = this.#host.runUntil(turn.horizonNs);
      const outbox = outputs.map(({ atNs, reply }) => ({
        from: this.name,
        to: MAIN_NODE,
        deliverNs: atNs + MESSAGE_LATENCY_NS,
        number: this.#sent++,
        body: reply,
      }));
      return { outbox, events, nextNs };
    } catch (error) {
      if (error instanceof HostKilledError) throw new NodeFailure(this.name, 'host-died', error.message);
      if (error instanceof InvariantError && error.id !== undefined)
        throw new NodeFailure(this.name, 'invariant', error.message, error.id);
      throw new NodeFailure(
        this.name,
        'broken',
        error instanceof Error ? (error.stack ?? error.message) : String(error),
      );
    }
  }

  choices(): readonly number[] {
    return this.#host.runtime.scheduler.choices;
  }

  tasks(): number {
    return this.#host.runtime.scheduler.tasksSeen;
  }

  invariants(): readonly InvariantReport[] {
    return this.#host.runtime.invariantReport();
  }

  close(): void {
    // The arena goes with the last reference to it.
  }
}
