/** Exit statuses: a contract for scripts (design.md, "The command line"). */
export const EXIT = {
  /** All held. */
  ok: 0,
  /** Something failed. */
  failed: 1,
  /** Nothing failed, but not everything could be decided. */
  inconclusive: 2,
  /** Wrong usage or a bad input file. */
  usage: 64,
  /** The testbed itself broke. */
  broken: 70,
  /** Ended by Ctrl-C: 128 and the number of SIGINT. */
  interrupted: 130,
  /** Whoever read the output went away before its end (`| head`): 128 and the number of SIGPIPE. */
  unread: 141,
} as const;

/** Wrong usage that commander cannot see. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}
