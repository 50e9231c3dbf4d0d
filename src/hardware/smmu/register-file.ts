/**
 * The register file of one SMMU: storage, access rules, global errors and interrupt enables.
 *
 * A register is stored at the word of its offset within its 64 KiB page; the pages' registers never share an offset,
 * so one array holds both. Only declared bits keep what is written. What a write sets off (queues, CR0ACK) is
 * smmu.ts's business.
 */
import type { BitFields, Register } from '../../layout/bits.js';
import { isWatched, sharedRead, sharedWrite } from '../../runtime/watch.js';
import { alignDown } from './walk.js';
import { PERIPHERAL_ID_BYTES, type Identification } from './identification.js';
import type { SmmuIrqLine } from './ports.js';
import {
  CMDQ_BASE,
  EVENTQ_BASE,
  GBPA,
  GERROR,
  GERRORN,
  IDENTIFICATION_REGISTERS,
  IRQ_CTRL,
  PERIPHERAL_ID_OFFSET,
  PRIQ_BASE,
  PRIQ_REGISTERS,
  WRITABLE_REGISTERS,
  CR0ACK,
  IRQ_CTRLACK,
  STATUSR,
} from '../../uapi/smmuv3-registers.js';

const FILE_WORDS = 0x1000 / 4;
const PAGE_1 = 0x10000;
/** GBPA after reset: incoming shareability, no abort. */
const GBPA_RESET = GBPA.make({ SHCFG: 1 });

type AnyRegister = Register<BitFields>;
type GlobalError = keyof typeof GERROR.fields;

/** Registers of one SMMU. */
export class RegisterFile {
  readonly #words = new Uint32Array(FILE_WORDS);
  /** Declared bits by word, for registers that exist; writable ones separately. */
  readonly #readable = new Map<number, number>();
  readonly #writable = new Map<number, number>();
  /** What shared words are called, by offset. */
  readonly #names = new Map<number, string>();
  readonly #irq: (line: SmmuIrqLine) => void;

  constructor(
    identification: Identification,
    queueLog2: { command: number; event: number; pageRequest: number },
    irq: (line: SmmuIrqLine) => void,
  ) {
    this.#irq = irq;
    for (const register of WRITABLE_REGISTERS) this.#declare(register, true);
    if (queueLog2.pageRequest > 0) for (const register of PRIQ_REGISTERS) this.#declare(register, true);
    for (const register of [CR0ACK, IRQ_CTRLACK, GERROR, STATUSR]) this.#declare(register, false);
    for (const [name, register] of Object.entries(IDENTIFICATION_REGISTERS)) {
      this.#preset(register.offset, identification[name as keyof Identification]);
    }
    for (const [index, byte] of PERIPHERAL_ID_BYTES.entries()) this.#preset(PERIPHERAL_ID_OFFSET + index * 4, byte);
    this.#words[GBPA.offset / 4] = GBPA_RESET[0] ?? 0;
    this.setField(CMDQ_BASE, 'LOG2SIZE', queueLog2.command);
    this.setField(EVENTQ_BASE, 'LOG2SIZE', queueLog2.event);
    if (queueLog2.pageRequest > 0) this.setField(PRIQ_BASE, 'LOG2SIZE', queueLog2.pageRequest);
  }

  /** A field of a register. */
  field<F extends BitFields>(register: Register<F>, name: keyof F & string): number {
    sharedRead(this, register.name);
    return register.get(this.#words, name, indexOf(register));
  }

  /** Sets a field from the hardware's side: read-only registers too. */
  setField<F extends BitFields>(register: Register<F>, name: keyof F & string, value: number): void {
    sharedWrite(this, register.name, undefined, value);
    register.set(this.#words, name, value, indexOf(register));
  }

  /** The 32-bit word at an offset of the frame; zero where no register is. */
  readWord(offset: number): number {
    if (isWatched()) sharedRead(this, this.#nameAt(offset));
    return this.#readable.has(offset) ? (this.#words[(offset % PAGE_1) / 4] ?? 0) : 0;
  }

  /** Writes a 32-bit word as software does; false when nothing there can be written. */
  writeWord(offset: number, value: number): boolean {
    const mask = this.#writable.get(offset);
    if (mask === undefined) return false;
    const index = (offset % PAGE_1) / 4;
    if (isWatched()) sharedWrite(this, this.#nameAt(offset), this.#words[index], (value & mask) >>> 0);
    this.#words[index] = (value & mask) >>> 0;
    return true;
  }

  /** Copies what software wrote into a register's acknowledging twin (CR0 into CR0ACK). */
  acknowledge(register: AnyRegister, twin: AnyRegister): void {
    sharedWrite(this, twin.name);
    this.#words[indexOf(twin)] = this.#words[indexOf(register)] ?? 0;
  }

  /** Physical address of a queue: its base, aligned to its size. */
  queueAddress(
    base: typeof CMDQ_BASE | typeof EVENTQ_BASE | typeof PRIQ_BASE,
    log2Size: number,
    entryBytes: number,
  ): number {
    return alignDown(this.field<BitFields>(base, 'ADDR') * 32, log2Size + Math.log2(entryBytes));
  }

  /** True while an error has been raised and not acknowledged. */
  isErrorActive(error: GlobalError): boolean {
    return this.field(GERROR, error) !== this.field(GERRORN, error);
  }

  /** Makes a global error active and signals it; an error that is active already stays as it is. */
  raiseError(error: GlobalError): void {
    if (this.isErrorActive(error)) return;
    this.setField(GERROR, error, 1 - this.field(GERROR, error));
    this.interrupt('gerror');
  }

  /** Pulses an interrupt wire if IRQ_CTRL enables it; completion of CMD_SYNC has no enable. */
  interrupt(line: SmmuIrqLine): void {
    const enable = { gerror: 'GERROR_IRQEN', eventq: 'EVENTQ_IRQEN', priq: 'PRIQ_IRQEN' } as const;
    if (line === 'cmdq-sync' || this.field(IRQ_CTRL, enable[line]) !== 0) this.#irq(line);
  }

  #nameAt(offset: number): string {
    return this.#names.get(offset) ?? 'constants';
  }

  #declare(register: AnyRegister, writable: boolean): void {
    for (let word = 0; word < register.sizeBytes / 4; word++) {
      const offset = register.offset + word * 4;
      let mask = 0;
      for (const field of Object.values(register.fields)) mask |= maskInWord(field.lsb - word * 32, field.width);
      this.#readable.set(offset, mask >>> 0);
      this.#names.set(offset, register.name);
      if (writable) this.#writable.set(offset, mask >>> 0);
    }
  }

  #preset(offset: number, value: number): void {
    this.#readable.set(offset, 0xffffffff);
    this.#words[offset / 4] = value;
  }
}

function indexOf(register: AnyRegister): number {
  return (register.offset % PAGE_1) / 4;
}

/** Bits of a 32-bit word that a field from bit `lsb` (may be negative) of `width` bits covers. */
function maskInWord(lsb: number, width: number): number {
  let mask = 0;
  for (let bit = Math.max(lsb, 0); bit < Math.min(lsb + width, 32); bit++) mask |= 1 << bit;
  return mask >>> 0;
}
