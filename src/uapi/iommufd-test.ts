/**
 * The test commands of the iommufd selftest (drivers/iommu/iommufd/iommufd_test.h of Linux 7.3): one ioctl whose argument is
 * a union. `op` says which member holds; the members are declared apart so that a command reads and writes only its own.
 *
 * test/uapi/layouts.test.ts holds offsets and numbers against the compiled header.
 */
import { defineStruct, nested, overlay, s32, u32, u64 } from '../layout/struct.js';
import { defineIoctl } from './ioctl.js';

/** The anonymous members of `struct iommu_test_cmd`, by name. */
export const iommu_test_member = {
  add_reserved: defineStruct('add_reserved', { start: u64, length: u64 }),
  mock_domain: defineStruct('mock_domain', { out_stdev_id: u32, out_hwpt_id: u32, out_idev_id: u32 }),
  mock_domain_flags: defineStruct('mock_domain_flags', {
    out_stdev_id: u32,
    out_hwpt_id: u32,
    out_idev_id: u32,
    dev_flags: u32,
  }),
  mock_domain_replace: defineStruct('mock_domain_replace', { pt_id: u32 }),
  check_map: defineStruct('check_map', { iova: u64, length: u64, uptr: u64 }),
  check_refs: defineStruct('check_refs', { length: u64, uptr: u64, refs: u32 }),
  create_access: defineStruct('create_access', { out_access_fd: u32, flags: u32 }),
  destroy_access_pages: defineStruct('destroy_access_pages', { access_pages_id: u32 }),
  access_pages: defineStruct('access_pages', {
    flags: u32,
    out_access_pages_id: u32,
    iova: u64,
    length: u64,
    uptr: u64,
  }),
  access_rw: defineStruct('access_rw', { iova: u64, length: u64, uptr: u64, flags: u32 }),
  memory_limit: defineStruct('memory_limit', { limit: u32 }),
  access_replace_ioas: defineStruct('access_replace_ioas', { ioas_id: u32 }),
  dirty: defineStruct('dirty', {
    flags: u32,
    iova: u64,
    length: u64,
    page_size: u64,
    uptr: u64,
    out_nr_dirty: u64,
  }),
  check_iotlb: defineStruct('check_iotlb', { id: u32, iotlb: u32 }),
  trigger_iopf: defineStruct('trigger_iopf', { dev_id: u32, pasid: u32, grpid: u32, perm: u32, addr: u64 }),
  check_dev_cache: defineStruct('check_dev_cache', { id: u32, cache: u32 }),
  trigger_vevent: defineStruct('trigger_vevent', { dev_id: u32 }),
  pasid_attach: defineStruct('pasid_attach', { pasid: u32, pt_id: u32 }),
  pasid_replace: defineStruct('pasid_replace', { pasid: u32, pt_id: u32 }),
  pasid_detach: defineStruct('pasid_detach', { pasid: u32 }),
  pasid_check: defineStruct('pasid_check', { pasid: u32, hwpt_id: u32 }),
  dmabuf_get: defineStruct('dmabuf_get', { length: u32, open_flags: u32 }),
  dmabuf_revoke: defineStruct('dmabuf_revoke', { dmabuf_fd: s32, revoked: u32 }),
};
const m = iommu_test_member;

/** `struct iommu_test_cmd` */
export const iommu_test_cmd = defineStruct('iommu_test_cmd', {
  size: u32,
  op: u32,
  id: u32,
  __reserved: u32,
  add_reserved: nested(m.add_reserved),
  mock_domain: overlay('add_reserved', nested(m.mock_domain)),
  mock_domain_flags: overlay('add_reserved', nested(m.mock_domain_flags)),
  mock_domain_replace: overlay('add_reserved', nested(m.mock_domain_replace)),
  check_map: overlay('add_reserved', nested(m.check_map)),
  check_refs: overlay('add_reserved', nested(m.check_refs)),
  create_access: overlay('add_reserved', nested(m.create_access)),
  destroy_access_pages: overlay('add_reserved', nested(m.destroy_access_pages)),
  access_pages: overlay('add_reserved', nested(m.access_pages)),
  access_rw: overlay('add_reserved', nested(m.access_rw)),
  memory_limit: overlay('add_reserved', nested(m.memory_limit)),
  access_replace_ioas: overlay('add_reserved', nested(m.access_replace_ioas)),
  dirty: overlay('add_reserved', nested(m.dirty)),
  check_iotlb: overlay('add_reserved', nested(m.check_iotlb)),
  trigger_iopf: overlay('add_reserved', nested(m.trigger_iopf)),
  check_dev_cache: overlay('add_reserved', nested(m.check_dev_cache)),
  trigger_vevent: overlay('add_reserved', nested(m.trigger_vevent)),
  pasid_attach: overlay('add_reserved', nested(m.pasid_attach)),
  pasid_replace: overlay('add_reserved', nested(m.pasid_replace)),
  pasid_detach: overlay('add_reserved', nested(m.pasid_detach)),
  pasid_check: overlay('add_reserved', nested(m.pasid_check)),
  dmabuf_get: overlay('add_reserved', nested(m.dmabuf_get)),
  dmabuf_revoke: overlay('add_reserved', nested(m.dmabuf_revoke)),
  last: u32,
});

/** `struct iommu_test_hw_info` */
export const iommu_test_hw_info = defineStruct('iommu_test_hw_info', { flags: u32, test_reg: u32 });
/** `struct iommu_hwpt_selftest` */
export const iommu_hwpt_selftest = defineStruct('iommu_hwpt_selftest', { iotlb: u32, pagetable_type: u32 });
/** `struct iommu_hwpt_invalidate_selftest` */
export const iommu_hwpt_invalidate_selftest = defineStruct('iommu_hwpt_invalidate_selftest', {
  flags: u32,
  iotlb_id: u32,
});
/** `struct iommu_viommu_selftest` */
export const iommu_viommu_selftest = defineStruct('iommu_viommu_selftest', {
  in_data: u32,
  out_data: u32,
  out_mmap_offset: u64,
  out_mmap_length: u64,
});
/** `struct iommu_viommu_invalidate_selftest` */
export const iommu_viommu_invalidate_selftest = defineStruct('iommu_viommu_invalidate_selftest', {
  flags: u32,
  vdev_id: u32,
  cache_id: u32,
});
/** `struct iommu_viommu_event_selftest` */
export const iommu_viommu_event_selftest = defineStruct('iommu_viommu_event_selftest', { virt_id: u32 });

export const IOMMU_TEST_CMD = defineIoctl('IOMMU_TEST_CMD', 0x3ba0, iommu_test_cmd, 'last');

export const IOMMU_HWPT_DATA_SELFTEST = 0xdead;
export const IOMMU_HWPT_INVALIDATE_DATA_SELFTEST = 0xdeadbeef;
export const IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID = 0xdadbeef;
export const IOMMU_HW_INFO_SELFTEST_REGVAL = 0xdeadbeef;
export const IOMMU_HW_INFO_TYPE_SELFTEST = 0xfeedbeef;
export const IOMMU_HW_QUEUE_TYPE_SELFTEST = 0xdeadbeef;
export const IOMMU_TEST_DEV_CACHE_DEFAULT = 0xbaddad;
export const IOMMU_TEST_HW_QUEUE_MAX = 2;
export const IOMMU_TEST_INVALIDATE_FLAG_ALL = 1;
export const IOMMU_TEST_IOTLB_DEFAULT = 0xbadbeef;
export const IOMMU_TEST_OP_ACCESS_PAGES = 7;
export const IOMMU_TEST_OP_ACCESS_REPLACE_IOAS = 11;
export const IOMMU_TEST_OP_ACCESS_RW = 8;
export const IOMMU_TEST_OP_ADD_RESERVED = 1;
export const IOMMU_TEST_OP_CREATE_ACCESS = 5;
export const IOMMU_TEST_OP_DESTROY_ACCESS_PAGES = 6;
export const IOMMU_TEST_OP_DEV_CHECK_CACHE = 16;
export const IOMMU_TEST_OP_DIRTY = 13;
export const IOMMU_TEST_OP_DMABUF_GET = 22;
export const IOMMU_TEST_OP_DMABUF_REVOKE = 23;
export const IOMMU_TEST_OP_MD_CHECK_IOTLB = 14;
export const IOMMU_TEST_OP_MD_CHECK_MAP = 3;
export const IOMMU_TEST_OP_MD_CHECK_REFS = 4;
export const IOMMU_TEST_OP_MOCK_DOMAIN = 2;
export const IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS = 12;
export const IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE = 10;
export const IOMMU_TEST_OP_PASID_ATTACH = 18;
export const IOMMU_TEST_OP_PASID_CHECK_HWPT = 21;
export const IOMMU_TEST_OP_PASID_DETACH = 20;
export const IOMMU_TEST_OP_PASID_REPLACE = 19;
export const IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT = 9;
export const IOMMU_TEST_OP_TRIGGER_IOPF = 15;
export const IOMMU_TEST_OP_TRIGGER_VEVENT = 17;
export const IOMMU_TEST_PASID_RESERVED = 1024;
export const IOMMU_VEVENTQ_TYPE_SELFTEST = 0xbeefbeef;
export const IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST = 0xdeadbeef;
export const IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID = 0xdadbeef;
export const IOMMU_VIOMMU_TYPE_SELFTEST = 0xdeadbeef;
export const MOCK_ACCESS_RW_SLOW_PATH = 4;
export const MOCK_ACCESS_RW_WRITE = 1;
export const MOCK_APERTURE_LAST = 0x7fffffff;
export const MOCK_APERTURE_START = 0x1000000;
export const MOCK_DEV_CACHE_ID_MAX = 3;
export const MOCK_DEV_CACHE_NUM = 4;
export const MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES = 1;
export const MOCK_FLAGS_ACCESS_SYZ = 0x10000;
export const MOCK_FLAGS_ACCESS_WRITE = 1;
export const MOCK_FLAGS_DEVICE_NO_DIRTY = 1;
export const MOCK_FLAGS_DEVICE_PASID = 4;
export const MOCK_HUGE_PAGE_SIZE = 0x100000;
export const MOCK_IOMMUPT_DEFAULT = 0;
export const MOCK_IOMMUPT_HUGE = 1;
export const MOCK_NESTED_DOMAIN_IOTLB_ID_MAX = 3;
export const MOCK_NESTED_DOMAIN_IOTLB_NUM = 4;
export const MOCK_PAGE_SIZE = 2048;
export const MOCK_PASID_WIDTH = 20;
