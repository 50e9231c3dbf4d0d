/**
 * How kernel code says more about an error than its errno.
 *
 * Linux returns a number; a report wants to know which range was in whose way. Functions that can fail for a reason worth
 * telling take a {@link FailureSink}: `return sink.fail(EADDRINUSE, {...})`. A system call's context is one.
 */
import type { ErrorDetail } from '../../uapi/errno.js';

/** Takes facts about an error and returns it as the kernel does, negated. */
export interface FailureSink {
  fail(errno: number, detail?: ErrorDetail): number;
}

/** For callers that have nobody to tell. */
export const silentSink: FailureSink = { fail: (errno) => -errno };
