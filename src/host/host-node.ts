/**
 * A host as a node: one board, the kernel that runs on it, and the requests that reach them.
 *
 * The node owns its runtime, arena, board and kernel; nothing of them leaves it but events and replies. A request becomes a
 * task at the time its message arrives, so requests of different processes, interrupts and device work interleave as the
 * host's scheduler decides. Requests that arrive while the kernel boots wait until it has.
 */
import type { Arena } from '../core/arena.js';
import { Board } from '../hardware/board.js';
import type { HostDescription } from '../hardware/description.js';
import { Kernel } from '../kernel/kernel.js';
import { NodeRuntime, type ScheduleSpec } from '../runtime/node-runtime.js';
import type { RunEvent } from '../runtime/events.js';
import { WaitQueue, type Task } from '../runtime/task.js';
import type { HostReply, HostRequest } from './protocol.js';

/** Everything a host's node is made from; plain data. */
export interface HostNodeSpec {
  readonly description: HostDescription;
  readonly seed: number;
  readonly schedule: ScheduleSpec;
}

/** A message as a node sends it: the conductor adds the sender. */
export interface HostOutput {
  readonly atNs: number;
  readonly reply: HostReply;
}

/** The fault `host.killed` struck: the machine is gone in the middle of what it did. */
export class HostKilledError extends Error {
  override readonly name = 'HostKilledError';
}

/** One emulated host. */
export class HostNode {
  readonly runtime: NodeRuntime;
  readonly arena: Arena;
  readonly board: Board;
  readonly kernel: Kernel;
  readonly #booted = new WaitQueue('boot');
  #isBooted = false;
  #outputs: HostOutput[] = [];

  constructor(spec: HostNodeSpec) {
    this.runtime = new NodeRuntime(spec.description.name, spec.seed, spec.schedule);
    this.board = new Board(this.runtime, spec.description);
    this.arena = this.board.arena;
    this.kernel = new Kernel(this.runtime, this.board, spec.description);
    this.runtime.spawn('boot', this.#boot());
  }

  /** Accepts a request that arrives at virtual time `atNs`. */
  receive(atNs: number, request: HostRequest): void {
    this.runtime.scheduler.callAt(atNs, () => {
      if ('command' in request && request.command.lab === 'arm-fault' && request.command.fault === 'host.killed') {
        throw new HostKilledError(`host ${this.runtime.node} was killed`);
      }
      const name =
        'syscall' in request
          ? `${this.kernel.processName(request.pid)}/${request.syscall.call}`
          : `lab/${request.command.lab}`;
      this.runtime.spawn(name, this.#serve(request));
    });
  }

  /** Runs everything before the horizon and returns the replies sent and the events recorded. */
  runUntil(horizonNs: number): {
    readonly outputs: readonly HostOutput[];
    readonly events: readonly RunEvent[];
    readonly nextNs: number;
  } {
    this.runtime.scheduler.runUntil(horizonNs);
    const outputs = this.#outputs;
    this.#outputs = [];
    return { outputs, events: this.runtime.drainEvents(), nextNs: this.runtime.scheduler.nextTime() };
  }

  *#boot(): Task<void> {
    yield* this.kernel.boot();
    this.#isBooted = true;
    this.#booted.wakeAll();
  }

  *#serve(request: HostRequest): Task<void> {
    while (!this.#isBooted) yield this.#booted;
    const reply: HostReply =
      'syscall' in request
        ? { id: request.id, syscall: yield* this.kernel.syscall(request.pid, request.syscall) }
        : { id: request.id, lab: yield* this.kernel.lab(request.command) };
    this.#outputs.push({ atNs: this.runtime.now, reply });
  }
}
