/**
 * Fault switches: named ways in which a node can be made to fail, off by default.
 *
 * A component asks `faults.fires(id)` at the point where the fault would strike. A switch that is on fires on the calls its
 * rule selects; every call of a switched-on fault is counted, so a rule like "the third allocation" is deterministic. The
 * catalogue below is the only list of ids.
 */
import { sharedWrite } from './watch.js';

/** What a fault does, for documentation and for checking scenario files. */
export interface FaultDescription {
  readonly layer: 'core' | 'hardware' | 'kernel' | 'vmm' | 'link' | 'testbed';
  readonly effect: string;
  /** The incident of the field that it puts back into the model, by its row of domain.md C1. */
  readonly incident?: `IN-${number}`;
  /** Where that incident happened otherwise than here. */
  readonly differs?: string;
}

const SVA_DIFFERS =
  "the hazard of C1's recipe: the mistake was a missing mmgrab and mmdrop, on the side of the CPU; SVA is not modelled";

/** Every fault there is. */
export const FAULTS = {
  'core.kernel-alloc': { layer: 'core', effect: 'an allocation of kernel memory (page tables, queues) fails: ENOMEM' },
  'kernel.kmalloc': { layer: 'kernel', effect: 'an allocation of a kernel object fails: ENOMEM' },
  'mm.pin': { layer: 'kernel', effect: 'pinning user pages fails: EFAULT' },
  'mm.copy-to-user': { layer: 'kernel', effect: 'the answer of an iommufd ioctl cannot be copied out: EFAULT' },
  'smmu.drop-tlbi': { layer: 'hardware', effect: 'a TLB invalidation command is consumed but invalidates nothing' },
  'smmu.dirty-lost': { layer: 'hardware', effect: 'a write does not set the dirty state of its descriptor' },
  'device.atc-timeout': {
    layer: 'hardware',
    effect: 'a device does not answer an invalidation of its ATC in time, and forgets nothing',
  },
  'smmu.entry-not-hitless': {
    layer: 'kernel',
    incident: 'IN-15',
    effect: 'a live stream table entry or context descriptor is overwritten doubleword by doubleword',
  },
  'smmu.tables-not-invalidated': {
    layer: 'kernel',
    incident: 'IN-16',
    effect: 'tables that an unmap takes out are given back after an invalidation of leaves alone',
  },
  'smmu.ats-off-first': {
    layer: 'kernel',
    incident: 'IN-16',
    effect:
      "a device whose ATS is off already is not found on its old domain's list, where it stays when that is freed",
    differs: "VT-d's cache tags; here a device has a list of its domains, so that one left behind ends with the device",
  },
  'smmu.ats-tags-first': {
    layer: 'kernel',
    effect:
      "a device that moves is struck off its old domain's list while it still has that domain's translations (ATS)",
  },
  'smmu.asid-not-invalidated': {
    layer: 'kernel',
    incident: 'IN-21',
    effect: 'an ASID or VMID is given back without an invalidation of what TLBs have of it',
    differs: SVA_DIFFERS,
  },
  'smmu.tables-freed-early': {
    layer: 'kernel',
    incident: 'IN-21',
    effect: "the tables of a device's default domain are freed before its stream table entry is taken away",
    differs: SVA_DIFFERS,
  },
  'smmu.event-unlocked': {
    layer: 'kernel',
    incident: 'IN-22',
    effect: 'the device of an event is looked up first and told later, without a lock that keeps it there',
  },
  'smmu.evtq-wakeup-lost': {
    layer: 'kernel',
    effect: "the event queue's thread forgets an interrupt that came after its last look at the queue",
  },
  'smmu.table-before-zero': {
    layer: 'kernel',
    incident: 'IN-24',
    effect: 'a new translation table is published (relaxed cmpxchg) before its zeroing is visible to other CPUs',
  },
  'smmu.tag-error-unchecked': {
    layer: 'kernel',
    incident: 'IN-34',
    effect: 'no ASID or VMID is left: the error is stored in an unsigned variable and taken for one',
  },
  'smmu.dirty-unsynced': {
    layer: 'kernel',
    effect: 'dirty bits are cleared without an invalidation: TLBs go on writing as if they were set',
  },
  'smmu.cmdq-prod-early': {
    layer: 'kernel',
    effect: "CMDQ_PROD is written before other CPUs' commands in front of it are in their slots",
  },
  'mock.top-in-two-steps': {
    layer: 'kernel',
    incident: 'IN-8',
    effect: 'a page table that grows publishes its new root and its new level one after the other',
  },
  'iommufd.sw-msi-unlocked': {
    layer: 'kernel',
    incident: 'IN-32',
    effect: 'the list of MSI doorbell pages is changed without a lock of its own',
    differs:
      "type1's list (dma-iommu) had none but groups' locks, iommufd's always had one. There is no type1 here (containers are iommufd's): this is iommufd's list as it would be without",
  },
  'vfio.log-range-short': {
    layer: 'kernel',
    incident: 'IN-27',
    effect:
      'a DMA log leaves out the last byte of each range, and what lies beyond the largest power of two in the sum of their lengths',
  },
  'vfio.resume-bounds-unlocked': {
    layer: 'kernel',
    incident: 'IN-23',
    effect:
      'a write of migration data looks for room where the file stood before the wait, and copies to where it stands then',
  },
  'vfio.resume-unlocked': {
    layer: 'kernel',
    incident: 'IN-23',
    effect: 'a write of migration data looks at the state of the device before it waits, not after',
    differs: "C1's recipe: the driver of the incident looked at the state under the lock of the file",
  },
  'vfio.memory-unlocked': {
    layer: 'kernel',
    incident: 'IN-20',
    effect: 'memory decode of a device may be switched off between the look at it and an access to a BAR',
  },
  'device.stop-undrained': {
    layer: 'hardware',
    effect: 'a device says that it has stopped while DMA of it is under way',
  },
  'its.drop': { layer: 'hardware', effect: 'a write to GITS_TRANSLATER raises no interrupt' },
  'device.log-lost': { layer: 'hardware', effect: 'a write of a device is missing from its DMA log' },
  'vfio.mig-arc': {
    layer: 'kernel',
    effect: 'an arc of the migration state machine fails with EIO; the device stays where it was',
  },
  'vfio.mig-error': { layer: 'kernel', effect: 'an arc fails with EIO and the device goes to ERROR' },
  'iommu.resv-ignored': {
    layer: 'kernel',
    effect: 'reserved regions are left out of an address space: attaching succeeds',
  },
  'iommufd.fput-deferred': {
    layer: 'kernel',
    incident: 'IN-1',
    effect: 'the file of a queue whose creation failed is released later, when the queue is freed already',
  },
  'iommufd.mmap-unlocked': {
    layer: 'kernel',
    incident: 'IN-3',
    effect: 'mmap takes its reference to the owner of the pages some time after it found them',
  },
  'iommufd.destroy-takes-reference': {
    layer: 'kernel',
    incident: 'IN-4',
    effect: 'IOMMU_DESTROY holds a reference while it decides, in the way of the driver that destroys the object',
  },
  'iommufd.access-ioas-unlocked': {
    layer: 'kernel',
    incident: 'IN-5',
    effect: 'access->ioas is followed without ioas_lock, although a replace clears it meanwhile',
  },
  'iommufd.access-id-overwritten': {
    layer: 'kernel',
    incident: 'IN-6',
    effect:
      "a replace that fails leaves the access with the new list's number: it leaves the old list under a wrong one",
  },
  'iommufd.fault-put-twice': {
    layer: 'kernel',
    incident: 'IN-7',
    effect: 'a fault queue without a descriptor gives back the references that releasing its file gave back',
  },
  'iommufd.dmabuf-freed-attached': {
    layer: 'kernel',
    incident: 'IN-9',
    effect: 'the pages of a dma-buf are freed before they are detached from it',
  },
  'iommufd.dmabuf-revoke-unlocked': {
    layer: 'kernel',
    incident: 'IN-9',
    effect: 'whether a dma-buf was revoked is looked at before the lock is taken under which it is mapped',
  },
  'iommufd.vevent-header-size': {
    layer: 'kernel',
    incident: 'IN-10',
    effect:
      'a read of vIOMMU events takes the size of a pointer, 4 bytes, for that of a header, which has 8: more is copied than asked for',
    differs: 'pointers have 4 bytes with 32-bit kernels only; with others nothing came of it',
  },
  'iommufd.veventq-put-early': {
    layer: 'kernel',
    effect: 'an event queue that is destroyed gives its vIOMMU back before the lock of the vIOMMU that it holds',
  },
  'iommufd.hwpt-listed-twice': {
    layer: 'kernel',
    incident: 'IN-11',
    effect: 'a page table that a device is attached to is put on the list of its address space a second time',
  },
  'iommufd.unpin-in-use': {
    layer: 'kernel',
    incident: 'IN-12',
    effect:
      'a domain that goes unpins pages behind its own: as many again as it unmapped along with those before an access',
  },
  'iommufd.align-wraps': {
    layer: 'kernel',
    incident: 'IN-13',
    effect: 'aligning a free IOVA near 2^64 wraps to 0, whatever is mapped or reserved there',
  },
  'iommufd.auto-response-wrong-queue': {
    layer: 'kernel',
    incident: 'IN-14',
    effect: "a replace looks for page requests to answer in the new page table's queue: the old one keeps them",
  },
  'iommufd.auto-response-unlocked': {
    layer: 'kernel',
    effect: 'a detach answers the page requests of its device without waiting for a read that has one in hand',
  },
  'iommufd.unmap-wraps': {
    layer: 'kernel',
    incident: 'IN-18',
    effect: 'an unmap that took the last page of the address space goes on at 0',
    differs: 'the guard of iopt_unmap_iova_range removed: what type1 had',
  },
  'iommufd.change-process-unchecked': {
    layer: 'kernel',
    incident: 'IN-31',
    effect: 'IOAS_CHANGE_PROCESS takes an area that is still being mapped for one that has pages',
  },
  'iommufd.split-stale-tree': {
    layer: 'kernel',
    incident: 'IN-33',
    effect: 'an area that was cut stays in the tree of its pages, and its parts are not put there',
  },
  'vmm.dirty-log-lost': { layer: 'vmm', effect: 'a write of a vCPU is missing from the dirty log' },
  'vmm.dirty-bitmap-lost': { layer: 'vmm', effect: 'pages that devices wrote are asked for and forgotten' },
  'vmm.page-skipped': { layer: 'vmm', effect: 'a batch of pages is sent and not stored' },
  'vmm.preflight-blind': { layer: 'vmm', effect: 'a dry run looks at nothing on the destination' },
  'vmm.blockers-ignored': { layer: 'vmm', effect: 'a migration starts although something blocks it' },
  'vmm.busy-ignored': { layer: 'vmm', effect: 'a guest that is being migrated takes devices and memory' },
  'vmm.cancel-ignored': { layer: 'vmm', effect: 'a migration that was cancelled goes on' },
  'vmm.convergence-blind': {
    layer: 'vmm',
    effect: 'what is left to send is taken for nothing: the guest is stopped after the first round',
  },
  'vmm.ack-ignored': {
    layer: 'vmm',
    effect: "the guest is stopped before the destination has the devices' initial data",
  },
  'vmm.p2p-skipped': {
    layer: 'vmm',
    effect: 'devices are stopped one by one, none is made to leave its peers alone first',
  },
  'vmm.quiesce-skipped': { layer: 'vmm', effect: 'devices that leave at the stop keep their bus mastering' },
  'vmm.state-skipped': { layer: 'vmm', effect: 'the state of a device is not loaded' },
  'vmm.config-skipped': { layer: 'vmm', effect: 'the configuration space of a device is not restored' },
  'vmm.irq-lost': { layer: 'vmm', effect: 'interrupts that waited for the guest when it stopped are not taken along' },
  'vmm.rollback-skipped': { layer: 'vmm', effect: 'after a failed migration the devices stay stopped' },
  'vmm.vsmmu-unchecked': {
    layer: 'vmm',
    effect: 'a device behind an SMMU that cannot keep what the virtual SMMU promised is taken',
  },
  'vmm.checksum-skipped': { layer: 'vmm', effect: 'the checksums of the migration stream are not looked at' },
  'link.damage': { layer: 'link', effect: 'a message of the migration stream arrives with a bit turned' },
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
  /** Those that stay as they are. */
  readonly #held = new Set<FaultId>();
  readonly #onStrike: (id: FaultId) => void;

  /** `onStrike` is told of every call that a fault strikes. */
  constructor(onStrike: (id: FaultId) => void = () => undefined) {
    this.#onStrike = onStrike;
  }

  /** Switches a fault on (again: starts counting anew). */
  arm(id: FaultId, rule: FaultRule = {}): void {
    if (this.#held.has(id)) return;
    this.#armed.set(id, { calls: 0, skip: rule.skip ?? 0, count: rule.count ?? Infinity });
  }

  /** Switches a fault on for whoever injects it: from now on neither {@link arm} nor {@link disarm} changes anything about it. */
  hold(id: FaultId, rule: FaultRule): void {
    this.arm(id, rule);
    this.#held.add(id);
  }

  /** Whether {@link hold} was asked for a fault. */
  isHeld(id: FaultId): boolean {
    return this.#held.has(id);
  }

  /** How often a switched-on fault could have struck since it was switched on. */
  calls(id: FaultId): number {
    return this.#armed.get(id)?.calls ?? 0;
  }

  disarm(id: FaultId): void {
    if (!this.#held.has(id)) this.#armed.delete(id);
  }

  /** Whether hardware has been broken on purpose: what it does then is what the run is about. */
  get isHardwareBroken(): boolean {
    return [...this.#armed.keys()].some((id) => FAULTS[id].layer === 'hardware');
  }

  /** Counts a call and says whether the fault strikes it. */
  fires(id: FaultId): boolean {
    const armed = this.#armed.get(id);
    if (armed === undefined) return false;
    const call = armed.calls++;
    // Which of several calls it strikes is a matter of order.
    if (armed.skip > 0 || armed.count < Infinity) sharedWrite(this, id, call, armed.calls);
    const strikes = call >= armed.skip && call < armed.skip + armed.count;
    if (strikes) this.#onStrike(id);
    return strikes;
  }
}
