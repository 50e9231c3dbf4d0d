/**
 * Configuration space as vfio-pci shows it to user space.
 *
 * Most of it can only be read. Virtualised: BARs (user space sizes and moves them without moving the real ones) and the reset bit, which
 * resets as VFIO_DEVICE_RESET does. Written through: the command register's memory and bus-master bits, Device Control, power
 * management. MSI and MSI-X belong to VFIO_DEVICE_SET_IRQS; ACS, ATS and SR-IOV to the kernel: a user that could clear ACS
 * redirection would leave its group.
 *
 * Source: Linux drivers/vfio/pci/vfio_pci_config.c; PCIe 5.0 7.5.1.
 */
import { type PciFunction } from '../../hardware/pcie/function.js';
import {
  PCI_BAR0,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_PM,
  PCI_COMMAND,
  PCI_COMMAND_MEMORY,
  PCI_EXP_DEVCTL,
} from '../../uapi/pci-regs.js';

/** End of the six BARs. */
const BARS_END = 0x28;
/** Control and status of the power management capability. */
const PCI_PM_CTRL = 4;
/** Initiate Function Level Reset, in the upper byte of Device Control. */
const FLR_BIT = 0x80;

/** One opened device's view. */
export class VirtualConfigSpace {
  readonly #fn: PciFunction;
  /** What user space wrote to the BAR registers. */
  readonly #bars = new Uint8Array(BARS_END - PCI_BAR0);
  /** Offsets, besides the command register, at which user space writes the device's own registers. */
  readonly #passedThrough: ReadonlySet<number>;
  /** A virtual function has no memory enable: user space sees the bit it writes, set at first. */
  #memoryBit = PCI_COMMAND_MEMORY;
  /** Upper byte of Device Control where the function can reset itself; -1 where it cannot. */
  readonly #deviceControl: number;

  constructor(fn: PciFunction) {
    this.#fn = fn;
    const express = fn.findCapability(PCI_CAP_ID_EXP);
    const power = fn.findCapability(PCI_CAP_ID_PM);
    const deviceControl = express === 0 ? [] : [0, 1].map((byte) => express + PCI_EXP_DEVCTL.offset + byte);
    this.#passedThrough = new Set([
      ...deviceControl,
      ...(power === 0 ? [] : [power + PCI_PM_CTRL, power + PCI_PM_CTRL + 1]),
    ]);
    this.#deviceControl = fn.hasFlr ? fn.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL.offset + 1 : -1;
    for (let i = 0; i < this.#bars.length; i++) this.#bars[i] = fn.configRead(PCI_BAR0 + i, 1);
  }

  read(offset: number, lengthBytes: number): Uint8Array {
    return Uint8Array.from({ length: lengthBytes }, (_, i) => {
      const at = offset + i;
      if (at === PCI_COMMAND && this.#fn.physicalFunction !== undefined)
        return (this.#fn.configRead(at, 1) & ~PCI_COMMAND_MEMORY) | this.#memoryBit;
      return at >= PCI_BAR0 && at < BARS_END ? (this.#bars[at - PCI_BAR0] ?? 0) : this.#fn.configRead(at, 1);
    });
  }

  /** Whether a write clears the command register's memory bit. */
  stopsDecoding(offset: number, bytes: Uint8Array): boolean {
    const command = bytes[PCI_COMMAND - offset];
    return command !== undefined && (command & PCI_COMMAND_MEMORY) === 0;
  }

  /** Whether the write asked for a function-level reset, which is the caller's to do: state must survive it. */
  write(offset: number, bytes: Uint8Array): boolean {
    let isReset = false;
    bytes.forEach((byte, i) => {
      const isFlr = offset + i === this.#deviceControl && (byte & FLR_BIT) !== 0;
      this.#writeByte(offset + i, isFlr ? byte & ~FLR_BIT : byte);
      isReset ||= isFlr;
    });
    return isReset;
  }

  #writeByte(at: number, byte: number): void {
    if (at >= PCI_BAR0 && at < BARS_END) this.#writeBar(at, byte);
    else if (at >= PCI_COMMAND && at < PCI_COMMAND + 2) {
      if (at === PCI_COMMAND) this.#memoryBit = byte & PCI_COMMAND_MEMORY;
      this.#fn.configWrite(at, 1, byte);
    } else if (this.#passedThrough.has(at)) this.#fn.configWrite(at, 1, byte);
  }

  /** Only address bits of BARs that exist change, so sizing works as on the device. */
  #writeBar(at: number, byte: number): void {
    const register = Math.floor((at - PCI_BAR0) / 4);
    const bar = this.#fn.bars.find((b) => b.index === register || (b.is64 && b.index + 1 === register));
    if (bar === undefined) return;
    const shift = 8 * (at - PCI_BAR0 - 4 * bar.index);
    const mask = Number((((1n << 64n) - BigInt(bar.sizeBytes)) >> BigInt(shift)) & 0xffn);
    const old = this.#bars[at - PCI_BAR0] ?? 0;
    this.#bars[at - PCI_BAR0] = (old & ~mask) | (byte & mask);
  }
}
