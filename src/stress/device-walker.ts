/**
 * How a device of the run gets from an address to memory: TLB, walk cache, walk.
 *
 * The TLB and the walk are the SMMU model's. Beside them every device has a *walk cache*, which the model does without: for a 2 MiB region
 * it remembers the table of the last level, and walks start there. Only an invalidation without Leaf takes an entry away (IHI 0070
 * 4.4.1), so tables that are given back too early, or with too narrow an invalidation, are read after they became something
 * else, for as long as real hardware would. Both caches lie in the arena, to be read by whoever looks at a dump.
 *
 * Words of a walk cache entry: 2 MiB region + 1 (0: free), physical page of the table.
 */
import { FRAME_BYTES } from '../core/arena.js';
import { PageTable } from '../core/page-table.js';
import { TableWalker as Descriptors, WALK_LEAF } from '../core/table-walk.js';
import { cachedWalk } from '../hardware/smmu/cached-walk.js';
import { tlbSelection } from '../hardware/smmu/commands.js';
import { TLB_ENTRY_WORDS, type SmmuMemory } from '../hardware/smmu/ports.js';
import { CMD_TLBI } from '../hardware/smmu/records.js';
import { TLB_KIND, Tlb, type TlbTag } from '../hardware/smmu/tlb.js';
import {
  TableWalker,
  type Access,
  type Fault,
  type Stage1Config,
  type Stage1Region,
  type Translation,
} from '../hardware/smmu/walk.js';
import { invariant, type Task } from '../runtime/task.js';
import { ASID } from './spec.js';
import type { StressThread } from './thread.js';

/** Entries of the two caches, and what they take together. */
const TLB_ENTRIES = 256;
const WALK_CACHE_ENTRIES = 64;
export const DEVICE_CACHE_BYTES = (TLB_ENTRIES * TLB_ENTRY_WORDS + WALK_CACHE_ENTRIES * 2) * 4;

const OUTPUT_BITS = 48;
const FEATURES = { stage1: true, stage2: false, asidBits: 16, vmidBits: 16, rangeInvalidation: true };
const EVERYTHING = { kinds: 2 ** 4 - 1 };
const LAST_LEVEL = 3;
const PAGE_SHIFT = 12;
const REGION_BYTES = 2 ** 21;
/** How long a torn update of dirty state takes, now and then, milliseconds. */
const TEAR_MS = 0.05;
const TEAR_ODDS = 4;

/** Descriptors in the kernel window, as the SMMU fetches them. */
class ArenaMemory implements SmmuMemory {
  /** Physical address of the last descriptor that was fetched. */
  lastFetch = 0;
  /** A descriptor was fetched from memory that is nobody's. */
  hasReadFreed = false;
  readonly #descriptors: Descriptors;
  readonly #longs: BigUint64Array<SharedArrayBuffer>;
  readonly #nowhere = new Int32Array(new SharedArrayBuffer(4));
  readonly #tears: boolean;
  #updates = 0;

  /** `tears` (fault dirty-torn): updates of descriptors are a load and a store. */
  constructor(thread: StressThread, tears: boolean) {
    this.#descriptors = new Descriptors(thread.arena);
    this.#longs = thread.arena.longs;
    this.#tears = tears;
  }

  loadWords(pa: number, out: Uint32Array): boolean {
    const descriptors = this.#descriptors;
    this.lastFetch = pa;
    for (let i = 0; i < out.length; i += 2) {
      const at = pa + i * 4;
      if (descriptors.load(Math.floor(at / FRAME_BYTES), at % FRAME_BYTES) !== WALK_LEAF) return false;
      if (!descriptors.arena.isAllocated(descriptors.arena.pfnToFrame(Math.floor(at / FRAME_BYTES)))) {
        this.hasReadFreed = true;
      }
      out[i] = descriptors.descLo;
      out[i + 1] = descriptors.descHi;
    }
    return true;
  }

  store64(pa: number, lo: number, hi: number): boolean {
    const frame = this.#descriptors.arena.pfnToFrame(Math.floor(pa / FRAME_BYTES));
    if (frame < 0) return false;
    const at = (frame * FRAME_BYTES + (pa % FRAME_BYTES)) / 8;
    Atomics.store(this.#longs, at, (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0));
    return true;
  }

  compareAndSwap64(pa: number, oldLo: number, oldHi: number, newLo: number, newHi: number): boolean {
    const pfn = Math.floor(pa / FRAME_BYTES);
    const offset = pa % FRAME_BYTES;
    if (!this.#tears) return this.#descriptors.cas(pfn, offset, oldLo, oldHi, newLo, newHi) === WALK_LEAF;
    this.#descriptors.load(pfn, offset);
    if (this.#descriptors.descLo !== oldLo >>> 0 || this.#descriptors.descHi !== oldHi >>> 0) return false;
    if (++this.#updates % TEAR_ODDS === 0) Atomics.wait(this.#nowhere, 0, 0, TEAR_MS);
    return this.store64(pa, newLo, newHi);
  }
}

/** The translations of one device. */
export class DeviceWalker {
  readonly #tlb: Tlb;
  readonly #walkCache: Int32Array<SharedArrayBuffer>;
  readonly #memory: ArenaMemory;
  readonly #walker: TableWalker;
  readonly #config: Stage1Config;
  readonly #region: Stage1Region;
  readonly #tag: TlbTag = { kind: TLB_KIND.STAGE1, asid: ASID, vmid: 0, half: 0, granuleShift: PAGE_SHIFT };

  /** `caches`: byte offset of {@link DEVICE_CACHE_BYTES} zeroed bytes. `losesDirtyState`: fault dirty-lost. */
  constructor(thread: StressThread, caches: number, losesDirtyState: () => boolean) {
    const { arena, layout, options } = thread;
    const base = caches >>> 2;
    this.#tlb = new Tlb({ words: arena.words, base, entries: TLB_ENTRIES });
    const walkCache = base + TLB_ENTRIES * TLB_ENTRY_WORDS;
    this.#walkCache = arena.words.subarray(walkCache, walkCache + WALK_CACHE_ENTRIES * 2);
    this.#memory = new ArenaMemory(thread, options.faults.includes('dirty-torn'));
    this.#walker = new TableWalker(this.#memory, { outputBits: OUTPUT_BITS }, losesDirtyState);
    const table = PageTable.open(arena, layout.table);
    this.#region = {
      disabled: false,
      granuleShift: table.granuleShift,
      inputBits: table.inputBits,
      ignoresTopByte: false,
      ignoresTableAttributes: false,
      tableAddress: table.rootAddress,
      startLevel: table.startLevel,
    };
    this.#config = {
      asid: ASID,
      regions: [this.#region, this.#region],
      outputBits: OUTPUT_BITS,
      accessFlagFaultDisabled: false,
      updatesAccessFlag: true,
      updatesDirtyState: true,
      writableNeverExecutes: false,
      privilegedAccessNever: false,
      recordsFaults: true,
      stallsFaults: false,
      abortsFaults: true,
    };
  }

  /** Translates an access to one page. */
  *translate(address: number, write: boolean): Task<Translation | Fault> {
    const access: Access = { write, instruction: false, privileged: false };
    return yield* cachedWalk(this.#tlb, true, this.#tag, address, access, () => this.#walk(address, access));
  }

  /**
   * Whether a walk since the last call read a table that had been given back: then somebody did not wait for this device to
   * pass a quiescent point.
   */
  takeReadFreed(): boolean {
    const had = this.#memory.hasReadFreed;
    this.#memory.hasReadFreed = false;
    return had;
  }

  /** Carries out an invalidation command. */
  invalidate(command: Uint32Array): void {
    const selection = tlbSelection(command, FEATURES);
    invariant(selection !== undefined, 'stress: a command that is no invalidation');
    this.#tlb.invalidate(selection);
    const { range } = selection;
    if (range === undefined) this.#walkCache.fill(0);
    else if (CMD_TLBI.get(command, 'Leaf') === 0) this.#forgetTables(range.start, range.last);
  }

  /** Forgets everything. */
  reset(): void {
    this.#tlb.invalidate(EVERYTHING);
    this.#walkCache.fill(0);
  }

  *#walk(address: number, access: Access): Task<Translation | Fault> {
    const cache = this.#walkCache;
    const number = Math.floor(address / REGION_BYTES);
    const entry = (number % WALK_CACHE_ENTRIES) * 2;
    let region = this.#region;
    if (cache[entry] === number + 1) {
      region = { ...region, tableAddress: (cache[entry + 1] ?? 0) * FRAME_BYTES, startLevel: LAST_LEVEL };
    }
    const found = yield* this.#walker.stage1(this.#config, region, address, access, undefined);
    if (found.ok && found.shift === PAGE_SHIFT) {
      cache[entry] = number + 1;
      cache[entry + 1] = Math.floor(this.#memory.lastFetch / FRAME_BYTES);
    }
    return found;
  }

  #forgetTables(start: number, last: number): void {
    const cache = this.#walkCache;
    const first = Math.floor(start / REGION_BYTES) + 1;
    const end = Math.floor(last / REGION_BYTES) + 1;
    for (let entry = 0; entry < cache.length; entry += 2) {
      const region = cache[entry] ?? 0;
      if (region >= first && region <= end) cache[entry] = 0;
    }
  }
}
