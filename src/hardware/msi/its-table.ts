/**
 * A table that an ITS keeps in memory which software gives it: GITS_BASER<n> and what it points to.
 *
 * A flat table is Size + 1 pages of entries. A two-level one (Indirect) is Size + 1 pages of 8-byte level 1 entries, each with the
 * address of one page of entries or not valid, so that software pays only for the identifiers it uses. Type and Entry_Size
 * are the ITS's and read-only. The table is read at every look: what memory holds counts.
 *
 * Source: Arm IHI 0069 (GICv3) 5.2.1, 12.19 (GITS_BASER<n>).
 */
import { bit, bits, defineRecord } from '../../layout/bits.js';
import type { PhysicalMemory } from '../memory.js';

/** Bits 15:12 of the address field hold PA[51:48] when pages are 64 KiB. Page_Size: 4, 16, 64 KiB. */
export const GITS_BASER = defineRecord('GITS_BASER', 8, {
  Size: bits(0, 8),
  Page_Size: bits(8, 2),
  Shareability: bits(10, 2),
  Physical_Address: bits(12, 36),
  Entry_Size: bits(48, 5),
  OuterCache: bits(53, 3),
  Type: bits(56, 3),
  InnerCache: bits(59, 3),
  Indirect: bit(62),
  Valid: bit(63),
});
/** Offset of GITS_BASER0, and the number of registers. */
export const GITS_BASER_OFFSET = 0x0100;
export const GITS_BASER_COUNT = 8;
export const GITS_BASER_TYPE = { DEVICES: 1, COLLECTIONS: 4 } as const;

/** Level 1 entry of a two-level table; the page is aligned to its size. */
export const GITS_LVL1_ENTRY = defineRecord('GITS_LVL1_ENTRY', 8, { Physical_Address: bits(12, 40), Valid: bit(63) });

/** Bytes of a page by GITS_BASER.Page_Size; 3 is reserved and taken as 64 KiB. */
export const GITS_PAGE_BYTES = [0x1000, 0x4000, 0x1_0000, 0x1_0000] as const;
/** Entry_Size and Type in the high word. */
const READ_ONLY_HIGH = 0x071f_0000;

/** One table with 8-byte entries. */
export class ItsTable {
  static readonly entryBytes = 8;
  readonly #memory: PhysicalMemory;
  readonly #baser: Uint32Array;
  readonly #idEnd: number;

  /** `idBits`: identifiers beyond are out of range however large the table. */
  constructor(memory: PhysicalMemory, type: number, idBits: number) {
    this.#memory = memory;
    this.#baser = GITS_BASER.make({ Type: type, Entry_Size: ItsTable.entryBytes - 1 });
    this.#idEnd = 2 ** idBits;
  }

  /** One half of the register. */
  readBaser(half: 0 | 1): number {
    return this.#baser[half] ?? 0;
  }

  writeBaser(half: 0 | 1, value: number): void {
    const kept = half === 1 ? READ_ONLY_HIGH : 0;
    this.#baser[half] = (value & ~kept) | ((this.#baser[half] ?? 0) & kept);
  }

  /** An entry's two words; undefined for an identifier the table has no memory for. */
  load(id: number): Uint32Array | undefined {
    const address = this.#addressOf(id);
    const entry = new Uint32Array(2);
    return address !== undefined && this.#memory.loadWords(address, entry) ? entry : undefined;
  }

  /** False for an identifier the table has no memory for. */
  store(id: number, entry: Uint32Array): boolean {
    const address = this.#addressOf(id);
    return address !== undefined && this.#memory.store64(address, entry[0] ?? 0, entry[1] ?? 0);
  }

  #addressOf(id: number): number | undefined {
    const { Valid, Indirect, Size, Page_Size, Physical_Address } = GITS_BASER.decode(this.#baser);
    if (Valid === 0 || id >= this.#idEnd) return undefined;
    const pageBytes = GITS_PAGE_BYTES[Page_Size] ?? 0x1_0000;
    const base = tableAddress(Physical_Address, pageBytes);
    const tableBytes = (Size + 1) * pageBytes;
    if (Indirect === 0) return id * ItsTable.entryBytes < tableBytes ? base + id * ItsTable.entryBytes : undefined;
    const idsPerPage = pageBytes / ItsTable.entryBytes;
    const at = Math.floor(id / idsPerPage) * GITS_LVL1_ENTRY.sizeBytes;
    const level1 = new Uint32Array(2);
    if (at >= tableBytes || !this.#memory.loadWords(base + at, level1)) return undefined;
    if (GITS_LVL1_ENTRY.get(level1, 'Valid') === 0) return undefined;
    const page = GITS_LVL1_ENTRY.get(level1, 'Physical_Address') * 4096;
    return page - (page % pageBytes) + (id % idsPerPage) * ItsTable.entryBytes;
  }
}

/** The address field in bytes: PA[47:12], or with 64 KiB pages PA[47:16] and PA[51:48] below. */
function tableAddress(field: number, pageBytes: number): number {
  const address = field * 4096;
  if (pageBytes !== 0x1_0000) return address - (address % pageBytes);
  return address - (address % 0x1_0000) + (field % 16) * 2 ** 48;
}
