/**
 * A PCI Express function: configuration space, BARs, MSI-X, and its way to memory.
 *
 * Configuration space is 4096 real bytes (PCIe 5.0 chapter 7): type 0 header, capability list with PCI Express, power
 * management and MSI-X, writable bits as masks. BAR sizing works as in hardware: only address bits are writable. A function
 * without bus mastering neither reads nor writes memory nor sends interrupts; one without memory decode does not answer at
 * its BARs. What the function does is its device model's business.
 */
import { bit, bits, reg32 } from '../../layout/bits.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { invariant, type Task } from '../../runtime/task.js';
import type { PciFunctionDescription } from '../description.js';
import type { MmioFrame } from '../bus.js';

/** Configuration space offsets (PCIe 5.0 7.5.1). */
export const PCI_COMMAND = 0x04;
export const PCI_BAR0 = 0x10;
export const PCI_CAPABILITY_LIST = 0x34;
export const PCI_COMMAND_MEMORY = 0x2;
export const PCI_COMMAND_MASTER = 0x4;
export const PCI_CAP_ID_PM = 0x01;
export const PCI_CAP_ID_EXP = 0x10;
export const PCI_CAP_ID_MSIX = 0x11;
export const CONFIG_BYTES = 4096;

/** Message Control and offsets of the MSI-X capability (PCIe 5.0 7.7.2); Message Control is the upper half of DW0. */
export const MSIX_CAPABILITY = reg32('MSIX', 0, {
  ID: bits(0, 8),
  NEXT: bits(8, 8),
  TABLE_SIZE: bits(16, 11),
  FUNCTION_MASK: bit(30),
  ENABLE: bit(31),
});
/** Bytes of one MSI-X table entry: address low, address high, data, vector control. */
export const MSIX_ENTRY_BYTES = 16;

/** One memory BAR. */
export interface Bar {
  readonly index: number;
  readonly sizeBytes: number;
  readonly is64: boolean;
}

/** What a device model answers in its BARs. */
export interface DeviceModel {
  barRead(bar: number, offset: number, sizeBytes: number): number;
  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void;
  /** Function-level or bus reset: everything the device knew is gone. */
  reset(): void;
}

/** How a transaction of a device ended. `bytes` of a read are zero where it was aborted. */
export interface DmaResult {
  readonly ok: boolean;
  readonly bytes?: Uint8Array;
}

/** A device's way to memory: the host bridge it sits below. */
export interface UpstreamPort {
  dmaRead(fn: PciFunction, iova: bigint, lengthBytes: number): Task<DmaResult>;
  dmaWrite(fn: PciFunction, iova: bigint, bytes: Uint8Array): Task<DmaResult>;
  msi(fn: PciFunction, address: bigint, data: number): Task<DmaResult>;
}

/** The MSI-X table of a function. */
interface MsixTable {
  readonly bar: number;
  readonly vectors: number;
  readonly entries: Uint8Array;
  readonly pending: Uint8Array;
}

/** One function. */
export class PciFunction {
  readonly description: PciFunctionDescription;
  readonly bdf: string;
  /** bus << 8 | device << 3 | function */
  readonly requesterId: number;
  readonly bars: readonly Bar[];
  isPresent: boolean;
  model: DeviceModel | undefined;
  readonly #runtime: NodeRuntime;
  readonly #config = new Uint8Array(CONFIG_BYTES);
  readonly #writable = new Uint8Array(CONFIG_BYTES);
  readonly #upstream: UpstreamPort;
  #msix: MsixTable | undefined;
  #msixOffset = 0;
  /** CPU address minus bus address of its BARs. */
  readonly #cpuOffsets = new Map<number, number>();

  constructor(runtime: NodeRuntime, description: PciFunctionDescription, bars: readonly Bar[], upstream: UpstreamPort) {
    this.#runtime = runtime;
    this.description = description;
    this.bdf = description.bdf;
    this.requesterId = requesterIdOf(description.bdf);
    this.bars = bars;
    this.#upstream = upstream;
    this.isPresent = description.absent !== true;
    if (description.config !== undefined) this.#config.set(description.config.subarray(0, CONFIG_BYTES));
    else this.#buildHeader();
    this.#writable.set([PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 0x04], PCI_COMMAND);
    this.#resetCommand();
    for (const bar of bars) this.#buildBar(bar);
  }

  get isBusMaster(): boolean {
    return this.isPresent && (this.#read(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) !== 0;
  }

  get decodesMemory(): boolean {
    return this.isPresent && (this.#read(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) !== 0;
  }

  get msixVectors(): number {
    return this.#msix?.vectors ?? 0;
  }

  get msixBar(): number | undefined {
    return this.#msix?.bar;
  }

  get isMsixEnabled(): boolean {
    return this.#msix !== undefined && MSIX_CAPABILITY.get([this.#read(this.#msixOffset, 4)], 'ENABLE') === 1;
  }

  /** 1, 2 or 4 bytes; all ones where there is no function. */
  configRead(offset: number, sizeBytes: number): number {
    return this.isPresent ? this.#read(offset, sizeBytes) : 2 ** (8 * sizeBytes) - 1;
  }

  configWrite(offset: number, sizeBytes: number, value: number): void {
    if (!this.isPresent) return;
    for (let i = 0; i < sizeBytes; i++) {
      const mask = this.#writable[offset + i] ?? 0;
      const byte = Math.floor(value / 2 ** (8 * i)) & 0xff;
      this.#config[offset + i] = ((this.#config[offset + i] ?? 0) & ~mask) | (byte & mask);
    }
  }

  /** Offset of a capability in configuration space, 0 when the function has none of that kind. */
  findCapability(id: number): number {
    let at = this.#read(PCI_CAPABILITY_LIST, 1);
    for (let guard = 0; at !== 0 && guard < 48; guard++) {
      if (this.#read(at, 1) === id) return at;
      at = this.#read(at + 1, 1);
    }
    return 0;
  }

  /** Bus address a BAR is programmed to. */
  barAddress(bar: Bar): number {
    const low = this.#read(PCI_BAR0 + 4 * bar.index, 4) & ~0xf;
    const high = bar.is64 ? this.#read(PCI_BAR0 + 4 * bar.index + 4, 4) : 0;
    return high * 2 ** 32 + (low >>> 0);
  }

  /** Firmware's assignment of a BAR: bus address and the CPU address that leads there. */
  assignBar(bar: Bar, busAddress: number, cpuAddress: number): void {
    this.configWrite(PCI_BAR0 + 4 * bar.index, 4, busAddress % 2 ** 32);
    if (bar.is64) this.configWrite(PCI_BAR0 + 4 * bar.index + 4, 4, Math.floor(busAddress / 2 ** 32));
    this.#cpuOffsets.set(bar.index, cpuAddress - busAddress);
  }

  /** CPU address at which a BAR answers; undefined while it does not (not assigned, decode off, not there). */
  barCpuAddress(bar: Bar): number | undefined {
    const offset = this.#cpuOffsets.get(bar.index);
    return offset === undefined || !this.decodesMemory ? undefined : this.barAddress(bar) + offset;
  }

  barRead(bar: number, offset: number, sizeBytes: number): number {
    if (bar === this.#msix?.bar) return this.#msixRead(this.#msix, offset, sizeBytes);
    return this.model?.barRead(bar, offset, sizeBytes) ?? 0;
  }

  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void {
    if (bar === this.#msix?.bar) this.#msixWrite(this.#msix, offset, sizeBytes, value);
    else this.model?.barWrite(bar, offset, sizeBytes, value);
  }

  /** The BARs as frames on the system bus. */
  frames(): MmioFrame[] {
    return this.bars.map((bar) => ({
      name: `${this.bdf} BAR ${bar.index}`,
      kind: 'peer',
      base: () => this.barCpuAddress(bar),
      sizeBytes: bar.sizeBytes,
      read: (offset, sizeBytes) => this.barRead(bar.index, offset, sizeBytes),
      write: (offset, sizeBytes, value) => this.barWrite(bar.index, offset, sizeBytes, value),
    }));
  }

  /** Gives the function MSI-X: the table at offset 0 of a BAR of its own, the pending bits behind it. */
  addMsix(bar: number, vectors: number): void {
    invariant(this.#msixOffset !== 0, `${this.bdf} has no room for an MSI-X capability`);
    this.#msix = {
      bar,
      vectors,
      entries: new Uint8Array(vectors * MSIX_ENTRY_BYTES),
      pending: new Uint8Array(Math.ceil(vectors / 8)),
    };
    const control = MSIX_CAPABILITY.make({ ID: PCI_CAP_ID_MSIX, TABLE_SIZE: vectors - 1 })[0] ?? 0;
    this.#write(this.#msixOffset, 4, control);
    this.#write(this.#msixOffset + 4, 4, bar);
    this.#write(this.#msixOffset + 8, 4, (vectors * MSIX_ENTRY_BYTES) | bar);
    this.#writable[this.#msixOffset + 3] = 0xc0;
    this.#maskAll();
  }

  /** Function-level reset (PCIe 6.6.2): command register, MSI-X and the device go back to their reset state. */
  reset(): void {
    this.#resetCommand();
    if (this.#msix !== undefined) {
      const control = this.#read(this.#msixOffset, 4);
      this.#write(this.#msixOffset, 4, control & 0x3fff_ffff);
      this.#msix.entries.fill(0);
      this.#msix.pending.fill(0);
      this.#maskAll();
    }
    this.model?.reset();
    this.#runtime.emit('pci.reset', { device: this.bdf });
  }

  // --- towards memory ---

  *dmaRead(iova: bigint, lengthBytes: number): Task<DmaResult> {
    return yield* this.#upstream.dmaRead(this, iova, lengthBytes);
  }

  *dmaWrite(iova: bigint, bytes: Uint8Array): Task<DmaResult> {
    return yield* this.#upstream.dmaWrite(this, iova, bytes);
  }

  /** Sends a vector's message, or leaves it pending while it is masked; nothing with MSI-X disabled. */
  *raise(vector: number): Task<void> {
    const msix = this.#msix;
    if (msix === undefined || !this.isMsixEnabled || vector >= msix.vectors) return;
    const view = new DataView(msix.entries.buffer, vector * MSIX_ENTRY_BYTES);
    const isMasked =
      (view.getUint32(12, true) & 1) !== 0 ||
      MSIX_CAPABILITY.get([this.#read(this.#msixOffset, 4)], 'FUNCTION_MASK') === 1;
    if (isMasked) {
      msix.pending[vector >> 3] = (msix.pending[vector >> 3] ?? 0) | (1 << (vector & 7));
      return;
    }
    yield* this.#upstream.msi(this, view.getBigUint64(0, true), view.getUint32(8, true));
  }

  // --- configuration space ---

  #read(offset: number, sizeBytes: number): number {
    let value = 0;
    for (let i = sizeBytes - 1; i >= 0; i--) value = value * 256 + (this.#config[offset + i] ?? 0);
    return value;
  }

  #write(offset: number, sizeBytes: number, value: number): void {
    for (let i = 0; i < sizeBytes; i++) this.#config[offset + i] = Math.floor((value >>> 0) / 2 ** (8 * i)) & 0xff;
  }

  #buildHeader(): void {
    const { vendor, device, classCode } = this.description;
    this.#write(0x00, 2, vendor);
    this.#write(0x02, 2, device);
    this.#write(0x06, 2, 0x10);
    this.#write(0x08, 1, 1);
    this.#write(0x09, 3, classCode);
    this.#write(0x2c, 2, vendor);
    this.#write(0x2e, 2, device);
    this.#write(PCI_CAPABILITY_LIST, 1, 0x40);
    // PCI Express endpoint, with function-level reset (7.5.3.2, 7.5.3.3).
    this.#write(0x40, 4, 0x0002_8000 | PCI_CAP_ID_EXP | (0x80 << 8));
    this.#write(0x44, 4, 0x1000_0000);
    this.#write(0x80, 4, 0x0003_0000 | PCI_CAP_ID_PM | (0x90 << 8));
    this.#msixOffset = 0x90;
  }

  #buildBar(bar: Bar): void {
    const at = PCI_BAR0 + 4 * bar.index;
    this.#write(at, 4, bar.is64 ? 0xc : 0);
    const mask = (0x1_0000_0000 - Math.min(bar.sizeBytes, 2 ** 32)) % 2 ** 32;
    for (let i = 0; i < 4; i++) this.#writable[at + i] = Math.floor(mask / 2 ** (8 * i)) & 0xff;
    this.#writable[at] = (this.#writable[at] ?? 0) & 0xf0;
    if (bar.is64) {
      this.#write(at + 4, 4, 0);
      this.#writable.fill(0xff, at + 4, at + 8);
    }
  }

  #resetCommand(): void {
    this.#write(PCI_COMMAND, 2, 0);
  }

  // --- MSI-X table ---

  #maskAll(): void {
    const msix = this.#msix;
    for (let vector = 0; vector < (msix?.vectors ?? 0); vector++)
      msix?.entries.set([1], vector * MSIX_ENTRY_BYTES + 12);
  }

  #msixRead(msix: MsixTable, offset: number, sizeBytes: number): number {
    const source = offset < msix.entries.length ? msix.entries : msix.pending;
    const at = offset < msix.entries.length ? offset : offset - msix.entries.length;
    let value = 0;
    for (let i = sizeBytes - 1; i >= 0; i--) value = value * 256 + (source[at + i] ?? 0);
    return value;
  }

  #msixWrite(msix: MsixTable, offset: number, sizeBytes: number, value: number): void {
    if (offset + sizeBytes > msix.entries.length) return;
    for (let i = 0; i < sizeBytes; i++) msix.entries[offset + i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
    const vector = Math.floor(offset / MSIX_ENTRY_BYTES);
    const isPending = ((msix.pending[vector >> 3] ?? 0) & (1 << (vector & 7))) !== 0;
    const isMasked = ((msix.entries[vector * MSIX_ENTRY_BYTES + 12] ?? 0) & 1) !== 0;
    if (!isPending || isMasked) return;
    msix.pending[vector >> 3] = (msix.pending[vector >> 3] ?? 0) & ~(1 << (vector & 7));
    this.#runtime.spawn(`${this.bdf}/msi`, this.raise(vector));
  }
}

/** Requester ID of `0000:7d:00.1`: bus << 8 | device << 3 | function. */
export function requesterIdOf(bdf: string): number {
  const match = /^[0-9a-f]{4}:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])$/.exec(bdf);
  if (match === null) throw new RangeError(`${bdf} is no PCI address`);
  const [, bus, device, fn] = match;
  return (parseInt(bus ?? '', 16) << 8) | (parseInt(device ?? '', 16) << 3) | Number(fn);
}
