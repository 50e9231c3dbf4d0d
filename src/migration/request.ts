/**
 * What a migration is asked for, what came of it, and the words for both. No behaviour.
 */
import type { HostClient } from '../testbed/lab.js';
import type { Conflict } from '../vmm/conflicts.js';
import type { VmmSpec } from '../vmm/vmm.js';
import type { MemoryComparison } from './compare.js';
import type { ConvergenceLimits } from './convergence.js';
import type { DirtySource } from './dirty-sources.js';

/**
 * What happens to passthrough devices that are attached when a migration starts: they migrate with their state (one that cannot
 * blocks the migration, as in QEMU); any device blocks it; they leave before the first round, as net_failover does; they leave when the
 * guest is stopped and work until then.
 */
export const ATTACHED_DEVICE_POLICIES = ['migrate', 'refuse', 'unplug-first', 'unplug-at-stop'] as const;
export type AttachedDevicePolicy = (typeof ATTACHED_DEVICE_POLICIES)[number];

/** The way of a migration. Until `switchover` is over it can be taken back. */
export const MIGRATION_PHASES = ['setup', 'precopy', 'quiesce', 'stop-copy', 'switchover', 'resume'] as const;
export type MigrationPhase = (typeof MIGRATION_PHASES)[number];
/** Phases in which a person can still cancel. */
export const CANCEL_PHASES = ['setup', 'precopy', 'quiesce', 'stop-copy', 'switchover'] as const;

/** A migration as it is asked for. */
export interface MigrationRequest {
  readonly to: HostClient;
  readonly limits?: Partial<ConvergenceLimits>;
  /** `migrate` when not given. */
  readonly attachedDevices?: AttachedDevicePolicy;
  /** Which function of the destination takes the place of which of the source; the same address when not given. */
  readonly devices?: ReadonlyMap<string, string>;
  /** How pages that devices write are found; `auto` when not given. */
  readonly dirtySource?: DirtySource;
  /** The guest is not stopped before the destination has loaded what devices call their initial data (QEMU: switchover-ack). */
  readonly switchoverAck?: boolean;
  /** Given up when it enters that phase. */
  readonly cancelAt?: (typeof CANCEL_PHASES)[number];
  /** Given up that long after its start, if it is not resuming by then. */
  readonly cancelAfterNs?: number;
  /** How the VMM on the destination is started, where it differs from the source's. */
  readonly destination?: Omit<VmmSpec, 'name'>;
  /** Compare memory page by page and device state byte by byte at switchover; true when not given. Costs no downtime in the statistics. */
  readonly verify?: boolean;
}

/** Why a migration did not happen. */
export const MIGRATION_FAILURES = [
  'guest-not-running',
  'already-migrating',
  'no-link',
  'device-attached',
  'no-p2p',
  'no-dirty-tracking',
  'destination-refused',
  'link-lost',
  'not-converging',
  'stream-damaged',
  'device-failed',
  'cancelled',
] as const;
export type MigrationFailureReason = (typeof MIGRATION_FAILURES)[number];

/** One round of copying. */
export interface RoundStatistics {
  readonly pages: number;
  readonly zeroPages: number;
  readonly wireBytes: number;
  readonly elapsedNs: number;
  /** State of devices sent in this round. */
  readonly deviceBytes: number;
}

/** What a migration cost, up to its end or failure. */
export interface MigrationStatistics {
  /** The last one is the one sent while the guest stood still, if it came to that. */
  readonly rounds: readonly RoundStatistics[];
  readonly pages: number;
  readonly wireBytes: number;
  readonly deviceBytes: number;
  /** From the pause to the resume, without the comparisons. */
  readonly downtimeNs: number;
  readonly totalNs: number;
}

/** What was found about the devices that moved. */
export interface DeviceFindings {
  /** Destination's addresses of devices whose state differs from what the source's was. */
  readonly differing: readonly string[];
  /** DMA and messages of devices that should have stood still. */
  readonly afterStop: readonly string[];
  /** Devices that could start DMA while another was stopped already. */
  readonly notQuiesced: readonly string[];
}

/** What came of a migration. */
export interface MigrationResult {
  readonly outcome: 'completed' | 'refused' | 'failed';
  readonly reason?: MigrationFailureReason;
  /** For people: which device, which error. */
  readonly detail: string;
  /** The phase it had come to. */
  readonly phase: MigrationPhase;
  /** The errno that ended it. */
  readonly code?: string;
  readonly conflicts: readonly Conflict[];
  readonly from: string;
  /** Where the guest runs now. */
  readonly runsOn: string;
  readonly statistics: MigrationStatistics;
  /** Absent when it was not compared. */
  readonly memory?: MemoryComparison;
  readonly devices?: DeviceFindings;
  /** Devices taken from the guest and not given back. */
  readonly unplugged: readonly string[];
  /** Devices that had to be reset after a failure: their guest's driver finds them without state. */
  readonly reset: readonly string[];
}

/** Ends a migration before switchover; the guest stays where it is. */
export class MigrationStopped extends Error {
  readonly reason: MigrationFailureReason;
  readonly code: string | undefined;
  readonly conflicts: readonly Conflict[];

  override readonly name = 'MigrationStopped';

  constructor(reason: MigrationFailureReason, detail: string, code?: string, conflicts: readonly Conflict[] = []) {
    super(detail);
    this.reason = reason;
    this.code = code;
    this.conflicts = conflicts;
  }
}
