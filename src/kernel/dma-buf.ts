/**
 * dma-bufs: memory of a device behind a descriptor, which other devices may be given access to until it is taken back.
 *
 * An exporter makes the buffer, importers attach to it. Moving the buffer away (`revoke`) asks every importer to let go before
 * it returns; a later `revoke(false)` serves new attachments only. The buffer lives until its descriptor is closed and its
 * last importer has gone.
 *
 * Lock order: `resv` -> whatever an importer takes to let go. Source: Linux drivers/dma-buf/dma-buf.c.
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
  readonly #importers = new Set<DmaBufImporter>();
  #isRevoked: boolean;
  #isOpen = true;

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
    if (address >= 0) this.#importers.add(importer);
    this.#resv.unlock();
    return address;
  }

  detach(importer: DmaBufImporter): void {
    sharedWrite(this, 'importers');
    invariant(this.#importers.delete(importer), 'dma-buf: detached by somebody who is not attached');
    this.#freeUnused();
  }

  /** Takes the buffer away from everybody, or gives it to those who attach from now on. */
  *revoke(isRevoked: boolean): Task<void> {
    yield* this.#resv.lock();
    const isTaken = isRevoked && !this.#isRevoked;
    sharedWrite(this, 'revoked', this.#isRevoked, isRevoked);
    sharedRead(this, 'importers');
    this.#isRevoked = isRevoked;
    if (isTaken) for (const importer of [...this.#importers]) yield* importer.invalidate();
    this.#resv.unlock();
  }

  override *release(): Task<void> {
    sharedWrite(this, 'open', this.#isOpen, false);
    this.#isOpen = false;
    this.#freeUnused();
  }

  #freeUnused(): void {
    sharedRead(this, 'open', this.#isOpen);
    sharedRead(this, 'importers');
    if (!this.#isOpen && this.#importers.size === 0) this.#exporter.release();
  }
}
