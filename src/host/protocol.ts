/**
 * Messages between the main node and a host node, and what a host answers.
 *
 * Three kinds of request reach a host: a process's system call (src/uapi/syscall.ts), and the laboratory's own commands,
 * which stand for hands on the machine (plugging a card, arming a fault, reading the bus analyser). Every request gets
 * exactly one reply with the same `id`. Plain data only: it is packed by msgpackr between threads.
 */
import type { FaultId, FaultRule } from '../runtime/faults.js';
import type { ErrorDetail } from '../uapi/errno.js';
import type { SyscallReply, SyscallRequest } from '../uapi/syscall.js';

/** Credentials and limits a process starts with. */
export interface ProcessSpec {
  readonly name: string;
  readonly uid: number;
  /** Effective capabilities, e.g. `CAP_IPC_LOCK`. */
  readonly capabilities: readonly string[];
  /** RLIMIT_MEMLOCK in bytes; absent = unlimited. */
  readonly memlockBytes?: bigint;
}

/** Where one piece of a device's transaction ended. `address` is what was decoded there (PA, or bus address of a BAR). */
export interface TransactionEnd {
  readonly kind: 'memory' | 'peer' | 'doorbell' | 'aborted' | 'nowhere';
  readonly iova: bigint;
  readonly lengthBytes: number;
  readonly address?: bigint;
  /** `0000:03:00.0 BAR 2`, `its@c6000000`, the name of the SMMU event, ... */
  readonly where: string;
}

/** One transaction as the bus analyser saw it. */
export interface TransactionRecord {
  readonly number: number;
  readonly timeNs: number;
  readonly device: string;
  readonly direction: 'read' | 'write' | 'msi';
  readonly iova: bigint;
  readonly lengthBytes: number;
  readonly ends: readonly TransactionEnd[];
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
