/**
 * A migration without moving: what would refuse it, and what the guest could not have on the destination afterwards.
 *
 * The second is the question this testbed was made for: the guest's memory map is fixed, and a reserved region of the destination that
 * lies in guest RAM refuses every later hot-plug of a device it applies to. The destination's memory is tried with a VMM that exits again;
 * of its devices only sysfs is read; a function is opened only where a VFIO driver has it already, so nothing changes hands. What it cannot
 * know: limits of the VMM's process, and what a card that no VFIO driver has can do.
 */
import type { Task } from '../runtime/task.js';
import { ENOENT, KernelError } from '../uapi/errno.js';
import type { Process } from '../testbed/process.js';
import { findConflicts, parseReservedRegions, type Conflict } from '../vmm/conflicts.js';
import type { Guest } from '../vmm/guest.js';
import { hex } from '../layout/bits.js';
import { IommufdBackend } from '../vmm/backends/iommufd.js';
import { VfioDevice } from '../vmm/vfio-device.js';
import { VfioMigration } from '../vmm/vfio-migration.js';
import { Vmm } from '../vmm/vmm.js';
import { vsmmuMismatches, vsmmuProperties } from '../vmm/vsmmu.js';
import { findBlockers, targetAddress } from './blockers.js';
import type { MigrationFailureReason, MigrationRequest } from './request.js';

/** Something that does not fit. */
export interface PreflightFinding {
  /** `now`: the migration would be refused. `later`: it would not, but a hot-plug on the destination would. */
  readonly when: 'now' | 'later';
  readonly text: string;
  readonly reason?: MigrationFailureReason;
  readonly code?: string;
  readonly conflicts: readonly Conflict[];
}

/** All that does not fit, what would refuse the migration first. */
export interface PreflightReport {
  readonly findings: readonly PreflightFinding[];
}

/** Looks without touching. */
export function* preflight(guest: Guest, request: MigrationRequest): Task<PreflightReport> {
  const findings: PreflightFinding[] = [];
  if (guest.isMigrating) {
    const text = `guest ${guest.name} is being migrated`;
    findings.push({ when: 'now', text, reason: 'already-migrating', conflicts: [] });
  }
  for (const { reason, message, code } of yield* findBlockers(guest, request))
    findings.push({ when: 'now', text: message, reason, ...(code === undefined ? {} : { code }), conflicts: [] });
  const probe = yield* tryMemory(guest, request);
  if ('code' in probe) {
    const text = `${request.to.name} cannot hold the guest: ${probe.code}`;
    findings.push({ when: 'now', text, reason: 'destination-refused', code: probe.code, conflicts: [] });
  } else {
    findings.push(...(yield* tryDevices(guest, request, probe.process)));
    yield* probe.exit();
  }
  findings.sort((a, b) => Number(a.when === 'later') - Number(b.when === 'later'));
  guest.runtime.emit('migration.preflight', { guest: guest.name, to: request.to.name, findings: findings.length });
  return { findings };
}

function* tryMemory(guest: Guest, request: MigrationRequest): Task<Vmm | { readonly code: string }> {
  try {
    const spec = { name: `${guest.name}-dry-run`, ...guest.spec.vmm, ...request.destination };
    return yield* Vmm.start(request.to, spec, guest.vmm.memory.segments);
  } catch (error) {
    if (error instanceof KernelError) return { code: error.code };
    throw error;
  }
}

/** The functions that would move in, and the others of the destination. */
function* tryDevices(guest: Guest, request: MigrationRequest, process: Process): Task<PreflightFinding[]> {
  const isMoving = (request.attachedDevices ?? 'migrate') === 'migrate';
  const wanted = new Set(isMoving ? guest.devices.map(({ bdf }) => targetAddress(request, bdf)) : []);
  const present = yield* process.list('/sys/bus/pci/devices');
  const findings: PreflightFinding[] = [];
  if (guest.runtime.faults.fires('vmm.preflight-blind')) return findings;
  for (const bdf of wanted) {
    if (present.includes(bdf)) continue;
    const text = `${request.to.name} has no function ${bdf}`;
    findings.push({ when: 'now', text, reason: 'destination-refused', conflicts: [] });
  }
  // A group's regions are one fact, however many functions it has.
  const seen = new Set<string>();
  for (const bdf of present) {
    const when = wanted.has(bdf) ? 'now' : 'later';
    const reason = when === 'now' ? { reason: 'destination-refused' as const } : {};
    const conflicts = yield* conflictsOf(guest, process, bdf);
    const key = `${when} ${conflicts.map(({ start, last }) => `${start}-${last}`).join()}`;
    if (conflicts.length > 0 && !seen.has(key)) {
      seen.add(key);
      const regions = conflicts.map(({ start, last }) => `${hex(start)}-${hex(last)}`).join(', ');
      const what = when === 'now' ? `${bdf} cannot be attached` : `a hot-plug of ${bdf} would be refused`;
      findings.push({ when, text: `${what}: ${regions} reserved in guest RAM`, ...reason, conflicts });
    }
    const lacks = yield* looks(guest, request, process, bdf);
    if (lacks.length > 0) findings.push({ when, text: `${bdf}: ${lacks.join('; ')}`, ...reason, conflicts: [] });
  }
  return findings;
}

function* conflictsOf(guest: Guest, process: Process, bdf: string): Task<readonly Conflict[]> {
  const text = yield* readIfThere(process, `/sys/bus/pci/devices/${bdf}/iommu_group/reserved_regions`);
  return text === undefined ? [] : findConflicts(guest.map, { regions: parseReservedRegions(text) });
}

/**
 * What else speaks against a function: another kind of card than the guest has; and, where a VFIO driver has it already, that
 * it cannot be taken, cannot take a state, or that its SMMU lacks what the virtual SMMU promised.
 */
function* looks(guest: Guest, request: MigrationRequest, process: Process, bdf: string): Task<readonly string[]> {
  const found: string[] = [];
  const source = guest.devices.find((device) => targetAddress(request, device.bdf) === bdf);
  const isMoving = source !== undefined && (request.attachedDevices ?? 'migrate') === 'migrate';
  if (isMoving) {
    const there = yield* readIfThere(process, `/sys/bus/pci/devices/${bdf}/modalias`);
    const here = yield* guest.vmm.process.readFile(`/sys/bus/pci/devices/${source.bdf}/modalias`);
    if (there !== here) found.push('another kind of card');
  }
  let device: VfioDevice;
  try {
    device = yield* VfioDevice.open(process, bdf);
  } catch (error) {
    if (error instanceof KernelError) return found;
    throw error;
  }
  const backend = yield* IommufdBackend.open(process);
  try {
    yield* device.bind(backend.fd);
    if (isMoving && (yield* VfioMigration.of(device)) === undefined) found.push('it cannot take a state');
    const idr = guest.vsmmu === undefined ? undefined : yield* backend.smmuv3Info(device);
    if (guest.vsmmu !== undefined && idr !== undefined)
      found.push(...vsmmuMismatches(guest.vsmmu, vsmmuProperties(idr)));
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    if (isMoving) found.push(`it cannot be taken: ${error.code} from ${error.call}`);
  } finally {
    yield* device.close();
    yield* backend.close();
  }
  return found;
}

function* readIfThere(process: Process, path: string): Task<string | undefined> {
  try {
    return yield* process.readFile(path);
  } catch (error) {
    if (error instanceof KernelError && error.errno === ENOENT) return undefined;
    throw error;
  }
}
