/** What happens between two runs and is no part of either. */

/** Lets the process hear of signals; whether to go on. */
export async function goesOn(signal: AbortSignal | undefined): Promise<boolean> {
  await new Promise((resolve) => setImmediate(resolve));
  return signal?.aborted !== true;
}
