/** VFIO's character device, sysfs, interrupts and hot-plug at the system-call boundary. */
import { describe, expect, test } from 'vitest';
import type { Task } from '../../src/runtime/task.js';
import type { Process } from '../../src/testbed/process.js';
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
} from '../../src/uapi/iommufd.js';
import { O_RDWR } from '../../src/uapi/syscall.js';
import {
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
} from '../../src/uapi/vfio.js';
import {
  findCapability,
  findExtendedCapability,
  PCI_ACS,
  PCI_CAP_ID_MSI,
  PCI_EXT_CAP_ID_ACS,
} from '../../src/uapi/pci-regs.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import { bindToVfio, VfioDevice } from '../../src/vmm/vfio-device.js';
import { ampereLike, d05Like, dmaEngineAt } from '../fixtures/hosts.js';
import { errorOf, onHost } from './on-host.js';

const BDF = '0000:01:00.0';
const OTHER = '0000:01:00.1';

function* ioasOf(p: Process): Task<{ fd: number; ioas: number }> {
  const fd = yield* p.open('/dev/iommu', O_RDWR);
  return { fd, ioas: (yield* p.ioctl(fd, IOMMU_IOAS_ALLOC, {})).value.out_ioas_id };
}

function* opened(p: Process, bdf = BDF): Task<VfioDevice> {
  yield* bindToVfio(p, bdf);
  return yield* VfioDevice.open(p, bdf);
}

describe('the cdev', () => {
  test('answers EINVAL until it is bound, then says what it is', () =>
    onHost(function* (p) {
      const device = yield* opened(p);
      expect(yield* errorOf(p.ioctl(device.fd, VFIO_DEVICE_GET_INFO, {}))).toBe('EINVAL');
      expect(yield* errorOf(p.pread(device.fd, 4, BigInt(VFIO_PCI_CONFIG_REGION_INDEX) << 40n))).toBe('EINVAL');
      expect(yield* errorOf(device.attach(1))).toBe('EINVAL');
      const { fd } = yield* ioasOf(p);
      yield* device.bind(fd);
      const { value } = yield* p.ioctl(device.fd, VFIO_DEVICE_GET_INFO, {});
      expect(value).toMatchObject({
        flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
        num_regions: 9,
        num_irqs: 5,
      });
      const region = (yield* p.ioctl(device.fd, VFIO_DEVICE_GET_REGION_INFO, { index: 0 })).value;
      expect([region.size, region.offset]).toEqual([4096n, 0n]);
      const irq = (yield* p.ioctl(device.fd, VFIO_DEVICE_GET_IRQ_INFO, { index: VFIO_PCI_MSIX_IRQ_INDEX })).value;
      expect(irq.count).toBe(4);
      expect(yield* errorOf(p.ioctl(device.fd, VFIO_DEVICE_GET_REGION_INFO, { index: 9 }))).toBe('EINVAL');
    }));
  test('binds once, only to an iommufd, and not with a struct that is too small', () =>
    onHost(function* (p) {
      const device = yield* opened(p);
      const { fd } = yield* ioasOf(p);
      const event = yield* p.eventfd();
      expect(yield* errorOf(p.ioctl(device.fd, VFIO_DEVICE_BIND_IOMMUFD, { iommufd: event }))).toBe('EBADFD');
      expect(yield* errorOf(p.ioctl(device.fd, VFIO_DEVICE_BIND_IOMMUFD, { iommufd: -1 }))).toBe('EINVAL');
      expect(yield* errorOf(p.ioctl(device.fd, VFIO_DEVICE_BIND_IOMMUFD, { iommufd: fd, argsz: 8 }))).toBe('EINVAL');
      yield* device.bind(fd);
      expect(yield* errorOf(device.bind(fd))).toBe('EINVAL');
    }));
  test('an attach reserves, a second attach replaces, a detach gives back', () =>
    onHost(function* (p) {
      const device = yield* opened(p);
      const { fd, ioas } = yield* ioasOf(p);
      const other = (yield* p.ioctl(fd, IOMMU_IOAS_ALLOC, {})).value.out_ioas_id;
      const ranges = function* (id: number): Task<number> {
        return (yield* p.tryIoctl(
          fd,
          IOMMU_IOAS_IOVA_RANGES,
          { ioas_id: id, num_iovas: 8 },
          { pointers: { allowed_iovas: { lengthBytes: 128 } } },
        )).value.num_iovas;
      };
      yield* device.bind(fd);
      expect(yield* ranges(ioas)).toBe(1);
      yield* device.attach(ioas);
      expect(yield* ranges(ioas)).toBe(2);
      yield* device.attach(other);
      expect([yield* ranges(ioas), yield* ranges(other)]).toEqual([1, 2]);
      yield* device.detach();
      expect(yield* ranges(other)).toBe(1);
    }));
  test('devices of one group belong to one iommufd; another is EPERM', () =>
    onHost(
      function* (p) {
        const [one, two] = [yield* opened(p), yield* opened(p, OTHER)];
        const [first, second] = [yield* ioasOf(p), yield* ioasOf(p)];
        yield* one.bind(first.fd);
        expect(yield* errorOf(two.bind(second.fd))).toBe('EPERM');
        yield* two.bind(first.fd);
        yield* one.attach(first.ioas);
        const ioas = (yield* p.ioctl(first.fd, IOMMU_IOAS_ALLOC, {})).value.out_ioas_id;
        expect(yield* errorOf(two.attach(ioas))).toBe('EINVAL');
        yield* two.attach(first.ioas);
      },
      ampereLike({ functions: [BDF, OTHER].map((bdf) => dmaEngineAt(bdf, { acs: 'none' })) }),
    ));
});

describe('configuration space', () => {
  test('BARs are sized and moved in user space only; identity cannot be written', () =>
    onHost(function* (p) {
      const device = yield* opened(p);
      yield* device.bind((yield* ioasOf(p)).fd);
      const config = VFIO_PCI_CONFIG_REGION_INDEX;
      const before = (yield* p.readFile(`/sys/bus/pci/devices/${BDF}/resource`)).split('\n');
      expect(before).toHaveLength(14);
      yield* device.writeRegion(config, 0x10n, Uint8Array.of(0xff, 0xff, 0xff, 0xff));
      expect([...(yield* device.readRegion(config, 0x10n, 4))]).toEqual([0x0c, 0xf0, 0xff, 0xff]);
      expect((yield* p.readFile(`/sys/bus/pci/devices/${BDF}/resource`)).split('\n')).toEqual(before);
      yield* device.writeRegion(config, 0n, Uint8Array.of(0, 0));
      expect([...(yield* device.readRegion(config, 0n, 2))]).toEqual([0x0f, 0x1d]);
    }));
});

describe('what configuration space keeps from user space', () => {
  test('MSI and ACS controls: writes change nothing', () =>
    onHost(
      function* (p) {
        const device = yield* opened(p);
        yield* device.bind((yield* ioasOf(p)).fd);
        const config = VFIO_PCI_CONFIG_REGION_INDEX;
        const space = yield* device.readRegion(config, 0n, 4096);
        const msi = BigInt(findCapability(space, PCI_CAP_ID_MSI));
        const acs = BigInt(findExtendedCapability(space, PCI_EXT_CAP_ID_ACS));
        expect([msi > 0n, acs > 0n]).toEqual([true, true]);
        for (const [at, wanted] of [
          [msi + 2n, space[Number(msi) + 2]],
          [msi + 4n, 0],
          [acs + 6n, PCI_ACS.RR],
        ] as const) {
          yield* device.writeRegion(config, at, Uint8Array.of(0xff & ~PCI_ACS.RR));
          expect([...(yield* device.readRegion(config, at, 1))]).toEqual([wanted]);
        }
      },
      ampereLike({ functions: [dmaEngineAt(BDF, { acs: ['RR'] })] }),
    ));
});

describe('interrupts', () => {
  test('arrive at their eventfds through the software MSI window', () =>
    onHost(function* (p, host) {
      const device = yield* opened(p);
      const { fd, ioas } = yield* ioasOf(p);
      yield* device.bind(fd);
      yield* device.attach(ioas);
      const driver = yield* DmaEngineDriver.start(device);
      const va = yield* p.mmap({ length: 4096n });
      const flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
      yield* p.ioctl(fd, IOMMU_IOAS_MAP, { flags, ioas_id: ioas, user_va: va, length: 4096n, iova: 0x40000000n });
      const done = yield* driver.run({ op: 'FILL', to: 0x40000000n, lengthBytes: 64, pattern: 0x5a5a5a5a }, 2);
      expect(done.isInterrupted).toBe(true);
      expect([...(yield* p.load(va, 2))]).toEqual([0x5a, 0x5a]);
      const msi = (yield* host.transactions()).find((transaction) => transaction.direction === 'msi');
      expect(msi?.iova).toBeGreaterThanOrEqual(0x8000000n);
      expect(msi?.iova).toBeLessThan(0x8100000n);
      expect(msi?.ends[0]?.kind).toBe('doorbell');
    }));
});

describe('leaving', () => {
  test('everything is given back at close', () =>
    onHost(function* (p, host) {
      yield* bindToVfio(p, BDF);
      // The first call with an argument makes the process's scratch page real.
      yield* p.close((yield* ioasOf(p)).fd);
      const before = (yield* host.command({ lab: 'counters' })).counters;
      const device = yield* opened(p);
      const { fd, ioas } = yield* ioasOf(p);
      yield* device.bind(fd);
      yield* device.attach(ioas);
      yield* device.setBusMaster(true);
      yield* device.enableMsix(4);
      expect((yield* host.command({ lab: 'counters' })).counters?.['irqVectors']).toBe(4);
      yield* p.close(fd);
      yield* device.close();
      const after = (yield* host.command({ lab: 'counters' })).counters;
      // The interrupt translation table of a device stays until the device goes, the page of the device table for ever.
      expect({ ...after, kernelFrames: 0 }).toEqual({ ...before, kernelFrames: 0 });
      expect((after?.['kernelFrames'] ?? 0) - (before?.['kernelFrames'] ?? 0)).toBeLessThanOrEqual(2);
    }));
  test('a card asked back leaves when its descriptor is closed, not before', () =>
    onHost(function* (p, host) {
      const device = yield* opened(p);
      const { fd, ioas } = yield* ioasOf(p);
      yield* device.bind(fd);
      expect((yield* host.command({ lab: 'unplug', bdf: BDF })).result).toBe(0);
      yield 1_000_000;
      expect(yield* p.list('/sys/bus/pci/devices')).toContain(BDF);
      yield* device.attach(ioas);
      const second = yield* errorOf(VfioDevice.open(p, BDF));
      expect(second).toBe('ENODEV');
      yield* device.close();
      yield 1_000_000;
      expect(yield* p.list('/sys/bus/pci/devices')).not.toContain(BDF);
    }));
});

describe('sysfs', () => {
  test('reserved regions are printed as Linux prints them', () =>
    onHost(function* (p) {
      const path = `/sys/bus/pci/devices/0000:7d:00.1/iommu_group/`;
      expect(yield* p.readFile(`${path}reserved_regions`)).toBe(
        '0x0000000008000000 0x00000000080fffff msi\n0x00000000c6010000 0x00000000c601ffff msi\n',
      );
      expect(yield* p.readFile(`${path}type`)).toBe('DMA\n');
    }, d05Like()));
  test('drivers are bound by override and probe; a device that has one is EBUSY or ENODEV', () =>
    onHost(function* (p) {
      const drivers = '/sys/bus/pci/drivers';
      expect(yield* errorOf(p.writeFile(`${drivers}/vfio-pci/bind`, BDF))).toBe('ENODEV');
      yield* bindToVfio(p, BDF);
      expect(yield* p.list(`${drivers}/vfio-pci`)).toContain(BDF);
      expect(yield* errorOf(p.writeFile(`${drivers}/vfio-pci/bind`, BDF))).toBe('EBUSY');
      yield* p.writeFile(`${drivers}/vfio-pci/unbind`, BDF);
      expect(yield* errorOf(p.writeFile(`${drivers}/vfio-pci/unbind`, BDF))).toBe('ENODEV');
      expect(yield* p.readFile(`/sys/bus/pci/devices/${BDF}/vendor`)).toBe('0x1d0f\n');
      expect(yield* p.readFile(`/sys/bus/pci/devices/${BDF}/class`)).toBe('0x088000\n');
    }));
  test('two who unbind one device at once do not take its mate from its driver as well', async () => {
    for (let seed = 0; seed < 10; seed++) {
      await onHost(
        function* (p, host) {
          const { devices, drivers } = { devices: '/sys/bus/pci/devices', drivers: '/sys/bus/pci/drivers' };
          for (const bdf of [BDF, OTHER]) {
            yield* p.writeFile(`${devices}/${bdf}/driver_override`, 'engine');
            yield* p.writeFile('/sys/bus/pci/drivers_probe', bdf);
          }
          const unbind = (): Task<string> => errorOf(p.writeFile(`${drivers}/engine/unbind`, BDF));
          const others = [host.lab.spawn('first', unbind()), host.lab.spawn('second', unbind())];
          const said: string[] = [];
          for (const other of others) said.push(yield* other.join());
          expect(said.sort()).toEqual(['ENODEV', 'ok']);
          const device = yield* opened(p);
          expect(yield* errorOf(device.bind((yield* ioasOf(p)).fd))).toBe('EPERM');
        },
        ampereLike({ functions: [BDF, OTHER].map((bdf) => dmaEngineAt(bdf, { acs: 'none' })) }),
        seed,
      );
    }
  });
});
