/**
 * A function whose BARs are plain memory: a frame buffer, a controller memory buffer. What is written stays until reset.
 *
 * Pages come into being when they are written; what never was reads as zero.
 */
import type { DeviceModel } from '../pcie/function.js';

const PAGE_BYTES = 4096;

export class BarMemory implements DeviceModel {
  readonly #pages = new Map<string, Uint8Array>();

  barRead(bar: number, offset: number, sizeBytes: number): number {
    let value = 0;
    for (let i = sizeBytes - 1; i >= 0; i--) value = value * 256 + this.#byte(bar, offset + i);
    return value;
  }

  barWrite(bar: number, offset: number, sizeBytes: number, value: number): void {
    for (let i = 0; i < sizeBytes; i++) {
      const at = offset + i;
      const key = keyOf(bar, at);
      const page = this.#pages.get(key) ?? new Uint8Array(PAGE_BYTES);
      page[at % PAGE_BYTES] = Math.floor(value / 2 ** (8 * i)) & 0xff;
      this.#pages.set(key, page);
    }
  }

  reset(): void {
    this.#pages.clear();
  }

  #byte(bar: number, offset: number): number {
    return this.#pages.get(keyOf(bar, offset))?.[offset % PAGE_BYTES] ?? 0;
  }
}

function keyOf(bar: number, offset: number): string {
  return `${bar}/${Math.floor(offset / PAGE_BYTES)}`;
}
