/**
 * In which order locks are taken: what lockdep is in the kernel.
 *
 * Locks have classes. Taking a lock of class B with one of class A held is an edge A -> B; a circle of edges is a deadlock that
 * some schedule has, whether this one shows it or not, and is reported with both chains as soon as its last edge appears.
 * Two locks of one class may be held together only when a lock that was declared to cover that is held, too (`nest`).
 *
 * Each node has its own order; tasks keep the list of what they hold.
 *
 * Source: Linux Documentation/locking/lockdep-design.rst.
 */
import { InvariantError } from './task.js';

/** A lock that a task holds. */
export interface HeldLock {
  readonly lock: object;
  readonly lockClass: string;
}

/** Whoever can hold locks: a task. */
export interface LockHolder {
  readonly name: string;
  readonly held: HeldLock[];
  readonly lockOrder: LockOrder;
}

/** The task that is being stepped in this thread. */
let holder: LockHolder | undefined;

/** For the scheduler: who runs from now on. */
export function setLockHolder(next: LockHolder | undefined): void {
  holder = next;
}

/** The running task's part of taking a lock. `nest`: the class of a lock that allows several of this class. */
export function noteAcquired(lock: object, lockClass: string, nest?: string): void {
  if (holder === undefined) return;
  if (holder.held.length > 0) holder.lockOrder.acquire(holder, lockClass, nest);
  holder.held.push({ lock, lockClass });
}

/** The running task's part of giving a lock back. */
export function noteReleased(lock: object): void {
  const held = holder?.held;
  if (held === undefined) return;
  for (let i = held.length - 1; i >= 0; i--) {
    if (held[i]?.lock !== lock) continue;
    held.splice(i, 1);
    return;
  }
}

/** Where an edge was seen first. */
interface Edge {
  readonly task: string;
  /** Classes held then, outermost first. */
  readonly held: readonly string[];
}

/** The edges of one node. */
export class LockOrder {
  readonly #edges = new Map<string, Map<string, Edge>>();
  #looks = 0;

  /** How often a lock was taken with others held. */
  get looks(): number {
    return this.#looks;
  }

  /** @throws InvariantError when the lock closes a circle */
  acquire(task: LockHolder, lockClass: string, nest: string | undefined): void {
    this.#looks++;
    for (const { lockClass: outer } of task.held) {
      if (outer === lockClass) {
        if (nest !== undefined && task.held.some((lock) => lock.lockClass === nest)) continue;
        throw new InvariantError(`${task.name} takes ${lockClass} while it holds a lock of that class`, 'lock-order');
      }
      const known = this.#edges.get(outer);
      if (known?.has(lockClass) === true) continue;
      this.#add(task, outer, lockClass);
    }
  }

  #add(task: LockHolder, outer: string, inner: string): void {
    const held = task.held.map((lock) => lock.lockClass);
    const back = this.#path(inner, outer, new Set());
    if (back !== undefined) {
      const chain = back.map(({ to, edge }) => `${edge.task} took ${to} holding ${edge.held.join(', ')}`);
      throw new InvariantError(
        `locks in both orders: ${task.name} takes ${inner} holding ${held.join(', ')}; ${chain.join('; ')}`,
        'lock-order',
      );
    }
    const from = this.#edges.get(outer) ?? new Map<string, Edge>();
    from.set(inner, { task: task.name, held });
    this.#edges.set(outer, from);
  }

  /** Edges that lead from one class to another; undefined when none do. */
  #path(from: string, to: string, seen: Set<string>): { readonly to: string; readonly edge: Edge }[] | undefined {
    if (seen.has(from)) return undefined;
    seen.add(from);
    for (const [next, edge] of this.#edges.get(from) ?? []) {
      const rest = next === to ? [] : this.#path(next, to, seen);
      if (rest !== undefined) return [{ to: next, edge }, ...rest];
    }
    return undefined;
  }
}
