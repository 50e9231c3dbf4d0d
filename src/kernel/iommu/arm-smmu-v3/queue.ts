/**
 * Circular queues shared with an SMMUv3, and the command queue.
 *
 * Indices are kept as the hardware has them: `log2` bits of index and one wrap bit. Producing commands is one step, from
 * claiming slots to publishing PROD, so a batch of a task is never interleaved with another's (Linux reaches the same with
 * its lock-free claim, domain.md A6.9). What a command does is certain only when a later CMD_SYNC is consumed.
 *
 * Source: Arm IHI 0070 3.5, 4.7.3, 7.1; Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c.
 */
import type { NodeRuntime } from '../../../runtime/node-runtime.js';
import type { Task } from '../../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../../runtime/watch.js';
import { CERROR, CMD_OP, CMD_SYNC, SYNC_CS } from '../../../hardware/smmu/records.js';
import { CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, GERROR, GERRORN } from '../../../uapi/smmuv3-registers.js';
import type { DmaMemory } from '../dma-memory.js';
import { pollUntil, type SmmuRegisters } from './registers.js';

/** Bytes of a command. */
export const COMMAND_BYTES = 16;

/** Arithmetic of indices with a wrap bit. */
export class QueueIndex {
  readonly entries: number;
  readonly #mask: number;

  constructor(log2: number) {
    this.entries = 2 ** log2;
    this.#mask = 2 ** (log2 + 1) - 1;
  }

  next(index: number, count = 1): number {
    return (index + count) & this.#mask;
  }

  slot(index: number): number {
    return index & (this.entries - 1);
  }

  /** Entries between a consumer and a producer index. */
  used(prod: number, cons: number): number {
    return (prod - cons) & this.#mask;
  }
}

/** The command queue, from the producer's side. */
export class CommandQueue {
  readonly #runtime: NodeRuntime;
  readonly #registers: SmmuRegisters;
  readonly #memory: DmaMemory;
  readonly #index: QueueIndex;
  readonly #name: string;
  #prod = 0;
  /** Commands issued and, of them, how many are certainly consumed; counted without wrapping. */
  #issued = 0;
  #consumed = 0;
  #lastCons = 0;

  constructor(runtime: NodeRuntime, name: string, registers: SmmuRegisters, memory: DmaMemory, log2: number) {
    this.#runtime = runtime;
    this.#name = name;
    this.#registers = registers;
    this.#memory = memory;
    this.#index = new QueueIndex(log2);
  }

  /** Programs base and indices; the queue must be disabled. */
  install(): void {
    const { address } = this.#memory;
    this.#registers.set64(CMDQ_BASE, { LOG2SIZE: Math.log2(this.#index.entries), ADDR: address / 32, RA: 1 });
    this.#registers.write(CMDQ_PROD, 0);
    this.#registers.write(CMDQ_CONS, 0);
  }

  /** Queues commands followed by a CMD_SYNC and waits until that is complete. */
  *issueAndSync(commands: readonly Uint32Array[]): Task<void> {
    yield 'smmu:cmdq-issue';
    const room = this.#index.entries - 1;
    for (let first = 0; first < commands.length; first += room) {
      yield* this.#publish(commands.slice(first, first + room));
    }
    const last = yield* this.#publish([CMD_SYNC.make({ Opcode: CMD_OP.SYNC, CS: SYNC_CS.SEV })]);
    yield* pollUntil(`CMD_SYNC of ${this.#name}`, () => this.#countConsumed() >= last);
  }

  /** Writes commands behind those that are there and moves PROD; how many commands were issued up to then. */
  *#publish(commands: readonly Uint32Array[]): Task<number> {
    yield* pollUntil(
      `room in the command queue of ${this.#name}`,
      () => this.#issued - this.#countConsumed() + commands.length <= this.#index.entries,
    );
    sharedWrite(this, 'commands', this.#issued, this.#issued + commands.length);
    for (const command of commands) {
      this.#memory.write(this.#index.slot(this.#prod) * COMMAND_BYTES, command);
      this.#prod = this.#index.next(this.#prod);
    }
    this.#issued += commands.length;
    this.#registers.write(CMDQ_PROD, this.#prod);
    return this.#issued;
  }

  #countConsumed(): number {
    sharedRead(this, 'commands', this.#issued);
    const cons = this.#registers.field(CMDQ_CONS, 'RD');
    this.#consumed += this.#index.used(cons, this.#lastCons);
    this.#lastCons = cons;
    return this.#consumed;
  }

  /** A command error stopped the queue: the bad command is replaced by a CMD_SYNC and the queue goes on. */
  skipError(): void {
    const active = this.#registers.field(GERROR, 'CMDQ_ERR') !== this.#registers.field(GERRORN, 'CMDQ_ERR');
    if (!active) return;
    const error = this.#registers.field(CMDQ_CONS, 'ERR');
    const slot = this.#index.slot(this.#registers.field(CMDQ_CONS, 'RD'));
    const name = Object.entries(CERROR).find(([, code]) => code === error)?.[0] ?? 'UNKNOWN';
    this.#runtime.emit('smmu.cmdq-error', { smmu: this.#name, error: name, slot });
    if (error === CERROR.ILL) {
      this.#memory.write(slot * COMMAND_BYTES, CMD_SYNC.make({ Opcode: CMD_OP.SYNC, CS: SYNC_CS.NONE }));
    }
  }
}
