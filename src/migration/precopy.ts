/**
 * Pre-copy live migration: copy while the guest runs, stop it, copy the rest, go on elsewhere.
 *
 *     setup      blockers, unplug, start a VMM on the destination with the same memory map, dirty logs on
 *     round n    send the pages of the log; take the log again; near enough? (convergence.ts)
 *     stop       pause the vCPUs, quiesce devices, take the logs a last time, send the rest and the device state
 *     switchover the guest belongs to the destination's VMM and resumes there; the source's process exits
 *
 * Two logs feed a round: the vCPUs' (guest.ts) and, for devices still attached, the dirty bits of their page tables
 * (domain.md A3.8). A passthrough device blocks a migration unless it leaves the guest (A3.9): `unplug-first` takes it away
 * before the first round, as net_failover does; `unplug-at-stop` leaves it working through pre-copy, which needs dirty
 * tracking of its page table. Whatever fails before switchover (link, destination, convergence) leaves the guest running
 * on the source with the devices it had, and nothing on the destination.
 */
import type { Task } from '../runtime/task.js';
import type { HostClient } from '../testbed/lab.js';
import { LinkLostError, type Link } from '../testbed/link.js';
import { KernelError } from '../uapi/errno.js';
import type { Guest } from '../vmm/guest.js';
import { plugDevice, unplugDevice } from '../vmm/hotplug.js';
import { BATCH_CHUNKS } from '../vmm/guest-memory.js';
import { PageSet, type PageRange } from '../vmm/page-set.js';
import { PAGE_BYTES } from '../vmm/ranges.js';
import type { VfioDevice } from '../vmm/vfio-device.js';
import { Vmm, type VmmSpec } from '../vmm/vmm.js';
import { compareMemory, type MemoryComparison } from './compare.js';
import { decide, DEFAULT_LIMITS, type ConvergenceLimits } from './convergence.js';
import { countPages, countZeroPages, restrictRuns, withZeroPages } from './page-runs.js';
import { decodeFrame, encodeFrame, pagesWireBytes, StreamError, wireBytes, type Frame } from './stream.js';

/** What happens to passthrough devices that are attached when a migration starts. */
export const ATTACHED_DEVICE_POLICIES = ['refuse', 'unplug-first', 'unplug-at-stop'] as const;
type AttachedDevicePolicy = (typeof ATTACHED_DEVICE_POLICIES)[number];

/** A migration as it is asked for. */
export interface MigrationRequest {
  readonly to: HostClient;
  readonly limits?: Partial<ConvergenceLimits>;
  /** `refuse` when not given, as QEMU. */
  readonly attachedDevices?: AttachedDevicePolicy;
  /** How the VMM on the destination is started, where it differs from the source's. */
  readonly destination?: Omit<VmmSpec, 'name'>;
  /** Compare source and destination page by page at switchover; true when not given. Costs no downtime in the statistics. */
  readonly verify?: boolean;
}

/** Why a migration did not happen. */
export type MigrationFailureReason =
  | 'guest-not-running'
  | 'no-link'
  | 'device-attached'
  | 'no-dirty-tracking'
  | 'destination-refused'
  | 'link-lost'
  | 'not-converging'
  | 'stream-damaged';

/** One round of copying. */
interface RoundStatistics {
  readonly pages: number;
  readonly zeroPages: number;
  readonly wireBytes: number;
  readonly elapsedNs: number;
}

/** What a migration cost, up to its end or failure. */
interface MigrationStatistics {
  /** The last one is the one sent while the guest stood still, if it came to that. */
  readonly rounds: readonly RoundStatistics[];
  readonly pages: number;
  readonly wireBytes: number;
  /** From the pause to the resume, without the comparison of memory. */
  readonly downtimeNs: number;
  readonly totalNs: number;
}

/** What came of a migration. */
export interface MigrationResult {
  readonly outcome: 'completed' | 'refused' | 'failed';
  readonly reason?: MigrationFailureReason;
  /** For people: which device, which error. */
  readonly detail: string;
  /** The destination's errno, where it refused. */
  readonly code?: string;
  readonly from: string;
  /** Where the guest runs now. */
  readonly runsOn: string;
  readonly statistics: MigrationStatistics;
  /** Absent when it was not compared. */
  readonly memory?: MemoryComparison;
  /** Devices taken from the guest and not given back. */
  readonly unplugged: readonly string[];
}

/** Bytes of state a vCPU and its share of emulated devices stand for: registers, GIC or APIC, timers, FPU. */
const STATE_BYTES_PER_VCPU = 64 * 1024;
const DEFAULT_VCPUS = 4;
const ACKNOWLEDGEMENT_BYTES = 64;

/** Ends a migration before switchover; the guest stays where it is. */
class MigrationStopped extends Error {
  readonly reason: MigrationFailureReason;
  readonly code: string | undefined;

  override readonly name = 'MigrationStopped';

  constructor(reason: MigrationFailureReason, detail: string, code?: string) {
    super(detail);
    this.reason = reason;
    this.code = code;
  }
}

/** Moves a running guest to another host. Every failure is a result; only a broken testbed throws. */
export function* migrate(guest: Guest, request: MigrationRequest): Task<MigrationResult> {
  const id = guest.host.lab.newId();
  guest.runtime.emit('migration.start', { id, guest: guest.name, from: guest.host.name, to: request.to.name });
  const migration = new Migration(guest, request);
  const result = yield* migration.run();
  guest.runtime.emit('migration.end', {
    id,
    guest: guest.name,
    from: result.from,
    to: request.to.name,
    outcome: result.outcome,
    ...(result.reason === undefined ? {} : { reason: result.reason }),
    rounds: result.statistics.rounds.length,
    pages: result.statistics.pages,
    bytes: result.statistics.wireBytes,
    downtimeNs: result.statistics.downtimeNs,
    ...(result.memory === undefined ? {} : { differingPages: result.memory.differingPages }),
  });
  return result;
}

class Migration {
  readonly #guest: Guest;
  readonly #request: MigrationRequest;
  readonly #limits: ConvergenceLimits;
  readonly #from: string;
  readonly #startNs: number;
  readonly #rounds: RoundStatistics[] = [];
  readonly #unplugged: string[] = [];
  /** Devices whose bus mastering was taken away at the stop. */
  readonly #quiesced: VfioDevice[] = [];
  #destination: Vmm | undefined;
  #downtimeNs = 0;

  constructor(guest: Guest, request: MigrationRequest) {
    this.#guest = guest;
    this.#request = request;
    this.#limits = { ...DEFAULT_LIMITS, ...request.limits };
    this.#from = guest.host.name;
    this.#startNs = guest.runtime.now;
  }

  *run(): Task<MigrationResult> {
    try {
      const link = this.#checkBlockers();
      this.#guest.isMigrating = true;
      if (this.#request.attachedDevices === 'unplug-first') yield* this.#unplugAll();
      const destination = yield* this.#startDestination(link);
      yield* this.#setLogging(true);
      const leftOver = yield* this.#copyWhileRunning(link, destination);
      const memory = yield* this.#switchOver(link, destination, leftOver);
      this.#guest.isMigrating = false;
      return { ...this.#facts('completed', ''), ...(memory === undefined ? {} : { memory }) };
    } catch (error) {
      const stopped = this.#asStopped(error);
      yield* this.#abandon();
      const isRefusal = this.#rounds.length === 0 && stopped.reason !== 'link-lost';
      return {
        ...this.#facts(isRefusal ? 'refused' : 'failed', stopped.message),
        reason: stopped.reason,
        ...(stopped.code === undefined ? {} : { code: stopped.code }),
      };
    }
  }

  #checkBlockers(): Link {
    const { vmm, state, name } = this.#guest;
    if (state !== 'running') throw new MigrationStopped('guest-not-running', `guest ${name} is ${state}`);
    const link = this.#guest.host.lab.link(this.#from, this.#request.to.name);
    if (link === undefined)
      throw new MigrationStopped('no-link', `no link from ${this.#from} to ${this.#request.to.name}`);
    const attached = vmm.devices.map((device) => device.bdf).join(', ');
    const policy = this.#request.attachedDevices ?? 'refuse';
    if (attached !== '' && policy === 'refuse') {
      throw new MigrationStopped('device-attached', `VFIO device without migration support: ${attached}`);
    }
    const untracked = vmm.backend?.untrackedDevices() ?? [];
    if (policy === 'unplug-at-stop' && untracked.length > 0) {
      const names = untracked.map((device) => device.bdf).join(', ');
      throw new MigrationStopped('no-dirty-tracking', `the IOMMU cannot track pages written by ${names}`);
    }
    return link;
  }

  *#startDestination(link: Link): Task<Vmm> {
    const { spec, vmm } = this.#guest;
    const { segments } = vmm.memory;
    yield* this.#send(link, { kind: 'start', guest: spec.name, machine: spec.machine, segments });
    const vmmSpec: VmmSpec = { name: spec.name, ...spec.vmm, ...this.#request.destination };
    const destination = yield* onDestination(Vmm.start(this.#request.to, vmmSpec, segments));
    this.#destination = destination;
    return destination;
  }

  /** Returns the pages that were taken from the logs and not sent yet when it is time to stop the guest. */
  *#copyWhileRunning(link: Link, destination: Vmm): Task<PageSet> {
    let pending = this.#everyPage();
    for (;;) {
      const round = yield* this.#copyRound(link, destination, pending);
      pending = yield* this.#takeDirty();
      const remainingBytes = pagesWireBytes(pending.count);
      const progress = {
        rounds: this.#rounds.length,
        remainingBytes,
        sentBytes: round.wireBytes,
        elapsedNs: round.elapsedNs,
      };
      const decision = decide(progress, this.#limits);
      if (decision === 'cancel')
        throw new MigrationStopped('not-converging', `${remainingBytes} bytes dirty after ${progress.rounds} rounds`);
      if (decision === 'stop') return pending;
    }
  }

  *#switchOver(link: Link, destination: Vmm, leftOver: PageSet): Task<MemoryComparison | undefined> {
    const guest = this.#guest;
    const stoppedNs = guest.runtime.now;
    yield* guest.pause();
    for (const device of guest.vmm.devices) {
      yield* device.setBusMaster(false);
      this.#quiesced.push(device);
    }
    leftOver.addAll(yield* this.#takeDirty());
    yield* this.#copyRound(link, destination, leftOver);
    const lengthBytes = (guest.spec.vcpus ?? DEFAULT_VCPUS) * STATE_BYTES_PER_VCPU;
    yield* this.#send(link, { kind: 'state', lengthBytes });
    yield* this.#send(link, { kind: 'end', pages: this.#pages });
    const back = guest.host.lab.link(link.to, link.from);
    if (back !== undefined) yield* back.send(ACKNOWLEDGEMENT_BYTES);
    const compareNs = guest.runtime.now;
    const memory =
      this.#request.verify === false ? undefined : yield* compareMemory(guest.vmm.memory, destination.memory);
    const comparedNs = guest.runtime.now;
    const source = guest.vmm;
    yield* this.#unplugAll();
    guest.setDirtyLogging(false);
    guest.moveTo(destination);
    guest.resume();
    this.#destination = undefined;
    this.#downtimeNs = guest.runtime.now - stoppedNs - (comparedNs - compareNs);
    yield* source.exit();
    return memory;
  }

  /** Sends the pages of a set, batch by batch. */
  *#copyRound(link: Link, destination: Vmm, pending: PageSet): Task<RoundStatistics> {
    const startNs = this.#guest.runtime.now;
    const round = this.#rounds.length;
    let pages = 0;
    let zeroPages = 0;
    let bytes = 0;
    for (const ranges of batchesOf(pending)) {
      const first = ranges[0]?.firstPage ?? 0;
      const end = ranges.reduce((_, range) => range.firstPage + range.pages, first);
      const loaded = yield* this.#guest.vmm.memory.loadPages(first, end - first);
      const frame: Frame = { kind: 'pages', round, runs: withZeroPages(restrictRuns(loaded, ranges)) };
      const received = yield* this.#send(link, frame);
      if (received.kind === 'pages') yield* onDestination(destination.memory.storePages(received.runs));
      pages += countPages(frame.runs);
      zeroPages += countZeroPages(frame.runs);
      bytes += wireBytes(frame);
    }
    const statistics = { pages, zeroPages, wireBytes: bytes, elapsedNs: this.#guest.runtime.now - startNs };
    this.#rounds.push(statistics);
    this.#guest.runtime.emit('migration.round', { guest: this.#guest.name, round, ...statistics });
    return statistics;
  }

  /** Sends a frame; returns it as the other end understood it. */
  *#send(link: Link, frame: Frame): Task<Frame> {
    const bytes = encodeFrame(frame);
    yield* link.send(wireBytes(frame));
    return decodeFrame(bytes);
  }

  *#setLogging(isOn: boolean): Task<void> {
    this.#guest.setDirtyLogging(isOn);
    const { backend } = this.#guest.vmm;
    if (backend !== undefined) yield* backend.setDirtyTracking(isOn);
  }

  /** Reads and clears both logs. */
  *#takeDirty(): Task<PageSet> {
    const dirty = this.#guest.takeDirty();
    const { backend } = this.#guest.vmm;
    if (backend !== undefined) yield* backend.collectDirty(dirty, (iova) => this.#guest.pageOf(iova));
    return dirty;
  }

  #everyPage(): PageSet {
    const all = new PageSet();
    for (const segment of this.#guest.vmm.memory.segments)
      all.addRange(Number(segment.offset / PAGE_BYTES), Number(segment.lengthBytes / PAGE_BYTES));
    return all;
  }

  *#unplugAll(): Task<void> {
    for (const device of [...this.#guest.vmm.devices]) {
      yield* unplugDevice(this.#guest, device);
      this.#unplugged.push(device.bdf);
    }
  }

  /** Takes everything back: the destination's process goes, the guest runs on with its devices. */
  *#abandon(): Task<void> {
    if (this.#destination !== undefined) yield* this.#destination.exit();
    if (this.#guest.isLogging) yield* this.#setLogging(false);
    for (const device of this.#quiesced) yield* device.setBusMaster(true);
    this.#guest.isMigrating = false;
    this.#guest.resume();
    for (const bdf of this.#unplugged.splice(0)) {
      const plugged = yield* plugDevice(this.#guest, { bdf });
      if (plugged.device === undefined) this.#unplugged.push(bdf);
    }
  }

  /** What an error means for the migration; one that is no answer to anything it did goes on. */
  #asStopped(error: unknown): MigrationStopped {
    if (error instanceof MigrationStopped) return error;
    if (error instanceof LinkLostError) return new MigrationStopped('link-lost', error.message);
    if (error instanceof StreamError) return new MigrationStopped('stream-damaged', error.message);
    const { state, name } = this.#guest;
    if (error instanceof KernelError && (state === 'killed' || state === 'off'))
      return new MigrationStopped('guest-not-running', `guest ${name} is ${state}`);
    throw error;
  }

  get #pages(): number {
    return this.#rounds.reduce((sum, round) => sum + round.pages, 0);
  }

  #facts(outcome: MigrationResult['outcome'], detail: string): MigrationResult {
    const bytes = this.#rounds.reduce((sum, round) => sum + round.wireBytes, 0);
    return {
      outcome,
      detail,
      from: this.#from,
      runsOn: this.#guest.host.name,
      statistics: {
        rounds: this.#rounds,
        pages: this.#pages,
        wireBytes: bytes,
        downtimeNs: this.#downtimeNs,
        totalNs: this.#guest.runtime.now - this.#startNs,
      },
      unplugged: this.#unplugged,
    };
  }
}

/** The pages of a set, cut into what is loaded and sent together; no batch crosses segments of the backing. */
function batchesOf(pages: PageSet): PageRange[][] {
  const batches = new Map<number, PageRange[]>();
  for (const chunk of pages.chunks()) {
    const number = Math.floor(chunk / BATCH_CHUNKS);
    const batch = batches.get(number) ?? [];
    for (const range of pages.rangesOfChunk(chunk)) {
      const last = batch.at(-1);
      if (last !== undefined && last.firstPage + last.pages === range.firstPage)
        batch[batch.length - 1] = { firstPage: last.firstPage, pages: last.pages + range.pages };
      else batch.push(range);
    }
    batches.set(number, batch);
  }
  return [...batches.values()];
}

/** Runs a step on the destination: its kernel's errors end the migration. */
function* onDestination<T>(step: Task<T>): Task<T> {
  try {
    return yield* step;
  } catch (error) {
    if (error instanceof KernelError) throw new MigrationStopped('destination-refused', error.message, error.code);
    throw error;
  }
}
