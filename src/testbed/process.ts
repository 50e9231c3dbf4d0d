/**
 * A client's process: system calls as tasks, arguments as real bytes.
 *
 * The process itself runs here, in the main node; its address space, descriptors, limits and credentials are the host
 * kernel's. Arguments of ioctls lie in a scratch area of the process's own memory: each call stages the struct (and what
 * its pointers point to) there and collects it afterwards. Concurrent tasks of one process get disjoint pieces of it.
 */
import type { FieldSpecs, StructValue } from '../layout/struct.js';
import { WaitQueue, type Task } from '../runtime/task.js';
import { KernelError } from '../uapi/errno.js';
import type { Ioctl } from '../uapi/ioctl.js';
import {
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  MAP_SHARED,
  O_RDONLY,
  O_WRONLY,
  PROT_READ,
  PROT_WRITE,
  type CollectRange,
  type Contiguity,
  type PageRun,
  type StagedBytes,
  type SyscallReply,
  type SyscallRequest,
} from '../uapi/syscall.js';
import type { HostClient } from './lab.js';

/** What a pointer field of an ioctl's struct points to. */
export interface PointerArgument {
  /** Content before the call; zeroes when not given. */
  readonly bytes?: Uint8Array;
  /** Bytes to allocate and read back; the length of `bytes` when not given. */
  readonly lengthBytes?: number;
}

/** Extra memory of an ioctl. */
export interface IoctlMemory<K extends string = string> {
  readonly pointers?: Partial<Record<K, PointerArgument>>;
  /** Flexible array at the end of the struct. */
  readonly tail?: Uint8Array;
}

/** What an ioctl left in memory. */
export interface IoctlResult<F extends FieldSpecs> {
  /** Return value, >= 0, or -errno from {@link Process.tryIoctl}. */
  readonly result: number;
  readonly value: StructValue<F>;
  /** What each pointer field pointed to, afterwards. */
  readonly buffers: Readonly<Record<string, Uint8Array>>;
  readonly tail: Uint8Array;
  readonly reply: SyscallReply;
}

/** Size of the scratch area that comes with a process. */
const SCRATCH_BYTES = 1 << 20;
const SCRATCH_ALIGN_BYTES = 64;

/** First-fit pieces of the scratch area. */
class Scratch {
  readonly #base: bigint;
  readonly #taken: { start: number; end: number }[] = [];
  readonly #freed = new WaitQueue('scratch memory');

  constructor(base: bigint) {
    this.#base = base;
  }

  *take(lengthBytes: number): Task<{ readonly va: bigint; readonly release: () => void }> {
    const rounded = Math.ceil(Math.max(lengthBytes, 1) / SCRATCH_ALIGN_BYTES) * SCRATCH_ALIGN_BYTES;
    for (;;) {
      const start = this.#findGap(rounded);
      if (start !== undefined) {
        const piece = { start, end: start + rounded };
        this.#taken.push(piece);
        this.#taken.sort((a, b) => a.start - b.start);
        return { va: this.#base + BigInt(start), release: () => this.#release(piece) };
      }
      yield this.#freed;
    }
  }

  #findGap(lengthBytes: number): number | undefined {
    let start = 0;
    for (const piece of this.#taken) {
      if (piece.start - start >= lengthBytes) return start;
      start = piece.end;
    }
    return SCRATCH_BYTES - start >= lengthBytes ? start : undefined;
  }

  #release(piece: { start: number; end: number }): void {
    this.#taken.splice(this.#taken.indexOf(piece), 1);
    this.#freed.wakeAll();
  }
}

/** A process on a host, driven from the main node. Every method that fails throws {@link KernelError}. */
export class Process {
  readonly host: HostClient;
  readonly pid: number;
  readonly name: string;
  readonly #scratch: Scratch;

  constructor(host: HostClient, pid: number, name: string, scratchVa: bigint) {
    this.host = host;
    this.pid = pid;
    this.name = name;
    this.#scratch = new Scratch(scratchVa);
  }

  /** The raw call: nothing thrown. */
  *syscall(request: SyscallRequest): Task<SyscallReply> {
    return yield* this.host.syscall(this.pid, request);
  }

  *open(path: string, flags: number): Task<number> {
    return Number((yield* this.#checked({ call: 'open', path, flags }, `open ${path}`)).result);
  }

  *close(fd: number): Task<void> {
    yield* this.#checked({ call: 'close', fd });
  }

  /** Like {@link ioctl}, but a failure is returned: what the kernel wrote to the struct is there either way. */
  *tryIoctl<F extends FieldSpecs>(
    fd: number,
    ioctl: Ioctl<F>,
    value: Partial<StructValue<F>>,
    memory: IoctlMemory<keyof F & string> = {},
  ): Task<IoctlResult<F>> {
    const tail = memory.tail ?? new Uint8Array();
    const structBytes = ioctl.struct.sizeBytes + tail.length;
    const pointers = Object.entries(memory.pointers ?? {}) as [keyof F & string, PointerArgument][];
    const lengthOf = (argument: PointerArgument): number =>
      Math.max(argument.lengthBytes ?? 0, argument.bytes?.length ?? 0);
    const releases: (() => void)[] = [];
    const stage: StagedBytes[] = [];
    const collect: CollectRange[] = [];
    const addresses: Record<string, bigint> = {};
    for (const [field, argument] of pointers) {
      const lengthBytes = lengthOf(argument);
      const area = yield* this.#area(lengthBytes);
      releases.push(area.release);
      const bytes = new Uint8Array(lengthBytes);
      bytes.set(argument.bytes ?? []);
      stage.push({ va: area.va, bytes });
      collect.push({ va: area.va, lengthBytes });
      addresses[field] = area.va;
    }
    const area = yield* this.#area(structBytes);
    releases.push(area.release);
    const bytes = new Uint8Array(structBytes);
    const sizeField = ioctl.struct.fields[0]?.name === 'argsz' ? { argsz: structBytes } : { size: structBytes };
    const full = { ...sizeField, ...addresses, ...value } as Partial<StructValue<F>>;
    bytes.set(ioctl.struct.encode(full));
    bytes.set(tail, ioctl.struct.sizeBytes);
    stage.push({ va: area.va, bytes });
    collect.push({ va: area.va, lengthBytes: structBytes });
    const reply = yield* this.syscall({ call: 'ioctl', fd, cmd: ioctl.number, arg: area.va, stage, collect });
    for (const release of releases) release();
    const collected = reply.collected ?? [];
    const after = collected[collected.length - 1] ?? bytes;
    return {
      result: Number(reply.result),
      value: ioctl.struct.decode(after),
      buffers: Object.fromEntries(pointers.map(([field], index) => [field, collected[index] ?? new Uint8Array()])),
      tail: after.slice(ioctl.struct.sizeBytes),
      reply,
    };
  }

  /** An ioctl whose argument is a struct. `size`/`argsz` and pointer fields are filled in. */
  *ioctl<F extends FieldSpecs>(
    fd: number,
    ioctl: Ioctl<F>,
    value: Partial<StructValue<F>>,
    memory: IoctlMemory<keyof F & string> = {},
  ): Task<IoctlResult<F>> {
    const outcome = yield* this.tryIoctl(fd, ioctl, value, memory);
    if (outcome.result < 0) throw new KernelError(outcome.result, ioctl.name, outcome.reply.detail);
    return outcome;
  }

  /** An ioctl whose argument is a plain value. */
  *ioctlValue(fd: number, name: string, cmd: number, arg: bigint): Task<number> {
    return Number((yield* this.#checked({ call: 'ioctl', fd, cmd, arg }, name)).result);
  }

  /** Maps anonymous memory; returns its address. */
  *mmap(options: {
    readonly length: bigint;
    readonly prot?: number;
    readonly contiguity?: Contiguity;
    readonly addr?: bigint;
  }): Task<bigint> {
    const request: SyscallRequest = {
      call: 'mmap',
      addr: options.addr ?? 0n,
      length: options.length,
      prot: options.prot ?? PROT_READ | PROT_WRITE,
      flags: MAP_PRIVATE | MAP_ANONYMOUS,
      fd: -1,
      offset: 0n,
      contiguity: options.contiguity ?? 'pages',
    };
    return BigInt((yield* this.#checked(request)).result);
  }

  /** Maps a file (memfd, a device's region); returns its address. */
  *mmapFile(fd: number, offset: bigint, length: bigint, prot = PROT_READ | PROT_WRITE): Task<bigint> {
    const request: SyscallRequest = {
      call: 'mmap',
      addr: 0n,
      length,
      prot,
      flags: MAP_SHARED,
      fd,
      offset,
      contiguity: 'pages',
    };
    return BigInt((yield* this.#checked(request)).result);
  }

  *munmap(addr: bigint, length: bigint): Task<void> {
    yield* this.#checked({ call: 'munmap', addr, length });
  }

  *memfd(name: string, length: bigint): Task<number> {
    const fd = Number((yield* this.#checked({ call: 'memfd_create', name, flags: 0 })).result);
    yield* this.#checked({ call: 'ftruncate', fd, length });
    return fd;
  }

  *eventfd(initval = 0, flags = 0): Task<number> {
    return Number((yield* this.#checked({ call: 'eventfd2', initval, flags })).result);
  }

  *read(fd: number, lengthBytes: number): Task<Uint8Array> {
    return (yield* this.#checked({ call: 'read', fd, lengthBytes })).bytes ?? new Uint8Array();
  }

  *write(fd: number, bytes: Uint8Array): Task<number> {
    return Number((yield* this.#checked({ call: 'write', fd, bytes })).result);
  }

  *pread(fd: number, lengthBytes: number, offset: bigint): Task<Uint8Array> {
    return (yield* this.#checked({ call: 'pread', fd, lengthBytes, offset })).bytes ?? new Uint8Array();
  }

  *pwrite(fd: number, bytes: Uint8Array, offset: bigint): Task<number> {
    return Number((yield* this.#checked({ call: 'pwrite', fd, bytes, offset })).result);
  }

  /** Loads bytes from the process's own memory; EFAULT where nothing is mapped. */
  *load(va: bigint, lengthBytes: number): Task<Uint8Array> {
    return (yield* this.#checked({ call: 'load', va, lengthBytes })).bytes ?? new Uint8Array();
  }

  *store(va: bigint, bytes: Uint8Array): Task<void> {
    yield* this.#checked({ call: 'store', va, bytes });
  }

  *loadPages(va: bigint, pages: number): Task<readonly PageRun[]> {
    return (yield* this.#checked({ call: 'load-pages', va, pages })).runs ?? [];
  }

  *storePages(va: bigint, runs: readonly PageRun[]): Task<void> {
    yield* this.#checked({ call: 'store-pages', va, runs });
  }

  /** The whole text of a file, as `cat` would print it. */
  *readFile(path: string): Task<string> {
    const fd = yield* this.open(path, O_RDONLY);
    const chunks: string[] = [];
    for (;;) {
      const bytes = yield* this.read(fd, 65536);
      if (bytes.length === 0) break;
      chunks.push(new TextDecoder().decode(bytes));
    }
    yield* this.close(fd);
    return chunks.join('');
  }

  /** Writes text to a file, as `echo -n text > path` would; the descriptor is closed even when the write fails. */
  *writeFile(path: string, text: string): Task<void> {
    const fd = yield* this.open(path, O_WRONLY);
    const reply = yield* this.syscall({ call: 'write', fd, bytes: new TextEncoder().encode(text) });
    yield* this.close(fd);
    if (reply.result < 0) throw new KernelError(Number(reply.result), `write ${path}`, reply.detail);
  }

  /** Names in a directory, in the kernel's order. */
  *list(path: string): Task<readonly string[]> {
    const bytes = (yield* this.#checked({ call: 'getdents', path }, `getdents ${path}`)).bytes ?? new Uint8Array();
    return new TextDecoder()
      .decode(bytes)
      .split('\n')
      .filter((name) => name !== '');
  }

  *exit(): Task<void> {
    yield* this.#checked({ call: 'exit' });
  }

  *#checked(request: SyscallRequest, what: string = request.call): Task<SyscallReply> {
    const reply = yield* this.syscall(request);
    if (reply.result < 0) throw new KernelError(Number(reply.result), what, reply.detail);
    return reply;
  }

  /** Memory for one argument: a piece of the scratch area, or a mapping of its own when it is too large. */
  *#area(lengthBytes: number): Task<{ readonly va: bigint; readonly release: () => void }> {
    if (lengthBytes <= SCRATCH_BYTES / 4) return yield* this.#scratch.take(lengthBytes);
    const length = BigInt(Math.ceil(lengthBytes / 4096) * 4096);
    const va = yield* this.mmap({ length });
    return { va, release: () => void this.host.lab.spawn(`${this.name}/munmap`, this.munmap(va, length)) };
  }
}
