/**
 * Pages that drivers offer to be mapped from /dev/iommu, by the offset at which they are mapped (`ictx->mt_mmap`).
 *
 * The first page of offsets is left out, so that an offset of zero is never one. Source: Linux drivers/iommu/iommufd/driver.c, main.c.
 */
import { EINVAL, ENXIO } from '../../uapi/errno.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import type { IommufdObject } from './object.js';
import { PAGE_BYTES } from './pages.js';

interface Offer {
  readonly owner: IommufdObject;
  readonly offset: number;
  readonly pa: number;
  readonly lengthBytes: number;
}

/** The offers of one iommufd. */
export class MmapOffsets {
  readonly #offers: Offer[] = [];

  get isEmpty(): boolean {
    return this.#offers.length === 0;
  }

  /** The lowest free offset for that many bytes. */
  alloc(owner: IommufdObject, pa: number, lengthBytes: number): number {
    sharedWrite(this, 'offers');
    let offset = PAGE_BYTES;
    for (const offer of this.#offers) {
      if (offset + lengthBytes <= offer.offset) break;
      offset = offer.offset + offer.lengthBytes;
    }
    this.#offers.push({ owner, offset, pa, lengthBytes });
    this.#offers.sort((a, b) => a.offset - b.offset);
    return offset;
  }

  free(offset: number): void {
    sharedWrite(this, 'offers');
    const index = this.#offers.findIndex((offer) => offer.offset === offset);
    if (index >= 0) this.#offers.splice(index, 1);
  }

  /** What a mapping of exactly one offer shows; -EINVAL for no whole pages or a private mapping, -ENXIO when there is no such offer. */
  find(offset: bigint, length: bigint, isShared: boolean): Offer | number {
    if (length % BigInt(PAGE_BYTES) !== 0n || !isShared) return -EINVAL;
    sharedRead(this, 'offers');
    const found = this.#offers.find((offer) => BigInt(offer.offset) === offset && BigInt(offer.lengthBytes) === length);
    return found ?? -ENXIO;
  }
}
