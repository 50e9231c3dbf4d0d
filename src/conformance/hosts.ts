/**
 * Boots a recorded host and holds its IOMMU groups against those that the real kernel printed.
 *
 * The emulated kernel gets what the real one had: topology and configuration space, firmware tables, drivers that were bound, the
 * command line and its release. Compared, through sysfs: which devices share a group, each group's reserved_regions, and group
 * numbers where they follow from bus order. Where devices are grouped as drivers are bound (device tree, IORT and VIOT until
 * 6.14) the order of binding decides the numbers, which a snapshot does not tell.
 */
import { groupsAtBind } from '../kernel/iommu/flavours.js';
import { bootHost, type ShownGroup } from '../scenario/booted-host.js';
import { snapshotToHost } from '../scenario/snapshot.js';

/** What a snapshot file's `iommuGroups` says; undefined when the text is no snapshot. */
export function recordedGroups(snapshot: unknown): ShownGroup[] | undefined {
  if (typeof snapshot !== 'object' || snapshot === null) return undefined;
  const { iommuGroups } = snapshot as { iommuGroups?: unknown };
  if (typeof iommuGroups !== 'object' || iommuGroups === null) return undefined;
  return Object.entries(iommuGroups as Record<string, { devices: string[]; reserved_regions?: string }>).map(
    ([number, { devices, reserved_regions: regions = '' }]) => ({
      number: Number(number),
      // Platform devices have groups, too; there are none here.
      devices: devices.filter((name) => /^[0-9a-f]{4}:/.test(name)).sort(),
      regions: regions.trim(),
    }),
  );
}

/** Boots the host of a snapshot file and reads its groups. @throws InputError when the text is no snapshot */
export async function bootedGroups(
  file: string,
  text: string,
): Promise<{ readonly groups: readonly ShownGroup[]; readonly inBusOrder: boolean }> {
  const description = snapshotToHost(file, text, 'host');
  const { groups } = await bootHost(description);
  return { groups, inBusOrder: !description.iommus.some((iommu) => groupsAtBind(iommu, description)) };
}

/** Differences between what the real kernel printed and ours; none when they agree. */
export function compareGroups(
  expected: readonly ShownGroup[],
  found: readonly ShownGroup[],
  comparesNumbers: boolean,
): string[] {
  const differences: string[] = [];
  const keyOf = (group: ShownGroup): string => group.devices.join(' ');
  const byKey = new Map(found.map((group) => [keyOf(group), group]));
  for (const group of expected) {
    const ours = byKey.get(keyOf(group));
    byKey.delete(keyOf(group));
    if (ours === undefined) {
      const theirs = found.filter((other) => other.devices.some((bdf) => group.devices.includes(bdf)));
      const where = theirs.map((other) => `{${keyOf(other)}}`).join(' ');
      differences.push(
        `group ${group.number} {${keyOf(group)}}: ours ${where === '' ? 'has no group for them' : where}`,
      );
      continue;
    }
    if (comparesNumbers && ours.number !== group.number)
      differences.push(`group ${group.number} {${keyOf(group)}}: ours has number ${ours.number}`);
    if (ours.regions !== group.regions)
      differences.push(`group ${group.number} reserved_regions: expected\n${group.regions}\ngot\n${ours.regions}`);
  }
  for (const group of byKey.values()) {
    const isKnown = differences.some((text) => text.includes(`{${keyOf(group)}}`));
    if (!isKnown) differences.push(`ours has group ${group.number} {${keyOf(group)}} besides`);
  }
  return differences;
}

/** Judges one snapshot file's text. @throws InputError */
export async function judgeHost(file: string, text: string): Promise<string[]> {
  const { groups, inBusOrder } = await bootedGroups(file, text);
  return compareGroups(recordedGroups(JSON.parse(text)) ?? [], groups, inBusOrder);
}
