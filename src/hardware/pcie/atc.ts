/**
 * A function's address translation cache (PCIe 5.0 10.1.1): translations the IOMMU gave it, used until they are invalidated
 * or thrown out for newer ones. Invalidations complete when no transaction that used what they removed is under way.
 */
import type { Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import type { AtsRequest, AtsResponse } from '../smmu/ats.js';
import { InFlight } from '../smmu/in-flight.js';

/** What {@link Atc.translation} says of an address that may not be accessed that way. */
export const NO_ACCESS = 'translation request: no access';

/** Translations a cache holds. */
const ATC_ENTRIES = 64;

/** A translation: `first`..`last` is at `pa` on. */
export interface AtcEntry {
  readonly first: bigint;
  readonly last: bigint;
  readonly pa: number;
  readonly read: boolean;
  readonly write: boolean;
}

/** One function's cache. */
export class Atc {
  #entries: AtcEntry[] = [];
  readonly #inFlight: InFlight;
  #invalidations = 0;

  constructor(name: string) {
    this.#inFlight = new InFlight(`${name} ATC`);
  }

  get size(): number {
    return this.#entries.length;
  }

  /** What it holds, for those who look at a machine. */
  get contents(): readonly AtcEntry[] {
    return this.#entries;
  }

  /** Moves when something is invalidated: an answer that was under way then is not kept. */
  get invalidations(): number {
    sharedRead(this, 'entries');
    return this.#invalidations;
  }

  /** Where an address leads, if that is known and allowed. */
  lookup(iova: bigint, write: boolean): AtcEntry | undefined {
    sharedRead(this, 'entries');
    return this.#entries.find(
      (entry) => entry.first <= iova && iova <= entry.last && (write ? entry.write : entry.read),
    );
  }

  insert(entry: AtcEntry): void {
    sharedWrite(this, 'entries', undefined, entry.first);
    this.#entries = [...this.#entries.filter((old) => old.last < entry.first || old.first > entry.last), entry];
    if (this.#entries.length > ATC_ENTRIES) this.#entries.shift();
  }

  /**
   * A translation from the cache, or one that is asked for now; a string says why there is none. An answer that an invalidation
   * overtook is used once and not kept.
   */
  *translation(
    { streamId, iova }: Pick<AtsRequest, 'streamId' | 'iova'>,
    write: boolean,
    ask: (request: AtsRequest) => Task<AtsResponse>,
  ): Task<AtcEntry | string> {
    const known = this.lookup(iova, write);
    if (known !== undefined) return known;
    const before = this.#invalidations;
    const answer = yield* ask({ streamId, iova });
    if (answer.status !== 'success') return `translation request: ${answer.status}`;
    const size = 1n << BigInt(answer.shift);
    const first = iova - (iova % size);
    const pa = answer.pa - Number(iova % size);
    const entry = { first, last: first + size - 1n, pa, read: answer.read, write: answer.write };
    if (!(write ? entry.write : entry.read)) return NO_ACCESS;
    sharedRead(this, 'entries');
    if (before === this.#invalidations) this.insert(entry);
    return entry;
  }

  /** A transaction that uses the cache begins; its ticket. */
  begin(): number {
    return this.#inFlight.begin();
  }

  end(ticket: number): void {
    this.#inFlight.end(ticket);
  }

  /** Forgets a range; done when nobody uses what was forgotten. */
  *invalidate(start: bigint, last: bigint): Task<void> {
    sharedWrite(this, 'entries', start, undefined);
    this.#invalidations++;
    this.#entries = this.#entries.filter((entry) => entry.last < start || entry.first > last);
    yield* this.#inFlight.drain();
  }

  /** The function was reset or its ATS switched off. */
  clear(): void {
    sharedWrite(this, 'entries');
    this.#invalidations++;
    this.#entries = [];
  }
}
