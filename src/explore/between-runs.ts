/** What happens between two runs and is no part of either. */

/** Lets the process hear of signals; whether to go on. */
export async function goesOn(signal: AbortSignal | undefined): Promise<boolean> {
  // A signal that came before the event loop was ever entered is heard in its second turn.
  for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
  return signal?.aborted !== true;
}
