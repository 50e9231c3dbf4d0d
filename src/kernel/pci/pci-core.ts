/**
 * The PCI core: devices the kernel knows, their drivers, hot-plug.
 *
 * Functions found at boot become devices in the order of their addresses, join IOMMU groups and get the driver that
 * firmware's description names, or whichever a user asks for through `driver_override` and sysfs. Drivers here: `vfio-pci`,
 * `pci-stub`, the variant `iovaduct-vfio-pci` for cards that can migrate, and any other name, which stands for an ordinary driver that uses the DMA API.
 *
 * A card that is asked for back leaves when its driver has let go: vfio-pci holds on to a device while its descriptor is
 * open (VFIO's remove waits), everything else lets go at once. Until then the device goes on working.
 *
 * Lock: each device's `pci:device_lock` covers its driver, over all of bind and unbind; taken inside a slot's lock and outside
 * `group.mutex`. A device that is leaving takes no driver any more.
 *
 * Source: Linux drivers/pci/probe.c, pci-driver.c, hotplug/pciehp; domain.md A2.20, A6.16; oracle/linux README (hot-plug 9).
 */
import type { Board } from '../../hardware/board.js';
import type { PciFunction } from '../../hardware/pcie/function.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { Mutex } from '../../runtime/locks.js';
import type { Task } from '../../runtime/task.js';
import { EBUSY, EINVAL, ENODEV, ENOENT, ERANGE } from '../../uapi/errno.js';
import {
  PCI_CAP_ID_EXP,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_EXP_SLTCTL,
  PCI_EXT_CAP_ID_SRIOV,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_MFD,
  PCI_SRIOV_CTRL,
  PCI_SRIOV_NUM_VF,
  PCI_SRIOV_TOTAL_VF,
} from '../../uapi/pci-regs.js';
import type { Device } from '../device.js';
import { iommu_device_unuse_default_domain, iommu_device_use_default_domain } from '../iommu/group.js';
import type { IommuCore } from '../iommu/iommu.js';
import type { IrqCore } from '../irq.js';
import type { VfioCore } from '../vfio/vfio-core.js';
import { VfioMigration } from '../vfio/migration.js';
import { AcsPolicy } from './acs.js';
import { dmaAliases } from './dma-alias.js';

export const VFIO_PCI = 'vfio-pci';
/** vfio-pci with migration for the cards that can. */
export const VARIANT_VFIO_PCI = 'iovaduct-vfio-pci';
export const PCI_STUB = 'pci-stub';
const VFIO_DRIVERS = [VFIO_PCI, VARIANT_VFIO_PCI];
/** Drivers that do no DMA through the DMA API, or arrange for it themselves (`driver_managed_dma`). */
const MANAGE_OWN_DMA = [...VFIO_DRIVERS, PCI_STUB, 'pcieport', 'shpchp'];
const CLASS_BRIDGE_PCI = 0x060400;
/** Power Controller Control of Slot Control: 0 is on. */
const POWER_ON = 0;
const POWER_OFF = 1;
/** Data Link Layer becomes active and the card may be talked to (PCIe 6.6.1: 100 ms; shortened). */
const LINK_UP_NS = 100_000;
const VF_ENABLE = 0x01;
const VF_MEMORY = 0x08;
/**
 * Built-in drivers that try a function and may not take it: shpchp every PCI bridge, intel-agp the host bridges it knows. A
 * function is configured for DMA before its driver looks at it, so trying is enough for a group.
 */
const AGP_HOST_BRIDGES: readonly { readonly vendor: number; readonly device: number }[] = [
  { vendor: 0x8086, device: 0x29c0 },
];

/** Devices of a host. */
export class PciCore {
  readonly #runtime: NodeRuntime;
  readonly #board: Board;
  readonly #iommu: IommuCore;
  readonly #irq: IrqCore;
  readonly #vfio: VfioCore;
  readonly #acs: AcsPolicy;
  readonly #devices = new Map<string, Device>();
  readonly #deviceLocks = new WeakMap<Device, Mutex>();
  /** Devices that leave, or have left (`device_private.dead`). */
  readonly #dead = new WeakSet<Device>();
  /** Slots that work on an event (pciehp has a thread a slot), by the slot's port, or the card where there is none. */
  readonly #slotLocks = new Map<string, Mutex>();
  /** Slots whose card is leaving, and whether it has been torn out meanwhile. */
  readonly #leaving = new Map<string, { isGone: boolean }>();

  constructor(runtime: NodeRuntime, board: Board, iommu: IommuCore, irq: IrqCore, vfio: VfioCore) {
    this.#runtime = runtime;
    this.#board = board;
    this.#iommu = iommu;
    this.#irq = irq;
    this.#vfio = vfio;
    this.#acs = new AcsPolicy(board.description);
    board.onHotplug((bdf, what) => {
      const task = this.#slotEvent(bdf, what);
      if (task !== undefined) runtime.spawn(`pciehp/${bdf}`, task);
    });
  }

  /** Devices by name. */
  get devices(): readonly Device[] {
    return [...this.#devices.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  device(name: string): Device | undefined {
    return this.#devices.get(name);
  }

  /**
   * Finds what is there at boot, in bus order, which is the order of the numbers that firmware gave. Then drivers: those for
   * bridges and others built in first, which gives bridges their groups before what is below them.
   */
  *enumerate(): Task<void> {
    const present = [...this.#board.functions.values()]
      .filter((fn) => fn.isPresent)
      .sort((a, b) => (a.bdf < b.bdf ? -1 : 1));
    const isVirtual = (fn: PciFunction): boolean => fn.description.physfn !== undefined;
    for (const fn of present) if (!isVirtual(fn)) yield* this.#register(fn);
    for (const device of this.devices) if (device.function.isBridge) yield* this.#probeBuiltIn(device);
    for (const device of this.devices) yield* this.#probeBuiltIn(device);
    for (const device of this.devices) yield* this.probe(device);
    for (const fn of present) if (isVirtual(fn)) yield* this.#add(fn);
    for (const device of this.devices) yield* this.#enableVirtualFunctions(device);
  }

  /** Binds a device to the driver `driver_override` names, or the one it had at boot: 0 or -errno. */
  *probe(device: Device): Task<number> {
    const driver = device.driverOverride ?? device.function.description.driver;
    if (device.driver !== undefined || driver === undefined) return 0;
    return yield* this.bind(device, driver);
  }

  /**
   * Binds a device to a driver: 0, -EBUSY it has one or its group is owned by user space, -EINVAL a bridge to vfio-pci, -ENODEV it is
   * leaving.
   */
  *bind(device: Device, driver: string): Task<number> {
    return yield* locked(this.#lockOf(device), this.#reallyProbe(device, driver));
  }

  *#reallyProbe(device: Device, driver: string): Task<number> {
    if (this.#dead.has(device)) return -ENODEV;
    if (device.driver !== undefined) return -EBUSY;
    // vfio_pci_core_register_device: only endpoints.
    if (VFIO_DRIVERS.includes(driver) && device.function.isBridge) return -EINVAL;
    if (driver === VARIANT_VFIO_PCI && device.function.migration === undefined) return -ENODEV;
    yield 'pci:bind';
    yield* this.#configureDma(device);
    if (VFIO_DRIVERS.includes(driver)) {
      const unit = driver === VARIANT_VFIO_PCI ? device.function.migration : undefined;
      this.#vfio.register(
        device,
        unit && new VfioMigration(this.#runtime, device.name, unit, () => device.function.isPresent),
      );
    } else if (!MANAGE_OWN_DMA.includes(driver)) {
      const rc = yield* iommu_device_use_default_domain(device);
      if (rc < 0) return rc;
      device.function.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    }
    device.driver = driver;
    this.#runtime.emit('pci.bind', { device: device.name, driver });
    return 0;
  }

  /** Takes a device from its driver: 0, -ENODEV it has none. Waits while user space has a vfio-pci device open. */
  *unbind(device: Device): Task<number> {
    return yield* locked(this.#lockOf(device), this.#releaseDriver(device));
  }

  *#releaseDriver(device: Device): Task<number> {
    const driver = device.driver;
    if (driver === undefined) return -ENODEV;
    if (VFIO_DRIVERS.includes(driver)) yield* this.#vfio.unregister(device);
    else if (!MANAGE_OWN_DMA.includes(driver)) {
      device.function.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
      yield* iommu_device_unuse_default_domain(device);
    }
    device.driver = undefined;
    this.#runtime.emit('pci.unbind', { device: device.name, driver });
    return 0;
  }

  #lockOf(device: Device): Mutex {
    const lock = this.#deviceLocks.get(device) ?? new Mutex('pci:device_lock');
    this.#deviceLocks.set(device, lock);
    return lock;
  }

  /** `sriov_numvfs`: 0 or -errno as the kernel's store function: EBUSY while there are some, ERANGE beyond TotalVFs, ENOENT when
   * no driver that could give them has it, EINVAL without SR-IOV. */
  *setVirtualFunctions(device: Device, count: number): Task<number> {
    const fn = device.function;
    const at = fn.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    if (at === 0) return -EINVAL;
    if (count > fn.configRead(at + PCI_SRIOV_TOTAL_VF, 2)) return -ERANGE;
    const now = fn.configRead(at + PCI_SRIOV_NUM_VF, 2);
    if (count === now) return 0;
    if (device.driver === undefined || MANAGE_OWN_DMA.includes(device.driver)) return -ENOENT;
    if (count > 0 && now > 0) return -EBUSY;
    yield* this.#changeVirtualFunctions(device, count);
    return 0;
  }

  *#changeVirtualFunctions(device: Device, count: number): Task<void> {
    const fn = device.function;
    const at = fn.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    if (count === 0) for (const vf of fn.virtualFunctions) yield* this.#leave(vf.bdf);
    fn.configWrite(at + PCI_SRIOV_NUM_VF, 2, count);
    fn.configWrite(at + PCI_SRIOV_CTRL.offset, 2, count > 0 ? VF_ENABLE | VF_MEMORY : 0);
    for (const vf of fn.virtualFunctions) if (vf.isPresent) yield* this.#add(vf);
    this.#runtime.emit('pci.sriov', { device: device.name, count });
  }

  *#enableVirtualFunctions(device: Device): Task<void> {
    const { sriov } = device.function.description;
    if (sriov !== undefined && sriov.numVfs > 0) yield* this.#changeVirtualFunctions(device, sriov.numVfs);
  }

  *#add(fn: PciFunction): Task<void> {
    const device = yield* this.#register(fn);
    yield* this.#probeBuiltIn(device);
    yield* this.probe(device);
  }

  /** A device appears on its bus (pci_device_add). */
  *#register(fn: PciFunction): Task<Device> {
    const bridge = this.#board.bridgeOf(fn);
    const above = bridge.fabric.parentOf(fn);
    const isVirtual = fn.description.physfn !== undefined;
    const slot = fn.bdf.slice(0, -1);
    const draft: Device = {
      name: fn.bdf,
      function: fn,
      parent: above === undefined ? undefined : this.#devices.get(above.bdf),
      isMultifunction:
        !isVirtual &&
        ((fn.configRead(PCI_HEADER_TYPE, 1) & PCI_HEADER_TYPE_MFD) !== 0 ||
          (!fn.bdf.endsWith('0') && bridge.functions.some((other) => other !== fn && other.bdf.startsWith(slot)))),
      busMates: () => this.devices.filter((other) => other.function !== fn && other.function.bus === fn.bus),
      streamIds: [],
      iommu: bridge.streamOf(fn.requesterId)?.iommu,
      msiController: bridge.doorbellOf(fn)?.name,
      msiDeviceId: fn.requesterId,
      driver: undefined,
      driverOverride: undefined,
      group: undefined,
    };
    const aliases = dmaAliases(draft).map(({ requesterId }) => requesterId);
    const seenAs = aliases.at(-1) ?? fn.requesterId;
    const device: Device = {
      ...draft,
      streamIds: aliases.flatMap((id) => bridge.streamOf(id)?.id ?? []),
      msiDeviceId: bridge.doorbellOf(fn, seenAs)?.id ?? seenAs,
    };
    this.#devices.set(fn.bdf, device);
    this.#acs.setUp(device);
    if (!this.#iommu.isGroupedAtBind(device)) yield* this.#joinGroup(device);
    return device;
  }

  *#joinGroup(device: Device): Task<void> {
    const rc = yield* this.#iommu.addDevice(device);
    if (rc < 0) this.#runtime.emit('pci.no-iommu-group', { device: device.name, errno: -rc });
  }

  /** A driver is about to look at the device (pci_dma_configure). */
  *#configureDma(device: Device): Task<void> {
    if (this.#iommu.isGroupedAtBind(device)) yield* this.#joinGroup(device);
    this.#acs.isRequested ||= device.iommu !== undefined;
  }

  /** Drivers that are built in come first: of bridges, and those that only try. */
  *#probeBuiltIn(device: Device): Task<void> {
    const { vendor, device: id, classCode } = device.function.description;
    const isBridge = classCode === CLASS_BRIDGE_PCI;
    if (isBridge || AGP_HOST_BRIDGES.some((known) => known.vendor === vendor && known.device === id))
      yield* this.#configureDma(device);
    if (isBridge) yield* this.probe(device);
  }

  /** What is done about an event; undefined when it only changes what is being done already. One after the other in a slot. */
  #slotEvent(bdf: string, what: 'present' | 'absent' | 'gone'): Task<void> | undefined {
    const fn = this.#board.functions.get(bdf);
    if (fn === undefined) return undefined;
    const key = this.#board.slotOf(fn)?.port.bdf ?? bdf;
    const lock = this.#slotLocks.get(key) ?? new Mutex(`pciehp:${key}`);
    this.#slotLocks.set(key, lock);
    if (what === 'gone') this.#runtime.emit('pciehp.surprise-removal', { device: bdf });
    const leaving = this.#leaving.get(key);
    if (what !== 'present' && leaving !== undefined) {
      leaving.isGone ||= what === 'gone';
      return undefined;
    }
    if (what !== 'present') this.#leaving.set(key, { isGone: what === 'gone' });
    const act = what === 'present' ? this.#cardPresent(fn) : this.#cardLeaves(fn, key);
    return locked(lock, act);
  }

  /** A card is in a slot: power it, wait for the link, and scan (pciehp_enable_slot). */
  *#cardPresent(fn: PciFunction): Task<void> {
    yield 'pciehp:present';
    yield* this.#controlSlot(fn, POWER_ON);
    for (const mate of this.#board.slotMates(fn))
      if (mate.isPresent && !this.#devices.has(mate.bdf)) yield* this.#add(mate);
  }

  /**
   * Asked for back, or gone already (pciehp_disable_slot); what is deepest leaves first. An orderly removal ends with the slot off and
   * the card in hand.
   */
  *#cardLeaves(fn: PciFunction, key: string): Task<void> {
    yield 'pciehp:absent';
    for (const mate of this.#board.slotMates(fn).reverse()) {
      for (const vf of mate.virtualFunctions) yield* this.#leave(vf.bdf);
      yield* this.#leave(mate.bdf);
    }
    yield* this.#controlSlot(fn, POWER_OFF);
    const isGone = this.#leaving.get(key)?.isGone === true;
    this.#leaving.delete(key);
    if (!isGone) this.#board.remove(fn.bdf);
  }

  /** Clears what changed in the slot and switches its power, as the port's driver. */
  *#controlSlot(fn: PciFunction, power: 0 | 1): Task<void> {
    const slot = this.#board.slotOf(fn);
    if (slot === undefined) return;
    const at = slot.port.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_SLTCTL.offset;
    const word = [slot.port.configRead(at, 4)];
    slot.port.configWrite(at + 2, 2, (word[0] ?? 0) >>> 16);
    PCI_EXP_SLTCTL.set(word, 'PCC', power);
    PCI_EXP_SLTCTL.set(word, 'PIC', power === POWER_ON ? 1 : 3);
    slot.port.configWrite(at, 2, (word[0] ?? 0) & 0xffff);
    yield LINK_UP_NS;
  }

  *#leave(bdf: string): Task<void> {
    const device = this.#devices.get(bdf);
    if (device === undefined) return;
    this.#dead.add(device);
    yield* this.unbind(device);
    yield* this.#irq.forget(device);
    yield* this.#iommu.removeDevice(device);
    this.#devices.delete(bdf);
  }
}

function* locked<T>(lock: Mutex, act: Task<T>): Task<T> {
  yield* lock.lock();
  const result = yield* act;
  lock.unlock();
  return result;
}
