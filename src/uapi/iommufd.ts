/**
 * The iommufd uAPI of Linux 7.3 (include/uapi/linux/iommufd.h): structs, ioctl numbers, flags.
 *
 * Declared once here; test/uapi/layouts.test.ts holds every size, offset and value against the ones compiled from the
 * kernel's headers. Every struct begins with `__u32 size`. The mock driver's test commands are not declared yet.
 */
import { arrayOf, defineStruct, overlay, s32, u16, u32, u64, u8 } from '../layout/struct.js';
import { defineIoctl } from './ioctl.js';

/** `struct iommu_destroy` */
export const iommu_destroy = defineStruct('iommu_destroy', {
  size: u32,
  id: u32,
});

/** `struct iommu_ioas_alloc` */
export const iommu_ioas_alloc = defineStruct('iommu_ioas_alloc', {
  size: u32,
  flags: u32,
  out_ioas_id: u32,
});

/** `struct iommu_ioas_allow_iovas` */
export const iommu_ioas_allow_iovas = defineStruct('iommu_ioas_allow_iovas', {
  size: u32,
  ioas_id: u32,
  num_iovas: u32,
  __reserved: u32,
  allowed_iovas: u64,
});

/** `struct iommu_ioas_copy` */
export const iommu_ioas_copy = defineStruct('iommu_ioas_copy', {
  size: u32,
  flags: u32,
  dst_ioas_id: u32,
  src_ioas_id: u32,
  length: u64,
  dst_iova: u64,
  src_iova: u64,
});

/** `struct iommu_iova_range` */
export const iommu_iova_range = defineStruct('iommu_iova_range', {
  start: u64,
  last: u64,
});

/** `struct iommu_ioas_iova_ranges` */
export const iommu_ioas_iova_ranges = defineStruct('iommu_ioas_iova_ranges', {
  size: u32,
  ioas_id: u32,
  num_iovas: u32,
  __reserved: u32,
  allowed_iovas: u64,
  out_iova_alignment: u64,
});

/** `struct iommu_ioas_map` */
export const iommu_ioas_map = defineStruct('iommu_ioas_map', {
  size: u32,
  flags: u32,
  ioas_id: u32,
  __reserved: u32,
  user_va: u64,
  length: u64,
  iova: u64,
});

/** `struct iommu_ioas_map_file` */
export const iommu_ioas_map_file = defineStruct('iommu_ioas_map_file', {
  size: u32,
  flags: u32,
  ioas_id: u32,
  fd: s32,
  start: u64,
  length: u64,
  iova: u64,
});

/** `struct iommu_ioas_unmap` */
export const iommu_ioas_unmap = defineStruct('iommu_ioas_unmap', {
  size: u32,
  ioas_id: u32,
  iova: u64,
  length: u64,
});

/** `struct iommu_option` */
export const iommu_option = defineStruct('iommu_option', {
  size: u32,
  option_id: u32,
  op: u16,
  __reserved: u16,
  object_id: u32,
  val64: u64,
});

/** `struct iommu_vfio_ioas` */
export const iommu_vfio_ioas = defineStruct('iommu_vfio_ioas', {
  size: u32,
  ioas_id: u32,
  op: u16,
  __reserved: u16,
});

/** `struct iommu_hwpt_alloc` */
export const iommu_hwpt_alloc = defineStruct('iommu_hwpt_alloc', {
  size: u32,
  flags: u32,
  dev_id: u32,
  pt_id: u32,
  out_hwpt_id: u32,
  __reserved: u32,
  data_type: u32,
  data_len: u32,
  data_uptr: u64,
  fault_id: u32,
  __reserved2: u32,
});

/** `struct iommu_hwpt_arm_smmuv3` */
export const iommu_hwpt_arm_smmuv3 = defineStruct('iommu_hwpt_arm_smmuv3', {
  ste: arrayOf(u64, 2),
});

/** `struct iommu_hw_info` */
export const iommu_hw_info = defineStruct('iommu_hw_info', {
  size: u32,
  flags: u32,
  dev_id: u32,
  data_len: u32,
  data_uptr: u64,
  in_data_type: u32,
  out_data_type: overlay('in_data_type', u32),
  out_max_pasid_log2: u8,
  __reserved: arrayOf(u8, 3),
  out_capabilities: u64,
});

/** `struct iommu_hw_info_arm_smmuv3` */
export const iommu_hw_info_arm_smmuv3 = defineStruct('iommu_hw_info_arm_smmuv3', {
  flags: u32,
  __reserved: u32,
  idr: arrayOf(u32, 6),
  iidr: u32,
  aidr: u32,
});

/** `struct iommu_hwpt_set_dirty_tracking` */
export const iommu_hwpt_set_dirty_tracking = defineStruct('iommu_hwpt_set_dirty_tracking', {
  size: u32,
  flags: u32,
  hwpt_id: u32,
  __reserved: u32,
});

/** `struct iommu_hwpt_get_dirty_bitmap` */
export const iommu_hwpt_get_dirty_bitmap = defineStruct('iommu_hwpt_get_dirty_bitmap', {
  size: u32,
  hwpt_id: u32,
  flags: u32,
  __reserved: u32,
  iova: u64,
  length: u64,
  page_size: u64,
  data: u64,
});

/** `struct iommu_hwpt_invalidate` */
export const iommu_hwpt_invalidate = defineStruct('iommu_hwpt_invalidate', {
  size: u32,
  hwpt_id: u32,
  data_uptr: u64,
  data_type: u32,
  entry_len: u32,
  entry_num: u32,
  __reserved: u32,
});

/** `struct iommu_viommu_arm_smmuv3_invalidate` */
export const iommu_viommu_arm_smmuv3_invalidate = defineStruct('iommu_viommu_arm_smmuv3_invalidate', {
  cmd: arrayOf(u64, 2),
});

/** `struct iommu_fault_alloc` */
export const iommu_fault_alloc = defineStruct('iommu_fault_alloc', {
  size: u32,
  flags: u32,
  out_fault_id: u32,
  out_fault_fd: u32,
});

/** `struct iommu_hwpt_pgfault` */
export const iommu_hwpt_pgfault = defineStruct('iommu_hwpt_pgfault', {
  flags: u32,
  dev_id: u32,
  pasid: u32,
  grpid: u32,
  perm: u32,
  __reserved: u32,
  addr: u64,
  length: u32,
  cookie: u32,
});

/** `struct iommu_hwpt_page_response` */
export const iommu_hwpt_page_response = defineStruct('iommu_hwpt_page_response', {
  cookie: u32,
  code: u32,
});

/** `struct iommu_ioas_change_process` */
export const iommu_ioas_change_process = defineStruct('iommu_ioas_change_process', {
  size: u32,
  __reserved: u32,
});

/** `struct iommu_viommu_alloc` */
export const iommu_viommu_alloc = defineStruct('iommu_viommu_alloc', {
  size: u32,
  flags: u32,
  type: u32,
  dev_id: u32,
  hwpt_id: u32,
  out_viommu_id: u32,
  data_len: u32,
  __reserved: u32,
  data_uptr: u64,
});

/** `struct iommu_vdevice_alloc` */
export const iommu_vdevice_alloc = defineStruct('iommu_vdevice_alloc', {
  size: u32,
  viommu_id: u32,
  dev_id: u32,
  out_vdevice_id: u32,
  virt_id: u64,
});

/** `struct iommufd_vevent_header` */
export const iommufd_vevent_header = defineStruct('iommufd_vevent_header', {
  flags: u32,
  sequence: u32,
});

/** `struct iommu_vevent_arm_smmuv3` */
export const iommu_vevent_arm_smmuv3 = defineStruct('iommu_vevent_arm_smmuv3', {
  evt: arrayOf(u64, 4),
});

/** `struct iommu_veventq_alloc` */
export const iommu_veventq_alloc = defineStruct('iommu_veventq_alloc', {
  size: u32,
  flags: u32,
  viommu_id: u32,
  type: u32,
  veventq_depth: u32,
  out_veventq_id: u32,
  out_veventq_fd: u32,
  __reserved: u32,
});

/** `struct iommu_hw_queue_alloc` */
export const iommu_hw_queue_alloc = defineStruct('iommu_hw_queue_alloc', {
  size: u32,
  flags: u32,
  viommu_id: u32,
  type: u32,
  index: u32,
  out_hw_queue_id: u32,
  nesting_parent_iova: u64,
  length: u64,
});

/** `struct iommu_ioas_noiommu_get_pa` */
export const iommu_ioas_noiommu_get_pa = defineStruct('iommu_ioas_noiommu_get_pa', {
  size: u32,
  flags: u32,
  ioas_id: u32,
  __reserved: u32,
  iova: u64,
  length: u64,
  out_phys: u64,
});

// Ioctls: number, struct, last mandatory field (domain.md A5; type byte `;`, commands 0x80...).
export const IOMMU_DESTROY = defineIoctl('IOMMU_DESTROY', 0x3b80, iommu_destroy, 'id');
export const IOMMU_IOAS_ALLOC = defineIoctl('IOMMU_IOAS_ALLOC', 0x3b81, iommu_ioas_alloc, 'out_ioas_id');
export const IOMMU_IOAS_ALLOW_IOVAS = defineIoctl(
  'IOMMU_IOAS_ALLOW_IOVAS',
  0x3b82,
  iommu_ioas_allow_iovas,
  'allowed_iovas',
);
export const IOMMU_IOAS_COPY = defineIoctl('IOMMU_IOAS_COPY', 0x3b83, iommu_ioas_copy, 'src_iova');
export const IOMMU_IOAS_IOVA_RANGES = defineIoctl(
  'IOMMU_IOAS_IOVA_RANGES',
  0x3b84,
  iommu_ioas_iova_ranges,
  'out_iova_alignment',
);
export const IOMMU_IOAS_MAP = defineIoctl('IOMMU_IOAS_MAP', 0x3b85, iommu_ioas_map, 'iova');
export const IOMMU_IOAS_MAP_FILE = defineIoctl('IOMMU_IOAS_MAP_FILE', 0x3b8f, iommu_ioas_map_file, 'iova');
export const IOMMU_IOAS_UNMAP = defineIoctl('IOMMU_IOAS_UNMAP', 0x3b86, iommu_ioas_unmap, 'length');
export const IOMMU_OPTION = defineIoctl('IOMMU_OPTION', 0x3b87, iommu_option, 'val64');
export const IOMMU_VFIO_IOAS = defineIoctl('IOMMU_VFIO_IOAS', 0x3b88, iommu_vfio_ioas, '__reserved');
export const IOMMU_HWPT_ALLOC = defineIoctl('IOMMU_HWPT_ALLOC', 0x3b89, iommu_hwpt_alloc, '__reserved');
export const IOMMU_GET_HW_INFO = defineIoctl('IOMMU_GET_HW_INFO', 0x3b8a, iommu_hw_info, '__reserved');
export const IOMMU_HWPT_SET_DIRTY_TRACKING = defineIoctl(
  'IOMMU_HWPT_SET_DIRTY_TRACKING',
  0x3b8b,
  iommu_hwpt_set_dirty_tracking,
  '__reserved',
);
export const IOMMU_HWPT_GET_DIRTY_BITMAP = defineIoctl(
  'IOMMU_HWPT_GET_DIRTY_BITMAP',
  0x3b8c,
  iommu_hwpt_get_dirty_bitmap,
  'data',
);
export const IOMMU_HWPT_INVALIDATE = defineIoctl('IOMMU_HWPT_INVALIDATE', 0x3b8d, iommu_hwpt_invalidate, '__reserved');
export const IOMMU_FAULT_QUEUE_ALLOC = defineIoctl(
  'IOMMU_FAULT_QUEUE_ALLOC',
  0x3b8e,
  iommu_fault_alloc,
  'out_fault_fd',
);
export const IOMMU_IOAS_CHANGE_PROCESS = defineIoctl(
  'IOMMU_IOAS_CHANGE_PROCESS',
  0x3b92,
  iommu_ioas_change_process,
  '__reserved',
);
export const IOMMU_VIOMMU_ALLOC = defineIoctl('IOMMU_VIOMMU_ALLOC', 0x3b90, iommu_viommu_alloc, 'out_viommu_id');
export const IOMMU_VDEVICE_ALLOC = defineIoctl('IOMMU_VDEVICE_ALLOC', 0x3b91, iommu_vdevice_alloc, 'virt_id');
export const IOMMU_VEVENTQ_ALLOC = defineIoctl('IOMMU_VEVENTQ_ALLOC', 0x3b93, iommu_veventq_alloc, 'out_veventq_fd');
export const IOMMU_HW_QUEUE_ALLOC = defineIoctl('IOMMU_HW_QUEUE_ALLOC', 0x3b94, iommu_hw_queue_alloc, 'length');
export const IOMMU_IOAS_NOIOMMU_GET_PA = defineIoctl(
  'IOMMU_IOAS_NOIOMMU_GET_PA',
  0x3b95,
  iommu_ioas_noiommu_get_pa,
  'out_phys',
);

// Flags, types and codes.
export const IOMMUFD_PAGE_RESP_INVALID = 1;
export const IOMMUFD_PAGE_RESP_SUCCESS = 0;
export const IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 2;
export const IOMMU_HWPT_ALLOC_NEST_PARENT = 1;
export const IOMMU_HWPT_ALLOC_PASID = 8;
export const IOMMU_HWPT_DATA_AMD_GUEST = 3;
export const IOMMU_HWPT_DATA_ARM_SMMUV3 = 2;
export const IOMMU_HWPT_DATA_NONE = 0;
export const IOMMU_HWPT_DATA_VTD_S1 = 1;
export const IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1;
export const IOMMU_HWPT_FAULT_ID_VALID = 4;
export const IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1;
export const IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0;
export const IOMMU_HW_CAP_DIRTY_TRACKING = 1;
export const IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 8;
export const IOMMU_HW_CAP_PCI_PASID_EXEC = 2;
export const IOMMU_HW_CAP_PCI_PASID_PRIV = 4;
export const IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI = 1;
export const IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1;
export const IOMMU_HW_INFO_TYPE_AMD = 4;
export const IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2;
export const IOMMU_HW_INFO_TYPE_DEFAULT = 0;
export const IOMMU_HW_INFO_TYPE_INTEL_VTD = 1;
export const IOMMU_HW_INFO_TYPE_NONE = 0;
export const IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3;
export const IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1;
export const IOMMU_HW_QUEUE_TYPE_DEFAULT = 0;
export const IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1;
export const IOMMU_IOAS_MAP_FIXED_IOVA = 1;
export const IOMMU_IOAS_MAP_READABLE = 4;
export const IOMMU_IOAS_MAP_WRITEABLE = 2;
export const IOMMU_OPTION_HUGE_PAGES = 1;
export const IOMMU_OPTION_OP_GET = 1;
export const IOMMU_OPTION_OP_SET = 0;
export const IOMMU_OPTION_RLIMIT_MODE = 0;
export const IOMMU_PGFAULT_FLAGS_LAST_PAGE = 2;
export const IOMMU_PGFAULT_FLAGS_PASID_VALID = 1;
export const IOMMU_PGFAULT_PERM_EXEC = 4;
export const IOMMU_PGFAULT_PERM_PRIV = 8;
export const IOMMU_PGFAULT_PERM_READ = 1;
export const IOMMU_PGFAULT_PERM_WRITE = 2;
export const IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1;
export const IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1;
export const IOMMU_VEVENTQ_TYPE_DEFAULT = 0;
export const IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2;
export const IOMMU_VFIO_IOAS_CLEAR = 2;
export const IOMMU_VFIO_IOAS_GET = 0;
export const IOMMU_VFIO_IOAS_SET = 1;
export const IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1;
export const IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1;
export const IOMMU_VIOMMU_TYPE_DEFAULT = 0;
export const IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2;
export const IOMMU_VTD_INV_FLAGS_LEAF = 1;
export const IOMMU_VTD_S1_EAFE = 2;
export const IOMMU_VTD_S1_SRE = 1;
export const IOMMU_VTD_S1_WPE = 4;
