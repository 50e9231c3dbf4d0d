/**
 * The DMA engine: a PCI function that copies, fills and sums memory by DMA and interrupts when done.
 *
 * Its registers are src/uapi/dma-engine.ts, which its drivers use too. A transfer is a task; a reset abandons it. Bytes move
 * in pieces of a page; a piece that was aborted ends the transfer with an error. A transfer that a migration interrupts goes on in
 * the card that its state is loaded into, from the piece it had come to.
 */
import { repeatedWord } from '../../layout/bytes.js';
import { joinWords } from '../../layout/bits.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import {
  DMA_COMMAND,
  DMA_COMPLETED,
  DMA_DST,
  DMA_ENGINE_ID,
  DMA_ENGINE_MAX_LENGTH,
  DMA_ENGINE_REGISTER_BAR,
  DMA_ERROR,
  DMA_ERROR_CODE,
  DMA_ID,
  DMA_LENGTH,
  DMA_OP,
  DMA_PATTERN,
  DMA_SRC,
  DMA_STATUS,
  DMA_SUM,
  fnv1a32,
} from '../../uapi/dma-engine.js';
import { defineStruct, u32 } from '../../layout/struct.js';
import type { PciFunction } from '../pcie/function.js';
import { DeviceStateError } from './migration-state.js';
import type { MigratableModel } from './migration-unit.js';

const PIECE_BYTES = 4096;
const REGISTER_WORDS = 16;

/** A transfer under way: bytes moved, the sum over those that were read. `command` is 0 when there is none. */
const transfer_state = defineStruct('transfer_state', { command: u32, length: u32, done: u32, sum: u32 });

interface Transfer {
  readonly command: number;
  readonly length: number;
  done: number;
  sum: number;
}

/** The device behind one function. */
export class DmaEngine implements MigratableModel {
  readonly #runtime: NodeRuntime;
  readonly #fn: PciFunction;
  readonly #registers = new Uint32Array(REGISTER_WORDS);
  /** Grows with every reset: a transfer of an earlier life stops. */
  #life = 0;
  #transfer: Transfer | undefined;

  constructor(runtime: NodeRuntime, fn: PciFunction) {
    this.#runtime = runtime;
    this.#fn = fn;
    this.reset();
  }

  reset(): void {
    sharedWrite(this, 'transfer');
    this.#life++;
    this.#transfer = undefined;
    this.#registers.fill(0);
    this.#set(DMA_ID.offset, DMA_ENGINE_ID);
  }

  barRead(bar: number, offset: number, sizeBytes: number): number {
    if (bar !== DMA_ENGINE_REGISTER_BAR) return 0;
    const word = this.#get(offset & ~3);
    const value = word >>> (8 * (offset & 3));
    return sizeBytes >= 4 ? value : value & (2 ** (8 * sizeBytes) - 1);
  }

  /** Registers take whole words; narrower writes are ignored. */
  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void {
    if (bar !== DMA_ENGINE_REGISTER_BAR || sizeBytes !== 4) return;
    const isWritable = offset >= DMA_SRC.offset && offset <= DMA_PATTERN.offset;
    if (isWritable) this.#set(offset, value);
    else if (offset === DMA_COMMAND.offset && DMA_STATUS.get([this.#get(DMA_STATUS.offset)], 'BUSY') === 0)
      this.#start(value);
  }

  /** Registers, then the transfer under way. */
  saveState(): Uint8Array {
    sharedRead(this, 'transfer');
    sharedRead(this, 'registers');
    const bytes = new Uint8Array(REGISTER_WORDS * u32.sizeBytes + transfer_state.sizeBytes);
    const view = new DataView(bytes.buffer);
    this.#registers.forEach((word, i) => u32.write(view, i * u32.sizeBytes, word));
    bytes.set(transfer_state.encode(this.#transfer ?? {}), REGISTER_WORDS * u32.sizeBytes);
    return bytes;
  }

  loadState(bytes: Uint8Array): void {
    sharedWrite(this, 'transfer');
    sharedWrite(this, 'registers');
    const registerBytes = REGISTER_WORDS * u32.sizeBytes;
    if (bytes.length !== registerBytes + transfer_state.sizeBytes)
      throw new DeviceStateError(`state of a DMA engine has ${bytes.length} bytes`);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    for (let i = 0; i < REGISTER_WORDS; i++) this.#registers[i] = u32.read(view, i * u32.sizeBytes);
    const transfer = transfer_state.decode(bytes.subarray(registerBytes));
    this.#transfer = transfer.command === 0 ? undefined : { ...transfer };
  }

  resume(): void {
    sharedRead(this, 'transfer');
    if (this.#transfer !== undefined) this.#spawn(this.#transfer);
  }

  #start(command: number): void {
    this.#set(DMA_COMMAND.offset, command);
    this.#set(DMA_STATUS.offset, DMA_STATUS.make({ BUSY: 1 })[0] ?? 0);
    sharedWrite(this, 'transfer');
    this.#transfer = { command, length: this.#get(DMA_LENGTH.offset), done: 0, sum: fnv1a32(new Uint8Array()) };
    this.#spawn(this.#transfer);
  }

  #spawn(transfer: Transfer): void {
    this.#runtime.spawn(`${this.#fn.bdf}/transfer`, this.#run(transfer, this.#life));
  }

  *#run(transfer: Transfer, life: number): Task<void> {
    const { OP, IRQ, VECTOR } = DMA_COMMAND.decode([transfer.command]);
    const { length } = transfer;
    const isKnown = OP === DMA_OP.COPY || OP === DMA_OP.FILL || OP === DMA_OP.SUM;
    const isSane = isKnown && length >= 1 && length <= DMA_ENGINE_MAX_LENGTH;
    const error = isSane ? yield* this.#move(OP, transfer, life) : DMA_ERROR_CODE.BAD_COMMAND;
    sharedWrite(this, 'transfer');
    if (life !== this.#life) return;
    this.#transfer = undefined;
    this.#set(DMA_ERROR.offset, error);
    this.#set(DMA_STATUS.offset, DMA_STATUS.make(error === DMA_ERROR_CODE.NONE ? { DONE: 1 } : { ERROR: 1 })[0] ?? 0);
    this.#set(DMA_COMPLETED.offset, this.#get(DMA_COMPLETED.offset) + 1);
    if (IRQ === 1) yield* this.#fn.raise(VECTOR);
  }

  /** Moves what is left of a transfer. A piece counts when it is done, so one that was interrupted by a migration is repeated. */
  *#move(op: number, transfer: Transfer, life: number): Task<number> {
    const src = BigInt(joinWords(this.#get(DMA_SRC.offset), 0)) | (BigInt(this.#get(DMA_SRC.offset + 4)) << 32n);
    const dst = BigInt(joinWords(this.#get(DMA_DST.offset), 0)) | (BigInt(this.#get(DMA_DST.offset + 4)) << 32n);
    while (transfer.done < transfer.length && life === this.#life) {
      sharedRead(this, 'transfer', transfer.done);
      const { done } = transfer;
      const size = Math.min(PIECE_BYTES, transfer.length - done);
      let { sum } = transfer;
      let bytes = op === DMA_OP.FILL ? repeatedWord(this.#get(DMA_PATTERN.offset), size) : undefined;
      if (bytes === undefined) {
        const read = yield* this.#fn.dmaRead(src + BigInt(done), size);
        if (!read.ok) return DMA_ERROR_CODE.READ_ABORTED;
        bytes = read.bytes ?? new Uint8Array(size);
        sum = fnv1a32(bytes, sum);
      }
      if (op !== DMA_OP.SUM) {
        const written = yield* this.#fn.dmaWrite(dst + BigInt(done), bytes);
        if (!written.ok) return DMA_ERROR_CODE.WRITE_ABORTED;
      }
      sharedWrite(this, 'transfer', done, done + size);
      transfer.done = done + size;
      transfer.sum = sum;
    }
    if (life === this.#life) this.#set(DMA_SUM.offset, transfer.sum);
    return DMA_ERROR_CODE.NONE;
  }

  #get(offset: number): number {
    sharedRead(this, 'registers');
    return this.#registers[offset >> 2] ?? 0;
  }

  #set(offset: number, value: number): void {
    sharedWrite(this, 'registers');
    if (offset >> 2 < REGISTER_WORDS) this.#registers[offset >> 2] = value;
  }
}
