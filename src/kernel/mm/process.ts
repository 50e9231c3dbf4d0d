/** Processes: an address space, descriptors, credentials, limits (`struct task_struct`, `user_struct`, `cred`). */
import type { ProcessSpec } from '../lab.js';
import { FdTable } from '../files.js';
import type { MmStruct } from './mm.js';

/** What all processes of a user share. */
export class UserStruct {
  readonly uid: number;
  /** Pages charged against RLIMIT_MEMLOCK of the user (IOMMU_OPTION_RLIMIT_MODE 0). */
  lockedVm = 0;

  constructor(uid: number) {
    this.uid = uid;
  }
}

/** A process. */
export class Process {
  readonly pid: number;
  readonly name: string;
  readonly mm: MmStruct;
  readonly user: UserStruct;
  readonly files = new FdTable();
  /** Bytes; undefined = RLIM_INFINITY. */
  readonly rlimits: { memlockBytes: bigint | undefined };
  readonly #capabilities: Set<string>;

  constructor(pid: number, spec: ProcessSpec, mm: MmStruct, user: UserStruct) {
    this.pid = pid;
    this.name = spec.name;
    this.mm = mm;
    this.user = user;
    this.rlimits = { memlockBytes: spec.memlockBytes };
    this.#capabilities = new Set(spec.capabilities);
  }

  /** Whether a capability is effective, e.g. `CAP_IPC_LOCK`. */
  capable(capability: string): boolean {
    return this.#capabilities.has(capability);
  }

  /** `capset`: makes a capability effective or drops it. */
  setCapability(capability: string, isEffective: boolean): void {
    if (isEffective) this.#capabilities.add(capability);
    else this.#capabilities.delete(capability);
  }
}
