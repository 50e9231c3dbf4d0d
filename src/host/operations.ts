/**
 * What the calls of a program do: each operation as the system call it stands for, with the real struct in the task's own memory.
 *
 * An operation answers what its system call returns, and puts what it made under the name it was given. Devices behind the SMMU are
 * bound as VFIO's character device does it; mock devices by the selftest's ioctl. Nothing is checked here but what an operation itself
 * can see.
 */
import { STE, STE_CONFIG } from '../hardware/smmu/records.js';
import type { FieldSpecs, Struct, StructValue } from '../layout/struct.js';
import type { Device } from '../kernel/device.js';
import { withFile, type OpenFile, type SyscallContext } from '../kernel/files.js';
import { iommu_report_device_fault, PAGE_REQUEST_LAST_PAGE, PAGE_REQUEST_PASID_VALID } from '../kernel/iommu/group.js';
import {
  iommufd_device_attach,
  iommufd_device_bind,
  iommufd_device_replace,
  iommufd_device_unbind,
  type IommufdDevice,
} from '../kernel/iommufd/device.js';
import { ARGUMENT_BYTES, DATA_BYTES } from '../runtime/kernel-only.js';
import { invariant, WaitQueue, type Task } from '../runtime/task.js';
import { sharedTest, sharedUpdate } from '../runtime/watch.js';
import { EINVAL, ENODEV } from '../uapi/errno.js';
import type { Ioctl } from '../uapi/ioctl.js';
import * as test from '../uapi/iommufd-test.js';
import * as uapi from '../uapi/iommufd.js';
import { VFIO_IOMMU_UNMAP_DMA } from '../uapi/vfio.js';
import type { Card } from './card.js';
import type { KernelMachine } from './kernel-machine.js';
import type { BufferRef, Call, OperationName, Operations } from './program.js';

/** What a name stands for. */
export interface Thing {
  /** Number of an iommufd object. */
  readonly id?: number;
  readonly fd?: number;
  readonly device?: Device;
  /** Of a device: its iommufd object. */
  readonly idev?: IommufdDevice;
  /** Of a device: its replacements. */
  readonly moves?: Moves;
  /** Of a device: the page table it was attached to first. */
  readonly hwptId?: number;
  /** Where a mapping of a file begins. */
  readonly address?: bigint;
  readonly lengthBytes?: bigint;
  /** Cookies of page requests that were read. */
  readonly cookies?: readonly number[];
  /** Number of a pin. */
  readonly pin?: number;
  readonly mmapOffset?: bigint;
  readonly card?: Card;
  /** What was read from a card. */
  readonly bytes?: Uint8Array;
}

/** A device's replacements that are under way: it goes only after them, as VFIO's lock of its devices' sets sees to (vfio/device_cdev.c). */
class Moves {
  readonly #ended = new WaitQueue('end of a replacement');
  #underWay = 0;

  *during<T>(move: Task<T>): Task<T> {
    sharedUpdate(this, 'under way', this.#underWay, ++this.#underWay);
    try {
      return yield* move;
    } finally {
      sharedUpdate(this, 'under way', this.#underWay, --this.#underWay);
      this.#ended.wakeAll();
    }
  }

  *ended(): Task<void> {
    sharedTest(this, 'under way', this.#underWay);
    while (this.#underWay > 0) yield this.#ended;
  }
}

/** A task of a program in the kernel. */
export interface Caller {
  readonly machine: KernelMachine;
  readonly ctx: SyscallContext;
  /** Address of {@link ARGUMENT_BYTES} of memory for its arguments. */
  readonly argument: bigint;
  readonly things: Map<string, Thing>;
}

type Operation<K extends OperationName> = (caller: Caller, args: Operations[K]) => Task<number>;

/** What pointers in a struct point to: behind it in the task's memory. */
const DATA_OFFSET = BigInt(ARGUMENT_BYTES - DATA_BYTES);
/** What /dev/iommu is in every process. */
const IOMMUFD = 0;
const PAGE = 4096n;

function idOf({ things }: Caller, name: string): number {
  return things.get(name)?.id ?? 0;
}

function fileOf({ ctx, things }: Caller, name: string): OpenFile | undefined {
  const fd = things.get(name)?.fd;
  return fd === undefined ? undefined : ctx.process.files.get(fd);
}

/** An ioctl on a file; the struct as the kernel left it. */
function* ioctl<F extends FieldSpecs>(
  { ctx, argument }: Caller,
  { number, struct }: Ioctl<F>,
  fields: Partial<StructValue<F>>,
  data?: Uint8Array,
): Task<{ readonly rc: number; readonly value: StructValue<F> }> {
  const bytes = struct.encode(fields);
  // Every struct of iommufd begins with its size.
  bytes[0] = struct.sizeBytes & 0xff;
  bytes[1] = struct.sizeBytes >>> 8;
  const { mm, files } = ctx.process;
  const isStaged =
    mm.copy_to_user(argument, bytes) && (data === undefined || mm.copy_to_user(argument + DATA_OFFSET, data));
  invariant(isStaged, 'program: no memory for arguments');
  const rc = yield* withFile(files.get(IOMMUFD), (file) => file.ioctl(ctx, number, argument));
  return { rc, value: struct.decode(mm.copy_from_user(argument, bytes.length) ?? bytes) };
}

function* noDevice(): Task<number> {
  return -ENODEV;
}

type Member = keyof typeof test.iommu_test_member;
type MemberFields<M extends Member> = ReturnType<(typeof test.iommu_test_member)[M]['decode']>;

/** IOMMU_TEST_CMD; the member of the union as the kernel left it. */
function* testCommand<M extends Member>(
  { ctx, argument }: Caller,
  op: number,
  id: number,
  member: M,
  fields: Partial<MemberFields<M>>,
): Task<{ readonly rc: number; readonly value: MemberFields<M> }> {
  const { number, struct } = test.IOMMU_TEST_CMD;
  const union = struct.offsetOf('add_reserved');
  // Members are many: only the one that holds is written and read.
  const bytes = new Uint8Array(struct.sizeBytes);
  const view = new DataView(bytes.buffer);
  view.setUint32(struct.offsetOf('size'), struct.sizeBytes, true);
  view.setUint32(struct.offsetOf('op'), op, true);
  view.setUint32(struct.offsetOf('id'), id, true);
  const layout = test.iommu_test_member[member] as unknown as Struct<FieldSpecs>;
  layout.write(view, union, fields);
  invariant(ctx.process.mm.copy_to_user(argument, bytes), 'program: no memory for arguments');
  const rc = yield* withFile(ctx.process.files.get(IOMMUFD), (file) => file.ioctl(ctx, number, argument));
  const answer = ctx.process.mm.copy_from_user(argument, bytes.length) ?? bytes;
  return { rc, value: layout.read(new DataView(answer.buffer, answer.byteOffset), union) as MemberFields<M> };
}

function userAddress({ machine }: Caller, { buffer, offset }: BufferRef): bigint {
  return machine.bufferAddress(buffer) + offset;
}

function mapFlags(prot: 'r' | 'w' | 'rw', isFixed: boolean): number {
  return (
    (isFixed ? uapi.IOMMU_IOAS_MAP_FIXED_IOVA : 0) |
    (prot.includes('r') ? uapi.IOMMU_IOAS_MAP_READABLE : 0) |
    (prot.includes('w') ? uapi.IOMMU_IOAS_MAP_WRITEABLE : 0)
  );
}

/** What a nested page table is made of (`data_type` and the bytes at `data_uptr`); undefined for others. */
function nestedData({
  iotlb,
  'guest-ste': guestSte,
}: Operations['hwpt']): { readonly type: number; readonly bytes: Uint8Array } | undefined {
  if (guestSte !== undefined) {
    const Config = guestSte === 'bypass' ? STE_CONFIG.BYPASS : STE_CONFIG.ABORT;
    const [low = 0, high = 0] = STE.make({ V: 1, Config });
    const ste = [(BigInt(high) << 32n) | BigInt(low), 0n];
    return { type: uapi.IOMMU_HWPT_DATA_ARM_SMMUV3, bytes: uapi.iommu_hwpt_arm_smmuv3.encode({ ste }) };
  }
  if (iotlb === undefined) return undefined;
  return { type: test.IOMMU_HWPT_DATA_SELFTEST, bytes: test.iommu_hwpt_selftest.encode({ iotlb }) };
}

/** IOMMU_HWPT_ALLOC */
function* allocHwpt(caller: Caller, args: Operations['hwpt']): Task<number> {
  const { as, device, on, dirty, nesting, pasids, 'fault-queue': faultQueue } = args;
  const data = nestedData(args);
  const { rc, value } = yield* ioctl(
    caller,
    uapi.IOMMU_HWPT_ALLOC,
    {
      flags:
        (dirty ? uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING : 0) |
        (nesting ? uapi.IOMMU_HWPT_ALLOC_NEST_PARENT : 0) |
        (pasids ? uapi.IOMMU_HWPT_ALLOC_PASID : 0) |
        (faultQueue === undefined ? 0 : uapi.IOMMU_HWPT_FAULT_ID_VALID),
      dev_id: idOf(caller, device),
      pt_id: idOf(caller, on),
      fault_id: faultQueue === undefined ? 0 : idOf(caller, faultQueue),
      ...(data === undefined
        ? {}
        : {
            data_type: data.type,
            data_len: data.bytes.length,
            data_uptr: caller.argument + DATA_OFFSET,
          }),
    },
    data?.bytes,
  );
  if (rc === 0) caller.things.set(as, { id: value.out_hwpt_id });
  return rc;
}

const EVERYTHING = 2n ** 64n - 1n;

const OPERATIONS: { readonly [K in OperationName]: Operation<K> } = {
  *ioas(caller, { as }) {
    const { rc, value } = yield* ioctl(caller, uapi.IOMMU_IOAS_ALLOC, {});
    if (rc === 0) caller.things.set(as, { id: value.out_ioas_id });
    return rc;
  },
  *map(caller, { ioas, iova, length, from, prot, as }) {
    const { rc, value } = yield* ioctl(caller, uapi.IOMMU_IOAS_MAP, {
      flags: mapFlags(prot, iova !== undefined),
      ioas_id: idOf(caller, ioas),
      user_va: userAddress(caller, from),
      length,
      iova: iova ?? 0n,
    });
    if (rc === 0 && as !== undefined) caller.things.set(as, { address: value.iova, lengthBytes: length });
    return rc;
  },
  *'map-file'(caller, { ioas, iova, length, file, offset, prot }) {
    const { rc } = yield* ioctl(caller, uapi.IOMMU_IOAS_MAP_FILE, {
      flags: mapFlags(prot, iova !== undefined),
      ioas_id: idOf(caller, ioas),
      fd: caller.things.get(file)?.fd ?? -1,
      start: offset,
      length,
      iova: iova ?? 0n,
    });
    return rc;
  },
  *unmap(caller, { ioas, iova, length }) {
    const range = iova === undefined ? { iova: 0n, length: EVERYTHING } : { iova, length: length ?? 0n };
    return (yield* ioctl(caller, uapi.IOMMU_IOAS_UNMAP, { ioas_id: idOf(caller, ioas), ...range })).rc;
  },
  *copy(caller, { from, to, length }) {
    const { rc } = yield* ioctl(caller, uapi.IOMMU_IOAS_COPY, {
      flags: mapFlags('rw', true),
      src_ioas_id: idOf(caller, from.ioas),
      dst_ioas_id: idOf(caller, to.ioas),
      src_iova: from.iova,
      dst_iova: to.iova,
      length,
    });
    return rc;
  },
  *allow(caller, { ioas, ranges }) {
    const { sizeBytes } = uapi.iommu_iova_range;
    const bytes = new Uint8Array(sizeBytes * ranges.length);
    ranges.forEach((range, i) => bytes.set(uapi.iommu_iova_range.encode(range), i * sizeBytes));
    const fields = {
      ioas_id: idOf(caller, ioas),
      num_iovas: ranges.length,
      allowed_iovas: caller.argument + DATA_OFFSET,
    };
    return (yield* ioctl(caller, uapi.IOMMU_IOAS_ALLOW_IOVAS, fields, bytes)).rc;
  },
  *reserve(caller, { ioas, start, last }) {
    const fields = { start, length: last - start + 1n };
    const op = test.IOMMU_TEST_OP_ADD_RESERVED;
    return (yield* testCommand(caller, op, idOf(caller, ioas), 'add_reserved', fields)).rc;
  },
  *'vfio-ioas'(caller, { ioas }) {
    const fields = { ioas_id: idOf(caller, ioas), op: uapi.IOMMU_VFIO_IOAS_SET };
    return (yield* ioctl(caller, uapi.IOMMU_VFIO_IOAS, fields)).rc;
  },
  *'vfio-unmap'({ ctx, argument }, { iova, length }) {
    const { number, struct } = VFIO_IOMMU_UNMAP_DMA;
    ctx.copy_to_user(argument, struct.encode({ argsz: struct.sizeBytes, flags: 0, iova, size: length }));
    return yield* withFile(ctx.process.files.get(IOMMUFD), (file) => file.ioctl(ctx, number, argument));
  },
  *'huge-pages'(caller, { ioas, on }) {
    const fields = {
      option_id: uapi.IOMMU_OPTION_HUGE_PAGES,
      op: uapi.IOMMU_OPTION_OP_SET,
      object_id: idOf(caller, ioas),
      val64: on ? 1n : 0n,
    };
    return (yield* ioctl(caller, uapi.IOMMU_OPTION, fields)).rc;
  },
  *'change-process'(caller) {
    return (yield* ioctl(caller, uapi.IOMMU_IOAS_CHANGE_PROCESS, {})).rc;
  },
  *destroy(caller, { object }) {
    return (yield* ioctl(caller, uapi.IOMMU_DESTROY, { id: idOf(caller, object) })).rc;
  },

  // --- devices ---

  *device(caller, { as, to, dirty, pasids, beside }) {
    const { machine, ctx, things } = caller;
    const target = idOf(caller, to);
    if (machine.smmu === undefined) {
      const { rc, value } = yield* testCommand(
        caller,
        test.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS,
        target,
        'mock_domain_flags',
        { dev_flags: (dirty ? 0 : test.MOCK_FLAGS_DEVICE_NO_DIRTY) | (pasids ? test.MOCK_FLAGS_DEVICE_PASID : 0) },
      );
      if (rc < 0) return rc;
      const idev = machine.boundDevice(value.out_idev_id);
      things.set(as, {
        id: value.out_idev_id,
        pin: value.out_stdev_id,
        hwptId: value.out_hwpt_id,
        idev,
        device: idev.device,
      });
      things.set(`${as}-hwpt`, { id: value.out_hwpt_id });
      return 0;
    }
    const neighbour = beside === undefined ? undefined : things.get(beside)?.device;
    if (beside !== undefined && neighbour === undefined) return -ENODEV;
    const device = yield* machine.addDevice(neighbour);
    if (typeof device === 'number') return device;
    const bound = yield* iommufd_device_bind(machine, device, ctx, false);
    if (typeof bound === 'number') {
      yield* machine.removeDevice(device);
      return bound;
    }
    const hwptId = yield* iommufd_device_attach(bound.idev, target, ctx);
    if (hwptId < 0) {
      yield* iommufd_device_unbind(bound.idev);
      yield* machine.removeDevice(device);
      return hwptId;
    }
    machine.bound.set(device, bound.idev);
    things.set(as, { id: bound.id, idev: bound.idev, device, hwptId, moves: new Moves() });
    things.set(`${as}-hwpt`, { id: hwptId });
    return 0;
  },
  *replace(caller, { device, to }) {
    const { machine, things } = caller;
    const thing = things.get(device);
    const ptId = idOf(caller, to);
    if (machine.smmu === undefined) {
      const fields = { pt_id: ptId };
      const op = test.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE;
      return (yield* testCommand(caller, op, thing?.pin ?? 0, 'mock_domain_replace', fields)).rc;
    }
    if (thing?.idev === undefined || thing.moves === undefined) return -ENODEV;
    const rc = yield* thing.moves.during(iommufd_device_replace(thing.idev, ptId, caller.ctx));
    return rc < 0 ? rc : 0;
  },
  *'attach-pasid'(caller, { device, pasid, to }) {
    const id = caller.things.get(device)?.pin ?? 0;
    const fields = { pasid, pt_id: idOf(caller, to) };
    return (yield* testCommand(caller, test.IOMMU_TEST_OP_PASID_ATTACH, id, 'pasid_attach', fields)).rc;
  },
  *'replace-pasid'(caller, { device, pasid, to }) {
    const id = caller.things.get(device)?.pin ?? 0;
    const fields = { pasid, pt_id: idOf(caller, to) };
    return (yield* testCommand(caller, test.IOMMU_TEST_OP_PASID_REPLACE, id, 'pasid_replace', fields)).rc;
  },
  *'detach-pasid'(caller, { device, pasid }) {
    const id = caller.things.get(device)?.pin ?? 0;
    return (yield* testCommand(caller, test.IOMMU_TEST_OP_PASID_DETACH, id, 'pasid_detach', { pasid })).rc;
  },
  *unplug(caller, { device }) {
    const { machine, things } = caller;
    const thing = things.get(device);
    if (thing?.idev === undefined || thing.device === undefined) return -ENODEV;
    if (machine.smmu === undefined) return (yield* ioctl(caller, uapi.IOMMU_DESTROY, { id: thing.pin ?? 0 })).rc;
    things.delete(device);
    if (thing.moves !== undefined) yield* thing.moves.ended();
    yield* machine.giveBack(thing.device);
    return 0;
  },
  *hwpt(caller, args) {
    let rc = 0;
    for (let made = 0; made < args.times && rc === 0; made++) rc = yield* allocHwpt(caller, args);
    return rc;
  },
  *'track-dirty'(caller, { hwpt, on }) {
    const { machine } = caller;
    const domain = machine.hwptOf(idOf(caller, hwpt))?.domain;
    if (domain !== undefined) machine.dirtyWrites.beginSwitch(domain, on);
    const fields = { hwpt_id: idOf(caller, hwpt), flags: on ? uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0 };
    const { rc } = yield* ioctl(caller, uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, fields);
    if (domain !== undefined) machine.dirtyWrites.endSwitch(domain, rc === 0);
    return rc;
  },
  *'read-dirty'(caller, { hwpt, iova, length, clear }) {
    const { machine, ctx } = caller;
    const table = machine.hwptOf(idOf(caller, hwpt));
    const report = table && machine.dirtyWrites.begin(table.domain, table.ioas.iopt.areas, iova, length);
    const { rc } = yield* ioctl(
      caller,
      uapi.IOMMU_HWPT_GET_DIRTY_BITMAP,
      {
        hwpt_id: idOf(caller, hwpt),
        flags: clear ? 0 : uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
        iova,
        length,
        page_size: PAGE,
        data: caller.argument + DATA_OFFSET,
      },
      new Uint8Array(Math.ceil(Number(length / PAGE) / 64) * 8),
    );
    if (report !== undefined) {
      const bytes = ctx.copy_from_user(caller.argument + DATA_OFFSET, Math.ceil(Number(length / PAGE) / 8));
      const has = (page: number): boolean => {
        const bit = page - report.first;
        return (((bytes?.[bit >> 3] ?? 0) >> (bit % 8)) & 1) === 1;
      };
      machine.dirtyWrites.end(report, clear, rc < 0 ? undefined : has);
    }
    return rc;
  },
  *msi({ machine, things }, { device, doorbell }) {
    const thing = things.get(device);
    return thing?.device === undefined ? -ENODEV : yield* machine.message(thing.device, doorbell);
  },
  *dma({ machine, things }, { device, iova, length, write }) {
    const thing = things.get(device);
    if (thing?.device === undefined) return -ENODEV;
    let rc = 0;
    for (let at = iova; at < iova + length; at += PAGE) {
      const done = yield* machine.dma(thing.device, at, write);
      if (done < 0) rc = done;
    }
    return rc;
  },

  // --- migration ---

  *card({ machine, things }, { as }) {
    things.set(as, { card: machine.addCard() });
    return 0;
  },
  *'set-state'({ things }, { card, state }) {
    return yield* things.get(card)?.card?.setState(state) ?? noDevice();
  },
  *'card-dma'({ things }, { card }) {
    return yield* things.get(card)?.card?.dma() ?? noDevice();
  },
  *save({ ctx, things }, { card, as }) {
    const bytes = yield* things.get(card)?.card?.save(ctx) ?? noDevice();
    if (typeof bytes === 'number') return bytes;
    things.set(as, { bytes });
    return bytes.length;
  },
  *load({ ctx, things }, { card, from }) {
    return yield* things.get(card)?.card?.load(ctx, things.get(from)?.bytes ?? new Uint8Array()) ?? noDevice();
  },

  // --- accesses ---

  *access(caller, { as, ioas, pins }) {
    const { rc, value } = yield* testCommand(
      caller,
      test.IOMMU_TEST_OP_CREATE_ACCESS,
      idOf(caller, ioas),
      'create_access',
      { flags: pins ? test.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES : 0 },
    );
    if (rc === 0) caller.things.set(as, { fd: value.out_access_fd });
    return rc;
  },
  *pin(caller, { access, iova, length, as, syz }) {
    const fd = caller.things.get(access)?.fd ?? 0;
    const { rc, value } = yield* testCommand(caller, test.IOMMU_TEST_OP_ACCESS_PAGES, fd, 'access_pages', {
      flags: test.MOCK_FLAGS_ACCESS_WRITE | (syz ? test.MOCK_FLAGS_ACCESS_SYZ : 0),
      iova,
      length,
      uptr: 0n,
    });
    if (rc === 0) caller.things.set(as, { pin: value.out_access_pages_id });
    return rc;
  },
  *unpin(caller, { access, pin }) {
    const fd = caller.things.get(access)?.fd ?? 0;
    const access_pages_id = caller.things.get(pin)?.pin ?? -1;
    const op = test.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES;
    return (yield* testCommand(caller, op, fd, 'destroy_access_pages', { access_pages_id: access_pages_id >>> 0 })).rc;
  },
  *'access-rw'(caller, { access, iova, length, write, syz }) {
    const fd = caller.things.get(access)?.fd ?? 0;
    const fields = {
      iova,
      length,
      uptr: caller.argument + DATA_OFFSET,
      flags:
        (write ? test.MOCK_ACCESS_RW_WRITE : 0) |
        test.MOCK_ACCESS_RW_SLOW_PATH |
        (syz ? test.MOCK_FLAGS_ACCESS_SYZ : 0),
    };
    return (yield* testCommand(caller, test.IOMMU_TEST_OP_ACCESS_RW, fd, 'access_rw', fields)).rc;
  },
  *'access-replace'(caller, { access, ioas }) {
    const fd = caller.things.get(access)?.fd ?? 0;
    const fields = { ioas_id: idOf(caller, ioas) };
    const op = test.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS;
    return (yield* testCommand(caller, op, fd, 'access_replace_ioas', fields)).rc;
  },

  // --- page requests and events ---

  *'fault-queue'(caller, { as }) {
    const { rc, value } = yield* ioctl(caller, uapi.IOMMU_FAULT_QUEUE_ALLOC, {});
    if (rc === 0) caller.things.set(as, { id: value.out_fault_id, fd: value.out_fault_fd });
    return rc;
  },
  *'page-request'(caller, { device, iova, group, pasid }) {
    const thing = caller.things.get(device);
    if (thing?.idev === undefined) return -ENODEV;
    const perm = uapi.IOMMU_PGFAULT_PERM_WRITE;
    if (caller.machine.smmu === undefined) {
      const fields = { dev_id: thing.id ?? 0, pasid, grpid: group, perm, addr: iova };
      return (yield* testCommand(caller, test.IOMMU_TEST_OP_TRIGGER_IOPF, 0, 'trigger_iopf', fields)).rc;
    }
    const flags = PAGE_REQUEST_LAST_PAGE | (pasid === 0 ? 0 : PAGE_REQUEST_PASID_VALID);
    const request = { flags, pasid, grpid: group, perm, addr: iova };
    iommu_report_device_fault(thing.idev.device, request);
    return 0;
  },
  *'read-faults'(caller, { queue, as }) {
    const { sizeBytes } = uapi.iommu_hwpt_pgfault;
    const bytes = yield* withFile(fileOf(caller, queue), (file) => file.read(caller.ctx, 8 * sizeBytes));
    if (typeof bytes === 'number') return bytes;
    const cookies = Array.from(
      { length: bytes.length / sizeBytes },
      (_, i) => uapi.iommu_hwpt_pgfault.decode(bytes.subarray(i * sizeBytes)).cookie,
    );
    if (as !== undefined) caller.things.set(as, { cookies });
    return bytes.length;
  },
  *respond(caller, { queue, to, success }) {
    const file = fileOf(caller, queue);
    const code = success ? uapi.IOMMUFD_PAGE_RESP_SUCCESS : uapi.IOMMUFD_PAGE_RESP_INVALID;
    let rc = 0;
    for (const cookie of caller.things.get(to)?.cookies ?? []) {
      const bytes = uapi.iommu_hwpt_page_response.encode({ cookie, code });
      const written = yield* withFile(file, (opened) => opened.write(caller.ctx, bytes));
      if (written < 0) rc = written;
    }
    return rc;
  },
  *viommu(caller, { as, device, on }) {
    const isMock = caller.machine.smmu === undefined;
    const data = isMock ? test.iommu_viommu_selftest.encode({ in_data: 1 }) : undefined;
    const { rc, value } = yield* ioctl(
      caller,
      uapi.IOMMU_VIOMMU_ALLOC,
      {
        type: isMock ? test.IOMMU_VIOMMU_TYPE_SELFTEST : uapi.IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
        dev_id: idOf(caller, device),
        hwpt_id: idOf(caller, on),
        ...(data === undefined ? {} : { data_len: data.length, data_uptr: caller.argument + DATA_OFFSET }),
      },
      data,
    );
    if (rc < 0) return rc;
    const { sizeBytes } = test.iommu_viommu_selftest;
    const answer = caller.ctx.copy_from_user(caller.argument + DATA_OFFSET, sizeBytes);
    const offer = isMock && answer !== undefined ? test.iommu_viommu_selftest.decode(answer) : undefined;
    caller.things.set(as, {
      id: value.out_viommu_id,
      ...(offer === undefined ? {} : { mmapOffset: offer.out_mmap_offset, lengthBytes: offer.out_mmap_length }),
    });
    return 0;
  },
  *vdevice(caller, { as, viommu, device, id }) {
    const fields = { viommu_id: idOf(caller, viommu), dev_id: idOf(caller, device), virt_id: id };
    const { rc, value } = yield* ioctl(caller, uapi.IOMMU_VDEVICE_ALLOC, fields);
    if (rc === 0) caller.things.set(as, { id: value.out_vdevice_id });
    return rc;
  },
  *veventq(caller, { as, viommu, depth }) {
    const { rc, value } = yield* ioctl(caller, uapi.IOMMU_VEVENTQ_ALLOC, {
      viommu_id: idOf(caller, viommu),
      type: caller.machine.smmu === undefined ? test.IOMMU_VEVENTQ_TYPE_SELFTEST : uapi.IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
      veventq_depth: depth,
    });
    if (rc === 0) caller.things.set(as, { id: value.out_veventq_id, fd: value.out_veventq_fd });
    return rc;
  },
  *vevent(caller, { device }) {
    const fields = { dev_id: idOf(caller, device) };
    return (yield* testCommand(caller, test.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, 'trigger_vevent', fields)).rc;
  },
  *'read-events'(caller, { queue, length }) {
    const bytes = yield* withFile(fileOf(caller, queue), (file) => file.read(caller.ctx, length));
    return typeof bytes === 'number' ? bytes : bytes.length;
  },
  *mmap(caller, { as, viommu }) {
    const thing = caller.things.get(viommu);
    const { files, mm } = caller.ctx.process;
    const length = thing?.lengthBytes ?? PAGE;
    const offset = thing?.mmapOffset ?? 0n;
    const mapping = yield* withFile(files.get(IOMMUFD), (file) => file.mmap(offset, length, true));
    if (typeof mapping === 'number') return mapping;
    const address = mm.mmapFile(0n, length, 1, mapping);
    if (typeof address === 'number') return address;
    caller.things.set(as, { address, lengthBytes: length });
    return 0;
  },
  *munmap(caller, { mapping }) {
    const thing = caller.things.get(mapping);
    if (thing?.address === undefined || thing.lengthBytes === undefined) return -EINVAL;
    return caller.ctx.process.mm.munmap(thing.address, thing.lengthBytes);
  },

  // --- files ---

  *'dma-buf'(caller, { as, length }) {
    const fields = { length: Number(length), open_flags: 0 };
    const { rc } = yield* testCommand(caller, test.IOMMU_TEST_OP_DMABUF_GET, 0, 'dmabuf_get', fields);
    if (rc < 0) return rc;
    caller.things.set(as, { fd: rc });
    return 0;
  },
  *revoke(caller, { file, revoked }) {
    const fields = { dmabuf_fd: caller.things.get(file)?.fd ?? -1, revoked: revoked ? 1 : 0 };
    return (yield* testCommand(caller, test.IOMMU_TEST_OP_DMABUF_REVOKE, 0, 'dmabuf_revoke', fields)).rc;
  },
  *close(caller, { file }) {
    return yield* caller.ctx.process.files.close(caller.things.get(file)?.fd ?? -1);
  },
};

/** Carries out a call: what its system call returns. */
export function perform<K extends OperationName>(caller: Caller, { op, args }: Call<K>): Task<number> {
  return OPERATIONS[op](caller, args);
}
