/**
 * When does a pre-copy stop? As QEMU decides it (migration_iteration_run): when what is left would cross the link within
 * the downtime limit at the bandwidth just measured. Pure.
 */

/** What a migration may cost. */
export interface ConvergenceLimits {
  readonly downtimeLimitNs: number;
  /** Rounds of copying after which a guest that dirties faster than the link carries is given up or stopped. */
  readonly maxRounds: number;
  readonly onNoConvergence: 'cancel' | 'stop';
  /** Bandwidth to reckon with, bit/s, instead of the one measured (QEMU: avail-switchover-bandwidth). */
  readonly switchoverBandwidth?: number;
}

/** QEMU's default downtime limit, 300 ms; thirty rounds. */
export const DEFAULT_LIMITS: ConvergenceLimits = {
  downtimeLimitNs: 300_000_000,
  maxRounds: 30,
  onNoConvergence: 'cancel',
};

/** Where a pre-copy stands after a round. */
export interface Progress {
  /** Rounds done. */
  readonly rounds: number;
  /** Bytes on the link for the pages that are dirty now and the state of devices. */
  readonly remainingBytes: number;
  /** Bytes and time of the last round. */
  readonly sentBytes: number;
  readonly elapsedNs: number;
}

export type Decision = 'iterate' | 'stop' | 'cancel';

/** Expected downtime in nanoseconds if the guest were stopped now. */
export function expectedDowntimeNs(progress: Progress, switchoverBandwidth?: number): number {
  if (progress.remainingBytes === 0) return 0;
  if (switchoverBandwidth !== undefined) return (progress.remainingBytes * 8e9) / switchoverBandwidth;
  if (progress.sentBytes === 0) return Infinity;
  return (progress.remainingBytes * progress.elapsedNs) / progress.sentBytes;
}

export function decide(progress: Progress, limits: ConvergenceLimits): Decision {
  if (expectedDowntimeNs(progress, limits.switchoverBandwidth) <= limits.downtimeLimitNs) return 'stop';
  if (progress.rounds < limits.maxRounds) return 'iterate';
  return limits.onNoConvergence;
}
