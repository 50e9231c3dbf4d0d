/** Sparse RAM for SMMU tests, laid out as that of the recorded machine: 80 GiB at 1 GiB; elsewhere nothing answers. */
import type { SmmuMemory } from '../hardware/smmu/ports.js';

const RAM_START = 0x40000000;
const RAM_END = 0x1440000000;

/** Zero where nobody wrote. */
export class SparseMemory implements SmmuMemory {
  readonly #pages = new Map<number, Uint8Array>();

  answers(pa: number, length: number): boolean {
    return pa >= RAM_START && pa + length <= RAM_END;
  }

  read(pa: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.#pages.get(Math.floor((pa + i) / 4096))?.[(pa + i) % 4096] ?? 0;
    return bytes;
  }

  write(pa: number, bytes: Uint8Array): void {
    for (const [i, byte] of bytes.entries()) {
      const page = Math.floor((pa + i) / 4096);
      let content = this.#pages.get(page);
      if (content === undefined) this.#pages.set(page, (content = new Uint8Array(4096)));
      content[(pa + i) % 4096] = byte;
    }
  }

  loadWords(pa: number, out: Uint32Array): boolean {
    if (!this.answers(pa, out.length * 4)) return false;
    const bytes = this.read(pa, out.length * 4);
    out.set(new Uint32Array(bytes.buffer));
    return true;
  }

  store64(pa: number, lo: number, hi: number): boolean {
    if (!this.answers(pa, 8)) return false;
    this.write(pa, new Uint8Array(new Uint32Array([lo, hi]).buffer));
    return true;
  }

  compareAndSwap64(pa: number, oldLo: number, oldHi: number, newLo: number, newHi: number): boolean {
    const words = new Uint32Array(2);
    if (!this.loadWords(pa, words) || words[0] !== oldLo || words[1] !== oldHi) return false;
    return this.store64(pa, newLo, newHi);
  }
}
