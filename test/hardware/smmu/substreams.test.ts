/** Substreams (context descriptor tables, S1DSS) and stalled faults of the SMMUv3. */
import { describe, expect, test } from 'vitest';
import { CD, CMD_CFGI, CMD_OP, CMD_RESUME, EVENT, L1CD, STE_CONFIG } from '../../../src/hardware/smmu/records.js';
import type { TranslateRequest, TranslateResult } from '../../../src/hardware/smmu/smmu.js';
import type { Task } from '../../../src/runtime/task.js';
import { CR0, EVENTQ_CONS } from '../../../src/uapi/smmuv3-registers.js';
import { identified, Machine, PAGE_BITS, STREAM } from './machine.js';

const substreams = identified({ idr0: { CD2L: 1 }, idr1: { SSIDSIZE: 12 } });
const stalling = identified({ idr0: { STALL_MODEL: 0, TERM_MODEL: 0 }, idr5: { STALL_MAX: 2 } });
const VA = 0x12345000n;
const leaf = (pa: number): { address: number; pa: number; level: number; bits: number } => ({
  address: Number(VA),
  pa,
  level: 3,
  bits: PAGE_BITS.readWrite,
});

/** Tables that map VA to a page of their own; the address of a CD at `at` that leads to them. */
function cdWith(m: Machine, pa: number, at: number, asid: number): void {
  const root = m.allocate(4096);
  m.map(root, 12, 48, 0, leaf(pa));
  m.writeCd(root, { ASID: asid }, at);
}

describe('substreams', () => {
  test.each([
    ['terminate', 0, 'F_STREAM_DISABLED', 0x80000000],
    ['bypass stage 1', 1, Number(VA), 0x80000000],
    ['use CD 0', 2, 0x80000000, 'F_STREAM_DISABLED'],
  ] as const)('a linear table; without one: %s', (_name, S1DSS, without, withZero) => {
    const m = new Machine({ identification: substreams });
    const table = m.allocate(4 * CD.sizeBytes);
    for (let ssid = 0; ssid < 3; ssid++) cdWith(m, 0x80000000 + ssid * 0x1000, table + ssid * CD.sizeBytes, 10 + ssid);
    m.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: table / 64, S1CDMax: 2, S1DSS });
    expect(m.outcome(VA)).toBe(without);
    expect(m.outcome(VA, false, { substreamId: 0 })).toBe(withZero);
    expect(m.outcome(VA, false, { substreamId: 1 })).toBe(0x80001000);
    expect(m.outcome(VA, true, { substreamId: 2 })).toBe(0x80002000);
    expect(m.outcome(VA, false, { substreamId: 3 })).toBe('C_BAD_CD');
    expect(m.outcome(VA, false, { substreamId: 4 })).toBe('C_BAD_SUBSTREAMID');
    const last = m.event(m.eventProducer - 1);
    expect([last.Type, last.SSV, last.SubstreamID]).toEqual([EVENT.C_BAD_SUBSTREAMID, 1, 4]);
  });

  test.each([
    [1, 6],
    [2, 10],
  ])('two levels, S1Fmt %i', (S1Fmt, leafLog2) => {
    const m = new Machine({ identification: substreams });
    const l1 = m.allocate(2 ** (12 - leafLog2) * L1CD.sizeBytes);
    const leafTable = m.allocate(2 ** leafLog2 * CD.sizeBytes);
    m.writeRecord(l1 + L1CD.sizeBytes, L1CD.make({ V: 1, L2Ptr: leafTable / 4096 }));
    const ssid = 2 ** leafLog2 + 5;
    cdWith(m, 0x81000000, leafTable + 5 * CD.sizeBytes, 3);
    m.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: l1 / 64, S1CDMax: 12, S1Fmt, S1DSS: 0 });
    expect(m.outcome(VA, false, { substreamId: ssid })).toBe(0x81000000);
    expect(m.outcome(VA, false, { substreamId: 5 })).toBe('C_BAD_SUBSTREAMID');
  });

  test('are refused where stage 1 has none, and tables of a form the SMMU has not are illegal', () => {
    const m = new Machine({ identification: substreams });
    m.stage1Stream();
    expect(m.outcome(VA, false, { substreamId: 1 })).toBe('C_BAD_SUBSTREAMID');
    const flat = new Machine({ identification: identified({ idr1: { SSIDSIZE: 4 } }) });
    flat.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: flat.allocate(4096) / 64, S1CDMax: 2, S1Fmt: 1 });
    expect(flat.outcome(VA)).toBe('C_BAD_STE');
    flat.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: flat.allocate(4096) / 64, S1CDMax: 2, S1DSS: 3 });
    expect(flat.outcome(VA)).toBe('C_BAD_STE');
    flat.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: flat.allocate(4096) / 64, S1CDMax: 5 });
    expect(flat.outcome(VA)).toBe('C_BAD_STE');
  });

  test('CMD_CFGI_CD forgets one of them', () => {
    const m = new Machine({ identification: substreams });
    const table = m.allocate(4 * CD.sizeBytes);
    for (const ssid of [1, 2]) cdWith(m, 0x80000000 + ssid * 0x1000, table + ssid * CD.sizeBytes, 10 + ssid);
    m.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: table / 64, S1CDMax: 2, S1DSS: 0 });
    for (const ssid of [1, 2]) expect(m.outcome(VA, false, { substreamId: ssid })).toBe(0x80000000 + ssid * 0x1000);
    for (const ssid of [1, 2]) m.writeRecord(table + ssid * CD.sizeBytes, CD.make({}));
    expect(m.outcome(VA, false, { substreamId: 1 })).toBe(0x80001000);
    m.command(CMD_CFGI.make({ Opcode: CMD_OP.CFGI_CD, StreamID: STREAM, SSV: 1, SubstreamID: 1 }));
    expect(m.outcome(VA, false, { substreamId: 1 })).toBe('C_BAD_CD');
    expect(m.outcome(VA, false, { substreamId: 2 })).toBe(0x80002000);
  });
});

/** A transaction under way. */
function start(m: Machine, extra: Partial<TranslateRequest> = {}): { result: TranslateResult | undefined } {
  const outcome: { result: TranslateResult | undefined } = { result: undefined };
  m.runtime.spawn(
    'dma',
    (function* (): Task<void> {
      outcome.result = yield* m.smmu.translate({ streamId: STREAM, iova: VA, write: true, ...extra });
    })(),
  );
  m.settle();
  return outcome;
}

function resume(m: Machine, STAG: number, action: { Ac?: number; Ab?: number }): void {
  m.command(CMD_RESUME.make({ Opcode: CMD_OP.RESUME, StreamID: STREAM, STAG, ...action }));
}

describe('stalls', () => {
  test('a fault waits for software, which maps the page and lets it try again', () => {
    const m = new Machine({ identification: stalling });
    const root = m.stage1Stream({ S: 1 });
    const dma = start(m);
    expect(dma.result).toBeUndefined();
    expect(m.event(0)).toMatchObject({ Type: EVENT.F_TRANSLATION, Stall: 1, STAG: 0, StreamID: STREAM });
    m.map(root, 12, 48, 0, leaf(0x82000000));
    resume(m, 0, { Ac: 1 });
    expect(dma.result).toMatchObject({ ok: true, pa: 0x82000000 });
    expect(m.eventProducer).toBe(1);
  });

  test.each([
    ['abort', { Ab: 1 }, true],
    ['ends as if done', {}, false],
  ] as const)('software says: %s', (_name, action, abort) => {
    const m = new Machine({ identification: stalling });
    m.stage1Stream({ S: 1 });
    const dma = start(m);
    resume(m, 7, action);
    m.command(CMD_RESUME.make({ Opcode: CMD_OP.RESUME, StreamID: STREAM + 1, STAG: 0 }));
    expect(dma.result).toBeUndefined();
    resume(m, 0, action);
    expect(dma.result).toMatchObject({ ok: false, abort });
  });

  test('CMD_SYNC does not wait for stalled transactions; CMD_STALL_TERM and switching off end them', () => {
    const m = new Machine({ identification: stalling });
    m.stage1Stream({ S: 1 });
    const first = start(m);
    m.command();
    expect(m.commandConsumer).toBe(1);
    m.command(CMD_RESUME.make({ Opcode: CMD_OP.STALL_TERM, StreamID: STREAM }));
    expect(first.result).toMatchObject({ ok: false, abort: true });
    const second = start(m);
    m.smmu.writeRegister(CR0.offset, 4, 0xc);
    m.settle();
    expect(second.result).toMatchObject({ ok: false, abort: true });
  });

  test('no more than STALL_MAX stall at once, each with a STAG of its own', () => {
    const m = new Machine({ identification: stalling });
    m.stage1Stream({ S: 1 });
    const all = [start(m), start(m), start(m)];
    expect(m.eventProducer).toBe(2);
    expect([m.event(0).STAG, m.event(1).STAG]).toEqual([0, 1]);
    resume(m, 1, { Ab: 1 });
    m.settle();
    expect([all[1]?.result?.ok, m.eventProducer, m.event(2).STAG]).toEqual([false, 3, 1]);
  });

  test('the event of a stalled transaction waits for room in the queue', () => {
    const m = new Machine({ identification: stalling });
    m.stage1Stream({ S: 0, A: 1 });
    for (let i = 0; i < 16; i++) expect(m.outcome(VA)).toBe('F_TRANSLATION');
    m.stage1Stream({ S: 1 });
    m.command(CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE, StreamID: STREAM }));
    start(m);
    expect(m.eventProducer).toBe(16);
    m.smmu.writeRegister(EVENTQ_CONS.offset, 4, 16);
    expect(m.eventProducer).toBe(17);
    expect(m.event(0).Stall).toBe(1);
  });

  test('stage 2 stalls by S2S; a fault of stage 1 that may not abort reads zero', () => {
    const m = new Machine({ identification: stalling });
    m.writeSte({ Config: STE_CONFIG.S2_TRANS, ...m.stage2Fields(m.allocate(8192)), S2S: 1 });
    const dma = start(m);
    expect([dma.result, m.event(0).Stall, m.event(0).S2]).toEqual([undefined, 1, 1]);
    const quiet = new Machine({ identification: stalling });
    quiet.stage1Stream({ A: 0 });
    expect(quiet.translate(VA, false)).toMatchObject({ ok: false, abort: false });
  });

  test('without the stall model a CD that stalls is illegal, and so are the commands', () => {
    const m = new Machine();
    m.stage1Stream({ S: 1 });
    expect(m.outcome(VA)).toBe('C_BAD_CD');
    m.queue(CMD_RESUME.make({ Opcode: CMD_OP.RESUME, StreamID: STREAM }));
    m.settle();
    expect(m.commandConsumer >>> 24).toBe(1);
  });
});
