/**
 * What the driver learns from an SMMUv3's identification registers, in the words of the driver's feature flags.
 *
 * Source: Arm IHI 0070 6.3.1-6.3.6; Linux arm-smmu-v3.c (arm_smmu_device_hw_probe); domain.md A4.1-A4.9.
 */
import { ADDRESS_SIZE_BITS } from '../../../hardware/smmu/records.js';
import { AIDR, IDR0, IDR1, IDR2, IDR3, IDR4, IDR5, IIDR } from '../../../uapi/smmuv3-registers.js';
import type { SmmuRegisters } from './registers.js';

/** IDR0.HTTU and above: hardware updates access flag and dirty state. */
const HTTU_DIRTY = 2;
/** IDR0.STALL_MODEL: 0 stall and terminate, 1 no stalls, 2 stalls only. */
const STALL_MODEL_NONE = 1;
const TWO_LEVEL = 1;
/** The driver's queues are at most this many entries (log2): one 64 KiB page of commands, 128 KiB of events. */
const MAX_CMDQ_LOG2 = 8;
const MAX_EVENTQ_LOG2 = 7;

/** Capabilities of one SMMUv3. */
export interface SmmuFeatures {
  readonly hasStage1: boolean;
  readonly hasStage2: boolean;
  /** Stage 2 can force what stage 1 says about caching (S2FWB), so that a guest cannot get past the caches. */
  readonly hasForcedWriteBack: boolean;
  readonly hasAts: boolean;
  readonly hasTwoLevelStreamTable: boolean;
  readonly hasRangeInvalidation: boolean;
  readonly isCoherent: boolean;
  /** Hardware keeps dirty state in descriptors, and its walks are coherent. */
  readonly hasDirtyState: boolean;
  readonly canStall: boolean;
  readonly streamIdBits: number;
  /** 0 without substreams. */
  readonly substreamIdBits: number;
  readonly asidBits: number;
  readonly vmidBits: number;
  readonly outputBits: number;
  /** Input address width of stage 1: 52 with VAX, else 48. */
  readonly stage1Bits: number;
  /** Page shifts of the granules it walks. */
  readonly granuleShifts: readonly number[];
  readonly cmdqLog2: number;
  readonly eventqLog2: number;
  /** IDR0-5, IIDR, AIDR as read, for IOMMU_GET_HW_INFO. */
  readonly raw: { readonly idr: readonly number[]; readonly iidr: number; readonly aidr: number };
}

/** Reads the identification registers. */
export function probeFeatures(registers: SmmuRegisters): SmmuFeatures {
  const has = (name: keyof typeof IDR0.fields): boolean => registers.field(IDR0, name) !== 0;
  const isCoherent = has('COHACC');
  const granule = (name: 'GRAN4K' | 'GRAN16K' | 'GRAN64K', shift: number): number[] =>
    registers.field(IDR5, name) === 0 ? [] : [shift];
  return {
    hasStage1: has('S1P'),
    hasStage2: has('S2P'),
    hasForcedWriteBack: registers.field(IDR3, 'FWB') !== 0,
    hasAts: has('ATS'),
    hasTwoLevelStreamTable: registers.field(IDR0, 'ST_LEVEL') === TWO_LEVEL,
    hasRangeInvalidation: registers.field(IDR3, 'RIL') !== 0,
    isCoherent,
    hasDirtyState: isCoherent && registers.field(IDR0, 'HTTU') >= HTTU_DIRTY,
    canStall: registers.field(IDR0, 'STALL_MODEL') !== STALL_MODEL_NONE,
    streamIdBits: registers.field(IDR1, 'SIDSIZE'),
    substreamIdBits: registers.field(IDR1, 'SSIDSIZE'),
    asidBits: has('ASID16') ? 16 : 8,
    vmidBits: has('VMID16') ? 16 : 8,
    outputBits: ADDRESS_SIZE_BITS[registers.field(IDR5, 'OAS')] ?? 48,
    stage1Bits: registers.field(IDR5, 'VAX') === 1 ? 52 : 48,
    granuleShifts: [...granule('GRAN4K', 12), ...granule('GRAN16K', 14), ...granule('GRAN64K', 16)],
    cmdqLog2: Math.min(MAX_CMDQ_LOG2, registers.field(IDR1, 'CMDQS')),
    eventqLog2: Math.min(MAX_EVENTQ_LOG2, registers.field(IDR1, 'EVENTQS')),
    raw: {
      idr: [IDR0, IDR1, IDR2, IDR3, IDR4, IDR5].map((register) => registers.read(register)),
      iidr: registers.read(IIDR),
      aidr: registers.read(AIDR),
    },
  };
}
