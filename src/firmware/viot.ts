/** VIOT: the endpoints of virtio-iommus. Source: ACPI 6.5 5.2.35 (Virtual I/O Translation Table). */
import { AcpiTable } from './table.js';

const NODE = { PCI_RANGE: 1, VIRTIO_PCI: 3, VIRTIO_MMIO: 4 } as const;

/** Requester IDs that a virtio-iommu translates; endpoint ID = `firstEndpoint` + distance. */
export interface ViotRange {
  readonly firstSegment: number;
  readonly lastSegment: number;
  readonly firstId: number;
  readonly lastId: number;
  readonly firstEndpoint: number;
  /** The virtio-iommu: segment and requester ID of its function, or its register base. */
  readonly iommu: { readonly segment: number; readonly id: number } | { readonly base: bigint };
}

/** @throws FirmwareError */
export function parseViot(bytes: Uint8Array): ViotRange[] {
  const table = new AcpiTable('VIOT', bytes);
  const ranges: ViotRange[] = [];
  const start = table.u16(38);
  let left = table.u16(36);
  for (const [at] of table.structures(start, table.lengthBytes, (offset) => table.u16(offset + 2), 4)) {
    if (left-- <= 0) break;
    if (table.u8(at) !== NODE.PCI_RANGE) continue;
    const output = table.u16(at + 16);
    const type = table.u8(output);
    if (type !== NODE.VIRTIO_PCI && type !== NODE.VIRTIO_MMIO) throw table.error(at + 16, 'leads to no virtio-iommu');
    ranges.push({
      firstEndpoint: table.u32(at + 4),
      firstSegment: table.u16(at + 8),
      lastSegment: table.u16(at + 10),
      firstId: table.u16(at + 12),
      lastId: table.u16(at + 14),
      iommu:
        type === NODE.VIRTIO_PCI
          ? { segment: table.u16(output + 4), id: table.u16(output + 6) }
          : { base: table.u64(output + 8) },
    });
  }
  return ranges;
}
