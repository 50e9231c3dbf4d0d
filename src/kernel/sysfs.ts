/**
 * sysfs: the files through which user space learns about groups, reserved regions and PCI devices, and binds drivers.
 *
 * Texts are Linux's to the byte. A path is resolved anew on each open, so what is shown is what is there. Symbolic links
 * (`driver`, `iommu_group`) appear as the directories they lead to.
 *
 * Source: Linux drivers/iommu/iommu.c (reserved_regions, type), drivers/pci/pci-sysfs.c, Documentation/ABI/testing/
 * sysfs-bus-pci, sysfs-kernel-iommu_groups; domain.md B1, IF-1, IF-2.
 */
import { PCI_EXT_CAP_ID_SRIOV, PCI_SRIOV_NUM_VF, PCI_SRIOV_TOTAL_VF } from '../uapi/pci-regs.js';
import type { Task } from '../runtime/task.js';
import { EINVAL, EIO, ENODEV } from '../uapi/errno.js';
import type { Device } from './device.js';
import { modalias } from './module-aliases.js';
import { OpenFile, type SyscallContext } from './files.js';
import type { IommuGroup } from './iommu/group.js';
import type { IommuCore } from './iommu/iommu.js';
import { PAGE_BYTES } from './mm/mm.js';
import { PCI_STUB, VARIANT_VFIO_PCI, VFIO_PCI, type PciCore } from './pci/pci-core.js';
import type { VfioCore } from './vfio/vfio-core.js';

/** A directory, or a file with what reading and writing it does. */
export type SysfsNode =
  | { readonly kind: 'directory'; readonly entries: ReadonlyMap<string, () => SysfsNode> }
  | { readonly kind: 'file'; readonly read?: () => Uint8Array; readonly write?: (text: string) => Task<number> };

/** An opened sysfs file: the content is made at the first read. */
export class SysfsFile extends OpenFile {
  readonly #node: Extract<SysfsNode, { kind: 'file' }>;
  #content: Uint8Array | undefined;
  #position = 0;

  constructor(node: Extract<SysfsNode, { kind: 'file' }>) {
    super();
    this.#node = node;
  }

  override *read(_ctx: SyscallContext, lengthBytes: number): Task<Uint8Array | number> {
    if (this.#node.read === undefined) return -EIO;
    this.#content ??= this.#node.read();
    const bytes = this.#content.slice(this.#position, this.#position + lengthBytes);
    this.#position += bytes.length;
    return bytes;
  }

  override *pread(_ctx: SyscallContext, lengthBytes: number, offset: bigint): Task<Uint8Array | number> {
    if (this.#node.read === undefined) return -EIO;
    this.#content ??= this.#node.read();
    return this.#content.slice(Number(offset), Number(offset) + lengthBytes);
  }

  override *write(_ctx: SyscallContext, bytes: Uint8Array): Task<number> {
    if (this.#node.write === undefined) return -EIO;
    const rc = yield* this.#node.write(new TextDecoder().decode(bytes).trim());
    return rc < 0 ? rc : bytes.length;
  }
}

/** A file that can only be read. */
export function text(content: string): SysfsNode {
  return { kind: 'file', read: () => new TextEncoder().encode(content) };
}

function directory(entries: Readonly<Record<string, () => SysfsNode>>): SysfsNode {
  return { kind: 'directory', entries: new Map(Object.entries(entries)) };
}

function named<T>(items: readonly T[], name: (item: T) => string, node: (item: T) => SysfsNode): SysfsNode {
  return { kind: 'directory', entries: new Map(items.map((item) => [name(item), () => node(item)])) };
}

const EMPTY: SysfsNode = { kind: 'directory', entries: new Map() };
/** IORESOURCE_MEM and type bits of a 32-bit BAR, a 64-bit prefetchable one, as `resource` prints them. */
const RESOURCE_MEM32 = 0x40200;
const RESOURCE_MEM64_PREFETCH = 0x14220c;
/** Lines of `resource`: six BARs, the ROM, six of SR-IOV; of a bridge also its four windows. */
const RESOURCE_LINES = 13;
const BRIDGE_RESOURCE_LINES = 17;
const MEMORY_WINDOW = 14;
const PREFETCH_WINDOW = 15;

function hexText(value: number, digits: number): string {
  return `0x${value.toString(16).padStart(digits, '0')}\n`;
}

function resourceText(device: Device): string {
  const { function: fn } = device;
  const lines = Array.from({ length: fn.isBridge ? BRIDGE_RESOURCE_LINES : RESOURCE_LINES }, () => [0, 0, 0]);
  for (const bar of fn.bars) {
    const address = fn.barAddress(bar);
    if (address !== 0)
      lines[bar.index] = [address, address + bar.sizeBytes - 1, bar.is64 ? RESOURCE_MEM64_PREFETCH : RESOURCE_MEM32];
  }
  for (const { start, last, prefetchable } of fn.windows)
    lines[prefetchable ? PREFETCH_WINDOW : MEMORY_WINDOW] = [
      start,
      last,
      prefetchable ? RESOURCE_MEM64_PREFETCH : RESOURCE_MEM32,
    ];
  const hex = (value: number): string => `0x${value.toString(16).padStart(16, '0')}`;
  return lines.map((values) => `${values.map(hex).join(' ')}\n`).join('');
}

/** The tree of one host. */
export class Sysfs {
  readonly #iommu: IommuCore;
  readonly #pci: PciCore;
  readonly #vfio: VfioCore;

  constructor(iommu: IommuCore, pci: PciCore, vfio: VfioCore) {
    this.#iommu = iommu;
    this.#pci = pci;
    this.#vfio = vfio;
  }

  /** What is at an absolute path below /sys; undefined = ENOENT. */
  lookup(path: string): SysfsNode | undefined {
    let node: SysfsNode = this.#root();
    for (const name of path
      .split('/')
      .filter((part) => part !== '')
      .slice(1)) {
      if (node.kind !== 'directory') return undefined;
      const next: (() => SysfsNode) | undefined = node.entries.get(name);
      if (next === undefined) return undefined;
      node = next();
    }
    return node;
  }

  #root(): SysfsNode {
    return directory({
      kernel: () =>
        directory({
          iommu_groups: () =>
            named(
              this.#iommu.groups,
              (group) => String(group.id),
              (group) => this.#group(group),
            ),
        }),
      bus: () =>
        directory({
          pci: () =>
            directory({
              devices: () =>
                named(
                  this.#pci.devices,
                  (device) => device.name,
                  (device) => this.#device(device),
                ),
              drivers: () =>
                named(
                  this.#driverNames(),
                  (name) => name,
                  (name) => this.#driver(name),
                ),
              drivers_probe: () => ({
                kind: 'file',
                write: (name) => this.#withDevice(name, (device) => this.#probe(device)),
              }),
            }),
        }),
      class: () =>
        directory({
          iommu: () =>
            named(
              this.#iommu.drivers,
              (driver) => driver.name,
              (driver) => this.#iommuUnit(driver.name),
            ),
          'vfio-dev': () =>
            named(
              this.#vfio.devices,
              (vfio) => vfio.name,
              () => EMPTY,
            ),
        }),
    });
  }

  #group(group: IommuGroup): SysfsNode {
    return directory({
      devices: () =>
        named(
          group.devices,
          (device) => device.name,
          (device) => this.#device(device),
        ),
      reserved_regions: () => text(this.#iommu.reservedRegionsText(group)),
      type: () => text(`${this.#iommu.groupTypeText(group)}\n`),
    });
  }

  #iommuUnit(name: string): SysfsNode {
    const devices = this.#pci.devices.filter((device) => device.iommu === name);
    return directory({
      devices: () =>
        named(
          devices,
          (device) => device.name,
          (device) => this.#device(device),
        ),
    });
  }

  #device(device: Device): SysfsNode {
    const { function: fn, group, driver } = device;
    const vfio = this.#vfio.of(device);
    return directory({
      class: () => text(hexText(fn.configRead(0x08, 4) >>> 8, 6)),
      config: () => ({
        kind: 'file',
        read: () => Uint8Array.from({ length: fn.configBytes }, (_, i) => fn.configRead(i, 1)),
      }),
      device: () => text(hexText(fn.configRead(0x02, 2), 4)),
      driver_override: () => ({
        kind: 'file',
        read: () => new TextEncoder().encode(`${device.driverOverride ?? '(null)'}\n`),
        write: (name) => setOverride(device, name),
      }),
      ...(driver === undefined ? {} : { driver: () => this.#driver(driver) }),
      modalias: () => text(modalias(fn)),
      ...(group === undefined ? {} : { iommu_group: () => this.#group(group) }),
      resource: () => text(resourceText(device)),
      ...(fn.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV) === 0 ? {} : this.#sriov(device)),
      revision: () => text(hexText(fn.configRead(0x08, 1), 2)),
      vendor: () => text(hexText(fn.configRead(0x00, 2), 4)),
      ...(vfio === undefined
        ? {}
        : {
            'vfio-dev': () =>
              named(
                [vfio],
                (entry) => entry.name,
                () => EMPTY,
              ),
          }),
    });
  }

  #sriov(device: Device): Record<string, () => SysfsNode> {
    const { function: fn } = device;
    const at = fn.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    const count = (offset: number): string => `${fn.configRead(at + offset, 2)}\n`;
    return {
      sriov_numvfs: () => ({
        kind: 'file',
        read: () => new TextEncoder().encode(count(PCI_SRIOV_NUM_VF)),
        write: (value) =>
          /^\d+$/.test(value) ? this.#pci.setVirtualFunctions(device, Number(value)) : failWith(-EINVAL),
      }),
      sriov_totalvfs: () => text(count(PCI_SRIOV_TOTAL_VF)),
    };
  }

  #driverNames(): string[] {
    const bound = this.#pci.devices.flatMap((device) => (device.driver === undefined ? [] : [device.driver]));
    return [...new Set([VFIO_PCI, VARIANT_VFIO_PCI, PCI_STUB, ...bound])].sort();
  }

  #driver(name: string): SysfsNode {
    const bound = this.#pci.devices.filter((device) => device.driver === name);
    return directory({
      ...Object.fromEntries(bound.map((device) => [device.name, () => this.#device(device)])),
      bind: () => ({ kind: 'file', write: (bdf) => this.#withDevice(bdf, (device) => this.#bind(device, name)) }),
      unbind: () => ({
        kind: 'file',
        write: (bdf) =>
          this.#withDevice(bdf, (device) => (device.driver === name ? this.#pci.unbind(device) : failWith(-ENODEV))),
      }),
    });
  }

  /** `bind` accepts devices the driver would match: here, those whose driver_override names it or that had it at boot. */
  *#bind(device: Device, name: string): Task<number> {
    const matches = (device.driverOverride ?? device.function.description.driver) === name;
    return matches ? yield* this.#pci.bind(device, name) : -ENODEV;
  }

  /** `drivers_probe` says EINVAL whatever kept the driver from taking the device. */
  *#probe(device: Device): Task<number> {
    return (yield* this.#pci.probe(device)) < 0 ? -EINVAL : 0;
  }

  *#withDevice(bdf: string, act: (device: Device) => Task<number>): Task<number> {
    const device = this.#pci.device(bdf);
    return device === undefined ? -ENODEV : yield* act(device);
  }
}

function* failWith(rc: number): Task<number> {
  return rc;
}

function* setOverride(device: Device, name: string): Task<number> {
  if (name.length >= PAGE_BYTES - 1) return -EINVAL;
  device.driverOverride = name === '' ? undefined : name;
  return 0;
}
