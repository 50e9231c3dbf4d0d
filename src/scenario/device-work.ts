/**
 * Device work of a scenario: a DMA, an interrupt, caused as a driver would and judged by where the bus analyser saw it end.
 *
 * The verdict does not trust the device alone. A DMA is `ok` when every piece ended in memory and, for a write, the memory
 * that the holder knows behind the address has the bytes; `refused` when it was aborted on its way with an error that is logged
 * (an SMMU event, an ACS violation); `silent` when it ended in something else, nowhere, or in memory that is not the holder's.
 * An interrupt that does not arrive is `silent`. What was not ok comes with a sentence that names the hop where the transaction
 * left its way.
 */
import { repeatedWord, sameBytes } from '../layout/bytes.js';
import { splitWords } from '../layout/bits.js';
import type { TransactionEnd } from '../host/protocol.js';
import type { Task } from '../runtime/task.js';
import type { HostClient, Lab } from '../testbed/lab.js';
import { KernelError } from '../uapi/errno.js';
import { DmaEngineDriver, type DmaTransfer } from '../vmm/dma-engine-driver.js';
import { NicDriver, type NicOutcome } from '../vmm/nic-driver.js';
import type { DevicePlace } from '../vmm/guest-device.js';
import type { DriverDevice } from '../vmm/vfio-device.js';
import { endsText, wayText, type StepResult } from './results.js';
import type { PlainStep } from './schema.js';
import { hexText, sizeText } from './units.js';

/** Who works with a device: a guest or a process. */
export interface DeviceHolder {
  readonly name: string;
  readonly lab: Lab;
  /** Functions that have stood behind the device, the present one last. */
  readonly places: () => readonly DevicePlace[];
  readonly device: DriverDevice;
  /** Memory behind an address as the device sees it; undefined where the holder has none. */
  readonly load: (address: bigint, lengthBytes: number) => Task<Uint8Array | undefined>;
  /** @throws KernelError where the holder has no memory */
  readonly store: (address: bigint, bytes: Uint8Array) => Task<void>;
}

type DmaStep = Extract<PlainStep, { readonly dma: unknown }>['dma'];
type NicStep = Extract<PlainStep, { readonly nic: unknown }>['nic'];
type WorkStep = Extract<PlainStep, { readonly work: unknown }>['work'];
type InterruptStep = Extract<PlainStep, { readonly interrupt: unknown }>['interrupt'];

/** The driver of each device: started at its first work, gone with the device. */
const drivers = new WeakMap<DriverDevice, DmaEngineDriver>();

function* driverOf(device: DriverDevice): Task<DmaEngineDriver> {
  const known = drivers.get(device);
  if (known !== undefined) return known;
  const driver = yield* DmaEngineDriver.start(device);
  drivers.set(device, driver);
  return driver;
}

function transferOf(step: DmaStep): DmaTransfer {
  if (step.write !== undefined) {
    const { to, length, pattern } = step.write;
    return { op: 'FILL', to, lengthBytes: Number(length), pattern: patternWord(pattern) };
  }
  const { from = 0n, to = 0n, length = 0n } = step.copy ?? {};
  return { op: 'COPY', from, to, lengthBytes: Number(length) };
}

/** A one-byte pattern fills the word, a longer one is the word. */
function patternWord(pattern: bigint): number {
  const [word] = splitWords(Number(pattern & 0xffff_ffffn));
  return word <= 0xff ? Math.imul(word, 0x0101_0101) >>> 0 : word;
}

/** Longest part of a write that is compared with memory. */
const COMPARED_BYTES = 65536;

/** Whether the holder's memory has what the device wrote; true where nothing can be compared. */
function* hasArrived(holder: DeviceHolder, step: DmaStep): Task<boolean> {
  if (step.write === undefined) return true;
  const length = Math.min(Number(step.write.length), COMPARED_BYTES);
  const bytes = yield* holder.load(step.write.to, length);
  if (bytes === undefined) return false;
  return sameBytes(bytes, repeatedWord(patternWord(step.write.pattern), length));
}

/** Of a write that ended in a peer's BAR: how much of it is there now. Nothing to say of other ends. */
function* foundAtPeers(host: HostClient | undefined, step: DmaStep, ends: readonly TransactionEnd[]): Task<string> {
  if (step.write === undefined || host === undefined) return '';
  const word = patternWord(step.write.pattern);
  let found = 0;
  let sent = 0;
  for (const { kind, where, address, iova, lengthBytes } of ends) {
    if (kind !== 'peer' || address === undefined) continue;
    const bdf = where.split(' ')[0] ?? '';
    const { bytes } = yield* host.command({ lab: 'peek-bar', bdf, address, lengthBytes });
    const first = Number(iova - step.write.to);
    sent += lengthBytes;
    found += bytes?.filter((byte, i) => byte === ((word >>> (8 * ((first + i) % 4))) & 0xff)).length ?? 0;
  }
  return sent === 0 ? '' : `, where ${found} of ${sent} bytes are found`;
}

/** A moment in the records of all hosts: the next transaction's number in each. */
type Mark = ReadonlyMap<HostClient, number>;

function* mark({ lab }: DeviceHolder): Task<Mark> {
  const numbers = new Map<HostClient, number>();
  for (const host of lab.hosts) numbers.set(host, ((yield* host.transactions(0)).at(-1)?.number ?? -1) + 1);
  return numbers;
}

/** Where everything a device did since `then` has ended: its DMA, or its interrupt messages. Its holder may have moved. */
function* endsSince(holder: DeviceHolder, then: Mark, what: 'dma' | 'msi'): Task<TransactionEnd[]> {
  const ends: TransactionEnd[] = [];
  for (const [host, from] of then) {
    const bdfs = holder.places().flatMap((place) => (place.host === host ? [place.bdf] : []));
    if (bdfs.length === 0) continue;
    for (const record of yield* host.transactions(from))
      if (bdfs.includes(record.device) && (record.direction === 'msi') === (what === 'msi')) ends.push(...record.ends);
  }
  return ends;
}

function dmaText(step: DmaStep): string {
  if (step.write !== undefined) return `write of ${sizeText(step.write.length)} to ${hexText(step.write.to)}`;
  const { from = 0n, to = 0n, length = 0n } = step.copy ?? {};
  return `copy of ${sizeText(length)} from ${hexText(from)} to ${hexText(to)}`;
}

/** A driver's work; undefined when it found its card gone. */
function* orGone<T>(work: Task<T>): Task<T | undefined> {
  try {
    return yield* work;
  } catch (error) {
    if (error instanceof KernelError && error.code === 'ENODEV') return undefined;
    throw error;
  }
}

/** Carries out a `dma` step. */
export function* performDma(holder: DeviceHolder, step: DmaStep): Task<StepResult> {
  const from = yield* mark(holder);
  const driver = yield* driverOf(holder.device);
  const outcome = yield* orGone(driver.run(transferOf(step)));
  const ends = yield* endsSince(holder, from, 'dma');
  const what = `${holder.device.bdf}: ${dmaText(step)}`;
  if (ends.some((end) => end.kind === 'aborted'))
    return {
      verdict: 'refused',
      text: `${what} ${endsText(ends)}`,
      ends,
      explanation: wayText(holder.device.bdf, ends),
    };
  if (ends.some((end) => end.kind !== 'memory') || (ends.length === 0 && outcome?.status === 'done')) {
    const where = ends.length === 0 ? 'nothing' : endsText(ends);
    const found = yield* foundAtPeers(holder.places().at(-1)?.host, step, ends);
    return {
      verdict: 'silent',
      text: `${what} ended in ${where}${found}`,
      ends,
      explanation: wayText(holder.device.bdf, ends),
    };
  }
  if (outcome === undefined) return { verdict: 'refused', text: `${what}: the card is gone`, ends };
  if (outcome.status !== 'done') return { verdict: 'refused', text: `${what}: ${outcome.error}`, ends };
  if (!(yield* hasArrived(holder, step)))
    return { verdict: 'silent', text: `${what} ended in memory that is not ${holder.name}'s`, ends };
  return { verdict: 'ok', text: `${what} ended in memory of ${holder.name}`, ends };
}

/**
 * Carries out a `nic` step. What the driver experienced decides, and the bus analyser explains: `ok` when every frame came back
 * as it was sent with its interrupts; `refused` when the NIC stopped a queue over an aborted DMA; else `silent`.
 */
export function* performNic(holder: DeviceHolder, step: NicStep): Task<StepResult> {
  const from = yield* mark(holder);
  const driver = yield* NicDriver.start(holder.device, holder, step.at);
  let outcome: NicOutcome;
  try {
    outcome = yield* driver.exchange(step.pair, step.frames, Number(step.length));
  } finally {
    yield* driver.stop();
  }
  const { sent, intact, damaged, received, isStopped, isInterrupted } = outcome;
  const { bdf } = holder.device;
  const dma = yield* endsSince(holder, from, 'dma');
  const messages = yield* endsSince(holder, from, 'msi');
  const interrupts = isInterrupted ? '' : ', not all interrupts arrived';
  const text = `${bdf}: ${intact} of ${sent} frames came back intact, ${damaged} damaged, ${sent - received} lost${interrupts}`;
  if (intact === sent && isInterrupted) return { verdict: 'ok', text, ends: dma };
  const explanation = wayText(bdf, dma) || wayText(bdf, messages, 'doorbell');
  return { verdict: isStopped ? 'refused' : 'silent', text, ends: dma, explanation };
}

/** Carries out an `interrupt` step: the engine raises a vector, its eventfd must be signalled. */
export function* performInterrupt(holder: DeviceHolder, step: InterruptStep): Task<StepResult> {
  const from = yield* mark(holder);
  const driver = yield* driverOf(holder.device);
  // A transfer that moves nothing still ends, and its end raises the vector.
  const { isInterrupted } = yield* driver.run({ op: 'FILL', to: 0n, lengthBytes: 0, pattern: 0 }, step.vector);
  const what = `${holder.device.bdf} vector ${step.vector}`;
  const ends = yield* endsSince(holder, from, 'msi');
  if (isInterrupted) return { verdict: 'ok', text: `${what} reached ${holder.name}`, ends };
  const explanation =
    ends.length === 0 ? `${holder.device.bdf} sent no message` : wayText(holder.device.bdf, ends, 'doorbell');
  return { verdict: 'silent', text: `${what} did not reach ${holder.name}`, ends, explanation };
}

/** Places a `work` step writes to in turn. */
const WORK_PLACES = 8;
/** How long the driver listens for interrupts nobody caused when it is done. */
const LISTEN_NS = 1_000_000;

/**
 * Carries out a `work` step: fills with a number each, one after another, every one with its interrupt. `ok` when each transfer was done
 * and interrupted exactly once and memory has what the last ones wrote; else `silent`, or `refused` when the engine said so.
 */
export function* performWork(holder: DeviceHolder, step: WorkStep): Task<StepResult> {
  const since = yield* mark(holder);
  const driver = yield* driverOf(holder.device);
  const { transfers, vector } = step;
  const lengthBytes = Number(step.length);
  const placeOf = (number: number): bigint => step.at + BigInt((number % WORK_PLACES) * lengthBytes);
  const patternOf = (number: number): number => Math.imul(number + 1, 0x9e37_79b1) >>> 0;
  let interrupts = 0n;
  let done = 0;
  let error = '';
  for (; done < transfers && error === ''; done++) {
    const fill = { op: 'FILL', to: placeOf(done), lengthBytes, pattern: patternOf(done) } as const;
    const outcome = yield* orGone(driver.run(fill, vector, step.every));
    if (outcome === undefined) error = 'the card is gone';
    else if (outcome.status !== 'done') error = outcome.status === 'stuck' ? 'the engine is stuck' : outcome.error;
    interrupts += outcome?.interrupts ?? 0n;
  }
  interrupts += (yield* orGone(holder.device.waitMsix(vector, LISTEN_NS))) ?? 0n;
  const { bdf } = holder.device;
  const ends = yield* endsSince(holder, since, 'dma');
  const failed = error === '' ? '' : `, then ${error}`;
  const text = `${bdf}: ${done} of ${transfers} transfers, ${interrupts} interrupts${failed}`;
  const explanation = wayText(bdf, ends) || wayText(bdf, yield* endsSince(holder, since, 'msi'), 'doorbell');
  if (error !== '') return { verdict: 'refused', text, ends, explanation };
  for (let number = Math.max(0, transfers - WORK_PLACES); number < transfers; number++) {
    const bytes = yield* holder.load(placeOf(number), lengthBytes);
    if (bytes !== undefined && sameBytes(bytes, repeatedWord(patternOf(number), lengthBytes))) continue;
    return {
      verdict: 'silent',
      text: `${text}; memory at ${hexText(placeOf(number))} is not what it wrote`,
      ends,
      explanation,
    };
  }
  if (interrupts === BigInt(transfers)) return { verdict: 'ok', text, ends };
  return { verdict: 'silent', text, ends, explanation };
}
