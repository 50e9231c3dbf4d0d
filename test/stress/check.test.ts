/** The checker on histories written by hand: what is wrong is told, what may be so is not. */
import { beforeEach, describe, expect, test } from 'vitest';
import { HistoryChecker } from '../../src/stress/check.js';
import { ACCESS, DMA, History, OP, historyBytes } from '../../src/stress/history.js';
import { EBUSY, EEXIST, EFAULT, ENOENT, ENOMEM } from '../../src/uapi/errno.js';

const PAGE = 0x1000;
const FRAME = 0x80100;
const ALL = ACCESS.read | ACCESS.write;

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

function enter(page = PAGE, pages = 4, frame = FRAME, access = ALL, history = client): void {
  history.end(history.begin(OP.ENTER, page, pages, frame, access), 0);
}

function leave(page = PAGE, pages = 4, history = client): void {
  history.end(history.begin(OP.LEAVE, page, pages), pages);
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
    const map = client.begin(OP.ENTER, PAGE, 4, FRAME, ALL);
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
    const map = client.begin(OP.ENTER, PAGE, 4, FRAME, ALL);
    dma(DMA.done);
    client.end(map, -12);
    expect(found()).toEqual([]);
    client.end(client.begin(OP.ENTER, PAGE, 4, FRAME, ALL), -12);
    dma(DMA.done);
    expect(found()).toEqual(['stale-translation']);
  });

  test('what a dead thread was mapping may be there or not, until it is taken back', () => {
    client.begin(OP.ENTER, PAGE, 4, FRAME, ALL);
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

describe('permissions', () => {
  test('a write goes through a mapping that allows it, and no other', () => {
    enter(PAGE, 4, FRAME, ACCESS.read);
    dma(DMA.done);
    expect(found()).toEqual([]);
    dma(DMA.done, PAGE, FRAME, true);
    expect(found()).toEqual(['forbidden-access']);
    leave();
    enter();
    dma(DMA.done, PAGE, FRAME, true);
    expect(found()).toEqual([]);
  });

  test('a write that overlaps the change from writable to read-only may have come before it', () => {
    enter();
    const invoked = device.now();
    leave();
    enter(PAGE, 4, FRAME, ACCESS.read);
    device.dma(OP.DMA_WRITE, PAGE, FRAME, DMA.done, invoked, 1);
    device.dma(OP.DMA_WRITE, PAGE, FRAME, DMA.permission, invoked, 1);
    expect(found()).toEqual([]);
  });

  test('a refusal where a mapping allows the access, and one by a mapping that was never there', () => {
    enter(PAGE, 4, FRAME, ACCESS.read);
    dma(DMA.permission, PAGE, -1, true);
    expect(found()).toEqual([]);
    leave();
    expect(found()).toEqual([]);
    dma(DMA.permission, PAGE, -1, true);
    expect(found()).toEqual(['lost-permission']);
    enter();
    dma(DMA.permission, PAGE, -1, true);
    expect(found()).toEqual(['lost-permission']);
  });
});

/** A call of a thread with what it did in it. */
function call(history: History, op: number, page: number, pages: number, result: number, body = (): void => undefined) {
  const record = history.begin(op, page, pages, op === OP.COPY ? PAGE : -1, op === OP.UNMAP ? 0 : ALL);
  body();
  history.end(record, result);
}

function map(page = PAGE, pages = 4, history = client): void {
  call(history, OP.MAP, page, pages, 0, () => enter(page, pages, FRAME, ALL, history));
}

function unmap(page = PAGE, pages = 4, history = client): void {
  call(history, OP.UNMAP, page, pages, pages, () => leave(page, pages, history));
}

describe('answers', () => {
  test('calls that did what they say', () => {
    map();
    unmap();
    call(client, OP.UNMAP, PAGE, 4, 0);
    map();
    call(client, OP.COPY, PAGE + 16, 4, 0, () => enter(PAGE + 16));
    call(client, OP.MAP, PAGE, 4, -EFAULT);
    expect(found()).toEqual([]);
    call(client, OP.UNMAP, PAGE - 1, 64, 8, () => {
      leave();
      leave(PAGE + 16);
    });
    expect(found()).toEqual([]);
  });

  test('an unmap that succeeds without doing anything, also where it covers the mapping only in part', () => {
    map();
    call(other, OP.UNMAP, PAGE, 4, 0);
    expect(found()).toEqual(['answer']);
    call(other, OP.UNMAP, PAGE + 3, 1, 0);
    expect(found()).toEqual(['answer']);
  });

  test('an unmap may miss what comes or goes while it runs', () => {
    const unmapping = other.begin(OP.UNMAP, PAGE, 4);
    map();
    other.end(unmapping, 0);
    expect(found()).toEqual([]);
    const record = other.begin(OP.UNMAP, PAGE, 4);
    unmap();
    other.end(record, 0);
    expect(found()).toEqual([]);
  });

  test('an unmap that counts other pages than it took out, or takes some that it was not given', () => {
    map();
    call(client, OP.UNMAP, PAGE, 4, 3, () => leave());
    expect(found()).toEqual(['answer']);
    map();
    call(client, OP.UNMAP, PAGE + 8, 4, 4, () => leave());
    expect(found()).toEqual(['answer']);
  });

  test('a map for other accesses than were asked for', () => {
    call(client, OP.MAP, PAGE, 4, 0, () => enter(PAGE, 4, FRAME, ACCESS.read));
    expect(found()).toEqual(['answer']);
  });

  test('a map that shows nothing, or not all, or elsewhere, or takes it out again', () => {
    call(client, OP.MAP, PAGE, 4, 0);
    expect(found()).toEqual(['answer']);
    call(client, OP.MAP, PAGE, 4, 0, () => enter(PAGE, 3));
    expect(found()).toEqual(['answer']);
    call(client, OP.MAP, PAGE + 16, 4, 0, () => enter(PAGE + 32));
    expect(found()).toEqual(['answer']);
    call(client, OP.MAP, PAGE + 64, 4, 0, () => {
      enter(PAGE + 64);
      leave(PAGE + 64);
    });
    expect(found()).toEqual(['answer']);
  });

  test('a map that fails leaves nothing', () => {
    call(client, OP.MAP, PAGE, 4, -ENOMEM, () => {
      enter();
      leave();
    });
    expect(found()).toEqual([]);
    call(client, OP.MAP, PAGE, 4, -ENOMEM, () => enter());
    expect(found()).toEqual(['answer']);
  });

  test('EEXIST needs somebody`s pages, or somebody who may have taken the IOVAs', () => {
    call(other, OP.MAP, PAGE, 4, -EEXIST);
    expect(found()).toEqual(['answer']);
    map();
    call(other, OP.MAP, PAGE + 3, 4, -EEXIST);
    expect(found()).toEqual([]);
    call(other, OP.MAP, PAGE + 4, 4, -EEXIST);
    expect(found()).toEqual(['answer']);
    const unmapping = client.begin(OP.UNMAP, PAGE, 4);
    leave();
    call(other, OP.MAP, PAGE, 4, -EEXIST);
    client.end(unmapping, 4);
    expect(found()).toEqual([]);
  });

  test.each([
    ['failed', PAGE + 2, -ENOMEM, []],
    ['failed, anywhere', -1, -ENOMEM, []],
    ['never returned', PAGE + 2, undefined, []],
    ['failed elsewhere', PAGE + 4, -ENOMEM, ['answer']],
    ['had got EEXIST itself', PAGE + 2, -EEXIST, ['answer', 'answer']],
  ])('a map that %s beside an EEXIST', (_what, page, result, kinds) => {
    const mapping = client.begin(OP.MAP, page, 4);
    call(other, OP.MAP, PAGE, 4, -EEXIST);
    if (result !== undefined) client.end(mapping, result);
    expect(found()).toEqual(kinds);
  });

  test('EBUSY needs somebody who maps or unmaps', () => {
    map();
    call(other, OP.UNMAP, PAGE, 4, -EBUSY);
    expect(found()).toEqual(['answer']);
    const unmapping = client.begin(OP.UNMAP, PAGE, 4);
    leave();
    call(other, OP.UNMAP, PAGE + 2, 8, -EBUSY);
    client.end(unmapping, 4);
    expect(found()).toEqual([]);
    const mapping = client.begin(OP.MAP, PAGE, 4, -1, ALL);
    call(other, OP.UNMAP, PAGE + 2, 8, -EBUSY);
    enter();
    client.end(mapping, 0);
    expect(found()).toEqual([]);
    client.begin(OP.UNMAP, PAGE, 4);
    call(other, OP.UNMAP, PAGE, 4, -EBUSY);
    expect(found()).toEqual([]);
  });

  test('EBUSY is not explained by what the unmap took out itself', () => {
    map();
    call(client, OP.UNMAP, PAGE, 16, -EBUSY, () => leave());
    expect(found()).toEqual(['answer']);
  });

  test('an unmap that stops has done what lies below', () => {
    map();
    const mapping = client.begin(OP.MAP, PAGE + 8, 4, -1, ALL);
    call(other, OP.UNMAP, PAGE, 16, -EBUSY);
    enter(PAGE + 8);
    client.end(mapping, 0);
    expect(found()).toEqual(['answer']);
    call(other, OP.UNMAP, PAGE, 10, -ENOENT);
    expect(found()).toEqual(['answer']);
    call(other, OP.UNMAP, PAGE + 1, 16, -ENOENT);
    expect(found()).toEqual([]);
  });

  test('ENOENT of an unmap needs an area that reaches out of its range', () => {
    map();
    call(other, OP.UNMAP, PAGE, 4, -ENOENT);
    expect(found()).toEqual(['answer']);
    call(other, OP.UNMAP, PAGE + 1, 4, -ENOENT);
    call(other, OP.UNMAP, PAGE - 8, 9, -ENOENT);
    expect(found()).toEqual([]);
  });

  test('ENOENT of an unmap is explained by an area that came where it had taken one out, and reaches beyond', () => {
    map();
    call(client, OP.UNMAP, PAGE, 8, -ENOENT, () => {
      leave();
      map(PAGE, 8, other);
    });
    expect(found()).toEqual([]);
    // Nothing begins below the place where it went on to look.
    unmap(PAGE, 8, other);
    map();
    call(client, OP.UNMAP, PAGE, 8, -ENOENT, () => {
      leave();
      map(PAGE + 4, 4, other);
    });
    expect(found()).toEqual(['answer']);
  });

  test('an area of several runs is one', () => {
    call(client, OP.MAP, PAGE, 4, 0, () => {
      enter(PAGE, 2);
      enter(PAGE + 2, 2, FRAME + 64);
    });
    call(other, OP.UNMAP, PAGE, 2, -ENOENT);
    expect(found()).toEqual([]);
  });

  test('with a flush queue IOVAs are taken until the call that flushes is over', () => {
    map();
    call(client, OP.UNMAP, PAGE, 4, 4, () => client.end(client.begin(OP.LEAVE_DEFERRED, PAGE, 4), 4));
    call(other, OP.MAP, PAGE, 4, -EEXIST);
    call(client, OP.UNMAP, PAGE, 4, -EBUSY);
    const flushing = client.begin(OP.UNMAP, PAGE + 64, 4);
    client.end(client.begin(OP.FLUSH, 0, 0), 0);
    call(other, OP.MAP, PAGE, 4, -EEXIST);
    client.end(flushing, 0);
    expect(found()).toEqual([]);
    call(other, OP.MAP, PAGE, 4, -EEXIST);
    expect(found()).toEqual(['answer']);
  });

  test('a copy shows what its source showed; ENOENT needs a source with a hole', () => {
    map();
    call(other, OP.COPY, PAGE + 16, 4, -ENOENT);
    expect(found()).toEqual(['answer']);
    call(other, OP.COPY, PAGE + 16, 5, -ENOENT);
    call(other, OP.COPY, PAGE + 16, 4, 0, () => enter(PAGE + 16, 4, FRAME, ALL, other));
    expect(found()).toEqual([]);
    call(other, OP.COPY, PAGE + 32, 4, 0, () => enter(PAGE + 32, 4, FRAME + 1, ALL, other));
    expect(found()).toEqual(['answer']);
    client.begin(OP.UNMAP, PAGE, 4);
    call(other, OP.COPY, PAGE + 16, 4, -ENOENT);
    expect(found()).toEqual([]);
  });

  test('the area of a client that died before it was told its place may be any', () => {
    client.begin(OP.MAP, -1, 8, -1, ALL);
    enter();
    enter(PAGE + 4, 4, FRAME + 64);
    call(other, OP.UNMAP, PAGE, 4, -ENOENT);
    call(other, OP.UNMAP, PAGE + 4, 4, -EBUSY);
    expect(found()).toEqual([]);
    call(other, OP.UNMAP, PAGE, 4, -ENOENT);
    expect(found()).toEqual([]);
  });
});

describe('maps', () => {
  test('two mappings of a page at once', () => {
    enter();
    other.end(other.begin(OP.ENTER, PAGE + 3, 4, FRAME, ALL), 0);
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

  test('the reader of a part of a block may die: the rest of it is clean all the same', () => {
    enter(1024, 512, 0x80200);
    dma(DMA.done, 1024 + 300, 0x80200 + 300, true);
    client.begin(OP.READ_DIRTY, 1024, 100);
    other.end(other.begin(OP.READ_DIRTY, 1024, 512), 0);
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
