/**
 * A device that does DMA as fast as it can: one thread, one TLB, the SMMU's own way from an address to memory.
 *
 * Each DMA reads or writes one word of a random page of the windows. The translation is the one the SMMU model makes: TLB first, else a walk over
 * the tables in the arena, descriptor by descriptor, with dirty state set by compare-and-swap (HTTU). A write leaves a tag in
 * the page, so a write that went astray is to be seen in memory as well. Between two DMAs lies a *quiescent point*: the device
 * holds no translation and consumes the invalidations that were published.
 *
 * A device parks after the clients did: until then somebody may wait for it to consume.
 */
import { TableWalker as Descriptors, WALK_LEAF } from '../core/table-walk.js';
import { FRAME_BYTES } from '../core/arena.js';
import { PageTable } from '../core/page-table.js';
import { cachedWalk } from '../hardware/smmu/cached-walk.js';
import { tlbSelection } from '../hardware/smmu/commands.js';
import type { SmmuMemory } from '../hardware/smmu/ports.js';
import { TLB_KIND, Tlb, type TlbTag } from '../hardware/smmu/tlb.js';
import {
  TableWalker,
  type Access,
  type Fault,
  type Stage1Config,
  type Stage1Region,
  type Translation,
} from '../hardware/smmu/walk.js';
import { SharedPins } from '../kernel/mm/shared-pins.js';
import { RandomStream } from '../runtime/random.js';
import { invariant, type Task } from '../runtime/task.js';
import { ASID } from './address-space.js';
import { DEVICE_TLB_ENTRIES, tlbOffset } from './build-layout.js';
import { CommandConsumer } from './command-queue.js';
import { DMA, OP } from './history.js';
import { BLOCK, STATE, blockWord, clientThreads, type StressFault } from './spec.js';
import type { StressThread } from './thread.js';
import { WINDOWS } from './windows.js';

const OUTPUT_BITS = 48;
const FEATURES = { stage1: true, stage2: false, asidBits: 16, vmidBits: 16, rangeInvalidation: true };
const EVERYTHING = { kinds: 2 ** 4 - 1 };
/** One in so many faults of a kind fires, where a fault is switched on: rare enough for the rest to go on. */
const FAULT_ODDS = 3;
/** Spins between the load and the store of a torn update of dirty state. */
const TORN_SPINS = 200;

/** Descriptors in the kernel window, as the SMMU fetches them. */
class ArenaMemory implements SmmuMemory {
  readonly #descriptors: Descriptors;
  readonly #longs: BigUint64Array<SharedArrayBuffer>;
  readonly #tears: boolean;

  constructor(thread: StressThread, tears: boolean) {
    this.#descriptors = new Descriptors(thread.arena);
    this.#longs = thread.arena.longs;
    this.#tears = tears;
  }

  loadWords(pa: number, out: Uint32Array): boolean {
    const descriptors = this.#descriptors;
    for (let i = 0; i < out.length; i += 2) {
      const at = pa + i * 4;
      if (descriptors.load(Math.floor(at / FRAME_BYTES), at % FRAME_BYTES) !== WALK_LEAF) return false;
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
    for (let spin = 0; spin < TORN_SPINS; spin++) Atomics.load(this.#longs, 0);
    return this.store64(pa, newLo, newHi);
  }
}

/** One device. */
export class Device {
  readonly #thread: StressThread;
  readonly #random: RandomStream;
  readonly #tlb: Tlb;
  readonly #walker: TableWalker;
  readonly #queue: CommandConsumer;
  readonly #pins: SharedPins;
  readonly #config: Stage1Config;
  readonly #region: Stage1Region;
  readonly #tlbTag: TlbTag = { kind: TLB_KIND.STAGE1, asid: ASID, vmid: 0, half: 0, granuleShift: 12 };
  readonly #clients: readonly number[];
  /** Where in a page this device writes: every device has a word of its own. */
  readonly #slot: number;
  #tag = 0;

  constructor(thread: StressThread) {
    const { arena, layout, options, number } = thread;
    const index = number - 2 - options.threads;
    this.#thread = thread;
    this.#random = new RandomStream(options.seed, `stress/device/${index}`);
    const words = { words: arena.words, base: tlbOffset(layout, index) >>> 2, entries: DEVICE_TLB_ENTRIES };
    this.#tlb = new Tlb(words);
    const memory = new ArenaMemory(thread, options.faults.includes('dirty-torn'));
    this.#walker = new TableWalker(memory, { outputBits: OUTPUT_BITS }, () => this.#fires('dirty-lost'));
    this.#queue = new CommandConsumer(arena, layout.queue, blockWord(layout, number) + BLOCK.consumed);
    this.#pins = new SharedPins(arena, layout.pins, { pfn: arena.kernelBasePfn, pages: arena.kernelFrames });
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
    this.#clients = clientThreads(options);
    this.#slot = slotOf(index);
  }

  /** Begins to translate: CMD_SYNC waits for this device since it runs. */
  #start(): void {
    this.#tlb.invalidate(EVERYTHING);
    this.#queue.start();
  }

  /** Does DMA until it is told to stop and nobody waits for it any more. */
  run(): void {
    const thread = this.#thread;
    this.#start();
    while (!thread.locks.isPoisoned && !(thread.isStopping && this.#clientsStand())) {
      this.#quiesce();
      if (thread.history.isNearlyFull) thread.pauseAll();
      if (!thread.isPausing) this.#dma();
      else if (this.#clientsStand()) {
        this.#quiesce();
        thread.park();
        this.#start();
      }
    }
  }

  #clientsStand(): boolean {
    return this.#clients.every((client) => this.#thread.stateOf(client) !== STATE.running);
  }

  #quiesce(): void {
    this.#queue.consume((command) => {
      const selection = tlbSelection(command, FEATURES);
      invariant(selection !== undefined, 'stress: a command that is no invalidation');
      if (!this.#fires('drop-tlbi')) this.#tlb.invalidate(selection);
    });
  }

  #dma(): void {
    const thread = this.#thread;
    const window = this.#random.pick(WINDOWS);
    const page = window.first + this.#random.below(window.pages);
    const write = this.#random.chance(1, 2);
    const invoked = thread.history.now();
    const found = thread.run(this.#translate(page, write));
    let result: number = DMA.other;
    let frame = -1;
    if (found.ok) {
      frame = Math.floor(found.address / FRAME_BYTES);
      result = this.#access(frame, write);
    } else if (found.event === 'F_TRANSLATION') result = DMA.translation;
    else if (found.event === 'F_PERMISSION') result = DMA.permission;
    thread.history.dma(write ? OP.DMA_WRITE : OP.DMA_READ, page, frame, result, invoked, this.#tag);
    thread.count();
  }

  *#translate(page: number, write: boolean): Task<Translation | Fault> {
    const access: Access = { write, instruction: false, privileged: false };
    const address = page * FRAME_BYTES;
    const walk = (): Task<Translation | Fault> =>
      this.#walker.stage1(this.#config, this.#region, address, access, undefined);
    return yield* cachedWalk(this.#tlb, true, this.#tlbTag, address, access, walk);
  }

  /** Between translation and access time passes; then the page had better be pinned. */
  #access(pfn: number, write: boolean): number {
    const { arena } = this.#thread;
    this.#thread.pause();
    const frame = arena.pfnToFrame(pfn);
    if (frame < 0 || this.#pins.count(pfn) === 0) return DMA.unpinned;
    if (!write) return DMA.done;
    this.#tag = (this.#tag + 1) & 0x7fffffff;
    Atomics.store(arena.words, (arena.frameOffset(frame) + this.#slot) >>> 2, this.#tag);
    return DMA.done;
  }

  #fires(fault: StressFault): boolean {
    return this.#thread.options.faults.includes(fault) && this.#random.chance(1, FAULT_ODDS);
  }
}

/** Byte offset in a page at which a device (by index) writes its tags. */
export function slotOf(index: number): number {
  return index * 8;
}
