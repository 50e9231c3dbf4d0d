/** Words that alarms and reports have in common. */
import { errnoName } from '../uapi/errno.js';

const PAGE_BYTES = 4096;

/** The IOVA at which a page begins, as `0x1000`. */
export function iovaText(page: number): string {
  return `0x${(page * PAGE_BYTES).toString(16)}`;
}

/** The name of an errno, its number where it has none here. */
export function errnoText(errno: number): string {
  return errnoName(errno) ?? String(errno);
}
