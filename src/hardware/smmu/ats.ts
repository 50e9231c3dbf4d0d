/**
 * PCIe Address Translation Services and page requests, as the SMMU answers them (IHI 0070 3.9, 3.13, 8; PCIe 5.0 chapter 10).
 *
 * A *translation request* is answered, not performed: with an address a device may keep (in its ATC) and use in transactions
 * marked Translated, which pass if STE.EATS lets the stream (with CR0.ATSCHK 0: unchecked). Faults of translations are no
 * events here, the answer says that nothing may be done at the address. What software invalidates for the SMMU's TLB stays
 * in the ATC until CMD_ATC_INV; CMD_SYNC waits for the device to say that it is done.
 */
import type { Task } from '../../runtime/task.js';

/** A request to translate. */
export interface AtsRequest {
  readonly streamId: number;
  readonly substreamId?: number;
  readonly iova: bigint;
  /** The device will only read (NW). */
  readonly noWrite?: boolean;
  readonly privileged?: boolean;
}

/** The completion of a translation request. `unsupported`: do not ask again; `abort`: something is wrong with the tables. */
export type AtsResponse =
  | {
      readonly status: 'success';
      readonly pa: number;
      readonly shift: number;
      readonly read: boolean;
      readonly write: boolean;
    }
  | { readonly status: 'unsupported' | 'abort' };

/** Nothing may be done at the address. */
export const NO_ACCESS: AtsResponse = { status: 'success', pa: 0, shift: 12, read: false, write: false };

/** What an ATC is to forget. */
export interface AtcInvalidation {
  readonly streamId: number;
  /** Entries of this substream, or of transactions without one. */
  readonly substreamId: number | undefined;
  /** Whatever the substream (G). */
  readonly isGlobal: boolean;
  readonly start: bigint;
  readonly last: bigint;
}

/** Takes an invalidation to the device; false when no completion came in time. */
export type AtcPort = (invalidation: AtcInvalidation) => Task<boolean>;

/** A page request message. */
export interface PageRequestMessage {
  readonly streamId: number;
  readonly substreamId?: number;
  /** Page aligned. */
  readonly address: bigint;
  /** Page request group, 0 to 511. */
  readonly group: number;
  readonly isLast: boolean;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute?: boolean;
  readonly privileged?: boolean;
}

/** Answer to a page request group. */
export type GroupResponse = 'success' | 'invalid' | 'failure';

/** Takes an answer to the device. */
export type GroupResponsePort = (
  streamId: number,
  substreamId: number | undefined,
  group: number,
  response: GroupResponse,
) => void;
