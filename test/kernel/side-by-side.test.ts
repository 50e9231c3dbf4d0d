/** System calls side by side on a kernel-only machine, where what one answers says what another may. */
import { describe, expect, test, vi } from 'vitest';
import type { KernelMachine } from '../../src/host/kernel-machine.js';
import type { Program } from '../../src/host/program.js';
import { runProgram } from '../../src/host/run-program.js';
import { ArmSmmuDomain } from '../../src/kernel/iommu/arm-smmu-v3/domain.js';
import { ArmSmmuV3 } from '../../src/kernel/iommu/arm-smmu-v3/driver.js';
import { IommufdVeventq } from '../../src/kernel/iommufd/eventq.js';
import { loadScenario } from '../../src/scenario/load.js';

function programOf(text: string): Program {
  const { kernelOnly } = loadScenario('side-by-side.yaml', text);
  if (kernelOnly === undefined) throw new Error('the scenario is kernel-only');
  return kernelOnly.program;
}

/** A mock device in a guest's table, events of which go to a vIOMMU's queue. */
function guestWith(depth: number, events: number): string {
  return `kernel-only: { iommu: mock }
setup:
  - device: { as: nic }
  - hwpt: { as: parent, device: nic, nesting: true }
  - viommu: { as: viommu, device: nic, on: parent }
  - vdevice: { as: vdev, viommu: viommu, device: nic, id: 0x99 }
  - hwpt: { as: nested, device: nic, on: viommu, iotlb: 1 }
  - replace: { device: nic, to: nested }
  - veventq: { as: events, viommu: viommu, depth: ${depth} }
${'  - vevent: { device: nic }\n'.repeat(events)}`;
}

/** What the tasks' calls answer under each of many schedules, once each. */
function answers(text: string, schedules = 100): string[] {
  const program = programOf(text);
  const seen = new Set<string>();
  for (let seed = 0; seed < schedules; seed++) {
    const { failure, results } = runProgram(program, { seed: 1, schedule: { strategy: 'explored', seed } });
    expect([seed, failure?.message]).toEqual([seed, undefined]);
    const told = results.filter(({ task }) => task !== 'setup').sort((a, b) => (a.task < b.task ? -1 : 1));
    seen.add(told.map(({ task, rc, text: answer }) => `${task} ${rc > 0 ? rc : answer}`).join(', '));
  }
  return [...seen].sort();
}

test('an event queue that there is no memory for is in nobody’s way', () => {
  const told = answers(`title: Two queues, and an allocation that fails
kernel-only: { iommu: mock }
setup:
  - device: { as: nic }
  - hwpt: { as: parent, device: nic, nesting: true }
  - viommu: { as: viommu, device: nic, on: parent }
faults:
  - { fault: kernel.kmalloc, skip: 1, count: 1 }
tasks:
  a:
    - veventq: { as: first, viommu: viommu, depth: 1 }
      expect: [ok, ENOMEM, EEXIST]
  b:
    - veventq: { as: second, viommu: viommu, depth: 1 }
      expect: [ok, ENOMEM, EEXIST]
`);
  expect(told).toEqual(['a ENOMEM, b ok', 'a ok, b ENOMEM']);
});

test('a reader of an event queue has in hand what it puts back: another finds none, or a later one first', () => {
  const told = (events: number): string[] =>
    answers(`title: Two readers of one queue, one of them with too small a buffer
${guestWith(2, events)}tasks:
  a:
    - read-events: { queue: events, length: 8 }
  b:
    - read-events: { queue: events, length: 24 }
`);
  expect(told(1)).toEqual(['a ok, b 12', 'a ok, b ok']);
  expect(told(2)).toEqual(['a ok, b 12', 'a ok, b 24']);
});

describe('two functions of one slot', () => {
  const text = `title: One of two functions moves
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - ioas: { as: main }
  - ioas: { as: other }
  - map: { ioas: other, iova: 0x1000000, length: 4 KiB }
  - device: { as: nic }
  - device: { as: disk, beside: nic }
tasks:
  a:
    - dma: { device: disk, iova: 0x1000000, length: 4 KiB }
      expect: EFAULT
    - replace: { device: nic, to: other }
      expect: ok
    - dma: { device: disk, iova: 0x1000000, length: 4 KiB }
      expect: ok
`;

  test('move together', () => expect(answers(text, 4)).toEqual(['a EFAULT, a ok, a ok']));

  test('one that was left behind is told, although nobody uses it', () => {
    const attach = Reflect.get(ArmSmmuV3.prototype, 'attach_dev');
    vi.spyOn(ArmSmmuV3.prototype, 'attach_dev').mockImplementation(function* (this: ArmSmmuV3, domain, device) {
      const isSecond = device.name.endsWith('.1') && domain instanceof ArmSmmuDomain;
      return yield* attach.call(this, isSecond ? this.identityDomain : domain, device);
    });
    const program = programOf(`${text.replace(/tasks:[^]*/, '')}tasks: { a: [{ ioas: { as: x } }] }\n`);
    const { failure } = runProgram(program, { seed: 1, schedule: { strategy: 'in-order' } });
    expect(failure?.message).toContain('0000:00:00.1 is not in the domain of its group (unmanaged)');
  });
});

test('a slot has eight functions at a time, however many there were', () => {
  const one = (as: string, n: number): string => `  - device: { as: ${as}${n}, beside: nic }\n`;
  const eight = Array.from({ length: 8 }, (_, i) => `${one('x', i)}  - unplug: { device: x${i} }\n`).join('');
  const seven = Array.from({ length: 7 }, (_, i) => one('y', i)).join('');
  const setup = `  - device: { as: nic }\n${eight}${seven}`;
  const task = `  a:\n    - device: { as: ninth, beside: nic }\n      expect: ENOSPC\n`;
  const text = `title: Nine functions\nkernel-only: { iommu: arm-smmu-v3 }\nsetup:\n${setup}tasks:\n${task}`;
  expect(answers(text, 1)).toEqual(['a ENOSPC']);
});

test('that events were lost is told with the last number, although a reader had it in hand when more were lost', () => {
  const told = new Set<string>();
  const program = programOf(`title: Events that are lost while one reader has too small a buffer
${guestWith(1, 2)}tasks:
  reader:
    - read-events: { queue: events, length: 16 }
  nic:
    - vevent: { device: nic }
`);
  for (let seed = 0; seed < 60; seed++) {
    let queue: IommufdVeventq | undefined;
    const onMachine = ({ ictx }: KernelMachine): void => {
      queue = ictx.objects.objects().find((object) => object instanceof IommufdVeventq);
    };
    runProgram(program, { seed: 1, schedule: { strategy: 'explored', seed }, onMachine });
    told.add(
      (queue?.deliver ?? []).map(({ sequence, bytes }) => `${bytes === undefined ? 'lost' : ''}${sequence}`).join(),
    );
  }
  // Never 1: the third event is the last that was lost, or it found its place.
  expect([...told].sort()).toEqual(['2', 'lost2']);
});
