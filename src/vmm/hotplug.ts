/**
 * Plugging a passthrough device into a running guest, by policy.
 *
 * The guest's memory map was fixed when it started, perhaps on another host; the device's reserved regions are known only
 * here and now (domain.md E3.6). Three policies say what a VMM does about a conflict:
 *   - `reject`: what QEMU does: map, attach, and take the kernel's errno for an answer (E3.7);
 *   - `ignore`: attach to an empty address space of its own, then map what the kernel lets it, and tell nobody (E0.3);
 *   - `unmap-conflicts`: ask first (a probe address space and sysfs), take the conflicting pages out of the address space
 *     the other devices share, then attach; the list of what the guest lost is the answer (E0.5).
 * A verdict is `refused` when the guest goes on without the device, `killed` when the VMM had to abort, `silent` when the
 * device is there but RAM it may be told to use is not behind its IOVAs and the guest does not know, else `ok`. The
 * scenario's transaction record has the last word on `silent`; this is what the VMM could have known.
 *
 * After a refusal everything is as it was: nothing of the device stays open, nothing of the guest is unmapped.
 */
import { InvariantError, type Task } from '../runtime/task.js';
import { EADDRINUSE, EBUSY, EINVAL, ENODEV, EOPNOTSUPP, KernelError, type ErrorDetail } from '../uapi/errno.js';
import type { Container, IommufdBackend, UsableRanges } from './backends/iommufd.js';
import { blockingRegions, findConflicts, parseReservedRegions, type Conflict, type SysfsRegion } from './conflicts.js';
import type { Guest } from './guest.js';
import { GuestDevice } from './guest-device.js';
import { dmaMappings, mapFailurePolicy, ramSections, type DmaMapping } from './listener.js';
import { machineOf, MemoryMapError, ramBlockAt, type GuestMemoryMap, type RamBlock } from './machines.js';
import { complement, intersection, overlaps, PAGE_BYTES, subtract, widenTo, type Range } from './ranges.js';
import { bindToVfio, VfioDevice } from './vfio-device.js';
import type { Vmm } from './vmm.js';
import { vsmmuMismatches, vsmmuProperties, type VsmmuProperties } from './vsmmu.js';

export const HOTPLUG_POLICIES = ['reject', 'ignore', 'unmap-conflicts'] as const;
type HotplugPolicy = (typeof HOTPLUG_POLICIES)[number];

/** Which comes first in a new address space. QEMU attaches first; the kernel then refuses the map, not the attach (B5). */
type PlugOrder = 'map-first' | 'attach-first';

type Verdict = 'ok' | 'refused' | 'killed' | 'silent';

/** What to plug, and how. */
export interface PlugRequest {
  readonly bdf: string;
  /** `reject` when not given. */
  readonly policy?: HotplugPolicy;
  /** `map-first` when not given. Only `reject` lets one choose. */
  readonly order?: PlugOrder;
}

/** Guest RAM no device may use any more. */
interface LostRange extends Range {
  readonly block: string;
}

/** One try to put the device into an address space. */
interface PlugAttempt {
  /** `existing`: shared with other devices; `new`: its own. */
  readonly container: 'existing' | 'new';
  readonly call: string;
  readonly code: string;
}

/** What came of a plug. */
export interface PlugResult {
  readonly verdict: Verdict;
  readonly bdf: string;
  readonly policy: HotplugPolicy;
  /** The kernel's error that decided: `EADDRINUSE`; with the call that gave it. */
  readonly code?: string;
  readonly call?: string;
  readonly detail?: ErrorDetail;
  readonly conflicts: readonly Conflict[];
  readonly lost: readonly LostRange[];
  readonly attempts: readonly PlugAttempt[];
  /** The device, when the guest has it. */
  readonly device?: VfioDevice;
  /** What the virtual SMMU promises the guest with it. */
  readonly vsmmu?: VsmmuProperties;
}

/** Where a device goes: a VMM and the memory map of the guest it runs, or is about to run. */
interface PlugTarget {
  readonly name: string;
  readonly vmm: Vmm;
  readonly map: GuestMemoryMap;
  /** What the virtual SMMU promised; null where there is none, undefined before its first device. */
  readonly vsmmu: VsmmuProperties | null | undefined;
  /** The VMM gives up the guest. */
  readonly abort: (reason: string) => Task<void>;
}

/** A plug under way. */
interface Plug extends PlugTarget {
  readonly backend: IommufdBackend;
  readonly device: VfioDevice;
  readonly regions: readonly SysfsRegion[];
  readonly attempts: PlugAttempt[];
}

/**
 * Plugs a host's function into a guest that runs there.
 *
 * A function that no VFIO driver has is bound to vfio-pci first. Errors of the kernel become verdicts; only a broken
 * testbed throws.
 */
export function* plugDevice(guest: Guest, request: PlugRequest): Task<PlugResult> {
  yield* guest.changes.lock();
  try {
    const busy = notNow(guest);
    if (busy === undefined) return yield* giveDevice(guest, request);
    const policy = request.policy ?? 'reject';
    const base = { bdf: request.bdf, policy, conflicts: [], lost: [], attempts: [] };
    return notePlug(guest, { ...base, verdict: 'refused', ...busy });
  } finally {
    guest.changes.unlock();
  }
}

/** {@link plugDevice} for whoever keeps others from changing the guest. */
export function* giveDevice(guest: Guest, request: PlugRequest): Task<PlugResult> {
  const result = yield* plugWith(targetOf(guest), request);
  if (result.device !== undefined) guest.devices.push(new GuestDevice(guest, result.device, request));
  if (result.vsmmu !== undefined) guest.vsmmu = result.vsmmu;
  return notePlug(guest, result);
}

function notePlug(guest: Guest, result: PlugResult): PlugResult {
  guest.runtime.emit('vmm.plug', {
    guest: guest.name,
    host: guest.host.name,
    device: result.bdf,
    policy: result.policy,
    verdict: result.verdict,
    ...(result.code === undefined ? {} : { errno: result.code }),
    conflicts: result.conflicts.length,
    lost: result.lost.length,
  });
  return result;
}

function targetOf(guest: Guest): PlugTarget {
  const { name, vmm, map, spec } = guest;
  const vsmmu = spec.hasVsmmu === true ? guest.vsmmu : null;
  return { name, vmm, map, vsmmu, abort: (reason) => guest.kill(reason) };
}

/** A device that a VMM has from its start: policy `reject`. The guest whose map it is runs elsewhere or not yet. */
export function* coldPlugDevice(vmm: Vmm, guest: Guest, bdf: string): Task<PlugResult> {
  const abort = function* (): Task<void> {
    yield* vmm.exit();
  };
  return yield* plugWith({ ...targetOf(guest), vmm, abort }, { bdf });
}

function* plugWith(target: PlugTarget, request: PlugRequest): Task<PlugResult> {
  const policy = request.policy ?? 'reject';
  const base = { bdf: request.bdf, policy, conflicts: [], lost: [], attempts: [] };
  let plug: Plug;
  try {
    plug = yield* openDevice(target, request.bdf);
  } catch (error) {
    return { ...base, verdict: 'refused', ...kernelFacts(error) };
  }
  const predicted = findConflicts(plug.map, { regions: plug.regions });
  if (machineOf(plug.map.machine).abortsOnReservedOverlap && predicted.length > 0) {
    yield* plug.abort(`a reserved region of ${request.bdf} lies over guest memory`);
    return { ...base, verdict: 'killed', conflicts: predicted };
  }
  const abortion = { happened: false };
  const noting: Plug = {
    ...plug,
    *abort(reason) {
      abortion.happened = true;
      yield* plug.abort(reason);
    },
  };
  try {
    const vsmmu = yield* checkVsmmu(noting);
    const lost = yield* POLICIES[policy](noting, request.order ?? 'map-first');
    const conflicts = lost.length === 0 ? [] : yield* explain(plug, undefined);
    const verdict = policy === 'ignore' && lost.length > 0 ? 'silent' : 'ok';
    const { attempts, device } = plug;
    return { ...base, verdict, conflicts, lost, attempts, device, ...(vsmmu === undefined ? {} : { vsmmu }) };
  } catch (error) {
    const facts = { ...kernelFacts(error), attempts: plug.attempts };
    if (abortion.happened) return { ...base, verdict: 'killed', ...facts };
    const conflicts = yield* explain(plug, error as KernelError);
    yield* plug.device.close();
    return { ...base, verdict: 'refused', ...facts, conflicts };
  }
}

/** What the virtual SMMU promises from now on; undefined without one. @throws KernelError (EOPNOTSUPP) when this host cannot keep it */
function* checkVsmmu(plug: Plug): Task<VsmmuProperties | undefined> {
  if (plug.vsmmu === null) return undefined;
  const host = yield* plug.backend.smmuv3Info(plug.device);
  if (host === undefined) throw new KernelError(EOPNOTSUPP, 'vSMMU', { why: 'the device is not behind an SMMUv3' });
  const has = vsmmuProperties(host);
  const mismatches = plug.vsmmu === undefined ? [] : vsmmuMismatches(plug.vsmmu, has);
  const { faults, invariants } = plug.vmm.host.lab.runtime;
  const isChecked = !faults.fires('vmm.vsmmu-unchecked');
  if (mismatches.length > 0 && !isChecked) throw new InvariantError(mismatches.join('; '), 'INV-19');
  if (plug.vsmmu !== undefined && mismatches.length === 0) invariants.held('INV-19');
  if (mismatches.length > 0) throw new KernelError(EOPNOTSUPP, 'vSMMU', { why: mismatches.join('; ') });
  return plug.vsmmu ?? has;
}

/** A guest that is moving, or gone, takes no hardware. The VMM's own refusal, in the kernel's words: EBUSY. */
function notNow(guest: Guest): { code: string; call: string; detail: ErrorDetail } | undefined {
  const isAlive = guest.state === 'running' || guest.state === 'paused';
  if (isAlive && (!guest.isMigrating || guest.runtime.faults.fires('vmm.busy-ignored'))) return undefined;
  return { code: 'EBUSY', call: 'device_add', detail: { guest: isAlive ? 'migrating' : guest.state } };
}

/** What a kernel error says, as fields of the result; rethrows anything else. */
function kernelFacts(error: unknown): { code: string; call: string; detail: ErrorDetail } {
  if (!(error instanceof KernelError)) throw error;
  return { code: error.code, call: error.call, detail: error.detail };
}

/** Opens the function, binds it to the VMM's iommufd and reads its group's reserved regions. */
function* openDevice(target: PlugTarget, bdf: string): Task<Plug> {
  const { vmm } = target;
  yield* bindToVfio(vmm.process, bdf);
  const device = yield* VfioDevice.open(vmm.process, bdf);
  try {
    const backend = yield* vmm.openBackend();
    yield* device.bind(backend.fd);
    const path = `/sys/bus/pci/devices/${bdf}/iommu_group/reserved_regions`;
    const regions = parseReservedRegions(yield* vmm.process.readFile(path));
    return { ...target, backend, device, regions, attempts: [] };
  } catch (error) {
    yield* device.close();
    throw error;
  }
}

/** A policy attaches the device or throws the kernel's error; it returns what the guest lost. */
type PolicyTask = (plug: Plug, order: PlugOrder) => Task<readonly LostRange[]>;

const POLICIES: Readonly<Record<HotplugPolicy, PolicyTask>> = {
  reject: plugOrReject,
  ignore: plugAndIgnore,
  'unmap-conflicts': plugAfterUnmapping,
};

/** Every existing container, then a new one with all of RAM (domain.md A3.3). */
function* plugOrReject(plug: Plug, order: PlugOrder): Task<readonly LostRange[]> {
  const shared = yield* attachToExisting(plug);
  if (shared !== undefined) return lostRanges(plug.map, shared.lost);
  yield* inNewContainer(plug, function* (container) {
    if (order === 'attach-first') yield* plug.backend.attach(container, plug.device);
    for (const mapping of wantedMappings(plug)) yield* plug.backend.map(container, mapping);
    if (order === 'map-first') yield* plug.backend.attach(container, plug.device);
  });
  return [];
}

function* plugAndIgnore(plug: Plug): Task<readonly LostRange[]> {
  const { backend, device, map } = plug;
  const shared = yield* attachToExisting(plug);
  if (shared !== undefined) return lostRanges(map, shared.lost);
  const container = yield* inNewContainer(plug, function* (fresh) {
    yield* backend.attach(fresh, device);
    const holes = holesIn(yield* backend.usableRanges(fresh));
    for (const mapping of wantedMappings(plug)) {
      for (const piece of cut(mapping, holes)) yield* backend.map(fresh, piece);
      fresh.lost.push(...commonParts(mapping, holes));
    }
  });
  return lostRanges(map, container.lost);
}

function* plugAfterUnmapping(plug: Plug): Task<readonly LostRange[]> {
  const { backend, device, map } = plug;
  const holes = yield* unusableRanges(plug);
  const existing = backend.containers[0];
  if (existing === undefined) {
    const container = yield* inNewContainer(plug, function* (fresh) {
      for (const mapping of wantedMappings(plug)) {
        for (const piece of cut(mapping, holes)) yield* backend.map(fresh, piece);
        fresh.lost.push(...commonParts(mapping, holes));
      }
      yield* backend.attach(fresh, device);
    });
    return lostRanges(map, container.lost);
  }
  const replaced = yield* carve(backend, existing, holes);
  try {
    yield* backend.attach(existing, device);
  } catch (error) {
    yield* restore(plug, existing, replaced);
    throw error;
  }
  return lostRanges(map, existing.lost);
}

/** Tries the containers there are, in order; undefined when none takes the device. */
function* attachToExisting(plug: Plug): Task<Container | undefined> {
  for (const container of plug.backend.containers) {
    try {
      yield* plug.backend.attach(container, plug.device);
      return container;
    } catch (error) {
      noteAttempt(plug, 'existing', error);
    }
  }
  return undefined;
}

/** Fills a new container; when that fails it is taken down again and the error goes on. */
function* inNewContainer(plug: Plug, fill: (container: Container) => Task<void>): Task<Container> {
  const { backend, device } = plug;
  const container = yield* backend.createContainer();
  try {
    yield* fill(container);
  } catch (error) {
    noteAttempt(plug, 'new', error);
    if (container.hwpts.length > 0) yield* backend.detachFrom(container, device);
    yield* backend.destroyContainer(container);
    throw error;
  }
  backend.adopt(container);
  return container;
}

function noteAttempt(plug: Plug, container: PlugAttempt['container'], error: unknown): void {
  if (!(error instanceof KernelError)) throw error;
  plug.attempts.push({ container, call: error.call, code: error.code });
}

/** What the listener would map of the guest's RAM now. */
function wantedMappings({ map, vmm }: Pick<PlugTarget, 'map' | 'vmm'>): DmaMapping[] {
  return map.ram.flatMap((block) => {
    const ramVa = vmm.memory.vaOf(block.offset) - block.offset;
    return dmaMappings(ramSections({ ...map, ram: [block] }, ramVa), PAGE_BYTES);
  });
}

/** IOVAs the device's presence makes unusable: the kernel's own word from a probe address space, else sysfs. */
function* unusableRanges(plug: Plug): Task<Range[]> {
  const usable = yield* probe(plug);
  return usable === undefined ? blockingRegions(plug.regions) : holesIn(usable);
}

/** What cannot be mapped, in whole pages of the IOMMU. */
function holesIn({ ranges, alignmentBytes }: UsableRanges): Range[] {
  const page = alignmentBytes > PAGE_BYTES ? alignmentBytes : PAGE_BYTES;
  return complement(ranges).map((range) => widenTo(range, page));
}

/**
 * Attaches the device to an empty address space and reads what could be mapped there: the only exact pre-query there is
 * (domain.md E0.5). Undefined when the device cannot be attached at all, as when its group is in another address space.
 */
function* probe(plug: Plug): Task<UsableRanges | undefined> {
  const { backend, device } = plug;
  const container = yield* backend.createContainer();
  try {
    yield* backend.attach(container, device);
    const usable = yield* backend.usableRanges(container);
    yield* backend.detachFrom(container, device);
    return usable;
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return undefined;
  } finally {
    yield* backend.destroyContainer(container);
  }
}

/** Conflicts behind a refusal (or behind what was lost): sysfs for the types, a probe for the aperture. */
function* explain(plug: Plug, error: KernelError | undefined): Task<Conflict[]> {
  const isAboutRanges = error === undefined || error.errno === EADDRINUSE || error.errno === EINVAL;
  if (!isAboutRanges) return [];
  const attached = plug.backend.containerOf(plug.device);
  const usable = attached === undefined ? yield* probe(plug) : yield* plug.backend.usableRanges(attached);
  return findConflicts(plug.map, {
    regions: plug.regions,
    ...(usable === undefined ? {} : { usable: usable.ranges }),
    ...(error === undefined ? {} : { detail: error.detail }),
  });
}

/** Takes `holes` out of a container that devices use: iommufd does not split, so whole mappings go and pieces return. */
function* carve(backend: IommufdBackend, container: Container, holes: readonly Range[]): Task<DmaMapping[]> {
  const affected = container.mappings.filter((mapping) => holes.some((hole) => overlaps(mapping, hole)));
  for (const mapping of affected) {
    yield* backend.unmap(container, mapping);
    for (const piece of cut(mapping, holes)) yield* backend.map(container, piece);
    container.lost.push(...commonParts(mapping, holes));
  }
  return affected;
}

/** Undoes {@link carve}. A guest whose RAM cannot be mapped again has lost it under its devices' feet: the VMM aborts. */
function* restore({ backend, abort }: Plug, container: Container, replaced: readonly DmaMapping[]): Task<void> {
  try {
    for (const mapping of replaced) {
      for (const piece of container.mappings.filter((candidate) => overlaps(candidate, mapping)))
        yield* backend.unmap(container, piece);
      yield* backend.map(container, mapping);
    }
  } catch (error) {
    if (error instanceof KernelError) yield* abort(`could not map guest RAM again: ${error.message}`);
    throw error;
  }
  const isRestored = (range: Range): boolean => replaced.some((mapping) => overlaps(mapping, range));
  container.lost.splice(0, container.lost.length, ...container.lost.filter((range) => !isRestored(range)));
}

function cut(mapping: DmaMapping, holes: readonly Range[]): DmaMapping[] {
  return subtract(mapping, holes).map((piece) => ({
    ...mapping,
    ...piece,
    va: mapping.va + (piece.start - mapping.start),
  }));
}

function commonParts(range: Range, holes: readonly Range[]): Range[] {
  return holes.flatMap((hole) => intersection(range, hole) ?? []);
}

function lostRanges(map: GuestMemoryMap, ranges: readonly Range[]): LostRange[] {
  return ranges.map((range) => ({ ...range, block: ramBlockAt(map, range.start)?.name ?? '' }));
}

/**
 * Takes a device away from its guest: bus mastering off, out of its address space, closed. The function stays bound to
 * its VFIO driver. @throws KernelError EBUSY while the guest is on its way, ENODEV when it has no such device
 */
export function* unplugDevice(guest: Guest, device: GuestDevice): Task<void> {
  yield* guest.changes.lock();
  try {
    const busy = notNow(guest);
    if (busy !== undefined) throw new KernelError(EBUSY, 'device_del', busy.detail);
    yield* takeDevice(guest, device);
  } finally {
    guest.changes.unlock();
  }
}

/** {@link unplugDevice} for whoever keeps others from changing the guest. */
export function* takeDevice(guest: Guest, device: GuestDevice): Task<void> {
  const { vmm, devices } = guest;
  if (!devices.includes(device)) throw new KernelError(ENODEV, `look for ${device.bdf}`);
  yield* device.remove();
  const { vfio } = device;
  yield* vfio.setBusMaster(false);
  yield* vfio.disableMsix();
  yield* (yield* vmm.openBackend()).detach(vfio);
  yield* vfio.close();
  devices.splice(devices.indexOf(device), 1);
  guest.runtime.emit('vmm.unplug', { guest: guest.name, host: vmm.host.name, device: vfio.bdf });
}

/** What came of adding memory. */
export interface GrowResult {
  readonly verdict: 'ok' | 'refused' | 'killed';
  readonly code?: string;
  readonly call?: string;
  readonly detail?: ErrorDetail;
  readonly block?: RamBlock;
}

/**
 * Hot-adds a DIMM: memory for it, then every container maps it. A host that cannot give the memory refuses; a mapping
 * that fails after the devices are there ends the VM (domain.md A3.2, B5).
 */
export function* addMemory(guest: Guest, name: string, start: bigint, lengthBytes: bigint): Task<GrowResult> {
  yield* guest.changes.lock();
  try {
    const busy = notNow(guest);
    return busy === undefined ? yield* growGuest(guest, name, start, lengthBytes) : { verdict: 'refused', ...busy };
  } finally {
    guest.changes.unlock();
  }
}

function* growGuest(guest: Guest, name: string, start: bigint, lengthBytes: bigint): Task<GrowResult> {
  let block: RamBlock;
  try {
    block = yield* guest.addRam(name, start, lengthBytes);
  } catch (error) {
    if (error instanceof MemoryMapError) return { verdict: 'refused', detail: { message: error.message } };
    return { verdict: 'refused', ...kernelFacts(error) };
  }
  const mappings = wantedMappings(guest).filter((mapping) => overlaps(mapping, block));
  for (const container of guest.vmm.backend?.containers ?? []) {
    for (const mapping of mappings) {
      try {
        yield* (yield* guest.vmm.openBackend()).map(container, mapping);
      } catch (error) {
        const facts = kernelFacts(error);
        if (mapFailurePolicy(mapping.kind, true) !== 'kill') continue;
        yield* guest.kill(`DMA mapping failed, unable to continue: ${facts.code}`);
        return { verdict: 'killed', ...facts, block };
      }
    }
  }
  return { verdict: 'ok', block };
}
