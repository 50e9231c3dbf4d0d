/**
 * System calls as they cross from a client to a host's kernel: plain data, real bytes.
 *
 * A pointer argument is an address in the caller's address space. So that a call costs one message, the request carries
 * what the caller would have stored to its own memory just before (`stage`) and asks for what it would load just after
 * (`collect`); the kernel itself only ever sees the addresses and copies from and to the process's memory, with EFAULT
 * where nothing is mapped. `load`, `store` and the page calls are not system calls but the process's own accesses.
 */
import type { ErrorDetail } from './errno.js';

/** What pages hold. A *stamp* names the content of a page nobody wrote bytes to (src/core: stamp 0 is all zeroes). */
export type PageRun =
  | { readonly firstPage: number; readonly pages: number; readonly stamp: number; readonly step: 0 | 1 }
  | { readonly firstPage: number; readonly pages: 1; readonly bytes: Uint8Array };

/** A run as it is counted from a page `by` pages further down. */
export function movedRun(run: PageRun, by: number): PageRun {
  if (by === 0) return run;
  const firstPage = run.firstPage + by;
  if ('bytes' in run) return { firstPage, pages: 1, bytes: run.bytes };
  return { firstPage, pages: run.pages, stamp: run.stamp, step: run.step };
}

/** How the pages behind an anonymous mapping lie in physical memory. */
export type Contiguity = 'scattered' | 'short-runs' | 'pages' | 'huge-2m' | 'huge-1g';

/** Bytes the caller stores to its own memory before the call. */
export interface StagedBytes {
  readonly va: bigint;
  readonly bytes: Uint8Array;
}

/** A range the caller loads from its own memory after the call. */
export interface CollectRange {
  readonly va: bigint;
  readonly lengthBytes: number;
}

/** One request of a process. Paths are absolute; flags and protections are Linux's. */
export type SyscallRequest = (
  | { readonly call: 'open'; readonly path: string; readonly flags: number }
  | { readonly call: 'close'; readonly fd: number }
  | { readonly call: 'ioctl'; readonly fd: number; readonly cmd: number; readonly arg: bigint }
  | { readonly call: 'read'; readonly fd: number; readonly lengthBytes: number }
  | { readonly call: 'write'; readonly fd: number; readonly bytes: Uint8Array }
  | { readonly call: 'pread'; readonly fd: number; readonly lengthBytes: number; readonly offset: bigint }
  | { readonly call: 'pwrite'; readonly fd: number; readonly bytes: Uint8Array; readonly offset: bigint }
  | { readonly call: 'getdents'; readonly path: string }
  | {
      readonly call: 'mmap';
      /** 0 lets the kernel choose; otherwise the exact address (MAP_FIXED_NOREPLACE). */
      readonly addr: bigint;
      readonly length: bigint;
      readonly prot: number;
      readonly flags: number;
      readonly fd: number;
      readonly offset: bigint;
      /** Only for anonymous memory. */
      readonly contiguity: Contiguity;
    }
  | { readonly call: 'munmap'; readonly addr: bigint; readonly length: bigint }
  | { readonly call: 'memfd_create'; readonly name: string; readonly flags: number }
  | { readonly call: 'ftruncate'; readonly fd: number; readonly length: bigint }
  | { readonly call: 'eventfd2'; readonly initval: number; readonly flags: number }
  | { readonly call: 'setrlimit'; readonly resource: 'RLIMIT_MEMLOCK'; readonly value: bigint }
  | { readonly call: 'load'; readonly va: bigint; readonly lengthBytes: number }
  | { readonly call: 'store'; readonly va: bigint; readonly bytes: Uint8Array }
  /** The contents of whole pages from `va` on, run-length coded; page numbers relative to `va`. */
  | { readonly call: 'load-pages'; readonly va: bigint; readonly pages: number }
  /** Replaces whole pages from `va` on; page numbers relative to `va`. */
  | { readonly call: 'store-pages'; readonly va: bigint; readonly runs: readonly PageRun[] }
  | { readonly call: 'exit' }
) & { readonly stage?: readonly StagedBytes[]; readonly collect?: readonly CollectRange[] };

/** What comes back. `result` >= 0 is success (a descriptor, a count, an address), < 0 is -errno. */
export interface SyscallReply {
  readonly result: number | bigint;
  /** Bytes read by read, pread, load; UTF-8 names, one a line, by getdents. */
  readonly bytes?: Uint8Array;
  readonly runs?: readonly PageRun[];
  readonly collected?: readonly Uint8Array[];
  /** Facts about an error, beyond what Linux returns: for reports only. */
  readonly detail?: ErrorDetail;
}

export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const MAP_SHARED = 1;
export const MAP_PRIVATE = 2;
export const MAP_ANONYMOUS = 0x20;
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_NONBLOCK = 0o4000;
export const EFD_SEMAPHORE = 1;
export const EFD_NONBLOCK = O_NONBLOCK;
export const EFD_CLOEXEC = 0o2000000;
