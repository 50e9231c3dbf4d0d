/**
 * Scenario files → scenarios that can be run.
 *
 * Three layers of refusal, each with file:line:column: the text is not YAML (text.ts), it has the wrong shape (schema.ts), or
 * it speaks of things that are not there: an unknown host, guest, device, link, result; memory that overlaps; a step without
 * somebody to carry it out. All problems of the last layer are reported together.
 *
 * A loaded scenario holds its hosts' descriptions in full, so a recorded run can be repeated from its own file.
 */
import { readFileSync } from 'node:fs';
import { basename, dirname, extname, join } from 'node:path';
import type { HostDescription } from '../hardware/description.js';
import { FAULTS, type FaultId } from '../runtime/faults.js';
import type { Deviation } from '../runtime/deviations.js';
import type { Program } from '../host/program.js';
import type { LinkSpec } from '../testbed/link.js';
import { MAIN_NODE } from '../testbed/node.js';
import { guestMemoryMap, MemoryMapError, type MachineOptions } from '../vmm/machines.js';
import {
  functionDescription,
  hostFlaws,
  readHostFile,
  shippedHosts,
  shippedProfile,
  shippedSnapshot,
} from './hosts.js';
import {
  scenarioFile,
  type Expectation,
  type GuestEntry,
  type HostEntry,
  HOST_FILES,
  type PlainStep,
  type ProcessEntry,
  type ScenarioFile,
  type Step,
} from './schema.js';
import { isKernelOnly, kernelOnlyFile, programOf, withoutUndefined } from './kernel-only.js';
import { parseReservedRegions } from './snapshot.js';
import { InputError, SourceText, type InputProblem, type Position, type ValuePath } from './text.js';
import { findOverlap } from './fields.js';

/** A step that is no `parallel`, and where it stands. */
export interface LocatedStep {
  readonly step: PlainStep;
  readonly at: Position;
}

/** A step, or branches of steps that run side by side. */
export type ScenarioStep =
  LocatedStep | { readonly parallel: readonly (readonly LocatedStep[])[]; readonly at: Position };

/** A kernel-only scenario's part. */
export interface KernelOnly {
  readonly program: Program;
}

/** The seed of runs that are given none. */
export const DEFAULT_SEED = 1;

/** A scenario, checked. */
export interface Scenario {
  /** File name without directory and extension. */
  readonly name: string;
  readonly file: string;
  /** The file's text, for recording. */
  readonly text: string;
  readonly title: string;
  readonly covers: readonly string[];
  readonly schedule: 'in-order' | 'random';
  /** Where the schedule of a node is not in order; the other nodes are, then. */
  readonly deviations?: Readonly<Record<string, readonly Deviation[]>>;
  /** The seed of its runs, where it has one of its own. */
  readonly seed?: number;
  /** Signature of the failure that it must end in. */
  readonly fails?: string;
  readonly limitNs?: number;
  readonly hosts: readonly HostDescription[];
  readonly links: readonly LinkSpec[];
  readonly guests: ReadonlyMap<string, GuestEntry>;
  readonly processes: ReadonlyMap<string, ProcessEntry>;
  readonly steps: readonly ScenarioStep[];
  /** Tasks on a kernel without a machine; there are no hosts and no steps then. */
  readonly kernelOnly?: KernelOnly;
  /** What makes it fail (sabotage.ts). */
  readonly failsWith?: ScenarioFile['fails-with'];
}

/** What decides a guest's memory map. */
export function machineOptions(entry: GuestEntry): MachineOptions {
  return {
    memoryBytes: entry.memory,
    ...(entry.vcpus === undefined ? {} : { vcpus: entry.vcpus }),
    ...(entry['vcpu-vendor'] === undefined ? {} : { vcpuVendor: entry['vcpu-vendor'] }),
    ...(entry['enforce-amd-1tb-hole'] === undefined ? {} : { enforce_amd_1tb_hole: entry['enforce-amd-1tb-hole'] }),
  };
}

/** Whether a fault is in the main process: in VMMs, or in every link. */
export function isOfMain(id: FaultId): boolean {
  return FAULTS[id].layer === 'vmm' || id === 'link.damage';
}

function hasFunction(host: HostDescription, bdf: string): boolean {
  return host.functions.some((fn) => fn.bdf === bdf);
}

/** Collects what is wrong with a file whose shape is right. */
class Checker {
  readonly problems: InputProblem[] = [];
  readonly #source: SourceText;
  readonly #file: ScenarioFile;
  readonly #hosts: ReadonlyMap<string, HostDescription>;
  readonly #results = new Set<string>();

  constructor(source: SourceText, file: ScenarioFile, hosts: readonly HostDescription[]) {
    this.#source = source;
    this.#file = file;
    this.#hosts = new Map(hosts.map((host) => [host.name, host]));
  }

  say(path: ValuePath, message: string): void {
    this.problems.push(this.#source.problem(path, message));
  }

  checkAll(): void {
    const { links, guests, processes, steps, schedule } = this.#file;
    if (this.#hosts.size === 0 && Object.keys(this.#file.hosts).length === 0)
      this.say(['hosts'], 'a scenario has hosts');
    links.forEach((link, index) => {
      link.between.forEach((end, side) => this.#host(end, ['links', index, 'between', side]));
      if (link.between[0] === link.between[1]) this.say(['links', index], 'a link is between two hosts');
    });
    for (const [name, guest] of Object.entries(guests)) this.#checkGuest(name, guest);
    for (const [name, process] of Object.entries(processes)) {
      this.#host(process.on, ['processes', name, 'on']);
      if (Object.hasOwn(guests, name)) this.say(['processes', name], `${name} is a guest already`);
    }
    steps.forEach((step, index) => this.#checkStep(step, ['steps', index]));
    if (typeof schedule !== 'string')
      for (const node of Object.keys(schedule)) if (node !== MAIN_NODE) this.#host(node, ['schedule', node]);
    const switched = this.#file['fails-with'];
    if (switched !== undefined && switched !== 'no-faults' && switched.host !== undefined)
      this.#host(switched.host, ['fails-with', 'host']);
  }

  #checkGuest(name: string, guest: GuestEntry): void {
    this.#host(guest.on, ['guests', name, 'on']);
    try {
      guestMemoryMap(guest.vmm, machineOptions(guest));
    } catch (error) {
      if (!(error instanceof MemoryMapError)) throw error;
      this.say(['guests', name, 'memory'], error.message);
    }
  }

  #checkStep(step: Step, path: ValuePath): void {
    if (!('parallel' in step)) {
      this.#checkPlain(step, path);
      return;
    }
    step.parallel.forEach((branch, b) =>
      branch.forEach((inner, s) => this.#checkPlain(inner, [...path, 'parallel', b, s])),
    );
  }

  #checkPlain(step: PlainStep, path: ValuePath): void {
    if ('boot' in step) this.#guest(step.boot, [...path, 'boot']);
    else if ('map' in step) this.#checkMapping(step.map, [...path, 'map']);
    else if ('unmap' in step) this.#checkMapping(step.unmap, [...path, 'unmap']);
    else if ('copy' in step) {
      const at = [...path, 'copy'];
      this.#ioas(step.copy.process, step.copy.from.ioas, [...at, 'from', 'ioas']);
      this.#ioas(step.copy.process, step.copy.to.ioas, [...at, 'to', 'ioas']);
    } else if ('allow' in step) {
      const at = [...path, 'allow'];
      this.#ioas(step.allow.process, step.allow.ioas, at);
      const overlap = findOverlap(step.allow.ranges);
      if (overlap !== undefined) this.say([...at, 'ranges', overlap[1]], 'range overlaps another');
    } else if ('plug' in step) this.#checkTaking(step.plug, [...path, 'plug'], step.plug.ioas);
    else if ('unplug' in step) this.#checkTaking(step.unplug, [...path, 'unplug'], undefined);
    else if ('replace' in step) {
      const at = [...path, 'replace'];
      this.#ioas(step.replace.process, step.replace.ioas, [...at, 'ioas']);
      this.#device({ process: step.replace.process }, step.replace.device, [...at, 'device']);
    } else if ('grow' in step) this.#guest(step.grow.guest, [...path, 'grow', 'guest']);
    else if ('dma' in step) {
      const at = [...path, 'dma'];
      this.#checkTaking(step.dma, at, undefined);
      if ((step.dma.write === undefined) === (step.dma.copy === undefined))
        this.say(at, 'dma has either write or copy');
    } else if ('interrupt' in step) this.#checkTaking(step.interrupt, [...path, 'interrupt'], undefined);
    else if ('work' in step) this.#checkTaking(step.work, [...path, 'work'], undefined);
    else if ('workload' in step) this.#guest(step.workload.guest, [...path, 'workload', 'guest']);
    else if ('nic' in step) this.#checkTaking(step.nic, [...path, 'nic'], undefined);
    else if ('place-bar' in step) this.#checkTaking(step['place-bar'], [...path, 'place-bar'], undefined);
    else if ('configure' in step) this.#checkTaking(step.configure, [...path, 'configure'], undefined);
    else if ('migrate' in step) this.#checkMigration(step.migrate, [...path, 'migrate']);
    else if ('fault' in step) this.#checkFault(step.fault, [...path, 'fault']);
    else if ('expect' in step) {
      this.#checkExpectation(step.expect, [...path, 'expect']);
      return;
    }
    this.#defineResult(step, path);
  }

  /** Remembers the name a step gives to its result. */
  #defineResult(step: PlainStep, path: ValuePath): void {
    const [kind] = Object.keys(step);
    const body: unknown = Object.values(step)[0];
    if (kind === undefined || typeof body !== 'object' || body === null || !('as' in body)) return;
    if (typeof body.as !== 'string') return;
    const taken = this.#results.has(body.as) || this.#isActor(body.as);
    if (taken) this.say([...path, kind, 'as'], `${body.as} is taken`);
    this.#results.add(body.as);
  }

  #isActor(name: string): boolean {
    return Object.hasOwn(this.#file.guests, name) || Object.hasOwn(this.#file.processes, name);
  }

  #checkMapping(
    mapping: {
      readonly process: string;
      readonly ioas?: string | undefined;
      readonly iova?: bigint | undefined;
      readonly length: bigint;
    },
    path: ValuePath,
  ): void {
    this.#ioas(mapping.process, mapping.ioas, path);
    if (mapping.length === 0n) this.say([...path, 'length'], 'length is zero');
  }

  /** Something that a guest, a process or (plugging a card) a host does with a device. */
  #checkTaking(
    taking: {
      readonly host?: string | undefined;
      readonly guest?: string | undefined;
      readonly process?: string | undefined;
      readonly device: string;
    },
    path: ValuePath,
    ioas: string | undefined,
  ): void {
    const actors = [taking.host, taking.guest, taking.process].filter((actor) => actor !== undefined);
    if (actors.length !== 1) {
      this.say(path, 'say who does it: one of host, guest, process');
      return;
    }
    if (taking.host !== undefined) this.#host(taking.host, [...path, 'host']);
    if (taking.guest !== undefined) this.#guest(taking.guest, [...path, 'guest']);
    if (taking.process !== undefined) this.#ioas(taking.process, ioas, path);
    else if (ioas !== undefined) this.say([...path, 'ioas'], 'only a process names its ioas');
    this.#device(taking, taking.device, [...path, 'device']);
  }

  #checkMigration(
    migration: { readonly guest: string; readonly to: string; readonly devices: Readonly<Record<string, string>> },
    path: ValuePath,
  ): void {
    this.#guest(migration.guest, [...path, 'guest']);
    if (!this.#host(migration.to, [...path, 'to'])) return;
    for (const [from, to] of Object.entries(migration.devices)) {
      const hosts = [...this.#hosts.values()];
      if (!hosts.some((host) => hasFunction(host, from)))
        this.say([...path, 'devices', from], `no host has a device ${from}`);
      const there = this.#hosts.get(migration.to);
      if (there !== undefined && !hasFunction(there, to))
        this.say([...path, 'devices', from], `host ${migration.to} has no device ${to}`);
    }
    const isLinked = this.#file.links.some((link) => link.between.includes(migration.to));
    if (!isLinked) this.say([...path, 'to'], `no link leads to host ${migration.to}`);
  }

  #checkFault(
    given: {
      readonly host?: string | undefined;
      readonly link?: readonly [string, string] | undefined;
      readonly fault?: FaultId | undefined;
    },
    path: ValuePath,
  ): void {
    if (given.fault !== undefined && isOfMain(given.fault)) {
      if (given.host !== undefined || given.link !== undefined)
        this.say([...path, 'fault'], `${given.fault} is in no host and in no single link: leave them out`);
      return;
    }
    if ((given.host === undefined) === (given.link === undefined)) {
      this.say(path, 'a fault is in a host or in a link');
      return;
    }
    if (given.host !== undefined) {
      this.#host(given.host, [...path, 'host']);
      if (given.fault === undefined) this.say(path, 'a fault in a host has a name: fault');
      else if (given.fault.startsWith('link.')) this.say([...path, 'fault'], `${given.fault} is a fault of links`);
    }
    const ends = given.link;
    if (ends === undefined) return;
    if (given.fault !== undefined && given.fault !== 'link.lost')
      this.say([...path, 'fault'], `${given.fault} is no fault of links`);
    const isThere = this.#file.links.some((link) => ends.every((end) => link.between.includes(end)));
    if (!isThere) this.say([...path, 'link'], `no link between ${ends.join(' and ')}`);
  }

  #checkExpectation(expectation: Expectation, path: ValuePath): void {
    const { of } = expectation;
    if (Object.keys(expectation).length === 1) this.say(path, 'nothing is expected');
    for (const key of ['usable', 'unusable', 'reserved', 'not-reserved'] as const)
      this.#checkOfProcess(expectation, key, path);
    const isGuest = Object.hasOwn(this.#file.guests, of);
    if (!this.#results.has(of) && !this.#isActor(of))
      this.say([...path, 'of'], `${of} is no result of an earlier step, no guest and no process`);
    const host = expectation['runs-on'];
    if (host !== undefined) this.#host(host, [...path, 'runs-on']);
    if ((host !== undefined || expectation.memory !== undefined) && !isGuest)
      this.say([...path, 'of'], 'runs-on and memory are expectations about a guest');
  }

  /** Expectations that only a process can be asked about. */
  #checkOfProcess(
    expectation: Expectation,
    key: 'usable' | 'unusable' | 'reserved' | 'not-reserved',
    path: ValuePath,
  ): void {
    const asked = expectation[key];
    if (asked === undefined) return;
    const { of } = expectation;
    if (!Object.hasOwn(this.#file.processes, of)) {
      this.say([...path, 'of'], `${key} is an expectation about a process`);
      return;
    }
    if ('ioas' in asked) this.#ioas(of, asked.ioas, [...path, key, 'ioas']);
    if ('device' in asked) this.#device({ process: of }, asked.device, [...path, key, 'device']);
  }

  #host(name: string, path: ValuePath): boolean {
    if (Object.hasOwn(this.#file.hosts, name)) return true;
    this.say(path, `unknown host ${name}`);
    return false;
  }

  #guest(name: string, path: ValuePath): void {
    if (!Object.hasOwn(this.#file.guests, name)) this.say(path, `unknown guest ${name}`);
  }

  #ioas(process: string, ioas: string | undefined, path: ValuePath): void {
    const entry = Object.hasOwn(this.#file.processes, process) ? this.#file.processes[process] : undefined;
    if (entry === undefined) this.say(path, `unknown process ${process}`);
    else if (ioas !== undefined && !entry.ioas.includes(ioas)) this.say(path, `process ${process} has no ioas ${ioas}`);
  }

  /** A device must be on its process's or host's machine; a guest's on any, because it may have moved. */
  #device(
    by: { readonly host?: string | undefined; readonly process?: string | undefined },
    device: string,
    path: ValuePath,
  ): void {
    const processHost = by.process === undefined ? undefined : this.#file.processes[by.process]?.on;
    const where = by.host ?? processHost;
    const hosts = [...this.#hosts.values()].filter((host) => where === undefined || host.name === where);
    if (hosts.length === 0 && where !== undefined) return;
    if (hosts.some((host) => host.functions.some((fn) => fn.bdf === device))) return;
    this.say(path, `unknown device ${device}${where === undefined ? ' on every host' : ` on host ${where}`}`);
  }
}

/** What a host entry names as its base. */
interface HostBase {
  readonly key: keyof typeof HOST_FILES;
  readonly wanted: string;
  /** A path, not the name of what is shipped. */
  readonly isFile: boolean;
}

function hostBase(entry: HostEntry): HostBase {
  const [key, wanted] =
    'profile' in entry ? (['profile', entry.profile] as const) : (['snapshot', entry.snapshot] as const);
  return { key, wanted, isFile: extname(wanted) === HOST_FILES[key] };
}

/** The base of a host entry: a shipped profile or snapshot by name, or a file by a path relative to the scenario's. */
function baseHost({ key, wanted, isFile }: HostBase, name: string, file: string): HostDescription | undefined {
  if (!isFile) return key === 'profile' ? shippedProfile(wanted, name) : shippedSnapshot(wanted, name);
  try {
    return readHostFile(join(dirname(file), wanted), name);
  } catch (error) {
    if (error instanceof InputError) throw error;
    return undefined;
  }
}

function resolveHost(source: SourceText, name: string, entry: HostEntry): HostDescription {
  const path = ['hosts', name];
  const named = hostBase(entry);
  const { key, wanted, isFile } = named;
  const refuse = (at: ValuePath, message: string): InputError => new InputError([source.problem(at, message)]);
  const base = baseHost(named, name, source.file);
  if (base === undefined) {
    const { profiles, snapshots } = shippedHosts();
    const known = key === 'profile' ? profiles : snapshots;
    throw refuse(
      [...path, key],
      isFile ? `no such file: ${wanted}` : `unknown ${key}; one of ${known.join(', ')}, or a path`,
    );
  }
  const pasted = entry['reserved-regions'];
  const moved = entry['software-msi'];
  const added = entry['command-line'];
  const kept = base.functions.filter(({ bdf }) => entry.devices?.some((given) => given.bdf === bdf) !== true);
  const host: HostDescription = {
    ...base,
    memory: entry.memory ?? base.memory,
    kernelRelease: entry.kernel ?? base.kernelRelease,
    allowUnsafeInterrupts: entry['allow-unsafe-interrupts'] ?? base.allowUnsafeInterrupts,
    allowMixedMsi: entry['allow-mixed-msi'] ?? base.allowMixedMsi ?? false,
    functions: [...kept, ...(entry.devices ?? []).map(functionDescription)],
    iommus: moved === undefined ? base.iommus : base.iommus.map((iommu) => ({ ...iommu, softwareMsi: moved })),
    ...(added === undefined ? {} : { commandLine: `${base.commandLine ?? ''} ${added}`.trim() }),
    reservedRegions: [...base.reservedRegions, ...(pasted === undefined ? [] : pastedRegions(source, name, pasted))],
  };
  const [flaw] = hostFlaws(host);
  if (flaw === undefined) return host;
  // Flaws of functions are numbered over the profile's and the entry's own.
  const [what, index] = flaw.path;
  if (what === 'functions' && typeof index === 'number' && index >= kept.length)
    throw refuse([...path, 'devices', index - kept.length, ...flaw.path.slice(2)], flaw.message);
  throw refuse([...path, ...flaw.path], flaw.message);
}

function pastedRegions(source: SourceText, host: string, text: string): HostDescription['reservedRegions'] {
  try {
    return parseReservedRegions(source.file, text).map(({ start, last, type }) => ({
      start,
      last,
      type,
      owner: 'pasted',
    }));
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    const path = ['hosts', host, 'reserved-regions'];
    throw new InputError(error.problems.map((problem) => source.problem(path, problem.message)));
  }
}

function locate(source: SourceText, steps: readonly Step[]): ScenarioStep[] {
  return steps.map((step, index): ScenarioStep => {
    const at = source.position(['steps', index]);
    if (!('parallel' in step)) return { step, at };
    const parallel = step.parallel.map((branch, b) =>
      branch.map((inner, s): LocatedStep => ({
        step: inner,
        at: source.position(['steps', index, 'parallel', b, s]),
      })),
    );
    return { parallel, at };
  });
}

/** What loading may be told. */
export interface LoadOptions {
  /** Descriptions to use instead of profiles and snapshots: those of a recorded run. */
  readonly hosts?: readonly HostDescription[];
}

/** Loads a scenario's text. @throws InputError with every problem as file:line:column */
export function loadScenario(file: string, text: string, options: LoadOptions = {}): Scenario {
  const source = SourceText.parse(file, text);
  if (isKernelOnly(source.value)) return loadKernelOnly(source, text);
  const given = source.as(scenarioFile);
  const hosts = options.hosts ?? Object.entries(given.hosts).map(([name, entry]) => resolveHost(source, name, entry));
  const checker = new Checker(source, given, hosts);
  checker.checkAll();
  if (checker.problems.length > 0) throw new InputError(checker.problems);
  return {
    name: basename(file, extname(file)),
    file,
    text,
    title: given.title,
    covers: given.covers,
    ...(typeof given.schedule === 'string'
      ? { schedule: given.schedule }
      : { schedule: 'in-order', deviations: given.schedule }),
    ...(given.seed === undefined ? {} : { seed: given.seed }),
    ...(given.fails === undefined ? {} : { fails: given.fails }),
    ...(given.limit === undefined ? {} : { limitNs: given.limit }),
    hosts,
    links: given.links.map((link) => ({
      between: link.between,
      bandwidthBitsPerSecond: link.bandwidth,
      latencyNs: link.latency,
    })),
    guests: new Map(Object.entries(given.guests)),
    processes: new Map(Object.entries(given.processes)),
    steps: locate(source, given.steps),
    ...(given['fails-with'] === undefined ? {} : { failsWith: given['fails-with'] }),
  };
}

function loadKernelOnly(source: SourceText, text: string): Scenario {
  const given = source.as(kernelOnlyFile);
  const { file } = source;
  return {
    name: basename(file, extname(file)),
    file,
    text,
    title: given.title,
    covers: given.covers,
    schedule: 'in-order',
    hosts: [],
    links: [],
    guests: new Map(),
    processes: new Map(),
    steps: [],
    kernelOnly: { program: programOf(source, given) },
    deviations: { kernel: given.schedule },
    ...(given.seed === undefined ? {} : { seed: given.seed }),
    ...(given.fails === undefined ? {} : { fails: given.fails }),
    ...(given['fails-with'] === undefined ? {} : { failsWith: withoutUndefined(given['fails-with']) }),
  };
}

/** Loads a scenario file. @throws InputError, also when the file cannot be read */
export function readScenario(file: string): Scenario {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new InputError([{ file, line: 1, column: 1, message }]);
  }
  return loadScenario(file, text);
}
