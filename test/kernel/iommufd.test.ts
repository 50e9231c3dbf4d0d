import { describe, expect, it } from 'vitest';
import type { FieldSpecs, StructValue } from '../../src/layout/struct.js';
import type { Device } from '../../src/kernel/device.js';
import { SyscallContext } from '../../src/kernel/files.js';
import {
  iommufd_access_attach,
  iommufd_access_create,
  type AccessOps,
  iommufd_access_destroy,
  iommufd_access_pin_pages,
  iommufd_access_rw,
  iommufd_access_unpin_pages,
  type IommufdAccess,
} from '../../src/kernel/iommufd/access.js';
import {
  iommufd_device_attach,
  iommufd_device_bind,
  iommufd_device_detach,
  iommufd_device_replace,
  iommufd_device_unbind,
  type IommufdDevice,
} from '../../src/kernel/iommufd/device.js';
import { IommufdContext, IommufdFile } from '../../src/kernel/iommufd/main.js';
import type { MmStruct, PinnedRun } from '../../src/kernel/mm/mm.js';
import { Process, UserStruct } from '../../src/kernel/mm/process.js';
import type { Task } from '../../src/runtime/task.js';
import {
  E2BIG,
  EDEADLK,
  EADDRINUSE,
  EBUSY,
  EEXIST,
  EFAULT,
  EINVAL,
  EMSGSIZE,
  ENOENT,
  ENOMEM,
  ENOTTY,
  EOPNOTSUPP,
  EPERM,
} from '../../src/uapi/errno.js';
import type { Ioctl } from '../../src/uapi/ioctl.js';
import * as uapi from '../../src/uapi/iommufd.js';
import { hostDescription, Machine, smmuWithoutMsiWindow } from './machine.js';

const MIB = 2 ** 20;
const RAM_VA = 0x7f0000000000n;
const RAM_PFN = 0xc0000;
const RAM_PAGES = 2 ** 20;
const ARGUMENTS = 0x10000n;
const MAP_RW = 7;

/** A process whose RAM is 4 GiB of contiguous pages, one of them missing, and whose arguments lie in one page. */
class TestMm {
  readonly bytes = new Uint8Array(64 * 1024);
  pinnedVm = 0;
  lockedVm = 0;
  pinned = 0;
  hole = -1;
  isAlive = true;
  /** How far its RAM has moved in physical memory. */
  movedPages = 0;
  /** Every byte is the low byte of its frame's number. */
  readonly memory = { read: (pa: number, length: number) => Uint8Array.from({ length }, (_, i) => (pa + i) / 4096) };

  copy_from_user(address: bigint, length: number): Uint8Array | undefined {
    const at = Number(address - ARGUMENTS);
    return at < 0 || at + length > this.bytes.length ? undefined : this.bytes.slice(at, at + length);
  }

  copy_to_user(address: bigint, bytes: Uint8Array): boolean {
    const at = Number(address - ARGUMENTS);
    if (at < 0 || at + bytes.length > this.bytes.length) return false;
    this.bytes.set(bytes, at);
    return true;
  }

  *pin_user_pages(address: bigint, pages: number): Task<PinnedRun[] | number> {
    yield 'mm:pin';
    const first = Number((address - RAM_VA) / 4096n);
    const isHole = this.hole >= first && this.hole < first + pages;
    if (first < 0 || first + pages > RAM_PAGES || isHole) return -EFAULT;
    this.pinned += pages;
    return [{ pfn: RAM_PFN + this.movedPages + first, pages }];
  }

  unpin_user_pages(runs: readonly PinnedRun[]): void {
    for (const run of runs) this.pinned -= run.pages;
  }
}

/** A machine with /dev/iommu open. */
class Bench {
  readonly machine: Machine;
  readonly mm = new TestMm();
  readonly process: Process;
  readonly ctx: SyscallContext;
  readonly file: IommufdFile;

  constructor(machine = new Machine(), capabilities: readonly string[] = ['CAP_IPC_LOCK'], memlockBytes?: bigint) {
    this.machine = machine;
    const spec = { name: 'vmm', uid: 0, capabilities, ...(memlockBytes !== undefined && { memlockBytes }) };
    this.process = new Process(1, spec, this.mm as unknown as MmStruct, new UserStruct(0));
    this.ctx = new SyscallContext(machine.runtime, this.process);
    this.file = new IommufdFile(new IommufdContext(machine.arena, false));
  }

  *ioctlTask<F extends FieldSpecs>(
    ioctl: Ioctl<F>,
    value: Partial<StructValue<F>>,
    at = 0,
    size = ioctl.struct.sizeBytes,
  ): Task<{ rc: number; out: StructValue<F> }> {
    this.mm.bytes.set(ioctl.struct.encode(value), at);
    new DataView(this.mm.bytes.buffer).setUint32(at, size, true);
    const rc = yield* this.file.ioctl(this.ctx, ioctl.number, ARGUMENTS + BigInt(at));
    return { rc, out: ioctl.struct.decode(this.mm.bytes.slice(at, at + ioctl.struct.sizeBytes)) };
  }

  ioctl<F extends FieldSpecs>(
    ioctl: Ioctl<F>,
    value: Partial<StructValue<F>>,
    size = ioctl.struct.sizeBytes,
  ): { rc: number; out: StructValue<F> } {
    return this.machine.run(this.ioctlTask(ioctl, value, 0, size));
  }

  ioas(): number {
    const { rc, out } = this.ioctl(uapi.IOMMU_IOAS_ALLOC, {});
    expect(rc).toBe(0);
    return out.out_ioas_id;
  }

  map(ioasId: number, iova: number, length: number, va = RAM_VA): number {
    return this.ioctl(uapi.IOMMU_IOAS_MAP, {
      ioas_id: ioasId,
      flags: MAP_RW,
      user_va: va,
      length: BigInt(length),
      iova: BigInt(iova),
    }).rc;
  }

  unmap(ioasId: number, iova: number, length: number): { rc: number; length: number } {
    const { rc, out } = this.ioctl(uapi.IOMMU_IOAS_UNMAP, {
      ioas_id: ioasId,
      iova: BigInt(iova),
      length: BigInt(length),
    });
    return { rc, length: Number(out.length) };
  }

  ranges(ioasId: number): [bigint, bigint][] {
    const { rc, out } = this.ioctl(uapi.IOMMU_IOAS_IOVA_RANGES, {
      ioas_id: ioasId,
      num_iovas: 16,
      allowed_iovas: ARGUMENTS + 0x1000n,
    });
    expect(rc).toBe(0);
    return Array.from({ length: out.num_iovas }, (_, i) => {
      const range = uapi.iommu_iova_range.decode(this.mm.bytes.slice(0x1000 + 16 * i));
      return [range.start, range.last];
    });
  }

  bind(device: Device): IommufdDevice {
    const bound = this.machine.run(iommufd_device_bind(this.file, device));
    if (typeof bound === 'number') throw new Error(`bind: ${bound}`);
    return bound.idev;
  }

  attach(idev: IommufdDevice, ptId: number): number {
    return this.machine.run(iommufd_device_attach(idev, ptId, this.ctx));
  }

  close(): void {
    this.machine.run(this.file.release());
  }
}

describe('rules of all ioctls', () => {
  it('checks number, size, tail and pointer', () => {
    const b = new Bench();
    expect(b.machine.run(b.file.ioctl(b.ctx, 0x3b7f, ARGUMENTS))).toBe(-ENOTTY);
    expect(b.ioctl(uapi.IOMMU_IOAS_ALLOC, {}, 8).rc).toBe(-EINVAL);
    expect(b.machine.run(b.file.ioctl(b.ctx, uapi.IOMMU_IOAS_ALLOC.number, 0x1000n))).toBe(-EFAULT);
    b.mm.bytes[15] = 1;
    expect(b.ioctl(uapi.IOMMU_IOAS_ALLOC, {}, 16).rc).toBe(-E2BIG);
    b.mm.bytes[15] = 0;
    expect(b.ioctl(uapi.IOMMU_IOAS_ALLOC, {}, 16)).toMatchObject({ rc: 0, out: { out_ioas_id: 1 } });
    expect(b.ioctl(uapi.IOMMU_IOAS_ALLOC, { flags: 1 }).rc).toBe(-EOPNOTSUPP);
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: 7 }).rc).toBe(-ENOENT);
    expect(b.ioas()).toBe(2);
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: 1 }).rc).toBe(0);
    expect(b.ioas()).toBe(1);
  });

  it('closing the file gives everything back', () => {
    const b = new Bench();
    const before = b.machine.arena.storageFramesInUse;
    b.map(b.ioas(), 0x100000, 3 * MIB);
    b.map(b.ioas(), 0x100000, 3 * MIB);
    b.close();
    expect(b.machine.arena.storageFramesInUse).toBe(before);
  });
});

describe('attach, map, DMA, detach on the SMMU', () => {
  it('reserves the device regions and the outside of the aperture while attached', () => {
    const b = new Bench();
    const device = b.machine.addDevice('0000:01:00.0', 0x100);
    const ioas = b.ioas();
    const idev = b.bind(device);
    const hwpt = b.attach(idev, ioas);
    expect(hwpt).toBe(3);
    expect(b.ranges(ioas)).toEqual([
      [0n, 0x7ffffffn],
      [0x8100000n, 2n ** 48n - 1n],
    ]);
    expect(
      b.ioctl(uapi.IOMMU_IOAS_IOVA_RANGES, { ioas_id: ioas, num_iovas: 1, allowed_iovas: ARGUMENTS + 0x1000n }),
    ).toMatchObject({ rc: -EMSGSIZE, out: { num_iovas: 2, out_iova_alignment: 4096n } });
    expect(b.map(ioas, 0x7f00000, 2 * MIB)).toBe(-EINVAL);
    expect(b.ctx.detail).toMatchObject({ kind: 'software-msi', type: 'msi', start: 0x8000000n, last: 0x80fffffn });
    expect(b.map(ioas, 0x40000000, 64 * MIB)).toBe(0);
    expect(b.map(ioas, 0x40000000, MIB)).toBe(-EEXIST);
    expect(b.mm.pinned).toBe(64 * 256);
    expect(b.machine.dma(device, 0x40345678)).toMatchObject({ ok: true, pa: RAM_PFN * 4096 + 0x345678 });
    expect(b.unmap(ioas, 0x40000000, MIB)).toMatchObject({ rc: -ENOENT });
    expect(b.unmap(ioas, 0x40000000, 64 * MIB)).toEqual({ rc: 0, length: 64 * MIB });
    expect(b.machine.dma(device, 0x40345678)).toMatchObject({ ok: false, event: 'F_TRANSLATION' });
    expect(b.mm.pinned).toBe(0);
    expect(b.map(ioas, 0x40000000, MIB)).toBe(0);
    b.machine.run(iommufd_device_detach(idev));
    expect(b.mm.pinned).toBe(0);
    expect(b.ranges(ioas)).toEqual([[0n, 2n ** 64n - 1n]]);
    expect(b.machine.dma(device, 0x40000000)).toEqual({ ok: false, abort: true });
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: idev.id }).rc).toBe(-EBUSY);
    b.machine.run(iommufd_device_unbind(idev));
    expect(b.machine.dma(device, 0x40000000)).toMatchObject({ event: 'F_TRANSLATION' });
    b.close();
  });

  it('only the invalidation keeps DMA from unmapped memory: without it a stale translation is used', () => {
    const b = new Bench();
    const device = b.machine.addDevice('0000:01:00.0', 0x100);
    const ioas = b.ioas();
    b.attach(b.bind(device), ioas);
    b.map(ioas, 0x40000000, MIB);
    b.machine.dma(device, 0x40000000);
    b.machine.runtime.faults.arm('smmu.drop-tlbi');
    expect(b.unmap(ioas, 0x40000000, MIB).rc).toBe(0);
    expect(b.machine.dma(device, 0x40000000)).toMatchObject({ ok: true, pa: RAM_PFN * 4096 });
  });

  it('refuses an attach over RAM, tells why, and changes nothing', () => {
    const hole = { type: 'msi', owner: 'its@c6000000', start: 0xc6010000n, last: 0xc601ffffn } as const;
    const description = hostDescription({}, { iommus: [smmuWithoutMsiWindow], reservedRegions: [hole] });
    const b = new Bench(new Machine(description));
    const idev = b.bind(b.machine.addDevice('0000:7d:00.1', 0x100));
    const ioas = b.ioas();
    const frames = b.machine.arena.kernelFramesInUse;
    expect(b.map(ioas, 0x40000000, 4096 * MIB)).toBe(0);
    expect(b.attach(idev, ioas)).toBe(-EADDRINUSE);
    expect(b.ctx.detail).toEqual({
      start: 0xc6010000n,
      last: 0xc601ffffn,
      type: 'msi',
      kind: 'hardware-msi',
      owner: 'its@c6000000',
      areaStart: 0x40000000n,
      areaLast: 0x13fffffffn,
    });
    expect(b.ranges(ioas)).toEqual([[0n, 2n ** 64n - 1n]]);
    expect(b.mm.pinned).toBe(0);
    expect(b.machine.arena.kernelFramesInUse).toBe(frames);
    b.unmap(ioas, 0x40000000, 4096 * MIB);
    expect(b.map(ioas, 0x40000000, 2048 * MIB)).toBe(0);
    expect(b.attach(idev, ioas)).toBe(3);
    expect(b.mm.pinned).toBe(2048 * 256);
  });

  it('refuses a device with a hardware and a software MSI window', () => {
    const hole = { type: 'msi', owner: 'its', start: 0xc6010000n, last: 0xc601ffffn } as const;
    const b = new Bench(new Machine(hostDescription({}, { reservedRegions: [hole] })));
    const ioas = b.ioas();
    expect(b.attach(b.bind(b.machine.addDevice('0000:01:00.0', 0x100)), ioas)).toBe(-EINVAL);
    expect(b.ranges(ioas)).toEqual([[0n, 2n ** 64n - 1n]]);
  });

  it('an allowed range keeps a device out, cheaply', () => {
    const b = new Bench();
    const ioas = b.ioas();
    b.mm.bytes.set(uapi.iommu_iova_range.encode({ start: 0n, last: 0xfffffffn }), 0x1000);
    const allow = { ioas_id: ioas, num_iovas: 1, allowed_iovas: ARGUMENTS + 0x1000n };
    expect(b.ioctl(uapi.IOMMU_IOAS_ALLOW_IOVAS, allow).rc).toBe(0);
    expect(b.attach(b.bind(b.machine.addDevice('0000:01:00.0', 0x100)), ioas)).toBe(-EADDRINUSE);
    expect(b.ctx.detail).toMatchObject({ kind: 'software-msi', allowedStart: 0n, allowedLast: 0xfffffffn });
  });

  it('a page that cannot be pinned fails the attach, later the map, without a trace', () => {
    const b = new Bench();
    b.mm.hole = 5;
    const ioas = b.ioas();
    const idev = b.bind(b.machine.addDevice('0000:01:00.0', 0x100));
    expect(b.map(ioas, 0x1000000, MIB, RAM_VA + 0x100000n)).toBe(0);
    expect(b.map(ioas, 0x40000000, MIB)).toBe(0);
    expect(b.attach(idev, ioas)).toBe(-EFAULT);
    expect(b.mm.pinned).toBe(0);
    b.unmap(ioas, 0x40000000, MIB);
    expect(b.attach(idev, ioas)).toBe(3);
    expect(b.map(ioas, 0x40000000, MIB)).toBe(-EFAULT);
    expect(b.mm.pinned).toBe(256);
    expect(b.map(ioas, 0x40000000, 0x5000)).toBe(0);
  });

  it('needs the group for itself and isolated interrupts', () => {
    const b = new Bench();
    const device = b.machine.addDevice('0000:01:00.0', 0x100);
    const other = new Bench(b.machine);
    b.bind(device);
    expect(b.machine.run(iommufd_device_bind(other.file, device))).toBe(-EPERM);
    const controllers = [{ name: 'its', kind: 'gicv2m', base: 0n, bypassesIommu: false, isolated: false }] as const;
    const unsafe = new Bench(new Machine(hostDescription({}, { msiControllers: controllers })));
    const exposed = unsafe.machine.addDevice('0000:01:00.0', 0x100);
    expect(unsafe.machine.run(iommufd_device_bind(unsafe.file, exposed))).toBe(-EPERM);
  });

  it('moves a whole group by replace and keeps it on failure', () => {
    const b = new Bench(new Machine(hostDescription()));
    const [one, two] = [
      b.machine.addDevice('0000:01:00.0', 0x100, true),
      b.machine.addDevice('0000:01:00.1', 0x101, true),
    ];
    const [first, second, conflicting] = [b.ioas(), b.ioas(), b.ioas()];
    b.map(first, 0x40000000, MIB);
    b.map(second, 0x40000000, MIB, RAM_VA + 0x100000n);
    b.map(conflicting, 0x8000000, MIB);
    const [idevOne, idevTwo] = [b.bind(one), b.bind(two)];
    b.attach(idevOne, first);
    expect(b.attach(idevTwo, second)).toBe(-EINVAL);
    expect(b.attach(idevTwo, first)).toBeGreaterThan(0);
    expect(b.machine.run(iommufd_device_replace(idevOne, second, b.ctx))).toBeGreaterThan(0);
    for (const device of [one, two]) {
      expect(b.machine.dma(device, 0x40000000)).toMatchObject({ pa: RAM_PFN * 4096 + 0x100000 });
    }
    expect(b.ranges(first)).toEqual([[0n, 2n ** 64n - 1n]]);
    expect(b.machine.run(iommufd_device_replace(idevTwo, conflicting, b.ctx))).toBe(-EADDRINUSE);
    expect(b.machine.dma(one, 0x40000000)).toMatchObject({ pa: RAM_PFN * 4096 + 0x100000 });
    expect(b.ranges(conflicting)).toEqual([[0n, 2n ** 64n - 1n]]);
  });

  it('gives every device of a descriptor the same doorbell IOVA, also after a replace', () => {
    const b = new Bench();
    const [one, two] = [b.machine.addDevice('0000:01:00.0', 0x100), b.machine.addDevice('0000:02:00.0', 0x200)];
    const [first, second] = [b.ioas(), b.ioas()];
    const idev = b.bind(one);
    b.attach(idev, first);
    b.attach(b.bind(two), second);
    const doorbell = 0x8030040;
    expect(b.machine.run(b.machine.core.iommu_dma_prepare_msi(two, 0x9040040))).toBe(0x8000040n);
    expect(b.machine.run(b.machine.core.iommu_dma_prepare_msi(one, doorbell))).toBe(0x8001040n);
    expect(b.machine.run(b.machine.core.iommu_dma_prepare_msi(two, doorbell))).toBe(0x8001040n);
    const third = b.ioas();
    b.machine.run(iommufd_device_replace(idev, third));
    expect(b.machine.dma(one, 0x8001040)).toMatchObject({ ok: true, pa: doorbell });
    expect(b.machine.dma(one, 0x8000040)).toMatchObject({ ok: false });
  });
});

describe('hardware page tables', () => {
  it('copies share pins; dirty pages are reported per page table', () => {
    const b = new Bench();
    const device = b.machine.addDevice('0000:01:00.0', 0x100);
    const ioas = b.ioas();
    const idev = b.bind(device);
    const alloc = b.ioctl(uapi.IOMMU_HWPT_ALLOC, { flags: 2, dev_id: idev.id, pt_id: ioas });
    expect(alloc.rc).toBe(0);
    const hwpt = alloc.out.out_hwpt_id;
    expect(b.attach(idev, hwpt)).toBe(hwpt);
    expect(b.map(ioas, 0x40000000, 0x10000)).toBe(0);
    const copy = { dst_ioas_id: ioas, src_ioas_id: ioas, flags: MAP_RW, length: 0x4000n, src_iova: 0x40002000n };
    expect(b.ioctl(uapi.IOMMU_IOAS_COPY, { ...copy, dst_iova: 0x50000000n }).rc).toBe(0);
    expect(b.mm.pinned).toBe(16);
    const track = (flags: number): number => b.ioctl(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, { hwpt_id: hwpt, flags }).rc;
    expect(track(1)).toBe(0);
    b.machine.dma(device, 0x40003000);
    b.machine.dma(device, 0x50001000);
    const bitmap = (iova: number, length: number): [number, number] => {
      b.mm.bytes.fill(0, 0x2000, 0x2010);
      const query = { hwpt_id: hwpt, iova: BigInt(iova), length: BigInt(length), page_size: 4096n };
      const { rc } = b.ioctl(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, { ...query, data: ARGUMENTS + 0x2000n });
      return [rc, new DataView(b.mm.bytes.buffer).getUint32(0x2000, true)];
    };
    expect(bitmap(0x40000000, 0x10000)).toEqual([0, 0b1000]);
    expect(bitmap(0x50000000, 0x4000)).toEqual([0, 0b10]);
    expect(bitmap(0x40000000, 0x10000)).toEqual([0, 0]);
    b.machine.dma(device, 0x50001000);
    expect(bitmap(0x40000000, 0x10004000)).toEqual([0, 0]);
    expect(bitmap(0x50000000, 0x4000)).toEqual([0, 0b10]);
    expect(bitmap(0x50000800, 0x4000)[0]).toBe(-EINVAL);
    b.unmap(ioas, 0x40000000, 0x10000);
    expect(b.mm.pinned).toBe(4);
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: hwpt }).rc).toBe(-EBUSY);
    b.machine.run(iommufd_device_detach(idev));
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: ioas }).rc).toBe(-EBUSY);
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: hwpt }).rc).toBe(0);
    expect(b.mm.pinned).toBe(0);
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: ioas }).rc).toBe(0);
  });

  it('tells what the SMMU is', () => {
    const b = new Bench();
    const idev = b.bind(b.machine.addDevice('0000:01:00.0', 0x100));
    const query = { dev_id: idev.id, data_len: 40, data_uptr: ARGUMENTS + 0x1000n };
    expect(b.ioctl(uapi.IOMMU_GET_HW_INFO, query)).toMatchObject({
      rc: 0,
      out: { data_len: 40, out_data_type: uapi.IOMMU_HW_INFO_TYPE_ARM_SMMUV3, out_capabilities: 9n },
    });
    expect(uapi.iommu_hw_info_arm_smmuv3.decode(b.mm.bytes.slice(0x1000)).idr[0]).toBe(
      b.machine.smmu.identification.IDR0,
    );
    expect(b.ioctl(uapi.IOMMU_GET_HW_INFO, { ...query, flags: 1, in_data_type: 1 }).rc).toBe(-EOPNOTSUPP);
    expect(b.ioctl(uapi.IOMMU_HWPT_ALLOC, { dev_id: idev.id, pt_id: 99 }).rc).toBe(-EINVAL);
  });
});

function accessOf({ file }: Bench, ops: AccessOps): IommufdAccess {
  const access = iommufd_access_create(file, ops);
  if (typeof access === 'number') throw new Error(`no access: ${access}`);
  return access;
}

describe('accesses', () => {
  it('pin without a domain, block an unmap until they let go, and keep their number', () => {
    const b = new Bench();
    const ioas = b.ioas();
    let pinned = false;
    const access: IommufdAccess = accessOf(b, {
      needsPinPages: true,
      *unmap(): Task<void> {
        if (pinned) yield* iommufd_access_unpin_pages(access, 0x100000n, 0x2000n);
        pinned = false;
      },
    });
    expect(b.machine.run(iommufd_access_attach(access, ioas))).toBe(0);
    expect(b.map(ioas, 0x100800, 0x1000)).toBe(-EINVAL);
    b.map(ioas, 0x100000, 0x4000);
    b.map(ioas, 0x200000, 0x1000);
    expect(b.mm.pinned).toBe(0);
    const pin = (iova: bigint, length: bigint): PinnedRun[] | number =>
      b.machine.run(iommufd_access_pin_pages(access, iova, length, true));
    expect(pin(0x103000n, 0x2000n)).toBe(-ENOENT);
    expect(b.mm.pinned).toBe(0);
    expect(pin(0x100000n, 0x2000n)).toEqual([{ pfn: RAM_PFN, pages: 2 }]);
    pinned = true;
    expect(b.mm.pinned).toBe(2);
    expect(b.unmap(ioas, 0x100000, 0x4000)).toEqual({ rc: 0, length: 0x4000 });
    expect([pinned, b.mm.pinned]).toEqual([false, 0]);
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: ioas }).rc).toBe(-EBUSY);
    b.machine.run(iommufd_access_destroy(access));
    expect(b.ioctl(uapi.IOMMU_DESTROY, { id: ioas }).rc).toBe(0);
  });

  it('read one page of a living process as it is mapped now, more than one as devices have them pinned', () => {
    const b = new Bench();
    const ioas = b.ioas();
    const access = accessOf(b, { needsPinPages: false, *unmap(): Task<void> {} });
    b.machine.run(iommufd_access_attach(access, ioas));
    b.attach(b.bind(b.machine.addDevice('0000:01:00.0', 0x100)), ioas);
    b.map(ioas, 0x100000, 0x4000);
    b.mm.movedPages = 0x50;
    const read = (iova: bigint, length: number): number[] => {
      const data = new Uint8Array(length);
      const how = { write: false, isSlow: true };
      expect(b.machine.run(iommufd_access_rw(access, b.process, iova, data, how))).toBe(0);
      expect(b.mm.pinned).toBe(4);
      return [...data];
    };
    expect(read(0x100ffen, 2)).toEqual([0x50, 0x50]);
    expect(read(0x100fffn, 2)).toEqual([0, 1]);
    b.mm.isAlive = false;
    expect(read(0x100ffen, 2)).toEqual([0, 0]);
  });

  it('one that never lets go makes the unmap fail in the end', () => {
    const b = new Bench();
    const ioas = b.ioas();
    const access = accessOf(b, {
      needsPinPages: true,
      *unmap(): Task<void> {
        // Holds on.
      },
    });
    b.machine.run(iommufd_access_attach(access, ioas));
    b.map(ioas, 0x100000, 0x1000);
    b.machine.run(iommufd_access_pin_pages(access, 0x100000n, 0x1000n, false));
    expect(b.unmap(ioas, 0x100000, 0x1000).rc).toBe(-EDEADLK);
    expect(b.machine.run(iommufd_access_pin_pages(access, 0x100000n, 0x1000n, false))).toBe(-EINVAL);
  });
});

describe('limits', () => {
  it('charges pinned pages to the user, and refuses more than the limit without a trace', () => {
    const b = new Bench(new Machine(), [], 0x10000n);
    const ioas = b.ioas();
    b.attach(b.bind(b.machine.addDevice('0000:01:00.0', 0x100)), ioas);
    expect(b.map(ioas, 0x100000, 0xc000)).toBe(0);
    expect([b.process.user.lockedVm, b.mm.pinnedVm]).toEqual([12, 12]);
    expect(b.map(ioas, 0x200000, 0x5000)).toBe(-ENOMEM);
    expect([b.process.user.lockedVm, b.mm.pinned]).toEqual([12, 12]);
    expect(b.map(ioas, 0x200000, 0x4000)).toBe(0);
    expect(b.unmap(ioas, 0, 0x1000000)).toEqual({ rc: 0, length: 0x10000 });
    expect([b.process.user.lockedVm, b.mm.pinnedVm]).toEqual([0, 0]);
  });

  it('the accounting mode needs a capability and an empty descriptor', () => {
    const b = new Bench(new Machine(), ['CAP_SYS_RESOURCE'], 0x10000n);
    const set = { option_id: uapi.IOMMU_OPTION_RLIMIT_MODE, op: uapi.IOMMU_OPTION_OP_SET, val64: 1n };
    expect(new Bench(b.machine, []).ioctl(uapi.IOMMU_OPTION, set).rc).toBe(-EPERM);
    expect(b.ioctl(uapi.IOMMU_OPTION, set).rc).toBe(0);
    const ioas = b.ioas();
    expect(b.ioctl(uapi.IOMMU_OPTION, set).rc).toBe(-EBUSY);
    b.attach(b.bind(b.machine.addDevice('0000:01:00.0', 0x100)), ioas);
    b.map(ioas, 0x100000, 0x3000);
    expect([b.process.user.lockedVm, b.mm.lockedVm]).toEqual([0, 3]);
  });
});

describe('concurrency', () => {
  it('maps, unmaps and attaches at random points keep domains, pins and areas consistent', () => {
    for (let seed = 1; seed <= 12; seed++) {
      const b = new Bench(new Machine(hostDescription(), seed, { strategy: 'random' }));
      const device = b.machine.addDevice('0000:01:00.0', 0x100);
      const ioas = b.ioas();
      const idev = b.bind(device);
      const results: number[] = [];
      const worker = function* (index: number): Task<void> {
        for (let round = 0; round < 6; round++) {
          const value = { ioas_id: ioas, iova: BigInt(0x1000000 * (index % 3) + 0x10000000), length: 0x200000n };
          const map = { ...value, flags: MAP_RW, user_va: RAM_VA + BigInt(index * 0x200000) };
          const at = 0x4000 + index * 64;
          results.push((yield* b.ioctlTask(uapi.IOMMU_IOAS_MAP, map, at)).rc);
          results.push((yield* b.ioctlTask(uapi.IOMMU_IOAS_UNMAP, value, at)).rc);
        }
      };
      const attacher = function* (): Task<void> {
        for (let round = 0; round < 4; round++) {
          expect(yield* iommufd_device_attach(idev, ioas)).toBeGreaterThan(0);
          yield* iommufd_device_detach(idev);
        }
      };
      const tasks = [0, 1, 2, 3, 4].map((i) => b.machine.runtime.spawn(`worker${i}`, worker(i)));
      tasks.push(b.machine.runtime.spawn('attacher', attacher()));
      b.machine.run(
        (function* (): Task<void> {
          for (const task of tasks) yield* task.join();
        })(),
      );
      for (const rc of results) expect([0, -EEXIST, -EBUSY, -ENOENT]).toContain(rc);
      expect(results).toContain(0);
      expect(b.unmap(ioas, 0, 0x7fffffff).rc === 0 || b.mm.pinned === 0).toBe(true);
      expect(b.mm.pinned).toBe(0);
      expect(b.mm.pinnedVm).toBe(0);
      b.machine.run(iommufd_device_unbind(idev));
      b.close();
    }
  });

  it('devices that come and go share automatic page tables, and never one that is being destroyed', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const b = new Bench(new Machine(hostDescription(), seed, { strategy: 'random' }));
      const devices = [0x100, 0x200, 0x300].map((sid) => b.machine.addDevice(`0000:0${sid >> 8}:00.0`, sid));
      const ioas = b.ioas();
      b.map(ioas, 0x40000000, MIB);
      const user = function* (device: Device): Task<void> {
        const bound = yield* iommufd_device_bind(b.file, device);
        if (typeof bound === 'number') throw new Error(`bind: ${bound}`);
        for (let round = 0; round < 4; round++) {
          expect(yield* iommufd_device_attach(bound.idev, ioas)).toBeGreaterThan(0);
          const access = { streamId: device.streamIds[0] ?? 0, iova: 0x40000000n, write: true };
          expect(yield* b.machine.smmu.translate(access)).toMatchObject({ ok: true, pa: RAM_PFN * 4096 });
          yield* iommufd_device_detach(bound.idev);
        }
        yield* iommufd_device_unbind(bound.idev);
      };
      const tasks = devices.map((device) => b.machine.runtime.spawn(device.name, user(device)));
      b.machine.run(
        (function* (): Task<void> {
          for (const task of tasks) yield* task.join();
        })(),
      );
      expect(b.mm.pinned).toBe(0);
      expect(b.file.ictx.objects.size).toBe(1);
      b.close();
    }
  });
});
