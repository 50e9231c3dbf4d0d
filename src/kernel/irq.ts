/**
 * Message-signalled interrupts: vectors, doorbells, and who is told.
 *
 * Each controller has an irq domain. A vector of a device is given an interrupt of its controller (an LPI, mapped for the
 * device by ITS commands; an SPI of a GICv2m frame; an x86 vector), and the message the device is to send: the doorbell's
 * address as the IOMMU core says the device reaches it, and the data. An interrupt that arrives runs the handler of its
 * number; one that nobody asked for is recorded as spurious.
 *
 * Source: Linux drivers/irqchip/irq-gic-v3-its.c, irq-gic-v2m.c, kernel/irq/msi.c; domain.md A4.50-A4.54.
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
  FIRST_LPI,
} from '../hardware/msi/its.js';
import type { Interrupt, MsiController } from '../hardware/msi/controller.js';
import { Gicv2m, IN_RC_COUNT, IN_RC_FIRST, InRcMsi, V2M_FIRST_SPI, V2M_SPIS } from '../hardware/msi/simple.js';
import type { NodeRuntime } from '../runtime/node-runtime.js';
import { Mutex } from '../runtime/locks.js';
import { invariant, type Task } from '../runtime/task.js';
import { ENODEV, ENOSPC } from '../uapi/errno.js';
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
  unmap(device: Device, event: number): Task<void>;
  readonly first: number;
  readonly count: number;
}

const QUEUE_BYTES = 65536;
const POLL_NS = 200;
/** EventID bits of a device's translation table: 32 events. */
const EVENT_BITS = 5;
const ITT_BYTES = 4096;

/** The driver of one ITS. Commands go through its queue, one batch at a time. */
class ItsDomain implements IrqDomain {
  readonly first = FIRST_LPI;
  readonly count = 8192;
  readonly #board: Board;
  readonly #its: Its;
  readonly #queue: DmaMemory;
  readonly #lock = new Mutex('its:queue');
  readonly #tables = new Map<Device, DmaMemory>();
  #writer = 0;

  constructor(board: Board, its: Its) {
    this.#board = board;
    this.#its = its;
    const queue = DmaMemory.alloc(board.arena, QUEUE_BYTES);
    invariant(queue !== undefined, 'no memory for an ITS command queue');
    this.#queue = queue;
  }

  /** Programs the queue, enables the ITS and maps collection 0 to the one CPU. */
  *start(): Task<void> {
    const [lo = 0, hi = 0] = GITS_CBASER.make({
      Size: QUEUE_BYTES / 4096 - 1,
      Physical_Address: this.#queue.address / 4096,
      Valid: 1,
    });
    this.#write(GITS_CBASER.offset, lo);
    this.#write(GITS_CBASER.offset + 4, hi);
    this.#write(GITS_CTLR.offset, 1);
    yield* this.#issue({ OP: ITS_OP.MAPC, ICID: 0, Valid: 1 });
  }

  *map(device: Device, event: number, intid: number): Task<number> {
    if (!this.#tables.has(device)) {
      const table = DmaMemory.alloc(this.#board.arena, ITT_BYTES);
      if (table === undefined) return -ENOSPC;
      this.#tables.set(device, table);
      yield* this.#issue({
        OP: ITS_OP.MAPD,
        DeviceID: device.msiDeviceId,
        Size: EVENT_BITS - 1,
        ITT_address: table.address / 256,
        Valid: 1,
      });
    }
    yield* this.#issue({ OP: ITS_OP.MAPTI, DeviceID: device.msiDeviceId, EventID: event, pINTID: intid, ICID: 0 });
    return event;
  }

  *unmap(device: Device, event: number): Task<void> {
    yield* this.#issue({ OP: ITS_OP.DISCARD, DeviceID: device.msiDeviceId, EventID: event });
  }

  /** Unmaps a device that goes away. */
  *forget(device: Device): Task<void> {
    const table = this.#tables.get(device);
    if (table === undefined) return;
    yield* this.#issue({ OP: ITS_OP.MAPD, DeviceID: device.msiDeviceId, Valid: 0 });
    this.#tables.delete(device);
    table.free();
  }

  /** Queues a command and a SYNC, and waits until both are consumed. */
  *#issue(fields: Parameters<typeof ITS_COMMAND.make>[0]): Task<void> {
    yield* this.#lock.lock();
    for (const command of [ITS_COMMAND.make(fields), ITS_COMMAND.make({ OP: ITS_OP.SYNC })]) {
      this.#queue.write(this.#writer, command);
      this.#writer = (this.#writer + ITS_COMMAND.sizeBytes) % QUEUE_BYTES;
    }
    this.#write(GITS_CWRITER.offset, this.#writer);
    while (this.#board.bus.mmioRead32(this.#its.base() + GITS_CREADR.offset) !== this.#writer) yield POLL_NS;
    this.#lock.unlock();
  }

  #write(offset: number, value: number): void {
    invariant(this.#board.bus.mmioWrite32(this.#its.base() + offset, value), `${this.#its.name} does not answer`);
  }
}

/** Controllers whose message data is the interrupt number itself. */
class DirectDomain implements IrqDomain {
  readonly first: number;
  readonly count: number;

  constructor(first: number, count: number) {
    this.first = first;
    this.count = count;
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

/** All MSI interrupts of a host. */
export class IrqCore {
  readonly #runtime: NodeRuntime;
  readonly #board: Board;
  readonly #iommu: IommuCore;
  readonly #domains = new Map<string, IrqDomain>();
  /** Handlers by `controller/intid`. */
  readonly #handlers = new Map<string, () => void>();
  readonly #counts = new Map<string, number>();

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

  /** Sets up MSI vector `event` of a device and its handler; -errno: ENODEV no controller, ENOSPC, or the IOMMU's. */
  *request(device: Device, event: number, handler: () => void): Task<MsiVector | number> {
    const controller = this.#controllerOf(device);
    const domain = controller === undefined ? undefined : this.#domains.get(controller.name);
    if (controller === undefined || domain === undefined) return -ENODEV;
    yield IRQ_SETUP_NS;
    const intid = this.#freeIntid(controller.name, domain);
    if (intid === undefined) return -ENOSPC;
    this.#handlers.set(`${controller.name}/${intid}`, handler);
    const address = yield* this.#iommu.iommu_dma_prepare_msi(device, controller.doorbell);
    const data = typeof address === 'number' ? address : yield* domain.map(device, event, intid);
    if (data < 0 || typeof address === 'number') {
      this.#handlers.delete(`${controller.name}/${intid}`);
      return data;
    }
    this.#runtime.emit('irq.request', { device: device.name, event, controller: controller.name, intid, address });
    return { intid, address, data };
  }

  *free(device: Device, event: number, vector: MsiVector): Task<void> {
    const controller = this.#controllerOf(device);
    if (controller === undefined) return;
    yield* this.#domains.get(controller.name)?.unmap(device, event) ?? nothing();
    this.#handlers.delete(`${controller.name}/${vector.intid}`);
  }

  /** A device leaves. */
  *forget(device: Device): Task<void> {
    const controller = this.#controllerOf(device);
    const domain = controller === undefined ? undefined : this.#domains.get(controller.name);
    if (domain instanceof ItsDomain) yield* domain.forget(device);
  }

  #controllerOf(device: Device): MsiController | undefined {
    return device.msiController === undefined ? undefined : this.#board.msiControllers.get(device.msiController);
  }

  #freeIntid(controller: string, domain: IrqDomain): number | undefined {
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
    } else {
      let domain = new DirectDomain(X86_FIRST_VECTOR, X86_VECTORS);
      if (controller instanceof Gicv2m) domain = new DirectDomain(V2M_FIRST_SPI, V2M_SPIS);
      else if (controller instanceof InRcMsi) domain = new DirectDomain(IN_RC_FIRST, IN_RC_COUNT);
      this.#domains.set(controller.name, domain);
    }
  }

  #arrived(interrupt: Interrupt): void {
    const key = `${interrupt.controller}/${interrupt.intid}`;
    this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
    const handler = this.#handlers.get(key);
    if (handler === undefined)
      this.#runtime.emit('irq.spurious', { controller: interrupt.controller, intid: interrupt.intid });
    else this.#runtime.scheduler.callAt(this.#runtime.now + IRQ_ENTRY_NS, handler);
  }
}

function* nothing(): Task<void> {
  // For controllers that need not be told.
}
