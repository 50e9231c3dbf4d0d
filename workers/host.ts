/** Worker entry: one emulated host at a time, driven by the conductor of another thread through comlink. */
import { workerData, type MessagePort } from 'node:worker_threads';
import * as Comlink from 'comlink';
import type { HostNodeSpec } from '../src/host/host-node.js';
import { runProgram } from '../src/host/run-program.js';
import { packed, unpack } from '../src/layout/msgpack.js';
import { LocalHostNode } from '../src/testbed/local-node.js';
import { NodeFailure, type NodeTurn } from '../src/testbed/node.js';
import type { ProgramRequest } from '../src/testbed/run-program.js';
import { portEndpoint, type RemoteAnswer, type RemoteHost } from '../src/testbed/remote-node.js';

let node: LocalHostNode | undefined;

function answer(make: () => unknown): RemoteAnswer {
  try {
    return { ok: true, bytes: packed(make()) };
  } catch (error) {
    // A killed host takes its worker with it: nobody may get another answer from it.
    if (error instanceof NodeFailure && error.kind === 'host-died') process.exit(1);
    if (error instanceof NodeFailure && error.kind !== 'broken')
      return { ok: false, kind: error.kind, message: error.message, ...(error.rule && { rule: error.rule }) };
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
  end: () =>
    answer(() => {
      node = undefined;
      return null;
    }),
  advance: (turn) => answer(() => started().advance(unpack(turn) as NodeTurn)),
  choices: () => answer(() => started().choices()),
  tasks: () => answer(() => started().tasks()),
  invariants: () => answer(() => started().invariants()),
  program: (request) =>
    answer(() => {
      const { program, ...options } = unpack(request) as ProgramRequest;
      return runProgram(program, options);
    }),
};

Comlink.expose(host, portEndpoint((workerData as { port: MessagePort }).port));
