/**
 * A sample of the recorded SMMUv3 corpus, every family and nearly every condition, replayed against our SMMU.
 *
 * The sample leaves out the conditions in which the recorded model is known to differ from the architecture without the
 * recording saying what the architecture does (privilege of PCIe accesses, RnW of table walks, event queue
 * overflow, unsupported commands and fields, reserved register bits); test/hardware/smmu holds our own cases for those.
 */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { judgeCase, replayCase, type RecordedCase } from '../../../src/conformance/smmuv3.js';

const sample = gunzipSync(readFileSync(new URL('sample.jsonl.gz', import.meta.url)))
  .toString()
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as RecordedCase);
const families = [...new Set(sample.map((recorded) => recorded.id.split('-')[0] ?? ''))];

describe('recorded SMMUv3 behaviour', () => {
  test.each(families)('family %s', (family) => {
    const cases = sample.filter((recorded) => recorded.id.startsWith(`${family}-`));
    expect(cases.flatMap((recorded) => replayCase(recorded))).toEqual([]);
  });

  test('every family of the corpus is in the sample', () => {
    expect(families.sort()).toEqual(
      ['cd', 'cfgi', 'cmdq', 'evtq', 'gbpa', 'its', 'multi', 'nest', 'regs', 's1', 's2', 'ste', 'strtab', 'tlb'].sort(),
    );
  });

  test('a replay notices a difference', () => {
    const recorded = sample.find((candidate) => candidate.id.startsWith('s1-') && candidate.tags.includes('out.ok'));
    if (recorded === undefined) throw new Error('no successful stage 1 case in the sample');
    const withoutTables = { ...recorded, init: { ...recorded.init, mem: [] } };
    expect(replayCase(withoutTables)).not.toEqual([]);
  });

  test('a difference without an excuse fails, and so does one that the excuse is not about', () => {
    const recorded = sample.find((candidate) => candidate.id.startsWith('s1-') && candidate.tags.includes('out.ok'));
    if (recorded === undefined) throw new Error('no successful stage 1 case in the sample');
    const broken = { ...recorded, init: { ...recorded.init, mem: [] } };
    expect(judgeCase(recorded).verdict).toBe('passed');
    expect(judgeCase(broken).verdict).toBe('failed');
    expect(judgeCase({ ...broken, tags: [...broken.tags, 'dev.reserved-register-bits'] }).verdict).toBe('failed');
  });

  test('a case that needs an excuse is skipped with its tag and fails without it', () => {
    const recorded = sample.find((candidate) => candidate.id.startsWith('s1-') && candidate.tags.includes('out.ok'));
    if (recorded === undefined) throw new Error('no successful stage 1 case in the sample');
    const steps = [...recorded.steps, { op: 'readReg' as const, off: '0x20', size: 4 as const, result: '0xdead' }];
    const broken = { ...recorded, steps };
    expect(judgeCase(broken).verdict).toBe('failed');
    const tags = [...recorded.tags, 'dev.reserved-register-bits'];
    expect(judgeCase({ ...broken, tags })).toMatchObject({ verdict: 'skipped', tag: 'dev.reserved-register-bits' });
  });

  test('an excused step does not excuse another one', () => {
    const recorded = sample.find((candidate) => candidate.id.startsWith('s1-') && candidate.tags.includes('out.ok'));
    if (recorded === undefined) throw new Error('no successful stage 1 case in the sample');
    const tags = [...recorded.tags, 'dev.reserved-register-bits'];
    const excused = { op: 'readReg' as const, off: '0x20', size: 4 as const, result: '0xdead' };
    const [transfer] = recorded.steps.filter((step) => step.op === 'dma' && step.result.status === 'ok');
    if (transfer?.op !== 'dma') throw new Error('no successful transfer');
    const wrong = { ...transfer, result: { status: 'abort' as const } };
    const judged = judgeCase({ ...recorded, tags, steps: [...recorded.steps, excused, wrong] });
    expect(judged).toMatchObject({ verdict: 'failed', differences: [{ subject: 'transfer' }] });
  });
});
