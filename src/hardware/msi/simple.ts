/**
 * Doorbells without translation: GICv2m and the x86 interrupt window.
 *
 * GICv2m takes the SPI number from whoever writes it: any device can raise any interrupt of the frame, so it is not isolated
 * (domain.md A4.51). The x86 window 0xfee00000-0xfeefffff is decoded in the root complex; the vector is in the data's low
 * byte (domain.md A4.54); isolation is a property of interrupt remapping, which the description states.
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { MmioFrame } from '../bus.js';
import type { MsiControllerDescription } from '../description.js';
import { messageWord, type Interrupt, type MsiController } from './controller.js';

const SETSPI_NS = 0x40;
const V2M_FRAME_BYTES = 0x1000;
/** First SPI of the frame and their number (MSI_TYPER). */
export const V2M_FIRST_SPI = 80;
export const V2M_SPIS = 64;
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

  constructor(runtime: NodeRuntime, description: MsiControllerDescription, deliver: (interrupt: Interrupt) => void) {
    this.#runtime = runtime;
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

  read(): number {
    return 0;
  }

  ring(address: bigint, bytes: Uint8Array): void {
    this.#raise(Number(address) - this.#base, messageWord(bytes));
  }

  write(offset: number, sizeBytes: number, value: number): void {
    this.#raise(offset, sizeBytes === 4 ? value : undefined);
  }

  #raise(offset: number, spi: number | undefined): void {
    if (offset === SETSPI_NS && spi !== undefined && spi >= V2M_FIRST_SPI && spi < V2M_FIRST_SPI + V2M_SPIS) {
      this.#deliver({ controller: this.name, intid: spi });
    } else {
      this.#runtime.emit('v2m.dropped', { frame: this.name, offset });
    }
  }
}

/** The interrupt window of x86. */
export class X86Msi implements MsiController {
  readonly name: string;
  readonly isolated: boolean;
  readonly doorbell: number;
  readonly #runtime: NodeRuntime;
  readonly #deliver: (interrupt: Interrupt) => void;

  constructor(runtime: NodeRuntime, description: MsiControllerDescription, deliver: (interrupt: Interrupt) => void) {
    this.#runtime = runtime;
    this.#deliver = deliver;
    this.name = description.name;
    this.isolated = description.isolated;
    this.doorbell = Number(description.base);
  }

  decodesBeforeIommu(address: bigint, lengthBytes: number): boolean {
    const base = BigInt(this.doorbell);
    return address >= base && address + BigInt(lengthBytes) <= base + BigInt(X86_WINDOW_BYTES);
  }

  ring(address: bigint, bytes: Uint8Array): void {
    const vector = (messageWord(bytes) ?? 0) & 0xff;
    if (vector >= X86_FIRST_VECTOR) this.#deliver({ controller: this.name, intid: vector });
    else this.#runtime.emit('x86-msi.dropped', { controller: this.name, address });
  }
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

  ring(address: bigint, bytes: Uint8Array): void {
    this.#raise(Number(address) - this.doorbell, messageWord(bytes));
  }

  write(offset: number, sizeBytes: number, value: number): void {
    this.#raise(offset, sizeBytes === 4 ? value : undefined);
  }

  #raise(offset: number, number: number | undefined): void {
    if (offset === 0 && number !== undefined && number >= IN_RC_FIRST && number < IN_RC_FIRST + IN_RC_COUNT)
      this.#deliver({ controller: this.name, intid: number });
    else this.#runtime.emit('in-rc-msi.swallowed', { controller: this.name, offset });
  }
}
