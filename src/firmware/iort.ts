/**
 * IORT: how requester IDs of a root complex become StreamIDs of an SMMU and DeviceIDs of an ITS, and memory that firmware
 * asks to be reserved for some streams.
 *
 * The table is a graph of nodes; an ID mapping leads from a node's input IDs to another node's. Following it from a root
 * complex gives the StreamID (at the first SMMU) and the DeviceID (at the ITS group). As Linux does, an RMR descriptor that is
 * not 64 KiB aligned is rounded and noted.
 *
 * Source: Arm DEN 0049 (IO Remapping Table); Linux drivers/acpi/arm64/iort.c; domain.md B1, IF-6.
 */
import { AcpiTable } from './table.js';

const NODE = { ITS_GROUP: 0, ROOT_COMPLEX: 2, SMMU: 3, SMMU_V3: 4, RMR: 6 } as const;
const SINGLE_MAPPING = 1;
const RMR_ALIGN = 0x1_0000n;
/** An ID is mapped at most this often; a table whose nodes lead in a circle ends there. */
const MAX_HOPS = 8;

interface Mapping {
  readonly inputBase: number;
  /** Number of IDs. */
  readonly count: number;
  readonly outputBase: number;
  readonly reference: number;
  readonly isSingle: boolean;
}

/** A node and where it lies in the table. */
interface NodeBase {
  readonly offset: number;
  readonly mappings: readonly Mapping[];
}

/** A group of ITSs, by the IDs the MADT gives them. */
export interface IortItsGroup extends NodeBase {
  readonly kind: 'its-group';
  readonly itsIds: readonly number[];
}

/** An SMMU. `model` 1 is HiSilicon's hip06/07 (SMMUv3 only). */
export interface IortSmmu extends NodeBase {
  readonly kind: 'smmu' | 'smmu-v3';
  readonly base: bigint;
  readonly model: number;
}

/** A PCI root complex. */
export interface IortRootComplex extends NodeBase {
  readonly kind: 'root-complex';
  readonly segment: number;
}

/** Reserved memory for streams of an SMMU. */
export interface IortRmr extends NodeBase {
  readonly kind: 'rmr';
  readonly remapPermitted: boolean;
  readonly ranges: readonly { readonly start: bigint; readonly last: bigint }[];
}

type Node = IortItsGroup | IortSmmu | IortRootComplex | IortRmr;

/** Where an ID comes out. */
export interface IortTarget<T> {
  readonly node: T;
  readonly id: number;
}

/** The table. */
export class Iort {
  readonly nodes: readonly Node[];
  /** Firmware bugs that Linux would complain about. */
  readonly notes: readonly string[];

  /** @throws FirmwareError */
  constructor(bytes: Uint8Array) {
    const table = new AcpiTable('IORT', bytes);
    const notes: string[] = [];
    const nodes: Node[] = [];
    let at = table.u32(40);
    for (let i = 0; i < table.u32(36); i++) {
      const length = table.u16(at + 1);
      if (length < 16 || at + length > table.lengthBytes) throw table.error(at, `a node of ${length} bytes`);
      const node = parseNode(table, at, notes);
      if (node !== undefined) nodes.push(node);
      at += length;
    }
    this.nodes = nodes;
    this.notes = notes;
  }

  /** The first SMMU an ID of a node comes to, and the StreamID there. */
  smmuOf(node: IortRootComplex, id: number): IortTarget<IortSmmu> | undefined {
    return this.#follow(node, id, (at): at is IortSmmu => at.kind === 'smmu' || at.kind === 'smmu-v3');
  }

  /** The ITS group an ID of a node comes to, and the DeviceID there. */
  itsOf(node: IortRootComplex, id: number): IortTarget<IortItsGroup> | undefined {
    return this.#follow(node, id, (at): at is IortItsGroup => at.kind === 'its-group');
  }

  /** Whether an RMR applies to a stream of an SMMU. */
  rmrCovers(rmr: IortRmr, smmu: IortSmmu, streamId: number): boolean {
    return rmr.mappings.some((mapping) => {
      const count = mapping.isSingle ? 1 : mapping.count;
      return (
        mapping.reference === smmu.offset && streamId >= mapping.outputBase && streamId < mapping.outputBase + count
      );
    });
  }

  #follow<T extends Node>(from: Node, id: number, isEnd: (node: Node) => node is T): IortTarget<T> | undefined {
    let node: Node | undefined = from;
    for (let hop = 0; hop < MAX_HOPS && node !== undefined; hop++) {
      const here: Node = node;
      const mapping: Mapping | undefined = here.mappings.find(
        (m) => !m.isSingle && id >= m.inputBase && id < m.inputBase + m.count,
      );
      if (mapping === undefined) return undefined;
      id = mapping.outputBase + (id - mapping.inputBase);
      node = this.nodes.find((candidate) => candidate.offset === mapping.reference);
      if (node !== undefined && isEnd(node)) return { node, id };
    }
    return undefined;
  }
}

function mappingsOf(table: AcpiTable, at: number): Mapping[] {
  const offset = at + table.u32(at + 12);
  return Array.from({ length: table.u32(at + 8) }, (_, i) => {
    const entry = offset + 20 * i;
    return {
      inputBase: table.u32(entry),
      count: table.u32(entry + 4) + 1,
      outputBase: table.u32(entry + 8),
      reference: table.u32(entry + 12),
      isSingle: (table.u32(entry + 16) & SINGLE_MAPPING) !== 0,
    };
  });
}

function parseNode(table: AcpiTable, at: number, notes: string[]): Node | undefined {
  const base = { offset: at, mappings: mappingsOf(table, at) };
  switch (table.u8(at)) {
    case NODE.ITS_GROUP: {
      const itsIds = Array.from({ length: table.u32(at + 16) }, (_, i) => table.u32(at + 20 + 4 * i));
      return { ...base, kind: 'its-group', itsIds };
    }
    case NODE.ROOT_COMPLEX:
      return { ...base, kind: 'root-complex', segment: table.u32(at + 28) };
    case NODE.SMMU:
      return { ...base, kind: 'smmu', base: table.u64(at + 16), model: table.u32(at + 32) };
    case NODE.SMMU_V3:
      return { ...base, kind: 'smmu-v3', base: table.u64(at + 16), model: table.u32(at + 40) };
    case NODE.RMR: {
      const descriptors = at + table.u32(at + 24);
      const ranges = Array.from({ length: table.u32(at + 20) }, (_, i) => {
        const start = table.u64(descriptors + 20 * i);
        const length = table.u64(descriptors + 20 * i + 8);
        return alignRmr(start, length, notes);
      });
      return { ...base, kind: 'rmr', remapPermitted: (table.u32(at + 16) & 1) !== 0, ranges };
    }
    default:
      return undefined;
  }
}

function alignRmr(start: bigint, length: bigint, notes: string[]): { readonly start: bigint; readonly last: bigint } {
  const end = start + length;
  const text = `RMR descriptor[0x${start.toString(16)} - 0x${(end - 1n).toString(16)}]`;
  if (length === 0n)
    notes.push(`[Firmware Bug]: RMR descriptor[0x${start.toString(16)}] with zero length, continue anyway`);
  else if (start % RMR_ALIGN !== 0n || length % RMR_ALIGN !== 0n)
    notes.push(`[Firmware Bug]: ${text} not aligned to 64K, continue anyway`);
  const first = start - (start % RMR_ALIGN);
  const aligned = ((end + RMR_ALIGN - 1n) / RMR_ALIGN) * RMR_ALIGN;
  return { start: first, last: (aligned > first ? aligned : first + RMR_ALIGN) - 1n };
}
