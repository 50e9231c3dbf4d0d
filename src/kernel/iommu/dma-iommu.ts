/**
 * What the kernel itself maps in default domains: firmware's direct regions, and MSI doorbells of ordinary drivers.
 *
 * A doorbell gets one page of IOVA below 4 GiB, from the top down, outside the group's reserved regions, when the first
 * device of the group needs it. Source: Linux drivers/iommu/dma-iommu.c (iommu_dma_get_msi_page), iommu.c
 * (iommu_create_device_direct_mappings).
 */
import type { Task } from '../../runtime/task.js';
import { ENOSPC } from '../../uapi/errno.js';
import { IOMMU_MMIO, IOMMU_READ, IOMMU_WRITE, type PagingDomain } from './domain.js';
import type { ResvRegion } from './resv-regions.js';

const PAGE_BYTES = 4096;
/** IOVAs are taken from below this first: a 32-bit DMA mask. */
const LIMIT = 2 ** 32;

/** The kernel's own mappings in one default domain (`struct iommu_dma_cookie`). */
export class DmaCookie {
  readonly domain: PagingDomain;
  readonly #doorbells = new Map<number, number>();
  #nextPage: number;

  constructor(domain: PagingDomain) {
    this.domain = domain;
    this.#nextPage = Math.min(LIMIT, Number(domain.apertureLast) + 1) - PAGE_BYTES;
  }

  /** Identity-maps what firmware wants mapped, in one piece where it can; pages that are mapped already stay. 0 or -errno. */
  *mapDirect(regions: readonly ResvRegion[]): Task<number> {
    const pageBytes = this.domain.pageSizes[0] ?? PAGE_BYTES;
    for (const region of regions) {
      if (region.type !== 'direct' && region.type !== 'direct-relaxable') continue;
      const end = Math.ceil((Number(region.last) + 1) / pageBytes) * pageBytes;
      let from = Math.ceil(Number(region.start) / pageBytes) * pageBytes;
      for (let at = from; at <= end; at += pageBytes) {
        if (at < end && this.domain.iova_to_phys(at) === undefined) continue;
        const rc = at === from ? 0 : yield* this.domain.map(from, from, at - from, IOMMU_READ | IOMMU_WRITE);
        if (rc < 0) return rc;
        from = at + pageBytes;
      }
    }
    return 0;
  }

  /** The IOVA at which devices reach a doorbell, mapped on first use; -errno. */
  *prepareMsi(doorbellPa: number, reserved: readonly ResvRegion[]): Task<bigint | number> {
    const pageBytes = this.domain.pageSizes[0] ?? PAGE_BYTES;
    const offset = doorbellPa % pageBytes;
    const page = doorbellPa - offset;
    const known = this.#doorbells.get(page);
    if (known !== undefined) return BigInt(known + offset);
    const iova = this.#allocPage(pageBytes, reserved);
    if (iova < 0) return iova;
    const rc = yield* this.domain.map(iova, page, pageBytes, IOMMU_READ | IOMMU_WRITE | IOMMU_MMIO);
    if (rc < 0) return rc;
    this.#doorbells.set(page, iova);
    return BigInt(iova + offset);
  }

  #allocPage(pageBytes: number, reserved: readonly ResvRegion[]): number {
    let page = this.#nextPage - (this.#nextPage % pageBytes);
    for (;;) {
      const hit = reserved.find((r) => r.start < BigInt(page + pageBytes) && r.last >= BigInt(page));
      if (hit === undefined) break;
      page = Number(hit.start) - pageBytes - (Number(hit.start) % pageBytes);
      if (page <= 0) return -ENOSPC;
    }
    this.#nextPage = page - pageBytes;
    return page;
  }
}
