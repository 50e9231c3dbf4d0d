/**
 * The life of a client's or a device's thread: ready, go, end. What it has to tell main at its end travels as a message.
 *
 * The message comes before the word that says the thread is over: whoever acts on the word may end the worker, and with it
 * what it had not said yet.
 */
import { OwnerDiedError } from '../core/robust-lock.js';
import { Client } from './client.js';
import { Device } from './device.js';
import type { ExposureWindow } from './recorded-domain.js';
import { BLOCK, STATE, deviceThreads, type ThreadSpec } from './spec.js';
import { StressThread } from './thread.js';

/** How a thread ended. */
export type ThreadEnd =
  | { readonly end: 'done'; readonly window?: ExposureWindow }
  /** The address space was given up under it. */
  | { readonly end: 'gave-up'; readonly errno: number }
  /** Kernel code or the testbed broke a rule. */
  | { readonly end: 'broke'; readonly message: string };

/** Runs a thread from its start to its end, and tells how it ended. */
export function runThread(spec: ThreadSpec, tell: (end: ThreadEnd) => void): void {
  const thread = new StressThread(spec);
  try {
    if (deviceThreads(spec.options).includes(spec.thread)) {
      const device = new Device(thread);
      thread.park();
      device.run();
      tell({ end: 'done' });
      thread.note(BLOCK.state, STATE.ended);
      return;
    }
    const client = new Client(thread);
    thread.park();
    client.run();
    tell({ end: 'done', window: { ...client.space.domain.window } });
    thread.note(BLOCK.state, STATE.ended);
  } catch (error) {
    tell(endOf(error));
    thread.note(BLOCK.state, STATE.dead);
  }
}

function endOf(error: unknown): ThreadEnd {
  if (error instanceof OwnerDiedError) return { end: 'gave-up', errno: error.errno };
  return { end: 'broke', message: error instanceof Error ? (error.stack ?? error.message) : String(error) };
}
