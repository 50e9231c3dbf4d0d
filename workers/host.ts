/** Worker entry: one emulated host, driven by the conductor of another thread through comlink. */
import { workerData, type MessagePort } from 'node:worker_threads';
import * as Comlink from 'comlink';
import { unpack } from 'msgpackr';
import type { HostNodeSpec } from '../src/host/host-node.js';
import { LocalHostNode } from '../src/testbed/local-node.js';
import { NodeFailure, type NodeTurn } from '../src/testbed/node.js';
import { packed, portEndpoint, type RemoteAnswer, type RemoteHost } from '../src/testbed/remote-node.js';

let node: LocalHostNode | undefined;

function answer(make: () => unknown): RemoteAnswer {
  try {
    return { ok: true, bytes: packed(make()) };
  } catch (error) {
    // A killed host takes its worker with it: nobody may get another answer from it.
    if (error instanceof NodeFailure && error.kind === 'host-died') process.exit(1);
    return {
      ok: false,
      kind: 'broken',
      message: error instanceof Error ? (error.stack ?? error.message) : String(error),
    };
  }
}

function started(): LocalHostNode {
  if (node === undefined) throw new Error('the host was not started');
  return node;
}

const host: RemoteHost = {
  start: (spec) =>
    answer(() => {
      node = new LocalHostNode(unpack(spec) as HostNodeSpec);
      return null;
    }),
  advance: (turn) => answer(() => started().advance(unpack(turn) as NodeTurn)),
  choices: () => answer(() => started().choices()),
};

Comlink.expose(host, portEndpoint((workerData as { port: MessagePort }).port));
