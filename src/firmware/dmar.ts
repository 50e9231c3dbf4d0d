/**
 * DMAR: VT-d units, the devices behind them, and reserved memory regions.
 *
 * A device scope names a device by a start bus and a path of (device, function) hops, so that bus numbers may be reassigned;
 * resolving it needs the PCI hierarchy, which the caller has. Source: Intel VT-d specification 8.1-8.4.
 */
import { AcpiTable } from './table.js';

const TYPE = { DRHD: 0, RMRR: 1 } as const;
const SCOPE = { ENDPOINT: 1, BRIDGE: 2 } as const;

/** A PCI device (or, with `isSubtree`, a bridge and everything below) as a path from a start bus. */
export interface DmarScope {
  readonly startBus: number;
  readonly path: readonly { readonly device: number; readonly fn: number }[];
  readonly isSubtree: boolean;
}

/** A remapping hardware unit. */
export interface Drhd {
  readonly segment: number;
  readonly base: bigint;
  /** Every device of the segment that no other unit has in its scope. */
  readonly includesAll: boolean;
  readonly scopes: readonly DmarScope[];
}

/** A reserved memory region and the devices that need it mapped. */
export interface Rmrr {
  readonly segment: number;
  readonly start: bigint;
  readonly last: bigint;
  readonly scopes: readonly DmarScope[];
}

/** The table. */
export interface Dmar {
  readonly interruptRemapping: boolean;
  readonly drhds: readonly Drhd[];
  readonly rmrrs: readonly Rmrr[];
}

function scopesOf(table: AcpiTable, start: number, end: number): DmarScope[] {
  const scopes: DmarScope[] = [];
  for (const [at, next] of table.structures(start, end, (offset) => table.u8(offset + 1), 6)) {
    const type = table.u8(at);
    if (type !== SCOPE.ENDPOINT && type !== SCOPE.BRIDGE) continue;
    const path = Array.from({ length: (next - at - 6) >> 1 }, (_, i) => ({
      device: table.u8(at + 6 + 2 * i),
      fn: table.u8(at + 7 + 2 * i),
    }));
    scopes.push({ startBus: table.u8(at + 5), path, isSubtree: type === SCOPE.BRIDGE });
  }
  return scopes;
}

/** @throws FirmwareError */
export function parseDmar(bytes: Uint8Array): Dmar {
  const table = new AcpiTable('DMAR', bytes);
  const drhds: Drhd[] = [];
  const rmrrs: Rmrr[] = [];
  for (const [at, end] of table.structures(48, table.lengthBytes, (offset) => table.u16(offset + 2), 4)) {
    const type = table.u16(at);
    if (type === TYPE.DRHD) {
      drhds.push({
        segment: table.u16(at + 6),
        base: table.u64(at + 8),
        includesAll: (table.u8(at + 4) & 1) !== 0,
        scopes: scopesOf(table, at + 16, end),
      });
    } else if (type === TYPE.RMRR) {
      const [segment, start, last] = [table.u16(at + 6), table.u64(at + 8), table.u64(at + 16)];
      rmrrs.push({ segment, start, last, scopes: scopesOf(table, at + 24, end) });
    }
  }
  return { interruptRemapping: (table.u8(37) & 1) !== 0, drhds, rmrrs };
}
