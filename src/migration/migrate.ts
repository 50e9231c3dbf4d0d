/**
 * Pre-copy live migration: copy while the guest runs, stop it, copy the rest, go on elsewhere.
 *
 *     setup       blockers, unplug, a VMM on the destination with the same memory map and its devices resuming, dirty logs on
 *     precopy     rounds: send the pages of the logs and a piece of the devices' state; near enough? (convergence.ts)
 *     quiesce     pause the vCPUs, no device starts DMA any more, then none does anything
 *     stop-copy   take the logs a last time, send the rest, the devices' states, their configuration spaces, the vCPUs
 *     switchover  the destination has checked everything and says so: until here all can be taken back
 *     resume      devices run there, the guest belongs to that VMM and goes on; the source's process exits
 *
 * Two kinds of log feed a round: the vCPUs' (guest.ts) and, for attached devices, what dirty-sources.ts found to be able to tell.
 * Whatever fails before the guest is handed over (link, destination, device, convergence, a person) leaves it running on the source with
 * the devices it had, and nothing on the destination. Devices whose driver cannot bring them back are reset, and named.
 *
 * The comparison at switchover is the testbed's, not the VMM's: memory page by page, device state byte by byte, and that no
 * device did anything between its stop and its resume (domain.md INV-12).
 *
 * Source: QEMU migration/migration.c, hw/vfio/migration.c; domain.md A3.9-A3.14.
 */
import { invariant, type Task } from '../runtime/task.js';
import type { HostClient } from '../testbed/lab.js';
import { LinkLostError, type Link } from '../testbed/link.js';
import { KernelError } from '../uapi/errno.js';
import type { Guest } from '../vmm/guest.js';
import type { GuestDevice } from '../vmm/guest-device.js';
import { giveDevice, takeDevice, type PlugRequest } from '../vmm/hotplug.js';
import { BATCH_CHUNKS } from '../vmm/guest-memory.js';
import { PageSet, type PageRange } from '../vmm/page-set.js';
import { PAGE_BYTES } from '../vmm/ranges.js';
import type { VfioDevice } from '../vmm/vfio-device.js';
import type { VfioMigration } from '../vmm/vfio-migration.js';
import { Vmm, type VmmSpec } from '../vmm/vmm.js';
import { checkBlockers, targetAddress } from './blockers.js';
import { compareMemory } from './compare.js';
import { decide, DEFAULT_LIMITS, type ConvergenceLimits, type Decision } from './convergence.js';
import { DirtySources } from './dirty-sources.js';
import { MovingDevices, type AttachedDevice } from './moving-devices.js';
import { countPages, countZeroPages, restrictRuns, withZeroPages } from './page-runs.js';
import {
  MigrationStopped,
  type AttachedDevicePolicy,
  type MigrationPhase,
  type MigrationRequest,
  type MigrationResult,
  type RoundStatistics,
} from './request.js';
import { decodeFrame, encodeFrame, pagesWireBytes, StreamError, wireBytes, type Frame } from './stream.js';

/** Bytes of state a vCPU and its share of emulated devices stand for: registers, GIC or APIC, timers, FPU. */
const STATE_BYTES_PER_VCPU = 64 * 1024;
const DEFAULT_VCPUS = 4;
const ACKNOWLEDGEMENT_BYTES = 64;

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
  readonly #unplugged: PlugRequest[] = [];
  #attached: readonly AttachedDevice[] = [];
  readonly #reset: string[] = [];
  /** Devices whose bus mastering was taken away at the stop, and what their command registers were. */
  readonly #quiesced: { readonly vfio: VfioDevice; readonly command: number }[] = [];
  /** Devices that do not move along and were stopped by their migration support. */
  readonly #stopped: VfioMigration[] = [];
  #phase: MigrationPhase = 'setup';
  #destination: Vmm | undefined;
  #moving: MovingDevices | undefined;
  #dirty: DirtySources | undefined;
  #downtimeNs = 0;
  /** Rounds but those that only carried devices' state, which say nothing of a guest that cannot be caught. */
  #countedRounds = 0;

  constructor(guest: Guest, request: MigrationRequest) {
    this.#guest = guest;
    this.#request = request;
    this.#limits = { ...DEFAULT_LIMITS, ...request.limits };
    this.#from = guest.host.name;
    this.#startNs = guest.runtime.now;
  }

  *run(): Task<MigrationResult> {
    // Whatever comes or goes at the moment does so first; from then on nothing does.
    yield* this.#guest.changes.lock();
    const isTaken = this.#guest.isMigrating;
    this.#guest.isMigrating = true;
    this.#guest.changes.unlock();
    if (isTaken) {
      const facts = this.#facts('refused', `guest ${this.#guest.name} is being migrated already`);
      return { ...facts, reason: 'already-migrating' };
    }
    try {
      const attached = yield* this.#enterSetup();
      const link = this.#link();
      const devices = yield* this.#startDestination(link, attached);
      yield* this.#startTracking(devices);
      const leftOver = yield* this.#copyWhileRunning(link);
      const findings = yield* this.#switchOver(link, leftOver);
      this.#guest.isMigrating = false;
      this.#announce('completed');
      return { ...this.#facts('completed', ''), ...findings };
    } catch (error) {
      const stopped = this.#asStopped(error);
      yield* this.#abandon();
      this.#announce('failed');
      const isRefusal = this.#phase === 'setup' && stopped.reason !== 'link-lost' && stopped.reason !== 'cancelled';
      return {
        ...this.#facts(isRefusal ? 'refused' : 'failed', stopped.message),
        reason: stopped.reason,
        ...(stopped.code === undefined ? {} : { code: stopped.code }),
        conflicts: stopped.conflicts,
      };
    }
  }

  /** Looks for blockers and takes devices away that leave first; what is attached then. */
  *#enterSetup(): Task<readonly AttachedDevice[]> {
    this.#enter('setup');
    const attached = yield* checkBlockers(this.#guest, this.#request);
    this.#attached = attached;
    if (this.#request.attachedDevices !== 'unplug-first') return attached;
    yield* this.#unplugAll();
    this.#attached = [];
    return [];
  }

  #link(): Link {
    const link = this.#guest.host.lab.link(this.#from, this.#request.to.name);
    invariant(link !== undefined, 'the way was checked with the blockers');
    return link;
  }

  /** Starts a VMM there with the same memory map, with the devices that move along. */
  *#startDestination(link: Link, attached: readonly AttachedDevice[]): Task<readonly AttachedDevice[]> {
    const { spec, vmm } = this.#guest;
    const { segments } = vmm.memory;
    yield* this.#send(link, { kind: 'start', guest: spec.name, machine: spec.machine, segments });
    const vmmSpec: VmmSpec = { name: spec.name, ...spec.vmm, ...this.#request.destination };
    const destination = yield* onDestination(Vmm.start(this.#request.to, vmmSpec, segments));
    this.#destination = destination;
    const moving = new MovingDevices(this.#guest, (frame) => this.#send(link, frame));
    this.#moving = moving;
    if (this.#policy !== 'migrate') return attached;
    for (const device of attached) {
      if (device.migration === undefined) continue;
      yield* moving.prepare(device, destination, targetAddress(this.#request, device.vfio.bdf));
    }
    return attached;
  }

  *#startTracking(devices: readonly AttachedDevice[]): Task<void> {
    this.#dirty = DirtySources.choose(this.#guest, devices, this.#request.dirtySource ?? 'auto');
    this.#guest.setDirtyLogging(true);
    yield* this.#dirty.start();
    yield* this.#movingDevices.startPreCopy();
  }

  /** Returns the pages that were taken from the logs and not sent yet when it is time to stop the guest. */
  *#copyWhileRunning(link: Link): Task<PageSet> {
    this.#enter('precopy');
    let pending = this.#everyPage();
    for (;;) {
      const acknowledge = (): Task<void> => this.#acknowledge(link);
      const round = yield* this.#copyRound(link, pending, (bytes) =>
        this.#movingDevices.sendPreCopy(bytes, acknowledge),
      );
      if (round.pages > 0 || round.deviceBytes === 0) this.#countedRounds++;
      const dirty = yield* this.#takeDirty(false);
      pending = dirty.pages;
      const deviceBytes = yield* this.#movingDevices.pendingBytes();
      this.#reportRound(round, dirty);
      if (this.#request.cancelAt === 'precopy') this.#cancel();
      const remainingBytes = pagesWireBytes(pending.count) + deviceBytes;
      const decision = this.#decide(round, remainingBytes);
      if (decision === 'cancel')
        throw new MigrationStopped(
          'not-converging',
          `${remainingBytes} bytes dirty after ${this.#rounds.length} rounds`,
        );
      if (decision === 'stop') return pending;
    }
  }

  #decide(round: RoundStatistics, remainingBytes: number): Decision {
    const { faults } = this.#guest.runtime;
    const progress = {
      rounds: this.#countedRounds,
      remainingBytes: faults.fires('vmm.convergence-blind') ? 0 : remainingBytes,
      sentBytes: round.wireBytes,
      elapsedNs: round.elapsedNs,
    };
    const decision = decide(progress, this.#limits);
    const isWaiting = this.#request.switchoverAck === true && !this.#movingDevices.isInitialLoaded;
    return decision === 'stop' && isWaiting && !faults.fires('vmm.ack-ignored') ? 'iterate' : decision;
  }

  *#switchOver(link: Link, leftOver: PageSet): Task<Partial<MigrationResult>> {
    const guest = this.#guest;
    const { faults } = guest.runtime;
    const moving = this.#movingDevices;
    const stoppedNs = guest.runtime.now;
    this.#enter('quiesce');
    yield* guest.pause();
    this.#checkGuest();
    yield* moving.quiesce();
    if (!faults.fires('vmm.quiesce-skipped')) yield* this.#quiesceLeaving();
    const watch = yield* this.#watchDevices();
    this.#enter('stop-copy');
    const last = yield* this.#takeDirty(true);
    leftOver.addAll(last.pages);
    yield* this.#copyRound(link, leftOver, function* () {
      yield* moving.stopCopy();
    });
    const lengthBytes = (guest.spec.vcpus ?? DEFAULT_VCPUS) * STATE_BYTES_PER_VCPU;
    yield* this.#send(link, { kind: 'state', lengthBytes });
    this.#reportRound(this.#lastRound, { pages: new PageSet(), memoryPages: 0, devicePages: 0 });
    this.#enter('switchover');
    yield* moving.finishLoad();
    yield* this.#send(link, { kind: 'end', pages: this.#pages });
    yield* this.#acknowledge(link);
    const compareNs = guest.runtime.now;
    const findings = this.#request.verify === false ? {} : yield* this.#compare(watch);
    const comparedNs = guest.runtime.now;
    this.#enter('resume');
    yield* moving.resumeTarget();
    yield* this.#leaveSource();
    this.#downtimeNs = guest.runtime.now - stoppedNs - (comparedNs - compareNs);
    return findings;
  }

  /** Stops devices that do not move along: by their migration support where they have it, and by their bus mastering. */
  *#quiesceLeaving(): Task<void> {
    const leaving = this.#leaving();
    const migrations = this.#attached.flatMap(({ device, migration }) =>
      leaving.includes(device) ? (migration ?? []) : [],
    );
    for (const migration of migrations) if (migration.hasP2p) yield* migration.setState('RUNNING_P2P');
    for (const migration of migrations) {
      yield* migration.setState('STOP');
      this.#stopped.push(migration);
    }
    for (const { vfio } of leaving) {
      const command = yield* vfio.readCommand();
      yield* vfio.setBusMaster(false);
      this.#quiesced.push({ vfio, command });
    }
  }

  /** The guest goes on there; the source's process ends. */
  *#leaveSource(): Task<void> {
    const guest = this.#guest;
    const source = guest.vmm;
    const leaving = this.#leaving();
    for (const device of leaving) yield* this.#unplug(device);
    invariant(this.#destination !== undefined, 'there is a destination');
    this.#checkGuest();
    guest.setDirtyLogging(false);
    guest.moveTo(this.#destination);
    this.#movingDevices.handOver();
    this.#destination = undefined;
    guest.resume();
    yield* source.exit();
  }

  /** Where the hosts' records of transactions end now. */
  *#watchDevices(): Task<DeviceWatch> {
    return { source: yield* nextTransaction(this.#guest.host), target: yield* nextTransaction(this.#request.to) };
  }

  /** Source and destination stand still: are they the same? */
  *#compare(watch: DeviceWatch): Task<Pick<MigrationResult, 'memory' | 'devices'>> {
    const { vmm, host } = this.#guest;
    const moving = this.#movingDevices;
    invariant(this.#destination !== undefined, 'there is a destination');
    const memory = yield* compareMemory(vmm.memory, this.#destination.memory);
    if (memory.differingPages === 0) this.#guest.runtime.invariants.held('INV-12');
    const differing = yield* moving.differing();
    const sources = [...moving.sources, ...this.#leaving().map(({ vfio }) => vfio)];
    const afterStop = [
      ...(yield* activity(host, sources, watch.source)),
      ...(yield* activity(this.#request.to, moving.targets, watch.target)),
    ];
    if (afterStop.length === 0 && moving.notQuiesced.length === 0) this.#guest.runtime.invariants.held('INV-13');
    return { memory, devices: { differing, afterStop, notQuiesced: moving.notQuiesced } };
  }

  /** Sends the pages of a set, batch by batch, and what `sendDevices` has. */
  *#copyRound(link: Link, pending: PageSet, sendDevices: (memoryBytes: number) => Task<void>): Task<RoundStatistics> {
    const startNs = this.#guest.runtime.now;
    const round = this.#rounds.length;
    const deviceBytesBefore = this.#movingDevices.sentBytes;
    const sentBefore = link.sentBytes;
    let pages = 0;
    let zeroPages = 0;
    for (const ranges of batchesOf(pending)) {
      const first = ranges[0]?.firstPage ?? 0;
      const end = ranges.reduce((_, range) => range.firstPage + range.pages, first);
      const loaded = yield* this.#guest.vmm.memory.loadPages(first, end - first);
      const frame: Frame = { kind: 'pages', round, runs: withZeroPages(restrictRuns(loaded, ranges)) };
      const received = yield* this.#send(link, frame);
      const isStored = !this.#guest.runtime.faults.fires('vmm.page-skipped');
      if (received.kind === 'pages' && this.#destination !== undefined && isStored)
        yield* onDestination(this.#destination.memory.storePages(received.runs));
      pages += countPages(frame.runs);
      zeroPages += countZeroPages(frame.runs);
    }
    yield* sendDevices(link.sentBytes - sentBefore);
    const statistics = {
      pages,
      zeroPages,
      wireBytes: link.sentBytes - sentBefore,
      elapsedNs: this.#guest.runtime.now - startNs,
      deviceBytes: this.#movingDevices.sentBytes - deviceBytesBefore,
    };
    this.#rounds.push(statistics);
    return statistics;
  }

  #reportRound(statistics: RoundStatistics, { pages, memoryPages, devicePages }: DirtyPages): void {
    this.#guest.runtime.emit('migration.round', {
      guest: this.#guest.name,
      round: this.#rounds.length - 1,
      ...statistics,
      dirtyPages: pages.count,
      memoryPages,
      devicePages,
    });
  }

  /** Sends a frame; returns it as the other end understood it. */
  *#send(link: Link, frame: Frame): Task<Frame> {
    this.#checkGuest();
    const bytes = encodeFrame(frame);
    const sent = wireBytes(frame, bytes.length);
    yield* this.#cancelDuring(link.transferNs(sent) + link.latencyNs);
    const { faults } = this.#guest.runtime;
    yield* link.send(sent);
    if (faults.fires('link.damage')) bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1;
    return decodeFrame(bytes, !faults.fires('vmm.checksum-skipped'));
  }

  /** A guest that is gone is not moved. */
  #checkGuest(): void {
    const { state, name } = this.#guest;
    if (state === 'killed' || state === 'off')
      throw new MigrationStopped('guest-not-running', `guest ${name} is ${state}`);
  }

  /** Gives up when it is time to, also if that comes in the middle of something that takes `lengthNs`. */
  *#cancelDuring(lengthNs: number): Task<void> {
    const { cancelAfterNs } = this.#request;
    if (cancelAfterNs === undefined || this.#phase === 'resume') return;
    const leftNs = this.#startNs + cancelAfterNs - this.#guest.runtime.now;
    if (leftNs >= lengthNs || this.#guest.runtime.faults.fires('vmm.cancel-ignored')) return;
    if (leftNs > 0) yield leftNs;
    this.#cancel();
  }

  /** The destination's answer. */
  *#acknowledge(link: Link): Task<void> {
    yield* this.#guest.host.lab.link(link.to, link.from)?.send(ACKNOWLEDGEMENT_BYTES) ?? noAnswer();
  }

  /** Reads and clears all logs. */
  *#takeDirty(isStopped: boolean): Task<DirtyPages> {
    const pages = this.#guest.takeDirty();
    const memoryPages = pages.count;
    const written = new PageSet();
    yield* this.#dirty?.collect(written, isStopped) ?? noAnswer();
    pages.addAll(written);
    return { pages, memoryPages, devicePages: written.count };
  }

  #everyPage(): PageSet {
    const all = new PageSet();
    for (const segment of this.#guest.vmm.memory.segments)
      all.addRange(Number(segment.offset / PAGE_BYTES), Number(segment.lengthBytes / PAGE_BYTES));
    return all;
  }

  /** Devices that do not move along. */
  #leaving(): GuestDevice[] {
    const moving = this.#movingDevices.sources;
    return this.#guest.devices.filter(({ vfio }) => !moving.includes(vfio));
  }

  *#unplugAll(): Task<void> {
    for (const device of [...this.#guest.devices]) yield* this.#unplug(device);
  }

  *#unplug(device: GuestDevice): Task<void> {
    const request = { ...device.request, bdf: device.bdf };
    yield* takeDevice(this.#guest, device);
    this.#unplugged.push(request);
  }

  /** Takes everything back: the destination's process goes, the guest runs on with its devices. */
  *#abandon(): Task<void> {
    const guest = this.#guest;
    this.#announce('rollback');
    try {
      yield* whileThere(this.#destination?.exit());
      if (guest.isLogging) {
        guest.setDirtyLogging(false);
        yield* whileThere(this.#dirty?.stop());
      }
      if (this.#moving !== undefined) this.#reset.push(...(yield* this.#moving.resumeSource()));
      for (const { vfio, command } of this.#quiesced) yield* whileThere(vfio.writeCommand(command));
      for (const migration of this.#stopped)
        if ((yield* migration.recover('RUNNING')) === 'reset') this.#reset.push(migration.device.bdf);
      guest.resume();
      for (const request of this.#unplugged.splice(0)) {
        const plugged = yield* giveDevice(guest, request);
        if (plugged.device === undefined) this.#unplugged.push(request);
      }
    } finally {
      guest.isMigrating = false;
      guest.resume();
    }
  }

  #enter(phase: MigrationPhase): void {
    this.#phase = phase;
    this.#announce(phase);
    if (phase !== 'precopy' && (this.#request.cancelAt === phase || this.#isTimeToCancel())) this.#cancel();
  }

  #announce(phase: MigrationPhase | 'rollback' | 'cancel' | 'completed' | 'failed'): void {
    this.#guest.runtime.emit('migration.phase', { guest: this.#guest.name, phase });
  }

  #isTimeToCancel(): boolean {
    const { cancelAfterNs } = this.#request;
    if (cancelAfterNs === undefined || this.#phase === 'resume') return false;
    return this.#guest.runtime.now - this.#startNs >= cancelAfterNs;
  }

  #cancel(): void {
    if (this.#guest.runtime.faults.fires('vmm.cancel-ignored')) return;
    this.#announce('cancel');
    throw new MigrationStopped('cancelled', `cancelled in phase ${this.#phase}`);
  }

  /** What an error means for the migration; one that is no answer to anything it did goes on. */
  #asStopped(error: unknown): MigrationStopped {
    if (error instanceof MigrationStopped) return error;
    if (error instanceof LinkLostError) return new MigrationStopped('link-lost', error.message);
    if (error instanceof StreamError) return new MigrationStopped('stream-damaged', error.message);
    const { state, name } = this.#guest;
    if (error instanceof KernelError && (state === 'killed' || state === 'off'))
      return new MigrationStopped('guest-not-running', `guest ${name} is ${state}`);
    if (error instanceof KernelError) return new MigrationStopped('device-failed', error.message, error.code);
    throw error;
  }

  get #policy(): AttachedDevicePolicy {
    return this.#request.attachedDevices ?? 'migrate';
  }

  get #movingDevices(): MovingDevices {
    invariant(this.#moving !== undefined, 'the destination was prepared');
    return this.#moving;
  }

  get #lastRound(): RoundStatistics {
    const last = this.#rounds.at(-1);
    invariant(last !== undefined, 'there was a round');
    return last;
  }

  get #pages(): number {
    return this.#rounds.reduce((sum, round) => sum + round.pages, 0);
  }

  #facts(outcome: MigrationResult['outcome'], detail: string): MigrationResult {
    return {
      outcome,
      detail,
      phase: this.#phase,
      conflicts: [],
      from: this.#from,
      runsOn: this.#guest.host.name,
      statistics: {
        rounds: this.#rounds,
        pages: this.#pages,
        wireBytes: this.#rounds.reduce((sum, round) => sum + round.wireBytes, 0),
        deviceBytes: this.#moving?.sentBytes ?? 0,
        downtimeNs: this.#downtimeNs,
        totalNs: this.#guest.runtime.now - this.#startNs,
      },
      unplugged: this.#unplugged.map(({ bdf }) => bdf),
      reset: this.#reset,
    };
  }
}

/** Pages taken from the logs, and how many of them which side wrote. */
interface DirtyPages {
  readonly pages: PageSet;
  readonly memoryPages: number;
  readonly devicePages: number;
}

/** Numbers of the first transactions that nobody may make. */
interface DeviceWatch {
  readonly source: number;
  readonly target: number;
}

function* nextTransaction(host: HostClient): Task<number> {
  return ((yield* host.transactions(0)).at(-1)?.number ?? -1) + 1;
}

/** What functions did since a transaction, a sentence each. */
function* activity(host: HostClient, functions: readonly VfioDevice[], from: number): Task<string[]> {
  const records = yield* host.transactions(from);
  return records
    .filter(({ device }) => functions.some(({ bdf }) => bdf === device))
    .map(({ device, direction, iova }) => `${device} on ${host.name}: ${direction} at 0x${iova.toString(16)}`);
}

/** Takes a step back that needs a device or process which may be gone by now. */
function* whileThere(step: Task<void> | undefined): Task<void> {
  if (step === undefined) return;
  try {
    yield* step;
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
  }
}

function* noAnswer(): Task<void> {
  // There is nobody to ask.
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

/** Runs a step on the destination: its kernel's errors end the migration, and so does a page that it has no RAM for. */
function* onDestination<T>(step: Task<T>): Task<T> {
  try {
    return yield* step;
  } catch (error) {
    if (error instanceof KernelError) throw new MigrationStopped('destination-refused', error.message, error.code);
    if (error instanceof RangeError) throw new MigrationStopped('stream-damaged', error.message);
    throw error;
  }
}
