/**
 * I/O address spaces and the ioctls that work on them: IOAS_ALLOC, ALLOW_IOVAS, IOVA_RANGES, MAP, MAP_FILE, COPY, UNMAP,
 * OPTION.
 *
 * Checks come in the kernel's order, because a call with two mistakes must report the same one. User addresses are compared
 * with ULONG_MAX as a 64-bit kernel does.
 *
 * Source: Linux drivers/iommu/iommufd/ioas.c; domain.md A1.2 to A1.9.
 */
import { Mutex, type Holdable } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { EBUSY, EFAULT, EINVAL, EMSGSIZE, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM } from '../../uapi/errno.js';
import {
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_OPTION_HUGE_PAGES,
  IOMMU_OPTION_OP_GET,
  IOMMU_OPTION_OP_SET,
  IOMMU_OPTION_RLIMIT_MODE,
  iommu_iova_range,
  type iommu_ioas_alloc,
  type iommu_ioas_allow_iovas,
  type iommu_ioas_change_process,
  type iommu_ioas_copy,
  type iommu_ioas_iova_ranges,
  type iommu_ioas_map,
  type iommu_ioas_map_file,
  type iommu_ioas_unmap,
  type iommu_option,
} from '../../uapi/iommufd.js';
import type { Struct } from '../../layout/struct.js';
import { DmaBufFile } from '../dma-buf.js';
import { withFile, type OpenFile } from '../files.js';
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.js';
import type { UserCommand } from './command.js';
import type { HwptPaging } from './hw-pagetable.js';
import { dereference } from './instruments.js';
import { IOVA_MAX, IoPageTable, type PagesSlice } from './io-pagetable.js';
import { IntervalList, type Range } from './interval-list.js';
import type { Process } from '../mm/process.js';
import type { IommufdContext } from './main.js';
import { IommufdObject } from './object.js';
import { dmaBufPages, filePages, pinAccount, userPages } from './page-source.js';
import { IoptPages, NO_ACCOUNT, PAGE_SIZE, type PageSource } from './pages.js';

/** The fields of a declared struct. */
export type Fields<S> = S extends Struct<infer F> ? F : never;
/** A command whose argument is the struct `S`. */
export type CommandOf<S> = UserCommand<Fields<S>>;

/** `struct iommufd_ioas` */
export class Ioas extends IommufdObject {
  override readonly type = 'ioas';
  readonly ictx: IommufdContext;
  readonly iopt: IoPageTable;
  /** Covers {@link hwpts}; taken before the table's semaphores. */
  readonly mutex = new Mutex('iommufd:ioas_mutex');
  readonly hwpts: HwptPaging[] = [];

  constructor(ictx: IommufdContext, iopt: IoPageTable) {
    super();
    this.ictx = ictx;
    this.iopt = iopt;
  }

  /** A page table is filled. Hold {@link mutex}. */
  addHwpt(hwpt: HwptPaging): void {
    invariant(this.mutex.isHeld, 'ioas: a page table is added without the mutex');
    invariant(
      !this.hwpts.includes(hwpt),
      () => `page table ${hwpt.id} is on the list of its address space twice`,
      'objects',
    );
    this.hwpts.push(hwpt);
  }

  /** A page table goes. Hold {@link mutex}. */
  removeHwpt(hwpt: HwptPaging): void {
    const index = this.hwpts.indexOf(hwpt);
    invariant(index >= 0, () => `page table ${hwpt.id} is not on the list of its address space`, 'objects');
    this.hwpts.splice(index, 1);
  }

  override get locks(): readonly Holdable[] {
    return [this.mutex, this.iopt.domainsRwsem, this.iopt.iovaRwsem];
  }

  override *destroy(): Task<void> {
    if (this.ictx.vfioIoas === this) this.ictx.vfioIoas = undefined;
    const { rc } = yield* this.iopt.unmap_iova_range(0n, IOVA_MAX);
    invariant(rc === 0, 'iommufd: a destroyed IOAS could not be unmapped');
    this.iopt.destroy();
  }
}

function isIoas(object: IommufdObject): object is Ioas {
  return object instanceof Ioas;
}

/** `iommufd_ioas_alloc`: a new address space with its number, not to be found yet; -ENOMEM. */
export function newIoas(ictx: IommufdContext): Ioas | number {
  const iopt = IoPageTable.create(ictx.arena, ictx.instruments);
  if (typeof iopt === 'number') return iopt;
  const ioas = new Ioas(ictx, iopt);
  const allocated = ictx.objects.alloc(ioas);
  if (allocated === 0) return ioas;
  iopt.destroy();
  return allocated;
}

/** The address space with this number, to be given back with `objects.put`. */
export function getIoas(ictx: IommufdContext, id: number): Ioas | undefined {
  return ictx.objects.get(id, isIoas);
}

/** Runs `body` with an address space, -ENOENT when there is none. */
function* withIoas<T>(ictx: IommufdContext, id: number, body: (ioas: Ioas) => Task<T>): Task<T | number> {
  const ioas = getIoas(ictx, id);
  if (ioas === undefined) return -ENOENT;
  yield 'iommufd:object-found';
  try {
    return yield* body(ioas);
  } finally {
    ictx.objects.put(ioas);
  }
}

/** IOMMU_IOAS_ALLOC */
export function* ioasAlloc(ucmd: CommandOf<typeof iommu_ioas_alloc>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.flags !== 0) return -EOPNOTSUPP;
  const ioas = newIoas(ictx);
  if (typeof ioas === 'number') return ioas;
  cmd.out_ioas_id = ioas.id;
  const rc = ucmd.respond();
  if (rc < 0) {
    yield* ioas.destroy();
    ictx.objects.abort(ioas);
    return rc;
  }
  yield* ictx.ioasCreationLock.down_read();
  ictx.objects.finalize(ioas);
  ictx.ioasCreationLock.up_read();
  return 0;
}

/** IOMMU_IOAS_IOVA_RANGES */
export function* ioasIovaRanges(ucmd: CommandOf<typeof iommu_ioas_iova_ranges>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.__reserved !== 0) return -EOPNOTSUPP;
  return yield* withIoas(ictx, cmd.ioas_id, ({ iopt }) => tellIovaRanges(ucmd, iopt));
}

function* tellIovaRanges(ucmd: CommandOf<typeof iommu_ioas_iova_ranges>, iopt: IoPageTable): Task<number> {
  const { cmd, ctx } = ucmd;
  yield* iopt.iovaRwsem.down_read();
  try {
    const room = cmd.num_iovas;
    let count = 0;
    for (const range of iopt.iovaRanges()) {
      const address = cmd.allowed_iovas + BigInt(count * iommu_iova_range.sizeBytes);
      if (count < room && !ctx.copy_to_user(address, iommu_iova_range.encode(range))) return -EFAULT;
      count++;
    }
    cmd.num_iovas = count;
    cmd.out_iova_alignment = iopt.iovaAlignment;
    const rc = ucmd.respond();
    return rc === 0 && count > room ? -EMSGSIZE : rc;
  } finally {
    iopt.iovaRwsem.up_read();
  }
}

/** Reads a user's list of ranges: -EFAULT, -EINVAL for an empty or single-byte range or two that overlap. */
function loadRanges(
  ucmd: CommandOf<typeof iommu_ioas_allow_iovas>,
  address: bigint,
  count: number,
): IntervalList<Range> | number {
  const ranges = new IntervalList<Range>();
  for (let i = 0; i < count; i++) {
    const at = address + BigInt(i * iommu_iova_range.sizeBytes);
    const bytes = ucmd.ctx.copy_from_user(at, iommu_iova_range.sizeBytes);
    if (bytes === undefined) return -EFAULT;
    const { start, last } = iommu_iova_range.decode(bytes);
    if (start >= last) return -EINVAL;
    if (ucmd.ictx.allocFails()) return -ENOMEM;
    if (ranges.firstOverlap(start, last) !== undefined) return -EINVAL;
    ranges.insert({ start, last });
  }
  return ranges;
}

/** IOMMU_IOAS_ALLOW_IOVAS */
export function* ioasAllowIovas(ucmd: CommandOf<typeof iommu_ioas_allow_iovas>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.__reserved !== 0) return -EOPNOTSUPP;
  return yield* withIoas(ictx, cmd.ioas_id, ({ iopt }) => allowIovas(ucmd, iopt));
}

function* allowIovas(ucmd: CommandOf<typeof iommu_ioas_allow_iovas>, iopt: IoPageTable): Task<number> {
  const ranges = loadRanges(ucmd, ucmd.cmd.allowed_iovas, ucmd.cmd.num_iovas);
  return typeof ranges === 'number' ? ranges : yield* iopt.set_allow_iova(ranges, ucmd.ctx);
}

const MAP_FLAGS = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE;

/** Checks that MAP, MAP_FILE and COPY share, in the kernel's order: 0 or -errno. */
function checkMapping(flags: number, reserved: number, addresses: readonly bigint[]): number {
  if ((flags & ~MAP_FLAGS) !== 0 || reserved !== 0) return -EOPNOTSUPP;
  if (addresses.some((address) => address >= IOVA_MAX)) return -EOVERFLOW;
  if ((flags & (IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE)) === 0) return -EINVAL;
  return 0;
}

function mapProt(flags: number): number {
  let prot = IOMMU_CACHE;
  if ((flags & IOMMU_IOAS_MAP_WRITEABLE) !== 0) prot |= IOMMU_WRITE;
  if ((flags & IOMMU_IOAS_MAP_READABLE) !== 0) prot |= IOMMU_READ;
  return prot;
}

function fixedIova(flags: number, iova: bigint): bigint | undefined {
  return (flags & IOMMU_IOAS_MAP_FIXED_IOVA) !== 0 ? iova : undefined;
}

/** Whether a pages object can have this many bytes. */
export function isPagesLength(length: bigint): boolean {
  return length > 0n && length <= IOVA_MAX - PAGE_SIZE;
}

type MapCommand = CommandOf<typeof iommu_ioas_map> | CommandOf<typeof iommu_ioas_map_file>;

/** The pages of a source that a MAP wants, which begin `start % PAGE_SIZE` into its first page. */
function newPages({ cmd, ctx, ictx }: MapCommand, start: bigint, source: PageSource): IoptPages {
  const account = source.isDmaBuf ? NO_ACCOUNT : pinAccount(ctx.process, ictx.accountMode);
  const isWritable = (cmd.flags & IOMMU_IOAS_MAP_WRITEABLE) !== 0;
  return new IoptPages(source, (start % PAGE_SIZE) + cmd.length, isWritable, account, ictx.instruments);
}

/** Maps what a MAP wants of pages that the caller holds, and puts them. */
function* mapPages(ucmd: MapCommand, ioas: Ioas, start: bigint, pages: IoptPages): Task<number> {
  const { cmd, ctx } = ucmd;
  const prot = mapProt(cmd.flags);
  const startByte = start % PAGE_SIZE;
  const slice: PagesSlice = { pages, startByte, lengthBytes: cmd.length };
  const iova = yield* ioas.iopt.map_pages([slice], fixedIova(cmd.flags, cmd.iova), prot, ctx);
  yield* pages.put();
  if (typeof iova === 'number') return iova;
  ctx.runtime.emit('iommufd.map', { ioas: cmd.ioas_id, iova, length: cmd.length });
  cmd.iova = iova;
  return ucmd.respond();
}

/** IOMMU_IOAS_MAP */
export function* ioasMap(ucmd: CommandOf<typeof iommu_ioas_map>): Task<number> {
  const { cmd, ictx } = ucmd;
  const rc = checkMapping(cmd.flags, cmd.__reserved, [cmd.iova, cmd.length]);
  if (rc < 0) return rc;
  return yield* withIoas(ictx, cmd.ioas_id, (ioas) => mapUserPages(ucmd, ioas));
}

function* mapUserPages(ucmd: CommandOf<typeof iommu_ioas_map>, ioas: Ioas): Task<number> {
  const { cmd, ctx, ictx } = ucmd;
  if (cmd.user_va + cmd.length > IOVA_MAX) return -EOVERFLOW;
  if (!isPagesLength(cmd.length)) return -EINVAL;
  if (ictx.allocFails()) return -ENOMEM;
  const pages = newPages(ucmd, cmd.user_va, userPages(ctx.process, cmd.user_va));
  return yield* mapPages(ucmd, ioas, cmd.user_va, pages);
}

/** IOMMU_IOAS_MAP_FILE */
export function* ioasMapFile(ucmd: CommandOf<typeof iommu_ioas_map_file>): Task<number> {
  const { cmd, ictx } = ucmd;
  const rc = checkMapping(cmd.flags, 0, [cmd.iova, cmd.length]);
  if (rc < 0) return rc;
  return yield* withIoas(ictx, cmd.ioas_id, (ioas) => mapFile(ucmd, ioas));
}

function* mapFile(ucmd: CommandOf<typeof iommu_ioas_map_file>, ioas: Ioas): Task<number> {
  const { cmd, ctx } = ucmd;
  if (cmd.length === 0n) return -EINVAL;
  if (cmd.start + cmd.length - 1n > IOVA_MAX) return -EOVERFLOW;
  return yield* withFile(ctx.process.files.get(cmd.fd), (file) => mapFilePages(ucmd, ioas, file));
}

function* mapFilePages(ucmd: CommandOf<typeof iommu_ioas_map_file>, ioas: Ioas, file: OpenFile): Task<number> {
  const { cmd, ictx } = ucmd;
  if (!isPagesLength(cmd.length)) return -EINVAL;
  if (ictx.allocFails()) return -ENOMEM;
  const pages = yield* pagesOfFile(ucmd, file);
  return typeof pages === 'number' ? pages : yield* mapPages(ucmd, ioas, cmd.start, pages);
}

/** The pages of a file that a MAP_FILE wants; -errno of a dma-buf that cannot be attached. */
function* pagesOfFile(ucmd: CommandOf<typeof iommu_ioas_map_file>, file: OpenFile): Task<IoptPages | number> {
  const { cmd } = ucmd;
  const held: { pages?: IoptPages } = {};
  const source =
    file instanceof DmaBufFile
      ? yield* dmaBufPages(file, cmd.start, cmd.length, () => revoke(held.pages))
      : filePages(file, cmd.start);
  if (typeof source === 'number') return source;
  held.pages = newPages(ucmd, cmd.start, source);
  return held.pages;
}

function* revoke(pages: IoptPages | undefined): Task<void> {
  if (pages !== undefined) yield* pages.revoke();
}

/**
 * IOMMU_IOAS_CHANGE_PROCESS, the one place where several `iova_rwsem` are held: no address space appears meanwhile. The caller pays for what is pinned from now on, in all address spaces or in none. -EINVAL when anything
 * but a file's memory is mapped, -EBUSY while something is being mapped or unmapped, -ENOMEM beyond the caller's limit.
 */
export function* ioasChangeProcess({ cmd, ctx, ictx }: CommandOf<typeof iommu_ioas_change_process>): Task<number> {
  if (cmd.__reserved !== 0) return -EOPNOTSUPP;
  const lock = ictx.ioasCreationLock;
  yield* lock.down_write();
  const spaces: Ioas[] = [];
  for (const space of ictx.objects.objects().filter(isIoas)) {
    // Another may be destroyed while the lock of the one before is waited for.
    if (space.users === 0) continue;
    space.refcountInc();
    spaces.push(space);
    yield* space.iopt.iovaRwsem.down_write();
  }
  const rc = changeProcess(ictx, spaces, ctx.process);
  for (const space of spaces) {
    space.iopt.iovaRwsem.up_write();
    space.refcountDec();
  }
  lock.up_write();
  return rc;
}

function changeProcess({ instruments }: IommufdContext, spaces: readonly Ioas[], process: Process): number {
  const all = new Set<IoptPages>();
  for (const { iopt } of spaces) {
    for (const area of iopt.areas.overlapping()) {
      if (area.pages === undefined && !instruments.fires('iommufd.change-process-unchecked')) return -EBUSY;
      const pages = dereference(area.pages, 'area->pages');
      if (pages.source.mm !== undefined || pages.source.isDmaBuf) return -EINVAL;
      all.add(pages);
    }
  }
  const moved: IoptPages[] = [];
  for (const pages of all) {
    const rc = pages.chargeTo(process);
    if (rc < 0) {
      for (const done of moved) done.keepPayer();
      return rc;
    }
    moved.push(pages);
  }
  for (const pages of moved) pages.changePayer();
  return 0;
}

/** MOCK_FLAGS_ACCESS_SYZ, in kernels with the selftest ({@link IoPageTable.syzIova}). */
const SYZ_FLAG = 0x10000;

/** IOMMU_IOAS_COPY */
export function* ioasCopy(ucmd: CommandOf<typeof iommu_ioas_copy>): Task<number> {
  const { cmd, ictx } = ucmd;
  if (ictx.hasSelftest && (cmd.flags & SYZ_FLAG) !== 0) {
    cmd.flags &= ~SYZ_FLAG;
    const ioas = getIoas(ictx, cmd.src_ioas_id);
    if (ioas !== undefined) {
      cmd.src_iova = ioas.iopt.syzIova(cmd.src_iova);
      ictx.objects.put(ioas);
    }
  }
  const rc = checkMapping(cmd.flags, 0, [cmd.length, cmd.src_iova, cmd.dst_iova]);
  if (rc < 0) return rc;
  const slices = yield* withIoas(ictx, cmd.src_ioas_id, ({ iopt }) => iopt.get_pages(cmd.src_iova, cmd.length));
  if (typeof slices === 'number') return slices;
  const copied = yield* withIoas(ictx, cmd.dst_ioas_id, ({ iopt }) => mapSlices(ucmd, iopt, slices));
  for (const { pages } of slices) yield* pages.put();
  return copied;
}

function* mapSlices(
  ucmd: CommandOf<typeof iommu_ioas_copy>,
  iopt: IoPageTable,
  slices: readonly PagesSlice[],
): Task<number> {
  const { cmd, ctx } = ucmd;
  const iova = yield* iopt.map_pages(slices, fixedIova(cmd.flags, cmd.dst_iova), mapProt(cmd.flags), ctx);
  if (typeof iova === 'number') return iova;
  ctx.runtime.emit('iommufd.copy', { ioas: cmd.dst_ioas_id, iova, length: cmd.length, from: cmd.src_ioas_id });
  cmd.dst_iova = iova;
  return ucmd.respond();
}

/** IOMMU_IOAS_UNMAP */
export function* ioasUnmap(ucmd: CommandOf<typeof iommu_ioas_unmap>): Task<number> {
  return yield* withIoas(ucmd.ictx, ucmd.cmd.ioas_id, ({ iopt }) => unmapRange(ucmd, iopt));
}

function* unmapRange(ucmd: CommandOf<typeof iommu_ioas_unmap>, iopt: IoPageTable): Task<number> {
  const { cmd, ctx } = ucmd;
  const isAll = cmd.iova === 0n && cmd.length === IOVA_MAX;
  if (!isAll && (cmd.iova >= IOVA_MAX || cmd.length >= IOVA_MAX)) return -EOVERFLOW;
  if (cmd.length === 0n) return -EINVAL;
  const last = isAll ? IOVA_MAX : cmd.iova + cmd.length - 1n;
  if (last > IOVA_MAX) return -EOVERFLOW;
  const { rc, unmappedBytes: unmapped } = yield* iopt.unmap_iova_range(cmd.iova, last, ctx);
  if (rc < 0) return rc;
  if (unmapped === 0n && !isAll) return -ENOENT;
  ctx.runtime.emit('iommufd.unmap', { ioas: cmd.ioas_id, iova: cmd.iova, length: unmapped });
  cmd.length = unmapped;
  return ucmd.respond();
}

type OptionCommand = CommandOf<typeof iommu_option>;

function optionRlimitMode({ cmd, ctx, ictx }: OptionCommand): number {
  if (cmd.object_id !== 0) return -EOPNOTSUPP;
  if (cmd.op === IOMMU_OPTION_OP_GET) {
    cmd.val64 = ictx.accountMode === 'mm' ? 1n : 0n;
    return 0;
  }
  if (cmd.op !== IOMMU_OPTION_OP_SET) return -EOPNOTSUPP;
  if (!ctx.process.capable('CAP_SYS_RESOURCE')) return -EPERM;
  if (!ictx.objects.isEmpty) return -EBUSY;
  if (cmd.val64 > 1n) return -EINVAL;
  ictx.accountMode = cmd.val64 === 1n ? 'mm' : 'user';
  return 0;
}

function* optionHugePages({ cmd, ctx }: OptionCommand, { iopt }: Ioas): Task<number> {
  if (cmd.op === IOMMU_OPTION_OP_GET) {
    cmd.val64 = iopt.disableLargePages ? 0n : 1n;
    return 0;
  }
  if (cmd.op !== IOMMU_OPTION_OP_SET) return -EOPNOTSUPP;
  if (cmd.val64 === 0n) return yield* iopt.disable_large_pages(ctx);
  if (cmd.val64 !== 1n) return -EINVAL;
  yield* iopt.enable_large_pages();
  return 0;
}

/** IOMMU_OPTION */
export function* option(ucmd: OptionCommand): Task<number> {
  const { cmd, ictx } = ucmd;
  if (cmd.__reserved !== 0) return -EOPNOTSUPP;
  let rc: number = -EOPNOTSUPP;
  if (cmd.option_id === IOMMU_OPTION_RLIMIT_MODE) rc = optionRlimitMode(ucmd);
  else if (cmd.option_id === IOMMU_OPTION_HUGE_PAGES) {
    rc = yield* withIoas(ictx, cmd.object_id, (ioas) => optionHugePages(ucmd, ioas));
  }
  return rc < 0 ? rc : ucmd.respond();
}
