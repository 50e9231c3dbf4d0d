/** Physical memory against the plainest model there is: a map from page to 4096 bytes. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { Arena } from '../../src/core/arena.js';
import { PhysicalMemory } from '../../src/hardware/memory.js';
import type { PageRun } from '../../src/uapi/syscall.js';

const PAGE = 4096;
const KERNEL_FRAMES = 16;
const KERNEL_PFN = 0x1000;
/** The bank begins with the kernel window; the pages played with lie behind it. */
const FIRST_PFN = KERNEL_PFN + KERNEL_FRAMES;
const PAGES = 200;
const BANK = { start: BigInt(KERNEL_PFN * PAGE), last: BigInt((FIRST_PFN + PAGES) * PAGE - 1) };

const arena = Arena.create({ kernelFrames: KERNEL_FRAMES, storageFrames: 2048, kernelBasePfn: KERNEL_PFN });
const scratch = arena.allocFrame();

function stampBytes(stamp: number): Uint8Array {
  arena.fillStamp(scratch, stamp);
  return new Uint8Array(arena.frameBytes(scratch));
}

class Model {
  readonly pages = new Map<number, Uint8Array>();

  page(index: number): Uint8Array {
    return this.pages.get(index) ?? new Uint8Array(PAGE);
  }

  write(offset: number, bytes: Uint8Array): void {
    bytes.forEach((byte, i) => {
      const index = Math.floor((offset + i) / PAGE);
      const page = this.page(index);
      page[(offset + i) % PAGE] = byte;
      this.pages.set(index, page);
    });
  }

  apply(first: number, runs: readonly PageRun[]): void {
    for (const run of runs) {
      for (let i = 0; i < run.pages; i++) {
        const content = 'bytes' in run ? run.bytes : stampBytes(run.stamp + i * run.step);
        this.pages.set(first + run.firstPage + i, new Uint8Array(content));
      }
    }
  }
}

const step = fc.oneof(
  fc.record({
    what: fc.constant('write' as const),
    offset: fc.nat(PAGES * PAGE - 6000),
    length: fc.integer({ min: 1, max: 6000 }),
    fill: fc.integer({ min: 0, max: 255 }),
  }),
  fc.record({
    what: fc.constant('stamps' as const),
    page: fc.nat(PAGES - 1),
    pages: fc.integer({ min: 1, max: 150 }),
    stamp: fc.nat(1000),
    step: fc.constantFrom(0 as const, 1 as const),
  }),
  fc.record({ what: fc.constant('clear' as const), page: fc.nat(PAGES - 1), pages: fc.integer({ min: 1, max: 150 }) }),
  fc.record({
    what: fc.constant('copy' as const),
    from: fc.nat(PAGES / 2 - 1),
    pages: fc.integer({ min: 1, max: 99 }),
  }),
  fc.record({
    what: fc.constant('store64' as const),
    at: fc.nat((PAGES * PAGE) / 8 - 1),
    lo: fc.nat(0xffff),
    hi: fc.nat(0xffff),
  }),
);

it('behaves like a map of pages, frees what it took, and codes runs without loss', () => {
  const before = arena.storageFramesInUse;
  const memory = new PhysicalMemory(arena, [BANK]);
  const own = arena.storageFramesInUse;
  expect(own).toBe(before + 1);
  fc.assert(
    fc.property(fc.array(step, { maxLength: 25 }), (steps) => {
      memory.clearPages(FIRST_PFN, PAGES);
      const model = new Model();
      for (const s of steps) {
        switch (s.what) {
          case 'write': {
            const bytes = new Uint8Array(s.length).fill(s.fill);
            expect(memory.write(FIRST_PFN * PAGE + s.offset, bytes)).toBe(true);
            model.write(s.offset, bytes);
            break;
          }
          case 'stamps':
          case 'clear': {
            const pages = Math.min(s.pages, PAGES - s.page);
            const run =
              s.what === 'clear'
                ? ({ firstPage: 0, pages, stamp: 0, step: 0 } as const)
                : ({ firstPage: 0, pages, stamp: s.stamp, step: s.step } as const);
            memory.setPageStamps(FIRST_PFN + s.page, pages, run.stamp, run.step);
            model.apply(s.page, [run]);
            break;
          }
          case 'copy': {
            // The first half's pages onto the second half: what a migration does.
            const pages = Math.min(s.pages, PAGES / 2 - s.from);
            const runs = memory.pageContents(FIRST_PFN + s.from, pages);
            memory.setPageContents(FIRST_PFN + PAGES / 2 + s.from, runs);
            model.apply(PAGES / 2 + s.from, runs);
            break;
          }
          case 'store64': {
            expect(memory.store64(FIRST_PFN * PAGE + s.at * 8, s.lo, s.hi)).toBe(true);
            model.write(s.at * 8, new Uint8Array(Uint32Array.of(s.lo, s.hi).buffer));
            break;
          }
        }
      }
      for (let page = 0; page < PAGES; page++) {
        const bytes = memory.read((FIRST_PFN + page) * PAGE, PAGE);
        expect(Buffer.compare(bytes ?? new Uint8Array(), model.page(page)), `page ${page}`).toBe(0);
      }
      const decoded = new Model();
      const runs = memory.pageContents(FIRST_PFN, PAGES);
      decoded.apply(0, runs);
      expect(runs.reduce((sum, run) => sum + run.pages, 0)).toBe(PAGES);
      for (let page = 0; page < PAGES; page++)
        expect(Buffer.compare(decoded.page(page), model.page(page)), `coded page ${page}`).toBe(0);
    }),
    { numRuns: 60 },
  );
  memory.clearPages(FIRST_PFN, PAGES);
  memory.directory.trim();
  expect(arena.storageFramesInUse).toBe(own);
});
