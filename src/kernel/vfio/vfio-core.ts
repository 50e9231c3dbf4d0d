/**
 * VFIO's core: devices bound to a VFIO driver and their character devices.
 *
 * A device that vfio-pci takes gets the lowest free number N and appears as /dev/vfio/devices/vfioN. Unregistering waits until
 * no descriptor is open (VFIO's remove holds on to the driver until the last user is gone).
 *
 * Source: Linux drivers/vfio/vfio_main.c, device_cdev.c.
 */
import { RwSemaphore } from '../../runtime/locks.js';
import { WaitQueue, type Task } from '../../runtime/task.js';
import type { Device } from '../device.js';
import type { VfioMigration } from './migration.js';

/** A device under VFIO (`struct vfio_device`). */
export class VfioDevice {
  readonly index: number;
  readonly device: Device;
  readonly closed: WaitQueue;
  /** Of a variant driver for a card that can migrate. */
  readonly migration: VfioMigration | undefined;
  openCount = 0;
  /** Some descriptor has bound it to an iommufd. */
  isBound = false;
  /** The device is leaving: a descriptor that is not bound yet cannot be bound any more. */
  isGoing = false;
  /** Whether memory is decoded changes only under this, held for writing; who touches a BAR holds it for reading. */
  readonly memoryLock = new RwSemaphore('vfio:memory_lock');
  readonly #requests = new Map<object, () => void>();

  constructor(index: number, device: Device, migration: VfioMigration | undefined) {
    this.index = index;
    this.migration = migration;
    this.device = device;
    this.closed = new WaitQueue(`vfio users of ${device.name}`);
  }

  /** How an open descriptor is asked to let go (vfio_device_ops.request); undefined takes that back. */
  onRequest(descriptor: object, ask: (() => void) | undefined): void {
    if (ask === undefined) this.#requests.delete(descriptor);
    else this.#requests.set(descriptor, ask);
  }

  /** Asks everybody who has it open. */
  request(): void {
    for (const ask of this.#requests.values()) ask();
  }

  /** `vfio3` */
  get name(): string {
    return `vfio${this.index}`;
  }
}

/** All VFIO devices of a host. */
export class VfioCore {
  readonly #devices: (VfioDevice | undefined)[] = [];

  /** Devices user space can see: one that is leaving shows no character device any more. */
  get devices(): readonly VfioDevice[] {
    return this.#registered.filter((device) => !device.isGoing);
  }

  get #registered(): readonly VfioDevice[] {
    return this.#devices.filter((device) => device !== undefined);
  }

  /** By the name of its character device. */
  byName(name: string): VfioDevice | undefined {
    return this.devices.find((device) => device.name === name);
  }

  of(device: Device): VfioDevice | undefined {
    return this.devices.find((vfio) => vfio.device === device);
  }

  register(device: Device, migration?: VfioMigration): VfioDevice {
    const free = this.#devices.findIndex((entry) => entry === undefined);
    const index = free < 0 ? this.#devices.length : free;
    const vfio = new VfioDevice(index, device, migration);
    this.#devices[index] = vfio;
    return vfio;
  }

  *unregister(device: Device): Task<void> {
    const vfio = this.#registered.find((entry) => entry.device === device);
    if (vfio === undefined) return;
    vfio.isGoing = true;
    vfio.request();
    while (vfio.openCount > 0) yield vfio.closed;
    this.#devices[vfio.index] = undefined;
  }
}
