/**
 * What must hold of an iommufd when no call is at work in it: held against everything it keeps.
 *
 * Rules that single steps can break are watched where the steps are; this looks at the whole: what is reserved is what attached devices and
 * domains want (INV-6), nothing mapped or allowed is reserved (INV-7), every page that a table shows is pinned and is the one that
 * the area means (INV-4), pages are pinned exactly while somebody uses them (INV-3), numbers and lists agree with each
 * other (INV-16, objects). An address space whose locks are held is left out. What the histories of address spaces still owe is judged here.
 */
import type { InvariantLedger } from '../../runtime/invariants.js';
import { invariant } from '../../runtime/task.js';
import type { IommuGroup } from '../iommu/group.js';
import { IOMMU_NO_PASID } from './device.js';
import { IOVA_MAX } from './io-pagetable.js';
import { Ioas } from './ioas.js';
import type { IoptArea } from './area.js';
import type { IommufdContext } from './main.js';
import { PAGE_BYTES, PAGE_SIZE } from './pages.js';

/** Whether a physical page is pinned. */
type PinCount = (pfn: number) => number;

/** Pages of an area that are looked at in each domain: the first, and so many more evenly spread. */
const LOOKS_AT_AREA = 16;

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}

function rangeKey(start: bigint, last: bigint, owner: string): string {
  return `${hex(start)}-${hex(last)} of ${owner}`;
}

/** Everything in an address space that its devices and domains want reserved. */
function wantedReservations(ictx: IommufdContext, { iopt }: Ioas, groups: readonly IommuGroup[]): string[] {
  const ofDomains = iopt.domains.flatMap((domain) => [
    ...(domain.apertureStart === 0n ? [] : [rangeKey(0n, domain.apertureStart - 1n, 'a domain')]),
    ...(domain.apertureLast === IOVA_MAX ? [] : [rangeKey(domain.apertureLast + 1n, IOVA_MAX, 'a domain')]),
  ]);
  const ofDevices = groups.flatMap((group) => {
    const igroup = ictx.groups.find(group);
    const attachment = igroup?.attachments.get(IOMMU_NO_PASID);
    if (attachment?.hwpt.paging?.ioas.iopt !== iopt) return [];
    return attachment.devices.flatMap(({ device }) =>
      group
        .member(device)
        .resvRegions.filter(({ type }) => type !== 'direct-relaxable')
        .map(({ start, last }) => rangeKey(start, last, device.name)),
    );
  });
  return [...ofDomains, ...ofDevices].sort();
}

function ownerName(owner: object | undefined): string | undefined {
  if (owner === undefined) return undefined;
  return 'name' in owner && typeof owner.name === 'string' ? owner.name : 'a domain';
}

function auditRanges(ictx: IommufdContext, ioas: Ioas, ledger: InvariantLedger): void {
  const { reserved, allowed } = ioas.iopt.ranges;
  const found = reserved.flatMap(({ start, last, owner }) => {
    const name = ownerName(owner);
    return name === undefined ? [] : [rangeKey(start, last, name)];
  });
  const wanted = wantedReservations(ictx, ioas, ictx.groups.list());
  invariant(
    found.sort().join() === wanted.join(),
    () =>
      `ioas ${ioas.id} has reserved ${found.join(', ') || 'nothing'}; its devices and domains want ${wanted.join(', ') || 'nothing'}`,
    'INV-6',
  );
  for (const range of reserved) {
    const area = ioas.iopt.areas.firstOverlap(range.start, range.last);
    invariant(area === undefined, () => `ioas ${ioas.id}: area at ${hex(area?.iova ?? 0n)} is reserved`, 'INV-7');
    const hit = allowed.find(({ start, last }) => start <= range.last && last >= range.start);
    invariant(
      hit === undefined,
      () => `ioas ${ioas.id}: allowed range at ${hex(hit?.start ?? 0n)} is reserved`,
      'INV-7',
    );
  }
  ledger.held('INV-6');
  ledger.held('INV-7');
}

function auditArea({ id, iopt }: Ioas, area: IoptArea, pinCount: PinCount, ledger: InvariantLedger): void {
  const { pages } = area;
  const where = `ioas ${id}: area at ${hex(area.iova)}`;
  invariant(pages !== undefined, () => `${where} has no pages and nobody works on it`, 'objects');
  const isUsed = area.isFilled || area.numAccesses > 0;
  invariant(
    area.isFilled === iopt.domains.length > 0,
    () => `${where} is pinned for ${iopt.domains.length} domains`,
    'INV-3',
  );
  invariant(!isUsed || pages.source.isDmaBuf || pages.npinned > 0, () => `${where} is used and not pinned`, 'INV-3');
  ledger.held('INV-3');
  if (!area.isFilled || pages.isRevoked) return;
  const whole = Number((area.lengthBytes + PAGE_SIZE - 1n) / PAGE_SIZE);
  const step = BigInt(Math.max(1, Math.floor(whole / LOOKS_AT_AREA))) * PAGE_SIZE;
  for (const domain of iopt.domains) {
    for (let iova = area.iova; iova <= area.last; iova += step) {
      const byte = area.byteAt(iova);
      const page = Number(byte / PAGE_SIZE);
      const pfn = pages.runs(page, page)[0]?.pfn ?? -1;
      const pa = domain.iova_to_phys(Number(iova));
      const expected = pfn * PAGE_BYTES + Number(byte % PAGE_SIZE);
      invariant(pa === expected, () => `${where}: a table shows ${hex(BigInt(pa ?? 0))} at ${hex(iova)}`, 'INV-4');
      invariant(pages.source.isDmaBuf || pinCount(pfn) > 0, () => `${where}: page ${pfn} is not pinned`, 'INV-4');
      ledger.held('INV-4');
    }
  }
}

/** Holds an iommufd against the rules. @throws InvariantError for the first that is broken */
export function auditIommufd(ictx: IommufdContext, pinCount: PinCount, ledger: InvariantLedger): void {
  for (const [index, object] of ictx.objects.entries()) {
    invariant(object.id === index, () => `object ${object.id} is found by number ${index}`, 'INV-16');
    invariant(object.users >= 1 + object.shortTerm, () => `object ${index}: ${object.users} users`, 'objects');
    ledger.held('INV-16');
    if (!(object instanceof Ioas)) continue;
    const { iopt, hwpts } = object;
    iopt.judgeHistory();
    if (iopt.domainsRwsem.isHeld || iopt.iovaRwsem.isHeldForWrite || object.mutex.isHeld) continue;
    const domains = new Set(hwpts.map(({ domain }) => domain));
    const isListed = domains.size === hwpts.length && iopt.domains.every((domain) => domains.has(domain));
    invariant(
      isListed && iopt.domains.length === hwpts.length,
      () => `ioas ${index}: page tables and domains differ`,
      'objects',
    );
    ledger.held('objects');
    auditRanges(ictx, object, ledger);
    for (const area of iopt.areas.overlapping()) auditArea(object, area, pinCount, ledger);
  }
}
