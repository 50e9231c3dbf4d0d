/**
 * Kernel-only scenarios: tasks that make system calls side by side on a kernel without a machine around it; the format, and its way to a
 * {@link Program}.
 *
 * A call is a mapping with one key, the operation, and may say beside it what it must answer. Names are checked here: something that is
 * used must be made somewhere, by whichever task.
 */
import { z } from 'zod';
import { FAULTS, type FaultId } from '../runtime/faults.js';
import { isHeldBack, namedBy, namesSomebody, TIME } from '../runtime/deviations.js';
import { ERRNO } from '../uapi/errno.js';
import { ARGUMENT_BYTES, DATA_BYTES, MACHINE_MEMORY_BYTES, SETUP_TASK } from '../runtime/kernel-only.js';
import type { Call, CardState, GuestSte, OperationName, Operations, Program } from '../host/program.js';
import { address, capability, count, deviations, lengthAboveZero, name, range, seed, size } from './fields.js';
import { sizeText } from './units.js';
import { InputError, type InputProblem, type SourceText, type ValuePath } from './text.js';

const GUEST_STES = ['bypass', 'abort'] as const satisfies readonly GuestSte[];
const CARD_STATES = ['running', 'stop', 'stop-copy', 'resuming'] as const satisfies readonly CardState[];

/** There is no room for a page of 1 GiB. */
const contiguity = z.enum(
  ['scattered', 'short-runs', 'pages', 'huge-2m'],
  'expected scattered, short-runs, pages or huge-2m',
);
const prot = z.enum(['r', 'w', 'rw']).default('rw');
const from = z.strictObject({ buffer: name.optional(), offset: address.default(0n) }).default({ offset: 0n });
/** Tasks whose names a schedule and a report have other uses for. */
const taskName = name.refine(
  (text) => text !== TIME && text !== SETUP_TASK,
  `a task is not called ${TIME}, which passes, nor ${SETUP_TASK}, which comes before all tasks`,
);
/** A bit a page: what a bitmap of {@link DATA_BYTES} speaks of. */
const DIRTY_BYTES = DATA_BYTES * 8 * 4096;
/** What a device moves in one go. */
const DMA_BYTES = 2 ** 30;
const sizeUpTo = (most: number, why: string): z.ZodType<bigint, string> =>
  size.refine((bytes) => bytes <= BigInt(most), `expected at most ${sizeText(BigInt(most))}: ${why}`);
const NO_ROOM = 'a task has no more room for it';
const place = z.strictObject({ ioas: name.default('main'), iova: address });
/** 0 is none. */
const pasid = count(0, 2 ** 20 - 1);
const space = { ioas: name.default('main') };

/** What each operation is given; `as` names what it makes. */
export const operations = {
  ioas: z.strictObject({ as: name }),
  map: z.strictObject({ ...space, iova: address.optional(), length: size, from, prot, as: name.optional() }),
  'map-file': z.strictObject({
    ...space,
    iova: address.optional(),
    length: size,
    file: name,
    offset: address.default(0n),
    prot,
  }),
  unmap: z.strictObject({ ...space, iova: address.optional(), length: size.optional() }),
  copy: z.strictObject({ from: place, to: place, length: size }),
  allow: z.strictObject({ ...space, ranges: z.array(range) }),
  reserve: z.strictObject({ ...space, start: address, last: address }),
  'vfio-ioas': z.strictObject(space),
  'vfio-unmap': z.strictObject({ iova: address, length: size }),
  'huge-pages': z.strictObject({ ...space, on: z.boolean() }),
  'change-process': z.strictObject({}),
  destroy: z.strictObject({ object: name }),
  device: z.strictObject({
    as: name,
    to: name.default('main'),
    dirty: z.boolean().default(true),
    pasids: z.boolean().default(false),
    beside: name.optional(),
  }),
  replace: z.strictObject({ device: name, to: name }),
  unplug: z.strictObject({ device: name }),
  'attach-pasid': z.strictObject({ device: name, pasid, to: name }),
  'replace-pasid': z.strictObject({ device: name, pasid, to: name }),
  'detach-pasid': z.strictObject({ device: name, pasid }),
  hwpt: z.strictObject({
    as: name,
    device: name,
    on: name.default('main'),
    dirty: z.boolean().default(false),
    nesting: z.boolean().default(false),
    pasids: z.boolean().default(false),
    'fault-queue': name.optional(),
    iotlb: count(0, 0xffff_ffff).optional(),
    'guest-ste': z.enum(GUEST_STES).optional(),
    times: count(1, 1024).default(1),
  }),
  'track-dirty': z.strictObject({ hwpt: name, on: z.boolean() }),
  'read-dirty': z.strictObject({
    hwpt: name,
    iova: address,
    length: sizeUpTo(DIRTY_BYTES, NO_ROOM),
    clear: z.boolean().default(true),
  }),
  dma: z.strictObject({
    device: name,
    iova: address,
    length: sizeUpTo(DMA_BYTES, 'a run of more takes too long'),
    write: z.boolean().default(true),
  }),
  msi: z.strictObject({ device: name, doorbell: count(0, 1).default(0) }),
  card: z.strictObject({ as: name }),
  'set-state': z.strictObject({ card: name, state: z.enum(CARD_STATES) }),
  'card-dma': z.strictObject({ card: name }),
  save: z.strictObject({ card: name, as: name }),
  load: z.strictObject({ card: name, from: name }),
  access: z.strictObject({ as: name, ...space, pins: z.boolean().default(true) }),
  pin: z.strictObject({ access: name, iova: address, length: size, as: name, syz: z.boolean().default(false) }),
  unpin: z.strictObject({ access: name, pin: name }),
  'access-rw': z.strictObject({
    access: name,
    iova: address,
    length: sizeUpTo(DATA_BYTES, NO_ROOM),
    write: z.boolean().default(true),
    syz: z.boolean().default(false),
  }),
  'access-replace': z.strictObject({ access: name, ioas: name }),
  'fault-queue': z.strictObject({ as: name }),
  'page-request': z.strictObject({
    device: name,
    iova: address,
    group: count(0, 511).default(0),
    pasid: pasid.default(0),
  }),
  'read-faults': z.strictObject({ queue: name, as: name.optional() }),
  respond: z.strictObject({ queue: name, to: name, success: z.boolean().default(true) }),
  viommu: z.strictObject({ as: name, device: name, on: name }),
  vdevice: z.strictObject({ as: name, viommu: name, device: name, id: address }),
  veventq: z.strictObject({ as: name, viommu: name, depth: count(1, 1 << 19).default(8) }),
  vevent: z.strictObject({ device: name }),
  'read-events': z.strictObject({ queue: name, length: count(1, 65_536).default(4096) }),
  mmap: z.strictObject({ as: name, viommu: name }),
  munmap: z.strictObject({ mapping: name }),
  'dma-buf': z.strictObject({ as: name, length: size }),
  revoke: z.strictObject({ file: name, revoked: z.boolean().default(true) }),
  close: z.strictObject({ file: name }),
} satisfies { readonly [K in OperationName]: z.ZodType };

/** Fields that name something another call makes. */
const USES = [
  'ioas',
  'to',
  'on',
  'device',
  'beside',
  'card',
  'object',
  'hwpt',
  'access',
  'pin',
  'queue',
  'viommu',
  'mapping',
  'file',
  'fault-queue',
] as const;

const answer = z.enum(['ok', ...(Object.keys(ERRNO) as [string, ...string[]])], {
  error: (issue) => `unknown errno ${JSON.stringify(issue.input)}`,
});
const expected = z
  .union([answer.transform((one) => [one]), z.array(answer).min(1)], {
    error: 'expected ok or the name of an error, e.g. EINVAL, or a list of those',
  })
  .optional();

const names = Object.keys(operations) as [OperationName, ...OperationName[]];

/** What is wrong with the keys of a call. */
function callError({ input }: { readonly input?: unknown }): string {
  const given = typeof input === 'object' && input !== null ? Object.keys(input).filter((key) => key !== 'expect') : [];
  const found = given.length === 0 ? '' : `, found ${given.slice(0, 4).join(' and ')}`;
  return `a call has one of these keys${found}: ${names.join(', ')}; and may have expect`;
}

const call = z.union(
  names.map((op) => z.strictObject({ [op]: operations[op], expect: expected })) as unknown as [z.ZodType, z.ZodType],
  { error: callError },
);
const calls = z.array(call).min(1);
const fault = z.enum(Object.keys(FAULTS) as [FaultId, ...FaultId[]], {
  error: (issue) => `unknown fault ${JSON.stringify(issue.input)}`,
});
const armed = z.strictObject({ fault, skip: count(0, 1_000_000).optional(), count: count(1, 1_000_000).optional() });

const process = z.strictObject({
  uid: count(0, 0xffff_ffff).default(0),
  capabilities: z.array(capability).default([]),
  memlock: size.optional(),
});

/** A kernel-only scenario file. */
export const kernelOnlyFile = z.strictObject({
  title: z.string({ error: 'a scenario has a title' }).min(1),
  covers: z.array(z.string()).default([]),
  'kernel-only': z.strictObject({
    /** `mock`: the selftest's devices. `arm-smmu-v3`: an SMMU with its driver. */
    iommu: z.enum(['mock', 'arm-smmu-v3']).default('mock'),
    ats: z.boolean().default(false),
  }),
  processes: z.record(name, process).default({ p: { uid: 0, capabilities: [] } }),
  buffers: z
    .record(name, z.strictObject({ length: lengthAboveZero, contiguity: contiguity.default('pages') }))
    .default({ memory: { length: 65_536n, contiguity: 'pages' } }),
  files: z.record(name, z.strictObject({ length: lengthAboveZero })).default({}),
  /** Historical faults that are in the kernel in every run. */
  faults: z.array(armed).default([]),
  'fails-with': armed.optional(),
  setup: z.array(call).default([]),
  tasks: z.record(taskName, z.union([calls, z.strictObject({ process: name, calls })])),
  /** A schedule: where others go on than the one that runs. In order where nothing is said. */
  schedule: deviations.default([]),
  /** The seed that the schedule is of, whatever seed the run is given. */
  seed: seed.optional(),
  /** The rule that this scenario breaks, as a failed run names it: it must. */
  fails: z.string().min(1).optional(),
});

type KernelOnlyFile = z.output<typeof kernelOnlyFile>;
type RawCall = Readonly<Record<string, unknown>>;

/** Whether a file is one of these. */
export function isKernelOnly(value: unknown): boolean {
  return typeof value === 'object' && value !== null && 'kernel-only' in value;
}

function callOf(source: SourceText, raw: RawCall, path: ValuePath): Call {
  const op = names.find((candidate) => candidate in raw);
  if (op === undefined) throw new InputError([source.problem(path, callError({ input: raw }))]);
  const expect = raw['expect'] as readonly string[] | undefined;
  return {
    op,
    args: raw[op] as Operations[OperationName],
    line: source.position(path).line,
    ...(expect === undefined ? {} : { expect }),
  };
}

function namesIn(value: unknown, keys: readonly string[]): string[] {
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) =>
    typeof inner === 'string' ? (keys.includes(key) ? [inner] : []) : namesIn(inner, keys),
  );
}

interface PlacedCall {
  readonly call: Call;
  readonly path: ValuePath;
}

/** Arguments that say nothing to the mock. */
const SMMU_ONLY: Readonly<Record<string, string>> = {
  beside: 'its devices have slots',
  'guest-ste': 'its guests have stream tables',
};

/** Names that are used and made nowhere. */
function unknownNames(source: SourceText, given: KernelOnlyFile, all: readonly PlacedCall[]): InputProblem[] {
  const made = new Set([
    ...all.flatMap(({ call: { args } }) => namesIn(args, ['as'])),
    ...all.flatMap(({ call: { op, args } }) =>
      op === 'device' ? namesIn(args, ['as']).map((as) => `${as}-hwpt`) : [],
    ),
    ...Object.keys(given.files),
    'main',
  ]);
  return all.flatMap(({ call: { op, args }, path }) => {
    const unknown = namesIn(args, USES).filter((used) => !made.has(used));
    const buffers = namesIn(args, ['buffer']).filter((used) => !(used in given.buffers));
    return [...unknown, ...buffers].map((used) => source.problem([...path, op], `nothing is called ${used}`));
  });
}

/** Why a fault can never strike on such a machine; undefined where it may. */
function whyNever(id: FaultId, iommu: Program['iommu']): string | undefined {
  const [part = ''] = id.split('.');
  const { layer } = FAULTS[id];
  if (part === 'its' || layer === 'vmm' || layer === 'link' || layer === 'testbed')
    return `${id} cannot strike: a kernel-only machine has none of that`;
  const needed = { smmu: 'arm-smmu-v3', mock: 'mock' }[part] ?? iommu;
  return needed === iommu ? undefined : `${id} cannot strike without iommu: ${needed}`;
}

/** Who is named in the schedule and is nobody. */
function strangers(source: SourceText, { schedule, tasks }: KernelOnlyFile): InputProblem[] {
  const names = Object.keys(tasks);
  return schedule.flatMap((deviation, i) => {
    if (namesSomebody(deviation, names)) return [];
    const key = isHeldBack(deviation) ? 'hold' : 'to';
    return [source.problem(['schedule', i, key], `no task is called ${namedBy(deviation)}`)];
  });
}

/** What does not fit into the machine's memory: each process has its own of every buffer, and room for each task's arguments. */
function tooMuch(source: SourceText, { processes, buffers, files }: KernelOnlyFile, tasks: number): InputProblem[] {
  const copies = BigInt(Object.keys(processes).length);
  const inPages = (length: bigint, page: bigint): bigint => ((length + page - 1n) / page) * page;
  const wanted = [
    ...Object.entries(buffers).map(([key, { length, contiguity: how }]) => ({
      path: ['buffers', key],
      bytes: copies * inPages(length, how === 'huge-2m' ? 2n << 20n : 4096n),
    })),
    ...Object.entries(files).map(([key, { length }]) => ({ path: ['files', key], bytes: inPages(length, 4096n) })),
  ];
  let left = BigInt(MACHINE_MEMORY_BYTES - (tasks + 1) * ARGUMENT_BYTES);
  for (const { path, bytes } of wanted) {
    left -= bytes;
    const message = `no room for it in the ${sizeText(BigInt(MACHINE_MEMORY_BYTES))} of a kernel-only machine`;
    if (left < 0n) return [source.problem(path, message)];
  }
  return [];
}

/** A file as a program. @throws InputError with every name that stands for nothing */
export function programOf(source: SourceText, given: KernelOnlyFile): Program {
  const [firstBuffer = 'memory'] = Object.keys(given.buffers);
  const [firstProcess = 'p'] = Object.keys(given.processes);
  const place = (raw: unknown, path: ValuePath): PlacedCall => {
    const made = callOf(source, raw as RawCall, path);
    if (made.op !== 'map') return { call: made, path };
    const args = made.args as Operations['map'];
    const buffer = (args.from as { buffer?: string }).buffer ?? firstBuffer;
    return { call: { ...made, args: { ...args, from: { buffer, offset: args.from.offset } } }, path };
  };
  const own = given.setup.map((raw, i) => place(raw, ['setup', i]));
  const hasMain = own.some(({ call: { op, args } }) => op === 'ioas' && namesIn(args, ['as']).includes('main'));
  const tasks = Object.entries(given.tasks).map(([task, entry]) => {
    const isList = Array.isArray(entry);
    const raws: readonly unknown[] = isList ? entry : entry.calls;
    const base = isList ? ['tasks', task] : ['tasks', task, 'calls'];
    return {
      name: task,
      process: isList ? firstProcess : entry.process,
      placed: raws.map((raw, i) => place(raw, [...base, i])),
    };
  });
  const all = [...own, ...tasks.flatMap(({ placed }) => placed)];
  const problems = unknownNames(source, given, all);
  for (const { name: task, process: owner } of tasks)
    if (!(owner in given.processes)) problems.push(source.problem(['tasks', task], `no process is called ${owner}`));
  const { iommu, ats } = given['kernel-only'];
  if (ats && iommu === 'mock')
    problems.push(source.problem(['kernel-only', 'ats'], 'only devices behind iommu: arm-smmu-v3 have ats'));
  for (const { call: made, path } of all) {
    const key = Object.keys(SMMU_ONLY).find((only) => iommu === 'mock' && namesIn(made.args, [only]).length > 0);
    if (key !== undefined)
      problems.push(source.problem([...path, made.op, key], `only with iommu: arm-smmu-v3: ${SMMU_ONLY[key] ?? ''}`));
  }
  const named = [
    ...given.faults.map(({ fault: id }, i) => ({ id, path: ['faults', i, 'fault'] })),
    ...(given['fails-with'] === undefined ? [] : [{ id: given['fails-with'].fault, path: ['fails-with', 'fault'] }]),
  ];
  for (const { id, path } of named) {
    const why = whyNever(id, iommu);
    if (why !== undefined) problems.push(source.problem(path, why));
  }
  problems.push(...strangers(source, given), ...tooMuch(source, given, tasks.length));
  if (tasks.length === 0) problems.push(source.problem(['tasks'], 'a kernel-only scenario has tasks'));
  if (problems.length > 0) throw new InputError(problems);
  const main: Call[] = hasMain ? [] : [{ op: 'ioas', args: { as: 'main' } }];
  return {
    iommu,
    ats,
    processes: Object.entries(given.processes).map(([key, { uid, capabilities, memlock }]) => ({
      name: key,
      uid,
      capabilities,
      ...(memlock === undefined ? {} : { memlockBytes: memlock }),
    })),
    buffers: Object.entries(given.buffers).map(([key, { length, contiguity: how }]) => ({
      name: key,
      lengthBytes: length,
      contiguity: how,
    })),
    files: Object.entries(given.files).map(([key, { length }]) => ({ name: key, lengthBytes: length })),
    faults: given.faults.map(withoutUndefined),
    setup: [...main, ...own.map(({ call: made }) => made)],
    tasks: tasks.map(({ name: task, process: owner, placed }) => ({
      name: task,
      process: owner,
      calls: placed.map(({ call: made }) => made),
    })),
  };
}

/** A fault as a program has it. */
export function withoutUndefined({ fault: id, skip, count: times }: z.output<typeof armed>): Program['faults'][number] {
  return { fault: id, ...(skip === undefined ? {} : { skip }), ...(times === undefined ? {} : { count: times }) };
}
