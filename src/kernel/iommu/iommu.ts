/**
 * The IOMMU core of a host's kernel: its IOMMUs, groups, and what devices are told.
 *
 * `probe` starts a driver for every IOMMU of the description before any device is added. Devices join groups (as topology and
 * ACS ask, pci-group.ts; numbers are handed out lowest free first), get the default domain and, where firmware asks for it,
 * identity mappings. Interrupt lines of the IOMMUs end here.
 *
 * Ownership: groups and default domains belong to the core; domains of user space to iommufd. A group and its default domain last as
 * long as somebody refers to it: each member, and a device from the moment in which it finds the group.
 *
 * Locks: `iommu:probe_lock` makes devices come one after the other, from the driver's first look to the default domain, so that
 * what one has found another does not make; inside it `group.mutex`.
 *
 * Source: Linux drivers/iommu/iommu.c, dma-iommu.c; domain.md A1.30, A1.37, B1, A4.50-A4.54.
 */
import type { Arena } from '../../core/arena.js';
import type { HostDescription, MsiControllerDescription, SmmuDescription } from '../../hardware/description.js';
import type { LegalityChecker } from '../../hardware/smmu/legality.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { Mutex } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import { ENODEV } from '../../uapi/errno.js';
import type { Device } from '../device.js';
import { ArmSmmuV3 } from './arm-smmu-v3/driver.js';
import type { MmioPort } from './arm-smmu-v3/registers.js';
import { DmaCookie } from './dma-iommu.js';
import type { IommuDriver } from './domain.js';
import { defaultDomainType, driverRegions, groupsAtBind, groupsByStream } from './flavours.js';
import { iommu_get_group_resv_regions, iommu_get_resv_regions, IommuGroup, setGroupDomain } from './group.js';
import { pci_device_group } from './pci-group.js';
import { reservedRegionsText, type ResvRegion } from './resv-regions.js';

/** What the core needs of the board: memory the hardware sees, CPU access to registers, interrupt wires of IOMMUs. */
export interface IommuBoard {
  readonly arena: Arena;
  readonly bus: MmioPort;
  /** Who watches what is written for an SMMU to read. */
  legalityOf(smmu: string): LegalityChecker | undefined;
  onSmmuIrq(handler: (smmu: string, line: string) => void): void;
}

/** The IOMMU subsystem of one host. */
export class IommuCore {
  readonly #runtime: NodeRuntime;
  readonly #board: IommuBoard;
  readonly #description: HostDescription;
  readonly #drivers = new Map<string, ArmSmmuV3>();
  /** By number; holes are free numbers. */
  readonly #groups: (IommuGroup | undefined)[] = [];
  /** Those that came to an IOMMU, grouped or about to be, in order of arrival. */
  readonly #devices: Device[] = [];
  readonly #cookies = new Map<IommuGroup, DmaCookie>();
  readonly #probeLock = new Mutex('iommu:probe_lock');

  constructor(runtime: NodeRuntime, board: IommuBoard, description: HostDescription) {
    this.#runtime = runtime;
    this.#board = board;
    this.#description = description;
  }

  /** Groups by number. */
  get groups(): readonly IommuGroup[] {
    return this.#groups.filter((group) => group !== undefined);
  }

  /** Drivers by the name of their IOMMU. */
  get drivers(): readonly IommuDriver[] {
    return [...this.#drivers.values()];
  }

  /** Starts the driver of every IOMMU. */
  *probe(): Task<void> {
    const { pageShift, iommus } = this.#description;
    const { arena, bus } = this.#board;
    const legality = (smmu: string): LegalityChecker | undefined => this.#board.legalityOf(smmu);
    const host = { runtime: this.#runtime, arena, bus, pageShift, legality };
    this.#board.onSmmuIrq((smmu, line) => this.#drivers.get(smmu)?.interrupt(line));
    for (const description of iommus) {
      const driver = new ArmSmmuV3(host, description);
      this.#drivers.set(description.name, driver);
      yield* driver.start();
    }
  }

  // --- devices and groups ---

  /** Whether a device gets its group only when a driver is bound to it. */
  isGroupedAtBind(device: Device): boolean {
    const iommu = this.#iommuOf(device);
    return iommu !== undefined && groupsAtBind(iommu, this.#description);
  }

  /** A device appears: it joins a group and gets its default domain. 0 (also without an IOMMU, or when it has one) or -errno. */
  *addDevice(device: Device): Task<number> {
    const iommu = this.#iommuOf(device);
    if (iommu === undefined) return 0;
    const driver = this.#drivers.get(iommu.name);
    if (driver === undefined) return -ENODEV;
    yield* this.#probeLock.lock();
    const rc = device.group === undefined ? yield* this.#probeDevice(device, iommu, driver) : 0;
    this.#probeLock.unlock();
    return rc;
  }

  *#probeDevice(device: Device, iommu: SmmuDescription, driver: ArmSmmuV3): Task<number> {
    const rc = yield* driver.probe_device(device);
    if (rc < 0) return rc;
    sharedWrite(this, 'devices');
    this.#devices.push(device);
    const group = this.#groupFor(device, iommu);
    yield* group.mutex.lock();
    const resvRegions = driverRegions(iommu, device, this.#description);
    group.add({ device, driver, resvRegions, hasIsolatedMsi: this.#hasIsolatedMsi(device) });
    device.group = group;
    const attached = yield* this.#joinDomain(group, device);
    if (attached < 0) {
      yield* this.#leave(group, device);
      return attached;
    }
    group.mutex.unlock();
    this.#runtime.emit('iommu.add-device', { device: device.name, group: group.id, iommu: driver.name });
    return 0;
  }

  /** A device leaves; the group's last reference takes the group along. */
  *removeDevice(device: Device): Task<void> {
    const { group } = device;
    if (group === undefined) return;
    yield* group.mutex.lock();
    yield* this.#leave(group, device);
  }

  /** Takes a device out of its group, whose mutex is held and given back. */
  *#leave(group: IommuGroup, device: Device): Task<void> {
    const { driver } = group.member(device);
    group.remove(device);
    const isOwned = group.members.length === 0 && group.ownerCount > 0;
    invariant(!isOwned, () => `${device.name} goes, the last of its group, which is owned`, 'objects');
    device.group = undefined;
    sharedWrite(this, 'devices');
    this.#devices.splice(this.#devices.indexOf(device), 1);
    const isEarly = group.users === 1 && this.#runtime.faults.fires('smmu.tables-freed-early');
    if (isEarly) yield* this.#freeGroup(group);
    yield* driver.release_device(device);
    group.mutex.unlock();
    group.users--;
    if (group.users === 0 && !isEarly) yield* this.#freeGroup(group);
    this.#runtime.emit('iommu.remove-device', { device: device.name, group: group.id });
  }

  /** The first member makes the default domain; later ones get whatever the group translates through. */
  *#joinDomain(group: IommuGroup, device: Device): Task<number> {
    const { driver, resvRegions } = group.member(device);
    if (group.defaultDomain === undefined) {
      if (group.defaultType === 'identity') {
        group.defaultDomain = driver.identityDomain;
      } else {
        const domain = yield* driver.domain_alloc_default(device);
        if (typeof domain === 'number') return domain;
        group.defaultDomain = domain;
        this.#cookies.set(group, new DmaCookie(domain));
      }
    }
    const direct = yield* this.#cookies.get(group)?.mapDirect(resvRegions) ?? succeed();
    if (direct < 0) return direct;
    if (group.domain === undefined) return yield* setGroupDomain(group, group.defaultDomain);
    return yield* driver.attach_dev(group.domain, device);
  }

  *#freeGroup(group: IommuGroup): Task<void> {
    yield* this.#cookies.get(group)?.domain.free() ?? succeed();
    sharedWrite(this, 'groups');
    this.#cookies.delete(group);
    this.#groups[group.id] = undefined;
  }

  #iommuOf(device: Device): SmmuDescription | undefined {
    return this.#description.iommus.find((iommu) => iommu.name === device.iommu);
  }

  /** The group that a device belongs to, with a reference for it. */
  #groupFor(device: Device, iommu: SmmuDescription): IommuGroup {
    sharedRead(this, 'devices');
    const shared = groupsByStream(iommu)
      ? this.#devices.find((other) => other.group !== undefined && hasCommonStream(other, device))
      : undefined;
    const known = shared?.group ?? pci_device_group(device, this.#devices);
    if (known !== undefined) {
      known.users++;
      return known;
    }
    sharedWrite(this, 'groups');
    const free = this.#groups.findIndex((group) => group === undefined);
    const id = free < 0 ? this.#groups.length : free;
    const group = new IommuGroup(id, defaultDomainType(iommu, this.#description));
    group.users++;
    this.#groups[id] = group;
    return group;
  }

  #msiController(device: Device): MsiControllerDescription | undefined {
    return this.#description.msiControllers.find((controller) => controller.name === device.msiController);
  }

  #hasIsolatedMsi(device: Device): boolean {
    return this.#msiController(device)?.isolated ?? false;
  }

  // --- what sysfs shows ---

  /** The text of a group's `reserved_regions`. */
  reservedRegionsText(group: IommuGroup): string {
    return reservedRegionsText(iommu_get_group_resv_regions(group));
  }

  /** The text of a group's `type`, without the newline. */
  groupTypeText(group: IommuGroup): string {
    return group.defaultType;
  }

  // --- interrupts ---

  /**
   * The address a device writes to reach an MSI doorbell: the doorbell's own where the device's writes are not translated
   * or its driver reports the doorbell as a hardware MSI region (cookie_init_hw_msi_region), else an IOVA that is mapped to it
   * now. -errno when that cannot be had.
   */
  *iommu_dma_prepare_msi(device: Device, doorbellPa: number): Task<bigint | number> {
    const { group } = device;
    if (group === undefined || isHardwareMsi(iommu_get_resv_regions(device), doorbellPa)) return BigInt(doorbellPa);
    yield* group.mutex.lock();
    try {
      if (group.attachHandle !== undefined) return yield* group.attachHandle.prepare_msi(device, doorbellPa);
      const cookie = this.#cookies.get(group);
      if (cookie === undefined || group.domain !== cookie.domain) return BigInt(doorbellPa);
      invariant(group.domain === group.defaultDomain, 'iommu: a DMA domain that is not the default one');
      return yield* cookie.prepareMsi(doorbellPa, iommu_get_group_resv_regions(group));
    } finally {
      group.mutex.unlock();
    }
  }
}

function isHardwareMsi(regions: readonly ResvRegion[], doorbellPa: number): boolean {
  const at = BigInt(doorbellPa);
  return regions.some(({ type, start, last }) => type === 'msi' && start <= at && at <= last);
}

function hasCommonStream(a: Device, b: Device): boolean {
  return a.iommu === b.iommu && a.streamIds.some((id) => b.streamIds.includes(id));
}

function* succeed(): Task<number> {
  return 0;
}
