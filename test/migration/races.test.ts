/** What else happens to a guest while it is moved, cancelled or refused: nothing is lost, and it can be moved again. */
import { expect, test } from 'vitest';
import { executeScenario, type ScenarioOutcome } from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';

const CARDS = `
      - { bdf: "0000:01:00.0", vendor: 0x1d0f, device: 0xda01, class: 0x080100, migration: {} }
      - { bdf: "0000:02:00.0", vendor: 0x1d0f, device: 0xda01, class: 0x080100, migration: {} }`;

function file(
  steps: string,
  more: { readonly guest?: string; readonly link?: string; readonly rest?: string } = {},
): string {
  return `title: a race
hosts:
  a:
    profile: ampere-altra
    devices: &cards${CARDS}
  b: { profile: ampere-altra, devices: *cards }
links: [{ between: [a, b], bandwidth: ${more.link ?? '10 Gbit/s'}, latency: 50 us }]
guests: { vm: { on: a, vmm: qemu-virt, ${more.guest ?? 'memory: 64 MiB'} } }
${more.rest ?? ''}
steps:
  - boot: vm
${steps.replace(/^\n/, '')}`;
}

async function outcomeOf(text: string): Promise<ScenarioOutcome> {
  const scenario = loadScenario('scenarios/migration/test.yaml', text);
  return (await executeScenario(scenario, { seed: 1, placement: 'inline' })).outcome;
}

async function passes(text: string): Promise<void> {
  const { checks } = await outcomeOf(text);
  expect(checks.filter(({ verdict }) => verdict !== 'pass')).toEqual([]);
  expect(checks).not.toEqual([]);
}

const E1 = 'device: "0000:01:00.0"';
const E2 = 'device: "0000:02:00.0"';
const WRITE = 'write: { to: 0x41000000, length: 4 KiB }';

test('a destination VMM that aborts is a refusal with its conflicts, and the guest is free again', () =>
  passes(`title: abort
hosts:
  a: { profile: ampere-altra, devices: [{ bdf: "0000:7d:00.1", vendor: 0x1d0f, device: 0xda01, class: 0x080100, migration: {} }] }
  b: { profile: hisilicon-d05, devices: [{ bdf: "0000:7d:00.1", vendor: 0x1d0f, device: 0xda01, class: 0x080100, migration: {} }] }
links: [{ between: [a, b], bandwidth: 10 Gbit/s, latency: 50 us }]
guests: { vm: { on: a, vmm: kvmtool-arm64, memory: 4 GiB, content: zero } }
steps:
  - boot: vm
  - plug: { guest: vm, device: "0000:7d:00.1" }
  - migrate: { guest: vm, to: b, as: refused }
  - expect: { of: refused, verdict: refused, reason: destination-refused, conflict: { start: 0xc6010000 } }
  - migrate: { guest: vm, to: b, attached-devices: unplug-first, as: bare }
  - expect: { of: bare, verdict: ok }
`));

test('a device that is being plugged when the migration starts moves along', () =>
  passes(
    file(`
  - plug: { guest: vm, ${E1} }
  - parallel:
      - - plug: { guest: vm, ${E2}, as: plugged }
      - - wait: 1 us
        - migrate: { guest: vm, to: b, as: moved }
  - expect: { of: plugged, verdict: ok }
  - expect: { of: moved, verdict: ok }
  - dma: { guest: vm, ${E2}, ${WRITE}, as: works }
  - expect: { of: works, verdict: ok }
`),
  ));

test.each([53_900, 53_940, 53_980])(
  'devices come back from a cancelled unplug-first before the guest can be moved again (%i us)',
  (us) =>
    passes(
      file(`
  - plug: { guest: vm, ${E1} }
  - plug: { guest: vm, ${E2} }
  - parallel:
      - - migrate: { guest: vm, to: b, attached-devices: unplug-first, cancel-at: precopy, as: cancelled }
      - - wait: ${us} us
        - migrate: { guest: vm, to: b, as: second }
        - wait: 10 ms
  - expect: { of: cancelled, verdict: refused, reason: cancelled }
  - expect: { of: second, verdict: refused, reason: already-migrating }
  - dma: { guest: vm, ${E1}, ${WRITE}, as: first }
  - expect: { of: first, verdict: ok }
`),
    ),
);

test('two devices plugged side by side share one address space; unplugged side by side, none stays', () =>
  passes(
    file(`
  - parallel:
      - - plug: { guest: vm, ${E1} }
      - - plug: { guest: vm, ${E2} }
  - migrate: { guest: vm, to: b, as: moved }
  - expect: { of: moved, verdict: ok }
  - parallel:
      - - unplug: { guest: vm, ${E1} }
      - - unplug: { guest: vm, ${E2} }
  - migrate: { guest: vm, to: a, as: back }
  - expect: { of: back, verdict: ok }
`),
  ));

test('a cancelled unplug-at-stop leaves the command register as it was', () =>
  passes(
    file(`
  - plug: { guest: vm, ${E1} }
  - dma: { guest: vm, ${E1}, ${WRITE} }
  - configure: { guest: vm, ${E1}, bus-master: false }
  - migrate: { guest: vm, to: b, attached-devices: unplug-at-stop, cancel-at: stop-copy, as: cancelled }
  - expect: { of: cancelled, verdict: refused }
  - dma: { guest: vm, ${E1}, ${WRITE}, as: still }
  - expect: { of: still, verdict: refused }
`),
  ));

test('a cancelled unplug-at-stop does not break the work of a device that can be stopped', () =>
  passes(
    file(
      `
  - plug: { guest: vm, ${E1} }
  - parallel:
      - - work: { guest: vm, ${E1}, at: 0x40800000, transfers: 1200, length: 64 KiB, every: 3 us, as: work }
      - - wait: 1 ms
        - migrate: { guest: vm, to: b, attached-devices: unplug-at-stop, cancel-at: switchover, as: cancelled }
  - expect: { of: cancelled, verdict: refused }
  - expect: { of: work, verdict: ok }
`,
      { guest: 'memory: 16 MiB', rest: 'schedule: random' },
    ),
  ));

test('a device comes back by the policy it was plugged with', () =>
  passes(`title: policy
hosts: { a: { profile: hisilicon-d05 }, b: { profile: hisilicon-d05 } }
links: [{ between: [a, b], bandwidth: 10 Gbit/s, latency: 50 us }]
guests: { vm: { on: a, vmm: qemu-virt, memory: 4 GiB, content: zero, hotplug-policy: ignore } }
steps:
  - boot: vm
  - plug: { guest: vm, device: "0000:7d:00.1", as: plugged }
  - expect: { of: plugged, verdict: silent }
  - migrate: { guest: vm, to: b, attached-devices: unplug-first, cancel-at: precopy, as: cancelled }
  - expect: { of: cancelled, verdict: refused, reason: cancelled }
  - dma: { guest: vm, device: "0000:7d:00.1", ${WRITE}, as: works }
  - expect: { of: works, verdict: ok }
`));

test.each([
  ['a', 3],
  ['a', 4],
  ['b', 6],
])('comparing the devices takes no arc of their state machines (%s, %i)', (host, skip) =>
  passes(
    file(`
  - plug: { guest: vm, ${E1} }
  - fault: { host: ${host}, fault: vfio.mig-arc, skip: ${skip}, count: 1 }
  - migrate: { guest: vm, to: b, as: moved }
  - expect: { of: moved, verdict: ok }
`),
  ),
);

test('a DMA is not judged by what somebody else did with the same address of the destination before', () =>
  passes(
    file(
      `
  - plug: { guest: vm, ${E1} }
  - plug: { process: p, ${E1} }
  - dma: { process: p, ${E1}, write: { to: 0x10000000, length: 4 KiB }, as: bad }
  - expect: { of: bad, verdict: refused }
  - unplug: { process: p, ${E1} }
  - dma: { guest: vm, ${E1}, ${WRITE} }
  - parallel:
      - - migrate: { guest: vm, to: b }
      - - wait: 216500 us
        - dma: { guest: vm, ${E1}, ${WRITE}, as: good }
  - expect: { of: good, verdict: ok }
`,
      { guest: 'memory: 256 MiB', rest: 'processes: { p: { on: b } }' },
    ),
  ));

test('much state of a device that does nothing is sent, however many rounds it takes', () =>
  passes(
    file(
      `
  - plug: { guest: vm, ${E1} }
  - migrate: { guest: vm, to: b, as: moved }
  - expect: { of: moved, verdict: ok }
`,
      { link: '1 Gbit/s' },
    ).replaceAll('migration: {}', 'migration: { context: 128 MiB }'),
  ));

test('a working driver whose device leaves finds it gone', async () => {
  const { steps } = await outcomeOf(
    file(
      `
  - plug: { guest: vm, ${E1} }
  - parallel:
      - - work: { guest: vm, ${E1}, at: 0x41000000, transfers: 2000, as: work }
      - - wait: 1000 us
        - migrate: { guest: vm, to: b, attached-devices: unplug-first, as: moved }
  - expect: { of: work, verdict: refused }
`,
      { rest: 'schedule: random' },
    ),
  );
  expect(steps.find(({ kind }) => kind === 'work')?.result.text).toMatch(/then the card is gone/);
});

test('memory that differed stays so, whatever was refused later', async () => {
  const { checks } = await outcomeOf(
    file(`
  - fault: { fault: vmm.page-skipped, count: 1 }
  - migrate: { guest: vm, to: b, as: damaged }
  - expect: { of: damaged, verdict: silent }
  - migrate: { guest: vm, to: b, as: again }
  - expect: { of: again, verdict: refused }
  - expect: { of: vm, memory: intact }
`),
  );
  expect(checks.at(-1)?.verdict).toBe('fail');
});

test('a cancel does not wait for what is being sent', async () => {
  const outcome = await outcomeOf(
    file(
      `
  - migrate: { guest: vm, to: b, cancel-after: 100 ms, as: cancelled }
  - expect: { of: cancelled, verdict: refused, reason: cancelled }
`,
      { guest: 'memory: 2 GiB', link: '100 Mbit/s' },
    ),
  );
  expect(outcome.virtualNs).toBeLessThan(110_000_000);
});

test.each([
  ['held by another guest', '  - plug: { guest: other, device: "0000:01:00.0" }\n', (text: string) => text],
  [
    'another kind of card',
    '',
    (text: string) => text.replace('b: { profile: ampere-altra, devices: *cards }', 'b: { profile: ampere-altra }'),
  ],
])('a dry run sees that the function of the destination does not do: %s', (_what, step, change) =>
  passes(
    change(
      file(
        `  - boot: other
  - plug: { guest: vm, ${E1} }
${step}  - migrate: { guest: vm, to: b, dry-run: true, as: dry }
  - expect: { of: dry, verdict: refused, reason: destination-refused }
`,
      )
        .replace('guests: { vm:', 'guests: { other: { on: b, vmm: qemu-virt, memory: 64 MiB }, vm:')
        .replace(
          'device: 0xda01, class: 0x080100, migration: {} }\n      - { bdf: "0000:02',
          'device: 0x0c0a, class: 0x120000, migration: {} }\n      - { bdf: "0000:02',
        ),
    ),
  ),
);
