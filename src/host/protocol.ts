/**
 * Messages between the main node and a host node, and what a host answers.
 *
 * Three kinds of request reach a host: a process's system call (src/uapi/syscall.ts), and the laboratory's own commands,
 * which stand for hands on the machine (plugging a card, arming a fault, reading the bus analyser). Every request gets
 * exactly one reply with the same `id`. Plain data only: it is packed by msgpackr between threads.
 */
import type { TransactionRecord } from '../hardware/analyser.js';
import type { FaultId, FaultRule } from '../runtime/faults.js';
import type { ErrorDetail } from '../uapi/errno.js';
import type { SyscallReply, SyscallRequest } from '../uapi/syscall.js';

export type { TransactionEnd, TransactionRecord } from '../hardware/analyser.js';

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
  | { readonly lab: 'unplug'; readonly bdf: string }
  | { readonly lab: 'arm-fault'; readonly fault: FaultId; readonly rule: FaultRule }
  | { readonly lab: 'disarm-fault'; readonly fault: FaultId }
  /** Transactions with number >= `from`, oldest first. */
  | { readonly lab: 'transactions'; readonly from: number }
  /** Object and page counts that must return to their initial values. */
  | { readonly lab: 'counters' };

/** Answer to a lab command. */
export interface LabReply {
  /** A pid for `spawn`; 0, or -errno. */
  readonly result: number;
  /** Address of the process's scratch area, for `spawn`: 1 MiB of ordinary memory for arguments. */
  readonly scratch?: bigint;
  readonly transactions?: readonly TransactionRecord[];
  readonly counters?: Readonly<Record<string, number>>;
  readonly detail?: ErrorDetail;
}

/** What the main node asks of a host. */
export type HostRequest =
  | { readonly id: number; readonly pid: number; readonly syscall: SyscallRequest }
  | { readonly id: number; readonly command: LabCommand };

/** What a host answers. */
export type HostReply =
  { readonly id: number; readonly syscall: SyscallReply } | { readonly id: number; readonly lab: LabReply };
