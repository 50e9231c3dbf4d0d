/**
 * A function's configuration space as text, the way `lspci -vvv` prints it.
 *
 * Whoever debugs a real host reads this format, so a testbed host is shown in it too, and both can be compared with `diff`.
 * What there is to know comes from configuration space; addresses and sizes of the regions come from the kernel's resources
 * where they are given (a BAR has no size, and the BARs of a virtual function read as zero), driver and IOMMU group from the
 * kernel alone. There is no name database: classes have their names of pci.ids, vendors and devices are numbers.
 *
 * The text is that of pciutils 3.9, with what later versions changed (`IntMsgNum`, 64 GT/s, the PASID flag of PRI) and two of
 * its slips put right: a bridge's window is as wide as the bridge's own registers, and a virtual function's BAR as wide as its
 * type bits say. Capabilities that do not matter to DMA, interrupts or routing have a name and `<?>`, as `lspci` marks those
 * it cannot decode.
 *
 * Invariants: nothing throws, whatever the bytes are. A capability that does not lie wholly inside the bytes given is
 * `<access denied>`: the kernel gives 64 bytes to the unprivileged, and 256 of a conventional function. Every capability is
 * visited once; a list that comes back to one of them ends in `<chain looped>`.
 */
import type { BitFields, Register } from '../layout/bits.js';
import {
  configRead,
  EXT_CAP_HEADER,
  PCI_ACS,
  PCI_ACS_CAP,
  PCI_AF_CAP,
  PCI_AF_CTRL,
  PCI_ARI_CAP,
  PCI_ATS_CAP,
  PCI_BAR0,
  PCI_BASE_ADDRESS_IO_MASK,
  PCI_BASE_ADDRESS_MEM_MASK,
  PCI_BASE_ADDRESS_MEM_PREFETCH,
  PCI_BASE_ADDRESS_MEM_TYPE_64,
  PCI_BASE_ADDRESS_MEM_TYPE_MASK,
  PCI_BASE_ADDRESS_SPACE_IO,
  PCI_BRIDGE_CTL,
  PCI_CACHE_LINE_SIZE,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_SSVID,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_REVISION,
  PCI_COMMAND_STATUS,
  PCI_DEVICE_ID,
  PCI_ERR_CAP,
  PCI_ERR_COR_MASK,
  PCI_ERR_COR_STATUS,
  PCI_ERR_HEADER_LOG,
  PCI_ERR_ROOT_COMMAND,
  PCI_ERR_ROOT_ERR_SRC,
  PCI_ERR_ROOT_STATUS,
  PCI_ERR_UNCOR_MASK,
  PCI_ERR_UNCOR_SEVER,
  PCI_ERR_UNCOR_STATUS,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCAP2,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL2,
  PCI_EXP_FLAGS,
  PCI_EXP_LNKCAP,
  PCI_EXP_LNKCAP2,
  PCI_EXP_LNKCTL,
  PCI_EXP_LNKCTL2,
  PCI_EXP_RTCTL,
  PCI_EXP_RTSTA,
  PCI_EXP_SLTCAP,
  PCI_EXP_SLTCTL,
  PCI_EXP_TYPE,
  PCI_EXT_CAP_START,
  PCI_HEADER_TYPE_BRIDGE,
  PCI_INTERRUPT_LINE,
  PCI_IO_BASE,
  PCI_IO_BASE_LIMIT,
  PCI_IO_BASE_UPPER16,
  PCI_MEMORY_BASE,
  PCI_MEMORY_LIMIT,
  PCI_MSI_ADDRESS_HI,
  PCI_MSI_ADDRESS_LO,
  PCI_MSI_FLAGS,
  PCI_MSI_MASK_32,
  PCI_MSI_MASK_64,
  PCI_MSIX_FLAGS,
  PCI_MSIX_PBA,
  PCI_MSIX_TABLE,
  PCI_PASID_CAP,
  PCI_PM_CTRL,
  PCI_PM_PMC,
  PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32,
  PCI_PREF_MEMORY_BASE,
  PCI_PREF_MEMORY_LIMIT,
  PCI_PRI_ALLOC_REQ,
  PCI_PRI_CTRL,
  PCI_PRI_MAX_REQ,
  PCI_PRIMARY_BUS,
  PCI_ROM_ADDRESS,
  PCI_ROM_ADDRESS1,
  PCI_ROM_ADDRESS_ENABLE,
  PCI_ROM_ADDRESS_MASK,
  PCI_SECONDARY_BUS,
  PCI_SECONDARY_LATENCY_TIMER,
  PCI_SRIOV_BAR,
  PCI_SRIOV_CAP,
  PCI_SRIOV_CTRL,
  PCI_SRIOV_FUNC_LINK,
  PCI_SRIOV_INITIAL_VF,
  PCI_SRIOV_NUM_BARS,
  PCI_SRIOV_NUM_VF,
  PCI_SRIOV_SUP_PGSIZE,
  PCI_SRIOV_SYS_PGSIZE,
  PCI_SRIOV_TOTAL_VF,
  PCI_SRIOV_VF_DID,
  PCI_SRIOV_VF_OFFSET,
  PCI_SRIOV_VF_STRIDE,
  PCI_SRIOV_VFM,
  PCI_SSVID_DEVICE_ID,
  PCI_SSVID_VENDOR_ID,
  PCI_SUBORDINATE_BUS,
  PCI_SUBSYSTEM_ID,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
} from '../uapi/pci-regs.js';

/** A line of the `resource` file in sysfs: BARs from 0, ROM 6, then virtual functions' BARs and a bridge's windows. */
export interface LspciResource {
  readonly index: number;
  readonly start: bigint;
  readonly last: bigint;
  /** IORESOURCE_*; bits 3:0 are those of the BAR. */
  readonly flags: bigint;
}

/** A function as `lspci` sees it. */
export interface LspciFunction {
  /** Domain, bus, device and function: `0000:00:02.0`. */
  readonly bdf: string;
  /** 64 to 4096 bytes of configuration space. */
  readonly config: Uint8Array;
  /** Without them, addresses come from the BARs and sizes are unknown. */
  readonly resources?: readonly LspciResource[];
  readonly driver?: string;
  readonly iommuGroup?: number;
}

/** Names of class and subclass (pci.ids); a subclass that is not listed has its class's name. */
const CLASS_NAMES: Readonly<Record<string, string>> = {
  '00': 'Unclassified device',
  '0000': 'Non-VGA unclassified device',
  '0001': 'VGA compatible unclassified device',
  '01': 'Mass storage controller',
  '0100': 'SCSI storage controller',
  '0101': 'IDE interface',
  '0104': 'RAID bus controller',
  '0105': 'ATA controller',
  '0106': 'SATA controller',
  '0107': 'Serial Attached SCSI controller',
  '0108': 'Non-Volatile memory controller',
  '02': 'Network controller',
  '0200': 'Ethernet controller',
  '0207': 'Infiniband controller',
  '0208': 'Fabric controller',
  '03': 'Display controller',
  '0300': 'VGA compatible controller',
  '0302': '3D controller',
  '04': 'Multimedia controller',
  '0400': 'Multimedia video controller',
  '0401': 'Multimedia audio controller',
  '0403': 'Audio device',
  '05': 'Memory controller',
  '0500': 'RAM memory',
  '0502': 'CXL',
  '06': 'Bridge',
  '0600': 'Host bridge',
  '0601': 'ISA bridge',
  '0604': 'PCI bridge',
  '0609': 'Semi-transparent PCI-to-PCI bridge',
  '07': 'Communication controller',
  '0700': 'Serial controller',
  '0702': 'Multiport serial controller',
  '08': 'Generic system peripheral',
  '0800': 'PIC',
  '0801': 'DMA controller',
  '0802': 'Timer',
  '0803': 'RTC',
  '0804': 'PCI Hot-plug controller',
  '0805': 'SD Host controller',
  '0806': 'IOMMU',
  '0880': 'System peripheral',
  '09': 'Input device controller',
  '0a': 'Docking station',
  '0b': 'Processor',
  '0b40': 'Co-processor',
  '0c': 'Serial bus controller',
  '0c03': 'USB controller',
  '0c04': 'Fibre Channel',
  '0c05': 'SMBus',
  '0c06': 'InfiniBand',
  '0c07': 'IPMI Interface',
  '0d': 'Wireless controller',
  '10': 'Encryption controller',
  '11': 'Signal processing controller',
  '12': 'Processing accelerators',
  '13': 'Non-Essential Instrumentation',
  '40': 'Coprocessor',
  ff: 'Unassigned class',
};

/** Classes whose programming interface 0 has a name, so that it is printed (pci.ids). */
const NAMED_INTERFACE_0 = new Set(
  '0101 0106 0109 0300 0502 0604 0608 0700 0701 0703 0800 0801 0802 0803 0904 0c00 0c03 0c07'.split(' '),
);

const ACCESS_DENIED = '<access denied>';

const hex = (value: number | bigint, digits: number): string => value.toString(16).padStart(digits, '0');
const sign = (isSet: boolean): string => (isSet ? '+' : '-');

/** What is printed for a flag → the field it is in. */
type FlagLabels<F extends BitFields> = Readonly<Record<string, keyof F & string>>;

/** Registers of the header (`at` 0) or of a capability. Bytes beyond the configuration space given read as zero. */
class RegisterView {
  readonly config: Uint8Array;
  readonly at: number;

  constructor(config: Uint8Array, at: number) {
    this.config = config;
    this.at = at;
  }

  u8(offset: number): number {
    return configRead(this.config, this.at + offset, 1);
  }

  u16(offset: number): number {
    return configRead(this.config, this.at + offset, 2);
  }

  u32(offset: number): number {
    return configRead(this.config, this.at + offset, 4);
  }

  /** A field of `register`, or of a register with the same layout at `offset`. */
  get<F extends BitFields>(register: Register<F>, field: keyof F & string, offset = register.offset): number {
    return register.get([this.u32(offset)], field);
  }

  /** `label+` or `label-` for each flag. */
  flags<F extends BitFields>(register: Register<F>, labels: FlagLabels<F>, offset = register.offset): string {
    const words = [this.u32(offset)];
    return Object.entries(labels)
      .map(([label, field]) => label + sign(register.get(words, field) !== 0))
      .join(' ');
  }

  /** Whether all of `lengthBytes` bytes were given. */
  has(lengthBytes: number): boolean {
    return this.at + lengthBytes <= this.config.length;
  }
}

/** What a capability's decoder may know besides its registers. */
interface CapabilityContext {
  readonly vendor: number;
  readonly device: number;
  readonly isFunctionZero: boolean;
  readonly hasMemoryRegion: boolean;
  /** Device/port type of the Express capability; undefined without one. */
  readonly expressType: number | undefined;
}

interface CapabilityDecoder {
  /** Bytes that `lines` reads. */
  lengthBytes(view: RegisterView): number;
  /** What stands behind `Capabilities: [xx] `, and the lines below it. */
  lines(view: RegisterView, context: CapabilityContext): readonly string[];
}

/** A capability that has a name and no decoder. */
function named(title: string): CapabilityDecoder {
  return { lengthBytes: () => 4, lines: () => [title] };
}

/** ` [size=…]` in the largest unit that divides it; empty for an unknown size. */
function sizeSuffix(lengthBytes: bigint): string {
  if (lengthBytes === 0n) return '';
  let value = lengthBytes;
  let unit = '';
  for (const next of ['K', 'M', 'G', 'T']) {
    if (value % 1024n !== 0n) break;
    value /= 1024n;
    unit = next;
  }
  return ` [size=${value}${unit}]`;
}

// --- header (PCIe 5.0 7.5.1) ---

function headLine(bdf: string, view: RegisterView): string {
  const word = view.u32(PCI_CLASS_REVISION);
  const classCode = hex(word >>> 16, 4);
  const name = CLASS_NAMES[classCode] ?? CLASS_NAMES[classCode.slice(0, 2)] ?? 'Class';
  const revision = word & 0xff;
  const programmingInterface = (word >>> 8) & 0xff;
  const ids = `${hex(view.u16(PCI_VENDOR_ID), 4)}:${hex(view.u16(PCI_DEVICE_ID), 4)}`;
  return (
    `${bdf} ${name} [${classCode}]: ${ids}` +
    (revision === 0 ? '' : ` (rev ${hex(revision, 2)})`) +
    (programmingInterface === 0 && !NAMED_INTERFACE_0.has(classCode)
      ? ''
      : ` (prog-if ${hex(programmingInterface, 2)})`)
  );
}

const DEVSEL = ['fast', 'medium', 'slow', '??'];

function commandAndStatus(view: RegisterView): string[] {
  const control = view.flags(PCI_COMMAND_STATUS, {
    'I/O': 'IO',
    Mem: 'MEMORY',
    BusMaster: 'MASTER',
    SpecCycle: 'SPECIAL',
    MemWINV: 'INVALIDATE',
    VGASnoop: 'VGA_PALETTE',
    ParErr: 'PARITY',
    Stepping: 'WAIT',
    SERR: 'SERR',
    FastB2B: 'FAST_BACK',
    DisINTx: 'INTX_DISABLE',
  });
  const abilities = view.flags(PCI_COMMAND_STATUS, {
    Cap: 'CAP_LIST',
    '66MHz': '66MHZ',
    UDF: 'UDF',
    FastB2B: 'FAST_BACK_CAPABLE',
    ParErr: 'DETECTED_MASTER_PARITY',
  });
  const errors = view.flags(PCI_COMMAND_STATUS, {
    '>TAbort': 'SIG_TARGET_ABORT',
    '<TAbort': 'REC_TARGET_ABORT',
    '<MAbort': 'REC_MASTER_ABORT',
    '>SERR': 'SIG_SYSTEM_ERROR',
    '<PERR': 'DETECTED_PARITY',
    INTx: 'INTERRUPT',
  });
  const devsel = DEVSEL[view.get(PCI_COMMAND_STATUS, 'DEVSEL')] ?? '';
  return [`\tControl: ${control}`, `\tStatus: ${abilities} DEVSEL=${devsel} ${errors}`];
}

function latency(view: RegisterView, isBridge: boolean): string[] {
  if (view.get(PCI_COMMAND_STATUS, 'MASTER') === 0) return [];
  const minGrant = isBridge ? 0 : view.get(PCI_INTERRUPT_LINE, 'MIN_GNT');
  const maxLatency = isBridge ? 0 : view.get(PCI_INTERRUPT_LINE, 'MAX_LAT');
  const cacheLine = view.get(PCI_CACHE_LINE_SIZE, 'CACHE_LINE_SIZE');
  const wishes = [
    ...(minGrant === 0 ? [] : [`${minGrant * 250}ns min`]),
    ...(maxLatency === 0 ? [] : [`${maxLatency * 250}ns max`]),
  ];
  return [
    `\tLatency: ${view.get(PCI_CACHE_LINE_SIZE, 'LATENCY_TIMER')}` +
      (wishes.length === 0 ? '' : ` (${wishes.join(', ')})`) +
      (cacheLine === 0 ? '' : `, Cache Line Size: ${cacheLine * 4} bytes`),
  ];
}

function interrupt(view: RegisterView): string[] {
  const pin = view.get(PCI_INTERRUPT_LINE, 'PIN');
  const line = view.get(PCI_INTERRUPT_LINE, 'LINE');
  if (pin === 0 && line === 0) return [];
  return [`\tInterrupt: pin ${pin === 0 || pin > 4 ? '?' : String.fromCharCode(0x40 + pin)} routed to IRQ ${line}`];
}

function selfTest(view: RegisterView): string[] {
  if (view.get(PCI_CACHE_LINE_SIZE, 'BIST_CAPABLE') === 0) return [];
  if (view.get(PCI_CACHE_LINE_SIZE, 'BIST_START') !== 0) return ['\tBIST is running'];
  return [`\tBIST result: ${hex(view.get(PCI_CACHE_LINE_SIZE, 'BIST_CODE'), 2)}`];
}

/** A region: what the BAR says and where the kernel says it is. */
interface Region {
  readonly index: number;
  /** Bits 3:0 of the kernel's flags, without the kernel of the BAR. */
  readonly flags: number;
  /** Address in the BAR. */
  readonly decoded: bigint;
  readonly start: bigint;
  readonly lengthBytes: bigint;
  /** The BAR reads as zero and the kernel has an address: a virtual function's, which the physical function's BAR places. */
  readonly isVirtual: boolean;
  /** A 64-bit BAR in the last place. */
  readonly isBroken: boolean;
}

const isIo = (flags: number): boolean => (flags & PCI_BASE_ADDRESS_SPACE_IO) !== 0;
const is64Bit = (flags: number): boolean =>
  !isIo(flags) && (flags & PCI_BASE_ADDRESS_MEM_TYPE_MASK) === PCI_BASE_ADDRESS_MEM_TYPE_64;

function resourceAt(fn: LspciFunction, index: number): LspciResource | undefined {
  return fn.resources?.find((resource) => resource.index === index);
}

const resourceBytes = ({ start, last }: LspciResource): bigint => (last > start ? last - start + 1n : 0n);

function regionsOf(fn: LspciFunction, count: number): Region[] {
  const view = new RegisterView(fn.config, 0);
  const regions: Region[] = [];
  for (let index = 0; index < count; index++) {
    const read = view.u32(PCI_BAR0 + 4 * index);
    const bar = read === 0xffff_ffff ? 0 : read;
    const resource = resourceAt(fn, index);
    const flags = fn.resources === undefined ? bar & 0xf : Number((resource?.flags ?? 0n) & 0xfn);
    const isBroken = is64Bit(flags) && index + 1 === count;
    const upper = is64Bit(flags) && !isBroken ? view.u32(PCI_BAR0 + 4 * (index + 1)) : 0;
    const low = (bar & (isIo(flags) ? PCI_BASE_ADDRESS_IO_MASK : PCI_BASE_ADDRESS_MEM_MASK)) >>> 0;
    const decoded = (BigInt(upper) << 32n) | BigInt(low);
    const start = fn.resources === undefined ? decoded : (resource?.start ?? 0n);
    const lengthBytes = resource === undefined ? 0n : resourceBytes(resource);
    const isVirtual = !isIo(flags) && start !== 0n && bar === 0;
    if (start !== 0n || lengthBytes !== 0n || (fn.resources === undefined && bar !== 0))
      regions.push({ index, flags, decoded, start, lengthBytes, isVirtual, isBroken });
    if (is64Bit(flags)) index++;
  }
  return regions;
}

const MEMORY_TYPES = ['32-bit', 'low-1M', '64-bit', 'type 3'];

function regionLine(region: Region, view: RegisterView): string {
  const { flags, start, decoded, lengthBytes } = region;
  const isEnabled = view.get(PCI_COMMAND_STATUS, isIo(flags) ? 'IO' : 'MEMORY') !== 0;
  const isPlaced = start !== 0n || (isIo(flags) && isEnabled);
  const place = isPlaced ? hex(start, isIo(flags) ? 4 : 8) : decoded === 0n ? '<unassigned>' : '<ignored>';
  const type = MEMORY_TYPES[(flags & PCI_BASE_ADDRESS_MEM_TYPE_MASK) >> 1] ?? '';
  const prefetch = (flags & PCI_BASE_ADDRESS_MEM_PREFETCH) === 0 ? 'non-prefetchable' : 'prefetchable';
  const what = isIo(flags)
    ? `I/O ports at ${place}`
    : `Memory at ${region.isBroken ? '<broken-64-bit-slot>' : place} (${type}, ${prefetch})`;
  const state = region.isVirtual ? ' [virtual]' : isEnabled ? '' : ' [disabled]';
  return `\tRegion ${region.index}: ${what}${state}${sizeSuffix(lengthBytes)}`;
}

/** Number of the ROM's line in the `resource` file. */
const ROM_RESOURCE = 6;

function expansionRom(fn: LspciFunction, view: RegisterView, register: number): string[] {
  const read = view.u32(register);
  const rom = read === 0xffff_ffff ? 0 : read;
  const resource = resourceAt(fn, ROM_RESOURCE);
  const decoded = (rom & PCI_ROM_ADDRESS_MASK) >>> 0;
  const start = fn.resources === undefined ? BigInt(decoded) : (resource?.start ?? 0n);
  const lengthBytes = resource === undefined ? 0n : resourceBytes(resource);
  if (start === 0n && rom === 0 && lengthBytes === 0n) return [];
  const isVirtual = start !== 0n && decoded === 0;
  const place = start !== 0n ? hex(start, 8) : decoded === 0 ? '<unassigned>' : '<ignored>';
  const isEnabled = (rom & PCI_ROM_ADDRESS_ENABLE) !== 0;
  const isDecoding = isVirtual || view.get(PCI_COMMAND_STATUS, 'MEMORY') !== 0;
  const state = isEnabled ? (isDecoding ? '' : ' [disabled by cmd]') : ' [disabled]';
  return [`\tExpansion ROM at ${place}${isVirtual ? ' [virtual]' : ''}${state}${sizeSuffix(lengthBytes)}`];
}

/** A bridge's windows: their places behind the first window in the `resource` file. */
const WINDOW = { IO: 0, MEMORY: 1, PREFETCH: 2 } as const;

/** A bridge's window as the kernel has it; undefined if it says nothing about windows at all. */
function windowResource(fn: LspciFunction, which: number): LspciResource | undefined {
  const behindRom = fn.resources?.filter((resource) => resource.index > ROM_RESOURCE) ?? [];
  if (behindRom.length === 0) return undefined;
  // A kernel that knows SR-IOV has the BARs of virtual functions first.
  const withSriov = ROM_RESOURCE + 1 + PCI_SRIOV_NUM_BARS;
  const index = which + (behindRom.some((resource) => resource.index >= withSriov) ? withSriov : ROM_RESOURCE + 1);
  return behindRom.find((resource) => resource.index === index) ?? { index, start: 0n, last: 0n, flags: 0n };
}

/** `base` and `limit` are the registers' range; the kernel's resource goes before it, even if there is none. */
function windowLine(
  title: string,
  fn: LspciFunction,
  which: number,
  widthBits: number,
  base: bigint,
  limit: bigint,
): string {
  const resource = windowResource(fn, which);
  const isEmpty = resource !== undefined && resource.last <= resource.start;
  const [start, last] = resource === undefined || isEmpty ? [base, limit] : [resource.start, resource.last];
  const state = isEmpty || start > last ? ' [disabled]' : sizeSuffix(last - start + 1n);
  return `\t${title} behind bridge: ${hex(start, widthBits / 4)}-${hex(last, widthBits / 4)}${state} [${widthBits}-bit]`;
}

function bridgeWindows(fn: LspciFunction, view: RegisterView): string[] {
  const lines: string[] = [];
  /** A window whose base and limit have types that contradict each other or are reserved. */
  const unknown = (what: string, base: number, limit: number): string =>
    `\t!!! Unknown ${what} range types ${base.toString(16)}/${limit.toString(16)}`;
  const megabytes = (register: number, upper: number): bigint =>
    (BigInt(upper) << 32n) | BigInt((register & 0xfff0) * 0x1_0000);

  const ioType = view.get(PCI_IO_BASE_LIMIT, 'RANGE_TYPE');
  if (ioType > 1 || view.get(PCI_IO_BASE_LIMIT, 'LIMIT_RANGE_TYPE') !== ioType) {
    lines.push(unknown('I/O', view.u8(PCI_IO_BASE), view.u8(PCI_IO_BASE + 1)));
  } else {
    const upper = (offset: number): number => (ioType === 1 ? view.u16(PCI_IO_BASE_UPPER16 + offset) * 0x1_0000 : 0);
    const base = upper(0) + view.get(PCI_IO_BASE_LIMIT, 'BASE') * 0x1000;
    const limit = upper(2) + view.get(PCI_IO_BASE_LIMIT, 'LIMIT') * 0x1000 + 0xfff;
    lines.push(windowLine('I/O', fn, WINDOW.IO, ioType === 1 ? 32 : 16, BigInt(base), BigInt(limit)));
  }

  const base = view.u16(PCI_MEMORY_BASE);
  const limit = view.u16(PCI_MEMORY_LIMIT);
  if (((base | limit) & 0xf) !== 0) lines.push(unknown('memory', base, limit));
  else lines.push(windowLine('Memory', fn, WINDOW.MEMORY, 32, megabytes(base, 0), megabytes(limit, 0) | 0xf_ffffn));

  const prefBase = view.u16(PCI_PREF_MEMORY_BASE);
  const prefLimit = view.u16(PCI_PREF_MEMORY_LIMIT);
  const prefType = prefBase & 0xf;
  if (prefType > 1 || (prefLimit & 0xf) !== prefType) {
    lines.push(unknown('prefetchable memory', prefBase, prefLimit));
  } else {
    const upper = (offset: number): number => (prefType === 1 ? view.u32(offset) : 0);
    const first = megabytes(prefBase, upper(PCI_PREF_BASE_UPPER32));
    const last = megabytes(prefLimit, upper(PCI_PREF_LIMIT_UPPER32)) | 0xf_ffffn;
    lines.push(windowLine('Prefetchable memory', fn, WINDOW.PREFETCH, prefType === 1 ? 64 : 32, first, last));
  }
  return lines;
}

function bridgeHeader(fn: LspciFunction, view: RegisterView): string[] {
  const bus = (offset: number): string => hex(view.u8(offset), 2);
  const abilities = view.flags(PCI_IO_BASE_LIMIT, {
    '66MHz': '66MHZ',
    FastB2B: 'FAST_BACK_CAPABLE',
    ParErr: 'DETECTED_MASTER_PARITY',
  });
  const errors = view.flags(PCI_IO_BASE_LIMIT, {
    '>TAbort': 'SIG_TARGET_ABORT',
    '<TAbort': 'REC_TARGET_ABORT',
    '<MAbort': 'REC_MASTER_ABORT',
    '<SERR': 'REC_SYSTEM_ERROR',
    '<PERR': 'DETECTED_PARITY',
  });
  const control = view.flags(PCI_BRIDGE_CTL, {
    Parity: 'PARITY',
    SERR: 'SERR',
    NoISA: 'ISA',
    VGA: 'VGA',
    VGA16: 'VGA_16BIT',
    MAbort: 'MASTER_ABORT',
    '>Reset': 'BUS_RESET',
    FastB2B: 'FAST_BACK',
  });
  const timers = view.flags(PCI_BRIDGE_CTL, {
    PriDiscTmr: 'PRIMARY_DISCARD_TIMER',
    SecDiscTmr: 'SECONDARY_DISCARD_TIMER',
    DiscTmrStat: 'DISCARD_TIMER_STATUS',
    DiscTmrSERREn: 'DISCARD_TIMER_SERR',
  });
  return [
    `\tBus: primary=${bus(PCI_PRIMARY_BUS)}, secondary=${bus(PCI_SECONDARY_BUS)}, ` +
      `subordinate=${bus(PCI_SUBORDINATE_BUS)}, sec-latency=${view.u8(PCI_SECONDARY_LATENCY_TIMER)}`,
    ...bridgeWindows(fn, view),
    `\tSecondary status: ${abilities} DEVSEL=${DEVSEL[view.get(PCI_IO_BASE_LIMIT, 'DEVSEL')] ?? ''} ${errors}`,
    ...expansionRom(fn, view, PCI_ROM_ADDRESS1),
    `\tBridgeCtl: ${control}`,
    `\t\t${timers}`,
  ];
}

// --- capabilities of conventional configuration space ---

const AUX_CURRENT_MA = [0, 55, 100, 160, 220, 270, 320, 375];

const powerManagement: CapabilityDecoder = {
  lengthBytes: () => 8,
  lines(view) {
    const flags = view.flags(PCI_PM_PMC, { PMEClk: 'PME_CLOCK', DSI: 'DSI', D1: 'D1', D2: 'D2' });
    const pme = view.flags(PCI_PM_PMC, {
      D0: 'PME_D0',
      D1: 'PME_D1',
      D2: 'PME_D2',
      D3hot: 'PME_D3HOT',
      D3cold: 'PME_D3COLD',
    });
    const current = AUX_CURRENT_MA[view.get(PCI_PM_PMC, 'AUX_POWER')] ?? 0;
    return [
      `Power Management version ${view.get(PCI_PM_PMC, 'VER')}`,
      `\t\tFlags: ${flags} AuxCurrent=${current}mA PME(${pme.replaceAll(' ', ',')})`,
      `\t\tStatus: D${view.get(PCI_PM_CTRL, 'STATE')} ` +
        `${view.flags(PCI_PM_CTRL, { NoSoftRst: 'NO_SOFT_RESET', 'PME-Enable': 'PME_ENABLE' })} ` +
        `DSel=${view.get(PCI_PM_CTRL, 'DATA_SEL')} DScale=${view.get(PCI_PM_CTRL, 'DATA_SCALE')} ` +
        view.flags(PCI_PM_CTRL, { PME: 'PME_STATUS' }),
    ];
  },
};

const msi: CapabilityDecoder = {
  lengthBytes(view) {
    const dataEnd = view.get(PCI_MSI_FLAGS, 'X64') === 0 ? 0x0a : 0x0e;
    return view.get(PCI_MSI_FLAGS, 'MASKBIT') === 0 ? dataEnd : dataEnd + 10;
  },
  lines(view) {
    const is64 = view.get(PCI_MSI_FLAGS, 'X64') !== 0;
    const maskAt = is64 ? PCI_MSI_MASK_64 : PCI_MSI_MASK_32;
    const count = `${1 << view.get(PCI_MSI_FLAGS, 'QSIZE')}/${1 << view.get(PCI_MSI_FLAGS, 'QMASK')}`;
    const upper = is64 ? hex(view.u32(PCI_MSI_ADDRESS_HI), 8) : '';
    const lines = [
      `MSI: ${view.flags(PCI_MSI_FLAGS, { Enable: 'ENABLE' })} Count=${count} ` +
        view.flags(PCI_MSI_FLAGS, { Maskable: 'MASKBIT', '64bit': 'X64' }),
      `\t\tAddress: ${upper}${hex(view.u32(PCI_MSI_ADDRESS_LO), 8)}  Data: ${hex(view.u16(maskAt - 4), 4)}`,
    ];
    if (view.get(PCI_MSI_FLAGS, 'MASKBIT') !== 0)
      lines.push(`\t\tMasking: ${hex(view.u32(maskAt), 8)}  Pending: ${hex(view.u32(maskAt + 4), 8)}`);
    return lines;
  },
};

const msix: CapabilityDecoder = {
  lengthBytes: () => 12,
  lines(view) {
    const where = (offset: number): string => {
      const tableOffset = view.get(PCI_MSIX_TABLE, 'OFFSET', offset) * 8;
      return `BAR=${view.get(PCI_MSIX_TABLE, 'BIR', offset)} offset=${hex(tableOffset, 8)}`;
    };
    return [
      `MSI-X: ${view.flags(PCI_MSIX_FLAGS, { Enable: 'ENABLE' })} ` +
        `Count=${view.get(PCI_MSIX_FLAGS, 'QSIZE') + 1} ${view.flags(PCI_MSIX_FLAGS, { Masked: 'MASKALL' })}`,
      `\t\tVector table: ${where(PCI_MSIX_TABLE.offset)}`,
      `\t\tPBA: ${where(PCI_MSIX_PBA)}`,
    ];
  },
};

const VIRTIO_VENDOR = 0x1af4;
/** `cfg_type` of struct virtio_pci_cap (virtio 1.2 section 4.1.4). */
const VIRTIO_STRUCTURES: Readonly<Record<number, string>> = { 1: 'CommonCfg', 2: 'Notify', 3: 'ISR', 4: 'DeviceCfg' };
const VIRTIO_NOTIFY = 2;

const vendorSpecific: CapabilityDecoder = {
  lengthBytes: (view) => Math.max(4, view.u8(2)),
  lines(view, { vendor, device }) {
    const lengthBytes = view.u8(2);
    const isVirtio = vendor === VIRTIO_VENDOR && device >= 0x1000 && device <= 0x107f && lengthBytes >= 16;
    if (!isVirtio) return [`Vendor Specific Information: Len=${hex(lengthBytes, 2)} <?>`];
    const type = view.u8(3);
    const multiplier = type === VIRTIO_NOTIFY && lengthBytes >= 20 ? ` multiplier=${hex(view.u32(0x10), 8)}` : '';
    return [
      `Vendor Specific Information: VirtIO: ${VIRTIO_STRUCTURES[type] ?? '<unknown>'}`,
      `\t\tBAR=${view.u8(4)} offset=${hex(view.u32(8), 8)} size=${hex(view.u32(12), 8)}${multiplier}`,
    ];
  },
};

const subsystem: CapabilityDecoder = {
  lengthBytes: () => 8,
  lines: (view) => [`Subsystem: ${hex(view.u16(PCI_SSVID_VENDOR_ID), 4)}:${hex(view.u16(PCI_SSVID_DEVICE_ID), 4)}`],
};

const advancedFeatures: CapabilityDecoder = {
  lengthBytes: () => 6,
  lines: (view) => [
    'PCI Advanced Features',
    `\t\tAFCap: ${view.flags(PCI_AF_CAP, { TP: 'TP', FLR: 'FLR' })}`,
    `\t\tAFCtrl: ${view.flags(PCI_AF_CTRL, { FLR: 'FLR' })}`,
    `\t\tAFStatus: ${view.flags(PCI_AF_CTRL, { TP: 'STATUS_TP' })}`,
  ],
};

// --- PCI Express (PCIe 7.5.3) ---

const EXPRESS_TYPE_NAMES: Readonly<Record<number, string>> = {
  [PCI_EXP_TYPE.ENDPOINT]: 'Endpoint',
  [PCI_EXP_TYPE.LEG_END]: 'Legacy Endpoint',
  [PCI_EXP_TYPE.ROOT_PORT]: 'Root Port',
  [PCI_EXP_TYPE.UPSTREAM]: 'Upstream Port',
  [PCI_EXP_TYPE.DOWNSTREAM]: 'Downstream Port',
  [PCI_EXP_TYPE.PCI_BRIDGE]: 'PCI-Express to PCI/PCI-X Bridge',
  [PCI_EXP_TYPE.PCIE_BRIDGE]: 'PCI/PCI-X to PCI-Express Bridge',
  [PCI_EXP_TYPE.RC_END]: 'Root Complex Integrated Endpoint',
  [PCI_EXP_TYPE.RC_EC]: 'Root Complex Event Collector',
};
const { ENDPOINT, LEG_END, ROOT_PORT, UPSTREAM, DOWNSTREAM, PCI_BRIDGE, PCIE_BRIDGE, RC_END, RC_EC } = PCI_EXP_TYPE;
/** Types that a slot can be below. */
const SLOT_TYPES: readonly number[] = [ROOT_PORT, DOWNSTREAM, PCIE_BRIDGE];
const ROOT_TYPES: readonly number[] = [ROOT_PORT, RC_EC];
const LINKLESS_TYPES: readonly number[] = [RC_END, RC_EC];

const L0S_LATENCY = ['<64ns', '<128ns', '<256ns', '<512ns', '<1us', '<2us', '<4us', 'unlimited'];
const L1_LATENCY = ['<1us', '<2us', '<4us', '<8us', '<16us', '<32us', '<64us', 'unlimited'];
const ASPM = ['not supported', 'L0s', 'L1', 'L0s L1'];
const LINK_SPEEDS: Readonly<Record<number, string>> = { 1: '2.5', 2: '5', 3: '8', 4: '16', 5: '32', 6: '64' };
const INDICATORS = ['Unknown', 'On', 'Blink', 'Off'];

/** Slot power limit; with scale 0, values from F0h on are steps of 25 W from 250 W on (PCIe 7.5.3.9). */
function powerLimit(value: number, scale: number): string {
  if (scale !== 0 || value < 0xf0) return `${value / 10 ** scale}W`;
  return value === 0xff ? '>600W' : `${250 + (value - 0xf0) * 25}W`;
}

function speed(code: number): string {
  const name = LINK_SPEEDS[code];
  return name === undefined ? 'unknown' : `${name}GT/s`;
}

function expressDevice(view: RegisterView, type: number): string[] {
  const isEndpoint = type === ENDPOINT || type === LEG_END;
  const latencies = isEndpoint
    ? `, Latency L0s ${L0S_LATENCY[view.get(PCI_EXP_DEVCAP, 'L0S')] ?? ''}, L1 ${L1_LATENCY[view.get(PCI_EXP_DEVCAP, 'L1')] ?? ''}`
    : '';
  const hasSlotMessages = type === ENDPOINT || type === UPSTREAM || type === PCI_BRIDGE;
  const indicators =
    hasSlotMessages || type === LEG_END
      ? ` ${view.flags(PCI_EXP_DEVCAP, { AttnBtn: 'ATN_BUT', AttnInd: 'ATN_IND', PwrInd: 'PWR_IND' })}`
      : '';
  const canReset = isEndpoint || type === RC_END;
  const reset = canReset ? ` ${view.flags(PCI_EXP_DEVCAP, { FLReset: 'FLR' })}` : '';
  const limit = hasSlotMessages
    ? ` SlotPowerLimit ${powerLimit(view.get(PCI_EXP_DEVCAP, 'PWR_VAL'), view.get(PCI_EXP_DEVCAP, 'PWR_SCL'))}`
    : '';
  const lastControl =
    type === PCI_BRIDGE
      ? ` ${view.flags(PCI_EXP_DEVCTL, { BrConfRtry: 'BCR_FLR' })}`
      : canReset && view.get(PCI_EXP_DEVCAP, 'FLR') !== 0
        ? ` ${view.flags(PCI_EXP_DEVCTL, { FLReset: 'BCR_FLR' })}`
        : '';
  const payload = (code: number): number => 128 << code;
  const phantom = (1 << view.get(PCI_EXP_DEVCAP, 'PHANTOM')) - 1;
  const errors = view.flags(PCI_EXP_DEVCTL, {
    CorrErr: 'CERE',
    NonFatalErr: 'NFERE',
    FatalErr: 'FERE',
    UnsupReq: 'URRE',
  });
  const control = view.flags(PCI_EXP_DEVCTL, {
    RlxdOrd: 'RELAX_EN',
    ExtTag: 'EXT_TAG',
    PhantFunc: 'PHANTOM',
    AuxPwr: 'AUX_PME',
    NoSnoop: 'NOSNOOP_EN',
  });
  const status = view.flags(PCI_EXP_DEVCTL, {
    CorrErr: 'CED',
    NonFatalErr: 'NFED',
    FatalErr: 'FED',
    UnsupReq: 'URD',
    AuxPwr: 'AUXPD',
    TransPend: 'TRPND',
  });
  return [
    `\t\tDevCap:\tMaxPayload ${payload(view.get(PCI_EXP_DEVCAP, 'PAYLOAD'))} bytes, PhantFunc ${phantom}${latencies}`,
    `\t\t\t${view.flags(PCI_EXP_DEVCAP, { ExtTag: 'EXT_TAG' })}${indicators} ` +
      `${view.flags(PCI_EXP_DEVCAP, { RBE: 'RBER' })}${reset}${limit}`,
    `\t\tDevCtl:\t${errors}`,
    `\t\t\t${control}${lastControl}`,
    `\t\t\tMaxPayload ${payload(view.get(PCI_EXP_DEVCTL, 'PAYLOAD'))} bytes, ` +
      `MaxReadReq ${payload(view.get(PCI_EXP_DEVCTL, 'READRQ'))} bytes`,
    `\t\tDevSta:\t${status}`,
  ];
}

/** How what was negotiated compares with what the function can do; a port below which a slower device sits is no matter. */
function comparison(negotiated: number, capable: number, type: number): string {
  if (negotiated > capable) return ' (overdriven)';
  return negotiated < capable && !SLOT_TYPES.includes(type) ? ' (downgraded)' : '';
}

function expressLink(view: RegisterView, type: number): string[] {
  const aspm = view.get(PCI_EXP_LNKCAP, 'ASPMS');
  const exits = [
    ...((aspm & 1) === 0 ? [] : [`L0s ${L0S_LATENCY[view.get(PCI_EXP_LNKCAP, 'L0SEL')] ?? ''}`]),
    ...((aspm & 2) === 0 ? [] : [`L1 ${L1_LATENCY[view.get(PCI_EXP_LNKCAP, 'L1EL')] ?? ''}`]),
  ];
  const aspmControl = view.get(PCI_EXP_LNKCTL, 'ASPMC');
  const hasCompletionBoundary = [ROOT_PORT, ENDPOINT, LEG_END, PCI_BRIDGE].some((one) => one === type);
  const boundary = hasCompletionBoundary ? ` RCB ${view.get(PCI_EXP_LNKCTL, 'RCB') === 0 ? 64 : 128} bytes,` : '';
  const maxSpeed = view.get(PCI_EXP_LNKCAP, 'SLS');
  const maxWidth = view.get(PCI_EXP_LNKCAP, 'MLW');
  const currentSpeed = view.get(PCI_EXP_LNKCTL, 'CLS');
  const width = view.get(PCI_EXP_LNKCTL, 'NLW');
  const abilities = view.flags(PCI_EXP_LNKCAP, {
    ClockPM: 'CLKPM',
    Surprise: 'SDERC',
    LLActRep: 'DLLLARC',
    BwNot: 'LBNC',
    ASPMOptComp: 'ASPM_OPT',
  });
  const control = view.flags(PCI_EXP_LNKCTL, {
    ExtSynch: 'ES',
    ClockPM: 'CLKREQ_EN',
    AutWidDis: 'HAWD',
    BWInt: 'LBMIE',
    AutBWInt: 'LABIE',
  });
  const status = view.flags(PCI_EXP_LNKCTL, {
    TrErr: 'TRERR',
    Train: 'LT',
    SlotClk: 'SLC',
    DLActive: 'DLLLA',
    BWMgmt: 'LBMS',
    ABWMgmt: 'LABS',
  });
  return [
    `\t\tLnkCap:\tPort #${view.get(PCI_EXP_LNKCAP, 'PORT')}, Speed ${speed(maxSpeed)}, Width x${maxWidth}, ` +
      `ASPM ${ASPM[aspm] ?? ''}${exits.length === 0 ? '' : `, Exit Latency ${exits.join(', ')}`}`,
    `\t\t\t${abilities}`,
    `\t\tLnkCtl:\tASPM ${aspmControl === 0 ? 'Disabled' : `${ASPM[aspmControl] ?? ''} Enabled`};${boundary} ` +
      view.flags(PCI_EXP_LNKCTL, { Disabled: 'LD', CommClk: 'CCC' }),
    `\t\t\t${control}`,
    `\t\tLnkSta:\tSpeed ${speed(currentSpeed)}${comparison(currentSpeed, maxSpeed, type)}, ` +
      `Width x${width}${comparison(width, maxWidth, type)}`,
    `\t\t\t${status}`,
  ];
}

function expressSlot(view: RegisterView): string[] {
  const abilities = view.flags(PCI_EXP_SLTCAP, {
    AttnBtn: 'ABP',
    PwrCtrl: 'PCP',
    MRL: 'MRLSP',
    AttnInd: 'AIP',
    PwrInd: 'PIP',
    HotPlug: 'HPC',
    Surprise: 'HPS',
  });
  const limit = powerLimit(view.get(PCI_EXP_SLTCAP, 'SPLV'), view.get(PCI_EXP_SLTCAP, 'SPLS'));
  const enabled = view.flags(PCI_EXP_SLTCTL, {
    AttnBtn: 'ABPE',
    PwrFlt: 'PFDE',
    MRL: 'MRLSCE',
    PresDet: 'PDCE',
    CmdCplt: 'CCIE',
    HPIrq: 'HPIE',
    LinkChg: 'DLLSCE',
  });
  const status = view.flags(PCI_EXP_SLTCTL, {
    AttnBtn: 'ABP',
    PowerFlt: 'PFD',
    MRL: 'MRLSS',
    CmdCplt: 'CC',
    PresDet: 'PDS',
    Interlock: 'EIS',
  });
  return [
    `\t\tSltCap:\t${abilities}`,
    `\t\t\tSlot #${view.get(PCI_EXP_SLTCAP, 'PSN')}, PowerLimit ${limit}; ` +
      view.flags(PCI_EXP_SLTCAP, { Interlock: 'EIP', NoCompl: 'NCCS' }),
    `\t\tSltCtl:\tEnable: ${enabled}`,
    `\t\t\tControl: AttnInd ${INDICATORS[view.get(PCI_EXP_SLTCTL, 'AIC')] ?? ''}, ` +
      `PwrInd ${INDICATORS[view.get(PCI_EXP_SLTCTL, 'PIC')] ?? ''}, ` +
      view.flags(PCI_EXP_SLTCTL, { Power: 'PCC', Interlock: 'EIC' }),
    `\t\tSltSta:\tStatus: ${status}`,
    `\t\t\tChanged: ${view.flags(PCI_EXP_SLTCTL, { MRL: 'MRLSC', PresDet: 'PDC', LinkState: 'DLLSC' })}`,
  ];
}

function expressRoot(view: RegisterView): string[] {
  const control = view.flags(PCI_EXP_RTCTL, {
    ErrCorrectable: 'SECEE',
    'ErrNon-Fatal': 'SENFEE',
    ErrFatal: 'SEFEE',
    PMEIntEna: 'PMEIE',
    CRSVisible: 'CRSSVE',
  });
  return [
    `\t\tRootCap: ${view.flags(PCI_EXP_RTCTL, { CRSVisible: 'CRSVIS' })}`,
    `\t\tRootCtl: ${control}`,
    `\t\tRootSta: PME ReqID ${hex(view.get(PCI_EXP_RTSTA, 'PME_REQ'), 4)}, ` +
      view.flags(PCI_EXP_RTSTA, { PMEStatus: 'PME', PMEPending: 'PENDING' }),
  ];
}

/** Completion timeout ranges of Device Capabilities 2; values that are not listed are reserved. */
const TIMEOUT_RANGES: Readonly<Record<number, string>> = {
  0: 'Not Supported',
  1: 'Range A',
  2: 'Range B',
  3: 'Range AB',
  6: 'Range BC',
  7: 'Range ABC',
  14: 'Range BCD',
  15: 'Range ABCD',
};
const TIMEOUTS: Readonly<Record<number, string>> = {
  0: '50us to 50ms',
  1: '50us to 100us',
  2: '1ms to 10ms',
  5: '16ms to 55ms',
  6: '65ms to 210ms',
  9: '260ms to 900ms',
  10: '1s to 3.5s',
  13: '4s to 13s',
  14: '17s to 64s',
};
const OBFF_SUPPORT = ['Not Supported', 'Via message', 'Via WAKE#', 'Via message/WAKE#'];
const OBFF_ENABLED = ['Disabled', 'Via message A', 'Via message B', 'Via WAKE#'];
const LN_CACHE_LINES = ['Not Supported', '64byte cachelines', '128byte cachelines', 'Reserved'];
/** TPH completer support; 2 is reserved and prints nothing. */
const TPH_COMPLETER = ['TPHComp- ExtTPHComp-', 'TPHComp+ ExtTPHComp-', '', 'TPHComp+ ExtTPHComp+'];
const EMERGENCY_POWER = ['Not Supported', 'Dev Specific', 'Form Factor Dev Specific', 'Reserved'];

function expressDevice2(view: RegisterView, type: number, hasMemoryRegion: boolean): string[] {
  const isForwarding = type === ROOT_PORT || type === DOWNSTREAM;
  const isRouting = isForwarding || type === UPSTREAM;
  const isRequester = type === ROOT_PORT || type === ENDPOINT || type === RC_END || type === LEG_END;
  const prefixes = view.get(PCI_EXP_DEVCAP2, 'MAX_EE_PREFIXES');
  const maxPrefixes =
    view.get(PCI_EXP_DEVCAP2, 'EE_PREFIX') === 0 ? '' : `, MaxEETLPPrefixes ${prefixes === 0 ? 4 : prefixes}`;
  const atomicCapabilities = [
    ...(isRouting ? [view.flags(PCI_EXP_DEVCAP2, { Routing: 'ATOMIC_ROUTE' })] : []),
    ...(type === ROOT_PORT || hasMemoryRegion
      ? [
          view.flags(PCI_EXP_DEVCAP2, {
            '32bit': 'ATOMIC_COMP32',
            '64bit': 'ATOMIC_COMP64',
            '128bitCAS': 'ATOMIC_COMP128',
          }),
        ]
      : []),
  ];
  const atomicControls = [
    ...(isRequester ? [view.flags(PCI_EXP_DEVCTL2, { ReqEn: 'ATOMIC_REQ' })] : []),
    ...(isRouting ? [view.flags(PCI_EXP_DEVCTL2, { EgressBlck: 'ATOMIC_EGRESS_BLOCK' })] : []),
  ];
  const lnCacheLines =
    type === ROOT_PORT ? ` LN System CLS ${LN_CACHE_LINES[view.get(PCI_EXP_DEVCAP2, 'LN_CLS')] ?? ''},` : '';
  const tph =
    type === ROOT_PORT || type === ENDPOINT ? ` ${TPH_COMPLETER[view.get(PCI_EXP_DEVCAP2, 'TPH_COMP')] ?? ''}` : '';
  const forwarding = isForwarding ? ` ${view.flags(PCI_EXP_DEVCAP2, { ARIFwd: 'ARI' })}` : '';
  const forwardingControl = isForwarding ? ` ${view.flags(PCI_EXP_DEVCTL2, { ARIFwd: 'ARI' })}` : '';
  return [
    `\t\tDevCap2: Completion Timeout: ${TIMEOUT_RANGES[view.get(PCI_EXP_DEVCAP2, 'COMP_TMOUT')] ?? 'Unknown'}, ` +
      view.flags(PCI_EXP_DEVCAP2, { TimeoutDis: 'COMP_TMOUT_DIS', NROPrPrP: 'NO_RO_PR_PR', LTR: 'LTR' }),
    `\t\t\t ${view.flags(PCI_EXP_DEVCAP2, { '10BitTagComp': '10BIT_TAG_COMP', '10BitTagReq': '10BIT_TAG_REQ' })} ` +
      `OBFF ${OBFF_SUPPORT[view.get(PCI_EXP_DEVCAP2, 'OBFF')] ?? ''}, ` +
      view.flags(PCI_EXP_DEVCAP2, { ExtFmt: 'EXT_FMT', EETLPPrefix: 'EE_PREFIX' }) +
      maxPrefixes,
    `\t\t\t EmergencyPowerReduction ${EMERGENCY_POWER[view.get(PCI_EXP_DEVCAP2, 'EPR')] ?? ''}, ` +
      view.flags(PCI_EXP_DEVCAP2, { EmergencyPowerReductionInit: 'EPR_INIT' }),
    `\t\t\t ${view.flags(PCI_EXP_DEVCAP2, { FRS: 'FRS' })}${lnCacheLines}${tph}${forwarding}`,
    ...(atomicCapabilities.length === 0 ? [] : [`\t\t\t AtomicOpsCap: ${atomicCapabilities.join(' ')}`]),
    `\t\tDevCtl2: Completion Timeout: ${TIMEOUTS[view.get(PCI_EXP_DEVCTL2, 'COMP_TIMEOUT')] ?? 'Unknown'}, ` +
      `${view.flags(PCI_EXP_DEVCTL2, { TimeoutDis: 'COMP_TMOUT_DIS', LTR: 'LTR_EN', '10BitTagReq': '10BIT_TAG_REQ_EN' })} ` +
      `OBFF ${OBFF_ENABLED[view.get(PCI_EXP_DEVCTL2, 'OBFF')] ?? ''},${forwardingControl}`,
    ...(atomicControls.length === 0 ? [] : [`\t\t\t AtomicOpsCtl: ${atomicControls.join(' ')}`]),
  ];
}

/** Supported Link Speeds Vector: the fastest one counts, bit 0 is 2.5 GT/s. */
function supportedSpeeds(vector: number): string {
  if (vector === 0) return 'Unknown';
  const fastest = 32 - Math.clz32(vector);
  const name = LINK_SPEEDS[fastest];
  if (name === undefined) return 'RsvdP';
  return fastest === 1 ? '2.5GT/s' : `2.5-${name}GT/s`;
}

const TRANSMIT_MARGINS = [
  'Normal Operating Range',
  '800-1200mV(full-swing)/400-700mV(half-swing)',
  ...Array<string>(4).fill('200-400mV(full-swing)/100-200mV(half-swing)'),
];
const COMPLIANCE_PRESETS = [
  '-6dB de-emphasis, 0dB preshoot',
  '-3.5dB de-emphasis, 0dB preshoot',
  '-4.4dB de-emphasis, 0dB preshoot',
  '-2.5dB de-emphasis, 0dB preshoot',
  '0dB de-emphasis, 0dB preshoot',
  '0dB de-emphasis, 1.9dB preshoot',
  '0dB de-emphasis, 2.5dB preshoot',
  '-6.0dB de-emphasis, 3.5dB preshoot',
  '-3.5dB de-emphasis, 3.5dB preshoot',
  '0dB de-emphasis, 3.5dB preshoot',
];
const CROSSLINK_RESOLUTIONS = ['unsupported', 'Upstream Port', 'Downstream Port', 'incomplete'];

/** Downstream Component Presence; values that are not listed are reserved. */
const COMPONENT_PRESENCE: Readonly<Record<number, string>> = {
  0: 'Link Down - Not Determined',
  1: 'Link Down - Not Present',
  2: 'Link Down - Present',
  4: 'Link Up - Present',
  5: 'Link Up - Present and DRS Received',
};

function expressLink2(view: RegisterView, type: number, isFunctionZero: boolean): string[] {
  const lines: string[] = [];
  // The registers are reserved in the other functions of an endpoint: function 0 controls the link.
  const hasControl = isFunctionZero || (type !== ENDPOINT && type !== LEG_END);
  if (hasControl && view.u32(PCI_EXP_LNKCAP2.offset) !== 0) {
    const flags = view.flags(PCI_EXP_LNKCAP2, {
      Crosslink: 'CROSSLINK',
      Retimer: 'RETIMER',
      '2Retimers': 'TWO_RETIMERS',
      DRS: 'DRS',
    });
    lines.push(`\t\tLnkCap2: Supported Link Speeds: ${supportedSpeeds(view.get(PCI_EXP_LNKCAP2, 'SLS'))}, ${flags}`);
  }
  if (hasControl) {
    const target = view.get(PCI_EXP_LNKCTL2, 'TLS');
    const level = view.get(PCI_EXP_LNKCTL2, 'SELECTABLE_DEEMPHASIS') === 0 ? '-6dB' : '-3.5dB';
    lines.push(
      // Speed 0 is that of hardware older than the register.
      `\t\tLnkCtl2: Target Link Speed: ${target === 0 ? '2.5GT/s' : target > 6 ? 'Unknown' : speed(target)}, ` +
        view.flags(PCI_EXP_LNKCTL2, { EnterCompliance: 'ENTER_COMP', SpeedDis: 'HASD' }) +
        (type === DOWNSTREAM ? `, Selectable De-emphasis: ${level}` : ''),
      `\t\t\t Transmit Margin: ${TRANSMIT_MARGINS[view.get(PCI_EXP_LNKCTL2, 'TX_MARGIN')] ?? 'Unknown'}, ` +
        view.flags(PCI_EXP_LNKCTL2, { EnterModifiedCompliance: 'ENTER_MOD_COMP', ComplianceSOS: 'COMP_SOS' }),
      `\t\t\t Compliance Preset/De-emphasis: ` +
        (COMPLIANCE_PRESETS[view.get(PCI_EXP_LNKCTL2, 'COMP_PRESET')] ?? 'Unknown'),
    );
  }
  const reportsReadiness = SLOT_TYPES.includes(type) && view.get(PCI_EXP_LNKCAP2, 'DRS') !== 0;
  const current = view.get(PCI_EXP_LNKCTL2, 'CURRENT_DEEMPHASIS') === 0 ? '-6dB' : '-3.5dB';
  const phases = view.flags(PCI_EXP_LNKCTL2, {
    EqualizationPhase2: 'EQ_PHASE2',
    EqualizationPhase3: 'EQ_PHASE3',
    LinkEqualizationRequest: 'LINK_EQ_REQUEST',
  });
  lines.push(
    `\t\tLnkSta2: Current De-emphasis Level: ${current}, ` +
      view.flags(PCI_EXP_LNKCTL2, { EqualizationComplete: 'EQ_COMPLETE', EqualizationPhase1: 'EQ_PHASE1' }),
    `\t\t\t ${phases}`,
    `\t\t\t ${view.flags(PCI_EXP_LNKCTL2, { Retimer: 'RETIMER', '2Retimers': 'TWO_RETIMERS' })} ` +
      `CrosslinkRes: ${CROSSLINK_RESOLUTIONS[view.get(PCI_EXP_LNKCTL2, 'CROSSLINK')] ?? ''}` +
      (reportsReadiness ? `, ${view.flags(PCI_EXP_LNKCTL2, { DRS: 'DRS_RECEIVED' })}` : ''),
  );
  if (reportsReadiness) {
    const presence = COMPONENT_PRESENCE[view.get(PCI_EXP_LNKCTL2, 'COMPONENT_PRESENCE')] ?? 'Reserved';
    lines.push(`\t\t\t DownstreamComp: ${presence}`);
  }
  return lines;
}

const hasSlot = (view: RegisterView, type: number): boolean =>
  SLOT_TYPES.includes(type) && view.get(PCI_EXP_FLAGS, 'SLOT') !== 0;

const express: CapabilityDecoder = {
  lengthBytes(view) {
    const type = view.get(PCI_EXP_FLAGS, 'TYPE');
    const hasLink = !LINKLESS_TYPES.includes(type);
    if (view.get(PCI_EXP_FLAGS, 'VERS') >= 2) return hasLink ? 0x34 : 0x2c;
    if (ROOT_TYPES.includes(type)) return 0x24;
    if (hasSlot(view, type)) return 0x1c;
    return hasLink ? 0x14 : 0x0c;
  },
  lines(view, { isFunctionZero, hasMemoryRegion }) {
    const type = view.get(PCI_EXP_FLAGS, 'TYPE');
    const version = view.get(PCI_EXP_FLAGS, 'VERS');
    const hasLink = !LINKLESS_TYPES.includes(type);
    const slot = SLOT_TYPES.includes(type) ? ` (${view.flags(PCI_EXP_FLAGS, { Slot: 'SLOT' })})` : '';
    return [
      `Express (v${version}) ${EXPRESS_TYPE_NAMES[type] ?? `Unknown type ${type}`}${slot}, ` +
        `IntMsgNum ${view.get(PCI_EXP_FLAGS, 'IRQ')}`,
      ...expressDevice(view, type),
      ...(hasLink ? expressLink(view, type) : []),
      ...(hasSlot(view, type) ? expressSlot(view) : []),
      ...(ROOT_TYPES.includes(type) ? expressRoot(view) : []),
      ...(version >= 2 ? expressDevice2(view, type, hasMemoryRegion) : []),
      ...(version >= 2 && hasLink ? expressLink2(view, type, isFunctionZero) : []),
    ];
  },
};

const CAPABILITIES: Readonly<Record<number, CapabilityDecoder>> = {
  0x00: named('Null'),
  0x01: powerManagement,
  0x02: named('AGP <?>'),
  0x03: named('Vital Product Data <?>'),
  0x04: named('Slot ID <?>'),
  0x05: msi,
  0x06: named('CompactPCI hot-swap <?>'),
  0x07: named('PCI-X <?>'),
  0x08: named('HyperTransport <?>'),
  0x09: vendorSpecific,
  0x0a: named('Debug port <?>'),
  0x0b: named('CompactPCI central resource control <?>'),
  0x0c: named('Hot-plug capable'),
  [PCI_CAP_ID_SSVID]: subsystem,
  0x0e: named('AGP3 <?>'),
  0x0f: named('Secure device <?>'),
  [PCI_CAP_ID_EXP]: express,
  0x11: msix,
  0x12: named('SATA HBA <?>'),
  0x13: advancedFeatures,
  0x14: named('Enhanced Allocation (EA) <?>'),
};

// --- extended capabilities (PCIe 7.6 and on) ---

const advancedErrorReporting: CapabilityDecoder = {
  lengthBytes: () => PCI_ERR_ROOT_ERR_SRC.offset + 4,
  lines(view, { expressType }) {
    const uncorrectable = (offset: number): string =>
      view.flags(
        PCI_ERR_UNCOR_STATUS,
        {
          DLP: 'DLP',
          SDES: 'SURPDN',
          TLP: 'POISON_TLP',
          FCP: 'FCP',
          CmpltTO: 'COMP_TIME',
          CmpltAbrt: 'COMP_ABORT',
          UnxCmplt: 'UNX_COMP',
          RxOF: 'RX_OVER',
          MalfTLP: 'MALF_TLP',
          ECRC: 'ECRC',
          UnsupReq: 'UNSUP',
          ACSViol: 'ACSV',
        },
        offset,
      );
    const correctable = (offset: number): string =>
      view.flags(
        PCI_ERR_COR_STATUS,
        {
          RxErr: 'RCVR',
          BadTLP: 'BAD_TLP',
          BadDLLP: 'BAD_DLLP',
          Rollover: 'REP_ROLL',
          Timeout: 'REP_TIMER',
          AdvNonFatalErr: 'ADV_NFAT',
        },
        offset,
      );
    const ecrc = view.flags(PCI_ERR_CAP, {
      ECRCGenCap: 'ECRC_GENC',
      ECRCGenEn: 'ECRC_GENE',
      ECRCChkCap: 'ECRC_CHKC',
      ECRCChkEn: 'ECRC_CHKE',
    });
    const log = view.flags(PCI_ERR_CAP, {
      MultHdrRecCap: 'MULT_HDR_REC_CAP',
      MultHdrRecEn: 'MULT_HDR_REC_EN',
      TLPPfxPres: 'TLP_PREFIX_LOG',
      HdrLogCap: 'COMP_TIME_LOG',
    });
    const header = [0, 4, 8, 12].map((offset) => hex(view.u32(PCI_ERR_HEADER_LOG + offset), 8)).join(' ');
    return [
      'Advanced Error Reporting',
      `\t\tUESta:\t${uncorrectable(PCI_ERR_UNCOR_STATUS.offset)}`,
      `\t\tUEMsk:\t${uncorrectable(PCI_ERR_UNCOR_MASK)}`,
      `\t\tUESvrt:\t${uncorrectable(PCI_ERR_UNCOR_SEVER)}`,
      `\t\tCESta:\t${correctable(PCI_ERR_COR_STATUS.offset)}`,
      `\t\tCEMsk:\t${correctable(PCI_ERR_COR_MASK)}`,
      `\t\tAERCap:\tFirst Error Pointer: ${hex(view.get(PCI_ERR_CAP, 'FEP'), 2)}, ${ecrc}`,
      `\t\t\t${log}`,
      `\t\tHeaderLog: ${header}`,
      ...(expressType !== undefined && ROOT_TYPES.includes(expressType) ? rootErrors(view) : []),
    ];
  },
};

function rootErrors(view: RegisterView): string[] {
  const command = view.flags(PCI_ERR_ROOT_COMMAND, {
    CERptEn: 'COR_EN',
    NFERptEn: 'NONFATAL_EN',
    FERptEn: 'FATAL_EN',
  });
  const received = view.flags(PCI_ERR_ROOT_STATUS, {
    CERcvd: 'COR_RCV',
    MultCERcvd: 'MULTI_COR_RCV',
    UERcvd: 'UNCOR_RCV',
    MultUERcvd: 'MULTI_UNCOR_RCV',
  });
  const severity = view.flags(PCI_ERR_ROOT_STATUS, {
    FirstFatal: 'FIRST_FATAL',
    NonFatalMsg: 'NONFATAL_RCV',
    FatalMsg: 'FATAL_RCV',
  });
  return [
    `\t\tRootCmd: ${command}`,
    `\t\tRootSta: ${received}`,
    `\t\t\t ${severity} IntMsgNum ${view.get(PCI_ERR_ROOT_STATUS, 'AER_IRQ')}`,
    `\t\tErrorSrc: ERR_COR: ${hex(view.get(PCI_ERR_ROOT_ERR_SRC, 'COR'), 4)} ` +
      `ERR_FATAL/NONFATAL: ${hex(view.get(PCI_ERR_ROOT_ERR_SRC, 'UNCOR'), 4)}`,
  ];
}

const serialNumber: CapabilityDecoder = {
  lengthBytes: () => 12,
  lines: (view) => {
    const bytes = [11, 10, 9, 8, 7, 6, 5, 4].map((offset) => hex(view.u8(offset), 2));
    return [`Device Serial Number ${bytes.join('-')}`];
  },
};

const accessControl: CapabilityDecoder = {
  lengthBytes: () => 8,
  lines(view) {
    const flags = (value: number): string =>
      [
        `SrcValid${sign((value & PCI_ACS.SV) !== 0)}`,
        `TransBlk${sign((value & PCI_ACS.TB) !== 0)}`,
        `ReqRedir${sign((value & PCI_ACS.RR) !== 0)}`,
        `CmpltRedir${sign((value & PCI_ACS.CR) !== 0)}`,
        `UpstreamFwd${sign((value & PCI_ACS.UF) !== 0)}`,
        `EgressCtrl${sign((value & PCI_ACS.EC) !== 0)}`,
        `DirectTrans${sign((value & PCI_ACS.DT) !== 0)}`,
      ].join(' ');
    return [
      'Access Control Services',
      `\t\tACSCap:\t${flags(view.get(PCI_ACS_CAP, 'CAP'))}`,
      `\t\tACSCtl:\t${flags(view.get(PCI_ACS_CAP, 'CTRL'))}`,
    ];
  },
};

const alternativeRoutingId: CapabilityDecoder = {
  lengthBytes: () => 8,
  lines: (view) => [
    'Alternative Routing-ID Interpretation (ARI)',
    `\t\tARICap:\t${view.flags(PCI_ARI_CAP, { MFVC: 'MFVC', ACS: 'ACS' })}, ` +
      `Next Function: ${view.get(PCI_ARI_CAP, 'NFN')}`,
    `\t\tARICtl:\t${view.flags(PCI_ARI_CAP, { MFVC: 'CTRL_MFVC', ACS: 'CTRL_ACS' })}, ` +
      `Function Group: ${view.get(PCI_ARI_CAP, 'CTRL_FG')}`,
  ],
};

const addressTranslation: CapabilityDecoder = {
  lengthBytes: () => 8,
  lines: (view) => [
    'Address Translation Service (ATS)',
    `\t\tATSCap:\tInvalidate Queue Depth: ${hex(view.get(PCI_ATS_CAP, 'QDEP'), 2)}`,
    `\t\tATSCtl:\t${view.flags(PCI_ATS_CAP, { Enable: 'ENABLE' })}, ` +
      `Smallest Translation Unit: ${hex(view.get(PCI_ATS_CAP, 'STU'), 2)}`,
  ],
};

const singleRootIov: CapabilityDecoder = {
  lengthBytes: () => PCI_SRIOV_VFM.offset + 4,
  lines(view) {
    const control = view.flags(PCI_SRIOV_CTRL, {
      Enable: 'VFE',
      Migration: 'VFM',
      Interrupt: 'INTR',
      MSE: 'MSE',
      ARIHierarchy: 'ARI',
      '10BitTagReq': '10BIT_TAG_REQ_EN',
    });
    return [
      'Single Root I/O Virtualization (SR-IOV)',
      `\t\tIOVCap:\t${view.flags(PCI_SRIOV_CAP, { Migration: 'VFM', '10BitTagReq': '10BIT_TAG_REQ' })} ` +
        `IntMsgNum ${view.get(PCI_SRIOV_CAP, 'INTR')}`,
      `\t\tIOVCtl:\t${control}`,
      `\t\tIOVSta:\t${view.flags(PCI_SRIOV_CTRL, { Migration: 'STATUS_VFM' })}`,
      `\t\tInitial VFs: ${view.u16(PCI_SRIOV_INITIAL_VF)}, Total VFs: ${view.u16(PCI_SRIOV_TOTAL_VF)}, ` +
        `Number of VFs: ${view.u16(PCI_SRIOV_NUM_VF)}, ` +
        `Function Dependency Link: ${hex(view.u8(PCI_SRIOV_FUNC_LINK), 2)}`,
      `\t\tVF offset: ${view.u16(PCI_SRIOV_VF_OFFSET)}, stride: ${view.u16(PCI_SRIOV_VF_STRIDE)}, ` +
        `Device ID: ${hex(view.u16(PCI_SRIOV_VF_DID), 4)}`,
      `\t\tSupported Page Size: ${hex(view.u32(PCI_SRIOV_SUP_PGSIZE), 8)}, ` +
        `System Page Size: ${hex(view.u32(PCI_SRIOV_SYS_PGSIZE), 8)}`,
      ...virtualRegions(view),
      `\t\tVF Migration: offset: ${hex(view.get(PCI_SRIOV_VFM, 'OFFSET') * 8, 8)}, ` +
        `BIR: ${view.get(PCI_SRIOV_VFM, 'BIR')}`,
    ];
  },
};

/** BARs of the virtual functions: those of VF 0, each further one lies behind it. */
function virtualRegions(view: RegisterView): string[] {
  const lines: string[] = [];
  for (let index = 0; index < PCI_SRIOV_NUM_BARS; index++) {
    const read = view.u32(PCI_SRIOV_BAR + 4 * index);
    const bar = read === 0xffff_ffff ? 0 : read;
    if (bar === 0) continue;
    const isWide = is64Bit(bar);
    const upper = isWide && index + 1 < PCI_SRIOV_NUM_BARS ? hex(view.u32(PCI_SRIOV_BAR + 4 * index + 4), 8) : '';
    const address = upper + hex((bar & PCI_BASE_ADDRESS_MEM_MASK) >>> 0, 8);
    const prefetch = (bar & PCI_BASE_ADDRESS_MEM_PREFETCH) === 0 ? 'non-prefetchable' : 'prefetchable';
    lines.push(`\t\tRegion ${index}: Memory at ${address} (${isWide ? 64 : 32}-bit, ${prefetch})`);
    if (isWide) index++;
  }
  return lines;
}

const pageRequest: CapabilityDecoder = {
  lengthBytes: () => PCI_PRI_ALLOC_REQ + 4,
  lines: (view) => [
    'Page Request Interface (PRI)',
    `\t\tPRICtl: ${view.flags(PCI_PRI_CTRL, { Enable: 'ENABLE', Reset: 'RESET' })}`,
    `\t\tPRISta: ${view.flags(PCI_PRI_CTRL, { RF: 'STATUS_RF', UPRGI: 'STATUS_UPRGI', Stopped: 'STATUS_STOPPED', PASID: 'STATUS_PASID' })}`,
    `\t\tPage Request Capacity: ${hex(view.u32(PCI_PRI_MAX_REQ), 8)}, ` +
      `Page Request Allocation: ${hex(view.u32(PCI_PRI_ALLOC_REQ), 8)}`,
  ],
};

const processAddressSpaceId: CapabilityDecoder = {
  lengthBytes: () => 8,
  lines: (view) => [
    'Process Address Space ID (PASID)',
    `\t\tPASIDCap: ${view.flags(PCI_PASID_CAP, { Exec: 'EXEC', Priv: 'PRIV' })}, ` +
      `Max PASID Width: ${hex(view.get(PCI_PASID_CAP, 'WIDTH'), 2)}`,
    `\t\tPASIDCtl: ${view.flags(PCI_PASID_CAP, { Enable: 'CTRL_ENABLE', Exec: 'CTRL_EXEC', Priv: 'CTRL_PRIV' })}`,
  ],
};

/** Extended Vendor-Specific (PCIe 7.9.5): the word behind the header has ID, revision and length. */
const vendorSpecificExtended: CapabilityDecoder = {
  lengthBytes: () => 8,
  lines: (view) => {
    const word = view.u32(4);
    const id = hex(word & 0xffff, 4);
    return [`Vendor Specific Information: ID=${id} Rev=${(word >>> 16) & 0xf} Len=${hex(word >>> 20, 3)} <?>`];
  },
};

const EXTENDED_CAPABILITIES: Readonly<Record<number, CapabilityDecoder>> = {
  0x00: named('Null'),
  0x01: advancedErrorReporting,
  0x02: named('Virtual Channel <?>'),
  0x03: serialNumber,
  0x04: named('Power Budgeting <?>'),
  0x05: named('Root Complex Link <?>'),
  0x06: named('Root Complex Internal Link <?>'),
  0x07: named('Root Complex Event Collector Endpoint Association <?>'),
  0x08: named('Multi-Function Virtual Channel <?>'),
  0x09: named('Virtual Channel <?>'),
  0x0a: named('Root Complex Register Block <?>'),
  0x0b: vendorSpecificExtended,
  0x0d: accessControl,
  0x0e: alternativeRoutingId,
  0x0f: addressTranslation,
  0x10: singleRootIov,
  0x11: named('Multi-Root I/O Virtualization <?>'),
  0x12: named('Multicast <?>'),
  0x13: pageRequest,
  0x15: named('Physical Resizable BAR <?>'),
  0x16: named('Dynamic Power Allocation <?>'),
  0x17: named('Transaction Processing Hints <?>'),
  0x18: named('Latency Tolerance Reporting <?>'),
  0x19: named('Secondary PCI Express <?>'),
  0x1a: named('Protocol Multiplexing <?>'),
  0x1b: processAddressSpaceId,
  0x1c: named('LN Requester <?>'),
  0x1d: named('Downstream Port Containment <?>'),
  0x1e: named('L1 PM Substates <?>'),
  0x1f: named('Precision Time Measurement <?>'),
  0x20: named('PCI Express over M_PHY <?>'),
  0x21: named('FRS Queueing <?>'),
  0x22: named('Readiness Time Reporting <?>'),
  0x23: named('Designated Vendor-Specific <?>'),
  0x24: named('Virtual Resizable BAR <?>'),
  0x25: named('Data Link Feature <?>'),
  0x26: named('Physical Layer 16.0 GT/s <?>'),
  0x27: named('Lane Margining at the Receiver <?>'),
  0x28: named('Hierarchy ID <?>'),
  0x29: named('Native PCIe Enclosure Management <?>'),
  0x2e: named('Data Object Exchange <?>'),
};

// --- the lists ---

/** A capability of the conventional list. */
interface Capability {
  readonly view: RegisterView;
  readonly id: number;
}

/** What ended the conventional list, if not its last capability. */
interface CapabilityList {
  readonly capabilities: readonly Capability[];
  readonly end: string | undefined;
}

function walkCapabilities(config: Uint8Array): CapabilityList {
  const header = new RegisterView(config, 0);
  const capabilities: Capability[] = [];
  if (header.get(PCI_COMMAND_STATUS, 'CAP_LIST') === 0) return { capabilities, end: undefined };
  let at = header.u8(PCI_CAPABILITY_LIST) & ~3;
  while (at !== 0) {
    const view = new RegisterView(config, at);
    if (!view.has(4)) return { capabilities, end: ACCESS_DENIED };
    const place = `[${hex(at, 2)}]`;
    if (capabilities.some((seen) => seen.view.at === at)) return { capabilities, end: `${place} <chain looped>` };
    const id = view.u8(0);
    if (id === 0xff) return { capabilities, end: `${place} <chain broken>` };
    capabilities.push({ view, id });
    at = view.u8(1) & ~3;
  }
  return { capabilities, end: undefined };
}

/** The lines of one capability; `unknown` is what is printed for an ID without a decoder. */
function decode(
  decoder: CapabilityDecoder | undefined,
  view: RegisterView,
  context: CapabilityContext,
  place: string,
  unknown: string,
): string[] {
  const known = decoder ?? named(unknown);
  const [title = '', ...below] = view.has(known.lengthBytes(view)) ? known.lines(view, context) : [ACCESS_DENIED];
  return [`\tCapabilities: [${place}] ${title}`, ...below];
}

function conventionalCapabilities(list: CapabilityList, context: CapabilityContext): string[] {
  const lines = list.capabilities.flatMap(({ view, id }) => {
    const unknown = `Capability ID 0x${hex(id, 2)} [${hex(view.u16(2), 4)}]`;
    return decode(CAPABILITIES[id], view, context, hex(view.at, 2), unknown);
  });
  if (list.end !== undefined) lines.push(`\tCapabilities: ${list.end}`);
  return lines;
}

function extendedCapabilities(config: Uint8Array, context: CapabilityContext): string[] {
  const lines: string[] = [];
  const seen = new Set<number>();
  let at = PCI_EXT_CAP_START;
  while (at !== 0) {
    const view = new RegisterView(config, at);
    if (!view.has(4)) {
      if (at !== PCI_EXT_CAP_START) lines.push(`\tCapabilities: ${ACCESS_DENIED}`);
      break;
    }
    const header = view.u32(0);
    if (header === 0 || header === 0xffff_ffff) break;
    const place = `${hex(at, 3)} v${view.get(EXT_CAP_HEADER, 'VERSION')}`;
    if (seen.has(at)) {
      lines.push(`\tCapabilities: [${place}] <chain looped>`);
      break;
    }
    seen.add(at);
    const id = view.get(EXT_CAP_HEADER, 'ID');
    lines.push(
      ...decode(EXTENDED_CAPABILITIES[id], view, context, place, `Extended Capability ID 0x${id.toString(16)}`),
    );
    at = view.get(EXT_CAP_HEADER, 'NEXT') & ~3;
  }
  return lines;
}

function subsystemLine(view: RegisterView, isBridge: boolean, list: CapabilityList): string[] {
  const bridgeIds = list.capabilities.find(({ id }) => id === PCI_CAP_ID_SSVID)?.view;
  const ids = isBridge
    ? ([bridgeIds?.u16(PCI_SSVID_VENDOR_ID) ?? 0, bridgeIds?.u16(PCI_SSVID_DEVICE_ID) ?? 0] as const)
    : ([view.u16(PCI_SUBSYSTEM_VENDOR_ID), view.u16(PCI_SUBSYSTEM_ID)] as const);
  if (ids[0] === 0 || ids[0] === 0xffff) return [];
  return [`\tSubsystem: ${hex(ids[0], 4)}:${hex(ids[1], 4)}`];
}

/**
 * The text that `lspci -vvv` prints for a function, ending in a newline.
 *
 * Registers: PCIe 5.0 chapters 7, 9.3.3 and 10.5. Any bytes are accepted: what cannot be read is `<access denied>`, what
 * contradicts itself is marked `!!!` or as a broken chain. Numbers are as `lspci` prints them: addresses, offsets and IDs
 * hexadecimal without prefix, counts decimal.
 */
export function lspciText(fn: LspciFunction): string {
  const view = new RegisterView(fn.config, 0);
  const headerType = view.get(PCI_CACHE_LINE_SIZE, 'HEADER_TYPE');
  const isBridge = headerType === PCI_HEADER_TYPE_BRIDGE;
  const lines = [headLine(fn.bdf, view)];
  if (headerType > PCI_HEADER_TYPE_BRIDGE) {
    lines.push(`\t!!! Unknown header type ${hex(headerType, 2)}`);
    return `${lines.join('\n')}\n`;
  }
  const list = walkCapabilities(fn.config);
  const expressAt = list.capabilities.find(({ id }) => id === PCI_CAP_ID_EXP)?.view;
  const regions = regionsOf(fn, isBridge ? 2 : 6);
  const context: CapabilityContext = {
    vendor: view.u16(PCI_VENDOR_ID),
    device: view.u16(PCI_DEVICE_ID),
    isFunctionZero: fn.bdf.endsWith(':00.0'),
    hasMemoryRegion: regions.some(({ flags }) => !isIo(flags)),
    expressType: expressAt?.get(PCI_EXP_FLAGS, 'TYPE'),
  };
  lines.push(
    ...subsystemLine(view, isBridge, list),
    ...commandAndStatus(view),
    ...latency(view, isBridge),
    ...interrupt(view),
    ...(fn.iommuGroup === undefined ? [] : [`\tIOMMU group: ${fn.iommuGroup}`]),
    ...selfTest(view),
    ...regions.map((region) => regionLine(region, view)),
    ...(isBridge ? bridgeHeader(fn, view) : expansionRom(fn, view, PCI_ROM_ADDRESS)),
    ...conventionalCapabilities(list, context),
    ...(expressAt === undefined ? [] : extendedCapabilities(fn.config, context)),
    ...(fn.driver === undefined ? [] : [`\tKernel driver in use: ${fn.driver}`]),
  );
  return `${lines.join('\n')}\n`;
}
