import { describe, expect, it } from 'vitest';
import { Arena } from '../../src/core/arena.js';
import { PageTable } from '../../src/core/page-table.js';
import { CD, STE, STE_CONFIG, STE_S1DSS, STE_SHCFG_INCOMING } from '../../src/hardware/smmu/records.js';
import {
  abortSte,
  bypassSte,
  contextDescriptor,
  ENTRY_BYTES,
  stage1Ste,
  stage2Ste,
  writeEntry,
} from '../../src/kernel/iommu/arm-smmu-v3/entries.js';
import { cdSafeBits, cdUsedBits, steSafeBits, steUsedBits } from '../../src/hardware/smmu/used-bits.js';
import { ArmSmmuDomain } from '../../src/kernel/iommu/arm-smmu-v3/domain.js';
import { ArmSmmuV3 } from '../../src/kernel/iommu/arm-smmu-v3/driver.js';
import { ArmSmmuNestedDomain, ArmVsmmu } from '../../src/kernel/iommu/arm-smmu-v3/vsmmu.js';
import { DmaMemory } from '../../src/kernel/iommu/dma-memory.js';
import {
  IOMMU_CACHE,
  IOMMU_READ,
  IOMMU_WRITE,
  type IommuDomain,
  type PageRequest,
  type ViommuHost,
} from '../../src/kernel/iommu/domain.js';
import {
  iommu_attach_group_handle,
  iommu_detach_group_handle,
  iommu_device_claim_dma_owner,
  iommu_device_release_dma_owner,
  iommu_device_unuse_default_domain,
  iommu_device_use_default_domain,
  iommu_get_group_resv_regions,
  iommu_group_has_isolated_msi,
  iommu_replace_group_handle,
  iommu_report_device_fault,
  type AttachHandle,
} from '../../src/kernel/iommu/group.js';
import { mergeResvRegions, reservedRegionsText, type ResvRegion } from '../../src/kernel/iommu/resv-regions.js';
import type { Task } from '../../src/runtime/task.js';
import { EBUSY, EEXIST, EINVAL, EOPNOTSUPP, EPERM } from '../../src/uapi/errno.js';
import { iommu_hw_info_arm_smmuv3, IOMMU_HWPT_ALLOC_NEST_PARENT } from '../../src/uapi/iommufd.js';
import { CMDQ_PROD } from '../../src/uapi/smmuv3-registers.js';
import { hostDescription, Machine } from './machine.js';

const MIB = 2 ** 20;
const RW = IOMMU_READ | IOMMU_WRITE | IOMMU_CACHE;

const handle: AttachHandle = {
  get domain(): never {
    throw new Error('nobody asks');
  },
  *prepare_msi(): Task<bigint> {
    return 0n;
  },
};

function handleOf(domain: IommuDomain): AttachHandle {
  return { domain, prepare_msi: (device, doorbellPa) => handle.prepare_msi(device, doorbellPa) };
}

describe('bring-up and domains on the real SMMU model', () => {
  it('blocks or faults DMA until a domain maps it', () => {
    const m = new Machine();
    const device = m.addDevice('0000:01:00.0', 0x100);
    expect(m.dma(device, 0x1000)).toMatchObject({ ok: false, event: 'F_TRANSLATION' });
    expect(m.events.filter((e) => e.kind === 'smmu.event').map((e) => e.data)).toMatchObject([
      { event: 'F_TRANSLATION', client: '0000:01:00.0', sid: 0x100, iova: 0x1000n, access: 'write' },
    ]);
    const log = m.events.filter((e) => e.kind === 'kernel.log').map((e) => e.data['text']);
    expect(log[0]).toBe('arm-smmu-v3 smmu0: event 0x10 received:');
    expect(log[5]).toBe(
      'arm-smmu-v3 smmu0: event: F_TRANSLATION client: 0000:01:00.0 sid: 0x100 ssid: 0x0 iova: 0x1000 ipa: 0x0',
    );
    expect(log[6]).toBe('arm-smmu-v3 smmu0: unpriv data write s1 "Input address caused fault" stag: 0x0');
    const owner = {};
    expect(m.run(iommu_device_claim_dma_owner(device, owner))).toBe(0);
    expect(m.dma(device, 0x1000)).toEqual({ ok: false, abort: true });
    m.run(iommu_device_release_dma_owner(device));
    expect(m.dma(device, 0x1000)).toMatchObject({ event: 'F_TRANSLATION' });
  });

  for (const [name, flags, smmu] of [
    ['stage 1', 0, {}],
    ['stage 1 with dirty tracking', 2, {}],
    ['stage 2', 1, {}],
    ['stage 1 without range invalidation', 0, { rangeInvalidation: false }],
  ] as const) {
    it(`${name}: DMA reaches what is mapped and nothing after unmap`, () => {
      const m = new Machine(hostDescription(smmu));
      const device = m.addDevice('0000:01:00.0', 0x100);
      const kernelFrames = m.arena.kernelFramesInUse;
      const domain = m.domain(device, flags);
      expect(m.run(iommu_attach_group_handle(domain, m.group(device), handle))).toBe(0);
      expect(m.run(domain.map(0x40000000, 0x90000000, 2 * MIB, RW))).toBe(0);
      expect(m.run(domain.map(0x40200000, 0x95000000, 0x3000, IOMMU_READ | IOMMU_CACHE))).toBe(0);
      expect(m.run(domain.map(0x40201000, 0x95000000, 0x1000, RW))).toBe(-EEXIST);
      expect(m.dma(device, 0x40012345)).toMatchObject({ ok: true, pa: 0x90012345 });
      expect(m.dma(device, 0x40202008, false)).toMatchObject({ ok: true, pa: 0x95002008 });
      expect(m.dma(device, 0x40202008)).toMatchObject({ ok: false, event: 'F_PERMISSION' });
      expect(domain.iova_to_phys(0x40201004)).toBe(0x95001004);
      expect(m.run(domain.unmap(0x40200000, 0x3000))).toBe(0x3000);
      expect(m.dma(device, 0x40202008, false)).toMatchObject({ ok: false, event: 'F_TRANSLATION' });
      expect(m.run(domain.unmap(0x40000000, 2 * MIB))).toBe(2 * MIB);
      expect(m.dma(device, 0x40012345)).toMatchObject({ ok: false, event: 'F_TRANSLATION' });
      m.run(iommu_detach_group_handle(m.group(device)));
      m.run(domain.free());
      expect(m.arena.kernelFramesInUse).toBe(kernelFrames);
    });
  }

  it('reports written pages once, and none from before tracking began', () => {
    const m = new Machine();
    const device = m.addDevice('0000:01:00.0', 0x100);
    const domain = m.domain(device, 2);
    m.run(iommu_attach_group_handle(domain, m.group(device), handle));
    m.run(domain.map(0x10000, 0x90000000, 0x8000, RW));
    const dirty = (): [number, number][] => {
      const found: [number, number][] = [];
      const ops = domain.dirtyOps;
      if (ops === undefined) throw new Error('no dirty ops');
      expect(m.run(ops.read_and_clear_dirty(0x10000, 0x8000, false, (iova, bytes) => found.push([iova, bytes])))).toBe(
        0,
      );
      m.run(domain.iotlb_sync(0x10000, 0x8000));
      return found;
    };
    dirty();
    expect(dirty()).toEqual([]);
    m.dma(device, 0x11008);
    m.dma(device, 0x12ff8);
    m.dma(device, 0x15000, false);
    expect(dirty()).toEqual([[0x11000, 0x2000]]);
    expect(dirty()).toEqual([]);
    m.dma(device, 0x17000);
    expect(dirty()).toEqual([[0x17000, 0x1000]]);
    const ops = domain.dirtyOps;
    expect(ops === undefined ? 0 : m.run(ops.read_and_clear_dirty(0x17000, 0x2000, true, () => undefined))).toBe(
      -EINVAL,
    );
  });

  it('replaces a domain and frees the old one without leaks', () => {
    const m = new Machine();
    const device = m.addDevice('0000:01:00.0', 0x100);
    const [first, second, third] = [m.domain(device), m.domain(device), m.domain(device, 1)];
    m.run(first.map(0x1000, 0x90000000, 0x1000, RW));
    m.run(second.map(0x1000, 0xa0000000, 0x1000, RW));
    m.run(third.map(0x1000, 0xb0000000, 0x1000, RW));
    const group = m.group(device);
    m.run(iommu_attach_group_handle(first, group, handle));
    expect(m.dma(device, 0x1000)).toMatchObject({ pa: 0x90000000 });
    expect(m.run(iommu_attach_group_handle(second, group, handle))).toBe(-EBUSY);
    expect(m.run(iommu_replace_group_handle(group, second, handle))).toBe(0);
    expect(m.dma(device, 0x1000)).toMatchObject({ pa: 0xa0000000 });
    expect(m.run(iommu_replace_group_handle(group, third, handle))).toBe(0);
    expect(m.dma(device, 0x1000)).toMatchObject({ pa: 0xb0000000 });
    expect(m.run(iommu_replace_group_handle(group, first, handle))).toBe(0);
    expect(m.dma(device, 0x1000)).toMatchObject({ pa: 0x90000000 });
  });

  it('refuses what the SMMU cannot do', () => {
    const m = new Machine(hostDescription({ httu: 'none', stage2: false }));
    const device = m.addDevice('0000:01:00.0', 0x100);
    const { driver } = m.group(device);
    for (const flags of [1, 2, 3, 8]) {
      expect(m.run(driver.domain_alloc_paging_flags(device, flags, undefined))).toBe(-EOPNOTSUPP);
    }
    const info = driver.hw_info(device, 0);
    expect(typeof info === 'number' ? {} : iommu_hw_info_arm_smmuv3.decode(info.bytes)).toMatchObject({
      idr: [
        m.smmu.identification.IDR0,
        m.smmu.identification.IDR1,
        0,
        m.smmu.identification.IDR3,
        0,
        m.smmu.identification.IDR5,
      ],
    });
  });

  it('has the aperture of the stage and the width', () => {
    const m = new Machine(hostDescription({ inputBits: 39, outputBits: 44 }));
    const device = m.addDevice('0000:01:00.0', 0x100);
    expect(m.domain(device).apertureLast).toBe(2n ** 39n - 1n);
    expect(m.domain(device, 1).apertureLast).toBe(2n ** 44n - 1n);
  });
});

describe('changing an entry the hardware reads', () => {
  const arena = Arena.create({ kernelFrames: 64, storageFrames: 64, kernelBasePfn: 4096 });
  const table = (stage: 1 | 2): PageTable => {
    const made = PageTable.create(arena, { stage, granuleShift: 12, inputBits: 48, outputBits: 48, pageSizes: [4096] });
    if (typeof made === 'number') throw new Error('no table');
    return made;
  };
  const [one, two] = [table(1), table(2)];
  /** Without a SubstreamID it bypasses stage 1. */
  const bypassable = (ste: Uint32Array): Uint32Array => {
    STE.set(ste, 'S1DSS', STE_S1DSS.BYPASS);
    STE.set(ste, 'SHCFG', STE_SHCFG_INCOMING);
    return ste;
  };
  const { S1CIR, S1COR, S1CSH, S1ContextPtr } = STE.decode(stage1Ste(0x1000040, false));
  const nested = { Config: STE_CONFIG.NESTED, S1CIR, S1COR, S1CSH, S1ContextPtr, MEV: 1 };
  const stes = {
    invalid: STE.make({}),
    abort: abortSte(),
    bypass: bypassSte(),
    'stage 1': stage1Ste(0x1000040, false),
    'stage 1 elsewhere': stage1Ste(0x2000040, false),
    'stage 1 with ATS': stage1Ste(0x1000040, false, true),
    'stage 1 or none': bypassable(stage1Ste(0x1000040, false, true)),
    'stage 2': stage2Ste(two, 0),
    'stage 2 with ATS': stage2Ste(two, 0, false, true),
    'both stages, or the second': bypassable(
      STE.make({
        ...STE.decode(stage2Ste(two, 0, false, true)),
        ...nested,
      }),
    ),
    'stage 2 of VMID 5': stage2Ste(two, 5),
  };
  const masked = (words: Uint32Array, mask: Uint32Array): number[] =>
    Array.from(words, (word, i) => (word & (mask[i] ?? 0)) >>> 0);

  interface Transition {
    /** Every state the hardware can see on the way; the last is the target. */
    readonly states: Uint32Array[];
    readonly syncs: number;
    readonly isHitless: boolean;
  }

  function transition(kind: 'STE' | 'CD', from: Uint32Array, to: Uint32Array): Transition {
    const memory = DmaMemory.alloc(arena, ENTRY_BYTES);
    if (memory === undefined) throw new Error('no memory');
    memory.write(0, from);
    const states: Uint32Array[] = [];
    let syncs = 0;
    const sync = function* (): Task<void> {
      syncs++;
      // The test looks at every store itself.
    };
    const rules =
      kind === 'STE'
        ? { usedBits: steUsedBits, safeBits: steSafeBits, validBit: 1 }
        : { usedBits: cdUsedBits, safeBits: cdSafeBits, validBit: 2 ** 31 };
    const task = writeEntry({ memory, offset: 0, ...rules, sync }, to);
    while (task.next().done !== true) states.push(memory.read(0, ENTRY_BYTES / 4));
    states.push(memory.read(0, ENTRY_BYTES / 4));
    memory.free();
    const record = kind === 'STE' ? STE : CD;
    return { states, syncs, isHitless: states.every((state) => record.get(state, 'V') === 1) };
  }

  for (const [fromName, from] of Object.entries(stes)) {
    for (const [toName, to] of Object.entries(stes)) {
      it(`${fromName} -> ${toName} is never half old and half new`, () => {
        const { states } = transition('STE', from, to);
        const safe = steSafeBits(from, to);
        const matters = (state: Uint32Array): Uint32Array =>
          steUsedBits(state).map((mask, i) => mask & ~(safe[i] ?? 0));
        for (const state of states) {
          const meanings = [masked(from, matters(from)), masked(to, matters(to)), masked(stes.invalid, matters(state))];
          expect(meanings).toContainEqual(masked(state, matters(state)));
        }
        expect(states.at(-1)).toEqual(to);
      });
    }
  }

  // As many CMD_SYNCs as the kernel's own unit test counts for the same changes (arm-smmu-v3-test.c).
  type Name = keyof typeof stes;
  const counted: [from: Name, to: Name, syncs: number][] = [
    ['bypass', 'abort', 2],
    ['abort', 'bypass', 2],
    ['stage 1 with ATS', 'abort', 2],
    ['abort', 'stage 1 with ATS', 2],
    ['stage 1 with ATS', 'bypass', 3],
    ['bypass', 'stage 1 with ATS', 3],
    ['stage 1 with ATS', 'stage 1 or none', 1],
    ['stage 1 or none', 'stage 1 with ATS', 1],
    ['stage 1 or none', 'bypass', 2],
    ['bypass', 'stage 1 or none', 2],
    ['stage 2 with ATS', 'abort', 2],
    ['abort', 'stage 2 with ATS', 2],
    ['stage 2 with ATS', 'bypass', 2],
    ['bypass', 'stage 2 with ATS', 2],
    ['stage 1 with ATS', 'stage 2 with ATS', 3],
    ['stage 2 with ATS', 'stage 1 with ATS', 3],
    ['both stages, or the second', 'stage 2', 3],
    ['stage 2', 'both stages, or the second', 2],
  ];
  it.each(counted)('%s -> %s: hitless, with %i CMD_SYNCs', (from, to, syncs) => {
    expect(transition('STE', stes[from], stes[to])).toMatchObject({ isHitless: true, syncs });
  });

  it.each([
    ['stage 1', 'stage 2 with ATS'],
    ['stage 2 with ATS', 'stage 1'],
    ['stage 1', 'stage 1 with ATS'],
  ] as const)('%s -> %s: ATS, which is off meanwhile, does not make it a breaking change', (from, to) => {
    expect(transition('STE', stes[from], stes[to]).isHitless).toBe(true);
  });

  it('another CD table is one store; with another S1DSS, or another VMID beside a stage, it is a breaking change', () => {
    expect(transition('STE', stes['stage 1'], stes['stage 1 elsewhere'])).toMatchObject({ isHitless: true, syncs: 1 });
    for (const [from, to] of [
      ['stage 1 elsewhere', 'stage 1 or none'],
      ['stage 1', 'stage 2 of VMID 5'],
    ] as const)
      expect(transition('STE', stes[from], stes[to])).toMatchObject({ isHitless: false, syncs: 3 });
  });

  it('the end of a walk in a context descriptor (EPD0) frees its table and sizes: two CMD_SYNCs either way', () => {
    const live = contextDescriptor(one, 1, false);
    const ended = CD.make({ ...CD.decode(live), EPD0: 1, T0SZ: 0, TG0: 0, IR0: 0, OR0: 0, SH0: 0, TTB0: 0 });
    expect(transition('CD', live, ended)).toMatchObject({ isHitless: true, syncs: 2 });
    expect(transition('CD', ended, live)).toMatchObject({ isHitless: true, syncs: 2 });
  });

  it('another ASID in a context descriptor is one store, another table as well goes through V = 0', () => {
    const first = contextDescriptor(one, 1, false);
    expect(transition('CD', first, contextDescriptor(one, 2, false))).toMatchObject({ isHitless: true, syncs: 1 });
    const { states, isHitless } = transition('CD', first, contextDescriptor(two, 2, false));
    expect(isHitless).toBe(false);
    expect(states.at(-1)).toEqual(contextDescriptor(two, 2, false));
  });
});

describe('groups and ownership', () => {
  it('numbers groups lowest free first and keeps functions together that are not isolated', () => {
    const m = new Machine(hostDescription());
    const a = m.addDevice('0000:01:00.0', 0x100, true);
    const b = m.addDevice('0000:02:00.0', 0x200);
    const c = m.addDevice('0000:01:00.1', 0x101, true);
    expect([a, b, c].map((d) => d.group?.id)).toEqual([0, 1, 0]);
    m.run(m.core.removeDevice(b));
    const d = m.addDevice('0000:03:00.0', 0x300);
    expect(d.group?.id).toBe(1);
    m.run(m.core.removeDevice(a));
    expect(m.core.groups.map((g) => g.devices.map((x) => x.name))).toEqual([['0000:01:00.1'], ['0000:03:00.0']]);
  });

  it('lets one owner in, and drivers only while nobody owns the group', () => {
    const m = new Machine();
    const device = m.addDevice('0000:01:00.0', 0x100);
    const [mine, yours] = [{}, {}];
    expect(m.run(iommu_device_use_default_domain(device))).toBe(0);
    expect(m.run(iommu_device_claim_dma_owner(device, mine))).toBe(-EPERM);
    m.run(iommu_device_unuse_default_domain(device));
    expect(m.run(iommu_device_claim_dma_owner(device, mine))).toBe(0);
    expect(m.run(iommu_device_claim_dma_owner(device, mine))).toBe(0);
    expect(m.run(iommu_device_claim_dma_owner(device, yours))).toBe(-EPERM);
    expect(m.run(iommu_device_use_default_domain(device))).toBe(-EBUSY);
    m.run(iommu_device_release_dma_owner(device));
    expect(m.run(iommu_device_use_default_domain(device))).toBe(-EBUSY);
    m.run(iommu_device_release_dma_owner(device));
    expect(m.run(iommu_device_use_default_domain(device))).toBe(0);
  });

  it('lets either a driver of one member or an owner in when both come at once', () => {
    const outcomes = new Set<string>();
    for (let seed = 0; seed < 60; seed++) {
      const m = new Machine(hostDescription(), seed, { strategy: 'explored', seed });
      const [device, mate] = [m.addDevice('0000:01:00.0', 0x100, true), m.addDevice('0000:01:00.1', 0x101, true)];
      const [owned, bound] = m.runAll([
        iommu_device_claim_dma_owner(device, {}),
        iommu_device_use_default_domain(mate),
      ]);
      outcomes.add(`${owned},${bound}`);
      const group = m.group(device);
      expect([group.owner === undefined, group.domain === group.defaultDomain]).toEqual(
        owned === 0 ? [false, false] : [true, true],
      );
    }
    expect([...outcomes].sort()).toEqual([`${-EPERM},0`, `0,${-EBUSY}`]);
  });

  it('puts devices that have one stream, or are not isolated, into one group when they come at once', () => {
    for (let seed = 0; seed < 40; seed++) {
      for (const [kind, streams] of [
        ['arm-smmu', [0x100, 0x100]],
        ['arm-smmu-v3', [0x100, 0x101]],
      ] as const) {
        const m = new Machine(hostDescription({ kind }), seed, { strategy: 'explored', seed });
        const devices = streams.map((id, i) => m.newDevice(`0000:01:00.${i}`, id, kind === 'arm-smmu-v3'));
        expect(m.runAll(devices.map((device) => m.core.addDevice(device)))).toEqual([0, 0]);
        expect(m.core.groups.map((group) => group.devices.length)).toEqual([2]);
      }
    }
  });

  it('keeps a group, and what it translates through, for a device that comes while the last member leaves', () => {
    for (let seed = 0; seed < 60; seed++) {
      const m = new Machine(hostDescription(), seed, { strategy: 'explored', seed });
      const leaving = m.addDevice('0000:01:00.0', 0x100, true);
      const coming = m.newDevice('0000:01:00.1', 0x101, true);
      m.runAll<unknown>([m.core.removeDevice(leaving), m.core.addDevice(coming)]);
      const group = m.group(coming);
      expect([m.core.groups.length, m.core.groups.includes(group)]).toEqual([1, true]);
      const iova = m.run(m.core.iommu_dma_prepare_msi(coming, 0x8030040));
      expect(m.dma(coming, Number(iova))).toMatchObject({ ok: true, pa: 0x8030040 });
    }
  });

  it('gives a page request that comes while the group leaves a domain to whoever attached it', () => {
    const m = new Machine();
    const device = m.addDevice('0000:01:00.0', 0x100);
    const group = m.group(device);
    expect(m.run(iommu_device_claim_dma_owner(device, {}))).toBe(0);
    const taken: PageRequest[] = [];
    const domain = m.domain(device);
    const taker = { ...handleOf(domain), handle_fault: (_: unknown, asked: PageRequest) => void taken.push(asked) };
    expect(m.run(iommu_attach_group_handle(domain, group, taker))).toBe(0);
    const request = { flags: 0, pasid: 0, grpid: 1, perm: 1, addr: 0x1000n };
    const ask = function* (): Task<void> {
      while (!group.isMoving) yield 1;
      iommu_report_device_fault(device, request);
    };
    m.runAll([iommu_detach_group_handle(group), ask()]);
    iommu_report_device_fault(device, request);
    expect(taken).toEqual([request]);
  });

  it('tells an event of a guest’s device while the device leaves the guest, to the guest until the driver gets to that', () => {
    let told = 0;
    let toldWhileLeaving = 0;
    for (let seed = 0; seed < 60; seed++) {
      const m = new Machine(hostDescription({ forcedWriteBack: true }), seed, { strategy: 'explored', seed });
      const device = m.addDevice('0000:01:00.0', 0x100);
      const group = m.group(device);
      const { driver } = group;
      if (!(driver instanceof ArmSmmuV3)) throw new Error('no SMMUv3');
      const parent = m.domain(device, IOMMU_HWPT_ALLOC_NEST_PARENT);
      const memory = DmaMemory.alloc(m.arena, 4096);
      m.run(parent.map(0, memory?.address ?? 0, 4096, RW));
      const commands = (): number => m.smmu.readRegister(CMDQ_PROD.offset, 4);
      let before = 0;
      const host: ViommuHost = {
        parent,
        vdevId: () => 7n,
        find_dev: () => device,
        alloc_mmap: () => -EINVAL,
        copyToUser: () => 0,
        *report_event() {
          told++;
          if (group.isMoving && commands() !== before) toldWhileLeaving++;
          return 0;
        },
      };
      // Its context descriptor, at 0, is not valid.
      const vste = STE.make({ V: 1, Config: STE_CONFIG.S1_TRANS });
      const guest = new ArmSmmuNestedDomain(new ArmVsmmu(driver, parent, host), vste);
      expect(m.run(iommu_device_claim_dma_owner(device, {}))).toBe(0);
      expect(m.run(iommu_attach_group_handle(guest, group, handleOf(guest)))).toBe(0);
      before = commands();
      const dma = m.smmu.translate({ streamId: 0x100, iova: 0x1000n, write: true });
      m.runAll<unknown>([dma, iommu_detach_group_handle(group)]);
      m.run(iommu_device_release_dma_owner(device));
      m.run(m.core.removeDevice(device));
    }
    expect([told > 0, toldWhileLeaving > 0]).toEqual([true, true]);
  });

  it('keeps a device with a direct region mapped: no owner, DMA to the region works', () => {
    const rmrr = { type: 'direct', owner: 'RMRR', start: 0x9000000n, last: 0x9001fffn } as const;
    const m = new Machine(hostDescription({}, { reservedRegions: [rmrr] }));
    const device = m.addDevice('0000:01:00.0', 0x100);
    expect(m.run(iommu_device_claim_dma_owner(device, {}))).toBe(-EINVAL);
    expect(m.dma(device, 0x9001008)).toMatchObject({ ok: true, pa: 0x9001008 });
  });

  it('maps direct regions with pages as large as they allow, and leaves what is mapped already as it is', () => {
    const direct = (start: bigint, last: bigint) => ({ type: 'direct', owner: 'RMR', start, last }) as const;
    const regions = [direct(0x8000_0000n, 0x803f_ffffn), direct(0x803f_e000n, 0x8040_1fffn)];
    const m = new Machine(hostDescription({}, { reservedRegions: regions }));
    const device = m.addDevice('0000:01:00.0', 0x100);
    const domain = m.group(device).domain;
    const leaves = domain instanceof ArmSmmuDomain ? [...domain.leaves()] : [];
    expect(leaves.map(({ iova, pa }) => pa - iova)).toEqual(leaves.map(() => 0));
    expect(leaves.map(({ iova }) => iova)).toEqual([0x8000_0000, 0x8020_0000, 0x8040_0000, 0x8040_1000]);
    expect(leaves.map(({ lengthBytes }) => lengthBytes)).toEqual([2 * MIB, 2 * MIB, 4096, 4096]);
    for (const at of [0x8000_0000, 0x803f_ffff, 0x8040_1fff])
      expect(m.dma(device, at)).toMatchObject({ ok: true, pa: at });
    expect(m.dma(device, 0x8040_2000)).toMatchObject({ ok: false });
  });

  it('maps a doorbell for ordinary drivers and leaves it alone where the device reports it as a hardware region', () => {
    const m = new Machine();
    const device = m.addDevice('0000:01:00.0', 0x100);
    const iova = m.run(m.core.iommu_dma_prepare_msi(device, 0x8030040));
    expect(iova).toBe(0xfffff040n);
    expect(m.dma(device, Number(iova))).toMatchObject({ ok: true, pa: 0x8030040 });
    expect(iommu_group_has_isolated_msi(m.group(device))).toBe(true);
    const controllers = [
      { name: 'its', kind: 'its', base: 0xc6000000n, bypassesIommu: true, isolated: false },
    ] as const;
    const page = { start: 0xc6010000n, last: 0xc601ffffn, type: 'msi', owner: 'its' } as const;
    const bypass = new Machine(hostDescription({}, { msiControllers: controllers, reservedRegions: [page] }));
    const other = bypass.addDevice('0000:01:00.0', 0x100);
    expect(bypass.run(bypass.core.iommu_dma_prepare_msi(other, 0xc6010040))).toBe(0xc6010040n);
    expect(iommu_group_has_isolated_msi(bypass.group(other))).toBe(false);
  });
});

describe('reserved regions', () => {
  const region = (start: number, last: number, type: ResvRegion['type']): ResvRegion => ({
    start: BigInt(start),
    last: BigInt(last),
    type,
    owner: 'test',
  });

  it('are sorted, merged within a type and printed as sysfs does', () => {
    const merged = mergeResvRegions([
      [region(0x8000000, 0x80fffff, 'software-msi'), region(0x1000000, 0x10ffffff, 'direct-relaxable')],
      [
        region(0x20000, 0x2ffff, 'reserved'),
        region(0x10000, 0x1ffff, 'reserved'),
        region(0x28000, 0x3ffff, 'reserved'),
      ],
    ]);
    expect(reservedRegionsText(merged)).toBe(
      '0x0000000000010000 0x000000000003ffff reserved\n' +
        '0x0000000001000000 0x0000000010ffffff direct-relaxable\n' +
        '0x0000000008000000 0x00000000080fffff msi\n',
    );
  });

  it('of a group are those of its devices', () => {
    const hole = { ...region(0xc6010000, 0xc601ffff, 'msi'), devices: ['0000:01:00.0'] };
    const m = new Machine(hostDescription({}, { reservedRegions: [hole] }));
    const a = m.addDevice('0000:01:00.0', 0x100);
    const b = m.addDevice('0000:02:00.0', 0x200);
    expect(m.core.reservedRegionsText(m.group(a))).toBe(
      '0x0000000008000000 0x00000000080fffff msi\n0x00000000c6010000 0x00000000c601ffff msi\n',
    );
    expect(iommu_get_group_resv_regions(m.group(b)).map((r) => r.type)).toEqual(['software-msi']);
  });
});
