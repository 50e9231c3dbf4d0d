/**
 * One thread's view of the address space: the kernel's own objects over what all threads share.
 *
 * Shared in the arena: translation table, area index, records of areas and pages, locks, pin counts, charges, command queue.
 * Of this thread alone, and the same in every thread because it is made the same way before anything is mapped: the process with its memory
 * map, the list of domains and what they reserve. Creating and attaching are the host's business (law 5): a thread repeats
 * the one `add_domain` there is, over an empty table, and after that only maps, copies, unmaps and reads dirty state.
 */
import { IntervalIndex, type Intervals } from '../core/interval-index.js';
import { PageTable } from '../core/page-table.js';
import { RobustRwSemaphore } from '../core/robust-lock.js';
import { ShardedIndex } from '../core/sharded-index.js';
import { PhysicalMemory } from '../hardware/memory.js';
import { ArmSmmuDomain, type SmmuInvalidation } from '../kernel/iommu/arm-smmu-v3/domain.js';
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from '../kernel/iommu/domain.js';
import { AreaTree } from '../kernel/iommufd/area.js';
import { ShardedIovaRwsem } from '../kernel/iommufd/area-lock.js';
import { IoPageTable, type IovaRwsem } from '../kernel/iommufd/io-pagetable.js';
import { countingAccount, userPages } from '../kernel/iommufd/page-source.js';
import { PAGE_BYTES, PAGE_SIZE } from '../kernel/iommufd/pages.js';
import { SharedPageCounter, SharedRecords } from '../kernel/iommufd/shared-records.js';
import { MmStruct } from '../kernel/mm/mm.js';
import { PageAllocator } from '../kernel/mm/page-allocator.js';
import { Process, UserStruct } from '../kernel/mm/process.js';
import { SharedPins } from '../kernel/mm/shared-pins.js';
import { NodeRuntime } from '../runtime/node-runtime.js';
import { invariant, type Task } from '../runtime/task.js';
import { ENOMEM } from '../uapi/errno.js';
import { PROT_READ, PROT_WRITE, type Contiguity } from '../uapi/syscall.js';
import { HastyPageTable, LyingIoPageTable, NoRwsem, WritableDomain } from './breakage.js';
import { CommandProducer } from './command-queue.js';
import { RecordedDomain } from './recorded-domain.js';
import { ASID, BLOCK, SHARDING, STATE, WORDS, blockWord, deviceThreads, lockOffset } from './spec.js';
import type { StressThread } from './thread.js';

/** Memory of the process: what maps take slices of. The last one cannot be written: mapping it for writing is EFAULT. */
const BUFFERS: readonly { readonly pages: number; readonly contiguity: Contiguity; readonly prot: number }[] = [
  { pages: 4096, contiguity: 'huge-2m', prot: PROT_READ | PROT_WRITE },
  { pages: 256, contiguity: 'scattered', prot: PROT_READ | PROT_WRITE },
  { pages: 64, contiguity: 'pages', prot: PROT_READ },
];
/** RLIMIT_MEMLOCK in pages: threads meet it now and then. */
const LIMIT_PAGES = 12_288;
/** Unmaps that wait for one flush. */
const FLUSH_BATCH = 16;
/** A piece of memory that a client owns. */
export interface Buffer {
  readonly address: bigint;
  readonly pages: number;
  readonly isWritable: boolean;
}

/** How many locks iova_rwsem is made of. */
export function iovaLockCount(locks: 'kernel' | 'sharded'): number {
  return locks === 'kernel' ? 1 : SHARDING.count;
}

function openLocks(thread: StressThread): { domainsRwsem: RobustRwSemaphore; iovaLocks: RobustRwSemaphore[] } {
  const { layout, options, locks } = thread;
  const iovaLocks = Array.from(
    { length: iovaLockCount(options.locks) },
    (_, i) => new RobustRwSemaphore(locks, lockOffset(layout, 1 + i), 'iopt:iova_rwsem'),
  );
  return { domainsRwsem: new RobustRwSemaphore(locks, lockOffset(layout, 0), 'iopt:domains_rwsem'), iovaLocks };
}

function openIndex({ arena, layout, options }: StressThread): Intervals {
  if (options.locks === 'sharded') return ShardedIndex.open(arena, SHARDING, layout.index);
  return IntervalIndex.open(arena, layout.index[0] ?? 0);
}

/** The driver of a thread: its commands go into the queue that devices consume. */
function openDriver(thread: StressThread): SmmuInvalidation {
  const { arena, layout, options } = thread;
  const consumers = deviceThreads(options).map((device) => ({
    isOnline: () => thread.stateOf(device) === STATE.running,
    consumedWord: blockWord(layout, device) + BLOCK.consumed,
  }));
  const publishing = blockWord(layout, thread.number) + BLOCK.publishing;
  const waits = !options.faults.includes('skip-sync');
  return {
    name: 'smmu0',
    features: { hasRangeInvalidation: true, hasForcedWriteBack: false },
    legality: undefined,
    faults: { fires: () => false },
    commandQueue: new CommandProducer(arena, layout.queue, thread.locks, consumers, publishing, waits),
    *invalidateAtcs(): Task<void> {
      // Devices here keep translations in TLBs alone.
    },
    releaseTag: () => undefined,
  };
}

function openProcess({ arena, layout, options, number }: StressThread): { process: Process; buffers: Buffer[] } {
  const window = { pfn: arena.kernelBasePfn, pages: arena.kernelFrames };
  const bank = {
    start: BigInt(window.pfn) * PAGE_SIZE,
    last: BigInt(window.pfn + window.pages) * PAGE_SIZE - 1n,
  };
  const memory = new PhysicalMemory(arena, [bank]);
  const allocator = new PageAllocator(memory, layout.memory, new SharedPins(arena, layout.pins, window));
  const mm = new MmStruct(new NodeRuntime(`thread${number}`, options.seed), memory, allocator);
  const spec = { name: 'client', uid: 0, capabilities: [] };
  const buffers = BUFFERS.map(({ pages, contiguity, prot }) => {
    const address = mm.mmapAnonymous(0n, BigInt(pages) * PAGE_SIZE, prot, contiguity);
    invariant(typeof address === 'bigint', 'stress: no memory for the clients');
    return { address, pages, isWritable: (prot & PROT_WRITE) !== 0 };
  });
  return { process: new Process(1, spec, mm, new UserStruct(0)), buffers };
}

/** The address space as one thread sees it. */
export class AddressSpace {
  readonly iopt: IoPageTable;
  readonly domain: RecordedDomain;
  readonly table: PageTable;
  readonly records: SharedRecords;
  readonly buffers: readonly Buffer[];
  readonly pins: SharedPins;
  readonly pinnedVm: SharedPageCounter;
  readonly lockedVm: SharedPageCounter;
  readonly domainsRwsem: RobustRwSemaphore;
  readonly iovaLocks: readonly RobustRwSemaphore[];
  readonly thread: StressThread;

  constructor(thread: StressThread) {
    const { arena, layout, options, history } = thread;
    this.thread = thread;
    const { process, buffers } = openProcess(thread);
    this.buffers = buffers;
    const { domainsRwsem, iovaLocks } = openLocks(thread);
    this.domainsRwsem = domainsRwsem;
    this.iovaLocks = iovaLocks;
    this.pins = new SharedPins(arena, layout.pins, { pfn: arena.kernelBasePfn, pages: arena.kernelFrames });
    this.lockedVm = new SharedPageCounter(arena, layout.control + WORDS.lockedVm * 4);
    this.pinnedVm = new SharedPageCounter(arena, layout.control + WORDS.pinnedVm * 4);
    const account = countingAccount(
      { locked: this.lockedVm, pinned: this.pinnedVm, limitPages: () => LIMIT_PAGES },
      () => undefined,
    );
    this.records = SharedRecords.open(arena, layout.records, thread.locks, {
      source: (startByte) => userPages(process, startByte),
      account,
    });
    const areas = new AreaTree(openIndex(thread), this.records);
    const flushBatch = options.invalidation === 'deferred' ? FLUSH_BATCH : 0;
    const parts = { areas, domainsRwsem, iovaRwsem: this.#iovaRwsem(), flushBatch };
    this.iopt = options.faults.length > 0 ? new LyingIoPageTable(parts, options.faults) : new IoPageTable(parts);
    const opens = options.faults.includes('free-tables-early') ? HastyPageTable : PageTable;
    this.table = opens.open(arena, layout.table);
    const Domain = options.faults.includes('leaf-writable') ? WritableDomain : ArmSmmuDomain;
    const inner = new Domain({
      smmu: openDriver(thread),
      type: 'unmanaged',
      table: this.table,
      tag: ASID,
      recordsDirty: true,
    });
    const devices = deviceThreads(options);
    this.domain = new RecordedDomain(inner, history, () => thread.dmas(devices));
  }

  #iovaRwsem(): IovaRwsem {
    const { options } = this.thread;
    if (options.faults.includes('drop-lock')) return new NoRwsem();
    if (options.locks === 'sharded') return new ShardedIovaRwsem(SHARDING, this.iovaLocks);
    const [lock] = this.iovaLocks;
    invariant(lock !== undefined, 'stress: no iova_rwsem');
    return lock;
  }

  /** Attaches the domain. Before anything is mapped. */
  attach(): void {
    const rc = this.thread.run(this.iopt.add_domain(this.domain));
    invariant(rc === 0, `stress: the domain could not be added: ${rc}`);
  }

  /** IOMMU_IOAS_MAP of `pages` pages of a buffer from `firstPage` on: the IOVA, or -errno. */
  map(buffer: Buffer, firstPage: number, pages: number, iova: bigint | undefined, write: boolean): bigint | number {
    const startByte = buffer.address + BigInt(firstPage * PAGE_BYTES);
    const object = this.records.makePages(startByte, BigInt(pages * PAGE_BYTES), write);
    if (object === undefined) return -ENOMEM;
    const slice = { pages: object, startByte: 0n, lengthBytes: BigInt(pages * PAGE_BYTES) };
    const mapped = this.thread.run(this.iopt.map_pages([slice], iova, protOf(write)));
    this.thread.run(object.put());
    return mapped;
  }

  /** IOMMU_IOAS_COPY within the address space: the IOVA, or -errno. */
  copy(from: bigint, pages: number, iova: bigint | undefined, write: boolean): bigint | number {
    const slices = this.thread.run(this.iopt.get_pages(from, BigInt(pages * PAGE_BYTES)));
    if (typeof slices === 'number') return slices;
    const mapped = this.thread.run(this.iopt.map_pages(slices, iova, protOf(write)));
    for (const slice of slices) this.thread.run(slice.pages.put());
    return mapped;
  }

  /** IOMMU_IOAS_UNMAP: pages unmapped, and -errno if it stopped early. */
  unmap(start: bigint, last: bigint): { readonly rc: number; readonly pages: number } {
    const { rc, unmappedBytes } = this.thread.run(this.iopt.unmap_iova_range(start, last));
    return { rc, pages: Number(unmappedBytes / PAGE_SIZE) };
  }

  /** IOMMU_HWPT_GET_DIRTY_BITMAP with clearing: 0 or -errno. What is dirty goes into the history. */
  readDirty(start: bigint, last: bigint): number {
    return this.thread.run(this.iopt.read_and_clear_dirty(this.domain, start, last, false, () => undefined));
  }
}

function protOf(write: boolean): number {
  return IOMMU_CACHE | IOMMU_READ | (write ? IOMMU_WRITE : 0);
}
