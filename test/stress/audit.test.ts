/** The books of an address space, one of them spoiled: the audit says which. */
import { expect, test } from 'vitest';
import type { AddressSpace } from '../../src/stress/address-space.js';
import { audit, tableFrames } from '../../src/stress/audit.js';
import { HistoryChecker } from '../../src/stress/check.js';
import { deviceThread } from '../../src/stress/spec.js';
import { newSpace } from './space.js';

const IOVA = 0x100000n;
const IOVA_PAGE = Number(IOVA / 4096n);
const PAGES = 3;

/** What the audit says of three mapped pages, after `spoil`. */
function complaints(spoil: (space: AddressSpace, checker: HistoryChecker) => void): string[] {
  const space = newSpace({ devices: 1 });
  const { arena } = space.thread;
  const otherFrames = arena.kernelFramesInUse - tableFrames(arena, space.table);
  const [buffer] = space.buffers;
  if (buffer === undefined) throw new Error('no memory');
  expect(space.map(buffer, 0, PAGES, IOVA, true)).toBe(IOVA);
  const checker = new HistoryChecker();
  spoil(space, checker);
  audit(space, checker, otherFrames);
  return checker.violations.map(({ kind, page, detail }) => `${kind} ${page}: ${detail}`);
}

test('books that agree', () => expect(complaints(() => undefined)).toEqual([]));

test('a pin that nobody has', () => {
  const found = complaints(({ pins, table }) => pins.add({ pfn: table.translate(IOVA_PAGE), pages: 1 }, 1));
  expect(found).toEqual(['audit -1: pages pinned and charged differ: {"pins":4,"pinned":3,"pinnedVm":3,"lockedVm":3}']);
});

test('a charge that was forgotten', () => {
  const found = complaints(({ pinnedVm }) => pinnedVm.subtract(1));
  expect(found).toEqual(['audit -1: pages pinned and charged differ: {"pins":3,"pinned":3,"pinnedVm":2,"lockedVm":3}']);
});

test('a leaf that is missing', () => {
  const found = complaints(({ table }) => table.unmapStep(IOVA_PAGE + 1, 1, { head: 0 }));
  expect(found).toMatchObject([
    expect.stringMatching(/^audit 257: the table shows page -?\d+ where page \d+ is pinned$/),
    'audit -1: the table has leaves for 2 pages, areas for 3',
  ]);
});

test('a leaf that belongs to nothing', () => {
  const found = complaints(({ table }) => {
    const pa = table.translate(IOVA_PAGE);
    expect(table.mapStep(IOVA_PAGE + PAGES, pa, 1, 0x400, 0, { head: 0 })).toBe(1);
  });
  expect(found).toEqual(['audit -1: the table has leaves for 4 pages, areas for 3']);
});

test('a frame that is neither in the tree nor free', () => {
  const found = complaints(({ thread }) => expect(thread.arena.allocKernel(0)).not.toBe(0));
  expect(found).toEqual(['audit -1: 1 table frames are neither in the tree nor free']);
});

test('an area that is still hidden', () => {
  const found = complaints(({ iopt }) => {
    for (const area of iopt.areas.overlapping()) area.pages = undefined;
  });
  expect(found[0]).toBe(`audit ${IOVA_PAGE}: an area is hidden although nobody is at work`);
});

test('memory that does not hold what a device wrote there last', () => {
  const found = complaints(({ table, thread: { options } }, checker) => {
    checker.lastTags.set(deviceThread(options, 0), new Map([[table.translate(IOVA_PAGE), 77]]));
  });
  expect(found).toEqual([
    expect.stringMatching(/^memory -1: page \d+ holds tag 0 of device 0, which wrote 77 there last$/),
  ]);
});
