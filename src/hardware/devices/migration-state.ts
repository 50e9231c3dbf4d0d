/**
 * The state of a migrating device as bytes: what its driver's data_fd carries. Nobody but the device looks inside.
 *
 * A sequence of records: IDENTITY first, then CONTEXT pages in any order and number (a later one replaces an earlier one), STATE,
 * END. Each has a checksum of its own. {@link StateReader} takes the bytes in pieces of any size, as user space writes them, and
 * refuses what is damaged, out of order or of another kind of device. Pure.
 */
import { crc32 } from 'node:zlib';
import { defineStruct, u16, u32, u64 } from '../../layout/struct.js';

/** Head of a record; `length` bytes of body follow. `offset` is where a CONTEXT page belongs. */
const record_header = defineStruct('record_header', {
  magic: u32,
  type: u16,
  version: u16,
  length: u32,
  crc32: u32,
  offset: u64,
});
/** Who sends: a receiver of another kind cannot take its state. */
const identity_record = defineStruct('identity_record', { vendor: u32, device: u32, context_bytes: u64 });

/** `IOVM`, little-endian. */
const MAGIC = 0x4d564f49;
const VERSION = 1;
const TYPE = { IDENTITY: 1, CONTEXT: 2, STATE: 3, END: 4 } as const;
/** Bytes of a piece of the card's memory. */
export const CONTEXT_PAGE_BYTES = 4096;
/** Longest body a reader accepts. */
const MAX_BODY_BYTES = 1 << 20;

/** What must be equal on both ends. */
export interface DeviceIdentity {
  readonly vendor: number;
  readonly device: number;
  readonly contextBytes: number;
}

function record(type: number, body: Uint8Array, offset = 0): Uint8Array {
  const header = record_header.encode({
    magic: MAGIC,
    type,
    version: VERSION,
    length: body.length,
    crc32: crc32(body),
    offset: BigInt(offset),
  });
  const bytes = new Uint8Array(header.length + body.length);
  bytes.set(header);
  bytes.set(body, header.length);
  return bytes;
}

export function identityRecord({ vendor, device, contextBytes }: DeviceIdentity): Uint8Array {
  return record(TYPE.IDENTITY, identity_record.encode({ vendor, device, context_bytes: BigInt(contextBytes) }));
}

export function contextRecord(offset: number, page: Uint8Array): Uint8Array {
  return record(TYPE.CONTEXT, page, offset);
}

/** The device's registers and what it was doing; nothing follows it. */
export function stateRecords(state: Uint8Array): Uint8Array[] {
  return [record(TYPE.STATE, state), record(TYPE.END, new Uint8Array())];
}

/** Bytes of the record of one page of context. */
export const CONTEXT_RECORD_BYTES = record_header.sizeBytes + CONTEXT_PAGE_BYTES;
/** Bytes of an identity record. */
export const IDENTITY_RECORD_BYTES = record_header.sizeBytes + identity_record.sizeBytes;

/** Bytes of the last two records with `stateBytes` of state. */
export function stateRecordsBytes(stateBytes: number): number {
  return 2 * record_header.sizeBytes + stateBytes;
}

/** Why a stream was refused. */
export class DeviceStateError extends Error {
  override readonly name = 'DeviceStateError';
}

/** Takes a stream in pieces. Every method throws DeviceStateError for what it cannot accept. */
export class StateReader {
  readonly #identity: DeviceIdentity;
  readonly #onContext: (offset: number, page: Uint8Array) => void;
  #pending: Uint8Array = new Uint8Array();
  #hasIdentity = false;
  #state: Uint8Array | undefined;
  #isComplete = false;

  constructor(identity: DeviceIdentity, onContext: (offset: number, page: Uint8Array) => void) {
    this.#identity = identity;
    this.#onContext = onContext;
  }

  write(bytes: Uint8Array): void {
    const joined = new Uint8Array(this.#pending.length + bytes.length);
    joined.set(this.#pending);
    joined.set(bytes, this.#pending.length);
    let at = 0;
    while (joined.length - at >= record_header.sizeBytes) {
      const header = record_header.decode(joined.subarray(at));
      if (header.magic !== MAGIC) throw new DeviceStateError('no record where one must begin');
      if (header.version !== VERSION) throw new DeviceStateError(`record version ${header.version}`);
      if (header.length > MAX_BODY_BYTES) throw new DeviceStateError(`record of ${header.length} bytes`);
      const end = at + record_header.sizeBytes + header.length;
      if (end > joined.length) break;
      const body = joined.subarray(at + record_header.sizeBytes, end);
      if (crc32(body) !== header.crc32) throw new DeviceStateError('checksum of a record does not match');
      this.#take(header.type, Number(header.offset), body);
      at = end;
    }
    this.#pending = joined.slice(at);
  }

  /** The device's state, when the stream has ended as it must. */
  finish(): Uint8Array {
    if (!this.#isComplete || this.#state === undefined) throw new DeviceStateError('the stream ends too early');
    if (this.#pending.length > 0) throw new DeviceStateError('something follows the end of the stream');
    return this.#state;
  }

  #take(type: number, offset: number, body: Uint8Array): void {
    if (this.#isComplete) throw new DeviceStateError('a record after the end');
    if (type === TYPE.IDENTITY) {
      this.#takeIdentity(body);
      return;
    }
    if (!this.#hasIdentity) throw new DeviceStateError('the first record does not say whose state this is');
    if (type === TYPE.CONTEXT) this.#takeContext(offset, body);
    else if (type === TYPE.STATE) this.#state = body.slice();
    else if (type === TYPE.END) this.#isComplete = true;
    else throw new DeviceStateError(`record of type ${type}`);
  }

  #takeIdentity(body: Uint8Array): void {
    if (body.length !== identity_record.sizeBytes) throw new DeviceStateError('identity of a wrong length');
    const { vendor, device, context_bytes } = identity_record.decode(body);
    const mine = this.#identity;
    if (vendor !== mine.vendor || device !== mine.device || context_bytes !== BigInt(mine.contextBytes))
      throw new DeviceStateError(
        `state of ${hexId(vendor, device)} with ${context_bytes} bytes of context, this is ${hexId(mine.vendor, mine.device)} with ${mine.contextBytes}`,
      );
    this.#hasIdentity = true;
  }

  #takeContext(offset: number, body: Uint8Array): void {
    const isPlace = offset % CONTEXT_PAGE_BYTES === 0 && offset + body.length <= this.#identity.contextBytes;
    if (!isPlace || body.length !== CONTEXT_PAGE_BYTES) throw new DeviceStateError(`context at ${offset}`);
    this.#onContext(offset, body);
  }
}

function hexId(vendor: number, device: number): string {
  return `${vendor.toString(16).padStart(4, '0')}:${device.toString(16).padStart(4, '0')}`;
}
