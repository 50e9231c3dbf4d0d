/** eventfds: a counter one writes to and reads from; reading waits until it is not zero (Linux fs/eventfd.c). */
import { u64 } from '../layout/struct.js';
import { WaitQueue, type Task } from '../runtime/task.js';
import { EAGAIN, EINVAL } from '../uapi/errno.js';
import { EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE } from '../uapi/syscall.js';
import { OpenFile, type SyscallContext } from './files.js';

const MAX_COUNT = (1n << 64n) - 2n;

/** Flags an eventfd may have. */
export const EFD_FLAGS = EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC;

/** An eventfd. Signalled by interrupts and by writes. */
export class EventFile extends OpenFile {
  #count: bigint;
  readonly #flags: number;
  readonly #changed = new WaitQueue('eventfd');

  constructor(initval: number, flags: number) {
    super();
    this.#count = BigInt(initval);
    this.#flags = flags;
  }

  /** eventfd_signal: adds one; a full counter stays full. */
  signal(): void {
    if (this.#count < MAX_COUNT) this.#count++;
    this.#changed.wakeAll();
  }

  override *read(_ctx: SyscallContext, lengthBytes: number): Task<Uint8Array | number> {
    if (lengthBytes < u64.sizeBytes) return -EINVAL;
    while (this.#count === 0n) {
      if ((this.#flags & EFD_NONBLOCK) !== 0) return -EAGAIN;
      yield this.#changed;
    }
    const taken = (this.#flags & EFD_SEMAPHORE) !== 0 ? 1n : this.#count;
    this.#count -= taken;
    const bytes = new Uint8Array(u64.sizeBytes);
    u64.write(new DataView(bytes.buffer), 0, taken);
    this.#changed.wakeAll();
    return bytes;
  }

  override *write(_ctx: SyscallContext, bytes: Uint8Array): Task<number> {
    if (bytes.length !== u64.sizeBytes) return -EINVAL;
    const added = u64.read(new DataView(bytes.buffer, bytes.byteOffset), 0);
    if (added > MAX_COUNT) return -EINVAL;
    while (this.#count + added > MAX_COUNT) {
      if ((this.#flags & EFD_NONBLOCK) !== 0) return -EAGAIN;
      yield this.#changed;
    }
    this.#count += added;
    this.#changed.wakeAll();
    return u64.sizeBytes;
  }
}
