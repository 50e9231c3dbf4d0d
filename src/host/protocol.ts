/**
 * Messages between the main node and a host node, and what a host answers.
 *
 * Three kinds of request reach a host: a process's system call (src/uapi/syscall.ts), and the laboratory's own commands,
 * which stand for hands on the machine (plugging a card, arming a fault, reading the bus analyser). Every request gets
 * exactly one reply with the same `id`. Plain data only: it is packed by msgpackr between threads.
 */
import type { LabCommand, LabReply } from '../kernel/lab.js';
import type { SyscallReply, SyscallRequest } from '../uapi/syscall.js';

export type { LabCommand, LabReply, ProcessSpec } from '../kernel/lab.js';
export type { TransactionEnd, TransactionRecord } from '../hardware/analyser.js';

/** What the main node asks of a host. */
export type HostRequest =
  | { readonly id: number; readonly pid: number; readonly syscall: SyscallRequest }
  | { readonly id: number; readonly command: LabCommand };

/** What a host answers. */
export type HostReply =
  { readonly id: number; readonly syscall: SyscallReply } | { readonly id: number; readonly lab: LabReply };
