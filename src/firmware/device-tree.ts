/**
 * Device-tree nodes as a snapshot has them: properties are strings of big-endian hexadecimal cells, or lists of names.
 *
 * Sources: Devicetree Specification 0.4; the kernel's bindings pci-iommu.txt, pci-msi.txt, of/address for `ranges`.
 */

/** Properties by name. */
export type DeviceTreeNode = Readonly<Record<string, string | readonly string[]>>;

const CELL_DIGITS = 8;

/** 32-bit cells of a property; empty without it. A last piece of a cell is dropped. */
export function cells(node: DeviceTreeNode, property: string): number[] {
  const text = node[property];
  if (typeof text !== 'string') return [];
  return Array.from({ length: Math.floor(text.length / CELL_DIGITS) }, (_, i) =>
    parseInt(text.slice(i * CELL_DIGITS, (i + 1) * CELL_DIGITS), 16),
  );
}

/** Two cells as a number of 64 bits. */
export function cells64(list: readonly number[], at: number): bigint {
  return (BigInt(list[at] ?? 0) << 32n) | BigInt(list[at + 1] ?? 0);
}

export function isCompatible(node: DeviceTreeNode, name: string): boolean {
  const compatible = node['compatible'] ?? [];
  return typeof compatible === 'string' ? compatible === name : compatible.includes(name);
}

/** First address of `reg`, with two address cells. */
export function regBase(node: DeviceTreeNode): bigint {
  return cells64(cells(node, 'reg'), 0);
}

/** One entry of `iommu-map` or `msi-map`: requester IDs, the phandle of the target, and the first ID there. */
export interface MapEntry {
  readonly firstRequesterId: number;
  readonly phandle: number;
  readonly firstId: number;
  readonly count: number;
}

export function idMap(node: DeviceTreeNode, property: 'iommu-map' | 'msi-map'): MapEntry[] {
  const list = cells(node, property);
  return Array.from({ length: Math.floor(list.length / 4) }, (_, i) => {
    const [firstRequesterId = 0, phandle = 0, firstId = 0, count = 0] = list.slice(4 * i, 4 * i + 4);
    return { firstRequesterId, phandle, firstId, count };
  });
}

/** One entry of a PCI node's `ranges` or `dma-ranges`: three cells of bus address, two of CPU address, two of size. */
export interface PciRange {
  readonly space: 'config' | 'io' | 'mem32' | 'mem64';
  readonly prefetchable: boolean;
  readonly bus: bigint;
  readonly cpu: bigint;
  readonly lengthBytes: bigint;
}

const SPACES = ['config', 'io', 'mem32', 'mem64'] as const;

export function pciRanges(node: DeviceTreeNode, property: 'ranges' | 'dma-ranges'): PciRange[] {
  const list = cells(node, property);
  return Array.from({ length: Math.floor(list.length / 7) }, (_, i) => {
    const at = 7 * i;
    const flags = list[at] ?? 0;
    return {
      space: SPACES[(flags >>> 24) & 3] ?? 'config',
      prefetchable: (flags & 0x4000_0000) !== 0,
      bus: cells64(list, at + 1),
      cpu: cells64(list, at + 3),
      lengthBytes: cells64(list, at + 5),
    };
  });
}
