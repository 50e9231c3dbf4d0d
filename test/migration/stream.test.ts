/** Frames: round trip, damage, what a link is charged. */
import { describe, expect, test } from 'vitest';
import { decodeFrame, encodeFrame, StreamError, wireBytes, type Frame } from '../../src/migration/stream.js';

const pages: Frame = {
  kind: 'pages',
  round: 1,
  runs: [
    { firstPage: 0, pages: 100, stamp: 2 ** 48 + 5, step: 1 },
    { firstPage: 100, pages: 28, stamp: 0, step: 0 },
    { firstPage: 128, pages: 1, bytes: Uint8Array.from({ length: 4096 }, (_, i) => i & 0xff) },
  ],
};

const frames: Frame[] = [
  pages,
  { kind: 'start', guest: 'vm', machine: 'qemu-virt', segments: [{ offset: 0n, lengthBytes: 1n << 40n }] },
  { kind: 'state', lengthBytes: 65536 },
  { kind: 'end', pages: 2 ** 28 },
];

test.each(frames)('$kind survives the stream', (frame) => {
  const received = decodeFrame(encodeFrame(frame));
  expect(received).toEqual(frame);
});

describe('a receiver refuses', () => {
  const flip = (at: number): Uint8Array => {
    const bytes = encodeFrame(pages);
    bytes[at] = (bytes[at] ?? 0) ^ 0x40;
    return bytes;
  };
  test.each([
    ['another stream', flip(0), 'not a migration stream'],
    ['another version', flip(4), 'version'],
    ['a damaged length', flip(8), 'announced'],
    ['a damaged body', flip(200), 'checksum'],
    ['half a frame', encodeFrame(pages).subarray(0, 100), 'announced'],
    ['less than a header', new Uint8Array(3), '3 bytes'],
  ])('%s', (_what, bytes, message) => {
    expect(() => decodeFrame(bytes)).toThrow(StreamError);
    expect(() => decodeFrame(bytes)).toThrow(message);
  });
});

test('a page costs its header, and its bytes unless it is all zeroes', () => {
  expect(wireBytes(pages, 0)).toBe(16 + 129 * 8 + 101 * 4096);
});
