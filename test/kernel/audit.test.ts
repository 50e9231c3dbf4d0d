/** The audit of an iommufd: each rule is seen when the state is broken on purpose, and nothing is said of one that is whole. */
import { describe, expect, test } from 'vitest';
import type { KernelMachine } from '../../src/host/kernel-machine.js';
import { runProgram } from '../../src/host/run-program.js';
import type { IoptArea } from '../../src/kernel/iommufd/area.js';
import type { DomainLeaf } from '../../src/kernel/iommu/domain.js';
import { Ioas } from '../../src/kernel/iommufd/ioas.js';
import type { InvariantId } from '../../src/runtime/invariants.js';
import { InvariantError } from '../../src/runtime/task.js';
import { loadScenario } from '../../src/scenario/load.js';

const scenario = loadScenario(
  'audit.yaml',
  `title: an address space with everything in it
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - device: { as: nic }
  - map: { iova: 0x1000000, length: 16 KiB }
  - map: { iova: 0x2000000, length: 8 KiB }
  - allow: { ranges: [{ start: 0x1000000, last: 0x1ffffff }] }
tasks:
  a:
    - ioas: { as: other }
`,
);

interface Broken {
  readonly machine: KernelMachine;
  readonly ioas: Ioas;
  readonly area: IoptArea;
}

/** What the audit says of a machine on which something was broken; undefined for nothing. */
function auditAfter(break_: (state: Broken) => void): InvariantError | undefined {
  const program = scenario.kernelOnly?.program;
  if (program === undefined) throw new Error('kernel-only');
  let error: unknown;
  runProgram(program, {
    seed: 1,
    schedule: { strategy: 'in-order' },
    onMachine(machine) {
      const ioas = machine.ictx.objects.objects().find((object) => object instanceof Ioas);
      const area = ioas?.iopt.areas.firstOverlap(0x1000000n, 0x1000000n);
      if (ioas === undefined || area === undefined) throw new Error('the setup maps');
      break_({ machine, ioas, area });
      try {
        machine.audit();
      } catch (thrown) {
        error = thrown;
      }
    },
  });
  expect(error === undefined || error instanceof InvariantError).toBe(true);
  return error as InvariantError | undefined;
}

/** A property that a getter answers from now on. */
function answers(object: object, name: string, value: unknown): void {
  Object.defineProperty(object, name, { configurable: true, get: () => value });
}

/** The tables of an address space's domains show something else from now on. */
function tablesOf(ioas: Ioas, change: (leaves: readonly DomainLeaf[]) => readonly DomainLeaf[]): void {
  for (const domain of ioas.iopt.domains) {
    const changed = change([...(domain.leaves?.() ?? [])]);
    domain.leaves = () => changed;
  }
}

/** Pins of the page behind an address are given back. */
function unpin({ machine, ioas }: Broken, iova: number): void {
  const pa = ioas.iopt.domains[0]?.iova_to_phys(iova) ?? 0;
  machine.pages.unpin({ pfn: pa / 4096, pages: 1 });
}

test('a whole state is passed, every rule is looked at', () => {
  let looks: InvariantId[] = [];
  const error = auditAfter(({ machine }) => {
    const before = new Map(machine.runtime.invariants.report().map((rule) => [rule.id, rule.looks]));
    machine.audit();
    const after = machine.runtime.invariants.report();
    looks = after.filter((rule) => rule.looks > (before.get(rule.id) ?? 0)).map(({ id }) => id);
  });
  expect(error).toBeUndefined();
  expect(looks.sort()).toEqual(['INV-16', 'INV-3', 'INV-4', 'INV-6', 'INV-7', 'INV-8', 'objects']);
});

describe('a state that is broken', () => {
  test.each<[string, InvariantId, RegExp, (state: Broken) => void]>([
    [
      'an area is filled, and says it is not',
      'INV-3',
      /is pinned for 1 domains/,
      ({ area }) => (area.isFilled = false),
    ],
    [
      'an area whose pages count no pins',
      'INV-3',
      /is used and not pinned/,
      ({ area }) => answers(area.pages ?? area, 'npinned', 0),
    ],
    ['a page lost its pin', 'INV-4', /page \d+ is not pinned/, (state) => unpin(state, 0x1002000)],
    ['the last page lost its pin', 'INV-4', /page \d+ is not pinned/, (state) => unpin(state, 0x1003000)],
    [
      'a table shows another page',
      'INV-4',
      /a table shows 0x[0-9a-f]+ at 0x1001000/,
      ({ ioas }) => {
        tablesOf(ioas, (leaves) => leaves.map((leaf) => (leaf.iova === 0x1001000 ? { ...leaf, pa: 0x5000 } : leaf)));
      },
    ],
    [
      'a table shows nothing',
      'INV-4',
      /a table shows 0x0 at 0x1000000/,
      ({ ioas }) => {
        tablesOf(ioas, () => []);
      },
    ],
    [
      'a table lacks a page of an area',
      'INV-4',
      /a table shows 0x0 at 0x1002000/,
      ({ ioas }) => {
        tablesOf(ioas, (leaves) => leaves.filter(({ iova }) => iova !== 0x1002000));
      },
    ],
    [
      'a table still shows what was unmapped',
      'INV-4',
      /a table shows 0x7000 at 0x1800000, where nothing is mapped/,
      ({ ioas }) => {
        const stale = { iova: 0x1800000, pa: 0x7000, lengthBytes: 0x1000, state: 0 };
        tablesOf(ioas, (leaves) => [...leaves, stale].sort((a, b) => a.iova - b.iova));
      },
    ],
    [
      'a table shows more behind the last area',
      'INV-4',
      /a table shows 0x[0-9a-f]+ at 0x2002000, where nothing is mapped/,
      ({ ioas }) => {
        tablesOf(ioas, (leaves) =>
          leaves.map((leaf) => (leaf.iova === 0x2001000 ? { ...leaf, lengthBytes: 0x2000 } : leaf)),
        );
      },
    ],
    [
      'a driver of the kernel has come into a group that user space owns',
      'INV-8',
      /iommu group \d+ has 2 owners/,
      ({ machine }) => {
        for (const group of machine.ictx.groups.list()) group.ownerCount++;
      },
    ],
    [
      'a group has another owner than who has bound its devices',
      'INV-8',
      /of which none is user space/,
      ({ machine }) => {
        for (const group of machine.ictx.groups.list()) group.owner = {};
      },
    ],
    [
      'a group is in another domain than what is attached',
      'INV-8',
      /is in another domain than what is attached/,
      ({ machine }) => {
        for (const group of machine.ictx.groups.list()) group.domain = group.driver.blockedDomain;
      },
    ],
    [
      'a PASID is in another domain than what is attached',
      'INV-8',
      /PASID 5 of iommu group 0 is in another domain than what is attached/,
      ({ machine }) => {
        for (const group of machine.ictx.groups.list()) {
          const attachments = machine.ictx.groups.find(group)?.attachments;
          const [plain] = [...(attachments?.values() ?? [])];
          if (plain !== undefined) attachments?.set(5, plain);
        }
      },
    ],
    [
      'a region that a device wants is not reserved',
      'INV-6',
      /its devices and domains want .*0x5000-0x5fff of 0000:00:00\.0/,
      ({ machine }) => {
        for (const group of machine.ictx.groups.list()) {
          const [member] = group.members;
          if (member === undefined) throw new Error('a group has members');
          const region = { start: 0x5000n, last: 0x5fffn, type: 'reserved' } as (typeof member.resvRegions)[number];
          answers(member, 'resvRegions', [...member.resvRegions, region]);
        }
      },
    ],
    [
      'a range is reserved for a device that wants none',
      'INV-6',
      /^INV-6: ioas 1 has reserved .*0x9000-0x9fff of ghost/,
      ({ ioas }) => {
        const { ranges } = ioas.iopt;
        const ghost = { start: 0x9000n, last: 0x9fffn, owner: { name: 'ghost' }, detail: {} };
        answers(ioas.iopt, 'ranges', { ...ranges, reserved: [...ranges.reserved, ghost] });
      },
    ],
    [
      'an area lies in a reserved range',
      'INV-7',
      /area at 0x8000000 is reserved/,
      ({ ioas, area }) => {
        if (area.pages === undefined) throw new Error('the setup maps');
        const wrong = ioas.iopt.areas.make(0x8000000n, 4096n, 0n, 3, area.pages);
        if (wrong !== undefined) ioas.iopt.areas.insert(wrong);
      },
    ],
    [
      'an allowed range lies in a reserved one',
      'INV-7',
      /allowed range at 0x80ff000 is reserved/,
      ({ ioas }) => {
        answers(ioas.iopt, 'ranges', { ...ioas.iopt.ranges, allowed: [{ start: 0x80ff000n, last: 0x8ffffffn }] });
      },
    ],
    ['an object has another number', 'INV-16', /object 77 is found by number 1/, ({ ioas }) => (ioas.id = 77)],
    [
      'calls work with an object that does not count them',
      'objects',
      /object 1: 1 users/,
      ({ ioas }) => {
        answers(ioas, 'users', 1);
        answers(ioas, 'shortTerm', 1);
      },
    ],
    [
      'an area is left half mapped',
      'objects',
      /has no pages and nobody works on it/,
      ({ area }) => (area.pages = undefined),
    ],
    ['a page table is on no list', 'objects', /page tables and domains differ/, ({ ioas }) => ioas.hwpts.pop()],
    [
      'a page table is on a list twice',
      'objects',
      /page tables and domains differ/,
      ({ ioas }) => ioas.hwpts.push(...ioas.hwpts),
    ],
  ])('%s: %s', (_what, id, message, break_) => {
    const error = auditAfter(break_);
    expect(error?.id).toBe(id);
    expect(error?.message).toMatch(message);
  });
});

test('an address space that somebody works on is left out', () => {
  const error = auditAfter(({ ioas, area }) => {
    for (const gate of ioas.iopt.iovaRwsem.down_write()) expect(gate).toBe('iopt:iova_rwsem');
    area.isFilled = false;
  });
  expect(error).toBeUndefined();
});
