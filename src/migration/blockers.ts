/**
 * What keeps a migration from starting: the guest, the way, its devices.
 *
 * Source: QEMU hw/vfio/migration.c (vfio_block_multiple_devices_migration, vfio_migration_realize); domain.md A3.9.
 */
import type { Task } from '../runtime/task.js';
import type { Guest } from '../vmm/guest.js';
import { DirtySources } from './dirty-sources.js';
import { attachedDevices, type AttachedDevice } from './moving-devices.js';
import { MigrationStopped, type MigrationRequest } from './request.js';

/** Where a device of the source goes. */
export function targetAddress(request: MigrationRequest, bdf: string): string {
  return request.devices?.get(bdf) ?? bdf;
}

/** All that is in the way, in the order in which it would be met. */
export function* findBlockers(guest: Guest, request: MigrationRequest): Task<MigrationStopped[]> {
  const { state, name } = guest;
  if (state !== 'running') return [new MigrationStopped('guest-not-running', `guest ${name} is ${state}`)];
  const found: MigrationStopped[] = [];
  const [from, to] = [guest.host.name, request.to.name];
  if (guest.host.lab.link(from, to) === undefined)
    found.push(new MigrationStopped('no-link', `no link from ${from} to ${to}`));
  if (request.attachedDevices !== 'unplug-first')
    found.push(...deviceBlockers(guest, request, yield* attachedDevices(guest)));
  return found;
}

/** What is attached, when nothing is in the way. @throws MigrationStopped the first blocker */
export function* checkBlockers(guest: Guest, request: MigrationRequest): Task<AttachedDevice[]> {
  const isIgnored = guest.runtime.faults.fires('vmm.blockers-ignored');
  const [first] = yield* findBlockers(guest, request);
  if (first !== undefined && (!isIgnored || first.reason === 'no-link' || first.reason === 'guest-not-running'))
    throw first;
  return yield* attachedDevices(guest);
}

function deviceBlockers(
  guest: Guest,
  request: MigrationRequest,
  attached: readonly AttachedDevice[],
): MigrationStopped[] {
  if (attached.length === 0) return [];
  const found: MigrationStopped[] = [];
  const names = (devices: readonly AttachedDevice[]): string => devices.map(({ vfio }) => vfio.bdf).join(', ');
  const policy = request.attachedDevices ?? 'migrate';
  if (policy === 'refuse')
    found.push(new MigrationStopped('device-attached', `VFIO device attached: ${names(attached)}`));
  if (policy === 'migrate') {
    const stuck = attached.filter(({ migration }) => migration === undefined);
    if (stuck.length > 0)
      found.push(new MigrationStopped('device-attached', `VFIO device without migration support: ${names(stuck)}`));
    const withoutP2p = attached.filter(({ migration }) => migration?.hasP2p === false);
    if (attached.length > 1 && withoutP2p.length > 0) {
      const why = `several devices, and without P2P support: ${names(withoutP2p)}`;
      found.push(new MigrationStopped('no-p2p', why));
    }
  }
  try {
    DirtySources.choose(guest, attached, request.dirtySource ?? 'auto');
  } catch (error) {
    if (!(error instanceof MigrationStopped)) throw error;
    found.push(error);
  }
  return found;
}
