/**
 * The stream table: one entry a StreamID, linear or in two levels of which the second is made when a device appears.
 *
 * Every entry that exists says *abort*: a device nobody attached cannot reach memory. Source: Arm IHI 0070 3.3.1, 5.1, 5.2;
 * Linux arm-smmu-v3.c (arm_smmu_init_strtab); domain.md A4.1.
 */
import type { Arena } from '../../../core/arena.js';
import type { LegalityChecker } from '../../../hardware/smmu/legality.js';
import { L1STD } from '../../../hardware/smmu/records.js';
import { STRTAB_BASE, STRTAB_BASE_CFG, STRTAB_FMT } from '../../../uapi/smmuv3-registers.js';
import { EINVAL, ENOMEM } from '../../../uapi/errno.js';
import { DmaMemory } from '../dma-memory.js';
import { abortSte, ENTRY_BYTES } from './entries.js';
import type { SmmuFeatures } from './features.js';
import type { SmmuRegisters } from './registers.js';

/** log2 of the entries in a second-level table. */
const SPLIT = 8;
const L1_BYTES = 8;
/** A first level has at most this many entries (STRTAB_MAX_L1_ENTRIES). */
const MAX_L1_LOG2 = 17;
/** A linear table is at most this long, log2: memory limits it, streams beyond do not exist for the SMMU. */
const MAX_LINEAR_LOG2 = 10;

/** Sees a doubleword of an entry before it is stored ({@link LegalityChecker.storeEntry}). */
export type EntryWatch = LegalityChecker['storeEntry'];

/** Where an entry lies. */
export interface StePlace {
  readonly memory: DmaMemory;
  readonly offset: number;
}

function fillWithAbort(memory: DmaMemory): void {
  const entry = abortSte();
  for (let offset = 0; offset < memory.sizeBytes; offset += ENTRY_BYTES) memory.write(offset, entry);
}

/** One SMMU's stream table. */
export class StreamTable {
  readonly #arena: Arena;
  readonly #table: DmaMemory;
  readonly #log2Size: number;
  /** Second-level tables by index; undefined for a linear table. */
  readonly #second: Map<number, DmaMemory> | undefined;
  readonly #watch: EntryWatch | undefined;

  /** An empty table for an SMMU, or -ENOMEM. `watch` sees stores into entries. */
  static create(arena: Arena, features: SmmuFeatures, watch?: EntryWatch): StreamTable | number {
    const { hasTwoLevelStreamTable, streamIdBits } = features;
    const isTwoLevel = hasTwoLevelStreamTable && streamIdBits > SPLIT;
    const log2Size = Math.min(streamIdBits, isTwoLevel ? MAX_L1_LOG2 + SPLIT : MAX_LINEAR_LOG2);
    const bytes = isTwoLevel ? 2 ** (log2Size - SPLIT) * L1_BYTES : 2 ** log2Size * ENTRY_BYTES;
    const table = DmaMemory.alloc(arena, bytes);
    return table === undefined ? -ENOMEM : new StreamTable(arena, table, log2Size, isTwoLevel, watch);
  }

  private constructor(
    arena: Arena,
    table: DmaMemory,
    log2Size: number,
    isTwoLevel: boolean,
    watch: EntryWatch | undefined,
  ) {
    this.#watch = watch;
    this.#arena = arena;
    this.#table = table;
    this.#log2Size = log2Size;
    this.#second = isTwoLevel ? new Map() : undefined;
    if (isTwoLevel) return;
    fillWithAbort(table);
    this.#watchEntries(table, 0);
  }

  #watchEntries(memory: DmaMemory, firstStreamId: number): void {
    const watch = this.#watch;
    if (watch === undefined) return;
    memory.watch = (offset, lo, hi) => {
      const entry = offset - (offset % ENTRY_BYTES);
      const streamId = firstStreamId + entry / ENTRY_BYTES;
      watch('STE', `STE ${streamId}`, [streamId], memory.read(entry, ENTRY_BYTES / 4), (offset - entry) / 8, lo, hi);
    };
  }

  /** Frames of second-level tables: each is made for the first device that needs it, and stays. */
  get keptFrames(): number {
    return DmaMemory.framesOf(this.#second?.values() ?? []);
  }

  /** Tells the SMMU where the table is. */
  install(registers: SmmuRegisters): void {
    registers.set64(STRTAB_BASE, { ADDR: this.#table.address / 64, RA: 1 });
    registers.set(STRTAB_BASE_CFG, {
      LOG2SIZE: this.#log2Size,
      ...(this.#second === undefined ? { FMT: STRTAB_FMT.LINEAR } : { FMT: STRTAB_FMT.TWO_LEVEL, SPLIT }),
    });
  }

  /** The entry of a StreamID, made if need be: -EINVAL beyond the table, -ENOMEM. */
  entry(streamId: number): StePlace | number {
    if (streamId >= 2 ** this.#log2Size) return -EINVAL;
    if (this.#second === undefined) return { memory: this.#table, offset: streamId * ENTRY_BYTES };
    const index = streamId >>> SPLIT;
    let memory = this.#second.get(index);
    if (memory === undefined) {
      memory = DmaMemory.alloc(this.#arena, 2 ** SPLIT * ENTRY_BYTES);
      if (memory === undefined) return -ENOMEM;
      fillWithAbort(memory);
      this.#watchEntries(memory, index * 2 ** SPLIT);
      this.#second.set(index, memory);
      const descriptor = L1STD.make({ Span: SPLIT + 1, L2Ptr: memory.address / 64 });
      this.#table.store64(index * L1_BYTES, descriptor[0] ?? 0, descriptor[1] ?? 0);
    }
    return { memory, offset: (streamId % 2 ** SPLIT) * ENTRY_BYTES };
  }
}
