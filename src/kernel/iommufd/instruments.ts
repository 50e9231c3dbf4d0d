/**
 * What the structures of an iommufd are given of the node they run on: its fault switches, and the ledger of rules that were looked at.
 *
 * A structure asks `fires` where an allocation could fail or where an older kernel went another way (the switches with an `incident`).
 */
import type { FaultId } from '../../runtime/faults.js';
import type { InvariantId } from '../../runtime/invariants.js';
import { invariant } from '../../runtime/task.js';

export interface Instruments {
  /** Counts a call of a fault switch and says whether it strikes. */
  fires(fault: FaultId): boolean;
  /** A rule was looked at, and held. */
  held(rule: InvariantId, looks?: number): void;
  /** A rule is not judged to the end. */
  gaveUp(rule: InvariantId, why: string): void;
  /** A pages object (`struct iopt_pages`) was made, or freed: 1 or -1. */
  countPages(change: number): void;
  /** Whether rules are looked at that take keeping a history. */
  readonly keepsHistory: boolean;
}

/** A pointer as C follows it. @throws InvariantError where it points to nothing */
export function dereference<T>(pointer: T | undefined, what: string): T {
  invariant(pointer !== undefined, () => `NULL dereference: ${what}`, 'objects');
  return pointer;
}

/** Nothing fails and nobody counts. */
export const NO_INSTRUMENTS: Instruments = {
  fires: () => false,
  held: () => undefined,
  gaveUp: () => undefined,
  countPages: () => undefined,
  keepsHistory: true,
};
