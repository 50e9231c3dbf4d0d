/**
 * vfio-pci's character device: /dev/vfio/devices/vfioN.
 *
 * A descriptor starts unbound: until VFIO_DEVICE_BIND_IOMMUFD it answers EINVAL to everything else. Binding takes the DMA of
 * the device's group for the iommufd; ATTACH puts the device behind an address space or page table (again: moves it);
 * closing detaches, unbinds, disables interrupts and resets the device. Regions are reached by pread and pwrite at
 * `index << 40`; MSI-X vectors signal eventfds.
 *
 * Source: Linux drivers/vfio/device_cdev.c, pci/vfio_pci_core.c, vfio_pci_intrs.c, vfio_pci_rdwr.c; domain.md A1.30-A1.37,
 * A2.20-A2.24; recorded sequences of oracle/linux.
 */
import { s32, u32, type FieldSpecs, type Struct, type StructValue } from '../../layout/struct.js';
import {
  CONFIG_BYTES,
  MSIX_ENTRY_BYTES,
  PCI_COMMAND,
  PCI_COMMAND_MEMORY,
  PCI_CAP_ID_MSIX,
} from '../../hardware/pcie/function.js';
import { Mutex } from '../../runtime/locks.js';
import type { Task } from '../../runtime/task.js';
import { EAGAIN, EBADF, EFAULT, EINVAL, EIO, ENODEV, ENOTTY } from '../../uapi/errno.js';
import type { Ioctl } from '../../uapi/ioctl.js';
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_DETACH_IOMMUFD_PT,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_RESET,
  VFIO_DEVICE_SET_IRQS,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_TYPE_MASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_IRQ_SET_DATA_TYPE_MASK,
  VFIO_PCI_BAR5_REGION_INDEX,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_NUM_IRQS,
  VFIO_PCI_NUM_REGIONS,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
} from '../../uapi/vfio.js';
import { FLR_NS } from '../costs.js';
import { EventFile } from '../eventfd.js';
import { OpenFile, type SyscallContext } from '../files.js';
import {
  iommufd_device_attach,
  iommufd_device_bind,
  iommufd_device_detach,
  iommufd_device_replace,
  iommufd_device_unbind,
  type IommufdDevice,
} from '../iommufd/device.js';
import { IommufdFile } from '../iommufd/main.js';
import type { IrqCore, MsiVector } from '../irq.js';
import { VirtualConfigSpace } from './config-space.js';
import type { VfioDevice } from './vfio-core.js';

/** VFIO_PCI_OFFSET_SHIFT */
const REGION_SHIFT = 40n;
const REGION_MASK = (1n << REGION_SHIFT) - 1n;

interface Trigger {
  readonly eventfd: EventFile;
  readonly vector: MsiVector;
}

/** An open descriptor of a VFIO device. */
export class VfioPciFile extends OpenFile {
  readonly #vfio: VfioDevice;
  readonly #irq: IrqCore;
  readonly #config: VirtualConfigSpace;
  /** `dev_set->lock`: bind, attach, detach, interrupts, reset. */
  readonly #lock = new Mutex('vfio:device_lock');
  #idev: IommufdDevice | undefined;
  #isAttached = false;
  /** By vector; an entry exists for each enabled vector, undefined while it has no eventfd. */
  #triggers: (Trigger | undefined)[] = [];

  constructor(vfio: VfioDevice, irq: IrqCore) {
    super();
    this.#vfio = vfio;
    this.#irq = irq;
    this.#config = new VirtualConfigSpace(vfio.device.function);
    vfio.openCount++;
  }

  override *ioctl(ctx: SyscallContext, cmd: number, arg: bigint): Task<number> {
    if (cmd === VFIO_DEVICE_BIND_IOMMUFD.number) return yield* this.#locked(() => this.#bind(ctx, arg));
    if (this.#idev === undefined) return -EINVAL;
    switch (cmd) {
      case VFIO_DEVICE_ATTACH_IOMMUFD_PT.number:
        return yield* this.#locked(() => this.#attach(ctx, arg));
      case VFIO_DEVICE_DETACH_IOMMUFD_PT.number:
        return yield* this.#locked(() => this.#detach(ctx, arg));
      case VFIO_DEVICE_GET_INFO.number:
        return this.#getInfo(ctx, arg);
      case VFIO_DEVICE_GET_REGION_INFO.number:
        return this.#getRegionInfo(ctx, arg);
      case VFIO_DEVICE_GET_IRQ_INFO.number:
        return this.#getIrqInfo(ctx, arg);
      case VFIO_DEVICE_SET_IRQS.number:
        return yield* this.#locked(() => this.#setIrqs(ctx, arg));
      case VFIO_DEVICE_RESET:
        return yield* this.#locked(() => this.#reset());
      case VFIO_DEVICE_FEATURE.number:
        return readStruct(ctx, VFIO_DEVICE_FEATURE, arg).rc || -ENOTTY;
      default:
        return -ENOTTY;
    }
  }

  override *pread(_ctx: SyscallContext, lengthBytes: number, offset: bigint): Task<Uint8Array | number> {
    const access = this.#region(offset, lengthBytes);
    if (typeof access === 'number') return access;
    yield 'vfio:region-read';
    if (access.bar === undefined) return this.#config.read(access.offset, lengthBytes);
    const { function: fn } = this.#vfio.device;
    if (!fn.decodesMemory) return -EIO;
    const out = new Uint8Array(lengthBytes);
    for (let at = 0; at < lengthBytes;) {
      const width = accessWidth(access.offset + at, lengthBytes - at);
      const value = fn.barRead(access.bar, access.offset + at, width);
      for (let i = 0; i < width; i++) out[at + i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
      at += width;
    }
    return out;
  }

  override *pwrite(_ctx: SyscallContext, bytes: Uint8Array, offset: bigint): Task<number> {
    const access = this.#region(offset, bytes.length);
    if (typeof access === 'number') return access;
    yield 'vfio:region-write';
    if (access.bar === undefined) {
      this.#config.write(access.offset, bytes);
      return bytes.length;
    }
    const { function: fn } = this.#vfio.device;
    if (!fn.decodesMemory) return -EIO;
    for (let at = 0; at < bytes.length;) {
      const width = accessWidth(access.offset + at, bytes.length - at);
      let value = 0;
      for (let i = width - 1; i >= 0; i--) value = value * 256 + (bytes[at + i] ?? 0);
      fn.barWrite(access.bar, access.offset + at, width, value);
      at += width;
    }
    return bytes.length;
  }

  override *release(): Task<void> {
    yield* this.#lock.lock();
    if (this.#idev !== undefined) {
      yield* this.#disableMsix();
      this.#vfio.device.function.configWrite(PCI_COMMAND, 2, 0);
      if (this.#isAttached) yield* iommufd_device_detach(this.#idev);
      yield* iommufd_device_unbind(this.#idev);
      this.#vfio.device.function.reset();
      this.#idev = undefined;
      this.#vfio.isBound = false;
    }
    this.#lock.unlock();
    this.#vfio.openCount--;
    this.#vfio.closed.wakeAll();
  }

  *#locked(body: () => Task<number>): Task<number> {
    yield* this.#lock.lock();
    try {
      return yield* body();
    } finally {
      this.#lock.unlock();
    }
  }

  // --- iommufd ---

  *#bind(ctx: SyscallContext, arg: bigint): Task<number> {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_BIND_IOMMUFD, arg);
    if (value === undefined) return rc;
    if (value.flags !== 0 || value.iommufd < 0) return -EINVAL;
    if (this.#idev !== undefined) return -EINVAL;
    if (this.#vfio.isGoing) return -EAGAIN;
    if (this.#vfio.isBound) return -EINVAL;
    const file = ctx.process.files.get(value.iommufd);
    if (!(file instanceof IommufdFile)) return -EBADF;
    const bound = yield* iommufd_device_bind(file, this.#vfio.device, ctx);
    if (typeof bound === 'number') return bound;
    this.#idev = bound.idev;
    this.#vfio.isBound = true;
    this.#vfio.device.function.reset();
    this.#vfio.device.function.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    ctx.runtime.emit('vfio.bind', { device: this.#vfio.device.name, process: ctx.process.name, id: bound.id });
    return writeStruct(ctx, VFIO_DEVICE_BIND_IOMMUFD.struct, arg, { ...value, out_devid: bound.id });
  }

  *#attach(ctx: SyscallContext, arg: bigint): Task<number> {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_ATTACH_IOMMUFD_PT, arg);
    if (value === undefined) return rc;
    if (value.flags !== 0) return -EINVAL;
    const idev = this.#idev;
    if (idev === undefined) return -EINVAL;
    const ptId = this.#isAttached
      ? yield* iommufd_device_replace(idev, value.pt_id, ctx)
      : yield* iommufd_device_attach(idev, value.pt_id, ctx);
    ctx.runtime.emit('vfio.attach', {
      device: this.#vfio.device.name,
      process: ctx.process.name,
      pt: value.pt_id,
      result: ptId,
    });
    if (ptId < 0) return ptId;
    this.#isAttached = true;
    return writeStruct(ctx, VFIO_DEVICE_ATTACH_IOMMUFD_PT.struct, arg, { ...value, pt_id: ptId });
  }

  *#detach(ctx: SyscallContext, arg: bigint): Task<number> {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_DETACH_IOMMUFD_PT, arg);
    if (value === undefined) return rc;
    if (value.flags !== 0) return -EINVAL;
    if (!this.#isAttached || this.#idev === undefined) return 0;
    yield* iommufd_device_detach(this.#idev);
    this.#isAttached = false;
    ctx.runtime.emit('vfio.detach', { device: this.#vfio.device.name, process: ctx.process.name });
    return 0;
  }

  // --- what the device is ---

  #getInfo(ctx: SyscallContext, arg: bigint): number {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_GET_INFO, arg);
    if (value === undefined) return rc;
    const info = {
      ...value,
      flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
      num_regions: VFIO_PCI_NUM_REGIONS,
      num_irqs: VFIO_PCI_NUM_IRQS,
      cap_offset: 0,
    };
    return writeStruct(ctx, VFIO_DEVICE_GET_INFO.struct, arg, info);
  }

  #getRegionInfo(ctx: SyscallContext, arg: bigint): number {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_GET_REGION_INFO, arg);
    if (value === undefined) return rc;
    if (value.index >= VFIO_PCI_NUM_REGIONS) return -EINVAL;
    const size = this.#regionSize(value.index);
    const flags = size === 0 ? 0 : VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    const offset = BigInt(value.index) << REGION_SHIFT;
    return writeStruct(ctx, VFIO_DEVICE_GET_REGION_INFO.struct, arg, {
      ...value,
      flags,
      cap_offset: 0,
      size: BigInt(size),
      offset,
    });
  }

  #getIrqInfo(ctx: SyscallContext, arg: bigint): number {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_GET_IRQ_INFO, arg);
    if (value === undefined) return rc;
    if (value.index >= VFIO_PCI_NUM_IRQS) return -EINVAL;
    const isMsix = value.index === VFIO_PCI_MSIX_IRQ_INDEX;
    const count = isMsix ? this.#vfio.device.function.msixVectors : 0;
    return writeStruct(ctx, VFIO_DEVICE_GET_IRQ_INFO.struct, arg, {
      ...value,
      flags: VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
      count,
    });
  }

  #regionSize(index: number): number {
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) return CONFIG_BYTES;
    return this.#vfio.device.function.bars.find((bar) => bar.index === index)?.sizeBytes ?? 0;
  }

  /** What a file offset means; EINVAL for regions that do not exist and accesses beyond their end. `bar` undefined = config. */
  #region(
    position: bigint,
    lengthBytes: number,
  ): { readonly bar: number | undefined; readonly offset: number } | number {
    if (this.#idev === undefined) return -EINVAL;
    const index = Number(position >> REGION_SHIFT);
    const offset = Number(position & REGION_MASK);
    const size = index < VFIO_PCI_NUM_REGIONS ? this.#regionSize(index) : 0;
    if (size === 0 || offset + lengthBytes > size) return -EINVAL;
    return { bar: index <= VFIO_PCI_BAR5_REGION_INDEX ? index : undefined, offset };
  }

  // --- interrupts ---

  *#setIrqs(ctx: SyscallContext, arg: bigint): Task<number> {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_SET_IRQS, arg);
    if (value === undefined) return rc;
    const type = value.flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    const action = value.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if ((value.flags & ~(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK)) !== 0) return -EINVAL;
    if (value.index >= VFIO_PCI_NUM_IRQS) return -EINVAL;
    const available = value.index === VFIO_PCI_MSIX_IRQ_INDEX ? this.#vfio.device.function.msixVectors : 0;
    if (value.start >= Math.max(available, 1) || value.start + value.count > available) return -EINVAL;
    if (action !== VFIO_IRQ_SET_ACTION_TRIGGER) return -ENOTTY;
    const elementBytes =
      type === VFIO_IRQ_SET_DATA_NONE
        ? 0
        : type === VFIO_IRQ_SET_DATA_BOOL
          ? 1
          : type === VFIO_IRQ_SET_DATA_EVENTFD
            ? s32.sizeBytes
            : -1;
    const dataBytes = elementBytes * value.count;
    if (elementBytes < 0 || value.argsz - VFIO_DEVICE_SET_IRQS.struct.sizeBytes < dataBytes) return -EINVAL;
    const data = ctx.copy_from_user(arg + BigInt(VFIO_DEVICE_SET_IRQS.struct.sizeBytes), dataBytes);
    if (data === undefined) return -EFAULT;
    if (type === VFIO_IRQ_SET_DATA_NONE && value.count === 0) {
      yield* this.#disableMsix();
      return 0;
    }
    if (type === VFIO_IRQ_SET_DATA_EVENTFD) return yield* this.#setTriggers(ctx, value.start, value.count, data);
    return this.#fire(value.start, value.count, type === VFIO_IRQ_SET_DATA_BOOL ? data : undefined);
  }

  /** Gives vectors their eventfds (-1: none); a first call enables MSI-X. All or nothing. */
  *#setTriggers(ctx: SyscallContext, start: number, count: number, data: Uint8Array): Task<number> {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const eventfds: (EventFile | undefined)[] = [];
    for (let i = 0; i < count; i++) {
      const fd = s32.read(view, i * s32.sizeBytes);
      const file = fd < 0 ? undefined : ctx.process.files.get(fd);
      if (fd >= 0 && !(file instanceof EventFile)) return file === undefined ? -EBADF : -EINVAL;
      eventfds.push(file instanceof EventFile ? file : undefined);
    }
    if (start > this.#triggers.length) return -EINVAL;
    const done: number[] = [];
    for (const [i, eventfd] of eventfds.entries()) {
      const rc = yield* this.#setTrigger(start + i, eventfd);
      if (rc < 0) {
        for (const vector of done) yield* this.#setTrigger(vector, undefined);
        return rc;
      }
      done.push(start + i);
    }
    this.#setMsixEnable(true);
    return 0;
  }

  *#setTrigger(vector: number, eventfd: EventFile | undefined): Task<number> {
    const { device } = this.#vfio;
    const before = this.#triggers[vector];
    if (before !== undefined) {
      this.#maskVector(vector);
      yield* this.#irq.free(device, vector, before.vector);
    }
    this.#triggers[vector] = undefined;
    if (eventfd === undefined) return 0;
    const set = yield* this.#irq.request(device, vector, () => eventfd.signal());
    if (typeof set === 'number') return set;
    this.#triggers[vector] = { eventfd, vector: set };
    this.#programVector(vector, set);
    return 0;
  }

  /** Loopback: signals the eventfds as if the device had. */
  #fire(start: number, count: number, selected: Uint8Array | undefined): number {
    if (this.#triggers.length === 0) return -EINVAL;
    for (let i = 0; i < count; i++) {
      if (selected === undefined || selected[i] !== 0) this.#triggers[start + i]?.eventfd.signal();
    }
    return 0;
  }

  *#disableMsix(): Task<void> {
    this.#setMsixEnable(false);
    for (const [vector, trigger] of this.#triggers.entries()) {
      if (trigger === undefined) continue;
      this.#maskVector(vector);
      yield* this.#irq.free(this.#vfio.device, vector, trigger.vector);
    }
    this.#triggers = [];
  }

  #setMsixEnable(isOn: boolean): void {
    const { function: fn } = this.#vfio.device;
    const at = fn.findCapability(PCI_CAP_ID_MSIX);
    if (at === 0) return;
    fn.configWrite(at + 3, 1, isOn ? 0x80 : 0);
  }

  #programVector(vector: number, message: MsiVector): void {
    const { function: fn } = this.#vfio.device;
    const bar = fn.msixBar;
    if (bar === undefined) return;
    const entry = vector * MSIX_ENTRY_BYTES;
    fn.barWrite(bar, entry, u32.sizeBytes, Number(message.address & 0xffff_ffffn));
    fn.barWrite(bar, entry + 4, u32.sizeBytes, Number(message.address >> 32n));
    fn.barWrite(bar, entry + 8, u32.sizeBytes, message.data);
    fn.barWrite(bar, entry + 12, u32.sizeBytes, 0);
  }

  #maskVector(vector: number): void {
    const bar = this.#vfio.device.function.msixBar;
    if (bar !== undefined) this.#vfio.device.function.barWrite(bar, vector * MSIX_ENTRY_BYTES + 12, u32.sizeBytes, 1);
  }

  // --- reset ---

  *#reset(): Task<number> {
    yield FLR_NS;
    const { function: fn } = this.#vfio.device;
    if (!fn.isPresent) return -ENODEV;
    const triggers = this.#triggers;
    fn.reset();
    fn.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    for (const [vector, trigger] of triggers.entries())
      if (trigger !== undefined) this.#programVector(vector, trigger.vector);
    if (triggers.length > 0) this.#setMsixEnable(true);
    return 0;
  }
}

/** Widest access of at most 4 bytes that fits `left` bytes at `offset`. */
function accessWidth(offset: number, left: number): number {
  if (left >= 4 && offset % 4 === 0) return 4;
  return left >= 2 && offset % 2 === 0 ? 2 : 1;
}

/** Copies an argument struct in: EFAULT, or EINVAL when `argsz` is below the call's minimum; missing fields are zero. */
function readStruct<F extends FieldSpecs>(
  ctx: SyscallContext,
  ioctl: Ioctl<F>,
  arg: bigint,
): { readonly rc: number; readonly value?: StructValue<F> } {
  const head = ctx.copy_from_user(arg, u32.sizeBytes);
  if (head === undefined) return { rc: -EFAULT };
  const argsz = u32.read(new DataView(head.buffer, head.byteOffset), 0);
  if (argsz < ioctl.minimumBytes) return { rc: -EINVAL };
  const bytes = ctx.copy_from_user(arg, Math.min(argsz, ioctl.struct.sizeBytes));
  if (bytes === undefined) return { rc: -EFAULT };
  const padded = new Uint8Array(ioctl.struct.sizeBytes);
  padded.set(bytes);
  return { rc: 0, value: ioctl.struct.decode(padded) };
}

/** Copies a struct back, as much as the caller's `argsz` covers: 0 or -EFAULT. */
function writeStruct<F extends FieldSpecs>(
  ctx: SyscallContext,
  struct: Struct<F>,
  arg: bigint,
  value: StructValue<F>,
): number {
  const bytes = struct.encode(value);
  const argsz = u32.read(new DataView(bytes.buffer), 0);
  return ctx.copy_to_user(arg, bytes.subarray(0, Math.min(argsz, bytes.length))) ? 0 : -EFAULT;
}
