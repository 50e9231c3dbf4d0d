/**
 * Runs clients and devices on one arena, and watches over them: the main thread of `iovaduct stress`.
 *
 * Time goes in *segments*. Threads run freely until a history buffer is nearly full; then clients stop between two operations, devices after the
 * clients, and while everything stands still main checks the segment's history, audits the address space, empties the
 * buffers and lets everybody go on. A violation ends the run at the next such moment.
 *
 * A thread that dies is noticed by its worker's end. Only a death that was ordered (`StressOptions.kills`) is dealt with as one (after-death.ts); a thread that ends otherwise, by an error
 * or without a word, ends the run as a violation. A run in which no client moves for {@link STUCK_MS}, or devices do not stand still
 * after the clients, is ended, too, and reported as stuck: a kernel that hangs is not a run that hangs.
 *
 * Main never blocks on what threads hold: it looks at their words every few milliseconds. The wall clock decides when to look, when to
 * stop and what the figures are, never what is found.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { Arena } from '../core/arena.js';
import { RandomStream } from '../runtime/random.js';
import { invariant } from '../runtime/task.js';
import { AddressSpace } from './address-space.js';
import { repair, takeLocks, type Remains } from './after-death.js';
import { audit, tableFrames } from './audit.js';
import type { Alarm } from './alarms.js';
import { buildLayout } from './build-layout.js';
import { HistoryChecker } from './check.js';
import { History } from './history.js';
import { NO_WINDOW, joinWindows, type ExposureWindow } from './recorded-domain.js';
import type { Death, StressProgress, StressReport } from './report.js';
import type { ThreadEnd } from './run-thread.js';
import type { StressOptions } from './options.js';
import {
  BLOCK,
  MAIN_THREAD,
  STATE,
  WORDS,
  blockWord,
  clientThread,
  clientThreads,
  deviceThreads,
  type StressLayout,
} from './spec.js';
import { StressThread } from './thread.js';
import { errnoText } from '../uapi/errno.js';

/** How often main looks at its threads. */
const LOOK_MS = 2;
/** Nobody getting on for so long is a hang. */
const STUCK_MS = 15_000;
/** A client that is killed at a random moment lives for so much longer, at most, than it was given. */
const KILL_SPREAD_MS = 10;

const IOVA_LAST = 2n ** 64n - 1n;

/** A thread's worker. */
interface Running {
  readonly thread: number;
  readonly worker: Worker;
  readonly isClient: boolean;
  isGone: boolean;
  /** Main asked for its end. */
  isKilled: boolean;
}

/** One run. */
class Supervisor {
  readonly #options: StressOptions;
  readonly #entry: URL;
  readonly #stuckLooks: number;
  readonly #arena: Arena;
  readonly #layout: StressLayout;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #control: number;
  readonly #space: AddressSpace;
  readonly #otherFrames: number;
  readonly #checker = new HistoryChecker();
  readonly #clients: readonly History[];
  readonly #devices: readonly History[];
  #lostFrames = 0;
  #running: readonly Running[] = [];
  #remains: Remains[] = [];
  readonly #deaths: Death[] = [];
  readonly #gaveUp = new Map<number, number>();
  #window: ExposureWindow = { ...NO_WINDOW };
  #segments = 0;
  #isStuck = false;
  #runningMs = 0;
  #operations = 0;
  #signal: AbortSignal | undefined;

  constructor(options: StressOptions, worker: URL, stuckMs: number) {
    this.#options = options;
    this.#entry = worker;
    this.#stuckLooks = stuckMs / LOOK_MS;
    const { arena, layout } = buildLayout(options);
    this.#arena = arena;
    this.#layout = layout;
    this.#words = arena.words;
    this.#control = layout.control >>> 2;
    const healthy = { ...options, pauses: false, faults: [], kills: [] };
    const main = new StressThread({ options: healthy, layout, thread: MAIN_THREAD }, arena);
    this.#space = new AddressSpace(main);
    this.#space.attach();
    this.#otherFrames = arena.kernelFramesInUse - tableFrames(arena, this.#space.table);
    const historyOf = (thread: number): History => {
      const buffer = layout.histories[thread];
      invariant(buffer !== undefined, `no history of thread ${thread}`);
      return new History(thread, buffer, arena.words, this.#control + WORDS.stamp);
    };
    this.#clients = [main.history, ...clientThreads(options).map(historyOf)];
    this.#devices = deviceThreads(options).map(historyOf);
  }

  /** `signal` ends the run with what has happened by then. */
  async run(tell: (progress: StressProgress) => void, signal: AbortSignal | undefined): Promise<StressReport> {
    const began = performance.now();
    this.#signal = signal;
    this.#running = this.#start();
    try {
      const isReady = await this.#untilStanding(Infinity, Infinity);
      if (isReady) await this.#segmentsUntilEnd(tell);
    } finally {
      await Promise.all(this.#running.map(({ worker }) => worker.terminate()));
    }
    this.#finish();
    return this.#report(performance.now() - began);
  }

  // --- threads ---

  #start(): Running[] {
    const { threads } = this.#options;
    return [...clientThreads(this.#options), ...deviceThreads(this.#options)].map((thread) => {
      const worker = new Worker(this.#entry, {
        workerData: { options: this.#options, layout: this.#layout, thread },
      });
      const isClient = thread < clientThread(threads);
      const running: Running = { thread, worker, isClient, isGone: false, isKilled: false };
      worker.on('message', (end: ThreadEnd) => this.#ended(running, end));
      worker.on('error', (error: unknown) => this.#ended(running, { end: 'broke', message: String(error) }));
      worker.on('exit', () => this.#exited(running));
      return running;
    });
  }

  #ended({ thread, isClient }: Running, end: ThreadEnd): void {
    if (end.end === 'done' && end.window !== undefined) this.#window = joinWindows(this.#window, end.window);
    if (end.end === 'gave-up') this.#gaveUp.set(end.errno, (this.#gaveUp.get(end.errno) ?? 0) + 1);
    if (end.end !== 'broke') return;
    const who = isClient ? `client ${thread - 2}` : `device ${thread - 2 - this.#options.threads}`;
    this.#giveUp('kernel-bug', `${who}: ${end.message}`);
  }

  /** Ends the run: nothing that happens from now on can be trusted. */
  #giveUp(kind: Alarm, detail: string): void {
    this.#checker.complain(kind, -1, detail);
    this.#space.thread.locks.poison();
  }

  #exited(running: Running): void {
    running.isGone = true;
    const isOver = this.#stateOf(running.thread) === STATE.ended;
    if (isOver || this.#space.thread.locks.isPoisoned) {
      this.#set(running.thread, BLOCK.state, isOver ? STATE.ended : STATE.dead);
      return;
    }
    if (!running.isClient) {
      this.#giveUp('device-died', `device ${running.thread - 2 - this.#options.threads} died`);
      return;
    }
    if (!running.isKilled) {
      this.#giveUp('kernel-bug', `client ${running.thread - 2} ended without a word, and nobody had asked it to`);
      return;
    }
    const remains = takeLocks(this.#space, running.thread);
    if (remains.death.outcome === 'given-up') this.#deaths.push(remains.death);
    else this.#remains.push(remains);
    this.#wake(WORDS.pause, 1);
  }

  #stateOf(thread: number): number {
    return Atomics.load(this.#words, blockWord(this.#layout, thread) + BLOCK.state);
  }

  #set(thread: number, field: number, value: number): void {
    Atomics.store(this.#words, blockWord(this.#layout, thread) + field, value);
  }

  #wake(word: number, value: number): void {
    Atomics.store(this.#words, this.#control + word, value);
    Atomics.notify(this.#words, this.#control + word);
  }

  /** Lets parked threads go on. They count as running from now on, whenever they wake up. */
  #release(): void {
    this.#wake(WORDS.pause, 0);
    for (const { thread } of this.#running) {
      if (this.#stateOf(thread) === STATE.parked) this.#set(thread, BLOCK.state, STATE.running);
    }
    Atomics.add(this.#words, this.#control + WORDS.generation, 1);
    Atomics.notify(this.#words, this.#control + WORDS.generation);
  }

  #done(threads: readonly Running[]): number {
    return threads.reduce(
      (sum, { thread }) => sum + Atomics.load(this.#words, blockWord(this.#layout, thread) + BLOCK.done),
      0,
    );
  }

  // --- segments ---

  async #segmentsUntilEnd(tell: (progress: StressProgress) => void): Promise<void> {
    const began = performance.now();
    const endMs = began + this.#options.seconds * 1000;
    for (;;) {
      const from = performance.now();
      this.#release();
      const isWhole = await this.#untilStanding(endMs, began);
      this.#runningMs += performance.now() - from;
      if (!isWhole) break;
      this.#endSegment();
      tell({
        elapsedMs: performance.now() - began,
        segments: this.#segments,
        operations: this.#operations,
        dmas: this.#checker.counts.dmas,
        violations: this.#checker.violationCount,
      });
      const clientsAreOver = this.#running.every(({ isClient, isGone, thread }) => {
        return !isClient || isGone || this.#stateOf(thread) === STATE.ended;
      });
      if (
        performance.now() >= endMs ||
        this.#signal?.aborted === true ||
        clientsAreOver ||
        this.#checker.violationCount > 0
      )
        break;
    }
    this.#wake(WORDS.stop, 1);
    this.#release();
    await this.#untilGone();
  }

  /**
   * Waits until everybody stands still or is gone; asks for it at `endMs`. `runsSince`: when the run began, Infinity before. False when the run cannot go on: the address
   * space was given up, or nothing moves.
   */
  async #untilStanding(endMs: number, runsSince: number): Promise<boolean> {
    // Looks and not seconds are counted: while this process is stopped nobody can move.
    let still = { looks: 0, done: NaN };
    const kills = this.#options.kills.flatMap((kill) => (kill.at === 'time' ? [kill] : []));
    const random = new RandomStream(this.#options.seed, 'stress/kills');
    const killMs = kills.map(({ afterMs }) => runsSince + afterMs + random.below(KILL_SPREAD_MS * 1000) / 1000);
    for (;;) {
      await sleep(LOOK_MS);
      const now = performance.now();
      if (this.#space.thread.locks.isPoisoned) return false;
      if (now >= endMs || (this.#signal?.aborted === true && endMs !== Infinity)) this.#wake(WORDS.pause, 1);
      for (const [i, { client }] of kills.entries())
        if (now >= (killMs[i] ?? Infinity)) this.#kill(clientThread(client));
      this.#killDoomed();
      const isStanding = ({ thread, isGone }: Running): boolean =>
        isGone || this.#stateOf(thread) === STATE.parked || this.#stateOf(thread) === STATE.ended;
      if (this.#running.every(isStanding) && this.#running.every(({ isKilled, isGone }) => isGone || !isKilled)) {
        return true;
      }
      // When no client runs any more nobody else asks the devices to stand.
      const clients = this.#running.filter(({ isClient }) => isClient);
      if (endMs !== Infinity && clients.every(isStanding)) this.#wake(WORDS.pause, 1);
      // When clients stand it is the others' turn to stand, too: what devices do meanwhile is no progress.
      const standing = this.#running.filter(isStanding).length;
      const done = clients.every(isStanding) ? -1 - standing : this.#done(clients);
      if (done !== still.done) still = { looks: 0, done };
      else if (++still.looks > this.#stuckLooks) {
        this.#stuck(clients.every(isStanding) ? 'not every device stands still' : 'no client has moved');
        return false;
      }
    }
  }

  /** Ends those that stand at the gate where they are to die: they wait for nothing else. */
  #killDoomed(): void {
    for (const { thread, isGone } of this.#running)
      if (!isGone && this.#stateOf(thread) === STATE.doomed) this.#kill(thread);
  }

  #kill(thread: number): void {
    const running = this.#running.find((other) => other.thread === thread);
    if (running === undefined || running.isKilled || running.isGone) return;
    running.isKilled = true;
    void running.worker.terminate();
  }

  #stuck(what: string): void {
    const where = this.#running
      .filter(({ isGone }) => !isGone)
      .map(({ thread }) => `thread ${thread} in state ${this.#stateOf(thread)}`);
    this.#isStuck = true;
    this.#giveUp('stuck', `${what} for ${this.#stuckLooks * LOOK_MS} ms: ${where.join(', ')}`);
  }

  /** Waits for every worker's end; those that do not come to one are terminated, as all are where one hangs already. */
  async #untilGone(): Promise<void> {
    if (this.#isStuck) return;
    for (let looks = 0; this.#running.some(({ isGone }) => !isGone); looks++) {
      if (looks > this.#stuckLooks) {
        this.#stuck('not every thread has ended');
        return;
      }
      this.#killDoomed();
      await sleep(LOOK_MS);
    }
  }

  /** Everybody stands still: what happened is checked, and forgotten. */
  #endSegment(): void {
    for (const remains of this.#remains.splice(0)) {
      const death = repair(this.#space, remains, this.#otherFrames + this.#lostFrames);
      this.#lostFrames += death.tableFrames;
      this.#deaths.push(death);
    }
    this.#check();
    if (this.#checker.violationCount === 0) {
      audit(this.#space, this.#checker, this.#otherFrames + this.#lostFrames);
    }
    this.#segments++;
    for (const history of [...this.#clients, ...this.#devices]) history.reset();
    Atomics.store(this.#words, this.#control + WORDS.stamp, 0);
  }

  #check(): void {
    this.#checker.check(this.#clients, this.#devices);
    this.#operations = this.#done(this.#running.filter(({ isClient }) => isClient));
  }

  // --- end ---

  /** After the last thread: what is left of the history, and an address space that can be emptied without a trace. */
  #finish(): void {
    this.#check();
    const { thread, iopt } = this.#space;
    if (thread.locks.isPoisoned || this.#checker.violationCount > 0) return;
    const { rc } = this.#space.unmap(0n, IOVA_LAST);
    thread.run(iopt.flush_unmapped());
    if (rc !== 0 || iopt.areas.size > 0)
      this.#checker.complain('audit', -1, `the last unmap ended with ${rc === 0 ? 'areas left' : errnoText(-rc)}`);
    audit(this.#space, this.#checker, this.#otherFrames + this.#lostFrames);
    if (this.#space.pinnedVm.value !== 0) {
      this.#checker.complain('audit', -1, `${this.#space.pinnedVm.value} pages are pinned after the last unmap`);
    }
    this.#space.table.destroy();
    const left = this.#arena.kernelFramesInUse - this.#otherFrames - this.#lostFrames;
    if (left !== 0) this.#checker.complain('audit', -1, `${left} table frames are in use after the table was freed`);
  }

  #report(wallMs: number): StressReport {
    const { counts, violations, violationCount } = this.#checker;
    const reason = violationCount > 0 ? undefined : this.#inconclusive();
    return {
      options: this.#options,
      verdict: violationCount > 0 ? 'violated' : reason === undefined ? 'held' : 'inconclusive',
      reason,
      wallMs,
      runningMs: this.#runningMs,
      segments: this.#segments,
      operations: this.#operations,
      counts,
      violations,
      violationCount,
      deaths: this.#deaths,
      gaveUp: this.#gaveUp,
      window: this.#window,
    };
  }

  /** Why nothing follows from a run in which nothing was found. */
  #inconclusive(): string | undefined {
    if (this.#deaths.some(({ outcome }) => outcome === 'given-up')) {
      return 'the address space was given up after a client died in it';
    }
    if (this.#operations === 0) return 'no client did anything';
    if (this.#options.devices > 0 && this.#checker.counts.dmas === 0 && this.#options.workload === 'mixed') {
      return 'no device did anything';
    }
    if (this.#options.kills.length > 0 && !this.#running.some(({ isKilled }) => isKilled)) {
      return 'no client was killed';
    }
    const { faults } = this.#options;
    if (faults.length === 1) return `fault ${faults.join()} was on and was not found`;
    if (faults.length > 1) return `faults ${faults.join(', ')} were on and none was found`;
    return undefined;
  }
}

/** Around a run. */
export interface StressSurroundings {
  /** Called after each segment. */
  readonly tell?: (progress: StressProgress) => void;
  /** The built entry of its workers (workers/stress.ts); beside this module's own when not given. */
  readonly worker?: URL;
  /** Ends the run early. */
  readonly signal?: AbortSignal;
  /** How long threads that do not get on are waited for, in milliseconds. */
  readonly stuckMs?: number;
}

/** Runs stress as the options say. */
export async function runStress(options: StressOptions, around: StressSurroundings = {}): Promise<StressReport> {
  const { tell = () => undefined, stuckMs = STUCK_MS, signal } = around;
  const { worker = new URL('../../workers/stress.js', import.meta.url) } = around;
  return await new Supervisor(options, worker, stuckMs).run(tell, signal);
}
