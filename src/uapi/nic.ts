/**
 * The NIC as its driver sees it: PCI function 1d0f:0e1c, registers in BAR 0, MSI-X in BAR 2.
 *
 * Two pairs of queues; queue 2k receives, queue 2k+1 transmits, each with a ring of descriptors in memory. The driver owns the
 * ring but for the descriptors from HEAD to TAIL-1, which are the device's to work on: the driver fills them and moves TAIL; the
 * device fetches a descriptor by DMA, moves the buffer by DMA, writes the descriptor back by DMA with DONE (and ERROR), advances
 * HEAD and raises the queue's vector. A frame may lie in several descriptors, the last of which has EOP, and raises the vector
 * once. A ring is full with SIZE-1 descriptors. A DMA that was aborted, or a ring or descriptor that makes no sense, stops its
 * queue until it is enabled anew; the other queues go on. In loopback what queue 2k+1 sends arrives at queue 2k.
 */
import { bit, bits, defineRecord, reg32, reg64, type BitFields, type Register } from '../layout/bits.js';

export const NIC_VENDOR = 0x1d0f;
export const NIC_DEVICE = 0x0e1c;
/** Registers. */
export const NIC_REGISTER_BAR = 0;
/** MSI-X table and pending bits. */
export const NIC_MSIX_BAR = 2;
/** Size of either BAR. */
export const NIC_BAR_BYTES = 16384;
export const NIC_PAIRS = 2;
export const NIC_QUEUES = 2 * NIC_PAIRS;
/** Raised when the link changes. The vectors below are the queues'. */
export const NIC_LINK_VECTOR = NIC_QUEUES;
export const NIC_VECTORS = NIC_QUEUES + 1;
/** What the ID register reads. */
export const NIC_ID_VALUE = 0x3043494e;
/** Longest frame, bytes, however many descriptors it has. */
export const NIC_MAX_FRAME = 9216;

/** Read-only: {@link NIC_ID_VALUE}. */
export const NIC_ID = reg32('NIC_ID', 0x00, { ID: bits(0, 32) });
/** Queues work while ENABLE is set. RESET forgets everything, as a function-level reset does. */
export const NIC_CTRL = reg32('NIC_CTRL', 0x04, { ENABLE: bit(0), LOOPBACK: bit(1), RESET: bit(31) });
/** Interrupt moderation: ns between a completion and its interrupt; completions of the queue meanwhile share it. 0: at once. */
export const NIC_MODERATION = reg32('NIC_MODERATION', 0x08, { NS: bits(0, 32) });
/** Read-only: whether there is a carrier, and how often that changed since the reset. */
export const NIC_LINK = reg32('NIC_LINK', 0x0c, { UP: bit(0), CHANGES: bits(16, 16) });
// Statistics since the reset, read-only; they wrap.
export const NIC_TX_FRAMES = reg32('NIC_TX_FRAMES', 0x10, { COUNT: bits(0, 32) });
export const NIC_RX_FRAMES = reg32('NIC_RX_FRAMES', 0x14, { COUNT: bits(0, 32) });
/** Frames that arrived and did not get into memory: no descriptors were free, the queue was off or stopped. */
export const NIC_RX_DROPS = reg32('NIC_RX_DROPS', 0x18, { COUNT: bits(0, 32) });
/** DMA that was aborted. */
export const NIC_DMA_ERRORS = reg32('NIC_DMA_ERRORS', 0x1c, { COUNT: bits(0, 32) });
/** Bytes of the frames in NIC_TX_FRAMES. */
export const NIC_TX_BYTES = reg64('NIC_TX_BYTES', 0x20, { LO: bits(0, 32), HI: bits(32, 32) });
/** Bytes of the frames in NIC_RX_FRAMES. */
export const NIC_RX_BYTES = reg64('NIC_RX_BYTES', 0x28, { LO: bits(0, 32), HI: bits(32, 32) });

const QUEUE_BASE = 0x100;
const QUEUE_STRIDE = 0x40;

/** Registers of one queue. BASE and SIZE are read-only while the queue is enabled. */
export const NIC_QUEUE = {
  /** Bus address of the ring, a multiple of 16. */
  BASE_LO: reg32('NIC_QUEUE_BASE_LO', 0x00, { LO: bits(0, 32) }),
  BASE_HI: reg32('NIC_QUEUE_BASE_HI', 0x04, { HI: bits(0, 32) }),
  /** Descriptors in the ring: a power of two, 2..32768. */
  SIZE: reg32('NIC_QUEUE_SIZE', 0x08, { SIZE: bits(0, 16) }),
  /** Read-only: next descriptor of the device. */
  HEAD: reg32('NIC_QUEUE_HEAD', 0x0c, { HEAD: bits(0, 16) }),
  /** First descriptor that is not the device's, below SIZE. Writing is the doorbell. */
  TAIL: reg32('NIC_QUEUE_TAIL', 0x10, { TAIL: bits(0, 16) }),
  /**
   * ERROR and CAUSE ({@link NIC_QUEUE_CAUSE}) are the device's: the queue stopped. Any write clears them and abandons what the
   * queue did; ENABLE = 1 starts with an empty ring, HEAD = TAIL = 0.
   */
  CTRL: reg32('NIC_QUEUE_CTRL', 0x14, { ENABLE: bit(0), ERROR: bit(1), CAUSE: bits(4, 4) }),
  /** MSI-X vector of the queue; its own number after a reset. One that does not exist: no interrupts. */
  VECTOR: reg32('NIC_QUEUE_VECTOR', 0x18, { VECTOR: bits(0, 16) }),
} as const;

/** NIC_QUEUE.CTRL.CAUSE: why a queue stopped. */
export const NIC_QUEUE_CAUSE = {
  NONE: 0,
  /** A descriptor could not be read. */
  FETCH: 1,
  /** A buffer could not be read or written; its descriptor has ERROR if that could be written. */
  BUFFER: 2,
  /** A descriptor could not be written back. */
  WRITE_BACK: 3,
  /** A descriptor of no bytes or a frame of more than {@link NIC_MAX_FRAME}; the frame's first descriptor has ERROR. */
  DESCRIPTOR: 4,
  /** BASE is not aligned, SIZE no power of two, or TAIL beyond the ring. */
  RING: 5,
} as const;

/** Offset of a queue's register in BAR 0. */
export function nicQueueOffset(queue: number, register: Register<BitFields>): number {
  return QUEUE_BASE + queue * QUEUE_STRIDE + register.offset;
}

/** Which queue's which register an offset is; undefined below the queues and beyond them. */
export function nicQueueAt(offset: number): { readonly queue: number; readonly offset: number } | undefined {
  const queue = Math.floor((offset - QUEUE_BASE) / QUEUE_STRIDE);
  if (offset < QUEUE_BASE || queue >= NIC_QUEUES) return undefined;
  return { queue, offset: (offset - QUEUE_BASE) % QUEUE_STRIDE };
}

/**
 * One descriptor, 16 bytes: bus address of a buffer (u64), LENGTH in bytes (u16), flags (u32 at byte 12). LENGTH is what to send,
 * the room to receive into, or, written back by a receive queue, the bytes received. EOP is the driver's in a transmit queue and
 * the device's in a receive queue.
 */
export const NIC_DESCRIPTOR = defineRecord('NIC_DESCRIPTOR', 16, {
  ADDRESS_LO: bits(0, 32),
  ADDRESS_HI: bits(32, 32),
  LENGTH: bits(64, 16),
  DONE: bit(96),
  ERROR: bit(97),
  EOP: bit(98),
});
