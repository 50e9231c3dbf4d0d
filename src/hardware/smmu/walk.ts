/**
 * Translation table walks: stage 1, stage 2 and both, as VMSAv8-64 defines them.
 *
 * A walk is a task: it offers a scheduling point before every descriptor it fetches, because software may change
 * tables under it. It holds nothing and caches nothing; the caller decides whether its result may enter the TLB.
 * Descriptors are read by single 64-bit loads, and updated (access flag, dirty state) by compare-and-swap; when the
 * descriptor has changed meanwhile the walk starts again.
 *
 * For one descriptor faults take precedence in the architecture's order: translation, address size, access flag,
 * permission. Every stage 1 fault has CLASS IN; stage 2 faults carry the class of the access that needed stage 2. An
 * access flag or dirty state of stage 1 is set only after stage 2 has agreed to the access.
 *
 * Sources: Arm ARM D8.2..D8.5, IHI 0070 3.4, 3.13, 7.3.12..7.3.16.
 */
import type { Task } from '../../runtime/task.js';
import type { SmmuFeatures } from './identification.js';
import type { SmmuMemory } from './ports.js';
import { EVENT_CLASS, VMSA_DESCRIPTOR, type EventName } from './records.js';

/** How a transaction accesses memory, after the overrides of its stream table entry. */
export interface Access {
  readonly write: boolean;
  readonly instruction: boolean;
  readonly privileged: boolean;
}

/** Why a transaction is terminated, in the terms of an event record. */
export interface Fault {
  readonly ok: false;
  readonly event: EventName;
  readonly stage2: boolean;
  /** One of {@link EVENT_CLASS}. */
  readonly faultClass: number;
  /** Intermediate address of a stage 2 fault. */
  readonly ipa: number;
  /** Physical address of a fetch that failed. */
  readonly fetchAddress: number;
  /** The stage that faulted has recording off (CD.R, STE.S2R): its translation-related faults leave no event. */
  readonly silenced: boolean;
}

/** A fault of `event`; stage 1, CLASS IN and no addresses unless said otherwise. */
export function faultOf(event: EventName, details: Partial<Omit<Fault, 'ok' | 'event'>> = {}): Fault {
  return {
    ok: false,
    event,
    stage2: false,
    faultClass: EVENT_CLASS.IN,
    ipa: 0,
    fetchAddress: 0,
    silenced: false,
    ...details,
  };
}

/** One half of a stage 1 input range: what TTB0 or TTB1 and their fields say. */
export interface Stage1Region {
  /** EPDx: no walks. */
  readonly disabled: boolean;
  readonly granuleShift: number;
  /** 64 - TxSZ. */
  readonly inputBits: number;
  /** TBIx. */
  readonly ignoresTopByte: boolean;
  /** HADx: APTable, XNTable and PXNTable are ignored. */
  readonly ignoresTableAttributes: boolean;
  readonly tableAddress: number;
  readonly startLevel: number;
}

/** Stage 1 of a stream: its context descriptor, checked. */
export interface Stage1Config {
  readonly asid: number;
  readonly regions: readonly [Stage1Region, Stage1Region];
  /** Effective IPS. */
  readonly outputBits: number;
  readonly accessFlagFaultDisabled: boolean;
  readonly updatesAccessFlag: boolean;
  readonly updatesDirtyState: boolean;
  readonly writableNeverExecutes: boolean;
  readonly privilegedAccessNever: boolean;
  /** CD.R. */
  readonly recordsFaults: boolean;
  /** CD.S: faults stall. */
  readonly stallsFaults: boolean;
  /** CD.A: a fault that does not stall aborts; else it reads zero and writes nothing. */
  readonly abortsFaults: boolean;
}

/** Stage 2 of a stream. */
export interface Stage2Config {
  readonly granuleShift: number;
  /** 64 - S2T0SZ. */
  readonly inputBits: number;
  /** Effective S2PS. */
  readonly outputBits: number;
  readonly tableAddress: number;
  readonly startLevel: number;
  readonly accessFlagFaultDisabled: boolean;
  readonly updatesAccessFlag: boolean;
  readonly updatesDirtyState: boolean;
  /** S2PTW: a stage 1 walk may not read Device memory. */
  readonly protectsTableWalks: boolean;
  /** S2R. */
  readonly recordsFaults: boolean;
  /** S2S: faults stall. */
  readonly stallsFaults: boolean;
}

/**
 * Which accesses a stage permits: bit {@link accessKind} of the access. Privileged read, write, execute are bits 0..2,
 * unprivileged ones bits 3..5.
 */
export type Permissions = number;

/** Bit number of an access in {@link Permissions}. */
export function accessKind(access: Access): number {
  return (access.privileged ? 0 : 3) + (access.write ? 1 : access.instruction ? 2 : 0);
}

/** Every access of a stage that is not there. */
export const ALL_PERMISSIONS: Permissions = 0x3f;

/** A translation that worked. */
export interface Translation {
  readonly ok: true;
  readonly address: number;
  /** log2 of the page or block (of the smaller one, with two stages) this holds for. */
  readonly shift: number;
  readonly stage1: Permissions;
  readonly stage2: Permissions;
  /** A write would still have to set dirty state in a descriptor. */
  readonly clean: boolean;
}

/** Start level of a stage 1 walk over `inputBits` of address. */
export function stage1StartLevel(granuleShift: number, inputBits: number): number {
  return 4 - Math.ceil((inputBits - granuleShift) / (granuleShift - 3));
}

/** log2 of what one descriptor of `level` covers. */
export function levelShift(granuleShift: number, level: number): number {
  return granuleShift + (granuleShift - 3) * (3 - level);
}

/** The address without its low `shift` bits. */
export function alignDown(address: number, shift: number): number {
  return address - (address % 2 ** shift);
}

/** The last descriptor of a walk of one stage. */
interface Leaf {
  readonly ok: true;
  readonly address: number;
  readonly shift: number;
  readonly permissions: Permissions;
  readonly clean: boolean;
  /** Physical address of the descriptor, and its intermediate address where stage 2 translated it. */
  readonly descriptorAddress: number;
  readonly descriptorIpa: number;
  readonly lo: number;
  readonly hi: number;
  /** The descriptor's low word as the hardware has to leave it. */
  readonly updatedLo: number;
  readonly setsDirtyState: boolean;
}

const AF_BIT = 1 << VMSA_DESCRIPTOR.fields.AF.lsb;
const AP2_BIT = 1 << VMSA_DESCRIPTOR.fields.AP2.lsb;
const S2AP_WRITE_BIT = 1 << VMSA_DESCRIPTOR.fields.S2APWrite.lsb;
const DATA_READ: Access = { write: false, instruction: false, privileged: true };
const DATA_WRITE: Access = { write: true, instruction: false, privileged: true };
const TWO_32 = 2 ** 32;
const TWO_48 = 2 ** 48;

/** Walks tables in memory on behalf of one SMMU. */
export class TableWalker {
  readonly #memory: SmmuMemory;
  readonly #wideOutput: boolean;
  readonly #losesDirtyState: () => boolean;
  readonly #onWalk: (root: number, input: number, isWrite: boolean) => void;

  /**
   * `losesDirtyState` is asked before every update of dirty state (fault `smmu.dirty-lost`); `onWalk` is told of every descriptor that
   * is read (or changed) on the way to an address.
   */
  constructor(
    memory: SmmuMemory,
    features: Pick<SmmuFeatures, 'outputBits'>,
    losesDirtyState: () => boolean,
    onWalk: (root: number, input: number, isWrite: boolean) => void = () => undefined,
  ) {
    this.#onWalk = onWalk;
    this.#memory = memory;
    this.#wideOutput = features.outputBits >= 52;
    this.#losesDirtyState = losesDirtyState;
  }

  /** Translates by stage 1, then by `stage2` when given. `offset` is the address within the region's range. */
  *stage1(
    config: Stage1Config,
    region: Stage1Region,
    offset: number,
    access: Access,
    stage2: Stage2Config | undefined,
  ): Task<Translation | Fault> {
    for (;;) {
      const leaf = yield* this.#walkStage1(config, region, offset, access, stage2);
      if (!leaf.ok) return leaf;
      const final = stage2 === undefined ? undefined : yield* this.stage2(stage2, leaf.address, access, EVENT_CLASS.IN);
      if (final?.ok === false) return final;
      const commit = yield* this.#commitStage1(leaf, stage2);
      if (leaf.updatedLo !== leaf.lo) this.#onWalk(region.tableAddress, offset, true);
      if (commit === 'changed') continue;
      if (typeof commit === 'object') return commit;
      const stillClean = leaf.clean && commit !== 'dirty';
      return {
        ok: true,
        address: final?.address ?? leaf.address,
        shift: final === undefined ? leaf.shift : Math.min(leaf.shift, final.shift),
        stage1: leaf.permissions,
        stage2: final?.stage2 ?? ALL_PERMISSIONS,
        clean: stillClean || (final?.clean ?? false),
      };
    }
  }

  /** Translates an intermediate address; `faultClass` says what for. */
  *stage2(config: Stage2Config, ipa: number, access: Access, faultClass: number): Task<Translation | Fault> {
    for (;;) {
      const leaf = yield* this.#walkStage2(config, ipa, access, faultClass);
      if (!leaf.ok) return leaf;
      if (leaf.updatedLo !== leaf.lo) this.#onWalk(config.tableAddress, ipa, true);
      const commit = this.#commit(leaf, leaf.descriptorAddress);
      if (commit === 'changed') continue;
      return {
        ok: true,
        address: leaf.address,
        shift: leaf.shift,
        stage1: ALL_PERMISSIONS,
        stage2: leaf.permissions,
        clean: leaf.clean && commit !== 'dirty',
      };
    }
  }

  *#walkStage1(
    config: Stage1Config,
    region: Stage1Region,
    offset: number,
    access: Access,
    stage2: Stage2Config | undefined,
  ): Task<Leaf | Fault> {
    const granule = region.granuleShift;
    const silenced = !config.recordsFaults;
    const words = new Uint32Array(2);
    let table = region.tableAddress;
    let tableAttributes = 0;
    for (let level = region.startLevel; ; level++) {
      const shift = levelShift(granule, level);
      const descriptorIpa = table + 8 * (Math.floor(offset / 2 ** shift) % 2 ** (granule - 3));
      let descriptorAddress = descriptorIpa;
      if (stage2 !== undefined) {
        const where = yield* this.stage2(stage2, descriptorIpa, DATA_READ, EVENT_CLASS.TT);
        if (!where.ok) return where;
        descriptorAddress = where.address;
      }
      yield 'smmu:walk';
      this.#onWalk(region.tableAddress, offset, false);
      if (!this.#memory.loadWords(descriptorAddress, words)) {
        return faultOf('F_WALK_EABT', { faultClass: EVENT_CLASS.TT, fetchAddress: descriptorAddress });
      }
      const kind = this.#kindOf(words, granule, level);
      if (kind === 'invalid') return faultOf('F_TRANSLATION', { silenced });
      const address = this.#addressIn(words, granule, kind === 'table' ? granule : shift);
      if (address >= 2 ** config.outputBits) return faultOf('F_ADDR_SIZE', { silenced });
      if (kind === 'table') {
        table = address;
        if (!region.ignoresTableAttributes) tableAttributes |= words[1] ?? 0;
        continue;
      }
      return this.#stage1Leaf(config, access, words, tableAttributes, {
        address: address + (offset % 2 ** shift),
        shift,
        descriptorAddress,
        descriptorIpa,
      });
    }
  }

  #stage1Leaf(
    config: Stage1Config,
    access: Access,
    words: Uint32Array,
    tableAttributes: number,
    place: { address: number; shift: number; descriptorAddress: number; descriptorIpa: number },
  ): Leaf | Fault {
    const d = VMSA_DESCRIPTOR;
    const silenced = !config.recordsFaults;
    const tables = [0, tableAttributes];
    const lo = words[0] ?? 0;
    const hasAccessFlag = d.get(words, 'AF') !== 0;
    if (!hasAccessFlag && !config.updatesAccessFlag && !config.accessFlagFaultDisabled)
      return faultOf('F_ACCESS', { silenced });
    const readOnlyTable = d.get(tables, 'APTable1') !== 0;
    const clean = config.updatesDirtyState && d.get(words, 'DBM') !== 0 && d.get(words, 'AP2') !== 0 && !readOnlyTable;
    const permissions = stage1Permissions(config, {
      writable: (d.get(words, 'AP2') === 0 || clean) && !readOnlyTable,
      unprivileged: d.get(words, 'AP1') !== 0 && d.get(tables, 'APTable0') === 0,
      privilegedNeverExecutes: d.get(words, 'PXN') !== 0 || d.get(tables, 'PXNTable') !== 0,
      unprivilegedNeverExecutes: d.get(words, 'UXN') !== 0 || d.get(tables, 'XNTable') !== 0,
    });
    if (((permissions >> accessKind(access)) & 1) === 0) return faultOf('F_PERMISSION', { silenced });
    const setsDirtyState = clean && access.write;
    let updatedLo = lo;
    if (!hasAccessFlag && config.updatesAccessFlag) updatedLo |= AF_BIT;
    if (setsDirtyState) updatedLo &= ~AP2_BIT;
    const update = { lo, hi: words[1] ?? 0, updatedLo: updatedLo >>> 0, setsDirtyState };
    return { ok: true, ...place, permissions, clean, ...update };
  }

  *#walkStage2(config: Stage2Config, ipa: number, access: Access, faultClass: number): Task<Leaf | Fault> {
    const fault = (event: EventName, fetchAddress = 0): Fault =>
      faultOf(event, { stage2: true, faultClass, ipa, fetchAddress, silenced: !config.recordsFaults });
    if (ipa >= 2 ** config.inputBits) return fault('F_TRANSLATION');
    const granule = config.granuleShift;
    const words = new Uint32Array(2);
    let table = config.tableAddress;
    for (let level = config.startLevel; ; level++) {
      const shift = levelShift(granule, level);
      // The first table may be several side by side: its index is not cut to the width of one table.
      const entries = level === config.startLevel ? Infinity : 2 ** (granule - 3);
      const index = Math.floor(ipa / 2 ** shift);
      const descriptorAddress = table + 8 * (entries === Infinity ? index : index % entries);
      yield 'smmu:walk';
      this.#onWalk(config.tableAddress, ipa, false);
      if (!this.#memory.loadWords(descriptorAddress, words)) return fault('F_WALK_EABT', descriptorAddress);
      const kind = this.#kindOf(words, granule, level);
      if (kind === 'invalid') return fault('F_TRANSLATION');
      const address = this.#addressIn(words, granule, kind === 'table' ? granule : shift);
      if (address >= 2 ** config.outputBits) return fault('F_ADDR_SIZE');
      if (kind === 'table') {
        table = address;
        continue;
      }
      const leaf = stage2Leaf(config, access, faultClass, words, descriptorAddress);
      if (typeof leaf === 'string') return fault(leaf);
      return { ...leaf, address: address + (ipa % 2 ** shift), shift };
    }
  }

  /** Writes the access flag and dirty state of a stage 1 leaf, through stage 2 where its tables lie behind it. */
  *#commitStage1(leaf: Leaf, stage2: Stage2Config | undefined): Task<Commit | Fault> {
    if (leaf.updatedLo === leaf.lo) return 'none';
    if (stage2 === undefined) return this.#commit(leaf, leaf.descriptorAddress);
    const where = yield* this.stage2(stage2, leaf.descriptorIpa, DATA_WRITE, EVENT_CLASS.TT);
    return where.ok ? this.#commit(leaf, where.address) : where;
  }

  #commit(leaf: Leaf, address: number): Commit {
    if (leaf.updatedLo === leaf.lo) return 'none';
    if (leaf.setsDirtyState && this.#losesDirtyState()) return 'none';
    if (!this.#memory.compareAndSwap64(address, leaf.lo, leaf.hi, leaf.updatedLo, leaf.hi)) return 'changed';
    return leaf.setsDirtyState ? 'dirty' : 'none';
  }

  #kindOf(words: Uint32Array, granuleShift: number, level: number): 'invalid' | 'table' | 'leaf' {
    if (VMSA_DESCRIPTOR.get(words, 'Valid') === 0) return 'invalid';
    const isTable = VMSA_DESCRIPTOR.get(words, 'Table') !== 0;
    if (level === 3) return isTable ? 'leaf' : 'invalid';
    if (isTable) return 'table';
    const lowestBlockLevel = granuleShift === 12 || (granuleShift === 16 && this.#wideOutput) ? 1 : 2;
    return level >= lowestBlockLevel ? 'leaf' : 'invalid';
  }

  /** Output address of a descriptor, without its low `shift` bits. */
  #addressIn(words: Uint32Array, granuleShift: number, shift: number): number {
    const address = alignDown(((words[1] ?? 0) & 0xffff) * TWO_32 + (words[0] ?? 0), shift);
    if (granuleShift !== 16 || !this.#wideOutput) return address;
    return address + VMSA_DESCRIPTOR.get(words, 'AddressHigh') * TWO_48;
  }
}

/** What became of a descriptor's update: nothing to do (or lost), dirty state written, or somebody was faster. */
type Commit = 'none' | 'dirty' | 'changed';

function stage1Permissions(
  config: Stage1Config,
  page: {
    writable: boolean;
    unprivileged: boolean;
    privilegedNeverExecutes: boolean;
    unprivilegedNeverExecutes: boolean;
  },
): Permissions {
  const unprivilegedWrite = page.unprivileged && page.writable;
  const privilegedData = !(config.privilegedAccessNever && page.unprivileged);
  const privilegedExecute =
    !page.privilegedNeverExecutes && !unprivilegedWrite && !(config.writableNeverExecutes && page.writable);
  const unprivilegedExecute = !page.unprivilegedNeverExecutes && !(config.writableNeverExecutes && unprivilegedWrite);
  return (
    Number(privilegedData) |
    (Number(privilegedData && page.writable) << 1) |
    (Number(privilegedExecute) << 2) |
    (Number(page.unprivileged) << 3) |
    (Number(unprivilegedWrite) << 4) |
    (Number(unprivilegedExecute) << 5)
  );
}

/** Access flag and permissions of a stage 2 leaf; the name of the fault where they deny the access. */
function stage2Leaf(
  config: Stage2Config,
  access: Access,
  faultClass: number,
  words: Uint32Array,
  descriptorAddress: number,
): Omit<Leaf, 'address' | 'shift'> | 'F_ACCESS' | 'F_PERMISSION' {
  const d = VMSA_DESCRIPTOR;
  const lo = words[0] ?? 0;
  const hasAccessFlag = d.get(words, 'AF') !== 0;
  if (!hasAccessFlag && !config.updatesAccessFlag && !config.accessFlagFaultDisabled) return 'F_ACCESS';
  const readable = d.get(words, 'S2APRead') !== 0;
  const clean = config.updatesDirtyState && d.get(words, 'DBM') !== 0 && d.get(words, 'S2APWrite') === 0;
  const writable = clean || d.get(words, 'S2APWrite') !== 0;
  // XN[1:0]: 0 everybody executes, 1 only unprivileged, 2 nobody, 3 only privileged.
  const executeNever = d.get(words, 'S2XN');
  const permissions =
    (Number(readable) * 0b001_001) |
    (Number(writable) * 0b010_010) |
    (Number(readable && (executeNever === 0 || executeNever === 3)) << 2) |
    (Number(readable && executeNever < 2) << 5);
  const isDevice = d.get(words, 'MemAttr') < 4;
  if (faultClass === EVENT_CLASS.TT && config.protectsTableWalks && isDevice) return 'F_PERMISSION';
  if (((permissions >> accessKind(access)) & 1) === 0) return 'F_PERMISSION';
  const setsDirtyState = clean && access.write;
  let updatedLo = lo;
  if (!hasAccessFlag && config.updatesAccessFlag) updatedLo |= AF_BIT;
  if (setsDirtyState) updatedLo |= S2AP_WRITE_BIT;
  return {
    ok: true,
    permissions,
    clean,
    descriptorAddress,
    descriptorIpa: 0,
    lo,
    hi: words[1] ?? 0,
    updatedLo: updatedLo >>> 0,
    setsDirtyState,
  };
}
