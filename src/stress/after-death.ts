/**
 * What a supervisor does about a client that died in the middle of an operation.
 *
 * At once ({@link takeLocks}): its claims on locks are taken back, so that nobody waits for them, and what it held decides.
 * A lock held for writing, a pages object's mutex, the allocator, slots of the command queue: what they cover may be torn, so the address space is given
 * up. Everybody who waits or comes to a lock later gets an error; nobody hangs.
 *
 * Otherwise what the thread was at can be read off the arena, and is taken back when everybody stands still ({@link
 * repair}). A thread without such a lock is at one of few places: an area it was mapping or unmapping is hidden and whole, so its IOVAs are
 * unmapped, its pins released if it is filled, and the area goes; references the thread held are forgotten by counting them
 * anew. Tables it had gathered for a flush it never made are lost: they are told.
 */
import { invariant } from '../runtime/task.js';
import type { AddressSpace } from './address-space.js';
import { tableFrames } from './audit.js';
import { OP } from './history.js';
import type { Death } from './report.js';
import { BLOCK, STATE, blockWord } from './spec.js';
import { GATES } from './thread.js';

/** What a dead client left. */
export interface Remains {
  readonly thread: number;
  readonly death: Death;
}

const OPERATIONS = new Map<number, string>(Object.entries(OP).map(([name, op]) => [op, name]));

/** Takes a dead client's locks; poisons the locks when it may have torn what they cover. */
export function takeLocks(space: AddressSpace, thread: number): Remains {
  const { arena, layout, locks } = space.thread;
  const word = (field: number): number => Atomics.load(arena.words, blockWord(layout, thread) + field);
  Atomics.store(arena.words, blockWord(layout, thread) + BLOCK.state, STATE.dead);
  const locksOfSpace = [space.domainsRwsem, ...space.iovaLocks, ...space.records.mutexes()];
  const held = locksOfSpace.flatMap((lock) => {
    const how = lock.heldBy(thread);
    return how === undefined ? [] : [{ name: `${lock.lockClass} (${how})`, isTorn: how === 'write' }];
  });
  const scratch = word(BLOCK.scratch);
  if (scratch !== 0 && arena.forsake(scratch)) held.push({ name: 'allocator', isTorn: true });
  if (word(BLOCK.publishing) !== 0) held.push({ name: 'command queue', isTorn: true });
  const isGivenUp = held.some(({ isTorn }) => isTorn);
  if (isGivenUp) locks.poison();
  else for (const lock of locksOfSpace) lock.forget(thread);
  const death: Death = {
    client: thread - 2,
    operation: OPERATIONS.get(word(BLOCK.operation)) ?? '-',
    firstPage: word(BLOCK.firstPage),
    pages: word(BLOCK.pages),
    gate: GATES[word(BLOCK.gate)] ?? '-',
    held: held.map(({ name }) => name),
    outcome: isGivenUp ? 'given-up' : 'repaired',
    areas: 0,
    pagesObjects: 0,
    tableFrames: 0,
  };
  return { thread, death };
}

/**
 * Takes back what a dead client left half done. Everybody else stands still, between operations. `otherFrames`: kernel
 * frames in use that are no translation tables.
 */
export function repair(space: AddressSpace, { thread, death }: Remains, otherFrames: number): Death {
  const { iopt, records, domain, table } = space;
  const { arena } = space.thread;
  let areas = 0;
  for (const { slot, hiddenBy } of [...records.areaRecords()]) {
    if (hiddenBy !== thread) continue;
    const area = records.at(slot);
    const pages = records.pagesOf(area);
    space.thread.run(domain.unmap(Number(area.iova), Number(area.lengthBytes)));
    if (area.isFilled) {
      space.thread.run(pages.mutex.lock());
      pages.release(area.firstPage, area.lastPage);
      pages.mutex.unlock();
    }
    space.thread.run(iopt.iovaRwsem.down_write(area.iova, area.last));
    iopt.areas.remove(area);
    iopt.iovaRwsem.up_write(area.iova, area.last);
    areas++;
  }
  const pagesObjects = records.recountReferences();
  const lost = arena.kernelFramesInUse - tableFrames(arena, table) - otherFrames;
  invariant(lost >= 0, 'stress: a translation table was given back twice');
  return { ...death, areas, pagesObjects, tableFrames: lost };
}
