/** Words that alarms and reports have in common. */

const PAGE_BYTES = 4096;

/** The IOVA at which a page begins, as `0x1000`. */
export function iovaText(page: number): string {
  return `0x${(page * PAGE_BYTES).toString(16)}`;
}
