/** Runs client code against one whole host, in this thread: the way tests reach the kernel at the system-call boundary. */
import type { HostDescription } from '../../src/hardware/description.js';
import type { Task } from '../../src/runtime/task.js';
import type { HostClient } from '../../src/testbed/lab.js';
import type { Process } from '../../src/testbed/process.js';
import { run } from '../../src/testbed/run.js';
import { KernelError } from '../../src/uapi/errno.js';
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
} from '../../src/uapi/iommufd.js';
import { O_RDWR } from '../../src/uapi/syscall.js';
import { bindToVfio, VfioDevice } from '../../src/vmm/vfio-device.js';
import { ampereLike } from '../fixtures/hosts.js';

export const BDF = '0000:01:00.0';
export const OTHER = '0000:01:00.1';
/** Where {@link deviceWithMemory} maps its page. */
export const IOVA = 0x40000000n;

/** Runs `body` with a root process on a host, in an order that the seed chooses when there is one; rethrows what it throws. */
export async function onHost(
  body: (process: Process, host: HostClient) => Task<void>,
  description: HostDescription = ampereLike(),
  seed?: number,
): Promise<void> {
  let error: Error | undefined;
  const outcome = await run({
    seed: seed ?? 1,
    placement: 'inline',
    strategy: seed === undefined ? 'in-order' : 'random',
    hosts: [description],
    links: [],
    main: function* (lab) {
      try {
        const host = lab.host(description.name);
        yield* body(yield* host.spawn({ name: 'p', uid: 0, capabilities: ['CAP_IPC_LOCK'] }), host);
      } catch (thrown) {
        error = thrown instanceof Error ? thrown : new Error(String(thrown));
      }
    },
  });
  if (error !== undefined) throw error;
  if (outcome.failure !== undefined) throw new Error(outcome.failure.message);
}

/** The errno name a call fails with; `ok` when it does not. */
export function* errorOf(call: Task<unknown>): Task<string> {
  try {
    yield* call;
    return 'ok';
  } catch (error) {
    if (error instanceof KernelError) return error.code;
    throw error;
  }
}

/** The leak counters of a host. */
export function* countersOf(host: HostClient): Task<Readonly<Record<string, number>>> {
  return (yield* host.command({ lab: 'counters' })).counters ?? {};
}

/** A new iommufd with one address space. */
export function* ioasOf(p: Process): Task<{ fd: number; ioas: number }> {
  const fd = yield* p.open('/dev/iommu', O_RDWR);
  return { fd, ioas: (yield* p.ioctl(fd, IOMMU_IOAS_ALLOC, {})).value.out_ioas_id };
}

/** Maps memory of the process for reading and writing at a fixed IOVA. */
export function* mapAt(p: Process, fd: number, ioas: number, va: bigint, length: bigint, iova = IOVA): Task<void> {
  const flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
  yield* p.ioctl(fd, IOMMU_IOAS_MAP, { flags, ioas_id: ioas, user_va: va, length, iova });
}

/** An open, unbound cdev of a function given to vfio-pci. */
export function* opened(p: Process, bdf = BDF): Task<VfioDevice> {
  yield* bindToVfio(p, bdf);
  return yield* VfioDevice.open(p, bdf);
}

/** A device attached to an address space with one page of the process at {@link IOVA}. */
export function* deviceWithMemory(p: Process): Task<{ device: VfioDevice; fd: number; ioas: number; va: bigint }> {
  const device = yield* opened(p);
  const { fd, ioas } = yield* ioasOf(p);
  yield* device.bind(fd);
  yield* device.attach(ioas);
  const va = yield* p.mmap({ length: 4096n });
  yield* mapAt(p, fd, ioas, va, 4096n);
  return { device, fd, ioas, va };
}
