/**
 * A PCI Express function: configuration space, BARs, MSI-X, and its way to memory.
 *
 * Configuration space is 4096 real bytes (PCIe 5.0 chapter 7): type 0 header, capability list with PCI Express, power
 * management and MSI-X, writable bits as masks. BAR sizing works as in hardware: only address bits are writable. A function
 * without bus mastering neither reads nor writes memory nor sends interrupts; one without memory decode does not answer at
 * its BARs. What the function does is its device model's business. An imported function answers with its recorded bytes.
 *
 * Simplification: BAR registers keep their addresses over resets and while the slot is empty, as if firmware had put them back.
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
/** Device Control of the PCI Express capability: bit 15 starts a function-level reset. */
export const PCI_EXP_DEVCTL = 0x08;
export const PCI_EXP_DEVCAP_FLR = 0x1000_0000;
export const CONFIG_BYTES = 4096;

/** Message Control and offsets of the MSI-X capability (PCIe 5.0 7.7.2); Message Control is the upper half of DW0. */
export const MSIX_CAPABILITY = reg32('MSIX', 0, {
  ID: bits(0, 8),
  NEXT: bits(8, 8),
  TABLE_SIZE: bits(16, 11),
  FUNCTION_MASK: bit(30),
  ENABLE: bit(31),
});
/** Where functions built here (not imported) have their capabilities. */
const PM_CAPABILITY = 0x80;
const MSIX_CAPABILITY_OFFSET = 0x90;
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

/** The MSI-X table and pending bits of a function, and where they lie. */
interface MsixTable {
  /** Offset of the capability in configuration space. */
  readonly capability: number;
  readonly vectors: number;
  readonly entries: Uint8Array;
  readonly pending: Uint8Array;
  readonly table: BarPlace;
  readonly pba: BarPlace;
}

interface BarPlace {
  readonly bar: number;
  readonly offset: number;
}

/** Where an access at `offset` of `bar` lies in `bytes`; undefined outside. */
function placeOf(place: BarPlace, bytes: Uint8Array, bar: number, offset: number): number | undefined {
  const at = offset - place.offset;
  return bar === place.bar && at >= 0 && at < bytes.length ? at : undefined;
}

function littleEndian(bytes: Uint8Array, offset: number, sizeBytes: number): number {
  let value = 0;
  for (let i = sizeBytes - 1; i >= 0; i--) value = value * 256 + (bytes[offset + i] ?? 0);
  return value;
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
    this.#findMsix();
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

  /** The BAR that holds the MSI-X table. */
  get msixBar(): number | undefined {
    return this.#msix?.table.bar;
  }

  get isMsixEnabled(): boolean {
    return this.#msix !== undefined && this.#msixControl(this.#msix, 'ENABLE') === 1;
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
    const control = this.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL + 1;
    const isFlr = this.hasFlr && offset <= control && control < offset + sizeBytes;
    if (isFlr && (Math.floor(value / 2 ** (8 * (control - offset))) & 0x80) !== 0) this.reset();
    else this.#sendPending();
  }

  /** Function-level reset capability (PCIe 7.5.3.3 bit 28). */
  get hasFlr(): boolean {
    const capability = this.findCapability(PCI_CAP_ID_EXP);
    return capability !== 0 && (this.#read(capability + 4, 4) & PCI_EXP_DEVCAP_FLR) !== 0;
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
    const msix = this.#msix;
    if (msix !== undefined) {
      const entry = placeOf(msix.table, msix.entries, bar, offset);
      if (entry !== undefined) return littleEndian(msix.entries, entry, sizeBytes);
      const pending = placeOf(msix.pba, msix.pending, bar, offset);
      if (pending !== undefined) return littleEndian(msix.pending, pending, sizeBytes);
    }
    return this.model?.barRead(bar, offset, sizeBytes) ?? 0;
  }

  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void {
    const msix = this.#msix;
    const entry = msix === undefined ? undefined : placeOf(msix.table, msix.entries, bar, offset);
    if (msix === undefined || entry === undefined) {
      this.model?.barWrite(bar, offset, sizeBytes, value);
      return;
    }
    for (let i = 0; i < sizeBytes; i++) msix.entries[entry + i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
    this.#sendPending();
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

  /** Gives the function MSI-X: the table at offset 0 of a BAR of its own, the pending bits in the next half. */
  addMsix(bar: number, vectors: number): void {
    const sizeBytes = this.bars.find((candidate) => candidate.index === bar)?.sizeBytes ?? 0;
    invariant(
      vectors * MSIX_ENTRY_BYTES <= sizeBytes / 2,
      `${this.bdf}: BAR ${bar} has no room for ${vectors} vectors`,
    );
    const control = MSIX_CAPABILITY.make({ ID: PCI_CAP_ID_MSIX, TABLE_SIZE: vectors - 1 })[0] ?? 0;
    this.#write(PM_CAPABILITY + 1, 1, MSIX_CAPABILITY_OFFSET);
    this.#write(MSIX_CAPABILITY_OFFSET, 4, control);
    this.#write(MSIX_CAPABILITY_OFFSET + 4, 4, bar);
    this.#write(MSIX_CAPABILITY_OFFSET + 8, 4, (sizeBytes / 2) | bar);
    this.#findMsix();
  }

  /** Function-level reset (PCIe 6.6.2): command register, MSI-X and the device go back to their reset state. */
  reset(): void {
    this.#resetCommand();
    if (this.#msix !== undefined) this.#resetMsix(this.#msix);
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
    if (this.#isMasked(msix, vector)) {
      msix.pending[vector >> 3] = (msix.pending[vector >> 3] ?? 0) | (1 << (vector & 7));
      return;
    }
    const view = new DataView(msix.entries.buffer, vector * MSIX_ENTRY_BYTES);
    yield* this.#upstream.msi(this, view.getBigUint64(0, true), view.getUint32(8, true));
  }

  // --- configuration space ---

  #read(offset: number, sizeBytes: number): number {
    return littleEndian(this.#config, offset, sizeBytes);
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
    this.#write(0x40, 4, 0x0002_8000 | PCI_CAP_ID_EXP | (PM_CAPABILITY << 8));
    this.#write(0x44, 4, PCI_EXP_DEVCAP_FLR);
    this.#write(PM_CAPABILITY, 4, 0x0003_0000 | PCI_CAP_ID_PM);
  }

  #buildBar(bar: Bar): void {
    const at = PCI_BAR0 + 4 * bar.index;
    const isRecorded = this.description.config !== undefined;
    const type = isRecorded ? this.#read(at, 1) & 0xf : bar.is64 ? 0xc : 0;
    this.#write(at, 4, type);
    this.#writable.set(sizingMask(bar.sizeBytes % 2 ** 32), at);
    this.#writable[at] = (this.#writable[at] ?? 0) & 0xf0;
    if (!bar.is64) return;
    this.#write(at + 4, 4, 0);
    const isHuge = bar.sizeBytes >= 2 ** 32;
    this.#writable.set(sizingMask(isHuge ? bar.sizeBytes / 2 ** 32 : 1), at + 4);
  }

  #resetCommand(): void {
    this.#write(PCI_COMMAND, 2, 0);
  }

  // --- MSI-X ---

  /** Builds the table that the capability in configuration space describes. */
  #findMsix(): void {
    const capability = this.findCapability(PCI_CAP_ID_MSIX);
    if (capability === 0) return;
    const vectors = MSIX_CAPABILITY.get([this.#read(capability, 4)], 'TABLE_SIZE') + 1;
    const placeAt = (at: number): BarPlace => {
      const word = this.#read(at, 4);
      return { bar: word & 7, offset: (word & ~7) >>> 0 };
    };
    this.#msix = {
      capability,
      vectors,
      entries: new Uint8Array(vectors * MSIX_ENTRY_BYTES),
      pending: new Uint8Array(Math.ceil(vectors / 64) * 8),
      table: placeAt(capability + 4),
      pba: placeAt(capability + 8),
    };
    this.#writable[capability + 3] = 0xc0;
    this.#resetMsix(this.#msix);
  }

  /** Disabled, every vector masked, nothing pending. */
  #resetMsix(msix: MsixTable): void {
    this.#write(msix.capability, 4, this.#read(msix.capability, 4) & 0x3fff_ffff);
    msix.pending.fill(0);
    msix.entries.fill(0);
    for (let vector = 0; vector < msix.vectors; vector++) msix.entries[vector * MSIX_ENTRY_BYTES + 12] = 1;
  }

  #msixControl(msix: MsixTable, field: 'ENABLE' | 'FUNCTION_MASK'): number {
    return MSIX_CAPABILITY.get([this.#read(msix.capability, 4)], field);
  }

  #isMasked(msix: MsixTable, vector: number): boolean {
    const isVectorMasked = ((msix.entries[vector * MSIX_ENTRY_BYTES + 12] ?? 0) & 1) !== 0;
    return isVectorMasked || this.#msixControl(msix, 'FUNCTION_MASK') === 1;
  }

  /** Sends what was pending and is masked no longer. */
  #sendPending(): void {
    const msix = this.#msix;
    if (msix === undefined || !this.isMsixEnabled) return;
    for (let vector = 0; vector < msix.vectors; vector++) {
      const byte = msix.pending[vector >> 3] ?? 0;
      if ((byte & (1 << (vector & 7))) === 0 || this.#isMasked(msix, vector)) continue;
      msix.pending[vector >> 3] = byte & ~(1 << (vector & 7));
      this.#runtime.spawn(`${this.bdf}/msi`, this.raise(vector));
    }
  }
}

/** The four bytes of a BAR register that sizing may write: the address bits above `sizeBytes` (0 for 2^32). */
function sizingMask(sizeBytes: number): Uint8Array {
  const mask = sizeBytes === 0 ? 0 : 2 ** 32 - sizeBytes;
  return Uint8Array.from({ length: 4 }, (_, i) => Math.floor(mask / 2 ** (8 * i)) & 0xff);
}

/** Requester ID of `0000:7d:00.1`: bus << 8 | device << 3 | function. */
export function requesterIdOf(bdf: string): number {
  const match = /^[0-9a-f]{4}:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])$/.exec(bdf);
  if (match === null) throw new RangeError(`${bdf} is no PCI address`);
  const [, bus, device, fn] = match;
  return (parseInt(bus ?? '', 16) << 8) | (parseInt(device ?? '', 16) << 3) | Number(fn);
}
