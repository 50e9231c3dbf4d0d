/**
 * The machine that recorded iommufd sequences are replayed on: an iommufd with the selftest, and one process with the
 * buffers, files, limits and capabilities of the recorded one.
 *
 * There is no board: the mock IOMMU translates nothing. Tasks run to their end at once, so a replay costs no scheduling. A
 * sequence begins with {@link RecordedMachine.open} and ends with {@link RecordedMachine.close}, which closes what it opened,
 * undoes what it wrote and holds that nothing stayed pinned or charged; after a failure the machine is thrown away.
 */
import { Arena } from '../core/arena.js';
import { NullFile, SyscallContext } from '../kernel/files.js';
import type { CommandRow } from '../kernel/iommufd/command.js';
import { IommufdContext, IommufdFile } from '../kernel/iommufd/main.js';
import { selftestCommand } from '../kernel/iommufd/selftest/selftest.js';
import { MemfdFile } from '../kernel/mm/memfd.js';
import { MmStruct } from '../kernel/mm/mm.js';
import { PageAllocator, type PageExtent, type PageMemory } from '../kernel/mm/page-allocator.js';
import { Process, UserStruct } from '../kernel/mm/process.js';
import { NodeRuntime } from '../runtime/node-runtime.js';
import { invariant, WaitQueue, type Task } from '../runtime/task.js';
import { PROT_READ, PROT_WRITE, type Contiguity, type PageRun } from '../uapi/syscall.js';

const PAGE_BYTES = 4096;
const MIB = 1024 * 1024;
const RAM_PAGES = (64 * MIB) / PAGE_BYTES;
const RAM_PFN = 0x1000;

/**
 * RAM that knows what it held when it was sealed, and goes back to that. Of *leftover* pages nobody knows what they hold
 * but who wrote them since: they show {@link leftoverByte}, and {@link leftoverReads} tells that somebody looked.
 */
class SealedMemory implements PageMemory {
  leftoverByte = 0;
  leftoverReads = 0;
  #sealed = new Map<number, Uint8Array>();
  #pages = new Map<number, Uint8Array>();
  /** Which bytes of a leftover page were written. */
  readonly #written = new Map<number, Uint8Array>();

  seal(): void {
    for (const [pfn, bytes] of this.#pages) this.#sealed.set(pfn, bytes);
    this.#pages = new Map();
  }

  reset(): void {
    if (this.#pages.size > 0) this.#pages = new Map();
    for (const written of this.#written.values()) written.fill(0);
  }

  markLeftover(pfn: number, pages: number): void {
    for (let i = 0; i < pages; i++) this.#written.set(pfn + i, new Uint8Array(PAGE_BYTES));
  }

  read(pa: number, lengthBytes: number): Uint8Array {
    const out = new Uint8Array(lengthBytes);
    for (let done = 0; done < lengthBytes;) {
      const pfn = Math.floor((pa + done) / PAGE_BYTES);
      const from = (pa + done) % PAGE_BYTES;
      const end = Math.min(PAGE_BYTES, from + lengthBytes - done);
      const page = this.#pages.get(pfn) ?? this.#sealed.get(pfn);
      if (page !== undefined) out.set(page.subarray(from, end), done);
      const written = this.#written.get(pfn);
      for (let at = from; written !== undefined && at < end; at++) {
        if (written[at] !== 0) continue;
        out[done + at - from] = this.leftoverByte;
        this.leftoverReads++;
      }
      done += end - from;
    }
    return out;
  }

  write(pa: number, bytes: Uint8Array): boolean {
    for (let done = 0; done < bytes.length;) {
      const from = (pa + done) % PAGE_BYTES;
      const end = Math.min(PAGE_BYTES, from + bytes.length - done);
      const pfn = Math.floor((pa + done) / PAGE_BYTES);
      this.#writable(pfn).set(bytes.subarray(done, done + end - from), from);
      this.#written.get(pfn)?.fill(1, from, end);
      done += end - from;
    }
    return true;
  }

  pageContents(pfn: number, pages: number, firstPage = 0): PageRun[] {
    return Array.from({ length: pages }, (_, i) => ({
      firstPage: firstPage + i,
      pages: 1,
      bytes: this.read((pfn + i) * PAGE_BYTES, PAGE_BYTES),
    }));
  }

  setPageContents(): void {
    invariant(false, 'recorded machine: nobody stores whole pages');
  }

  clearPages(pfn: number, pages: number): void {
    for (let i = 0; i < pages; i++) this.#writable(pfn + i).fill(0);
  }

  #writable(pfn: number): Uint8Array {
    let page = this.#pages.get(pfn);
    if (page === undefined) {
      const before = this.#sealed.get(pfn);
      page = before === undefined ? new Uint8Array(PAGE_BYTES) : new Uint8Array(before);
      this.#pages.set(pfn, page);
    }
    return page;
  }
}

interface BufferSpec {
  readonly name: string;
  readonly sizeBytes: number;
}

const BUFFERS: readonly BufferSpec[] = [
  { name: 'scatter', sizeBytes: 4 * MIB },
  { name: 'huge', sizeBytes: 4 * MIB },
  { name: 'ro', sizeBytes: MIB },
  { name: 'hole', sizeBytes: 3 * MIB },
  { name: 'file', sizeBytes: 2 * MIB },
  { name: 'bitmap', sizeBytes: MIB },
  { name: 'io', sizeBytes: MIB },
];
const BUFFER_BASE = 0x1000_0000_0000n;
const BUFFER_STRIDE = 0x1000_0000n;
const indexByBuffer = new Map(BUFFERS.map(({ name }, index) => [name, index]));

/** Where a buffer begins; undefined when there is none of that name. */
export function bufferAddress(name: string): bigint | undefined {
  const index = indexByBuffer.get(name);
  return index === undefined ? undefined : BUFFER_BASE + BigInt(index) * BUFFER_STRIDE;
}

/** Where the structs of system calls are: apart from the recorded buffers, room for any of them. */
export const ARGUMENT_ADDRESS = 0x3000_0000_0000n;
const ARGUMENT_BYTES = MIB;

/** A descriptor that is not open. */
const CLOSED_FD = 1000;
const FILE_NOT_OPEN = 5;
const FILE_DMABUF = 6;

/** What the recorder filled its scratch space and the file that is sealed against writing with. */
const IO_FILL = 0xee;
const SEALED_FILE_FILL = 0x33;

/** What a buffer holds at the start of a sequence. */
function initialBytes(buffer: number, offset: number, lengthBytes: number): Uint8Array {
  return Uint8Array.from({ length: lengthBytes }, (_, i) => {
    const o = offset + i;
    return (o * 131 + (o >> 8) * 7 + (o >> 16) * 29 + buffer * 17 + 1) & 255;
  });
}

const CAPABILITIES = ['CAP_IPC_LOCK', 'CAP_SYS_RESOURCE'] as const;

/** Runs a task to its end; nobody else is there who could be waited for. */
function runToEnd<T>(task: Task<T>): T {
  for (;;) {
    const step = task.next();
    if (step.done === true) return step.value;
    invariant(!(step.value instanceof WaitQueue), 'recorded machine: a task waits for ever');
  }
}

/** The machine. */
export class RecordedMachine {
  readonly process: Process;
  /** The descriptor of /dev/iommu. */
  iommufd = CLOSED_FD;
  /** Descriptors of accesses in order of creation. */
  readonly accesses: number[] = [];
  /** Descriptors of queues by the number of their object. */
  readonly eventFds = new Map<number, number>();
  /** The last dma-buf. */
  dmabuf = CLOSED_FD;
  readonly #runtime = new NodeRuntime('recorded', 0);
  /** Fault switches of its kernel. */
  readonly faults = this.#runtime.faults;
  readonly #arena = Arena.create({ kernelFrames: 16, storageFrames: 4096, kernelBasePfn: RAM_PFN });
  readonly #memory = new SealedMemory();
  readonly #pages: PageAllocator;
  readonly #testCommand: CommandRow = selftestCommand((pages, firstWord) => {
    // Aligned more than it need be, and never longer than that.
    const [extent] = this.#pages.alloc(pages, 'huge-2m') ?? [];
    if (extent?.pages !== pages) return undefined;
    const pa = extent.pfn * PAGE_BYTES;
    const word = new Uint8Array(4);
    new DataView(word.buffer).setUint32(0, firstWord, true);
    this.#memory.write(pa, word);
    return { pa, free: () => this.#pages.release([extent]) };
  });
  readonly #ctx: SyscallContext;
  readonly #files: readonly number[];
  #firstOwnFd = 0;
  #ictx: IommufdContext | undefined;

  constructor() {
    this.#pages = new PageAllocator(this.#memory, [{ pfn: RAM_PFN, pages: RAM_PAGES }]);
    const mm = new MmStruct(this.#runtime, this.#memory, this.#pages);
    const spec = { name: 'recorder', uid: 0, capabilities: CAPABILITIES };
    this.process = new Process(1, spec, mm, new UserStruct(0));
    this.#ctx = new SyscallContext(this.#runtime, this.process);
    this.#files = this.#mapBuffers(mm);
    this.#memory.seal();
    this.#firstOwnFd = this.process.files.openCount;
  }

  /** Lays the buffers out as the recording says and opens the files; their descriptors. */
  #mapBuffers(mm: MmStruct): number[] {
    const read = PROT_READ;
    const write = PROT_READ | PROT_WRITE;
    const map = (name: string, offset: number, sizeBytes: number, prot: number, contiguity: Contiguity): void => {
      const address = (bufferAddress(name) ?? 0n) + BigInt(offset);
      const mapped = mm.mmapAnonymous(address, BigInt(sizeBytes), write, contiguity);
      invariant(mapped === address, `recorded machine: no memory for ${name}`);
      mm.copy_to_user(address, initialBytes(indexByBuffer.get(name) ?? 0, offset, sizeBytes));
      if (prot !== write) mm.mprotect(address, prot);
    };
    const memfd = (sizeBytes: number, contiguity: Contiguity): MemfdFile => {
      const file = new MemfdFile(this.#runtime, this.#pages, contiguity);
      invariant(file.ftruncate(BigInt(sizeBytes)) === 0, 'recorded machine: no memory for a file');
      return file;
    };
    map('huge', 0, 2 * MIB, write, 'huge-2m');
    map('scatter', 0, 4 * MIB, write, 'scattered');
    map('huge', 2 * MIB, 2 * MIB, write, 'huge-2m');
    map('ro', 0, MIB, read, 'scattered');
    map('hole', 0, MIB, write, 'scattered');
    map('hole', 2 * MIB, MIB, write, 'scattered');
    map('bitmap', 0, MIB, write, 'pages');
    map('io', 0, MIB, write, 'pages');
    mm.copy_to_user(bufferAddress('io') ?? 0n, new Uint8Array(MIB).fill(IO_FILL));
    const shared = memfd(2 * MIB, 'scattered');
    const view = shared.map(0n, BigInt(2 * MIB));
    invariant(typeof view === 'object', 'recorded machine: file 0 cannot be mapped');
    const fileAddress = bufferAddress('file') ?? 0n;
    mm.mmapFile(fileAddress, BigInt(2 * MIB), write, view);
    mm.copy_to_user(fileAddress, initialBytes(indexByBuffer.get('file') ?? 0, 0, 2 * MIB));
    mm.mmapAnonymous(ARGUMENT_ADDRESS, BigInt(ARGUMENT_BYTES), write, 'pages');
    const { files } = this.process;
    const extentsOf = (file: MemfdFile): readonly PageExtent[] => {
      const mapping = file.map(0n, file.sizeBytes);
      return typeof mapping === 'object' && 'extents' in mapping ? mapping.extents : [];
    };
    const huge = memfd(2 * MIB, 'huge-2m');
    // The recorder never put this file back: it holds what sequences before wrote, those of other recordings included.
    for (const { pfn, pages } of extentsOf(huge)) this.#memory.markLeftover(pfn, pages);
    const sealed = memfd(MIB, 'scattered');
    for (const { pfn, pages } of extentsOf(sealed))
      this.#memory.write(pfn * PAGE_BYTES, new Uint8Array(pages * PAGE_BYTES).fill(SEALED_FILE_FILL));
    // File 4 is file 0 opened read-only: an opening of its own, the same pages.
    return [shared, huge, new NullFile(), sealed, shared].map((file) => files.install(file));
  }

  /** What is behind {@link iommufd}; undefined before the first {@link open}. */
  get ictx(): IommufdContext | undefined {
    return this.#ictx;
  }

  /** Pins held now, in pages. */
  get pinnedPages(): number {
    return this.#pages.pinnedPages;
  }

  /** A fresh descriptor of /dev/iommu. */
  open(): void {
    this.#ictx = new IommufdContext(this.#arena, false, false, this.faults, this.#runtime.invariants);
    this.iommufd = this.process.files.install(new IommufdFile(this.#ictx, this.#testCommand));
  }

  /** Ends a sequence. @throws InvariantError when something stayed behind */
  close(): void {
    const { files, mm, user } = this.process;
    for (let fd = this.#firstOwnFd; files.openCount > this.#firstOwnFd; fd++) this.run(files.close(fd));
    this.accesses.length = 0;
    this.eventFds.clear();
    this.dmabuf = CLOSED_FD;
    this.process.rlimits.memlockBytes = undefined;
    for (const capability of CAPABILITIES) this.process.setCapability(capability, true);
    this.#memory.reset();
    this.#runtime.drainEvents();
    invariant(this.#pages.pinnedPages === 0, `recorded machine: ${this.#pages.pinnedPages} pages stayed pinned`);
    const charged = [mm.pinnedVm, mm.lockedVm, user.lockedVm];
    invariant(
      charged.every((pages) => pages === 0),
      `recorded machine: ${charged.join(', ')} pages stayed charged`,
    );
  }

  /** Runs a kernel task. */
  run<T>(task: Task<T>): T {
    return runToEnd(task);
  }

  ioctl(fd: number, command: number, argument: bigint): number {
    const file = this.process.files.get(fd);
    invariant(file !== undefined, `recorded machine: descriptor ${fd} is not open`);
    return runToEnd(file.ioctl(this.#ctx, command, argument));
  }

  /** An ioctl on /dev/iommu whose argument is a struct; what the struct holds afterwards. */
  ioctlStruct(command: number, argument: Uint8Array): { readonly result: number; readonly bytes: Uint8Array } {
    this.store(ARGUMENT_ADDRESS, argument);
    const result = this.ioctl(this.iommufd, command, ARGUMENT_ADDRESS);
    return { result, bytes: this.load(ARGUMENT_ADDRESS, argument.length) };
  }

  /**
   * Runs `read` once; a second time, with everything that nobody knows changed, if that could make a difference. Both
   * results, the second undefined where it would be the first.
   */
  twice<T>(read: () => T): readonly [T, T | undefined] {
    const memory = this.#memory;
    const before = memory.leftoverReads;
    const first = read();
    if (memory.leftoverReads === before) return [first, undefined];
    memory.leftoverByte = 0xff;
    const second = read();
    memory.leftoverByte = 0;
    return [first, second];
  }

  get ctx(): SyscallContext {
    return this.#ctx;
  }

  /** Descriptor of a recorded file. */
  fileDescriptor(index: number): number {
    if (index === FILE_DMABUF) return this.dmabuf;
    return index === FILE_NOT_OPEN ? CLOSED_FD : (this.#files[index] ?? CLOSED_FD);
  }

  /** Descriptor of an access by its place in the order of creation; one that is not open when there is none. */
  accessDescriptor(index: number): number {
    return this.accesses[index] ?? CLOSED_FD;
  }

  closeAccess(index: number): void {
    const fd = this.accesses[index];
    if (fd === undefined) return;
    this.run(this.process.files.close(fd));
    this.accesses[index] = CLOSED_FD;
  }

  store(address: bigint, bytes: Uint8Array): void {
    invariant(this.process.mm.copy_to_user(address, bytes), 'recorded machine: no such user memory');
  }

  load(address: bigint, lengthBytes: number): Uint8Array {
    const bytes = this.process.mm.copy_from_user(address, lengthBytes);
    invariant(bytes !== undefined, 'recorded machine: no such user memory');
    return bytes;
  }
}
