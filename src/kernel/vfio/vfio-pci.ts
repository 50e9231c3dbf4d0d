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
import { type PciFunction } from '../../hardware/pcie/function.js';
import { PCI_MSIX_ENTRY_SIZE, PCI_COMMAND, PCI_COMMAND_MEMORY, PCI_CAP_ID_MSIX } from '../../uapi/pci-regs.js';
import { Mutex } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { EAGAIN, EBADF, EBADFD, EFAULT, EINVAL, EIO, ENOTTY, ERANGE } from '../../uapi/errno.js';
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
  VFIO_IRQ_INFO_AUTOMASKED,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_MASKABLE,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_TYPE_MASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_IRQ_SET_DATA_TYPE_MASK,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_REQ_IRQ_INDEX,
  VFIO_PCI_NUM_IRQS,
  VFIO_PCI_INTX_IRQ_INDEX,
  VFIO_PCI_NUM_REGIONS,
  VFIO_PCI_VGA_REGION_INDEX,
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
import { VfioDmaBufs } from './dma-buf.js';
import { vfio_ioctl_device_feature } from './features.js';
import { pci_can_reset, pci_reset_function } from '../pci/reset.js';
import { readFrame, writeFrame } from '../../hardware/bus.js';
import type { FileMapping } from '../mm/mm.js';
import type { VfioDevice } from './vfio-core.js';

/** VFIO_PCI_OFFSET_SHIFT */
const REGION_SHIFT = 40n;
/** Vector Control of an MSI-X table entry; bit 0 masks the vector. */
const VECTOR_CONTROL = 12;
const REGION_MASK = (1n << REGION_SHIFT) - 1n;

/** An access to a region, cut to what lies in it. */
interface RegionAccess {
  readonly bar: number | undefined;
  readonly offset: number;
  readonly lengthBytes: number;
}

interface Trigger {
  readonly eventfd: EventFile;
  readonly vector: MsiVector;
}

/** An open descriptor of a VFIO device. */
export class VfioPciFile extends OpenFile {
  readonly #vfio: VfioDevice;
  readonly #irq: IrqCore;
  readonly #config: VirtualConfigSpace;
  readonly #dmaBufs: VfioDmaBufs;
  /** `dev_set->lock`: bind, attach, detach, interrupts, reset. */
  readonly #lock = new Mutex('vfio:device_lock');
  #idev: IommufdDevice | undefined;
  #isAttached = false;
  /** By vector; an entry exists for each enabled vector, undefined while it has no eventfd. */
  #triggers: (Trigger | undefined)[] = [];

  /** Eventfds of indices that the kernel signals itself. */
  readonly #notifiers = new Map<number, EventFile>();

  constructor(vfio: VfioDevice, irq: IrqCore) {
    super();
    this.#vfio = vfio;
    this.#irq = irq;
    this.#config = new VirtualConfigSpace(vfio.device.function);
    this.#dmaBufs = new VfioDmaBufs(vfio.device.function);
    vfio.openCount++;
    vfio.onRequest(this, () => this.#notifiers.get(VFIO_PCI_REQ_IRQ_INDEX)?.signal());
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
        return yield* this.#locked(() => vfio_ioctl_device_feature(ctx, this.#vfio.migration, this.#dmaBufs, arg));
      default:
        return -ENOTTY;
    }
  }

  override *pread(ctx: SyscallContext, lengthBytes: number, offset: bigint): Task<Uint8Array | number> {
    const access = this.#region(offset, lengthBytes);
    if (typeof access === 'number') return access;
    const { bar } = access;
    if (bar === undefined) {
      yield 'vfio:region-read';
      return this.#config.read(access.offset, lengthBytes);
    }
    return yield* this.#withMemory(ctx, () => this.#readBar(bar, access.offset, access.lengthBytes));
  }

  /**
   * An access of the CPU to a BAR: -EIO while the function does not decode memory. Nobody switches decoding off between the look and
   * the access (`memory_lock`); the CPU would get a machine check. What is gone reads as ones.
   */
  *#withMemory<T>({ runtime }: SyscallContext, access: () => T): Task<T | number> {
    const { function: fn } = this.#vfio.device;
    const isUndecoded = (): boolean => fn.isPresent && !fn.decodesMemory;
    const isLocked = !runtime.faults.fires('vfio.memory-unlocked');
    if (isLocked) yield* this.#vfio.memoryLock.down_read();
    try {
      if (isUndecoded()) return -EIO;
      yield 'vfio:bar-access';
      invariant(!isUndecoded(), () => `the CPU accesses a BAR of ${fn.bdf}, which does not decode memory`, 'mmio');
      runtime.invariants.held('mmio');
      return access();
    } finally {
      if (isLocked) this.#vfio.memoryLock.up_read();
    }
  }

  #readBar(bar: number, offset: number, lengthBytes: number): Uint8Array {
    const { function: fn } = this.#vfio.device;
    const out = new Uint8Array(lengthBytes).fill(0xff);
    for (let at = 0; at < out.length;) {
      const width = accessWidth(offset + at, out.length - at);
      if (!this.#isMsixTable(bar, offset + at)) {
        const value = fn.barRead(bar, offset + at, width);
        for (let i = 0; i < width; i++) out[at + i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
      }
      at += width;
    }
    return out;
  }

  override *pwrite(ctx: SyscallContext, bytes: Uint8Array, offset: bigint): Task<number> {
    const access = this.#region(offset, bytes.length);
    if (typeof access === 'number') return access;
    const { bar } = access;
    if (bar === undefined) {
      yield 'vfio:region-write';
      if (yield* this.#writeConfig(access.offset, bytes)) yield* this.#locked(() => this.#reset());
      return bytes.length;
    }
    return yield* this.#withMemory(ctx, () =>
      this.#writeBar(bar, access.offset, bytes.subarray(0, access.lengthBytes)),
    );
  }

  /** Configuration space, with the BARs out of everybody's hands before decoding stops; whether a reset was asked for. */
  *#writeConfig(offset: number, bytes: Uint8Array): Task<boolean> {
    yield* this.#vfio.memoryLock.down_write();
    try {
      const stops = this.#config.stopsDecoding(offset, bytes);
      if (stops) yield* this.#dmaBufs.revoke();
      yield 'vfio:bars-zapped';
      const isReset = this.#config.write(offset, bytes);
      if (!stops) yield* this.#dmaBufs.restore();
      return isReset;
    } finally {
      this.#vfio.memoryLock.up_write();
    }
  }

  #writeBar(bar: number, offset: number, bytes: Uint8Array): number {
    const { function: fn } = this.#vfio.device;
    for (let at = 0; at < bytes.length;) {
      const width = accessWidth(offset + at, bytes.length - at);
      let value = 0;
      for (let i = width - 1; i >= 0; i--) value = value * 256 + (bytes[at + i] ?? 0);
      if (!this.#isMsixTable(bar, offset + at)) fn.barWrite(bar, offset + at, width, value);
      at += width;
    }
    return bytes.length;
  }

  /** A BAR, as PFNMAP memory; EINVAL for other regions and beyond its end. An access while it does not decode faults. */
  override *mmap(offset: bigint, length: bigint): Task<FileMapping | number> {
    const access = this.#region(offset, Number(length));
    if (typeof access === 'number') return access;
    const { bar, offset: first } = access;
    if (bar === undefined || access.lengthBytes < Number(length)) return -EINVAL;
    const { function: fn } = this.#vfio.device;
    return {
      window: {
        read: (at, lengthBytes) =>
          fn.decodesMemory
            ? readFrame(lengthBytes, first + at, (place, width) => fn.barRead(bar, place, width))
            : undefined,
        write: (at, bytes) => {
          if (!fn.decodesMemory) return false;
          writeFrame(bytes, first + at, (place, width, value) => fn.barWrite(bar, place, width, value));
          return true;
        },
      },
    };
  }

  override *release(): Task<void> {
    yield* this.#lock.lock();
    if (this.#idev !== undefined) {
      yield* this.#disableMsix();
      yield* this.#vfio.memoryLock.down_write();
      yield* this.#dmaBufs.cleanup();
      this.#vfio.device.function.configWrite(PCI_COMMAND, 2, 0);
      this.#vfio.memoryLock.up_write();
      if (this.#isAttached) yield* iommufd_device_detach(this.#idev);
      yield* iommufd_device_unbind(this.#idev);
      pci_reset_function(this.#vfio.device);
      this.#vfio.migration?.wasReset();
      this.#idev = undefined;
      this.#vfio.isBound = false;
    }
    this.#lock.unlock();
    this.#vfio.openCount--;
    this.#vfio.onRequest(this, undefined);
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
    const file = ctx.process.files.get(value.iommufd);
    if (!(file instanceof IommufdFile)) return file === undefined ? -EBADF : -EBADFD;
    if (this.#vfio.isBound) return -EINVAL;
    if (this.#vfio.isGoing) return -EAGAIN;
    const bound = yield* iommufd_device_bind(file, this.#vfio.device, ctx);
    if (typeof bound === 'number') return bound;
    this.#idev = bound.idev;
    this.#vfio.isBound = true;
    pci_reset_function(this.#vfio.device);
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
      flags: VFIO_DEVICE_FLAGS_PCI | (pci_can_reset(this.#vfio.device) ? VFIO_DEVICE_FLAGS_RESET : 0),
      num_regions: VFIO_PCI_NUM_REGIONS,
      num_irqs: VFIO_PCI_NUM_IRQS,
      cap_offset: 0,
    };
    return writeStruct(ctx, VFIO_DEVICE_GET_INFO.struct, arg, info);
  }

  #getRegionInfo(ctx: SyscallContext, arg: bigint): number {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_GET_REGION_INFO, arg);
    if (value === undefined) return rc;
    if (value.index >= VFIO_PCI_VGA_REGION_INDEX) return -EINVAL;
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
    const isExpress = this.#vfio.device.function.expressType !== undefined;
    if (value.index === VFIO_PCI_ERR_IRQ_INDEX && !isExpress) return -EINVAL;
    const isIntx = value.index === VFIO_PCI_INTX_IRQ_INDEX;
    const flags = isIntx ? VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED : VFIO_IRQ_INFO_NORESIZE;
    return writeStruct(ctx, VFIO_DEVICE_GET_IRQ_INFO.struct, arg, {
      ...value,
      flags: VFIO_IRQ_INFO_EVENTFD | flags,
      count: this.#irqCount(value.index),
    });
  }

  /** Interrupts behind an index. Vectors are MSI-X only; the request and, of PCI Express, the error notifier are the kernel's own. */
  #irqCount(index: number): number {
    const { function: fn } = this.#vfio.device;
    if (index === VFIO_PCI_MSIX_IRQ_INDEX) return fn.msixVectors;
    if (index === VFIO_PCI_ERR_IRQ_INDEX) return fn.expressType === undefined ? 0 : 1;
    return index === VFIO_PCI_REQ_IRQ_INDEX ? 1 : 0;
  }

  #regionSize(index: number): number {
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) return this.#vfio.device.function.configBytes;
    return this.#vfio.device.function.bars.find((bar) => bar.index === index)?.sizeBytes ?? 0;
  }

  /**
   * What a file offset means; `bar` undefined = config. EINVAL for regions that do not exist, and beyond the end of a BAR;
   * an access that begins inside a BAR is cut at its end. EFAULT for what is not wholly inside configuration space.
   */
  #region(position: bigint, lengthBytes: number): RegionAccess | number {
    if (this.#idev === undefined) return -EINVAL;
    const index = Number(position >> REGION_SHIFT);
    const offset = Number(position & REGION_MASK);
    const size = index < VFIO_PCI_NUM_REGIONS ? this.#regionSize(index) : 0;
    if (index === VFIO_PCI_CONFIG_REGION_INDEX)
      return offset + lengthBytes > size ? -EFAULT : { bar: undefined, offset, lengthBytes };
    if (offset >= size) return -EINVAL;
    return { bar: index, offset, lengthBytes: Math.min(lengthBytes, size - offset) };
  }

  /** Whether a byte of a BAR belongs to the MSI-X table, which is the kernel's: it reads as ones and ignores writes. */
  #isMsixTable(bar: number, offset: number): boolean {
    const { function: fn } = this.#vfio.device;
    const table = msixTable(fn);
    return bar === table?.bar && offset >= table.offset && offset < table.offset + fn.msixVectors * PCI_MSIX_ENTRY_SIZE;
  }

  // --- interrupts ---

  *#setIrqs(ctx: SyscallContext, arg: bigint): Task<number> {
    const { rc, value } = readStruct(ctx, VFIO_DEVICE_SET_IRQS, arg);
    if (value === undefined) return rc;
    const type = value.flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    const action = value.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if ((value.flags & ~(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK)) !== 0) return -EINVAL;
    if (value.index >= VFIO_PCI_NUM_IRQS) return -EINVAL;
    const available = this.#irqCount(value.index);
    if (value.start >= available || value.start + value.count > available) return -EINVAL;
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
    if (action !== VFIO_IRQ_SET_ACTION_TRIGGER) return -ENOTTY;
    if (value.index === VFIO_PCI_REQ_IRQ_INDEX || value.index === VFIO_PCI_ERR_IRQ_INDEX)
      return this.#setNotifier(ctx, value.index, value.count, type, data);
    const isEnabled = this.#triggers.length > 0;
    if (isEnabled && type === VFIO_IRQ_SET_DATA_NONE && value.count === 0) {
      yield* this.#disableMsix();
      return 0;
    }
    if (type === VFIO_IRQ_SET_DATA_EVENTFD) {
      // pci_alloc_irq_vectors with fewer than one.
      if (!isEnabled && value.start + value.count === 0) return -ERANGE;
      return yield* this.#setTriggers(ctx, value.start, value.count, data);
    }
    return this.#fire(value.start, value.count, type === VFIO_IRQ_SET_DATA_BOOL ? data : undefined);
  }

  /**
   * The eventfd of an index with one interrupt that the kernel raises itself (vfio_pci_set_ctx_trigger_single): the request to let go of
   * the device, and errors of the link, of which none happen here.
   */
  #setNotifier(ctx: SyscallContext, index: number, count: number, type: number, data: Uint8Array): number {
    const notifier = this.#notifiers.get(index);
    if (type === VFIO_IRQ_SET_DATA_NONE) {
      if (notifier === undefined) return -EINVAL;
      if (count > 0) notifier.signal();
      else this.#notifiers.delete(index);
      return 0;
    }
    if (count === 0) return -EINVAL;
    if (type === VFIO_IRQ_SET_DATA_BOOL) {
      if (data[0] !== 0) notifier?.signal();
      return 0;
    }
    const fd = s32.read(new DataView(data.buffer, data.byteOffset), 0);
    if (fd < -1) return -EINVAL;
    this.#notifiers.delete(index);
    if (fd === -1) return 0;
    const eventfd = ctx.process.files.get(fd);
    if (!(eventfd instanceof EventFile)) return eventfd === undefined ? -EBADF : -EINVAL;
    this.#notifiers.set(index, eventfd);
    return 0;
  }

  /**
   * Gives vectors their eventfds (-1: none). The first call enables MSI-X with as many vectors as it reaches, which stay as
   * many until MSI-X is disabled (NORESIZE). When one fails, those set before it have none, and a first call disables again.
   */
  *#setTriggers(ctx: SyscallContext, start: number, count: number, data: Uint8Array): Task<number> {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const isFirst = this.#triggers.length === 0;
    if (isFirst) {
      this.#triggers = Array.from({ length: start + count }, () => undefined);
      this.#setMsixEnable(true);
    }
    for (let i = 0; i < count; i++) {
      const rc = yield* this.#setTrigger(ctx, start + i, s32.read(view, i * s32.sizeBytes));
      if (rc >= 0) continue;
      for (let set = start; set < start + i; set++) yield* this.#setTrigger(ctx, set, -1);
      if (isFirst) yield* this.#disableMsix();
      return rc;
    }
    return 0;
  }

  /** Frees a vector's interrupt and requests it for another eventfd: EBADF no descriptor, EINVAL no eventfd or no such vector. */
  *#setTrigger(ctx: SyscallContext, vector: number, fd: number): Task<number> {
    const { device } = this.#vfio;
    const before = this.#triggers[vector];
    if (before !== undefined) {
      this.#maskVector(vector);
      yield* this.#irq.free(device, vector, before.vector);
      this.#triggers[vector] = undefined;
    }
    if (fd < 0) return 0;
    if (vector >= this.#triggers.length) return -EINVAL;
    const eventfd = ctx.process.files.get(fd);
    if (!(eventfd instanceof EventFile)) return eventfd === undefined ? -EBADF : -EINVAL;
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
    const { address } = message;
    this.#writeVector(vector, 0, Number(address & 0xffff_ffffn));
    this.#writeVector(vector, 4, Number(address >> 32n));
    this.#writeVector(vector, 8, message.data);
    this.#writeVector(vector, VECTOR_CONTROL, 0);
  }

  #maskVector(vector: number): void {
    this.#writeVector(vector, VECTOR_CONTROL, 1);
  }

  #writeVector(vector: number, field: number, value: number): void {
    const { function: fn } = this.#vfio.device;
    const table = msixTable(fn);
    if (table === undefined) return;
    fn.barWrite(table.bar, table.offset + vector * PCI_MSIX_ENTRY_SIZE + field, u32.sizeBytes, value);
  }

  // --- reset ---

  /** pci_try_reset_function: the device forgets; its controls and MSI-X are put back. -EINVAL when nothing resets it,
   * -EAGAIN while it is being removed. */
  *#reset(): Task<number> {
    if (!pci_can_reset(this.#vfio.device)) return -EINVAL;
    // The device's lock is with the remover, who waits for this descriptor.
    if (this.#vfio.isGoing) return -EAGAIN;
    yield* this.#vfio.memoryLock.down_write();
    yield* this.#dmaBufs.revoke();
    yield FLR_NS;
    const triggers = this.#triggers;
    const rc = pci_reset_function(this.#vfio.device);
    yield* this.#dmaBufs.restore();
    this.#vfio.memoryLock.up_write();
    if (rc < 0) return rc;
    this.#vfio.migration?.wasReset();
    for (const [vector, trigger] of triggers.entries())
      if (trigger !== undefined) this.#programVector(vector, trigger.vector);
    if (triggers.length > 0) this.#setMsixEnable(true);
    return 0;
  }
}

/** Where a function's MSI-X table lies (PCIe 5.0 7.7.2.3); undefined without MSI-X. */
function msixTable(fn: PciFunction): { readonly bar: number; readonly offset: number } | undefined {
  const capability = fn.findCapability(PCI_CAP_ID_MSIX);
  if (capability === 0) return undefined;
  const word = fn.configRead(capability + 4, u32.sizeBytes);
  return { bar: word & 7, offset: (word & ~7) >>> 0 };
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
