/**
 * The MSI capability at work: which message a vector has, what is masked, what is pending.
 *
 * It lives in configuration space: enable and number of vectors in Message Control, one address, one data word whose low bits the
 * function replaces by the vector's number, a mask and a pending bit for each vector. Source: PCIe 5.0 7.7.1.
 */
import { capabilityRegister, configRead, PCI_CAP_ID_MSI, PCI_MSI_FLAGS } from '../../uapi/pci-regs.js';

const ADDRESS = 4;
const DATA = 12;
const MASK = 16;
const PENDING = 20;
/** Bytes of a capability with a 64-bit address and per-vector masking. */
export const MSI_CAPABILITY_BYTES = 24;

/** DW0 of such a capability for `vectors` vectors, a power of two. */
export function msiHeader(vectors: number, next: number): number {
  const fields = { ID: PCI_CAP_ID_MSI, NEXT: next, QMASK: Math.log2(vectors), X64: 1, MASKBIT: 1 };
  return PCI_MSI_FLAGS.make(fields)[0] ?? 0;
}

/** A message as it goes out. */
export interface MsiMessage {
  readonly address: bigint;
  readonly data: number;
}

/** One function's MSI capability, at `at` of its configuration space. */
export class MsiCapability {
  readonly #config: Uint8Array;
  readonly #at: number;

  constructor(config: Uint8Array, at: number) {
    this.#config = config;
    this.#at = at;
  }

  get isEnabled(): boolean {
    return PCI_MSI_FLAGS.get(capabilityRegister(this.#config, this.#at, PCI_MSI_FLAGS), 'ENABLE') === 1;
  }

  /** Vectors that software allocated. */
  get vectors(): number {
    return 2 ** PCI_MSI_FLAGS.get(capabilityRegister(this.#config, this.#at, PCI_MSI_FLAGS), 'QSIZE');
  }

  /** The message of a vector, undefined while it is masked: then it is pending. A vector beyond those allocated uses the last. */
  raise(vector: number): MsiMessage | undefined {
    const number = Math.min(vector, this.vectors - 1);
    if (((this.#word(MASK) >>> number) & 1) === 1) {
      this.#setWord(PENDING, this.#word(PENDING) | (1 << number));
      return undefined;
    }
    const data = configRead(this.#config, this.#at + DATA, 2);
    const address = BigInt(this.#word(ADDRESS)) | (BigInt(this.#word(ADDRESS + 4)) << 32n);
    return { address, data: (data & ~(this.vectors - 1)) | number };
  }

  /** Vectors that were pending and are masked no longer; they are pending no more. */
  takePending(): number[] {
    const ready = this.#word(PENDING) & ~this.#word(MASK);
    if (ready === 0) return [];
    this.#setWord(PENDING, this.#word(PENDING) & ~ready);
    return Array.from({ length: 32 }, (_, vector) => vector).filter((vector) => ((ready >>> vector) & 1) === 1);
  }

  /** Disabled, nothing masked, nothing pending. */
  reset(): void {
    this.#config.fill(0, this.#at + ADDRESS, this.#at + MSI_CAPABILITY_BYTES);
    const flags = (this.#config[this.#at + 2] ?? 0) & ~0x71;
    this.#config[this.#at + 2] = flags;
  }

  #word(offset: number): number {
    return configRead(this.#config, this.#at + offset, 4);
  }

  #setWord(offset: number, value: number): void {
    for (let i = 0; i < 4; i++) this.#config[this.#at + offset + i] = (value >>> (8 * i)) & 0xff;
  }
}
