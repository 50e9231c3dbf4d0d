/**
 * VFIO_DEVICE_FEATURE: migration, its state, its size, DMA logging, and BARs as dma-bufs.
 *
 * `argsz` covers the header and the feature's struct; DMA logging's ranges and bitmap are user memory of their own. PROBE asks
 * whether GET or SET would be understood and touches nothing. The caller holds the device's lock.
 *
 * Source: Linux drivers/vfio/vfio_main.c (vfio_ioctl_device_feature and what it calls), include/linux/vfio.h (vfio_check_feature),
 * drivers/vfio/iova_bitmap.c; domain.md A2.3.
 */
import type { FieldSpecs, Struct, StructValue } from '../../layout/struct.js';
import type { Task } from '../../runtime/task.js';
import { E2BIG, EFAULT, EINVAL, EOVERFLOW, ENOTTY } from '../../uapi/errno.js';
import {
  VFIO_DEVICE_FEATURE_DMA_BUF,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  VFIO_DEVICE_FEATURE_MIGRATION,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  vfio_device_feature,
  vfio_device_feature_dma_buf,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_dma_logging_report,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
} from '../../uapi/vfio.js';
import type { SyscallContext } from '../files.js';
import type { VfioDmaBufs } from './dma-buf.js';
import type { VfioMigration } from './migration.js';

const { GET, SET, PROBE } = {
  GET: VFIO_DEVICE_FEATURE_GET,
  SET: VFIO_DEVICE_FEATURE_SET,
  PROBE: VFIO_DEVICE_FEATURE_PROBE,
};
/** LOG_MAX_RANGES: ranges that fit a page. */
const LOG_MAX_RANGES = 4096 / vfio_device_feature_dma_logging_range.sizeBytes;
/** Smallest page that a report may be in. */
const MIN_REPORT_PAGE = 4096n;
const U64_END = 1n << 64n;

/** A feature call: its flags, where its data is and how long that is. */
interface FeatureCall {
  readonly ctx: SyscallContext;
  readonly flags: number;
  readonly data: bigint;
  readonly dataBytes: number;
}

/** VFIO_DEVICE_FEATURE on a device: 0 or -errno; ENOTTY for features it does not have. */
export function* vfio_ioctl_device_feature(
  ctx: SyscallContext,
  migration: VfioMigration | undefined,
  dmaBufs: VfioDmaBufs,
  arg: bigint,
): Task<number> {
  const head = ctx.copy_from_user(arg, vfio_device_feature.sizeBytes);
  if (head === undefined) return -EFAULT;
  const { argsz, flags } = vfio_device_feature.decode(head);
  if (argsz < vfio_device_feature.sizeBytes) return -EINVAL;
  if ((flags & ~(VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE)) !== 0) return -EINVAL;
  if ((flags & PROBE) === 0 && (flags & SET) !== 0 && (flags & GET) !== 0) return -EINVAL;
  const call: FeatureCall = {
    ctx,
    flags,
    data: arg + BigInt(vfio_device_feature.sizeBytes),
    dataBytes: argsz - vfio_device_feature.sizeBytes,
  };
  if ((flags & VFIO_DEVICE_FEATURE_MASK) === VFIO_DEVICE_FEATURE_DMA_BUF)
    return check(call, GET, vfio_device_feature_dma_buf) ?? dmaBufs.get(ctx, call.data);
  if (migration === undefined) return -ENOTTY;
  switch (flags & VFIO_DEVICE_FEATURE_MASK) {
    case VFIO_DEVICE_FEATURE_MIGRATION:
      return featureMigration(call, migration);
    case VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
      return yield* featureState(call, migration);
    case VFIO_DEVICE_FEATURE_MIG_DATA_SIZE:
      return featureDataSize(call, migration);
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
      return featureLogStart(call, migration);
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
      return featureLogStop(call, migration);
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
      return featureLogReport(call, migration);
    default:
      return -ENOTTY;
  }
}

/** vfio_check_feature: undefined when the call goes on, else what it answers. */
function check({ flags, dataBytes }: FeatureCall, supported: number, struct: Struct<FieldSpecs>): number | undefined {
  if ((flags & (GET | SET) & ~supported) !== 0) return -EINVAL;
  if ((flags & PROBE) !== 0) return 0;
  if ((flags & (GET | SET)) === 0) return -EINVAL;
  return dataBytes < struct.sizeBytes ? -EINVAL : undefined;
}

function read<F extends FieldSpecs>({ ctx, data }: FeatureCall, struct: Struct<F>): StructValue<F> | undefined {
  const bytes = ctx.copy_from_user(data, struct.sizeBytes);
  return bytes === undefined ? undefined : struct.decode(bytes);
}

function write<F extends FieldSpecs>(
  { ctx, data }: FeatureCall,
  struct: Struct<F>,
  value: Partial<StructValue<F>>,
): number {
  return ctx.copy_to_user(data, struct.encode(value)) ? 0 : -EFAULT;
}

function featureMigration(call: FeatureCall, migration: VfioMigration): number {
  return (
    check(call, GET, vfio_device_feature_migration) ??
    write(call, vfio_device_feature_migration, { flags: BigInt(migration.flags) })
  );
}

function* featureState(call: FeatureCall, migration: VfioMigration): Task<number> {
  const struct = vfio_device_feature_mig_state;
  const answer = check(call, GET | SET, struct);
  if (answer !== undefined) return answer;
  const asked = read(call, struct);
  if (asked === undefined) return -EFAULT;
  if ((call.flags & GET) !== 0) return write(call, struct, { device_state: migration.state, data_fd: -1 });
  const { rc, file } = yield* migration.setState(asked.device_state);
  let data_fd = -1;
  if (file !== undefined) {
    data_fd = call.ctx.process.files.install(file);
    if (data_fd < 0) return data_fd;
  }
  const written = write(call, struct, { device_state: asked.device_state, data_fd });
  return written < 0 ? written : rc;
}

function featureDataSize(call: FeatureCall, migration: VfioMigration): number {
  return (
    check(call, GET, vfio_device_feature_mig_data_size) ??
    write(call, vfio_device_feature_mig_data_size, { stop_copy_length: BigInt(migration.stopCopyBytes()) })
  );
}

/** IOVAs to be logged, `last` included. */
interface LogRange {
  readonly start: bigint;
  readonly last: bigint;
}

function featureLogStart(call: FeatureCall, { unit }: VfioMigration): number {
  if (!unit.description.dmaLogging) return -ENOTTY;
  const struct = vfio_device_feature_dma_logging_control;
  const answer = check(call, SET, struct);
  if (answer !== undefined) return answer;
  const control = read(call, struct);
  if (control === undefined) return -EFAULT;
  if (control.num_ranges === 0) return -EINVAL;
  if (control.num_ranges > LOG_MAX_RANGES) return -E2BIG;
  const ranges: LogRange[] = [];
  for (let i = 0; i < control.num_ranges; i++) {
    const at = control.ranges + BigInt(i * vfio_device_feature_dma_logging_range.sizeBytes);
    const bytes = call.ctx.copy_from_user(at, vfio_device_feature_dma_logging_range.sizeBytes);
    if (bytes === undefined) return -EFAULT;
    const { iova, length } = vfio_device_feature_dma_logging_range.decode(bytes);
    if (!isAligned(iova, control.page_size) || !isAligned(length, control.page_size)) return -EINVAL;
    if (iova + length >= U64_END) return -EOVERFLOW;
    const range = { start: iova, last: iova + length - 1n };
    if (ranges.some((other) => other.start <= range.last && range.start <= other.last)) return -EINVAL;
    ranges.push(range);
  }
  if (unit.isLogging) return -EINVAL;
  const page_size = unit.logPageBytes(control.page_size);
  const isShort = call.ctx.runtime.faults.fires('vfio.log-range-short');
  unit.startLog(isShort ? shortened(ranges) : ranges, page_size);
  return write(call, struct, { ...control, page_size });
}

/**
 * What the tracker of a card is told where a length is taken for the difference of last and first, and the size of the tracked space for the
 * largest power of two in the sum of these lengths (mlx5 before "Fix range size calculation upon tracker creation").
 */
function shortened(ranges: readonly LogRange[]): LogRange[] {
  const total = ranges.reduce((sum, { start, last }) => sum + (last - start), 0n);
  let room = total === 0n ? 0n : 1n << BigInt(total.toString(2).length - 1);
  const covered: LogRange[] = [];
  for (const { start, last } of ranges) {
    const length = last - start < room ? last - start : room;
    room -= length;
    if (length > 0n) covered.push({ start, last: start + length - 1n });
  }
  return covered;
}

function featureLogStop(call: FeatureCall, { unit }: VfioMigration): number {
  if (!unit.description.dmaLogging) return -ENOTTY;
  if ((call.flags & (GET | SET) & ~SET) !== 0) return -EINVAL;
  if ((call.flags & PROBE) !== 0) return 0;
  if ((call.flags & SET) === 0) return -EINVAL;
  unit.stopLog();
  return 0;
}

/** Sets a bit of the caller's bitmap for each page that was written; the log forgets them. */
function featureLogReport(call: FeatureCall, { unit }: VfioMigration): number {
  if (!unit.description.dmaLogging) return -ENOTTY;
  const struct = vfio_device_feature_dma_logging_report;
  const answer = check(call, GET, struct);
  if (answer !== undefined) return answer;
  const report = read(call, struct);
  if (report === undefined) return -EFAULT;
  const { iova, length, page_size: page, bitmap } = report;
  if (page < MIN_REPORT_PAGE || (page & (page - 1n)) !== 0n) return -EINVAL;
  if (iova + length >= U64_END) return -EOVERFLOW;
  if (length === 0n || !unit.isLogging) return -EINVAL;
  const words = Number((length + page * 64n - 1n) / (page * 64n));
  const bits = call.ctx.copy_from_user(bitmap, words * 8);
  if (bits === undefined) return -EFAULT;
  const last = iova + length - 1n;
  for (const written of unit.takeLog({ start: iova, last })) {
    const from = written.start < iova ? iova : written.start;
    const to = written.last > last ? last : written.last;
    for (let bit = Number((from - iova) / page); bit <= Number((to - iova) / page); bit++)
      bits[bit >> 3] = (bits[bit >> 3] ?? 0) | (1 << (bit & 7));
  }
  return call.ctx.copy_to_user(bitmap, bits) ? 0 : -EFAULT;
}

function isAligned(value: bigint, page: bigint): boolean {
  return page === 0n ? value === 0n : (value & (page - 1n)) === 0n;
}
