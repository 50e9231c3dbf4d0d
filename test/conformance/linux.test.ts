/** Answers of a real kernel to sequences against mock devices: eight of each kind, and some that were hard to agree with. */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import {
  differenceLines,
  isRecordedSequence,
  SequencePlayer,
  type RecordedSequence,
} from '../../src/conformance/linux.js';

const recorded = gunzipSync(readFileSync('test/conformance/linux/mock-sample.jsonl.gz'))
  .toString()
  .trim()
  .split('\n')
  .map((line): unknown => JSON.parse(line))
  .filter(isRecordedSequence);

const profiles = [...new Set(recorded.map(({ profile }) => profile))];

function differences(sequences: readonly RecordedSequence[]): string[] {
  const player = new SequencePlayer();
  return sequences.flatMap((sequence) => {
    const difference = player.judge(sequence);
    return difference === undefined ? [] : [`seed ${sequence.seed}`, ...differenceLines(difference)];
  });
}

test.each(profiles)('iommufd answers as Linux 7.3 does: %s', (profile) => {
  expect(differences(recorded.filter((sequence) => sequence.profile === profile))).toEqual([]);
});

test('an answer that is another one is noticed, with its operation', () => {
  const [sequence] = recorded;
  if (sequence === undefined) throw new Error('no recorded sequence');
  const [first] = sequence.ops;
  if (first === undefined) throw new Error('no operation');
  const wrong = { ...sequence, ops: [{ ...first, ret: 'EBUSY' }, ...sequence.ops.slice(1)] };
  expect(differences([wrong]).join('\n')).toMatch(
    new RegExp(`0: ${first.op}[^]*expected[^]*ret +EBUSY +${first.ret}`, 'u'),
  );
});
