/** A binary heap of timed actions; equal times fire in the order they were added. */

interface Timer {
  readonly timeNs: number;
  readonly order: number;
  readonly action: () => void;
}

function before(a: Timer, b: Timer): boolean {
  return a.timeNs !== b.timeNs ? a.timeNs < b.timeNs : a.order < b.order;
}

/** Actions ordered by (time, order of adding). Times are virtual nanoseconds. */
export class TimerHeap {
  readonly #heap: Timer[] = [];
  #order = 0;

  add(timeNs: number, action: () => void): void {
    const heap = this.#heap;
    const timer = { timeNs, order: this.#order++, action };
    let index = heap.length;
    heap.push(timer);
    while (index > 0) {
      const parentIndex = (index - 1) >> 1;
      const parent = heap[parentIndex];
      if (parent === undefined || !before(timer, parent)) break;
      heap[index] = parent;
      index = parentIndex;
    }
    heap[index] = timer;
  }

  /** Time of the earliest action, Infinity when there is none. */
  nextTime(): number {
    return this.#heap[0]?.timeNs ?? Infinity;
  }

  /** Runs every action that was due at `timeNs` when the call began, in order. */
  fireAt(timeNs: number): void {
    const due: Timer[] = [];
    while (this.nextTime() === timeNs) due.push(this.#pop());
    for (const timer of due) timer.action();
  }

  #pop(): Timer {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined) throw new RangeError('pop of an empty heap');
    if (heap.length > 0) this.#sink(last);
    return top;
  }

  #sink(timer: Timer): void {
    const heap = this.#heap;
    let index = 0;
    for (;;) {
      const left = heap[2 * index + 1];
      const right = heap[2 * index + 2];
      if (left === undefined) break;
      const useRight = right !== undefined && before(right, left);
      const child = useRight ? right : left;
      if (!before(child, timer)) break;
      heap[index] = child;
      index = 2 * index + (useRight ? 2 : 1);
    }
    heap[index] = timer;
  }
}
