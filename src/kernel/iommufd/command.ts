/**
 * One iommufd ioctl on its way through the kernel (`struct iommufd_ucmd`), and the table rows that say how each is done.
 */
import type { FieldSpecs, StructValue } from '../../layout/struct.js';
import type { Task } from '../../runtime/task.js';
import { EFAULT } from '../../uapi/errno.js';
import type { Ioctl } from '../../uapi/ioctl.js';
import type { SyscallContext } from '../files.js';
import type { IommufdContext } from './main.js';

/** The `__u32` that bytes begin with: structs of iommufd begin with their size. */
export function leadingU32(bytes: Uint8Array): number {
  const [a = 0, b = 0, c = 0, d = 0] = [bytes[0], bytes[1], bytes[2], bytes[3]];
  return (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
}

function padded(bytes: Uint8Array, sizeBytes: number): Uint8Array {
  const out = new Uint8Array(sizeBytes);
  out.set(bytes);
  return out;
}

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
    this.#userSize = leadingU32(bytes);
    this.cmd = ioctl.struct.decode(
      bytes.length < ioctl.struct.sizeBytes ? padded(bytes, ioctl.struct.sizeBytes) : bytes,
    );
  }

  /** Copies the struct back, as much as the caller has room for: 0 or -EFAULT. */
  respond(): number {
    if (this.ictx.instruments.fires('mm.copy-to-user')) return -EFAULT;
    const bytes = this.#ioctl.struct.encode(this.cmd);
    const wanted = this.#userSize < bytes.length ? bytes.subarray(0, this.#userSize) : bytes;
    return this.ctx.copy_to_user(this.#address, wanted) ? 0 : -EFAULT;
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
