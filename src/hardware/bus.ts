/**
 * The system bus: who answers at a physical address.
 *
 * RAM answers first, then register frames (SMMUs, ITSs, BARs of functions that decode memory). CPU accesses and translated
 * transactions of devices use the same decode; the latter carry their origin, because a doorbell needs to know who writes.
 */
import type { PhysicalMemory } from './memory.js';

/** Who a transaction comes from. `deviceId` is what interrupt controllers see (the StreamID). */
export type Origin =
  { readonly kind: 'cpu' } | { readonly kind: 'device'; readonly bdf: string; readonly deviceId: number };

/** Registers at a physical address. Accesses are 1, 2 or 4 bytes wide, aligned, and do not cross the frame. */
export interface MmioFrame {
  readonly name: string;
  /** What kind of end a DMA to this frame has. */
  readonly kind: 'registers' | 'doorbell' | 'peer';
  base(): number | undefined;
  readonly sizeBytes: number;
  read(offset: number, sizeBytes: number): number;
  write(offset: number, sizeBytes: number, value: number, origin: Origin): void;
}

/** Where an access to the bus ended. */
export interface BusEnd {
  readonly kind: 'memory' | 'doorbell' | 'peer' | 'nowhere';
  readonly where: string;
}

const CPU: Origin = { kind: 'cpu' };
const RAM: BusEnd = { kind: 'memory', where: 'RAM' };
const NOWHERE: BusEnd = { kind: 'nowhere', where: 'nothing answers' };

function endOf(frame: MmioFrame): BusEnd {
  return { kind: frame.kind === 'doorbell' ? 'doorbell' : 'peer', where: frame.name };
}

/** Widest access of at most 4 bytes that fits `left` bytes at `offset`. */
function accessWidth(offset: number, left: number): number {
  if (left >= 4 && offset % 4 === 0) return 4;
  return left >= 2 && offset % 2 === 0 ? 2 : 1;
}

/** Reads registers from `offset` on, in the widest aligned accesses. */
export function readFrame(
  lengthBytes: number,
  offset: number,
  read: (offset: number, sizeBytes: number) => number,
): Uint8Array {
  const out = new Uint8Array(lengthBytes);
  for (let at = 0; at < lengthBytes;) {
    const width = accessWidth(offset + at, lengthBytes - at);
    const value = read(offset + at, width);
    for (let i = 0; i < width; i++) out[at + i] = (value >>> (8 * i)) & 0xff;
    at += width;
  }
  return out;
}

/** Writes registers from `offset` on, in the widest aligned accesses. */
export function writeFrame(
  bytes: Uint8Array,
  offset: number,
  write: (offset: number, sizeBytes: number, value: number) => void,
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at < bytes.length;) {
    const width = accessWidth(offset + at, bytes.length - at);
    const value = width === 4 ? view.getUint32(at, true) : width === 2 ? view.getUint16(at, true) : view.getUint8(at);
    write(offset + at, width, value);
    at += width;
  }
}

/** The decode of one board. */
export class SystemBus {
  readonly memory: PhysicalMemory;
  readonly #frames: MmioFrame[] = [];

  constructor(memory: PhysicalMemory) {
    this.memory = memory;
  }

  attach(frame: MmioFrame): void {
    this.#frames.push(frame);
  }

  /** CPU load; undefined where no register frame answers. */
  mmioRead32(pa: number): number | undefined {
    const frame = this.#frameAt(pa, 4);
    return frame?.read(pa - (frame.base() ?? 0), 4);
  }

  /** CPU store; false where no register frame answers. */
  mmioWrite32(pa: number, value: number): boolean {
    const frame = this.#frameAt(pa, 4);
    frame?.write(pa - (frame.base() ?? 0), 4, value >>> 0, CPU);
    return frame !== undefined;
  }

  /** Reads for a device; the range lies in one 4 KiB page. */
  readFor(pa: number, lengthBytes: number): { readonly end: BusEnd; readonly bytes?: Uint8Array } {
    const bytes = this.memory.read(pa, lengthBytes);
    if (bytes !== undefined) return { end: RAM, bytes };
    const frame = this.#frameAt(pa, lengthBytes);
    if (frame === undefined) return { end: NOWHERE };
    const bytesRead = readFrame(lengthBytes, pa - (frame.base() ?? 0), (at, width) => frame.read(at, width));
    return { end: endOf(frame), bytes: bytesRead };
  }

  /** Writes for a device; the range lies in one 4 KiB page. */
  writeFor(origin: Origin, pa: number, bytes: Uint8Array): BusEnd {
    if (this.memory.write(pa, bytes)) return RAM;
    const frame = this.#frameAt(pa, bytes.length);
    if (frame === undefined) return NOWHERE;
    writeFrame(bytes, pa - (frame.base() ?? 0), (at, width, value) => frame.write(at, width, value, origin));
    return endOf(frame);
  }

  #frameAt(pa: number, lengthBytes: number): MmioFrame | undefined {
    return this.#frames.find((frame) => {
      const base = frame.base();
      return base !== undefined && pa >= base && pa + lengthBytes <= base + frame.sizeBytes;
    });
  }
}
