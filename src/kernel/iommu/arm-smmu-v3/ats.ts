/**
 * ATS of a device behind an SMMUv3: switched on after its stream table entry allows it, off before it does not any more; what
 * its cache (ATC) holds is invalidated when the domain changes and when something is unmapped.
 *
 * Source: Linux arm-smmu-v3.c (arm_smmu_enable_ats, arm_smmu_atc_inv_to_cmd, arm_smmu_attach_commit); drivers/pci/ats.c.
 */
import { sharedWrite } from '../../../runtime/watch.js';
import { CMD_ATC_INV, CMD_OP } from '../../../hardware/smmu/records.js';
import { PCI_ATS_CAP, PCI_EXT_CAP_ID_ATS } from '../../../uapi/pci-regs.js';
import type { Device } from '../../device.js';

const ATS_CTRL = PCI_ATS_CAP.offset + 2;
const ATS_ENABLE = 0x8000;
/** CMD_ATC_INV Size for everything. */
const ATC_INV_SIZE_ALL = 52;
const PAGE_BYTES = 4096;

/** Whether a device has translations to keep (pci_ats_supported). */
export function pci_ats_supported({ function: fn }: Device): boolean {
  return fn.findExtendedCapability(PCI_EXT_CAP_ID_ATS) !== 0;
}

/** Sets or clears the Enable bit; the smallest translation unit is a page. */
export function pci_set_ats({ function: fn }: Device, isOn: boolean): void {
  const at = fn.findExtendedCapability(PCI_EXT_CAP_ID_ATS);
  sharedWrite(fn, 'ATS enabled', undefined, isOn);
  if (at !== 0) fn.configWrite(at + ATS_CTRL, 2, isOn ? ATS_ENABLE : 0);
}

/** Everything a stream's device keeps. */
export function invalidateAll(streamId: number): Uint32Array {
  return CMD_ATC_INV.make({ Opcode: CMD_OP.ATC_INV, StreamID: streamId, Size: ATC_INV_SIZE_ALL });
}

/** A range: the smallest aligned power of two of pages that covers it. */
export function invalidateRange(streamId: number, iova: number, lengthBytes: number): Uint32Array {
  const first = Math.floor(iova / PAGE_BYTES);
  const last = Math.floor((iova + lengthBytes - 1) / PAGE_BYTES);
  let log2Span = 0;
  while (Math.floor(first / 2 ** log2Span) !== Math.floor(last / 2 ** log2Span)) log2Span++;
  const start = first - (first % 2 ** log2Span);
  return CMD_ATC_INV.make({ Opcode: CMD_OP.ATC_INV, StreamID: streamId, Size: log2Span, Address: start });
}
