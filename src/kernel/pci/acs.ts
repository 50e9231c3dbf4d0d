/**
 * Access Control Services as the kernel sees and sets them.
 *
 * The kernel asks whether a function keeps requests from being answered by peers: by its ACS registers, by what its type makes
 * impossible, or because a vendor vouched for it (the table below). It switches ACS on when an IOMMU's firmware description was
 * seen before the bus was scanned ({@link AcsPolicy}).
 *
 * Source: Linux drivers/pci/pci.c (pci_acs_enabled, pci_acs_path_enabled, pci_enable_acs), drivers/pci/quirks.c; PCIe 5.0 6.12.
 */
import type { HostDescription } from '../../hardware/description.js';
import { PCI_ACS, PCI_ACS_CAP, PCI_ACS_CTRL, PCI_EXP_TYPE, PCI_EXT_CAP_ID_ACS } from '../../uapi/pci-regs.js';
import { CommandLine, isAtLeast } from '../command-line.js';
import type { Device } from '../device.js';

const { SV, TB, RR, CR, UF, EC, DT } = PCI_ACS;
/** What makes a device isolated: it cannot spoof its ID, and its requests and completions go upstream (`REQ_ACS_FLAGS`). */
export const REQ_ACS_FLAGS = SV | RR | CR | UF;
const ENDPOINT_ISOLATION = SV | TB | RR | CR | UF | DT;

/** Functions without ACS registers that keep apart all the same: vendor, device IDs (all when not given), type, what they ensure. */
interface Vouched {
  readonly vendor: number;
  readonly devices?: readonly number[];
  readonly type?: number;
  readonly flags: number;
}

const INTEL = 0x8086;

/** Device IDs from `first` to `last`. */
function span(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

const VOUCHED: readonly Vouched[] = [
  { vendor: 0x1924, devices: [0x0903, 0x0923, 0x0a03], flags: ENDPOINT_ISOLATION },
  {
    vendor: INTEL,
    devices: [
      ...[0x10c6, 0x10db, 0x10dd, 0x10e1, 0x10f1, ...span(0x10f7, 0x10fc), 0x1507, 0x1514, 0x151c, 0x1529, 0x152a],
      ...[0x154d, 0x154f, 0x1551, 0x1558, 0x1509, ...span(0x150e, 0x1511), 0x1516, 0x1527],
      ...[0x10c9, ...span(0x10e6, 0x10e8), 0x150a, 0x150d, 0x1518, 0x1526, 0x10a7, 0x10a9, 0x10d6],
      ...[...span(0x1521, 0x1524), 0x105e, 0x105f, 0x1060, 0x10d9, 0x15b7, 0x15b8],
    ],
    flags: ENDPOINT_ISOLATION,
  },
  // Intel's integrated endpoints reach peers only by translated addresses (VT-d specification 3.16).
  { vendor: INTEL, type: PCI_EXP_TYPE.RC_END, flags: REQ_ACS_FLAGS },
  { vendor: 0x17cb, devices: [0x0400, 0x0401, 0x0111, 0x0115, 0x0120], flags: REQ_ACS_FLAGS },
  { vendor: 0x1dbf, devices: [0x0401], flags: REQ_ACS_FLAGS },
  { vendor: 0x19a2, devices: [0x0710], flags: ENDPOINT_ISOLATION },
  { vendor: 0x10df, devices: [0x0720], flags: ENDPOINT_ISOLATION },
  { vendor: 0x177d, devices: [0xa026, 0xa059, 0xa060], flags: ENDPOINT_ISOLATION },
  {
    vendor: 0x177d,
    devices: [...span(0xa000, 0xa7ff), 0xaf84, 0xb884],
    type: PCI_EXP_TYPE.ROOT_PORT,
    flags: REQ_ACS_FLAGS,
  },
  { vendor: 0x10e8, devices: [0xe004], flags: REQ_ACS_FLAGS },
  { vendor: 0x1def, devices: span(0xe005, 0xe00c), flags: REQ_ACS_FLAGS },
  { vendor: 0x14e4, devices: [0x16d7, ...span(0x1750, 0x1752), ...span(0x1760, 0x1763)], flags: ENDPOINT_ISOLATION },
  { vendor: 0x14e4, devices: [0xd714], flags: REQ_ACS_FLAGS },
  { vendor: 0x1c36, devices: [0x0031], type: PCI_EXP_TYPE.ROOT_PORT, flags: REQ_ACS_FLAGS },
  {
    vendor: 0x1957,
    devices: [
      ...[0x8d80, 0x8d81, 0x8d82, 0x8d83, 0x8d88, 0x8d89, 0x8d8a, 0x8d8b, 0x8d90, 0x8d91, 0x8d92, 0x8d93, 0x8d98],
      ...[0x8d99, 0x8d9a, 0x8d9b, 0x8da0, 0x8da1, 0x8da8, 0x8da9, 0x8db0, 0x8db1, 0x8db8, 0x8db9],
    ],
    flags: REQ_ACS_FLAGS,
  },
];

/** Device/port type, undefined for a conventional function. */
export function pci_pcie_type(device: Device): number | undefined {
  return device.function.expressType;
}

function vouchedFlags(device: Device): number | undefined {
  const { vendor, device: id } = device.function.description;
  const type = pci_pcie_type(device);
  return VOUCHED.find(
    (row) =>
      row.vendor === vendor && (row.devices?.includes(id) ?? true) && (row.type === undefined || row.type === type),
  )?.flags;
}

/** By the registers: what the capability leaves out is wired to "enabled", but for egress control. */
function pci_acs_flags_enabled(device: Device, flags: number): boolean {
  const capability = device.function.findExtendedCapability(PCI_EXT_CAP_ID_ACS);
  if (capability === 0) return false;
  const word = [device.function.configRead(capability + PCI_ACS_CAP.offset, 4)];
  const wanted = flags & (PCI_ACS_CAP.get(word, 'CAP') | EC);
  return (PCI_ACS_CAP.get(word, 'CTRL') & wanted) === wanted;
}

/** Whether a function has these controls, in effect. */
export function pci_acs_enabled(device: Device, flags: number): boolean {
  const vouched = vouchedFlags(device);
  if (vouched !== undefined) return (flags & ~vouched) === 0;
  switch (pci_pcie_type(device)) {
    case undefined:
    case PCI_EXP_TYPE.PCIE_BRIDGE:
    case PCI_EXP_TYPE.PCI_BRIDGE:
    case PCI_EXP_TYPE.RC_EC:
      return false;
    case PCI_EXP_TYPE.DOWNSTREAM:
    case PCI_EXP_TYPE.ROOT_PORT:
      return pci_acs_flags_enabled(device, flags);
    default:
      return !device.isMultifunction || pci_acs_flags_enabled(device, flags);
  }
}

/** Whether every function from here up to the root complex has these controls. */
export function pci_acs_path_enabled(start: Device, flags: number): boolean {
  for (let at: Device | undefined = start; at !== undefined; at = at.parent)
    if (!pci_acs_enabled(at, flags)) return false;
  return true;
}

/** When ACS is switched on, and where the command line takes it back. */
export class AcsPolicy {
  readonly #disableRedir: readonly string[];
  readonly #ignoresAts: boolean;
  /** `pci_request_acs` was called: functions that appear from now on get ACS. */
  isRequested: boolean;

  constructor(description: HostDescription) {
    const line = new CommandLine(description.commandLine ?? '');
    const options = line.get('pci')?.split(',') ?? [];
    const redir = options.find((option) => option.startsWith('disable_acs_redir='));
    this.#disableRedir = redir?.slice('disable_acs_redir='.length).split(';') ?? [];
    this.#ignoresAts = options.includes('noats');
    this.isRequested = description.iommus.length > 0 && isRequestedBeforeScan(description);
  }

  /** Sets a new function's control register (pci_enable_acs). */
  setUp(device: Device): void {
    const capability = device.function.findExtendedCapability(PCI_EXT_CAP_ID_ACS);
    if (capability === 0) return;
    const word = [device.function.configRead(capability + PCI_ACS_CAP.offset, 4)];
    let control = PCI_ACS_CAP.get(word, 'CTRL');
    if (this.isRequested) {
      const wanted = REQ_ACS_FLAGS | (this.#ignoresAts ? TB : 0);
      control |= PCI_ACS_CAP.get(word, 'CAP') & wanted;
    }
    if (this.#disableRedir.some((name) => isNamed(device, name))) control &= ~(RR | CR | EC);
    device.function.configWrite(capability + PCI_ACS_CTRL, 2, control);
  }
}

/** `pci:vendor:device` or `[segment:]bus:device.function`, as in pci_dev_str_match. */
function isNamed(device: Device, name: string): boolean {
  const { vendor, device: id } = device.function.description;
  if (!name.startsWith('pci:')) return device.name === name || device.name === `0000:${name}`;
  const [, wantedVendor = '0', wantedDevice = '0'] = name.split(':').map((part) => parseInt(part, 16).toString());
  return (
    (wantedVendor === '0' || Number(wantedVendor) === vendor) && (wantedDevice === '0' || Number(wantedDevice) === id)
  );
}

/**
 * ACPI tables are read before the bus is scanned. Of a device tree the kernel sees an IOMMU only when the first device is
 * configured for DMA; until 7.0 that was when a driver was bound.
 */
function isRequestedBeforeScan(description: HostDescription): boolean {
  const firmware = description.firmware ?? (description.arch === 'x86' ? 'acpi' : 'device-tree');
  return firmware === 'acpi' || isAtLeast(description.kernelRelease, 7, 0);
}
