/**
 * Configuration space as Linux names it: offsets, capability numbers and fields of include/uapi/linux/pci_regs.h.
 *
 * Hardware builds its configuration space with these, kernels walk it, reports decode it. Registers of a capability are declared
 * relative to its start; the header's are absolute. Sources: pci_regs.h; PCIe 5.0 chapter 7.
 */
import { bit, bits, reg32, type BitFields, type Register } from '../layout/bits.js';

export const CONFIG_BYTES = 4096;
/** Configuration space of a conventional function. */
export const CONVENTIONAL_CONFIG_BYTES = 256;

// --- header (PCIe 5.0 7.5.1) ---

export const PCI_VENDOR_ID = 0x00;
export const PCI_DEVICE_ID = 0x02;
export const PCI_COMMAND = 0x04;
export const PCI_STATUS = 0x06;
export const PCI_CLASS_REVISION = 0x08;
export const PCI_HEADER_TYPE = 0x0e;
export const PCI_BAR0 = 0x10;
export const PCI_BASE_ADDRESS_SPACE_IO = 0x1;
export const PCI_BASE_ADDRESS_MEM_TYPE_MASK = 0x6;
export const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x4;
export const PCI_BASE_ADDRESS_MEM_PREFETCH = 0x8;
export const PCI_BASE_ADDRESS_MEM_MASK = 0xffff_fff0;
export const PCI_BASE_ADDRESS_IO_MASK = 0xffff_fffc;
export const PCI_PRIMARY_BUS = 0x18;
export const PCI_SECONDARY_BUS = 0x19;
export const PCI_SUBORDINATE_BUS = 0x1a;
export const PCI_SECONDARY_LATENCY_TIMER = 0x1b;
export const PCI_IO_BASE = 0x1c;
export const PCI_MEMORY_BASE = 0x20;
export const PCI_MEMORY_LIMIT = 0x22;
export const PCI_PREF_MEMORY_BASE = 0x24;
export const PCI_PREF_MEMORY_LIMIT = 0x26;
export const PCI_PREF_BASE_UPPER32 = 0x28;
export const PCI_PREF_LIMIT_UPPER32 = 0x2c;
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c;
export const PCI_SUBSYSTEM_ID = 0x2e;
export const PCI_CAPABILITY_LIST = 0x34;
export const PCI_BRIDGE_CONTROL = 0x3e;

export const PCI_COMMAND_MEMORY = 0x2;
export const PCI_COMMAND_MASTER = 0x4;
export const PCI_STATUS_CAP_LIST = 0x10;
export const PCI_HEADER_TYPE_BRIDGE = 1;
export const PCI_HEADER_TYPE_MFD = 0x80;
/** Command in the lower, Status in the upper half of the word at {@link PCI_COMMAND}. */
export const PCI_COMMAND_STATUS = reg32('PCI_COMMAND', 0x04, {
  IO: bit(0),
  MEMORY: bit(1),
  MASTER: bit(2),
  SPECIAL: bit(3),
  INVALIDATE: bit(4),
  VGA_PALETTE: bit(5),
  PARITY: bit(6),
  WAIT: bit(7),
  SERR: bit(8),
  FAST_BACK: bit(9),
  INTX_DISABLE: bit(10),
  INTERRUPT: bit(19),
  CAP_LIST: bit(20),
  '66MHZ': bit(21),
  UDF: bit(22),
  FAST_BACK_CAPABLE: bit(23),
  DETECTED_MASTER_PARITY: bit(24),
  DEVSEL: bits(25, 2),
  SIG_TARGET_ABORT: bit(27),
  REC_TARGET_ABORT: bit(28),
  REC_MASTER_ABORT: bit(29),
  SIG_SYSTEM_ERROR: bit(30),
  DETECTED_PARITY: bit(31),
});
/** Timers and built-in self test: the word with {@link PCI_HEADER_TYPE}. */
export const PCI_CACHE_LINE_SIZE = reg32('PCI_CACHE_LINE_SIZE', 0x0c, {
  CACHE_LINE_SIZE: bits(0, 8),
  LATENCY_TIMER: bits(8, 8),
  HEADER_TYPE: bits(16, 7),
  MULTI_FUNCTION: bit(23),
  BIST_CODE: bits(24, 4),
  BIST_START: bit(30),
  BIST_CAPABLE: bit(31),
});
/** I/O window of a bridge in the lower half, its Secondary Status in the upper one. */
export const PCI_IO_BASE_LIMIT = reg32('PCI_IO_BASE', 0x1c, {
  RANGE_TYPE: bits(0, 4),
  BASE: bits(4, 4),
  LIMIT_RANGE_TYPE: bits(8, 4),
  LIMIT: bits(12, 4),
  '66MHZ': bit(21),
  FAST_BACK_CAPABLE: bit(23),
  DETECTED_MASTER_PARITY: bit(24),
  DEVSEL: bits(25, 2),
  SIG_TARGET_ABORT: bit(27),
  REC_TARGET_ABORT: bit(28),
  REC_MASTER_ABORT: bit(29),
  REC_SYSTEM_ERROR: bit(30),
  DETECTED_PARITY: bit(31),
});
/** Upper 16 bits of a 32-bit I/O base; those of the limit follow. */
export const PCI_IO_BASE_UPPER16 = 0x30;
/** Expansion ROM base of a function, and of a bridge. */
export const PCI_ROM_ADDRESS = 0x30;
export const PCI_ROM_ADDRESS1 = 0x38;
export const PCI_ROM_ADDRESS_ENABLE = 0x1;
export const PCI_ROM_ADDRESS_MASK = 0xffff_f800;
/** Interrupt pin and line; then Min_Gnt and Max_Lat of a function, Bridge Control of a bridge. */
export const PCI_INTERRUPT_LINE = reg32('PCI_INTERRUPT_LINE', 0x3c, {
  LINE: bits(0, 8),
  PIN: bits(8, 8),
  MIN_GNT: bits(16, 8),
  MAX_LAT: bits(24, 8),
});
export const PCI_BRIDGE_CTL = reg32('PCI_BRIDGE_CONTROL', 0x3c, {
  PARITY: bit(16),
  SERR: bit(17),
  ISA: bit(18),
  VGA: bit(19),
  VGA_16BIT: bit(20),
  MASTER_ABORT: bit(21),
  BUS_RESET: bit(22),
  FAST_BACK: bit(23),
  PRIMARY_DISCARD_TIMER: bit(24),
  SECONDARY_DISCARD_TIMER: bit(25),
  DISCARD_TIMER_STATUS: bit(26),
  DISCARD_TIMER_SERR: bit(27),
});
/** Secondary Bus Reset in {@link PCI_BRIDGE_CONTROL}. */
export const PCI_BRIDGE_CTL_BUS_RESET = 0x40;

// --- capabilities ---

export const PCI_CAP_ID_PM = 0x01;
export const PCI_CAP_ID_MSI = 0x05;
export const PCI_CAP_ID_VNDR = 0x09;
export const PCI_CAP_ID_SHPC = 0x0c;
export const PCI_CAP_ID_SSVID = 0x0d;
export const PCI_CAP_ID_EXP = 0x10;
export const PCI_CAP_ID_MSIX = 0x11;
export const PCI_CAP_ID_AF = 0x13;
/** First extended capability. */
export const PCI_EXT_CAP_START = 0x100;
export const PCI_EXT_CAP_ID_ERR = 0x01;
export const PCI_EXT_CAP_ID_DSN = 0x03;
export const PCI_EXT_CAP_ID_ACS = 0x0d;
export const PCI_EXT_CAP_ID_ARI = 0x0e;
export const PCI_EXT_CAP_ID_ATS = 0x0f;
export const PCI_EXT_CAP_ID_SRIOV = 0x10;
export const PCI_EXT_CAP_ID_PRI = 0x13;
export const PCI_EXT_CAP_ID_PASID = 0x1b;

/** Header of an extended capability (PCIe 7.6.3). */
export const EXT_CAP_HEADER = reg32('EXT_CAP', 0, { ID: bits(0, 16), VERSION: bits(16, 4), NEXT: bits(20, 12) });

// --- PCI Express capability (PCIe 7.5.3) ---

/** Device/port types of PCI_EXP_FLAGS. */
export const PCI_EXP_TYPE = {
  ENDPOINT: 0,
  LEG_END: 1,
  ROOT_PORT: 4,
  UPSTREAM: 5,
  DOWNSTREAM: 6,
  PCI_BRIDGE: 7,
  PCIE_BRIDGE: 8,
  RC_END: 9,
  RC_EC: 10,
} as const;
/** DW0 of the capability; PCI_EXP_FLAGS is its upper half. */
export const PCI_EXP_FLAGS = reg32('PCI_EXP_FLAGS', 0x00, {
  ID: bits(0, 8),
  NEXT: bits(8, 8),
  VERS: bits(16, 4),
  TYPE: bits(20, 4),
  SLOT: bit(24),
  IRQ: bits(25, 5),
});
export const PCI_EXP_DEVCAP = reg32('PCI_EXP_DEVCAP', 0x04, {
  PAYLOAD: bits(0, 3),
  PHANTOM: bits(3, 2),
  EXT_TAG: bit(5),
  L0S: bits(6, 3),
  L1: bits(9, 3),
  ATN_BUT: bit(12),
  ATN_IND: bit(13),
  PWR_IND: bit(14),
  RBER: bit(15),
  PWR_VAL: bits(18, 8),
  PWR_SCL: bits(26, 2),
  FLR: bit(28),
});
/** Device Control in the lower, Device Status in the upper half. */
export const PCI_EXP_DEVCTL = reg32('PCI_EXP_DEVCTL', 0x08, {
  CERE: bit(0),
  NFERE: bit(1),
  FERE: bit(2),
  URRE: bit(3),
  RELAX_EN: bit(4),
  PAYLOAD: bits(5, 3),
  EXT_TAG: bit(8),
  PHANTOM: bit(9),
  AUX_PME: bit(10),
  NOSNOOP_EN: bit(11),
  READRQ: bits(12, 3),
  BCR_FLR: bit(15),
  CED: bit(16),
  NFED: bit(17),
  FED: bit(18),
  URD: bit(19),
  AUXPD: bit(20),
  TRPND: bit(21),
});
/** Link Capabilities and, 4 bytes on, Link Control (lower half) with Link Status (upper half). */
export const PCI_EXP_LNKCAP = reg32('PCI_EXP_LNKCAP', 0x0c, {
  SLS: bits(0, 4),
  MLW: bits(4, 6),
  ASPMS: bits(10, 2),
  L0SEL: bits(12, 3),
  L1EL: bits(15, 3),
  CLKPM: bit(18),
  SDERC: bit(19),
  DLLLARC: bit(20),
  LBNC: bit(21),
  ASPM_OPT: bit(22),
  PORT: bits(24, 8),
});
export const PCI_EXP_LNKCTL = reg32('PCI_EXP_LNKCTL', 0x10, {
  ASPMC: bits(0, 2),
  RCB: bit(3),
  LD: bit(4),
  CCC: bit(6),
  ES: bit(7),
  CLKREQ_EN: bit(8),
  HAWD: bit(9),
  LBMIE: bit(10),
  LABIE: bit(11),
  CLS: bits(16, 4),
  NLW: bits(20, 6),
  TRERR: bit(26),
  LT: bit(27),
  SLC: bit(28),
  DLLLA: bit(29),
  LBMS: bit(30),
  LABS: bit(31),
});
export const PCI_EXP_SLTCAP = reg32('PCI_EXP_SLTCAP', 0x14, {
  ABP: bit(0),
  PCP: bit(1),
  MRLSP: bit(2),
  AIP: bit(3),
  PIP: bit(4),
  HPS: bit(5),
  HPC: bit(6),
  SPLV: bits(7, 8),
  SPLS: bits(15, 2),
  EIP: bit(17),
  NCCS: bit(18),
  PSN: bits(19, 13),
});
/** Slot Control in the lower, Slot Status in the upper half. */
export const PCI_EXP_SLTCTL = reg32('PCI_EXP_SLTCTL', 0x18, {
  ABPE: bit(0),
  PFDE: bit(1),
  MRLSCE: bit(2),
  PDCE: bit(3),
  CCIE: bit(4),
  HPIE: bit(5),
  AIC: bits(6, 2),
  PIC: bits(8, 2),
  PCC: bit(10),
  EIC: bit(11),
  DLLSCE: bit(12),
  ABP: bit(16),
  PFD: bit(17),
  MRLSC: bit(18),
  PDC: bit(19),
  CC: bit(20),
  MRLSS: bit(21),
  PDS: bit(22),
  EIS: bit(23),
  DLLSC: bit(24),
});
/** Root Control in the lower, Root Capabilities in the upper half. */
export const PCI_EXP_RTCTL = reg32('PCI_EXP_RTCTL', 0x1c, {
  SECEE: bit(0),
  SENFEE: bit(1),
  SEFEE: bit(2),
  PMEIE: bit(3),
  CRSSVE: bit(4),
  CRSVIS: bit(16),
});
export const PCI_EXP_RTSTA = reg32('PCI_EXP_RTSTA', 0x20, { PME_REQ: bits(0, 16), PME: bit(16), PENDING: bit(17) });
export const PCI_EXP_DEVCAP2 = reg32('PCI_EXP_DEVCAP2', 0x24, {
  COMP_TMOUT: bits(0, 4),
  COMP_TMOUT_DIS: bit(4),
  ARI: bit(5),
  ATOMIC_ROUTE: bit(6),
  ATOMIC_COMP32: bit(7),
  ATOMIC_COMP64: bit(8),
  ATOMIC_COMP128: bit(9),
  NO_RO_PR_PR: bit(10),
  LTR: bit(11),
  TPH_COMP: bits(12, 2),
  LN_CLS: bits(14, 2),
  '10BIT_TAG_COMP': bit(16),
  '10BIT_TAG_REQ': bit(17),
  OBFF: bits(18, 2),
  EXT_FMT: bit(20),
  EE_PREFIX: bit(21),
  MAX_EE_PREFIXES: bits(22, 2),
  EPR: bits(24, 2),
  EPR_INIT: bit(26),
  FRS: bit(31),
});
/** Device Control 2; the upper half, Device Status 2, is reserved. */
export const PCI_EXP_DEVCTL2 = reg32('PCI_EXP_DEVCTL2', 0x28, {
  COMP_TIMEOUT: bits(0, 4),
  COMP_TMOUT_DIS: bit(4),
  ARI: bit(5),
  ATOMIC_REQ: bit(6),
  ATOMIC_EGRESS_BLOCK: bit(7),
  IDO_REQ_EN: bit(8),
  IDO_CMP_EN: bit(9),
  LTR_EN: bit(10),
  '10BIT_TAG_REQ_EN': bit(12),
  OBFF: bits(13, 2),
});
export const PCI_EXP_LNKCAP2 = reg32('PCI_EXP_LNKCAP2', 0x2c, {
  SLS: bits(1, 7),
  CROSSLINK: bit(8),
  RETIMER: bit(23),
  TWO_RETIMERS: bit(24),
  DRS: bit(31),
});
/** Link Control 2 in the lower, Link Status 2 in the upper half. */
export const PCI_EXP_LNKCTL2 = reg32('PCI_EXP_LNKCTL2', 0x30, {
  TLS: bits(0, 4),
  ENTER_COMP: bit(4),
  HASD: bit(5),
  SELECTABLE_DEEMPHASIS: bit(6),
  TX_MARGIN: bits(7, 3),
  ENTER_MOD_COMP: bit(10),
  COMP_SOS: bit(11),
  COMP_PRESET: bits(12, 4),
  CURRENT_DEEMPHASIS: bit(16),
  EQ_COMPLETE: bit(17),
  EQ_PHASE1: bit(18),
  EQ_PHASE2: bit(19),
  EQ_PHASE3: bit(20),
  LINK_EQ_REQUEST: bit(21),
  RETIMER: bit(22),
  TWO_RETIMERS: bit(23),
  CROSSLINK: bits(24, 2),
  COMPONENT_PRESENCE: bits(28, 3),
  DRS_RECEIVED: bit(31),
});

// --- Power Management (PCIe 7.5.2) ---

/** DW0 of the capability; PCI_PM_PMC is its upper half. */
export const PCI_PM_PMC = reg32('PCI_PM_PMC', 0x00, {
  ID: bits(0, 8),
  NEXT: bits(8, 8),
  VER: bits(16, 3),
  PME_CLOCK: bit(19),
  DSI: bit(21),
  AUX_POWER: bits(22, 3),
  D1: bit(25),
  D2: bit(26),
  PME_D0: bit(27),
  PME_D1: bit(28),
  PME_D2: bit(29),
  PME_D3HOT: bit(30),
  PME_D3COLD: bit(31),
});
export const PCI_PM_CTRL = reg32('PCI_PM_CTRL', 0x04, {
  STATE: bits(0, 2),
  NO_SOFT_RESET: bit(3),
  PME_ENABLE: bit(8),
  DATA_SEL: bits(9, 4),
  DATA_SCALE: bits(13, 2),
  PME_STATUS: bit(15),
});

// --- Subsystem IDs of a bridge, and Advanced Features of a conventional function (pci_regs.h) ---

export const PCI_SSVID_VENDOR_ID = 0x04;
export const PCI_SSVID_DEVICE_ID = 0x06;
/** DW0 of the capability; PCI_AF_CAP is its last byte. */
export const PCI_AF_CAP = reg32('PCI_AF_CAP', 0x00, {
  ID: bits(0, 8),
  NEXT: bits(8, 8),
  LENGTH: bits(16, 8),
  TP: bit(24),
  FLR: bit(25),
});
/** Control in the first, status in the second byte. */
export const PCI_AF_CTRL = reg32('PCI_AF_CTRL', 0x04, { FLR: bit(0), STATUS_TP: bit(8) });

// --- MSI and MSI-X (PCIe 7.7.1, 7.7.2); Message Control is the upper half of DW0 ---

export const PCI_MSI_FLAGS = reg32('PCI_MSI_FLAGS', 0x00, {
  ID: bits(0, 8),
  NEXT: bits(8, 8),
  ENABLE: bit(16),
  QMASK: bits(17, 3),
  QSIZE: bits(20, 3),
  X64: bit(23),
  MASKBIT: bit(24),
});
export const PCI_MSIX_FLAGS = reg32('PCI_MSIX_FLAGS', 0x00, {
  ID: bits(0, 8),
  NEXT: bits(8, 8),
  QSIZE: bits(16, 11),
  MASKALL: bit(30),
  ENABLE: bit(31),
});
export const PCI_MSI_ADDRESS_LO = 0x04;
/** With PCI_MSI_FLAGS.X64. */
export const PCI_MSI_ADDRESS_HI = 0x08;
/** Where the mask bits lie; the pending bits follow. Message Data is the word before. */
export const PCI_MSI_MASK_32 = 0x0c;
export const PCI_MSI_MASK_64 = 0x10;
/** Table Offset and Table BIR; the register at PCI_MSIX_PBA has the same layout. OFFSET counts 8 bytes. */
export const PCI_MSIX_TABLE = reg32('PCI_MSIX_TABLE', 0x04, { BIR: bits(0, 3), OFFSET: bits(3, 29) });
export const PCI_MSIX_PBA = 0x08;
/** Bytes of one MSI-X table entry: address low, address high, data, vector control. */
export const PCI_MSIX_ENTRY_SIZE = 16;

// --- Access Control Services (PCIe 7.7.8) ---

/** Bits of the ACS capability and control registers. */
export const PCI_ACS = {
  /** Source Validation */
  SV: 0x01,
  /** Translation Blocking */
  TB: 0x02,
  /** P2P Request Redirect */
  RR: 0x04,
  /** P2P Completion Redirect */
  CR: 0x08,
  /** Upstream Forwarding */
  UF: 0x10,
  /** P2P Egress Control */
  EC: 0x20,
  /** Direct Translated P2P */
  DT: 0x40,
} as const;
/** Capability in the lower, control in the upper half. */
export const PCI_ACS_CAP = reg32('PCI_ACS_CAP', 0x04, { CAP: bits(0, 7), EGRESS_BITS: bits(8, 8), CTRL: bits(16, 7) });
export const PCI_ACS_CTRL = 0x06;
export const PCI_ACS_EGRESS_CTL_V = 0x08;

// --- ATS (PCIe 10.5.1) and SR-IOV (PCIe 9.3.3) ---

export const PCI_ATS_CAP = reg32('PCI_ATS_CAP', 0x04, {
  QDEP: bits(0, 5),
  PAGE_ALIGNED: bit(5),
  GLOBAL_INVALIDATE: bit(6),
  STU: bits(16, 5),
  ENABLE: bit(31),
});
/** Capability in the lower, control in the upper half. */
export const PCI_ARI_CAP = reg32('PCI_ARI_CAP', 0x04, {
  MFVC: bit(0),
  ACS: bit(1),
  NFN: bits(8, 8),
  CTRL_MFVC: bit(16),
  CTRL_ACS: bit(17),
  CTRL_FG: bits(20, 3),
});
export const PCI_SRIOV_CAP = reg32('PCI_SRIOV_CAP', 0x04, {
  VFM: bit(0),
  ARI_PRESERVED: bit(1),
  '10BIT_TAG_REQ': bit(2),
  INTR: bits(21, 11),
});
export const PCI_SRIOV_CTRL = reg32('PCI_SRIOV_CTRL', 0x08, {
  VFE: bit(0),
  VFM: bit(1),
  INTR: bit(2),
  MSE: bit(3),
  ARI: bit(4),
  '10BIT_TAG_REQ_EN': bit(5),
  STATUS_VFM: bit(16),
});
export const PCI_SRIOV_INITIAL_VF = 0x0c;
export const PCI_SRIOV_TOTAL_VF = 0x0e;
export const PCI_SRIOV_NUM_VF = 0x10;
export const PCI_SRIOV_FUNC_LINK = 0x12;
export const PCI_SRIOV_VF_OFFSET = 0x14;
export const PCI_SRIOV_VF_STRIDE = 0x16;
export const PCI_SRIOV_VF_DID = 0x1a;
export const PCI_SRIOV_SUP_PGSIZE = 0x1c;
export const PCI_SRIOV_SYS_PGSIZE = 0x20;
export const PCI_SRIOV_BAR = 0x24;
export const PCI_SRIOV_NUM_BARS = 6;
/** VF Migration State Array. OFFSET counts 8 bytes. */
export const PCI_SRIOV_VFM = reg32('PCI_SRIOV_VFM', 0x3c, { BIR: bits(0, 3), OFFSET: bits(3, 29) });

// --- Page Request Interface (PCIe 10.5.2) and PASID (PCIe 7.8.9); control in the lower half of PRI, in the upper of PASID ---

export const PCI_PRI_CTRL = reg32('PCI_PRI_CTRL', 0x04, {
  ENABLE: bit(0),
  RESET: bit(1),
  STATUS_RF: bit(16),
  STATUS_UPRGI: bit(17),
  STATUS_STOPPED: bit(24),
  STATUS_PASID: bit(31),
});
export const PCI_PRI_MAX_REQ = 0x08;
export const PCI_PRI_ALLOC_REQ = 0x0c;
export const PCI_PASID_CAP = reg32('PCI_PASID_CAP', 0x04, {
  EXEC: bit(1),
  PRIV: bit(2),
  WIDTH: bits(8, 5),
  CTRL_ENABLE: bit(16),
  CTRL_EXEC: bit(17),
  CTRL_PRIV: bit(18),
});

// --- Advanced Error Reporting (PCIe 7.8.4) ---

/** Uncorrectable Error Status; mask and severity have the same layout. */
export const PCI_ERR_UNCOR_STATUS = reg32('PCI_ERR_UNCOR_STATUS', 0x04, {
  DLP: bit(4),
  SURPDN: bit(5),
  POISON_TLP: bit(12),
  FCP: bit(13),
  COMP_TIME: bit(14),
  COMP_ABORT: bit(15),
  UNX_COMP: bit(16),
  RX_OVER: bit(17),
  MALF_TLP: bit(18),
  ECRC: bit(19),
  UNSUP: bit(20),
  ACSV: bit(21),
  INTN: bit(22),
  MCBTLP: bit(23),
  ATOMEG: bit(24),
  TLPPRE: bit(25),
});
export const PCI_ERR_UNCOR_MASK = 0x08;
export const PCI_ERR_UNCOR_SEVER = 0x0c;
/** Correctable Error Status; the mask has the same layout. */
export const PCI_ERR_COR_STATUS = reg32('PCI_ERR_COR_STATUS', 0x10, {
  RCVR: bit(0),
  BAD_TLP: bit(6),
  BAD_DLLP: bit(7),
  REP_ROLL: bit(8),
  REP_TIMER: bit(12),
  ADV_NFAT: bit(13),
  INTERNAL: bit(14),
  LOG_OVER: bit(15),
});
export const PCI_ERR_COR_MASK = 0x14;
export const PCI_ERR_CAP = reg32('PCI_ERR_CAP', 0x18, {
  FEP: bits(0, 5),
  ECRC_GENC: bit(5),
  ECRC_GENE: bit(6),
  ECRC_CHKC: bit(7),
  ECRC_CHKE: bit(8),
  MULT_HDR_REC_CAP: bit(9),
  MULT_HDR_REC_EN: bit(10),
  TLP_PREFIX_LOG: bit(11),
  COMP_TIME_LOG: bit(12),
});
/** Header Log: 16 bytes. */
export const PCI_ERR_HEADER_LOG = 0x1c;
/** Root Error Command to Error Source: root ports and event collectors only. */
export const PCI_ERR_ROOT_COMMAND = reg32('PCI_ERR_ROOT_COMMAND', 0x2c, {
  COR_EN: bit(0),
  NONFATAL_EN: bit(1),
  FATAL_EN: bit(2),
});
export const PCI_ERR_ROOT_STATUS = reg32('PCI_ERR_ROOT_STATUS', 0x30, {
  COR_RCV: bit(0),
  MULTI_COR_RCV: bit(1),
  UNCOR_RCV: bit(2),
  MULTI_UNCOR_RCV: bit(3),
  FIRST_FATAL: bit(4),
  NONFATAL_RCV: bit(5),
  FATAL_RCV: bit(6),
  AER_IRQ: bits(27, 5),
});
export const PCI_ERR_ROOT_ERR_SRC = reg32('PCI_ERR_ROOT_ERR_SRC', 0x34, { COR: bits(0, 16), UNCOR: bits(16, 16) });

// --- reading configuration space that is bytes ---

/** 1 to 4 bytes of configuration space, little endian; bytes beyond its end read as zero. */
export function configRead(config: Uint8Array, offset: number, sizeBytes: number): number {
  let value = 0;
  for (let i = sizeBytes - 1; i >= 0; i--) value = value * 256 + (config[offset + i] ?? 0);
  return value;
}

/** Offset of a capability, 0 without one. A list that runs in a circle ends. */
export function findCapability(config: Uint8Array, id: number): number {
  if ((configRead(config, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST) === 0) return 0;
  let at = configRead(config, PCI_CAPABILITY_LIST, 1) & ~3;
  for (let guard = 0; at >= 0x40 && guard < 48; guard++) {
    if (configRead(config, at, 1) === id) return at;
    at = configRead(config, at + 1, 1) & ~3;
  }
  return 0;
}

/** Offset of an extended capability, 0 without one. */
export function findExtendedCapability(config: Uint8Array, id: number): number {
  let at = PCI_EXT_CAP_START;
  for (let guard = 0; at >= PCI_EXT_CAP_START && at + 4 <= config.length && guard < 480; guard++) {
    const header = [configRead(config, at, 4)];
    if (header[0] === 0 || header[0] === 0xffff_ffff) return 0;
    if (EXT_CAP_HEADER.get(header, 'ID') === id) return at;
    at = EXT_CAP_HEADER.get(header, 'NEXT') & ~3;
  }
  return 0;
}

/** A register of a capability that starts at `capability`, as words for its accessors. */
export function capabilityRegister<F extends BitFields>(
  config: Uint8Array,
  capability: number,
  register: Register<F>,
): [number] {
  return [configRead(config, capability + register.offset, 4)];
}

/** PCI Express device/port type; undefined for a conventional function. */
export function expressType(config: Uint8Array): number | undefined {
  const at = findCapability(config, PCI_CAP_ID_EXP);
  return at === 0 ? undefined : PCI_EXP_FLAGS.get([configRead(config, at, 4)], 'TYPE');
}
