/** A machine for kernel tests: the real SMMU model, an arena's kernel window as its memory, and the IOMMU core on it. */
import { expect } from 'vitest';
import { Arena } from '../../src/core/arena.js';
import type { HostDescription, SmmuDescription } from '../../src/hardware/description.js';
import type { SmmuMemory } from '../../src/hardware/smmu/ports.js';
import type { AtcInvalidation } from '../../src/hardware/smmu/ats.js';
import { Smmu, type TranslateResult } from '../../src/hardware/smmu/smmu.js';
import type { Device } from '../../src/kernel/device.js';
import { ArmSmmuDomain } from '../../src/kernel/iommu/arm-smmu-v3/domain.js';
import { IommuCore } from '../../src/kernel/iommu/iommu.js';
import type { RunEvent } from '../../src/runtime/events.js';
import { NodeRuntime, type ScheduleSpec } from '../../src/runtime/node-runtime.js';
import type { Task } from '../../src/runtime/task.js';
import { PCI_EXT_CAP_ID_ATS } from '../../src/uapi/pci-regs.js';

const KERNEL_BASE_PFN = 0x80000;

/** An SMMU whose driver has no window for doorbells. */
export const smmuWithoutMsiWindow: SmmuDescription = {
  name: 'smmu0',
  base: 0x43000000n,
  stage1: true,
  stage2: true,
  inputBits: 48,
  outputBits: 48,
  httu: 'dirty',
  granules: ['4k', '64k'],
  streamIdBits: 16,
  rangeInvalidation: true,
};

const smmuDescription: SmmuDescription = {
  ...smmuWithoutMsiWindow,
  softwareMsi: { start: 0x8000000n, last: 0x80fffffn },
};

/** A description with one SMMU; the arguments change it. */
export function hostDescription(
  smmu: Partial<SmmuDescription> = {},
  host: Partial<HostDescription> = {},
): HostDescription {
  return {
    name: 'a',
    title: 'test host',
    sources: [],
    arch: 'arm64',
    kernelRelease: '7.3.4',
    pageShift: 12,
    memory: [{ start: 0x80000000n, last: 0xffffffffn }],
    iommus: [{ ...smmuDescription, ...smmu }],
    msiControllers: [{ name: 'its', kind: 'its', base: 0x8020000n, bypassesIommu: false, isolated: true }],
    hostBridges: [],
    functions: [],
    reservedRegions: [],
    allowUnsafeInterrupts: false,
    ...host,
  };
}

/** The kernel window of an arena as the SMMU sees it. */
function windowMemory(arena: Arena): SmmuMemory {
  const indexOf = (pa: number): number | undefined => {
    const frame = arena.pfnToFrame(Math.floor(pa / 4096));
    return frame < 0 ? undefined : (arena.frameOffset(frame) + (pa % 4096)) >>> 2;
  };
  return {
    loadWords(pa, out) {
      const index = indexOf(pa);
      if (index === undefined) return false;
      out.set(arena.words.subarray(index, index + out.length));
      return true;
    },
    store64(pa, lo, hi) {
      const index = indexOf(pa);
      if (index === undefined) return false;
      arena.words.set([lo, hi], index);
      return true;
    },
    compareAndSwap64(pa, oldLo, oldHi, newLo, newHi) {
      const index = indexOf(pa);
      if (index === undefined) return false;
      if ((arena.words[index] ?? 0) >>> 0 !== oldLo >>> 0 || (arena.words[index + 1] ?? 0) >>> 0 !== oldHi >>> 0)
        return false;
      arena.words.set([newLo, newHi], index);
      return true;
    },
  };
}

/** A machine of one SMMU with the IOMMU core on it, and a way to run tasks and DMA. */
export class Machine {
  readonly runtime: NodeRuntime;
  readonly arena = Arena.create({ kernelFrames: 4096, storageFrames: 512, kernelBasePfn: KERNEL_BASE_PFN });
  readonly smmu: Smmu;
  readonly core: IommuCore;
  readonly events: RunEvent[] = [];
  /** What was written into configuration space. */
  readonly configWrites: { readonly offset: number; readonly value: number }[] = [];
  /** CMD_ATC_INV that reached devices. */
  readonly atcInvalidations: AtcInvalidation[] = [];

  constructor(
    description: HostDescription = hostDescription(),
    seed = 1,
    schedule: ScheduleSpec = { strategy: 'in-order' },
  ) {
    this.runtime = new NodeRuntime('a', seed, schedule);
    let onIrq: (smmu: string, line: string) => void = () => undefined;
    const [smmu] = description.iommus;
    if (smmu === undefined) throw new Error('no SMMU');
    const seen = this.atcInvalidations;
    this.smmu = new Smmu({
      runtime: this.runtime,
      memory: windowMemory(this.arena),
      description: smmu,
      irq: (line) => onIrq(smmu.name, line),
      *atc(invalidation): Task<boolean> {
        seen.push(invalidation);
        return true;
      },
    });
    const base = Number(smmu.base);
    const board = {
      arena: this.arena,
      bus: {
        mmioRead32: (pa: number): number => this.smmu.readRegister(pa - base, 4),
        mmioWrite32: (pa: number, value: number): boolean => {
          this.smmu.writeRegister(pa - base, 4, value);
          return true;
        },
      },
      legalityOf: () => this.smmu.legality,
      onSmmuIrq: (handler: (name: string, line: string) => void): void => {
        onIrq = handler;
      },
    };
    this.core = new IommuCore(this.runtime, board, description);
    this.run(this.core.probe());
  }

  run<T>(task: Task<T>): T {
    const [result] = this.runAll([task]);
    return result as T;
  }

  /** Runs tasks side by side; what each says. */
  runAll<T>(tasks: readonly Task<T>[]): T[] {
    const results = new Map<number, T>();
    const body = function* (task: Task<T>, i: number): Task<void> {
      results.set(i, yield* task);
    };
    tasks.forEach((task, i) => void this.runtime.spawn(tasks.length === 1 ? 'test' : `test ${i}`, body(task, i)));
    this.runtime.scheduler.runUntil(this.runtime.now + 10_000_000_000);
    this.events.push(...this.runtime.drainEvents());
    return tasks.map((_, i) => {
      if (!results.has(i)) throw new Error('the task did not end');
      return results.get(i) as T;
    });
  }

  /** A function of an IOMMU's own; `isMultifunction`: with siblings that it is not isolated from. */
  addDevice(name: string, streamId: number, isMultifunction = false, hasAts = false): Device {
    const device = this.newDevice(name, streamId, isMultifunction, hasAts);
    expect(this.run(this.core.addDevice(device))).toBe(0);
    return device;
  }

  /** As {@link addDevice}, before the IOMMU core has heard of it. */
  newDevice(name: string, streamId: number, isMultifunction = false, hasAts = false): Device {
    const fn = {
      requesterId: streamId,
      expressType: 0,
      findExtendedCapability: (id: number) => (hasAts && id === PCI_EXT_CAP_ID_ATS ? 0x100 : 0),
      configWrite: (offset: number, _size: number, value: number) => this.configWrites.push({ offset, value }),
      description: { vendor: 0, device: 0, classCode: 0 },
    };
    return {
      name,
      function: fn,
      parent: undefined,
      isMultifunction,
      streamIds: [streamId],
      iommu: 'smmu0',
      msiController: 'its',
      group: undefined,
    } as unknown as Device;
  }

  dma(device: Device, iova: number, write = true): TranslateResult {
    return this.run(this.smmu.translate({ streamId: device.streamIds[0] ?? 0, iova: BigInt(iova), write }));
  }

  domain(device: Device, flags = 0): ArmSmmuDomain {
    const domain = this.run(this.group(device).driver.domain_alloc_paging_flags(device, flags, undefined));
    if (!(domain instanceof ArmSmmuDomain)) throw new Error('no domain');
    return domain;
  }

  group(device: Device): NonNullable<Device['group']> {
    if (device.group === undefined) throw new Error('no group');
    return device.group;
  }
}
