/** Rules of PCI Express and of vfio-pci that are easy to get wrong, as a client or as software on the board sees them. */
import { describe, expect, test } from 'vitest';
import type { PciFunctionDescription } from '../../src/hardware/description.js';
import { buildConfig } from '../../src/hardware/pcie/config-builder.js';
import type { Route } from '../../src/hardware/pcie/fabric.js';
import type { PciFunction } from '../../src/hardware/pcie/function.js';
import type { Task } from '../../src/runtime/task.js';
import type { HostClient } from '../../src/testbed/lab.js';
import type { Process } from '../../src/testbed/process.js';
import { EBUSY } from '../../src/uapi/errno.js';
import { PCI_COMMAND, PCI_EXT_CAP_ID_ACS, PCI_EXT_CAP_ID_SRIOV } from '../../src/uapi/pci-regs.js';
import {
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_SET_IRQS,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_REQ_IRQ_INDEX,
} from '../../src/uapi/vfio.js';
import type { VfioDevice } from '../../src/vmm/vfio-device.js';
import { ampereLike, dmaEngineAt } from '../fixtures/hosts.js';
import { BoardMachine } from '../hardware/machine.js';
import { BDF, errorOf, ioasOf, onHost, opened } from './on-host.js';

const VF = '0000:01:00.1';
const FOREVER_NS = 1_000_000;

const port = (
  bdf: string,
  secondaryBus: number,
  subordinateBus: number,
  more: Partial<PciFunctionDescription> = {},
): PciFunctionDescription => ({
  bdf,
  model: 'bridge',
  vendor: 0x1234,
  device: 0xe100,
  classCode: 0x060400,
  bridge: { secondaryBus, subordinateBus },
  ...more,
});
const slotted = (): PciFunctionDescription => port('0000:00:01.0', 1, 1, { slot: { number: 1, surprise: true } });
const physical = (offset = 1): PciFunctionDescription =>
  dmaEngineAt(BDF, { driver: 'nic', sriov: { totalVfs: 1, numVfs: 1, offset, stride: 1, deviceId: 0xda01 } });

function* bound(p: Process, bdf = BDF): Task<VfioDevice> {
  const device = yield* opened(p, bdf);
  yield* device.bind((yield* ioasOf(p)).fd);
  return device;
}

function* pciDevices(p: Process): Task<string[]> {
  return [...(yield* p.list('/sys/bus/pci/devices'))];
}

function* resultOf(call: Task<{ result: number }>): Task<number> {
  return (yield* call).result;
}

function routeOf(machine: BoardMachine, from: PciFunction, to: PciFunction): Route {
  const [bar] = to.bars;
  if (bar === undefined) throw new Error(`${to.bdf} has no BAR`);
  const address = to.barAddress(bar);
  return machine.board.bridgeOf(from).fabric.route({ from, address, addressType: 'untranslated' });
}

describe('a slot whose card a process still holds', () => {
  const functions = [slotted(), dmaEngineAt(BDF)];
  const again: readonly [string, Parameters<HostClient['command']>[0]][] = [
    ['pressing the button twice', { lab: 'unplug', bdf: BDF }],
    ['pressing the button and pulling', { lab: 'unplug', bdf: BDF, surprise: true }],
  ];
  test.each(again)('%s removes the card once', (_name, second) =>
    onHost(function* (p, host) {
      const device = yield* bound(p);
      yield* host.command({ lab: 'unplug', bdf: BDF });
      yield FOREVER_NS;
      yield* host.command(second);
      yield FOREVER_NS;
      expect(yield* pciDevices(p)).toContain(BDF);
      yield* device.close();
      yield 10 * FOREVER_NS;
      expect(yield* pciDevices(p)).toEqual(['0000:00:01.0']);
      expect(yield* resultOf(host.command({ lab: 'plug', bdf: BDF }))).toBe(0);
      yield 10 * FOREVER_NS;
      expect(yield* pciDevices(p)).toEqual(['0000:00:01.0', BDF]);
    }, ampereLike({ functions })),
  );

  test('a card put in meanwhile is found when the old one has been let go', () =>
    onHost(function* (p, host) {
      const device = yield* bound(p);
      yield* host.command({ lab: 'unplug', bdf: BDF, surprise: true });
      yield FOREVER_NS;
      expect(yield* resultOf(host.command({ lab: 'plug', bdf: BDF }))).toBe(0);
      yield FOREVER_NS;
      expect(yield* resultOf(host.command({ lab: 'plug', bdf: BDF }))).toBe(-EBUSY);
      yield* device.close();
      yield 10 * FOREVER_NS;
      expect(yield* pciDevices(p)).toEqual(['0000:00:01.0', BDF]);
      const fresh = yield* bound(p);
      expect((yield* fresh.readRegion(VFIO_PCI_CONFIG_REGION_INDEX, 0n, 2)).length).toBe(2);
    }, ampereLike({ functions })));

  test('a reset answers EAGAIN while the removal waits', () =>
    onHost(function* (p, host) {
      const device = yield* bound(p);
      expect(yield* errorOf(device.reset())).toBe('ok');
      yield* host.command({ lab: 'unplug', bdf: BDF });
      yield FOREVER_NS;
      expect(yield* errorOf(device.reset())).toBe('EAGAIN');
    }, ampereLike({ functions })));
});

test('pulling a card with a switch takes everything below it, and putting it back brings it in its reset state', async () => {
  const functions = [
    port('0000:00:01.0', 1, 3, { slot: { number: 1, surprise: true } }),
    port('0000:01:00.0', 2, 3, { type: 'upstream-port' }),
    port('0000:02:00.0', 3, 3, { type: 'downstream-port' }),
    dmaEngineAt('0000:03:00.0'),
  ];
  await onHost(function* (p, host) {
    const all = yield* pciDevices(p);
    expect(all).toHaveLength(4);
    yield* host.command({ lab: 'unplug', bdf: '0000:01:00.0', surprise: true });
    yield 10 * FOREVER_NS;
    expect(yield* pciDevices(p)).toEqual(['0000:00:01.0']);
    yield* host.command({ lab: 'plug', bdf: '0000:01:00.0' });
    yield 10 * FOREVER_NS;
    expect(yield* pciDevices(p)).toEqual(all);
  }, ampereLike({ functions }));
  const machine = new BoardMachine(ampereLike({ functions }));
  const endpoint = machine.enabled('0000:03:00.0');
  machine.board.yank('0000:01:00.0');
  expect(endpoint.configRead(0, 4)).toBe(0xffff_ffff);
  machine.board.plug('0000:01:00.0');
  expect(endpoint.isBusMaster).toBe(false);
});

describe('a virtual function', () => {
  // One on its physical function's bus, one on the next: RIDs follow First VF Offset, bridges follow the physical function.
  test.each([
    [VF, 1],
    ['0000:02:00.0', 256],
  ])('at %s reaches the system through the bridge of its physical function', (vf, offset) => {
    const functions = [port('0000:00:01.0', 1, 2, { acs: 'none' }), physical(offset), dmaEngineAt(vf, { physfn: BDF })];
    const machine = new BoardMachine(ampereLike({ functions }));
    const pf = machine.enabled(BDF);
    const at = pf.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    pf.configWrite(at + 0x10, 2, 1);
    pf.configWrite(at + 8, 2, 9);
    const fn = machine.enabled(vf);
    const { fabric } = machine.board.bridgeOf(fn);
    const toMemory = (): Route => fabric.route({ from: fn, address: 0x8000_0000, addressType: 'untranslated' });
    expect(toMemory().kind).toBe('upstream');
    machine.function('0000:00:01.0').configWrite(PCI_COMMAND, 2, 2);
    expect(toMemory()).toMatchObject({ kind: 'aborted', hop: 'root port 0000:00:01.0' });
  });

  test.each([VF, '0000:02:00.0'])('at %s is in the group of what it cannot be told from', (vf) =>
    onHost(
      function* (p) {
        const group = yield* p.list('/sys/kernel/iommu_groups/0/devices');
        expect([...group]).toEqual(['0000:00:01.0', BDF, vf]);
      },
      ampereLike({
        functions: [
          port('0000:00:01.0', 1, 2, { acs: 'none' }),
          physical(vf === VF ? 1 : 256),
          dmaEngineAt(vf, { physfn: BDF }),
        ],
      }),
    ),
  );

  test('has no memory enable of its own: clearing it does not stop its BARs', () =>
    onHost(
      function* (p) {
        const device = yield* bound(p, VF);
        yield* device.writeRegion(VFIO_PCI_CONFIG_REGION_INDEX, BigInt(PCI_COMMAND), Uint8Array.of(0, 0));
        expect(yield* errorOf(device.readRegion(0, 0n, 4))).toBe('ok');
      },
      ampereLike({ functions: [physical(), dmaEngineAt(VF, { physfn: BDF })] }),
    ));

  test('decodes nothing while VF Memory Space Enable is clear', () => {
    const functions = [dmaEngineAt(BDF, { sriov: { totalVfs: 1, numVfs: 0, offset: 1, stride: 1, deviceId: 1 } })];
    const machine = new BoardMachine(ampereLike({ functions: [...functions, dmaEngineAt(VF, { physfn: BDF })] }));
    const pf = machine.enabled(BDF);
    const at = pf.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    pf.configWrite(at + 0x10, 2, 1);
    pf.configWrite(at + 8, 2, 1);
    const vf = machine.enabled(VF);
    expect(vf.decodesMemory).toBe(false);
    pf.configWrite(at + 8, 2, 9);
    expect(vf.decodesMemory).toBe(true);
  });

  test('cannot be asked for without a driver: ENOENT', () =>
    onHost(
      function* (p) {
        const path = `/sys/bus/pci/devices/${BDF}/sriov_numvfs`;
        expect(yield* errorOf(p.writeFile(path, '1'))).toBe('ENOENT');
      },
      ampereLike({
        functions: [
          dmaEngineAt(BDF, { sriov: { totalVfs: 1, numVfs: 0, offset: 1, stride: 1, deviceId: 1 } }),
          dmaEngineAt(VF, { physfn: BDF }),
        ],
      }),
    ));
});

test('a Cavium root port without ACS isolates all the same (pci_quirk_cavium_acs)', () =>
  onHost(
    function* (p) {
      expect([...(yield* p.list('/sys/kernel/iommu_groups'))]).toEqual(['0', '1']);
    },
    ampereLike({
      functions: [port('0000:00:01.0', 1, 1, { vendor: 0x177d, device: 0xaf84, acs: 'none' }), dmaEngineAt(BDF)],
    }),
  ));

test('P2P request redirect with egress control: what the vector lets through goes to the peer, the rest upstream', () => {
  const functions = [
    port('0000:00:01.0', 1, 4),
    port('0000:01:00.0', 2, 4, { type: 'upstream-port' }),
    port('0000:02:00.0', 3, 3, { type: 'downstream-port', acs: ['SV', 'RR', 'CR', 'UF', 'EC'] }),
    port('0000:02:01.0', 4, 4, { type: 'downstream-port' }),
    dmaEngineAt('0000:03:00.0'),
    dmaEngineAt('0000:04:00.0'),
  ];
  const machine = new BoardMachine(ampereLike({ functions }));
  const [from, to] = [machine.enabled('0000:03:00.0'), machine.enabled('0000:04:00.0')];
  const down = machine.function('0000:02:00.0');
  const at = down.findExtendedCapability(PCI_EXT_CAP_ID_ACS);
  const [EC, RR] = [0x20, 0x04];
  const way = (control: number, vector: number): string => {
    down.configWrite(at + 6, 2, control);
    down.configWrite(at + 8, 4, vector);
    const route = routeOf(machine, from, to);
    return route.kind === 'aborted' ? route.why : route.kind;
  };
  expect(way(RR | EC, 0)).toBe('peer');
  expect(way(RR | EC, 0xffff_ffff)).toBe('nowhere');
  expect(way(EC, 0)).toBe('peer');
  expect(way(EC, 0xffff_ffff)).toMatch(/P2P egress control/u);
  expect(way(RR, 0)).toBe('nowhere');
});

test('a posted write goes on behind a part of it that was lost; the function learns that not all arrived', () => {
  const [described] = ampereLike().hostBridges;
  if (described === undefined) throw new Error('the fixture has no host bridge');
  const { iommu, ...bridge } = described;
  expect(iommu).toBeDefined();
  const inbound = [0x8000_0000n, 0x8000_2000n].map((start) => ({ start, last: start + 0xfffn, cpuStart: start }));
  const machine = new BoardMachine(ampereLike({ hostBridges: [{ ...bridge, inbound }] }));
  const fn = machine.enabled(BDF);
  const write = machine.run(fn.dmaWrite(0x8000_0000n, new Uint8Array(0x3000).fill(7)));
  expect(write).toMatchObject({ ok: false });
  expect(machine.board.analyser.records[0]?.ends.map(({ kind, iova }) => [kind, iova])).toEqual([
    ['memory', 0x8000_0000n],
    ['nowhere', 0x8000_1000n],
    ['memory', 0x8000_2000n],
  ]);
});

describe('vfio-pci', () => {
  test('has an error and a request interrupt, one vector each (vfio_pci_get_irq_count)', () =>
    onHost(function* (p) {
      const device = yield* bound(p);
      for (const index of [VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX])
        expect((yield* p.ioctl(device.fd, VFIO_DEVICE_GET_IRQ_INFO, { index })).value.count).toBe(1);
    }));

  test('disabling MSI-X that is not enabled is EINVAL, enabling no vector ERANGE', () =>
    onHost(function* (p) {
      const device = yield* bound(p);
      const set = { index: VFIO_PCI_MSIX_IRQ_INDEX, start: 0, count: 0 };
      const none = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
      const events = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
      expect(yield* errorOf(p.ioctl(device.fd, VFIO_DEVICE_SET_IRQS, { ...set, flags: none }))).toBe('EINVAL');
      expect(yield* errorOf(p.ioctl(device.fd, VFIO_DEVICE_SET_IRQS, { ...set, flags: events }))).toBe('ERANGE');
    }));

  test('gives a conventional function 256 bytes of configuration space and no reset that it does not have', () => {
    const config = new Uint8Array(256);
    config.set([0x34, 0x12, 0xe8, 0x11]);
    const bdf = '0000:00:03.0';
    const device = { vendor: 0x1234, device: 0x11e8, classCode: 0xff00 } as const;
    const bars = [{ index: 0, sizeBytes: 0x10_0000, is64: false }] as const;
    return onHost(
      function* (p) {
        const edu = yield* bound(p, bdf);
        const region = yield* p.ioctl(edu.fd, VFIO_DEVICE_GET_REGION_INFO, { index: VFIO_PCI_CONFIG_REGION_INDEX });
        expect(region.value.size).toBe(256n);
        expect((yield* p.ioctl(edu.fd, VFIO_DEVICE_GET_INFO, {})).value.flags & 1).toBe(0);
        expect(yield* errorOf(edu.reset())).toBe('EINVAL');
        expect(yield* errorOf(edu.readRegion(VFIO_PCI_CONFIG_REGION_INDEX, 0x100n, 4))).toBe('EFAULT');
      },
      ampereLike({ functions: [{ bdf, model: 'generic', type: 'conventional', ...device, config, bars }] }),
    );
  });

  test('an ITS gives a function more than 256 vectors', () => {
    const description = {
      bdf: BDF,
      model: 'generic',
      vendor: 0x1234,
      device: 1,
      classCode: 0x02_0000,
      bars: [{ index: 0, sizeBytes: 65536, is64: true }],
    } as const;
    const config = buildConfig(description, { type: 'endpoint', isMultifunction: false });
    config[0x81] = 0x90;
    config.set([0x11, 0, 0xff, 0x01, 0, 0, 0, 0, 0, 0x80, 0, 0], 0x90);
    config[0x10] = 0xc;
    return onHost(
      function* (p) {
        const device = yield* bound(p);
        yield* device.enableMsix(257);
        yield* device.disableMsix();
        yield* device.enableMsix(512);
      },
      ampereLike({ functions: [{ ...description, config }] }),
    );
  });
});
