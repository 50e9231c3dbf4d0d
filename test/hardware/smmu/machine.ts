/** A small machine around one SMMU for tests: memory, a bump allocator for tables, helpers to build what software builds. */
import type { SmmuDescription } from '../../../src/hardware/description.js';
import { identificationOf, type Identification } from '../../../src/hardware/smmu/identification.js';
import { CD, CMD_SYNC, CMD_OP, EVT, STE, STE_CONFIG, TG0_SHIFTS } from '../../../src/hardware/smmu/records.js';
import type { SmmuIrqLine } from '../../../src/hardware/smmu/ports.js';
import {
  CMDQ_BASE,
  CMDQ_CONS,
  CMDQ_PROD,
  CR0,
  EVENTQ_BASE,
  EVENTQ_PROD,
  IDR0,
  IDR1,
  IDR3,
  IDR5,
  IRQ_CTRL,
  STRTAB_BASE,
  STRTAB_BASE_CFG,
} from '../../../src/uapi/smmuv3-registers.js';
import { Smmu, type TranslateRequest, type TranslateResult } from '../../../src/hardware/smmu/smmu.js';
import type { AtcPort, AtsRequest, AtsResponse, GroupResponsePort } from '../../../src/hardware/smmu/ats.js';
import { levelShift, stage1StartLevel } from '../../../src/hardware/smmu/walk.js';
import type { ScheduleSpec } from '../../../src/runtime/node-runtime.js';
import { NodeRuntime } from '../../../src/runtime/node-runtime.js';
import type { Task } from '../../../src/runtime/task.js';
import { SparseMemory } from '../../../src/conformance/sparse-memory.js';

export const STREAM = 5;
const QUEUE_LOG2 = 4;
const STREAM_TABLE_LOG2 = 8;

/** Leaf bits: AF, inner shareable. */
const AF = 1 << 10;
export const PAGE_BITS = {
  /** Stage 1, readable and writable by everybody. */
  readWrite: AF | (1 << 6),
  readOnly: AF | (1 << 6) | (1 << 7),
  privileged: AF,
  noAccessFlag: 1 << 6,
  /** Stage 2. */
  s2ReadWrite: AF | (3 << 6),
  s2ReadOnly: AF | (1 << 6),
} as const;
/** DBM in the high word. */
export const DBM_HIGH = 1 << 19;

export const DESCRIPTION: SmmuDescription = {
  name: 'smmu0',
  base: 0x2b400000n,
  stage1: true,
  stage2: true,
  inputBits: 48,
  outputBits: 48,
  httu: 'dirty',
  granules: ['4k', '16k', '64k'],
  streamIdBits: 16,
  rangeInvalidation: true,
};

/** The test SMMU with these identification fields changed. */
export function identified(changes: { idr0?: object; idr1?: object; idr3?: object; idr5?: object }): Identification {
  const base = identificationOf(DESCRIPTION);
  const idr0 = { ...IDR0.decode([base.IDR0]), ...changes.idr0 };
  const idr1 = { ...IDR1.decode([base.IDR1]), ...changes.idr1 };
  const idr3 = { ...IDR3.decode([base.IDR3]), ...changes.idr3 };
  const idr5 = { ...IDR5.decode([base.IDR5]), ...changes.idr5 };
  return {
    ...base,
    IDR0: IDR0.make(idr0)[0] ?? 0,
    IDR1: IDR1.make(idr1)[0] ?? 0,
    IDR3: IDR3.make(idr3)[0] ?? 0,
    IDR5: IDR5.make(idr5)[0] ?? 0,
  };
}

export interface Leaf {
  readonly address: number;
  readonly pa: number;
  readonly level: number;
  readonly bits: number;
  readonly highBits?: number;
}

export class Machine {
  readonly runtime: NodeRuntime;
  readonly memory = new SparseMemory();
  readonly smmu: Smmu;
  readonly irqs: SmmuIrqLine[] = [];
  #free = 0x50000000;
  readonly #streamTable: number;
  readonly commandQueueAddress: number;
  readonly #events: number;
  #commandIndex = 0;

  constructor(
    options: {
      description?: SmmuDescription;
      identification?: Identification;
      schedule?: ScheduleSpec;
      seed?: number;
      atc?: AtcPort;
      respond?: GroupResponsePort;
    } = {},
  ) {
    this.runtime = new NodeRuntime('test', options.seed ?? 1, options.schedule);
    this.smmu = new Smmu({
      runtime: this.runtime,
      memory: this.memory,
      description: options.description ?? DESCRIPTION,
      ...(options.identification === undefined ? {} : { identification: options.identification }),
      ...(options.atc === undefined ? {} : { atc: options.atc }),
      ...(options.respond === undefined ? {} : { respond: options.respond }),
      irq: (line) => this.irqs.push(line),
    });
    this.#streamTable = this.allocate(2 ** STREAM_TABLE_LOG2 * STE.sizeBytes);
    this.commandQueueAddress = this.allocate(4096);
    this.#events = this.allocate(4096);
    const { smmu } = this;
    smmu.writeRegister(STRTAB_BASE.offset, 8, this.#streamTable);
    smmu.writeRegister(STRTAB_BASE_CFG.offset, 4, STREAM_TABLE_LOG2);
    smmu.writeRegister(CMDQ_BASE.offset, 8, BigInt(this.commandQueueAddress) | BigInt(QUEUE_LOG2));
    smmu.writeRegister(EVENTQ_BASE.offset, 8, BigInt(this.#events) | BigInt(QUEUE_LOG2));
    smmu.writeRegister(IRQ_CTRL.offset, 4, 7);
    smmu.writeRegister(CR0.offset, 4, 0xd);
  }

  /** Zeroed memory, aligned to its size. */
  allocate(bytes: number): number {
    const size = Math.max(4096, 2 ** Math.ceil(Math.log2(bytes)));
    this.#free = Math.ceil(this.#free / size) * size;
    const at = this.#free;
    this.#free += size;
    return at;
  }

  writeRecord(pa: number, record: Uint32Array): void {
    this.memory.write(pa, new Uint8Array(record.slice().buffer));
  }

  descriptor(pa: number): [lo: number, hi: number] {
    const words = new Uint32Array(2);
    this.memory.loadWords(pa, words);
    return [words[0] ?? 0, words[1] ?? 0];
  }

  /** Puts a leaf into the tables at `root`; returns the physical address of its descriptor. */
  map(root: number, granuleShift: number, inputBits: number, startLevel: number, leaf: Leaf): number {
    let table = root;
    const entries = 2 ** (granuleShift - 3);
    for (let level = startLevel; ; level++) {
      const raw = Math.floor(leaf.address / 2 ** levelShift(granuleShift, level));
      const at =
        table + 8 * (level === startLevel ? raw % 2 ** (inputBits - levelShift(granuleShift, level)) : raw % entries);
      if (level === leaf.level) {
        const lo = (leaf.pa % 2 ** 32) | leaf.bits | (level === 3 ? 3 : 1);
        this.memory.store64(at, lo >>> 0, (Math.floor(leaf.pa / 2 ** 32) | (leaf.highBits ?? 0)) >>> 0);
        return at;
      }
      const [lo, hi] = this.descriptor(at);
      if ((lo & 1) !== 0) {
        table = (hi & 0xffff) * 2 ** 32 + (lo - (lo % 2 ** granuleShift));
      } else {
        table = this.allocate(2 ** granuleShift);
        this.memory.store64(at, ((table % 2 ** 32) | 3) >>> 0, Math.floor(table / 2 ** 32));
      }
    }
  }

  /** Fills in this stream's STE; no invalidation. */
  writeSte(values: Partial<Record<keyof typeof STE.fields, number>>): void {
    this.writeRecord(this.#streamTable + STREAM * STE.sizeBytes, STE.make({ V: 1, ...values }));
  }

  /** A context descriptor over 4 KiB tables at `root` with 48-bit input; its address. */
  writeCd(
    root: number,
    values: Partial<Record<keyof typeof CD.fields, number>> = {},
    at = this.allocate(4096),
  ): number {
    const base = { V: 1, AA64: 1, A: 1, R: 1, T0SZ: 16, TG0: 0, EPD1: 1, IPS: 5, ASID: 7, TTB0: root / 16 };
    this.writeRecord(at, CD.make({ ...base, ...values }));
    return at;
  }

  /** A stage 1 stream over 4 KiB tables; the root of its tables. */
  stage1Stream(cd: Partial<Record<keyof typeof CD.fields, number>> = {}): number {
    const root = this.allocate(4096);
    const granule = TG0_SHIFTS[cd.TG0 ?? 0] ?? 12;
    const context = this.writeCd(root, cd);
    this.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: context / 64, S2VMID: 3 });
    if (stage1StartLevel(granule, 64 - (cd.T0SZ ?? 16)) < 0) throw new Error('no such tables');
    return root;
  }

  /** STE fields of a 4 KiB stage 2 with 40-bit input, start level 1, two concatenated tables. */
  stage2Fields(root: number): Partial<Record<keyof typeof STE.fields, number>> {
    return { S2T0SZ: 24, S2SL0: 1, S2TG: 0, S2PS: 5, S2AA64: 1, S2R: 1, S2TTB: root / 16, S2VMID: 3 };
  }

  /** Runs one transaction to its end. */
  translate(iova: bigint, write: boolean, extra: Partial<TranslateRequest> = {}): TranslateResult {
    let result: TranslateResult | undefined;
    const { smmu } = this;
    function* body(): Task<void> {
      result = yield* smmu.translate({ streamId: STREAM, iova, write, ...extra });
    }
    this.runtime.spawn('dma', body());
    this.settle();
    if (result === undefined) throw new Error('the translation did not end');
    return result;
  }

  /** Answer to a translation request. */
  ats(iova: bigint, extra: Partial<AtsRequest> = {}): AtsResponse {
    return this.run(this.smmu.translateAts({ streamId: STREAM, iova, ...extra }));
  }

  /** Runs a task to its end. */
  run<T>(task: Task<T>): T {
    let result: { readonly value: T } | undefined;
    function* body(): Task<void> {
      result = { value: yield* task };
    }
    this.runtime.spawn('test', body());
    this.settle();
    if (result === undefined) throw new Error('the task did not end');
    return result.value;
  }

  /** Where a transaction went, or the name of its fault. */
  outcome(iova: bigint, write = false, extra: Partial<TranslateRequest> = {}): number | string {
    const result = this.translate(iova, write, extra);
    return result.ok ? result.pa : (result.event ?? 'abort');
  }

  /** Queues commands and rings the doorbell; nothing runs yet. */
  queue(...commands: readonly Uint32Array[]): void {
    for (const command of commands) {
      this.writeRecord(this.commandQueueAddress + (this.#commandIndex % 2 ** QUEUE_LOG2) * 16, command);
      this.#commandIndex = (this.#commandIndex + 1) % 2 ** (QUEUE_LOG2 + 1);
    }
    this.smmu.writeRegister(CMDQ_PROD.offset, 4, this.#commandIndex);
  }

  /** Queues commands with CMD_SYNC and lets time pass. */
  command(...commands: readonly Uint32Array[]): void {
    this.queue(...commands, CMD_SYNC.make({ Opcode: CMD_OP.SYNC }));
    this.settle();
  }

  get commandConsumer(): number {
    return this.smmu.readRegister(CMDQ_CONS.offset, 4);
  }

  event(index: number): Record<keyof typeof EVT.fields, number> {
    const words = new Uint32Array(8);
    this.memory.loadWords(this.#events + index * EVT.sizeBytes, words);
    return EVT.decode(words);
  }

  get eventProducer(): number {
    return this.smmu.readRegister(EVENTQ_PROD.offset, 4);
  }

  settle(): void {
    this.runtime.scheduler.runUntil(this.runtime.now + 1_000_000);
  }
}
