/**
 * IOMMU_TEST_CMD on its way through the kernel: one ioctl, many operations, each with its own member of the argument union.
 *
 * Operations are rows, so that each part of the selftest declares its own beside what it does (as {@link CommandRow} does for
 * ordinary ioctls). A kernel without the selftest does not have the ioctl.
 *
 * Source: Linux drivers/iommu/iommufd/selftest.c (iommufd_test).
 */
import type { FieldSpecs, Struct, StructValue } from '../../../layout/struct.js';
import type { Task } from '../../../runtime/task.js';
import { EFAULT, EOPNOTSUPP } from '../../../uapi/errno.js';
import { IOMMU_TEST_CMD, iommu_test_cmd } from '../../../uapi/iommufd-test.js';
import type { SyscallContext } from '../../files.js';
import type { CommandRow } from '../command.js';
import type { IommufdContext } from '../main.js';
import type { MockIommu } from './mock-iommu.js';

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

const UNION_OFFSET = iommu_test_cmd.offsetOf('add_reserved');
const OP_OFFSET = iommu_test_cmd.offsetOf('op');
const ID_OFFSET = iommu_test_cmd.offsetOf('id');

/** A test operation being served. */
export class TestCommand<F extends FieldSpecs> {
  readonly ictx: IommufdContext;
  readonly ctx: SyscallContext;
  readonly mock: MockIommu;
  /** `cmd->id` */
  readonly id: number;
  /** The member of the union, to be read and, before {@link respond}, changed. */
  readonly cmd: Mutable<StructValue<F>>;
  readonly #member: Struct<F>;
  /** The whole struct; the caller has room for {@link #userBytes} of it. */
  readonly #bytes: Uint8Array;
  readonly #userBytes: number;
  readonly #address: bigint;

  constructor(
    ictx: IommufdContext,
    ctx: SyscallContext,
    mock: MockIommu,
    member: Struct<F>,
    userBytes: Uint8Array,
    address: bigint,
  ) {
    this.ictx = ictx;
    this.ctx = ctx;
    this.mock = mock;
    this.#member = member;
    this.#bytes = new Uint8Array(iommu_test_cmd.sizeBytes);
    this.#bytes.set(userBytes);
    this.#userBytes = userBytes.length;
    this.#address = address;
    const view = new DataView(this.#bytes.buffer);
    this.id = view.getUint32(ID_OFFSET, true);
    this.cmd = member.read(view, UNION_OFFSET);
  }

  /** Copies the struct back: 0 or -EFAULT. */
  respond(): number {
    this.#member.write(new DataView(this.#bytes.buffer), UNION_OFFSET, this.cmd);
    return this.ctx.copy_to_user(this.#address, this.#bytes.subarray(0, this.#userBytes)) ? 0 : -EFAULT;
  }
}

/** A test command whose member is the struct `S`. */
export type TestCommandOf<S> = TestCommand<S extends Struct<infer F> ? F : never>;

/** One operation. */
export interface TestRow {
  readonly op: number;
  run(ictx: IommufdContext, ctx: SyscallContext, mock: MockIommu, bytes: Uint8Array, address: bigint): Task<number>;
}

/** Declares an operation. */
export function testRow<F extends FieldSpecs>(
  op: number,
  member: Struct<F>,
  serve: (command: TestCommand<F>) => Task<number>,
): TestRow {
  return {
    op,
    run: (ictx, ctx, mock, bytes, address) => serve(new TestCommand(ictx, ctx, mock, member, bytes, address)),
  };
}

/** IOMMU_TEST_CMD for the dispatch table. */
export function testCommandRow(rows: readonly TestRow[], mock: MockIommu): CommandRow {
  const rowByOp = new Map(rows.map((row) => [row.op, row]));
  return {
    name: IOMMU_TEST_CMD.name,
    number: IOMMU_TEST_CMD.number,
    minimumBytes: IOMMU_TEST_CMD.minimumBytes,
    sizeBytes: iommu_test_cmd.sizeBytes,
    *run(ictx, ctx, bytes, address) {
      const row = rowByOp.get(new DataView(bytes.buffer, bytes.byteOffset).getUint32(OP_OFFSET, true));
      return row === undefined ? -EOPNOTSUPP : yield* row.run(ictx, ctx, mock, bytes, address);
    },
  };
}
