/**
 * The rules that every run is held against, and how often each was looked at.
 *
 * A rule that is broken ends the run with an {@link InvariantError} of its id. The ledger counts the looks, so that a report can tell
 * a rule that held from one that nothing in the run put to the test.
 *
 * Source: domain.md A7 (INV-1 to INV-20); the rest are the kernel's own debugging aids.
 */

/** Every rule, by the id that reports print. */
export const INVARIANTS = {
  'INV-1': 'a transaction is translated only by an entry that was valid between its issue and its completion',
  'INV-2': 'after UNMAP returned, no transaction reaches the old page',
  'INV-3': 'a page is given back only after INV-2 holds for it; its pins are its references, never fewer than none',
  'INV-4': 'every address in a hardware table came through a mapping and is pinned, a doorbell or a live dma-buf',
  'INV-5': 'accounting returns to what it was when everything is gone',
  'INV-6': 'reserved ranges are those of the attached devices and domains; IOVA_RANGES is their complement',
  'INV-7': 'no mapping and no allowed range overlaps a reserved range',
  'INV-8': 'all devices of a group are in one domain and have one owner',
  'INV-9': 'a system call that fails leaves the state as it was',
  'INV-10': 'the order of plugging does not change what devices can reach',
  'INV-11': 'the dirty report has every page that was written since it was cleared',
  'INV-12': "the destination's memory equals the source's at switchover",
  'INV-13': 'no device starts DMA while it is stopped, none reaches a peer while that is forbidden',
  'INV-14': 'every fault group gets one response, every event is delivered once or counted as lost',
  'INV-15': "a device's interrupt message reaches only its owner's interrupt",
  'INV-16': 'an identifier is not given away while somebody refers to it; a stale one is not found',
  'INV-17': 'an entry of a stream table, a context descriptor or a page table is never seen half old, half new',
  'INV-18': 'an ASID or VMID is used again only after the old one was invalidated',
  'INV-19': 'what a guest was told at its start stays true on every host',
  'INV-20': 'the same scenario, seed and schedule give the same history',
  linearizability:
    'map, unmap and translate of a page have an order that explains their answers, and a range comes and goes as a whole',
  mapped: 'what was mapped stays mapped until it is unmapped',
  'device-state':
    'the state of a device is loaded while it resumes, at no other time, and no more than there is room for',
  mmio: 'the CPU accesses no BAR of a device that does not decode memory',
  'lock-order': 'locks are taken in one order',
  'no-deadlock': 'whatever waits is woken',
  objects: 'objects are used while they live, and leave nothing behind',
  ranges: 'an unmap takes the mappings of its range and no others',
} as const;

export type InvariantId = keyof typeof INVARIANTS;

/** How a rule fared in a run. */
export interface InvariantReport {
  readonly id: InvariantId;
  /** How often it was looked at; nothing put it to the test where it is 0. */
  readonly looks: number;
  /** Why it was looked at no more, where judging it took too long: then the run says nothing of it. */
  readonly givenUp?: string;
}

/** A rule that a run gave up, which makes the run inconclusive; undefined where all were judged to the end. */
export function givenUpIn(
  reports: readonly InvariantReport[],
): { readonly id: InvariantId; readonly why: string } | undefined {
  for (const { id, givenUp } of reports) if (givenUp !== undefined) return { id, why: givenUp };
  return undefined;
}

/** The looks of one node. */
export class InvariantLedger {
  readonly #looks = new Map<InvariantId, number>();
  readonly #givenUp = new Map<InvariantId, string>();
  /** Whether rules are looked at that cost more than a comparison. Off only where their cost is measured. */
  isOn = true;

  /** A rule was looked at, and held. */
  held(id: InvariantId, looks = 1): void {
    this.#looks.set(id, (this.#looks.get(id) ?? 0) + looks);
  }

  /** A rule is not judged to the end; the first reason stays. */
  gaveUp(id: InvariantId, why: string): void {
    if (!this.#givenUp.has(id)) this.#givenUp.set(id, why);
    this.held(id, 0);
  }

  /** What another ledger says. */
  add({ id, looks, givenUp }: InvariantReport): void {
    this.held(id, looks);
    if (givenUp !== undefined) this.gaveUp(id, givenUp);
  }

  report(): InvariantReport[] {
    return [...this.#looks].map(([id, looks]) => {
      const givenUp = this.#givenUp.get(id);
      return givenUp === undefined ? { id, looks } : { id, looks, givenUp };
    });
  }
}
