/**
 * The command queue of an SMMU that many threads fill at once, as Linux's arm-smmu-v3 does (arm_smmu_cmdq_issue_cmdlist,
 * domain.md A6.9), with several consumers: every device thread is a translating agent with a TLB of its own.
 *
 * A producer claims slots by compare-and-swap on PROD, writes its commands, marks them valid. The first to claim after the last
 * owner stopped gathering is the next *owner*: it waits for its predecessor, stops gathering, waits until everything
 * gathered is valid, and publishes it all in one step. A batch lies side by side, with its CMD_SYNC behind it.
 *
 * A device consumes what is published at its quiescent points: between two DMAs, when it holds no translation. It says how far
 * it got. A CMD_SYNC is complete when every device that translates has got past it: then no TLB has what was invalidated
 * before it, and no walk is under way that might have read what was there. Translation tables may be freed exactly then.
 *
 * Indices count commands modulo 2^30; bit 30 of PROD says that somebody is gathering. Words: 0 PROD with that bit, 1 owner's
 * turn, 2 published, 3 consumption sequence (futex), 4 sleepers; then a validity word a slot, then the slots.
 */
import type { Arena } from '../core/arena.js';
import type { LockThread } from '../core/robust-lock.js';
import { CMD, CMD_OP, CMD_SYNC, SYNC_CS } from '../hardware/smmu/records.js';
import type { Task } from '../runtime/task.js';

/** Slots of the queue. */
const SLOTS = 1024;
const COMMAND_WORDS = 4;
const PROD = 0;
const OWNER_PROD = 1;
const PUBLISHED = 2;
const SEQUENCE = 3;
const SLEEPERS = 4;
const VALID = 16;
const COMMANDS = VALID + SLOTS;
const OWNED = 2 ** 30;
const INDEX_MASK = OWNED - 1;
const SPINS = 400;
const SLEEP_MS = 10;
/** Commands that are claimed at once at most, the sync behind them included. */
const MAX_BATCH = 256;

/** Frames of the queue as an allocation order. */
export const QUEUE_ORDER = 3;

/** How far `later` is ahead of `earlier`. */
function ahead(later: number, earlier: number): number {
  return (later - earlier) & INDEX_MASK;
}

/** Something moved that a producer may wait for. */
function wake(words: Int32Array<SharedArrayBuffer>, base: number): void {
  if (Atomics.load(words, base + SLEEPERS) === 0) return;
  Atomics.add(words, base + SEQUENCE, 1);
  Atomics.notify(words, base + SEQUENCE);
}

/** How far each consumer got; only of those that translate now. */
export type ConsumerWords = readonly { readonly isOnline: () => boolean; readonly consumedWord: number }[];

/** The producers' side, in one thread. */
export class CommandProducer {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #base: number;
  readonly #self: LockThread;
  readonly #consumers: ConsumerWords;
  readonly #publishing: number;
  readonly #waits: boolean;

  /** `publishing`: word that is not 0 while this thread has slots that are not published. `waits` false: for no CMD_SYNC. */
  constructor(
    arena: Arena,
    offset: number,
    self: LockThread,
    consumers: ConsumerWords,
    publishing: number,
    waits: boolean,
  ) {
    this.#words = arena.words;
    this.#base = offset >>> 2;
    this.#self = self;
    this.#consumers = consumers;
    this.#publishing = publishing;
    this.#waits = waits;
  }

  /** Queues commands with a CMD_SYNC behind them and waits until that is complete. */
  *issueAndSync(commands: readonly Uint32Array[]): Task<void> {
    yield 'smmu:cmdq-issue';
    const room = MAX_BATCH - 1;
    let end = 0;
    for (let first = 0; first === 0 || first < commands.length; first += room) {
      const batch = commands.slice(first, first + room);
      if (first + room >= commands.length) batch.push(CMD_SYNC.make({ Opcode: CMD_OP.SYNC, CS: SYNC_CS.SEV }));
      end = this.#publish(batch);
    }
    if (!this.#waits) return;
    yield 'smmu:cmdq-sync';
    this.#until('CMD_SYNC', () => this.#lag(end) <= 0);
  }

  /** Claims, writes, marks valid; the owner publishes. Answers the index behind the last command. */
  #publish(commands: readonly Uint32Array[]): number {
    const words = this.#words;
    const base = this.#base;
    Atomics.store(words, this.#publishing, 1);
    let seen = 0;
    this.#until('room in the command queue', () => {
      seen = Atomics.load(words, base + PROD);
      const end = ((seen & INDEX_MASK) + commands.length) & INDEX_MASK;
      // Without anybody who consumes, slots are free again when they are published.
      const unpublished = ahead(end, Atomics.load(words, base + PUBLISHED));
      if (Math.max(unpublished, this.#lag(end)) > SLOTS) return false;
      return Atomics.compareExchange(words, base + PROD, seen, end | OWNED) === seen;
    });
    const start = seen & INDEX_MASK;
    const end = (start + commands.length) & INDEX_MASK;
    for (const [i, command] of commands.entries()) {
      const index = (start + i) & INDEX_MASK;
      words.set(command, base + COMMANDS + (index % SLOTS) * COMMAND_WORDS);
      Atomics.store(words, base + VALID + (index % SLOTS), index + 1);
    }
    if ((seen & OWNED) === 0) {
      this.#until('the owner before', () => Atomics.load(words, base + OWNER_PROD) === start);
      const gathered = Atomics.and(words, base + PROD, ~OWNED) & INDEX_MASK;
      for (let index = start; index !== gathered; index = (index + 1) & INDEX_MASK) {
        this.#until('a command to be valid', () => Atomics.load(words, base + VALID + (index % SLOTS)) === index + 1);
      }
      Atomics.store(words, base + PUBLISHED, gathered);
      Atomics.store(words, base + OWNER_PROD, gathered);
    }
    Atomics.store(words, this.#publishing, 0);
    wake(words, base);
    return end;
  }

  /** Commands up to `end` that some device has yet to consume; not above 0 when all have. */
  #lag(end: number): number {
    let lag = 0;
    for (const { isOnline, consumedWord } of this.#consumers) {
      if (!isOnline()) continue;
      const left = ahead(end, Atomics.load(this.#words, consumedWord));
      // A device that is past `end` seems to be a whole turn of the index behind.
      if (left < OWNED / 2) lag = Math.max(lag, left);
    }
    return lag;
  }

  /** Spins, then sleeps until devices consume, until a condition holds. @throws OwnerDiedError */
  #until(what: string, condition: () => boolean): void {
    for (let spin = 0; spin < SPINS; spin++) if (condition()) return;
    const words = this.#words;
    const bit = 1 << (this.#self.number - 1);
    Atomics.or(words, this.#base + SLEEPERS, bit);
    try {
      for (;;) {
        const sequence = Atomics.load(words, this.#base + SEQUENCE);
        this.#self.check(what);
        if (condition()) return;
        Atomics.wait(words, this.#base + SEQUENCE, sequence, SLEEP_MS);
      }
    } finally {
      Atomics.and(words, this.#base + SLEEPERS, ~bit);
    }
  }
}

/** The consumer's side of one device. */
export class CommandConsumer {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #base: number;
  readonly #consumed: number;
  readonly #command = new Uint32Array(COMMAND_WORDS);

  constructor(arena: Arena, offset: number, consumedWord: number) {
    this.#words = arena.words;
    this.#base = offset >>> 2;
    this.#consumed = consumedWord;
  }

  /** A quiescent point: carries out every command that is published. */
  consume(execute: (command: Uint32Array) => void): void {
    const words = this.#words;
    const published = Atomics.load(words, this.#base + PUBLISHED);
    const consumed = words[this.#consumed] ?? 0;
    if (published === consumed) return;
    for (let index = consumed; index !== published; index = (index + 1) & INDEX_MASK) {
      const at = this.#base + COMMANDS + (index % SLOTS) * COMMAND_WORDS;
      for (let i = 0; i < COMMAND_WORDS; i++) this.#command[i] = words[at + i] ?? 0;
      if (CMD.get(this.#command, 'Opcode') !== CMD_OP.SYNC) execute(this.#command);
    }
    Atomics.store(words, this.#consumed, published);
    wake(words, this.#base);
  }

  /** The device begins to translate, with nothing in its TLB: what was published before does not concern it. */
  start(): void {
    Atomics.store(this.#words, this.#consumed, Atomics.load(this.#words, this.#base + PUBLISHED));
    wake(this.#words, this.#base);
  }
}
