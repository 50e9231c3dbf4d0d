/** Slots, secondary bus reset and virtual functions, by the registers that software sees. */
import { describe, expect, test } from 'vitest';
import type { HostDescription, PciFunctionDescription } from '../../src/hardware/description.js';
import type { PciFunction } from '../../src/hardware/pcie/function.js';
import {
  PCI_BRIDGE_CONTROL,
  PCI_BRIDGE_CTL_BUS_RESET,
  PCI_CAP_ID_EXP,
  PCI_COMMAND,
  PCI_EXP_LNKCTL,
  PCI_EXP_SLTCTL,
  PCI_EXT_CAP_ID_SRIOV,
  PCI_SRIOV_CTRL,
  PCI_SRIOV_NUM_VF,
} from '../../src/uapi/pci-regs.js';
import { ampereLike, dmaEngineAt } from '../fixtures/hosts.js';
import { BoardMachine } from './machine.js';

const PORT: PciFunctionDescription = {
  bdf: '0000:00:01.0',
  model: 'bridge',
  vendor: 0x1def,
  device: 0xe100,
  classCode: 0x060400,
  bridge: { secondaryBus: 1, subordinateBus: 1 },
  slot: { number: 5, surprise: true },
};
const CARD = '0000:01:00.0';

function withSlot(card: Partial<PciFunctionDescription> = {}): HostDescription {
  return ampereLike({ functions: [PORT, dmaEngineAt(CARD, card)] });
}

function slotOf(port: PciFunction): Record<string, number> {
  const at = port.findCapability(PCI_CAP_ID_EXP);
  const { PDS, PDC, ABP, DLLSC, PCC } = PCI_EXP_SLTCTL.decode([port.configRead(at + PCI_EXP_SLTCTL.offset, 4)]);
  const { DLLLA } = PCI_EXP_LNKCTL.decode([port.configRead(at + PCI_EXP_LNKCTL.offset, 4)]);
  return { PDS, PDC, ABP, DLLSC, PCC, DLLLA };
}

function writeControl(port: PciFunction, value: number): void {
  port.configWrite(port.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_SLTCTL.offset, 2, value);
}

const POWER_OFF = 1 << 10;

describe('a slot', () => {
  test('with a card at power-on: present, powered, link up', () => {
    const machine = new BoardMachine(withSlot());
    expect(slotOf(machine.function(PORT.bdf))).toEqual({ PDS: 1, PDC: 0, ABP: 0, DLLSC: 0, PCC: 0, DLLLA: 1 });
  });

  test('empty, then a card: it answers when software gives it power', () => {
    const machine = new BoardMachine(withSlot({ absent: true }));
    const port = machine.function(PORT.bdf);
    expect(slotOf(port)).toMatchObject({ PDS: 0, PCC: 1, DLLLA: 0 });
    expect(machine.board.plug(CARD)).toBe(0);
    expect(slotOf(port)).toMatchObject({ PDS: 1, PDC: 1, DLLLA: 0 });
    expect(machine.function(CARD).configRead(0, 4)).toBe(0xffffffff);
    writeControl(port, 0);
    expect(slotOf(port)).toMatchObject({ PDS: 1, DLLLA: 1, DLLSC: 1 });
    expect(machine.function(CARD).configRead(0, 2)).not.toBe(0xffff);
    expect(machine.board.plug(CARD)).toBe(-16);
  });

  test('changes are latched until a one is written to them', () => {
    const machine = new BoardMachine(withSlot());
    const port = machine.function(PORT.bdf);
    machine.board.unplug(CARD);
    expect(slotOf(port)).toMatchObject({ ABP: 1, PDS: 1 });
    const status = port.findCapability(PCI_CAP_ID_EXP) + PCI_EXP_SLTCTL.offset + 2;
    port.configWrite(status, 2, 0);
    expect(slotOf(port)).toMatchObject({ ABP: 1 });
    port.configWrite(status, 2, 1);
    expect(slotOf(port)).toMatchObject({ ABP: 0, PDS: 1 });
  });

  test('without power the card is gone, and comes back in its reset state', () => {
    const machine = new BoardMachine(withSlot());
    const fn = machine.enabled(CARD);
    const port = machine.function(PORT.bdf);
    writeControl(port, POWER_OFF);
    expect([fn.isPresent, slotOf(port)]).toMatchObject([false, { PDS: 1, DLLLA: 0 }]);
    writeControl(port, 0);
    expect([fn.isPresent, fn.isBusMaster]).toEqual([true, false]);
  });

  test('torn out: the port says so, and the rest of a DMA goes nowhere', () => {
    const machine = new BoardMachine(withSlot());
    const fn = machine.enabled(CARD);
    machine.runtime.scheduler.callAt(500, () => machine.board.yank(CARD));
    expect(machine.run(fn.dmaWrite(0x80000000n, new Uint8Array(16384))).ok).toBe(false);
    expect(machine.board.analyser.records[0]?.ends.at(-1)).toMatchObject({ kind: 'aborted', where: `${CARD} is gone` });
    expect(slotOf(machine.function(PORT.bdf))).toMatchObject({ PDS: 0, PDC: 1, DLLSC: 1, DLLLA: 0 });
  });
});

test('a secondary bus reset forgets what is below, and only that', () => {
  const machine = new BoardMachine(ampereLike({ functions: [PORT, dmaEngineAt(CARD), dmaEngineAt('0000:00:02.0')] }));
  const [below, beside] = [machine.enabled(CARD), machine.enabled('0000:00:02.0')];
  machine.function(PORT.bdf).configWrite(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET);
  expect([below.isBusMaster, beside.isBusMaster]).toEqual([false, true]);
  expect(machine.function(PORT.bdf).configRead(PCI_COMMAND, 2) & 6).toBe(6);
});

test('virtual functions are there while VF Enable is set, NumVFs of them, and not after a reset of the physical one', () => {
  const vfs = ['0000:01:10.0', '0000:01:10.2'];
  const sriov = { totalVfs: 2, numVfs: 0, offset: 128, stride: 2, deviceId: 0xda01 };
  const machine = new BoardMachine(
    ampereLike({
      functions: [PORT, dmaEngineAt(CARD, { sriov }), ...vfs.map((bdf) => dmaEngineAt(bdf, { physfn: CARD }))],
    }),
  );
  const pf = machine.function(CARD);
  const present = (): boolean[] => vfs.map((bdf) => machine.function(bdf).isPresent);
  expect(present()).toEqual([false, false]);
  const at = pf.findExtendedCapability(PCI_EXT_CAP_ID_SRIOV);
  pf.configWrite(at + PCI_SRIOV_NUM_VF, 2, 1);
  pf.configWrite(at + PCI_SRIOV_CTRL.offset, 2, 0x9);
  expect(present()).toEqual([true, false]);
  pf.configWrite(at + PCI_SRIOV_NUM_VF, 2, 2);
  expect(present()).toEqual([true, true]);
  pf.reset();
  expect(present()).toEqual([false, false]);
});
