/**
 * A machine with nothing on it but what a kernel-only scenario needs: iommufd, processes, and devices behind the selftest's mock
 * IOMMU or behind an SMMUv3 with its real driver.
 *
 * There are no buses, no boot and no messages: tasks call the kernel directly, so that a run takes microseconds and an exploration
 * can afford a hundred thousand of them. Kernel and SMMU are the same code that whole hosts run. With the mock IOMMU nothing
 * waits for hardware, and what costs time is a scheduling point only (`isTimeless`).
 *
 * Ownership: the machine owns everything but the arena, which belongs to the thread and is put back to its initial state for each
 * machine: every run finds the same memory.
 */
import { Arena, type ArenaState } from '../core/arena.js';
import type { HostDescription } from '../hardware/description.js';
import { PciFunction, type UpstreamPort } from '../hardware/pcie/function.js';
import type { SmmuMemory } from '../hardware/smmu/ports.js';
import { Smmu, type TranslateRequest } from '../hardware/smmu/smmu.js';
import type { Device } from '../kernel/device.js';
import { SyscallContext } from '../kernel/files.js';
import { beginAccess, endAccess } from '../kernel/iommu/mapping-check.js';
import { memoryWord } from '../kernel/iommu/dma-memory.js';
import { ArmSmmuV3 } from '../kernel/iommu/arm-smmu-v3/driver.js';
import { settledMoves } from '../kernel/iommu/group.js';
import { IommuCore } from '../kernel/iommu/iommu.js';
import { auditIommufd } from '../kernel/iommufd/audit.js';
import type { CommandRow } from '../kernel/iommufd/command.js';
import {
  getDevice,
  iommufd_device_detach,
  iommufd_device_unbind,
  type IommufdDevice,
} from '../kernel/iommufd/device.js';
import { HwptPaging } from '../kernel/iommufd/hw-pagetable.js';
import { Ioas } from '../kernel/iommufd/ioas.js';
import { IommufdContext, IommufdFile } from '../kernel/iommufd/main.js';
import { MockDomain } from '../kernel/iommufd/selftest/mock-domain.js';
import { selftestCommand } from '../kernel/iommufd/selftest/selftest.js';
import { MemfdFile } from '../kernel/mm/memfd.js';
import { MmStruct } from '../kernel/mm/mm.js';
import { PageAllocator, type PageExtent } from '../kernel/mm/page-allocator.js';
import { Process, UserStruct } from '../kernel/mm/process.js';
import { ARGUMENT_BYTES, MACHINE_MEMORY_BYTES } from '../runtime/kernel-only.js';
import { NodeRuntime, type ScheduleSpec } from '../runtime/node-runtime.js';
import { invariant, InvariantError, type Task } from '../runtime/task.js';
import { asChecker, isWatched, sharedRead, sharedWrite } from '../runtime/watch.js';
import { EFAULT, ENODEV, ENOSPC } from '../uapi/errno.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER } from '../uapi/pci-regs.js';
import { PROT_READ, PROT_WRITE } from '../uapi/syscall.js';
import { Card } from './card.js';
import { DirtyWrites } from './dirty-writes.js';
import { MachineViewer } from './machine-view.js';
import { PageStore } from './page-store.js';
import type { Program } from './program.js';
import type { MachineView } from './view.js';

const PAGE_BYTES = 4096;
/** Where the RAM of processes is, and the kernel's own behind it. */
const RAM_PFN = 0x40000;
const RAM_PAGES = MACHINE_MEMORY_BYTES / PAGE_BYTES;
const KERNEL_BASE_PFN = 0x80000;
/** Where processes find the buffers of a program, one behind the other with a gap. */
const BUFFER_BASE = 0x1000_0000_0000n;
const BUFFER_STRIDE = 0x1_0000_0000n;
/** Where the tasks of a process have the arguments of their calls. */
const ARGUMENT_BASE = 0x3000_0000_0000n;

/** From a device to the SMMU, from there to memory, and of an invalidation to a device and back. */
const TO_SMMU_NS = 100;
const TO_MEMORY_NS = 100;
const ATC_INVALIDATION_NS = 200;
/** What devices write. */
const DMA_BYTE = 0x5a;

/** The one SMMU of a machine with hardware. */
const SMMU_DESCRIPTION: HostDescription['iommus'][number] = {
  name: 'smmu0',
  base: 0x43000000n,
  stage1: true,
  stage2: true,
  inputBits: 48,
  outputBits: 48,
  httu: 'dirty',
  granules: ['4k', '64k'],
  streamIdBits: 8,
  // So few that a program can use them up.
  asidBits: 8,
  rangeInvalidation: true,
  ats: true,
  pri: true,
  forcedWriteBack: true,
  softwareMsi: { start: 0x8000000n, last: 0x80fffffn },
};

/** Frames of interrupt controllers; nothing happens there but that messages arrive. */
const DOORBELLS = [0x8080040, 0x8090040] as const;

function isDoorbell(pa: number): boolean {
  const pfn = Math.floor(pa / PAGE_BYTES);
  return DOORBELLS.some((doorbell) => Math.floor(doorbell / PAGE_BYTES) === pfn);
}

const FUNCTIONS_IN_SLOT = 8;
/** A device's function: it has ATS, which stays off until the driver switches it on. Nothing keeps it from functions in its slot. */
const FUNCTION = { model: 'generic', vendor: 0x1d0f, device: 0xda01, classCode: 0x080100, acs: 'none' } as const;

/** A bare function reaches the SMMU through {@link KernelMachine.dma} and nothing else. */
const NO_FABRIC: UpstreamPort = {
  dmaRead: unreachable,
  dmaWrite: unreachable,
  msi: unreachable,
};

function unreachable(): never {
  throw new InvariantError('kernel-only machine: a function without a fabric started a transaction');
}

const HOST: HostDescription = {
  name: 'kernel',
  title: 'kernel-only machine',
  sources: [],
  arch: 'arm64',
  kernelRelease: '7.3.4',
  pageShift: 12,
  memory: [{ start: BigInt(RAM_PFN * PAGE_BYTES), last: BigInt((KERNEL_BASE_PFN + 0x10000) * PAGE_BYTES - 1) }],
  iommus: [SMMU_DESCRIPTION],
  msiControllers: [],
  hostBridges: [],
  functions: [],
  reservedRegions: [],
  allowUnsafeInterrupts: true,
};

interface PooledArena {
  readonly arena: Arena;
  readonly initial: ArenaState;
}

/** The arena of this thread for each kind of machine. */
const pool = new Map<Program['iommu'], PooledArena>();

/** An arena as it is when it is new. */
function freshArena(kind: Program['iommu']): Arena {
  const known = pool.get(kind);
  if (known !== undefined) {
    known.arena.restore(known.initial);
    return known.arena;
  }
  const frames = kind === 'mock' ? { kernelFrames: 16, storageFrames: 64 } : { kernelFrames: 2048, storageFrames: 512 };
  const arena = Arena.create({ ...frames, kernelBasePfn: KERNEL_BASE_PFN });
  pool.set(kind, { arena, initial: arena.save() });
  return arena;
}

/** The kernel window of an arena and the pages of processes, as an SMMU sees them. */
function smmuMemory(arena: Arena, pages: PageStore): SmmuMemory {
  const indexOf = (pa: number): number | undefined => {
    const frame = arena.pfnToFrame(Math.floor(pa / PAGE_BYTES));
    return frame < 0 ? undefined : (arena.frameOffset(frame) + (pa % PAGE_BYTES)) >>> 2;
  };
  const isRam = (pa: number): boolean => pa >= RAM_PFN * PAGE_BYTES && pa < (RAM_PFN + RAM_PAGES) * PAGE_BYTES;
  return {
    loadWords(pa, out) {
      const index = indexOf(pa);
      if (index !== undefined && isWatched()) sharedRead(arena, memoryWord(pa));
      if (index !== undefined) out.set(arena.words.subarray(index, index + out.length));
      else if (isRam(pa)) out.set(new Uint32Array(pages.read(pa, 4 * out.length).buffer));
      else return false;
      return true;
    },
    store64(pa, lo, hi) {
      const index = indexOf(pa);
      if (index !== undefined && isWatched()) sharedWrite(arena, memoryWord(pa));
      if (index !== undefined) arena.words.set([lo, hi], index);
      else if (isRam(pa)) pages.write(pa, new Uint8Array(Uint32Array.of(lo, hi).buffer));
      else return false;
      return true;
    },
    compareAndSwap64(pa, oldLo, oldHi, newLo, newHi) {
      const found = new Uint32Array(2);
      if (!this.loadWords(pa, found) || found[0] !== oldLo >>> 0 || found[1] !== oldHi >>> 0) return false;
      return this.store64(pa, newLo, newHi);
    },
    isGivenBack: (pa) => arena.isFreeKernelPage(Math.floor(pa / PAGE_BYTES)),
  };
}

/** The machine. */
export class KernelMachine {
  readonly runtime: NodeRuntime;
  readonly arena: Arena;
  readonly pages: PageAllocator;
  readonly memory = new PageStore();
  /** There with hardware only. */
  readonly smmu: Smmu | undefined;
  readonly #core: IommuCore | undefined;
  readonly dirtyWrites: DirtyWrites;
  readonly #testCommand: CommandRow | undefined;
  readonly ictx: IommufdContext;
  readonly processes = new Map<string, Process>();
  /** Devices behind the SMMU that user space has. */
  readonly bound = new Map<Device, IommufdDevice>();
  readonly #buffers: ReadonlyMap<string, bigint>;
  readonly #hasAts: boolean;
  /** Devices behind the SMMU by stream. */
  readonly #functions = new Map<number, PciFunction>();
  /** Memory of dma-bufs and other things that need no pin. */
  readonly #unpinned = new Set<number>();
  #viewer: MachineViewer | undefined;
  #arguments = ARGUMENT_BASE;
  #devices = 0;

  constructor(program: Program, seed: number, schedule: ScheduleSpec, checks = true) {
    this.runtime = new NodeRuntime('kernel', seed, schedule);
    this.runtime.invariants.isOn = checks;
    this.runtime.scheduler.ordersLocks = checks;
    const isMock = program.iommu === 'mock';
    this.runtime.scheduler.isTimeless = isMock;
    this.arena = freshArena(program.iommu);
    this.arena.setKernelAllocFault(() => this.runtime.faults.fires('core.kernel-alloc'));
    this.#hasAts = program.ats;
    this.dirtyWrites = new DirtyWrites(this.runtime.invariants);
    this.pages = new PageAllocator(this.memory, [{ pfn: RAM_PFN, pages: RAM_PAGES }]);
    if (isMock) this.#testCommand = this.#selftest();
    else [this.smmu, this.#core] = this.#hardware();
    this.ictx = new IommufdContext(this.arena, true, false, this.runtime.faults, this.runtime.invariants);
    this.#buffers = new Map(
      program.buffers.map(({ name }, i) => [name, BUFFER_BASE + BigInt(i) * BUFFER_STRIDE] as const),
    );
    this.#makeProcesses(program);
  }

  #makeProcesses(program: Program): void {
    const files = program.files.map(({ lengthBytes }) => {
      const file = new MemfdFile(this.runtime, this.pages);
      invariant(file.ftruncate(lengthBytes) === 0, 'kernel-only machine: no memory for a file');
      return file;
    });
    const users = new Map<number, UserStruct>();
    for (const [index, spec] of program.processes.entries()) {
      const user = users.get(spec.uid) ?? new UserStruct(spec.uid);
      users.set(spec.uid, user);
      const mm = new MmStruct(this.runtime, this.memory, this.pages);
      const process = new Process(index + 1, spec, mm, user);
      this.processes.set(spec.name, process);
      process.files.install(new IommufdFile(this.ictx, this.#testCommand));
      if (index > 0) this.ictx.get();
      for (const file of files) {
        if (index > 0) file.hold();
        process.files.install(file);
      }
      for (const { name, lengthBytes, contiguity } of program.buffers) {
        const at = mm.mmapAnonymous(this.bufferAddress(name), lengthBytes, PROT_READ | PROT_WRITE, contiguity);
        invariant(at === this.bufferAddress(name), () => `kernel-only machine: no memory for ${name}`);
      }
    }
  }

  #selftest(): CommandRow {
    return selftestCommand((pages, firstWord) => {
      const extent = this.#allocRun(pages);
      if (extent === undefined) return undefined;
      const pa = extent.pfn * PAGE_BYTES;
      this.memory.write(pa, new Uint8Array(Uint32Array.of(firstWord).buffer));
      const pfns = Array.from({ length: extent.pages }, (_, i) => extent.pfn + i);
      sharedWrite(this, 'pages without pins');
      for (const pfn of pfns) this.#unpinned.add(pfn);
      const free = (): void => {
        sharedWrite(this, 'pages without pins');
        for (const pfn of pfns) this.#unpinned.delete(pfn);
        this.pages.release([extent]);
      };
      return { pa, free };
    }, this.runtime.faults);
  }

  /** Physically contiguous pages. What is given out in pieces is held until there is a run, so that the next try finds others. */
  #allocRun(pages: number): PageExtent | undefined {
    const pieces: PageExtent[] = [];
    let extents = this.pages.alloc(pages, 'pages');
    while (extents !== undefined && extents.length > 1) {
      pieces.push(...extents);
      extents = this.pages.alloc(pages, 'pages');
    }
    this.pages.release(pieces);
    return extents?.[0];
  }

  #hardware(): [Smmu, IommuCore] {
    let onIrq: (smmu: string, line: string) => void = () => undefined;
    const smmu = new Smmu({
      runtime: this.runtime,
      memory: smmuMemory(this.arena, this.memory),
      description: SMMU_DESCRIPTION,
      irq: (line) => onIrq(SMMU_DESCRIPTION.name, line),
      atc: ({ streamId, start, last }) => this.#invalidateAtc(streamId, start, last),
    });
    const base = Number(SMMU_DESCRIPTION.base);
    const core = new IommuCore(
      this.runtime,
      {
        arena: this.arena,
        bus: {
          mmioRead32: (pa) => smmu.readRegister(pa - base, 4),
          mmioWrite32: (pa, value) => {
            smmu.writeRegister(pa - base, 4, value);
            return true;
          },
        },
        legalityOf: () => smmu.legality,
        onSmmuIrq: (handler) => {
          onIrq = handler;
        },
      },
      HOST,
    );
    return [smmu, core];
  }

  /** The functions behind the SMMU, for those who look at the machine. */
  get functions(): Iterable<PciFunction> {
    return this.#functions.values();
  }

  /** Where a buffer of the program begins, in every process. */
  bufferAddress(name: string): bigint {
    const address = this.#buffers.get(name);
    invariant(address !== undefined, () => `kernel-only machine: no buffer ${name}`);
    return address;
  }

  /** The process of this name. */
  process(name: string): Process {
    const process = this.processes.get(name);
    invariant(process !== undefined, () => `kernel-only machine: no process ${name}`);
    return process;
  }

  /** A task's way into the kernel, and memory of its own for arguments. */
  context(processName: string): { readonly ctx: SyscallContext; readonly argument: bigint } {
    const process = this.process(processName);
    const argument = process.mm.mmapAnonymous(this.#arguments, BigInt(ARGUMENT_BYTES), PROT_READ | PROT_WRITE, 'pages');
    invariant(typeof argument === 'bigint', 'kernel-only machine: no memory for arguments');
    this.#arguments += BigInt(2 * ARGUMENT_BYTES);
    return { ctx: new SyscallContext(this.runtime, process), argument };
  }

  /** Brings up what there is of hardware. */
  *start(): Task<void> {
    yield* this.#core?.probe() ?? nothing();
  }

  /**
   * A new device behind the SMMU: a slot and a group of its own, or the first function that is free beside another, which share a group because nothing
   * keeps them apart. -ENOSPC for a ninth function; what the kernel answers.
   */
  *addDevice(beside?: Device): Task<Device | number> {
    invariant(this.#core !== undefined, 'kernel-only machine: devices of a mock IOMMU are made by the selftest');
    const before = this.#devices;
    const slot = beside?.name.slice(0, -1) ?? `0000:00:${(this.#devices++).toString(16).padStart(2, '0')}.`;
    sharedWrite(this, 'devices', before, this.#devices);
    const taken = new Set([...this.#functions.values()].map(({ bdf: known }) => known));
    let number = 0;
    while (taken.has(`${slot}${number}`)) number++;
    if (number === FUNCTIONS_IN_SLOT) return -ENOSPC;
    const bdf = `${slot}${number}`;
    const fn = new PciFunction(this.runtime, { ...FUNCTION, bdf, ats: this.#hasAts }, [], NO_FABRIC);
    fn.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    const device: Device = {
      name: bdf,
      function: fn,
      parent: undefined,
      isMultifunction: true,
      busMates: () => [],
      streamIds: [fn.requesterId],
      iommu: SMMU_DESCRIPTION.name,
      msiController: undefined,
      msiDeviceId: 0,
      driver: undefined,
      driverOverride: undefined,
      group: undefined,
    };
    this.#functions.set(fn.requesterId, fn);
    const rc = yield* this.#core.addDevice(device);
    return rc < 0 ? rc : device;
  }

  /** A device behind the SMMU goes. */
  *removeDevice(device: Device): Task<void> {
    yield* this.#core?.removeDevice(device) ?? nothing();
    sharedWrite(this, 'devices', this.#devices, this.#devices);
    this.#functions.delete(device.streamIds[0] ?? -1);
  }

  /** A card with a migration unit, in no slot. */
  addCard(): Card {
    sharedWrite(this, 'devices', this.#devices, this.#devices + 1);
    return new Card(this.runtime, `0000:01:${(this.#devices++).toString(16).padStart(2, '0')}.0`, NO_FABRIC);
  }

  /** The page table with a number; undefined for numbers of none. */
  hwptOf(hwptId: number): HwptPaging | undefined {
    for (const object of this.ictx.objects.objects())
      if (object instanceof HwptPaging && object.id === hwptId) return object;
    return undefined;
  }

  /** The iommufd device of a number. */
  boundDevice(id: number): IommufdDevice {
    const idev = getDevice(this.ictx, id);
    invariant(idev !== undefined, () => `kernel-only machine: no device ${id}`);
    this.ictx.objects.put(idev);
    return idev;
  }

  /** A device behind the SMMU leaves: as VFIO's character device is closed. */
  *giveBack(device: Device): Task<void> {
    const idev = this.bound.get(device);
    this.bound.delete(device);
    if (idev !== undefined) {
      yield* iommufd_device_detach(idev);
      yield* iommufd_device_unbind(idev);
    }
    yield* this.removeDevice(device);
  }

  /** Nobody is at work in the kernel. @throws InvariantError when a rule does not hold */
  audit(): void {
    auditIommufd(this.ictx, (extent) => this.pages.firstUnpinned(extent), this.runtime.invariants);
  }

  /** Everything was given back. @throws InvariantError when something was not */
  checkNothingIsLeft(): void {
    const { invariants } = this.runtime;
    for (const driver of this.#core?.drivers ?? []) {
      if (!(driver instanceof ArmSmmuV3) || this.smmu === undefined) continue;
      const { eventsRecorded } = this.smmu;
      invariant(
        eventsRecorded === driver.eventsDelivered,
        () => `${driver.eventsDelivered} of ${eventsRecorded} events in the queue of ${driver.name} were delivered`,
        'INV-14',
      );
      invariants.held('INV-14');
    }
    invariant(this.pages.pinnedPages === 0, () => `${this.pages.pinnedPages} pages are still pinned`, 'INV-3');
    for (const { name, mm, user } of this.processes.values()) {
      const charged = [mm.pinnedVm, mm.lockedVm, user.lockedVm];
      invariant(
        charged.every((pages) => pages === 0),
        () => `${name}: pinned_vm, locked_vm and its user's locked_vm are ${charged.join(', ')}`,
        'INV-5',
      );
    }
    const { objects, groups, livePages, mmaps } = this.ictx;
    invariant(objects.isEmpty, () => `${objects.size} numbers of iommufd objects are still taken`, 'objects');
    invariant(groups.list().length === 0, () => `${groups.list().length} iommufd groups are left`, 'objects');
    invariant(livePages === 0, () => `${livePages} iopt_pages are left`, 'objects');
    invariant(mmaps.isEmpty, 'pages are still offered to mmap', 'objects');
    invariant(
      this.#unpinned.size === 0,
      () => `${this.#unpinned.size} pages of dma-bufs and mocks are left`,
      'objects',
    );
    invariant(
      this.pages.freePages === RAM_PAGES,
      () => `${RAM_PAGES - this.pages.freePages} pages are not free`,
      'objects',
    );
    const { storageFramesInUse } = this.arena;
    invariant(storageFramesInUse === 0, () => `${storageFramesInUse} frames of records are in use`, 'objects');
    for (const id of ['INV-3', 'INV-5', 'objects'] as const) invariants.held(id);
  }

  /** Tells what can be told of the state by numbers: what is mapped where, who is there. */
  addState(add: (value: number) => void): void {
    for (const object of this.ictx.objects.objects()) {
      add(object.id);
      add(object.users);
      if (!(object instanceof Ioas)) continue;
      for (const area of object.iopt.areas.overlapping()) {
        addHalves(add, area.iova);
        addHalves(add, area.lengthBytes);
        add(area.numAccesses);
      }
    }
    for (const object of this.ictx.objects.objects()) {
      if (!(object instanceof Ioas)) continue;
      const { reserved, allowed } = object.iopt.ranges;
      for (const ranges of [reserved, allowed]) {
        add(ranges.length);
        for (const { start, last } of ranges) {
          addHalves(add, start);
          addHalves(add, last);
        }
      }
      add(object.hwpts.length);
      add(object.iopt.accesses.length);
    }
    for (const { files, mm, user } of this.processes.values()) {
      add(files.openCount);
      add(mm.pinnedVm);
      add(user.lockedVm);
    }
    add(this.pages.pinnedPages);
    add(this.pages.freePages);
  }

  /** Tells by numbers what is in the tables of every domain: what shows what, and what is dirty. */
  addContents(add: (value: number) => void): void {
    for (const object of this.ictx.objects.objects()) {
      if (!(object instanceof HwptPaging)) continue;
      add(object.id);
      for (const { iova, pa, lengthBytes, state } of object.domain.leaves?.() ?? []) {
        // A doorbell that was mapped for a call that failed stays (iommufd_sw_msi_install).
        if (this.ictx.swMsi.shows(iova, pa)) continue;
        for (const value of [iova, pa, lengthBytes]) addHalves(add, BigInt(value));
        add(state);
      }
    }
  }

  /** What devices reach, by numbers: the areas of each one's address space; nothing of one that is not there. */
  addReach(add: (value: number) => void, devices: readonly (Device | undefined)[]): void {
    for (const device of devices) {
      const domain = device?.group?.domain;
      for (const object of this.ictx.objects.objects()) {
        if (!(object instanceof Ioas) || !object.iopt.domains.some((shown) => shown === domain)) continue;
        for (const area of object.iopt.areas.overlapping()) {
          addHalves(add, area.iova);
          addHalves(add, area.lengthBytes);
        }
      }
      add(-1);
    }
  }

  *#invalidateAtc(streamId: number, start: bigint, last: bigint): Task<boolean> {
    yield ATC_INVALIDATION_NS;
    if (this.runtime.faults.fires('device.atc-timeout')) return false;
    sharedRead(this, 'devices');
    const fn = this.#functions.get(streamId);
    if (fn === undefined) return false;
    yield* fn.atc.invalidate(start, last);
    return true;
  }

  /** How the machine looks now; `name` is told what its objects are called. */
  look(name?: (object: object, label: string) => void): MachineView {
    this.#viewer ??= new MachineViewer(this);
    return this.#viewer.look(name);
  }

  // --- DMA ---

  /**
   * A device reads or writes a byte: 0, or -EFAULT when it was refused. What it reaches must be somebody's, and pinned.
   * @throws InvariantError INV-3 when the page was given back already
   */
  *dma(device: Device, iova: bigint, write: boolean): Task<number> {
    const watched = beginAccess(device.group, device.streamIds[0] ?? 0, iova, write);
    const pa =
      this.smmu === undefined ? this.#mockAccess(device, iova, write) : yield* this.#access(device, iova, write);
    endAccess(watched, pa !== undefined && isDoorbell(pa) ? undefined : (pa ?? -1));
    return pa === undefined ? -EFAULT : 0;
  }

  /** A device sends an interrupt message: 0, what the kernel says of the doorbell, or -EFAULT. @throws InvariantError INV-15 when it ends elsewhere */
  *message(device: Device, doorbell: number): Task<number> {
    const wanted = DOORBELLS[doorbell];
    if (this.#core === undefined || wanted === undefined) return -ENODEV;
    const address = yield* this.#core.iommu_dma_prepare_msi(device, wanted);
    if (typeof address === 'number') return address;
    yield 'program:msi-address';
    const pa = yield* this.#access(device, address, true);
    if (pa === undefined) return -EFAULT;
    invariant(pa === wanted, () => `an interrupt message ended at 0x${pa.toString(16)}`, 'INV-15');
    this.runtime.invariants.held('INV-15');
    return 0;
  }

  /** The mock's devices reach memory in the step in which they look it up: there is no way to wait for those that do not. */
  #mockAccess(device: Device, iova: bigint, write: boolean): number | undefined {
    const domain = device.group?.domain;
    if (!(domain instanceof MockDomain)) return undefined;
    const pa = domain.reach(Number(iova), write);
    if (pa === undefined) return undefined;
    if (write && domain.tracksDirty) domain.set_dirty(Number(iova));
    this.#touch(pa, write);
    if (write) this.dirtyWrites.wrote(domain, iova, pa);
    return pa;
  }

  *#access(device: Device, iova: bigint, write: boolean): Task<number | undefined> {
    const { smmu } = this;
    const streamId = device.streamIds[0] ?? 0;
    sharedRead(this, 'devices');
    const fn = this.#functions.get(streamId);
    if (smmu === undefined || fn === undefined) return undefined;
    sharedRead(fn, 'ATS enabled', fn.isAtsEnabled);
    const atcTicket = fn.isAtsEnabled ? fn.atc.begin() : undefined;
    const { group } = device;
    const moves = group && settledMoves(group);
    try {
      yield TO_SMMU_NS;
      let address = iova;
      if (atcTicket !== undefined) {
        const entry = yield* fn.atc.translation({ streamId, iova }, write, (request) => smmu.translateAts(request));
        if (typeof entry === 'string') return undefined;
        address = BigInt(entry.pa) + iova - entry.first;
      }
      const pa = yield* this.#throughSmmu(smmu, { streamId, iova: address, write }, atcTicket !== undefined);
      // Of a group that was moved meanwhile nobody can tell which domain has the write.
      if (pa !== undefined && write && group !== undefined && moves !== undefined && settledMoves(group) === moves)
        asChecker(() => {
          if (group.domain !== undefined) this.dirtyWrites.wrote(group.domain, iova, pa);
        });
      return pa;
    } finally {
      if (atcTicket !== undefined) fn.atc.end(atcTicket);
    }
  }

  *#throughSmmu(smmu: Smmu, request: TranslateRequest, isTranslated: boolean): Task<number | undefined> {
    const ticket = smmu.beginTransaction();
    try {
      const result = yield* isTranslated ? smmu.passTranslated(request) : smmu.translate(request, ticket);
      if (!result.ok) return undefined;
      yield TO_MEMORY_NS;
      yield 'dma:translated';
      this.#touch(result.pa, request.write);
      return result.pa;
    } finally {
      smmu.endTransaction(ticket);
    }
  }

  #touch(pa: number, write: boolean): void {
    const pfn = Math.floor(pa / PAGE_BYTES);
    if (isDoorbell(pa)) return;
    sharedRead(this, 'pages without pins');
    const isReachable = this.pages.pinCount(pfn) > 0 || this.#unpinned.has(pfn);
    const what = this.pages.isFree(pfn) ? 'is free' : 'nobody has pinned';
    invariant(isReachable, () => `a device reached page 0x${pfn.toString(16)}, which ${what}`, 'INV-3');
    this.runtime.invariants.held('INV-3');
    if (write) this.memory.write(pa, Uint8Array.of(DMA_BYTE));
  }
}

/** 64 bits as two numbers. */
function addHalves(add: (value: number) => void, value: bigint): void {
  add(Number(value & 0xffff_ffffn));
  add(Number(value >> 32n));
}

function* nothing(): Task<void> {
  // No hardware.
}
