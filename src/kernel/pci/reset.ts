/**
 * Resetting a function without losing what the kernel set up.
 *
 * A reset clears a function's controls, ACS and ATS among them; the kernel saves them before and restores them after, else a
 * group that was isolated would not be any more. What resets: function-level reset (PCIe or AF) where the function has it, else the way to
 * D3hot and back where that resets, else a reset of the secondary bus when the function is alone on it (pci_reset_bus_function).
 *
 * Source: Linux drivers/pci/pci.c (pci_save_state, pci_restore_state, __pci_reset_function_locked); PCIe 5.0 6.6.
 */
import {
  PCI_ACS_CTRL,
  PCI_ATS_CAP,
  PCI_BRIDGE_CONTROL,
  PCI_BRIDGE_CTL_BUS_RESET,
  PCI_CAP_ID_EXP,
  PCI_COMMAND,
  PCI_EXP_DEVCTL,
  PCI_EXT_CAP_ID_ACS,
  PCI_EXT_CAP_ID_ATS,
  PCI_EXT_CAP_ID_SRIOV,
  PCI_SRIOV_CTRL,
} from '../../uapi/pci-regs.js';
import { ENOTTY } from '../../uapi/errno.js';
import type { Device } from '../device.js';

interface SavedRegister {
  readonly offset: number;
  readonly value: number;
}

/** Registers of two bytes that the kernel puts back, the command register last. */
function pci_save_state({ function: fn }: Device): SavedRegister[] {
  const within = (capability: number, offset: number): number[] => (capability === 0 ? [] : [capability + offset]);
  const offsets = [
    ...within(fn.findCapability(PCI_CAP_ID_EXP), PCI_EXP_DEVCTL.offset),
    ...within(fn.findExtendedCapability(PCI_EXT_CAP_ID_ACS), PCI_ACS_CTRL),
    ...within(fn.findExtendedCapability(PCI_EXT_CAP_ID_ATS), PCI_ATS_CAP.offset + 2),
    ...within(fn.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV), PCI_SRIOV_CTRL.offset),
    PCI_COMMAND,
  ];
  return offsets.map((offset) => ({ offset, value: fn.configRead(offset, 2) }));
}

/** Whether a function can be reset without its neighbours; a virtual function's bus is its physical function's. */
function isAloneOnBus(device: Device): boolean {
  const isVirtual = device.function.physicalFunction !== undefined;
  return device.parent !== undefined && !isVirtual && device.busMates().length === 0;
}

/** A reset of its own: FLR, or the way to D3hot and back. */
function hasOwnReset({ function: fn }: Device): boolean {
  return fn.hasFlr || fn.hasAdvancedFlr || fn.hasPowerReset;
}

/** Whether {@link pci_reset_function} can. */
export function pci_can_reset(device: Device): boolean {
  return hasOwnReset(device) || isAloneOnBus(device);
}

/** Resets a function and puts its controls back; -ENOTTY when nothing can reset it alone. */
export function pci_reset_function(device: Device): number {
  const { function: fn } = device;
  const saved = pci_save_state(device);
  if (hasOwnReset(device)) {
    fn.reset();
  } else {
    const bridge = device.parent?.function;
    if (bridge === undefined || !isAloneOnBus(device)) return -ENOTTY;
    const control = bridge.configRead(PCI_BRIDGE_CONTROL, 2);
    bridge.configWrite(PCI_BRIDGE_CONTROL, 2, control | PCI_BRIDGE_CTL_BUS_RESET);
    bridge.configWrite(PCI_BRIDGE_CONTROL, 2, control);
  }
  for (const { offset, value } of saved) fn.configWrite(offset, 2, value);
  return 0;
}
