/**
 * The part of a card that lets it migrate: quiescing, on-card context memory, DMA log, saving and loading of its state.
 *
 * It stands between the device model and the function's way to memory. How active the device is decides what passes:
 *     running    everything
 *     no-dma     the P2P states: the device starts no DMA (it cannot tell peers from memory, so it stops all); it still answers
 *     stopped    nothing: no DMA, no interrupts; a vector raised meanwhile stays pending
 * Becoming less active returns when what was under way has ended, so a state that is saved afterwards is at rest.
 *
 * Context memory is what such cards keep beside their registers (queue contexts, flow tables): here a ring of records, one for each DMA
 * that completed. It is what pre-copy carries, because most of it does not change between two looks.
 *
 * The DMA log has the pages of chosen IOVA ranges that the device has written. The ranges are fixed when it starts.
 *
 * Invariants: with `activity` other than `running` no DMA is in flight; a page of context changes only together with its dirty mark.
 *
 * Source: Linux include/uapi/linux/vfio.h (vfio_device_mig_state, DMA logging); domain.md A2.3, A2.4.
 */
import { defineStruct, u32, u64 } from '../../layout/struct.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { invariant, WaitQueue, type Task } from '../../runtime/task.js';
import { sharedRead, sharedTest, sharedUpdate, sharedWrite } from '../../runtime/watch.js';
import type { MigrationDescription } from '../description.js';
import type { DeviceModel, DmaResult, PciFunction } from '../pcie/function.js';
import {
  CONTEXT_PAGE_BYTES,
  CONTEXT_RECORD_BYTES,
  contextRecord,
  DeviceStateError,
  IDENTITY_RECORD_BYTES,
  identityRecord,
  StateReader,
  stateRecords,
  stateRecordsBytes,
  type DeviceIdentity,
} from './migration-state.js';

/** How much a device does by itself. */
export type Activity = 'running' | 'no-dma' | 'stopped';

/** A device model whose state can be taken out and put into another card of its kind. */
export interface MigratableModel extends DeviceModel {
  /** Everything software could notice: registers, work under way. The device is at rest. */
  saveState(): Uint8Array;
  /** The opposite, into a device that was reset. @throws DeviceStateError */
  loadState(bytes: Uint8Array): void;
  /** Goes on with work that was loaded. */
  resume(): void;
}

/** An entry of the context ring. */
const context_entry = defineStruct('context_entry', { iova: u64, length: u32, serial: u32 });
const unit_state = defineStruct('unit_state', { serial: u32, model_bytes: u32, pending_vectors: u32 });

/** A range of IOVAs, `last` included. */
interface IovaRange {
  readonly start: bigint;
  readonly last: bigint;
}

interface DmaLog {
  readonly ranges: readonly IovaRange[];
  readonly pageBytes: bigint;
  /** Page numbers. */
  readonly dirty: Set<bigint>;
}

const LEVELS: readonly Activity[] = ['running', 'no-dma', 'stopped'];

/** A card's migration unit. */
export class MigrationUnit {
  readonly description: MigrationDescription;
  readonly #fn: PciFunction;
  readonly #runtime: NodeRuntime;
  readonly #model: MigratableModel;
  readonly #context: Uint8Array;
  /** Nothing was put into the context. */
  #isBlank = true;
  #dirtyContext = new Set<number>();
  /** No changed page of context is below this. */
  #firstDirty = 0;
  #activity: Activity = 'running';
  #dmaInFlight = 0;
  #messagesInFlight = 0;
  /** It has said that it does no DMA any more. */
  #isAtRest = false;
  #serial = 0;
  /** Grows with every reset: what waited from before gives up. */
  #life = 0;
  #isLoaded = false;
  #reader: StateReader | undefined;
  #log: DmaLog | undefined;
  readonly #changed: WaitQueue;

  constructor(runtime: NodeRuntime, fn: PciFunction, model: MigratableModel, description: MigrationDescription) {
    this.#runtime = runtime;
    this.#fn = fn;
    this.#model = model;
    this.description = description;
    this.#context = new Uint8Array(description.contextBytes);
    this.#changed = new WaitQueue(`${fn.bdf} migration`);
  }

  get activity(): Activity {
    sharedRead(this, 'activity', this.#activity);
    return this.#activity;
  }

  /** The card forgets everything and runs. */
  reset(): void {
    for (const word of ['life', 'activity', 'at rest', 'context', 'loading', 'log']) sharedWrite(this, word);
    this.#life++;
    this.#activity = 'running';
    this.#isAtRest = false;
    if (!this.#isBlank) this.#context.fill(0);
    this.#isBlank = true;
    this.#dirtyContext.clear();
    this.#serial = 0;
    this.#reader = undefined;
    this.#isLoaded = false;
    this.#log = undefined;
    this.#changed.wakeAll();
  }

  // --- what passes ---

  /** A DMA of the device: waits until it may start. A reset meanwhile abandons it (`ok` false). */
  *transact(kind: 'read' | 'write', iova: bigint, lengthBytes: number, dma: () => Task<DmaResult>): Task<DmaResult> {
    const life = this.#life;
    sharedRead(this, 'life', life);
    while (this.activity !== 'running') {
      yield this.#changed;
      sharedRead(this, 'life', this.#life);
      if (life !== this.#life) return { ok: false };
    }
    sharedUpdate(this, 'DMA in flight', this.#dmaInFlight, this.#dmaInFlight + 1);
    this.#dmaInFlight++;
    const result = yield* dma();
    sharedRead(this, 'at rest', this.#isAtRest);
    invariant(!this.#isAtRest, () => `${this.#fn.bdf}: DMA ended after the device had stopped`, 'INV-13');
    this.#runtime.invariants.held('INV-13');
    sharedUpdate(this, 'DMA in flight', this.#dmaInFlight, this.#dmaInFlight - 1);
    this.#dmaInFlight--;
    this.#changed.wakeAll();
    sharedRead(this, 'life', this.#life);
    if (life !== this.#life) return { ok: false };
    if (kind === 'write') this.#logWrite(iova, lengthBytes);
    this.#note(iova, lengthBytes);
    return result;
  }

  /** An interrupt message on its way. */
  *send(message: () => Task<DmaResult>): Task<void> {
    sharedUpdate(this, 'messages in flight', this.#messagesInFlight, this.#messagesInFlight + 1);
    this.#messagesInFlight++;
    yield* message();
    sharedUpdate(this, 'messages in flight', this.#messagesInFlight, this.#messagesInFlight - 1);
    this.#messagesInFlight--;
    this.#changed.wakeAll();
  }

  /** Makes the device as active as that; becoming less so waits for what is under way. */
  *setActivity(activity: Activity): Task<void> {
    const before = LEVELS.indexOf(this.#activity);
    const life = this.#life;
    sharedRead(this, 'life', life);
    sharedWrite(this, 'activity', this.#activity, activity);
    sharedWrite(this, 'at rest', this.#isAtRest, this.#isAtRest && activity !== 'running');
    this.#activity = activity;
    this.#isAtRest &&= activity !== 'running';
    if (LEVELS.indexOf(activity) < before) {
      sharedRead(this, 'loading');
      if (activity === 'running' && this.#isLoaded) {
        sharedWrite(this, 'loading');
        this.#isLoaded = false;
        this.#model.resume();
      }
      this.#changed.wakeAll();
      this.#fn.sendPending();
      return;
    }
    const isBusy = (): boolean => {
      sharedRead(this, 'life', this.#life);
      sharedTest(this, 'DMA in flight', this.#dmaInFlight);
      sharedTest(this, 'messages in flight', this.#messagesInFlight);
      return this.#dmaInFlight > 0 || (activity === 'stopped' && this.#messagesInFlight > 0);
    };
    const waits = !this.#runtime.faults.fires('device.stop-undrained');
    while (waits && life === this.#life && isBusy()) yield this.#changed;
    sharedRead(this, 'life', this.#life);
    if (life !== this.#life) return;
    sharedWrite(this, 'at rest', this.#isAtRest, this.activity !== 'running');
    this.#isAtRest = this.#activity !== 'running';
  }

  // --- saving ---

  /** Who this is: the first record of every stream. */
  identity(): Uint8Array {
    return identityRecord(this.#identityFacts());
  }

  /** Marks all of the context as not sent. */
  markContext(): void {
    sharedWrite(this, 'context');
    for (let at = 0; at < this.#context.length; at += CONTEXT_PAGE_BYTES) this.#dirtyContext.add(at);
    this.#firstDirty = 0;
  }

  /** Pages of context that changed since they were taken last. */
  get dirtyPages(): number {
    sharedRead(this, 'context');
    return this.#dirtyContext.size;
  }

  /** Takes the lowest changed page; undefined when none is left. */
  takeContext(): Uint8Array | undefined {
    sharedWrite(this, 'context');
    if (this.#dirtyContext.size === 0) return undefined;
    let first = this.#firstDirty;
    while (!this.#dirtyContext.delete(first)) first += CONTEXT_PAGE_BYTES;
    this.#firstDirty = first;
    return contextRecord(first, this.#context.subarray(first, first + CONTEXT_PAGE_BYTES));
  }

  /** The last records. The device is stopped. */
  state(): Uint8Array[] {
    return stateRecords(this.#stateBytes());
  }

  /** Bytes that would have to be read if the device were stopped now; with the identity when nothing was read yet. */
  stopCopyBytes(isStarted: boolean): number {
    sharedRead(this, 'context');
    const head = isStarted ? 0 : IDENTITY_RECORD_BYTES;
    const pages = isStarted ? this.#dirtyContext.size : this.#context.length / CONTEXT_PAGE_BYTES;
    return head + pages * CONTEXT_RECORD_BYTES + stateRecordsBytes(this.#stateBytes().length);
  }

  /** All of it at once, for whoever compares cards. The device is stopped. */
  snapshot(): Uint8Array {
    sharedRead(this, 'context', this.#serial);
    const parts = [this.identity(), this.#context, ...this.state()];
    const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }

  // --- loading ---

  /** Begins to take a stream; what was taken before is dropped. */
  beginLoad(): void {
    sharedWrite(this, 'loading');
    this.#reader = new StateReader(this.#identityFacts(), (offset, page) => {
      sharedWrite(this, 'context');
      this.#isBlank = false;
      this.#context.set(page, offset);
    });
  }

  /** @throws DeviceStateError */
  load(bytes: Uint8Array): void {
    sharedWrite(this, 'loading');
    this.#reader?.write(bytes);
  }

  /** Puts the state into effect. Without a byte taken there is nothing to do. @throws DeviceStateError */
  finishLoad(isEmpty: boolean): void {
    sharedWrite(this, 'loading');
    const reader = this.#reader;
    this.#reader = undefined;
    if (reader === undefined || isEmpty) return;
    const bytes = reader.finish();
    if (bytes.length < unit_state.sizeBytes) throw new DeviceStateError('the state is too short');
    const { serial, model_bytes, pending_vectors } = unit_state.decode(bytes);
    const body = bytes.subarray(unit_state.sizeBytes);
    if (body.length !== model_bytes + pending_vectors * u32.sizeBytes)
      throw new DeviceStateError('the state has a wrong length');
    this.#model.reset();
    this.#model.loadState(body.subarray(0, model_bytes));
    const view = new DataView(body.buffer, body.byteOffset + model_bytes);
    const vectors = Array.from({ length: pending_vectors }, (_, i) => u32.read(view, i * u32.sizeBytes));
    this.#fn.setPendingVectors(vectors);
    sharedWrite(this, 'context');
    this.#serial = serial;
    this.#isLoaded = true;
    this.#runtime.emit('device.state-loaded', { device: this.#fn.bdf, bytes: bytes.length });
  }

  // --- DMA log ---

  get isLogging(): boolean {
    sharedRead(this, 'log');
    return this.#log !== undefined;
  }

  /** Page size the log works with, for one that is asked for: between 4 KiB and 2 MiB. */
  logPageBytes(wanted: bigint): bigint {
    if (wanted < 4096n) return 4096n;
    return wanted > 2n ** 21n ? 2n ** 21n : wanted;
  }

  startLog(ranges: readonly IovaRange[], pageBytes: bigint): void {
    sharedWrite(this, 'log');
    this.#log = { ranges, pageBytes, dirty: new Set() };
  }

  stopLog(): void {
    sharedWrite(this, 'log');
    this.#log = undefined;
  }

  /** Takes what was written in a range: IOVA ranges of one page of the log each, ascending. */
  takeLog(range: IovaRange): IovaRange[] {
    sharedTest(this, 'log');
    const log = this.#log;
    if (log === undefined) return [];
    const first = range.start / log.pageBytes;
    const last = range.last / log.pageBytes;
    const taken = [...log.dirty].filter((page) => page >= first && page <= last).sort((a, b) => (a < b ? -1 : 1));
    for (const page of taken) log.dirty.delete(page);
    return taken.map((page) => ({ start: page * log.pageBytes, last: (page + 1n) * log.pageBytes - 1n }));
  }

  #logWrite(iova: bigint, lengthBytes: number): void {
    // Pages are only added: in which order does not matter to others that do.
    sharedUpdate(this, 'log');
    const log = this.#log;
    if (log === undefined || lengthBytes === 0 || this.#runtime.faults.fires('device.log-lost')) return;
    const last = iova + BigInt(lengthBytes) - 1n;
    for (const range of log.ranges) {
      const from = iova > range.start ? iova : range.start;
      const to = last < range.last ? last : range.last;
      for (let page = from / log.pageBytes; from <= to && page <= to / log.pageBytes; page++) log.dirty.add(page);
    }
  }

  #note(iova: bigint, lengthBytes: number): void {
    const entries = this.#context.length / context_entry.sizeBytes;
    if (entries === 0) return;
    sharedWrite(this, 'context', this.#serial, this.#serial + 1);
    const at = (this.#serial % entries) * context_entry.sizeBytes;
    this.#isBlank = false;
    this.#context.set(context_entry.encode({ iova, length: lengthBytes, serial: this.#serial }), at);
    const page = at - (at % CONTEXT_PAGE_BYTES);
    this.#dirtyContext.add(page);
    this.#firstDirty = Math.min(this.#firstDirty, page);
    this.#serial = (this.#serial + 1) >>> 0;
  }

  #stateBytes(): Uint8Array {
    sharedRead(this, 'context', this.#serial);
    const model = this.#model.saveState();
    const vectors = this.#fn.pendingVectors();
    const head = unit_state.encode({
      serial: this.#serial,
      model_bytes: model.length,
      pending_vectors: vectors.length,
    });
    const bytes = new Uint8Array(head.length + model.length + vectors.length * u32.sizeBytes);
    bytes.set(head);
    bytes.set(model, head.length);
    const view = new DataView(bytes.buffer, head.length + model.length);
    vectors.forEach((vector, i) => u32.write(view, i * u32.sizeBytes, vector));
    return bytes;
  }

  #identityFacts(): DeviceIdentity {
    const { vendor, device } = this.#fn.description;
    return { vendor, device, contextBytes: this.#context.length };
  }
}
