/**
 * A caller's bitmap of dirty pages (`struct iova_bitmap`): bit n stands for the page n * pageSize after `iova`.
 *
 * Bits are only ever set. Where the bitmap cannot be written the bits are lost and the call succeeds all the same (recorded
 * from Linux 7.3). The page size counts by its lowest set bit. A dirty entry is reported whole, also where it reaches beyond
 * the range that was asked for; only the last page of memory the bitmap was expected to need ends it. A report that begins
 * before the bitmap is lost (its bit number wraps around in Linux). Every mark is one atomic change of user memory.
 *
 * Source: Linux drivers/iommu/iommufd/iova_bitmap.c; domain.md A1.14.
 */
import type { SyscallContext } from '../files.js';
import { PAGE_BYTES, PAGE_SIZE } from './pages.js';

const WORD_BYTES = 8;

/** Dirty bits on their way to user memory. */
export class DirtyBitmap {
  readonly #ctx: SyscallContext;
  readonly #address: bigint;
  readonly #iova: number;
  readonly #pageSize: number;
  /** Bits the memory that is looked at has room for. */
  readonly #bits: number;

  /** `length` and `pageSize` are not 0. */
  constructor(ctx: SyscallContext, address: bigint, iova: bigint, length: bigint, pageSize: bigint) {
    const bitBytes = pageSize & -pageSize;
    this.#ctx = ctx;
    this.#address = address;
    this.#iova = Number(iova);
    this.#pageSize = Number(bitBytes);
    const words = Math.floor(Number((length - 1n) / bitBytes) / (WORD_BYTES * 8)) + 1;
    const offset = Number(address % PAGE_SIZE);
    const pages = Math.ceil((words * WORD_BYTES) / PAGE_BYTES) + (offset > 0 ? 1 : 0);
    this.#bits = (pages * PAGE_BYTES - offset) * 8;
  }

  /** Sets the bits of all pages that overlap iova..iova+lengthBytes-1; none at all if that begins before the bitmap. */
  mark(iova: number, lengthBytes: number): void {
    if (iova < this.#iova) return;
    const first = Math.floor((iova - this.#iova) / this.#pageSize);
    const last = Math.min(this.#bits - 1, Math.floor((iova + lengthBytes - 1 - this.#iova) / this.#pageSize));
    for (let bit = first; bit <= last;) {
      const address = this.#address + BigInt(Math.floor(bit / 8));
      const bytesLeft = PAGE_BYTES - Number(address % PAGE_SIZE);
      const end = Math.min(last + 1, (Math.floor(bit / 8) + bytesLeft) * 8);
      this.#setBits(address, bit % 8, end - bit);
      bit = end;
    }
  }

  /** Sets `count` bits from bit `first` of the byte at `address` on; all within one page. */
  #setBits(address: bigint, first: number, count: number): void {
    const bytes = this.#ctx.copy_from_user(address, Math.ceil((first + count) / 8));
    if (bytes === undefined) return;
    const changed = Uint8Array.from(bytes);
    for (let bit = first; bit < first + count;) {
      const byte = bit >>> 3;
      const end = Math.min(first + count, (byte + 1) * 8);
      const mask = ((1 << (end - byte * 8)) - 1) & ~((1 << (bit - byte * 8)) - 1);
      changed[byte] = (changed[byte] ?? 0) | mask;
      bit = end;
    }
    this.#ctx.copy_to_user(address, changed);
  }
}
