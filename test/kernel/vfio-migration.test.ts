/** Migration of a VFIO device at the system-call boundary: the state machine, data_fd, DMA log. */
import { describe, expect, test } from 'vitest';
import type { HostDescription, MigrationDescription } from '../../src/hardware/description.js';
import type { FaultId } from '../../src/runtime/faults.js';
import type { Task } from '../../src/runtime/task.js';
import type { HostClient } from '../../src/testbed/lab.js';
import type { Process } from '../../src/testbed/process.js';
import {
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  VFIO_DEVICE_FEATURE_MIGRATION,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_MIG_GET_PRECOPY_INFO,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_report,
  vfio_device_feature_mig_state,
} from '../../src/uapi/vfio.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import { NicDriver } from '../../src/vmm/nic-driver.js';
import { NIC_DEVICE, NIC_VENDOR } from '../../src/uapi/nic.js';
import type { VfioDevice } from '../../src/vmm/vfio-device.js';
import { feature, MIG_STATE, VfioMigration, type MigState } from '../../src/vmm/vfio-migration.js';
import { ampereLike, dmaEngineAt } from '../fixtures/hosts.js';
import { BDF, errorOf, ioasOf, IOVA, mapAt, onHost, opened, OTHER } from './on-host.js';

type Flags = Pick<MigrationDescription, 'p2p' | 'preCopy'>;

const ALL: Flags = { p2p: true, preCopy: true };
const PAGES = 1024n;

function migratable(flags: Flags = ALL, contextBytes = 16384): HostDescription {
  const migration = { ...flags, contextBytes, dmaLogging: true };
  const functions = [BDF, OTHER].map((bdf) => ({ ...dmaEngineAt(bdf), migration }));
  return { ...ampereLike(), functions };
}

interface Bench {
  readonly device: VfioDevice;
  readonly migration: VfioMigration;
  readonly va: bigint;
}

/** A device attached to an address space with {@link PAGES} pages of the process at IOVA. */
function* migratableDevice(p: Process, bdf = BDF): Task<Bench> {
  const device = yield* opened(p, bdf);
  const { fd, ioas } = yield* ioasOf(p);
  yield* device.bind(fd);
  yield* device.attach(ioas);
  const va = yield* p.mmap({ length: PAGES * 4096n });
  yield* mapAt(p, fd, ioas, va, PAGES * 4096n);
  const migration = yield* VfioMigration.of(device);
  if (migration === undefined) throw new Error('it cannot migrate');
  return { device, migration, va };
}

async function withDevice(body: (bench: Bench, p: Process, host: HostClient) => Task<void>, like = migratable()) {
  await onHost(function* (p, host) {
    yield* body(yield* migratableDevice(p), p, host);
  }, like);
}

/** Everything a saving data_fd gives until its end or until there is nothing at the moment. */
function* readAll(migration: VfioMigration, piece = 1000): Task<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (;;) {
    const bytes = yield* migration.read(piece);
    if (bytes === undefined || bytes.length === 0) break;
    parts.push(bytes);
  }
  return Buffer.concat(parts);
}

/** domain.md A2.4: what the core walks, all capabilities. `-`: refused. */
const PATHS: Readonly<Record<string, readonly (string | undefined)[]>> = {
  //           STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P
  STOP: ['', 'P2P RUN', 'SC', 'RES', 'P2P', 'P2P RUN PRE', 'P2P PREP2P'],
  RUNNING: ['P2P STOP', '', 'P2P STOP SC', 'P2P STOP RES', 'P2P', 'PRE', 'P2P PREP2P'],
  STOP_COPY: ['STOP', 'STOP P2P RUN', '', 'STOP RES', 'STOP P2P', undefined, undefined],
  RESUMING: ['STOP', 'STOP P2P RUN', 'STOP SC', '', 'STOP P2P', 'STOP P2P RUN PRE', 'STOP P2P PREP2P'],
  RUNNING_P2P: ['STOP', 'RUN', 'STOP SC', 'STOP RES', '', 'RUN PRE', 'PREP2P'],
  PRE_COPY: ['RUN P2P STOP', 'RUN', 'PREP2P SC', 'RUN P2P STOP RES', 'RUN P2P', '', 'PREP2P'],
  PRE_COPY_P2P: ['P2P STOP', 'P2P RUN', 'SC', 'P2P STOP RES', 'P2P', 'PRE', ''],
};
const COLUMNS: readonly MigState[] = [
  'STOP',
  'RUNNING',
  'STOP_COPY',
  'RESUMING',
  'RUNNING_P2P',
  'PRE_COPY',
  'PRE_COPY_P2P',
];
const SHORT: Readonly<Record<string, MigState>> = {
  STOP: 'STOP',
  RUN: 'RUNNING',
  SC: 'STOP_COPY',
  RES: 'RESUMING',
  P2P: 'RUNNING_P2P',
  PRE: 'PRE_COPY',
  PREP2P: 'PRE_COPY_P2P',
};

/** States a device passes on its way, from the arcs that fail one after the other. */
function* walk(migration: VfioMigration, host: HostClient, to: MigState): Task<MigState[]> {
  const passed: MigState[] = [];
  for (let hop = 1; ; hop++) {
    yield* host.command({ lab: 'arm-fault', fault: 'vfio.mig-arc', rule: { skip: 1 } });
    const error = yield* errorOf(migration.setState(to));
    passed.push(yield* migration.state());
    if (error === 'ok') break;
    if (hop > 6) throw new Error('no end');
  }
  yield* host.command({ lab: 'disarm-fault', fault: 'vfio.mig-arc' });
  return passed;
}

describe('the state machine with all capabilities', () => {
  for (const [from, row] of Object.entries(PATHS))
    for (const [column, path] of row.entries()) {
      const to = COLUMNS[column] ?? 'STOP';
      if (from === to) continue;
      test(`${from} to ${to}: ${path ?? 'EINVAL'}`, () =>
        withDevice(function* ({ migration }, _p, host) {
          yield* migration.setState(from as MigState);
          expect(yield* migration.state()).toBe(from);
          if (path === undefined) {
            expect(yield* errorOf(migration.setState(to))).toBe('EINVAL');
            expect(yield* migration.state()).toBe(from);
            return;
          }
          expect(yield* walk(migration, host, to)).toEqual(path.split(' ').map((hop) => SHORT[hop]));
        }));
    }

  test('ERROR is no state to ask for, nor is one that does not exist', () =>
    withDevice(function* ({ device, migration }) {
      expect(yield* errorOf(migration.setState('ERROR'))).toBe('EINVAL');
      const struct = vfio_device_feature_mig_state;
      const wanted = { device_state: 8 };
      expect(yield* errorOf(feature(device, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'SET', struct, wanted))).toBe(
        'EINVAL',
      );
      expect(yield* migration.state()).toBe('RUNNING');
    }));
});

describe('states that a device does not have', () => {
  const counts: readonly [string, Flags, number, readonly MigState[]][] = [
    ['STOP_COPY', { p2p: false, preCopy: false }, 12, ['RUNNING_P2P', 'PRE_COPY', 'PRE_COPY_P2P']],
    ['STOP_COPY and P2P', { p2p: true, preCopy: false }, 20, ['PRE_COPY', 'PRE_COPY_P2P']],
    ['STOP_COPY and PRE_COPY', { p2p: false, preCopy: true }, 19, ['RUNNING_P2P', 'PRE_COPY_P2P']],
  ];
  for (const [name, flags, reachable, missing] of counts)
    test(`${name}: ${reachable} pairs can be reached, what is missing is skipped`, () =>
      withDevice(function* ({ migration }) {
        const states = COLUMNS.filter((state) => !missing.includes(state));
        let found = 0;
        for (const from of states)
          for (const to of states) {
            if (from === to) continue;
            yield* migration.device.reset();
            yield* migration.setState(from);
            const error = yield* errorOf(migration.setState(to));
            if (error === 'ok') {
              found++;
              expect(yield* migration.state()).toBe(to);
            } else expect([error, from, to]).toEqual(['EINVAL', 'STOP_COPY', 'PRE_COPY']);
          }
        expect(found).toBe(reachable);
        yield* migration.device.reset();
        for (const state of missing) expect(yield* errorOf(migration.setState(state))).toBe('EINVAL');
      }, migratable(flags)));
});

describe('an arc that fails', () => {
  const arcs: readonly [MigState, MigState][] = [
    ['RUNNING', 'RUNNING_P2P'],
    ['RUNNING_P2P', 'RUNNING'],
    ['RUNNING_P2P', 'STOP'],
    ['STOP', 'RUNNING_P2P'],
    ['STOP', 'RESUMING'],
    ['RESUMING', 'STOP'],
    ['STOP', 'STOP_COPY'],
    ['STOP_COPY', 'STOP'],
    ['RUNNING', 'PRE_COPY'],
    ['PRE_COPY', 'RUNNING'],
    ['PRE_COPY', 'PRE_COPY_P2P'],
    ['PRE_COPY_P2P', 'PRE_COPY'],
    ['PRE_COPY_P2P', 'STOP_COPY'],
    ['PRE_COPY_P2P', 'RUNNING_P2P'],
    ['RUNNING_P2P', 'PRE_COPY_P2P'],
  ];
  test.each(arcs)('%s to %s: the device stays, and goes there at the next try', (from, to) =>
    withDevice(function* ({ migration }, _p, host) {
      yield* migration.setState(from);
      yield* host.command({ lab: 'arm-fault', fault: 'vfio.mig-arc', rule: { count: 1 } });
      expect(yield* errorOf(migration.setState(to))).toBe('EIO');
      expect(yield* migration.state()).toBe(from);
      yield* migration.setState(to);
      expect(yield* migration.state()).toBe(to);
    }),
  );
  test.each(arcs)('%s to %s: a device that broke is in ERROR until it is reset', (from, to) =>
    withDevice(function* ({ migration }, _p, host) {
      yield* migration.setState(from);
      const fault: FaultId = 'vfio.mig-error';
      yield* host.command({ lab: 'arm-fault', fault, rule: { count: 1 } });
      expect(yield* errorOf(migration.setState(to))).toBe('EIO');
      expect(yield* migration.state()).toBe('ERROR');
      for (const state of COLUMNS) expect(yield* errorOf(migration.setState(state))).toBe('EINVAL');
      expect(yield* migration.recover('RUNNING')).toBe('reset');
      expect(yield* migration.state()).toBe('RUNNING');
    }),
  );
});

describe('data_fd', () => {
  test('pre-copy gives its initial data, then ENOMSG, then what changed; STOP_COPY the rest and an end', () =>
    withDevice(function* ({ device, migration }) {
      const driver = yield* DmaEngineDriver.start(device);
      yield* migration.setState('PRE_COPY');
      const before = yield* migration.preCopyInfo();
      expect(before.dirtyBytes).toBe(0);
      const initial = yield* readAll(migration);
      expect(initial.length).toBe(before.initialBytes);
      expect(yield* migration.read(10)).toBeUndefined();
      expect(yield* migration.preCopyInfo()).toEqual({ initialBytes: 0, dirtyBytes: 0 });
      yield* driver.run({ op: 'FILL', to: IOVA, lengthBytes: 4096, pattern: 1 });
      expect((yield* migration.preCopyInfo()).dirtyBytes).toBe(4096 + 24);
      const expected = yield* migration.stopCopyBytes();
      yield* migration.setState('STOP_COPY');
      expect((yield* readAll(migration)).length).toBe(expected);
      expect(yield* migration.read(10)).toEqual(new Uint8Array());
    }));
  test('the descriptor dies with the state, and knows its ioctl only', () =>
    withDevice(function* ({ device, migration }, p) {
      const struct = vfio_device_feature_mig_state;
      const to = function* (state: MigState): Task<number> {
        const wanted = { device_state: MIG_STATE[state] };
        return (yield* feature(device, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, 'SET', struct, wanted)).data_fd;
      };
      const saving = yield* to('PRE_COPY');
      expect(saving).toBeGreaterThanOrEqual(0);
      expect(yield* to('PRE_COPY_P2P')).toBe(-1);
      expect(yield* to('STOP_COPY')).toBe(-1);
      expect(yield* errorOf(p.ioctl(saving, VFIO_MIG_GET_PRECOPY_INFO, {}))).toBe('EINVAL');
      expect(yield* errorOf(p.ioctl(saving, VFIO_MIG_GET_PRECOPY_INFO, { argsz: 8 }))).toBe('EINVAL');
      expect(yield* errorOf(p.ioctl(saving, VFIO_DEVICE_FEATURE, {}))).toBe('ENOTTY');
      expect(yield* errorOf(p.write(saving, new Uint8Array(4)))).toBe('EINVAL');
      expect(yield* to('STOP')).toBe(-1);
      expect(yield* errorOf(p.read(saving, 4))).toBe('ENODEV');
      const resuming = yield* to('RESUMING');
      expect(yield* errorOf(p.read(resuming, 4))).toBe('EINVAL');
      expect(yield* to('STOP')).toBe(-1);
      expect(yield* errorOf(p.write(resuming, new Uint8Array(4)))).toBe('ENODEV');
      yield* migration.closeData();
    }));
  test('a reset makes it run and kills the descriptor', () =>
    withDevice(function* ({ device, migration }) {
      yield* migration.setState('STOP_COPY');
      yield* device.reset();
      expect(yield* migration.state()).toBe('RUNNING');
      expect(yield* errorOf(migration.read(10))).toBe('ENODEV');
    }));
});

describe('RESUMING', () => {
  function* saved(bench: Bench): Task<Uint8Array> {
    const driver = yield* DmaEngineDriver.start(bench.device);
    yield* driver.run({ op: 'FILL', to: IOVA, lengthBytes: 8192, pattern: 7 });
    yield* bench.migration.setState('STOP_COPY');
    return yield* readAll(bench.migration);
  }
  test('takes what STOP_COPY gave: a device that saved it again gives the same bytes', () =>
    withDevice(function* (bench, p) {
      const state = yield* saved(bench);
      const other = yield* migratableDevice(p, OTHER);
      yield* other.migration.setState('RESUMING');
      for (let at = 0; at < state.length; at += 333) yield* other.migration.write(state.subarray(at, at + 333));
      yield* other.migration.setState('STOP_COPY');
      expect(Buffer.from(yield* readAll(other.migration)).equals(state)).toBe(true);
    }));
  test('refuses what is cut, damaged, of another card, or goes on after its end', () =>
    withDevice(function* (bench, p) {
      const state = yield* saved(bench);
      const { migration } = yield* migratableDevice(p, OTHER);
      const flipped = Uint8Array.from(state);
      flipped[100] = (flipped[100] ?? 0) ^ 1;
      const alien = Uint8Array.from(state);
      alien[24] = 0xff;
      for (const bytes of [state.subarray(0, -1), flipped, alien, Buffer.concat([state, state]), state.subarray(40)]) {
        yield* migration.setState('RESUMING');
        yield* migration.write(bytes);
        expect(yield* errorOf(migration.setState('STOP'))).toBe('EINVAL');
        expect(yield* migration.state()).toBe('RESUMING');
        yield* migration.device.reset();
      }
      yield* migration.setState('RESUMING');
      yield* migration.write(state);
      yield* migration.setState('RUNNING');
    }));
});

describe('quiescing', () => {
  test('a transfer stops at a piece, and goes on when the device runs again', () =>
    withDevice(function* ({ device, migration, va }, p, host) {
      const driver = yield* DmaEngineDriver.start(device);
      let isDone = false;
      const work = host.lab.spawn(
        'work',
        (function* (): Task<void> {
          yield* driver.run({ op: 'FILL', to: IOVA, lengthBytes: Number(PAGES) * 4096, pattern: 0xabab_abab });
          isDone = true;
        })(),
      );
      yield 5_000;
      yield* migration.setState('RUNNING_P2P');
      const held = yield* p.load(va, Number(PAGES) * 4096);
      yield 5_000_000;
      expect(Buffer.from(yield* p.load(va, Number(PAGES) * 4096)).equals(held)).toBe(true);
      expect(held[held.length - 1]).toBe(0);
      expect(isDone).toBe(false);
      yield* migration.setState('STOP');
      yield* migration.setState('RUNNING');
      yield* work.join();
      expect((yield* p.load(va, Number(PAGES) * 4096)).every((byte) => byte === 0xab)).toBe(true);
    }));
  test('a transfer that is moved in the middle ends in the other card, once', () =>
    withDevice(function* (bench, p, host) {
      const other = yield* migratableDevice(p, OTHER);
      const driver = yield* DmaEngineDriver.start(bench.device);
      host.lab.spawn(
        'work',
        driver.run({ op: 'FILL', to: IOVA, lengthBytes: Number(PAGES) * 4096, pattern: 0x1111_1111 }),
        { daemon: true },
      );
      yield 9_000;
      yield* bench.migration.setState('STOP_COPY');
      const first = (yield* p.load(bench.va, Number(PAGES) * 4096)).filter((byte) => byte === 0x11).length;
      const state = yield* readAll(bench.migration);
      yield* other.device.setBusMaster(true);
      yield* other.device.enableMsix(1);
      yield* other.migration.setState('RESUMING');
      yield* other.migration.write(state);
      yield* other.migration.setState('RUNNING');
      expect(yield* other.device.waitMsix(0, 20_000_000)).toBe(1n);
      const second = (yield* p.load(other.va, Number(PAGES) * 4096)).filter((byte) => byte === 0x11).length;
      expect(first % 4096).toBe(0);
      expect([first > 0, second > 0, first + second]).toEqual([true, true, Number(PAGES) * 4096]);
      yield 20_000_000;
      expect(yield* other.device.waitMsix(0, 0)).toBe(0n);
      expect(yield* bench.device.waitMsix(0, 0)).toBe(0n);
    }));
  test('an interrupt that is due at STOP is sent by the card that gets the state', () =>
    onHost(
      function* (p) {
        const bench = yield* migratableDevice(p);
        const other = yield* migratableDevice(p, OTHER);
        for (const { device } of [bench, other]) {
          yield* device.setBusMaster(true);
          yield* device.enableMsix(5);
        }
        const memory = {
          load: (address: bigint, length: number) => p.load(bench.va + address - IOVA, length),
          store: (address: bigint, bytes: Uint8Array) => p.store(bench.va + address - IOVA, bytes),
        };
        yield* bench.device.disableMsix();
        const driver = yield* NicDriver.start(bench.device, memory, IOVA);
        // Moderation: the interrupts of the frame below are due long after the device has stopped.
        yield* bench.device.writeRegion(0, 8n, new Uint8Array([0, 0, 0, 1]));
        yield* driver.send(0, new Uint8Array(100).fill(1));
        yield 100_000;
        yield* bench.migration.setState('STOP_COPY');
        yield* other.migration.setState('RESUMING');
        yield* other.migration.write(yield* readAll(bench.migration));
        yield* other.migration.setState('RUNNING');
        expect(yield* other.device.waitMsix(0, 50_000_000)).toBe(1n);
        expect(yield* other.device.waitMsix(1, 50_000_000)).toBe(1n);
        expect(yield* bench.device.waitMsix(0, 50_000_000)).toBe(0n);
      },
      {
        ...migratable(),
        functions: [BDF, OTHER].map((bdf) => ({
          bdf,
          model: 'nic' as const,
          vendor: NIC_VENDOR,
          device: NIC_DEVICE,
          classCode: 0x020000,
          migration: { ...ALL, contextBytes: 8192, dmaLogging: true },
        })),
      },
    ));
});

describe('the DMA log', () => {
  test('has the pages of its ranges that were written, once', () =>
    withDevice(function* ({ device, migration }) {
      const driver = yield* DmaEngineDriver.start(device);
      const half = IOVA + (PAGES / 2n) * 4096n;
      yield* migration.startLog([{ start: IOVA, last: half - 1n }], 4096n);
      yield* driver.run({ op: 'FILL', to: IOVA + 8192n, lengthBytes: 5000, pattern: 1 });
      yield* driver.run({ op: 'FILL', to: half, lengthBytes: 4096, pattern: 1 });
      yield* driver.run({ op: 'SUM', from: IOVA, lengthBytes: 4096 });
      const whole = { start: IOVA, last: IOVA + PAGES * 4096n - 1n };
      expect([...(yield* migration.reportLog(whole, 4096n))]).toEqual([0b1100, ...Array<number>(127).fill(0)]);
      expect([...(yield* migration.reportLog(whole, 4096n))]).toEqual(Array<number>(128).fill(0));
      yield* migration.stopLog();
      expect(yield* errorOf(migration.reportLog(whole, 4096n))).toBe('EINVAL');
    }));
  /** Pages of two ranges of odd sizes that the log has when a card has written all of them. */
  function* loggedPages({ device, migration }: Bench): Task<number[]> {
    const ranges = [
      { start: IOVA, last: IOVA + 3n * 4096n - 1n },
      { start: IOVA + 8n * 4096n, last: IOVA + 13n * 4096n - 1n },
    ];
    const driver = yield* DmaEngineDriver.start(device);
    yield* migration.startLog(ranges, 4096n);
    for (const { start, last } of ranges)
      yield* driver.run({ op: 'FILL', to: start, lengthBytes: Number(last - start + 1n), pattern: 1 });
    const words = yield* migration.reportLog({ start: IOVA, last: IOVA + 16n * 4096n - 1n }, 4096n);
    yield* migration.stopLog();
    return [...Array(16).keys()].filter((page) => (((words[page >> 3] ?? 0) >> (page & 7)) & 1) === 1);
  }
  test('has the pages of ranges of any size, to their ends', () =>
    withDevice(function* (bench) {
      expect(yield* loggedPages(bench)).toEqual([0, 1, 2, 8, 9, 10, 11, 12]);
    }));
  test('has none beyond a power of two where lengths are taken without their last bytes (IN-27)', () =>
    withDevice(function* (bench, _p, host) {
      yield* host.command({ lab: 'arm-fault', fault: 'vfio.log-range-short', rule: {} });
      expect(yield* loggedPages(bench)).toEqual([0, 1, 2, 8, 9]);
    }));
  test('refuses what the kernel refuses', () =>
    withDevice(function* ({ device, migration }, p) {
      const start = (value: { page_size: bigint; num_ranges: number; ranges: bigint }): Task<string> =>
        errorOf(
          feature(device, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, 'SET', vfio_device_feature_dma_logging_control, value),
        );
      const va = yield* p.mmap({ length: 8192n });
      const put = function* (...words: bigint[]): Task<void> {
        yield* p.store(va, new Uint8Array(new BigUint64Array(words).buffer));
      };
      expect(yield* start({ page_size: 4096n, num_ranges: 0, ranges: va })).toBe('EINVAL');
      expect(yield* start({ page_size: 4096n, num_ranges: 257, ranges: va })).toBe('E2BIG');
      expect(yield* start({ page_size: 4096n, num_ranges: 1, ranges: 8n })).toBe('EFAULT');
      yield* put(IOVA + 1n, 4096n);
      expect(yield* start({ page_size: 4096n, num_ranges: 1, ranges: va })).toBe('EINVAL');
      yield* put((1n << 64n) - 4096n, 8192n);
      expect(yield* start({ page_size: 4096n, num_ranges: 1, ranges: va })).toBe('EOVERFLOW');
      yield* put(IOVA, 8192n, IOVA + 4096n, 4096n);
      expect(yield* start({ page_size: 4096n, num_ranges: 2, ranges: va })).toBe('EINVAL');
      yield* put(IOVA, 8192n);
      expect(yield* start({ page_size: 4096n, num_ranges: 1, ranges: va })).toBe('ok');
      expect(yield* start({ page_size: 4096n, num_ranges: 1, ranges: va })).toBe('EINVAL');
      const report = (value: { iova: bigint; length: bigint; page_size: bigint; bitmap: bigint }): Task<string> =>
        errorOf(
          feature(device, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, 'GET', vfio_device_feature_dma_logging_report, value),
        );
      const good = { iova: IOVA, length: 8192n, page_size: 4096n, bitmap: va };
      expect(yield* report({ ...good, page_size: 2048n })).toBe('EINVAL');
      expect(yield* report({ ...good, page_size: 6000n })).toBe('EINVAL');
      expect(yield* report({ ...good, iova: (1n << 64n) - 4096n })).toBe('EOVERFLOW');
      expect(yield* report({ ...good, bitmap: 8n })).toBe('EFAULT');
      expect(yield* report(good)).toBe('ok');
      yield* migration.stopLog();
    }));
});

describe('VFIO_DEVICE_FEATURE', () => {
  test('probes, and refuses flags and sizes as the kernel does', () =>
    withDevice(function* ({ device }, p) {
      const call = (flags: number, tail = new Uint8Array(8)): Task<string> =>
        errorOf(p.ioctl(device.fd, VFIO_DEVICE_FEATURE, { flags }, { tail }));
      const { GET, SET, PROBE } = {
        GET: VFIO_DEVICE_FEATURE_GET,
        SET: VFIO_DEVICE_FEATURE_SET,
        PROBE: VFIO_DEVICE_FEATURE_PROBE,
      };
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION | GET)).toBe('ok');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION | SET)).toBe('EINVAL');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION | GET | SET)).toBe('EINVAL');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION | PROBE | GET)).toBe('ok');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION | PROBE | SET)).toBe('EINVAL');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | PROBE | GET | SET)).toBe('ok');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION)).toBe('EINVAL');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION | GET, new Uint8Array(4))).toBe('EINVAL');
      expect(yield* call(VFIO_DEVICE_FEATURE_MIGRATION | GET | (1 << 19))).toBe('EINVAL');
      expect(yield* call(99 | GET)).toBe('ENOTTY');
    }));
  test('a card that cannot migrate has no such feature, nor one that plain vfio-pci has', () =>
    onHost(function* (p) {
      const device = yield* opened(p);
      const { fd } = yield* ioasOf(p);
      yield* device.bind(fd);
      expect(yield* VfioMigration.of(device)).toBeUndefined();
    }));
});
