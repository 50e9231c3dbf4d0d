/**
 * The scenario format: what a file in scenarios/ may say. docs/scenarios.md explains it to people, docs/scenario.schema.json
 * to editors; both follow this declaration.
 *
 * A step is a mapping with one key, its kind. The schemas here check shapes and units; whether names refer to something is
 * checked by load.ts, which has the whole file in view.
 */
import { z } from 'zod';
import { FAULTS, type FaultId } from '../runtime/faults.js';
import { ERRNO, type ErrnoName } from '../uapi/errno.js';
import { NIC_PAIRS } from '../uapi/nic.js';
import { DIRTY_SOURCES } from '../migration/dirty-sources.js';
import { ATTACHED_DEVICE_POLICIES, CANCEL_PHASES, MIGRATION_FAILURES } from '../migration/request.js';
import { HOTPLUG_POLICIES } from '../vmm/hotplug.js';
import { MACHINES, type MachineName } from '../vmm/machines.js';
import { address, bandwidth, bdf, capability, count, deviations, duration, name, range, seed, size } from './fields.js';
import { pciFunction } from './hosts.js';

function keysOf<K extends string>(table: Readonly<Record<K, unknown>>): [K, ...K[]] {
  return Object.keys(table) as [K, ...K[]];
}

function oneOf<K extends string>(what: string, keys: [K, ...K[]]): z.ZodType<K, K> {
  return z.enum(keys, {
    error: (issue) => `unknown ${what} ${JSON.stringify(issue.input)}; one of ${keys.join(', ')}`,
  });
}

const errno = oneOf<ErrnoName>('errno', keysOf(ERRNO));
const machine = oneOf<MachineName>('vmm', keysOf(MACHINES));
const fault = oneOf<FaultId>('fault', keysOf(FAULTS));
/** What a VMM does about a device whose reserved regions lie over guest RAM (src/vmm/hotplug.ts). */
const hotplugPolicy = oneOf('hotplug-policy', [...HOTPLUG_POLICIES]);
const contiguity = z.enum(['scattered', 'short-runs', 'pages', 'huge-2m', 'huge-1g']);

const hostOptions = {
  /** Replaces the memory banks. */
  memory: z.array(range).min(1).optional(),
  kernel: z
    .string()
    .regex(/^\d+\.\d+/, 'expected a kernel release, e.g. 6.12.0')
    .optional(),
  'allow-unsafe-interrupts': z.boolean().optional(),
  'allow-mixed-msi': z.boolean().optional(),
  /** Added to the kernel's command line. */
  'command-line': z.string().optional(),
  /** Another IOVA window for doorbells in all IOMMUs: a kernel with MSI_IOVA_BASE changed. */
  'software-msi': range.optional(),
  /** More PCI functions; one with the address of a function of the profile replaces it. */
  devices: z.array(pciFunction).optional(),
  /** Text of reserved_regions files, as pasted from `grep -h .` over /sys/kernel/iommu_groups; applies to all devices. */
  'reserved-regions': z.string().optional(),
};

const host = z.union(
  [
    z.strictObject({ profile: z.string().min(1), ...hostOptions }),
    z.strictObject({ snapshot: z.string().min(1), ...hostOptions }),
  ],
  { error: 'a host has either profile or snapshot' },
);

const link = z.strictObject({ between: z.tuple([name, name]), bandwidth, latency: duration });

const workload = z.strictObject({ rate: size, 'working-set': size });

const guest = z.strictObject({
  on: name,
  vmm: machine,
  memory: size,
  'hotplug-policy': hotplugPolicy.default('reject'),
  vcpus: count(1, 512).optional(),
  'vcpu-vendor': z.enum(['intel', 'amd']).optional(),
  /** QEMU's machine property: false for machine types 7.0 and older. */
  'enforce-amd-1tb-hole': z.boolean().optional(),
  /** What RAM holds after boot. */
  content: z.enum(['zero', 'stamped']).optional(),
  contiguity: contiguity.optional(),
  /** vCPUs that dirty memory: bytes a second, in a working set. */
  workload: workload.optional(),
  /** `vsmmu`: an SMMUv3 of its own, carried by the host's; the first device freezes what it promises. */
  iommu: z.enum(['vsmmu']).optional(),
});

const process = z.strictObject({
  on: name,
  uid: count(0, 0xffff_ffff).default(0),
  capabilities: z.array(capability).default(['CAP_IPC_LOCK', 'CAP_SYS_RESOURCE']),
  memlock: size.optional(),
  /** I/O address spaces by name; every process has `main` when none are listed. */
  ioas: z.array(name).min(1).default(['main']),
});

/** Result name of a step, for `expect`. */
const as = name.optional();
const owner = { guest: name.optional(), process: name.optional() };

const steps = {
  boot: z.strictObject({ boot: name }),
  map: z.strictObject({
    map: z.strictObject({
      process: name,
      ioas: name.optional(),
      /** The kernel chooses when it is absent. */
      iova: address.optional(),
      length: size,
      /** Not fresh memory: a BAR of a device the process holds, as the process has it mapped. */
      bar: z.strictObject({ device: bdf, index: count(0, 5) }).optional(),
      access: z.enum(['r', 'w', 'rw']).default('rw'),
      contiguity: contiguity.default('pages'),
      as,
    }),
  }),
  unmap: z.strictObject({
    unmap: z.strictObject({ process: name, ioas: name.optional(), iova: address, length: size, as }),
  }),
  copy: z.strictObject({
    copy: z.strictObject({
      process: name,
      from: z.strictObject({ ioas: name, iova: address }),
      to: z.strictObject({ ioas: name, iova: address }),
      length: size,
      as,
    }),
  }),
  allow: z.strictObject({
    allow: z.strictObject({ process: name, ioas: name.optional(), ranges: z.array(range), as }),
  }),
  plug: z.strictObject({
    plug: z.strictObject({
      /** `host`: a card is put into the machine. `guest`, `process`: it takes the device. */
      host: name.optional(),
      ...owner,
      device: bdf,
      ioas: name.optional(),
      backend: z.enum(['iommufd']).default('iommufd'),
      /** Of a guest: which comes first in a new address space (QEMU attaches first; a map is what is refused then). */
      order: z.enum(['map-first', 'attach-first']).optional(),
      as,
    }),
  }),
  unplug: z.strictObject({
    unplug: z.strictObject({
      host: name.optional(),
      ...owner,
      device: bdf,
      /** Of a host: the card is torn out, nobody is asked. */
      surprise: z.boolean().optional(),
      as,
    }),
  }),
  replace: z.strictObject({ replace: z.strictObject({ process: name, device: bdf, ioas: name, as }) }),
  grow: z.strictObject({ grow: z.strictObject({ guest: name, start: address, size, as }) }),
  dma: z.strictObject({
    dma: z.strictObject({
      ...owner,
      device: bdf,
      /** Bytes the device writes; without it the device reads. */
      write: z.strictObject({ to: address, length: size, pattern: address.default(0x5an) }).optional(),
      copy: z.strictObject({ from: address, to: address, length: size }).optional(),
      as,
    }),
  }),
  nic: z.strictObject({
    nic: z.strictObject({
      ...owner,
      device: bdf,
      /** Where its driver puts rings and buffers: memory of the owner, by the addresses the device uses. */
      at: address,
      /** Frames sent to itself through a pair of queues. */
      frames: count(1, 65_536).default(8),
      length: size.default(1500n),
      pair: count(0, NIC_PAIRS - 1).default(0),
      as,
    }),
  }),
  work: z.strictObject({
    /** A DMA engine's driver works: transfer after transfer, each with an interrupt that must come exactly once. */
    work: z.strictObject({
      ...owner,
      device: bdf,
      /** Where the engine writes: memory of the owner, `length` bytes for each of 8 places in turn. */
      at: address,
      transfers: count(1, 100_000).default(100),
      length: size.default(4096n),
      vector: count(0, 3).default(0),
      /** Time for which the driver does something else while a transfer runs. */
      every: duration.default(0),
      as,
    }),
  }),
  workload: z.strictObject({
    /** From now on the vCPUs of a guest write that much. */
    workload: z.strictObject({ guest: name, ...workload.shape, as }),
  }),
  'place-bar': z.strictObject({
    /** A guest finds a place for the BAR of a hot-plugged device among what its VMM publishes. */
    'place-bar': z.strictObject({
      guest: name,
      size,
      /** A device of the host: its group's reserved regions are the holes. */
      device: bdf,
      /** Whether the VMM publishes them to the guest. */
      'publish-holes': z.boolean(),
      as,
    }),
  }),
  configure: z.strictObject({
    configure: z.strictObject({
      ...owner,
      device: bdf,
      'memory-decode': z.boolean().optional(),
      'bus-master': z.boolean().optional(),
      as,
    }),
  }),
  interrupt: z.strictObject({
    interrupt: z.strictObject({ ...owner, device: bdf, vector: count(0, 3).default(0), as }),
  }),
  migrate: z.strictObject({
    migrate: z.strictObject({
      guest: name,
      to: name,
      'downtime-limit': duration.optional(),
      'max-rounds': count(1, 1000).optional(),
      /** What happens to a guest that dirties memory faster than the link carries it. */
      'on-no-convergence': z.enum(['cancel', 'stop']).optional(),
      /** What happens to passthrough devices the guest has: QEMU refuses to migrate. */
      'attached-devices': z.enum(ATTACHED_DEVICE_POLICIES).default('migrate'),
      /** Which function of the destination takes the place of which of the source; the same address for those not listed. */
      devices: z.record(bdf, bdf).default({}),
      /** Who knows what devices have written. */
      'dirty-source': z.enum(DIRTY_SOURCES).default('auto'),
      /** Bandwidth the expected downtime is reckoned with, instead of the one measured. */
      'switchover-bandwidth': bandwidth.optional(),
      /** The guest is not stopped before the destination has the devices' initial data. */
      'switchover-ack': z.boolean().default(false),
      'cancel-at': z.enum(CANCEL_PHASES).optional(),
      'cancel-after': duration.optional(),
      /** Nothing moves: says what would not fit, now or at a later hot-plug. */
      'dry-run': z.boolean().default(false),
      as,
    }),
  }),
  fault: z.strictObject({
    fault: z.strictObject({
      host: name.optional(),
      link: z.tuple([name, name]).optional(),
      fault: fault.optional(),
      /** Calls that pass before the fault strikes, and how many it strikes. */
      skip: count(0, 1_000_000).optional(),
      count: count(1, 1_000_000).optional(),
      /** The fault is taken away again. */
      off: z.boolean().default(false),
    }),
  }),
  wait: z.strictObject({ wait: duration }),
  expect: z.strictObject({
    expect: z.strictObject({
      /** A result (`as:`), a guest or a process. */
      of: name,
      verdict: z.enum(['ok', 'refused', 'killed', 'silent']).optional(),
      errno: errno.optional(),
      /** Why a migration did not happen. */
      reason: z.enum(MIGRATION_FAILURES).optional(),
      conflict: z
        .strictObject({
          start: address.optional(),
          last: address.optional(),
          kind: z
            .enum(['hardware-msi', 'software-msi', 'reserved', 'direct', 'direct-relaxable', 'aperture'])
            .optional(),
          owner: z.string().optional(),
        })
        .optional(),
      landed: z
        .strictObject({
          kind: z.enum(['memory', 'peer', 'doorbell', 'aborted', 'nowhere']),
          where: z.string().optional(),
          /** The component that sent it there. */
          hop: z.string().optional(),
        })
        .optional(),
      /** Guest memory that was taken from the devices so that they could be attached. */
      lost: z.array(range).optional(),
      memory: z.enum(['intact']).optional(),
      'runs-on': name.optional(),
      state: z.enum(['running', 'killed']).optional(),
      'downtime-below': duration.optional(),
      /** Of a process: what its IOAS says is usable. */
      usable: z.strictObject({ ioas: name.optional(), range }).optional(),
      unusable: z.strictObject({ ioas: name.optional(), range }).optional(),
      /** Of a process: what the reserved_regions file of a device's group on its host names, or does not name. */
      /** Of a guest: whether a device of its machine lies in a region that a device's group on its host reserves. */
      'machine-device': z.strictObject({ name: z.string(), device: bdf, clashes: z.boolean() }).optional(),
      reserved: z.strictObject({ device: bdf, range }).optional(),
      'not-reserved': z.strictObject({ device: bdf, range }).optional(),
    }),
  }),
};

const plainSteps = [
  steps.boot,
  steps.map,
  steps.unmap,
  steps.copy,
  steps.allow,
  steps.plug,
  steps.unplug,
  steps.replace,
  steps.grow,
  steps.dma,
  steps.nic,
  steps.work,
  steps.workload,
  steps['place-bar'],
  steps.configure,
  steps.interrupt,
  steps.migrate,
  steps.fault,
  steps.wait,
  steps.expect,
] as const;

/** Every kind of step. */
export const STEP_KINDS = [...keysOf(steps), 'parallel'] as const;

const stepError = `a step has one of these keys, and no other: ${STEP_KINDS.join(', ')}`;
const plainStep = z.union(plainSteps, { error: stepError });
const parallel = z.strictObject({ parallel: z.array(z.array(plainStep).min(1)).min(2) });
const step = z.union([...plainSteps, parallel], { error: stepError });

function named<S extends z.ZodType>(schema: S): z.ZodRecord<typeof name, S> {
  return z.record(name, schema);
}

/** A scenario file. */
export const scenarioFile = z.strictObject({
  title: z.string({ error: 'a scenario has a title' }).min(1),
  /** Rows of the requirement documents this scenario covers. */
  covers: z.array(z.string()).default([]),
  /** `random`: the seed decides. Or where the schedule is not in order, by node: `main` and the hosts. */
  schedule: z.union([z.enum(['in-order', 'random']), z.record(name, deviations)]).default('in-order'),
  /** The seed that the schedule is of, whatever seed the run is given. */
  seed: seed.optional(),
  /** The rule that this scenario breaks, as a failed run names it: it must. */
  fails: z.string().min(1).optional(),
  /** Virtual time after which the run is given up. */
  limit: duration.refine((ns) => ns > 0, 'expected a duration above 0').optional(),
  hosts: named(host),
  links: z.array(link).default([]),
  guests: named(guest).default({}),
  processes: named(process).default({}),
  /**
   * What makes this scenario fail, which proves that it checks something: a fault, a host with other memory, or `no-faults`, its own
   * `fault` steps left out.
   */
  'fails-with': z
    .union([
      z.literal('no-faults'),
      /** A host with other memory. */
      z.strictObject({ host: name, memory: z.array(range).min(1) }),
      z.strictObject({
        fault,
        host: name.optional(),
        skip: count(0, 1_000_000).optional(),
        count: count(1, 1_000_000).optional(),
      }),
    ])
    .optional(),
  steps: z.array(step, { error: 'a scenario has steps' }).min(1, 'a scenario has steps'),
});

export type ScenarioFile = z.output<typeof scenarioFile>;
export type HostEntry = z.output<typeof host>;

/** What a host is based on: a shipped description by name, or with this extension a file by a path relative to the scenario's. */
export const HOST_FILES = { profile: '.yaml', snapshot: '.json' } as const;

export type GuestEntry = z.output<typeof guest>;
export type ProcessEntry = z.output<typeof process>;
export type Step = z.output<typeof step>;
export type PlainStep = z.output<typeof plainStep>;
export type Expectation = z.output<typeof steps.expect>['expect'];

/** The JSON Schema of a scenario file, for editors. */
export function scenarioJsonSchema(): object {
  return z.toJSONSchema(scenarioFile, {
    io: 'input',
    unrepresentable: 'any',
    override: ({ zodSchema, jsonSchema }) => {
      const { type } = zodSchema._zod.def;
      if (type === 'bigint') jsonSchema.type = 'integer';
      // A default is what the program fills in, as its own type; the file would say it differently.
      delete jsonSchema.default;
    },
  });
}

/** The same as text, as it lies in docs/scenario.schema.json. */
export function scenarioSchemaText(): string {
  return `${JSON.stringify(scenarioJsonSchema(), undefined, 2)}\n`;
}
