/**
 * Test operations on devices and their page tables: making mock devices, moving them, looking at what is mapped and pinned.
 *
 * A mock device takes three numbers in this order: the selftest's own object, the iommufd device, and, if the address space
 * has no automatic page table yet, that. Destroying the selftest's object detaches, unbinds and removes the device.
 *
 * Source: Linux drivers/iommu/iommufd/selftest.c.
 */
import { invariant, type Task } from '../../../runtime/task.js';
import { EFAULT, EINVAL, EIO, ENOENT, ENOMEM, EOVERFLOW } from '../../../uapi/errno.js';
import {
  iommu_test_member,
  IOMMU_TEST_OP_ADD_RESERVED,
  IOMMU_TEST_OP_DIRTY,
  IOMMU_TEST_OP_MD_CHECK_MAP,
  IOMMU_TEST_OP_MD_CHECK_REFS,
  IOMMU_TEST_OP_MOCK_DOMAIN,
  IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS,
  IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE,
  IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT,
  MOCK_FLAGS_DEVICE_NO_DIRTY,
  MOCK_FLAGS_DEVICE_PASID,
} from '../../../uapi/iommufd-test.js';
import {
  iommufd_device_attach,
  iommufd_device_bind,
  iommufd_device_detach,
  iommufd_device_replace,
  iommufd_device_unbind,
  type IommufdDevice,
} from '../device.js';
import { isHwptPaging, type HwptPaging } from '../hw-pagetable.js';
import { IOVA_MAX } from '../io-pagetable.js';
import { getIoas } from '../ioas.js';
import type { IommufdContext } from '../main.js';
import { IommufdObject } from '../object.js';
import { PAGE_SIZE } from '../pages.js';
import { testRow, type TestCommandOf, type TestRow } from './command.js';
import { MockDomain } from './mock-domain.js';
import type { MockDevice } from './mock-iommu.js';

/** `struct selftest_obj` of type TYPE_IDEV. */
export class SelftestDevice extends IommufdObject {
  override readonly type = 'selftest';
  readonly device: MockDevice;
  /** Undefined until the device is bound. */
  idev: IommufdDevice | undefined;

  constructor(device: MockDevice) {
    super();
    this.device = device;
  }

  override *destroy(): Task<void> {
    if (this.idev === undefined) return;
    for (const pasid of [...this.idev.igroup.attachments.keys()]) yield* iommufd_device_detach(this.idev, pasid);
    yield* iommufd_device_unbind(this.idev);
  }
}

function isSelftestDevice(object: IommufdObject): object is SelftestDevice {
  return object instanceof SelftestDevice;
}

/** The mock device with this number, to be given back with `objects.put`. */
export function getSelftestDevice(ictx: IommufdContext, id: number): SelftestDevice | undefined {
  return ictx.objects.get(id, isSelftestDevice);
}

type Members = typeof iommu_test_member;

const DEVICE_FLAGS = MOCK_FLAGS_DEVICE_NO_DIRTY | MOCK_FLAGS_DEVICE_PASID;

/** `iommufd_test_mock_domain` */
function* mockDomain(
  command: TestCommandOf<Members['mock_domain']> | TestCommandOf<Members['mock_domain_flags']>,
  flags: number,
): Task<number> {
  const { cmd, ctx, ictx, mock } = command;
  if ((flags & ~DEVICE_FLAGS) !== 0) return -EINVAL;
  const device = new SelftestDevice(mock.createDevice(flags));
  const allocated = ictx.objects.alloc(device);
  if (allocated < 0) return allocated;
  const rc = yield* bindAndAttach();
  if (rc < 0) ictx.objects.abort(device);
  else ictx.objects.finalize(device);
  return rc;

  function* bindAndAttach(): Task<number> {
    const bound = yield* iommufd_device_bind({ ictx }, device.device, ctx, false);
    if (typeof bound === 'number') return bound;
    const ptId = yield* iommufd_device_attach(bound.idev, command.id, ctx);
    let result = ptId;
    if (ptId >= 0) {
      cmd.out_stdev_id = device.id;
      cmd.out_hwpt_id = ptId;
      cmd.out_idev_id = bound.id;
      result = command.respond();
      if (result < 0) yield* iommufd_device_detach(bound.idev);
    }
    if (result < 0) yield* iommufd_device_unbind(bound.idev);
    else device.idev = bound.idev;
    return result;
  }
}

/** IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE */
function* mockDomainReplace(command: TestCommandOf<Members['mock_domain_replace']>): Task<number> {
  const { cmd, ctx, ictx } = command;
  const device = getSelftestDevice(ictx, command.id);
  if (device === undefined) return -ENOENT;
  invariant(device.idev !== undefined, 'selftest: a device that can be found is not bound');
  const ptId = yield* iommufd_device_replace(device.idev, cmd.pt_id, ctx);
  let rc = ptId;
  if (ptId >= 0) {
    cmd.pt_id = ptId;
    rc = command.respond();
  }
  ictx.objects.put(device);
  return rc;
}

/** IOMMU_TEST_OP_ADD_RESERVED */
function* addReserved({ id, cmd, ctx, ictx }: TestCommandOf<Members['add_reserved']>): Task<number> {
  if (cmd.length === 0n) return -EINVAL;
  const last = cmd.start + cmd.length - 1n;
  if (last > IOVA_MAX) return -EOVERFLOW;
  const ioas = getIoas(ictx, id);
  if (ioas === undefined) return -ENOENT;
  const { iopt } = ioas;
  yield* iopt.iovaRwsem.down_write();
  const rc = iopt.reserve_iova(cmd.start, last, undefined, { kind: 'selftest', start: cmd.start, last }, ctx);
  iopt.iovaRwsem.up_write();
  ictx.objects.put(ioas);
  return rc;
}

/** Runs `body` with a page table of the mock IOMMU: -ENOENT no page table, -EINVAL of another IOMMU. */
export function* withMockDomain(
  ictx: IommufdContext,
  id: number,
  body: (domain: MockDomain, hwpt: HwptPaging) => Task<number>,
): Task<number> {
  const hwpt = ictx.objects.get(id, isHwptPaging);
  if (hwpt === undefined) return -ENOENT;
  const rc = hwpt.domain instanceof MockDomain ? yield* body(hwpt.domain, hwpt) : -EINVAL;
  ictx.objects.put(hwpt);
  return rc;
}

/** IOMMU_TEST_OP_MD_CHECK_MAP */
function* checkMap({ id, cmd, ctx, ictx }: TestCommandOf<Members['check_map']>): Task<number> {
  return yield* withMockDomain(ictx, id, function* (domain) {
    const pageSize = domain.pageSizes[0] ?? 1;
    const unit = BigInt(pageSize);
    if ([cmd.iova, cmd.length, cmd.uptr].some((value) => value % unit !== 0n)) return -EINVAL;
    if (cmd.uptr + cmd.length > IOVA_MAX) return -EINVAL;
    for (let done = 0n; done < cmd.length; done += unit) {
      const address = cmd.uptr + done;
      const pfn = ctx.process.mm.get_user_page(address, false);
      if (pfn < 0) return pfn;
      const expected = pfn * Number(PAGE_SIZE) + Number(address % PAGE_SIZE);
      if (domain.iova_to_phys(Number(cmd.iova + done)) !== expected) return -EINVAL;
    }
    return 0;
  });
}

/** IOMMU_TEST_OP_MD_CHECK_REFS */
function* checkRefs({ cmd, ctx }: TestCommandOf<Members['check_refs']>): Task<number> {
  if (cmd.length % PAGE_SIZE !== 0n || cmd.uptr % PAGE_SIZE !== 0n || cmd.uptr + cmd.length > IOVA_MAX) return -EINVAL;
  const { mm } = ctx.process;
  for (let done = 0n; done < cmd.length; done += PAGE_SIZE) {
    const pfn = mm.get_user_page(cmd.uptr + done, false);
    if (pfn < 0) return pfn;
    if (!mm.isHugePage(cmd.uptr + done) && mm.pinCount(pfn) !== cmd.refs) return -EIO;
  }
  return 0;
}

/** The most that kvmalloc gives. */
const MAX_KVMALLOC_BYTES = 2 ** 31 - 1;

/** IOMMU_TEST_OP_DIRTY */
function* dirty(command: TestCommandOf<Members['dirty']>): Task<number> {
  const { id, cmd, ctx, ictx } = command;
  const { iova, length, page_size: pageSize, uptr } = cmd;
  if (pageSize === 0n || length === 0n || iova % pageSize !== 0n || length % pageSize !== 0n || uptr === 0n) {
    return -EINVAL;
  }
  return yield* withMockDomain(ictx, id, function* (domain) {
    if (!domain.tracksDirty) return -EINVAL;
    const bits = Number(length / pageSize);
    if (Math.ceil(bits / 64) * 8 > MAX_KVMALLOC_BYTES) return -ENOMEM;
    const bitmap = ctx.copy_from_user(uptr, Math.ceil(bits / 8));
    if (bitmap === undefined) return -EFAULT;
    let count = 0;
    for (let bit = 0; bit < bits; bit++) {
      if (((bitmap[bit >> 3] ?? 0) & (1 << (bit & 7))) === 0) continue;
      domain.set_dirty(Number(iova) + bit * Number(pageSize));
      count++;
    }
    cmd.out_nr_dirty = BigInt(count);
    return command.respond();
  });
}

/** The least a batch of pages takes: `sizeof(*pfns) + sizeof(*npfns)`. */
const BATCH_ELEMENT_BYTES = 12;

/** IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT: there are no batches here that a limit would change. */
function* setTempMemoryLimit({ cmd }: TestCommandOf<Members['memory_limit']>): Task<number> {
  return cmd.limit < BATCH_ELEMENT_BYTES ? -EINVAL : 0;
}

const m = iommu_test_member;

/** Operations of this module. */
export const deviceRows: readonly TestRow[] = [
  testRow(IOMMU_TEST_OP_ADD_RESERVED, m.add_reserved, addReserved),
  testRow(IOMMU_TEST_OP_MOCK_DOMAIN, m.mock_domain, (command) => mockDomain(command, 0)),
  testRow(IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, m.mock_domain_flags, (command) =>
    mockDomain(command, command.cmd.dev_flags),
  ),
  testRow(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, m.mock_domain_replace, mockDomainReplace),
  testRow(IOMMU_TEST_OP_MD_CHECK_MAP, m.check_map, checkMap),
  testRow(IOMMU_TEST_OP_MD_CHECK_REFS, m.check_refs, checkRefs),
  testRow(IOMMU_TEST_OP_DIRTY, m.dirty, dirty),
  testRow(IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, m.memory_limit, setTempMemoryLimit),
];
