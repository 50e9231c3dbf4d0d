/**
 * Transactions that a fault has stopped and software will resume or end (IHI 0070 3.12.2, 4.6).
 *
 * Each has a STAG, the lowest free one, which its event names. A stalled transaction is nobody CMD_SYNC waits for. What
 * software says of a STAG that is not stalled, or of another stream's, is ignored.
 */
import { WaitQueue, type Task } from '../../runtime/task.js';
import { sharedTest } from '../../runtime/watch.js';

/** What software decides: try again, end it with an abort, or end it as if it had been done (reads zero, writes ignored). */
export type StallEnd = 'retry' | 'abort' | 'terminate';

/** One stalled transaction. */
export interface Stall {
  readonly streamId: number;
  readonly stag: number;
}

interface Stalled extends Stall {
  end: StallEnd | undefined;
}

/** The stalled transactions of one SMMU. */
export class Stalls {
  readonly #stalled = new Map<number, Stalled>();
  readonly #changed: WaitQueue;
  readonly #max: number;

  /** `max`: IDR5.STALL_MAX; a fault beyond waits until another is dealt with. */
  constructor(name: string, max: number) {
    this.#changed = new WaitQueue(`${name} stalls`);
    this.#max = Math.max(1, max);
  }

  get size(): number {
    return this.#stalled.size;
  }

  /** Stalls a transaction of a stream. */
  *begin(streamId: number): Task<Stall> {
    sharedTest(this, 'stalled', this.#stalled.size);
    while (this.#stalled.size >= this.#max) {
      yield this.#changed;
      sharedTest(this, 'stalled', this.#stalled.size);
    }
    let stag = 0;
    while (this.#stalled.has(stag)) stag++;
    const stall: Stalled = { streamId, stag, end: undefined };
    this.#stalled.set(stag, stall);
    return stall;
  }

  /** Waits for software's decision; the STAG is free then. */
  *wait({ stag }: Stall): Task<StallEnd> {
    for (;;) {
      sharedTest(this, 'stalled', this.#stalled.size);
      const end = this.#stalled.get(stag)?.end;
      if (end !== undefined) {
        this.#stalled.delete(stag);
        this.#changed.wakeAll();
        return end;
      }
      yield this.#changed;
    }
  }

  /** CMD_RESUME */
  resume(streamId: number, stag: number, end: StallEnd): void {
    sharedTest(this, 'stalled', this.#stalled.size);
    const stalled = this.#stalled.get(stag);
    if (stalled?.streamId === streamId) this.#finish(stalled, end);
  }

  /** CMD_STALL_TERM; without a stream: the SMMU is disabled. */
  abortAll(streamId?: number): void {
    sharedTest(this, 'stalled', this.#stalled.size);
    for (const stalled of this.#stalled.values())
      if (streamId === undefined || stalled.streamId === streamId) this.#finish(stalled, 'abort');
  }

  #finish(stalled: Stalled, end: StallEnd): void {
    stalled.end ??= end;
    this.#changed.wakeAll();
  }
}
