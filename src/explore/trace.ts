/**
 * The trace of a run: plain data, for the race report and the page of a schedule.
 *
 * A *step* is what a task did from one gate to the next. Words, locks and tasks are told by their index in a table of the trace. Views
 * of the machine are kept as differences: {@link viewAt} puts them together.
 */
import type { Deviation } from '../runtime/deviations.js';
import { UNEXPECTED_ANSWER } from '../runtime/signature.js';
import type { PartView, MachineView } from '../host/view.js';

/** A shared word: a field of an object. */
export interface TraceWord {
  readonly object: string;
  readonly field: string;
}

/** `update`: a change of a count that commutes with others; `test`: a decision by such a count. */
export type AccessKind = 'read' | 'write' | 'update' | 'test';

/** More lock events than a step has. */
export const LOCK_EVENTS = 2 ** 16;

/** One look at a word, or change of it. */
export interface TraceAccess {
  readonly word: number;
  readonly kind: AccessKind;
  /** What the word held, where that is known. */
  readonly before?: string;
  readonly after?: string;
  /** Locks held: indices, those held with others (for reading) as `-1 - index`. */
  readonly held: readonly number[];
  /** How many of the step's lock events came before it. */
  readonly locksBefore: number;
}

export interface TraceLock {
  readonly label: string;
  readonly lockClass: string;
}

export interface TraceLockEvent {
  readonly op: 'acquire' | 'release';
  readonly lock: number;
  readonly shared: boolean;
}

/** A decision of the schedule. */
export interface TraceChoice {
  /** Number of the choice in the run. */
  readonly at: number;
  readonly of: readonly string[];
  /** Indices into `of`. */
  readonly chosen: number;
  readonly default: number;
}

/** Whether somebody else went on than the default. */
export function isDeviating({ chosen, default: wanted }: TraceChoice): boolean {
  return chosen !== wanted;
}

export interface TraceStep {
  /** Number of the step in the run, from 0. */
  readonly index: number;
  readonly task: number;
  readonly timeNs: number;
  /** Where the task went on from: a gate, what it had waited for, `time`, `start`. */
  readonly from: string;
  /** Where it stopped: a gate, `waits for …`, `time`, `end`, `failure`. */
  readonly to: string;
  /** Decisions since the step before; more than one where time was let pass. */
  readonly choices: readonly TraceChoice[];
  /** In order; those of one word with no lock event between them are one. */
  readonly accesses: readonly TraceAccess[];
  /** Accesses that were left out. */
  readonly more?: number;
  readonly locks: readonly TraceLockEvent[];
  /** Tasks that the step woke, and started. */
  readonly wakes: readonly number[];
  readonly starts: readonly number[];
  /** The step that woke the task for this one. */
  readonly wokenBy?: number;
  /** What was recorded into the history: a line each. */
  readonly events: readonly string[];
}

/** A system call of a task: from step to step. */
export interface TraceCall {
  readonly task: number;
  readonly op: string;
  /** Undefined where it never returned. */
  readonly answer?: string;
  readonly first: number;
  readonly last: number;
}

/** What changed of the machine in a step: parts by name, null for those that are gone. */
export interface TraceView {
  readonly step: number;
  readonly parts: Readonly<Record<string, PartView | null>>;
}

export interface TraceFailure {
  readonly id: string | undefined;
  readonly message: string;
  readonly signature: string;
  readonly task: string;
}

/** Where a run fails that does not fail in a step: `standstill` is when nothing goes on any more and somebody still waits. */
export type EndPlace = 'setup' | 'standstill' | 'audit' | 'teardown';

/** A failure before the first step or after the last. */
export interface TraceEnd {
  readonly place: EndPlace;
  readonly timeNs: number;
}

export interface Trace {
  readonly scenario: string;
  readonly title: string;
  readonly failure: TraceFailure | undefined;
  /** Where the run failed, if no step failed. */
  readonly end?: TraceEnd;
  /** Started by the scenario; the others are the kernel's and the hardware's. */
  readonly tasks: readonly { readonly number: number; readonly name: string; readonly isProgram: boolean }[];
  readonly words: readonly TraceWord[];
  readonly locks: readonly TraceLock[];
  /** The last steps of the run. */
  readonly steps: readonly TraceStep[];
  /** Steps before those that were left out. */
  readonly omittedSteps: number;
  /** Choices in those, and which of them were not the default. */
  readonly omittedChoices: number;
  readonly omittedDeviations: readonly TraceChoice[];
  readonly calls: readonly TraceCall[];
  /** The deviations that made the run, where it was made so. */
  readonly schedule: readonly Deviation[];
  /** How the machine looked before the first step that is there. */
  readonly start: MachineView;
  readonly views: readonly TraceView[];
}

/** Where a run failed outside its steps, in a few words. */
export function endText({ place }: TraceEnd): string {
  return place === 'audit' ? 'audit at the end' : place;
}

/** Whether a call answered something that the program does not expect. No rule was broken then. */
export function isUnexpectedAnswer({ id, message }: Pick<TraceFailure, 'id' | 'message'>): boolean {
  return id === undefined && message.startsWith(UNEXPECTED_ANSWER);
}

/** The calls that a step is part of: more than one where a task went on with the next call at once. */
export function callsAt({ calls }: Pick<Trace, 'calls'>, { task, index }: TraceStep): TraceCall[] {
  return calls.filter((call) => call.task === task && call.first <= index && index <= call.last);
}

/** How the machine looked after a step. */
export function viewAt({ start, views }: Pick<Trace, 'start' | 'views'>, step: number): MachineView {
  const now: Record<string, PartView> = { ...start };
  for (const view of views) {
    if (view.step > step) break;
    applyView(now, view);
  }
  return now;
}

/** Adds a difference. */
export function applyView(now: Record<string, PartView>, { parts }: Pick<TraceView, 'parts'>): void {
  for (const [name, part] of Object.entries(parts)) {
    if (part === null) Reflect.deleteProperty(now, name);
    else now[name] = part;
  }
}

/** A word in a line of text. */
export function wordText({ object, field }: TraceWord): string {
  return / ?0x/.test(field) || field === '' ? `${object} ${field}` : `${object} .${field}`;
}
