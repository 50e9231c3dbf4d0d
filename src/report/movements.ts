/**
 * A guest's movements, read out of the history: migrations with their phases and rounds, the time it spent where, and the
 * states its devices were in meanwhile.
 *
 * `migration.phase` says when a phase began; a phase lasts until the next begins, and `completed` and `failed` end the last
 * one: they are moments, not phases. A history without such events still has rounds, and what lies before, between and after
 * them is a phase as well: set-up, pre-copy, stop-copy, switchover.
 */
import type { TimelineEvent } from '../scenario/timeline.js';
import type { PageDeviceState, PageMigration, PagePhase, PageRound, PageStay } from './page/data.js';

interface Moving {
  readonly guest: string;
  readonly from: string;
  readonly to: string;
  readonly startNs: number;
  readonly begun: { readonly name: string; readonly startNs: number }[];
  readonly rounds: PageRound[];
}

function number(event: TimelineEvent, key: string): number {
  const value = event.data[key];
  return typeof value === 'number' ? value : 0;
}

function text(event: TimelineEvent, key: string): string {
  const value = event.data[key];
  return typeof value === 'string' ? value : '';
}

function roundOf(event: TimelineEvent): PageRound {
  const { timeNs, data } = event;
  const counted = (key: string): Record<string, number> => {
    const value = data[key];
    return typeof value === 'number' ? { [key]: value } : {};
  };
  return {
    ...{ startNs: timeNs - number(event, 'elapsedNs'), endNs: timeNs },
    ...{ pages: number(event, 'pages'), zeroPages: number(event, 'zeroPages'), bytes: number(event, 'wireBytes') },
    ...counted('dirtyPages'),
    ...counted('memoryPages'),
    ...counted('devicePages'),
    ...counted('deviceBytes'),
  };
}

/** What was dirty after a round went over in the next one, with what became dirty until the guest stopped. */
function withDirtyPages(rounds: readonly PageRound[], isCompleted: boolean): PageRound[] {
  return rounds.map((round, index) => {
    const dirtyPages = round.dirtyPages ?? rounds[index + 1]?.pages ?? (isCompleted ? 0 : undefined);
    return dirtyPages === undefined ? round : { ...round, dirtyPages };
  });
}

/** What `migration.phase` says of a migration that is over. */
const MOMENTS = new Set(['completed', 'failed']);

function phasesOf({ startNs, begun, rounds }: Moving, endNs: number, isCompleted: boolean): PagePhase[] {
  const starts = begun.length > 0 ? begun : guessedPhases(startNs, rounds, isCompleted);
  return starts
    .map((phase, index) => ({ ...phase, endNs: starts[index + 1]?.startNs ?? endNs }))
    .filter(({ name }) => !MOMENTS.has(name));
}

function guessedPhases(startNs: number, rounds: readonly PageRound[], isCompleted: boolean): Moving['begun'] {
  const [first] = rounds;
  const last = rounds.at(-1);
  const found = [{ name: 'setup', startNs }];
  if (first !== undefined) found.push({ name: 'precopy', startNs: first.startNs });
  if (last !== undefined && isCompleted) {
    found.push({ name: 'stop-copy', startNs: last.startNs }, { name: 'switchover', startNs: last.endNs });
  }
  return found;
}

function finished(moving: Moving, endNs: number, end?: TimelineEvent): PageMigration {
  const { guest, from, to, startNs, rounds } = moving;
  const outcome = end === undefined ? 'unfinished' : text(end, 'outcome');
  const reason = end === undefined ? '' : text(end, 'reason');
  const isCompleted = outcome === 'completed';
  return {
    ...{ guest, from, to, startNs, endNs, outcome },
    ...(reason === '' ? {} : { reason }),
    downtimeNs: end === undefined ? 0 : number(end, 'downtimeNs'),
    phases: phasesOf(moving, endNs, isCompleted),
    rounds: withDirtyPages(rounds, isCompleted),
  };
}

/** The migrations of a history, in the order they ended. `endNs` is when the run ended. */
export function migrationsOf(events: readonly TimelineEvent[], endNs: number): PageMigration[] {
  const moving = new Map<string, Moving>();
  const found: PageMigration[] = [];
  for (const event of events) {
    const guest = text(event, 'guest');
    const current = moving.get(guest);
    switch (event.kind) {
      case 'migration.start':
        moving.set(guest, {
          ...{ guest, from: text(event, 'from'), to: text(event, 'to'), startNs: event.timeNs },
          ...{ begun: [], rounds: [] },
        });
        break;
      case 'migration.phase':
        current?.begun.push({ name: text(event, 'phase'), startNs: event.timeNs });
        break;
      case 'migration.round':
        current?.rounds.push(roundOf(event));
        break;
      case 'migration.end':
        if (current !== undefined) found.push(finished(current, event.timeNs, event));
        moving.delete(guest);
        break;
    }
  }
  return [...found, ...[...moving.values()].map((current) => finished(current, endNs))];
}

/** Where guests were: from boot, over completed migrations, to the end of the guest or of the run. */
export function staysOf(events: readonly TimelineEvent[], endNs: number): PageStay[] {
  const current = new Map<string, { readonly host: string; readonly startNs: number }>();
  const found: PageStay[] = [];
  const leave = (guest: string, timeNs: number): void => {
    const stay = current.get(guest);
    if (stay !== undefined) found.push({ guest, ...stay, endNs: timeNs });
    current.delete(guest);
  };
  for (const event of events) {
    const guest = text(event, 'guest');
    const { kind, timeNs } = event;
    const hasMoved = kind === 'migration.end' && text(event, 'outcome') === 'completed';
    if (kind === 'vmm.boot' || kind === 'vmm.killed' || kind === 'vmm.off' || hasMoved) leave(guest, timeNs);
    if (kind === 'vmm.boot') current.set(guest, { host: text(event, 'host'), startNs: timeNs });
    if (hasMoved) current.set(guest, { host: text(event, 'to'), startNs: timeNs });
  }
  for (const guest of [...current.keys()]) leave(guest, endNs);
  return found;
}

/** Domains a device is in when its kernel has it back. */
const HOST_DOMAINS = new Set(['dma', 'identity']);

/**
 * States of devices, of those that changed theirs, while somebody had them open. A device is in the state it left since it was
 * opened; where the history does not say since when, that stretch is not made up.
 */
export function deviceStatesOf(events: readonly TimelineEvent[], endNs: number): PageDeviceState[] {
  interface Open {
    readonly host: string;
    readonly device: string;
    /** Absent until the device changes its state. */
    readonly state?: string;
    readonly startNs: number;
  }
  const opened = new Map<string, Open>();
  const found: PageDeviceState[] = [];
  const leave = ({ host, device, startNs }: Open, state: string | undefined, timeNs: number): void => {
    if (state !== undefined && startNs < timeNs) found.push({ host, device, state, startNs, endNs: timeNs });
  };
  for (const event of events) {
    const { kind, node: host, timeNs } = event;
    const device = text(event, 'device');
    const key = `${host} ${device}`;
    const current = opened.get(key);
    if (kind === 'vfio.bind') opened.set(key, { host, device, startNs: timeNs });
    if (kind === 'iommu.attach' && HOST_DOMAINS.has(text(event, 'domain')) && current !== undefined) {
      leave(current, current.state, timeNs);
      opened.delete(key);
    }
    // Given back, a device is reset, and what it says then is nobody's business.
    const isOwn = current !== undefined || !found.some((one) => one.host === host && one.device === device);
    if (kind === 'vfio.mig-state' && isOwn) {
      if (current !== undefined) leave(current, current.state ?? text(event, 'from'), timeNs);
      opened.set(key, { host, device, state: text(event, 'to'), startNs: timeNs });
    }
  }
  for (const current of opened.values()) leave(current, current.state, endNs);
  return found;
}
