/**
 * Every allocation of recorded sequences fails in turn (the idea of iommufd_fail_nth): the call says so and leaves everything as
 * it was; the same call again, and all that follow, answer as recorded. Closing holds that nothing stayed behind.
 *
 * IOVADUCT_SWEEP takes all sequences of the sample instead of one of each kind.
 */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import {
  differenceLines,
  isRecordedSequence,
  judgeOperation,
  playOperation,
  type RecordedSequence,
} from '../../src/conformance/linux.js';
import { RecordedMachine } from '../../src/conformance/linux-machine.js';
import type { FaultId } from '../../src/runtime/faults.js';
import { complaintsOf, stateOf } from '../fixtures/iommufd-state.js';

const PER_PROFILE = process.env['IOVADUCT_SWEEP'] === undefined ? 1 : Infinity;
const ALLOCATIONS: readonly FaultId[] = ['kernel.kmalloc', 'mm.pin'];
const PIN_ERRORS = ['ENOMEM', 'EFAULT'];
/** Where a failure leaves a trace: an event that was lost, and the second look at memory that nobody knows the contents of. */
const TOLERANT: Readonly<Record<string, string>> = { TEST_TRIGGER_VEVENT: 'ENOMEM', TEST_ACCESS_RW: 'OK' };
/** Cuts what it unmaps first, and does not join it again. */
const CUTS = 'VFIO_IOMMU_UNMAP_DMA';

const recorded = gunzipSync(readFileSync('test/conformance/linux/mock-sample.jsonl.gz'))
  .toString()
  .trim()
  .split('\n')
  .map((line): unknown => JSON.parse(line))
  .filter(isRecordedSequence);
const profiles = [...new Set(recorded.map(({ profile }) => profile))];

/** How many allocations there were up to the end of each operation. */
function countAllocations(machine: RecordedMachine, { ops }: RecordedSequence, fault: FaultId): number[] {
  machine.open();
  machine.faults.arm(fault, { skip: Infinity });
  const counts = ops.map(({ op, in: input }) => {
    playOperation(machine, op, input);
    return machine.faults.calls(fault);
  });
  machine.faults.disarm(fault);
  machine.close();
  return counts;
}

/** Lets the n-th allocation fail, in operation `at`; what was wrong. */
function failNth(machine: RecordedMachine, { ops }: RecordedSequence, fault: FaultId, n: number, at: number): string[] {
  machine.open();
  machine.faults.arm(fault, { skip: n, count: 1 });
  for (const [index, recordedOp] of ops.entries()) {
    if (index === at) {
      const { op, in: input } = recordedOp;
      const before = stateOf(machine);
      const { ret } = playOperation(machine, op, input);
      const told = `op ${index} ${op} ${JSON.stringify(input)} -> ${ret}`;
      if (TOLERANT[op] === ret) {
        machine.close();
        return [];
      }
      if (!PIN_ERRORS.includes(ret)) return [`${told}: a failed allocation is not an answer`];
      if (op !== CUTS) expect(stateOf(machine), told).toEqual(before);
      const wrong = complaintsOf(machine);
      if (wrong.length > 0) return [told, ...wrong];
    }
    const difference = judgeOperation(machine, recordedOp, index);
    if (difference !== undefined) return [`after a failure in op ${at}`, ...differenceLines(difference)];
  }
  machine.faults.disarm(fault);
  machine.close();
  return [];
}

test.each(profiles)('each allocation fails in turn: %s', (profile) => {
  const machine = new RecordedMachine();
  const sequences = recorded.filter((sequence) => sequence.profile === profile).slice(0, PER_PROFILE);
  for (const sequence of sequences) {
    for (const fault of ALLOCATIONS) {
      const counts = countAllocations(machine, sequence, fault);
      for (let n = 0; n < (counts.at(-1) ?? 0); n++) {
        const at = counts.findIndex((count) => count > n);
        const wrong = failNth(machine, sequence, fault, n, at);
        expect(wrong, `seed ${sequence.seed}, ${fault} number ${n}`).toEqual([]);
      }
    }
  }
});
