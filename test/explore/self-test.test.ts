/** Runs are made twice now and then: what is not the same is a flaw of the testbed, and the first event that differs is named. */
import { expect, test } from 'vitest';
import { measureChoices, sample, SELF_TEST_EVERY, type Sampled } from '../../src/explore/explore.js';
import { subjectOf, type Attempt, type Subject } from '../../src/explore/subject.js';
import { loadScenario } from '../../src/scenario/load.js';

const scenario = loadScenario(
  'plain.yaml',
  `title: two tasks
kernel-only: { iommu: mock }
tasks:
  a:
    - ioas: { as: x }
    - ioas: { as: y }
  b:
    - ioas: { as: z }
`,
);

/** The scenario, changed in every second run that leaves a history, from the `from`-th on. */
function planted(change: (attempt: Attempt) => Partial<Attempt>, from = 0): Subject {
  const subject = subjectOf(scenario, 1);
  let runs = 0;
  return {
    ...subject,
    attempt(options) {
      const attempt = subject.attempt(options) as Attempt;
      if (options.isTraced !== true || runs++ < 2 * from || runs % 2 === 1) return attempt;
      return { ...attempt, ...change(attempt) };
    },
  };
}

async function sampled(subject: Subject, runs: number): Promise<Sampled> {
  const choices = await measureChoices(subject, 1);
  return await sample(subject, { strategy: 'random', seed: 1, depth: 2, choices }, { first: 0, end: runs });
}

test('nothing is found where nothing is planted, and the looks are counted', async () => {
  const { failure, selfTests, invariants } = await sampled(subjectOf(scenario, 1), 2 * SELF_TEST_EVERY + 1);
  expect(failure).toBeUndefined();
  expect(selfTests).toBe(3);
  expect(invariants.find(({ id }) => id === 'INV-20')?.looks).toBe(3);
});

test('the first event that differs is named, as it was and as it is', async () => {
  const subject = planted(({ lines }) => ({ lines: lines.map((line, i) => (i >= 1 ? `${line} ?` : line)) }));
  const { failure } = await sampled(subject, 10);
  expect(failure?.run).toBe(0);
  expect(failure?.attempt.failure).toMatchObject({ id: 'INV-20', signature: 'INV-20' });
  expect(failure?.attempt.failure?.message).toMatch(
    /^INV-20: the same schedule gave two histories: event 1: (.+) \| \1 \?$/,
  );
});

test('a history that ends earlier differs where it ends', async () => {
  const { failure } = await sampled(
    planted(({ lines }) => ({ lines: lines.slice(0, -1) })),
    10,
  );
  expect(failure?.attempt.failure?.message).toMatch(/event 3: .+ \| \(ended\)$/);
});

test('the same events and another state are a difference', async () => {
  const { failure } = await sampled(
    planted(({ stateHash }) => ({ stateHash: stateHash ^ 1 })),
    10,
  );
  expect(failure?.attempt.failure?.message).toContain('the same events, another state at the end');
});

test('it is found by the run that is looked at twice next', async () => {
  const { failure, runs, selfTests } = await sampled(
    planted(({ lines }) => ({ lines: [...lines, 'x'] }), 1),
    1000,
  );
  expect(failure?.run).toBe(SELF_TEST_EVERY);
  expect([runs, selfTests]).toEqual([SELF_TEST_EVERY + 1, 2]);
});
