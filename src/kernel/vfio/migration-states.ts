/**
 * The migration state machine of VFIO: which state comes next on the way from one to another. Pure.
 *
 * The paths are user-visible: a driver is called for each hop, and a request that fails half-way leaves the device in a state of its
 * path. Each entry is the first hop of the full machine; hops through states that a device does not have are skipped, so that its driver
 * sees one arc over them.
 *
 * Source: Linux include/uapi/linux/vfio.h (vfio_device_mig_state), drivers/vfio/vfio_main.c (vfio_mig_get_next_state); domain.md A2.4.
 */
import {
  VFIO_DEVICE_STATE_ERROR,
  VFIO_DEVICE_STATE_PRE_COPY,
  VFIO_DEVICE_STATE_PRE_COPY_P2P,
  VFIO_DEVICE_STATE_RESUMING,
  VFIO_DEVICE_STATE_RUNNING,
  VFIO_DEVICE_STATE_RUNNING_P2P,
  VFIO_DEVICE_STATE_STOP,
  VFIO_DEVICE_STATE_STOP_COPY,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
} from '../../uapi/vfio.js';

const [STOP, RUN, COPY, RES, RUN_P2P, PRE, PRE_P2P, ERROR] = [
  VFIO_DEVICE_STATE_STOP,
  VFIO_DEVICE_STATE_RUNNING,
  VFIO_DEVICE_STATE_STOP_COPY,
  VFIO_DEVICE_STATE_RESUMING,
  VFIO_DEVICE_STATE_RUNNING_P2P,
  VFIO_DEVICE_STATE_PRE_COPY,
  VFIO_DEVICE_STATE_PRE_COPY_P2P,
  VFIO_DEVICE_STATE_ERROR,
];

/** Columns of {@link FIRST_HOP}. */
const TO = [STOP, RUN, COPY, RES, RUN_P2P, PRE, PRE_P2P] as const;

/** First hop from a state (row) towards another (column of {@link TO}). */
const FIRST_HOP: ReadonlyMap<number, readonly number[]> = new Map([
  [STOP, [STOP, RUN_P2P, COPY, RES, RUN_P2P, RUN_P2P, RUN_P2P]],
  [RUN, [RUN_P2P, RUN, RUN_P2P, RUN_P2P, RUN_P2P, PRE, RUN_P2P]],
  [COPY, [STOP, STOP, COPY, STOP, STOP, ERROR, ERROR]],
  [RES, [STOP, STOP, STOP, RES, STOP, STOP, STOP]],
  [RUN_P2P, [STOP, RUN, STOP, STOP, RUN_P2P, RUN, PRE_P2P]],
  [PRE, [RUN, RUN, PRE_P2P, RUN, RUN, PRE, PRE_P2P]],
  [PRE_P2P, [RUN_P2P, RUN_P2P, COPY, RUN_P2P, RUN_P2P, PRE, PRE_P2P]],
]);

/** Capabilities that a device needs to have a state. */
const NEEDS: ReadonlyMap<number, number> = new Map([
  [STOP, VFIO_MIGRATION_STOP_COPY],
  [RUN, VFIO_MIGRATION_STOP_COPY],
  [COPY, VFIO_MIGRATION_STOP_COPY],
  [RES, VFIO_MIGRATION_STOP_COPY],
  [RUN_P2P, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P],
  [PRE, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY],
  [PRE_P2P, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY],
]);

function has(capabilities: number, state: number): boolean {
  const needed = NEEDS.get(state);
  return needed !== undefined && (capabilities & needed) === needed;
}

/**
 * The next state on the way from `from` to `to`; undefined (EINVAL) when there is no way: a state that the device does not have, ERROR at
 * either end, or pre-copy out of STOP_COPY. `capabilities` are VFIO_MIGRATION_* flags.
 */
export function vfio_mig_get_next_state(capabilities: number, from: number, to: number): number | undefined {
  if (!has(capabilities, from) || !has(capabilities, to)) return undefined;
  const column = TO.indexOf(to);
  let next: number = from;
  do {
    next = FIRST_HOP.get(next)?.[column] ?? ERROR;
    if (next === ERROR) return undefined;
  } while (!has(capabilities, next));
  return next;
}

const NAMES: ReadonlyMap<number, string> = new Map([
  [ERROR, 'ERROR'],
  [STOP, 'STOP'],
  [RUN, 'RUNNING'],
  [COPY, 'STOP_COPY'],
  [RES, 'RESUMING'],
  [RUN_P2P, 'RUNNING_P2P'],
  [PRE, 'PRE_COPY'],
  [PRE_P2P, 'PRE_COPY_P2P'],
]);

/** `RUNNING_P2P`: what a state is called. */
export function migrationStateName(state: number): string {
  return NAMES.get(state) ?? String(state);
}
