/**
 * A host booted only to be looked at: what its kernel makes of a description, read through sysfs as a user would.
 */
import type { HostDescription } from '../hardware/description.js';
import type { Task } from '../runtime/task.js';
import type { Process } from '../testbed/process.js';
import { run } from '../testbed/run.js';
import { CONFIG_BYTES } from '../uapi/pci-regs.js';
import { O_RDONLY } from '../uapi/syscall.js';

const GROUPS = '/sys/kernel/iommu_groups';
const DEVICES = '/sys/bus/pci/devices';

/** One IOMMU group as sysfs shows it. */
export interface ShownGroup {
  readonly number: number;
  /** BDFs, sorted. */
  readonly devices: readonly string[];
  /** Lines of reserved_regions. */
  readonly regions: string;
}

/** One PCI function as sysfs shows it. */
export interface ShownFunction {
  readonly bdf: string;
  readonly config: Uint8Array;
  /** Lines of `resource`. */
  readonly resource: string;
}

/** A booted host. */
export interface BootedHost {
  readonly groups: readonly ShownGroup[];
  readonly functions: readonly ShownFunction[];
}

function* shownGroups(process: Process): Task<ShownGroup[]> {
  const groups: ShownGroup[] = [];
  for (const name of yield* process.list(GROUPS)) {
    const devices = yield* process.list(`${GROUPS}/${name}/devices`);
    const regions = yield* process.readFile(`${GROUPS}/${name}/reserved_regions`);
    groups.push({ number: Number(name), devices: [...devices].sort(), regions: regions.trim() });
  }
  return groups;
}

function* shownFunctions(process: Process): Task<ShownFunction[]> {
  const functions: ShownFunction[] = [];
  for (const bdf of yield* process.list(DEVICES)) {
    const fd = yield* process.open(`${DEVICES}/${bdf}/config`, O_RDONLY);
    const config = yield* process.pread(fd, CONFIG_BYTES, 0n);
    yield* process.close(fd);
    functions.push({ bdf, config, resource: yield* process.readFile(`${DEVICES}/${bdf}/resource`) });
  }
  return functions;
}

/** Boots a host in this thread and reads it. @throws Error when it does not boot */
export async function bootHost(description: HostDescription): Promise<BootedHost> {
  let booted: BootedHost = { groups: [], functions: [] };
  const outcome = await run({
    seed: 1,
    placement: 'inline',
    strategy: 'in-order',
    hosts: [description],
    links: [],
    main: function* (lab) {
      const reader = yield* lab.host(description.name).spawn({ name: 'reader', uid: 0, capabilities: [] });
      booted = { groups: yield* shownGroups(reader), functions: yield* shownFunctions(reader) };
    },
  });
  if (outcome.failure !== undefined) throw new Error(outcome.failure.message);
  return booted;
}
