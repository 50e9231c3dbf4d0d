/** The SMMU at its boundary: registers, tables in memory, queues, transactions. Recorded behaviour is in test/conformance/smmuv3. */
import { describe, expect, test } from 'vitest';
import { UnbuildableError } from '../../../src/hardware/description.js';
import { identificationOf } from '../../../src/hardware/smmu/identification.js';
import {
  CERROR,
  CMD,
  CMD_CFGI,
  CMD_OP,
  CMD_SYNC,
  CMD_TLBI,
  EVENT,
  STE_CONFIG,
} from '../../../src/hardware/smmu/records.js';
import {
  CMDQ_CONS,
  CR0,
  CR0ACK,
  EVENTQ_CONS,
  GBPA,
  GERROR,
  GERRORN,
  IDR0,
  IDR1,
  IDR3,
  IDR5,
} from '../../../src/uapi/smmuv3-registers.js';
import { DBM_HIGH, DESCRIPTION, Machine, PAGE_BITS, STREAM, type Leaf } from './machine.js';

const PAGE = 0x1_2345_6000;
const PA = 0x60000000;
const PA_OTHER = 0x60001000;
const AF_BIT = 1 << 10;
const AP2_BIT = 1 << 7;

function page(overrides: Partial<Leaf> = {}): Leaf {
  return { address: PAGE, pa: PA, level: 3, bits: PAGE_BITS.readWrite, ...overrides };
}

/** A machine with one stage 1 page; `descriptor` is where its descriptor lies. */
function stage1Machine(leaf: Partial<Leaf> = {}, cd: Parameters<Machine['stage1Stream']>[0] = {}) {
  const machine = new Machine();
  const root = machine.stage1Stream(cd);
  const descriptor = machine.map(root, 12, 48, 0, page(leaf));
  return { machine, root, descriptor };
}

/** A machine whose stream translates through both stages; every stage 1 structure is mapped 1:1 by stage 2. */
function nestedMachine(
  leaf: Partial<Leaf> = {},
  ste: Parameters<Machine['writeSte']>[0] = {},
  cd: Parameters<Machine['stage1Stream']>[0] = {},
) {
  const machine = new Machine();
  const s2root = machine.allocate(8192);
  const root = machine.allocate(4096);
  const context = machine.writeCd(root, { IPS: 2, ...cd });
  const descriptor = machine.map(root, 12, 48, 0, page({ pa: 0x70000000, ...leaf }));
  const mapS2 = (address: number, pa: number, bits: number, highBits = 0): number =>
    machine.map(s2root, 12, 40, 1, { address, pa, level: 3, bits, highBits });
  for (let offset = 0; offset < 0x40000; offset += 4096)
    mapS2(0x50000000 + offset, 0x50000000 + offset, PAGE_BITS.s2ReadWrite);
  const s2descriptor = mapS2(0x70000000, PA, PAGE_BITS.s2ReadWrite);
  machine.writeSte({ Config: STE_CONFIG.NESTED, S1ContextPtr: context / 64, ...machine.stage2Fields(s2root), ...ste });
  return { machine, descriptor, s2descriptor, mapS2 };
}

describe('identification', () => {
  test('registers say what the description says', () => {
    const {
      IDR0: idr0,
      IDR1: idr1,
      IDR3: idr3,
      IDR5: idr5,
    } = identificationOf({
      ...DESCRIPTION,
      outputBits: 44,
      httu: 'access',
      granules: ['4k', '64k'],
      rangeInvalidation: false,
    });
    expect(IDR0.decode([idr0])).toMatchObject({ S1P: 1, S2P: 1, TTF: 2, HTTU: 1, COHACC: 1, ST_LEVEL: 1, ATS: 0 });
    expect(IDR1.decode([idr1])).toMatchObject({ SIDSIZE: 16, SSIDSIZE: 0 });
    expect(IDR3.decode([idr3])).toMatchObject({ RIL: 0 });
    expect(IDR5.decode([idr5])).toMatchObject({ OAS: 4, GRAN4K: 1, GRAN16K: 0, GRAN64K: 1, VAX: 0 });
  });

  test('an output size that no SMMU has is refused', () => {
    expect(() => identificationOf({ ...DESCRIPTION, outputBits: 46 })).toThrow(UnbuildableError);
  });
});

describe('registers', () => {
  test('CR0 is acknowledged and identification cannot be written', () => {
    const machine = new Machine();
    expect(machine.smmu.readRegister(CR0ACK.offset, 4)).toBe(0xd);
    const before = machine.smmu.readRegister(IDR0.offset, 4);
    machine.smmu.writeRegister(IDR0.offset, 4, 0);
    expect(machine.smmu.readRegister(IDR0.offset, 4)).toBe(before);
    expect(machine.smmu.readRegister(IDR0.offset, 8)).toBe(
      (BigInt(machine.smmu.readRegister(IDR1.offset, 4)) << 32n) | BigInt(before),
    );
  });

  test('a disabled SMMU passes addresses within the OAS, or aborts as GBPA says', () => {
    const machine = new Machine();
    machine.smmu.writeRegister(CR0.offset, 4, 0);
    expect(machine.outcome(0x1234n)).toBe(0x1234);
    expect(machine.outcome(1n << 48n)).toBe('abort');
    machine.smmu.writeRegister(GBPA.offset, 4, 1 << 20);
    expect(machine.outcome(0x1234n)).toBe(0x1234);
    machine.smmu.writeRegister(GBPA.offset, 4, 0x80100000);
    expect(machine.outcome(0x1234n)).toBe('abort');
    expect(machine.eventProducer).toBe(0);
  });
});

describe('stage 1', () => {
  test('a page translates up to its last byte', () => {
    const { machine } = stage1Machine();
    expect(machine.translate(BigInt(PAGE) + 0x123n, true)).toEqual({
      ok: true,
      pa: PA + 0x123,
      sameTo: BigInt(PAGE) + 0xfffn,
    });
  });

  test('a block translates as a whole', () => {
    const { machine } = stage1Machine({ address: 0x1_4000_0000, pa: 0x80000000, level: 1 });
    expect(machine.translate(0x1_4123_4567n, false)).toEqual({ ok: true, pa: 0x81234567, sameTo: 0x1_7fff_ffffn });
  });

  test.each([
    ['unmapped', page({ address: 0x9000 }), {}, 'F_TRANSLATION'],
    ['no access flag', page({ bits: PAGE_BITS.noAccessFlag }), {}, 'F_ACCESS'],
    ['read-only', page({ bits: PAGE_BITS.readOnly }), {}, 'F_PERMISSION'],
    ['privileged only', page({ bits: PAGE_BITS.privileged }), {}, 'F_PERMISSION'],
    ['output beyond IPS', page({ pa: 0x1_0000_0000 }), { IPS: 0 }, 'F_ADDR_SIZE'],
  ] as const)('%s: %s faults a write', (_, leaf, cd, event) => {
    const { machine } = stage1Machine(leaf, cd);
    expect(machine.outcome(BigInt(PAGE), true)).toBe(event);
    expect(machine.event(0)).toMatchObject({
      Type: EVENT[event],
      StreamID: STREAM,
      RnW: 0,
      PnU: 0,
      S2: 0,
      CLASS: 2,
      InputAddrLow: PAGE % 2 ** 32,
      InputAddrHigh: 1,
    });
  });

  test('privileged transactions reach privileged pages', () => {
    const { machine } = stage1Machine({ bits: PAGE_BITS.privileged });
    expect(machine.outcome(BigInt(PAGE), true, { privileged: true })).toBe(PA);
  });

  test('CD.R = 0 silences the fault', () => {
    const { machine } = stage1Machine({ bits: PAGE_BITS.readOnly }, { R: 0 });
    expect(machine.outcome(BigInt(PAGE), true)).toBe('F_PERMISSION');
    expect(machine.eventProducer).toBe(0);
  });

  test('a substream is refused', () => {
    const { machine } = stage1Machine();
    expect(machine.outcome(BigInt(PAGE), false, { substreamId: 9 })).toBe('C_BAD_SUBSTREAMID');
    expect(machine.event(0)).toMatchObject({ SSV: 1, SubstreamID: 9 });
  });
});

describe('hardware update of descriptors', () => {
  test('access flag', () => {
    const { machine, descriptor } = stage1Machine({ bits: PAGE_BITS.noAccessFlag }, { HA: 1 });
    expect(machine.outcome(BigInt(PAGE))).toBe(PA);
    expect(machine.descriptor(descriptor)[0] & AF_BIT).toBe(AF_BIT);
  });

  test('dirty state: a read leaves writable-clean, a write makes it dirty even after a cached read', () => {
    const { machine, descriptor } = stage1Machine({ bits: PAGE_BITS.readOnly, highBits: DBM_HIGH }, { HA: 1, HD: 1 });
    expect(machine.outcome(BigInt(PAGE))).toBe(PA);
    expect(machine.descriptor(descriptor)[0] & AP2_BIT).toBe(AP2_BIT);
    expect(machine.outcome(BigInt(PAGE), true)).toBe(PA);
    expect(machine.descriptor(descriptor)[0] & AP2_BIT).toBe(0);
    expect(machine.smmu.tlbEntries).toBe(1);
  });

  test('a write through a dirty TLB entry does not see the descriptor made clean without invalidation', () => {
    const { machine, root, descriptor } = stage1Machine(
      { bits: PAGE_BITS.readOnly, highBits: DBM_HIGH },
      { HA: 1, HD: 1 },
    );
    machine.outcome(BigInt(PAGE), true);
    machine.map(root, 12, 48, 0, page({ bits: PAGE_BITS.readOnly, highBits: DBM_HIGH }));
    expect(machine.outcome(BigInt(PAGE), true)).toBe(PA);
    expect(machine.descriptor(descriptor)[0] & AP2_BIT).toBe(AP2_BIT);
    machine.command(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ASID, ASID: 7, VMID: 3 }));
    machine.outcome(BigInt(PAGE), true);
    expect(machine.descriptor(descriptor)[0] & AP2_BIT).toBe(0);
  });

  test('fault smmu.dirty-lost: the write passes, the descriptor stays clean; the next write sets it', () => {
    const { machine, descriptor } = stage1Machine({ bits: PAGE_BITS.readOnly, highBits: DBM_HIGH }, { HA: 1, HD: 1 });
    machine.runtime.faults.arm('smmu.dirty-lost', { count: 1 });
    expect(machine.outcome(BigInt(PAGE), true)).toBe(PA);
    expect(machine.descriptor(descriptor)[0] & AP2_BIT).toBe(AP2_BIT);
    machine.outcome(BigInt(PAGE), true);
    expect(machine.descriptor(descriptor)[0] & AP2_BIT).toBe(0);
  });

  test('stage 2 dirty state', () => {
    const { machine, mapS2 } = nestedMachine({}, { S2HA: 1, S2HD: 1 });
    const s2descriptor = mapS2(0x70000000, PA, PAGE_BITS.s2ReadOnly, DBM_HIGH);
    expect(machine.outcome(BigInt(PAGE), true)).toBe(PA);
    expect(machine.descriptor(s2descriptor)[0] & AP2_BIT).toBe(AP2_BIT);
  });

  test('a stage 1 update needs stage 2 write permission for the table', () => {
    const { machine, descriptor, mapS2 } = nestedMachine({ bits: PAGE_BITS.noAccessFlag }, {}, { HA: 1 });
    const table = descriptor - (descriptor % 4096);
    mapS2(table, table, PAGE_BITS.s2ReadOnly);
    expect(machine.outcome(BigInt(PAGE))).toBe('F_PERMISSION');
    expect(machine.event(0)).toMatchObject({ S2: 1, CLASS: 1, IPA: Math.floor(descriptor / 4096), RnW: 1 });
    expect(machine.descriptor(descriptor)[0] & AF_BIT).toBe(0);
  });

  test('no stage 1 dirty state when stage 2 denies the write', () => {
    const { machine, descriptor, mapS2 } = nestedMachine(
      { bits: PAGE_BITS.readOnly, highBits: DBM_HIGH },
      {},
      { HA: 1, HD: 1 },
    );
    mapS2(0x70000000, PA, PAGE_BITS.s2ReadOnly);
    expect(machine.outcome(BigInt(PAGE), true)).toBe('F_PERMISSION');
    expect(machine.descriptor(descriptor)[0] & AP2_BIT).toBe(AP2_BIT);
  });
});

describe('both stages', () => {
  test('the result of stage 1 goes through stage 2', () => {
    const { machine } = nestedMachine();
    expect(machine.translate(BigInt(PAGE) + 4n, true)).toEqual({ ok: true, pa: PA + 4, sameTo: BigInt(PAGE) + 0xfffn });
  });

  test('a stage 2 fault names the IPA; S2R = 0 silences it', () => {
    const { machine } = nestedMachine({ pa: 0x7000_5000 });
    expect(machine.outcome(BigInt(PAGE))).toBe('F_TRANSLATION');
    expect(machine.event(0)).toMatchObject({ S2: 1, CLASS: 2, IPA: 0x70005 });
    const quiet = nestedMachine({ pa: 0x7000_5000 }, { S2R: 0 });
    expect(quiet.machine.outcome(BigInt(PAGE))).toBe('F_TRANSLATION');
    expect(quiet.machine.eventProducer).toBe(0);
  });
});

describe('caches', () => {
  test('a translation stays until it is invalidated, whatever memory says', () => {
    const { machine, root } = stage1Machine();
    machine.outcome(BigInt(PAGE));
    machine.map(root, 12, 48, 0, page({ pa: PA_OTHER }));
    expect(machine.outcome(BigInt(PAGE))).toBe(PA);
    machine.command(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_ASID, ASID: 8, VMID: 3 }));
    expect(machine.outcome(BigInt(PAGE))).toBe(PA);
    machine.command(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NH_VA, ASID: 7, VMID: 3, Leaf: 1, Address: PAGE / 4096 }));
    expect(machine.outcome(BigInt(PAGE))).toBe(PA_OTHER);
  });

  test('a range invalidation removes what it covers', () => {
    const { machine, root } = stage1Machine();
    machine.outcome(BigInt(PAGE));
    machine.map(root, 12, 48, 0, page({ pa: PA_OTHER }));
    const range = { Opcode: CMD_OP.TLBI_NH_VA, ASID: 7, VMID: 3, TG: 1, NUM: 3, SCALE: 0 };
    machine.command(CMD_TLBI.make({ ...range, Address: PAGE / 4096 - 4 }));
    expect(machine.outcome(BigInt(PAGE))).toBe(PA);
    machine.command(CMD_TLBI.make({ ...range, Address: PAGE / 4096 - 3 }));
    expect(machine.outcome(BigInt(PAGE))).toBe(PA_OTHER);
  });

  test('fault smmu.drop-tlbi: consumed, but nothing is forgotten', () => {
    const { machine, root } = stage1Machine();
    machine.outcome(BigInt(PAGE));
    machine.map(root, 12, 48, 0, page({ pa: PA_OTHER }));
    machine.runtime.faults.arm('smmu.drop-tlbi', { count: 1 });
    machine.command(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NSNH_ALL }));
    expect(machine.outcome(BigInt(PAGE))).toBe(PA);
    machine.command(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NSNH_ALL }));
    expect(machine.outcome(BigInt(PAGE))).toBe(PA_OTHER);
  });

  test('a stream table entry stays until CMD_CFGI_STE', () => {
    const { machine } = stage1Machine();
    machine.outcome(BigInt(PAGE));
    machine.writeSte({ Config: STE_CONFIG.ABORT });
    expect(machine.outcome(BigInt(PAGE))).toBe(PA);
    machine.command(CMD_CFGI.make({ Opcode: CMD_OP.CFGI_STE, StreamID: STREAM, Leaf: 1 }));
    expect(machine.outcome(BigInt(PAGE))).toBe('abort');
    expect(machine.eventProducer).toBe(0);
  });

  test('what a walk read before an invalidation is not cached after it, wherever the walk was', () => {
    // Both stages: between reading the stage 1 descriptor and the end of the walk there are further scheduling points.
    for (let gates = 0; ; gates++) {
      const { machine, mapS2, descriptor } = nestedMachine();
      mapS2(0x70001000, PA_OTHER, PAGE_BITS.s2ReadWrite);
      const walk = machine.smmu.translate({ streamId: STREAM, iova: BigInt(PAGE), write: false });
      for (let i = 0; i < gates; i++) expect(walk.next().done).toBe(false);
      const [lo, hi] = machine.descriptor(descriptor);
      machine.memory.store64(descriptor, lo + 0x1000, hi);
      machine.queue(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NSNH_ALL }));
      machine.settle();
      expect(machine.commandConsumer).toBe(1);
      let step = walk.next();
      const atEnd = step.done;
      while (step.done !== true) step = walk.next();
      expect(machine.outcome(BigInt(PAGE))).toBe(PA_OTHER);
      if (atEnd === true) {
        expect(gates).toBeGreaterThan(20);
        break;
      }
    }
  });
});

describe('command queue', () => {
  test('an unsupported command stops the queue until software acknowledges and replaces it', () => {
    const { machine } = stage1Machine();
    machine.command(CMD.make({ Opcode: CMD_OP.TLBI_EL2_ALL }));
    expect(CMDQ_CONS.decode([machine.commandConsumer])).toEqual({ RD: 0, ERR: CERROR.ILL });
    expect(machine.smmu.readRegister(GERROR.offset, 4)).toBe(1);
    expect(machine.irqs).toEqual(['gerror']);
    machine.writeRecord(machine.commandQueueAddress, CMD_SYNC.make({ Opcode: CMD_OP.SYNC }));
    machine.settle();
    expect(machine.commandConsumer & 0xfffff).toBe(0);
    machine.smmu.writeRegister(GERRORN.offset, 4, 1);
    machine.settle();
    expect(machine.commandConsumer & 0xfffff).toBe(2);
  });

  test.each([CMD_OP.ATC_INV, CMD_OP.PRI_RESP, CMD_OP.RESUME, CMD_OP.STALL_TERM, CMD_OP.TLBI_EL3_ALL, 0x00, 0xff])(
    'opcode %i is illegal here',
    (opcode) => {
      const machine = new Machine();
      machine.command(CMD.make({ Opcode: opcode }));
      expect(CMDQ_CONS.get([machine.commandConsumer], 'ERR')).toBe(CERROR.ILL);
    },
  );

  test('CMD_SYNC waits for transactions that began before it and signals by interrupt', () => {
    const { machine } = stage1Machine();
    const ticket = machine.smmu.beginTransaction();
    machine.queue(CMD_TLBI.make({ Opcode: CMD_OP.TLBI_NSNH_ALL }), CMD_SYNC.make({ Opcode: CMD_OP.SYNC, CS: 1 }));
    machine.settle();
    expect(machine.commandConsumer).toBe(1);
    machine.smmu.beginTransaction();
    machine.smmu.endTransaction(ticket);
    machine.settle();
    expect(machine.commandConsumer).toBe(2);
    expect(machine.irqs).toEqual(['cmdq-sync']);
  });

  test('commands cost virtual time', () => {
    const machine = new Machine();
    machine.queue(CMD_SYNC.make({ Opcode: CMD_OP.SYNC }));
    machine.runtime.scheduler.runUntil(1);
    expect(machine.commandConsumer).toBe(0);
    machine.settle();
    expect(machine.commandConsumer).toBe(1);
  });
});

describe('event queue', () => {
  test('interrupts when it stops being empty; overflow toggles OVFLG once until acknowledged', () => {
    const machine = new Machine();
    machine.writeSte({ V: 0 });
    for (let i = 0; i < 18; i++) machine.outcome(0n);
    expect(machine.irqs).toEqual(['eventq']);
    expect(machine.eventProducer >>> 0).toBe(0x80000010);
    expect(machine.smmu.readRegister(GERROR.offset, 4)).toBe(0);
    machine.smmu.writeRegister(EVENTQ_CONS.offset, 4, 0x80000010);
    machine.outcome(0n);
    expect(machine.eventProducer >>> 0).toBe(0x80000011);
    expect(machine.irqs).toEqual(['eventq', 'eventq']);
    expect(machine.event(0).Type).toBe(EVENT.C_BAD_STE);
  });

  test('faults are in the history even where they are not in the queue', () => {
    const { machine } = stage1Machine({ bits: PAGE_BITS.readOnly }, { R: 0 });
    machine.outcome(BigInt(PAGE), true);
    const fault = machine.runtime.drainEvents().find((event) => event.kind === 'smmu.fault');
    expect(fault?.data).toMatchObject({ smmu: 'smmu0', event: 'F_PERMISSION', iova: BigInt(PAGE), recorded: false });
  });
});

test('an address beyond the OAS does not bypass an STE that bypasses', () => {
  const machine = new Machine();
  machine.writeSte({ Config: STE_CONFIG.BYPASS });
  expect(machine.outcome(0x1_0000_0000n)).toBe(0x1_0000_0000);
  expect(machine.outcome(1n << 48n)).toBe('F_ADDR_SIZE');
});
