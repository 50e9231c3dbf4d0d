/**
 * A host's physical memory: sparse, so that a TiB can be described without being there.
 *
 * What a page holds is, in this order: the frame of the kernel window it is; the frame or stamp the arena's physical
 * directory has for it; the stamp of the *extent* it lies in; zeroes. A stamp is a number that names a page's content
 * (core: 0 is all zeroes, any other a pseudo-random page). Extents give runs of pages stamps in one step, so filling or
 * comparing a guest of a TiB costs what its runs cost. Writing bytes materialises one frame.
 *
 * Addresses are exact numbers, pages 4 KiB. Nothing answers outside the banks: reads give undefined, writes false, which the
 * hardware around treats as an external abort. Words and doublewords are accessed atomically.
 */
import { FRAME_BYTES, type Arena } from '../core/arena.js';
import { entryStamp, PhysicalDirectory } from '../core/physical-directory.js';
import { invariant } from '../runtime/task.js';
import type { PageRun } from '../uapi/syscall.js';
import type { AddressRange } from './description.js';

interface StampExtent {
  readonly pfn: number;
  readonly pages: number;
  readonly stamp: number;
  readonly step: 0 | 1;
}

interface Bank {
  readonly start: number;
  readonly last: number;
}

/** Runs up to this go page by page into the directory; longer ones become an extent. */
const SHORT_RUN_PAGES = 64;

const MASK_32 = 0xffff_ffffn;
const OUT_OF_FRAMES = 'the arena has no frame left for memory that was written: give the host a larger arena';

/** Physical memory of one host. */
export class PhysicalMemory {
  readonly arena: Arena;
  readonly directory: PhysicalDirectory;
  readonly #banks: readonly Bank[];
  /** Sorted by pfn, disjoint; pages in no extent are zeroes. */
  #extents: StampExtent[] = [];
  readonly #scratchFrame: number;

  constructor(arena: Arena, banks: readonly AddressRange[]) {
    this.arena = arena;
    this.directory = new PhysicalDirectory(arena);
    this.#banks = mergedBanks(banks);
    this.#scratchFrame = arena.allocFrame();
    invariant(this.#scratchFrame !== 0, 'arena too small for physical memory');
  }

  /** Whether the whole range is RAM. */
  contains(pa: number, lengthBytes: number): boolean {
    return this.#banks.some((bank) => pa >= bank.start && pa + lengthBytes - 1 <= bank.last);
  }

  /** A copy of the bytes; undefined where nothing answers. */
  read(pa: number, lengthBytes: number): Uint8Array | undefined {
    if (!this.contains(pa, lengthBytes)) return undefined;
    const out = new Uint8Array(lengthBytes);
    this.#forEachPage(pa, lengthBytes, (pfn, from, end, at) => {
      const frame = this.#readableFrame(pfn);
      if (frame !== 0) out.set(this.arena.frameBytes(frame).subarray(from, end), at);
    });
    return out;
  }

  /** False where nothing answers; then nothing was written. */
  write(pa: number, bytes: Uint8Array): boolean {
    if (!this.contains(pa, bytes.length)) return false;
    this.#forEachPage(pa, bytes.length, (pfn, from, end, at) => {
      this.arena.frameBytes(this.#writableFrame(pfn)).set(bytes.subarray(at, at + end - from), from);
    });
    return true;
  }

  /** Fills `out` (an even number of words, low first) from 8-byte aligned `pa`, doubleword by doubleword. */
  loadWords(pa: number, out: Uint32Array): boolean {
    if (pa % 8 !== 0 || !this.contains(pa, out.length * 4)) return false;
    let frame = 0;
    for (let i = 0; i < out.length; i += 2) {
      const at = pa + i * 4;
      if (i === 0 || at % FRAME_BYTES === 0) frame = this.#readableFrame(Math.floor(at / FRAME_BYTES));
      const value = frame === 0 ? 0n : Atomics.load(this.arena.longs, this.#longIndex(frame, at));
      out[i] = Number(value & MASK_32);
      out[i + 1] = Number((value >> 32n) & MASK_32);
    }
    return true;
  }

  /** One aligned doubleword as its two words; undefined where nothing answers. */
  load64(pa: number): readonly [lo: number, hi: number] | undefined {
    const words = new Uint32Array(2);
    return this.loadWords(pa, words) ? [words[0] ?? 0, words[1] ?? 0] : undefined;
  }

  store64(pa: number, lo: number, hi: number): boolean {
    if (pa % 8 !== 0 || !this.contains(pa, 8)) return false;
    Atomics.store(
      this.arena.longs,
      this.#longIndex(this.#writableFrame(Math.floor(pa / FRAME_BYTES)), pa),
      toLong(lo, hi),
    );
    return true;
  }

  compareAndSwap64(pa: number, oldLo: number, oldHi: number, newLo: number, newHi: number): boolean {
    if (pa % 8 !== 0 || !this.contains(pa, 8)) return false;
    const index = this.#longIndex(this.#writableFrame(Math.floor(pa / FRAME_BYTES)), pa);
    const expected = toLong(oldLo, oldHi);
    return Atomics.compareExchange(this.arena.longs, index, expected, toLong(newLo, newHi)) === expected;
  }

  /** Whether an address lies in the kernel window, in a frame that nobody has. */
  isGivenBack(pa: number): boolean {
    return this.arena.isFreeKernelPage(Math.floor(pa / FRAME_BYTES));
  }

  /** Gives pages pfn..pfn+pages-1 the contents stamp, stamp+step, ...; frames they had are freed. */
  setPageStamps(pfn: number, pages: number, stamp: number, step: 0 | 1): void {
    for (let at = this.directory.nextEntry(pfn); at >= 0 && at < pfn + pages; at = this.directory.nextEntry(at + 1)) {
      const entry = this.directory.clear(at);
      if (entry > 0) this.arena.freeFrame(entry);
    }
    // Only the extents that overlap, and their neighbours to merge with, are looked at: a migration stores many runs.
    const first = Math.max(this.#extentIndex(pfn) - 1, 0);
    let end = first;
    while ((this.#extents[end]?.pfn ?? Infinity) <= pfn + pages) end++;
    const pieces = this.#extents.slice(first, end).flatMap((extent) => cut(extent, pfn, pages));
    if (stamp !== 0 || step !== 0) pieces.push({ pfn, pages, stamp, step });
    this.#extents.splice(first, end - first, ...joined(pieces.sort((a, b) => a.pfn - b.pfn)));
  }

  /** Back to zeroes, frames freed. */
  clearPages(pfn: number, pages: number): void {
    this.setPageStamps(pfn, pages, 0, 0);
  }

  /** What pages hold, run-length coded, the first being page `firstPage`. Bytes only where bytes were written. */
  pageContents(pfn: number, pages: number, firstPage = 0): PageRun[] {
    const runs: GrowingRun[] = [];
    const base = pfn - firstPage;
    let at = pfn;
    while (at < pfn + pages) {
      const next = this.directory.nextEntry(at);
      const override = next < 0 || next >= pfn + pages ? pfn + pages : next;
      this.#extentRuns(at, override, base, runs);
      if (override < pfn + pages) this.#entryRun(override, base, runs);
      at = override + 1;
    }
    return runs;
  }

  /** Replaces pages, page numbers relative to `pfn`. */
  setPageContents(pfn: number, runs: readonly PageRun[]): void {
    for (const run of runs) {
      if ('bytes' in run) this.write((pfn + run.firstPage) * FRAME_BYTES, run.bytes);
      else if (run.pages <= SHORT_RUN_PAGES) this.#setStamps(pfn + run.firstPage, run);
      else this.setPageStamps(pfn + run.firstPage, run.pages, run.stamp, run.step);
    }
  }

  #extentRuns(from: number, end: number, base: number, runs: GrowingRun[]): void {
    let at = from;
    for (let index = this.#extentIndex(from); at < end; index++) {
      const extent = this.#extents[index];
      const start = extent === undefined ? end : Math.min(Math.max(extent.pfn, at), end);
      if (start > at) pushStamps(runs, at - base, start - at, 0, 0);
      if (extent === undefined || start >= end) return;
      const stop = Math.min(extent.pfn + extent.pages, end);
      pushStamps(runs, start - base, stop - start, extent.stamp + (start - extent.pfn) * extent.step, extent.step);
      at = stop;
    }
  }

  #entryRun(pfn: number, base: number, runs: GrowingRun[]): void {
    const entry = this.directory.get(pfn);
    if (entry < 0) pushStamps(runs, pfn - base, 1, entryStamp(entry), 1);
    else if (this.arena.frameIsZero(entry)) pushStamps(runs, pfn - base, 1, 0, 0);
    else runs.push({ firstPage: pfn - base, pages: 1, bytes: new Uint8Array(this.arena.frameBytes(entry)) });
  }

  /** First extent that ends after `pfn`. */
  #extentIndex(pfn: number): number {
    let low = 0;
    let high = this.#extents.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const extent = this.#extents[middle];
      if (extent !== undefined && extent.pfn + extent.pages <= pfn) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #extentStamp(pfn: number): number {
    const extent = this.#extents[this.#extentIndex(pfn)];
    return extent === undefined || extent.pfn > pfn ? 0 : extent.stamp + (pfn - extent.pfn) * extent.step;
  }

  #setStamps(pfn: number, run: { readonly pages: number; readonly stamp: number; readonly step: 0 | 1 }): void {
    for (let i = 0; i < run.pages; i++) {
      const before = this.directory.clear(pfn + i);
      if (before > 0) this.arena.freeFrame(before);
      invariant(this.directory.setStamp(pfn + i, run.stamp + i * run.step) === 0, OUT_OF_FRAMES);
    }
  }

  /** A frame that holds the page's bytes for reading (only until the next call), 0 for zeroes. */
  #readableFrame(pfn: number): number {
    const entry = this.directory.resolve(pfn);
    if (entry > 0) return entry;
    const stamp = entry < 0 ? entryStamp(entry) : this.#extentStamp(pfn);
    if (stamp === 0) return 0;
    this.arena.fillStamp(this.#scratchFrame, stamp);
    return this.#scratchFrame;
  }

  #writableFrame(pfn: number): number {
    const entry = this.directory.resolve(pfn);
    if (entry > 0) return entry;
    const rc = entry === 0 ? this.directory.setStamp(pfn, this.#extentStamp(pfn)) : 0;
    const frame = rc < 0 ? rc : this.directory.materialise(pfn);
    invariant(frame > 0, OUT_OF_FRAMES);
    return frame;
  }

  #longIndex(frame: number, pa: number): number {
    return (this.arena.frameOffset(frame) + (pa % FRAME_BYTES)) / 8;
  }

  #forEachPage(
    pa: number,
    lengthBytes: number,
    visit: (pfn: number, from: number, end: number, at: number) => void,
  ): void {
    for (let done = 0; done < lengthBytes;) {
      const from = (pa + done) % FRAME_BYTES;
      const end = Math.min(FRAME_BYTES, from + lengthBytes - done);
      visit(Math.floor((pa + done) / FRAME_BYTES), from, end, done);
      done += end - from;
    }
  }
}

function toLong(lo: number, hi: number): bigint {
  return (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
}

/** Banks in ascending order, neighbours joined. */
function mergedBanks(banks: readonly AddressRange[]): Bank[] {
  const merged: { start: number; last: number }[] = [];
  for (const { start, last } of [...banks].sort((a, b) => (a.start < b.start ? -1 : 1))) {
    const before = merged.at(-1);
    if (before !== undefined && before.last + 1 === Number(start)) before.last = Number(last);
    else merged.push({ start: Number(start), last: Number(last) });
  }
  return merged;
}

/** Neighbouring extents whose stamps go on as one. */
function joined(extents: readonly StampExtent[]): StampExtent[] {
  const result: StampExtent[] = [];
  for (const extent of extents) {
    const before = result.at(-1);
    const goesOn =
      before?.step === extent.step &&
      before.pfn + before.pages === extent.pfn &&
      before.stamp + before.pages * before.step === extent.stamp;
    if (goesOn) result[result.length - 1] = { ...before, pages: before.pages + extent.pages };
    else result.push(extent);
  }
  return result;
}

/** What is left of an extent outside pfn..pfn+pages-1. */
function cut(extent: StampExtent, pfn: number, pages: number): StampExtent[] {
  const end = extent.pfn + extent.pages;
  const left = { ...extent, pages: Math.min(extent.pages, Math.max(0, pfn - extent.pfn)) };
  const from = Math.max(extent.pfn, pfn + pages);
  const right = {
    ...extent,
    pfn: from,
    pages: Math.max(0, end - from),
    stamp: extent.stamp + (from - extent.pfn) * extent.step,
  };
  return [left, right].filter((piece) => piece.pages > 0);
}

/** A run that may still become longer: a list of runs in the making. */
type GrowingRun = { -readonly [K in keyof StampRun]: StampRun[K] } | Exclude<PageRun, StampRun>;
type StampRun = Extract<PageRun, { readonly stamp: number }>;

/** Adds a run of stamps, joined to the last one where it goes on. A single page fits either step. */
function pushStamps(runs: GrowingRun[], firstPage: number, pages: number, stamp: number, step: 0 | 1): void {
  const last = runs.at(-1);
  if (last !== undefined && !('bytes' in last) && last.firstPage + last.pages === firstPage) {
    const joined =
      last.pages === 1 && pages === 1 ? (stamp === last.stamp ? 0 : 1) : last.pages === 1 ? step : last.step;
    const fits = (pages === 1 || step === joined) && stamp === last.stamp + last.pages * joined;
    if (fits) {
      last.pages += pages;
      last.step = joined;
      return;
    }
  }
  runs.push({ firstPage, pages, stamp, step: pages === 1 ? 0 : step });
}
