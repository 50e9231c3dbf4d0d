/**
 * Recorded runs: everything needed to run a scenario again, in one file, and the comparison of two histories.
 *
 * A recording (`<name>.iovarun`, msgpackr) holds the scenario's text, the descriptions of its hosts, the seed, every node's
 * schedule and the history line by line. Nothing else is read when it is replayed, so it outlives changes of profiles.
 */
import type { HostDescription } from '../hardware/description.js';
import { Packr } from '../layout/msgpack.js';
import { InputError } from './text.js';
import { loadScenario, type Scenario } from './load.js';
import type { RunTrace, ScenarioOutcome } from './execute.js';

/** Version of the file format. */
const VERSION = 1;

/** A recorded run. */
export interface Recording extends Pick<RunTrace, 'lines' | 'choices'> {
  readonly version: number;
  readonly file: string;
  readonly text: string;
  readonly hosts: readonly HostDescription[];
  readonly seed: number;
  readonly digest: string;
}

const packr = new Packr({ useRecords: false });

/** The bytes of a recording of a run. */
export function encodeRecording(scenario: Scenario, outcome: ScenarioOutcome, trace: RunTrace): Uint8Array {
  const recording: Recording = {
    version: VERSION,
    file: scenario.file,
    text: scenario.text,
    hosts: scenario.hosts,
    seed: outcome.seed,
    digest: outcome.digest,
    lines: trace.lines,
    choices: trace.choices,
  };
  return packr.pack(recording);
}

function isRecording(value: unknown): value is Recording {
  if (typeof value !== 'object' || value === null) return false;
  const given = value as Readonly<Record<string, unknown>>;
  return (
    typeof given['version'] === 'number' &&
    typeof given['text'] === 'string' &&
    typeof given['file'] === 'string' &&
    typeof given['seed'] === 'number' &&
    Array.isArray(given['hosts']) &&
    Array.isArray(given['lines']) &&
    typeof given['choices'] === 'object'
  );
}

/** Reads a recording. @throws InputError when the bytes are none, or of another version */
export function decodeRecording(
  file: string,
  bytes: Uint8Array,
): { readonly recording: Recording; readonly scenario: Scenario } {
  const refuse = (message: string): InputError => new InputError([{ file, line: 1, column: 1, message }]);
  let value: unknown;
  try {
    value = packr.unpack(bytes);
  } catch {
    throw refuse('not a recorded run');
  }
  if (!isRecording(value)) throw refuse('not a recorded run');
  if (value.version !== VERSION) throw refuse(`recorded by version ${value.version}, this is version ${VERSION}`);
  return { recording: value, scenario: loadScenario(value.file, value.text, { hosts: value.hosts }) };
}

/** Where two histories part. */
export interface Difference {
  /** Number of the event, from 0. */
  readonly index: number;
  /** The lines; undefined where one history has ended. */
  readonly recorded: string | undefined;
  readonly now: string | undefined;
}

/** The first event in which two histories differ; undefined when they are the same. */
export function firstDifference(recorded: readonly string[], now: readonly string[]): Difference | undefined {
  const length = Math.max(recorded.length, now.length);
  for (let index = 0; index < length; index++) {
    if (recorded[index] !== now[index]) return { index, recorded: recorded[index], now: now[index] };
  }
  return undefined;
}
