/**
 * Circular queues shared with an SMMUv3, and the command queue.
 *
 * Indices are kept as the hardware has them: `log2` bits of index and one wrap bit. What a command does is certain only when
 * a later CMD_SYNC is consumed.
 *
 * The command queue has many producers and no lock (domain.md A6.9). A producer claims slots by moving `prod` past them, so that a list
 * is contiguous however many CPUs produce; it writes its commands, then flags its slots as valid. The first to claim slots since PROD
 * was written last is the *owner*: it waits for the owner before it, takes all that has been claimed by then, waits until these slots are
 * valid, and writes PROD for all. The others only wait for their CMD_SYNC.
 *
 * Invariant: CMDQ_PROD never passes a slot whose command is not there yet.
 *
 * Source: Arm IHI 0070 3.5, 4.7.3, 7.1; Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c (arm_smmu_cmdq_issue_cmdlist).
 */
import type { NodeRuntime } from '../../../runtime/node-runtime.js';
import { WaitQueue, type Task } from '../../../runtime/task.js';
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

/** Commands that are claimed together at most, CMD_SYNC not counted (CMDQ_BATCH_ENTRIES). */
const BATCH_ENTRIES = 64;

/** The command queue, from the producer's side. Positions are counted without wrapping. */
export class CommandQueue {
  readonly #runtime: NodeRuntime;
  readonly #registers: SmmuRegisters;
  readonly #memory: DmaMemory;
  readonly #index: QueueIndex;
  readonly #name: string;
  /** Slots before this are somebody's. */
  #claimed = 0;
  /** Somebody owns what is claimed and will write PROD for it. */
  #hasOwner = false;
  /** Up to where PROD was written: the next owner's list begins there. */
  #published = 0;
  /** Claimed slots that have their command. */
  readonly #valid = new Set<number>();
  readonly #progress: WaitQueue;
  /** How many commands are certainly consumed. */
  #consumed = 0;
  #lastCons = 0;

  constructor(runtime: NodeRuntime, name: string, registers: SmmuRegisters, memory: DmaMemory, log2: number) {
    this.#runtime = runtime;
    this.#name = name;
    this.#registers = registers;
    this.#memory = memory;
    this.#index = new QueueIndex(log2);
    this.#progress = new WaitQueue(`producers of ${name}`);
  }

  /** Programs base and indices; the queue must be disabled. */
  install(): void {
    const { address } = this.#memory;
    this.#registers.set64(CMDQ_BASE, { LOG2SIZE: Math.log2(this.#index.entries), ADDR: address / 32, RA: 1 });
    this.#registers.write(CMDQ_PROD, 0);
    this.#registers.write(CMDQ_CONS, 0);
  }

  /** Queues commands, the last of them followed by a CMD_SYNC, and waits until that is complete. */
  *issueAndSync(commands: readonly Uint32Array[]): Task<void> {
    yield 'smmu:cmdq-issue';
    const room = Math.min(BATCH_ENTRIES, this.#index.entries - 1);
    const sync = CMD_SYNC.make({ Opcode: CMD_OP.SYNC, CS: SYNC_CS.SEV });
    let first = 0;
    for (; commands.length - first > room; first += room) yield* this.#issue(commands.slice(first, first + room));
    const end = yield* this.#issue([...commands.slice(first), sync]);
    yield* pollUntil(`CMD_SYNC of ${this.#name}`, () => this.#countConsumed() >= end);
  }

  /** A list of commands, side by side in the queue; the position behind them. */
  *#issue(commands: readonly Uint32Array[]): Task<number> {
    yield* pollUntil(
      `room in the command queue of ${this.#name}`,
      () => this.#claimed - this.#countConsumed() + commands.length <= this.#index.entries,
    );
    sharedWrite(this, 'commands', this.#claimed, this.#claimed + commands.length);
    const first = this.#claimed;
    const end = first + commands.length;
    this.#claimed = end;
    const isOwner = !this.#hasOwner;
    this.#hasOwner = true;
    yield 'smmu:cmdq-claimed';
    for (const [i, command] of commands.entries()) {
      this.#memory.write(this.#index.slot(first + i) * COMMAND_BYTES, command);
      yield 'smmu:cmdq-written';
    }
    for (let position = first; position < end; position++) this.#valid.add(position);
    this.#progress.wakeAll();
    if (isOwner) yield* this.#publish(first);
    return end;
  }

  /** The owner's part: PROD moves past its own commands and those that were claimed behind them. */
  *#publish(first: number): Task<void> {
    while (this.#published !== first) yield this.#progress;
    const end = this.#claimed;
    this.#hasOwner = false;
    yield 'smmu:cmdq-owned';
    const isEarly = this.#runtime.faults.fires('smmu.cmdq-prod-early');
    for (let position = first; position < end; position++) {
      while (!isEarly && !this.#valid.has(position)) yield this.#progress;
      this.#valid.delete(position);
    }
    yield 'smmu:cmdq-prod';
    this.#registers.write(CMDQ_PROD, this.#index.next(0, end));
    this.#published = end;
    this.#progress.wakeAll();
  }

  #countConsumed(): number {
    sharedRead(this, 'commands', this.#claimed);
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
