/**
 * A PCIe host bridge: where the functions below it meet memory.
 *
 * A transaction goes through these hops in order, each of which may end it: bus mastering of the function, doorbells that
 * are decoded before the IOMMU, the SMMU (page by page), the system bus. Between translation and access time passes,
 * so a translation can grow stale in flight; the SMMU is told of transactions in flight, so that CMD_SYNC waits for them.
 * Every piece is recorded by the bus analyser with the place where it really ended.
 */
import { invariant, type Task } from '../../runtime/task.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { BusAnalyser, TransactionEnd } from '../analyser.js';
import type { Origin, SystemBus } from '../bus.js';
import type { HostBridgeDescription } from '../description.js';
import type { MsiController } from '../msi/controller.js';
import type { Smmu } from '../smmu/smmu.js';
import type { Bar, DmaResult, PciFunction, UpstreamPort } from './function.js';

/** Virtual time of one piece of a transaction: from the device to the SMMU, and from there to memory. */
const TO_SMMU_NS = 100;
const TO_MEMORY_NS = 200;
/** The finest translation granule: no piece crosses it. */
const PIECE_BYTES = 4096;

/** What a host bridge is connected to. */
export interface HostBridgePorts {
  readonly runtime: NodeRuntime;
  readonly bus: SystemBus;
  readonly analyser: BusAnalyser;
  readonly smmu: Smmu | undefined;
  /** The interrupt controller of a function. */
  readonly msiController: (fn: PciFunction) => MsiController | undefined;
}

type Direction = 'read' | 'write' | 'msi';

interface Piece {
  readonly end: TransactionEnd;
  readonly bytes?: Uint8Array;
}

/** A host bridge and the functions below it. */
export class HostBridge implements UpstreamPort {
  readonly description: HostBridgeDescription;
  readonly functions: PciFunction[] = [];
  readonly #ports: HostBridgePorts;
  /** Next free bus address of each window. */
  readonly #cursors: number[];
  /** Functions that have their addresses: a card that comes back keeps them. */
  readonly #assigned = new Set<PciFunction>();

  constructor(description: HostBridgeDescription, ports: HostBridgePorts) {
    this.description = description;
    this.#ports = ports;
    this.#cursors = description.windows.map((window) => Number(window.start));
  }

  /** StreamID of a function's transactions. */
  streamId(fn: PciFunction): number {
    return this.description.streamIdBase + fn.requesterId;
  }

  /** Firmware's part, once a function: an address for every BAR, in order, from the first window that has room; RangeError when none has. */
  assignBars(fn: PciFunction): void {
    if (this.#assigned.has(fn)) return;
    this.#assigned.add(fn);
    for (const bar of fn.bars) {
      const given = fn.description.bars?.find((b) => b.index === bar.index)?.start;
      if (given !== undefined) this.#assign(fn, bar, Number(given));
      else if (!this.#assignFromWindow(fn, bar))
        throw new RangeError(`${fn.bdf}: no window of ${this.description.name} has room for BAR ${bar.index}`);
    }
  }

  *dmaRead(fn: PciFunction, iova: bigint, lengthBytes: number): Task<DmaResult> {
    const out = new Uint8Array(lengthBytes);
    const ok = yield* this.#transfer(fn, 'read', iova, lengthBytes, (bytes, at) => out.set(bytes, at));
    return { ok, bytes: out };
  }

  *dmaWrite(fn: PciFunction, iova: bigint, bytes: Uint8Array): Task<DmaResult> {
    return { ok: yield* this.#transfer(fn, 'write', iova, bytes.length, undefined, bytes) };
  }

  *msi(fn: PciFunction, address: bigint, data: number): Task<DmaResult> {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, data, true);
    return { ok: yield* this.#transfer(fn, 'msi', address, bytes.length, undefined, bytes) };
  }

  *#transfer(
    fn: PciFunction,
    direction: Direction,
    iova: bigint,
    lengthBytes: number,
    onRead: ((bytes: Uint8Array, at: number) => void) | undefined,
    data?: Uint8Array,
  ): Task<boolean> {
    const ends: TransactionEnd[] = [];
    let isOk = true;
    for (let done = 0; done < lengthBytes && isOk;) {
      const at = BigInt.asUintN(64, iova + BigInt(done));
      const length = Math.min(lengthBytes - done, PIECE_BYTES - Number(at % BigInt(PIECE_BYTES)));
      const piece = yield* this.#piece(fn, direction, at, length, data?.subarray(done, done + length));
      ends.push(piece.end);
      isOk = piece.end.kind !== 'aborted' && piece.end.kind !== 'nowhere';
      if (piece.bytes !== undefined) onRead?.(piece.bytes, done);
      done += length;
    }
    this.#ports.analyser.record({ device: fn.bdf, direction, iova, lengthBytes, ends });
    return isOk;
  }

  *#piece(
    fn: PciFunction,
    direction: Direction,
    iova: bigint,
    lengthBytes: number,
    data: Uint8Array | undefined,
  ): Task<Piece> {
    const { bus, smmu } = this.#ports;
    const ended = (kind: TransactionEnd['kind'], where: string, address?: number): TransactionEnd => ({
      kind,
      iova,
      lengthBytes,
      where,
      ...(address === undefined ? {} : { address: BigInt(address) }),
    });
    yield TO_SMMU_NS;
    if (!fn.isBusMaster) return { end: ended('aborted', `bus mastering of ${fn.bdf} is off`) };
    const origin: Origin = { kind: 'device', bdf: fn.bdf, deviceId: this.streamId(fn) };
    const controller = this.#ports.msiController(fn);
    if (controller?.decodesBeforeIommu(iova, lengthBytes) === true) {
      if (data !== undefined) controller.ring(iova, data, origin);
      return { end: ended('doorbell', controller.name, Number(iova)) };
    }
    const ticket = smmu?.beginTransaction();
    try {
      const pa = yield* this.#translate(fn, iova, direction);
      if (typeof pa === 'string') return { end: ended('aborted', pa) };
      yield TO_MEMORY_NS;
      yield 'dma:translated';
      if (data !== undefined) {
        const end = bus.writeFor(origin, pa, data);
        return { end: ended(end.kind, end.where, pa) };
      }
      const { end, bytes } = bus.readFor(pa, lengthBytes);
      return { end: ended(end.kind, end.where, pa), ...(bytes === undefined ? {} : { bytes }) };
    } finally {
      if (ticket !== undefined) smmu?.endTransaction(ticket);
    }
  }

  /** Physical address, or why there is none. */
  *#translate(fn: PciFunction, iova: bigint, direction: Direction): Task<number | string> {
    const { smmu } = this.#ports;
    if (smmu === undefined) return Number(iova);
    const result = yield* smmu.translate({ streamId: this.streamId(fn), iova, write: direction !== 'read' });
    return result.ok ? result.pa : (result.event ?? `aborted by ${smmu.name}`);
  }

  #assignFromWindow(fn: PciFunction, bar: Bar): boolean {
    for (const [index, window] of this.description.windows.entries()) {
      const cursor = this.#cursors[index];
      invariant(cursor !== undefined, 'every window has a cursor');
      const address = Math.ceil(cursor / bar.sizeBytes) * bar.sizeBytes;
      const end = address + bar.sizeBytes;
      if (end - 1 > Number(window.last) || (!bar.is64 && end > 2 ** 32)) continue;
      this.#cursors[index] = end;
      this.#assign(fn, bar, address);
      return true;
    }
    return false;
  }

  #assign(fn: PciFunction, bar: Bar, busAddress: number): void {
    const window = this.description.windows.find((w) => busAddress >= Number(w.start) && busAddress <= Number(w.last));
    const cpuAddress = window === undefined ? busAddress : Number(window.cpuStart) + busAddress - Number(window.start);
    fn.assignBar(bar, busAddress, cpuAddress);
  }
}
