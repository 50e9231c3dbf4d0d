/**
 * Fault switches: named ways in which a node can be made to fail, off by default.
 *
 * A component asks `faults.fires(id)` at the point where the fault would strike. A switch that is on fires on the calls its
 * rule selects; every call of a switched-on fault is counted, so a rule like "the third allocation" is deterministic. The
 * catalogue below is the only list of ids.
 */

/** What a fault does, for documentation and for checking scenario files. */
export interface FaultDescription {
  readonly layer: 'core' | 'hardware' | 'kernel' | 'link' | 'testbed';
  readonly effect: string;
}

/** Every fault there is. */
export const FAULTS = {
  'core.kernel-alloc': { layer: 'core', effect: 'an allocation of kernel memory (page tables, queues) fails: ENOMEM' },
  'mm.pin': { layer: 'kernel', effect: 'pinning user pages fails: EFAULT' },
  'smmu.drop-tlbi': { layer: 'hardware', effect: 'a TLB invalidation command is consumed but invalidates nothing' },
  'smmu.dirty-lost': { layer: 'hardware', effect: 'a write does not set the dirty state of its descriptor' },
  'its.drop': { layer: 'hardware', effect: 'a write to GITS_TRANSLATER raises no interrupt' },
  'device.log-lost': { layer: 'hardware', effect: 'a write of a device is missing from its DMA log' },
  'vfio.mig-arc': {
    layer: 'kernel',
    effect: 'an arc of the migration state machine fails with EIO; the device stays where it was',
  },
  'vfio.mig-error': { layer: 'kernel', effect: 'an arc fails with EIO and the device goes to ERROR' },
  'link.lost': { layer: 'link', effect: 'the link goes down; what is in flight is lost and later sends fail' },
  'host.killed': { layer: 'testbed', effect: 'the worker of the host dies' },
} as const satisfies Record<string, FaultDescription>;

export type FaultId = keyof typeof FAULTS;

/** Which calls of a switched-on fault fire: `skip` calls pass first, then `count` fire (all of them when not given). */
export interface FaultRule {
  readonly skip?: number;
  readonly count?: number;
}

interface ArmedFault {
  calls: number;
  readonly skip: number;
  readonly count: number;
}

/** The switches of one node. */
export class FaultSwitches {
  readonly #armed = new Map<FaultId, ArmedFault>();

  /** Switches a fault on (again: starts counting anew). */
  arm(id: FaultId, rule: FaultRule = {}): void {
    this.#armed.set(id, { calls: 0, skip: rule.skip ?? 0, count: rule.count ?? Infinity });
  }

  disarm(id: FaultId): void {
    this.#armed.delete(id);
  }

  /** Counts a call and says whether the fault strikes it. */
  fires(id: FaultId): boolean {
    const armed = this.#armed.get(id);
    if (armed === undefined) return false;
    const call = armed.calls++;
    return call >= armed.skip && call < armed.skip + armed.count;
  }
}
