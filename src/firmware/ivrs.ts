/**
 * IVRS: AMD IOMMUs, the devices behind them, and memory that must be mapped or left alone.
 *
 * A machine has one hardware definition block (IVHD) per IOMMU in each of several formats; an operating system uses the
 * newest format it knows. Device IDs are requester IDs. Source: AMD I/O Virtualization Technology (IOMMU) Specification 5.2.
 */
import { AcpiTable } from './table.js';

const IVHD_TYPES = [0x10, 0x11, 0x40];
const IVMD = { ALL: 0x20, SELECT: 0x21, RANGE: 0x22 } as const;
/** Device entry types and the lengths their upper bits give. */
const ENTRY = {
  ALL: 1,
  SELECT: 2,
  RANGE_START: 3,
  RANGE_END: 4,
  ALIAS_SELECT: 0x42,
  ALIAS_RANGE: 0x43,
  EXT_SELECT: 0x46,
  EXT_RANGE: 0x47,
} as const;
const HID_ENTRY = 0xf0;
const MAX_DEVICE_ID = 0xffff;

/** Requester IDs, both ends included. */
export interface DeviceIdRange {
  readonly first: number;
  readonly last: number;
}

/** One IOMMU. */
export interface Ivhd {
  readonly type: number;
  /** Requester ID of the IOMMU's own PCI function. */
  readonly deviceId: number;
  readonly segment: number;
  readonly base: bigint;
  readonly devices: readonly DeviceIdRange[];
}

/** Memory for some devices: `unity` must be mapped 1:1, `exclusion` is not translated. */
export interface Ivmd extends DeviceIdRange {
  readonly start: bigint;
  readonly lengthBytes: bigint;
  readonly kind: 'unity' | 'exclusion';
}

/** The table. */
export interface Ivrs {
  readonly ivhds: readonly Ivhd[];
  readonly ivmds: readonly Ivmd[];
}

function devicesOf(table: AcpiTable, start: number, end: number): DeviceIdRange[] {
  const devices: DeviceIdRange[] = [];
  let rangeStart: number | undefined;
  const lengthOf = (at: number): number => {
    const type = table.u8(at);
    return type === HID_ENTRY ? 22 + table.u8(at + 21) : 4 << (type >> 6);
  };
  for (const [at] of table.structures(start, end, lengthOf)) {
    const id = table.u16(at + 1);
    switch (table.u8(at)) {
      case ENTRY.ALL:
        devices.push({ first: 0, last: MAX_DEVICE_ID });
        break;
      case ENTRY.SELECT:
      case ENTRY.ALIAS_SELECT:
      case ENTRY.EXT_SELECT:
        devices.push({ first: id, last: id });
        break;
      case ENTRY.RANGE_START:
      case ENTRY.ALIAS_RANGE:
      case ENTRY.EXT_RANGE:
        rangeStart = id;
        break;
      case ENTRY.RANGE_END:
        if (rangeStart !== undefined) devices.push({ first: rangeStart, last: id });
        rangeStart = undefined;
        break;
      default:
    }
  }
  return devices;
}

/** @throws FirmwareError */
export function parseIvrs(bytes: Uint8Array): Ivrs {
  const table = new AcpiTable('IVRS', bytes);
  const ivhds: Ivhd[] = [];
  const ivmds: Ivmd[] = [];
  for (const [at, end] of table.structures(48, table.lengthBytes, (offset) => table.u16(offset + 2), 4)) {
    const type = table.u8(at);
    if (IVHD_TYPES.includes(type)) {
      const devices = devicesOf(table, at + (type === 0x10 ? 24 : 40), end);
      ivhds.push({ type, deviceId: table.u16(at + 4), base: table.u64(at + 8), segment: table.u16(at + 16), devices });
    } else if (type === IVMD.ALL || type === IVMD.SELECT || type === IVMD.RANGE) {
      const id = table.u16(at + 4);
      const [first, last] =
        type === IVMD.ALL ? [0, MAX_DEVICE_ID] : [id, type === IVMD.SELECT ? id : table.u16(at + 6)];
      // Bit 3 is an exclusion range. One with nothing else is mapped 1:1 by Linux: some firmware means that (init_unity_map_range).
      const flags = table.u8(at + 1);
      const kind = (flags & 8) !== 0 && flags !== 8 ? 'exclusion' : 'unity';
      ivmds.push({ first, last, start: table.u64(at + 16), lengthBytes: table.u64(at + 24), kind });
    }
  }
  const newest = Math.max(0, ...ivhds.map((ivhd) => ivhd.type));
  return { ivhds: ivhds.filter((ivhd) => ivhd.type === newest), ivmds };
}
