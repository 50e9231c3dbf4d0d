/**
 * A virtual machine: a memory map, vCPUs that dirty it, a VMM that runs it now.
 *
 * The guest is the logical thing that migrates; `vmm` is the process that holds it at the moment. The vCPUs' writes go
 * to that process's memory page by page and are recorded in a dirty log, as KVM records them for the VMM. A write is
 * logged when it has completed, so a page read by a migration before the write is sent again; `pause` returns when nothing
 * of the vCPUs is on its way any more. Devices' writes are not in this log: the IOMMU's dirty bits or the devices' own have them.
 *
 * Whatever a vCPU does (memory, device registers) goes through `vcpu`, which waits while the guest is paused. The guest's clock
 * stands still meanwhile, so a driver's time-out does not run out because the guest was moved.
 *
 * Invariants: a paused, killed or switched-off guest does nothing; while `isLogging`, every page a vCPU wrote since the
 * last `takeDirty` is in the log.
 */
import type { NodeRuntime } from '../runtime/node-runtime.js';
import type { RandomStream } from '../runtime/random.js';
import { Mutex } from '../runtime/locks.js';
import { WaitQueue, type Task } from '../runtime/task.js';
import type { HostClient } from '../testbed/lab.js';
import { ESRCH, KernelError } from '../uapi/errno.js';
import type { PageRun } from '../uapi/syscall.js';
import type { GuestDevice } from './guest-device.js';
import { nextSegmentOffset, type BackingSegment } from './guest-memory.js';
import {
  guestMemoryMap,
  MemoryMapError,
  ramBlockAt,
  type GuestMemoryMap,
  type MachineName,
  type MachineOptions,
  type RamBlock,
} from './machines.js';
import { CHUNK_PAGES, PageSet } from './page-set.js';
import { GIB, lengthOf, overlaps, PAGE_BYTES } from './ranges.js';
import { Vmm, type VmmSpec } from './vmm.js';
import type { VsmmuProperties } from './vsmmu.js';

/** What the vCPUs do to memory: runs of pages at random places of a working set. */
export interface WorkloadSpec {
  /** Bytes made dirty each second. */
  readonly bytesPerSecond: number;
  /** Size of the working set, from the start of the largest RAM block. */
  readonly workingSetBytes: bigint;
}

/** A guest as a scenario describes it. */
export interface GuestSpec extends MachineOptions {
  readonly name: string;
  readonly machine: MachineName;
  /** What RAM holds after boot: nothing, or different contents in every page (`stamped`, the default). */
  readonly content?: 'zero' | 'stamped';
  readonly workload?: WorkloadSpec;
  /** A virtual SMMU that the host's carries (src/vmm/vsmmu.ts): its properties are frozen by the first device. */
  readonly hasVsmmu?: boolean;
  readonly vmm?: Omit<VmmSpec, 'name'>;
}

export type GuestState = 'running' | 'paused' | 'killed' | 'off';

/**
 * The vCPUs' writes are made in steps: 1 ms up to 16 GiB of memory, then longer in proportion, because a round of copying
 * is, too; 64 ms at a TiB.
 */
function tickNs(memoryBytes: bigint): number {
  const gibs = Number(memoryBytes / GIB);
  return 1_000_000 * Math.min(Math.max(Math.ceil(gibs / 16), 1), 64);
}

/** Pages written in one place. */
const WORKLOAD_RUN_PAGES = 8;
/** Stamps of pages the workload wrote start here, above those of boot: contents never repeat by accident. */
const WORKLOAD_STAMP_BASE = 2 ** 48;
const BOOT_STAMP_UNIT = 2 ** 30;

/** A virtual machine. */
export class Guest {
  readonly spec: GuestSpec;
  readonly runtime: NodeRuntime;
  /** Set by the orchestrator: a guest that is being migrated takes no new devices and no new memory, as in QEMU. */
  isMigrating = false;
  /** Held while devices or memory come or go, and while a migration looks at what there is. */
  readonly changes = new Mutex('vmm:guest_changes');
  /** Passthrough devices the guest sees, in the order they were plugged. */
  readonly devices: GuestDevice[] = [];
  /** What the virtual SMMU promised the guest; undefined before its first device. */
  vsmmu: VsmmuProperties | undefined;
  #map: GuestMemoryMap;
  #vmm: Vmm;
  #state: GuestState = 'running';
  #killReason = '';
  #isLogging = false;
  readonly #dirty = new PageSet();
  readonly #random: RandomStream;
  readonly #resumed: WaitQueue;
  readonly #idle: WaitQueue;
  #inFlight = 0;
  #pausedAtNs = 0;
  #pausedNs = 0;
  #workload: WorkloadSpec | undefined;
  #workloadStamp = WORKLOAD_STAMP_BASE;

  private constructor(spec: GuestSpec, map: GuestMemoryMap, vmm: Vmm) {
    this.spec = spec;
    this.runtime = vmm.host.lab.runtime;
    this.#map = map;
    this.#vmm = vmm;
    this.#random = this.runtime.random(`guest/${spec.name}`);
    this.#resumed = new WaitQueue(`${spec.name} resumed`);
    this.#idle = new WaitQueue(`${spec.name} idle`);
  }

  /**
   * Starts a guest on a host.
   *
   * @throws MemoryMapError when the machine cannot be built so, KernelError when the host cannot run it.
   */
  static *boot(host: HostClient, spec: GuestSpec): Task<Guest> {
    const map = guestMemoryMap(spec.machine, spec);
    const vmm = yield* Vmm.start(host, { name: spec.name, ...spec.vmm }, [
      { offset: 0n, lengthBytes: spec.memoryBytes },
    ]);
    const guest = new Guest(spec, map, vmm);
    if (spec.content !== 'zero') yield* guest.#fill({ offset: 0n, lengthBytes: spec.memoryBytes });
    guest.runtime.emit('vmm.boot', {
      guest: spec.name,
      host: host.name,
      machine: spec.machine,
      memory: spec.memoryBytes,
    });
    if (spec.workload !== undefined) guest.setWorkload(spec.workload);
    return guest;
  }

  get name(): string {
    return this.spec.name;
  }

  get map(): GuestMemoryMap {
    return this.#map;
  }

  /** The VMM process that holds the guest now. */
  get vmm(): Vmm {
    return this.#vmm;
  }

  get host(): HostClient {
    return this.#vmm.host;
  }

  get state(): GuestState {
    return this.#state;
  }

  /** Why the VMM had to abort; empty unless the state is `killed`. */
  get killReason(): string {
    return this.#killReason;
  }

  get isLogging(): boolean {
    return this.#isLogging;
  }

  /** Page of the backing that holds a guest-physical address. @throws RangeError where there is no RAM. */
  pageOf(gpa: bigint): number {
    return Number(this.#offsetOf(gpa) / PAGE_BYTES);
  }

  /** VMM address of a guest-physical address. @throws RangeError where there is no RAM. */
  vaOf(gpa: bigint): bigint {
    return this.#vmm.memory.vaOf(this.#offsetOf(gpa));
  }

  /** The guest's clock, ns: stands still while the guest is paused. */
  get clockNs(): number {
    const isPaused = this.#state === 'paused';
    return this.runtime.now - this.#pausedNs - (isPaused ? this.runtime.now - this.#pausedAtNs : 0);
  }

  /**
   * Does what a vCPU does: waits while the guest is paused, and {@link pause} waits for it.
   *
   * @throws KernelError (ESRCH) when the guest is gone
   */
  *vcpu<T>(work: () => Task<T>): Task<T> {
    while (this.#state === 'paused') yield this.#resumed;
    if (this.#state !== 'running') throw new KernelError(ESRCH, `guest ${this.name} is ${this.#state}`);
    this.#inFlight++;
    try {
      return yield* work();
    } finally {
      this.#inFlight--;
      if (this.#inFlight === 0) this.#idle.wakeAll();
    }
  }

  /** Changes what the vCPUs do to memory. */
  setWorkload(workload: WorkloadSpec): void {
    const isIdle = this.#workload === undefined;
    this.#workload = workload;
    if (isIdle) this.runtime.spawn(`${this.name}/vcpu`, this.#runWorkload(), { daemon: true });
  }

  /** Reads guest memory as a vCPU would; the range lies in one RAM block. Waits while the guest is paused. */
  *load(gpa: bigint, lengthBytes: number): Task<Uint8Array> {
    this.#checkRange(gpa, lengthBytes);
    return yield* this.vcpu(() => this.#vmm.process.load(this.vaOf(gpa), lengthBytes));
  }

  /** Writes guest memory as a vCPU would, and logs the pages; waits while the guest is paused. */
  *store(gpa: bigint, bytes: Uint8Array): Task<void> {
    this.#checkRange(gpa, bytes.length);
    const firstPage = this.pageOf(gpa);
    const pages = this.pageOf(gpa + BigInt(bytes.length) - 1n) - firstPage + 1;
    yield* this.#write([{ firstPage, pages }], () => this.#vmm.process.store(this.vaOf(gpa), bytes));
  }

  /** Stops the vCPUs; returns when nothing they do is on its way. */
  *pause(): Task<void> {
    if (this.#state !== 'running') return;
    this.#state = 'paused';
    this.#pausedAtNs = this.runtime.now;
    while (this.#inFlight > 0) yield this.#idle;
  }

  /** Lets the vCPUs go on. */
  resume(): void {
    if (this.#state !== 'paused') return;
    this.#pausedNs += this.runtime.now - this.#pausedAtNs;
    this.#state = 'running';
    this.#resumed.wakeAll();
  }

  /** Starts recording pages the vCPUs write, from an empty log; or stops. */
  setDirtyLogging(isOn: boolean): void {
    this.#dirty.take();
    this.#isLogging = isOn;
  }

  /** Takes the pages written since the last call: the log is read and cleared in one step. */
  takeDirty(): PageSet {
    return this.#dirty.take();
  }

  /** Hands the guest over to another VMM, which holds the same memory. Only a paused guest can move. */
  moveTo(vmm: Vmm): void {
    if (this.#state !== 'paused') throw new Error(`guest ${this.name} is ${this.#state}, it cannot move`);
    this.#vmm = vmm;
  }

  /** The VMM aborts, as QEMU's hw_error: the guest is gone, its host frees what it held. */
  *kill(reason: string): Task<void> {
    this.#state = 'killed';
    this.#killReason = reason;
    this.runtime.emit('vmm.killed', { guest: this.name, host: this.host.name, reason });
    yield* this.#end();
  }

  /** An orderly power-off. */
  *shutdown(): Task<void> {
    if (this.#state === 'killed' || this.#state === 'off') return;
    this.#state = 'off';
    this.runtime.emit('vmm.off', { guest: this.name, host: this.host.name });
    yield* this.#end();
  }

  /**
   * Adds a DIMM at a guest-physical address: memory, contents, map. Mapping it for DMA is the caller's (hotplug.ts).
   *
   * @throws MemoryMapError when the range is taken, KernelError when the host has no memory for it.
   */
  *addRam(name: string, start: bigint, lengthBytes: bigint): Task<RamBlock> {
    const offset = nextSegmentOffset(this.#vmm.memory.segments);
    const block: RamBlock = { name, start, last: start + lengthBytes - 1n, offset };
    const taken = [...this.#map.ram, ...this.#map.fixed].find((range) => overlaps(range, block));
    if (taken !== undefined) throw new MemoryMapError(`${name} would lie over ${taken.name}`);
    yield* this.#vmm.memory.addSegment({ offset, lengthBytes });
    const ram = [...this.#map.ram, block].sort((a, b) => (a.start < b.start ? -1 : 1));
    this.#map = { ...this.#map, memoryBytes: this.#map.memoryBytes + lengthBytes, ram };
    if (this.#isLogging) this.#dirty.addRange(Number(offset / PAGE_BYTES), Number(lengthBytes / PAGE_BYTES));
    return block;
  }

  #offsetOf(gpa: bigint): bigint {
    const block = ramBlockAt(this.#map, gpa);
    if (block === undefined) throw new RangeError(`0x${gpa.toString(16)} is not RAM of guest ${this.name}`);
    return block.offset + (gpa - block.start);
  }

  #checkRange(gpa: bigint, lengthBytes: number): void {
    const block = ramBlockAt(this.#map, gpa);
    if (block === undefined || lengthBytes < 1 || gpa + BigInt(lengthBytes) - 1n > block.last) {
      throw new RangeError(`0x${gpa.toString(16)}+${lengthBytes} is not inside one RAM block of guest ${this.name}`);
    }
  }

  *#fill(segment: BackingSegment): Task<void> {
    const stamp = BOOT_STAMP_UNIT * (1 + this.#random.below(1024));
    const firstPage = Number(segment.offset / PAGE_BYTES);
    const pages = Number(segment.lengthBytes / PAGE_BYTES);
    yield* this.#vmm.memory.storePages([{ firstPage, pages, stamp, step: 1 }]);
  }

  *#write(pages: readonly { firstPage: number; pages: number }[], access: () => Task<void>): Task<void> {
    yield* this.vcpu(() => this.#loggedWrite(pages, access));
  }

  *#loggedWrite(pages: readonly { firstPage: number; pages: number }[], access: () => Task<void>): Task<void> {
    try {
      yield* access();
    } finally {
      if (this.#isLogging && !this.runtime.faults.fires('vmm.dirty-log-lost'))
        for (const range of pages) this.#dirty.addRange(range.firstPage, range.pages);
    }
  }

  *#runWorkload(): Task<void> {
    const block = this.#map.ram.reduce((a, b) => (lengthOf(b) > lengthOf(a) ? b : a));
    const base = Number(block.offset / PAGE_BYTES);
    const pauseNs = tickNs(this.spec.memoryBytes);
    let owed = 0;
    for (;;) {
      while (this.#state === 'paused') yield this.#resumed;
      if (this.#state !== 'running') return;
      yield pauseNs;
      const { bytesPerSecond, workingSetBytes } = this.#workload ?? { bytesPerSecond: 0, workingSetBytes: 0n };
      owed += (bytesPerSecond * pauseNs) / 1e9 / Number(PAGE_BYTES);
      if (owed < 1) continue;
      const bytes = workingSetBytes < lengthOf(block) ? workingSetBytes : lengthOf(block);
      const runs = this.#workloadRuns(base, Math.max(Number(bytes / PAGE_BYTES), 1), Math.floor(owed));
      owed -= Math.floor(owed);
      yield* this.#writeOfWorkload(runs);
    }
  }

  *#writeOfWorkload(runs: readonly PageRun[]): Task<void> {
    try {
      yield* this.#write(runs, () => this.#vmm.memory.storePages(runs));
    } catch (error) {
      // The VMM went away under the write: the vCPU ends with it.
      if (this.#isEnded()) return;
      throw error;
    }
  }

  #isEnded(): boolean {
    return this.#state === 'killed' || this.#state === 'off';
  }

  /** `pages` pages in short runs at random places of the working set; a place hit twice counts twice. */
  #workloadRuns(base: number, workingPages: number, pages: number): PageRun[] {
    const runs: PageRun[] = [];
    for (let left = Math.min(pages, CHUNK_PAGES); left > 0;) {
      const length = Math.min(WORKLOAD_RUN_PAGES, left, workingPages);
      const firstPage = base + this.#random.below(workingPages - length + 1);
      runs.push({ firstPage, pages: length, stamp: this.#workloadStamp, step: 1 });
      this.#workloadStamp += length;
      left -= length;
    }
    return runs;
  }

  *#end(): Task<void> {
    this.#resumed.wakeAll();
    yield* this.#vmm.exit();
  }
}
