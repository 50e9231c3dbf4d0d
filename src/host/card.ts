/** A card that can be migrated, and the migration side of its VFIO device: what a kernel-only scenario has of a variant driver. */
import { DmaEngine } from '../hardware/devices/dma-engine.js';
import { MigrationUnit } from '../hardware/devices/migration-unit.js';
import { PciFunction, type UpstreamPort } from '../hardware/pcie/function.js';
import type { OpenFile, SyscallContext } from '../kernel/files.js';
import { VfioMigration } from '../kernel/vfio/migration.js';
import { Mutex } from '../runtime/locks.js';
import type { NodeRuntime } from '../runtime/node-runtime.js';
import type { Task } from '../runtime/task.js';
import { sharedRead, sharedWrite } from '../runtime/watch.js';
import { EBADF, EIO } from '../uapi/errno.js';
import {
  VFIO_DEVICE_STATE_RESUMING,
  VFIO_DEVICE_STATE_RUNNING,
  VFIO_DEVICE_STATE_STOP,
  VFIO_DEVICE_STATE_STOP_COPY,
} from '../uapi/vfio.js';
import type { CardState } from './program.js';

const STATES: Readonly<Record<CardState, number>> = {
  running: VFIO_DEVICE_STATE_RUNNING,
  stop: VFIO_DEVICE_STATE_STOP,
  'stop-copy': VFIO_DEVICE_STATE_STOP_COPY,
  resuming: VFIO_DEVICE_STATE_RESUMING,
};
const CARD = { model: 'dma-engine', vendor: 0x1d0f, device: 0xda02, classCode: 0x080100 } as const;
const MIGRATION = { p2p: true, preCopy: true, contextBytes: 4096, dmaLogging: false } as const;
const READ_BYTES = 4096;
const DMA_BYTES = 4096;
const TO_MEMORY_NS = 300;

/** One card. */
export class Card {
  /** `vdev->state_mutex`: requests for a state one by one. The data descriptor does not take it. */
  readonly #lock = new Mutex('vfio:state_mutex');
  readonly #migration: VfioMigration;
  #file: OpenFile | undefined;

  constructor(runtime: NodeRuntime, bdf: string, port: UpstreamPort) {
    const fn = new PciFunction(runtime, { ...CARD, bdf }, [], port);
    const model = new DmaEngine(runtime, fn);
    const unit = new MigrationUnit(runtime, fn, model, MIGRATION);
    fn.model = model;
    fn.migration = unit;
    this.#migration = new VfioMigration(runtime, bdf, unit, () => true, unit.stopCopyBytes(false));
  }

  /** The card writes to memory, once it may. */
  *dma(): Task<number> {
    const { ok } = yield* this.#migration.unit.transact('write', 0n, DMA_BYTES, function* () {
      yield TO_MEMORY_NS;
      yield 'dma:translated';
      return { ok: true };
    });
    return ok ? 0 : -EIO;
  }

  /** Walks to a state: 0 or -errno. A data descriptor that comes with it replaces the one before. */
  *setState(to: CardState): Task<number> {
    yield* this.#lock.lock();
    const { rc, file } = yield* this.#migration.setState(STATES[to]);
    if (file !== undefined) {
      sharedWrite(this, 'data descriptor', this.#file, file);
      this.#file = file;
    }
    this.#lock.unlock();
    return rc;
  }

  /** All that the data descriptor gives; -errno. */
  *save(ctx: SyscallContext): Task<Uint8Array | number> {
    const parts: Uint8Array[] = [];
    for (;;) {
      const file = this.#dataFile();
      const read = file === undefined ? -EBADF : yield* file.read(ctx, READ_BYTES);
      if (typeof read === 'number') return read;
      if (read.length === 0) return Buffer.concat(parts);
      parts.push(read);
    }
  }

  /** Writes to the data descriptor: how many bytes were taken, or -errno. */
  *load(ctx: SyscallContext, bytes: Uint8Array): Task<number> {
    const file = this.#dataFile();
    return file === undefined ? -EBADF : yield* file.write(ctx, bytes);
  }

  #dataFile(): OpenFile | undefined {
    sharedRead(this, 'data descriptor', this.#file);
    return this.#file;
  }
}
