/**
 * Watches what software writes into structures that an SMMU may be reading: stream table entries, context descriptors,
 * translation tables. A write that the architecture does not allow ends the run.
 *
 * *Entries* are 64 bytes that the SMMU reads in any mixture of doublewords that were there since software's last CFGI and
 * CMD_SYNC. So, from one to the next, bits that the SMMU looks at may change in one doubleword only (3.21.3): then every
 * mixture is the old entry or the new one. More is a torn entry. Bits whose moment does not matter (MEV, EATS) do not count.
 *
 * *Translations* may not change from one valid descriptor to another: between breaking and making lies a TLBI of the
 * address and a CMD_SYNC (3.21.1). A mapping made before that finds translations of the old one still in use. A table that
 * was taken out may still be walked until a TLBI that is not for leaves alone; its memory is not given back before.
 *
 * It also is where the tables' owner and the walker meet: who owns the table whose root is where, for those who watch shared words.
 *
 * *Tags* (ASIDs, VMIDs) are handed out while no TLB has a translation of them.
 *
 * Source: Arm IHI 0070 3.21; domain.md INV-4, INV-17, INV-18, A6.11.
 */
import type { InvariantLedger } from '../../runtime/invariants.js';
import { invariant, InvariantError } from '../../runtime/task.js';
import { isWatched, sharedRange, sharedRead, sharedTest, sharedWrite } from '../../runtime/watch.js';
import { CD, STE } from './records.js';
import { TLB_KIND, type Tlb, type TlbSelection } from './tlb.js';
import { cdSafeBits, cdUsedBits, steSafeBits, steUsedBits } from './used-bits.js';

const USED_BITS = { STE: steUsedBits, CD: cdUsedBits } as const;
const SAFE_BITS = { STE: steSafeBits, CD: cdSafeBits } as const;
const DOUBLEWORDS = 8;

/** Kinds of structure that are watched as whole entries. */
export type EntryKind = keyof typeof USED_BITS;

interface Entry {
  readonly kind: EntryKind;
  readonly streamIds: readonly number[];
  readonly name: string;
  /** Streams whose configuration was invalidated since the entry changed; all of them must be. */
  readonly done: Set<number>;
  /** What the SMMU may have read of, besides what is there now. */
  stable: Uint32Array;
  current: Uint32Array;
  /** What was there at the last invalidation, until CMD_SYNC completes. */
  invalidated: Uint32Array | undefined;
}

/** What a translation table tells of its changes: bytes of input and output address. */
export interface TranslationWatch {
  mapped(input: number, lengthBytes: number): void;
  /** `isTable`: a table that covers the range went as well. */
  unmapped(input: number, lengthBytes: number, isTable: boolean): void;
  /** The memory of tables that went from the range is given back. */
  tablesFreed(input: number, lengthBytes: number): void;
}

interface StaleRange {
  readonly first: number;
  readonly last: number;
  readonly isInvalidated: boolean;
  /** It is the way to leaves, not leaves: any address of it stands for all. */
  readonly isTable: boolean;
}

interface Table {
  readonly stage: 1 | 2;
  /** ASID (of VMID 0, the kernel's own) or VMID. */
  readonly tag: number;
  /** Unmapped, and perhaps in a TLB. */
  stale: StaleRange[];
}

/** Doublewords of an entry in which bits differ that the SMMU looks at and whose moment matters. */
function changedDoublewords(kind: EntryKind, before: Uint32Array, now: Uint32Array): number[] {
  const [usedBefore, usedNow] = [USED_BITS[kind](before), USED_BITS[kind](now)];
  const safe = SAFE_BITS[kind](before, now);
  const changed: number[] = [];
  for (let word = 0; word < DOUBLEWORDS * 2; word++) {
    const matters = ((usedBefore[word] ?? 0) | (usedNow[word] ?? 0)) & ~(safe[word] ?? 0);
    const differs = (((before[word] ?? 0) ^ (now[word] ?? 0)) & matters) !== 0;
    if (differs && changed.at(-1) !== word >>> 1) changed.push(word >>> 1);
  }
  return changed;
}

/** The part of a range before, inside and after another. */
function cut(range: StaleRange, first: number, last: number): StaleRange[] {
  if (range.last < first || range.first > last) return [range];
  if (range.isTable) return [{ ...range, isInvalidated: true }];
  const parts = [
    { ...range, last: Math.min(range.last, first - 1) },
    { ...range, first: Math.max(range.first, first), last: Math.min(range.last, last), isInvalidated: true },
    { ...range, first: Math.max(range.first, last + 1) },
  ];
  return parts.filter((part) => part.first <= part.last);
}

/** The watcher of one SMMU. */
export class LegalityChecker {
  readonly #name: string;
  readonly #isEnabled: () => boolean;
  readonly #tlb: Pick<Tlb, 'holds'> | undefined;
  readonly #looks: InvariantLedger | undefined;
  readonly #entries = new Map<string, Entry>();
  readonly #tables = new Set<Table>();
  /** Whose table it is, by the address of its root. */
  readonly #owners = new Map<number, object>();

  /** `isEnabled`: whether the SMMU reads structures now. `looks` counts how often something was looked at. */
  constructor(name: string, isEnabled: () => boolean, tlb?: Pick<Tlb, 'holds'>, looks?: InvariantLedger) {
    this.#name = name;
    this.#isEnabled = isEnabled;
    this.#tlb = tlb;
    this.#looks = looks;
  }

  /**
   * Software is about to store a doubleword of an entry whose 64 bytes are `before`. `key` names the entry; a transaction of any of
   * `streamIds` may read it. @throws InvariantError when the SMMU could then read what is neither the old entry nor the new one
   */
  storeEntry(
    kind: EntryKind,
    key: string,
    streamIds: readonly number[],
    before: Uint32Array,
    doubleword: number,
    lo: number,
    hi: number,
  ): void {
    sharedWrite(this, key);
    const entry = this.#entries.get(key) ?? this.#newEntry(kind, key, streamIds, before);
    entry.done.clear();
    entry.current[doubleword * 2] = lo;
    entry.current[doubleword * 2 + 1] = hi;
    if (!this.#isEnabled()) {
      entry.stable = Uint32Array.from(entry.current);
      return;
    }
    const changed = changedDoublewords(kind, entry.stable, entry.current);
    if (changed.length > 1) {
      const record = kind === 'STE' ? STE : CD;
      const was = record.get(entry.stable, 'V') === 0 ? 'invalid and is made valid' : 'valid';
      const torn = `${this.#name}: torn ${kind} of ${entry.name}: doublewords ${changed.join(', ')}`;
      throw new InvariantError(
        `${torn} changed since the last CMD_CFGI and CMD_SYNC while the entry was ${was}`,
        'INV-17',
      );
    }
    this.#looks?.held('INV-17');
  }

  /** Software gives an ASID (`stage` 1) or VMID to a new address space. @throws InvariantError when the TLB has entries of an old one */
  tagTaken(stage: 1 | 2, tag: number): void {
    const selection =
      stage === 1
        ? { kinds: 1 << TLB_KIND.STAGE1, asid: tag, vmid: 0 }
        : { kinds: (1 << TLB_KIND.STAGE2) | (1 << TLB_KIND.NESTED), vmid: tag };
    invariant(
      this.#tlb?.holds(selection) !== true,
      () => `${this.#name}: ${stage === 1 ? 'ASID' : 'VMID'} ${tag} is used again while the TLB has translations of it`,
      'INV-18',
    );
    this.#looks?.held('INV-18');
  }

  #newEntry(kind: EntryKind, key: string, streamIds: readonly number[], before: Uint32Array): Entry {
    const name = `stream ${streamIds.map((id) => `0x${id.toString(16)}`).join(', ')}`;
    const [stable, current] = [Uint32Array.from(before), Uint32Array.from(before)];
    const entry: Entry = { kind, streamIds, name, done: new Set(), stable, current, invalidated: undefined };
    this.#entries.set(key, entry);
    return entry;
  }

  /** The memory of an entry is given back. */
  forgetEntry(key: string): void {
    sharedWrite(this, key);
    this.#entries.delete(key);
  }

  /** The walker looks at (or changes) what leads to an address in the table whose root is there. */
  walked(root: number, input: number, isWrite = false): void {
    if (!isWatched()) return;
    const owner = this.#owners.get(root);
    if (owner === undefined) return;
    sharedRange(owner, '', input, 1, isWrite);
    sharedRead(owner, 'tables', 'there');
  }

  /** Watches the translation table of `owner`, whose root is at an address, until `unwatch`. */
  watchTable(stage: 1 | 2, tag: number, owner: object, root: number): TranslationWatch & { unwatch(): void } {
    const table: Table = { stage, tag, stale: [] };
    this.#tables.add(table);
    this.#owners.set(root, owner);
    const touch = (): void => {
      sharedRead(this, 'invalidations');
      sharedTest(table, 'stale', table.stale.length);
    };
    const isStale = (input: number, lengthBytes: number, tablesOnly: boolean): boolean =>
      this.#isEnabled() &&
      table.stale.some(
        ({ first, last, isTable }) => first <= input + lengthBytes - 1 && last >= input && (isTable || !tablesOnly),
      );
    const at = (input: number): string => `0x${input.toString(16)}`;
    return {
      mapped: (input, lengthBytes) => {
        sharedRead(table, 'stale', table.stale.length);
        sharedRead(this, 'invalidations');
        invariant(
          !isStale(input, lengthBytes, false),
          () =>
            `${this.#name}: stage ${stage} maps ${at(input)} before what was there is invalidated (break-before-make)`,
          'INV-17',
        );
        this.#looks?.held('INV-17');
      },
      unmapped: (input, lengthBytes, isTable) => {
        touch();
        const range = { first: input, last: input + lengthBytes - 1, isInvalidated: false };
        table.stale.push({ ...range, isTable: false });
        if (isTable) table.stale.push({ ...range, isTable: true });
      },
      tablesFreed: (input, lengthBytes) => {
        touch();
        invariant(
          !isStale(input, lengthBytes, true),
          () => `${this.#name}: stage ${stage} gives back a table of ${at(input)} that the SMMU may still walk`,
          'INV-4',
        );
        this.#looks?.held('INV-4');
      },
      unwatch: () => {
        sharedWrite(owner, 'tables', 'there', 'given back');
        this.#tables.delete(table);
        this.#owners.delete(root);
      },
    };
  }

  // --- what the command queue does ---

  /** CMD_CFGI_* of the streams `first`..`last`: those of a stream cover its CDs, CMD_CFGI_CD and CMD_CFGI_CD_ALL (`cdsOnly`) not the STE. */
  configInvalidated(first: number, last: number, cdsOnly = false): void {
    for (const key of isWatched() ? this.#entries.keys() : []) sharedWrite(this, key);
    for (const entry of this.#entries.values()) {
      if (cdsOnly && entry.kind === 'STE') continue;
      for (const id of entry.streamIds) if (id >= first && id <= last) entry.done.add(id);
      if (entry.done.size < entry.streamIds.length) continue;
      entry.done.clear();
      entry.invalidated = Uint32Array.from(entry.current);
    }
  }

  /** CMD_TLBI_*; `leafOnly`: it leaves tables. */
  translationsInvalidated({ kinds, asid, vmid, range }: TlbSelection, leafOnly: boolean): void {
    sharedWrite(this, 'invalidations');
    for (const table of this.#tables) {
      const kind = table.stage === 1 ? TLB_KIND.STAGE1 : TLB_KIND.STAGE2;
      if ((kinds & (1 << kind)) === 0) continue;
      const of = table.stage === 1 ? { asid: table.tag, vmid: 0 } : { asid: undefined, vmid: table.tag };
      if (asid !== undefined && of.asid !== undefined && asid !== of.asid) continue;
      if (vmid !== undefined && vmid !== of.vmid) continue;
      const [first, last] = range === undefined ? [0, Infinity] : [range.start, range.last];
      table.stale = table.stale.flatMap((stale) => (stale.isTable && leafOnly ? [stale] : cut(stale, first, last)));
    }
  }

  /** CMD_SYNC completed: what was invalidated before it is gone. */
  synced(): void {
    sharedWrite(this, 'invalidations');
    for (const key of isWatched() ? this.#entries.keys() : []) sharedWrite(this, key);
    for (const entry of this.#entries.values()) {
      if (entry.invalidated === undefined) continue;
      entry.stable = entry.invalidated;
      entry.invalidated = undefined;
    }
    for (const table of this.#tables)
      if (table.stale.length > 0) table.stale = table.stale.filter((range) => !range.isInvalidated);
  }
}
