/**
 * In-memory records of the SMMUv3, bit by bit: stream table entries, context descriptors, commands, events, and the
 * VMSAv8-64 descriptors its walker reads. Only declarations: the kernel's driver writes the same records the hardware
 * reads.
 *
 * Fields lie where Arm IHI 0070 prints them, counted from bit 0 of the record. Fields of features that no model here
 * has (Secure stage 2, MPAM, permission indirection, VMSAv9-128) are left undeclared; they are ignored, as RES0 fields
 * may be. Addresses are declared without their always-zero low bits: the value of `S2TTB` is the address divided by
 * 16.
 */
import { bit, bits, defineRecord } from '../../layout/bits.js';

/** Level 1 stream table descriptor, 8 bytes. L2Ptr in units of 64 bytes. IHI 0070 5.1. */
export const L1STD = defineRecord('L1STD', 8, { Span: bits(0, 5), L2Ptr: bits(6, 46) });

/** STE.Config. IHI 0070 5.2. */
export const STE_CONFIG = { ABORT: 0, BYPASS: 4, S1_TRANS: 5, S2_TRANS: 6, NESTED: 7 } as const;

/** STE.EATS. */
export const STE_EATS = { ABORT: 0, FULL: 1, SPLIT: 2 } as const;

/** STE.S1DSS: what becomes of transactions without a SubstreamID where there are substreams. IHI 0070 5.2. */
export const STE_S1DSS = { TERMINATE: 0, BYPASS: 1, SSID0: 2 } as const;

/** STE.SHCFG: 1 uses the shareability that came with the transaction. */
export const STE_SHCFG_INCOMING = 1;

/** Stream table entry, 64 bytes. S1ContextPtr in units of 64 bytes, S2TTB of 16, VMSPtr of 4096. IHI 0070 5.2. */
export const STE = defineRecord('STE', 64, {
  V: bit(0),
  Config: bits(1, 3),
  S1Fmt: bits(4, 2),
  S1ContextPtr: bits(6, 46),
  S1CDMax: bits(59, 5),
  S1DSS: bits(64, 2),
  S1CIR: bits(66, 2),
  S1COR: bits(68, 2),
  S1CSH: bits(70, 2),
  DRE: bit(76),
  CONT: bits(77, 4),
  DCP: bit(81),
  PPAR: bit(82),
  MEV: bit(83),
  S2FWB: bit(89),
  S1STALLD: bit(91),
  EATS: bits(92, 2),
  STRW: bits(94, 2),
  MemAttr: bits(96, 4),
  MTCFG: bit(100),
  ALLOCCFG: bits(101, 4),
  SHCFG: bits(108, 2),
  NSCFG: bits(110, 2),
  PRIVCFG: bits(112, 2),
  INSTCFG: bits(114, 2),
  S2VMID: bits(128, 16),
  S2T0SZ: bits(160, 6),
  S2SL0: bits(166, 2),
  S2IR0: bits(168, 2),
  S2OR0: bits(170, 2),
  S2SH0: bits(172, 2),
  S2TG: bits(174, 2),
  S2PS: bits(176, 3),
  S2AA64: bit(179),
  S2ENDI: bit(180),
  S2AFFD: bit(181),
  S2PTW: bit(182),
  S2HD: bit(183),
  S2HA: bit(184),
  S2S: bit(185),
  S2R: bit(186),
  S2TTB: bits(196, 48),
  VMSPtr: bits(332, 40),
});

/** What of an STE says how stage 1 is to be done; with nesting a guest's own words. */
export const STE_STAGE1_FIELDS = [
  'S1Fmt',
  'S1ContextPtr',
  'S1CDMax',
  'S1DSS',
  'S1CIR',
  'S1COR',
  'S1CSH',
  'S1STALLD',
] as const;

/** Level 1 context descriptor, 8 bytes. L2Ptr in units of 4096 bytes. IHI 0070 5.3. */
export const L1CD = defineRecord('L1CD', 8, { V: bit(0), L2Ptr: bits(12, 40) });

/** Context descriptor, 64 bytes. TTB0 and TTB1 in units of 16 bytes. IHI 0070 5.4. */
export const CD = defineRecord('CD', 64, {
  T0SZ: bits(0, 6),
  TG0: bits(6, 2),
  IR0: bits(8, 2),
  OR0: bits(10, 2),
  SH0: bits(12, 2),
  EPD0: bit(14),
  ENDI: bit(15),
  T1SZ: bits(16, 6),
  TG1: bits(22, 2),
  IR1: bits(24, 2),
  OR1: bits(26, 2),
  SH1: bits(28, 2),
  EPD1: bit(30),
  V: bit(31),
  IPS: bits(32, 3),
  AFFD: bit(35),
  WXN: bit(36),
  UWXN: bit(37),
  TBI0: bit(38),
  TBI1: bit(39),
  PAN: bit(40),
  AA64: bit(41),
  HD: bit(42),
  HA: bit(43),
  S: bit(44),
  R: bit(45),
  A: bit(46),
  ASET: bit(47),
  ASID: bits(48, 16),
  HAD0: bit(65),
  TTB0: bits(68, 48),
  HAD1: bit(129),
  TTB1: bits(132, 48),
  MAIR0: bits(192, 32),
  MAIR1: bits(224, 32),
});

/** Granule encodings of CD.TG0 and STE.S2TG, and of CD.TG1, as page shifts; the missing one is Reserved. */
export const TG0_SHIFTS: readonly (number | undefined)[] = [12, 16, 14, undefined];
export const TG1_SHIFTS: readonly (number | undefined)[] = [undefined, 14, 12, 16];

/** CD.IPS, STE.S2PS and IDR5.OAS as widths in bits; a value beyond the list is Reserved and behaves as the OAS. */
export const ADDRESS_SIZE_BITS: readonly number[] = [32, 36, 40, 42, 44, 48, 52];

/** VMSAv8-64 descriptor bits that a walker interprets. Arm ARM D8.3. */
export const VMSA_DESCRIPTOR = defineRecord('VMSAv8-64 descriptor', 8, {
  Valid: bit(0),
  /** Table above level 3, page at level 3. */
  Table: bit(1),
  /** Stage 1: AttrIndx; stage 2: MemAttr. */
  MemAttr: bits(2, 4),
  /** AP[1]: unprivileged access (stage 1). */
  AP1: bit(6),
  /** AP[2]: read-only (stage 1). */
  AP2: bit(7),
  /** S2AP[0]: readable (stage 2). */
  S2APRead: bit(6),
  /** S2AP[1]: writable (stage 2). */
  S2APWrite: bit(7),
  SH: bits(8, 2),
  AF: bit(10),
  nG: bit(11),
  /** Address bits 51..48 of a 64 KiB granule with 52-bit output. */
  AddressHigh: bits(12, 4),
  DBM: bit(51),
  Contiguous: bit(52),
  PXN: bit(53),
  UXN: bit(54),
  /** Stage 2 XN[1:0]. */
  S2XN: bits(53, 2),
  PXNTable: bit(59),
  XNTable: bit(60),
  /** APTable[0]: no unprivileged access below. */
  APTable0: bit(61),
  /** APTable[1]: no write access below. */
  APTable1: bit(62),
  NSTable: bit(63),
});

/** Command opcodes. IHI 0070 4.1.3. */
export const CMD_OP = {
  PREFETCH_CONFIG: 0x01,
  PREFETCH_ADDR: 0x02,
  CFGI_STE: 0x03,
  /** CFGI_STE_RANGE; with Range 31 it is CFGI_ALL. */
  CFGI_STE_RANGE: 0x04,
  CFGI_CD: 0x05,
  CFGI_CD_ALL: 0x06,
  TLBI_NH_ALL: 0x10,
  TLBI_NH_ASID: 0x11,
  TLBI_NH_VA: 0x12,
  TLBI_NH_VAA: 0x13,
  TLBI_EL3_ALL: 0x18,
  TLBI_EL3_VA: 0x1a,
  TLBI_EL2_ALL: 0x20,
  TLBI_EL2_ASID: 0x21,
  TLBI_EL2_VA: 0x22,
  TLBI_EL2_VAA: 0x23,
  TLBI_S12_VMALL: 0x28,
  TLBI_S2_IPA: 0x2a,
  TLBI_NSNH_ALL: 0x30,
  ATC_INV: 0x40,
  PRI_RESP: 0x41,
  RESUME: 0x44,
  STALL_TERM: 0x45,
  SYNC: 0x46,
} as const;

/** What every command has. */
export const CMD = defineRecord('CMD', 16, { Opcode: bits(0, 8), SSec: bit(10), SSV: bit(11) });

/** CMD_PREFETCH_* and CMD_CFGI_*. IHI 0070 4.2, 4.3. */
export const CMD_CFGI = defineRecord('CMD_CFGI', 16, {
  Opcode: bits(0, 8),
  SSec: bit(10),
  SSV: bit(11),
  SubstreamID: bits(12, 20),
  StreamID: bits(32, 32),
  Leaf: bit(64),
  /** CMD_CFGI_STE_RANGE: 2^(Range+1) aligned StreamIDs; 31 is CMD_CFGI_ALL. */
  Range: bits(64, 5),
});

/** Every CMD_TLBI_*. `Address` is bits [63:12] (CMD_TLBI_S2_IPA: [51:12]). With TG = 0 the range fields are ignored. 4.4. */
export const CMD_TLBI = defineRecord('CMD_TLBI', 16, {
  Opcode: bits(0, 8),
  NUM: bits(12, 5),
  SCALE: bits(20, 6),
  VMID: bits(32, 16),
  ASID: bits(48, 16),
  Leaf: bit(64),
  TTL: bits(72, 2),
  TG: bits(74, 2),
  Address: bits(76, 52),
});

/** CMD_TLBI TG: granule of a range, as page shifts; 0 is no range. */
export const TLBI_TG_SHIFTS: readonly (number | undefined)[] = [undefined, 12, 14, 16];

/** CMD_ATC_INV. 4.5. */
export const CMD_ATC_INV = defineRecord('CMD_ATC_INV', 16, {
  Opcode: bits(0, 8),
  SSec: bit(10),
  SSV: bit(11),
  G: bit(9),
  SubstreamID: bits(12, 20),
  StreamID: bits(32, 32),
  Size: bits(64, 6),
  Address: bits(76, 52),
});

/** CMD_RESUME and CMD_STALL_TERM. Ac: try again; else Ab: abort, or end as if done. IHI 0070 4.6. */
export const CMD_RESUME = defineRecord('CMD_RESUME', 16, {
  Opcode: bits(0, 8),
  SSec: bit(10),
  Ac: bit(12),
  Ab: bit(13),
  StreamID: bits(32, 32),
  STAG: bits(64, 16),
});

/** CMD_PRI_RESP. Resp: {@link PRI_RESPONSE}. IHI 0070 4.5.2. */
export const CMD_PRI_RESP = defineRecord('CMD_PRI_RESP', 16, {
  Opcode: bits(0, 8),
  SSec: bit(10),
  SSV: bit(11),
  SubstreamID: bits(12, 20),
  StreamID: bits(32, 32),
  PRGIndex: bits(64, 9),
  Resp: bits(76, 2),
});

/** CMD_PRI_RESP.Resp. */
export const PRI_RESPONSE = { DENY: 0, FAIL: 1, SUCCESS: 2 } as const;

/** Page request in the PRI queue, 16 bytes. Address in units of 4096 bytes. IHI 0070 8.1. */
export const PRIQ_ENTRY = defineRecord('PRIQ_ENTRY', 16, {
  StreamID: bits(0, 32),
  SubstreamID: bits(32, 20),
  P: bit(58),
  X: bit(59),
  R: bit(60),
  W: bit(61),
  Last: bit(62),
  SSV: bit(63),
  PRGIndex: bits(64, 9),
  Address: bits(76, 52),
});

/** CMD_SYNC. MSIAddress in units of 4 bytes. 4.7.3. */
export const CMD_SYNC = defineRecord('CMD_SYNC', 16, {
  Opcode: bits(0, 8),
  CS: bits(12, 2),
  MSH: bits(22, 2),
  MSIAttr: bits(24, 4),
  MSIData: bits(32, 32),
  MSIAddress: bits(66, 50),
});

/** CMD_SYNC.CS: how completion is signalled. */
export const SYNC_CS = { NONE: 0, IRQ: 1, SEV: 2 } as const;

/** CMDQ_CONS.ERR. IHI 0070 7.1. */
export const CERROR = { NONE: 0, ILL: 1, ABT: 2, ATC_INV_SYNC: 3 } as const;

/** Event numbers. IHI 0070 7.3. */
export const EVENT = {
  F_UUT: 0x01,
  C_BAD_STREAMID: 0x02,
  F_STE_FETCH: 0x03,
  C_BAD_STE: 0x04,
  F_BAD_ATS_TREQ: 0x05,
  F_STREAM_DISABLED: 0x06,
  F_TRANSL_FORBIDDEN: 0x07,
  C_BAD_SUBSTREAMID: 0x08,
  F_CD_FETCH: 0x09,
  C_BAD_CD: 0x0a,
  F_WALK_EABT: 0x0b,
  F_TRANSLATION: 0x10,
  F_ADDR_SIZE: 0x11,
  F_ACCESS: 0x12,
  F_PERMISSION: 0x13,
  F_TLB_CONFLICT: 0x20,
  F_CFG_CONFLICT: 0x21,
  E_PAGE_REQUEST: 0x24,
} as const;

/** Name of an event as IHI 0070 spells it. */
export type EventName = keyof typeof EVENT;

/** What an event's CLASS says: fetching a context descriptor, walking a stage 1 table, or the input address itself. */
export const EVENT_CLASS = { CD: 0, TT: 1, IN: 2 } as const;

/**
 * Event record, 32 bytes. `IPA` is bits [51:12] of an address, `FetchAddr` bits [51:3]. F_CD_FETCH has its address where the
 * recorded model puts it, in the third doubleword (`CdFetchAddr`). IHI 0070 7.3.
 */
export const EVT = defineRecord('EVT', 32, {
  Type: bits(0, 8),
  SSV: bit(11),
  SubstreamID: bits(12, 20),
  StreamID: bits(32, 32),
  STAG: bits(64, 16),
  Stall: bit(95),
  PnU: bit(97),
  InD: bit(98),
  RnW: bit(99),
  NSIPA: bit(100),
  S2: bit(103),
  CLASS: bits(104, 2),
  InputAddrLow: bits(128, 32),
  InputAddrHigh: bits(160, 32),
  CdFetchAddr: bits(131, 49),
  IPA: bits(204, 40),
  FetchAddr: bits(195, 49),
});
