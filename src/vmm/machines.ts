/**
 * Guest memory maps: where each VMM puts RAM and what else is fixed.
 *
 * A map is chosen once, when a VM starts, and cannot change while it lives; whether a host can serve passthrough DMA to
 * it is decided by comparing these addresses with the host's reserved regions. The rules are those of the VMMs
 * themselves (domain.md B3, A3.21-A3.23, RR-43), one function a machine.
 *
 * Invariants (test/property/guest-memory-maps.test.ts): RAM blocks are disjoint and sorted, no block touches a fixed
 * range, the blocks and the bytes hidden under overlays add up to the memory size, block offsets into the backing are
 * disjoint. An unaligned or impossible size is refused with MemoryMapError.
 */
import { alignUp, byStart, GIB, KIB, MIB, PAGE_BYTES, type Range } from './ranges.js';

/** Contiguous guest RAM. `offset`: first byte of it in the guest's RAM backing. */
export interface RamBlock extends Range {
  readonly name: string;
  readonly offset: bigint;
}

/** Guest-physical addresses that can never be RAM of this machine. */
export interface FixedRange extends Range {
  readonly name: string;
}

/** Where everything lies in a guest's physical address space. */
export interface GuestMemoryMap {
  readonly machine: MachineName;
  readonly memoryBytes: bigint;
  /** Sorted by start. */
  readonly ram: readonly RamBlock[];
  /** Sorted by start; may overlap each other (a window of a window), never RAM. */
  readonly fixed: readonly FixedRange[];
  /** Bytes of the backing no guest address reaches: they lie under an overlay such as the VGA window. */
  readonly hiddenBytes: bigint;
}

/** What besides the machine decides the map. */
export interface MachineOptions {
  readonly memoryBytes: bigint;
  /** Vendor of the vCPUs: `amd` moves RAM on x86 (domain.md A3.21). */
  readonly vcpuVendor?: 'intel' | 'amd';
  /** QEMU's machine class property; false for machine types 7.0 and older. True when not given. */
  readonly enforce_amd_1tb_hole?: boolean;
  /** QEMU's max-ram-below-4g (q35 and pc). */
  readonly maxRamBelow4gBytes?: bigint;
  /**
   * Size of the region for memory added later, on QEMU machines: maxmem less memory, and a GiB for each slot. It lies
   * between RAM and the 64-bit PCI hole, so it moves both. 0 when not given: added memory must find room elsewhere.
   */
  readonly hotplugMemoryBytes?: bigint;
  /** Number of vCPUs: GIC redistributors take space. 4 when not given. */
  readonly vcpus?: number;
  /** Physical address bits of the vCPU. 48 when not given. */
  readonly physicalAddressBits?: number;
}

/** A machine that cannot be built as asked. */
export class MemoryMapError extends Error {
  override readonly name = 'MemoryMapError';
}

/** A machine type of a VMM. */
export interface Machine {
  readonly title: string;
  readonly arch: 'arm64' | 'x86';
  /** Aborts when a reserved region of an assigned device's group overlaps RAM; kvmtool alone does (domain.md B3). */
  readonly abortsOnReservedOverlap: boolean;
  readonly layout: (options: Required<Pick<MachineOptions, 'vcpus'>> & MachineOptions) => Layout;
}

interface Layout {
  readonly ram: readonly Piece[];
  readonly fixed: readonly FixedRange[];
}

/** A piece of RAM before offsets are handed out; `hidden` pieces use backing but have no guest address. */
interface Piece {
  readonly name: string;
  readonly start: bigint;
  readonly bytes: bigint;
  readonly hidden?: true;
}

const FOUR_GIB = 4n * GIB;

function fixed(name: string, start: bigint, bytes: bigint): FixedRange {
  return { name, start, last: start + bytes - 1n };
}

/** Low RAM up to `lowBytes` at `base`, the rest at `highBase`. */
function split(
  base: bigint,
  lowBytes: bigint,
  highBase: bigint,
  total: bigint,
  names: readonly [string, string],
): Piece[] {
  if (total <= lowBytes) return [{ name: names[0], start: base, bytes: total }];
  return [
    { name: names[0], start: base, bytes: lowBytes },
    { name: names[1], start: highBase, bytes: total - lowBytes },
  ];
}

// QEMU aarch64 virt: hw/arm/virt.c base_memmap and virt_set_high_memmap (domain.md A3.22).
const VIRT_FIXED: readonly FixedRange[] = [
  fixed('flash', 0n, 0x08000000n),
  fixed('GICD', 0x08000000n, 0x10000n),
  fixed('GICv2m', 0x08020000n, 0x1000n),
  fixed('ITS', 0x08080000n, 0x20000n),
  fixed('GICR', 0x080a0000n, 0xf60000n),
  fixed('UART', 0x09000000n, 0x1000n),
  fixed('SMMU', 0x09050000n, 0x20000n),
  fixed('PCIe MMIO', 0x10000000n, 0x2eff0000n),
  fixed('ECAM', 0x3f000000n, 0x01000000n),
];

function qemuVirt({ memoryBytes, hotplugMemoryBytes }: MachineOptions): Layout {
  const ram = { name: 'mach-virt.ram', start: GIB, bytes: memoryBytes };
  // The high regions follow RAM, but never below 256 GiB; each is aligned to its own size.
  let base = alignUp(GIB + memoryBytes, GIB) + alignUp(hotplugMemoryBytes ?? 0n, GIB);
  if (base < 256n * GIB) base = 256n * GIB;
  const high = (
    [
      ['high GICR', 64n * MIB],
      ['high ECAM', 256n * MIB],
      ['high PCIe MMIO', 512n * GIB],
    ] as const
  ).map(([name, bytes]) => {
    const region = fixed(name, alignUp(base, bytes), bytes);
    base = region.last + 1n;
    return region;
  });
  return { ram: [ram], fixed: [...VIRT_FIXED, ...high] };
}

// cloud-hypervisor arch/src/aarch64/layout.rs; the GIC grows down from below the mapped devices (RR-43).
function cloudHypervisorArm({ memoryBytes, vcpus }: MachineOptions & { readonly vcpus: number }): Layout {
  const gicr = 0x08ff0000n - BigInt(vcpus) * 0x20000n;
  return {
    ram: split(GIB, 0xfc000000n - GIB, FOUR_GIB, memoryBytes, ['ram-low', 'ram-high']),
    fixed: [
      fixed('UEFI flash', 0n, 0x04000000n),
      fixed('ITS', gicr - 0x20000n, 0x20000n),
      fixed('GICR', gicr, BigInt(vcpus) * 0x20000n),
      fixed('GICD', 0x08ff0000n, 0x10000n),
      fixed('mapped devices', 0x09000000n, 0x07000000n),
      fixed('PCI devices', 0x10000000n, 0x20000000n),
      fixed('ECAM', 0x30000000n, 0x10000000n),
      fixed('reserved below 4 GiB', 0xfc000000n, 0x04000000n),
    ],
  };
}

function crosvmArm({ memoryBytes, vcpus }: MachineOptions & { readonly vcpus: number }): Layout {
  const ramEnd = 2n * GIB + memoryBytes;
  return {
    ram: [{ name: 'ram', start: 2n * GIB, bytes: memoryBytes }],
    fixed: [
      fixed('GICR', 0x3fff0000n - BigInt(vcpus) * 0x20000n, BigInt(vcpus) * 0x20000n),
      fixed('GICD', 0x3fff0000n, 0x10000n),
      fixed('ITS', 0x40000000n, 0x20000n),
      fixed('platform MMIO', ramEnd, GIB),
    ],
  };
}

// kvmtool arm/include/arm-common/kvm-arch.h.
function kvmtoolArm({ memoryBytes, vcpus }: MachineOptions & { readonly vcpus: number }): Layout {
  return {
    ram: [{ name: 'ram', start: 2n * GIB, bytes: memoryBytes }],
    fixed: [
      fixed('PCI I/O', 0n, 0x10000n),
      fixed('platform MMIO', 0x01000000n, 0x01000000n),
      fixed('flash', 0x02000000n, 0x01000000n),
      fixed('GICR', 0x3fff0000n - BigInt(vcpus) * 0x20000n, BigInt(vcpus) * 0x20000n),
      fixed('GICD', 0x3fff0000n, 0x10000n),
      fixed('PCI (AXI area)', 0x40000000n, 0x40000000n),
    ],
  };
}

const OPENVMM_LOW_END = 0xdc000000n;
const OPENVMM_FIXED: readonly FixedRange[] = [
  fixed('default root complex', OPENVMM_LOW_END, 64n * MIB),
  fixed('MMIO below 4 GiB', 0xe0000000n, 0x20000000n),
];

/** openvmm: RAM from `base`; what does not fit below the root complex is cut at a GiB and goes on at 4 GiB. */
function openvmmFrom(base: bigint, bytes: bigint): Piece[] {
  const room = OPENVMM_LOW_END - base;
  if (bytes <= room) return [{ name: `ram@${base.toString(16)}`, start: base, bytes }];
  const low = room - ((base + room) % GIB);
  return [
    { name: `ram@${base.toString(16)}`, start: base, bytes: low },
    { name: 'ram@100000000', start: FOUR_GIB, bytes: bytes - low },
  ];
}

function openvmmSplit(memoryBytes: bigint): Piece[] {
  const first = memoryBytes < 32n * MIB ? memoryBytes : 32n * MIB;
  const pieces: Piece[] = [{ name: 'ram@0', start: 0n, bytes: first }];
  return memoryBytes > first ? [...pieces, ...openvmmFrom(GIB, memoryBytes - first)] : pieces;
}

// QEMU x86: hw/i386/pc.c, pc_q35.c, pc_piix.c (domain.md A3.21, A3.23).
const AMD_HT_START = 0xfd00000000n;
const AMD_HT_LAST = 0xffffffffffn;
const AMD_ABOVE_1TB_START = 0x10000000000n;
const VGA_START = 0xa0000n;
const VGA_BYTES = 128n * KIB;
const IOAPIC_START = 0xfec00000n;

function q35LowBytes(total: bigint, max: bigint | undefined): bigint {
  const low = total >= 0xb0000000n ? 2n * GIB : 0xb0000000n;
  return max !== undefined && max < low ? max : low;
}

function pcLowBytes(total: bigint, max = 0xe0000000n): bigint {
  return total >= max && max > 3n * GIB ? 3n * GIB : max;
}

/** Where the 64-bit PCI hole starts: behind RAM and the region for added memory. */
function hole64Start(options: MachineOptions, highStart: bigint, aboveBytes: bigint): bigint {
  return alignUp(alignUp(highStart + aboveBytes, GIB) + (options.hotplugMemoryBytes ?? 0n), GIB);
}

/** Where RAM above 4 GiB starts: moved above the HyperTransport hole when the highest address would reach into it. */
function above4gStart(options: MachineOptions, aboveBytes: bigint, hole64Bytes: bigint): bigint {
  if (options.vcpuVendor !== 'amd' || options.enforce_amd_1tb_hole === false) return FOUR_GIB;
  const maxUsedGpa = hole64Start(options, FOUR_GIB, aboveBytes) + hole64Bytes - 1n;
  return maxUsedGpa >= AMD_HT_START ? AMD_ABOVE_1TB_START : FOUR_GIB;
}

function qemuPc(
  options: MachineOptions,
  lowBytes: bigint,
  hole64Bytes: bigint,
  mmioStart: bigint,
  chipset: readonly FixedRange[],
): Layout {
  const { memoryBytes } = options;
  if (lowBytes < MIB || lowBytes > IOAPIC_START)
    throw new MemoryMapError(`max-ram-below-4g of ${lowBytes} bytes is outside 1 MiB..0x${IOAPIC_START.toString(16)}`);
  const below = memoryBytes < lowBytes ? memoryBytes : lowBytes;
  const above = memoryBytes - below;
  const highStart = above4gStart(options, above, hole64Bytes);
  const vgaEnd = VGA_START + VGA_BYTES;
  const ram: Piece[] = [
    { name: 'ram-below-4g (conventional)', start: 0n, bytes: VGA_START },
    { name: 'under VGA', start: VGA_START, bytes: VGA_BYTES, hidden: true },
    { name: 'ram-below-4g', start: vgaEnd, bytes: below - vgaEnd },
  ];
  if (above > 0n) ram.push({ name: 'ram-above-4g', start: highStart, bytes: above });
  const holes: FixedRange[] = [
    fixed('VGA', VGA_START, VGA_BYTES),
    ...chipset,
    { name: 'PCI MMIO', start: below > mmioStart ? below : mmioStart, last: IOAPIC_START - 1n },
    fixed('IOAPIC, HPET, LAPIC, BIOS', IOAPIC_START, FOUR_GIB - IOAPIC_START),
    fixed('64-bit PCI hole', hole64Start(options, highStart, above), hole64Bytes),
  ];
  if (options.vcpuVendor === 'amd' && options.enforce_amd_1tb_hole !== false)
    holes.push({ name: 'HyperTransport', start: AMD_HT_START, last: AMD_HT_LAST });
  return { ram, fixed: holes };
}

function cloudHypervisorX86({ memoryBytes }: MachineOptions): Layout {
  return {
    ram: split(0n, 3n * GIB, FOUR_GIB, memoryBytes, ['ram-low', 'ram-high']),
    fixed: [
      fixed('32-bit devices', 0xc0000000n, 0x28000000n),
      fixed('MMCONFIG', 0xe8000000n, 0x10000000n),
      fixed('reserved below 4 GiB', 0xf8000000n, 0x08000000n),
    ],
  };
}

// crosvm x86_64/src/lib.rs: a gap of 768 MiB below 4 GiB, its last 128 MiB reserved, 64 MiB of PCIe configuration below.
function crosvmX86({ memoryBytes }: MachineOptions): Layout {
  return {
    ram: split(0n, FOUR_GIB - 768n * MIB, FOUR_GIB, memoryBytes, ['ram-low', 'ram-high']),
    fixed: [
      fixed('PCI MMIO', 0xd0000000n, 0x24000000n),
      fixed('PCIe configuration', 0xf4000000n, 0x04000000n),
      fixed('reserved below 4 GiB', 0xf8000000n, 0x08000000n),
    ],
  };
}

function arm(title: string, layout: Machine['layout'], abortsOnReservedOverlap = false): Machine {
  return { title, arch: 'arm64', abortsOnReservedOverlap, layout };
}

function x86(title: string, layout: Machine['layout']): Machine {
  return { title, arch: 'x86', abortsOnReservedOverlap: false, layout };
}

/** Every machine there is a map for, by the name scenario files use. */
export const MACHINES = {
  'qemu-virt': arm('QEMU aarch64 virt', qemuVirt),
  'cloud-hypervisor-arm64': arm('cloud-hypervisor arm64', cloudHypervisorArm),
  'crosvm-arm64': arm('crosvm arm64', crosvmArm),
  'kvmtool-arm64': arm('kvmtool arm64', kvmtoolArm, true),
  'openvmm-uefi': arm('openvmm arm64, UEFI boot', (options) => ({
    ram: openvmmFrom(0n, options.memoryBytes),
    fixed: OPENVMM_FIXED,
  })),
  'openvmm-linux': arm('openvmm arm64, Linux boot since #3559', (options) => ({
    ram: openvmmFrom(GIB, options.memoryBytes),
    fixed: OPENVMM_FIXED,
  })),
  'openvmm-uefi-split': arm('openvmm arm64, UEFI boot with #4372', (options) => ({
    ram: openvmmSplit(options.memoryBytes),
    fixed: OPENVMM_FIXED,
  })),
  'qemu-q35': x86('QEMU q35', (options) =>
    qemuPc(options, q35LowBytes(options.memoryBytes, options.maxRamBelow4gBytes), 32n * GIB, 0xc0000000n, [
      fixed('MMCONFIG', 0xb0000000n, 0x10000000n),
    ]),
  ),
  'qemu-pc': x86('QEMU pc (i440FX)', (options) =>
    qemuPc(options, pcLowBytes(options.memoryBytes, options.maxRamBelow4gBytes), 2n * GIB, 0xe0000000n, []),
  ),
  'cloud-hypervisor-x86': x86('cloud-hypervisor x86', cloudHypervisorX86),
  'crosvm-x86': x86('crosvm x86', crosvmX86),
} as const satisfies Record<string, Machine>;

export type MachineName = keyof typeof MACHINES;

/** A machine by its name. */
export function machineOf(name: MachineName): Machine {
  return MACHINES[name];
}

/** Smallest guest that every map here can describe: RAM must reach past the legacy 640 KiB and its VGA window. */
const MINIMUM_BYTES = 2n * MIB;

/**
 * The memory map of a machine.
 *
 * @throws MemoryMapError for a size that is not a multiple of 4 KiB, too small, or beyond the vCPU's address bits.
 */
export function guestMemoryMap(machine: MachineName, options: MachineOptions): GuestMemoryMap {
  const { memoryBytes } = options;
  if (memoryBytes % PAGE_BYTES !== 0n) throw new MemoryMapError(`memory of ${memoryBytes} bytes is not whole pages`);
  if (memoryBytes < MINIMUM_BYTES) throw new MemoryMapError(`memory of ${memoryBytes} bytes is too small`);
  const vcpus = options.vcpus ?? 4;
  const layout = machineOf(machine).layout({ ...options, vcpus });
  let offset = 0n;
  let hiddenBytes = 0n;
  const ram: RamBlock[] = [];
  for (const piece of layout.ram) {
    if (piece.hidden === true) hiddenBytes += piece.bytes;
    else ram.push({ name: piece.name, start: piece.start, last: piece.start + piece.bytes - 1n, offset });
    offset += piece.bytes;
  }
  const top = ram.at(-1)?.last ?? 0n;
  const bits = options.physicalAddressBits ?? 48;
  if (top >= 1n << BigInt(bits))
    throw new MemoryMapError(`RAM up to 0x${top.toString(16)}: phys-bits too low (${bits})`);
  return { machine, memoryBytes, ram, fixed: [...layout.fixed].sort(byStart), hiddenBytes };
}

/** The RAM block that holds a guest-physical address. */
export function ramBlockAt(map: GuestMemoryMap, gpa: bigint): RamBlock | undefined {
  return map.ram.find((block) => gpa >= block.start && gpa <= block.last);
}
