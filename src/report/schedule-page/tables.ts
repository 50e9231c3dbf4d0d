/** Parts of a machine as rows of text, and what changed from one look to the next. */
import type { MachineView, PartView } from '../../host/view.js';
import { many } from '../../scenario/units.js';

export interface Row {
  readonly key: string;
  readonly cells: readonly string[];
}

export type RowChange = 'same' | 'added' | 'changed' | 'removed';

export interface DrawnRow extends Row {
  readonly change: RowChange;
  /** What a changed row said before. */
  readonly before?: readonly string[];
}

/** A part as it is drawn. */
export interface DrawnPart {
  readonly name: string;
  readonly columns: readonly string[];
  readonly rows: readonly DrawnRow[];
  readonly isChanged: boolean;
}

function rangeText(start: string, lengthBytes: number): string {
  return `${start}–0x${(BigInt(start) + BigInt(lengthBytes) - 1n).toString(16)}`;
}

const COLUMNS: Readonly<Record<PartView['kind'], readonly string[]>> = {
  ioas: ['area', 'state', 'pinned', 'accesses'],
  table: ['IOVA', 'to', 'access', 'dirty', ''],
  tlb: ['IOVA', 'to', 'tag', ''],
  atc: ['IOVA', 'to', 'access', ''],
  counts: ['count', 'pages'],
};

/** Whether a walk of a page table still says what a cache does. */
function isInTables(view: MachineView, iova: string, pa: string): boolean {
  const offset = BigInt(pa) - BigInt(iova);
  return Object.values(view).some(
    (part) =>
      part.kind === 'table' &&
      part.ranges.some(
        (range) =>
          range.isUnreachable !== true &&
          BigInt(range.iova) <= BigInt(iova) &&
          BigInt(iova) < BigInt(range.iova) + BigInt(range.lengthBytes) &&
          BigInt(range.pa) - BigInt(range.iova) === offset,
      ),
  );
}

function rowsOf(part: PartView | undefined, view: MachineView): Row[] {
  switch (part?.kind) {
    case undefined:
      return [];
    case 'ioas':
      return [
        ...part.areas.map(({ iova, lengthBytes, state, pins, accesses }) => ({
          key: `area ${iova}`,
          cells: [rangeText(iova, lengthBytes), state, pins === 0 ? '–' : many(pins, 'page'), String(accesses)],
        })),
        ...part.reserved.map(([start, last]) => ({
          key: `reserved ${start}`,
          cells: [`${start}–${last}`, 'reserved', '', ''],
        })),
      ];
    case 'table':
      return part.ranges.map(({ iova, pa, lengthBytes, flags, dirty, isUnreachable }) => ({
        key: iova,
        cells: [
          rangeText(iova, lengthBytes),
          pa,
          flags,
          dirty === undefined ? '' : dirty ? 'dirty' : 'clean',
          isUnreachable === true ? '⚠ unreachable from the root' : '',
        ],
      }));
    case 'tlb':
    case 'atc':
      return part.entries.map(({ iova, pa, tag, lengthBytes }) => ({
        key: `${tag} ${iova}`,
        cells: [rangeText(iova, lengthBytes), pa, tag, isInTables(view, iova, pa) ? '' : '⚠ no table says so'],
      }));
    case 'counts':
      return Object.entries(part.counts).map(([name, count]) => ({ key: name, cells: [name, String(count)] }));
  }
}

function drawnPart(name: string, before: MachineView, now: MachineView): DrawnPart {
  const kind = (now[name] ?? before[name])?.kind ?? 'counts';
  const old = new Map(rowsOf(before[name], before).map((row) => [row.key, row]));
  const rows: DrawnRow[] = rowsOf(now[name], now).map((row) => {
    const was = old.get(row.key);
    old.delete(row.key);
    if (was === undefined) return { ...row, change: 'added' };
    const isSame = was.cells.every((cell, i) => cell === row.cells[i]);
    return isSame ? { ...row, change: 'same' } : { ...row, change: 'changed', before: was.cells };
  });
  const gone: DrawnRow[] = [...old.values()].map((row) => ({ ...row, change: 'removed' }));
  const all = [...rows, ...gone];
  // A column that says nothing of any row is left out.
  const says = COLUMNS[kind].map((_, i) =>
    all.some(({ cells, before: was }) => cells[i] !== '' || (was?.[i] !== undefined && was[i] !== '')),
  );
  const told = <T>(cells: readonly T[]): T[] => cells.filter((_, i) => says[i] === true);
  const drawn = all.map((row) => ({
    ...row,
    cells: told(row.cells),
    ...(row.change === 'changed' ? { before: told(row.before ?? []) } : {}),
  }));
  return { name, columns: told(COLUMNS[kind]), rows: drawn, isChanged: all.some(({ change }) => change !== 'same') };
}

/** All parts of a machine, with what is different from before. */
export function drawnParts(before: MachineView, now: MachineView): DrawnPart[] {
  const order = Object.keys(COLUMNS);
  const place = (name: string): number => order.indexOf((now[name] ?? before[name])?.kind ?? '');
  const names = [...new Set([...Object.keys(now), ...Object.keys(before)])].sort((a, b) => place(a) - place(b));
  return names.map((name) => drawnPart(name, before, now));
}
