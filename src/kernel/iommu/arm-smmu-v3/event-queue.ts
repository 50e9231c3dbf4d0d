/**
 * The event queue's consumer: what `arm_smmu_evtq_thread` does. Every record in the queue is delivered once (domain.md INV-14).
 *
 * Every record becomes an event `smmu.event` of the history and, within the rate limit, the lines Linux would log (domain.md
 * IF-5). The raw record is four doublewords; fields are those of Arm IHI 0070 7.3.
 */
import { EVENT, EVENT_CLASS, EVT, type EventName } from '../../../hardware/smmu/records.js';
import { EVENTQ_BASE, EVENTQ_CONS, EVENTQ_PROD } from '../../../uapi/smmuv3-registers.js';
import type { NodeRuntime } from '../../../runtime/node-runtime.js';
import { WaitQueue, type Task } from '../../../runtime/task.js';
import { sharedRead, sharedWrite } from '../../../runtime/watch.js';
import { SMMU_EVENT_NS } from '../../costs.js';
import type { DmaMemory } from '../dma-memory.js';
import { QueueIndex } from './queue.js';
import type { SmmuRegisters } from './registers.js';

/** Bytes of an event record. */
export const EVENT_BYTES = 32;
/** DEFINE_RATELIMIT_STATE defaults: so many messages in so much time. */
const LOG_BURST = 10;
const LOG_INTERVAL_NS = 5_000_000_000;

const translationFaults: readonly number[] = [
  EVENT.F_TRANSLATION,
  EVENT.F_ADDR_SIZE,
  EVENT.F_ACCESS,
  EVENT.F_PERMISSION,
];
const fetchFaults: readonly number[] = [EVENT.F_STE_FETCH, EVENT.F_CD_FETCH];
const classText = ['CD fetch', 'Stage 1 translation table fetch', 'Input address caused fault', 'Reserved'];

function eventName(type: number): EventName | 'UNKNOWN' {
  const found = (Object.keys(EVENT) as EventName[]).find((name) => EVENT[name] === type);
  return found ?? 'UNKNOWN';
}

function hexOf(value: number | bigint): string {
  return value.toString(16);
}

/** The lines Linux logs for a record. `client` is the device's name. */
export function eventLog(record: Uint32Array, client: string): string[] {
  const get = (field: keyof typeof EVT.fields): number => EVT.get(record, field);
  const type = get('Type');
  const raw = Array.from({ length: 4 }, (_, i) => {
    const value = (BigInt(record[i * 2 + 1] ?? 0) << 32n) | BigInt(record[i * 2] ?? 0);
    return `\t0x${value.toString(16).padStart(16, '0')}`;
  });
  const head = `event: ${eventName(type)} client: ${client} sid: 0x${hexOf(get('StreamID'))} ssid: 0x${hexOf(get('SubstreamID'))}`;
  const lines = [`event 0x${hexOf(type).padStart(2, '0')} received:`, ...raw];
  if (translationFaults.includes(type)) {
    const iova = (BigInt(get('InputAddrHigh')) << 32n) | BigInt(get('InputAddrLow'));
    const classNumber = get('CLASS');
    const walk = classNumber === EVENT_CLASS.TT ? (get('RnW') === 1 ? ' ttd_read' : ' ttd_write') : '';
    const words = [
      get('PnU') === 1 ? 'priv' : 'unpriv',
      get('InD') === 1 ? 'inst' : 'data',
      get('RnW') === 1 ? 'read' : 'write',
      get('S2') === 1 ? 's2' : 's1',
      `"${classText[classNumber] ?? ''}"${walk}${get('Stall') === 1 ? ' stall' : ''}`,
    ];
    lines.push(`${head} iova: 0x${hexOf(iova)} ipa: 0x${hexOf(get('IPA') * 4096)}`);
    lines.push(`${words.join(' ')} stag: 0x${hexOf(get('STAG'))}`);
  } else if (fetchFaults.includes(type)) {
    lines.push(`${head} fetch_addr: 0x${hexOf(get('FetchAddr') * 8)}`);
  } else {
    lines.push(head);
  }
  return lines;
}

/** Whom an event was of. */
export interface Delivery {
  /** The device's name. */
  readonly client: string;
  /** It was a guest's to know, and is not logged. */
  readonly isGuests: boolean;
}

/** One SMMU's event queue, from the consumer's side. `deliver` finds out whose a record is and tells those who are not the host. */
export class EventQueue {
  readonly #runtime: NodeRuntime;
  readonly #name: string;
  readonly #registers: SmmuRegisters;
  readonly #memory: DmaMemory;
  readonly #index: QueueIndex;
  readonly #deliver: (record: Uint32Array) => Task<Delivery>;
  readonly #wake: WaitQueue;
  #pending = false;
  #cons = 0;
  /** Records that were taken from the queue and delivered. */
  delivered = 0;
  #logStart = -Infinity;
  #logged = 0;

  constructor(
    runtime: NodeRuntime,
    name: string,
    registers: SmmuRegisters,
    memory: DmaMemory,
    log2: number,
    deliver: (record: Uint32Array) => Task<Delivery>,
  ) {
    this.#runtime = runtime;
    this.#name = name;
    this.#registers = registers;
    this.#memory = memory;
    this.#index = new QueueIndex(log2);
    this.#deliver = deliver;
    this.#wake = new WaitQueue(`event queue of ${name}`);
  }

  /** Programs base and indices; the queue must be disabled. */
  install(): void {
    const log2 = Math.log2(this.#index.entries);
    this.#registers.set64(EVENTQ_BASE, { LOG2SIZE: log2, ADDR: this.#memory.address / 32, WA: 1 });
    this.#registers.write(EVENTQ_PROD, 0);
    this.#registers.write(EVENTQ_CONS, 0);
  }

  /** The queue's interrupt. */
  interrupt(): void {
    sharedWrite(this, 'pending', this.#pending, true);
    this.#pending = true;
    this.#wake.wakeAll();
  }

  /** The interrupt thread; never ends. */
  *thread(): Task<void> {
    for (;;) {
      while (!this.#isPending()) yield this.#wake;
      // Cleared after the queue was read, an interrupt that comes in between would be forgotten.
      const isLate = this.#runtime.faults.fires('smmu.evtq-wakeup-lost');
      sharedWrite(this, 'pending', true, isLate);
      this.#pending = isLate;
      yield 'smmu:evtq-thread';
      yield* this.#drain();
      if (!isLate) continue;
      yield 'smmu:evtq-drained';
      this.#pending = false;
    }
  }

  #isPending(): boolean {
    sharedRead(this, 'pending', this.#pending);
    return this.#pending;
  }

  *#drain(): Task<void> {
    for (;;) {
      const prod = this.#registers.read(EVENTQ_PROD);
      const overflow = EVENTQ_PROD.get([prod], 'OVFLG');
      while (this.#index.used(EVENTQ_PROD.get([prod], 'WR'), this.#cons) > 0) {
        const record = this.#memory.read(this.#index.slot(this.#cons) * EVENT_BYTES, EVENT_BYTES / 4);
        this.#cons = this.#index.next(this.#cons);
        yield 'smmu:evtq-read';
        this.#tell(record, yield* this.#deliver(record));
        this.delivered++;
        yield SMMU_EVENT_NS;
      }
      if (overflow !== this.#registers.field(EVENTQ_CONS, 'OVACKFLG')) {
        this.#runtime.emit('smmu.evtq-overflow', { smmu: this.#name });
        this.#log(['EVTQ overflow detected -- events lost']);
      }
      this.#registers.set(EVENTQ_CONS, { RD: this.#cons, OVACKFLG: overflow });
      if (this.#index.used(this.#registers.field(EVENTQ_PROD, 'WR'), this.#cons) === 0) return;
    }
  }

  #tell(record: Uint32Array, { client, isGuests }: Delivery): void {
    const streamId = EVT.get(record, 'StreamID');
    const low = EVT.get(record, 'InputAddrLow');
    this.#runtime.emit('smmu.event', {
      smmu: this.#name,
      event: eventName(EVT.get(record, 'Type')),
      client,
      sid: streamId,
      iova: (BigInt(EVT.get(record, 'InputAddrHigh')) << 32n) | BigInt(low),
      ipa: BigInt(EVT.get(record, 'IPA') * 4096),
      access: EVT.get(record, 'RnW') === 1 ? 'read' : 'write',
      stage: EVT.get(record, 'S2') === 1 ? 2 : 1,
      ...(isGuests && { to: 'guest' }),
    });
    if (!isGuests) this.#log(eventLog(record, client));
  }

  /** Logs unless too much was logged lately. */
  #log(lines: readonly string[]): void {
    if (this.#runtime.now - this.#logStart >= LOG_INTERVAL_NS) {
      this.#logStart = this.#runtime.now;
      this.#logged = 0;
    }
    if (this.#logged++ >= LOG_BURST) return;
    for (const line of lines) this.#runtime.emit('kernel.log', { text: `arm-smmu-v3 ${this.#name}: ${line}` });
  }
}
