/**
 * The main node: where clients, VMMs and the migration orchestrator run as tasks.
 *
 * A `Lab` is what a scenario's main task is given: the hosts by name, the links between them, time and randomness. Its
 * tasks reach a host only by requests (`HostClient`, `Process`), each a message out and a message back.
 */
import type { HostDescription } from '../hardware/description.js';
import type { HostReply, HostRequest, LabCommand, LabReply, ProcessSpec, TransactionRecord } from '../host/protocol.js';
import type { InvariantReport } from '../runtime/invariants.js';
import { NodeRuntime, type ScheduleSpec } from '../runtime/node-runtime.js';
import type { RandomStream } from '../runtime/random.js';
import type { TaskHandle } from '../runtime/scheduler.js';
import { invariant, WaitQueue, type Task } from '../runtime/task.js';
import { KernelError } from '../uapi/errno.js';
import type { SyscallReply, SyscallRequest } from '../uapi/syscall.js';
import { Link, type LinkSpec } from './link.js';
import { MAIN_NODE, MESSAGE_LATENCY_NS, type Node, type NodeMessage, type NodeResult, type NodeTurn } from './node.js';
import { Process } from './process.js';

interface PendingReply {
  readonly queue: WaitQueue;
  reply: HostReply | undefined;
}

/** The main process of a run, as a node. */
export class Lab implements Node {
  readonly name = MAIN_NODE;
  readonly runtime: NodeRuntime;
  readonly #hosts: ReadonlyMap<string, HostClient>;
  readonly #links: readonly Link[];
  readonly #pending = new Map<number, PendingReply>();
  #outbox: NodeMessage[] = [];
  #requestCount = 0;
  readonly #ids: RandomStream;

  constructor(seed: number, schedule: ScheduleSpec, hosts: readonly HostDescription[], links: readonly LinkSpec[]) {
    this.runtime = new NodeRuntime(MAIN_NODE, seed, schedule);
    this.#ids = this.runtime.random('ids');
    this.#hosts = new Map(hosts.map((description) => [description.name, new HostClient(this, description)]));
    this.#links = links.flatMap((spec) => [
      new Link(this.runtime, spec.between[0], spec.between[1], spec),
      new Link(this.runtime, spec.between[1], spec.between[0], spec),
    ]);
  }

  /** @throws Error for a name that is not in the run. */
  host(name: string): HostClient {
    const host = this.#hosts.get(name);
    if (host === undefined) throw new Error(`no host ${name} in this run`);
    return host;
  }

  get hosts(): readonly HostClient[] {
    return [...this.#hosts.values()];
  }

  /** The direction of a link that leads from one host to another; undefined where they are not connected. */
  link(from: string, to: string): Link | undefined {
    return this.#links.find((link) => link.from === from && link.to === to);
  }

  /** A name for something that happens in this run, e.g. a migration: unlike any other, and the same again with the same seed. */
  newId(): string {
    return this.#ids.id();
  }

  /** Runs a task beside the caller. */
  spawn<T>(name: string, body: Task<T>, options?: { readonly daemon?: boolean }): TaskHandle<T> {
    return this.runtime.spawn(name, body, options);
  }

  /** Sends one request to a host and waits for its reply. */
  *request(host: string, make: (id: number) => HostRequest): Task<HostReply> {
    const id = this.#requestCount++;
    const pending: PendingReply = { queue: new WaitQueue(`reply of ${host}`), reply: undefined };
    this.#pending.set(id, pending);
    this.#outbox.push({
      from: MAIN_NODE,
      to: host,
      deliverNs: this.runtime.now + MESSAGE_LATENCY_NS,
      number: id,
      body: make(id),
    });
    while (pending.reply === undefined) yield pending.queue;
    return pending.reply;
  }

  advance(turn: NodeTurn): NodeResult {
    for (const message of turn.inbox)
      this.runtime.scheduler.callAt(message.deliverNs, () => this.#receive(message.body as HostReply));
    this.runtime.scheduler.runUntil(turn.horizonNs);
    const outbox = this.#outbox;
    this.#outbox = [];
    return { outbox, events: this.runtime.drainEvents(), nextNs: this.runtime.scheduler.nextTime() };
  }

  choices(): readonly number[] {
    return this.runtime.scheduler.choices;
  }

  tasks(): number {
    return this.runtime.scheduler.tasksSeen;
  }

  invariants(): readonly InvariantReport[] {
    return this.runtime.invariantReport();
  }

  close(): void {
    // Nothing lives outside this object.
  }

  #receive(reply: HostReply): void {
    const pending = this.#pending.get(reply.id);
    invariant(pending !== undefined, `reply ${reply.id} without a request`);
    this.#pending.delete(reply.id);
    pending.reply = reply;
    pending.queue.wakeAll();
  }
}

/** A host as seen from the main node. */
export class HostClient {
  readonly name: string;
  readonly description: HostDescription;
  readonly #lab: Lab;

  constructor(lab: Lab, description: HostDescription) {
    this.#lab = lab;
    this.name = description.name;
    this.description = description;
  }

  get lab(): Lab {
    return this.#lab;
  }

  /** Starts a process on this host. */
  *spawn(spec: ProcessSpec): Task<Process> {
    const reply = yield* this.command({ lab: 'spawn', spec });
    if (reply.result < 0 || reply.scratch === undefined) throw new KernelError(reply.result, 'fork', reply.detail);
    return new Process(this, reply.result, spec.name, reply.scratch);
  }

  /** Lays hands on the machine. The reply carries -errno; nothing is thrown. */
  *command(command: LabCommand): Task<LabReply> {
    const reply = yield* this.#lab.request(this.name, (id) => ({ id, command }));
    invariant('lab' in reply, 'a lab command is answered by a lab reply');
    return reply.lab;
  }

  /** What the bus analyser saw from transaction number `from` on. */
  *transactions(from = 0): Task<readonly TransactionRecord[]> {
    const reply = yield* this.command({ lab: 'transactions', from });
    return reply.transactions ?? [];
  }

  /** One system call of process `pid`. */
  *syscall(pid: number, request: SyscallRequest): Task<SyscallReply> {
    const reply = yield* this.#lab.request(this.name, (id) => ({ id, pid, syscall: request }));
    invariant('syscall' in reply, 'a system call is answered by its reply');
    return reply.syscall;
  }
}
