/**
 * What a kernel-only machine looks like between two steps, as plain data: address spaces, page tables, caches, pins.
 *
 * For people who look at a schedule afterwards: it changes nothing, marks nothing and keeps no reference. Lists are cut at
 * {@link MOST_ENTRIES} entries. The same walk knows what the kernel's objects are called, so that reports can speak of `ioas 1` and not
 * of a class.
 */
import { Ioas } from '../kernel/iommufd/ioas.js';
import { HwptPaging } from '../kernel/iommufd/hw-pagetable.js';
import type { IoptArea } from '../kernel/iommufd/area.js';
import { MockDomain } from '../kernel/iommufd/selftest/mock-domain.js';
import { ArmSmmuDomain } from '../kernel/iommu/arm-smmu-v3/domain.js';
import { VMSA_DESCRIPTOR } from '../hardware/smmu/records.js';
import { watching } from '../runtime/watch.js';
import type { KernelMachine } from './kernel-machine.js';
import type { AreaView, MachineView, PartView } from './view.js';

/** The most entries a list of a view has. */
export const MOST_ENTRIES = 256;

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

type TableRange = Extract<PartView, { kind: 'table' }>['ranges'][number];

/** Appends a leaf, as part of the range before it where that goes on. */
function appendLeaf(ranges: TableRange[], iova: number, pa: number, leaf: Omit<TableRange, 'iova' | 'pa'>): void {
  const before = ranges.at(-1);
  const goesOn =
    before !== undefined &&
    before.flags === leaf.flags &&
    before.dirty === leaf.dirty &&
    before.isUnreachable === leaf.isUnreachable &&
    Number(before.iova) + before.lengthBytes === iova &&
    Number(before.pa) + before.lengthBytes === pa;
  if (goesOn) ranges[ranges.length - 1] = { ...before, lengthBytes: before.lengthBytes + leaf.lengthBytes };
  else ranges.push({ iova: hex(iova), pa: hex(pa), ...leaf });
}

function smmuTable({ table, recordsDirty, stage }: ArmSmmuDomain): TableRange[] {
  const ranges: TableRange[] = [];
  const pageBytes = 2 ** table.granuleShift;
  for (const { firstPage, pageCount, paPage, descLo, descHi } of table.leaves()) {
    if (ranges.length >= MOST_ENTRIES) break;
    const get = (field: 'AP2' | 'DBM' | 'S2APWrite'): number => VMSA_DESCRIPTOR.get([descLo, descHi], field);
    const isClean = stage === 1 && get('AP2') !== 0;
    const writable = stage === 2 ? get('S2APWrite') !== 0 : !isClean || get('DBM') !== 0;
    const dirty = recordsDirty ? writable && !isClean : undefined;
    appendLeaf(ranges, firstPage * pageBytes, paPage * pageBytes, {
      lengthBytes: pageCount * pageBytes,
      flags: writable ? 'rw' : 'r',
      ...(dirty === undefined ? {} : { dirty }),
    });
  }
  return ranges;
}

/** All entries there are: one below a root that the table has outgrown is there, and no walk finds it. */
function mockTable(domain: MockDomain): TableRange[] {
  const ranges: TableRange[] = [];
  for (const { iova, pa, sizeBytes, isDirty } of domain.contents()) {
    if (ranges.length >= MOST_ENTRIES) break;
    appendLeaf(ranges, iova, pa, {
      lengthBytes: sizeBytes,
      flags: '',
      ...(domain.dirtyOps === undefined ? {} : { dirty: isDirty }),
      ...(domain.iova_to_phys(iova) === pa ? {} : { isUnreachable: true }),
    });
  }
  return ranges;
}

/** Looks at one machine, again and again. */
export class MachineViewer {
  readonly #machine: KernelMachine;
  /** What has no pages any more differs from what has none yet by having had some. */
  readonly #wereMapped = new WeakSet<IoptArea>();

  constructor(machine: KernelMachine) {
    this.#machine = machine;
  }

  /** How the machine looks now. `name` is told how objects that are there now are called. */
  look(name: (object: object, label: string) => void = () => undefined): MachineView {
    return watching(undefined, () => this.#look(name));
  }

  #look(name: (object: object, label: string) => void): MachineView {
    const machine = this.#machine;
    const view: Record<string, PartView> = {};
    const { smmu, ictx } = machine;
    for (const object of ictx.objects.objects()) {
      const label = `${object.type} ${object.id}`;
      name(object, label);
      if (object instanceof HwptPaging) this.#table(view, object, name);
      if (!(object instanceof Ioas)) continue;
      const { iopt, hwpts } = object;
      name(iopt, label);
      name(iopt.areas, label);
      // Those that are being made cannot be found by their numbers yet.
      for (const hwpt of hwpts) this.#table(view, hwpt, name);
      view[label] = {
        kind: 'ioas',
        areas: this.#areas(object, name),
        reserved: iopt.ranges.reserved.map(({ start, last }) => [hex(start), hex(last)] as const),
      };
    }
    if (smmu !== undefined) {
      const sorted = smmu.tlbContents().sort((a, b) => a.input - b.input || a.asid - b.asid);
      const entries = sorted.slice(0, MOST_ENTRIES);
      view['TLB'] = {
        kind: 'tlb',
        entries: entries.map(({ kind, asid, vmid, input, address, sizeBytes, clean }) => ({
          tag: kind === 'stage 2' ? `stage 2 VMID ${vmid}` : `${kind} ASID ${asid}${vmid > 0 ? ` VMID ${vmid}` : ''}`,
          iova: hex(input),
          pa: hex(address),
          lengthBytes: sizeBytes,
          clean,
        })),
      };
    }
    for (const fn of machine.functions) {
      if (!fn.isAtsEnabled) continue;
      view[`ATC of ${fn.bdf}`] = {
        kind: 'atc',
        entries: fn.atc.contents.map(({ first, last, pa, write }) => ({
          tag: write ? 'rw' : 'r',
          iova: hex(first),
          pa: hex(pa),
          lengthBytes: Number(last - first) + 1,
        })),
      };
    }
    const counts: Record<string, number> = { 'pinned pages': machine.pages.pinnedPages };
    for (const [process, { mm, user, files }] of machine.processes) {
      name(mm, `address space of ${process}`);
      name(files, `descriptors of ${process}`);
      name(user, `user ${user.uid}`);
      counts[`pinned_vm of ${process}`] = mm.pinnedVm;
      counts[`locked_vm of user ${user.uid}`] = user.lockedVm;
    }
    view['memory'] = { kind: 'counts', counts };
    return view;
  }

  #areas({ iopt, id }: Ioas, name: (object: object, label: string) => void): AreaView[] {
    const views: AreaView[] = [];
    for (const area of iopt.areas.overlapping()) {
      if (views.length >= MOST_ENTRIES) break;
      name(area, `area ${hex(area.iova)} of ioas ${id}`);
      if (area.pages !== undefined) {
        this.#wereMapped.add(area);
        name(area.pages, `pages of ${hex(area.iova)} of ioas ${id}`);
      }
      views.push({
        iova: hex(area.iova),
        lengthBytes: Number(area.lengthBytes),
        state: area.pages !== undefined ? 'mapped' : this.#wereMapped.has(area) ? 'going' : 'taken',
        pins: area.isFilled ? area.lastPage - area.firstPage + 1 : 0,
        accesses: area.numAccesses,
      });
    }
    return views;
  }

  #table(view: Record<string, PartView>, hwpt: HwptPaging, name: (object: object, label: string) => void): void {
    const label = `page table of hwpt ${hwpt.id}`;
    const { domain } = hwpt;
    name(hwpt, `${hwpt.type} ${hwpt.id}`);
    name(domain, label);
    if (domain instanceof ArmSmmuDomain) view[label] = { kind: 'table', ranges: smmuTable(domain) };
    if (domain instanceof MockDomain) view[label] = { kind: 'table', ranges: mockTable(domain) };
  }
}
