/**
 * A PCI function: configuration space, BARs, MSI-X, and its way to memory.
 *
 * Configuration space is 4096 real bytes: built from the description (config-builder.ts) or recorded, with writable bits as
 * masks. BAR sizing works as in hardware: only address bits are writable. A function without bus mastering neither reads nor
 * writes memory nor sends interrupts; one without memory decode does not answer at its BARs. A bridge's bus numbers and windows
 * are its registers; the fabric routes by them. What the function does is its device model's business.
 *
 * Simplification: BARs, bus numbers and windows keep their values over resets and while the slot is empty, as if firmware had put
 * them back.
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { invariant, type Task } from '../../runtime/task.js';
import {
  CONFIG_BYTES,
  CONVENTIONAL_CONFIG_BYTES,
  PCI_CAP_ID_AF,
  PCI_PM_CTRL,
  configRead,
  expressType,
  findCapability,
  findExtendedCapability,
  PCI_ACS_CAP,
  PCI_ACS_CTRL,
  PCI_ATS_CAP,
  PCI_BAR0,
  PCI_BRIDGE_CONTROL,
  PCI_BRIDGE_CTL_BUS_RESET,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_PM,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCTL,
  PCI_EXP_FLAGS,
  PCI_EXP_SLTCAP,
  PCI_EXP_SLTCTL,
  PCI_EXT_CAP_ID_ACS,
  PCI_EXT_CAP_ID_ATS,
  PCI_EXT_CAP_ID_SRIOV,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_BRIDGE,
  PCI_MEMORY_BASE,
  PCI_MSIX_ENTRY_SIZE,
  PCI_MSIX_FLAGS,
  PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32,
  PCI_PREF_MEMORY_BASE,
  PCI_PRIMARY_BUS,
  PCI_SECONDARY_BUS,
  PCI_SRIOV_CTRL,
  PCI_SRIOV_NUM_VF,
  PCI_SUBORDINATE_BUS,
} from '../../uapi/pci-regs.js';
import type { MmioFrame } from '../bus.js';
import type { PciFunctionDescription } from '../description.js';
import type { MigrationUnit } from '../devices/migration-unit.js';
import { MSI_CAPABILITY_BYTES, MsiCapability, msiHeader } from './msi-capability.js';
import { Atc } from './atc.js';
import { buildConfig, clearableMask, writableMask, type ConfigContext } from './config-builder.js';

/** Where built functions have MSI-X and MSI. */
const MSIX_AT = 0x90;
const MSI_AT = 0xa0;

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

/** What the controls of a bridge act on. */
export interface BridgeHooks {
  /** Secondary Bus Reset was set. */
  readonly secondaryReset: () => void;
  readonly slotControlWritten: () => void;
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

/** Addresses, both ends included. */
export interface AddressSpan {
  readonly start: number;
  readonly last: number;
}

/** A range of bus addresses that a bridge forwards downwards. */
export interface DecodedWindow extends AddressSpan {
  readonly prefetchable: boolean;
}

/** One function. */
export class PciFunction {
  readonly description: PciFunctionDescription;
  readonly bdf: string;
  /** bus << 8 | device << 3 | function */
  readonly requesterId: number;
  readonly bars: readonly Bar[];
  /** PCI Express device/port type; undefined for a conventional function. */
  readonly expressType: number | undefined;
  readonly isBridge: boolean;
  /** Of a physical function with SR-IOV, in order. */
  readonly virtualFunctions: PciFunction[] = [];
  /** Of a virtual function. */
  physicalFunction: PciFunction | undefined;
  isPresent: boolean;
  model: DeviceModel | undefined;
  /** Of a card that can migrate: every transaction of the model passes it. */
  migration: MigrationUnit | undefined;
  readonly #runtime: NodeRuntime;
  readonly #config: Uint8Array;
  readonly #writable: Uint8Array;
  /** Bits that writing a one clears. */
  readonly #clearable: Uint8Array;
  #hooks: BridgeHooks | undefined;
  readonly #upstream: UpstreamPort;
  /** Offset of the ACS capability, 0 without one. */
  readonly #acsAt: number;
  /** Offset of the ATS capability, 0 without one. */
  readonly #atsAt: number;
  /** Translations it keeps while ATS is enabled. */
  readonly atc: Atc;
  #msix: MsixTable | undefined;
  #msi: MsiCapability | undefined;
  /** CPU address minus bus address of its BARs. */
  readonly #cpuOffsets = new Map<number, number>();

  constructor(
    runtime: NodeRuntime,
    description: PciFunctionDescription,
    bars: readonly Bar[],
    upstream: UpstreamPort,
    context: ConfigContext = { type: 'endpoint', isMultifunction: false },
  ) {
    this.#runtime = runtime;
    this.description = description;
    this.bdf = description.bdf;
    this.requesterId = requesterIdOf(description.bdf);
    this.bars = bars;
    this.#upstream = upstream;
    this.isPresent = description.absent !== true;
    this.#config = new Uint8Array(CONFIG_BYTES);
    this.#config.set(description.config?.subarray(0, CONFIG_BYTES) ?? buildConfig(description, context));
    this.#writable = writableMask(this.#config);
    this.#clearable = clearableMask(this.#config);
    this.expressType = expressType(this.#config);
    this.isBridge = (this.#read(PCI_HEADER_TYPE, 1) & 0x7f) === PCI_HEADER_TYPE_BRIDGE;
    this.#acsAt = this.findExtendedCapability(PCI_EXT_CAP_ID_ACS);
    this.#atsAt = this.findExtendedCapability(PCI_EXT_CAP_ID_ATS);
    this.atc = new Atc(this.bdf);
    if (this.isBridge && description.bridge !== undefined) this.#setBuses(description.bridge);
    this.#write(PCI_COMMAND, 2, 0);
    for (const bar of bars) this.#buildBar(bar);
    this.#findMsix();
  }

  // --- what it is ---

  get bus(): number {
    return this.requesterId >> 8;
  }

  get secondaryBus(): number {
    return this.#read(PCI_SECONDARY_BUS, 1);
  }

  get subordinateBus(): number {
    return this.#read(PCI_SUBORDINATE_BUS, 1);
  }

  /** A bridge's windows as its registers have them now (PCIe 7.5.1.3); none while it does not decode memory. */
  get windows(): DecodedWindow[] {
    if (!this.isBridge || !this.decodesMemory) return [];
    const memory = this.#read(PCI_MEMORY_BASE, 4);
    const pref = this.#read(PCI_PREF_MEMORY_BASE, 4);
    const [baseHigh, limitHigh] =
      (pref & 0xf) === 1 ? [this.#read(PCI_PREF_BASE_UPPER32, 4), this.#read(PCI_PREF_LIMIT_UPPER32, 4)] : [0, 0];
    const window = (word: number, high: readonly [number, number], prefetchable: boolean): DecodedWindow => ({
      start: high[0] * 2 ** 32 + (word & 0xfff0) * 2 ** 16,
      last: high[1] * 2 ** 32 + ((word >>> 20) * 2 ** 20 + 0xf_ffff),
      prefetchable,
    });
    return [window(memory, [0, 0], false), window(pref, [baseHigh, limitHigh], true)].filter((w) => w.start <= w.last);
  }

  /** ACS controls in force (PCIe 7.7.8.3). */
  get acsControl(): number {
    return this.#acsAt === 0 ? 0 : PCI_ACS_CAP.get([this.#read(this.#acsAt + PCI_ACS_CAP.offset, 4)], 'CTRL');
  }

  get isBusMaster(): boolean {
    return this.isPresent && (this.#read(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) !== 0;
  }

  /** A virtual function has no memory enable of its own: its physical function's VF MSE decides (PCIe 9.3.3.3.4). */
  get decodesMemory(): boolean {
    if (this.physicalFunction !== undefined) return this.isPresent && this.physicalFunction.#hasVfMemory;
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
    const bridgeControl = this.#read(PCI_BRIDGE_CONTROL, 2);
    for (let i = 0; i < sizeBytes; i++) {
      const mask = this.#writable[offset + i] ?? 0;
      const clears = this.#clearable[offset + i] ?? 0;
      const byte = Math.floor(value / 2 ** (8 * i)) & 0xff;
      this.#config[offset + i] = ((this.#config[offset + i] ?? 0) & ~mask & ~(byte & clears)) | (byte & mask);
    }
    this.#bridgeWritten(bridgeControl, offset, sizeBytes);
    if (this.#atsAt !== 0 && !this.isAtsEnabled) this.atc.clear();
    const control = this.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL.offset + 1;
    const isFlr = this.hasFlr && offset <= control && control < offset + sizeBytes;
    if (isFlr && (Math.floor(value / 2 ** (8 * (control - offset))) & 0x80) !== 0) this.reset();
    else this.sendPending();
    this.#updateVirtualFunctions();
  }

  /** A bridge's controls act: the slot's power, and a reset of everything below (PCIe 7.5.1.3.13, 6.6.1). */
  #bridgeWritten(controlBefore: number, offset: number, sizeBytes: number): void {
    if (!this.isBridge) return;
    const starts = ~controlBefore & this.#read(PCI_BRIDGE_CONTROL, 2) & PCI_BRIDGE_CTL_BUS_RESET;
    if (starts !== 0) this.#hooks?.secondaryReset();
    const slotControl = this.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_SLTCTL.offset;
    if (offset <= slotControl + 1 && slotControl < offset + sizeBytes) this.#hooks?.slotControlWritten();
  }

  /** What a bridge's controls do; the board knows what is below it. */
  setBridgeHooks(hooks: BridgeHooks): void {
    this.#hooks = hooks;
  }

  /** A virtual function's memory enable is hard-wired to zero. */
  wireMemoryEnable(): void {
    this.#writable[PCI_COMMAND] = (this.#writable[PCI_COMMAND] ?? 0) & ~PCI_COMMAND_MEMORY;
    this.#write(PCI_COMMAND, 1, this.#read(PCI_COMMAND, 1) & ~PCI_COMMAND_MEMORY);
  }

  /** Hardware's own change of a register: status bits that software cannot write. */
  show(offset: number, word: number): void {
    this.#write(offset, 4, word);
  }

  get #hasVfMemory(): boolean {
    const at = this.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    return at !== 0 && PCI_SRIOV_CTRL.get([this.#read(at + PCI_SRIOV_CTRL.offset, 4)], 'MSE') === 1;
  }

  /** Virtual functions there are now: NumVFs of them while VF Enable is set (PCIe 9.3.3.3). */
  #updateVirtualFunctions(): void {
    if (this.virtualFunctions.length === 0) return;
    const at = this.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    const isEnabled = at !== 0 && PCI_SRIOV_CTRL.get([this.#read(at + PCI_SRIOV_CTRL.offset, 4)], 'VFE') === 1;
    const count = isEnabled ? this.#read(at + PCI_SRIOV_NUM_VF, 2) : 0;
    for (const [index, vf] of this.virtualFunctions.entries()) {
      const isThere = this.isPresent && index < count;
      if (vf.isPresent && !isThere) vf.reset();
      vf.isPresent = isThere;
    }
  }

  /** Function-level reset capability (PCIe 7.5.3.3 bit 28). */
  get hasFlr(): boolean {
    const capability = this.findCapability(PCI_CAP_ID_EXP);
    return capability !== 0 && PCI_EXP_DEVCAP.get([this.#read(capability + PCI_EXP_DEVCAP.offset, 4)], 'FLR') === 1;
  }

  /** Advanced Features FLR of a conventional function (PCI AF ECN). */
  get hasAdvancedFlr(): boolean {
    const capability = this.findCapability(PCI_CAP_ID_AF);
    return capability !== 0 && (this.#read(capability + 3, 1) & 3) === 3;
  }

  /** Going to D3hot and back resets it (PCI PM 1.2 3.2.4: No_Soft_Reset is 0). */
  get hasPowerReset(): boolean {
    const capability = this.findCapability(PCI_CAP_ID_PM);
    const word = [this.#read(capability + PCI_PM_CTRL.offset, 4)];
    return capability !== 0 && PCI_PM_CTRL.get(word, 'NO_SOFT_RESET') === 0;
  }

  /** Bytes of configuration space: only PCI Express has more than 256. */
  get configBytes(): number {
    return this.expressType === undefined ? CONVENTIONAL_CONFIG_BYTES : CONFIG_BYTES;
  }

  /** Whether the port has a slot (PCI_EXP_FLAGS_SLOT) that can be controlled. */
  get hasSlot(): boolean {
    const capability = this.findCapability(PCI_CAP_ID_EXP);
    const isSlot = capability !== 0 && PCI_EXP_FLAGS.get([this.#read(capability, 4)], 'SLOT') === 1;
    return isSlot && PCI_EXP_SLTCAP.get([this.#read(capability + PCI_EXP_SLTCAP.offset, 4)], 'HPC') === 1;
  }

  /** Offset of a capability in configuration space, 0 when the function has none of that kind. */
  findCapability(id: number): number {
    return findCapability(this.#config, id);
  }

  /** Offset of an extended capability, 0 when the function has none of that kind. */
  findExtendedCapability(id: number): number {
    return findExtendedCapability(this.#config, id);
  }

  /** Firmware's programming of a bridge's windows; an absent one is closed (base above limit). */
  setWindows(memory: AddressSpan | undefined, prefetchable: AddressSpan | undefined): void {
    const word = (span: AddressSpan | undefined, kind: number): number =>
      span === undefined
        ? 0x0000_fff0 | kind
        : ((Math.floor(span.start / 2 ** 16) & 0xfff0) | kind | ((Math.floor(span.last / 2 ** 16) & 0xfff0) << 16)) >>>
          0;
    this.#write(PCI_MEMORY_BASE, 4, word(memory, 0));
    this.#write(PCI_PREF_MEMORY_BASE, 4, word(prefetchable, 1) | 0x0001_0000);
    this.#write(PCI_PREF_BASE_UPPER32, 4, Math.floor((prefetchable?.start ?? 0) / 2 ** 32));
    this.#write(PCI_PREF_LIMIT_UPPER32, 4, Math.floor((prefetchable?.last ?? 0) / 2 ** 32));
  }

  /** Bus address a BAR is programmed to. */
  barAddress(bar: Bar): number {
    const low = this.#read(PCI_BAR0 + 4 * bar.index, 4) & ~0xf;
    const high = bar.is64 ? this.#read(PCI_BAR0 + 4 * bar.index + 4, 4) : 0;
    return high * 2 ** 32 + (low >>> 0);
  }

  /** Firmware's assignment of a BAR: bus address and the CPU address that leads there. */
  assignBar(bar: Bar, busAddress: number, cpuAddress: number): void {
    const at = PCI_BAR0 + 4 * bar.index;
    this.#write(at, 4, (busAddress % 2 ** 32) + (this.#read(at, 1) & 0xf));
    if (bar.is64) this.#write(at + 4, 4, Math.floor(busAddress / 2 ** 32));
    this.#cpuOffsets.set(bar.index, cpuAddress - busAddress);
  }

  /** CPU address at which a BAR answers; undefined while it does not (not assigned, decode off, not there). */
  barCpuAddress(bar: Bar): number | undefined {
    const offset = this.#cpuOffsets.get(bar.index);
    return offset === undefined || !this.decodesMemory ? undefined : this.barAddress(bar) + offset;
  }

  /** What the BAR answers; all ones where there is no card. */
  barRead(bar: number, offset: number, sizeBytes: number): number {
    if (!this.isPresent) return 2 ** (8 * sizeBytes) - 1;
    const msix = this.#msix;
    if (msix !== undefined) {
      const entry = placeOf(msix.table, msix.entries, bar, offset);
      if (entry !== undefined) return configRead(msix.entries, entry, sizeBytes);
      const pending = placeOf(msix.pba, msix.pending, bar, offset);
      if (pending !== undefined) return configRead(msix.pending, pending, sizeBytes);
    }
    return this.model?.barRead(bar, offset, sizeBytes) ?? 0;
  }

  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void {
    if (!this.isPresent) return;
    const msix = this.#msix;
    const entry = msix === undefined ? undefined : placeOf(msix.table, msix.entries, bar, offset);
    if (msix === undefined || entry === undefined) {
      this.model?.barWrite(bar, offset, sizeBytes, value);
      return;
    }
    for (let i = 0; i < sizeBytes; i++) msix.entries[entry + i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
    this.sendPending();
  }

  /** The BARs as frames on the system bus; one that the bridges above do not lead to is not there. */
  frames(isReachable: (bar: Bar) => boolean): MmioFrame[] {
    return this.bars.map((bar) => ({
      name: `${this.bdf} BAR ${bar.index}`,
      kind: 'peer',
      base: () => (isReachable(bar) ? this.barCpuAddress(bar) : undefined),
      sizeBytes: bar.sizeBytes,
      read: (offset, sizeBytes) => this.barRead(bar.index, offset, sizeBytes),
      write: (offset, sizeBytes, value) => this.barWrite(bar.index, offset, sizeBytes, value),
    }));
  }

  /** A bridge forwards both ways, as firmware and the kernel's port driver leave it. */
  enableForwarding(): void {
    this.#write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  }

  /** Gives the function MSI-X: the table at offset 0 of a BAR of its own, the pending bits in the next half. */
  addMsix(bar: number, vectors: number): void {
    const sizeBytes = this.bars.find((candidate) => candidate.index === bar)?.sizeBytes ?? 0;
    invariant(
      vectors * PCI_MSIX_ENTRY_SIZE <= sizeBytes / 2,
      () => `${this.bdf}: BAR ${bar} has no room for ${vectors} vectors`,
    );
    const control = PCI_MSIX_FLAGS.make({ ID: PCI_CAP_ID_MSIX, QSIZE: vectors - 1 })[0] ?? 0;
    this.#write(this.findCapability(PCI_CAP_ID_PM) + 1, 1, MSIX_AT);
    this.#write(MSIX_AT, 4, control);
    this.#write(MSIX_AT + 4, 4, bar);
    this.#write(MSIX_AT + 8, 4, (sizeBytes / 2) | bar);
    this.#findMsix();
  }

  /** Function-level reset (PCIe 6.6.2): command register, MSI-X and the device go back to their reset state. */
  reset(): void {
    this.#resetControls();
    this.#updateVirtualFunctions();
    if (this.#msix !== undefined) this.#resetMsix(this.#msix);
    this.#msi?.reset();
    this.migration?.reset();
    this.model?.reset();
    this.#runtime.emit('pci.reset', { device: this.bdf });
  }

  // --- towards memory ---

  *dmaRead(iova: bigint, lengthBytes: number): Task<DmaResult> {
    const read = (): Task<DmaResult> => this.#upstream.dmaRead(this, iova, lengthBytes);
    return yield* this.migration?.transact('read', iova, lengthBytes, read) ?? read();
  }

  *dmaWrite(iova: bigint, bytes: Uint8Array): Task<DmaResult> {
    const write = (): Task<DmaResult> => this.#upstream.dmaWrite(this, iova, bytes);
    return yield* this.migration?.transact('write', iova, bytes.length, write) ?? write();
  }

  /** Gives a built function MSI: 64-bit address, a mask for each vector. */
  addMsi(vectors: number): void {
    const last = this.#msix === undefined ? this.findCapability(PCI_CAP_ID_PM) : MSIX_AT;
    this.#write(last + 1, 1, MSI_AT);
    this.#write(MSI_AT, 4, msiHeader(vectors, 0));
    this.#writable.set(writableMask(this.#config).subarray(MSI_AT, MSI_AT + MSI_CAPABILITY_BYTES), MSI_AT);
    this.#msi = new MsiCapability(this.#config, MSI_AT);
  }

  /** Sends a vector's message by MSI-X or MSI, whichever is enabled, or leaves it pending while it is masked; else nothing. */
  *raise(vector: number): Task<void> {
    const msix = this.#msix;
    if (msix !== undefined && this.isMsixEnabled) {
      if (vector >= msix.vectors) return;
      if (this.#isMasked(msix, vector)) {
        msix.pending[vector >> 3] = (msix.pending[vector >> 3] ?? 0) | (1 << (vector & 7));
        return;
      }
      const view = new DataView(msix.entries.buffer, vector * PCI_MSIX_ENTRY_SIZE);
      const [address, data] = [view.getBigUint64(0, true), view.getUint32(8, true)];
      const send = (): Task<DmaResult> => this.#upstream.msi(this, address, data);
      if (this.migration === undefined) yield* send();
      else yield* this.migration.send(send);
      return;
    }
    const message = this.#msi?.isEnabled === true ? this.#msi.raise(vector) : undefined;
    if (message !== undefined) yield* this.#upstream.msi(this, message.address, message.data);
  }

  // --- configuration space ---

  #read(offset: number, sizeBytes: number): number {
    return configRead(this.#config, offset, sizeBytes);
  }

  #write(offset: number, sizeBytes: number, value: number): void {
    for (let i = 0; i < sizeBytes; i++) this.#config[offset + i] = Math.floor((value >>> 0) / 2 ** (8 * i)) & 0xff;
  }

  #setBuses({ secondaryBus, subordinateBus }: NonNullable<PciFunctionDescription['bridge']>): void {
    this.#write(PCI_PRIMARY_BUS, 1, this.bus);
    this.#write(PCI_SECONDARY_BUS, 1, secondaryBus);
    this.#write(PCI_SUBORDINATE_BUS, 1, subordinateBus);
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

  /** Whether the function asks for translations and keeps them (ATS enabled). */
  get isAtsEnabled(): boolean {
    if (this.#atsAt === 0 || !this.isPresent) return false;
    return PCI_ATS_CAP.get([this.#read(this.#atsAt + PCI_ATS_CAP.offset, 4)], 'ENABLE') !== 0;
  }

  /** Command, device control, and the switches of ACS, ATS and SR-IOV. A bridge has no reset of its own and keeps them. */
  #resetControls(): void {
    if (this.isBridge) return;
    this.#write(PCI_COMMAND, 2, 0);
    const express = this.findCapability(PCI_CAP_ID_EXP);
    if (express !== 0) this.#write(express + PCI_EXP_DEVCTL.offset, 2, 0);
    if (this.#acsAt !== 0) this.#write(this.#acsAt + PCI_ACS_CTRL, 2, 0);
    if (this.#atsAt !== 0) this.#write(this.#atsAt + PCI_ATS_CAP.offset + 2, 2, 0);
    this.atc.clear();
    const sriov = this.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
    if (sriov !== 0) this.#write(sriov + PCI_SRIOV_CTRL.offset, 2, 0);
  }

  // --- MSI-X ---

  /** Builds the table that the capability in configuration space describes. */
  #findMsix(): void {
    const capability = this.findCapability(PCI_CAP_ID_MSIX);
    if (capability === 0) return;
    const vectors = PCI_MSIX_FLAGS.get([this.#read(capability, 4)], 'QSIZE') + 1;
    const placeAt = (at: number): BarPlace => {
      const word = this.#read(at, 4);
      return { bar: word & 7, offset: (word & ~7) >>> 0 };
    };
    this.#msix = {
      capability,
      vectors,
      entries: new Uint8Array(vectors * PCI_MSIX_ENTRY_SIZE),
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
    for (let vector = 0; vector < msix.vectors; vector++) msix.entries[vector * PCI_MSIX_ENTRY_SIZE + 12] = 1;
  }

  #msixControl(msix: MsixTable, field: 'ENABLE' | 'MASKALL'): number {
    return PCI_MSIX_FLAGS.get([this.#read(msix.capability, 4)], field);
  }

  #isMasked(msix: MsixTable, vector: number): boolean {
    const isVectorMasked = ((msix.entries[vector * PCI_MSIX_ENTRY_SIZE + 12] ?? 0) & 1) !== 0;
    const isStopped = this.migration?.activity === 'stopped';
    return isVectorMasked || isStopped || this.#msixControl(msix, 'MASKALL') === 1;
  }

  /** MSI-X vectors that were raised and not sent. */
  pendingVectors(): number[] {
    const bits = this.#msix?.pending ?? new Uint8Array();
    return Array.from({ length: this.msixVectors }, (_, vector) => vector).filter(
      (vector) => ((bits[vector >> 3] ?? 0) & (1 << (vector & 7))) !== 0,
    );
  }

  /** Pending bits as another function of this kind had them. */
  setPendingVectors(vectors: readonly number[]): void {
    const bits = this.#msix?.pending;
    if (bits === undefined) return;
    bits.fill(0);
    for (const vector of vectors)
      if (vector < this.msixVectors) bits[vector >> 3] = (bits[vector >> 3] ?? 0) | (1 << (vector & 7));
  }

  /** Sends what was pending and is masked no longer. */
  sendPending(): void {
    const ready = this.#msi?.isEnabled === true ? this.#msi.takePending() : [];
    for (const vector of ready) this.#runtime.spawn(`${this.bdf}/msi`, this.raise(vector));
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
