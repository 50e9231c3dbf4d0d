/** The parts of a run in one thread: the command queue; an address space by sharded and by the kernel's locks. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Arena } from '../../src/core/arena.js';
import { LockThread, MAX_THREADS } from '../../src/core/robust-lock.js';
import { CMD, CMD_OP, CMD_TLBI } from '../../src/hardware/smmu/records.js';
import type { AddressSpace } from '../../src/stress/address-space.js';
import { CommandConsumer, CommandProducer, QUEUE_ORDER } from '../../src/stress/command-queue.js';
import { MAX_RUNNING } from '../../src/stress/options.js';
import { newSpace } from './space.js';

test('main and everybody else have a bit in a lock', () => expect(MAX_RUNNING + 1).toBe(MAX_THREADS));

describe('command queue', () => {
  test('every command is consumed once, in order, across many turns of the queue', () => {
    const arena = Arena.create({ kernelFrames: 64, storageFrames: 64, kernelBasePfn: 4096 });
    const offset = arena.frameOffset(arena.allocFrame(QUEUE_ORDER));
    const words = arena.frameOffset(arena.allocFrame()) >>> 2;
    const self = new LockThread(arena, 1, words * 4);
    const consumed = words + 16;
    let isOnline = false;
    const producer = new CommandProducer(
      arena,
      offset,
      self,
      [{ isOnline: () => isOnline, consumedWord: consumed }],
      words + 32,
      false,
    );
    const consumer = new CommandConsumer(arena, offset, consumed);
    const seen: number[] = [];
    const consume = (): void => {
      consumer.consume((command) => void seen.push(CMD_TLBI.get(command, 'Address')));
    };
    const issue = (first: number, count: number): void => {
      const commands = Array.from({ length: count }, (_, i) =>
        CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_VA, Address: first + i }),
      );
      for (const gate of producer.issueAndSync(commands)) expect(gate).toBe('smmu:cmdq-issue');
    };
    issue(0, 5);
    consumer.start();
    isOnline = true;
    let next = 100;
    for (let round = 0; round < 60; round++) {
      const count = 1 + ((round * 37) % 300);
      issue(next, count);
      consume();
      next += count;
    }
    expect(seen).toEqual(Array.from({ length: next - 100 }, (_, i) => 100 + i));
    expect(CMD.sizeBytes).toBe(16);
  });
});

type Operation =
  | { readonly op: 'map'; readonly page: number; readonly pages: number; readonly at: number; readonly write: boolean }
  | { readonly op: 'auto'; readonly pages: number; readonly at: number }
  | { readonly op: 'copy'; readonly from: number; readonly page: number; readonly pages: number }
  | { readonly op: 'unmap'; readonly page: number; readonly pages: number }
  | { readonly op: 'dirty'; readonly page: number; readonly pages: number };

/** Around the borders of 1 GiB windows, so that areas cross them, and so far up that windows share a lock. */
const GIB_PAGES = 2 ** 18;
const page = fc
  .tuple(fc.constantFrom(0, 1, 2, 3, 17, 33), fc.integer({ min: -24, max: 24 }))
  .map(([window, offset]) => Math.max(1, window * GIB_PAGES + offset));
const pages = fc.integer({ min: 1, max: 20 });
const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({ op: fc.constant('map' as const), page, pages, at: fc.nat(900), write: fc.boolean() }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('auto' as const),
      pages: fc.integer({ min: 1, max: 600 }),
      at: fc.nat(900),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('copy' as const), from: page, page, pages }) },
  {
    weight: 4,
    arbitrary: fc.record({ op: fc.constant('unmap' as const), page, pages: fc.integer({ min: 1, max: 60 }) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ op: fc.constant('unmap' as const), page: fc.constant(0), pages: fc.constant(2 ** 35) }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('dirty' as const), page, pages }) },
);

const addressOf = (at: number): bigint => BigInt(at) * 4096n;

function apply(space: AddressSpace, step: Operation): unknown {
  const [buffer] = space.buffers;
  if (buffer === undefined) throw new Error('no memory');
  switch (step.op) {
    case 'map':
      return space.map(buffer, step.at, step.pages, addressOf(step.page), step.write);
    case 'auto':
      return space.map(buffer, step.at, step.pages, undefined, true);
    case 'copy':
      return space.copy(addressOf(step.from), step.pages, addressOf(step.page), false);
    case 'unmap':
      return space.unmap(addressOf(step.page), addressOf(step.page + step.pages) - 1n);
    case 'dirty':
      return space.readDirty(addressOf(step.page), addressOf(step.page + step.pages) - 1n);
  }
}

/** Everything that can be seen of an address space. */
function stateOf(space: AddressSpace): unknown {
  return {
    areas: [...space.iopt.areas.overlapping()].map((area) => [
      area.iova,
      area.last,
      area.startByte,
      area.pages?.npinned,
    ]),
    leaves: [...space.table.leaves()].map(({ firstPage, pageCount, paPage }) => [firstPage, pageCount, paPage]),
    books: [space.pins.pages, space.pinnedVm.value, space.lockedVm.value],
  };
}

describe('sharded locks', () => {
  test('answer what the one lock of the kernel answers', () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 40 }), (steps) => {
        const spaces = [newSpace({ locks: 'kernel' }), newSpace({ locks: 'sharded' })] as const;
        for (const step of steps) {
          expect(apply(spaces[1], step)).toEqual(apply(spaces[0], step));
          expect(stateOf(spaces[1])).toEqual(stateOf(spaces[0]));
        }
      }),
      { numRuns: 25 },
    );
  });
});

describe('deferred invalidation', () => {
  test('keeps IOVAs and pins until the flush; afterwards everything is as without it', () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 30 }), (steps) => {
        const strict = newSpace({ locks: 'kernel' });
        const deferred = newSpace({ locks: 'sharded', invalidation: 'deferred' });
        for (const step of steps) {
          expect(apply(deferred, step)).toEqual(apply(strict, step));
          deferred.thread.run(deferred.iopt.flush_unmapped());
          expect(stateOf(deferred)).toEqual(stateOf(strict));
        }
      }),
      { numRuns: 10 },
    );
    const space = newSpace({ locks: 'kernel', invalidation: 'deferred' });
    const map: Operation = { op: 'map', page: 16, pages: 4, at: 0, write: true };
    apply(space, map);
    expect(apply(space, { op: 'unmap', page: 16, pages: 4 })).toEqual({ rc: 0, pages: 4 });
    expect([space.pins.pages, [...space.table.leaves()].length, apply(space, map)]).toEqual([4, 0, -17]);
    space.thread.run(space.iopt.flush_unmapped());
    expect([space.pins.pages, apply(space, map)]).toEqual([0, addressOf(16)]);
  });
});
