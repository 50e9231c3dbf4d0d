/**
 * A device that does DMA as fast as it can: one thread, caches of its own, the SMMU's way from an address to memory.
 *
 * Each DMA reads or writes one word of a page, of what clients say they mapped or of the windows at random. The translation is the one the SMMU model makes
 * (device-walker.ts): TLB first, else a walk over the tables in the arena, descriptor by descriptor, with dirty state set by
 * compare-and-swap (HTTU). A write leaves a tag in the page, so a write that went astray is to be seen in memory as well. Between two DMAs lies a *quiescent point*: the device
 * holds no translation and consumes the invalidations that were published.
 *
 * A device parks after the clients did: until then somebody may wait for it to consume.
 */
import { FRAME_BYTES } from '../core/arena.js';
import { SharedPins } from '../kernel/mm/shared-pins.js';
import { RandomStream } from '../runtime/random.js';
import { CommandConsumer } from './command-queue.js';
import { DeviceWalker } from './device-walker.js';
import { DMA, OP } from './history.js';
import type { StressFault } from './options.js';
import { BOARD_SLOTS, BLOCK, STATE, blockWord, cacheOffset, clientThreads } from './spec.js';
import type { StressThread } from './thread.js';
import { WINDOWS } from './windows.js';

/** One in so many occasions, where a fault is switched on: rare enough for the rest to go on. */
const FAULT_ODDS = 3;

/** One device. */
export class Device {
  readonly #thread: StressThread;
  readonly #random: RandomStream;
  readonly #walker: DeviceWalker;
  readonly #queue: CommandConsumer;
  readonly #pins: SharedPins;
  readonly #clients: readonly number[];
  /** Where in a page this device writes: every device has a word of its own. */
  readonly #slot: number;
  readonly #board: Int32Array<SharedArrayBuffer>;
  #tag = 0;

  constructor(thread: StressThread) {
    const { arena, layout, options, number } = thread;
    const index = number - 2 - options.threads;
    this.#thread = thread;
    this.#random = new RandomStream(options.seed, `stress/device/${index}`);
    this.#walker = new DeviceWalker(thread, cacheOffset(layout, index), () => this.#fires('dirty-lost'));
    this.#queue = new CommandConsumer(arena, layout.queue, blockWord(layout, number) + BLOCK.consumed);
    this.#pins = new SharedPins(arena, layout.pins, { pfn: arena.kernelBasePfn, pages: arena.kernelFrames });
    this.#clients = clientThreads(options);
    this.#slot = slotOf(index);
    this.#board = thread.board;
  }

  /** Begins to translate: CMD_SYNC waits for this device since it runs. */
  #start(): void {
    this.#walker.reset();
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
      if (!this.#fires('drop-tlbi')) this.#walker.invalidate(command);
    });
  }

  #dma(): void {
    const thread = this.#thread;
    const page = this.#page();
    const write = this.#random.chance(1, 2);
    const invoked = thread.history.now();
    const found = thread.run(this.#walker.translate(page * FRAME_BYTES, write));
    let result: number = DMA.other;
    let frame = -1;
    if (this.#walker.takeReadFreed()) result = DMA.freed;
    else if (found.ok) {
      frame = Math.floor(found.address / FRAME_BYTES);
      result = this.#access(frame, write);
    } else if (found.event === 'F_TRANSLATION') result = DMA.translation;
    else if (found.event === 'F_PERMISSION') result = DMA.permission;
    thread.history.dma(write ? OP.DMA_WRITE : OP.DMA_READ, page, frame, result, invoked, this.#tag);
    thread.count();
  }

  /** A page that a client says it mapped, or any. */
  #page(): number {
    const slot = this.#random.below(BOARD_SLOTS) * 2;
    const pages = Atomics.load(this.#board, slot + 1);
    if (pages > 0 && this.#random.chance(2, 3)) return Atomics.load(this.#board, slot) + this.#random.below(pages);
    const window = this.#random.pick(WINDOWS);
    return window.first + this.#random.below(window.pages);
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
