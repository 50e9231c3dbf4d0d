/**
 * Test operations on dma-bufs: one made of kernel memory, which the test revokes at will.
 *
 * Source: Linux drivers/iommu/iommufd/selftest.c.
 */
import type { Task } from '../../../runtime/task.js';
import { EINVAL, ENOMEM } from '../../../uapi/errno.js';
import {
  iommu_test_member,
  IOMMU_TEST_OP_DMABUF_GET,
  IOMMU_TEST_OP_DMABUF_REVOKE,
} from '../../../uapi/iommufd-test.js';
import { DmaBufFile } from '../../dma-buf.js';
import { withFile } from '../../files.js';
import { PAGE_BYTES } from '../pages.js';
import { testRow, type TestCommandOf, type TestRow } from './command.js';

type Members = typeof iommu_test_member;

/** The longest buffer of a test. */
const MAX_BYTES = 512 * PAGE_BYTES;

/** A buffer of the selftest: only those it may revoke. */
class SelftestDmaBuf extends DmaBufFile {}

/** IOMMU_TEST_OP_DMABUF_GET: the new descriptor, -EINVAL for a length, -ENOMEM. */
function* dmabufGet({ cmd, ctx, mock }: TestCommandOf<Members['dmabuf_get']>): Task<number> {
  if (cmd.length === 0 || cmd.length > MAX_BYTES) return -EINVAL;
  const memory = mock.allocPages(Math.ceil(cmd.length / PAGE_BYTES));
  if (memory === undefined) return -ENOMEM;
  const wholePages = Math.ceil(cmd.length / PAGE_BYTES) * PAGE_BYTES;
  const file = new SelftestDmaBuf(BigInt(wholePages), { phys: () => memory.pa, release: () => memory.free() });
  const fd = ctx.process.files.install(file);
  if (fd < 0) memory.free();
  return fd;
}

/** IOMMU_TEST_OP_DMABUF_REVOKE: 0, -EBADF, -EINVAL for what is none of these. */
function* dmabufRevoke({ cmd, ctx }: TestCommandOf<Members['dmabuf_revoke']>): Task<number> {
  return yield* withFile(ctx.process.files.get(cmd.dmabuf_fd), function* (file) {
    if (!(file instanceof SelftestDmaBuf)) return -EINVAL;
    // Importers are told in any case; what they had mapped is gone.
    yield* file.revoke(true);
    if (cmd.revoked === 0) yield* file.revoke(false);
    return 0;
  });
}

const m = iommu_test_member;

/** Operations of this module. */
export const dmaBufRows: readonly TestRow[] = [
  testRow(IOMMU_TEST_OP_DMABUF_GET, m.dmabuf_get, dmabufGet),
  testRow(IOMMU_TEST_OP_DMABUF_REVOKE, m.dmabuf_revoke, dmabufRevoke),
];
