/**
 * How each operation of the recorded iommufd sequences is made: which system call, with which bytes, and what of the answer
 * was recorded. `linux.ts` compares.
 *
 * Most operations are a struct: recorded inputs are its fields by name, recorded outputs likewise. The rest put something
 * into memory first or look at it afterwards.
 */
import type { FieldSpecs, Struct } from '../layout/struct.js';
import { errnoText } from '../uapi/errno.js';
import type { Ioctl } from '../uapi/ioctl.js';
import * as u from '../uapi/iommufd.js';
import * as t from '../uapi/iommufd-test.js';
import { bufferAddress, type RecordedMachine } from './linux-machine.js';

/** A JSON value as recorded. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };
/** Inputs or outputs of an operation. */
export type JsonFields = Readonly<Record<string, Json>>;

/** What an operation answered, in the words of the recording. */
export interface Answer {
  readonly ret: string;
  readonly out?: JsonFields;
  /** Where the sequence alone does not determine the answer: whether a recorded one can be right. */
  readonly isPossible?: (recorded: Answer) => boolean;
}

/** Makes one operation. */
export type Operation = (machine: RecordedMachine, input: JsonFields) => Answer;

const UNMAPPED_ADDRESS = 0x1000n;
const BITMAP = bufferAddress('bitmap') ?? 0n;
const IO = bufferAddress('io') ?? 0n;

/** A recorded number of any size; 0 where there is none. */
export function integer(value: Json | undefined): bigint {
  return typeof value === 'string' || typeof value === 'number' ? BigInt(value) : 0n;
}

export function small(value: Json | undefined): number {
  return typeof value === 'number' ? value : Number(integer(value));
}

export function pointer(value: Json | undefined): bigint {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return integer(value);
  const { buf, off, raw } = value as JsonFields;
  return typeof buf === 'string' ? (bufferAddress(buf) ?? 0n) + integer(off) : integer(raw);
}

/** A number as the recording writes it. */
export function shown(value: unknown): Json {
  return typeof value === 'bigint' ? `0x${value.toString(16)}` : (value as number);
}

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

function fromHex(value: Json | undefined): Uint8Array {
  return new Uint8Array(Buffer.from(typeof value === 'string' ? value : '', 'hex'));
}

/** How a result is recorded. */
export function returned(result: number): string {
  return result >= 0 ? 'OK' : errnoText(result);
}

type Values = Readonly<Record<string, unknown>>;

/** Recorded inputs as values of a struct's fields; pointers and numbers, in the field's own type. */
function fieldValues(struct: Struct<FieldSpecs>, input: JsonFields): Record<string, unknown> {
  const zero = struct.zero() as Values;
  const values: Record<string, unknown> = {};
  for (const { name } of struct.fields) {
    const given = input[name];
    if (given === undefined) continue;
    values[name] = typeof zero[name] === 'bigint' ? pointer(given) : small(given);
  }
  return values;
}

interface StructCall {
  /** Fields that are recorded when the call succeeds. */
  readonly outputs?: readonly string[];
  /** Puts things into memory; further fields. */
  readonly prepare?: (machine: RecordedMachine, input: JsonFields) => Values;
  /** More that is recorded of a call that answered; undefined where nothing is. */
  readonly collect?: (machine: RecordedMachine, values: Values, input: JsonFields, result: number) => JsonFields;
  /** Whether outputs are recorded for this return. */
  readonly isAnswered?: (ret: string) => boolean;
}

function isOk(ret: string): boolean {
  return ret === 'OK';
}

function answer(ret: string, out: JsonFields): Answer {
  return Object.keys(out).length === 0 ? { ret } : { ret, out };
}

function pick(values: Values, names: readonly string[]): JsonFields {
  return Object.fromEntries(names.map((name) => [name, shown(values[name])]));
}

/** An ioctl on /dev/iommu. */
export function structCall<F extends FieldSpecs>(ioctl: Ioctl<F>, call: StructCall = {}): Operation {
  const struct = ioctl.struct as unknown as Struct<FieldSpecs>;
  const { outputs = [], prepare, collect, isAnswered = isOk } = call;
  return (machine, input) => {
    const values = { size: struct.sizeBytes, ...fieldValues(struct, input), ...prepare?.(machine, input) };
    const { result, bytes } = machine.ioctlStruct(ioctl.number, struct.encode(values as never));
    const ret = returned(result);
    if (!isAnswered(ret)) return { ret };
    const after = struct.decode(bytes) as Values;
    return answer(ret, { ...pick(after, outputs), ...collect?.(machine, after, input, result) });
  };
}

const UNION_OFFSET = t.iommu_test_cmd.offsetOf('add_reserved');

interface TestCall extends StructCall {
  /** The recorded input that is `cmd->id`. */
  readonly id?: string;
  /** Recorded inputs whose fields have other names. */
  readonly rename?: Readonly<Record<string, string>>;
}

/** A test command. */
export function testCall<F extends FieldSpecs>(op: number, member: Struct<F>, call: TestCall = {}): Operation {
  const struct = member as unknown as Struct<FieldSpecs>;
  const { outputs = [], prepare, collect, isAnswered = isOk, id = '', rename = {} } = call;
  return (machine, input) => {
    const named = { ...input };
    for (const [from, to] of Object.entries(rename)) named[to] = input[from] ?? 0;
    const idValue = id === 'access' ? machine.accessDescriptor(small(input[id])) : small(input[id]);
    const bytes = t.iommu_test_cmd.encode({ size: t.iommu_test_cmd.sizeBytes, op, id: idValue });
    const view = new DataView(bytes.buffer);
    struct.write(view, UNION_OFFSET, { ...fieldValues(struct, named), ...prepare?.(machine, input) } as never);
    const { result, bytes: after } = machine.ioctlStruct(t.IOMMU_TEST_CMD.number, bytes);
    const ret = returned(result);
    if (!isAnswered(ret)) return { ret };
    const values = struct.read(new DataView(after.buffer, after.byteOffset), UNION_OFFSET) as Values;
    return answer(ret, { ...pick(values, outputs), ...collect?.(machine, values, input, result) });
  };
}

// --- ioctls that need more than their fields ---

const RANGE_BYTES = u.iommu_iova_range.sizeBytes;

function badOr(input: JsonFields, address: bigint): bigint {
  return input['bad_pointer'] === undefined ? address : UNMAPPED_ADDRESS;
}

const iovaRanges = structCall(u.IOMMU_IOAS_IOVA_RANGES, {
  outputs: ['num_iovas', 'out_iova_alignment'],
  prepare: (_machine, input) => ({ allowed_iovas: badOr(input, IO) }),
  isAnswered: (ret) => ret === 'OK' || ret === 'EMSGSIZE',
  collect: (machine, values, input) => {
    const count = Math.min(Number(values['num_iovas']), small(input['num_iovas']));
    const bytes = machine.load(IO, count * RANGE_BYTES);
    return {
      ranges: Array.from({ length: count }, (_, i) => {
        const { start, last } = u.iommu_iova_range.decode(bytes.subarray(i * RANGE_BYTES));
        return [shown(start), shown(last)];
      }),
    };
  },
});

const allowIovas = structCall(u.IOMMU_IOAS_ALLOW_IOVAS, {
  prepare: (machine, input) => {
    const ranges = (input['ranges'] ?? []) as readonly (readonly Json[])[];
    for (const [i, [start, last]] of ranges.entries()) {
      const range = { start: integer(start), last: integer(last) };
      machine.store(IO + BigInt(i * RANGE_BYTES), u.iommu_iova_range.encode(range));
    }
    return { allowed_iovas: badOr(input, IO) };
  },
});

const mapFile = structCall(u.IOMMU_IOAS_MAP_FILE, {
  outputs: ['iova'],
  prepare: (machine, input) => ({ fd: machine.fileDescriptor(small(input['file'])) }),
});

const hwInfo = structCall(u.IOMMU_GET_HW_INFO, {
  outputs: ['data_len', 'out_data_type', 'out_max_pasid_log2', 'out_capabilities'],
  prepare: (machine, input) => {
    machine.store(IO, new Uint8Array(small(input['data_len'])));
    return { data_uptr: IO, __reserved: [small(input['__reserved0']), 0, 0] };
  },
  collect: (machine, _values, input) => ({ data: hex(machine.load(IO, small(input['data_len']))) }),
});

const hwptAlloc = structCall(u.IOMMU_HWPT_ALLOC, {
  outputs: ['out_hwpt_id'],
  prepare: (machine, input) => {
    const data = { iotlb: small(input['data_iotlb']), pagetable_type: small(input['data_pagetable_type']) };
    machine.store(IO, t.iommu_hwpt_selftest.encode(data));
    return small(input['data_len']) > 0 ? { data_uptr: IO } : {};
  },
});

/** How much of a bitmap is recorded beyond its bits, and at most. */
const BITMAP_EXTRA_BYTES = 8;
const BITMAP_SHOWN_BYTES = 2048;

function bitmapBytes(input: JsonFields): number {
  const pageSize = integer(input['page_size']);
  const unit = pageSize & -pageSize;
  const bits = unit === 0n ? 0n : integer(input['length']) / unit;
  const bytes = (bits + 7n) / 8n + BigInt(BITMAP_EXTRA_BYTES);
  return bytes > BITMAP_SHOWN_BYTES ? BITMAP_SHOWN_BYTES : Number(bytes);
}

const getDirtyBitmap = structCall(u.IOMMU_HWPT_GET_DIRTY_BITMAP, {
  prepare: (machine, input) => {
    const address = BITMAP + integer(input['data_misalign']);
    if (input['bad_pointer'] === undefined) {
      const filled = BITMAP_SHOWN_BYTES + BITMAP_EXTRA_BYTES;
      machine.store(address, new Uint8Array(filled).fill(small(input['prefill'])));
    }
    return { data: badOr(input, address) };
  },
  collect: (machine, _values, input): JsonFields =>
    input['bad_pointer'] === undefined
      ? { bitmap: hex(machine.load(BITMAP + integer(input['data_misalign']), bitmapBytes(input))) }
      : {},
});

const IO_BYTES = 1024 * 1024;

/** Length of an entry of either kind. */
const ENTRY_BYTES = t.iommu_viommu_invalidate_selftest.sizeBytes;

/** Entries of an invalidation that were recorded: of long ones, no more than the first bytes of all were. */
function recordedEntries(input: JsonFields): number {
  const recordedBytes = fromHex(input['data']).length;
  const [entries, entryBytes] = [small(input['entry_num']), small(input['entry_len'])];
  if (recordedBytes === 0 || recordedBytes >= entries * entryBytes) return entries;
  return Math.floor((recordedBytes - ENTRY_BYTES) / entryBytes) + 1;
}

const hwptInvalidateOnce = structCall(u.IOMMU_HWPT_INVALIDATE, {
  outputs: ['entry_num'],
  prepare: (machine, input) => {
    if (input['null_pointer'] !== undefined) return { data_uptr: 0n };
    machine.store(IO, new Uint8Array(Math.min(small(input['entry_len']) * small(input['entry_num']), IO_BYTES)));
    const data = fromHex(input['data']);
    machine.store(IO, data);
    const entryBytes = small(input['entry_len']);
    const last = Math.min(small(input['entry_num']), Math.floor(IO_BYTES / Math.max(entryBytes, ENTRY_BYTES)));
    for (let i = recordedEntries(input); i < last; i++)
      machine.store(IO + BigInt(i * entryBytes), data.subarray(0, ENTRY_BYTES));
    return { data_uptr: IO };
  },
  isAnswered: () => true,
});

/** What was not recorded is a copy of the first entry, which changes nothing; what it answered is not compared. */
const hwptInvalidate: Operation = (machine, input) => {
  const answer = hwptInvalidateOnce(machine, input);
  const known = recordedEntries(input);
  const done = ({ out }: Answer): number => small(out?.['entry_num']);
  if (known >= small(input['entry_num']) || done(answer) < known) return answer;
  return { ...answer, isPossible: (recorded) => done(recorded) >= known };
};

const viommuAlloc = structCall(u.IOMMU_VIOMMU_ALLOC, {
  outputs: ['out_viommu_id'],
  prepare: (machine, input) => {
    const length = small(input['data_len']);
    if (length === 0) return {};
    machine.store(IO, new Uint8Array(Math.max(length, t.iommu_viommu_selftest.sizeBytes)));
    machine.store(IO, t.iommu_viommu_selftest.encode({ in_data: small(input['in_data']) }));
    return { data_uptr: IO };
  },
  collect: (machine, _values, input): JsonFields =>
    small(input['data_len']) === 0
      ? {}
      : pick(t.iommu_viommu_selftest.decode(machine.load(IO, t.iommu_viommu_selftest.sizeBytes)), [
          'out_data',
          'out_mmap_offset',
          'out_mmap_length',
        ]),
});

/** The call number of an ioctl of type `;`. */
function iommufdIoctl(nr: number): number {
  return 0x3b00 | nr;
}

/** How much of a struct is recorded. */
const RAW_SHOWN_BYTES = 128;

const raw: Operation = (machine, input) => {
  const size = small(input['size']);
  const bytes = new Uint8Array(Math.max(size, 4));
  new DataView(bytes.buffer).setUint32(0, size, true);
  if (input['byte_at'] !== undefined) bytes[small(input['byte_at'])] = small(input['byte']);
  const { result, bytes: after } = machine.ioctlStruct(iommufdIoctl(small(input['nr'])), bytes);
  const ret = returned(result);
  return isOk(ret) ? { ret, out: { struct: hex(after.subarray(0, RAW_SHOWN_BYTES)) } } : { ret };
};

// --- test commands that need more than their fields ---

const m = t.iommu_test_member;
const DEVICE_OUTPUTS = ['out_stdev_id', 'out_hwpt_id', 'out_idev_id'];

const createAccess = testCall(t.IOMMU_TEST_OP_CREATE_ACCESS, m.create_access, {
  id: 'ioas_id',
  collect: (machine, values) => ({ access: machine.accesses.push(Number(values['out_access_fd'])) - 1 }),
});

/** Longest data that is recorded in full. */
const DATA_SHOWN_BYTES = 32;
/** The most a test command copies; more is refused before anybody looks at the memory. */
const MAX_COPY_BYTES = 16 * 1024 * 1024;

function fnv1a64(bytes: Uint8Array): bigint {
  let hash = 0xcbf29ce484222325n;
  for (const byte of bytes) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  return hash;
}

const accessRwOnce = testCall(t.IOMMU_TEST_OP_ACCESS_RW, m.access_rw, {
  id: 'access',
  prepare: (machine, input) => {
    const salt = input['salt'];
    const length = integer(input['length']);
    if (salt !== undefined && length <= MAX_COPY_BYTES && input['bad_pointer'] === undefined) {
      machine.store(
        IO,
        Uint8Array.from({ length: Math.min(Number(length), IO_BYTES) }, (_, i) => (small(salt) + 3 * i) & 255),
      );
    }
    return { uptr: badOr(input, IO) };
  },
  collect: (machine, _values, input): JsonFields => {
    if ((small(input['flags']) & t.MOCK_ACCESS_RW_WRITE) !== 0) return {};
    const bytes = machine.load(IO, small(input['length']));
    return bytes.length > DATA_SHOWN_BYTES ? { fnv1a64: shown(fnv1a64(bytes)) } : { data: hex(bytes) };
  },
});

/** Data that was left in a file by sequences before is not compared: a digest of any of it not at all. */
const accessRw: Operation = (machine, input) => {
  const isWrite = (small(input['flags']) & t.MOCK_ACCESS_RW_WRITE) !== 0;
  if (isWrite) return accessRwOnce(machine, input);
  const [[answer, bytes], other] = machine.twice(() => {
    const once = accessRwOnce(machine, input);
    return [once, isOk(once.ret) ? machine.load(IO, small(input['length'])) : new Uint8Array()] as const;
  });
  if (other === undefined) return answer;
  const isPossible = ({ ret, out }: Answer): boolean => {
    if (ret !== answer.ret || out?.['data'] === undefined) return ret === answer.ret;
    const recorded = fromHex(out['data']);
    return recorded.length === bytes.length && bytes.every((byte, i) => byte !== other[1][i] || byte === recorded[i]);
  };
  return { ...answer, isPossible };
};

const dirty = testCall(t.IOMMU_TEST_OP_DIRTY, m.dirty, {
  id: 'hwpt_id',
  prepare: (machine, input) => {
    machine.store(BITMAP, new Uint8Array(BITMAP_SHOWN_BYTES));
    machine.store(BITMAP, fromHex(input['bitmap']));
    return { uptr: BITMAP };
  },
  collect: (_machine, values) => ({ out_nr_dirty: Number(values['out_nr_dirty']) }),
});

const dmabufGet = testCall(t.IOMMU_TEST_OP_DMABUF_GET, m.dmabuf_get, {
  // Recorded as 0: the kernel of the recordings forgot to hand the descriptor on.
  collect: (machine, _values, _input, result) => {
    machine.dmabuf = result;
    return { file: 6 };
  },
});

const dmabufRevoke = testCall(t.IOMMU_TEST_OP_DMABUF_REVOKE, m.dmabuf_revoke, {
  prepare: (machine, input) => ({ dmabuf_fd: machine.fileDescriptor(small(input['file'])) }),
});

const UNLIMITED = 2n ** 64n - 1n;

/** Operations by name. */
export const OPERATIONS: ReadonlyMap<string, Operation> = new Map<string, Operation>([
  ['DESTROY', structCall(u.IOMMU_DESTROY)],
  ['IOAS_ALLOC', structCall(u.IOMMU_IOAS_ALLOC, { outputs: ['out_ioas_id'] })],
  ['IOAS_ALLOW_IOVAS', allowIovas],
  ['IOAS_IOVA_RANGES', iovaRanges],
  ['IOAS_MAP', structCall(u.IOMMU_IOAS_MAP, { outputs: ['iova'] })],
  ['IOAS_MAP_FILE', mapFile],
  ['IOAS_COPY', structCall(u.IOMMU_IOAS_COPY, { outputs: ['dst_iova'] })],
  ['IOAS_UNMAP', structCall(u.IOMMU_IOAS_UNMAP, { outputs: ['length'] })],
  ['IOAS_CHANGE_PROCESS', structCall(u.IOMMU_IOAS_CHANGE_PROCESS)],
  ['OPTION', structCall(u.IOMMU_OPTION, { outputs: ['val64'] })],
  ['GET_HW_INFO', hwInfo],
  ['HWPT_ALLOC', hwptAlloc],
  ['HWPT_SET_DIRTY_TRACKING', structCall(u.IOMMU_HWPT_SET_DIRTY_TRACKING)],
  ['HWPT_GET_DIRTY_BITMAP', getDirtyBitmap],
  ['HWPT_INVALIDATE', hwptInvalidate],
  ['VIOMMU_ALLOC', viommuAlloc],
  ['VDEVICE_ALLOC', structCall(u.IOMMU_VDEVICE_ALLOC, { outputs: ['out_vdevice_id'] })],
  ['HW_QUEUE_ALLOC', structCall(u.IOMMU_HW_QUEUE_ALLOC, { outputs: ['out_hw_queue_id'] })],
  ['RAW', raw],
  ['TEST_ADD_RESERVED', testCall(t.IOMMU_TEST_OP_ADD_RESERVED, m.add_reserved, { id: 'ioas_id' })],
  ['TEST_MOCK_DOMAIN', testCall(t.IOMMU_TEST_OP_MOCK_DOMAIN, m.mock_domain, { id: 'pt_id', outputs: DEVICE_OUTPUTS })],
  [
    'TEST_MOCK_DOMAIN_FLAGS',
    testCall(t.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, m.mock_domain_flags, { id: 'pt_id', outputs: DEVICE_OUTPUTS }),
  ],
  [
    'TEST_MOCK_DOMAIN_REPLACE',
    testCall(t.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, m.mock_domain_replace, { id: 'stdev_id', outputs: ['pt_id'] }),
  ],
  ['TEST_MD_CHECK_MAP', testCall(t.IOMMU_TEST_OP_MD_CHECK_MAP, m.check_map, { id: 'hwpt_id' })],
  ['TEST_MD_CHECK_REFS', testCall(t.IOMMU_TEST_OP_MD_CHECK_REFS, m.check_refs)],
  ['TEST_SET_TEMP_MEMORY_LIMIT', testCall(t.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, m.memory_limit)],
  ['TEST_DIRTY', dirty],
  ['TEST_CREATE_ACCESS', createAccess],
  ['TEST_ACCESS_REPLACE_IOAS', testCall(t.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, m.access_replace_ioas, { id: 'access' })],
  [
    'TEST_ACCESS_PAGES',
    testCall(t.IOMMU_TEST_OP_ACCESS_PAGES, m.access_pages, { id: 'access', outputs: ['out_access_pages_id'] }),
  ],
  [
    'TEST_DESTROY_ACCESS_PAGES',
    testCall(t.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, m.destroy_access_pages, { id: 'access' }),
  ],
  ['TEST_ACCESS_RW', accessRw],
  ['TEST_DMABUF_GET', dmabufGet],
  ['TEST_DMABUF_REVOKE', dmabufRevoke],
  [
    'TEST_MD_CHECK_IOTLB',
    testCall(t.IOMMU_TEST_OP_MD_CHECK_IOTLB, m.check_iotlb, { id: 'hwpt_id', rename: { iotlb_id: 'id' } }),
  ],
  [
    'TEST_DEV_CHECK_CACHE',
    testCall(t.IOMMU_TEST_OP_DEV_CHECK_CACHE, m.check_dev_cache, { id: 'idev_id', rename: { cache_id: 'id' } }),
  ],
  ['TEST_TRIGGER_IOPF', testCall(t.IOMMU_TEST_OP_TRIGGER_IOPF, m.trigger_iopf)],
  ['TEST_TRIGGER_VEVENT', testCall(t.IOMMU_TEST_OP_TRIGGER_VEVENT, m.trigger_vevent)],
  ['TEST_PASID_ATTACH', testCall(t.IOMMU_TEST_OP_PASID_ATTACH, m.pasid_attach, { id: 'stdev_id', outputs: ['pt_id'] })],
  [
    'TEST_PASID_REPLACE',
    testCall(t.IOMMU_TEST_OP_PASID_REPLACE, m.pasid_replace, { id: 'stdev_id', outputs: ['pt_id'] }),
  ],
  ['TEST_PASID_DETACH', testCall(t.IOMMU_TEST_OP_PASID_DETACH, m.pasid_detach, { id: 'stdev_id' })],
  ['TEST_PASID_CHECK_HWPT', testCall(t.IOMMU_TEST_OP_PASID_CHECK_HWPT, m.pasid_check, { id: 'stdev_id' })],
  [
    'CLOSE_ACCESS',
    (machine, input) => {
      machine.closeAccess(small(input['access']));
      return { ret: 'OK' };
    },
  ],
  [
    'SET_RLIMIT_MEMLOCK',
    (machine, input) => {
      const bytes = integer(input['bytes']);
      machine.process.rlimits.memlockBytes = bytes === UNLIMITED ? undefined : bytes;
      return { ret: 'OK' };
    },
  ],
  [
    'SET_CAPS',
    (machine, input) => {
      machine.process.setCapability('CAP_IPC_LOCK', small(input['ipc_lock']) !== 0);
      machine.process.setCapability('CAP_SYS_RESOURCE', small(input['sys_resource']) !== 0);
      return { ret: 'OK' };
    },
  ],
]);
