/**
 * What surprises about iommufd, one by one: the list of the recordings' README ("Things that surprise"), as sequences to be
 * read. Buffers: `scatter` and `huge` are good memory, `hole` has nothing from 1 MiB to 2 MiB, `ro` is mapped read-only.
 */
import { describe, test } from 'vitest';
import { playText } from '../fixtures/sequence.js';

const cases: readonly (readonly [string, string])[] = [
  [
    '1. nothing is pinned without a domain: bad addresses are mapped, the attach fails and changes nothing',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x1000000 -> OK
     IOAS_MAP flags=7 ioas_id=1 user_va=hole+0x100000 length=0x1000 iova=0x1100000 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> EFAULT
     IOAS_IOVA_RANGES ioas_id=1 num_iovas=8 -> OK out_iova_alignment="0x1" ranges=[["0x0","0xffffffffffffffff"]]
     TEST_MD_CHECK_REFS uptr=scatter+0x0 length=0x1000 refs=0 -> OK
     IOAS_UNMAP ioas_id=1 iova=0x1100000 length=0x1000 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK
     TEST_MD_CHECK_REFS uptr=scatter+0x0 length=0x1000 refs=1 -> OK`,
  ],
  [
    '2. a mapping outside the aperture keeps devices out; after the last device the whole range is back',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x80000000 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> EADDRINUSE
     IOAS_UNMAP ioas_id=1 iova=0x80000000 length=0x1000 -> OK length="0x1000"
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_stdev_id=2 out_idev_id=3 out_hwpt_id=4
     IOAS_IOVA_RANGES ioas_id=1 num_iovas=8 -> OK out_iova_alignment="0x800" ranges=[["0x1000000","0x7fffffff"]]
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x80000000 -> EINVAL
     DESTROY id=2 -> OK
     IOAS_IOVA_RANGES ioas_id=1 num_iovas=8 -> OK out_iova_alignment="0x1" ranges=[["0x0","0xffffffffffffffff"]]
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x80000000 -> OK`,
  ],
  [
    '3. alignment is 1, 2048 with a domain, 4096 with a pinning access; what does not fit keeps it from rising',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x1 length=0x3 iova=0x1000001 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> EADDRINUSE
     TEST_CREATE_ACCESS ioas_id=1 flags=1 -> EADDRINUSE
     OPTION option_id=1 op=0 object_id=1 val64=0x0 -> EADDRINUSE
     IOAS_UNMAP ioas_id=1 iova=0x1000001 length=0x3 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK
     IOAS_IOVA_RANGES ioas_id=1 num_iovas=1 -> OK out_iova_alignment="0x800"
     TEST_CREATE_ACCESS ioas_id=1 flags=1 -> OK access=0
     IOAS_IOVA_RANGES ioas_id=1 num_iovas=1 -> OK out_iova_alignment="0x1000"
     CLOSE_ACCESS access=0 -> OK
     IOAS_IOVA_RANGES ioas_id=1 num_iovas=1 -> OK out_iova_alignment="0x800"`,
  ],
  [
    '4. allowed ranges bind automatic IOVAs only, and keep reservations out',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     IOAS_ALLOW_IOVAS ioas_id=1 num_iovas=1 ranges=[["0x2000000","0x200ffff"]] -> OK
     IOAS_MAP flags=6 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x0 -> OK iova="0x2000000"
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x5000000 -> OK
     TEST_ADD_RESERVED ioas_id=1 start=0x200f000 length=0x1000 -> EADDRINUSE
     TEST_ADD_RESERVED ioas_id=1 start=0x3000000 length=0x1000 -> OK
     IOAS_ALLOW_IOVAS ioas_id=1 num_iovas=1 ranges=[["0x2fff000","0x3000fff"]] -> EADDRINUSE
     IOAS_ALLOW_IOVAS ioas_id=1 num_iovas=1 ranges=[["0x0","0xffff"]] -> OK
     IOAS_UNMAP ioas_id=1 iova=0x0 length=0xffffffffffffffff -> OK length="0x2000"
     TEST_MOCK_DOMAIN pt_id=1 -> EADDRINUSE`,
  ],
  [
    '5. an unmap stops at the first mapping it would split: those before it are gone although it failed',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x1000000 -> OK
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x1000 length=0x2000 iova=0x1001000 -> OK
     IOAS_UNMAP ioas_id=1 iova=0x1000000 length=0x2000 -> ENOENT
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x1000000 -> OK
     IOAS_UNMAP ioas_id=1 iova=0x0 length=0xffffffffffffffff -> OK length="0x3000"
     IOAS_UNMAP ioas_id=1 iova=0x0 length=0xffffffffffffffff -> OK length="0x0"
     IOAS_UNMAP ioas_id=1 iova=0x1000000 length=0x1000 -> ENOENT`,
  ],
  [
    '6. a failed call leaves no number behind, and numbers are handed out again, lowest first',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     IOAS_ALLOC flags=0 -> OK out_ioas_id=2
     IOAS_ALLOC flags=0 -> OK out_ioas_id=3
     DESTROY id=2 -> OK
     HWPT_ALLOC flags=0 dev_id=9 pt_id=1 data_type=0 data_len=0 fault_id=0 -> ENOENT
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_stdev_id=2 out_idev_id=4 out_hwpt_id=5
     DESTROY id=2 -> OK
     IOAS_ALLOC flags=0 -> OK out_ioas_id=2
     IOAS_ALLOC flags=0 -> OK out_ioas_id=4`,
  ],
  [
    '7. large pages cannot be switched off under mappings of a domain, nor under one that is not 4096-aligned',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_stdev_id=2
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x800 iova=0x1000000 -> OK
     OPTION option_id=1 op=0 object_id=1 val64=0x0 -> EINVAL
     DESTROY id=2 -> OK
     OPTION option_id=1 op=0 object_id=1 val64=0x0 -> EADDRINUSE
     IOAS_UNMAP ioas_id=1 iova=0x1000000 length=0x800 -> OK
     OPTION option_id=1 op=0 object_id=1 val64=0x0 -> OK
     IOAS_IOVA_RANGES ioas_id=1 num_iovas=1 -> OK out_iova_alignment="0x1000"
     OPTION option_id=1 op=0 object_id=1 val64=0x1 -> OK`,
  ],
  [
    '8. RLIMIT_MODE is for those who may, and before any object exists',
    `OPTION option_id=0 op=0 object_id=0 val64=0x1 -> OK
     OPTION option_id=0 op=1 object_id=0 val64=0x0 -> OK val64="0x1"
     IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     OPTION option_id=0 op=0 object_id=0 val64=0x0 -> EBUSY
     DESTROY id=1 -> OK
     SET_CAPS ipc_lock=1 sys_resource=0 -> OK
     OPTION option_id=0 op=0 object_id=0 val64=0x0 -> EPERM
     OPTION option_id=0 op=1 object_id=0 val64=0x0 -> OK val64="0x1"`,
  ],
  [
    '9. a dirty report is OK over holes and where it cannot be written, and never clears a bit of the caller',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_idev_id=3
     HWPT_ALLOC flags=2 dev_id=3 pt_id=1 data_type=0 data_len=0 fault_id=0 -> OK out_hwpt_id=5
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x1000000 -> OK
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x1000 length=0x1000 iova=0x1002000 -> OK
     HWPT_SET_DIRTY_TRACKING hwpt_id=5 flags=1 -> OK
     TEST_DIRTY hwpt_id=5 iova=0x1002000 length=0x1000 page_size=0x1000 bitmap="01" -> OK out_nr_dirty=1
     HWPT_GET_DIRTY_BITMAP hwpt_id=5 flags=0 iova=0x1000000 length=0x4000 page_size=0x1000 prefill=240 -> OK bitmap="f0f0f0f0f0f0f0f0f0"
     HWPT_GET_DIRTY_BITMAP hwpt_id=5 flags=1 iova=0x1002000 length=0x1000 page_size=0x1000 bad_pointer=1 -> OK
     HWPT_GET_DIRTY_BITMAP hwpt_id=5 flags=0 iova=0x1002000 length=0x1000 page_size=0x1000 prefill=2 -> OK bitmap="030202020202020202"
     HWPT_GET_DIRTY_BITMAP hwpt_id=5 flags=0 iova=0x1002000 length=0x1000 page_size=0x1000 prefill=0 -> OK bitmap="000000000000000000"`,
  ],
  [
    '10. a VFIO mapping for nothing is accepted without a domain, and then no device can be attached',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     VFIO_IOAS op=1 ioas_id=1 -> OK
     VFIO_IOMMU_MAP_DMA argsz=32 flags=0 vaddr=scatter+0x0 iova=0x1000000 size=0x1000 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> EINVAL
     VFIO_IOMMU_UNMAP_DMA argsz=24 flags=0 iova=0x1000000 size=0x1000 -> OK size="0x1000"
     TEST_MOCK_DOMAIN pt_id=1 -> OK
     VFIO_IOMMU_MAP_DMA argsz=32 flags=0 vaddr=scatter+0x0 iova=0x1000000 size=0x1000 -> EINVAL`,
  ],
  [
    '11. a VFIO unmap of nothing is OK with size 0; type1v2 does not split, type1 does',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     VFIO_IOAS op=1 ioas_id=1 -> OK
     TEST_MOCK_DOMAIN pt_id=1 -> OK
     VFIO_SET_IOMMU type=3 -> OK
     VFIO_IOMMU_UNMAP_DMA argsz=24 flags=0 iova=0x1000000 size=0x1000 -> OK size="0x0"
     VFIO_IOMMU_MAP_DMA argsz=32 flags=3 vaddr=scatter+0x0 iova=0x1000000 size=0x3000 -> OK
     VFIO_IOMMU_UNMAP_DMA argsz=24 flags=0 iova=0x1001000 size=0x1000 -> ENOENT size="0x0"
     VFIO_SET_IOMMU type=1 -> EINVAL
     VFIO_IOMMU_UNMAP_DMA argsz=24 flags=2 iova=0x0 size=0x0 -> OK size="0x3000"
     VFIO_SET_IOMMU type=1 -> OK
     VFIO_IOMMU_MAP_DMA argsz=32 flags=3 vaddr=scatter+0x0 iova=0x1000000 size=0x3000 -> OK
     VFIO_IOMMU_UNMAP_DMA argsz=24 flags=0 iova=0x1001000 size=0x1000 -> OK size="0x1000"
     TEST_MD_CHECK_MAP hwpt_id=4 iova=0x1002000 length=0x1000 uptr=scatter+0x2000 -> OK`,
  ],
  [
    '12. a copy shares the pinned pages and outlives its source; writable from read-only memory is EPERM',
    `IOAS_ALLOC flags=0 -> OK out_ioas_id=1
     IOAS_ALLOC flags=0 -> OK out_ioas_id=2
     TEST_MOCK_DOMAIN pt_id=1 -> OK out_stdev_id=3
     TEST_MOCK_DOMAIN pt_id=2 -> OK
     IOAS_MAP flags=7 ioas_id=1 user_va=scatter+0x0 length=0x1000 iova=0x1000000 -> OK
     IOAS_COPY flags=7 dst_ioas_id=2 src_ioas_id=1 length=0x1000 dst_iova=0x2000000 src_iova=0x1000000 -> OK
     TEST_MD_CHECK_REFS uptr=scatter+0x0 length=0x1000 refs=1 -> OK
     DESTROY id=3 -> OK
     IOAS_UNMAP ioas_id=1 iova=0x1000000 length=0x1000 -> OK
     DESTROY id=1 -> OK
     TEST_MD_CHECK_REFS uptr=scatter+0x0 length=0x1000 refs=1 -> OK
     IOAS_MAP flags=5 ioas_id=2 user_va=ro+0x0 length=0x1000 iova=0x3000000 -> OK
     IOAS_COPY flags=7 dst_ioas_id=2 src_ioas_id=2 length=0x1000 dst_iova=0x4000000 src_iova=0x3000000 -> EPERM`,
  ],
];

describe('things that surprise', () => {
  test.each(cases)('%s', (_name, sequence) => {
    playText(sequence);
  });
});
