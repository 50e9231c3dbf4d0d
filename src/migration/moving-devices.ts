/**
 * The devices that migrate with their guest: their states on both hosts, and their data on its way.
 *
 * Source: PRE_COPY while the guest runs (devices that can), P2P for all before any of them stops, then STOP_COPY. Destination:
 * RESUMING, the data, the configuration space, STOP (which says whether the data made sense), P2P for all, RUNNING. A failure before
 * that leaves the source's devices to {@link MovingDevices.resumeSource}; one that cannot go on is reset and has lost its state.
 *
 * Invariants: no device of the guest is stopped while another may still start DMA towards it; interrupts that the source counted are
 * held, not read away.
 *
 * Source: QEMU hw/vfio/migration.c; domain.md A2.4, A3.10, A3.11.
 */
import { sameBytes } from '../layout/bytes.js';
import type { Task } from '../runtime/task.js';
import { KernelError } from '../uapi/errno.js';
import type { Guest } from '../vmm/guest.js';
import type { GuestDevice } from '../vmm/guest-device.js';
import { coldPlugDevice, type PlugResult } from '../vmm/hotplug.js';
import type { VfioDevice } from '../vmm/vfio-device.js';
import { VfioMigration, type MigState } from '../vmm/vfio-migration.js';
import type { Vmm } from '../vmm/vmm.js';
import type { TrackedDevice } from './dirty-sources.js';
import { MigrationStopped } from './request.js';
import type { DeviceConfig, Frame } from './stream.js';

/** A device of the guest, and what can be done about it in a migration. */
export interface AttachedDevice extends TrackedDevice {
  readonly device: GuestDevice;
}

/** What a VMM reads of a device's state at a time: VFIO_MIG_DEFAULT_DATA_BUFFER_SIZE of QEMU. */
const CHUNK_BYTES = 1 << 20;

/** Looks at what the guest has. */
export function* attachedDevices(guest: Guest): Task<AttachedDevice[]> {
  const found: AttachedDevice[] = [];
  for (const device of guest.devices) {
    const { vfio } = device;
    found.push({ device, vfio, migration: yield* VfioMigration.of(vfio) });
  }
  return found;
}

/** One device on its way. */
interface Moving {
  readonly device: GuestDevice;
  readonly source: VfioMigration;
  readonly target: VfioDevice;
  readonly sink: VfioMigration;
  /** All of its initial data has been loaded by the destination. */
  isInitialLoaded: boolean;
  held: readonly bigint[];
}

/** Sends a frame; gives it as the destination understood it. */
type Send = (frame: Frame) => Task<Frame>;

/** The devices of one migration. */
export class MovingDevices {
  readonly #guest: Guest;
  readonly #send: Send;
  readonly #moving: Moving[] = [];
  /** Devices that could start DMA while another was stopped. */
  readonly notQuiesced: string[] = [];
  /** Bytes of state sent. */
  sentBytes = 0;

  constructor(guest: Guest, send: Send) {
    this.#guest = guest;
    this.#send = send;
  }

  /** The destination's functions. */
  get targets(): readonly VfioDevice[] {
    return this.#moving.map(({ target }) => target);
  }

  /** The source's functions. */
  get sources(): readonly VfioDevice[] {
    return this.#moving.map(({ source }) => source.device);
  }

  get isInitialLoaded(): boolean {
    return this.#moving.every((moving) => moving.isInitialLoaded);
  }

  /**
   * Gives the destination's VMM a function for a device and makes it ready to take the state.
   *
   * @throws MigrationStopped (destination-refused)
   */
  *prepare({ device, migration }: AttachedDevice, vmm: Vmm, bdf: string): Task<void> {
    if (migration === undefined) throw new Error(`${device.bdf} cannot migrate`);
    const plugged = yield* coldPlugDevice(vmm, this.#guest, bdf);
    const target = plugged.device;
    if (target === undefined) throw refusal(bdf, plugged);
    const sink = yield* VfioMigration.of(target);
    if (sink === undefined)
      throw new MigrationStopped('destination-refused', `${bdf} cannot take the state of ${device.bdf}`);
    yield* onTarget(bdf, sink.setState('RESUMING'));
    this.#moving.push({ device, source: migration, target, sink, isInitialLoaded: !migration.hasPreCopy, held: [] });
  }

  /** Devices that can begin to give their state while they work. */
  *startPreCopy(): Task<void> {
    for (const { source } of this.#moving) if (source.hasPreCopy) yield* onSource(source, source.setState('PRE_COPY'));
  }

  /**
   * Sends a piece of every device's pre-copy data: about as much as of memory in this round, at least a chunk. `acknowledge`: the
   * destination's word that it has loaded something.
   */
  *sendPreCopy(memoryBytes: number, acknowledge: () => Task<void>): Task<void> {
    for (const [index, moving] of this.#moving.entries()) {
      const { source } = moving;
      if (!source.hasPreCopy) continue;
      // A device that works makes more meanwhile: that is for the next round.
      const pending = yield* onSource(source, source.preCopyInfo());
      const wanted = Math.max(pending.initialBytes + pending.dirtyBytes, 1);
      for (let left = Math.min(Math.max(memoryBytes, CHUNK_BYTES), wanted); left > 0;) {
        const bytes = yield* onSource(source, source.read(Math.min(left, CHUNK_BYTES)));
        if (bytes === undefined || bytes.length === 0) break;
        yield* this.#pass(index, moving, bytes);
        left -= bytes.length;
      }
      if (moving.isInitialLoaded) continue;
      const { initialBytes } = yield* onSource(source, source.preCopyInfo());
      if (initialBytes > 0) continue;
      yield* this.#send({ kind: 'initial-sent', index });
      yield* acknowledge();
      moving.isInitialLoaded = true;
    }
  }

  /** Bytes of state that would have to be sent if the guest were stopped now (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE). */
  *pendingBytes(): Task<number> {
    let bytes = 0;
    for (const { source } of this.#moving) bytes += yield* onSource(source, source.stopCopyBytes());
    return bytes;
  }

  /** Stops all devices: first none of them starts DMA any more, then none does anything. The guest is paused. */
  *quiesce(): Task<void> {
    const { faults } = this.#guest.runtime;
    if (!faults.fires('vmm.p2p-skipped')) {
      for (const { source } of this.#moving) {
        if (source.hasP2p) yield* onSource(source, source.setState(source.hasPreCopy ? 'PRE_COPY_P2P' : 'RUNNING_P2P'));
      }
    }
    for (const [index, { source }] of this.#moving.entries()) {
      yield* onSource(source, source.setState(source.hasPreCopy ? 'STOP_COPY' : 'STOP'));
      if (index === 0) yield* this.#noteRunning();
    }
    for (const moving of this.#moving) moving.held = yield* moving.device.holdInterrupts();
  }

  /** Sends the rest of all states, and the configuration spaces behind them; loads them. */
  *stopCopy(): Task<void> {
    const { faults } = this.#guest.runtime;
    for (const [index, moving] of this.#moving.entries()) {
      const { source } = moving;
      yield* onSource(source, source.setState('STOP_COPY'));
      for (;;) {
        const bytes = yield* onSource(source, source.read(CHUNK_BYTES));
        if (bytes === undefined || bytes.length === 0) break;
        yield* this.#pass(index, moving, bytes);
      }
      const config = yield* configOf(moving);
      const received = yield* this.#send({ kind: 'config', index, config });
      if (received.kind === 'config' && !faults.fires('vmm.config-skipped'))
        yield* onTarget(moving.target.bdf, restoreConfig(moving.target, received.config));
    }
  }

  /** The destination's functions check what they were given. */
  *finishLoad(): Task<void> {
    for (const { sink, target } of this.#moving) yield* onTarget(target.bdf, sink.setState('STOP'));
  }

  /** Destination's functions whose state is not the source's, byte by byte. All stand still. */
  *differing(): Task<string[]> {
    const found: string[] = [];
    for (const { source, target } of this.#moving) {
      const [there, here] = [yield* cardState(source.device), yield* cardState(target)];
      if (there === undefined || here === undefined || !sameBytes(there, here)) found.push(target.bdf);
    }
    return found;
  }

  /** The destination's functions go on: P2P for all, then everything. */
  *resumeTarget(): Task<void> {
    for (const { sink, target } of this.#moving)
      if (sink.hasP2p) yield* onTarget(target.bdf, sink.setState('RUNNING_P2P'));
    for (const { sink, target } of this.#moving) yield* onTarget(target.bdf, sink.setState('RUNNING'));
  }

  /** The guest's devices are the destination's functions from now on. */
  handOver(): void {
    for (const { device, target, held } of this.#moving)
      device.moveTo(target, this.#guest.runtime.faults.fires('vmm.irq-lost') ? [] : held);
  }

  /** The source's functions go on. Addresses of those that had to be reset, or are gone. */
  *resumeSource(): Task<string[]> {
    const lost: string[] = [];
    if (this.#guest.runtime.faults.fires('vmm.rollback-skipped')) return lost;
    for (const { source } of this.#moving) if (source.hasP2p) yield* whereStopped(source);
    for (const { source } of this.#moving) {
      try {
        if ((yield* source.recover('RUNNING')) === 'reset') lost.push(source.device.bdf);
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        lost.push(source.device.bdf);
      }
    }
    return lost;
  }

  *#pass(index: number, { sink, target }: Moving, bytes: Uint8Array): Task<void> {
    this.sentBytes += bytes.length;
    const received = yield* this.#send({ kind: 'device', index, bytes });
    if (received.kind !== 'device' || this.#guest.runtime.faults.fires('vmm.state-skipped')) return;
    yield* onTarget(target.bdf, sink.write(received.bytes));
  }

  /** Notes which of the others could still start DMA, now that the first device is stopped. */
  *#noteRunning(): Task<void> {
    for (const { source } of this.#moving.slice(1)) {
      const state = yield* onSource(source, source.state());
      if (ACTIVE.includes(state)) this.notQuiesced.push(source.device.bdf);
    }
  }
}

/** States in which a device starts DMA. */
const ACTIVE: readonly MigState[] = ['RUNNING', 'PRE_COPY'];

/** Lets a stopped device answer its peers again; one that does not want to is dealt with later. */
function* whereStopped(source: VfioMigration): Task<void> {
  try {
    const state = yield* source.state();
    if (state === 'STOP' || state === 'STOP_COPY') yield* source.setState('RUNNING_P2P');
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
  }
}

/** A card's state as the testbed sees it, not as its driver gives it: comparing must not take arcs that a VMM would not. */
function* cardState({ process, bdf }: VfioDevice): Task<Uint8Array | undefined> {
  return (yield* process.host.command({ lab: 'device-state', bdf })).bytes;
}

function* configOf({ device, held }: Moving): Task<DeviceConfig> {
  const { vfio } = device;
  return {
    command: yield* vfio.readCommand(),
    vectors: vfio.msixEventfds.length,
    interrupts: held.map(Number),
  };
}

/** What a VMM does with a device's configuration space: the command register, and vectors of its own host. */
function* restoreConfig(target: VfioDevice, { command, vectors }: DeviceConfig): Task<void> {
  yield* target.writeCommand(command);
  if (vectors > 0) yield* target.enableMsix(vectors);
}

function refusal(bdf: string, { code, call, detail, conflicts, verdict }: PlugResult): MigrationStopped {
  const why = typeof detail?.['why'] === 'string' ? `: ${detail['why']}` : '';
  const how = code === undefined ? verdict : `${code} from ${call ?? '?'}`;
  return new MigrationStopped('destination-refused', `${bdf} ${how}${why}`, code, conflicts);
}

function* onSource<T>(source: VfioMigration, step: Task<T>): Task<T> {
  try {
    return yield* step;
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    throw new MigrationStopped('device-failed', `${source.device.bdf} on the source: ${error.message}`, error.code);
  }
}

function* onTarget<T>(bdf: string, step: Task<T>): Task<T> {
  try {
    return yield* step;
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    throw new MigrationStopped('device-failed', `${bdf} on the destination: ${error.message}`, error.code);
  }
}
