/**
 * A board: everything of a host that is not software, built from its description.
 *
 * Arena and physical memory (the arena's kernel window is the top of the first bank that can hold it), the system bus, SMMUs
 * at their register bases, interrupt controllers, host bridges and the functions below them. Firmware's share is done here:
 * BARs have addresses when the kernel starts. Functions described as absent are empty slots until they are plugged.
 */
import { Arena, FRAME_BYTES, PFN_END } from '../core/arena.js';
import type { NodeRuntime } from '../runtime/node-runtime.js';
import type { Task } from '../runtime/task.js';
import { EBUSY, ENODEV } from '../uapi/errno.js';
import { DMA_ENGINE_MSIX_BAR, DMA_ENGINE_REGISTER_BAR, DMA_ENGINE_VECTORS } from '../uapi/dma-engine.js';
import { NIC_BAR_BYTES, NIC_MSIX_BAR, NIC_REGISTER_BAR, NIC_VECTORS } from '../uapi/nic.js';
import { BusAnalyser } from './analyser.js';
import { SystemBus } from './bus.js';
import {
  UnbuildableError,
  type AddressRange,
  type HostDescription,
  type MsiControllerDescription,
  type PciFunctionDescription,
} from './description.js';
import { BarMemory } from './devices/bar-memory.js';
import { DmaEngine } from './devices/dma-engine.js';
import { MigrationUnit, type MigratableModel } from './devices/migration-unit.js';
import { Nic } from './devices/nic.js';
import { PhysicalMemory } from './memory.js';
import type { Interrupt, MsiController } from './msi/controller.js';
import { Its } from './msi/its.js';
import { Gicv2m, InRcMsi, spisOf, X86Msi } from './msi/simple.js';
import { functionType } from './pcie/config-builder.js';
import type { Capture } from './pcie/fabric.js';
import { HostBridge, type DmaWatcher } from './pcie/host-bridge.js';
import { PciFunction, type Bar } from './pcie/function.js';
import { Slot } from './pcie/slot.js';
import { TLB_WORDS } from './smmu/ports.js';
import { SMMU_FRAME_BYTES } from '../uapi/smmuv3-registers.js';
import type { AtcInvalidation } from './smmu/ats.js';
import type { LegalityChecker } from './smmu/legality.js';
import { Smmu } from './smmu/smmu.js';

/** Frames of the kernel window: page tables, queues, tables of the SMMU. */
const KERNEL_FRAMES = 16384;
/** The window starts at a multiple of this (core: largest buddy order). */
const WINDOW_ALIGN_BYTES = 4096 * FRAME_BYTES;
const DMA_ENGINE_BAR_BYTES = 4096;
const IN_RC_FRAME_BYTES = 4096;
/** To a device and back. */
const ATC_INVALIDATION_NS = 200;

/** Physical address of the kernel window: the top of the first bank with room. @throws UnbuildableError when there is none */
function kernelWindowBase(banks: readonly AddressRange[]): number {
  const sizeBytes = KERNEL_FRAMES * FRAME_BYTES;
  for (const bank of banks) {
    const end = Math.min(Number(bank.last) + 1, PFN_END * FRAME_BYTES);
    const base = Math.floor((end - sizeBytes) / WINDOW_ALIGN_BYTES) * WINDOW_ALIGN_BYTES;
    if (base >= Number(bank.start)) return base;
  }
  throw new UnbuildableError(`no memory bank has ${sizeBytes / 2 ** 20} MiB below 2^52 for the kernel`);
}

/** BARs that device models bring: registers and MSI-X, of one size. */
const MODEL_BARS = {
  'dma-engine': { indices: [DMA_ENGINE_REGISTER_BAR, DMA_ENGINE_MSIX_BAR], sizeBytes: DMA_ENGINE_BAR_BYTES },
  nic: { indices: [NIC_REGISTER_BAR, NIC_MSIX_BAR], sizeBytes: NIC_BAR_BYTES },
} as const;

function barsOf({ model, bars = [] }: PciFunctionDescription): Bar[] {
  if (model !== 'dma-engine' && model !== 'nic')
    return bars.map(({ index, sizeBytes, is64 }) => ({ index, sizeBytes, is64 }));
  const { indices, sizeBytes } = MODEL_BARS[model];
  return indices.map((index) => ({ index, sizeBytes, is64: true }));
}

/** What happened to a card: it is there, it is asked for, it is gone without a word. */
export type HotplugChange = 'present' | 'absent' | 'gone';

/** One host's hardware. */
export class Board {
  readonly description: HostDescription;
  readonly arena: Arena;
  readonly memory: PhysicalMemory;
  readonly bus: SystemBus;
  readonly analyser: BusAnalyser;
  readonly smmus = new Map<string, Smmu>();
  readonly msiControllers = new Map<string, MsiController>();
  readonly hostBridges: HostBridge[] = [];
  /** By BDF, empty slots included. */
  readonly functions = new Map<string, PciFunction>();
  /** The kernel window as a range of physical addresses. */
  readonly kernelWindow: { readonly start: number; readonly last: number };
  readonly #runtime: NodeRuntime;
  #interruptHandler: (interrupt: Interrupt) => void = () => undefined;
  #smmuIrqHandler: (smmu: string, line: string) => void = () => undefined;
  #dmaWatcher: DmaWatcher = { began: () => undefined, translated: () => undefined, ended: () => undefined };
  #hotplugHandler: (bdf: string, what: HotplugChange) => void = () => undefined;
  readonly #slots = new Map<PciFunction, Slot>();

  /** @throws UnbuildableError when the description cannot be built (no memory for the kernel, no window for a BAR). */
  constructor(runtime: NodeRuntime, description: HostDescription) {
    this.#runtime = runtime;
    this.description = description;
    const windowBase = kernelWindowBase(description.memory);
    this.arena = Arena.create({ kernelFrames: KERNEL_FRAMES, kernelBasePfn: windowBase / FRAME_BYTES });
    this.arena.setKernelAllocFault(() => runtime.faults.fires('core.kernel-alloc'));
    this.kernelWindow = { start: windowBase, last: windowBase + KERNEL_FRAMES * FRAME_BYTES - 1 };
    this.memory = new PhysicalMemory(this.arena, description.memory);
    this.bus = new SystemBus(this.memory);
    this.analyser = new BusAnalyser(runtime);
    for (const smmu of description.iommus) this.#addSmmu(smmu);
    for (const controller of description.msiControllers) this.#addMsiController(controller);
    for (const bridge of description.hostBridges) this.#addHostBridge(bridge);
    for (const fn of description.functions) this.#addFunction(fn);
    for (const fn of this.functions.values()) this.#linkVirtualFunction(fn);
    for (const bridge of this.hostBridges) bridge.assignResources();
    for (const fn of this.functions.values()) if (fn.isBridge) this.#wireBridge(fn);
  }

  /** The kernel's handler for interrupts that arrive at a CPU. */
  onInterrupt(handler: (interrupt: Interrupt) => void): void {
    this.#interruptHandler = handler;
  }

  /** Who watches what software writes for an SMMU to read. */
  legalityOf(smmu: string): LegalityChecker | undefined {
    return this.smmus.get(smmu)?.legality;
  }

  /** The kernel's handler for the wired interrupts of SMMUs. */
  onSmmuIrq(handler: (smmu: string, line: string) => void): void {
    this.#smmuIrqHandler = handler;
  }

  /** Who looks on at the DMA of devices from now on. */
  watchDma(watcher: DmaWatcher): void {
    this.#dmaWatcher = watcher;
  }

  /** The kernel's handler for slots that change. */
  onHotplug(handler: (bdf: string, what: HotplugChange) => void): void {
    this.#hotplugHandler = handler;
  }

  /** The host bridge a function sits below. */
  bridgeOf(fn: PciFunction): HostBridge {
    const bridge = this.hostBridges.find((candidate) => candidate.functions.includes(fn));
    if (bridge === undefined) throw new UnbuildableError(`${fn.bdf} is below no host bridge`);
    return bridge;
  }

  /** The controller a function's MSIs go to. */
  msiControllerOf(fn: PciFunction): MsiController | undefined {
    const doorbell = this.bridgeOf(fn).doorbellOf(fn);
    return doorbell === undefined ? undefined : this.msiControllers.get(doorbell.name);
  }

  /** Puts a card into its slot: 0, -ENODEV no such slot, -EBUSY taken. The kernel learns of it. */
  plug(bdf: string): number {
    const fn = this.functions.get(bdf);
    if (fn === undefined) return -ENODEV;
    if (fn.isPresent) return -EBUSY;
    const slot = this.slotOf(fn);
    if (slot !== undefined) {
      if (slot.isOccupied) return -EBUSY;
      slot.insert();
    } else {
      fn.isPresent = true;
      fn.reset();
    }
    this.#runtime.emit('slot.present', { device: bdf });
    this.#hotplugHandler(bdf, 'present');
    return 0;
  }

  /** Asks for a card back: 0, -ENODEV. It leaves the slot when the kernel lets go of it ({@link remove}). */
  unplug(bdf: string): number {
    const fn = this.functions.get(bdf);
    if (fn?.isPresent !== true) return -ENODEV;
    this.slotOf(fn)?.pressAttentionButton();
    this.#runtime.emit('slot.attention', { device: bdf });
    this.#hotplugHandler(bdf, 'absent');
    return 0;
  }

  /** Tears a card out of its slot, whatever it is doing: 0, -ENODEV. The kernel learns of it afterwards. */
  yank(bdf: string): number {
    const fn = this.functions.get(bdf);
    if (fn?.isPresent !== true) return -ENODEV;
    this.remove(bdf);
    this.#hotplugHandler(bdf, 'gone');
    return 0;
  }

  /** The card is out of its slot. */
  remove(bdf: string): void {
    const fn = this.functions.get(bdf);
    if (fn === undefined) return;
    const slot = this.slotOf(fn);
    if (slot !== undefined) slot.withdraw();
    else if (fn.isPresent) {
      fn.reset();
      fn.isPresent = false;
    }
    this.#runtime.emit('slot.absent', { device: bdf });
  }

  /** The slot a function is in, on a card or on what a card's switch leads to; undefined where it is soldered. */
  slotOf(fn: PciFunction): Slot | undefined {
    const { fabric } = this.bridgeOf(fn);
    for (let port = fabric.parentOf(fn); port !== undefined; port = fabric.parentOf(port)) {
      const slot = this.#slots.get(port);
      if (slot !== undefined) return slot;
    }
    return undefined;
  }

  /** Functions that come and go with a function, itself included, from the slot down: its card's, and all below. */
  slotMates(fn: PciFunction): PciFunction[] {
    const slot = this.slotOf(fn);
    if (slot === undefined) return [fn];
    const { fabric, functions } = this.bridgeOf(fn);
    return functions
      .filter((other) => fabric.isBelow(other, slot.port) && other.physicalFunction === undefined)
      .sort((a, b) => a.bus - b.bus);
  }

  #wireBridge(port: PciFunction): void {
    const { functions, fabric } = this.bridgeOf(port);
    const below = (): PciFunction[] => functions.filter((fn) => fabric.isBelow(fn, port));
    let slot: Slot | undefined;
    if (port.hasSlot) {
      const isHere = (fn: PciFunction): boolean => this.slotOf(fn)?.port === port;
      const inner = (): Slot[] => [...this.#slots.values()].filter((other) => isHere(other.port));
      slot = new Slot(port, () => below().filter(isHere), inner);
      this.#slots.set(port, slot);
      slot.start();
    }
    port.setBridgeHooks({
      secondaryReset: () => {
        for (const fn of below()) if (fn.isPresent) fn.reset();
      },
      slotControlWritten: () => slot?.controlWritten(),
    });
  }

  #addSmmu(description: HostDescription['iommus'][number]): void {
    const storage = this.arena.allocFrame(Math.ceil(Math.log2((TLB_WORDS * 4) / FRAME_BYTES)));
    const smmu = new Smmu({
      runtime: this.#runtime,
      memory: this.memory,
      description,
      irq: (line) => this.#smmuIrqHandler(description.name, line),
      atc: (invalidation) => this.#invalidateAtc(description.name, invalidation),
      ...(storage === 0 ? {} : { tlbStorage: { words: this.arena.words, base: this.arena.frameOffset(storage) / 4 } }),
    });
    this.smmus.set(description.name, smmu);
    const base = Number(description.base);
    this.bus.attach({
      name: description.name,
      kind: 'registers',
      base: () => base,
      sizeBytes: SMMU_FRAME_BYTES,
      read: (offset, sizeBytes) => (sizeBytes === 4 ? smmu.readRegister(offset, 4) : 0),
      write: (offset, sizeBytes, value) => {
        if (sizeBytes === 4) smmu.writeRegister(offset, 4, value);
      },
    });
  }

  /** Takes an invalidation to the function with that stream; one that is gone never completes it. */
  *#invalidateAtc(iommu: string, { streamId, start, last }: AtcInvalidation): Task<boolean> {
    yield ATC_INVALIDATION_NS;
    if (this.#runtime.faults.fires('device.atc-timeout')) return false;
    for (const bridge of this.hostBridges) {
      for (const fn of bridge.functions) {
        const stream = bridge.streamOf(fn.requesterId);
        if (stream?.iommu !== iommu || stream.id !== streamId) continue;
        if (!fn.isPresent) return false;
        yield* fn.atc.invalidate(start, last);
        return true;
      }
    }
    return false;
  }

  #addMsiController(description: MsiControllerDescription): void {
    const deliver = (interrupt: Interrupt): void => {
      this.#runtime.emit('irq', {
        controller: interrupt.controller,
        intid: interrupt.intid,
        from: interrupt.from ?? 'software',
      });
      this.#interruptHandler(interrupt);
    };
    switch (description.kind) {
      case 'its': {
        const its = new Its(this.#runtime, this.memory, description, deliver);
        this.msiControllers.set(its.name, its);
        this.bus.attach(its);
        return;
      }
      case 'gicv2m': {
        const spis = spisOf(description, this.description.msiControllers);
        const frame = new Gicv2m(this.#runtime, description, spis, deliver);
        this.msiControllers.set(frame.name, frame);
        this.bus.attach(frame);
        return;
      }
      case 'in-rc': {
        // No frame on the bus: only what comes from below meets it.
        this.msiControllers.set(description.name, new InRcMsi(this.#runtime, description, deliver));
        return;
      }
      case 'x86': {
        const window = new X86Msi(this.#runtime, this.memory, description, deliver);
        this.msiControllers.set(window.name, window);
        this.bus.attach(window);
      }
    }
  }

  #addHostBridge(description: HostDescription['hostBridges'][number]): void {
    const bridge = new HostBridge(description, {
      runtime: this.#runtime,
      bus: this.bus,
      analyser: this.analyser,
      smmus: this.smmus,
      captures: this.#captures(description),
      dmaWatcher: {
        began: (bdf, iova, isWrite) => this.#dmaWatcher.began(bdf, iova, isWrite),
        translated: (access) => this.#dmaWatcher.translated(access),
        ended: (access, pa) => this.#dmaWatcher.ended(access, pa),
      },
      msiControllers: this.msiControllers,
    });
    this.hostBridges.push(bridge);
  }

  #addFunction(description: PciFunctionDescription): void {
    const segment = parseInt(description.bdf.slice(0, 4), 16);
    const bus = parseInt(description.bdf.slice(5, 7), 16);
    const bridge = this.hostBridges.find(
      ({ description: d }) => d.segment === segment && d.firstBus <= bus && bus <= d.lastBus,
    );
    if (bridge === undefined) throw new UnbuildableError(`${description.bdf} is below no host bridge`);
    const type = functionType(description, bus === bridge.description.firstBus);
    const slot = description.bdf.slice(0, -1);
    const isMultifunction = this.description.functions.some((f) => f !== description && f.bdf.startsWith(slot));
    const fn = new PciFunction(this.#runtime, description, barsOf(description), bridge, { type, isMultifunction });
    bridge.functions.push(fn);
    this.functions.set(fn.bdf, fn);
    if (description.model === 'dma-engine') {
      fn.addMsix(DMA_ENGINE_MSIX_BAR, DMA_ENGINE_VECTORS);
      fn.addMsi(DMA_ENGINE_VECTORS);
      this.#install(fn, new DmaEngine(this.#runtime, fn));
    }
    if (description.model === 'nic') {
      fn.addMsix(NIC_MSIX_BAR, NIC_VECTORS);
      this.#install(fn, new Nic(this.#runtime, fn));
    }
    if (description.model === 'generic') fn.model = new BarMemory();
    for (const frame of fn.frames((bar) => bridge.fabric.isReachable(fn, bar))) this.bus.attach(frame);
  }

  #install(fn: PciFunction, model: MigratableModel): void {
    const { migration } = fn.description;
    fn.model = model;
    if (migration !== undefined) fn.migration = new MigrationUnit(this.#runtime, fn, model, migration);
  }

  #linkVirtualFunction(fn: PciFunction): void {
    const { physfn } = fn.description;
    if (physfn === undefined) return;
    const pf = this.functions.get(physfn);
    if (pf === undefined) throw new UnbuildableError(`${fn.bdf}: there is no physical function ${physfn}`);
    pf.virtualFunctions.push(fn);
    fn.physicalFunction = pf;
    fn.wireMemoryEnable();
    if (pf.description.config === undefined) fn.isPresent = false;
  }

  /** Doorbells inside a root complex that its functions use. */
  #captures({ msi, msiMap }: HostDescription['hostBridges'][number]): Capture[] {
    const names = [msi, ...(msiMap ?? []).map((entry) => entry.target)];
    return this.description.msiControllers
      .filter((controller) => controller.kind === 'in-rc' && names.includes(controller.name))
      .map(({ name, base, sizeBytes = IN_RC_FRAME_BYTES }) => ({
        name,
        start: Number(base),
        last: Number(base) + sizeBytes - 1,
      }));
  }
}
