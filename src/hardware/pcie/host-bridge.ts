/**
 * A PCIe host bridge: where the functions below it meet memory.
 *
 * A transaction goes through these hops in order, each of which may end it: bus mastering of the function, the fabric up to and
 * through the root complex (fabric.ts), doorbells that are decoded before the IOMMU, the SMMU (page by page), the system bus.
 * Between translation and access time passes, so a translation can grow stale in flight; the SMMU is told of transactions in
 * flight, so that CMD_SYNC waits for them. Every byte is recorded once by the bus analyser, with the place where it ended and
 * the hop that sent it there.
 *
 * A doorbell inside the root complex is asked before the fabric's root: it swallows what comes to its frame whoever it is from.
 */
import type { Task } from '../../runtime/task.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { BusAnalyser, TransactionEnd } from '../analyser.js';
import { readFrame, writeFrame, type Origin, type SystemBus } from '../bus.js';
import type { HostBridgeDescription, IdMapping } from '../description.js';
import type { MsiController } from '../msi/controller.js';
import type { Smmu } from '../smmu/smmu.js';
import { NO_ACCESS, type AtcEntry } from './atc.js';
import { Fabric, type Capture, type Route } from './fabric.js';
import type { DmaResult, PciFunction, UpstreamPort } from './function.js';
import { assignResources } from './resources.js';

/** Virtual time of one piece of a transaction: from the device to the SMMU, and from there to memory. */
const TO_SMMU_NS = 100;
const TO_MEMORY_NS = 200;
/** The finest translation granule: no piece crosses it. */
const PIECE_BYTES = 4096;

/** A piece of DMA behind an IOMMU. */
export interface TranslatedAccess {
  readonly bdf: string;
  readonly pa: number;
  readonly lengthBytes: number;
}

/**
 * Looks on at the DMA of devices, piece by piece (a piece lies in one page): the kernel knows what is mapped for whom and whose memory
 * it is.
 */
export interface DmaWatcher {
  /** A device issues an access; what is returned is given back when it ends. */
  began(bdf: string, iova: bigint, isWrite: boolean): unknown;
  /** An IOMMU has let it through; it is about to be done. */
  translated(access: TranslatedAccess): void;
  /** It was done at a physical address, ended in a fault of translation or permission (-1), or some other way. */
  ended(access: unknown, pa: number | undefined): void;
}

/** What a host bridge is connected to. */
export interface HostBridgePorts {
  readonly runtime: NodeRuntime;
  readonly bus: SystemBus;
  readonly analyser: BusAnalyser;
  /** SMMUs by name. */
  readonly smmus: ReadonlyMap<string, Smmu>;
  /** Doorbells inside this root complex. */
  readonly captures: readonly Capture[];
  readonly dmaWatcher: DmaWatcher;
  /** The interrupt controllers of the board. */
  readonly msiControllers: ReadonlyMap<string, MsiController>;
}

type Direction = 'read' | 'write' | 'msi';

interface Piece {
  readonly end: TransactionEnd;
  readonly bytes?: Uint8Array;
}

/** How an access ends that nothing is mapped for, or nothing that allows it. */
const REFUSALS: readonly string[] = ['F_TRANSLATION', 'F_PERMISSION', NO_ACCESS];

/** Where an access ended in memory, -1 where nothing was mapped for it. */
function reachedBy({ kind, where, address }: TransactionEnd): number | undefined {
  if (kind === 'memory' && address !== undefined) return Number(address);
  return kind === 'aborted' && REFUSALS.includes(where) ? -1 : undefined;
}

/** Makes the end of the piece at hand. */
type EndPiece = (kind: TransactionEnd['kind'], where: string, hop: string, address?: number) => Piece;

/** Addresses are exact numbers up to here; nothing on a board is above. */
const MAX_BUS_ADDRESS = 2n ** 52n - 1n;
const SYSTEM_BUS = 'system bus';

function mapId(map: readonly IdMapping[], id: number): { readonly target: string; readonly id: number } | undefined {
  const found = map.find((entry) => id >= entry.firstRequesterId && id < entry.firstRequesterId + entry.count);
  return found === undefined ? undefined : { target: found.target, id: found.firstId + id - found.firstRequesterId };
}

/** A host bridge and the functions below it. */
export class HostBridge implements UpstreamPort {
  readonly description: HostBridgeDescription;
  readonly fabric: Fabric;
  readonly #ports: HostBridgePorts;
  readonly #name: string;

  constructor(description: HostBridgeDescription, ports: HostBridgePorts) {
    this.description = description;
    this.fabric = new Fabric(description, ports.captures);
    this.#name = `root complex ${description.name}`;
    this.#ports = ports;
  }

  get functions(): PciFunction[] {
    return this.fabric.functions;
  }

  /** The IOMMU behind which a requester ID's transactions are, and the StreamID they have there; undefined where there is none. */
  streamOf(requesterId: number): { readonly iommu: string; readonly id: number } | undefined {
    const { iommu, streamIdBase, iommuMap } = this.description;
    const rid = requesterId & (this.description.requesterIdMask ?? 0xffff);
    if (iommuMap === undefined) return iommu === undefined ? undefined : { iommu, id: streamIdBase + rid };
    const found = mapId(iommuMap, rid);
    return found === undefined ? undefined : { iommu: found.target, id: found.id };
  }

  /** The MSI controller of a requester ID, and the DeviceID it sees. */
  doorbellOf(
    fn: PciFunction,
    requesterId: number = fn.requesterId,
  ): { readonly name: string; readonly id: number } | undefined {
    const { msi, streamIdBase, msiMap } = this.description;
    const found = msiMap === undefined ? undefined : mapId(msiMap, requesterId);
    const name = fn.description.msi ?? found?.target ?? msi;
    return name === undefined ? undefined : { name, id: found?.id ?? streamIdBase + requesterId };
  }

  /** Firmware's part: addresses for everything below. @throws UnbuildableError when there is no room */
  assignResources(): void {
    assignResources(this.description, this.fabric);
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
    // Writes are posted: no completion tells the function of a failure, so the rest goes out as well. A read stops at its first.
    const goesOn = (): boolean => isOk || (direction !== 'read' && fn.isPresent && fn.isBusMaster);
    for (let done = 0; done < lengthBytes && goesOn();) {
      const at = BigInt.asUintN(64, iova + BigInt(done));
      const length = Math.min(lengthBytes - done, PIECE_BYTES - Number(at % BigInt(PIECE_BYTES)));
      const piece = yield* this.#piece(fn, direction, at, length, data?.subarray(done, done + length));
      ends.push(piece.end);
      isOk &&= piece.end.kind !== 'aborted' && piece.end.kind !== 'nowhere';
      if (piece.bytes !== undefined) onRead?.(piece.bytes, done);
      done += piece.end.lengthBytes;
    }
    this.#ports.analyser.record({ device: fn.bdf, direction, iova, lengthBytes, ends });
    return isOk;
  }

  *#piece(
    fn: PciFunction,
    direction: Direction,
    iova: bigint,
    wantedBytes: number,
    data: Uint8Array | undefined,
  ): Task<Piece> {
    yield TO_SMMU_NS;
    let lengthBytes = wantedBytes;
    const ended = (kind: TransactionEnd['kind'], where: string, hop: string, address?: number): Piece => ({
      end: { kind, iova, lengthBytes, where, hop, ...(address === undefined ? {} : { address: BigInt(address) }) },
    });
    if (!fn.isPresent) return ended('aborted', `${fn.bdf} is gone`, fn.bdf);
    if (!fn.isBusMaster) return ended('aborted', `bus mastering of ${fn.bdf} is off`, fn.bdf);
    const usesAts = direction !== 'msi' && fn.isAtsEnabled;
    // An ATC takes 64-bit addresses; what it gives, and what goes without one, has as many bits as the fabric.
    if (!usesAts && iova > MAX_BUS_ADDRESS)
      return ended('nowhere', 'beyond the address bits of the fabric', this.#name);
    const ticket = usesAts ? fn.atc.begin() : undefined;
    const { dmaWatcher } = this.#ports;
    const watched = direction === 'msi' ? undefined : dmaWatcher.began(fn.bdf, iova, direction === 'write');
    let pa: number | undefined;
    try {
      const entry = usesAts ? yield* this.#translation(fn, iova, direction === 'write') : undefined;
      if (typeof entry === 'string') return ended('aborted', entry, fn.bdf);
      const address = entry === undefined ? Number(iova) : entry.pa + Number(iova - entry.first);
      const route = this.fabric.route({
        from: fn,
        address,
        addressType: entry === undefined ? 'untranslated' : 'translated',
      });
      lengthBytes = Math.min(wantedBytes, route.last - address + 1);
      const part = data?.subarray(0, lengthBytes);
      const piece = yield* this.#through(fn, route, address, direction, part, lengthBytes, ended, usesAts);
      pa = reachedBy(piece.end);
      return piece;
    } finally {
      dmaWatcher.ended(watched, pa);
      if (ticket !== undefined) fn.atc.end(ticket);
    }
  }

  /** A translation from the function's cache, or one it asks for now; a string says why there is none. */
  *#translation(fn: PciFunction, iova: bigint, write: boolean): Task<AtcEntry | string> {
    const route = this.fabric.route({ from: fn, address: Number(iova), addressType: 'translation-request' });
    const stream = route.kind === 'upstream' ? this.streamOf(route.requesterId) : undefined;
    const smmu = stream === undefined ? undefined : this.#ports.smmus.get(stream.iommu);
    if (smmu === undefined || stream === undefined)
      return fn.atc.lookup(iova, write) ?? 'nobody answers translation requests';
    return yield* fn.atc.translation({ streamId: stream.id, iova }, write, function* (request) {
      const answer = yield* smmu.translateAts(request);
      yield TO_SMMU_NS;
      return answer;
    });
  }

  *#through(
    fn: PciFunction,
    route: Route,
    address: number,
    direction: Direction,
    bytes: Uint8Array | undefined,
    lengthBytes: number,
    ended: EndPiece,
    isTranslated: boolean,
  ): Task<Piece> {
    switch (route.kind) {
      case 'nowhere':
      case 'aborted':
        return ended(route.kind, route.why, route.hop);
      case 'peer':
        return this.#toPeer(route, bytes, lengthBytes, ended);
      case 'doorbell': {
        const controller = this.#ports.msiControllers.get(route.name);
        const origin: Origin = { kind: 'device', bdf: fn.bdf, deviceId: route.requesterId };
        if (bytes !== undefined) controller?.ring(BigInt(address), bytes, origin);
        return ended('doorbell', route.name, this.#name, address);
      }
      case 'upstream':
        return yield* this.#upstream(fn, route, direction, bytes, lengthBytes, ended, isTranslated);
    }
  }

  #toPeer(
    { target, bar, offset, hop }: Extract<Route, { kind: 'peer' }>,
    bytes: Uint8Array | undefined,
    lengthBytes: number,
    ended: EndPiece,
  ): Piece {
    const { end } = ended('peer', `${target.bdf} BAR ${bar.index}`, hop, target.barAddress(bar) + offset);
    if (bytes !== undefined) {
      writeFrame(bytes, offset, (at, sizeBytes, value) => target.barWrite(bar.index, at, sizeBytes, value));
      return { end };
    }
    return { end, bytes: readFrame(lengthBytes, offset, (at, sizeBytes) => target.barRead(bar.index, at, sizeBytes)) };
  }

  /** Out of the root complex: doorbells before the IOMMU, the IOMMU, the system bus. */
  *#upstream(
    fn: PciFunction,
    { requesterId, address }: Extract<Route, { kind: 'upstream' }>,
    direction: Direction,
    data: Uint8Array | undefined,
    lengthBytes: number,
    ended: EndPiece,
    isTranslated: boolean,
  ): Task<Piece> {
    const { bus } = this.#ports;
    const doorbell = this.doorbellOf(fn, requesterId);
    const origin: Origin = { kind: 'device', bdf: fn.bdf, deviceId: doorbell?.id ?? requesterId };
    const controller = doorbell === undefined ? undefined : this.#ports.msiControllers.get(doorbell.name);
    if (controller?.decodesBeforeIommu(BigInt(address), lengthBytes) === true) {
      if (data !== undefined) controller.ring(BigInt(address), data, origin);
      return ended('doorbell', controller.name, this.#name, address);
    }
    const stream = this.streamOf(requesterId);
    const smmu = stream === undefined ? undefined : this.#ports.smmus.get(stream.iommu);
    const ticket = smmu?.beginTransaction();
    try {
      let pa = address;
      if (smmu !== undefined && stream !== undefined) {
        const write = direction !== 'read';
        const request = { streamId: stream.id, iova: BigInt(address), write };
        const result = yield* isTranslated ? smmu.passTranslated(request) : smmu.translate(request, ticket);
        if (!result.ok) return ended('aborted', result.event ?? `aborted by ${smmu.name}`, smmu.name);
        pa = result.pa;
      }
      yield TO_MEMORY_NS;
      yield 'dma:translated';
      if (smmu !== undefined) this.#ports.dmaWatcher.translated({ bdf: fn.bdf, pa, lengthBytes });
      if (data !== undefined) {
        const end = bus.writeFor(origin, pa, data);
        return ended(end.kind, end.where, SYSTEM_BUS, pa);
      }
      const { end, bytes } = bus.readFor(pa, lengthBytes);
      return { ...ended(end.kind, end.where, SYSTEM_BUS, pa), ...(bytes === undefined ? {} : { bytes }) };
    } finally {
      if (ticket !== undefined) smmu?.endTransaction(ticket);
    }
  }
}
