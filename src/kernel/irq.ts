/**
 * Message-signalled interrupts: vectors, doorbells, and who is told.
 *
 * Each controller has an irq domain. A vector of a device is given an interrupt of its controller (an LPI, mapped for the
 * device by ITS commands; an SPI of a GICv2m frame; an x86 vector), and the message the device is to send: the doorbell's
 * address as the IOMMU core says the device reaches it, and the data. An interrupt that arrives runs the handler of its
 * number; one that nobody asked for is recorded as spurious, one that another device raised as foreign.
 *
 * Only doorbells of an ITS or a GICv2m frame are given an IOVA; the x86 window and frames inside a root complex are written at
 * their own address, as their drivers do, so the kernel must not map anything else there.
 *
 * Source: Linux drivers/irqchip/irq-gic-v3-its.c, irq-gic-v3-its-pci-msi.c, irq-gic-v2m.c, kernel/irq/msi.c,
 * drivers/iommu/intel/irq_remapping.c; domain.md A4.50-A4.54.
 */
import type { Board } from '../hardware/board.js';
import {
  GITS_CBASER,
  GITS_CREADR,
  GITS_CTLR,
  GITS_CWRITER,
  Its,
  ITS_COMMAND,
  ITS_OP,
  ITS_DEVICE_ID_BITS,
} from '../hardware/msi/its.js';
import { GITS_BASER, GITS_BASER_OFFSET, GITS_LVL1_ENTRY } from '../hardware/msi/its-table.js';
import { FIRST_LPI, GICR_CTLR, GICR_PENDBASER, GICR_PROPBASER, LPI_ENABLE } from '../hardware/msi/redistributor.js';
import type { Interrupt, MsiController } from '../hardware/msi/controller.js';
import {
  GCMD_REG,
  Gicv2m,
  InRcMsi,
  IRTA_REG,
  IRTE,
  IRTE_SVT,
  REMAPPABLE_ADDRESS,
  REMAPPING_BASE,
  V2M_MSI_TYPER,
} from '../hardware/msi/simple.js';
import type { NodeRuntime } from '../runtime/node-runtime.js';
import { Mutex } from '../runtime/locks.js';
import { invariant, type Task } from '../runtime/task.js';
import { sharedRead, sharedWrite } from '../runtime/watch.js';
import { ENODEV, ENOMEM, ENOSPC } from '../uapi/errno.js';
import { IRQ_ENTRY_NS, IRQ_SETUP_NS } from './costs.js';
import type { Device } from './device.js';
import type { IommuCore } from './iommu/iommu.js';
import { DmaMemory } from './iommu/dma-memory.js';

/** A vector that is set up: the message for the device's MSI-X table. */
export interface MsiVector {
  readonly intid: number;
  readonly address: bigint;
  readonly data: number;
}

/** Interrupts of one controller: numbers, and what the controller must be told. */
interface IrqDomain {
  /** Makes event `event` of a device raise interrupt `intid`; the message data, or -errno. */
  map(device: Device, event: number, intid: number): Task<number>;
  unmap(device: Device, vector: MsiVector): Task<void>;
  /** Whether the doorbell lies behind the IOMMU (`iommu_dma_prepare_msi` is asked where devices reach it). */
  readonly isBehindIommu: boolean;
  /** Bits of the message's address that say which interrupt it is, over the doorbell's. */
  addressBits?(intid: number): number;
  /** Frames of tables that are made when a device first needs them and kept when it has no vector any more; none when absent. */
  readonly keptFrames?: number;
  readonly first: number;
  readonly count: number;
}

const QUEUE_BYTES = 65536;
const POLL_NS = 200;
/** EventIDs of DeviceID 0, which broken systems give to all devices, at least. */
const DEVICE_0_EVENTS = 32;
const ITT_ENTRY_BYTES = 8;
/** LPIs that the configuration and pending tables have room for: INTIDs of 14 bits. */
const LPI_COUNT = 8192;
const INTID_BITS = 14;
const PENDING_TABLE_BYTES = 65536;
/** Pages of the two-level device table, and entries of eight bytes in each. */
const TABLE_PAGE_BYTES = 4096;
const ENTRIES_PER_PAGE = TABLE_PAGE_BYTES / 8;
const DEVICE_L1_BYTES = (2 ** ITS_DEVICE_ID_BITS / ENTRIES_PER_PAGE) * 8;
/** GICD_INT_DEF_PRI */
const LPI_PRIORITY = 0xa0;

/** What is mapped for one DeviceID; devices behind one alias share it. */
interface ItsDevice {
  readonly table: DmaMemory;
  /** By EventID; undefined is free. */
  readonly events: (Device | undefined)[];
}

/** The driver of one ITS and its redistributor. Commands go through the queue, one batch at a time. */
class ItsDomain implements IrqDomain {
  readonly first = FIRST_LPI;
  readonly count = LPI_COUNT;
  readonly isBehindIommu = true;
  readonly #board: Board;
  readonly #its: Its;
  readonly #queue: DmaMemory;
  readonly #deviceTable: DmaMemory;
  readonly #collectionTable: DmaMemory;
  readonly #configuration: DmaMemory;
  readonly #pending: DmaMemory;
  readonly #lock = new Mutex('its:queue');
  /** Devices come and go under it (dev_alloc_lock): nobody uses one before it is mapped. */
  readonly #devicesLock = new Mutex('its:dev_alloc_lock');
  readonly #devices = new Map<number, ItsDevice>();
  /** Second-level pages of the device table by their index. */
  readonly #pages = new Map<number, DmaMemory>();
  #writer = 0;

  constructor(board: Board, its: Its) {
    this.#board = board;
    this.#its = its;
    const alloc = (what: string, sizeBytes: number): DmaMemory => {
      const memory = DmaMemory.alloc(board.arena, sizeBytes);
      invariant(memory !== undefined, () => `no memory for an ITS ${what}`);
      return memory;
    };
    this.#queue = alloc('command queue', QUEUE_BYTES);
    this.#deviceTable = alloc('device table', DEVICE_L1_BYTES);
    this.#collectionTable = alloc('collection table', TABLE_PAGE_BYTES);
    this.#configuration = alloc('LPI configuration table', LPI_COUNT);
    this.#pending = alloc('LPI pending table', PENDING_TABLE_BYTES);
  }

  /** Gives the redistributor and the ITS their tables, enables them and maps collection 0 to the one CPU. */
  *start(): Task<void> {
    const { redistributor } = this.#its;
    const page = (memory: DmaMemory): number => memory.address / 4096;
    const configuration = GICR_PROPBASER.make({ IDbits: INTID_BITS - 1, Physical_Address: page(this.#configuration) });
    const pendingTable = this.#pending.address / PENDING_TABLE_BYTES;
    const pending = GICR_PENDBASER.make({ Physical_Address: pendingTable, PTZ: 1 });
    for (const half of [0, 1]) {
      redistributor.write(GICR_PROPBASER.offset + 4 * half, configuration[half] ?? 0);
      redistributor.write(GICR_PENDBASER.offset + 4 * half, pending[half] ?? 0);
    }
    redistributor.write(GICR_CTLR.offset, GICR_CTLR.make({ EnableLPIs: 1 })[0] ?? 0);
    const its = this.#its.base();
    const pages = DEVICE_L1_BYTES / TABLE_PAGE_BYTES;
    this.#write64(
      its + GITS_BASER_OFFSET,
      GITS_BASER.make({ Size: pages - 1, Physical_Address: page(this.#deviceTable), Indirect: 1, Valid: 1 }),
    );
    this.#write64(
      its + GITS_BASER_OFFSET + GITS_BASER.sizeBytes,
      GITS_BASER.make({ Size: 0, Physical_Address: page(this.#collectionTable), Valid: 1 }),
    );
    this.#write64(
      its + GITS_CBASER.offset,
      GITS_CBASER.make({ Size: QUEUE_BYTES / 4096 - 1, Physical_Address: page(this.#queue), Valid: 1 }),
    );
    this.#write(its + GITS_CTLR.offset, 1);
    yield* this.#issue({ OP: ITS_OP.MAPC, ICID: 0, Valid: 1 });
    yield* this.#issue({ OP: ITS_OP.INVALL, ICID: 0 });
  }

  get keptFrames(): number {
    const tables = [...this.#devices.values()].map(({ table }) => table);
    return DmaMemory.framesOf([...this.#pages.values(), ...tables]);
  }

  *map(device: Device, _vector: number, intid: number): Task<number> {
    const free = yield* this.#takeEvent(device);
    if (free < 0) return free;
    const DeviceID = device.msiDeviceId;
    yield* this.#issue({ OP: ITS_OP.MAPTI, DeviceID, EventID: free, pINTID: intid, ICID: 0 });
    yield* this.#configure(DeviceID, free, intid, LPI_PRIORITY | LPI_ENABLE);
    return free;
  }

  *unmap(device: Device, { intid, data }: MsiVector): Task<void> {
    const DeviceID = device.msiDeviceId;
    yield* this.#configure(DeviceID, data, intid, LPI_PRIORITY);
    yield* this.#issue({ OP: ITS_OP.DISCARD, DeviceID, EventID: data });
    const mapped = this.#devices.get(DeviceID);
    if (mapped !== undefined) mapped.events[data] = undefined;
  }

  /** Unmaps a device that goes away, unless another has its DeviceID too. */
  *forget(device: Device): Task<void> {
    yield* this.#devicesLock.lock();
    const mapped = this.#devices.get(device.msiDeviceId);
    if (mapped?.events.every((user) => user === undefined || user === device) === true) {
      yield* this.#issue({ OP: ITS_OP.MAPD, DeviceID: device.msiDeviceId, Valid: 0 });
      this.#devices.delete(device.msiDeviceId);
      mapped.table.free();
    }
    this.#devicesLock.unlock();
  }

  /** An EventID of a device, which is mapped first when it is new; -ENOSPC when all are taken, -ENOMEM. */
  *#takeEvent(device: Device): Task<number> {
    yield* this.#devicesLock.lock();
    const mapped = this.#devices.get(device.msiDeviceId) ?? (yield* this.#mapDevice(device));
    const free = mapped?.events.indexOf(undefined) ?? -1;
    if (mapped !== undefined && free >= 0) mapped.events[free] = device;
    this.#devicesLock.unlock();
    if (mapped === undefined) return -ENOMEM;
    return free < 0 ? -ENOSPC : free;
  }

  /** Gives a device a translation table; undefined without memory for it, or for its part of the device table. */
  *#mapDevice(device: Device): Task<ItsDevice | undefined> {
    const DeviceID = device.msiDeviceId;
    if (!this.#hasDevicePage(DeviceID)) return undefined;
    // A power of two, and one bit at least.
    const bits = Math.max(1, Math.ceil(Math.log2(eventsOf(this.#board, device))));
    const table = DmaMemory.alloc(this.#board.arena, ITT_ENTRY_BYTES * 2 ** bits);
    if (table === undefined) return undefined;
    const mapped: ItsDevice = { table, events: Array.from({ length: 2 ** bits }, () => undefined) };
    this.#devices.set(DeviceID, mapped);
    yield* this.#issue({ OP: ITS_OP.MAPD, DeviceID, Size: bits - 1, ITT_address: table.address / 256, Valid: 1 });
    return mapped;
  }

  /** Whether the device table has a second-level page for a DeviceID; makes one. */
  #hasDevicePage(deviceId: number): boolean {
    const index = Math.floor(deviceId / ENTRIES_PER_PAGE);
    if (index * 8 >= DEVICE_L1_BYTES) return false;
    if (this.#pages.has(index)) return true;
    const memory = DmaMemory.alloc(this.#board.arena, TABLE_PAGE_BYTES);
    if (memory === undefined) return false;
    this.#pages.set(index, memory);
    const [lo = 0, hi = 0] = GITS_LVL1_ENTRY.make({ Physical_Address: memory.address / 4096, Valid: 1 });
    this.#deviceTable.store64(GITS_LVL1_ENTRY.sizeBytes * index, lo, hi);
    return true;
  }

  /** Writes an LPI's configuration byte and has the redistributor read it. */
  *#configure(DeviceID: number, EventID: number, intid: number, byte: number): Task<void> {
    const at = intid - FIRST_LPI;
    const [word = 0] = this.#configuration.read(at & ~3, 1);
    const shift = 8 * (at & 3);
    this.#configuration.write(at & ~3, Uint32Array.of((word & ~(0xff << shift)) | (byte << shift)));
    yield* this.#issue({ OP: ITS_OP.INV, DeviceID, EventID });
  }

  /** Queues a command and a SYNC, and waits until both are consumed. */
  *#issue(fields: Parameters<typeof ITS_COMMAND.make>[0]): Task<void> {
    yield* this.#lock.lock();
    for (const command of [ITS_COMMAND.make(fields), ITS_COMMAND.make({ OP: ITS_OP.SYNC })]) {
      this.#queue.write(this.#writer, command);
      this.#writer = (this.#writer + ITS_COMMAND.sizeBytes) % QUEUE_BYTES;
    }
    this.#write(this.#its.base() + GITS_CWRITER.offset, this.#writer);
    while (this.#board.bus.mmioRead32(this.#its.base() + GITS_CREADR.offset) !== this.#writer) yield POLL_NS;
    this.#lock.unlock();
  }

  #write64(address: number, [lo = 0, hi = 0]: Uint32Array): void {
    this.#write(address, lo);
    this.#write(address + 4, hi);
  }

  #write(address: number, value: number): void {
    invariant(this.#board.bus.mmioWrite32(address, value), () => `${this.#its.name} does not answer`);
  }
}

/** EventIDs that may be wanted with a device's DeviceID: its vectors, below an aliasing bridge those of everything there. */
function eventsOf(board: Board, device: Device): number {
  const fn = device.function;
  const bridge = board.bridgeOf(fn);
  const atLeast = device.msiDeviceId === 0 ? DEVICE_0_EVENTS : 1;
  if (bridge.doorbellOf(fn)?.id === device.msiDeviceId) return Math.max(atLeast, fn.msixVectors);
  let top = device;
  while (top.parent !== undefined) top = top.parent;
  const { secondaryBus, subordinateBus } = top.function;
  const below = bridge.functions.filter(({ bus }) => secondaryBus <= bus && bus <= subordinateBus);
  return Math.max(
    atLeast,
    fn.msixVectors,
    below.reduce((sum, { msixVectors }) => sum + msixVectors, 0),
  );
}

/** Controllers whose message data is the interrupt number itself. */
class DirectDomain implements IrqDomain {
  readonly first: number;
  readonly count: number;
  readonly isBehindIommu: boolean;

  constructor(first: number, count: number, isBehindIommu: boolean) {
    this.first = first;
    this.count = count;
    this.isBehindIommu = isBehindIommu;
  }

  *map(_device: Device, _event: number, intid: number): Task<number> {
    return intid;
  }

  *unmap(): Task<void> {
    // The number is all there is.
  }
}

/** First vector for devices on x86, and how many. */
const X86_FIRST_VECTOR = 0x30;
const X86_VECTORS = 0xb0;
/** Entries of the remapping table: one a vector. */
const IRTE_COUNT = 256;
/** Interrupt remapping on x86 (drivers/iommu/intel/irq_remapping.c): an entry a vector, for one requester. */
class RemappingDomain implements IrqDomain {
  readonly first = X86_FIRST_VECTOR;
  readonly count = X86_VECTORS;
  readonly isBehindIommu = false;
  readonly #table: DmaMemory;

  constructor(board: Board) {
    const table = DmaMemory.alloc(board.arena, IRTE_COUNT * IRTE.sizeBytes);
    invariant(table !== undefined, 'no memory for the interrupt remapping table');
    this.#table = table;
    const [lo = 0, hi = 0] = IRTA_REG.make({ S: Math.log2(IRTE_COUNT) - 1, IRTA: table.address / 4096 });
    board.bus.mmioWrite32(REMAPPING_BASE + IRTA_REG.offset, lo);
    board.bus.mmioWrite32(REMAPPING_BASE + IRTA_REG.offset + 4, hi);
    board.bus.mmioWrite32(REMAPPING_BASE + GCMD_REG.offset, GCMD_REG.make({ SIRTP: 1 })[0] ?? 0);
    board.bus.mmioWrite32(REMAPPING_BASE + GCMD_REG.offset, GCMD_REG.make({ IRE: 1 })[0] ?? 0);
  }

  *map(device: Device, _event: number, intid: number): Task<number> {
    const [lo = 0, hi = 0, ...source] = IRTE.make({ P: 1, Vector: intid, ...sourceOf(device) });
    const at = intid * IRTE.sizeBytes;
    // The entry becomes present last.
    this.#table.write(at + 8, Uint32Array.from(source));
    this.#table.store64(at, lo, hi);
    return 0;
  }

  *unmap(_device: Device, { intid }: MsiVector): Task<void> {
    this.#table.store64(intid * IRTE.sizeBytes, 0, 0);
    this.#table.store64(intid * IRTE.sizeBytes + 8, 0, 0);
  }

  addressBits(intid: number): number {
    return REMAPPABLE_ADDRESS.make({ FORMAT: 1, HANDLE: intid })[0] ?? 0;
  }
}

/** Who may use an entry (set_msi_sid): a PCIe-to-PCI bridge may forward under its own ID, so of what is below the bus is checked. */
function sourceOf(device: Device): { readonly SVT: number; readonly SID: number } {
  const { requesterId, bus } = device.function;
  const seenAs = device.msiDeviceId & 0xffff;
  const aliasBus = seenAs >>> 8;
  let above = device.parent;
  while (above !== undefined && above.function.secondaryBus !== aliasBus) above = above.parent;
  const isBusAlias = seenAs !== requesterId && above !== undefined;
  return isBusAlias ? { SVT: IRTE_SVT.BUS, SID: (aliasBus << 8) | bus } : { SVT: IRTE_SVT.SID_SQ, SID: seenAs };
}

/** Who asked for an interrupt. */
interface Handler {
  readonly device: Device;
  readonly run: () => void;
}

/** All MSI interrupts of a host. */
export class IrqCore {
  readonly #runtime: NodeRuntime;
  readonly #board: Board;
  readonly #iommu: IommuCore;
  readonly #domains = new Map<string, IrqDomain>();
  /** Handlers by `controller/intid`. */
  readonly #handlers = new Map<string, Handler>();

  constructor(runtime: NodeRuntime, board: Board, iommu: IommuCore) {
    this.#runtime = runtime;
    this.#board = board;
    this.#iommu = iommu;
    board.onInterrupt((interrupt) => this.#arrived(interrupt));
  }

  /** Starts the controllers' drivers. */
  *start(): Task<void> {
    for (const controller of this.#board.msiControllers.values()) yield* this.#startDomain(controller);
  }

  /** Interrupts in use. */
  get vectorsInUse(): number {
    return this.#handlers.size;
  }

  /** Frames of controllers' tables that a device needed once and that stay. */
  get keptFrames(): number {
    return [...this.#domains.values()].reduce((sum, { keptFrames = 0 }) => sum + keptFrames, 0);
  }

  /** Sets up MSI vector `event` of a device and its handler; -errno: ENODEV no controller, ENOSPC, or the IOMMU's. */
  *request(device: Device, event: number, handler: () => void): Task<MsiVector | number> {
    const controller = this.#controllerOf(device);
    const domain = controller === undefined ? undefined : this.#domains.get(controller.name);
    if (controller === undefined || domain === undefined) return -ENODEV;
    yield IRQ_SETUP_NS;
    const intid = this.#freeIntid(controller.name, domain);
    if (intid === undefined) return -ENOSPC;
    sharedWrite(this, 'handlers');
    this.#handlers.set(`${controller.name}/${intid}`, { device, run: handler });
    const doorbell = domain.isBehindIommu
      ? yield* this.#iommu.iommu_dma_prepare_msi(device, controller.doorbell)
      : BigInt(controller.doorbell);
    const data = typeof doorbell === 'number' ? doorbell : yield* domain.map(device, event, intid);
    if (data < 0 || typeof doorbell === 'number') {
      sharedWrite(this, 'handlers');
      this.#handlers.delete(`${controller.name}/${intid}`);
      return data;
    }
    const address = doorbell + BigInt(domain.addressBits?.(intid) ?? 0);
    this.#runtime.emit('irq.request', { device: device.name, event, controller: controller.name, intid, address });
    return { intid, address, data };
  }

  *free(device: Device, event: number, vector: MsiVector): Task<void> {
    const controller = this.#controllerOf(device);
    if (controller === undefined) return;
    yield* this.#domains.get(controller.name)?.unmap(device, vector) ?? nothing();
    sharedWrite(this, 'handlers');
    this.#handlers.delete(`${controller.name}/${vector.intid}`);
  }

  /** A device leaves. */
  *forget(device: Device): Task<void> {
    const controller = this.#controllerOf(device);
    const domain = controller === undefined ? undefined : this.#domains.get(controller.name);
    if (domain instanceof ItsDomain) yield* domain.forget(device);
    sharedWrite(this, 'handlers');
    for (const [key, handler] of this.#handlers) if (handler.device === device) this.#handlers.delete(key);
  }

  #controllerOf(device: Device): MsiController | undefined {
    return device.msiController === undefined ? undefined : this.#board.msiControllers.get(device.msiController);
  }

  #freeIntid(controller: string, domain: IrqDomain): number | undefined {
    sharedRead(this, 'handlers');
    for (let intid = domain.first; intid < domain.first + domain.count; intid++) {
      if (!this.#handlers.has(`${controller}/${intid}`)) return intid;
    }
    return undefined;
  }

  *#startDomain(controller: MsiController): Task<void> {
    if (controller instanceof Its) {
      const domain = new ItsDomain(this.#board, controller);
      this.#domains.set(controller.name, domain);
      yield* domain.start();
    } else this.#domains.set(controller.name, this.#directDomain(controller));
  }

  #directDomain(controller: MsiController): IrqDomain {
    if (controller instanceof Gicv2m) {
      const typer = this.#board.bus.mmioRead32(controller.base() + V2M_MSI_TYPER.offset) ?? 0;
      const { Base, Number: count } = V2M_MSI_TYPER.decode([typer]);
      return new DirectDomain(Base, count, true);
    }
    if (controller instanceof InRcMsi)
      return new DirectDomain(controller.numbers.first, controller.numbers.count, false);
    if (controller.isolated) return new RemappingDomain(this.#board);
    return new DirectDomain(X86_FIRST_VECTOR, X86_VECTORS, false);
  }

  /** Whether a controller says of itself that one group's devices raise no interrupts of another's. */
  #claimsIsolation(controller: string, from: string, owner: Device): boolean {
    const { faults } = this.#runtime;
    const isIsolated = this.#board.description.msiControllers.some(
      ({ name, isolated }) => name === controller && isolated,
    );
    return isIsolated && owner.group?.devices.some(({ name }) => name === from) !== true && !faults.isHardwareBroken;
  }

  /** Runs the handler; tells of interrupts that nobody asked for, and of those that another function raised. */
  #arrived({ controller, intid, from }: Interrupt): void {
    sharedRead(this, 'handlers');
    const handler = this.#handlers.get(`${controller}/${intid}`);
    const named = { controller, intid, from: from ?? 'software' };
    if (handler === undefined) {
      this.#runtime.emit('irq.spurious', named);
      return;
    }
    if (from !== undefined && from !== handler.device.name) {
      this.#runtime.emit('irq.foreign', { ...named, owner: handler.device.name });
      invariant(
        !this.#claimsIsolation(controller, from, handler.device),
        () => `${from} raised an interrupt of ${handler.device.name} at ${controller}, which claims to keep them apart`,
        'INV-15',
      );
    }
    this.#runtime.invariants.held('INV-15');
    this.#runtime.scheduler.callAt(this.#runtime.now + IRQ_ENTRY_NS, handler.run);
  }
}

function* nothing(): Task<void> {
  // For controllers that need not be told.
}
