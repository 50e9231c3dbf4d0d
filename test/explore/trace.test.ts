/** The recorder on a real run, and what the race report makes of it. */
import { describe, expect, test } from 'vitest';
import { runProgram } from '../../src/host/run-program.js';
import { findRace } from '../../src/explore/race.js';
import { raceReport } from '../../src/explore/race-report.js';
import { callsAt, viewAt, wordText, type Trace, type TraceStep } from '../../src/explore/trace.js';
import { loadScenario } from '../../src/scenario/load.js';
import { corpusFailure, explained, firstFailure, growingRoot, inOrder, lostInvalidation } from './failing.js';

const scenario = lostInvalidation();
const { trace, race, raceText } = firstFailure(scenario);

describe('a recorded run', () => {
  test('is plain data, the same each time, and no other run than without a recorder', () => {
    const again = firstFailure(scenario).trace;
    expect(JSON.parse(JSON.stringify(trace))).toEqual(trace);
    expect(again).toEqual(trace);
    const schedule = { strategy: 'deviating', deviations: [] } as const;
    const program = scenario.kernelOnly?.program;
    if (program === undefined) throw new Error('kernel-only');
    const plain = runProgram(program, { seed: 1, schedule });
    const looked = explained(scenario, schedule).trace;
    expect(looked.steps.flatMap(({ choices }) => choices).map(({ chosen }) => chosen)).toEqual(plain.choices);
    expect(looked.failure?.message).toBe(plain.failure?.message);
  });

  test('names things as people do', () => {
    const names = [...trace.words.map(wordText), ...trace.locks.map(({ label }) => label)];
    expect(names).toContain('area 0x1000000 of ioas 1 .pages');
    expect(names).toContain('page table of hwpt 3 0x1000000');
    expect(names).toContain('rwsem iopt:iova_rwsem');
    expect(names.filter((name) => /\[object|undefined|^$/.test(name))).toEqual([]);
    expect(new Set(names).size).toBe(names.length);
  });

  test('knows who held what, who woke whom, and what calls came to', () => {
    const hidden = stepWith(trace, ({ from, events }) => from === 'iommufd:unmap-invalidated' && events.length === 0);
    const unpinned = hidden.accesses.find(({ word }) =>
      wordText(wordOf(trace, word)).startsWith('page allocator pins'),
    );
    const held = unpinned?.held.map((lock) => trace.locks[lock < 0 ? -1 - lock : lock]?.lockClass);
    expect(held).toEqual(['iopt:domains_rwsem', 'iopt:pages_mutex']);
    expect(unpinned).toMatchObject({ kind: 'write', before: '1', after: '0' });
    const woken = stepWith(trace, ({ wokenBy }) => wokenBy !== undefined);
    expect(trace.steps[woken.wokenBy ?? -1]?.wakes).toContain(woken.task);
    const calls = trace.calls.map(({ op, answer }) => `${op} ${answer ?? '?'}`);
    expect(calls).toContain('dma ok');
    expect(calls).toContain('dma ?');
    expect(trace.steps.at(-1)?.to).toBe('failure');
  });

  test('shows the machine at each step', () => {
    const areas = (step: number): unknown => viewAt(trace, step)['ioas 1'];
    expect(areas(0)).toMatchObject({ areas: [{ iova: '0x1000000', lengthBytes: 16384, state: 'mapped', pins: 4 }] });
    const hidden = stepWith(trace, ({ to }) => to === 'iommufd:unmap-hidden');
    expect(areas(hidden.index)).toMatchObject({ areas: [{ state: 'going', pins: 4 }] });
    const end = viewAt(trace, Infinity);
    expect(end['page table of hwpt 3']).toEqual({ kind: 'table', ranges: [] });
    expect(end['TLB']).toMatchObject({ entries: [{ iova: '0x1000000', pa: '0x40000000' }] });
  });
});

test('an entry that no walk finds is not shown as one that maps', () => {
  const { trace: grown } = growingRoot();
  const ranges = (at: number): unknown => viewAt(grown, at)['page table of hwpt 4'];
  const low = { iova: '0x1000000', pa: '0x40000000' };
  const published = grown.steps.findIndex(({ from }) => from === 'mock:root-published');
  expect(ranges(published - 1)).toEqual({ kind: 'table', ranges: [{ ...low, lengthBytes: 4096, flags: '' }] });
  expect(ranges(Infinity)).toMatchObject({ ranges: [{ ...low, isUnreachable: true }, { iova: '0x40000000' }] });
});

const MOCK = `title: A case
kernel-only: { iommu: mock }
setup:
  - device: { as: nic }
`;

describe('the race report', () => {
  test('finds the page that was given back while the device could still reach it', () => {
    const [pair] = race.pairs;
    expect(wordText(wordOf(trace, pair?.word ?? -1))).toBe('page allocator pins of 0x40000000');
    expect(pair?.second.at).toBe(trace.steps.length - 1);
    expect(raceText).toContain('==== BUG: INV-3 in dma (dma)');
    expect(raceText).toMatch(
      /^later, at step \d+: read of page allocator pins of 0x40000000 by task "dma" \(dma:translated\), in dma, holding no lock$/m,
    );
    expect(raceText).toMatch(
      /^earlier, at step \d+: write to .* by task "unmapper" .* holding iopt:domains_rwsem\(read\), iopt:pages_mutex$/m,
    );
    expect(raceText).toContain('  value changed: 1 -> 0');
    expect(raceText).toMatch(/^ {2}at choice \d+ (task \S+ goes|time goes) on instead of \S+$/m);
  });

  test.each(['ats-tags', 'walk-of-freed-tables', 'event-of-a-device-that-is-gone'])(
    '%s: no checker takes part in a race',
    (name) => {
      const { trace: run, race: found } = corpusFailure(name);
      const words = found.pairs.map(({ word }) => wordText(wordOf(run, word)));
      expect(words.length).toBeGreaterThan(0);
      expect(words.filter((word) => / \.(moves|check|domain)$|checks/.test(word))).toEqual([]);
    },
  );

  const step = (index: number, task: number, more: Partial<TraceStep>): TraceStep => ({
    index,
    task,
    timeNs: 0,
    from: 'a:gate',
    to: 'a:gate',
    choices: [],
    accesses: [],
    locks: [],
    wakes: [],
    starts: [],
    events: [],
    ...more,
  });
  const planted = (steps: readonly TraceStep[]): Trace => ({
    scenario: 's',
    title: 't',
    failure: { id: 'INV-5', message: 'INV-5: wrong', signature: '', task: 'b' },
    tasks: ['a', 'b'].map((name, number) => ({ number, name, isProgram: true })),
    words: [{ object: 'area 0x1000', field: 'pages' }],
    locks: [{ label: 'mutex iopt:pages_mutex', lockClass: 'iopt:pages_mutex' }],
    steps,
    omittedSteps: 0,
    omittedChoices: 0,
    omittedDeviations: [],
    calls: [],
    schedule: [],
    start: {},
    views: [],
  });
  const write = { word: 0, kind: 'write', before: '1', after: '2', held: [], locksBefore: 0 } as const;
  const read = { word: 0, kind: 'read', held: [], locksBefore: 0 } as const;

  test('is told with its schedule: who is held back and how often, and the switches', () => {
    const choice = (at: number, chosen: number) => ({ at, of: ['a', 'b', 'time'], chosen, default: 0 });
    const steps = [0, 1, 2, 3, 4].map((at) => step(at, 1, { choices: [choice(at, at === 3 ? 2 : 1)] }));
    const schedule = [
      { at: 1, until: 5, hold: 'a' },
      { at: 3, to: 'time' },
    ];
    const told = raceReport({ ...planted(steps), schedule }).split('\n');
    const first = told.findIndex((line) => line.startsWith('Schedule:'));
    expect(told.slice(first, first + 4)).toEqual([
      'Schedule: 5 choices, 5 of them another than the running task, by 3 switches',
      '  at choice 0 task b goes on instead of a',
      '  from choice 1 to 4 task a is held back, 3 times',
      '  at choice 3 time goes on instead of a',
    ]);
  });

  test('is told with its whole schedule where only the last steps of a run were kept', () => {
    const pair = `    - map: { iova: 0x2000000, length: 4 KiB }\n    - unmap: { iova: 0x2000000, length: 4 KiB }\n`;
    const text = `title: A long run
kernel-only: { iommu: mock }
tasks:
  a:
${pair.repeat(400)}  b:
    - map: { iova: 0x3000000, length: 4 KiB }
    - unmap: { iova: 0x9000000, length: 4 KiB }
      expect: ok
`;
    const schedule = {
      strategy: 'deviating',
      deviations: [
        { at: 2, until: 4, hold: 'a' },
        { at: 6, to: 'a' },
      ],
    } as const;
    const scenario = loadScenario('long.yaml', text);
    const { trace: long, raceText: told } = explained(scenario, schedule);
    expect(long.omittedSteps).toBeGreaterThan(0);
    const { program } = scenario.kernelOnly ?? {};
    if (program === undefined) throw new Error('kernel-only');
    const { choices } = runProgram(program, { seed: 1, schedule });
    expect(told).toContain(`Schedule: ${choices.length} choices, 2 of them another than the running task`);
    expect(told).toContain('  from choice 2 to 3 task a is held back, 1 time');
    expect(told).toContain('  at choice 6 task a goes on instead of b');
  });

  test('is of accesses that nothing orders', () => {
    const racy = planted([step(0, 0, { accesses: [write] }), step(1, 1, { accesses: [read] })]);
    expect(findRace(racy).pairs).toMatchObject([{ word: 0, first: { at: 0 }, second: { at: 1 } }]);
    const woken = planted([
      step(0, 0, { accesses: [write], wakes: [1] }),
      step(1, 1, { accesses: [read], wokenBy: 0 }),
    ]);
    expect(findRace(woken).pairs).toEqual([]);
    const reads = planted([step(0, 0, { accesses: [read] }), step(1, 1, { accesses: [read] })]);
    expect(findRace(reads).pairs).toEqual([]);
  });

  test('is found where a step touches the word before it takes the lock, or after it has given it back', () => {
    const locks = [
      { op: 'acquire', lock: 0, shared: false },
      { op: 'release', lock: 0, shared: false },
    ] as const;
    const inside = { ...write, held: [0], locksBefore: 1 };
    const after = { ...write, locksBefore: 2 };
    const pairs = (first: TraceStep['accesses'], second: TraceStep['accesses']): number =>
      findRace(planted([step(0, 0, { locks, accesses: first }), step(1, 1, { locks, accesses: second })])).pairs.length;
    expect(pairs([inside], [inside])).toBe(0);
    expect(pairs([inside], [after])).toBe(0);
    expect(pairs([after], [inside])).toBe(1);
    expect(pairs([inside], [write])).toBe(1);
    expect(pairs([write], [after])).toBe(0);
  });

  test('tells the critical sections where locks order everything', () => {
    const locks = [
      { op: 'acquire', lock: 0, shared: false },
      { op: 'release', lock: 0, shared: false },
    ] as const;
    const ordered = planted([
      step(0, 0, { locks, accesses: [{ ...write, held: [0], locksBefore: 1 }] }),
      step(1, 1, { locks, accesses: [{ ...read, held: [0], locksBefore: 1 }], to: 'failure' }),
    ]);
    expect(findRace(ordered).pairs).toEqual([]);
    expect(findRace(ordered).sections).toMatchObject([
      { task: 0, from: 0, to: 0 },
      { task: 1, from: 1, to: 1 },
    ]);
    expect(raceReport(ordered)).toContain('the order of these critical sections may be what went wrong');
  });

  test('says no more than is known where no pair of accesses explains a failure', () => {
    const claims = /One task alone|No pair of accesses|Every recorded pair|critical sections/i;
    const alone = planted([step(0, 1, { accesses: [write], to: 'failure' })]);
    expect(raceReport(alone)).toContain('One task alone: no order of tasks is at fault.');
    const unlocked = raceReport(planted([step(0, 0, {}), step(1, 1, { to: 'failure' })]));
    expect(unlocked).toContain('No pair of accesses to a recorded word explains it; see the steps.');
    expect(unlocked).not.toMatch(/critical sections/i);
    const wrong = inOrder(`${MOCK}tasks: { a: [ { map: { iova: 0x1000000, length: 4 KiB }, expect: EINVAL } ] }\n`);
    expect(wrong.trace.failure?.message).toMatch(/^unexpected answer in task a/);
    expect(wrong.raceText).not.toMatch(claims);
  });

  test('has a line for a failure that is in no step', () => {
    const { trace: lost, raceText: teardown } = corpusFailure('lost-event');
    expect(lost.end?.place).toBe('teardown');
    expect(teardown).toMatch(/^ {7}X +\d+ · · {2}\(teardown\) {21}FAILS$/m);
    const failing = inOrder(`${MOCK}  - unmap: { iova: 0x1000000 }\ntasks: { a: [ { map: { length: 4 KiB } } ] }\n`);
    expect(failing.raceText).toContain('BUG: failure in setup\n');
    expect(failing.raceText).toMatch(/^ +X {2}\(setup\) {2}FAILS$/m);
    expect(failing.raceText).not.toContain('tasks by column');
    // The last task that ran did nothing wrong when the machine is looked through.
    const audited: Trace = { ...planted([step(0, 0, {}), step(1, 1, {})]), end: { place: 'audit', timeNs: 7 } };
    expect(raceReport(audited)).toContain('BUG: INV-5 in audit at the end\n');
    expect(raceReport(audited)).toMatch(/^ +X +7 · · {2}\(audit at the end\) +FAILS$/m);
  });

  test('blames the call that fails, also where it began in the step in which another ended', () => {
    const { trace: grown, raceText: text } = growingRoot();
    const last = grown.steps.at(-1);
    expect(last && callsAt(grown, last).map(({ op, answer }) => `${op} ${answer ?? '?'}`)).toEqual([
      'map ok',
      'unmap ?',
    ]);
    expect(text).toContain('in low (unmap)');
    const wrong = `tasks: { a: [ { map: { length: 4 KiB }, expect: EINVAL }, { unmap: {} } ] }\n`;
    expect(inOrder(`${MOCK}${wrong}`).raceText).toContain('in a (map)');
  });

  test('is of no counts that are only counted up and down, twice in a step or not', () => {
    const words = findRace(growingRoot().trace).pairs.map(({ word }) => word);
    const grown = growingRoot().trace;
    expect(words.map((word) => wordText(wordOf(grown, word)))).toEqual([
      'page table of hwpt 4 .level',
      'page table of hwpt 4 .root',
    ]);
  });
});

function wordOf({ words }: Trace, index: number): Trace['words'][number] {
  const word = words[index];
  if (word === undefined) throw new Error(`no word ${index}`);
  return word;
}

function stepWith({ steps }: Trace, fits: (step: TraceStep) => boolean): TraceStep {
  const found = steps.find(fits);
  if (found === undefined) throw new Error('no such step');
  return found;
}
