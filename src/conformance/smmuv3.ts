/**
 * Replays recorded cases of an SMMUv3 model against `Smmu`, by the rules of the recording: a case is a machine state and
 * steps. A step that states an independent reading of the architecture (`arch`) is held against that, any other against
 * the record, what the record's uncached twin did (`fresh`) or what a newer version of the model does (`newer`).
 *
 * The machines part at a step that follows `arch`, `fresh` or `newer`, that stands for several recorded events, or whose
 * transfer an excuse lets differ: from there on, bytes and event indices may differ. All six index registers are compared after every step; one that the
 * step does not name must not have changed. Which LPIs an MSI makes pending (`lpisPended`) is not judged here.
 */
import { featuresOf, type Identification } from '../hardware/smmu/identification.js';
import { SparseMemory } from './sparse-memory.js';
import { EVENT, EVENT_CLASS, EVT } from '../hardware/smmu/records.js';
import { CMDQ_BASE, EVENTQ_BASE, EVENTQ_PROD, GERROR, GERRORN } from '../uapi/smmuv3-registers.js';
import { Smmu, type TranslateResult } from '../hardware/smmu/smmu.js';
import { NodeRuntime } from '../runtime/node-runtime.js';
import type { Task } from '../runtime/task.js';
import type { SmmuDescription } from '../hardware/description.js';
import { excuseFor, type Difference } from './smmuv3-excuses.js';

interface RecordedEvent {
  readonly raw: string;
}
interface Segment {
  readonly iova: string;
  readonly pa: string;
  readonly len: number;
}
interface TransferResult {
  readonly status: 'ok' | 'abort' | 'partial' | 'no-memory' | 'its';
  readonly segs?: readonly Segment[];
  readonly data?: string;
}
interface ArchReading {
  readonly status: 'ok' | 'abort';
  readonly pa?: string;
  readonly event?: { name: string; s2?: number; cls?: string; ipa?: string } | null;
}
interface Alternative {
  /** Absent where only events or registers differ. */
  readonly result?: TransferResult;
  readonly events?: readonly RecordedEvent[];
}
interface TransferStep {
  readonly op: 'dma' | 'msi';
  readonly streamId: number;
  readonly iova: string;
  readonly len?: number;
  readonly dir?: 'read' | 'write';
  readonly data?: string | number;
  readonly result: TransferResult;
  readonly fresh?: Alternative;
  readonly newer?: Alternative;
  readonly freshData?: string;
  readonly arch?: ArchReading;
}
interface CommandStep {
  readonly op: 'cmd';
  readonly raw: readonly string[];
  readonly prod: number;
}
interface RegisterStep {
  readonly op: 'reg' | 'readReg';
  readonly off: string;
  readonly size: 4 | 8;
  readonly val?: string;
  readonly result?: string;
  readonly newer?: { readonly result?: string };
}
interface MemoryStep {
  readonly op: 'mem' | 'readMem';
  readonly addr: string;
  readonly hex?: string;
  readonly len?: number;
  readonly result?: string;
}
type Step = (TransferStep | CommandStep | RegisterStep | MemoryStep) & {
  readonly events?: readonly RecordedEvent[];
  readonly regs?: Readonly<Record<string, number>>;
};

/** One recorded case. */
export interface RecordedCase {
  readonly id: string;
  readonly model: 'nested' | 's1' | 's2';
  readonly tags: readonly string[];
  readonly init: {
    readonly mem: readonly { addr: string; hex: string }[];
    readonly regs: readonly { off: string; size: 4 | 8; val: string }[];
    readonly after: Readonly<Record<string, number>>;
  };
  readonly steps: readonly Step[];
}

const OPERATIONS = ['dma', 'msi', 'cmd', 'reg', 'readReg', 'mem', 'readMem'];

/** Whether parsed JSON looks like a case whose every operation can be replayed. */
export function isRecordedCase(value: unknown): value is RecordedCase {
  if (typeof value !== 'object' || value === null) return false;
  const { id, model, tags, init, steps } = value as Partial<Record<keyof RecordedCase, unknown>>;
  return (
    typeof id === 'string' &&
    typeof model === 'string' &&
    Object.hasOwn(IDENTIFICATIONS, model) &&
    Array.isArray(tags) &&
    typeof init === 'object' &&
    init !== null &&
    Array.isArray(steps) &&
    steps.every((step: { op?: unknown } | null) => typeof step?.op === 'string' && OPERATIONS.includes(step.op))
  );
}

const IDENTIFICATIONS: Readonly<Record<RecordedCase['model'], Identification>> = {
  nested: identification(0x0d44101b, 0x1414),
  s1: identification(0x0d44101a, 0x1404),
  s2: identification(0x0d441019, 0x1414),
};

function identification(IDR0: number, IDR3: number): Identification {
  return { IDR0, IDR1: 0x02730010, IDR2: 0, IDR3, IDR4: 0, IDR5: 0x74, IIDR: 0, AIDR: 1 };
}

const INDEX_REGISTERS: Readonly<Record<string, number>> = {
  gerror: 0x60,
  gerrorn: 0x64,
  cmdqProd: 0x98,
  cmdqCons: 0x9c,
  evtqProd: 0x100a8,
  evtqCons: 0x100ac,
};

const ITS_START = 0x08080000;
const ITS_END = 0x080a0000;

function fromHex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, 'hex'));
}

function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

/** What the README says to compare of an event record; the low bits of an IPA are masked by our own layout. */
function eventText(raw: Uint8Array): string {
  const words = new Uint32Array(raw.slice().buffer);
  const type = EVT.get(words, 'Type');
  const name = Object.entries(EVENT).find(([, value]) => value === type)?.[0] ?? `0x${type.toString(16)}`;
  let text = `${name} sid=${EVT.get(words, 'StreamID')} ssv=${EVT.get(words, 'SSV')}`;
  const translation = ['F_TRANSLATION', 'F_ADDR_SIZE', 'F_ACCESS', 'F_PERMISSION'].includes(name);
  if (translation || name === 'F_WALK_EABT') {
    text += ` s2=${EVT.get(words, 'S2')} class=${EVT.get(words, 'CLASS')} rnw=${EVT.get(words, 'RnW')}`;
    text += ` in=${EVT.get(words, 'InputAddrHigh').toString(16)}:${EVT.get(words, 'InputAddrLow').toString(16)}`;
  }
  if (translation) text += ` ipa=${EVT.get(words, 'IPA').toString(16)}`;
  if (name === 'F_CD_FETCH') text += ` fetch=${EVT.get(words, 'CdFetchAddr').toString(16)}`;
  if (['F_WALK_EABT', 'F_STE_FETCH'].includes(name)) text += ` fetch=${EVT.get(words, 'FetchAddr').toString(16)}`;
  return text;
}

interface Outcome {
  status: TransferResult['status'];
  segs: { iova: bigint; pa: number; len: number }[];
  data: string;
}

/** How a case came out. */
export interface Judgement {
  readonly verdict: 'passed' | 'failed' | 'skipped';
  /** The tag that excuses a skipped case. */
  readonly tag?: string;
  readonly differences: readonly Difference[];
}

/** Judges one case: agreement passes whatever its tags; every disagreement needs an excuse that is about it. */
export function judgeCase(recorded: RecordedCase): Judgement {
  const differences = replayCase(recorded);
  const unexcused = differences.filter((difference) => excuseFor(recorded.tags, difference) === undefined);
  if (unexcused.length > 0) return { verdict: 'failed', differences: unexcused };
  const [first] = differences;
  if (first === undefined) return { verdict: 'passed', differences };
  return { verdict: 'skipped', tag: excuseFor(recorded.tags, first)?.tag ?? '', differences };
}

/** Replays one case; the differences found in order, none when it agrees. */
export function replayCase(recorded: RecordedCase): Difference[] {
  return new Replay(recorded).run();
}

class Replay {
  readonly #case: RecordedCase;
  readonly #memory = new SparseMemory();
  readonly #runtime = new NodeRuntime('replay', 1);
  readonly #smmu: Smmu;
  readonly #differences: Difference[] = [];
  readonly #ambiguousPages = new Set<number>();
  #eventIndex = 0;
  /** What the six index registers have to hold. */
  #indices: Readonly<Record<string, number>> = {};
  /** The machines have parted (see above). */
  #diverged = false;

  constructor(recorded: RecordedCase) {
    this.#case = recorded;
    const identification = IDENTIFICATIONS[recorded.model];
    const features = featuresOf(identification);
    const description: SmmuDescription = {
      name: 'smmu',
      base: 0n,
      stage1: features.stage1,
      stage2: features.stage2,
      inputBits: 48,
      outputBits: features.outputBits,
      httu: 'none',
      granules: ['4k', '16k', '64k'],
      streamIdBits: 16,
      rangeInvalidation: true,
    };
    this.#smmu = new Smmu({
      runtime: this.#runtime,
      memory: this.#memory,
      description,
      identification,
      irq: () => undefined,
    });
  }

  run(): Difference[] {
    const { init, steps } = this.#case;
    for (const { addr, hex } of init.mem) {
      this.#memory.write(Number(addr), fromHex(hex));
      // The list is sorted, so of two entries for one address it does not say which was written last.
      if (init.mem.filter((other) => other.addr === addr).length > 1)
        this.#ambiguousPages.add(Math.floor(Number(addr) / 4096));
    }
    for (const { off, size, val } of init.regs) this.#smmu.writeRegister(Number(off), size, BigInt(val));
    this.#settle();
    this.#eventIndex = this.#smmu.readRegister(EVENTQ_PROD.offset, 4);
    this.#compareRegisters('init', init.after);
    for (const [index, step] of steps.entries()) this.#step(`step ${index}`, step);
    return this.#differences;
  }

  #step(where: string, step: Step): void {
    switch (step.op) {
      case 'dma':
      case 'msi':
        this.#transfer(where, step);
        return;
      case 'cmd':
        this.#storeCommands(step);
        this.#smmu.writeRegister(0x98, 4, step.prod);
        break;
      case 'reg':
        this.#smmu.writeRegister(Number(step.off), step.size, BigInt(step.val ?? 0) ^ this.#notRaised(step));
        // An index that software moves has no events behind it.
        if (Number(step.off) === EVENTQ_PROD.offset) this.#eventIndex = this.#smmu.readRegister(EVENTQ_PROD.offset, 4);
        break;
      case 'readReg': {
        const value = BigInt(this.#smmu.readRegister(Number(step.off), step.size));
        const accepted = [step.result, step.newer?.result].some((text) => text !== undefined && BigInt(text) === value);
        if (!accepted && !(this.#diverged && Number(step.off) >= PAGE_1)) {
          this.#report(where, step.off, step.result ?? '', `0x${value.toString(16)}`);
        }
        break;
      }
      case 'mem':
        this.#memory.write(Number(step.addr), fromHex(step.hex ?? ''));
        break;
      case 'readMem': {
        const found = toHex(this.#memory.read(Number(step.addr), step.len ?? 0));
        if (!this.#diverged && found !== step.result) this.#report(where, 'memory', step.result ?? '', found);
        break;
      }
    }
    this.#settle();
    const events = this.#newEvents();
    this.#compareEvents(where, step.events ?? [], events);
    this.#compareRegisters(where, step.regs ?? {});
  }

  /**
   * The bits of a GERRORN write that acknowledge an error which only the recorded machine raised: acknowledged here, where
   * it is not active, it would become active.
   */
  #notRaised({ off, val }: RegisterStep): bigint {
    if (Number(off) !== GERRORN.offset) return 0n;
    const gerror = this.#smmu.readRegister(GERROR.offset, 4);
    return (
      (BigInt(this.#indices['gerror'] ?? 0) ^ BigInt(gerror)) &
      (BigInt(val ?? 0) ^ BigInt(this.#indices['gerrorn'] ?? 0))
    );
  }

  #transfer(where: string, step: TransferStep & Step): void {
    const length = step.op === 'msi' ? 4 : (step.len ?? 0);
    const outcome = this.#dma(step, length);
    this.#settle();
    const events = this.#newEvents();
    if (step.arch !== undefined) {
      this.#compareArch(where, step.arch, outcome, events);
      this.#diverged = true;
      this.#compareRegisters(where, step.regs ?? {});
      return;
    }
    const record = this.#differenceOf(step, step.result, step.events ?? [], outcome, events);
    if (record === undefined) {
      // Fewer events than recorded: the indices part here.
      if (events.length !== (step.events ?? []).length) this.#diverged = true;
      this.#compareRegisters(where, step.regs ?? {});
      return;
    }
    const agrees = ({ result, events: expected }: Alternative): boolean =>
      this.#differenceOf(step, result ?? step.result, expected ?? [], outcome, events) === undefined;
    if ([step.fresh, step.newer].some((other) => other !== undefined && agrees(other))) this.#diverged = true;
    else this.#report(where, 'transfer', record[0], record[1]);
    this.#compareRegisters(where, step.regs ?? {});
  }

  #dma(step: TransferStep, length: number): Outcome {
    const outcome: Outcome = { status: 'ok', segs: [], data: '' };
    const write = step.op === 'msi' || step.dir === 'write';
    const bytes =
      step.op === 'msi'
        ? new Uint8Array(new Uint32Array([Number(step.data ?? 0)]).buffer)
        : fromHex(typeof step.data === 'string' ? step.data : '');
    let done = 0;
    while (done < length) {
      const iova = BigInt(step.iova) + BigInt(done);
      const take = Math.min(length - done, 4096 - Number(iova & 0xfffn));
      const result = this.#translate(step.streamId, iova, write);
      if (!result.ok) {
        outcome.status = done > 0 ? 'partial' : 'abort';
        break;
      }
      const { pa } = result;
      const last = outcome.segs.at(-1);
      if (last !== undefined && last.pa + last.len === pa) last.len += take;
      else outcome.segs.push({ iova, pa, len: take });
      if (pa >= ITS_START && pa < ITS_END) outcome.status = 'its';
      else if (!this.#memory.answers(pa, take)) outcome.status = 'no-memory';
      else if (write) this.#memory.write(pa, bytes.subarray(done, done + take));
      else outcome.data += toHex(this.#memory.read(pa, take));
      done += take;
    }
    return outcome;
  }

  #translate(streamId: number, iova: bigint, write: boolean): TranslateResult {
    let result: TranslateResult | undefined;
    const smmu = this.#smmu;
    function* body(): Task<void> {
      result = yield* smmu.translate({ streamId, iova, write });
    }
    this.#runtime.spawn('dma', body());
    this.#settle();
    if (result === undefined) throw new Error('translation did not finish');
    return result;
  }

  #differenceOf(
    step: TransferStep,
    expected: TransferResult,
    expectedEvents: readonly RecordedEvent[],
    outcome: Outcome,
    events: readonly Uint8Array[],
  ): [string, string] | undefined {
    const segments = (list: readonly { iova: string | bigint; pa: string | number; len: number }[]): string =>
      list.map((s) => `${BigInt(s.iova).toString(16)}>${BigInt(s.pa).toString(16)}+${s.len}`).join(' ');
    const wantedEvents = [...new Set(expectedEvents.map((e) => this.#text(fromHex(e.raw))))];
    const several = this.#case.tags.includes('beats');
    const wanted = `${expected.status} [${segments(expected.segs ?? [])}] ${(several ? wantedEvents.slice(0, 1) : wantedEvents).join('; ')}`;
    const found = `${outcome.status} [${segments(outcome.segs)}] ${events.map((e) => this.#text(e)).join('; ')}`;
    if (wanted !== found) return [wanted, found];
    const ambiguous = outcome.segs.some((s) => this.#ambiguousPages.has(Math.floor(s.pa / 4096)));
    if (this.#diverged || ambiguous || expected.data === undefined) return undefined;
    const datas = [expected.data, step.freshData];
    return datas.includes(outcome.data) ? undefined : [`data ${expected.data}`, outcome.data];
  }

  #compareArch(where: string, arch: ArchReading, outcome: Outcome, events: readonly Uint8Array[]): void {
    if (arch.status === 'ok') {
      const found = outcome.segs[0] === undefined ? 'abort' : `0x${outcome.segs[0].pa.toString(16)}`;
      if (BigInt(arch.pa ?? 0) !== BigInt(outcome.segs[0]?.pa ?? -1)) {
        this.#report(where, 'arch', arch.pa ?? '', `${found} ${events.map((e) => this.#text(e)).join('; ')}`);
      }
      return;
    }
    const event = arch.event;
    const wanted =
      event === null || event === undefined
        ? 'abort'
        : `abort ${event.name} ${event.s2 ?? ''} ${event.cls ?? ''} ${event.ipa === undefined ? '' : (BigInt(event.ipa) >> 12n).toString(16)}`;
    const found = outcome.status + events.map((raw) => archText(raw, event)).join('');
    if (wanted.trim() !== found.trim()) this.#report(where, 'arch', wanted, found);
  }

  #storeCommands(step: CommandStep): void {
    const base = this.#queueBase(CMDQ_BASE.offset, 4);
    const log2 = this.#smmu.readRegister(CMDQ_BASE.offset, 4) & 31;
    let index = this.#smmu.readRegister(0x98, 4);
    for (const raw of step.raw) {
      this.#memory.write(base + (index % 2 ** log2) * 16, fromHex(raw));
      index++;
    }
  }

  #queueBase(offset: number, entryShift: number): number {
    const value = this.#smmu.readRegister(offset, 8);
    const log2 = (value & 31n) + BigInt(entryShift);
    return Number(((value & 0x000fffffffffffe0n) >> log2) << log2);
  }

  #newEvents(): Uint8Array[] {
    const events: Uint8Array[] = [];
    const base = this.#queueBase(EVENTQ_BASE.offset, 5);
    const log2 = this.#smmu.readRegister(EVENTQ_BASE.offset, 4) & 31;
    const mask = 2 ** (log2 + 1) - 1;
    const prod = this.#smmu.readRegister(EVENTQ_PROD.offset, 4) & mask;
    while ((this.#eventIndex & mask) !== prod && events.length < 64) {
      events.push(this.#memory.read(base + (this.#eventIndex % 2 ** log2) * 32, 32));
      this.#eventIndex = (this.#eventIndex + 1) & mask;
    }
    return events;
  }

  #compareEvents(where: string, expected: readonly RecordedEvent[], events: readonly Uint8Array[]): void {
    const wanted = expected.map((e) => this.#text(fromHex(e.raw))).join('; ');
    const found = events.map((e) => this.#text(e)).join('; ');
    if (wanted !== found) this.#report(where, 'events', wanted, found);
  }

  /** `changed` are those that the step changed; the others must be what they were. */
  #compareRegisters(where: string, changed: Readonly<Record<string, number>>): void {
    this.#indices = { ...this.#indices, ...changed };
    for (const [name, value] of Object.entries(this.#indices)) {
      if (this.#diverged && name.startsWith('evtq')) continue;
      const found = this.#smmu.readRegister(INDEX_REGISTERS[name] ?? 0, 4);
      if (found !== value) this.#report(where, name, value.toString(16), found.toString(16));
    }
  }

  /**
   * An event as compared here. In cases about it, the RnW of a fault on a table or a CD does not count. Where a stage 1
   * table spans several stage 2 pages, the recorded model translates the table's base and we the descriptor that is fetched;
   * when fetching the stage 2 descriptor for it fails, which one of the group that covers the table it is does not count.
   */
  #text(raw: Uint8Array): string {
    const { tags } = this.#case;
    const text = eventText(raw);
    if (text.includes(` class=${EVENT_CLASS.IN} `)) return text;
    const masked = tags.includes('dev.rnw-of-tt-cd') ? text.replace(/ rnw=\d/, '') : text;
    const groupBits = granuleShiftOf(tags, 's1') - granuleShiftOf(tags, 's2');
    const isStage2OfTable = text.startsWith('F_WALK_EABT') && text.includes(` s2=1 class=${EVENT_CLASS.TT} `);
    if (!isStage2OfTable || !(groupBits > 0)) return masked;
    return masked.replace(/fetch=([0-9a-f]+)/, (_match, address: string) => {
      return `group=${(BigInt(`0x${address}`) >> BigInt(groupBits)).toString(16)}`;
    });
  }

  #settle(): void {
    this.#runtime.scheduler.runUntil(this.#runtime.now + 1_000_000);
  }

  #report(where: string, subject: string, expected: string, found: string): void {
    const difference = { where, subject, expected, found };
    this.#differences.push(difference);
    if (['transfer', 'arch'].includes(subject) && excuseFor(this.#case.tags, difference) !== undefined)
      this.#diverged = true;
  }
}

const PAGE_1 = 0x10000;

/** The granule of a stage as the tags name it (`s1.64k`); NaN where they do not. */
function granuleShiftOf(tags: readonly string[], stage: 's1' | 's2'): number {
  const shifts = [12, 14, 16];
  const index = ['4k', '16k', '64k'].findIndex((name) => tags.includes(`${stage}.${name}`));
  return shifts[index] ?? NaN;
}

/** An event in the terms in which `arch` states one. */
function archText(raw: Uint8Array, like: ArchReading['event']): string {
  const words = new Uint32Array(raw.slice().buffer);
  const type = EVT.get(words, 'Type');
  const name = Object.entries(EVENT).find(([, value]) => value === type)?.[0] ?? String(type);
  const cls = Object.entries(EVENT_CLASS).find(([, value]) => value === EVT.get(words, 'CLASS'))?.[0] ?? '';
  const s2 = like?.s2 === undefined ? '' : String(EVT.get(words, 'S2'));
  const ipa = like?.ipa === undefined ? '' : EVT.get(words, 'IPA').toString(16);
  return ` ${name} ${s2} ${like?.cls === undefined ? '' : cls} ${ipa}`;
}
