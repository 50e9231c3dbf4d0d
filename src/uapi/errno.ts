/**
 * Linux error numbers (asm-generic/errno*.h) as the kernel code here returns them: negated.
 */

/** Error numbers by name. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EPIPE: 32,
  ERANGE: 34,
  ENOSYS: 38,
  ENOMSG: 42,
  EBADE: 52,
  EOVERFLOW: 75,
  EBADFD: 77,
  EMSGSIZE: 90,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ETIMEDOUT: 110,
  EDEADLK: 35,
  ECANCELED: 125,
  ENODATA: 61,
  EOWNERDEAD: 130,
} as const;

export type ErrnoName = keyof typeof ERRNO;

export const {
  EPERM,
  ENOENT,
  ESRCH,
  EINTR,
  EIO,
  ENXIO,
  E2BIG,
  EBADF,
  EAGAIN,
  ENOMEM,
  EACCES,
  EFAULT,
  EBUSY,
  EEXIST,
  ENODEV,
  ENOTDIR,
  EISDIR,
  EINVAL,
  ENFILE,
  EMFILE,
  ENOTTY,
  EFBIG,
  ENOSPC,
  ESPIPE,
  EROFS,
  EPIPE,
  ERANGE,
  ENOSYS,
  ENOMSG,
  EBADE,
  EOVERFLOW,
  EBADFD,
  EMSGSIZE,
  EOPNOTSUPP,
  EADDRINUSE,
  ETIMEDOUT,
  EDEADLK,
  ECANCELED,
  ENODATA,
  EOWNERDEAD,
} = ERRNO;

const nameByNumber = new Map<number, ErrnoName>((Object.keys(ERRNO) as ErrnoName[]).map((name) => [ERRNO[name], name]));

/** `EINVAL` for 22 or -22; undefined for a number that is no error known here. */
export function errnoName(errno: number): ErrnoName | undefined {
  return nameByNumber.get(Math.abs(errno));
}

/** The same in a line of text: its number where it has no name here. */
export function errnoText(errno: number): string {
  return errnoName(errno) ?? `errno ${Math.abs(errno)}`;
}

/** Facts that belong to an error: which range, of what type, whose. Numbers beyond 2^53 are bigints. */
export type ErrorDetail = Readonly<Record<string, string | number | bigint | boolean>>;

/** A system call failed. What clients see; kernel code returns `-errno` instead of throwing. */
export class KernelError extends Error {
  override readonly name = 'KernelError';
  readonly errno: number;
  readonly code: string;
  readonly call: string;
  readonly detail: ErrorDetail;

  constructor(errno: number, call: string, detail: ErrorDetail = {}) {
    const code = errnoText(errno);
    super(`${call}: ${code}`);
    this.errno = Math.abs(errno);
    this.code = code;
    this.call = call;
    this.detail = detail;
  }
}
