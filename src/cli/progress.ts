/**
 * Progress on standard error: one line that is rewritten on a terminal, one line for each finished scenario in a pipe.
 *
 * Only the wall clock decides when the line is redrawn; nothing here reaches a run.
 */
import { durationText } from '../scenario/units.js';
import type { ScenarioOutcome } from '../scenario/execute.js';

/** Longest time between two redraws of the live line. */
const REDRAW_MS = 100;
/** Shortest time between two lines to a pipe. */
const PIPE_MS = 5000;

/** Where progress is written. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  /** 0 where nobody knows. */
  readonly columns?: number;
  write(text: string): unknown;
}

/** `[2/3] text`: what is told of one of several; of the only one the text alone. */
export function ofSeveral(index: number, total: number, text: string): string {
  return total === 1 ? text : `[${index + 1}/${total}] ${text}`;
}

/** Writes a terminal's line anew, as much of it as there is room for. */
function rewrite(stream: ProgressStream, text: string): void {
  stream.write(`\r\u001b[K${text.slice(0, (stream.columns || 80) - 1)}`);
}

/** Reports how far a run is. */
export class Progress {
  readonly #stream: ProgressStream;
  readonly #total: number;
  readonly #running = new Map<string, number>();
  #done = 0;
  #drawnMs = 0;

  constructor(stream: ProgressStream, total: number) {
    this.#stream = stream;
    this.#total = total;
  }

  /** A scenario is under way and has reached this virtual time. */
  advance(name: string, virtualNs: number): void {
    this.#running.set(name, virtualNs);
    if (this.#stream.isTTY !== true || performance.now() - this.#drawnMs < REDRAW_MS) return;
    this.#drawnMs = performance.now();
    const running = [...this.#running].map(([what, ns]) => `${what} ${durationText(ns)}`).join(', ');
    rewrite(this.#stream, `[${this.#done}/${this.#total}] ${running}`);
  }

  /** A scenario has ended. */
  finish(outcome: ScenarioOutcome): void {
    this.#done++;
    this.#running.delete(outcome.name);
    if (this.#stream.isTTY === true) return;
    this.#stream.write(`[${this.#done}/${this.#total}] ${outcome.verdict} ${outcome.name}\n`);
  }

  /** Removes the live line. */
  end(): void {
    if (this.#stream.isTTY === true) this.#stream.write('\r\u001b[K');
  }
}

/** One line that is rewritten on a terminal; a pipe gets it now and then. */
export class LiveLine {
  readonly #stream: ProgressStream;
  readonly #pipeMs: number;
  #shownMs: number;

  /** `pipeMs`: time between two lines to a pipe. */
  constructor(stream: ProgressStream, pipeMs = PIPE_MS) {
    this.#stream = stream;
    this.#pipeMs = pipeMs;
    // The first word to a pipe comes when the work has taken as long as later ones are apart.
    this.#shownMs = stream.isTTY === true ? -Infinity : performance.now();
  }

  show(text: string): void {
    const isTerminal = this.#stream.isTTY === true;
    const nowMs = performance.now();
    if (nowMs - this.#shownMs < (isTerminal ? REDRAW_MS : this.#pipeMs)) return;
    this.#shownMs = nowMs;
    if (isTerminal) rewrite(this.#stream, text);
    else this.#stream.write(`${text}\n`);
  }

  clear(): void {
    if (this.#stream.isTTY === true) this.#stream.write('\r\u001b[K');
  }
}
