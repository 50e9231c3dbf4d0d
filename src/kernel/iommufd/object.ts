/**
 * Objects of an iommufd and their numbers.
 *
 * One number space per descriptor: the lowest free number, from 1. An object gets its number when it is allocated but can
 * be found only after `finalize`; `abort` gives the number back as if nothing had been. `users` counts the object's own
 * existence (1), every long-term reference, and every call that is working with it; DESTROY needs it to be exactly 1 and
 * leaves 0, after which nobody can take hold of it.
 * A destroy on behalf of a driver waits for the calls (`shortTerm`) instead of failing.
 *
 * Every change of a counter and every step of an object's life is checked, as `refcount_t`, KASAN and the kernel's own WARN_ONs do: nobody
 * takes hold of an object that is gone, `users` never reaches 0 but by destroying, a number belongs to one object at a time.
 *
 * Source: Linux drivers/iommu/iommufd/main.c, iommufd_private.h; domain.md A1.1, INV-16.
 */
import { freeLocks, type Holdable } from '../../runtime/locks.js';
import { invariant, WaitQueue, type Task } from '../../runtime/task.js';
import { isWatched, sharedRead, sharedTest, sharedUpdate, sharedWrite } from '../../runtime/watch.js';
import { EBUSY, ENOENT, ENOMEM } from '../../uapi/errno.js';
import { NO_INSTRUMENTS, type Instruments } from './instruments.js';

/** `enum iommufd_object_type`, as far as there are such objects. */
export type ObjectType =
  | 'ioas'
  | 'hwpt-paging'
  | 'hwpt-nested'
  | 'device'
  | 'access'
  | 'fault'
  | 'viommu'
  | 'vdevice'
  | 'veventq'
  | 'hw-queue'
  | 'selftest';

/** Something with a number. */
export abstract class IommufdObject {
  abstract readonly type: ObjectType;
  /** Set by {@link ObjectTable.alloc}. */
  id = 0;
  #users = 1;
  #shortTerm = 0;
  #isFreed = false;
  readonly idle = new WaitQueue('iommufd:object idle');

  get users(): number {
    sharedRead(this, 'users', this.#users);
    return this.#users;
  }

  /** Calls that are using the object now. */
  get shortTerm(): number {
    return this.#shortTerm;
  }

  /** Locks that go with it. */
  get locks(): readonly Holdable[] {
    return [];
  }

  /** Undoes what creating it did. Nobody can find it any more. */
  abstract destroy(): Task<void>;

  /** @throws InvariantError when the object's memory was given back already */
  checkAlive(): void {
    invariant(!this.#isFreed, () => `use of ${this.#name}, which was freed`, 'objects');
  }

  /** One more user (`refcount_inc`): the caller has hold of the object already. */
  refcountInc(times = 1): void {
    this.checkAlive();
    sharedUpdate(this, 'users', this.#users, this.#users + times);
    invariant(this.#users > 0, () => `a reference to ${this.#name}, which is being destroyed`, 'objects');
    this.#users += times;
  }

  /** Users fewer (`refcount_dec`): never the last. */
  refcountDec(times = 1): void {
    this.checkAlive();
    sharedUpdate(this, 'users', this.#users, this.#users - times);
    this.#users -= times;
    invariant(this.#users > 0, () => `the last reference to ${this.#name} was put without destroying it`, 'objects');
  }

  /** For {@link ObjectTable}: a call begins (1) or ends (-1) to work with the object. */
  countCall(change: 1 | -1): void {
    this.checkAlive();
    sharedUpdate(this, 'users', this.#users, this.#users + change);
    this.#users += change;
    this.#shortTerm += change;
    invariant(this.#users > 0 && this.#shortTerm >= 0, () => `${this.#name} was put once too often`, 'objects');
  }

  /** For {@link ObjectTable}: nobody gets hold of the object from now on. */
  dropLastUser(): void {
    this.checkAlive();
    sharedWrite(this, 'users', this.#users, 0);
    invariant(this.#users === 1, () => `${this.#name} goes while it has ${this.#users} users`, 'objects');
    this.#users = 0;
  }

  /** For {@link ObjectTable}: `kfree`. */
  free(): void {
    invariant(!this.#isFreed, () => `${this.#name} is freed twice`, 'objects');
    freeLocks(this.locks);
    this.#isFreed = true;
  }

  get #name(): string {
    return `${this.type} ${this.id}`;
  }
}

/** All objects of one iommufd. */
export class ObjectTable {
  /** Undefined: the number is taken, the object cannot be found (yet). */
  readonly #slots: (IommufdObject | undefined)[] = [undefined];
  /** Whose a number is, whether it can be found or not. */
  readonly #owners: (IommufdObject | undefined | null)[] = [null];
  /** Objects that are gone and whose numbers stay taken until everything is (XA_ZERO_ENTRY). */
  readonly #tombstones = new Set<IommufdObject>();
  readonly #instruments: Instruments;
  #taken = 0;

  get isEmpty(): boolean {
    return this.#taken === 0;
  }

  get size(): number {
    return this.#taken;
  }

  constructor(instruments: Instruments = NO_INSTRUMENTS) {
    this.#instruments = instruments;
  }

  /** Gives an object its number: 0 or -ENOMEM. */
  alloc(object: IommufdObject): number {
    if (this.#instruments.fires('kernel.kmalloc')) return -ENOMEM;
    sharedWrite(this, 'numbers');
    const free = this.#owners.indexOf(undefined);
    object.id = free < 0 ? this.#owners.length : free;
    this.#owners[object.id] = object;
    this.#slots[object.id] = undefined;
    this.#taken++;
    return 0;
  }

  /** Lets an allocated object be found. */
  finalize(object: IommufdObject): void {
    object.checkAlive();
    invariant(this.#owners[object.id] === object, () => `finalize of ${object.type} without a number`, 'INV-16');
    this.#setSlot(object.id, object);
  }

  /** Undoes {@link alloc} of an object that was never finalized and to which nobody else refers. */
  abort(object: IommufdObject): void {
    invariant(
      this.#slots[object.id] === undefined,
      () => `abort of ${object.type} ${object.id}, which was published`,
      'objects',
    );
    this.#release(object);
    object.dropLastUser();
    object.free();
  }

  /** Finds an object and keeps it from going away until {@link put}; undefined when there is none of that type. */
  get<T extends IommufdObject>(id: number, isKind: (object: IommufdObject) => object is T): T | undefined {
    const object = this.#slot(id);
    return object !== undefined && isKind(object) && this.tryHold(object) ? object : undefined;
  }

  /** A short-term reference to an object somebody points to; false when it is being destroyed. */
  tryHold(object: IommufdObject): boolean {
    object.checkAlive();
    if (object.users === 0) return false;
    object.countCall(1);
    return true;
  }

  put(object: IommufdObject): void {
    object.countCall(-1);
    if (object.shortTerm === 0) object.idle.wakeAll();
  }

  /** Destroys by number as IOMMU_DESTROY does: 0, -ENOENT, -EBUSY. */
  *remove(id: number): Task<number> {
    const object = this.#slot(id);
    if (object === undefined) return -ENOENT;
    sharedTest(object, 'users', object.users);
    if (this.#instruments.fires('iommufd.destroy-takes-reference') && this.tryHold(object)) {
      // As a user among others, whose driver may be about to destroy the object and count on being the last.
      object.refcountInc();
      this.put(object);
      yield 'iommufd:destroy-referenced';
      object.refcountDec();
    }
    if (object.users !== 1) return -EBUSY;
    yield* this.#destroy(object);
    return 0;
  }

  /** Destroys an object whose only long-term user is the caller; waits for calls that work with it. */
  *destroyUser(object: IommufdObject): Task<void> {
    // The user's reference keeps IOMMU_DESTROY away until the calls are done.
    yield* this.#idle(object);
    object.refcountDec();
    yield* this.#destroy(object);
  }

  /** As {@link destroyUser}, but the number stays taken while the table does. */
  *tombstone(object: IommufdObject): Task<void> {
    yield* this.#idle(object);
    object.refcountDec();
    this.#setSlot(object.id, undefined);
    this.#tombstones.add(object);
    object.dropLastUser();
    yield* object.destroy();
    object.free();
  }

  /** Takes a reference away and destroys the object if that was the last. */
  *putAndTryDestroy(object: IommufdObject): Task<void> {
    object.refcountDec();
    sharedTest(object, 'users', object.users);
    if (object.users === 1 && this.#slots[object.id] === object) yield* this.#destroy(object);
  }

  /** Destroys everything, dependent objects first. */
  *destroyAll(): Task<void> {
    while (!this.isEmpty) {
      const before = this.#taken;
      for (const object of this.#tombstones) this.#release(object);
      this.#tombstones.clear();
      for (const object of this.objects()) if (object.users === 1) yield* this.#destroy(object);
      invariant(this.#taken < before, () => `${this.#taken} objects are left that somebody refers to`, 'objects');
    }
  }

  /** Objects that can be found, with the number each is found by. */
  *entries(): Generator<[number, IommufdObject]> {
    sharedRead(this, 'objects');
    for (const [id, object] of this.#slots.entries()) if (object !== undefined) yield [id, object];
  }

  /** Objects that can be found, by number. */
  objects(): IommufdObject[] {
    sharedRead(this, 'objects');
    return this.#slots.filter((object) => object !== undefined);
  }

  *#destroy(object: IommufdObject): Task<void> {
    object.dropLastUser();
    this.#release(object);
    yield* object.destroy();
    object.free();
    this.#instruments.held('objects');
  }

  /** Waits for the calls that work with an object. */
  *#idle(object: IommufdObject): Task<void> {
    sharedTest(object, 'users', object.users);
    while (object.shortTerm > 0) {
      yield object.idle;
      sharedTest(object, 'users', object.users);
    }
  }

  #slot(id: number): IommufdObject | undefined {
    const object = this.#slots[id];
    if (isWatched()) sharedRead(this, `slot ${id}`, object?.type);
    return object;
  }

  #setSlot(id: number, object: IommufdObject | undefined): void {
    if (isWatched()) {
      sharedWrite(this, `slot ${id}`, this.#slots[id]?.type, object?.type);
      sharedWrite(this, 'objects');
    }
    this.#slots[id] = object;
  }

  /** The number is free again. */
  #release(object: IommufdObject): void {
    const { id } = object;
    invariant(
      this.#owners[id] === object,
      () => `number ${id} is given back by ${object.type}, whose it is not`,
      'INV-16',
    );
    sharedWrite(this, 'numbers');
    this.#setSlot(id, undefined);
    this.#owners[id] = undefined;
    this.#taken--;
  }
}
