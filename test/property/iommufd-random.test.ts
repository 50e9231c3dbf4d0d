/**
 * Random well-formed and malformed ioctls on one machine: nothing throws, what must be true stays true, closing leaves nothing.
 *
 * Half of the sessions begin with nothing; half play a recorded sequence with calls left out, said twice and put between.
 * IOVADUCT_SWEEP=N makes it 2 N times as long; `npm run sweep` does more than a million calls.
 */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { isRecordedSequence, playOperation, type RecordedSequence } from '../../src/conformance/linux.js';
import { RecordedMachine } from '../../src/conformance/linux-machine.js';
import { RandomStream } from '../../src/runtime/random.js';
import { complaintsOf } from '../fixtures/iommufd-state.js';
import { RandomIoctls } from '../fixtures/random-ioctls.js';

const FACTOR = 2 * Number(process.env['IOVADUCT_SWEEP'] ?? 0.5);
const CALLS = 25_000 * FACTOR;
const CALLS_PER_SESSION = 250;
/** Every how many calls everything is looked at. */
const LOOK_EVERY = 8;

const recorded = gunzipSync(readFileSync('test/conformance/linux/mock-sample.jsonl.gz'))
  .toString()
  .trim()
  .split('\n')
  .map((line): unknown => JSON.parse(line))
  .filter(isRecordedSequence);

type Call = () => string;

function* randomCalls(ioctls: RandomIoctls): Generator<Call> {
  for (let i = 0; i < CALLS_PER_SESSION; i++) yield () => ioctls.next();
}

/** A recorded sequence that is not what was recorded any more. */
function* variedCalls(
  machine: RecordedMachine,
  random: RandomStream,
  ioctls: RandomIoctls,
  { ops }: RecordedSequence,
): Generator<Call> {
  for (const { op, in: input } of ops) {
    for (let times = random.pick([0, 1, 1, 1, 1, 1, 1, 1, 1, 2]); times > 0; times--)
      yield () => `${op} ${JSON.stringify(input)} -> ${playOperation(machine, op, input).ret}`;
    while (random.chance(1, 2)) yield () => ioctls.next();
  }
}

/** One descriptor of /dev/iommu from open to close: how many calls, and what was wrong with the calls that led there. */
function session(
  machine: RecordedMachine,
  seed: number,
): { readonly calls: number; readonly wrong: readonly string[] } {
  const random = new RandomStream(seed, 'session');
  const ioctls = new RandomIoctls(machine, new RandomStream(seed, 'ioctls'));
  const calls = seed % 2 === 0 ? randomCalls(ioctls) : variedCalls(machine, random, ioctls, random.pick(recorded));
  const made: string[] = [];
  try {
    machine.open();
    for (const call of calls) {
      made.push(call());
      const wrong = made.length % LOOK_EVERY === 0 ? complaintsOf(machine) : [];
      if (wrong.length > 0)
        return { calls: made.length, wrong: [`seed ${seed}`, ...wrong, ...made.slice(-LOOK_EVERY)] };
    }
    machine.close();
    return { calls: made.length, wrong: [] };
  } catch (error) {
    const what = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { calls: made.length, wrong: [`seed ${seed}`, what, ...made.slice(-3)] };
  }
}

test(
  `${CALLS} random ioctls`,
  () => {
    const machine = new RecordedMachine();
    let calls = 0;
    for (let seed = 1; calls < CALLS; seed++) {
      const outcome = session(machine, seed);
      expect(outcome.wrong).toEqual([]);
      calls += outcome.calls;
    }
  },
  FACTOR * 60_000,
);
