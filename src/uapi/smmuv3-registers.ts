/**
 * Registers of the SMMUv3's Non-secure programming interface, declared once for the hardware, for the kernel's driver and for a VMM.
 * Offsets are from the SMMU's base; the event queue's indices lie in page 1 (0x10000 on). IHI 0070 chapter 6.
 */
import { bit, bits, reg32, reg64 } from '../layout/bits.js';

/** Size of the register frame: two pages of 64 KiB. */
export const SMMU_FRAME_BYTES = 0x20000;

export const IDR0 = reg32('SMMU_IDR0', 0x0, {
  S2P: bit(0),
  S1P: bit(1),
  TTF: bits(2, 2),
  COHACC: bit(4),
  BTM: bit(5),
  HTTU: bits(6, 2),
  DORMHINT: bit(8),
  HYP: bit(9),
  ATS: bit(10),
  NS1ATS: bit(11),
  ASID16: bit(12),
  MSI: bit(13),
  SEV: bit(14),
  ATOS: bit(15),
  PRI: bit(16),
  VMW: bit(17),
  VMID16: bit(18),
  CD2L: bit(19),
  VATOS: bit(20),
  TTENDIAN: bits(21, 2),
  STALL_MODEL: bits(24, 2),
  TERM_MODEL: bit(26),
  ST_LEVEL: bits(27, 2),
});
export const IDR1 = reg32('SMMU_IDR1', 0x4, {
  SIDSIZE: bits(0, 6),
  SSIDSIZE: bits(6, 5),
  PRIQS: bits(11, 5),
  EVENTQS: bits(16, 5),
  CMDQS: bits(21, 5),
  ATTR_PERMS_OVR: bit(26),
  ATTR_TYPES_OVR: bit(27),
  REL: bit(28),
  QUEUES_PRESET: bit(29),
  TABLES_PRESET: bit(30),
  ECMDQ: bit(31),
});
export const IDR2 = reg32('SMMU_IDR2', 0x8, { BA_VATOS: bits(0, 10) });
export const IDR3 = reg32('SMMU_IDR3', 0xc, {
  HAD: bit(2),
  PBHA: bit(3),
  XNX: bit(4),
  PPS: bit(5),
  MPAM: bit(7),
  FWB: bit(8),
  STT: bit(9),
  RIL: bit(10),
  BBML: bits(11, 2),
});
export const IDR4 = reg32('SMMU_IDR4', 0x10, { IMPLEMENTATION_DEFINED: bits(0, 32) });
export const IDR5 = reg32('SMMU_IDR5', 0x14, {
  OAS: bits(0, 3),
  GRAN4K: bit(4),
  GRAN16K: bit(5),
  GRAN64K: bit(6),
  DS: bit(7),
  VAX: bits(10, 2),
  STALL_MAX: bits(16, 16),
});
export const IIDR = reg32('SMMU_IIDR', 0x18, {
  Implementer: bits(0, 12),
  Revision: bits(12, 4),
  Variant: bits(16, 4),
  ProductID: bits(20, 12),
});
export const AIDR = reg32('SMMU_AIDR', 0x1c, { ArchMinorRev: bits(0, 4), ArchMajorRev: bits(4, 4) });

const controlBits = {
  SMMUEN: bit(0),
  PRIQEN: bit(1),
  EVENTQEN: bit(2),
  CMDQEN: bit(3),
  ATSCHK: bit(4),
  VMW: bits(6, 3),
} as const;
export const CR0 = reg32('SMMU_CR0', 0x20, controlBits);
/** Follows CR0 once an update has taken effect. */
export const CR0ACK = reg32('SMMU_CR0ACK', 0x24, controlBits);
export const CR1 = reg32('SMMU_CR1', 0x28, {
  QUEUE_IC: bits(0, 2),
  QUEUE_OC: bits(2, 2),
  QUEUE_SH: bits(4, 2),
  TABLE_IC: bits(6, 2),
  TABLE_OC: bits(8, 2),
  TABLE_SH: bits(10, 2),
});
export const CR2 = reg32('SMMU_CR2', 0x2c, { E2H: bit(0), RECINVSID: bit(1), PTM: bit(2), REC_CFG_ATS: bit(3) });
export const STATUSR = reg32('SMMU_STATUSR', 0x40, { DORMANT: bit(0) });
/** Global bypass attributes: what happens to transactions while CR0.SMMUEN is 0. */
export const GBPA = reg32('SMMU_GBPA', 0x44, {
  MemAttr: bits(0, 4),
  MTCFG: bit(4),
  /** RES0, but stored, as are bits 30..21. */
  RES0_LOW: bits(5, 3),
  ALLOCCFG: bits(8, 4),
  SHCFG: bits(12, 2),
  NSCFG: bits(14, 2),
  PRIVCFG: bits(16, 2),
  INSTCFG: bits(18, 2),
  ABORT: bit(20),
  RES0_HIGH: bits(21, 10),
  Update: bit(31),
});

const interruptBits = { GERROR_IRQEN: bit(0), PRIQ_IRQEN: bit(1), EVENTQ_IRQEN: bit(2) } as const;
export const IRQ_CTRL = reg32('SMMU_IRQ_CTRL', 0x50, interruptBits);
export const IRQ_CTRLACK = reg32('SMMU_IRQ_CTRLACK', 0x54, interruptBits);

const globalErrorBits = {
  CMDQ_ERR: bit(0),
  EVENTQ_ABT_ERR: bit(2),
  PRIQ_ABT_ERR: bit(3),
  MSI_CMDQ_ABT_ERR: bit(4),
  MSI_EVENTQ_ABT_ERR: bit(5),
  MSI_PRIQ_ABT_ERR: bit(6),
  MSI_GERROR_ABT_ERR: bit(7),
  SFM_ERR: bit(8),
} as const;
/** An error is active while its bit differs from GERRORN's. */
export const GERROR = reg32('SMMU_GERROR', 0x60, globalErrorBits);
export const GERRORN = reg32('SMMU_GERRORN', 0x64, globalErrorBits);

/** ADDR in units of 64 bytes. */
export const STRTAB_BASE = reg64('SMMU_STRTAB_BASE', 0x80, { ADDR: bits(6, 46), RA: bit(62) });
export const STRTAB_BASE_CFG = reg32('SMMU_STRTAB_BASE_CFG', 0x88, {
  LOG2SIZE: bits(0, 6),
  SPLIT: bits(6, 5),
  FMT: bits(16, 2),
});
/** STRTAB_BASE_CFG.FMT. */
export const STRTAB_FMT = { LINEAR: 0, TWO_LEVEL: 1 } as const;

/** ADDR in units of 32 bytes. */
export const CMDQ_BASE = reg64('SMMU_CMDQ_BASE', 0x90, { LOG2SIZE: bits(0, 5), ADDR: bits(5, 47), RA: bit(62) });
/** Index and wrap bit together: bits LOG2SIZE..0. */
export const CMDQ_PROD = reg32('SMMU_CMDQ_PROD', 0x98, { WR: bits(0, 20) });
export const CMDQ_CONS = reg32('SMMU_CMDQ_CONS', 0x9c, { RD: bits(0, 20), ERR: bits(24, 7) });
/** ADDR in units of 32 bytes. */
export const EVENTQ_BASE = reg64('SMMU_EVENTQ_BASE', 0xa0, { LOG2SIZE: bits(0, 5), ADDR: bits(5, 47), WA: bit(62) });
export const EVENTQ_PROD = reg32('SMMU_EVENTQ_PROD', 0x100a8, { WR: bits(0, 20), OVFLG: bit(31) });
export const EVENTQ_CONS = reg32('SMMU_EVENTQ_CONS', 0x100ac, { RD: bits(0, 20), OVACKFLG: bit(31) });

/** ADDR in units of 32 bytes. */
export const PRIQ_BASE = reg64('SMMU_PRIQ_BASE', 0xc0, { LOG2SIZE: bits(0, 5), ADDR: bits(5, 47), WA: bit(62) });
export const PRIQ_PROD = reg32('SMMU_PRIQ_PROD', 0x100c8, { WR: bits(0, 20), OVFLG: bit(31) });
export const PRIQ_CONS = reg32('SMMU_PRIQ_CONS', 0x100cc, { RD: bits(0, 20), OVACKFLG: bit(31) });

/** First of the twelve peripheral and component identification words, 4 bytes apart, one byte each. */
export const PERIPHERAL_ID_OFFSET = 0xfd0;

/** Identification registers by name, in the order of their offsets. */
export const IDENTIFICATION_REGISTERS = { IDR0, IDR1, IDR2, IDR3, IDR4, IDR5, IIDR, AIDR } as const;

/** What software can write, with the bits that keep their value. Everything else is read-only or reads as zero. */
export const WRITABLE_REGISTERS = [
  CR0,
  CR1,
  CR2,
  GBPA,
  IRQ_CTRL,
  GERRORN,
  STRTAB_BASE,
  STRTAB_BASE_CFG,
  CMDQ_BASE,
  CMDQ_PROD,
  CMDQ_CONS,
  EVENTQ_BASE,
  EVENTQ_PROD,
  EVENTQ_CONS,
] as const;

/** Those of an SMMU with a PRI queue. */
export const PRIQ_REGISTERS = [PRIQ_BASE, PRIQ_PROD, PRIQ_CONS] as const;
