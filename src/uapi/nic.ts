/**
 * The NIC as its driver sees it: PCI function 1d0f:0e1c, registers in BAR 0, MSI-X in BAR 2.
 *
 * Two pairs of queues; queue 2k receives, queue 2k+1 transmits, each with a ring of descriptors in memory and an MSI-X vector of
 * its own number. The driver owns descriptors from HEAD to TAIL-1 for the device to work on: it fills them and moves TAIL; the
 * device fetches a descriptor by DMA, moves the buffer by DMA, writes the descriptor back by DMA with DONE (and ERROR), advances
 * HEAD and raises the vector. A ring is full with SIZE-1 descriptors. A DMA that fails stops its queue until it is enabled anew.
 * In loopback what queue 2k+1 sends arrives at queue 2k.
 */
import { bit, bits, defineRecord, reg32, type Register } from '../layout/bits.js';

export const NIC_VENDOR = 0x1d0f;
export const NIC_DEVICE = 0x0e1c;
export const NIC_REGISTER_BAR = 0;
export const NIC_MSIX_BAR = 2;
export const NIC_BAR_BYTES = 4096;
export const NIC_PAIRS = 2;
export const NIC_QUEUES = 2 * NIC_PAIRS;
/** One vector a queue. */
export const NIC_VECTORS = NIC_QUEUES;
/** What the ID register reads. */
export const NIC_ID_VALUE = 0x3043494e;
/** Longest frame, bytes. */
export const NIC_MAX_FRAME = 9216;

/** Read-only: {@link NIC_ID_VALUE}. */
export const NIC_ID = reg32('NIC_ID', 0x00, { ID: bits(0, 32) });
/** RESET forgets everything, as a function-level reset does. */
export const NIC_CTRL = reg32('NIC_CTRL', 0x04, { ENABLE: bit(0), LOOPBACK: bit(1), RESET: bit(31) });
/** Interrupt moderation: ns between a completion and its interrupt; completions meanwhile share it. */
export const NIC_MODERATION = reg32('NIC_MODERATION', 0x08, { NS: bits(0, 32) });
export const NIC_TX_FRAMES = reg32('NIC_TX_FRAMES', 0x10, { COUNT: bits(0, 32) });
export const NIC_RX_FRAMES = reg32('NIC_RX_FRAMES', 0x14, { COUNT: bits(0, 32) });
/** Frames that arrived while no descriptor was free, or for a queue that is off. */
export const NIC_RX_DROPS = reg32('NIC_RX_DROPS', 0x18, { COUNT: bits(0, 32) });
/** DMA that was aborted. */
export const NIC_DMA_ERRORS = reg32('NIC_DMA_ERRORS', 0x1c, { COUNT: bits(0, 32) });

const QUEUE_BASE = 0x100;
const QUEUE_STRIDE = 0x40;

/** Registers of one queue. */
export const NIC_QUEUE = {
  /** Bus address of the ring, a multiple of 16. */
  BASE_LO: reg32('NIC_QUEUE_BASE_LO', 0x00, { LO: bits(0, 32) }),
  BASE_HI: reg32('NIC_QUEUE_BASE_HI', 0x04, { HI: bits(0, 32) }),
  /** Descriptors in the ring. */
  SIZE: reg32('NIC_QUEUE_SIZE', 0x08, { SIZE: bits(0, 16) }),
  /** Read-only: next descriptor of the device. */
  HEAD: reg32('NIC_QUEUE_HEAD', 0x0c, { HEAD: bits(0, 16) }),
  /** First descriptor that is not the device's. Writing is the doorbell. */
  TAIL: reg32('NIC_QUEUE_TAIL', 0x10, { TAIL: bits(0, 16) }),
  /** ERROR is the device's: the queue stopped. Writing ENABLE = 1 starts at HEAD = 0 without error. */
  CTRL: reg32('NIC_QUEUE_CTRL', 0x14, { ENABLE: bit(0), ERROR: bit(1) }),
} as const;

/** Offset of a queue's register in BAR 0. */
export function nicQueueOffset(
  queue: number,
  register: Register<Record<string, { lsb: number; width: number }>>,
): number {
  return QUEUE_BASE + queue * QUEUE_STRIDE + register.offset;
}

/** Which queue's which register an offset is; undefined below the queues and beyond them. */
export function nicQueueAt(offset: number): { readonly queue: number; readonly offset: number } | undefined {
  const queue = Math.floor((offset - QUEUE_BASE) / QUEUE_STRIDE);
  if (offset < QUEUE_BASE || queue >= NIC_QUEUES) return undefined;
  return { queue, offset: (offset - QUEUE_BASE) % QUEUE_STRIDE };
}

/** One descriptor: a buffer; LENGTH is the frame's (to send, or as received) or the buffer's room (to receive into). */
export const NIC_DESCRIPTOR = defineRecord('NIC_DESCRIPTOR', 16, {
  ADDRESS_LO: bits(0, 32),
  ADDRESS_HI: bits(32, 32),
  LENGTH: bits(64, 16),
  DONE: bit(96),
  ERROR: bit(97),
});
