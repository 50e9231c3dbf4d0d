/**
 * Where a guest puts the BAR of a device that is plugged into it.
 *
 * A guest knows its machine by what its VMM publishes (e820, DSDT): RAM, and holes that nobody may use. It takes the lowest free
 * place above its RAM that is aligned to the BAR's size. A VMM that keeps a hole of the host's free of RAM but does not publish it
 * gets BARs in there, where it answers nothing (domain.md RR-45).
 */
import type { GuestMemoryMap } from './machines.js';
import { alignUp, overlaps, type Range } from './ranges.js';

const FOUR_GIB = 1n << 32n;

/** Guest-physical address of a 64-bit BAR of `sizeBytes` (a power of two), by what is published. */
export function placeBar(map: GuestMemoryMap, sizeBytes: bigint, published: readonly Range[]): bigint {
  const top = map.ram.reduce((highest, { last }) => (last + 1n > highest ? last + 1n : highest), FOUR_GIB);
  let start = alignUp(top, sizeBytes);
  for (;;) {
    const bar = { start, last: start + sizeBytes - 1n };
    const hit = published.find((hole) => overlaps(hole, bar));
    if (hit === undefined) return start;
    start = alignUp(hit.last + 1n, sizeBytes);
  }
}
