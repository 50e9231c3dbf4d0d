/**
 * /dev/iommu: the descriptor, its context and the dispatch of its ioctls.
 *
 * The rules all ioctls share are here: an unknown number is ENOTTY; the struct begins with its size, which must cover the
 * mandatory fields (EINVAL) and may be longer than this kernel knows as long as the rest is zero (E2BIG); fields the
 * caller's struct does not have are zero. The context outlives its file while devices are bound to it.
 *
 * Source: Linux drivers/iommu/iommufd/main.c; domain.md A1 (common rules), A5.
 */
import type { Arena } from '../../core/arena.js';
import type { FaultSwitches } from '../../runtime/faults.js';
import type { InvariantLedger } from '../../runtime/invariants.js';
import { RwSemaphore } from '../../runtime/locks.js';
import { invariant, type Task } from '../../runtime/task.js';
import { sharedCount, sharedRead, sharedWrite } from '../../runtime/watch.js';
import { E2BIG, EFAULT, EINVAL, ENOTTY, ENXIO, EOPNOTSUPP } from '../../uapi/errno.js';
import {
  IOMMU_DESTROY,
  IOMMU_FAULT_QUEUE_ALLOC,
  IOMMU_GET_HW_INFO,
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_INVALIDATE,
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  IOMMU_HW_QUEUE_ALLOC,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS,
  IOMMU_IOAS_CHANGE_PROCESS,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_NOIOMMU_GET_PA,
  IOMMU_IOAS_UNMAP,
  IOMMU_OPTION,
  IOMMU_VDEVICE_ALLOC,
  IOMMU_VFIO_IOAS,
  IOMMU_VEVENTQ_ALLOC,
  IOMMU_VIOMMU_ALLOC,
  type iommu_destroy,
} from '../../uapi/iommufd.js';
import { OpenFile, type SyscallContext } from '../files.js';
import type { FileMapping } from '../mm/mm.js';
import { leadingU32, row, type CommandRow } from './command.js';
import { getHwInfo, IommufdGroups } from './device.js';
import { faultQueueAlloc, veventqAlloc } from './eventq.js';
import type { Instruments } from './instruments.js';
import { hwptAlloc, hwptGetDirtyBitmap, hwptInvalidate, hwptSetDirtyTracking } from './hw-pagetable.js';
import {
  ioasAlloc,
  ioasAllowIovas,
  ioasChangeProcess,
  ioasCopy,
  ioasIovaRanges,
  ioasMap,
  ioasMapFile,
  ioasUnmap,
  option,
  type CommandOf,
} from './ioas.js';
import { IOAS_CREATION_LOCK } from './io-pagetable.js';
import { MmapOffsets } from './mmap-offsets.js';
import type { Ioas } from './ioas.js';
import { ObjectTable } from './object.js';
import { PAGE_BYTES } from './pages.js';
import { SwMsiPages } from './sw-msi.js';
import { iommufd_vfio_ioctl, vfioIoas } from './vfio-compat.js';
import { hwQueueAlloc, vdeviceAlloc, viommuAlloc } from './viommu.js';

/** How pinned pages are charged (IOMMU_OPTION_RLIMIT_MODE). */
export type AccountMode = 'user' | 'mm';

/** `struct iommufd_ctx`: everything behind one opened /dev/iommu. */
export class IommufdContext {
  readonly arena: Arena;
  /** The module parameter: bind devices whose interrupts are not isolated. */
  readonly allowUnsafeInterrupts: boolean;
  /** Attach devices that have a hardware and a software MSI region (HostDescription.allowMixedMsi). */
  readonly allowMixedMsi: boolean;
  readonly objects: ObjectTable;
  readonly groups = new IommufdGroups();
  readonly swMsi: SwMsiPages;
  readonly mmaps = new MmapOffsets();
  /** No address space appears while somebody holds the locks of all. */
  readonly ioasCreationLock = new RwSemaphore(IOAS_CREATION_LOCK);
  #accountMode: AccountMode = 'user';
  /** The kernel was built with the selftest. */
  hasSelftest = false;
  #vfioIoas: Ioas | undefined;
  #users = 1;
  #livePages = 0;

  /** Fault switches and ledger of the host. */
  readonly instruments: Instruments;

  constructor(
    arena: Arena,
    allowUnsafeInterrupts: boolean,
    allowMixedMsi = false,
    faults?: FaultSwitches,
    ledger?: InvariantLedger,
  ) {
    this.arena = arena;
    this.allowUnsafeInterrupts = allowUnsafeInterrupts;
    this.allowMixedMsi = allowMixedMsi;
    this.swMsi = new SwMsiPages(faults);
    this.instruments = {
      fires: (id) => faults?.fires(id) === true,
      held: (rule, looks) => ledger?.held(rule, looks),
      gaveUp: (rule, why) => ledger?.gaveUp(rule, why),
      countPages: (change) => (this.#livePages += change),
      keepsHistory: ledger?.isOn !== false,
    };
    this.objects = new ObjectTable(this.instruments);
  }

  /** Pages objects that somebody refers to. */
  get livePages(): number {
    return this.#livePages;
  }

  get accountMode(): AccountMode {
    sharedRead(this, 'accountMode', this.#accountMode);
    return this.#accountMode;
  }

  set accountMode(value: AccountMode) {
    sharedWrite(this, 'accountMode', this.#accountMode, value);
    this.#accountMode = value;
  }

  /** What VFIO ioctls work on (IOMMU_VFIO_IOAS). */
  get vfioIoas(): Ioas | undefined {
    sharedRead(this, 'vfioIoas', this.#vfioIoas);
    return this.#vfioIoas;
  }

  set vfioIoas(value: Ioas | undefined) {
    sharedWrite(this, 'vfioIoas', this.#vfioIoas, value);
    this.#vfioIoas = value;
  }

  /** Whether the next allocation of memory fails. */
  allocFails(): boolean {
    return this.instruments.fires('kernel.kmalloc');
  }

  /** A bound device keeps the context. */
  get(): void {
    invariant(this.#users > 0, 'a reference to an iommufd context that is gone', 'objects');
    sharedCount(this, 'users', this.#users, this.#users + 1);
    this.#users++;
  }

  /** The last user destroys every object. */
  *put(): Task<void> {
    invariant(this.#users > 0, 'an iommufd context was put once too often', 'objects');
    sharedCount(this, 'users', this.#users, this.#users - 1);
    if (--this.#users === 0) yield* this.objects.destroyAll();
  }
}

/** IOMMU_DESTROY */
function* destroy({ cmd, ictx }: CommandOf<typeof iommu_destroy>): Task<number> {
  return yield* ictx.objects.remove(cmd.id);
}

function* notSupported(): Task<number> {
  return -EOPNOTSUPP;
}

const rows: readonly CommandRow[] = [
  row(IOMMU_DESTROY, destroy),
  row(IOMMU_FAULT_QUEUE_ALLOC, faultQueueAlloc),
  row(IOMMU_GET_HW_INFO, getHwInfo),
  row(IOMMU_HWPT_ALLOC, hwptAlloc),
  row(IOMMU_HWPT_GET_DIRTY_BITMAP, hwptGetDirtyBitmap),
  row(IOMMU_HWPT_INVALIDATE, hwptInvalidate),
  row(IOMMU_HWPT_SET_DIRTY_TRACKING, hwptSetDirtyTracking),
  row(IOMMU_HW_QUEUE_ALLOC, hwQueueAlloc),
  row(IOMMU_IOAS_ALLOC, ioasAlloc),
  row(IOMMU_IOAS_ALLOW_IOVAS, ioasAllowIovas),
  row(IOMMU_IOAS_CHANGE_PROCESS, ioasChangeProcess),
  row(IOMMU_IOAS_COPY, ioasCopy),
  row(IOMMU_IOAS_IOVA_RANGES, ioasIovaRanges),
  row(IOMMU_IOAS_MAP, ioasMap),
  row(IOMMU_IOAS_MAP_FILE, ioasMapFile),
  // Without CONFIG_IOMMUFD_NOIOMMU the number is known and nothing else.
  row(IOMMU_IOAS_NOIOMMU_GET_PA, notSupported),
  row(IOMMU_IOAS_UNMAP, ioasUnmap),
  row(IOMMU_OPTION, option),
  row(IOMMU_VDEVICE_ALLOC, vdeviceAlloc),
  row(IOMMU_VFIO_IOAS, vfioIoas),
  row(IOMMU_VEVENTQ_ALLOC, veventqAlloc),
  row(IOMMU_VIOMMU_ALLOC, viommuAlloc),
];
const rowByNumber = new Map(rows.map((entry) => [entry.number, entry]));

const SIZE_BYTES = 4;
/** Bits of an ioctl's number that count it (_IOC_NR). */
const NR_MASK = 0xff;
const IOMMUFD_CMD_BASE = 0x80;
const LAST_NUMBER = Math.max(...rows.map(({ number }) => number));

/** Copies the argument struct in as `copy_struct_from_user` does: its bytes, or -errno. */
function copyStruct(ctx: SyscallContext, command: CommandRow, address: bigint, userSize: number): Uint8Array | number {
  if (userSize < command.minimumBytes) return -EINVAL;
  // The first byte that is wrong decides: one that is not 0 or one that is not there.
  for (let at = command.sizeBytes; at < userSize;) {
    const from = address + BigInt(at);
    const length = Math.min(userSize - at, PAGE_BYTES - Number(from % BigInt(PAGE_BYTES)));
    const tail = ctx.copy_from_user(from, length);
    if (tail === undefined) return -EFAULT;
    if (tail.some((byte) => byte !== 0)) return -E2BIG;
    at += length;
  }
  return ctx.copy_from_user(address, Math.min(userSize, command.sizeBytes)) ?? -EFAULT;
}

/** An opened /dev/iommu. */
export class IommufdFile extends OpenFile {
  readonly ictx: IommufdContext;
  /** IOMMU_TEST_CMD, in a kernel that has the selftest. */
  readonly #testCommand: CommandRow | undefined;

  constructor(ictx: IommufdContext, testCommand?: CommandRow) {
    super();
    this.ictx = ictx;
    this.#testCommand = testCommand;
    ictx.hasSelftest = testCommand !== undefined;
  }

  override *ioctl(ctx: SyscallContext, cmd: number, arg: bigint): Task<number> {
    const nr = cmd & NR_MASK;
    const last = (this.#testCommand?.number ?? LAST_NUMBER) & NR_MASK;
    if (nr < IOMMUFD_CMD_BASE || nr > last) return yield* iommufd_vfio_ioctl(this.ictx, ctx, cmd, arg);
    const head = ctx.copy_from_user(arg, SIZE_BYTES);
    if (head === undefined) return -EFAULT;
    const command = rowByNumber.get(cmd) ?? (cmd === this.#testCommand?.number ? this.#testCommand : undefined);
    if (command === undefined) return -ENOTTY;
    const userSize = leadingU32(head);
    const bytes = copyStruct(ctx, command, arg, userSize);
    if (typeof bytes === 'number') return bytes;
    return yield* command.run(this.ictx, ctx, bytes, arg);
  }

  override *mmap(offset: bigint, length: bigint, isShared: boolean): Task<FileMapping | number> {
    const { instruments, mmaps } = this.ictx;
    const offer = mmaps.find(offset, length, isShared);
    if (typeof offer === 'number') return offer;
    const { owner, pa, lengthBytes } = offer;
    if (instruments.fires('iommufd.mmap-unlocked')) yield 'iommufd:mmap-found';
    // An offer stays until its owner is destroyed, which begins with nobody having hold of it.
    else if (owner.users === 0) return -ENXIO;
    owner.refcountInc();
    const extents = [{ pfn: pa / PAGE_BYTES, pages: lengthBytes / PAGE_BYTES }];
    return {
      extents,
      unmapped: () => {
        owner.refcountDec();
      },
    };
  }

  override *release(): Task<void> {
    yield* this.ictx.put();
  }
}
