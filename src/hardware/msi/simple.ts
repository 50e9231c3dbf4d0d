/**
 * Doorbells without translation tables of an ITS: GICv2m, the x86 interrupt window, frames inside a root complex.
 *
 * GICv2m and in-RC frames take the number from whoever writes it: any device can raise any interrupt of the frame, so they are
 * not isolated (domain.md A4.51, A4.52). The x86 window 0xfee00000-0xfeefffff is decoded in the root complex (A4.54); whether it is
 * isolated depends on interrupt remapping.
 *
 * Sources: Arm GICv2m (SBSA appendix); Intel VT-d specification 5.1, 9.10; Linux irq-gic-v2m.c.
 */
import { bit, bits, defineRecord, reg32, reg64 } from '../../layout/bits.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { MmioFrame, Origin } from '../bus.js';
import type { MsiControllerDescription } from '../description.js';
import type { PhysicalMemory } from '../memory.js';
import { deviceIdOf, interruptFrom, messageWord, type Interrupt, type MsiController } from './controller.js';

const SETSPI_NS = 0x40;
const V2M_FRAME_BYTES = 0x1000;
/** SPIs of a frame and the first one of the first frame (MSI_TYPER); frames have them one after the other. */
export const V2M_FIRST_SPI = 80;
export const V2M_SPIS = 64;
const MSI_TYPER = 0x08;
const X86_WINDOW_BYTES = 0x10_0000;
const X86_FIRST_VECTOR = 32;

/** A GICv2m frame. */
export class Gicv2m implements MsiController, MmioFrame {
  readonly name: string;
  readonly kind = 'doorbell';
  readonly isolated: boolean;
  readonly sizeBytes = V2M_FRAME_BYTES;
  readonly #runtime: NodeRuntime;
  readonly #base: number;
  readonly #bypasses: boolean;
  readonly #deliver: (interrupt: Interrupt) => void;

  /** First SPI of this frame. */
  readonly firstSpi: number;

  /** `index`: of the host's GICv2m frames, from 0. */
  constructor(
    runtime: NodeRuntime,
    description: MsiControllerDescription,
    index: number,
    deliver: (interrupt: Interrupt) => void,
  ) {
    this.#runtime = runtime;
    this.firstSpi = V2M_FIRST_SPI + index * V2M_SPIS;
    this.#base = Number(description.base);
    this.#bypasses = description.bypassesIommu;
    this.#deliver = deliver;
    this.name = description.name;
    this.isolated = description.isolated;
  }

  base(): number {
    return this.#base;
  }

  get doorbell(): number {
    return this.#base + SETSPI_NS;
  }

  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const base = BigInt(this.#base);
    return this.#bypasses && address >= base && address + BigInt(lengthBytes) <= base + BigInt(V2M_FRAME_BYTES);
  }

  read(offset: number): number {
    return offset === MSI_TYPER ? (this.firstSpi << 16) | V2M_SPIS : 0;
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    this.#raise(Number(address) - this.#base, messageWord(bytes), origin);
  }

  write(offset: number, sizeBytes: number, value: number, origin: Origin): void {
    this.#raise(offset, sizeBytes === 4 ? value : undefined, origin);
  }

  #raise(offset: number, spi: number | undefined, origin: Origin): void {
    if (offset === SETSPI_NS && spi !== undefined && spi >= this.firstSpi && spi < this.firstSpi + V2M_SPIS) {
      this.#deliver(interruptFrom(this.name, spi, origin));
    } else {
      this.#runtime.emit('v2m.dropped', { frame: this.name, offset });
    }
  }
}

/** Registers of the interrupt remapping unit, and where they are. */
export const REMAPPING_BASE = 0xfedb_0000;
const REMAPPING_FRAME_BYTES = 0x1000;
/** Global Command and Status: interrupt remapping on (VT-d 11.4.4). */
export const GCMD_REG = reg32('GCMD_REG', 0x18, { IRE: bit(25) });
export const GSTS_REG = reg32('GSTS_REG', 0x1c, { IRES: bit(25) });
/** IRTA_REG: table address, and 2^(S+1) entries (VT-d 11.4.9.1). */
export const IRTA_REG = reg64('IRTA_REG', 0xb8, { S: bits(0, 4), IRTA: bits(12, 40) });
/** Interrupt Remapping Table Entry, remapped format (VT-d 9.10). */
export const IRTE = defineRecord('IRTE', 16, {
  P: bit(0),
  FPD: bit(1),
  Vector: bits(16, 8),
  Destination: bits(32, 32),
  SID: bits(64, 16),
  SQ: bits(80, 2),
  SVT: bits(82, 2),
});
/** Address of a remappable interrupt request (VT-d 5.1.2.2), above 0xfee00000. */
export const REMAPPABLE_ADDRESS = defineRecord('REMAPPABLE_ADDRESS', 4, {
  HANDLE_15: bit(2),
  SHV: bit(3),
  FORMAT: bit(4),
  HANDLE: bits(5, 15),
});

/**
 * The interrupt window of x86, with or without remapping.
 *
 * Without (or before software has switched it on), the vector is in the data's low byte and anybody can raise any. With it, a message names an entry of a table in
 * memory that says which requester may use it and which vector it becomes; what does not pass is blocked, messages of the
 * compatibility format included.
 */
export class X86Msi implements MsiController, MmioFrame {
  readonly name: string;
  readonly kind = 'registers';
  readonly isolated: boolean;
  readonly doorbell: number;
  readonly sizeBytes = REMAPPING_FRAME_BYTES;
  readonly #runtime: NodeRuntime;
  readonly #memory: PhysicalMemory;
  readonly #deliver: (interrupt: Interrupt) => void;
  readonly #irta = new Uint32Array(2);
  #isRemapping = false;

  constructor(
    runtime: NodeRuntime,
    memory: PhysicalMemory,
    description: MsiControllerDescription,
    deliver: (interrupt: Interrupt) => void,
  ) {
    this.#runtime = runtime;
    this.#memory = memory;
    this.#deliver = deliver;
    this.name = description.name;
    this.isolated = description.isolated;
    this.doorbell = Number(description.base);
  }

  /** Registers of the remapping unit; there is none without remapping. */
  base(): number | undefined {
    return this.isolated ? REMAPPING_BASE : undefined;
  }

  read(offset: number): number {
    if (offset === GSTS_REG.offset) return GSTS_REG.make({ IRES: this.#isRemapping ? 1 : 0 })[0] ?? 0;
    const isIrta = (offset & ~4) === IRTA_REG.offset;
    return isIrta ? (this.#irta[(offset >> 2) & 1] ?? 0) : 0;
  }

  write(offset: number, sizeBytes: number, value: number): void {
    if (sizeBytes !== 4) return;
    if (offset === GCMD_REG.offset) this.#isRemapping = GCMD_REG.get([value], 'IRE') === 1;
    else if (offset === IRTA_REG.offset || offset === IRTA_REG.offset + 4)
      this.#irta[(offset - IRTA_REG.offset) / 4] = value;
  }

  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const base = BigInt(this.doorbell);
    return address >= base && address + BigInt(lengthBytes) <= base + BigInt(X86_WINDOW_BYTES);
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    const word = messageWord(bytes);
    if (word === undefined) this.#block(origin, 'not a message: no doubleword');
    else if (this.#isRemapping) this.#remap(Number(address & 0xf_ffffn), word, origin);
    else this.#raise(word & 0xff, origin);
  }

  #remap(address: number, word: number, origin: Origin): void {
    const { FORMAT, SHV, HANDLE, HANDLE_15 } = REMAPPABLE_ADDRESS.decode([address]);
    if (FORMAT === 0) {
      this.#block(origin, 'compatibility format');
      return;
    }
    const index = HANDLE + HANDLE_15 * 0x8000 + (SHV === 1 ? word & 0xffff : 0);
    const entry = new Uint32Array(4);
    const table = IRTA_REG.get(this.#irta, 'IRTA') * 4096;
    const isInTable = index < 2 ** (IRTA_REG.get(this.#irta, 'S') + 1);
    if (!isInTable || !this.#memory.loadWords(table + 16 * index, entry)) this.#block(origin, `no entry ${index}`);
    else if (IRTE.get(entry, 'P') === 0) this.#block(origin, `entry ${index} is not present`);
    else if (!isSource(entry, deviceIdOf(origin))) this.#block(origin, `entry ${index} is another requester's`);
    else this.#raise(IRTE.get(entry, 'Vector'), origin);
  }

  #raise(vector: number, origin: Origin): void {
    if (vector < X86_FIRST_VECTOR) this.#block(origin, `vector ${vector} is reserved`);
    else this.#deliver(interruptFrom(this.name, vector, origin));
  }

  #block(origin: Origin, why: string): void {
    const device = origin.kind === 'device' ? origin.bdf : 'cpu';
    this.#runtime.emit('irq.blocked', { controller: this.name, device, why });
  }
}

/** Source validation: exactly (SVT 1, SQ 0), or without some function bits; none with SVT 0. */
function isSource(entry: Uint32Array, requesterId: number | undefined): boolean {
  if (IRTE.get(entry, 'SVT') === 0) return true;
  const ignored = [0, 4, 6, 7][IRTE.get(entry, 'SQ')] ?? 0;
  return requesterId !== undefined && (IRTE.get(entry, 'SID') & ~ignored) === (requesterId & 0xffff & ~ignored);
}

const IN_RC_FRAME_BYTES = 4096;
/** Interrupts of a doorbell inside a root complex. */
export const IN_RC_FIRST = 0;
export const IN_RC_COUNT = 256;

/**
 * A doorbell inside the root complex (DesignWare iMSI-RX, X-Gene, Alpine; domain.md A4.52): every access to its frame is taken,
 * a 32-bit write raises the interrupt of its data. The CPU side of the frame is a register frame as well.
 */
export class InRcMsi implements MsiController, MmioFrame {
  readonly name: string;
  readonly kind = 'doorbell';
  readonly isolated: boolean;
  readonly sizeBytes: number;
  readonly doorbell: number;
  readonly #runtime: NodeRuntime;
  readonly #deliver: (interrupt: Interrupt) => void;

  constructor(runtime: NodeRuntime, description: MsiControllerDescription, deliver: (interrupt: Interrupt) => void) {
    this.#runtime = runtime;
    this.#deliver = deliver;
    this.name = description.name;
    this.isolated = description.isolated;
    this.sizeBytes = description.sizeBytes ?? IN_RC_FRAME_BYTES;
    this.doorbell = Number(description.base);
  }

  base(): number {
    return this.doorbell;
  }

  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const base = BigInt(this.doorbell);
    return address >= base && address + BigInt(lengthBytes) <= base + BigInt(this.sizeBytes);
  }

  read(): number {
    return 0;
  }

  ring(address: bigint, bytes: Uint8Array, origin: Origin): void {
    this.#raise(Number(address) - this.doorbell, messageWord(bytes), origin);
  }

  write(offset: number, sizeBytes: number, value: number, origin: Origin): void {
    this.#raise(offset, sizeBytes === 4 ? value : undefined, origin);
  }

  #raise(offset: number, number: number | undefined, origin: Origin): void {
    if (offset === 0 && number !== undefined && number >= IN_RC_FIRST && number < IN_RC_FIRST + IN_RC_COUNT)
      this.#deliver(interruptFrom(this.name, number, origin));
    else this.#runtime.emit('in-rc-msi.swallowed', { controller: this.name, offset });
  }
}
