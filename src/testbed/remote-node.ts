/**
 * A host's node in a worker of its own: comlink for the calls, msgpackr for what they carry.
 *
 * comlink alone is not enough (it forgets error codes and never settles when the worker dies), so every call goes through
 * {@link HostWorker.call}: it races the reply against the worker's death and a deadline, and failures travel as data.
 * One call each way per round, one buffer each.
 *
 * A worker whose host has ended well is kept for the next one: nothing of a host outlives it, as nothing does inline, where all hosts live in one
 * thread. One that failed in any way is not used again.
 *
 * The deadline is the only use of the wall clock here: it guards against a worker that hangs, and ends the run; it never
 * enters a history.
 */
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import * as Comlink from 'comlink';
import type { HostNodeSpec } from '../host/host-node.js';
import type { ProgramOutcome } from '../host/run-program.js';
import { packed, unpack } from '../layout/msgpack.js';
import type { InvariantId, InvariantReport } from '../runtime/invariants.js';
import type { ProgramRequest } from './run-program.js';
import { NodeFailure, type Node, type NodeResult, type NodeTurn } from './node.js';

/** What the worker answers: data, or a failure as data. */
export type RemoteAnswer =
  | { readonly ok: true; readonly bytes: Uint8Array }
  | {
      readonly ok: false;
      readonly kind: NodeFailure['kind'];
      readonly message: string;
      readonly rule?: InvariantId;
    };

/** The object a host's worker exposes. */
export interface RemoteHost {
  start(spec: Uint8Array): RemoteAnswer;
  /** The host is gone; another may be started. */
  end(): RemoteAnswer;
  advance(turn: Uint8Array): RemoteAnswer;
  choices(): RemoteAnswer;
  tasks(): RemoteAnswer;
  invariants(): RemoteAnswer;
  /** Runs a program on a kernel-only machine; no host is started. */
  program(request: Uint8Array): RemoteAnswer;
}

/** Longest a worker may take for one round before it counts as hung. */
const DEADLINE_MS = 120_000;

type MessageListener =
  ((event: { readonly data: unknown }) => void) | { handleEvent(event: { readonly data: unknown }): void };

/** Presents a MessagePort as the endpoint comlink expects (its own adapter has no types for Node's module resolution). */
export function portEndpoint(port: MessagePort): Comlink.Endpoint {
  const listeners = new Map<MessageListener, (data: unknown) => void>();
  const endpoint = {
    postMessage: (message: unknown) => port.postMessage(message),
    addEventListener: (_type: string, listener: MessageListener) => {
      const onMessage = (data: unknown): void => {
        if (typeof listener === 'function') listener({ data });
        else listener.handleEvent({ data });
      };
      listeners.set(listener, onMessage);
      port.on('message', onMessage);
    },
    removeEventListener: (_type: string, listener: MessageListener) => {
      const onMessage = listeners.get(listener);
      if (onMessage !== undefined) port.off('message', onMessage);
      listeners.delete(listener);
    },
    start: () => port.start(),
  };
  return endpoint;
}

/** A worker that hosts live in, one after the other. */
class HostWorker {
  /** The host it is for, in words of failures. */
  name = '';
  readonly remote: Comlink.Remote<RemoteHost>;
  readonly #worker: Worker;
  readonly #port: MessagePort;
  /** Calls that wait for an answer: told when the worker dies. */
  readonly #waiting = new Set<(failure: NodeFailure) => void>();
  #death: NodeFailure | undefined;
  #hasFailed = false;

  constructor() {
    const { port1, port2 } = new MessageChannel();
    this.#worker = new Worker(new URL('../../workers/host.js', import.meta.url), {
      workerData: { port: port2 },
      transferList: [port2],
    });
    this.#port = port1;
    this.remote = Comlink.wrap<RemoteHost>(portEndpoint(port1));
    this.#worker.once('error', (error: unknown) =>
      this.#die(new NodeFailure(this.name, 'broken', `worker of host ${this.name} failed: ${String(error)}`)),
    );
    this.#worker.once('exit', (code) =>
      this.#die(new NodeFailure(this.name, 'host-died', `worker of host ${this.name} exited with code ${code}`)),
    );
  }

  /** Whether another host may live in it: it answers, and all its answers were good. */
  get isSound(): boolean {
    return this.#death === undefined && !this.#hasFailed && this.#waiting.size === 0;
  }

  /** Keeps this thread alive while a host is in it, and not while none is. */
  occupy(name: string): void {
    this.name = name;
    this.#worker.ref();
    this.#port.ref();
  }

  vacate(): void {
    this.#worker.unref();
    this.#port.unref();
  }

  async close(): Promise<void> {
    this.#port.close();
    await this.#worker.terminate();
  }

  /** @throws NodeFailure when the worker answers so, dies or hangs */
  async call(call: Promise<RemoteAnswer>): Promise<unknown> {
    let timer: NodeJS.Timeout | undefined;
    const deadline = new Promise<never>((_resolve, reject) => {
      // eslint-disable-next-line no-restricted-globals -- guards against a hung worker; never part of a history
      timer = setTimeout(
        () => reject(new NodeFailure(this.name, 'broken', `host ${this.name} did not answer within ${DEADLINE_MS} ms`)),
        DEADLINE_MS,
      );
    });
    // Not a race against one long-lived promise of death: that would keep the answer of every call alive.
    let onDeath: ((failure: NodeFailure) => void) | undefined;
    const death = new Promise<never>((_resolve, reject) => {
      if (this.#death !== undefined) reject(this.#death);
      this.#waiting.add((onDeath = reject));
    });
    try {
      const answer = await Promise.race([call, death, deadline]);
      if (answer.ok) return unpack(answer.bytes);
      throw new NodeFailure(this.name, answer.kind, answer.message, answer.rule);
    } catch (error) {
      this.#hasFailed = true;
      throw error;
    } finally {
      clearTimeout(timer);
      if (onDeath !== undefined) this.#waiting.delete(onDeath);
    }
  }

  #die(failure: NodeFailure): void {
    this.#death ??= failure;
    for (const tell of this.#waiting) tell(this.#death);
  }
}

/** Workers without a host that this thread keeps for the next ones: starting one takes longer than most scenarios. */
const vacant: HostWorker[] = [];
const MAX_VACANT = 4;

function takeWorker(name: string): HostWorker {
  let worker = vacant.pop();
  while (worker?.isSound === false) worker = vacant.pop();
  worker ??= new HostWorker();
  worker.occupy(name);
  return worker;
}

async function giveBack(worker: HostWorker): Promise<void> {
  if (!worker.isSound || vacant.length >= MAX_VACANT) {
    await worker.close();
    return;
  }
  try {
    await worker.call(worker.remote.end());
    worker.vacate();
    vacant.push(worker);
  } catch {
    await worker.close();
  }
}

/** Adapts a worker with a host in it to the conductor. */
export class RemoteHostNode implements Node {
  readonly name: string;
  readonly #worker: HostWorker;

  private constructor(name: string) {
    this.name = name;
    this.#worker = takeWorker(name);
  }

  /** Builds the host in a worker that no other host is in. */
  static async start(spec: HostNodeSpec): Promise<RemoteHostNode> {
    const node = new RemoteHostNode(spec.description.name);
    try {
      await node.#call(({ start }) => start(packed(spec)));
    } catch (error) {
      await node.close();
      throw error;
    }
    return node;
  }

  /** A program in a worker that nothing else is in. */
  static async runProgram(request: ProgramRequest): Promise<ProgramOutcome> {
    const node = new RemoteHostNode('kernel');
    try {
      return (await node.#call(({ program }) => program(packed(request)))) as ProgramOutcome;
    } finally {
      await node.close();
    }
  }

  async advance(turn: NodeTurn): Promise<NodeResult> {
    return (await this.#call(({ advance }) => advance(packed(turn)))) as NodeResult;
  }

  async choices(): Promise<readonly number[]> {
    return (await this.#call(({ choices }) => choices())) as number[];
  }

  async tasks(): Promise<number> {
    return (await this.#call(({ tasks }) => tasks())) as number;
  }

  async invariants(): Promise<readonly InvariantReport[]> {
    return (await this.#call(({ invariants }) => invariants())) as InvariantReport[];
  }

  async close(): Promise<void> {
    await giveBack(this.#worker);
  }

  async #call(ask: (remote: Comlink.Remote<RemoteHost>) => Promise<RemoteAnswer>): Promise<unknown> {
    return await this.#worker.call(ask(this.#worker.remote));
  }
}
