/** Interrupts at the boundary a driver sees: whose vector rings, what isolation keeps apart, what the history says. */
import { describe, expect, test } from 'vitest';
import type { HostDescription } from '../../src/hardware/description.js';
import { executeScenario } from '../../src/scenario/execute.js';
import { loadScenario } from '../../src/scenario/load.js';
import { ampereLike, d05Like, dmaEngineAt, x86Like } from '../fixtures/hosts.js';

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
