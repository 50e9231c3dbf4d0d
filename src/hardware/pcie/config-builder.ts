/**
 * Configuration space of functions that are described, not imported, and which bits of it software may write.
 *
 * Layout of a built function: PCI Express at 0x40, power management at 0x80, MSI-X (if added) at 0x90; extended from 0x100 on,
 * in this order where it has them: ACS, ATS, SR-IOV. {@link writableMask} works from the bytes, so it serves recorded
 * configuration space as well.
 *
 * Source: PCIe 5.0 chapter 7 and 9.3.3.
 */
import {
  CONFIG_BYTES,
  configRead,
  EXT_CAP_HEADER,
  findCapability,
  findExtendedCapability,
  PCI_ACS,
  PCI_ACS_CAP,
  PCI_ACS_CTRL,
  PCI_ACS_EGRESS_CTL_V,
  PCI_ATS_CAP,
  PCI_BRIDGE_CONTROL,
  PCI_BRIDGE_CTL_BUS_RESET,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_MSI,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_PM,
  PCI_PM_CTRL,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_REVISION,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_DEVICE_ID,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCTL,
  PCI_EXP_FLAGS,
  PCI_EXP_LNKCAP,
  PCI_EXP_LNKCTL,
  PCI_EXP_SLTCAP,
  PCI_EXP_SLTCTL,
  PCI_EXP_TYPE,
  PCI_EXT_CAP_ID_ACS,
  PCI_EXT_CAP_ID_ATS,
  PCI_EXT_CAP_ID_SRIOV,
  PCI_EXT_CAP_START,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_BRIDGE,
  PCI_HEADER_TYPE_MFD,
  PCI_MEMORY_BASE,
  PCI_MSI_FLAGS,
  PCI_PREF_MEMORY_BASE,
  PCI_PRIMARY_BUS,
  PCI_SRIOV_CTRL,
  PCI_SRIOV_INITIAL_VF,
  PCI_SRIOV_NUM_VF,
  PCI_SRIOV_SUP_PGSIZE,
  PCI_SRIOV_SYS_PGSIZE,
  PCI_SRIOV_TOTAL_VF,
  PCI_SRIOV_VF_DID,
  PCI_SRIOV_VF_OFFSET,
  PCI_SRIOV_VF_STRIDE,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
} from '../../uapi/pci-regs.js';
import type { AcsFlag, FunctionType, PciFunctionDescription } from '../description.js';

const EXPRESS_AT = 0x40;
const POWER_AT = 0x80;
/** Extended capabilities are built this far apart. */
const EXTENDED_STEP = 0x40;
const FULL_ACS: readonly AcsFlag[] = ['SV', 'TB', 'RR', 'CR', 'UF', 'DT'];
const LINK_SPEED_8GT = 3;
const LINK_WIDTH_X4 = 4;
const PAYLOAD_256 = 1;

const EXPRESS_TYPE: Readonly<Record<FunctionType, number | undefined>> = {
  endpoint: PCI_EXP_TYPE.ENDPOINT,
  'rc-integrated-endpoint': PCI_EXP_TYPE.RC_END,
  'root-port': PCI_EXP_TYPE.ROOT_PORT,
  'upstream-port': PCI_EXP_TYPE.UPSTREAM,
  'downstream-port': PCI_EXP_TYPE.DOWNSTREAM,
  'pcie-to-pci-bridge': PCI_EXP_TYPE.PCI_BRIDGE,
  conventional: undefined,
  'conventional-bridge': undefined,
};

/** A function's type, by its place where the description leaves it open. */
export function functionType(description: PciFunctionDescription, isOnRootBus: boolean): FunctionType {
  if (description.type !== undefined) return description.type;
  if (description.bridge !== undefined) return isOnRootBus ? 'root-port' : 'downstream-port';
  return isOnRootBus ? 'rc-integrated-endpoint' : 'endpoint';
}

class Builder {
  readonly config = new Uint8Array(CONFIG_BYTES);
  #extendedAt = PCI_EXT_CAP_START;
  #lastExtended = 0;

  put(offset: number, sizeBytes: number, value: number): void {
    for (let i = 0; i < sizeBytes; i++) this.config[offset + i] = Math.floor((value >>> 0) / 2 ** (8 * i)) & 0xff;
  }

  words(offset: number, words: Uint32Array): void {
    words.forEach((word, i) => this.put(offset + 4 * i, 4, word));
  }

  /** Appends an extended capability; where it begins. */
  extended(id: number): number {
    const at = this.#extendedAt;
    this.words(at, EXT_CAP_HEADER.make({ ID: id, VERSION: 1 }));
    if (this.#lastExtended !== 0) {
      const header = [configRead(this.config, this.#lastExtended, 4)];
      const fields = { ID: EXT_CAP_HEADER.get(header, 'ID'), VERSION: 1, NEXT: at };
      this.words(this.#lastExtended, EXT_CAP_HEADER.make(fields));
    }
    this.#lastExtended = at;
    this.#extendedAt += EXTENDED_STEP;
    return at;
  }
}

/** What {@link buildConfig} has to know of a function's surroundings. */
export interface ConfigContext {
  readonly type: FunctionType;
  /** There are other functions in its slot. */
  readonly isMultifunction: boolean;
}

/** The 4096 bytes of a function at power-on. */
export function buildConfig(description: PciFunctionDescription, { type, isMultifunction }: ConfigContext): Uint8Array {
  const build = new Builder();
  const { vendor, device, classCode, bridge, slot } = description;
  build.put(PCI_VENDOR_ID, 2, vendor);
  build.put(PCI_DEVICE_ID, 2, device);
  build.put(PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
  build.put(PCI_CLASS_REVISION, 4, (classCode << 8) | 1);
  const header = bridge === undefined ? 0 : PCI_HEADER_TYPE_BRIDGE;
  build.put(PCI_HEADER_TYPE, 1, header | (isMultifunction ? PCI_HEADER_TYPE_MFD : 0));
  if (bridge === undefined) {
    build.put(PCI_SUBSYSTEM_VENDOR_ID, 2, vendor);
    build.put(PCI_SUBSYSTEM_VENDOR_ID + 2, 2, device);
  } else {
    // 64-bit prefetchable window; both windows empty: base above limit.
    build.words(PCI_MEMORY_BASE, Uint32Array.of(0x0000_fff0, 0x0001_fff1));
  }
  const express = EXPRESS_TYPE[type];
  build.put(POWER_AT, 4, 0x0003_0000 | PCI_CAP_ID_PM);
  if (express !== undefined)
    build.put(POWER_AT + PCI_PM_CTRL.offset, 4, PCI_PM_CTRL.make({ NO_SOFT_RESET: 1 })[0] ?? 0);
  if (express === undefined) {
    build.put(PCI_CAPABILITY_LIST, 1, POWER_AT);
    return build.config;
  }
  build.put(PCI_CAPABILITY_LIST, 1, EXPRESS_AT);
  const hasSlot = slot === undefined ? 0 : 1;
  build.words(
    EXPRESS_AT,
    PCI_EXP_FLAGS.make({ ID: PCI_CAP_ID_EXP, NEXT: POWER_AT, VERS: 2, TYPE: express, SLOT: hasSlot }),
  );
  const isEndpoint = bridge === undefined;
  build.words(
    EXPRESS_AT + PCI_EXP_DEVCAP.offset,
    PCI_EXP_DEVCAP.make({ PAYLOAD: PAYLOAD_256, RBER: 1, FLR: isEndpoint ? 1 : 0 }),
  );
  if (type !== 'rc-integrated-endpoint') {
    const link = { SLS: LINK_SPEED_8GT, MLW: LINK_WIDTH_X4, DLLLARC: isEndpoint ? 0 : 1 };
    build.words(EXPRESS_AT + PCI_EXP_LNKCAP.offset, PCI_EXP_LNKCAP.make(link));
    build.words(EXPRESS_AT + PCI_EXP_LNKCTL.offset, PCI_EXP_LNKCTL.make({ CLS: LINK_SPEED_8GT, NLW: LINK_WIDTH_X4 }));
  }
  if (slot !== undefined) {
    const hotplug = { ABP: 1, PCP: 1, AIP: 1, PIP: 1, HPS: slot.surprise ? 1 : 0, HPC: 1, PSN: slot.number };
    build.words(EXPRESS_AT + PCI_EXP_SLTCAP.offset, PCI_EXP_SLTCAP.make(hotplug));
  }
  addExtended(build, description, type);
  return build.config;
}

function addExtended(build: Builder, description: PciFunctionDescription, type: FunctionType): void {
  const isPort = type === 'root-port' || type === 'downstream-port';
  const acs = description.acs ?? (isPort ? FULL_ACS : []);
  if (acs !== 'none' && type !== 'pcie-to-pci-bridge' && type !== 'upstream-port') {
    const capability = acs.reduce((flags, flag) => flags | PCI_ACS[flag], 0);
    const at = build.extended(PCI_EXT_CAP_ID_ACS);
    build.words(
      at + PCI_ACS_CAP.offset,
      PCI_ACS_CAP.make({ CAP: capability, EGRESS_BITS: acs.includes('EC') ? 32 : 0 }),
    );
  }
  if (description.ats === true) {
    const at = build.extended(PCI_EXT_CAP_ID_ATS);
    build.words(at + PCI_ATS_CAP.offset, PCI_ATS_CAP.make({ PAGE_ALIGNED: 1 }));
  }
  const { sriov } = description;
  if (sriov === undefined) return;
  const at = build.extended(PCI_EXT_CAP_ID_SRIOV);
  build.put(at + PCI_SRIOV_INITIAL_VF, 2, sriov.totalVfs);
  build.put(at + PCI_SRIOV_TOTAL_VF, 2, sriov.totalVfs);
  build.put(at + PCI_SRIOV_VF_OFFSET, 2, sriov.offset);
  build.put(at + PCI_SRIOV_VF_STRIDE, 2, sriov.stride);
  build.put(at + PCI_SRIOV_VF_DID, 2, sriov.deviceId);
  build.put(at + PCI_SRIOV_SUP_PGSIZE, 4, 0x553);
  build.put(at + PCI_SRIOV_SYS_PGSIZE, 4, 1);
}

/** Bits that software may write, without the BARs'. */
export function writableMask(config: Uint8Array): Uint8Array {
  const mask = new Uint8Array(CONFIG_BYTES);
  const allow = (offset: number, sizeBytes: number, bits: number): void => {
    for (let i = 0; i < sizeBytes; i++) mask[offset + i] = Math.floor(bits / 2 ** (8 * i)) & 0xff;
  };
  allow(PCI_COMMAND, 2, 0x0400 | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  if ((configRead(config, PCI_HEADER_TYPE, 1) & 0x7f) === PCI_HEADER_TYPE_BRIDGE) {
    allow(PCI_PRIMARY_BUS, 4, 0x00ff_ffff);
    allow(PCI_MEMORY_BASE, 4, 0xfff0_fff0);
    allow(PCI_PREF_MEMORY_BASE, 4, 0xfff0_fff0);
    allow(PCI_PREF_MEMORY_BASE + 4, 4, 0xffff_ffff);
    allow(PCI_PREF_MEMORY_BASE + 8, 4, 0xffff_ffff);
    allow(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET | 0x1f);
  }
  const express = findCapability(config, PCI_CAP_ID_EXP);
  if (express !== 0) {
    allow(express + PCI_EXP_DEVCTL.offset, 2, 0x7fff);
    allow(express + PCI_EXP_LNKCTL.offset, 2, 0x0ff3);
    const hasSlot = PCI_EXP_FLAGS.get([configRead(config, express, 4)], 'SLOT') === 1;
    if (hasSlot) allow(express + PCI_EXP_SLTCTL.offset, 2, 0x17ff);
  }
  const msi = findCapability(config, PCI_CAP_ID_MSI);
  if (msi !== 0) {
    allow(msi + 2, 2, 0x71);
    const flags = [configRead(config, msi, 4)];
    const is64 = PCI_MSI_FLAGS.get(flags, 'X64') === 1;
    mask.fill(0xff, msi + 4, msi + (is64 ? 14 : 10));
    if (PCI_MSI_FLAGS.get(flags, 'MASKBIT') === 1) mask.fill(0xff, msi + (is64 ? 16 : 12), msi + (is64 ? 20 : 16));
  }
  const msix = findCapability(config, PCI_CAP_ID_MSIX);
  if (msix !== 0) allow(msix + 2, 2, 0xc000);
  const acs = findExtendedCapability(config, PCI_EXT_CAP_ID_ACS);
  if (acs !== 0) {
    allow(acs + PCI_ACS_CTRL, 2, PCI_ACS_CAP.get([configRead(config, acs + PCI_ACS_CAP.offset, 4)], 'CAP'));
    allow(acs + PCI_ACS_EGRESS_CTL_V, 4, 0xffff_ffff);
  }
  const ats = findExtendedCapability(config, PCI_EXT_CAP_ID_ATS);
  if (ats !== 0) allow(ats + PCI_ATS_CAP.offset + 2, 2, 0x801f);
  const sriov = findExtendedCapability(config, PCI_EXT_CAP_ID_SRIOV);
  if (sriov !== 0) {
    allow(sriov + PCI_SRIOV_CTRL.offset, 2, 0x19);
    allow(sriov + PCI_SRIOV_NUM_VF, 2, 0xffff);
  }
  return mask;
}

/** Bits that writing a one clears: errors of Device Status, changes of Slot Status. */
export function clearableMask(config: Uint8Array): Uint8Array {
  const mask = new Uint8Array(CONFIG_BYTES);
  const express = findCapability(config, PCI_CAP_ID_EXP);
  if (express === 0) return mask;
  mask[express + PCI_EXP_DEVCTL.offset + 2] = 0x0f;
  const hasSlot = PCI_EXP_FLAGS.get([configRead(config, express, 4)], 'SLOT') === 1;
  if (hasSlot) mask.set([0x1f, 0x01], express + PCI_EXP_SLTCTL.offset + 2);
  return mask;
}
