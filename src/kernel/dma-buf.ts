/**
 * dma-bufs: memory of a device behind a descriptor, which other devices may be given access to until it is taken back.
 *
 * An exporter makes the buffer, importers attach to it. Moving the buffer away (`revoke`) asks every importer to let go before
 * it returns; a later `revoke(false)` serves new attachments only. The buffer lives until its descriptor is closed and its
 * last importer has gone.
 *
 * Lock order: `resv` -> whatever an importer takes to let go (iommufd: `pages.mutex`); detaching takes `resv`, under `domains_rwsem`. Source: Linux drivers/dma-buf/dma-buf.c.
 */
import { Mutex } from '../runtime/locks.js';
import { invariant, type Task } from '../runtime/task.js';
import { sharedRead, sharedWrite } from '../runtime/watch.js';
import { ENODEV } from '../uapi/errno.js';
import { OpenFile } from './files.js';

/** What made a buffer. */
export interface DmaBufExporter {
  /** Physical address of the buffer for an IOMMU's tables; -EOPNOTSUPP where it is not one run. */
  phys(): number;
  /** Nobody has the buffer any more. */
  release(): void;
}

/** Who uses a buffer (`struct dma_buf_attach_ops`). */
export interface DmaBufImporter {
  /** Must have let go of all addresses when the task ends (`invalidate_mappings`). */
  invalidate(): Task<void>;
}

/** A dma-buf (`struct dma_buf`). */
export class DmaBufFile extends OpenFile {
  readonly sizeBytes: bigint;
  readonly #exporter: DmaBufExporter;
  readonly #resv = new Mutex('dma-buf:resv');
  /** Importers, and whether the buffer was not taken from them since they attached. */
  readonly #importers = new Map<DmaBufImporter, boolean>();
  #isRevoked: boolean;

  constructor(sizeBytes: bigint, exporter: DmaBufExporter, isRevoked = false) {
    super();
    this.sizeBytes = sizeBytes;
    this.#exporter = exporter;
    this.#isRevoked = isRevoked;
  }

  /** Lets an importer use the buffer: its physical address, -ENODEV while it is revoked, -EOPNOTSUPP. */
  *attach(importer: DmaBufImporter): Task<number> {
    yield* this.#resv.lock();
    sharedRead(this, 'revoked', this.#isRevoked);
    const address = this.#isRevoked ? -ENODEV : this.#exporter.phys();
    sharedWrite(this, 'importers');
    if (address >= 0) {
      this.#importers.set(importer, true);
      this.hold();
    }
    this.#resv.unlock();
    return address;
  }

  /** Waits for a revocation that is on its way to the importer. */
  *detach(importer: DmaBufImporter): Task<void> {
    yield* this.#resv.lock();
    sharedWrite(this, 'importers');
    invariant(this.#importers.delete(importer), 'a dma-buf is detached by somebody who is not attached', 'objects');
    this.#resv.unlock();
    yield* this.fput();
  }

  /** Whether an importer may use the addresses it got: it has not been made to let go of them. */
  serves(importer: DmaBufImporter): boolean {
    sharedRead(this, 'importers');
    return this.#importers.get(importer) === true;
  }

  /** Takes the buffer away from everybody, or gives it to those who attach from now on. */
  *revoke(isRevoked: boolean): Task<void> {
    yield* this.#resv.lock();
    const isTaken = isRevoked && !this.#isRevoked;
    sharedWrite(this, 'revoked', this.#isRevoked, isRevoked);
    sharedRead(this, 'importers');
    this.#isRevoked = isRevoked;
    if (isTaken)
      for (const importer of [...this.#importers.keys()]) {
        yield* importer.invalidate();
        this.#importers.set(importer, false);
      }
    this.#resv.unlock();
  }

  override *release(): Task<void> {
    this.#exporter.release();
  }
}
