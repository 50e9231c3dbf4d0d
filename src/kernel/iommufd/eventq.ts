/**
 * Queues that tell user space of events: page requests that want an answer (FAULT), events of a vIOMMU (VEVENTQ).
 *
 * A queue is an object and a file; the file holds a reference to the object, so a queue whose file is open cannot be destroyed.
 * A page request stays in `deliver` until it is read, then in `response` under its cookie until it is answered, by user space or, when
 * its device leaves the page table, by the kernel: once, and while the attachment lives that it came through (INV-14). The queue's mutex
 * keeps a detach from overlooking the request that a read has in hand. Events beyond a vIOMMU queue's depth are not kept: a header with LOST_EVENTS takes
 * their place, and sequence numbers show how many they were. No lock is held while an event is read: a second reader meanwhile finds the
 * queue without it, and one that is put back because it does not fit may follow a later one that the other has read.
 *
 * Lock: `viommu.veventqs_rwsem` covers which queues a vIOMMU has, from before one is made to its end or to its failure, so that nobody
 * meets one that never comes to be; whoever reports an event holds it for reading.
 *
 * Source: Linux drivers/iommu/iommufd/eventq.c; domain.md A1.16, A1.20.
 */
import { Mutex, type Holdable } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedRead, sharedTest, sharedWrite } from '../../runtime/watch.js';
import { EEXIST, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, ESPIPE } from '../../uapi/errno.js';
import {
  IOMMU_VEVENTQ_FLAG_LOST_EVENTS,
  IOMMU_VEVENTQ_TYPE_DEFAULT,
  IOMMUFD_PAGE_RESP_INVALID,
  IOMMUFD_PAGE_RESP_SUCCESS,
  iommu_hwpt_page_response,
  iommu_hwpt_pgfault,
  iommufd_vevent_header,
  type iommu_fault_alloc,
  type iommu_veventq_alloc,
} from '../../uapi/iommufd.js';
import { OpenFile, type SyscallContext } from '../files.js';
import type { PageRequest } from '../iommu/domain.js';
import type { IommufdDevice } from './device.js';
import type { CommandOf } from './ioas.js';
import type { IommufdContext } from './main.js';
import { IommufdObject } from './object.js';
import { getViommu, type IommufdViommu } from './viommu.js';

/** The attachment that page requests come through (`struct iommufd_attach_handle`). */
export interface FaultSource {
  readonly idev: IommufdDevice;
  /** It was freed. */
  isOver: boolean;
}

/** A page request that waits for its answer. */
interface WaitingFault {
  readonly request: PageRequest;
  /** The attachment it came through: its end answers. */
  readonly handle: FaultSource;
  readonly queue: IommufdFault;
  isAnswered: boolean;
}

/** `struct iommufd_fault` */
export class IommufdFault extends IommufdObject {
  override readonly type = 'fault';
  readonly ictx: IommufdContext;
  readonly mutex = new Mutex('iommufd:fault_mutex');
  deliver: WaitingFault[] = [];
  /** Requests that came and have no answer: also the one that a read has in hand. */
  outstanding = 0;
  readonly response = new Map<number, WaitingFault>();

  constructor(ictx: IommufdContext) {
    super();
    this.ictx = ictx;
  }

  override get locks(): readonly Holdable[] {
    return [this.mutex];
  }

  /** A request of a device, through an attachment. */
  add(request: PageRequest, handle: FaultSource): void {
    this.checkAlive();
    sharedWrite(this, 'queue', this.deliver.length, this.deliver.length + 1);
    this.deliver.push({ request, handle, queue: this, isAnswered: false });
    this.outstanding++;
  }

  /** The attachment ends: what came through it is answered as invalid (`iommufd_auto_response_faults`). */
  *respondAll(handle: FaultSource): Task<void> {
    this.checkAlive();
    const isLocked = !this.ictx.instruments.fires('iommufd.auto-response-unlocked');
    if (isLocked) yield* this.mutex.lock();
    sharedTest(this, 'queue', this.deliver.length);
    sharedTest(this, 'unanswered', this.response.size);
    const isOf = (fault: WaitingFault): boolean => fault.handle === handle;
    for (const fault of this.deliver.filter(isOf)) respond(fault, IOMMUFD_PAGE_RESP_INVALID);
    this.deliver = this.deliver.filter((fault) => !isOf(fault));
    for (const [cookie, fault] of this.response) {
      if (!isOf(fault)) continue;
      respond(fault, IOMMUFD_PAGE_RESP_INVALID);
      this.response.delete(cookie);
    }
    if (isLocked) this.mutex.unlock();
  }

  *abort(): Task<void> {
    yield* this.destroy();
  }

  override *destroy(): Task<void> {
    sharedTest(this, 'queue', this.deliver.length);
    sharedTest(this, 'unanswered', this.response.size);
    for (const fault of [...this.deliver, ...this.response.values()]) respond(fault, IOMMUFD_PAGE_RESP_INVALID);
    const { outstanding } = this;
    invariant(
      outstanding === 0,
      () => `${outstanding} page requests of queue ${this.id} were never answered`,
      'INV-14',
    );
  }
}

/** The device that made a request. */
function deviceOf({ handle }: WaitingFault): IommufdDevice {
  sharedRead(handle, 'isOver', handle.isOver);
  invariant(!handle.isOver, 'use of a page request whose attachment was freed', 'objects');
  return handle.idev;
}

function respond(fault: WaitingFault, code: number): void {
  const { device, igroup, ictx } = deviceOf(fault);
  invariant(!fault.isAnswered, 'a page request is answered twice', 'INV-14');
  fault.isAnswered = true;
  fault.queue.outstanding--;
  igroup.group.driver.page_response?.(device, fault.request, code);
  ictx.instruments.held('INV-14');
}

/** Lowest number from 1 that is no key. */
function freeCookie(taken: ReadonlyMap<number, unknown>): number {
  let cookie = 1;
  while (taken.has(cookie)) cookie++;
  return cookie;
}

/** The file of a queue. */
abstract class EventFile<Q extends IommufdObject & { readonly ictx: IommufdContext }> extends OpenFile {
  readonly queue: Q;

  constructor(queue: Q) {
    super();
    this.queue = queue;
    queue.refcountInc();
    queue.ictx.get();
  }

  override *release(): Task<void> {
    this.queue.refcountDec();
    yield* this.queue.ictx.put();
  }
}

class FaultFile extends EventFile<IommufdFault> {
  override poll(): boolean {
    sharedRead(this.queue, 'queue', this.queue.deliver.length);
    return this.queue.deliver.length > 0;
  }

  /** Whole `struct iommu_hwpt_pgfault`s; nothing when there is none. -ESPIPE for a length that is no multiple. */
  override *read(_ctx: SyscallContext, lengthBytes: number): Task<Uint8Array | number> {
    const size = iommu_hwpt_pgfault.sizeBytes;
    if (lengthBytes % size !== 0) return -ESPIPE;
    const { queue } = this;
    const records: Uint8Array[] = [];
    let rc = 0;
    yield* queue.mutex.lock();
    for (;;) {
      sharedTest(queue, 'queue', queue.deliver.length);
      sharedTest(queue, 'unanswered', queue.response.size);
      const fault = queue.deliver.shift();
      if (fault === undefined) break;
      yield 'iommufd:fault-fetched';
      const fits = (records.length + 1) * size <= lengthBytes;
      if (!fits || queue.ictx.allocFails()) {
        sharedWrite(queue, 'queue', queue.deliver.length, queue.deliver.length + 1);
        queue.deliver.unshift(fault);
        rc = fits ? -ENOMEM : 0;
        break;
      }
      const { id } = deviceOf(fault);
      const cookie = freeCookie(queue.response);
      queue.response.set(cookie, fault);
      const { flags, pasid, grpid, perm, addr } = fault.request;
      records.push(iommu_hwpt_pgfault.encode({ flags, dev_id: id, pasid, grpid, perm, addr, length: 0, cookie }));
    }
    queue.mutex.unlock();
    return records.length === 0 && rc < 0 ? rc : Buffer.concat(records);
  }

  /** `struct iommu_hwpt_page_response`s: bytes taken; -ESPIPE, -EINVAL for a code or cookie there is not, when it is the first. */
  override *write(_ctx: SyscallContext, bytes: Uint8Array): Task<number> {
    const size = iommu_hwpt_page_response.sizeBytes;
    if (bytes.length % size !== 0) return -ESPIPE;
    yield* this.queue.mutex.lock();
    const rc = this.#respondTo(bytes);
    this.queue.mutex.unlock();
    return rc;
  }

  #respondTo(bytes: Uint8Array): number {
    const size = iommu_hwpt_page_response.sizeBytes;
    const { response } = this.queue;
    sharedTest(this.queue, 'unanswered', response.size);
    let done = 0;
    for (; done < bytes.length; done += size) {
      const { cookie, code } = iommu_hwpt_page_response.decode(bytes.subarray(done));
      const fault = response.get(cookie);
      const isCode = code === IOMMUFD_PAGE_RESP_SUCCESS || code === IOMMUFD_PAGE_RESP_INVALID;
      if (!isCode || fault === undefined) return done === 0 ? -EINVAL : done;
      sharedRead(fault.handle, 'isOver', fault.handle.isOver);
      invariant(!fault.handle.isOver, 'a stale cookie is found: the attachment of its request was freed', 'objects');
      response.delete(cookie);
      respond(fault, code);
    }
    return done;
  }
}

/** IOMMU_FAULT_QUEUE_ALLOC */
export function* faultQueueAlloc(ucmd: CommandOf<typeof iommu_fault_alloc>): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  if (cmd.flags !== 0) return -EOPNOTSUPP;
  const fault = new IommufdFault(ictx);
  const allocated = ictx.objects.alloc(fault);
  if (allocated < 0) return allocated;
  return yield* openQueue(ictx, ctx, fault, new FaultFile(fault), (fd) => {
    cmd.out_fault_id = fault.id;
    cmd.out_fault_fd = fd;
    return ucmd.respond();
  });
}

/** Gives a queue its file and tells the caller; takes everything back when that fails. */
function* openQueue(
  ictx: IommufdContext,
  ctx: SyscallContext,
  queue: IommufdFault | IommufdVeventq,
  file: OpenFile,
  answer: (fd: number) => number,
): Task<number> {
  const { files } = ctx.process;
  yield 'iommufd:queue-allocated';
  const fd = ictx.allocFails() ? -ENOMEM : files.install(file);
  if (fd < 0) {
    yield* fput(ctx, file, ictx.instruments.fires('iommufd.fput-deferred'));
    if (queue instanceof IommufdFault && ictx.instruments.fires('iommufd.fault-put-twice')) {
      queue.refcountDec();
      yield* ictx.put();
    }
  }
  const rc = fd < 0 ? fd : answer(fd);
  if (rc < 0) {
    if (fd >= 0) yield* files.close(fd);
    yield* queue.abort();
    ictx.objects.abort(queue);
    return rc;
  }
  ictx.objects.finalize(queue);
  return 0;
}

/** A file that nobody has opened goes: at once, or (`fput`) as a task of the kernel's own when that gets to it. */
function* fput(ctx: SyscallContext, file: OpenFile, isDeferred: boolean): Task<void> {
  if (!isDeferred) return yield* file.release();
  ctx.runtime.spawn('kworker/delayed_fput', file.release());
  yield 'iommufd:fput-deferred';
}

export function isFault(object: IommufdObject): object is IommufdFault {
  return object instanceof IommufdFault;
}

// --- vIOMMU events ---

/** A 32-bit pointer to a header. */
const SHORT_HEADER_BYTES = 4;
/** Highest number of a sequence: INT_MAX. */
const SEQUENCE_MASK = 0x7fff_ffff;
/** VEVENTQ_MAX_DEPTH */
const MAX_DEPTH = 1 << 19;

/** An event, or (without bytes) the word that some were lost. */
interface Vevent {
  sequence: number;
  readonly bytes: Uint8Array | undefined;
}

/** `struct iommufd_veventq` */
export class IommufdVeventq extends IommufdObject {
  override readonly type = 'veventq';
  readonly ictx: IommufdContext;
  readonly viommu: IommufdViommu;
  readonly eventType: number;
  readonly depth: number;
  readonly deliver: Vevent[] = [];
  /** Says that events were lost, and with which number the last one was (`lost_events_header`). In the queue once at most, at its end. */
  readonly #lost: Vevent = { sequence: 0, bytes: undefined };
  #events = 0;
  #sequence = 0;

  constructor(viommu: IommufdViommu, eventType: number, depth: number) {
    super();
    this.ictx = viommu.ictx;
    this.viommu = viommu;
    this.eventType = eventType;
    this.depth = depth;
  }

  /** Adds an event; a full queue, or one that there was no memory for (undefined), notes that it was lost. */
  report(bytes: Uint8Array | undefined): void {
    sharedTest(this, 'queue', this.#events);
    const isLost = bytes === undefined || this.#events === this.depth;
    if (this.deliver.at(-1) === this.#lost) this.deliver.pop();
    if (isLost) this.#lost.sequence = this.#sequence;
    else this.#events++;
    this.deliver.push(isLost ? this.#lost : { sequence: this.#sequence, bytes });
    this.#sequence = (this.#sequence + 1) & SEQUENCE_MASK;
  }

  /** Takes the first event in hand; it counts until it is read. Of the word that some were lost a copy, if there is memory for one. */
  fetch(): Vevent | undefined {
    sharedTest(this, 'queue', this.#events);
    const [first] = this.deliver;
    if (first === this.#lost && this.ictx.allocFails()) return undefined;
    this.deliver.shift();
    return first === this.#lost ? { ...first } : first;
  }

  /** Puts an event that was fetched and not read before all others; that some were lost is said again only where nothing came meanwhile. */
  restore(event: Vevent): void {
    sharedTest(this, 'queue', this.#events);
    if (event.bytes !== undefined) this.deliver.unshift(event);
    else if (this.deliver.length === 0) this.deliver.push(this.#lost);
  }

  /** An event that was fetched has been read: the queue has its place again. */
  forget(event: Vevent): void {
    sharedTest(this, 'queue', this.#events);
    if (event.bytes !== undefined) this.#events--;
  }

  /** Whether a read that has `roomBytes` left takes an event. */
  fits({ bytes }: Vevent, roomBytes: number): boolean {
    const headBytes = iommufd_vevent_header.sizeBytes;
    if (headBytes > roomBytes) return false;
    const isShort = this.ictx.instruments.fires('iommufd.vevent-header-size');
    return (isShort ? SHORT_HEADER_BYTES : headBytes) + (bytes?.length ?? 0) <= roomBytes;
  }

  /** Takes back a queue that could not be made. Hold `veventqs_rwsem` for writing. */
  *abort(): Task<void> {
    const { viommu } = this;
    sharedWrite(viommu, 'event queues');
    viommu.veventqs.splice(viommu.veventqs.indexOf(this), 1);
    viommu.refcountDec();
  }

  override *destroy(): Task<void> {
    const { veventqs_rwsem } = this.viommu;
    yield* veventqs_rwsem.down_write();
    yield* this.abort();
    // Somebody who destroys the vIOMMU now frees what is held here (iommufd_veventq_destroy).
    if (this.ictx.instruments.fires('iommufd.veventq-put-early')) yield 'iommufd:veventq-put';
    veventqs_rwsem.up_write();
  }
}

/** An event as user space reads it. */
function veventBytes({ sequence, bytes }: Vevent): Uint8Array {
  const flags = bytes === undefined ? IOMMU_VEVENTQ_FLAG_LOST_EVENTS : 0;
  return Buffer.concat([iommufd_vevent_header.encode({ flags, sequence }), bytes ?? Buffer.alloc(0)]);
}

class VeventFile extends EventFile<IommufdVeventq> {
  override poll(): boolean {
    sharedRead(this.queue, 'queue', this.queue.deliver.length);
    return this.queue.deliver.length > 0;
  }

  /** As many whole events as fit. */
  override *read(_ctx: SyscallContext, lengthBytes: number): Task<Uint8Array | number> {
    this.queue.checkAlive();
    if (lengthBytes < iommufd_vevent_header.sizeBytes) return -EINVAL;
    const parts: Uint8Array[] = [];
    let done = 0;
    for (;;) {
      const event = this.queue.fetch();
      if (event === undefined) break;
      yield 'iommufd:vevent-fetched';
      if (!this.queue.fits(event, lengthBytes - done)) {
        this.queue.restore(event);
        break;
      }
      const bytes = veventBytes(event);
      parts.push(bytes);
      done += bytes.length;
      invariant(done <= lengthBytes, () => `a read of ${lengthBytes} bytes copies ${done} bytes of events`, 'INV-14');
      this.queue.ictx.instruments.held('INV-14');
      yield 'iommufd:vevent-copied';
      this.queue.forget(event);
    }
    return Buffer.concat(parts);
  }
}

/** IOMMU_VEVENTQ_ALLOC */
export function* veventqAlloc(ucmd: CommandOf<typeof iommu_veventq_alloc>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.flags !== 0 || cmd.__reserved !== 0 || cmd.type === IOMMU_VEVENTQ_TYPE_DEFAULT) return -EOPNOTSUPP;
  if (cmd.veventq_depth === 0 || cmd.veventq_depth > MAX_DEPTH) return -EINVAL;
  const viommu = getViommu(ictx, cmd.viommu_id);
  if (viommu === undefined) return -ENOENT;
  yield 'iommufd:object-found';
  try {
    if (viommu.driver.supports_veventq?.(cmd.type) === false) return -EOPNOTSUPP;
    yield* viommu.veventqs_rwsem.down_write();
    const rc = yield* makeVeventq(ucmd, viommu);
    viommu.veventqs_rwsem.up_write();
    return rc;
  } finally {
    ictx.objects.put(viommu);
  }
}

function* makeVeventq(ucmd: CommandOf<typeof iommu_veventq_alloc>, viommu: IommufdViommu): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  sharedRead(viommu, 'event queues');
  if (viommu.veventqs.some((queue) => queue.eventType === cmd.type)) return -EEXIST;
  const queue = new IommufdVeventq(viommu, cmd.type, cmd.veventq_depth);
  const allocated = ictx.objects.alloc(queue);
  if (allocated < 0) return allocated;
  sharedWrite(viommu, 'event queues');
  viommu.veventqs.push(queue);
  viommu.refcountInc();
  return yield* openQueue(ictx, ctx, queue, new VeventFile(queue), (fd) => {
    cmd.out_veventq_id = queue.id;
    cmd.out_veventq_fd = fd;
    return ucmd.respond();
  });
}
