/** BARs of an open device while its memory decode is switched (`memory_lock`): whoever touches them, and whoever has them as dma-bufs. */
import { describe, expect, test } from 'vitest';
import type { Task } from '../../src/runtime/task.js';
import type { HostClient, Lab } from '../../src/testbed/lab.js';
import type { Process } from '../../src/testbed/process.js';
import { run } from '../../src/testbed/run.js';
import { KernelError } from '../../src/uapi/errno.js';
import { DMA_ENGINE_REGISTER_BAR, DMA_PATTERN } from '../../src/uapi/dma-engine.js';
import {
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
} from '../../src/uapi/iommufd.js';
import { VFIO_PCI_CONFIG_REGION_INDEX } from '../../src/uapi/vfio.js';
import { ampereLike } from '../fixtures/hosts.js';
import { errorOf, IOVA, ioasOf, opened } from './on-host.js';

const SEEDS = Array.from({ length: 40 }, (_, i) => i + 1);
const FIXED = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
/** A register that writes leave as it is. */
const PCI_VENDOR_ID = 0n;

/** Runs under a random schedule; what broke. */
async function broken(
  seed: number,
  body: (lab: Lab, p: Process, host: HostClient) => Task<void>,
): Promise<string | undefined> {
  const description = ampereLike();
  let message: string | undefined;
  const { failure } = await run({
    seed,
    placement: 'inline',
    strategy: 'random',
    hosts: [description],
    links: [],
    main: function* (lab) {
      const host = lab.host(description.name);
      try {
        yield* body(lab, yield* host.spawn({ name: 'p', uid: 0, capabilities: ['CAP_IPC_LOCK'] }), host);
      } catch (error) {
        message = String(error);
      }
    },
  });
  return failure?.message ?? message;
}

function* readAndSwitch(lab: Lab, p: Process, host: HostClient, isUnlocked: boolean): Task<void> {
  const { fd } = yield* ioasOf(p);
  const device = yield* opened(p);
  yield* device.bind(fd);
  yield* device.setCommand({ decodesMemory: true });
  if (isUnlocked) yield* host.command({ lab: 'arm-fault', fault: 'vfio.memory-unlocked', rule: {} });
  const reader = function* (): Task<void> {
    try {
      for (let i = 0; i < 4; i++) yield* device.readRegion(DMA_ENGINE_REGISTER_BAR, BigInt(DMA_PATTERN.offset), 4);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
    }
  };
  const tasks = [lab.spawn('reader', reader()), lab.spawn('switch', device.setCommand({ decodesMemory: false }))];
  for (const task of tasks) yield* task.join();
}

describe('memory decode goes off while a program reads a BAR', () => {
  test('the CPU never reads what is not decoded', async () => {
    for (const seed of SEEDS)
      expect(await broken(seed, (...args) => readAndSwitch(...args, false)), `seed ${seed}`).toBeUndefined();
  });

  test('without memory_lock it does, and that is noticed (IN-20)', async () => {
    const found: (string | undefined)[] = [];
    for (const seed of SEEDS) {
      found.push(await broken(seed, (...args) => readAndSwitch(...args, true)));
      if (found.at(-1) !== undefined) break;
    }
    expect(found.at(-1)).toMatch(/^mmio: the CPU accesses a BAR of .*, which does not decode memory/);
  });
});

test('a config write that decode-off waits behind does not give dma-bufs back that decode-off has revoked', async () => {
  for (const seed of SEEDS) {
    const answers: string[] = [];
    const failure = await broken(seed, function* (lab, p) {
      const { fd, ioas } = yield* ioasOf(p);
      const device = yield* opened(p);
      yield* device.bind(fd);
      yield* device.attach(ioas);
      yield* device.setCommand({ decodesMemory: true });
      const files = [0n, 0n].map(() => device.exportRegion(DMA_ENGINE_REGISTER_BAR, 0n, 4096n));
      const made: number[] = [];
      for (const file of files) made.push(yield* file);
      const other = function* (): Task<void> {
        // As many calls as switching takes, so that the last ones meet.
        yield* device.readRegion(VFIO_PCI_CONFIG_REGION_INDEX, PCI_VENDOR_ID, 2);
        yield* device.writeRegion(VFIO_PCI_CONFIG_REGION_INDEX, PCI_VENDOR_ID, new Uint8Array(1));
      };
      const tasks = [lab.spawn('off', device.setCommand({ decodesMemory: false })), lab.spawn('other', other())];
      for (const task of tasks) yield* task.join();
      for (const [i, file] of made.entries()) {
        const fields = {
          flags: FIXED,
          ioas_id: ioas,
          fd: file,
          start: 0n,
          length: 4096n,
          iova: IOVA + BigInt(i) * 4096n,
        };
        answers.push(yield* errorOf(p.ioctl(fd, IOMMU_IOAS_MAP_FILE, fields)));
      }
    });
    expect(failure, `seed ${seed}`).toBeUndefined();
    expect(answers, `seed ${seed}`).toEqual(['ENODEV', 'ENODEV']);
  }
});
