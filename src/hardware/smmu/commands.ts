/**
 * The command queue: a daemon task consumes commands one by one, each costing virtual time, until the queue is empty,
 * disabled or stopped by an error.
 *
 * CMDQ_CONS moves past a command when its effect is done, and past CMD_SYNC when every transaction that began before
 * it has ended: then nobody uses a translation that an earlier command invalidated. An illegal command leaves CONS
 * pointing at it, puts CERROR_ILL into CMDQ_CONS.ERR and raises GERROR.CMDQ_ERR; consumption goes on when software has
 * acknowledged.
 *
 * What a command may be is decided by the identification registers (4.1.3, 4.4.5): without stage 1 the NH commands are
 * illegal, without stage 2 the S12 and S2 ones, and those of ATS, PRI and stalls without these; EL2 and EL3 commands belong to
 * features that these SMMUs do not have. A CMD_SYNC after a CMD_ATC_INV that no device completed ends in CERROR_ATC_INV_SYNC. Fault `smmu.drop-tlbi`: an invalidation of translations is consumed and does nothing.
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { WaitQueue, type Task } from '../../runtime/task.js';
import { sharedTest, sharedWrite } from '../../runtime/watch.js';
import type { AtcPort, GroupResponse, GroupResponsePort } from './ats.js';
import type { StreamConfigurations } from './config.js';
import type { SmmuFeatures } from './identification.js';
import type { LegalityChecker } from './legality.js';
import type { SmmuMemory } from './ports.js';
import {
  CERROR,
  CMD,
  CMD_ATC_INV,
  CMD_CFGI,
  CMD_OP,
  CMD_PRI_RESP,
  CMD_RESUME,
  CMD_SYNC,
  CMD_TLBI,
  SYNC_CS,
  TLBI_TG_SHIFTS,
} from './records.js';
import { CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CR0 } from '../../uapi/smmuv3-registers.js';
import type { RegisterFile } from './register-file.js';
import type { InFlight } from './in-flight.js';
import type { Stalls } from './stalls.js';
import { TLB_KIND, type Tlb, type TlbSelection } from './tlb.js';

/** Virtual time one command takes, CMD_SYNC included. */
const COMMAND_LATENCY_NS = 100;

/** CMD_PRI_RESP.Resp as an answer; the fourth is Reserved. */
const PRI_RESPONSES: readonly (GroupResponse | undefined)[] = ['invalid', 'failure', 'success'];
const STAGE1_KINDS = (1 << TLB_KIND.STAGE1) | (1 << TLB_KIND.NESTED);
const STAGE2_KINDS = 1 << TLB_KIND.STAGE2;
const ALL_KINDS = STAGE1_KINDS | STAGE2_KINDS;
/** CMD_CFGI_STE_RANGE with this Range is CMD_CFGI_ALL. */
const RANGE_ALL = 31;
/** Addresses in the TLB are bits [51:0]; bit 55 says which half. */
const ADDRESS_PAGES = 2 ** 40;
const HALF_PAGE_BIT = 2 ** 43;

/** What decides which invalidations there are and how far they reach. */
type TlbiFeatures = Pick<SmmuFeatures, 'stage1' | 'stage2' | 'asidBits' | 'vmidBits' | 'rangeInvalidation'>;

/** The entries a CMD_TLBI_* is about; undefined for a command that is none, or illegal here. */
export function tlbSelection(command: Uint32Array, features: TlbiFeatures): TlbSelection | undefined {
  const opcode = CMD.get(command, 'Opcode');
  const asid = CMD_TLBI.get(command, 'ASID') % 2 ** features.asidBits;
  const { stage1, stage2, vmidBits } = features;
  // Without stage 2 nothing is tagged by VMID and the field is ignored.
  const vmid = stage2 ? { vmid: CMD_TLBI.get(command, 'VMID') % 2 ** vmidBits } : {};
  switch (opcode) {
    case CMD_OP.TLBI_NH_ALL:
      return stage1 ? { kinds: STAGE1_KINDS, ...vmid } : undefined;
    case CMD_OP.TLBI_NH_ASID:
      return stage1 ? { kinds: STAGE1_KINDS, asid, ...vmid } : undefined;
    case CMD_OP.TLBI_NH_VA:
    case CMD_OP.TLBI_NH_VAA: {
      const range = stage1 ? rangeOf(command, features.rangeInvalidation) : undefined;
      const tag = opcode === CMD_OP.TLBI_NH_VA ? { asid } : {};
      return range && { kinds: STAGE1_KINDS, ...tag, ...vmid, range };
    }
    case CMD_OP.TLBI_S12_VMALL:
      return stage2 ? { kinds: ALL_KINDS, ...vmid } : undefined;
    case CMD_OP.TLBI_S2_IPA: {
      const range = stage2 ? rangeOf(command, features.rangeInvalidation) : undefined;
      return range && { kinds: STAGE2_KINDS, ...vmid, range: { ...range, half: 0 } };
    }
    case CMD_OP.TLBI_NSNH_ALL:
      return { kinds: ALL_KINDS };
    default:
      return undefined;
  }
}

/**
 * Addresses a TLBI by address is about: one page, or (NUM + 1) * 2^SCALE granules where ranges are implemented and TG
 * names a granule. A granule with NUM, SCALE and TTL all zero is Reserved in the architecture and means that one granule
 * here, as in the recorded model. IHI 0070 4.4.1.1.
 */
function rangeOf(command: Uint32Array, hasRanges: boolean): { start: number; last: number; half: number } {
  const page = CMD_TLBI.get(command, 'Address');
  const half = Math.floor(page / HALF_PAGE_BIT) % 2;
  const start = (page % ADDRESS_PAGES) * 4096;
  const granule = TLBI_TG_SHIFTS[CMD_TLBI.get(command, 'TG')];
  if (!hasRanges || granule === undefined) return { start, last: start + 4095, half };
  const num = CMD_TLBI.get(command, 'NUM');
  const scale = CMD_TLBI.get(command, 'SCALE');
  const aligned = start - (start % 2 ** granule);
  return { start: aligned, last: aligned + (num + 1) * 2 ** (scale + granule) - 1, half };
}

/** What commands act upon. */
export interface CommandTargets {
  readonly runtime: NodeRuntime;
  readonly memory: SmmuMemory;
  readonly registers: RegisterFile;
  readonly features: SmmuFeatures;
  readonly configurations: StreamConfigurations;
  readonly tlb: Tlb;
  readonly inFlight: InFlight;
  readonly stalls: Stalls;
  readonly legality: LegalityChecker;
  readonly atc: AtcPort;
  readonly respond: GroupResponsePort;
  readonly name: string;
}

/** Consumes the command queue of one SMMU. */
export class CommandQueue {
  readonly #targets: CommandTargets;
  readonly #work: WaitQueue;
  /** Invalidations of ATCs that no completion has come for yet, and whether one never will. */
  #atcPending = 0;
  #hasAtcTimeout = false;
  readonly #atcDone: WaitQueue;

  constructor(targets: CommandTargets) {
    this.#targets = targets;
    this.#atcDone = new WaitQueue(`${targets.name} ATC invalidations`);
    this.#work = new WaitQueue(`${targets.name} commands`);
  }

  /** Has the daemon look again: CMDQ_PROD, CR0 or GERRORN were written. */
  notify(): void {
    this.#work.wakeAll();
  }

  /** The daemon. */
  *run(): Task<never> {
    const command = new Uint32Array(CMD.sizeBytes / 4);
    for (;;) {
      while (!this.#hasWork()) yield this.#work;
      yield COMMAND_LATENCY_NS;
      if (!this.#hasWork()) continue;
      const isFetched = this.#fetch(command);
      yield 'smmu:command-fetched';
      const error = isFetched ? yield* this.#execute(command) : CERROR.ABT;
      if (error === CERROR.NONE) this.#advance();
      else this.#stop(command, error);
    }
  }

  #log2Size(): number {
    return Math.min(this.#targets.registers.field(CMDQ_BASE, 'LOG2SIZE'), this.#targets.features.commandQueueLog2);
  }

  #hasWork(): boolean {
    const { registers } = this.#targets;
    if (registers.field(CR0, 'CMDQEN') === 0 || registers.isErrorActive('CMDQ_ERR')) return false;
    const mask = 2 ** (this.#log2Size() + 1) - 1;
    return ((registers.field(CMDQ_PROD, 'WR') ^ registers.field(CMDQ_CONS, 'RD')) & mask) !== 0;
  }

  #fetch(command: Uint32Array): boolean {
    const { registers, memory } = this.#targets;
    const log2Size = this.#log2Size();
    const base = registers.queueAddress(CMDQ_BASE, log2Size, CMD.sizeBytes);
    const index = registers.field(CMDQ_CONS, 'RD') % 2 ** log2Size;
    return memory.loadWords(base + index * CMD.sizeBytes, command);
  }

  #advance(): void {
    const { registers } = this.#targets;
    const mask = 2 ** (this.#log2Size() + 1) - 1;
    registers.setField(CMDQ_CONS, 'RD', (registers.field(CMDQ_CONS, 'RD') + 1) & mask);
  }

  #stop(command: Uint32Array, error: number): void {
    const { registers, runtime, name } = this.#targets;
    registers.setField(CMDQ_CONS, 'ERR', error);
    runtime.emit('smmu.command-error', { smmu: name, error, opcode: CMD.get(command, 'Opcode') });
    registers.raiseError('CMDQ_ERR');
  }

  /** Carries out a command; a CERROR. */
  *#execute(command: Uint32Array): Task<number> {
    const opcode = CMD.get(command, 'Opcode');
    switch (opcode) {
      case CMD_OP.PREFETCH_CONFIG:
      case CMD_OP.PREFETCH_ADDR:
        return this.#secureIsIllegal(command);
      case CMD_OP.CFGI_STE:
      case CMD_OP.CFGI_STE_RANGE:
        return this.#invalidateStreams(command, opcode === CMD_OP.CFGI_STE_RANGE);
      case CMD_OP.CFGI_CD:
        return this.#invalidateCd(command);
      case CMD_OP.CFGI_CD_ALL:
        return this.#invalidateStreams(command, false);
      case CMD_OP.ATC_INV:
        return this.#invalidateAtc(command);
      case CMD_OP.PRI_RESP:
        return this.#respond(command);
      case CMD_OP.RESUME:
      case CMD_OP.STALL_TERM:
        return this.#endStall(command, opcode);
      case CMD_OP.SYNC:
        return yield* this.#sync(command);
      default:
        return this.#invalidateTranslations(command);
    }
  }

  #secureIsIllegal(command: Uint32Array): number {
    return CMD.get(command, 'SSec') !== 0 ? CERROR.ILL : CERROR.NONE;
  }

  /** CMD_RESUME, CMD_STALL_TERM: illegal without the stall model. */
  #endStall(command: Uint32Array, opcode: number): number {
    const { features, stalls } = this.#targets;
    if (features.stallModel === 1 || this.#secureIsIllegal(command) !== CERROR.NONE) return CERROR.ILL;
    const streamId = CMD_RESUME.get(command, 'StreamID');
    if (opcode === CMD_OP.STALL_TERM) stalls.abortAll(streamId);
    else {
      const isAbort = features.termModel || CMD_RESUME.get(command, 'Ab') !== 0;
      const end = CMD_RESUME.get(command, 'Ac') !== 0 ? 'retry' : isAbort ? 'abort' : 'terminate';
      stalls.resume(streamId, CMD_RESUME.get(command, 'STAG'), end);
    }
    return CERROR.NONE;
  }

  /** CMD_ATC_INV: the device is told; CMD_SYNC waits for its completion. */
  #invalidateAtc(command: Uint32Array): number {
    const { features, atc, runtime, name } = this.#targets;
    if (!features.ats || this.#secureIsIllegal(command) !== CERROR.NONE) return CERROR.ILL;
    const size = 2n ** BigInt(Math.min(52, CMD_ATC_INV.get(command, 'Size'))) * 4096n;
    const address = BigInt(CMD_ATC_INV.get(command, 'Address')) * 4096n;
    const start = address - (address % size);
    const invalidation = {
      streamId: CMD_ATC_INV.get(command, 'StreamID'),
      substreamId: CMD_ATC_INV.get(command, 'SSV') === 0 ? undefined : CMD_ATC_INV.get(command, 'SubstreamID'),
      isGlobal: CMD_ATC_INV.get(command, 'G') !== 0,
      start,
      last: start + size - 1n,
    };
    sharedWrite(this, 'ATC invalidations', this.#atcPending, this.#atcPending + 1);
    this.#atcPending++;
    const finish = this.#finishAtc(atc(invalidation));
    runtime.spawn(`${name}/atc-inv`, finish);
    return CERROR.NONE;
  }

  *#finishAtc(invalidation: Task<boolean>): Task<void> {
    if (!(yield* invalidation)) this.#hasAtcTimeout = true;
    sharedWrite(this, 'ATC invalidations', this.#atcPending, this.#atcPending - 1);
    this.#atcPending--;
    this.#atcDone.wakeAll();
  }

  /** CMD_PRI_RESP: the answer to a page request group. */
  #respond(command: Uint32Array): number {
    const { features, respond } = this.#targets;
    const response = PRI_RESPONSES[CMD_PRI_RESP.get(command, 'Resp')];
    const isIllegal = !features.pri || response === undefined || this.#secureIsIllegal(command) !== CERROR.NONE;
    if (isIllegal) return CERROR.ILL;
    const substreamId = CMD_PRI_RESP.get(command, 'SSV') === 0 ? undefined : CMD_PRI_RESP.get(command, 'SubstreamID');
    respond(CMD_PRI_RESP.get(command, 'StreamID'), substreamId, CMD_PRI_RESP.get(command, 'PRGIndex'), response);
    return CERROR.NONE;
  }

  #invalidateCd(command: Uint32Array): number {
    if (this.#secureIsIllegal(command) !== CERROR.NONE) return CERROR.ILL;
    const { configurations, features, legality } = this.#targets;
    const substreamId = CMD_CFGI.get(command, 'SubstreamID') % 2 ** features.substreamIdBits;
    const streamId = CMD_CFGI.get(command, 'StreamID');
    configurations.invalidateCd(streamId, substreamId);
    legality.configInvalidated(streamId, streamId, true);
    return CERROR.NONE;
  }

  #invalidateStreams(command: Uint32Array, isRange: boolean): number {
    if (this.#secureIsIllegal(command) !== CERROR.NONE) return CERROR.ILL;
    const { configurations, legality } = this.#targets;
    const streamId = CMD_CFGI.get(command, 'StreamID');
    if (!isRange) {
      configurations.invalidate(streamId, streamId);
      legality.configInvalidated(streamId, streamId, CMD_CFGI.get(command, 'Opcode') === CMD_OP.CFGI_CD_ALL);
      return CERROR.NONE;
    }
    const range = CMD_CFGI.get(command, 'Range');
    if (range === RANGE_ALL) {
      configurations.invalidateAll();
      legality.configInvalidated(0, Infinity);
      return CERROR.NONE;
    }
    const size = 2 ** (range + 1);
    const first = streamId - (streamId % size);
    configurations.invalidate(first, first + size - 1);
    legality.configInvalidated(first, first + size - 1);
    return CERROR.NONE;
  }

  /** CMD_TLBI_*; anything else is illegal. */
  #invalidateTranslations(command: Uint32Array): number {
    const { features, tlb, runtime, legality } = this.#targets;
    const selection = tlbSelection(command, features);
    if (selection === undefined) return CERROR.ILL;
    legality.translationsInvalidated(selection, selection.range !== undefined && CMD_TLBI.get(command, 'Leaf') !== 0);
    if (!runtime.faults.fires('smmu.drop-tlbi')) tlb.invalidate(selection);
    return CERROR.NONE;
  }

  /** Waits for the transactions that began before it, then signals completion. */
  *#sync(command: Uint32Array): Task<number> {
    const signal = CMD_SYNC.get(command, 'CS');
    if (signal > SYNC_CS.SEV) return CERROR.ILL;
    yield* this.#targets.inFlight.drain();
    sharedTest(this, 'ATC invalidations', this.#atcPending);
    while (this.#atcPending > 0) {
      yield this.#atcDone;
      sharedTest(this, 'ATC invalidations', this.#atcPending);
    }
    if (this.#hasAtcTimeout) {
      this.#hasAtcTimeout = false;
      return CERROR.ATC_INV_SYNC;
    }
    this.#targets.legality.synced();
    if (signal === SYNC_CS.IRQ) this.#targets.registers.interrupt('cmdq-sync');
    return CERROR.NONE;
  }
}
