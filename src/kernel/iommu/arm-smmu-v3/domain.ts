/**
 * A paging domain of an SMMUv3: a VMSAv8-64 table of stage 1 or stage 2, tagged with an ASID or a VMID.
 *
 * Mapping stores descriptors and needs no invalidation. Unmapping clears leaves, gathers the tables that fell empty,
 * invalidates what TLBs hold, waits for CMD_SYNC, and only then frees the tables and returns: whoever called may then
 * give the pages away (INV-2, INV-3). The table itself needs no lock; callers keep ranges disjoint.
 *
 * Dirty tracking (stage 1 with HTTU): writable leaves carry DBM. Making one clean is an atomic change of the descriptor;
 * the TLB may still hold it as dirty until the sync that the caller issues (domain.md A6.13).
 *
 * Source: Linux arm-smmu-v3.c, io-pgtable-arm.c; domain.md A1.44, A1.45, A4.4-A4.8.
 */
import type { FaultSwitches } from '../../../runtime/faults.js';
import { FRAME_BYTES } from '../../../core/arena.js';
import { pageSizesOf, type Gather, type PageTable } from '../../../core/page-table.js';
import type { LegalityChecker } from '../../../hardware/smmu/legality.js';
import { CMD_OP, CMD_TLBI, TLBI_TG_SHIFTS, VMSA_DESCRIPTOR } from '../../../hardware/smmu/records.js';
import { invariant, type Task } from '../../../runtime/task.js';
import { sharedRange, sharedRead, sharedWrite } from '../../../runtime/watch.js';
import { EINVAL } from '../../../uapi/errno.js';
import { TABLE_STEP_NS } from '../../costs.js';
import {
  IOMMU_CACHE,
  IOMMU_MMIO,
  IOMMU_READ,
  IOMMU_WRITE,
  type DirtyOps,
  type DirtyRecorder,
  type FlushOps,
  type IommuInstance,
  type PagingDomain,
} from '../domain.js';
import type { SmmuFeatures } from './features.js';
import { LateZeroing } from './late-zeroing.js';

/** MAIR indices of stage 1 (see MAIR0 in entries.ts) and MemAttr values of stage 2. */
const ATTRIBUTES = {
  1: { normal: 0, cached: 1, device: 2 },
  2: { normal: 0x5, cached: 0xf, device: 0x1 },
} as const;
/** MemAttr of stage 2 with S2FWB. */
const FORCED_ATTRIBUTES = { normal: 0x5, cached: 0x6, device: 0x1 } as const;
const OUTER_SHAREABLE = 2;
const INNER_SHAREABLE = 3;

/** Above this many invalidations the whole tag is invalidated instead (CMDQ_MAX_TLBI_OPS). */
const MAX_TLBI_COMMANDS = 512;
/** NUM of a range command is 5 bits. */
const MAX_RANGE_NUM = 32;
/** Window in which dirty bits are collected: aligned spans of this many pages never cut the largest leaf. */
const DIRTY_WINDOW_ORDER = 4;
const DIRTY_WINDOW_BYTES = FRAME_BYTES * 2 ** DIRTY_WINDOW_ORDER;
const DIRTY_WINDOW_PAGES = DIRTY_WINDOW_BYTES * 8;

/** What a domain needs of its SMMU's driver. Threads that share a table have a driver each over one command queue. */
export interface SmmuInvalidation extends IommuInstance {
  readonly features: Pick<SmmuFeatures, 'hasRangeInvalidation' | 'hasForcedWriteBack'>;
  readonly legality: LegalityChecker | undefined;
  readonly faults: Pick<FaultSwitches, 'fires'>;
  readonly commandQueue: { issueAndSync(commands: readonly Uint32Array[]): Task<void> };
  /** What devices keep of a range of a domain is invalidated. */
  invalidateAtcs(domain: ArmSmmuDomain, iova: number, lengthBytes: number): Task<void>;
  releaseTag(stage: 1 | 2, tag: number): void;
}

/** What a domain is made from. */
export interface SmmuDomainSpec {
  readonly smmu: SmmuInvalidation;
  readonly type: 'unmanaged' | 'dma';
  readonly table: PageTable;
  /** ASID of a stage 1, VMID of a stage 2 domain. */
  readonly tag: number;
  readonly recordsDirty: boolean;
  /** Guests' stage 1 tables may lie under it. */
  readonly isNestParent?: boolean;
}

/** `struct arm_smmu_domain` */
export class ArmSmmuDomain implements PagingDomain {
  readonly driver: SmmuInvalidation;
  readonly type: 'unmanaged' | 'dma';
  readonly table: PageTable;
  readonly tag: number;
  readonly recordsDirty: boolean;
  readonly isNestParent: boolean;
  readonly apertureStart = 0n;
  readonly apertureLast: bigint;
  readonly pageSizes: readonly number[];
  readonly dirtyOps: DirtyOps | undefined;
  readonly flushOps: FlushOps = {
    unmap: (iova, length) => this.#unmapDeferred(iova, length),
    flush_iotlb_all: () => this.#flushAll(),
  };
  /** Tables that fell empty without having been invalidated. */
  readonly #unflushed: Gather = { head: 0 };
  readonly #pageBytes: number;
  #isFreed = false;
  readonly #watch: ReturnType<LegalityChecker['watchTable']> | undefined;

  constructor({ smmu, type, table, tag, recordsDirty, isNestParent = false }: SmmuDomainSpec) {
    this.driver = smmu;
    this.type = type;
    this.table = table;
    this.tag = tag;
    this.recordsDirty = recordsDirty;
    this.isNestParent = isNestParent;
    this.apertureLast = (1n << BigInt(table.inputBits)) - 1n;
    this.pageSizes = pageSizesOf(table.granuleShift);
    this.#pageBytes = 2 ** table.granuleShift;
    this.#watch = smmu.legality?.watchTable(this.stage, tag, this, table.rootAddress);
    this.dirtyOps = recordsDirty
      ? {
          // The hardware always records; what it recorded before is cleared by the caller.
          *set_dirty_tracking(): Task<number> {
            return 0;
          },
          read_and_clear_dirty: (iova, length, noClear, record) => this.#readDirty(iova, length, noClear, record),
        }
      : undefined;
  }

  /** 1 or 2. */
  get stage(): 1 | 2 {
    return this.table.stage === 2 ? 2 : 1;
  }

  /** Whether its leaves are those of S2FWB. */
  get usesForcedWriteBack(): boolean {
    return this.isNestParent && this.driver.features.hasForcedWriteBack;
  }

  *map(iova: number, pa: number, lengthBytes: number, prot: number, maxPageBytes = Infinity): Task<number> {
    if (iova % this.#pageBytes !== 0 || pa % this.#pageBytes !== 0 || lengthBytes % this.#pageBytes !== 0)
      return -EINVAL;
    const [attrLo, attrHi] = this.#attributes(prot);
    const pages = lengthBytes / this.#pageBytes;
    const perStep = Math.min(pages, Math.floor(maxPageBytes / this.#pageBytes));
    const gather: Gather = { head: 0 };
    let done = 0;
    let steps = 0;
    while (done < pages) {
      const iovaPage = iova / this.#pageBytes + done;
      const count = Math.min(perStep, pages - done);
      const late = this.driver.faults.fires('smmu.table-before-zero')
        ? new LateZeroing(this, this.table, iovaPage)
        : undefined;
      const mapped = this.table.mapStep(iovaPage, pa / this.#pageBytes + done, count, attrLo, attrHi, gather);
      if (late !== undefined) yield* late.happen(mapped);
      if (mapped < 0) {
        if (done > 0) yield* this.unmap(iova, done * this.#pageBytes);
        return mapped;
      }
      if (mapped > 0) this.#note(iovaPage, mapped, undefined, pa + done * this.#pageBytes);
      if (mapped > 0) this.#watch?.mapped(iovaPage * this.#pageBytes, mapped * this.#pageBytes);
      if (mapped === 0) {
        this.#note(iovaPage, 1);
        this.#watch?.unmapped(iovaPage * this.#pageBytes, this.#pageBytes, true);
        yield* this.#invalidate(iovaPage * this.#pageBytes, this.#pageBytes, false, gather);
      }
      done += mapped;
      steps++;
      yield 'smmu:map-step';
    }
    yield steps * TABLE_STEP_NS;
    return 0;
  }

  *unmap(iova: number, lengthBytes: number): Task<number> {
    const gather: Gather = { head: 0 };
    const { unmapped, tablesCleared } = yield* this.#clear(iova, lengthBytes, gather);
    yield* this.#invalidate(iova, lengthBytes, !tablesCleared, gather);
    return unmapped;
  }

  *#unmapDeferred(iova: number, lengthBytes: number): Task<number> {
    return (yield* this.#clear(iova, lengthBytes, this.#unflushed)).unmapped;
  }

  *#flushAll(): Task<void> {
    yield* this.driver.commandQueue.issueAndSync([this.#tagCommand()]);
    yield* this.driver.invalidateAtcs(this, 0, 2 ** this.table.inputBits);
    this.table.freeGathered(this.#unflushed);
  }

  /** Clears the leaves of a range: bytes that were mapped, and whether tables were taken out. */
  *#clear(
    iova: number,
    lengthBytes: number,
    gather: Gather,
  ): Task<{ readonly unmapped: number; readonly tablesCleared: boolean }> {
    invariant(
      iova % this.#pageBytes === 0 && lengthBytes % this.#pageBytes === 0,
      'arm-smmu-v3: unmap of a part of a page',
    );
    const first = iova / this.#pageBytes;
    const pages = lengthBytes / this.#pageBytes;
    let tablesCleared = false;
    let unmapped = 0;
    let steps = 0;
    for (let done = 0; done < pages;) {
      const covered = this.table.unmapStep(first + done, pages - done, gather);
      if (covered < 0) break;
      this.#note(first + done, covered > 0 ? covered : 1);
      if (covered > 0)
        this.#watch?.unmapped((first + done) * this.#pageBytes, covered * this.#pageBytes, this.table.tableCleared);
      done += covered === 0 ? this.table.holePages : covered;
      unmapped += covered === 0 ? 0 : this.table.unmappedPages;
      tablesCleared ||= this.table.tableCleared;
      steps++;
      yield 'smmu:unmap-step';
    }
    yield steps * TABLE_STEP_NS;
    return { unmapped: unmapped * this.#pageBytes, tablesCleared };
  }

  *iotlb_sync(iova: number, lengthBytes: number): Task<void> {
    if (lengthBytes === 0 || this.driver.faults.fires('smmu.dirty-unsynced')) return;
    yield* this.#invalidate(iova, lengthBytes, true, { head: 0 });
  }

  iova_to_phys(iova: number): number | undefined {
    sharedRange(this, '', iova, 1, false);
    const page = this.table.translate(Math.floor(iova / this.#pageBytes));
    return page < 0 ? undefined : page * this.#pageBytes + (iova % this.#pageBytes);
  }

  *free(): Task<void> {
    if (!this.driver.faults.fires('smmu.asid-not-invalidated'))
      yield* this.driver.commandQueue.issueAndSync([this.#tagCommand()]);
    this.table.destroy();
    this.#watch?.unwatch();
    sharedWrite(this, 'freed', false, true);
    this.#isFreed = true;
    this.driver.releaseTag(this.stage, this.tag);
  }

  /** @throws InvariantError when it was freed */
  checkAlive(): void {
    sharedRead(this, 'freed', this.#isFreed);
    invariant(!this.#isFreed, 'a device is on the list of a domain that was freed', 'objects');
  }

  /** Descriptors of these pages change. */
  #note(page: number, pages: number, before?: unknown, after?: unknown): void {
    sharedRange(this, '', page * this.#pageBytes, pages * this.#pageBytes, true, before, after);
  }

  /** Attribute bits of a leaf as low and high words (io-pgtable-arm's arm_lpae_prot_to_pte). */
  #attributes(prot: number): readonly [number, number] {
    const { normal, cached, device } = this.usesForcedWriteBack ? FORCED_ATTRIBUTES : ATTRIBUTES[this.stage];
    const isDevice = (prot & IOMMU_MMIO) !== 0;
    const isCached = (prot & IOMMU_CACHE) !== 0;
    const descriptor = VMSA_DESCRIPTOR.make({
      MemAttr: isDevice ? device : isCached ? cached : normal,
      SH: this.stage === 2 || isCached ? INNER_SHAREABLE : OUTER_SHAREABLE,
      AF: 1,
    });
    const canWrite = (prot & IOMMU_WRITE) !== 0;
    if (this.stage === 2) {
      VMSA_DESCRIPTOR.set(descriptor, 'S2APRead', (prot & IOMMU_READ) !== 0 ? 1 : 0);
      VMSA_DESCRIPTOR.set(descriptor, 'S2APWrite', canWrite ? 1 : 0);
    } else {
      VMSA_DESCRIPTOR.set(descriptor, 'nG', 1);
      VMSA_DESCRIPTOR.set(descriptor, 'AP1', 1);
      VMSA_DESCRIPTOR.set(descriptor, 'AP2', canWrite ? 0 : 1);
      VMSA_DESCRIPTOR.set(descriptor, 'DBM', canWrite && this.recordsDirty ? 1 : 0);
    }
    return [descriptor[0] ?? 0, descriptor[1] ?? 0];
  }

  // --- invalidation ---

  #tagCommand(): Uint32Array {
    return this.stage === 1
      ? CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ASID, ASID: this.tag })
      : CMD_TLBI.make({ Opcode: CMD_OP.TLBI_S12_VMALL, VMID: this.tag });
  }

  /** Invalidates a range, waits, then frees the gathered tables. */
  *#invalidate(iova: number, lengthBytes: number, leavesOnly: boolean, gather: Gather): Task<void> {
    const leafOnly = leavesOnly || (gather.head !== 0 && this.driver.faults.fires('smmu.tables-not-invalidated'));
    const pages = lengthBytes / this.#pageBytes;
    const ranges = this.driver.features.hasRangeInvalidation;
    let commands: Uint32Array[];
    if (ranges) commands = this.#rangeCommands(iova, pages, leafOnly);
    else if (pages <= MAX_TLBI_COMMANDS) commands = this.#pageCommands(iova, pages, leafOnly);
    else commands = [this.#tagCommand()];
    yield* this.driver.commandQueue.issueAndSync(commands);
    // What TLBs keep of both stages together is found by stage 1's addresses only: all of the guest's goes.
    if (this.isNestParent)
      yield* this.driver.commandQueue.issueAndSync([CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ALL, VMID: this.tag })]);
    yield* this.driver.invalidateAtcs(this, iova, lengthBytes);
    if (gather.head !== 0) {
      sharedRange(this, '', iova, lengthBytes, true);
      this.#watch?.tablesFreed(iova, lengthBytes);
    }
    this.table.freeGathered(gather);
  }

  #addressCommand(iova: number, leafOnly: boolean, range: { TG?: number; NUM?: number; SCALE?: number }): Uint32Array {
    return CMD_TLBI.make({
      Opcode: this.stage === 1 ? CMD_OP.TLBI_NH_VA : CMD_OP.TLBI_S2_IPA,
      ...(this.stage === 1 ? { ASID: this.tag } : { VMID: this.tag }),
      Leaf: leafOnly ? 1 : 0,
      Address: iova / 4096,
      ...range,
    });
  }

  #pageCommands(iova: number, pages: number, leafOnly: boolean): Uint32Array[] {
    return Array.from({ length: pages }, (_, i) => this.#addressCommand(iova + i * this.#pageBytes, leafOnly, {}));
  }

  /** (NUM + 1) * 2^SCALE pages a command; a single page takes the plain form, since TTL is not given (IHI 0070 4.4.1). */
  #rangeCommands(iova: number, pages: number, leafOnly: boolean): Uint32Array[] {
    const commands: Uint32Array[] = [];
    const TG = TLBI_TG_SHIFTS.indexOf(this.table.granuleShift);
    for (let left = pages, at = iova; left > 0;) {
      let scale = 0;
      while (left % 2 ** (scale + 1) === 0) scale++;
      const num = (left / 2 ** scale) % MAX_RANGE_NUM;
      const count = num * 2 ** scale;
      const range = count === 1 ? {} : { TG, NUM: num - 1, SCALE: scale };
      commands.push(this.#addressCommand(at, leafOnly, range));
      left -= count;
      at += count * this.#pageBytes;
    }
    return commands;
  }

  // --- dirty state ---

  *#readDirty(iova: number, lengthBytes: number, noClear: boolean, record: DirtyRecorder): Task<number> {
    const arena = this.table.arena;
    const frame = arena.allocFrame(DIRTY_WINDOW_ORDER);
    invariant(frame !== 0, 'arm-smmu-v3: no memory for a dirty bitmap');
    const offset = arena.frameOffset(frame);
    const first = iova / this.#pageBytes;
    const end = first + lengthBytes / this.#pageBytes;
    let rc = 0;
    for (let page = first; page < end && rc === 0;) {
      const windowStart = page - (page % DIRTY_WINDOW_PAGES);
      const count = Math.min(end, windowStart + DIRTY_WINDOW_PAGES) - page;
      const walked = this.table.readDirty(page, count, offset, windowStart, this.table.granuleShift, noClear);
      const seen = Math.max(0, walked);
      sharedRange(this, '', page * this.#pageBytes, count * this.#pageBytes, !noClear);
      this.#report(offset, windowStart, record);
      if (seen < count) rc = -EINVAL;
      page += count;
      yield 'smmu:dirty-step';
      yield TABLE_STEP_NS;
    }
    arena.freeFrame(frame, DIRTY_WINDOW_ORDER);
    return rc;
  }

  /** Tells the runs of set bits of a window and clears it. */
  #report(offset: number, windowStart: number, record: DirtyRecorder): void {
    const words = this.table.arena.words.subarray(offset >>> 2, (offset + DIRTY_WINDOW_BYTES) >>> 2);
    let runStart = -1;
    for (let i = 0; i < words.length; i++) {
      const word = words[i] ?? 0;
      if (word === 0 && runStart < 0) continue;
      if (word === -1 && runStart >= 0) continue;
      for (let b = 0; b < 32; b++) {
        const isSet = ((word >>> b) & 1) === 1;
        if (isSet === runStart >= 0) continue;
        const page = i * 32 + b;
        if (!isSet) record((windowStart + runStart) * this.#pageBytes, (page - runStart) * this.#pageBytes);
        runStart = isSet ? page : -1;
      }
    }
    if (runStart >= 0) {
      record((windowStart + runStart) * this.#pageBytes, (DIRTY_WINDOW_PAGES - runStart) * this.#pageBytes);
    }
    words.fill(0);
  }
}
