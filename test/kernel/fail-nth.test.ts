/**
 * Every allocation on the way of a real device fails in turn: bind, attach with mappings and reserved regions, replace, page
 * tables, detach. A call that fails leaves the address spaces as they were; the same call again succeeds.
 */
import { expect, test } from 'vitest';
import type { Task } from '../../src/runtime/task.js';
import type { FaultId } from '../../src/runtime/faults.js';
import type { HostClient } from '../../src/testbed/lab.js';
import type { Process } from '../../src/testbed/process.js';
import { KernelError } from '../../src/uapi/errno.js';
import {
  IOMMU_DESTROY,
  IOMMU_HWPT_ALLOC,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
} from '../../src/uapi/iommufd.js';
import { d05Like } from '../fixtures/hosts.js';
import { countersOf, IOVA, ioasOf, mapAt, onHost, opened } from './on-host.js';

const BDF = '0000:7d:00.0';
const BYTES = 0x6000n;
const FIXED = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

/** Usable ranges, alignment and counters: what a failed call must not change. */
function* stateOf(p: Process, host: HostClient, fd: number, ids: readonly number[]): Task<unknown> {
  const ranges: unknown[] = [];
  for (const ioas_id of ids) {
    const { result, value, buffers } = yield* p.tryIoctl(
      fd,
      IOMMU_IOAS_IOVA_RANGES,
      { ioas_id, num_iovas: 8 },
      { pointers: { allowed_iovas: { lengthBytes: 128 } } },
    );
    ranges.push([result, value.num_iovas, value.out_iova_alignment, [...(buffers['allowed_iovas'] ?? [])].join()]);
  }
  // What memory contains gets a frame with the first write; a table of a domain stays until the domain goes.
  const counters = Object.entries(yield* countersOf(host)).filter(([name]) => !name.endsWith('Frames'));
  return { ranges, counters };
}

/** Runs the calls one after another while the n-th allocation fails; false when there were not so many. */
function* failNth(p: Process, host: HostClient, fault: FaultId, n: number): Task<boolean> {
  const device = yield* opened(p, BDF);
  const { fd, ioas } = yield* ioasOf(p);
  const other = (yield* p.ioctl(fd, IOMMU_IOAS_ALLOC, {})).value.out_ioas_id;
  const va = yield* p.mmap({ length: BYTES });
  yield* mapAt(p, fd, ioas, va, BYTES);
  let hwpt = 0;
  const calls: (() => Task<unknown>)[] = [
    () => device.bind(fd),
    () => device.attach(ioas),
    () => mapAt(p, fd, ioas, va, BYTES, 2n * IOVA),
    () => {
      const copy = {
        flags: FIXED,
        dst_ioas_id: other,
        src_ioas_id: ioas,
        length: BYTES,
        dst_iova: IOVA,
        src_iova: IOVA,
      };
      return p.ioctl(fd, IOMMU_IOAS_COPY, copy);
    },
    function* () {
      const { value } = yield* p.ioctl(fd, IOMMU_HWPT_ALLOC, { dev_id: device.devId, pt_id: other });
      hwpt = value.out_hwpt_id;
    },
    () => device.attach(hwpt),
    () => device.attach(ioas),
    () => p.ioctl(fd, IOMMU_DESTROY, { id: hwpt }),
    () => p.ioctl(fd, IOMMU_IOAS_UNMAP, { ioas_id: ioas, iova: IOVA, length: BYTES }),
    () => device.detach(),
  ];
  yield* host.command({ lab: 'arm-fault', fault, rule: { skip: n, count: 1 } });
  let failures = 0;
  for (const [index, call] of calls.entries()) {
    const state = yield* stateOf(p, host, fd, [ioas, other]);
    try {
      yield* call();
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      const told = `call ${index} with ${fault} ${n}: ${error.code}`;
      expect(['ENOMEM', 'EFAULT'], told).toContain(error.code);
      expect(yield* stateOf(p, host, fd, [ioas, other]), told).toEqual(state);
      failures++;
      yield* call();
    }
  }
  yield* host.command({ lab: 'disarm-fault', fault });
  yield* device.close();
  yield* p.close(fd);
  yield* p.munmap(va, BYTES);
  expect(failures).toBeLessThanOrEqual(1);
  return failures > 0;
}

test.each(['kernel.kmalloc', 'mm.pin', 'core.kernel-alloc'] as const)(
  'each use of %s fails in turn on a real device',
  (fault) =>
    onHost(
      function* (p, host) {
        // The first time touches pages that stay touched.
        yield* failNth(p, host, fault, Number.MAX_SAFE_INTEGER);
        const before = yield* countersOf(host);
        let n = 0;
        while (yield* failNth(p, host, fault, n)) expect(yield* countersOf(host), `${fault} ${n++}`).toEqual(before);
        expect(n).toBeGreaterThan(1);
      },
      d05Like({ allowMixedMsi: true }),
    ),
);
