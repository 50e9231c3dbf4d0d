/**
 * A passthrough device as its guest has it: one thing, whatever host's function stands behind it.
 *
 * A guest's driver holds a GuestDevice while the guest moves; a migration puts another host's VfioDevice behind it. What the driver
 * does are acts of a vCPU: they wait while the guest is paused and a pause waits for them, so no access is split over two hosts.
 *
 * Interrupts: an eventfd counts what came and nobody took. What the source counted until the device stood still is carried over
 * and given to the driver with what the destination counts; this is what keeps an interrupt from being lost or seen twice.
 */
import { WaitQueue, type Task } from '../runtime/task.js';
import type { HostClient } from '../testbed/lab.js';
import { ENODEV, KernelError } from '../uapi/errno.js';
import type { PlugRequest } from './hotplug.js';
import { lookUntil, type CommandBits, type DriverDevice, type VfioDevice } from './vfio-device.js';

/** The guest, as much of it as a device needs. */
interface Vcpus {
  readonly clockNs: number;
  vcpu<T>(work: () => Task<T>): Task<T>;
}

/** A function of a host. */
export interface DevicePlace {
  readonly host: HostClient;
  readonly bdf: string;
}

/** A device of a guest. */
export class GuestDevice implements DriverDevice {
  readonly #guest: Vcpus;
  #vfio: VfioDevice;
  #carried: bigint[] = [];
  /** Vectors the guest's driver has enabled; the VMM may have fewer when it lost its configuration. */
  #vectors = 0;
  #isGone = false;
  #acts = 0;
  readonly #idle = new WaitQueue('guest device idle');
  /** How it was asked for; another function takes its place by the same policy. */
  readonly request: PlugRequest;
  readonly #places: DevicePlace[];

  constructor(guest: Vcpus, vfio: VfioDevice, request: PlugRequest) {
    this.#guest = guest;
    this.#vfio = vfio;
    this.request = request;
    this.#places = [{ host: vfio.process.host, bdf: vfio.bdf }];
  }

  /** Where it has been, the present place last. */
  get places(): readonly DevicePlace[] {
    return this.#places;
  }

  /** The function that stands behind it now. */
  get vfio(): VfioDevice {
    return this.#vfio;
  }

  /** Address on the host that runs the guest now. */
  get bdf(): string {
    return this.#vfio.bdf;
  }

  get clockNs(): number {
    return this.#guest.clockNs;
  }

  *readRegion(index: number, offset: bigint, lengthBytes: number): Task<Uint8Array> {
    return yield* this.#act(() => this.#vfio.readRegion(index, offset, lengthBytes));
  }

  *writeRegion(index: number, offset: bigint, bytes: Uint8Array): Task<void> {
    yield* this.#act(() => this.#vfio.writeRegion(index, offset, bytes));
  }

  *setBusMaster(isOn: boolean): Task<void> {
    yield* this.#act(() => this.#vfio.setBusMaster(isOn));
  }

  *setCommand(bits: CommandBits): Task<void> {
    yield* this.#act(() => this.#vfio.setCommand(bits));
  }

  *enableMsix(count: number): Task<void> {
    yield* this.#act(() => this.#vfio.enableMsix(count));
    this.#carried = [];
    this.#vectors = count;
  }

  *disableMsix(): Task<void> {
    yield* this.#act(() => this.#vfio.disableMsix());
    this.#carried = [];
    this.#vectors = 0;
  }

  *waitMsix(vector: number, timeoutNs: number): Task<bigint> {
    return yield* lookUntil(this, timeoutNs, () => this.#act(() => this.#take(vector)));
  }

  /**
   * Takes what the eventfds have counted for the guest, by vector, to be given to it later. For a device that stands still, while the
   * guest is paused. @throws KernelError
   */
  *holdInterrupts(): Task<readonly bigint[]> {
    const counts: bigint[] = [];
    for (let vector = 0; vector < this.#vfio.msixEventfds.length; vector++)
      counts.push((this.#carried[vector] ?? 0n) + (yield* this.#vfio.takeMsix(vector)));
    this.#carried = counts;
    return counts;
  }

  /** The guest has it no longer: what its driver does from now on fails with ENODEV; returns when nothing is on its way. */
  *remove(): Task<void> {
    this.#isGone = true;
    while (this.#acts > 0) yield this.#idle;
  }

  /** Another host's function takes its place, with the interrupts that were held. The guest is paused. */
  moveTo(vfio: VfioDevice, held: readonly bigint[]): void {
    this.#vfio = vfio;
    this.#places.push({ host: vfio.process.host, bdf: vfio.bdf });
    this.#carried = [...held];
  }

  *#act<T>(work: () => Task<T>): Task<T> {
    return yield* this.#guest.vcpu(() => this.#counted(work));
  }

  *#counted<T>(work: () => Task<T>): Task<T> {
    if (this.#isGone) throw new KernelError(ENODEV, `look for ${this.bdf}`);
    this.#acts++;
    try {
      return yield* work();
    } finally {
      this.#acts--;
      this.#idle.wakeAll();
    }
  }

  *#take(vector: number): Task<bigint> {
    if (vector >= this.#vectors) throw new RangeError(`MSI-X vector ${vector} of ${this.bdf} is not enabled`);
    const carried = this.#carried[vector] ?? 0n;
    this.#carried[vector] = 0n;
    if (vector >= this.#vfio.msixEventfds.length) return carried;
    return carried + (yield* this.#vfio.takeMsix(vector));
  }
}
