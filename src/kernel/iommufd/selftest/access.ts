/**
 * Test operations on accesses: a descriptor that stands for an emulated device, which pins, reads and writes by IOVA.
 *
 * Every pin is an item of the descriptor. When a mapping goes, all items that overlap it are unpinned whole.
 *
 * Lock order: `staccess.lock` -> what accesses take. Source: Linux drivers/iommu/iommufd/selftest.c.
 */
import { Mutex } from '../../../runtime/locks.js';
import type { Task } from '../../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../../runtime/watch.js';
import { EBADE, EBADFD, EFAULT, ENOENT, ENOMEM, EOPNOTSUPP } from '../../../uapi/errno.js';
import {
  iommu_test_member,
  IOMMU_TEST_OP_ACCESS_PAGES,
  IOMMU_TEST_OP_ACCESS_REPLACE_IOAS,
  IOMMU_TEST_OP_ACCESS_RW,
  IOMMU_TEST_OP_CREATE_ACCESS,
  IOMMU_TEST_OP_DESTROY_ACCESS_PAGES,
  MOCK_ACCESS_RW_SLOW_PATH,
  MOCK_ACCESS_RW_WRITE,
  MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES,
  MOCK_FLAGS_ACCESS_SYZ,
  MOCK_FLAGS_ACCESS_WRITE,
} from '../../../uapi/iommufd-test.js';
import { OpenFile, withFile, type SyscallContext } from '../../files.js';
import type { PinnedRun } from '../../mm/mm.js';
import {
  iommufd_access_attach,
  iommufd_access_create,
  iommufd_access_destroy,
  iommufd_access_pin_pages,
  iommufd_access_replace,
  iommufd_access_rw,
  iommufd_access_syz_iova,
  iommufd_access_unpin_pages,
  type AccessOps,
  type IommufdAccess,
} from '../access.js';
import { PAGE_SIZE } from '../pages.js';
import { testRow, type TestCommandOf, type TestRow } from './command.js';

interface PinnedItem {
  readonly id: number;
  readonly iova: bigint;
  readonly lengthBytes: bigint;
}

/** The most a test may pin or copy. */
const MAX_LENGTH = 16n * 1024n * 1024n;

/** `struct selftest_access`: the descriptor of a test access. */
class SelftestAccessFile extends OpenFile {
  readonly lock = new Mutex('iommufd:selftest_access_lock');
  readonly needsPinPages: boolean;
  #access: IommufdAccess | undefined;
  #items: PinnedItem[] = [];
  nextId = 0;

  constructor(needsPinPages: boolean) {
    super();
    this.needsPinPages = needsPinPages;
  }

  get access(): IommufdAccess | undefined {
    sharedRead(this, 'access', this.#access);
    return this.#access;
  }

  set access(value: IommufdAccess | undefined) {
    sharedWrite(this, 'access', this.#access, value);
    this.#access = value;
  }

  get items(): PinnedItem[] {
    sharedRead(this, 'items', this.#items);
    return this.#items;
  }

  set items(value: PinnedItem[]) {
    sharedWrite(this, 'items', this.#items, value);
    this.#items = value;
  }

  /** What iommufd calls when a range goes. */
  readonly ops: () => AccessOps = () => ({
    needsPinPages: this.needsPinPages,
    unmap: (iova, lengthBytes) => this.unmap(iova, lengthBytes),
  });

  *unmap(iova: bigint, lengthBytes: bigint): Task<void> {
    const { access } = this;
    if (access === undefined) return;
    const last = iova + lengthBytes - 1n;
    yield* this.lock.lock();
    for (const item of this.items) {
      if (iova > item.iova + item.lengthBytes - 1n || last < item.iova) continue;
      this.items = this.items.filter((other) => other !== item);
      yield* iommufd_access_unpin_pages(access, item.iova, item.lengthBytes);
    }
    this.lock.unlock();
  }

  override *release(): Task<void> {
    const { access } = this;
    if (access === undefined) return;
    yield* this.unmap(0n, 2n ** 64n - 1n);
    yield* iommufd_access_destroy(access);
    this.access = undefined;
  }
}

/** An operation on the access behind a descriptor, whose file stays open meanwhile; -EBADFD where there is none. */
function* withAccess(
  ctx: SyscallContext,
  fd: number,
  body: (file: SelftestAccessFile, access: IommufdAccess) => Task<number>,
): Task<number> {
  const file = ctx.process.files.get(fd);
  if (!(file instanceof SelftestAccessFile) || file.access === undefined) return -EBADFD;
  const { access } = file;
  return yield* withFile(file, () => body(file, access));
}

type Members = typeof iommu_test_member;

/** IOMMU_TEST_OP_CREATE_ACCESS */
function* createAccess(command: TestCommandOf<Members['create_access']>): Task<number> {
  const { cmd, ctx, ictx } = command;
  if ((cmd.flags & ~MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES) !== 0) return -EOPNOTSUPP;
  const file = new SelftestAccessFile((cmd.flags & MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES) !== 0);
  const access = iommufd_access_create({ ictx }, file.ops());
  if (typeof access === 'number') return access;
  let rc = yield* iommufd_access_attach(access, command.id, ctx);
  if (rc === 0 && ictx.allocFails()) rc = -ENOMEM;
  const fd = rc < 0 ? rc : ctx.process.files.install(file);
  if (fd >= 0) {
    cmd.out_access_fd = fd;
    rc = command.respond();
    if (rc === 0) {
      file.access = access;
      return 0;
    }
    yield* ctx.process.files.close(fd);
  }
  yield* iommufd_access_destroy(access);
  return fd < 0 ? fd : rc;
}

/** IOMMU_TEST_OP_ACCESS_REPLACE_IOAS */
function* accessReplaceIoas({ id, cmd, ctx }: TestCommandOf<Members['access_replace_ioas']>): Task<number> {
  return yield* withAccess(ctx, id, (_file, access) => iommufd_access_replace(access, cmd.ioas_id, ctx));
}

/** The IOVA that a test means, itself or as a fuzzer says it. */
function* iovaOf(
  access: IommufdAccess,
  { flags, iova }: { readonly flags: number; readonly iova: bigint },
): Task<bigint> {
  return (flags & MOCK_FLAGS_ACCESS_SYZ) === 0 ? iova : yield* iommufd_access_syz_iova(access, iova);
}

/** -EBADE unless the pages are those at `uptr`. */
function checkPages(ctx: SyscallContext, uptr: bigint, runs: readonly PinnedRun[]): number {
  let address = uptr;
  for (const run of runs) {
    for (let i = 0; i < run.pages; i++, address += PAGE_SIZE) {
      const pfn = ctx.process.mm.get_user_page(address, false);
      if (pfn < 0) return pfn;
      if (pfn !== run.pfn + i) return -EBADE;
    }
  }
  return 0;
}

/** IOMMU_TEST_OP_ACCESS_PAGES */
function* accessPages(command: TestCommandOf<Members['access_pages']>): Task<number> {
  const { id, cmd, ctx } = command;
  if (cmd.length > MAX_LENGTH) return -ENOMEM;
  if ((cmd.flags & ~(MOCK_FLAGS_ACCESS_WRITE | MOCK_FLAGS_ACCESS_SYZ)) !== 0) return -EOPNOTSUPP;
  return yield* withAccess(ctx, id, (file, access) => pinItem(command, file, access));
}

function* pinItem(
  command: TestCommandOf<Members['access_pages']>,
  file: SelftestAccessFile,
  access: IommufdAccess,
): Task<number> {
  const { cmd, ctx } = command;
  if (!file.needsPinPages) return -EOPNOTSUPP;
  const { length, uptr } = cmd;
  const iova = yield* iovaOf(access, cmd);
  if (command.ictx.allocFails()) return -ENOMEM;
  yield* file.lock.lock();
  try {
    const write = (cmd.flags & MOCK_FLAGS_ACCESS_WRITE) !== 0;
    const runs = yield* iommufd_access_pin_pages(access, iova, length, write);
    if (typeof runs === 'number') return runs;
    let rc = uptr === 0n ? 0 : checkPages(ctx, BigInt.asUintN(64, uptr - (iova % PAGE_SIZE)), runs);
    if (rc === 0) {
      cmd.out_access_pages_id = file.nextId++;
      rc = command.respond();
    }
    if (rc < 0) yield* iommufd_access_unpin_pages(access, iova, length);
    else file.items = [...file.items, { id: cmd.out_access_pages_id, iova, lengthBytes: length }];
    return rc;
  } finally {
    file.lock.unlock();
  }
}

/** IOMMU_TEST_OP_DESTROY_ACCESS_PAGES */
function* destroyAccessPages({ id, cmd, ctx }: TestCommandOf<Members['destroy_access_pages']>): Task<number> {
  return yield* withAccess(ctx, id, function* (file, access) {
    yield* file.lock.lock();
    const item = file.items.find((other) => other.id === cmd.access_pages_id);
    if (item !== undefined) {
      file.items = file.items.filter((other) => other !== item);
      yield* iommufd_access_unpin_pages(access, item.iova, item.lengthBytes);
    }
    file.lock.unlock();
    return item === undefined ? -ENOENT : 0;
  });
}

/** IOMMU_TEST_OP_ACCESS_RW */
function* accessRw(command: TestCommandOf<Members['access_rw']>): Task<number> {
  const { id, cmd, ctx } = command;
  if (cmd.length > MAX_LENGTH) return -ENOMEM;
  const flags = MOCK_ACCESS_RW_WRITE | MOCK_ACCESS_RW_SLOW_PATH | MOCK_FLAGS_ACCESS_SYZ;
  if ((cmd.flags & ~flags) !== 0) return -EOPNOTSUPP;
  return yield* withAccess(ctx, id, (_file, access) => copyByAccess(command, access));
}

function* copyByAccess({ cmd, ctx }: TestCommandOf<Members['access_rw']>, access: IommufdAccess): Task<number> {
  const write = (cmd.flags & MOCK_ACCESS_RW_WRITE) !== 0;
  const length = Number(cmd.length);
  const data = write ? ctx.copy_from_user(cmd.uptr, length) : new Uint8Array(length);
  if (data === undefined) return -EFAULT;
  const iova = yield* iovaOf(access, cmd);
  const isSlow = (cmd.flags & MOCK_ACCESS_RW_SLOW_PATH) !== 0;
  const rc = yield* iommufd_access_rw(access, ctx.process, iova, data, { write, isSlow });
  if (rc < 0 || write) return rc;
  return ctx.copy_to_user(cmd.uptr, data) ? 0 : -EFAULT;
}

const m = iommu_test_member;

/** Operations of this module. */
export const accessRows: readonly TestRow[] = [
  testRow(IOMMU_TEST_OP_CREATE_ACCESS, m.create_access, createAccess),
  testRow(IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, m.access_replace_ioas, accessReplaceIoas),
  testRow(IOMMU_TEST_OP_ACCESS_PAGES, m.access_pages, accessPages),
  testRow(IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, m.destroy_access_pages, destroyAccessPages),
  testRow(IOMMU_TEST_OP_ACCESS_RW, m.access_rw, accessRw),
];
