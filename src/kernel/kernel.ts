/**
 * The kernel of one host: its subsystems, its processes, and the way in.
 *
 * Boot brings up, in this order, the IOMMUs, the interrupt controllers and the PCI devices. After that the kernel acts on
 * system calls, interrupts and hot-plug. A system call runs as the task of the message that brought it; arguments it points to
 * are copied from and to the caller's memory.
 *
 * Ownership: the kernel owns its subsystems; processes own their files and memory. Everything is reached from here and nothing
 * from outside but the board.
 */
import type { Board } from '../hardware/board.js';
import { readFrame } from '../hardware/bus.js';
import type { HostDescription } from '../hardware/description.js';
import type { TranslatedAccess } from '../hardware/pcie/host-bridge.js';
import type { LabCommand, LabReply, ProcessSpec } from './lab.js';
import type { FaultId, FaultRule } from '../runtime/faults.js';
import type { NodeRuntime } from '../runtime/node-runtime.js';
import { invariant, type Task } from '../runtime/task.js';
import { EBADF, EFAULT, EINVAL, EISDIR, ENOENT, ENOTDIR, ESRCH, ENODEV } from '../uapi/errno.js';
import { MAP_ANONYMOUS, PROT_READ, PROT_WRITE, type SyscallReply, type SyscallRequest } from '../uapi/syscall.js';
import { SYSCALL_NS } from './costs.js';
import { EFD_FLAGS, EventFile } from './eventfd.js';
import { SyscallContext, withFile } from './files.js';
import { settledMoves } from './iommu/group.js';
import { IommuCore } from './iommu/iommu.js';
import { beginAccess, endAccess, type WatchedAccess } from './iommu/mapping-check.js';
import { auditIommufd } from './iommufd/audit.js';
import { IommufdContext, IommufdFile } from './iommufd/main.js';
import { IrqCore } from './irq.js';
import { MmStruct, PAGE_BYTES } from './mm/mm.js';
import { MemfdFile } from './mm/memfd.js';
import { PageAllocator, type PageExtent } from './mm/page-allocator.js';
import { Process, UserStruct } from './mm/process.js';
import { isDmaDriven, PciCore } from './pci/pci-core.js';
import { modulesAlias, modulesAliasPath, OSRELEASE_PATH } from './module-aliases.js';
import { Sysfs, SysfsFile, text, type SysfsNode } from './sysfs.js';
import { VfioCore } from './vfio/vfio-core.js';
import { VfioPciFile } from './vfio/vfio-pci.js';

/** Memory every process starts with, for the arguments of its calls. */
const SCRATCH_BYTES = 1n << 20n;
const FIRST_PID = 100;

/** RAM the kernel may hand out: every bank but the kernel window. */
function freeMemory(board: Board): PageExtent[] {
  const { start, last } = board.kernelWindow;
  return board.description.memory.flatMap((bank) => {
    const low = Number(bank.start);
    const high = Number(bank.last);
    const pieces =
      start >= low && last <= high
        ? [
            [low, start - 1],
            [last + 1, high],
          ]
        : [[low, high]];
    return pieces.flatMap(([from = 0, to = -1]) => {
      const pfn = Math.ceil(from / PAGE_BYTES);
      const pages = Math.floor((to + 1) / PAGE_BYTES) - pfn;
      return pages > 0 ? [{ pfn, pages }] : [];
    });
  });
}

/** The kernel. */
export class Kernel {
  readonly #runtime: NodeRuntime;
  readonly #board: Board;
  readonly #description: HostDescription;
  readonly #pages: PageAllocator;
  readonly #iommu: IommuCore;
  readonly #irq: IrqCore;
  #saidWhoIsVfio = false;
  readonly #vfio = new VfioCore();
  readonly #pci: PciCore;
  readonly #sysfs: Sysfs;
  readonly #processes = new Map<number, Process>();
  readonly #users = new Map<number, UserStruct>();
  #nextPid = FIRST_PID;

  constructor(runtime: NodeRuntime, board: Board, description: HostDescription) {
    this.#runtime = runtime;
    this.#board = board;
    this.#description = description;
    this.#pages = new PageAllocator(board.memory, freeMemory(board));
    this.#iommu = new IommuCore(runtime, board, description);
    this.#irq = new IrqCore(runtime, board, this.#iommu);
    this.#pci = new PciCore(runtime, board, this.#iommu, this.#irq, this.#vfio);
    this.#sysfs = new Sysfs(this.#iommu, this.#pci, this.#vfio);
    board.watchDma({
      began: (bdf, iova, isWrite) => this.#beginAccess(bdf, iova, isWrite),
      translated: (access) => this.#checkReached(access),
      ended: (access, pa) => this.#endAccess(access as WatchedAccess | undefined, pa),
    });
  }

  /**
   * A device that user space owns reaches memory that is pinned for it, and no other (INV-3). What is no memory, a doorbell or a BAR,
   * needs no pin. While the group is moved, whose domain it was cannot be told.
   */
  #checkReached({ bdf, pa, lengthBytes }: TranslatedAccess): void {
    const group = this.#pci.device(bdf)?.group;
    if (group?.attachHandle === undefined || settledMoves(group) === undefined) return;
    if (!this.#board.memory.contains(pa, lengthBytes) || this.#runtime.faults.isHardwareBroken) return;
    const pfn = Math.floor(pa / PAGE_BYTES);
    invariant(
      this.#pages.pinCount(pfn) > 0,
      () => `${bdf} reached page 0x${pfn.toString(16)}, which nobody has pinned`,
      'INV-3',
    );
    this.#runtime.invariants.held('INV-3');
  }

  #beginAccess(bdf: string, iova: bigint, isWrite: boolean): WatchedAccess | undefined {
    const device = this.#pci.device(bdf);
    const [streamId] = device?.streamIds ?? [];
    return streamId === undefined ? undefined : beginAccess(device?.group, streamId, iova, isWrite);
  }

  /** What ended at a doorbell or a BAR is not judged: not every way there came through a mapping. */
  #endAccess(access: WatchedAccess | undefined, pa: number | undefined): void {
    const isJudged = pa === -1 || (pa !== undefined && this.#board.memory.contains(pa, 1));
    endAccess(access, isJudged && !this.#runtime.faults.isHardwareBroken ? pa : undefined);
  }

  /** From power-on to user space. */
  *boot(): Task<void> {
    yield* this.#iommu.probe();
    yield* this.#irq.start();
    yield* this.#pci.enumerate();
    this.#runtime.emit('kernel.booted', {
      release: this.#description.kernelRelease,
      groups: this.#iommu.groups.length,
    });
  }

  /** Name of a process, for task names. */
  processName(pid: number): string {
    return this.#processes.get(pid)?.name ?? `pid${pid}`;
  }

  /** Starts a process; its scratch memory is mapped. -ENOMEM when there is no memory for it. */
  spawnProcess(spec: ProcessSpec): { readonly process: Process; readonly scratch: bigint } | number {
    const user = this.#users.get(spec.uid) ?? new UserStruct(spec.uid);
    this.#users.set(spec.uid, user);
    const mm = new MmStruct(this.#runtime, this.#board.memory, this.#pages);
    const scratch = mm.mmapAnonymous(0n, SCRATCH_BYTES, PROT_READ | PROT_WRITE, 'pages');
    if (typeof scratch === 'number') return scratch;
    const process = new Process(this.#nextPid++, spec, mm, user);
    this.#processes.set(process.pid, process);
    return { process, scratch };
  }

  /** One system call of a process; ESRCH for a process that is not there. */
  *syscall(pid: number, request: SyscallRequest): Task<SyscallReply> {
    const process = this.#processes.get(pid);
    if (process === undefined) return { result: -ESRCH };
    yield SYSCALL_NS;
    for (const { va, bytes } of request.stage ?? []) {
      if (!process.mm.copy_to_user(va, bytes)) return { result: -EFAULT };
    }
    const ctx = new SyscallContext(this.#runtime, process);
    const reply = yield* this.#dispatch(ctx, request);
    const collected = (request.collect ?? []).map(
      ({ va, lengthBytes }) => process.mm.copy_from_user(va, lengthBytes) ?? new Uint8Array(lengthBytes),
    );
    return {
      ...reply,
      ...(collected.length === 0 ? {} : { collected }),
      ...(reply.result < 0 && ctx.detail !== undefined ? { detail: ctx.detail } : {}),
    };
  }

  /** Hands on the machine. */
  *lab(command: LabCommand): Task<LabReply> {
    switch (command.lab) {
      case 'spawn': {
        const spawned = this.spawnProcess(command.spec);
        return typeof spawned === 'number'
          ? { result: spawned }
          : { result: spawned.process.pid, scratch: spawned.scratch };
      }
      case 'plug':
        return { result: this.#board.plug(command.bdf) };
      case 'unplug':
        return { result: command.surprise === true ? this.#board.yank(command.bdf) : this.#board.unplug(command.bdf) };
      case 'arm-fault':
        return this.#armFault(command.fault, command.rule, command.isHeld === true);
      case 'disarm-fault':
        this.#runtime.faults.disarm(command.fault);
        return { result: 0 };
      case 'transactions':
        return { result: 0, transactions: this.#board.analyser.records.slice(command.from) };
      case 'device-state': {
        const bytes = this.#board.functions.get(command.bdf)?.migration?.snapshot();
        return bytes === undefined ? { result: -ENODEV } : { result: 0, bytes };
      }
      case 'peek-bar':
        return this.#peekBar(command.bdf, Number(command.address), command.lengthBytes);
      case 'audit':
        this.#audit();
        return { result: 0 };
      case 'exit-all':
        for (const process of [...this.#processes.values()]) yield* this.#exit(process);
        return { result: 0 };
      case 'counters':
        return { result: 0, counters: this.#counters() };
    }
  }

  #peekBar(bdf: string, address: number, lengthBytes: number): LabReply {
    const fn = this.#board.functions.get(bdf);
    const bar = fn?.bars.find((candidate) => {
      const start = fn.barAddress(candidate);
      return start <= address && address + lengthBytes <= start + candidate.sizeBytes;
    });
    if (fn === undefined || bar === undefined) return { result: -EINVAL };
    const offset = address - fn.barAddress(bar);
    return { result: 0, bytes: readFrame(lengthBytes, offset, (at, width) => fn.barRead(bar.index, at, width)) };
  }

  #audit(): void {
    const contexts = new Set<IommufdContext>();
    for (const { files } of this.#processes.values())
      for (const file of files.open()) if (file instanceof IommufdFile) contexts.add(file.ictx);
    for (const ictx of contexts) {
      auditIommufd(ictx, (extent) => this.#pages.firstUnpinned(extent), this.#runtime.invariants, isDmaDriven);
    }
  }

  #armFault(fault: FaultId, rule: FaultRule, isHeld: boolean): LabReply {
    const { faults } = this.#runtime;
    if (faults.isHeld(fault)) return { result: 0 };
    if (isHeld) faults.hold(fault, rule);
    else faults.arm(fault, rule);
    this.#runtime.emit('fault.arm', { fault });
    return { result: 0 };
  }

  #counters(): Record<string, number> {
    const { arena, memory } = this.#board;
    const processes = [...this.#processes.values()];
    // What a driver keeps for a device from its first use on is there or not, whoever leaves.
    const kept = this.#iommu.drivers.reduce((sum, { keptFrames = 0 }) => sum + keptFrames, this.#irq.keptFrames);
    return {
      processes: processes.length,
      openFiles: processes.reduce((sum, process) => sum + process.files.openCount, 0),
      freePages: this.#pages.freePages,
      pinnedPages: this.#pages.pinnedPages,
      lockedPages: [...this.#users.values()].reduce((sum, user) => sum + user.lockedVm, 0),
      kernelFrames: arena.kernelFramesInUse - kept,
      storageFrames: arena.storageFramesInUse - memory.directory.nodeCount,
      irqVectors: this.#irq.vectorsInUse,
    };
  }

  // --- system calls ---

  *#dispatch(ctx: SyscallContext, request: SyscallRequest): Task<SyscallReply> {
    const { process } = ctx;
    const { mm, files } = process;
    switch (request.call) {
      case 'open':
        return { result: this.#open(ctx, request.path) };
      case 'close':
        return { result: yield* files.close(request.fd) };
      case 'ioctl':
        return { result: yield* withFile(files.get(request.fd), (file) => file.ioctl(ctx, request.cmd, request.arg)) };
      case 'read':
        return bytesReply(yield* withFile(files.get(request.fd), (file) => file.read(ctx, request.lengthBytes)));
      case 'write':
        return { result: yield* withFile(files.get(request.fd), (file) => file.write(ctx, request.bytes)) };
      case 'pread':
        return bytesReply(
          yield* withFile(files.get(request.fd), (file) => file.pread(ctx, request.lengthBytes, request.offset)),
        );
      case 'pwrite':
        return {
          result: yield* withFile(files.get(request.fd), (file) => file.pwrite(ctx, request.bytes, request.offset)),
        };
      case 'getdents':
        return this.#getdents(request.path);
      case 'mmap':
        return { result: yield* this.#mmap(ctx, request) };
      case 'munmap':
        return { result: mm.munmap(request.addr, request.length) };
      case 'memfd_create':
        return { result: files.install(new MemfdFile(this.#runtime, this.#pages)) };
      case 'ftruncate':
        return { result: files.get(request.fd)?.ftruncate(request.length) ?? -EBADF };
      case 'eventfd2':
        if ((request.flags & ~EFD_FLAGS) !== 0) return { result: -EINVAL };
        return { result: files.install(new EventFile(request.initval, request.flags)) };
      case 'setrlimit':
        process.rlimits.memlockBytes = request.value;
        return { result: 0 };
      case 'load': {
        const bytes = mm.copy_from_user(request.va, request.lengthBytes);
        return bytes === undefined ? { result: -EFAULT } : { result: bytes.length, bytes };
      }
      case 'store':
        return { result: mm.copy_to_user(request.va, request.bytes) ? request.bytes.length : -EFAULT };
      case 'load-pages': {
        const runs = mm.loadPages(request.va, request.pages);
        return typeof runs === 'number' ? { result: runs } : { result: request.pages, runs };
      }
      case 'store-pages':
        return { result: mm.storePages(request.va, request.runs) };
      case 'exit':
        yield* this.#exit(process);
        return { result: 0 };
    }
  }

  *#exit(process: Process): Task<void> {
    yield* process.files.closeAll();
    process.mm.release();
    this.#processes.delete(process.pid);
  }

  #open(ctx: SyscallContext, path: string): number {
    const { files } = ctx.process;
    if (path === '/dev/iommu') return files.install(this.#iommufd());
    if (path === '/dev/vfio/vfio') {
      const file = this.#iommufd();
      // What VFIO's own containers do.
      file.ictx.accountMode = 'mm';
      if (!this.#saidWhoIsVfio)
        this.#runtime.emit('kernel.log', { text: 'iommufd: IOMMUFD is providing /dev/vfio/vfio, not VFIO.' });
      this.#saidWhoIsVfio = true;
      return files.install(file);
    }
    if (path.startsWith('/dev/vfio/devices/')) {
      const vfio = this.#vfio.byName(path.slice('/dev/vfio/devices/'.length));
      return vfio === undefined ? -ENOENT : files.install(new VfioPciFile(vfio, this.#irq));
    }
    const node = path.startsWith('/sys/') ? this.#sysfs.lookup(path) : this.#textFile(path);
    if (node === undefined) return -ENOENT;
    return node.kind === 'directory' ? -EISDIR : files.install(new SysfsFile(node));
  }

  #iommufd(): IommufdFile {
    const { allowUnsafeInterrupts, allowMixedMsi } = this.#description;
    return new IommufdFile(
      new IommufdContext(
        this.#board.arena,
        allowUnsafeInterrupts,
        allowMixedMsi,
        this.#runtime.faults,
        this.#runtime.invariants,
      ),
    );
  }

  #textFile(path: string): SysfsNode | undefined {
    const { kernelRelease } = this.#description;
    if (path === OSRELEASE_PATH) return text(`${kernelRelease}\n`);
    if (path === modulesAliasPath(kernelRelease)) return text(modulesAlias(this.#board.functions.values()));
    return undefined;
  }

  #getdents(path: string): SyscallReply {
    const node =
      path === '/dev/vfio/devices'
        ? { kind: 'directory' as const, entries: new Map(this.#vfio.devices.map((vfio) => [vfio.name, undefined])) }
        : this.#sysfs.lookup(path);
    if (node === undefined) return { result: -ENOENT };
    if (node.kind !== 'directory') return { result: -ENOTDIR };
    const bytes = new TextEncoder().encode([...node.entries.keys()].join('\n'));
    return { result: bytes.length, bytes };
  }

  *#mmap(ctx: SyscallContext, request: Extract<SyscallRequest, { call: 'mmap' }>): Task<bigint | number> {
    const { mm, files } = ctx.process;
    if (request.length <= 0n) return -EINVAL;
    if ((request.flags & MAP_ANONYMOUS) !== 0)
      return mm.mmapAnonymous(request.addr, request.length, request.prot, request.contiguity);
    const file = files.get(request.fd);
    const mapping = yield* withFile(file, (opened) => opened.mmap(request.offset, request.length, true));
    return typeof mapping === 'number' ? mapping : mm.mmapFile(request.addr, request.length, request.prot, mapping);
  }
}

function bytesReply(outcome: Uint8Array | number): SyscallReply {
  return typeof outcome === 'number' ? { result: outcome } : { result: outcome.length, bytes: outcome };
}
