/**
 * Test operations on nested page tables, vIOMMUs, page requests and PASIDs.
 *
 * Source: Linux drivers/iommu/iommufd/selftest.c.
 */
import { invariant, type Task } from '../../../runtime/task.js';
import { EINVAL, ENOENT } from '../../../uapi/errno.js';
import {
  iommu_test_member,
  IOMMU_TEST_OP_DEV_CHECK_CACHE,
  IOMMU_TEST_OP_MD_CHECK_IOTLB,
  IOMMU_TEST_OP_PASID_ATTACH,
  IOMMU_TEST_OP_PASID_CHECK_HWPT,
  IOMMU_TEST_OP_PASID_DETACH,
  IOMMU_TEST_OP_PASID_REPLACE,
  IOMMU_TEST_OP_TRIGGER_IOPF,
  IOMMU_TEST_OP_TRIGGER_VEVENT,
} from '../../../uapi/iommufd-test.js';
import { iommu_report_device_fault, PAGE_REQUEST_LAST_PAGE, PAGE_REQUEST_PASID_VALID } from '../../iommu/group.js';
import {
  getDevice,
  IOMMU_NO_PASID,
  iommufd_device_attach,
  iommufd_device_detach,
  iommufd_device_replace,
  type IommufdDevice,
} from '../device.js';
import { Hwpt, HwptNested } from '../hw-pagetable.js';
import type { IommufdContext } from '../main.js';
import { IommufdObject } from '../object.js';
import { testRow, type TestCommandOf, type TestRow } from './command.js';
import { getSelftestDevice } from './devices.js';
import { MockDevice, MockNested } from './mock-iommu.js';

type Members = typeof iommu_test_member;

/** Runs `body` with an iommufd device, -ENOENT when there is none. */
function* withDevice(
  ictx: IommufdContext,
  id: number,
  body: (idev: IommufdDevice, device: MockDevice) => Task<number>,
): Task<number> {
  const idev = getDevice(ictx, id);
  if (idev === undefined) return -ENOENT;
  invariant(idev.device instanceof MockDevice, 'selftest: a device of a mock iommufd is none of its own');
  const rc = yield* body(idev, idev.device);
  ictx.objects.put(idev);
  return rc;
}

/** IOMMU_TEST_OP_MD_CHECK_IOTLB */
function* checkIotlb({ id, cmd, ictx }: TestCommandOf<Members['check_iotlb']>): Task<number> {
  const hwpt = ictx.objects.get(id, (object): object is HwptNested => object instanceof HwptNested);
  if (hwpt === undefined) return -ENOENT;
  const { domain } = hwpt;
  const isSame = domain instanceof MockNested && domain.iotlb[cmd.id] === cmd.iotlb;
  ictx.objects.put(hwpt);
  return isSame ? 0 : -EINVAL;
}

/** IOMMU_TEST_OP_DEV_CHECK_CACHE */
function* checkCache({ id, cmd, ictx }: TestCommandOf<Members['check_dev_cache']>): Task<number> {
  return yield* withDevice(ictx, id, function* (_idev, { cache }) {
    return cache[cmd.id] === cmd.cache ? 0 : -EINVAL;
  });
}

/** IOMMU_TEST_OP_TRIGGER_IOPF: one page request, the last of its group. */
function* triggerIopf({ cmd, ictx }: TestCommandOf<Members['trigger_iopf']>): Task<number> {
  return yield* withDevice(ictx, cmd.dev_id, function* (_idev, device) {
    const { pasid, grpid, perm, addr } = cmd;
    const flags = PAGE_REQUEST_LAST_PAGE | (pasid === IOMMU_NO_PASID ? 0 : PAGE_REQUEST_PASID_VALID);
    iommu_report_device_fault(device, { flags, pasid, grpid, perm, addr });
    return 0;
  });
}

/** IOMMU_TEST_OP_TRIGGER_VEVENT */
function* triggerVevent({ cmd, ictx, mock }: TestCommandOf<Members['trigger_vevent']>): Task<number> {
  return yield* withDevice(ictx, cmd.dev_id, (_idev, device) => mock.triggerVevent(device));
}

/** Runs `body` with a selftest's device, -ENOENT when there is none. */
function* withSelftest(ictx: IommufdContext, id: number, body: (idev: IommufdDevice) => Task<number>): Task<number> {
  const device = getSelftestDevice(ictx, id);
  if (device === undefined) return -ENOENT;
  invariant(device.idev !== undefined, 'selftest: a device that can be found is not bound');
  const rc = yield* body(device.idev);
  ictx.objects.put(device);
  return rc;
}

/** IOMMU_TEST_OP_PASID_ATTACH */
function* pasidAttach(command: TestCommandOf<Members['pasid_attach']>): Task<number> {
  const { cmd, ctx } = command;
  return yield* withSelftest(command.ictx, command.id, function* (idev) {
    const ptId = yield* iommufd_device_attach(idev, cmd.pt_id, ctx, cmd.pasid);
    if (ptId < 0) return ptId;
    cmd.pt_id = ptId;
    const rc = command.respond();
    if (rc < 0) yield* iommufd_device_detach(idev, cmd.pasid);
    return rc;
  });
}

/** IOMMU_TEST_OP_PASID_REPLACE */
function* pasidReplace(command: TestCommandOf<Members['pasid_replace']>): Task<number> {
  const { cmd, ctx } = command;
  return yield* withSelftest(command.ictx, command.id, function* (idev) {
    const ptId = yield* iommufd_device_replace(idev, cmd.pt_id, ctx, cmd.pasid);
    if (ptId < 0) return ptId;
    cmd.pt_id = ptId;
    return command.respond();
  });
}

/** IOMMU_TEST_OP_PASID_DETACH */
function* pasidDetach({ id, cmd, ictx }: TestCommandOf<Members['pasid_detach']>): Task<number> {
  return yield* withSelftest(ictx, id, function* (idev) {
    yield* iommufd_device_detach(idev, cmd.pasid);
    return 0;
  });
}

/** IOMMU_TEST_OP_PASID_CHECK_HWPT: whether a PASID uses a page table, or with 0, none. */
function* pasidCheck({ id, cmd, ictx }: TestCommandOf<Members['pasid_check']>): Task<number> {
  return yield* withSelftest(ictx, id, function* ({ igroup: { group } }) {
    const handle = cmd.pasid === IOMMU_NO_PASID ? group.attachHandle : group.pasids.get(cmd.pasid);
    if (cmd.hwpt_id === 0) return handle === undefined ? 0 : -EINVAL;
    const object = ictx.objects.get(cmd.hwpt_id, (any): any is IommufdObject => any instanceof IommufdObject);
    if (object === undefined) return -ENOENT;
    ictx.objects.put(object);
    return object instanceof Hwpt && handle?.domain === object.domain ? 0 : -EINVAL;
  });
}

const m = iommu_test_member;

/** Operations of this module. */
export const objectRows: readonly TestRow[] = [
  testRow(IOMMU_TEST_OP_MD_CHECK_IOTLB, m.check_iotlb, checkIotlb),
  testRow(IOMMU_TEST_OP_DEV_CHECK_CACHE, m.check_dev_cache, checkCache),
  testRow(IOMMU_TEST_OP_TRIGGER_IOPF, m.trigger_iopf, triggerIopf),
  testRow(IOMMU_TEST_OP_TRIGGER_VEVENT, m.trigger_vevent, triggerVevent),
  testRow(IOMMU_TEST_OP_PASID_ATTACH, m.pasid_attach, pasidAttach),
  testRow(IOMMU_TEST_OP_PASID_REPLACE, m.pasid_replace, pasidReplace),
  testRow(IOMMU_TEST_OP_PASID_DETACH, m.pasid_detach, pasidDetach),
  testRow(IOMMU_TEST_OP_PASID_CHECK_HWPT, m.pasid_check, pasidCheck),
];
