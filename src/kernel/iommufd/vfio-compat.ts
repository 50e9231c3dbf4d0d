/**
 * The VFIO container's ioctls served by an iommufd: type1 and type1v2 over one of its address spaces.
 *
 * The address space is the one that IOMMU_VFIO_IOAS says. Type1 (v1) may unmap in the middle of a mapping: choosing it switches large
 * entries off for good, and mappings are cut where a range begins and ends. There is no dirty tracking and no update of addresses.
 * /dev/vfio/vfio is an iommufd, too (CONFIG_IOMMUFD_VFIO_CONTAINER): one that charges each process apart.
 *
 * Source: Linux drivers/iommu/iommufd/vfio_compat.c; domain.md A1.10, A5 (compat layer).
 */
import type { Task } from '../../runtime/task.js';
import { EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM, ENOTTY, EOPNOTSUPP, EOVERFLOW } from '../../uapi/errno.js';
import {
  IOMMU_VFIO_IOAS_CLEAR,
  IOMMU_VFIO_IOAS_GET,
  IOMMU_VFIO_IOAS_SET,
  type iommu_vfio_ioas,
} from '../../uapi/iommufd.js';
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_CC_IOMMU,
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_GET_API_VERSION,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  VFIO_TYPE1_IOMMU,
  VFIO_UNMAP_ALL,
  vfio_info_cap_header,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
  vfio_iommu_type1_info,
  vfio_iommu_type1_info_cap_iova_range,
  vfio_iommu_type1_info_dma_avail,
  vfio_iova_range,
} from '../../uapi/vfio.js';
import type { SyscallContext } from '../files.js';
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.js';
import { IOVA_MAX, type PagesSlice, type Unmapped } from './io-pagetable.js';
import { getIoas, isPagesLength, type CommandOf, type Ioas } from './ioas.js';
import type { IommufdContext } from './main.js';
import { pinAccount, userPages } from './page-source.js';
import { IoptPages, PAGE_SIZE } from './pages.js';

/** Linux include/uapi/linux/vfio.h; the recorded constants have no name with a small letter. */
const VFIO_TYPE1v2_IOMMU = 3;

/** IOMMU_VFIO_IOAS */
export function* vfioIoas(ucmd: CommandOf<typeof iommu_vfio_ioas>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.__reserved !== 0) return -EOPNOTSUPP;
  switch (cmd.op) {
    case IOMMU_VFIO_IOAS_GET:
      return yield* withCompatIoas(ictx, function* (ioas) {
        cmd.ioas_id = ioas.id;
        return ucmd.respond();
      });
    case IOMMU_VFIO_IOAS_SET: {
      const ioas = getIoas(ictx, cmd.ioas_id);
      if (ioas === undefined) return -ENOENT;
      ictx.vfioIoas = ioas;
      ictx.objects.put(ioas);
      return 0;
    }
    case IOMMU_VFIO_IOAS_CLEAR:
      ictx.vfioIoas = undefined;
      return 0;
    default:
      return -EOPNOTSUPP;
  }
}

/** Runs `body` with the address space for VFIO; -ENODEV when there is none (any more). */
function* withCompatIoas(ictx: IommufdContext, body: (ioas: Ioas) => Task<number>): Task<number> {
  const ioas = ictx.vfioIoas;
  if (ioas === undefined || !ictx.objects.tryHold(ioas)) return -ENODEV;
  try {
    return yield* body(ioas);
  } finally {
    ictx.objects.put(ioas);
  }
}

/** `iommufd_vfio_ioctl` */
export function* iommufd_vfio_ioctl(ictx: IommufdContext, ctx: SyscallContext, cmd: number, arg: bigint): Task<number> {
  switch (cmd) {
    case VFIO_GET_API_VERSION:
      return VFIO_API_VERSION;
    case VFIO_SET_IOMMU:
      return yield* setIommu(ictx, ctx, arg);
    case VFIO_CHECK_EXTENSION:
      return yield* checkExtension(ictx, arg);
    case VFIO_IOMMU_GET_INFO.number:
      return yield* getInfo(ictx, ctx, arg);
    case VFIO_IOMMU_MAP_DMA.number:
      return yield* mapDma(ictx, ctx, arg);
    case VFIO_IOMMU_UNMAP_DMA.number:
      return yield* unmapDma(ictx, ctx, arg);
    default:
      return -ENOTTY;
  }
}

function* setIommu(ictx: IommufdContext, ctx: SyscallContext, type: bigint): Task<number> {
  if (type !== BigInt(VFIO_TYPE1_IOMMU) && type !== BigInt(VFIO_TYPE1v2_IOMMU)) return -EINVAL;
  return yield* withCompatIoas(ictx, function* ({ iopt }) {
    return type === BigInt(VFIO_TYPE1_IOMMU) ? yield* iopt.disable_large_pages(ctx) : 0;
  });
}

function* checkExtension(ictx: IommufdContext, type: bigint): Task<number> {
  const known = [VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL];
  if (known.some((extension) => type === BigInt(extension))) return 1;
  if (type === BigInt(VFIO_DMA_CC_IOMMU)) return yield* withCompatIoas(ictx, enforcesCoherency);
  return 0;
}

/** Whether every page table ignores what devices say about coherency: no IOMMU here can be made to. */
function* enforcesCoherency({ hwpts }: Ioas): Task<number> {
  return hwpts.length === 0 ? 1 : 0;
}

function* mapDma(ictx: IommufdContext, ctx: SyscallContext, arg: bigint): Task<number> {
  const struct = vfio_iommu_type1_dma_map;
  const bytes = ctx.copy_from_user(arg, struct.sizeBytes);
  if (bytes === undefined) return -EFAULT;
  const { argsz, flags, vaddr, iova, size } = struct.decode(bytes);
  if (argsz < struct.sizeBytes || (flags & ~(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE)) !== 0) return -EINVAL;
  let prot = IOMMU_CACHE;
  if ((flags & VFIO_DMA_MAP_FLAG_READ) !== 0) prot |= IOMMU_READ;
  if ((flags & VFIO_DMA_MAP_FLAG_WRITE) !== 0) prot |= IOMMU_WRITE;
  return yield* withCompatIoas(ictx, function* (ioas) {
    if (vaddr + size > IOVA_MAX) return -EOVERFLOW;
    if (!isPagesLength(size)) return -EINVAL;
    if (ictx.allocFails()) return -ENOMEM;
    const startByte = vaddr % PAGE_SIZE;
    const account = pinAccount(ctx.process, ictx.accountMode);
    const source = userPages(ctx.process, vaddr);
    const isWritable = (prot & IOMMU_WRITE) !== 0;
    const pages = new IoptPages(source, startByte + size, isWritable, account, ictx.instruments);
    const slice: PagesSlice = { pages, startByte, lengthBytes: size };
    const mapped = yield* ioas.iopt.map_pages([slice], iova, prot, ctx);
    yield* pages.put();
    return typeof mapped === 'number' ? mapped : 0;
  });
}

function* unmapDma(ictx: IommufdContext, ctx: SyscallContext, arg: bigint): Task<number> {
  const struct = vfio_iommu_type1_dma_unmap;
  const bytes = ctx.copy_from_user(arg, struct.sizeBytes);
  if (bytes === undefined) return -EFAULT;
  const request = struct.decode(bytes);
  const { argsz, flags, iova, size } = request;
  if (argsz < struct.sizeBytes || (flags & ~VFIO_DMA_UNMAP_FLAG_ALL) !== 0) return -EINVAL;
  return yield* withCompatIoas(ictx, function* ({ iopt }) {
    const isAll = (flags & VFIO_DMA_UNMAP_FLAG_ALL) !== 0;
    if (isAll && (iova !== 0n || size !== 0n)) return -EINVAL;
    if (!isAll && iopt.disableLargePages) {
      const last = (iova + size - 1n) & IOVA_MAX;
      const rc = yield* iopt.cut_iova(iova === 0n ? [last] : [last, iova - 1n]);
      if (rc < 0) return rc;
    }
    const { rc, unmappedBytes } = yield* unmapRange(iopt, isAll, iova, size, ctx);
    return ctx.copy_to_user(arg, struct.encode({ ...request, size: unmappedBytes })) ? rc : -EFAULT;
  });
}

function* unmapRange(
  iopt: Ioas['iopt'],
  isAll: boolean,
  iova: bigint,
  size: bigint,
  ctx: SyscallContext,
): Task<Unmapped> {
  if (isAll) return yield* iopt.unmap_iova_range(0n, IOVA_MAX, ctx);
  if (size === 0n) return { rc: -EINVAL, unmappedBytes: 0n };
  const last = iova + size - 1n;
  if (last > IOVA_MAX) return { rc: -EOVERFLOW, unmappedBytes: 0n };
  return yield* iopt.unmap_iova_range(iova, last, ctx);
}

/** VFIO_IOMMU_GET_INFO: page sizes, then as many capabilities as there is room for. */
function* getInfo(ictx: IommufdContext, ctx: SyscallContext, arg: bigint): Task<number> {
  const struct = vfio_iommu_type1_info;
  const minimum = 16;
  const head = ctx.copy_from_user(arg, minimum);
  if (head === undefined) return -EFAULT;
  const argsz = new DataView(head.buffer, head.byteOffset).getUint32(0, true);
  if (argsz < minimum) return -EINVAL;
  return yield* withCompatIoas(ictx, function* (ioas) {
    const capabilities = [dmaAvail(), iovaRanges(ioas)];
    let total: number = struct.sizeBytes;
    const writes: Write[] = [];
    for (const [i, capability] of capabilities.entries()) {
      const length = Math.ceil(capability.bytes.length / 8) * 8;
      const hasNext = i + 1 < capabilities.length;
      const following = capabilities.slice(i + 1).length > 0 ? total + length : 0;
      const header = { ...capability.header, next: hasNext && argsz >= total + length ? following : 0 };
      const bytes = new Uint8Array(capability.bytes);
      bytes.set(vfio_info_cap_header.encode(header));
      if (argsz >= total + capability.bytes.length) writes.push({ at: total, bytes });
      else writes.push(...elementsThatFit(total, capability, argsz));
      total += length;
    }
    for (const { at, bytes } of writes) if (!ctx.copy_to_user(arg + BigInt(at), bytes)) return -EFAULT;
    const info = struct.encode({
      argsz: total,
      flags: VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS,
      iova_pgsizes: pageSizes(ioas),
      cap_offset: argsz >= total ? struct.sizeBytes : 0,
      pad: 0,
    });
    return ctx.copy_to_user(arg, info.subarray(0, Math.min(argsz, info.length))) ? 0 : -EFAULT;
  });
}

/** `iommufd_get_pagesizes`: what is smaller than a page is a page. */
function pageSizes({ iopt }: Ioas): bigint {
  let bitmap = iopt.pageSizes;
  if ((bitmap & (PAGE_SIZE - 1n)) !== 0n) bitmap = (bitmap & ~(PAGE_SIZE - 1n)) | PAGE_SIZE;
  return bitmap > iopt.iovaAlignment ? bitmap : iopt.iovaAlignment;
}

interface Capability {
  readonly header: { readonly id: number; readonly version: number };
  readonly bytes: Uint8Array;
  /** Elements of its array, each of which is written where it fits, whatever becomes of the rest. */
  readonly elements?: { readonly at: number; readonly sizeBytes: number };
}

interface Write {
  readonly at: number;
  readonly bytes: Uint8Array;
}

function elementsThatFit(base: number, { bytes, elements }: Capability, argsz: number): Write[] {
  if (elements === undefined) return [];
  const { at: first, sizeBytes } = elements;
  const writes: Write[] = [];
  for (let at = first; at < bytes.length && base + at + sizeBytes <= argsz; at += sizeBytes)
    writes.push({ at: base + at, bytes: bytes.subarray(at, at + sizeBytes) });
  return writes;
}

const U32_MAX = 0xffff_ffff;

function dmaAvail(): Capability {
  const bytes = vfio_iommu_type1_info_dma_avail.encode({ avail: U32_MAX });
  return { header: { id: VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version: 1 }, bytes };
}

function iovaRanges({ iopt }: Ioas): Capability {
  const ranges = [...iopt.iovaRanges()];
  const head = vfio_iommu_type1_info_cap_iova_range.encode({ nr_iovas: ranges.length });
  const bytes = new Uint8Array(head.length + ranges.length * vfio_iova_range.sizeBytes);
  bytes.set(head);
  ranges.forEach(({ start, last }, i) => {
    bytes.set(vfio_iova_range.encode({ start, end: last }), head.length + i * vfio_iova_range.sizeBytes);
  });
  const elements = { at: head.length, sizeBytes: vfio_iova_range.sizeBytes };
  return { header: { id: VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version: 1 }, bytes, elements };
}
