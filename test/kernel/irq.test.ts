/** Interrupts at the boundary a driver sees: whose vector rings, what isolation keeps apart, what the history says. */
import { describe, expect, test } from 'vitest';
import type { HostDescription, MsiControllerDescription } from '../../src/hardware/description.js';
import { REMAPPING_BASE } from '../../src/hardware/msi/simple.js';
import type { Device } from '../../src/kernel/device.js';
import { IommuCore } from '../../src/kernel/iommu/iommu.js';
import { IrqCore, type MsiVector } from '../../src/kernel/irq.js';
import { ENOSPC } from '../../src/uapi/errno.js';
import { executeScenario } from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';
import { ampereLike, d05Like, dmaEngineAt, x86Like } from '../fixtures/hosts.js';
import { BoardMachine } from '../hardware/machine.js';

/**
 * q's card sets up its vectors first, then p's card writes the word 0x000000`byte` to `address`, where p's card itself sends its
 * messages. Kinds of events of the history, joined.
 */
async function forge(
  host: HostDescription,
  cards: readonly [p: string, q: string],
  address: bigint,
  byte: number,
): Promise<string> {
  const text = `
title: A card writes another card's message
hosts:
  a: { profile: ampere-altra }
processes:
  p: { on: a }
  q: { on: a }
steps:
  - plug: { process: p, device: "${cards[0]}" }
  - plug: { process: q, device: "${cards[1]}" }
  - interrupt: { process: q, device: "${cards[1]}" }
  - map: { process: p, iova: 0x40000000, length: 64 KiB }
  - dma: { process: p, device: "${cards[0]}", write: { to: 0x40000000, length: 1 B, pattern: ${byte} } }
  - dma: { process: p, device: "${cards[0]}", copy: { from: 0x40000000, to: ${address}, length: 4 B }, as: forged }
  - expect: { of: forged, verdict: silent, landed: { kind: doorbell } }
`;
  const hosts = [{ ...host, name: 'a', allowUnsafeInterrupts: true }];
  const scenario = loadScenario('forge.yaml', text, { hosts });
  const { outcome, trace } = await executeScenario(scenario, { seed: 1, placement: 'inline' });
  // A copy reads memory first, so not every piece lands in the doorbell.
  expect(outcome.steps.at(-1)?.result.ends?.at(-1)?.kind).toBe('doorbell');
  return trace.lines.filter((line) => line.includes('irq.') || line.includes('its.')).join('\n');
}

const CARDS = ['0000:01:00.0', '0000:01:00.1'] as const;
const x86Cards = { functions: CARDS.map((bdf) => dmaEngineAt(bdf)) };
const X86_FIRST_VECTOR = 0x30;

describe('a card that writes another card’s message', () => {
  test('raises it at a GICv2m, and the history names both', async () => {
    const frame = { name: 'its0', kind: 'gicv2m', base: 0x8020000n, bypassesIommu: false, isolated: false } as const;
    const history = await forge(ampereLike({ msiControllers: [frame] }), CARDS, 0x8000040n, 80);
    expect(history).toMatch(/irq\.foreign.*80.*/);
    expect(history).toContain(CARDS[0]);
    expect(history).toContain(CARDS[1]);
  });

  test('raises it on x86 without remapping', async () => {
    const window = { name: 'x86-msi', kind: 'x86', base: 0xfee00000n, bypassesIommu: true, isolated: false } as const;
    const host = x86Like({ ...x86Cards, msiControllers: [window] });
    expect(await forge(host, CARDS, 0xfee00000n, X86_FIRST_VECTOR)).toContain('irq.foreign');
  });

  test('is blocked by remapping: compatibility format, another requester’s entry', async () => {
    const plain = await forge(x86Like(x86Cards), CARDS, 0xfee00000n, X86_FIRST_VECTOR);
    expect(plain).toContain('compatibility format');
    const entry = 0xfee00000n + (BigInt(X86_FIRST_VECTOR) << 5n) + 0x10n;
    const remappable = await forge(x86Like(x86Cards), CARDS, entry, 0);
    expect(remappable).toContain("another requester's");
    expect(plain + remappable).not.toContain('irq.foreign');
  });

  test('raises only its own at an ITS', async () => {
    const history = await forge(d05Like({ allowMixedMsi: true }), ['0000:7d:00.0', '0000:7d:00.1'], 0xc6010040n, 0);
    expect(history).not.toContain('irq.foreign');
  });
});

/** A board with the drivers of its interrupt controllers, and devices in no IOMMU group. */
class IrqMachine extends BoardMachine {
  readonly irq: IrqCore;
  readonly #controller: string;

  constructor(description: HostDescription, seed = 1) {
    super(description, seed, { strategy: 'random' });
    this.irq = new IrqCore(this.runtime, this.board, new IommuCore(this.runtime, this.board, description));
    this.#controller = description.msiControllers.at(-1)?.name ?? '';
    this.run(this.irq.start());
  }

  device(bdf: string, msiDeviceId = this.function(bdf).requesterId): Device {
    const fn = this.enabled(bdf);
    return {
      name: bdf,
      function: fn,
      parent: undefined,
      isMultifunction: false,
      streamIds: [],
      busMates: () => [],
      iommu: undefined,
      msiController: this.#controller,
      msiDeviceId,
      driver: undefined,
      driverOverride: undefined,
      group: undefined,
    };
  }

  /** The driver asks for a vector. */
  requested(device: Device, handler: () => void = () => undefined): MsiVector {
    const vector = this.run(this.irq.request(device, 0, handler));
    if (typeof vector === 'number') throw new Error(`errno ${vector}`);
    return vector;
  }

  /** The device sends a message. */
  ring(device: Device, { address, data }: MsiVector): void {
    this.run(device.function.dmaWrite(address, new Uint8Array(Uint32Array.of(data).buffer)));
  }
}

const CONTROLLERS = [
  { name: 'its', kind: 'its', base: 0x8080000n, bypassesIommu: false, isolated: true },
  { name: 'v2m', kind: 'gicv2m', base: 0x8020000n, bypassesIommu: false, isolated: false },
  { name: 'rc', kind: 'in-rc', base: 0x79000000n, bypassesIommu: true, isolated: false },
  { name: 'ir', kind: 'x86', base: 0xfee00000n, bypassesIommu: true, isolated: true },
  { name: 'apic', kind: 'x86', base: 0xfee00000n, bypassesIommu: true, isolated: false },
] as const satisfies readonly MsiControllerDescription[];

function hostWith(...msiControllers: MsiControllerDescription[]): HostDescription {
  const host = ampereLike({ msiControllers });
  return {
    ...host,
    hostBridges: host.hostBridges.map((bridge) => ({ ...bridge, msi: msiControllers.at(-1)?.name ?? '' })),
  };
}

describe('a vector', () => {
  test.each(CONTROLLERS)('of $kind $name runs its handler until it is freed, and is spurious after', (controller) => {
    const machine = new IrqMachine(hostWith(controller));
    const device = machine.device(CARDS[0]);
    let count = 0;
    const vector = machine.requested(device, () => count++);
    machine.ring(device, vector);
    expect([count, machine.irq.vectorsInUse]).toEqual([1, 1]);
    machine.run(machine.irq.free(device, 0, vector));
    machine.ring(device, vector);
    expect([count, machine.irq.vectorsInUse]).toEqual([1, 0]);
    const after = machine.events.filter(({ kind }) => ['irq.spurious', 'its.dropped', 'irq.blocked'].includes(kind));
    expect(after, 'not without a word').toHaveLength(1);
    expect(after.map(({ data }) => data['from'] ?? data['device'])).toEqual([CARDS[0]]);
    expect(machine.eventsOf('its.command-error')).toEqual([]);
  });

  test('of a device that leaves goes with it', () => {
    const machine = new IrqMachine(hostWith(CONTROLLERS[0]));
    const frames = (): number => machine.board.arena.kernelFramesInUse;
    const device = machine.device(CARDS[0]);
    machine.requested(device);
    const before = frames();
    machine.run(machine.irq.forget(device));
    expect([machine.irq.vectorsInUse, frames()]).toEqual([0, before - 1]);
    expect(machine.eventsOf('its.command-error')).toEqual([]);
  });

  test('of a doorbell in the root complex is sent to its own address, not to an IOVA', async () => {
    const controller = { ...CONTROLLERS[2], name: 'its0' };
    const history = await forge(hostWith(controller), CARDS, controller.base, 0);
    expect(history).toMatch(/irq\.request .*address=0x79000000/);
    expect(history).toContain('irq.foreign');
  });

  test('is mapped after its device, whoever comes first with the DeviceID', () => {
    for (let seed = 1; seed <= 40; seed++) {
      const machine = new IrqMachine(hostWith(CONTROLLERS[0]), seed);
      const alias = machine.function(CARDS[0]).requesterId;
      const devices = CARDS.map((bdf) => machine.device(bdf, alias));
      const vectors: (MsiVector | number)[] = [];
      for (const device of devices)
        machine.runtime.spawn(
          device.name,
          (function* () {
            vectors.push(yield* machine.irq.request(device, 0, () => undefined));
          })(),
        );
      machine.settle();
      expect(machine.eventsOf('its.command-error'), `seed ${seed}`).toEqual([]);
      expect(new Set(vectors.map((vector) => (typeof vector === 'number' ? vector : vector.data))).size).toBe(2);
    }
  });

  test('is refused when the DeviceID has no EventID left', () => {
    const machine = new IrqMachine(hostWith(CONTROLLERS[0]));
    const device = machine.device(CARDS[0]);
    const size = 2 ** Math.ceil(Math.log2(device.function.msixVectors));
    const rcs = Array.from({ length: size + 1 }, (_, n) =>
      machine.run(machine.irq.request(device, n, () => undefined)),
    );
    expect(rcs.map((rc) => typeof rc === 'number')).toEqual([...Array<boolean>(size).fill(false), true]);
    expect(rcs.at(-1)).toBe(-ENOSPC);
  });
});

describe('controllers', () => {
  test('of one host start side by side: ITSs without a gap, GICv2m frames', () => {
    const second = { ...CONTROLLERS[0], name: 'its1', base: CONTROLLERS[0].base + 0x20000n };
    const machine = new IrqMachine(hostWith(CONTROLLERS[0], CONTROLLERS[1], second));
    const device = machine.device(CARDS[0]);
    machine.ring(device, machine.requested(device));
    expect(machine.eventsOf('irq').map(({ controller }) => controller)).toEqual(['its1']);
  });

  test('remapping is checked by the bus below a PCIe-to-PCI bridge, by the requester elsewhere', () => {
    const bridgeAt = '0000:01:00.0';
    const [own, behind] = ['0000:02:00.0', '0000:05:01.0'];
    const bridgeDescription = dmaEngineAt(bridgeAt, {
      model: 'bridge',
      type: 'pcie-to-pci-bridge',
      classCode: 0x060400,
      bridge: { secondaryBus: 5, subordinateBus: 5 },
    });
    const card = dmaEngineAt(behind, { type: 'conventional' });
    const host = { ...hostWith(CONTROLLERS[3]), functions: [bridgeDescription, dmaEngineAt(own), card] };
    const machine = new IrqMachine(host);
    const devices = [
      machine.device(own),
      { ...machine.device(behind, 0x0500), parent: machine.device(bridgeAt) },
    ] as const;
    const vectors = devices.map((device) => machine.requested(device));
    const [lo = 0, hi = 0] = [0xb8, 0xbc].map((offset) => machine.board.bus.mmioRead32(REMAPPING_BASE + offset) ?? 0);
    const table = hi * 2 ** 32 + lo - (lo % 4096);
    const sources = vectors.map(({ intid }) => machine.board.memory.load64(table + 16 * intid + 8)?.[0]);
    expect(sources).toEqual([(1 << 18) | 0x0200, (2 << 18) | 0x0505]);
    for (const [index, vector] of vectors.entries()) {
      const device = devices[index];
      if (device !== undefined) machine.ring(device, vector);
    }
    expect(machine.eventsOf('irq').map(({ from }) => from)).toEqual([own, behind]);
  });
});
