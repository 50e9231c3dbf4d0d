/** The checker on histories written by hand: what is wrong is told, what may be so is not. */
import { beforeEach, describe, expect, test } from 'vitest';
import { HistoryChecker } from '../../src/stress/check.js';
import { DMA, History, OP, historyBytes } from '../../src/stress/history.js';

const PAGE = 0x1000;
const FRAME = 0x80100;

let clock: Int32Array<SharedArrayBuffer>;
let client: History;
let other: History;
let device: History;
let checker: HistoryChecker;

beforeEach(() => {
  clock = new Int32Array(new SharedArrayBuffer(4));
  const history = (thread: number): History => new History(thread, new SharedArrayBuffer(historyBytes(5000)), clock, 0);
  [client, other, device] = [history(2), history(3), history(4)];
  checker = new HistoryChecker();
});

function enter(page = PAGE, pages = 4, frame = FRAME): void {
  client.end(client.begin(OP.ENTER, page, pages, frame), 0);
}

function leave(page = PAGE, pages = 4): void {
  client.end(client.begin(OP.LEAVE, page, pages), pages);
}

/** A DMA that begins now and ends now. */
function dma(result: number, page = PAGE, frame = FRAME, write = false): void {
  device.dma(write ? OP.DMA_WRITE : OP.DMA_READ, page, frame, result, device.now(), 1);
}

function readDirty(...reported: number[]): void {
  const read = client.begin(OP.READ_DIRTY, PAGE, 4);
  for (const page of reported) client.dirty(page, 1);
  client.end(read, 0);
}

/** Kinds of complaint about what happened since the last call. */
function found(): string[] {
  checker.check([client, other], [device]);
  for (const history of [client, other, device]) history.reset();
  clock[0] = 0;
  return checker.violations.splice(0).map(({ kind }) => kind);
}

describe('translations', () => {
  test('one that fits is fine; one after the unmap is stale; one to another frame is wrong', () => {
    enter();
    dma(DMA.done, PAGE + 3, FRAME + 3);
    leave();
    expect(found()).toEqual([]);
    enter();
    leave();
    dma(DMA.done);
    expect(found()).toEqual(['stale-translation']);
    enter(PAGE, 4, FRAME + 100);
    dma(DMA.done);
    expect(found()).toEqual(['wrong-translation']);
  });

  test('one that overlaps the unmap may have come before it', () => {
    enter();
    const unmap = client.begin(OP.LEAVE, PAGE, 4);
    const invoked = device.now();
    client.end(unmap, 4);
    device.dma(OP.DMA_READ, PAGE, FRAME, DMA.done, invoked, 0);
    expect(found()).toEqual([]);
  });

  test('what was mapped in an earlier segment still is', () => {
    enter();
    expect(found()).toEqual([]);
    dma(DMA.done);
    leave();
    expect(found()).toEqual([]);
    dma(DMA.done);
    expect(found()).toEqual(['wrong-translation']);
  });

  test('a fault within a mapping is a lost translation; one while it comes or goes is not', () => {
    const map = client.begin(OP.ENTER, PAGE, 4, FRAME);
    dma(DMA.translation);
    client.end(map, 0);
    expect(found()).toEqual([]);
    dma(DMA.translation);
    expect(found()).toEqual(['lost-translation']);
  });

  test('pages nobody pins, tables that were given back, faults that cannot be', () => {
    enter();
    dma(DMA.unpinned);
    dma(DMA.freed);
    dma(DMA.other);
    expect(found()).toEqual(['unpinned', 'freed-table', 'fault']);
  });

  test('with a flush queue a translation may be used until the flush, and is counted', () => {
    enter();
    client.end(client.begin(OP.LEAVE_DEFERRED, PAGE, 4), 4);
    dma(DMA.done);
    client.end(client.begin(OP.FLUSH, 0, 0), 0);
    expect([found(), checker.counts.exposed]).toEqual([[], 1]);
    enter();
    client.end(client.begin(OP.LEAVE_DEFERRED, PAGE, 4), 4);
    client.end(client.begin(OP.FLUSH, 0, 0), 0);
    dma(DMA.done);
    expect(found()).toEqual(['stale-translation']);
  });

  test('a map that failed may have been seen, while it failed', () => {
    const map = client.begin(OP.ENTER, PAGE, 4, FRAME);
    dma(DMA.done);
    client.end(map, -12);
    expect(found()).toEqual([]);
    client.end(client.begin(OP.ENTER, PAGE, 4, FRAME), -12);
    dma(DMA.done);
    expect(found()).toEqual(['stale-translation']);
  });

  test('what a dead thread was mapping may be there or not, until it is taken back', () => {
    client.begin(OP.ENTER, PAGE, 4, FRAME);
    dma(DMA.done);
    dma(DMA.translation);
    expect(found()).toEqual([]);
    dma(DMA.done);
    other.end(other.begin(OP.LEAVE, PAGE, 4), 2);
    expect(found()).toEqual([]);
    dma(DMA.done);
    expect(found()).toEqual(['wrong-translation']);
  });
});

describe('maps', () => {
  test('two mappings of a page at once', () => {
    enter();
    other.end(other.begin(OP.ENTER, PAGE + 3, 4, FRAME), 0);
    expect(found()).toEqual(['mapped-twice']);
  });

  test('an unmap of a part, and one that says it unmapped something else', () => {
    enter();
    leave(PAGE, 2);
    expect(found()).toEqual(['split', 'unmapped-other']);
    enter(PAGE + 64);
    client.end(client.begin(OP.LEAVE, PAGE + 64, 4), 3);
    expect(found()).toEqual(['unmapped-other']);
  });
});

describe('dirty state', () => {
  test('a write is reported by the next read, or the report was lost', () => {
    enter();
    dma(DMA.done, PAGE + 1, FRAME + 1, true);
    readDirty(PAGE + 1);
    expect(found()).toEqual([]);
    dma(DMA.done, PAGE + 1, FRAME + 1, true);
    readDirty();
    expect(found()).toEqual(['dirty-lost']);
  });

  test('a report that overlaps the write counts', () => {
    enter();
    const invoked = device.now();
    readDirty(PAGE);
    device.dma(OP.DMA_WRITE, PAGE, FRAME, DMA.done, invoked, 1);
    readDirty();
    expect(found()).toEqual([]);
  });

  test('a write of an earlier segment is not forgotten; a page that was mapped anew has no past', () => {
    enter();
    dma(DMA.done, PAGE, FRAME, true);
    expect(found()).toEqual([]);
    readDirty();
    expect(found()).toEqual(['dirty-lost']);
    dma(DMA.done, PAGE, FRAME, true);
    expect(found()).toEqual([]);
    leave();
    enter();
    readDirty();
    expect(found()).toEqual([]);
  });

  test('a read of a part of a block makes the rest of it clean; of pages only what it was asked for', () => {
    const write = (frame: number): void => {
      enter(1024, 512, frame);
      dma(DMA.done, 1024 + 7, frame + 7, true);
      client.end(client.begin(OP.READ_DIRTY, 1024 + 100, 8), 0);
      client.end(client.begin(OP.READ_DIRTY, 1024, 512), 0);
      leave(1024, 512);
    };
    write(0x80200);
    expect(found()).toEqual([]);
    write(0x80201);
    expect(found()).toEqual(['dirty-lost']);
  });

  test('what a dead reader made clean is nobody else`s fault', () => {
    enter();
    dma(DMA.done, PAGE, FRAME, true);
    other.begin(OP.READ_DIRTY, PAGE, 4);
    readDirty();
    expect(found()).toEqual([]);
  });
});
