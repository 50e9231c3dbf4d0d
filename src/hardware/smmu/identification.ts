/**
 * Which SMMU this is: the identification registers built from a description, and what they mean to the rest of the model.
 *
 * The registers are the only truth: {@link featuresOf} reads them, nothing else looks at the description. That is why the
 * recorded corpora, which state register values, and boards, which state descriptions, drive the same code.
 */
import { UnbuildableError, type SmmuDescription } from '../description.js';
import { ADDRESS_SIZE_BITS } from './records.js';
import { IDR0, IDR1, IDR3, IDR5, type IDENTIFICATION_REGISTERS } from '../../uapi/smmuv3-registers.js';

/** Values of the identification registers, 32 bits each. */
export type Identification = Readonly<Record<keyof typeof IDENTIFICATION_REGISTERS, number>>;

/** Peripheral and component IDs of an Arm MMU-600, the bytes at 0xfd0..0xffc. */
export const PERIPHERAL_ID_BYTES = [0x04, 0, 0, 0, 0x84, 0xb4, 0xf0, 0x10, 0x0d, 0xf0, 0x05, 0xb1] as const;

/** log2 of the largest command and event queues, as MMU-600 systems report them. */
const COMMAND_QUEUE_LOG2 = 18;
const EVENT_QUEUE_LOG2 = 17;
const PAGE_REQUEST_QUEUE_LOG2 = 17;

function word(record: Uint32Array): number {
  return record[0] ?? 0;
}

/** Identification of a described SMMU: SMMUv3.1, AArch64 tables only, coherent, no stalls (PCIe devices cannot). */
export function identificationOf(description: SmmuDescription): Identification {
  const sizeIndex = ADDRESS_SIZE_BITS.indexOf(description.outputBits);
  if (sizeIndex < 0)
    throw new UnbuildableError(`${description.name}: no SMMU has ${description.outputBits} output bits`);
  return {
    IDR0: word(
      IDR0.make({
        S2P: Number(description.stage2),
        S1P: Number(description.stage1),
        TTF: 2,
        COHACC: 1,
        HTTU: { none: 0, access: 1, dirty: 2 }[description.httu],
        ASID16: Number(description.asidBits !== 8),
        VMID16: 1,
        TTENDIAN: 2,
        ATS: Number(description.ats ?? false),
        NS1ATS: Number(description.ats ?? false),
        PRI: Number(description.pri ?? false),
        CD2L: Number((description.substreamIdBits ?? 0) > 0),
        STALL_MODEL: 1,
        TERM_MODEL: 1,
        ST_LEVEL: 1,
      }),
    ),
    IDR1: word(
      IDR1.make({
        SIDSIZE: description.streamIdBits,
        SSIDSIZE: description.substreamIdBits ?? 0,
        PRIQS: description.pri === true ? PAGE_REQUEST_QUEUE_LOG2 : 0,
        EVENTQS: EVENT_QUEUE_LOG2,
        CMDQS: COMMAND_QUEUE_LOG2,
      }),
    ),
    IDR2: 0,
    IDR3: word(
      IDR3.make({
        HAD: 1,
        XNX: Number(description.stage2),
        RIL: Number(description.rangeInvalidation),
        FWB: Number(description.forcedWriteBack ?? false),
        BBML: description.breakBeforeMakeLevel ?? 2,
      }),
    ),
    IDR4: 0,
    IDR5: word(
      IDR5.make({
        OAS: sizeIndex,
        GRAN4K: Number(description.granules.includes('4k')),
        GRAN16K: Number(description.granules.includes('16k')),
        GRAN64K: Number(description.granules.includes('64k')),
        VAX: Number(description.inputBits > 48),
      }),
    ),
    IIDR: 0,
    AIDR: 1,
  };
}

/** Identification registers, understood. */
export interface SmmuFeatures {
  readonly stage1: boolean;
  readonly stage2: boolean;
  readonly outputBits: number;
  readonly granuleShifts: readonly number[];
  /** 52-bit input addresses with the 64 KiB granule. */
  readonly largeInput: boolean;
  readonly smallTables: boolean;
  readonly accessFlagUpdate: boolean;
  readonly dirtyStateUpdate: boolean;
  readonly hierarchicalDisable: boolean;
  readonly rangeInvalidation: boolean;
  readonly streamIdBits: number;
  readonly asidBits: number;
  readonly vmidBits: number;
  readonly ats: boolean;
  readonly pri: boolean;
  /** IDR1.PRIQS. */
  readonly pageRequestQueueLog2: number;
  /** IDR3.BBML: 2 where a page size may change without break-before-make and no TLB conflict arises. */
  readonly breakBeforeMakeLevel: number;
  /** IDR1.SSIDSIZE. */
  readonly substreamIdBits: number;
  readonly twoLevelCdTable: boolean;
  /** 0: stall or terminate, 1: no stalls, 2: stalls only. */
  readonly stallModel: number;
  readonly maxStalls: number;
  readonly termModel: boolean;
  readonly tableEndian: number;
  readonly twoLevelStreamTable: boolean;
  readonly permissionOverride: boolean;
  readonly commandQueueLog2: number;
  readonly eventQueueLog2: number;
}

/** What the identification registers promise. */
export function featuresOf(identification: Identification): SmmuFeatures {
  const idr0 = IDR0.decode([identification.IDR0]);
  const idr1 = IDR1.decode([identification.IDR1]);
  const idr3 = IDR3.decode([identification.IDR3]);
  const idr5 = IDR5.decode([identification.IDR5]);
  const granuleShifts: number[] = [];
  if (idr5.GRAN4K !== 0) granuleShifts.push(12);
  if (idr5.GRAN16K !== 0) granuleShifts.push(14);
  if (idr5.GRAN64K !== 0) granuleShifts.push(16);
  return {
    stage1: idr0.S1P !== 0,
    stage2: idr0.S2P !== 0,
    outputBits: ADDRESS_SIZE_BITS[idr5.OAS] ?? 52,
    granuleShifts,
    largeInput: idr5.VAX !== 0,
    smallTables: idr3.STT !== 0,
    accessFlagUpdate: idr0.HTTU >= 1,
    dirtyStateUpdate: idr0.HTTU >= 2,
    hierarchicalDisable: idr3.HAD !== 0,
    rangeInvalidation: idr3.RIL !== 0,
    streamIdBits: idr1.SIDSIZE,
    asidBits: idr0.ASID16 !== 0 ? 16 : 8,
    vmidBits: idr0.VMID16 !== 0 ? 16 : 8,
    ats: idr0.ATS !== 0,
    pri: idr0.PRI !== 0,
    pageRequestQueueLog2: idr1.PRIQS,
    breakBeforeMakeLevel: idr3.BBML,
    substreamIdBits: idr1.SSIDSIZE,
    twoLevelCdTable: idr0.CD2L !== 0,
    stallModel: idr0.STALL_MODEL,
    maxStalls: idr5.STALL_MAX,
    termModel: idr0.TERM_MODEL !== 0,
    tableEndian: idr0.TTENDIAN,
    twoLevelStreamTable: idr0.ST_LEVEL !== 0,
    permissionOverride: idr1.ATTR_PERMS_OVR !== 0,
    commandQueueLog2: idr1.CMDQS,
    eventQueueLog2: idr1.EVENTQS,
  };
}
