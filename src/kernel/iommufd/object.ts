/**
 * Objects of an iommufd and their numbers.
 *
 * One number space per descriptor: the lowest free number, from 1. An object gets its number when it is allocated but can
 * be found only after `finalize`; `abort` gives the number back as if nothing had been. `users` counts the object's own
 * existence (1), every long-term reference, and every call that is working with it; DESTROY needs it to be exactly 1 and
 * leaves 0, after which nobody can take hold of it.
 * A destroy on behalf of a driver waits for the calls (`shortTerm`) instead of failing.
 *
 * Source: Linux drivers/iommu/iommufd/main.c, iommufd_private.h; domain.md A1.1, INV-16.
 */
import { invariant, WaitQueue, type Task } from '../../runtime/task.js';
import { isWatched, sharedRead, sharedTest, sharedUpdate, sharedWrite } from '../../runtime/watch.js';
import { EBUSY, ENOENT, ENOMEM } from '../../uapi/errno.js';

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
  /** Calls that are using the object now. */
  shortTerm = 0;
  readonly idle = new WaitQueue('iommufd:object idle');

  get users(): number {
    return this.#users;
  }

  set users(count: number) {
    if (count === 0) sharedWrite(this, 'users', this.#users, count);
    else sharedUpdate(this, 'users', this.#users, count);
    this.#users = count;
  }

  /** Undoes what creating it did. Nobody can find it any more. */
  abstract destroy(): Task<void>;
}

/** All objects of one iommufd. */
export class ObjectTable {
  /** Undefined: the number is taken, the object cannot be found (yet). */
  readonly #slots: (IommufdObject | undefined)[] = [undefined];
  readonly #isTaken: boolean[] = [true];
  /** Numbers whose objects are gone and which stay taken until everything is (XA_ZERO_ENTRY). */
  readonly #tombstones = new Set<number>();
  readonly #allocFails: () => boolean;
  #taken = 0;

  get isEmpty(): boolean {
    return this.#taken === 0;
  }

  get size(): number {
    return this.#taken;
  }

  /** `allocFails`: whether the next allocation of memory fails (fault switch `kernel.kmalloc`). */
  constructor(allocFails: () => boolean = () => false) {
    this.#allocFails = allocFails;
  }

  /** Gives an object its number: 0 or -ENOMEM. */
  alloc(object: IommufdObject): number {
    if (this.#allocFails()) return -ENOMEM;
    sharedWrite(this, 'numbers');
    const free = this.#isTaken.indexOf(false);
    object.id = free < 0 ? this.#isTaken.length : free;
    this.#isTaken[object.id] = true;
    this.#slots[object.id] = undefined;
    this.#taken++;
    return 0;
  }

  /** Lets an allocated object be found. */
  finalize(object: IommufdObject): void {
    invariant(this.#isTaken[object.id] === true, 'iommufd: finalize of an object without a number');
    this.#setSlot(object.id, object);
  }

  /** Gives back the number of an object that was never finalized. */
  abort(object: IommufdObject): void {
    invariant(this.#slots[object.id] === undefined, 'iommufd: abort of a finalized object');
    this.#free(object.id);
  }

  /** Finds an object and keeps it from going away until {@link put}; undefined when there is none of that type. */
  get<T extends IommufdObject>(id: number, isKind: (object: IommufdObject) => object is T): T | undefined {
    const object = this.#slot(id);
    return object !== undefined && isKind(object) && this.tryHold(object) ? object : undefined;
  }

  /** A short-term reference to an object somebody points to; false when it is being destroyed. */
  tryHold(object: IommufdObject): boolean {
    if (object.users === 0) {
      sharedRead(object, 'users', 0);
      return false;
    }
    object.users++;
    object.shortTerm++;
    return true;
  }

  put(object: IommufdObject): void {
    object.users--;
    object.shortTerm--;
    if (object.shortTerm === 0) object.idle.wakeAll();
  }

  /** Destroys by number as IOMMU_DESTROY does: 0, -ENOENT, -EBUSY. */
  *remove(id: number): Task<number> {
    const object = this.#slot(id);
    if (object === undefined) return -ENOENT;
    sharedTest(object, 'users', object.users);
    if (object.users !== 1) return -EBUSY;
    yield* this.#destroy(object);
    return 0;
  }

  /** Destroys an object whose only long-term user is the caller; waits for calls that work with it. */
  *destroyUser(object: IommufdObject): Task<void> {
    object.users--;
    yield* this.#idle(object);
    invariant(object.users === 1, `iommufd: object ${object.id} (${object.type}) destroyed by its driver while in use`);
    yield* this.#destroy(object);
  }

  /** As {@link destroyUser} for an object that nobody else keeps, but its number stays taken while the table does. */
  *tombstone(object: IommufdObject): Task<void> {
    yield* this.#idle(object);
    const { id } = object;
    this.#setSlot(id, undefined);
    this.#tombstones.add(id);
    object.users = 0;
    yield* object.destroy();
  }

  /** Takes a reference away and destroys the object if that was the last. */
  *putAndTryDestroy(object: IommufdObject): Task<void> {
    object.users--;
    sharedTest(object, 'users', object.users);
    if (object.users === 1 && this.#slots[object.id] === object) yield* this.#destroy(object);
  }

  /** Destroys everything, dependent objects first. */
  *destroyAll(): Task<void> {
    while (!this.isEmpty) {
      const before = this.#taken;
      for (const id of this.#tombstones) this.#free(id);
      this.#tombstones.clear();
      for (const object of this.objects()) if (object.users === 1) yield* this.#destroy(object);
      invariant(this.#taken < before, 'iommufd: objects refer to each other in a circle');
    }
  }

  /** Objects that can be found, with the number each is found by. */
  *entries(): Generator<[number, IommufdObject]> {
    for (const [id, object] of this.#slots.entries()) if (object !== undefined) yield [id, object];
  }

  /** Objects that can be found, by number. */
  objects(): IommufdObject[] {
    sharedRead(this, 'objects');
    return this.#slots.filter((object) => object !== undefined);
  }

  *#destroy(object: IommufdObject): Task<void> {
    this.#free(object.id);
    object.users = 0;
    yield* object.destroy();
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

  #free(id: number): void {
    sharedWrite(this, 'numbers');
    this.#setSlot(id, undefined);
    this.#isTaken[id] = false;
    this.#taken--;
  }
}
