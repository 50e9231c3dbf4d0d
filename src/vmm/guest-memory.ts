/**
 * A guest's RAM as one VMM process holds it.
 *
 * The *backing* of a guest is an address space of its own: byte offsets from 0, cut into segments (the RAM given at start,
 * one for each DIMM added later). It is the same on every host the guest runs on; only the addresses at which a process
 * has mapped the segments differ. The dirty log, migration and comparison count pages of the backing.
 */
import type { Process } from '../testbed/process.js';
import type { Task } from '../runtime/task.js';
import { movedRun, type Contiguity, type PageRun } from '../uapi/syscall.js';
import { CHUNK_PAGES } from './page-set.js';
import { alignUp, PAGE_BYTES } from './ranges.js';

/** Chunks of a PageSet that are read or written together: 1 GiB of guest memory. */
export const BATCH_CHUNKS = 8;

/** A piece of the backing. `offset` is a multiple of a batch, so no batch of chunks crosses segments. */
export interface BackingSegment {
  readonly offset: bigint;
  readonly lengthBytes: bigint;
}

interface MappedSegment extends BackingSegment {
  readonly va: bigint;
}

const BATCH_BYTES = BigInt(BATCH_CHUNKS * CHUNK_PAGES) * PAGE_BYTES;

/** Where the next segment of a backing begins. */
export function nextSegmentOffset(segments: readonly BackingSegment[]): bigint {
  const last = segments.at(-1);
  return last === undefined ? 0n : alignUp(last.offset + last.lengthBytes, BATCH_BYTES);
}

/** The backing mapped into a process. */
export class GuestMemory {
  readonly process: Process;
  readonly #contiguity: Contiguity;
  readonly #segments: MappedSegment[] = [];

  constructor(process: Process, contiguity: Contiguity) {
    this.process = process;
    this.#contiguity = contiguity;
  }

  get segments(): readonly BackingSegment[] {
    return this.#segments;
  }

  /** Pages of all segments. */
  get pages(): number {
    return this.#segments.reduce((sum, segment) => sum + Number(segment.lengthBytes / PAGE_BYTES), 0);
  }

  /** Maps memory for a segment. @throws KernelError (ENOMEM). */
  *addSegment(segment: BackingSegment): Task<void> {
    const va = yield* this.process.mmap({ length: segment.lengthBytes, contiguity: this.#contiguity });
    this.#segments.push({ ...segment, va });
  }

  /** VMM address of a byte of the backing. @throws RangeError outside every segment. */
  vaOf(offset: bigint): bigint {
    return this.#segmentOf(offset).va + (offset - this.#segmentOf(offset).offset);
  }

  /** Contents of pages of one segment; page numbers of the backing. */
  *loadPages(firstPage: number, pages: number): Task<PageRun[]> {
    const runs = yield* this.process.loadPages(this.vaOf(BigInt(firstPage) * PAGE_BYTES), pages);
    return runs.map((run) => movedRun(run, firstPage));
  }

  /** Replaces pages of one segment; page numbers of the backing, `runs` not empty. */
  *storePages(runs: readonly PageRun[]): Task<void> {
    const base = runs.reduce((first, run) => Math.min(first, run.firstPage), Infinity);
    const va = this.vaOf(BigInt(base) * PAGE_BYTES);
    yield* this.process.storePages(
      va,
      runs.map((run) => movedRun(run, -base)),
    );
  }

  #segmentOf(offset: bigint): MappedSegment {
    const found = this.#segments.find((s) => offset >= s.offset && offset < s.offset + s.lengthBytes);
    if (found === undefined) throw new RangeError(`0x${offset.toString(16)} lies outside the guest's backing`);
    return found;
  }
}
