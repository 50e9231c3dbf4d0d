/**
 * Configuration of streams: finds a StreamID's stream table entry and context descriptor in memory, checks them as
 * IHI 0070 5.2.2 (SteIllegal) and 5.4.2 (CdIllegal) say, and keeps what was found until it is invalidated.
 *
 * The cache holds, per StreamID and SubstreamID, the STE together with the CD reached through it: one entry, as the
 * architecture allows. CMD_CFGI_CD therefore drops the STE too; it is never less than what was asked for. Structures that
 * ended in a fault are not cached. An STE changed in memory without CMD_CFGI_* goes on being used in its old form.
 *
 * Substreams (3.9, 5.2): with S1CDMax 0 a stream has one CD and no substreams. Else CDs are an array, or two levels of it
 * (S1Fmt), and S1DSS says what becomes of transactions without a substream: they are terminated, bypass stage 1, or use
 * CD 0, which no substream may use then.
 *
 * Registers are passed in as they are at the moment of the lookup; nothing here looks at the kernel's objects.
 */
import { isWatched, sharedRead, sharedWrite } from '../../runtime/watch.js';
import { steSafeBits, steUsedBits } from './used-bits.js';
import type { Task } from '../../runtime/task.js';
import type { SmmuFeatures } from './identification.js';
import type { SmmuMemory } from './ports.js';
import {
  ADDRESS_SIZE_BITS,
  CD,
  EVENT_CLASS,
  L1CD,
  L1STD,
  STE,
  STE_CONFIG,
  STE_S1DSS,
  STE_EATS,
  TG0_SHIFTS,
  TG1_SHIFTS,
} from './records.js';
import { STRTAB_FMT } from '../../uapi/smmuv3-registers.js';
import {
  alignDown,
  faultOf,
  levelShift,
  stage1StartLevel,
  type Access,
  type Fault,
  type Stage1Config,
  type Stage1Region,
  type Stage2Config,
  type TableWalker,
} from './walk.js';

/** log2 of the CDs in a leaf table, by S1Fmt; 0: one linear table. */
const CD_LEAF_LOG2 = [0, 6, 10];

/** What a stream table entry makes of its stream's transactions. */
export type StreamConfig =
  | { readonly ok: true; readonly kind: 'abort' }
  | {
      readonly ok: true;
      readonly kind: 'bypass';
      /** Stage 1 is bypassed by S1DSS, under an STE that answers translation requests (13.6.4). */
      readonly allowsAts: boolean;
    }
  | {
      readonly ok: true;
      readonly kind: 'translate';
      readonly stage1: Stage1Config | undefined;
      readonly stage2: Stage2Config | undefined;
      readonly vmid: number;
      /** STE.EATS: translation requests are answered, translated transactions pass. */
      readonly allowsAts: boolean;
      /** STE.PRIVCFG and STE.INSTCFG; 0 where the SMMU cannot override them. */
      readonly privilegeOverride: number;
      readonly instructionOverride: number;
    };

/** STRTAB_BASE and STRTAB_BASE_CFG, decoded. */
export interface StreamTable {
  readonly baseAddress: number;
  readonly format: number;
  readonly log2Size: number;
  readonly split: number;
}

const NO_SUBSTREAM = -1;
const STE_WORDS = STE.sizeBytes / 4;
const CD_WORDS = CD.sizeBytes / 4;
const CD_READ: Access = { write: false, instruction: false, privileged: true };
/** STRTAB_BASE_CFG.SPLIT values that are not Reserved; any other behaves as the first. */
const SPLITS = [6, 8, 10];
/** S2SL0 as a start level, by granule shift. -1: Reserved. */
const S2_START_LEVELS: Readonly<Record<number, readonly number[]>> = {
  12: [2, 1, 0, -1],
  14: [3, 2, 1, -1],
  16: [3, 2, 1, -1],
};
/** Input widths that are always possible: TxSZ from 16 to 39, to 48 (47 with 64 KiB) where small tables exist. */
const MIN_TXSZ = 16;
const MIN_TXSZ_LARGE = 12;
const MAX_TXSZ = 39;
const MAX_CONCATENATION_BITS = 4;

/** Whether two STEs differ in what matters; in the middle of a hitless change they do not. */
function meansOther(known: Uint32Array, ste: Uint32Array): boolean {
  const [before, now, safe] = [steUsedBits(known), steUsedBits(ste), steSafeBits(known, ste)];
  return known.some((word, i) => ((word ^ (ste[i] ?? 0)) & (before[i] ?? 0) & (now[i] ?? 0) & ~(safe[i] ?? 0)) !== 0);
}

/** Finds and caches the configuration of streams. */
export class StreamConfigurations {
  readonly #memory: SmmuMemory;
  readonly #features: SmmuFeatures;
  readonly #walker: TableWalker;
  /** By StreamID, then by SubstreamID (none: -1). */
  readonly #cache = new Map<number, Map<number, StreamConfig>>();
  /** The STE that a stream's cached configurations came from. */
  readonly #stes = new Map<number, Uint32Array>();
  #invalidations = 0;

  constructor(memory: SmmuMemory, features: SmmuFeatures, walker: TableWalker) {
    this.#memory = memory;
    this.#features = features;
    this.#walker = walker;
  }

  /** The configuration of a stream or substream, from the cache or from memory; `table` reads the registers when memory is needed. */
  *find(table: () => StreamTable, streamId: number, substreamId?: number): Task<StreamConfig | Fault> {
    const cached = this.#cache.get(streamId)?.get(substreamId ?? NO_SUBSTREAM);
    this.#note(streamId, false);
    if (cached !== undefined) return cached;
    const before = this.#invalidations;
    const ste = yield* this.#fetchSte(table(), streamId);
    if ('ok' in ste) return ste;
    // What is cached of the stream's other substreams came from another STE: nobody invalidated that.
    const known = this.#steOfCached(streamId);
    if (known !== undefined && meansOther(known, ste)) return faultOf('F_CFG_CONFLICT');
    const config = yield* this.#configOf(ste, substreamId);
    // An invalidation during the fetch means that what was fetched may be old: use it once, do not keep it.
    this.#note(streamId, config.ok);
    if (config.ok && before === this.#invalidations) {
      const stream = this.#cache.get(streamId) ?? new Map<number, StreamConfig>();
      this.#cache.set(streamId, stream.set(substreamId ?? NO_SUBSTREAM, config));
      this.#stes.set(streamId, ste);
    }
    return config;
  }

  /** Whether translated transactions of a stream pass: its STE alone says so (3.9.1). */
  *findAts(table: () => StreamTable, streamId: number): Task<'abort' | 'allowed' | 'forbidden' | Fault> {
    const ste = this.#steOfCached(streamId) ?? (yield* this.#fetchSte(table(), streamId));
    if ('ok' in ste) return ste;
    return this.#verdictOf(ste) ?? (this.#allowsAts(ste) ? 'allowed' : 'forbidden');
  }

  /** What an STE says before anything else of it counts: invalid or illegal, or abort. */
  #verdictOf(ste: Uint32Array): 'abort' | Fault | undefined {
    const config = STE.get(ste, 'Config');
    if (STE.get(ste, 'V') === 0) return faultOf('C_BAD_STE');
    if (config < STE_CONFIG.BYPASS) return 'abort';
    return this.#steIllegal(ste, config) ? faultOf('C_BAD_STE') : undefined;
  }

  /** STE.EATS, where stage 1 or 2 is there at all. */
  #allowsAts(ste: Uint32Array): boolean {
    const translates = STE.get(ste, 'Config') > STE_CONFIG.BYPASS;
    return this.#features.ats && translates && STE.get(ste, 'EATS') === STE_EATS.FULL;
  }

  #steOfCached(streamId: number): Uint32Array | undefined {
    this.#note(streamId, false);
    return (this.#cache.get(streamId)?.size ?? 0) > 0 ? this.#stes.get(streamId) : undefined;
  }

  *#fetchSte(table: StreamTable, streamId: number): Task<Uint32Array | Fault> {
    const address = this.#steAddress(table, streamId);
    if (typeof address === 'object') return address;
    yield 'smmu:ste-fetch';
    const ste = new Uint32Array(STE_WORDS);
    return this.#memory.loadWords(address, ste) ? ste : faultOf('F_STE_FETCH', { fetchAddress: address });
  }

  /** What is cached of a stream, and whether it still may be, is one shared word; invalidations are another. */
  #note(streamId: number, isWrite: boolean): void {
    if (!isWatched()) return;
    (isWrite ? sharedWrite : sharedRead)(this, `stream 0x${streamId.toString(16)}`);
    sharedRead(this, 'invalidations');
  }

  /** Forgets one CD of a stream, and what transactions without a substream made of CD 0. */
  invalidateCd(streamId: number, substreamId: number): void {
    sharedWrite(this, 'invalidations');
    this.#invalidations++;
    const stream = this.#cache.get(streamId);
    stream?.delete(substreamId);
    if (substreamId === 0) stream?.delete(NO_SUBSTREAM);
  }

  /** Forgets the streams `first`..`last`. */
  invalidate(first: number, last: number): void {
    sharedWrite(this, 'invalidations');
    this.#invalidations++;
    if (first === last) this.#cache.delete(first);
    else
      for (const streamId of [...this.#cache.keys()])
        if (streamId >= first && streamId <= last) this.#cache.delete(streamId);
  }

  /** Forgets every stream. */
  invalidateAll(): void {
    sharedWrite(this, 'invalidations');
    this.#invalidations++;
    this.#cache.clear();
  }

  /** Address of the stream's STE, through the level 1 table where there is one. IHI 0070 3.3.1, 5.1. */
  #steAddress(table: StreamTable, streamId: number): number | Fault {
    const log2Size = Math.min(table.log2Size, this.#features.streamIdBits);
    if (streamId >= 2 ** log2Size) return faultOf('C_BAD_STREAMID');
    const twoLevel = table.format === STRTAB_FMT.TWO_LEVEL && this.#features.twoLevelStreamTable;
    // The base is aligned to the size that LOG2SIZE literally says, whatever StreamIDs there are (6.3.24).
    if (!twoLevel) return alignDown(table.baseAddress, table.log2Size + 6) + streamId * STE.sizeBytes;
    const split = SPLITS.includes(table.split) ? table.split : 6;
    const base = alignDown(table.baseAddress, Math.max(6, table.log2Size - split + 3));
    const l1Address = base + Math.floor(streamId / 2 ** split) * L1STD.sizeBytes;
    const l1 = new Uint32Array(2);
    if (!this.#memory.loadWords(l1Address, l1)) return faultOf('F_STE_FETCH', { fetchAddress: l1Address });
    const span = L1STD.get(l1, 'Span');
    const index = streamId % 2 ** split;
    if (span === 0 || span > split + 1 || index >= 2 ** (span - 1)) return faultOf('C_BAD_STREAMID');
    return alignDown(L1STD.get(l1, 'L2Ptr') * 64, 6 + span - 1) + index * STE.sizeBytes;
  }

  *#configOf(ste: Uint32Array, substreamId: number | undefined): Task<StreamConfig | Fault> {
    const verdict = this.#verdictOf(ste);
    if (verdict !== undefined) return verdict === 'abort' ? { ok: true, kind: 'abort' } : verdict;
    const config = STE.get(ste, 'Config');
    const usesStage1 = (config & 1) !== 0;
    const cdIndex = this.#cdIndexOf(ste, usesStage1, substreamId);
    if (typeof cdIndex === 'object') return cdIndex;
    const stage2 = (config & 2) !== 0 ? this.#stage2Of(ste) : undefined;
    // Stage 1 may be passed by, too: by S1DSS.
    const allowsAts = this.#allowsAts(ste);
    if (stage2 === undefined && (!usesStage1 || cdIndex === undefined)) return { ok: true, kind: 'bypass', allowsAts };
    let stage1: Stage1Config | undefined;
    if (usesStage1 && cdIndex !== undefined) {
      const found = yield* this.#fetchCd(ste, cdIndex, stage2);
      if ('ok' in found) return found;
      stage1 = found;
    }
    const overrides = this.#features.permissionOverride;
    return {
      ok: true,
      kind: 'translate',
      stage1,
      stage2,
      vmid: this.#features.stage2 ? STE.get(ste, 'S2VMID') : 0,
      allowsAts,
      privilegeOverride: overrides ? STE.get(ste, 'PRIVCFG') : 0,
      instructionOverride: overrides ? STE.get(ste, 'INSTCFG') : 0,
    };
  }

  /** Which CD a transaction uses: undefined for none, or why it may not be (7.3.7, 7.3.9). */
  #cdIndexOf(ste: Uint32Array, usesStage1: boolean, substreamId: number | undefined): number | undefined | Fault {
    const hasSubstreams = usesStage1 && STE.get(ste, 'S1CDMax') > 0;
    if (!hasSubstreams) return substreamId === undefined ? 0 : faultOf('C_BAD_SUBSTREAMID');
    const s1dss = STE.get(ste, 'S1DSS');
    if (substreamId !== undefined) {
      if (substreamId >= 2 ** STE.get(ste, 'S1CDMax')) return faultOf('C_BAD_SUBSTREAMID');
      return substreamId === 0 && s1dss === STE_S1DSS.SSID0 ? faultOf('F_STREAM_DISABLED') : substreamId;
    }
    if (s1dss === STE_S1DSS.TERMINATE) return faultOf('F_STREAM_DISABLED');
    return s1dss === STE_S1DSS.BYPASS ? undefined : 0;
  }

  /** SteIllegal() of IHI 0070 5.2.2 for a valid STE that does not abort, Non-secure, VMSAv8-64. */
  #steIllegal(ste: Uint32Array, config: number): boolean {
    const { stage1, stage2, stallModel, ats, vmidBits, outputBits, substreamIdBits, twoLevelCdTable } = this.#features;
    const usesStage1 = (config & 1) !== 0;
    const usesStage2 = (config & 2) !== 0;
    if ((usesStage1 && !stage1) || (usesStage2 && !stage2)) return true;
    const eats = STE.get(ste, 'EATS');
    const stalls = STE.get(ste, 'S2S') !== 0;
    if (ats && config !== STE_CONFIG.BYPASS) {
      if (eats === 2 && (config !== STE_CONFIG.NESTED || stalls)) return true;
      if (eats === 1 && stalls && usesStage2) return true;
    }
    if (usesStage1) {
      if (STE.get(ste, 'S1STALLD') !== 0 && stallModel !== 0) return true;
      const cdMax = STE.get(ste, 'S1CDMax');
      if (cdMax > substreamIdBits) return true;
      if (cdMax > 0 && STE.get(ste, 'S1DSS') > STE_S1DSS.SSID0) return true;
      const leafLog2 = CD_LEAF_LOG2[STE.get(ste, 'S1Fmt')];
      if (cdMax > 0 && (leafLog2 === undefined || (leafLog2 > 0 && !twoLevelCdTable))) return true;
      if (STE.get(ste, 'S1ContextPtr') * 64 >= 2 ** outputBits && !usesStage2) return true;
    }
    if (usesStage2 && this.#stage2Illegal(ste)) return true;
    return config !== STE_CONFIG.BYPASS && stage2 && vmidBits === 8 && STE.get(ste, 'S2VMID') > 0xff;
  }

  #stage2Illegal(ste: Uint32Array): boolean {
    const features = this.#features;
    const stalls = STE.get(ste, 'S2S') !== 0;
    if (stalls ? features.stallModel === 1 : features.stallModel === 2) return true;
    if (STE.get(ste, 'S2AA64') === 0) return true;
    if (this.#endianIllegal(STE.get(ste, 'S2ENDI'))) return true;
    const granule = TG0_SHIFTS[STE.get(ste, 'S2TG')];
    if (granule === undefined || !features.granuleShifts.includes(granule)) return true;
    const outputBits = this.#effectiveOutputBits(STE.get(ste, 'S2PS'), granule);
    if (STE.get(ste, 'S2TTB') * 16 >= 2 ** outputBits) return true;
    const txsz = STE.get(ste, 'S2T0SZ');
    const minimum = granule === 16 ? MIN_TXSZ_LARGE : MIN_TXSZ;
    // The input range may not exceed the effective output size, as the recorded model has it (5.2 speaks of the IAS).
    if (txsz < Math.max(minimum, 64 - outputBits) || txsz > this.#maximumTxSz(granule)) return true;
    const startLevel = this.#s2StartLevel(granule, STE.get(ste, 'S2SL0'));
    if (startLevel < 0) return true;
    const startBits = 64 - txsz - levelShift(granule, startLevel);
    return startBits < 1 || startBits > granule - 3 + MAX_CONCATENATION_BITS;
  }

  #s2StartLevel(granule: number, sl0: number): number {
    if (granule === 12 && sl0 === 3 && this.#features.smallTables) return 3;
    return S2_START_LEVELS[granule]?.[sl0] ?? -1;
  }

  #stage2Of(ste: Uint32Array): Stage2Config {
    const granuleShift = TG0_SHIFTS[STE.get(ste, 'S2TG')] ?? 12;
    const inputBits = 64 - STE.get(ste, 'S2T0SZ');
    const startLevel = this.#s2StartLevel(granuleShift, STE.get(ste, 'S2SL0'));
    const tableShift = inputBits - levelShift(granuleShift, startLevel) + 3;
    const updatesAccessFlag = this.#features.accessFlagUpdate && STE.get(ste, 'S2HA') !== 0;
    return {
      granuleShift,
      inputBits,
      outputBits: this.#effectiveOutputBits(STE.get(ste, 'S2PS'), granuleShift),
      tableAddress: alignDown(STE.get(ste, 'S2TTB') * 16, tableShift),
      startLevel,
      accessFlagFaultDisabled: STE.get(ste, 'S2AFFD') !== 0,
      updatesAccessFlag,
      updatesDirtyState: updatesAccessFlag && this.#features.dirtyStateUpdate && STE.get(ste, 'S2HD') !== 0,
      protectsTableWalks: STE.get(ste, 'S2PTW') !== 0,
      recordsFaults: STE.get(ste, 'S2R') !== 0,
      stallsFaults: STE.get(ste, 'S2S') !== 0,
    };
  }

  /** Address of a CD, through the level 1 table where there is one (5.3, 5.5). */
  *#cdAddress(ste: Uint32Array, index: number, stage2: Stage2Config | undefined): Task<number | Fault> {
    const base = STE.get(ste, 'S1ContextPtr') * 64;
    const cdMax = STE.get(ste, 'S1CDMax');
    const leafLog2 = cdMax === 0 ? 0 : (CD_LEAF_LOG2[STE.get(ste, 'S1Fmt')] ?? 0);
    if (leafLog2 === 0) return alignDown(base, 6 + cdMax) + index * CD.sizeBytes;
    const l1Bytes = Math.max(64, 2 ** Math.max(0, cdMax - leafLog2) * L1CD.sizeBytes);
    const at = yield* this.#throughStage2(
      alignDown(base, Math.log2(l1Bytes)) + Math.floor(index / 2 ** leafLog2) * L1CD.sizeBytes,
      stage2,
    );
    if (typeof at === 'object') return at;
    yield 'smmu:l1cd-fetch';
    const l1 = new Uint32Array(L1CD.sizeBytes / 4);
    if (!this.#memory.loadWords(at, l1)) return faultOf('F_CD_FETCH', { fetchAddress: at });
    if (L1CD.get(l1, 'V') === 0) return faultOf('C_BAD_SUBSTREAMID');
    const leaf = alignDown(L1CD.get(l1, 'L2Ptr') * 4096, leafLog2 + 6);
    return leaf + (index % 2 ** leafLog2) * CD.sizeBytes;
  }

  /** A configuration address as a physical one. */
  *#throughStage2(address: number, stage2: Stage2Config | undefined): Task<number | Fault> {
    if (stage2 === undefined) return address;
    const where = yield* this.#walker.stage2(stage2, address, CD_READ, EVENT_CLASS.CD);
    return where.ok ? where.address : where;
  }

  /** Fetches a context descriptor, through stage 2 where its address is an IPA. */
  *#fetchCd(ste: Uint32Array, index: number, stage2: Stage2Config | undefined): Task<Stage1Config | Fault> {
    const named = yield* this.#cdAddress(ste, index, stage2);
    const address = typeof named === 'object' ? named : yield* this.#throughStage2(named, stage2);
    if (typeof address === 'object') return address;
    yield 'smmu:cd-fetch';
    const cd = new Uint32Array(CD_WORDS);
    if (!this.#memory.loadWords(address, cd)) return faultOf('F_CD_FETCH', { fetchAddress: address });
    if (this.#cdIllegal(ste, cd)) return faultOf('C_BAD_CD');
    const updatesAccessFlag = CD.get(cd, 'HA') !== 0;
    return {
      asid: CD.get(cd, 'ASID'),
      regions: [this.#regionOf(cd, 0), this.#regionOf(cd, 1)],
      outputBits: this.#effectiveOutputBits(CD.get(cd, 'IPS'), 16),
      accessFlagFaultDisabled: CD.get(cd, 'AFFD') !== 0,
      updatesAccessFlag,
      updatesDirtyState: updatesAccessFlag && CD.get(cd, 'HD') !== 0,
      writableNeverExecutes: CD.get(cd, 'WXN') !== 0,
      privilegedAccessNever: CD.get(cd, 'PAN') !== 0,
      recordsFaults: CD.get(cd, 'R') !== 0,
      stallsFaults: CD.get(cd, 'S') !== 0,
      abortsFaults: this.#features.termModel || CD.get(cd, 'A') !== 0,
    };
  }

  /** CdIllegal() of IHI 0070 5.4.2, Non-secure EL1, VMSAv8-64. */
  #cdIllegal(ste: Uint32Array, cd: Uint32Array): boolean {
    const features = this.#features;
    if (CD.get(cd, 'V') === 0 || CD.get(cd, 'AA64') === 0) return true;
    const stalls = CD.get(cd, 'S') !== 0;
    if (stalls && (STE.get(ste, 'S1STALLD') !== 0 || features.stallModel === 1)) return true;
    if (!stalls && features.stallModel === 2) return true;
    if (features.termModel && CD.get(cd, 'A') === 0) return true;
    const enabled0 = CD.get(cd, 'EPD0') === 0;
    const enabled1 = CD.get(cd, 'EPD1') === 0;
    if ((enabled0 || enabled1) && this.#endianIllegal(CD.get(cd, 'ENDI'))) return true;
    if (CD.get(cd, 'HA') !== 0 && !features.accessFlagUpdate) return true;
    if (CD.get(cd, 'HD') !== 0 && !features.dirtyStateUpdate) return true;
    if (features.asidBits === 8 && CD.get(cd, 'ASID') > 0xff) return true;
    const ips = CD.get(cd, 'IPS');
    const region = (txsz: number, granule: number | undefined, ttb: number): boolean =>
      granule === undefined ||
      !features.granuleShifts.includes(granule) ||
      txsz < (granule === 16 && features.largeInput ? MIN_TXSZ_LARGE : MIN_TXSZ) ||
      txsz > this.#maximumTxSz(granule) ||
      ttb * 16 >= 2 ** this.#effectiveOutputBits(ips, granule);
    if (enabled0 && region(CD.get(cd, 'T0SZ'), TG0_SHIFTS[CD.get(cd, 'TG0')], CD.get(cd, 'TTB0'))) return true;
    return enabled1 && region(CD.get(cd, 'T1SZ'), TG1_SHIFTS[CD.get(cd, 'TG1')], CD.get(cd, 'TTB1'));
  }

  #regionOf(cd: Uint32Array, half: 0 | 1): Stage1Region {
    const granules = half === 0 ? TG0_SHIFTS : TG1_SHIFTS;
    const granuleShift = granules[CD.get(cd, half === 0 ? 'TG0' : 'TG1')] ?? 12;
    const inputBits = 64 - CD.get(cd, half === 0 ? 'T0SZ' : 'T1SZ');
    const startLevel = stage1StartLevel(granuleShift, inputBits);
    const isWide = ADDRESS_SIZE_BITS[CD.get(cd, 'IPS')] === 52 && this.#features.outputBits === 52;
    const tableShift = Math.max(isWide ? 6 : 4, inputBits - levelShift(granuleShift, startLevel) + 3);
    const hasDisable = this.#features.hierarchicalDisable;
    return {
      disabled: CD.get(cd, half === 0 ? 'EPD0' : 'EPD1') !== 0,
      granuleShift,
      inputBits,
      ignoresTopByte: CD.get(cd, half === 0 ? 'TBI0' : 'TBI1') !== 0,
      ignoresTableAttributes: hasDisable && CD.get(cd, half === 0 ? 'HAD0' : 'HAD1') !== 0,
      tableAddress: alignDown(CD.get(cd, half === 0 ? 'TTB0' : 'TTB1') * 16, tableShift),
      startLevel,
    };
  }

  /** Effective IPS or S2PS: capped to the OAS, and to 48 bits for granules below 64 KiB. */
  #effectiveOutputBits(encoded: number, granuleShift: number): number {
    const wanted = ADDRESS_SIZE_BITS[encoded] ?? this.#features.outputBits;
    const capped = Math.min(wanted, this.#features.outputBits);
    return granuleShift === 16 ? capped : Math.min(capped, 48);
  }

  #maximumTxSz(granuleShift: number): number {
    if (!this.#features.smallTables) return MAX_TXSZ;
    return granuleShift === 16 ? 47 : 48;
  }

  /** Whether tables of this endianness are not supported (IDR0.TTENDIAN 2: little only, 3: big only). */
  #endianIllegal(endian: number): boolean {
    return this.#features.tableEndian === 2 ? endian !== 0 : this.#features.tableEndian === 3 && endian === 0;
  }
}
