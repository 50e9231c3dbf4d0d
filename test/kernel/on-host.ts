/** Runs client code against one whole host, in this thread: the way tests reach the kernel at the system-call boundary. */
import type { HostDescription } from '../../src/hardware/description.js';
import type { Task } from '../../src/runtime/task.js';
import type { HostClient } from '../../src/testbed/lab.js';
import type { Process } from '../../src/testbed/process.js';
import { run } from '../../src/testbed/run.js';
import { KernelError } from '../../src/uapi/errno.js';
import { ampereLike } from '../fixtures/hosts.js';

/** Runs `body` with a root process on a host; rethrows what it throws. */
export async function onHost(
  body: (process: Process, host: HostClient) => Task<void>,
  description: HostDescription = ampereLike(),
): Promise<void> {
  let error: Error | undefined;
  const outcome = await run({
    seed: 1,
    placement: 'inline',
    strategy: 'in-order',
    hosts: [description],
    links: [],
    main: function* (lab) {
      try {
        const host = lab.host(description.name);
        yield* body(yield* host.spawn({ name: 'p', uid: 0, capabilities: ['CAP_IPC_LOCK'] }), host);
      } catch (thrown) {
        error = thrown instanceof Error ? thrown : new Error(String(thrown));
      }
    },
  });
  if (error !== undefined) throw error;
  if (outcome.failure !== undefined) throw new Error(outcome.failure.message);
}

/** The errno name a call fails with; `ok` when it does not. */
export function* errorOf(call: Task<unknown>): Task<string> {
  try {
    yield* call;
    return 'ok';
  } catch (error) {
    if (error instanceof KernelError) return error.code;
    throw error;
  }
}
