/**
 * Ctrl-C: a command that works for long ends with what it has. A second Ctrl-C ends the process.
 *
 * The signal is only heard between two turns of the event loop: whoever works without waiting has to let it turn now and then, and
 * what does not come to an end cannot be ended so.
 */
import { EXIT } from './exit-codes.js';

/** Carries out `body`, whose signal is aborted by Ctrl-C; then the exit status says so, unless `body` has found a failure. */
export async function interruptible(body: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const interrupt = new AbortController();
  const onSignal = (): void => {
    if (interrupt.signal.aborted) process.exit(EXIT.interrupted);
    interrupt.abort();
  };
  process.on('SIGINT', onSignal);
  try {
    await body(interrupt.signal);
  } finally {
    process.off('SIGINT', onSignal);
    if (interrupt.signal.aborted && process.exitCode !== EXIT.failed) process.exitCode = EXIT.interrupted;
  }
}
