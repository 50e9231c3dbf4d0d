/** What a device's access is held against: what its mapping allows, and doorbells; and what is said where judging was given up. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { Search } from '../../src/checks/search.js';
import { runProgram, type ProgramOutcome } from '../../src/host/run-program.js';
import { ArmSmmuDomain } from '../../src/kernel/iommu/arm-smmu-v3/domain.js';
import { IOMMU_READ, IOMMU_WRITE } from '../../src/kernel/iommu/domain.js';
import { MappingCheck } from '../../src/kernel/iommu/mapping-check.js';
import { MockDomain } from '../../src/kernel/iommufd/selftest/mock-domain.js';
import { InvariantLedger, type InvariantId } from '../../src/runtime/invariants.js';
import { rulesOf } from '../../src/report/rules.js';
import { executeScenario, type ScenarioOutcome } from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';
import { onHost } from '../fixtures/on-host.js';

afterEach(() => {
  vi.restoreAllMocks();
});

function ran(text: string, seed?: number): ProgramOutcome {
  const program = loadScenario('judged.yaml', text).kernelOnly?.program;
  if (program === undefined) throw new Error('kernel-only');
  return runProgram(program, {
    seed: 1,
    schedule: seed === undefined ? { strategy: 'in-order' } : { strategy: 'explored', seed },
  });
}

async function executed(text: string): Promise<ScenarioOutcome> {
  return (await executeScenario(loadScenario('judged.yaml', text), { seed: 1, placement: 'inline' })).outcome;
}

function looksAt({ invariants }: Pick<ProgramOutcome, 'invariants'>, rule: InvariantId): number {
  return invariants.find(({ id }) => id === rule)?.looks ?? 0;
}

const withProt = (iommu: string, ats: boolean, prot: string, write: boolean, expected: string): string => `
title: a device and memory it may use in one way
kernel-only: { iommu: ${iommu}, ats: ${String(ats)} }
setup:
  - device: { as: nic }
  - map: { iova: 0x1000000, length: 4 KiB, prot: ${prot} }
tasks:
  nic:
    - dma: { device: nic, iova: 0x1000000, length: 4 KiB, write: ${String(write)} }
      expect: ${expected}
`;

describe.each([
  ['arm-smmu-v3', false],
  ['arm-smmu-v3', true],
  ['mock', false],
])('behind %s, ATS %s', (iommu, ats) => {
  test('a write to memory that is mapped for reading is refused, which breaks no rule', () => {
    const outcome = ran(withProt(iommu, ats, 'r', true, '[EFAULT]'));
    expect(outcome.failure).toBeUndefined();
    expect(looksAt(outcome, 'INV-1')).toBe(1);
  });

  test('what a mapping allows is done, and a fault there still breaks INV-1', () => {
    expect(ran(withProt(iommu, ats, 'r', false, '[ok]')).failure).toBeUndefined();
    expect(ran(withProt(iommu, ats, 'rw', true, '[ok]')).failure).toBeUndefined();
    if (iommu !== 'mock') return;
    vi.spyOn(MockDomain.prototype, 'reach').mockReturnValue(undefined);
    expect(ran(withProt(iommu, ats, 'r', false, '[EFAULT]')).failure?.id).toBe('INV-1');
  });

  test('a read from memory that is mapped for writing may be let through', () => {
    expect(ran(withProt(iommu, ats, 'w', false, '[ok, EFAULT]')).failure).toBeUndefined();
  });
});

/** A driver that lets devices write everywhere. */
function grantEverything(): void {
  // Called with the domain as `this`.
  // eslint-disable-next-line @typescript-eslint/unbound-method
  const { map } = ArmSmmuDomain.prototype;
  vi.spyOn(ArmSmmuDomain.prototype, 'map').mockImplementation(function (this: ArmSmmuDomain, iova, pa, length, prot) {
    return map.call(this, iova, pa, length, prot | IOMMU_READ | IOMMU_WRITE);
  });
}

test('a write through a mapping for reading breaks INV-2', () => {
  grantEverything();
  const { failure } = ran(withProt('arm-smmu-v3', false, 'r', true, '[ok]'));
  expect(failure?.id).toBe('INV-2');
  expect(failure?.message).toMatch(/MAP \(op 0\) of it lets devices read only; it might have seen a fault/);
});

const READ_ONLY_ON_HOST = onHost(
  'A device writes to what it may read',
  `  - map: { process: p, iova: 0x10000000, length: 4 KiB, access: r }
  - dma: { process: p, device: "0000:01:00.0", write: { to: 0x10000000, length: 4 KiB } }
`,
);

describe('on a whole host', () => {
  test('a refused write to memory that is mapped for reading is judged, and breaks no rule', async () => {
    const outcome = await executed(READ_ONLY_ON_HOST);
    expect(outcome.brokenRule).toBeUndefined();
    expect(looksAt(outcome, 'INV-1')).toBe(1);
  });

  test('a write through a mapping for reading breaks INV-2', async () => {
    grantEverything();
    expect((await executed(READ_ONLY_ON_HOST)).brokenRule).toBe('INV-2');
  });
});

test('a write to the window of software MSIs ends at a doorbell, which is no old page', () => {
  const outcome = ran(`
title: a device writes to its doorbell by a plain write
kernel-only: { iommu: arm-smmu-v3 }
setup:
  - device: { as: nic }
  - map: { iova: 0x1000000, length: 4 KiB }
tasks:
  nic:
    - dma: { device: nic, iova: 0x8000000, length: 4 KiB, write: true }
      expect: [EFAULT]
    - msi: { device: nic, doorbell: 0 }
    - dma: { device: nic, iova: 0x8000000, length: 4 KiB, write: true }
`);
  expect(outcome.failure).toBeUndefined();
  expect(outcome.results.map(({ text }) => text).slice(-3)).toEqual(['EFAULT', 'ok', 'ok']);
});

describe('a MAP of no whole pages', () => {
  const odd = (expected: string): string => `
title: a MAP of less than a page, then a device
kernel-only: { iommu: mock }
setup:
  - device: { as: nic }
  - map: { iova: 0x1000000, length: 4 KiB }
  - map: { iova: 0x2000000, length: 1 KiB }
    expect: ${expected}
tasks:
  nic:
    - dma: { device: nic, iova: 0x1000000, length: 4 KiB }
`;

  test('that is refused leaves the address space watched', () => {
    const outcome = ran(odd('[EINVAL]'));
    expect(outcome.failure).toBeUndefined();
    expect(looksAt(outcome, 'INV-1')).toBe(1);
  });

  test('that is made ends the watch', () => {
    const outcome = ran(odd('[ok]').replace('1 KiB', '2 KiB'));
    expect(outcome.failure).toBeUndefined();
    expect(looksAt(outcome, 'INV-1')).toBe(0);
  });
});

describe('a history that is judged late, or never', () => {
  function watched(): { readonly check: MappingCheck; readonly ledger: InvariantLedger } {
    const ledger = new InvariantLedger();
    return { check: new MappingCheck(ledger), ledger };
  }

  test('while something is open nothing is counted as held', () => {
    const { check, ledger } = watched();
    const open = check.beginMap(0x100000n, 4096n, IOMMU_READ);
    const access = check.beginAccess(0, 0x1000n, false);
    check.endAccess(access, -1);
    expect(ledger.report()).toEqual([]);
    check.endMap(open, -12);
    expect(new Map(ledger.report().map(({ id, looks }) => [id, looks]))).toEqual(
      new Map([
        ['linearizability', 2],
        ['INV-1', 1],
        ['INV-2', 1],
      ]),
    );
  });

  test('what never returns does not keep what did from being judged', () => {
    const { check } = watched();
    check.beginMap(0x100000n, 4096n, IOMMU_READ);
    check.endAccess(check.beginAccess(0, 0x1000n, false), 0x5000);
    expect(() => {
      check.finish();
    }).toThrow(/no MAP ever showed that frame there/);
  });

  const RACE = `
title: two maps of a page and an unmap
kernel-only: { iommu: mock }
setup:
  - device: { as: nic }
tasks:
  a:
    - map: { iova: 0x1000000, length: 4 KiB }
      expect: [ok, EEXIST]
    - dma: { device: nic, iova: 0x1000000, length: 4 KiB, write: true }
  b:
    - map: { iova: 0x1000000, length: 4 KiB, from: { offset: 0x1000 } }
      expect: [ok, EEXIST]
  c:
    - unmap: {}
      expect: [ok, ENOENT, EBUSY]
`;

  test('a search that gives up makes a kernel-only run inconclusive, and says why', async () => {
    const whole = ran(RACE, 3);
    expect(whole.failure).toBeUndefined();
    expect(whole.invariants.every(({ givenUp }) => givenUp === undefined)).toBe(true);
    vi.spyOn(Search.prototype, 'reach').mockReturnValue(undefined);
    const outcome = ran(RACE, 3);
    expect(outcome.failure).toBeUndefined();
    expect(outcome.invariants.find(({ id }) => id === 'linearizability')?.givenUp).toMatch(
      /^too many orders to look through of what overlaps/,
    );
    const choices = { kernel: outcome.choices };
    const options = { seed: 1, placement: 'inline', recordedChoices: choices } as const;
    const run = (await executeScenario(loadScenario('race.yaml', RACE), options)).outcome;
    expect(run.verdict).toBe('inconclusive');
    expect(run.checks.map(({ name, verdict }) => [name, verdict])).toEqual([['linearizability', 'inconclusive']]);
    expect(rulesOf(run).find(({ id }) => id === 'linearizability')?.verdict).toBe('inconclusive');
  });

  test('a search that gives up makes a run of whole hosts inconclusive', async () => {
    vi.spyOn(Search.prototype, 'reach').mockReturnValue(undefined);
    const outcome = await executed(
      onHost(
        'Two maps at once',
        `  - parallel:
      - - map: { process: p, iova: 0x10000000, length: 4 KiB }
      - - map: { process: p, iova: 0x10000000, length: 4 KiB, as: second }
  - expect: { of: second, verdict: refused, errno: EEXIST }
`,
      ),
    );
    expect(outcome.checks.filter(({ verdict }) => verdict === 'fail')).toEqual([]);
    expect(outcome.verdict).toBe('inconclusive');
    expect(outcome.checks.at(-1)).toMatchObject({ name: 'linearizability', verdict: 'inconclusive' });
  });
});
