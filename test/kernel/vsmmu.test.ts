/** A guest's stage 1 under the host's stage 2: vIOMMU, vDEVICE, nested page table, invalidations and events on the real SMMU model. */
import { describe, expect, test } from 'vitest';
import {
  CD,
  CMD_CFGI,
  CMD_OP,
  CMD_TLBI,
  EVT,
  STE,
  STE_CONFIG,
  STE_EATS,
  VMSA_DESCRIPTOR,
} from '../../src/hardware/smmu/records.js';
import type { HostDescription, SmmuDescription } from '../../src/hardware/description.js';
import type { Task } from '../../src/runtime/task.js';
import type { Process } from '../../src/testbed/process.js';
import {
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_DATA_ARM_SMMUV3,
  IOMMU_HWPT_INVALIDATE,
  IOMMU_IOAS_UNMAP,
  IOMMU_VDEVICE_ALLOC,
  IOMMU_VEVENTQ_ALLOC,
  IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
  IOMMU_VIOMMU_ALLOC,
  IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
  IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
  iommu_hwpt_arm_smmuv3,
} from '../../src/uapi/iommufd.js';
import { DmaEngineDriver } from '../../src/vmm/dma-engine-driver.js';
import type { VfioDevice } from '../../src/vmm/vfio-device.js';
import { ampereLike } from '../fixtures/hosts.js';
import { errorOf, ioasOf, mapAt, onHost, opened } from './on-host.js';

const PAGE = 0x1000;
/** The guest's memory, at an intermediate address: a context descriptor, three levels of tables, a page of data. */
const IPA = 0x40000000;
const CD_AT = 0;
const L1_AT = PAGE;
const L2_AT = 2 * PAGE;
const L3_AT = 3 * PAGE;
const DATA_AT = 4 * PAGE;
const GUEST_BYTES = 8 * PAGE;
/** The guest's address of the data page. */
const VA = 0x5000;
const MSI_WINDOW = 0x8000000;
const VSID = 0x42;

function nestingHost(changes: Partial<SmmuDescription> = {}): HostDescription {
  const host = ampereLike();
  return { ...host, iommus: host.iommus.map((smmu) => ({ ...smmu, forcedWriteBack: true, ...changes })) };
}

function bytesOf(words: Uint32Array): Uint8Array {
  const bytes = new Uint8Array(4 * words.length);
  const view = new DataView(bytes.buffer);
  words.forEach((word, i) => {
    view.setUint32(4 * i, word, true);
  });
  return bytes;
}

/** A stage 1 descriptor: the address and what it is. */
function descriptor(address: number, kind: 'table' | 'page' | 'block'): Uint8Array {
  const words = VMSA_DESCRIPTOR.make({
    Valid: 1,
    Table: kind === 'block' ? 0 : 1,
    MemAttr: 0,
    SH: 3,
    AF: 1,
    nG: 1,
    AP1: 1,
  });
  const bytes = bytesOf(kind === 'table' ? VMSA_DESCRIPTOR.make({ Valid: 1, Table: 1 }) : words);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, view.getBigUint64(0, true) | BigInt(address), true);
  return bytes;
}

function vste(fields: Parameters<typeof STE.make>[0]): Uint8Array {
  return bytesOf(STE.make(fields)).subarray(0, iommu_hwpt_arm_smmuv3.sizeBytes);
}

const TRANSLATE = {
  V: 1,
  Config: STE_CONFIG.S1_TRANS,
  S1ContextPtr: (IPA + CD_AT) / 64,
  S1DSS: 2,
  S1CIR: 1,
  S1COR: 1,
  S1CSH: 3,
};

interface Rig {
  readonly p: Process;
  readonly fd: number;
  readonly ioas: number;
  readonly device: VfioDevice;
  readonly va: bigint;
  readonly viommu: number;
}

/** A device, the guest's memory under a nesting parent, and a vIOMMU on it. */
function* rigOf(p: Process): Task<Rig> {
  const { fd, ioas } = yield* ioasOf(p);
  const device = yield* opened(p);
  yield* device.bind(fd);
  const va = yield* p.mmap({ length: BigInt(GUEST_BYTES) });
  yield* mapAt(p, fd, ioas, va, BigInt(GUEST_BYTES), BigInt(IPA));
  const parent = { flags: IOMMU_HWPT_ALLOC_NEST_PARENT, dev_id: device.devId, pt_id: ioas };
  const hwpt_id = (yield* p.ioctl(fd, IOMMU_HWPT_ALLOC, parent)).value.out_hwpt_id;
  const asked = { type: IOMMU_VIOMMU_TYPE_ARM_SMMUV3, dev_id: device.devId, hwpt_id };
  const viommu = (yield* p.ioctl(fd, IOMMU_VIOMMU_ALLOC, asked)).value.out_viommu_id;
  const cd = CD.make({
    T0SZ: 25,
    EPD1: 1,
    V: 1,
    IPS: 2,
    AA64: 1,
    R: 1,
    A: 1,
    ASET: 1,
    ASID: 7,
    TTB0: (IPA + L1_AT) / 16,
    MAIR0: 0xff,
  });
  yield* p.store(va + BigInt(CD_AT), bytesOf(cd));
  yield* p.store(va + BigInt(L1_AT), descriptor(IPA + L2_AT, 'table'));
  yield* p.store(va + BigInt(L2_AT), descriptor(IPA + L3_AT, 'table'));
  yield* p.store(va + BigInt(L2_AT + 8 * (MSI_WINDOW >>> 21)), descriptor(MSI_WINDOW, 'block'));
  yield* p.store(va + BigInt(L3_AT + 8 * (VA / PAGE)), descriptor(IPA + DATA_AT, 'page'));
  return { p, fd, ioas, device, va, viommu };
}

function* nested({ p, fd, device, viommu }: Rig, bytes: Uint8Array): Task<number> {
  const request = {
    dev_id: device.devId,
    pt_id: viommu,
    data_type: IOMMU_HWPT_DATA_ARM_SMMUV3,
    data_len: bytes.length,
  };
  return (yield* p.ioctl(fd, IOMMU_HWPT_ALLOC, request, { pointers: { data_uptr: { bytes } } })).value.out_hwpt_id;
}

function* vdevice({ p, fd, device, viommu }: Rig): Task<void> {
  yield* p.ioctl(fd, IOMMU_VDEVICE_ALLOC, { viommu_id: viommu, dev_id: device.devId, virt_id: BigInt(VSID) });
}

/** Invalidates by commands: the errno's name or ok, and how many were done. */
function* invalidate({ p, fd, viommu }: Rig, commands: readonly Uint32Array[]): Task<readonly [number, number]> {
  const bytes = new Uint8Array(commands.flatMap((command) => [...bytesOf(command)]));
  const { result, value } = yield* p.tryIoctl(
    fd,
    IOMMU_HWPT_INVALIDATE,
    { hwpt_id: viommu, data_type: IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, entry_len: 16, entry_num: commands.length },
    { pointers: { data_uptr: { bytes } } },
  );
  return [result, value.entry_num];
}

function* fill(engine: DmaEngineDriver, to: number, pattern: number): Task<string> {
  return (yield* engine.run({ op: 'FILL', to: BigInt(to), lengthBytes: 4, pattern })).status;
}

function* dataWord({ p, va }: Rig): Task<number> {
  const bytes = yield* p.load(va + BigInt(DATA_AT), 4);
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
}

const EIO = -5;
const nhVa = (address: number): Uint32Array =>
  CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_VA, ASID: 7, VMID: 0xffff, Leaf: 1, Address: address / PAGE });

describe("a guest's SMMU", () => {
  test("translates by the guest's tables, under the host's", () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      const hwpt = yield* nested(rig, vste(TRANSLATE));
      expect(yield* errorOf(rig.device.attach(hwpt))).toBe('ENOENT');
      yield* vdevice(rig);
      yield* rig.device.attach(hwpt);
      const engine = yield* DmaEngineDriver.start(rig.device);
      const { status, isInterrupted } = yield* engine.run({
        op: 'FILL',
        to: BigInt(VA),
        lengthBytes: 4,
        pattern: 0xabcd,
      });
      expect([status, isInterrupted, yield* dataWord(rig)]).toEqual(['done', true, 0xabcd]);
      expect(yield* fill(engine, VA + PAGE, 1)).toBe('error');
    }, nestingHost()));

  test('keeps what it translated until the guest invalidates it, and tells the guest of its faults alone', () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      yield* vdevice(rig);
      yield* rig.device.attach(yield* nested(rig, vste(TRANSLATE)));
      const queue = { viommu_id: rig.viommu, type: IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, veventq_depth: 8 };
      const events = (yield* p.ioctl(rig.fd, IOMMU_VEVENTQ_ALLOC, queue)).value.out_veventq_fd;
      const engine = yield* DmaEngineDriver.start(rig.device);
      expect(yield* fill(engine, VA, 1)).toBe('done');
      yield* p.store(rig.va + BigInt(L3_AT + 8 * (VA / PAGE)), new Uint8Array(8));
      expect(yield* fill(engine, VA, 2)).toBe('done');
      expect(yield* invalidate(rig, [nhVa(VA)])).toEqual([0, 1]);
      expect(yield* fill(engine, VA, 3)).toBe('error');
      expect(yield* dataWord(rig)).toBe(2);
      const record = yield* p.read(events, 256);
      expect(record.length).toBe(8 + 32);
      const words = new Uint32Array(record.buffer.slice(record.byteOffset + 8));
      expect([EVT.get(words, 'Type'), EVT.get(words, 'StreamID'), EVT.get(words, 'InputAddrLow')]).toEqual([
        0x10,
        VSID,
        VA,
      ]);
    }, nestingHost()));

  test('loses at once what the host unmaps below it, and does not hear of it', () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      yield* vdevice(rig);
      yield* rig.device.attach(yield* nested(rig, vste(TRANSLATE)));
      const queue = { viommu_id: rig.viommu, type: IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, veventq_depth: 8 };
      const events = (yield* p.ioctl(rig.fd, IOMMU_VEVENTQ_ALLOC, queue)).value.out_veventq_fd;
      const engine = yield* DmaEngineDriver.start(rig.device);
      expect(yield* fill(engine, VA, 1)).toBe('done');
      yield* p.ioctl(rig.fd, IOMMU_IOAS_UNMAP, { ioas_id: rig.ioas, iova: BigInt(IPA), length: BigInt(GUEST_BYTES) });
      expect(yield* fill(engine, VA, 2)).toBe('error');
      expect(yield* dataWord(rig)).toBe(1);
      expect((yield* p.read(events, 256)).length).toBe(0);
    }, nestingHost()));

  test('may have an entry that bypasses or aborts, and no other bits than the nesting rules allow', () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      for (const fields of [{ STRW: 1 }, { Config: STE_CONFIG.NESTED }, { EATS: STE_EATS.SPLIT }, { MEV: 1 }])
        expect(yield* errorOf(nested(rig, vste({ ...TRANSLATE, ...fields })))).toBe('EIO');
      expect(yield* errorOf(nested(rig, vste(TRANSLATE).subarray(0, 8)))).toBe('EINVAL');
      yield* rig.device.attach(yield* nested(rig, vste({ V: 1, Config: STE_CONFIG.BYPASS })));
      const engine = yield* DmaEngineDriver.start(rig.device);
      expect(yield* fill(engine, IPA + DATA_AT, 9)).toBe('done');
      expect(yield* dataWord(rig)).toBe(9);
      for (const fields of [{ V: 1, Config: STE_CONFIG.ABORT }, { V: 0 }]) {
        yield* rig.device.attach(yield* nested(rig, vste(fields)));
        expect(yield* fill(engine, IPA + DATA_AT, 10)).toBe('error');
      }
    }, nestingHost()));

  test('never gets a command to the queue that the SMMU would refuse, or another tag or stream than its own', () =>
    onHost(function* (p) {
      const rig = yield* rigOf(p);
      yield* vdevice(rig);
      const cfgi = (fields: Parameters<typeof CMD_CFGI.make>[0]): Uint32Array =>
        CMD_CFGI.make({ Opcode: CMD_OP.CFGI_CD, ...fields });
      const good = [
        CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NSNH_ALL }),
        CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ALL, VMID: 3 }),
        CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ASID, ASID: 7 }),
        CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_VAA, Address: 5 }),
        nhVa(VA),
        cfgi({ StreamID: VSID, Leaf: 1 }),
        CMD_CFGI.make({ Opcode: CMD_OP.CFGI_CD_ALL, StreamID: VSID }),
      ];
      expect(yield* invalidate(rig, good)).toEqual([0, good.length]);
      const bad = [
        CMD_TLBI.make({ Opcode: CMD_OP.TLBI_S12_VMALL, VMID: 1 }),
        CMD_TLBI.make({ Opcode: CMD_OP.SYNC }),
        CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE, StreamID: VSID }),
        CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ALL, ASID: 1 }),
        cfgi({ StreamID: VSID, SSec: 1 }),
        cfgi({ StreamID: VSID, SSV: 1, SubstreamID: 2 }),
        cfgi({ StreamID: VSID + 1 }),
        Uint32Array.from([0xff, 0, 0, 0]),
      ];
      for (const command of bad) expect(yield* invalidate(rig, [nhVa(VA), command, nhVa(VA)])).toEqual([EIO, 1]);
      expect(yield* invalidate(rig, [])).toEqual([0, 0]);
    }, nestingHost()));

  test('a guest invalidates by its substreams where the SMMU has some', () =>
    onHost(
      function* (p) {
        const rig = yield* rigOf(p);
        yield* vdevice(rig);
        const cfgi = CMD_CFGI.make({ Opcode: CMD_OP.CFGI_CD, StreamID: VSID, SSV: 1, SubstreamID: 2 });
        expect(yield* invalidate(rig, [cfgi])).toEqual([0, 1]);
      },
      nestingHost({ substreamIdBits: 4 }),
    ));

  test('is not to be had where stage 2 cannot hold a guest to the caches', () =>
    onHost(
      function* (p) {
        expect(yield* errorOf(rigOf(p))).toBe('EOPNOTSUPP');
      },
      nestingHost({ forcedWriteBack: false }),
    ));
});
