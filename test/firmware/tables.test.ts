/** Firmware tables: what real ones say, and that damaged ones are refused with a place or read in part, never anything else. */
import { readdirSync, readFileSync } from 'node:fs';
import fc from 'fast-check';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { parseDmar } from '../../src/firmware/dmar.js';
import { Iort } from '../../src/firmware/iort.js';
import { parseIvrs } from '../../src/firmware/ivrs.js';
import { parseMadt } from '../../src/firmware/madt.js';
import { FirmwareError } from '../../src/firmware/table.js';
import { parseViot } from '../../src/firmware/viot.js';

const PARSERS: Readonly<Record<string, (bytes: Uint8Array) => unknown>> = {
  APIC: parseMadt,
  DMAR: parseDmar,
  IORT: (bytes) => {
    const iort = new Iort(bytes);
    for (const node of iort.nodes) {
      if (node.kind !== 'root-complex') continue;
      for (const id of [0, 0x100, 0xffff]) {
        iort.smmuOf(node, id);
        iort.itsOf(node, id);
      }
    }
    return iort;
  },
  IVRS: parseIvrs,
  VIOT: parseViot,
};

interface Snapshot {
  readonly acpi?: Readonly<Record<string, string>>;
}

const SAMPLE = 'test/conformance/hosts';
const tables = new Map<string, Uint8Array>();
for (const name of readdirSync(SAMPLE)) {
  const { acpi = {} } = JSON.parse(gunzipSync(readFileSync(`${SAMPLE}/${name}`)).toString('utf8')) as Snapshot;
  for (const [table, hex] of Object.entries(acpi)) if (table in PARSERS) tables.set(table, Buffer.from(hex, 'hex'));
}

function table(name: string): Uint8Array {
  const bytes = tables.get(name);
  if (bytes === undefined) throw new Error(`no ${name} in the sample`);
  return bytes;
}

/** A table of a signature and structures, with the fixed part in between. */
function acpi(signature: string, fixed: number, ...structures: Buffer[]): Uint8Array {
  const bytes = Buffer.concat([Buffer.alloc(36 + fixed), ...structures]);
  bytes.write(signature, 0, 'latin1');
  bytes.writeUInt32LE(bytes.length, 4);
  return bytes;
}

describe('real tables', () => {
  test('DMAR: one unit, interrupt remapping', () => {
    const { drhds, rmrrs, interruptRemapping } = parseDmar(table('DMAR'));
    expect(drhds.map(({ base, segment }) => [base, segment])).toEqual([[0xfed90000n, 0]]);
    expect([rmrrs.length, interruptRemapping]).toEqual([0, true]);
  });
  test('IORT: requester IDs become StreamIDs and, through the SMMU, DeviceIDs', () => {
    const iort = new Iort(table('IORT'));
    const complex = iort.nodes.find((node) => node.kind === 'root-complex');
    if (complex?.kind !== 'root-complex') throw new Error('no root complex');
    expect(iort.smmuOf(complex, 0x123)).toMatchObject({ id: 0x123, node: { base: 0x9050000n } });
    expect(iort.itsOf(complex, 0x123)).toMatchObject({ id: 0x123, node: { itsIds: [0] } });
  });
  test('VIOT: requester IDs of three buses, and the virtio-iommu’s function', () => {
    const ranges = parseViot(table('VIOT'));
    expect(ranges.map(({ firstId, lastId, iommu }) => [firstId, lastId, iommu])).toEqual([
      [0, 0x2ff, { segment: 0, id: 8 }],
    ]);
  });
});

describe('tables by hand', () => {
  test('IVRS: ranges, aliases, unity and exclusion', () => {
    const entry = (type: number, id: number, rest: number[] = []): number[] => [type, id & 0xff, id >> 8, 0, ...rest];
    const entries = Buffer.from([
      ...entry(2, 0x10),
      ...entry(3, 0x100),
      ...entry(4, 0x1ff),
      ...entry(0x42, 0x200, [0, 0, 2, 0]),
      ...entry(0x48, 0, [0, 0, 0, 0]),
    ]);
    const ivhd = Buffer.alloc(24);
    ivhd.set([0x10, 0]);
    ivhd.writeUInt16LE(24 + entries.length, 2);
    const ivmd = (type: number, flags: number, first: number, last: number): Buffer => {
      const bytes = Buffer.alloc(32);
      bytes.set([type, flags, 32, 0]);
      bytes.writeUInt16LE(first, 4);
      bytes.writeUInt16LE(last, 6);
      bytes.writeBigUInt64LE(0x7f000000n, 16);
      bytes.writeBigUInt64LE(0x1000n, 24);
      return bytes;
    };
    const found = parseIvrs(
      acpi(
        'IVRS',
        12,
        Buffer.concat([ivhd, entries]),
        ivmd(0x21, 7, 0x10, 0),
        ivmd(0x22, 0xe, 0x100, 0x1ff),
        ivmd(0x20, 8, 0, 0),
      ),
    );
    expect(found.ivhds[0]?.devices).toEqual([
      { first: 0x10, last: 0x10 },
      { first: 0x100, last: 0x1ff },
      { first: 0x200, last: 0x200 },
    ]);
    expect(found.ivmds.map(({ first, last, kind }) => [first, last, kind])).toEqual([
      [0x10, 0x10, 'unity'],
      [0x100, 0x1ff, 'exclusion'],
      // An exclusion range and nothing else is mapped 1:1, as Linux treats what some firmware writes.
      [0, 0xffff, 'unity'],
    ]);
  });
  test('IORT: an RMR that is not aligned is rounded and noted', () => {
    const rmr = Buffer.alloc(28 + 20 + 20);
    rmr.set([6]);
    rmr.writeUInt16LE(rmr.length, 1);
    rmr.writeUInt32LE(1, 8);
    rmr.writeUInt32LE(48, 12);
    rmr.writeUInt32LE(1, 16);
    rmr.writeUInt32LE(1, 20);
    rmr.writeUInt32LE(28, 24);
    rmr.writeBigUInt64LE(0x8001000n, 28);
    rmr.writeBigUInt64LE(0x1000n, 36);
    rmr.writeUInt32LE(0x100, 56);
    rmr.writeUInt32LE(1, 64);
    const head = Buffer.alloc(12);
    head.writeUInt32LE(1, 0);
    head.writeUInt32LE(48, 4);
    const iort = new Iort(acpi('IORT', 12, rmr).map((byte, i) => (i >= 36 && i < 48 ? (head[i - 36] ?? 0) : byte)));
    expect(iort.nodes).toMatchObject([
      { kind: 'rmr', remapPermitted: true, ranges: [{ start: 0x8000000n, last: 0x800ffffn }] },
    ]);
    expect(iort.notes.join()).toContain('[Firmware Bug]: RMR descriptor[0x8001000 - 0x8001fff] not aligned to 64K');
  });
  test.each([
    ['too short', new Uint8Array(8), 'no ACPI table'],
    ['another table', acpi('XSDT', 0), 'the signature is "XSDT"'],
    ['longer than it is', acpi('DMAR', 12).map((byte, i) => (i === 5 ? 4 : byte)), 'the length is'],
    ['a structure of no length', acpi('DMAR', 12, Buffer.alloc(8)), 'offset 0x30: a structure of 0 bytes'],
  ])('%s', (_what, bytes, message) => {
    expect(() => parseDmar(bytes)).toThrow(message);
  });
});

describe('damaged tables', () => {
  test.each(Object.keys(PARSERS))('%s', (name) => {
    const bytes = table(name);
    const parse = PARSERS[name];
    const damage = fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.nat(255)), { maxLength: 6 });
    fc.assert(
      fc.property(damage, fc.nat(bytes.length), (changes, length) => {
        const copy = Uint8Array.from(bytes);
        for (const [at, value] of changes) copy[at] = value;
        try {
          parse?.(length % 3 === 0 ? copy.subarray(0, length) : copy);
        } catch (error) {
          expect(error).toBeInstanceOf(FirmwareError);
        }
      }),
      { numRuns: 2000, seed: 7 },
    );
  });
});
