/**
 * One VMM process on one host: the guest's RAM mapped, the passthrough devices it holds.
 *
 * A guest (guest.ts) lives in one VMM at a time; a migration starts a second one on the destination and the guest moves
 * over. When the process exits the kernel takes back everything it held.
 */
import type { Task } from '../runtime/task.js';
import type { HostClient } from '../testbed/lab.js';
import type { Process } from '../testbed/process.js';
import type { Contiguity } from '../uapi/syscall.js';
import { IommufdBackend } from './backends/iommufd.js';
import { GuestMemory, type BackingSegment } from './guest-memory.js';

/** Who the VMM's process is, and how its memory lies. */
export interface VmmSpec {
  readonly name: string;
  /** 0 when not given. */
  readonly uid?: number;
  /** Effective capabilities; `CAP_IPC_LOCK` and `CAP_SYS_RESOURCE` when not given. */
  readonly capabilities?: readonly string[];
  /** RLIMIT_MEMLOCK in bytes; unlimited when not given. */
  readonly memlockBytes?: bigint;
  /** Physical contiguity of guest RAM; `huge-2m` when not given. */
  readonly contiguity?: Contiguity;
}

const DEFAULT_CAPABILITIES = ['CAP_IPC_LOCK', 'CAP_SYS_RESOURCE'];

/** A running VMM process. */
export class Vmm {
  readonly host: HostClient;
  readonly process: Process;
  readonly memory: GuestMemory;
  #backend: IommufdBackend | undefined;

  private constructor(host: HostClient, process: Process, contiguity: Contiguity) {
    this.host = host;
    this.process = process;
    this.memory = new GuestMemory(process, contiguity);
  }

  /**
   * Starts a VMM and maps the segments of a guest's backing.
   *
   * @throws KernelError when the host has no room (ENOMEM); the process is gone then.
   */
  static *start(host: HostClient, spec: VmmSpec, segments: readonly BackingSegment[]): Task<Vmm> {
    const process = yield* host.spawn({
      name: spec.name,
      uid: spec.uid ?? 0,
      capabilities: spec.capabilities ?? DEFAULT_CAPABILITIES,
      ...(spec.memlockBytes === undefined ? {} : { memlockBytes: spec.memlockBytes }),
    });
    const vmm = new Vmm(host, process, spec.contiguity ?? 'huge-2m');
    try {
      for (const segment of segments) yield* vmm.memory.addSegment(segment);
    } catch (error) {
      yield* vmm.exit();
      throw error;
    }
    return vmm;
  }

  /** The iommufd backend; undefined until the first device is plugged. */
  get backend(): IommufdBackend | undefined {
    return this.#backend;
  }

  /** The iommufd backend, opened when there is none yet: a VMM without devices holds no descriptor (domain.md E3.6). */
  *openBackend(): Task<IommufdBackend> {
    this.#backend ??= yield* IommufdBackend.open(this.process);
    return this.#backend;
  }

  /** Ends the process; the kernel closes its descriptors and frees its memory. */
  *exit(): Task<void> {
    yield* this.process.exit();
  }
}
