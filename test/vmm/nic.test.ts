/** The NIC's driver on a whole host: kernel, SMMU, interrupts. */
import { describe, expect, test } from 'vitest';
import type { HostDescription, PciFunctionDescription } from '../../src/hardware/description.js';
import type { Task } from '../../src/runtime/task.js';
import type { HostClient } from '../../src/testbed/lab.js';
import { EINVAL, KernelError } from '../../src/uapi/errno.js';
import { IOMMU_IOAS_UNMAP } from '../../src/uapi/iommufd.js';
import {
  NIC_DEVICE,
  NIC_LINK_VECTOR,
  NIC_MAX_FRAME,
  NIC_QUEUE,
  NIC_VENDOR,
  nicQueueOffset,
} from '../../src/uapi/nic.js';
import { VFIO_PCI_BAR0_REGION_INDEX } from '../../src/uapi/vfio.js';
import { NIC_DRIVER_BYTES, NicDriver, type DmaMemory } from '../../src/vmm/nic-driver.js';
import type { VfioDevice } from '../../src/vmm/vfio-device.js';
import { ampereLike, dmaEngineAt, x86Like } from '../fixtures/hosts.js';
import { BDF, IOVA, errorOf, ioasOf, mapAt, onHost, opened } from '../kernel/on-host.js';

const NIC: PciFunctionDescription = {
  bdf: BDF,
  model: 'nic',
  vendor: NIC_VENDOR,
  device: NIC_DEVICE,
  classCode: 0x020000,
};
const QUIET_NS = 100_000;

interface Bench {
  readonly driver: NicDriver;
  readonly device: VfioDevice;
  readonly host: HostClient;
  readonly memory: DmaMemory;
  /** Takes memory away from the device, from `offset` of the driver's memory on. */
  readonly unmap: (offset: number, lengthBytes: number) => Task<void>;
  /** A register of a queue, written behind the driver's back. */
  readonly write: (queue: number, name: keyof typeof NIC_QUEUE, value: number) => Task<void>;
}

function memoryAt(device: VfioDevice, va: bigint): DmaMemory {
  return {
    load: (address, lengthBytes) => device.process.load(va + address - IOVA, lengthBytes),
    store: (address, bytes) => device.process.store(va + address - IOVA, bytes),
  };
}

/** Runs `body` with a started driver on a host whose one device is a NIC. */
async function withNic(body: (bench: Bench) => Task<void>, like: HostDescription = ampereLike()): Promise<void> {
  await onHost(
    function* (p, host) {
      const device = yield* opened(p);
      const { fd, ioas } = yield* ioasOf(p);
      yield* device.bind(fd);
      yield* device.attach(ioas);
      const va = yield* p.mmap({ length: BigInt(NIC_DRIVER_BYTES) });
      // A page at a time, so that pages can be unmapped.
      for (let at = 0n; at < BigInt(NIC_DRIVER_BYTES); at += 4096n)
        yield* mapAt(p, fd, ioas, va + at, 4096n, IOVA + at);
      const memory = memoryAt(device, va);
      const driver = yield* NicDriver.start(device, memory, IOVA);
      yield* body({
        driver,
        device,
        host,
        memory,
        *unmap(offset, lengthBytes) {
          const range = { iova: IOVA + BigInt(offset), length: BigInt(lengthBytes) };
          yield* p.ioctl(fd, IOMMU_IOAS_UNMAP, { ioas_id: ioas, ...range });
        },
        *write(queue, name, value) {
          const bytes = new Uint8Array(4);
          new DataView(bytes.buffer).setUint32(0, value, true);
          const offset = BigInt(nicQueueOffset(queue, NIC_QUEUE[name]));
          yield* device.writeRegion(VFIO_PCI_BAR0_REGION_INDEX, offset, bytes);
        },
      });
    },
    { ...like, functions: [NIC] },
  );
}

function frame(lengthBytes: number, seed = 0): Uint8Array {
  return Uint8Array.from({ length: lengthBytes }, (_, i) => (i * 5 + seed * 17 + 3) & 0xff);
}

describe('the driver of a NIC', () => {
  test.each([
    ['Arm', ampereLike()],
    ['x86', x86Like()],
  ])('sends frames of any length round its rings and receives them: %s', async (_, like) => {
    await withNic(function* ({ driver }) {
      let bytes = 0;
      const lengths = [1, 60, 1500, 2048, 2049, NIC_MAX_FRAME];
      for (let i = 0; i < 48; i++) {
        const payload = frame(lengths[i % lengths.length] ?? 1, i);
        bytes += payload.length;
        expect(yield* driver.send(i % 2, payload)).toBe(true);
        expect(yield* driver.receive(i % 2)).toEqual(payload);
      }
      expect([yield* driver.flush(0), yield* driver.flush(1)]).toEqual([true, true]);
      expect(yield* driver.experience()).toEqual({
        sent: 48,
        received: 48,
        lost: 0,
        errors: 0,
        missingInterrupts: 0,
        timeouts: 0,
        strayVectors: [],
        stopped: [],
        device: { txFrames: 48, txBytes: bytes, rxFrames: 48, rxBytes: bytes, rxDrops: 0, dmaErrors: 0 },
      });
    }, like);
  });

  test('waits for room in a full ring; what nobody took is dropped by the device and stays in the ring', async () => {
    await withNic(function* ({ driver }) {
      for (let i = 0; i < 40; i++) expect(yield* driver.send(0, frame(100, i))).toBe(true);
      expect(yield* driver.flush(0)).toBe(true);
      for (let i = 0; i < 31; i++) expect(yield* driver.receive(0)).toEqual(frame(100, i));
      expect(yield* driver.receive(0, QUIET_NS)).toBeUndefined();
      const { sent, received, timeouts, strayVectors, device } = yield* driver.experience();
      expect({ sent, received, timeouts, strayVectors }).toEqual({
        sent: 40,
        received: 31,
        timeouts: 1,
        strayVectors: [],
      });
      expect([device.rxFrames, device.rxDrops]).toEqual([31, 9]);
    });
  });

  test('exchanges more frames than a ring holds', async () => {
    await withNic(function* ({ driver }) {
      const all = { damaged: 0, isStopped: false, isInterrupted: true };
      expect(yield* driver.exchange(0, 63, 1500)).toEqual({ sent: 63, received: 63, intact: 63, ...all });
      expect(yield* driver.exchange(1, 20, 5000)).toEqual({ sent: 20, received: 20, intact: 20, ...all });
    });
  });

  test('a receive buffer that the device cannot reach stops that queue; the other pair goes on', async () => {
    await withNic(function* ({ driver, unmap }) {
      yield* unmap(4 * 4096, 4096);
      expect(yield* driver.send(0, frame(64))).toBe(true);
      expect(yield* driver.receive(0)).toBeUndefined();
      expect(yield* driver.receive(0), 'does not wait for a stopped queue').toBeUndefined();
      expect(yield* driver.exchange(1, 4, 64)).toMatchObject({ intact: 4, isStopped: false, isInterrupted: true });
      const { sent, received, errors, timeouts, stopped, strayVectors, device } = yield* driver.experience();
      expect({ sent, received, errors, timeouts }).toEqual({ sent: 5, received: 4, errors: 1, timeouts: 0 });
      expect([stopped, strayVectors, device.dmaErrors]).toEqual([[{ queue: 0, cause: 'BUFFER' }], [], 1]);
    });
  });

  test.each([
    ['the transmit ring', 1 * 4096, { queue: 1, cause: 'FETCH' }],
    ['a transmit buffer', 4 * 4096 + 32 * 2048, { queue: 1, cause: 'BUFFER' }],
    ['the receive ring', 0, { queue: 0, cause: 'FETCH' }],
  ])('an exchange without %s ends as stopped, with its interrupts', async (_, offset, stopped) => {
    await withNic(function* ({ driver, unmap }) {
      yield* unmap(offset, 4096);
      const outcome = yield* driver.exchange(0, 8, 64);
      expect(outcome).toMatchObject({ received: 0, intact: 0, damaged: 0, isStopped: true, isInterrupted: true });
      expect((yield* driver.experience()).stopped).toEqual([stopped]);
      expect(yield* driver.send(0, frame(64))).toBe(stopped.queue !== 1);
    });
  });

  test('frames whose interrupts never come are found after the time-out', async () => {
    await withNic(function* ({ driver, write }) {
      yield* write(0, 'VECTOR', 0xffff);
      const outcome = yield* driver.exchange(0, 8, 64);
      expect(outcome).toMatchObject({ intact: 8, isStopped: false, isInterrupted: false });
      expect(yield* driver.experience()).toMatchObject({ missingInterrupts: 1, timeouts: 0, strayVectors: [] });
    });
  });

  test("another queue's interrupt, or one of a link that did not change, is a stray", async () => {
    await withNic(function* ({ driver, write }) {
      yield* write(0, 'VECTOR', NIC_LINK_VECTOR);
      yield* write(1, 'VECTOR', 2);
      expect(yield* driver.exchange(0, 8, 64)).toMatchObject({ intact: 8, isInterrupted: false });
      const { missingInterrupts, strayVectors } = yield* driver.experience();
      expect([missingInterrupts, strayVectors]).toEqual([2, [2, NIC_LINK_VECTOR]]);
    });
  });

  test('says what was lost when the device answers nothing', async () => {
    await withNic(function* ({ driver, write }) {
      yield* write(1, 'CTRL', 0);
      expect(yield* driver.send(0, frame(64))).toBe(true);
      expect(yield* driver.flush(0)).toBe(false);
      expect(yield* driver.experience()).toMatchObject({ sent: 0, lost: 1, timeouts: 1, stopped: [] });
    });
  });

  test('stops: no more DMA, vectors free, and can be started again', async () => {
    await withNic(function* ({ driver, device, host, memory, write }) {
      yield* driver.stop();
      expect(device.msixEventfds).toEqual([]);
      const before = (yield* host.transactions(0)).length;
      yield* write(1, 'TAIL', 1);
      yield QUIET_NS;
      expect((yield* host.transactions(0)).length).toBe(before);
      const again = yield* NicDriver.start(device, memory, IOVA);
      expect(yield* again.exchange(0, 4, 64)).toMatchObject({ intact: 4, isInterrupted: true });
    });
  });

  test('refuses what the NIC cannot do', async () => {
    await withNic(function* ({ driver }) {
      for (const length of [0, NIC_MAX_FRAME + 1])
        expect(yield* errorOf(driver.send(0, new Uint8Array(length)))).toBe('EINVAL');
      for (const pair of [-1, 2]) expect(yield* errorOf(driver.receive(pair))).toBe('EINVAL');
    });
  });

  test('a function that is no NIC, a card that is gone: ENODEV', async () => {
    await onHost(
      function* (p) {
        const device = yield* opened(p);
        const { fd, ioas } = yield* ioasOf(p);
        yield* device.bind(fd);
        yield* device.attach(ioas);
        const nowhere: DmaMemory = {
          *load() {
            throw new KernelError(EINVAL, 'load');
          },
          *store() {
            throw new KernelError(EINVAL, 'store');
          },
        };
        expect(yield* errorOf(NicDriver.start(device, nowhere, IOVA))).toBe('ENODEV');
      },
      { ...ampereLike(), functions: [dmaEngineAt(BDF)] },
    );
    await withNic(function* ({ driver, host }) {
      yield* host.command({ lab: 'unplug', bdf: BDF, surprise: true });
      expect(yield* errorOf(driver.exchange(0, 4, 64))).toBe('ENODEV');
    });
  });
});
