/**
 * A host made of rules instead of hardware: what a VMM's client code is tested against without a kernel.
 *
 * It answers the requests of src/host/protocol.ts with real uAPI bytes: processes with memory as stamps or bytes, sysfs
 * text, an iommufd whose address spaces know reserved ranges, apertures and areas, VFIO devices that attach, and dirty
 * bitmaps the test fills. It knows nothing about translation, interrupts or pins.
 */
import type { HostDescription } from '../../src/hardware/description.js';
import type { HostReply, HostRequest } from '../../src/host/protocol.js';
import { NodeRuntime } from '../../src/runtime/node-runtime.js';
import type { Task } from '../../src/runtime/task.js';
import { conduct } from '../../src/testbed/conductor.js';
import { Lab } from '../../src/testbed/lab.js';
import type { LinkSpec } from '../../src/testbed/link.js';
import { MAIN_NODE, MESSAGE_LATENCY_NS, type Node, type NodeResult, type NodeTurn } from '../../src/testbed/node.js';
import {
  EADDRINUSE,
  EBUSY,
  EINVAL,
  EMSGSIZE,
  ENOENT,
  ENOTTY,
  ENOMEM,
  ESRCH,
  type ErrorDetail,
} from '../../src/uapi/errno.js';
import type { Ioctl } from '../../src/uapi/ioctl.js';
import * as iommufd from '../../src/uapi/iommufd.js';
import type { PageRun, SyscallReply, SyscallRequest } from '../../src/uapi/syscall.js';
import * as vfio from '../../src/uapi/vfio.js';
import { pageOfStamp } from '../../src/migration/page-runs.js';
import { lengthOf, overlaps, subtract, U64_LAST, type Range } from '../../src/vmm/ranges.js';
import type { FieldSpecs, StructValue } from '../../src/layout/struct.js';

export interface FakeDevice {
  readonly bdf: string;
  /** Text of its group's reserved_regions. */
  readonly reserved: string;
  /** What the kernel's error detail says about the first conflict. */
  readonly owner?: string;
  readonly aperture?: Range;
  readonly dirtyTracking?: boolean;
  /** Attaching it fails with EINVAL unless the page table was made for it. */
  readonly isPicky?: boolean;
}

export interface FakeHostSpec {
  readonly name: string;
  readonly memoryBytes: bigint;
  readonly devices?: readonly FakeDevice[];
}

interface Ioas {
  readonly areas: Range[];
  readonly hwpts: Set<number>;
}

interface Hwpt {
  readonly ioas: number;
  readonly madeFor: string;
  readonly devices: Set<string>;
}

/** A page of memory as the fake keeps it. */
type Contents = { readonly stamp: number } | { readonly bytes: Uint8Array };

class FakeProcess {
  readonly pages = new Map<bigint, Contents>();
  readonly mappings = new Map<bigint, bigint>();
  readonly ioases = new Map<number, Ioas>();
  readonly hwpts = new Map<number, Hwpt>();
  readonly fds = new Map<number, { readonly path: string; text?: string; attached?: number }>();
  readonly ids: FakeDevice[] = [];
  nextId = 1;
  nextFd = 3;
  nextVa = 0x7f0000000000n;
}

const PAGE = 4096n;
const SCRATCH = 0x10000000n;

export class FakeHost implements Node {
  readonly name: string;
  readonly runtime: NodeRuntime;
  readonly calls: string[] = [];
  readonly processes = new Map<number, FakeProcess>();
  /** IOVAs of pages that devices wrote since the last GET_DIRTY_BITMAP. */
  readonly dirty = new Set<bigint>();
  readonly command = new Map<string, number>();
  readonly #spec: FakeHostSpec;
  #free: bigint;
  #nextPid = 100;
  #outbox: NodeResult['outbox'][number][] = [];

  constructor(spec: FakeHostSpec) {
    this.name = spec.name;
    this.#spec = spec;
    this.#free = spec.memoryBytes;
    this.runtime = new NodeRuntime(spec.name, 1);
  }

  get freeBytes(): bigint {
    return this.#free;
  }

  advance(turn: NodeTurn): NodeResult {
    for (const message of turn.inbox)
      this.runtime.scheduler.callAt(message.deliverNs, () => this.#answer(message.body as HostRequest));
    this.runtime.scheduler.runUntil(turn.horizonNs);
    const outbox = this.#outbox;
    this.#outbox = [];
    return { outbox, events: this.runtime.drainEvents(), nextNs: this.runtime.scheduler.nextTime() };
  }

  choices(): readonly number[] {
    return [];
  }

  tasks(): number {
    return 0;
  }

  invariants(): [] {
    return [];
  }

  close(): void {
    // Nothing to close.
  }

  #answer(request: HostRequest): void {
    const reply: HostReply =
      'command' in request
        ? {
            id: request.id,
            lab: request.command.lab === 'transactions' ? { result: 0, transactions: [] } : this.#spawn(),
          }
        : { id: request.id, syscall: this.#syscall(request.pid, request.syscall) };
    const deliverNs = this.runtime.now + MESSAGE_LATENCY_NS;
    this.#outbox.push({ from: this.name, to: MAIN_NODE, deliverNs, number: request.id, body: reply });
  }

  #spawn() {
    const pid = this.#nextPid++;
    this.processes.set(pid, new FakeProcess());
    return { result: pid, scratch: SCRATCH };
  }

  #syscall(pid: number, request: SyscallRequest): SyscallReply {
    const process = this.processes.get(pid);
    if (process === undefined) return { result: -ESRCH };
    const memory = new Map<bigint, Uint8Array>();
    for (const staged of request.stage ?? []) memory.set(staged.va, Uint8Array.from(staged.bytes));
    const reply = this.#call(pid, process, request, memory);
    const collected = (request.collect ?? []).map((range) => memory.get(range.va) ?? new Uint8Array(range.lengthBytes));
    return { ...reply, collected };
  }

  #call(pid: number, p: FakeProcess, request: SyscallRequest, memory: Map<bigint, Uint8Array>): SyscallReply {
    switch (request.call) {
      case 'mmap': {
        if (request.length > this.#free) return { result: -ENOMEM };
        this.#free -= request.length;
        const va = p.nextVa;
        p.nextVa += request.length + PAGE;
        p.mappings.set(va, request.length);
        return { result: va };
      }
      case 'exit':
        for (const length of p.mappings.values()) this.#free += length;
        this.processes.delete(pid);
        return { result: 0 };
      case 'open':
        return this.#open(p, request.path);
      case 'close':
        p.fds.delete(request.fd);
        return { result: 0 };
      case 'read':
        return this.#read(p, request.fd, request.lengthBytes);
      case 'write':
        return { result: request.bytes.length };
      case 'getdents':
        return { result: 0, bytes: new TextEncoder().encode(`vfio${this.#indexOf(request.path)}\n`) };
      case 'eventfd2':
        p.fds.set(p.nextFd, { path: 'eventfd' });
        return { result: p.nextFd++ };
      case 'pread':
        return { result: request.lengthBytes, bytes: new Uint8Array(request.lengthBytes) };
      case 'pwrite':
        this.command.set(p.fds.get(request.fd)?.path ?? '', request.bytes[0] ?? 0);
        return { result: request.bytes.length };
      case 'load':
        return { result: request.lengthBytes, bytes: this.#load(p, request.va, request.lengthBytes) };
      case 'store':
        request.bytes.forEach((byte, i) => this.#storeByte(p, request.va + BigInt(i), byte));
        return { result: request.bytes.length };
      case 'load-pages':
        return { result: 0, runs: this.#loadPages(p, request.va, request.pages) };
      case 'store-pages':
        for (const run of request.runs) this.#storeRun(p, request.va, run);
        return { result: 0 };
      case 'ioctl':
        return this.#ioctl(p, request.fd, request.cmd, request.arg, memory);
      default:
        return { result: -EINVAL };
    }
  }

  #indexOf(path: string): number {
    return (this.#spec.devices ?? []).findIndex((device) => path.includes(device.bdf));
  }

  #open(p: FakeProcess, path: string): SyscallReply {
    const index = this.#indexOf(path);
    const text = path.endsWith('reserved_regions') ? this.#spec.devices?.[index]?.reserved : undefined;
    p.fds.set(p.nextFd, text === undefined ? { path } : { path, text });
    return { result: p.nextFd++ };
  }

  #read(p: FakeProcess, fd: number, lengthBytes: number): SyscallReply {
    const file = p.fds.get(fd);
    const bytes = new TextEncoder().encode(file?.text ?? '').subarray(0, lengthBytes);
    if (file?.text !== undefined) file.text = '';
    return { result: bytes.length, bytes };
  }

  #load(p: FakeProcess, va: bigint, lengthBytes: number): Uint8Array {
    return Uint8Array.from({ length: lengthBytes }, (_, i) => {
      const at = va + BigInt(i);
      return this.#bytesOf(p, at - (at % PAGE))[Number(at % PAGE)] ?? 0;
    });
  }

  #bytesOf(p: FakeProcess, page: bigint): Uint8Array {
    const contents = p.pages.get(page) ?? { stamp: 0 };
    return 'bytes' in contents ? contents.bytes : pageOfStamp(contents.stamp);
  }

  #storeByte(p: FakeProcess, va: bigint, byte: number): void {
    const page = va - (va % PAGE);
    const bytes = this.#bytesOf(p, page);
    bytes[Number(va % PAGE)] = byte;
    p.pages.set(page, { bytes });
  }

  #loadPages(p: FakeProcess, va: bigint, pages: number): PageRun[] {
    return Array.from({ length: pages }, (_, i): PageRun => {
      const contents = p.pages.get(va + BigInt(i) * PAGE) ?? { stamp: 0 };
      if ('bytes' in contents) return { firstPage: i, pages: 1, bytes: Uint8Array.from(contents.bytes) };
      return { firstPage: i, pages: 1, stamp: contents.stamp, step: 0 };
    });
  }

  #storeRun(p: FakeProcess, va: bigint, run: PageRun): void {
    for (let i = 0; i < run.pages; i++) {
      const page = va + BigInt(run.firstPage + i) * PAGE;
      p.pages.set(page, 'bytes' in run ? { bytes: Uint8Array.from(run.bytes) } : { stamp: run.stamp + i * run.step });
    }
  }

  #ioctl(p: FakeProcess, fd: number, cmd: number, arg: bigint, memory: Map<bigint, Uint8Array>): SyscallReply {
    const path = p.fds.get(fd)?.path ?? '';
    const staged = memory.get(arg) ?? new Uint8Array();
    const device = this.#spec.devices?.[Number(/vfio(\d+)$/.exec(path)?.[1] ?? -1)];
    let detail: ErrorDetail | undefined;
    const on = <F extends FieldSpecs>(
      ioctl: Ioctl<F>,
      body: (value: StructValue<F>) => number | Partial<StructValue<F>>,
    ): SyscallReply | undefined => {
      if (cmd !== ioctl.number) return undefined;
      const value = ioctl.struct.decode(staged);
      const outcome = body(value);
      this.calls.push(typeof outcome === 'number' && outcome < 0 ? `${ioctl.name} ${outcome}` : ioctl.name);
      if (typeof outcome === 'number' && outcome < 0)
        return { result: outcome, ...(detail === undefined ? {} : { detail }) };
      if (typeof outcome === 'object') staged.set(ioctl.struct.encode({ ...value, ...outcome }));
      return { result: 0 };
    };
    const conflict = (found: { range: Range; owner: string }): number => {
      detail = { ...found.range, owner: found.owner, kind: 'hardware-msi' };
      return -EADDRINUSE;
    };
    return (
      on(iommufd.IOMMU_IOAS_ALLOC, () => {
        p.ioases.set(p.nextId, { areas: [], hwpts: new Set() });
        return { out_ioas_id: p.nextId++ };
      }) ??
      on(iommufd.IOMMU_IOAS_MAP, (v) => {
        const range = { start: v.iova, last: v.iova + v.length - 1n };
        const ioas = p.ioases.get(v.ioas_id);
        if (ioas === undefined) return -ENOENT;
        if (this.#unusable(p, v.ioas_id).some((hole) => overlaps(hole, range))) return -EINVAL;
        ioas.areas.push(range);
        return 0;
      }) ??
      on(iommufd.IOMMU_IOAS_UNMAP, (v) => {
        const ioas = p.ioases.get(v.ioas_id);
        const range = { start: v.iova, last: v.iova + v.length - 1n };
        const hit = ioas?.areas.filter((area) => overlaps(area, range)) ?? [];
        if (ioas === undefined || hit.length === 0) return -ENOENT;
        if (hit.some((area) => area.start < range.start || area.last > range.last)) return -ENOENT;
        ioas.areas.splice(0, ioas.areas.length, ...ioas.areas.filter((area) => !hit.includes(area)));
        return { length: hit.reduce((sum, area) => sum + lengthOf(area), 0n) };
      }) ??
      on(iommufd.IOMMU_IOAS_IOVA_RANGES, (v) => {
        const usable = subtract({ start: 0n, last: U64_LAST }, this.#unusable(p, v.ioas_id));
        const bytes = memory.get(v.allowed_iovas) ?? new Uint8Array();
        const size = iommufd.iommu_iova_range.sizeBytes;
        usable.slice(0, v.num_iovas).forEach((range, i) => bytes.set(iommufd.iommu_iova_range.encode(range), i * size));
        staged.set(iommufd.iommu_ioas_iova_ranges.encode({ ...v, num_iovas: usable.length, out_iova_alignment: PAGE }));
        return usable.length > v.num_iovas ? -EMSGSIZE : 0;
      }) ??
      on(iommufd.IOMMU_GET_HW_INFO, (v) => ({
        out_capabilities: p.ids[v.dev_id - 1000]?.dirtyTracking === true ? 1n : 0n,
      })) ??
      on(iommufd.IOMMU_HWPT_ALLOC, (v) => {
        const found = p.ids[v.dev_id - 1000];
        const ioas = p.ioases.get(v.pt_id);
        if (found === undefined || ioas === undefined) return -ENOENT;
        const aperture = found.aperture ?? { start: 0n, last: U64_LAST };
        if (ioas.areas.some((area) => area.start < aperture.start || area.last > aperture.last)) return -EADDRINUSE;
        p.hwpts.set(p.nextId, { ioas: v.pt_id, madeFor: found.bdf, devices: new Set() });
        ioas.hwpts.add(p.nextId);
        return { out_hwpt_id: p.nextId++ };
      }) ??
      on(iommufd.IOMMU_HWPT_SET_DIRTY_TRACKING, () => 0) ??
      on(iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP, (v) => {
        const bytes = memory.get(v.data) ?? new Uint8Array();
        for (const iova of [...this.dirty]) {
          if (iova < v.iova || iova >= v.iova + v.length) continue;
          const bit = Number((iova - v.iova) / v.page_size);
          bytes[bit >>> 3] = (bytes[bit >>> 3] ?? 0) | (1 << (bit & 7));
          this.dirty.delete(iova);
        }
        return 0;
      }) ??
      on(iommufd.IOMMU_DESTROY, (v) => {
        const hwpt = p.hwpts.get(v.id);
        if (hwpt !== undefined) {
          if (hwpt.devices.size > 0) return -EBUSY;
          p.ioases.get(hwpt.ioas)?.hwpts.delete(v.id);
          p.hwpts.delete(v.id);
          return 0;
        }
        if ((p.ioases.get(v.id)?.hwpts.size ?? 0) > 0) return -EBUSY;
        return p.ioases.delete(v.id) ? 0 : -ENOENT;
      }) ??
      on(vfio.VFIO_DEVICE_FEATURE, () => -ENOTTY) ??
      on(vfio.VFIO_DEVICE_BIND_IOMMUFD, () => {
        if (device === undefined) return -EINVAL;
        p.ids.push(device);
        return { out_devid: 999 + p.ids.length };
      }) ??
      on(vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT, (v) => {
        const hwpt = p.hwpts.get(v.pt_id);
        if (device === undefined || hwpt === undefined) return -ENOENT;
        if (device.isPicky === true && hwpt.madeFor !== device.bdf) return -EINVAL;
        const areas = p.ioases.get(hwpt.ioas)?.areas ?? [];
        const hole = this.#regions(device).find((region) => areas.some((area) => overlaps(area, region)));
        if (hole !== undefined) return conflict({ range: hole, owner: device.owner ?? '' });
        hwpt.devices.add(device.bdf);
        return 0;
      }) ??
      on(vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT, () => {
        for (const hwpt of p.hwpts.values()) if (device !== undefined) hwpt.devices.delete(device.bdf);
        return 0;
      }) ??
      on(vfio.VFIO_DEVICE_GET_REGION_INFO, (v) => ({ offset: BigInt(v.index) << 40n })) ??
      on(vfio.VFIO_DEVICE_SET_IRQS, () => 0) ?? { result: -EINVAL }
    );
  }

  #regions(device: FakeDevice): Range[] {
    return device.reserved
      .split('\n')
      .filter((line) => line !== '' && !line.endsWith('direct-relaxable'))
      .map((line) => {
        const [start = '0', last = '0'] = line.split(' ');
        return { start: BigInt(start), last: BigInt(last) };
      });
  }

  #unusable(p: FakeProcess, ioasId: number): Range[] {
    const holes: Range[] = [];
    for (const [, hwpt] of [...p.hwpts].filter(([, candidate]) => candidate.ioas === ioasId)) {
      for (const bdf of [hwpt.madeFor, ...hwpt.devices]) {
        const device = this.#spec.devices?.find((candidate) => candidate.bdf === bdf);
        if (device?.aperture !== undefined) holes.push(...subtract({ start: 0n, last: U64_LAST }, [device.aperture]));
      }
      for (const bdf of hwpt.devices) {
        const device = this.#spec.devices?.find((candidate) => candidate.bdf === bdf);
        if (device !== undefined) holes.push(...this.#regions(device));
      }
    }
    return holes;
  }
}

/** Runs a task in a main node beside fake hosts; throws what the task throws. */
export async function inLab<T>(
  specs: readonly FakeHostSpec[],
  body: (lab: Lab, hosts: Readonly<Record<string, FakeHost>>) => Task<T>,
  links: readonly LinkSpec[] = [],
): Promise<T> {
  const hosts = specs.map((spec) => new FakeHost(spec));
  const byName = Object.fromEntries(hosts.map((host) => [host.name, host]));
  const descriptions = specs.map((spec) => ({ name: spec.name }) as HostDescription);
  const lab = new Lab(1, { strategy: 'in-order' }, descriptions, links);
  let outcome: { readonly value: T } | { readonly error: unknown } | undefined;
  function* main(): Task<void> {
    try {
      outcome = { value: yield* body(lab, byName) };
    } catch (error) {
      outcome = { error };
    }
  }
  const handle = lab.spawn('main', main());
  const conducted = await conduct([lab, ...hosts], {
    isDone: () => handle.isDone,
    describeStuck: () =>
      lab.runtime.scheduler
        .unfinished()
        .map((task) => `${task.name}: ${task.waitsFor ?? 'ready'}`)
        .join('; '),
    limitNs: 600e9,
  });
  if (outcome === undefined) throw new Error(conducted.failure?.message ?? 'the task did not end');
  if ('error' in outcome) throw outcome.error;
  return outcome.value;
}
