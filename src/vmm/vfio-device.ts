/**
 * A physical function in a VMM's hands: the VFIO character device and what hangs on it.
 *
 * A client of src/uapi only: finds the cdev through sysfs, binds it to an iommufd, attaches page tables, reaches regions
 * by pread/pwrite at the offsets the kernel names, and gets interrupts as eventfds (domain.md A2.20-A2.24).
 * Every method that fails throws KernelError.
 */
import { s32, u16, type FieldType } from '../layout/struct.js';
import type { Task } from '../runtime/task.js';
import type { Process } from '../testbed/process.js';
import { EAGAIN, ENODEV, ENOENT, KernelError } from '../uapi/errno.js';
import { EFD_NONBLOCK, O_RDWR } from '../uapi/syscall.js';
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_DETACH_IOMMUFD_PT,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_DMA_BUF,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_RESET,
  VFIO_DEVICE_SET_IRQS,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  vfio_device_feature_dma_buf,
  vfio_region_dma_range,
} from '../uapi/vfio.js';

// PCI configuration space: command register (PCIe 5.0 7.5.1.1.3).
const PCI_COMMAND = 0x04n;
const PCI_COMMAND_MEMORY = 0x2;
const PCI_COMMAND_MASTER = 0x4;

/** Pauses between looks at an eventfd. */
const FIRST_LOOK_NS = 1_000;
const LAST_LOOK_NS = 256_000;

/** A function as its driver sees it: registers, interrupts, a clock. A guest's stays the same while the guest moves. */
export interface DriverDevice {
  /** For people. */
  readonly bdf: string;
  /** The driver's clock: stands still while the driver does. */
  readonly clockNs: number;
  readRegion(index: number, offset: bigint, lengthBytes: number): Task<Uint8Array>;
  writeRegion(index: number, offset: bigint, bytes: Uint8Array): Task<void>;
  setBusMaster(isOn: boolean): Task<void>;
  setCommand(bits: CommandBits): Task<void>;
  enableMsix(count: number): Task<void>;
  disableMsix(): Task<void>;
  waitMsix(vector: number, timeoutNs: number): Task<bigint>;
}

/** Bits of the command register; those not given stay. */
export interface CommandBits {
  readonly decodesMemory?: boolean;
  readonly isBusMaster?: boolean;
}

function encodeAll<T>(type: FieldType<T>, values: readonly T[]): Uint8Array {
  const bytes = new Uint8Array(type.sizeBytes * values.length);
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => type.write(view, i * type.sizeBytes, value));
  return bytes;
}

/** The driver of a function, and its cdev's name if that driver is a VFIO one. */
function* vfioName(process: Process, bdf: string): Task<string | undefined> {
  try {
    return (yield* process.list(`/sys/bus/pci/devices/${bdf}/vfio-dev`))[0];
  } catch (error) {
    if (error instanceof KernelError && error.errno === ENOENT) return undefined;
    throw error;
  }
}

/** The VFIO driver for a function: the variant whose alias matches, else vfio-pci (libvirt: virPCIDeviceFindBestVFIOVariant). */
function* bestVfioDriver(process: Process, bdf: string): Task<string> {
  const modalias = (yield* process.readFile(`/sys/bus/pci/devices/${bdf}/modalias`)).trim();
  const release = (yield* process.readFile('/proc/sys/kernel/osrelease')).trim();
  const aliases = yield* process.readFile(`/lib/modules/${release}/modules.alias`);
  for (const line of aliases.split('\n')) {
    const [, pattern = '', module = ''] = line.split(' ');
    const [bus, rest = ''] = pattern.split(':');
    const prefix = rest.split('*')[0] ?? '';
    if (bus === 'vfio_pci' && modalias.startsWith(`pci:${prefix}`)) return module.replaceAll('_', '-');
  }
  return 'vfio-pci';
}

/**
 * Gives a function to the VFIO driver that fits it best, as libvirt's managed='yes' does: driver_override, unbind, drivers_probe. Does
 * nothing when a VFIO driver has it already. Needs the rights to write to sysfs.
 */
export function* bindToVfio(process: Process, bdf: string): Task<void> {
  if ((yield* vfioName(process, bdf)) !== undefined) return;
  const device = `/sys/bus/pci/devices/${bdf}`;
  yield* process.writeFile(`${device}/driver_override`, yield* bestVfioDriver(process, bdf));
  const unbind = yield* process.syscall({ call: 'open', path: `${device}/driver/unbind`, flags: O_RDWR });
  if (unbind.result >= 0) {
    const fd = Number(unbind.result);
    yield* process.write(fd, new TextEncoder().encode(bdf));
    yield* process.close(fd);
  }
  yield* process.writeFile('/sys/bus/pci/drivers_probe', bdf);
}

/**
 * Looks for interrupts until some came or the time is up (0). Often at first, then less and less: a lost interrupt must not cost a look
 * every microsecond.
 */
export function* lookUntil(
  clock: { readonly clockNs: number },
  timeoutNs: number,
  look: () => Task<bigint>,
): Task<bigint> {
  const deadlineNs = clock.clockNs + timeoutNs;
  for (let pauseNs = FIRST_LOOK_NS; ; pauseNs = Math.min(pauseNs * 2, LAST_LOOK_NS)) {
    const count = yield* look();
    if (count > 0n || clock.clockNs >= deadlineNs) return count;
    yield pauseNs;
  }
}

/** An open VFIO cdev. */
export class VfioDevice implements DriverDevice {
  readonly bdf: string;
  readonly process: Process;
  readonly fd: number;
  #devId = 0;
  #msixEventfds: readonly number[] = [];
  readonly #regionOffsets = new Map<number, bigint>();

  private constructor(process: Process, bdf: string, fd: number) {
    this.process = process;
    this.bdf = bdf;
    this.fd = fd;
  }

  /** Opens the cdev of a function that is bound to vfio-pci; ENODEV when it is not. */
  static *open(process: Process, bdf: string): Task<VfioDevice> {
    const name = yield* vfioName(process, bdf);
    if (name === undefined) throw new KernelError(ENODEV, `open the VFIO device of ${bdf}`);
    return new VfioDevice(process, bdf, yield* process.open(`/dev/vfio/devices/${name}`, O_RDWR));
  }

  get clockNs(): number {
    return this.process.host.lab.runtime.now;
  }

  /** Id of the device in its iommufd; 0 before {@link bind}. */
  get devId(): number {
    return this.#devId;
  }

  /** Eventfds of the enabled MSI-X vectors, by vector. */
  get msixEventfds(): readonly number[] {
    return this.#msixEventfds;
  }

  *bind(iommufd: number): Task<void> {
    const { value } = yield* this.process.ioctl(this.fd, VFIO_DEVICE_BIND_IOMMUFD, { iommufd });
    this.#devId = value.out_devid;
  }

  /** Attaches an IOAS or HWPT (replaces the one that is attached); returns the id really attached. */
  *attach(ptId: number): Task<number> {
    const { value } = yield* this.process.ioctl(this.fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, { pt_id: ptId });
    return value.pt_id;
  }

  *detach(): Task<void> {
    yield* this.process.ioctl(this.fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, {});
  }

  *reset(): Task<void> {
    yield* this.process.ioctlValue(this.fd, 'VFIO_DEVICE_RESET', VFIO_DEVICE_RESET, 0n);
  }

  *readRegion(index: number, offset: bigint, lengthBytes: number): Task<Uint8Array> {
    return yield* this.process.pread(this.fd, lengthBytes, (yield* this.#regionOffset(index)) + offset);
  }

  *writeRegion(index: number, offset: bigint, bytes: Uint8Array): Task<void> {
    yield* this.process.pwrite(this.fd, bytes, (yield* this.#regionOffset(index)) + offset);
  }

  /** Bus mastering on or off, with memory decode when on: without it the function may neither DMA nor raise MSIs. */
  *setBusMaster(isOn: boolean): Task<void> {
    yield* this.setCommand(isOn ? { isBusMaster: true, decodesMemory: true } : { isBusMaster: false });
  }

  *setCommand(bits: CommandBits): Task<void> {
    let command = yield* this.readCommand();
    for (const [bit, isOn] of [
      [PCI_COMMAND_MEMORY, bits.decodesMemory],
      [PCI_COMMAND_MASTER, bits.isBusMaster],
    ] as const) {
      if (isOn !== undefined) command = isOn ? command | bit : command & ~bit;
    }
    yield* this.writeCommand(command);
  }

  /** The command register. */
  *readCommand(): Task<number> {
    const bytes = yield* this.readRegion(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, u16.sizeBytes);
    return u16.read(new DataView(bytes.buffer, bytes.byteOffset), 0);
  }

  *writeCommand(command: number): Task<void> {
    yield* this.writeRegion(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, encodeAll(u16, [command]));
  }

  /** Maps a BAR into the process; its address. */
  *mmapRegion(index: number, length: bigint): Task<bigint> {
    return yield* this.process.mmapFile(this.fd, yield* this.#regionOffset(index), length);
  }

  /** Part of a BAR as a dma-buf; its descriptor. */
  *exportRegion(index: number, offset: bigint, length: bigint): Task<number> {
    const request = vfio_device_feature_dma_buf.encode({ region_index: index, open_flags: O_RDWR, nr_ranges: 1 });
    const tail = new Uint8Array([...request, ...vfio_region_dma_range.encode({ offset, length })]);
    const flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
    return (yield* this.process.ioctl(this.fd, VFIO_DEVICE_FEATURE, { flags }, { tail })).result;
  }

  /** Enables MSI-X vectors 0..count-1, each signalling an eventfd of its own. */
  *enableMsix(count: number): Task<void> {
    const eventfds: number[] = [];
    for (let vector = 0; vector < count; vector++) eventfds.push(yield* this.process.eventfd(0, EFD_NONBLOCK));
    const flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    const request = { flags, index: VFIO_PCI_MSIX_IRQ_INDEX, start: 0, count };
    try {
      yield* this.process.ioctl(this.fd, VFIO_DEVICE_SET_IRQS, request, { tail: encodeAll(s32, eventfds) });
    } catch (error) {
      for (const fd of eventfds) yield* this.process.close(fd);
      throw error;
    }
    for (const fd of this.#msixEventfds) yield* this.process.close(fd);
    this.#msixEventfds = eventfds;
  }

  /** Disables MSI-X and closes the eventfds. */
  *disableMsix(): Task<void> {
    if (this.#msixEventfds.length === 0) return;
    const flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    yield* this.process.ioctl(this.fd, VFIO_DEVICE_SET_IRQS, { flags, index: VFIO_PCI_MSIX_IRQ_INDEX });
    for (const fd of this.#msixEventfds) yield* this.process.close(fd);
    this.#msixEventfds = [];
  }

  /** Waits for an interrupt of a vector; returns how many came since the last wait, 0 when none came in time. */
  *waitMsix(vector: number, timeoutNs: number): Task<bigint> {
    return yield* lookUntil(this, timeoutNs, () => this.takeMsix(vector));
  }

  /** Interrupts of a vector since the last time anybody asked. */
  *takeMsix(vector: number): Task<bigint> {
    const fd = this.#msixEventfds[vector];
    if (fd === undefined) throw new RangeError(`MSI-X vector ${vector} of ${this.bdf} is not enabled`);
    const reply = yield* this.process.syscall({ call: 'read', fd, lengthBytes: 8 });
    if (reply.bytes !== undefined && reply.result === 8)
      return new DataView(reply.bytes.buffer, reply.bytes.byteOffset).getBigUint64(0, true);
    if (reply.result !== -EAGAIN) throw new KernelError(Number(reply.result), 'read eventfd', reply.detail);
    return 0n;
  }

  *close(): Task<void> {
    for (const fd of this.#msixEventfds) yield* this.process.close(fd);
    this.#msixEventfds = [];
    yield* this.process.close(this.fd);
  }

  *#regionOffset(index: number): Task<bigint> {
    const known = this.#regionOffsets.get(index);
    if (known !== undefined) return known;
    const { value } = yield* this.process.ioctl(this.fd, VFIO_DEVICE_GET_REGION_INFO, { index });
    this.#regionOffsets.set(index, value.offset);
    return value.offset;
  }
}
