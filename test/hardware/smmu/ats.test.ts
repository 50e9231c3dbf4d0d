/** ATS and PRI at the SMMU: what translation requests, translated transactions and page requests get. */
import { describe, expect, test } from 'vitest';
import {
  CMD_ATC_INV,
  CMD_CFGI,
  CMD_OP,
  CMD_PRI_RESP,
  CMD_SYNC,
  EVENT,
  PRIQ_ENTRY,
  PRI_RESPONSE,
  STE_CONFIG,
  STE_EATS,
  STE_S1DSS,
} from '../../../src/hardware/smmu/records.js';
import type { AtcInvalidation, PageRequestMessage } from '../../../src/hardware/smmu/ats.js';
import type { Task } from '../../../src/runtime/task.js';
import { CMDQ_CONS, CR0, CR2, GERROR, PRIQ_BASE, PRIQ_CONS, PRIQ_PROD } from '../../../src/uapi/smmuv3-registers.js';
import { DBM_HIGH, identified, Machine, PAGE_BITS, STREAM } from './machine.js';

const ats = identified({ idr0: { ATS: 1, NS1ATS: 1, PRI: 1 }, idr1: { PRIQS: 4 } });
const VA = 0x12345000n;

/** A stage 1 stream whose STE lets it use ATS. */
function atsStream(m: Machine, EATS: number = STE_EATS.FULL, cd: object = {}): number {
  const root = m.allocate(4096);
  const context = m.writeCd(root, cd);
  m.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: context / 64, S2VMID: 3, EATS });
  return root;
}

function leaf(
  pa: number,
  bits: number,
  highBits = 0,
): { address: number; pa: number; level: number; bits: number; highBits: number } {
  return { address: Number(VA), pa, level: 3, bits, highBits };
}

describe('translation requests', () => {
  test('are answered with an address and rights', () => {
    const m = new Machine({ identification: ats });
    const root = atsStream(m);
    m.map(root, 12, 48, 0, leaf(0x80000000, PAGE_BITS.readOnly));
    expect(m.ats(VA + 0x10n)).toEqual({ status: 'success', pa: 0x80000010, shift: 12, read: true, write: false });
    expect(m.eventProducer).toBe(0);
  });

  test('faults of translations are answers, not events', () => {
    const m = new Machine({ identification: ats });
    const root = atsStream(m);
    expect(m.ats(VA)).toMatchObject({ status: 'success', read: false, write: false });
    m.map(root, 12, 48, 0, leaf(0x80000000, PAGE_BITS.privileged));
    expect(m.ats(VA)).toMatchObject({ read: false, write: false });
    expect(m.ats(VA, { privileged: true })).toMatchObject({ read: true, write: true });
    expect(m.eventProducer).toBe(0);
  });

  test('the right to write sets dirty state; a request that will not write does not', () => {
    const m = new Machine({ identification: ats });
    const root = atsStream(m, STE_EATS.FULL, { HA: 1, HD: 1 });
    const at = m.map(root, 12, 48, 0, leaf(0x80000000, PAGE_BITS.readOnly, DBM_HIGH));
    expect(m.ats(VA, { noWrite: true })).toMatchObject({ read: true, write: false });
    expect(m.descriptor(at)[0] & 0x80).toBe(0x80);
    expect(m.ats(VA)).toMatchObject({ read: true, write: true });
    expect(m.descriptor(at)[0] & 0x80).toBe(0);
  });

  test('without STE.EATS: unsupported, F_BAD_ATS_TREQ; configuration faults are events only if asked for', () => {
    const m = new Machine({ identification: ats });
    atsStream(m, STE_EATS.ABORT);
    expect(m.ats(VA)).toEqual({ status: 'unsupported' });
    expect(m.event(0).Type).toBe(EVENT.F_BAD_ATS_TREQ);
    expect(m.ats(VA, { streamId: STREAM + 1 })).toEqual({ status: 'abort' });
    expect(m.eventProducer).toBe(1);
    m.smmu.writeRegister(CR2.offset, 4, CR2.make({ REC_CFG_ATS: 1 })[0] ?? 0);
    expect(m.ats(VA, { streamId: STREAM + 1 })).toEqual({ status: 'abort' });
    expect(m.event(1).Type).toBe(EVENT.C_BAD_STE);
  });
});

describe('translation requests where stage 1 is bypassed', () => {
  test('by S1DSS: every address is its own; by STE.Config there is no ATS', () => {
    const m = new Machine({ identification: identified({ idr0: { ATS: 1, NS1ATS: 1 }, idr1: { SSIDSIZE: 4 } }) });
    const ste = { S1ContextPtr: m.writeCd(m.allocate(4096)) / 64, S1CDMax: 1, EATS: STE_EATS.FULL };
    m.writeSte({ Config: STE_CONFIG.S1_TRANS, S1DSS: STE_S1DSS.BYPASS, ...ste });
    expect(m.ats(VA)).toEqual({ status: 'success', pa: Number(VA), shift: 12, read: true, write: true });
    expect(m.ats(VA + 0x10n)).toMatchObject({ pa: Number(VA) + 0x10 });
    expect(m.ats(1n << 60n)).toMatchObject({ read: false, write: false });
    expect(m.eventProducer).toBe(0);
    m.writeSte({ Config: STE_CONFIG.BYPASS, EATS: STE_EATS.FULL });
    m.command(CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE, StreamID: STREAM }));
    expect(m.ats(VA)).toEqual({ status: 'unsupported' });
    expect(m.event(0).Type).toBe(EVENT.F_BAD_ATS_TREQ);
  });
});

describe('translated transactions', () => {
  test('pass whatever the CD says, and end without an event where the STE aborts or configuration is wrong', () => {
    const m = new Machine({ identification: ats });
    atsStream(m, STE_EATS.FULL, { V: 0 });
    m.smmu.writeRegister(CR0.offset, 4, 0x1d);
    const pass = (streamId = STREAM): unknown =>
      m.run(m.smmu.passTranslated({ streamId, iova: 0x80000000n, write: true }));
    expect(pass()).toMatchObject({ ok: true, pa: 0x80000000 });
    m.writeSte({ Config: STE_CONFIG.ABORT });
    m.command(CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE, StreamID: STREAM }));
    expect([pass(), pass(STREAM + 1)]).toMatchObject([{ ok: false }, { ok: false }]);
    expect(m.eventProducer).toBe(0);
    m.smmu.writeRegister(CR2.offset, 4, CR2.make({ REC_CFG_ATS: 1 })[0] ?? 0);
    expect(pass(STREAM + 1)).toMatchObject({ ok: false, event: 'C_BAD_STE' });
  });

  test('pass with STE.EATS, and unchecked without CR0.ATSCHK', () => {
    const m = new Machine({ identification: ats });
    atsStream(m);
    const pass = (): unknown => m.run(m.smmu.passTranslated({ streamId: STREAM, iova: 0x80000000n, write: true }));
    m.smmu.writeRegister(CR0.offset, 4, 0x1d);
    expect(pass()).toMatchObject({ ok: true, pa: 0x80000000 });
    atsStream(m, STE_EATS.ABORT);
    m.command(CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE, StreamID: STREAM }));
    expect(pass()).toMatchObject({ ok: false, event: 'F_TRANSL_FORBIDDEN' });
    m.smmu.writeRegister(CR0.offset, 4, 0xd);
    expect(pass()).toMatchObject({ ok: true });
  });
});

describe('CMD_ATC_INV', () => {
  test('reaches the device, and CMD_SYNC waits for its completion', () => {
    const seen: AtcInvalidation[] = [];
    const m = new Machine({
      identification: ats,
      *atc(invalidation): Task<boolean> {
        seen.push(invalidation);
        yield 500_000;
        return true;
      },
    });
    const atcInv = CMD_ATC_INV.make({ Opcode: CMD_OP.ATC_INV, StreamID: STREAM, Size: 1, Address: 0x12345 });
    m.queue(atcInv, CMD_SYNC.make({ Opcode: CMD_OP.SYNC }));
    m.runtime.scheduler.runUntil(100_000);
    expect(seen).toEqual([
      { streamId: STREAM, substreamId: undefined, isGlobal: false, start: 0x12344000n, last: 0x12345fffn },
    ]);
    expect(m.commandConsumer).toBe(1);
    m.settle();
    expect(m.commandConsumer).toBe(2);
  });

  test('a device that does not complete makes CMD_SYNC an error', () => {
    const m = new Machine({
      identification: ats,
      *atc(): Task<boolean> {
        return false;
      },
    });
    m.command(CMD_ATC_INV.make({ Opcode: CMD_OP.ATC_INV, StreamID: STREAM }));
    expect(CMDQ_CONS.get([m.commandConsumer], 'ERR')).toBe(3);
  });
});

describe('page requests', () => {
  const request = (group: number, isLast = true): PageRequestMessage => ({
    streamId: STREAM,
    address: VA,
    group,
    isLast,
    read: true,
    write: false,
  });

  function withQueue(): { m: Machine; answers: unknown[]; queue: number } {
    const answers: unknown[] = [];
    const m = new Machine({ identification: ats, respond: (...answer) => answers.push(answer) });
    const queue = m.allocate(4096);
    m.smmu.writeRegister(PRIQ_BASE.offset, 8, BigInt(queue) | 1n);
    m.smmu.writeRegister(CR0.offset, 4, 0xf);
    return { m, answers, queue };
  }

  test('come into the queue and are answered by CMD_PRI_RESP', () => {
    const { m, answers, queue } = withQueue();
    m.smmu.requestPage(request(5));
    expect(m.irqs).toContain('priq');
    expect(m.smmu.readRegister(PRIQ_PROD.offset, 4)).toBe(1);
    const words = new Uint32Array(4);
    m.memory.loadWords(queue, words);
    const entry = { StreamID: STREAM, PRGIndex: 5, Last: 1, R: 1, W: 0, Address: Number(VA >> 12n) };
    expect(PRIQ_ENTRY.decode(words)).toMatchObject(entry);
    for (const Resp of [PRI_RESPONSE.SUCCESS, PRI_RESPONSE.FAIL, PRI_RESPONSE.DENY])
      m.command(CMD_PRI_RESP.make({ Opcode: CMD_OP.PRI_RESP, StreamID: STREAM, PRGIndex: 5, Resp }));
    expect(answers).toEqual(['success', 'failure', 'invalid'].map((response) => [STREAM, undefined, 5, response]));
  });

  test('beyond the queue: overflow once, success for the last of a group so that the device asks again', () => {
    const { m, answers } = withQueue();
    for (let group = 0; group < 4; group++) m.smmu.requestPage(request(group, group !== 2));
    expect(PRIQ_PROD.get([m.smmu.readRegister(PRIQ_PROD.offset, 4)], 'OVFLG')).toBe(1);
    expect(answers).toEqual([[STREAM, undefined, 3, 'success']]);
    m.smmu.writeRegister(PRIQ_CONS.offset, 4, 2 + 2 ** 31);
    m.smmu.requestPage(request(6));
    expect(PRIQ_PROD.get([m.smmu.readRegister(PRIQ_PROD.offset, 4)], 'WR')).toBe(3);
  });

  test('without a queue: failure', () => {
    const { m, answers } = withQueue();
    m.smmu.writeRegister(CR0.offset, 4, 0xd);
    m.smmu.requestPage(request(1, false));
    m.smmu.requestPage(request(1));
    expect(answers).toEqual([[STREAM, undefined, 1, 'failure']]);
  });

  test('that cannot be stored: failure, PRIQ_ABT_ERR, and the index stays', () => {
    const { m, answers } = withQueue();
    m.smmu.writeRegister(CR0.offset, 4, 0xd);
    m.smmu.writeRegister(PRIQ_BASE.offset, 8, 0x1000n | 1n);
    m.smmu.writeRegister(CR0.offset, 4, 0xf);
    m.smmu.requestPage(request(1));
    expect(answers).toEqual([[STREAM, undefined, 1, 'failure']]);
    expect(m.smmu.readRegister(PRIQ_PROD.offset, 4)).toBe(0);
    expect(GERROR.get([m.smmu.readRegister(GERROR.offset, 4)], 'PRIQ_ABT_ERR')).toBe(1);
  });

  test('a Stop Marker is never answered', () => {
    const { m, answers } = withQueue();
    m.smmu.writeRegister(CR0.offset, 4, 0xd);
    m.smmu.requestPage({ ...request(0), substreamId: 3, read: false });
    expect(answers).toEqual([]);
  });
});
