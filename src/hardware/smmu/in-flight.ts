/**
 * Transactions on their way through the SMMU and beyond, so that CMD_SYNC can wait for those that may still use what
 * an earlier command invalidated (IHI 0070 3.21.1, 4.7.3).
 *
 * A transaction begins before its configuration is looked up and ends when its access is done. One that stalls is put aside
 * meanwhile. Tickets count up.
 */
import { WaitQueue, type Task } from '../../runtime/task.js';
import { sharedTest, sharedUpdate } from '../../runtime/watch.js';

/** Unfinished transactions of one SMMU. */
export class InFlight {
  readonly #tickets = new Set<number>();
  readonly #ended: WaitQueue;
  #next = 0;

  constructor(name: string) {
    this.#ended = new WaitQueue(`${name} transactions`);
  }

  /** Registers a transaction; its ticket. */
  begin(): number {
    const ticket = this.#next++;
    this.#add(ticket);
    return ticket;
  }

  /** Ends a transaction. */
  end(ticket: number): void {
    sharedUpdate(this, 'under way', this.#tickets.size, this.#tickets.size - 1);
    this.#tickets.delete(ticket);
    if (this.#ended.length > 0) this.#ended.wakeAll();
  }

  /** A stalled transaction goes on. */
  again(ticket: number): void {
    this.#add(ticket);
  }

  #add(ticket: number): void {
    sharedUpdate(this, 'under way', this.#tickets.size, this.#tickets.size + 1);
    this.#tickets.add(ticket);
  }

  /** Waits until every transaction that has begun by now has ended. */
  *drain(): Task<void> {
    const horizon = this.#next;
    for (;;) {
      sharedTest(this, 'under way', this.#tickets.size);
      if (![...this.#tickets].some((ticket) => ticket < horizon)) return;
      yield this.#ended;
    }
  }
}
