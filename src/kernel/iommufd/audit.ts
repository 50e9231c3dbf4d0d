/**
 * What must hold of an iommufd when no call is at work in it: held against everything it keeps.
 *
 * Rules that single steps can break are watched where the steps are; this looks at the whole: what is reserved is what attached devices and
 * domains want (INV-6), nothing mapped or allowed is reserved (INV-7), tables show what the areas mean, all of it, pinned, and nothing else but
 * doorbells (INV-4), groups have one owner and one domain (INV-8), pages are pinned exactly while somebody uses them (INV-3), numbers and lists agree with each
 * other (INV-16, objects). An address space whose locks are held is left out. What the histories of address spaces still owe is judged here.
 */
import type { InvariantLedger } from '../../runtime/invariants.js';
import { invariant, InvariantError } from '../../runtime/task.js';
import type { Device } from '../device.js';
import type { PagingDomain } from '../iommu/domain.js';
import { checkMembers, type IommuGroup } from '../iommu/group.js';
import type { PageExtent } from '../mm/page-allocator.js';
import { IOMMU_NO_PASID, IommufdDevice } from './device.js';
import { IOVA_MAX, type IoPageTable } from './io-pagetable.js';
import { Ioas } from './ioas.js';
import type { IoptArea } from './area.js';
import type { IommufdContext } from './main.js';
import { PAGE_BYTES, PAGE_SIZE } from './pages.js';

/** Number of the first page of a run that is not pinned. */
type FirstUnpinned = (extent: PageExtent) => number | undefined;

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

function auditArea({ id, iopt }: Ioas, area: IoptArea, ledger: InvariantLedger): void {
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
}

/** What every domain of an address space has to show: consecutive pages as one, ascending. */
interface Shown {
  readonly area: IoptArea;
  readonly iova: number;
  readonly pa: number;
  readonly lengthBytes: number;
}

function shownBy(iopt: IoPageTable, firstUnpinned: FirstUnpinned): Shown[] {
  const shown: Shown[] = [];
  for (const area of iopt.areas.overlapping()) {
    const { pages } = area;
    if (!area.isFilled || pages === undefined || pages.isRevoked) continue;
    let iova = Number(area.iova);
    const end = Number(area.last) + 1;
    let offset = Number(area.startByte % PAGE_SIZE);
    for (const { pfn, pages: count } of pages.runs(area.firstPage, area.lastPage)) {
      const unpinned = pages.source.isDmaBuf ? undefined : firstUnpinned({ pfn, pages: count });
      invariant(unpinned === undefined, () => `area at ${hex(area.iova)}: page ${unpinned} is not pinned`, 'INV-4');
      const lengthBytes = Math.min(count * PAGE_BYTES - offset, end - iova);
      shown.push({ area, iova, pa: pfn * PAGE_BYTES + offset, lengthBytes });
      iova += lengthBytes;
      offset = 0;
    }
  }
  return shown;
}

/** A domain's tables show what they should: every byte of it, and beside it doorbells only. */
function auditTables(ictx: IommufdContext, ioas: Ioas, domain: PagingDomain, wanted: readonly Shown[]): void {
  const wrong = (area: IoptArea, iova: number, pa: number): never => {
    const text = `ioas ${ioas.id}: area at ${hex(area.iova)}: a table shows ${hex(BigInt(pa))} at ${hex(BigInt(iova))}`;
    throw new InvariantError(text, 'INV-4');
  };
  let next = 0;
  let at = 0;
  for (const leaf of domain.leaves?.() ?? []) {
    let done = 0;
    while (done < leaf.lengthBytes) {
      const iova = leaf.iova + done;
      const pa = leaf.pa + done;
      const run = wanted[next];
      if (run === undefined || iova < run.iova + at) {
        const isDoorbell = ictx.swMsi.shows(iova, pa);
        invariant(
          isDoorbell,
          () => `ioas ${ioas.id}: a table shows ${hex(BigInt(pa))} at ${hex(BigInt(iova))}, where nothing is mapped`,
          'INV-4',
        );
        break;
      }
      if (iova > run.iova + at) wrong(run.area, run.iova + at, 0);
      if (pa !== run.pa + at) wrong(run.area, iova, pa);
      const bytes = Math.min(leaf.lengthBytes - done, run.lengthBytes - at);
      done += bytes;
      at += bytes;
      if (at < run.lengthBytes) continue;
      next++;
      at = 0;
    }
  }
  const missing = wanted[next];
  if (missing !== undefined && domain.leaves !== undefined) wrong(missing.area, missing.iova + at, 0);
}

/**
 * A group's devices are in the domain that this iommufd has attached, and nobody but it owns them: no driver of the kernel's uses their DMA.
 * A group that is just being bound, attached or given back is left out.
 */
function auditGroup(ictx: IommufdContext, group: IommuGroup, bound: number, ledger: InvariantLedger): void {
  const igroup = ictx.groups.find(group);
  if (igroup === undefined || bound === 0 || group.mutex.isHeld || igroup.lock.isHeld) return;
  const { owner, ownerCount, domain } = group;
  const attached = igroup.attachments.get(IOMMU_NO_PASID)?.hwpt.domain;
  invariant(
    owner === ictx && ownerCount >= bound && ownerCount <= igroup.users,
    () =>
      `iommu group ${group.id} has ${ownerCount} owners, of which ${owner === ictx ? igroup.users : 'none'} is user space that has bound ${bound} devices of it`,
    'INV-8',
  );
  invariant(
    attached === undefined || attached === domain,
    () => `iommu group ${group.id} is in another domain than what is attached`,
    'INV-8',
  );
  for (const [pasid, { hwpt }] of igroup.attachments)
    invariant(
      pasid === IOMMU_NO_PASID || group.pasids.get(pasid)?.domain === hwpt.domain,
      () => `PASID ${pasid} of iommu group ${group.id} is in another domain than what is attached`,
      'INV-8',
    );
  checkMembers(group);
  ledger.held('INV-8');
}

/**
 * Holds an iommufd against the rules. `isDmaDriven`: whether a driver of the kernel's uses a device's DMA.
 * @throws InvariantError for the first that is broken
 */
export function auditIommufd(
  ictx: IommufdContext,
  firstUnpinned: FirstUnpinned,
  ledger: InvariantLedger,
  isDmaDriven: (device: Device) => boolean = () => false,
): void {
  const bound = new Map<IommuGroup, number>();
  for (const [index, object] of ictx.objects.entries()) {
    invariant(object.id === index, () => `object ${object.id} is found by number ${index}`, 'INV-16');
    invariant(object.users >= 1 + object.shortTerm, () => `object ${index}: ${object.users} users`, 'objects');
    ledger.held('INV-16');
    if (object instanceof IommufdDevice) bound.set(object.igroup.group, (bound.get(object.igroup.group) ?? 0) + 1);
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
    for (const area of iopt.areas.overlapping()) auditArea(object, area, ledger);
    if (iopt.domains.length === 0) continue;
    const wanted = shownBy(iopt, firstUnpinned);
    for (const domain of iopt.domains) auditTables(ictx, object, domain, wanted);
    ledger.held('INV-4', iopt.domains.length);
  }
  for (const [group, devices] of bound) {
    auditGroup(ictx, group, devices, ledger);
    const driven = group.members.find(({ device }) => isDmaDriven(device))?.device;
    invariant(driven === undefined, () => `${driven?.name ?? ''} has a driver, and user space owns its group`, 'INV-8');
  }
}
