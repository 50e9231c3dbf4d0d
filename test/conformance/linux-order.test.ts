/** Which of two mistakes a call reports, and what stays after it: read in the kernel's source where no recording shows it. */
import { describe, test } from 'vitest';
import { playText } from '../fixtures/sequence.js';

const cases: readonly (readonly [string, string])[] = [
  [
    'MAP_FILE: an empty length, then the end of the file offsets, then the descriptor, then a length beyond all pages',
    `IOAS_ALLOC flags=0 -> OK
     IOAS_MAP_FILE flags=7 ioas_id=1 file=5 start=0x1000 length=0x0 iova=0x1000000 -> EINVAL
     IOAS_MAP_FILE flags=7 ioas_id=1 file=5 start=0x1001 length=0xfffffffffffff000 iova=0x1000000 -> EOVERFLOW
     IOAS_MAP_FILE flags=7 ioas_id=1 file=5 start=0x1000 length=0xfffffffffffff000 iova=0x1000000 -> EBADF
     IOAS_MAP_FILE flags=7 ioas_id=1 file=0 start=0x1000 length=0xfffffffffffff000 iova=0x1000000 -> EINVAL
     IOAS_MAP_FILE flags=7 ioas_id=1 file=0 start=0xfffffffffffff000 length=0x1000 iova=0x1000000 -> OK`,
  ],
  [
    'a slow write over memory that cannot all be pinned writes nothing',
    `IOAS_ALLOC flags=0 -> OK
     TEST_CREATE_ACCESS ioas_id=1 flags=0 -> OK access=0
     IOAS_MAP flags=7 ioas_id=1 user_va=hole+0xff000 length=0x2000 iova=0x1000000 -> OK
     TEST_ACCESS_RW access=0 flags=0 iova=0x1000ff0 length=0x4 -> OK data="b033b639"
     TEST_ACCESS_RW access=0 flags=5 iova=0x1000ff0 length=0x20 salt=9 -> EFAULT
     TEST_ACCESS_RW access=0 flags=0 iova=0x1000ff0 length=0x4 -> OK data="b033b639"
     TEST_ACCESS_RW access=0 flags=1 iova=0x1000ff0 length=0x20 salt=9 -> EFAULT
     TEST_ACCESS_RW access=0 flags=0 iova=0x1000ff0 length=0x4 -> OK data="090c0f12"`,
  ],
  [
    'the number of a vDEVICE whose device went stays taken while the descriptor is open',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_stdev_id=2 out_idev_id=3 out_hwpt_id=4
     HWPT_ALLOC flags=1 dev_id=3 pt_id=1 data_type=0 data_len=0 fault_id=0 -> OK out_hwpt_id=5
     VIOMMU_ALLOC flags=0 type=3735928559 dev_id=3 hwpt_id=5 data_len=0 -> OK out_viommu_id=6
     VDEVICE_ALLOC viommu_id=6 dev_id=3 virt_id=0x2 -> OK out_vdevice_id=7
     DESTROY id=2 -> OK
     DESTROY id=7 -> ENOENT
     IOAS_ALLOC flags=0 -> OK out_ioas_id=2
     IOAS_ALLOC flags=0 -> OK out_ioas_id=3
     IOAS_ALLOC flags=0 -> OK out_ioas_id=4
     IOAS_ALLOC flags=0 -> OK out_ioas_id=8`,
  ],
  [
    'a process change does not charge twice who pays already',
    `SET_CAPS ipc_lock=0 sys_resource=1 -> OK
     SET_RLIMIT_MEMLOCK bytes=0x8000 -> OK
     IOAS_ALLOC flags=0 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK
     IOAS_MAP_FILE flags=7 ioas_id=1 file=0 start=0x0 length=0x5000 iova=0x1000000 -> OK
     IOAS_CHANGE_PROCESS __reserved=0 -> OK
     IOAS_MAP_FILE flags=7 ioas_id=1 file=0 start=0x5000 length=0x3000 iova=0x1005000 -> OK
     IOAS_MAP_FILE flags=7 ioas_id=1 file=0 start=0x8000 length=0x1000 iova=0x1008000 -> ENOMEM`,
  ],
  [
    'a hardware queue may lie over two mappings of contiguous memory; sizes are looked at first',
    `IOAS_ALLOC flags=0 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_idev_id=3
     HWPT_ALLOC flags=1 dev_id=3 pt_id=1 data_type=0 data_len=0 fault_id=0 -> OK out_hwpt_id=5
     VIOMMU_ALLOC flags=0 type=3735928559 dev_id=3 hwpt_id=5 data_len=0 -> OK out_viommu_id=6
     IOAS_MAP flags=7 ioas_id=1 user_va=huge+0x0 length=0x1000 iova=0x1000000 -> OK
     IOAS_MAP flags=7 ioas_id=1 user_va=huge+0x1000 length=0x1000 iova=0x1001000 -> OK
     HW_QUEUE_ALLOC flags=0 viommu_id=6 type=3735928559 index=0 nesting_parent_iova=0x0 length=0xffffffffffffffff -> ERANGE
     HW_QUEUE_ALLOC flags=0 viommu_id=6 type=3735928559 index=0 nesting_parent_iova=0x1000000 length=0x2000 -> OK`,
  ],
  [
    'a dirty report of nothing is EINVAL, at IOVA 0 as elsewhere',
    `IOAS_ALLOC flags=0 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_idev_id=3
     HWPT_ALLOC flags=2 dev_id=3 pt_id=1 data_type=0 data_len=0 fault_id=0 -> OK out_hwpt_id=5
     HWPT_GET_DIRTY_BITMAP hwpt_id=5 flags=0 iova=0x1000000 length=0x0 page_size=0x1000 -> EINVAL
     HWPT_GET_DIRTY_BITMAP hwpt_id=5 flags=0 iova=0x0 length=0x0 page_size=0x1000 -> EINVAL`,
  ],
  [
    "a driver's data is not read before flags, type and length are known to be good",
    `IOAS_ALLOC flags=0 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_idev_id=3
     HWPT_ALLOC flags=1073741824 dev_id=3 pt_id=1 data_type=57005 data_len=1048576 fault_id=0 -> EOPNOTSUPP
     HWPT_ALLOC flags=0 dev_id=3 pt_id=1 data_type=1 data_len=1048577 fault_id=0 -> EOPNOTSUPP
     HWPT_ALLOC flags=0 dev_id=3 pt_id=1 data_type=57005 data_len=1048577 fault_id=0 -> EINVAL`,
  ],
  [
    'the last IOVA of a span is no place for an automatic mapping',
    `IOAS_ALLOC flags=0 -> OK
     IOAS_ALLOW_IOVAS ioas_id=1 num_iovas=1 ranges=[["0x5000","0x5001"]] -> OK
     IOAS_MAP flags=6 ioas_id=1 user_va=scatter+0x0 length=0x1 iova=0x0 -> OK iova="0x5000"
     IOAS_MAP flags=6 ioas_id=1 user_va=scatter+0x0 length=0x1 iova=0x0 -> ENOSPC`,
  ],
  [
    'a mapping that a domain refuses says so, not that the limit is reached',
    `SET_CAPS ipc_lock=0 sys_resource=1 -> OK
     SET_RLIMIT_MEMLOCK bytes=0x0 -> OK
     IOAS_ALLOC flags=0 -> OK
     VFIO_IOAS op=1 ioas_id=1 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK
     VFIO_IOMMU_MAP_DMA argsz=32 flags=0 vaddr=scatter+0x0 iova=0x1000000 size=0x1000 -> EINVAL
     VFIO_IOMMU_MAP_DMA argsz=32 flags=3 vaddr=scatter+0x0 iova=0x1000000 size=0x1000 -> ENOMEM`,
  ],
  [
    'a dma-buf that is given back, never having been taken, leaves its domains all the same',
    `IOAS_ALLOC flags=0 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_hwpt_id=4
     TEST_DMABUF_GET length=4096 -> OK
     IOAS_MAP_FILE flags=7 ioas_id=1 file=6 start=0x0 length=0x1000 iova=0x1000000 -> OK
     TEST_DMABUF_REVOKE file=6 revoked=0 -> OK
     IOAS_MAP_FILE flags=7 ioas_id=1 file=6 start=0x0 length=0x1000 iova=0x1002000 -> OK
     IOAS_UNMAP ioas_id=1 iova=0x1000000 length=0x1000 -> OK length="0x1000"`,
  ],
  [
    'a dma-buf is not cut by an unmap in its middle',
    `IOAS_ALLOC flags=0 -> OK
     VFIO_IOAS op=1 ioas_id=1 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK
     VFIO_SET_IOMMU type=1 -> OK
     TEST_DMABUF_GET length=16384 -> OK
     IOAS_MAP_FILE flags=7 ioas_id=1 file=6 start=0x0 length=0x4000 iova=0x1000000 -> OK
     VFIO_IOMMU_UNMAP_DMA argsz=24 flags=0 iova=0x1001000 size=0x1000 -> EOPNOTSUPP`,
  ],
  [
    'a dma-buf is found behind a hole in the descriptor table',
    `IOAS_ALLOC flags=0 -> OK
     TEST_CREATE_ACCESS ioas_id=1 flags=0 -> OK access=0
     TEST_CREATE_ACCESS ioas_id=1 flags=0 -> OK access=1
     CLOSE_ACCESS access=0 -> OK
     TEST_DMABUF_GET length=4096 -> OK
     TEST_DMABUF_REVOKE file=6 revoked=1 -> OK`,
  ],
];

describe('the order of things', () => {
  test.each(cases)('%s', (_name, sequence) => {
    playText(sequence);
  });
});
