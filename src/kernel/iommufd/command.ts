/**
 * One iommufd ioctl on its way through the kernel (`struct iommufd_ucmd`), and the table rows that say how each is done.
 */
import type { FieldSpecs, StructValue } from '../../layout/struct.js';
import type { Task } from '../../runtime/task.js';
import { EFAULT } from '../../uapi/errno.js';
import type { Ioctl } from '../../uapi/ioctl.js';
import type { SyscallContext } from '../files.js';
import type { IommufdContext } from './main.js';

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** A call being served: its arguments as copied in, and the way back. */
export class UserCommand<F extends FieldSpecs> {
  readonly ictx: IommufdContext;
  /** The caller; also the sink for facts about errors. */
  readonly ctx: SyscallContext;
  /** The struct, to be read and, before {@link respond}, changed. */
  readonly cmd: Mutable<StructValue<F>>;
  readonly #ioctl: Ioctl<F>;
  readonly #address: bigint;
  readonly #userSize: number;

  constructor(ictx: IommufdContext, ctx: SyscallContext, ioctl: Ioctl<F>, bytes: Uint8Array, address: bigint) {
    this.ictx = ictx;
    this.ctx = ctx;
    this.#ioctl = ioctl;
    this.#address = address;
    this.#userSize = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    const padded = new Uint8Array(Math.max(bytes.length, ioctl.struct.sizeBytes));
    padded.set(bytes);
    this.cmd = ioctl.struct.decode(padded);
  }

  /** Copies the struct back, as much as the caller has room for: 0 or -EFAULT. */
  respond(): number {
    const bytes = this.#ioctl.struct.encode(this.cmd);
    const length = Math.min(this.#userSize, bytes.length);
    return this.ctx.copy_to_user(this.#address, bytes.subarray(0, length)) ? 0 : -EFAULT;
  }
}

/** A row of the dispatch table. */
export interface CommandRow {
  readonly name: string;
  readonly number: number;
  readonly minimumBytes: number;
  readonly sizeBytes: number;
  run(ictx: IommufdContext, ctx: SyscallContext, bytes: Uint8Array, address: bigint): Task<number>;
}

/** Declares a row. */
export function row<F extends FieldSpecs>(ioctl: Ioctl<F>, serve: (ucmd: UserCommand<F>) => Task<number>): CommandRow {
  return {
    name: ioctl.name,
    number: ioctl.number,
    minimumBytes: ioctl.minimumBytes,
    sizeBytes: ioctl.struct.sizeBytes,
    run: (ictx, ctx, bytes, address) => serve(new UserCommand(ictx, ctx, ioctl, bytes, address)),
  };
}
