/** Whole-system figures: system calls per second and the wall time of a scenario, by placement. */
import { readScenario } from '../../scenario/load.js';
import { executeScenario } from '../../scenario/execute.js';
import { shippedProfile } from '../../scenario/hosts.js';
import type { Task } from '../../runtime/task.js';
import { run, type Placement } from '../../testbed/run.js';
import type { Lab } from '../../testbed/lab.js';
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_UNMAP,
} from '../../uapi/iommufd.js';
import { O_RDWR } from '../../uapi/syscall.js';

const PAIRS = 500;
const HOST = 'ampere-altra';

/** `clients` processes map and unmap a page {@link PAIRS} times each, all at once. */
function* mapAndUnmap(lab: Lab, clients: number): Task<void> {
  function* client(name: string): Task<void> {
    const process = yield* lab.host(HOST).spawn({ name, uid: 0, capabilities: ['CAP_IPC_LOCK'] });
    const fd = yield* process.open('/dev/iommu', O_RDWR);
    const { value } = yield* process.ioctl(fd, IOMMU_IOAS_ALLOC, {});
    const user_va = yield* process.mmap({ length: 4096n });
    const flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE;
    for (let i = 0; i < PAIRS; i++) {
      yield* process.ioctl(fd, IOMMU_IOAS_MAP, {
        flags,
        ioas_id: value.out_ioas_id,
        user_va,
        length: 4096n,
        iova: 0x1000_0000n,
      });
      yield* process.ioctl(fd, IOMMU_IOAS_UNMAP, { ioas_id: value.out_ioas_id, iova: 0x1000_0000n, length: 4096n });
    }
  }
  const tasks = Array.from({ length: clients }, (_, i) => lab.spawn(`client${i}`, client(`client${i}`)));
  for (const task of tasks) yield* task.join();
}

/** System calls per second of wall time with `clients` concurrent processes on one host. */
export async function measureSyscalls(placement: Placement, clients: number): Promise<number> {
  const description = shippedProfile(HOST);
  if (description === undefined) throw new Error(`the shipped profile ${HOST} is missing`);
  const start = performance.now();
  const outcome = await run({
    seed: 1,
    placement,
    strategy: 'in-order',
    hosts: [description],
    links: [],
    main: (lab) => mapAndUnmap(lab, clients),
  });
  if (outcome.failure !== undefined) throw new Error(outcome.failure.message);
  return (clients * PAIRS * 2 * 1000) / (performance.now() - start);
}

/** Wall milliseconds of one shipped scenario. */
export async function measureScenario(file: string, placement: Placement): Promise<number> {
  const scenario = readScenario(file);
  const start = performance.now();
  const { outcome } = await executeScenario(scenario, { seed: 1, placement });
  if (outcome.verdict !== 'pass') throw new Error(`${file} did not pass`);
  return performance.now() - start;
}
