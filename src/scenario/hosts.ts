/**
 * Host profiles: machines as YAML files, turned into {@link HostDescription}.
 *
 * The shipped profiles are in scenarios/hosts/*.yaml, imported snapshots in scenarios/hosts/snapshots/*.json. A profile is
 * checked here for what would make a board that cannot be: banks that overlap, references to nothing, functions outside
 * every bridge. What the firmware and the kernel make of a machine is not decided here.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { basename, extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import type {
  AddressRange,
  BridgeWindow,
  HostDescription,
  IdMapping,
  InboundWindow,
  PciFunctionDescription,
} from '../hardware/description.js';
import { address, bdf, count, findOverlap, range, rangeShape, resolveRange, size } from './fields.js';
import { snapshotToHost } from './snapshot.js';
import { InputError, SourceText, type InputProblem, type ValuePath } from './text.js';
import { hexText } from './units.js';

const identifier = z.string().regex(/^[A-Za-z0-9][\w.:@-]{0,63}$/, 'expected an identifier');

const iommu = z.strictObject({
  name: identifier,
  base: address,
  stage1: z.boolean().default(true),
  stage2: z.boolean().default(true),
  'input-bits': count(32, 52).default(48),
  'output-bits': z.union(
    [32n, 36n, 40n, 42n, 44n, 48n, 52n].map((bits) => z.literal(bits)),
    { error: 'output-bits is one of 32, 36, 40, 42, 44, 48, 52' },
  ),
  httu: z.enum(['none', 'access', 'dirty']).default('none'),
  granules: z
    .array(z.enum(['4k', '16k', '64k']))
    .min(1)
    .default(['4k']),
  'stream-id-bits': count(8, 32).default(16),
  'range-invalidation': z.boolean().default(false),
  'forced-write-back': z.boolean().optional(),
  ats: z.boolean().optional(),
  pri: z.boolean().optional(),
  'substream-id-bits': count(1, 20).optional(),
  'break-before-make-level': count(0, 2).optional(),
  'fully-coherent-masters': z.boolean().optional(),
  'software-msi': range.optional(),
  kind: z.enum(['arm-smmu-v3', 'arm-smmu', 'intel-vtd', 'amd-vi', 'virtio-iommu']).optional(),
  'caches-not-present': z.boolean().optional(),
  'ignores-ht-range': z.boolean().optional(),
  'probed-regions': z.array(z.lazy(() => reservedRegion)).optional(),
});

const msiController = z.strictObject({
  name: identifier,
  kind: z.enum(['its', 'gicv2m', 'x86', 'in-rc']),
  base: address,
  size: size.optional(),
  'bypasses-iommu': z.boolean().default(false),
  isolated: z.boolean().default(true),
});

const bridgeWindow = z
  .strictObject({ ...rangeShape, 'cpu-start': address.optional(), prefetchable: z.boolean().default(false) })
  .transform((given, context): BridgeWindow => {
    const { start, last } = resolveRange(given, context);
    return { start, last, cpuStart: given['cpu-start'] ?? start, prefetchable: given.prefetchable };
  });

/** Requester IDs from `first` on, `count` of them, are `id` and on at `target`. */
const idMapping = z.strictObject({
  first: count(0, 0xffff),
  count: count(1, 0x1_0000),
  target: identifier,
  id: count(0, 0xffff_ffff),
});

const inboundWindow = z
  .strictObject({ ...rangeShape, 'cpu-start': address.optional() })
  .transform((given, context): InboundWindow => {
    const { start, last } = resolveRange(given, context);
    return { start, last, cpuStart: given['cpu-start'] ?? start };
  });

const busNumbers = z
  .tuple([count(0, 255), count(0, 255)])
  .refine(([first, last]) => first <= last, 'bus numbers are reversed');

const hostBridge = z.strictObject({
  name: identifier,
  segment: count(0, 0xffff).default(0),
  buses: busNumbers.default([0, 255]),
  ecam: range.optional(),
  windows: z.array(bridgeWindow).default([]),
  iommu: identifier.optional(),
  msi: identifier.optional(),
  'stream-id-base': count(0, 0xffff_ffff).default(0),
  'iommu-map': z.array(idMapping).optional(),
  'msi-map': z.array(idMapping).optional(),
  'requester-id-mask': count(0, 0xffff).optional(),
  'dma-ranges': z.array(inboundWindow).min(1).optional(),
  'abort-ranges': z.array(range).optional(),
  'peer-to-peer': z.boolean().optional(),
});

const bar = z.strictObject({ index: count(0, 5), size, is64: z.boolean().default(false), start: address.optional() });

const bridge = z.strictObject({ buses: busNumbers, memory: range.optional(), prefetchable: range.optional() });
const slot = z.strictObject({ number: count(0, 8191), surprise: z.boolean().default(false) });
const sriov = z.strictObject({
  total: count(1, 256),
  enabled: count(0, 256).default(0),
  offset: count(0, 0xffff),
  stride: count(0, 0xffff),
  device: count(0, 0xffff),
});

/** How a card migrates; a DMA engine or a NIC with none of it cannot. */
const migration = z.strictObject({
  p2p: z.boolean().default(true),
  'pre-copy': z.boolean().default(true),
  /** On-card context memory. */
  context: size
    .default(65536n)
    .refine((bytes) => bytes % 4096n === 0n && bytes <= 1n << 28n, 'whole pages of 4 KiB, at most 256 MiB'),
  'dma-logging': z.boolean().default(true),
});

/** A PCI function as profiles and the `devices` of a scenario's host give it. */
export const pciFunction = z.strictObject({
  bdf,
  model: z.enum(['dma-engine', 'nic', 'generic', 'bridge']).default('dma-engine'),
  vendor: count(0, 0xffff),
  device: count(0, 0xffff),
  class: count(0, 0xff_ffff),
  driver: identifier.optional(),
  bars: z.array(bar).max(6).optional(),
  msi: identifier.optional(),
  absent: z.boolean().optional(),
  type: z
    .enum([
      'endpoint',
      'rc-integrated-endpoint',
      'root-port',
      'upstream-port',
      'downstream-port',
      'pcie-to-pci-bridge',
      'conventional',
      'conventional-bridge',
    ])
    .optional(),
  bridge: bridge.optional(),
  slot: slot.optional(),
  acs: z.union([z.literal('none'), z.array(z.enum(['SV', 'TB', 'RR', 'CR', 'UF', 'EC', 'DT']))]).optional(),
  'internal-peer-to-peer': z.boolean().optional(),
  ats: z.boolean().optional(),
  sriov: sriov.optional(),
  physfn: bdf.optional(),
  migration: migration.optional(),
});

const reservedRegion = z
  .strictObject({
    start: address,
    last: address,
    type: z.enum(['direct', 'direct-relaxable', 'reserved', 'msi', 'software-msi']),
    owner: z.string().min(1).max(200),
    table: z.literal('rmrr').optional(),
    devices: z.array(bdf).optional(),
  })
  .refine((region) => region.start <= region.last, 'region is reversed');

/** A host profile file. */
export const hostProfile = z.strictObject({
  title: z.string().min(1),
  sources: z.array(z.string()).default([]),
  arch: z.enum(['arm64', 'x86']),
  kernel: z
    .string()
    .regex(/^\d+\.\d+/, 'expected a kernel release, e.g. 6.12.0')
    .default('7.3.4'),
  'page-size': z.enum(['4 KiB', '64 KiB']).default('4 KiB'),
  memory: z.array(range).min(1),
  iommus: z.array(iommu).default([]),
  'msi-controllers': z.array(msiController).default([]),
  'host-bridges': z.array(hostBridge).default([]),
  functions: z.array(pciFunction).default([]),
  'reserved-regions': z.array(reservedRegion).default([]),
  firmware: z.enum(['acpi', 'device-tree']).optional(),
  'command-line': z.string().optional(),
  'allow-unsafe-interrupts': z.boolean().default(false),
  'allow-mixed-msi': z.boolean().default(false),
});

type HostProfile = z.output<typeof hostProfile>;

/** The value's own keys, without those that are undefined. */
function given<T extends object>(values: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  const present = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(present) as { [K in keyof T]: Exclude<T[K], undefined> };
}

/** A function of a profile as the board wants it. */
export function functionDescription(fn: z.output<typeof pciFunction>): PciFunctionDescription {
  const { bars, bridge: leadsTo, sriov: virtual, migration: cardMigration } = fn;
  return given({
    bdf: fn.bdf,
    model: fn.model,
    vendor: fn.vendor,
    device: fn.device,
    classCode: fn.class,
    driver: fn.driver,
    msi: fn.msi,
    absent: fn.absent,
    type: fn.type,
    slot: fn.slot,
    acs: fn.acs,
    internalPeerToPeer: fn['internal-peer-to-peer'],
    ats: fn.ats,
    physfn: fn.physfn,
    bridge:
      leadsTo &&
      given({
        secondaryBus: leadsTo.buses[0],
        subordinateBus: leadsTo.buses[1],
        memory: leadsTo.memory,
        prefetchable: leadsTo.prefetchable,
      }),
    sriov: virtual && {
      totalVfs: virtual.total,
      numVfs: virtual.enabled,
      offset: virtual.offset,
      stride: virtual.stride,
      deviceId: virtual.device,
    },
    migration: cardMigration && {
      p2p: cardMigration.p2p,
      preCopy: cardMigration['pre-copy'],
      contextBytes: Number(cardMigration.context),
      dmaLogging: cardMigration['dma-logging'],
    },
    bars: bars?.map((b) => given({ index: b.index, sizeBytes: Number(b.size), is64: b.is64, start: b.start })),
  });
}

function idMappings(entries: readonly z.output<typeof idMapping>[] | undefined): IdMapping[] | undefined {
  return entries?.map((entry) => ({
    firstRequesterId: entry.first,
    count: entry.count,
    target: entry.target,
    firstId: entry.id,
  }));
}

function describeHost(name: string, profile: HostProfile): HostDescription {
  return given({
    name,
    title: profile.title,
    sources: profile.sources,
    arch: profile.arch,
    kernelRelease: profile.kernel,
    firmware: profile.firmware,
    commandLine: profile['command-line'],
    pageShift: profile['page-size'] === '4 KiB' ? (12 as const) : (16 as const),
    memory: profile.memory,
    iommus: profile.iommus.map((smmu) =>
      given({
        name: smmu.name,
        kind: smmu.kind,
        base: smmu.base,
        stage1: smmu.stage1,
        stage2: smmu.stage2,
        inputBits: smmu['input-bits'],
        outputBits: Number(smmu['output-bits']),
        httu: smmu.httu,
        granules: smmu.granules,
        streamIdBits: smmu['stream-id-bits'],
        rangeInvalidation: smmu['range-invalidation'],
        forcedWriteBack: smmu['forced-write-back'],
        ats: smmu.ats,
        pri: smmu.pri,
        substreamIdBits: smmu['substream-id-bits'],
        breakBeforeMakeLevel: smmu['break-before-make-level'],
        fullyCoherentMasters: smmu['fully-coherent-masters'],
        cachesNotPresent: smmu['caches-not-present'],
        ignoresHtRange: smmu['ignores-ht-range'],
        probedRegions: smmu['probed-regions']?.map(given),
        softwareMsi: smmu['software-msi'],
      }),
    ),
    msiControllers: profile['msi-controllers'].map((msi) =>
      given({
        name: msi.name,
        kind: msi.kind,
        base: msi.base,
        sizeBytes: msi.size === undefined ? undefined : Number(msi.size),
        bypassesIommu: msi['bypasses-iommu'],
        isolated: msi.isolated,
      }),
    ),
    hostBridges: profile['host-bridges'].map((host) =>
      given({
        name: host.name,
        segment: host.segment,
        firstBus: host.buses[0],
        lastBus: host.buses[1],
        ecam: host.ecam,
        windows: host.windows,
        iommu: host.iommu,
        msi: host.msi,
        streamIdBase: host['stream-id-base'],
        iommuMap: idMappings(host['iommu-map']),
        msiMap: idMappings(host['msi-map']),
        requesterIdMask: host['requester-id-mask'],
        inbound: host['dma-ranges'],
        abortRanges: host['abort-ranges'],
        peerToPeer: host['peer-to-peer'],
      }),
    ),
    functions: profile.functions.map(functionDescription),
    reservedRegions: profile['reserved-regions'].map(given),
    allowUnsafeInterrupts: profile['allow-unsafe-interrupts'],
    allowMixedMsi: profile['allow-mixed-msi'],
  });
}

interface Flaw {
  readonly path: ValuePath;
  readonly message: string;
}

/** What makes a description a machine that cannot be. Paths are those of a profile. */
export function hostFlaws(host: HostDescription): Flaw[] {
  const flaws: Flaw[] = [];
  const overlap = (path: string, what: string, ranges: readonly AddressRange[]): void => {
    const found = findOverlap(ranges);
    if (found === undefined) return;
    const other = ranges[found[0]];
    flaws.push({
      path: [path, found[1]],
      message: `${what} overlaps ${hexText(other?.start ?? 0n)}-${hexText(other?.last ?? 0n)}`,
    });
  };
  overlap('memory', 'memory bank', host.memory);
  const iommus = new Set(host.iommus.map((smmu) => smmu.name));
  const msis = new Set(host.msiControllers.map((msi) => msi.name));
  host.hostBridges.forEach((bridge, index) => {
    const path = ['host-bridges', index];
    if (bridge.iommu !== undefined && !iommus.has(bridge.iommu))
      flaws.push({ path: [...path, 'iommu'], message: `no iommu ${bridge.iommu}` });
    if (bridge.msi !== undefined && !msis.has(bridge.msi))
      flaws.push({ path: [...path, 'msi'], message: `no msi-controller ${bridge.msi}` });
    bridge.iommuMap?.forEach(({ target }, i) => {
      if (!iommus.has(target)) flaws.push({ path: [...path, 'iommu-map', i], message: `no iommu ${target}` });
    });
    bridge.msiMap?.forEach(({ target }, i) => {
      if (!msis.has(target)) flaws.push({ path: [...path, 'msi-map', i], message: `no msi-controller ${target}` });
    });
  });
  const seen = new Set<string>();
  host.functions.forEach((fn, index) => {
    const path = ['functions', index];
    if (seen.has(fn.bdf)) flaws.push({ path: [...path, 'bdf'], message: `${fn.bdf} is there twice` });
    seen.add(fn.bdf);
    const segment = parseInt(fn.bdf.slice(0, 4), 16);
    const bus = parseInt(fn.bdf.slice(5, 7), 16);
    const bridge = host.hostBridges.find((b) => b.segment === segment && b.firstBus <= bus && bus <= b.lastBus);
    if (bridge === undefined) flaws.push({ path: [...path, 'bdf'], message: `no host bridge leads to ${fn.bdf}` });
    const { bridge: below } = fn;
    if (below !== undefined && (below.secondaryBus <= bus || below.subordinateBus > (bridge?.lastBus ?? 0xff)))
      flaws.push({
        path: [...path, 'bridge'],
        message: 'buses behind a bridge come after its own, within the host bridge',
      });
    if (fn.physfn !== undefined && !host.functions.some((pf) => pf.bdf === fn.physfn))
      flaws.push({ path: [...path, 'physfn'], message: `there is no ${fn.physfn}` });
    if (fn.msi !== undefined && !msis.has(fn.msi))
      flaws.push({ path: [...path, 'msi'], message: `no msi-controller ${fn.msi}` });
  });
  return flaws;
}

/** Reads a profile's text. @throws InputError */
export function parseHostProfile(file: string, text: string, name: string): HostDescription {
  const source = SourceText.parse(file, text);
  const host = describeHost(name, source.as(hostProfile));
  const problems = hostFlaws(host).map(({ path, message }): InputProblem => source.problem(path, message));
  if (problems.length > 0) throw new InputError(problems);
  return host;
}

/** The directory of shipped hosts. */
function shippedDirectory(): string {
  // From src/scenario or dist/src/scenario: the package's root is the first ancestor that has scenarios/hosts.
  for (const up of ['../../scenarios/hosts', '../../../scenarios/hosts']) {
    const path = fileURLToPath(new URL(up, import.meta.url));
    try {
      readdirSync(path);
      return path;
    } catch {
      continue;
    }
  }
  throw new Error('scenarios/hosts is not there');
}

function filesIn(directory: string, extension: string): string[] {
  return readdirSync(directory)
    .filter((file) => extname(file) === extension)
    .map((file) => basename(file, extension))
    .sort();
}

/** Names of shipped profiles and of shipped snapshots. */
export function shippedHosts(): { readonly profiles: readonly string[]; readonly snapshots: readonly string[] } {
  const directory = shippedDirectory();
  return { profiles: filesIn(directory, '.yaml'), snapshots: filesIn(join(directory, 'snapshots'), '.json') };
}

/** A host file by path: YAML is a profile, JSON a snapshot. @throws InputError, or the file system's error */
export function readHostFile(path: string, name: string): HostDescription {
  const text = readFileSync(path, 'utf8');
  return extname(path) === '.json' ? snapshotToHost(path, text, name) : parseHostProfile(path, text, name);
}

/** A shipped profile. `undefined` when there is none of that name. @throws InputError when the file is broken */
export function shippedProfile(profile: string, name: string = profile): HostDescription | undefined {
  if (!shippedHosts().profiles.includes(profile)) return undefined;
  return readHostFile(join(shippedDirectory(), `${profile}.yaml`), name);
}

/** A shipped snapshot. `undefined` when there is none of that name. @throws InputError when the file is broken */
export function shippedSnapshot(snapshot: string, name: string = snapshot): HostDescription | undefined {
  if (!shippedHosts().snapshots.includes(snapshot)) return undefined;
  return readHostFile(join(shippedDirectory(), 'snapshots', `${snapshot}.json`), name);
}
