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
  return typeof seed === 'number' && typeof profile === 'string' && Array.isArray(ops);
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

/** A difference as lines for people. */
export function differenceLines({ index, op, input, expected, got }: SequenceDifference): string[] {
  return [
    `op ${index} ${op} ${JSON.stringify(input)}`,
    `  expected ${expected.ret} ${JSON.stringify(expected.out ?? {})}`,
    `  got      ${got.ret} ${JSON.stringify(got.out ?? {})}`,
  ];
}
