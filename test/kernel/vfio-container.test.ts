/** /dev/vfio/vfio served by iommufd: type1 mappings that a device behind the same descriptor reaches. */
import { expect, test } from 'vitest';
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_OPTION,
  IOMMU_OPTION_OP_GET,
  IOMMU_OPTION_RLIMIT_MODE,
  IOMMU_VFIO_IOAS,
  IOMMU_VFIO_IOAS_SET,
} from '../../src/uapi/iommufd.js';
import { O_RDWR } from '../../src/uapi/syscall.js';
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_GET_API_VERSION,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  VFIO_TYPE1_IOMMU,
} from '../../src/uapi/vfio.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import { errorOf, onHost, opened } from './on-host.js';

const IOVA = 0x10000000n;
const BYTES = 0x3000n;

test('maps, cuts and unmaps for a device as type1 does', () =>
  onHost(function* (p) {
    const fd = yield* p.open('/dev/vfio/vfio', O_RDWR);
    expect(yield* p.ioctlValue(fd, 'VFIO_GET_API_VERSION', VFIO_GET_API_VERSION, 0n)).toBe(VFIO_API_VERSION);
    const mode = { option_id: IOMMU_OPTION_RLIMIT_MODE, op: IOMMU_OPTION_OP_GET };
    expect((yield* p.ioctl(fd, IOMMU_OPTION, mode)).value.val64).toBe(1n);
    const setIommu = p.ioctlValue(fd, 'VFIO_SET_IOMMU', VFIO_SET_IOMMU, BigInt(VFIO_TYPE1_IOMMU));
    expect(yield* errorOf(setIommu)).toBe('ENODEV');
    const ioas_id = (yield* p.ioctl(fd, IOMMU_IOAS_ALLOC, {})).value.out_ioas_id;
    yield* p.ioctl(fd, IOMMU_VFIO_IOAS, { op: IOMMU_VFIO_IOAS_SET, ioas_id });
    const device = yield* opened(p);
    yield* device.bind(fd);
    yield* device.attach(ioas_id);
    yield* p.ioctlValue(fd, 'VFIO_SET_IOMMU', VFIO_SET_IOMMU, BigInt(VFIO_TYPE1_IOMMU));
    expect(yield* p.ioctlValue(fd, 'VFIO_CHECK_EXTENSION', VFIO_CHECK_EXTENSION, BigInt(VFIO_TYPE1_IOMMU))).toBe(1);
    const vaddr = yield* p.mmap({ length: BYTES });
    const flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    yield* p.ioctl(fd, VFIO_IOMMU_MAP_DMA, { flags, vaddr, iova: IOVA, size: BYTES });
    const engine = yield* DmaEngineDriver.start(device);
    const fill = (iova: bigint) => engine.run({ op: 'FILL', to: iova, lengthBytes: 4, pattern: 0x5a5a5a5a });
    expect((yield* fill(IOVA + 0x1000n)).status).toBe('done');
    expect([...(yield* p.load(vaddr + 0x1000n, 4))]).toEqual([0x5a, 0x5a, 0x5a, 0x5a]);
    const { value } = yield* p.ioctl(fd, VFIO_IOMMU_UNMAP_DMA, { flags: 0, iova: IOVA + 0x1000n, size: 0x1000n });
    expect(value.size).toBe(0x1000n);
    expect((yield* fill(IOVA + 0x1000n)).status).toBe('error');
    expect((yield* fill(IOVA + 0x2000n)).status).toBe('done');
  }));
