/**
 * The DMA engine as its driver sees it: PCI function 1d0f:da01 with registers in BAR 0 and MSI-X in BAR 2.
 *
 * One transfer at a time: the driver writes addresses, length and pattern, then COMMAND; the engine is busy until STATUS
 * says done or error, and raises the chosen MSI-X vector at the end if asked to. Bytes move in pieces of at most 4 KiB, in
 * order; an aborted piece ends the transfer.
 */
import { bit, bits, reg32, reg64 } from '../layout/bits.js';

export const DMA_ENGINE_VENDOR = 0x1d0f;
export const DMA_ENGINE_DEVICE = 0xda01;
/** Registers. */
export const DMA_ENGINE_REGISTER_BAR = 0;
/** MSI-X table and pending bits. */
export const DMA_ENGINE_MSIX_BAR = 2;
export const DMA_ENGINE_VECTORS = 4;
/** What the ID register reads. */
export const DMA_ENGINE_ID = 0x31414d44;
/** Longest transfer, bytes. */
export const DMA_ENGINE_MAX_LENGTH = 1 << 24;

/** Read-only: {@link DMA_ENGINE_ID}. */
export const DMA_ID = reg32('DMA_ID', 0x00, { ID: bits(0, 32) });
/** Bus address read by COPY and SUM. */
export const DMA_SRC = reg64('DMA_SRC', 0x08, { LO: bits(0, 32), HI: bits(32, 32) });
/** Bus address written by COPY and FILL. */
export const DMA_DST = reg64('DMA_DST', 0x10, { LO: bits(0, 32), HI: bits(32, 32) });
/** Bytes to move, 1..{@link DMA_ENGINE_MAX_LENGTH}. */
export const DMA_LENGTH = reg32('DMA_LENGTH', 0x18, { LENGTH: bits(0, 32) });
/** Little-endian word repeated by FILL. */
export const DMA_PATTERN = reg32('DMA_PATTERN', 0x1c, { PATTERN: bits(0, 32) });
/** Writing starts a transfer; ignored while busy. */
export const DMA_COMMAND = reg32('DMA_COMMAND', 0x20, { OP: bits(0, 2), IRQ: bit(8), VECTOR: bits(12, 4) });
export const DMA_STATUS = reg32('DMA_STATUS', 0x24, { BUSY: bit(0), DONE: bit(1), ERROR: bit(2) });
/** Why a transfer ended with ERROR. */
export const DMA_ERROR = reg32('DMA_ERROR', 0x28, { CODE: bits(0, 32) });
/** FNV-1a (32 bits) of the bytes the last transfer read. */
export const DMA_SUM = reg32('DMA_SUM', 0x2c, { SUM: bits(0, 32) });
/** Transfers ended since reset, with or without error. */
export const DMA_COMPLETED = reg32('DMA_COMPLETED', 0x30, { COUNT: bits(0, 32) });

/** DMA_COMMAND.OP */
export const DMA_OP = { COPY: 1, FILL: 2, SUM: 3 } as const;
/** DMA_ERROR.CODE */
export const DMA_ERROR_CODE = { NONE: 0, READ_ABORTED: 1, WRITE_ABORTED: 2, BAD_COMMAND: 3 } as const;

/** FNV-1a over bytes, 32 bits, continuing from `hash`. */
export function fnv1a32(bytes: Uint8Array, hash = 0x811c9dc5): number {
  let sum = hash;
  for (const byte of bytes) sum = Math.imul(sum ^ byte, 0x01000193);
  return sum >>> 0;
}
