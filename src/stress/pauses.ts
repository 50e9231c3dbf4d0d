/**
 * Pauses at random places, from a seeded stream: what makes a race of a few nanoseconds wide enough to be met.
 *
 * Most gates cost nothing. Now and then a thread spins for a while, or sleeps, which gives its core to another thread in the
 * middle of whatever it was doing. A stream of its own for each thread; the order of threads is the machine's, so a seed
 * gives the same pauses, not the same run.
 */
import { RandomStream } from '../runtime/random.js';

/** One in so many gates pauses; one in so many pauses sleeps. */
const GATES_PER_PAUSE = 24;
const PAUSES_PER_SLEEP = 12;
const MAX_SPINS = 2000;
const SLEEP_MS = 0.05;

/** Pauses of one thread. */
export class Pauses {
  readonly #nowhere = new Int32Array(new SharedArrayBuffer(4));
  #state: number;
  #spun = 0;

  constructor(seed: number, thread: number) {
    this.#state = new RandomStream(seed, `stress/pauses/${thread}`).between(1, 0x7ffffffe);
  }

  /** A gate: usually nothing. */
  maybe(): void {
    if (this.#next() % GATES_PER_PAUSE !== 0) return;
    if (this.#next() % PAUSES_PER_SLEEP === 0) {
      Atomics.wait(this.#nowhere, 0, 0, SLEEP_MS);
      return;
    }
    const spins = this.#next() % MAX_SPINS;
    for (let i = 0; i < spins; i++) this.#spun = (this.#spun + i) | 0;
  }

  /** xorshift32: gates are too many for a generator of the runtime. */
  #next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }
}
