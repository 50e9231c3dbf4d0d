/**
 * Links between hosts: bandwidth, latency, loss.
 *
 * A link has two directions that do not disturb each other. In one direction bytes leave one after another at the link's
 * bandwidth; the last byte of a message arrives `latencyNs` after it left. Both ends of a link are VMMs and orchestrators,
 * which live in the main node, so a link needs no messages between nodes.
 */
import type { NodeRuntime } from '../runtime/node-runtime.js';
import type { Task } from '../runtime/task.js';

/** A link as a scenario describes it. */
export interface LinkSpec {
  readonly between: readonly [string, string];
  readonly bandwidthBitsPerSecond: number;
  readonly latencyNs: number;
}

/** The link was down while something was in flight, or when it should have been sent. */
export class LinkLostError extends Error {
  override readonly name = 'LinkLostError';
  readonly link: string;

  constructor(link: string) {
    super(`link ${link} is down`);
    this.link = link;
  }
}

/** One direction of a link. */
export class Link {
  readonly from: string;
  readonly to: string;
  readonly bandwidthBitsPerSecond: number;
  readonly latencyNs: number;
  readonly #runtime: NodeRuntime;
  #busyUntilNs = 0;
  #isDown = false;
  #losses = 0;
  #sentBytes = 0;

  constructor(runtime: NodeRuntime, from: string, to: string, spec: LinkSpec) {
    this.#runtime = runtime;
    this.from = from;
    this.to = to;
    this.bandwidthBitsPerSecond = spec.bandwidthBitsPerSecond;
    this.latencyNs = spec.latencyNs;
  }

  /** Bytes handed to this direction so far. */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  get isDown(): boolean {
    return this.#isDown;
  }

  /** Takes the direction down: what is in flight is lost, later sends fail until {@link repair}. */
  lose(): void {
    this.#isDown = true;
    this.#losses++;
    this.#runtime.emit('link.down', { from: this.from, to: this.to });
  }

  repair(): void {
    this.#isDown = false;
    this.#busyUntilNs = this.#runtime.now;
    this.#runtime.emit('link.up', { from: this.from, to: this.to });
  }

  /** Nanoseconds that `lengthBytes` occupy the direction. */
  transferNs(lengthBytes: number): number {
    return Math.ceil((lengthBytes * 8 * 1e9) / this.bandwidthBitsPerSecond);
  }

  /** Sends and waits until the last byte has arrived. */
  *send(lengthBytes: number): Task<void> {
    if (this.#runtime.faults.fires('link.lost')) this.lose();
    if (this.#isDown) throw new LinkLostError(`${this.from}-${this.to}`);
    const lossesBefore = this.#losses;
    const leavesNs = Math.max(this.#runtime.now, this.#busyUntilNs) + this.transferNs(lengthBytes);
    this.#busyUntilNs = leavesNs;
    this.#sentBytes += lengthBytes;
    yield leavesNs - this.#runtime.now + this.latencyNs;
    if (this.#losses !== lossesBefore) throw new LinkLostError(`${this.from}-${this.to}`);
  }
}
