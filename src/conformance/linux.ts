/**
 * Replays recorded iommufd sequences and compares every answer. A sequence passes when each operation returned and put out
 * what the real kernel did; it is judged up to its first difference.
 */
import { RecordedMachine } from './linux-machine.js';
import { QUEUE_OPERATIONS } from './linux-queues.js';
import { OPERATIONS, type Answer, type Json, type JsonFields } from './linux-operations.js';

/** One operation as recorded. */
export interface RecordedOperation {
  readonly op: string;
  readonly in: JsonFields;
  readonly ret: string;
  readonly out?: JsonFields;
}

/** A line of mock.jsonl. */
export interface RecordedSequence {
  readonly seed: number;
  readonly profile: string;
  readonly ops: readonly RecordedOperation[];
}

/** Whether parsed JSON is a recorded sequence against mock devices. */
export function isRecordedSequence(value: unknown): value is RecordedSequence {
  if (typeof value !== 'object' || value === null) return false;
  const { seed, profile, ops } = value as Partial<Record<keyof RecordedSequence, unknown>>;
  return typeof seed === 'number' && typeof profile === 'string' && Array.isArray(ops) && ops.every(isOperation);
}

function isOperation(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const { op, in: input, ret, out = {} } = value as Partial<Record<keyof RecordedOperation, unknown>>;
  const areFields = [input, out].every((fields) => typeof fields === 'object' && fields !== null);
  return typeof op === 'string' && typeof ret === 'string' && areFields;
}

/** Whether parsed JSON is a line of the recordings with real IOMMU models, which are not replayed here. */
export function isHardwareRecord(value: unknown): boolean {
  return typeof value === 'object' && value !== null && 'record' in value && 'machine' in value;
}

/** Where a replay left the recording. */
export interface SequenceDifference {
  /** Counted from 0. */
  readonly index: number;
  readonly op: string;
  readonly input: JsonFields;
  readonly expected: Answer;
  readonly got: Answer;
}

function isSame(a: Json | undefined, b: Json | undefined): boolean {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const keys = Object.keys(a);
  const [x, y] = [a as JsonFields, b as JsonFields];
  return keys.length === Object.keys(b).length && keys.every((key) => isSame(x[key], y[key]));
}

/** Plays sequences one after another on a machine that is made once. */
export class SequencePlayer {
  /** Answers so far that were compared only in part, because the sequence does not determine the rest. */
  partlyCompared = 0;
  #machine: RecordedMachine | undefined;
  #index = 0;

  /** The first difference; undefined when the sequence passes. */
  judge(sequence: RecordedSequence): SequenceDifference | undefined {
    const machine = (this.#machine ??= new RecordedMachine());
    try {
      machine.open();
      const difference = this.#play(machine, sequence);
      machine.close();
      return difference;
    } catch (error) {
      // A machine that broke has descriptors and pins nobody knows of.
      this.#machine = undefined;
      const { op, in: input, ret, out } = sequence.ops[this.#index] ?? { op: 'the end', in: {}, ret: 'OK' };
      const why = error instanceof Error ? (error.stack ?? error.message) : String(error);
      const expected = out === undefined ? { ret } : { ret, out };
      return { index: this.#index, op, input, expected, got: { ret: why } };
    }
  }

  #play(machine: RecordedMachine, { ops }: RecordedSequence): SequenceDifference | undefined {
    for (const [index, operation] of ops.entries()) {
      this.#index = index;
      const difference = judgeOperation(machine, operation, index, () => this.partlyCompared++);
      if (difference !== undefined) return difference;
    }
    this.#index = ops.length;
    return undefined;
  }
}

/** Makes an operation and compares its answer; `partly` is called when not all of it could be. */
export function judgeOperation(
  machine: RecordedMachine,
  { op, in: input, ret, out }: RecordedOperation,
  index: number,
  partly?: () => void,
): SequenceDifference | undefined {
  const got = playOperation(machine, op, input);
  const expected = out === undefined ? { ret } : { ret, out };
  if (got.isPossible !== undefined) partly?.();
  const isRight = got.isPossible?.(expected) ?? (got.ret === ret && isSame(got.out, out));
  return isRight ? undefined : { index, op, input, expected, got };
}

const queueOperations = new Map(QUEUE_OPERATIONS);

/** Makes one recorded operation on a machine that is open. */
export function playOperation(machine: RecordedMachine, op: string, input: JsonFields): Answer {
  const operation = OPERATIONS.get(op) ?? queueOperations.get(op);
  return operation === undefined ? { ret: 'not replayed' } : operation(machine, input);
}

function fieldText(value: Json): string {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return typeof value === 'string' ? value : JSON.stringify(value);
  }
  const { buf, off, raw } = value as JsonFields;
  return typeof buf === 'string' ? `${buf}+${fieldText(off ?? '')}` : fieldText(raw ?? '');
}

/** An operation as the recordings' README writes it: `IOAS_MAP flags=7 ioas_id=1 …`. */
function operationText(op: string, input: JsonFields): string {
  return [op, ...Object.entries(input).map(([name, value]) => `${name}=${fieldText(value)}`)].join(' ');
}

/** A column of the table of a difference. */
const COLUMN = 40;

/** A difference as lines for people: the calls before, the call, and what was recorded beside what ours answered. */
export function differenceLines(
  { index, op, input, expected, got }: SequenceDifference,
  ops: readonly RecordedOperation[] = [],
): string[] {
  const before = ops.slice(Math.max(0, index - CONTEXT), index);
  const names = [...new Set([...Object.keys(expected.out ?? {}), ...Object.keys(got.out ?? {})])];
  const row = (name: string, left: string, right: string): string =>
    `    ${name.padEnd(20)} ${left.padEnd(COLUMN)} ${right}`;
  const outOf = (answer: Answer, name: string): string => {
    const value = answer.out?.[name];
    return value === undefined ? '-' : fieldText(value);
  };
  return [
    ...before.map((each, i) => `  ${index - before.length + i}: ${operationText(each.op, each.in)} -> ${each.ret}`),
    `  ${index}: ${operationText(op, input)}`,
    row('', 'expected', 'got'),
    row('ret', expected.ret, got.ret),
    ...names
      .filter((name) => !isSame(expected.out?.[name], got.out?.[name]))
      .map((name) => row(name, outOf(expected, name), outOf(got, name))),
  ];
}

/** How many operations before a difference are shown. */
const CONTEXT = 4;
