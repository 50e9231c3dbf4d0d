/**
 * What other CPUs see when a new translation table is published by a relaxed compare-and-exchange: the table first, and its zeroes
 * later, over whatever they have stored into it meanwhile (fault `smmu.table-before-zero`).
 *
 * A table is installed by one step of the shared core, which publishes with release order; here the step is followed by the zeroing as
 * the others get to see it. Whose table it is, is told by the pages that it leads to. Source: domain.md IN-24, A6.7.
 */
import type { PageTable } from '../../../core/page-table.js';
import { VMSA_DESCRIPTOR } from '../../../hardware/smmu/records.js';
import type { Task } from '../../../runtime/task.js';
import { isWatched, sharedRange, sharedRead, sharedWrite } from '../../../runtime/watch.js';

const LAST_LEVEL = 3;
const TWO_32 = 2 ** 32;

/** Index in `arena.words` of the last-level table that leads to a page; undefined where there is none. */
function lastLevelTable(table: PageTable, page: number): number | undefined {
  const { arena, granuleShift, startLevel, rootAddress } = table;
  const indexBits = granuleShift - 3;
  let address = rootAddress;
  for (let level = startLevel; ; level++) {
    const frame = arena.pfnToFrame(Math.floor(address / 4096));
    const at = frame < 0 ? -1 : arena.frameOffset(frame) >>> 2;
    if (at < 0 || level === LAST_LEVEL) return at < 0 ? undefined : at;
    const shift = (LAST_LEVEL - level) * indexBits;
    const entries = level === startLevel ? Infinity : 2 ** indexBits;
    const position = Math.floor(page / 2 ** shift);
    const index = at + 2 * (entries === Infinity ? position : position % entries);
    const words = [(arena.words[index] ?? 0) >>> 0, (arena.words[index + 1] ?? 0) >>> 0];
    if (VMSA_DESCRIPTOR.get(words, 'Valid') === 0 || VMSA_DESCRIPTOR.get(words, 'Table') === 0) return undefined;
    const whole = ((words[1] ?? 0) % 2 ** 16) * TWO_32 + (words[0] ?? 0);
    address = whole - (whole % 2 ** granuleShift);
  }
}

/** A step of mapping that may install a table. Made before the step. */
export class LateZeroing {
  readonly #owner: object;
  readonly #table: PageTable;
  readonly #page: number;
  readonly #wasThere: boolean;

  /** `owner` is told of as what holds the pages' shared words. */
  constructor(owner: object, table: PageTable, page: number) {
    this.#owner = owner;
    this.#table = table;
    this.#page = page;
    if (isWatched()) sharedRead(owner, this.#word);
    this.#wasThere = lastLevelTable(table, page) !== undefined;
  }

  /** The step has mapped so many pages: others go on, then a new table's zeroes arrive around those. */
  *happen(mapped: number): Task<void> {
    const { arena, granuleShift } = this.#table;
    const at = this.#wasThere || mapped <= 0 ? undefined : lastLevelTable(this.#table, this.#page);
    if (at === undefined) return;
    if (isWatched()) sharedWrite(this.#owner, this.#word);
    yield 'smmu:table-published';
    const entries = 2 ** (granuleShift - 3);
    const first = this.#page % entries;
    const granuleBytes = 2 ** granuleShift;
    sharedRange(this.#owner, '', (this.#page - first) * granuleBytes, entries * granuleBytes, true);
    arena.words.fill(0, at, at + 2 * first);
    arena.words.fill(0, at + 2 * (first + mapped), at + 2 * entries);
  }

  /** The last-level table, whether it is there or not. */
  get #word(): string {
    const entries = 2 ** (this.#table.granuleShift - 3);
    return `table of page 0x${(this.#page - (this.#page % entries)).toString(16)}`;
  }
}
