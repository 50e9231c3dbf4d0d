/** A BAR as a dma-buf: mapped for another device, taken away while it does not decode memory. */
import { describe, expect, test } from 'vitest';
import type { Task } from '../../src/runtime/task.js';
import type { Process } from '../../src/testbed/process.js';
import { DMA_ENGINE_REGISTER_BAR, DMA_PATTERN } from '../../src/uapi/dma-engine.js';
import {
  IOMMU_IOAS_CHANGE_PROCESS,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
} from '../../src/uapi/iommufd.js';
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_DMA_BUF,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  vfio_device_feature_dma_buf,
  vfio_region_dma_range,
} from '../../src/uapi/vfio.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import type { VfioDevice } from '../../src/vmm/vfio-device.js';
import { BDF, countersOf, errorOf, IOVA, ioasOf, onHost, opened } from './on-host.js';

const PEER = '0000:02:00.0';
const PAGE = 4096n;
const FIXED = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

interface Rig {
  readonly p: Process;
  readonly fd: number;
  readonly ioas: number;
  readonly engine: DmaEngineDriver;
  readonly device: VfioDevice;
  readonly peer: VfioDevice;
}

/** Two devices on one iommufd; the first is attached and can do DMA. */
function* rigOf(p: Process): Task<Rig> {
  const { fd, ioas } = yield* ioasOf(p);
  const device = yield* opened(p);
  yield* device.bind(fd);
  yield* device.attach(ioas);
  const peer = yield* opened(p, PEER);
  yield* peer.bind(fd);
  return { p, fd, ioas, engine: yield* DmaEngineDriver.start(device), device, peer };
}

function* mapFile({ p, fd, ioas }: Rig, file: number, iova = IOVA, start = 0n, length = PAGE): Task<void> {
  yield* p.ioctl(fd, IOMMU_IOAS_MAP_FILE, { flags: FIXED, ioas_id: ioas, fd: file, start, length, iova });
}

/** Writes the peer's pattern register by DMA; what the engine says, and what the register holds then. */
function* writePeer({ engine, peer }: Rig, pattern: number, iova = IOVA): Task<readonly [string, number]> {
  const to = iova + BigInt(DMA_PATTERN.offset);
  const { status } = yield* engine.run({ op: 'FILL', to, lengthBytes: 4, pattern });
  yield* peer.setCommand({ decodesMemory: true });
  const bytes = yield* peer.readRegion(DMA_ENGINE_REGISTER_BAR, BigInt(DMA_PATTERN.offset), 4);
  return [status, new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)];
}

describe('a BAR as a dma-buf', () => {
  test('is written by another device through its IOMMU', () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      yield* mapFile(rig, yield* rig.peer.exportRegion(DMA_ENGINE_REGISTER_BAR, 0n, PAGE));
      expect(yield* writePeer(rig, 0x1234abcd)).toEqual(['done', 0x1234abcd]);
    }));

  test.each(['memory decode off', 'reset', 'close'] as const)('%s takes it from every device, for good', (how) =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      const { peer, fd, ioas } = rig;
      const file = yield* peer.exportRegion(DMA_ENGINE_REGISTER_BAR, 0n, PAGE);
      yield* mapFile(rig, file);
      if (how === 'memory decode off') {
        yield* peer.setCommand({ decodesMemory: false });
        expect(yield* errorOf(mapFile(rig, file, 2n * IOVA))).toBe('ENODEV');
        yield* peer.setCommand({ decodesMemory: true });
      } else if (how === 'reset') yield* peer.reset();
      else yield* peer.close();
      const after = yield* rig.engine.run({ op: 'FILL', to: IOVA, lengthBytes: 4, pattern: 1 });
      expect([after.status, after.error]).toEqual(['error', 'WRITE_ABORTED']);
      if (how === 'close') expect(yield* errorOf(mapFile(rig, file, 2n * IOVA))).toBe('ENODEV');
      else {
        yield* mapFile(rig, file, 2n * IOVA);
        expect(yield* writePeer(rig, 7, 2n * IOVA)).toEqual(['done', 7]);
      }
      const { value } = yield* p.ioctl(fd, IOMMU_IOAS_UNMAP, { ioas_id: ioas, iova: IOVA, length: PAGE });
      expect(value.length).toBe(PAGE);
    }),
  );

  test('pins nothing, belongs to no process, and leaves nothing behind', () =>
    onHost(function* (p, host) {
      const before = yield* countersOf(host);
      const rig = yield* rigOf(p);
      const file = yield* rig.peer.exportRegion(DMA_ENGINE_REGISTER_BAR, 0n, PAGE);
      yield* mapFile(rig, file);
      const during = yield* countersOf(host);
      expect(during['pinnedPages']).toBe(before['pinnedPages']);
      expect(yield* errorOf(p.ioctl(rig.fd, IOMMU_IOAS_CHANGE_PROCESS, {}))).toBe('EINVAL');
      yield* p.close(file);
      expect(yield* writePeer(rig, 5)).toEqual(['done', 5]);
      yield* rig.device.close();
      yield* rig.peer.close();
      yield* p.close(rig.fd);
      expect((yield* countersOf(host))['pinnedPages']).toBe(before['pinnedPages']);
    }));

  test('refuses what is no range of a BAR', () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      const make = (index: number, ranges: readonly [bigint, bigint][], flags = 0, more = 0): Task<string> => {
        const request = { region_index: index, flags, nr_ranges: ranges.length + more };
        const tail = [
          ...vfio_device_feature_dma_buf.encode(request),
          ...ranges.flatMap(([offset, length]) => [...vfio_region_dma_range.encode({ offset, length })]),
        ];
        const feature = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
        return errorOf(p.ioctl(rig.peer.fd, VFIO_DEVICE_FEATURE, { flags: feature }, { tail: new Uint8Array(tail) }));
      };
      const whole: readonly [bigint, bigint][] = [[0n, PAGE]];
      expect(yield* make(0, [])).toBe('EINVAL');
      expect(yield* make(0, whole, 1)).toBe('EINVAL');
      expect(yield* make(6, whole)).toBe('ENODEV');
      expect(yield* make(1, whole)).toBe('EINVAL');
      expect(yield* make(0, [[0n, 0n]])).toBe('EINVAL');
      expect(yield* make(0, [[0n, 2048n]])).toBe('EINVAL');
      expect(yield* make(0, [[PAGE, PAGE]])).toBe('EINVAL');
      expect(yield* make(0, whole, 0, 1 << 30)).toBe('ENOMEM');
      expect(yield* make(0, whole)).toBe('ok');
      const probe = VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
      expect((yield* p.ioctl(rig.peer.fd, VFIO_DEVICE_FEATURE, { flags: probe })).result).toBe(0);
      const file = yield* rig.peer.exportRegion(0, 0n, PAGE);
      expect(yield* errorOf(mapFile(rig, file, IOVA, PAGE))).toBe('EINVAL');
      expect(yield* errorOf(mapFile(rig, file, IOVA, 0n, 2n * PAGE))).toBe('EINVAL');
      expect(rig.device.bdf).toBe(BDF);
    }));

  test('of two ranges is no run of addresses that an IOMMU could map', () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      const range = vfio_region_dma_range.encode({ offset: 0n, length: PAGE });
      const request = vfio_device_feature_dma_buf.encode({ region_index: 0, nr_ranges: 2 });
      const flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
      const tail = new Uint8Array([...request, ...range, ...range]);
      const file = (yield* p.ioctl(rig.peer.fd, VFIO_DEVICE_FEATURE, { flags }, { tail })).result;
      expect(yield* errorOf(mapFile(rig, file))).toBe('EOPNOTSUPP');
    }));
});
