/**
 * An Arm SMMUv3: translates the transactions of the streams behind it, by what its registers and memory say.
 *
 * The board registers {@link Smmu.readRegister} and {@link Smmu.writeRegister} as its MMIO frame and calls {@link
 * Smmu.translate} for every piece of a DMA. The kernel's driver reaches it through those registers, the tables and
 * queues in memory and the interrupt wires, and in no other way.
 *
 * Ownership: the register file, the configuration cache and the TLB are the SMMU's own; tables and queues are memory
 * that software owns. There are no locks: between two yields everything is atomic. A translation that was found while
 * an invalidation happened is used once and never cached.
 *
 * Modelled: Non-secure state, StreamWorld NS-EL1, stage 1, stage 2 and both, VMSAv8-64 with 4, 16 and 64 KiB granules,
 * hardware update of access flag and dirty state, linear and 2-level stream tables, substreams with linear and 2-level CD
 * tables, stalls, ATS with full translation, the PRI queue, range invalidation. Not there, and not claimed by the identification
 * registers: ATS of stage 1 alone, MSIs of its own, EL2 streams, Secure state. Source:
 * Arm IHI 0070, chapters 3 to 7.
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { invariant, type Task } from '../../runtime/task.js';
import type { SmmuDescription } from '../description.js';
import {
  NO_ACCESS,
  type AtcPort,
  type AtsRequest,
  type AtsResponse,
  type GroupResponsePort,
  type PageRequestMessage,
} from './ats.js';
import { CommandQueue } from './commands.js';
import { StreamConfigurations, type StreamConfig, type StreamTable } from './config.js';
import { EventQueue, TRANSLATION_FAULTS, type EventOrigin } from './events.js';
import { featuresOf, identificationOf, type Identification, type SmmuFeatures } from './identification.js';
import { InFlight } from './in-flight.js';
import { TLB_WORDS, type SmmuIrqLine, type SmmuMemory, type TlbStorage } from './ports.js';
import type { EventName } from './records.js';
import { RegisterFile } from './register-file.js';
import {
  CMDQ_CONS,
  CMDQ_PROD,
  CR0,
  CR0ACK,
  EVENTQ_CONS,
  EVENTQ_PROD,
  CR2,
  GBPA,
  GERRORN,
  IRQ_CTRL,
  IRQ_CTRLACK,
  PRIQ_PROD,
  STRTAB_BASE,
  STRTAB_BASE_CFG,
} from '../../uapi/smmuv3-registers.js';
import { cachedWalk } from './cached-walk.js';
import { LegalityChecker } from './legality.js';
import { PageRequestQueue } from './page-requests.js';
import { Stalls } from './stalls.js';
import { Tlb, TLB_KIND, type TlbEntry, type TlbTag } from './tlb.js';
import { faultOf, TableWalker, type Access, type Fault, type Stage1Region, type Translation } from './walk.js';
import { EVENT_CLASS } from './records.js';

/** A transaction as it arrives at the SMMU. */
export interface TranslateRequest {
  readonly streamId: number;
  readonly substreamId?: number;
  /** 64-bit input address. */
  readonly iova: bigint;
  readonly write: boolean;
  /** As signalled with the transaction; a PCIe access without PASID is unprivileged data. */
  readonly privileged?: boolean;
  readonly instruction?: boolean;
}

/** Where a transaction goes, or that it is terminated. */
export type TranslateResult =
  | {
      readonly ok: true;
      readonly pa: number;
      /** Last input address of the page or block this answer holds for. */
      readonly sameTo: bigint;
    }
  | {
      readonly ok: false;
      /** False: it ends as if it had been done: reads zero, writes nothing (RAZ/WI). */
      readonly abort: boolean;
      /** The fault; absent for transactions terminated by configuration (STE.Config abort, GBPA.ABORT). */
      readonly event?: EventName;
    };

/** What an SMMU is built into. */
export interface SmmuPlacement {
  readonly runtime: NodeRuntime;
  readonly memory: SmmuMemory;
  readonly description: SmmuDescription;
  /** A wire is pulsed; IRQ_CTRL has been looked at. */
  readonly irq: (line: SmmuIrqLine) => void;
  /** Identification registers, where they are known exactly; built from the description otherwise. */
  readonly identification?: Identification;
  /** The way of invalidations to devices' ATCs, and of answers to their page requests. */
  readonly atc?: AtcPort;
  readonly respond?: GroupResponsePort;
  /** Where the TLB lives; an array of its own when not given. */
  readonly tlbStorage?: TlbStorage;
}

const ABORT: TranslateResult = { ok: false, abort: true };
const TWO_32 = 2 ** 32;
/** 2^shift - 1, by shift. */
const PAGE_MASKS = Array.from({ length: 53 }, (_, shift) => (1n << BigInt(shift)) - 1n);
/** STE.PRIVCFG and STE.INSTCFG: 2 forces unprivileged or data, 3 privileged or instruction. */
const OVERRIDE_CLEAR = 2;
const OVERRIDE_SET = 3;

/** One SMMUv3. */
export class Smmu {
  readonly name: string;
  readonly identification: Identification;
  readonly features: SmmuFeatures;
  /** What software may not do to structures in use. */
  readonly legality: LegalityChecker;
  readonly #registers: RegisterFile;
  readonly #walker: TableWalker;
  readonly #configurations: StreamConfigurations;
  readonly #tlb: Tlb;
  readonly #events: EventQueue;
  readonly #commands: CommandQueue;
  readonly #inFlight: InFlight;
  readonly #stalls: Stalls;
  readonly #pageRequests: PageRequestQueue;
  /** 2^OAS. */
  readonly #outputEnd: bigint;

  /** Resets the SMMU and starts the task that consumes its command queue. */
  constructor(placement: SmmuPlacement) {
    const { runtime, description } = placement;
    const memory = watchedMemory(placement);
    this.name = description.name;
    this.identification = placement.identification ?? identificationOf(description);
    const features = featuresOf(this.identification);
    this.features = features;
    const queueLog2 = {
      command: features.commandQueueLog2,
      event: features.eventQueueLog2,
      pageRequest: features.pri ? features.pageRequestQueueLog2 : 0,
    };
    const registers = new RegisterFile(this.identification, queueLog2, placement.irq);
    this.#registers = registers;
    this.#outputEnd = 1n << BigInt(features.outputBits);
    this.#tlb = new Tlb(placement.tlbStorage ?? { words: new Int32Array(TLB_WORDS), base: 0 });
    const isEnabled = (): boolean => registers.field(CR0, 'SMMUEN') !== 0;
    this.legality = new LegalityChecker(this.name, isEnabled, this.#tlb, runtime.invariants);
    const losesDirtyState = (): boolean => runtime.faults.fires('smmu.dirty-lost');
    this.#walker = new TableWalker(memory, features, losesDirtyState, (root, input, isWrite) =>
      this.legality.walked(root, input, isWrite),
    );
    this.#configurations = new StreamConfigurations(memory, features, this.#walker);
    this.#events = new EventQueue(runtime, memory, registers, this.name, features.eventQueueLog2);
    this.#inFlight = new InFlight(this.name);
    this.#pageRequests = new PageRequestQueue({
      runtime,
      memory,
      registers,
      name: this.name,
      maxLog2: features.pageRequestQueueLog2,
      respond: placement.respond ?? nobodyAsked,
    });
    this.#stalls = new Stalls(this.name, features.maxStalls);
    this.#commands = new CommandQueue({
      runtime,
      memory,
      registers,
      features,
      configurations: this.#configurations,
      tlb: this.#tlb,
      inFlight: this.#inFlight,
      stalls: this.#stalls,
      legality: this.legality,
      atc: placement.atc ?? completesAtOnce,
      respond: placement.respond ?? nobodyAsked,
      name: this.name,
    });
    runtime.spawn(`${this.name}/commands`, this.#commands.run(), { daemon: true });
  }

  /** Event records in the queue so far, for whoever compares what became of them. */
  get eventsRecorded(): number {
    return this.#events.recorded;
  }

  /** Number of cached translations, for reports. */
  get tlbEntries(): number {
    return this.#tlb.size;
  }

  /** What the TLB holds, for those who look at a machine. */
  tlbContents(): TlbEntry[] {
    return [...this.#tlb.entries()];
  }

  /**
   * Reads the register at `offset` (4-byte aligned) of the frame: 4 bytes as a number, 8 bytes as a bigint. Where no
   * register is, zero.
   */
  readRegister(offset: number, sizeBytes: 4): number;
  readRegister(offset: number, sizeBytes: 8): bigint;
  readRegister(offset: number, sizeBytes: number): number | bigint;
  readRegister(offset: number, sizeBytes: number): number | bigint {
    const low = this.#registers.readWord(offset);
    if (sizeBytes !== 8) return low;
    return (BigInt(this.#registers.readWord(offset + 4)) << 32n) | BigInt(low);
  }

  /** Writes the register at `offset` of the frame. Writes to read-only and absent registers are ignored. */
  writeRegister(offset: number, sizeBytes: number, value: number | bigint): void {
    const whole = BigInt.asUintN(64, BigInt(value));
    this.#writeWord(offset, Number(whole & 0xffffffffn));
    if (sizeBytes === 8) this.#writeWord(offset + 4, Number(whole >> 32n));
  }

  /**
   * Announces a transaction: CMD_SYNC will wait for it until {@link endTransaction}. Whoever accesses memory at a translated
   * address holds a ticket from before the translation until the access is done.
   */
  beginTransaction(): number {
    return this.#inFlight.begin();
  }

  endTransaction(ticket: number): void {
    this.#inFlight.end(ticket);
  }

  /**
   * Translates one access that does not cross a 4 KiB boundary. A fault becomes an event record; one that stalls ends when
   * software says so. `held`: the ticket of the transaction it is part of.
   */
  *translate(request: TranslateRequest, held?: number): Task<TranslateResult> {
    const ticket = held ?? this.#inFlight.begin();
    try {
      return yield* this.#translate(request, ticket);
    } finally {
      if (held === undefined) this.#inFlight.end(ticket);
    }
  }

  /** Answers a translation request (ATS). Only what is wrong with the request itself, or with configuration, is an event. */
  *translateAts(request: AtsRequest): Task<AtsResponse> {
    const ticket = this.#inFlight.begin();
    try {
      return yield* this.#answerAts(request);
    } finally {
      this.#inFlight.end(ticket);
    }
  }

  *#answerAts(request: AtsRequest): Task<AtsResponse> {
    const registers = this.#registers;
    const access: Access = { write: false, instruction: false, privileged: request.privileged ?? false };
    const asked: TranslateRequest = { ...request, write: false };
    const refuse = (event: EventName): AtsResponse => {
      this.#events.report(faultOf(event), originOf(asked, access));
      return { status: 'unsupported' };
    };
    if (!this.features.ats) return refuse('F_UUT');
    if (registers.field(CR0, 'SMMUEN') === 0) return { status: 'unsupported' };
    const config = yield* this.#configurations.find(() => this.#streamTable(), request.streamId, request.substreamId);
    if (!config.ok) {
      if (registers.field(CR2, 'REC_CFG_ATS') !== 0) this.#events.report(config, originOf(asked, access));
      return { status: 'abort' };
    }
    if (config.kind === 'abort') return { status: 'unsupported' };
    if (!config.allowsAts) return refuse('F_BAD_ATS_TREQ');
    if (config.kind === 'bypass') return this.#identity(request);
    const read = yield* this.#lookUp(config, request.iova, overridden(access, config));
    const wantsWrite = request.noWrite !== true;
    // A write through the device's cache is not seen here: dirty state is set when the right to write is given.
    const write = wantsWrite
      ? yield* this.#lookUp(config, request.iova, overridden({ ...access, write: true }, config))
      : read;
    const found = read.ok ? read : write;
    if (!found.ok) return TRANSLATION_FAULTS.has(found.event) ? NO_ACCESS : { status: 'abort' };
    return {
      status: 'success',
      pa: found.address,
      shift: found.shift,
      read: read.ok,
      write: wantsWrite && write.ok,
    };
  }

  /** Where stage 1 is bypassed every address is its own translation (13.6.4). */
  #identity({ iova, noWrite }: AtsRequest): AtsResponse {
    if (iova >= this.#outputEnd) return NO_ACCESS;
    return { status: 'success', pa: Number(iova), shift: 12, read: true, write: noWrite !== true };
  }

  /** A transaction whose address a device got from {@link translateAts}. */
  *passTranslated(request: TranslateRequest): Task<TranslateResult> {
    const registers = this.#registers;
    if (registers.field(CR0, 'SMMUEN') === 0) return ABORT;
    const access: Access = { write: request.write, instruction: false, privileged: request.privileged ?? false };
    if (!this.features.ats) return this.#terminate(faultOf('F_TRANSL_FORBIDDEN'), request, access);
    if (registers.field(CR0, 'ATSCHK') !== 0) {
      const verdict = yield* this.#configurations.findAts(() => this.#streamTable(), request.streamId);
      if (verdict === 'abort') return ABORT;
      if (verdict === 'forbidden') return this.#terminate(faultOf('F_TRANSL_FORBIDDEN'), request, access);
      if (verdict !== 'allowed')
        return registers.field(CR2, 'REC_CFG_ATS') === 0 ? ABORT : this.#terminate(verdict, request, access);
    }
    return request.iova < this.#outputEnd ? this.#bypass(request.iova) : ABORT;
  }

  /** A device's page request (PRI); answered at once where there is no queue for it. */
  requestPage(message: PageRequestMessage): void {
    this.#pageRequests.report(message);
  }

  /** A device's hint that it will need a page soon (7.3.19): software is told, nothing waits. */
  hintPage(request: TranslateRequest): void {
    const access: Access = { write: request.write, instruction: false, privileged: request.privileged ?? false };
    this.#events.report(faultOf('E_PAGE_REQUEST'), originOf(request, access));
  }

  *#lookUp(config: TranslatingConfig, iova: bigint, access: Access): Task<Found> {
    if (config.stage1 !== undefined) return yield* this.#throughStage1(config, iova, access);
    return yield* this.#throughStage2(config, iova, access, iova < this.#outputEnd);
  }

  *#translate(request: TranslateRequest, ticket: number): Task<TranslateResult> {
    for (;;) {
      const attempt = yield* this.#attempt(request);
      if (!('stalls' in attempt)) return attempt;
      const { fault, access } = attempt.stalls;
      this.#inFlight.end(ticket);
      const stall = yield* this.#stalls.begin(request.streamId);
      this.#events.report(fault, originOf(request, access), stall.stag);
      const end = yield* this.#stalls.wait(stall);
      this.#inFlight.again(ticket);
      if (end !== 'retry') return { ok: false, abort: end === 'abort', event: fault.event };
    }
  }

  *#attempt(request: TranslateRequest): Task<TranslateResult | Stalling> {
    const registers = this.#registers;
    const inside = request.iova < this.#outputEnd;
    if (registers.field(CR0, 'SMMUEN') === 0) {
      return registers.field(GBPA, 'ABORT') !== 0 || !inside ? ABORT : this.#bypass(request.iova);
    }
    const incoming: Access = {
      write: request.write,
      instruction: request.instruction ?? false,
      privileged: request.privileged ?? false,
    };
    const { streamId, substreamId } = request;
    const config = yield* this.#configurations.find(() => this.#streamTable(), streamId, substreamId);
    if (!config.ok) return this.#terminate(config, request, incoming);
    if (config.kind === 'abort') return ABORT;
    if (config.kind === 'bypass') {
      if (inside) return this.#bypass(request.iova);
      return this.#terminate(faultOf('F_ADDR_SIZE'), request, incoming);
    }
    const access = overridden(incoming, config);
    const found = yield* this.#lookUp(config, request.iova, access);
    if (!found.ok) {
      const stage = found.stage2 ? config.stage2 : config.stage1;
      const isStalling = stage?.stallsFaults === true && TRANSLATION_FAULTS.has(found.event);
      if (isStalling) return { stalls: { fault: found, access } };
      const aborts = found.stage2 || config.stage1?.abortsFaults !== false || !TRANSLATION_FAULTS.has(found.event);
      return this.#terminate(found, request, access, aborts);
    }
    return { ok: true, pa: found.address, sameTo: request.iova | (PAGE_MASKS[found.shift] ?? 0n) };
  }

  #bypass(iova: bigint): TranslateResult {
    return { ok: true, pa: Number(iova), sameTo: this.#outputEnd - 1n };
  }

  #terminate(fault: Fault, request: TranslateRequest, access: Access, abort = true): TranslateResult {
    this.#events.report(fault, originOf(request, access));
    return { ok: false, abort, event: fault.event };
  }

  *#throughStage1(config: TranslatingConfig, iova: bigint, access: Access): Task<Found> {
    const { stage1, stage2 } = config;
    if (stage1 === undefined) return faultOf('F_TRANSLATION');
    const high = Number(iova >> 32n) >>> 0;
    const half = (high >>> 23) & 1;
    const region = stage1.regions[half === 1 ? 1 : 0];
    /** VA[51:0]. */
    const input = (high & 0xfffff) * TWO_32 + Number(iova & 0xffffffffn);
    if (region.disabled || !isInRange(region, high >>> 20, input, half)) {
      return faultOf('F_TRANSLATION', { silenced: !stage1.recordsFaults });
    }
    const tag: TlbTag = {
      kind: stage2 === undefined ? TLB_KIND.STAGE1 : TLB_KIND.NESTED,
      asid: stage1.asid,
      vmid: config.vmid,
      half,
      granuleShift: region.granuleShift,
    };
    return yield* this.#cached(tag, input, access, () =>
      this.#walker.stage1(stage1, region, input % 2 ** region.inputBits, access, stage2),
    );
  }

  *#throughStage2(config: TranslatingConfig, iova: bigint, access: Access, inside: boolean): Task<Found> {
    const { stage2 } = config;
    // Stage 1 is bypassed: an address beyond the IAS (which is the OAS without VMSAv8-32) is a stage 1 fault.
    if (!inside || stage2 === undefined) return faultOf('F_ADDR_SIZE');
    const ipa = Number(iova);
    const tag: TlbTag = {
      kind: TLB_KIND.STAGE2,
      asid: 0,
      vmid: config.vmid,
      half: 0,
      granuleShift: stage2.granuleShift,
    };
    return yield* this.#cached(tag, ipa, access, () => this.#walker.stage2(stage2, ipa, access, EVENT_CLASS.IN));
  }

  *#cached(tag: TlbTag, input: number, access: Access, walk: () => Task<Found>): Task<Found> {
    // Below level 2 two sizes for one address are software's mistake: it did not break before it made.
    return yield* cachedWalk(this.#tlb, this.features.breakBeforeMakeLevel < 2, tag, input, access, walk);
  }

  #streamTable(): StreamTable {
    const registers = this.#registers;
    return {
      baseAddress: registers.field(STRTAB_BASE, 'ADDR') * 64,
      format: registers.field(STRTAB_BASE_CFG, 'FMT'),
      log2Size: registers.field(STRTAB_BASE_CFG, 'LOG2SIZE'),
      split: registers.field(STRTAB_BASE_CFG, 'SPLIT'),
    };
  }

  #writeWord(offset: number, value: number): void {
    const registers = this.#registers;
    // Indices that the hardware owns while their queue is enabled.
    if (offset === CMDQ_CONS.offset && registers.field(CR0, 'CMDQEN') !== 0) return;
    if (offset === PRIQ_PROD.offset && registers.field(CR0, 'PRIQEN') !== 0) return;
    if (offset === EVENTQ_PROD.offset && registers.field(CR0, 'EVENTQEN') !== 0) return;
    // Bypass attributes change only by a write that asks for the update.
    if (offset === GBPA.offset && GBPA.get([value], 'Update') === 0) return;
    if (!registers.writeWord(offset, value)) return;
    switch (offset) {
      case GBPA.offset:
        registers.setField(GBPA, 'Update', 0);
        break;
      case CR0.offset:
        registers.acknowledge(CR0, CR0ACK);
        if (registers.field(CR0, 'SMMUEN') === 0) this.#stalls.abortAll();
        this.#commands.notify();
        this.#events.flush();
        break;
      case EVENTQ_CONS.offset:
        this.#events.flush();
        break;
      case IRQ_CTRL.offset:
        registers.acknowledge(IRQ_CTRL, IRQ_CTRLACK);
        break;
      case CMDQ_PROD.offset:
      case GERRORN.offset:
        this.#commands.notify();
        this.#events.flush();
        break;
    }
  }
}

/** Memory as an SMMU reads it: never a page that the kernel had for it and has given back (INV-4). */
function watchedMemory({ runtime, memory, description }: SmmuPlacement): SmmuMemory {
  if (memory.isGivenBack === undefined) return memory;
  return {
    loadWords(pa, out) {
      invariant(
        memory.isGivenBack?.(pa) !== true,
        () =>
          `${description.name} reads a table or descriptor at 0x${pa.toString(16)}, where the kernel has given the page back`,
        'INV-4',
      );
      runtime.invariants.held('INV-4');
      return memory.loadWords(pa, out);
    },
    store64: (pa, lo, hi) => memory.store64(pa, lo, hi),
    compareAndSwap64: (...swap) => memory.compareAndSwap64(...swap),
  };
}

/** Where no device has an ATC. */
function* completesAtOnce(): Task<boolean> {
  return true;
}

/** Where no device asks for pages. */
function nobodyAsked(): void {
  // Nobody waits for an answer.
}

type Found = Translation | Fault;

/** A transaction that its fault stops. */
interface Stalling {
  readonly stalls: { readonly fault: Fault; readonly access: Access };
}

function originOf({ streamId, substreamId, iova }: TranslateRequest, access: Access): EventOrigin {
  return { streamId, substreamId, iova: BigInt.asUintN(64, iova), access };
}
type TranslatingConfig = Extract<StreamConfig, { kind: 'translate' }>;

/** Whether the bits above the region's range are a sign extension. `top` is VA[63:52]; TBI ignores VA[63:56]. */
function isInRange(region: Stage1Region, top: number, input: number, half: number): boolean {
  const topMask = region.ignoresTopByte ? 0xf : 0xfff;
  const rest = Math.floor(input / 2 ** region.inputBits);
  if (half === 0) return (top & topMask) === 0 && rest === 0;
  return (top & topMask) === topMask && rest === 2 ** (52 - region.inputBits) - 1;
}

function overridden(access: Access, config: TranslatingConfig): Access {
  const apply = (value: boolean, override: number): boolean =>
    override === OVERRIDE_SET || (value && override !== OVERRIDE_CLEAR);
  return {
    write: access.write,
    instruction: !access.write && apply(access.instruction, config.instructionOverride),
    privileged: apply(access.privileged, config.privilegeOverride),
  };
}
