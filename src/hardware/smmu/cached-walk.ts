/** The way from an address to its translation: what the TLB holds, else a walk, whose result the TLB then holds. */
import type { Task } from '../../runtime/task.js';
import type { Tlb, TlbTag } from './tlb.js';
import { accessKind, faultOf, type Access, type Fault, type Translation } from './walk.js';

/**
 * The TLB's answer, or the walk's, which then goes into the TLB. `seesConflicts`: two sizes for one address are a fault
 * (F_TLB_CONFLICT).
 */
export function* cachedWalk(
  tlb: Tlb,
  seesConflicts: boolean,
  tag: TlbTag,
  input: number,
  access: Access,
  walk: () => Task<Translation | Fault>,
): Task<Translation | Fault> {
  const hit = tlb.lookup(tag, input);
  if (hit !== undefined && seesConflicts && tlb.hasLarger(tag, input, hit)) return faultOf('F_TLB_CONFLICT');
  // A write that has yet to set dirty state needs the descriptor, and a denied access gets its fault from the tables.
  if (hit !== undefined && !(access.write && hit.clean)) {
    if (((hit.stage1 & hit.stage2) >> accessKind(access)) & 1) return { ok: true, ...hit };
  }
  const before = tlb.invalidations;
  const found = yield* walk();
  if (found.ok && before === tlb.invalidations) tlb.insert(tag, input, found);
  return found;
}
