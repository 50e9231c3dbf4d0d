/**
 * What kernel work costs in virtual time, nanoseconds. Orders of magnitude of a server core, fixed so that runs repeat:
 * they shape interleavings and durations, they are not a performance model.
 */

/** Entering the kernel and dispatching a system call. */
export const SYSCALL_NS = 100;
/** Pinning one physically contiguous run of pages. */
export const PIN_RUN_NS = 200;
/** Added for each page of a pinned run. */
export const PIN_PAGE_NS = 2;
/** Programming one interrupt vector. */
export const IRQ_SETUP_NS = 1_000;
/** From an interrupt's arrival to the handler. */
export const IRQ_ENTRY_NS = 300;
/** Function-level reset (PCIe 6.6.2 allows 100 ms). */
export const FLR_NS = 100_000_000;
/** Between two looks at an SMMU register or queue index that is being waited for. */
export const SMMU_POLL_NS = 200;
/** One step over a translation table: stores to one table, or reading the dirty state of a window. */
export const TABLE_STEP_NS = 300;
/** Handling one record of an SMMU's event queue. */
export const SMMU_EVENT_NS = 1_000;
/** One arc of a device's migration state machine: a command to the card's firmware. */
export const MIG_ARC_NS = 50_000;
/** Moving a piece of a device's state between the card and its data_fd. */
export const MIG_READ_NS = 2_000;
