/**
 * IOMMU groups: devices that cannot be told apart, or kept apart, by the IOMMU; what they translate through and who owns
 * their DMA.
 *
 * A group is in one domain at a time. Ordinary drivers use the default domain; a user-space owner (an iommufd, a VFIO
 * group) claims the whole group, which then sits in the blocking domain until the owner attaches a domain of its own.
 *
 * Lock: `group.mutex` covers the domain, the owner and the members; taken inside iommufd's igroup lock and outside the
 * driver's locks. Invariants: `ownerCount` > 0 with no `owner` means drivers use the default domain; all members are in
 * `domain` (domain.md INV-8).
 *
 * Source: Linux drivers/iommu/iommu.c; domain.md A1.30, A2.20.
 */
import { Mutex } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { asChecker, sharedRead, sharedTest, sharedUpdate, sharedWrite } from '../../runtime/watch.js';
import { EBUSY, EINVAL, EOPNOTSUPP, EPERM } from '../../uapi/errno.js';
import type { Device } from '../device.js';
import type { IommuDomain, IommuDriver, PageRequest, PagingDomain } from './domain.js';
import { mergeResvRegions, type ResvRegion } from './resv-regions.js';

/** What the IOMMU core keeps for a device (`struct dev_iommu`). */
export interface GroupMember {
  readonly device: Device;
  readonly driver: IommuDriver;
  readonly resvRegions: readonly ResvRegion[];
  /** Its MSI writes cannot raise other devices' interrupts (`msi_device_has_isolated_msi`). */
  readonly hasIsolatedMsi: boolean;
}

/** Whoever attached a domain of its own (`struct iommu_attach_handle`). */
export interface AttachHandle {
  /** What is attached. */
  readonly domain: IommuDomain;
  /** Takes a page request of a device; absent: nobody answers, the request fails. */
  handle_fault?(device: Device, request: PageRequest): void;
  /** `sw_msi`: makes a doorbell reachable and answers the address the device is to write, or -errno. */
  prepare_msi(device: Device, doorbellPa: number): Task<bigint | number>;
}

/** The type sysfs prints for a group: that of its default domain. */
export type DefaultDomainType = 'DMA' | 'DMA-FQ' | 'identity';

/** A group of devices. */
export class IommuGroup {
  readonly id: number;
  readonly defaultType: DefaultDomainType;
  readonly mutex = new Mutex('iommu:group_mutex');
  readonly #members: GroupMember[] = [];
  #domain: IommuDomain | undefined;
  defaultDomain: IommuDomain | PagingDomain | undefined;
  #attachHandle: AttachHandle | undefined;
  /** What PASIDs of the group's devices use. */
  readonly pasids = new Map<number, AttachHandle>();
  #owner: object | undefined;
  #ownerCount = 0;
  #users = 0;
  /** Moves to other domains so far, and whether one is under way. */
  moves = 0;
  isMoving = false;

  constructor(id: number, defaultType: DefaultDomainType) {
    this.id = id;
    this.defaultType = defaultType;
  }

  /** Where DMA of the group's devices is translated now. */
  get domain(): IommuDomain | undefined {
    sharedRead(this, 'domain', this.#domain);
    return this.#domain;
  }

  set domain(value: IommuDomain | undefined) {
    sharedWrite(this, 'domain', this.#domain, value);
    this.#domain = value;
  }

  get attachHandle(): AttachHandle | undefined {
    sharedRead(this, 'attachHandle', this.#attachHandle);
    return this.#attachHandle;
  }

  set attachHandle(value: AttachHandle | undefined) {
    sharedWrite(this, 'attachHandle', this.#attachHandle, value);
    this.#attachHandle = value;
  }

  get owner(): object | undefined {
    sharedRead(this, 'owner', this.#owner);
    return this.#owner;
  }

  set owner(value: object | undefined) {
    sharedWrite(this, 'owner', this.#owner, value);
    this.#owner = value;
  }

  get ownerCount(): number {
    sharedRead(this, 'ownerCount', this.#ownerCount);
    return this.#ownerCount;
  }

  set ownerCount(value: number) {
    sharedWrite(this, 'ownerCount', this.#ownerCount, value);
    this.#ownerCount = value;
  }

  /** References of members and of devices that are about to be (of the group's kobject). */
  get users(): number {
    sharedTest(this, 'users', this.#users);
    return this.#users;
  }

  set users(value: number) {
    sharedUpdate(this, 'users', this.#users, value);
    this.#users = value;
  }

  get members(): readonly GroupMember[] {
    sharedRead(this, 'members');
    return this.#members;
  }

  get devices(): readonly Device[] {
    return this.members.map((member) => member.device);
  }

  /** The driver of the first member; a group never spans drivers. */
  get driver(): IommuDriver {
    const first = this.members[0];
    invariant(first !== undefined, () => `iommu group ${this.id} is empty`);
    return first.driver;
  }

  member(device: Device): GroupMember {
    const found = this.members.find((member) => member.device === device);
    invariant(found !== undefined, () => `${device.name} is not in iommu group ${this.id}`);
    return found;
  }

  add(member: GroupMember): void {
    sharedWrite(this, 'members');
    this.#members.push(member);
  }

  remove(device: Device): void {
    sharedWrite(this, 'members');
    this.#members.splice(this.#members.indexOf(this.member(device)), 1);
  }
}

/** Regions of one device (`iommu_get_resv_regions`). */
export function iommu_get_resv_regions(device: Device): readonly ResvRegion[] {
  return device.group?.member(device).resvRegions ?? [];
}

/** Regions of all devices of a group, sorted and merged (`iommu_get_group_resv_regions`). */
export function iommu_get_group_resv_regions(group: IommuGroup): ResvRegion[] {
  return mergeResvRegions(group.members.map((member) => member.resvRegions));
}

/** Whether no device of the group can raise foreign interrupts. */
export function iommu_group_has_isolated_msi(group: IommuGroup): boolean {
  return group.members.every((member) => member.hasIsolatedMsi);
}

/** A device that must keep a 1:1 mapping refuses to be blocked (`require_direct`). */
function requiresDirect(member: GroupMember): boolean {
  return member.resvRegions.some((region) => region.type === 'direct');
}

/** Every member is where its group is, as far as its driver can tell. @throws InvariantError INV-8 */
export function checkMembers({ domain, members }: IommuGroup): void {
  if (domain !== undefined) for (const { driver, device } of members) driver.checkAttached?.(domain, device);
}

/** Moves every member to a domain; on failure those moved go back. 0 or -errno. Hold the mutex. */
export function* setGroupDomain(group: IommuGroup, domain: IommuDomain): Task<number> {
  if (group.domain === domain) return 0;
  if (domain.type === 'blocked' && group.members.some(requiresDirect)) return -EINVAL;
  sharedWrite(group, 'moves', group.moves, group.moves + 1);
  group.moves++;
  group.isMoving = true;
  const rc = yield* moveMembers(group, domain);
  if (rc === 0) {
    group.domain = domain;
    checkMembers(group);
  }
  sharedWrite(group, 'moves', group.moves, group.moves);
  group.isMoving = false;
  return rc;
}

/** How often a group has been moved, for a checker; undefined while it is being moved, when whose domain it has cannot be told. */
export function settledMoves(group: IommuGroup): number | undefined {
  asChecker(() => sharedRead(group, 'moves', group.moves));
  return group.isMoving ? undefined : group.moves;
}

function* moveMembers(group: IommuGroup, domain: IommuDomain): Task<number> {
  const before = group.domain;
  for (const [i, member] of group.members.entries()) {
    const rc = yield* member.driver.attach_dev(domain, member.device);
    if (rc === 0) continue;
    for (const undo of group.members.slice(0, i)) {
      if (before !== undefined) yield* undo.driver.attach_dev(before, undo.device);
    }
    return rc;
  }
  return 0;
}

function* setGroupDomainNoFail(group: IommuGroup, domain: IommuDomain): Task<void> {
  const rc = yield* setGroupDomain(group, domain);
  invariant(rc === 0, () => `iommu group ${group.id}: return to its core domain failed with ${rc}`);
}

/** The domain a group without a user domain sits in: blocked while it is owned, else the default one. */
function coreDomain(group: IommuGroup): IommuDomain {
  if (group.owner !== undefined) return group.driver.blockedDomain;
  invariant(group.defaultDomain !== undefined, () => `iommu group ${group.id} has no default domain`);
  return group.defaultDomain;
}

/** A driver that uses the DMA API binds: 0, or -EBUSY while user space owns the group. */
export function* iommu_device_use_default_domain(device: Device): Task<number> {
  const group = device.group;
  if (group === undefined) return 0;
  yield* group.mutex.lock();
  sharedRead(group, 'pasids');
  const isForeign = group.domain !== group.defaultDomain || group.owner !== undefined || group.pasids.size > 0;
  const rc = group.ownerCount > 0 && isForeign ? -EBUSY : 0;
  if (rc === 0) group.ownerCount++;
  group.mutex.unlock();
  return rc;
}

/** Undoes {@link iommu_device_use_default_domain}. */
export function* iommu_device_unuse_default_domain(device: Device): Task<void> {
  const group = device.group;
  if (group === undefined) return;
  yield* group.mutex.lock();
  if (group.ownerCount > 0) group.ownerCount--;
  group.mutex.unlock();
}

function* takeOwnership(group: IommuGroup, owner: object): Task<number> {
  if (group.domain !== group.defaultDomain) return -EBUSY;
  const rc = yield* setGroupDomain(group, group.driver.blockedDomain);
  if (rc < 0) return rc;
  invariant(group.ownerCount === 0, () => `iommu group ${group.id} is claimed while drivers use it`, 'INV-8');
  group.owner = owner;
  group.ownerCount++;
  return 0;
}

/** Claims a group for one exclusive owner, e.g. a VFIO group: 0, -EPERM when anybody uses it, -EBUSY. */
export function* iommu_group_claim_dma_owner(group: IommuGroup, owner: object): Task<number> {
  yield* group.mutex.lock();
  const rc = group.ownerCount > 0 ? -EPERM : yield* takeOwnership(group, owner);
  group.mutex.unlock();
  return rc;
}

/** Undoes {@link iommu_group_claim_dma_owner}. */
export function* iommu_group_release_dma_owner(group: IommuGroup): Task<void> {
  yield* group.mutex.lock();
  yield* releaseOwnership(group);
  group.mutex.unlock();
}

function* releaseOwnership(group: IommuGroup): Task<void> {
  invariant(
    group.ownerCount > 0 && group.owner !== undefined,
    () => `iommu group ${group.id} released without an owner`,
  );
  group.ownerCount = 0;
  group.owner = undefined;
  yield* setGroupDomainNoFail(group, coreDomain(group));
}

/**
 * Claims the DMA of a device, and with it of its group; the same owner may claim further devices of the group. 0, -EPERM for
 * a second owner or while ordinary drivers use the group, -EBUSY, -EINVAL when firmware wants a 1:1 mapping kept.
 */
export function* iommu_device_claim_dma_owner(device: Device, owner: object): Task<number> {
  const group = device.group;
  if (group === undefined) return -EINVAL;
  yield* group.mutex.lock();
  let rc = 0;
  if (group.ownerCount === 0) rc = yield* takeOwnership(group, owner);
  else if (group.owner !== owner) rc = -EPERM;
  else group.ownerCount++;
  group.mutex.unlock();
  return rc;
}

/** Undoes {@link iommu_device_claim_dma_owner}; the last one returns the group to its default domain. */
export function* iommu_device_release_dma_owner(device: Device): Task<void> {
  const group = device.group;
  if (group === undefined) return;
  yield* group.mutex.lock();
  if (group.ownerCount > 1) group.ownerCount--;
  else yield* releaseOwnership(group);
  group.mutex.unlock();
}

/** Puts a group that is in its core domain into another: 0, -EBUSY, -EINVAL for a domain of another IOMMU. */
export function* iommu_attach_group_handle(domain: IommuDomain, group: IommuGroup, handle: AttachHandle): Task<number> {
  yield* group.mutex.lock();
  let rc = group.domain === coreDomain(group) || group.domain === group.defaultDomain ? 0 : -EBUSY;
  if (rc === 0) rc = yield* setGroupDomain(group, domain);
  if (rc === 0) group.attachHandle = handle;
  group.mutex.unlock();
  return rc;
}

/** Moves a group from one domain to another without a moment in between: 0 or -errno with nothing changed. */
export function* iommu_replace_group_handle(
  group: IommuGroup,
  domain: IommuDomain,
  handle: AttachHandle,
): Task<number> {
  yield* group.mutex.lock();
  const rc = yield* setGroupDomain(group, domain);
  if (rc === 0) group.attachHandle = handle;
  group.mutex.unlock();
  return rc;
}

/** Returns a group to its core domain. Until it is there the handle takes page requests, which the caller answers afterwards. */
export function* iommu_detach_group_handle(group: IommuGroup): Task<void> {
  yield* group.mutex.lock();
  yield* setGroupDomainNoFail(group, coreDomain(group));
  group.attachHandle = undefined;
  group.mutex.unlock();
}

/** Puts a PASID of every member that has PASIDs into a domain; on failure those done go back to `old`. */
function* setGroupPasid(group: IommuGroup, pasid: number, domain: IommuDomain, old: IommuDomain): Task<number> {
  const able = group.members.filter(({ driver, device }) => (driver.maxPasidLog2?.(device) ?? 0) > 0);
  for (const [i, { driver, device }] of able.entries()) {
    const rc = yield* driver.set_dev_pasid?.(domain, device, pasid) ?? unsupported();
    if (rc === 0) continue;
    for (const undo of able.slice(0, i)) yield* undo.driver.set_dev_pasid?.(old, undo.device, pasid) ?? unsupported();
    return rc;
  }
  return 0;
}

function* unsupported(): Task<number> {
  return -EOPNOTSUPP;
}

/** Checks that attaching and replacing a PASID share: 0, -EOPNOTSUPP, -EINVAL. */
function checkPasid(domain: IommuDomain, device: Device, group: IommuGroup, pasid: number): number {
  const { driver } = group.member(device);
  if (driver.set_dev_pasid === undefined) return -EOPNOTSUPP;
  if (domain.driver !== driver || pasid === 0) return -EINVAL;
  // Devices without PASIDs beside it issue none and are in nobody's way.
  const isTooLarge = ({ device: member }: GroupMember): boolean => {
    const bits = driver.maxPasidLog2?.(member) ?? 0;
    return bits > 0 ? pasid >= 2 ** bits : member === device;
  };
  return group.members.some(isTooLarge) ? -EINVAL : 0;
}

/** `iommu_attach_device_pasid`: 0, -EBUSY when the PASID is used, -EINVAL, -EOPNOTSUPP, what the driver says. */
export function* iommu_attach_device_pasid(
  domain: IommuDomain,
  device: Device,
  pasid: number,
  handle: AttachHandle,
): Task<number> {
  const { group } = device;
  if (group === undefined) return -EINVAL;
  yield* group.mutex.lock();
  let rc = checkPasid(domain, device, group, pasid);
  sharedWrite(group, 'pasids');
  if (rc === 0 && group.pasids.has(pasid)) rc = -EBUSY;
  if (rc === 0) rc = yield* setGroupPasid(group, pasid, domain, group.driver.blockedDomain);
  if (rc === 0) group.pasids.set(pasid, handle);
  group.mutex.unlock();
  return rc;
}

/** `iommu_replace_device_pasid`: as attach, with the old domain kept on failure; -EINVAL when the PASID is not used. */
export function* iommu_replace_device_pasid(
  domain: IommuDomain,
  device: Device,
  pasid: number,
  handle: AttachHandle,
): Task<number> {
  const { group } = device;
  if (group === undefined) return -EINVAL;
  yield* group.mutex.lock();
  sharedWrite(group, 'pasids');
  const old = group.pasids.get(pasid);
  let rc = checkPasid(domain, device, group, pasid);
  if (rc === 0 && old === undefined) rc = -EINVAL;
  if (rc === 0 && old !== undefined && old.domain !== domain)
    rc = yield* setGroupPasid(group, pasid, domain, old.domain);
  if (rc === 0) group.pasids.set(pasid, handle);
  group.mutex.unlock();
  return rc;
}

/** `iommu_detach_device_pasid` */
export function* iommu_detach_device_pasid(device: Device, pasid: number): Task<void> {
  const { group } = device;
  if (group === undefined) return;
  yield* group.mutex.lock();
  const { blockedDomain } = group.driver;
  yield* setGroupPasid(group, pasid, blockedDomain, blockedDomain);
  sharedWrite(group, 'pasids');
  group.pasids.delete(pasid);
  group.mutex.unlock();
}

/** `IOMMU_FAULT_PAGE_REQUEST_PASID_VALID` */
export const PAGE_REQUEST_PASID_VALID = 1;
/** `IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE` */
export const PAGE_REQUEST_LAST_PAGE = 2;

/**
 * `iommu_report_device_fault`: gives a page request to whoever attached the domain it came through. A PASID nobody attached belongs to
 * user space's own PASID table when the device is in a nested domain. What nobody takes is answered as invalid.
 */
export function iommu_report_device_fault(device: Device, request: PageRequest): void {
  const { group } = device;
  if (group === undefined) return;
  const hasPasid = (request.flags & PAGE_REQUEST_PASID_VALID) !== 0;
  sharedRead(group, 'pasids');
  const own = hasPasid ? group.pasids.get(request.pasid) : group.attachHandle;
  const handle = own ?? (group.attachHandle?.domain.type === 'nested' ? group.attachHandle : undefined);
  if (handle?.handle_fault === undefined) group.driver.page_response?.(device, request, PAGE_RESPONSE_INVALID);
  else handle.handle_fault(device, request);
}

const PAGE_RESPONSE_INVALID = 1;
