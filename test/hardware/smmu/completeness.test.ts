/** Every event of the architecture's list and every command is produced at least once, by transactions and by the queue. */
import { expect, test } from 'vitest';
import { CD, CERROR, CMD, CMD_OP, EVENT, STE_CONFIG, type EventName } from '../../../src/hardware/smmu/records.js';
import { CMDQ_CONS, CR0 } from '../../../src/uapi/smmuv3-registers.js';
import { identified, Machine, PAGE_BITS, STREAM } from './machine.js';

const full = identified({
  idr0: { ATS: 1, NS1ATS: 1, PRI: 1, STALL_MODEL: 0, CD2L: 1 },
  idr1: { SSIDSIZE: 8, PRIQS: 4 },
  idr3: { BBML: 0 },
  idr5: { STALL_MAX: 4 },
});
const VA = 0x12345000n;
const NOWHERE = 0x200000000000;

function leaf(bits: number, level = 3, pa = 0x80000000): { address: number; pa: number; level: number; bits: number } {
  const size = level === 3 ? 0x1000 : 0x200000;
  return { address: Number(VA) - (Number(VA) % size), pa, level, bits };
}

/** What makes the SMMU write each event. */
const PRODUCERS: Readonly<Record<EventName, (m: Machine) => unknown>> = {
  F_UUT: () => {
    const withoutAts = new Machine();
    withoutAts.stage1Stream();
    withoutAts.ats(VA);
    return withoutAts;
  },
  C_BAD_STREAMID: (m) => m.outcome(VA, false, { streamId: 0xfff }),
  F_STE_FETCH: (m) => {
    m.smmu.writeRegister(0x80, 8, BigInt(NOWHERE));
    m.outcome(VA);
  },
  C_BAD_STE: (m) => m.outcome(VA, false, { streamId: STREAM + 1 }),
  F_BAD_ATS_TREQ: (m) => {
    m.stage1Stream();
    m.ats(VA);
  },
  F_STREAM_DISABLED: (m) => {
    m.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: m.allocate(4096) / 64, S1CDMax: 2, S1DSS: 0 });
    m.outcome(VA);
  },
  F_TRANSL_FORBIDDEN: (m) => {
    m.stage1Stream();
    m.smmu.writeRegister(CR0.offset, 4, 0x1d);
    m.run(m.smmu.passTranslated({ streamId: STREAM, iova: VA, write: true }));
  },
  C_BAD_SUBSTREAMID: (m) => {
    m.stage1Stream();
    m.outcome(VA, false, { substreamId: 3 });
  },
  F_CD_FETCH: (m) => {
    m.writeSte({ Config: STE_CONFIG.S1_TRANS, S1ContextPtr: NOWHERE / 64 });
    m.outcome(VA);
  },
  C_BAD_CD: (m) => {
    m.stage1Stream({ V: 0 });
    m.outcome(VA);
  },
  F_WALK_EABT: (m) => {
    m.stage1Stream({ TTB0: NOWHERE / 16 });
    m.outcome(VA);
  },
  F_TRANSLATION: (m) => {
    m.stage1Stream();
    m.outcome(VA);
  },
  F_ADDR_SIZE: (m) => {
    const root = m.stage1Stream({ IPS: 0 });
    m.map(root, 12, 48, 0, leaf(PAGE_BITS.readWrite, 3, 0x900000000));
    m.outcome(VA);
  },
  F_ACCESS: (m) => {
    m.map(m.stage1Stream(), 12, 48, 0, leaf(PAGE_BITS.noAccessFlag));
    m.outcome(VA);
  },
  F_PERMISSION: (m) => {
    m.map(m.stage1Stream(), 12, 48, 0, leaf(PAGE_BITS.readOnly));
    m.outcome(VA, true);
  },
  F_TLB_CONFLICT: (m) => {
    const root = m.stage1Stream();
    m.map(root, 12, 48, 0, leaf(PAGE_BITS.readWrite, 3));
    expect(m.outcome(VA)).toBe(0x80000000);
    // The table becomes a block without having been taken away before, and a neighbour brings the block into the TLB.
    m.map(root, 12, 48, 0, leaf(PAGE_BITS.readWrite, 2));
    expect(m.outcome(VA + 0x1000n)).toBe(0x80000000 + (Number(VA) % 0x200000) + 0x1000);
    m.outcome(VA);
  },
  F_CFG_CONFLICT: (m) => {
    const table = m.allocate(4 * CD.sizeBytes);
    const ste = { Config: STE_CONFIG.S1_TRANS, S1ContextPtr: table / 64, S1CDMax: 2, S1DSS: 2 };
    for (const ssid of [1, 2]) m.writeCd(m.allocate(4096), { ASID: ssid }, table + ssid * CD.sizeBytes);
    m.writeSte(ste);
    m.outcome(VA, false, { substreamId: 1 });
    m.writeSte({ ...ste, S1CSH: 3 });
    m.outcome(VA, false, { substreamId: 2 });
  },
  E_PAGE_REQUEST: (m) => {
    m.smmu.hintPage({ streamId: STREAM, iova: VA, write: false });
  },
};

test.each(Object.keys(PRODUCERS) as EventName[])('event %s', (name) => {
  const m = new Machine({ identification: full });
  const other = PRODUCERS[name](m);
  const machine = other instanceof Machine ? other : m;
  expect(machine.eventProducer).toBeGreaterThan(0);
  expect(machine.event(machine.eventProducer - 1).Type).toBe(EVENT[name]);
});

test('the list of producers is the list of events', () => {
  expect(Object.keys(PRODUCERS).sort()).toEqual(Object.keys(EVENT).sort());
});

/** Commands of Exception levels that this SMMU has no streams of. */
const ILLEGAL: readonly string[] = [
  'TLBI_EL3_ALL',
  'TLBI_EL3_VA',
  'TLBI_EL2_ALL',
  'TLBI_EL2_ASID',
  'TLBI_EL2_VA',
  'TLBI_EL2_VAA',
];

test.each(Object.entries(CMD_OP))('command %s', (name, Opcode) => {
  const m = new Machine({ identification: full });
  m.queue(CMD.make({ Opcode }));
  m.settle();
  const cons = [m.commandConsumer];
  const isIllegal = ILLEGAL.includes(name);
  expect([CMDQ_CONS.get(cons, 'RD'), CMDQ_CONS.get(cons, 'ERR')]).toEqual(
    isIllegal ? [0, CERROR.ILL] : [1, CERROR.NONE],
  );
});
