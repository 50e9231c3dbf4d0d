/**
 * A guest's SMMU: the arm-smmu-v3 driver's side of a vIOMMU, and the nested domains on it.
 *
 * The guest owns stage 1: context descriptors and tables lie in its memory, at intermediate addresses. Of a stream table
 * entry it chooses what the nesting rules allow; the rest is the host's, stage 2 through the nesting parent among it. Its
 * invalidation commands are checked field by field and given the host's VMID and StreamID before they reach the queue
 * that it shares with everybody: a command the SMMU would refuse stops here (EIO), not there (CERROR_ILL). Events of its
 * stage 1 go to its queue with its own StreamID.
 *
 * Lock order: `iommufd:igroup_lock` -> `smmu:asid_lock` -> `smmu:streams_mutex` -> `iommufd:veventqs_rwsem`. Source: Linux arm-smmu-v3-iommufd.c; Arm IHI 0070 4, 5.2, 7.3;
 * domain.md A1.17, A1.40 to A1.43.
 */
import {
  CMD_ATC_INV,
  CMD_CFGI,
  CMD_OP,
  CMD_TLBI,
  EVENT,
  EVT,
  STE,
  STE_CONFIG,
  STE_STAGE1_FIELDS,
  STE_EATS,
} from '../../../hardware/smmu/records.js';
import { setField, type BitFields, type BitRecord } from '../../../layout/bits.js';
import type { Task } from '../../../runtime/task.js';
import { EINVAL, EIO, EOPNOTSUPP } from '../../../uapi/errno.js';
import {
  IOMMU_HWPT_DATA_ARM_SMMUV3,
  IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
  IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
  iommu_hwpt_arm_smmuv3,
  iommu_viommu_arm_smmuv3_invalidate,
} from '../../../uapi/iommufd.js';
import type { Device } from '../../device.js';
import type { NestedDomain, UserArray, UserArrayOutcome, UserDomainData, ViommuDriver, ViommuHost } from '../domain.js';
import type { ArmSmmuDomain } from './domain.js';
import type { ArmSmmuV3 } from './driver.js';
import { abortSte, ENTRY_BYTES, stage2Ste } from './entries.js';

const COMMAND_BYTES = iommu_viommu_arm_smmuv3_invalidate.sizeBytes;

/** Fields of a stream table entry that a guest may choose. */
const GUEST_FIELDS = ['V', 'Config', ...STE_STAGE1_FIELDS, 'EATS'] as const;

/** Events that are the guest's business. */
const GUEST_EVENTS: readonly number[] = [
  EVENT.C_BAD_STE,
  EVENT.F_STREAM_DISABLED,
  EVENT.C_BAD_SUBSTREAMID,
  EVENT.C_BAD_CD,
  EVENT.F_TRANSLATION,
  EVENT.F_ADDR_SIZE,
  EVENT.F_ACCESS,
  EVENT.F_PERMISSION,
];

/** Whether words have bits outside the named fields. */
function hasOtherBits<F extends BitFields>(
  record: BitRecord<F>,
  words: Uint32Array,
  names: readonly (keyof F & string)[],
): boolean {
  const allowed = new Uint32Array(words.length);
  for (const name of names) {
    const field = record.fields[name];
    if (field !== undefined) setField(allowed, 0, field, 2 ** field.width - 1);
  }
  return words.some((word, i) => (word & ~(allowed[i] ?? 0)) !== 0);
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Uint32Array.from({ length: bytes.length / 4 }, (_, i) => view.getUint32(4 * i, true));
}

/** A stream table entry of a guest (`struct arm_smmu_nested_domain`). */
export class ArmSmmuNestedDomain implements NestedDomain {
  readonly type = 'nested';
  readonly driver: ArmSmmuV3;
  readonly vsmmu: ArmVsmmu;
  /** STE.Config; an entry that is not valid aborts. */
  readonly config: number;
  /** The guest wants ATS, and so invalidates what the device keeps. */
  readonly wantsAts: boolean;
  /** The first two doublewords as the guest wrote them. */
  readonly #vste: Uint32Array;

  constructor(vsmmu: ArmVsmmu, vste: Uint32Array) {
    this.driver = vsmmu.smmu;
    this.vsmmu = vsmmu;
    this.#vste = vste;
    this.config = STE.get(vste, 'V') === 0 ? STE_CONFIG.ABORT : STE.get(vste, 'Config');
    this.wantsAts = this.config === STE_CONFIG.S1_TRANS && STE.get(vste, 'EATS') === STE_EATS.FULL;
  }

  /** The entry the SMMU gets. */
  ste(usesAts: boolean): Uint32Array {
    if (this.config === STE_CONFIG.ABORT) return abortSte();
    const { table, tag, usesForcedWriteBack } = this.vsmmu.parent;
    const ste = stage2Ste(table, tag, usesForcedWriteBack, usesAts);
    if (this.config === STE_CONFIG.BYPASS) return ste;
    STE.set(ste, 'Config', STE_CONFIG.NESTED);
    for (const name of STE_STAGE1_FIELDS) STE.set(ste, name, STE.get(this.#vste, name));
    // A guest must not flood the queue that all share.
    STE.set(ste, 'MEV', 1);
    return ste;
  }

  *free(): Task<void> {
    // Nothing but an object.
  }
}

/** The entry a guest wants: -EIO for what it may not choose. */
function checkVste(bytes: Uint8Array): Uint32Array | number {
  const vste = new Uint32Array(ENTRY_BYTES / 4);
  vste.set(wordsOf(bytes));
  if (STE.get(vste, 'V') === 0) return new Uint32Array(vste.length);
  if (hasOtherBits(STE, vste, GUEST_FIELDS)) return -EIO;
  const configs: readonly number[] = [STE_CONFIG.ABORT, STE_CONFIG.BYPASS, STE_CONFIG.S1_TRANS];
  const eats: readonly number[] = [STE_EATS.ABORT, STE_EATS.FULL];
  return configs.includes(STE.get(vste, 'Config')) && eats.includes(STE.get(vste, 'EATS')) ? vste : -EIO;
}

/** A device behind a guest's SMMU (`struct arm_smmu_vmaster`). */
export interface Vmaster {
  readonly vsmmu: ArmVsmmu;
  readonly vsid: number;
}

/** `struct arm_vsmmu` */
export class ArmVsmmu implements ViommuDriver {
  readonly smmu: ArmSmmuV3;
  readonly parent: ArmSmmuDomain;
  readonly host: ViommuHost;

  constructor(smmu: ArmSmmuV3, parent: ArmSmmuDomain, host: ViommuHost) {
    this.smmu = smmu;
    this.parent = parent;
    this.host = host;
  }

  *alloc_domain_nested(flags: number, data: UserDomainData): Task<NestedDomain | number> {
    if (flags !== 0) return -EOPNOTSUPP;
    const { sizeBytes } = iommu_hwpt_arm_smmuv3;
    const bytes = data.copy(IOMMU_HWPT_DATA_ARM_SMMUV3, sizeBytes, sizeBytes);
    const vste = typeof bytes === 'number' ? bytes : checkVste(bytes);
    return typeof vste === 'number' ? vste : new ArmSmmuNestedDomain(this, vste);
  }

  supports_veventq(type: number): boolean {
    return type === IOMMU_VEVENTQ_TYPE_ARM_SMMUV3;
  }

  *cache_invalidate(array: UserArray): Task<UserArrayOutcome> {
    if (array.type !== IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3) return { rc: -EINVAL, done: 0 };
    if (array.entries === 0) return { rc: 0, done: 0 };
    const all = array.all(COMMAND_BYTES);
    if (typeof all === 'number') return { rc: all, done: 0 };
    const commands: Uint32Array[] = [];
    let rc = 0;
    for (const bytes of all) {
      const command = this.#convert(wordsOf(bytes));
      if (typeof command === 'number') {
        rc = command;
        break;
      }
      commands.push(command);
    }
    if (commands.length > 0) yield* this.smmu.commandQueue.issueAndSync(commands);
    return { rc, done: commands.length };
  }

  /** Tells the guest of an event of its stage 1; false when that is not for it to know. */
  *report(record: Uint32Array, vsid: number): Task<boolean> {
    if (!GUEST_EVENTS.includes(EVT.get(record, 'Type')) || EVT.get(record, 'S2') !== 0) return false;
    const own = Uint32Array.from(record);
    EVT.set(own, 'StreamID', vsid);
    const bytes = new Uint8Array(4 * own.length);
    const view = new DataView(bytes.buffer);
    own.forEach((word, i) => {
      view.setUint32(4 * i, word, true);
    });
    return (yield* this.host.report_event(IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, bytes)) === 0;
  }

  // --- commands ---

  /** A guest's command as it may reach the queue, or -EIO. */
  #convert(words: Uint32Array): Uint32Array | number {
    switch (CMD_TLBI.get(words, 'Opcode')) {
      case CMD_OP.TLBI_NSNH_ALL:
        if (hasOtherBits(CMD_TLBI, words, ['Opcode'])) return -EIO;
        return CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ALL, VMID: this.parent.tag });
      case CMD_OP.TLBI_NH_ALL:
        return this.#tlbi(words, []);
      case CMD_OP.TLBI_NH_ASID:
        return this.#tlbi(words, ['ASID']);
      case CMD_OP.TLBI_NH_VA:
        return this.#tlbi(words, ['ASID', 'Leaf', 'Address', ...this.#rangeFields()]);
      case CMD_OP.TLBI_NH_VAA:
        return this.#tlbi(words, ['Leaf', 'Address', ...this.#rangeFields()]);
      case CMD_OP.CFGI_CD:
        return this.#ofStream(CMD_CFGI, words, ['Opcode', 'StreamID', 'Leaf', ...this.#substreamFields()]);
      case CMD_OP.CFGI_CD_ALL:
        return this.#ofStream(CMD_CFGI, words, ['Opcode', 'StreamID']);
      case CMD_OP.ATC_INV:
        if (!this.smmu.features.hasAts) return -EIO;
        return this.#ofStream(CMD_ATC_INV, words, [
          'Opcode',
          'StreamID',
          'Size',
          'Address',
          ...this.#substreamFields('G'),
        ]);
      default:
        return -EIO;
    }
  }

  #rangeFields(): readonly ('NUM' | 'SCALE' | 'TTL' | 'TG')[] {
    return this.smmu.features.hasRangeInvalidation ? ['NUM', 'SCALE', 'TTL', 'TG'] : [];
  }

  /** What a guest may say of its substreams; nothing where the SMMU has none. */
  #substreamFields<F extends string = never>(...more: F[]): readonly ('SSV' | 'SubstreamID' | F)[] {
    return this.smmu.features.substreamIdBits === 0 ? [] : ['SSV', 'SubstreamID', ...more];
  }

  #tlbi(words: Uint32Array, names: readonly (keyof typeof CMD_TLBI.fields)[]): Uint32Array | number {
    if (hasOtherBits(CMD_TLBI, words, ['Opcode', 'VMID', ...names])) return -EIO;
    const command = Uint32Array.from(words);
    CMD_TLBI.set(command, 'VMID', this.parent.tag);
    return command;
  }

  #ofStream<F extends BitFields & { StreamID: F['StreamID'] }>(
    record: BitRecord<F>,
    words: Uint32Array,
    names: readonly (keyof F & string)[],
  ): Uint32Array | number {
    if (hasOtherBits(record, words, names)) return -EIO;
    const device = this.host.find_dev(BigInt(CMD_CFGI.get(words, 'StreamID')));
    const sid = device === undefined ? undefined : this.#streamOf(device);
    if (sid === undefined) return -EIO;
    const command = Uint32Array.from(words);
    CMD_CFGI.set(command, 'StreamID', sid);
    return command;
  }

  #streamOf(device: Device): number | undefined {
    return device.streamIds[0];
  }
}
