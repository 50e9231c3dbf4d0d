/** Interrupt controllers that take messages, from the MADT (`APIC`). Source: ACPI 6.5 5.2.12.17, 5.2.12.18. */
import { AcpiTable } from './table.js';

const GIC_MSI_FRAME = 13;
const GIC_ITS = 15;

/** One controller. `id` is what IORT's ITS groups name. */
export interface MadtController {
  readonly kind: 'its' | 'gicv2m';
  readonly id: number;
  readonly base: bigint;
}

/** @throws FirmwareError */
export function parseMadt(bytes: Uint8Array): MadtController[] {
  const table = new AcpiTable('APIC', bytes);
  const found: MadtController[] = [];
  for (const [at] of table.structures(44, table.lengthBytes, (offset) => table.u8(offset + 1), 2)) {
    const type = table.u8(at);
    if (type !== GIC_ITS && type !== GIC_MSI_FRAME) continue;
    found.push({ kind: type === GIC_ITS ? 'its' : 'gicv2m', id: table.u32(at + 4), base: table.u64(at + 8) });
  }
  return found;
}
