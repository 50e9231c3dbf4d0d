/**
 * VFIO_DEVICE_FEATURE_DMA_BUF: ranges of a BAR as a dma-buf, to be mapped for other devices.
 *
 * The buffer is there only while the device decodes memory: clearing the command register's bit, a reset and the end of the
 * open device revoke it, and what iommufd mapped of it goes from every domain before the bit is cleared. Setting the bit
 * again serves new mappings. iommufd takes buffers of one range only.
 *
 * Source: Linux drivers/vfio/pci/vfio_pci_dmabuf.c, vfio_pci_config.c, vfio_pci_core.c.
 */
import type { PciFunction } from '../../hardware/pcie/function.js';
import type { Task } from '../../runtime/task.js';
import { EFAULT, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP } from '../../uapi/errno.js';
import { VFIO_PCI_ROM_REGION_INDEX, vfio_device_feature_dma_buf, vfio_region_dma_range } from '../../uapi/vfio.js';
import { DmaBufFile } from '../dma-buf.js';
import type { SyscallContext } from '../files.js';

const PAGE_SIZE = 4096n;
/** KMALLOC_MAX_SIZE, which the list of ranges must fit. */
const MAX_RANGES = (4 * 1024 * 1024) / vfio_region_dma_range.sizeBytes;

interface BarRange {
  readonly offset: bigint;
  readonly length: bigint;
}

/** A user's ranges: -EINVAL for an empty one or one that is not whole pages, -EFAULT, -ENOMEM. */
function loadRanges(ctx: SyscallContext, address: bigint, count: number): BarRange[] | number {
  if (count > MAX_RANGES) return -ENOMEM;
  const bytes = ctx.copy_from_user(address, count * vfio_region_dma_range.sizeBytes);
  if (bytes === undefined) return -EFAULT;
  const ranges = Array.from({ length: count }, (_, i) =>
    vfio_region_dma_range.decode(bytes.subarray(i * vfio_region_dma_range.sizeBytes)),
  );
  const isWhole = ({ offset, length }: BarRange): boolean =>
    length > 0n && offset % PAGE_SIZE === 0n && length % PAGE_SIZE === 0n;
  return ranges.every(isWhole) ? ranges : -EINVAL;
}

/** The buffers of an open device. */
export class VfioDmaBufs {
  readonly #fn: PciFunction;
  readonly #files = new Set<DmaBufFile>();

  constructor(fn: PciFunction) {
    this.#fn = fn;
  }

  /**
   * Makes a buffer of what the `vfio_device_feature_dma_buf` at `address` says; its descriptor, or -errno: EINVAL no ranges, flags, no such
   * BAR or beyond it, ENODEV no BAR's index, EFAULT, ENOMEM, EMFILE.
   */
  get(ctx: SyscallContext, address: bigint): number {
    const bytes = ctx.copy_from_user(address, vfio_device_feature_dma_buf.sizeBytes);
    if (bytes === undefined) return -EFAULT;
    const { region_index, flags, nr_ranges } = vfio_device_feature_dma_buf.decode(bytes);
    if (nr_ranges === 0 || flags !== 0) return -EINVAL;
    if (region_index >= VFIO_PCI_ROM_REGION_INDEX) return -ENODEV;
    const ranges = loadRanges(ctx, address + BigInt(vfio_device_feature_dma_buf.sizeBytes), nr_ranges);
    if (typeof ranges === 'number') return ranges;
    const bar = this.#fn.bars.find(({ index }) => index === region_index);
    if (bar === undefined) return -EINVAL;
    if (ranges.some(({ offset, length }) => offset + length > BigInt(bar.sizeBytes))) return -EINVAL;
    const [first, ...more] = ranges;
    const file = new DmaBufFile(
      ranges.reduce((sum, { length }) => sum + length, 0n),
      {
        phys: () => {
          const start = this.#fn.barCpuAddress(bar);
          return more.length > 0 || start === undefined ? -EOPNOTSUPP : start + Number(first?.offset ?? 0n);
        },
        release: () => this.#files.delete(file),
      },
      !this.#fn.decodesMemory,
    );
    this.#files.add(file);
    const fd = ctx.process.files.install(file);
    if (fd < 0) this.#files.delete(file);
    return fd;
  }

  /** Before the device stops to decode memory. */
  *revoke(): Task<void> {
    for (const file of [...this.#files]) yield* file.revoke(true);
  }

  /** The device may decode memory again. */
  *restore(): Task<void> {
    if (!this.#fn.decodesMemory) return;
    for (const file of [...this.#files]) yield* file.revoke(false);
  }

  /** The device is closed: nobody gets at its BARs any more. */
  *cleanup(): Task<void> {
    yield* this.revoke();
    this.#files.clear();
  }
}
