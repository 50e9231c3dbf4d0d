/**
 * Hands on the machine: what the laboratory, not a process, asks of a host.
 *
 * Starting processes, plugging cards, arming faults, reading the bus analyser and the leak counters. Plain data: it crosses
 * between threads.
 */
import type { TransactionRecord } from '../hardware/analyser.js';
import type { FaultId, FaultRule } from '../runtime/faults.js';
import type { ErrorDetail } from '../uapi/errno.js';

/** Credentials and limits a process starts with. */
export interface ProcessSpec {
  readonly name: string;
  readonly uid: number;
  /** Effective capabilities, e.g. `CAP_IPC_LOCK`. */
  readonly capabilities: readonly string[];
  /** RLIMIT_MEMLOCK in bytes; absent = unlimited. */
  readonly memlockBytes?: bigint;
}

/** Hands on the machine. */
export type LabCommand =
  | { readonly lab: 'spawn'; readonly spec: ProcessSpec }
  | { readonly lab: 'plug'; readonly bdf: string }
  /** `surprise`: the card is gone before anybody is asked. */
  | { readonly lab: 'unplug'; readonly bdf: string; readonly surprise?: boolean }
  /** `isHeld`: later commands do not change it. */
  | { readonly lab: 'arm-fault'; readonly fault: FaultId; readonly rule: FaultRule; readonly isHeld?: boolean }
  | { readonly lab: 'disarm-fault'; readonly fault: FaultId }
  /** Transactions with number >= `from`, oldest first. */
  | { readonly lab: 'transactions'; readonly from: number }
  /** All of a migratable card's state, as the testbed sees it: no arc of its state machine is taken. -ENODEV */
  | { readonly lab: 'device-state'; readonly bdf: string }
  /** What a function's BARs hold at a bus address: looked at, not read by anybody; EINVAL where it has none there. */
  | { readonly lab: 'peek-bar'; readonly bdf: string; readonly address: bigint; readonly lengthBytes: number }
  /** Holds the kernel against what must be true while no call is at work. A rule that is broken ends the run. */
  | { readonly lab: 'audit' }
  /** Every process is gone at once, as if killed. */
  | { readonly lab: 'exit-all' }
  /** Object and page counts that must return to their initial values. */
  | { readonly lab: 'counters' };

/** Answer to a lab command. */
export interface LabReply {
  /** A pid for `spawn`; 0, or -errno. */
  readonly result: number;
  /** Address of the process's scratch area, for `spawn`: 1 MiB of ordinary memory for arguments. */
  readonly scratch?: bigint;
  readonly transactions?: readonly TransactionRecord[];
  readonly bytes?: Uint8Array;
  readonly counters?: Readonly<Record<string, number>>;
  readonly detail?: ErrorDetail;
}
