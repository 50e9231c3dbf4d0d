/**
 * The migration stream: what travels over a link, framed.
 *
 * A frame is a 16-byte header (magic, version, body length, CRC-32 of the body) and a body packed by msgpackr. The
 * receiver refuses a frame that is cut, damaged or of another version. Pages travel as runs, but the link is charged for
 * what a VMM really sends (QEMU's RAM stream): 8 bytes of page header each, and 4096 bytes more for a page that is not all
 * zeroes; see {@link wireBytes}.
 */
import { crc32 } from 'node:zlib';
import { Packr } from '../layout/msgpack.js';
import { defineStruct, u16, u32 } from '../layout/struct.js';
import type { PageRun } from '../uapi/syscall.js';
import type { BackingSegment } from '../vmm/guest-memory.js';
import type { MachineName } from '../vmm/machines.js';
import { GUEST_PAGE_BYTES } from '../vmm/page-set.js';
import { countPages, countZeroPages } from './page-runs.js';

const STREAM_VERSION = 2;

/** What the VMM restores of a device's configuration space, and interrupts the guest has not taken, by vector. */
export interface DeviceConfig {
  readonly command: number;
  readonly vectors: number;
  readonly interrupts: readonly number[];
}

/** One message of the stream. */
export type Frame =
  /** What the destination must be able to hold. */
  | {
      readonly kind: 'start';
      readonly guest: string;
      readonly machine: MachineName;
      readonly segments: readonly BackingSegment[];
    }
  /** Contents of pages of the backing. Round 0 is the first copy; the last round is sent while the guest stands still. */
  | { readonly kind: 'pages'; readonly round: number; readonly runs: readonly PageRun[] }
  /** State of the device `index`, as its driver gives it. */
  | { readonly kind: 'device'; readonly index: number; readonly bytes: Uint8Array }
  /** A device's initial data is complete: the destination acknowledges when it has loaded it. */
  | { readonly kind: 'initial-sent'; readonly index: number }
  /** Follows all state of the device. */
  | { readonly kind: 'config'; readonly index: number; readonly config: DeviceConfig }
  /** State of vCPUs and emulated devices, `lengthBytes` long. */
  | { readonly kind: 'state'; readonly lengthBytes: number }
  /** Nothing follows; `pages` were sent in all. */
  | { readonly kind: 'end'; readonly pages: number };

const frame_header = defineStruct('frame_header', { magic: u32, version: u16, reserved: u16, length: u32, crc32: u32 });
/** `IOVD`, little-endian. */
const MAGIC = 0x44564f49;
const PAGE_HEADER_BYTES = 8;

const packr = new Packr({ useRecords: false });
const KINDS: readonly string[] = ['start', 'pages', 'device', 'initial-sent', 'config', 'state', 'end'];

/** A frame that cannot be understood: cut, damaged, or of another version. */
export class StreamError extends Error {
  override readonly name = 'StreamError';
}

/** Bytes of a frame. */
export function encodeFrame(frame: Frame): Uint8Array {
  const body = packr.pack(frame);
  const header = frame_header.encode({
    magic: MAGIC,
    version: STREAM_VERSION,
    length: body.length,
    crc32: crc32(body),
  });
  const bytes = new Uint8Array(header.length + body.length);
  bytes.set(header);
  bytes.set(body, header.length);
  return bytes;
}

/**
 * Reads a frame. `isChecked` false: whatever its checksum says.
 *
 * @throws StreamError.
 */
export function decodeFrame(bytes: Uint8Array, isChecked = true): Frame {
  if (bytes.length < frame_header.sizeBytes) throw new StreamError(`frame of ${bytes.length} bytes`);
  const header = frame_header.decode(bytes);
  if (header.magic !== MAGIC) throw new StreamError('not a migration stream');
  if (header.version !== STREAM_VERSION) throw new StreamError(`stream version ${header.version}`);
  const body = bytes.subarray(frame_header.sizeBytes);
  if (body.length !== header.length) throw new StreamError(`body of ${body.length} bytes, ${header.length} announced`);
  if (isChecked && crc32(body) !== header.crc32) throw new StreamError('checksum does not match');
  const frame: unknown = packr.unpack(body);
  if (!isFrame(frame)) throw new StreamError('unknown frame');
  return frame;
}

function isFrame(value: unknown): value is Frame {
  return typeof value === 'object' && value !== null && 'kind' in value && KINDS.includes(value.kind as string);
}

/** Bytes on a link of a frame that has `encodedBytes` here. */
export function wireBytes(frame: Frame, encodedBytes: number): number {
  switch (frame.kind) {
    case 'start':
    case 'device':
    case 'initial-sent':
    case 'config':
    case 'end':
      return encodedBytes;
    case 'state':
      return frame_header.sizeBytes + frame.lengthBytes;
    case 'pages':
      return frame_header.sizeBytes + pagesWireBytes(countPages(frame.runs), countZeroPages(frame.runs));
  }
}

/** Bytes that `pages` pages, `zeroPages` of them all zeroes, occupy on a link. */
export function pagesWireBytes(pages: number, zeroPages = 0): number {
  return pages * PAGE_HEADER_BYTES + (pages - zeroPages) * GUEST_PAGE_BYTES;
}
