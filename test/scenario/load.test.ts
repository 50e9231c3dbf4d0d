import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { loadScenario, readScenario } from '../../src/scenario/load.js';
import { scenarioSchemaText } from '../../src/scenario/schema.js';
import { InputError } from '../../src/scenario/text.js';

const files = readdirSync('scenarios', { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.yaml') && !file.startsWith('hosts'))
  .map((file) => join('scenarios', file));

describe('shipped scenarios', () => {
  test.each(files)('%s is accepted', (file) => {
    const scenario = readScenario(file);
    expect(scenario.steps.length + (scenario.kernelOnly?.program.tasks.length ?? 0)).toBeGreaterThan(0);
    expect(scenario.covers.length).toBeGreaterThan(0);
  });
  test('there are many', () => expect(files.length).toBeGreaterThan(30));
});

const BASE = `title: t
hosts:
  a: { profile: ampere-altra }
  b: { profile: hisilicon-d05 }
links:
  - { between: [a, b], bandwidth: 10 Gbit/s, latency: 50 us }
guests:
  vm: { on: a, vmm: qemu-virt, memory: 4 GiB }
processes:
  p: { on: a, ioas: [main, other] }
steps:
  - boot: vm
`;

function refusal(text: string): string {
  try {
    loadScenario('f.yaml', text);
  } catch (error) {
    if (error instanceof InputError) return error.message;
    throw error;
  }
  return 'accepted';
}

describe('what a scenario means', () => {
  test('addresses are exact, units are converted, steps know their place', () => {
    const scenario = loadScenario(
      'dir/s.yaml',
      `${BASE}  - map: { process: p, iova: 0xfffffffffffff000, length: 4 KiB }\n`,
    );
    expect(scenario.name).toBe('s');
    expect(scenario.links).toEqual([
      { between: ['a', 'b'], bandwidthBitsPerSecond: 10_000_000_000, latencyNs: 50_000 },
    ]);
    expect(scenario.guests.get('vm')).toMatchObject({ memory: 4n << 30n, 'hotplug-policy': 'reject' });
    expect(scenario.hosts.map((host) => host.name)).toEqual(['a', 'b']);
    expect(scenario.steps.map((step) => step.at)).toEqual([
      { line: 12, column: 5 },
      { line: 13, column: 5 },
    ]);
    expect(scenario.steps[1]).toMatchObject({ step: { map: { iova: 0xfffffffffffff000n, length: 4096n } } });
  });

  test('hosts can be varied', () => {
    const { hosts } = loadScenario(
      'f.yaml',
      `title: t
hosts:
  a:
    profile: ampere-altra
    memory: [{ start: 0x80000000, size: 1 GiB }]
    kernel: 6.1.0
    devices: [{ bdf: "0000:05:00.0", vendor: 1, device: 2, class: 0x020000 }]
    reserved-regions: |
      0x00000000a0000000 0x00000000a00fffff reserved
steps: [{ wait: 1 ms }]
`,
    );
    expect(hosts[0]).toMatchObject({ memory: [{ start: 0x80000000n, last: 0xbfffffffn }], kernelRelease: '6.1.0' });
    expect(hosts[0]?.functions.at(-1)).toMatchObject({ bdf: '0000:05:00.0', classCode: 0x020000 });
    expect(hosts[0]?.reservedRegions.at(-1)).toMatchObject({ start: 0xa0000000n, type: 'reserved' });
  });
});

const TASKS = 'tasks:\n  a: [{ ioas: { as: x } }]\n';

describe('what is refused, and where', () => {
  const step = (text: string): string => `${BASE}  - ${text}\n`;
  test.each<[string, string, string]>([
    ['no YAML', 'title: [', 'f.yaml:1:'],
    ['duplicate key', 'title: a\ntitle: b\n', 'f.yaml:2:1: Map keys must be unique'],
    ['empty file', '', 'f.yaml:1:1: '],
    ['an empty file', '', 'f.yaml:1:1: the file is empty'],
    ['nothing but comments', '# later\n', 'f.yaml:1:1: the file is empty'],
    ['missing key', BASE.replace('memory: 4 GiB', 'memry: 4 GiB'), 'f.yaml:8:7: missing key "memory": expected a size'],
    ['missing key at the top', 'title: t\nsteps: []\n', 'f.yaml:1:1: missing key "hosts": expected keys with values\n'],
    [
      'a list where keys belong',
      'title: t\nhosts: []\nsteps: []\n',
      'f.yaml:2:8: expected keys with values, found a list',
    ],
    ['text where a list belongs', `covers: A1\n${BASE}`, 'f.yaml:1:9: expected a list, found A1'],
    [
      'a value that is not offered',
      `schedule: lucky\n${BASE}`,
      'f.yaml:1:11: expected in-order, random or keys with values, found lucky',
    ],
    [
      'ats of devices behind no SMMU',
      'title: t\nkernel-only: { iommu: mock, ats: true }\ntasks:\n  a: [{ ioas: { as: x } }]\n',
      'f.yaml:2:34: only devices behind iommu: arm-smmu-v3 have ats',
    ],
    [
      'a neighbour behind no SMMU',
      'title: t\nkernel-only: { iommu: mock }\ntasks:\n  a: [{ device: { as: x } }, { device: { as: y, beside: x } }]\n',
      'f.yaml:4:57: only with iommu: arm-smmu-v3: its devices have slots',
    ],
    [
      'no errno to expect',
      'title: t\nkernel-only: {}\ntasks:\n  a:\n    - ioas: { as: x }\n      expect: EWHAT\n',
      'f.yaml:6:15: expected ok or the name of an error',
    ],
    ...[
      ['a task called time', 'tasks:\n  time: [{ ioas: { as: x } }]\n', 'f.yaml:4:3: a task is not called time'],
      ['a task called setup', 'tasks:\n  setup: [{ ioas: { as: x } }]\n', 'f.yaml:4:3: a task is not called time'],
      [
        'no capability',
        `processes: { p: { capabilities: [CAP_IPC_LOK] } }\n${TASKS}`,
        'f.yaml:3:34: expected a capability of Linux',
      ],
      [
        'a fault of hardware that is not there',
        `faults: [{ fault: smmu.drop-tlbi }]\n${TASKS}`,
        'f.yaml:3:19: smmu.drop-tlbi cannot strike without iommu: arm-smmu-v3',
      ],
      [
        'a fault of a VMM',
        `fails-with: { fault: vmm.irq-lost }\n${TASKS}`,
        'f.yaml:3:22: vmm.irq-lost cannot strike: a kernel-only machine has none of that',
      ],
      ['an empty buffer', `buffers: { b: { length: 0 KiB } }\n${TASKS}`, 'f.yaml:3:25: expected more than nothing'],
      ['an empty file', `files: { b: { length: 0 KiB } }\n${TASKS}`, 'f.yaml:3:23: expected more than nothing'],
      [
        'a page of 1 GiB',
        `buffers: { b: { length: 4 KiB, contiguity: huge-1g } }\n${TASKS}`,
        'f.yaml:3:44: expected scattered, short-runs, pages or huge-2m',
      ],
      ['a buffer without room', `buffers: { b: { length: 256 MiB } }\n${TASKS}`, 'f.yaml:3:15: no room for it'],
      [
        'a file without room',
        `buffers: { b: { length: 1 KiB, contiguity: huge-2m } }\nfiles: { f: { length: 254 MiB } }\n${TASKS}`,
        'f.yaml:4:13: no room for it in the 256 MiB of a kernel-only machine',
      ],
      [
        'a bitmap without room',
        'tasks:\n  a: [{ read-dirty: { hwpt: main, iova: 0, length: 4 GiB } }]\n',
        'expected at most 1920 MiB: a task has no more room for it',
      ],
      [
        'a DMA without end',
        'tasks:\n  a: [{ dma: { device: nic, iova: 0, length: 1 TiB } }]\n',
        'expected at most 1 GiB: a run of more takes too long',
      ],
      ['two calls in one', 'tasks:\n  a: [{ ioas: { as: x }, unmap: {} }]\n', 'keys, found ioas and unmap: ioas,'],
      ['a switch to nobody', `schedule: [{ at: 1, to: b }]\n${TASKS}`, 'f.yaml:3:25: no task is called b'],
      ['nobody is held', `schedule: [{ at: 1, until: 2, hold: b }]\n${TASKS}`, 'f.yaml:3:37: no task is called b'],
      ['no call at all', 'tasks:\n  a: [{ mpa: {} }]\n', 'keys, found mpa: ioas,'],
      ['a task without calls', 'tasks:\n  a: []\n', 'f.yaml:4:6: expected a list of 1 or more'],
    ].map(([what = '', text = '', message = '']): [string, string, string] => [
      `of a kernel-only scenario, ${what}`,
      `title: t\nkernel-only: {}\n${text}`,
      message,
    ]),
    ['unknown key', BASE.replace('vmm:', 'colour: blue, vmm:'), 'f.yaml:8:16: unknown key "colour"'],
    ['unknown key at the top', `${BASE}bogus: 1\n`, 'f.yaml:13:1: unknown key "bogus"'],
    [
      'unknown profile',
      BASE.replace('ampere-altra', 'ampere'),
      'f.yaml:3:17: unknown profile; one of amazon-alpine-v3, amd-seattle, ampere-altra',
    ],
    ['unknown host of a guest', BASE.replace('on: a, vmm', 'on: c, vmm'), 'f.yaml:8:13: unknown host c'],
    ['unknown host of a link', BASE.replace('[a, b]', '[a, c]'), 'f.yaml:6:20: unknown host c'],
    ['link to itself', BASE.replace('[a, b]', '[a, a]'), 'f.yaml:6:5: a link is between two hosts'],
    ['unknown VMM', BASE.replace('qemu-virt', 'qemu'), 'f.yaml:8:21: unknown vmm "qemu"'],
    ['size without unit', BASE.replace('4 GiB', '4'), 'f.yaml:8:40: expected a size, e.g. 4 GiB'],
    ['size in another unit', BASE.replace('4 GiB', '4 GB'), 'f.yaml:8:40: expected a size, e.g. 4 GiB, not "4 GB"'],
    ['size that is no page', BASE.replace('4 GiB', '4097 KiB'), 'f.yaml:8:40: memory of'],
    ['size beyond 64 bits', BASE.replace('4 GiB', '16777216 TiB'), 'f.yaml:8:40: a size is below 2^64'],
    ['an alias without its anchor', step('boot: *vm'), 'f.yaml:13:11: no anchor &vm comes before'],
    ['a file that is not there', BASE.replace('ampere-altra', 'none.yaml'), 'no such file: none.yaml'],
    ['duration', BASE.replace('50 us', '50'), 'f.yaml:6:55: expected a duration'],
    ['duration beyond all', BASE.replace('50 us', '200000 min'), 'a duration of at most 104 days, e.g. 50 us, not'],
    ['no time at all', `${BASE}limit: 0 s\n`, 'f.yaml:13:8: expected a duration above 0'],
    ['schedule of nobody', `${BASE}schedule: { c: [] }\n`, 'f.yaml:13:16: unknown host c'],
    ['a second document', `${BASE}---\n${BASE}`, 'f.yaml:13:1: another document begins here'],
    ['a binary file', `\u007fELF\0${BASE}`, 'f.yaml:1:1: the file is binary'],
    ['bandwidth', BASE.replace('10 Gbit/s', '10 GB/s'), 'f.yaml:6:35: expected a bandwidth'],
    [
      'policy',
      BASE.replace('4 GiB }', '4 GiB, hotplug-policy: hope }'),
      'unknown hotplug-policy "hope"; one of reject',
    ],
    ['unknown step', step('jump: vm'), 'f.yaml:13:5: a step has one of these keys'],
    ['two steps in one', step('{ boot: vm, wait: 1 ms }'), 'f.yaml:13:5: a step has one of these keys'],
    ['unknown guest', step('boot: wm'), 'f.yaml:13:11: unknown guest wm'],
    ['unknown process', step('map: { process: q, length: 4 KiB }'), 'f.yaml:13:10: unknown process q'],
    ['unknown ioas', step('map: { process: p, ioas: x, length: 4 KiB }'), 'process p has no ioas x'],
    [
      'negative address',
      step('map: { process: p, iova: -1, length: 4 KiB }'),
      'f.yaml:13:30: an address is not negative',
    ],
    ['address beyond 64 bits', step('map: { process: p, iova: 0x10000000000000000, length: 4 KiB }'), 'below 2^64'],
    [
      'address in quotes',
      step('map: { process: p, iova: "0x1000", length: 4 KiB }'),
      'f.yaml:13:30: expected an address',
    ],
    ['reversed range', step('allow: { process: p, ranges: [{ start: 0x2000, last: 0x1fff }] }'), 'range is reversed'],
    ['range without end', step('allow: { process: p, ranges: [{ start: 0x2000 }] }'), 'start and either last or size'],
    [
      'overlapping ranges',
      step('allow: { process: p, ranges: [{ start: 0, last: 0xfff }, { start: 0x800, size: 4 KiB }] }'),
      'f.yaml:13:62: range overlaps another',
    ],
    [
      'unknown device',
      step('plug: { guest: vm, device: "0000:99:00.0" }'),
      'f.yaml:13:32: unknown device 0000:99:00.0',
    ],
    [
      'a device of another host',
      step('plug: { process: p, device: "0000:7d:00.1" }'),
      'unknown device 0000:7d:00.1 on host a',
    ],
    ['no PCI function', step('plug: { guest: vm, device: eth0 }'), 'f.yaml:13:32: expected a PCI function'],
    ['nobody', step('plug: { device: "0000:01:00.0" }'), 'f.yaml:13:11: say who does it'],
    ['too many', step('plug: { guest: vm, process: p, device: "0000:01:00.0" }'), 'f.yaml:13:11: say who does it'],
    ['unknown destination', step('migrate: { guest: vm, to: c }'), 'f.yaml:13:31: unknown host c'],
    [
      'no way there',
      BASE.replace(/links:\n.*\n/, '') + '  - migrate: { guest: vm, to: b }\n',
      'no link leads to host b',
    ],
    ['unknown fault', step('fault: { host: a, fault: meteor }'), 'f.yaml:13:30: unknown fault "meteor"'],
    ['fault of a link in a host', step('fault: { host: a, fault: link.lost }'), 'link.lost is a fault of links'],
    ['fault nowhere', step('fault: { fault: mm.pin }'), 'a fault is in a host or in a link'],
    ['expecting of nothing', step('expect: { of: vf, verdict: ok }'), 'f.yaml:13:19: vf is no result'],
    ['expecting nothing', step('expect: { of: vm }'), 'f.yaml:13:13: nothing is expected'],
    ['memory of a process', step('expect: { of: p, memory: intact }'), 'expectations about a guest'],
    ['unknown errno', step('expect: { of: vm, errno: EWHAT }'), 'f.yaml:13:30: unknown errno "EWHAT"'],
    ['a name used twice', `${BASE}  - map: { process: p, length: 4 KiB, as: vm }\n`, 'f.yaml:13:43: vm is taken'],
    [
      'a bad name',
      BASE.replace('  vm:', '  "v m":').replace('boot: vm', 'wait: 1 s'),
      'f.yaml:8:3: a name starts with',
    ],
    ['inside parallel', step('parallel: [[boot: vm], [boot: wm]]'), 'f.yaml:13:35: unknown guest wm'],
    [
      'overlapping memory banks',
      BASE.replace(
        '{ profile: ampere-altra }',
        '{ profile: ampere-altra, memory: [{ start: 0, size: 1 GiB }, { start: 0x1000, size: 1 GiB }] }',
      ),
      'f.yaml:3:67: memory bank overlaps 0x0-0x3fffffff',
    ],
    [
      'a function behind no bridge',
      BASE.replace(
        'hisilicon-d05 }',
        'hisilicon-d05, devices: [{ bdf: "0000:01:00.0", vendor: 1, device: 1, class: 1 }] }',
      ),
      'f.yaml:4:49: no host bridge leads to 0000:01:00.0',
    ],
    [
      'pasted regions of an unknown type',
      BASE.replace('ampere-altra }', 'ampere-altra, reserved-regions: "0x0 0x1 odd" }'),
      'f.yaml:3:49: unknown type of reserved region',
    ],
    [
      'an alias bomb',
      `a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n`,
      'f.yaml:1:1: ',
    ],
    ['depth', '['.repeat(20_000), 'f.yaml:1:'],
  ])('%s', (_what, text, message) => {
    expect(refusal(text)).toContain(message);
  });

  test('every wrong reference is reported at once', () => {
    const message = refusal(`${BASE}  - boot: x\n  - boot: y\n`);
    expect(message.split('\n')).toEqual(['f.yaml:13:11: unknown guest x', 'f.yaml:14:11: unknown guest y']);
  });
});

test('docs/scenario.schema.json is what the program says', () => {
  expect(readFileSync('docs/scenario.schema.json', 'utf8')).toBe(scenarioSchemaText());
});

test('a schedule that does not rise is refused where it falls: what comes later would never apply', () => {
  const kernel = 'title: t\nkernel-only: {}\ntasks:\n  a: [ioas: { as: x }]\n';
  const schedule = (list: string): string => refusal(`${kernel}schedule:\n${list}`);
  expect(schedule('  - { at: 0, to: a }\n  - { at: 3, to: a }\n')).toBe('accepted');
  expect(schedule('  - { at: 3, to: a }\n  - { at: 0, to: a }\n')).toContain('f.yaml:7:11: choice 0 after choice 3');
  expect(schedule('  - { at: 3, to: a }\n  - { at: 3, to: a }\n')).toContain('f.yaml:7:11: choice 3 after choice 3');
  expect(schedule('  - { at: 3, until: 9, hold: a }\n  - { at: 4, to: a }\n')).toBe('accepted');
  expect(schedule('  - { at: 3, until: 3, hold: a }\n')).toContain(
    'f.yaml:6:21: until choice 3: expected one after choice 3',
  );
  expect(schedule('  - { at: 3, to: a, hold: a }\n')).toContain('f.yaml:6:');
  expect(refusal(BASE + 'schedule: { a: [{ at: 3, to: x }, { at: 1, to: x }] }\n')).toContain(
    'choice 1 after choice 3',
  );
});
