/**
 * Records a run while it happens: who went on where, what each step touched, locked and woke, and how the machine looked then.
 *
 * It only looks on. What it keeps is bounded: the last {@link MOST_STEPS} steps, and so many accesses of each; what was left out is
 * counted. Views that would belong to steps left out become part of how the machine looked at the start.
 */
import type { KernelMachine } from '../host/kernel-machine.js';
import type { MachineView, PartView } from '../host/view.js';
import type { Program } from '../host/program.js';
import { eventLine, type RunEvent } from '../runtime/events.js';
import { TIME, type Deviation } from '../runtime/deviations.js';
import { candidateName, defaultChoice, type Candidates } from '../runtime/policies.js';
import type { SchedulerObserver, TaskHandle } from '../runtime/scheduler.js';
import type { Wait } from '../runtime/task.js';
import { isOfChecker } from '../runtime/watch.js';
import { ObjectNames } from './trace-names.js';
import {
  applyView,
  isDeviating,
  isUnexpectedAnswer,
  LOCK_EVENTS,
  type Trace,
  type TraceAccess,
  type TraceCall,
  type TraceChoice,
  type TraceEnd,
  type TraceFailure,
  type TraceLockEvent,
  type TraceView,
} from './trace.js';

/** Steps that are kept. */
export const MOST_STEPS = 4000;
/** Accesses of one step that are kept. */
const MOST_ACCESSES = 200;

/** Where a task stands between two calls. */
const CALL_GATE = 'program:call';

type Value = string | { readonly ref: number };

interface Access {
  readonly word: number;
  kind: TraceAccess['kind'];
  before: Value | undefined;
  after: Value | undefined;
  readonly held: readonly number[];
  readonly locksBefore: number;
}

interface Step {
  readonly index: number;
  readonly task: number;
  readonly timeNs: number;
  readonly from: string;
  to: string;
  readonly choices: readonly TraceChoice[];
  /** By word and lock events before; see {@link accessKey}. */
  readonly accesses: Map<number, Access>;
  more: number;
  readonly locks: TraceLockEvent[];
  readonly wakes: number[];
  readonly starts: number[];
  readonly wokenBy: number | undefined;
  /** Number of the first event after the step. */
  eventEnd: number;
  hasWrites: boolean;
}

interface Held {
  readonly lock: number;
  readonly shared: boolean;
}

interface KnownTask {
  readonly name: string;
  readonly held: Held[];
  from: string;
  wokenBy: number | undefined;
}

/** What is known of a run beside what happened in it. */
export interface TraceSubject {
  readonly scenario: string;
  readonly title: string;
  readonly program: Program;
  readonly failure: TraceFailure | undefined;
  readonly events: readonly RunEvent[];
  readonly schedule: readonly Deviation[];
}

function accessKey(word: number, locksBefore: number): number {
  return word * LOCK_EVENTS + locksBefore;
}

function waitText(wait: Wait | undefined): string {
  if (wait === undefined) return 'end';
  if (typeof wait === 'string') return wait;
  return typeof wait === 'number' ? TIME : `waits for ${wait.name}`;
}

/** Looks on at one run. */
export class TraceRecorder implements SchedulerObserver {
  readonly #names = new ObjectNames();
  readonly #words = new Map<string, number>();
  readonly #wordList: { readonly object: number; readonly field: string }[] = [];
  readonly #locks = new Map<object, number>();
  readonly #lockClasses: string[] = [];
  readonly #tasks = new Map<number, KnownTask>();
  readonly #steps: Step[] = [];
  #omittedChoices = 0;
  readonly #omittedDeviations: TraceChoice[] = [];
  readonly #parts = new Map<string, string>();
  readonly #start: Record<string, PartView> = {};
  readonly #views: TraceView[] = [];
  #machine: KernelMachine | undefined;
  #current: Step | undefined;
  #choices: TraceChoice[] = [];
  #choiceCount = 0;
  #stepCount = 0;
  /** Number of the first event of the steps that are kept; those of setup and of steps left out are nobody's. */
  #eventStart = 0;

  /** The machine, before the first step: to be looked at, and asked for the time. */
  attach(machine: KernelMachine): void {
    this.#machine = machine;
    this.#eventStart = machine.runtime.eventCount;
    Object.assign(this.#start, this.#difference(machine));
  }

  chosen(candidates: Candidates, index: number): void {
    const { ready, canStall } = candidates;
    const of = ready.map((_, i) => candidateName(ready, i));
    if (canStall) of.push(TIME);
    this.#choices.push({ at: this.#choiceCount++, of, chosen: index, default: defaultChoice(candidates) });
  }

  started(task: TaskHandle<unknown>, by: TaskHandle<unknown> | undefined): void {
    this.#tasks.set(task.number, { name: task.name, held: [], from: 'start', wokenBy: undefined });
    if (by !== undefined) this.#current?.starts.push(task.number);
  }

  resumed(task: TaskHandle<unknown>): void {
    const known = this.#known(task);
    this.#current = {
      index: this.#stepCount++,
      task: task.number,
      timeNs: this.#machine?.runtime.now ?? 0,
      from: known.from,
      to: 'failure',
      choices: this.#choices,
      accesses: new Map(),
      more: 0,
      locks: [],
      wakes: [],
      starts: [],
      wokenBy: known.wokenBy,
      eventEnd: Infinity,
      hasWrites: false,
    };
    known.wokenBy = undefined;
    this.#choices = [];
    this.#steps.push(this.#current);
    if (this.#steps.length > MOST_STEPS) this.#forget();
  }

  suspended(task: TaskHandle<unknown>, wait: Wait | undefined): void {
    const step = this.#current;
    if (step === undefined) return;
    step.to = waitText(wait);
    this.#known(task).from = typeof wait === 'object' ? wait.name : step.to;
    if (this.#machine === undefined) return;
    step.eventEnd = this.#machine.runtime.eventCount;
    if (step.hasWrites) this.#look(this.#machine, step.index);
  }

  woken(task: TaskHandle<unknown>, by: TaskHandle<unknown> | undefined): void {
    const step = this.#current;
    if (by === undefined || step === undefined || step.starts.includes(task.number)) return;
    step.wakes.push(task.number);
    this.#known(task).wokenBy = step.index;
  }

  access(object: object, field: string, isWrite: boolean, before: unknown, after: unknown): void {
    const step = this.#current;
    if (step === undefined || isOfChecker()) return;
    const word = this.#word(object, field);
    const isChange = before !== after;
    const kind = isWrite ? (before !== undefined && !isChange ? 'test' : 'write') : isChange ? 'update' : 'read';
    if (kind !== 'read') step.hasWrites = true;
    const locksBefore = step.locks.length;
    const key = accessKey(word, locksBefore);
    const known = step.accesses.get(key);
    if (known !== undefined) {
      // A step is atomic: of several accesses under the same locks it is the first that finds and the last that leaves something.
      // Changes of a count commute however many there are; what is changed and decided by is written.
      if (kind !== 'read' && known.kind !== kind) known.kind = known.kind === 'read' ? kind : 'write';
      if (kind !== 'read') known.after = this.#value(after);
      return;
    }
    if (step.accesses.size >= MOST_ACCESSES) {
      step.more++;
      return;
    }
    const held = this.#tasks.get(step.task)?.held ?? [];
    step.accesses.set(key, {
      word,
      kind,
      before: this.#value(before),
      after: this.#value(after),
      held: held.map(({ lock, shared }) => (shared ? -1 - lock : lock)),
      locksBefore,
    });
  }

  lock(lock: object, lockClass: string, isAcquired: boolean, isShared: boolean): void {
    const step = this.#current;
    if (step === undefined) return;
    let index = this.#locks.get(lock);
    if (index === undefined) {
      index = this.#lockClasses.push(lockClass) - 1;
      this.#locks.set(lock, index);
      this.#names.numberOf(lock);
    }
    step.locks.push({ op: isAcquired ? 'acquire' : 'release', lock: index, shared: isShared });
    const held = this.#tasks.get(step.task)?.held;
    if (held === undefined) return;
    if (isAcquired) held.push({ lock: index, shared: isShared });
    else {
      const place = held.findLastIndex((one) => one.lock === index);
      if (place >= 0) held.splice(place, 1);
    }
  }

  /** The trace, when the run is over. */
  trace({ scenario, title, program, failure, events, schedule }: TraceSubject): Trace {
    const machine = this.#machine;
    const last = this.#current;
    const end = this.#end(failure);
    if (machine !== undefined && last?.to === 'failure') this.#look(machine, last.index);
    // Teardown goes on after the last step and is nobody's.
    else if (machine !== undefined && end?.place === 'teardown') this.#look(machine, this.#stepCount);
    const labels = this.#names.names();
    const labelOf = (object: object): string => labels[this.#names.numberOf(object)] ?? '';
    const valueOf = (value: Value | undefined): string | undefined =>
      typeof value === 'object' ? labels[value.ref] : value;
    const programTasks = new Set(program.tasks.map(({ name }) => name));
    const lines = this.#eventsByStep(events);
    const changed = new Set(
      this.#steps.flatMap(({ accesses }) =>
        [...accesses.values()].filter(({ kind }) => kind !== 'read').map(({ word }) => word),
      ),
    );
    return {
      scenario,
      title,
      failure,
      schedule,
      ...optional('end', end),
      tasks: [...this.#tasks]
        .sort(([a], [b]) => a - b)
        .map(([number, { name }]) => ({ number, name, isProgram: programTasks.has(name) })),
      words: this.#wordList.map(({ object, field }) => ({ object: labels[object] ?? '', field })),
      locks: [...this.#locks].map(([lock, index]) => ({
        label: labelOf(lock),
        lockClass: this.#lockClasses[index] ?? '',
      })),
      steps: this.#steps.map(({ accesses, more, wokenBy, eventEnd: _end, hasWrites: _writes, ...step }) => ({
        ...step,
        // What nobody changes is of no interest.
        accesses: [...accesses.values()]
          .filter(({ word }) => changed.has(word))
          .map(({ before, after, ...access }) => ({
            ...access,
            ...optional('before', valueOf(before)),
            ...optional('after', valueOf(after)),
          })),
        ...(more === 0 ? {} : { more }),
        ...optional('wokenBy', wokenBy),
        events: (lines.get(step.index) ?? []).map(eventLine),
      })),
      omittedSteps: this.#steps[0]?.index ?? 0,
      omittedChoices: this.#omittedChoices,
      omittedDeviations: this.#omittedDeviations,
      calls: this.#calls(program, lines, events, failure),
      start: this.#start,
      views: this.#views,
    };
  }

  // --- tables ---

  #known(task: TaskHandle<unknown>): KnownTask {
    let known = this.#tasks.get(task.number);
    // Daemons of hardware and kernel were there before anybody looked on.
    if (known === undefined)
      this.#tasks.set(task.number, (known = { name: task.name, held: [], from: 'waiting', wokenBy: undefined }));
    return known;
  }

  #word(object: object, field: string): number {
    const number = this.#names.numberOf(object);
    const key = `${number} ${field}`;
    let word = this.#words.get(key);
    if (word === undefined) {
      word = this.#wordList.push({ object: number, field }) - 1;
      this.#words.set(key, word);
    }
    return word;
  }

  #value(value: unknown): Value | undefined {
    switch (typeof value) {
      case 'string':
        return value;
      case 'bigint':
        return `0x${value.toString(16)}`;
      case 'number':
        return Math.abs(value) > 0xffff ? `0x${value.toString(16)}` : String(value);
      case 'boolean':
        return String(value);
      case 'object':
        return value === null ? undefined : { ref: this.#names.numberOf(value) };
      default:
        return undefined;
    }
  }

  // --- views ---

  #difference(machine: KernelMachine): Record<string, PartView | null> {
    const view: MachineView = machine.look((object, label) => this.#names.name(object, label));
    const parts: Record<string, PartView | null> = {};
    for (const [name, part] of Object.entries(view)) {
      const text = JSON.stringify(part);
      if (this.#parts.get(name) === text) continue;
      this.#parts.set(name, text);
      parts[name] = part;
    }
    for (const name of this.#parts.keys()) {
      if (name in view) continue;
      this.#parts.delete(name);
      parts[name] = null;
    }
    return parts;
  }

  #look(machine: KernelMachine, step: number): void {
    const parts = this.#difference(machine);
    if (Object.keys(parts).length > 0) this.#views.push({ step, parts });
  }

  /** The oldest step goes. */
  #forget(): void {
    const oldest = this.#steps.shift();
    const gone = oldest?.index ?? -1;
    const choices = oldest?.choices ?? [];
    this.#omittedChoices += choices.length;
    this.#omittedDeviations.push(...choices.filter(isDeviating));
    this.#eventStart = oldest?.eventEnd ?? 0;
    for (let view = this.#views[0]; view !== undefined && view.step <= gone; view = this.#views[0]) {
      applyView(this.#start, view);
      this.#views.shift();
    }
  }

  // --- events and calls ---

  #eventsByStep(events: readonly RunEvent[]): Map<number, RunEvent[]> {
    const byStep = new Map<number, RunEvent[]>();
    let at = 0;
    const first = events.findIndex(({ number }) => number >= this.#eventStart);
    for (const event of first < 0 ? [] : events.slice(first)) {
      while (at < this.#steps.length && (this.#steps[at]?.eventEnd ?? Infinity) <= event.number) at++;
      const step = this.#steps[at];
      if (step === undefined) break;
      byStep.set(step.index, [...(byStep.get(step.index) ?? []), event]);
    }
    return byStep;
  }

  /** Where the run failed, if not in a step. */
  #end(failure: TraceFailure | undefined): TraceEnd | undefined {
    if (failure === undefined || this.#current?.to === 'failure') return undefined;
    const machine = this.#machine;
    if (machine === undefined) return { place: 'setup', timeNs: 0 };
    const isStill = failure.id === 'no-deadlock';
    const place = failure.task === 'teardown' ? 'teardown' : isStill ? 'standstill' : 'audit';
    return { place, timeNs: machine.runtime.now };
  }

  #calls(
    program: Program,
    lines: ReadonlyMap<number, readonly RunEvent[]>,
    events: readonly RunEvent[],
    failure: TraceFailure | undefined,
  ): TraceCall[] {
    const calls: TraceCall[] = [];
    for (const { name, calls: wanted } of program.tasks) {
      const own = this.#steps.filter(({ task }) => this.#tasks.get(task)?.name === name);
      const [firstStep] = own;
      const lastStep = own.at(-1);
      if (firstStep === undefined || lastStep === undefined) continue;
      const ended = own.flatMap(({ index }) =>
        (lines.get(index) ?? [])
          .filter(({ kind, task }) => kind === 'program.call' && task === name)
          .map((event) => ({ index, event })),
      );
      let first = firstStep.index;
      for (const [i, { index, event }] of ended.entries()) {
        calls.push({
          task: firstStep.task,
          op: String(event.data['op']),
          answer: String(event.data['answer']),
          first,
          last: index,
        });
        // Where nobody came between, the next call began in the step in which this one ended.
        const isParted = ended[i + 1]?.index !== index && own.find((step) => step.index === index)?.to === CALL_GATE;
        first = (isParted ? own.find((step) => step.index > index)?.index : undefined) ?? index;
      }
      // Whoever fails by an answer has made no call after it.
      if (lastStep.to === 'failure' && failure !== undefined && isUnexpectedAnswer(failure)) continue;
      const open = wanted[events.filter(({ kind, task }) => kind === 'program.call' && task === name).length];
      if (open !== undefined && lastStep.to !== 'end')
        calls.push({ task: firstStep.task, op: open.op, first, last: lastStep.index });
    }
    return calls;
  }
}

function optional<K extends string, V>(key: K, value: V | undefined): Partial<Record<K, V>> {
  return value === undefined ? {} : ({ [key]: value } as Record<K, V>);
}
