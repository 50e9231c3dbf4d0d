/** The driver's view of one SMMUv3's register frame: 32-bit accesses over the bus, fields by name, polling. */
import type { BitFields, Register } from '../../../layout/bits.js';
import { invariant, type Task } from '../../../runtime/task.js';
import { SMMU_POLL_NS } from '../../costs.js';

/** CPU accesses to device frames. */
export interface MmioPort {
  /** Undefined where nothing answers. */
  mmioRead32(pa: number): number | undefined;
  /** False where nothing answers. */
  mmioWrite32(pa: number, value: number): boolean;
}

/** ARM_SMMU_POLL_TIMEOUT_US: the driver gives up after this. */
const POLL_TIMEOUT_NS = 1_000_000_000;

/** Registers of one SMMU by their declarations. */
export class SmmuRegisters {
  readonly #port: MmioPort;
  readonly #base: number;

  constructor(port: MmioPort, base: number) {
    this.#port = port;
    this.#base = base;
  }

  read(register: Register<BitFields>): number {
    const value = this.#port.mmioRead32(this.#base + register.offset);
    invariant(value !== undefined, () => `arm-smmu-v3: nothing answers at ${register.name}`);
    return value >>> 0;
  }

  /** One field of a 32-bit register. */
  field<F extends BitFields>(register: Register<F>, name: keyof F & string): number {
    return register.get([this.read(register)], name);
  }

  write(register: Register<BitFields>, value: number): void {
    const answered = this.#port.mmioWrite32(this.#base + register.offset, value >>> 0);
    invariant(answered, () => `arm-smmu-v3: nothing answers at ${register.name}`);
  }

  /** Writes a 32-bit register given by its fields. */
  set<F extends BitFields>(register: Register<F>, values: Partial<Record<keyof F & string, number>>): void {
    this.write(register, register.make(values)[0] ?? 0);
  }

  /** Writes a 64-bit register as two words, low first. */
  set64<F extends BitFields>(register: Register<F>, values: Partial<Record<keyof F & string, number>>): void {
    const words = register.make(values);
    for (const i of [0, 1]) {
      const answered = this.#port.mmioWrite32(this.#base + register.offset + i * 4, words[i] ?? 0);
      invariant(answered, () => `arm-smmu-v3: nothing answers at ${register.name}`);
    }
  }

  /** Writes a control register and waits for its acknowledgement. */
  *setAndWait(register: Register<BitFields>, acknowledge: Register<BitFields>, value: number): Task<void> {
    this.write(register, value);
    yield* pollUntil(`${register.name} acknowledged`, () => this.read(acknowledge) === value);
  }
}

/** Waits until a condition holds. Hardware that never answers is a broken model: it ends the run. */
export function* pollUntil(what: string, condition: () => boolean): Task<void> {
  for (let waited = 0; !condition(); waited += SMMU_POLL_NS) {
    invariant(waited < POLL_TIMEOUT_NS, () => `arm-smmu-v3: timed out waiting for ${what}`);
    yield SMMU_POLL_NS;
  }
}
