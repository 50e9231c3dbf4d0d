/** The report's document and its data: nothing of a run becomes markup, and what belongs together points at each other. */
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { htmlReport } from '../../src/report/html.js';
import { pageRun } from '../../src/report/model.js';
import { deviceStatesOf, migrationsOf, staysOf } from '../../src/report/movements.js';
import type { PageRun, PageScenario } from '../../src/report/page/data.js';
import type { FinishedRun } from '../../src/report/summary.js';
import { executeScenario, type ScenarioOutcome } from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';
import type { TimelineEvent } from '../../src/scenario/timeline.js';
import { LOST_INVALIDATION, onHost } from '../fixtures/on-host.js';

const HOSTILE = '</script><script>window.broken = 1</script><!-- & "x" \u0001';

/** Two expectations that do not hold (lines 17 and 21), one that does (line 22). */
const PLANTED = `title: ${JSON.stringify(HOSTILE)}
covers: [B6.1, RR-15]
hosts:
  a: { profile: ampere-altra }
  b: { profile: hisilicon-d05 }
  c: { profile: amazon-alpine-v3, allow-unsafe-interrupts: true }
links:
  - { between: [a, b], bandwidth: 10 Gbit/s, latency: 50 us }
  - { between: [b, c], bandwidth: 10 Gbit/s, latency: 50 us }
guests:
  vm: { on: a, vmm: qemu-virt, memory: 4 GiB, hotplug-policy: reject, content: zero }

steps:
  - boot: vm
  - migrate: { guest: vm, to: b }
  - plug: { guest: vm, device: "0000:7d:00.1", backend: iommufd, as: vf }
  - expect: { of: vf, verdict: ok }
  - migrate: { guest: vm, to: c }
  - plug: { guest: vm, device: "0000:01:00.0" }
  - dma: { guest: vm, device: "0000:01:00.0", write: { to: 0xfbe00000, length: 4 KiB }, as: frame }
  - expect: { of: frame, verdict: ok }
  - expect: { of: vm, runs-on: c, memory: intact }
`;

const { outcome } = await executeScenario(loadScenario('scenarios/faulty/planted.yaml', PLANTED), {
  seed: 1,
  placement: 'inline',
});

function runOf(...outcomes: readonly ScenarioOutcome[]): FinishedRun {
  return { seed: 1, placement: 'inline', scenarios: outcomes.map((one) => ({ outcome: one, wallMs: 0 })) };
}

function pageOf(one: ScenarioOutcome): PageScenario {
  const [page] = pageRun(runOf(one)).scenarios;
  if (page === undefined) throw new Error('no scenario in the page');
  return page;
}

/** The data of a document, as the page reads it. */
function dataOf(html: string): { readonly type: string; readonly run: PageRun } {
  const [, type = '', text = ''] = /<script id="run" type="([^"]+)">([^<]*)<\/script>/.exec(html) ?? [];
  const json = type === 'application/json' ? text : gunzipSync(Buffer.from(text, 'base64')).toString();
  return { type, run: JSON.parse(json) as PageRun };
}

describe('the document', () => {
  test('a title that ends scripts and opens comments stays text', () => {
    const html = htmlReport(runOf(outcome));
    expect(html.match(/<script/g)).toHaveLength(2);
    expect(html.match(/<\/script/g)).toHaveLength(2);
    expect(html).not.toContain('<!--');
    expect(html).not.toContain('window.broken = 1</script>');
    expect(dataOf(html).run.scenarios[0]?.title).toBe(HOSTILE);
  });

  test('without scripts the totals and the failed checks are there, escaped', () => {
    const file = 'a<b>&"c"/planted\u0002.yaml';
    const text = /<noscript>(.*)<\/noscript>/.exec(htmlReport(runOf({ ...outcome, file })))?.[1] ?? '';
    expect(text).toContain('1 scenario, 1 failed');
    expect(text).toContain('a&lt;b&gt;&amp;&quot;c&quot;/planted\ufffd.yaml:17: vf: verdict ok');
  });

  test('it asks for nothing from anywhere', () => {
    const html = htmlReport(runOf(outcome));
    expect(html).toContain(`content="default-src 'none'`);
    expect(html).not.toMatch(/<(link|img|iframe)\b|\bsrc=|@import|url\(["']?https?:/);
  });

  test('a small run is JSON as text, a large one is compressed, and both say the same', () => {
    const small = dataOf(htmlReport(runOf(outcome)));
    const large = dataOf(htmlReport(runOf(...Array<ScenarioOutcome>(20).fill(outcome))));
    expect(small.type).toBe('application/json');
    expect(large.type).toBe('application/gzip');
    expect(large.run.scenarios).toHaveLength(20);
    expect({ ...large.run.scenarios[0] }).toEqual({ ...small.run.scenarios[0] });
  });

  test('the same run gives the same bytes', () => {
    expect(htmlReport(runOf(outcome))).toBe(htmlReport(runOf(outcome)));
  });
});

describe('the data', () => {
  const page = pageOf(outcome);

  test('failed scenarios and failed checks come first', () => {
    const passing: ScenarioOutcome = { ...outcome, name: 'other', verdict: 'pass', checks: [], subjects: [] };
    const run = pageRun(runOf(passing, { ...outcome, name: 'bad' }));
    expect(run.scenarios.map(({ name }) => name)).toEqual(['bad', 'other']);
    expect(page.checks.map(({ verdict, line }) => [verdict, line])).toEqual([
      ['fail', 17],
      ['fail', 21],
      ['pass', 22],
    ]);
  });

  test('a failed check leads to its step, the step to its ranges and its DMA', () => {
    const [vf, frame, vm] = page.checks.map((check) => page.steps[check.step ?? -1]);
    expect(vf).toMatchObject({ kind: 'plug', line: 16, verdict: 'refused' });
    expect(vf?.ranges.map((range) => page.marked[range])).toMatchObject([
      { start: '0xc6010000', last: '0xc601ffff', kind: 'conflict' },
    ]);
    expect(frame).toMatchObject({ kind: 'dma', line: 20, verdict: 'silent' });
    const [way] = (frame?.ways ?? []).map((index) => page.ways[index]);
    expect(way).toMatchObject({ device: '0000:01:00.0', kind: 'doorbell', where: 'msix@fbe00000', goal: 'memory' });
    expect(way?.explanation).toContain('swallowed it');
    expect(page.marked[way?.range ?? -1]).toMatchObject({ start: '0xfbe00000', last: '0xfbe00fff', kind: 'stray' });
    expect(vm).toMatchObject({ kind: 'migrate', line: 18 });
  });

  test('what ended elsewhere comes before what ended where it should', () => {
    expect(page.ways.map(({ explanation }) => explanation !== undefined)).toEqual([true, false]);
  });

  test("DMA that reached memory, but not its holder's, is no right end", async () => {
    const text = onHost('t', `${LOST_INVALIDATION}  - expect: { of: after, verdict: refused }\n`);
    const scenario = loadScenario('scenarios/faulty/stale.yaml', text);
    const stale = pageOf((await executeScenario(scenario, { seed: 1, placement: 'inline' })).outcome);
    const wrong = stale.ways.filter((way) => way.explanation !== undefined);
    expect(wrong).toMatchObject([{ kind: 'memory', goal: 'memory', step: 5 }]);
    expect(wrong[0]?.explanation).toContain("ended in memory that is not p's");
    expect(stale.steps.map(({ ways }) => ways)).toEqual([[], [], [], [], [], [0]]);
  });

  test('every transaction points at its way', () => {
    for (const { records } of page.transactions)
      for (const record of records)
        for (const way of record.ways) expect(page.ways[way]).toMatchObject({ device: record.device });
  });

  test('what was left out is said', () => {
    const leftOut = [{ kind: 'iommufd.map', count: 17 }];
    const cut = pageOf({ ...outcome, timeline: { ...outcome.timeline, leftOut } });
    expect(cut.leftOut).toEqual(leftOut);
  });

  test('scenarios of one name have different addresses', () => {
    const twin = { ...outcome, file: 'scenarios/other/planted.yaml' };
    const odd = { ...outcome, name: 'a/b c' };
    const ids = pageRun(runOf(outcome, twin, twin, odd)).scenarios.map(({ id }) => id);
    expect(ids).toEqual(['planted', 'other-planted', 'planted-2', 'a-b-c']);
  });

  test('guests were where they were', () => {
    expect(page.stays.map(({ host }) => host)).toEqual(['a', 'b', 'c']);
    expect(page.migrations.map(({ from, to, outcome: how }) => [from, to, how])).toEqual([
      ['a', 'b', 'completed'],
      ['b', 'c', 'completed'],
    ]);
  });
});

describe('the ranges of a host', () => {
  const rangesOfHost = (name: string, hosts: string) =>
    executeScenario(
      loadScenario(
        `scenarios/faulty/${name}.yaml`,
        `title: t\nhosts:\n  a: ${hosts}\nguests:\n  vm: { on: a, vmm: qemu-virt, memory: 4 GiB, content: zero }\nsteps:\n  - boot: vm\n`,
      ),
      { seed: 1, placement: 'inline' },
    ).then((run) => pageOf(run.outcome).lanes.find(({ title }) => title === 'host a')?.spans ?? []);

  test('guest RAM that dma-ranges leave out is a range of its own', async () => {
    const spans = await rangesOfHost('juno', '{ profile: arm-juno }');
    expect(spans.filter(({ kind }) => kind === 'outside')).toEqual([
      { start: '0x40000000', last: '0x7fffffff', label: 'vm, not in dma-ranges of pci0000:00', kind: 'outside' },
      { start: '0x100000000', last: '0x13fffffff', label: 'vm, not in dma-ranges of pci0000:00', kind: 'outside' },
    ]);
  });

  test('BARs are there, and what several IOMMUs reserve is there once', async () => {
    const spans = await rangesOfHost('seattle', '{ profile: amd-seattle }');
    expect(spans).toContainEqual({ start: '0x50000000', last: '0x500fffff', label: '0000:02:00.0 BAR 2', kind: 'bar' });
    expect(spans.filter(({ kind }) => kind === 'outside')).toEqual([]);
    const d05 = await rangesOfHost('d05', '{ profile: hisilicon-d05 }');
    expect(d05.filter(({ kind }) => kind === 'software-msi')).toHaveLength(1);
  });
});

describe('movements', () => {
  const event = (timeNs: number, kind: string, data: TimelineEvent['data'] = {}): TimelineEvent => ({
    ...{ timeNs, node: 'main', kind },
    data: { guest: 'vm', ...data },
  });
  const round = (timeNs: number, pages: number, more: TimelineEvent['data'] = {}): TimelineEvent =>
    event(timeNs, 'migration.round', { pages, zeroPages: 0, wireBytes: pages * 4096, elapsedNs: 10, ...more });

  test('phases come from events where there are some', () => {
    const [migration] = migrationsOf(
      [
        event(0, 'migration.start', { from: 'a', to: 'b' }),
        event(0, 'migration.phase', { phase: 'setup' }),
        event(5, 'migration.phase', { phase: 'precopy' }),
        round(15, 100, { dirtyPages: 7 }),
        event(15, 'migration.phase', { phase: 'cancel' }),
        event(20, 'migration.end', { outcome: 'failed', reason: 'link-lost', downtimeNs: 0 }),
      ],
      100,
    );
    expect(migration?.phases).toEqual([
      { name: 'setup', startNs: 0, endNs: 5 },
      { name: 'precopy', startNs: 5, endNs: 15 },
      { name: 'cancel', startNs: 15, endNs: 20 },
    ]);
    expect(migration?.rounds[0]?.dirtyPages).toBe(7);
    expect(migration).toMatchObject({ outcome: 'failed', reason: 'link-lost' });
  });

  test('what ends a migration is no phase, and a round says who wrote what is dirty', () => {
    const [migration] = migrationsOf(
      [
        event(0, 'migration.start', { from: 'a', to: 'b' }),
        event(0, 'migration.phase', { phase: 'precopy' }),
        round(15, 100, { dirtyPages: 7, memoryPages: 5, devicePages: 3, deviceBytes: 4096 }),
        event(20, 'migration.phase', { phase: 'resume' }),
        event(30, 'migration.phase', { phase: 'completed' }),
        event(30, 'migration.end', { outcome: 'completed', downtimeNs: 10 }),
      ],
      100,
    );
    expect(migration?.phases).toEqual([
      { name: 'precopy', startNs: 0, endNs: 20 },
      { name: 'resume', startNs: 20, endNs: 30 },
    ]);
    expect(migration?.rounds[0]).toMatchObject({ dirtyPages: 7, memoryPages: 5, devicePages: 3, deviceBytes: 4096 });
  });

  test('states of a device begin when it is opened and end when it is given back', () => {
    const at = (timeNs: number, kind: string, data: TimelineEvent['data']): TimelineEvent => ({
      ...{ timeNs, node: 'a', kind },
      data: { device: 'card', ...data },
    });
    const state = (timeNs: number, from: string, to: string) => at(timeNs, 'vfio.mig-state', { from, to });
    const opened = [at(5, 'vfio.bind', {}), at(6, 'iommu.attach', { domain: 'unmanaged' })];
    const moved = [...opened, state(10, 'RUNNING', 'PRE_COPY'), state(20, 'PRE_COPY', 'STOP_COPY')];
    const found = (events: readonly TimelineEvent[]) =>
      deviceStatesOf(events, 100).map((one) => [one.state, one.startNs, one.endNs]);
    expect(found(opened)).toEqual([]);
    expect(found(moved)).toEqual([
      ['RUNNING', 5, 10],
      ['PRE_COPY', 10, 20],
      ['STOP_COPY', 20, 100],
    ]);
    const back = at(30, 'iommu.attach', { domain: 'dma' });
    expect(found([...moved, back, state(30, 'STOP_COPY', 'RUNNING')]).at(-1)).toEqual(['STOP_COPY', 20, 30]);
    const again = [at(40, 'vfio.bind', {}), state(50, 'RUNNING', 'STOP')];
    expect(found([...moved, back, ...again]).slice(3)).toEqual([
      ['RUNNING', 40, 50],
      ['STOP', 50, 100],
    ]);
    // Without the event that opened it, what was before its first change is not known.
    expect(found([state(10, 'RUNNING', 'ERROR')])).toEqual([['ERROR', 10, 100]]);
  });

  test('without them phases lie around the rounds, and a round leaves what the next one sends', () => {
    const [migration] = migrationsOf(
      [
        event(0, 'migration.start', { from: 'a', to: 'b' }),
        round(15, 100),
        round(25, 8),
        event(40, 'migration.end', { outcome: 'completed', downtimeNs: 25 }),
      ],
      100,
    );
    expect(migration?.phases.map(({ name, startNs, endNs }) => [name, startNs, endNs])).toEqual([
      ['setup', 0, 5],
      ['precopy', 5, 15],
      ['stop-copy', 15, 25],
      ['switchover', 25, 40],
    ]);
    expect(migration?.rounds.map(({ dirtyPages }) => dirtyPages)).toEqual([8, 0]);
  });

  test('a run that ends in the middle leaves an unfinished migration, and the guest at home', () => {
    const events = [
      event(0, 'vmm.boot', { host: 'a' }),
      event(1, 'migration.start', { from: 'a', to: 'b' }),
      round(15, 100),
    ];
    expect(migrationsOf(events, 50)).toMatchObject([{ outcome: 'unfinished', endNs: 50 }]);
    expect(staysOf(events, 50)).toEqual([{ guest: 'vm', host: 'a', startNs: 0, endNs: 50 }]);
  });
});
