/** Every uAPI struct, constant and ioctl declared here agrees with the ones compiled from the kernel's headers. */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import * as iommufd from '../../src/uapi/iommufd.js';
import * as vfio from '../../src/uapi/vfio.js';
import type { Ioctl } from '../../src/uapi/ioctl.js';
import type { FieldSpecs, Struct } from '../../src/layout/struct.js';

interface RecordedField {
  readonly name: string;
  readonly offset: number;
  readonly size: number;
  readonly flexible?: boolean;
}
interface Recorded {
  readonly structs: Readonly<Record<string, { readonly size: number; readonly fields: readonly RecordedField[] }>>;
  readonly constants: Readonly<Record<string, number>>;
  readonly enums: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

const sample = new URL('../conformance/linux/layouts.json', import.meta.url);
const oracle = `${process.env['IOVADUCT_ORACLE'] ?? '../shared/oracle'}/linux/layouts.json`;
const recorded = JSON.parse(readFileSync(existsSync(oracle) ? oracle : sample, 'utf8')) as Recorded;
const recordedConstants = new Map<string, number>([
  ...Object.entries(recorded.constants),
  ...Object.values(recorded.enums).flatMap((values) => Object.entries(values)),
]);

function isStruct(value: unknown): value is Struct<FieldSpecs> {
  return typeof value === 'object' && value !== null && 'alignBytes' in value && 'fields' in value;
}
function isIoctl(value: unknown): value is Ioctl<FieldSpecs> {
  return typeof value === 'object' && value !== null && 'minimumBytes' in value;
}

const declared = Object.entries({ ...iommufd, ...vfio } as Record<string, unknown>);
const structs = declared.filter(([, value]) => isStruct(value)) as [string, Struct<FieldSpecs>][];

describe('structs', () => {
  test.each(structs)('%s', (name, struct) => {
    const truth = recorded.structs[name];
    expect(truth, `struct ${name} is not in the kernel's headers`).toBeDefined();
    const fields = struct.fields.map((f) => ({ name: f.name, offset: f.offset, size: f.sizeBytes }));
    const expected = (truth?.fields ?? [])
      .filter((f) => f.flexible !== true)
      .map((f) => ({ name: f.name, offset: f.offset, size: f.size }));
    expect({ size: struct.sizeBytes, fields }).toEqual({ size: truth?.size, fields: expected });
  });
  test('there are enough of them to mean something', () => expect(structs.length).toBeGreaterThan(55));
});

describe('numbers', () => {
  const numbers = declared.flatMap(([name, value]): [string, number][] =>
    typeof value === 'number' ? [[name, value]] : isIoctl(value) ? [[name, value.number]] : [],
  );
  test.each(numbers)('%s', (name, value) => expect(value).toBe(recordedConstants.get(name)));
  test('there are enough of them to mean something', () => expect(numbers.length).toBeGreaterThan(150));
});
