/** Recorded histories: what a thread leaves behind, and how much of it can be checked. */
import { expect, test } from 'vitest';
import { checkHistory } from '../../src/checks/check-history.js';
import { HistoryWriter, createHistoryBuffer, createStampCounter } from '../../src/checks/history.js';
import { recordHistory } from '../../src/cli/bench/history.js';

function twoThreads(): { buffers: SharedArrayBuffer[]; writers: [HistoryWriter, HistoryWriter] } {
  const stamps = createStampCounter();
  const buffers = [createHistoryBuffer(8), createHistoryBuffer(8)] as const;
  const writers: [HistoryWriter, HistoryWriter] = [
    new HistoryWriter(buffers[0], stamps),
    new HistoryWriter(buffers[1], stamps),
  ];
  return { buffers: [...buffers], writers };
}

test('buffers are merged by their stamps', () => {
  const { buffers, writers } = twoThreads();
  const [cpu, device] = writers;
  cpu.beginMap(7, 0x10, 2);
  cpu.extent(0x10, 1, 0x123);
  cpu.extent(0x11, 1, 0x99);
  cpu.end(0);
  device.beginTranslate(2, 0x11);
  device.end(0, 0x99);
  cpu.beginUnmap(7, 0x10, 2);
  cpu.extent(0x10, 2);
  cpu.end(0, 2);
  device.beginTranslate(2, 0x10);
  device.end(0, 0x123);
  const result = checkHistory(buffers);
  expect(result).toMatchObject({
    verdict: 'fail',
    operations: 4,
    pages: 2,
    configurations: expect.any(Number) as number,
  });
  expect(result.violations.map(({ sentence }) => sentence)).toEqual([
    "device 2's access at op 3 reached frame 0x123 at page 0x10, but UNMAP (op 2) of it returned before the access was " +
      'issued; it might have seen a fault',
  ]);
});

test('a thread that dies leaves an operation that may or may not have happened', () => {
  for (const frame of [-1, 0x123]) {
    const { buffers, writers } = twoThreads();
    writers[0].beginMap(0, 0x10, 1);
    writers[0].extent(0x10, 1, 0x123);
    writers[1].beginTranslate(0, 0x10);
    writers[1].end(0, frame);
    expect(checkHistory(buffers).verdict).toBe('pass');
  }
});

test('a buffer says when it is full, and takes no more', () => {
  const writer = new HistoryWriter(createHistoryBuffer(2), createStampCounter());
  writer.beginMap(0, 0, 1);
  expect(writer.hasRoom(1)).toBe(true);
  expect(writer.hasRoom(2)).toBe(false);
  writer.extent(0, 1, 5);
  expect(() => writer.beginUnmap(0, 0, 1)).toThrow(RangeError);
});

test('a long history of many threads is checked without a search where nothing overlaps', () => {
  const result = checkHistory(recordHistory(100_000, 8, 1000));
  expect(result).toMatchObject({ verdict: 'pass', operations: 100_000, configurations: 0 });
});
