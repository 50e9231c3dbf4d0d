/**
 * The arm-smmu-v3 driver: one instance for each SMMUv3.
 *
 * It knows the hardware only through its registers and the memory both see. `start` probes the identification registers,
 * resets the SMMU, gives it its queues and stream table, and enables it with the CR0 handshakes; until then GBPA decides
 * what happens to DMA. A device's stream table entry always says one of: abort, bypass, stage 1 through the device's own
 * context descriptor, stage 2.
 *
 * Locks: `asid_lock` covers an attachment from end to end, with the stream table entries and context descriptors it writes; taken inside
 * `group.mutex`. `streams_mutex`, inside that, covers only whose a stream is: the map of masters and the guest behind each. Whoever tells of
 * an event holds it, so that device and guest stay while they are told; an event that a new entry raised before its attachment gets there is
 * the old guest's, or the host's (domain.md A6.12). Invariants: an ASID or VMID is reused only after it was invalidated (INV-18); a context descriptor is cleared only when
 * no stream table entry leads to it.
 *
 * Source: Linux arm-smmu-v3.c; Arm IHI 0070; domain.md A4.1-A4.17, A6.9-A6.12.
 */
import type { Arena } from '../../../core/arena.js';
import { PageTable, pageSizesOf } from '../../../core/page-table.js';
import type { SmmuDescription } from '../../../hardware/description.js';
import type { LegalityChecker } from '../../../hardware/smmu/legality.js';
import { CD, CMD_CFGI, CMD_OP, CMD_TLBI, EVT, STE_CONFIG } from '../../../hardware/smmu/records.js';
import { CR0, CR0ACK, CR1, CR2, GERROR, GERRORN, IRQ_CTRL, IRQ_CTRLACK } from '../../../uapi/smmuv3-registers.js';
import { Mutex } from '../../../runtime/locks.js';
import type { FaultSwitches } from '../../../runtime/faults.js';
import type { NodeRuntime } from '../../../runtime/node-runtime.js';
import { invariant, type Task } from '../../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../../runtime/watch.js';
import { EINVAL, ENODEV, ENOMEM, ENOSPC, EOPNOTSUPP } from '../../../uapi/errno.js';
import {
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
  iommu_hw_info_arm_smmuv3,
} from '../../../uapi/iommufd.js';
import type { Device } from '../../device.js';
import { DmaMemory } from '../dma-memory.js';
import { sharesStreams } from '../flavours.js';
import type {
  HwInfo,
  IommuCapability,
  IommuDomain,
  IommuDriver,
  PagingDomain,
  UserDomainData,
  ViommuDriver,
  ViommuHost,
} from '../domain.js';
import { attachmentProblem } from './attachment.js';
import { invalidateAll, invalidateRange, pci_ats_supported, pci_set_ats } from './ats.js';
import { ArmSmmuDomain } from './domain.js';
import { abortSte, bypassSte, contextDescriptor, ENTRY_BYTES, stage1Ste, stage2Ste, writeEntry } from './entries.js';
import { cdSafeBits, cdUsedBits, steSafeBits, steUsedBits } from '../../../hardware/smmu/used-bits.js';
import { EVENT_BYTES, EventQueue, type Delivery } from './event-queue.js';
import { probeFeatures, type SmmuFeatures } from './features.js';
import { COMMAND_BYTES, CommandQueue } from './queue.js';
import { SmmuRegisters, type MmioPort } from './registers.js';
import { StreamTable, type EntryWatch, type StePlace } from './stream-table.js';
import { ArmSmmuNestedDomain, ArmVsmmu, type Vmaster } from './vsmmu.js';

const INNER_SHAREABLE = 3;
const WRITE_BACK = 1;
/** CMD_CFGI_STE_RANGE with this range is CMD_CFGI_ALL. */
const CFGI_ALL_RANGE = 31;
/** Whose the events of a stream without a device are. */
const UNASSIGNED = '(unassigned sid)';
const VALID_BIT = { ste: 1, cd: 2 ** 31 } as const;

/** Tags (ASIDs or VMIDs), lowest free first, from 1. */
class TagSpace {
  readonly #taken: boolean[] = [true];
  readonly #count: number;

  constructor(bits: number) {
    this.#count = 2 ** bits;
  }

  alloc(): number {
    sharedWrite(this, 'tags');
    const free = this.#taken.indexOf(false);
    const tag = free < 0 ? this.#taken.length : free;
    if (tag >= this.#count) return -ENOSPC;
    this.#taken[tag] = true;
    return tag;
  }

  /** Whether it is one of these, and given to somebody. */
  isTaken(tag: number): boolean {
    return this.#taken[tag] === true;
  }

  free(tag: number): void {
    sharedWrite(this, 'tags', tag, undefined);
    this.#taken[tag] = false;
  }
}

/** A domain a device keeps translations of; `isNested`: by a guest's addresses. */
interface KeptDomain {
  readonly domain: ArmSmmuDomain;
  readonly isNested: boolean;
}

/** What the driver keeps for a device (`struct arm_smmu_master`). */
interface Master {
  readonly device: Device;
  readonly streams: readonly { readonly id: number; readonly ste: StePlace }[];
  /** Its context descriptor table, from the first stage 1 attachment on. */
  cdTable: DmaMemory | undefined;
  /** While it is behind a guest's SMMU. */
  vmaster: Vmaster | undefined;
  /** Whose unmaps it must hear of: two while it moves from one to the other. */
  keepsOf: readonly KeptDomain[];
  hasAtsOn: boolean;
  /** What it was brought to last. */
  domain: IommuDomain | undefined;
}

/** What an instance needs of its host. */
export interface SmmuHost {
  readonly runtime: NodeRuntime;
  readonly arena: Arena;
  readonly bus: MmioPort;
  /** Preferred page shift of domains: the kernel's PAGE_SHIFT. */
  readonly pageShift: number;
  /** Who watches what the driver writes for an SMMU to read; undefined for nobody. */
  readonly legality?: (smmu: string) => LegalityChecker | undefined;
}

function keptOf(domain: IommuDomain): KeptDomain[] {
  if (domain instanceof ArmSmmuNestedDomain) return [{ domain: domain.vsmmu.parent, isNested: true }];
  return domain instanceof ArmSmmuDomain ? [{ domain, isNested: false }] : [];
}

/** One SMMUv3 and its driver. */
export class ArmSmmuV3 implements IommuDriver {
  readonly name: string;
  readonly identityDomain: IommuDomain = { type: 'identity', driver: this };
  readonly blockedDomain: IommuDomain = { type: 'blocked', driver: this };
  readonly commandQueue: CommandQueue;
  readonly features: SmmuFeatures;
  readonly legality: LegalityChecker | undefined;
  readonly faults: FaultSwitches;
  readonly viommu: NonNullable<IommuDriver['viommu']>;
  readonly #host: SmmuHost;
  readonly #description: SmmuDescription;
  readonly #registers: SmmuRegisters;
  readonly #streamTable: StreamTable;
  readonly #eventQueue: EventQueue;
  readonly #asidLock = new Mutex('smmu:asid_lock');
  readonly #streamsMutex = new Mutex('smmu:streams_mutex');
  readonly #masters = new Map<Device, Master>();
  readonly #asids: TagSpace;
  readonly #vmids: TagSpace;

  /** Reads what the SMMU can do and makes its queues and tables; `start` switches it on. */
  constructor(host: SmmuHost, description: SmmuDescription) {
    this.name = description.name;
    this.#host = host;
    this.faults = host.runtime.faults;
    this.#description = description;
    this.#registers = new SmmuRegisters(host.bus, Number(description.base));
    this.features = probeFeatures(this.#registers);
    const { asidBits, vmidBits, cmdqLog2, eventqLog2 } = this.features;
    this.#asids = new TagSpace(asidBits);
    this.#vmids = new TagSpace(vmidBits);
    const commands = DmaMemory.alloc(host.arena, 2 ** cmdqLog2 * COMMAND_BYTES);
    const events = DmaMemory.alloc(host.arena, 2 ** eventqLog2 * EVENT_BYTES);
    this.legality = host.legality?.(this.name);
    const { legality } = this;
    const watch: EntryWatch | undefined = legality && ((...store) => legality.storeEntry(...store));
    const streams = StreamTable.create(host.arena, this.features, watch);
    invariant(
      commands !== undefined && events !== undefined && typeof streams !== 'number',
      () => `arm-smmu-v3 ${this.name}: no memory at boot`,
    );
    this.#streamTable = streams;
    this.commandQueue = new CommandQueue(host.runtime, this.name, this.#registers, commands, cmdqLog2);
    this.#eventQueue = new EventQueue(host.runtime, this.name, this.#registers, events, eventqLog2, (record) =>
      this.#deliver(record),
    );
    this.viommu = {
      supports: (_device, wanted) => wanted === IOMMU_VIOMMU_TYPE_ARM_SMMUV3 && this.#canNest,
      init: (_device, viommu) => this.#initVsmmu(viommu),
    };
  }

  // --- bring-up ---

  /** Resets the SMMU and switches it on (arm_smmu_device_reset). */
  *start(): Task<void> {
    const registers = this.#registers;
    const enable = function* (fields: Parameters<typeof CR0.make>[0]): Task<void> {
      yield* registers.setAndWait(CR0, CR0ACK, CR0.make(fields)[0] ?? 0);
    };
    yield* enable({});
    registers.set(CR1, {
      TABLE_SH: INNER_SHAREABLE,
      TABLE_OC: WRITE_BACK,
      TABLE_IC: WRITE_BACK,
      QUEUE_SH: INNER_SHAREABLE,
      QUEUE_OC: WRITE_BACK,
      QUEUE_IC: WRITE_BACK,
    });
    registers.set(CR2, { PTM: 1, RECINVSID: 1 });
    this.#streamTable.install(registers);
    this.commandQueue.install();
    yield* enable({ CMDQEN: 1 });
    yield* this.commandQueue.issueAndSync([CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE_RANGE, Range: CFGI_ALL_RANGE })]);
    yield* this.commandQueue.issueAndSync([CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NSNH_ALL })]);
    this.#eventQueue.install();
    yield* enable({ CMDQEN: 1, EVENTQEN: 1 });
    yield* registers.setAndWait(IRQ_CTRL, IRQ_CTRLACK, 0);
    const interrupts = IRQ_CTRL.make({ EVENTQ_IRQEN: 1, GERROR_IRQEN: 1 })[0] ?? 0;
    yield* registers.setAndWait(IRQ_CTRL, IRQ_CTRLACK, interrupts);
    yield* enable({ CMDQEN: 1, EVENTQEN: 1, SMMUEN: 1, ATSCHK: this.features.hasAts ? 1 : 0 });
    this.#host.runtime.spawn(`evtq/${this.name}`, this.#eventQueue.thread(), { daemon: true });
  }

  /** A wired interrupt of the SMMU. */
  interrupt(line: string): void {
    if (line === 'eventq') this.#eventQueue.interrupt();
    if (line === 'gerror') {
      this.commandQueue.skipError();
      this.#registers.write(GERRORN, this.#registers.read(GERROR));
    }
  }

  // --- guests ---

  /** Both stages, and no way for a guest to get past the caches. */
  get #canNest(): boolean {
    const { hasStage1, hasStage2, hasForcedWriteBack } = this.features;
    return hasStage1 && hasStage2 && (hasForcedWriteBack || this.#description.fullyCoherentMasters === true);
  }

  *#initVsmmu(host: ViommuHost): Task<ViommuDriver | number> {
    const { parent } = host;
    return parent instanceof ArmSmmuDomain && parent.driver === this ? new ArmVsmmu(this, parent, host) : -EINVAL;
  }

  /** Events that the driver has taken from the queue. */
  get eventsDelivered(): number {
    return this.#eventQueue.delivered;
  }

  /** Finds out whose an event is, and tells the guest whose device it is of. The device stays until that is done. */
  *#deliver(record: Uint32Array): Task<Delivery> {
    const isLocked = !this.faults.fires('smmu.event-unlocked');
    if (isLocked) yield* this.#streamsMutex.lock();
    sharedRead(this, 'devices');
    const master = this.#masterOf(EVT.get(record, 'StreamID'));
    const vmaster = master?.vmaster;
    yield 'smmu:evtq-found';
    const isGuests = vmaster !== undefined && (yield* vmaster.vsmmu.report(record, vmaster.vsid));
    invariant(
      master === undefined || (this.#masters.get(master.device) === master && master.vmaster === vmaster),
      () => `${this.name}: an event was told of ${master?.device.name ?? ''}, which had been taken away or moved`,
      'INV-14',
    );
    this.#host.runtime.invariants.held('INV-14');
    if (isLocked) this.#streamsMutex.unlock();
    return { client: master?.device.name ?? UNASSIGNED, isGuests };
  }

  /** Who has a stream; where several do, one that a guest has. */
  #masterOf(streamId: number): Master | undefined {
    const having = [...this.#masters.values()].filter(({ streams }) => streams.some(({ id }) => id === streamId));
    return having.find(({ vmaster }) => vmaster !== undefined) ?? having[0];
  }

  #clientName(streamId: number): string {
    sharedRead(this, 'devices');
    return this.#masterOf(streamId)?.device.name ?? UNASSIGNED;
  }

  // --- devices ---

  /** A device's streams get entries; -ENODEV when another device has one of them (arm_smmu_insert_master), unless streams are shared. */
  *probe_device(device: Device): Task<number> {
    yield* this.#streamsMutex.lock();
    const rc = this.#insertMaster(device);
    this.#streamsMutex.unlock();
    return rc;
  }

  #insertMaster(device: Device): number {
    const streams: { id: number; ste: StePlace }[] = [];
    for (const id of new Set(device.streamIds)) {
      const ste = this.#streamTable.entry(id);
      if (typeof ste === 'number') return ste;
      if (!sharesStreams(this.#description) && this.#isStreamTaken(id)) {
        this.#host.runtime.emit('smmu.aliasing-stream', { device: device.name, sid: id, from: this.#clientName(id) });
        return -ENODEV;
      }
      streams.push({ id, ste });
    }
    sharedWrite(this, 'devices');
    this.#masters.set(device, {
      device,
      streams,
      cdTable: undefined,
      vmaster: undefined,
      keepsOf: [],
      hasAtsOn: false,
      domain: undefined,
    });
    return 0;
  }

  /** Other devices with one of its streams: they have one context descriptor with it. */
  #mates(master: Master): Master[] {
    return [...this.#masters.values()].filter(
      (other) => other !== master && other.streams.some(({ id }) => master.streams.some((stream) => stream.id === id)),
    );
  }

  #isStreamTaken(id: number): boolean {
    sharedRead(this, 'devices');
    return [...this.#masters.values()].some(({ streams }) => streams.some((stream) => stream.id === id));
  }

  get keptFrames(): number {
    const tables = new Set([...this.#masters.values()].flatMap(({ cdTable }) => cdTable ?? []));
    return this.#streamTable.keptFrames + DmaMemory.framesOf(tables);
  }

  /** Its streams abort, as in the release domain of the IOMMU core, before nobody has them. */
  *release_device(device: Device): Task<void> {
    const master = this.#masters.get(device);
    if (master === undefined) return;
    yield* this.#asidLock.lock();
    if (master.hasAtsOn) pci_set_ats(device, false);
    yield* this.#writeSte(master, abortSte(), true);
    yield* this.#commitVmaster(master, undefined);
    if (master.hasAtsOn) yield* this.commandQueue.issueAndSync(master.streams.map(({ id }) => invalidateAll(id)));
    this.#asidLock.unlock();
    yield* this.#streamsMutex.lock();
    sharedWrite(this, 'devices');
    this.#masters.delete(device);
    this.#streamsMutex.unlock();
    if (!this.#mates(master).some((mate) => mate.cdTable === master.cdTable)) {
      if (master.cdTable !== undefined) this.legality?.forgetEntry(`CD ${master.cdTable.address}`);
      master.cdTable?.free();
    }
  }

  /** From now on events of a device are a guest's, or the host's (arm_smmu_attach_commit_vmaster). */
  *#commitVmaster(master: Master, vmaster: Vmaster | undefined): Task<void> {
    yield* this.#streamsMutex.lock();
    sharedWrite(this, 'devices');
    master.vmaster = vmaster;
    this.#streamsMutex.unlock();
  }

  *attach_dev(domain: IommuDomain, device: Device): Task<number> {
    const master = this.#masters.get(device);
    if (domain.driver !== this || master === undefined) return -EINVAL;
    yield* this.#asidLock.lock();
    const usesAts = this.#usesAts(domain, master);
    const keepsAts = master.hasAtsOn && usesAts;
    if (master.hasAtsOn && !usesAts) pci_set_ats(device, false);
    const before = master.keepsOf;
    const after = usesAts ? keptOf(domain) : [];
    sharedWrite(this, 'devices');
    master.keepsOf = this.faults.fires('smmu.ats-tags-first') ? after : [...before, ...after];
    yield 'smmu:ats-tags-published';
    const vmaster = domain instanceof ArmSmmuNestedDomain ? this.#vmasterOf(domain, device) : undefined;
    let rc = typeof vmaster === 'number' ? vmaster : 0;
    if (rc === 0)
      rc =
        domain instanceof ArmSmmuNestedDomain
          ? yield* this.#attachNested(domain, master, usesAts)
          : yield* this.#attach(domain, master, usesAts);
    if (rc === 0 && typeof vmaster !== 'number') {
      yield* this.#commitVmaster(master, vmaster);
      yield* this.#commitAts(master, usesAts);
    } else if (master.hasAtsOn && !usesAts) pci_set_ats(device, true);
    sharedWrite(this, 'devices');
    const isLeft = before.length > 0 && !keepsAts && this.faults.fires('smmu.ats-off-first');
    master.keepsOf = rc < 0 ? before : isLeft ? [...before, ...after] : after;
    if (rc === 0) master.domain = domain;
    this.#asidLock.unlock();
    if (rc === 0) {
      const tag = domain instanceof ArmSmmuDomain ? { stage: domain.stage, tag: domain.tag } : {};
      this.#host.runtime.emit('iommu.attach', { device: device.name, domain: domain.type, ...tag });
    }
    return rc;
  }

  checkAttached(domain: IommuDomain, device: Device): void {
    const master = this.#masters.get(device);
    const cd = master?.cdTable && { address: master.cdTable.address, words: master.cdTable.read(0, ENTRY_BYTES / 4) };
    const problems = master?.streams.map(({ ste }) =>
      attachmentProblem(domain, ste.memory.read(ste.offset, ENTRY_BYTES / 4), cd),
    );
    const problem =
      master?.domain === domain ? problems?.find((text) => text !== undefined) : 'the driver has it elsewhere';
    invariant(
      problem === undefined,
      () => `${device.name} is not in the domain of its group (${domain.type}): ${problem ?? ''}`,
      'INV-8',
    );
    this.#host.runtime.invariants.held('INV-8');
  }

  /** Whether a device keeps translations of a domain: the SMMU answers it, and who maps will tell it of unmaps. */
  #usesAts(domain: IommuDomain, { device }: Master): boolean {
    if (!this.features.hasAts || !pci_ats_supported(device)) return false;
    return domain instanceof ArmSmmuNestedDomain ? domain.wantsAts : domain instanceof ArmSmmuDomain;
  }

  /** The stream table entry is in place: what the device keeps is of the domain before, if of any. */
  *#commitAts(master: Master, usesAts: boolean): Task<void> {
    if (master.hasAtsOn || usesAts)
      yield* this.commandQueue.issueAndSync(master.streams.map(({ id }) => invalidateAll(id)));
    if (usesAts && !master.hasAtsOn) pci_set_ats(master.device, true);
    sharedWrite(this, 'devices');
    master.hasAtsOn = usesAts;
  }

  /** What devices keep of a range of a domain is invalidated (arm_smmu_atc_inv_domain). A guest's addresses are not the host's to know. */
  *invalidateAtcs(domain: ArmSmmuDomain, iova: number, lengthBytes: number): Task<void> {
    sharedRead(this, 'devices');
    const commands = [...this.#masters.values()].flatMap(({ hasAtsOn, keepsOf, streams }) => {
      for (const other of keepsOf) other.domain.checkAlive();
      const kept = keepsOf.filter((other) => other.domain === domain);
      if (!hasAtsOn || kept.length === 0) return [];
      const isNested = kept.some((other) => other.isNested);
      return streams.map(({ id }) => (isNested ? invalidateAll(id) : invalidateRange(id, iova, lengthBytes)));
    });
    if (commands.length > 0) yield* this.commandQueue.issueAndSync(commands);
  }

  /**
   * Where a guest has a device (arm_smmu_attach_prepare_vmaster): undefined where it gave it no number. One that translates needs a number,
   * without which nobody could tell it of faults: -ENOENT.
   */
  #vmasterOf({ vsmmu, config }: ArmSmmuNestedDomain, device: Device): Vmaster | undefined | number {
    const vsid = vsmmu.host.vdevId(device);
    if (typeof vsid !== 'number') return { vsmmu, vsid: Number(vsid) };
    return config === STE_CONFIG.S1_TRANS ? vsid : undefined;
  }

  /** A guest's stream table entry. */
  *#attachNested(domain: ArmSmmuNestedDomain, master: Master, usesAts: boolean): Task<number> {
    yield* this.#writeSte(master, domain.ste(usesAts));
    if (master.cdTable !== undefined) yield* this.#writeCd(master, master.cdTable, CD.make({}));
    return 0;
  }

  *#attach(domain: IommuDomain, master: Master, usesAts: boolean): Task<number> {
    if (domain instanceof ArmSmmuDomain && domain.stage === 1) {
      master.cdTable ??= this.#mates(master).find((mate) => mate.cdTable !== undefined)?.cdTable;
      master.cdTable ??= DmaMemory.alloc(this.#host.arena, ENTRY_BYTES);
      if (master.cdTable === undefined) return -ENOMEM;
      this.#watchCd(master, master.cdTable);
      yield* this.#writeCd(master, master.cdTable, contextDescriptor(domain.table, domain.tag, domain.recordsDirty));
      yield* this.#writeSte(master, stage1Ste(master.cdTable.address, this.features.canStall, usesAts));
      return 0;
    }
    let ste = abortSte();
    if (domain instanceof ArmSmmuDomain) ste = stage2Ste(domain.table, domain.tag, domain.usesForcedWriteBack, usesAts);
    else if (domain.type === 'identity') ste = bypassSte();
    yield* this.#writeSte(master, ste);
    if (master.cdTable !== undefined) yield* this.#writeCd(master, master.cdTable, CD.make({}));
    return 0;
  }

  #watchCd(master: Master, memory: DmaMemory): void {
    const { legality } = this;
    if (legality === undefined || memory.watch !== undefined) return;
    const streamIds = master.streams.map(({ id }) => id);
    memory.watch = (offset, lo, hi) => {
      legality.storeEntry('CD', `CD ${memory.address}`, streamIds, memory.read(0, ENTRY_BYTES / 4), offset / 8, lo, hi);
    };
  }

  /** Writes the entry of every stream; of a device that leaves, those that no other device has. */
  *#writeSte(master: Master, target: Uint32Array, isLeaving = false): Task<void> {
    const mates = isLeaving ? this.#mates(master) : [];
    for (const { id, ste } of master.streams) {
      if (mates.some(({ streams }) => streams.some((stream) => stream.id === id))) continue;
      const invalidate = CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE, StreamID: id, Leaf: 1 });
      yield* writeEntry(
        {
          ...ste,
          usedBits: steUsedBits,
          safeBits: steSafeBits,
          validBit: VALID_BIT.ste,
          isTorn: () => this.faults.fires('smmu.entry-not-hitless'),
          sync: () => this.commandQueue.issueAndSync([invalidate]),
        },
        target,
      );
    }
  }

  *#writeCd(master: Master, memory: DmaMemory, target: Uint32Array): Task<void> {
    const invalidates = master.streams.map(({ id }) =>
      CMD_CFGI.make({ Opcode: CMD_OP.CFGI_CD, StreamID: id, Leaf: 1 }),
    );
    yield* writeEntry(
      {
        memory,
        offset: 0,
        usedBits: cdUsedBits,
        safeBits: cdSafeBits,
        validBit: VALID_BIT.cd,
        isTorn: () => this.faults.fires('smmu.entry-not-hitless'),
        sync: () => this.commandQueue.issueAndSync(invalidates),
      },
      target,
    );
  }

  // --- domains ---

  capable(_device: Device, capability: IommuCapability): boolean {
    switch (capability) {
      case 'CACHE_COHERENCY':
        return this.features.isCoherent;
      case 'DIRTY_TRACKING':
        return this.features.hasDirtyState;
      case 'ENFORCE_CACHE_COHERENCY':
        return false;
    }
  }

  *domain_alloc_default(): Task<PagingDomain | number> {
    return this.#allocDomain('dma', this.features.hasStage1 ? 1 : 2, false);
  }

  *domain_alloc_paging_flags(
    _device: Device,
    flags: number,
    data: UserDomainData | undefined,
  ): Task<PagingDomain | number> {
    if (data !== undefined) return -EOPNOTSUPP;
    const { hasStage1, hasStage2, hasDirtyState } = this.features;
    switch (flags) {
      case 0:
        return this.#allocDomain('unmanaged', hasStage1 ? 1 : 2, false);
      case IOMMU_HWPT_ALLOC_NEST_PARENT:
        return hasStage1 && hasStage2 ? this.#allocDomain('unmanaged', 2, false, true) : -EOPNOTSUPP;
      case IOMMU_HWPT_ALLOC_DIRTY_TRACKING:
        return hasStage1 && hasDirtyState ? this.#allocDomain('unmanaged', 1, true) : -EOPNOTSUPP;
      default:
        return -EOPNOTSUPP;
    }
  }

  #allocDomain(
    type: 'unmanaged' | 'dma',
    stage: 1 | 2,
    recordsDirty: boolean,
    isNestParent = false,
  ): ArmSmmuDomain | number {
    const { granuleShifts, outputBits, stage1Bits } = this.features;
    const granuleShift = this.#granuleShift(granuleShifts);
    const widest = granuleShift === 16 ? 52 : 48;
    const inputBits = stage === 2 ? outputBits : Math.min(stage1Bits, this.#description.inputBits);
    const table = PageTable.create(this.#host.arena, {
      stage,
      granuleShift,
      inputBits: Math.min(widest, inputBits),
      outputBits: Math.min(widest, outputBits),
      pageSizes: pageSizesOf(granuleShift),
    });
    if (typeof table === 'number') return table;
    const tag = this.#allocTag(stage);
    if (tag < 0) {
      table.destroy();
      return tag;
    }
    return new ArmSmmuDomain({ smmu: this, type, table, tag, recordsDirty, isNestParent });
  }

  /** The kernel's page size if the SMMU walks it, else the largest smaller, else the smallest larger one. */
  #granuleShift(shifts: readonly number[]): number {
    const wanted = this.#host.pageShift;
    const smaller = shifts.filter((shift) => shift <= wanted).at(-1);
    const shift = smaller ?? shifts[0];
    invariant(shift !== undefined, () => `arm-smmu-v3 ${this.name}: no granule`);
    return shift;
  }

  /** An ASID or VMID that nobody has, or -ENOSPC. */
  #allocTag(stage: 1 | 2): number {
    const space = stage === 1 ? this.#asids : this.#vmids;
    const found = space.alloc();
    const tag = this.faults.fires('smmu.tag-error-unchecked') ? found >>> 0 : found;
    if (tag < 0) return tag;
    invariant(space.isTaken(tag), () => `${this.name}: ${tag} is no ${stage === 1 ? 'ASID' : 'VMID'}`, 'INV-16');
    this.#host.runtime.invariants.held('INV-16');
    this.legality?.tagTaken(stage, tag);
    return tag;
  }

  /** Gives an invalidated ASID or VMID back. */
  releaseTag(stage: 1 | 2, tag: number): void {
    (stage === 1 ? this.#asids : this.#vmids).free(tag);
  }

  // --- facts ---

  supportsAts(device: Device): boolean {
    return this.features.hasAts && pci_ats_supported(device);
  }

  hw_info(_device: Device, type: number): HwInfo | number {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_ARM_SMMUV3) return -EOPNOTSUPP;
    const { idr, iidr, aidr } = this.features.raw;
    return {
      type: IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
      bytes: iommu_hw_info_arm_smmuv3.encode({ flags: 0, idr, iidr, aidr }),
    };
  }
}
