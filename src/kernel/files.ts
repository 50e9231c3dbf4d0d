/**
 * Open files, descriptors and the context of a system call.
 *
 * A descriptor is the lowest free number of its process. An `OpenFile` is shared by the descriptor that refers to it (nothing is
 * duplicated) and the system calls that work with it, and released when the last of them lets go: one that closes a descriptor which
 * another is reading from leaves releasing the file to that. What a file cannot do answers as Linux does:
 * ENOTTY for ioctl, EINVAL for read and write.
 */
import type { NodeRuntime } from '../runtime/node-runtime.js';
import { invariant, type Task } from '../runtime/task.js';
import { isWatched, sharedCount, sharedRead, sharedWrite } from '../runtime/watch.js';
import { EBADF, EINVAL, EMFILE, ENODEV, ENOTTY, type ErrorDetail } from '../uapi/errno.js';
import type { Process } from './mm/process.js';
import type { FileMapping } from './mm/mm.js';

/** Who calls, and the way to and from its memory. */
export class SyscallContext {
  readonly runtime: NodeRuntime;
  readonly process: Process;
  #detail: ErrorDetail | undefined;

  constructor(runtime: NodeRuntime, process: Process) {
    this.runtime = runtime;
    this.process = process;
  }

  /** Facts recorded by {@link fail}. */
  get detail(): ErrorDetail | undefined {
    return this.#detail;
  }

  /** Records facts about an error for the reply and returns the error as the kernel does. */
  fail(errno: number, detail: ErrorDetail = {}): number {
    this.#detail = detail;
    return -errno;
  }

  /** Bytes from the caller's memory; undefined (EFAULT) where nothing is mapped for reading. */
  copy_from_user(address: bigint, lengthBytes: number): Uint8Array | undefined {
    return this.process.mm.copy_from_user(address, lengthBytes);
  }

  /** Bytes to the caller's memory; false (EFAULT) where nothing is mapped for writing. */
  copy_to_user(address: bigint, bytes: Uint8Array): boolean {
    return this.process.mm.copy_to_user(address, bytes);
  }
}

/** An open file (`struct file` with its operations). */
export abstract class OpenFile {
  /** Its descriptor, and calls that work with it. */
  #references = 1;

  /** `get_file`: keeps the file until {@link fput}. */
  hold(): void {
    invariant(this.#references > 0, 'use of a file that was released', 'objects');
    sharedCount(this, 'references', this.#references, this.#references + 1);
    this.#references++;
  }

  /** Lets go of the file; the last one releases it. */
  *fput(): Task<void> {
    invariant(this.#references > 0, 'a file was put once too often', 'objects');
    sharedCount(this, 'references', this.#references, this.#references - 1);
    if (--this.#references === 0) yield* this.release();
  }

  *ioctl(_ctx: SyscallContext, _cmd: number, _arg: bigint): Task<number> {
    return -ENOTTY;
  }

  /** Bytes read, empty at the end, or -errno. */
  *read(_ctx: SyscallContext, _lengthBytes: number): Task<Uint8Array | number> {
    return -EINVAL;
  }

  *write(_ctx: SyscallContext, _bytes: Uint8Array): Task<number> {
    return -EINVAL;
  }

  *pread(_ctx: SyscallContext, _lengthBytes: number, _offset: bigint): Task<Uint8Array | number> {
    return -EINVAL;
  }

  *pwrite(_ctx: SyscallContext, _bytes: Uint8Array, _offset: bigint): Task<number> {
    return -EINVAL;
  }

  /** What a mapping of the file shows, or -errno. */
  *mmap(_offset: bigint, _length: bigint, _isShared: boolean): Task<FileMapping | number> {
    return -ENODEV;
  }

  /** Whether reading would give something now. */
  poll(): boolean {
    return true;
  }

  ftruncate(_length: bigint): number {
    return -EINVAL;
  }

  /** Nobody has the file any more. */
  *release(): Task<void> {
    // Most files hold nothing.
  }
}

/** /dev/null: nothing to read, everything may be written. */
export class NullFile extends OpenFile {
  override *read(): Task<Uint8Array> {
    return new Uint8Array();
  }

  override *write(_ctx: SyscallContext, bytes: Uint8Array): Task<number> {
    return bytes.length;
  }
}

/** RLIMIT_NOFILE */
const MAX_DESCRIPTORS = 1024;

/** The descriptors of a process. */
export class FdTable {
  readonly #files: (OpenFile | undefined)[] = [];

  /** The file behind a descriptor; undefined = EBADF. */
  get(fd: number): OpenFile | undefined {
    if (isWatched()) sharedRead(this, `descriptor ${fd}`);
    return this.#files[fd];
  }

  /** Every open file. */
  open(): OpenFile[] {
    return this.#files.filter((file) => file !== undefined);
  }

  get openCount(): number {
    return this.#files.filter((file) => file !== undefined).length;
  }

  /** Lowest free descriptor, or -EMFILE. */
  install(file: OpenFile): number {
    sharedWrite(this, 'numbers');
    const free = this.#files.findIndex((entry) => entry === undefined);
    const fd = free < 0 ? this.#files.length : free;
    if (fd >= MAX_DESCRIPTORS) return -EMFILE;
    this.#set(fd, file);
    return fd;
  }

  *close(fd: number): Task<number> {
    const file = this.get(fd);
    if (file === undefined) return -EBADF;
    sharedWrite(this, 'numbers');
    this.#set(fd, undefined);
    yield* file.fput();
    return 0;
  }

  #set(fd: number, file: OpenFile | undefined): void {
    if (isWatched()) sharedWrite(this, `descriptor ${fd}`, this.#files[fd]?.constructor.name, file?.constructor.name);
    this.#files[fd] = file;
  }

  /** Closes everything, lowest descriptor first, as exit does. */
  *closeAll(): Task<void> {
    for (let fd = 0; fd < this.#files.length; fd++) yield* this.close(fd);
  }
}

/** A system call's work with a file, which nobody releases meanwhile; -EBADF when there is none. */
export function* withFile<T>(file: OpenFile | undefined, act: (file: OpenFile) => Task<T>): Task<T | number> {
  if (file === undefined) return -EBADF;
  file.hold();
  const result = yield* act(file);
  yield* file.fput();
  return result;
}
