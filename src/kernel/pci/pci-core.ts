/**
 * The PCI core: devices the kernel knows, their drivers, hot-plug.
 *
 * Functions found at boot become devices in the order of their addresses, join IOMMU groups and get the driver that
 * firmware's description names, or whichever a user asks for through `driver_override` and sysfs. Drivers here: `vfio-pci`,
 * `pci-stub` and any other name, which stands for an ordinary driver that uses the DMA API.
 *
 * A card that is asked for back leaves when its driver has let go: vfio-pci holds on to a device while its descriptor is
 * open (VFIO's remove waits), everything else lets go at once. Until then the device goes on working.
 *
 * Source: Linux drivers/pci/probe.c, pci-driver.c, hotplug/pciehp; domain.md A2.20, A6.16; oracle/linux README (hot-plug 9).
 */
import type { Board } from '../../hardware/board.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { Task } from '../../runtime/task.js';
import { EBUSY, ENODEV } from '../../uapi/errno.js';
import type { Device } from '../device.js';
import { iommu_device_unuse_default_domain, iommu_device_use_default_domain } from '../iommu/group.js';
import type { IommuCore } from '../iommu/iommu.js';
import type { IrqCore } from '../irq.js';
import type { VfioCore } from '../vfio/vfio-core.js';

export const VFIO_PCI = 'vfio-pci';
export const PCI_STUB = 'pci-stub';

/** Devices of a host. */
export class PciCore {
  readonly #runtime: NodeRuntime;
  readonly #board: Board;
  readonly #iommu: IommuCore;
  readonly #irq: IrqCore;
  readonly #vfio: VfioCore;
  readonly #devices = new Map<string, Device>();

  constructor(runtime: NodeRuntime, board: Board, iommu: IommuCore, irq: IrqCore, vfio: VfioCore) {
    this.#runtime = runtime;
    this.#board = board;
    this.#iommu = iommu;
    this.#irq = irq;
    this.#vfio = vfio;
    board.onHotplug((bdf, what) => {
      runtime.spawn(`pciehp/${bdf}`, what === 'present' ? this.#arrive(bdf) : this.#leave(bdf));
    });
  }

  /** Devices by name. */
  get devices(): readonly Device[] {
    return [...this.#devices.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  device(name: string): Device | undefined {
    return this.#devices.get(name);
  }

  /** Finds what is there at boot. */
  *enumerate(): Task<void> {
    for (const bdf of [...this.#board.functions.keys()].sort()) {
      if (this.#board.functions.get(bdf)?.isPresent === true) yield* this.#add(bdf);
    }
  }

  /** Binds a device to the driver `driver_override` names, or the one it had at boot: 0 or -errno. */
  *probe(device: Device): Task<number> {
    const driver = device.driverOverride ?? device.function.description.driver;
    if (device.driver !== undefined || driver === undefined) return 0;
    return yield* this.bind(device, driver);
  }

  /** Binds a device to a driver: 0, -EBUSY it has one or its group is owned by user space. */
  *bind(device: Device, driver: string): Task<number> {
    if (device.driver !== undefined) return -EBUSY;
    yield 'pci:bind';
    if (driver === VFIO_PCI) {
      this.#vfio.register(device);
    } else if (driver !== PCI_STUB) {
      const rc = iommu_device_use_default_domain(device);
      if (rc < 0) return rc;
    }
    device.driver = driver;
    this.#runtime.emit('pci.bind', { device: device.name, driver });
    return 0;
  }

  /** Takes a device from its driver: 0, -ENODEV it has none. Waits while user space has a vfio-pci device open. */
  *unbind(device: Device): Task<number> {
    const driver = device.driver;
    if (driver === undefined) return -ENODEV;
    if (driver === VFIO_PCI) yield* this.#vfio.unregister(device);
    else if (driver !== PCI_STUB) iommu_device_unuse_default_domain(device);
    device.driver = undefined;
    this.#runtime.emit('pci.unbind', { device: device.name, driver });
    return 0;
  }

  *#add(bdf: string): Task<void> {
    const fn = this.#board.functions.get(bdf);
    if (fn === undefined) return;
    const bridge = this.#board.bridgeOf(fn);
    const device: Device = {
      name: bdf,
      function: fn,
      streamId: bridge.streamId(fn),
      iommu: bridge.description.iommu,
      msiController: this.#board.msiControllerOf(fn)?.name,
      driver: undefined,
      driverOverride: undefined,
      group: undefined,
    };
    this.#devices.set(bdf, device);
    const rc = yield* this.#iommu.addDevice(device);
    if (rc < 0) this.#runtime.emit('pci.no-iommu-group', { device: bdf, errno: -rc });
    yield* this.probe(device);
  }

  *#arrive(bdf: string): Task<void> {
    if (!this.#devices.has(bdf)) yield* this.#add(bdf);
  }

  *#leave(bdf: string): Task<void> {
    const device = this.#devices.get(bdf);
    if (device === undefined) return;
    yield* this.unbind(device);
    yield* this.#irq.forget(device);
    yield* this.#iommu.removeDevice(device);
    this.#devices.delete(bdf);
    this.#board.remove(bdf);
  }
}
