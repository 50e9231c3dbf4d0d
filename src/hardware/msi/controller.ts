/**
 * Interrupt controllers that are reached by a memory write.
 *
 * A doorbell behind the IOMMU is a register frame on the system bus; one that is decoded before the IOMMU (HiSilicon hip06/07,
 * x86) is asked by the host bridge first. Either way the write reaches the controller with its origin, and an accepted message
 * becomes an interrupt at a CPU.
 *
 * A message that raises nothing is an event of the history, with why and from whom: `*.dropped` or `*.swallowed` for one that is
 * lost, `irq.blocked` for one that remapping refused, `its.pended` for one that waits.
 */
import type { Origin } from '../bus.js';

/** An interrupt that arrived at a CPU: an LPI, an SPI or an x86 vector of this controller. */
export interface Interrupt {
  readonly controller: string;
  readonly intid: number;
  /** The function whose write raised it; undefined when software did. */
  readonly from?: string;
}

/** A controller as the host bridge and the kernel see it. */
export interface MsiController {
  readonly name: string;
  readonly isolated: boolean;
  /** Physical address of the doorbell register. */
  readonly doorbell: number;
  /** True when the write never reaches the IOMMU. */
  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean;
  /** A write to the doorbell decoded before the IOMMU. */
  ring(address: bigint, bytes: Uint8Array, origin: Origin): void;
}

/** DeviceID of a writer: CPUs have none. */
export function deviceIdOf(origin: Origin): number | undefined {
  return origin.kind === 'device' ? origin.deviceId : undefined;
}

/** The function that wrote, as a field of an event; nothing for a CPU. */
export function fromField(origin: Origin): { readonly from?: string } {
  return origin.kind === 'device' ? { from: origin.bdf } : {};
}

/** An interrupt with the function that raised it. */
export function interruptFrom(controller: string, intid: number, origin: Origin): Interrupt {
  return { controller, intid, ...fromField(origin) };
}

/** The 32-bit little-endian word a doorbell takes; undefined for writes of another size. */
export function messageWord(bytes: Uint8Array): number | undefined {
  if (bytes.length !== 4) return undefined;
  return new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
}
