/**
 * Event records and the event queue.
 *
 * A fault becomes at most one 32-byte record, written to the queue in memory before EVENTQ_PROD moves. A full queue
 * loses the record and toggles EVENTQ_PROD.OVFLG once, until software acknowledges (7.4); a write that nothing answers
 * raises GERROR.EVENTQ_ABT_ERR and keeps the queue shut until that is acknowledged (7.2.2). Whether a translation
 * fault is recorded at all is CD.R's or STE.S2R's decision; configuration faults and aborted fetches always are.
 *
 * C_BAD_STREAMID is recorded whatever CR2.RECINVSID says, as the recorded model does; Linux always sets the bit. RnW
 * is that of the input transaction for every CLASS (7.3.12, 7.3.13).
 */
import { sharedRead, sharedWrite } from '../../runtime/watch.js';
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import type { SmmuMemory } from './ports.js';
import { EVENT, EVENT_CLASS, EVT, type EventName } from './records.js';
import { CR0, EVENTQ_BASE, EVENTQ_CONS, EVENTQ_PROD } from '../../uapi/smmuv3-registers.js';
import type { RegisterFile } from './register-file.js';
import type { Access, Fault } from './walk.js';

/** The transaction an event is about. */
export interface EventOrigin {
  readonly streamId: number;
  readonly substreamId: number | undefined;
  readonly iova: bigint;
  readonly access: Access;
}

/** Faults of translations: those that CD.R and STE.S2R can silence, and CD.S and STE.S2S stall. */
export const TRANSLATION_FAULTS: ReadonlySet<EventName> = new Set([
  'F_TRANSLATION',
  'F_ADDR_SIZE',
  'F_ACCESS',
  'F_PERMISSION',
]);
/** Events whose record describes the access. */
const DESCRIBES_ACCESS: ReadonlySet<EventName> = new Set([...TRANSLATION_FAULTS, 'F_WALK_EABT']);
/** Events whose record has the input address and no more of the access. */
const HAS_INPUT_ADDRESS: ReadonlySet<EventName> = new Set([
  'F_UUT',
  'F_BAD_ATS_TREQ',
  'F_TRANSL_FORBIDDEN',
  'F_TLB_CONFLICT',
  'E_PAGE_REQUEST',
]);
const HAS_FETCH_ADDRESS: ReadonlySet<EventName> = new Set(['F_STE_FETCH', 'F_WALK_EABT']);

/** The event record of a fault. IHI 0070 7.3. */
export function eventRecord(fault: Fault, origin: EventOrigin): Uint32Array {
  const record = EVT.make({ Type: EVENT[fault.event], StreamID: origin.streamId });
  if (origin.substreamId !== undefined) {
    EVT.set(record, 'SSV', 1);
    EVT.set(record, 'SubstreamID', origin.substreamId);
  }
  if (fault.event === 'F_CD_FETCH') EVT.set(record, 'CdFetchAddr', Math.floor(fault.fetchAddress / 8));
  else if (HAS_FETCH_ADDRESS.has(fault.event)) EVT.set(record, 'FetchAddr', Math.floor(fault.fetchAddress / 8));
  const { access } = origin;
  if (HAS_INPUT_ADDRESS.has(fault.event)) {
    EVT.set(record, 'RnW', Number(!access.write));
    EVT.set(record, 'PnU', Number(access.privileged));
    EVT.set(record, 'InputAddrLow', Number(origin.iova & 0xffffffffn));
    EVT.set(record, 'InputAddrHigh', Number(origin.iova >> 32n));
  }
  if (!DESCRIBES_ACCESS.has(fault.event)) return record;
  EVT.set(record, 'RnW', Number(!access.write));
  EVT.set(record, 'InD', Number(access.instruction && !access.write));
  EVT.set(record, 'PnU', Number(access.privileged));
  EVT.set(record, 'S2', Number(fault.stage2));
  EVT.set(record, 'CLASS', fault.faultClass);
  EVT.set(record, 'InputAddrLow', Number(origin.iova & 0xffffffffn));
  EVT.set(record, 'InputAddrHigh', Number(origin.iova >> 32n));
  if (fault.stage2 && fault.event !== 'F_WALK_EABT') EVT.set(record, 'IPA', Math.floor(fault.ipa / 4096));
  return record;
}

/** Writes records where EVENTQ_BASE says. */
export class EventQueue {
  readonly #runtime: NodeRuntime;
  readonly #memory: SmmuMemory;
  readonly #registers: RegisterFile;
  readonly #name: string;
  readonly #maxLog2: number;
  /** Records of stalled transactions that found no room. */
  readonly #waiting: Uint32Array[] = [];
  /** Records that got into the queue. */
  recorded = 0;

  constructor(runtime: NodeRuntime, memory: SmmuMemory, registers: RegisterFile, name: string, maxLog2: number) {
    this.#runtime = runtime;
    this.#memory = memory;
    this.#registers = registers;
    this.#name = name;
    this.#maxLog2 = maxLog2;
  }

  /**
   * Reports a fault: into the history always, into the queue unless its stage silences it or the queue is not writable. That
   * of a stalled transaction (`stag`) is never lost: it waits for room.
   */
  report(fault: Fault, origin: EventOrigin, stag?: number): void {
    if (stag !== undefined) {
      const record = eventRecord(fault, origin);
      EVT.set(record, 'Stall', 1);
      EVT.set(record, 'STAG', stag);
      sharedWrite(this, 'waiting', this.#waiting.length, this.#waiting.length + 1);
      this.#waiting.push(record);
      this.flush();
      this.#tell(fault, origin, true);
      return;
    }

    const silenced = fault.silenced && TRANSLATION_FAULTS.has(fault.event);
    this.#tell(fault, origin, !silenced && this.#write(eventRecord(fault, origin)));
  }

  /** Writes what waited for room: the queue was read, enabled or repaired. */
  flush(): void {
    sharedRead(this, 'waiting', this.#waiting.length);
    for (let record = this.#waiting[0]; record !== undefined; record = this.#waiting[0]) {
      if (!this.#hasRoom() || !this.#write(record)) return;
      sharedWrite(this, 'waiting', this.#waiting.length, this.#waiting.length - 1);
      this.#waiting.shift();
    }
  }

  #tell(fault: Fault, origin: EventOrigin, written: boolean): void {
    this.#runtime.emit('smmu.fault', {
      smmu: this.#name,
      event: fault.event,
      streamId: origin.streamId,
      iova: origin.iova,
      write: origin.access.write,
      stage: fault.stage2 ? 2 : 1,
      class: Object.keys(EVENT_CLASS)[fault.faultClass] ?? '',
      ipa: BigInt(fault.ipa),
      recorded: written,
    });
  }

  #hasRoom(): boolean {
    const registers = this.#registers;
    const wrap = 2 ** Math.min(registers.field(EVENTQ_BASE, 'LOG2SIZE'), this.#maxLog2);
    const used = registers.field(EVENTQ_PROD, 'WR') ^ registers.field(EVENTQ_CONS, 'RD');
    return (used & (2 * wrap - 1)) !== wrap;
  }

  #write(record: Uint32Array): boolean {
    const registers = this.#registers;
    if (registers.field(CR0, 'EVENTQEN') === 0 || registers.isErrorActive('EVENTQ_ABT_ERR')) return false;
    const log2Size = Math.min(registers.field(EVENTQ_BASE, 'LOG2SIZE'), this.#maxLog2);
    const wrap = 2 ** log2Size;
    const mask = 2 * wrap - 1;
    const write = registers.field(EVENTQ_PROD, 'WR') & mask;
    const read = registers.field(EVENTQ_CONS, 'RD') & mask;
    if (write === (read ^ wrap)) {
      if (registers.field(EVENTQ_PROD, 'OVFLG') === registers.field(EVENTQ_CONS, 'OVACKFLG')) {
        registers.setField(EVENTQ_PROD, 'OVFLG', 1 - registers.field(EVENTQ_PROD, 'OVFLG'));
        this.#runtime.emit('smmu.eventq-overflow', { smmu: this.#name });
      }
      return false;
    }
    const base = registers.queueAddress(EVENTQ_BASE, log2Size, EVT.sizeBytes);
    const address = base + (write % wrap) * EVT.sizeBytes;
    for (let word = 0; word < record.length; word += 2) {
      if (!this.#memory.store64(address + word * 4, record[word] ?? 0, record[word + 1] ?? 0)) {
        registers.raiseError('EVENTQ_ABT_ERR');
        return false;
      }
    }
    this.recorded++;
    registers.setField(EVENTQ_PROD, 'WR', (write + 1) & mask);
    if (write === read) registers.interrupt('eventq');
    return true;
  }
}
