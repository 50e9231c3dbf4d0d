/**
 * Carries out a scenario in the main node: a task that performs the steps with the VMM, the migration orchestrator and
 * plain clients, and collects what came of them.
 *
 * The runner never looks into a host. What it knows comes from system calls, from replies to lab commands and from the bus
 * analyser's record; that record decides what is `silent`. Errors of the kernel are results; only a broken testbed throws.
 * A failed check does not stop a scenario: later steps may show more.
 */
import type { LabCommand, TransactionRecord } from '../host/protocol.js';
import { migrate } from '../migration/migrate.js';
import { preflight, type PreflightReport } from '../migration/preflight.js';
import type { MigrationRequest, MigrationResult } from '../migration/request.js';
import type { FaultId, FaultRule } from '../runtime/faults.js';
import type { Task } from '../runtime/task.js';
import { MAIN_NODE } from '../testbed/node.js';
import type { Lab } from '../testbed/lab.js';
import { ENODEV, ESRCH, KernelError, type ErrorDetail } from '../uapi/errno.js';
import { parseReservedRegions, type Conflict, type SysfsRegion } from '../vmm/conflicts.js';
import { Guest, type GuestSpec, type WorkloadSpec } from '../vmm/guest.js';
import { placeBar } from '../vmm/guest-bars.js';
import { overlaps } from '../vmm/ranges.js';
import { addMemory, plugDevice, unplugDevice, type PlugResult } from '../vmm/hotplug.js';
import { MemoryMapError, ramBlockAt } from '../vmm/machines.js';
import { Client } from './client.js';
import { performDma, performInterrupt, performNic, performWork, type DeviceHolder } from './device-work.js';
import { isOfMain, machineOptions, type LocatedStep, type Scenario, type ScenarioStep } from './load.js';
import {
  checkExpectation,
  rangeText,
  unexpectedCheck,
  type Check,
  type ConflictFact,
  type Facts,
  type StepResult,
} from './results.js';
import type { Expectation, GuestEntry, PlainStep } from './schema.js';
import type { Position } from './text.js';
import { reportedTransactions } from './timeline.js';
import { durationText, hexText, sizeText } from './units.js';

/** A step as it was carried out, for reports. */
export interface StepLog {
  readonly kind: string;
  readonly at: Position;
  readonly startNs: number;
  readonly endNs: number;
  readonly result: StepResult;
}

/** Where a guest was and how its RAM lies, for reports. */
export interface GuestLog {
  readonly name: string;
  readonly machine: string;
  readonly hosts: readonly string[];
  readonly ram: readonly { readonly name: string; readonly start: bigint; readonly last: bigint }[];
}

/** A fault that strikes a node from the start. */
export interface Injection {
  readonly fault: FaultId;
  readonly node: string;
  readonly rule: FaultRule;
}

/** What is known after (or in the middle of) a scenario. Plain data but for the guests. */
export interface ScenarioRecord {
  /** What was left when everybody had gone; only where a fault was injected. */
  readonly leftover: Record<string, number>;
  readonly checks: Check[];
  readonly steps: StepLog[];
  readonly transactions: {
    readonly host: string;
    readonly records: readonly TransactionRecord[];
    /** Transactions that found no room in `records`. */
    readonly leftOut: number;
  }[];
  readonly guests: GuestLog[];
}

type PlainStepOf<K extends string> = Extract<PlainStep, Readonly<Record<K, unknown>>>;

interface PendingResult {
  readonly located: LocatedStep;
  readonly result: StepResult;
  isExpected: boolean;
}

function ok(text: string): StepResult {
  return { verdict: 'ok', text };
}

/** What an error of the kernel says about ranges, as a conflict. */
function conflictOfDetail(detail: ErrorDetail): ConflictFact[] {
  const { start, last, type, kind, owner } = detail;
  if (typeof start !== 'bigint' || typeof last !== 'bigint') return [];
  const text = (value: unknown): string => (typeof value === 'string' ? value : '');
  const { areaStart, areaLast } = detail;
  const area =
    typeof areaStart === 'bigint' && typeof areaLast === 'bigint' ? { start: areaStart, last: areaLast } : undefined;
  const block = area === undefined ? 'the request' : `area ${rangeText(area)}`;
  return [{ start, last, type: text(type), kind: text(kind), owner: text(owner), block }];
}

function refusedBy(error: KernelError): StepResult {
  return {
    verdict: 'refused',
    text: `refused: ${error.code} from ${error.call}`,
    errno: error.code,
    call: error.call,
    conflicts: conflictOfDetail(error.detail),
  };
}

function workloadSpec(given: NonNullable<GuestEntry['workload']>): WorkloadSpec {
  return { bytesPerSecond: Number(given.rate), workingSetBytes: given['working-set'] };
}

function guestSpec(name: string, entry: GuestEntry): GuestSpec {
  return {
    name,
    machine: entry.vmm,
    ...machineOptions(entry),
    ...(entry.content === undefined ? {} : { content: entry.content }),
    ...(entry.contiguity === undefined ? {} : { vmm: { contiguity: entry.contiguity } }),
    ...(entry.workload === undefined ? {} : { workload: workloadSpec(entry.workload) }),
    ...(entry.iommu === undefined ? {} : { hasVsmmu: true }),
  };
}

/** Reads guest memory as a vCPU would; undefined where the guest has no RAM. */
function* loadGuest(guest: Guest, gpa: bigint, lengthBytes: number): Task<Uint8Array | undefined> {
  const block = ramBlockAt(guest.map, gpa);
  if (block === undefined || gpa + BigInt(lengthBytes) - 1n > block.last) return undefined;
  return yield* guest.load(gpa, lengthBytes);
}

function conflictFacts(guest: Guest, conflicts: readonly Conflict[]): ConflictFact[] {
  return conflicts.map(({ start, last, type, kind, owner, block }) => {
    const ram = guest.map.ram.find((candidate) => candidate.name === block);
    return { start, last, type, kind, owner, block: `${guest.name} RAM ${ram === undefined ? block : rangeText(ram)}` };
  });
}

function plugStepResult(guest: Guest, result: PlugResult): StepResult {
  const conflicts = conflictFacts(guest, result.conflicts);
  const errno = result.code === undefined ? '' : `: ${result.code} from ${result.call ?? '?'}`;
  const lost = result.lost.length === 0 ? '' : `, devices lost ${result.lost.map(rangeText).join(', ')}`;
  const attached = result.device === undefined ? '' : ` attached to ${guest.name}`;
  const refused = result.verdict === 'ok' ? '' : ` ${result.verdict}`;
  return {
    verdict: result.verdict,
    text: `${result.bdf}${attached}${refused}${errno}${lost}`,
    ...(result.code === undefined ? {} : { errno: result.code }),
    ...(result.call === undefined ? {} : { call: result.call }),
    conflicts: conflicts.length > 0 ? conflicts : conflictOfDetail(result.detail ?? {}),
    lost: result.lost.map(({ start, last }) => ({ start, last })),
  };
}

function migrationStepResult(guest: Guest, to: string, result: MigrationResult): StepResult {
  const { statistics, outcome, reason, code, detail, memory, devices, conflicts, reset, unplugged } = result;
  const { name } = guest;
  const lost = [
    reset.length === 0 ? '' : `; reset, without its state: ${reset.join(', ')}`,
    unplugged.length === 0 ? '' : `; not given back: ${unplugged.join(', ')}`,
  ].join('');
  if (outcome !== 'completed') {
    return {
      verdict: 'refused',
      text: `${name} stays on ${result.runsOn}, migration to ${to} ${outcome} in ${result.phase}: ${detail}${lost}`,
      ...(reason === undefined ? {} : { reason }),
      ...(code === undefined ? {} : { errno: code }),
      conflicts: conflictFacts(guest, conflicts),
    };
  }
  const differing = memory?.differingPages ?? 0;
  const faults = [
    differing === 0 ? [] : [`${differing} pages differ`],
    (devices?.differing ?? []).map((bdf) => `state of ${bdf} differs`),
    (devices?.notQuiesced ?? []).map((bdf) => `${bdf} could still start DMA while another device was stopped`),
    (devices?.afterStop ?? []).slice(0, 1).map((what) => `not everything stood still: ${what}`),
  ].flat();
  const times = `${durationText(statistics.totalNs)} (virtual), ${durationText(statistics.downtimeNs)} down`;
  const state = statistics.deviceBytes === 0 ? '' : `, ${sizeText(BigInt(statistics.deviceBytes))} of device state`;
  const [explanation] = faults;
  return {
    verdict: faults.length === 0 ? 'ok' : 'silent',
    text: `${name} ${result.from} → ${to} in ${times}${state}${faults.map((fault) => `, ${fault}`).join('')}`,
    downtimeNs: statistics.downtimeNs,
    ...(explanation === undefined ? {} : { explanation }),
  };
}

/** A dry run is `refused` when the migration would be; what will not fit later only makes it `silent`. */
function preflightStepResult(guest: Guest, to: string, { findings }: PreflightReport): StepResult {
  const [first] = findings.filter(({ when }) => when === 'now');
  const what = findings.length === 0 ? 'everything fits' : findings.map(({ text }) => text).join('; ');
  return {
    verdict: first === undefined ? (findings.length === 0 ? 'ok' : 'silent') : 'refused',
    text: `${guest.name} to ${to}, dry run: ${what}`,
    ...(first?.reason === undefined ? {} : { reason: first.reason }),
    ...(first?.code === undefined ? {} : { errno: first.code }),
    conflicts: conflictFacts(
      guest,
      findings.flatMap(({ conflicts }) => conflicts),
    ),
  };
}

/** One run of a scenario. */
export class ScenarioRunner {
  readonly record: ScenarioRecord = { checks: [], steps: [], transactions: [], guests: [], leftover: {} };
  readonly #scenario: Scenario;
  readonly #lab: Lab;
  readonly #guests = new Map<string, Guest>();
  readonly #clients = new Map<string, Client>();
  readonly #results = new Map<string, PendingResult>();
  readonly #pending: PendingResult[] = [];
  readonly #lastMigration = new Map<string, MigrationResult>();
  readonly #visited = new Map<string, string[]>();

  readonly #inject: Injection | undefined;

  constructor(scenario: Scenario, lab: Lab, inject?: Injection) {
    this.#scenario = scenario;
    this.#lab = lab;
    this.#inject = inject;
  }

  /** The main task of the run. */
  *main(): Task<void> {
    if (this.#inject !== undefined) yield* this.#arm(this.#inject);
    try {
      yield* this.#runSteps();
    } catch (error) {
      // What could not be served is an error that a client may not have thought of.
      if (this.#inject === undefined || !(error instanceof KernelError)) throw error;
    }
    if (this.#inject !== undefined) yield* this.#countLeftovers();
  }

  /** The scenario's own rule for the same fault gives way. */
  *#arm({ fault, node, rule }: Injection): Task<void> {
    if (node === MAIN_NODE) this.#lab.runtime.faults.hold(fault, rule);
    else yield* this.#lab.host(node).command({ lab: 'arm-fault', fault, rule, isHeld: true });
  }

  /** Everybody leaves, and what is still there is counted. */
  *#countLeftovers(): Task<void> {
    for (const guest of this.#guests.values()) yield* guest.pause();
    for (const host of this.#lab.hosts) {
      yield* host.command({ lab: 'exit-all' });
      const { counters = {} } = yield* host.command({ lab: 'counters' });
      for (const [what, count] of Object.entries(counters))
        if (what !== 'freePages') this.record.leftover[`${what} on ${host.name}`] = count;
    }
  }

  *#runSteps(): Task<void> {
    for (const [name, entry] of this.#scenario.processes) {
      this.#clients.set(name, yield* Client.start(this.#lab.host(entry.on), name, entry));
    }
    for (const step of this.#scenario.steps) yield* this.#perform(step);
    this.#checkUnexpected();
    for (const host of this.#lab.hosts) {
      yield* host.command({ lab: 'audit' });
      const records = yield* host.transactions(0);
      const kept = reportedTransactions(records);
      this.record.transactions.push({ host: host.name, records: kept, leftOut: records.length - kept.length });
    }
    this.#describeGuests();
  }

  *#perform(step: ScenarioStep): Task<void> {
    if (!('parallel' in step)) return yield* this.#performPlain(step);
    const branches = step.parallel.map((branch, index) =>
      this.#lab.spawn(`branch-${index}`, this.#performBranch(branch)),
    );
    for (const branch of branches) yield* branch.join();
  }

  *#performBranch(branch: readonly LocatedStep[]): Task<void> {
    for (const step of branch) yield* this.#performPlain(step);
  }

  *#performPlain(located: LocatedStep): Task<void> {
    const { step, at } = located;
    if ('expect' in step) {
      this.record.checks.push(yield* this.#expect(step.expect, at));
      return;
    }
    const startNs = this.#lab.runtime.now;
    const result = yield* this.#resultOf(step);
    const kind = Object.keys(step)[0] ?? 'step';
    this.record.steps.push({ kind, at, startNs, endNs: this.#lab.runtime.now, result });
    this.#lab.runtime.emit('scenario.step', { kind, line: at.line, verdict: result.verdict, text: result.text });
    const pending: PendingResult = { located, result, isExpected: false };
    this.#pending.push(pending);
    const body: unknown = Object.values(step)[0];
    if (typeof body === 'object' && body !== null && 'as' in body && typeof body.as === 'string') {
      this.#results.set(body.as, pending);
    }
  }

  *#resultOf(step: Exclude<PlainStep, PlainStepOf<'expect'>>): Task<StepResult> {
    try {
      return yield* this.#carryOut(step);
    } catch (error) {
      if (error instanceof KernelError) return refusedBy(error);
      if (error instanceof MemoryMapError) return { verdict: 'refused', text: `refused: ${error.message}` };
      throw error;
    }
  }

  *#carryOut(step: Exclude<PlainStep, PlainStepOf<'expect'>>): Task<StepResult> {
    if ('boot' in step) return yield* this.#boot(step.boot);
    if ('map' in step) return yield* this.#map(step.map);
    if ('unmap' in step) return yield* this.#unmap(step.unmap);
    if ('copy' in step) {
      const { process, from, to, length } = step.copy;
      yield* this.#client(process).copy(from, to, length);
      return ok(`${process} copied ${sizeText(length)} to ${to.ioas} at ${hexText(to.iova)}`);
    }
    if ('allow' in step) {
      const { process, ioas, ranges } = step.allow;
      const client = this.#client(process);
      yield* client.allow(ioas ?? client.defaultIoas, ranges);
      return ok(`${process} allows ${ranges.map(rangeText).join(', ')}`);
    }
    if ('plug' in step) return yield* this.#plug(step.plug);
    if ('unplug' in step) return yield* this.#unplug(step.unplug);
    if ('replace' in step) {
      const { process, device, ioas } = step.replace;
      yield* this.#client(process).replace(device, ioas);
      return ok(`${device} attached to ${ioas}`);
    }
    if ('grow' in step) return yield* this.#grow(step.grow);
    if ('dma' in step) return yield* performDma(this.#holder(step.dma), step.dma);
    if ('work' in step) return yield* performWork(this.#holder(step.work), step.work);
    if ('workload' in step) return this.#workload(step.workload);
    if ('nic' in step) return yield* performNic(this.#holder(step.nic), step.nic);
    if ('place-bar' in step) return yield* this.#placeBar(step['place-bar']);
    if ('configure' in step) return yield* this.#configure(step.configure);
    if ('interrupt' in step) return yield* performInterrupt(this.#holder(step.interrupt), step.interrupt);
    if ('migrate' in step) return yield* this.#migrate(step.migrate);
    if ('fault' in step) return yield* this.#fault(step.fault);
    yield step.wait;
    return ok(`waited ${durationText(step.wait)}`);
  }

  *#boot(name: string): Task<StepResult> {
    const entry = this.#scenario.guests.get(name);
    if (entry === undefined) throw new Error(`no guest ${name} in this scenario`);
    const guest = yield* Guest.boot(this.#lab.host(entry.on), guestSpec(name, entry));
    this.#guests.set(name, guest);
    this.#visited.set(name, [entry.on]);
    return ok(`${name} runs on ${entry.on}, ${sizeText(entry.memory)}`);
  }

  *#map(given: PlainStepOf<'map'>['map']): Task<StepResult> {
    const client = this.#client(given.process);
    const va =
      given.bar === undefined ? undefined : yield* client.mapBar(given.bar.device, given.bar.index, given.length);
    const iova = yield* client.map({
      ...(va === undefined ? {} : { va }),
      ioas: given.ioas ?? client.defaultIoas,
      lengthBytes: given.length,
      access: given.access,
      contiguity: given.contiguity,
      ...(given.iova === undefined ? {} : { iova: given.iova }),
    });
    return ok(`${given.process} mapped ${rangeText({ start: iova, last: iova + given.length - 1n })}`);
  }

  *#unmap(given: PlainStepOf<'unmap'>['unmap']): Task<StepResult> {
    const client = this.#client(given.process);
    const unmapped = yield* client.unmap(given.ioas ?? client.defaultIoas, given.iova, given.length);
    return ok(`${given.process} unmapped ${sizeText(unmapped)} at ${hexText(given.iova)}`);
  }

  *#plug(given: PlainStepOf<'plug'>['plug']): Task<StepResult> {
    const { device } = given;
    if (given.host !== undefined) return yield* this.#handleCard(given.host, { lab: 'plug', bdf: device });
    if (given.process !== undefined) {
      const client = this.#client(given.process);
      yield* client.plug(device, given.ioas ?? client.defaultIoas);
      return ok(`${given.process} holds ${device}`);
    }
    const guest = this.#guest(given.guest ?? '');
    const policy = this.#scenario.guests.get(guest.name)?.['hotplug-policy'] ?? 'reject';
    const result = yield* plugDevice(guest, {
      bdf: device,
      policy,
      ...(given.order === undefined ? {} : { order: given.order }),
    });
    return plugStepResult(guest, result);
  }

  *#unplug(given: PlainStepOf<'unplug'>['unplug']): Task<StepResult> {
    const { device } = given;
    if (given.host !== undefined)
      return yield* this.#handleCard(given.host, { lab: 'unplug', bdf: device, surprise: given.surprise ?? false });
    if (given.process !== undefined) {
      yield* this.#client(given.process).unplug(device);
      return ok(`${given.process} gave ${device} back`);
    }
    const guest = this.#guest(given.guest ?? '');
    const held = guest.devices.find((candidate) => candidate.bdf === device);
    if (held === undefined) return { verdict: 'refused', text: `${guest.name} has no ${device}` };
    yield* unplugDevice(guest, held);
    return ok(`${guest.name} gave ${device} back`);
  }

  *#placeBar(given: PlainStepOf<'place-bar'>['place-bar']): Task<StepResult> {
    const guest = this.#guest(given.guest);
    const holes = yield* this.#groupRegions(guest, given.device);
    const start = placeBar(guest.map, given.size, given['publish-holes'] ? holes : []);
    const bar = { start, last: start + given.size - 1n };
    const text = `${guest.name} puts the BAR of ${given.device} at ${rangeText(bar)}`;
    const hole = holes.find((candidate) => overlaps(candidate, bar));
    if (hole === undefined) return ok(text);
    const explanation = `the BAR lies in ${rangeText(hole)} (${hole.type}), where the VMM answers nothing`;
    return { verdict: 'silent', text, explanation };
  }

  /** Regions that nobody may use, of a device's group on the guest's host. */
  *#groupRegions(guest: Guest, device: string): Task<SysfsRegion[]> {
    const path = `/sys/bus/pci/devices/${device}/iommu_group/reserved_regions`;
    const regions = parseReservedRegions(yield* guest.vmm.process.readFile(path));
    return regions.filter(({ type }) => type !== 'direct-relaxable');
  }

  *#configure(given: PlainStepOf<'configure'>['configure']): Task<StepResult> {
    const { device } = this.#holder(given);
    const { 'memory-decode': decodes, 'bus-master': masters } = given;
    yield* device.setCommand({
      ...(decodes === undefined ? {} : { decodesMemory: decodes }),
      ...(masters === undefined ? {} : { isBusMaster: masters }),
    });
    const words = [decodes, masters].map((on, i) =>
      on === undefined ? [] : [`${['memory decode', 'bus mastering'][i] ?? ''} ${on ? 'on' : 'off'}`],
    );
    return ok(`${device.bdf}: ${words.flat().join(', ')}`);
  }

  /** Puts a card into a machine or pulls it out. */
  *#handleCard(name: string, command: Extract<LabCommand, { lab: 'plug' | 'unplug' }>): Task<StepResult> {
    const { lab, bdf } = command;
    const reply = yield* this.#lab.host(name).command(command);
    if (reply.result < 0) throw new KernelError(reply.result, `${lab} ${bdf}`, reply.detail);
    const how = lab === 'plug' ? 'put into' : command.surprise === true ? 'torn out of' : 'pulled out of';
    return ok(`${bdf} ${how} ${name}`);
  }

  *#grow(given: PlainStepOf<'grow'>['grow']): Task<StepResult> {
    const guest = this.#guest(given.guest);
    const result = yield* addMemory(guest, `dimm@${given.start.toString(16)}`, given.start, given.size);
    const where = rangeText({ start: given.start, last: given.start + given.size - 1n });
    if (result.verdict === 'ok') return ok(`${guest.name} has ${sizeText(given.size)} more at ${where}`);
    return {
      verdict: result.verdict,
      text: `${guest.name} ${result.verdict}: ${result.code ?? ''} for memory at ${where}`,
      ...(result.code === undefined ? {} : { errno: result.code }),
      ...(result.call === undefined ? {} : { call: result.call }),
      conflicts: conflictOfDetail(result.detail ?? {}),
    };
  }

  *#migrate(given: PlainStepOf<'migrate'>['migrate']): Task<StepResult> {
    const guest = this.#guest(given.guest);
    const bandwidth = given['switchover-bandwidth'];
    const limits = {
      ...(bandwidth === undefined ? {} : { switchoverBandwidth: bandwidth }),
      ...(given['downtime-limit'] === undefined ? {} : { downtimeLimitNs: given['downtime-limit'] }),
      ...(given['max-rounds'] === undefined ? {} : { maxRounds: given['max-rounds'] }),
      ...(given['on-no-convergence'] === undefined ? {} : { onNoConvergence: given['on-no-convergence'] }),
    };
    const request: MigrationRequest = {
      to: this.#lab.host(given.to),
      limits,
      attachedDevices: given['attached-devices'],
      devices: new Map(Object.entries(given.devices)),
      dirtySource: given['dirty-source'],
      switchoverAck: given['switchover-ack'],
      ...(given['cancel-at'] === undefined ? {} : { cancelAt: given['cancel-at'] }),
      ...(given['cancel-after'] === undefined ? {} : { cancelAfterNs: given['cancel-after'] }),
    };
    if (given['dry-run']) return preflightStepResult(guest, given.to, yield* preflight(guest, request));
    const result = yield* migrate(guest, request);
    if (result.memory !== undefined) this.#lastMigration.set(guest.name, result);
    if (result.outcome === 'completed') this.#visited.get(guest.name)?.push(result.runsOn);
    return migrationStepResult(guest, given.to, result);
  }

  #workload(given: PlainStepOf<'workload'>['workload']): StepResult {
    this.#guest(given.guest).setWorkload(workloadSpec(given));
    return ok(`${given.guest} writes ${sizeText(given.rate)}/s in ${sizeText(given['working-set'])}`);
  }

  *#fault(given: PlainStepOf<'fault'>['fault']): Task<StepResult> {
    const rule = {
      ...(given.skip === undefined ? {} : { skip: given.skip }),
      ...(given.count === undefined ? {} : { count: given.count }),
    };
    if (given.link !== undefined) return this.#linkFault(given.link, given.off, rule);
    const id = given.fault;
    if (id !== undefined && isOfMain(id)) {
      const { faults } = this.#lab.runtime;
      if (given.off) faults.disarm(id);
      else faults.arm(id, rule);
      return ok(`${id} ${given.off ? 'off' : 'on'}`);
    }
    if (given.host === undefined || id === undefined) throw new Error('a fault in a host has a name');
    const host = this.#lab.host(given.host);
    const reply = yield* host.command(
      given.off ? { lab: 'disarm-fault', fault: id } : { lab: 'arm-fault', fault: id, rule },
    );
    if (reply.result < 0) throw new KernelError(reply.result, `fault ${id}`, reply.detail);
    return ok(`${id} ${given.off ? 'off' : 'on'} in ${given.host}`);
  }

  /** A link goes down at once; with `skip` or `count` the next sends of every link are counted instead. */
  #linkFault(
    ends: readonly [string, string],
    isOff: boolean,
    rule: { readonly skip?: number; readonly count?: number },
  ): StepResult {
    const name = ends.join('-');
    const links = [this.#lab.link(ends[0], ends[1]), this.#lab.link(ends[1], ends[0])];
    if (isOff) {
      this.#lab.runtime.faults.disarm('link.lost');
      for (const link of links) if (link?.isDown === true) link.repair();
      return ok(`link ${name} is up`);
    }
    if (rule.skip !== undefined || rule.count !== undefined) {
      this.#lab.runtime.faults.arm('link.lost', rule);
      return ok(`link ${name} will be lost`);
    }
    for (const link of links) link?.lose();
    return ok(`link ${name} is down`);
  }

  *#expect(expectation: Expectation, at: Position): Task<Check> {
    const { of } = expectation;
    const pending = this.#results.get(of);
    if (pending !== undefined) pending.isExpected = true;
    const facts = yield* this.#factsAbout(expectation);
    return checkExpectation(expectation, pending?.result, facts, at);
  }

  *#factsAbout(expectation: Expectation): Task<Facts> {
    const guest = this.#guests.get(expectation.of);
    if (guest !== undefined) {
      const differing = this.#lastMigration.get(guest.name)?.memory?.differingPages;
      const machine = expectation['machine-device'];
      const clashes =
        machine === undefined ? undefined : yield* this.#clashesWithMachine(guest, machine.name, machine.device);
      return {
        ...(clashes === undefined ? {} : { clashes }),
        runsOn: guest.host.name,
        state: guest.state,
        ...(differing === undefined ? {} : { differingPages: differing }),
      };
    }
    const client = this.#clients.get(expectation.of);
    if (client === undefined) return {};
    const space = expectation.usable ?? expectation.unusable;
    const group = expectation.reserved ?? expectation['not-reserved'];
    return {
      ...(space === undefined ? {} : { usable: yield* client.usableRanges(space.ioas ?? client.defaultIoas) }),
      ...(group === undefined ? {} : { reserved: yield* client.reservedRegions(group.device) }),
    };
  }

  /** Whether a device of the guest's machine lies in a reserved region; undefined when the machine has none of that name. */
  *#clashesWithMachine(guest: Guest, name: string, device: string): Task<boolean | undefined> {
    const regions = yield* this.#groupRegions(guest, device);
    const fixed = guest.map.fixed.find((candidate) => candidate.name === name);
    return fixed === undefined ? undefined : regions.some((region) => overlaps(region, fixed));
  }

  #checkUnexpected(): void {
    for (const { located, result, isExpected } of this.#pending) {
      if (result.verdict !== 'ok' && !isExpected)
        this.record.checks.push(unexpectedCheck(located.step, result, located.at));
    }
    if (this.record.checks.length === 0)
      this.record.checks.push({ name: 'every step ok', verdict: 'pass', detail: `${this.#pending.length} steps` });
  }

  #describeGuests(): void {
    for (const guest of this.#guests.values()) {
      this.record.guests.push({
        name: guest.name,
        machine: guest.map.machine,
        hosts: this.#visited.get(guest.name) ?? [],
        ram: guest.map.ram.map(({ name, start, last }) => ({ name, start, last })),
      });
    }
  }

  #holder(given: {
    readonly guest?: string | undefined;
    readonly process?: string | undefined;
    readonly device: string;
  }): DeviceHolder {
    if (given.process !== undefined) {
      const client = this.#client(given.process);
      return {
        name: client.name,
        lab: this.#lab,
        places: () => [{ host: client.host, bdf: given.device }],
        device: client.device(given.device),
        load: (iova, lengthBytes) => client.load(given.device, iova, lengthBytes),
        store: (iova, bytes) => client.store(given.device, iova, bytes),
      };
    }
    const guest = this.#guest(given.guest ?? '');
    const device = guest.devices.find((candidate) => candidate.bdf === given.device);
    if (device === undefined) throw new KernelError(ENODEV, `look for ${given.device} in ${guest.name}`);
    return {
      name: guest.name,
      lab: this.#lab,
      places: () => device.places,
      device,
      load: (gpa, lengthBytes) => loadGuest(guest, gpa, lengthBytes),
      store: (gpa, bytes) => guest.store(gpa, bytes),
    };
  }

  #guest(name: string): Guest {
    const guest = this.#guests.get(name);
    if (guest === undefined) throw new KernelError(ESRCH, `guest ${name} is not booted`);
    return guest;
  }

  #client(name: string): Client {
    const client = this.#clients.get(name);
    if (client === undefined) throw new Error(`no process ${name} in this scenario`);
    return client;
  }
}
