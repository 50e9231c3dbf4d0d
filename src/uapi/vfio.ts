/**
 * The VFIO uAPI of Linux 7.3 (include/uapi/linux/vfio.h): structs, ioctl numbers, flags.
 *
 * Declared once here; test/uapi/layouts.test.ts holds every size, offset and value against the ones compiled from the
 * kernel's headers. Structs begin with `__u32 argsz, __u32 flags`; flexible arrays at their end are not part of the
 * declaration (C's sizeof leaves them out too). Not declared: display, NVLink, EEH, SPAPR, s390 and migration v1, which
 * nothing here implements.
 */
import { defineStruct, nested, overlay, s32, u16, u32, u64, u8 } from '../layout/struct.js';
import { defineIoctl } from './ioctl.js';

/** `struct vfio_info_cap_header` */
export const vfio_info_cap_header = defineStruct('vfio_info_cap_header', {
  id: u16,
  version: u16,
  next: u32,
});

/** `struct vfio_group_status` */
export const vfio_group_status = defineStruct('vfio_group_status', {
  argsz: u32,
  flags: u32,
});

/** `struct vfio_device_info` */
export const vfio_device_info = defineStruct('vfio_device_info', {
  argsz: u32,
  flags: u32,
  num_regions: u32,
  num_irqs: u32,
  cap_offset: u32,
  pad: u32,
});

/** `struct vfio_region_info` */
export const vfio_region_info = defineStruct('vfio_region_info', {
  argsz: u32,
  flags: u32,
  index: u32,
  cap_offset: u32,
  size: u64,
  offset: u64,
});

/** `struct vfio_irq_info` */
export const vfio_irq_info = defineStruct('vfio_irq_info', {
  argsz: u32,
  flags: u32,
  index: u32,
  count: u32,
});

/** `struct vfio_irq_set` */
export const vfio_irq_set = defineStruct('vfio_irq_set', {
  argsz: u32,
  flags: u32,
  index: u32,
  start: u32,
  count: u32,
});

/** `struct vfio_device_bind_iommufd` */
export const vfio_device_bind_iommufd = defineStruct('vfio_device_bind_iommufd', {
  argsz: u32,
  flags: u32,
  iommufd: s32,
  out_devid: u32,
  token_uuid_ptr: u64,
});

/** `struct vfio_device_attach_iommufd_pt` */
export const vfio_device_attach_iommufd_pt = defineStruct('vfio_device_attach_iommufd_pt', {
  argsz: u32,
  flags: u32,
  pt_id: u32,
  pasid: u32,
});

/** `struct vfio_device_detach_iommufd_pt` */
export const vfio_device_detach_iommufd_pt = defineStruct('vfio_device_detach_iommufd_pt', {
  argsz: u32,
  flags: u32,
  pasid: u32,
});

/** `struct vfio_device_feature` */
export const vfio_device_feature = defineStruct('vfio_device_feature', {
  argsz: u32,
  flags: u32,
});

/** `struct vfio_device_feature_bus_master` */
export const vfio_device_feature_bus_master = defineStruct('vfio_device_feature_bus_master', {
  op: u32,
});

/** `struct vfio_device_feature_migration` */
export const vfio_device_feature_migration = defineStruct('vfio_device_feature_migration', {
  flags: u64,
});

/** `struct vfio_device_feature_mig_state` */
export const vfio_device_feature_mig_state = defineStruct('vfio_device_feature_mig_state', {
  device_state: u32,
  data_fd: s32,
});

/** `struct vfio_device_feature_mig_data_size` */
export const vfio_device_feature_mig_data_size = defineStruct('vfio_device_feature_mig_data_size', {
  stop_copy_length: u64,
});

/** `struct vfio_precopy_info` */
export const vfio_precopy_info = defineStruct('vfio_precopy_info', {
  argsz: u32,
  flags: u32,
  initial_bytes: u64,
  dirty_bytes: u64,
});

/** `struct vfio_device_feature_dma_logging_range` */
export const vfio_device_feature_dma_logging_range = defineStruct('vfio_device_feature_dma_logging_range', {
  iova: u64,
  length: u64,
});

/** `struct vfio_device_feature_dma_logging_control` */
export const vfio_device_feature_dma_logging_control = defineStruct('vfio_device_feature_dma_logging_control', {
  page_size: u64,
  num_ranges: u32,
  __reserved: u32,
  ranges: u64,
});

/** `struct vfio_device_feature_dma_logging_report` */
export const vfio_device_feature_dma_logging_report = defineStruct('vfio_device_feature_dma_logging_report', {
  iova: u64,
  length: u64,
  page_size: u64,
  bitmap: u64,
});

/** `struct vfio_region_dma_range` */
export const vfio_region_dma_range = defineStruct('vfio_region_dma_range', {
  offset: u64,
  length: u64,
});

/** `struct vfio_device_feature_dma_buf` */
export const vfio_device_feature_dma_buf = defineStruct('vfio_device_feature_dma_buf', {
  region_index: u32,
  open_flags: u32,
  flags: u32,
  nr_ranges: u32,
});

/** `struct vfio_pci_dependent_device` */
export const vfio_pci_dependent_device = defineStruct('vfio_pci_dependent_device', {
  group_id: u32,
  devid: overlay('group_id', u32),
  segment: u16,
  bus: u8,
  devfn: u8,
});

/** `struct vfio_pci_hot_reset_info` */
export const vfio_pci_hot_reset_info = defineStruct('vfio_pci_hot_reset_info', {
  argsz: u32,
  flags: u32,
  count: u32,
});

/** `struct vfio_pci_hot_reset` */
export const vfio_pci_hot_reset = defineStruct('vfio_pci_hot_reset', {
  argsz: u32,
  flags: u32,
  count: u32,
});

/** `struct vfio_iova_range` */
export const vfio_iova_range = defineStruct('vfio_iova_range', {
  start: u64,
  end: u64,
});

/** `struct vfio_bitmap` */
export const vfio_bitmap = defineStruct('vfio_bitmap', {
  pgsize: u64,
  size: u64,
  data: u64,
});

/** `struct vfio_iommu_type1_info` */
export const vfio_iommu_type1_info = defineStruct('vfio_iommu_type1_info', {
  argsz: u32,
  flags: u32,
  iova_pgsizes: u64,
  cap_offset: u32,
  pad: u32,
});

/** `struct vfio_iommu_type1_info_cap_iova_range` */
export const vfio_iommu_type1_info_cap_iova_range = defineStruct('vfio_iommu_type1_info_cap_iova_range', {
  header: nested(vfio_info_cap_header),
  nr_iovas: u32,
  reserved: u32,
});

/** `struct vfio_iommu_type1_info_cap_migration` */
export const vfio_iommu_type1_info_cap_migration = defineStruct('vfio_iommu_type1_info_cap_migration', {
  header: nested(vfio_info_cap_header),
  flags: u32,
  pgsize_bitmap: u64,
  max_dirty_bitmap_size: u64,
});

/** `struct vfio_iommu_type1_info_dma_avail` */
export const vfio_iommu_type1_info_dma_avail = defineStruct('vfio_iommu_type1_info_dma_avail', {
  header: nested(vfio_info_cap_header),
  avail: u32,
});

/** `struct vfio_iommu_type1_dma_map` */
export const vfio_iommu_type1_dma_map = defineStruct('vfio_iommu_type1_dma_map', {
  argsz: u32,
  flags: u32,
  vaddr: u64,
  iova: u64,
  size: u64,
});

/** `struct vfio_iommu_type1_dma_unmap` */
export const vfio_iommu_type1_dma_unmap = defineStruct('vfio_iommu_type1_dma_unmap', {
  argsz: u32,
  flags: u32,
  iova: u64,
  size: u64,
});

/** `struct vfio_iommu_type1_dirty_bitmap` */
export const vfio_iommu_type1_dirty_bitmap = defineStruct('vfio_iommu_type1_dirty_bitmap', {
  argsz: u32,
  flags: u32,
});

/** `struct vfio_iommu_type1_dirty_bitmap_get` */
export const vfio_iommu_type1_dirty_bitmap_get = defineStruct('vfio_iommu_type1_dirty_bitmap_get', {
  iova: u64,
  size: u64,
  bitmap: nested(vfio_bitmap),
});

// Ioctls with a struct: number, struct, last mandatory field (`argsz` rules of each call in drivers/vfio).
export const VFIO_GROUP_GET_STATUS = defineIoctl('VFIO_GROUP_GET_STATUS', 0x3b67, vfio_group_status, 'flags');
export const VFIO_DEVICE_GET_INFO = defineIoctl('VFIO_DEVICE_GET_INFO', 0x3b6b, vfio_device_info, 'num_irqs');
export const VFIO_DEVICE_GET_REGION_INFO = defineIoctl(
  'VFIO_DEVICE_GET_REGION_INFO',
  0x3b6c,
  vfio_region_info,
  'offset',
);
export const VFIO_DEVICE_GET_IRQ_INFO = defineIoctl('VFIO_DEVICE_GET_IRQ_INFO', 0x3b6d, vfio_irq_info, 'count');
export const VFIO_DEVICE_SET_IRQS = defineIoctl('VFIO_DEVICE_SET_IRQS', 0x3b6e, vfio_irq_set, 'count');
export const VFIO_DEVICE_BIND_IOMMUFD = defineIoctl(
  'VFIO_DEVICE_BIND_IOMMUFD',
  0x3b76,
  vfio_device_bind_iommufd,
  'out_devid',
);
export const VFIO_DEVICE_ATTACH_IOMMUFD_PT = defineIoctl(
  'VFIO_DEVICE_ATTACH_IOMMUFD_PT',
  0x3b77,
  vfio_device_attach_iommufd_pt,
  'pt_id',
);
export const VFIO_DEVICE_DETACH_IOMMUFD_PT = defineIoctl(
  'VFIO_DEVICE_DETACH_IOMMUFD_PT',
  0x3b78,
  vfio_device_detach_iommufd_pt,
  'flags',
);
export const VFIO_DEVICE_FEATURE = defineIoctl('VFIO_DEVICE_FEATURE', 0x3b75, vfio_device_feature, 'flags');
export const VFIO_MIG_GET_PRECOPY_INFO = defineIoctl(
  'VFIO_MIG_GET_PRECOPY_INFO',
  0x3b79,
  vfio_precopy_info,
  'dirty_bytes',
);
export const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = defineIoctl(
  'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO',
  0x3b70,
  vfio_pci_hot_reset_info,
  'count',
);
export const VFIO_DEVICE_PCI_HOT_RESET = defineIoctl('VFIO_DEVICE_PCI_HOT_RESET', 0x3b71, vfio_pci_hot_reset, 'count');
export const VFIO_IOMMU_GET_INFO = defineIoctl('VFIO_IOMMU_GET_INFO', 0x3b70, vfio_iommu_type1_info, 'iova_pgsizes');
export const VFIO_IOMMU_MAP_DMA = defineIoctl('VFIO_IOMMU_MAP_DMA', 0x3b71, vfio_iommu_type1_dma_map, 'size');
export const VFIO_IOMMU_UNMAP_DMA = defineIoctl('VFIO_IOMMU_UNMAP_DMA', 0x3b72, vfio_iommu_type1_dma_unmap, 'size');
export const VFIO_IOMMU_DIRTY_PAGES = defineIoctl(
  'VFIO_IOMMU_DIRTY_PAGES',
  0x3b75,
  vfio_iommu_type1_dirty_bitmap,
  'flags',
);

// Ioctls whose argument is a plain value, IOMMU types and extensions.
export const VFIO_GET_API_VERSION = 15204;
export const VFIO_CHECK_EXTENSION = 15205;
export const VFIO_SET_IOMMU = 15206;
export const VFIO_GROUP_SET_CONTAINER = 15208;
export const VFIO_GROUP_UNSET_CONTAINER = 15209;
export const VFIO_GROUP_GET_DEVICE_FD = 15210;
export const VFIO_DEVICE_RESET = 15215;
export const VFIO_API_VERSION = 0;
export const VFIO_TYPE1_IOMMU = 1;
export const VFIO_NOIOMMU_IOMMU = 8;
export const VFIO_UNMAP_ALL = 9;
export const VFIO_UPDATE_VADDR = 10;
export const VFIO_DMA_CC_IOMMU = 4;

// Flags, indices and states.
export const VFIO_DEVICE_ATTACH_PASID = 1;
export const VFIO_DEVICE_BIND_FLAG_TOKEN = 1;
export const VFIO_DEVICE_DETACH_PASID = 1;
export const VFIO_DEVICE_FEATURE_BUS_MASTER = 10;
export const VFIO_DEVICE_FEATURE_CLEAR_MASTER = 0;
export const VFIO_DEVICE_FEATURE_DMA_BUF = 11;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT = 8;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_START = 6;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP = 7;
export const VFIO_DEVICE_FEATURE_GET = 65536;
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY = 3;
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP = 4;
export const VFIO_DEVICE_FEATURE_LOW_POWER_EXIT = 5;
export const VFIO_DEVICE_FEATURE_MASK = 65535;
export const VFIO_DEVICE_FEATURE_MIGRATION = 1;
export const VFIO_DEVICE_FEATURE_MIG_DATA_SIZE = 9;
export const VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE = 2;
export const VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0;
export const VFIO_DEVICE_FEATURE_PROBE = 262144;
export const VFIO_DEVICE_FEATURE_SET = 131072;
export const VFIO_DEVICE_FEATURE_SET_MASTER = 1;
export const VFIO_DEVICE_FLAGS_AP = 32;
export const VFIO_DEVICE_FLAGS_CAPS = 128;
export const VFIO_DEVICE_FLAGS_PCI = 2;
export const VFIO_DEVICE_FLAGS_PLATFORM = 4;
export const VFIO_DEVICE_FLAGS_RESET = 1;
export const VFIO_DEVICE_STATE_ERROR = 0;
export const VFIO_DEVICE_STATE_MASK = 7;
export const VFIO_DEVICE_STATE_NR = 8;
export const VFIO_DEVICE_STATE_PRE_COPY = 6;
export const VFIO_DEVICE_STATE_PRE_COPY_P2P = 7;
export const VFIO_DEVICE_STATE_RESUMING = 4;
export const VFIO_DEVICE_STATE_RUNNING = 2;
export const VFIO_DEVICE_STATE_RUNNING_P2P = 5;
export const VFIO_DEVICE_STATE_STOP = 1;
export const VFIO_DEVICE_STATE_STOP_COPY = 3;
export const VFIO_GROUP_FLAGS_CONTAINER_SET = 2;
export const VFIO_GROUP_FLAGS_VIABLE = 1;
export const VFIO_DMA_MAP_FLAG_READ = 1;
export const VFIO_DMA_MAP_FLAG_WRITE = 2;
export const VFIO_DMA_UNMAP_FLAG_ALL = 2;
export const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 4;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 2;
export const VFIO_IOMMU_INFO_CAPS = 2;
export const VFIO_IOMMU_INFO_PGSIZES = 1;
export const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3;
export const VFIO_IRQ_INFO_AUTOMASKED = 4;
export const VFIO_IRQ_INFO_EVENTFD = 1;
export const VFIO_IRQ_INFO_MASKABLE = 2;
export const VFIO_IRQ_INFO_NORESIZE = 8;
export const VFIO_IRQ_SET_ACTION_MASK = 8;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 32;
export const VFIO_IRQ_SET_ACTION_TYPE_MASK = 56;
export const VFIO_IRQ_SET_ACTION_UNMASK = 16;
export const VFIO_IRQ_SET_DATA_BOOL = 2;
export const VFIO_IRQ_SET_DATA_EVENTFD = 4;
export const VFIO_IRQ_SET_DATA_NONE = 1;
export const VFIO_IRQ_SET_DATA_TYPE_MASK = 7;
export const VFIO_MIGRATION_P2P = 2;
export const VFIO_MIGRATION_PRE_COPY = 4;
export const VFIO_MIGRATION_STOP_COPY = 1;
export const VFIO_PCI_ATOMIC_COMP128 = 4;
export const VFIO_PCI_ATOMIC_COMP32 = 1;
export const VFIO_PCI_ATOMIC_COMP64 = 2;
export const VFIO_PCI_BAR0_REGION_INDEX = 0;
export const VFIO_PCI_BAR1_REGION_INDEX = 1;
export const VFIO_PCI_BAR2_REGION_INDEX = 2;
export const VFIO_PCI_BAR3_REGION_INDEX = 3;
export const VFIO_PCI_BAR4_REGION_INDEX = 4;
export const VFIO_PCI_BAR5_REGION_INDEX = 5;
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
export const VFIO_PCI_DEVID_NOT_OWNED = -1;
export const VFIO_PCI_DEVID_OWNED = 0;
export const VFIO_PCI_ERR_IRQ_INDEX = 3;
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 1;
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 2;
export const VFIO_PCI_INTX_IRQ_INDEX = 0;
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
export const VFIO_PCI_NUM_IRQS = 5;
export const VFIO_PCI_NUM_REGIONS = 9;
export const VFIO_PCI_REQ_IRQ_INDEX = 4;
export const VFIO_PCI_ROM_REGION_INDEX = 6;
export const VFIO_PCI_VGA_REGION_INDEX = 8;
export const VFIO_PRECOPY_INFO_REINIT = 1;
export const VFIO_REGION_INFO_FLAG_CAPS = 8;
export const VFIO_REGION_INFO_FLAG_MMAP = 4;
export const VFIO_REGION_INFO_FLAG_READ = 1;
export const VFIO_REGION_INFO_FLAG_WRITE = 2;
